"""Who may connect to the workers of a run on this machine."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
import yaml
from faults import Scripted, run, write_inputs

from calibdask.engine import events
from calibdask.engine.session import Session
from calibdask.engine.sites.base import Settings
from calibdask.engine.sites.jobs import lifetime_arguments
from calibdask.engine.sites.scheduler import connect_client
from calibdask.engine.sites.slurm import SlurmJob
from calibdask.engine.sites.table import check_cluster, open_executor
from calibdask.errors import ConfigError, TransientError

pytestmark = pytest.mark.cluster


def _ports_of_this_run() -> set[tuple[str, int]]:
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    sockets = [one for process in processes for one in process.net_connections(kind="inet")]
    listening = [one for one in sockets if one.status == psutil.CONN_LISTEN]
    return {(one.laddr.ip, one.laddr.port) for one in listening}


def test_every_port_is_local_and_dask_asks_for_a_certificate() -> None:
    before = _ports_of_this_run()
    with open_executor("local", Settings(workers=1)) as (executor, dashboard):
        assert executor.workers == 1
        assert dashboard is not None
        opened = _ports_of_this_run() - before
        assert {ip for ip, _ in opened} == {"127.0.0.1"}

        strangers = ssl.create_default_context()
        strangers.check_hostname = False
        strangers.verify_mode = ssl.CERT_NONE
        refused = 0
        for ip, port in opened:
            with socket.create_connection((ip, port), timeout=2) as plain:
                try:
                    with strangers.wrap_socket(plain) as secure:
                        secure.recv(1)  # TLS 1.3 tells of the missing certificate only now
                except TimeoutError:
                    continue  # a page over HTTP waits for the end of a request
                except ssl.SSLError as error:
                    refused += "CERTIFICATE_REQUIRED" in str(error)
        # Scheduler, worker and nanny refuse; what is left are pages that only tell.
        assert refused == 3
        assert urlsplit(dashboard).hostname == "127.0.0.1"


def test_words_that_are_no_cluster() -> None:
    with (
        pytest.raises(ConfigError, match="neither serial, threads, local"),
        open_executor("lcoal", Settings()),
    ):
        pass


def test_a_scheduler_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Long enough for Dask to give up: it tries for the time that cluster.py allows.
    with (
        pytest.raises(TransientError, match="no Dask scheduler answers"),
        open_executor(f"tcp://{address}", Settings()),
    ):
        pass


def test_threads_of_blas_are_one_on_workers() -> None:
    with open_executor("local", Settings(workers=1)) as (executor, _):
        client = executor._client
        assert client.run(os.environ.get, "OPENBLAS_NUM_THREADS") == dict.fromkeys(
            client.scheduler_info(n_workers=-1)["workers"], "1"
        )


def test_dasks_own_report(tmp_path) -> None:
    page = tmp_path / "performance.html"
    with open_executor("local", Settings(workers=1, performance_report=page, dashboard=False)) as (
        _,
        link,
    ):
        assert link is None
    assert "<html" in page.read_text(encoding="utf-8")


# -- worker jobs ----------------------------------------------------------------------------------


def test_ctrl_c_and_threads_survive_the_import_of_dask_jobqueue() -> None:
    code = (
        "import signal, threading\n"
        "from calibdask.engine.sites.base import Settings\n"
        "from calibdask.engine.sites.slurm import SlurmJob\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "thread = threading.Thread(target=lambda: SlurmJob.of(Settings()))\n"
        "thread.start(); thread.join()\n"
        "SlurmJob.of(Settings())\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('as ever')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout == "as ever\n", done.stderr


@pytest.fixture
def jobqueue():
    import dask

    def configure(**options):
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return dask.config.set({f"jobqueue.slurm.{name}": value for name, value in named.items()})

    SlurmJob.of(Settings())  # reads dask-jobqueue's own defaults
    return configure


def _header(job: SlurmJob) -> list[str]:
    lines = job.script("tls://1.2.3.4:5", "worker-0").splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_a_worker_job_has_defaults_that_work_anywhere(tmp_path) -> None:
    job = SlurmJob.of(Settings(workdir=tmp_path))
    assert job.processes == 1
    assert job.memory_per_worker == 4 * 1024**3
    header = _header(job)
    assert "-J calibdask-worker" in header
    assert "--mem=4G" in header
    assert f"-e {tmp_path}/logs/calibdask-worker-%J.err" in header


def test_dask_jobqueues_configuration_is_honoured_and_ours_wins(tmp_path, jobqueue) -> None:
    with jobqueue(
        queue="long", account="cta", cores=4, memory="8 GiB", walltime="02:00:00",
        job_extra_directives=["--qos=high"], interface="lo", name="mine",
        job_script_prologue=["module load x"], scheduler_options={"port": 8786},
    ):  # fmt: skip
        job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue={"queue": "short"}))
        header = _header(job)
        script = job.script("tls://1.2.3.4:5", "w", prologue=["export A=1"], directives=["--x"])
    assert "-p short" in header
    assert {"-A cta", "--cpus-per-task=4", "--mem=8G", "-t 02:00:00", "-J mine"} <= set(header)
    assert "--qos=high" in header
    assert job.processes == 4  # one thread a worker
    assert job.memory_per_worker == 2 * 1024**3
    assert job.scheduler_options == {"port": 8786, "interface": "lo"}
    assert "module load x\nexport A=1" in script
    assert "#SBATCH --qos=high\n#SBATCH --x" in script


OLD_NAMES = {
    "extra": ["--resources", "gpu=1"],
    "env_extra": ["module load x"],
    "header_skip": ["--mem"],
    "job_extra": ["--qos=high"],
    "project": "cta",
}


@pytest.mark.parametrize("new", [False, True], ids=["old alone", "both"])
@pytest.mark.parametrize("where", ["file", "section"])
@pytest.mark.parametrize("old", OLD_NAMES)
@pytest.mark.filterwarnings("ignore:.* has been renamed to:FutureWarning")
def test_old_names_are_merged_as_dask_jobqueue_merges_them(tmp_path, jobqueue, old, where, new):
    from dask_jobqueue.slurm import SLURMJob

    names = {
        "extra": "worker_extra_args", "env_extra": "job_script_prologue",
        "header_skip": "job_directives_skip", "job_extra": "job_extra_directives",
        "project": "account",
    }  # fmt: skip
    options = {old: OLD_NAMES[old]}
    if new:
        options[names[old]] = "other" if old == "project" else ["--other"]
    ours = {"cores": 1, "memory": "4 GiB", "log_directory": str(tmp_path), "job_name": "w"}
    if where == "file":
        with jobqueue(**options):
            theirs = SLURMJob("tls://1.2.3.4:5", "w", **ours).job_script()
            job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue=ours))
            found = job.script("tls://1.2.3.4:5", "w")
    else:
        theirs = SLURMJob("tls://1.2.3.4:5", "w", **ours, **options).job_script()
        job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue={**ours, **options}))
        found = job.script("tls://1.2.3.4:5", "w")
    assert found == theirs


@pytest.mark.parametrize("name", ["job_extra_directives", "job-script-prologue", "job_extra"])
@pytest.mark.parametrize("where", ["file", "section"])
def test_text_where_a_list_belongs_is_refused(tmp_path, jobqueue, name, where):
    given = {name: "--qos=high"}
    with (
        jobqueue(**(given if where == "file" else {})),
        pytest.raises(ConfigError, match=r"expected a list, got '--qos=high'; write \['--qos=high"),
    ):
        SlurmJob.of(Settings(workdir=tmp_path, jobqueue=given if where == "section" else {}))


def test_a_work_directory_with_a_space(tmp_path):
    header = _header(SlurmJob.of(Settings(workdir=tmp_path / "a b")))
    assert f'-e "{tmp_path}/a b/logs/calibdask-worker-%J.err"' in header
    assert f'-o "{tmp_path}/a b/logs/calibdask-worker-%J.out"' in header


def test_the_schedulers_own_address_goes_before_the_interface(tmp_path, jobqueue):
    with jobqueue(interface="ib7", scheduler_options={"host": "10.0.0.1"}):
        assert SlurmJob.of(Settings(workdir=tmp_path)).scheduler_options == {"host": "10.0.0.1"}


def test_the_shipped_example_names_no_interface():
    example = Path(__file__).parents[2] / "slurm" / "jobqueue.yaml"
    options = yaml.safe_load(example.read_text(encoding="utf-8"))["jobqueue"]["slurm"]
    assert "interface" not in options
    with _commands_of_slurm():
        check_cluster("slurm", Settings(jobqueue=options))


@contextmanager
def _commands_of_slurm():
    """Let there be commands of SLURM that do nothing."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("sbatch", "squeue", "scancel", "scontrol"):
            (Path(directory) / name).write_text("#!/bin/sh\n")
            (Path(directory) / name).chmod(0o755)
        with mock.patch.dict(os.environ, {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}):
            yield


