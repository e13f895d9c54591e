"""Pages of the sensor calibrations: what needs attention, numbers, curves, maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import ImageFlag, PixelFlag
from calibdask.report import (
    PALETTE,
    FigureBlock,
    Notice,
    Paragraph,
    Section,
    TableBlock,
    draw_figure,
    table_block,
)
from calibdask.sensor.pixels import BIAS_SOURCES
from calibdask.sensor.settings import Setting
from calibdask.sensor.tables import (
    BIAS,
    CALIBRATED,
    DARK_CURRENT,
    DEFECTS,
    EMVA,
    FLAT_FIELD,
    GAIN,
    ISO_FACTORS,
    MONOCHROME,
    READ_NOISE,
    STACKS,
    TEMPERATURE,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from calibdask.schema import TableSchema
    from calibdask.sensor.overview import Overview, StackRecord

    type Block = Paragraph | Notice | TableBlock | FigureBlock
    type Row = Mapping[str, Any]
    type Tables = Mapping[str, QTable]

__all__ = [
    "bias_sections",
    "calibrated_sections",
    "dark_sections",
    "defect_sections",
    "emva_sections",
    "flat_sections",
    "gain_sections",
    "iso_sections",
    "stack_sections",
]

CHANNEL_COLOURS = {
    "R": PALETTE[1],
    "G": PALETTE[2],
    "B": PALETTE[0],
    "G2": PALETTE[3],
    MONOCHROME: "#333333",
}
GREY = "#777777"
_SETTING = ("iso", "gain_setting", "offset_setting", "readout_mode")
"""Columns that tell a setting; those that a table has are shown."""
_MARGINS = (1.0, 0.2, 0.55, 0.2)
MANY_FLAGGED = 0.05
"""Fraction of flagged pixels from which a map asks for a look."""


def bias_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe bias and read noise."""
    rows, maps = result["rows"], result["overviews"]
    blocks: list[Block] = [
        Paragraph(
            "The bias of a pixel is the mean of its frames, its read noise their standard"
            " deviation (divisor n - 1) less that of rounding, 1/12 DN². Each ISO speed has its"
            " own."
        ),
        _table(
            BIAS if BIAS.path in tables else READ_NOISE,
            tables,
            "n_frames bias_dn bias_dn_error fixed_pattern_dn readnoise_dn readnoise_dn_error"
            " n_flagged",
            "By ISO speed; means over pixels without a flag.",
        ),
    ]
    # The lowest and the highest speed: what lies between looks alike.
    ends = {one.name for one in (result["settings"][0], result["settings"][-1])}
    labels = {"bias": "bias (DN)", "readnoise": "read noise (DN)"}
    shown = [
        (name, labels[last])
        for name, (_, group, last) in ((name, name.split("/")) for name in maps)
        if last in labels and group in ends
    ]
    return [
        Section("What needs attention", _attention(maps, rows, "bias", "readnoise")),
        Section("Bias and read noise", blocks),
        Section("Maps", [_draw_map(maps[name], name, label) for name, label in shown]),
    ]


