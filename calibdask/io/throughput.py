"""Reading of throughputs that other calibrations found: from pairs of telescopes, from muon rings.

The tables are those of ctao-calibpipe 0.8.0, or ours, which have more columns:

* ``/dl2/monitoring/subarray/inter_calibration``: tel_type, tel_id, value, error, and the attribute
  obs_id;
* ``/dl1/monitoring/telescope/calibration/optical_throughput/muon/tel_NNN``: mean, sem, n_events,
  time_start and time_end of each chunk of rings.

Where a table has flags, values that are flagged as not usable are not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput
from calibdask.flags import MUON_FLAGS, usable
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.tables import read_columns
from calibdask.schema import Column, TableSchema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.io.hdf5 import File, Table

__all__ = [
    "MUON_THROUGHPUT",
    "InterCalibrationTable",
    "MuonThroughputs",
    "Throughputs",
    "read_throughputs",
]

_INTER_CALIBRATION = "/dl2/monitoring/subarray/inter_calibration"

MUON_THROUGHPUT: Final = TableSchema(
    "/dl1/monitoring/telescope/calibration/optical_throughput/muon/tel_{tel_id:03d}",
    "Optical throughput of a telescope from its muon rings, by chunks of rings or bins of time",
    (
        Column(
            "mean", "f8", "Mean optical throughput of the rings that were not clipped", error="sem"
        ),
        Column("median", "f8", "Median of the same rings", format=".5f"),
        Column(
            "std", "f8", "Standard deviation of the same rings (divisor n)", heading="Scatter",
            format=".5f",
        ),
        Column("sem", "f8", "Standard error of the mean: with divisor n - 1", heading="Error"),
        Column("method", "text", "Calibration method used"),
        Column("time_start", "time", "Time of the first ring", heading="From", optional=True),
        Column("time_end", "time", "Time of the last ring", heading="To", optional=True),
        Column("obs_id", "i4", "Observation of all rings; -1: of several, see obs_ids"),
        Column("n_events", "i8", "Rings in the mean", heading="Rings", format=",d"),
        Column("n_clipped", "i8", "Rings that were clipped", heading="Clipped", format=",d"),
        Column("time_mean", "time", "Mean time of the rings in the mean"),
        Column("bin", "i8", "Number of the time bin since the epoch, or of the chunk"),
    ),
    MUON_FLAGS,
)  # fmt: skip
"""A table for each telescope. That of ctao-calibpipe ends with n_events."""

_MUON = MUON_THROUGHPUT.path.rpartition("/")[0]
_READ = ("mean", "sem", "n_events", "time_start", "time_end")


@dataclass(frozen=True, slots=True, eq=False)
class InterCalibrationTable:
    """Throughputs within each type of telescope.

    Attributes
    ----------
    tel_id : ndarray of int64, shape (T,)
        Telescopes.
    tel_type : tuple of str
        Type of each.
    value, error : ndarray of float64, shape (T,)
        Throughput relative to the type's reference; NaN where there is none that can be used.
    covariance : ndarray of float64, shape (T, T)
        Of the values: ours have it, of others only the diagonal is known.
    flags : tuple of str
        Of each, as in the file; empty where it has none.
    obs_ids : tuple of int
        Observation blocks it was made from.
    """

    tel_id: NDArray[np.int64]
    tel_type: tuple[str, ...]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    covariance: NDArray[np.float64]
    flags: tuple[str, ...]
    obs_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MuonThroughputs:
    """Optical throughputs from muon rings, one row for each telescope and chunk of rings.

    Attributes
    ----------
    tel_id : ndarray of int64, shape (N,)
        Telescope.
    mean, sem : ndarray of float64, shape (N,)
        Mean throughput of the rings, and the standard error of this mean.
    n_rings : ndarray of int64, shape (N,)
        Rings in the mean.
    start_ns, end_ns : ndarray of int64, shape (N,), or None
        Of the chunk, in ns of TAI since 1970; None where the table does not tell.
    n_flagged : dict of int to int
        Chunks of each telescope that are flagged as not to be used, and not among these.
    """

    tel_id: NDArray[np.int64]
    mean: NDArray[np.float64]
    sem: NDArray[np.float64]
    n_rings: NDArray[np.int64]
    start_ns: NDArray[np.int64] | None
    end_ns: NDArray[np.int64] | None
    n_flagged: dict[int, int]


@dataclass(frozen=True, slots=True)
class Throughputs:
    """What a file holds of throughputs; nothing is possible."""

    inter_calibration: InterCalibrationTable | None
    muons: MuonThroughputs | None


def read_throughputs(path: Path | str) -> Throughputs:
    """Read the tables of throughputs in a file.

    Raises
    ------
    CorruptedInput
        A table lacks a column, a telescope stands in it twice, or a value makes no sense; or as
        `calibdask.io.hdf5.open_hdf5`.
    MissingInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        inter = muons = None
        if _INTER_CALIBRATION in file:
            inter = _inter_calibration(Path(path), file)
        if _MUON in file:
            muons = _muons(file)
        return Throughputs(inter, muons)


