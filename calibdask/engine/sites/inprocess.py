"""Sites without workers: the tasks run in this process, one after the other or in threads."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from calibdask.engine.executors import SerialExecutor, ThreadsExecutor
from calibdask.engine.sites.base import Site, available_memory
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calibdask.engine.executors import Executor

__all__ = ["Serial", "Threads"]


class Serial(Site):
    """One task after the other."""

    def check(self) -> None:
        """Refuse a report of Dask, which has no part in the run."""
        if self.settings.performance_report is not None:
            raise ConfigError(
                f"--performance-report needs a Dask cluster, not --cluster {self.where}"
            )

    def _executor(self) -> SerialExecutor | ThreadsExecutor:
        return SerialExecutor()

    @contextmanager
    def open(self) -> Iterator[tuple[Executor, str | None]]:
        """Make the executor."""
        self.check()
        with closing(self._executor()) as executor:
            yield executor, None

    def memory_per_worker(self) -> int | None:
        """Return what is free on this machine unless the configuration gives a limit."""
        return self.settings.worker_memory or available_memory()


class Threads(Serial):
    """Tasks in threads."""

    def _executor(self) -> SerialExecutor | ThreadsExecutor:
        return ThreadsExecutor(self.settings.least_and_most[1])

    def memory_per_worker(self) -> int | None:
        """Return the share of each thread of what is free on this machine."""
        given = self.settings.worker_memory
        return given or available_memory() // self.settings.least_and_most[1]