def iso_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe the normalisation of ISO speeds."""
    rows, curve = result["rows"], result["curve"]
    notices = _attention(result["overviews"], rows, "ratio")
    probability = _probability(curve.chi2, curve.ndf)
    if probability < 1e-3:
        notices.insert(
            0,
            Notice(
                "warning",
                f"The signals follow neither a line nor a knee (chi2 {curve.chi2:.4g} for"
                f" {curve.ndf} degrees of freedom). Use the measured factors, not the curve.",
            ),
        )
    lost = [str(row["iso"]) for row in rows if not math.isfinite(row["factor"])]
    if lost:
        text = f"ISO {', '.join(lost)}: no pixel could be used, all are saturated or too dark."
        notices.insert(0, Notice("warning", text))
    knee = f", constant from ISO {curve.knee:.5g} ± {curve.knee_error:.2g} on"
    text = (
        f"Signal relative to ISO {curve.iso_min}: 1 + {curve.slope:.6g} (ISO - {curve.iso_min})"
        f"{knee if curve.kind == 'knee' else ''}. Bayesian information criterion: line"
        f" {curve.bic_linear:.4g}, knee {curve.bic_knee:.4g}; the smaller one counts."
    )
    caption = "Factors as measured, and from the curve. The lowest ISO speed is 1 by definition."
    table = _table(
        ISO_FACTORS,
        tables,
        "factor factor_error model model_error signal_dn n_used n_frames bias_source",
        caption,
    )
    return [
        Section("What needs attention", notices),
        Section(
            "ISO speed",
            [Paragraph(text), _draw_iso(rows, curve), table],
        ),
        Section(
            "Maps",
            [
                _draw_map(one, name, "signal relative to the lowest ISO speed")
                for name, one in list(result["overviews"].items())[-1:]
            ],
        ),
    ]


def dark_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe the dark current."""
    rows, maps = result["rows"], result["overviews"]
    notices = _attention(maps, rows, "dark_current")
    for row in rows:
        offset, pull = row["offset_minus_bias_dn"], row["offset_pull_rms"]
        if abs(offset) > 0.5 or pull > 1.5:
            notices.insert(
                0,
                Notice(
                    "warning",
                    f"{Setting.of_row(row).label}: the lines do not start at the bias (mean"
                    f" difference {offset:.3g} DN, {pull:.2g} standard errors rms). Light, a"
                    " warming sensor, or another bias?",
                ),
            )
    notices += [
        Notice("warning", f"{name}: left out, it has one exposure time only.")
        for name in result["left_out"]
    ]
    blocks: list[Block] = [
        Paragraph(
            "Slope of the signal with exposure time, of each pixel. Saturated points are left out;"
            " a pixel with fewer than two others has no value. The signal at no exposure should be"
            " the bias."
        ),
        _table(
            DARK_CURRENT,
            tables,
            "temperature_c n_exposures longest_s dark_current_dn_per_s dark_current_dn_per_s_error"
            " scatter_dn_per_s dark_current_with_hot_dn_per_s n_hot offset_minus_bias_dn"
            " offset_pull_rms bias_source",
            "By ISO speed and temperature; pixels without a flag.",
        ),
    ]
    if result["temperature"]:
        blocks.append(
            _table(
                TEMPERATURE,
                tables,
                "doubling_k doubling_k_error activation_energy_ev activation_energy_ev_error"
                " chi2_doubling chi2_arrhenius ndf",
                "Law of temperature.",
            )
        )
        blocks.append(_draw_temperature(rows))
    figures = [_draw_map(one, name, "dark current (DN/s)") for name, one in _without_repeats(maps)]
    return [
        Section("What needs attention", notices),
        Section("Dark current", blocks),
        Section("Maps", figures),
    ]


def gain_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe photon transfer."""
    rows, points, maps = result["rows"], result["points"], result["overviews"]
    notices = _attention(maps, rows, "gain")
    for row in rows:
        if row["p_value"] < 1e-3:
            text = (
                f"{Setting.of_row(row).label}, channel {row['channel']}: the curve is not a line"
                f" (chi2 {row['chi2']:.4g} for {row['ndf']} degrees of freedom). Try a smaller"
                " fit_fraction, or brighter_fatter."
            )
            notices.append(Notice("info", text))
        if not math.isfinite(row["ptc_gain_dn_per_electron"]):
            where = f"{Setting.of_row(row).label}, channel {row['channel']}"
            text = f"{where}: too few usable levels for a curve."
            notices.append(Notice("warning", text))
    notices += [
        Notice("warning", f"{one}: left out, it has one level of light only.")
        for one in result["left_out"]
    ]
    table = _table(
        GAIN,
        tables,
        "channel gain_dn_per_electron gain_dn_per_electron_error gain_scatter_dn_per_electron"
        " ptc_gain_dn_per_electron ptc_gain_dn_per_electron_error readnoise_electron"
        " full_well_electron full_well_reached a00_per_electron p_value bias_source",
        "By ISO speed and channel.",
    )
    settings = sorted({Setting.of_row(row) for row in rows})
    figures = [_draw_ptc(rows, points, setting, result["step_dn"]) for setting in settings]
    shown = [(name, one) for name, one in _without_repeats(maps) if name.endswith("/gain")]
    return [
        Section("What needs attention", notices),
        Section(
            "Photon transfer",
            [
                Paragraph(
                    "The variance of Poisson electrons grows with the signal; the slope is the"
                    " gain, what is left without light the read noise. Full well is the signal at"
                    " the largest variance, a lower limit where the variance does not fall again."
                ),
                *figures,
                table,
            ],
        ),
        Section("Maps", [_draw_map(one, name, "gain (DN/e⁻)") for name, one in shown]),
    ]


def flat_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe the flat field."""
    row, maps, model = result["row"], result["overviews"], result["model"]
    notices = _attention(maps, [row], "signal")
    if row["extrapolated"]:
        text = (
            "The radial model was fitted to a part of the sensor only. What lies beyond is flagged"
            " 'extrapolated': the measured map holds there, the model need not."
        )
        notices.insert(0, Notice("warning", text))
    if row["ndf"] and row["chi2"] > 2 * row["ndf"]:
        text = (
            f"The light is not a function of the radius alone (chi2 {row['chi2']:.4g} for"
            f" {row['ndf']} degrees of freedom): uneven light, dust, or the optics. The errors of"
            " the model are scaled up; the measured map has it all."
        )
        notices.append(Notice("info", text))
    names = {name: value for name, value in row.items() if name != "pixel_flags"}
    table = TableBlock(
        columns={
            "Quantity": [FLAT_FIELD.by_name[name].title for name in names],
            "Value": [_plain(value) for value in names.values()],
        },
        caption="The flat field. prnu is the scatter of the pixels about their neighbours, less"
        " that from noise.",
    )
    return [
        Section("What needs attention", notices),
        Section(
            "Vignetting",
            [
                Paragraph(
                    "Signal = amplitude of the channel / g(r), with g(r) = 1 + k0 r² + k1 r⁴ + ..."
                    " about a free centre. The coefficients are degenerate: compare maps."
                ),
                _draw_profile(result["blocks"], model),
                _draw_residuals(result["blocks"], model),
                table,
            ],
        ),
        Section(
            "Maps",
            [
                _draw_map(maps["flatfield/signal"], "flatfield/signal", "signal (DN)"),
                _draw_map(
                    maps["flatfield/deviation"],
                    "flatfield/deviation",
                    "deviation from the neighbours",
                ),
            ],
        ),
    ]


