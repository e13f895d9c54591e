"""Talking to SLURM by its own commands: sbatch, squeue, scancel, scontrol.

``sacct`` is left alone: many sites keep no accounting database. Where a job is, squeue tells while
it lives and scontrol for some minutes after its end.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.engine.sites.queue import QueuedJob, call, tail
from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "alive",
    "cancel",
    "describe",
    "explain_end",
    "hosts_of_allocation",
    "logs_of",
    "node_of",
    "parse_walltime",
    "submit",
]


def submit(script: str, name: str = "") -> str:
    """Submit a batch script and give the job's id.

    Raises
    ------
    ConfigError
        SLURM refuses it, e.g. because there is no such partition.
    TransientError
        SLURM does not answer, or takes no more jobs now.
    """
    del name  # it is in the script
    try:
        answer = call(["sbatch", "--parsable"], script)
    except TransientError:
        raise
    except CalibdaskError as error:
        raise ConfigError(
            f"{error}\nThe job asked for: {_directives(script)}\nChange the Slurm section of the"
            " configuration (or ~/.config/dask/jobqueue.yaml); calibdask doctor --cluster slurm"
            " tells what fits"
        ) from error
    return answer.strip().splitlines()[-1].partition(";")[0]


def _directives(script: str) -> str:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    return " ".join(line.removeprefix("#SBATCH ") for line in lines)


_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


def alive(jobs: Iterable[str]) -> dict[str, QueuedJob]:
    """Look which of some jobs of this user wait or run.

    Raises
    ------
    CalibdaskError
        squeue fails: nothing is known about any job.
    """
    wanted = set(jobs)
    # Asking for job ids would fail as soon as SLURM has forgotten one of them.
    lines = call(["squeue", "-h", f"--user={os.getuid()}", "--format=%A|%T|%r|%N"]).splitlines()
    found = {}
    for line in lines:
        number, state, reason, nodes = line.split("|", 3)
        if number in wanted and state not in _ENDED:
            found[number] = QueuedJob(state, reason, nodes)
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended already do not matter."""
    numbers = sorted(jobs)
    if numbers:
        call(["scancel", "--quiet", *numbers])


def describe(job: str) -> Mapping[str, str]:
    """Return what scontrol knows of a job; nothing if SLURM has forgotten it."""
    try:
        answer = call(["scontrol", "show", "job", "--oneliner", job])
    except CalibdaskError:
        return {}
    # Values may hold spaces; names, which begin with a capital letter, do not.
    pairs = re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", answer)
    facts = dict(pairs)
    for name in ("StdErr", "StdOut"):  # scontrol leaves some patterns in the names of files
        if name in facts:
            facts[name] = re.sub("%[jJA]", job, facts[name])
    return facts


def node_of(job: str) -> str | None:
    """Return the node that a job runs or ran on."""
    return describe(job).get("BatchHost") or None


def logs_of(job: str) -> list[Path]:
    """Return the log files of a job."""
    facts = describe(job)
    return [Path(facts[name]) for name in ("StdErr", "StdOut") if facts.get(name)]


def explain_end(job: str, logs: Sequence[Path] = ()) -> str:
    """Describe where a job was, how it ended, and what its logs say last.

    Parameters
    ----------
    job : str
        Its id.
    logs : sequence of Path
        Its log files, if known; else those that scontrol names.
    """
    facts = describe(job)
    text = f"SLURM job {job}"
    node = facts.get("BatchHost") or facts.get("NodeList", "")
    if node and node != "(null)":
        text += f" on {node}"
    if "JobState" in facts:
        text += f": {facts['JobState']}"
        if facts.get("Reason", "None") != "None":
            text += f" ({facts['Reason']})"
        if facts.get("ExitCode", "0:0") != "0:0":
            text += f", exit code {facts['ExitCode']}"
    else:
        text += ": no longer known to SLURM"
    named = [Path(facts[name]) for name in ("StdErr", "StdOut") if facts.get(name)]
    for path in dict.fromkeys(logs or named):
        if lines := tail(path):
            return f"{text}; {path} ends with\n{lines}"
    places = ", ".join(map(str, dict.fromkeys(logs or named)))
    return f"{text}; nothing in its log ({places})" if places else f"{text}; it left no log"


_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_walltime(text: str) -> float | None:
    """Return the seconds of a time limit in SLURM's notation; None where there is no limit.

    Parameters
    ----------
    text : str
        ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``,
        ``days-hours:minutes``, ``days-hours:minutes:seconds``, or ``infinite``.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if text.strip().lower() in ("infinite", "unlimited", "-1"):
        return None
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"the time limit {text!r} is none of SLURM's: write for instance 01:30:00 or 1-12"
        )
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    by_hours = days is not None or len(numbers) == 3
    factors = (3600, 60, 1) if by_hours else (60, 1)
    seconds = sum(number * factor for number, factor in zip(numbers, factors, strict=False))
    return float(seconds + 86400 * int(days or 0))


def hosts_of_allocation() -> list[tuple[str, int]]:
    """Return the nodes of the batch job that this process is in, and the tasks meant for each.

    Raises
    ------
    ConfigError
        This process is in no batch job.
    """
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(
            "--cluster allocation is for the inside of a SLURM job, and this is none: write one"
            " with 'calibdask sbatch-script', or use --cluster slurm on a login node"
        )
    hosts = call(["scontrol", "show", "hostnames", nodes]).split()
    counts: list[int] = []
    for part in os.environ.get("SLURM_TASKS_PER_NODE", "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ConfigError(f"SLURM_TASKS_PER_NODE={part!r} cannot be read: name --workers N")
        counts += [int(match[1])] * int(match[2] or 1)
    counts += [counts[-1]] * (len(hosts) - len(counts))
    return list(zip(hosts, counts, strict=False))
