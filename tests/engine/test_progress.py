"""The file that tells how far a run is."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from faults import Scripted, run, wait_for, write_inputs

from calibdask.engine import events
from calibdask.engine import progress as progress_module
from calibdask.engine.campaign import Status
from calibdask.engine.progress import Progress, ProgressFile, read_progress
from calibdask.errors import NotEnoughData


@pytest.fixture
def file(tmp_path):
    return ProgressFile(
        tmp_path, job="scripted", output=tmp_path / "out.h5", command="calibdask scripted"
    )


def _started(**changes):
    given = {"job": "scripted", "plan": "abc", "shards": 4, "stored": 0, "executor": "local"}
    return events.RunStarted(**{**given, "workers": 2, "workdir": "w", **changes})


def _map(label="a.npy", *, cached=False, failure=None, seconds=1.0):
    return events.TaskEnded(0, "map", label, cached, seconds, failure)


@pytest.mark.parametrize("cluster", ["serial", "threads"])
def test_a_run_leaves_what_it_did(tmp_path, cluster):
    script = {"001.npy": ["raise CorruptedInput!"], "002.npy": ["raise TransientError", "ok"]}
    result = run(
        Scripted(journal=str(tmp_path / "j"), script=script),
        write_inputs(tmp_path / "data", 5), tmp_path / "out.h5",
        cluster=cluster, workers=2, fan_in=2, allow_missing=0.5, command="calibdask scripted -i x",
    )  # fmt: skip
    told = read_progress(tmp_path / "out.h5.work")
    assert (told.job, told.plan, told.digest) == ("scripted", result.plan.digest, result.digest)
    assert (told.pid, told.executor, told.shards) == (os.getpid(), cluster, 5)
    assert (told.exit_code, told.error) == (0, "")
    assert told.started <= told.updated
    assert told.started < told.ended
    assert told.work_seconds > 0
    groups = {one.name: (one.total, one.done, one.cached, one.failed) for one in told.groups}
    assert groups == {"map": (5, 5, 0, 1), "merge": (6, 6, 0, 0), "fit": (1, 1, 0, 0)}
    assert [text for text in told.failures if "001.npy" in text] == told.failures != []
    assert any("002.npy: tried again" in text for text in told.messages)
    assert told.output == str(tmp_path / "out.h5")
    assert told.command == "calibdask scripted -i x"
    assert told.directory == str(Path.cwd())


def test_a_run_that_finds_all_in_the_store_says_so(tmp_path):
    paths = write_inputs(tmp_path / "data", 3)
    run(Scripted(), paths, tmp_path / "out.h5")
    run(Scripted(), paths, tmp_path / "out.h5", overwrite=True)
    told = read_progress(tmp_path / "out.h5.work")
    assert told.group(0, "map").cached == 3
    assert told.rate is None


def test_a_run_that_fails_says_why(tmp_path):
    script = {"001.npy": ["raise NotEnoughData!"]}
    with pytest.raises(NotEnoughData):
        run(
            Scripted(journal=str(tmp_path / "j"), script=script),
            write_inputs(tmp_path / "data", 3),
            tmp_path / "out.h5",
        )
    told = read_progress(tmp_path / "out.h5.work")
    assert told.exit_code == NotEnoughData.exit_code
    assert "001.npy" in told.error
    assert told.ended is not None
    assert told.digest is None


def test_a_run_that_is_refused_while_planning_says_so(tmp_path):
    paths = write_inputs(tmp_path / "data", 1)
    (tmp_path / "data" / "copy.npy").write_bytes(paths[0].read_bytes())
    with pytest.raises(Exception, match="the same data twice"):
        run(Scripted(), tmp_path / "data", tmp_path / "out.h5")
    told = read_progress(tmp_path / "out.h5.work")
    assert told.exit_code == 2
    assert "the same data twice" in told.error


class _Terminated(BaseException):
    """What the command line makes of SIGTERM."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (_Terminated(), 143, "terminated"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_every_way_to_end_has_its_code(file, tmp_path, error, code, words):
    with pytest.raises(type(error)), file:
        raise error
    told = read_progress(tmp_path)
    assert (told.exit_code, told.error) == (code, words)


