"""Options of the jobs that pair telescopes: selections, and where a section may stand.

Where the same section may be in several places, the innermost one counts; for the selection of
telescope-events that is, in order: ``QualityQuery`` in the ``EventPreprocessor`` of the
``Calculate...`` section, in the ``Calculate...`` section itself, in the ``EventPreprocessor`` at
top level, at top level. (ctao-calibpipe 0.8.0 ignores the second of these, the documented one: it
then selects everything, and says nothing.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from calibdask.config import JobSection, Section, caseless, inner_section, option, read_with
from calibdask.config.fields import (
    EVENT_TYPES,
    Algorithm,
    EventTypes,
    between,
    patterns,
    positive,
    quantity,
)
from calibdask.errors import ConfigError
from calibdask.select import QualityCriteria, TelescopePatterns, compile_criteria, quote_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibdask.config import Configuration

__all__ = [
    "EnergyEventFilters",
    "EnergyPairSection",
    "EventPreprocessor",
    "PairFinder",
    "PairSection",
    "QualityQuery",
    "given_minima",
    "resolved",
]


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


class QualityQuery(Section):
    """Selects telescope-events by expressions on the columns of the input tables.

    May also stand inside a Calculate... section or its EventPreprocessor, and counts there alone.
    """

    quality_criteria: Annotated[tuple[tuple[str, str], ...], read_with(_criteria)] = option(
        (),
        stage="map",
        help="List of [name, expression]. A telescope-event is used if all expressions are "
        "true, for instance ['energy threshold', 'RandomForestRegressor_tel_energy > 50 * u.GeV'].",
    )


class EventPreprocessor(Section):
    """Holds the selection of telescope-events, as ctapipe's configurations may have it."""

    hints: ClassVar[Mapping[str, str]] = {
        "features": "leave it out: the job knows which columns it needs",
        "FeatureGenerator": "no columns are generated here: write the formula into the quality "
        "criterion",
    }

    energy_reconstructor: Algorithm | None = option(
        None,
        stage="run",
        help="If given, the same as in the Calculate... section.",
        example="RandomForestRegressor",
    )
    geometry_reconstructor: Algorithm | None = option(
        None,
        stage="run",
        help="If given, the same as in the Calculate... section.",
        example="HillasReconstructor",
    )
    gammaness_reconstructor: Algorithm | None = option(
        None,
        stage="run",
        help="If given, the same as in the Calculate... section.",
        example="RandomForestClassifier",
    )
    feature_set: Annotated[Literal["custom"], caseless("custom")] = option(
        "custom",
        stage="run",
        help="Other feature sets bring criteria of their own and are refused.",
    )
    quality_query: QualityQuery | None = inner_section(
        alias="QualityQuery", help="Counts instead of QualityQuery further out."
    )


class PairFinder(Section):
    """Decides which telescopes form a pair; both are of one type."""

    max_impact_distance: Annotated[TelescopePatterns, patterns(quantity("m"))] = option(
        TelescopePatterns(
            (("type", "LST*", 125.0), ("type", "MST*", 125.0), ("type", "SST*", 225.0))
        ),
        stage="map",
        help="Two telescopes are a pair if they are no further apart than the sum of their "
        "two values. One number, or a list of [type, pattern, value] and [id, number, value], of "
        "which the last match counts.",
        unit="m",
    )


class EnergyEventFilters(Section):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    max_distance_asymmetry: Annotated[TelescopePatterns, patterns(positive)] | None = option(
        None,
        stage="map",
        help="Largest |d1 - d2| / (d1 + d2) of the two impact distances.",
        example=0.05,
    )
    min_gammaness: Annotated[TelescopePatterns, patterns(between(0.0, 1.0))] | None = option(
        None, stage="map", help="Smallest gammaness, reached in both telescopes.", example=0.5
    )
    min_energy: Annotated[TelescopePatterns, patterns(quantity("TeV"))] | None = option(
        None,
        stage="map",
        help="Smallest energy, reached in both telescopes: a number in TeV, or number and unit.",
        example="50 GeV",
        unit="TeV",
    )


