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
    ENGINE_SECTIONS,
    Campaign,
    Configuration,
    Section,
    caseless,
    load_config,
    read_with,
)
from calibdask.errors import ConfigError
from calibdask.select import QualityCriteria, TelescopePatterns, compile_criteria, finite_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from calibdask.stats.timebins import TimeBins

__all__ = [
    "DEFAULT_CRITERIA",
    "JOB_SECTIONS",
    "SECTIONS",
    "MuonConfig",
    "MuonOptions",
    "RingFitOptions",
    "load_muon_config",
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


def _patterns(value: object) -> TelescopePatterns:
    return TelescopePatterns.parse(value, finite_number)


type _Patterns = Annotated[TelescopePatterns, read_with(_patterns)]


def _for_all(value: float) -> TelescopePatterns:
    return TelescopePatterns((("type", "*", value),))


# -- sections -----------------------------------------------------------------------------------


class MuonQualityQuery(Section):
    """Selects rings by expressions on the columns of the muon table.

    An expression without units is read in the units of the table (m, deg), as ctao-calibpipe does
    it; with units, such as 10 * u.m, it is converted.
    """

    quality_criteria: Annotated[tuple[tuple[str, str], ...], read_with(_criteria)] = Field(
        default=DEFAULT_CRITERIA,
        description="List of [name, expression]. A ring is used if all expressions are true.",
    )


class SizeChunking(Section):
    """Cuts the rings of a telescope into chunks of equal number, in order of time."""

    hints: ClassVar[Mapping[str, str]] = {
        "chunk_shift": "overlapping chunks share rings, so they are not independent: leave it out"
    }

    chunk_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Rings of a chunk. Without it, and without time bins, all rings are one chunk. "
        "Campaign.time_bin wins over it.",
        examples=[1000],
    )
    last_chunk_policy: Annotated[LastChunk, caseless("truncate", "skip", "overlap")] = Field(
        default="truncate",
        description="What becomes of the rings left at the end: 'truncate' makes a smaller chunk "
        "of them, 'skip' leaves them out. 'overlap', ctao-calibpipe's default, fills the chunk up "
        "with rings of the one before, so that these count twice: it is read as 'truncate'.",
    )
    allow_undersized_tables: bool = Field(
        default=False,
        description="Whether a telescope with fewer rings than one chunk has a value.",
    )


class TimeChunking(Section):
    """Cuts the rings into bins of time aligned to Campaign.epoch, as Campaign.time_bin does."""

    hints: ClassVar[Mapping[str, str]] = {
        "chunk_shift": "overlapping chunks share rings, so they are not independent: leave it out",
        "last_chunk_policy": "leave it out: bins are aligned to an epoch, not to the first ring",
        "allow_undersized_tables": "leave it out: every bin with rings has a value",
    }

    chunk_duration: Annotated[int, read_with(_duration_ns)] = Field(
        default=0, description="Width of a bin, as number and unit such as '1 h'; 0 s: one bin."
    )


class _Aggregator(Section):
    chunking_type: Annotated[Chunking, caseless("SizeChunking", "TimeChunking")] = Field(
        default="SizeChunking", description="How rings are cut into chunks."
    )
    size_chunking: SizeChunking | None = Field(
        default=None, alias="SizeChunking", description="Counts over the one further out."
    )
    time_chunking: TimeChunking | None = Field(
        default=None, alias="TimeChunking", description="Counts over the one further out."
    )


class SigmaClippingAggregator(_Aggregator):
    """Mean and scatter of the rings within some standard deviations of their mean, iterated."""

    max_sigma: float = Field(
        default=4.0,
        ge=1.5,
        description="Rings further from the mean are clipped. Below 1.5 clipping need not end.",
        json_schema_extra={"unit": "standard deviations"},
    )
    iterations: int = Field(default=5, ge=1, le=50, description="How often it is done at most.")


class PlainAggregator(_Aggregator):
    """Mean and scatter of all rings."""


