"""Checks a machine or a site before a campaign does: what would fail there, and what to do.

Each check gives one `Finding`, or some; those of a kind of cluster are with its site. Nothing is
changed: what is written is removed again, and the probe job is cancelled if it has not ended.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.access import check_private
from calibdask.config import BATCH_SECTIONS, ENGINE_SECTIONS, Campaign, load_config, load_yaml
from calibdask.engine.places import REMEDY
from calibdask.engine.provenance import versions
from calibdask.engine.sites.base import Settings
from calibdask.engine.sites.findings import Finding, failed, passed, warned
from calibdask.engine.sites.table import find_site
from calibdask.errors import ConfigError
from calibdask.stats.compiled import cache_problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["cluster_settings", "examine"]

_GIB = 1024**3
_LITTLE_SPACE = 10 * _GIB
_FEW_INODES = 100_000


def cluster_settings(
    where: str, config: Sequence[Path], overrides: Mapping[str, object], workdir: Path | None
) -> Settings:
    """Read from a job's configuration what concerns the cluster.

    Parameters
    ----------
    where : str
        The site.
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
    section = find_site(where).section
    return Settings(
        worker_memory=found.get("Campaign", Campaign).worker_memory,
        workdir=workdir,
        jobqueue=found.get(section, BATCH_SECTIONS[section]).model_extra or {} if section else {},
    )


def examine(where: str, settings: Settings, *, patience: float = 120.0) -> Iterator[Finding]:
    """Check whether a campaign would run.

    Parameters
    ----------
    where : str
        The site.
    settings : Settings
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
        The options are wrong, or the site cannot be used from this process.
    """
    kind = find_site(where)
    kind(where, settings).require()
    yield check_packages(versions())
    yield check_cache()
    parent = _existing(settings.workdir or Path.cwd())
    if settings.workdir is not None and (strange := check_owner(settings.workdir)) is not None:
        yield strange
    try:
        held = tempfile.TemporaryDirectory(
            prefix=".calibdask-doctor-",
            dir=parent,
            ignore_cleanup_errors=True,  # NFS keeps a file for a while that a node has open
        )
    except OSError as error:
        yield failed(
            f"work directory {parent}: cannot be written into: {error.strerror}",
            "choose another with --workdir",
        )
        return
    with held as name:
        directory = Path(name).absolute()
        yield from check_directory(directory)
        yield from kind(where, replace(settings, workdir=directory)).describe(patience)


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
        return failed(
            f"{sys.executable}: has no {', '.join(absent)}",
            "install calibdask with its requirements: pip install calibdask",
        )
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    return passed(f"{sys.executable}: {names}")


def check_cache() -> Finding:
    """Check that nobody else can put code into the cache of compiled kernels."""
    if problem := cache_problem():
        what, _, remedy = problem.partition("; ")
        return warned(f"cache of compiled kernels: {what}", remedy)
    return passed("the cache of compiled kernels is yours alone")


def check_owner(workdir: Path) -> Finding | None:
    """Check that an existing work directory is one that a run would take."""
    try:
        check_private(workdir, remedy=REMEDY)
    except ConfigError as error:
        what, _, remedy = str(error).partition("; ")
        return failed(f"work directory {what}", remedy)
    return None


def check_directory(directory: Path) -> Iterator[Finding]:
    """Check that a directory can do what the store, the lock and the certificates need."""
    where = f"work directory {directory.parent}"
    elsewhere = "choose a --workdir on another file system"
    first, second = directory / "first", directory / "second"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        os.close(os.open(first, flags, 0o600))
        if first.stat().st_mode & 0o077:
            yield failed(
                f"{where}: knows no permissions, so the run's key would be open", elsewhere
            )
        try:
            os.close(os.open(first, flags))
        except FileExistsError:
            pass
        else:
            yield failed(f"{where}: O_EXCL lets two create one file, so no lock holds", elsewhere)
        second.write_bytes(b"calibdask")
        with second.open("rb+") as file:
            os.fsync(file.fileno())
        second.replace(first)
        if second.exists() or first.read_bytes() != b"calibdask":
            yield failed(f"{where}: a rename does not replace a file", elsewhere)
            return
        yield _check_link(where, first, second)
        yield _check_space(where, os.statvfs(directory))
    except OSError as error:
        yield failed(f"{where}: {error.strerror or error}", elsewhere)


def _check_link(where: str, first: Path, second: Path) -> Finding:
    try:
        os.link(first, second)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
        return warned(
            f"{where}: writable, but knows no hard links; renames are used instead",
            "nothing, unless two runs could share a store",
        )
    return passed(f"{where}: writable; exclusive creation, renames and hard links work")


def _check_space(where: str, status: os.statvfs_result) -> Finding:
    free = status.f_bavail * status.f_frsize
    what = f"{where}: {free / _GIB:.1f} GiB free"
    # Some file systems make inodes as needed and count none.
    inodes = status.f_favail if status.f_files else None
    if inodes is not None:
        what += f", {inodes} more files possible"
    remedy = "'calibdask plan' tells what a campaign needs; make room or choose another --workdir"
    if free == 0 or inodes == 0:
        return failed(what, remedy)
    if free < _LITTLE_SPACE or (inodes is not None and inodes < _FEW_INODES):
        return warned(what, remedy)
    return passed(what)
