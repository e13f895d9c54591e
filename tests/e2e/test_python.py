"""The Python interface: paths or lists, and what is shown of plans and results."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import calibdask
from calibdask.engine import events
from calibdask.errors import ConfigError
from tests.e2e.tables import COEFFICIENTS

JOB = "inter-calibration"


class _Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed twice."""

    void = frozenset({"br", "hr", "img", "meta", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _check_html(text):
    parser = _Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []


@pytest.fixture(scope="module")
def result(campaign, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "inter <&>.h5"
    return calibdask.run(JOB, list(campaign.paths), output, config=config, cluster="serial")


def test_result_in_a_terminal(result):
    lines = str(result).splitlines()
    assert lines[0] == COEFFICIENTS
    assert lines[1].split()[:4] == ["tel_type", "tel_id", "value", "error"]
    # Every telescope has its line: nothing is cut to the height of a screen.
    shown = [line.split()[1] for line in lines if line.lstrip().startswith(("LST", "MST", "SST"))]
    assert shown == [str(number) for number in result.tables[COEFFICIENTS]["tel_id"]]
    assert any(line.startswith("shards") and "4 used (4 computed now, 0" in line for line in lines)
    for path in result.paths:
        assert any(str(path) in line for line in lines)
        assert path.exists()
    assert lines[-1].split() == ["digest", result.digest]
    assert repr(result) == str(result)


def test_result_in_a_notebook(result):
    html = result._repr_html_()
    _check_html(html)
    assert result.digest in html
    assert "inter &lt;&amp;&gt;.h5" in html
    assert "inter <&>.h5" not in html
    for path in result.tables:
        assert path in html


def test_account(result):
    flow = result.account.total.cut_flow
    counts = list(flow.values())
    assert flow["telescope events"] > flow["valid reco"] > 0
    assert flow["pairs"] > flow["equidistant pairs"] > flow["events with a pair"] > 0
    assert all(isinstance(count, int) for count in counts)
    assert flow["equidistant pairs"] == sum(result.tables[f"{COEFFICIENTS}_pairs"]["n_events"])
    assert result.account.executor == "serial"


def test_report_is_written(result):
    report = next(path for path in result.paths if path.suffix == ".html").read_text()
    assert result.digest in report
    _check_html(report)
    assert "dl2_obs1004.h5" in report


def test_plan(campaign, config):
    plan = calibdask.plan(JOB, campaign.paths, config=config)
    text = str(plan)
    assert "inter-calibration (version" in text
    assert "4 files" in text
    assert plan.digest in text
    html = plan._repr_html_()
    _check_html(html)
    assert plan.digest in html
    assert plan.digest == calibdask.plan(JOB, campaign.paths[::-1], config=config).digest


def test_plan_writes_nothing(campaign, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibdask.plan(JOB, campaign.paths, config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [str, lambda path: path, lambda path: [path], lambda path: (path,)]
)
def test_inputs_and_configurations_of_any_sort(campaign, config, kind):
    folder = campaign.paths[0].parent
    plan = calibdask.plan(JOB, kind(folder), config=kind(config))
    assert len(plan.shards) == 4


def test_load_config(config, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("CalculateInterCalibration: {RelativeThroughputFitter: {n_min: 17}}\n")
    assert calibdask.load_config(JOB, config).calibration.network.n_min == 10
    assert calibdask.load_config(JOB, [config, more]).calibration.network.n_min == 17
    option = "CalculateInterCalibration.RelativeThroughputFitter.n_min"
    prepared = calibdask.load_config(JOB, [config, more], {option: 23})
    assert prepared.calibration.network.n_min == 23
    assert dict(prepared.calibration.network.reference_telescopes)["MST"] == 5
    with pytest.raises(ConfigError, match="did you mean"):
        calibdask.load_config("intercalibration", config)


def test_a_prepared_calibration_can_be_run(campaign, config, tmp_path, result):
    prepared = calibdask.load_config(JOB, config)
    again = calibdask.run(
        prepared.calibration, campaign.paths, tmp_path / "o.h5", cluster="serial", report=False
    )
    assert again.digest == result.digest


def test_listener_is_told_everything(campaign, config, tmp_path):
    told = []
    calibdask.run(
        JOB,
        campaign.paths[0],
        tmp_path / "o.h5",
        config=config,
        listener=told.append,
        cluster="serial",
        report=False,
    )
    kinds = [type(event) for event in told]
    assert kinds.index(events.RunStarted) < kinds.index(events.TaskEnded)
    assert kinds[-1] is events.RunEnded
