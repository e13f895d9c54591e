"""A campaign from outside: status, cancel, clean; from the work directory alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from faults import Scripted, calls, finish, run, start, start_python, wait_for, write_inputs

from calibdask import api
from calibdask.engine import campaign
from calibdask.engine.campaign import cancel, clean, find_workdir, follow, read_status
from calibdask.engine.lock import STALE_SECONDS, WorkdirLock, ask_to_stop, holder_of
from calibdask.engine.progress import Progress
from calibdask.engine.session import Session
from calibdask.engine.sites import slurm_commands as slurm
from calibdask.engine.sites.queue import QueuedJob
from calibdask.errors import CalibdaskError, ConfigError

N_FREE = 3  # shards that a slow run reads before it waits for its gate to open


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 12)


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "out.h5.work"


@pytest.fixture
def gate(tmp_path):
    """What lets a slow run go on: a file called ``open`` in it."""
    directory = tmp_path / "gate"
    directory.mkdir()
    for number in range(N_FREE):
        (directory / f"ticket-{number}").touch()
    return directory


@pytest.fixture
def start_slow(paths, tmp_path, gate):
    """Start runs from the command line that read a few shards and wait; none outlives its test."""
    started = []

    def start_one():
        journal = tmp_path / "journal"
        process = start(
            "scripted", "-i", paths[0].parent, "-o", tmp_path / "out.h5", "--no-report",
            "--cluster", "serial", "--set", f"Scripted.journal={journal}",
            "--set", f"Scripted.script={json.dumps({'*': [f'take {gate}!']})}",
        )  # fmt: skip
        started.append(process)
        wait_for(lambda: sum(calls(journal).values()) > N_FREE)
        return process

    yield start_one
    (gate / "open").touch()  # a process that reads for a killed run ends, and with it the pipe
    for process in started:
        process.kill()
        process.communicate()


def _command(*arguments):
    """Call the command line as it is installed; give its exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "calibdask.cli", *map(str, arguments)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=500,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def _dead(workdir, **changes):
    """Leave the lock of a run that died."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    owner = {"host": socket.gethostname(), "pid": process.pid, "started": "1", "slurm_job": None}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "lock.json").write_text(json.dumps({**owner, "token": "old", **changes}))
    return process.pid


def _tell(workdir, **changes):
    told = {"job": "scripted", "host": socket.gethostname(), "groups": [], **changes}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "progress.json").write_text(json.dumps(asdict(Progress(**told))))


# -- which directory ------------------------------------------------------------------------------


def test_the_output_names_its_work_directory(tmp_path, paths, workdir):
    run(Scripted(), paths, tmp_path / "out.h5")
    assert find_workdir(tmp_path / "out.h5") == workdir
    assert find_workdir(workdir) == workdir
    (tmp_path / "out.h5").unlink()
    assert find_workdir(tmp_path / "out.h5") == workdir


@pytest.mark.parametrize("name", ["nothing", "data", "."])
def test_what_is_no_work_directory_is_refused(tmp_path, paths, name):
    with pytest.raises(ConfigError, match="no campaign was run here"):
        find_workdir(tmp_path / name)
    code, _, complaint = _command("status", tmp_path / name)
    assert code == 2
    assert "Traceback" not in complaint


# -- status ---------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path, paths, workdir):
    result = run(Scripted(), paths, tmp_path / "out.h5")
    status = api.status(tmp_path / "out.h5")
    assert (status.state, status.exit_code) == ("finished", 0)
    assert (status.stored, status.shards, status.rejected) == (12, 12, 0)
    text = str(status)
    assert "12 of 12 stored" in text
    assert result.digest in text
    assert "carry on" not in text
    assert status.workdir == workdir
    assert "<table>" in status._repr_html_()


def test_shards_are_counted_in_the_store(tmp_path, paths, workdir):
    result = run(Scripted(), paths, tmp_path / "out.h5")
    run(Scripted(offset=1.0), paths, tmp_path / "other.h5", workdir=workdir)  # stored beside them
    run(Scripted(), paths, tmp_path / "out.h5", overwrite=True)
    plan = json.loads((workdir / "plan.json").read_text())
    addresses = [shard["address"] for shard in plan["shards"]]
    assert addresses == [result.plan.address(0, shard, {}) for shard in result.plan.shards]
    for address in addresses[:5]:
        (workdir / "store" / address[:2] / f"{address}.pack").unlink()
    assert read_status(workdir).stored == 7


def _retold(workdir, **told):
    """Change what the last run told."""
    path = workdir / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def test_what_a_killed_run_told_late_is_counted_in_the_store(tmp_path, paths, workdir):
    run(Scripted(), paths, tmp_path / "out.h5")
    groups = [{"stage": 0, "name": "map", "total": 12, "done": 3}]
    _retold(workdir, groups=groups, ended=None, exit_code=None)
    facts = dict(read_status(workdir).facts())
    assert facts["shards"].endswith("12 of 12 stored")
    assert facts["stage 0 map"].endswith("12 of 12")


def test_a_run_that_is_over_has_no_workers(tmp_path, paths, workdir):
    run(Scripted(), paths, tmp_path / "out.h5")
    jobs = {"executor": "slurm", "workers": 2, "worker_jobs": "worker jobs: 2 at work"}
    _retold(workdir, ended=None, exit_code=None, **jobs)
    with WorkdirLock(workdir):
        assert dict(read_status(workdir).facts())["workers"] == "slurm, worker jobs: 2 at work"
    _retold(workdir, ended=time.time(), exit_code=143, error="asked to stop")
    assert dict(read_status(workdir).facts())["workers"] == "slurm"


def test_a_run_is_as_old_as_its_own_clock_says(tmp_path, paths, workdir):
    run(Scripted(), paths, tmp_path / "out.h5")
    ahead = time.time() + 86400
    _retold(workdir, started=ahead, updated=ahead + 30, ended=None, exit_code=None)
    with WorkdirLock(workdir):
        facts = dict(read_status(workdir).facts())
    assert facts["campaign"] == "scripted, running for 30 s"
    assert "by a clock ahead of that of this host" in facts["run by"]


def test_a_failed_run_tells_what_and_how_to_carry_on(tmp_path, paths, workdir):
    script = '{"003.npy": ["raise CorruptedInput!"]}'
    process = start(
        "scripted", "-i", paths[0].parent, "-o", tmp_path / "out.h5", "--no-report",
        "--cluster", "serial", "--set", f"Scripted.script={script}",
    )  # fmt: skip
    assert finish(process)[0] == 104
    code, text, _ = _command("status", tmp_path / "out.h5")
    assert code == 3
    assert "scripted, failed" in text
    assert "exit code 104" in text
    assert "11 of 12 stored" in text
    assert "1 FAILED" in text
    assert f"cd {os.getcwd()} && calibdask scripted" in text  # noqa: PTH109  the words as printed
    assert "003.npy: scripted CorruptedInput" in text
    status = read_status(workdir)
    assert status.state == "failed"
    assert status.carry_on in text


def test_a_run_from_a_script_is_carried_on_by_the_script(tmp_path, paths, workdir):
    with pytest.raises(CalibdaskError):
        run(Scripted(script={"003.npy": ["raise CorruptedInput!"]}), paths, tmp_path / "out.h5")
    assert "the same command, or script, as before" in str(read_status(workdir))


def test_running_then_killed(tmp_path, workdir, start_slow):
    process = start_slow()
    code, text, _ = _command("status", tmp_path / "out.h5", "--json")
    seen = json.loads(text)
    assert (code, seen["state"]) == (0, "running")
    assert seen["holder"]["pid"] == process.pid
    assert 0 < seen["stored"] < seen["shards"] == 12
    _, text, _ = _command("status", workdir)
    assert f"process {process.pid} on {socket.gethostname()}" in text
    process.kill()
    process.wait()
    killed = time.time()
    status = read_status(workdir)
    assert (status.state, status.exit_code) == ("stopped", 3)
    assert killed - 12 < status.seen <= killed
    assert "killed" in status.reason
    assert "last sign of life" in str(status)
    assert status.stored >= seen["stored"]


def test_the_batch_job_is_named(workdir):
    _dead(workdir, slurm_job="4711")
    assert "SLURM job 4711" in str(read_status(workdir))


def test_another_hosts_run_lives_as_long_as_its_heart_beats(workdir):
    _dead(workdir, host="elsewhere")
    _tell(workdir, host="elsewhere", started=time.time())
    assert read_status(workdir).state == "running"
    then = time.time() - STALE_SECONDS - 5
    os.utime(workdir / "lock.json", (then, then))
    assert read_status(workdir).state == "stopped"


def test_an_earlier_end_is_not_taken_for_this_runs(workdir):
    pid = _dead(workdir)
    _tell(workdir, pid=pid + 1, ended=time.time(), exit_code=0, digest="earlier")
    assert read_status(workdir).state == "stopped"
    _tell(workdir, pid=pid, ended=time.time(), exit_code=0, digest="its own")
    assert read_status(workdir).state == "finished"


@pytest.mark.parametrize(
    ("exit_code", "state"),
    [(130, "stopped"), (143, "stopped"), (1, "failed"), (104, "failed"), (0, "finished")],
)
def test_how_it_ended(workdir, exit_code, state):
    _tell(workdir, ended=time.time(), exit_code=exit_code, error="why")
    status = read_status(workdir)
    assert status.state == state
    assert (f"exit code {exit_code}: why" in status.reason) == (exit_code != 0)


@pytest.mark.parametrize("name", ["progress.json", "plan.json", "lock.json"])
def test_a_pipe_or_a_directory_in_the_place_of_a_record_is_none(tmp_path, paths, workdir, name):
    finished = run(Scripted(), paths, tmp_path / "out.h5")
    (workdir / name).unlink(missing_ok=True)
    os.mkfifo(workdir / name)
    piped = read_status(workdir)
    # What cannot be read may be a lock that is being written.
    expected = {"progress.json": "never started", "plan.json": "finished", "lock.json": "running"}
    assert piped.state == expected[name]
    (workdir / name).unlink()
    (workdir / name).mkdir()
    assert read_status(workdir).state == piped.state
    assert finished.digest in str(read_status(workdir)) or name == "progress.json"


@pytest.mark.parametrize("text", ["", "{", '{"shards": [{}], "rejected": []}', "[]"])
def test_nothing_but_half_a_plan(workdir, text):
    workdir.mkdir()
    (workdir / "plan.json").write_text(text)
    status = read_status(workdir)
    assert (status.state, status.shards, status.exit_code) == ("never started", 0, 3)
    assert "never started" in str(status)
    assert json.loads(status.to_json())["progress"] is None


def test_watching_ends_with_the_run(tmp_path, workdir, start_slow, gate):
    start_slow()
    arguments = ("status", tmp_path / "out.h5", "--watch")
    watching = start_python("from calibdask.cli import main; main()", *arguments)
    first = watching.stdout.readline()
    (gate / "open").touch()
    code, rest, _ = finish(watching)
    assert code == 0
    assert first.startswith("running; ")
    assert "12 of 12 stored" in rest
    assert [one.state for one in follow(workdir)] == ["finished"]


def test_watching_and_json_do_not_go_together(workdir):
    _tell(workdir)
    assert _command("status", workdir, "--watch", "--json")[0] == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (7260, "2 h 01 min"), (200_000, "2 d 7 h")],
)
def test_times_for_people(seconds, text):
    assert campaign._duration(seconds) == text


# -- cancel ---------------------------------------------------------------------------------------


def test_the_command_line_ends_with_143_and_the_same_command_carries_on(
    tmp_path, paths, workdir, start_slow
):
    process = start_slow()
    code, text, _ = _command("cancel", tmp_path / "out.h5")
    assert code == 0
    assert f"process {process.pid} on {socket.gethostname()} has stopped" in text
    assert finish(process)[0] == 143
    status = read_status(workdir)
    assert status.state == "stopped"
    assert "143" in status.reason
    assert status.stored > 0
    assert not (workdir / "cancel").exists()
    result = run(Scripted(), paths, tmp_path / "out.h5")
    assert result.account.cached == status.stored
    assert result.digest == run(Scripted(), paths, tmp_path / "fresh.h5").digest


IN_PYTHON = """
import signal, sys, time
from pathlib import Path
from calibdask.engine.lock import WorkdirLock
{before}
try:
    with WorkdirLock(Path(sys.argv[1])):
        time.sleep(60)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""


