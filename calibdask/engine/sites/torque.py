"""Workers in jobs of Torque or PBS, by qsub, qstat and qdel."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from calibdask.engine.sites.findings import Finding, failed, passed
from calibdask.engine.sites.jobs import JobSite, WorkerJob
from calibdask.engine.sites.queue import QueuedJob, ask, call, find_commands, tail
from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from calibdask.engine.sites.batch import BatchJob

__all__ = ["Torque", "TorqueJob", "TorqueQueue", "parse_jobs", "parse_torque_walltime"]

_COMMANDS = ("qsub", "qstat", "qdel")
_WARNING = "# Torque sends TERM to this shell at the time limit and when the job is deleted."

_UNKNOWN_JOB = 153
"""Exit code of qstat where it has forgotten a job."""

_PENDING, _ENDED = "QHWT", "CF"
"""Letters of the states of jobs that wait, and of those that have ended."""


def parse_jobs(text: str) -> dict[str, dict[str, str]]:
    """Read what ``qstat -f`` prints.

    Returns
    -------
    dict of str to dict
        The attributes of each job by its id.
    """
    jobs: dict[str, dict[str, str]] = {}
    if "\n    " in text:  # Torque itself continues long values after a tab
        text = text.replace("\n\t", "")
    for block in re.split(r"^Job Id:", text, flags=re.MULTILINE)[1:]:
        number, *lines = block.strip().splitlines()
        pairs = (line.partition(" = ") for line in lines)
        jobs[number.strip()] = {
            name.strip(): value.strip() for name, equals, value in pairs if equals
        }
    return jobs


def parse_torque_walltime(text: str) -> float:
    """Return the seconds of a time limit: ``seconds``, ``[[days:]hours:]minutes:seconds``.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if not re.fullmatch(r"\d+(:\d+){0,3}", text.strip()):
        raise ConfigError(f"expected a time limit such as 01:30:00, got {text!r}")
    factors = (1, 60, 3600, 86400)
    parts = reversed(text.strip().split(":"))
    return float(sum(int(part) * by for part, by in zip(parts, factors, strict=False)))


