"""The report's part about telescope inter-calibration: what is wrong, then coefficients and pairs.

Everything is drawn from the stored tables, so the page can be made again from a result file.
Throughputs c compare only within one connected component of the pair network: across components
the scale is arbitrary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.tables import INTER
from calibdask.errors import MissingInput
from calibdask.flags import Flag, Severity, has, present, remove, worst
from calibdask.report import (
    PALETTE,
    Notice,
    Paragraph,
    Section,
    TableBlock,
    draw_figure,
    flag_notices,
    name_telescopes,
    table_block,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report import FigureBlock
    from calibdask.schema import TableSchema

    type Columns = dict[str, NDArray[Any]]
    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["THROUGHPUT", "Quantity", "TelescopeLayout", "inter_calibration_sections"]

_TELESCOPES = (
    "tel_type", "tel_id", "value", "error", "error_independent", "n_pairs", "n_events",
    "component", "flags",
)  # fmt: skip
_COVARIANCE = ("tel_id_1", "tel_id_2", "covariance")
_COMPONENTS = (
    "tel_type", "component", "reference_tel_id", "n_telescopes", "n_pairs", "n_events", "chi2",
    "ndf", "p_value", "flags",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """What the telescopes are calibrated for, in words.

    Attributes
    ----------
    job : str
        Name of the job.
    schemas : mapping of str to TableSchema
        Tables of the result by path (see `calibdask.array.tables`), that of the telescopes first.
    name, symbol : str
        What a value is called in text, and at an axis.
    text : str
        What it is and how it was found.
    baseline : float
        Value of a telescope like its reference.
    column : str
        Column of what the pairs compare.
    """

    job: str
    schemas: Mapping[str, TableSchema]
    name: str
    symbol: str
    text: str
    baseline: float
    column: str

    @property
    def table(self) -> str:
        """Path of the table of telescopes."""
        return next(iter(self.schemas))

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.name.capitalize()

    @property
    def unit(self) -> str:
        """Unit of values and differences; "" for ratios, whose deviations are in percent."""
        return self.schemas[self.table].by_name["value"].unit

    @property
    def difference(self) -> str:
        """What the pairs compare, in words."""
        return self.schemas[f"{self.table}_pairs"].by_name[self.column].heading

    @property
    def of_pairs(self) -> tuple[str, ...]:
        """Columns of the pairs that are shown."""
        d = self.column
        return (
            "tel_type", "tel_id_1", "tel_id_2", "n_events", d, f"{d}_error", f"model_{d}",
            "residual", "pull", f"std_{d}",
            *(() if self.unit else ("mean_asymmetry", "std_asymmetry")), "used", "flags",
        )  # fmt: skip


THROUGHPUT = Quantity(
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
MARKER_POINTS = 3.0
"""Half of a marker in points: a shorter error bar is hidden behind it."""

PULL_RANGE = 5.0
N_WORST_PAIRS = 10

GREY = "#777777"
DARK = "#333333"
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": GREY}
TYPE_MARKERS = "os^DPvX"


@dataclass(frozen=True, slots=True, eq=False)
class TelescopeLayout:
    """Where the telescopes stand.

    Attributes
    ----------
    tel_id : ndarray of int64, shape (n_telescopes,)
        Telescope numbers.
    tel_type : ndarray of str, shape (n_telescopes,)
        Type of each, as in the result.
    x_m, y_m : ndarray of float64, shape (n_telescopes,)
        Position on the ground, m: x to the North, y to the West, as in ctapipe's GroundFrame.
    """

    tel_id: NDArray[np.int64]
    tel_type: NDArray[np.str_]
    x_m: NDArray[np.float64]
    y_m: NDArray[np.float64]

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Which telescopes have a position."""
        return np.isfinite(self.x_m) & np.isfinite(self.y_m)

    @property
    def east_north_m(self) -> NDArray[np.float64]:
        """Positions as on a map: East to the right, North up; shape (n_telescopes, 2), m."""
        return np.column_stack([-self.y_m, self.x_m])


