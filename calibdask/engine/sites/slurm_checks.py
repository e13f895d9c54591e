"""Checks of a SLURM before a campaign: commands, controller, partitions, submission."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calibdask.engine.sites.findings import Finding, failed, passed, warned
from calibdask.engine.sites.queue import ask
from calibdask.engine.sites.slurm_commands import parse_walltime
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Request", "check_commands", "check_controller", "check_environment", "check_partition",
    "check_submission", "check_system",
]  # fmt: skip

_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
_OVERRIDING = [
    f"SBATCH_{name}"
    for name in ("ACCOUNT", "CONSTRAINT", "EXCLUSIVE", "EXPORT", "MEM_PER_CPU", "MEM_PER_NODE",
                 "PARTITION", "QOS", "RESERVATION", "TIMELIMIT")
]  # fmt: skip


def check_commands() -> Finding:
    """Check that SLURM's commands are there, of one version."""
    absent = [name for name in _COMMANDS if shutil.which(name) is None]
    if absent:
        return failed(
            f"not on PATH: {', '.join(absent)}",
            "run on a login node of the cluster, or load the module that provides SLURM's commands",
        )
    found = {name: ask(name, "--version") for name in _COMMANDS}
    broken = [f"{name}: {said}" for name, (code, said) in found.items() if code]
    if broken:
        return failed(f"{'; '.join(broken)}", "mend the installation of SLURM on this machine")
    names: dict[str, list[str]] = {}
    for name, (_, version) in found.items():
        names.setdefault(version, []).append(name)
    what = "; ".join(f"{', '.join(same)}: {version}" for version, same in names.items())
    if len(names) > 1:
        return warned(what, "PATH mixes two installations of SLURM: put one first")
    return passed(what)


def check_controller() -> Finding:
    """Check that SLURM answers."""
    code, said = ask("scontrol", "ping")
    if code or " UP" not in said:
        return failed(
            f"SLURM's controller does not answer: {said}",
            "try again later, or see whether SLURM_CONF names the right configuration",
        )
    return passed(said.splitlines()[0])


def check_system() -> Iterator[Finding]:
    """Check commands and controller, up to the first failure."""
    for check in (check_commands, check_controller):
        yield (finding := check())
        if finding.level == "FAIL":
            return


def check_environment() -> Finding | None:
    """Look for variables that win over what the worker jobs ask for."""
    names = [name for name in _OVERRIDING if name in os.environ]
    if not names:
        return None
    given = ", ".join(f"{name}={os.environ[name]}" for name in names)
    return warned(
        f"{given}: sbatch takes this instead of what worker jobs say",
        f"unset {' '.join(names)}, and use the Slurm section of the configuration",
    )


@dataclass(frozen=True)
class Request:
    """What a worker job asks of SLURM, read from its script.

    Attributes
    ----------
    script : str
        The whole script.
    partitions : tuple of str
        Where it may run; empty means the default partition.
    cpus : int
        Processors on one node.
    memory : int or None
        MiB on one node; None where it takes what the partition gives, or a whole node.
    seconds : float or None
        Its time limit; None where it takes the partition's.
    """

    script: str
    partitions: tuple[str, ...]
    cpus: int
    memory: int | None
    seconds: float | None

    @property
    def header(self) -> list[str]:
        """Its lines for sbatch."""
        return [line for line in self.script.splitlines() if line.startswith("#SBATCH")]

    @classmethod
    def read(cls, script: str) -> Request:
        """Read a job script."""
        parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
        parser.add_argument("-p", "--partition")
        parser.add_argument("-t", "--time")
        parser.add_argument("-c", "--cpus-per-task", type=int, default=1)
        parser.add_argument("-n", "--ntasks", type=int, default=1)
        parser.add_argument("-N", "--nodes", default="1")
        parser.add_argument("--mem")
        parser.add_argument("--mem-per-cpu")
        lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        try:
            words = [word for line in lines for word in shlex.split(line)[1:]]
            asked, _ = parser.parse_known_args(words)
        except (ValueError, argparse.ArgumentError) as error:
            raise ConfigError(
                f"the header of a worker job cannot be read ({error}): {' '.join(lines)}"
            ) from error
        cpus = asked.cpus_per_task * asked.ntasks
        memory = _mebibytes(asked.mem)
        if memory is None and (each := _mebibytes(asked.mem_per_cpu)) is not None:
            memory = each * cpus
        return cls(
            script=script,
            partitions=tuple(asked.partition.split(",")) if asked.partition else (),
            cpus=cpus,
            memory=memory,
            seconds=parse_walltime(asked.time) if asked.time else None,
        )


