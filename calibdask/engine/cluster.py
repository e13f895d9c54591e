"""Where the work is done: this process, threads, worker processes here, SLURM jobs, or a scheduler.

Wherever a port can be reached by others, scheduler and workers speak TLS with certificates made
for the run, and pages over HTTP are served on 127.0.0.1 alone.
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine import events, slurm
from calibdask.engine.executors import Executor, SerialExecutor, ThreadsExecutor
from calibdask.engine.keeper import Keeper, unit_of
from calibdask.engine.session import Session
from calibdask.errors import ConfigError, TransientError
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from distributed import Client, Nanny, Security
    from distributed.deploy.cluster import Cluster

    from calibdask.engine.dask import DaskExecutor

__all__ = [
    "BESIDE_OTHERS",
    "Site",
    "WorkerJob",
    "available_cpus",
    "available_memory",
    "check_cluster",
    "connect_client",
    "ipv4_interfaces",
    "lifetime_arguments",
    "open_executor",
    "security_of",
    "step_environment",
    "worker_exports",
]

_DEFAULT_MEMORY = "4 GiB"  # of a worker in a SLURM job, where nothing says otherwise


def available_cpus() -> int:
    """Count the processors this process may use (a batch system may allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Return the bytes of memory that are free now, within the control group's limit."""
    import psutil

    free: int = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text))
    return free


@dataclass(frozen=True)
class Site:
    """How to make a cluster: nothing in here changes a number.

    Attributes
    ----------
    workers : int or (int, int), optional
        How many threads or worker processes; two numbers let SLURM jobs come and go between them.
    worker_memory : int, optional
        Bytes at which a worker is stopped.
    workdir : Path, optional
        The run's work directory: scratch, logs, certificates. A temporary one unless given.
    performance_report : Path, optional
        Where Dask writes its own report of the run.
    preload : sequence of str
        Modules that local workers will need: imported once for all of them.
    dashboard : bool
        Whether a scheduler that this run starts serves a dashboard.
    slurm : mapping
        Options of dask-jobqueue that win over those of its configuration files.
    emit : callable
        Told of what happens to workers.
    """

    workers: int | tuple[int, int] | None = None
    worker_memory: int | None = None
    workdir: Path | None = None
    performance_report: Path | None = None
    preload: Sequence[str] = ()
    dashboard: bool = True
    slurm: Mapping[str, Any] = field(default_factory=dict)
    emit: events.Listener = lambda _: None

    @property
    def least_and_most(self) -> tuple[int, int]:
        """How many workers there should be at least and at most."""
        if self.workers is None:
            return available_cpus(), available_cpus()
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


def check_cluster(where: str, site: Site) -> None:
    """Refuse a cluster that there cannot be, before any work; nothing is connected to.

    Parameters
    ----------
    where : str
        As for :func:`open_executor`, or ``auto``.
    site : Site
        How it would be made.

    Raises
    ------
    ConfigError
        `where` names none, or the batch system cannot be asked for what the options want.
    """
    if where in ("serial", "threads") and site.performance_report is not None:
        raise ConfigError(f"--performance-report needs a Dask cluster, not --cluster {where}")
    if where == "slurm":
        check_interface(WorkerJob.of(site).scheduler_options)
        slurm.check_commands()
    elif where == "allocation":
        slurm.hosts_of_allocation()
    elif where not in ("auto", "serial", "threads", "local") and not Path(where).is_file():
        host, colon, port = where.rpartition(":")
        if not colon or not host.strip(":/"):
            raise ConfigError(
                f"--cluster {where}: is neither serial, threads, local, slurm, allocation, the"
                " address of a Dask scheduler (host:port) nor a scheduler file"
            )
        if "://" not in where and not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ConfigError(f"--cluster {where}: {port!r} is no port: write HOST:PORT")