@pytest.mark.parametrize(
    ("before", "ending"),
    [
        ("", "KeyboardInterrupt"),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),
        # As in the background of a shell script: nobody could interrupt it otherwise.
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", -signal.SIGTERM),
    ],
)
def test_python_in_a_blocking_wait(tmp_path, before, ending):
    process = start_python(IN_PYTHON.format(before=before), tmp_path)
    try:
        wait_for(lambda: (found := holder_of(tmp_path)) is not None and found.token)
        cancel(tmp_path, timeout=400)
        code, output, _ = finish(process)
    finally:
        process.kill()
    assert ending in (code, output.strip())


def test_a_request_is_for_one_run_alone(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "calibdask.engine.lock._interrupt_main_thread", lambda: heard.append("stop")
    )
    monkeypatch.setattr("calibdask.engine.lock.REQUEST_SECONDS", 0.02)
    request = tmp_path / "cancel"
    request.write_text("anybody")
    with WorkdirLock(tmp_path):
        assert not request.exists(), "of an earlier time"
        earlier = holder_of(tmp_path)
    with WorkdirLock(tmp_path):
        ask_to_stop(tmp_path, earlier)
        wait_for(lambda: not request.exists())
        assert heard == []
        ask_to_stop(tmp_path, holder_of(tmp_path))
        wait_for(lambda: heard == ["stop"])
        time.sleep(0.1)
        assert heard == ["stop"], "once"
        assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_request_is_not_heeded(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "calibdask.engine.lock._interrupt_main_thread", lambda: heard.append("stop")
    )
    with WorkdirLock(tmp_path) as lock:
        request = tmp_path / "cancel"
        request.write_text(lock._token)
        os.chown(request, 65534, 65534)
        assert not lock._is_asked_to_stop()
        assert not request.exists()
        request.symlink_to(lock.path)
        assert not lock._is_asked_to_stop()
        assert not request.is_symlink()
        # And this user is told so before asking.
        os.chown(lock.path, 65534, 65534)
        with pytest.raises(ConfigError, match=r"belongs to the user (nobody|65534)"):
            cancel(tmp_path)
        assert not request.exists()
    assert heard == []


