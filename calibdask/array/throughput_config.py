"""Options of the calibrations of optical throughput: inter-calibration and cross-calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from calibdask.array.asymmetry_config import (
    AsymmetryLabel,
    CalculateEnergyAsymmetry,
    CalculateImageAsymmetry,
    energy_name,
    energy_section,
    image_section,
)
from calibdask.array.pair_config import EnergyPairSection
from calibdask.config import JobSection, Section, caseless, inner_section, option
from calibdask.config.fields import Algorithm, TelId, between, patterns
from calibdask.select import TelescopePatterns

if TYPE_CHECKING:
    from calibdask.config import Configuration

__all__ = [
    "ENERGY_ESTIMATOR",
    "CalculateCrossCalibration",
    "CalculateInterCalibration",
    "ReferenceTelescopes",
    "RelativeThroughputFitter",
    "ThroughputNormalisation",
    "inter_sections",
    "top_fitter",
]

type Estimator = Literal["log-mean", "log-median", "log-clipped", "asymmetry"]
type Normalisation = Literal["reference", "weighted-mean"]

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


class ThroughputNormalisation(Section):
    """Overall scale of the throughputs of each telescope type, these or any other name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(gt=0.0)]] = Field(init=False)

    LST: float = Field(default=1.0, gt=0.0)
    MST: float = Field(default=1.0, gt=0.0)
    SST: float = Field(default=1.0, gt=0.0)

    @property
    def by_type(self) -> tuple[tuple[str, float], ...]:
        """Scale by telescope type, sorted."""
        values = self.model_dump().items()
        return tuple(sorted((name, value) for name, value in values if value is not None))


class ReferenceTelescopes(Section):
    """Telescope of each type, these or any other name, whose throughput stays fixed."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, TelId] = Field(init=False)

    LST: TelId | None = Field(default=None, examples=[1])
    MST: TelId | None = Field(default=None, examples=[5])
    SST: TelId | None = Field(default=None, examples=[34])

    @property
    def by_type(self) -> tuple[tuple[str, int], ...]:
        """Reference by telescope type, sorted; types without one are left out."""
        values = self.model_dump().items()
        return tuple(sorted((name, value) for name, value in values if value is not None))


class RelativeThroughputFitter(Section):
    """Fits the throughputs of the telescopes of a type to the pairs.

    May also stand inside CalculateInterCalibration, whose options then win one by one.
    """

    throughput_normalisation: ThroughputNormalisation = option(
        ThroughputNormalisation(),
        stage="fit",
        help="Throughput that the reference telescope has (or the mean of all, see "
        "normalisation): the absolute one from muons, a number that makes the mean 1, or 1.",
    )
    reference_telescopes: ReferenceTelescopes = option(
        ReferenceTelescopes(),
        stage="fit",
        help="Number of the telescope whose throughput stays fixed. Where none is given or "
        "it has no usable pair, another one takes its place and the result is flagged F.",
    )
    estimator: (
        Annotated[Estimator, caseless("log-mean", "log-median", "log-clipped", "asymmetry")] | None
    ) = option(
        None,
        stage="fit",
        help="Centre of a pair: clipped mean, mean or median of ln x1 - ln x2; 'asymmetry' "
        "is the mean of (x1 - x2) / (x1 + x2), for comparison with ctao-calibpipe. Unless given, "
        "'log-clipped' for energies, which outliers draw ten times less than 'log-mean', and "
        "'log-mean' for image sizes, whose distance term no other has.",
        example="log-clipped",
    )
    n_min: int = option(
        10, stage="fit", ge=2, help="Pairs with fewer events are left out, and flagged S."
    )
    clip_sigma: float = option(
        3.0,
        stage="fit",
        gt=0.0,
        help="Bounds of the log-clipped estimator.",
        unit="standard deviations",
    )
    normalisation: Annotated[Normalisation, caseless("reference", "weighted-mean")] = option(
        "reference",
        stage="fit",
        help="What throughput_normalisation applies to: the reference telescope, or the "
        "weighted mean of ln c.",
    )
    minimum_pair_intensity: Annotated[TelescopePatterns, patterns(between(0.0))] | None = option(
        None,
        stage="map",
        help="Image sizes only: smallest geometric mean of a pair's two sizes, a cut that "
        "selects on the light of the shower but not on one telescope's throughput. Unless given, "
        "twice minimum_individual_intensity, and none with the estimator 'asymmetry'.",
        example=160.0,
        unit="photoelectrons",
    )
    distance_term: bool | None = option(
        None,
        stage="map",
        help="Image sizes only: fit ln x1 - ln x2 = theta1 - theta2 + kappa (ln d1 - ln d2) "
        "with the impact distances d and a kappa for each telescope type and range of the mean "
        "distance. Unless given, it is fitted "
        "with the estimator 'log-mean', and with no other.",
        example=True,
    )


class CalculateInterCalibration(JobSection):
    """Relative throughputs of the telescopes, from event-wise asymmetries."""

    asymmetry_label: Annotated[AsymmetryLabel, caseless("energy_asymmetry", "image_asymmetry")] = (
        option("energy_asymmetry", stage="map", help="Which asymmetries are read.")
    )
    reconstruction_algorithm: Algorithm | None = option(
        None,
        stage="map",
        help="Algorithm of the energies. Without it, energy_reconstructor of "
        "CalculateEnergyAsymmetry; if both are given they must agree.",
        example="RandomForestRegressor",
    )
    relative_throughput_fitter: RelativeThroughputFitter | None = inner_section(
        alias="RelativeThroughputFitter", help="Its options win over the same options at top level."
    )


class CalculateCrossCalibration(EnergyPairSection):
    """Throughputs of telescopes of all types on one scale.

    From DL2 files alone: one network of all telescopes. With an inter-calibration among the inputs:
    its ratios within each type, and a scaling factor for each type. With muon throughputs among
    them: the absolute scale. Options of the fit are those of RelativeThroughputFitter.
    """

    input_url: str | None = option(
        None,
        stage="run",
        help="File of an inter-calibration, where the command line names no input (-i).",
        example="inter_calibration.h5",
    )
    input_data_url: str | None = option(
        None,
        stage="run",
        help="Directory of the DL2 files, where the command line names no input (-i).",
        example="dl2/",
    )
    muon_url: str | None = option(
        None,
        stage="run",
        help="File of optical throughputs from muon rings, where the command line names no "
        "input (-i).",
        example="muon_throughput.h5",
    )

    nominal_throughput: ThroughputNormalisation = option(
        ThroughputNormalisation(),
        stage="fit",
        help="Optical throughput, as muons give it, of a telescope whose energies are right "
        "as they are: that of the simulation the reconstruction was trained with. Muon throughputs "
        "are divided by it.",
    )
    min_triggered_telescopes_per_subsystem: int = option(
        2, stage="map", ge=1, help="Selected telescopes that an event needs of either type."
    )
    reference_subsystem: Annotated[str, caseless("LST", "MST", "SST")] = option(
        "MST", stage="fit", min_length=1, help="Type to which the others are scaled."
    )

    @property
    def compares_types(self) -> bool:
        """Whether telescopes of two types make pairs."""
        return True

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs that are named."""
        named = (self.input_data_url, self.input_url, self.muon_url)
        return tuple(url for url in named if url is not None)


