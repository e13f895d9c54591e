"""The tables that the sensor jobs write, and how they are made of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.flags import ImageFlag
from calibdask.schema import Column, TableSchema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable

    from calibdask.sensor.overview import Overview
    from calibdask.sensor.tiles import SensorFacts

    type Row = Mapping[str, Any]

__all__ = [
    "AMPLIFIERS",
    "BIAS",
    "CALIBRATED",
    "CURVE",
    "DARK_CURRENT",
    "DEFECTS",
    "DEFECT_PIXELS",
    "EMVA",
    "EMVA_POINTS",
    "FLAT_FIELD",
    "FLAT_MODEL",
    "FRAMES",
    "GAIN",
    "ISO_CURVE",
    "ISO_FACTORS",
    "MONOCHROME",
    "READ_NOISE",
    "STACKS",
    "TABLES",
    "TEMPERATURE",
    "build",
    "channel_names",
    "count_columns",
]

MONOCHROME: Final = "mono"
"""Name of the one channel of a sensor without filters."""

_COLOURS: Final = ("R", "G", "B", "G2")


def channel_names(sensor: SensorFacts) -> tuple[str, ...]:
    """Name the channels of a sensor in LibRaw's numbering."""
    return _COLOURS if sensor.pattern else (MONOCHROME,)


def count_columns(overview: Overview) -> dict[str, int | str]:
    """Describe how many pixels a map has, how many are flagged, and why."""
    why = ", ".join(f"{flag.label}: {number}" for flag, number in overview.n_flagged.items())
    return {
        "n_pixels": overview.n_pixels,
        "n_flagged": overview.n_bad,
        "pixel_flags": why or "none",
    }


def build(schema: TableSchema, sensor: SensorFacts, rows: Sequence[Row]) -> QTable:
    """Make a table of rows, with the sensor and the dates where the schema has them.

    Parameters
    ----------
    schema : TableSchema
        What it is.
    sensor : SensorFacts
        Which sensor, and when.
    rows : sequence of mapping
        Equal keys: the other columns, in the units of the schema.

    Returns
    -------
    QTable
    """
    names = rows[0] if rows else [one.name for one in schema.columns if not one.optional]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
    if _SENSOR[0] in schema.columns:
        facts = (sensor.camera, sensor.first, sensor.last)
        for column, fact in zip(_SENSOR, facts, strict=True):
            columns[column.name] = [fact or "unknown"] * len(rows)
    if not rows:
        kinds = {name: schema.by_name[name].kind for name in columns}
        columns = {name: np.empty(0, "U1" if k == "text" else k) for name, k in kinds.items()}
    return schema.build(columns)


def _with_error(
    name: str, description: str, *, unit: str = "", heading: str = "", error: str = ""
) -> tuple[Column, Column]:
    """Return the columns of a value and its standard error."""
    heading = heading or name.replace("_", " ").capitalize()
    of_error = error or "Its standard error"
    return (
        Column(name, "f8", description, unit=unit, heading=heading, error=f"{name}_error"),
        Column(f"{name}_error", "f8", of_error, unit=unit, heading=f"{heading}, error"),
    )


_SENSOR = (
    Column("camera", "text", "Make and model of the camera", width=32),
    Column("first_frame", "text", "Time of the first frame of the run, ISO 8601", width=32),
    Column("last_frame", "text", "Time of the last frame of the run, ISO 8601", width=32),
)
_ISO = Column("iso", "i8", "ISO speed; -1: not known", heading="ISO")
_SETTING = (
    _ISO,
    Column("gain_setting", "f8", "Gain as the driver counts it", optional=True),
    Column("offset_setting", "f8", "Offset as the driver counts it", optional=True),
    Column("readout_mode", "text", "Mode of the readout", optional=True),
)
_N_FRAMES = Column("n_frames", "i8", "Number of frames", heading="Frames")
_BIAS_SOURCE = Column(
    "bias_source", "text", "Where the bias that was subtracted is from",
    heading="Bias from", width=24,
)  # fmt: skip
_COUNTS = (
    Column("n_pixels", "i8", "Pixels of the map that light falls on", heading="Pixels"),
    Column("n_flagged", "i8", "Pixels with a flag, or without a value", heading="Flagged pixels"),
    Column(
        "pixel_flags", "text", "How many pixels have each flag; 'none' where no pixel has any",
        heading="Flags", width=64,
    ),
)  # fmt: skip
_CHI2 = (
    Column("chi2", "f8", "Of the fit", heading="chi2"),
    Column("ndf", "i8", "Degrees of freedom of the fit", heading="ndf"),
)
_CHANNEL = Column("channel", "text", "Colour channel: R, G, B, G2 or mono", width=4)