def emva_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe a characterisation by EMVA 1288."""
    rows, points = result["rows"], result["points"]
    notices: list[Block] = []
    for row in rows:
        setting = Setting.of_row(row)
        where = f"{setting.label}: " if setting.known else ""
        if row["n_without_dark"]:
            text = f"{where}{row['n_without_dark']} bright exposures have no dark frames; left out."
            notices.append(Notice("warning", text))
        if not math.isfinite(row["quantum_efficiency"]):
            text = f"{where}photons are not known: no quantum efficiency, no thresholds in photons."
            notices.append(Notice("info", text))
        if not math.isfinite(row["prnu1288_percent"]):
            text = f"{where}no spatial stacks, bright and dark: no DSNU and PRNU."
            notices.append(Notice("info", text))
    names = [name for name in rows[0] if name not in _SETTING]
    settings = [Setting.of_row(row) for row in rows]
    labels = [one.label if one.known else "Value" for one in settings]
    columns: dict[str, Any] = {"Quantity": [EMVA.by_name[name].title for name in names]}
    for label, row in zip(labels, rows, strict=True):
        columns[label] = [_plain(row[name]) for name in names]
    figures: list[Block] = []
    for row in rows:
        mine = [one for one in points if Setting.of_row(one) == Setting.of_row(row)]
        figures += [_draw_emva_transfer(row, mine), _draw_emva_linearity(row, mine)]
    return [
        Section("What needs attention", notices or [Paragraph("Nothing.")]),
        Section(
            "EMVA 1288",
            [
                *figures,
                TableBlock(columns=columns, caption="Results by EMVA 1288, release 4.0 linear."),
            ],
        ),
        Section(
            "Maps",
            [_draw_map(one, name, "mean (DN)") for name, one in result["overviews"].items()],
        ),
    ]


def defect_sections(result: Row, tables: Tables) -> list[Section]:
    """Describe the defect pixels."""
    rows = result["rows"]
    notices: list[Block] = [
        Notice("info", f"No frames to judge by: {row['criterion']}.")
        for row in rows
        if not row["applied"]
    ]
    share = result["n_defects"] / result["n_pixels"]
    if share > MANY_FLAGGED:
        text = f"{100 * share:.1f} % of the pixels are defect: are the thresholds right?"
        notices.insert(0, Notice("warning", text))
    notices.append(
        Paragraph(f"{result['n_defects']:,} of {result['n_pixels']:,} pixels are defect.")
    )
    meanings = {flag.label: flag.meaning for flag in PixelFlag}
    meaning = [meanings.get(row["criterion"], "any of them") for row in rows]
    table = table_block(
        DEFECTS,
        tables[DEFECTS.path],
        ("criterion", "n_defects", "fraction", "Meaning"),
        "Defect pixels by what is wrong with them; some have several faults.",
        derived={"Meaning": meaning},
    )
    figure = _draw_map(
        result["overviews"]["defects/share"], "defects", "share of defect pixels", histogram=False
    )
    return [
        Section("What needs attention", notices),
        Section("Defects", [table, figure]),
    ]


# -- parts ----------------------------------------------------------------------------------------


# -- stacks and calibrated frames -----------------------------------------------------------------

_MOST_MAPS = 4
"""Stacks whose maps a report shows; all are in the product."""


def stack_sections(result: Sequence[StackRecord], tables: Tables) -> list[Section]:
    """Describe stacks of frames."""
    noise, share, notices = [], [], []
    for one in result:
        variance, n_pixels = one.variance_map.total[1], one.mean_map.n_pixels
        noise.append(math.sqrt(variance) if variance >= 0 else math.nan)
        share.append(100 * one.n_saturated / n_pixels)
        if one.n_lost:
            text = f"{one.group}: {one.n_lost} frames could not be read and are not in it."
            notices.append(Notice("warning", text))
        if len(one.names) < 2:
            notices.append(Notice("warning", f"{one.group}: one frame only, so no variance."))
        if one.n_saturated > MANY_FLAGGED * n_pixels:
            text = f"{one.group}: {share[-1]:.1f} % of the pixels are saturated at least once."
            notices.append(Notice("warning", text))
    derived = {"Temporal noise (rms) / DN": noise, "Saturated pixels / %": share}
    table = table_block(
        STACKS,
        tables[STACKS.path],
        ("group", "n_frames", "mean_dn", *derived, "n_clipped"),
        "Means over pixels that are never saturated.",
        derived=derived,
    )
    blocks: list[Block] = [table, _draw_frames(result)]
    shown: list[Block] = []
    for one in result[:_MOST_MAPS]:
        shown.append(_draw_map(one.mean_map, f"{one.group}/mean", "mean (DN)"))
        if one.variance_map.total[0]:
            shown.append(_draw_map(one.variance_map, f"{one.group}/variance", "variance (DN²)"))
    if len(result) > _MOST_MAPS:
        text = f"The first {_MOST_MAPS} of {len(result)} stacks; the product holds all of them."
        shown.insert(0, Paragraph(text))
    return [
        Section("What needs attention", notices or [Paragraph("Nothing.")]),
        Section("Stacks", blocks),
        Section("Maps", shown),
    ]


def _draw_frames(result: Sequence[StackRecord]) -> FigureBlock:
    """Draw the mean of each frame against its stack's: drifts and odd frames show."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, one in enumerate(result[:_MOST_MAPS]):
            whole = one.mean.mean()
            if whole:
                axes.plot(
                    np.arange(len(one.mean)),
                    100 * (one.mean / whole - 1),
                    color=PALETTE[number % len(PALETTE)],
                    marker="o",
                    ms=3,
                    lw=1,
                    label=one.group,
                )
        axes.set_xlabel("frame of the stack, by time")
        axes.set_ylabel("mean of the frame, difference to the stack (%)")
        axes.legend(fontsize="small")

    return draw_figure(
        paint,
        size_in=(8.5, 3.8),
        alt="Mean of each frame relative to that of its stack; the numbers are in tables.h5.",
        caption="Mean of each frame: a lamp that drifts, a cloud, or a frame that went wrong.",
    )


