"""The report's part about telescope timing: offsets, network, residuals by impact distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.report import CalibratedQuantity, inter_calibration_sections
from calibdask.array.tables import RESIDUALS, TIMING, TIMING_CALIBRATION, WALK
from calibdask.array.timing_summary import MIN_EVENTS_PER_IMPACT_BIN
from calibdask.report.blocks import Notice, Paragraph, ReportSection, table_block
from calibdask.report.figures import WIDTH_IN, draw_figure, mark_zero, plot_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import Block, FigureBlock
    from calibdask.report.telescopes import TelescopeLayout

    type Columns = Mapping[str, NDArray[Any]]

__all__ = ["OFFSET", "timing_sections"]

OFFSET = CalibratedQuantity(
    job="timing-calibration",
    schemas=TIMING,
    name="offset",
    symbol="offset, ns",
    text="By how many ns the time of each telescope is late, from the arrival of the light of the "
    "same showers, less the delay of the front: to be subtracted from its times. Delays of "
    "cameras and triggers are part of it.",
    baseline=0.0,
    column="difference",
)


def timing_sections(
    tables: Mapping[str, QTable],
    layout: TelescopeLayout,
    *,
    truth: Mapping[int, float] | None = None,
) -> list[ReportSection]:
    """Describe a timing calibration: the network, and the systematic error of offsets.

    Parameters and returned sections are those of `inter_calibration_sections`; the truth is in ns.
    """
    sections = inter_calibration_sections(tables, layout, truth=truth, quantity=OFFSET)
    # After what needs attention and the offsets themselves.
    sections.insert(2, ReportSection("Systematic error", _systematic(tables)))
    return sections


def _systematic(tables: Mapping[str, QTable]) -> list[Block]:
    offsets = tables[OFFSET.table]
    residuals = {
        one.name: RESIDUALS.shown(tables[RESIDUALS.path], one.name)
        for one in RESIDUALS.columns
        if not one.optional
    }
    text = Paragraph(
        "Were the front as it is modelled, the residual of a telescope against the others would "
        "not depend on how far away the shower was. The scatter of its means in bins of the impact "
        "distance, beyond what their errors explain and pooled over each type (DerSimonian & Laird "
        "1986, Control. Clin. Trials 7, 177), is the systematic error of an offset; it does not "
        "shrink with more showers. Offsets are relative, so that of the reference comes on top. "
        "What is the same at all distances does not show here."
    )
    known = residuals["n_events"] >= MIN_EVENTS_PER_IMPACT_BIN
    if not known.any():
        return [text, Notice("warning", "No bin has enough events: nothing is known of it.")]
    walk = table_block(
        WALK,
        tables[WALK.path],
        ("tel_type", "time_walk", "error"),
        "Time walk: delay of an image of 100 photoelectrons; that of others goes with 1/sqrt(size)."
        " It is taken out of the times, and its error is in the systematic one.",
    ) if WALK.path in tables else None  # fmt: skip
    return [
        text,
        *([walk] if walk else []),
        _draw_residuals({name: values[known] for name, values in residuals.items()}),
        table_block(
            TIMING_CALIBRATION,
            offsets,
            ("tel_type", "tel_id", "value", "error", "systematic", "error_total"),
            "Errors of the offsets. Marked: the systematic one is the larger.",
            formats={"Error / ns": ".3f", "Total error / ns": ".3f"},
            error_of={"Offset / ns": "Total error / ns"},
            marked=offsets["systematic"] > offsets["error"],
        ),
    ]


def _draw_residuals(residuals: Columns) -> FigureBlock:
    """Draw the mean residuals by impact distance, of each telescope and of each type."""
    rows_of = {
        name: residuals["tel_type"] == name for name in np.unique(residuals["tel_type"]).tolist()
    }
    means = {name: _mean_by_bin(residuals, rows) for name, rows in rows_of.items()}
    spreads = [f"{name}: {np.ptp(mean[1]):.2g} ns between the bins" for name, mean in means.items()]
    panel_in, gap_in, below_in, above_in = 2.2, 0.55, 0.5, 0.6

    def paint(figure: Figure) -> None:
        gaps = {"hspace": gap_in / panel_in}
        panels = figure.subplots(len(means), 1, squeeze=False, sharex=True, gridspec_kw=gaps)[:, 0]
        centre = 0.5 * (residuals["impact_low"] + residuals["impact_high"])
        for panel, (name, rows) in zip(panels, rows_of.items(), strict=True):
            panel.plot(
                centre[rows], residuals["residual"][rows], ".", color="#aaaaaa", markersize=4,
                label="telescopes",
            )  # fmt: skip
            plot_points(panel, *means[name], fmt="o-", label="mean of the type")
            mark_zero(panel)
            panel.set(title=name, ylabel="residual, ns")
        panels[-1].set_xlabel("impact distance, m")

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, above_in + len(means) * (panel_in + gap_in) - gap_in + below_in),
        margins_in=(0.8, 0.15, below_in, above_in),
        alt=f"Mean residual by impact distance, one panel per type. {'; '.join(spreads)}.",
        caption="Residual of the times against the fit by impact distance: grey, the mean of each "
        f"telescope; blue, that of its type with its error. Bins of {MIN_EVENTS_PER_IMPACT_BIN} "
        "events of the telescope or more.",
    )


def _mean_by_bin(residuals: Columns, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return centre of the bin, mean residual of some telescopes and its error, shape (3, n)."""
    points = []
    for low in np.unique(residuals["impact_low"][rows]).tolist():
        mine = rows & (residuals["impact_low"] == low)
        weight = residuals["n_events"][mine] / residuals["n_events"][mine].sum()
        mean = np.sum(weight * residuals["residual"][mine])
        error = math.sqrt(np.sum((weight * residuals["residual_error"][mine]) ** 2))
        points.append((0.5 * (low + residuals["impact_high"][mine][0]), mean, error))
    return np.array(points).T
