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
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput
from calibdask.flags import MUON_FLAGS, Flag, usable
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.tables import read_columns
from calibdask.schema import Column, TableSchema

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Columns, File

__all__ = [
    "INTER_CALIBRATION",
    "INTER_COVARIANCE",
    "MUON_THROUGHPUT",
    "TEL_ID",
    "TEL_TYPE",
    "TIME_BIN",
    "InterCalibrationTable",
    "MuonThroughputs",
    "Throughputs",
    "read_throughputs",
]

TIME_BIN: Final = (
    Column("time_bin", "i8", "Number of the time bin since the epoch", optional=True),
    Column("time_start", "time", "Begin of the time bin", optional=True),
    Column("time_end", "time", "End of the time bin", optional=True),
)
"""Of all tables of an array's calibration in time bins; without bins they have none of them."""

TEL_TYPE: Final = Column("tel_type", "text", "Type of the telescope", heading="Type")
TEL_ID: Final = Column("tel_id", "i8", "Number of the telescope", heading="Telescope")

INTER_CALIBRATION: Final = TableSchema(
    "/dl2/monitoring/subarray/inter_calibration",
    "Throughput of each telescope relative to the reference of its type",
    (
        *TIME_BIN,
        TEL_TYPE,
        TEL_ID,
        Column(
            "value", "f8", "Throughput relative to the reference", heading="Throughput",
            error="error",
        ),
        Column("error", "f8", "Standard error of the value, each shower counted once"),
        Column(
            "systematic", "f8",
            "What a harder selection, or parts of the data, change beyond statistics",
            optional=True,
        ),
        Column(
            "error_independent", "f8", "The error if pairs were independent, which they are not",
            heading="Independent error", format=".2g", optional=True,
        ),
        Column(
            "n_pairs", "i8", "Pairs of this telescope in the fit", heading="Pairs", format=",d",
            optional=True,
        ),
        Column(
            "n_events", "i8", "Events with such a pair", heading="Events", format=",d",
            optional=True,
        ),
        Column(
            "component", "i8",
            "Number of its connected group: values compare only within one; -1 for none",
            optional=True,
        ),
    ),
    (
        Flag.REFERENCE, Flag.FALLBACK, Flag.DISCONNECTED, Flag.NO_PAIR, Flag.FEW_PAIR_EVENTS,
        Flag.NO_ERROR, Flag.UNMEASURED_PAIR, Flag.INVALID_EVENTS, Flag.LACKS_ROWS,
        Flag.PRELIMINARY, Flag.JUMP,
    ),
)  # fmt: skip
"""That of ctao-calibpipe has only what is required, and no flags. A cross-calibration that was made
with one holds what it took of it."""

INTER_COVARIANCE: Final = TableSchema(
    f"{INTER_CALIBRATION.path}_covariance",
    "Covariance of the values of telescopes that compare with each other",
    (
        *TIME_BIN,
        TEL_TYPE,
        Column("component", "i8", "Number of their connected group"),
        Column("tel_id_1", "i8", "Number of one telescope"),
        Column("tel_id_2", "i8", "Number of the other one"),
        Column("covariance", "f8", "Covariance of their values, each shower counted once"),
    ),
)

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
_PERCENT: Final = 10.0  # no throughput, but one in percent, is as large
_READ = ("mean", "sem", "n_events", "time_start", "time_end")


@dataclass(frozen=True, slots=True, eq=False)
class InterCalibrationTable:
    """Throughputs within each type of telescope.

    Attributes
    ----------
    path : str
        The file.
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

    path: str
    tel_id: NDArray[np.int64]
    tel_type: tuple[str, ...]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    covariance: NDArray[np.float64]
    flags: tuple[str, ...]
    obs_ids: tuple[int, ...]

    @property
    def known(self) -> frozenset[int]:
        """Telescopes with a value."""
        return frozenset(self.tel_id[np.isfinite(self.value)].tolist())


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
    n_unusable : dict of int to int
        Chunks of each telescope that are not among these: flagged as not to be used, or without a
        mean, an error of it, or two rings.
    """

    tel_id: NDArray[np.int64]
    mean: NDArray[np.float64]
    sem: NDArray[np.float64]
    n_rings: NDArray[np.int64]
    start_ns: NDArray[np.int64] | None
    end_ns: NDArray[np.int64] | None
    n_unusable: dict[int, int]


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
        A table lacks a column, a telescope is in it twice, or a value makes no sense; or as
        `calibdask.io.hdf5.open_hdf5`.
    MissingInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        inter = muons = None
        if INTER_CALIBRATION.path in file:
            inter = _inter_calibration(file)
        if _MUON in file:
            muons = _muons(file)
        return Throughputs(inter, muons)


