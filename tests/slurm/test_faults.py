"""What can go wrong on a cluster, done to a real one: the fault table of the README.

The campaign is twelve shards of one second on two worker jobs. ``make faults`` runs everything here
and prints the table; the other tests take the quick half.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaign
import faults
import psutil
import pytest
from campaign import SECONDS, SHARDS, Campaign, kill, nanny_and_worker, node_of, processes_of_job

pytestmark = pytest.mark.cluster

THOROUGH = bool(os.environ.get("CALIBDASK_FAULTS_TABLE"))
thorough = pytest.mark.skipif(not THOROUGH, reason="only for the table: make faults")


@pytest.fixture(scope="session")
def undisturbed(slurm, tmp_path_factory):
    """The run that nothing happens to."""
    ended = Campaign(tmp_path_factory.mktemp("undisturbed")).run()
    assert ended.code == 0, ended.complaints
    return ended


@pytest.fixture
def report(undisturbed, request):
    """Write a line of the table."""

    def write(fault, outcome, begun=None, seconds=None, each=SECONDS):
        ideal = undisturbed.seconds + SHARDS * (each - SECONDS) / 2
        path = os.environ.get("CALIBDASK_FAULTS_TABLE")
        if path:
            line = {
                "fault": fault,
                "outcome": outcome,
                "again": None if begun is None else begun - SHARDS,
                "lost": None if seconds is None else max(seconds - ideal, 0),
            }
            with Path(path).open("a") as file:
                print(json.dumps(line), file=file)

    return write


@pytest.fixture
def check(undisturbed, report):
    """The run ended with the same digest, and little was done twice."""

    def judge(fault, one, ended, *, again, each=SECONDS):
        assert ended.code == 0, ended.complaints
        assert ended.digest == undisturbed.digest
        calls = faults.calls(one.journal)
        assert len([name for name in calls if name.endswith(".npy")]) == SHARDS
        assert one.begun() - SHARDS <= again, dict(calls)
        report(fault, "same digest", one.begun(), ended.seconds, each)

    return judge


# -- workers ------------------------------------------------------------------------------------


def test_a_worker_job_is_cancelled(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    lost = one.worker_jobs()[0]
    slurm.run("scancel", lost)
    ended = one.finish(process)
    check("worker job cancelled (scancel)", one, ended, again=1)
    gone = [line["text"] for line in ended.events("Message") if "replaced" in line["text"]]
    assert any(lost in text and "CANCELLED" in text for text in gone), ended.complaints


def test_a_worker_is_killed(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    jobs = one.worker_jobs()
    kill(nanny_and_worker(jobs[0])[1])
    time.sleep(4)
    # Its nanny starts another: the healthy job is left alone, however long that takes (B6).
    assert one.worker_jobs() == jobs
    check("worker process killed (kill -9)", one, one.finish(process), again=2)


def test_a_nanny_is_killed(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    kill(nanny_and_worker(one.worker_jobs()[0])[0])
    check("nanny killed (kill -9)", one, one.finish(process), again=1)


@contextlib.contextmanager
def _node_gone(slurm, node, *, frozen):
    """Take a node away with all that runs on it, and bring it back."""
    jobs = [job for job in slurm.jobs() if node_of(slurm, job) == node]
    victims = [one for job in jobs for one in processes_of_job(job)]
    daemons = 0
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        is_daemon = Path(words[0]).name == "slurmd" and node in words
        steps = [f"[{job}." in " ".join(words) for job in jobs if "slurmstepd" in words[0]]
        if is_daemon or any(steps):
            victims.append(process)
            daemons += is_daemon
    assert daemons == 1
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
    try:
        yield
    finally:
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        start = Path(__file__).parents[2] / "slurm" / "one-machine" / "start.sh"
        subprocess.run([start], check=True, stdout=subprocess.DEVNULL)


@thorough
@pytest.mark.parametrize("frozen", [False, True], ids=["down", "frozen"])
def test_a_node_is_lost(slurm, tmp_path, check, frozen):
    # Dask takes five minutes to give up a silent worker: less here.
    one = Campaign(tmp_path, environment={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s"})
    process = one.start()
    one.wait_for(5)
    node = node_of(slurm, one.worker_jobs()[0])
    with _node_gone(slurm, node, frozen=frozen):
        ended = one.finish(process)
    check("node frozen (SIGSTOP)" if frozen else "node down", one, ended, again=4)


@thorough
def test_worker_jobs_reach_their_time_limit(slurm, tmp_path, check):
    script = {"*": ["sleep 8!"]}  # 48 s of work for jobs that end after 30 s
    one = Campaign(tmp_path, script=script, settings=("Slurm.walltime=00:01:00",))
    ended = one.run()
    check("walltime of worker jobs", one, ended, again=4, each=8)


@thorough
def test_worker_jobs_are_preempted(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    whole = ["--partition=urgent", "--exclusive", "--nodes=3", "--time=1"]
    urgent = slurm.run("sbatch", "--parsable", *whole, "--wrap", "sleep 5").strip()
    ended = one.finish(process)
    assert urgent not in slurm.jobs()
    check("worker jobs preempted", one, ended, again=2)


def test_a_shard_that_kills_its_worker_is_named_and_the_rest_is_done(slurm, tmp_path, report):
    script = {"003.npy": ["kill!"], "*": ["sleep 0.3!"]}
    one = Campaign(tmp_path, script=script)
    ended = one.run()
    assert ended.code == 1
    assert "003.npy" in ended.complaints
    assert "killed its worker" in ended.complaints
    assert "SLURM job" in ended.complaints
    assert "the other 11 are stored" in ended.complaints
    calls = faults.calls(one.journal)
    report("a shard kills its worker every time", "named, the other 11 stored", one.begun())
    assert all(calls[f"{number:03d}.npy"] >= 1 for number in range(SHARDS))
    one.script["003.npy"] = ["ok"]
    one.script = {"*": ["ok!"]}
    assert one.run().code == 0
    assert faults.calls(one.journal)["004.npy"] == calls["004.npy"]  # nothing again


def test_a_shard_over_its_memory(slurm, tmp_path, report):
    script = {"003.npy": ["eat 2e9!"], "*": ["sleep 0.3!"]}
    one = Campaign(tmp_path, script=script)
    ended = one.run()
    assert ended.code == 1
    assert "003.npy" in ended.complaints
    assert "out of memory" in ended.complaints
    assert "the other 11 are stored" in ended.complaints
    report("a shard over its worker's memory", "named, the other 11 stored", one.begun())


def test_worker_jobs_that_cannot_start(slurm, tmp_path, report):
    one = Campaign(tmp_path, settings=("Slurm.python=/no/such/python",))
    ended = one.run()
    assert ended.code == 2
    assert "3 worker jobs in a row ended before they could work" in ended.complaints
    assert "/no/such/python" in ended.complaints  # the end of the job's log
    assert " on n" in ended.complaints
    report("worker jobs that cannot start", "exit code 2, with the end of their log")


def test_a_partition_that_does_not_exist(slurm, tmp_path, report):
    one = Campaign(tmp_path, settings=("Slurm.queue=nowhere",))
    ended = one.run()
    assert ended.code == 2
    assert "invalid partition" in ended.complaints
    assert "Traceback" not in ended.complaints
    assert ended.seconds < 30
    report("sbatch refuses the worker jobs", "exit code 2, with what was asked for")


# -- the run itself -------------------------------------------------------------------------------


def test_the_scheduler_is_killed_and_the_run_repeated(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    kill(psutil.Process(process.pid))
    process.communicate(timeout=30)
    first = time.monotonic() - one.began
    # Workers without a scheduler end by themselves.
    slurm.wait(lambda: not slurm.jobs(), 60)
    ended = one.run()
    ended.seconds += first
    taken = [line["text"] for line in ended.events("Message")]
    assert any("from a dead run" in text for text in taken)
    check("scheduler killed (kill -9), same command again", one, ended, again=2)


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=thorough)], ids=["once", "twice"])
def test_ctrl_c(slurm, tmp_path, check, times):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(5)
    began = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    ended = one.finish(process)
    stopping = time.monotonic() - began
    assert ended.code == 130, ended.complaints
    assert "carry on" in ended.complaints
    assert "Traceback" not in ended.complaints
    assert stopping < 15
    slurm.wait(lambda: not slurm.jobs(), 30)
    assert not (one.workdir / "session").exists()
    before = ended.seconds
    ended = one.run()
    ended.seconds += before
    check(f"Ctrl-C {'once' if times == 1 else 'twice'}, same command again", one, ended, again=2)


def test_two_runs_on_one_work_directory(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(3)
    second = one.start()
    refused = one.finish(second)
    assert refused.code == 2
    assert "in use by another run" in refused.complaints
    assert (one.workdir / "session" / "key.pem").exists()  # the first one's, untouched
    check("a second run on the same work directory", one, one.finish(process), again=0)


@thorough
def test_a_stored_result_is_broken(slurm, tmp_path, check):
    one = Campaign(tmp_path)
    process = one.start()
    one.wait_for(6)
    os.killpg(process.pid, signal.SIGTERM)
    stopped = one.finish(process)
    assert stopped.code == 143
    stored = sorted((one.workdir / "store").glob("*/*.pack"))
    content = bytearray(stored[0].read_bytes())
    content[len(content) // 2] ^= 0xFF
    stored[0].write_bytes(content)
    stored[1].write_bytes(content[:50])
    ended = one.run()
    ended.seconds += stopped.seconds
    assert "computed again" in ended.complaints
    check("two stored results are broken", one, ended, again=4)


@thorough
@pytest.mark.parametrize("fault", ["disk full", "read-only store"])
def test_the_store_cannot_be_written(slurm, tmp_path, report, check, fault):
    number = 28 if fault == "disk full" else 30  # ENOSPC, EROFS
    one = Campaign(tmp_path, environment={"CALIBDASK_TEST_STORE_ERRNO": f"{number}:4"})
    ended = one.run()
    assert ended.code == 1, ended.complaints
    assert os.strerror(number) in ended.complaints
    assert "free some space or choose another place" in ended.complaints
    assert not one.output.exists()
    before = ended.seconds
    one.environment = {}
    ended = one.run()
    ended.seconds += before
    # The run ends at the first result that cannot be stored: the rest would be lost as well.
    check(f"{fault}, mended, same command again", one, ended, again=4)


# -- batch jobs -----------------------------------------------------------------------------------


def _batch(one, slurm, minutes=5, **options):
    """Submit a batch script of this campaign."""
    from calibdask.engine.sites.batch import BatchJob

    program = one.directory / "calibdask"
    program.write_text(
        f"#!/usr/bin/env bash\nexport PYTHONPATH={faults.TESTS}\n"
        f"exec {sys.executable} -c 'import faults; faults.command_line()' \"$@\"\n"
    )
    program.chmod(0o755)
    words = [str(program), *one.arguments()]
    directives = [f"--chdir={one.directory}"]
    text = BatchJob(words, 2, 1, str(minutes), "500M", directives=directives, **options)
    script = one.directory / "campaign.sbatch"
    script.write_text(text.script())
    one.began = time.monotonic()
    return slurm.run("sbatch", "--parsable", str(script)).strip()


def _log(one):
    return "".join(path.read_text() for path in one.directory.glob("*.log"))


def test_a_batch_job_runs_a_campaign(slurm, undisturbed, tmp_path):
    one = Campaign(tmp_path, cluster="allocation")
    job = _batch(one, slurm)
    slurm.wait(lambda: job not in slurm.jobs(), 90)
    assert undisturbed.digest in _log(one), _log(one)
    assert "COMPLETED" in slurm.run("scontrol", "show", "job", job)


def test_a_worker_of_a_batch_job_is_killed_with_its_nanny(slurm, undisturbed, tmp_path, report):
    one = Campaign(tmp_path, cluster="allocation")
    job = _batch(one, slurm)
    one.wait_for(4)
    nanny = next(
        process for process in processes_of_job(job)
        if "distributed.cli.dask_worker" in process.cmdline() and "srun" not in process.name()
    )  # fmt: skip
    kill(nanny)
    slurm.wait(lambda: job not in slurm.jobs(), 120)
    seconds = time.monotonic() - one.began
    assert undisturbed.digest in _log(one), _log(one)
    assert one.begun() - SHARDS <= 1
    report("nanny killed in an allocation", "same digest", one.begun(), seconds)


def test_a_batch_job_is_cancelled_and_submitted_again(slurm, undisturbed, tmp_path, report):
    one = Campaign(tmp_path, cluster="allocation")
    job = _batch(one, slurm)
    one.wait_for(4)
    slurm.run("scancel", job)
    slurm.wait(lambda: job not in slurm.jobs(), 60)
    assert "terminated; what was computed is stored" in _log(one), _log(one)
    assert not (one.workdir / "session").exists()
    job = _batch(one, slurm)
    slurm.wait(lambda: job not in slurm.jobs(), 90)
    assert undisturbed.digest in _log(one)
    assert one.begun() - SHARDS <= 2
    report("batch job cancelled, submitted again", "same digest", one.begun())


@thorough
def test_a_batch_job_reaches_its_time_limit_and_carries_on(slurm, undisturbed, tmp_path, report):
    one = Campaign(tmp_path, cluster="allocation", script={"*": ["sleep 12!"]})
    job = _batch(one, slurm, minutes=2, requeue=True)
    slurm.wait(lambda: job not in slurm.jobs(), 600)
    seconds = time.monotonic() - one.began
    text = _log(one)
    assert "terminated; what was computed is stored" in text, text
    assert undisturbed.digest in text, text
    assert one.begun() - SHARDS <= 2 * text.count("terminated;")
    fault = "time limit of a batch job with --requeue"
    report(fault, "same digest", one.begun(), seconds, 12)


def test_the_campaign_is_what_the_table_says():
    assert (campaign.SHARDS, campaign.SECONDS) == (12, 1.0)