def test_a_run_that_does_not_stop_is_reported(tmp_path):
    ignore = "signal.signal(signal.SIGTERM, lambda *_: None)"
    process = start_python(IN_PYTHON.format(before=ignore), tmp_path)
    try:
        wait_for(lambda: (found := holder_of(tmp_path)) is not None and found.token)
        with pytest.raises(CalibdaskError, match="still stands after 0 s"):
            cancel(tmp_path, timeout=0.3)
    finally:
        process.kill()
        process.communicate()


def test_there_is_nothing_to_cancel(tmp_path, workdir):
    _tell(workdir)
    assert "no run is going on" in cancel(workdir)
    pid = _dead(workdir)
    assert f"process {pid} on {socket.gethostname()} is dead already" in cancel(workdir)
    code, text, _ = _command("cancel", workdir)
    assert (code, "is dead already" in text) == (0, True)


@pytest.fixture
def queue(monkeypatch):
    """The jobs that SLURM has; those cancelled leave it."""
    jobs = {"11": QueuedJob("RUNNING", "", "n1"), "12": QueuedJob("PENDING", "", "")}
    monkeypatch.setattr(slurm, "alive", lambda ids: {one: jobs[one] for one in ids if one in jobs})
    monkeypatch.setattr(slurm, "cancel", lambda ids: [jobs.pop(one) for one in ids])
    return jobs


