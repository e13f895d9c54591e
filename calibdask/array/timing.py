"""Offsets of the telescopes' times: glue between files, model and engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.array.config import FURTHER, SELECTION
from calibdask.array.from_dl2 import SurveyedDl2, layout_of_file
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.goodness import event_group
from calibdask.array.network.pairs import PairSummary
from calibdask.array.pairs import pairs_of, select_pairs
from calibdask.array.pairwise import PairedRows, PairwiseCalibration
from calibdask.array.tables import RESIDUALS, TIMING, TIMING_CALIBRATION, WALK
from calibdask.array.timing_config import CalculateTimingCalibration, timing_section
from calibdask.array.timing_model import RADIANS, geodetic_height_m, residual_times
from calibdask.array.timing_summary import (
    TimingEvents,
    TimingFit,
    TimingOptions,
    TimingScores,
    add_systematic,
    fit_timing,
    n_timing_stages,
    offset_network,
    reduce_timing,
    residual_columns,
    rough_columns,
    walk_columns,
)
from calibdask.array.timing_walk import WalkSummary
from calibdask.engine.protocol import ALL, Cell, InputRef, Rows, Shard, Summary, Survey
from calibdask.errors import CorruptedInput, MissingInput, NotEnoughData
from calibdask.io.pointing import read_block_pointing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.network.model import NetworkOptions
    from calibdask.array.network.state import NetworkFit
    from calibdask.array.pairwise import Columns
    from calibdask.array.report import CalibratedQuantity
    from calibdask.config import Campaign, Configuration
    from calibdask.engine.protocol import State
    from calibdask.io.dl2 import ArrayLayout, Needs, TelescopeEvents
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema

__all__ = ["TimingCalibration"]

SIZE = "hillas_intensity"
"""Column of the image sizes, in photoelectrons."""


@dataclass(frozen=True, slots=True, eq=False)
class SurveyedTimes(SurveyedDl2):
    """What a look at a DL2 file showed, and whether it has image sizes."""

    has_sizes: bool = True


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read of a shard.

    Attributes
    ----------
    events : TelescopeEvents
        Telescope events.
    altitude_m : float
        Height of the ground in the system in which h_max is given.
    pointing : ndarray of float64, shape (N, 2), or None
        Altitude and azimuth, in rad, of the direction whose delay was taken out of the times.
    """

    events: TelescopeEvents
    altitude_m: float
    pointing: NDArray[np.float64] | None


