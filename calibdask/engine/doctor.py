"""Checks a machine or a site before a campaign does: what would fail there, and what to do.

Each check gives one `Finding`, or some. Nothing is changed: what is written is removed again, and
the probe job is cancelled if it has not ended.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hmac
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calibdask.access import check_private
from calibdask.config import ENGINE_SECTIONS, Campaign, Slurm, load_config, load_yaml
from calibdask.engine import cluster, probe, slurm
from calibdask.engine.cluster import Site, WorkerJob
from calibdask.engine.lock import STALE_SECONDS
from calibdask.engine.places import REMEDY
from calibdask.engine.provenance import code_digest, versions
from calibdask.errors import CalibdaskError, ConfigError
from calibdask.stats.compiled import cache_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Finding", "Level", "examine", "site_of"]

type Level = Literal["PASS", "WARN", "FAIL"]

_GIB = 1024**3
_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
_LITTLE_MEMORY = _GIB  # a worker with its imports takes some 150 MiB before it reads anything
_LITTLE_SPACE = 10 * _GIB
_FEW_INODES = 100_000
_SLOW_IMPORT_SECONDS = 20.0
_SKEW_SECONDS = 5.0
_SILENT_SECONDS = 300.0  # that a probe may run without having reported
_LATE_SECONDS = 10.0  # that a network file system may take to show a file
_NETWORK_FILE_SYSTEMS = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|panfs|cifs|afs|fuse\.sshfs")
_OVERRIDING = [
    f"SBATCH_{name}"
    for name in ("ACCOUNT", "CONSTRAINT", "EXCLUSIVE", "EXPORT", "MEM_PER_CPU", "MEM_PER_NODE",
                 "PARTITION", "QOS", "RESERVATION", "TIMELIMIT")
]  # fmt: skip
_WORKER_MODULES = ("distributed", "calibdask.engine.tasks")
_BUSY = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    level : {"PASS", "WARN", "FAIL"}
        FAIL: a campaign would not run. WARN: it may run badly.
    what : str
        What was seen.
    remedy : str
        What to do; empty where all is well.
    """

    level: Level
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.level}  {self.what}"
        return f"{text}\n      -> {self.remedy}" if self.remedy else text


def _passed(what: str) -> Finding:
    return Finding("PASS", what)


def _warned(what: str, remedy: str) -> Finding:
    return Finding("WARN", what, remedy)


def _failed(what: str, remedy: str) -> Finding:
    return Finding("FAIL", what, remedy)


def site_of(config: Sequence[Path], overrides: Mapping[str, object], workdir: Path | None) -> Site:
    """Read from a job's configuration what concerns the cluster.

    Parameters
    ----------
    config : sequence of Path
        YAML files, as for a job; the sections of the job itself are not looked at.
    overrides : mapping of str to object
        Options by dotted path, which win.
    workdir : Path, optional
        Where the campaign would work.

    Raises
    ------
    ConfigError
        A file cannot be read, or an option is wrong.
    """
    flat: dict[str, object] = {}
    for name, section in load_yaml(config).items():
        if name not in ENGINE_SECTIONS or section is None:
            continue
        if isinstance(section, dict):
            flat |= {f"{name}.{option}": value for option, value in section.items()}
        else:
            flat[name] = section
    found = load_config(ENGINE_SECTIONS, [], flat | dict(overrides))
    return Site(
        worker_memory=found.get("Campaign", Campaign).worker_memory,
        workdir=workdir,
        slurm=found.get("Slurm", Slurm).model_extra or {},
    )


