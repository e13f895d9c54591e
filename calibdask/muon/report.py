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
from calibdask.report.attention import attention_section, flag_notices
from calibdask.report.blocks import Notice, Paragraph, ReportSection, TableBlock, table_block
from calibdask.report.figures import (
    GREY,
    PALETTE,
    WIDTH_IN,
    draw_figure,
    grid_of_panels,
    legend_above,
    mark_zero,
    plot_points,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.report.blocks import Block, FigureBlock

__all__ = ["Picture", "psf_sections", "throughput_sections"]

_PANELS = 12
"""Telescopes that are drawn; the tables hold all."""
_FEW = 10
_OUTLIER = 4.0  # standard errors off the trend
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
) -> list[ReportSection]:
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
    return [
        _attention(trend),
        ReportSection("Throughput", [*_against_time(own, trend), _trend_table(trend)]),
        ReportSection("Residuals", [_profiles(tables)] if own else []),
        *([ReportSection("Rings", _gallery(pictures))] if pictures else []),
        ReportSection("Values", [_values_table(own)] if own else []),
    ]


def psf_sections(
    tables: Mapping[str, QTable], pictures: Sequence[Picture] = ()
) -> list[ReportSection]:
    """Describe optical point spread functions; as `throughput_sections`."""
    overview, points = tables[LINES.path], tables[POINTS.path]
    has_bins = len(np.unique(overview["bin"])) > 1
    return [
        _attention(overview),
        ReportSection("Width of rings", [*_lines(overview, points), _lines_table(overview)]),
        *([ReportSection("Drift", [_drift(overview)])] if has_bins else []),
        *([ReportSection("Rings", _gallery(pictures))] if pictures else []),
        ReportSection("Points", [_points_table(points)]),
    ]


# -- shared ---------------------------------------------------------------------------------------


def _plain(table: QTable | Any, name: str) -> NDArray[Any]:
    """Column, or value of a row, without its unit."""
    return np.asarray(getattr(table[name], "value", table[name]))


