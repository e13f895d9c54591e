"""The report's part about time bins: what each holds, how values move, who jumps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.drift import CHANCE
from calibdask.report import PALETTE, Notice, Paragraph, Section, TableBlock, draw_figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.array.report import Quantity
    from calibdask.report import FigureBlock

    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["drift_sections", "last_bin"]

N_NAMED = 6
"""Telescopes drawn in colours of their own in each panel, the most suspect first."""


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
    flags = np.asarray(drift["flags"]).astype(np.str_)
    tel_id = np.asarray(drift["tel_id"])
    unit = f" {quantity.unit}" if quantity.unit else ""
    blocks: list[Block] = []
    for k in np.flatnonzero(np.strings.find(flags, "J") >= 0):
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
    varies = np.flatnonzero((np.strings.find(flags, "V") >= 0) & (np.strings.find(flags, "J") < 0))
    blocks += [
        Notice(
            "warning",
            f"Telescope {tel_id[k]} varies without a single jump: chi2/ndf = "
            f"{float(drift['chi2'][k]):.3g}/{int(drift['ndf'][k])}.",
        )
        for k in varies
    ]
    if not blocks:
        blocks.append(Paragraph("No telescope jumps or varies by more than chance allows."))
    heading = "Largest step" + (f",{unit}" if unit else " of ln c")
    return [
        *blocks,
        _draw(main, drift, quantity),
        TableBlock(
            columns={
                "Type": np.asarray(drift["tel_type"]).astype(np.str_),
                "Telescope": tel_id,
                "Bins": np.asarray(drift["n_bins"]),
                heading: _plain(drift, "step"),
                "Error": _plain(drift, "step_error"),
                "Sigma": np.asarray(drift["step_sigma"]),
                "Limit": np.asarray(drift["limit_sigma"]),
                "chi2": np.asarray(drift["chi2"]),
                "ndf": np.asarray(drift["ndf"]),
                "p": np.asarray(drift["p_value"]),
                "Flags": flags,
            },
            caption="Every telescope against the others: its most significant step from one time "
            f"bin to the next, and chi2 against a constant. J: a step beyond the limit, which "
            f"chance passes in {100 * CHANCE:g} % of all campaigns; V: p below {CHANCE:g} over the "
            "number of telescopes.",
            formats={"Sigma": ".1f", "Limit": ".1f", "chi2": ".1f", "p": ".2g"},
            error_of={heading: "Error"},
            marked=flags != "",
        ),
    ]


def _draw(main: QTable, drift: QTable, quantity: Quantity) -> FigureBlock:
    """Draw the values of all telescopes against time, one panel for each type."""
    types = np.unique(np.asarray(drift["tel_type"]).astype(np.str_)).tolist()
    start_h = _hours(main)
    width_h = float((main["time_end"][0] - main["time_start"][0]).sec) / 3600
    tel_id, value = np.asarray(main["tel_id"]), _plain(main, "value")
    error = _plain(main, "error")
    jumps = np.strings.find(np.asarray(main["flags"]).astype(np.str_), "J") >= 0
    panel_in, gap_in, below_in, above_in = 2.4, 0.55, 0.5, 0.35
    first = main["time_start"][int(np.argmin(start_h))]

    def paint(figure: Figure) -> None:
        gaps = {"hspace": gap_in / panel_in}
        panels = figure.subplots(len(types), 1, squeeze=False, sharex=True, gridspec_kw=gaps)[:, 0]
        for panel, tel_type in zip(panels, types, strict=True):
            rows = drift[np.asarray(drift["tel_type"]).astype(np.str_) == tel_type]
            for name, colour in _colours(rows).items():
                mine = np.flatnonzero((tel_id == name) & np.isfinite(value))
                mine = mine[np.argsort(start_h[mine], kind="stable")]
                x = start_h[mine] + 0.5 * width_h
                strong = colour != "#aaaaaa"
                panel.errorbar(
                    x,
                    value[mine],
                    yerr=np.nan_to_num(error[mine]),
                    fmt="o-",
                    color=colour,
                    markersize=4 if strong else 2.5,
                    linewidth=1.2 if strong else 0.6,
                    elinewidth=0.8,
                    zorder=3 if strong else 2,
                    label=f"{name}" if strong else None,
                )
                at = mine[jumps[mine]]
                panel.plot(
                    start_h[at] + 0.5 * width_h,
                    value[at],
                    "o",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor=PALETTE[1],
                    zorder=4,
                )
            panel.set_title(tel_type)
            panel.set_ylabel(quantity.symbol)
            if panel.get_legend_handles_labels()[1]:
                panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="telescope")
        panels[-1].set_xlabel(f"hours since {_iso(first)}")

    named = np.unique(tel_id[jumps]).tolist()
    what = f"telescopes {', '.join(map(str, named))} jump" if named else "none of them jumps"
    return draw_figure(
        paint,
        size_in=(10.5, above_in + len(types) * (panel_in + gap_in) - gap_in + below_in),
        margins_in=(0.8, 0.9, below_in, above_in),
        alt=f"Values of {len(drift)} telescopes against time; {what}. The numbers are in the "
        "tables of the result.",
        caption=f"The {quantity.name} of each telescope by time bin, with its error; in colours "
        "those that move most, by the tests below. A ring marks a jump. Values are relative: where "
        "all but one move together, it is the one that is held fixed that moved.",
    )


def _colours(rows: QTable) -> dict[int, str]:
    """Colour of each telescope: grey but for the most suspect, which are drawn last."""
    p_value, sigma = (np.asarray(rows[name]) for name in ("p_value", "step_sigma"))
    flagged = np.asarray(rows["flags"]).astype(np.str_) != ""
    order = np.lexsort((np.nan_to_num(p_value, nan=1.0), -np.nan_to_num(sigma), ~flagged))
    suspect = [k for k in order.tolist() if flagged[k]][:N_NAMED]
    tel_id = np.asarray(rows["tel_id"]).tolist()
    colours = {number: "#aaaaaa" for k, number in enumerate(tel_id) if k not in suspect}
    return colours | {tel_id[k]: PALETTE[i % len(PALETTE)] for i, k in enumerate(suspect)}


def _bins(main: QTable, components: QTable) -> TableBlock:
    numbers, first = np.unique(np.asarray(main["time_bin"]), return_index=True)
    has_value = np.isfinite(_plain(main, "value"))
    of_row, of_component = np.asarray(main["time_bin"]), np.asarray(components["time_bin"])
    n_values = [int(has_value[of_row == number].sum()) for number in numbers]
    n_events = [int(np.asarray(components["n_events"])[of_component == n].sum()) for n in numbers]
    p_values = [np.asarray(components["p_value"])[of_component == n] for n in numbers]
    worst = [float(np.nanmin(p)) if np.isfinite(p).any() else math.nan for p in p_values]
    return TableBlock(
        columns={
            "Bin": numbers,
            "From (UTC)": [_iso(main["time_start"][row]) for row in first],
            "To (UTC)": [_iso(main["time_end"][row]) for row in first],
            "Telescopes with a value": n_values,
            "Events": n_events,
            "Lowest p of its networks": worst,
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
