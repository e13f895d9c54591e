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
    assert sorted(one.group for one in ended) == ["fit", "map", "map", "map"]
    assert [bool(one.failure) for one in ended if one.group == "map"].count(True) == 1
    (started,) = [one for one in told if isinstance(one, events.StageStarted)]
    assert started.tasks == {"map": 3, "fit": 1}
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


def _ended(key):
    return events.TaskEnded(0, "map", key, cached=False, wall_seconds=1.0, key=key)


def test_what_runs_is_counted_with_the_longest():
    now = [100.0]
    running = events.Running(lambda: now[0])
    running(events.StageStarted(0, {"map": 5}))
    assert (len(running), running.longest, str(running)) == (0, None, "")
    running(events.TaskStarted("a", "a.h5", "call 1"))
    now[0] = 101.0
    running(events.TaskStarted("b", "b.h5", "call 2"))
    assert str(running) == ""  # not long yet
    now[0] = 134.0
    assert (len(running), running.longest) == (2, ("a.h5", 100.0))
    assert str(running) == "2 running, longest 34 s"
    running(events.TaskStarted("c", "c.h5", "call 1"))  # so a is done, though not told yet
    assert (len(running), running.longest) == (2, ("b.h5", 101.0))
    running(_ended("a"))
    running(_ended("c"))
    assert (len(running), running.longest) == (1, ("b.h5", 101.0))
    running(events.TaskStarted("b", "b.h5", "call 3"))  # its worker died
    assert (len(running), running.longest) == (1, ("b.h5", 134.0))
    running(_ended("d"))
    running(events.TaskStarted("d", "d.h5", "call 4"))  # told late
    running(_ended("b"))
    assert (len(running), running.longest) == (0, None)
    running(events.TaskStarted("e", "e.h5", "call 5"))
    running(events.StageStarted(1, {"map": 5}))
    assert len(running) == 0


def test_a_bar_says_what_runs_long():
    from rich.console import Console

    now = [0.0]
    stream = io.StringIO()
    bars = events.ProgressBars(Console(file=stream, force_terminal=True, width=100), lambda: now[0])
    bars(events.StageStarted(0, {"map": 2, "fit": 1}))
    for key in ("a", "b"):
        bars(events.TaskStarted(key, key, key))
    now[0] = 75.0
    bars.close()
    assert "2 running, longest 75 s" in stream.getvalue()
    assert "running" not in stream.getvalue().split("stage 0 fit")[-1]


@pytest.mark.parametrize("cluster", ["serial", "threads"])
def test_maps_are_told_when_they_begin(cluster, tmp_path):
    found = []
    inputs = write_inputs(tmp_path / "data", 7)
    run(Scripted(), inputs, tmp_path / "o.h5", cluster=cluster, workers=2, listener=found.append)
    running, most = events.Running(), 0
    for one in found:
        running(one)
        most = max(most, len(running))
        assert len(running) <= (1 if cluster == "serial" else 2)
    assert most == (1 if cluster == "serial" else 2)
    assert len(running) == 0
    began = [one.label for one in found if isinstance(one, events.TaskStarted)]
    names = {path.name for path in inputs}
    assert len(set(began)) == len(began)
    # With threads those that end before the driver looks again are not told.
    assert set(began) == names if cluster == "serial" else set(began) <= names
