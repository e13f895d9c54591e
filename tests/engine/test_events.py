"""Events: JSON lines in batch, the log, bars on a terminal."""

from __future__ import annotations

import io
import json
import logging

import pytest
from faults import Scripted, run, write_inputs

from calibdask.engine import events


@pytest.fixture
def told(tmp_path):
    found = []
    script = {"001.npy": ["raise CorruptedInput!"]}
    run(
        Scripted(journal=str(tmp_path / "j"), script=script),
        write_inputs(tmp_path / "data", 3), tmp_path / "o.h5",
        allow_missing=0.5, listener=found.append,
    )  # fmt: skip
    return found


def test_a_run_tells_everything_once(told):
    names = [type(one).__name__ for one in told]
    assert names.count("RunStarted") == names.count("RunEnded") == 1
    ended = [one for one in told if isinstance(one, events.TaskEnded)]
    assert sorted(one.group for one in ended) == ["fit", "map", "map", "map", "merge"]
    assert [bool(one.failure) for one in ended if one.group == "map"].count(True) == 1
    (started,) = [one for one in told if isinstance(one, events.StageStarted)]
    assert started.tasks == {"map": 3, "merge": 1, "fit": 1}
    last = told[-1]
    assert (last.computed, last.cached, last.failed) == (2, 0, 1)


def test_json_lines_are_one_object_a_line(told):
    stream = io.StringIO()
    write = events.JsonLines(stream)
    for one in told:
        write(one)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all({"time", "event"} <= record.keys() for record in records)
    assert records[-1]["event"] == "RunEnded"
    assert records[-1]["digest"] == told[-1].digest
    assert len(records) <= len(told)


def test_the_log_gets_failures_as_errors(told, caplog):
    with caplog.at_level(logging.DEBUG, "calibdask"):
        for one in told:
            events.log_event(one)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "001.npy" in errors[0].getMessage()


def test_bars_show_and_leave_nothing_running(told):
    from rich.console import Console

    stream = io.StringIO()
    bars = events.ProgressBars(Console(file=stream, force_terminal=True, width=100))
    for one in told:
        bars(one)
    bars.close()
    assert "stage 0 map" in stream.getvalue()


def test_the_way_to_the_dashboard_stands_beside_its_address():
    from rich.console import Console

    link = "http://127.0.0.1:8787/status"
    tunnel = events.tunnel_command(link)
    assert tunnel.startswith("from your own machine: ssh -L 8787:localhost:8787 ")
    started = events.RunStarted("job", "plan", 2, 0, "local", 2, "work", link, tunnel)
    stream = io.StringIO()
    bars = events.ProgressBars(Console(file=stream, width=200))
    bars(started)
    bars.close()
    assert stream.getvalue() == f"dashboard: {link}\n{tunnel}\n"
    stream = io.StringIO()
    events.JsonLines(stream)(started)
    assert json.loads(stream.getvalue())["tunnel"] == tunnel
    elsewhere = events.tunnel_command(link, "node7")
    assert elsewhere.endswith("-L 8787:localhost:8787 node7")
    assert " -J " in elsewhere


def test_information_is_shown_once_and_nobody_marks_it_up(caplog):
    from rich.console import Console

    for level, expected in ((logging.WARNING, "[frames] left out\n"), (logging.INFO, "")):
        stream = io.StringIO()
        with caplog.at_level(level, "calibdask"):
            events.ProgressBars(Console(file=stream))(events.Message("INFO", "[frames] left out"))
        assert stream.getvalue() == expected  # at INFO the log says it
