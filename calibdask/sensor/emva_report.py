"""The report of a characterisation by EMVA 1288."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, ReportSection, values_table
from calibdask.report.figures import GREY, PALETTE, WIDTH_IN, draw_figure, legend_above, mark_zero
from calibdask.sensor.model import fit_lines
from calibdask.sensor.report import SETTING, columns_of, maps_section
from calibdask.sensor.settings import Setting
from calibdask.sensor.tables import EMVA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from calibdask.report.blocks import Block, FigureBlock
    from calibdask.sensor.report import Row, Tables

__all__ = ["emva_sections"]


def emva_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe a characterisation by EMVA 1288."""
    del tables
    notices: list[Notice] = []
    figures: list[Block] = []
    shown: dict[str, Row] = {}
    for row in result["rows"]:
        setting = Setting.of_row(row)
        where = f"{setting.label}: " if setting.known else ""
        if row["n_without_dark"]:
            text = f"{where}{row['n_without_dark']} bright exposures have no dark frames; left out."
            notices.append(Notice("warning", text))
        if not math.isfinite(row["quantum_efficiency"]):
            text = f"{where}photons are not known: no quantum efficiency, no thresholds in photons."
            notices.append(Notice("info", text))
        if not math.isfinite(row["prnu1288_percent"]):
            text = f"{where}no spatial stacks, bright and dark: no DSNU and PRNU."
            notices.append(Notice("info", text))
        mine = [one for one in result["points"] if Setting.of_row(one) == setting]
        figures += [_draw_transfer(row, mine), _draw_linearity(row, mine)]
        label = setting.label if setting.known else "Value"
        shown[label] = {name: value for name, value in row.items() if name not in SETTING}
    table = values_table(EMVA, shown, "Results by EMVA 1288, release 4.0 linear.")
    return [
        attention_section(notices),
        ReportSection("EMVA 1288", [*figures, table]),
        maps_section(result["overviews"], "mean (DN)"),
    ]


def _draw_transfer(row: Row, points: Sequence[Row]) -> FigureBlock:
    bright, dark, noise, dark_noise = columns_of(
        points, "bright_dn", "dark_dn", "bright_variance_dn2", "dark_variance_dn2"
    )
    signal, variance = bright - dark, noise - dark_noise
    limit = 0.7 * row["saturation_dn"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        low = signal <= limit
        axes.plot(signal[low], variance[low], "o", ms=4, color=PALETTE[0], label="fitted")
        axes.plot(
            signal[~low], variance[~low], "o", ms=4, mfc="white", color=PALETTE[0],
            label="not fitted",
        )  # fmt: skip
        line = np.array([0.0, limit])
        axes.plot(line, row["k_dn_per_electron"] * line, color=PALETTE[1], label="K × signal")
        axes.axvline(row["saturation_dn"], color=GREY, ls=":", label="saturation")
        axes.set(xlabel="signal (DN)", ylabel="variance less dark variance (DN²)")
        legend_above(figure, axes)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.8),
        margins_in=(0.9, 0.2, 0.55, 0.4),
        alt=f"Photon transfer: K = {row['k_dn_per_electron']:.5g} DN per electron.",
        caption="Photon transfer up to 70 % of saturation (filled).",
    )


def _draw_linearity(row: Row, points: Sequence[Row]) -> FigureBlock:
    photons, exposure, bright, dark = columns_of(
        points, "mean_photon", "exposure_s", "bright_dn", "dark_dn"
    )
    known = bool(np.isfinite(photons).all())
    light, signal = (photons if known else exposure), bright - dark
    middle = (signal >= 0.05 * row["saturation_dn"]) & (signal <= 0.95 * row["saturation_dn"])

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(light, signal, "o", ms=3, color=PALETTE[0])
        left.set_ylabel("signal (DN)")
        if middle.sum() > 1:
            x, y = light[middle], signal[middle]
            line = fit_lines(x, y, 1.0 / y**2)
            fitted = line.intercept + line.slope * x
            left.plot(x, fitted, color=PALETTE[1])
            right.plot(x, 100 * (y / fitted - 1), "o-", ms=3, lw=1, color=PALETTE[0])
        mark_zero(right)
        right.set_ylabel("deviation from linear (%)")
        for axes in (left, right):
            axes.set_xlabel("photons per pixel" if known else "exposure (s)")

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.4),
        margins_in=(0.9, 0.2, 0.55, 0.2),
        alt=f"Linearity: deviations from {row['linearity_min_percent']:.3g} to"
        f" {row['linearity_max_percent']:.3g} per cent.",
        caption="Signal against light, and its deviation from a line between 5 and 95 % of"
        " saturation.",
    )
