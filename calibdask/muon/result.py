"""From the states of cells to monitoring tables: throughputs, trends, residuals, lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import Flag, column, has, usable
from calibdask.muon.model import PROFILES, clip_bounds, fit_line, fit_quadratic_term
from calibdask.muon.summary import MILLISECONDS_OF_2020
from calibdask.muon.tables import LINE, LINES, MUON_THROUGHPUT, POINTS, PROFILE, TREND, TROUBLED
from calibdask.stats.keyed import obs_id_array
from calibdask.stats.moments import Moments
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.muon.config import MuonOptions
    from calibdask.muon.model import LineFit

    type Telescope = tuple[int, str, int]  # number, description, mirrors
    type Columns = dict[str, NDArray[Any]]

__all__ = ["METHOD", "CellState", "psf_tables", "throughput_tables"]

METHOD = "Muon Rings"

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
        """Return the arrays."""
        return dict(self.arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make the state again from its arrays."""
        return cls(dict(arrays))


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


def _only(least: NDArray[np.int64], greatest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Observation that all rings are of; -1 where they are of several."""
    return np.where(least == greatest, least, -1)


def _p_value(fit: LineFit) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(fit.ndf, fit.chi2)) if fit.ndf > 0 else np.nan


def _no_value(n_mirrors: int) -> Flag:
    """Say why a telescope has no value."""
    return Flag.TWO_MIRRORS if n_mirrors != 1 else Flag.NO_RING


def _stacked(rows: Sequence[Mapping[str, Any]]) -> Columns:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _joined(parts: Iterable[Columns]) -> Columns:
    parts = list(parts)
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def _troubled(
    keys: Sequence[tuple[int, ...]], states: Mapping[Cell, CellState]
) -> dict[str, NDArray[np.int64]]:
    """Count the rings that were left out, by telescope or by telescope and bin."""
    counts = np.zeros((len(keys), len(TROUBLED)), np.int64)
    for cell, state in states.items():
        troubled = state.arrays["gallery_troubled"]
        if troubled.any():
            counts[keys.index(cell[: len(keys[0])])] += troubled
    return dict(zip(TROUBLED, counts.T, strict=True))


# -- throughput -----------------------------------------------------------------------------------


def throughput_tables(
    states: Mapping[Cell, CellState],
    telescopes: Sequence[Telescope],
    options: MuonOptions,
    obs_ids: Sequence[int],
    *,
    from_images: bool,
) -> dict[str, QTable]:
    """Return the trends, the throughputs of each telescope, and the residuals.

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
    own: dict[int, Columns] = {}
    profiles: dict[int, dict[str, Moments]] = {}
    for tel_id, bins in _by_telescope(states).items():
        rows, residuals = _throughput_rows(bins, options)
        if len(rows["n_events"]):
            own[tel_id], profiles[tel_id] = rows, residuals
    if not own:
        raise NotEnoughData("no telescope has a throughput yet")
    trends = _trends(own, telescopes)
    if from_images:
        trends |= _troubled([(one,) for one in trends["tel_id"].tolist()], states)
    tables = {TREND.path: TREND.build(trends, metadata)}
    for tel_id, rows in own.items():
        columns = {name: values for name, values in rows.items() if name != "time_ms"}
        columns["method"] = np.full(len(rows["mean"]), METHOD)
        columns["time_mean"] = _ns_of(rows["time_ms"])
        tables[MUON_THROUGHPUT.at(tel_id=tel_id)] = MUON_THROUGHPUT.build(columns, metadata)
    for name, schema in PROFILE.items():
        of_all = {tel_id: residuals[name] for tel_id, residuals in profiles.items()}
        tables[schema.path] = schema.build(_profile(name, of_all), metadata)
    return tables


def _throughput_rows(
    bins: Sequence[tuple[int, CellState]], options: MuonOptions
) -> tuple[Columns, dict[str, Moments]]:
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
            "time_start": a["least"][0],
            "time_end": a["greatest"][0],
            "obs_id": _only(a["least"][1], a["greatest"][1]),
        }
        filled = a["n"] > 0
        for name, values in columns.items():
            parts.setdefault(name, []).append(values[filled])
        for name, total in residuals.items():
            if f"{name}_n" not in a:  # a campaign that runs: clipping goes on
                continue
            own = Moments(*(a[f"{name}_{field}"] for field in ("n", "mean", "m2")))
            residuals[name] = total.merge(own)
    rows = {name: np.concatenate(values) for name, values in parts.items()}
    if not rows:
        return {"n_events": np.empty(0, np.int64)}, residuals
    few = rows["n_events"] < options.min_rings
    rows["sem"] = np.where(rows["n_events"] > 1, rows["sem"], np.nan)
    clipped = rows["n_clipped"] > _MANY_CLIPPED * (rows["n_events"] + rows["n_clipped"])
    rows["flags"] = column({Flag.FEW_RINGS: few, Flag.MANY_CLIPPED: clipped})
    return rows, residuals


