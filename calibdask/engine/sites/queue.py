"""What batch systems have in common: their commands are called, their jobs wait, run and end."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Queue",
    "QueuedJob",
    "ask",
    "call",
    "check_line",
    "check_option",
    "find_commands",
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


def check_option(section: str, name: str, value: object) -> None:
    """Check that an option of worker jobs does no more in a job script than it is for.

    Parameters
    ----------
    section : str
        Section of the configuration that the option is in.
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
        check_line(f"{section}.{name}", text)
        if name in _WORDS and (found := _SYNTAX.search(_VARIABLE.sub("", text))):
            raise ConfigError(
                f"{section}.{name}: {text!r} would be read as shell ({found[0]}); leave that out,"
                f" or put lines of shell into {section}.job_script_prologue"
            )
        if name in ("worker_extra_args", "extra") and text.startswith("--local-directory"):
            raise ConfigError(
                f"{section}.{name}: {text!r}: give the directory as {section}.local_directory,"
                " below which workers get one that is theirs alone"
            )


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that the batch system still has.

    Attributes
    ----------
    state : str
        Name of its state, ``PENDING`` while it waits, e.g. ``PENDING`` or ``RUNNING``.
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


class Queue(Protocol):
    """A batch system; a module with these functions will do."""

    def submit(self, script: str, name: str) -> str:
        """Submit a batch script and give the job's id.

        Raises
        ------
        ConfigError
            The batch system refuses it.
        TransientError
            It does not answer, or takes no more jobs now.
        """
        ...

    def alive(self, jobs: Iterable[str]) -> Mapping[str, QueuedJob]:
        """Return those of some jobs that wait or run.

        Raises
        ------
        CalibdaskError
            The batch system fails: nothing is known about any job.
        """
        ...

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs; those that have ended already do not matter."""
        ...

    def node_of(self, job: str) -> str | None:
        """Return the node that a job runs or ran on, if it is known."""
        ...

    def logs_of(self, job: str) -> list[Path]:
        """Return the log files of a job, errors first, as far as they are known."""
        ...

    def explain_end(self, job: str) -> str:
        """Describe where a job was, how it ended, and what its logs say last."""
        ...


def call(command: Sequence[str], text: str | None = None, *, cwd: Path | None = None) -> str:
    """Call a command of a batch system and return what it printed.

    Raises
    ------
    ConfigError
        There is no such command.
    TransientError
        It gave no answer, or says that it may succeed later.
    CalibdaskError
        It failed.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False,
            timeout=_TIMEOUT_SECONDS, cwd=cwd,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise not_here(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{command[0]} gave no answer in {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        kind = TransientError if _PASSING.search(said) else CalibdaskError
        raise kind(f"{command[0]} failed: {said}")
    return done.stdout


def find_commands(*commands: str) -> None:
    """Check that commands are on the path; none is called.

    Raises
    ------
    ConfigError
        One of them is not.
    """
    for command in commands:
        if shutil.which(command) is None:
            raise not_here(command)


def not_here(command: str) -> ConfigError:
    """Return the error for a command that is not on the path."""
    return ConfigError(
        f"there is no {command} here: run on a login node of the cluster, or load the module that"
        " provides the batch system's commands"
    )


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


def ask(*command: str, text: str | None = None) -> tuple[int, str]:
    """Return the exit code of a command and all that it printed."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} gave no answer in 60 s"
    except OSError as error:
        return 1, f"{command[0]}: {error.strerror}"
    return done.returncode, (done.stdout + done.stderr).strip()
