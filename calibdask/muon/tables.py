"""The tables that the muon jobs write."""

from __future__ import annotations

from typing import Final

from calibdask.flags import MUON_FLAGS
from calibdask.io.throughput import MUON_THROUGHPUT
from calibdask.muon.model import PROFILES
from calibdask.schema import Column, TableSchema

__all__ = [
    "LINE",
    "LINES",
    "MUON_THROUGHPUT",
    "POINTS",
    "PROFILE",
    "TABLES",
    "TREND",
    "TROUBLED",
]

_THROUGHPUT = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
_PSF = "/dl1/monitoring/telescope/optical_psf"

_TEL_ID = Column("tel_id", "i2", "Number of the telescope", heading="Telescope")
_CLIPPED = Column("n_clipped", "i8", "Rings that were clipped", heading="Clipped", format=",d")

TROUBLED: Final = {
    "n_saturated": "pixels are saturated",
    "n_noisy": "the noise is far above the pedestal",
    "n_misfit": "the model does not describe them",
}
"""Why rings were left out, by the columns that count them; ordered as `muon.rings.TROUBLED`."""

_TROUBLED = tuple(
    Column(name, "i8", f"Rings left out because {why}", optional=True)
    for name, why in TROUBLED.items()
)
"""Where rings were fitted to images only."""

TREND: Final = TableSchema(
    f"{_THROUGHPUT}_trend",
    "Throughput of each telescope and its change with time, a straight line through the bins",
    (
        _TEL_ID,
        Column("tel_description", "text", "Type of the telescope", heading="Type", width=32),
        Column("n_bins", "i8", "Bins in the line", heading="Bins"),
        Column("n_events", "i8", "Rings of all bins", heading="Rings", format=",d"),
        _CLIPPED,
        Column(
            "mean", "f8", "Weighted mean throughput: the line's value at time_mean",
            heading="Throughput", error="mean_err",
        ),
        Column("mean_err", "f8", "Standard error of the mean", heading="Error"),
        Column("slope", "f8", "Change of the throughput with time", unit="d-1", error="slope_err"),
        Column(
            "slope_err", "f8", "Standard error of the slope, from those of the bins", unit="d-1",
            heading="Slope error",
        ),
        Column("chi2", "f8", "Of the straight line", heading="chi2", format=".1f"),
        Column("ndf", "i8", "Bins in the line minus two, at least -1", heading="ndf"),
        Column("time_mean", "time", "Weighted mean time of the bins"),
        *_TROUBLED,
    ),
    MUON_FLAGS,
)  # fmt: skip

_BINNED = {
    "impact": "impact distance",
    "azimuth": "azimuth of the impact",
    "radius": "ring radius",
}

PROFILE: Final = {
    name: TableSchema(
        f"{_THROUGHPUT}_{name}",
        f"Residuals of the rings of each telescope against the {_BINNED[name]}",
        (
            _TEL_ID,
            Column(f"{name}_low", "f8", "Lower edge of the bin", unit=unit),
            Column(f"{name}_high", "f8", "Upper edge of the bin", unit=unit),
            Column("n_events", "i8", "Rings in the bin", heading="Rings", format=",d"),
            Column(
                "residual", "f8",
                "Mean efficiency over that of all rings of the same bin of time, minus 1",
                error="residual_err",
            ),
            Column("residual_err", "f8", "Standard error of the residual", heading="Error"),
        ),
    )
    for name, (unit, _) in PROFILES.items()
}  # fmt: skip

_OF_A_LINE = (
    Column(
        "slope", "f8", "Change of ring width over ring radius with the radius", unit="deg-1",
        error="slope_err",
    ),
    Column("intercept", "f8", "Width over radius at radius 0", error="intercept_err"),
    Column("slope_err", "f8", "Standard error of the slope", unit="deg-1", heading="Slope error"),
    Column("intercept_err", "f8", "Standard error of the intercept", heading="Error"),
    Column("method", "text", "Calibration method used"),
    Column("chi2", "f8", "Of the straight line, not divided by ndf", heading="chi2", format=".1f"),
    Column("time_start", "time", "Time of the first ring"),
    Column("time_end", "time", "Time of the last ring"),
    Column("obs_id", "i4", "Observation of all rings; -1: of several, see obs_ids"),
    Column("ndf", "i8", "Bins of radius minus two, at least -1", heading="ndf"),
    Column("covariance", "f8", "Of slope and intercept", unit="deg-1"),
    Column(
        "quadratic", "f8", "Coefficient of radius**2 where a parabola is fitted instead",
        unit="deg-2", heading="Curvature", error="quadratic_err",
    ),
    Column(
        "quadratic_err", "f8", "Standard error of that coefficient", unit="deg-2",
        heading="Curvature error",
    ),
    Column("n_events", "i8", "Rings in the line", heading="Rings", format=",d"),
    _CLIPPED,
    Column("bin", "i8", "Number of the time bin since the epoch"),
)  # fmt: skip

LINE: Final = TableSchema(
    f"{_PSF}/tel_{{tel_id:03d}}",
    "Optical PSF of a telescope: the line of ring width over radius, by bins of time",
    _OF_A_LINE,
    MUON_FLAGS,
)
LINES: Final = TableSchema(
    f"{_PSF}_overview",
    "Optical PSF of all telescopes: lines of ring width over radius, by bins of time",
    (_TEL_ID, *_OF_A_LINE, *_TROUBLED),
    MUON_FLAGS,
)
POINTS: Final = TableSchema(
    f"{_PSF}_bins",
    "The points that the lines are fitted to: means over rings in bins of radius",
    (
        _TEL_ID,
        Column("bin", "i8", "Number of the time bin since the epoch"),
        Column("radius_low", "f8", "Lower edge of the bin of radius", unit="deg"),
        Column("radius_high", "f8", "Upper edge of the bin of radius", unit="deg"),
        Column("radius", "f8", "Mean ring radius in the bin", unit="deg"),
        Column(
            "ratio", "f8", "Mean ring width over ring radius", heading="Width / radius",
            error="ratio_err",
        ),
        Column("ratio_err", "f8", "Standard error of that mean", heading="Error"),
        Column("residual", "f8", "Ratio minus the line", heading="Off the line", format=".2g"),
        Column("n_events", "i8", "Rings in the mean", heading="Rings", format=",d"),
        _CLIPPED,
        Column("used", "?", "Whether the line was fitted to it"),
    ),
)  # fmt: skip

TABLES: Final = (TREND, MUON_THROUGHPUT, *PROFILE.values(), LINES, LINE, POINTS)
"""All of them."""
