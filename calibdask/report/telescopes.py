"""Figures of arrays of telescopes: a value by telescope, and the map of the array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import Flag, has
from calibdask.report.figures import (
    DARK,
    GREY,
    HOLLOW,
    MARKERS,
    PALETTE,
    WIDTH_IN,
    draw_figure,
    legend_above,
    mark_zero,
    plot_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import FigureBlock

    type Columns = dict[str, NDArray[Any]]

__all__ = ["TelescopeLayout", "draw_map", "draw_values"]

_MARKER_POINTS = 3.0
"""Half of a marker in points: a shorter error bar is hidden behind it."""
_PANEL_IN, _GAP_IN, _BELOW_IN, _ABOVE_IN = 2.0, 0.55, 0.5, 0.6


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


def draw_values(
    telescopes: Columns,
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    *,
    label: str,
    baseline: float,
    alt: str,
    caption: str,
) -> FigureBlock:
    """Draw values with errors by telescope number, a panel for each type.

    Parameters
    ----------
    telescopes : mapping of str to ndarray, shape (N,)
        tel_type, tel_id, component, flags and is_reference of the telescopes.
    values, errors : ndarray of float64, shape (N,)
        Values, NaN where there is none, and their errors.
    label : str
        What they are, at the axis.
    baseline : float
        Value to compare with.
    alt, caption : str
        As in `FigureBlock`.
    """
    rows_of = {
        name: telescopes["tel_type"] == name for name in np.unique(telescopes["tel_type"]).tolist()
    }
    # Errors smaller than the markers have a panel of their own.
    hidden = {
        name for name, rows in rows_of.items() if _bars_vanish(values[rows], errors[rows], baseline)
    }
    heights = [height for t in rows_of for height in ((1.0, 0.5) if t in hidden else (1.0,))]

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        gaps = {"hspace": _GAP_IN / (_PANEL_IN * np.mean(heights)), "height_ratios": heights}
        panels = iter(figure.subplots(len(heights), 1, squeeze=False, gridspec_kw=gaps)[:, 0])
        for name, rows in rows_of.items():
            panel = next(panels)
            mine = {key: column[rows] for key, column in telescopes.items()}
            panel.set(title=name, ylabel=label)
            _paint_values(panel, mine, values[rows], errors[rows], baseline)
            _mark_telescopes(panel, mine["tel_id"])
            if name in hidden:
                panel = next(panels)
                panel.bar(np.arange(rows.sum()), np.nan_to_num(errors[rows]), color=PALETTE[5])
                panel.set_ylabel("error")
                _mark_telescopes(panel, mine["tel_id"])
        panel.set_xlabel("telescope")
        legend_above(figure, handles=[
            Line2D([], [], linestyle="", label=state, **{"color": DARK, **style})
            for state, (rows, style) in _states(telescopes, values).items()
            if rows.any()
        ])  # fmt: skip

    height_in = sum(heights) * _PANEL_IN + (len(heights) - 1) * _GAP_IN + _BELOW_IN + _ABOVE_IN
    if hidden:
        caption += " Where errors are smaller than the markers, a panel of its own shows them."
    return draw_figure(
        paint,
        size_in=(WIDTH_IN, height_in),
        margins_in=(0.8, 0.15, _BELOW_IN, _ABOVE_IN),
        alt=alt,
        caption=caption,
    )


def _bars_vanish(values: NDArray[np.float64], errors: NDArray[np.float64], baseline: float) -> bool:
    """Whether error bars are mostly shorter than the markers that they belong to."""
    bars = errors[np.isfinite(values) & (errors > 0)]
    low, high = _value_limits(values, errors, baseline)
    return bool(len(bars) and np.median(bars) / (high - low) * _PANEL_IN * 72 < _MARKER_POINTS)


def _mark_telescopes(panel: Axes, tel_id: NDArray[np.integer]) -> None:
    """Write telescope numbers below a panel, as many as fit."""
    n_telescopes = len(tel_id)
    labelled = np.arange(0, n_telescopes, math.ceil(n_telescopes / 100))
    panel.set_xticks(labelled, tel_id[labelled].tolist(), **_small_print(n_telescopes))
    panel.set_xlim(-0.7, n_telescopes - 0.3)
    panel.grid(visible=False, axis="x")


def _small_print(n_telescopes: int) -> dict[str, Any]:
    many = n_telescopes > 40
    return {"fontsize": 6 if many else 8, "rotation": 90 if many else 0}


def _paint_values(
    panel: Axes,
    telescopes: Columns,
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    baseline: float,
) -> None:
    at_edge: dict[str, Any] = {
        "transform": panel.get_xaxis_transform()
    }  # x in data, y in fractions of the panel
    places = np.arange(len(values))
    for place in np.flatnonzero(telescopes["flags"] != "").tolist():
        panel.text(
            place, 0.98, telescopes["flags"][place], color=DARK, ha="center", va="top",
            **at_edge, **_small_print(len(values)),
        )  # fmt: skip
    # A fixed reference has no error, and some telescopes have none quoted.
    bars = np.where(errors > 0, errors, np.nan)
    components = np.unique(telescopes["component"][np.isfinite(values)]).tolist()
    for state, (rows, style) in _states(telescopes, values).items():
        if state == "no value":
            panel.plot(places[rows], np.full(rows.sum(), 0.06), ls="", **at_edge, **style)
            continue
        for group, component in enumerate(components):
            here = rows & (telescopes["component"] == component)
            if here.any():
                plot_points(
                    panel, places[here], values[here], bars[here], group=group, fmt="", ls="",
                    **style,
                )  # fmt: skip
    mark_zero(panel, baseline)
    panel.set_ylim(*_value_limits(values, errors, baseline))


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


def draw_map(
    layout: TelescopeLayout,
    telescopes: Columns,
    pairs: Columns,
    *,
    label: str,
    alt: str,
    caption: str,
) -> FigureBlock:
    """Draw the array to scale, telescopes coloured by their values, with lines for pairs.

    Parameters
    ----------
    layout : TelescopeLayout
        Telescopes of the array; those without a position are left out.
    telescopes : mapping of str to ndarray, shape (N,)
        tel_id, value and flags of telescopes that have a result.
    pairs : mapping of str to ndarray, shape (M,)
        tel_id_1, tel_id_2, n_events and used.
    label, alt, caption : str
        Text at the colour bar; others as in `FigureBlock`.
    """
    row_of = {tel: row for row, tel in enumerate(telescopes["tel_id"].tolist())}
    rows = [row_of.get(tel) for tel in layout.tel_id.tolist()]
    value = np.array([math.nan if row is None else telescopes["value"][row] for row in rows])
    flags = ["" if row is None else str(telescopes["flags"][row]) for row in rows]
    placed, filled = layout.placed, layout.placed & np.isfinite(value)
    types = np.unique(layout.tel_type[placed]).tolist()
    crowded = len(rows) > 50

    def paint(figure: Figure) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.lines import Line2D
        from matplotlib.transforms import ScaledTranslation

        axes = figure.subplots()
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
        axes.set(xlabel="East, m", ylabel="North, m")
        _paint_pairs(axes, pairs, layout)
        low, high = (value[filled].min(), value[filled].max()) if filled.any() else (1.0, 1.0)
        pad = 0.01 if low == high else 0.0
        colours = ScalarMappable(Normalize(low - pad, high + pad), "viridis")
        size = (7 if crowded else 9) ** 2
        handles = []
        for number, name in enumerate(types):
            marker = MARKERS[number % len(MARKERS)]
            handles.append(Line2D([], [], ls="", color=GREY, marker=marker, label=name))
            mine = layout.tel_type == name
            for chosen, face, edge in (
                (mine & filled, colours.to_rgba(value[mine & filled]), DARK),
                (mine & placed & ~filled, "white", GREY),
            ):
                east_m, north_m = layout.east_north_m[chosen].T
                axes.scatter(
                    east_m,
                    north_m,
                    s=size,
                    marker=marker,
                    facecolors=face,
                    edgecolors=edge,
                    zorder=3,
                )
        above_marker = axes.transData + ScaledTranslation(0, 6 / 72, figure.dpi_scale_trans)
        for row in np.flatnonzero(placed):
            east_m, north_m = layout.east_north_m[row]
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
            figure.colorbar(colours, ax=axes, label=label, fraction=0.12, pad=0.03, shrink=0.8)
        if not filled[placed].all():
            handles.append(Line2D([], [], ls="", marker="o", label="no value", **HOLLOW))
        figure.legend(handles=handles, loc="upper left", ncols=len(handles))

    return draw_figure(
        paint, size_in=(9.0, 8.0), margins_in=(0.8, 0.1, 0.55, 0.4), alt=alt, caption=caption
    )


def _paint_pairs(axes: Axes, pairs: Columns, layout: TelescopeLayout) -> None:
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