def inter_calibration_sections(
    tables: Mapping[str, QTable],
    layout: TelescopeLayout,
    *,
    truth: Mapping[int, float] | None = None,
    quantity: Quantity = THROUGHPUT,
) -> list[Section]:
    """Describe an inter-calibration result, or that of another network of pairs.

    Parameters
    ----------
    tables : mapping of str to QTable
        The coefficients, pairs, covariance and components, by their path in the result file.
    layout : TelescopeLayout
        Positions of the telescopes of the array, whether or not they have a value.
    truth : mapping of int to float, optional
        True value by telescope number, where it is known from a simulation.
    quantity : Quantity
        What was calibrated.

    Returns
    -------
    list of Section
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
    telescopes["is_restricted"] = worst(telescopes["flags"]) > Severity.NOTE
    sections = [
        Section("What needs attention", _attention(telescopes, pairs, components, layout)),
        Section(quantity.title, _values(telescopes, quantity)),
    ]
    if truth is not None:
        blocks = _truth(telescopes, pairs, covariance, truth, quantity)
        sections.append(Section("Comparison with the truth", blocks))
    return [
        *sections,
        Section("Map", _map(telescopes, pairs, layout, quantity)),
        Section("Pairs", _pairs(pairs, quantity)),
        Section("Network fit", _network(telescopes, components, covariance, quantity)),
    ]


def _columns(
    tables: Mapping[str, QTable], quantity: Quantity, path: str, names: Sequence[str]
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
    return _take(columns, np.lexsort([columns[key] for key in reversed(keys) if key in columns]))


def _take(columns: Columns, rows: NDArray[Any]) -> Columns:
    """Select rows, by mask or by index."""
    return {name: values[rows] for name, values in columns.items()}


def _attention(
    telescopes: Columns, pairs: Columns, components: Columns, layout: TelescopeLayout
) -> list[Block]:
    """Say what restricts the use of the result, most serious first."""
    tel_id, has_value = telescopes["tel_id"], np.isfinite(telescopes["value"])
    blocks: list[Block] = []
    if not has_value.any():
        blocks.append(Notice("error", f"None of the {len(tel_id)} telescopes has a value."))
    unexplained = ~has_value & ~has(telescopes["flags"], Flag.NO_PAIR)
    if unexplained.any():
        who = name_telescopes(tel_id[unexplained])
        blocks.append(
            Notice("error", f"{who}: no value, and no flag N that says why. Do not use the result.")
        )
    unquoted = has_value & ~(telescopes["error"] > 0) & ~telescopes["is_reference"]
    unquoted &= ~has(telescopes["flags"], Flag.NO_ERROR)
    if unquoted.any():
        who = name_telescopes(tel_id[unquoted])
        blocks.append(Notice("warning", f"{who}: a value without an error, and no flag B for it."))
    everyone = (telescopes, pairs, components)
    given = present(*(table["flags"] for table in everyone))
    # The reference is what was asked for.
    blocks += flag_notices(tel_id, remove(telescopes["flags"], Flag.REFERENCE))
    blocks += _network_notices(telescopes, components)
    n_dropped = int((~pairs["used"]).sum())
    if n_dropped:
        text = f"{n_dropped:,} of {len(pairs['used']):,} pairs were left out of the fit."
        blocks.append(Notice("info", text))
    unplaced = ~np.isin(tel_id, layout.tel_id[layout.placed])
    if unplaced.any():
        who = name_telescopes(tel_id[unplaced])
        blocks.append(Notice("warning", f"{who}: not on the map, for want of a position."))
    n_free = int((has_value & ~telescopes["is_restricted"]).sum())
    blocks.append(
        Paragraph(
            ("" if blocks else "Nothing: ")
            + f"{int(has_value.sum())} of {len(tel_id)} telescopes have a value, {n_free} of them "
            "without a flag that restricts its use."
        )
    )
    if given:
        blocks.append(
            TableBlock(
                columns={
                    "Flag": [flag.letter for flag in given],
                    "Meaning": [flag.meaning for flag in given],
                    "Telescopes": [int(has(telescopes["flags"], flag).sum()) for flag in given],
                    "Pairs": [int(has(pairs["flags"], flag).sum()) for flag in given],
                    "Components": [int(has(components["flags"], flag).sum()) for flag in given],
                },
                caption="Flags of this result and how often each was given; marked: those that "
                "restrict the use of a value.",
                marked=[flag.severity > Severity.NOTE for flag in given],
            )
        )
    # Stable: what is most serious comes first, the figures and the table last.
    levels = {"error": 0, "warning": 1, "info": 2}
    return sorted(blocks, key=lambda b: levels[b.level] if isinstance(b, Notice) else len(levels))


def _network_notices(telescopes: Columns, components: Columns) -> list[Notice]:
    """Say which types have no network, more than one, or one that fits badly."""
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


def _values(telescopes: Columns, quantity: Quantity) -> list[Block]:
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
        _draw_panels(
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


def _draw_panels(
    telescopes: Columns,
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    *,
    label: str,
    baseline: float,
    alt: str,
    caption: str,
) -> FigureBlock:
    """Draw values with errors by telescope number, one panel per type."""
    types = np.unique(telescopes["tel_type"]).tolist()
    panel_in, gap_in, below_in, above_in = 2.0, 0.55, 0.5, 0.6
    rows_of = {tel_type: telescopes["tel_type"] == tel_type for tel_type in types}
    hidden = {
        tel_type
        for tel_type, rows in rows_of.items()
        if _bars_vanish(values[rows], errors[rows], baseline, panel_in)
    }
    heights = [height for t in types for height in ((1.0, 0.5) if t in hidden else (1.0,))]

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        gaps = {"hspace": gap_in / (panel_in * np.mean(heights)), "height_ratios": heights}
        panels = iter(figure.subplots(len(heights), 1, squeeze=False, gridspec_kw=gaps)[:, 0])
        for tel_type, rows in rows_of.items():
            panel = next(panels)
            panel.set_title(tel_type)
            panel.set_ylabel(label)
            _paint_panel(panel, _take(telescopes, rows), values[rows], errors[rows], baseline)
            if tel_type in hidden:
                panel = _paint_errors(next(panels), panel, errors[rows])
        panel.set_xlabel("telescope")
        handles = [
            Line2D([], [], linestyle="", label=state, **{"color": DARK, **style})
            for state, (rows, style) in _states(telescopes, values).items()
            if rows.any()
        ]
        figure.legend(handles=handles, loc="upper right", ncols=len(handles))

    height_in = above_in + sum(heights) * panel_in + (len(heights) - 1) * gap_in + below_in
    if hidden:
        caption += " Where errors are smaller than the markers, a panel of its own shows them."
    return draw_figure(
        paint,
        size_in=(10.5, height_in),
        margins_in=(0.8, 0.15, below_in, above_in),
        alt=alt,
        caption=caption,
    )


def _bars_vanish(
    values: NDArray[np.float64], errors: NDArray[np.float64], baseline: float, height_in: float
) -> bool:
    """Whether error bars are mostly shorter than the markers that they belong to."""
    bars = errors[np.isfinite(values) & (errors > 0)]
    if not len(bars):
        return False
    low, high = _value_limits(values, errors, baseline)
    return bool(np.median(bars) / (high - low) * height_in * 72 < MARKER_POINTS)


def _paint_errors(panel: Axes, above: Axes, errors: NDArray[np.float64]) -> Axes:
    """Draw the errors of the telescopes of the panel above; one that is held fixed has none."""
    panel.bar(np.arange(len(errors)), np.nan_to_num(errors), width=0.6, color=PALETTE[5])
    panel.set_ylabel("error")
    panel.grid(visible=False, axis="x")
    panel.set_xlim(above.get_xlim())
    panel.set_xticks(above.get_xticks(), [text.get_text() for text in above.get_xticklabels()])
    return panel


def _paint_panel(
    panel: Axes,
    telescopes: Columns,
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    baseline: float,
) -> None:
    n_telescopes = len(values)
    small_print: dict[str, Any] = {"fontsize": 8, "rotation": 0}
    if n_telescopes > 40:
        small_print = {"fontsize": 6, "rotation": 90}
    fixed_height = panel.get_xaxis_transform()  # x in data, y in fractions of the panel
    places = np.arange(n_telescopes)
    for place in np.flatnonzero(telescopes["flags"] != "").tolist():
        flags = telescopes["flags"][place]
        text = panel.text(place, 0.98, flags, transform=fixed_height, color=DARK, **small_print)
        text.set(ha="center", va="top")
    # A fixed reference has no error, and some telescopes have none quoted.
    bars = np.where(errors > 0, errors, np.nan)
    components = np.unique(telescopes["component"][np.isfinite(values)]).tolist()
    for state, (rows, style) in _states(telescopes, values).items():
        if state == "no value":
            low = np.full(rows.sum(), 0.06)
            panel.plot(places[rows], low, linestyle="", transform=fixed_height, **style)
            continue
        for index, component in enumerate(components):
            here = rows & (telescopes["component"] == component)
            if not here.any():
                continue
            panel.errorbar(
                places[here],
                values[here],
                yerr=bars[here],
                linestyle="",
                elinewidth=1.2,
                capsize=2,
                color=PALETTE[index % len(PALETTE)],
                **style,
            )
    panel.axhline(baseline, color=DARK, linewidth=0.9, zorder=1)
    panel.grid(visible=False, axis="x")
    panel.set_xlim(-0.7, n_telescopes - 0.3)
    panel.set_ylim(*_value_limits(values, errors, baseline))
    labelled = places[:: math.ceil(n_telescopes / 100)]
    panel.set_xticks(labelled, telescopes["tel_id"][labelled].tolist(), **small_print)


def _value_limits(
    values: NDArray[np.float64], errors: NDArray[np.float64], baseline: float
) -> tuple[float, float]:
    """Axis limits that show every value, with room for the flags above.

    An error far above the others runs out of the panel rather than flattening it.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return baseline - 0.1, baseline + 0.1
    bars = np.where(errors > 0, errors, 0.0)[finite]
    if bars.any():
        bars = np.minimum(bars, 4 * np.median(bars[bars > 0]))
    low, high = float((values[finite] - bars).min()), float((values[finite] + bars).max())
    # The baseline belongs in the panel, unless it is so far away that the values become a line.
    if max(low - baseline, baseline - high) < 3 * (high - low):
        low, high = min(low, baseline), max(high, baseline)
    span = max(high - low, 1e-3 * abs(high), 1e-9)
    return low - 0.12 * span, high + 0.25 * span


