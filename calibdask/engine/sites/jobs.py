"""Workers in jobs of a batch system, with the options and job scripts of dask-jobqueue."""

from __future__ import annotations

import inspect
import shlex
import signal
import sys
from abc import abstractmethod
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from calibdask.engine.sites.base import Settings, ipv4_interfaces
from calibdask.engine.sites.findings import failed, warned
from calibdask.engine.sites.node_checks import Post, find_address, probe_by_job
from calibdask.engine.sites.queue import check_option
from calibdask.engine.sites.scheduler import (
    DaskSite,
    keeping,
    making_session,
    publish,
    running_scheduler,
    worker_arguments,
    worker_environment,
)
from calibdask.errors import ConfigError
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from distributed import Client

    from calibdask.engine.dask import DaskExecutor
    from calibdask.engine.session import Session
    from calibdask.engine.sites.findings import Finding
    from calibdask.engine.sites.queue import Queue

__all__ = [
    "JobSite",
    "JobUnits",
    "WorkerJob",
    "check_interface",
    "lifetime_arguments",
    "worker_exports",
]

_DEFAULT_MEMORY = "4 GiB"  # of a worker in a job, where nothing says otherwise


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
            f"{name!r} {problem} of this machine; there are {good}: set interface in the section of"
            " the batch system, or in dask-jobqueue's configuration"
            " (~/.config/dask/jobqueue.yaml)"
        )


def import_quietly(target: str) -> Any:
    """Import dask-jobqueue without what its import does to the process.

    Version 0.9 sets a handler for Ctrl-C that leaves without cleaning up, and cannot be imported
    outside the main thread because of it (dask-jobqueue issues 667, 668, 696).
    """
    from unittest import mock  # brings asyncio along, which a run without Dask does not need

    with mock.patch.object(signal, "signal"):
        module, _, name = target.partition(":")
        return getattr(import_module(module), name)


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
    """What a worker job asks for: dask-jobqueue's configuration, and what wins over it.

    Attributes
    ----------
    options : mapping
        Keyword arguments of dask-jobqueue's class of the job.
    scheduler_options : mapping
        Those of Dask's scheduler.
    """

    section: ClassVar[str]
    """Section of the configuration."""
    config: ClassVar[str]
    """Name in dask-jobqueue's configuration."""
    target: ClassVar[str]
    """Class of dask-jobqueue, as ``module:class``."""
    system: ClassVar[str]
    """Name of the batch system."""
    prefix: ClassVar[str]
    """Beginning of a line of options in a job script."""

    options: Mapping[str, Any]
    scheduler_options: Mapping[str, Any]

    @classmethod
    def default(cls, name: str) -> Any:
        """Return the value of an option in dask-jobqueue's own configuration."""
        import dask

        return dask.config.get(f"jobqueue.{cls.config}.{name.replace('_', '-')}", None)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Collect the options.

        Raises
        ------
        ConfigError
            An option is unknown, or one that calibdask sets itself.
        """
        import dask.utils

        job_class = import_quietly(cls.target)
        known = {
            name
            for base in (job_class, job_class.__base__)
            for name in inspect.signature(base.__init__).parameters
        } - {"self", "base_class_kwargs", *_OURS}
        known.add("scheduler_options")
        given = {name.replace("-", "_"): value for name, value in settings.jobqueue.items()}
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
                raise ConfigError(f"{cls.section}.{name}: dask-jobqueue has no such option{hint}")

        def one(name: str) -> Any:
            found = cls.default(name) if given.get(name) is None else given[name]
            if name in _LISTS and found is not None and not isinstance(found, list | tuple):
                raise ConfigError(
                    f"{cls.section}.{name} (or jobqueue.{cls.config}.{name.replace('_', '-')} of"
                    f" dask-jobqueue's configuration): expected a list, got {found!r};"
                    f" write [{found!r}]"
                )
            return found

        def value(name: str) -> Any:
            return one(name) or one(_OLD_NAMES[name]) if name in _OLD_NAMES else one(name)

        for name in known - {"scheduler_options"}:
            check_option(cls.section, name, value(name))
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
            each = settings.worker_memory or dask.utils.parse_bytes(_DEFAULT_MEMORY)
            memory = each * processes
        options["memory"] = memory if isinstance(memory, str) else f"{memory} B"
        if options.get("job_name") is None and value("name") == "dask-worker":
            options["job_name"] = "calibdask-worker"
        if value("log_directory") is None:
            options["log_directory"] = str((settings.workdir or Path.cwd()).absolute() / "logs")
        scheduler_options = dict(value("scheduler_options") or {})
        interface = value("interface")
        if interface is not None and not {"host", "interface"} & scheduler_options.keys():
            scheduler_options["interface"] = interface
        return cls(options, scheduler_options)

    @property
    def python(self) -> str:
        """The Python of the workers."""
        return str(self.options.get("python") or self.default("python") or sys.executable)

    @property
    def local_directory(self) -> str | None:
        """A directory of the node, as the shell there reads it, below which workers get theirs."""
        given = self.options.get("local_directory") or self.default("local_directory")
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
            return [*(self.options.get(name, self.default(name)) or []), *more]

        options = {
            **self.options,
            "worker_extra_args": joined("worker_extra_args", arguments),
            "job_script_prologue": joined("job_script_prologue", prologue),
            "job_extra_directives": joined("job_extra_directives", directives),
        }
        options.pop("local_directory", None)  # see worker_exports
        try:
            with dask.config.set({f"jobqueue.{self.config}.local-directory": None}):
                job = import_quietly(self.target)(scheduler, name, **options)
                script: str = job.job_script()
        except (TypeError, ValueError, OSError) as error:
            raise ConfigError(f"the {self.section} section: {error}") from error
        return self.adapted(script)

    def directives(self, avoid: Collection[str]) -> list[str]:
        """Return further options of a job, which stays away from some nodes if it can."""
        raise NotImplementedError

    def adapted(self, script: str) -> str:
        """Return dask-jobqueue's script as the batch system must have it."""
        return script

    def walltime_seconds(self) -> float | None:
        """Return the jobs' time limit, None if there is none."""
        raise NotImplementedError


