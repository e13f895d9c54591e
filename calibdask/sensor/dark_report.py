"""The report of the dark current."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, Paragraph, ReportSection
from calibdask.report.figures import WIDTH_IN, draw_figure, legend_above, plot_points
from calibdask.sensor.report import (
    columns_of,
    map_notices,
    maps_section,
    settings_table,
    without_repeats,
)
from calibdask.sensor.settings import Setting
from calibdask.sensor.tables import DARK_CURRENT, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from calibdask.report.blocks import Block, FigureBlock
    from calibdask.sensor.report import Row, Tables

__all__ = ["dark_sections"]


def dark_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe the dark current."""
    rows, maps = result["rows"], result["overviews"]
    notices = [
        Notice(
            "warning",
            f"{Setting.of_row(row).label}: the lines do not start at the bias (mean difference"
            f" {row['offset_minus_bias_dn']:.3g} DN, {row['offset_pull_rms']:.2g} standard errors"
            " rms). Light, a warming sensor, or another bias?",
        )
        for row in rows
        if abs(row["offset_minus_bias_dn"]) > 0.5 or row["offset_pull_rms"] > 1.5
    ]
    notices += map_notices(maps, rows, "dark_current")
    notices += [
        Notice("warning", f"{name}: left out, it has one exposure time only.")
        for name in result["left_out"]
    ]
    blocks: list[Block] = [
        Paragraph(
            "Slope of the signal with exposure time, of each pixel. Saturated points are left out;"
            " a pixel with fewer than two others has no value. The signal at no exposure should be"
            " the bias."
        ),
        settings_table(
            DARK_CURRENT,
            tables,
            "temperature_c n_exposures longest_s dark_current_dn_per_s dark_current_dn_per_s_error"
            " scatter_dn_per_s dark_current_with_hot_dn_per_s n_hot offset_minus_bias_dn"
            " offset_pull_rms bias_source",
            "By ISO speed and temperature; pixels without a flag.",
        ),
    ]
    if result["temperature"]:
        blocks += [
            settings_table(
                TEMPERATURE,
                tables,
                "doubling_k doubling_k_error activation_energy_ev activation_energy_ev_error"
                " chi2_doubling chi2_arrhenius ndf",
                "Law of temperature.",
            ),
            _draw_temperature(rows),
        ]
    return [
        attention_section(notices),
        ReportSection("Dark current", blocks),
        maps_section(without_repeats(maps), "dark current (DN/s)"),
    ]


def _draw_temperature(rows: Sequence[Row]) -> FigureBlock:
    names = ("temperature_c", "dark_current_dn_per_s", "dark_current_dn_per_s_error")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for group, setting in enumerate(sorted({Setting.of_row(row) for row in rows})):
            mine = np.array(columns_of((r for r in rows if Setting.of_row(r) == setting), *names))
            mine = mine[:, np.isfinite(mine[0])]
            mine = mine[:, np.argsort(mine[0])]
            plot_points(axes, *mine, group=group, fmt="o-", label=setting.label)
        if any(row["dark_current_dn_per_s"] > 0 for row in rows):
            axes.set_yscale("log")
        axes.set(xlabel="temperature (°C)", ylabel="dark current (DN/s)")
        legend_above(figure, axes)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.6),
        margins_in=(0.8, 0.2, 0.55, 0.4),
        alt="Dark current against temperature; the numbers are in the table.",
        caption="Dark current against temperature.",
    )
