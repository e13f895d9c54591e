"""What calibrations by pairs of telescopes share: pairs kept, time bins, stages, tables.

`PairwiseCalibration` fits a network of pairs, one for all data or one for each time bin. A job adds
what its pairs compare and which of them count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from calibdask import flags
from calibdask.array.from_dl2 import FromDl2, unknown_types
from calibdask.array.model import Telescopes, pair_types
from calibdask.array.network.coefficients import coefficients, values_so_far
from calibdask.array.network.drift import find_drift
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.goodness import event_group
from calibdask.array.network.model import NetworkOptions
from calibdask.array.network.pairs import PairEvents, PairSummary, with_lacking
from calibdask.array.network.scores import ScoreSummary
from calibdask.array.network.stages import n_stages, reduce_stage
from calibdask.array.network.state import NetworkFit
from calibdask.array.pairs import event_keys
from calibdask.array.throughput_config import ENERGY_ESTIMATOR, RelativeThroughputFitter
from calibdask.engine.protocol import (
    ALL,
    Cell,
    Output,
    Reduced,
    Rows,
    Shard,
    State,
    Summary,
    Tables,
)
from calibdask.errors import NotEnoughData
from calibdask.flags import Flag
from calibdask.io.metadata import CtaReference
from calibdask.stats.keyed import obs_id_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.pairs import PairRows
    from calibdask.array.report import CalibratedQuantity, TelescopeLayout
    from calibdask.io.dl2 import TelescopeEvents
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema

    type Columns = dict[str, NDArray[Any]]

__all__ = ["PairedRows", "PairwiseCalibration", "ThroughputCalibration", "selection_of"]


@dataclass(frozen=True)
class PairedRows:
    """The pairs of a shard that passed the selection.

    Attributes
    ----------
    rows : Rows
        What later stages need of them, by column.
    keys, cut_flow, warnings
        As in `Reduced`.
    n_lacking : mapping of int to int
        Rows that the tables of a telescope lack, by telescope.
    is_kept : bool
        Whether the rows are stored for the later stages, which else read the input again.
    """

    rows: Rows
    keys: NDArray[np.int64]
    cut_flow: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    n_lacking: Mapping[int, int] = field(default_factory=dict)
    is_kept: bool = True

    @classmethod
    def of(
        cls,
        data: TelescopeEvents,
        rows: Columns,
        flow: Mapping[str, int],
        warnings: tuple[str, ...],
    ) -> Self:
        """Take the ``obs_id`` and ``event_id`` of rows as keys."""
        keys = event_keys(rows["event"], rows.pop("obs_id"), rows.pop("event_id"))
        flow = {**flow, "events with a pair": len(keys)}
        return cls(rows, keys, flow, warnings, data.n_lacking)


@dataclass(frozen=True)
class PairwiseCalibration[Data](FromDl2[Data, Any, dict[Cell, Any]]):
    """A value for each telescope from a network of pairs, for all data or by time bin.

    A subclass gives `network`, `needs` and `pair_up`, and the path of its tables.
    """

    state: ClassVar[type[State]] = NetworkFit
    bins_time: ClassVar[bool] = True
    table: ClassVar[str]
    """Path of the table of telescopes; those of pairs and so on are beside it."""

    schemas: ClassVar[Mapping[str, TableSchema]]
    """The tables that can be written, by path (see `calibdask.array.tables`)."""

    title: ClassVar[str]
    """What the product is."""

    truth: tuple[tuple[int, float], ...] = ()  # of a simulation, by telescope: for the report

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator."""
        raise NotImplementedError

    def pair_up(self, data: Data) -> PairedRows:
        """Select telescope events and pair them within each event."""
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

    def fit_config(self) -> Mapping[str, Any]:
        """Return what only the fit depends on, the telescopes without data among it."""
        layout = self.layout
        known = [] if layout is None else [list(layout.tel_id), list(layout.tel_type)]
        return {**super().fit_config(), "telescopes": known}

    @property
    def type_of_telescope(self) -> dict[int, str]:
        """Type of each telescope of the inputs, by number; empty before they are known."""
        layout = self.layout
        return {} if layout is None else dict(zip(layout.tel_id, layout.tel_type, strict=True))

    # -- map ------------------------------------------------------------------------------------

    def time_bins(self, data: TelescopeEvents, event: NDArray[np.integer]) -> Columns:
        """Return the column of time bins of rows, given their events; none without bins."""
        if self.bins is None or data.event_time_ns is None:
            return {}
        return {"time_bin": self.bins.index(data.event_time_ns)[event]}

    def rows_of(self, data: TelescopeEvents, pairs: PairRows) -> Columns:
        """Return what is kept of each pair event, and the numbers of its event."""
        one, two = pairs.row_1, pairs.row_2
        x, event = data.columns[self.options.value_column], data.event[one]
        obs_id, event_id = data.obs_id[one], data.event_id[one]
        return {
            "event": event.astype(np.int32),
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "x_1": x[one],
            "x_2": x[two],
            "group": event_group(obs_id, event_id),
            **self.time_bins(data, event),
            "obs_id": obs_id,
            "event_id": event_id,
        }

    def reduce(self, shard: Shard, data: Data) -> Reduced:
        """Summarise the pairs of a shard."""
        paired = self.pair_up(data)
        summaries = self._summaries(0, paired.rows, dict.fromkeys(shard.cells), paired.n_lacking)
        kept = paired.rows if paired.is_kept else None
        return Reduced(summaries, paired.cut_flow, kept, paired.keys, paired.warnings)

    def refine(
        self, stage: int, shard: Shard, data: Rows | Data, given: Mapping[Cell, Any]
    ) -> Reduced:
        """Summarise the pairs within the bounds so far, or the events' scores about a fit."""
        del shard
        rows = data if isinstance(data, Mapping) else self.pair_up(data).rows
        return Reduced(self._summaries(stage, rows, given, {}))

    def _summaries(
        self, stage: int, rows: Rows, given: Mapping[Cell, Any], n_lacking: Mapping[int, int]
    ) -> dict[Cell, Summary]:
        parts = self._split(self.events_of(rows), rows, given)
        return {cell: self.summarise(stage, part, given[cell], n_lacking) for cell, part in parts}

    def _split(self, events: Any, rows: Rows, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Any]]:
        """Give each cell its pair events; a cell that has none gets none."""
        bins = self.bins_of(rows)
        order = None if bins is None else np.argsort(bins, kind="stable")
        for cell in cells:
            name = selection_of(cell)
            if cell == ALL:
                yield cell, events
                continue
            if bins is None or order is None:
                mine = np.arange(len(rows[str(name)]))
            else:
                begin, end = np.searchsorted(bins[order], [cell[0], int(cell[0]) + 1])
                mine = order[begin:end]
            yield cell, self.take(events, mine if name is None else mine[rows[name][mine]])

    def bins_of(self, rows: Rows) -> NDArray[np.int64] | None:
        """Return the time bin of each pair, if there are bins."""
        return rows.get("time_bin")

    def events_of(self, rows: Rows) -> Any:
        """Make pair events of the rows that were kept."""
        tel_type = rows.get("tel_type")
        if tel_type is None:
            layout = self.telescopes
            number = np.zeros(max(layout.tel_id) + 1, np.int64)
            number[list(layout.tel_id)] = np.arange(len(layout.tel_id))
            types = np.array(layout.tel_type)
            by_pair = np.strings.encode(pair_types(types[:, None], types[None, :]), "utf-8")
            tel_type = by_pair[number[rows["tel_id_1"]], number[rows["tel_id_2"]]]
        columns: Any = {**rows, "tel_type": tel_type}
        known: dict[str, Any] = {one.name: columns.get(one.name) for one in fields(PairEvents)}
        return PairEvents(**known)

    def take(self, events: Any, mine: NDArray[np.integer]) -> Any:
        """Take some of the pair events."""
        columns: dict[str, Any] = {}
        for one in fields(events):
            values = getattr(events, one.name)
            columns[one.name] = None if values is None else values[mine]
        return PairEvents(**columns)

    def summarise(
        self, stage: int, events: Any, given: Any, n_lacking: Mapping[int, int]
    ) -> Summary:
        """Summarise pair events in a stage."""
        summary = reduce_stage(stage, self.network, events, given)
        return cast("Summary", summary if stage else with_lacking(summary, n_lacking))

    # -- fit and products -----------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: NetworkFit | None) -> NetworkFit:
        """Fit the network, or finish it with the covariance of clustered events."""
        empty = stage == 0 and not total.difference.n.sum()
        if empty and cell == ALL:
            raise NotEnoughData(
                "no pair of telescopes has a selected event in common: nothing to calibrate"
            )
        telescopes = None if self.layout is None else self.fit_rows()
        fitted = fit_stage(stage, self.network, total, given, telescopes)
        # A time bin without pairs has rows without values, and costs the others nothing.
        return replace(fitted, done=True) if empty else fitted

    def fit_rows(self) -> Telescopes:
        """Return the telescopes that have a row in the result."""
        return Telescopes(np.array(self.telescopes.tel_id), np.array(self.telescopes.tel_type))

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
    def quantity(self) -> CalibratedQuantity:
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