def lifetime_arguments(walltime_seconds: float | None) -> list[str]:
    """Let workers end by themselves, not all at once, before the batch system ends their job.

    What is stored is kept either way; but a worker that leaves in time hands back what it has not
    begun, and its job ends as completed.
    """
    if walltime_seconds is None:
        return []
    stagger = 0.05 * walltime_seconds
    lifetime = max(0.5 * walltime_seconds, 0.9 * walltime_seconds - 60 - stagger)
    return ["--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{stagger:.0f}s"]


def worker_exports(job: WorkerJob, scratch: Path) -> list[str]:
    """Return the same as lines of a job script.

    Parameters
    ----------
    job : WorkerJob
        It may ask for scratch on a disk of the node's own.
    scratch : Path
        Where workers keep their files unless it does.
    """
    environment = worker_environment(scratch)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if job.local_directory:
        # A directory of its own: others may write to that of the node.
        made = f'$({job.python} -m calibdask.access "{job.local_directory}")'
        lines += [
            f"DASK_TEMPORARY_DIRECTORY={made} || exit 1",
            "trap 'rm -rf -- \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
        ]
    return lines


class JobUnits:
    """Units that are jobs of a batch system."""

    local = False

    def __init__(self, job: WorkerJob, queue: Queue, session: Session) -> None:
        self.scheduler = ""
        self.processes = self.n_workers = job.processes
        self._job, self._queue = job, queue
        self._arguments = [*map(shlex.quote, worker_arguments(session))]
        if "--lifetime" not in " ".join(map(str, job.options.get("worker_extra_args") or [])):
            self._arguments += lifetime_arguments(job.walltime_seconds())
        self._prologue = worker_exports(job, session.scratch)
        # A log that says what is wrong, before Dask adds its tracebacks to it.
        self._prologue.append(f"{job.python} -m calibdask.engine.preflight || exit 1")

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Submit a job."""
        name = f"worker-{number}"
        script = self._job.script(
            self.scheduler,
            name,
            arguments=self._arguments,
            prologue=self._prologue,
            directives=self._job.directives(avoid),
        )
        return self._queue.submit(script, name)

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Ask the batch system."""
        return {
            number: job.state if job.started else f"PENDING ({job.reason})"
            for number, job in self._queue.alive(jobs).items()
        }

    def explain(self, job: str) -> str:
        """Ask the batch system and the log."""
        return self._queue.explain_end(job)

    def node(self, job: str) -> str | None:
        """Ask the batch system."""
        return self._queue.node_of(job)

    def where(self, job: str) -> str:
        """Name job, node and log."""
        text = f"{self._job.system} job {job}"
        if node := self.node(job):
            text += f" on {node}"
        logs = self._queue.logs_of(job)
        return text + (f", log {logs[0]}" if logs else "")

    def cancel(self, jobs: Collection[str]) -> None:
        """Return the batch system."""
        self._queue.cancel(jobs)