def _ns_of(time_ms: NDArray[np.float64]) -> NDArray[np.int64]:
    return (np.rint(time_ms).astype(np.int64) + MILLISECONDS_OF_2020) * _NS_PER_MS


def _trends(own: Mapping[int, Columns], telescopes: Sequence[Telescope]) -> Columns:
    """Fit a straight line to the throughputs of each telescope; telescopes without have flags."""
    described = {tel_id: (text, n_mirrors) for tel_id, text, n_mirrors in telescopes}
    rows = []
    for tel_id in sorted({*described, *own}):
        text, n_mirrors = described.get(tel_id, ("", 1))
        line = _trend(own[tel_id]) if tel_id in own else _NO_TREND | {
            "flags": _no_value(n_mirrors).letter
        }  # fmt: skip
        rows.append({"tel_id": tel_id, "tel_description": text, **line})
    columns = _stacked(rows)
    columns["time_mean"] = _ns_of(np.nan_to_num(columns.pop("time_ms")))
    return columns


_NO_TREND = {
    **dict.fromkeys(("n_bins", "n_events", "n_clipped"), 0),
    **dict.fromkeys(("mean", "mean_err", "slope", "slope_err", "chi2", "time_ms"), np.nan),
    "ndf": -1,
}


def _trend(rows: Columns) -> dict[str, Any]:
    used = usable(rows["flags"]) & (rows["sem"] > 0)
    mean, sem = rows["mean"][used], rows["sem"][used]
    days = rows["time_ms"][used] / _MS_PER_DAY
    weight = 1 / sem**2
    total = weight.sum()
    value, centre = ((weight * x).sum() / total if total > 0 else np.nan for x in (mean, days))
    fit = fit_line(days - (centre if total > 0 else 0.0), mean, sem)
    return {
        "n_bins": int(used.sum()),
        "n_events": int(rows["n_events"].sum()),
        "n_clipped": int(rows["n_clipped"].sum()),
        "mean": value,
        "mean_err": np.sqrt(1 / total) if total > 0 else np.nan,
        "slope": fit.slope,
        "slope_err": fit.slope_err,
        "chi2": fit.chi2,
        "ndf": max(fit.ndf, -1),
        "time_ms": centre * _MS_PER_DAY,
        "flags": column(
            {
                Flag.FEW_RINGS: not used.any(),
                Flag.NO_SLOPE: used.any() and not np.isfinite(fit.slope),
                Flag.POOR_LINE: _p_value(fit) < _P_VALUE_LIMIT,
                Flag.MANY_CLIPPED: has(rows["flags"], Flag.MANY_CLIPPED).any(),
            }
        ),
    }


def _profile(name: str, of_all: Mapping[int, Moments]) -> Columns:
    """Residuals of the rings, relative to the mean of their bin of time."""
    _, edges = PROFILES[name]
    parts = []
    for tel_id, moments in of_all.items():
        seen = moments.n > 0
        error = np.sqrt(moments.variance() / np.maximum(moments.n, 1))
        parts.append(
            {
                "tel_id": np.full(int(seen.sum()), tel_id),
                f"{name}_low": edges[:-1][seen],
                f"{name}_high": edges[1:][seen],
                "n_events": moments.n[seen],
                "residual": moments.mean[seen],
                "residual_err": error[seen],
            }
        )
    return _joined(parts)


