"""From the states of cells to monitoring tables: throughputs, trends, residuals, lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.muon.model import (
    FLAGS,
    PROFILES,
    clip_bounds,
    fit_line,
    fit_quadratic_term,
)
from calibdask.muon.summary import MILLISECONDS_OF_2020
from calibdask.stats.keyed import obs_id_array
from calibdask.stats.moments import Moments
from calibdask.stats.timebins import to_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.muon.config import MuonOptions
    from calibdask.muon.model import LineFit

    type Telescope = tuple[int, str, int]  # number, description, mirrors

__all__ = [
    "METHOD",
    "PSF",
    "THROUGHPUT",
    "TROUBLED",
    "CellState",
    "psf_tables",
    "throughput_tables",
]

THROUGHPUT = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
"""Group of ctapipe's tables of throughput; a table per telescope."""
PSF = "/dl1/monitoring/telescope/optical_psf"
"""Group of ctapipe's tables of optical PSF; a table per telescope."""
METHOD = "Muon Rings"
TROUBLED = ("n_saturated", "n_noisy", "n_misfit")
"""Columns for the rings that were left out, in the order of `calibdask.muon.rings.TROUBLED`."""

_MS_PER_DAY = 86_400_000.0
_NS_PER_MS = 1_000_000
_MANY_CLIPPED = 0.1
_P_VALUE_LIMIT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class CellState:
    """What the fit of a cell gave: moments of the rings within bounds, and the next bounds.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        By chunk or by bin of radius: ``n``, ``mean``, ``std`` and ``m2`` of what is within the
        bounds, the next bounds ``low`` and ``high``, ``n_all`` with clipped rings; ``done``,
        ``round``: how often was clipped; and what else the job's own tables need.
    """

    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        clip_sigma: float | None,
        low: NDArray[np.float64] | None = None,
        high: NDArray[np.float64] | None = None,
        **arrays: Any,
    ) -> Self:
        """Make a state, with bounds narrowed by its moments."""
        values = {name: np.asarray(value) for name, value in arrays.items()}
        n = values["n"]
        low = np.full(n.shape, -np.inf) if low is None else low
        high = np.full(n.shape, np.inf) if high is None else high
        mean = np.where(n > 0, values["mean"], np.nan)
        values["low"], values["high"] = clip_bounds(mean, values["std"], clip_sigma, low, high)
        return cls(values)

    @property
    def done(self) -> bool:
        """Whether clipping has come to its end."""
        return bool(self.arrays["done"])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the arrays."""
        return dict(self.arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make the state again from its arrays."""
        return cls(dict(arrays))


def _describe(table: QTable, texts: Mapping[str, str]) -> QTable:
    """Say what columns mean."""
    for name, text in texts.items():
        table[name].info.description = text
    return table


def _by_telescope(states: Mapping[Cell, CellState]) -> dict[int, list[tuple[int, CellState]]]:
    """Bins with their states, by telescope, in the order of time."""
    found: dict[int, list[tuple[int, CellState]]] = {}
    for cell, state in sorted(states.items()):
        found.setdefault(int(cell[0]), []).append((int(cell[1]), state))
    return found


def _metadata(options: MuonOptions, obs_ids: Sequence[int], *, from_images: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"obs_ids": obs_id_array(obs_ids)}
    if from_images:
        metadata["compatibility"] = "ctapipe" if options.ring_fit.of_ctapipe else "none"
        metadata["fit_circle"] = options.ring_fit.fit_circle
    if options.bins is not None:
        metadata["time_bin_ns"] = options.bins.width_ns
        metadata["epoch_tai_ns"] = options.bins.epoch_ns
    return metadata


def _only(least: NDArray[np.int64], greatest: NDArray[np.int64]) -> NDArray[np.integer]:
    """Observation that all rings are of; -1 where they are of several."""
    return _narrow(np.where(least == greatest, least, -1))


