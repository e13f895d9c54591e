"""Workers in SLURM jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from calibdask.engine.sites import slurm_checks, slurm_commands
from calibdask.engine.sites.jobs import JobSite, WorkerJob
from calibdask.engine.sites.queue import find_commands

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from calibdask.engine.sites.findings import Finding
    from calibdask.engine.sites.queue import Queue

__all__ = ["Slurm", "SlurmJob"]


@dataclass(frozen=True)
class SlurmJob(WorkerJob):
    """A worker job of SLURM."""

    section: ClassVar[str] = "Slurm"
    config: ClassVar[str] = "slurm"
    target: ClassVar[str] = "dask_jobqueue.slurm:SLURMJob"
    system: ClassVar[str] = "SLURM"
    prefix: ClassVar[str] = "#SBATCH"

    def directives(self, avoid: Collection[str]) -> list[str]:
        """Return further options of sbatch."""
        # A worker that was put back into the queue would come late to a run that replaced it.
        return ["--no-requeue", *([f"--exclude={','.join(avoid)}"] if avoid else [])]

    def adapted(self, script: str) -> str:
        """Quote names of files: sbatch would take the part after a space for an option."""
        return re.sub(r"^(#SBATCH -[eo]) (.* .*)$", r'\1 "\2"', script, flags=re.MULTILINE)

    def walltime_seconds(self) -> float | None:
        """Return the jobs' time limit, None if there is none."""
        lines = self.script("tls://", "worker").splitlines()
        given = [line for line in lines if line.startswith(("#SBATCH -t ", "#SBATCH --time="))]
        if not given:
            return None
        return slurm_commands.parse_walltime(given[-1].replace("=", " ").split()[-1])


class Slurm(JobSite):
    """Scheduler in this process, workers in SLURM jobs."""

    section = "Slurm"
    job = SlurmJob

    @property
    def queue(self) -> Queue:
        """SLURM's commands."""
        return slurm_commands

    def check_commands(self) -> None:
        """Check that SLURM's commands are on the path."""
        find_commands("sbatch", "squeue", "scancel", "scontrol")

    def examine(self, script: str) -> Iterator[Finding]:
        """Check commands and controller, then what a worker job asks for."""
        if not script:
            yield from slurm_checks.check_system()
            return
        request = slurm_checks.Request.read(script)
        yield slurm_checks.check_partition(request)
        yield slurm_checks.check_submission(request)
        if (environment := slurm_checks.check_environment()) is not None:
            yield environment