class _CalculateWithMuons(Section):
    """What both jobs have in common."""

    hints: ClassVar[Mapping[str, str]] = {
        "chunk_size": "it belongs into SigmaClippingAggregator.SizeChunking",
        "log_level": "use --log-level on the command line",
        "log_file": "use -l FILE on the command line",
        "log_file_level": "use --log-level on the command line",
        "provenance_log": "use --provenance-log on the command line",
        "quiet": "use -q on the command line",
    }

    input_url: str | None = Field(
        default=None,
        description="Input, where the command line names none (-i).",
        examples=["muons.dl1.h5"],
    )
    output_url: str | None = Field(
        default=None,
        description="Output, where the command line names none (-o).",
        examples=["out.h5"],
    )
    overwrite: bool = Field(default=False, description="Replace an output that exists.")
    append: bool = Field(
        default=False,
        description="Accepted and without effect: nothing is written into the input. Files added "
        "later join those of an earlier run in its work directory.",
    )
    allowed_tels: Annotated[tuple[int, ...], read_with(_telescopes)] | None = Field(
        default=None, description="Telescopes to calibrate; all unless given.", examples=[[1, 2]]
    )
    aggregator_type: Annotated[
        Aggregator, caseless("SigmaClippingAggregator", "PlainAggregator")
    ] = Field(default="SigmaClippingAggregator", description="How rings are averaged.")
    muon_quality_query: MuonQualityQuery | None = Field(
        default=None, alias="MuonQualityQuery", description="Counts over the one at top level."
    )
    sigma_clipping: SigmaClippingAggregator | None = Field(
        default=None,
        alias="SigmaClippingAggregator",
        description="Counts over the one at top level.",
    )
    plain: PlainAggregator | None = Field(
        default=None, alias="PlainAggregator", description="Counts over the one at top level."
    )
    size_chunking: SizeChunking | None = Field(
        default=None, alias="SizeChunking", description="Counts over the one at top level."
    )
    time_chunking: TimeChunking | None = Field(
        default=None, alias="TimeChunking", description="Counts over the one at top level."
    )


class CalculateThroughputWithMuons(_CalculateWithMuons):
    """Optical throughput of each telescope, from the light in muon rings."""

    min_number_of_muon: int = Field(
        default=10,
        ge=2,
        description="Time bins with fewer rings are flagged Q and left out of the trend.",
    )


class CalculatePSFWithMuons(_CalculateWithMuons):
    """Optical point spread function of each telescope, from the width of muon rings."""

    muonring_radius_fit_nbins: int = Field(
        default=10,
        ge=2,
        le=1000,
        description="Bins in ring radius, from the smallest radius to the largest. (ctao-calibpipe "
        "0.8.0 takes it as the number of edges and has one bin less.)",
    )
    min_number_of_muon: int = Field(
        default=100, ge=2, description="Bins with fewer rings are left out of the fit."
    )


class MuonProcessor(Section):
    """What is measured of a ring, where rings are fitted to images."""

    hints: ClassVar[Mapping[str, str]] = {
        "ImageParameterQuery": "the cuts on images are ctapipe's defaults",
        "RingQuery": "the cuts on rings are ctapipe's defaults; select rings in MuonQualityQuery",
    }

    completeness_threshold: _Patterns = Field(
        default=_for_all(30.0),
        description="Light in a segment of the ring that makes it complete.",
        json_schema_extra={"unit": "photoelectrons"},
    )
    ratio_width: _Patterns = Field(
        default=_for_all(1.5),
        description="Ring width for the intensity ratio, in pixel diameters.",
    )
    pedestal: _Patterns = Field(
        default=_for_all(1.1),
        description="Scatter of a pixel without light.",
        json_schema_extra={"unit": "photoelectrons"},
    )
    ring_integration_width: _Patterns = Field(
        default=_for_all(0.25), description="Width for the light of the ring, in ring radii."
    )
    outer_ring_width: _Patterns = Field(
        default=_for_all(0.2), description="Width for the light outside of it, in ring radii."
    )