def _inter_calibration(file: File) -> InterCalibrationTable:
    table = file.table(INTER_CALIBRATION.path)
    where = f"{file.path}: {table.path}"
    if "time_bin" in table.names:
        raise CorruptedInput(
            f"{where} is binned in time: give the DL2 files alone, which makes one network of all"
            " types by time bin, or an inter-calibration without bins"
        )
    columns = read_columns(table, INTER_CALIBRATION, ("tel_type", "tel_id", "value", "error"))
    tel_id, value, error, flags = (columns[n] for n in ("tel_id", "value", "error", "flags"))
    ids, count = np.unique(tel_id, return_counts=True)
    if (count > 1).any():
        raise CorruptedInput(f"{where} has telescope {ids[count > 1][0]} twice")
    wrong = (np.isfinite(value) & (value <= 0)) | (error < 0)
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise CorruptedInput(
            f"{where} has value {value[row]} +- {error[row]} for telescope {tel_id[row]}, expected"
            " a value above 0 and an error of at least 0: run the inter-calibration again"
        )
    obs_id = table.attribute("obs_id")
    if obs_id is None:
        raise CorruptedInput(
            f"{where} does not tell by its attribute obs_id which observations it is from"
        )
    good = np.isfinite(value) & np.isfinite(error) & usable(flags)
    value, error = np.where(good, value, np.nan), np.where(good, error, np.nan)
    covariance = np.diag(error**2)
    if INTER_COVARIANCE.path in file:
        more = file.table(INTER_COVARIANCE.path)
        entries = read_columns(more, INTER_COVARIANCE, ("tel_id_1", "tel_id_2", "covariance"))
        row = {number: k for k, number in enumerate(tel_id.tolist())}
        ends = [[row.get(n, -1) for n in entries[f"tel_id_{k}"].tolist()] for k in (1, 2)]
        if min(map(min, ends), default=0) < 0:
            raise CorruptedInput(
                f"{file.path}: {more.path} has telescopes that {table.path} has not"
            )
        covariance[np.diag_indices_from(covariance)] = np.nan
        covariance[ends[0], ends[1]] = entries["covariance"]
        _check_covariance(f"{file.path}: {more.path}", tel_id, error, covariance)
    return InterCalibrationTable(
        str(file.path),
        tel_id,
        tuple(columns["tel_type"].tolist()),
        value,
        error,
        covariance,
        tuple(flags.tolist()),
        tuple(np.unique(np.asarray(obs_id, np.int64)).tolist()),
    )


def _check_covariance(
    where: str,
    tel_id: NDArray[np.int64],
    error: NDArray[np.float64],
    covariance: NDArray[np.float64],
) -> None:
    """Refuse a covariance that is cut short, not finite, or of other values than the errors."""
    known = np.isfinite(error)
    sound = np.isclose(covariance, covariance.T, rtol=1e-9, atol=0)
    diagonal = np.isclose(np.diagonal(covariance), error**2, rtol=1e-6, atol=0)
    sound[np.diag_indices_from(sound)] &= diagonal
    wrong = np.argwhere(~sound & np.outer(known, known))
    if len(wrong):
        one, two = wrong[0].tolist()
        raise CorruptedInput(
            f"{where} has {covariance[one, two]:g} for telescopes {tel_id[one]} and {tel_id[two]},"
            f" {covariance[two, one]:g} for {tel_id[two]} and {tel_id[one]}, and their errors are"
            f" {error[one]:g} and {error[two]:g}: run the inter-calibration again"
        )


def _refuse_repeated(where: str, chunks: Columns, rows: NDArray[np.int64]) -> None:
    """Refuse a chunk of rings that is in a table twice: its rings would count twice."""
    seen: dict[tuple[float, ...], int] = {}
    values = zip(*(column[rows].tolist() for column in chunks.values()), strict=True)
    for row, chunk in zip(rows.tolist(), values, strict=True):
        first = seen.setdefault(chunk, row)
        if first != row:
            raise CorruptedInput(
                f"{where} the same rings in rows {first} and {row}: remove one of them"
            )


def _muons(file: File) -> MuonThroughputs:
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("tel_id", *_READ)}
    n_unusable: dict[int, int] = {}
    for name in file.children(_MUON):
        fields = MUON_THROUGHPUT.fields(f"{_MUON}/{name}")
        if fields is None:
            continue
        tel_id, table = int(fields["tel_id"]), file.table(f"{_MUON}/{name}")
        columns = read_columns(table, MUON_THROUGHPUT, _READ)
        flags = columns.pop("flags")
        where = f"{file.path}: {table.path} has"
        mean, sem = columns["mean"], columns["sem"]
        good = usable(flags) & np.isfinite(mean) & np.isfinite(sem) & (columns["n_events"] > 1)
        _refuse_repeated(where, columns, np.flatnonzero(good))
        if not good.all():
            n_unusable[tel_id] = int(np.count_nonzero(~good))
        wrong = good & ~((mean > 0) & (mean < _PERCENT) & (sem > 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise CorruptedInput(
                f"{where} a throughput of {mean[row]:g} +- {sem[row]:g} in row {row}, expected a"
                f" fraction of the light, above 0 and below {_PERCENT:g} (not in percent), with an"
                " error above 0: mend the row, or leave the file out"
            )
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
        n_unusable=n_unusable,
    )
