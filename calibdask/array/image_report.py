"""The report's part about image sizes: what was corrected, and what is left as a systematic error.

Drawn from the stored tables, as `calibdask.array.report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.blocks import Notice, Paragraph, ReportSection, TableBlock
from calibdask.report.figures import WIDTH_IN, draw_figure, legend_above

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import Block, FigureBlock

__all__ = ["image_size_section"]

MUCH = 3.0
"""A systematic error this many times the statistical one deserves a warning."""
_ERRORS = ("Statistical error, %", "Systematic error, %")


def image_size_section(
    tables: Mapping[str, QTable], table: str, *, corrections: Sequence[str]
) -> ReportSection:
    """Describe what was corrected in the ratios of image sizes, and what is left.

    Parameters
    ----------
    tables : mapping of str to QTable
        The result of one fit, by path.
    table : str
        Path of the table of telescopes.
    corrections : sequence of str
        What was done, in sentences.
    """
    telescopes, components = tables[table], tables[f"{table}_components"]
    value = np.asarray(telescopes["value"], np.float64)
    errors = {
        name: 100 * np.asarray(telescopes[column], np.float64) / value
        for name, column in (
            ("Statistical error, %", "error"),
            ("Systematic error, %", "systematic"),
        )
        if column in telescopes.colnames
    }
    types, own = (np.asarray(telescopes[name]) for name in ("tel_type", "component"))
    of_type, numbers = (np.asarray(components[name]) for name in ("tel_type", "component"))
    # Of the telescopes but the reference, which has no error.
    means = {
        name: [_mean(one[(own == number) & (one > 0)]) for number in numbers]
        for name, one in errors.items()
    }
    blocks: list[Block] = [
        Paragraph(
            "The image size of a telescope fluctuates by the Poisson law and by how the light falls"
            " with the impact distance. Selections that look at one telescope's size prefer what"
            " fluctuated upwards in the dimmer one, which draws ratios towards 1; so do mean"
            " asymmetries. " + " ".join(corrections)
        )
    ]
    if len(errors) > 1:
        _, systematic = errors.values()
        blocks += [
            notice
            for kind, number, *left in zip(of_type, numbers, *means.values(), strict=True)
            if (notice := _notice(f"{kind}, component {number}", systematic[own == number], *left))
        ]
    blocks.append(
        TableBlock(
            columns={"Type": of_type.astype(np.str_), "Component": numbers, **means},
            caption="Errors of the throughput: means over the telescopes but the reference.",
            formats=dict.fromkeys(errors, ".2g"),
        )
    )
    if f"{table}_slopes" in tables:
        blocks.append(_slopes(tables[f"{table}_slopes"]))
    if len(errors) > 1 and (systematic > 0).any():
        names = [f"{t} {number}" for t, number in zip(types, telescopes["tel_id"], strict=True)]
        blocks.append(_draw_errors(np.array(names), *errors.values()))
    return ReportSection("Image sizes", blocks)


def _slopes(slopes: QTable) -> TableBlock:
    """One row for each range of distances, two columns for each type."""
    import astropy.units as u

    types = np.asarray(slopes["tel_type"]).astype(np.str_)
    begin, end = (
        np.asarray(u.Quantity(slopes[f"distance_{name}"], "m").value) for name in ("from", "to")
    )
    ranges, row = np.unique(begin, return_index=True)
    columns: dict[str, Any] = {
        "Mean distance, m": [
            f"{one:g} to {two:g}" if np.isfinite(two) else f"from {one:g}"
            for one, two in zip(ranges.tolist(), end[row].tolist(), strict=True)
        ]
    }
    error_of = {kind: f"Error, {kind}" for kind in np.unique(types).tolist()}
    for kind, error in error_of.items():
        mine = types == kind
        for name, column in ((kind, "kappa"), (error, "kappa_error")):
            columns[name] = np.full(len(ranges), np.nan)
            columns[name][np.searchsorted(ranges, begin[mine])] = np.asarray(slopes[column])[mine]
    return TableBlock(
        columns=columns,
        caption="Slope of the image size over the impact distance, d ln x / d ln d, by the mean "
        "distance of both telescopes.",
        error_of=error_of,
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _notice(
    who: str, systematic: NDArray[np.float64], mean_statistical: float, mean_systematic: float
) -> Notice | None:
    """Say whether the systematic errors of a component, in percent, are large or unknown."""
    if np.isnan(systematic).all():
        text = "too few events pass a harder selection to tell a systematic error."
    elif mean_systematic > MUCH * mean_statistical:
        text = (
            f"values move by {mean_systematic:.2g} % under a harder selection, more than statistics"
            " allow. Raise minimum_pair_intensity, or narrow equidistant_event_selection."
        )
    else:
        return None
    return Notice("warning", f"{who}: {text}")


def _draw_errors(
    names: NDArray[np.str_], statistical: NDArray[np.float64], systematic: NDArray[np.float64]
) -> FigureBlock:
    shown = np.isfinite(statistical) & np.isfinite(systematic) & (statistical > 0)
    place = np.arange(np.count_nonzero(shown))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(place - 0.2, statistical[shown], width=0.4, label="statistical")
        axes.bar(place + 0.2, systematic[shown], width=0.4, label="systematic")
        axes.set_xticks(place, names[shown].tolist(), rotation=90, fontsize=8)
        axes.set_ylabel("error of the throughput, %")
        axes.set_xlim(-0.6, len(place) - 0.4)
        legend_above(figure, axes)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.4),
        margins_in=(0.8, 0.15, 0.85, 0.4),
        alt=f"Statistical and systematic errors of {len(place)} telescopes, in percent.",
        caption="Statistical error, and the systematic one: how far the throughputs of a type move "
        "under harder selections, beyond what statistics explain.",
    )