_NOISE = (
    *_with_error(
        "readnoise_dn",
        "Root mean square over good pixels of the read noise, without rounding (1/12 DN^2)",
        unit="DN",
        heading="Read noise (rms)",
    ),
    *_COUNTS,
)

BIAS: Final = TableSchema(
    "/sensor/bias",
    "Bias and read noise at each setting of the camera",
    (
        *_SENSOR, *_SETTING, _N_FRAMES,
        *_with_error(
            "bias_dn", "Mean over good pixels", unit="DN", heading="Bias",
            error="Standard error of that mean, from the scatter of the pixels",
        ),
        Column(
            "fixed_pattern_dn", "f8",
            "Standard deviation of the pixels' bias, less what noise leaves", unit="DN",
            heading="Fixed pattern (rms)",
        ),
        *_NOISE,
    ),
)  # fmt: skip

READ_NOISE: Final = TableSchema(
    "/sensor/readnoise",
    "Read noise at each setting of the camera",
    (*_SENSOR, *_SETTING, _N_FRAMES, *_NOISE),
)

ISO_FACTORS: Final = TableSchema(
    "/sensor/iso_normalisation",
    "Signal at each ISO speed relative to the lowest one",
    (
        *_SENSOR, _ISO,
        *_with_error(
            "factor", "Signal relative to the lowest ISO speed, as measured",
            error="Its standard error; the lowest speed is 1 by definition",
        ),
        *_with_error("model", "The same from the curve", heading="Curve"),
        Column("signal_dn", "f8", "Mean signal of the pixels used", unit="DN", heading="Signal"),
        Column(
            "n_used", "i8", "Pixels used: good at this and at the lowest ISO speed",
            heading="Pixels used",
        ),
        _N_FRAMES, _BIAS_SOURCE, *_COUNTS,
    ),
)  # fmt: skip

ISO_CURVE: Final = TableSchema(
    "/sensor/iso_curve",
    "The curve through the factors of the ISO speeds",
    (
        *_SENSOR,
        Column(
            "kind", "text",
            "Form of factor = 1 + slope (min(ISO, knee) - iso_min): knee, or linear for no knee",
        ),
        *_with_error("slope", "Slope of the curve per unit of ISO speed"),
        *_with_error("knee", "ISO speed from which the factor is constant"),
        Column("covariance", "f8", "Of slope and knee"),
        Column("iso_min", "i8", "Lowest ISO speed"),
        *_CHI2,
        Column(
            "p_value", "f8",
            "Of chi2; where it is small the camera follows neither model: use the table",
            heading="p",
        ),
        Column("bic_linear", "f8", "Bayesian information criterion of the line"),
        Column("bic_knee", "f8", "Bayesian information criterion of the knee"),
    ),
)  # fmt: skip

DARK_CURRENT: Final = TableSchema(
    "/sensor/dark_current",
    "Dark current at each setting of the camera and temperature",
    (
        *_SENSOR, *_SETTING,
        Column("temperature_c", "f8", "Temperature", unit="deg_C", heading="Temperature"),
        Column("n_exposures", "i8", "Number of exposure times", heading="Exposures"),
        Column("shortest_s", "f8", "Shortest exposure", unit="s", heading="Shortest"),
        Column("longest_s", "f8", "Longest exposure", unit="s", heading="Longest"),
        _N_FRAMES,
        *_with_error(
            "dark_current_dn_per_s", "Mean over pixels without a flag", unit="DN / s",
            heading="Dark current",
        ),
        Column(
            "scatter_dn_per_s", "f8", "Standard deviation over pixels without a flag",
            unit="DN / s", heading="Scatter",
        ),
        Column(
            "dark_current_with_hot_dn_per_s", "f8", "Mean over all pixels that have a value",
            unit="DN / s", heading="With hot pixels",
        ),
        Column("n_hot", "i8", "Hot pixels", heading="Hot pixels"),
        Column(
            "offset_minus_bias_dn", "f8", "Mean of the signal at no exposure less the bias",
            unit="DN", heading="Offset - bias",
        ),
        Column(
            "offset_pull_rms", "f8", "Root mean square of it in standard errors: 1 if all is well",
            heading="Pull rms",
        ),
        _BIAS_SOURCE,
        Column("chi2_per_ndf", "f8", "Of the lines of pixels without a flag"),
        *_COUNTS,
    ),
)  # fmt: skip