def examine(where: str, site: Site, *, patience: float = 120.0) -> Iterator[Finding]:
    """Check whether a campaign would run.

    Parameters
    ----------
    where : {"local", "slurm", "allocation"}
        The kind of cluster.
    site : Site
        What the campaign would be told about it; its work directory is the present directory
        unless given, and need not exist.
    patience : float
        Seconds that the probe job may wait in the queue.

    Yields
    ------
    Finding
        As soon as it is found.

    Raises
    ------
    ConfigError
        The options are no options, or `where` is ``allocation`` outside a SLURM job.
    """
    if where == "allocation":
        slurm.hosts_of_allocation()
    yield check_packages(versions())
    yield check_cache()
    place = _existing(site.workdir or Path.cwd())
    if site.workdir is not None and (strange := check_owner(site.workdir)) is not None:
        yield strange
    try:
        held = tempfile.TemporaryDirectory(
            prefix=".calibdask-doctor-",
            dir=place,
            ignore_cleanup_errors=True,  # NFS keeps a file for a while that a node has open
        )
    except OSError as error:
        yield _failed(
            f"work directory {place}: cannot be written into: {error.strerror}",
            "choose another with --workdir",
        )
        return
    with held as name:
        directory = Path(name).absolute()
        yield from check_directory(directory)
        if where == "local":
            yield check_machine(cluster.available_cpus(), cluster.available_memory())
        else:
            yield from _examine_slurm(where, replace(site, workdir=directory), patience)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


# -- this machine -------------------------------------------------------------------------------


def check_packages(found: Mapping[str, str]) -> Finding:
    """Check that the libraries are there."""
    absent = [name for name, version in found.items() if version == "absent"]
    if absent:
        return _failed(
            f"{sys.executable}: has no {', '.join(absent)}",
            "install calibdask with its requirements: pip install calibdask",
        )
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    return _passed(f"{sys.executable}: {names}")


def check_cache() -> Finding:
    """Check that nobody else can put code into the cache of compiled kernels."""
    if problem := cache_problem():
        what, _, remedy = problem.partition("; ")
        return _warned(f"cache of compiled kernels: {what}", remedy)
    return _passed("the cache of compiled kernels is yours alone")


def check_owner(workdir: Path) -> Finding | None:
    """Check that an existing work directory is one that a run would take."""
    try:
        check_private(workdir, remedy=REMEDY)
    except ConfigError as error:
        what, _, remedy = str(error).partition("; ")
        return _failed(f"work directory {what}", remedy)
    return None


def check_machine(cpus: int, memory: int) -> Finding:
    """Check processors and memory for local workers, one for each processor."""
    what = f"{cpus} processors, {memory / _GIB:.1f} GiB of memory free"
    if memory < _LITTLE_MEMORY:
        return _failed(what, "a worker needs more than 1 GiB: stop other programs")
    if memory < cpus * _LITTLE_MEMORY:
        most = memory // _LITTLE_MEMORY
        return _warned(f"{what}: less than 1 GiB for each", f"use --workers {most}")
    return _passed(what)


def check_directory(directory: Path) -> Iterator[Finding]:
    """Check that a directory can do what the store, the lock and the certificates need."""
    where = f"work directory {directory.parent}"
    elsewhere = "choose a --workdir on another file system"
    first, second = directory / "first", directory / "second"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        os.close(os.open(first, flags, 0o600))
        if first.stat().st_mode & 0o077:
            yield _failed(
                f"{where}: knows no permissions, so the run's key would be open", elsewhere
            )
        try:
            os.close(os.open(first, flags))
        except FileExistsError:
            pass
        else:
            yield _failed(f"{where}: O_EXCL lets two create one file, so no lock holds", elsewhere)
        second.write_bytes(b"calibdask")
        with second.open("rb+") as file:
            os.fsync(file.fileno())
        second.replace(first)
        if second.exists() or first.read_bytes() != b"calibdask":
            yield _failed(f"{where}: a rename does not replace a file", elsewhere)
            return
        yield _check_link(where, first, second)
        yield _check_space(where, os.statvfs(directory))
    except OSError as error:
        yield _failed(f"{where}: {error.strerror or error}", elsewhere)


def _check_link(where: str, first: Path, second: Path) -> Finding:
    try:
        os.link(first, second)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
        return _warned(
            f"{where}: writable, but knows no hard links; renames are used instead",
            "nothing, unless two runs could share a store",
        )
    return _passed(f"{where}: writable; exclusive creation, renames and hard links work")


