"""What another user of the same machine may try: nothing of it is executed, or believed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from distributed import Security
from faults import TESTS, Scripted, run, write_inputs

from calibdask.engine.attach import connect
from calibdask.engine.campaign import cancel, clean, read_status
from calibdask.engine.doctor import check_cache, examine
from calibdask.engine.lock import WorkdirLock
from calibdask.engine.session import Session
from calibdask.engine.sites import slurm_commands as slurm
from calibdask.engine.sites.allocation import step_environment
from calibdask.engine.sites.base import Settings
from calibdask.engine.sites.batch import BatchJob
from calibdask.engine.sites.jobs import JobUnits, worker_exports
from calibdask.engine.sites.local import path_for_workers
from calibdask.engine.sites.scheduler import connect_client, making_session, running_scheduler
from calibdask.engine.sites.slurm import SlurmJob
from calibdask.engine.sites.table import open_executor
from calibdask.errors import ConfigError
from calibdask.stats.compiled import cache_problem

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 3)


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def _open_to_group(path):
    path.chmod(0o770)


def _give_away(path):
    os.chown(path, NOBODY, NOBODY)


strange = pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(_open_to_group, "has the permissions 770", id="group"),
        pytest.param(_give_away, "belongs to the user nobody", id="foreign", marks=as_root),
    ],
)

# -- work directories -----------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_a_work_directory_is_its_users_alone(tmp_path, paths, umask):
    before = os.umask(umask)
    try:
        run(Scripted(), paths, tmp_path / "out.h5")
    finally:
        os.umask(before)
    assert _mode(tmp_path / "out.h5.work") == 0o700


@strange
def test_forged_results_are_not_believed(tmp_path, paths, spoil, reason):
    workdir = tmp_path / "work"
    run(Scripted(), paths, tmp_path / "out.h5", workdir=workdir)
    spoil(workdir)
    for action in (
        lambda: run(Scripted(), paths, tmp_path / "other.h5", workdir=workdir),
        lambda: cancel(workdir),
        lambda: clean(workdir),
        lambda: clean(workdir, everything=True),
    ):
        with pytest.raises(ConfigError, match=f"{reason}.*--workdir"):
            action()
    assert (workdir / "store").exists()
    assert not (tmp_path / "other.h5").exists()
    assert not (workdir / "lock.json").exists()
    found = [str(one) for one in examine("local", Settings(workdir=workdir))]
    assert [one for one in found if one.startswith("FAIL") and reason in one and "--workdir" in one]


@as_root
def test_a_link_to_a_work_directory_is_followed_if_it_is_mine(tmp_path, paths):
    (tmp_path / "there").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("there")
    run(Scripted(), paths, tmp_path / "out.h5", workdir=link)
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="symbolic link made by the user nobody"):
        run(Scripted(), paths, tmp_path / "other.h5", workdir=link)


@strange
def test_a_command_that_others_could_have_written_is_not_recommended(
    tmp_path, paths, spoil, reason
):
    workdir = tmp_path / "out.h5.work"
    run(Scripted(), paths, tmp_path / "out.h5", command="calibdask scripted")
    told = json.loads((workdir / "progress.json").read_text())
    (workdir / "progress.json").write_text(json.dumps({**told, "exit_code": 1}))
    assert "calibdask scripted" in str(read_status(workdir))
    spoil(workdir)
    assert "calibdask scripted" not in str(read_status(workdir))
    assert read_status(workdir).state == "failed"


@pytest.mark.parametrize("lock", ['{"host": "HOST", "pid": "x"}', "[]", "{", '{"pid": [1]}'])
def test_a_lock_that_makes_no_sense_is_no_traceback(tmp_path, lock):
    workdir = tmp_path / "work"
    workdir.mkdir(mode=0o700)
    (workdir / "lock.json").write_text(lock.replace("HOST", socket.gethostname()))
    assert read_status(workdir).state == "running"  # it is fresh
    with pytest.raises(ConfigError, match="in use"):
        clean(workdir)


# -- sessions -------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path):
    """A session that looks alive; nothing must be asked of its scheduler."""
    with WorkdirLock(tmp_path / "work") as lock, socket.create_server(("127.0.0.1", 0)) as server:
        made = Session.create(lock.path.parent, "certificate", "key")
        address = f"tls://127.0.0.1:{server.getsockname()[1]}"
        made.publish({"address": address, "host": socket.gethostname(), "worker_jobs": ["11"]})
        yield made
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def _refuse(session, match):
    for action in (
        session.read,
        lambda: connect_client(session),
        lambda: connect(session.directory.parent),
    ):
        with pytest.raises(ConfigError, match=match):
            action()
    with (
        pytest.raises(ConfigError, match=match),
        open_executor(str(session.description), Settings()),
    ):
        pass


def test_a_session_is_made_for_its_user_alone(session):
    assert _mode(session.directory) == _mode(session.scratch) == 0o700
    files = (session.key, session.certificate, session.description)
    assert {_mode(path) for path in files} == {0o600}
    assert session.read()["worker_jobs"] == ["11"]


@pytest.mark.parametrize("name", ["directory", "description", "certificate", "key"])
def test_a_session_that_others_may_read_is_refused(session, name):
    getattr(session, name).chmod(0o750 if name == "directory" else 0o640)
    _refuse(session, "other users may use it; a session is read only if it is yours alone")


@as_root
@pytest.mark.parametrize("name", ["directory", "description", "certificate", "key"])
def test_a_session_of_another_is_refused(session, name):
    os.chown(getattr(session, name), NOBODY, NOBODY)
    _refuse(session, "belongs to the user nobody")


@pytest.mark.parametrize("name", ["directory", "description", "certificate", "key"])
def test_a_session_that_is_a_link_is_refused(session, name):
    path = getattr(session, name)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    _refuse(session, "is a symbolic link")


@pytest.mark.parametrize(
    "described",
    [
        {"address": "tcp://127.0.0.1:1", "tls": False},
        {"address": "tcp://127.0.0.1:1", "tls": True},
        {"address": "inproc://1"},
        {"address": None},
        {},
        [],
    ],
)
def test_a_scheduler_that_proves_nothing_is_refused(session, described):
    if described:
        described = {"host": socket.gethostname(), **described}
    session._write(session.description, json.dumps(described))
    _refuse(session, "names a scheduler without TLS")


def test_worker_jobs_that_another_names_are_not_cancelled(tmp_path, monkeypatch):
    workdir = tmp_path / "work"
    workdir.mkdir(mode=0o700)
    (workdir / "lock.json").write_text("{}")
    session = Session.create(workdir, "certificate", "key")
    session.publish({"address": "tls://x:1", "worker_jobs": ["11"]})
    cancelled = []
    monkeypatch.setattr(slurm, "alive", dict.fromkeys)
    monkeypatch.setattr(slurm, "cancel", cancelled.extend)
    session.description.chmod(0o666)
    with pytest.raises(ConfigError, match="in use"):
        clean(workdir)
    os.utime(workdir / "lock.json", (0, 0))
    clean(workdir)
    assert not cancelled


# -- the path of workers --------------------------------------------------------------------------

EVIL = """
import os
open(os.path.join({directory!r}, "ran-" + __name__), "w").close()
raise ImportError(__name__)
"""


@pytest.fixture
def trap(tmp_path):
    """A directory whose files leave a mark when they are executed, and what leaves it."""
    directory = tmp_path / "trap"
    directory.mkdir()
    for name in ("tables", "numba", "threading", "signal", "h5py", "distributed", "numpy"):
        (directory / f"{name}.py").write_text(EVIL.format(directory=str(tmp_path)))
    yield directory
    assert not list(tmp_path.glob("ran-*"))


@pytest.mark.cluster
def test_local_workers_execute_nothing_that_lies_in_the_current_directory(tmp_path, paths, trap):
    # As the installed command does, this has its own directory first on the path.
    script = tmp_path / "bin" / "calibdask"
    script.parent.mkdir()
    script.write_text("if __name__ == '__main__':\n    import faults\n    faults.command_line()\n")
    done = subprocess.run(
        [sys.executable, script, "scripted", "-i", *paths, "-o", tmp_path / "out.h5", "-q",
         "--no-report", "--cluster", "local", "--workers", "1"],
        cwd=trap, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_current_directory_is_off_the_path_while_workers_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/one{os.pathsep}two")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for first in ("", str(tmp_path)):
        path = [first, str(tmp_path), "/one", str(tmp_path / "two"), "/lib"]
        monkeypatch.setattr(sys, "path", path.copy())
        with path_for_workers(["numpy"]):
            assert sys.path == ["/one", str(tmp_path / "two"), "/lib"]
            assert os.environ["PYTHONSAFEPATH"] == "1"
            assert os.environ["PYTHONPATH"] == f"/one{os.pathsep}{tmp_path / 'two'}"
            sys.path.append("/added")
        assert sys.path == [*path, "/added"]
        assert "PYTHONSAFEPATH" not in os.environ
        assert os.environ["PYTHONPATH"] == f"{os.pathsep}/one{os.pathsep}two"


def test_where_the_calibration_lies_stays_on_the_path_but_last(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    import of_mine

    with path_for_workers([of_mine.__name__]):
        assert sys.path[-1] == str(tmp_path)
        assert not {"", str(tmp_path)} & set(sys.path[:-1])


def test_what_the_user_names_in_pythonpath_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setattr(sys, "path", ["/bin", str(tmp_path), "/lib"])
    with path_for_workers([]):
        assert sys.path == ["/bin", str(tmp_path), "/lib"]
        assert os.environ["PYTHONPATH"] == str(tmp_path)


@pytest.fixture
def job_script(tmp_path, monkeypatch):
    """Write a worker's job script as it is submitted."""
    submitted = []
    monkeypatch.setattr(slurm, "submit", lambda script, _name: submitted.append(script) or "1")

    def write(**options):
        site = Settings(workdir=tmp_path / "work", jobqueue={"memory": "1 GiB", **options})
        made = Security.temporary().get_tls_config_for_role("worker")
        session = Session.create(site.workdir, made["cert"], made["key"])
        jobs = JobUnits(SlurmJob.of(site), slurm, session)
        jobs.scheduler = "tls://127.0.0.1:9"
        jobs.launch(0, ())
        return submitted[-1]

    (tmp_path / "work").mkdir(mode=0o700)
    return write


