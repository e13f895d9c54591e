"""Planning over DL2 files, and reading them: what the jobs that pair telescopes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.array.pairs import ALTITUDE, Layout
from calibdask.engine.protocol import ALL, Calibration, Cell, InputRef, Piece, Shard, State, Survey
from calibdask.errors import ConfigError, NotEnoughData, WrongKind
from calibdask.io.dl2 import (
    ArrayLayout,
    Dl2Info,
    Needs,
    TelescopeEvents,
    event_ranges,
    event_times,
    inspect_dl2,
    read_telescope_events,
)
from calibdask.io.kinds import file_kind
from calibdask.io.pointing import read_pointing, require_pointing
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from calibdask.array.pair_config import PairSection
    from calibdask.stats.timebins import TimeBins

__all__ = ["FromDl2", "SurveyedDl2", "join_obs_ids", "layout_of_file", "type_of", "unknown_types"]

PAIR_BYTES = 200
"""Memory of a pair-event while it is formed, selected and summarised."""


@dataclass(frozen=True, slots=True, eq=False)
class SurveyedDl2:
    """What a look at a DL2 file showed.

    Attributes
    ----------
    info : Dl2Info
        Its metadata.
    bin_starts, time_bin : ndarray of int64, shape (R,)
        Rows of the trigger table at which another time bin begins, and that bin, `NO_TIME` for
        events without time; without time bins there are none.
    n_timeless : int
        Events without time.
    """

    info: Dl2Info
    bin_starts: NDArray[np.int64]
    time_bin: NDArray[np.int64]
    n_timeless: int = 0

    def cells(self, first: int, stop: int) -> tuple[Cell, ...]:
        """Time bins of the events in a range of rows of the trigger table; ALL without bins."""
        if not len(self.bin_starts):
            return (ALL,)
        begin = np.searchsorted(self.bin_starts, first, side="right") - 1
        end = np.searchsorted(self.bin_starts, stop, side="left")
        numbers = np.unique(self.time_bin[begin:end]).tolist()
        return tuple((number,) for number in numbers if number != NO_TIME)


def layout_of_file(array: ArrayLayout) -> Layout:
    """Return the layout as it is in one file."""
    return Layout(
        tuple(array.tel_id.tolist()),
        array.tel_type,
        array.tel_description,
        tuple((x, y, z) for x, y, z in array.position_m.tolist()),
    )


def join_layouts(layouts: Sequence[tuple[str, ArrayLayout]]) -> Layout:
    """Unite the telescopes of all files, given with their paths.

    Raises
    ------
    ConfigError
        Two files contradict each other about a telescope.
    """
    telescopes: dict[int, tuple[str, str, tuple[float, float, float]]] = {}
    first: dict[int, tuple[str, ArrayLayout]] = {}
    for path, layout in layouts:
        numbers = layout.tel_id.tolist()
        owners = dict(first[number] for number in numbers if number in first)
        for other, known in owners.items():
            if what := known.contradiction(layout):
                raise ConfigError(
                    f"{other} and {path} are of different arrays: {what}; calibrate each array"
                    " by itself"
                )
        for number, kind, description, (x, y, z) in zip(
            numbers,
            layout.tel_type,
            layout.tel_description,
            layout.position_m.tolist(),
            strict=True,
        ):
            first.setdefault(number, (path, layout))
            telescopes.setdefault(number, (kind, description, (x, y, z)))
    order = sorted(telescopes, key=lambda number: (telescopes[number][0], number))
    return Layout(
        tuple(order),
        tuple(telescopes[number][0] for number in order),
        tuple(telescopes[number][1] for number in order),
        tuple(telescopes[number][2] for number in order),
    )


def join_obs_ids(infos: Iterable[Any]) -> tuple[int, ...]:
    """Observation blocks of all inputs, sorted."""
    return tuple(sorted({number for info in infos for number in info.obs_ids}))


def type_of(layout: Layout, tel_id: NDArray[np.integer[Any]]) -> NDArray[np.bytes_]:
    """Type of each row's telescope, as bytes like in the files."""
    types = np.array([name.encode() for name in layout.tel_type])
    table = np.zeros(max(layout.tel_id) + 1, types.dtype)
    table[list(layout.tel_id)] = types
    return np.asarray(table[tel_id])


