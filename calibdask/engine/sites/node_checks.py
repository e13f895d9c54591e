"""Checks of compute nodes: a probe reports from a node what a worker would meet there."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import re
import secrets
import shlex
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine import probe
from calibdask.engine.lock import STALE_SECONDS
from calibdask.engine.provenance import code_digest, versions
from calibdask.engine.sites.base import ipv4_interfaces
from calibdask.engine.sites.findings import Finding, failed, passed, warned
from calibdask.errors import CalibdaskError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from calibdask.engine.sites.queue import Queue

__all__ = [
    "Post",
    "assess",
    "find_address",
    "probe_by_job",
    "probe_script",
    "probe_source",
    "wait_until",
]

_GIB = 1024**3
_SLOW_IMPORT_SECONDS = 20.0
_SKEW_SECONDS = 5.0
SILENT_SECONDS = 300.0  # that a probe may run without having reported
LATE_SECONDS = 10.0  # that a network file system may take to show a file
_NETWORK_FILE_SYSTEMS = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|panfs|cifs|afs|fuse\.sshfs")
_WORKER_MODULES = ("distributed", "calibdask.engine.tasks")
_BUSY = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency"}


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
            return failed(f"scheduler's host {host}: {error.strerror}", remedy), None
        return passed(f"scheduler would listen on {address} ({host})"), address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sample:
        try:
            sample.connect(("8.8.8.8", 80))  # nothing is sent: it asks for the way out of here
            address = sample.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    return passed(f"scheduler would listen on {address} (no interface is named)"), address


def check_interface(name: str) -> tuple[Finding, str | None]:
    """Check that a network interface exists and has an IPv4 address; give that address."""
    found = ipv4_interfaces()
    if found.get(name):
        return passed(f"interface {name}: {found[name][0]}"), found[name][0]
    problem = "has no IPv4 address" if name in found else "there is none"
    good = ", ".join(f"{one} ({both[0]})" for one, both in found.items() if both)
    return (
        failed(f"interface {name}: {problem}", f"--set Slurm.interface=NAME; there are {good}"),
        None,
    )


class Post:
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
        """Return whether all have reported in both ways, or have said that they cannot."""
        answers = self.answers()
        return len(answers) >= count and all(one["by_file"] for one in answers.values())


def _knock(host: str, port: int) -> str:
    """Connect as the scheduler does to a worker; give what went wrong."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


def probe_source() -> str:
    """Return the source of the probe, which nodes run."""
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
            probe_source(),
            "END_OF_PROBE",
            "",
        ]
    )


def probe_by_job(
    queue: Queue, script: str, header: Sequence[str], post: Post, patience: float
) -> Iterator[Finding]:
    """Send the probe in a job of its own, in all but its last line a worker's."""
    try:
        job = queue.submit(probe_script(script, post.task(header)), "doctor")
    except CalibdaskError as error:
        yield failed(
            f"the probe job was not taken: {error}", "see what the batch system says above"
        )
        return
    try:
        problem = _watch(queue, job, post, patience)
        answers = post.answers()
        if not answers and problem is not None:
            yield problem
        for node, report in answers.items():
            yield from assess(report, f"job {job} on {node}", post.address, may_submit=True)
    finally:
        logs = queue.logs_of(job)
        queue.cancel([job])
        wait_until(lambda: not queue.alive([job]), LATE_SECONDS)
        for path in logs:
            path.unlink(missing_ok=True)


def _watch(queue: Queue, job: str, post: Post, patience: float) -> Finding | None:
    """Wait for the probe's report; say why none came."""
    begin = time.monotonic()
    started: float | None = None
    while True:
        queued = queue.alive([job]).get(job)
        if post.complete(1):
            return None
        now = time.monotonic()
        if queued is None:
            if wait_until(lambda: post.complete(1), LATE_SECONDS):
                return None
            return failed(
                f"the probe job ended without a report: {queue.explain_end(job)}",
                "a worker job would end the same way: see Slurm.python, Slurm.job_script_prologue,"
                " and whether Slurm.log_directory exists on the node (exit code 0:53)",
            )
        if queued.started:
            started = started or now
            if now - started > SILENT_SECONDS:
                return failed(
                    f"the probe job {job} on {queued.nodes} has run for {SILENT_SECONDS:.0f} s"
                    " without a report",
                    "see whether Python starts on that node, and how long it takes to import",
                )
        elif now - begin > patience:
            return _still_pending(job, queued.reason, patience)
        time.sleep(0.5)