TEMPERATURE: Final = TableSchema(
    "/sensor/dark_current_temperature",
    "The law of the dark current with temperature at each setting of the camera",
    (
        *_SENSOR, *_SETTING,
        *_with_error(
            "doubling_k", "Temperature difference that doubles the dark current", unit="K",
            heading="Doubles every",
        ),
        *_with_error(
            "activation_energy_ev", "E of the Arrhenius law exp(-E/kT)", unit="eV",
            heading="Arrhenius energy",
        ),
        Column("reference_c", "f8", "Reference temperature", unit="deg_C"),
        *_with_error(
            "rate_dn_per_s",
            "Dark current at the reference temperature, by the better of both laws",
            unit="DN / s",
        ),
        Column("chi2_doubling", "f8", "Of the law of doubling", heading="chi2 doubling"),
        Column("chi2_arrhenius", "f8", "Of the Arrhenius law", heading="chi2 Arrhenius"),
        Column("ndf", "i8", "Degrees of freedom of each law", heading="ndf"),

    ),
)  # fmt: skip

_GAIN = _with_error(
    "gain_dn_per_electron", "Mean of the good pixels' gains", unit="DN / electron",
    heading="Gain, pixels",
)  # fmt: skip

GAIN: Final = TableSchema(
    "/sensor/gain",
    "Gain, read noise and full well of each channel at each setting of the camera",
    (
        *_SENSOR, *_SETTING, _CHANNEL,
        Column("n_levels", "i8", "Number of levels of light"),
        _N_FRAMES,
        *_GAIN,
        Column(
            "gain_scatter_dn_per_electron", "f8",
            "Scatter of the good pixels' gains, less that from noise", unit="DN / electron",
            heading="Scatter",
        ),
        *_with_error(
            "ptc_gain_dn_per_electron",
            "Slope of the channel's curve: where pixels differ, larger than the mean by the square"
            " of their relative scatter",
            unit="DN / electron", heading="Gain, curve",
        ),
        Column("readnoise_dn", "f8", "From the curve at no light, without rounding", unit="DN"),
        Column(
            "readnoise_electron", "f8", "From the curve at no light, without rounding",
            unit="electron", heading="Read noise",
        ),
        Column(
            "full_well_dn", "f8", "Signal at the largest variance; a lower limit unless reached",
            unit="DN",
        ),
        Column(
            "full_well_electron", "f8",
            "Signal at the largest variance; a lower limit unless reached", unit="electron",
            heading="Full well",
        ),
        Column("full_well_reached", "?", "Whether the variance falls again", heading="Reached"),
        *_with_error(
            "a00_per_electron", "Brighter-fatter effect (Astier et al. 2019, eq. 16)",
            unit="electron-1", heading="a00",
        ),
        *_CHI2,
        Column("p_value", "f8", "Of chi2", heading="p"),
        _BIAS_SOURCE, *_COUNTS,
    ),
)  # fmt: skip

CURVE: Final = TableSchema(
    "/sensor/gain_curve",
    "The points of the photon transfer curves",
    (
        *_SENSOR, *_SETTING, _CHANNEL,
        Column("signal_dn", "f8", "Mean signal above the bias", unit="DN"),
        *_with_error("variance_dn2", "Mean temporal variance of the pixels", unit="DN2"),
        Column("n_used", "i8", "Pixels used"),
        Column("used", "?", "Whether it is part of the fit"),
    ),
)  # fmt: skip

AMPLIFIERS: Final = TableSchema(
    "/sensor/gain_amplifiers",
    "Gain of each amplifier, where the gain jumps between columns or rows",
    (
        *_SENSOR, *_SETTING,
        Column("along", "text", "Whether first and last count columns or rows of the frame"),
        Column("first", "i8", "First column or row"),
        Column("last", "i8", "Last column or row"),
        _CHANNEL,
        Column("n_used", "i8", "Pixels used"),
        *_GAIN,
    ),
)  # fmt: skip

FLAT_FIELD: Final = TableSchema(
    "/sensor/flatfield",
    "Signal, response of the pixels and vignetting",
    (
        *_SENSOR, _N_FRAMES,
        Column("n_stacks", "i8", "Number of stacks", heading="Stacks"),
        *(
            column
            for name in (*_COLOURS, MONOCHROME)
            for column in (
                Column(
                    f"signal_{name}_dn", "f8",
                    f"Signal of channel {name} in the optical centre, summed over the stacks",
                    unit="DN", heading=f"Signal {name}", optional=True,
                ),
                Column(
                    f"prnu_{name}_percent", "f8",
                    f"Scatter of the pixels of channel {name} about their neighbours, less that"
                    " from noise",
                    unit="%", heading=f"PRNU {name}", optional=True,
                ),
            )
        ),
        *_with_error("centre_x", "Optical centre as a fraction of the width", heading="Centre x"),
        *_with_error("centre_y", "Optical centre as a fraction of the height", heading="Centre y"),
        Column(
            "largest_correction", "f8", "Factor by which the model corrects the worst corner"
        ),
        Column("extrapolated", "?", "Whether some pixels lie beyond what was fitted"),
        Column(
            "chi2", "f8", "Of the block means; structure in the light makes it large",
            heading="chi2",
        ),
        Column("ndf", "i8", "Degrees of freedom of the fit", heading="ndf"),
        _BIAS_SOURCE, *_COUNTS,
    ),
)  # fmt: skip