class PairSection(JobSection):
    """What the sections of all jobs that pair the telescopes of DL2 files have in common."""

    chunk_size: int = option(
        100_000,
        stage="run",
        ge=1,
        help="Accepted and without effect: results never depend on how files are read.",
    )
    geometry_reconstructor: Algorithm = option(
        "HillasReconstructor", stage="map", help="Algorithm whose impact distances are used."
    )
    event_types: EventTypes = option(
        (EVENT_TYPES["SUBARRAY"],),
        stage="map",
        help="Types of the events that are used, by number or name "
        "(ctapipe.containers.EventType): showers. An empty list takes all, flat-field events too.",
        example=["SUBARRAY", "LONG_EVENT"],
    )
    quality_query: QualityQuery | None = inner_section(
        alias="QualityQuery", help="Counts instead of the one at top level."
    )
    event_preprocessor: EventPreprocessor | None = inner_section(
        alias="EventPreprocessor", help="May hold the QualityQuery."
    )
    pair_finder: PairFinder | None = inner_section(
        alias="PairFinder", help="Counts instead of the one at top level."
    )

    value_name: ClassVar[str]
    """What x is, for people."""

    @property
    def compares_types(self) -> bool:
        """Whether telescopes of two types make pairs."""
        return False

    @property
    def value_column(self) -> str:
        """Column of x."""
        raise NotImplementedError

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        raise NotImplementedError

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances: t, or [p0, p1]."""
        raise NotImplementedError

    @property
    def quality_criteria(self) -> QualityCriteria:
        """Selection of telescope-events."""
        query = self.quality_query
        return QualityCriteria(() if query is None else query.quality_criteria)

    @property
    def max_impact_distance(self) -> TelescopePatterns:
        """Pair distance per telescope in m."""
        return (self.pair_finder or PairFinder()).max_impact_distance

    @property
    def impact_column(self) -> str:
        """Column of the impact distance."""
        return f"{self.geometry_reconstructor}_tel_impact_distance"

    @property
    def columns(self) -> frozenset[str]:
        """All columns that the selection looks at."""
        columns = {*self.quality_criteria.columns, *(column for _, column, _ in self.minima)}
        return frozenset(columns if self.window is None else columns | {self.impact_column})

    @property
    def needs_altitude(self) -> bool:
        """Whether the window depends on where the telescopes pointed."""
        if self.window is None:
            return False
        return any(isinstance(v, tuple) and v[1] != 0 for _, _, v in self.window[1].patterns)


class EnergyPairSection(PairSection):
    """What the sections of jobs that select by energies have in common."""

    event_filters: EnergyEventFilters = inner_section(
        EnergyEventFilters(), help="Which events of a pair are used."
    )
    energy_reconstructor: Algorithm = option(
        "RandomForestRegressor",
        stage="map",
        help="Algorithm whose energies per telescope are used.",
    )
    gammaness_reconstructor: Algorithm = option(
        "RandomForestClassifier",
        stage="map",
        help="Algorithm whose gammaness per telescope is used.",
    )

    value_name: ClassVar[str] = "energy"

    @property
    def energy_column(self) -> str:
        """Column of the energies."""
        return f"{self.energy_reconstructor}_tel_energy"

    @property
    def value_column(self) -> str:
        """Column of x."""
        return self.energy_column

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        filters, gammaness = self.event_filters, f"{self.gammaness_reconstructor}_tel_prediction"
        return given_minima(
            ("min_energy", self.energy_column, filters.min_energy),
            ("min_gammaness", gammaness, filters.min_gammaness),
        )

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances."""
        limit = self.event_filters.max_distance_asymmetry
        return None if limit is None else ("max_distance_asymmetry", limit)


def given_minima(
    *cuts: tuple[str, str, TelescopePatterns | None],
) -> tuple[tuple[str, str, TelescopePatterns], ...]:
    """Leave out the cuts that are not given."""
    return tuple((name, column, least) for name, column, least in cuts if least is not None)


# -- resolving ----------------------------------------------------------------------------------


def resolved[S: PairSection](
    document: Configuration, model: type[S], notes: list[str], name: str = ""
) -> S:
    """Put the innermost QualityQuery and PairFinder into the section of a job.

    Parameters
    ----------
    document : Configuration
        The sections of the job.
    model : type
        The section's.
    notes : list of str
        Gets what is valid but worth a line in the log and the report.
    name : str, optional
        Under which it was given, if that is not the name of its type.

    Returns
    -------
    PairSection
        With a query and a finder of its own, and without an EventPreprocessor.

    Raises
    ------
    ConfigError
        An EventPreprocessor contradicts the section, or a criterion is wrong.
    """
    name = name or model.__name__
    section = document.get(name, model)
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
    finders = {
        f"{name}.PairFinder": section.pair_finder,
        "PairFinder": document.find("PairFinder", PairFinder),
    }
    query, finder = _innermost(queries, notes), _innermost(finders, notes)
    criteria = _compiled(document, queries, query).pairs
    return section.model_copy(
        update={
            "quality_query": QualityQuery().model_copy(update={"quality_criteria": criteria}),
            "pair_finder": finder or PairFinder(),
            "event_preprocessor": None,
        }
    )


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
    """Return the names of all algorithms that are configured."""
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
    section: PairSection,
    path: tuple[str, ...],
    preprocessor: EventPreprocessor | None,
) -> None:
    for what in ("energy_reconstructor", "geometry_reconstructor", "gammaness_reconstructor"):
        theirs, ours = getattr(preprocessor, what, None), getattr(section, what, None)
        if theirs is not None and ours is not None and theirs != ours:
            raise document.error(
                f"'{theirs}' contradicts '{ours}' ({document.where(name, what)}): leave it out",
                *path,
                what,
            )