def calibrated_sections(
    rows: Sequence[Row],
    units: str,
    name: str,
    shown: Mapping[str, NDArray[Any]],
    tables: Tables,
) -> list[Section]:
    """Describe calibrated frames, one row for each, and show one (see `CalibratedFrames`)."""
    notices: list[Block] = []
    for row in rows:
        bad = row["n_pixels"] - row["n_good"]
        if bad > MANY_FLAGGED * row["n_pixels"]:
            why = "; ".join(
                f"{row[f'n_{flag.label}']:,} {flag.label} ({flag.meaning})"
                for flag in ImageFlag
                if row[f"n_{flag.label}"]
            )
            share = 100 * bad / row["n_pixels"]
            text = f"{row['file']}: {share:.1f} % of the pixels are flagged: {why}."
            notices.append(Notice("warning", text))
    table = _table(
        CALIBRATED,
        tables,
        " ".join(("exposure_s median mean n_good", *(f"n_{flag.label}" for flag in ImageFlag))),
        f"Means and medians are over good pixels, in {units}; then flags.",
        first="file",
    )
    return [
        Section("What needs attention", notices or [Paragraph("Nothing.")]),
        Section("Frames", [*([_draw_calibrated(name, shown, units)] if shown else []), table]),
    ]


def _draw_calibrated(name: str, shown: Mapping[str, NDArray[Any]], units: str) -> FigureBlock:
    """Draw a frame before and after calibration, and which of its pixels are flagged."""
    step = int(shown["step"][0])
    panels = (
        ("before", "raw", "DN", "viridis"),
        ("after", "calibrated", units, "viridis"),
        ("flagged", "mask", "share of flagged pixels", "Reds"),
    )

    def paint(figure: Figure) -> None:
        for axes, (key, title, label, colours) in zip(figure.subplots(1, 3), panels, strict=True):
            image = shown[key]
            finite = image[np.isfinite(image)]
            low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
            if key == "flagged":
                low, high = 0.0, 1.0
            rows, columns = image.shape
            axes.grid(visible=False)
            drawn = axes.imshow(
                image,
                cmap=colours,
                vmin=low,
                vmax=high if high > low else low + 1.0,
                extent=(0, columns * step, rows * step, 0),
                interpolation="nearest",
            )
            figure.colorbar(drawn, ax=axes, label=label, orientation="horizontal", pad=0.18)
            axes.set_title(title)
            axes.set_xlabel("column")
        figure.axes[0].set_ylabel("row")

    flagged = 100 * float(np.mean(shown["flagged"]))
    caption = (
        f"{name}, the first frame, before and after calibration, and its mask ({flagged:.2g} % of"
        f" the pixels). Means over {step} x {step} pixels; the table says which flags."
    )
    return draw_figure(
        paint, size_in=(10.5, 4.0), margins_in=(0.7, 0.3, 0.6, 0.4), alt=caption, caption=caption
    )


