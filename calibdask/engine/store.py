"""Content-addressed, atomic, pickle-free checkpoints.

One file per result: groups of arrays behind a JSON header. The name is the address: the same work
gives the same name, so what is there need not be done again, whoever did it. Results of many small
cells share a file, a bundle, whose header lists their addresses. The file is ::

    magic        8 bytes, "cdpack" and the number of this format
    checksum     4 bytes, CRC-32 of the header (numbers are little-endian)
    length       8 bytes, of the header
    header       JSON; "arrays" lists [name, type, shape, order, CRC-32] of each array
    arrays       their bytes, one after the other

Every byte is under a checksum, and opening a file never runs anything. Results of some 20 small
arrays are read seven times as fast as ``.npz`` archives and written four times as fast.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import threading
import time
import weakref
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from uuid import uuid4

import numpy as np

from calibdask.engine.canonical import digest_json
from calibdask.errors import CalibdaskError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays

__all__ = ["SUFFIX", "CorruptResult", "Pack", "Store", "StoreFailure"]

SUFFIX = ".pack"
_BUNDLES = "bundles"  # directory of the files that hold several results
_MOST_OPEN = 128  # bundles, by a process
_MAGIC = b"cdpack\x00\x03"
_PREFIX_BYTES = len(_MAGIC) + 4 + 8
_KINDS = "biufcmMSU"  # of NumPy types whose values are their bytes
_STALE = {errno.ENOENT, errno.ESTALE, errno.EIO}
_BROKEN = (ValueError, KeyError, TypeError)


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
    """Distinguish a broken result from a file system that does not answer."""
    try:
        yield
    except _BROKEN as error:
        raise CorruptResult(f"{path}: stored result is broken ({error})") from error
    except OSError as error:
        raise TransientError(f"{path}: {error.strerror or error}") from error


def _open(path: Path) -> int:
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
    return descriptor


def _create(path: Path) -> BinaryIO:
    """Open a new file, in a directory that is nearly always there already."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _bytes_of(array: NDArray[Any], order: str) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous array as they lie in memory, without copying them."""
    flat = (array.T if order == "F" else array).reshape(-1)
    return flat.view(np.uint8) if flat.nbytes else np.empty(0, np.uint8)


def _listed(groups: Mapping[str, Arrays], parts: list[NDArray[np.uint8]]) -> list[list[Any]]:
    """Return the entries of arrays in a header, and add their bytes to `parts`."""
    listed = []
    for group, arrays in groups.items():
        for name, value in arrays.items():
            array = np.asarray(value)
            if array.dtype.kind not in _KINDS:
                raise ValueError(f"{group}/{name}: arrays of {array.dtype} cannot be stored")
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            part = _bytes_of(np.asarray(array, order=order), order)  # type: ignore[call-overload]
            described = array.dtype.str, array.shape, order, zlib.crc32(part)
            listed.append([f"{group}/{name}", *described])
            parts.append(part)
    return listed


def _write(file: BinaryIO, header: Mapping[str, Any], parts: Sequence[NDArray[np.uint8]]) -> None:
    text = json.dumps(header).encode()
    file.write(_MAGIC + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(8, "little"))
    file.write(text)
    file.writelines(parts)


class _Array:
    """Where an array lies in a file, and what it is."""

    __slots__ = ("checksum", "dtype", "n_bytes", "order", "shape", "start")

    def __init__(self, start: int, dtype: str, shape: list[int], order: str, checksum: int) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in _KINDS:
            raise ValueError(f"arrays of {dtype} are not read")
        self.start, self.shape, self.order, self.checksum = start, shape, order, checksum
        self.n_bytes = self.dtype.itemsize * math.prod(shape)

    def read(self, descriptor: int) -> NDArray[Any]:
        array = np.empty(self.shape, self.dtype, self.order)  # type: ignore[call-overload]
        part = _bytes_of(array, self.order)
        done = 0
        while done < self.n_bytes:
            got = os.preadv(descriptor, [part[done:]], self.start + done)
            if not got:
                break
            done += got
        if done != self.n_bytes or zlib.crc32(part) != self.checksum:
            raise ValueError("an array has another checksum")
        return np.asarray(array)