def _narrow(obs_id: NDArray[np.int64]) -> NDArray[np.integer]:
    """Give observations as int32, as ctao-calibpipe has them, where they fit."""
    narrow = obs_id.astype(np.int32)
    return narrow if np.array_equal(narrow, obs_id) else obs_id


def _flags(letters: Mapping[str, NDArray[np.bool_]], n: int) -> NDArray[np.str_]:
    """Join letters, in the order of `FLAGS`."""
    return np.array(
        ["".join(one for one in FLAGS if one in letters and letters[one][i]) for i in range(n)],
        dtype=f"U{len(FLAGS)}",
    )


def _p_value(fit: LineFit) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(fit.ndf, fit.chi2)) if fit.ndf > 0 else np.nan


def _count_troubled(table: QTable, states: Mapping[Cell, CellState]) -> None:
    """Add to a table of telescopes, or of telescopes and bins, how many rings were left out."""
    names = [name for name in ("tel_id", "bin") if name in table.colnames]
    keys = list(zip(*(np.asarray(table[name]).tolist() for name in names), strict=True))
    counts = np.zeros((len(table), 3), np.int64)
    for cell, state in states.items():
        troubled = state.arrays["gallery_troubled"]
        if troubled.any():
            counts[keys.index(cell[: len(names)])] += troubled
    texts = (
        "Rings left out because pixels are saturated",
        "Rings left out because the noise is far above the pedestal",
        "Rings left out because the model does not describe them",
    )
    for name, own, text in zip(TROUBLED, counts.T, texts, strict=True):
        table[name] = own
        table[name].info.description = text


# -- throughput -----------------------------------------------------------------------------------


def throughput_tables(
    states: Mapping[Cell, CellState],
    telescopes: Sequence[Telescope],
    options: MuonOptions,
    obs_ids: Sequence[int],
    *,
    from_images: bool,
) -> dict[str, QTable]:
    """Give the trends, the throughputs of each telescope, and the residuals.

    Parameters
    ----------
    states : mapping of Cell to CellState
        Final states by (telescope, bin).
    telescopes : sequence of (int, str, int)
        All telescopes of the array.
    options : MuonOptions
        Options of the job.
    obs_ids : sequence of int
        Observations of all inputs.
    from_images : bool
        Whether rings were fitted to images: the tables then tell of those in trouble.

    Raises
    ------
    NotEnoughData
        There is none: only where a campaign that runs is looked at.
    """
    metadata = _metadata(options, obs_ids, from_images=from_images)
    own: dict[int, dict[str, NDArray[Any]]] = {}
    profiles: dict[int, dict[str, Moments]] = {}
    for tel_id, bins in _by_telescope(states).items():
        rows, residuals = _throughput_rows(bins, options)
        if len(rows["n_events"]):
            own[tel_id], profiles[tel_id] = rows, residuals
    if not own:
        raise NotEnoughData("no telescope has a throughput yet")
    trends = _trends(own, telescopes, metadata)
    if from_images:
        _count_troubled(trends, states)
    tables = {f"{THROUGHPUT}_trend": trends}
    for tel_id, rows in own.items():
        tables[f"{THROUGHPUT}/tel_{tel_id:03d}"] = _throughput_table(rows, metadata)
    for name in PROFILES:
        of_all = {tel_id: residuals[name] for tel_id, residuals in profiles.items()}
        tables[f"{THROUGHPUT}_{name}"] = _profile_table(name, of_all, metadata)
    return tables


