"""HDF5 files in and out through PyTables, in ctapipe's layout, safe to open and byte-reproducible.

Three things that PyTables does not do by itself:

* Nothing in a file is executed. PyTables unpickles every attribute that looks like a pickle as
  soon as its node is opened, so a prepared file runs code when it is merely looked at.
* A file that is missing, broken or out of reach for a moment raises the exception that says so,
  with the file's name and what to do.
* One thread at a time. PyTables releases the interpreter lock around HDF5 calls, and the HDF5
  library in its wheels is not thread-safe.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickle
import re
import signal
import threading
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tables
from tables import atom as tables_atom
from tables import attributeset as tables_attributeset

from calibdask.errors import (
    CalibdaskError,
    ConfigError,
    CorruptedInput,
    MissingInput,
    TransientError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from types import FrameType

    from numpy.typing import NDArray

__all__ = [
    "BLOSC_ZSTD",
    "create_hdf5",
    "digest_hdf5",
    "open_hdf5",
    "read_root_attributes",
    "read_tables",
    "standard_unit",
    "write_root_attributes",
    "write_table",
]

# The filters ctapipe writes with (ctapipe.io.hdf5tableio.DEFAULT_FILTERS, 0.32).
BLOSC_ZSTD = tables.Filters(complevel=5, complib="blosc:zstd", fletcher32=True)

# Factors to the units that everything is read in.
_FACTORS = {
    "TeV": {"TeV": 1.0, "GeV": 1e-3, "MeV": 1e-6, "PeV": 1e3},
    "m": {"m": 1.0, "km": 1e3, "cm": 1e-2, "mm": 1e-3},
}

_DIGEST_BLOCK_BYTES = 16 * 2**20

_TRANSIENT = {errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT}

# What flock() says where there are no locks; 524 is the kernel's own ENOTSUPP.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, 524}

# What PyTables and NumPy raise where a file makes no sense to them.
_NONSENSE = (
    ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, MemoryError,
    RuntimeError, SystemError, TypeError, ValueError,
)  # fmt: skip

# Held while a file is open: PyTables keeps global registries and HDF5 is built without threads.
_LOCK = threading.RLock()


class _GuardedPickle(threading.local):
    """Stands in for the module `pickle` inside PyTables: loads nothing while `open_hdf5` is active.

    The guard is per thread: other users of PyTables in this process keep what they had.
    """

    HIGHEST_PROTOCOL = pickle.HIGHEST_PROTOCOL
    dumps = staticmethod(pickle.dumps)
    depth = 0

    def loads(self, data: bytes, **options: Any) -> Any:
        if self.depth:
            msg = "Python objects stored in a file are not loaded"
            raise pickle.UnpicklingError(msg)
        return pickle.loads(data, **options)

    @contextmanager
    def refuse(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


def _install_guard() -> _GuardedPickle:
    guard = _GuardedPickle()
    for module in (tables_attributeset, tables_atom):
        # Fail closed: where PyTables no longer uses this name, replacing it would guard nothing.
        if getattr(module, "pickle", None) is not pickle:
            msg = f"PyTables {tables.__version__} unpickles in a way that calibdask cannot prevent"
            raise ImportError(msg)
        module.pickle = guard
    return guard


_PICKLE = _install_guard()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold back a signal that asks to stop until the block ends; a second Ctrl-C is not held back.

    Some compiled functions of PyTables lose exceptions raised in them and go on with whatever they
    had, and nodes that were half made complain when they are deleted. A signal handler that raises
    must therefore not run in there. Signals reach the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {one: handler for one, handler in found.items() if callable(handler)}
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            arrived.clear()
            handlers[signal.SIGINT](number, frame)
        arrived.append(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            handlers[signal.Signals(arrived[0])](arrived[0], None)


@contextmanager
def open_hdf5(path: Path | str) -> Iterator[tables.File]:
    """Open an HDF5 file for reading.

    While it is open, Python objects pickled in its attributes stay bytes, and other threads wait.

    Parameters
    ----------
    path : Path or str
        The file.

    Yields
    ------
    tables.File
        Closed when the block ends.

    Raises
    ------
    MissingInput
        No such file, or no permission to read it; or the block asked for a node that is not there.
    CorruptedInput
        Empty, truncated, damaged, not HDF5, not a file.
    TransientError
        A fault of the file system that may go away (stale handle, input/output error, a lock).
    """
    path = Path(path)
    _check_readable(path)
    with (
        _LOCK,
        _interrupts_wait(),
        _PICKLE.refuse(),
        _locked(path) as name,
        _translated_errors(path, "read"),
        tables.open_file(name) as file,
    ):
        yield file


@contextmanager
def create_hdf5(path: Path | str) -> Iterator[tables.File]:
    """Create an HDF5 file. The same calls give the same bytes. A block that fails leaves no file.

    Parameters
    ----------
    path : Path or str
        The new file; its directory must exist.

    Yields
    ------
    tables.File
        Closed when the block ends. Pass ``track_times=False`` to whatever is created in it.

    Raises
    ------
    ConfigError
        The file exists already, or its directory does not, or may not be written to.
    TransientError
        A fault of the file system that may go away, a full disk among them.
    """
    path = Path(path)
    try:
        # Takes the name, so that of two writers one is told.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        msg = f"{path}: exists already; remove it or choose another name"
        raise ConfigError(msg) from None
    except OSError as error:
        if error.errno in _TRANSIENT:
            msg = f"{path}: cannot be created ({error.strerror}); try again"
            raise TransientError(msg) from error
        msg = f"{path}: cannot be created ({error.strerror}); check its directory"
        raise ConfigError(msg) from None
    try:
        with (
            _LOCK,
            _interrupts_wait(),
            _locked(path, os.O_RDWR) as name,
            _translated_errors(path, "written"),
            tables.open_file(name, "w") as file,
        ):
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_table(
    file: tables.File,
    path: str,
    columns: Mapping[str, NDArray[Any]],
    *,
    units: Mapping[str, str] | None = None,
    descriptions: Mapping[str, str] | None = None,
    times: Collection[str] = (),
    attributes: Mapping[str, object] | None = None,
) -> None:
    """Write a table as ctapipe lays it out, so that `ctapipe.io.read_table` gives back all of it.

    Parameters
    ----------
    file : tables.File
        From `create_hdf5`.
    path : str
        Where in the file, with a leading slash; missing groups are created.
    columns : mapping of str to array, each (n,) or (n, ...)
        In the order of the table. Text is stored as UTF-8 bytes of fixed length.
    units : mapping of str to str, optional
        Unit of a column, in the VO notation ("TeV", "m", "m2", "deg").
    descriptions : mapping of str to str, optional
        What a column means.
    times : collection of str, optional
        Columns of uint32, shape (n, 2), that hold times as `calibdask.stats.timebins.ctao_time`
        gives them.
    attributes : mapping of str to object, optional
        Metadata of the table: text, numbers, or arrays of them.

    Raises
    ------
    ValueError
        Columns of different lengths, or a unit or description of a column that is not there.
    TypeError
        A column or attribute that HDF5 cannot hold without pickling it.
    """
    units, descriptions = units or {}, descriptions or {}
    if unknown := (units.keys() | descriptions.keys()) - columns.keys():
        msg = f"{path}: unit or description of unknown columns {sorted(unknown)}"
        raise ValueError(msg)
    stored = {name: _storable(values, f"{path} column {name}") for name, values in columns.items()}
    lengths = {name: len(values) for name, values in stored.items()}
    if len(set(lengths.values())) != 1:
        msg = f"{path}: needs columns of one length, got {lengths}"
        raise ValueError(msg)

    metadata: dict[str, object] = {}
    for i, (name, values) in enumerate(stored.items()):
        metadata[f"CTAFIELD_{i}_NAME"] = name
        if name in descriptions:
            metadata[f"CTAFIELD_{i}_DESC"] = descriptions[name]
        if values.dtype.kind == "S":
            metadata[f"CTAFIELD_{i}_TRANSFORM"] = "string"
            metadata[f"CTAFIELD_{i}_MAXLEN"] = values.dtype.itemsize
        elif name in times:
            metadata[f"CTAFIELD_{i}_TRANSFORM"] = "time"
            metadata[f"CTAFIELD_{i}_TIME_SCALE"] = "tai"
            metadata[f"CTAFIELD_{i}_TIME_FORMAT"] = "ctao_high_res"
        elif name in units:
            metadata[f"CTAFIELD_{i}_TRANSFORM"] = "quantity"
            metadata[f"CTAFIELD_{i}_UNIT"] = units[name]
    metadata |= attributes or {}

    n_rows = next(iter(lengths.values()))
    rows = np.zeros(n_rows, [(name, v.dtype, v.shape[1:]) for name, v in stored.items()])
    for name, values in stored.items():
        rows[name] = values
    parent, _, leaf = path.rpartition("/")
    table = file.create_table(
        parent or "/",
        leaf,
        obj=rows,
        filters=BLOSC_ZSTD,
        expectedrows=n_rows,
        createparents=True,
        track_times=False,
    )
    _write_attributes(table, metadata)
    # Left to PyTables, tables reach the disk in the order of garbage collection.
    table.close()


def read_root_attributes(path: Path) -> dict[str, str]:
    """Give the attributes of a file's root that are text.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
        As for `open_hdf5`.
    """
    with open_hdf5(path) as file:
        attributes = file.root._v_attrs
        found = {name: attributes[name] for name in attributes._v_attrnamesuser}
    return {name: str(value) for name, value in found.items() if isinstance(value, str)}


def write_root_attributes(file: tables.File, attributes: Mapping[str, str]) -> None:
    """Write metadata of the whole file, such as the CTA reference metadata ("CTA PRODUCT ID", ...).

    Parameters
    ----------
    file : tables.File
        From `create_hdf5`.
    attributes : mapping of str to str
        Names and values.
    """
    _write_attributes(file.root, attributes)


def standard_unit(unit: str) -> tuple[float, str]:
    """Tell the unit values are read in: TeV for energies, m for lengths, the same for the rest.

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


