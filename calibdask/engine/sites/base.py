"""What every site has: settings of its workers, and what a campaign and the doctor ask of it."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from calibdask.engine import events
    from calibdask.engine.executors import Executor
    from calibdask.engine.sites.batch import BatchJob
    from calibdask.engine.sites.findings import Finding

__all__ = ["Settings", "Site", "available_cpus", "available_memory", "ipv4_interfaces"]


def available_cpus() -> int:
    """Count the processors this process may use (a batch system may allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Return the bytes of memory that are free now, within the control group's limit."""
    import psutil

    free: int = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text))
    return free


def ipv4_interfaces() -> dict[str, list[str]]:
    """Return the IPv4 addresses of the network interfaces of this machine, by name."""
    import psutil

    return {
        name: [one.address for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }


@dataclass(frozen=True)
class Settings:
    """How to make a cluster: nothing in here changes a number.

    Attributes
    ----------
    workers : int or (int, int), optional
        Number of threads or worker processes; between two numbers, worker jobs come and go.
    worker_memory : int, optional
        Bytes at which a worker is stopped.
    workdir : Path, optional
        The run's work directory: scratch, logs, certificates. A temporary one unless given.
    performance_report : Path, optional
        Where Dask writes its own report of the run.
    preload : sequence of str
        Modules that local workers will need: imported once for all of them.
    dashboard : bool
        Whether a scheduler that this run starts serves a dashboard.
    jobqueue : mapping
        Options of dask-jobqueue that win over those of its configuration files.
    emit : callable
        Called with events of the workers.
    """

    workers: int | tuple[int, int] | None = None
    worker_memory: int | None = None
    workdir: Path | None = None
    performance_report: Path | None = None
    preload: Sequence[str] = ()
    dashboard: bool = True
    jobqueue: Mapping[str, Any] = field(default_factory=dict)
    emit: events.Listener = lambda _: None

    @property
    def least_and_most(self) -> tuple[int, int]:
        """The smallest and the largest number of workers."""
        if self.workers is None:
            return available_cpus(), available_cpus()
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class Site(ABC):
    """A kind of cluster.

    Parameters
    ----------
    where : str
        The argument of ``--cluster``.
    settings : Settings
        How to make the cluster.
    """

    section: ClassVar[str] = ""
    """Section of the configuration with the options of its worker jobs."""

    def __init__(self, where: str, settings: Settings) -> None:
        self.where = where
        self.settings = settings

    def require(self) -> None:  # noqa: B027 - most sites can be used anywhere
        """Check that it can be used from this process at all.

        Raises
        ------
        ConfigError
            It cannot, whatever the options.
        """

    def check(self) -> None:
        """Check, before any work and without connecting to anything, that it can be opened.

        Raises
        ------
        ConfigError
            The options are wrong, or the commands of a batch system are not available.
        """
        self.require()

    @abstractmethod
    def open(self) -> AbstractContextManager[tuple[Executor, str | None]]:
        """Start it, or connect to it, and give the executor and the address of the dashboard.

        Raises
        ------
        ConfigError
            It refuses what was asked for.
        TransientError
            It does not answer.
        """

    def memory_per_worker(self) -> int | None:
        """Return the bytes for one worker; None where only the running cluster knows."""
        return self.settings.worker_memory

    def describe(self, patience: float) -> Iterator[Finding]:
        """Check for the doctor whether workers can start.

        Parameters
        ----------
        patience : float
            Seconds that a probe job may wait in the queue.
        """
        del patience
        raise ConfigError(f"calibdask doctor has no checks for --cluster {self.where}")

    def cancel(self, jobs: Sequence[str]) -> list[str]:
        """Cancel worker jobs that a dead run left; return those that were alive."""
        del jobs
        return []

    @classmethod
    def batch_script(cls, job: BatchJob) -> str:
        """Return a batch script that runs a whole campaign: of SLURM unless a site has its own.

        Raises
        ------
        ConfigError
            An option is wrong, or the batch system cannot do what the job asks for.
        """
        return job.script()