class MuonIntensityFitter(Section):
    """The fit of impact, width and efficiency, where rings are fitted to images."""

    spe_width: _Patterns = Field(
        default=_for_all(0.5), description="Width of a photoelectron's distribution."
    )
    min_lambda_m: _Patterns = Field(
        default=_for_all(300e-9),
        description="Shortest wavelength of the light.",
        json_schema_extra={"unit": "m"},
    )
    max_lambda_m: _Patterns = Field(
        default=_for_all(600e-9),
        description="Longest wavelength of the light.",
        json_schema_extra={"unit": "m"},
    )
    hole_radius_m: _Patterns = Field(
        default=TelescopePatterns((("type", "*", 0.0), *_HOLE_RADIUS_M)),
        description="Radius of the hole in the mirror.",
        json_schema_extra={"unit": "m"},
    )
    oversampling: _Patterns = Field(
        default=_for_all(3.0), description="Points in a pixel's angle for the line integral."
    )
    compatibility: Annotated[Literal["ctapipe"], caseless("ctapipe")] | None = Field(
        default=None,
        description="ctapipe: the model of ctapipe 0.32 with its fixed circle, and "
        "MuonProcessor.pedestal as noise. Its efficiencies are off by -4.7 % (hexagonal pixels), "
        "+27 % (square) and -22 % (round) on an absolute scale. Unless given, pixels count with "
        "their area and noise is measured off the ring.",
        examples=["ctapipe"],
    )
    fit_circle: bool | None = Field(
        default=None,
        description="Whether the likelihood moves the circle, too: yes, unless compatibility is "
        "given. With the circle fixed at the fit of pixel positions, whose radius is too large for "
        "wide rings, the efficiency is low by 0.2 % (width 0.05 deg) to 1.3 % (0.2 deg).",
        examples=[False],
    )
    saturation_pe: _Patterns = Field(
        default=_for_all(0.0),
        description="Charge that a pixel reads at most. Rings with a pixel at or above it are "
        "left out, and so are those where three pixels or more read the same largest charge to "
        "the last bit. 0: not known.",
        json_schema_extra={"unit": "photoelectrons"},
    )
    max_noise: _Patterns = Field(
        default=_for_all(2.0),
        description="Rings are left out where the noise measured off them is larger than so many "
        "times MuonProcessor.pedestal.",
    )
    max_misfit: _Patterns = Field(
        default=_for_all(3.0),
        description="Rings are left out where the chi2 of their pixels over its degrees of freedom "
        "is larger: a second ring, or a telescope that the model does not describe.",
    )


class TailcutsImageCleaner(Section):
    """Which pixels of an image count, where images come without a mask."""

    picture_threshold_pe: _Patterns = Field(
        default=_for_all(10.0),
        description="Charge of a pixel that is kept with its neighbours.",
        json_schema_extra={"unit": "photoelectrons"},
    )
    boundary_threshold_pe: _Patterns = Field(
        default=_for_all(5.0),
        description="Charge of a pixel that is kept beside one of these.",
        json_schema_extra={"unit": "photoelectrons"},
    )
    min_picture_neighbors: _Patterns = Field(
        default=_for_all(2.0), description="Such neighbours that a pixel of the picture needs."
    )


class EventSource(Section):
    """How images are read."""

    focal_length_choice: Annotated[
        Literal["EFFECTIVE", "EQUIVALENT"], caseless("EFFECTIVE", "EQUIVALENT")
    ] = Field(
        default="EFFECTIVE",
        description="Focal length that turns camera positions into angles, where rings are fitted "
        "to images. Tables of rings need none. Files of single telescopes often lack the effective "
        "one.",
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
    **ENGINE_SECTIONS,
}
"""All sections that a muon configuration may have."""

_SHOWN = ("MuonQualityQuery", "SigmaClippingAggregator", "SizeChunking", "EventSource")
_SHOWN_OF_FITS = ("TailcutsImageCleaner", "MuonProcessor", "MuonIntensityFitter")

