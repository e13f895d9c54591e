"""The reports of frames: stacks, defect pixels, calibrated frames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import ImageFlag, PixelFlag
from calibdask.report.attention import attention_section
from calibdask.report.blocks import Notice, Paragraph, ReportSection, table_block
from calibdask.report.figures import WIDTH_IN, draw_figure, legend_above, plot_points
from calibdask.sensor.report import MANY_FLAGGED, draw_sensor_map, settings_table, show_frame
from calibdask.sensor.tables import CALIBRATED, DEFECTS, STACKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import Block, FigureBlock
    from calibdask.sensor.overview import StackRecord
    from calibdask.sensor.report import Row, Tables

__all__ = ["calibrated_sections", "defect_sections", "stack_sections"]

_MOST_MAPS = 4
"""Stacks whose maps a report shows; all are in the product."""


def stack_sections(result: Sequence[StackRecord], tables: Tables) -> list[ReportSection]:
    """Describe stacks of frames."""
    noise, share, notices = [], [], []
    for one in result:
        variance, n_pixels = one.variance_map.total[1], one.mean_map.n_pixels
        noise.append(math.sqrt(variance) if variance >= 0 else math.nan)
        share.append(100 * one.n_saturated / n_pixels)
        if one.n_lost:
            text = f"{one.group}: {one.n_lost} frames could not be read and are not in it."
            notices.append(Notice("warning", text))
        if len(one.names) < 2:
            notices.append(Notice("warning", f"{one.group}: one frame only, so no variance."))
        if one.n_saturated > MANY_FLAGGED * n_pixels:
            text = f"{one.group}: {share[-1]:.1f} % of the pixels are saturated at least once."
            notices.append(Notice("warning", text))
    derived = {"Temporal noise (rms) / DN": noise, "Saturated pixels / %": share}
    table = table_block(
        STACKS,
        tables[STACKS.path],
        ("group", "n_frames", "mean_dn", *derived, "n_clipped"),
        "Means over pixels that are never saturated.",
        derived=derived,
    )
    shown: list[Block] = []
    if len(result) > _MOST_MAPS:
        text = f"The first {_MOST_MAPS} of {len(result)} stacks; the product holds all of them."
        shown.append(Paragraph(text))
    for one in result[:_MOST_MAPS]:
        shown.append(draw_sensor_map(one.mean_map, f"{one.group}/mean", "mean (DN)"))
        if one.variance_map.total[0]:
            shown.append(
                draw_sensor_map(one.variance_map, f"{one.group}/variance", "variance (DN²)")
            )
    return [
        attention_section(notices),
        ReportSection("Stacks", [table, _draw_means(result[:_MOST_MAPS])]),
        ReportSection("Maps", shown),
    ]


def _draw_means(result: Sequence[StackRecord]) -> FigureBlock:
    """Draw the mean of each frame against its stack's: drifts and odd frames show."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for group, one in enumerate(result):
            if whole := one.mean.mean():
                percent = 100 * (one.mean / whole - 1)
                plot_points(
                    axes, np.arange(len(percent)), percent, group=group, ls="-", lw=1,
                    label=one.group,
                )  # fmt: skip
        axes.set_xlabel("frame of the stack, by time")
        axes.set_ylabel("mean of the frame,\ndifference to the stack (%)")
        longest = max(len(one.mean) for one in result)
        axes.set_xticks(np.arange(0, longest, 1 + longest // 20))
        legend_above(figure, axes)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.6),
        margins_in=(0.9, 0.15, 0.55, 0.4),
        alt="Mean of each frame relative to that of its stack; the numbers are in tables.h5.",
        caption="Mean of each frame: a lamp that drifts, a cloud, or a frame that went wrong.",
    )


def defect_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe the defect pixels."""
    rows = result["rows"]
    notices = [
        Notice("info", f"No frames to judge by: {row['criterion']}.")
        for row in rows
        if not row["applied"]
    ]
    share = result["n_defects"] / result["n_pixels"]
    if share > MANY_FLAGGED:
        text = f"{100 * share:.1f} % of the pixels are defect: are the thresholds right?"
        notices.append(Notice("warning", text))
    meanings = {flag.label: flag.meaning for flag in PixelFlag}
    table = table_block(
        DEFECTS,
        tables[DEFECTS.path],
        ("criterion", "n_defects", "fraction", "Meaning"),
        "Defect pixels by what is wrong with them; some have several faults.",
        derived={"Meaning": [meanings.get(row["criterion"], "any of them") for row in rows]},
    )
    figure = draw_sensor_map(
        result["overviews"]["defects/share"], "defects", "share of defect pixels", histogram=False
    )
    return [
        attention_section(
            notices, f"{result['n_defects']:,} of {result['n_pixels']:,} pixels are defect."
        ),
        ReportSection("Defects", [table, figure]),
    ]


def calibrated_sections(
    rows: Sequence[Row],
    units: str,
    name: str,
    shown: Mapping[str, NDArray[Any]],
    tables: Tables,
) -> list[ReportSection]:
    """Describe calibrated frames, one row for each, and show one (see `CalibratedFrames`)."""
    notices = []
    for row in rows:
        bad = row["n_pixels"] - row["n_good"]
        if bad > MANY_FLAGGED * row["n_pixels"]:
            why = "; ".join(
                f"{row[f'n_{flag.label}']:,} {flag.label} ({flag.meaning})"
                for flag in ImageFlag
                if row[f"n_{flag.label}"]
            )
            share = 100 * bad / row["n_pixels"]
            text = f"{row['file']}: {share:.1f} % of the pixels are flagged: {why}."
            notices.append(Notice("warning", text))
    table = settings_table(
        CALIBRATED,
        tables,
        " ".join(("exposure_s median mean n_good", *(f"n_{flag.label}" for flag in ImageFlag))),
        f"Means and medians are over good pixels, in {units}; then flags.",
        first="file",
    )
    figures = [_draw_calibrated(name, shown, units)] if shown else []
    return [attention_section(notices), ReportSection("Frames", [*figures, table])]


def _draw_calibrated(name: str, shown: Mapping[str, NDArray[Any]], units: str) -> FigureBlock:
    """Draw a frame before and after calibration, and which of its pixels are flagged."""
    step = int(shown["step"][0])
    bar: dict[str, Any] = {"orientation": "horizontal", "pad": 0.18}

    def paint(figure: Figure) -> None:
        raw, calibrated, mask = figure.subplots(1, 3)
        show_frame(raw, shown["before"], step, "DN", **bar)
        show_frame(calibrated, shown["after"], step, units, **bar)
        share: dict[str, Any] = {"limits": (0.0, 1.0), "cmap": "Reds"}
        show_frame(mask, shown["flagged"], step, "share of flagged pixels", **share, **bar)
        raw.set_ylabel("row")
        for axes, title in ((raw, "raw"), (calibrated, "calibrated"), (mask, "mask")):
            axes.set_title(title)

    flagged = 100 * float(np.mean(shown["flagged"]))
    caption = (
        f"{name}, the first frame, before and after calibration, and its mask ({flagged:.2g} % of"
        f" the pixels). Means over {step} x {step} pixels; the table says which flags."
    )
    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 4.0),
        margins_in=(0.7, 0.3, 0.6, 0.4),
        alt=caption,
        caption=caption,
    )
