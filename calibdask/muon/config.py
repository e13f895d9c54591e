"""Options of the muon calibrations: the YAML sections that users have, resolved for the jobs.

The sections have the names and options of ctapipe's and ctao-calibpipe's components. As there, a
component's section may stand at top level or inside the sections of the components that hold it
(``CalculateThroughputWithMuons.SigmaClippingAggregator.SizeChunking``), and the innermost one wins,
option by option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from calibdask.config import (
    Campaign,
    Configuration,
    JobSection,
    Section,
    caseless,
    inner_section,
    option,
    read_with,
)
from calibdask.config.fields import for_all, patterns
from calibdask.errors import ConfigError
from calibdask.select import QualityCriteria, TelescopePatterns, compile_criteria

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibdask.stats.timebins import TimeBins

__all__ = [
    "DEFAULT_CRITERIA",
    "SECTIONS",
    "SHOWN",
    "MuonConfig",
    "MuonOptions",
    "RingFit",
    "RingFitOptions",
    "resolve",
]

type Aggregator = Literal["SigmaClippingAggregator", "PlainAggregator"]
type Chunking = Literal["SizeChunking", "TimeChunking"]
type LastChunk = Literal["truncate", "skip", "overlap"]

DEFAULT_CRITERIA: tuple[tuple[str, str], ...] = (
    ("min impact parameter", "muonefficiency_impact >= 0.0"),
    ("max impact parameter", "muonefficiency_impact <= 10.0"),
    ("muon efficiency parameters are not at limit", "~muonefficiency_parameters_at_limit"),
    ("throughput calculation is valid", "muonefficiency_is_valid"),
)
"""ctao-calibpipe's selection of rings."""

_HOLE_RADIUS_M = (("type", "LST_*", 0.74), ("type", "MST_*", 0.59), ("type", "SST_1M_*", 0.38))


# -- reading values -----------------------------------------------------------------------------


def _criteria(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{value!r} is not a list of criteria [name, expression]")
    pairs = []
    for number, entry in enumerate(value):
        match entry:
            case [str(name), str(expression)]:
                pairs.append((name, expression))
            case _:
                raise ConfigError(
                    f'entry {number + 1}: {entry!r} is not a criterion such as ["impact", '
                    '"muonefficiency_impact <= 10.0"]: a name and an expression, both in quotes'
                )
    return compile_criteria(pairs).pairs


def _telescopes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value
    ):
        raise ConfigError(f"{value!r} is not a list of telescope numbers such as [1, 2]")
    if not value:
        raise ConfigError("the list is empty: name a telescope, or leave the option out for all")
    return tuple(sorted(set(value)))


def _duration_ns(value: object) -> int:
    from astropy import units as u

    try:
        width_ns = round(float(u.Quantity(value if isinstance(value, str) else "x").to_value(u.ns)))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{value!r} is not a time: write for instance '1 h' or '600 s'") from None
    if not 0 <= width_ns < 2**62:
        raise ConfigError(f"{value!r} is not a duration that a chunk can have")
    return width_ns


type _Patterns = Annotated[TelescopePatterns, patterns()]


# -- sections -----------------------------------------------------------------------------------


class MuonQualityQuery(Section):
    """Selects rings by expressions on the columns of the muon table.

    An expression without units is read in the units of the table (m, deg), as ctao-calibpipe does
    it; with units, such as 10 * u.m, it is converted.
    """

    quality_criteria: Annotated[tuple[tuple[str, str], ...], read_with(_criteria)] = option(
        DEFAULT_CRITERIA,
        stage="map",
        help="List of [name, expression]. A ring is used if all expressions are true.",
    )