JOB_SECTIONS: Mapping[str, tuple[str, ...]] = {
    job: (section, *_SHOWN, *_SHOWN_OF_FITS, *ENGINE_SECTIONS)
    for job, section in (
        ("calculate-throughput-muon", "CalculateThroughputWithMuons"),
        ("calculate-psf-muon", "CalculatePSFWithMuons"),
    )
}
"""The sections that a job uses, in the order in which a new configuration shows them."""


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
        """Give the values for one telescope."""
        return {
            name: float(patterns.resolve([tel_id], [description], option=name)[0])
            for name, patterns in self.patterns
        }

    def map_options(self) -> dict[str, Any]:
        """Give what the rings depend on, ready for JSON."""
        return {
            "focal_length_choice": self.focal_length_choice,
            "fit_circle": self.fit_circle,
            "of_ctapipe": self.of_ctapipe,
            **{name: patterns.to_plain() for name, patterns in self.patterns},
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

    def map_options(self) -> dict[str, Any]:
        """Give the options that the rings of a shard and their first summary depend on."""
        return {
            "quality_criteria": [list(pair) for pair in self.quality_criteria.pairs],
            "allowed_tels": None if self.allowed_tels is None else list(self.allowed_tels),
            "bins": None if self.bins is None else self.bins.config(),
            "by_number": self.chunk_size is not None,
        }

    def fit_options(self) -> dict[str, Any]:
        """Give the options that only fits depend on."""
        return {
            "clip_sigma": self.clip_sigma,
            "iterations": self.iterations,
            "chunk_size": self.chunk_size,
            "skip_last": self.skip_last,
            "allow_undersized": self.allow_undersized,
            "min_rings": self.min_rings,
            "n_radius_bins": self.n_radius_bins,
        }


@dataclass(frozen=True, slots=True)
class MuonConfig:
    """A checked configuration of a muon calibration.

    Attributes
    ----------
    options : MuonOptions
        Options of the job.
    campaign : Campaign
        Options of the engine.
    input_url, output_url : str or None
        Files named in the configuration; the command line wins.
    overwrite : bool
        Replace an output that exists.
    notes : tuple of str
        What is valid but worth a line in the log and the report.
    document : Configuration
        The sections as they were given.
    """

    options: MuonOptions
    campaign: Campaign
    input_url: str | None
    output_url: str | None
    overwrite: bool
    notes: tuple[str, ...]
    document: Configuration


def load_muon_config(
    job: str,
    paths: Sequence[Path | str],
    overrides: Mapping[str, object] | None = None,
    *,
    others: Callable[[], Mapping[str, type[Section]]] = dict,
) -> MuonConfig:
    """Read the configuration of a muon calibration.

    Parameters
    ----------
    job : str
        ``calculate-throughput-muon`` or ``calculate-psf-muon``.
    paths : sequence of path
        YAML files, merged in order; later ones win. With none, all defaults.
    overrides : mapping of str to object, optional
        Options from the command line, by dotted path.
    others : callable, optional
        Gives the sections of other jobs, which may stand in the same file.

    Raises
    ------
    ConfigError
        Anything that is wrong, with file, line, dotted path, value and remedy.
    """
    document = load_config(SECTIONS, paths, overrides, others=others)
    campaign = document.get("Campaign", Campaign)
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
        ring_fit=_ring_fit(document),
    )
    return MuonConfig(
        options,
        campaign,
        tool.input_url,
        tool.output_url,
        tool.overwrite,
        tuple(notes),
        document,
    )


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


def _ring_fit(document: Configuration) -> RingFitOptions:
    processor = document.get("MuonProcessor", MuonProcessor)
    fitter = document.get("MuonIntensityFitter", MuonIntensityFitter)
    cleaner = document.get("TailcutsImageCleaner", TailcutsImageCleaner)
    names = {
        "min_lambda_m": "min_wavelength_m",
        "max_lambda_m": "max_wavelength_m",
        "picture_threshold_pe": "picture_threshold",
        "boundary_threshold_pe": "boundary_threshold",
    }
    patterns = [
        (names.get(name, name), getattr(section, name))
        for section in (cleaner, processor, fitter)
        for name in type(section).model_fields
        if name not in ("compatibility", "fit_circle")
    ]
    choice = document.get("EventSource", EventSource).focal_length_choice
    of_ctapipe = fitter.compatibility is not None
    if of_ctapipe and fitter.fit_circle:
        raise ConfigError(
            "MuonIntensityFitter.fit_circle: true was given with compatibility: ctapipe, which"
            " fixes the circle; leave one of them out"
        )
    fit_circle = not of_ctapipe if fitter.fit_circle is None else fitter.fit_circle
    return RingFitOptions(choice, fit_circle, of_ctapipe, tuple(patterns))