def _check_space(where: str, status: os.statvfs_result) -> Finding:
    free = status.f_bavail * status.f_frsize
    what = f"{where}: {free / _GIB:.1f} GiB free"
    # Some file systems make inodes as needed and count none.
    inodes = status.f_favail if status.f_files else None
    if inodes is not None:
        what += f", {inodes} more files possible"
    remedy = "'calibdask plan' tells what a campaign needs; make room or choose another --workdir"
    if free == 0 or inodes == 0:
        return _failed(what, remedy)
    if free < _LITTLE_SPACE or (inodes is not None and inodes < _FEW_INODES):
        return _warned(what, remedy)
    return _passed(what)


# -- SLURM, from here -----------------------------------------------------------------------------


def _ask(*command: str, text: str | None = None) -> tuple[int, str]:
    """Run one of SLURM's commands; give its exit code and all that it said."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} gave no answer in 60 s"
    except OSError as error:
        return 1, f"{command[0]}: {error.strerror}"
    return done.returncode, (done.stdout + done.stderr).strip()


def check_commands() -> Finding:
    """Check that SLURM's commands are there, of one version."""
    absent = [name for name in _COMMANDS if shutil.which(name) is None]
    if absent:
        return _failed(
            f"not on PATH: {', '.join(absent)}",
            "run on a login node of the cluster, or load the module that provides SLURM's commands",
        )
    found = {name: _ask(name, "--version") for name in _COMMANDS}
    broken = [f"{name}: {said}" for name, (code, said) in found.items() if code]
    if broken:
        return _failed(f"{'; '.join(broken)}", "mend the installation of SLURM on this machine")
    names: dict[str, list[str]] = {}
    for name, (_, version) in found.items():
        names.setdefault(version, []).append(name)
    what = "; ".join(f"{', '.join(same)}: {version}" for version, same in names.items())
    if len(names) > 1:
        return _warned(what, "PATH mixes two installations of SLURM: put one first")
    return _passed(what)


def check_controller() -> Finding:
    """Check that SLURM answers."""
    code, said = _ask("scontrol", "ping")
    if code or " UP" not in said:
        return _failed(
            f"SLURM's controller does not answer: {said}",
            "try again later, or see whether SLURM_CONF names the right configuration",
        )
    return _passed(said.splitlines()[0])


