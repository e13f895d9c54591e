"""Batch scripts for whole campaigns: scheduler, client and workers in one SLURM job.

For sites where compute nodes may not submit jobs, or where nothing may run on login nodes. The
script is written for people: it is short, says what it does, and may be edited.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.engine.sites.queue import check_line
from calibdask.engine.sites.slurm_commands import parse_walltime
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BatchJob"]

_MOST_RESTARTS = 50  # a campaign that does not come to an end must not go round for ever

_SCRIPT = """\
#!/usr/bin/env bash
{directives}

# {what}
# What is computed is stored in the work directory: submit this file again to carry on.

{warning} Either way the run stops, keeps what it has, and ends with code 143.
run=
told=
{traps}

{setup}{command} &
run=$!
if [ "$told" ]; then kill -TERM "$run"; fi # before there was anything to stop

told=yes
while [ "$told" ]; do # a signal ends the waiting, not what is waited for
  told=
  wait "$run"
  code=$?
done
{requeue}
exit "$code"
"""

_STOP = """\
trap 'told=yes; [ ! "$run" ] || kill -TERM "$run" 2>/dev/null' TERM USR1"""

_STOP_OR_REQUEUE = """\
limit=
trap 'told=yes; [ ! "$run" ] || kill -TERM "$run" 2>/dev/null' TERM
trap 'told=yes; limit=reached; [ ! "$run" ] || kill -TERM "$run" 2>/dev/null' USR1"""

_REQUEUE = """\

# The time limit is no reason to stop: the job goes back into the queue and carries on.
if [ "$limit" ] && [ "$code" -eq 143 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
"""


@dataclass(frozen=True)
class BatchJob:
    """What a campaign's batch job asks of SLURM.

    Attributes
    ----------
    command : sequence of str
        What runs: ``calibdask JOB ... --cluster allocation`` (or ``slurm`` for a head job that
        submits its workers).
    nodes : int
        Nodes of the job.
    workers_per_node : int
        Worker processes on each.
    time : str
        Time limit, in SLURM's notation.
    memory_per_worker : str, optional
        In SLURM's notation, e.g. ``4G``.
    requeue : bool
        Go back into the queue at the time limit and carry on.
    directives : sequence of str
        More options of sbatch, e.g. ``--account=cta``.
    setup : sequence of str
        Lines of shell that set up the environment.
    """

    command: Sequence[str]
    nodes: int
    workers_per_node: int
    time: str
    memory_per_worker: str | None = None
    requeue: bool = False
    directives: Sequence[str] = ()
    setup: Sequence[str] = ()

    def script(self) -> str:
        """Write the script.

        Raises
        ------
        ConfigError
            The time limit is none, or too short to stop in good order; an option would add lines of
            its own.
        """
        seconds = parse_walltime(self.time)
        if seconds is not None and seconds < 60:
            raise ConfigError(f"--time {self.time}: SLURM counts in minutes, one is the least")
        # SLURM may be a minute late or early; half the time must be left for work.
        lead = 120.0 if seconds is None else min(120.0, 0.5 * seconds)
        job = self.command[1]
        lines = [
            f"--job-name={job}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.workers_per_node}",
            "--cpus-per-task=1",
            *([f"--mem-per-cpu={self.memory_per_worker}"] if self.memory_per_worker else []),
            f"--time={self.time}",
            f"--signal=B:USR1@{lead:.0f}",
            "--output=%x-%j.log",
            "--open-mode=append",
            # A node that fails takes its workers with it, not the campaign.
            *(["--no-kill"] if self.nodes > 1 else []),
            "--requeue" if self.requeue else "--no-requeue",
            *self.directives,
        ]
        warning = (
            f"# SLURM sends USR1 to this shell {lead:.0f} s before the time limit, and TERM when"
            " the job is\n# cancelled or preempted."
        )
        return self.render("#SBATCH", lines, "", warning)

    def render(self, prefix: str, lines: Sequence[str], before: str, warning: str) -> str:
        """Write the script with the options of a batch system.

        Parameters
        ----------
        prefix : str
            Beginning of a line of options.
        lines : sequence of str
            The options.
        before : str
            A line of shell to begin with; may be empty.
        warning : str
            A comment that says when the batch system sends which signal.

        Raises
        ------
        ConfigError
            An option would add lines of its own.
        """
        for line in lines:
            check_line("sbatch-script", line)
        job = self.command[1]
        words = list(self.command)
        words[0] = shlex.quote(str(Path(words[0])))
        workers = self.nodes * self.workers_per_node
        if "allocation" in self.command:
            what = f"{workers} workers on {self.nodes} nodes, scheduler and client on the first."
        else:
            what = "scheduler and client; the workers are jobs of their own."
        setup = [*([before] if before else []), *self.setup]
        return _SCRIPT.format(
            directives="\n".join(f"{prefix} {line}" for line in lines),
            what=f"calibdask {job}: {what}",
            setup="".join(f"{line}\n" for line in (*setup, "") if setup),
            command=" \\\n  ".join([words[0] + " " + job, *_options(words[2:])]),
            warning=warning,
            traps=_STOP_OR_REQUEUE if self.requeue else _STOP,
            requeue=_REQUEUE.format(most=_MOST_RESTARTS) if self.requeue else "",
        )


def _options(words: Sequence[str]) -> list[str]:
    """Put each option with its values on a line of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return lines