class _File:
    """An open file of the store with its checked header; closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = _patiently(lambda: _open(path), path)
        self.close = weakref.finalize(self, os.close, self.descriptor)
        with _reading(path):
            self.size = os.fstat(self.descriptor).st_size
            prefix = os.pread(self.descriptor, _PREFIX_BYTES, 0)
            if not prefix.startswith(_MAGIC):
                raise ValueError("is not a result in the format of this version")
            checksum = int.from_bytes(prefix[len(_MAGIC) : -8], "little")
            length = int.from_bytes(prefix[-8:], "little")
            text = os.pread(self.descriptor, min(length, self.size), _PREFIX_BYTES)
            if len(text) != length or zlib.crc32(text) != checksum:
                raise ValueError("the header has another checksum")
            self.header: dict[str, Any] = json.loads(text)
            self.start = _PREFIX_BYTES + length

    def arrays(self, listed: Iterable[Sequence[Any]], start: int) -> tuple[dict[str, _Array], int]:
        """Return the arrays of a list in the header, and where the next one begins."""
        found = {}
        for name, *described in listed:
            found[name] = _Array(start, *described)
            start += found[name].n_bytes
        return found, start

    def check_end(self, end: int) -> None:
        """Check that the arrays fill the file."""
        if self.size != end:
            raise ValueError(f"has {self.size} bytes, not {end}")


class Pack:
    """One stored result: a header and groups of arrays, read when asked for."""

    def __init__(self, file: _File, header: Mapping[str, Any], arrays: dict[str, _Array]) -> None:
        self.path = file.path
        self.header = header
        self._file = file
        self._arrays = arrays

    @classmethod
    def whole(cls, path: Path, address: str) -> Self:
        """Open a file that holds one result."""
        file = _File(path)
        with _reading(path):
            if file.header["address"] != address:
                raise ValueError("has another address")
            arrays, end = file.arrays(file.header.pop("arrays"), file.start)
            file.check_end(end)
        return cls(file, file.header, arrays)

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
        names = [name.removeprefix(prefix) for name in self._arrays if name.startswith(prefix)]
        descriptor = self._file.descriptor
        with _reading(self.path):
            return {name: self._arrays[prefix + name].read(descriptor) for name in choose(names)}

    def check(self) -> None:
        """Read every array once (CorruptResult as for :meth:`group`)."""
        with _reading(self.path):
            for array in self._arrays.values():
                array.read(self._file.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the file: it is closed with the last result in it that is open."""


class _Bundle:
    """A file that holds several results."""

    def __init__(self, path: Path) -> None:
        self.file = _File(path)
        with _reading(path):
            self.members: dict[str, tuple[Mapping[str, Any], list[Any], int]] = {
                address: described for address, *described in self.file.header["members"]
            }
            self.file.check_end(self.file.start + self.file.header["n_bytes"])

    def open(self, address: str) -> Pack:
        """Open one of the results."""
        with _reading(self.file.path):
            header, listed, start = self.members[address]
            arrays, _ = self.file.arrays(listed, self.file.start + start)
        return Pack(self.file, header, arrays)