@dataclass(frozen=True)
class ThroughputCalibration[Data](PairwiseCalibration[Data]):
    """Throughput of telescopes by ratios of energies or image sizes."""

    fitter: RelativeThroughputFitter = field(default_factory=RelativeThroughputFitter)

    def network_options(self, *, symmetric: bool, reference_type: str | None) -> NetworkOptions:
        """Return the options of the estimator that the fitter has, and further ones."""
        fitter = self.fitter
        return NetworkOptions(
            estimator=fitter.estimator or ENERGY_ESTIMATOR,
            n_min=fitter.n_min,
            clip_sigma=fitter.clip_sigma,
            normalisation=fitter.normalisation,
            reference_telescopes=fitter.reference_telescopes.by_type,
            throughput_normalisation=fitter.throughput_normalisation.by_type,
            reference_type=reference_type,
            symmetric=symmetric,
        )

    def odd_types(self, option: str, further: Iterable[tuple[str, Any]] = ()) -> list[str]:
        """Return which types of telescopes are named that no telescope has."""
        named = (*self.fitter.reference_telescopes.by_type, *further)
        scales = self.fitter.throughput_normalisation.by_type
        return unknown_types(self.telescopes, option, [kind for kind, _ in (*named, *scales)])

    def odd_references(self, *kinds: str) -> list[str]:
        """Return which reference telescopes of some types are not of that type."""
        known = self.type_of_telescope
        return [
            f"reference telescope {number} of {kind} is not among the {kind} of the inputs: another"
            " one is taken and flagged"
            for kind, number in self.fitter.reference_telescopes.by_type
            if kind in kinds and kind in known.values() and known.get(number) != kind
        ]


def selection_of(cell: Cell) -> str | None:
    """Return the harder selection that a cell is of; None for the rows that count."""
    return cell[-1] if cell and isinstance(cell[-1], str) else None
