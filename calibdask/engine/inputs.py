"""Input files: which they are, and what identifies their content."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.engine.canonical import read_json
from calibdask.engine.protocol import InputRef
from calibdask.errors import ConfigError, CorruptedInput, MissingInput, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Found",
    "Identities",
    "check_unchanged",
    "find_inputs",
    "identify",
    "is_store",
    "lists_of",
]

_MIB = 1 << 20
_STORE_FILES = ("zarr.json", ".zgroup", ".zarray")


@dataclass(frozen=True, slots=True)
class Found:
    """An input file, and whether it was named itself rather than found in a directory."""

    path: Path
    named: bool


def find_inputs(arguments: Iterable[str | Path], patterns: Sequence[str]) -> list[Found]:
    """Expand files, globs, directories and ``@list.txt`` into files, in a fixed order.

    Parameters
    ----------
    arguments : iterable of str or Path
        What stood behind ``-i``. A list file holds one argument a line, relative to its own
        folder; empty lines and lines that begin with ``#`` are passed over.
    patterns : sequence of str
        Which files to take from a directory.

    Raises
    ------
    ConfigError
        Nothing was given, or a directory, glob or list gives no file.
    MissingInput
        A directory may not be read.
    """
    try:
        return _find_inputs(arguments, patterns)
    except PermissionError as error:
        raise MissingInput(f"{error.filename}: may not be read: {error.strerror}") from error


def _find_inputs(arguments: Iterable[str | Path], patterns: Sequence[str]) -> list[Found]:
    found: list[Found] = []
    for argument in arguments:
        text = os.fspath(argument)
        if text.startswith("@"):
            listing = Path(text[1:])
            try:
                lines = listing.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read the list of inputs {listing}: {error}") from error
            entries = [line.strip() for line in lines]
            entries = [line for line in entries if line and not line.startswith("#")]
            if not entries:
                raise ConfigError(f"the list of inputs {listing} names no file")
            found.extend(find_inputs([listing.parent / entry for entry in entries], patterns))
        elif Path(text).is_dir() and not _is_wanted_store(Path(text), patterns):
            _check_readable(Path(text), deep=any("/" in pattern for pattern in patterns))
            files = {path for pattern in patterns for path in Path(text).glob(pattern)}
            files = {path for path in files if path.is_file() or is_store(path)}
            files = {path for path in files if not path.name.startswith(".")}
            if not files:
                # Patterns of any case, *.[fF][iI][tT][sS], are for the file system, not for people.
                names = (pattern.rpartition("/")[2] for pattern in patterns)
                wanted = ", ".join(re.sub(r"\[(\w)\w\]", r"\1", name) for name in names)
                raise ConfigError(f"no file named {wanted} in the directory {text}")
            found.extend(Found(path, named=False) for path in sorted(files))
        elif not Path(text).exists() and glob.has_magic(text):
            matches = sorted(map(Path, glob.glob(text)))  # noqa: PTH207  Path.glob takes no absolute patterns
            matches = [path for path in matches if path.is_file() or is_store(path)]
            if not matches:
                raise ConfigError(f"no file matches {text!r}")
            found.extend(Found(path, named=False) for path in matches)
        else:
            found.append(Found(Path(text), named=True))
    if not found:
        raise ConfigError("no input was given: name files, globs, directories or @list.txt with -i")
    return found


def _check_readable(directory: Path, *, deep: bool) -> None:
    """Look at every directory that is searched: a glob passes over those it may not read."""

    def refuse(error: OSError) -> None:
        raise error

    for _, below, _ in os.walk(directory, onerror=refuse):
        if not deep:
            break
        below[:] = [name for name in below if not name.endswith(".zarr")]


def lists_of(arguments: Iterable[str | Path]) -> list[Path]:
    """Return the files behind ``@`` among what stood behind ``-i``."""
    texts = [os.fspath(one) for one in arguments]
    return [Path(text[1:]) for text in texts if text.startswith("@")]


def is_store(path: Path) -> bool:
    """Return whether a directory is a Zarr store: one input, though it is many files."""
    try:
        return path.is_dir() and any((path / name).is_file() for name in _STORE_FILES)
    except PermissionError:
        return False


def _is_wanted_store(path: Path, patterns: Sequence[str]) -> bool:
    names = {pattern.rpartition("/")[2] for pattern in patterns}
    return is_store(path) and any(fnmatch(path.name, name) for name in names)


def _files(path: Path) -> list[tuple[str, os.stat_result]]:
    """List the files of a store by their place in it."""
    return [
        (one.relative_to(path).as_posix(), one.stat())
        for one in sorted(path.rglob("*"))
        if one.is_file()
    ]


def _status(path: Path) -> tuple[int, int]:
    """Return bytes and time of last modification of a file, or of all that a store holds."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime_ns
    inside = [status for _, status in _files(path)]
    return sum(one.st_size for one in inside), max((one.st_mtime_ns for one in inside), default=0)


