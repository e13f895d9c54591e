"""HDF5 files in, through h5py's low level: tables by path, attributes when they are asked for.

PyTables reads and sets every attribute of each table that it opens, which costs five to seven times
as much as reading the data, and unpickles those that look like pickles. Here nothing is unpickled,
a table costs one open and one read, and the HDF5 library checks the checksum (fletcher32) of every
chunk. Files are written by PyTables, see `calibdask.io.pytables`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin  # noqa: F401 (registers blosc, with which ctapipe compresses)
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s, h5t

from calibdask.errors import CalibdaskError, CorruptedInput, MissingInput, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BLOCK_BYTES",
    "TRANSIENT",
    "Columns",
    "File",
    "Table",
    "check_readable",
    "digest_hdf5",
    "error_numbers",
    "open_hdf5",
    "read_tables",
    "standard_unit",
]

type Columns = dict[str, NDArray[Any]]

TRANSIENT = {errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a file system that may go away by themselves."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, 524}  # 524: ENOTSUPP of the NFS client

# Factors to the units that everything is read in.
_FACTORS = {
    "TeV": {"TeV": 1.0, "GeV": 1e-3, "MeV": 1e-6, "PeV": 1e3},
    "m": {"m": 1.0, "km": 1e3, "cm": 1e-2, "mm": 1e-3},
}

# What h5py raises where a file makes no sense to it or to the HDF5 library.
_DAMAGED = (
    KeyError, MemoryError, NotImplementedError, OSError, OverflowError, RuntimeError, TypeError,
    UnicodeDecodeError, ValueError,
)  # fmt: skip

# Rows are read in blocks: a wide table is never in memory for the sake of three of its columns.
BLOCK_BYTES = 2 * 2**20


class File:
    """An open HDF5 file, from `open_hdf5`. Its methods raise CorruptedInput where it is damaged.

    Attributes
    ----------
    path : Path
        The file, for messages.
    """

    def __init__(self, path: Path, fid: h5f.FileID) -> None:
        self.path = path
        self._fid = fid
        self._tables: dict[str, Table] = {}
        self._children: dict[str, tuple[str, ...]] = {}

    def __contains__(self, path: str) -> bool:
        # By the names in its group, which are listed once: h5py would follow the path each time.
        group, _, name = path.rpartition("/")
        return not name or name in self.children(group or "/")

    def children(self, path: str) -> tuple[str, ...]:
        """Return the names in a group, sorted; nothing where there is no such group."""
        if path not in self._children:
            names: list[bytes] = []
            if path in self:
                with _Reading(self.path):
                    node = h5o.open(self._fid, path.encode())
                    if isinstance(node, h5g.GroupID):
                        node.links.iterate(names.append)
            with _Reading(self.path):
                self._children[path] = tuple(sorted(name.decode() for name in names))
        return self._children[path]

    def attribute(self, name: str) -> Any:
        """Return an attribute of the file, None where there is none. Nothing is unpickled."""
        with _Reading(self.path):
            return _attribute(h5g.open(self._fid, b"/"), name)

    def find(self, path: str) -> Table | None:
        """Return the table at a path, None where there is none.

        Raises
        ------
        CorruptedInput
            There is something else than a table.
        """
        if path in self._tables:
            return self._tables[path]
        if path not in self:
            return None
        with _Reading(self.path):
            node = h5o.open(self._fid, path.encode())
            if table := _table_of(self.path, path, node):
                return self._tables.setdefault(path, table)
        kind = "a group" if isinstance(node, h5g.GroupID) else "an array"
        raise CorruptedInput(f"{self.path}: {path} is not a table but {kind}")

    def table(self, path: str) -> Table:
        """Return the table at a path.

        Raises
        ------
        MissingInput
            Nothing is there.
        CorruptedInput
            There is something else than a table.
        """
        table = self.find(path)
        if table is None:
            raise MissingInput(f"{self.path}: has no table {path}")
        return table

    def array(self, path: str) -> NDArray[Any]:
        """Read the array at a path, as it is stored (CorruptedInput where there is none)."""
        with _Reading(self.path, path):
            node = h5d.open(self._fid, path.encode())
            stored = node.get_type()
            values = np.empty(node.shape, _dtype(stored))
            node.read(h5s.ALL, h5s.ALL, values, stored)
        return values

    def tables(self) -> Iterator[Table]:
        """Yield all tables of the file, sorted by their paths."""
        names: list[bytes] = []
        with _Reading(self.path):
            h5o.visit(self._fid, names.append)
        for name in sorted(names):
            with _Reading(self.path):
                node = h5o.open(self._fid, name)
                table = _table_of(self.path, f"/{name.decode()}", node)
            if table is not None:
                yield table


class Table:
    """A table of an open file: its description now, its rows when they are asked for.

    Attributes
    ----------
    file, path : Path, str
        The file and the path in it, for messages.
    n_rows : int
        Number of rows.
    dtype : dtype
        Of a row, as it is stored; booleans of PyTables (bit fields) and h5py (enumerations) are
        booleans, text of variable length is an object.
    """

    def __init__(
        self, file: Path, path: str, node: h5d.DatasetID, stored: h5t.TypeCompoundID, n_rows: int
    ) -> None:
        self.file, self.path = file, path
        self._node = node
        self.dtype = _dtype_of(stored.encode())
        # Rows are read as they are stored: no conversion in the HDF5 library, except of text of
        # variable length, which HDF5 can only give as pointers.
        self._type = h5t.py_create(self.dtype) if self.dtype.hasobject else stored
        self.n_rows = n_rows
        self._check_extent()

    def _check_extent(self) -> None:
        """Refuse more rows than are stored: HDF5 would give zeros, as many as it is told."""
        properties = self._node.get_create_plist()
        if properties.get_layout() == h5d.CHUNKED:
            most = self._node.get_num_chunks() * properties.get_chunk()[0]
        else:
            most = self._node.get_storage_size() // self.row_bytes
        if self.n_rows > most:
            raise CorruptedInput(
                f"{self.file}: {self.path} has {self.n_rows} rows by its header, but at most {most}"
                " are stored; copy or produce the file again"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""
        return self.dtype.names or ()

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return int(self.dtype.itemsize)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows as a structured array.

        Parameters
        ----------
        start, stop : int, optional
            Range of rows, all by default.

        Raises
        ------
        CorruptedInput
            A chunk fails its checksum or cannot be decompressed.
        """
        stop = self.n_rows if stop is None else min(stop, self.n_rows)
        rows = np.empty(max(0, stop - start), self.dtype)
        if len(rows) == self.n_rows:
            with _Reading(self.file, self.path):
                self._node.read(h5s.ALL, h5s.ALL, rows, self._type)
        elif rows.size:
            space = self._node.get_space()
            space.select_hyperslab((start,), rows.shape)
            with _Reading(self.file, self.path):
                self._node.read(h5s.create_simple(rows.shape), space, rows, self._type)
        return rows

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield rows in blocks of about 2 MiB, so that a wide table need not fit into memory."""
        stop = self.n_rows if stop is None else min(stop, self.n_rows)
        step = max(1, BLOCK_BYTES // self.row_bytes)
        for begin in range(start, stop, step):
            yield self.read(begin, min(begin + step, stop))

    def columns(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Columns:
        """Read columns, each contiguous and in the byte order of this machine.

        Parameters
        ----------
        names : sequence of str
            Columns of the table.
        start, stop : int, optional
            Range of rows, all by default.

        Raises
        ------
        CorruptedInput
            As `read`; or no such column.
        """
        if lacking := [name for name in names if name not in self.names]:
            raise CorruptedInput(f"{self.file}: {self.path} has no column {lacking[0]}")
        stop = self.n_rows if stop is None else min(stop, self.n_rows)
        out: Columns = {}
        for name in names:
            dtype = self.dtype[name]
            out[name] = np.empty((stop - start, *dtype.shape), dtype.base.newbyteorder("="))
        done = 0
        for block in self.blocks(start, stop):
            for name, values in out.items():
                values[done : done + len(block)] = block[name]
            done += len(block)
        return out

    def column(self, name: str) -> NDArray[Any]:
        """Read one column (errors as `columns`)."""
        return self.columns((name,))[name]

    def attribute(self, name: str) -> Any:
        """Return an attribute of the table, None where there is none. Nothing is unpickled."""
        with _Reading(self.file, self.path):
            return _attribute(self._node, name)

    def field(self, column: str, what: str) -> Any:
        """Return what ctapipe says of a column, e.g. its UNIT or TRANSFORM; None for nothing."""
        return self.attribute(f"CTAFIELD_{self.names.index(column)}_{what}")

    def unit(self, column: str) -> str:
        """Return the unit of a column as it is stored, "" for none."""
        return str(self.field(column, "UNIT") or "")


@contextmanager
def open_hdf5(path: Path | str) -> Iterator[File]:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    path : Path or str
        The file.

    Yields
    ------
    File
        Closed when the block ends.

    Raises
    ------
    MissingInput
        No such file, or no permission to read it; or the block asked for what is not there.
    CorruptedInput
        Empty, truncated, damaged, not HDF5, not a file.
    TransientError
        A fault of the file system that may go away (stale handle, input/output error, a lock).
    """
    path = Path(path)
    check_readable(path)
    with _Reading(path):
        fid = _open(path)
    try:
        yield File(path, fid)
    finally:
        fid.close()


