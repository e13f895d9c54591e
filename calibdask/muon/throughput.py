"""Optical throughput of telescopes from muon rings: the job, its fit, and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import Flag, column, has, usable
from calibdask.muon.calibration import RingCalibration
from calibdask.muon.config import SHOWN, CalculateThroughputWithMuons, SizeChunking
from calibdask.muon.model import PROFILES, assign_chunks, chunk_starts, fit_line, residuals
from calibdask.muon.state import (
    MANY_CLIPPED,
    METHOD,
    P_VALUE_LIMIT,
    CellState,
    joined,
    no_value_flag,
    only_observation,
    p_value,
    stacked,
    states_by_telescope,
    troubled_counts,
)
from calibdask.muon.summary import (
    MILLISECONDS_OF_2020,
    ChunkKeys,
    EfficiencySummary,
    Rings,
    RingSummary,
)
from calibdask.muon.tables import MUON_THROUGHPUT, PROFILE, TREND
from calibdask.stats.histogram import Histogram
from calibdask.stats.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell, Summary
    from calibdask.muon.state import Columns, Telescope
    from calibdask.report import ReportSection

__all__ = ["ThroughputFromMuons"]

_REACH_UNCLIPPED = 8.0  # standard deviations that the histogram for the median covers
_MS_PER_DAY = 86_400_000.0
_NS_PER_MS = 1_000_000


@dataclass(frozen=True)
class ThroughputFromMuons(RingCalibration):
    """Optical throughput of telescopes by time, and its trend."""

    section: CalculateThroughputWithMuons

    name: ClassVar[str] = "calculate-throughput-muon"
    sections: ClassVar = {"CalculateThroughputWithMuons": CalculateThroughputWithMuons, **SHOWN}
    within_bounds: ClassVar[type[Summary]] = EfficiencySummary
    description: ClassVar[str] = "Optical throughput"

    def summarise(self, stage: int, rings: Rings, given: CellState) -> EfficiencySummary:
        """Summarise the rings within the bounds."""
        del stage
        state = given.arrays
        if self.by_number:
            chunk = assign_chunks(rings.keys, state["starts"], state["stop"])
        else:
            chunk = np.zeros(len(rings.time_ns), np.int64)
        low, high, mean, std = (state[name] for name in ("low", "high", "mean", "std"))
        return EfficiencySummary.of(rings, chunk, low, high, mean, std, float(state["reach"]))

    def fit(self, stage: int, cell: Cell, total: Any, given: CellState | None) -> CellState:
        """Take the moments, and clip again where rings were clipped; one stage each."""
        del cell
        if stage > 0:
            if given is None:
                raise AssertionError("a stage after the first builds on one")
            return _clip_efficiency(total, given, self.section.clip_sigma, self.section.iterations)
        if isinstance(total, ChunkKeys):
            return self._cut_into_chunks(total)
        moments = total.efficiency.moments()
        return CellState.of(
            self.section.clip_sigma,
            gallery=total.gallery,
            done=not moments.n.sum(),
            round=0,
            reach=self.section.clip_sigma or _REACH_UNCLIPPED,
            n=moments.n,
            mean=moments.mean,
            std=np.sqrt(moments.variance(ddof=0)),
            # What follows is for a look at a running campaign: nothing is clipped yet.
            m2=moments.m2,
            n_all=moments.n,
            median=np.full(1, np.nan),
            time_ms=_middle_ms(total),
            least=total.least[:, None],
            greatest=total.greatest[:, None],
        )

    def _cut_into_chunks(self, total: ChunkKeys) -> CellState:
        """Cut the rings of a telescope into chunks of equal number, in order of time."""
        n, size = len(total.keys), self.chunk_size or 1
        chunking = self.section.size_chunking or SizeChunking()
        starts, stop = chunk_starts(
            n,
            size,
            skip_last=chunking.last_chunk_policy == "skip",
            allow_undersized=chunking.allow_undersized_tables,
        )
        n_chunks = len(starts)
        return CellState.of(
            None,  # nothing is known yet that could be clipped
            done=not n_chunks,
            round=-1,
            reach=self.section.clip_sigma or _REACH_UNCLIPPED,
            n=np.zeros(n_chunks, np.int64) if n_chunks else np.array([0]),
            mean=np.zeros(max(n_chunks, 1)),
            std=np.ones(max(n_chunks, 1)),
            starts=total.keys[starts].reshape(-1, 3),
            stop=total.keys[stop : stop + 1],
            n_too_few=np.array(0 if n_chunks else n),
            gallery=total.gallery,
        )

    def tables(self, result: Mapping[Cell, CellState]) -> dict[str, QTable]:
        """Return throughputs by telescope, their trends and their residuals.

        Raises
        ------
        NotEnoughData
            There is none: only where a campaign that runs is looked at.
        """
        metadata, min_rings = self.metadata(), self.section.min_number_of_muon
        own: dict[int, Columns] = {}
        profiles: dict[int, dict[str, Moments]] = {}
        for tel_id, bins in states_by_telescope(result).items():
            rows, residuals = _throughput_rows(bins, min_rings, by_number=self.by_number)
            if len(rows["n_events"]):
                own[tel_id], profiles[tel_id] = rows, residuals
        if not own:
            raise NotEnoughData("no telescope has a throughput yet")
        trends = _trends(own, self.telescopes)
        if self.fits_rings:
            trends |= troubled_counts([(one,) for one in trends["tel_id"].tolist()], result)
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

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the report."""
        from calibdask.muon.report import throughput_sections

        return throughput_sections(tables, self.pictures(result))