def _attention(maps: Mapping[str, Overview], rows: Sequence[Row], *names: str) -> list[Block]:
    """Say which maps have many flagged pixels, and where no good bias was subtracted."""
    blocks: list[Block] = []
    for name, one in maps.items():
        if name.rpartition("/")[2] in names and one.n_bad > MANY_FLAGGED * one.n_pixels:
            why = "; ".join(
                f"{number:,} {flag.label} ({flag.meaning})"
                for flag, number in one.n_flagged.items()
            )
            share = 100 * one.n_bad / one.n_pixels
            level: Any = "error" if one.n_bad == one.n_pixels else "warning"
            text = f"{name}: {share:.1f} % of the pixels are flagged: {why or 'no value'}."
            blocks.append(Notice(level, text))
    sources = {row["bias_source"] for row in rows if "bias_source" in row}
    for source in sorted(sources & set(BIAS_SOURCES[2:])):
        text = {
            "none": "No bias was subtracted: there was none. Signals include it.",
            "black level of the file": "The bias subtracted is the black level that the files"
            " state, one number for all pixels of a colour.",
        }.get(source, f"The bias subtracted is from another ISO speed ({source}).")
        blocks.append(Notice("warning", f"{text} Give the product of the job bias."))
    return blocks or [Paragraph("Nothing.")]


def _table(
    schema: TableSchema, tables: Tables, names: str, caption: str, first: str = ""
) -> TableBlock:
    """Show columns of a table, those that it has, after the ones that tell the setting."""
    table = tables[schema.path]
    wanted = (first, *_SETTING, *names.split())
    return table_block(schema, table, [one for one in wanted if one in table.colnames], caption)


def _without_repeats(maps: Mapping[str, Overview]) -> list[tuple[str, Overview]]:
    """Leave out the map of all ISO speeds where there is one speed: it is the same."""
    groups = {name.split("/")[1] for name in maps if name.count("/") == 2}
    return [(name, one) for name, one in maps.items() if name.count("/") == 2 or len(groups) > 1]


def _plain(value: Any) -> str:
    if isinstance(value, str | bool | int | np.bool_ | np.integer):
        return {"True": "yes", "False": "no"}.get(str(value), str(value))
    return "–" if not math.isfinite(value) else f"{value:.6g}"


def _probability(chi2: float, ndf: int) -> float:
    from calibdask.sensor.model import chi2_probability

    p = float(chi2_probability(chi2, ndf))
    return 1.0 if math.isnan(p) else p