def _states(
    telescopes: Columns, values: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.bool_], dict[str, Any]]]:
    """Telescopes in each state, and the marker of the state."""
    has_value, is_reference = np.isfinite(values), telescopes["is_reference"]
    is_flagged = telescopes["flags"] != ""
    return {
        "no flag": (has_value & ~is_reference & ~is_flagged, {"marker": "o", "markersize": 5}),
        "flagged": (has_value & ~is_reference & is_flagged, {"marker": "D", "markersize": 5}),
        "reference": (has_value & is_reference, {"marker": "*", "markersize": 11}),
        "no value": (~has_value, {"marker": "o", "markersize": 6, **HOLLOW}),
    }


def _truth(
    telescopes: Columns,
    pairs: Columns,
    covariance: Columns,
    truth: Mapping[int, float],
    quantity: Quantity,
) -> list[Block]:
    """Compare with the true values, after putting these on the scale of each component."""
    schema, value, error = (
        quantity.schemas[quantity.table], telescopes["value"], telescopes["error"]
    )  # fmt: skip
    expected = np.array([truth.get(tel, math.nan) for tel in telescopes["tel_id"].tolist()])
    for component in np.unique(telescopes["component"]).tolist():
        rows = telescopes["component"] == component
        expected[rows] = _scaled_truth(_take(telescopes, rows), pairs, expected[rows], quantity)
    pull = np.full(len(value), math.nan)
    np.divide(value - expected, error, out=pull, where=error > 0)
    tested = np.isfinite(pull)
    if not tested.any():
        text = f"No telescope has a true {quantity.name} and a value with an error."
        return [Notice("warning", text)]
    if quantity.unit:
        kind, deviation, bars = "", value - expected, error
        label = f"deviation, {quantity.unit}"
        rms = f"{math.sqrt(np.mean(deviation[tested] ** 2)):.3g} {quantity.unit}"
    else:
        kind, label = "relative ", "deviation, %"
        deviation, bars = 100 * (value / expected - 1), 100 * error / expected
        rms = f"{math.sqrt(np.mean(deviation[tested] ** 2)):.2f}%"
    rms_pull = math.sqrt(np.mean(pull[tested] ** 2))
    n_beyond = int((np.abs(pull[tested]) > 3).sum())
    chi2, ndf = _correlated_chi2(
        pull[tested], _correlation(telescopes["tel_id"][tested], covariance)
    )
    return [
        Paragraph(
            f"{int(tested.sum())} telescopes have a known true {quantity.name}. The root mean "
            f"square of the {kind}deviation is {rms}, that of the pulls (deviation over "
            f"error) {rms_pull:.2f}; {n_beyond} deviate by more than three errors. Telescopes of "
            "one component share the error of its reference, so their pulls move together: with "
            f"the full covariance chi2 is {chi2:.1f} for {ndf} degrees of freedom, and honest "
            "errors make the two about equal. The truth is put on the scale of each component: "
            "that of its reference, or of its weighted mean where that is what is fixed."
        ),
        _draw_panels(
            telescopes,
            deviation,
            bars,
            label=label,
            baseline=0.0,
            alt=f"{kind.capitalize()}deviation from the true {quantity.name} by telescope: root "
            f"mean square {rms}, of the pulls {rms_pull:.2f}.",
            caption=f"Deviation from the true {quantity.name}, with its standard error.",
        ),
        table_block(
            schema,
            telescopes,
            ("tel_type", "tel_id", "value", "error", "Truth", "Pull", "flags"),
            "Value and truth of every telescope. Marked: more than three errors apart.",
            derived={"Truth": expected, "Pull": pull},
            formats={"Pull": "z.2f"},
            error_of={"Truth": schema.by_name["error"].title},
            marked=np.abs(pull) > 3,
        ),
    ]