def check_environment() -> Finding | None:
    """Look for variables that win over what the worker jobs ask for."""
    names = [name for name in _OVERRIDING if name in os.environ]
    if not names:
        return None
    given = ", ".join(f"{name}={os.environ[name]}" for name in names)
    return _warned(
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
            seconds=slurm.parse_walltime(asked.time) if asked.time else None,
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
    code, said = _ask("scontrol", "--oneliner", "show", "partition")
    if code:
        return _failed(f"scontrol show partition: {said}", "ask the site's administrators")
    facts = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in said.splitlines()]
    known = {one["PartitionName"]: one for one in facts if "PartitionName" in one}
    default = [name for name, one in known.items() if one.get("Default") == "YES"]
    wanted = request.partitions or tuple(default)
    if not wanted:
        return _failed(
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
        return _failed(
            f"partition {name}: there is none",
            f"choose with --set Slurm.queue=NAME; there are {', '.join(known)}",
        )
    facts = known[name]
    if facts.get("State") != "UP":
        return _failed(
            f"partition {name}: is {facts.get('State')}",
            f"choose another with --set Slurm.queue=NAME; there are {', '.join(known)}",
        )
    limit = slurm.parse_walltime(facts.get("MaxTime", "UNLIMITED"))
    if limit is not None and request.seconds is not None and request.seconds > limit:
        return _failed(
            f"partition {name}: allows {facts['MaxTime']}, worker jobs ask for"
            f" {_clock(request.seconds)} and would wait for ever",
            f"--set Slurm.walltime={_clock(limit)}, or another partition with --set"
            " Slurm.queue=NAME",
        )
    _, said = _ask("sinfo", "-h", "-e", "-p", name, "-o", "%c|%m|%D|%T")
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 3]
    groups = [Nodes(int(c), int(m), int(n), state) for c, m, n, state in rows]
    if not groups:
        return _failed(f"partition {name}: has no nodes ({said or 'sinfo lists none'})", _OTHER)
    cpus = min(_limit(facts, "MaxCPUsPerNode"), max(group.cpus for group in groups))
    memory = min(_limit(facts, "MaxMemPerNode"), max(group.memory for group in groups))
    asks = f"{request.cpus} processors" + (f" and {request.memory} MiB" if request.memory else "")
    if request.cpus > cpus:
        return _failed(
            f"partition {name}: its nodes have at most {cpus:.0f} processors, a worker job asks"
            f" for {request.cpus}",
            f"--set Slurm.cores={cpus:.0f}, or another partition with --set Slurm.queue=NAME",
        )
    if request.memory is not None and request.memory > memory:
        return _failed(
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
        return _failed(f"partition {name}: no node has {asks} at once", _OTHER)
    if not usable:
        states = ", ".join(sorted({one.state for one in fit}))
        return _warned(f"{what}: those that would are {states}", "wait, or see 'sinfo -R'")
    return _passed(what)


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
    code, said = _ask("sbatch", "--test-only", text=request.script)
    asked = " ".join(line.removeprefix("#SBATCH ") for line in request.header)
    if code:
        return _failed(
            f"sbatch would refuse a worker job: {said}",
            f"a worker job asks for: {asked}; change the Slurm section of the configuration",
        )
    start = re.search(r"to start at (\S+)", said)
    return _passed(f"sbatch takes a worker job{f', to start at {start[1]}' if start else ''}")


def find_address(options: Mapping[str, Any]) -> tuple[Finding, str | None]:
    """Find the address that the scheduler would have, as Dask does.

    Parameters
    ----------
    options : mapping
        Those of the scheduler: ``interface`` or ``host``, or none.
    """
    if interface := options.get("interface"):
        return check_interface(str(interface))
    if host := options.get("host"):
        try:
            address = socket.gethostbyname(str(host))
        except OSError as error:
            remedy = "change host in Slurm.scheduler_options"
            return _failed(f"scheduler's host {host}: {error.strerror}", remedy), None
        return _passed(f"scheduler would listen on {address} ({host})"), address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sample:
        try:
            sample.connect(("8.8.8.8", 80))  # nothing is sent: it asks for the way out of here
            address = sample.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    return _passed(f"scheduler would listen on {address} (no interface is named)"), address


def check_interface(name: str) -> tuple[Finding, str | None]:
    """Check that a network interface exists and has an IPv4 address; give that address."""
    found = cluster.ipv4_interfaces()
    if found.get(name):
        return _passed(f"interface {name}: {found[name][0]}"), found[name][0]
    problem = "has no IPv4 address" if name in found else "there is none"
    good = ", ".join(f"{one} ({both[0]})" for one, both in found.items() if both)
    return (
        _failed(f"interface {name}: {problem}", f"--set Slurm.interface=NAME; there are {good}"),
        None,
    )


# -- the probe ------------------------------------------------------------------------------------


class _Post:
    """Takes what probes report, by the network and by files."""

    def __init__(self, address: str, directory: Path) -> None:
        self._token = secrets.token_hex(16)
        self._shared = secrets.token_hex(16)
        self.directory = directory
        self._by_network: dict[str, dict[str, Any]] = {}
        descriptor = os.open(directory / "token", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(self._shared)
        self._server = socket.create_server((address, 0))
        self.address: tuple[str, int] = self._server.getsockname()[:2]
        self._server.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="doctor", daemon=True)
        self._thread.start()

    def task(self, header: Sequence[str]) -> str:
        """Write what the probe is told."""
        return json.dumps(
            {
                "token": self._token,
                "address": self.address,
                "directory": str(self.directory),
                "packages": [name for name in versions() if name not in ("python", "calibdask")],
                "modules": _WORKER_MODULES,
                "header": "\n".join(header),
            }
        )

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()
        self._server.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                connection, peer = self._server.accept()
            except TimeoutError:
                continue
            # Anybody may knock here: what does not know the token is not listened to.
            with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                connection.settimeout(10)
                report = json.loads(connection.makefile("rb").readline(1 << 20))
                arrived = time.time()
                if not hmac.compare_digest(report["token"], self._token):
                    continue
                report["skew"] = float(report["time"]) - arrived
                report["back"] = _knock(peer[0], int(report["port"]))
                self._by_network[str(report["node"])] = report
                connection.sendall(b"\n")

    def answers(self) -> dict[str, dict[str, Any]]:
        """Return the reports by node, with what could be told of how they came."""
        found: dict[str, dict[str, Any]] = {}
        for path in self.directory.glob("answer-*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                report = json.loads(path.read_text(encoding="utf-8"))
                if hmac.compare_digest(report["token"], self._token):
                    found[str(report["node"])] = report | {"by_file": True}
        for node, report in dict(self._by_network).items():
            found[node] = found.get(node, {"by_file": False}) | report
        for report in found.values():
            report["same_token"] = report["shared"].get("token") == self._shared
        return found

    def complete(self, count: int) -> bool:
        """Tell whether all have reported in both ways, or have said that they cannot."""
        answers = self.answers()
        return len(answers) >= count and all(one["by_file"] for one in answers.values())


def _knock(host: str, port: int) -> str:
    """Connect as the scheduler does to a worker; give what went wrong."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


def _probe_source() -> str:
    return Path(probe.__file__).read_text(encoding="utf-8")


def probe_script(script: str, task: str) -> str:
    """Put the probe in the place of the worker in a worker's job script.

    Parameters
    ----------
    script : str
        The worker's; its last line starts ``PYTHON -m MODULE``.
    task : str
        What the probe is told.

    Raises
    ------
    ConfigError
        The last line is another.
    """
    *lines, command = script.rstrip().splitlines()
    python, separator, _ = command.partition(" -m ")
    if not separator:
        raise ConfigError(f"the last line of a worker's job script starts no module: {command}")
    return "\n".join(
        [
            *lines,
            f"export {probe.TASK}={shlex.quote(task)}",
            f"{python} - <<'END_OF_PROBE'",
            _probe_source(),
            "END_OF_PROBE",
            "",
        ]
    )


def _examine_slurm(where: str, site: Site, patience: float) -> Iterator[Finding]:
    commands = check_commands()
    yield commands
    if commands.level == "FAIL":
        return
    controller = check_controller()
    yield controller
    if controller.level == "FAIL":
        return
    findings: list[Finding] = []
    options: Mapping[str, Any] = {}
    script = ""
    if where == "slurm":
        job = WorkerJob.of(site)
        options = job.scheduler_options
        exports = cluster.worker_exports(job, site.workdir or Path.cwd())
        script = job.script("tls://doctor", "doctor", prologue=exports, directives=["--no-requeue"])
        request = Request.read(script)
        for check in (check_partition, check_submission):
            findings.append(check(request))
            yield findings[-1]
        if (environment := check_environment()) is not None:
            yield environment
    found, address = find_address(options)
    findings.append(found)
    yield found
    if address is None or any(finding.level == "FAIL" for finding in findings):
        yield _warned("no probe job was sent, as no worker job could start", "mend the above first")
        return
    directory = site.workdir or Path.cwd()
    try:
        post = _Post(address, directory)
    except OSError as error:
        yield _failed(
            f"cannot listen on {address}: {error.strerror}",
            "name an interface of this machine: --set Slurm.interface=NAME",
        )
        return
    try:
        if where == "slurm":
            yield from _probe_by_job(script, request, post, patience)
        else:
            yield from _probe_by_steps(post)
    finally:
        post.close()


def _probe_by_job(script: str, request: Request, post: _Post, patience: float) -> Iterator[Finding]:
    """Send the probe in a job of its own, in all but its last line a worker's."""
    try:
        job = slurm.submit(probe_script(script, post.task(request.header)))
    except CalibdaskError as error:
        yield _failed(f"the probe job was not taken: {error}", "see what sbatch says above")
        return
    try:
        problem = _watch(job, post, patience)
        answers = post.answers()
        if not answers and problem is not None:
            yield problem
        for node, report in answers.items():
            yield from assess(report, f"job {job} on {node}", post.address, may_submit=True)
    finally:
        facts = slurm.describe(job)
        slurm.cancel([job])
        _wait_until(lambda: not slurm.alive([job]), _LATE_SECONDS)
        for name in ("StdOut", "StdErr"):
            if facts.get(name):
                Path(facts[name]).unlink(missing_ok=True)


def _watch(job: str, post: _Post, patience: float) -> Finding | None:
    """Wait for the probe's report; say why none came."""
    begin = time.monotonic()
    started: float | None = None
    while True:
        queued = slurm.alive([job]).get(job)
        if post.complete(1):
            return None
        now = time.monotonic()
        if queued is None:
            if _wait_until(lambda: post.complete(1), _LATE_SECONDS):
                return None
            return _failed(
                f"the probe job ended without a report: {slurm.explain_end(job)}",
                "a worker job would end the same way: see Slurm.python, Slurm.job_script_prologue,"
                " and whether Slurm.log_directory exists on the node (exit code 0:53)",
            )
        if queued.started:
            started = started or now
            if now - started > _SILENT_SECONDS:
                return _failed(
                    f"the probe job {job} on {queued.nodes} has run for {_SILENT_SECONDS:.0f} s"
                    " without a report",
                    "see whether Python starts on that node, and how long it takes to import",
                )
        elif now - begin > patience:
            return _still_pending(job, queued.reason, patience)
        time.sleep(0.5)


def _still_pending(job: str, reason: str, patience: float) -> Finding:
    what = f"the probe job {job} still waits after {patience:.0f} s: {reason}"
    if reason in _BUSY:
        return _warned(
            f"{what} (the queue is full)",
            "nothing was seen of a node: try again with more --patience, or in another partition",
        )
    return _failed(what, "SLURM's reason says what it waits for: change the Slurm section")


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _probe_by_steps(post: _Post) -> Iterator[Finding]:
    """Send the probe to every node of the allocation that this process runs in."""
    hosts = [host for host, _ in slurm.hosts_of_allocation()]
    command = [
        *("srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"),
        *cluster.BESIDE_OTHERS,
        *(sys.executable, "-c", _probe_source()),
    ]
    environment = cluster.step_environment(post.directory) | {probe.TASK: post.task(())}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=_SILENT_SECONDS,
        )  # fmt: skip
        said = done.stderr.strip()
    except subprocess.TimeoutExpired:
        said = f"not done after {_SILENT_SECONDS:.0f} s"
    _wait_until(lambda: post.complete(len(hosts)), _LATE_SECONDS)
    answers = post.answers()
    for node in sorted(set(hosts) - set(answers)):
        yield _failed(
            f"node {node}: no report from the probe (srun: {said or 'said nothing'})",
            "see whether srun starts Python there",
        )
    for node, report in sorted(answers.items()):
        yield from assess(report, f"node {node}", post.address, may_submit=False)


# -- what a probe saw -----------------------------------------------------------------------------


def assess(
    report: Mapping[str, Any], where: str, address: tuple[str, int], *, may_submit: bool
) -> Iterator[Finding]:
    """Judge what the probe saw on a node.

    Parameters
    ----------
    report : mapping
        What :mod:`calibdask.engine.probe` sent, and how it came.
    where : str
        The node, for people.
    address : (str, int)
        Where the doctor listened.
    may_submit : bool
        Whether it matters that jobs can be submitted there.
    """
    yield check_versions(report, where)
    yield check_code(report, where)
    yield check_shared(report, where)
    yield from check_network(report, where, address[0])
    yield check_threads(report, where)
    yield check_scratch(report, where)
    if may_submit:
        yield check_nested(report, where)


_PYTHON = "give workers this environment: Slurm.python, or activate it in Slurm.job_script_prologue"


def check_versions(report: Mapping[str, Any], where: str) -> Finding:
    """Compare Python and packages."""
    here = {name: version for name, version in versions().items() if name != "calibdask"}
    there = {"python": report["python"], **report["versions"]}
    other = [f"{name} {there.get(name)} (here {version})" for name, version in here.items()
             if there.get(name) != version]  # fmt: skip
    if other:
        return _failed(f"{where}: {report['executable']}: {', '.join(other)}", _PYTHON)
    return _passed(
        f"{where}: Python and {len(here) - 1} packages have the versions of this process"
    )


def check_code(report: Mapping[str, Any], where: str) -> Finding:
    """Compare calibdask itself, and see how long a worker takes to import it."""
    found = report["imported"]
    if "error" in found:
        return _failed(f"{where}: a worker cannot import calibdask: {found['error']}", _PYTHON)
    if found["code"] != code_digest():
        return _failed(
            f"{where}: {found['path']} is calibdask {found['code']}, here it is {code_digest()}",
            f"{_PYTHON}; see PYTHONPATH",
        )
    what = f"{where}: calibdask {found['code']}, imported in {found['seconds']:.1f} s"
    if found["seconds"] > _SLOW_IMPORT_SECONDS:
        return _warned(
            f"{what}: slow",
            "put the environment on a faster or node-local file system, or raise"
            " Slurm.death_timeout",
        )
    return _passed(what)


def check_shared(report: Mapping[str, Any], where: str) -> Finding:
    """Check that both sides see what the other writes."""
    if report["same_token"] and report["by_file"]:
        return _passed(f"{where}: the work directory is shared, both ways")
    what = f"{where}: the work directory is not the same there"
    if not report["same_token"]:
        what += f" ({report['shared'].get('error', 'its files have other contents')})"
    else:
        what += f" (what is written there is not seen here within {_LATE_SECONDS:.0f} s)"
    return _failed(what, "choose a --workdir on a file system that the nodes share")


def check_network(report: Mapping[str, Any], where: str, address: str) -> Iterator[Finding]:
    """Check connections from worker to scheduler and back, and the clock."""
    interface = "name the network that both share: --set Slurm.interface=NAME (see 'ip addr')"
    if "skew" not in report:
        yield _failed(
            f"{where}: cannot reach {address}: {report['network'].get('error')}",
            f"{interface}; or a firewall forbids it: then use --cluster allocation",
        )
        return
    if report["back"]:
        yield _failed(
            f"{where}: reaches {address}, but cannot be reached from here: {report['back']}",
            f"{interface}; or a firewall forbids it: then use --cluster allocation",
        )
    else:
        milliseconds = 1000 * report["network"]["seconds"]
        yield _passed(f"{where}: reaches {address} in {milliseconds:.0f} ms, and the other way")
    skew = abs(report["skew"])
    what = f"{where}: its clock differs by {skew:.1f} s"
    remedy = "ask the site's administrators to synchronise the clocks (NTP)"
    if skew > STALE_SECONDS / 2:
        yield _failed(f"{what}: a lock that is held would look stale", remedy)
    elif skew > _SKEW_SECONDS:
        yield _warned(what, remedy)
    else:
        yield _passed(what)


def check_threads(report: Mapping[str, Any], where: str) -> Finding:
    """Check that libraries use one thread: sums depend on their number."""
    wrong = [f"{name}={value}" for name, value in report["threads"].items() if value != "1"]
    if wrong:
        return _failed(
            f"{where}: a worker would have {', '.join(wrong)}",
            "remove what sets them from Slurm.job_script_prologue: results must not depend on them",
        )
    return _passed(f"{where}: {', '.join(report['threads'])} are 1")


def check_scratch(report: Mapping[str, Any], where: str) -> Finding:
    """Check the place for a worker's temporary files."""
    found = report["scratch"]
    remedy = "name node-local disk: --set Slurm.local_directory=DIR ('$TMPDIR' is often right)"
    if "error" in found:
        return _failed(f"{where}: scratch {found['path']}: {found['error']}", remedy)
    what = (
        f"{where}: scratch {found['path']} ({found['kind']}, {found['free'] / _GIB:.1f} GiB free)"
    )
    if _NETWORK_FILE_SYSTEMS.search(found["kind"]):
        return _warned(f"{what} is not on the node", remedy)
    if found["free"] < _GIB:
        return _warned(what, remedy)
    return _passed(what)


def check_nested(report: Mapping[str, Any], where: str) -> Finding:
    """Check whether jobs may be submitted from a compute node."""
    if "error" in report["sbatch"]:
        return _warned(
            f"{where}: no job can be submitted from there: {report['sbatch']['error']}",
            "run --cluster slurm on a login node, and use --cluster allocation in batch jobs",
        )
    return _passed(f"{where}: jobs can be submitted from there, so a head job may use slurm")
