"""The report's part about telescope timing: offsets, network, residuals by impact distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.report import Quantity, TelescopeLayout, inter_calibration_sections
from calibdask.array.tables import RESIDUALS, TIMING, TIMING_CALIBRATION, WALK
from calibdask.array.timing_summary import MIN_EVENTS_PER_IMPACT_BIN
from calibdask.report import PALETTE, Notice, Paragraph, Section, draw_figure, table_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report import FigureBlock, TableBlock

__all__ = ["OFFSET", "timing_sections"]

OFFSET = Quantity(
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
) -> list[Section]:
    """Describe a timing calibration.

    Parameters
    ----------
    tables : mapping of str to QTable
        As the calibration gives them, by their path in the result file.
    layout : TelescopeLayout
        Positions of the telescopes of the array, whether or not they have a value.
    truth : mapping of int to float, optional
        True offset in ns by telescope number, where it is known from a simulation.

    Returns
    -------
    list of Section
        What every network has, and the systematic error with what it comes from.
    """
    sections = inter_calibration_sections(tables, layout, truth=truth, quantity=OFFSET)
    # After what needs attention and the offsets themselves.
    sections.insert(2, Section("Systematic error", _systematic(tables)))
    return sections


def _systematic(
    tables: Mapping[str, QTable],
) -> list[Paragraph | Notice | TableBlock | FigureBlock]:
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
    return [
        text,
        *_walk(tables),
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


def _walk(tables: Mapping[str, QTable]) -> list[TableBlock]:
    """Time walk of each type, where it was fitted."""
    if WALK.path not in tables:
        return []
    caption = (
        "Time walk: delay of an image of 100 photoelectrons; that of others goes with 1/sqrt(size)."
        " It is taken out of the times, and its error is in the systematic one."
    )
    return [table_block(WALK, tables[WALK.path], ("tel_type", "time_walk", "error"), caption)]


def _draw_residuals(residuals: Mapping[str, NDArray[Any]]) -> FigureBlock:
    """Draw the mean residuals by impact distance, of each telescope and of each type."""
    types = np.unique(residuals["tel_type"]).tolist()
    panel_in, gap_in, below_in, above_in = 2.2, 0.55, 0.5, 0.6
    spreads = []
    for tel_type in types:
        mean, _ = _mean_by_bin(residuals, residuals["tel_type"] == tel_type)
        spread = max(mean.values()) - min(mean.values())
        spreads.append(f"{tel_type}: {spread:.2g} ns between the bins")

    def paint(figure: Figure) -> None:
        gaps = {"hspace": gap_in / panel_in}
        panels = figure.subplots(len(types), 1, squeeze=False, sharex=True, gridspec_kw=gaps)
        panels = panels[:, 0]
        for panel, tel_type in zip(panels, types, strict=True):
            rows = residuals["tel_type"] == tel_type
            centre = 0.5 * (residuals["impact_low"] + residuals["impact_high"])
            for tel_id in np.unique(residuals["tel_id"][rows]).tolist():
                mine = np.flatnonzero(rows & (residuals["tel_id"] == tel_id))
                panel.plot(
                    centre[mine], residuals["residual"][mine], ".", color="#aaaaaa", markersize=4
                )
            mean, error = _mean_by_bin(residuals, rows)
            panel.errorbar(
                list(mean),
                list(mean.values()),
                yerr=list(error.values()),
                fmt="o-",
                color=PALETTE[0],
                capsize=2,
            )
            panel.axhline(0, color="#333333", linewidth=0.9, zorder=1)
            panel.set_title(tel_type)
            panel.set_ylabel("residual, ns")
        panels[-1].set_xlabel("impact distance, m")

    return draw_figure(
        paint,
        size_in=(10.5, above_in + len(types) * (panel_in + gap_in) - gap_in + below_in),
        margins_in=(0.8, 0.15, below_in, above_in),
        alt=f"Mean residual by impact distance, one panel per type. {'; '.join(spreads)}.",
        caption="Residual of the times against the fit by impact distance: grey, the mean of each "
        f"telescope; blue, that of its type with its error. Bins of {MIN_EVENTS_PER_IMPACT_BIN} "
        "events of the telescope or more.",
    )


def _mean_by_bin(
    residuals: Mapping[str, NDArray[Any]], rows: NDArray[np.bool_]
) -> tuple[dict[float, float], dict[float, float]]:
    """Mean residual of some telescopes and its error, by the centre of the bin."""
    mean, error = {}, {}
    for low in np.unique(residuals["impact_low"][rows]).tolist():
        mine = rows & (residuals["impact_low"] == low)
        weight = residuals["n_events"][mine].astype(np.float64)
        weight /= weight.sum()
        centre = 0.5 * (low + float(residuals["impact_high"][mine][0]))
        mean[centre] = float(np.sum(weight * residuals["residual"][mine]))
        error[centre] = math.sqrt(np.sum((weight * residuals["residual_error"][mine]) ** 2))
    return mean, error
