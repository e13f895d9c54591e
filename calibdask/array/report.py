"""The report's part about telescope inter-calibration: what is wrong, then coefficients and pairs.

Everything is drawn from the stored tables, so the page can be made again from a result file.
Throughputs c compare only within one connected component of the pair network: across components
the scale is arbitrary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.report_quantity import CalibratedQuantity, correlation_of, take_rows
from calibdask.array.tables import INTER
from calibdask.array.truth_report import compare_with_truth
from calibdask.errors import MissingInput
from calibdask.flags import Flag, Severity, has, present, remove, worst
from calibdask.report.attention import attention_section, flag_notices, name_telescopes
from calibdask.report.blocks import Notice, Paragraph, ReportSection, TableBlock, table_block
from calibdask.report.figures import (
    PULL_RANGE,
    WIDTH_IN,
    draw_figure,
    legend_above,
    mark_zero,
    plot_points,
    plot_pulls,
    show_image,
)
from calibdask.report.telescopes import TelescopeLayout, draw_map, draw_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.array.report_quantity import Columns
    from calibdask.report.blocks import Block, FigureBlock


__all__ = [
    "THROUGHPUT",
    "CalibratedQuantity",
    "TelescopeLayout",
    "inter_calibration_sections",
]

_TELESCOPES = (
    "tel_type", "tel_id", "value", "error", "error_independent", "n_pairs", "n_events",
    "component", "flags",
)  # fmt: skip
_COVARIANCE = ("tel_id_1", "tel_id_2", "covariance")
_COMPONENTS = (
    "tel_type", "component", "reference_tel_id", "n_telescopes", "n_pairs", "n_events", "chi2",
    "ndf", "p_value", "flags",
)  # fmt: skip


THROUGHPUT = CalibratedQuantity(
    job="inter-calibration",
    schemas=INTER,
    name="throughput",
    symbol="throughput c",
    text="The relative throughput c of each telescope, from the ratio of what two telescopes see "
    "of the same shower (Mitchell et al. 2016, Astropart. Phys. 75, 1).",
    baseline=1.0,
    column="log_ratio",
)

P_VALUE_LIMIT = 1e-3
N_WORST_PAIRS = 10


def inter_calibration_sections(
    tables: Mapping[str, QTable],
    layout: TelescopeLayout,
    *,
    truth: Mapping[int, float] | None = None,
    quantity: CalibratedQuantity = THROUGHPUT,
) -> list[ReportSection]:
    """Describe an inter-calibration result, or that of another network of pairs.

    Parameters
    ----------
    tables : mapping of str to QTable
        The coefficients, pairs, covariance and components, by their path in the result file.
    layout : TelescopeLayout
        Positions of the telescopes of the array, whether or not they have a value.
    truth : mapping of int to float, optional
        True value by telescope number, where it is known from a simulation.
    quantity : CalibratedQuantity
        What was calibrated.

    Returns
    -------
    list of ReportSection
        What needs attention, values, comparison with the truth, map, pairs, network fit.

    Raises
    ------
    MissingInput
        A table, or a column of one, is not there.
    """
    table = quantity.table
    telescopes = _columns(tables, quantity, table, _TELESCOPES)
    pairs = _columns(tables, quantity, f"{table}_pairs", quantity.of_pairs)
    components = _columns(tables, quantity, f"{table}_components", _COMPONENTS)
    covariance = _columns(tables, quantity, f"{table}_covariance", _COVARIANCE)
    telescopes["is_reference"] = np.isin(telescopes["tel_id"], components["reference_tel_id"])
    sections = [
        _attention(telescopes, pairs, components, layout),
        ReportSection(quantity.title, _values(telescopes, quantity)),
    ]
    if truth is not None:
        blocks = compare_with_truth(telescopes, pairs, covariance, truth, quantity)
        sections.append(ReportSection("Comparison with the truth", blocks))
    return [
        *sections,
        ReportSection("Map", [_map(telescopes, pairs, layout, quantity)]),
        ReportSection("Pairs", _pairs(pairs, quantity)),
        ReportSection("Network fit", _network(telescopes, components, covariance, quantity)),
    ]


def _columns(
    tables: Mapping[str, QTable], quantity: CalibratedQuantity, path: str, names: Sequence[str]
) -> Columns:
    """Plain arrays of a table's columns, its rows sorted by type, telescopes and component."""
    if path not in tables:
        raise MissingInput(f"the result has no table {path}: run {quantity.job} again")
    missing = [name for name in names if name not in tables[path].colnames]
    if missing:
        raise MissingInput(
            f"table {path} has no columns {', '.join(missing)}: run {quantity.job} again"
        )
    schema = quantity.schemas[path]
    columns = {name: schema.shown(tables[path], name) for name in names}
    keys = ("tel_type", "tel_id", "tel_id_1", "tel_id_2", "component")
    return take_rows(
        columns, np.lexsort([columns[key] for key in reversed(keys) if key in columns])
    )


