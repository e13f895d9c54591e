"""Talking to SLURM, with programs of its names that say what a test wants."""

from __future__ import annotations

import os

import pytest

from calibdask.engine.sites import queue
from calibdask.engine.sites import slurm_commands as slurm
from calibdask.errors import CalibdaskError, ConfigError, TransientError

SCRIPT = "#!/bin/sh\n#SBATCH -p nowhere\n#SBATCH --mem=4G\nsleep 1\n"


@pytest.fixture
def say(tmp_path, monkeypatch):
    """Make a program of SLURM that prints something and ends with a code."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def make(name, output="", *, error="", code=0):
        path = programs / name
        path.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.called\ncat > {tmp_path}/{name}.read\n'
            f"cat <<'EOT'\n{output}\nEOT\n[ -z '{error}' ] || echo '{error}' >&2\nexit {code}\n"
        )
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300), ("02:30", 150), ("01:00:00", 3600), ("1-12", 129600), ("1-12:30", 131400),
        ("2-00:00:30", 172830), ("infinite", None), ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_time_limits(text, seconds):
    assert slurm.parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["", "an hour", "1h", "1:2:3:4", "-5"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ConfigError, match="none of SLURM's: write for instance 01:30:00"):
        slurm.parse_walltime(text)


def test_submitting(say, tmp_path):
    say("sbatch", "4711;cluster")
    assert slurm.submit(SCRIPT) == "4711"
    assert (tmp_path / "sbatch.read").read_text() == SCRIPT


def test_a_refusal_says_what_was_asked_for(say):
    say("sbatch", error="sbatch: error: invalid partition specified: nowhere", code=1)
    with pytest.raises(ConfigError, match=r"(?s)invalid partition.*-p nowhere --mem=4G.*doctor"):
        slurm.submit(SCRIPT)


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
    ],
)
def test_what_may_pass_may_be_tried_again(say, error):
    say("sbatch", error=error, code=1)
    with pytest.raises(TransientError, match="sbatch failed"):
        slurm.submit(SCRIPT)


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch here: run on a login node"):
        slurm.submit(SCRIPT)


def test_an_answer_that_never_comes(say, monkeypatch, tmp_path):
    say("squeue")
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(queue, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(TransientError, match="squeue gave no answer"):
        slurm.alive(["1"])


def test_which_jobs_wait_or_run(say, tmp_path):
    say(
        "squeue",
        "1|PENDING|Priority|\n2|RUNNING|None|n1\n3|RUNNING|None|n2\n4|COMPLETING|None|n3\n"
        "5|CANCELLED|None|n3",
    )
    found = slurm.alive(["1", "2", "4", "5", "99"])
    assert found == {
        "1": queue.QueuedJob("PENDING", "Priority", ""),
        "2": queue.QueuedJob("RUNNING", "None", "n1"),
        "4": queue.QueuedJob("COMPLETING", "None", "n3"),
    }
    assert [found[job].started for job in ("1", "2")] == [False, True]
    # Never by number: SLURM refuses to answer as soon as it has forgotten one of them.
    assert f"--user={os.getuid()}" in (tmp_path / "squeue.called").read_text()


def test_cancelling(say, tmp_path):
    say("scancel")
    slurm.cancel(["12", "7"])
    slurm.cancel([])
    assert (tmp_path / "scancel.called").read_text() == "--quiet 12 7\n"


def _describe(say, log, **facts):
    known = {
        "JobId": "7", "JobState": "FAILED", "Reason": "NonZeroExitCode", "ExitCode": "127:0",
        "BatchHost": "n1", "StdErr": log, "StdOut": log, **facts,
    }  # fmt: skip
    say("scontrol", " ".join(f"{name}={value}" for name, value in known.items()))


def test_how_a_job_ended(say, tmp_path):
    log = tmp_path / "worker-7.err"
    log.write_text("".join(f"line {number}\n\n" for number in range(30)))
    _describe(say, tmp_path / "worker-%J.err")
    text = slurm.explain_end("7")
    assert text.startswith(
        f"SLURM job 7 on n1: FAILED (NonZeroExitCode), exit code 127:0; {log} ends with\n"
    )
    assert text.endswith("line 28\n    line 29")
    assert text.count("\n") == 12


def test_a_log_in_a_directory_with_a_space(say, tmp_path):
    (tmp_path / "a b").mkdir()
    log = tmp_path / "a b" / "worker-7.err"
    log.write_text("it is said here\n")
    _describe(say, tmp_path / "a b" / "worker-%J.err")
    assert slurm.explain_end("7").endswith(f"; {log} ends with\n    it is said here")


def test_a_job_without_a_log(say, tmp_path):
    _describe(say, tmp_path / "absent")
    assert f"nothing in its log ({tmp_path / 'absent'})" in slurm.explain_end("7")


def test_a_job_that_slurm_has_forgotten(say):
    say("scontrol", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert slurm.explain_end("7") == "SLURM job 7: no longer known to SLURM; it left no log"


def test_a_queue_that_cannot_be_read(say):
    say("squeue", error="squeue: error: nonsense", code=1)
    with pytest.raises(CalibdaskError, match="squeue failed: squeue: error: nonsense"):
        slurm.alive(["1"])


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("2(x3)", [("n0", 2), ("n1", 2), ("n2", 2)]),
        ("4,1(x2)", [("n0", 4), ("n1", 1), ("n2", 1)]),
        ("3", [("n0", 3), ("n1", 3), ("n2", 3)]),
    ],
)
def test_the_nodes_of_an_allocation(say, monkeypatch, tasks, expected):
    say("scontrol", "n0\nn1\nn2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[0-2]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", tasks)
    assert slurm.hosts_of_allocation() == expected


def test_there_is_no_allocation_here(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(
        ConfigError, match=r"inside of a SLURM job, and this is none.*sbatch-script"
    ):
        slurm.hosts_of_allocation()
