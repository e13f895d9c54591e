"""How a run is made: nothing in here changes a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibdask.engine.cluster import Site, WorkerJob, available_cpus, available_memory
from calibdask.engine.places import Places
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from calibdask.engine import events
    from calibdask.engine.plan import Plan

__all__ = ["RunOptions"]

_WORTH_A_CLUSTER_BYTES = 1 << 30  # about what is read while worker processes start


@dataclass(frozen=True)
class RunOptions:
    """How to run: nothing in here changes a number.

    Attributes
    ----------
    cluster : str
        ``serial``, ``threads``, ``local``, ``slurm``, ``allocation``, a scheduler's address or its
        file; ``auto`` is local where there is enough to read for it to pay, else serial.
    workers : int or (int, int), optional
        How many threads or worker processes; SLURM jobs come and go between two numbers.
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
    slurm : mapping
        Options of dask-jobqueue for SLURM jobs of workers.
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
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.allow_missing <= 1:
            msg = f"allow_missing: expected a number from 0 to 1, got {self.allow_missing}"
            raise ConfigError(msg)

    def site(self, workdir: Path, emit: events.Listener, preload: Sequence[str]) -> Site:
        """Say how to make the cluster."""
        return Site(
            workers=self.workers,
            worker_memory=self.worker_memory,
            workdir=workdir,
            performance_report=self.performance_report,
            preload=preload,
            dashboard=self.dashboard,
            slurm=self.slurm,
            emit=emit,
        )

    def places(self, job: str, output: Path) -> Places:
        """Say where the run writes."""
        return Places(
            job,
            output,
            workdir=self.workdir,
            report=self.report,
            provenance_log=self.provenance_log,
            log_file=self.log_file,
            performance_report=self.performance_report,
        )

    def memory_per_worker(self, site: Site) -> int | None:
        """Bytes for one worker, or None where only the cluster knows."""
        if self.cluster == "slurm":
            return WorkerJob.of(site).memory_per_worker
        if self.worker_memory is not None:
            return self.worker_memory
        if self.cluster == "serial":
            return available_memory()
        if self.cluster in ("auto", "threads", "local"):
            return available_memory() // site.least_and_most[1]
        return None

    def where(self, plan: Plan) -> str:
        """Decide what ``auto`` means for a plan."""
        if self.cluster != "auto":
            return self.cluster
        several = len(plan.shards) > 1 and self.workers != 1 and available_cpus() > 1
        return "local" if several and plan.n_bytes > _WORTH_A_CLUSTER_BYTES else "serial"