class SizeChunking(Section):
    """Cuts the rings of a telescope into chunks of equal number, in order of time."""

    hints: ClassVar[Mapping[str, str]] = {
        "chunk_shift": "overlapping chunks share rings, so they are not independent: leave it out"
    }

    chunk_size: Annotated[int, Field(ge=1)] | None = option(
        None,
        stage="fit",
        help="Rings of a chunk. Without it, and without time bins, all rings are one chunk. "
        "Campaign.time_bin wins over it.",
        example=1000,
    )
    last_chunk_policy: Annotated[LastChunk, caseless("truncate", "skip", "overlap")] = option(
        "truncate",
        stage="fit",
        help="What becomes of the rings left at the end: 'truncate' makes a smaller chunk "
        "of them, 'skip' leaves them out. 'overlap', ctao-calibpipe's default, fills the chunk up "
        "with rings of the one before, so that these count twice: it is read as 'truncate'.",
    )
    allow_undersized_tables: bool = option(
        False,
        stage="fit",
        help="Whether a telescope with fewer rings than one chunk has a value.",
    )


class TimeChunking(Section):
    """Cuts the rings into bins of time aligned to Campaign.epoch, as Campaign.time_bin does."""

    hints: ClassVar[Mapping[str, str]] = {
        "chunk_shift": "overlapping chunks share rings, so they are not independent: leave it out",
        "last_chunk_policy": "leave it out: bins are aligned to an epoch, not to the first ring",
        "allow_undersized_tables": "leave it out: every bin with rings has a value",
    }

    chunk_duration: Annotated[int, read_with(_duration_ns)] = option(
        0,
        stage="plan",
        help="Width of a bin, as number and unit such as '1 h'; 0 s: one bin.",
        example="1 h",
    )


class _Aggregator(Section):
    chunking_type: Annotated[Chunking, caseless("SizeChunking", "TimeChunking")] = option(
        "SizeChunking",
        stage="plan",
        help="How rings are cut into chunks.",
    )
    size_chunking: SizeChunking | None = inner_section(
        alias="SizeChunking",
        help="Counts over the one further out.",
    )
    time_chunking: TimeChunking | None = inner_section(
        alias="TimeChunking",
        help="Counts over the one further out.",
    )


class SigmaClippingAggregator(_Aggregator):
    """Mean and scatter of the rings within some standard deviations of their mean, iterated."""

    max_sigma: float = option(
        4.0,
        stage="fit",
        ge=1.5,
        help="Rings further from the mean are clipped. Below 1.5 clipping need not end.",
        unit="standard deviations",
    )
    iterations: int = option(
        5,
        stage="fit",
        ge=1,
        le=50,
        help="How often it is done at most.",
    )


class PlainAggregator(_Aggregator):
    """Mean and scatter of all rings."""


class _CalculateWithMuons(JobSection):
    """What both jobs have in common."""

    hints: ClassVar[Mapping[str, str]] = {
        **JobSection.hints,
        "chunk_size": "it belongs into SigmaClippingAggregator.SizeChunking",
    }

    append: bool = option(
        False,
        stage="run",
        help="Accepted and without effect: nothing is written into the input. Files added "
        "later join those of an earlier run in its work directory.",
    )
    allowed_tels: Annotated[tuple[int, ...], read_with(_telescopes)] | None = option(
        None,
        stage="map",
        help="Telescopes to calibrate; all unless given.",
        example=[1, 2],
    )
    aggregator_type: Annotated[
        Aggregator, caseless("SigmaClippingAggregator", "PlainAggregator")
    ] = option(
        "SigmaClippingAggregator",
        stage="fit",
        help="How rings are averaged.",
    )
    muon_quality_query: MuonQualityQuery | None = inner_section(
        alias="MuonQualityQuery",
        help="Counts over the one at top level.",
    )
    sigma_clipping: SigmaClippingAggregator | None = inner_section(
        alias="SigmaClippingAggregator",
        help="Counts over the one at top level.",
    )
    plain: PlainAggregator | None = inner_section(
        alias="PlainAggregator",
        help="Counts over the one at top level.",
    )
    size_chunking: SizeChunking | None = inner_section(
        alias="SizeChunking",
        help="Counts over the one at top level.",
    )
    time_chunking: TimeChunking | None = inner_section(
        alias="TimeChunking",
        help="Counts over the one at top level.",
    )