def test_worker_jobs_execute_nothing_that_lies_in_the_current_directory(tmp_path, job_script, trap):
    script = job_script(worker_extra_args=["--death-timeout", "0.01"])
    done = subprocess.run(
        ["bash"], input=script, cwd=trap, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert "Timed out starting worker" in done.stderr, done.stderr  # it came to the worker itself


def test_steps_of_an_allocation_have_the_same_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"lib{os.pathsep}")
    environment = step_environment(Path("scratch"))
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["PYTHONPATH"] == str(tmp_path / "lib")
    assert environment["DASK_TEMPORARY_DIRECTORY"] == str(tmp_path / "scratch")
    lines = worker_exports(SlurmJob.of(Settings(workdir=tmp_path)), tmp_path)
    assert "export PYTHONSAFEPATH=1" in lines
    assert f"export DASK_TEMPORARY_DIRECTORY={tmp_path}" in lines


# -- Dask's scratch -------------------------------------------------------------------------------


@pytest.mark.cluster
def test_scheduler_and_workers_have_their_scratch_in_the_session(tmp_path, monkeypatch):
    # A short name: sockets of multiprocessing lie in there, too.
    bait = Path(tempfile.mkdtemp(prefix="bait-"))
    (bait / "dask-scratch-space").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(bait))
    workdir = tmp_path / "work"
    workdir.mkdir(mode=0o700)
    with open_executor("local", Settings(workers=1, workdir=workdir)) as (executor, _):
        client = executor._client

        def look(dask_worker=None, dask_scheduler=None):
            return (dask_worker or dask_scheduler).local_directory, sys.path.copy()

        found = [client.run_on_scheduler(look), *client.run(look).values()]
        assert len(found) == 2
        for place, path in found:
            assert Path(place).is_relative_to(workdir / "session" / "scratch")
            assert not [one for one in path if Path(one).is_relative_to(bait)]
            assert not {"", str(Path.cwd())} & {path[0]}
    assert not list((bait / "dask-scratch-space").iterdir())
    assert not (workdir / "session").exists()


