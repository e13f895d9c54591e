"""Inter-calibration by every launch pattern: the same command, the same bits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from campaign import Campaign
from distributed import Security

from calibdask.array.simulate import ArraySimulation, simulate_array

pytestmark = pytest.mark.cluster

PROGRAM = Path(sys.executable).with_name("calibdask")
CONFIG = Path(__file__).parents[2] / "configs" / "inter_calibration.yaml"
SLURM = ("--set", "Slurm.memory=1 GiB", "--set", "Slurm.walltime=00:10:00")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dl2")
    simulate_array(directory, ArraySimulation(n_files=3, n_telescope_events=30_000, seed=5))
    return directory


def _words(data, output, *more):
    return ["inter-calibration", "-c", CONFIG, "-i", data, "-o", output, "--no-report", *more]


def _run(data, output, *more, **options):
    words = [str(word) for word in (PROGRAM, *_words(data, output, *more))]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=200, **options
    )
    assert done.returncode == 0, done.stderr
    return done


def _digest(text):
    return text.split()[-1]


@pytest.fixture(scope="module")
def digest(data, tmp_path_factory):
    return _digest(_run(data, tmp_path_factory.mktemp("serial") / "out.h5").stdout)


def test_worker_jobs_from_a_login_node(slurm, data, digest, tmp_path):
    page = tmp_path / "dask.html"
    more = ("--cluster", "slurm", "--workers", "1:3", "--performance-report", page, *SLURM)
    done = _run(data, tmp_path / "out.h5", *more)
    assert _digest(done.stdout) == digest
    assert "Dask Performance Report" in page.read_text()
    logs = sorted((tmp_path / "out.h5.work" / "logs").iterdir())  # B9: not where we happen to be
    assert any(path.name.startswith("calibdask-worker-") for path in logs)
    assert not list(tmp_path.glob("slurm-*.out"))
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert provenance["exit_code"] == 0


def test_several_workers_in_a_job(slurm, data, digest, tmp_path):
    more = ("--cluster", "slurm", "--workers", "2", "--set", "Slurm.cores=2", *SLURM)
    done = _run(data, tmp_path / "out.h5", *more)
    assert _digest(done.stdout) == digest
    assert len(list((tmp_path / "out.h5.work" / "logs").glob("*.err"))) == 1


def _log_of_batch_job(slurm, directory, *words):
    """Make a batch script, submit it, and give what the job logged."""
    made = subprocess.run(
        [PROGRAM, "sbatch-script", *map(str, words), "--workers-per-node", "1", "--time", "10",
         "--memory-per-worker", "1G", "--sbatch", f"--chdir={directory}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script = directory / "campaign.sbatch"
    script.write_text(made.stdout)
    job = slurm.run("sbatch", "--parsable", str(script)).strip()
    slurm.wait(lambda: job not in slurm.jobs(), 120)
    return (directory / f"inter-calibration-{job}.log").read_text()


def test_one_allocation(slurm, data, digest, tmp_path):
    words = _words(data, tmp_path / "out.h5", "--nodes", "2")
    log = _log_of_batch_job(slurm, tmp_path, *words)
    assert _digest(log) == digest, log
    assert '"executor": "allocation"' in log


def test_a_head_job_that_submits_its_workers(slurm, data, digest, tmp_path):
    words = _words(data, tmp_path / "out.h5", "--cluster", "slurm", "--workers", "2", *SLURM)
    log = _log_of_batch_job(slurm, tmp_path, *words)
    assert _digest(log) == digest, log
    assert '"executor": "slurm"' in log


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_scheduler_that_somebody_else_started(data, digest, tmp_path, secure):
    environment = dict(os.environ)
    if secure:
        made = Security.temporary().get_tls_config_for_role("scheduler")
        for name in ("cert", "key"):
            (tmp_path / name).write_text(made[name])
        tls = "DASK_DISTRIBUTED__COMM__TLS__"
        environment |= {
            "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "tls",
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
            f"{tls}CA_FILE": str(tmp_path / "cert"),
            **{f"{tls}{role}__CERT": str(tmp_path / "cert")
               for role in ("SCHEDULER", "WORKER", "CLIENT")},
            **{f"{tls}{role}__KEY": str(tmp_path / "key")
               for role in ("SCHEDULER", "WORKER", "CLIENT")},
        }  # fmt: skip
    file = tmp_path / "scheduler.json"
    dask = [str(PROGRAM.with_name("dask"))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    here = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", file]
    started = [subprocess.Popen([*dask, "scheduler", "--port", "0", *here], **quiet)]
    try:
        end = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < end
            time.sleep(0.2)
        started.append(subprocess.Popen([*dask, "worker", "--nthreads", "1", *here], **quiet))
        done = _run(data, tmp_path / "out.h5", "--cluster", file, env=environment)
        assert _digest(done.stdout) == digest
        assert not (tmp_path / "out.h5.work" / "session").exists()
        assert all(process.poll() is None for process in started)  # it was not ours to close
    finally:
        for process in started:
            process.terminate()
            process.wait(timeout=30)


def test_from_python(slurm, data, digest, tmp_path):
    import calibdask

    result = calibdask.run(
        "inter-calibration", data, tmp_path / "out.h5", config=CONFIG, cluster="slurm", workers=1,
        report=False, jobqueue={"memory": "1 GiB", "walltime": "00:10:00"}, listener=lambda _: None,
    )  # fmt: skip
    assert result.digest == digest
    assert result.account.executor == "slurm"


def test_a_running_campaign_is_joined_looked_at_and_stopped(slurm, tmp_path):
    one = Campaign(tmp_path, script={"*": ["sleep 2!"]}, more=("--dashboard",))
    process = one.start()
    faults.wait_for(lambda: one.done() >= 4, 60)

    def ask(*words):
        command = [str(PROGRAM), *words, str(one.output)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": str(faults.TESTS)},
        )  # fmt: skip

    status = ask("status")
    assert "running" in status.stdout
    assert "worker jobs: 2 at work" in status.stdout
    joined = ask("connect", "--once")
    assert joined.returncode == 0, joined.stderr
    assert "worker worker-0" in joined.stdout
    assert "ssh -" in joined.stdout
    sofar = ask("connect", "--coefficients")
    assert re.search(r"preliminary, \d+ of 12 shards", sofar.stdout), sofar.stderr
    stopped = ask("cancel")
    assert stopped.returncode == 0
    assert "has stopped" in stopped.stdout
    assert one.finish(process).code == 143
    slurm.wait(lambda: not slurm.jobs(), 30)
    late = ask("connect", "--once")
    assert late.returncode == 2
    assert "no campaign" in late.stderr
    assert "Traceback" not in late.stderr
    assert ask("status").returncode == 3