def _scaled_truth(
    telescopes: Columns, pairs: Columns, expected: NDArray[np.float64], quantity: Quantity
) -> NDArray[np.float64]:
    """Truth of one component, on the scale of its values.

    Without a reference the weighted mean of ln c (or of the offsets) is fixed, and the weight of a
    telescope is that of its pairs, as in the fit.
    """
    value = telescopes["value"]
    usable = np.isfinite(value) & np.isfinite(expected)
    if not quantity.unit:
        usable &= (value > 0) & (expected > 0)
    if (usable & telescopes["is_reference"]).any():
        usable &= telescopes["is_reference"]
    error = pairs[f"{quantity.column}_error"]
    used = pairs["used"] & (error > 0)
    weights = np.zeros(len(expected))
    for side in ("tel_id_1", "tel_id_2"):
        ends = telescopes["tel_id"][:, None] == pairs[side][used]
        weights += ends @ (error[used] ** -2.0)
    if not weights[usable].any():
        return np.full(len(expected), math.nan)
    if quantity.unit:
        shift = np.average(value[usable] - expected[usable], weights=weights[usable])
        return np.asarray(expected + shift)
    log_ratio = np.log(value[usable] / expected[usable])
    return np.asarray(expected * math.exp(np.average(log_ratio, weights=weights[usable])))


