"""Every way in which the doctor can say WARN or FAIL, without a SLURM."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from click.testing import CliRunner

from calibdask import cli
from calibdask.engine import doctor, probe
from calibdask.engine.doctor import cluster_settings, examine
from calibdask.engine.lock import STALE_SECONDS
from calibdask.engine.provenance import versions
from calibdask.engine.sites import local, node_checks, slurm_checks
from calibdask.engine.sites.base import Settings
from calibdask.engine.sites.jobs import worker_exports
from calibdask.engine.sites.slurm import SlurmJob
from calibdask.engine.sites.slurm_checks import Request
from calibdask.errors import ConfigError


@pytest.fixture
def binaries(tmp_path, monkeypatch):
    """Put shell scripts on PATH in the place of SLURM's commands, and nothing else."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def write(**scripts):
        for name, script in scripts.items():
            (place / name).write_text(f"#!/bin/sh\n{script}\n")
            (place / name).chmod(0o755)

    return write


def _healthy(binaries, **others):
    """Make a SLURM with a partition of three nodes, which takes jobs and never starts them."""
    version = '[ "$1" = --version ] && echo "slurm 25.05" && exit 0'
    scripts = {
        "sbatch": f'{version}; [ "$1" = --test-only ] && echo "Job 7 to start at noon" || echo 7',
        "squeue": f'{version}; echo "7|PENDING|Resources|"',
        "scancel": f"{version}; exit 0",
        "scontrol": f'{version}; [ "$1" = ping ] && echo "Slurmctld(primary) at here is UP"\n'
        '[ "$1" = --oneliner ] && echo "PartitionName=main Default=YES State=UP"; exit 0',
        "srun": version,
        "sinfo": 'echo "4|6000|3|idle"',
    }
    binaries(**{**scripts, **others})


def _said(findings, level):
    return [f"{one.what} {one.remedy}" for one in findings if one.level == level]


# -- this machine ---------------------------------------------------------------------------------


def test_a_healthy_machine(tmp_path) -> None:
    findings = list(examine("local", Settings(workdir=tmp_path / "not" / "yet")))
    assert [one.level for one in findings] == ["PASS"] * 5
    assert list(tmp_path.iterdir()) == []
    assert f"numpy {versions()['numpy']}" in findings[0].what


def test_packages_that_are_not_there() -> None:
    finding = doctor.check_packages({"python": "3.12.1", "tables": "absent"})
    assert finding.level == "FAIL"
    assert "has no tables" in finding.what


@pytest.mark.parametrize(
    ("cpus", "gib", "level", "text"),
    [(2, 8, "PASS", "8.0 GiB"), (4, 2.5, "WARN", "--workers 2"), (2, 0.5, "FAIL", "stop other")],
)
def test_memory(cpus, gib, level, text) -> None:
    finding = local.check_machine(cpus, int(gib * 1024**3))
    assert finding.level == level
    assert text in finding.what + finding.remedy


def test_a_directory_that_cannot_be_written() -> None:
    findings = list(examine("local", Settings(workdir=Path("/proc/work"))))
    assert findings[-1].level == "FAIL"
    assert "/proc: cannot be written into" in findings[-1].what


def test_a_file_system_without_permissions_and_exclusive_creation(tmp_path, monkeypatch) -> None:
    real = os.open
    monkeypatch.setattr(
        doctor.os, "open", lambda path, flags, _mode=0: real(path, flags & ~os.O_EXCL, 0o666)
    )
    failed = _said(doctor.check_directory(tmp_path), "FAIL")
    assert len(failed) == 2
    assert "no permissions" in failed[0]
    assert "no lock holds" in failed[1]


