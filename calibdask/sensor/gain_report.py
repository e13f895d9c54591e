"""The report of photon transfer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, Paragraph, ReportSection
from calibdask.report.figures import (
    DARK,
    PALETTE,
    WIDTH_IN,
    curve_panels,
    draw_figure,
    legend_above,
    plot_points,
)
from calibdask.sensor.report import (
    columns_of,
    map_notices,
    maps_section,
    settings_table,
    without_repeats,
)
from calibdask.sensor.settings import Setting
from calibdask.sensor.tables import GAIN, MONOCHROME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import FigureBlock
    from calibdask.sensor.report import Row, Tables

__all__ = ["gain_sections"]

CHANNEL_COLOURS = {
    "R": PALETTE[1],
    "G": PALETTE[2],
    "B": PALETTE[0],
    "G2": PALETTE[3],
    MONOCHROME: DARK,
}


def gain_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe photon transfer."""
    rows, maps = result["rows"], result["overviews"]
    notices = map_notices(maps, rows, "gain")
    for row in rows:
        where = f"{Setting.of_row(row).label}, channel {row['channel']}"
        if row["p_value"] < 1e-3:
            text = (
                f"{where}: the curve is not a line (chi2 {row['chi2']:.4g} for {row['ndf']} degrees"
                " of freedom). Try a smaller fit_fraction, or brighter_fatter."
            )
            notices.append(Notice("info", text))
        if not math.isfinite(row["ptc_gain_dn_per_electron"]):
            notices.append(Notice("warning", f"{where}: too few usable levels for a curve."))
    notices += [
        Notice("warning", f"{one}: left out, it has one level of light only.")
        for one in result["left_out"]
    ]
    table = settings_table(
        GAIN,
        tables,
        "channel gain_dn_per_electron gain_dn_per_electron_error gain_scatter_dn_per_electron"
        " ptc_gain_dn_per_electron ptc_gain_dn_per_electron_error readnoise_electron"
        " full_well_electron full_well_reached a00_per_electron p_value bias_source",
        "By ISO speed and channel.",
    )
    shown = {name: one for name, one in without_repeats(maps).items() if name.endswith("/gain")}
    return [
        attention_section(notices),
        ReportSection(
            "Photon transfer",
            [
                Paragraph(
                    "The variance of Poisson electrons grows with the signal; the slope is the"
                    " gain, what is left without light the read noise. Full well is the signal at"
                    " the largest variance, a lower limit where the variance does not fall again."
                ),
                *(
                    draw_transfer(rows, result["points"], setting, result["step_dn"])
                    for setting in sorted({Setting.of_row(row) for row in rows})
                ),
                table,
            ],
        ),
        maps_section(shown, "gain (DN/e⁻)"),
    ]


def draw_transfer(
    rows: Sequence[Row], points: Sequence[Row], setting: Setting, step_dn: int
) -> FigureBlock:
    """Draw the photon transfer curves of one setting, with what is left beside them."""
    points = [one for one in points if Setting.of_row(one) == setting]

    def paint(figure: Figure) -> None:
        top, bottom = curve_panels(figure, "signal (DN)", "variance (DN²)")
        for row in (row for row in rows if Setting.of_row(row) == setting):
            mine = [point for point in points if point["channel"] == row["channel"]]
            x, y, error = columns_of(mine, "signal_dn", "variance_dn2", "variance_dn2_error")
            used = np.array([point["used"] for point in mine], bool)
            style: dict[str, Any] = {"color": CHANNEL_COLOURS[row["channel"]]}
            plot_points(top, x[used], y[used], error[used], label=row["channel"], **style)
            top.plot(x[~used], y[~used], "o", ms=4, mfc="white", **style)
            if math.isfinite(row["ptc_gain_dn_per_electron"]):
                floor = row["readnoise_dn"] ** 2 + step_dn**2 / 12
                line = np.geomspace(max(x.min(), 1e-3), x.max(), 200)
                top.plot(line, _curve(line, row, floor), lw=1, **style)
                expected = _curve(x, row, floor)
                shown = used if used.any() else np.ones(len(x), bool)
                percent = 100 * (y / expected - 1)[shown], (100 * error / expected)[shown]
                # Small points and caps: the bars are to be seen where they are short.
                plot_points(bottom, x[shown], *percent, markersize=2, capsize=4, **style)
            if row["full_well_reached"]:
                top.axvline(row["full_well_dn"], ls=":", lw=1, **style)
        if all(any(point[name] > 0 for point in points) for name in ("signal_dn", "variance_dn2")):
            top.set(xscale="log", yscale="log")
        legend_above(figure, top)

    where = setting.label if setting.known else "All frames"
    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 5.2),
        margins_in=(0.9, 0.2, 0.55, 0.4),
        alt=f"{where}: variance against signal by channel; the numbers are in the tables.",
        caption=f"{where}: photon transfer. Hollow: not part of the fit; dotted: full well."
        " Below: the points of the fit beside it.",
    )


def _curve(signal: NDArray[np.float64], row: Row, floor: float) -> NDArray[np.float64]:
    gain, a00 = row["ptc_gain_dn_per_electron"], row["a00_per_electron"]
    electrons = signal / gain
    if not math.isfinite(a00) or a00 == 0.0:
        return np.asarray(gain**2 * electrons + floor)
    variance: NDArray[np.float64] = gain**2 * np.expm1(2 * a00 * electrons) / (2 * a00) + floor
    return variance
