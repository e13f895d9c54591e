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
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cache_directory", "compiled", "will_compile"]

_ONE_AT_A_TIME = threading.Lock()


def cache_directory(package: Path) -> Path:
    """Give the place where the compiled kernels of a package are kept.

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
        root = Path("~/.cache/calibdask/numba").expanduser()
    return root / _digest(package)


def will_compile(package: Path) -> bool:
    """Tell whether a package has kernels of which none has been compiled and kept yet."""
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
    (a home that cannot be written to), they are compiled in each process.
    Kernels may call kernels of their own package and of `calibdask.stats`, no others.
    """
    import numba

    config: Any = numba.config
    package = Path(inspect.getfile(function)).parent
    with _ONE_AT_A_TIME:
        before = config.CACHE_DIR
        # The directory is looked up while a function is decorated. Other libraries keep theirs.
        config.CACHE_DIR = str(cache_directory(package))
        try:
            kernel: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            kernel = numba.njit(nogil=True, error_model="numpy")(function)
        finally:
            config.CACHE_DIR = before
    return cast("F", kernel)