def _draw_map(one: Overview, name: str, label: str, *, histogram: bool = True) -> FigureBlock:
    """Draw a map in short, and the histogram of its pixels."""
    image, sample = one.thumbnail, one.sample
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    if histogram is False:
        low, high = 0.0, float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    rows, columns = image.shape
    n, mean, std = one.total

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 2 if histogram else 1, squeeze=False, width_ratios=None)[0]
        picture: Axes = axes[0]
        picture.grid(visible=False)
        drawn = picture.imshow(
            image,
            cmap="viridis",
            vmin=low,
            vmax=high if high > low else low + 1.0,
            extent=(0, columns * one.step, rows * one.step, 0),
            interpolation="nearest",
        )
        figure.colorbar(drawn, ax=picture, label=label, shrink=0.85)
        picture.set_title(name)
        picture.set_xlabel("column")
        picture.set_ylabel("row")
        if histogram:
            _paint_histogram(axes[1], sample, label)

    caption = f"{n:,} pixels without a flag: mean {mean:.5g}, standard deviation {std:.4g}."
    if one.step > 1:
        caption += f" Means over {one.step} x {one.step} pixels; white: none without a flag."
    alt = f"Map of {name}: {label}. {caption}"
    size = (10.5, 3.6) if histogram else (6.5, 3.9)
    return draw_figure(
        paint, size_in=size, margins_in=(0.7, 0.2, 0.5, 0.4), alt=alt, caption=caption
    )