class Store:
    """A directory of results by address."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Bundles that hold a result, the newest first: an older one may hold it broken.
        self._bundles_of: dict[str, list[Path]] = {}
        self._known: set[Path] = set()
        self._opened: dict[Path, _Bundle] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return type(self), (self.root,)

    def path(self, address: str) -> Path:
        """Return the file of a result: a bundle, or one in 256 directories, which stay small."""
        if bundles := self._bundles_of.get(address):
            return bundles[0]
        return self.root / address[:2] / f"{address}{SUFFIX}"

    def look(self) -> None:
        """Look for results in bundles that were written since the last look."""
        with self._lock:
            new = set((self.root / _BUNDLES).glob(f"[!.]*{SUFFIX}")) - self._known
            for path in sorted(new, key=lambda one: (one.stat().st_mtime_ns, one)):
                self._known.add(path)
                # What is in a broken one cannot be known: it is computed again. It is not removed
                # here, as who looks may be no more than a reader of somebody else's campaign.
                with contextlib.suppress(CorruptResult):
                    self._add(path, _Bundle(path).members)

    def _add(self, path: Path, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._bundles_of.setdefault(address, []).insert(0, path)

    def scan(self) -> set[str]:
        """List the addresses of all results there are, with one look at each directory."""
        self.look()
        found = {address for address, bundles in self._bundles_of.items() if bundles}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as prefixes:
            for prefix in prefixes:
                if prefix.is_dir() and prefix.name != _BUNDLES:
                    with os.scandir(prefix.path) as entries:
                        found.update(
                            entry.name.removesuffix(SUFFIX)
                            for entry in entries
                            if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False)
                        )
        return found

    def has(self, address: str) -> bool:
        """Return whether there is a result at an address (not whether it is sound).

        Of bundles, those count that were there at the last :meth:`look`.
        """
        return bool(self._bundles_of.get(address)) or self.path(address).exists()

    def open(self, address: str) -> Pack:
        """Open a result.

        Raises
        ------
        CorruptResult
            The file is there but broken.
        TransientError
            It is not there, or the file system does not answer.
        """
        if not self.has(address):
            self.look()
        path = self.path(address)
        if not self._bundles_of.get(address):
            return Pack.whole(path, address)
        with self._lock:
            bundle = self._opened.get(path)
            if bundle is None:
                if len(self._opened) == _MOST_OPEN:
                    self._opened.pop(next(iter(self._opened)))
                bundle = self._opened[path] = _Bundle(path)
        return bundle.open(address)

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
        parts: list[NDArray[np.uint8]] = []
        listed = _listed(groups, parts)
        final = self.root / address[:2] / f"{address}{SUFFIX}"
        self._put(final, {**header, "address": address, "arrays": listed}, parts)

    def save_many(
        self, results: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Arrays]]]
    ) -> None:
        """Store several results, each as for :meth:`save`, in one file and one atomic step."""
        parts: list[NDArray[np.uint8]] = []
        members = []
        n_bytes = 0
        for address, header, groups in results:
            before = len(parts)
            members.append([address, header, _listed(groups, parts), n_bytes])
            n_bytes += sum(part.nbytes for part in parts[before:])
        addresses = [address for address, _, _ in results]
        path = self.root / _BUNDLES / f"{digest_json(addresses)}{SUFFIX}"
        self._put(path, {"members": members, "n_bytes": n_bytes}, parts)
        with self._lock:
            self._known.add(path)
            self._opened.pop(path, None)
            self._add(path, addresses)

    def _put(
        self, final: Path, header: Mapping[str, Any], parts: Sequence[NDArray[np.uint8]]
    ) -> None:
        temporary = final.parent / f".{final.name}.{uuid4().hex}.tmp"
        try:
            try:
                with _create(temporary) as file:
                    _write(file, header, parts)
                try:
                    os.link(temporary, final)
                except FileExistsError:
                    if not _is_sound(final):
                        _remove(final)
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
        """Remove a result that turned out to be broken, whatever lies at its address.

        One of a bundle is forgotten, and the others in it stay.
        """
        if bundles := self._bundles_of.get(address):
            bundles.pop(0)
        else:
            _remove(self.path(address))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    """Read a file whole and tell whether every checksum holds."""
    try:
        if path.parent.name == _BUNDLES:
            bundle = _Bundle(path)
            packs = [bundle.open(address) for address in bundle.members]
        else:
            packs = [Pack.whole(path, path.name.removesuffix(SUFFIX))]
        for pack in packs:
            pack.check()
    except CorruptResult:
        return False
    return True