def _attention(table: QTable) -> ReportSection:
    """Describe which telescopes have which flag, and which rings were left out and why."""
    tel_id, flags = np.asarray(table["tel_id"]), np.asarray(table["flags"])
    notices = flag_notices(tel_id, flags)
    everyone = np.unique(tel_id)
    if set(TROUBLED) <= set(table.colnames):
        used = np.asarray(table["n_events"]) + np.asarray(table["n_clipped"])
        for one in everyone.tolist():
            mine = tel_id == one
            counts = {why: int(table[name][mine].sum()) for name, why in TROUBLED.items()}
            n_left_out = sum(counts.values())
            n_all = n_left_out + int(used[mine].sum())
            if n_left_out:
                listed = "; ".join(f"{n} because {why}" for why, n in counts.items() if n)
                text = f"Telescope {one}: {n_left_out} of {n_all} rings were left out: {listed}."
                many = n_left_out > _MANY_LEFT_OUT * n_all
                notices.append(Notice("warning" if many else "info", text))
    n_good = len(everyone) - len(np.unique(tel_id[has(flags, Flag.TWO_MIRRORS, Flag.NO_RING)]))
    return attention_section(notices, f"{n_good} of {len(everyone)} telescopes have rings.")


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
    models, outliers = {}, {}
    for line in trend:
        if (tel_id := int(line["tel_id"])) in shown:
            table, slope = own[tel_id], np.nan_to_num(_plain(line, "slope"))
            days = table["time_mean"].tai.mjd - line["time_mean"].tai.mjd
            models[tel_id] = float(line["mean"]) + slope * days
            off = np.abs(np.asarray(table["mean"]) - models[tel_id])
            outliers[tel_id] = off > _OUTLIER * np.asarray(table["sem"])
    n_outliers = int(sum(np.count_nonzero(one) for one in outliers.values()))

    def paint(figure: Figure) -> None:
        gaps = {"hspace": 0.5, "wspace": 0.16}
        panels = grid_of_panels(figure, len(shown), sharex=True, gridspec_kw=gaps)
        for i, (tel_id, panel) in enumerate(zip(shown, panels, strict=True)):
            table = own[tel_id]
            x = _days(table, "time_mean", origin) / unit
            _paint_times(panel, x, table, models[tel_id], outliers[tel_id])
            panel.set_title(f"telescope {tel_id}")
            if i % 2 == 0:
                panel.set_ylabel("throughput")
            if i + 2 >= len(shown):
                panel.set_xlabel(
                    f"{unit_name} since {own[shown[0]]['time_start'][0].utc.iso[:16]} UTC"
                )
                panel.xaxis.set_tick_params(labelbottom=True)
        legend_above(figure, panels[0])

    more = f" {len(own) - len(shown)} more telescopes are in the tables." if len(own) > 12 else ""
    blocks: list[Block] = [
        Paragraph(
            "The optical throughput of each telescope: the mean over its muon rings that clipping "
            "left, with its standard error, against the mean time of these rings. The line is the "
            f"weighted least-squares trend.{more}"
        ),
        draw_figure(
            paint,
            size_in=(WIDTH_IN, 0.9 + 2.0 * math.ceil(len(shown) / 2)),
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


def _paint_times(
    panel: Axes,
    x: NDArray[np.float64],
    table: QTable,
    model: NDArray[np.float64],
    outlier: NDArray[np.bool_],
) -> None:
    few = has(table["flags"], Flag.FEW_RINGS)
    panel.plot(x, table["median"], "_", color=GREY, ms=7, label="median")
    for mask, style, label in ((~few, {}, "mean"), (few, _HOLLOW, "too few rings")):
        if mask.any():
            plot_points(
                panel, x[mask], table["mean"][mask], table["sem"][mask], label=label, **style
            )
    if outlier.any():
        ring: dict[str, Any] = {"mfc": "none", "mec": PALETTE[1], "ms": 10, "mew": 1.5}
        panel.plot(x[outlier], table["mean"][outlier], "o", **ring, label="off the trend")
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
        panels = figure.subplots(1, len(PROFILE), sharey=True, gridspec_kw={"wspace": 0.08})
        for panel, (name, schema) in zip(panels, PROFILE.items(), strict=True):
            table = tables[schema.path]
            middle = 0.5 * (_plain(table, f"{name}_low") + _plain(table, f"{name}_high"))
            tel_id = np.asarray(table["tel_id"])
            percent = (100 * np.asarray(table[one]) for one in ("residual", "residual_err"))
            residual, error = percent
            for group, one in enumerate(np.unique(tel_id)[:_PANELS].tolist()):
                # A handful of rings tells nothing and would set the scale.
                mine = (tel_id == one) & (np.asarray(table["n_events"]) >= _FEW)
                style: dict[str, Any] = {"group": group, "label": f"telescope {one}"}
                plot_points(panel, middle[mine], residual[mine], error[mine], **style)
            mark_zero(panel)
            panel.set_xlabel(titles[name])
        panels[0].set_ylabel("residual / %")
        legend_above(figure, panels[0])

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.4),
        alt="Residuals of the efficiency against impact distance, azimuth and ring radius.",
        caption="Efficiency of rings relative to the mean of their bin of time, against what it "
        "should not depend on.",
    )


# -- gallery --------------------------------------------------------------------------------------


