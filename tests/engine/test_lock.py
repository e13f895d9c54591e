"""One run per work directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from faults import finish, start_python, wait_for

from calibdask.engine import lock as lock_module
from calibdask.engine.lock import STALE_SECONDS, WorkdirLock
from calibdask.errors import CalibdaskError, ConfigError


def _owner(tmp_path, **changes):
    owner = {"host": "elsewhere", "pid": 1, "started": "1", "slurm_job": None, "token": "x"}
    path = tmp_path / "lock.json"
    path.write_text(json.dumps(owner | changes))
    return path


def _age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def _dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_is_there_during_the_run_and_gone_after(tmp_path):
    with WorkdirLock(tmp_path / "work") as lock:
        owner = json.loads(lock.path.read_text())
        assert owner["host"] == socket.gethostname()
        assert owner["pid"] == os.getpid()
        assert lock.taken_over is None
    assert not lock.path.exists()
    with WorkdirLock(lock.path.parent):
        pass


def test_is_gone_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), WorkdirLock(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / "lock.json").exists()


def test_a_second_run_is_refused_with_the_place_of_the_first(tmp_path):
    with (
        WorkdirLock(tmp_path),
        pytest.raises(ConfigError) as caught,
        WorkdirLock(tmp_path),
    ):
        pytest.fail("two runs in one directory")
    text = str(caught.value)
    assert str(os.getpid()) in text
    assert socket.gethostname() in text
    assert str(tmp_path) in text
    assert "--workdir" in text


def test_the_refusal_names_the_batch_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with (
        WorkdirLock(tmp_path),
        pytest.raises(ConfigError, match="SLURM job 4711"),
        WorkdirLock(tmp_path),
    ):
        pytest.fail("two runs in one directory")


def test_a_refused_run_leaves_the_lock_of_the_first(tmp_path):
    with WorkdirLock(tmp_path) as first:
        before = first.path.read_text()
        with pytest.raises(ConfigError):
            WorkdirLock(tmp_path).__enter__()
        assert first.path.read_text() == before


def test_a_dead_processs_lock_is_taken_over_at_once(tmp_path):
    pid = _dead_pid()
    _owner(tmp_path, host=socket.gethostname(), pid=pid, started="12345")
    with WorkdirLock(tmp_path) as lock:
        assert lock.taken_over is not None
        assert str(pid) in lock.taken_over
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_a_recycled_process_id_does_not_keep_a_dead_lock(tmp_path):
    _owner(tmp_path, host=socket.gethostname(), pid=os.getpid(), started="1")
    with WorkdirLock(tmp_path) as lock:
        assert lock.taken_over is not None


def test_a_killed_runs_lock_is_taken_over(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from calibdask.engine.lock import WorkdirLock"
        "\nwith WorkdirLock(Path(sys.argv[1])): time.sleep(60)"
    )
    process = start_python(code, tmp_path)
    try:
        wait_for(
            lambda: (tmp_path / "lock.json").exists() and (tmp_path / "lock.json").stat().st_size
        )
        with pytest.raises(ConfigError, match=str(process.pid)):
            WorkdirLock(tmp_path).__enter__()
    finally:
        process.send_signal(signal.SIGKILL)
    # Not waited for yet: a zombie is dead too.
    wait_for(lambda: not _runs(process.pid))
    with WorkdirLock(tmp_path) as lock:
        assert str(process.pid) in lock.taken_over
    finish(process)


def _runs(pid):
    return lock_module._process_start(pid) is not None


def test_another_hosts_lock_is_judged_by_its_heartbeat(tmp_path):
    path = _owner(tmp_path)
    with pytest.raises(ConfigError, match="elsewhere"):
        WorkdirLock(tmp_path).__enter__()
    _age(path, STALE_SECONDS - 20)
    with pytest.raises(ConfigError, match="elsewhere"):
        WorkdirLock(tmp_path).__enter__()
    _age(path, STALE_SECONDS + 20)
    with WorkdirLock(tmp_path) as lock:
        assert "elsewhere" in lock.taken_over


@pytest.mark.parametrize("text", ["", '{"host": "els', "[]", "null"])
def test_a_lock_cut_short_is_respected_until_it_is_old(tmp_path, text):
    path = tmp_path / "lock.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        WorkdirLock(tmp_path).__enter__()
    _age(path, STALE_SECONDS + 20)
    with WorkdirLock(tmp_path):
        pass


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    with WorkdirLock(tmp_path) as lock:
        _age(lock.path, 1000)
        wait_for(lambda: time.time() - lock.path.stat().st_mtime < 100)


def test_of_several_heirs_one_wins(tmp_path):
    for _ in range(5):
        _owner(tmp_path, host=socket.gethostname(), pid=_dead_pid(), started="12345")
        ready = threading.Barrier(4)
        ended = threading.Barrier(4)
        inside: list[WorkdirLock] = []
        refused: list[ConfigError] = []

        def inherit(ready=ready, ended=ended, inside=inside, refused=refused):
            ready.wait()
            lock = WorkdirLock(tmp_path)
            try:
                lock.__enter__()
            except ConfigError as error:
                refused.append(error)
                ended.wait()
                return
            inside.append(lock)
            ended.wait()
            lock.__exit__(None, None, None)

        threads = [threading.Thread(target=inherit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (len(inside), len(refused)) == (1, 3)
        assert list(tmp_path.iterdir()) == []


def test_an_heir_that_comes_too_late_leaves_the_first_heirs_lock(tmp_path):
    # Both saw the dead run's lock; the first has taken its place when the second goes to remove it.
    path = _owner(tmp_path, host=socket.gethostname(), pid=_dead_pid(), started="12345")
    stale = json.loads(path.read_text())
    with WorkdirLock(tmp_path) as first:
        before = path.read_text()
        late = WorkdirLock(tmp_path)
        late._take_over(stale, "a dead run")
        assert path.read_text() == before
        assert late.taken_over is None
        assert first.taken_over is not None


def test_an_heir_killed_on_the_way_does_not_block_for_ever(tmp_path):
    _owner(tmp_path, host=socket.gethostname(), pid=_dead_pid(), started="12345")
    guard = tmp_path / "lock.takeover"
    guard.touch()
    _age(guard, STALE_SECONDS + 20)
    with WorkdirLock(tmp_path) as lock:
        assert lock.taken_over is not None


def test_a_lock_taken_over_is_not_removed_by_its_old_owner(tmp_path):
    with WorkdirLock(tmp_path) as lock:
        path = _owner(tmp_path)
    assert path.exists()
    assert lock.path == path


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CalibdaskError, match="--workdir") as caught:
        WorkdirLock(tmp_path / "file" / "work").__enter__()
    assert caught.value.exit_code == 1
    assert str(tmp_path / "file" / "work") in str(caught.value)