class CalculateThroughputWithMuons(_CalculateWithMuons):
    """Optical throughput of each telescope, from the light in muon rings."""

    min_number_of_muon: int = option(
        10,
        stage="fit",
        ge=2,
        help="Time bins with fewer rings are flagged Q and left out of the trend.",
    )


class CalculatePSFWithMuons(_CalculateWithMuons):
    """Optical point spread function of each telescope, from the width of muon rings."""

    muonring_radius_fit_nbins: int = option(
        10,
        stage="fit",
        ge=2,
        le=1000,
        help="Bins in ring radius, from the smallest radius to the largest. (ctao-calibpipe "
        "0.8.0 takes it as the number of edges and has one bin less.)",
    )
    min_number_of_muon: int = option(
        100,
        stage="fit",
        ge=2,
        help="Bins with fewer rings are left out of the fit.",
    )


class MuonProcessor(Section):
    """What is measured of a ring, where rings are fitted to images."""

    hints: ClassVar[Mapping[str, str]] = {
        "ImageParameterQuery": "the cuts on images are ctapipe's defaults",
        "RingQuery": "the cuts on rings are ctapipe's defaults; select rings in MuonQualityQuery",
    }

    completeness_threshold: _Patterns = option(
        for_all(30.0),
        stage="map",
        help="Light in a segment of the ring that makes it complete.",
        unit="photoelectrons",
    )
    ratio_width: _Patterns = option(
        for_all(1.5),
        stage="map",
        help="Ring width for the intensity ratio, in pixel diameters.",
    )
    pedestal: _Patterns = option(
        for_all(1.1),
        stage="map",
        help="Scatter of a pixel without light.",
        unit="photoelectrons",
    )
    ring_integration_width: _Patterns = option(
        for_all(0.25),
        stage="map",
        help="Width for the light of the ring, in ring radii.",
    )
    outer_ring_width: _Patterns = option(
        for_all(0.2),
        stage="map",
        help="Width for the light outside of it, in ring radii.",
    )


class MuonIntensityFitter(Section):
    """The fit of impact, width and efficiency, where rings are fitted to images."""

    spe_width: _Patterns = option(
        for_all(0.5),
        stage="map",
        help="Width of a photoelectron's distribution.",
    )
    min_lambda_m: _Patterns = option(
        for_all(300e-9),
        stage="map",
        help="Shortest wavelength of the light.",
        unit="m",
    )
    max_lambda_m: _Patterns = option(
        for_all(600e-9),
        stage="map",
        help="Longest wavelength of the light.",
        unit="m",
    )
    hole_radius_m: _Patterns = option(
        TelescopePatterns((("type", "*", 0.0), *_HOLE_RADIUS_M)),
        stage="map",
        help="Radius of the hole in the mirror.",
        unit="m",
    )
    oversampling: _Patterns = option(
        for_all(3.0),
        stage="map",
        help="Points in a pixel's angle for the line integral.",
    )
    compatibility: Annotated[Literal["ctapipe"], caseless("ctapipe")] | None = option(
        None,
        stage="map",
        help="ctapipe: the model of ctapipe 0.32 with its fixed circle, and "
        "MuonProcessor.pedestal as noise. Its efficiencies are off by -4.7 % (hexagonal pixels), "
        "+27 % (square) and -22 % (round) on an absolute scale. Unless given, pixels count with "
        "their area and noise is measured off the ring.",
        example="ctapipe",
    )
    fit_circle: bool | None = option(
        None,
        stage="map",
        help="Whether the likelihood moves the circle, too: yes, unless compatibility is "
        "given. With the circle fixed at the fit of pixel positions, whose radius is too large for "
        "wide rings, the efficiency is low by 0.2 % (width 0.05 deg) to 1.3 % (0.2 deg).",
        example=False,
    )
    saturation_pe: _Patterns = option(
        for_all(0.0),
        stage="map",
        help="Charge that a pixel reads at most. Rings with a pixel at or above it are "
        "left out, and so are those where three pixels or more read the same largest charge to "
        "the last bit. 0: not known.",
        unit="photoelectrons",
    )
    max_noise: _Patterns = option(
        for_all(2.0),
        stage="map",
        help="Rings are left out where the noise measured off them is larger than so many "
        "times MuonProcessor.pedestal.",
    )
    max_misfit: _Patterns = option(
        for_all(3.0),
        stage="map",
        help="Rings are left out where the chi2 of their pixels over its degrees of freedom "
        "is larger: a second ring, or a telescope that the model does not describe.",
    )