def _open(path: Path) -> h5f.FileID:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    try:
        return h5f.open(os.fsencode(path), h5f.ACC_RDONLY, access)
    except OSError as error:
        if not error_numbers(str(error)) & _NO_LOCKS:
            raise
        # A file system without locks: nobody can hold one.
        access.set_file_locking(False, True)
        return h5f.open(os.fsencode(path), h5f.ACC_RDONLY, access)


def standard_unit(unit: str) -> tuple[float, str]:
    """Return the unit values are read in: TeV for energies, m for lengths, the same for the rest.

    Parameters
    ----------
    unit : str
        As the file has it, "" for none.

    Returns
    -------
    factor : float
        Multiplies the file's values.
    unit : str
        The unit of the product.
    """
    for standard, factors in _FACTORS.items():
        if unit in factors:
            return factors[unit], standard
    return 1.0, unit


def read_tables(path: Path | str) -> dict[str, Columns]:
    """Read all tables of a small file.

    Parameters
    ----------
    path : Path or str
        The file (errors as for `open_hdf5`).

    Returns
    -------
    dict of str to dict of str to ndarray
        The columns of each table by its path in the file. Text stays bytes.
    """
    with open_hdf5(path) as file:
        return {table.path: table.columns(table.names) for table in file.tables()}


