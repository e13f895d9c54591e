"""The report's part about time bins: what each holds, how values move, who jumps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.network.drift import CHANCE
from calibdask.flags import Flag, has, worst
from calibdask.report.blocks import Notice, Paragraph, ReportSection, TableBlock, table_block
from calibdask.report.figures import PALETTE, WIDTH_IN, draw_figure, mark_zero, plot_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.array.report_quantity import CalibratedQuantity
    from calibdask.report.blocks import Block, FigureBlock

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
    row = main[np.flatnonzero(bins == number)[0]]
    when = f"{_iso(row['time_start'])} to {_iso(row['time_end'])}"
    return when, {
        path: one[np.asarray(one["time_bin"]) == number] if "time_bin" in one.colnames else one
        for path, one in tables.items()
    }


def drift_sections(
    tables: Mapping[str, QTable], quantity: CalibratedQuantity
) -> list[ReportSection]:
    """Describe how the values of all time bins hang together.

    Parameters
    ----------
    tables : mapping of str to QTable
        All tables of a calibration in time bins.
    quantity : CalibratedQuantity
        What was calibrated.

    Returns
    -------
    list of ReportSection
        Time bins and drifts; empty for a preliminary result, which knows no drifts yet.
    """
    path = f"{quantity.table}_drift"
    if path not in tables:
        return []
    main = tables[quantity.table]
    when, _ = last_bin(tables, quantity.table)
    text = f"What follows is of the last time bin that has values: {when}."
    bins = _bins(main, tables[f"{quantity.table}_components"])
    return [
        ReportSection("Drift", _drift(main, tables[path], quantity)),
        ReportSection("Time bins", [bins, Paragraph(text)]),
    ]


def _drift(main: QTable, drift: QTable, quantity: CalibratedQuantity) -> list[Block]:
    schema = quantity.schemas[f"{quantity.table}_drift"]
    blocks: list[Block] = []
    for row in drift[has(drift["flags"], Flag.JUMP)]:
        first = np.flatnonzero(np.asarray(main["time_bin"]) == row["step_time_bin"])[0]
        step, error = (
            float(getattr(row[one], "value", row[one])) for one in ("step", "step_error")
        )
        size = (
            f"{step:+.3g} ± {error:.2g} {quantity.unit}"
            if quantity.unit
            else f"{100 * math.expm1(step):+.2g} ± {100 * error:.2g} %"
        )
        text = (
            f"Telescope {row['tel_id']} jumps by {size} at {_iso(main['time_start'][first])} "
            f"({row['step_sigma']:.1f} standard deviations; the limit is {row['limit_sigma']:.1f})."
        )
        blocks.append(Notice("warning", text))
    blocks += [
        Notice(
            "warning",
            f"Telescope {row['tel_id']} varies without a single jump: chi2/ndf = "
            f"{row['chi2']:.3g}/{row['ndf']}.",
        )
        for row in drift[has(drift["flags"], Flag.VARIES) & ~has(drift["flags"], Flag.JUMP)]
    ]
    if not blocks:
        blocks.append(Paragraph("No telescope jumps or varies by more than chance allows."))
    return [
        *blocks,
        _draw(main, drift, quantity),
        table_block(
            schema,
            drift,
            (
                *("tel_type", "tel_id", "n_bins", "step", "step_error", "step_sigma"),
                *("limit_sigma", "chi2", "ndf", "p_value", "flags"),
            ),
            "Every telescope against the others: its most significant step from one time bin to"
            " the next, and chi2 against a constant. J: a step beyond the limit, which chance"
            f" passes in {100 * CHANCE:g} % of all campaigns; V: p below {CHANCE:g} over the number"
            " of telescopes.",
        ),
    ]


def _deviations(
    main: QTable, quantity: CalibratedQuantity
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the deviation of each row from the mean of its telescope, and its error, shape (N,).

    In percent of the mean, or in the unit of a difference. The mean is weighted with the errors,
    where there are any.
    """
    tel_id, value, error = np.asarray(main["tel_id"]), _plain(main, "value"), _plain(main, "error")
    deviation, bars = np.full((2, len(value)), np.nan)
    for number in np.unique(tel_id):
        rows = (tel_id == number) & np.isfinite(value)
        if not rows.any():
            continue
        weighted = rows & (error > 0)
        weight = np.where(weighted, np.where(weighted, error, 1.0) ** -2.0, 0.0)
        mean = np.average(value[rows], weights=weight[rows] if weighted.any() else None)
        scale = 1.0 if quantity.unit else 100.0 / mean
        deviation[rows], bars[rows] = scale * (value[rows] - mean), scale * error[rows]
    return deviation, bars