def _throughput_rows(
    bins: Sequence[tuple[int, CellState]], options: MuonOptions
) -> tuple[dict[str, NDArray[Any]], dict[str, Moments]]:
    """Throughputs of a telescope by time, and its residuals over all of them."""
    parts: dict[str, list[NDArray[Any]]] = {}
    residuals = {name: Moments.identity(len(edges) - 1) for name, (_, edges) in PROFILES.items()}
    for number, state in bins:
        a = state.arrays
        if "n_all" not in a:  # no ring, or fewer than a chunk
            continue
        # Chunks by number are counted; bins of time have the number of their place.
        chunks = np.arange(len(a["n"])) if options.chunk_size else np.array([number])
        columns = {
            "bin": chunks,
            "mean": a["mean"],
            "median": a["median"],
            "std": a["std"],
            "sem": np.sqrt(a["m2"] / np.maximum(a["n"] - 1, 1) / np.maximum(a["n"], 1)),
            "n_events": a["n"],
            "n_clipped": a["n_all"] - a["n"],
            "time_ms": a["time_ms"],
            "first_ns": a["least"][0],
            "last_ns": a["greatest"][0],
            "obs_id": _only(a["least"][1], a["greatest"][1]),
        }
        filled = a["n"] > 0
        for name, values in columns.items():
            parts.setdefault(name, []).append(values[filled])
        for name, total in residuals.items():
            if f"{name}_n" not in a:  # a campaign that runs: nothing is clipped yet
                continue
            own = Moments(*(a[f"{name}_{field}"] for field in ("n", "mean", "m2")))
            residuals[name] = total.merge(own)
    rows = {name: np.concatenate(values) for name, values in parts.items()}
    if not rows:
        return {"n_events": np.empty(0, np.int64)}, residuals
    few = rows["n_events"] < options.min_rings
    rows["sem"] = np.where(rows["n_events"] > 1, rows["sem"], np.nan)
    clipped = rows["n_clipped"] > _MANY_CLIPPED * (rows["n_events"] + rows["n_clipped"])
    rows["flags"] = _flags({"F": few, "C": clipped}, len(few))
    return rows, residuals


def _throughput_table(rows: Mapping[str, NDArray[Any]], metadata: dict[str, Any]) -> QTable:
    from astropy.table import QTable

    n = len(rows["mean"])
    table = QTable(
        {
            "mean": rows["mean"],
            "median": rows["median"],
            "std": rows["std"],
            "sem": rows["sem"],
            "method": np.full(n, METHOD),
            "time_start": to_time(rows["first_ns"]),
            "time_end": to_time(rows["last_ns"]),
            "obs_id": rows["obs_id"],
            "n_events": rows["n_events"],
            "n_clipped": rows["n_clipped"],
            "time_mean": _time_of(rows["time_ms"]),
            "bin": rows["bin"],
            "flags": rows["flags"],
        },
        meta=dict(metadata),
    )
    return _describe(
        table,
        {
            "mean": "Mean optical throughput of the rings that were not clipped",
            "median": "Median of the same rings",
            "std": "Standard deviation of the same rings (divisor n)",
            "sem": "Standard error of the mean: with divisor n - 1",
            "method": "Calibration method used",
            "obs_id": "Observation of all rings; -1: of several, see obs_ids",
            "n_events": "Rings in the mean",
            "n_clipped": "Rings that were clipped",
            "bin": "Number of the time bin since the epoch, or of the chunk",
            "flags": "Letters that say what is wrong",
        },
    )


def _time_of(time_ms: NDArray[np.float64]) -> Any:
    return to_time((np.rint(time_ms).astype(np.int64) + MILLISECONDS_OF_2020) * _NS_PER_MS)


