"""Joining a running campaign from another process: another terminal, or a notebook."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from calibdask.access import check_private
from calibdask.engine.campaign import find_workdir, read_status
from calibdask.engine.events import tunnel_command
from calibdask.engine.lock import holder_of
from calibdask.engine.places import REMEDY
from calibdask.engine.session import Session
from calibdask.engine.shown import facts_html, facts_text
from calibdask.engine.store import Store
from calibdask.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from astropy.table import QTable
    from distributed import Client

    from calibdask.engine.campaign import Status
    from calibdask.engine.preliminary import Preliminary

__all__ = ["Campaign", "connect"]


class Campaign:
    """A connection to a running campaign; closing it does not touch the campaign.

    Use it in a ``with`` statement, or call :meth:`close`. It is shown by ``print`` and, in a
    notebook, by its name.

    Parameters
    ----------
    workdir : Path
        The campaign's work directory.
    client : distributed.Client
        A connection to its scheduler.
    described : mapping
        What the campaign's session says.
    """

    def __init__(self, workdir: Path, client: Client, described: Mapping[str, Any]) -> None:
        self.workdir = workdir
        self.client = client
        self._described = described

    def status(self) -> Status:
        """Return how far the campaign is."""
        return read_status(self.workdir)

    def workers(self) -> QTable:
        """List the workers: name, host, tasks at hand, memory.

        Raises
        ------
        TransientError
            The campaign is over, or its scheduler does not answer.
        """
        import astropy.units as u
        from astropy.table import QTable

        found = self._ask(lambda: self.client.scheduler_info(n_workers=-1))["workers"].values()
        workers: list[Mapping[str, Any]] = sorted(found, key=lambda one: str(one["name"]))
        metrics = [one.get("metrics") or {} for one in workers]  # none before its first heartbeat
        tasks = [sum((one.get("task_counts") or {}).values()) for one in metrics]
        memory = [one.get("memory", 0) for one in metrics]
        return QTable(
            {
                "name": [str(one["name"]) for one in workers],
                "host": [str(one["host"]) for one in workers],
                "tasks": tasks,
                "memory": (memory * u.byte).to(u.Mibyte),
            }
        )

    @property
    def dashboard(self) -> str | None:
        """Address of Dask's dashboard on the host where the campaign runs."""
        return self._described.get("dashboard")

    @property
    def tunnel(self) -> str | None:
        """The command that makes the dashboard seen where you sit."""
        link = self.dashboard
        return None if link is None else tunnel_command(link, self._described["host"])

    def preliminary(self) -> Preliminary:
        """Return the coefficients from what is stored now; no input is read, nothing is written.

        Raises
        ------
        TransientError
            The campaign has not made its plan known yet, or is over.
        ConfigError
            Its calibration is in a module that cannot be imported here.
        """
        from calibdask.engine.dask import announced
        from calibdask.engine.preliminary import preliminary

        try:
            found = self._ask(lambda: announced(self.client))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.workdir}: the campaign's calibration cannot be imported here ({error}):"
                " connect from the same environment, with the same PYTHONPATH"
            ) from error
        if found is None:
            raise TransientError(f"{self.workdir}: the campaign is starting or ending: try again")
        plan, context = found
        # The campaign may have named its store relative to where it was started.
        return preliminary(plan, replace(context, store=Store(self.workdir / "store")))

    def _ask[T](self, question: Callable[[], T]) -> T:
        try:
            answer = question()
            # A client that has lost its scheduler goes on giving what it knew last.
            if self.client.status == "running":
                return answer
            reason = f"the connection is {self.client.status}"
        except (OSError, TimeoutError, ValueError) as error:
            # Tornado raises ValueError where a connection breaks as TLS begins.
            reason = str(error)
        raise TransientError(
            f"{self.workdir}: the campaign's scheduler does not answer any more ({reason});"
            " calibdask status tells how it ended"
        )

    def facts(self) -> list[tuple[str, str]]:
        """Return what there is to say, with names, for printing."""
        facts = self.status().facts()
        try:
            workers = self.workers()
        except TransientError as error:
            return [*facts, ("connection", str(error))]
        for worker in workers:
            text = f"on {worker['host']}: {worker['tasks']} tasks, {worker['memory'].value:.0f} MiB"
            facts.append((f"worker {worker['name']}", text))
        return [(name, value) for name, value in facts if value]

    def __str__(self) -> str:
        """Show status and workers."""
        return facts_text(self.facts())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return facts_html(self.facts())

    def close(self) -> None:
        """Take the connection away; the campaign goes on."""
        # A client closed while it looks for a lost scheduler would log a traceback.
        log = logging.getLogger("distributed.client")
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            self.client.close()
        finally:
            log.setLevel(level)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(path: Path) -> Campaign:
    """Join a running campaign with the certificates of its own run.

    Parameters
    ----------
    path : Path
        Its work directory, or its output.

    Raises
    ------
    ConfigError
        No campaign with a scheduler runs there, it is another user's, or nobody answers.
    TransientError
        The campaign is about to begin or to end.
    """
    from calibdask.engine.sites.scheduler import connect_client

    workdir = find_workdir(path)
    holder = holder_of(workdir)
    if holder is None or not holder.alive:
        died = f": {holder.name} died" if holder is not None else ""
        raise ConfigError(
            f"{workdir}: no campaign is running here{died}; 'calibdask status {workdir}' tells what"
            " was done and how to carry on"
        )
    session = Session(workdir / "session")
    if not session.directory.exists():
        raise ConfigError(
            f"{workdir}: {holder.name} has no scheduler to connect to: it is still planning, or"
            " works alone (--cluster serial or threads) or on another's scheduler; 'calibdask"
            f" status --watch {workdir}' follows it"
        )
    check_private(workdir, remedy=REMEDY)
    if os.access(session.directory, os.X_OK) and not session.description.exists():
        raise TransientError(
            f"{workdir}: {holder.name} is starting or ending its scheduler: try again in a moment"
        )
    described = session.read()
    _check_reachable(workdir, described)
    return Campaign(workdir, connect_client(session), described)


def _check_reachable(workdir: Path, described: Mapping[str, Any]) -> None:
    """Refuse early what would only run into a time limit.

    Raises
    ------
    ConfigError
        The scheduler listens on the loopback of another host.
    """
    host = described["host"]
    listens = urlsplit(described["address"]).hostname or ""
    try:
        is_loopback = ipaddress.ip_address(listens).is_loopback
    except ValueError:  # a name
        is_loopback = listens == "localhost"
    if is_loopback and host != socket.gethostname():
        raise ConfigError(
            f"{workdir}: the campaign runs on {host} and can be reached from there only; log in"
            f" there, or follow it from here with 'calibdask status --watch {workdir}'"
        )
