"""Talking to SLURM by its own commands: sbatch, squeue, scancel, scontrol.

``sacct`` is left alone: many sites keep no accounting database. Where a job is, squeue tells while
it lives and scontrol for some minutes after its end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "QueuedJob",
    "alive",
    "cancel",
    "check_line",
    "check_option",
    "describe",
    "explain_end",
    "hosts_of_allocation",
    "parse_walltime",
    "submit",
    "tail",
]

_TIMEOUT_SECONDS = 60
_LOG_LINES = 12
# What sbatch says when trying again may help: the controller is busy or restarting.
_PASSING = re.compile(
    r"timed out|unable to contact|temporarily|try(ing)? again|connection refused"
    r"|zero bytes were transmitted|job submit limit|QOSMaxSubmitJob|AssocMaxSubmitJob",
    re.IGNORECASE,
)


_SHELL = ("job_script_prologue", "env_extra")
"""Options that are lines of shell."""

_WORDS = (
    "cores", "death_timeout", "extra", "interface", "local_directory", "memory", "processes",
    "python", "worker_extra_args",
)  # fmt: skip
"""Options that become words of a command in the job script."""

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_SYNTAX = re.compile(r"[$`;&|<>()'\"\\*?!#{}]")


def check_line(name: str, value: str) -> None:
    """Check that a value stays within its line of a batch script.

    Parameters
    ----------
    name : str
        What is given, for people.
    value : str
        Its value.

    Raises
    ------
    ConfigError
        It holds a line break or another control character.
    """
    if not value.isprintable():
        raise ConfigError(
            f"{name}: {value!r} holds a line break or a control character, and what comes after it"
            " would be run as shell; give it in one line"
        )


def check_option(name: str, value: object) -> None:
    """Check that an option of worker jobs does no more in a job script than it is for.

    Parameters
    ----------
    name : str
        Name of the option.
    value : object
        Its value; each of a list is checked.

    Raises
    ------
    ConfigError
        It would be read as shell. Variables are allowed: they have their values on the node.
    """
    if name in _SHELL:
        return
    for one in value if isinstance(value, list | tuple) else [value]:
        text = str(one)
        check_line(f"Slurm.{name}", text)
        if name in _WORDS and (found := _SYNTAX.search(_VARIABLE.sub("", text))):
            raise ConfigError(
                f"Slurm.{name}: {text!r} would be read as shell ({found[0]}); leave that out, or"
                " put lines of shell into Slurm.job_script_prologue"
            )
        if name in ("worker_extra_args", "extra") and text.startswith("--local-directory"):
            raise ConfigError(
                f"Slurm.{name}: {text!r}: give the directory as Slurm.local_directory, below which"
                " workers get one that is theirs alone"
            )


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that SLURM still has.

    Attributes
    ----------
    state : str
        SLURM's name of its state, e.g. ``PENDING`` or ``RUNNING``.
    reason : str
        Why it waits.
    nodes : str
        Where it runs.
    """

    state: str
    reason: str
    nodes: str

    @property
    def started(self) -> bool:
        """Whether it has left the queue."""
        return self.state != "PENDING"


def _call(command: Sequence[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False,
            timeout=_TIMEOUT_SECONDS,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise _not_here(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{command[0]} gave no answer in {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        kind = TransientError if _PASSING.search(said) else CalibdaskError
        raise kind(f"{command[0]} failed: {said}")
    return done.stdout


def check_commands() -> None:
    """Check that SLURM's commands can be called here; it is not asked anything.

    Raises
    ------
    ConfigError
        One of them is not on the path.
    """
    for command in ("sbatch", "squeue", "scancel", "scontrol"):
        if shutil.which(command) is None:
            raise _not_here(command)


def _not_here(command: str) -> ConfigError:
    return ConfigError(
        f"there is no {command} here: run on a login node of the cluster, or load the module that"
        " provides SLURM's commands"
    )


def submit(script: str) -> str:
    """Submit a batch script and give the job's id.

    Raises
    ------
    ConfigError
        SLURM refuses it, e.g. because there is no such partition.
    TransientError
        SLURM does not answer, or takes no more jobs now.
    """
    try:
        answer = _call(["sbatch", "--parsable"], script)
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
    lines = _call(["squeue", "-h", f"--user={os.getuid()}", "--format=%A|%T|%r|%N"]).splitlines()
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
        _call(["scancel", "--quiet", *numbers])


def describe(job: str) -> Mapping[str, str]:
    """Return what scontrol knows of a job; nothing if SLURM has forgotten it."""
    try:
        answer = _call(["scontrol", "show", "job", "--oneliner", job])
    except CalibdaskError:
        return {}
    # Values may hold spaces; names, which begin with a capital letter, do not.
    pairs = re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", answer)
    facts = dict(pairs)
    for name in ("StdErr", "StdOut"):  # scontrol leaves some patterns in the names of files
        if name in facts:
            facts[name] = re.sub("%[jJA]", job, facts[name])
    return facts


def tail(path: Path) -> str:
    """Return the last lines of a log, indented; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line for line in lines if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])


def explain_end(job: str, logs: Sequence[Path] = ()) -> str:
    """Say where a job was, how it ended, and what its logs say last.

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
    hosts = _call(["scontrol", "show", "hostnames", nodes]).split()
    counts: list[int] = []
    for part in os.environ.get("SLURM_TASKS_PER_NODE", "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ConfigError(f"SLURM_TASKS_PER_NODE={part!r} cannot be read: name --workers N")
        counts += [int(match[1])] * int(match[2] or 1)
    counts += [counts[-1]] * (len(hosts) - len(counts))
    return list(zip(hosts, counts, strict=False))
