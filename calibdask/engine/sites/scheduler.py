"""A Dask scheduler in this process, and what its workers need wherever they run.

Scheduler and workers speak TLS with certificates made for the run, and pages over HTTP are served
on 127.0.0.1 alone.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from abc import abstractmethod
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine import events
from calibdask.engine.session import Session
from calibdask.engine.sites.base import Settings, Site
from calibdask.engine.sites.keeper import Keeper, Launcher, unit_of
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

    from distributed import Client, Security

    from calibdask.engine.dask import DaskExecutor
    from calibdask.engine.executors import Executor

__all__ = [
    "DaskSite",
    "connect_client",
    "keeping",
    "making_session",
    "publish",
    "python_environment",
    "running_scheduler",
    "security_of",
    "worker_arguments",
    "worker_environment",
]  # fmt: skip


class DaskSite(Site):
    """A site whose tasks run on the workers of a Dask scheduler."""

    @abstractmethod
    def start(self) -> AbstractContextManager[tuple[DaskExecutor, Client, str | None]]:
        """Start it, or connect to it, and give executor, connection and dashboard's address."""

    @contextmanager
    def open(self) -> Iterator[tuple[Executor, str | None]]:
        """Start it and close it at the end."""
        workdir, report = self.settings.workdir, self.settings.performance_report
        if workdir is not None:
            try:
                os.fsencode(workdir.absolute()).decode("utf-8")
            except UnicodeDecodeError:
                raise ConfigError(
                    f"{workdir}: the name is not UTF-8, and Dask cannot tell it to its workers:"
                    " choose another with --workdir, or --cluster serial"
                ) from None
        import dask
        from distributed import performance_report as write_performance_report

        self.check()
        with (
            dask.config.set(_dask_settings(profile=report is not None)),
            self.start() as (executor, client, link),
        ):
            try:
                if report is None:
                    yield executor, link
                else:
                    with client.as_current(), write_performance_report(str(report)):
                        yield executor, link
            finally:
                executor.close()


def _dask_settings(*, profile: bool) -> dict[str, Any]:
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
def making_session(settings: Settings) -> Iterator[tuple[Session, Security]]:
    """Make certificates and scratch for one run; they are gone when it ends."""
    import dask
    from distributed import Security

    made = Security.temporary().get_tls_config_for_role("scheduler")
    with tempfile.TemporaryDirectory(prefix="calibdask-") as temporary:
        session = Session.create(settings.workdir or Path(temporary), made["cert"], made["key"])
        try:
            # Dask would use a directory with a known name in /tmp, whoever owns it, and puts it on
            # Python's path.
            with dask.config.set({"temporary-directory": str(session.scratch.absolute())}):
                yield session, security_of(session)
        finally:
            session.remove()


def publish(session: Session, cluster: Any, site: Site) -> str | None:
    """Describe where the scheduler is; give the address of its dashboard."""
    # Dask would name the address that workers connect to, where no page is served.
    port = cluster.scheduler.http_server.port
    link = f"http://127.0.0.1:{port}/status" if site.settings.dashboard else None
    # Who runs it, and since when, is in the lock and in the progress file.
    session.publish(
        {
            "address": cluster.scheduler_address,
            "dashboard": link,
            "host": socket.gethostname(),
            "site": site.where,
            "worker_jobs": [],
        }
    )
    return link


# -- the scheduler --------------------------------------------------------------------------------


@contextmanager
def running_scheduler(
    security: Security, settings: Settings, options: Mapping[str, Any]
) -> Iterator[tuple[Any, Client]]:
    """Run a scheduler in this process, for workers that come from elsewhere, and connect to it.

    dask-jobqueue's own cluster is not used: it never replaces a worker that was lost, waits for
    ever for one that cannot start, cancels healthy jobs whose worker is restarting, and cannot be
    closed after a failed submission.
    """
    from distributed import Client, Scheduler
    from distributed.deploy.spec import SpecCluster

    defaults = {
        "protocol": "tls://",
        "security": security,
        "dashboard": settings.dashboard,
        "dashboard_address": "127.0.0.1:0",
    }
    spec = {"cls": Scheduler, "options": {**defaults, **options}}
    with (
        SpecCluster(
            workers={}, scheduler=spec, security=security, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def python_environment() -> dict[str, str]:
    """Return the environment of a Python that does not look into the current directory."""
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environment = {"PYTHONSAFEPATH": "1"}
    if named:
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, named))
    return environment


def worker_arguments(session: Session) -> list[str]:
    """Return what every ``dask worker`` of ours is told."""
    certificate, key = str(session.certificate.absolute()), str(session.key.absolute())
    return [
        *("--protocol", "tls"),
        *("--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key),
        # Without an address the page of a worker would be open to the network, even if it is off.
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--preload", "calibdask.engine.preflight"),
    ]


def worker_environment(scratch: Path) -> dict[str, str]:
    """Return the environment that every ``dask worker`` needs, also where none is passed on."""
    from calibdask.engine.provenance import code_digest

    inherited = ("NPY_DISABLE_CPU_FEATURES", "NUMBA_CACHE_DIR", "OPENBLAS_CORETYPE")
    return {
        **python_environment(),
        "DASK_TEMPORARY_DIRECTORY": str(scratch.absolute()),
        "DASK_DISTRIBUTED__WORKER__USE_FILE_LOCKING": "False",
        "CALIBDASK_EXPECTED_CODE": code_digest(),
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        **{name: os.environ[name] for name in inherited if os.environ.get(name)},
    }


@contextmanager
def keeping(
    launcher: Launcher,
    cluster: Any,
    client: Client,
    settings: Settings,
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
            settings.emit(event)

    def changed(jobs: list[str]) -> None:
        if here:
            return
        # For calibdask cancel, should this process die: not worth ending a run on a full disk.
        with suppress(OSError):
            session.update({"worker_jobs": jobs})

    here = launcher.local
    workers = (launcher.n_workers, launcher.n_workers)
    if settings.workers and not here:
        workers = settings.least_and_most
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
