"""Content-addressed, atomic, pickle-free checkpoints.

One file per task, an uncompressed ``.npz`` whose members are arrays in groups, with a JSON header
as one more member. NumPy's own format carries a checksum for every member, and opening it never
runs anything. The name is the address: the same work gives the same name, so what is there need
not be done again, whoever did it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import struct
import time
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from uuid import uuid4

import numpy as np

from calibdask.errors import CalibdaskError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays

__all__ = ["CorruptResult", "Pack", "Store", "StoreFailure"]

FORMAT = 2
_HEADER = "header.json"
_STALE = {errno.ENOENT, errno.ESTALE, errno.EIO}
# What NumPy and zipfile raise where bits are wrong: a flipped one can look like encryption, an
# unknown version or a length that no file has.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error,
    ValueError, KeyError, TypeError, EOFError, OverflowError, RuntimeError,
)  # fmt: skip


class StoreFailure(CalibdaskError):
    """Nothing can be stored: the disk is full, or may not be written."""


class CorruptResult(CalibdaskError):
    """A stored result cannot be read: it is computed again."""


def _patiently[T](action: Callable[[], T], path: Path, *, tries: int = 4) -> T:
    """Try again where a network file system may still show an old directory."""
    for attempt in range(tries):
        try:
            return action()
        except OSError as error:
            if error.errno not in _STALE or attempt == tries - 1:
                raise TransientError(
                    f"{path}: {error.strerror or error} (tried {attempt + 1} times)"
                ) from error
            time.sleep(0.05 * 4**attempt)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell a broken result from a file system that does not answer."""
    try:
        yield
    except _BROKEN as error:
        raise CorruptResult(f"{path}: stored result is broken ({error})") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a broken index points before the file's beginning
            raise CorruptResult(f"{path}: stored result is broken ({error})") from error
        raise TransientError(f"{path}: {error.strerror or error}") from error


def _open(path: Path) -> BinaryIO:
    """Open a stored result; where something else lies in its place, that is broken."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would make us wait
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket, a link to itself
            raise CorruptResult(f"{path}: stored result is broken ({error.strerror})") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptResult(f"{path}: stored result is broken (not a regular file)")
    return os.fdopen(descriptor, "rb")


def _create(path: Path) -> BinaryIO:
    """Open a new file, in a directory that is nearly always there already."""
    try:
        return path.open("x+b")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("x+b")


def _checked_header(archive: Any, address: str) -> dict[str, Any]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise zipfile.BadZipFile("not an archive")
    header: dict[str, Any] = json.loads(archive[_HEADER].tobytes())
    if header["address"] != address or header["format"] != FORMAT:
        raise ValueError("has another address or format")
    # The archive's index has no checksum: a flipped bit there would hide a member. And members that
    # were put in the place of others have other checksums.
    found = {
        one.filename.removesuffix(".npy"): one.CRC
        for one in (archive.zip.infolist() if archive.zip else ())
    }
    if {name: found[name] for name in found.keys() - {_HEADER}} != header["members"]:
        raise ValueError("its members are not those that were stored")
    return header


def _write(file: BinaryIO, header: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Write an archive; its header comes last, as it holds the checksums of the members."""
    np.savez(file, allow_pickle=False, **members)
    with zipfile.ZipFile(file, "a") as archive:
        sums = {one.filename.removesuffix(".npy"): one.CRC for one in archive.infolist()}
        text = json.dumps({**header, "members": sums}, sort_keys=True)
        with archive.open(f"{_HEADER}.npy", "w") as stream:
            content = np.frombuffer(text.encode(), dtype=np.uint8)
            np.lib.format.write_array(stream, content, allow_pickle=False)


class Pack:
    """One stored result: a header and groups of arrays, read when asked for."""

    def __init__(self, path: Path, address: str) -> None:
        self.path = path
        # NumPy leaves a broken archive open, so the file is opened and closed here.
        self._file = _patiently(lambda: _open(path), path)
        try:
            with _reading(path):
                self._archive = np.load(self._file, allow_pickle=False)
                self.header = _checked_header(self._archive, address)
        except BaseException:
            self._file.close()
            raise

    def group(
        self, group: str, choose: Callable[[Iterable[str]], Iterable[str]] = iter
    ) -> dict[str, NDArray[Any]]:
        """Read the arrays of one group, or some of them (none where the group was not stored).

        Raises
        ------
        CorruptResult
            A checksum or a length is wrong.
        """
        prefix = f"{group}/"
        with _reading(self.path):
            names = [
                name.removeprefix(prefix) for name in self._archive.files if name.startswith(prefix)
            ]
            return {name: self._archive[prefix + name] for name in choose(names)}

    def check(self) -> None:
        """Read every member once (CorruptResult as for :meth:`group`)."""
        with _reading(self.path):
            for name in self._archive.files:
                self._archive[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()


class Store:
    """A directory of results by address."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, address: str) -> Path:
        """Give the place of a result: 256 directories keep each of them small."""
        return self.root / address[:2] / f"{address}.npz"

    def scan(self) -> set[str]:
        """List the addresses of all results there are, with one look at each directory."""
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as prefixes:
            for prefix in prefixes:
                if prefix.is_dir():
                    with os.scandir(prefix.path) as entries:
                        found.update(
                            entry.name.removesuffix(".npz")
                            for entry in entries
                            if entry.name.endswith(".npz") and entry.is_file(follow_symlinks=False)
                        )
        return found

    def has(self, address: str) -> bool:
        """Tell whether there is a result at an address (not whether it is sound)."""
        return self.path(address).exists()

    def open(self, address: str) -> Pack:
        """Open a result.

        Raises
        ------
        CorruptResult
            The file is there but broken.
        TransientError
            It is not there, or the file system does not answer.
        """
        return Pack(self.path(address), address)

    def is_sound(self, address: str) -> bool:
        """Read a result whole and tell whether every checksum holds."""
        try:
            with self.open(address) as pack:
                pack.check()
        except CorruptResult:
            return False
        return True

    def save(self, address: str, header: Mapping[str, Any], groups: Mapping[str, Arrays]) -> None:
        """Store a result in one atomic step; the first sound result at an address stays.

        Raises
        ------
        StoreFailure
            The store cannot be written (disk full, no permission).
        """
        members: dict[str, NDArray[Any]] = {
            f"{group}/{name}": np.asarray(array)
            for group, arrays in groups.items()
            for name, array in arrays.items()
        }
        whole = {**header, "address": address, "format": FORMAT}
        final = self.path(address)
        temporary = final.parent / f".{address}.{uuid4().hex}.tmp"
        try:
            try:
                with _create(temporary) as file:
                    _write(file, whole, members)
                try:
                    os.link(temporary, final)
                except FileExistsError:
                    if not self.is_sound(address):
                        self.discard(address)
                        temporary.replace(final)
                except OSError as error:
                    # Some file systems have no hard links. Same address, same content: replacing
                    # is safe, only not first-come.
                    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP):
                        raise
                    temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StoreFailure(
                f"cannot store a result in {final.parent}: {error.strerror or error}; free some"
                " space or choose another place with --workdir, then run the same command again"
            ) from error

    def discard(self, address: str) -> None:
        """Remove a result that turned out to be broken, whatever lies at its address."""
        path = self.path(address)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