def top_fitter(document: Configuration, default: Estimator) -> RelativeThroughputFitter:
    """Return the fitter at top level, with an estimator."""
    fitter = document.get("RelativeThroughputFitter", RelativeThroughputFitter)
    return fitter.model_copy(update={"estimator": fitter.estimator or default})


def inter_sections(
    document: Configuration, notes: list[str]
) -> tuple[
    CalculateInterCalibration,
    RelativeThroughputFitter,
    CalculateEnergyAsymmetry | CalculateImageAsymmetry,
]:
    """Resolve the options of the inter-calibration.

    Parameters
    ----------
    document : Configuration
        The sections of the job.
    notes : list of str
        Gets what is worth a line in the log and the report.

    Returns
    -------
    inter : CalculateInterCalibration
        With the algorithm of the energies, and without a fitter.
    fitter : RelativeThroughputFitter
        Nothing in it is left open.
    asymmetry : PairSection
        How the pairs of DL2 files are selected.

    Raises
    ------
    ConfigError
        Options contradict each other.
    """
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
    asymmetry: CalculateEnergyAsymmetry | CalculateImageAsymmetry
    algorithm = inter.reconstruction_algorithm
    if inter.asymmetry_label == "image_asymmetry":
        algorithm = None
        asymmetry = image_section(document, notes)
        estimator = fitter.estimator or IMAGE_ESTIMATOR
    else:
        asymmetry = energy_section(document, notes, algorithm=algorithm)
        of_events = asymmetry.energy_reconstructor
        if algorithm not in (None, of_events):
            where = document.where(energy_name(document), "energy_reconstructor")
            raise document.error(
                f"'{algorithm}' differs from '{of_events}' ({where}): the asymmetries of one "
                "algorithm cannot be read as those of another; make them agree, or leave this "
                "option out",
                "CalculateInterCalibration",
                "reconstruction_algorithm",
            )
        algorithm = of_events
        estimator = fitter.estimator or ENERGY_ESTIMATOR
    fitter = fitter.model_copy(update={"estimator": estimator})
    least_pair, distance_term = _image_corrections(document, inter, fitter, asymmetry, notes)
    corrections = {"minimum_pair_intensity": least_pair, "distance_term": distance_term}
    mine = {"reconstruction_algorithm": algorithm, "relative_throughput_fitter": None}
    return inter.model_copy(update=mine), fitter.model_copy(update=corrections), asymmetry


def _image_corrections(
    document: Configuration,
    inter: CalculateInterCalibration,
    fitter: RelativeThroughputFitter,
    asymmetry: CalculateEnergyAsymmetry | CalculateImageAsymmetry,
    notes: list[str],
) -> tuple[TelescopePatterns | None, bool]:
    """Resolve the cut on a pair's size and whether the distance term is fitted."""

    def where(option: str) -> tuple[str, ...]:
        nested = inter.relative_throughput_fitter
        inside = nested is not None and option in nested.model_fields_set
        outer = ("CalculateInterCalibration",) if inside else ()
        return (*outer, "RelativeThroughputFitter", option)

    least_pair, distance_term = fitter.minimum_pair_intensity, fitter.distance_term
    if not isinstance(asymmetry, CalculateImageAsymmetry):
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
        least = asymmetry.event_filters.minimum_individual_intensity
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
