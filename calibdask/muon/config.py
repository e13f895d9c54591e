"""Options of the muon calibrations: the YAML sections that users have, resolved for the jobs.

The sections have the names and options of ctapipe's and ctao-calibpipe's components. As there, a
component's section may stand at top level or inside the sections of the components that hold it
(``CalculateThroughputWithMuons.SigmaClippingAggregator.SizeChunking``), and the innermost one wins,
option by option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

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
from calibdask.errors import ConfigError
from calibdask.muon.ring_config import (
    EventSource,
    MuonIntensityFitter,
    MuonProcessor,
    RingFit,
    TailcutsImageCleaner,
)
from calibdask.select import QualityCriteria, compile_criteria

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibdask.stats.timebins import TimeBins

__all__ = [
    "DEFAULT_CRITERIA",
    "SECTIONS",
    "SHOWN",
    "CalculatePSFWithMuons",
    "CalculateThroughputWithMuons",
    "MuonConfig",
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


def _component(name: str) -> Any:
    """Declare the section of a component inside of one that holds it."""
    return inner_section(alias=name, help="Takes precedence over the section further out.")


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
        False, stage="fit", help="Whether a telescope with fewer rings than one chunk has a value."
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
        "SizeChunking", stage="plan", help="How rings are cut into chunks."
    )
    size_chunking: SizeChunking | None = _component("SizeChunking")
    time_chunking: TimeChunking | None = _component("TimeChunking")


class SigmaClippingAggregator(_Aggregator):
    """Mean and scatter of the rings within some standard deviations of their mean, iterated."""

    max_sigma: float = option(
        4.0,
        stage="fit",
        ge=1.5,
        help="Rings further from the mean are clipped. Below 1.5 clipping need not end.",
        unit="standard deviations",
    )
    iterations: int = option(5, stage="fit", ge=1, le=50, help="How often it is done at most.")


class PlainAggregator(_Aggregator):
    """Mean and scatter of all rings."""


class _MuonJobSection(JobSection):
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
        None, stage="map", help="Telescopes to calibrate; all unless given.", example=[1, 2]
    )
    aggregator_type: Annotated[
        Aggregator, caseless("SigmaClippingAggregator", "PlainAggregator")
    ] = option("SigmaClippingAggregator", stage="fit", help="How rings are averaged.")
    muon_quality_query: MuonQualityQuery | None = _component("MuonQualityQuery")
    sigma_clipping: SigmaClippingAggregator | None = _component("SigmaClippingAggregator")
    plain: PlainAggregator | None = _component("PlainAggregator")
    size_chunking: SizeChunking | None = _component("SizeChunking")
    time_chunking: TimeChunking | None = _component("TimeChunking")

    @property
    def criteria(self) -> QualityCriteria:
        """Selection of rings."""
        query = self.muon_quality_query or MuonQualityQuery()
        return QualityCriteria(query.quality_criteria)

    @property
    def clip_sigma(self) -> float | None:
        """Where rings are clipped, in standard deviations; None: nowhere."""
        return self.sigma_clipping.max_sigma if self.sigma_clipping else None

    @property
    def iterations(self) -> int:
        """How often rings are clipped, at most."""
        return self.sigma_clipping.iterations if self.sigma_clipping else 0


class CalculateThroughputWithMuons(_MuonJobSection):
    """Optical throughput of each telescope, from the light in muon rings."""

    min_number_of_muon: int = option(
        10,
        stage="fit",
        ge=2,
        help="Time bins with fewer rings are flagged Q and left out of the trend.",
    )


class CalculatePSFWithMuons(_MuonJobSection):
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
        100, stage="fit", ge=2, help="Bins with fewer rings are left out of the fit."
    )


SECTIONS: Mapping[str, type[Section]] = {"QualityQuery": MuonQualityQuery} | {
    model.__name__: model
    for model in (
        *(CalculateThroughputWithMuons, CalculatePSFWithMuons, MuonQualityQuery),
        *(SigmaClippingAggregator, PlainAggregator, SizeChunking, TimeChunking),
        *(MuonProcessor, MuonIntensityFitter, TailcutsImageCleaner, EventSource),
    )
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


# -- configurations -----------------------------------------------------------------------------


class MuonConfig(NamedTuple):
    """A checked configuration of a muon calibration.

    Attributes
    ----------
    section : CalculateThroughputWithMuons or CalculatePSFWithMuons
        The section of the job with the innermost query, aggregator and chunking.
    ring_fit : RingFit
        How rings are fitted to images.
    bins : TimeBins or None
        Time bins; None: one for all rings.
    chunk_size : int or None
        Rings of a chunk, where there are no time bins.
    notes : tuple of str
        What is valid but worth a line in the log and the report.
    """

    section: CalculateThroughputWithMuons | CalculatePSFWithMuons
    ring_fit: RingFit
    bins: TimeBins | None
    chunk_size: int | None
    notes: tuple[str, ...]


def resolve(document: Configuration, campaign: Campaign, *, psf: bool) -> MuonConfig:
    """Resolve the options of a muon calibration (ConfigError for what is contradictory)."""
    tool: CalculateThroughputWithMuons | CalculatePSFWithMuons
    if psf:
        tool = document.get("CalculatePSFWithMuons", CalculatePSFWithMuons)
    else:
        tool = document.get("CalculateThroughputWithMuons", CalculateThroughputWithMuons)
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

    def found[S: Section](of: type[S], *inner: S | None) -> S:
        return _joined(of, document.find(of.__name__, of), *inner)

    clipping = tool.aggregator_type == "SigmaClippingAggregator"
    sigma = found(SigmaClippingAggregator, tool.sigma_clipping)
    aggregator = sigma if clipping else found(PlainAggregator, tool.plain)
    size = found(SizeChunking, tool.size_chunking, aggregator.size_chunking)
    if size.last_chunk_policy == "overlap":
        notes.append(
            "SizeChunking.last_chunk_policy 'overlap' would count rings of the last chunk but one"
            " twice: read as 'truncate'"
        )
    bins, chunk_size = campaign.bins, None
    if aggregator.chunking_type == "TimeChunking":
        time = found(TimeChunking, tool.time_chunking, aggregator.time_chunking)
        if bins is None and time.chunk_duration:
            bins = campaign.model_copy(update={"time_bin": time.chunk_duration}).bins
            notes.append(
                "TimeChunking.chunk_duration: bins are aligned to Campaign.epoch, not to the first"
                " ring, so that they do not depend on where files begin"
            )
    elif size.chunk_size is not None:
        if bins is not None:
            notes.append("SizeChunking.chunk_size is not used: Campaign.time_bin counts")
        elif psf:
            # The peer does as much and then uses the first chunk of each radius bin only.
            notes.append(
                f"SizeChunking.chunk_size {size.chunk_size} is without effect here: the line is"
                " fitted to all rings of a time bin"
            )
        else:
            chunk_size = size.chunk_size
    parts = {
        name: found(type(section)) for name, section in RingFit() if isinstance(section, Section)
    }
    ring_fit = RingFit().model_copy(update=parts)
    if ring_fit.of_ctapipe and ring_fit.fitter.fit_circle:
        raise ConfigError(
            "MuonIntensityFitter.fit_circle: true was given with compatibility: ctapipe, which"
            " fixes the circle; leave one of them out"
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
    return MuonConfig(section, ring_fit, bins, chunk_size, tuple(notes))


def _joined[S: Section](model: type[S], *sections: S | None) -> S:
    """Join sections of one component, later ones winning option by option."""
    chosen: dict[str, Any] = {}
    for section in sections:
        if section is not None:
            chosen |= {name: getattr(section, name) for name in section.model_fields_set}
    return model().model_copy(update=chosen)