def _attention(
    telescopes: Columns, pairs: Columns, components: Columns, layout: TelescopeLayout
) -> ReportSection:
    """Describe what restricts the use of the result."""
    tel_id, flags = telescopes["tel_id"], telescopes["flags"]
    has_value = np.isfinite(telescopes["value"])
    # The reference is what was asked for.
    notices = flag_notices(tel_id, remove(flags, Flag.REFERENCE))
    notices += _network_notices(telescopes, components)
    if not has_value.any():
        notices.append(Notice("error", f"None of the {len(tel_id)} telescopes has a value."))
    no_error = has_value & ~(telescopes["error"] > 0) & ~telescopes["is_reference"]
    unplaced = ~np.isin(tel_id, layout.tel_id[layout.placed])
    concerned = {
        "no value, and no flag N that says why. Do not use the result.": (
            ~has_value & ~has(flags, Flag.NO_PAIR)
        ),
        "a value without an error, and no flag B for it.": no_error & ~has(flags, Flag.NO_ERROR),
        "not on the map, for want of a position.": unplaced,
    }
    for text, rows in concerned.items():
        if rows.any():
            level: Any = "error" if text.startswith("no value") else "warning"
            notices.append(Notice(level, f"{name_telescopes(tel_id[rows])}: {text}"))
    n_dropped = int((~pairs["used"]).sum())
    if n_dropped:
        text = f"{n_dropped:,} of {len(pairs['used']):,} pairs were left out of the fit."
        notices.append(Notice("info", text))
    n_free = int((has_value & ~(worst(flags) > Severity.NOTE)).sum())
    everyone = {"Telescopes": telescopes, "Pairs": pairs, "Components": components}
    given = present(*(table["flags"] for table in everyone.values()))
    legend = TableBlock(
        columns={
            "Flag": [flag.letter for flag in given],
            "Meaning": [flag.meaning for flag in given],
            **{
                name: [int(has(table["flags"], flag).sum()) for flag in given]
                for name, table in everyone.items()
            },
        },
        caption="Flags of this result and how often each was given; marked: those that "
        "restrict the use of a value.",
        marked=[flag.severity > Severity.NOTE for flag in given],
    )
    return attention_section(
        notices,
        f"{int(has_value.sum())} of {len(tel_id)} telescopes have a value, {n_free} of them "
        "without a flag that restricts its use.",
        *([legend] if given else []),
    )


def _network_notices(telescopes: Columns, components: Columns) -> list[Notice]:
    """Describe which types have no network, more than one, or one that fits badly."""
    notices = []
    for tel_type in np.unique(telescopes["tel_type"]).tolist():
        mine = telescopes["component"][telescopes["tel_type"] == tel_type]
        n_components = len(np.unique(mine[mine >= 0]))
        if not n_components:
            notices.append(Notice("warning", f"{tel_type}: no network could be fitted."))
        elif n_components > 1:
            text = f"{tel_type}: the network of pairs falls apart into {n_components} components"
            notices.append(Notice("warning", f"{text}. Compare values only within each of them."))
    names = ("tel_type", "component", "chi2", "ndf", "p_value")
    fits = zip(*(components[name] for name in names), strict=True)
    for tel_type, component, chi2, ndf, p_value in fits:
        who = f"{tel_type}, component {component}: p = {p_value:.2g} (chi2/ndf {chi2:.4g}/{ndf})."
        if p_value < P_VALUE_LIMIT:
            text = "The pairs disagree by more than their errors: look for outliers among them."
            notices.append(Notice("warning", f"{who} {text}"))
        elif p_value > 1 - P_VALUE_LIMIT:
            text = (
                "The pairs agree better than independent ones would: those that share showers make"
                " chi2 too small."
            )
            notices.append(Notice("info", f"{who} {text}"))
    return notices


