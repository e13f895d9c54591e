"""The report page: well formed, closed to the outside, honest, and the same for the same run."""

from __future__ import annotations

import base64
import math
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.errors import ConfigError
from calibdask.report import (
    FailureRecord,
    FigureBlock,
    InputRecord,
    Notice,
    Paragraph,
    ReportSection,
    RunRecord,
    TableBlock,
    draw_figure,
    render_report,
    write_report,
)
from calibdask.rounding import error_columns, round_to_error

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "img", "br", "hr", "link", "input"}

RUN = RunRecord(
    job="inter-calibration",
    version="0.1.0",
    command="calibdask inter-calibration -c array.yaml -i dl2/ -o result.h5",
    plan_digest="0123abcd" * 8,
    result_digest="fedc9876" * 8,
    started="2026-01-01T00:00:00Z",
    finished="2026-01-01T01:01:00Z",
    host="node01",
    executor="threads",
    workers=2,
    n_shards=4,
    n_computed=3,
    n_reused=1,
    inputs=(InputRecord("a.h5", 2048, 2, "done"), InputRecord("b.h5", 4096, 2, "done")),
    cut_flow={"telescope events": 1000, "valid": 800, "in a pair": 100},
    wall_s=3660.0,
    cpu_s=7200.0,
    peak_memory_bytes=3 * 2**30,
)


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def make_sections() -> list[ReportSection]:
    table = TableBlock(
        columns={
            "Telescope": np.array([1, 2]),
            "Throughput": [1.0, 0.87654],
            "Error": [0.0, 0.0123],
        },
        caption="Values",
        error_of={"Throughput": "Error"},
    )
    figure = draw_figure(
        lambda figure: figure.subplots().plot([0, 1], [1, 0]),
        size_in=(3, 2),
        alt="A falling line",
        caption="It falls",
    )
    return [
        ReportSection(
            "Results", [Paragraph("Some words."), Notice("info", "Look here."), table, figure]
        ),
        ReportSection("More", [Notice("info", "And here.")]),
    ]


def verdict(page: str) -> tuple[str, str]:
    match = re.search(r'<p class="verdict (\w+)">(.*?)</p>', page)
    assert match is not None
    return match[1], match[2]


def test_the_page_is_well_formed_and_its_links_lead_somewhere() -> None:
    page = Page(render_report("Title", RUN, make_sections()))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links = page.attributes("href")
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert {"section-1", "section-2", "cut-flow", "inputs", "run"} <= set(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)


def test_the_page_is_closed_to_the_outside() -> None:
    page = render_report("Title", RUN, make_sections())
    parsed = Page(page)
    assert re.findall(r"(?:https?:)?//[\w.]", page) == []
    assert "@import" not in page
    assert "url(" not in page
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert all(source.startswith("data:image/") for source in parsed.attributes("src"))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page


def test_figures_hold_no_reference_to_fetch() -> None:
    figure = make_sections()[0].blocks[3]
    assert isinstance(figure, FigureBlock)
    assert isinstance(figure.image, str)
    references = re.findall(r'(?:href|src)="([^"]*)"', figure.image)
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert base64.b64decode(figure.source.partition(",")[2]).decode() == figure.image