@pytest.mark.parametrize("act", [cancel, clean])
def test_worker_jobs_of_a_dead_run_are_cancelled(workdir, queue, act):
    _dead(workdir)
    session = Session.create(workdir, "certificate", "key")
    session.publish({"site": "slurm", "worker_jobs": ["11", "12", "13"], "address": "tls://x:1"})
    assert "cancelled its worker jobs 11, 12" in str(act(workdir))
    assert queue == {}


def test_worker_jobs_of_a_living_run_are_its_own_affair(workdir, queue):
    with WorkdirLock(workdir):
        Session.create(workdir, "certificate", "key").publish({"worker_jobs": ["11"]})
        with pytest.raises(ConfigError, match="in use"):
            clean(workdir)
    assert set(queue) == {"11", "12"}


# -- clean ----------------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path, paths, workdir):
    """A work directory as a killed run leaves it, and what is worth keeping in it."""
    run(Scripted(), paths, tmp_path / "out.h5")
    kept = {path for path in workdir.rglob("*") if path.is_file()}
    _dead(workdir)
    Session.create(workdir, "certificate", "key")
    (workdir / "scratch" / "deep").mkdir(parents=True)
    (workdir / "scratch" / "deep" / "file").write_bytes(b"x" * 1000)
    (workdir / ".progress.json.1.tmp").touch()
    (workdir / "inputs.1.tmp").touch()
    (next((workdir / "store").iterdir()) / ".abc.tmp").touch()
    (workdir / "cancel").touch()
    return kept