def _mebibytes(text: str | None) -> int | None:
    """Read an amount of memory as sbatch does."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", (text or "").upper())
    if match is None or match[1] == "0":
        return None
    kibibytes: int = int(match[1]) * 1024 ** "KMGT".index(match[2] or "M")
    return -(-kibibytes // 1024)


@dataclass(frozen=True)
class Nodes:
    """Some nodes of a partition that are alike."""

    cpus: int
    memory: int
    count: int
    state: str

    @property
    def usable(self) -> bool:
        """Whether they take jobs, now or when others have ended."""
        bad = self.state.startswith(("down", "drain", "fail", "unknown"))
        return not bad and not self.state.endswith("*")


def check_partition(request: Request) -> Finding:
    """Check that the partition exists, is up, and that time, memory and processors fit."""
    code, said = ask("scontrol", "--oneliner", "show", "partition")
    if code:
        return failed(f"scontrol show partition: {said}", "ask the site's administrators")
    facts = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in said.splitlines()]
    known = {one["PartitionName"]: one for one in facts if "PartitionName" in one}
    default = [name for name, one in known.items() if one.get("Default") == "YES"]
    wanted = request.partitions or tuple(default)
    if not wanted:
        return failed(
            "no partition is named and the site has no default one",
            f"name one with --set Slurm.queue=NAME; there are {', '.join(known)}",
        )
    findings = [_check_one(name, known, request) for name in wanted]
    # Of several partitions SLURM takes the one that can start the job first.
    order = {"PASS": 0, "WARN": 1, "FAIL": 2}
    best = min(findings, key=lambda finding: order[finding.level])
    worse = [finding.what for finding in findings if order[finding.level] > order[best.level]]
    return replace(best, what="; ".join([best.what, *worse]))


def _check_one(name: str, known: Mapping[str, Mapping[str, str]], request: Request) -> Finding:
    if name not in known:
        return failed(
            f"partition {name}: there is none",
            f"choose with --set Slurm.queue=NAME; there are {', '.join(known)}",
        )
    facts = known[name]
    if facts.get("State") != "UP":
        return failed(
            f"partition {name}: is {facts.get('State')}",
            f"choose another with --set Slurm.queue=NAME; there are {', '.join(known)}",
        )
    limit = parse_walltime(facts.get("MaxTime", "UNLIMITED"))
    if limit is not None and request.seconds is not None and request.seconds > limit:
        return failed(
            f"partition {name}: allows {facts['MaxTime']}, worker jobs ask for"
            f" {_clock(request.seconds)} and would wait for ever",
            f"--set Slurm.walltime={_clock(limit)}, or another partition with --set"
            " Slurm.queue=NAME",
        )
    _, said = ask("sinfo", "-h", "-e", "-p", name, "-o", "%c|%m|%D|%T")
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 3]
    groups = [Nodes(int(c), int(m), int(n), state) for c, m, n, state in rows]
    if not groups:
        return failed(f"partition {name}: has no nodes ({said or 'sinfo lists none'})", _OTHER)
    cpus = min(_limit(facts, "MaxCPUsPerNode"), max(group.cpus for group in groups))
    memory = min(_limit(facts, "MaxMemPerNode"), max(group.memory for group in groups))
    asks = f"{request.cpus} processors" + (f" and {request.memory} MiB" if request.memory else "")
    if request.cpus > cpus:
        return failed(
            f"partition {name}: its nodes have at most {cpus:.0f} processors, a worker job asks"
            f" for {request.cpus}",
            f"--set Slurm.cores={cpus:.0f}, or another partition with --set Slurm.queue=NAME",
        )
    if request.memory is not None and request.memory > memory:
        return failed(
            f"partition {name}: its nodes have at most {memory:.0f} MiB, a worker job asks for"
            f" {request.memory} MiB",
            f"--set Slurm.memory={memory:.0f}MiB with fewer cores, or another partition",
        )
    fit = [
        one for one in groups if one.cpus >= request.cpus and one.memory >= (request.memory or 0)
    ]
    usable = sum(one.count for one in fit if one.usable)
    what = f"partition {name}: {usable} usable nodes fit a worker job of {asks}"
    if request.seconds is not None:
        what += f" for {_clock(request.seconds)} (limit {facts.get('MaxTime', 'unknown')})"
    if not fit:
        return failed(f"partition {name}: no node has {asks} at once", _OTHER)
    if not usable:
        states = ", ".join(sorted({one.state for one in fit}))
        return warned(f"{what}: those that would are {states}", "wait, or see 'sinfo -R'")
    return passed(what)


_OTHER = "choose another partition with --set Slurm.queue=NAME ('sinfo' lists them)"


def _limit(facts: Mapping[str, str], name: str) -> float:
    text = facts.get(name, "")
    return float(text) if text.isdecimal() and text != "0" else float("inf")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def check_submission(request: Request) -> Finding:
    """Let SLURM say whether it would take a worker job."""
    code, said = ask("sbatch", "--test-only", text=request.script)
    asked = " ".join(line.removeprefix("#SBATCH ") for line in request.header)
    if code:
        return failed(
            f"sbatch would refuse a worker job: {said}",
            f"a worker job asks for: {asked}; change the Slurm section of the configuration",
        )
    start = re.search(r"to start at (\S+)", said)
    return passed(f"sbatch takes a worker job{f', to start at {start[1]}' if start else ''}")