def ipv4_interfaces() -> dict[str, list[str]]:
    """Return the IPv4 addresses of the network interfaces of this machine, by name."""
    import psutil

    return {
        name: [one.address for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }


def check_interface(scheduler_options: Mapping[str, Any]) -> None:
    """Refuse an interface for the scheduler that this machine does not have.

    Raises
    ------
    ConfigError
        Naming those that there are.
    """
    name = scheduler_options.get("interface")
    if name is None:
        return
    found = ipv4_interfaces()
    if not found.get(name):
        problem = "has no IPv4 address" if name in found else "is no network interface"
        good = ", ".join(f"{one} ({both[0]})" for one, both in found.items() if both)
        raise ConfigError(
            f"{name!r} {problem} of this machine; there are {good}: set Slurm.interface, or"
            " interface in dask-jobqueue's configuration (~/.config/dask/jobqueue.yaml)"
        )


@contextmanager
def open_executor(where: str, site: Site) -> Iterator[tuple[Executor, str | None]]:
    """Start, or connect to, what will do the work, and close it at the end.

    Parameters
    ----------
    where : str
        ``serial``, ``threads``, ``local``, ``slurm``, ``allocation``, the address of a Dask
        scheduler, or its scheduler file.
    site : Site
        How to make it.

    Yields
    ------
    executor : Executor
        What runs the tasks.
    dashboard : str or None
        Address of the dashboard.

    Raises
    ------
    ConfigError
        `where` is none of these, or the batch system refuses what was asked for.
    TransientError
        The scheduler does not answer.
    """
    if where in ("serial", "threads"):
        check_cluster(where, site)
        executor = (
            SerialExecutor() if where == "serial" else ThreadsExecutor(site.least_and_most[1])
        )
        try:
            yield executor, None
        finally:
            executor.close()
        return
    if site.workdir is not None:
        try:
            os.fsencode(site.workdir.absolute()).decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(
                f"{site.workdir}: the name is not UTF-8, and Dask cannot tell it to its workers:"
                " choose another with --workdir, or --cluster serial"
            ) from None
    import dask
    from distributed import performance_report as write_performance_report

    check_cluster(where, site)
    with (
        dask.config.set(_settings(profile=site.performance_report is not None)),
        _dask_executor(where, site) as (dask_executor, client, link),
    ):
        try:
            if site.performance_report is None:
                yield dask_executor, link
            else:
                report = str(site.performance_report)
                with client.as_current(), write_performance_report(report):
                    yield dask_executor, link
        finally:
            dask_executor.close()


def _settings(*, profile: bool) -> dict[str, Any]:
    return {
        # One death makes a suspect, which is then run alone; more deaths only cost time.
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.daemon": True,
        # Scratch goes away with the session: no locks that tell whose is in use.
        "distributed.worker.use-file-locking": False,
        # A worker is forked from a process that has imported everything, instead of each importing
        # it again: 2 s of CPU and 100 MB a worker.
        "distributed.worker.multiprocessing-method": "forkserver",
        # Dask's profiles take time and grow with a worker's life: only for Dask's own report.
        "distributed.worker.profile.enabled": profile,
        "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
    }


@contextmanager
def _dask_executor(where: str, site: Site) -> Iterator[tuple[DaskExecutor, Client, str | None]]:
    from calibdask.engine.dask import DaskExecutor

    if where == "local":
        with (
            _session(site) as (session, security),
            _path_for_workers(site.preload),
            # Whoever reaches a scheduler's port runs code as its owner, and the other users of a
            # login node reach 127.0.0.1.
            _scheduler(security, site, {"host": "127.0.0.1"}) as cluster,
            _client_of(cluster) as client,
        ):
            local = _LocalWorkers(site, security, session)
            local.cluster = cluster
            with _kept(local, cluster, client, site, session, where) as executor:
                yield executor, client, _publish(session, cluster, site)
    elif where in ("slurm", "allocation"):
        with _session(site) as (session, security):
            options: Mapping[str, Any] = {}
            launcher: _SlurmJobs | _Steps
            if where == "slurm":
                job = WorkerJob.of(site)
                launcher, options = _SlurmJobs(job, session), job.scheduler_options
            else:
                launcher = _Steps(site, session)
            with _scheduler(security, site, options) as cluster, _client_of(cluster) as client:
                launcher.scheduler = cluster.scheduler_address
                link = _publish(session, cluster, site)
                with _kept(launcher, cluster, client, site, session, where) as executor:
                    yield executor, client, link
    else:
        with _attached(where) as client:
            yield DaskExecutor(client, "dask"), client, client.dashboard_link


# -- certificates ---------------------------------------------------------------------------------


def security_of(session: Session) -> Security:
    """Return Dask the certificate of a run, for every role."""
    from distributed import Security

    certificate, key = str(session.certificate), str(session.key)
    roles: dict[str, str] = {}
    for role in ("scheduler", "worker", "client"):
        roles |= {f"tls_{role}_cert": certificate, f"tls_{role}_key": key}
    return Security(tls_ca_file=certificate, require_encryption=True, **roles)


@contextmanager
def _session(site: Site) -> Iterator[tuple[Session, Security]]:
    """Make certificates and scratch for one run; they are gone when it ends."""
    import dask
    from distributed import Security

    made = Security.temporary().get_tls_config_for_role("scheduler")
    with tempfile.TemporaryDirectory(prefix="calibdask-") as temporary:
        session = Session.create(site.workdir or Path(temporary), made["cert"], made["key"])
        try:
            # Dask would use a directory with a known name in /tmp, whoever owns it, and puts it on
            # Python's path.
            with dask.config.set({"temporary-directory": str(session.scratch.absolute())}):
                yield session, security_of(session)
        finally:
            session.remove()


def _publish(session: Session, cluster: Any, site: Site) -> str | None:
    """Say where the scheduler is; give the address of its dashboard."""
    # Dask would name the address that workers connect to, where no page is served.
    port = cluster.scheduler.http_server.port
    link = f"http://127.0.0.1:{port}/status" if site.dashboard else None
    # Who runs it, and since when, is in the lock and in the progress file.
    session.publish(
        {
            "address": cluster.scheduler_address,
            "dashboard": link,
            "host": socket.gethostname(),
            "worker_jobs": [],
        }
    )
    return link


# -- schedulers -----------------------------------------------------------------------------------


@contextmanager
def _client_of(cluster: Cluster) -> Iterator[Client]:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def _path_for_workers(modules: Sequence[str]) -> Iterator[None]:
    """Keep the current directory off Python's path in the processes that are started meanwhile.

    Python puts it there first (``python -c``, ``python -m``, notebooks, a script's own directory,
    an empty part of PYTHONPATH), and processes take it over: a file that happens to be called
    ``tables.py`` would be executed. Where it holds one of the `modules` that workers need, it
    stays, but last.
    """
    here = str(Path.cwd())
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    empty = len(named) < len(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    implicit = here not in map(os.path.abspath, named)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    path = sys.path.copy()
    first = implicit and not sys.flags.safe_path and path[:1] == [here]
    kept = [
        part
        for place, part in enumerate(path)
        if part and not (part == here and ((first and place == 0) or (empty and implicit)))
    ]
    found = (sys.modules.get(name.partition(".")[0]) for name in modules)
    files = (getattr(module, "__file__", None) for module in found)
    if here not in kept and any(
        file and str(Path(file).absolute().parent) == here for file in files
    ):
        kept.append(here)
    try:
        os.environ |= _python_environment()
        sys.path[:] = kept
        yield
    finally:
        sys.path[:] = [*path, *(part for part in sys.path if part not in {*kept, *path})]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _python_environment() -> dict[str, str]:
    """Return the environment of a Python that does not look into the current directory."""
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environment = {"PYTHONSAFEPATH": "1"}
    if named:
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, named))
    return environment


