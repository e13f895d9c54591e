"""Options of the timing calibration."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from calibdask.array.network.model import NetworkOptions, Observable
from calibdask.array.pair_config import (
    EnergyEventFilters,
    EnergyPairSection,
    given_minima,
    resolved,
)
from calibdask.array.timing_summary import TimingOptions
from calibdask.config import caseless, inner_section, option, read_with
from calibdask.config.fields import Algorithm, TelId, between, patterns, quantity
from calibdask.errors import ConfigError
from calibdask.select import TelescopePatterns, finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibdask.config import Configuration

__all__ = ["CalculateTimingCalibration", "TimingEventFilters", "timing_section"]

type ArrivalTime = Literal["trigger", "peak_time_mean", "timing_intercept"]
type Front = Literal["spherical", "plane"]
type RemovedDelay = Literal["none", "pointing"]
type HeightZero = Literal["sea-level", "ground"]
type TimingEstimator = Literal["mean", "median", "clipped"]
type Normalisation = Literal["reference", "weighted-mean"]


ROUGH_BINS = 500
"""Bins of the range of rough offsets, unless they would be wider than half of max_residual."""

FINE_BIN_NS = 0.25
"""Bins for median and clipping: the resolution of the time stamps."""


def _rising(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) < 3:
        raise ConfigError(f"expected at least three increasing numbers, got {value!r}")
    numbers = tuple(finite_number(number) for number in value)
    if numbers[0] < 0 or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ConfigError(f"{value!r} does not rise, or begins below 0")
    return numbers


class TimingEventFilters(EnergyEventFilters):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    minimum_individual_intensity: Annotated[TelescopePatterns, patterns(between(0.0))] | None = (
        option(
            None,
            stage="map",
            help="Smallest image size, reached in both telescopes: small images trigger late.",
            example=100.0,
            unit="photoelectrons",
        )
    )


class CalculateTimingCalibration(EnergyPairSection):
    """Offsets of the telescopes' times, from the arrival of the same shower's light.

    An offset is what a telescope's clock reads too late: subtract it.
    """

    geometry_reconstructor: Algorithm = option(
        "HillasReconstructor",
        stage="map",
        help="Algorithm whose direction, core, height of maximum and impact distances are used.",
    )
    event_filters: TimingEventFilters = inner_section(
        TimingEventFilters(),
        help="Which events of a pair are used.",
    )
    time: Annotated[ArrivalTime, caseless("trigger", "peak_time_mean", "timing_intercept")] = (
        option(
            "trigger",
            stage="map",
            help="When light arrived: the telescope's trigger time, or that plus the place of "
            "the pulses in the readout window, which opens with the trigger: the mean peak time of "
            "the image's pixels, or the intercept of the fit along its axis, both in ns.",
        )
    )
    front: Annotated[Front, caseless("spherical", "plane")] = option(
        "spherical",
        stage="map",
        help="Shape of the light's front: a sphere around the shower's maximum, or a plane.",
    )
    delay_removed: Annotated[RemovedDelay, caseless("none", "pointing")] = option(
        "none",
        stage="map",
        help="Which delay was already taken out of the times: none of what clocks give; of "
        "what sim_telarray writes, that of a plane front from where the array points.",
    )
    h_max_above: Annotated[HeightZero, caseless("sea-level", "ground")] = option(
        "sea-level",
        stage="map",
        help="What the height of the shower's maximum counts from: sea level, as ctapipe "
        "writes it, or the ground.",
    )
    observatory_altitude: Annotated[float, read_with(quantity("m"))] | None = option(
        None,
        stage="map",
        help="Height of the ground above the sea, unless the files tell.",
        example="2158 m",
        unit="m",
    )
    mixed_types: bool = option(
        True,
        stage="map",
        help="Compare telescopes of different types, too: one network of the whole array. "
        "Without it the offsets of each type stand for themselves.",
    )
    reference_telescope: TelId | None = option(
        None,
        stage="fit",
        help="Number of the telescope whose offset is 0; unless given, the first of the "
        "array. Where it has no usable pair, another one takes its place and the result is flagged "
        "F.",
        example=5,
    )
    estimator: Annotated[TimingEstimator, caseless("mean", "median", "clipped")] = option(
        "clipped",
        stage="fit",
        help="Centre of a pair's time differences: mean, median or clipped mean.",
    )
    n_min: int = option(
        10,
        stage="fit",
        ge=2,
        help="Pairs with fewer events are left out, and flagged S.",
    )
    clip_sigma: float = option(
        3.0,
        stage="fit",
        gt=0.0,
        help="Bounds of the clipped mean.",
        unit="standard deviations",
    )
    normalisation: Annotated[Normalisation, caseless("reference", "weighted-mean")] = option(
        "reference",
        stage="fit",
        help="What is 0: the offset of the reference telescope, or the weighted mean over "
        "the telescopes of its type.",
    )
    max_offset: Annotated[float, read_with(quantity("ns"))] = option(
        5000.0,
        stage="map",
        help="Greatest difference of two telescopes' offsets; readout delays of camera "
        "types count as offsets.",
        unit="ns",
    )
    max_residual: Annotated[float, read_with(quantity("ns"))] = option(
        50.0,
        stage="map",
        help="Time differences farther from the pair's rough offset are no light of the "
        "same shower: they are left out, and flagged I.",
        unit="ns",
    )
    time_walk: bool = option(
        True,
        stage="map",
        help="Small images trigger late: fit a delay proportional to 1/sqrt of the image "
        "size, one for each type. Files without hillas_intensity go without, which is told.",
    )
    impact_bins: Annotated[tuple[float, ...], read_with(_rising)] = option(
        (0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 600.0, 1000.0),
        stage="map",
        help="Edges of the bins of the impact distance between which the residuals are "
        "compared: their scatter is the systematic error.",
        unit="m",
    )

    value_name: ClassVar[str] = "impact distance"

    def stages(self, types: Mapping[int, str], *, walk: bool) -> TimingOptions:
        """Return the options of all stages, given the types of the telescopes by number."""
        # The same reference in all time bins, whichever telescope has most events there.
        number = self.reference_telescope
        if number is None:
            number = next(iter(types), -1)
        # One that is not in the array is asked for all the same: another that is held is flagged F.
        asked = (types.get(number, next(iter(types.values()), "")), number)
        half = self.max_residual
        network = NetworkOptions(
            estimator=f"log-{self.estimator}",  # type: ignore[arg-type]
            n_min=self.n_min,
            clip_sigma=self.clip_sigma,
            normalisation=self.normalisation,
            reference_telescopes=(asked,) if types else (),
            reference_type=asked[0] if self.mixed_types else None,
            observable=Observable("difference", -half, half, round(2 * half / FINE_BIN_NS), "ns"),
        )
        n_bins = max(ROUGH_BINS, math.ceil(4 * self.max_offset / self.max_residual))
        rough = Observable("difference", -self.max_offset, self.max_offset, n_bins, "ns")
        return TimingOptions(network, rough, self.impact_bins, walk)

    @property
    def compares_types(self) -> bool:
        """Whether telescopes of two types make pairs."""
        return self.mixed_types

    @property
    def value_column(self) -> str:
        """Column that has to be finite and positive: of showers whose geometry is known."""
        return self.impact_column

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        least = self.event_filters.minimum_individual_intensity
        size = ("minimum_individual_intensity", "hillas_intensity", least)
        return (*super().minima, *given_minima(size))


def timing_section(document: Configuration, notes: list[str]) -> CalculateTimingCalibration:
    """Resolve the section of the timing calibration.

    Raises
    ------
    ConfigError
        Its limits contradict each other, or a selection is wrong.
    """
    name = "CalculateTimingCalibration"
    section = resolved(document, CalculateTimingCalibration, notes)
    for limit, low, high in (("max_residual", 5.0, 1e3), ("max_offset", 5.0, 1e6)):
        value = getattr(section, limit)
        if not low <= value <= high:
            text = f"{value:g} ns were given, expected are {low:g} to {high:g} ns"
            raise document.error(text, name, limit)
    # Rough offsets are found in bins of half of max_residual at most, of which there is an end.
    low, high = section.max_residual, 2500 * section.max_residual
    if not low <= section.max_offset <= high:
        raise document.error(
            f"{section.max_offset:g} ns do not go with max_residual ({section.max_residual:g} ns):"
            f" expected are {low:g} to {high:g} ns",
            name,
            "max_offset",
        )
    return section