@pytest.mark.cluster
def test_so_has_a_scheduler_for_worker_jobs(tmp_path):
    workdir = tmp_path / "work"
    workdir.mkdir(mode=0o700)
    site = Settings(workdir=workdir)
    with (
        making_session(site) as (session, security),
        running_scheduler(security, site, {"host": "127.0.0.1"}) as (running, _),
    ):
        place = Path(running.scheduler.local_directory)
        assert place.is_relative_to(session.scratch)
        assert _mode(session.directory) == 0o700


def test_scratch_on_a_nodes_own_disk_is_the_jobs_alone(tmp_path, job_script, monkeypatch):
    disk = tmp_path / "a disk"
    disk.mkdir()
    disk.chmod(0o1777)
    monkeypatch.setenv("DISK", str(disk))
    script = job_script(local_directory="${DISK}")
    lines = [line for line in script.splitlines() if "--no-dashboard" not in line]
    assert "--local-directory" not in script
    look = 'echo "$DASK_TEMPORARY_DIRECTORY"; stat -c %a "$DASK_TEMPORARY_DIRECTORY"'
    done = subprocess.run(
        ["bash"], input="\n".join([*lines, look]), capture_output=True, text=True, check=True
    )
    place, mode = done.stdout.split("\n")[:2]
    assert Path(place).parent == disk
    assert mode == "700"
    assert not list(disk.iterdir())  # it goes with the job
    disk.chmod(0o777)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "others could replace what workers keep there" in done.stderr


