"""The report of the flat field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, Paragraph, ReportSection, values_table
from calibdask.report.figures import (
    PALETTE,
    WIDTH_IN,
    curve_panels,
    draw_figure,
    legend_above,
    show_image,
)
from calibdask.sensor.report import draw_sensor_map, map_notices
from calibdask.sensor.tables import FLAT_FIELD

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import FigureBlock
    from calibdask.sensor.report import Row, Tables

    type Floats = NDArray[np.float64]

__all__ = ["flat_sections"]

_MOST_POINTS = 4000


def flat_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe the flat field."""
    del tables
    row, maps, model = result["row"], result["overviews"], result["model"]
    notices = map_notices(maps, [row], "signal")
    if row["extrapolated"]:
        text = (
            "The radial model was fitted to a part of the sensor only. What lies beyond is flagged"
            " 'extrapolated': the measured map holds there, the model need not."
        )
        notices.insert(0, Notice("warning", text))
    if row["ndf"] and row["chi2"] > 2 * row["ndf"]:
        text = (
            f"The light is not a function of the radius alone (chi2 {row['chi2']:.4g} for"
            f" {row['ndf']} degrees of freedom): uneven light, dust, or the optics. The errors of"
            " the model are scaled up; the measured map has it all."
        )
        notices.append(Notice("info", text))
    profile = _profile(result["blocks"], model)
    shown = {name: value for name, value in row.items() if name != "pixel_flags"}
    caption = (
        "The flat field. prnu is the scatter of the pixels about their neighbours, less that from"
        " noise."
    )
    labels = {"signal": "signal (DN)", "deviation": "deviation from the neighbours"}
    return [
        attention_section(notices),
        ReportSection(
            "Vignetting",
            [
                Paragraph(
                    "Signal = amplitude of the channel / g(r), with g(r) = 1 + k0 r² + k1 r⁴ + ..."
                    " about a free centre. The coefficients are degenerate: compare maps."
                ),
                _draw_profile(*profile),
                _draw_residuals(result["blocks"], profile[1] / profile[2], model),
                values_table(FLAT_FIELD, {"Value": shown}, caption),
            ],
        ),
        ReportSection(
            "Maps",
            [
                draw_sensor_map(maps[f"flatfield/{name}"], f"flatfield/{name}", label)
                for name, label in labels.items()
            ],
        ),
    ]


def _profile(blocks: Floats, model: Any) -> tuple[Floats, Floats, Floats]:
    """Radius, relative signal and model of each block."""
    channel, y, x = blocks[:, 0].astype(int), blocks[:, 1], blocks[:, 2]
    amplitude = np.full(4, np.nan)
    amplitude[list(model.amplitude)] = list(model.amplitude.values())
    return np.sqrt(model.radius2(y, x)), blocks[:, 4] / amplitude[channel], 1 / model.gain(y, x)


def _draw_profile(radius: Floats, signal: Floats, fitted: Floats) -> FigureBlock:
    picked = slice(None, None, max(1, len(radius) // _MOST_POINTS))
    order = np.argsort(radius)[picked]
    rest = 100 * (signal / fitted - 1)

    def paint(figure: Figure) -> None:
        x_label = "distance from the optical centre / farthest corner"
        top, bottom = curve_panels(figure, x_label, "signal / centre")
        for panel, values in ((top, signal), (bottom, rest)):
            panel.plot(
                radius[picked], values[picked], ".", ms=2, color=PALETTE[0], rasterized=True,
                label="blocks of pixels",
            )  # fmt: skip
        top.plot(radius[order], fitted[order], color=PALETTE[1], label="radial model")
        legend_above(figure, top)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 4.8),
        margins_in=(0.8, 0.2, 0.55, 0.4),
        alt="Signal of blocks of pixels against their distance from the optical centre, with the"
        " radial model.",
        caption="Vignetting: means over blocks of pixels, and the model.",
    )


def _draw_residuals(blocks: Floats, ratio: Floats, model: Any) -> FigureBlock:
    rest = 100 * (ratio - 1)
    good = np.isfinite(rest)
    reach = float(np.percentile(np.abs(rest[good]), 99)) if good.any() else 1.0
    height, width = model.shape
    # All channels of a place together, on a grid about as fine as the blocks.
    n_rows = max(1, round(math.sqrt(len(blocks) / 4 * height / width)))
    n_columns = max(1, round(n_rows * width / height))
    cell = (blocks[:, 1] * n_rows / height).astype(int) * n_columns
    cell += (blocks[:, 2] * n_columns / width).astype(int)
    count = np.bincount(cell[good], minlength=n_rows * n_columns)
    total = np.bincount(cell[good], rest[good], n_rows * n_columns)
    image = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(n_rows, n_columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        show_image(
            axes, image, "measured / model - 1 (%)", limits=(-reach, reach), cmap="RdBu_r",
            extent=(0, width, height, 0), shrink=0.85,
        )  # fmt: skip
        axes.plot(model.centre[0] * width, model.centre[1] * height, "+", color="black", ms=12)
        axes.set(xlabel="column", ylabel="row")

    return draw_figure(
        paint,
        size_in=(6.5, 3.9),
        margins_in=(0.7, 0.2, 0.5, 0.3),
        alt="Map of what the radial model leaves.",
        caption="What the radial model leaves, in per cent; the cross is the optical centre.",
    )
