"""Options of the array calibrations: the YAML sections that users have, resolved for the jobs.

The sections have the names, options and types that the observatory's documented configurations
use. Where the same section may stand in several places, the innermost one counts; for the
selection of telescope-events that is, in order: ``QualityQuery`` in the ``EventPreprocessor`` of
the ``Calculate...`` section, in the ``Calculate...`` section itself, in the ``EventPreprocessor``
at top level, at top level. (ctao-calibpipe 0.8.0 ignores the second of these, the documented one:
it then selects everything, and says nothing.)
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from calibdask.config import (
    ENGINE_SECTIONS,
    Campaign,
    Configuration,
    JobSection,
    Section,
    caseless,
    load_config,
    read_with,
)
from calibdask.errors import ConfigError
from calibdask.select import (
    QualityCriteria,
    TelescopePatterns,
    compile_criteria,
    finite_number,
    quote_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "JOB_SECTIONS",
    "SECTIONS",
    "ArrayConfig",
    "AsymmetryOptions",
    "CalculateCrossCalibration",
    "CalculateEnergyAsymmetry",
    "CalculateImageAsymmetry",
    "CalculateInterCalibration",
    "CalculateTimingCalibration",
    "CrossCalibrationOptions",
    "EnergyAsymmetryOptions",
    "EnergyEventFilters",
    "EventPreprocessor",
    "ImageAsymmetryOptions",
    "ImageEventFilters",
    "InterCalibrationOptions",
    "PairFinder",
    "QualityQuery",
    "ReferenceTelescopes",
    "RelativeThroughputFitter",
    "ThroughputNormalisation",
    "TimingCalibrationOptions",
    "TimingEventFilters",
    "load_array_config",
    "resolve",
]

type Estimator = Literal["log-mean", "log-median", "log-clipped", "asymmetry"]
type Normalisation = Literal["reference", "weighted-mean"]
type AsymmetryLabel = Literal["energy_asymmetry", "image_asymmetry"]
type ArrivalTime = Literal["trigger", "peak_time_mean", "timing_intercept"]
type Front = Literal["spherical", "plane"]
type RemovedDelay = Literal["none", "pointing"]
type HeightZero = Literal["sea-level", "ground"]
type TimingEstimator = Literal["mean", "median", "clipped"]


# -- reading values -----------------------------------------------------------------------------


def _quantity(unit: str) -> Callable[[object], float]:
    """Reader of a non-negative number in ``unit``, or of text such as "50 GeV"."""

    def read(value: object) -> float:
        if not isinstance(value, str):
            number = finite_number(value)
        else:
            from astropy import units as u

            try:
                quantity = u.Quantity(value)
                number = float(quantity.to_value(unit))
            except (TypeError, ValueError):
                raise ConfigError(
                    f"{value!r} is not a quantity that can be converted to {unit}: write a number "
                    f"in {unit}, or number and unit such as '1.5 {unit}'"
                ) from None
        if number < 0.0 or not math.isfinite(number):
            raise ConfigError(f"{value!r} is negative or not finite")
        return number

    return read


def _between(low: float, high: float) -> Callable[[object], float]:
    """Reader of a number in [low, high]."""

    def read(value: object) -> float:
        number = finite_number(value)
        if not low <= number <= high:
            limit = f"between {low} and {high}" if math.isfinite(high) else f"of at least {low}"
            raise ConfigError(f"{value!r} was given, expected is a number {limit}")
        return number

    return read


def _positive(value: object) -> float:
    number = finite_number(value)
    if number <= 0.0:
        raise ConfigError(f"{value!r} was given, expected is a number above 0")
    return number


def _two_numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"{value!r} was given, expected are two numbers [p0, p1]")
    return tuple(finite_number(number) for number in value)


def _rising(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) < 3:
        raise ConfigError(f"{value!r} was given, expected are at least three rising numbers")
    numbers = tuple(finite_number(number) for number in value)
    if numbers[0] < 0 or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ConfigError(f"{value!r} does not rise, or begins below 0")
    return numbers


def _patterns(read_value: Callable[[object], float | tuple[float, ...]]) -> Any:
    return read_with(lambda value: TelescopePatterns.parse(value, read_value))


def _criterion(value: object) -> tuple[str, str]:
    match value:
        case [str(name), str(expression)]:
            try:
                return compile_criteria([(name, expression)]).pairs[0]
            except ConfigError:
                # Whether a-b is the name of an algorithm, all sections together tell later.
                quoted = re.sub(r"(?<![\w`-])[A-Za-z_]\w*(?:-\w+)+", r"`\g<0>`", expression)
                if quoted == expression:
                    raise
                return compile_criteria([(name, quoted)]).pairs[0]
    raise ConfigError(
        f'{value!r} is not a criterion such as ["gammaness", "RandomForestClassifier_tel_prediction'
        ' > 0.5"]: a name and an expression, both in quotes'
    )


def _criteria(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{value!r} is not a list of criteria [name, expression]")
    problems, pairs = [], []
    for number, entry in enumerate(value):
        try:
            pairs.append(_criterion(entry))
        except ConfigError as error:
            problems.append(f"entry {number + 1}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    # With names as they may be quoted it is checked; the text stays as given, to be quoted later.
    checked = compile_criteria(pairs).pairs
    return tuple(
        (name, checked[i][1] if "`" not in checked[i][1] else value[i][1])
        for i, (name, _) in enumerate(checked)
    )


def _algorithm(value: object) -> str:
    # It becomes part of the names of columns and tables.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", value):
        raise ConfigError(
            f"{value!r} is not the name of a reconstruction algorithm such as RandomForestRegressor"
        )
    return value


_EVENT_TYPES = {
    "FLATFIELD": 0,
    "SINGLE_PE": 1,
    "PEDESTAL": 2,
    "DARK_PEDESTAL": 3,
    "ELECTRONIC_PEDESTAL": 4,
    "SKY_PEDESTAL": 5,
    "OTHER_CALIBRATION": 15,
    "MUON": 16,
    "HARDWARE_STEREO": 17,
    "RANDOM_MONO": 18,
    "DAQ": 24,
    "SUBARRAY": 32,
    "LONG_EVENT": 33,
    "UNKNOWN": 255,
}
"""As in ctapipe.containers.EventType, 0.32."""


def _event_types(value: object) -> tuple[int, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    found = []
    for one in listed:
        number = _EVENT_TYPES.get(one.upper()) if isinstance(one, str) else one
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 255:
            raise ConfigError(
                f"{one!r} is not a type of events: expected is a number, or one of"
                f" {', '.join(_EVENT_TYPES)}"
            )
        found.append(number)
    return tuple(sorted(set(found)))


def _tel_id(value: object) -> int:
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{value!r} is not a telescope number such as 5")
    return int(text)


type _Algorithm = Annotated[str, read_with(_algorithm)]
type _TelId = Annotated[int, read_with(_tel_id)]


# -- sections -----------------------------------------------------------------------------------


class QualityQuery(Section):
    """Selects telescope-events by expressions on the columns of the input tables.

    May also stand inside a Calculate... section or its EventPreprocessor, and counts there alone.
    """

    quality_criteria: Annotated[tuple[tuple[str, str], ...], read_with(_criteria)] = Field(
        default=(),
        description="List of [name, expression]. A telescope-event is used if all expressions are "
        "true, for instance ['energy threshold', 'RandomForestRegressor_tel_energy > 50 * u.GeV'].",
    )


class EventPreprocessor(Section):
    """Holds the selection of telescope-events, as ctapipe's configurations may have it."""

    hints: ClassVar[Mapping[str, str]] = {
        "features": "leave it out: the job knows which columns it needs",
        "FeatureGenerator": "no columns are generated here: write the formula into the quality "
        "criterion",
    }

    energy_reconstructor: _Algorithm | None = Field(
        default=None,
        description="If given, the same as in the Calculate... section.",
        examples=["RandomForestRegressor"],
    )
    geometry_reconstructor: _Algorithm | None = Field(
        default=None,
        description="If given, the same as in the Calculate... section.",
        examples=["HillasReconstructor"],
    )
    gammaness_reconstructor: _Algorithm | None = Field(
        default=None,
        description="If given, the same as in the Calculate... section.",
        examples=["RandomForestClassifier"],
    )
    feature_set: Annotated[Literal["custom"], caseless("custom")] = Field(
        default="custom",
        description="Other feature sets bring criteria of their own and are refused.",
    )
    quality_query: QualityQuery | None = Field(
        default=None,
        alias="QualityQuery",
        description="Counts instead of QualityQuery further out.",
    )