def _values(telescopes: Columns, quantity: CalibratedQuantity) -> list[Block]:
    if not len(telescopes["tel_id"]):
        return [Notice("warning", "The result holds no telescopes.")]
    ranges = []
    for tel_type in np.unique(telescopes["tel_type"]).tolist():
        values = telescopes["value"][telescopes["tel_type"] == tel_type]
        finite = values[np.isfinite(values)]
        extent = f", from {finite.min():.3g} to {finite.max():.3g}" if len(finite) else ""
        ranges.append(f"{tel_type}: {len(finite)} of {len(values)} have a value{extent}")
    return [
        Paragraph(
            f"{quantity.text} The error counts each shower once, however many pairs saw it; the "
            "independent error, given for comparison, takes the pairs as independent."
        ),
        draw_values(
            telescopes,
            telescopes["value"],
            telescopes["error"],
            label=quantity.symbol,
            baseline=quantity.baseline,
            alt=f"{quantity.title} by telescope. {'; '.join(ranges)}. The numbers are in the "
            "table.",
            caption=f"{quantity.title} by telescope, with its standard error. The letters are "
            "flags. Where a type has several components, each has its own colour.",
        ),
        table_block(
            quantity.schemas[quantity.table],
            telescopes,
            _TELESCOPES,
            "Every telescope. A dash is no value; component -1 is none; a reference has error 0"
            " because it is held fixed.",
        ),
    ]


def _map(
    telescopes: Columns, pairs: Columns, layout: TelescopeLayout, quantity: CalibratedQuantity
) -> Block:
    n_placed = int(layout.placed.sum())
    if not n_placed:
        return Notice("warning", "No telescope has a known position.")
    return draw_map(
        layout,
        telescopes,
        pairs,
        label=quantity.symbol,
        alt=f"Map of {n_placed} telescopes coloured by {quantity.name}, with a line for each of "
        f"{int(pairs['used'].sum())} pairs.",
        caption=f"The array to scale, coloured by {quantity.name}. Lines are the pairs in the "
        "fit, wider with more events; dotted pairs were left out. Compare colours only within a "
        "component.",
    )


def _pairs(pairs: Columns, quantity: CalibratedQuantity) -> list[Block]:
    if not len(pairs["used"]):
        return [Notice("warning", "No two telescopes of a type share an event.")]
    schema = quantity.schemas[f"{quantity.table}_pairs"]

    def table(rows: Columns, caption: str) -> TableBlock:
        return table_block(schema, rows, quantity.of_pairs, caption, marked=~rows["used"])

    fitted = take_rows(pairs, pairs["used"] & np.isfinite(pairs["pull"]))
    n_fitted = len(fitted["pull"])
    blocks: list[Block] = []
    if n_fitted:
        blocks.append(_draw_residuals(fitted, quantity))
    else:
        blocks.append(Notice("warning", "No pair took part in a fit."))
    if n_fitted > N_WORST_PAIRS:
        order = np.argsort(-np.abs(fitted["pull"]), kind="stable")[:N_WORST_PAIRS]
        caption = f"The {N_WORST_PAIRS} pairs that fit worst, by pull."
        blocks.append(table(take_rows(fitted, order), caption))
    return [*blocks, table(pairs, "Every pair. Marked: left out of the fit.")]