class TorqueQueue:
    """The batch system: one log a job, named by its workers, in one directory.

    Parameters
    ----------
    logs : Path
        The directory of the logs; it is made where it is absent.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._log_of: dict[str, Path] = {}

    def submit(self, script: str, name: str) -> str:
        """Submit a batch script and give the job's id."""
        self._logs.mkdir(parents=True, exist_ok=True)
        path, log = self._logs / f"{name}.pbs", f"{name}.log"
        path.write_text(script, encoding="utf-8")
        try:
            # Names without a directory: some versions of qsub pass them on to a shell.
            answer = call(["qsub", "-V", "-j", "oe", "-o", log, path.name], cwd=self._logs)
        except TransientError:
            raise
        except CalibdaskError as error:
            asked = " ".join(re.findall("^#PBS (.*)$", script, re.MULTILINE))
            raise ConfigError(
                f"{error}\nThe job asked for: {asked}\nChange the Torque section of the"
                " configuration (or pbs in ~/.config/dask/jobqueue.yaml)"
            ) from error
        lines = answer.strip().splitlines()
        if not lines or not re.fullmatch(r"\d\S*", lines[-1]):
            raise ConfigError(f"expected the id of a job from qsub, got {answer.strip()!r}")
        self._log_of[lines[-1]] = self._logs / log
        return lines[-1]

    def _facts(self, jobs: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        code, said = ask("qstat", "-f", *sorted(jobs))
        if code not in (0, _UNKNOWN_JOB):
            raise TransientError(f"qstat failed: {said or f'exit code {code}'}")
        return parse_jobs(said)

    def alive(self, jobs: Iterable[str]) -> dict[str, QueuedJob]:
        """Return those of some jobs that wait or run."""
        wanted = set(jobs)
        found = {}
        for job, facts in self._facts(wanted).items() if wanted else ():
            letter = facts.get("job_state", "")
            if job in wanted and letter not in _ENDED:
                state = "PENDING" if letter in _PENDING else "RUNNING"
                reason = facts.get("comment", f"state {letter}")
                found[job] = QueuedJob(state, reason, facts.get("exec_host", ""))
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs; qdel complains of those that have ended already."""
        if numbers := sorted(jobs):
            ask("qdel", *numbers)

    def node_of(self, job: str) -> str | None:
        """Return the first node of a job."""
        try:
            facts = self._facts([job]).get(job, {})
        except TransientError:
            return None
        return facts.get("exec_host", "").partition("/")[0] or None

    def logs_of(self, job: str) -> list[Path]:
        """Return the log of a job."""
        return [self._log_of[job]] if job in self._log_of else []

    def explain_end(self, job: str) -> str:
        """Describe how a job ended and what its log says last."""
        facts = self._facts([job]).get(job)
        text = f"Torque job {job}"
        if facts is None:
            text += ": no longer known to Torque"
        elif "exit_status" in facts:
            text += f": exit code {facts['exit_status']}"
        for log in self.logs_of(job):
            lines = tail(log)
            text += f"; {log} ends with\n{lines}" if lines else f"; nothing in its log ({log})"
        return text


@dataclass(frozen=True)
class TorqueJob(WorkerJob):
    """A worker job of Torque or PBS."""

    section: ClassVar[str] = "Torque"
    config: ClassVar[str] = "pbs"
    target: ClassVar[str] = "dask_jobqueue.pbs:PBSJob"
    system: ClassVar[str] = "Torque"
    prefix: ClassVar[str] = "#PBS"

    def directives(self, avoid: Collection[str]) -> list[str]:
        """Return further options of qsub, which cannot name nodes to stay away from."""
        del avoid
        return ["-r n"]

    @property
    def logs(self) -> Path:
        """The directory of logs."""
        return Path(self.options.get("log_directory") or self.default("log_directory")).absolute()

    def adapted(self, script: str) -> str:
        """Start where the run was started, and leave names of logs to qsub's arguments."""
        lines = [line for line in script.splitlines() if not re.match("#PBS -[eo] ", line)]
        if self.options.get("resource_spec") is None and not self.default("resource_spec"):
            # dask-jobqueue writes what PBS Pro understands.
            cores = max(int(self.options["cores"]), self.processes)
            mebibytes = -(-self.memory_per_worker * self.processes // 1024**2)
            spec = f"#PBS -l nodes=1:ppn={cores},mem={mebibytes}mb"
            lines = [spec if line.startswith("#PBS -l select=") else line for line in lines]
        last = max(number for number, line in enumerate(lines) if line.startswith("#PBS"))
        lines.insert(last + 1, f"cd {shlex.quote(str(Path.cwd()))} || exit 1")
        return "\n".join([*lines, ""])

    def walltime_seconds(self) -> float | None:
        """Return the jobs' time limit, None if there is none."""
        found = re.findall(
            r"^#PBS -l .*walltime=([^,\s]+)", self.script("tls://", "w"), re.MULTILINE
        )
        return parse_torque_walltime(found[-1]) if found else None


class Torque(JobSite):
    """Scheduler in this process, workers in jobs of Torque or PBS."""

    section = "Torque"
    job = TorqueJob

    @property
    def queue(self) -> TorqueQueue:
        """Its commands."""
        return TorqueQueue(self.job.of(self.settings).logs)

    def check_commands(self) -> None:
        """Check that qsub, qstat and qdel are on the path."""
        find_commands(*_COMMANDS)

    def examine(self, script: str) -> Iterator[Finding]:
        """Check that the commands are there and that the server answers."""
        if script:
            return
        try:
            find_commands(*_COMMANDS)
        except ConfigError as error:
            yield failed(str(error).partition(": ")[0], str(error).partition(": ")[2])
            return
        code, said = ask("qstat", "-Q")
        if code:
            yield failed(f"the Torque server does not answer: {said}", "try again later")
        else:
            yield passed("the Torque server answers")

    @classmethod
    def batch_script(cls, job: BatchJob) -> str:
        """Return a script for qsub: a head job, whose workers are jobs of their own."""
        if job.requeue:
            raise ConfigError("--requeue: Torque cannot put a job back at its time limit")
        if job.nodes > 1:
            raise ConfigError("--nodes: a head job of Torque takes one node")
        parse_torque_walltime(job.time)
        memory = f",mem={job.memory_per_worker}" if job.memory_per_worker else ""
        asked = f"nodes=1:ppn={job.workers_per_node}{memory},walltime={job.time}"
        name = job.command[1][:15]
        lines = [f"-N {name}", f"-l {asked}", "-j oe", "-r n", *job.directives]
        return job.render("#PBS", lines, f"cd {shlex.quote(str(Path.cwd()))} || exit 1", _WARNING)