class PairFinder(Section):
    """Decides which telescopes form a pair; both are of one type."""

    max_impact_distance: Annotated[TelescopePatterns, _patterns(_quantity("m"))] = Field(
        default=TelescopePatterns(
            (("type", "LST*", 125.0), ("type", "MST*", 125.0), ("type", "SST*", 225.0))
        ),
        description="Two telescopes are a pair if they are no further apart than the sum of their "
        "two values. One number, or a list of [type, pattern, value] and [id, number, value], of "
        "which the last match counts.",
        json_schema_extra={"unit": "m"},
    )


class EnergyEventFilters(Section):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    max_distance_asymmetry: Annotated[TelescopePatterns, _patterns(_positive)] | None = Field(
        default=None,
        description="Largest |d1 - d2| / (d1 + d2) of the two impact distances.",
        examples=[0.05],
    )
    min_gammaness: Annotated[TelescopePatterns, _patterns(_between(0.0, 1.0))] | None = Field(
        default=None, description="Smallest gammaness, reached in both telescopes.", examples=[0.5]
    )
    min_energy: Annotated[TelescopePatterns, _patterns(_quantity("TeV"))] | None = Field(
        default=None,
        description="Smallest energy, reached in both telescopes: a number in TeV, or number and "
        "unit.",
        examples=["50 GeV"],
        json_schema_extra={"unit": "TeV"},
    )


class ImageEventFilters(Section):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    minimum_individual_intensity: (
        Annotated[TelescopePatterns, _patterns(_between(0.0, math.inf))] | None
    ) = Field(
        default=None,
        description="Smallest image size, reached in both telescopes.",
        examples=[80.0],
        json_schema_extra={"unit": "photoelectrons"},
    )
    equidistant_event_selection: Annotated[TelescopePatterns, _patterns(_two_numbers)] | None = (
        Field(
            default=None,
            description="[p0, p1]: the asymmetry of the impact distances stays below "
            "p0 + p1 cos(altitude) (Mitchell, PhD thesis 2016, eq. 4.2.2).",
            examples=[[0.05, 0.1]],
        )
    )


class _CalculateAsymmetry(JobSection):
    """What all Calculate... sections that read DL2 files have in common."""

    hints: ClassVar[Mapping[str, str]] = {
        "log_level": "use --log-level on the command line",
        "log_file": "use -l FILE on the command line",
        "log_file_level": "use --log-level on the command line",
        "provenance_log": "use --provenance-log on the command line",
        "quiet": "use -q on the command line",
    }

    input_url: str | None = Field(
        default=None,
        description="Input, where the command line names none (-i).",
        examples=["dl2.h5"],
    )
    output_url: str | None = Field(
        default=None,
        description="Output, where the command line names none (-o).",
        examples=["out.h5"],
    )
    overwrite: bool = Field(default=False, description="Replace an output that exists.")
    chunk_size: int = Field(
        default=100_000,
        ge=1,
        description="Accepted and without effect: results never depend on how files are read.",
    )
    geometry_reconstructor: _Algorithm = Field(
        default="HillasReconstructor", description="Algorithm whose impact distances are used."
    )
    event_types: Annotated[tuple[int, ...], read_with(_event_types)] = Field(
        default=(_EVENT_TYPES["SUBARRAY"],),
        description="Types of the events that are used, by number or name "
        "(ctapipe.containers.EventType): showers. An empty list takes all, flat-field events too.",
        examples=[["SUBARRAY", "LONG_EVENT"]],
    )
    quality_query: QualityQuery | None = Field(
        default=None, alias="QualityQuery", description="Counts instead of the one at top level."
    )
    event_preprocessor: EventPreprocessor | None = Field(
        default=None, alias="EventPreprocessor", description="May hold the QualityQuery."
    )
    pair_finder: PairFinder | None = Field(
        default=None, alias="PairFinder", description="Counts instead of the one at top level."
    )


class CalculateEnergyAsymmetry(_CalculateAsymmetry):
    """Energies of the same shower in two telescopes, for every pair and event.

    May also be called CalculateAsymmetry.
    """

    event_filters: EnergyEventFilters = Field(
        default=EnergyEventFilters(), description="Which events of a pair are used."
    )
    energy_reconstructor: _Algorithm = Field(
        default="RandomForestRegressor",
        description="Algorithm whose energies per telescope are used.",
    )
    gammaness_reconstructor: _Algorithm = Field(
        default="RandomForestClassifier",
        description="Algorithm whose gammaness per telescope is used.",
    )


class CalculateImageAsymmetry(_CalculateAsymmetry):
    """Image sizes of the same shower in two telescopes, for every pair and event."""

    event_filters: ImageEventFilters = Field(
        default=ImageEventFilters(), description="Which events of a pair are used."
    )
    image_reconstructor: _Algorithm = Field(
        default="hillas_intensity", description="Column with the image size."
    )


