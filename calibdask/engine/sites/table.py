"""The sites by name: the one list that options, checks, doctor and batch scripts use."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from calibdask.engine.executors import Executor
    from calibdask.engine.sites.base import Settings, Site

__all__ = ["SITES", "Entry", "check_cluster", "cluster_help", "find_site", "open_executor"]


@dataclass(frozen=True)
class Entry:
    """A site by its name.

    Attributes
    ----------
    summary : str
        Where its tasks run, for the help text.
    target : str
        Its class, as ``module:class`` below this package.
    examined : bool
        Whether the doctor has checks for it.
    """

    summary: str
    target: str
    examined: bool = True

    def load(self) -> type[Site]:
        """Import the class."""
        module, _, name = self.target.partition(":")
        found: type[Site] = getattr(import_module(f"calibdask.engine.sites.{module}"), name)
        return found


SITES: dict[str, Entry] = {
    "serial": Entry("", "inprocess:Serial", examined=False),
    "threads": Entry("", "inprocess:Threads", examined=False),
    "local": Entry("worker processes on this machine", "local:Local"),
    "slurm": Entry("worker jobs, from a login node or a head job", "slurm:Slurm"),
    "allocation": Entry("inside a job of 'calibdask sbatch-script'", "allocation:Allocation"),
    "torque": Entry("worker jobs of Torque or PBS", "torque:Torque"),
}


def cluster_help() -> str:
    """Return the sites with their summaries, in one line."""
    return ", ".join(
        f"{name} ({one.summary})" if one.summary else name for name, one in SITES.items()
    )


def find_site(where: str) -> type[Site]:
    """Return the class of a site.

    Parameters
    ----------
    where : str
        A name in :data:`SITES`, the address of a Dask scheduler, or its scheduler file.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if where in SITES:
        return SITES[where].load()
    if not Path(where).is_file():
        host, colon, port = where.rpartition(":")
        if not colon or not host.strip(":/"):
            raise ConfigError(
                f"--cluster {where}: is neither {', '.join(SITES)}, the address of a Dask scheduler"
                " (host:port) nor a scheduler file"
            )
        if "://" not in where and not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ConfigError(f"--cluster {where}: {port!r} is no port: write HOST:PORT")
    from calibdask.engine.sites.running import RunningScheduler

    return RunningScheduler


def check_cluster(where: str, settings: Settings) -> None:
    """Refuse a cluster that cannot be opened, before any work; nothing is connected to.

    Raises
    ------
    ConfigError
        `where` is neither ``auto`` nor a site, or the site refuses the settings.
    """
    if where != "auto":
        find_site(where)(where, settings).check()


def open_executor(
    where: str, settings: Settings
) -> AbstractContextManager[tuple[Executor, str | None]]:
    """Open a site; see :meth:`calibdask.engine.sites.base.Site.open`."""
    return find_site(where)(where, settings).open()
