"""Batch scripts: what they ask for, and what they do when SLURM sends a signal."""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibdask.engine.sites.batch import BatchJob
from calibdask.errors import ConfigError

PROGRAM = Path(sys.executable).with_name("calibdask")
ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def _directives(script):
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [line.removeprefix("#SBATCH ") for line in lines]


@pytest.mark.parametrize("requeue", [False, True])
@pytest.mark.parametrize("setup", [[], ["module load hdf5", "export A=1"]])
def test_the_script_is_good_shell(tmp_path, requeue, setup):
    words = ["calibdask", "inter-calibration", "-i", "a b.h5", "c;d", "-o", "it's.h5"]
    script = BatchJob(words, 2, 8, "02:00:00", "4G", requeue, ["--account=cta"], setup).script()
    path = tmp_path / "campaign.sbatch"
    path.write_text(script)
    checked = subprocess.run([SHELLCHECK, path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert shlex.join(words[3:5]) in script
    assert all(line in script for line in setup)
    directives = _directives(script)
    assert "--account=cta" in directives
    assert ("--requeue" if requeue else "--no-requeue") in directives
    assert "--signal=B:USR1@120" in directives
    assert ("scontrol requeue" in script) is requeue


@pytest.mark.parametrize(("time_limit", "lead"), [("1", 30), ("2", 60), ("infinite", 120)])
def test_half_the_time_is_for_work(time_limit, lead):
    script = BatchJob(["calibdask", "job"], 1, 1, time_limit).script()
    assert f"--signal=B:USR1@{lead}" in _directives(script)


def test_a_limit_that_slurm_does_not_know():
    with pytest.raises(ConfigError, match="one is the least"):
        BatchJob(["calibdask", "job"], 1, 1, "00:30").script()


@pytest.mark.parametrize(
    ("sent", "requeue", "comes_back"),
    [("USR1", True, True), ("USR1", False, False), ("TERM", True, False)],
)
def test_a_signal_stops_the_run_and_only_the_time_limit_brings_it_back(
    tmp_path, sent, requeue, comes_back
):
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\ntrap 'echo stopped; exit 143' TERM\ntouch {tmp_path}/began\n"
        "while :; do sleep 0.05; done\n"
    )
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    for path in (program, scontrol):
        path.chmod(0o755)
    script = tmp_path / "campaign.sbatch"
    script.write_text(BatchJob([str(program), "job"], 1, 1, "10", requeue=requeue).script())
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    run = subprocess.Popen(["bash", script], env=environment, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 400
    while not (tmp_path / "began").exists() and time.monotonic() < end:
        time.sleep(0.02)
    run.send_signal(getattr(signal, f"SIG{sent}"))
    output, _ = run.communicate(timeout=400)
    assert output == "stopped\n"
    assert run.returncode == 143
    assert (tmp_path / "requeued").exists() is comes_back
    if comes_back:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_signal_before_there_is_a_run_stops_it_as_soon_as_it_begins(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntrap 'exit 143' TERM\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    script = BatchJob([str(program), "job"], 1, 1, "10", setup=["kill -TERM $$"]).script()
    assert subprocess.run(["bash", "-c", script], check=False).returncode == 143


@pytest.mark.parametrize("code", [0, 2, 104])
def test_the_code_of_the_run_is_the_code_of_the_job(tmp_path, code):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    script = BatchJob([str(program), "job"], 1, 1, "10", requeue=True).script()
    assert subprocess.run(["bash", "-c", script], check=False).returncode == code


def _ask(*words):
    return subprocess.run(
        [PROGRAM, "sbatch-script", *words], capture_output=True, text=True, check=False
    )


def test_the_command():
    done = _ask(
        "inter-calibration", "-i", "a.h5", "b.h5", "-o", "out.h5", "--set", "Campaign.retries=3",
        "--nodes", "3", "--workers-per-node", "2", "--time", "1-00", "--sbatch=--partition=long",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--nodes=3" in _directives(done.stdout)
    assert "--partition=long" in _directives(done.stdout)
    command = done.stdout.partition("calibdask inter-calibration \\\n")[2].partition(" &")[0]
    words = shlex.split(command.replace("\\\n", ""))
    assert words == [
        "-i", "a.h5", "-i", "b.h5", "-o", "out.h5", "--set", "Campaign.retries=3",
        "--cluster", "allocation",
    ]  # fmt: skip


def test_a_head_job_keeps_its_cluster():
    words = ("inter-calibration", "-i", "a", "-o", "b", "--cluster", "slurm", "--time", "10")
    assert _ask(*words).stdout.count("--cluster") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("inter-calibraton", "--time", "1"), "did you mean 'inter-calibration'"),
        (("inter-calibration", "-i", "a", "--time", "1"), "name the output with -o"),
        (("inter-calibration", "-o", "a", "--tiem", "1", "--time", "5"), "--tiem"),
        (("inter-calibration", "-o", "a"), "--time"),
        (("inter-calibration", "-o", "a", "--workers", "x", "--time", "5"), "MIN:MAX"),
    ],
)
def test_mistakes_are_found_before_the_job_waits_in_a_queue(words, complaint):
    done = _ask(*words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_examples_are_what_is_written_today():
    made = runpy.run_path(str(ROOT / "tests" / "slurm" / "make_examples.py"))["examples"]()
    assert sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch")) == sorted(made)
    for name, text in made.items():
        assert (ROOT / "slurm" / name).read_text(encoding="utf-8") == text