FLAT_MODEL: Final = TableSchema(
    "/sensor/flatfield_model",
    "Parameters of the radial model: signal = amplitude/g, g = 1 + k0 r^2 + k1 r^4 + ..., r in"
    " units of the distance from the centre to the farthest corner",
    (
        *_SENSOR,
        Column("parameter", "text", "Name of the parameter"),
        *_with_error("value", "Strongly degenerate: compare maps, never coefficients"),
    ),
)

EMVA: Final = TableSchema(
    "/sensor/emva1288",
    "Results by EMVA 1288, release 4.0 linear, at each setting of the camera",
    (
        *_SENSOR, *_SETTING,
        Column("n_exposures", "i8", "Exposures with light", heading="Exposures"),
        Column(
            "n_without_dark", "i8", "Bright exposures left out for want of dark frames",
            heading="Exposures without dark",
        ),
        *_with_error(
            "k_dn_per_electron", "Overall system gain (eq. 14)", unit="DN / electron", heading="K"
        ),
        *_with_error(
            "responsivity_dn_per_photon", "Responsivity R (eq. 13)", unit="DN / ph",
            heading="Responsivity",
        ),
        *_with_error("quantum_efficiency", "R/K (eq. 15)"),
        *(
            Column(name, "f8", description, unit=unit, heading=heading)
            for name, unit, heading, description in (
                ("sigma_y_dark_dn", "DN", "Dark noise",
                 "Temporal noise without light, with rounding"),
                ("sigma_d_electron", "electron", "Dark noise", "Dark temporal noise (eq. 17)"),
                ("saturation_dn", "DN", "Saturation", "Signal at saturation (sec. 6.7)"),
                ("saturation_photon", "ph", "Saturation", "Photons at saturation (sec. 6.7)"),
                ("saturation_electron", "electron", "Saturation", "Saturation capacity (sec. 6.7)"),
                ("threshold_photon", "ph", "Threshold",
                 "Absolute sensitivity threshold (sec. 6.8)"),
                ("threshold_electron", "electron", "Threshold",
                 "Absolute sensitivity threshold (sec. 6.8)"),
                ("dynamic_range", "", "Dynamic range", "Saturation over threshold"),
                ("snr_max", "", "Greatest SNR", "Greatest signal-to-noise ratio"),
                ("linearity_min_percent", "%", "Linearity, least",
                 "Smallest deviation from the line (sec. 6.10)"),
                ("linearity_max_percent", "%", "Linearity, greatest",
                 "Largest deviation from the line (sec. 6.10)"),
                ("linearity_mean_percent", "%", "Linearity, mean",
                 "Mean absolute deviation from the line (sec. 6.10)"),
                ("dark_current_mean_dn_per_s", "DN / s", "Dark current", "From the mean"),
                ("dark_current_mean_electron_per_s", "electron / s", "Dark current",
                 "From the mean (eq. 29)"),
                ("dark_current_variance_electron_per_s", "electron / s",
                 "Dark current, from variance", "From the variance (eq. 30)"),
                ("s2_y_dark_dn2", "DN2", "Spatial variance, dark", "Without light (eq. 32)"),
                ("s2_y_bright_dn2", "DN2", "Spatial variance, bright", "With light (eq. 32)"),
                ("dsnu1288_electron", "electron", "DSNU1288",
                 "Dark signal nonuniformity (eq. 41)"),
                ("prnu1288_percent", "%", "PRNU1288", "Photo response nonuniformity (eq. 41)"),
            )
        ),
        *(
            Column(
                f"s2_{light}_{part}_dn2", "f8", f"Spatial variance of each {part}, {light} stack"
                " (sec. 8.2)",
                unit="DN2", heading=f"Spatial variance, {light}, {part}",
            )
            for light in ("bright", "dark")
            for part in ("column", "pixel", "row")
        ),
    ),
)  # fmt: skip