def unknown_types(layout: Layout, option: str, named: Iterable[str]) -> list[str]:
    """Describe which types of an option no telescope has, unless they are usual ones."""
    known = sorted(set(layout.tel_type))
    return [
        f"{option}: no telescope is of the type {name!r}; there are {', '.join(known)}"
        for name in sorted(set(named) - {"LST", "MST", "SST", *known})
    ]


@dataclass(frozen=True)
class FromDl2[Data, Fit: State, Result](Calibration[Data, Fit, Result]):
    """What the jobs that read DL2 files share: survey, layout, shards."""

    options: PairSection
    shard_bytes: int
    notes: tuple[str, ...] = ()
    layout: Layout | None = None
    process_type: str = "Observation"
    obs_ids: tuple[int, ...] = ()
    bins: TimeBins | None = None

    small_bytes: ClassVar[int] = 12_000
    kept_bytes: ClassVar[int] = 30
    """Bytes of kept rows and keys for each telescope-event if all are selected, as measured on the
    simulated array of 36 telescopes: for the plan's estimate."""
    kept_pair_bytes: ClassVar[int] = 0
    """The same for each pair of telescopes in an event."""

    preload: ClassVar[tuple[str, ...]] = ("astropy.units",)  # for units in quality criteria

    @property
    def needs(self) -> Needs:
        """The columns to read: the value and what the selection mentions, and no others."""
        return self.needs_besides()

    def needs_besides(self, *further: str) -> Needs:
        """Return the columns that the options make necessary, and further ones."""
        value = self.options.value_column
        return Needs(value, tuple(sorted({*further, *self.options.columns} - {value})))

    @property
    def needs_altitude(self) -> bool:
        """Whether the selection looks at where the telescopes pointed."""
        return self.options.needs_altitude

    @property
    def telescopes(self) -> Layout:
        """The telescopes of all inputs, known from the plan on."""
        if self.layout is None:
            raise ValueError("the calibration was not planned: it knows no telescopes")
        return self.layout

    def survey(self, source: InputRef) -> Survey:
        """Look at the tables of a DL2 file."""
        if file_kind(source.path) != "DL2 events":
            raise WrongKind(f"{source.path}: holds no DL2 events")
        info = inspect_dl2(source.path, self.needs)
        if self.needs_altitude:
            require_pointing(source.path)
        if info.product_id:  # tells apart what equal size and samples would not
            source = replace(source, identity=f"{source.identity}:{info.product_id}")
        starts = time_bin = np.zeros(0, np.int64)
        n_timeless = 0
        if self.bins is not None:
            time_bin = self.bins.index(event_times(source.path))
            n_timeless = int(np.count_nonzero(time_bin == NO_TIME))
            starts = np.flatnonzero(np.diff(time_bin, prepend=time_bin[:1] - 1))
            time_bin = time_bin[starts]
        facts = SurveyedDl2(info, starts, time_bin, n_timeless)
        return Survey(source, order=info.obs_ids[:1], facts=facts)

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts, and refuse what does not belong together."""
        infos: list[tuple[str, Dl2Info]] = [(one.source.path, one.facts.info) for one in surveys]
        types: dict[str, str] = {}
        for path, info in infos:
            types.setdefault(info.process_type or "Observation", path)
        if len(types) > 1:
            listed = " and ".join(f"{path} ({kind})" for kind, path in sorted(types.items()))
            raise ConfigError(f"simulated and observed events in one run: {listed}; separate them")
        layout = join_layouts([(path, info.layout) for path, info in infos])
        notes = self.options.max_impact_distance.unmatched(
            layout.tel_id, layout.tel_description, option="PairFinder.max_impact_distance"
        )
        for one in surveys:
            if one.facts.n_timeless:
                note = (
                    f"{one.source.path}: {one.facts.n_timeless} of {one.facts.info.n_events} events"
                    " have no time: they belong to no time bin and are left out"
                )
                notes = (*notes, note)
        untyped = [path for path, info in infos if not info.has_event_types]
        if untyped and self.options.event_types:
            note = (
                f"{untyped[0]}: does not tell the types of its events (event_type in"
                f" /dl1/event/subarray/trigger; {len(untyped)} such files): all are taken for"
                " showers"
            )
            notes = (*notes, note)
        if not any(one.facts.cells(0, one.facts.info.n_events) for one in surveys):
            raise NotEnoughData("no event has a time: there is no time bin to calibrate")
        return replace(
            self,
            layout=layout,
            process_type=next(iter(types)),
            notes=self.notes + notes,
            obs_ids=join_obs_ids(info for _, info in infos),
        )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut files that are too large for one shard into ranges of events."""
        for survey in surveys:
            surveyed: SurveyedDl2 = survey.facts
            info = surveyed.info
            n_rows = info.n_telescope_rows
            n_pairs = n_rows * max(n_rows / max(info.n_events, 1) - 1, 0) / 2
            peak_bytes = info.bytes_needed + int(n_pairs * PAIR_BYTES)
            n_parts = -(-peak_bytes // self.shard_bytes)
            kept = n_rows * self.kept_bytes + int(n_pairs * self.kept_pair_bytes)
            if n_parts <= 1:
                yield Piece(
                    (survey.source,),
                    cells=surveyed.cells(0, info.n_events),
                    order=survey.order,
                    n_bytes=survey.source.size,
                    peak_bytes=peak_bytes,
                    stored_bytes=self.small_bytes + kept,
                )
                continue
            for first, stop in event_ranges(survey.source.path, n_parts):
                fraction = (stop - first) / info.n_events
                yield Piece(
                    (survey.source,),
                    (("first_trigger_row", first), ("stop_trigger_row", stop)),
                    cells=surveyed.cells(first, stop),
                    order=(*survey.order, first),
                    n_bytes=int(survey.source.size * fraction),
                    peak_bytes=int(peak_bytes * fraction),
                    stored_bytes=self.small_bytes + int(fraction * kept),
                )

    def warnings(self) -> Sequence[str]:
        """Return warnings about configuration and layout."""
        return self.notes

    def read_events(self, shard: Shard) -> TelescopeEvents:
        """Read the telescope events of a shard."""
        part = dict(shard.part)
        rows = None
        if part:
            rows = (int(part["first_trigger_row"]), int(part["stop_trigger_row"]))
        timed = self.needs.event_time or self.bins is not None or self.needs_altitude
        needs = replace(self.needs, event_time=timed, event_types=self.options.event_types)
        events = read_telescope_events(shard.inputs[0].path, needs, rows)
        if self.needs_altitude:
            events.columns[ALTITUDE] = _altitude(shard.inputs[0].path, events)
        return events

    def of_events(self, data: TelescopeEvents) -> dict[str, NDArray[np.bool_]]:
        """Return the criteria on the events of rows, by their name in the cut flow."""
        conditions: dict[str, NDArray[np.bool_]] = {}
        accepted = self.options.event_types
        if accepted and data.event_type is not None:
            numbers = ", ".join(map(str, accepted))
            conditions[f"event type {numbers}"] = np.isin(data.event_type, accepted)
        if self.bins is not None and data.event_time_ns is not None:
            conditions["event time known"] = (data.event_time_ns != NO_TIME)[data.event]
        return conditions


def _altitude(path: str, events: TelescopeEvents) -> NDArray[np.float64]:
    """Altitude in rad of each row's telescope when its event triggered; NaN where unknown."""
    altitude = np.full(len(events.tel_id), np.nan)
    if events.event_time_ns is None:
        raise ValueError("the altitude needs the times of the events")
    time_ns = events.event_time_ns[events.event]
    for tel_id, pointing in read_pointing(path, np.unique(events.tel_id).tolist()).items():
        rows = np.flatnonzero(events.tel_id == tel_id)
        altitude[rows] = pointing.altitude_at(time_ns[rows])
    return altitude