class ThroughputNormalisation(Section):
    """Overall scale of the throughputs of each telescope type, these or any other name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(gt=0.0)]] = Field(init=False)

    LST: float = Field(default=1.0, gt=0.0)
    MST: float = Field(default=1.0, gt=0.0)
    SST: float = Field(default=1.0, gt=0.0)


class CalculateCrossCalibration(_CalculateAsymmetry):
    """Throughputs of telescopes of all types on one scale.

    From DL2 files alone: one network of all telescopes. With an inter-calibration among the inputs:
    its ratios within each type, and a scaling factor for each type. With muon throughputs among
    them: the absolute scale. Options of the fit are those of RelativeThroughputFitter.
    """

    input_url: str | None = Field(
        default=None,
        description="File of an inter-calibration, where the command line names no input (-i).",
        examples=["inter_calibration.h5"],
    )
    input_data_url: str | None = Field(
        default=None,
        description="Directory of the DL2 files, where the command line names no input (-i).",
        examples=["dl2/"],
    )
    muon_url: str | None = Field(
        default=None,
        description="File of optical throughputs from muon rings, where the command line names no "
        "input (-i).",
        examples=["muon_throughput.h5"],
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs that are named."""
        named = (self.input_data_url, self.input_url, self.muon_url)
        return tuple(url for url in named if url is not None)

    nominal_throughput: ThroughputNormalisation = Field(
        default=ThroughputNormalisation(),
        description="Optical throughput, as muons give it, of a telescope whose energies are right "
        "as they are: that of the simulation the reconstruction was trained with. Muon throughputs "
        "are divided by it.",
    )
    event_filters: EnergyEventFilters = Field(
        default=EnergyEventFilters(), description="Which events of a pair are used."
    )
    energy_reconstructor: _Algorithm = Field(
        default="RandomForestRegressor",
        description="Algorithm whose energies per telescope are used.",
    )
    gammaness_reconstructor: _Algorithm = Field(
        default="RandomForestClassifier",
        description="Algorithm whose gammaness per telescope is used.",
    )
    min_triggered_telescopes_per_subsystem: int = Field(
        default=2, ge=1, description="Selected telescopes that an event needs of either type."
    )
    reference_subsystem: Annotated[str, caseless("LST", "MST", "SST")] = Field(
        default="MST", min_length=1, description="Type to which the others are scaled."
    )


class TimingEventFilters(EnergyEventFilters):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    minimum_individual_intensity: (
        Annotated[TelescopePatterns, _patterns(_between(0.0, math.inf))] | None
    ) = Field(
        default=None,
        description="Smallest image size, reached in both telescopes: small images trigger late.",
        examples=[100.0],
        json_schema_extra={"unit": "photoelectrons"},
    )


class CalculateTimingCalibration(_CalculateAsymmetry):
    """Offsets of the telescopes' times, from the arrival of the same shower's light.

    An offset is what a telescope's clock reads too late: subtract it.
    """

    geometry_reconstructor: _Algorithm = Field(
        default="HillasReconstructor",
        description="Algorithm whose direction, core, height of maximum and impact distances are "
        "used.",
    )
    event_filters: TimingEventFilters = Field(
        default=TimingEventFilters(), description="Which events of a pair are used."
    )
    energy_reconstructor: _Algorithm = Field(
        default="RandomForestRegressor", description="Algorithm of min_energy."
    )
    gammaness_reconstructor: _Algorithm = Field(
        default="RandomForestClassifier", description="Algorithm of min_gammaness."
    )
    time: Annotated[ArrivalTime, caseless("trigger", "peak_time_mean", "timing_intercept")] = Field(
        default="trigger",
        description="When light arrived: the telescope's trigger time, or that plus the place of "
        "the pulses in the readout window, which opens with the trigger: the mean peak time of "
        "the image's pixels, or the intercept of the fit along its axis, both in ns.",
    )
    front: Annotated[Front, caseless("spherical", "plane")] = Field(
        default="spherical",
        description="Shape of the light's front: a sphere around the shower's maximum, or a plane.",
    )
    delay_removed: Annotated[RemovedDelay, caseless("none", "pointing")] = Field(
        default="none",
        description="Which delay was already taken out of the times: none of what clocks give; of "
        "what sim_telarray writes, that of a plane front from where the array points.",
    )
    h_max_above: Annotated[HeightZero, caseless("sea-level", "ground")] = Field(
        default="sea-level",
        description="What the height of the shower's maximum counts from: sea level, as ctapipe "
        "writes it, or the ground.",
    )
    observatory_altitude: Annotated[float, read_with(_quantity("m"))] | None = Field(
        default=None,
        description="Height of the ground above the sea, unless the files tell.",
        examples=["2158 m"],
        json_schema_extra={"unit": "m"},
    )
    mixed_types: bool = Field(
        default=True,
        description="Compare telescopes of different types, too: one network of the whole array. "
        "Without it the offsets of each type stand for themselves.",
    )
    reference_telescope: _TelId | None = Field(
        default=None,
        description="Number of the telescope whose offset is 0; unless given, the first of the "
        "array. Where it has no usable pair, another one takes its place and the result is flagged "
        "F.",
        examples=[5],
    )
    estimator: Annotated[TimingEstimator, caseless("mean", "median", "clipped")] = Field(
        default="clipped",
        description="Centre of a pair's time differences: mean, median or clipped mean.",
    )
    n_min: int = Field(
        default=10, ge=2, description="Pairs with fewer events are left out, and flagged S."
    )
    clip_sigma: float = Field(
        default=3.0,
        gt=0.0,
        description="Bounds of the clipped mean.",
        json_schema_extra={"unit": "standard deviations"},
    )
    normalisation: Annotated[Normalisation, caseless("reference", "weighted-mean")] = Field(
        default="reference",
        description="What is 0: the offset of the reference telescope, or the weighted mean over "
        "the telescopes of its type.",
    )
    max_offset: Annotated[float, read_with(_quantity("ns"))] = Field(
        default=5000.0,
        description="Greatest difference of two telescopes' offsets; readout delays of camera "
        "types count as offsets.",
        json_schema_extra={"unit": "ns"},
    )
    max_residual: Annotated[float, read_with(_quantity("ns"))] = Field(
        default=50.0,
        description="Time differences farther from the pair's rough offset are no light of the "
        "same shower: they are left out, and flagged I.",
        json_schema_extra={"unit": "ns"},
    )
    time_walk: bool = Field(
        default=True,
        description="Small images trigger late: fit a delay proportional to 1/sqrt of the image "
        "size, one for each type. Files without hillas_intensity go without, which is told.",
    )
    impact_bins: Annotated[tuple[float, ...], read_with(_rising)] = Field(
        default=(0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 600.0, 1000.0),
        description="Edges of the bins of the impact distance between which the residuals are "
        "compared: their scatter is the systematic error.",
        json_schema_extra={"unit": "m"},
    )


