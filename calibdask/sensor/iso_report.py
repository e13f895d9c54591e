"""The report of the normalisation of ISO speeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, Paragraph, ReportSection
from calibdask.report.figures import (
    PALETTE,
    WIDTH_IN,
    curve_panels,
    draw_figure,
    legend_above,
    plot_points,
)
from calibdask.sensor.model import chi2_probability
from calibdask.sensor.report import columns_of, map_notices, maps_section, settings_table
from calibdask.sensor.tables import ISO_FACTORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from calibdask.report.blocks import FigureBlock
    from calibdask.sensor.report import Row, Tables

__all__ = ["iso_sections"]


def iso_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe the normalisation of ISO speeds."""
    rows, curve, maps = result["rows"], result["curve"], result["overviews"]
    notices = map_notices(maps, rows, "ratio")
    if chi2_probability(curve.chi2, curve.ndf) < 1e-3:
        text = (
            f"The signals follow neither a line nor a knee (chi2 {curve.chi2:.4g} for"
            f" {curve.ndf} degrees of freedom). Use the measured factors, not the curve."
        )
        notices.append(Notice("warning", text))
    lost = [str(row["iso"]) for row in rows if not math.isfinite(row["factor"])]
    if lost:
        text = f"ISO {', '.join(lost)}: no pixel could be used, all are saturated or too dark."
        notices.append(Notice("warning", text))
    knee = f", constant from ISO {curve.knee:.5g} ± {curve.knee_error:.2g} on"
    text = (
        f"Signal relative to ISO {curve.iso_min}: 1 + {curve.slope:.6g} (ISO - {curve.iso_min})"
        f"{knee if curve.kind == 'knee' else ''}. Bayesian information criterion: line"
        f" {curve.bic_linear:.4g}, knee {curve.bic_knee:.4g}; the smaller one counts."
    )
    table = settings_table(
        ISO_FACTORS,
        tables,
        "factor factor_error model model_error signal_dn n_used n_frames bias_source",
        "Factors as measured, and from the curve. The lowest ISO speed is 1 by definition.",
    )
    return [
        attention_section(notices),
        ReportSection("ISO speed", [Paragraph(text), _draw_iso(rows, curve), table]),
        maps_section(dict([*maps.items()][-1:]), "signal relative to the lowest ISO speed"),
    ]


def _draw_iso(rows: Sequence[Row], curve: Any) -> FigureBlock:
    iso, factor, error = columns_of(rows, "iso", "factor", "factor_error")
    line = np.linspace(iso.min(), iso.max(), 500)
    model, _ = curve(line)
    at_points, _ = curve(iso)

    def paint(figure: Figure) -> None:
        top, bottom = curve_panels(figure, "ISO speed", "signal / lowest ISO")
        top.plot(line, model, color=PALETTE[1], label=f"curve ({curve.kind})")
        plot_points(top, iso, factor, error, label="measured")
        top.set(xscale="log", yscale="log")
        plot_points(bottom, iso, 100 * (factor / at_points - 1), 100 * error / at_points)
        bottom.set_xticks(iso, [f"{one:.0f}" for one in iso])
        bottom.minorticks_off()
        legend_above(figure, top)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 4.6),
        margins_in=(0.8, 0.2, 0.55, 0.4),
        alt="Signal against ISO speed, measured and fitted; the numbers are in the table.",
        caption="Signal against ISO speed, and what is left beside the curve.",
    )