class TailcutsImageCleaner(Section):
    """Which pixels of an image count, where images come without a mask."""

    picture_threshold_pe: _Patterns = option(
        for_all(10.0),
        stage="map",
        help="Charge of a pixel that is kept with its neighbours.",
        unit="photoelectrons",
    )
    boundary_threshold_pe: _Patterns = option(
        for_all(5.0),
        stage="map",
        help="Charge of a pixel that is kept beside one of these.",
        unit="photoelectrons",
    )
    min_picture_neighbors: _Patterns = option(
        for_all(2.0),
        stage="map",
        help="Such neighbours that a pixel of the picture needs.",
    )


class EventSource(Section):
    """How images are read."""

    focal_length_choice: Annotated[
        Literal["EFFECTIVE", "EQUIVALENT"], caseless("EFFECTIVE", "EQUIVALENT")
    ] = option(
        "EFFECTIVE",
        stage="map",
        help="Focal length that turns camera positions into angles, where rings are fitted "
        "to images. Tables of rings need none. Files of single telescopes often lack the effective "
        "one.",
    )


class RingFit(Section):
    """How rings are fitted to images: the sections that stand at top level."""

    source: EventSource = inner_section(EventSource(), help="", alias="EventSource")
    cleaner: TailcutsImageCleaner = inner_section(
        TailcutsImageCleaner(), help="", alias="TailcutsImageCleaner"
    )
    processor: MuonProcessor = inner_section(MuonProcessor(), help="", alias="MuonProcessor")
    fitter: MuonIntensityFitter = inner_section(
        MuonIntensityFitter(), help="", alias="MuonIntensityFitter"
    )


_OF_RINGS: Mapping[str, type[Section]] = {
    "MuonQualityQuery": MuonQualityQuery,
    "QualityQuery": MuonQualityQuery,
    "SigmaClippingAggregator": SigmaClippingAggregator,
    "PlainAggregator": PlainAggregator,
    "SizeChunking": SizeChunking,
    "TimeChunking": TimeChunking,
    "MuonProcessor": MuonProcessor,
    "MuonIntensityFitter": MuonIntensityFitter,
    "TailcutsImageCleaner": TailcutsImageCleaner,
    "EventSource": EventSource,
}

SECTIONS: Mapping[str, type[Section]] = {
    "CalculateThroughputWithMuons": CalculateThroughputWithMuons,
    "CalculatePSFWithMuons": CalculatePSFWithMuons,
    **_OF_RINGS,
}
"""All sections that a muon configuration may have."""

SHOWN: Mapping[str, type[Section]] = {
    name: SECTIONS[name]
    for name in (
        *("MuonQualityQuery", "SigmaClippingAggregator", "SizeChunking", "EventSource"),
        *("TailcutsImageCleaner", "MuonProcessor", "MuonIntensityFitter"),
    )
}
"""Those of all jobs that a new configuration shows."""


# -- options of the jobs ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RingFitOptions:
    """Options of the fit of rings to images, by telescope.

    Attributes
    ----------
    focal_length_choice : str
        ``EFFECTIVE`` or ``EQUIVALENT``.
    fit_circle : bool
        Whether the likelihood moves the circle.
    of_ctapipe : bool
        Whether the model is ctapipe's.
    patterns : tuple of (str, TelescopePatterns)
        Name of an option of the ring fit, and its values by telescope.
    """

    focal_length_choice: Literal["EFFECTIVE", "EQUIVALENT"]
    fit_circle: bool
    of_ctapipe: bool
    patterns: tuple[tuple[str, TelescopePatterns], ...]

    def of_telescope(self, tel_id: int, description: str) -> dict[str, float]:
        """Return the values for one telescope."""
        return {
            name: float(patterns.resolve([tel_id], [description], option=name)[0])
            for name, patterns in self.patterns
        }


