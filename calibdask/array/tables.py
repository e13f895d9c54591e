"""The tables that calibrations by pairs of telescopes write.

A network of pairs has a table of telescopes and, beside it, of pairs, covariance, components and,
in time bins, drift; a job adds its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from calibdask.flags import Flag
from calibdask.io.throughput import (
    INTER_CALIBRATION,
    INTER_COVARIANCE,
    TEL_ID,
    TEL_TYPE,
    TIME_BIN,
)
from calibdask.schema import Column, TableSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CONSISTENCY",
    "CONTRASTS",
    "CROSS",
    "CROSS_CALIBRATION",
    "INTER",
    "INTER_CALIBRATION",
    "MUONS",
    "RESIDUALS",
    "SCALING_FACTORS",
    "SLOPES",
    "TABLES",
    "TIMING",
    "TIMING_CALIBRATION",
    "WALK",
]

_CROSS: Final = "/dl2/monitoring/subarray/cross_calibration"


def _like(
    schema: TableSchema,
    path: str,
    description: str = "",
    changed: Mapping[str, Mapping[str, Any] | None] | None = None,
    more: tuple[Column, ...] = (),
    flags: tuple[Flag, ...] = (),
) -> TableSchema:
    """Return a schema like another: columns are changed, or left out for None, or appended."""
    changed = changed or {}
    own = schema.columns[: -1 if schema.flags else None]
    columns = (
        replace(one, **change) for one in own if (change := changed.get(one.name, {})) is not None
    )
    return TableSchema(
        path, description or schema.description, (*columns, *more), (*schema.flags, *flags)
    )


def _pairs(path: str, d: str, heading: str, unit: str = "", *more: Column) -> TableSchema:
    """Declare the table of pairs that compare `d`."""
    error = f"{d}_error"
    ratios = "log_ratio" in d
    asymmetries = (
        Column(
            "mean_asymmetry", "f8", "Mean of (x_1 - x_2)/(x_1 + x_2)", heading="Mean asymmetry",
            format="z.4f",
        ),
        Column(
            "std_asymmetry", "f8", "Standard deviation of the same", heading="Std of asymmetry",
            format=".3f",
        ),
    )  # fmt: skip
    return TableSchema(
        path,
        f"Pairs of telescopes, their {heading} and what the fit makes of it",
        (
            *TIME_BIN,
            TEL_TYPE,
            Column("tel_id_1", "i8", "Number of the first telescope", heading="i"),
            Column("tel_id_2", "i8", "Number of the second one", heading="j"),
            Column("n_events", "i8", "Events in common", heading="Events", format=",d"),
            Column("n_invalid", "i8", "Events that were left out", format=",d"),
            *(asymmetries if ratios else ()),
            Column(d, "f8", "Centre over the events", unit=unit, heading=heading, error=error),
            Column(
                error, "f8", "Standard error of the centre", unit=unit,
                heading=f"Error of {heading}",
            ),
            *more,
            Column(
                f"std_{d}", "f8", "Standard deviation over the events", unit=unit,
                heading=f"Std of {heading}", format=".3f",
            ),
            Column(
                f"model_{d}", "f8", "What the fit expects", unit=unit, heading="Model",
                error=error,
            ),
            Column("residual", "f8", "Centre less what is expected", unit=unit, error=error),
            Column("pull", "f8", "Residual over its standard deviation", format="z.2f"),
            Column("used", "?", "Whether the fit uses the pair", heading="In the fit"),
        ),
        (Flag.FEW_PAIR_EVENTS, Flag.UNMEASURED_PAIR, Flag.INVALID_EVENTS),
    )  # fmt: skip


_COMPONENT: Final = Column("component", "i8", "Number of the connected group")
_CHI2: Final = Column("chi2", "f8", "Of the fit", heading="chi2", format=".2f")
_P_VALUE: Final = Column(
    "p_value", "f8", "Probability of a larger chi2 by chance", heading="p", format=".2g"
)


def _components(path: str) -> TableSchema:
    return TableSchema(
        path,
        "Connected groups of the network of pairs, each with its own reference",
        (
            *TIME_BIN,
            replace(TEL_TYPE, description="Types of their telescopes"),
            _COMPONENT,
            Column("reference_tel_id", "i8", "Telescope that is held fixed; -1: the mean is"),
            Column("n_telescopes", "i8", "Telescopes in the group", heading="Telescopes"),
            Column("n_pairs", "i8", "Pairs in the fit", heading="Pairs", format=",d"),
            Column("n_events", "i8", "Events with such a pair", heading="Events", format=",d"),
            _CHI2,
            Column("ndf", "f8", "Degrees of freedom", heading="ndf"),
            _P_VALUE,
        ),
        (Flag.FALLBACK, Flag.DISCONNECTED, Flag.NO_ERROR),
    )


def _drift(path: str, heading: str, unit: str = "") -> TableSchema:
    return TableSchema(
        path,
        "Changes of each telescope against the others over the time bins",
        (
            TEL_TYPE,
            TEL_ID,
            Column("n_bins", "i8", "Time bins with a value and an error", heading="Bins"),
            replace(_CHI2, description="Of its values against a constant", format=".1f"),
            Column("ndf", "i8", "Degrees of freedom", heading="ndf"),
            _P_VALUE,
            Column(
                "step", "f8", "Most significant step from one time bin to the next", unit=unit,
                heading=heading, error="step_error",
            ),
            Column("step_error", "f8", "Standard error of the step", unit=unit, heading="Error"),
            Column(
                "step_sigma", "f8", "Significance of the step in standard deviations",
                heading="Sigma", format=".1f",
            ),
            Column(
                "limit_sigma", "f8", "Significance from which on a step is a jump",
                heading="Limit", format=".1f",
            ),
            Column("step_time_bin", "i8", "Time bin that the step leads to"),
        ),
        (Flag.JUMP, Flag.VARIES),
    )  # fmt: skip


def _by_path(*schemas: TableSchema) -> dict[str, TableSchema]:
    return {one.path: one for one in schemas}


# -- inter-calibration --------------------------------------------------------------------------

_SYMMETRIC: Final = Column(
    "n_symmetric", "i8", "Events in the centre: those above the thresholds either way round",
    format=",d", optional=True,
)  # fmt: skip

SLOPES: Final = TableSchema(
    f"{INTER_CALIBRATION.path}_slopes",
    "Slopes of the image size over the impact distance, d ln x / d ln d",
    (
        *TIME_BIN,
        TEL_TYPE,
        Column("distance_from", "f8", "Least mean distance of the two telescopes", unit="m"),
        Column("distance_to", "f8", "Greatest mean distance of the two telescopes", unit="m"),
        Column("kappa", "f8", "Slope", error="kappa_error"),
        Column("kappa_error", "f8", "Standard error of the slope", heading="Error"),
    ),
)

INTER: Final = _by_path(
    INTER_CALIBRATION,
    _pairs(
        f"{INTER_CALIBRATION.path}_pairs", "log_ratio", "ln ratio", "",
        Column(
            "mean_log_distance", "f8", "Mean of ln d_1 - ln d_2 of the impact distances, times the"
            " slopes", optional=True,
        ),
        _SYMMETRIC,
    ),
    INTER_COVARIANCE,
    _components(f"{INTER_CALIBRATION.path}_components"),
    SLOPES,
    _drift(f"{INTER_CALIBRATION.path}_drift", "Largest step of ln c"),
)  # fmt: skip

# -- cross-calibration --------------------------------------------------------------------------

CROSS_CALIBRATION: Final = _like(
    INTER_CALIBRATION,
    f"{_CROSS}/coefficients",
    "Throughput of the telescopes of all types on one scale",
    {"systematic": None},
    (
        Column("value_of_pairs", "f8", "Value from pairs alone, without muons", optional=True),
        Column("error_of_pairs", "f8", "Standard error of that value", optional=True),
        Column("n_rings", "i8", "Muon rings of this telescope", optional=True),
        Column("absolute", "?", "Whether muons set the scale of the value", optional=True),
    ),
    (Flag.MUONS_DISAGREE,),
)

SCALING_FACTORS: Final = TableSchema(
    f"{_CROSS}/scaling_factors",
    "Scale of each type relative to the reference type, from pairs alone",
    (
        *TIME_BIN,
        TEL_TYPE,
        Column("tel_ref", "text", "Reference type", heading="Relative to"),
        Column(
            "scaling_factor",
            "f8",
            "What makes coefficients within a type those of all types",
            error="scaling_factor_uncertainty",
        ),
        Column("scaling_factor_uncertainty", "f8", "Its standard error", heading="Error"),
        Column("tel_id", "i8", "Telescope that stands for the type; -1: all", heading="Telescope"),
        Column(
            "tel_id_ref", "i8", "The same of the reference type", heading="Of the reference type"
        ),
        Column("n_pairs", "i8", "Pairs of the two types in the fit", heading="Pairs", format=",d"),
    ),
    (Flag.FALLBACK, Flag.NO_PAIR, Flag.NO_ERROR),
)

MUONS: Final = TableSchema(
    f"{_CROSS}/muons",
    "Muon throughputs, and the values that fit them and the network best",
    (
        *TIME_BIN,
        TEL_TYPE,
        TEL_ID,
        Column(
            "muon_throughput", "f8", "Throughput from muons over the nominal one of the type",
            heading="Muons", error="muon_throughput_error",
        ),
        Column("muon_throughput_error", "f8", "Its standard error", heading="Error"),
        Column("n_rings", "i8", "Rings in it", heading="Rings", format=",d"),
        Column(
            "value", "f8", "Throughput that fits showers and muons best",
            heading="Showers and muons", error="muon_throughput_error",
        ),
        Column("residual", "f8", "ln of the muons' over that throughput", format="z.4f"),
        Column("pull", "f8", "Residual over its standard deviation", format="z.2f"),
        _COMPONENT,
    ),
)  # fmt: skip

CONSISTENCY: Final = TableSchema(
    f"{_CROSS}/consistency",
    "Agreement of the muons with the network, in each of its groups that has muons",
    (
        *TIME_BIN,
        _COMPONENT,
        replace(TEL_TYPE, description="Types of its telescopes"),
        Column("n_muons", "i8", "Telescopes with muons"),
        replace(_CHI2, description="Of the muons against the ratios of the network"),
        Column("ndf", "i8", "Degrees of freedom", heading="ndf"),
        _P_VALUE,
    ),
    (Flag.NO_ERROR,),
)

CONTRASTS: Final = TableSchema(
    f"{_CROSS}/consistency_types",
    "Muons of each type against those of all other types, in each group that has muons",
    (
        *TIME_BIN,
        _COMPONENT,
        TEL_TYPE,
        Column("n_muons", "i8", "Telescopes with muons", heading="Telescopes with muons"),
        Column(
            "contrast", "f8",
            "Mean of ln of muon over shower throughput, less that of the other types",
            error="error",
        ),
        Column("error", "f8", "Standard error of the contrast"),
        replace(_P_VALUE, description="Probability of a larger contrast by chance"),
    ),
    (Flag.MUONS_DISAGREE,),
)  # fmt: skip

CROSS: Final = _by_path(
    CROSS_CALIBRATION,
    SCALING_FACTORS,
    MUONS,
    CONSISTENCY,
    CONTRASTS,
    _pairs(f"{CROSS_CALIBRATION.path}_pairs", "log_ratio", "ln ratio", "", _SYMMETRIC),
    _like(INTER_COVARIANCE, f"{CROSS_CALIBRATION.path}_covariance"),
    _components(f"{CROSS_CALIBRATION.path}_components"),
    _drift(f"{CROSS_CALIBRATION.path}_drift", "Largest step of ln c"),
    INTER_CALIBRATION,
)

# -- timing -------------------------------------------------------------------------------------

_NS: Final = {"unit": "ns"}
_TIMING: Final = "/dl2/monitoring/subarray/timing_calibration"

TIMING_CALIBRATION: Final = _like(
    INTER_CALIBRATION,
    _TIMING,
    "Offset of each telescope's time",
    {
        "value": {
            **_NS,
            "description": "What the telescope's time reads too late: subtract it",
            "heading": "Offset",
        },
        "error": {
            **_NS,
            "description": "Statistical error, each shower counted once",
            "optional": True,
        },
        "systematic": {
            **_NS,
            "description": "Scatter of the residuals between bins of the impact distance, and the"
            " time walk",
            "format": ".3f",
        },
        "error_independent": _NS,
    },
    (
        Column(
            "error_total", "f8", "Statistical and systematic error together", unit="ns",
            heading="Total error", optional=True,
        ),
    ),
    (Flag.NO_TOTAL_ERROR,),
)  # fmt: skip

RESIDUALS: Final = TableSchema(
    f"{_TIMING}_residuals",
    "Residuals of the times against the fit, by telescope and impact distance",
    (
        *TIME_BIN,
        TEL_TYPE,
        TEL_ID,
        Column("impact_low", "f8", "Lower edge of the bin of impact distance", unit="m"),
        Column("impact_high", "f8", "Upper edge of the bin of impact distance", unit="m"),
        Column("n_events", "i8", "Events in the bin", heading="Events", format=",d"),
        Column("residual", "f8", "Mean residual", unit="ns", error="residual_error"),
        Column("residual_error", "f8", "Standard error of that mean", unit="ns", heading="Error"),
    ),
)

WALK: Final = TableSchema(
    f"{_TIMING}_walk",
    "Time walk of each type; that of other image sizes goes with 1/sqrt(size)",
    (
        *TIME_BIN,
        TEL_TYPE,
        Column(
            "time_walk", "f8", "Delay of an image of 100 photoelectrons", unit="ns", error="error"
        ),
        Column("error", "f8", "Its standard error", unit="ns"),
    ),
)

TIMING: Final = _by_path(
    TIMING_CALIBRATION,
    _pairs(f"{_TIMING}_pairs", "difference", "difference", "ns"),
    _like(
        INTER_COVARIANCE,
        f"{_TIMING}_covariance",
        "",
        {"covariance": {"unit": "ns2"}},
        (
            Column(
                "systematic_covariance", "f8", "Covariance of their systematic errors", unit="ns2"
            ),
        ),
    ),
    _components(f"{_TIMING}_components"),
    RESIDUALS,
    WALK,
    _drift(f"{_TIMING}_drift", "Largest step", "ns"),
)

TABLES: Final = (*{**INTER, **CROSS, **TIMING}.values(),)
"""All of them."""