def _trends(
    own: Mapping[int, Mapping[str, NDArray[Any]]],
    telescopes: Sequence[Telescope],
    metadata: dict[str, Any],
) -> QTable:
    """Fit a straight line to the throughputs of each telescope; telescopes without have flags."""
    from astropy import units as u
    from astropy.table import QTable

    described = {tel_id: (text, n_mirrors) for tel_id, text, n_mirrors in telescopes}
    rows = []
    for tel_id in sorted({*described, *own}):
        text, n_mirrors = described.get(tel_id, ("", 1))
        if tel_id not in own:
            flags = "D" if n_mirrors != 1 else "M"
            rows.append((tel_id, text, 0, 0, 0, *[np.nan] * 5, -1, np.nan, flags))
            continue
        all_of = own[tel_id]
        used = ~np.strings.startswith(all_of["flags"], "F") & (all_of["sem"] > 0)
        mean, sem = all_of["mean"][used], all_of["sem"][used]
        days = all_of["time_ms"][used] / _MS_PER_DAY
        weight = 1 / sem**2
        total = weight.sum()
        value, centre = (
            ((weight * x).sum() / total if total > 0 else np.nan) for x in (mean, days)
        )
        fit = fit_line(days - (centre if total > 0 else 0.0), mean, sem)
        p_value = _p_value(fit)
        letters = {
            "F": not used.any(),
            "B": used.any() and not np.isfinite(fit.slope),
            "X": p_value < _P_VALUE_LIMIT,
            "C": any("C" in one for one in all_of["flags"].tolist()),
        }
        rows.append(
            (
                tel_id,
                text,
                int(used.sum()),
                int(all_of["n_events"].sum()),
                int(all_of["n_clipped"].sum()),
                value,
                np.sqrt(1 / total) if total > 0 else np.nan,
                fit.slope,
                fit.slope_err,
                fit.chi2,
                max(fit.ndf, -1),
                centre * _MS_PER_DAY,
                "".join(one for one in FLAGS if letters.get(one)),
            )
        )
    names = "tel_id tel_description n_bins n_events n_clipped mean mean_err slope slope_err chi2"
    names += " ndf time_ms flags"
    columns = dict(zip(names.split(), map(np.array, zip(*rows, strict=True)), strict=True))
    time_ms = columns.pop("time_ms")
    columns["time_mean"] = _time_of(np.nan_to_num(time_ms))
    columns["tel_id"] = columns["tel_id"].astype(np.int16)
    for name in ("slope", "slope_err"):
        columns[name] = columns[name].astype(float) / u.day
    columns["flags"] = columns.pop("flags")
    return _describe(
        QTable(columns, meta=dict(metadata)),
        {
            "mean": "Weighted mean throughput: the line's value at time_mean",
            "mean_err": "Its standard error",
            "slope": "Change of the throughput with time",
            "slope_err": "Its standard error, from those of the bins",
            "chi2": "Of the straight line",
            "flags": "Letters that say what is wrong",
        },
    )


def _profile_table(name: str, of_all: Mapping[int, Moments], metadata: dict[str, Any]) -> QTable:
    """Residuals of the rings, relative to the mean of their bin of time."""
    from astropy import units as u
    from astropy.table import QTable

    unit, edges = PROFILES[name]
    parts: dict[str, list[NDArray[Any]]] = {}
    for tel_id, moments in of_all.items():
        seen = moments.n > 0
        error = np.sqrt(moments.variance() / np.maximum(moments.n, 1))
        columns: dict[str, NDArray[Any]] = {
            "tel_id": np.full(int(seen.sum()), tel_id, np.int16),
            f"{name}_low": edges[:-1][seen],
            f"{name}_high": edges[1:][seen],
            "n_events": moments.n[seen],
            "residual": moments.mean[seen],
            "residual_err": error[seen],
        }
        for key, values in columns.items():
            parts.setdefault(key, []).append(values)
    table = QTable({key: np.concatenate(v) for key, v in parts.items()}, meta=dict(metadata))
    for key in (f"{name}_low", f"{name}_high"):
        table[key] = table[key] * u.Unit(unit)
    text = "Mean efficiency over that of all rings of the same bin of time, minus 1"
    return _describe(table, {"residual": text})


# -- PSF ------------------------------------------------------------------------------------------


