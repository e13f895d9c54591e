"""Where the work is done: this process, threads, local worker processes, or a Dask scheduler."""

from __future__ import annotations

import logging
import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine.executors import Executor, SerialExecutor, ThreadsExecutor
from calibdask.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from distributed import Client

__all__ = ["available_cpus", "available_memory", "open_executor"]


def available_cpus() -> int:
    """Count the processors this process may use (a batch system may allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Give the bytes of memory that are free now, within the control group's limit."""
    import psutil

    free: int = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text))
    return free


@contextmanager
def open_executor(
    where: str,
    *,
    workers: int | None = None,
    worker_memory: int | None = None,
    scratch: Path | None = None,
    performance_report: Path | None = None,
    preload: Sequence[str] = (),
    dashboard: bool = True,
) -> Iterator[tuple[Executor, str | None]]:
    """Start, or connect to, what will do the work, and close it at the end.

    Parameters
    ----------
    where : str
        ``serial``, ``threads``, ``local``, the address of a Dask scheduler, or its scheduler file.
    workers : int, optional
        How many threads or local processes; as many as there are processors unless given.
    worker_memory : int, optional
        Bytes at which a local worker is stopped.
    scratch : Path, optional
        Where local workers keep their temporary files.
    performance_report : Path, optional
        Where Dask writes its own report of the run.
    preload : sequence of str
        Modules that local workers will need: imported once for all of them.
    dashboard : bool
        Whether local workers get a dashboard.

    Yields
    ------
    executor : Executor
        What runs the tasks.
    dashboard : str or None
        Address of the dashboard.

    Raises
    ------
    ConfigError
        `where` is none of these.
    TransientError
        The scheduler does not answer.
    """
    count = workers or available_cpus()
    if where in ("serial", "threads"):
        if performance_report is not None:
            raise ConfigError(f"--performance-report needs a Dask cluster, not --cluster {where}")
        executor = SerialExecutor() if where == "serial" else ThreadsExecutor(count)
        try:
            yield executor, None
        finally:
            executor.close()
        return
    from distributed import performance_report as write_performance_report

    from calibdask.engine.dask import DaskExecutor

    profile = performance_report is not None
    with _client(
        where, count, worker_memory, scratch, preload, dashboard=dashboard, profile=profile
    ) as client:
        link = client.dashboard_link if dashboard or where != "local" else None
        dask_executor = DaskExecutor(client, where if where == "local" else "dask")
        try:
            if performance_report is None:
                yield dask_executor, link
            else:
                with client.as_current(), write_performance_report(str(performance_report)):
                    yield dask_executor, link
        finally:
            dask_executor.close()


@contextmanager
def _client(
    where: str,
    workers: int,
    worker_memory: int | None,
    scratch: Path | None,
    preload: Sequence[str],
    *,
    dashboard: bool,
    profile: bool,
) -> Iterator[Client]:
    import dask
    import distributed.utils
    from distributed import Client, LocalCluster, Security

    settings: dict[str, Any] = {
        # One death makes a suspect, which is then run alone; more deaths only cost time.
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.daemon": True,
        # A worker is forked from a process that has imported everything, instead of each importing
        # it again: 2 s of CPU and 100 MB a worker.
        "distributed.worker.multiprocessing-method": "forkserver",
        # Dask's profiles take time and grow with a worker's life: only for Dask's own report.
        "distributed.worker.profile.enabled": profile,
        "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
    }
    with dask.config.set(settings):
        if where == "local":
            # Dask would import Pandas here, to have workers begin with it.
            distributed.utils._forkserver_preload_set = True
            multiprocessing.set_forkserver_preload(
                ["distributed.worker", "calibdask.engine.tasks", *preload]
            )
            with (
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    # Whoever reaches a scheduler's port runs code as its owner, and the other
                    # users of a login node reach 127.0.0.1.
                    protocol="tls://",
                    security=Security.temporary(),
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": dashboard},
                    worker_dashboard_address=None,  # costs each worker an import of Bokeh
                    memory_limit=worker_memory or "auto",
                    local_directory=None if scratch is None else str(scratch),
                    # What fails is told as events; the rest, such as a heartbeat lost while
                    # closing, would be a traceback between the lines of JSON.
                    silence_logs=logging.CRITICAL,
                ) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client
            return
        is_file = Path(where).is_file()
        if not is_file and "://" not in where and ":" not in where:
            raise ConfigError(
                f"--cluster {where}: is neither serial, threads, local, the address of a Dask"
                " scheduler (host:port) nor a scheduler file"
            )
        try:
            connection = Client(
                scheduler_file=where if is_file else None,
                address=None if is_file else where,
                set_as_default=False,
                timeout="20s",
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise TransientError(f"no Dask scheduler answers at {where}: {error}") from error
        with connection as client:
            yield client
