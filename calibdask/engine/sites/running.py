"""A Dask scheduler that somebody else started, or that of another campaign."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.engine.session import Session
from calibdask.engine.sites.scheduler import DaskSite, connect_client
from calibdask.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from calibdask.engine.dask import DaskExecutor

__all__ = ["RunningScheduler"]


class RunningScheduler(DaskSite):
    """The scheduler at an address or in a scheduler file, which stays when the run ends."""

    @contextmanager
    def start(self) -> Iterator[tuple[DaskExecutor, Client, str | None]]:
        """Connect to it."""
        from calibdask.engine.dask import DaskExecutor

        with self._connection() as client:
            yield DaskExecutor(client, "dask"), client, client.dashboard_link

    def _connection(self) -> Client:
        from distributed import Client

        is_file = Path(self.where).is_file()
        if is_file and Path(self.where).name == "session.json":
            return connect_client(Session(Path(self.where).parent))
        try:
            return Client(
                scheduler_file=self.where if is_file else None,
                address=None if is_file else self.where,
                set_as_default=False,
                timeout="20s",
            )
        except (OSError, TimeoutError, ValueError) as error:
            text = f"no Dask scheduler answers at {self.where}: {error}"
            raise TransientError(text) from error
