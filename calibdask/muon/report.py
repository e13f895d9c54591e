"""The reports of throughput and PSF from muon rings, drawn from the result's tables.

Only the gallery of rings needs more: the few images that the states of cells carry with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import Flag, has
from calibdask.muon.tables import LINES, MUON_THROUGHPUT, POINTS, PROFILE, TREND, TROUBLED
from calibdask.report import (
    PALETTE,
    Notice,
    Paragraph,
    Section,
    TableBlock,
    draw_figure,
    flag_notices,
    table_block,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report import FigureBlock

    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["Picture", "psf_sections", "throughput_sections"]

_PANELS = 12
"""Telescopes that are drawn; the tables hold all."""
_FEW = 10
_OUTLIER = 4.0  # standard errors off the trend
_MARKERS = "os^DPvX"
_GREY = "#777777"
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white"}
_MANY_LEFT_OUT = 0.1  # of the rings


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image of a ring with its fit.

    Attributes
    ----------
    tel_id, obs_id, event_id : int
        Which.
    ring : ndarray of float64, shape (7,)
        As in `calibdask.muon.summary.Gallery`.
    pixels : ndarray of float32, shape (4, P)
        Likewise.
    """

    tel_id: int
    obs_id: int
    event_id: int
    ring: NDArray[np.float64]
    pixels: NDArray[np.float32]


def throughput_sections(
    tables: Mapping[str, QTable], pictures: Sequence[Picture] = ()
) -> list[Section]:
    """Describe throughputs.

    Parameters
    ----------
    tables : mapping of str to QTable
        The tables by their path in the result file.
    pictures : sequence of Picture
        Rings to show.
    """
    trend = tables[TREND.path]
    own = {
        int(fields["tel_id"]): table
        for path, table in tables.items()
        if (fields := MUON_THROUGHPUT.fields(path))
    }
    sections = [
        Section("What needs attention", _attention(trend)),
        Section("Throughput", [*_against_time(own, trend), _trend_table(trend)]),
        Section("Residuals", [_profiles(tables)] if own else []),
    ]
    if pictures:
        sections.append(Section("Rings", _gallery(pictures)))
    return [*sections, Section("Values", [_values_table(own)] if own else [])]


def psf_sections(tables: Mapping[str, QTable], pictures: Sequence[Picture] = ()) -> list[Section]:
    """Describe optical point spread functions; as `throughput_sections`."""
    overview, points = tables[LINES.path], tables[POINTS.path]
    sections = [
        Section("What needs attention", _attention(overview)),
        Section("Width of rings", [*_lines(overview, points), _lines_table(overview)]),
    ]
    if len(np.unique(overview["bin"])) > 1:
        sections.append(Section("Drift", [_drift(overview)]))
    if pictures:
        sections.append(Section("Rings", _gallery(pictures)))
    return [*sections, Section("Points", [_points_table(points)])]


# -- shared ---------------------------------------------------------------------------------------


def _plain(table: QTable, name: str) -> NDArray[Any]:
    """Column without its unit."""
    column = table[name]
    return np.asarray(getattr(column, "value", column))


def _attention(table: QTable) -> list[Block]:
    """Say which telescopes have which flag, most serious first."""
    tel_id, flags = np.asarray(table["tel_id"]), np.asarray(table["flags"])
    blocks: list[Block] = [*flag_notices(tel_id, flags), *_troubled(table)]
    n_all = len(np.unique(tel_id))
    n_good = n_all - len(np.unique(tel_id[has(flags, Flag.TWO_MIRRORS, Flag.NO_RING)]))
    text = f"{n_good} of {n_all} telescopes have rings."
    blocks.append(Paragraph(text if blocks else f"Nothing: {text}"))
    return blocks


def _troubled(table: QTable) -> list[Block]:
    """Say which telescopes have rings that were left out, and why."""
    if not set(TROUBLED) <= set(table.colnames):
        return []
    tel_id = np.asarray(table["tel_id"])
    used = np.asarray(table["n_events"]) + np.asarray(table["n_clipped"])
    blocks: list[Block] = []
    for one in np.unique(tel_id).tolist():
        mine = tel_id == one
        counts = [int(np.asarray(table[name])[mine].sum()) for name in TROUBLED]
        n_left_out, n_all = sum(counts), sum(counts) + int(used[mine].sum())
        if n_left_out:
            listed = "; ".join(
                f"{n} because {why}" for n, why in zip(counts, TROUBLED.values(), strict=True) if n
            )
            level: Any = "warning" if n_left_out > _MANY_LEFT_OUT * n_all else "info"
            text = f"Telescope {one}: {n_left_out} of {n_all} rings were left out: {listed}."
            blocks.append(Notice(level, text))
    return blocks