class _LocalWorkers:
    """Units that are worker processes here, each under a nanny of Dask in this process.

    Dask's own ``LocalCluster`` fails where a worker dies while it starts, and waits for ever where
    one dies while its nanny starts it again.
    """

    processes = 1

    def __init__(self, site: Site, security: Security, session: Session) -> None:
        import distributed.utils
        from distributed import Nanny, Status

        # Dask would import Pandas here, to have workers begin with it.
        distributed.utils._forkserver_preload_set = True
        multiprocessing.set_forkserver_preload(
            ["distributed.worker", "calibdask.engine.tasks", *site.preload]
        )
        self.n_workers = site.least_and_most[1]
        self._options: dict[str, Any] = {
            "nthreads": 1,
            "host": "127.0.0.1",
            "protocol": "tls://",
            "security": security,
            "dashboard": False,  # costs each worker an import of Bokeh
            "memory_limit": site.worker_memory or "auto",
            "local_directory": str(session.scratch.absolute()),
            "silence_logs": logging.CRITICAL,
        }
        self._nannies: dict[str, tuple[Nanny, asyncio.Future[Any]]] = {}
        self.cluster: Any = None

        class OneLife(Nanny):
            async def instantiate(self) -> Status:
                if self.process is None:
                    return await super().instantiate()
                await self.close()  # its worker died, and the keeper has another one started
                return self.status

        self._nanny = OneLife

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Start a worker; it is not waited for."""
        del avoid  # there is this machine alone

        async def start() -> None:
            import asyncio

            nanny = self._nanny(self.cluster.scheduler.address, name=str(number), **self._options)
            self._nannies[str(number)] = nanny, asyncio.ensure_future(nanny)

        self.cluster.sync(start)
        return str(number)

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Look which nannies start, or have, a worker."""
        return {job: "RUNNING" for job in jobs if not self._has_failed(*self._nannies[job])}

    @staticmethod
    def _has_failed(nanny: Nanny, started: asyncio.Future[Any]) -> bool:
        failed = started.done() and started.exception() is not None
        return failed or nanny.status.name in ("closing", "closed", "failed")

    def explain(self, job: str) -> str:
        """Tell when it died, and of what where Dask knows more than that it died."""
        _, started = self._nannies[job]
        error = started.exception() if started.done() else None
        if error is None:
            return f"local worker {job} died"
        text = str(error.__cause__ or error)
        reason = "" if text.startswith("Nanny failed to start") else f" ({text})"
        return f"local worker {job} died while it started{reason}"

    def node(self, job: str) -> None:
        """Name no node: there is this machine alone."""

    def where(self, job: str) -> str:
        """Name the worker."""
        return f"local worker {job}"

    def cancel(self, jobs: Collection[str]) -> None:
        """End workers and wait for it."""

        async def close() -> None:
            import asyncio

            async def close_one(nanny: Nanny, started: asyncio.Future[Any]) -> None:
                # A nanny cannot be closed while it starts.
                await asyncio.wait([started])
                await nanny.close()

            await asyncio.gather(*(close_one(*self._nannies[job]) for job in jobs))

        self.cluster.sync(close)


