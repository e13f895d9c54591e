"""HDF5 files out through PyTables, in ctapipe's layout and byte-reproducible.

Two things that PyTables does not do by itself: an error of the file system raises the exception
that says so, with the file's name; and one thread at a time writes, since PyTables releases the
interpreter's lock around HDF5 calls and the HDF5 library in its wheels is not thread-safe.
Files are read by `calibdask.io.hdf5`.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CalibdaskError, ConfigError, TransientError
from calibdask.io.hdf5 import TRANSIENT, error_numbers

# The HDF5 library of PyTables asks once, when it is loaded, whether to lock files. Those that are
# written here are new and have a name of their own, and some file systems have no locks (NFS
# without lockd, DVS).
_BEFORE = os.environ.get("HDF5_USE_FILE_LOCKING")
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
import tables  # noqa: E402
from tables.description import descr_from_dtype  # noqa: E402

if _BEFORE is None:
    del os.environ["HDF5_USE_FILE_LOCKING"]

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from types import FrameType

    from numpy.typing import NDArray

__all__ = [
    "BLOSC_ZSTD",
    "create_hdf5",
    "write_root_attributes",
    "write_table",
]

# The filters ctapipe writes with (ctapipe.io.hdf5tableio.DEFAULT_FILTERS, 0.32).
BLOSC_ZSTD = tables.Filters(complevel=5, complib="blosc:zstd", fletcher32=True)

# Held while a file is open: PyTables keeps global registries and HDF5 is built without threads.
_LOCK = threading.RLock()


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
        if error.errno in TRANSIENT:
            msg = f"{path}: cannot be created ({error.strerror}); try again"
            raise TransientError(msg) from error
        msg = f"{path}: cannot be created ({error.strerror}); check its directory"
        raise ConfigError(msg) from None
    try:
        with (
            _LOCK,
            _interrupts_wait(),
            _name_for_pytables(path) as name,
            _translated_errors(path),
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
        description=_description(rows.dtype),
        filters=BLOSC_ZSTD,
        expectedrows=n_rows,
        createparents=True,
        track_times=False,
    )
    table.append(rows)
    _write_attributes(table, metadata)
    # Left to PyTables, tables reach the disk in the order of garbage collection.
    table.close()


@cache
def _description(dtype: np.dtype[Any]) -> tables.Description:
    """Describe the columns of tables; files of many tables have few kinds of them."""
    description: tables.Description = descr_from_dtype(dtype)[0]
    return description


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


def _storable(values: object, what: str) -> NDArray[Any]:
    """Return `values` as an array that HDF5 stores natively, text as UTF-8 bytes."""
    array = np.asarray(values)
    if array.dtype.kind == "U":
        n_characters = array.dtype.itemsize // 4
        array = np.strings.encode(array, "utf-8")
        array = array.astype(f"S{max(n_characters, array.dtype.itemsize)}")  # its width, as it came
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
def _name_for_pytables(path: Path) -> Iterator[str]:
    """Return the name to open a file by: PyTables would look for another one that is not UTF-8."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        descriptor = os.open(path, os.O_RDWR)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield str(path)


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """Raise this package's exceptions for those of PyTables."""
    try:
        yield
    except tables.HDF5ExtError as error:
        reason = str(error).strip().splitlines()[-1]
        if transient := error_numbers(str(error)) & TRANSIENT:
            reason = ", ".join(os.strerror(code) for code in sorted(transient))
            msg = f"{path}: cannot be written now ({reason}); try again"
            raise TransientError(msg) from error
        raise CalibdaskError(f"{path}: cannot be written ({reason})") from error
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise
        msg = f"{path}: cannot be written now ({error.strerror}); try again"
        raise TransientError(msg) from error