HOSTILE = [
    '"><script>alert(1)</script>.h5',
    "' onmouseover='alert(1).h5",
    "{{ 7 * 7 }}{% raw %}.h5",
    "</td></table>&lt;.h5",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_not_obeyed(name: str) -> None:
    failure = FailureRecord(2, name, 104, f"{name}: truncated")
    run = replace(
        RUN,
        command=name,
        host=name,
        inputs=[InputRecord(name, 1, 1, name)],
        cut_flow={name: 3},
        failures=[failure],
        warnings=[name],
        n_computed=2,
    )
    table = TableBlock({name: [name]}, name)
    figure = FigureBlock("<svg xmlns='http://www.w3.org/2000/svg'/>", alt=name, caption=name)
    section = ReportSection(name, [Paragraph(name), Notice("warning", name), table, figure])
    page = Page(render_report(name, run, [section]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attr for _, attrs in page.tags for attr in attrs if attr.startswith("on")]
    # title, heading, failure, message, warning, contents, section, five in it, flow, input, run
    assert page.text.count(name) >= 16
    assert name in page.attributes("alt")


def test_invisible_characters_are_made_visible() -> None:
    run = replace(RUN, inputs=[InputRecord("a\u202egpj.\x1b[31m\udcff.h5", 1, 1, "done")])
    page = render_report("Title", run, [])
    assert r"a\u202egpj.\x1b[31m\udcff.h5" in page
    page.encode()


@given(st.text(max_size=40))
def test_any_text_survives(text: str) -> None:
    page = Page(
        render_report(text, replace(RUN, host=text), [ReportSection(text, [Paragraph(text)])])
    )
    assert page.open == []


def test_equal_arguments_give_equal_bytes() -> None:
    first = render_report("Title", RUN, make_sections())
    assert render_report("Title", RUN, make_sections()) == first
    assert render_report("Title", replace(RUN, workers=3), make_sections()) != first


def test_tables_show_every_row() -> None:
    values = np.arange(500) * 1.5
    table = TableBlock({"n": np.arange(500), "value": values}, "Long", formats={"value": ".2f"})
    page = Page(render_report("Title", RUN, [ReportSection("Long", [table])]))
    assert [f"{n}" for n in range(500)] == [row[0] for row in page.rows[1:501]]
    assert [f"{value:.2f}" for value in values] == [row[1] for row in page.rows[1:501]]


def test_cells_follow_their_type() -> None:
    table = TableBlock(
        {
            "b": [True, False],
            "f": [math.nan, 1234.5678],
            "n": np.array([1, 2_000_000]),
            "s": ["", "x"],
        },
        "Types",
        formats={"n": ",d"},
        marked=[False, True],
    )
    assert table.rows() == [
        (False, ("yes", "–", "1", "")),
        (True, ("no", "1235", "2,000,000", "x")),
    ]
    assert table.numeric == [False, True, True, False]


def test_values_and_errors_stand_under_each_other() -> None:
    table = TableBlock(
        {"v": [1.0, 0.87654, 12.3456, math.nan], "e": [0.0, 0.0123, 0.00456, math.nan]},
        "Errors",
        error_of={"v": "e"},
    )
    values, errors = zip(*(cells for _, cells in table.rows()), strict=True)
    assert [value.strip() for value in values] == ["1", "0.877", "12.3456", "–"]
    assert [error.strip() for error in errors] == ["0", "0.012", "0.0046", "–"]
    # The padding is as wide as what it replaces: one point and four decimals.
    assert [len(value.partition(".")[2]) for value in values[1:3]] == [4, 4]
    assert values[0] == "1\N{PUNCTUATION SPACE}" + 4 * "\N{FIGURE SPACE}"


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (1.23456, 0.0123, ("1.235", "0.012")),
        (1.0, 0.0996, ("1.00", "0.10")),
        (123456.0, 1234.0, ("123500", "1200")),
        (-1e-6, 0.01, ("0.000", "0.010")),
        (0.5, 0.0, ("0.5", "0")),
        (0.123456, math.nan, ("0.1235", "–")),
        (math.nan, 0.1, ("–", "0.10")),
        (1.0, math.inf, ("1", "inf")),
        (1.0, 1.26e-12, ("1", "1.3e-12")),
    ],
)
def test_round_to_error(value: float, error: float, expected: tuple[str, str]) -> None:
    assert round_to_error(value, error) == expected


def test_errors_are_found_by_the_names_that_products_use() -> None:
    names = ["value", "error", "mean", "sem", "slope", "slope_err", "bias_dn", "bias_dn_error"]
    assert error_columns([*names, "std", "error_independent"]) == dict(
        zip(names[::2], names[1::2], strict=True)
    )


@given(
    value=st.floats(-1e6, 1e6),
    error=st.floats(1e-8, 1e5),
)
def test_rounding_loses_less_than_a_tenth_of_the_error(value: float, error: float) -> None:
    shown_value, shown_error = map(float, round_to_error(value, error))
    # What is shown is read again as the nearest double.
    assert abs(shown_value - value) <= 0.051 * error + np.spacing(abs(value))
    assert shown_error == pytest.approx(error, rel=0.051)


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({}, "good", "Finished: every shard is accounted for"),
        ({"warnings": ["w"]}, "warning", "Finished; 1 warning of the run"),
        ({"n_computed": 1}, "warning", "Incomplete result: 2 of 4 shards not computed"),
        (
            {"n_computed": 2, "failures": [FailureRecord(1, "a.h5", 104, "m")]},
            "warning",
            "Incomplete result: 1 of 4 shards failed",
        ),
        (
            {
                "n_computed": 1,
                "result_digest": None,
                "failures": [
                    FailureRecord(1, "a.h5", 104, "m"),
                    FailureRecord(1, "b.h5", 104, "m"),
                ],
            },
            "error",
            "No result: 1 of 4 shards failed, 1 of 4 shards not computed",
        ),
        (
            {"result_digest": None, "failures": [FailureRecord(None, "", 106, "m")]},
            "error",
            "No result: not every step succeeded",
        ),
        ({"result_digest": None}, "error", "No result: none was written"),
    ],
)
def test_the_verdict_says_what_is_missing(change: dict[str, Any], level: str, text: str) -> None:
    assert verdict(render_report("Title", replace(RUN, **change), [])) == (level, text)