EMVA_POINTS: Final = TableSchema(
    "/sensor/emva1288_points",
    "The photon transfer series of EMVA 1288",
    (
        *_SENSOR, *_SETTING,
        Column("exposure_s", "f8", "Exposure", unit="s"),
        Column("mean_photon", "f8", "Mean photons per pixel", unit="ph"),
        *(
            Column(f"{light}{what}_{unit.lower()}", "f8", f"{meaning}, {light} pair", unit=unit)
            for light in ("bright", "dark")
            for what, unit, meaning in (
                ("", "DN", "Mean"), ("_variance", "DN2", "Temporal variance"),
            )
        ),
    ),
)  # fmt: skip

DEFECTS: Final = TableSchema(
    "/sensor/defects",
    "Number of defect pixels by what is wrong with them; some have several faults",
    (
        *_SENSOR,
        Column("criterion", "text", "Flag of the pixels; any: pixels with any of the flags"),
        Column("applied", "?", "Whether there were frames for this criterion"),
        Column("n_defects", "i8", "Number of pixels", heading="Pixels"),
        Column("fraction", "f8", "Fraction of all pixels"),
    ),
)

DEFECT_PIXELS: Final = TableSchema(
    "/sensor/defect_pixels",
    "Defect pixels one by one, at most 2000 of a tile",
    (
        *_SENSOR,
        Column("row", "i8", "Row of the frame, from 0"),
        Column("column", "i8", "Column of the frame, from 0"),
        Column("channel", "i8", "Colour channel: 0 R, 1 G, 2 B, 3 second G"),
        Column("mask", "i8", "Bits of its flags, as in the map"),
        Column("why", "text", "The mask in words", width=64),
    ),
)

_GROUP = Column("group", "text", "Name of the stack's maps", heading="Stack", width=48)

STACKS: Final = TableSchema(
    "/sensor/stacks",
    "Stacks of frames",
    (
        *_SENSOR, _GROUP,
        Column("kind", "text", "What its frames were taken for"),
        *_SETTING,
        Column("exposure_s", "f8", "Exposure", unit="s"),
        Column("illumination", "text", "Level of light; none where it has no name"),
        _N_FRAMES,
        Column("n_lost", "i8", "Frames that could not be read"),
        Column(
            "mean_dn", "f8", "Mean over pixels that are never saturated", unit="DN", heading="Mean"
        ),
        Column(
            "variance_dn2", "f8", "Mean variance of pixels that are never saturated", unit="DN2",
            heading="Variance",
        ),
        Column("n_clipped", "i8", "Values left out as outliers", heading="Values left out"),
        Column(
            "n_saturated", "i8", "Pixels that are saturated at least once",
            heading="Saturated pixels",
        ),
        *_COUNTS,
    ),
)  # fmt: skip

_IDENTITY = Column("identity", "text", "Identity of the frame's content")
_INDEX = Column("index", "i8", "Place of the frame in its file, from 0")
_TIME = Column("time", "text", "When the frame was taken, ISO 8601", width=32)

FRAMES: Final = TableSchema(
    "/sensor/frames",
    "The frames of the stacks",
    (
        _GROUP, _IDENTITY, _INDEX, _TIME,
        Column("mean_dn", "f8", "Mean over all pixels", unit="DN"),
        Column("n_clipped", "i8", "Pixels left out as outliers"),
    ),
)  # fmt: skip

CALIBRATED: Final = TableSchema(
    "/sensor/calibrated",
    "Calibrated frames",
    (
        *_SENSOR,
        Column("file", "text", "Name of the input", heading="Frame", width=48),
        _IDENTITY, _INDEX, _TIME, _ISO,
        Column("exposure_s", "f8", "Exposure", unit="s", heading="Exposure"),
        Column("mean", "f8", "Over good pixels, in the unit of the calibrated frame"),
        Column("median", "f8", "Over good pixels, in the unit of the calibrated frame"),
        Column("n_pixels", "i8", "Pixels that light falls on"),
        Column("n_good", "i8", "Pixels without a flag", heading="Good pixels"),
        *(
            Column(
                f"n_{flag.label}", "i8", f"Pixels: {flag.meaning}", heading=flag.label.capitalize()
            )
            for flag in ImageFlag
        ),
    ),
)  # fmt: skip

TABLES: Final = (
    STACKS, FRAMES, BIAS, READ_NOISE, ISO_FACTORS, ISO_CURVE, DARK_CURRENT, TEMPERATURE, GAIN,
    CURVE, AMPLIFIERS, FLAT_FIELD, FLAT_MODEL, DEFECTS, DEFECT_PIXELS, EMVA, EMVA_POINTS,
    CALIBRATED,
)  # fmt: skip
"""All of them."""