def psf_tables(
    states: Mapping[Cell, CellState],
    telescopes: Sequence[Telescope],
    options: MuonOptions,
    obs_ids: Sequence[int],
    *,
    from_images: bool,
) -> dict[str, QTable]:
    """Give the lines of all telescopes, those of each, and the points.

    Parameters
    ----------
    states : mapping of Cell to CellState
        Final states by (telescope, bin).
    telescopes : sequence of (int, str, int)
        All telescopes of the array.
    options : MuonOptions
        Options of the job.
    obs_ids : sequence of int
        Observations of all inputs.
    from_images : bool
        Whether rings were fitted to images: the tables then tell of those in trouble.

    Raises
    ------
    NotEnoughData
        There is none: only where a campaign that runs is looked at.
    """
    metadata = _metadata(options, obs_ids, from_images=from_images)
    lines: dict[int, list[dict[str, Any]]] = {}
    points: list[dict[str, NDArray[Any]]] = []
    for tel_id, bins in _by_telescope(states).items():
        for number, state in bins:
            if "n_all" in state.arrays:
                line, own = _psf_line(tel_id, number, state.arrays, options)
                lines.setdefault(tel_id, []).append(line)
                points.append(own)
    if not lines:
        raise NotEnoughData("no telescope has bins of ring radius yet")
    overview = [line for of_one in lines.values() for line in of_one]
    for cell, state in states.items():
        if "n_all" not in state.arrays and state.arrays["gallery_troubled"].any():
            overview.append(_no_line(int(cell[0]), "M") | {"bin": cell[1]})
    with_row = {line["tel_id"] for line in overview}
    for tel_id, _, n_mirrors in telescopes:
        if tel_id not in with_row:
            overview.append(_no_line(tel_id, "D" if n_mirrors != 1 else "M"))
    overview.sort(key=lambda line: (line["tel_id"], line["bin"]))
    lines_of_all = _psf_table(overview, metadata, with_telescope=True)
    if from_images:
        _count_troubled(lines_of_all, states)
    tables = {f"{PSF}_overview": lines_of_all}
    for tel_id, of_one in lines.items():
        tables[f"{PSF}/tel_{tel_id:03d}"] = _psf_table(of_one, metadata, with_telescope=False)
    tables[f"{PSF}_bins"] = _points_table(points, metadata)
    return tables


def _no_line(tel_id: int, flags: str) -> dict[str, Any]:
    nothing = dict.fromkeys(
        (
            *("slope", "intercept", "slope_err", "intercept_err", "covariance", "chi2"),
            *("quadratic", "quadratic_err"),
        ),
        np.nan,
    )
    counts = {"ndf": -1, "n_events": 0, "n_clipped": 0, "bin": 0, "first_ns": 0, "last_ns": 0}
    return {"tel_id": tel_id, "obs_id": -1, "flags": flags, **nothing, **counts}