def _files(workdir):
    return {path for path in workdir.rglob("*") if path.is_file()}


def test_what_the_dead_left_goes_and_the_rest_stays(killed, workdir, tmp_path):
    size = sum(path.stat().st_size for path in _files(workdir) - killed)
    removed = clean(workdir)
    assert _files(workdir) == killed
    assert sorted(path.name for path in workdir.iterdir()) == [
        "inputs.json", "plan.json", "products.json", "progress.json", "store",
    ]  # fmt: skip
    assert (removed.files, removed.n_bytes) == (7, size)
    assert "removed 7 files" in str(removed)
    assert clean(workdir).files == 0
    assert read_status(workdir).state == "finished"


def test_a_living_runs_directory_is_not_touched(workdir, start_slow):
    process = start_slow()
    for more in ([], ["--all", "--yes"]):
        before = _files(workdir)
        code, _, complaint = _command("clean", workdir, *more)
        assert code == 2
        assert str(process.pid) in complaint
        assert before <= _files(workdir)
    assert process.poll() is None


def test_all_of_it_goes_when_asked_for(killed, workdir, tmp_path):
    code, text, _ = _command("clean", tmp_path / "out.h5", "--all")
    assert code != 0, "nobody answers the question"
    assert workdir.exists()
    code, text, _ = _command("clean", tmp_path / "out.h5", "--all", "--yes")
    assert code == 0
    assert "removed" in text
    assert not workdir.exists()
    assert (tmp_path / "out.h5").exists()


def test_what_is_not_ours_stays(killed, workdir):
    (workdir / "notes.txt").write_text("mine")
    removed = clean(workdir, everything=True)
    assert removed.left == ["notes.txt"]
    assert "notes.txt" in str(removed)
    assert [path.name for path in workdir.iterdir()] == ["notes.txt"]


def test_links_are_not_followed(killed, workdir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ab").mkdir(parents=True)
    (elsewhere / "ab" / "precious.tmp").write_text("precious")
    (workdir / "scratch" / "link").symlink_to(elsewhere)
    (workdir / "scratch" / "file").symlink_to(elsewhere / "ab" / "precious.tmp")
    (workdir / "store" / "zz").symlink_to(elsewhere / "ab")
    clean(workdir)
    assert (elsewhere / "ab" / "precious.tmp").exists()
    (workdir / "store" / "zz").rename(workdir / "store" / "aa")
    (workdir / "scratch").symlink_to(elsewhere)
    (workdir / "logs").symlink_to(elsewhere)
    clean(workdir, everything=True)
    assert (elsewhere / "ab" / "precious.tmp").read_text() == "precious"
    assert not workdir.exists()


def test_a_store_that_is_a_link_loses_the_link_alone(killed, workdir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (workdir / "store").rename(elsewhere)
    (workdir / "store").symlink_to(elsewhere)
    results = _files(elsewhere)
    clean(workdir)
    assert _files(elsewhere) == results
    clean(workdir, everything=True)
    assert _files(elsewhere) == results


def test_a_link_to_a_work_directory_is_not_emptied(killed, workdir, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(workdir)
    with pytest.raises(ConfigError, match=str(workdir)):
        clean(link, everything=True)
    assert killed <= _files(workdir)


@pytest.mark.parametrize("names", [[], ["store/ab", "store/music"], ["store/pictures"]])
def test_what_may_be_something_else_is_not_emptied(tmp_path, names):
    directory = tmp_path / "home"
    for name in ["documents", *names]:
        (directory / name).mkdir(parents=True)
    (directory / "lock.json").write_text("{}")
    with pytest.raises(ConfigError):
        clean(directory, everything=True)
    assert all((directory / name).exists() for name in ["documents", "lock.json", *names])