def _columns(path: Path, table: Table, names: tuple[str, ...]) -> NDArray[np.void]:
    if lacking := [name for name in names if name not in table.names]:
        msg = f"{path}: {table.path} has no column {', '.join(lacking)}"
        raise CorruptedInput(msg)
    rows: NDArray[np.void] = table.read()
    return rows


def _inter_calibration(path: Path, file: File) -> InterCalibrationTable:
    table = file.table(_INTER_CALIBRATION)
    where = f"{path}: {table.path}"
    if "time_bin" in table.names:
        msg = (
            f"{where} is binned in time: give the DL2 files alone, which makes one network of all"
            " types by time bin, or an inter-calibration without bins"
        )
        raise CorruptedInput(msg)
    rows = _columns(path, table, ("tel_type", "tel_id", "value", "error"))
    tel_id = rows["tel_id"].astype(np.int64)
    value, error = rows["value"].astype(np.float64), rows["error"].astype(np.float64)
    ids, count = np.unique(tel_id, return_counts=True)
    if (count > 1).any():
        msg = f"{where} has telescope {ids[count > 1][0]} twice"
        raise CorruptedInput(msg)
    wrong = (np.isfinite(value) & (value <= 0)) | (error < 0)
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        msg = f"{where} has value {value[row]} +- {error[row]} for telescope {tel_id[row]}"
        raise CorruptedInput(msg)
    obs_id = table.attribute("obs_id")
    if obs_id is None:
        msg = f"{where} does not tell by its attribute obs_id which observations it is from"
        raise CorruptedInput(msg)
    flags = _flags(rows)
    good = np.isfinite(value) & np.isfinite(error) & usable(flags)
    value, error = np.where(good, value, np.nan), np.where(good, error, np.nan)
    covariance = np.diag(error**2)
    if f"{_INTER_CALIBRATION}_covariance" in file:
        more = file.table(f"{_INTER_CALIBRATION}_covariance")
        entries = _columns(path, more, ("tel_id_1", "tel_id_2", "covariance"))
        row = {number: k for k, number in enumerate(tel_id.tolist())}
        ends = [[row.get(n, -1) for n in entries[f"tel_id_{k}"].tolist()] for k in (1, 2)]
        if min(map(min, ends), default=0) < 0:
            msg = f"{path}: {more.path} has telescopes that {table.path} has not"
            raise CorruptedInput(msg)
        covariance[ends[0], ends[1]] = entries["covariance"]
    return InterCalibrationTable(
        tel_id,
        tuple(kind.decode("utf-8", "replace") for kind in rows["tel_type"].tolist()),
        value,
        error,
        covariance,
        tuple(flags.tolist()),
        tuple(np.unique(np.asarray(obs_id, np.int64)).tolist()),
    )


def _flags(rows: NDArray[np.void]) -> NDArray[np.str_]:
    """Give the flags of each row; empty where a table has none, like that of ctao-calibpipe."""
    if "flags" not in (rows.dtype.names or ()):
        return np.full(len(rows), "")
    return np.array([text.decode("utf-8", "replace") for text in rows["flags"].tolist()], np.str_)


def _muons(file: File) -> MuonThroughputs:
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("tel_id", *_READ)}
    n_flagged: dict[int, int] = {}
    for name in file.children(_MUON):
        fields = MUON_THROUGHPUT.fields(f"{_MUON}/{name}")
        if fields is None:
            continue
        tel_id, table = int(fields["tel_id"]), file.table(f"{_MUON}/{name}")
        columns = read_columns(table, MUON_THROUGHPUT, _READ)
        good = usable(columns.pop("flags"))
        if not good.all():
            n_flagged[tel_id] = int(np.count_nonzero(~good))
        mean, sem = columns["mean"], columns["sem"]
        good &= np.isfinite(mean) & np.isfinite(sem) & (columns["n_events"] > 1)
        wrong = good & ~((mean > 0) & (sem > 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            msg = f"{file.path}: {table.path} has a throughput of {mean[row]} +- {sem[row]}"
            raise CorruptedInput(msg)
        parts["tel_id"].append(np.full(np.count_nonzero(good), tel_id))
        for key, values in columns.items():
            parts[key].append(values[good])
    n_tables = len(parts["tel_id"])
    joined: dict[str, NDArray[Any]] = {
        key: np.concatenate(values) if n_tables else np.zeros(0)
        for key, values in parts.items()
        if len(values) == n_tables
    }
    return MuonThroughputs(
        tel_id=joined["tel_id"].astype(np.int64),
        mean=joined["mean"],
        sem=joined["sem"],
        n_rings=joined["n_events"].astype(np.int64),
        start_ns=joined.get("time_start") if n_tables else None,
        end_ns=joined.get("time_end") if n_tables else None,
        n_flagged=n_flagged,
    )
