"""The doctor on a real SLURM: a good site, and sites that are wrong in one way each."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from calibdask.engine.doctor import cluster_settings, examine
from calibdask.engine.provenance import code_digest
from calibdask.engine.sites import node_checks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    # A job starts Python where it was submitted, and a calibdask there would win over PYTHONPATH.
    monkeypatch.chdir(tmp_path)


def _examine(tmp_path, *settings: tuple[str, object], patience: float = 120):
    code_digest.cache_clear()  # somebody may edit the sources while tests run
    overrides = {"Slurm.memory": "500 MiB", **dict(settings)}
    site = cluster_settings("slurm", [], overrides, tmp_path)
    return list(examine("slurm", site, patience=patience))


def _not_passed(findings):
    return [one for one in findings if one.level != "PASS"]


def _only_failure(findings) -> str:
    (failed,) = [one for one in findings if one.level == "FAIL"]
    return f"{failed.what} {failed.remedy}"


def _wrapper(tmp_path, body: str) -> Path:
    """Make what stands in the place of Python in the worker jobs."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{body}\n"
                    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n")  # fmt: skip
    path.chmod(0o755)
    return path


def test_all_is_well(slurm, tmp_path) -> None:
    findings = _examine(tmp_path)
    assert not _not_passed(findings)
    said = "\n".join(map(str, findings))
    assert "partition main: 3 usable nodes" in said
    assert "on n" in said
    assert "packages have the versions of this process" in said
    assert "shared, both ways" in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_in_a_process(slurm, tmp_path) -> None:
    command = [sys.executable, "-m", "calibdask.cli", "doctor", "--cluster", "slurm", "--workdir"]
    done = subprocess.run(
        [*command, str(tmp_path), "--set", "Slurm.memory=500MiB", "--set", "Slurm.queue=short",
         "--set", "Slurm.walltime=2"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("0 WARN, 0 FAIL")


def test_a_partition_that_does_not_exist(slurm, tmp_path) -> None:
    findings = _examine(tmp_path, ("Slurm.queue", "no-such"))
    failed = [one for one in findings if one.level == "FAIL"]
    assert len(failed) == 2
    assert "no-such" in failed[0].what
    assert "main, short, urgent" in failed[0].remedy
    assert "sbatch would refuse" in failed[1].what


def test_a_walltime_over_the_limit_which_sbatch_does_not_mind(slurm, tmp_path) -> None:
    findings = _examine(tmp_path, ("Slurm.queue", "short"), ("Slurm.walltime", "00:10:00"))
    assert "--set Slurm.walltime=00:02:00" in _only_failure(findings)
    assert any("sbatch takes a worker job" in one.what for one in findings)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("memory", "900 GiB", "at most 6000 MiB"), ("cores", 64, "at most 4 processors")],
)
def test_more_than_a_node_has(slurm, tmp_path, option, value, text) -> None:
    findings = _examine(tmp_path, (f"Slurm.{option}", value))
    failed = [one for one in findings if one.level == "FAIL"]
    assert text in failed[0].what
    assert "sbatch would refuse" in failed[1].what


def test_an_interface_that_does_not_exist(slurm, tmp_path) -> None:
    findings = _examine(tmp_path, ("Slurm.interface", "ib7"))
    assert "interface ib7: there is none" in _only_failure(findings)


def test_a_python_that_does_not_exist(slurm, tmp_path) -> None:
    findings = _examine(tmp_path, ("Slurm.python", "/no/such/python"))
    failure = _only_failure(findings)
    assert "ended without a report: SLURM job" in failure
    assert "/no/such/python: No such file" in failure


def test_a_directory_that_is_another_one_on_the_node(slurm, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_checks, "LATE_SECONDS", 2.0)
    other = tmp_path / "other"
    other.mkdir()
    (other / "token").write_text("left there by another program")
    python = _wrapper(
        tmp_path,
        "task = json.loads(os.environ['CALIBDASK_PROBE'])\n"
        f"task['directory'] = {str(other)!r}\n"
        "os.environ['CALIBDASK_PROBE'] = json.dumps(task)",
    )
    failure = _only_failure(_examine(tmp_path, ("Slurm.python", str(python))))
    assert "work directory is not the same there" in failure
    assert "other contents" in failure


def test_another_version_on_the_node(slurm, tmp_path) -> None:
    other = tmp_path / "other"
    package = other / "calibdask"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.0.7'\n")
    for name in ("__init__", "tasks"):
        (package / "engine" / f"{name}.py").write_text("")
    prologue = [f"export PYTHONPATH={other}"]
    failure = _only_failure(_examine(tmp_path, ("Slurm.job_script_prologue", prologue)))
    assert f"{package}/__init__.py is calibdask 0.0.7" in failure


def test_a_node_that_cannot_reach_this_process(slurm, tmp_path) -> None:
    python = _wrapper(
        tmp_path,
        "task = json.loads(os.environ['CALIBDASK_PROBE'])\n"
        "task['address'] = ['127.0.0.1', 9]\n"
        "os.environ['CALIBDASK_PROBE'] = json.dumps(task)",
    )
    failure = _only_failure(_examine(tmp_path, ("Slurm.python", str(python))))
    assert "cannot reach" in failure
    assert "--cluster allocation" in failure


def test_a_job_that_waits(slurm, tmp_path) -> None:
    begin = ["--begin=now+1hour"]
    findings = _examine(tmp_path, ("Slurm.job_extra_directives", begin), patience=2)
    (warned,) = _not_passed(findings)
    assert warned.level == "WARN"
    assert "BeginTime" in warned.what


def test_inside_an_allocation(slurm, tmp_path) -> None:
    output = tmp_path / "output"
    command = f"{sys.executable} -m calibdask.cli doctor --cluster allocation --workdir {tmp_path}"
    options = ["--nodes=2", "--time=5", "--mem-per-cpu=400", f"--output={output}"]
    job = slurm.run("sbatch", "--parsable", *options, "--wrap", command).strip()
    slurm.wait(lambda: job not in slurm.jobs(), 90)
    said = output.read_text()
    assert "JobState=COMPLETED" in slurm.run("scontrol", "show", "job", job), said
    assert said.count("shared, both ways") == 2
    assert said.splitlines()[-1].endswith("0 WARN, 0 FAIL")