def read_tables(path: Path | str) -> dict[str, dict[str, NDArray[Any]]]:
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
        return {
            node._v_pathname: {name: node.col(name) for name in node.colnames}
            for node in file.walk_nodes("/", "Table")
        }


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
        nodes = sorted(file.walk_nodes("/", "Table"), key=lambda node: str(node._v_pathname))
        if not nodes:
            msg = f"{path}: holds no table, so there is nothing to take a digest of"
            raise MissingInput(msg)
        for table in nodes:
            digest.update(json.dumps(_describe(table)).encode())
    return digest.hexdigest()


def _describe(table: tables.Table) -> list[object]:
    """Path, length and, for each column, name, type, unit and digest of its bytes."""
    dtypes = {name: table.dtype[name].newbyteorder("<") for name in table.colnames}
    digests = {name: hashlib.sha256() for name in table.colnames}
    step = max(1, _DIGEST_BLOCK_BYTES // table.rowsize)
    for start in range(0, table.nrows, step):
        rows = table.read(start, start + step)
        for name, digest in digests.items():
            digest.update(rows[name].astype(dtypes[name].base, copy=False).tobytes())
    columns = []
    for i, name in enumerate(table.colnames):
        base, shape = dtypes[name].base.str, list(dtypes[name].shape)
        unit = str(table.attrs[f"CTAFIELD_{i}_UNIT"]) if f"CTAFIELD_{i}_UNIT" in table.attrs else ""
        columns.append([name, base, shape, unit, digests[name].hexdigest()])
    return [table._v_pathname, int(table.nrows), sorted(columns)]


def _storable(values: object, what: str) -> NDArray[Any]:
    """Return `values` as an array that HDF5 stores natively, text as UTF-8 bytes."""
    array = np.asarray(values)
    if array.dtype.kind == "U":
        array = np.strings.encode(array, "utf-8")
    if array.dtype.kind == "S" and array.dtype.itemsize == 0:
        array = array.astype("S1")  # HDF5 has no text of length 0
    if array.dtype.kind not in "biufS":
        msg = f"{what}: cannot be stored as {array.dtype}, only text, booleans and real numbers"
        raise TypeError(msg)
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # PyTables mixes no byte orders


def _write_attributes(node: tables.Node, attributes: Mapping[str, object]) -> None:
    with warnings.catch_warnings():
        # "CTA PRODUCT ID" is no Python name, but it is the observatory's.
        warnings.simplefilter("ignore", tables.NaturalNameWarning)
        for name, value in attributes.items():
            native = value if isinstance(value, str) else _storable(value, f"attribute {name}")
            node._v_attrs[name] = native if isinstance(native, str) or native.ndim else native[()]


@contextmanager
def _locked(path: Path, mode: int = os.O_RDONLY) -> Iterator[str]:
    """Lock a file that is read as HDF5 would, where that can be, and return the name to open it by.

    HDF5 itself, which refuses a file where there are no locks, is told not to (`calibdask.io`).

    Raises
    ------
    TransientError
        Another process writes it, or it was there a moment ago.
    """
    try:
        descriptor = os.open(path, mode)
    except OSError as error:
        msg = f"{path}: cannot be opened now ({error.strerror}); try again"
        raise TransientError(msg) from error
    try:
        try:
            # A new file needs none: its name was taken by us. Where HDF5 locks after all (PyTables
            # was imported before this package) ours would keep it out.
            if mode == os.O_RDONLY:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                msg = f"{path}: another process writes it ({error.strerror}); try again"
                raise TransientError(msg) from error
            if error.errno not in _NO_LOCKS:
                msg = f"{path}: cannot be locked ({error.strerror}); try again"
                raise TransientError(msg) from error
        try:
            os.fsencode(path).decode("utf-8")
        except UnicodeDecodeError:  # PyTables would look for another name
            yield f"/dev/fd/{descriptor}"
        else:
            yield str(path)
    finally:
        os.close(descriptor)


def _check_readable(path: Path) -> None:
    """Look at the file without HDF5, whose messages do not tell these cases apart."""
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError:
        msg = f"{path}: no such file; check the path"
        raise MissingInput(msg) from None
    except IsADirectoryError:
        msg = f"{path}: is a directory, not an HDF5 file"
        raise CorruptedInput(msg) from None
    except OSError as error:
        if error.errno in _TRANSIENT:
            msg = f"{path}: cannot be read now ({error.strerror}); try again"
            raise TransientError(msg) from error
        msg = f"{path}: cannot be read ({error.strerror})"
        raise MissingInput(msg) from None
    if empty:
        msg = f"{path}: is empty; copy or produce it again"
        raise CorruptedInput(msg)


@contextmanager
def _translated_errors(path: Path, verb: str) -> Iterator[None]:
    """Raise this package's exceptions for those of PyTables."""
    try:
        yield
    except tables.NoSuchNodeError as error:
        msg = f"{path}: {error.args[0]}"
        raise MissingInput(msg) from None
    except tables.HDF5ExtError as error:
        raise _from_hdf5(path, verb, str(error)) from error
    except _NONSENSE as error:
        # PyTables passes on what it cannot make sense of without looking. Raised by other code
        # than its own, it is a bug there and no damage.
        if not _raised_by_pytables(error):
            raise
        msg = f"{path}: damaged ({type(error).__name__}: {error}); copy or produce it again"
        raise CorruptedInput(msg) from error
    except OSError as error:
        if error.errno not in _TRANSIENT:
            raise
        msg = f"{path}: cannot be {verb} now ({error.strerror}); try again"
        raise TransientError(msg) from error
    except pickle.UnpicklingError as error:
        msg = f"{path}: refused, {error}; write it again with PyTables 2 or later"
        raise CorruptedInput(msg) from None


def _raised_by_pytables(error: BaseException) -> bool:
    """Tell whether an exception comes from PyTables, or from what PyTables called."""
    stack = traceback.walk_tb(error.__traceback__)
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in stack]
    ours = max(place for place, name in enumerate(packages) if name == "calibdask")
    return "tables" in packages[ours:]


def _from_hdf5(path: Path, verb: str, trace: str) -> CalibdaskError:
    """Tell faults of the file system from faults of the file, by HDF5's own error trace."""
    codes = {int(code) for code in re.findall(r"errno = (\d+)", trace)}
    if transient := codes & _TRANSIENT:
        reasons = ", ".join(os.strerror(code) for code in sorted(transient))
        return TransientError(f"{path}: cannot be {verb} now ({reasons}); try again")
    if verb == "written":
        return CalibdaskError(f"{path}: cannot be written ({trace.strip().splitlines()[-1]})")
    if size := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", trace):
        return CorruptedInput(
            f"{path}: truncated, {size[1]} of {size[2]} bytes; copy or produce it again"
        )
    if "file signature not found" in trace:
        return CorruptedInput(f"{path}: not an HDF5 file")
    reason = trace.strip().splitlines()[-1]
    return CorruptedInput(f"{path}: damaged ({reason}); copy or produce it again")