@dataclass(frozen=True, slots=True)
class MuonOptions:
    """Options of a muon calibration, resolved.

    Attributes
    ----------
    quality_criteria : QualityCriteria
        Selection of rings.
    ring_fit : RingFitOptions
        How rings are fitted to images.
    allowed_tels : tuple of int or None
        Telescopes to calibrate; None: all.
    clip_sigma : float or None
        Where rings are clipped, in standard deviations; None: nowhere.
    iterations : int
        How often, at most.
    bins : TimeBins or None
        Time bins; None: one for all.
    chunk_size : int or None
        Rings of a chunk, where there are no time bins.
    skip_last : bool
        Leave out a last chunk that is not full.
    allow_undersized : bool
        Whether a telescope with fewer rings than a chunk has a value.
    min_rings : int
        Fewest rings of a value that counts.
    n_radius_bins : int
        Bins in ring radius.
    """

    quality_criteria: QualityCriteria
    ring_fit: RingFitOptions
    allowed_tels: tuple[int, ...] | None = None
    clip_sigma: float | None = 4.0
    iterations: int = 5
    bins: TimeBins | None = None
    chunk_size: int | None = None
    skip_last: bool = False
    allow_undersized: bool = False
    min_rings: int = 10
    n_radius_bins: int = 10


@dataclass(frozen=True, slots=True)
class MuonConfig:
    """A checked configuration of a muon calibration.

    Attributes
    ----------
    section : CalculateThroughputWithMuons or CalculatePSFWithMuons
        The section of the job with the innermost query, aggregator and chunking.
    ring_fit : RingFit
        How rings are fitted to images.
    options : MuonOptions
        The same, as the job uses it.
    notes : tuple of str
        What is valid but worth a line in the log and the report.
    """

    section: CalculateThroughputWithMuons | CalculatePSFWithMuons
    ring_fit: RingFit
    options: MuonOptions
    notes: tuple[str, ...]


def resolve(job: str, document: Configuration, campaign: Campaign) -> MuonConfig:
    """Resolve the options of a muon calibration (ConfigError for what is contradictory)."""
    tool: CalculateThroughputWithMuons | CalculatePSFWithMuons
    if job == "calculate-psf-muon":
        tool = document.get("CalculatePSFWithMuons", CalculatePSFWithMuons)
        n_radius_bins = tool.muonring_radius_fit_nbins
    else:
        tool = document.get("CalculateThroughputWithMuons", CalculateThroughputWithMuons)
        n_radius_bins = CalculatePSFWithMuons().muonring_radius_fit_nbins
    notes: list[str] = []
    if tool.append:
        notes.append(f"{type(tool).__name__}.append is without effect: the output is a file anew")
    query = _joined(
        MuonQualityQuery,
        document.find("QualityQuery", MuonQualityQuery),
        document.find("MuonQualityQuery", MuonQualityQuery),
        tool.muon_quality_query,
    )
    if not query.quality_criteria:
        notes.append("no quality criteria, so every ring is used, whether its fit is valid or not")
    clipping = tool.aggregator_type == "SigmaClippingAggregator"
    sigma = _joined(
        SigmaClippingAggregator,
        document.find("SigmaClippingAggregator", SigmaClippingAggregator),
        tool.sigma_clipping,
    )
    plain = _joined(PlainAggregator, document.find("PlainAggregator", PlainAggregator), tool.plain)
    aggregator: _Aggregator = sigma if clipping else plain
    size = _joined(
        SizeChunking,
        document.find("SizeChunking", SizeChunking),
        tool.size_chunking,
        aggregator.size_chunking,
    )
    bins, chunk_size = _chunks(document, tool, aggregator, size, campaign, notes)
    if chunk_size is not None and job == "calculate-psf-muon":
        # The peer does as much and then uses the first chunk of each radius bin only.
        notes.append(
            f"SizeChunking.chunk_size {chunk_size} is without effect here: the line is fitted to"
            " all rings of a time bin"
        )
        chunk_size = None
    ring_fit = RingFit().model_copy(
        update={
            "source": document.get("EventSource", EventSource),
            "cleaner": document.get("TailcutsImageCleaner", TailcutsImageCleaner),
            "processor": document.get("MuonProcessor", MuonProcessor),
            "fitter": document.get("MuonIntensityFitter", MuonIntensityFitter),
        }
    )
    options = MuonOptions(
        quality_criteria=QualityCriteria(query.quality_criteria),
        allowed_tels=tool.allowed_tels,
        clip_sigma=sigma.max_sigma if clipping else None,
        iterations=sigma.iterations if clipping else 0,
        bins=bins,
        chunk_size=chunk_size,
        skip_last=size.last_chunk_policy == "skip",
        allow_undersized=size.allow_undersized_tables,
        min_rings=tool.min_number_of_muon,
        n_radius_bins=n_radius_bins,
        ring_fit=_ring_fit(ring_fit),
    )
    within = {"size_chunking": None, "time_chunking": None}
    section = tool.model_copy(
        update={
            "muon_quality_query": query,
            "sigma_clipping": sigma.model_copy(update=within) if clipping else None,
            "plain": None,
            "size_chunking": size,
            "time_chunking": None,
        }
    )
    return MuonConfig(section, ring_fit, options, tuple(notes))


