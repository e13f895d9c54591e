"""Who may connect to the workers of a run on this machine."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
from faults import Scripted, run, write_inputs

from calibdask.engine import events
from calibdask.engine.cluster import (
    Site,
    WorkerJob,
    connect_client,
    lifetime_arguments,
    open_executor,
)
from calibdask.engine.session import Session
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
    with open_executor("local", Site(workers=1)) as (executor, dashboard):
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
        open_executor("lcoal", Site()),
    ):
        pass


def test_a_scheduler_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Long enough for Dask to give up: it tries for the time that cluster.py allows.
    with (
        pytest.raises(TransientError, match="no Dask scheduler answers"),
        open_executor(f"tcp://{address}", Site()),
    ):
        pass


def test_threads_of_blas_are_one_on_workers() -> None:
    with open_executor("local", Site(workers=1)) as (executor, _):
        client = executor._client
        assert client.run(os.environ.get, "OPENBLAS_NUM_THREADS") == dict.fromkeys(
            client.scheduler_info(n_workers=-1)["workers"], "1"
        )


def test_dasks_own_report(tmp_path) -> None:
    page = tmp_path / "performance.html"
    with open_executor("local", Site(workers=1, performance_report=page, dashboard=False)) as (
        _,
        link,
    ):
        assert link is None
    assert "<html" in page.read_text(encoding="utf-8")


# -- worker jobs ----------------------------------------------------------------------------------


def test_ctrl_c_and_threads_survive_the_import_of_dask_jobqueue() -> None:
    code = (
        "import signal, threading\n"
        "from calibdask.engine.cluster import Site, WorkerJob\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "thread = threading.Thread(target=lambda: WorkerJob.of(Site()))\n"
        "thread.start(); thread.join()\n"
        "WorkerJob.of(Site())\n"
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

    WorkerJob.of(Site())  # reads dask-jobqueue's own defaults
    return configure


def _header(job: WorkerJob) -> list[str]:
    lines = job.script("tls://1.2.3.4:5", "worker-0").splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_a_worker_job_has_defaults_that_work_anywhere(tmp_path) -> None:
    job = WorkerJob.of(Site(workdir=tmp_path))
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
        job = WorkerJob.of(Site(workdir=tmp_path, slurm={"queue": "short"}))
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
        WorkerJob.of(Site(workdir=tmp_path, slurm=options)).script("tls://x", "worker-0")


@pytest.mark.parametrize(
    ("walltime", "lifetime", "stagger"),
    [("01:00:00", 3000, 180), ("00:02:00", 60, 6), ("1-00:00:00", 73380, 4320)],
)
def test_workers_end_before_their_job(tmp_path, walltime, lifetime, stagger) -> None:
    job = WorkerJob.of(Site(workdir=tmp_path, slurm={"walltime": walltime}))
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