def _draw(main: QTable, drift: QTable, quantity: CalibratedQuantity) -> FigureBlock:
    """Draw how each telescope deviates from its mean, a panel for each, the suspect ones first."""
    start, end = main["time_start"], main["time_end"]
    middle_h = np.asarray((start - start.min()).sec + 0.5 * (end[0] - start[0]).sec) / 3600
    deviation, bars = _deviations(main, quantity)
    tel_id, jumps = np.asarray(main["tel_id"]), has(main["flags"], Flag.JUMP)
    with_value = np.unique(tel_id[np.isfinite(deviation)])
    rows = [row for row in _by_suspicion(drift) if row["tel_id"] in with_value]
    shown = [(str(row["tel_type"]), int(row["tel_id"])) for row in rows[:N_PANELS]]
    suspect = set(np.asarray(drift["tel_id"])[worst(drift["flags"]) > 0])
    # Each type begins a row, so that the panels of a row have one scale.
    limit: dict[str, float] = {}
    places: dict[tuple[int, int], tuple[str, int]] = {}
    n_rows = 0
    for kind in sorted({kind for kind, _ in shown}):
        of_type = [number for one, number in shown if one == kind]
        limit[kind] = _limit(np.isin(tel_id, of_type), deviation, bars)
        places |= {
            (n_rows + i // N_COLUMNS, i % N_COLUMNS): (kind, number)
            for i, number in enumerate(of_type)
        }
        n_rows += math.ceil(len(of_type) / N_COLUMNS)
    n_rows = max(n_rows, 1)
    panel_in, gap_in, below_in, above_in = 1.1, 0.12, 0.55, 0.15

    def paint(figure: Figure) -> None:
        gaps = {"hspace": gap_in / panel_in, "wspace": 0.08}
        panels: Any = figure.subplots(
            n_rows, N_COLUMNS, squeeze=False, sharex=True, gridspec_kw=gaps
        )
        for place in np.ndindex(panels.shape):
            panel = panels[place]
            if place not in places:
                panel.set_visible(False)
                continue
            kind, number = places[place]
            mine = np.flatnonzero((tel_id == number) & np.isfinite(deviation))
            mine = mine[np.argsort(middle_h[mine], kind="stable")]
            mark_zero(panel)
            plot_points(
                panel,
                middle_h[mine],
                deviation[mine],
                np.nan_to_num(bars[mine]),
                group=int(number in suspect),
                fmt="o-",
                markersize=2.5,
                linewidth=0.7,
            )
            at = mine[jumps[mine]]
            ring = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": PALETTE[1]}
            panel.plot(middle_h[at], deviation[at], "o", zorder=4, **ring)
            panel.set_ylim(-limit[kind], limit[kind])
            panel.text(
                0.03, 0.95, f"{kind} {number}", transform=panel.transAxes, ha="left", va="top",
                fontsize=8, fontweight="bold",
            )  # fmt: skip
            last = (place[0] + 1, place[1]) not in places
            panel.tick_params(labelsize=7, labelbottom=last, labelleft=place[1] == 0)
        unit = quantity.unit or "%"
        figure.supylabel(f"deviation from the telescope's mean, {unit}", fontsize=9, x=0.005)
        figure.supxlabel(f"hours since {_iso(start.min())} UTC", fontsize=9, y=0.005)

    named = np.unique(tel_id[jumps]).tolist()
    what = f"telescopes {', '.join(map(str, named))} jump" if named else "none of them jumps"
    left_out = len(rows) - len(shown)
    rest = f" {left_out} telescopes that move less are not drawn." if left_out else ""
    return draw_figure(
        paint,
        size_in=(WIDTH_IN, above_in + n_rows * (panel_in + gap_in) - gap_in + below_in),
        margins_in=(0.7, 0.15, below_in, above_in),
        alt=f"Deviations of {len(shown)} telescopes from their means against time; {what}. The "
        "numbers are in the tables of the result.",
        caption=f"The {quantity.name} of each telescope by time bin, as deviation from the "
        "telescope's own mean, with its error. In each type those come first that move most by the "
        "tests below, flagged ones in another colour; a ring marks a jump. All panels of a type "
        "have one scale. Values are relative: where all but one move together, it is the one that "
        f"is held fixed that moved.{rest}",
    )


def _limit(
    rows: NDArray[np.bool_], deviation: NDArray[np.float64], bars: NDArray[np.float64]
) -> float:
    """Return the limits of a type's panels: every point, and all but very long errors."""
    rows = rows & np.isfinite(deviation)
    bar = np.nan_to_num(bars[rows])
    if (bar > 0).any():
        bar = np.minimum(bar, 4 * np.median(bar[bar > 0]))
    # Room for the telescope's name above.
    return 1.35 * float(max((np.abs(deviation[rows]) + bar).max(initial=0.0), 1e-9))


def _by_suspicion(drift: QTable) -> QTable:
    """Sort telescopes: flagged ones first, then by how improbable their changes are."""
    p_value, sigma = (np.asarray(drift[name]) for name in ("p_value", "step_sigma"))
    flagged = worst(drift["flags"]) > 0
    order = np.lexsort((np.nan_to_num(p_value, nan=1.0), -np.nan_to_num(sigma), ~flagged))
    return drift[order]


def _bins(main: QTable, components: QTable) -> TableBlock:
    numbers, first, of_row = np.unique(
        np.asarray(main["time_bin"]), return_index=True, return_inverse=True
    )
    n_values = np.bincount(of_row, np.isfinite(_plain(main, "value"))).astype(np.int64)
    in_bin = [np.asarray(components["time_bin"]) == number for number in numbers]
    p_values = [np.asarray(components["p_value"])[rows] for rows in in_bin]
    return TableBlock(
        columns={
            "Bin": numbers,
            "From (UTC)": [_iso(main["time_start"][row]) for row in first],
            "To (UTC)": [_iso(main["time_end"][row]) for row in first],
            "Telescopes with a value": n_values,
            "Events": [int(np.asarray(components["n_events"])[rows].sum()) for rows in in_bin],
            "Lowest p of its networks": [
                float(np.nanmin(p)) if np.isfinite(p).any() else math.nan for p in p_values
            ],
        },
        caption="Time bins with events. Each is calibrated by itself. Marked: without values.",
        formats={"Events": ",d", "Lowest p of its networks": ".2g"},
        marked=n_values == 0,
    )


def _iso(time: Any) -> str:
    return str(time.utc.strftime("%Y-%m-%d %H:%M:%S"))


def _plain(table: Any, name: str) -> NDArray[np.float64]:
    return np.asarray(getattr(table[name], "value", table[name]), np.float64)
