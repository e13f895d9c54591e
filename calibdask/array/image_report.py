"""The report's part about image sizes: what was corrected, and what is left as a systematic error.

Drawn from the stored tables, as `calibdask.array.report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report import PALETTE, Notice, Paragraph, Section, TableBlock, draw_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report import FigureBlock

    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["image_size_section"]

MUCH = 3.0
"""A systematic error this many times the statistical one deserves a warning."""


def image_size_section(
    tables: Mapping[str, QTable], table: str, *, corrections: Sequence[str]
) -> Section:
    """Say what was corrected in the ratios of image sizes, and what is left.

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
    has_systematic = "systematic" in telescopes.colnames
    blocks: list[Block] = [
        Paragraph(
            "The image size of a telescope fluctuates by the Poisson law and by how the light falls"
            " with the impact distance. Selections that look at one telescope's size prefer what"
            " fluctuated upwards in the dimmer one, which draws ratios towards 1; so do mean"
            " asymmetries. " + " ".join(corrections)
        )
    ]
    statistical = _relative(telescopes, "error")
    systematic = _relative(telescopes, "systematic") if has_systematic else None
    types = np.asarray(telescopes["tel_type"]).astype(np.str_)
    own = np.asarray(telescopes["component"])
    columns: dict[str, Any] = {
        "Type": np.asarray(components["tel_type"]).astype(np.str_),
        "Component": np.asarray(components["component"]),
    }
    errors = {"Statistical error, %": statistical}
    if systematic is not None:
        errors["Systematic error, %"] = systematic
        blocks += _notices(types, own, statistical, systematic)
    for name, values in errors.items():
        columns[name] = [
            100 * _mean(values[(own == number) & (values > 0)])
            for number in np.asarray(components["component"]).tolist()
        ]
    blocks.append(
        TableBlock(
            columns=columns,
            caption="Errors of the throughput: means over the telescopes but the reference.",
            formats=dict.fromkeys(errors, ".2g"),
        )
    )
    if f"{table}_slopes" in tables:
        blocks.append(_slopes(tables[f"{table}_slopes"]))
    if systematic is not None and (systematic > 0).any():
        blocks.append(
            _draw_errors(np.asarray(telescopes["tel_id"]), types, statistical, systematic)
        )
    return Section("Image sizes", blocks)


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
    error_of = {}
    for kind in np.unique(types).tolist():
        for name, column in ((kind, "kappa"), (f"Error, {kind}", "kappa_error")):
            values = np.full(len(ranges), np.nan)
            mine = types == kind
            values[np.searchsorted(ranges, begin[mine])] = np.asarray(slopes[column])[mine]
            columns[name] = values
        error_of[kind] = f"Error, {kind}"
    return TableBlock(
        columns=columns,
        caption="Slope of the image size over the impact distance, d ln x / d ln d, by the mean "
        "distance of both telescopes.",
        error_of=error_of,
    )


def _relative(telescopes: QTable, column: str) -> NDArray[np.float64]:
    """Divide an error by the value."""
    error, value = (np.asarray(telescopes[name], np.float64) for name in (column, "value"))
    return np.asarray(error / value)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _notices(
    types: NDArray[np.str_],
    component: NDArray[np.int64],
    statistical: NDArray[np.float64],
    systematic: NDArray[np.float64],
) -> list[Notice]:
    notices = []
    for number in np.unique(component[component >= 0]).tolist():
        inside = component == number
        who = f"{types[inside][0]}, component {number}"
        if np.isnan(systematic[inside]).all():
            text = "too few events pass a harder selection to tell a systematic error."
            notices.append(Notice("warning", f"{who}: {text}"))
            continue
        left = _mean(systematic[inside & (systematic > 0)])
        if left > MUCH * _mean(statistical[inside & (statistical > 0)]):
            text = (
                f"values move by {100 * left:.2g} % under a harder selection, more than statistics"
                " allow. Raise minimum_pair_intensity, or narrow equidistant_event_selection."
            )
            notices.append(Notice("warning", f"{who}: {text}"))
    return notices


def _draw_errors(
    tel_id: NDArray[np.int64],
    types: NDArray[np.str_],
    statistical: NDArray[np.float64],
    systematic: NDArray[np.float64],
) -> FigureBlock:
    shown = np.isfinite(statistical) & np.isfinite(systematic) & (statistical > 0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        place = np.arange(np.count_nonzero(shown))
        for shift, name, values in (
            (-0.2, "statistical", statistical),
            (0.2, "systematic", systematic),
        ):
            colour = PALETTE[0 if shift < 0 else 1]
            axes.bar(place + shift, 100 * values[shown], width=0.4, color=colour, label=name)
        labels = [
            f"{kind} {tel}" for kind, tel in zip(types[shown], tel_id[shown].tolist(), strict=True)
        ]
        axes.set_xticks(place, labels, rotation=90, fontsize=8)
        axes.set_ylabel("error of the throughput, %")
        axes.set_xlim(-0.6, len(place) - 0.4)
        figure.legend(loc="upper right", ncols=2)

    return draw_figure(
        paint,
        size_in=(10.0, 3.4),
        margins_in=(0.8, 0.15, 0.85, 0.4),
        alt=f"Statistical and systematic errors of {int(shown.sum())} telescopes, in percent.",
        caption="Statistical error, and the systematic one: how far the throughputs of a type move "
        "under harder selections, beyond what statistics explain.",
    )