class ReferenceTelescopes(Section):
    """Telescope of each type, these or any other name, whose throughput stays fixed."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _TelId] = Field(init=False)

    LST: _TelId | None = Field(default=None, examples=[1])
    MST: _TelId | None = Field(default=None, examples=[5])
    SST: _TelId | None = Field(default=None, examples=[34])


class RelativeThroughputFitter(Section):
    """Fits the throughputs of the telescopes of a type to the pairs.

    May also stand inside CalculateInterCalibration, whose options then win one by one.
    """

    throughput_normalisation: ThroughputNormalisation = Field(
        default=ThroughputNormalisation(),
        description="Throughput that the reference telescope has (or the mean of all, see "
        "normalisation): the absolute one from muons, a number that makes the mean 1, or 1.",
    )
    reference_telescopes: ReferenceTelescopes = Field(
        default=ReferenceTelescopes(),
        description="Number of the telescope whose throughput stays fixed. Where none is given or "
        "it has no usable pair, another one takes its place and the result is flagged F.",
    )
    estimator: (
        Annotated[Estimator, caseless("log-mean", "log-median", "log-clipped", "asymmetry")] | None
    ) = Field(
        default=None,
        description="Centre of a pair: clipped mean, mean or median of ln x1 - ln x2; 'asymmetry' "
        "is the mean of (x1 - x2) / (x1 + x2), for comparison with ctao-calibpipe. Unless given, "
        "'log-clipped' for energies, which outliers draw ten times less than 'log-mean', and "
        "'log-mean' for image sizes, whose distance term no other has.",
        examples=["log-clipped"],
    )
    n_min: int = Field(
        default=10, ge=2, description="Pairs with fewer events are left out, and flagged S."
    )
    clip_sigma: float = Field(
        default=3.0,
        gt=0.0,
        description="Bounds of the log-clipped estimator.",
        json_schema_extra={"unit": "standard deviations"},
    )
    normalisation: Annotated[Normalisation, caseless("reference", "weighted-mean")] = Field(
        default="reference",
        description="What throughput_normalisation applies to: the reference telescope, or the "
        "weighted mean of ln c.",
    )
    minimum_pair_intensity: (
        Annotated[TelescopePatterns, _patterns(_between(0.0, math.inf))] | None
    ) = Field(
        default=None,
        description="Image sizes only: smallest geometric mean of a pair's two sizes, a cut that "
        "selects on the light of the shower but not on one telescope's throughput. Unless given, "
        "twice minimum_individual_intensity, and none with the estimator 'asymmetry'.",
        examples=[160.0],
        json_schema_extra={"unit": "photoelectrons"},
    )
    distance_term: bool | None = Field(
        default=None,
        description="Image sizes only: fit ln x1 - ln x2 = theta1 - theta2 + kappa (ln d1 - ln d2) "
        "with the impact distances d and a kappa for each telescope type and range of the mean "
        "distance. Unless given, it is fitted "
        "with the estimator 'log-mean', and with no other.",
        examples=[True],
    )


class CalculateInterCalibration(JobSection):
    """Relative throughputs of the telescopes, from event-wise asymmetries."""

    hints: ClassVar[Mapping[str, str]] = _CalculateAsymmetry.hints

    input_url: str | None = Field(
        default=None,
        description="Input, where the command line names none (-i).",
        examples=["asymmetry/"],
    )
    output_url: str | None = Field(
        default=None,
        description="Output, where the command line names none (-o).",
        examples=["out.h5"],
    )
    overwrite: bool = Field(default=False, description="Replace an output that exists.")
    asymmetry_label: Annotated[AsymmetryLabel, caseless("energy_asymmetry", "image_asymmetry")] = (
        Field(default="energy_asymmetry", description="Which asymmetries are read.")
    )
    reconstruction_algorithm: _Algorithm | None = Field(
        default=None,
        description="Algorithm of the energies. Without it, energy_reconstructor of "
        "CalculateEnergyAsymmetry; if both are given they must agree.",
        examples=["RandomForestRegressor"],
    )
    relative_throughput_fitter: RelativeThroughputFitter | None = Field(
        default=None,
        alias="RelativeThroughputFitter",
        description="Its options win over the same options at top level.",
    )


ENERGY_ESTIMATOR: Estimator = "log-clipped"
"""Default for energies: 5 % outliers in one telescope draw it by 0.2 %, the mean by 2.3 %."""

IMAGE_ESTIMATOR: Estimator = "log-mean"
"""Default for image sizes: the only one with a distance term."""

PAIR_CUT_FACTOR = 2.0
"""Default of minimum_pair_intensity over minimum_individual_intensity.