# -- options of worker jobs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue", "main\ntouch /tmp/owned"),
        ("account", "a\rb"),
        ("walltime", "01:00:00\n"),
        ("job_name", "x\x1b[2J"),
        ("job_extra_directives", ["--qos=high", "--comment=x\ntouch owned"]),
        ("log_directory", "logs\n"),
        ("shebang", "#!/bin/sh\ntouch owned\n"),
        ("python", "python; touch owned"),
        ("python", "$(touch owned)"),
        ("python", "`touch owned`"),
        ("local_directory", '$TMPDIR"; touch owned; "'),
        ("local_directory", "${TMPDIR:-$(touch owned)}"),
        ("worker_extra_args", ["--resources", "a=1 && touch owned"]),
        ("worker_extra_args", ["--local-directory", "/tmp"]),
        ("interface", "ib0 > owned"),
        ("death_timeout", "60 | touch owned"),
        ("memory", "1 GiB\n#"),
    ],
)
def test_an_option_that_would_be_shell_is_refused(tmp_path, option, value):
    with pytest.raises(ConfigError, match=rf"Slurm\.{option}: .*(shell|local_directory)"):
        SlurmJob.of(Settings(workdir=tmp_path, jobqueue={option: value}))


def test_so_is_one_of_dask_jobqueues_own_configuration(tmp_path):
    import dask

    SlurmJob.of(Settings(workdir=tmp_path))
    with (
        dask.config.set({"jobqueue.slurm.queue": "main\ntouch owned"}),
        pytest.raises(ConfigError, match=r"Slurm\.queue"),
    ):
        SlurmJob.of(Settings(workdir=tmp_path))


def test_lines_of_shell_and_variables_have_their_place(tmp_path):
    options = {
        "job_script_prologue": ["module load x; source $HOME/venv/bin/activate", "a=$(date)"],
        "local_directory": "${TMPDIR}/sub dir", "python": "$HOME/venv/bin/python",
        "job_extra_directives": ["--comment='a; b'", "--constraint=a|b"], "queue": "a,b",
    }  # fmt: skip
    script = SlurmJob.of(Settings(workdir=tmp_path, jobqueue=options)).script("tls://x", "w")
    assert "source $HOME/venv/bin/activate\na=$(date)\n" in script
    assert "#SBATCH --constraint=a|b\n" in script