def test_an_end_is_not_undone_by_what_comes_after_it(file, tmp_path):
    def end():
        with file:
            file(events.RunEnded("digest", 4, 0, 0, 1.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end()
    told = read_progress(tmp_path)
    assert (told.exit_code, told.digest, told.error) == (0, "digest", "")


def test_what_matters_is_written_at_once_and_the_rest_once_a_second(file, tmp_path, monkeypatch):
    monkeypatch.setattr(progress_module, "WRITE_SECONDS", 0.4)
    written = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *a: (written.append(time.monotonic()), replace(*a)))
    with file:
        file(_started())
        assert read_progress(tmp_path).plan == "abc"
        file(events.StageStarted(0, {"map": 4, "fit": 1}))
        assert read_progress(tmp_path).group(0, "map").total == 4
        before, begun = len(written), time.monotonic()
        while time.monotonic() < begun + 1.1:
            file(_map(cached=True))
        n_told = len(written) - before
        assert 1 <= n_told <= 4
        # The last one counts although nothing follows it.
        done = file._now.group(0, "map").done
        wait_for(lambda: read_progress(tmp_path).group(0, "map").done == done)
        settled = len(written)
        time.sleep(0.9)
        assert len(written) == settled, "nothing new, nothing written"


def test_a_full_disk_does_not_end_the_run(file, tmp_path, monkeypatch):
    write = Path.write_text

    def fail(self, *_arguments, **_options):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    monkeypatch.setattr(progress_module, "WRITE_SECONDS", 0.05)
    with file:
        file(_started())
        file(events.StageStarted(0, {"map": 4}))
        file(_map())
        time.sleep(0.2)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(Path, "write_text", write)
        # When there is room again, it is made up for without another event.
        wait_for(lambda: (told := read_progress(tmp_path)) is not None and told.groups)
    assert read_progress(tmp_path).group(0, "map").done == 1
    assert [one.name for one in tmp_path.iterdir()] == ["progress.json"]


def test_a_directory_that_is_gone_does_not_end_the_run_either(tmp_path):
    file = ProgressFile(tmp_path / "gone", job="j", output=tmp_path, command="")
    with file:
        file(_started())
    assert not (tmp_path / "gone").exists()


def test_of_failures_and_messages_the_last_are_kept(file, tmp_path):
    with file:
        file(_started())
        file(events.StageStarted(0, {"map": 50}))
        for number in range(50):
            file(_map(failure=f"failure {number}"))
            file(events.Message("WARNING", f"warning {number}"))
            file(events.Message("DEBUG", "a traceback"))
    told = read_progress(tmp_path)
    assert told.failures == [f"failure {number}" for number in range(30, 50)]
    assert told.messages == [f"warning {number}" for number in range(30, 50)]
    assert told.group(0, "map").failed == 50


def test_the_rate_is_that_of_work_not_of_waiting(file, tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    with file:
        file(_started())
        file(events.StageStarted(0, {"map": 100, "fit": 1}))
        now += 7200  # workers wait in a queue
        for _ in range(50):
            file(_map(cached=True))
        for _ in range(10):
            now += 2.0
            file(_map(seconds=2.0))
        file(events.Message("WARNING", "something"))
        file(_started())  # written at once
        told = read_progress(tmp_path)
        assert told.rate == pytest.approx(0.5)
        assert told.left_seconds == pytest.approx(40 / 0.5)
        file(events.StageStarted(1, {"map": 100}))
        assert read_progress(tmp_path).rate is None, "another stage, another rate"


def test_stages_and_written_files_stand_beside_each_other(file, tmp_path):
    with file:
        file(events.StageStarted(0, {"map": 2}))
        file(_map())
        file(events.StageStarted(1, {"map": 3}))
        file(events.TaskEnded(1, "map", "a", False, 1.0))
        file(events.StageStarted(0, {"write": 2}))
        file(events.TaskEnded(0, "write", "a.h5", False, 1.0))
    told = read_progress(tmp_path)
    seen = [(one.stage, one.name, one.done, one.total) for one in told.groups]
    assert seen == [(0, "map", 1, 2), (1, "map", 1, 3), (0, "write", 1, 2)]


def test_worker_jobs_are_told(file, tmp_path):
    with file:
        file(_started(workers=0))
        file(events.Workers(ready=3, starting=1, waiting=2))
    told = read_progress(tmp_path)
    assert told.workers == 3
    assert "2 in the queue" in told.worker_jobs


def test_the_shard_that_runs_longest_is_told(file, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "time", lambda: now[0])
    with file:
        file(events.TaskStarted("a", "a.npy", "a"))
        now[0] = 1060.0
        file(events.TaskStarted("b", "b.npy", "b"))
        file(_started())  # is written at once
        told = read_progress(tmp_path)
        assert (told.running, told.longest, told.longest_since) == (2, "a.npy", 1000.0)
        status = Status(tmp_path, "running", "", None, None, 4, 0, 0, told)
        assert dict(status.facts())["running"] == "2 shards, the longest for 60 s: a.npy"


def test_nothing_runs_when_the_run_is_over(file, tmp_path):
    file(events.TaskStarted("a", "a.npy", "a"))
    with pytest.raises(NotEnoughData), file:
        raise NotEnoughData("none")
    told = read_progress(tmp_path)
    assert (told.running, told.longest, told.longest_since) == (0, "", None)


def test_threads_may_tell_at_once(file, tmp_path):
    def tell():
        for _ in range(200):
            file(_map(cached=True))

    with file:
        file(events.StageStarted(0, {"map": 800}))
        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read_progress(tmp_path).group(0, "map").done == 800


def test_it_listens_before_another_does(file, tmp_path):
    def refuse(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), file:
        file.before(refuse)(events.RunEnded("digest", 1, 0, 0, 1.0))
    assert read_progress(tmp_path).digest == "digest"


@pytest.mark.parametrize("text", ["", '{"job": "scri', "[]", "null", '{"groups": [{"new": 1}]}',
    '{"workers": {}}', '{"started": 1e300}', '{"started": NaN}', '{"rate": 5e-324}',
    '{"failures": [1]}', '{"job": ["j"]}', '{"shards": 1' + "0" * 400 + "}", "[" * 100_000,
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_no_file(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    assert read_progress(tmp_path) is None


def test_a_later_version_may_say_more(tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps({"job": "j", "groups": [], "new": 1}))
    assert read_progress(tmp_path) == Progress(job="j")


def test_there_may_be_none(tmp_path):
    assert read_progress(tmp_path) is None