def _correlated_chi2(
    pull: NDArray[np.float64], correlation: NDArray[np.float64]
) -> tuple[float, int]:
    """Sum of squared pulls along the independent directions of a correlation matrix.

    Directions without variance, as the fixed mean of a component, count neither in chi2 nor in
    the degrees of freedom.
    """
    eigenvalues, vectors = np.linalg.eigh(np.nan_to_num(correlation, nan=0.0))
    free = eigenvalues > 1e-9 * eigenvalues[-1]
    projected = vectors.T[free] @ pull
    return float(np.sum(projected**2 / eigenvalues[free])), int(free.sum())


def _map(
    telescopes: Columns, pairs: Columns, layout: TelescopeLayout, quantity: Quantity
) -> list[Block]:
    placed = layout.placed
    if not placed.any():
        return [Notice("warning", "No telescope has a known position.")]
    row_of = {tel: row for row, tel in enumerate(telescopes["tel_id"].tolist())}
    rows = [row_of.get(tel) for tel in layout.tel_id.tolist()]
    value = np.array([math.nan if row is None else telescopes["value"][row] for row in rows])
    flags = ["" if row is None else str(telescopes["flags"][row]) for row in rows]
    filled = placed & np.isfinite(value)
    types = np.unique(layout.tel_type[placed]).tolist()
    markers = {name: TYPE_MARKERS[i % len(TYPE_MARKERS)] for i, name in enumerate(types)}

    def paint(figure: Figure) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.lines import Line2D
        from matplotlib.transforms import ScaledTranslation

        axes = figure.subplots()
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
        axes.set_xlabel("East, m")
        axes.set_ylabel("North, m")
        _paint_pair_lines(axes, pairs, layout)
        low, high = (value[filled].min(), value[filled].max()) if filled.any() else (1.0, 1.0)
        pad = 0.01 if low == high else 0.0
        colours = ScalarMappable(Normalize(low - pad, high + pad), "viridis")
        crowded = len(layout.tel_id) > 50
        above_marker = axes.transData + ScaledTranslation(0, 6 / 72, figure.dpi_scale_trans)
        for row in np.flatnonzero(placed):
            east_m, north_m = layout.east_north_m[row]
            colour = {"markeredgecolor": DARK, "markerfacecolor": colours.to_rgba(value[row])}
            axes.plot(
                east_m,
                north_m,
                marker=markers[layout.tel_type[row]],
                markersize=7 if crowded else 9,
                zorder=3,
                **(colour if filled[row] else HOLLOW),
            )
            axes.text(
                east_m,
                north_m,
                f"{layout.tel_id[row]} {flags[row]}".rstrip(),
                transform=above_marker,
                ha="center",
                fontsize=6 if crowded else 7.5,
                fontweight="bold" if has(flags[row], Flag.REFERENCE) else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
        if filled.any():
            figure.colorbar(
                colours, ax=axes, label=quantity.symbol, fraction=0.12, pad=0.03, shrink=0.8
            )
        handles = [
            Line2D([], [], linestyle="", color=GREY, marker=marker, label=name)
            for name, marker in markers.items()
        ]
        if not filled[placed].all():
            handles.append(Line2D([], [], linestyle="", marker="o", label="no value", **HOLLOW))
        figure.legend(handles=handles, loc="upper left", ncols=len(handles))

    return [
        draw_figure(
            paint,
            size_in=(9.0, 8.0),
            margins_in=(0.8, 0.1, 0.55, 0.4),
            alt=f"Map of {int(placed.sum())} telescopes coloured by {quantity.name}, with a line "
            f"for each of {int(pairs['used'].sum())} pairs.",
            caption=f"The array to scale, coloured by {quantity.name}. Lines are the pairs in the "
            "fit, wider with more events; dotted pairs were left out. Compare colours only within "
            "a component.",
        )
    ]


def _paint_pair_lines(axes: Axes, pairs: Columns, layout: TelescopeLayout) -> None:
    from matplotlib.collections import LineCollection

    points = dict(zip(layout.tel_id.tolist(), layout.east_north_m, strict=True))
    placed = layout.tel_id[layout.placed]
    known = np.isin(pairs["tel_id_1"], placed) & np.isin(pairs["tel_id_2"], placed)
    most_events = max(pairs["n_events"].max(initial=0), 1)
    widths = np.maximum(3.0 * np.sqrt(pairs["n_events"] / most_events), 0.25)
    # Lines cover each other: the more there are, the fainter each.
    alpha = min(0.6, max(0.05, 1.5 / math.sqrt(max(len(widths), 1))))
    styles: list[tuple[NDArray[np.bool_], dict[str, Any]]] = [
        (known & pairs["used"], {"colors": "#55708a", "alpha": alpha}),
        (known & ~pairs["used"], {"colors": PALETTE[1], "linestyles": ":", "alpha": 0.6}),
    ]
    for rows, style in styles:
        ends = zip(pairs["tel_id_1"][rows].tolist(), pairs["tel_id_2"][rows].tolist(), strict=True)
        lines = [[points[tel_1], points[tel_2]] for tel_1, tel_2 in ends]
        axes.add_collection(LineCollection(lines, linewidths=widths[rows], zorder=1, **style))


def _pairs(pairs: Columns, quantity: Quantity) -> list[Block]:
    if not len(pairs["used"]):
        return [Notice("warning", "No two telescopes of a type share an event.")]
    blocks: list[Block] = []
    fitted = _take(pairs, pairs["used"] & np.isfinite(pairs["pull"]))
    n_fitted = len(fitted["pull"])
    if n_fitted:
        worst = np.argsort(-np.abs(fitted["pull"]), kind="stable")[:N_WORST_PAIRS]
        blocks.append(_draw_residuals(fitted, quantity))
        if n_fitted > N_WORST_PAIRS:
            caption = f"The {N_WORST_PAIRS} pairs that fit worst, by pull."
            blocks.append(_pair_table(_take(fitted, worst), caption, quantity))
    else:
        blocks.append(Notice("warning", "No pair took part in a fit."))
    blocks.append(_pair_table(pairs, "Every pair. Marked: left out of the fit.", quantity))
    return blocks


def _pair_table(pairs: Columns, caption: str, quantity: Quantity) -> TableBlock:
    schema = quantity.schemas[f"{quantity.table}_pairs"]
    return table_block(schema, pairs, quantity.of_pairs, caption, marked=~pairs["used"])


def _draw_residuals(pairs: Columns, quantity: Quantity) -> FigureBlock:
    """Draw the histogram of pulls, and the residuals against what was measured."""
    d = quantity.difference
    unit = f", {quantity.unit}" if quantity.unit else ""
    pull = pairs["pull"]
    n_pairs, mean, rms = len(pull), pull.mean(), math.sqrt(np.mean(pull**2))
    n_beyond = int((np.abs(pull) > PULL_RANGE).sum())
    types = np.unique(pairs["tel_type"]).tolist()

    def paint(figure: Figure) -> None:
        gaps = {"wspace": 0.2}
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4), gridspec_kw=gaps)
        edges = np.linspace(-PULL_RANGE, PULL_RANGE, 21 if n_pairs < 300 else 41)
        left.hist(pull, bins=edges, color=PALETTE[5], edgecolor="white", label="pairs")
        grid = np.linspace(-PULL_RANGE, PULL_RANGE, 201)
        expected = n_pairs * (edges[1] - edges[0]) * np.exp(-0.5 * grid**2) / math.sqrt(math.tau)
        left.plot(grid, expected, color=DARK, label="unit normal")
        left.set_title(f"Pulls: {n_beyond:,} of {n_pairs:,} beyond ±{PULL_RANGE:g}")
        left.set_xlabel("pull: residual over its error")
        left.set_ylabel("pairs")
        left.set_ylim(0, 1.25 * left.get_ylim()[1])  # room for the legend
        left.legend(loc="upper left")
        for index, tel_type in enumerate(types):
            rows = pairs["tel_type"] == tel_type
            right.errorbar(
                pairs[quantity.column][rows],
                pairs["residual"][rows],
                yerr=pairs[f"{quantity.column}_error"][rows],
                fmt=TYPE_MARKERS[index % len(TYPE_MARKERS)],
                color=PALETTE[index % len(PALETTE)],
                markersize=3.5,
                elinewidth=0.6,
                alpha=0.75,
                label=tel_type,
            )
        right.axhline(0, color=DARK, linewidth=0.9, zorder=1)
        right.set_title("Residuals")
        right.set_xlabel(f"measured {d} of the pair{unit}")
        right.set_ylabel(f"measured - fitted{unit}")
        figure.legend(loc="upper right", ncols=len(types), handles=right.containers)

    return draw_figure(
        paint,
        size_in=(10.5, 3.9),
        alt=f"Histogram of the pulls of {n_pairs} pairs (mean {mean:.2f}, root mean square "
        f"{rms:.2f}, {n_beyond} beyond {PULL_RANGE:g}) against a unit normal, and residuals "
        f"against the measured {d}.",
        caption=f"Pulls: mean {mean:.2f}, root mean square {rms:.2f}. A fit uses up some of the "
        "scatter: with ndf degrees of freedom for n pairs, honest errors of independent pairs "
        "give sqrt(ndf/n), which comes near 1 only for many pairs per telescope.",
    )