@pytest.mark.parametrize(
    "more",
    [
        {"directives": ["--account=a\ntouch owned"]},
        {"time": "02:00:00\n"},
        {"memory_per_worker": "4G\ntouch owned"},
    ],
)
def test_an_option_of_a_batch_job_adds_no_lines(more):
    options = {"time": "02:00:00", **more}
    with pytest.raises(ConfigError, match="line break"):
        BatchJob(("calibdask", "bias"), 1, 1, **options).script()


# -- compiled kernels -----------------------------------------------------------------------------

KERNEL = "from calibdask.stats.compiled import compiled\n@compiled\ndef f(x):\n    return x + 1\n"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Use a kernel of one's own; tell whether it was compiled, and keep to one cache."""
    (tmp_path / "kernels.py").write_text(KERNEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)

    def use(umask=0o002):
        code = (
            f"import os, sys; os.umask({umask}); sys.path.insert(0, {str(tmp_path)!r})\n"
            "from kernels import f; assert f(1) == 2; print(sum(f.stats.cache_hits.values()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return use


def test_the_cache_of_kernels_is_its_users_alone(tmp_path, kernel):
    assert [kernel(), kernel()] == [0, 1]
    ours = tmp_path / "cache" / "calibdask"
    folders = [ours, ours / "numba", *(ours / "numba").iterdir()]
    assert len(folders) == 3
    assert {_mode(path) for path in folders} == {0o700}
    assert cache_problem() is None
    assert check_cache().level == "PASS"


@strange
def test_a_cache_that_others_may_change_is_not_used(tmp_path, kernel, spoil, reason, paths):
    assert [kernel(), kernel()] == [0, 1]
    spoil(tmp_path / "cache" / "calibdask" / "numba")
    before = set(tmp_path.rglob("*.nb*"))
    assert before
    assert kernel() == 0
    assert set(tmp_path.rglob("*.nb*")) == before
    found = check_cache()
    assert (found.level, reason in found.what, "NUMBA_CACHE_DIR" in found.remedy) == (
        "WARN", True, True,
    )  # fmt: skip
    told = []
    run(Scripted(), paths, tmp_path / "out.h5", listener=told.append)
    assert any(reason in getattr(event, "text", "") for event in told)


@strange
def test_so_it_is_where_the_user_names_one(tmp_path, kernel, monkeypatch, spoil, reason):
    named = tmp_path / "named"
    named.mkdir(mode=0o700)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(named))
    assert [kernel(), kernel()] == [0, 1]
    spoil(named)
    assert kernel() == 0
    assert reason in cache_problem()


# -- names ----------------------------------------------------------------------------------------


def test_names_are_shown_and_not_obeyed(tmp_path):
    data = tmp_path / "data"
    write_inputs(data, 2)
    for number, name in enumerate(
        ("a\x1b]0;owned\x07.npy", "b\nERROR forged\n.npy", "c\x9b2J.npy")
    ):
        np.save(data / name, np.arange(10) + number)
    odd = [path.name for path in data.iterdir() if not path.name.isprintable()]
    script = {name: ["raise CorruptedInput!"] for name in odd}
    done = subprocess.run(
        [sys.executable, "-c", "import faults; faults.command_line()", "scripted", "-i", data,
         "-o", tmp_path / "out.h5", "-l", tmp_path / "log.txt", "--no-report", "-q",
         "--set", f"Scripted.script={json.dumps(script)}"],
        capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode not in (0, 1, 2), done.stderr
    log = (tmp_path / "log.txt").read_bytes()
    status = subprocess.run(
        [sys.executable, "-m", "calibdask.cli", "status", tmp_path / "out.h5"],
        capture_output=True, check=False,
    ).stdout  # fmt: skip
    for said in (done.stderr, log, status):
        assert rb"\x1b]0;owned\x07" in said or said is done.stderr
        assert rb"b\nERROR forged\n" in said
        assert not {0x1B, 0x07} & set(said)
        assert "\x9b".encode() not in said
        assert not [line for line in said.splitlines() if line.strip().startswith(b"ERROR forged")]
    shutil.rmtree(data)