@contextmanager
def _scheduler(security: Security, site: Site, options: Mapping[str, Any]) -> Iterator[Any]:
    """Run a scheduler in this process, for workers that come from elsewhere.

    dask-jobqueue's own cluster is not used: it never replaces a worker that was lost, waits for
    ever for one that cannot start, cancels healthy jobs whose worker is restarting, and cannot be
    closed after a failed submission.
    """
    from distributed import Scheduler
    from distributed.deploy.spec import SpecCluster

    defaults = {
        "protocol": "tls://",
        "security": security,
        "dashboard": site.dashboard,
        "dashboard_address": "127.0.0.1:0",
    }
    spec = {"cls": Scheduler, "options": {**defaults, **options}}
    with SpecCluster(
        workers={}, scheduler=spec, security=security, silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster


@contextmanager
def _attached(where: str) -> Iterator[Client]:
    """Connect to a scheduler that somebody else started."""
    from distributed import Client

    is_file = Path(where).is_file()
    if is_file and Path(where).name == "session.json":
        with connect_client(Session(Path(where).parent)) as client:
            yield client
        return
    try:
        connection = Client(
            scheduler_file=where if is_file else None,
            address=None if is_file else where,
            set_as_default=False,
            timeout="20s",
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise TransientError(f"no Dask scheduler answers at {where}: {error}") from error
    with connection as client:
        yield client


# -- workers in SLURM jobs ------------------------------------------------------------------------


def _job_class() -> Any:
    """Import dask-jobqueue without what its import does to the process.

    Version 0.9 sets a handler for Ctrl-C that leaves without cleaning up, and cannot be imported
    outside the main thread because of it (dask-jobqueue issues 667, 668, 696).
    """
    from unittest import mock  # brings asyncio along, which a run without Dask does not need

    with mock.patch.object(signal, "signal"):
        from dask_jobqueue.slurm import SLURMJob
    return SLURMJob


_OLD_NAMES = {
    "worker_extra_args": "extra",
    "job_script_prologue": "env_extra",
    "job_directives_skip": "header_skip",
    "job_extra_directives": "job_extra",
    "account": "project",
}
"""What dask-jobqueue takes the values of old names for, where the new ones are not set."""

_LISTS = {one for pair in _OLD_NAMES.items() for one in pair if pair[0] != "account"}

_OURS = ("scheduler", "name", "security", "protocol", "nanny", "config_name", "worker_command")


@dataclass(frozen=True)
class WorkerJob:
    """What a worker job asks of SLURM: dask-jobqueue's configuration, and what wins over it.

    Attributes
    ----------
    options : mapping
        Keyword arguments of dask-jobqueue's ``SLURMJob``.
    scheduler_options : mapping
        Those of Dask's scheduler.
    """

    options: Mapping[str, Any]
    scheduler_options: Mapping[str, Any]

    @classmethod
    def of(cls, site: Site) -> WorkerJob:
        """Collect the options.

        Raises
        ------
        ConfigError
            An option is unknown, or one that calibdask sets itself.
        """
        import dask
        import dask.utils

        job_class = _job_class()
        known = {
            name
            for base in (job_class, job_class.__base__)
            for name in inspect.signature(base.__init__).parameters
        } - {"self", "base_class_kwargs", *_OURS}
        known.add("scheduler_options")
        given = {name.replace("-", "_"): value for name, value in site.slurm.items()}
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
                raise ConfigError(f"Slurm.{name}: dask-jobqueue has no such option{hint}")

        def one(name: str) -> Any:
            default = dask.config.get(f"jobqueue.slurm.{name.replace('_', '-')}", None)
            found = default if given.get(name) is None else given[name]
            if name in _LISTS and found is not None and not isinstance(found, list | tuple):
                raise ConfigError(
                    f"Slurm.{name} (or jobqueue.slurm.{name.replace('_', '-')} of dask-jobqueue's"
                    f" configuration): expected a list, got {found!r}; write [{found!r}]"
                )
            return found

        def value(name: str) -> Any:
            return one(name) or one(_OLD_NAMES[name]) if name in _OLD_NAMES else one(name)

        for name in known - {"scheduler_options"}:
            slurm.check_option(name, value(name))
        options = {name: value for name, value in given.items() if name != "scheduler_options"}
        for name, old in _OLD_NAMES.items():
            options.pop(old, None)
            if merged := value(name):
                options[name] = merged
        options["cores"] = cores = value("cores") or 1
        # One thread a worker: tasks are pure computing, and HDF5 takes one thread at a time.
        options["processes"] = processes = value("processes") or cores
        memory = value("memory")
        if memory is None:
            each = site.worker_memory or dask.utils.parse_bytes(_DEFAULT_MEMORY)
            memory = each * processes
        options["memory"] = memory if isinstance(memory, str) else f"{memory} B"
        if options.get("job_name") is None and value("name") == "dask-worker":
            options["job_name"] = "calibdask-worker"
        if value("log_directory") is None:
            options["log_directory"] = str((site.workdir or Path.cwd()).absolute() / "logs")
        scheduler_options = dict(value("scheduler_options") or {})
        interface = value("interface")
        if interface is not None and not {"host", "interface"} & scheduler_options.keys():
            scheduler_options["interface"] = interface
        return cls(options, scheduler_options)

    @property
    def python(self) -> str:
        """The Python of the workers."""
        import dask

        given = self.options.get("python") or dask.config.get("jobqueue.slurm.python", None)
        return str(given or sys.executable)

    @property
    def local_directory(self) -> str | None:
        """A directory of the node, as the shell there reads it, below which workers get theirs."""
        import dask

        default = dask.config.get("jobqueue.slurm.local-directory", None)
        given = self.options.get("local_directory") or default
        return str(given) if given else None

    @property
    def processes(self) -> int:
        """Workers in a job."""
        return int(self.options["processes"])

    @property
    def memory_per_worker(self) -> int:
        """Bytes that one worker may use."""
        import dask.utils

        return int(dask.utils.parse_bytes(self.options["memory"]) // self.processes)

    def script(
        self,
        scheduler: str,
        name: str,
        *,
        arguments: Sequence[str] = (),
        prologue: Sequence[str] = (),
        directives: Sequence[str] = (),
    ) -> str:
        """Write the batch script of a worker job.

        Parameters
        ----------
        scheduler : str
            Address of the scheduler.
        name : str
            Name of the worker.
        arguments : sequence of str
            More arguments of ``dask worker``.
        prologue : sequence of str
            Lines to run before it.
        directives : sequence of str
            More options of sbatch.

        Raises
        ------
        ConfigError
            dask-jobqueue does not accept an option.
        """
        import dask

        def joined(name: str, more: Sequence[str]) -> list[str]:
            default = dask.config.get(f"jobqueue.slurm.{name.replace('_', '-')}", None)
            return [*(self.options.get(name, default) or []), *more]

        options = {
            **self.options,
            "worker_extra_args": joined("worker_extra_args", arguments),
            "job_script_prologue": joined("job_script_prologue", prologue),
            "job_extra_directives": joined("job_extra_directives", directives),
        }
        options.pop("local_directory", None)  # see worker_exports
        try:
            with dask.config.set({"jobqueue.slurm.local-directory": None}):
                script: str = _job_class()(scheduler, name, **options).job_script()
        except (TypeError, ValueError, OSError) as error:
            raise ConfigError(f"the Slurm section of the configuration: {error}") from error
        # sbatch would take the part after a space for an option of its own.
        return re.sub(r"^(#SBATCH -[eo]) (.* .*)$", r'\1 "\2"', script, flags=re.MULTILINE)

    def walltime_seconds(self) -> float | None:
        """Return the jobs' time limit, None if there is none."""
        lines = self.script("tls://", "worker").splitlines()
        given = [line for line in lines if line.startswith(("#SBATCH -t ", "#SBATCH --time="))]
        if not given:
            return None
        return slurm.parse_walltime(given[-1].replace("=", " ").split()[-1])


def lifetime_arguments(walltime_seconds: float | None) -> list[str]:
    """Let workers end by themselves, not all at once, before SLURM ends their job.

    What is stored is kept either way; but a worker that leaves in time hands back what it has not
    begun, and its job ends as completed.
    """
    if walltime_seconds is None:
        return []
    stagger = 0.05 * walltime_seconds
    lifetime = max(0.5 * walltime_seconds, 0.9 * walltime_seconds - 60 - stagger)
    return ["--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{stagger:.0f}s"]


def _worker_arguments(session: Session) -> list[str]:
    """Return what every ``dask worker`` of ours is told."""
    certificate, key = str(session.certificate.absolute()), str(session.key.absolute())
    return [
        *("--protocol", "tls"),
        *("--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key),
        # Without an address the page of a worker would be open to the network, even if it is off.
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--preload", "calibdask.engine.preflight"),
    ]


def _worker_environment(scratch: Path) -> dict[str, str]:
    """Return the environment that every ``dask worker`` needs, also where none is passed on."""
    from calibdask.engine.provenance import code_digest

    inherited = ("NPY_DISABLE_CPU_FEATURES", "NUMBA_CACHE_DIR", "OPENBLAS_CORETYPE")
    return {
        **_python_environment(),
        "DASK_TEMPORARY_DIRECTORY": str(scratch.absolute()),
        "DASK_DISTRIBUTED__WORKER__USE_FILE_LOCKING": "False",
        "CALIBDASK_EXPECTED_CODE": code_digest(),
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        **{name: os.environ[name] for name in inherited if os.environ.get(name)},
    }


def worker_exports(job: WorkerJob, scratch: Path) -> list[str]:
    """Return the same as lines of a job script.

    Parameters
    ----------
    job : WorkerJob
        It may ask for scratch on a disk of the node's own.
    scratch : Path
        Where workers keep their files unless it does.
    """
    environment = _worker_environment(scratch)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if job.local_directory:
        # A directory of its own: others may write to that of the node.
        made = f'$({job.python} -m calibdask.access "{job.local_directory}")'
        lines += [
            f"DASK_TEMPORARY_DIRECTORY={made} || exit 1",
            "trap 'rm -rf -- \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
        ]
    return lines


BESIDE_OTHERS = ("--overlap", "--mem=0", "--kill-on-bad-exit=0", "--export=ALL")
"""Options of srun for a step that shares its nodes with others and lives longer than some."""


def step_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of srun for a step of workers that keep their files in `scratch`."""
    # The step's ntasks and memory are its own, not those of the job.
    jobs = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE")
    mine = {name: value for name, value in os.environ.items() if name not in jobs}
    return mine | _worker_environment(scratch)


class _SlurmJobs:
    """Units that are SLURM jobs."""

    def __init__(self, job: WorkerJob, session: Session) -> None:
        self.scheduler = ""
        self.processes = self.n_workers = job.processes
        self._job = job
        self._arguments = [*map(shlex.quote, _worker_arguments(session))]
        if "--lifetime" not in " ".join(map(str, job.options.get("worker_extra_args") or [])):
            self._arguments += lifetime_arguments(job.walltime_seconds())
        self._prologue = worker_exports(job, session.scratch)
        # A log that says what is wrong, before Dask adds its tracebacks to it.
        self._prologue.append(f"{job.python} -m calibdask.engine.preflight || exit 1")

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Submit a job."""
        # A worker that was put back into the queue would come late to a run that replaced it.
        directives = ["--no-requeue", *([f"--exclude={','.join(avoid)}"] if avoid else [])]
        return slurm.submit(
            self._job.script(
                self.scheduler,
                f"worker-{number}",
                arguments=self._arguments,
                prologue=self._prologue,
                directives=directives,
            )
        )

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Ask squeue."""
        return {
            number: f"PENDING ({job.reason})" if not job.started else job.state
            for number, job in slurm.alive(jobs).items()
        }

    def explain(self, job: str) -> str:
        """Ask scontrol and the log."""
        return slurm.explain_end(job)

    def node(self, job: str) -> str | None:
        """Ask scontrol."""
        facts = slurm.describe(job)
        return facts.get("BatchHost") or None

    def where(self, job: str) -> str:
        """Name job, node and log."""
        facts = slurm.describe(job)
        text = f"SLURM job {job}"
        if facts.get("BatchHost"):
            text += f" on {facts['BatchHost']}"
        return text + (f", log {facts['StdErr']}" if facts.get("StdErr") else "")

    def cancel(self, jobs: Collection[str]) -> None:
        """Tell scancel."""
        slurm.cancel(jobs)


class _Steps:
    """Units that are steps of the SLURM job that this process runs in, one on each node."""

    def __init__(self, site: Site, session: Session) -> None:
        self.scheduler = ""
        hosts = slurm.hosts_of_allocation()
        if site.workers is not None:
            each = -(-site.least_and_most[1] // len(hosts))
            hosts = [(host, each) for host, _ in hosts]
        self.processes = max(count for _, count in hosts)
        self.n_workers = sum(count for _, count in hosts)
        self._hosts = dict(hosts)
        self._logs = (site.workdir or Path.cwd()).absolute() / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._arguments = _worker_arguments(session)
        self._scratch = session.scratch
        self._memory = site.worker_memory
        self._steps: dict[str, tuple[str, subprocess.Popen[bytes], Path]] = {}

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Start a step on the node that has fewest."""
        del avoid  # there are no others
        busy = [host for host, step, _ in self._steps.values() if step.poll() is None]
        host = min(self._hosts, key=busy.count)
        count = self._hosts[host]
        log = self._logs / f"worker-{number}-{host}.log"
        cpus = count * int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        command = [
            *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", f"--cpus-per-task={cpus}"),
            *(*BESIDE_OTHERS, f"--output={log}"),
            *(sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler),
            *("--name", f"worker-{number}", "--nworkers", str(count), "--nthreads", "1", "--nanny"),
            *("--memory-limit", self._memory_limit(count), "--death-timeout", "60"),
            *self._arguments,
        ]
        with log.with_suffix(".srun").open("wb") as complaints:
            step = subprocess.Popen(
                command,
                env=step_environment(self._scratch),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C is for this process: steps end in their turn
            )
        name = f"{os.environ['SLURM_JOB_ID']} step {number}"
        self._steps[name] = (host, step, log)
        return name

    def _memory_limit(self, count: int) -> str:
        if self._memory is not None:
            return str(self._memory)
        mib = os.environ.get("SLURM_MEM_PER_NODE")
        if mib is None and "SLURM_MEM_PER_CPU" in os.environ:
            cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
            mib = str(int(os.environ["SLURM_MEM_PER_CPU"]) * cpus)
        if not mib or mib == "0":
            return "auto"
        return str(int(mib) * 1024**2 // count)

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Look which steps run."""
        return {name: "RUNNING" for name in jobs if self._steps[name][1].poll() is None}

    def explain(self, job: str) -> str:
        """Return exit code and the end of the log."""
        host, step, log = self._steps[job]
        tail = slurm.tail(log) or slurm.tail(log.with_suffix(".srun"))
        text = f"SLURM job {job} on {host}: ended with code {step.poll()}"
        return f"{text}; {log} ends with\n{tail}" if tail else f"{text}; nothing in its log {log}"

    def node(self, job: str) -> str | None:
        """Name the node of a step."""
        return self._steps[job][0]

    def where(self, job: str) -> str:
        """Name job, step, node and log."""
        host, _, log = self._steps[job]
        return f"SLURM job {job} on {host}, log {log}"

    def cancel(self, jobs: Collection[str]) -> None:
        """Let srun end its step."""
        for job in jobs:
            step = self._steps[job][1]
            if step.poll() is None:
                step.terminate()
        for job in jobs:
            try:
                self._steps[job][1].wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._steps[job][1].kill()


@contextmanager
def _kept(
    launcher: _SlurmJobs | _Steps | _LocalWorkers,
    cluster: Any,
    client: Client,
    site: Site,
    session: Session,
    where: str,
) -> Iterator[DaskExecutor]:
    """Have workers as long as there is something to do."""
    from calibdask.engine.dask import DaskExecutor

    executor = DaskExecutor(client, where)

    async def dismiss() -> None:
        for address in list(cluster.scheduler.workers):
            cluster.scheduler.close_worker(address)

    async def registered() -> list[str]:
        return [str(worker.name) for worker in cluster.scheduler.workers.values()]

    async def retire(units: Collection[int]) -> None:
        workers = cluster.scheduler.workers.values()
        gone = [worker.address for worker in workers if unit_of(str(worker.name)) in units]
        await cluster.scheduler.retire_workers(
            workers=gone, close_workers=True, remove=True, stimulus_id="calibdask-surplus"
        )

    def emit(event: events.Event) -> None:
        if not (here and isinstance(event, events.Workers)):  # which tells of jobs
            site.emit(event)

    def changed(jobs: list[str]) -> None:
        if here:
            return
        # For calibdask cancel, should this process die: not worth ending a run on a full disk.
        with suppress(OSError):
            session.update({"worker_jobs": jobs})

    here = isinstance(launcher, _LocalWorkers)
    workers = (launcher.n_workers, launcher.n_workers)
    if site.workers and not here:
        workers = site.least_and_most
    keeper = Keeper(
        launcher,
        workers,
        registered=lambda: cluster.sync(registered),
        retire=lambda units: cluster.sync(retire, units),
        open_tasks=lambda: executor.open_tasks,
        emit=emit,
        give_up=executor.abort,
        changed=changed,
        most_deaths=3 * workers[1] + 3 if here else None,
    )
    executor.expected_workers = workers[1]
    with ExitStack() as at_end:  # from the last to the first, each whatever became of the others
        at_end.callback(keeper.close, 0 if here else 10)
        if not here:
            executor.describe_worker = keeper.describe
            at_end.callback(cluster.sync, dismiss)
        at_end.callback(keeper.stop)
        keeper.start()
        if here:
            executor.await_workers()
        yield executor


# -- from another process -------------------------------------------------------------------------


def connect_client(session: Session) -> Client:
    """Connect to the scheduler of a running campaign.

    Raises
    ------
    ConfigError
        There is no campaign, or nobody answers.
    """
    from distributed import Client

    described = session.read()
    try:
        return Client(
            described["address"],
            security=security_of(session),
            set_as_default=False,
            timeout="10s",
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"{session.directory.parent}: nobody answers at {described['address']}, where the"
            f" campaign's scheduler was ({error}): its process died or cannot be reached from here."
            " calibdask status tells what was done; the same command as before carries on"
        ) from error
