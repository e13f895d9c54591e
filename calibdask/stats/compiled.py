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

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cache_directory", "compiled", "warm_up"]

_ONE_AT_A_TIME = threading.Lock()


def cache_directory(package: Path) -> Path | None:
    """Give the place where the compiled kernels of a package are kept; None without a home.

    It is in the user's own cache directory (``XDG_CACHE_HOME``, else ``~/.cache``). Set
    ``NUMBA_CACHE_DIR`` for a disk of the node's own; it is used in the same way. What is in there
    is executed: nobody else may write to it.

    Parameters
    ----------
    package : Path
        Directory of the sources: those with kernels, and those of the statistics, name the cache.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME")
    if given:
        root = Path(given)
    elif home:
        root = Path(home) / "calibdask" / "numba"
    else:
        try:
            root = Path.home() / ".cache" / "calibdask" / "numba"
        except RuntimeError:  # a user without a name has no home
            return None
    return root / _digest(package)


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
    (no home, one that cannot be written to, a full disk), they are compiled in each process.
    Kernels may call kernels of their own package and of `calibdask.stats`, no others.
    """
    import numba

    config: Any = numba.config
    package = Path(inspect.getfile(function)).parent
    directory = cache_directory(package)
    with _ONE_AT_A_TIME:
        before = config.CACHE_DIR
        # The directory is looked up while a function is decorated. Other libraries keep theirs.
        config.CACHE_DIR = str(directory)
        try:
            kept = directory is not None
            kernel: Any = numba.njit(cache=kept, nogil=True, error_model="numpy")(function)
        # "cannot cache function: no locator available", or no place left to try one.
        except (RuntimeError, OSError):
            kernel = numba.njit(nogil=True, error_model="numpy")(function)
        finally:
            config.CACHE_DIR = before
    _forgive(kernel)
    return cast("F", kernel)


def warm_up() -> None:
    """Let numba load what every process needs for its first kernel, if there are kernels.

    A process forked from this one finds it in its memory.
    """
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