def _still_pending(job: str, reason: str, patience: float) -> Finding:
    what = f"the probe job {job} still waits after {patience:.0f} s: {reason}"
    if reason in _BUSY:
        return warned(
            f"{what} (the queue is full)",
            "nothing was seen of a node: try again with more --patience, or in another partition",
        )
    return failed(what, "the reason says what it waits for: change the options of worker jobs")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition came true within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


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
        return failed(f"{where}: {report['executable']}: {', '.join(other)}", _PYTHON)
    return passed(f"{where}: Python and {len(here) - 1} packages have the versions of this process")


def check_code(report: Mapping[str, Any], where: str) -> Finding:
    """Compare calibdask itself, and see how long a worker takes to import it."""
    found = report["imported"]
    if "error" in found:
        return failed(f"{where}: a worker cannot import calibdask: {found['error']}", _PYTHON)
    if found["code"] != code_digest():
        return failed(
            f"{where}: {found['path']} is calibdask {found['code']}, here it is {code_digest()}",
            f"{_PYTHON}; see PYTHONPATH",
        )
    what = f"{where}: calibdask {found['code']}, imported in {found['seconds']:.1f} s"
    if found["seconds"] > _SLOW_IMPORT_SECONDS:
        return warned(
            f"{what}: slow",
            "put the environment on a faster or node-local file system, or raise"
            " Slurm.death_timeout",
        )
    return passed(what)


def check_shared(report: Mapping[str, Any], where: str) -> Finding:
    """Check that both sides see what the other writes."""
    if report["same_token"] and report["by_file"]:
        return passed(f"{where}: the work directory is shared, both ways")
    what = f"{where}: the work directory is not the same there"
    if not report["same_token"]:
        what += f" ({report['shared'].get('error', 'its files have other contents')})"
    else:
        what += f" (what is written there is not seen here within {LATE_SECONDS:.0f} s)"
    return failed(what, "choose a --workdir on a file system that the nodes share")


def check_network(report: Mapping[str, Any], where: str, address: str) -> Iterator[Finding]:
    """Check connections from worker to scheduler and back, and the clock."""
    interface = "name the network that both share: --set Slurm.interface=NAME (see 'ip addr')"
    if "skew" not in report:
        yield failed(
            f"{where}: cannot reach {address}: {report['network'].get('error')}",
            f"{interface}; or a firewall forbids it: then use --cluster allocation",
        )
        return
    if report["back"]:
        yield failed(
            f"{where}: reaches {address}, but cannot be reached from here: {report['back']}",
            f"{interface}; or a firewall forbids it: then use --cluster allocation",
        )
    else:
        milliseconds = 1000 * report["network"]["seconds"]
        yield passed(f"{where}: reaches {address} in {milliseconds:.0f} ms, and the other way")
    skew = abs(report["skew"])
    what = f"{where}: its clock differs by {skew:.1f} s"
    remedy = "ask the site's administrators to synchronise the clocks (NTP)"
    if skew > STALE_SECONDS / 2:
        yield failed(f"{what}: a lock that is held would look stale", remedy)
    elif skew > _SKEW_SECONDS:
        yield warned(what, remedy)
    else:
        yield passed(what)


def check_threads(report: Mapping[str, Any], where: str) -> Finding:
    """Check that libraries use one thread: sums depend on their number."""
    wrong = [f"{name}={value}" for name, value in report["threads"].items() if value != "1"]
    if wrong:
        return failed(
            f"{where}: a worker would have {', '.join(wrong)}",
            "remove what sets them from Slurm.job_script_prologue: results must not depend on them",
        )
    return passed(f"{where}: {', '.join(report['threads'])} are 1")


def check_scratch(report: Mapping[str, Any], where: str) -> Finding:
    """Check the place for a worker's temporary files."""
    found = report["scratch"]
    remedy = "name node-local disk: --set Slurm.local_directory=DIR ('$TMPDIR' is often right)"
    if "error" in found:
        return failed(f"{where}: scratch {found['path']}: {found['error']}", remedy)
    what = (
        f"{where}: scratch {found['path']} ({found['kind']}, {found['free'] / _GIB:.1f} GiB free)"
    )
    if _NETWORK_FILE_SYSTEMS.search(found["kind"]):
        return warned(f"{what} is not on the node", remedy)
    if found["free"] < _GIB:
        return warned(what, remedy)
    return passed(what)


def check_nested(report: Mapping[str, Any], where: str) -> Finding:
    """Check whether jobs may be submitted from a compute node."""
    if "error" in report["sbatch"]:
        return warned(
            f"{where}: no job can be submitted from there: {report['sbatch']['error']}",
            "run --cluster slurm on a login node, and use --cluster allocation in batch jobs",
        )
    return passed(f"{where}: jobs can be submitted from there, so a head job may use slurm")