def _paint_histogram(axes: Axes, sample: NDArray[np.float64], label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("pixels")
    axes.set_title("pixels without a flag")
    if not sample.size:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
        return
    low, high = np.percentile(sample, [0.1, 99.9])
    width = (high - low) or 1.0
    edges = np.linspace(low - 0.1 * width, high + 0.1 * width, 61)
    axes.hist(np.clip(sample, edges[0], edges[-1]), bins=edges.tolist(), color=PALETTE[0])
    axes.set_yscale("log")


def _draw_iso(rows: Sequence[Row], curve: Any) -> FigureBlock:
    iso = np.array([row["iso"] for row in rows], np.float64)
    factor = np.array([row["factor"] for row in rows])
    error = np.array([row["factor_error"] for row in rows])
    line = np.linspace(iso.min(), iso.max(), 500)
    model, _ = curve(line)
    at_points, _ = curve(iso)

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        top.plot(line, model, color=PALETTE[1], label=f"curve ({curve.kind})")
        top.errorbar(iso, factor, error, fmt="o", ms=4, color=PALETTE[0], label="measured")
        top.set_xscale("log")
        top.set_yscale("log")
        top.set_ylabel("signal / lowest ISO")
        top.legend()
        bottom.axhline(0.0, color=PALETTE[1], lw=1)
        rest = 100 * (factor / at_points - 1)
        bottom.errorbar(iso, rest, 100 * error / at_points, fmt="o", ms=4, color=PALETTE[0])
        bottom.set_ylabel("difference (%)")
        bottom.set_xlabel("ISO speed")
        bottom.set_xticks(iso, [f"{one:.0f}" for one in iso])
        bottom.minorticks_off()

    return draw_figure(
        paint,
        size_in=(7.5, 4.6),
        margins_in=_MARGINS,
        alt="Signal against ISO speed, measured and fitted; the numbers are in the table.",
        caption="Signal against ISO speed, and what is left beside the curve.",
    )


def _draw_temperature(rows: Sequence[Row]) -> FigureBlock:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, setting in enumerate(sorted({Setting.of_row(row) for row in rows})):
            mine = sorted(
                (
                    row["temperature_c"],
                    row["dark_current_dn_per_s"],
                    row["dark_current_dn_per_s_error"],
                )
                for row in rows
                if Setting.of_row(row) == setting and math.isfinite(row["temperature_c"])
            )
            if mine:
                x, y, error = np.array(mine).T
                colour = PALETTE[number % len(PALETTE)]
                axes.errorbar(x, y, error, fmt="o-", ms=4, color=colour, label=setting.label)
        if any(row["dark_current_dn_per_s"] > 0 for row in rows):
            axes.set_yscale("log")
        axes.set_xlabel("temperature (°C)")
        axes.set_ylabel("dark current (DN/s)")
        axes.legend()

    return draw_figure(
        paint,
        size_in=(6.5, 3.4),
        margins_in=_MARGINS,
        alt="Dark current against temperature; the numbers are in the table.",
        caption="Dark current against temperature.",
    )


def _draw_ptc(
    rows: Sequence[Row], points: Sequence[Row], setting: Setting, step_dn: int
) -> FigureBlock:
    points = [one for one in points if Setting.of_row(one) == setting]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        for row in (row for row in rows if Setting.of_row(row) == setting):
            mine = [point for point in points if point["channel"] == row["channel"]]
            x, y, error = (
                np.array([point[name] for point in mine])
                for name in ("signal_dn", "variance_dn2", "variance_dn2_error")
            )
            used = np.array([point["used"] for point in mine], bool)
            colour = CHANNEL_COLOURS[row["channel"]]
            top.errorbar(
                x[used], y[used], error[used], fmt="o", ms=4, color=colour, label=row["channel"]
            )
            top.plot(x[~used], y[~used], "o", ms=4, mfc="white", color=colour)
            gain = row["ptc_gain_dn_per_electron"]
            if math.isfinite(gain):
                floor = row["readnoise_dn"] ** 2 + step_dn**2 / 12
                line = np.geomspace(max(x.min(), 1e-3), x.max(), 200)
                top.plot(
                    line, _curve(line, gain, floor, row["a00_per_electron"]), color=colour, lw=1
                )
                expected = _curve(x, gain, floor, row["a00_per_electron"])
                rest, rest_error = 100 * (y / expected - 1), 100 * error / expected
                shown = used if used.any() else np.ones(len(x), bool)
                # Small points and caps: the bars are to be seen where they are short.
                bottom.errorbar(
                    x[shown], rest[shown], rest_error[shown], fmt="o", ms=2, capsize=4, lw=1,
                    color=colour,
                )  # fmt: skip
            if row["full_well_reached"]:
                top.axvline(row["full_well_dn"], color=colour, ls=":", lw=1)
        if all(any(point[name] > 0 for point in points) for name in ("signal_dn", "variance_dn2")):
            top.set_xscale("log")
            top.set_yscale("log")
        top.set_ylabel("variance (DN²)")
        top.legend(ncols=4)
        bottom.axhline(0.0, color=GREY, lw=1)
        bottom.set_ylabel("difference (%)")
        bottom.set_xlabel("signal (DN)")

    where = setting.label if setting.known else "All frames"
    return draw_figure(
        paint,
        size_in=(7.5, 5.2),
        margins_in=_MARGINS,
        alt=f"{where}: variance against signal by channel; the numbers are in the tables.",
        caption=f"{where}: photon transfer. Hollow: not part of the fit; dotted: full well."
        " Below: the points of the fit beside it.",
    )


def _curve(
    signal: NDArray[np.float64], gain: float, floor: float, a00: float
) -> NDArray[np.float64]:
    electrons = signal / gain
    if not math.isfinite(a00) or a00 == 0.0:
        return gain**2 * electrons + floor
    result: NDArray[np.float64] = gain**2 * np.expm1(2 * a00 * electrons) / (2 * a00) + floor
    return result


def _profile(
    blocks: NDArray[np.float64], model: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Radius, relative signal and model of each block."""
    channel, y, x = blocks[:, 0].astype(int), blocks[:, 1], blocks[:, 2]
    amplitude = np.full(4, np.nan)
    amplitude[list(model.amplitude)] = list(model.amplitude.values())
    return np.sqrt(model.radius2(y, x)), blocks[:, 4] / amplitude[channel], 1 / model.gain(y, x)


def _draw_profile(blocks: NDArray[np.float64], model: Any) -> FigureBlock:
    radius, signal, fitted = _profile(blocks, model)
    picked = slice(None, None, max(1, len(radius) // 4000))
    order = np.argsort(radius)

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        top.plot(radius[picked], signal[picked], ".", ms=2, color=PALETTE[0], rasterized=True)
        top.plot(radius[order], fitted[order], color=PALETTE[1], label="radial model")
        top.set_ylabel("signal / centre")
        top.legend()
        rest = 100 * (signal / fitted - 1)
        bottom.plot(radius[picked], rest[picked], ".", ms=2, color=PALETTE[0], rasterized=True)
        bottom.axhline(0.0, color=PALETTE[1], lw=1)
        bottom.set_ylabel("difference (%)")
        bottom.set_xlabel("distance from the optical centre / farthest corner")

    return draw_figure(
        paint,
        size_in=(7.5, 4.8),
        margins_in=_MARGINS,
        alt="Signal of blocks of pixels against their distance from the optical centre, with the"
        " radial model.",
        caption="Vignetting: means over blocks of pixels, and the model.",
    )


def _draw_residuals(blocks: NDArray[np.float64], model: Any) -> FigureBlock:
    _, signal, fitted = _profile(blocks, model)
    rest = 100 * (signal / fitted - 1)
    finite = rest[np.isfinite(rest)]
    reach = float(np.percentile(np.abs(finite), 99)) if finite.size else 1.0
    height, width = model.shape
    # All channels of a place together, on a grid about as fine as the blocks.
    n_rows = max(1, round(math.sqrt(len(blocks) / 4 * height / width)))
    n_columns = max(1, round(n_rows * width / height))
    cell = (blocks[:, 1] * n_rows / height).astype(int) * n_columns
    cell += (blocks[:, 2] * n_columns / width).astype(int)
    good = np.isfinite(rest)
    count = np.bincount(cell[good], minlength=n_rows * n_columns)
    total = np.bincount(cell[good], rest[good], n_rows * n_columns)
    image = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(n_rows, n_columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        drawn = axes.imshow(
            image,
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        axes.plot(model.centre[0] * width, model.centre[1] * height, "+", color="black", ms=12)
        figure.colorbar(drawn, ax=axes, label="measured / model - 1 (%)", shrink=0.85)
        axes.set_xlabel("column")
        axes.set_ylabel("row")

    return draw_figure(
        paint,
        size_in=(6.5, 3.9),
        margins_in=(0.7, 0.2, 0.5, 0.3),
        alt="Map of what the radial model leaves.",
        caption="What the radial model leaves, in per cent; the cross is the optical centre.",
    )


def _columns(points: Iterable[Row], *names: str) -> list[NDArray[np.float64]]:
    rows = list(points)
    return [np.array([row[name] for row in rows], np.float64) for name in names]


def _draw_emva_transfer(row: Row, points: Sequence[Row]) -> FigureBlock:
    bright, dark, noise, dark_noise = _columns(
        points, "bright_dn", "dark_dn", "bright_variance_dn2", "dark_variance_dn2"
    )
    signal, variance = bright - dark, noise - dark_noise
    limit = 0.7 * row["saturation_dn"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        low = signal <= limit
        axes.plot(signal[low], variance[low], "o", ms=4, color=PALETTE[0], label="fitted")
        axes.plot(signal[~low], variance[~low], "o", ms=4, mfc="white", color=PALETTE[0])
        line = np.array([0.0, limit])
        axes.plot(line, row["k_dn_per_electron"] * line, color=PALETTE[1], label="K × signal")
        axes.axvline(row["saturation_dn"], color=GREY, ls=":", label="saturation")
        axes.set_xlabel("signal (DN)")
        axes.set_ylabel("variance less dark variance (DN²)")
        axes.legend()

    return draw_figure(
        paint,
        size_in=(7.5, 3.6),
        margins_in=_MARGINS,
        alt=f"Photon transfer: K = {row['k_dn_per_electron']:.5g} DN per electron.",
        caption="Photon transfer up to 70 % of saturation (filled).",
    )


def _draw_emva_linearity(row: Row, points: Sequence[Row]) -> FigureBlock:
    photons, exposure, bright, dark = _columns(
        points, "mean_photon", "exposure_s", "bright_dn", "dark_dn"
    )
    known = bool(np.isfinite(photons).all())
    light, signal = (photons if known else exposure), bright - dark
    middle = (signal >= 0.05 * row["saturation_dn"]) & (signal <= 0.95 * row["saturation_dn"])

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(light, signal, "o", ms=3, color=PALETTE[0])
        left.set_ylabel("signal (DN)")
        if middle.sum() > 1:
            from calibdask.sensor.model import fit_lines

            x, y = light[middle], signal[middle]
            line = fit_lines(x, y, 1.0 / y**2)
            fitted = line.intercept + line.slope * x
            left.plot(x, fitted, color=PALETTE[1])
            right.plot(x, 100 * (y / fitted - 1), "o-", ms=3, lw=1, color=PALETTE[0])
        right.axhline(0.0, color=GREY, lw=1)
        right.set_ylabel("deviation from linear (%)")
        for axes in (left, right):
            axes.set_xlabel("photons per pixel" if known else "exposure (s)")

    return draw_figure(
        paint,
        size_in=(10.0, 3.4),
        margins_in=_MARGINS,
        alt=f"Linearity: deviations from {row['linearity_min_percent']:.3g} to"
        f" {row['linearity_max_percent']:.3g} per cent.",
        caption="Signal against light, and its deviation from a line between 5 and 95 % of"
        " saturation.",
    )