def _network(
    telescopes: Columns, components: Columns, covariance: Columns, quantity: Quantity
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
                "tel_type",
                "component",
                "Reference",
                "n_telescopes",
                "n_pairs",
                "n_events",
                "chi2",
                "ndf",
                "chi2/ndf",
                "p_value",
                "flags",
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
    correlation = _correlation(telescopes["tel_id"], covariance)
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    if np.isfinite(off_diagonal).any():
        low, high = np.nanmin(off_diagonal), np.nanmax(off_diagonal)
        blocks.append(_draw_correlation(telescopes["tel_id"], correlation, low, high, quantity))
    return blocks


def _correlation(tel_id: NDArray[Any], covariance: Columns) -> NDArray[np.float64]:
    """Correlation matrix of the values, shape (n_telescopes, n_telescopes).

    NaN across components, and for a fixed reference, which has no variance.
    """
    row_of = {tel: row for row, tel in enumerate(tel_id.tolist())}
    known = np.isin(covariance["tel_id_1"], tel_id) & np.isin(covariance["tel_id_2"], tel_id)
    rows_1 = [row_of[tel] for tel in covariance["tel_id_1"][known].tolist()]
    rows_2 = [row_of[tel] for tel in covariance["tel_id_2"][known].tolist()]
    matrix = np.full((len(tel_id), len(tel_id)), math.nan)
    matrix[rows_1, rows_2] = covariance["covariance"][known]
    variance = np.diagonal(matrix)
    sigma = np.sqrt(np.where(variance > 0, variance, math.nan))
    return np.asarray(matrix / np.outer(sigma, sigma))


def _draw_correlation(
    tel_id: NDArray[Any],
    correlation: NDArray[np.float64],
    low: float,
    high: float,
    quantity: Quantity,
) -> FigureBlock:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.set_facecolor("#dddddd")
        image = axes.imshow(correlation, cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
        places = np.arange(0, len(tel_id), math.ceil(len(tel_id) / 20))
        labels = tel_id[places].tolist()
        axes.set_xticks(places, labels, fontsize=8, rotation=90 if len(places) > 9 else 0)
        axes.set_yticks(places, labels, fontsize=8)
        axes.set_xlabel("telescope")
        axes.set_ylabel("telescope")
        figure.colorbar(image, ax=axes, label="correlation", shrink=0.8)

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