def test_notices_of_a_domain_count_in_the_verdict() -> None:
    section = ReportSection(
        "S", [Notice("info", "i"), Notice("warning", "w"), Notice("error", "e")]
    )
    page = render_report("Title", RUN, [section])
    assert verdict(page) == ("error", "Finished; 2 points need attention")
    # As many as the section says; warnings of the run are in a place of their own.
    page = render_report("Title", replace(RUN, warnings=["w"] * 3), [section])
    assert verdict(page) == ("error", "Finished; 2 points need attention, 3 warnings of the run")


def test_failures_come_before_results_and_inputs_with_problems_before_the_others() -> None:
    run = replace(
        RUN,
        n_computed=2,
        inputs=[InputRecord("good.h5", 1, 2, "done"), InputRecord("bad.h5", 1, 2, "failed")],
        failures=[FailureRecord(3, "bad.h5", 104, "truncated: copy it again")],
    )
    page = render_report("Title", run, make_sections())
    assert page.index("truncated: copy it again") < page.index("Some words.")
    inputs = page[page.index('<section id="inputs">') :]
    assert inputs.index("bad.h5") < inputs.index("good.h5")


def test_the_cut_flow_has_its_fractions() -> None:
    page = Page(render_report("Title", RUN, []))
    flow = {row[0]: row[1:4] for row in page.rows}
    assert flow["telescope events"] == ["1,000", "100.0%", "100.00%"]
    assert flow["valid"] == ["800", "80.0%", "80.00%"]
    assert flow["in a pair"] == ["100", "12.5%", "10.00%"]


def test_a_cut_flow_of_zeros_or_of_nothing_is_shown() -> None:
    page = Page(render_report("Title", replace(RUN, cut_flow={"events": 0, "valid": 0}), []))
    assert ["valid", "0", "–", "–", ""] in page.rows
    assert "selected nothing" in Page(render_report("Title", replace(RUN, cut_flow={}), [])).text


def test_the_run_can_be_repeated_from_the_page() -> None:
    text = Page(render_report("Title", RUN, [])).text
    for expected in (
        RUN.command,
        RUN.plan_digest,
        RUN.result_digest,
        "1 h 01 min",
        "3.0 GiB",
        "node01",
    ):
        assert expected is not None
        assert expected in text


def test_what_was_not_measured_is_a_dash() -> None:
    run = replace(RUN, wall_s=math.nan, cpu_s=math.nan, peak_memory_bytes=None)
    page = render_report("Title", run, [])
    assert page.count("<dd>–</dd>") == 3
    assert "nan" not in Page(page).text


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, "Title", RUN, make_sections())
    assert path.read_text(encoding="utf-8") == render_report("Title", RUN, make_sections())
    assert list(tmp_path.iterdir()) == [path]
    # As any file the user makes: a temporary file's own mode would shut out the group.
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, "Title", RUN, [])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no directory .*nowhere; create it first"):
        write_report(tmp_path / "nowhere" / "report.html", "Title", RUN, [])


def test_blocks_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        TableBlock({"a": [1], "b": [1, 2]}, "Bad")
    with pytest.raises(ValueError, match=r"no columns \['c'\]"):
        TableBlock({"a": [1]}, "Bad", error_of={"a": "c"})
    with pytest.raises(ValueError, match="2 marks"):
        TableBlock({"a": [1]}, "Bad", marked=[True, False])
    with pytest.raises(ValueError, match="alternative text"):
        FigureBlock("<svg/>", alt=" ", caption="Bad")
    with pytest.raises(ValueError, match="not a PNG"):
        FigureBlock(b"GIF89a", alt="x", caption="Bad")


def test_png_figures_are_embedded() -> None:
    image = b"\x89PNG\r\n\x1a\n" + bytes(8)
    figure = FigureBlock(image, alt="Dots", caption="Some dots")
    page = Page(render_report("Title", RUN, [ReportSection("S", [figure])]))
    (source,) = page.attributes("src")
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == image