class JobSite(DaskSite):
    """Workers in jobs that come and go with the work to do."""

    job: ClassVar[type[WorkerJob]]

    @property
    @abstractmethod
    def queue(self) -> Queue:
        """The batch system."""

    @abstractmethod
    def check_commands(self) -> None:
        """Check that the batch system's commands are on the path (else ConfigError)."""

    @abstractmethod
    def examine(self, script: str) -> Iterator[Finding]:
        """Check for the doctor what the batch system says of a worker job.

        Parameters
        ----------
        script : str
            The job; empty where only the batch system is to be checked, before any options.
        """

    def check(self) -> None:
        """Check options and commands."""
        check_interface(self.job.of(self.settings).scheduler_options)
        self.check_commands()

    @contextmanager
    def start(self) -> Iterator[tuple[DaskExecutor, Client, str | None]]:
        """Run the scheduler here and submit worker jobs."""
        with making_session(self.settings) as (session, security):
            job = self.job.of(self.settings)
            units = JobUnits(job, self.queue, session)
            with running_scheduler(security, self.settings, job.scheduler_options) as (
                cluster,
                client,
            ):
                units.scheduler = cluster.scheduler_address
                link = publish(session, cluster, self)
                with keeping(
                    units, cluster, client, self.settings, session, self.where
                ) as executor:
                    yield executor, client, link

    def memory_per_worker(self) -> int | None:
        """Return the share of each worker in a job's memory."""
        return self.job.of(self.settings).memory_per_worker

    def cancel(self, jobs: Sequence[str]) -> list[str]:
        """Cancel the jobs that are alive."""
        alive = sorted(self.queue.alive(jobs))
        self.queue.cancel(alive)
        return alive

    def describe(self, patience: float) -> Iterator[Finding]:
        """Check the batch system, and send a probe in the place of a worker."""
        findings: list[Finding] = []

        def told(checks: Iterator[Finding]) -> Iterator[Finding]:
            for finding in checks:
                findings.append(finding)
                yield finding

        yield from told(self.examine(""))
        if any(finding.level == "FAIL" for finding in findings):
            return
        job = self.job.of(self.settings)
        directory = self.settings.workdir or Path.cwd()
        script = job.script(
            "tls://doctor",
            "doctor",
            prologue=worker_exports(job, directory),
            directives=job.directives(()),
        )
        yield from told(self.examine(script))
        found, address = find_address(job.scheduler_options)
        yield from told(iter([found]))
        if address is None or any(finding.level == "FAIL" for finding in findings):
            text = "no probe job was sent, as no worker job could start"
            yield warned(text, "mend the above first")
            return
        try:
            post = Post(address, directory)
        except OSError as error:
            yield failed(
                f"cannot listen on {address}: {error.strerror}",
                f"name an interface of this machine: --set {job.section}.interface=NAME",
            )
            return
        with closing(post):
            header = [line for line in script.splitlines() if line.startswith(job.prefix)]
            yield from probe_by_job(self.queue, script, header, post, patience)