def _joined[S: Section](model: type[S], *sections: S | None) -> S:
    """Join sections of one component, later ones winning option by option."""
    chosen: dict[str, Any] = {}
    for section in sections:
        if section is not None:
            chosen |= {name: getattr(section, name) for name in section.model_fields_set}
    return model().model_copy(update=chosen)


def _chunks(
    document: Configuration,
    tool: _CalculateWithMuons,
    aggregator: _Aggregator,
    size: SizeChunking,
    campaign: Campaign,
    notes: list[str],
) -> tuple[TimeBins | None, int | None]:
    """Decide between time bins, chunks by number, and one bin for all."""
    by_time = aggregator.chunking_type == "TimeChunking"
    if size.last_chunk_policy == "overlap":
        notes.append(
            "SizeChunking.last_chunk_policy 'overlap' would count rings of the last chunk but one"
            " twice: read as 'truncate'"
        )
    if campaign.bins is not None:
        if size.chunk_size is not None and not by_time:
            notes.append("SizeChunking.chunk_size is not used: Campaign.time_bin counts")
        return campaign.bins, None
    if not by_time:
        return None, size.chunk_size
    chunking = _joined(
        TimeChunking,
        document.find("TimeChunking", TimeChunking),
        tool.time_chunking,
        aggregator.time_chunking,
    )
    if chunking.chunk_duration == 0:
        return None, None
    epoch = campaign.model_copy(update={"time_bin": chunking.chunk_duration}).bins
    notes.append(
        "TimeChunking.chunk_duration: bins are aligned to Campaign.epoch, not to the first ring, so"
        " that they do not depend on where files begin"
    )
    return epoch, None


def _ring_fit(ring_fit: RingFit) -> RingFitOptions:
    processor, fitter, cleaner = ring_fit.processor, ring_fit.fitter, ring_fit.cleaner
    names = {
        "min_lambda_m": "min_wavelength_m",
        "max_lambda_m": "max_wavelength_m",
        "picture_threshold_pe": "picture_threshold",
        "boundary_threshold_pe": "boundary_threshold",
    }
    values = [
        (names.get(name, name), getattr(section, name))
        for section in (cleaner, processor, fitter)
        for name in type(section).model_fields
        if name not in ("compatibility", "fit_circle")
    ]
    choice = ring_fit.source.focal_length_choice
    of_ctapipe = fitter.compatibility is not None
    if of_ctapipe and fitter.fit_circle:
        raise ConfigError(
            "MuonIntensityFitter.fit_circle: true was given with compatibility: ctapipe, which"
            " fixes the circle; leave one of them out"
        )
    fit_circle = not of_ctapipe if fitter.fit_circle is None else fitter.fit_circle
    return RingFitOptions(choice, fit_circle, of_ctapipe, tuple(values))