def _psf_line(
    tel_id: int, number: int, a: Mapping[str, NDArray[Any]], options: MuonOptions
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Fit the line of a telescope in a bin of time; give it with its points."""
    n, ratio, radius_deg = a["n"], a["mean"], a["radius_deg"]
    error = np.sqrt(Moments(n, ratio, a["m2"]).variance() / np.maximum(n, 1))
    used = (n >= options.min_rings) & (error > 0)
    x, y, sigma = radius_deg[used], ratio[used], error[used]
    fit = fit_line(x, y, sigma)
    quadratic, quadratic_err = fit_quadratic_term(x, y, sigma)
    n_events, n_all = int(n.sum()), int(a["n_all"].sum())
    letters = {
        "F": n_events < options.min_rings,
        "B": not np.isfinite(fit.slope),
        "X": _p_value(fit) < _P_VALUE_LIMIT,
        "C": n_all - n_events > _MANY_CLIPPED * n_all,
    }
    line = {
        "tel_id": tel_id,
        "slope": fit.slope,
        "intercept": fit.intercept,
        "slope_err": fit.slope_err,
        "intercept_err": fit.intercept_err,
        "covariance": float(fit.covariance[0, 1]),
        "chi2": fit.chi2,
        "ndf": max(fit.ndf, -1),
        "quadratic": quadratic,
        "quadratic_err": quadratic_err,
        "n_events": n_events,
        "n_clipped": n_all - n_events,
        "bin": number,
        "first_ns": int(a["least"][0]),
        "last_ns": int(a["greatest"][0]),
        "obs_id": int(_only(a["least"][1], a["greatest"][1])),
        "flags": "".join(one for one in FLAGS if letters.get(one)),
    }
    seen = n > 0
    model = fit.intercept + fit.slope * radius_deg
    points = {
        "tel_id": np.full(len(n), tel_id, np.int16)[seen],
        "bin": np.full(len(n), number)[seen],
        "radius_low": a["edges_deg"][:-1][seen],
        "radius_high": a["edges_deg"][1:][seen],
        "radius": radius_deg[seen],
        "ratio": ratio[seen],
        "ratio_err": error[seen],
        "residual": (ratio - model)[seen],
        "n_events": n[seen],
        "n_clipped": (a["n_all"] - n)[seen],
        "used": used[seen],
    }
    return line, points


def _psf_table(
    lines: Sequence[Mapping[str, Any]], metadata: dict[str, Any], *, with_telescope: bool
) -> QTable:
    from astropy import units as u
    from astropy.table import QTable

    rows = {name: np.array([line[name] for line in lines]) for name in lines[0]}
    columns: dict[str, Any] = {}
    if with_telescope:
        columns["tel_id"] = rows["tel_id"].astype(np.int16)
    columns |= {
        "slope": rows["slope"] / u.deg,
        "intercept": rows["intercept"],
        "slope_err": rows["slope_err"] / u.deg,
        "intercept_err": rows["intercept_err"],
        "method": np.full(len(lines), METHOD),
        "chi2": rows["chi2"],
        "time_start": to_time(rows["first_ns"]),
        "time_end": to_time(rows["last_ns"]),
        "obs_id": _narrow(rows["obs_id"]),
        "ndf": rows["ndf"],
        "covariance": rows["covariance"] / u.deg,
        "quadratic": rows["quadratic"] / u.deg**2,
        "quadratic_err": rows["quadratic_err"] / u.deg**2,
        "n_events": rows["n_events"],
        "n_clipped": rows["n_clipped"],
        "bin": rows["bin"],
        "flags": rows["flags"].astype(f"U{len(FLAGS)}"),
    }
    return _describe(
        QTable(columns, meta=dict(metadata)),
        {
            "slope": "Change of ring width over ring radius with the radius",
            "intercept": "Width over radius at radius 0",
            "slope_err": "Standard error of the slope",
            "intercept_err": "Standard error of the intercept",
            "method": "Calibration method used",
            "chi2": "Of the straight line, not divided by ndf",
            "obs_id": "Observation of all rings; -1: of several, see obs_ids",
            "ndf": "Bins of radius minus two",
            "covariance": "Of slope and intercept",
            "quadratic": "Coefficient of radius**2 where a parabola is fitted instead",
            "quadratic_err": "Its standard error",
            "n_events": "Rings in the line",
            "n_clipped": "Rings that were clipped",
            "bin": "Number of the time bin since the epoch",
            "flags": "Letters that say what is wrong",
        },
    )


def _points_table(points: Sequence[Mapping[str, NDArray[Any]]], metadata: dict[str, Any]) -> QTable:
    from astropy import units as u
    from astropy.table import QTable

    columns: dict[str, Any] = {
        name: np.concatenate([one[name] for one in points]) for name in points[0]
    }
    for name in ("radius_low", "radius_high", "radius"):
        columns[name] = columns[name] * u.deg
    return _describe(
        QTable(columns, meta=dict(metadata)),
        {
            "radius": "Mean ring radius in the bin",
            "ratio": "Mean ring width over ring radius",
            "ratio_err": "Its standard error",
            "residual": "Ratio minus the line",
            "used": "Whether the line was fitted to it",
        },
    )