# -- PSF ------------------------------------------------------------------------------------------


def psf_tables(
    states: Mapping[Cell, CellState],
    telescopes: Sequence[Telescope],
    options: MuonOptions,
    obs_ids: Sequence[int],
    *,
    from_images: bool,
) -> dict[str, QTable]:
    """Return the lines of all telescopes, those of each, and the points.

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
    lines: list[dict[str, Any]] = []
    points: list[Columns] = []
    for tel_id, bins in _by_telescope(states).items():
        for number, state in bins:
            if "n_all" in state.arrays:
                line, own = _psf_line(tel_id, number, state.arrays, options)
                lines.append(line)
                points.append(own)
    if not lines:
        raise NotEnoughData("no telescope has bins of ring radius yet")
    tables = {}
    for tel_id in sorted({line["tel_id"] for line in lines}):
        rows = _stacked([line for line in lines if line["tel_id"] == tel_id])
        del rows["tel_id"]
        tables[LINE.at(tel_id=tel_id)] = LINE.build(rows, metadata)
    for cell, state in states.items():
        if "n_all" not in state.arrays and state.arrays["gallery_troubled"].any():
            lines.append(_no_line(int(cell[0]), Flag.NO_RING) | {"bin": cell[1]})
    with_row = {line["tel_id"] for line in lines}
    lines += [
        _no_line(tel_id, _no_value(n_mirrors))
        for tel_id, _, n_mirrors in telescopes
        if tel_id not in with_row
    ]
    of_all = _stacked(sorted(lines, key=lambda line: (line["tel_id"], line["bin"])))
    if from_images:
        keys = zip(of_all["tel_id"].tolist(), of_all["bin"].tolist(), strict=True)
        of_all |= _troubled(list(keys), states)
    return {
        LINES.path: LINES.build(of_all, metadata),
        **tables,
        POINTS.path: POINTS.build(_joined(points), metadata),
    }


def _no_line(tel_id: int, why: Flag) -> dict[str, Any]:
    nothing = (
        *("slope", "intercept", "slope_err", "intercept_err", "covariance", "chi2"),
        *("quadratic", "quadratic_err"),
    )
    return {
        "tel_id": tel_id,
        "method": METHOD,
        "obs_id": -1,
        "ndf": -1,
        "flags": why.letter,
        **dict.fromkeys(nothing, np.nan),
        **dict.fromkeys(("n_events", "n_clipped", "bin"), 0),
        **dict.fromkeys(("time_start", "time_end"), NO_TIME),
    }


def _psf_line(
    tel_id: int, number: int, a: Mapping[str, NDArray[Any]], options: MuonOptions
) -> tuple[dict[str, Any], Columns]:
    """Fit the line of a telescope in a bin of time; give it with its points."""
    n, ratio, radius_deg = a["n"], a["mean"], a["radius_deg"]
    error = np.sqrt(Moments(n, ratio, a["m2"]).variance() / np.maximum(n, 1))
    used = (n >= options.min_rings) & (error > 0)
    x, y, sigma = radius_deg[used], ratio[used], error[used]
    fit = fit_line(x, y, sigma)
    quadratic, quadratic_err = fit_quadratic_term(x, y, sigma)
    n_events, n_all = int(n.sum()), int(a["n_all"].sum())
    line = {
        "tel_id": tel_id,
        "method": METHOD,
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
        "time_start": int(a["least"][0]),
        "time_end": int(a["greatest"][0]),
        "obs_id": int(_only(a["least"][1], a["greatest"][1])),
        "flags": column(
            {
                Flag.FEW_RINGS: n_events < options.min_rings,
                Flag.NO_SLOPE: not np.isfinite(fit.slope),
                Flag.POOR_LINE: _p_value(fit) < _P_VALUE_LIMIT,
                Flag.MANY_CLIPPED: n_all - n_events > _MANY_CLIPPED * n_all,
            }
        ),
    }
    seen = n > 0
    model = fit.intercept + fit.slope * radius_deg
    points = {
        "tel_id": np.full(len(n), tel_id)[seen],
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
