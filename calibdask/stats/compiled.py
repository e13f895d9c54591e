"""Compiled kernels: numba's compiler, with a cache that an edited source never leaves stale.

numba notices that the file of a function has changed, but not that of a function it calls, and a
compiled kernel then goes on giving the old numbers. So the cache has the digest of the sources in
its name.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from calibdask.access import check_private, make_private
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cache_directory", "cache_problem", "compiled", "will_compile"]

_REMEDY = (
    "kernels are compiled in each process instead; remove it, or name another with NUMBA_CACHE_DIR"
)
_ONE_AT_A_TIME = threading.Lock()


def cache_directory(package: Path) -> Path:
    """Return the place where the compiled kernels of a package are kept.

    It is in the user's own cache directory (``XDG_CACHE_HOME``, else ``~/.cache``). Set
    ``NUMBA_CACHE_DIR`` for a disk of the node's own; it is used in the same way.

    Parameters
    ----------
    package : Path
        Directory of the sources: those with kernels, and those of the statistics, name the cache.
    """
    return _places()[-1] / _digest(package)


def _places() -> list[Path]:
    """List the directories that are ours, from the outermost to the one of all caches."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(given)]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "calibdask"
    return [home, home / "numba"]


def cache_problem() -> str | None:
    """Return why compiled kernels are not kept, as far as others are the reason; None if they are.

    What is in the cache is executed: nobody else may own it or write to it.
    """
    try:
        for path in _places():
            check_private(path, remedy=_REMEDY)
    except (ConfigError, RuntimeError) as error:  # RuntimeError: there is no home
        return str(error)
    return None


def _make_cache(package: Path) -> Path:
    """Make the cache of a package, for this user alone."""
    directory = cache_directory(package)
    places = [*_places(), directory]
    places[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in places:
        make_private(path, remedy=_REMEDY)
    return directory


def will_compile(package: Path) -> bool:
    """Return whether a package has kernels of which none has been compiled and kept yet."""
    has_kernels = any(b"\n@compiled" in path.read_bytes() for path in package.glob("*.py"))
    if not has_kernels:
        return False
    try:
        return next(cache_directory(package).rglob("*.nbc"), None) is None
    except OSError:
        return True


@functools.cache
def _digest(package: Path) -> str:
    total = hashlib.sha256()
    for directory in (package, Path(__file__).parent):
        for path in sorted(directory.glob("*.py")):
            source = path.read_bytes()
            if b"@compiled" in source or path.name == Path(__file__).name:
                total.update(f"{path.name} {len(source)}\n".encode())
                total.update(source)
    return total.hexdigest()[:16]


def compiled[F: Callable[..., Any]](function: F) -> F:
    """Compile a function for the types it is first called with, and keep what was compiled.

    Kernels release Python's lock, so that threads compute side by side. Where nothing can be kept
    (no home, or one that cannot be written to, a full disk, a cache that others may write to), they
    are compiled in each process.
    Kernels may call kernels of their own package and of `calibdask.stats`, no others.
    """
    import numba

    config: Any = numba.config
    package = Path(inspect.getfile(function)).parent
    with _ONE_AT_A_TIME:
        before = config.CACHE_DIR
        try:
            # It is looked up while a function is decorated. Other libraries keep theirs.
            config.CACHE_DIR = str(_make_cache(package))
            kernel: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        except (ConfigError, OSError, RuntimeError):
            # RuntimeError: "cannot cache function: no locator available", or there is no home.
            kernel = numba.njit(nogil=True, error_model="numpy")(function)
        finally:
            config.CACHE_DIR = before
    _forgive(kernel)
    return cast("F", kernel)


def warm_up() -> None:
    """Prepare for tasks: what this does holds for processes that are forked from this one.

    numba, where it is in use, loads what its first kernel needs. And arrays that a task makes and
    frees again and again stay with the process: glibc returns blocks to the system that are as
    large as the largest that it has freed so far, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD), and
    each page that comes anew costs as much as the arithmetic on it.
    """
    np.empty(2**25 - 2**13, np.uint8)  # freed at once; none of its pages is ever in memory
    if "numba" not in sys.modules:
        return
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def _forgive(kernel: Any) -> None:
    """Let a kernel do without its cache where that cannot be read or written."""

    def forgiving(action: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(action)
        def attempt(*arguments: Any) -> Any:
            try:
                return action(*arguments)
            except OSError:
                return None  # what load_overload() gives where nothing is kept

        return attempt

    cache = kernel._cache
    for name in ("load_overload", "save_overload"):
        setattr(cache, name, forgiving(getattr(cache, name)))