def _draw_residuals(pairs: Columns, quantity: CalibratedQuantity) -> FigureBlock:
    """Draw the histogram of pulls, and the residuals against what was measured."""
    d, unit = quantity.difference, f", {quantity.unit}" if quantity.unit else ""
    pull = pairs["pull"]
    n_pairs, mean, rms = len(pull), pull.mean(), math.sqrt(np.mean(pull**2))
    n_beyond = int((np.abs(pull) > PULL_RANGE).sum())

    def paint(figure: Figure) -> None:
        gaps = {"wspace": 0.2}
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4), gridspec_kw=gaps)
        plot_pulls(left, pull, "pairs")
        for group, tel_type in enumerate(np.unique(pairs["tel_type"]).tolist()):
            names = (quantity.column, "residual", f"{quantity.column}_error")
            mine = (pairs[name][pairs["tel_type"] == tel_type] for name in names)
            plot_points(
                right, *mine, group=group, label=tel_type, elinewidth=0.6, capsize=0, alpha=0.75
            )
        mark_zero(right)
        right.set_title("Residuals")
        right.set(xlabel=f"measured {d} of the pair{unit}", ylabel=f"measured - fitted{unit}")
        legend_above(figure, right)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.9),
        alt=f"Histogram of the pulls of {n_pairs} pairs (mean {mean:.2f}, root mean square "
        f"{rms:.2f}, {n_beyond} beyond {PULL_RANGE:g}) against a unit normal, and residuals "
        f"against the measured {d}.",
        caption=f"Pulls: mean {mean:.2f}, root mean square {rms:.2f}. A fit uses up some of the "
        "scatter: with ndf degrees of freedom for n pairs, honest errors of independent pairs "
        "give sqrt(ndf/n), which comes near 1 only for many pairs per telescope.",
    )


def _network(
    telescopes: Columns, components: Columns, covariance: Columns, quantity: CalibratedQuantity
) -> list[Block]:
    chi2, ndf, p_value = components["chi2"], components["ndf"], components["p_value"]
    if not len(chi2):
        return [Notice("warning", "No network could be fitted.")]
    reduced = np.full(len(chi2), math.nan)
    np.divide(chi2, ndf, out=reduced, where=ndf > 0)
    references = components["reference_tel_id"].tolist()
    blocks: list[Block] = [
        table_block(
            quantity.schemas[f"{quantity.table}_components"],
            components,
            (
                *("tel_type", "component", "Reference", "n_telescopes", "n_pairs", "n_events"),
                *("chi2", "ndf", "chi2/ndf", "p_value", "flags"),
            ),
            "Connected components of the network of pairs. p is the probability of a larger chi2;"
            f" marked: p < {P_VALUE_LIMIT:g}. Without degrees of freedom nothing is tested.",
            derived={
                "Reference": [str(tel) if tel >= 0 else "weighted mean" for tel in references],
                "chi2/ndf": reduced,
            },
            formats={"chi2/ndf": ".2f"},
            marked=p_value < P_VALUE_LIMIT,
        )
    ]
    correlation = correlation_of(telescopes["tel_id"], covariance)
    if np.isfinite(correlation[~np.eye(len(correlation), dtype=bool)]).any():
        blocks.append(_draw_correlation(telescopes["tel_id"], correlation, quantity))
    return blocks


def _draw_correlation(
    tel_id: NDArray[Any], correlation: NDArray[np.float64], quantity: CalibratedQuantity
) -> FigureBlock:
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    low, high = np.nanmin(off_diagonal), np.nanmax(off_diagonal)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_facecolor("#dddddd")
        show_image(axes, correlation, "correlation", limits=(-1.0, 1.0), cmap="PuOr", shrink=0.8)
        places = np.arange(0, len(tel_id), math.ceil(len(tel_id) / 20))
        labels = tel_id[places].tolist()
        axes.set_xticks(places, labels, fontsize=8, rotation=90 if len(places) > 9 else 0)
        axes.set_yticks(places, labels, fontsize=8)
        axes.set(xlabel="telescope", ylabel="telescope")

    return draw_figure(
        paint,
        size_in=(6.4, 5.2),
        margins_in=(0.75, 0.1, 0.6, 0.15),
        alt=f"Matrix of the correlations between the {quantity.name}s of telescopes: between "
        f"{low:.2f} and {high:.2f}.",
        caption=f"Correlation of the {quantity.name}s. Grey: a fixed reference, which has no "
        f"error, or telescopes of different components. The error of a "
        f"{'difference' if quantity.unit else 'ratio'} of two telescopes needs the covariance, "
        "which the result file holds.",
    )
