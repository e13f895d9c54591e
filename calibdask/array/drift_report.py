"""The report's part about time bins: what each holds, how values move, who jumps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.network.drift import CHANCE
from calibdask.flags import Flag, has, worst
from calibdask.report import (
    PALETTE,
    Notice,
    Paragraph,
    Section,
    TableBlock,
    draw_figure,
    table_block,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.array.report import Quantity
    from calibdask.report import FigureBlock

    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["drift_sections", "last_bin"]

N_PANELS = 60
"""Telescopes that are drawn, the most suspect ones."""

N_COLUMNS = 6
"""Panels side by side."""


def last_bin(tables: Mapping[str, QTable], table: str) -> tuple[str, dict[str, QTable]]:
    """Pick the last time bin in which a telescope has a value.

    Returns
    -------
    str
        From when to when it is.
    dict of str to QTable
        The rows of that bin, of all tables that have bins.
    """
    main = tables[table]
    bins = np.asarray(main["time_bin"])
    with_value = bins[np.isfinite(np.asarray(main["value"]))]
    number = int((with_value if len(with_value) else bins).max())
    row = np.flatnonzero(bins == number)[0]
    when = f"{_iso(main['time_start'][row])} to {_iso(main['time_end'][row])}"
    return when, {
        path: one[np.asarray(one["time_bin"]) == number] if "time_bin" in one.colnames else one
        for path, one in tables.items()
    }


def drift_sections(tables: Mapping[str, QTable], quantity: Quantity) -> list[Section]:
    """Describe how the values of all time bins hang together.

    Parameters
    ----------
    tables : mapping of str to QTable
        All tables of a calibration in time bins.
    quantity : Quantity
        What was calibrated.

    Returns
    -------
    list of Section
        Time bins and drifts; empty for a preliminary result, which knows no drifts yet.
    """
    path = f"{quantity.table}_drift"
    if path not in tables:
        return []
    main, drift = tables[quantity.table], tables[path]
    when, _ = last_bin(tables, quantity.table)
    return [
        Section("Drift", _drift(main, drift, quantity)),
        Section(
            "Time bins",
            [
                _bins(main, tables[f"{quantity.table}_components"]),
                Paragraph(f"What follows is of the last time bin that has values: {when}."),
            ],
        ),
    ]


def _drift(main: QTable, drift: QTable, quantity: Quantity) -> list[Block]:
    tel_id = np.asarray(drift["tel_id"])
    jumps, varies = (has(drift["flags"], flag) for flag in (Flag.JUMP, Flag.VARIES))
    unit = f" {quantity.unit}" if quantity.unit else ""
    blocks: list[Block] = []
    for k in np.flatnonzero(jumps):
        start = _iso(_start_of(main, int(drift["step_time_bin"][k])))
        step, error = (float(_plain(drift, name)[k]) for name in ("step", "step_error"))
        size = (
            f"{step:+.3g} ± {error:.2g}{unit}"
            if quantity.unit
            else f"{100 * math.expm1(step):+.2g} ± {100 * error:.2g} %"
        )
        blocks.append(
            Notice(
                "warning",
                f"Telescope {tel_id[k]} jumps by {size} at {start} "
                f"({float(drift['step_sigma'][k]):.1f} standard deviations; the limit is "
                f"{float(drift['limit_sigma'][k]):.1f}).",
            )
        )
    blocks += [
        Notice(
            "warning",
            f"Telescope {tel_id[k]} varies without a single jump: chi2/ndf = "
            f"{float(drift['chi2'][k]):.3g}/{int(drift['ndf'][k])}.",
        )
        for k in np.flatnonzero(varies & ~jumps)
    ]
    if not blocks:
        blocks.append(Paragraph("No telescope jumps or varies by more than chance allows."))
    return [
        *blocks,
        _draw(main, drift, quantity),
        table_block(
            quantity.schemas[f"{quantity.table}_drift"],
            drift,
            (
                "tel_type",
                "tel_id",
                "n_bins",
                "step",
                "step_error",
                "step_sigma",
                "limit_sigma",
                "chi2",
                "ndf",
                "p_value",
                "flags",
            ),
            "Every telescope against the others: its most significant step from one time bin to"
            " the next, and chi2 against a constant. J: a step beyond the limit, which chance"
            f" passes in {100 * CHANCE:g} % of all campaigns; V: p below {CHANCE:g} over the number"
            " of telescopes.",
        ),
    ]


def _deviations(
    main: QTable, quantity: Quantity
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the deviation of each row from the mean of its telescope, and its error, shape (N,).

    In percent of the mean, or in the unit of a difference. The mean is weighted with the errors,
    where there are any.
    """
    tel_id, value, error = np.asarray(main["tel_id"]), _plain(main, "value"), _plain(main, "error")
    deviation, bars = np.full(len(value), np.nan), np.full(len(value), np.nan)
    for number in np.unique(tel_id):
        rows = np.flatnonzero((tel_id == number) & np.isfinite(value))
        if not len(rows):
            continue
        weighted = rows[error[rows] > 0]
        weight = np.zeros(len(value))
        weight[weighted if len(weighted) else rows] = 1.0
        weight[weighted] = error[weighted] ** -2.0
        mean = np.average(value[rows], weights=weight[rows])
        scale = 1.0 if quantity.unit else 100.0 / mean
        deviation[rows], bars[rows] = scale * (value[rows] - mean), scale * error[rows]
    return deviation, bars