def _full_digest(path: Path) -> str:
    if path.is_dir():
        digest = hashlib.sha256()
        for name, _ in _files(path):
            digest.update(f"{name}:{_full_digest(path / name)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts_digest(path: Path) -> tuple[str, int, int]:
    """Hash the first, middle and last MiB of a file; give its size and time as well."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if size <= 3 * _MIB:
            digest.update(file.read())
        else:
            for start in (0, (size - _MIB) // 2, size - _MIB):
                file.seek(start)
                digest.update(file.read(_MIB))
    return digest.hexdigest(), size, status.st_mtime_ns


def _store_digest(path: Path) -> tuple[str, int, int]:
    """Do the same for a store: names and sizes of its files, parts of first, middle and last."""
    files = _files(path)
    listing = [(name, status.st_size) for name, status in files]
    digest = hashlib.sha256(json.dumps(listing).encode())
    for place in sorted({0, len(files) // 2, len(files) - 1}):
        digest.update(_parts_digest(path / files[place][0])[0].encode())
    return digest.hexdigest(), *_status(path)


def identify(path: Path, *, full: bool = False) -> InputRef:
    """Identify a file by its size and the sha256 of its first, middle and last MiB.

    A Zarr store is identified by the names and sizes of its files, and that of three of them.

    Parameters
    ----------
    path : Path
        The file, or the directory of a Zarr store.
    full : bool
        Hash every byte as well.

    Raises
    ------
    MissingInput
        There is no such file, or it may not be read.
    CorruptedInput
        It is not a regular file.
    TransientError
        The file system answered with an error that may pass.
    """
    try:
        if path.is_file():
            digest, size, mtime_ns = _parts_digest(path)
        elif is_store(path):
            digest, size, mtime_ns = _store_digest(path)
        elif path.exists():
            raise CorruptedInput(f"{path}: is not a regular file")
        else:
            raise MissingInput(f"{path}: no such file")
        identity = f"{size}:{digest}"
        if full:
            identity += f":{_full_digest(path)}"
    except PermissionError as error:
        raise MissingInput(f"{path}: may not be read: {error.strerror}") from error
    except OSError as error:
        raise TransientError(f"{path}: {error.strerror or error}") from error
    return InputRef(str(path), identity, size, mtime_ns)


def check_unchanged(ref: InputRef) -> None:
    """Check that a planned input is still the file that was planned.

    Raises
    ------
    MissingInput
        It is gone.
    CorruptedInput
        Its size or time of modification differ.
    """
    try:
        size, mtime_ns = _status(Path(ref.path))
    except FileNotFoundError as error:
        raise MissingInput(f"{ref.path}: was there when the run was planned and is gone") from error
    except OSError as error:
        raise TransientError(f"{ref.path}: {error.strerror or error}") from error
    if (size, mtime_ns) != (ref.size, ref.mtime_ns):
        raise CorruptedInput(
            f"{ref.path}: changed between plan and run ({ref.size} bytes then,"
            f" {size} now); run the same command again to plan anew"
        )


class Identities:
    """The identities of inputs, with a memory of what the work directory saw before.

    Hashing three MiB is cheap but would miss an edit elsewhere in a large file. So a file whose
    time of modification changed since this work directory last saw it is hashed in full, and that
    full hash becomes part of its identity from then on.
    """

    def __init__(self, memory: Path | None, *, full: bool = False) -> None:
        self._memory = memory
        self._full = full
        self._seen: dict[str, list[int | str]] = {}
        if memory is not None and memory.exists():
            # A memory cut short by a crash costs a second hash, nothing else.
            with contextlib.suppress(ValueError):
                seen = read_json(memory)
                known = seen.items() if isinstance(seen, dict) else ()
                self._seen = {
                    path: one for path, one in known if isinstance(one, list) and len(one) == 2
                }

    def of(self, path: Path) -> InputRef:
        """Identify one file (see :func:`identify` for the errors)."""
        place = str(path.absolute())
        ref = identify(path, full=self._full)
        known = self._seen.get(place)
        if known is not None and not self._full:
            mtime_ns, identity = known
            if mtime_ns == ref.mtime_ns and str(identity).startswith(ref.identity):
                ref = InputRef(ref.path, str(identity), ref.size, ref.mtime_ns)
            elif str(identity).startswith(ref.identity):
                ref = identify(path, full=True)
        self._seen[place] = [ref.mtime_ns, ref.identity]
        return ref

    def save(self) -> None:
        """Remember for the next run."""
        if self._memory is not None:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._memory.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._seen, sort_keys=True), encoding="utf-8")
            temporary.replace(self._memory)