def digest_hdf5(path: Path | str) -> str:
    """Digest of the tables of a file: equal for equal data, whatever was said about them.

    It covers each table's path and, per column, name, type (as little-endian), shape, unit and
    bytes. It leaves out the order of columns and every other attribute (dates, versions, hosts).

    Parameters
    ----------
    path : Path or str
        The file.

    Returns
    -------
    str
        SHA-256 in hexadecimal.

    Raises
    ------
    MissingInput
        No such file, or no table in it.
    CorruptedInput, TransientError
        As `open_hdf5`.
    """
    digest = hashlib.sha256()
    with open_hdf5(path) as file:
        described = [_describe(table) for table in file.tables()]
    if not described:
        raise MissingInput(f"{path}: holds no table, so there is nothing to take a digest of")
    for one in described:
        digest.update(json.dumps(one).encode())
    return digest.hexdigest()


def _describe(table: Table) -> list[object]:
    """Return path, length and, for each column, name, type, unit and digest of its bytes."""
    dtypes = {name: table.dtype[name].newbyteorder("<") for name in table.names}
    digests = {name: hashlib.sha256() for name in table.names}
    for rows in table.blocks():
        for name, digest in digests.items():
            digest.update(rows[name].astype(dtypes[name].base, copy=False).tobytes())
    columns = [
        [name, dtype.base.str, list(dtype.shape), table.unit(name), digests[name].hexdigest()]
        for name, dtype in dtypes.items()
    ]
    return [table.path, table.n_rows, sorted(columns)]


def check_readable(path: Path) -> None:
    """Look at a file without HDF5, whose messages do not tell these cases apart.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
        As `open_hdf5`.
    """
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError:
        raise MissingInput(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CorruptedInput(f"{path}: is a directory, not an HDF5 file") from None
    except OSError as error:
        if error.errno in TRANSIENT:
            raise TransientError(
                f"{path}: cannot be read now ({error.strerror}); try again"
            ) from error
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from None
    if empty:
        raise CorruptedInput(f"{path}: is empty; copy or produce it again")


class _Reading:
    """Raise this package's exceptions for those of h5py; only h5py is called inside.

    A class, since it is entered for every attribute: a generator would take three times as long.
    """

    __slots__ = ("_path", "_where")

    def __init__(self, path: Path, where: str = "") -> None:
        self._path, self._where = path, where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, _DAMAGED):
            raise _from_hdf5(self._path, self._where, str(error)) from error