def _draw(main: QTable, drift: QTable, quantity: Quantity) -> FigureBlock:
    """Draw how each telescope deviates from its mean, a panel for each, the suspect ones first."""
    start_h = _hours(main)
    width_h = float((main["time_end"][0] - main["time_start"][0]).sec) / 3600
    first = main["time_start"][int(np.argmin(start_h))]
    deviation, bars = _deviations(main, quantity)
    middle_h = start_h + 0.5 * width_h
    tel_id = np.asarray(main["tel_id"])
    jumps = has(main["flags"], Flag.JUMP)
    with_value = np.unique(tel_id[np.isfinite(deviation)])
    rows = [k for k in _by_suspicion(drift) if int(drift["tel_id"][k]) in with_value]
    shown = [(str(drift["tel_type"][k]), int(drift["tel_id"][k])) for k in rows[:N_PANELS]]
    shown.sort(key=lambda one: one[0])  # stable: within a type the suspect ones stay first
    suspect = set(np.asarray(drift["tel_id"])[worst(drift["flags"]) > 0])
    limit = {kind: _limit_of([n for t, n in shown if t == kind], tel_id, deviation, bars)
             for kind, _ in shown}  # fmt: skip
    # Each type begins a row, so that the panels of a row have one scale.
    places: dict[tuple[str, int], tuple[int, int]] = {}
    n_rows = 0
    for kind in limit:
        of_type = [one for one in shown if one[0] == kind]
        places |= {one: (n_rows + i // N_COLUMNS, i % N_COLUMNS) for i, one in enumerate(of_type)}
        n_rows += -(-len(of_type) // N_COLUMNS)
    n_rows = max(n_rows, 1)
    panel_in, gap_in, below_in, above_in = 1.1, 0.12, 0.55, 0.15

    def paint(figure: Figure) -> None:
        gaps = {"hspace": gap_in / panel_in, "wspace": 0.08}
        panels: Any = figure.subplots(
            n_rows, N_COLUMNS, squeeze=False, sharex=True, gridspec_kw=gaps
        )
        for place in np.ndindex(panels.shape):
            panels[place].set_visible(place in places.values())
        for (kind, number), place in places.items():
            panel = panels[place]
            mine = np.flatnonzero((tel_id == number) & np.isfinite(deviation))
            mine = mine[np.argsort(middle_h[mine], kind="stable")]
            colour = PALETTE[1] if number in suspect else PALETTE[0]
            panel.axhline(0, color="#333333", linewidth=0.8, zorder=1)
            panel.errorbar(
                middle_h[mine],
                deviation[mine],
                yerr=np.nan_to_num(bars[mine]),
                fmt="o-",
                color=colour,
                markersize=2.5,
                linewidth=0.7,
                elinewidth=0.9,
                capsize=1.5,
            )
            at = mine[jumps[mine]]
            ring = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": PALETTE[1]}
            panel.plot(middle_h[at], deviation[at], "o", zorder=4, **ring)
            panel.set_ylim(-limit[kind], limit[kind])
            name = panel.text(0.03, 0.95, f"{kind} {number}", transform=panel.transAxes)
            name.set(ha="left", va="top", fontsize=8, fontweight="bold")
            below = (place[0] + 1, place[1])
            panel.tick_params(
                labelsize=7, labelbottom=below not in places.values(), labelleft=place[1] == 0
            )
        unit = quantity.unit or "%"
        figure.supylabel(f"deviation from the telescope's mean, {unit}", fontsize=9, x=0.005)
        figure.supxlabel(f"hours since {_iso(first)}", fontsize=9, y=0.005)

    named = np.unique(tel_id[jumps]).tolist()
    what = f"telescopes {', '.join(map(str, named))} jump" if named else "none of them jumps"
    left_out = len(rows) - len(shown)
    rest = f" {left_out} telescopes that move less are not drawn." if left_out else ""
    return draw_figure(
        paint,
        size_in=(10.5, above_in + n_rows * (panel_in + gap_in) - gap_in + below_in),
        margins_in=(0.7, 0.15, below_in, above_in),
        alt=f"Deviations of {len(shown)} telescopes from their means against time; {what}. The "
        "numbers are in the tables of the result.",
        caption=f"The {quantity.name} of each telescope by time bin, as deviation from the "
        "telescope's own mean, with its error. In each type those come first that move most by the "
        "tests below, flagged ones in another colour; a ring marks a jump. All panels of a type "
        "have one scale. Values are relative: where all but one move together, it is the one that "
        f"is held fixed that moved.{rest}",
    )


def _limit_of(
    numbers: list[int],
    tel_id: NDArray[np.integer],
    deviation: NDArray[np.float64],
    bars: NDArray[np.float64],
) -> float:
    """Return the limits of a type's panels: every point, and all but very long errors."""
    rows = np.isin(tel_id, numbers) & np.isfinite(deviation)
    bar = np.nan_to_num(bars[rows])
    if (bar > 0).any():
        bar = np.minimum(bar, 4 * np.median(bar[bar > 0]))
    # Room for the telescope's name above.
    return 1.35 * float(max((np.abs(deviation[rows]) + bar).max(initial=0.0), 1e-9))


def _by_suspicion(drift: QTable) -> list[int]:
    """Rows of the telescopes: flagged ones first, then by how improbable their changes are."""
    p_value, sigma = (np.asarray(drift[name]) for name in ("p_value", "step_sigma"))
    flagged = worst(drift["flags"]) > 0
    order = np.lexsort((np.nan_to_num(p_value, nan=1.0), -np.nan_to_num(sigma), ~flagged))
    rows: list[int] = order.tolist()
    return rows


def _bins(main: QTable, components: QTable) -> TableBlock:
    numbers, first = np.unique(np.asarray(main["time_bin"]), return_index=True)
    has_value = np.isfinite(_plain(main, "value"))
    of_row, of_component = np.asarray(main["time_bin"]), np.asarray(components["time_bin"])
    n_values = [int(has_value[of_row == number].sum()) for number in numbers]
    n_events = [int(np.asarray(components["n_events"])[of_component == n].sum()) for n in numbers]
    p_values = [np.asarray(components["p_value"])[of_component == n] for n in numbers]
    lowest = [float(np.nanmin(p)) if np.isfinite(p).any() else math.nan for p in p_values]
    return TableBlock(
        columns={
            "Bin": numbers,
            "From (UTC)": [_iso(main["time_start"][row]) for row in first],
            "To (UTC)": [_iso(main["time_end"][row]) for row in first],
            "Telescopes with a value": n_values,
            "Events": n_events,
            "Lowest p of its networks": lowest,
        },
        caption="Time bins with events. Each is calibrated by itself. Marked: without values.",
        formats={"Events": ",d", "Lowest p of its networks": ".2g"},
        marked=[n == 0 for n in n_values],
    )


def _hours(main: QTable) -> NDArray[np.float64]:
    start = main["time_start"]
    return np.asarray((start - start.min()).sec / 3600, np.float64)


def _start_of(main: QTable, number: int) -> Any:
    return main["time_start"][np.flatnonzero(np.asarray(main["time_bin"]) == number)[0]]


def _iso(time: Any) -> str:
    return str(time.utc.strftime("%Y-%m-%d %H:%M:%S"))


def _plain(table: QTable, name: str) -> NDArray[np.float64]:
    return np.asarray(getattr(table[name], "value", table[name]), np.float64)