def _gallery(pictures: Sequence[Picture]) -> list[Block]:
    columns = 4
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
            size_in=(WIDTH_IN, 0.4 + 2.6 * rows),
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
    tel_ids = np.intersect1d(points["tel_id"], overview["tel_id"]).tolist()
    shown = tel_ids[:_PANELS]

    def paint(figure: Figure) -> None:
        gaps = {"hspace": 0.5, "wspace": 0.16}
        panels = grid_of_panels(figure, len(shown), gridspec_kw=gaps)
        for i, (tel_id, panel) in enumerate(zip(shown, panels, strict=True)):
            mine = overview[overview["tel_id"] == tel_id]
            line = mine[int(np.argmax(mine["n_events"]))]
            own = points[(points["tel_id"] == tel_id) & (points["bin"] == line["bin"])]
            _paint_line(panel, own, line)
            panel.set_title(f"telescope {tel_id}")
            if i % 2 == 0:
                panel.set_ylabel("width / radius")
            if i + 2 >= len(shown):
                panel.set_xlabel("ring radius / deg")
        if shown:
            legend_above(figure, panels[0])

    return [
        Paragraph(
            "The width of muon rings over their radius, against the radius: what the optical point "
            "spread function adds to a ring (Gaug et al. 2019, ApJS 243, 11). The line is fitted "
            "with the standard errors of the points as weights, each at the mean radius of its "
            "rings."
        ),
        draw_figure(
            paint,
            size_in=(WIDTH_IN, 0.9 + 2.1 * max(1, math.ceil(len(shown) / 2))),
            alt=f"Ring width over radius against radius for {len(shown)} telescopes.",
            caption="Width over radius by bins of radius, where a telescope has several bins of "
            "time the one with most rings. Hollow: too few rings, not in the fit. A triangle at "
            "the edge: beyond it.",
        ),
    ]


def _paint_line(panel: Axes, points: QTable, line: Any) -> None:
    x, y, error = (_plain(points, name) for name in ("radius", "ratio", "ratio_err"))
    used = np.asarray(points["used"]).astype(bool)
    for mask, style, label in ((used, {}, "rings"), (~used, _HOLLOW, "too few rings")):
        if mask.any():
            plot_points(panel, x[mask], y[mask], error[mask], label=label, **style)
    slope, intercept = float(_plain(line, "slope")), float(line["intercept"])
    if np.isfinite(slope) and len(x) > 1:
        ends = np.array([x.min(), x.max()])
        panel.plot(ends, intercept + slope * ends, color=PALETTE[1], lw=1.2, label="line")
    if used.any():  # a few rings far out must not set the scale
        low, high = (y[used] - 3 * error[used]).min(), (y[used] + 3 * error[used]).max()
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        panel.set_ylim(low, high)
        for beyond, edge, marker in ((y > high, high, "^"), (y < low, low, "v")):
            at_edge = np.full(int(beyond.sum()), edge)  # shown at the edge, not left out
            panel.plot(x[beyond], at_edge, marker, color=GREY, ms=6, clip_on=False)


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
    table = overview[np.isfinite(_plain(overview, "slope"))]
    radius_deg = 1.2

    def paint(figure: Figure) -> None:
        panel = figure.subplots()
        panel.set_ylabel(f"width / radius at {radius_deg} deg")
        if not len(table):
            return
        origin = float(table["time_start"].tai.mjd.min())
        unit, name = _span(float(table["time_end"].tai.mjd.max()) - origin)
        slope, slope_err, covariance = (
            _plain(table, one) for one in ("slope", "slope_err", "covariance")
        )
        value = np.asarray(table["intercept"]) + slope * radius_deg
        variance = np.asarray(table["intercept_err"]) ** 2 + (slope_err * radius_deg) ** 2
        error = np.sqrt(np.maximum(variance + 2 * radius_deg * covariance, 0))
        start, end = (_days(table, one, origin) for one in ("time_start", "time_end"))
        middle = 0.5 * (start + end) / unit
        for group, tel_id in enumerate(np.unique(table["tel_id"]).tolist()[:_PANELS]):
            mine = np.asarray(table["tel_id"]) == tel_id
            style: dict[str, Any] = {"group": group, "label": f"telescope {tel_id}"}
            plot_points(panel, middle[mine], value[mine], error[mine], **style)
        panel.set_xlabel(f"{name} since {table['time_start'].min().utc.iso[:16]} UTC")
        legend_above(figure, panel)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.2),
        alt="Width over radius at one ring radius against time, by telescope.",
        caption=f"The line's value at a ring radius of {radius_deg} deg against time.",
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