@dataclass(frozen=True)
class TimingCalibration(PairwiseCalibration[_Read]):
    """Offset of each telescope's time, from the arrival of the light of the same showers."""

    options: CalculateTimingCalibration
    name: ClassVar[str] = "timing-calibration"
    version: ClassVar[int] = 3
    usual_stages: ClassVar[int] = 3
    kept_bytes: ClassVar[int] = 41
    small_bytes: ClassVar[int] = 0  # they grow with the array: see stored_bytes
    table: ClassVar[str] = TIMING_CALIBRATION.path
    schemas: ClassVar[Mapping[str, TableSchema]] = TIMING
    title: ClassVar[str] = "Offsets of telescope times, to be subtracted"
    state: ClassVar[type[State]] = TimingFit

    has_sizes: bool = True  # of the images, in all inputs

    sections: ClassVar = {"CalculateTimingCalibration": CalculateTimingCalibration, **SELECTION}
    further_sections: ClassVar = FURTHER

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        options = timing_section(document, notes)
        return cls(options, campaign.shard_bytes, tuple(notes), bins=campaign.bins)

    @property
    def walks(self) -> bool:
        """Whether the time walk is fitted."""
        return self.options.time_walk and self.has_sizes

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator: one network, or one for each type."""
        return self.timing.network

    @property
    def timing(self) -> TimingOptions:
        """The options of all stages."""
        return self.options.stages(self.type_of_telescope, walk=self.walks)

    def summary_type(self, stage: int) -> type[Summary]:
        """Return scores in the last stage, moments of pairs or the time walk before."""
        if self.walks and stage == 1:
            return WalkSummary
        return TimingScores if stage == n_timing_stages(self.timing) - 1 else PairSummary

    @property
    def needs(self) -> Needs:
        """The columns to read: those of the front, the times, and what the selection mentions."""
        options, geometry = self.options, self.options.geometry_reconstructor
        names = ["alt", "az", "core_x", "core_y", "is_valid"]
        if options.front == "spherical":
            names.append("h_max")
        columns = {f"{geometry}_{name}" for name in names} | {"time"}
        if options.time != "trigger":
            columns.add(options.time)
        if self.walks:
            columns.add(SIZE)
        return self.needs_besides(*columns)

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at a DL2 file; refuse one without telescope times, or without a known ground."""
        has_sizes = self.walks
        try:
            survey = super().survey(source)
        except MissingInput:
            if not self.walks:
                raise
            has_sizes = False
            survey = super(TimingCalibration, replace(self, has_sizes=False)).survey(source)
        if not survey.facts.info.has_telescope_times:
            raise MissingInput(
                f"{source.path}: has no trigger times of its telescopes"
                " (/dl1/event/telescope/trigger, column time): offsets need them"
            )
        self._altitude_m(survey.facts.info.layout, source.path)
        facts = survey.facts
        found = SurveyedTimes(
            facts.info, facts.bin_starts, facts.time_bin, facts.n_timeless, has_sizes=has_sizes
        )
        return replace(survey, facts=found)

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts; wonder about simulated times."""
        planned = super().planned(surveys)
        lacking = [one.source.path for one in surveys if not one.facts.has_sizes]
        if lacking and self.walks:
            note = (
                f"no time walk is fitted: {lacking[0]} holds no {SIZE} ({len(lacking)} such files)"
            )
            planned = replace(planned, has_sizes=False, notes=(*planned.notes, note))
        simulated = [one.source.path for one in surveys if one.facts.info.is_from_simtel]
        if not simulated or self.options.delay_removed == "pointing":
            return planned
        note = (
            f"{simulated[0]}: is from sim_telarray, which corrects its trigger times for where the"
            " array points: set CalculateTimingCalibration.delay_removed to pointing, unless"
            " somebody put the delay back"
        )
        return replace(planned, notes=(*planned.notes, note))

    def stored_bytes(self, cell: Cell, shards: Sequence[Shard]) -> tuple[int, int]:
        """Estimate summaries and states of all stages, if all pairs within reach see events.

        The numbers are bytes of the fields of a pair (histograms, moments, scores; states) and of
        a matrix of telescopes.
        """
        n_matrix = len(self.telescopes.tel_id) ** 2
        n_pairs = len(pairs_of(self.options, self.telescopes)[0])
        histograms = [self.timing.rough.n_bins]
        if self.network.estimator != "log-mean":
            histograms.append(self.network.observable.n_bins)
        summaries = n_pairs * (8 * sum(histograms) + 3 * 92 + 536) + 16 * n_matrix
        states = 3 * (600 * n_pairs + 40 * n_matrix)
        return summaries, sum(cell in one.cells for one in shards) * summaries + states

    def map_config(self) -> Mapping[str, Any]:
        """Return what the rows and their first summary depend on."""
        return {**super().map_config(), "time_walk": self.walks}

    def _altitude_m(self, layout: ArrayLayout, path: str) -> float:
        """Height of the ground in the system in which h_max is given."""
        options = self.options
        if options.front == "plane" or options.h_max_above == "ground":
            return 0.0
        if options.observatory_altitude is not None:
            return options.observatory_altitude
        if layout.reference_itrs_m is None or not np.isfinite(layout.reference_itrs_m).all():
            raise MissingInput(
                f"{path}: does not tell where on Earth the array is, so the height of a shower's"
                " maximum above the ground is not known: set"
                " CalculateTimingCalibration.observatory_altitude, or h_max_above to ground"
            )
        return geodetic_height_m(*layout.reference_itrs_m)

    def warnings(self) -> Sequence[str]:
        """Return warnings about configuration and layout."""
        reference = self.options.reference_telescope
        if self.layout is None or reference is None or reference in self.type_of_telescope:
            return self.notes
        note = f"reference telescope {reference} is not among the inputs: another one is taken"
        return [*self.notes, f"{note} and flagged"]

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> _Read:
        """Read telescope events."""
        path = shard.inputs[0].path
        data = self.read_events(shard)
        time = data.columns["time"]
        if time.shape != (len(data.tel_id), 2):
            raise CorruptedInput(
                f"{path}: /dl1/event/telescope/trigger has time as {time.dtype}, which does not"
                " resolve a nanosecond: ctapipe 0.32 writes seconds and quarters of a nanosecond"
                " (ctao_high_res); convert the file"
            )
        for name in ("alt", "az"):
            column = f"{self.options.geometry_reconstructor}_{name}"
            if data.units[column] not in RADIANS:
                raise CorruptedInput(
                    f"{path}: has {column} in {data.units[column]!r}, not in deg or rad"
                )
        pointing = None
        if self.options.delay_removed == "pointing":
            of_block = read_block_pointing(path)
            nowhere = (np.nan, np.nan)
            pointing = np.array([of_block.get(i, nowhere) for i in data.obs_id.tolist()])
        return _Read(data, self._altitude_m(data.layout, path), pointing)

    def pair_up(self, data: _Read) -> PairedRows:
        """Select the pairs of a shard, and keep the telescope events in them."""
        events, options = data.events, self.options
        layout = layout_of_file(events.layout)
        residual_ns, known = residual_times(
            events,
            events.layout.tel_id,
            events.layout.position_m,
            geometry=options.geometry_reconstructor,
            front=options.front,
            altitude_m=data.altitude_m,
            pointing=data.pointing,
            # The window opens with the trigger: together they tell when the light arrived, up to
            # a delay of the camera, whatever made the trigger late. Alone neither window nor peak
            # has a time in common with another telescope.
            delay=None if options.time == "trigger" else options.time,
        )
        if self.walks:
            size = events.columns[SIZE]
            known["size known"] = np.isfinite(size) & (size > 0)
        pairs = select_pairs(events, options, layout, self.of_events(events), known)
        kept, both = np.unique(np.concatenate([pairs.row_1, pairs.row_2]), return_inverse=True)
        row_1, row_2 = both.astype(np.int32).reshape(2, -1)
        event, obs_id, event_id = events.event[kept], events.obs_id[kept], events.event_id[kept]
        rows: Columns = {
            "event": event.astype(np.int32),
            "tel_id": events.tel_id[kept],
            "residual_ns": residual_ns[kept],
            "impact_m": events.columns[self.options.impact_column][kept].astype(np.float32),
            "row_1": row_1,
            "row_2": row_2,
            "group": event_group(obs_id, event_id),
        }
        if self.walks:
            rows["smallness"] = np.sqrt(100.0 / events.columns[SIZE][kept])
        rows |= self.time_bins(events, event) | {"obs_id": obs_id, "event_id": event_id}
        return PairedRows.of(events, rows, pairs.cut_flow, pairs.warnings)

    def bins_of(self, rows: Rows) -> NDArray[np.int64] | None:
        """Return the time bin of each pair, if there are bins."""
        return rows["time_bin"][rows["row_1"]] if "time_bin" in rows else None

    def events_of(self, rows: Rows) -> TimingEvents:
        """Return the telescope events that were kept, with their pairs."""
        names = [one.name for one in fields(TimingEvents) if one.name in rows]
        return TimingEvents(**{name: rows[name] for name in names})

    def take(self, events: TimingEvents, mine: NDArray[np.integer]) -> TimingEvents:
        """Take some of the pairs; the rows that they point to stay together."""
        return replace(events, row_1=events.row_1[mine], row_2=events.row_2[mine])

    def summarise(
        self, stage: int, events: TimingEvents, given: Any, n_lacking: Mapping[int, int]
    ) -> Summary:
        """Summarise the times near the rough offsets, or the events' scores about a fit."""
        del n_lacking
        return reduce_timing(stage, self.timing, events, self.fit_rows(), given)

    # -- fit and products -----------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: Any) -> Any:
        """Fit rough offsets, then the network, then finish it with its errors."""
        options, telescopes = self.timing, self.fit_rows()
        fitted = fit_timing(stage, options, total, given, telescopes)
        if stage > 0 or total.difference.n.sum():
            return fitted
        if cell == ALL:
            raise NotEnoughData(
                "no pair of telescopes has a selected event with known times in common: nothing to"
                " calibrate"
            )
        # A time bin without pairs has rows without values, and costs the others nothing.
        robust = options.network.estimator != "log-mean"
        nothing = PairSummary.identity(options.network.observable, histogram=robust)
        network = fit_stage(0, options.network, nothing, None, telescopes)
        return replace(fitted, network=replace(network, done=True))

    def combine(self, states: Mapping[Cell, Any]) -> Any:
        """Return the fits in the order of time.

        Raises
        ------
        NotEnoughData
            No time bin has a pair.
        """
        networks = {cell: fit.network for cell, fit in states.items() if fit.network is not None}
        if len(networks) == len(states):
            super().combine(networks)
        return {cell: states[cell] for cell in sorted(states)}

    def network_of(self, fit: TimingFit) -> NetworkFit:
        """Return the network of the offsets, which there is from the second stage on."""
        network = offset_network(fit)
        if network is None:
            raise ValueError("the fit has only begun: it knows rough offsets")
        return network

    def columns_of(self, cell: Cell, result: Mapping[Cell, Any]) -> dict[str, Columns]:
        """Return offsets, pairs, covariance and components of a finished fit.

        Beside what every network has: the systematic and the total error of each offset, the
        covariance of the former, the residuals by impact distance, and the time walk.
        """
        fit, named = result[cell], super().columns_of(cell, result)
        covariance = named[f"{self.table}_covariance"]
        add_systematic(fit, self.network_of(fit), named[self.table], covariance)
        named[RESIDUALS.path] = residual_columns(fit, self.options.impact_bins)
        if self.walks:
            named[WALK.path] = walk_columns(fit, np.unique(self.telescopes.tel_type))
        return named

    def values_so_far(self, cell: Cell, result: Mapping[Cell, Any]) -> Columns:
        """Return offsets before all fits are finished, rough ones before the second stage.

        Those are good to some nanoseconds.
        """
        if all(fit.network is not None for fit in result.values()):
            return super().values_so_far(cell, result)
        references = [number for _, number in self.network.reference_telescopes]
        return rough_columns(result[cell], self.type_of_telescope, references)

    @property
    def quantity(self) -> CalibratedQuantity:
        """What is calibrated, in words."""
        from calibdask.array.timing_report import OFFSET

        return OFFSET

    def report_sections(self, tables: Mapping[str, QTable]) -> list[ReportSection]:
        """Return the sections of the report: offsets, systematic error, residuals, map, network."""
        from calibdask.array.timing_report import timing_sections

        return timing_sections(tables, self.places(tables), truth=dict(self.truth) or None)