def _grid(n_panels: int) -> tuple[int, int]:
    columns = min(n_panels, 2)
    return math.ceil(n_panels / columns), columns


def _days(table: QTable, name: str, origin: float) -> NDArray[np.float64]:
    return np.asarray(table[name].tai.mjd - origin)


def _span(days: float) -> tuple[float, str]:
    """Pick a unit in which a span of time reads well: days per unit, and its name."""
    for unit, name in ((1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days > 2 * unit:
            return unit, name
    return 1 / 86400, "seconds"


# -- throughput -----------------------------------------------------------------------------------


def _against_time(own: Mapping[int, QTable], trend: QTable) -> list[Block]:
    if not own:
        return [Notice("error", "No telescope has a throughput.")]
    shown = sorted(own)[:_PANELS]
    origin = min(float(own[tel_id]["time_start"].tai.mjd.min()) for tel_id in shown)
    end = max(float(own[tel_id]["time_end"].tai.mjd.max()) for tel_id in shown)
    unit, unit_name = _span(end - origin)
    rows, columns = _grid(len(shown))
    lines = {int(row["tel_id"]): row for row in trend}
    n_outliers = 0
    outliers = {}
    for tel_id in shown:
        table, line = own[tel_id], lines[tel_id]
        model = _model(table, line)
        with np.errstate(invalid="ignore", divide="ignore"):
            outliers[tel_id] = np.abs(table["mean"] - model) > _OUTLIER * table["sem"]
        n_outliers += int(np.sum(outliers[tel_id]))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            rows, columns, squeeze=False, sharex=True, gridspec_kw={"hspace": 0.5, "wspace": 0.28}
        ).ravel()
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
        for i, (tel_id, panel) in enumerate(zip(shown, panels, strict=False)):
            _paint_times(panel, own[tel_id], lines[tel_id], outliers[tel_id], origin, unit)
            panel.set_title(f"telescope {tel_id}")
            if i % columns == 0:
                panel.set_ylabel("throughput")
            if i + columns >= len(shown):
                panel.set_xlabel(f"{unit_name} since {own[shown[0]]['time_start'][0].utc.iso[:16]}")
                panel.xaxis.set_tick_params(labelbottom=True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=5, bbox_to_anchor=(0.05, 1.0))

    more = f" {len(own) - len(shown)} more telescopes are in the tables." if len(own) > 12 else ""
    blocks: list[Block] = [
        Paragraph(
            "The optical throughput of each telescope: the mean over its muon rings that clipping "
            "left, with its standard error, against the mean time of these rings. The line is the "
            f"weighted least-squares trend.{more}"
        ),
        draw_figure(
            paint,
            size_in=(7.6, 0.9 + 2.0 * rows),
            margins_in=(0.75, 0.15, 0.55, 0.65),
            alt=f"Throughput against time for {len(shown)} telescopes; the numbers are in the "
            "tables below.",
            caption="Throughput against time. Hollow: flagged, not in the trend. Red circle: more "
            f"than {_OUTLIER:g} standard errors off the trend ({n_outliers}). Grey: median.",
        ),
    ]
    if n_outliers:
        text = f"{n_outliers} values lie more than {_OUTLIER:g} standard errors off their trend."
        blocks.append(Notice("warning", text))
    return blocks


def _model(table: QTable, line: Any) -> NDArray[np.float64]:
    """Trend at the times of a telescope's values."""
    slope = float(getattr(line["slope"], "value", line["slope"]))
    days = table["time_mean"].tai.mjd - line["time_mean"].tai.mjd
    return np.asarray(float(line["mean"]) + (slope if np.isfinite(slope) else 0.0) * days)


def _paint_times(
    panel: Axes,
    table: QTable,
    line: Any,
    outlier: NDArray[np.bool_],
    origin: float,
    unit: float,
) -> None:
    x = _days(table, "time_mean", origin) / unit
    few = has(table["flags"], Flag.FEW_RINGS)
    style: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1, "color": PALETTE[0]}
    panel.plot(x, table["median"], "_", color=_GREY, ms=7, label="median")
    for mask, extra, label in ((~few, {}, "mean"), (few, _HOLLOW, "too few rings")):
        if mask.any():
            panel.errorbar(
                x[mask], table["mean"][mask], table["sem"][mask], **style, **extra, label=label
            )
    if outlier.any():
        ring: dict[str, Any] = {"mfc": "none", "mec": PALETTE[1], "ms": 10, "mew": 1.5}
        panel.plot(x[outlier], table["mean"][outlier], "o", **ring, label="off the trend")
    model = _model(table, line)
    if np.isfinite(model).all() and len(x) > 1:
        panel.plot(x, model, "-", color=PALETTE[2], lw=1.2, label="trend")