A cut on each telescope's size lets fluctuations upwards of the dimmer telescope through. A cut on
the geometric mean of both treats the two alike, if it stands so far above the other that ratios up
to its square (here 4) pass. ``make image-bias`` shows what is left for several factors.
"""

_ENERGY_NAMES = ("CalculateEnergyAsymmetry", "CalculateAsymmetry")

SECTIONS: Mapping[str, type[Section]] = {
    "CalculateEnergyAsymmetry": CalculateEnergyAsymmetry,
    "CalculateAsymmetry": CalculateEnergyAsymmetry,
    "CalculateImageAsymmetry": CalculateImageAsymmetry,
    "CalculateInterCalibration": CalculateInterCalibration,
    "CalculateCrossCalibration": CalculateCrossCalibration,
    "CalculateTimingCalibration": CalculateTimingCalibration,
    "EventPreprocessor": EventPreprocessor,
    "QualityQuery": QualityQuery,
    "PairFinder": PairFinder,
    "RelativeThroughputFitter": RelativeThroughputFitter,
    **ENGINE_SECTIONS,
}
"""All sections that an array configuration may have."""

_STEP_1 = ("CalculateEnergyAsymmetry", "QualityQuery", "PairFinder")
_IMAGE_STEP_1 = ("CalculateImageAsymmetry", "QualityQuery", "PairFinder")
_STEP_2 = ("CalculateInterCalibration", "RelativeThroughputFitter")

JOB_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "energy-asymmetry-estimation": (*_STEP_1, *ENGINE_SECTIONS),
    "image-asymmetry-estimation": (*_IMAGE_STEP_1, *ENGINE_SECTIONS),
    # It reads DL2 files, too, and then does step 1 on the way.
    "inter-calibration": (*_STEP_2, *_STEP_1, "CalculateImageAsymmetry", *ENGINE_SECTIONS),
    "cross-calibration": (
        "CalculateCrossCalibration",
        "RelativeThroughputFitter",
        "QualityQuery",
        "PairFinder",
        *ENGINE_SECTIONS,
    ),
    "timing-calibration": (
        "CalculateTimingCalibration",
        "QualityQuery",
        "PairFinder",
        *ENGINE_SECTIONS,
    ),
}
"""The sections that a job uses, in the order in which a new configuration shows them."""


# -- options of the jobs ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AsymmetryOptions:
    """What energies and image sizes have in common when pairs of telescopes are compared.

    Attributes
    ----------
    geometry_reconstructor : str
        Algorithm of the impact distances, the prefix of their column.
    event_types : tuple of int
        Types of the events that are used; all if empty.
    quality_criteria : QualityCriteria
        Selection of telescope-events.
    max_impact_distance : TelescopePatterns
        Pair distance per telescope in m.
    input_url, output_url : str or None
        Files named in the configuration; the command line wins.
    overwrite : bool
        Replace an output that exists.
    """

    geometry_reconstructor: str
    event_types: tuple[int, ...]
    quality_criteria: QualityCriteria
    max_impact_distance: TelescopePatterns
    input_url: str | None
    output_url: str | None
    overwrite: bool

    label: ClassVar[AsymmetryLabel]
    """Table of the asymmetries and their column."""

    quantity: ClassVar[str]
    """What x is, for people."""

    mixed_types: ClassVar[bool] = False
    """Whether telescopes of two types make pairs."""

    @property
    def value_column(self) -> str:
        """Column of x."""
        raise NotImplementedError

    @property
    def uncertainty_column(self) -> str | None:
        """Column of the uncertainty of x, if there is one."""
        return None

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        raise NotImplementedError

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances: t, or [p0, p1]."""
        raise NotImplementedError

    @property
    def impact_column(self) -> str:
        """Column of the impact distance."""
        return f"{self.geometry_reconstructor}_tel_impact_distance"

    @property
    def needs_altitude(self) -> bool:
        """Whether the window depends on where the telescopes pointed."""
        if self.window is None:
            return False
        return any(isinstance(v, tuple) and v[1] != 0 for _, _, v in self.window[1].patterns)

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rows of a shard depend on, ready for JSON."""
        raise NotImplementedError

    def _map_options(self, algorithms: dict[str, Any]) -> dict[str, Any]:
        filters = {option: patterns for option, _, patterns in self.minima}
        if self.window is not None:
            filters[self.window[0]] = self.window[1]
        return {
            **algorithms,
            "geometry_reconstructor": self.geometry_reconstructor,
            "event_types": list(self.event_types),
            "quality_criteria": [list(pair) for pair in self.quality_criteria.pairs],
            "max_impact_distance": self.max_impact_distance.to_plain(),
            "event_filters": {name: patterns.to_plain() for name, patterns in filters.items()},
        }

    def fit_options(self) -> dict[str, Any]:
        """Give the options that only the fit depends on: there is none."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyAsymmetryOptions(AsymmetryOptions):
    """Options of the energy asymmetry, resolved.

    Attributes
    ----------
    energy_reconstructor, gammaness_reconstructor : str
        Algorithms, the prefixes of columns and the names of tables.
    max_distance_asymmetry, min_gammaness, min_energy : TelescopePatterns or None
        Filters of the events of a pair; None: no such filter. Energies in TeV.
    """

    energy_reconstructor: str
    gammaness_reconstructor: str
    max_distance_asymmetry: TelescopePatterns | None
    min_gammaness: TelescopePatterns | None
    min_energy: TelescopePatterns | None

    label: ClassVar[AsymmetryLabel] = "energy_asymmetry"
    quantity: ClassVar[str] = "energy"

    @property
    def value_column(self) -> str:
        """Column of x."""
        return f"{self.energy_reconstructor}_tel_energy"

    @property
    def uncertainty_column(self) -> str:
        """Column of the uncertainty of x."""
        return f"{self.value_column}_uncert"

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        cuts = (
            ("min_energy", self.value_column, self.min_energy),
            (
                "min_gammaness",
                f"{self.gammaness_reconstructor}_tel_prediction",
                self.min_gammaness,
            ),
        )
        return tuple((name, column, least) for name, column, least in cuts if least is not None)

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances."""
        if self.max_distance_asymmetry is None:
            return None
        return "max_distance_asymmetry", self.max_distance_asymmetry

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rows of a shard depend on, ready for JSON."""
        return self._map_options(
            {
                "energy_reconstructor": self.energy_reconstructor,
                "gammaness_reconstructor": self.gammaness_reconstructor,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCalibrationOptions(EnergyAsymmetryOptions):
    """Options of the cross-calibration, resolved.

    Attributes
    ----------
    min_telescopes : int
        Selected telescopes of both types that an event needs for pairs of two types.
    reference_type : str
        Type whose scale is held fixed.
    nominal_throughput : tuple of (str, float)
        What muon throughputs are divided by, by telescope type, sorted.
    fitter : RelativeThroughputFitter
        Options of the fit.
    input_data_url, muon_url : str or None
        Further files named in the configuration; the command line wins.
    """

    min_telescopes: int
    reference_type: str
    nominal_throughput: tuple[tuple[str, float], ...]
    fitter: RelativeThroughputFitter
    input_data_url: str | None
    muon_url: str | None

    mixed_types: ClassVar[bool] = True

    @property
    def estimator(self) -> Estimator:
        """Centre of a pair, as in `RelativeThroughputFitter`."""
        return self.fitter.estimator or ENERGY_ESTIMATOR

    @property
    def inputs(self) -> tuple[str, ...]:
        """All files named in the configuration."""
        named = (self.input_data_url, self.input_url, self.muon_url)
        return tuple(url for url in named if url is not None)

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rows of a shard depend on, ready for JSON."""
        # Named, since with slots and a decorator the short super() finds another class.
        return {
            **EnergyAsymmetryOptions.map_options(self),
            "min_telescopes": self.min_telescopes,
        }

    def fit_options(self) -> dict[str, Any]:
        """Give the options that only the fit depends on, ready for JSON."""
        fitter = self.fitter
        return {
            "reference_type": self.reference_type,
            "estimator": self.estimator,
            "n_min": fitter.n_min,
            "clip_sigma": fitter.clip_sigma,
            "normalisation": fitter.normalisation,
            "throughput_normalisation": dict(self.throughput_normalisation),
            "reference_telescopes": dict(self.reference_telescopes),
        }

    @property
    def throughput_normalisation(self) -> tuple[tuple[str, float], ...]:
        """Scale by telescope type, sorted."""
        return tuple(sorted(self.fitter.throughput_normalisation.model_dump().items()))

    @property
    def reference_telescopes(self) -> tuple[tuple[str, int], ...]:
        """Reference by telescope type, sorted; types without one are left out."""
        references = self.fitter.reference_telescopes.model_dump()
        return tuple(sorted((kind, tel) for kind, tel in references.items() if tel is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAsymmetryOptions(AsymmetryOptions):
    """Options of the asymmetry of image sizes, resolved.

    Attributes
    ----------
    image_reconstructor : str
        Column with the image size in photoelectrons.
    minimum_individual_intensity : TelescopePatterns or None
        Least size in both telescopes.
    equidistant_event_selection : TelescopePatterns or None
        [p0, p1] of the limit p0 + p1 cos(altitude).
    """

    image_reconstructor: str
    minimum_individual_intensity: TelescopePatterns | None
    equidistant_event_selection: TelescopePatterns | None

    label: ClassVar[AsymmetryLabel] = "image_asymmetry"
    quantity: ClassVar[str] = "image size"

    @property
    def value_column(self) -> str:
        """Column of x."""
        return self.image_reconstructor

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        if self.minimum_individual_intensity is None:
            return ()
        return (
            (
                "minimum_individual_intensity",
                self.image_reconstructor,
                self.minimum_individual_intensity,
            ),
        )

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances."""
        if self.equidistant_event_selection is None:
            return None
        return "equidistant_event_selection", self.equidistant_event_selection

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rows of a shard depend on, ready for JSON."""
        return self._map_options({"image_reconstructor": self.image_reconstructor})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCalibrationOptions(AsymmetryOptions):
    """Options of the timing calibration, resolved; see `CalculateTimingCalibration`.

    Attributes
    ----------
    section : CalculateTimingCalibration
        The options as they were given.
    """

    section: CalculateTimingCalibration

    quantity: ClassVar[str] = "impact distance"

    @property
    def mixed_types(self) -> bool:  # type: ignore[override]
        """Whether telescopes of two types make pairs."""
        return self.section.mixed_types

    @property
    def value_column(self) -> str:
        """Column that has to be finite and positive: of showers whose geometry is known."""
        return self.impact_column

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        section, filters = self.section, self.section.event_filters
        cuts = (
            ("min_energy", f"{section.energy_reconstructor}_tel_energy", filters.min_energy),
            (
                "min_gammaness",
                f"{section.gammaness_reconstructor}_tel_prediction",
                filters.min_gammaness,
            ),
            (
                "minimum_individual_intensity",
                "hillas_intensity",
                filters.minimum_individual_intensity,
            ),
        )
        return tuple((name, column, least) for name, column, least in cuts if least is not None)

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances."""
        limit = self.section.event_filters.max_distance_asymmetry
        return None if limit is None else ("max_distance_asymmetry", limit)

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rows of a shard depend on, ready for JSON."""
        section = self.section
        return self._map_options(
            {
                "energy_reconstructor": section.energy_reconstructor,
                "gammaness_reconstructor": section.gammaness_reconstructor,
                "time": section.time,
                "front": section.front,
                "delay_removed": section.delay_removed,
                "h_max_above": section.h_max_above,
                "observatory_altitude": section.observatory_altitude,
                "mixed_types": section.mixed_types,
                "max_offset": section.max_offset,
                "max_residual": section.max_residual,
                "impact_bins": list(section.impact_bins),
            }
        )

    def fit_options(self) -> dict[str, Any]:
        """Give the options that only the fit depends on, ready for JSON."""
        names = ("reference_telescope", "estimator", "n_min", "clip_sigma", "normalisation")
        return {name: getattr(self.section, name) for name in names}


@dataclass(frozen=True, slots=True)
class InterCalibrationOptions:
    """Options of the inter-calibration, resolved.

    Attributes
    ----------
    asymmetry_label : str
        ``energy_asymmetry`` or ``image_asymmetry``: table and column of the asymmetries.
    value_column : str
        Column of x, without the ``_1`` and ``_2`` of the two telescopes.
    estimator, normalisation : str
        As in `RelativeThroughputFitter`.
    n_min : int
        Fewest events of a usable pair.
    clip_sigma : float
        Bounds of the log-clipped estimator in standard deviations.
    throughput_normalisation : tuple of (str, float)
        Scale by telescope type, sorted.
    reference_telescopes : tuple of (str, int)
        Reference by telescope type, sorted; types without one are left out.
    minimum_pair_intensity : TelescopePatterns or None
        Least geometric mean of a pair's image sizes; None: no such cut.
    distance_term : bool
        Fit the slope of image sizes over the impact distance.
    input_url, output_url : str or None
        Files named in the configuration; the command line wins.
    overwrite : bool
        Replace an output that exists.
    """

    asymmetry_label: AsymmetryLabel
    value_column: str
    estimator: Estimator
    n_min: int
    clip_sigma: float
    normalisation: Normalisation
    throughput_normalisation: tuple[tuple[str, float], ...]
    reference_telescopes: tuple[tuple[str, int], ...]
    minimum_pair_intensity: TelescopePatterns | None
    distance_term: bool
    input_url: str | None
    output_url: str | None
    overwrite: bool

    def map_options(self) -> dict[str, Any]:
        """Give the options that the summaries of a shard depend on, ready for JSON."""
        options: dict[str, Any] = {
            "asymmetry_label": self.asymmetry_label,
            "value_column": self.value_column,
        }
        if self.asymmetry_label == "image_asymmetry":
            least = self.minimum_pair_intensity
            options["minimum_pair_intensity"] = None if least is None else least.to_plain()
            options["distance_term"] = self.distance_term
        return options

    def fit_options(self) -> dict[str, Any]:
        """Give the options that only the fit depends on, ready for JSON."""
        return {
            "estimator": self.estimator,
            "n_min": self.n_min,
            "clip_sigma": self.clip_sigma,
            "normalisation": self.normalisation,
            "throughput_normalisation": dict(self.throughput_normalisation),
            "reference_telescopes": dict(self.reference_telescopes),
        }


@dataclass(frozen=True, slots=True)
class ArrayConfig:
    """A checked configuration of the array calibrations.

    Attributes
    ----------
    energy_asymmetry : EnergyAsymmetryOptions
        Options of step 1.
    image_asymmetry : ImageAsymmetryOptions
        Options of step 1 of image sizes.
    inter_calibration : InterCalibrationOptions
        Options of step 2.
    cross_calibration : CrossCalibrationOptions
        Options of the cross-calibration of types.
    timing_calibration : TimingCalibrationOptions
        Options of the telescope timing.
    campaign : Campaign
        Options of the engine.
    notes : tuple of str
        What is valid but worth a line in the log and the report.
    document : Configuration
        The sections as they were given, for provenance and other jobs.
    """

    energy_asymmetry: EnergyAsymmetryOptions
    image_asymmetry: ImageAsymmetryOptions
    inter_calibration: InterCalibrationOptions
    cross_calibration: CrossCalibrationOptions
    timing_calibration: TimingCalibrationOptions
    campaign: Campaign
    notes: tuple[str, ...]
    document: Configuration


def load_array_config(
    paths: Sequence[Path | str],
    overrides: Mapping[str, object] | None = None,
    *,
    others: Callable[[], Mapping[str, type[Section]]] = dict,
) -> ArrayConfig:
    """Read the configuration of the array calibrations.

    Parameters
    ----------
    paths : sequence of path
        YAML files, merged in order; later ones win. With none, all defaults.
    overrides : mapping of str to object, optional
        Options from the command line, by dotted path.
    others : callable, optional
        Gives the sections of other jobs, which may stand in the same file.

    Returns
    -------
    ArrayConfig
        The options of the jobs.

    Raises
    ------
    ConfigError
        Anything that is wrong, with file, line, dotted path, value and remedy.
    """
    return resolve(load_config(SECTIONS, paths, overrides, others=others))


def resolve(document: Configuration) -> ArrayConfig:
    """Resolve the options of the array calibrations (ConfigError for what is contradictory)."""
    given = [name for name in _ENERGY_NAMES if name in document.sections]
    if len(given) == 2:
        raise document.error(
            f"this is the old name of CalculateEnergyAsymmetry, which is given as well "
            f"({document.where(given[0])}): keep one of them",
            given[1],
        )
    energy_name = given[0] if given else _ENERGY_NAMES[0]
    energy = document.find(energy_name, CalculateEnergyAsymmetry)
    if energy is None:
        # With step 2 alone in the configuration, DL2 files are read with its algorithm.
        inter = document.get("CalculateInterCalibration", CalculateInterCalibration)
        energy = CalculateEnergyAsymmetry()
        if inter.reconstruction_algorithm is not None:
            energy = energy.model_copy(
                update={"energy_reconstructor": inter.reconstruction_algorithm}
            )
    notes: list[str] = []
    energy_options = _energy_options(document, energy_name, energy, notes)
    if given and not energy_options.quality_criteria.pairs:
        notes.append(f"{energy_name}: no quality criteria, so every telescope-event is used")
    image_notes: list[str] = []
    image_options = _image_options(document, image_notes)
    if document.find("CalculateImageAsymmetry", CalculateImageAsymmetry) is not None:
        notes += [note for note in image_notes if note not in notes]
    inter_options = _inter_options(document, energy_name, energy, image_options, notes)
    return ArrayConfig(
        energy_asymmetry=energy_options,
        image_asymmetry=image_options,
        inter_calibration=inter_options,
        cross_calibration=_cross_options(document, notes),
        timing_calibration=_timing_options(document, notes),
        campaign=document.get("Campaign", Campaign),
        notes=tuple(notes),
        document=document,
    )


def _energy_options(
    document: Configuration, name: str, section: CalculateEnergyAsymmetry, notes: list[str]
) -> EnergyAsymmetryOptions:
    filters = section.event_filters
    return EnergyAsymmetryOptions(
        **_common_options(document, name, section, notes),
        energy_reconstructor=section.energy_reconstructor,
        gammaness_reconstructor=section.gammaness_reconstructor,
        max_distance_asymmetry=filters.max_distance_asymmetry,
        min_gammaness=filters.min_gammaness,
        min_energy=filters.min_energy,
    )


def _image_options(document: Configuration, notes: list[str]) -> ImageAsymmetryOptions:
    name = "CalculateImageAsymmetry"
    section = document.get(name, CalculateImageAsymmetry)
    filters = section.event_filters
    common = _common_options(document, name, section, notes)
    if section.image_reconstructor in common["quality_criteria"].columns:
        notes.append(
            f"a quality criterion selects by {section.image_reconstructor} of each telescope:"
            " minimum_individual_intensity has to be above it, as the cut on pairs follows from it"
        )
    return ImageAsymmetryOptions(
        **common,
        image_reconstructor=section.image_reconstructor,
        minimum_individual_intensity=filters.minimum_individual_intensity,
        equidistant_event_selection=filters.equidistant_event_selection,
    )


def _cross_options(document: Configuration, notes: list[str]) -> CrossCalibrationOptions:
    name = "CalculateCrossCalibration"
    section = document.get(name, CalculateCrossCalibration)
    filters = section.event_filters
    own_notes: list[str] = []
    common = _common_options(document, name, section, own_notes)
    if document.find(name, CalculateCrossCalibration) is not None:
        notes += [note for note in own_notes if note not in notes]
    return CrossCalibrationOptions(
        **common,
        energy_reconstructor=section.energy_reconstructor,
        gammaness_reconstructor=section.gammaness_reconstructor,
        max_distance_asymmetry=filters.max_distance_asymmetry,
        min_gammaness=filters.min_gammaness,
        min_energy=filters.min_energy,
        min_telescopes=section.min_triggered_telescopes_per_subsystem,
        reference_type=section.reference_subsystem,
        nominal_throughput=tuple(sorted(section.nominal_throughput.model_dump().items())),
        fitter=document.get("RelativeThroughputFitter", RelativeThroughputFitter),
        input_data_url=section.input_data_url,
        muon_url=section.muon_url,
    )


def _timing_options(document: Configuration, notes: list[str]) -> TimingCalibrationOptions:
    name = "CalculateTimingCalibration"
    section = document.get(name, CalculateTimingCalibration)
    own_notes: list[str] = []
    common = _common_options(document, name, section, own_notes)
    if document.find(name, CalculateTimingCalibration) is not None:
        notes += [note for note in own_notes if note not in notes]
    for option, low, high in (("max_residual", 5.0, 1e3), ("max_offset", 5.0, 1e6)):
        value = getattr(section, option)
        if not low <= value <= high:
            text = f"{value:g} ns were given, expected are {low:g} to {high:g} ns"
            raise document.error(text, name, option)
    # Rough offsets are found in bins of half of max_residual at most, of which there is an end.
    low, high = section.max_residual, 2500 * section.max_residual
    if not low <= section.max_offset <= high:
        raise document.error(
            f"{section.max_offset:g} ns do not go with max_residual ({section.max_residual:g} ns):"
            f" expected are {low:g} to {high:g} ns",
            name,
            "max_offset",
        )
    return TimingCalibrationOptions(**common, section=section)


def _common_options(
    document: Configuration, name: str, section: _CalculateAsymmetry, notes: list[str]
) -> dict[str, Any]:
    """Resolve what the sections that read DL2 files have in common."""
    outer = document.get("EventPreprocessor", EventPreprocessor)
    inner = section.event_preprocessor
    for path, preprocessor in (
        ((name, "EventPreprocessor"), inner),
        (("EventPreprocessor",), outer),
    ):
        _check_reconstructors(document, name, section, path, preprocessor)
    queries = {
        f"{name}.EventPreprocessor.QualityQuery": inner.quality_query if inner else None,
        f"{name}.QualityQuery": section.quality_query,
        "EventPreprocessor.QualityQuery": outer.quality_query,
        "QualityQuery": document.find("QualityQuery", QualityQuery),
    }
    query = _innermost(queries, notes)
    finder = _innermost(
        {
            f"{name}.PairFinder": section.pair_finder,
            "PairFinder": document.find("PairFinder", PairFinder),
        },
        notes,
    )
    return {
        "geometry_reconstructor": section.geometry_reconstructor,
        "event_types": section.event_types,
        "quality_criteria": _compiled(document, queries, query),
        "max_impact_distance": (finder or PairFinder()).max_impact_distance,
        "input_url": section.input_url,
        "output_url": section.output_url,
        "overwrite": section.overwrite,
    }


def _compiled(
    document: Configuration, queries: Mapping[str, QualityQuery | None], used: QualityQuery | None
) -> QualityCriteria:
    """Compile the criteria of a query, in which names of algorithms may hold dashes."""
    if used is None:
        return QualityCriteria(())
    algorithms = _algorithms(document)
    pairs = [(name, quote_names(text, algorithms)) for name, text in used.quality_criteria]
    try:
        return compile_criteria(pairs)
    except ConfigError as error:
        path = next(path for path, query in queries.items() if query is used)
        raise document.error(str(error), *path.split("."), "quality_criteria") from None


def _algorithms(document: Configuration) -> set[str]:
    """Give the names of all algorithms that are configured."""
    options = [f"{kind}_reconstructor" for kind in ("energy", "geometry", "gammaness")]
    values = (
        getattr(section, option, None)
        for section in document.sections.values()
        for option in (*options, "reconstruction_algorithm")
    )
    return {value for value in values if isinstance(value, str)}


def _innermost[S: Section](candidates: Mapping[str, S | None], notes: list[str]) -> S | None:
    """Pick the first section that is given, and note those that it hides."""
    given = [(path, section) for path, section in candidates.items() if section is not None]
    if not given:
        return None
    used_path, used = given[0]
    notes += [f"{path} is not used: {used_path} counts" for path, _ in given[1:]]
    return used


def _check_reconstructors(
    document: Configuration,
    name: str,
    section: _CalculateAsymmetry,
    path: tuple[str, ...],
    preprocessor: EventPreprocessor | None,
) -> None:
    for option in ("energy_reconstructor", "geometry_reconstructor", "gammaness_reconstructor"):
        theirs, ours = getattr(preprocessor, option, None), getattr(section, option, None)
        if theirs is not None and ours is not None and theirs != ours:
            raise document.error(
                f"'{theirs}' contradicts '{ours}' ({document.where(name, option)}): leave it out",
                *path,
                option,
            )


def _inter_options(
    document: Configuration,
    energy_name: str,
    energy: CalculateEnergyAsymmetry,
    image: ImageAsymmetryOptions,
    notes: list[str],
) -> InterCalibrationOptions:
    inter = document.get("CalculateInterCalibration", CalculateInterCalibration)
    fitter = document.get("RelativeThroughputFitter", RelativeThroughputFitter)
    nested = inter.relative_throughput_fitter
    if nested is not None:
        notes += [
            f"RelativeThroughputFitter.{option} is not used:"
            f" CalculateInterCalibration.RelativeThroughputFitter.{option} counts"
            for option in sorted(nested.model_fields_set & fitter.model_fields_set)
        ]
        chosen = {option: getattr(nested, option) for option in nested.model_fields_set}
        fitter = fitter.model_copy(update=chosen)
    algorithm = inter.reconstruction_algorithm or energy.energy_reconstructor
    if inter.asymmetry_label == "image_asymmetry":
        value_column = image.image_reconstructor
    else:
        if algorithm != energy.energy_reconstructor:
            raise document.error(
                f"'{algorithm}' differs from '{energy.energy_reconstructor}' "
                f"({document.where(energy_name, 'energy_reconstructor')}): the asymmetries of one "
                "algorithm cannot be read as those of another; make them agree, or leave this "
                "option out",
                "CalculateInterCalibration",
                "reconstruction_algorithm",
            )
        value_column = f"{algorithm}_tel_energy"
    of_images = inter.asymmetry_label == "image_asymmetry"
    default = IMAGE_ESTIMATOR if of_images else ENERGY_ESTIMATOR
    fitter = fitter.model_copy(update={"estimator": fitter.estimator or default})
    least_pair, distance_term = _image_corrections(document, inter, fitter, image, notes)
    references = fitter.reference_telescopes.model_dump()
    return InterCalibrationOptions(
        asymmetry_label=inter.asymmetry_label,
        value_column=value_column,
        estimator=fitter.estimator or default,
        n_min=fitter.n_min,
        clip_sigma=fitter.clip_sigma,
        normalisation=fitter.normalisation,
        throughput_normalisation=tuple(
            sorted(fitter.throughput_normalisation.model_dump().items())
        ),
        reference_telescopes=tuple(
            sorted((tel_type, tel) for tel_type, tel in references.items() if tel is not None)
        ),
        minimum_pair_intensity=least_pair,
        distance_term=distance_term,
        input_url=inter.input_url,
        output_url=inter.output_url,
        overwrite=inter.overwrite,
    )


def _image_corrections(
    document: Configuration,
    inter: CalculateInterCalibration,
    fitter: RelativeThroughputFitter,
    image: ImageAsymmetryOptions,
    notes: list[str],
) -> tuple[TelescopePatterns | None, bool]:
    """Resolve the cut on a pair's size and whether the distance term is fitted."""

    def where(option: str) -> tuple[str, ...]:
        nested = inter.relative_throughput_fitter
        inside = nested is not None and option in nested.model_fields_set
        outer = ("CalculateInterCalibration",) if inside else ()
        return (*outer, "RelativeThroughputFitter", option)

    least_pair, distance_term = fitter.minimum_pair_intensity, fitter.distance_term
    if inter.asymmetry_label != "image_asymmetry":
        for option, given in (
            ("minimum_pair_intensity", least_pair is not None),
            ("distance_term", bool(distance_term)),
        ):
            if given:
                raise document.error(
                    "this is of image sizes: set CalculateInterCalibration.asymmetry_label to"
                    " image_asymmetry, or leave it out",
                    *where(option),
                )
        return None, False
    if distance_term and fitter.estimator != "log-mean":
        raise document.error(
            f"the estimator '{fitter.estimator}' has no distance term: choose log-mean, or leave"
            " this option out",
            *where("distance_term"),
        )
    if distance_term is None:
        distance_term = fitter.estimator == "log-mean"
    if least_pair is None and fitter.estimator != "asymmetry":
        least = image.minimum_individual_intensity
        if least is None:
            notes.append(
                "no cut on the size of a pair, as CalculateImageAsymmetry has no"
                " minimum_individual_intensity here: if the rows were selected by each telescope's"
                " size, ratios are drawn towards 1; set"
                " RelativeThroughputFitter.minimum_pair_intensity to twice that size"
            )
        else:
            least_pair = TelescopePatterns(
                tuple(
                    (kind, which, PAIR_CUT_FACTOR * float(value))  # type: ignore[arg-type]
                    for kind, which, value in least.patterns
                )
            )
    return least_pair, distance_term
