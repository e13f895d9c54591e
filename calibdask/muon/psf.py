"""Optical point spread function of telescopes from muon rings: the job, its fit, its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import Flag, column
from calibdask.muon.calibration import RingCalibration
from calibdask.muon.config import SHOWN, CalculatePSFWithMuons
from calibdask.muon.model import fit_line, fit_quadratic_term, radius_edges
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
from calibdask.muon.summary import Rings, WidthSummary
from calibdask.muon.tables import LINE, LINES, POINTS
from calibdask.stats.moments import Moments
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell, Summary
    from calibdask.muon.state import Columns
    from calibdask.report import ReportSection

__all__ = ["PsfFromMuons"]


@dataclass(frozen=True)
class PsfFromMuons(RingCalibration):
    """Width over radius of rings against their radius: the optical point spread function."""

    section: CalculatePSFWithMuons

    name: ClassVar[str] = "calculate-psf-muon"
    sections: ClassVar = {"CalculatePSFWithMuons": CalculatePSFWithMuons, **SHOWN}
    within_bounds: ClassVar[type[Summary]] = WidthSummary
    description: ClassVar[str] = "Optical point spread function"

    def summarise(self, stage: int, rings: Rings, given: CellState) -> WidthSummary:
        """Summarise the rings within the bounds."""
        del stage
        state = given.arrays
        return WidthSummary.of(rings, state["edges_deg"], state["low"], state["high"])

    def fit(self, stage: int, cell: Cell, total: Any, given: CellState | None) -> CellState:
        """Bin the radius, then take moments and clip; one stage each."""
        del cell
        if stage == 0:
            n = int(total.efficiency.n[0])
            least, greatest = total.radius_deg.tolist()
            # Rings of one radius alone have one bin, and no line.
            n_bins = self.section.muonring_radius_fit_nbins if greatest > least else 1
            return CellState.of(
                None,
                done=not n,
                round=-1,
                n=np.full(n_bins if n else 1, -1 if n else 0),
                mean=np.full(n_bins if n else 1, np.nan),
                std=np.full(n_bins if n else 1, np.nan),
                edges_deg=radius_edges(least, greatest, n_bins) if n else np.empty(0),
                least=total.least,
                greatest=total.greatest,
                gallery=total.gallery,
            )
        if given is None:
            raise AssertionError("a stage after the first builds on one")
        before = given.arrays
        ratio, radius_deg = total.ratio.moments(), total.radius_deg.moments()
        number = int(before["round"]) + 1
        settled = np.array_equal(ratio.n, before["n"]) or number >= self.section.iterations
        return CellState.of(
            self.section.clip_sigma,
            before["low"],
            before["high"],
            done=settled,
            round=number,
            n=ratio.n,
            mean=ratio.mean,
            std=np.sqrt(ratio.variance(ddof=0)),
            m2=ratio.m2,
            radius_deg=radius_deg.mean,
            n_all=total.n_all,
            gallery=given.gallery,
            **{name: before[name] for name in ("edges_deg", "least", "greatest")},
        )

    def tables(self, result: Mapping[Cell, CellState]) -> dict[str, QTable]:
        """Return the lines by telescope, and the points they are fitted to.

        Raises
        ------
        NotEnoughData
            There is none: only where a campaign that runs is looked at.
        """
        metadata, min_rings = self.metadata(), self.section.min_number_of_muon
        lines: list[dict[str, Any]] = []
        points: list[Columns] = []
        for tel_id, bins in states_by_telescope(result).items():
            for number, state in bins:
                if "n_all" in state.arrays:
                    line, own = _psf_line(tel_id, number, state.arrays, min_rings)
                    lines.append(line)
                    points.append(own)
        if not lines:
            raise NotEnoughData("no telescope has bins of ring radius yet")
        tables = {}
        for tel_id in sorted({line["tel_id"] for line in lines}):
            rows = stacked([line for line in lines if line["tel_id"] == tel_id])
            del rows["tel_id"]
            tables[LINE.at(tel_id=tel_id)] = LINE.build(rows, metadata)
        for cell, state in result.items():
            if "n_all" not in state.arrays and state.arrays["gallery_troubled"].any():
                lines.append(_no_line(int(cell[0]), Flag.NO_RING) | {"bin": cell[1]})
        with_row = {line["tel_id"] for line in lines}
        lines += [
            _no_line(tel_id, no_value_flag(n_mirrors))
            for tel_id, _, n_mirrors in self.telescopes
            if tel_id not in with_row
        ]
        of_all = stacked(sorted(lines, key=lambda line: (line["tel_id"], line["bin"])))
        if self.fits_rings:
            keys = zip(of_all["tel_id"].tolist(), of_all["bin"].tolist(), strict=True)
            of_all |= troubled_counts(list(keys), result)
        return {
            LINES.path: LINES.build(of_all, metadata),
            **tables,
            POINTS.path: POINTS.build(joined(points), metadata),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the report."""
        from calibdask.muon.report import psf_sections

        return psf_sections(tables, self.pictures(result))


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
    tel_id: int, number: int, a: Mapping[str, NDArray[Any]], min_rings: int
) -> tuple[dict[str, Any], Columns]:
    """Fit the line of a telescope in a bin of time; give it with its points."""
    n, ratio, radius_deg = a["n"], a["mean"], a["radius_deg"]
    error = np.sqrt(Moments(n, ratio, a["m2"]).variance() / np.maximum(n, 1))
    used = (n >= min_rings) & (error > 0)
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
        "obs_id": int(only_observation(a["least"][1], a["greatest"][1])),
        "flags": column(
            {
                Flag.FEW_RINGS: n_events < min_rings,
                Flag.NO_SLOPE: not np.isfinite(fit.slope),
                Flag.POOR_LINE: p_value(fit) < P_VALUE_LIMIT,
                Flag.MANY_CLIPPED: n_all - n_events > MANY_CLIPPED * n_all,
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
