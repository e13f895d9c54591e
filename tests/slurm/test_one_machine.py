"""The SLURM on one machine: it works as several nodes, and starting and stopping are safe."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm" / "one-machine"
LINK = Path("/etc/slurm/slurm.conf")

as_root = pytest.mark.skipif(os.getuid() != 0, reason="starting SLURM takes root")


def _script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / name), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _pids(prefix: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (prefix / "run").glob("*.pid")}


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@as_root
def test_a_prefix_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.tex"
    kept.write_text("all my work")
    done = _script("start.sh", PREFIX=str(tmp_path))
    assert done.returncode == 1
    assert "was not made by start.sh" in done.stderr
    stopped = _script("stop.sh", "--clean", PREFIX=str(tmp_path))
    assert "was not made by start.sh" in stopped.stderr
    assert kept.read_text() == "all my work"


def test_words_that_stop_does_not_know(tmp_path: Path) -> None:
    done = _script("stop.sh", "--celan", PREFIX=str(tmp_path))
    assert (done.returncode, "--clean" in done.stderr) == (2, True)


@as_root
def test_others_than_root_are_told(tmp_path: Path) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("there is no setpriv")
    # Not by name: the scripts may be where only root may read.
    text = (SCRIPTS / "start.sh").read_text()
    command = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must run as root" in done.stderr


def test_three_nodes_and_three_partitions(slurm) -> None:
    assert {"main", "short", "urgent"} <= set(slurm.partitions)
    names = slurm.run("srun", "-N3", "--time=1", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(names.split()) == ["n0", "n1", "n2"]


def test_jobs_are_seen_while_they_live(slurm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = slurm.run("sbatch", "--parsable", "--output", str(log), "--wrap", "sleep 30").strip()
    slurm.wait(lambda: slurm.jobs().get(job) == "RUNNING", 20)
    slurm.run("scancel", job)
    slurm.wait(lambda: job not in slurm.jobs(), 20)


def test_starting_again_changes_nothing(slurm) -> None:
    config = slurm.run("scontrol", "show", "config")
    prefix = Path(re.search(r"StateSaveLocation\s*=\s*(\S+)", config)[1]).parent
    before = _pids(prefix)
    done = _script("start.sh", PREFIX=str(prefix))
    assert done.returncode == 0, done.stderr
    assert _pids(prefix) == before
    assert len(before) == 5


@as_root
def test_start_mend_and_stop_a_second_one(slurm, tmp_path: Path) -> None:
    """In a place of its own, beside the one under test, whose link stays as it is."""
    link = LINK.readlink() if LINK.is_symlink() else None
    prefix = tmp_path / "second"
    port = _free_port()
    environment = {"PREFIX": str(prefix), "PORT": str(port), "NODES": "2", "MEM": "1000"}
    try:
        started = _script("start.sh", **environment)
        assert started.returncode == 0, started.stderr
        assert f"export SLURM_CONF={prefix}/slurm.conf" in started.stdout
        ask = {"SLURM_CONF": f"{prefix}/slurm.conf", "PATH": os.environ["PATH"]}
        listing = ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %m"]
        nodes = subprocess.run(listing, env=ask, capture_output=True, text=True, check=True)
        assert nodes.stdout.splitlines() == ["n0 1000", "n1 1000"]

        before = _pids(prefix)
        os.kill(int(before["slurmd.n1.pid"]), 9)
        drain = ["scontrol", "update", "NodeName=n0", "State=DRAIN", "Reason=test"]
        subprocess.run(drain, env=ask, check=True)
        mended = _script("start.sh", **environment)
        assert mended.returncode == 0, mended.stderr
        after = _pids(prefix)
        assert after["slurmctld.pid"] == before["slurmctld.pid"]
        assert after["slurmd.n1.pid"] != before["slurmd.n1.pid"]
        both = ["srun", "-N2", "--time=1", "true"]
        subprocess.run(both, env=ask, check=True, timeout=60)
    finally:
        pids = [int(pid) for pid in _pids(prefix).values()]
        stopped = _script("stop.sh", "--clean", PREFIX=str(prefix))
    assert stopped.returncode == 0, stopped.stderr
    assert not prefix.exists()
    assert not [pid for pid in pids if _lives(pid)]
    assert (LINK.readlink() if LINK.is_symlink() else None) == link


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return re.search(r"^State:\s+[ZX]", status, re.MULTILINE) is None
