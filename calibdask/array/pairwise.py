"""What calibrations by pairs of telescopes share: DL2 files, time bins, stages, tables.

`FromDl2` plans over DL2 files; `PairwiseCalibration` fits a network of pairs to them, one for all
data or one for each time bin. A job adds what its pairs compare and which of them count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from calibdask import flags
from calibdask.array.coefficients import coefficients, values_so_far
from calibdask.array.drift import find_drift
from calibdask.array.goodness import event_group
from calibdask.array.model import NetworkOptions, Telescopes, pair_types
from calibdask.array.network import fit_stage
from calibdask.array.pairs import ALTITUDE, Layout, PairRows, event_keys
from calibdask.array.state import NetworkFit
from calibdask.array.summary import (
    PairEvents,
    PairSummary,
    ScoreSummary,
    n_stages,
    reduce_stage,
    with_lacking,
)
from calibdask.engine.protocol import (
    ALL,
    Calibration,
    Cell,
    InputRef,
    Output,
    Piece,
    Reduced,
    Rows,
    Shard,
    State,
    Summary,
    Survey,
    Tables,
)
from calibdask.errors import ConfigError, NotEnoughData, WrongKind
from calibdask.flags import Flag
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
from calibdask.io.metadata import CtaReference
from calibdask.io.pointing import read_pointing, require_pointing
from calibdask.stats.keyed import obs_id_array
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.pair_config import PairSection
    from calibdask.array.report import Quantity, TelescopeLayout
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema
    from calibdask.stats.timebins import TimeBins

    type Columns = dict[str, NDArray[Any]]

__all__ = [
    "FromDl2",
    "PairData",
    "PairwiseCalibration",
    "SurveyedDl2",
    "join_obs_ids",
    "layout_of_file",
    "selection_of",
    "type_of",
    "unknown_types",
]

PAIR_BYTES = 200
"""Memory of a pair-event while it is formed, selected and summarised."""


# -- planning over DL2 files --------------------------------------------------------------------


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
    """Return the layout as it stands in one file."""
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
    """Say which types of an option no telescope has, unless they are usual ones."""
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
        """The columns to read."""
        raise NotImplementedError

    @property
    def needs_altitude(self) -> bool:
        """Whether the selection looks at where the telescopes pointed."""
        return False

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
        """Tell what was odd about configuration and layout."""
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


# -- networks of pairs --------------------------------------------------------------------------


@dataclass(frozen=True)
class PairData:
    """The pair events of a shard, with what the first stage says about them.

    Attributes
    ----------
    events : PairEvents
        The pair events.
    time_bin : ndarray of int64, shape (N,), or None
        Time bin of each, if there are bins.
    harder : mapping of str to ndarray of bool, shape (N,)
        Which rows pass harder selections. Each has cells of its own, which end with its name.
    keys, cut_flow, rows, warnings
        As in `Reduced`; only from the first stage.
    n_lacking : mapping of int to int
        Rows that the tables of a telescope lack, by telescope; only from the first stage.
    """

    events: PairEvents
    time_bin: NDArray[np.int64] | None
    harder: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    keys: NDArray[np.int64] | None = None
    cut_flow: Mapping[str, int] | None = None
    rows: Rows | None = None
    warnings: tuple[str, ...] = ()
    n_lacking: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PairwiseCalibration[Data](FromDl2[Data, Any, dict[Cell, Any]]):
    """A value for each telescope from a network of pairs, for all data or by time bin.

    A subclass gives `network`, `needs`, `select` and `compare`, and the path of its tables.
    """

    state: ClassVar[type[State]] = NetworkFit
    bins_time: ClassVar[bool] = True
    table: ClassVar[str]
    """Path of the table of telescopes; those of pairs and so on stand beside it."""

    schemas: ClassVar[Mapping[str, TableSchema]]
    """The tables that can be written, by path (see `calibdask.array.tables`)."""

    title: ClassVar[str]
    """What the product is."""

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator."""
        raise NotImplementedError

    def select(self, data: TelescopeEvents) -> PairRows:
        """Select telescope events and pair them within each event."""
        raise NotImplementedError

    def compare(self, data: TelescopeEvents) -> NDArray[np.floating]:
        """Return the x of each telescope event that its pairs compare."""
        raise NotImplementedError

    def summary_type(self, stage: int) -> type[Summary]:
        """Return scores in the last stage, moments of pairs before."""
        last = stage == n_stages(self.network) - 1
        return ScoreSummary if last else PairSummary

    def map_config(self) -> Mapping[str, Any]:
        """Return what pair events and their first summary depend on."""
        robust = self.network.estimator in ("log-median", "log-clipped")
        bins = {} if self.bins is None else {"time_bins": self.bins.config()}
        return {**super().map_config(), "histogram": robust, **bins}

    def fit_telescopes(self) -> list[list[Any]]:
        """Return the telescopes without data among them, which the fit depends on, for JSON."""
        return [] if self.layout is None else [list(self.layout.tel_id), list(self.layout.tel_type)]

    # -- map ------------------------------------------------------------------------------------

    def kept_pairs(self, rows: Rows) -> PairData:
        """Make pairs of the rows that the first stage kept."""
        return PairData(self.pair_events(rows), rows.get("time_bin"), self.harder(rows))

    def harder(self, rows: Rows) -> Mapping[str, NDArray[np.bool_]]:
        """Return the kept rows that pass harder selections; there are none unless overridden."""
        del rows
        return {}

    def pair_events(self, rows: Rows) -> PairEvents:
        """Make pair events of the rows that were kept."""
        layout = self.telescopes
        one, two = rows["tel_id_1"], rows["tel_id_2"]
        number = np.zeros(max(layout.tel_id) + 1, np.int64)
        number[list(layout.tel_id)] = np.arange(len(layout.tel_id))
        types = np.array(layout.tel_type)
        by_pair = np.strings.encode(pair_types(types[:, None], types[None, :]), "utf-8")
        return PairEvents(
            event=rows["event"],
            tel_type=by_pair[number[one], number[two]],
            tel_id_1=one,
            tel_id_2=two,
            x_1=rows["x_1"],
            x_2=rows["x_2"],
            group=rows.get("group"),
        )

    def rows_of(self, data: TelescopeEvents, pairs: PairRows) -> dict[str, NDArray[Any]]:
        """Return what is kept of each pair event for the later stages."""
        one, two = pairs.row_1, pairs.row_2
        x = self.compare(data)
        rows: dict[str, NDArray[Any]] = {
            "event": data.event[one].astype(np.int32),
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "x_1": x[one],
            "x_2": x[two],
            "group": event_group(data.obs_id[one], data.event_id[one]),
        }
        if self.bins is not None and data.event_time_ns is not None:
            rows["time_bin"] = self.bins.index(data.event_time_ns)[data.event[one]]
        return rows

    def pair_up(self, data: TelescopeEvents) -> PairData:
        """Select the pairs of a shard."""
        pairs = self.select(data)
        rows = self.rows_of(data, pairs)
        one = pairs.row_1
        keys = event_keys(data.event[one], data.obs_id[one], data.event_id[one])
        flow = {**pairs.cut_flow, "events with a pair": len(keys)}
        return PairData(
            self.pair_events(rows),
            rows.get("time_bin"),
            self.harder(rows),
            keys,
            flow,
            rows,
            pairs.warnings,
            data.n_lacking,
        )

    def split(self, data: PairData, cells: Iterable[Cell]) -> dict[Cell, PairEvents]:
        """Return each cell its pair events; a cell that has none gets none."""
        order = np.arange(len(data.events.event))
        if data.time_bin is not None:
            order = np.argsort(data.time_bin, kind="stable")
            sorted_bins = data.time_bin[order]
        parts = {}
        for cell in cells:
            rows = order
            if data.time_bin is not None:
                begin, end = np.searchsorted(sorted_bins, [cell[0], int(cell[0]) + 1])
                rows = order[begin:end]
            if (name := selection_of(cell)) is not None:
                rows = rows[data.harder[name][rows]]
            parts[cell] = data.events if cell == ALL else _take(data.events, rows)
        return parts

    def summarise_first(self, shard: Shard, data: PairData) -> Reduced:
        """Summarise the pairs of a shard in the first stage."""
        summaries = {
            cell: cast(
                "Summary",
                with_lacking(reduce_stage(0, self.network, events, None), data.n_lacking),
            )
            for cell, events in self.split(data, shard.cells).items()
        }
        return Reduced(summaries, data.cut_flow or {}, data.rows, data.keys, data.warnings)

    def summarise_again(
        self, stage: int, data: PairData, given: Mapping[Cell, NetworkFit]
    ) -> Reduced:
        """Summarise the pairs, or the events' scores about a fit, in a later stage."""
        return Reduced(
            {
                cell: cast("Summary", reduce_stage(stage, self.network, events, given[cell]))
                for cell, events in self.split(data, given).items()
            }
        )

    # -- fit and products -----------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: NetworkFit | None) -> NetworkFit:
        """Fit the network, or finish it with the covariance of clustered events."""
        empty = stage == 0 and not total.difference.n.sum()
        if empty and cell == ALL:
            raise NotEnoughData(
                "no pair of telescopes has a selected event in common: nothing to calibrate"
            )
        telescopes = None
        if self.layout is not None:
            telescopes = Telescopes(np.array(self.layout.tel_id), np.array(self.layout.tel_type))
        fitted = fit_stage(stage, self.network, total, given, telescopes)
        # A time bin without pairs has rows without values, and costs the others nothing.
        return replace(fitted, done=True) if empty else fitted

    def combine(self, states: Mapping[Cell, NetworkFit]) -> dict[Cell, NetworkFit]:
        """Return the fits in the order of time.

        Raises
        ------
        NotEnoughData
            No time bin has a pair.
        """
        if states and all(fit.done and not fit.n.sum() for fit in states.values()):
            raise NotEnoughData(
                f"in none of {len(states)} time bins has a pair of telescopes a selected event in"
                " common: nothing to calibrate"
            )
        return {cell: states[cell] for cell in sorted(states)}

    def tables(self, result: Mapping[Cell, Any]) -> dict[str, QTable]:
        """Return coefficients, pairs, covariance and components; empty where no fit was done."""
        counted = {cell: fit for cell, fit in result.items() if selection_of(cell) is None}
        if not counted:  # before anything can be fitted
            return {}
        drift = None
        if all(fit.done for fit in counted.values()):
            parts = {cell: self.columns_of(cell, result) for cell in counted}
            drift = None if self.bins is None else self._add_drift(counted, parts)
        else:
            parts = {cell: {self.table: self.values_so_far(cell, result)} for cell in counted}
        stacked = {path: self._stack(parts, path) for path in next(iter(parts.values()))}
        if drift is not None:
            stacked[f"{self.table}_drift"] = drift
        meta = {"obs_id": obs_id_array(self.obs_ids)}
        return {path: self.schemas[path].build(columns, meta) for path, columns in stacked.items()}

    def outputs(self, result: dict[Cell, Any]) -> Sequence[Output]:
        """Return the monitoring tables."""
        return [Tables(self.tables(result), CtaReference(self.title, "DL2", self.process_type))]

    def network_of(self, fit: Any) -> NetworkFit:
        """Return the fit of the network in the state of a cell: itself, unless overridden."""
        return cast("NetworkFit", fit)

    def columns_of(self, cell: Cell, result: Mapping[Cell, Any]) -> dict[str, Columns]:
        """Return the columns of the tables, by path, that a finished fit makes."""
        return coefficients(self.network_of(result[cell]), self.table)

    def values_so_far(self, cell: Cell, result: Mapping[Cell, Any]) -> Columns:
        """Return the columns of the telescopes' table before all fits are finished."""
        fit = self.network_of(result[cell])
        begun = values_so_far(replace(fit, done=False))
        if not fit.done:
            return begun
        finished = self.columns_of(cell, result)[self.table]
        return {name: finished[name] for name in begun}

    def _stack(self, parts: Mapping[Cell, Mapping[str, Columns]], path: str) -> Columns:
        """Join the columns of all cells, with the times of their bins."""
        of_cells = [(cell, named[path]) for cell, named in parts.items()]
        n_rows = [len(next(iter(columns.values()))) for _, columns in of_cells]
        joined: Columns = {}
        # Where nothing is selected there is no threshold either, and no events that pass it.
        for name in dict.fromkeys(name for _, columns in of_cells for name in columns):
            dtype = next(columns[name].dtype for _, columns in of_cells if name in columns)
            joined[name] = np.concatenate(
                [
                    columns.get(name, np.zeros(n, dtype))
                    for (_, columns), n in zip(of_cells, n_rows, strict=True)
                ]
            )
        if self.bins is not None:
            number = np.repeat(np.array([cell[0] for cell in parts], np.int64), n_rows)
            start_ns = self.bins.epoch_ns + number * self.bins.width_ns
            joined |= {
                "time_bin": number,
                "time_start": start_ns,
                "time_end": start_ns + self.bins.width_ns,
            }
        return joined

    def _add_drift(
        self, result: Mapping[Cell, Any], parts: Mapping[Cell, dict[str, Columns]]
    ) -> Columns:
        """Compare the time bins: values of the main component that have an error.

        Jumps are flagged in the tables of the telescopes, too.
        """
        fits = [self.network_of(fit) for fit in result.values()]
        telescopes = [named[self.table] for named in parts.values()]
        has_error = np.stack(
            [
                np.isfinite(columns["error"]) & fit.is_main
                for columns, fit in zip(telescopes, fits, strict=True)
            ]
        )
        network = np.unique(fits[0].tel_type, return_inverse=True)[1]
        if self.network.reference_type is not None:
            network = np.zeros_like(network)
        drift = find_drift(
            np.where(has_error, np.stack([fit.theta for fit in fits]), np.nan),
            np.stack([fit.covariance for fit in fits]),
            np.stack([fit.freedom for fit in fits]),
            network,
        )
        for columns, jumps in zip(telescopes, drift.jumps, strict=True):
            columns["flags"] = flags.add(columns["flags"], {Flag.JUMP: jumps})
        numbers = np.array([cell[0] for cell in result])
        names = (
            "n_bins", "chi2", "ndf", "p_value", "step", "step_error", "step_sigma", "limit_sigma"
        )  # fmt: skip
        return {
            "tel_type": fits[0].tel_type,
            "tel_id": fits[0].tel_id,
            **{name: getattr(drift, name) for name in names},
            "step_time_bin": np.where(drift.step_bin >= 0, numbers[drift.step_bin], 0),
            "flags": flags.column({Flag.JUMP: drift.jumps.any(axis=0), Flag.VARIES: drift.varies}),
        }

    @property
    def quantity(self) -> Quantity:
        """What is calibrated, in words."""
        raise NotImplementedError

    def report_sections(self, tables: Mapping[str, QTable]) -> list[ReportSection]:
        """Return the sections of the report about one fit."""
        raise NotImplementedError

    def report(
        self, result: Mapping[Cell, Any], tables: Mapping[str, QTable]
    ) -> Sequence[ReportSection]:
        """Return the sections of the report; of all time bins their drift, and the last one."""
        from calibdask.array.drift_report import drift_sections, last_bin

        del result
        if self.bins is None:
            return self.report_sections(tables)
        _, last = last_bin(tables, self.table)
        return [*drift_sections(tables, self.quantity), *self.report_sections(last)]

    def places(self, tables: Mapping[str, QTable]) -> TelescopeLayout:
        """Return the positions of the telescopes in the tables, for the report."""
        from calibdask.array.report import TelescopeLayout

        tel_id, first = np.unique(np.asarray(tables[self.table]["tel_id"]), return_index=True)
        known = {}
        if self.layout is not None:
            known = dict(zip(self.layout.tel_id, self.layout.position_m, strict=True))
        position_m = np.array([known.get(int(number), (np.nan,) * 3) for number in tel_id])
        tel_type = np.asarray(tables[self.table]["tel_type"]).astype(np.str_)[first]
        x_m, y_m = position_m.reshape(-1, 3)[:, :2].T
        return TelescopeLayout(tel_id, tel_type, x_m, y_m)


def selection_of(cell: Cell) -> str | None:
    """Return the harder selection that a cell is of; None for the rows that count."""
    return cell[-1] if cell and isinstance(cell[-1], str) else None


def _take(events: PairEvents, rows: NDArray[np.integer]) -> PairEvents:
    """Take some of the pair events."""
    columns: dict[str, Any] = {
        name: value[rows]
        for name in (field.name for field in fields(events))
        if (value := getattr(events, name)) is not None
    }
    return PairEvents(**columns)
