"""Worker processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine.sites.base import Settings, available_cpus, available_memory
from calibdask.engine.sites.findings import Finding, failed, passed, warned
from calibdask.engine.sites.scheduler import (
    DaskSite,
    keeping,
    making_session,
    publish,
    python_environment,
    running_scheduler,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from distributed import Client, Nanny, Security

    from calibdask.engine.dask import DaskExecutor
    from calibdask.engine.session import Session

__all__ = ["Local", "check_machine", "path_for_workers"]

_GIB = 1024**3
_LITTLE_MEMORY = _GIB  # a worker with its imports takes some 150 MiB before it reads anything


class Local(DaskSite):
    """Worker processes, each with one thread."""

    @contextmanager
    def start(self) -> Iterator[tuple[DaskExecutor, Client, str | None]]:
        """Start scheduler and workers."""
        with (
            making_session(self.settings) as (session, security),
            path_for_workers(self.settings.preload),
            # Whoever reaches a scheduler's port runs code as its owner, and the other users of a
            # login node reach 127.0.0.1.
            running_scheduler(security, self.settings, {"host": "127.0.0.1"}) as (cluster, client),
        ):
            local = _LocalWorkers(self.settings, security, session)
            local.cluster = cluster
            with keeping(local, cluster, client, self.settings, session, self.where) as executor:
                yield executor, client, publish(session, cluster, self)

    def memory_per_worker(self) -> int | None:
        """Return the share of each worker of what is free on this machine."""
        given = self.settings.worker_memory
        return given or available_memory() // self.settings.least_and_most[1]

    def describe(self, patience: float) -> Iterator[Finding]:
        """Check processors and memory."""
        del patience
        yield check_machine(available_cpus(), available_memory())


def check_machine(cpus: int, memory: int) -> Finding:
    """Check processors and memory for local workers, one for each processor."""
    what = f"{cpus} processors, {memory / _GIB:.1f} GiB of memory free"
    if memory < _LITTLE_MEMORY:
        return failed(what, "a worker needs more than 1 GiB: stop other programs")
    if memory < cpus * _LITTLE_MEMORY:
        most = memory // _LITTLE_MEMORY
        return warned(f"{what}: less than 1 GiB for each", f"use --workers {most}")
    return passed(what)


@contextmanager
def path_for_workers(modules: Sequence[str]) -> Iterator[None]:
    """Keep the current directory off Python's path in the processes that are started meanwhile.

    Python puts it there first (``python -c``, ``python -m``, notebooks, a script's own directory,
    an empty part of PYTHONPATH), and processes take it over: a file that happens to be called
    ``tables.py`` would be executed. Where it holds one of the `modules` that workers need, it
    stays, but last.
    """
    here = str(Path.cwd())
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    empty = len(named) < len(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    implicit = here not in map(os.path.abspath, named)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    path = sys.path.copy()
    first = implicit and not sys.flags.safe_path and path[:1] == [here]
    kept = [
        part
        for place, part in enumerate(path)
        if part and not (part == here and ((first and place == 0) or (empty and implicit)))
    ]
    found = (sys.modules.get(name.partition(".")[0]) for name in modules)
    files = (getattr(module, "__file__", None) for module in found)
    if here not in kept and any(
        file and str(Path(file).absolute().parent) == here for file in files
    ):
        kept.append(here)
    try:
        os.environ |= python_environment()
        sys.path[:] = kept
        yield
    finally:
        sys.path[:] = [*path, *(part for part in sys.path if part not in {*kept, *path})]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _LocalWorkers:
    """Units that are worker processes here, each under a nanny of Dask in this process.

    Dask's own ``LocalCluster`` fails where a worker dies while it starts, and waits for ever where
    one dies while its nanny starts it again.
    """

    local = True
    processes = 1

    def __init__(self, settings: Settings, security: Security, session: Session) -> None:
        import distributed.utils
        from distributed import Nanny, Status

        # Dask would import Pandas here, to have workers begin with it.
        distributed.utils._forkserver_preload_set = True
        multiprocessing.set_forkserver_preload(
            ["distributed.worker", "calibdask.engine.tasks", *settings.preload]
        )
        self.n_workers = settings.least_and_most[1]
        self._options: dict[str, Any] = {
            "nthreads": 1,
            "host": "127.0.0.1",
            "protocol": "tls://",
            "security": security,
            "dashboard": False,  # costs each worker an import of Bokeh
            "memory_limit": settings.worker_memory or "auto",
            "local_directory": str(session.scratch.absolute()),
            "silence_logs": logging.CRITICAL,
        }
        self._nannies: dict[str, tuple[Nanny, asyncio.Future[Any]]] = {}
        self.cluster: Any = None

        class OneLife(Nanny):
            async def instantiate(self) -> Status:
                if self.process is None:
                    return await super().instantiate()
                await self.close()  # its worker died, and the keeper has another one started
                return self.status

        self._nanny = OneLife

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Start a worker; it is not waited for."""
        del avoid  # there is this machine alone

        async def start() -> None:
            import asyncio

            nanny = self._nanny(self.cluster.scheduler.address, name=str(number), **self._options)
            self._nannies[str(number)] = nanny, asyncio.ensure_future(nanny)

        self.cluster.sync(start)
        return str(number)

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Look which nannies start, or have, a worker."""
        return {job: "RUNNING" for job in jobs if not self._has_failed(*self._nannies[job])}

    @staticmethod
    def _has_failed(nanny: Nanny, started: asyncio.Future[Any]) -> bool:
        failed = started.done() and started.exception() is not None
        return failed or nanny.status.name in ("closing", "closed", "failed")

    def explain(self, job: str) -> str:
        """Return when it died, and of what where Dask knows more than that it died."""
        _, started = self._nannies[job]
        error = started.exception() if started.done() else None
        if error is None:
            return f"local worker {job} died"
        text = str(error.__cause__ or error)
        reason = "" if text.startswith("Nanny failed to start") else f" ({text})"
        return f"local worker {job} died while it started{reason}"

    def node(self, job: str) -> None:
        """Name no node: there is this machine alone."""

    def where(self, job: str) -> str:
        """Name the worker."""
        return f"local worker {job}"

    def cancel(self, jobs: Collection[str]) -> None:
        """End workers and wait for it."""

        async def close() -> None:
            import asyncio

            async def close_one(nanny: Nanny, started: asyncio.Future[Any]) -> None:
                # A nanny cannot be closed while it starts.
                await asyncio.wait([started])
                await nanny.close()

            await asyncio.gather(*(close_one(*self._nannies[job]) for job in jobs))

        self.cluster.sync(close)