def _middle_ms(total: RingSummary) -> NDArray[np.float64]:
    """Time between the first ring and the last, in ms from the beginning of 2020."""
    if not total.efficiency.n[0]:
        return np.zeros(1)
    first, last = int(total.least[0]), int(total.greatest[0])
    return np.array([(first + last) / 2e6 - MILLISECONDS_OF_2020])


def _clip_efficiency(
    total: EfficiencySummary, given: CellState, clip_sigma: float | None, iterations: int
) -> CellState:
    """Return the moments of what is within the bounds, and the next bounds."""
    before = given.arrays
    total = total.over(0, len(before["n"]))
    moments = total.efficiency.moments()
    std = np.sqrt(moments.variance(ddof=0))
    number = int(before["round"]) + 1
    # A median in units of moments that were not known yet is too coarse.
    settled = number > 0 and (np.array_equal(moments.n, before["n"]) or number >= iterations)
    edges = np.linspace(-float(before["reach"]), float(before["reach"]), total.counts.shape[1] - 1)
    unit = np.where(before["std"] > 0, before["std"], 1.0)
    median = before["mean"] + unit * Histogram(edges, total.counts).median()
    kept: dict[str, Any] = {name: before[name] for name in ("starts", "stop") if name in before}
    profiles: dict[str, Any] = {}
    for name, sums in total.profiles.items() if settled else ():
        residual = residuals(sums.moments(), moments.mean)
        for part, values in residual.to_arrays().items():
            profiles[f"{name}_{part}"] = values
    return CellState.of(
        clip_sigma,
        before["low"],
        before["high"],
        done=settled,
        round=number,
        reach=before["reach"],
        n=moments.n,
        mean=moments.mean,
        std=std,
        m2=moments.m2,
        median=median,
        n_all=total.n_all,
        time_ms=total.time_ms.moments().mean,
        least=total.least,
        greatest=total.greatest,
        gallery=given.gallery,
        **profiles,
        **kept,
    )


def _throughput_rows(
    bins: Sequence[tuple[int, CellState]], min_rings: int, *, by_number: bool
) -> tuple[Columns, dict[str, Moments]]:
    """Throughputs of a telescope by time, and its residuals over all of them."""
    parts: dict[str, list[NDArray[Any]]] = {}
    residuals = {name: Moments.identity(len(edges) - 1) for name, (_, edges) in PROFILES.items()}
    for number, state in bins:
        a = state.arrays
        if "n_all" not in a:  # no ring, or fewer than a chunk
            continue
        # Chunks by number are counted; bins of time have the number of their place.
        chunks = np.arange(len(a["n"])) if by_number else np.array([number])
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
            "obs_id": only_observation(a["least"][1], a["greatest"][1]),
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
    few = rows["n_events"] < min_rings
    rows["sem"] = np.where(rows["n_events"] > 1, rows["sem"], np.nan)
    clipped = rows["n_clipped"] > MANY_CLIPPED * (rows["n_events"] + rows["n_clipped"])
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
            "flags": no_value_flag(n_mirrors).letter
        }  # fmt: skip
        rows.append({"tel_id": tel_id, "tel_description": text, **line})
    columns = stacked(rows)
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
                Flag.POOR_LINE: p_value(fit) < P_VALUE_LIMIT,
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
    return joined(parts)
