"""What the reports of the sensor's jobs share: flagged pixels, tables by setting, maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.blocks import Notice, ReportSection, TableBlock, table_block
from calibdask.report.figures import PALETTE, WIDTH_IN, draw_figure, show_image
from calibdask.sensor.pixels import BIAS_SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import FigureBlock
    from calibdask.schema import TableSchema
    from calibdask.sensor.overview import Overview

    type Row = Mapping[str, Any]
    type Tables = Mapping[str, QTable]

__all__ = [
    "MANY_FLAGGED",
    "SETTING",
    "draw_sensor_map",
    "map_notices",
    "maps_section",
    "row_arrays",
    "settings_table",
    "show_frame",
    "without_repeats",
]

SETTING = ("iso", "gain_setting", "offset_setting", "readout_mode")
"""Columns of the setting; those that a table has are shown."""
MANY_FLAGGED = 0.05
"""Fraction of flagged pixels from which a map asks for a look."""


def map_notices(maps: Mapping[str, Overview], rows: Sequence[Row], *names: str) -> list[Notice]:
    """Describe which maps have many flagged pixels, and where no good bias was subtracted."""
    notices = []
    for name, one in maps.items():
        if name.rpartition("/")[2] in names and one.n_bad > MANY_FLAGGED * one.n_pixels:
            why = "; ".join(
                f"{number:,} {flag.label} ({flag.meaning})"
                for flag, number in one.n_flagged.items()
            )
            share = 100 * one.n_bad / one.n_pixels
            text = f"{name}: {share:.1f} % of the pixels are flagged: {why or 'no value'}."
            notices.append(Notice("error" if one.n_bad == one.n_pixels else "warning", text))
    sources = {row["bias_source"] for row in rows if "bias_source" in row}
    for source in sorted(sources & set(BIAS_SOURCES[2:])):
        text = {
            "none": "No bias was subtracted: there was none. Signals include it.",
            "black level of the file": "The bias subtracted is the black level that the files"
            " state, one number for all pixels of a colour.",
        }.get(source, f"The bias subtracted is from another ISO speed ({source}).")
        notices.append(Notice("warning", f"{text} Give the product of the job bias."))
    return notices


def settings_table(
    schema: TableSchema, tables: Tables, names: str, caption: str, first: str = ""
) -> TableBlock:
    """Show columns of a table, those that it has, after the ones of the setting."""
    table = tables[schema.path]
    wanted = (first, *SETTING, *names.split())
    return table_block(schema, table, [one for one in wanted if one in table.colnames], caption)


def without_repeats(maps: Mapping[str, Overview]) -> dict[str, Overview]:
    """Leave out the map of all ISO speeds where there is one speed: it is the same."""
    groups = {name.split("/")[1] for name in maps if name.count("/") == 2}
    return {name: one for name, one in maps.items() if name.count("/") == 2 or len(groups) > 1}


def row_arrays(rows: Iterable[Row], *names: str) -> list[NDArray[np.float64]]:
    """Return columns of rows as arrays."""
    rows = list(rows)
    return [np.array([row[name] for row in rows], np.float64) for name in names]


def maps_section(maps: Mapping[str, Overview], label: str) -> ReportSection:
    """Return the section of maps of one quantity."""
    return ReportSection("Maps", [draw_sensor_map(one, name, label) for name, one in maps.items()])


def draw_sensor_map(one: Overview, name: str, label: str, *, histogram: bool = True) -> FigureBlock:
    """Draw a map in short, and the histogram of its pixels."""
    finite = one.thumbnail[np.isfinite(one.thumbnail)]
    limits = None if histogram else (0.0, float(finite.max(initial=0.0)) or 1.0)
    n, mean, std = one.total

    def paint(figure: Figure) -> None:
        picture, *rest = figure.subplots(1, 2 if histogram else 1, squeeze=False)[0]
        show_frame(picture, one.thumbnail, one.step, label, limits=limits, shrink=0.85)
        picture.set_title(name)
        picture.set_ylabel("row")
        for axes in rest:
            _paint_histogram(axes, one.sample, label)

    caption = f"{n:,} pixels without a flag: mean {mean:.5g}, standard deviation {std:.4g}."
    if one.step > 1:
        caption += f" Means over {one.step} x {one.step} pixels; white: none without a flag."
    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.6) if histogram else (6.5, 3.9),
        margins_in=(0.7, 0.2, 0.5, 0.4),
        alt=f"Map of {name}: {label}. {caption}",
        caption=caption,
    )


def show_frame(
    axes: Axes, image: NDArray[np.floating], step: int, label: str, **options: Any
) -> None:
    """Show a map of a sensor that is averaged over `step` rows and columns."""
    rows, columns = image.shape
    show_image(axes, image, label, extent=(0, columns * step, rows * step, 0), **options)
    axes.set_xlabel("column")


def _paint_histogram(axes: Axes, sample: NDArray[np.float64], label: str) -> None:
    axes.set(xlabel=label, ylabel="pixels")
    axes.set_title("pixels without a flag")
    if not sample.size:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
        return
    low, high = np.percentile(sample, [0.1, 99.9])
    width = (high - low) or 1.0
    edges = np.linspace(low - 0.1 * width, high + 0.1 * width, 61)
    # Filled outlines rather than 60 bars: a quarter of the cost.
    axes.hist(
        np.clip(sample, edges[0], edges[-1]), bins=edges.tolist(), color=PALETTE[0],
        histtype="stepfilled",
    )  # fmt: skip
    axes.set_yscale("log")
