"""How a run is made: nothing in here changes a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibdask.engine.places import Places
from calibdask.engine.sites.auto import choose
from calibdask.engine.sites.base import Settings, available_memory
from calibdask.engine.sites.table import find_site
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from calibdask.engine import events
    from calibdask.engine.plan import Plan

__all__ = ["RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """How to run: nothing in here changes a number.

    Attributes
    ----------
    cluster : str
        Name of a site (:data:`calibdask.engine.sites.table.SITES`), a scheduler's address or its
        file; ``auto`` is serial or local, whichever is estimated to end first.
    workers : int or (int, int), optional
        Number of threads or worker processes; worker jobs come and go between two numbers.
    worker_memory : int, optional
        Bytes a worker may use; a share of what is free unless given.
    workdir : Path, optional
        Where results are kept; the output's name with ``.work`` unless given.
    overwrite : bool
        Replace an output that is there, whatever it is. Its own product a run replaces unasked,
        if all inputs of that are among its inputs and the options are the same.
    allow_missing : float
        Fraction of the inputs or shards that may be missing in a product.
    verify_full : bool
        Hash inputs in full.
    retries : int
        How often a shard is tried again after a transient failure.
    fan_in : int
        How many results one merge takes.
    report : bool
        Write the HTML report.
    dashboard : bool
        Serve Dask's dashboard while local workers run.
    performance_report : Path, optional
        Where to write Dask's own report.
    provenance_log : Path, optional
        Where to append the activity's provenance, one JSON object a line.
    log_file : Path, optional
        Where the caller writes the log: nothing else may be written there.
    command : str
        The command that does this run again.
    jobqueue : mapping
        Options of dask-jobqueue for worker jobs.
    """

    cluster: str = "auto"
    workers: int | tuple[int, int] | None = None
    worker_memory: int | None = None
    workdir: Path | None = None
    overwrite: bool = False
    allow_missing: float = 0.0
    verify_full: bool = False
    retries: int = 2
    fan_in: int = 16
    report: bool = True
    dashboard: bool = True
    performance_report: Path | None = None
    provenance_log: Path | None = None
    log_file: Path | None = None
    command: str = ""
    jobqueue: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.allow_missing <= 1:
            msg = f"allow_missing: expected a number from 0 to 1, got {self.allow_missing}"
            raise ConfigError(msg)

    def settings(self, workdir: Path, emit: events.Listener, preload: Sequence[str]) -> Settings:
        """Return how to make the cluster."""
        return Settings(
            workers=self.workers,
            worker_memory=self.worker_memory,
            workdir=workdir,
            performance_report=self.performance_report,
            preload=preload,
            dashboard=self.dashboard,
            jobqueue=self.jobqueue,
            emit=emit,
        )

    def places(self, job: str, output: Path) -> Places:
        """Return where the run writes."""
        return Places(
            job,
            output,
            workdir=self.workdir,
            report=self.report,
            provenance_log=self.provenance_log,
            log_file=self.log_file,
            performance_report=self.performance_report,
        )

    def memory_per_worker(self, settings: Settings) -> int | None:
        """Bytes for one worker, or None where only the cluster knows."""
        if self.cluster == "auto":
            return self.worker_memory or available_memory() // settings.least_and_most[1]
        return find_site(self.cluster)(self.cluster, settings).memory_per_worker()

    def where(self, plan: Plan) -> str:
        """Decide what ``auto`` means for a plan."""
        return choose(plan, self.workers) if self.cluster == "auto" else self.cluster