def _trend_table(trend: QTable) -> TableBlock:
    mean = _plain(trend, "mean")
    with np.errstate(invalid="ignore", divide="ignore"):
        percent, percent_err = (100 * _plain(trend, name) / mean for name in ("slope", "slope_err"))
    return table_block(
        TREND,
        trend,
        (
            *("tel_id", "tel_description", "n_bins", "n_events", "n_clipped", "mean", "mean_err"),
            *("% per day", "Its error", "chi2", "ndf", "flags"),
        ),
        "Every telescope: weighted mean throughput and its trend. A dash is no value.",
        derived={"% per day": percent, "Its error": percent_err},
        error_of={"% per day": "Its error"},
    )


def _values_table(own: Mapping[int, QTable]) -> TableBlock:
    """Values by time, a screenful of each telescope."""
    from astropy.table import vstack

    limit = 40
    parts = {tel_id: own[tel_id][:limit] for tel_id in sorted(own)[:_PANELS]}
    return table_block(
        MUON_THROUGHPUT,
        vstack(list(parts.values()), metadata_conflicts="silent"),
        (
            *("Telescope", "time_start", "time_end", "mean", "sem", "median", "std"),
            *("n_events", "n_clipped", "flags"),
        ),
        f"Values by time (UTC), the first {limit} of each telescope; the result file has all.",
        derived={"Telescope": np.repeat(list(parts), [len(part) for part in parts.values()])},
    )