def _from_hdf5(path: Path, where: str, trace: str) -> CalibdaskError:
    """Distinguish faults of the file system from faults of the file, by HDF5's own message."""
    if transient := error_numbers(trace) & TRANSIENT:
        reasons = ", ".join(os.strerror(code) for code in sorted(transient))
        return TransientError(f"{path}: cannot be read now ({reasons}); try again")
    if size := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", trace):
        return CorruptedInput(
            f"{path}: truncated, {size[1]} of {size[2]} bytes; copy or produce it again"
        )
    if "file signature not found" in trace:
        return CorruptedInput(f"{path}: not an HDF5 file")
    what = f"{where} is damaged" if where else "damaged"
    return CorruptedInput(f"{path}: {what} ({_reason(trace)}); copy or produce the file again")


def error_numbers(trace: str) -> set[int]:
    """Return the numbers of the system's errors that a message of HDF5 names."""
    return {int(code) for code in re.findall(r"errno = (\d+)", trace)}


def _reason(trace: str) -> str:
    """Return what HDF5 says happened, of a message such as "Can't do this (it happened)"."""
    inner = re.search(r"\((.*)\)\s*$", trace)
    return inner[1] if inner else trace.strip()


def _table_of(file: Path, path: str, node: object) -> Table | None:
    """Return the table that a node of a file is, None where it is something else."""
    if not isinstance(node, h5d.DatasetID):
        return None
    stored, shape = node.get_type(), node.shape
    if not isinstance(stored, h5t.TypeCompoundID) or len(shape) != 1:
        return None
    return Table(file, path, node, stored, int(shape[0]))


def _attribute(node: h5g.GroupID | h5d.DatasetID, name: str) -> Any:
    key = name.encode()
    if not h5a.exists(node, key):
        return None
    attribute = h5a.open(node, key)
    stored = attribute.get_type()
    space = attribute.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return ""  # how PyTables stores empty text
    dtype = _dtype(stored)
    values = np.empty(space.get_simple_extent_dims(), dtype)
    attribute.read(values, h5t.py_create(dtype) if dtype.hasobject else stored)
    value: Any = values[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@functools.lru_cache(maxsize=1000)
def _dtype_of(encoded: bytes) -> np.dtype[Any]:
    """Return the NumPy type of an encoded type: most tables of a file are of one."""
    return _dtype(h5t.decode(encoded))


def _dtype(stored: h5t.TypeID) -> np.dtype[Any]:
    """Return the NumPy type with the layout of a stored type."""
    if isinstance(stored, h5t.TypeCompoundID):
        members = range(stored.get_nmembers())
        formats = [_dtype(stored.get_member_type(i)) for i in members]
        names = [stored.get_member_name(i).decode() for i in members]
        if any(dtype.hasobject for dtype in formats):
            return np.dtype(list(zip(names, formats, strict=True)))
        return np.dtype(
            {
                "names": names,
                "formats": formats,
                "offsets": [stored.get_member_offset(i) for i in members],
                "itemsize": stored.get_size(),
            }
        )
    if isinstance(stored, h5t.TypeArrayID):
        subarray: np.dtype[Any] = np.dtype((_dtype(stored.get_super()), stored.get_array_dims()))
        return subarray
    if isinstance(stored, h5t.TypeStringID):
        if stored.is_variable_str():
            text: np.dtype[Any] = h5py.string_dtype()
            return text
        return np.dtype(f"S{stored.get_size()}")
    if isinstance(stored, h5t.TypeBitfieldID) and stored.get_size() == 1:
        return np.dtype(np.bool_)  # how PyTables stores booleans
    if isinstance(stored, h5t.TypeEnumID):
        is_bool = bool(stored.dtype == np.bool_)  # how h5py stores booleans
        return np.dtype(np.bool_) if is_bool else _dtype(stored.get_super())
    plain: np.dtype[Any] = stored.dtype
    return plain