@pytest.mark.parametrize(
    ("where", "slurm", "complaint"),
    [
        ("lcoal", {}, "neither serial, threads, local"),
        ("node7:", {}, "'' is no port"),
        ("node7:http", {}, "'http' is no port"),
        ("node7:99999", {}, "'99999' is no port"),
        ("no/such/scheduler.json", {}, "nor a scheduler file"),
        ("allocation", {}, "is for the inside of a SLURM job"),
        ("slurm", {"interface": "ib7"}, "'ib7' is no network interface of this machine; there are"),
        ("slurm", {"scheduler_options": {"interface": "ib7"}}, "'ib7' is no network interface"),
        ("slurm", {"job_extra_directives": "--x"}, "expected a list"),
        ("slurm", {}, "there is no sbatch here"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_planning(
    where, slurm, complaint, tmp_path, monkeypatch
):
    def no_plan(*_args, **_options):
        raise AssertionError("inputs were looked at")

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("calibdask.engine.run.make_plan", no_plan)
    if "sbatch" in complaint:
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    paths = write_inputs(tmp_path / "in", 2)
    with (
        nullcontext() if "sbatch" in complaint else _commands_of_slurm(),
        pytest.raises(ConfigError, match=complaint) as refused,
    ):
        run(Scripted(), paths, tmp_path / "out.h5", cluster=where, jobqueue=slurm)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.h5.work").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"queues": "x"}, "Slurm.queues: dask-jobqueue has no such option; did you mean 'queue'"),
        ({"security": True}, "Slurm.security: dask-jobqueue has no such option"),
        ({"memory": "lots"}, "Slurm section"),
    ],
)
def test_options_that_are_none(options, complaint, tmp_path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SlurmJob.of(Settings(workdir=tmp_path, jobqueue=options)).script("tls://x", "worker-0")


@pytest.mark.parametrize(
    ("walltime", "lifetime", "stagger"),
    [("01:00:00", 3000, 180), ("00:02:00", 60, 6), ("1-00:00:00", 73380, 4320)],
)
def test_workers_end_before_their_job(tmp_path, walltime, lifetime, stagger) -> None:
    job = SlurmJob.of(Settings(workdir=tmp_path, jobqueue={"walltime": walltime}))
    seconds = job.walltime_seconds()
    assert seconds is not None
    assert lifetime_arguments(seconds) == [
        "--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s",
    ]  # fmt: skip
    assert lifetime + stagger <= seconds - min(60, seconds / 4)


def test_no_limit_no_lifetime() -> None:
    assert lifetime_arguments(None) == []


def test_dasks_pages_answer_and_read_as_a_campaign(tmp_path) -> None:
    write_inputs(tmp_path / "in", 40)
    seen: dict[str, object] = {}

    def look(event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            seen["link"] = event.dashboard
        elif isinstance(event, events.TaskEnded) and "pages" not in seen:
            base = str(seen["link"]).removesuffix("/status")
            # Not "groups": of distributed 2026.8 it fails for every chain of three groups.
            pages = ("status", "graph", "tasks", "workers", "info/main/workers.html")
            seen["pages"] = {page: urlopen(f"{base}/{page}").status for page in pages}
            with urlopen(f"{base}/json/counts.json") as answer:
                seen["counts"] = json.load(answer)
            session = Session(tmp_path / "out.h5.work" / "session")
            with connect_client(session) as client:
                seen["bars"] = client.run_on_scheduler(_bars)

    run(
        Scripted(script={"*": ["sleep 0.02!"]}), tmp_path / "in", tmp_path / "out.h5",
        cluster="local", workers=2, fan_in=4, listener=look, dashboard=True,
    )  # fmt: skip
    assert set(seen["pages"].values()) == {200}
    assert seen["counts"]["workers"] == 2
    assert set(seen["bars"]) >= {"map", "merge", "fit"}


def _bars(dask_scheduler) -> list[str]:
    return list(dask_scheduler.task_prefixes)