def _profiles(tables: Mapping[str, QTable]) -> FigureBlock:
    titles = {"impact": "impact distance / m", "azimuth": "azimuth of the impact / deg"}
    titles["radius"] = "ring radius / deg"

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(PROFILE), sharey=True, gridspec_kw={"wspace": 0.12})
        for panel, (name, schema) in zip(panels, PROFILE.items(), strict=True):
            table = tables[schema.path]
            low, high = _plain(table, f"{name}_low"), _plain(table, f"{name}_high")
            tel_id = np.asarray(table["tel_id"])
            for i, one in enumerate(np.unique(tel_id)[:_PANELS].tolist()):
                # A handful of rings tells nothing and would set the scale.
                mine = (tel_id == one) & (np.asarray(table["n_events"]) >= _FEW)
                panel.errorbar(
                    0.5 * (low + high)[mine],
                    100 * np.asarray(table["residual"])[mine],
                    100 * np.asarray(table["residual_err"])[mine],
                    fmt=_MARKERS[i % len(_MARKERS)],
                    color=PALETTE[i % len(PALETTE)],
                    ms=3.5,
                    lw=0.9,
                    label=f"telescope {one}",
                )
            panel.axhline(0, color=_GREY, lw=0.8)
            panel.set_xlabel(titles[name])
        panels[0].set_ylabel("residual / %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=6, bbox_to_anchor=(0.05, 1.0))

    return draw_figure(
        paint,
        size_in=(7.6, 3.0),
        margins_in=(0.7, 0.15, 0.55, 0.45),
        alt="Residuals of the efficiency against impact distance, azimuth and ring radius.",
        caption="Efficiency of rings relative to the mean of their bin of time, against what it "
        "should not depend on.",
    )


# -- gallery --------------------------------------------------------------------------------------


def _gallery(pictures: Sequence[Picture]) -> list[Block]:
    columns = 3
    rows = 2 * math.ceil(len(pictures) / columns)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            rows, columns, squeeze=False, gridspec_kw={"hspace": 0.12, "wspace": 0.05}
        )
        for panel in panels.ravel():
            panel.set_axis_off()
        for i, picture in enumerate(pictures):
            row, column = 2 * (i // columns), i % columns
            seen, expected = panels[row : row + 2, column]
            _paint_ring(seen, picture, picture.pixels[2])
            _paint_ring(expected, picture, picture.pixels[3])
            efficiency, impact = picture.ring[4:6].tolist()
            seen.set_title(
                f"telescope {picture.tel_id}, event {picture.event_id}\n"
                f"efficiency {efficiency:.3f}, impact {impact:.1f} m",
                fontsize=7.5,
                fontweight="normal",
            )

    return [
        draw_figure(
            paint,
            size_in=(7.6, 0.4 + 2.55 * rows),
            margins_in=(0.1, 0.1, 0.1, 0.4),
            alt=f"Camera images of {len(pictures)} muon rings above the images that the fits "
            "predict.",
            caption="The first rings that were used: image above, below it what the fit predicts, "
            "in the same colours; darker pixels hold more light, crossed ones were not measured. "
            "Lines: the circle, and the ring's width on either side (dotted).",
        )
    ]


def _paint_ring(panel: Axes, picture: Picture, charge: NDArray[np.float32]) -> None:
    from matplotlib.patches import Circle

    lon, lat, measured, expected = picture.pixels
    centre_lon, centre_lat, radius, width, _, _, pixel = picture.ring.tolist()
    reach = 1.5 * radius
    near = (np.abs(lon - centre_lon) < reach) & (np.abs(lat - centre_lat) < reach)
    good = near & np.isfinite(charge)
    # In points: a pixel is drawn about as large as it is.
    size = (2.45 * 72 * pixel / (2 * reach)) ** 2
    scale = max(float(np.nanmax(measured)), float(np.nanmax(expected)), 1.0)
    panel.scatter(
        lon[good],
        lat[good],
        c=np.maximum(charge[good], 0),
        s=size,
        marker="H",
        cmap="Blues",
        vmin=0,
        vmax=0.8 * scale,
        lw=0,
    )
    panel.scatter(lon[near & ~good], lat[near & ~good], s=size, marker="x", color=PALETTE[1], lw=1)
    for offset, line in ((0.0, "-"), (-width, ":"), (width, ":")):
        style: dict[str, Any] = {"fill": False, "color": PALETTE[1], "lw": 0.8, "ls": line}
        panel.add_patch(Circle((centre_lon, centre_lat), radius + offset, **style, alpha=0.8))
    panel.set_xlim(centre_lon - reach, centre_lon + reach)
    panel.set_ylim(centre_lat - reach, centre_lat + reach)
    panel.set_aspect("equal")


# -- PSF ------------------------------------------------------------------------------------------


def _lines(overview: QTable, points: QTable) -> list[Block]:
    """Draw the points of each telescope's best filled bin of time with their line."""
    tel_ids = [
        one for one in np.unique(points["tel_id"]).tolist() if one in overview["tel_id"].tolist()
    ]
    shown = tel_ids[:_PANELS]
    rows, columns = _grid(len(shown))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            rows, columns, squeeze=False, gridspec_kw={"hspace": 0.5, "wspace": 0.28}
        ).ravel()
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
        for i, (tel_id, panel) in enumerate(zip(shown, panels, strict=False)):
            mine = overview[overview["tel_id"] == tel_id]
            line = mine[int(np.argmax(mine["n_events"]))]
            own = points[(points["tel_id"] == tel_id) & (points["bin"] == line["bin"])]
            _paint_line(panel, own, line)
            panel.set_title(f"telescope {tel_id}")
            if i % columns == 0:
                panel.set_ylabel("width / radius")
            if i + columns >= len(shown):
                panel.set_xlabel("ring radius / deg")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=4, bbox_to_anchor=(0.05, 1.0))

    return [
        Paragraph(
            "The width of muon rings over their radius, against the radius: what the optical point "
            "spread function adds to a ring (Gaug et al. 2019, ApJS 243, 11). The line is fitted "
            "with the standard errors of the points as weights, each at the mean radius of its "
            "rings."
        ),
        draw_figure(
            paint,
            size_in=(7.6, 0.9 + 2.1 * rows),
            margins_in=(0.75, 0.15, 0.55, 0.65),
            alt=f"Ring width over radius against radius for {len(shown)} telescopes.",
            caption="Width over radius by bins of radius, where a telescope has several bins of "
            "time the one with most rings. Hollow: too few rings, not in the fit. A triangle at "
            "the edge: beyond it.",
        ),
    ]