def test_a_file_system_whose_rename_does_not_replace(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    (failed,) = _said(doctor.check_directory(tmp_path), "FAIL")
    assert "does not replace" in failed


@pytest.mark.parametrize(("number", "level"), [(errno.EPERM, "WARN"), (errno.EIO, "FAIL")])
def test_a_file_system_without_hard_links(tmp_path, monkeypatch, number, level) -> None:
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(doctor.os, "link", link)
    (finding, *_) = doctor.check_directory(tmp_path)
    assert finding.level == level


def test_a_full_disk(tmp_path, monkeypatch) -> None:
    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    (failed,) = _said(doctor.check_directory(tmp_path), "FAIL")
    assert "No space left" in failed


@pytest.mark.parametrize(
    ("gib", "inodes", "of", "level"),
    [
        (100, 10**6, 10**7, "PASS"),
        (100, 0, 0, "PASS"),  # a file system that counts no inodes
        (1, 10**6, 10**7, "WARN"),
        (100, 1000, 10**7, "WARN"),
        (100, 0, 10**7, "FAIL"),
        (0, 10**6, 10**7, "FAIL"),
    ],
)
def test_space(monkeypatch, tmp_path, gib, inodes, of, level) -> None:
    block = 4096
    status = (block, block, 0, 0, gib * 1024**3 // block, of, 0, inodes, 0, 255)
    monkeypatch.setattr(doctor.os, "statvfs", lambda _: os.statvfs_result(status))
    (finding,) = [one for one in doctor.check_directory(tmp_path) if "GiB free" in one.what]
    assert finding.level == level


# -- SLURM's commands -----------------------------------------------------------------------------


def test_commands_that_are_not_there(binaries, tmp_path) -> None:
    binaries(squeue="echo slurm 25.05", scancel="echo slurm 25.05")
    last = list(examine("slurm", Settings(workdir=tmp_path)))[-1]
    assert last.level == "FAIL"
    assert "not on PATH: sbatch, scontrol, srun" in last.what


def test_a_command_that_does_not_run(binaries) -> None:
    _healthy(binaries, srun="echo no plugins; exit 1")
    finding = slurm_checks.check_commands()
    assert finding.level == "FAIL"
    assert "srun: no plugins" in finding.what


def test_two_versions(binaries) -> None:
    _healthy(binaries)
    assert slurm_checks.check_commands().level == "PASS"
    binaries(srun="echo slurm 19.05")
    finding = slurm_checks.check_commands()
    assert finding.level == "WARN"
    assert "srun: slurm 19.05" in finding.what


def test_a_controller_that_is_down(binaries, tmp_path) -> None:
    version = '[ "$1" = --version ] && echo "slurm 25.05" && exit 0'
    _healthy(binaries, scontrol=f'{version}; echo "Slurmctld(primary) at here is DOWN"')
    last = list(examine("slurm", Settings(workdir=tmp_path)))[-1]
    assert last.level == "FAIL"
    assert "DOWN" in last.what


def test_variables_that_win_over_the_script(monkeypatch) -> None:
    for name in list(os.environ):
        if name.startswith("SBATCH_"):
            monkeypatch.delenv(name)
    assert slurm_checks.check_environment() is None
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    assert "SBATCH_PARTITION=debug" in slurm_checks.check_environment().what


# -- what a job asks for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "partitions", "cpus", "memory", "seconds"),
    [
        (["-p main", "-n 1", "--cpus-per-task=4", "--mem=2G", "-t 01:00:00"],
         ("main",), 4, 2048, 3600),
        (["--partition=a,b", "-c2 -n 3", "--mem-per-cpu 500", "--time=1-0"],
         ("a", "b"), 6, 3000, 86400),
        (["-J name", "-pmain", "-pother", "--mem=0", "--constraint='a&b'"],
         ("other",), 1, None, None),
        (["--mem=1500K"], (), 1, 2, None),
    ],
)  # fmt: skip
def test_reading_a_header(lines, partitions, cpus, memory, seconds) -> None:
    script = "\n".join(
        ["#!/bin/sh", *(f"#SBATCH {line}" for line in lines), "python -m worker -c 9"]
    )
    request = Request.read(script)
    assert (request.partitions, request.cpus) == (partitions, cpus)
    assert (request.memory, request.seconds) == (memory, seconds)


@pytest.mark.parametrize("line", ["-c many", "--comment='no end", "-t soon", "-p"])
def test_a_header_that_cannot_be_read(line) -> None:
    with pytest.raises(ConfigError):
        Request.read(f"#!/bin/sh\n#SBATCH {line}\n")


def _asking(*lines):
    return Request.read("\n".join(f"#SBATCH {line}" for line in lines))


_PARTITIONS = """
echo "PartitionName=main Default=YES State=UP MaxTime=1-00:00:00 MaxMemPerNode=UNLIMITED"
echo "PartitionName=short State=UP MaxTime=00:02:00 MaxCPUsPerNode=2 MaxMemPerNode=1000"
echo "PartitionName=closed State=DRAIN MaxTime=UNLIMITED"
"""


@pytest.mark.parametrize(
    ("lines", "level", "text"),
    [
        (["-c 4", "--mem=4G", "-t 60"], "PASS", "main: 3 usable nodes"),
        (["-p shrot"], "FAIL", "there are main, short, closed"),
        (["-p closed"], "FAIL", "is DRAIN"),
        (["-p short", "-t 3"], "FAIL", "--set Slurm.walltime=00:02:00"),
        (["-p short", "-t 2"], "PASS", "limit 00:02:00"),
        (["-t 2-0"], "FAIL", "asks for 48:00:00"),
        (["-c 5"], "FAIL", "at most 4 processors"),
        (["-p short", "-c 3"], "FAIL", "at most 2 processors"),
        (["--mem=7G"], "FAIL", "at most 6000 MiB"),
        (["-p short", "--mem=2G"], "FAIL", "at most 1000 MiB"),
        (["-p short,main", "-t 60"], "PASS", "short: allows"),
        (["-p short,closed", "-t 60"], "FAIL", "short: allows"),
    ],
)
def test_partitions(binaries, lines, level, text) -> None:
    _healthy(binaries, scontrol=_PARTITIONS)
    finding = slurm_checks.check_partition(_asking(*lines))
    assert finding.level == level
    assert text in f"{finding.what} {finding.remedy}".replace("ask for", "asks for")


@pytest.mark.parametrize(
    ("rows", "level", "text"),
    [
        (["2|8000|1|idle", "4|1000|2|idle"], "FAIL", "no node has 4 processors and 4096 MiB"),
        (["4|8000|1|down*", "4|8000|1|drained"], "WARN", "are down*, drained"),
        (["4|8000|1|idle*", "4|8000|1|mixed"], "PASS", "1 usable nodes"),
        ([], "FAIL", "has no nodes"),
    ],
)
def test_nodes_of_a_partition(binaries, rows, level, text) -> None:
    _healthy(binaries, sinfo="\n".join(f'echo "{row}"' for row in rows))
    finding = slurm_checks.check_partition(_asking("-c 4", "--mem=4G"))
    assert finding.level == level
    assert text in finding.what


def test_no_default_partition(binaries) -> None:
    _healthy(binaries, scontrol='echo "PartitionName=main Default=NO State=UP"')
    finding = slurm_checks.check_partition(_asking("-c 1"))
    assert finding.level == "FAIL"
    assert "--set Slurm.queue=NAME" in finding.remedy


def test_partitions_that_cannot_be_listed(binaries) -> None:
    _healthy(binaries, scontrol="echo access denied >&2; exit 1")
    finding = slurm_checks.check_partition(_asking("-c 1"))
    assert finding.level == "FAIL"
    assert "access denied" in finding.what


def test_a_job_that_sbatch_refuses(binaries) -> None:
    _healthy(binaries, sbatch="echo invalid account >&2; exit 1")
    finding = slurm_checks.check_submission(_asking("-A nobody"))
    assert finding.level == "FAIL"
    assert "invalid account" in finding.what
    assert "-A nobody" in finding.remedy


def test_nothing_is_sent_that_could_not_start(binaries, tmp_path) -> None:
    _healthy(binaries)
    site = cluster_settings("slurm", [], {"Slurm.queue": "shrot"}, tmp_path)
    findings = list(examine("slurm", site))
    assert len(_said(findings, "FAIL")) == 1
    assert "no probe job was sent" in findings[-1].what


# -- the network ----------------------------------------------------------------------------------


class _Address(NamedTuple):
    family: int
    address: str


def test_interfaces(monkeypatch) -> None:
    found = {
        "ib0": [_Address(socket.AF_INET, "10.0.0.7")],
        "eth1": [_Address(socket.AF_INET6, "fe80::1")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    assert node_checks.find_address({"interface": "ib0"})[1] == "10.0.0.7"
    for name, text in (("eth1", "has no IPv4 address"), ("ib1", "there is none")):
        finding, address = node_checks.find_address({"interface": name})
        assert (finding.level, address) == ("FAIL", None)
        assert text in finding.what
        assert "ib0 (10.0.0.7)" in finding.remedy


def test_a_host_that_has_no_address() -> None:
    finding, address = node_checks.find_address({"host": "no-such-host.invalid"})
    assert (finding.level, address) == ("FAIL", None)
    assert node_checks.find_address({"host": "127.0.0.1"})[1] == "127.0.0.1"


def test_the_address_is_that_of_dask() -> None:
    from distributed.utils import get_ip

    assert node_checks.find_address({})[1] == get_ip()


def test_an_address_of_another_machine(binaries, tmp_path) -> None:
    _healthy(binaries)
    site = cluster_settings(
        "slurm", [], {"Slurm.scheduler_options": {"host": "192.0.2.99"}}, tmp_path
    )
    last = list(examine("slurm", site))[-1]
    assert last.level == "FAIL"
    assert "cannot listen on 192.0.2.99" in last.what


# -- a job that does not report -------------------------------------------------------------------


def _examine_impatiently(tmp_path):
    return list(examine("slurm", cluster_settings("slurm", [], {}, tmp_path), patience=0))[-1]


def test_a_queue_that_is_full(binaries, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 0.1)
    _healthy(binaries)
    last = _examine_impatiently(tmp_path)
    assert last.level == "WARN"
    assert "Resources" in last.what
    assert "--patience" in last.remedy


def test_a_job_that_will_never_start(binaries, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 0.1)
    _healthy(
        binaries, squeue='[ "$1" = --version ] && echo "slurm 25.05" || echo "7|PENDING|Licenses|"'
    )
    last = _examine_impatiently(tmp_path)
    assert last.level == "FAIL"
    assert "Licenses" in last.what


def test_a_job_that_ends_without_a_word(binaries, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 0.1)
    _healthy(binaries, squeue='[ "$1" = --version ] && echo "slurm 25.05"; exit 0')
    last = _examine_impatiently(tmp_path)
    assert last.level == "FAIL"
    assert "ended without a report: SLURM job 7" in last.what


def test_a_job_that_is_silent(binaries, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_checks, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 0.1)
    _healthy(
        binaries, squeue='[ "$1" = --version ] && echo "slurm 25.05" || echo "7|RUNNING|None|n1"'
    )
    last = _examine_impatiently(tmp_path)
    assert last.level == "FAIL"
    assert "on n1 has run" in last.what


def test_a_job_that_is_refused_at_last(binaries, tmp_path) -> None:
    refuse = '[ "$1" = --parsable ] && echo too many jobs >&2 && exit 1'
    _healthy(binaries, sbatch=f'{refuse}; echo "slurm 25.05"')
    last = _examine_impatiently(tmp_path)
    assert last.level == "FAIL"
    assert "too many jobs" in last.what


# -- what the probe sees --------------------------------------------------------------------------


@pytest.fixture
def post(tmp_path):
    directory = tmp_path / "shared"
    directory.mkdir()
    one = node_checks.Post("127.0.0.1", directory)
    yield one
    one.close()


def _probe(post, *, header=(), **environment):
    """Run the probe as a job would, in a shell, with one in the place of a worker."""
    worker = f"#!/bin/sh\n#SBATCH -n 1\n{sys.executable} -m distributed.cli.dask_worker tls://"
    script = node_checks.probe_script(worker, post.task(header))
    task = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        ["/bin/sh"], input=script, env={**task, **threads, **environment},
        capture_output=True, text=True, check=False, timeout=500,
        cwd="/",  # or a calibdask in the present directory would win over PYTHONPATH
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = post.answers().values()
    return report


def _assess(report):
    return list(node_checks.assess(report, "node n0", ("127.0.0.1", 1), may_submit=True))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What a probe reports from a good node."""
    directory = tmp_path_factory.mktemp("good")
    (directory / "sbatch").write_text("#!/bin/sh\nexit 0\n")
    (directory / "sbatch").chmod(0o755)
    post = node_checks.Post("127.0.0.1", directory)
    try:
        return _probe(post, PATH=f"{directory}:{os.environ['PATH']}")
    finally:
        post.close()


def test_a_good_node(good) -> None:
    findings = _assess(good)
    assert {one.level for one in findings} == {"PASS"}, findings
    assert len(findings) == 8


@pytest.mark.parametrize(
    ("part", "value", "level", "text"),
    [
        ("python", "3.11.2", "FAIL", "python 3.11.2 (here 3.12"),
        ("versions", {"numpy": "1.26.4"}, "FAIL", "numpy 1.26.4 (here"),
        ("imported", {"error": "No module named 'calibdask'"}, "FAIL", "No module named"),
        ("imported", {"seconds": 1, "code": "0+bad", "path": "/old"}, "FAIL", "calibdask 0+bad"),
        ("by_file", False, "FAIL", "is not seen here"),
        ("same_token", False, "FAIL", "work directory is not the same"),
        ("back", "10.0.0.9: timed out", "FAIL", "cannot be reached from here: 10.0.0.9"),
        ("skew", -STALE_SECONDS, "FAIL", "would look stale"),
        ("skew", 8.0, "WARN", "NTP"),
        ("threads", {"OMP_NUM_THREADS": "8"}, "FAIL", "OMP_NUM_THREADS=8"),
        ("threads", {"OMP_NUM_THREADS": None}, "FAIL", "OMP_NUM_THREADS=None"),
        ("scratch", {"path": "/tmp", "kind": "nfs4", "free": 10**12}, "WARN", "not on the node"),
        ("scratch", {"path": "/tmp", "kind": "ext4", "free": 10**6}, "WARN", "0.0 GiB"),
        ("scratch", {"path": "/s", "error": "Permission denied"}, "FAIL", "Slurm.local_directory"),
        ("sbatch", {"error": "Access denied"}, "WARN", "--cluster allocation"),
    ],
)  # fmt: skip
def test_what_a_bad_node_says(good, part, value, level, text) -> None:
    findings = _assess({**good, part: value})
    (said,) = [one for one in findings if one.level != "PASS"]
    assert said.level == level
    assert text in f"{said.what} {said.remedy}"


def test_a_slow_import(good) -> None:
    report = {**good, "imported": {**good["imported"], "seconds": 45.0}}
    (said,) = _said(_assess(report), "WARN")
    assert "imported in 45.0 s: slow" in said


def test_a_node_that_cannot_reach_the_scheduler(post) -> None:
    post.close()
    report = _probe(post)
    failed = _said(_assess(report), "FAIL")
    assert len(failed) == 1
    assert "cannot reach 127.0.0.1" in failed[0]
    assert "refused" in failed[0]


def test_another_calibdask(post, tmp_path) -> None:
    other = tmp_path / "other" / "calibdask"
    (other / "engine").mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.0.7'\n")
    (other / "engine" / "__init__.py").write_text("")
    (other / "engine" / "tasks.py").write_text("")
    (failed,) = _said(_assess(_probe(post, PYTHONPATH=str(other.parent))), "FAIL")
    assert "is calibdask 0.0.7, here it is" in failed
    assert "PYTHONPATH" in failed


def test_a_calibdask_that_does_not_import(post, tmp_path) -> None:
    other = tmp_path / "calibdask"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemError('half installed')\n")
    (failed,) = _said(_assess(_probe(post, PYTHONPATH=str(tmp_path))), "FAIL")
    assert "SystemError: half installed" in failed


def test_a_directory_that_is_not_shared(post, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(post, "directory", tmp_path)
    (tmp_path / "token").write_text("somebody else's")
    report = _probe(post)
    monkeypatch.setattr(post, "directory", tmp_path / "shared")
    report = next(iter(post.answers().values()))
    (failed,) = _said(_assess(report), "FAIL")
    assert "other contents" in failed


def test_jobs_cannot_be_submitted_from_the_node(post, tmp_path) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    report = _probe(post, PATH=f"{tmp_path}:{os.environ['PATH']}")
    (warned,) = _said(_assess(report), "WARN")
    assert "Access denied" in warned


def test_who_does_not_know_the_token_is_not_listened_to(post, good) -> None:
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "guess"}\n', b"[]\n", b"{}\n"):
        with socket.create_connection(post.address, timeout=60) as stranger:
            stranger.sendall(sent)
            assert stranger.recv(1) == b""
    assert post.answers() == {}
    _probe(post)
    assert post.complete(1)


def test_nobody_else_can_read_the_token(post, tmp_path) -> None:
    assert stat.S_IMODE((tmp_path / "shared" / "token").stat().st_mode) == 0o600


def test_the_node_cannot_be_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in node_checks._knock("127.0.0.1", port)


def test_the_place_of_temporary_files(post, tmp_path) -> None:
    report = _probe(post)
    assert report["scratch"]["free"] > 0
    assert report["scratch"]["kind"] not in ("", "unknown")
    job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue={"local_directory": "$TMPDIR/x y"}))
    script = job.script("tls://x", "w", prologue=worker_exports(job, tmp_path))
    assert '-m calibdask.access "$TMPDIR/x y") || exit 1' in node_checks.probe_script(script, "{}")


def test_a_script_that_starts_no_module() -> None:
    with pytest.raises(ConfigError, match="starts no module: dask-worker"):
        node_checks.probe_script("#!/bin/sh\ndask-worker tcp://", "{}")


# -- an allocation --------------------------------------------------------------------------------


def test_outside_of_a_job(monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ConfigError, match="inside of a SLURM job"):
        next(examine("allocation", Settings()))


def test_a_node_of_the_allocation_that_does_not_start_python(
    binaries, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[0-1]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "1(x2)")
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 0.1)
    version = '[ "$1" = --version ] && echo "slurm 25.05" && exit 0'
    hosts = f'{version}; [ "$1" = show ] && echo n0 && echo n1 || echo "is UP"'
    srun = f"{version}; echo n0: no shell >&2; exit 1"
    _healthy(binaries, scontrol=hosts, srun=srun)
    failed = _said(examine("allocation", Settings(workdir=tmp_path)), "FAIL")
    assert ["node n0" in failed[0], "node n1" in failed[1]] == [True, True]
    assert "no shell" in failed[0]


# -- as a command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, binaries) -> None:
    call = CliRunner().invoke
    fine = call(cli.app, ["doctor", "--workdir", str(tmp_path)])
    assert fine.exit_code == 0
    assert fine.output.splitlines()[-1] == "5 PASS, 0 WARN, 0 FAIL"
    bad = call(cli.app, ["doctor", "--cluster", "slurm", "--workdir", str(tmp_path)])
    assert bad.exit_code == 1
    assert "FAIL  not on PATH: sbatch" in bad.output
    assert "      -> " in bad.output


def test_options_come_from_a_jobs_configuration(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "CalculateInterCalibration: {n_min: 5}\n"
        "Campaign: {worker_memory: 2 GiB}\nSlurm: {queue: main, cores: 2}\n"
    )
    site = cluster_settings("slurm", [path], {"Slurm.queue": "short"}, None)
    assert site.jobqueue == {"queue": "short", "cores": 2}
    assert site.worker_memory == 2 * 1024**3


@pytest.mark.parametrize("text", ["Slurm: 3", "Campaign: {worker_memory: much}"])
def test_options_that_are_wrong(tmp_path, text) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        cluster_settings("slurm", [path], {}, None)


def test_an_option_that_dask_jobqueue_does_not_know(binaries, tmp_path) -> None:
    _healthy(binaries)
    with pytest.raises(ConfigError, match=r"Slurm\.quue.*did you mean 'queue'"):
        list(examine("slurm", cluster_settings("slurm", [], {"Slurm.quue": "main"}, tmp_path)))


def test_the_probe_is_of_the_standard_library() -> None:
    code = (
        f"import sys; sys.argv = ['']; exec(open({probe.__file__!r}).read(), {{'__name__': 'x'}})"
    )
    begin = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
    assert time.monotonic() - begin < 20


# -- the example for a site ------------------------------------------------------------------------


def test_the_example_of_a_site_is_understood(tmp_path) -> None:
    text = (Path(__file__).parents[2] / "slurm" / "jobqueue.yaml").read_text()
    options = yaml.safe_load(text)["jobqueue"]["slurm"]
    job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue=options))
    script = job.script("tls://scheduler", "worker")
    request = Request.read(script)
    assert (request.partitions, request.cpus) == (("standard",), 8)
    assert (request.memory, request.seconds) == (32 * 1024, 7200)
    assert "#SBATCH -A my-project" in request.header
    assert "#SBATCH --qos=normal" in request.header
    assert "source /shared/my-project/venv/bin/activate" in script
    assert job.local_directory == "$TMPDIR"
    assert "--local-directory" not in script
    assert job.scheduler_options == {}  # the interface is for the user to name