def _paint_line(panel: Axes, points: QTable, line: Any) -> None:
    x, y, error = (_plain(points, name) for name in ("radius", "ratio", "ratio_err"))
    used = np.asarray(points["used"]).astype(bool)
    style: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1, "color": PALETTE[0]}
    for mask, extra, label in ((used, {}, "rings"), (~used, _HOLLOW, "too few rings")):
        if mask.any():
            panel.errorbar(x[mask], y[mask], error[mask], **style, **extra, label=label)
    slope = float(getattr(line["slope"], "value", line["slope"]))
    intercept = float(line["intercept"])
    if np.isfinite(slope) and len(x) > 1:
        ends = np.array([x.min(), x.max()])
        panel.plot(ends, intercept + slope * ends, color=PALETTE[1], lw=1.2, label="line")
    if used.any():  # a few rings far out must not set the scale
        low, high = (y[used] - 3 * error[used]).min(), (y[used] + 3 * error[used]).max()
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        panel.set_ylim(low, high)
        for beyond, edge, marker in ((y > high, high, "^"), (y < low, low, "v")):
            if beyond.any():  # told at the edge, not left out
                at_edge = np.full(int(beyond.sum()), edge)
                panel.plot(x[beyond], at_edge, marker, color=_GREY, ms=6, clip_on=False)


def _lines_table(overview: QTable) -> TableBlock:
    limit = 200
    return table_block(
        LINES,
        overview[:limit],
        (
            *("tel_id", "intercept", "intercept_err", "slope", "slope_err", "chi2", "ndf"),
            *("quadratic", "quadratic_err", "n_events", "n_clipped", "flags"),
        ),
        f"Lines by telescope and bin of time, the first {limit}; the result file has all.",
    )


def _drift(overview: QTable) -> FigureBlock:
    """Draw the line's value at one radius against time: one number that drifts."""
    good = np.isfinite(_plain(overview, "slope"))
    table = overview[good]
    reference_deg = 1.2

    def paint(figure: Figure) -> None:
        panel = figure.subplots()
        origin = float(table["time_start"].tai.mjd.min()) if len(table) else 0.0
        span = float(table["time_end"].tai.mjd.max()) - origin if len(table) else 1.0
        unit, name = _span(span)
        for i, tel_id in enumerate(np.unique(table["tel_id"]).tolist()[:_PANELS]):
            own = table[table["tel_id"] == tel_id]
            value = own["intercept"] + _plain(own, "slope") * reference_deg
            variance = own["intercept_err"] ** 2 + (_plain(own, "slope_err") * reference_deg) ** 2
            variance += 2 * reference_deg * _plain(own, "covariance")
            middle = 0.5 * sum(_days(own, one, origin) for one in ("time_start", "time_end"))
            panel.errorbar(
                middle / unit,
                value,
                np.sqrt(np.maximum(variance, 0)),
                fmt=_MARKERS[i % len(_MARKERS)],
                color=PALETTE[i % len(PALETTE)],
                ms=4,
                lw=1,
                label=f"telescope {tel_id}",
            )
        panel.set_xlabel(f"{name} since the first ring")
        panel.set_ylabel(f"width / radius at {reference_deg} deg")
        panel.legend(ncols=4)

    return draw_figure(
        paint,
        size_in=(7.6, 3.0),
        alt="Width over radius at one ring radius against time, by telescope.",
        caption=f"The line's value at a ring radius of {reference_deg} deg against time.",
    )


def _points_table(points: QTable) -> TableBlock:
    limit = 300
    return table_block(
        POINTS,
        points[:limit],
        (
            *("tel_id", "bin", "radius", "ratio", "ratio_err", "residual"),
            *("n_events", "n_clipped", "used"),
        ),
        f"The points, the first {limit}; the result file has all.",
    )
