"""Energy asymmetries and inter-calibration of telescopes: glue between files, model and engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from calibdask.array.model import NetworkOptions, Telescopes, asymmetry, asymmetry_uncertainty
from calibdask.array.network import NetworkFit, coefficients, fit_stage, values_so_far
from calibdask.array.pairs import Layout, PairRows, event_keys, number_events, select_pairs
from calibdask.array.summary import (
    STAGES,
    PairEvents,
    PairSummary,
    ScoreSummary,
    reduce_stage,
    summarise_pairs,
)
from calibdask.engine.protocol import (
    ALL,
    Calibration,
    Cell,
    InputRef,
    Piece,
    Reduced,
    Rows,
    Shard,
    State,
    Summary,
    Survey,
    Values,
    WrongKind,
)
from calibdask.errors import ConfigError, MissingInput, NotEnoughData
from calibdask.io.asymmetry import (
    Asymmetries,
    AsymmetryInfo,
    create_asymmetries,
    inspect_asymmetries,
    read_asymmetries,
)
from calibdask.io.dl2 import (
    ArrayLayout,
    Dl2Info,
    Needs,
    TelescopeEvents,
    event_ranges,
    inspect_dl2,
    read_telescope_events,
)
from calibdask.io.kinds import file_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.config import EnergyAsymmetryOptions, InterCalibrationOptions
    from calibdask.report import Section

__all__ = ["EnergyAsymmetryEstimation", "InterCalibration"]

MONITORING = "/dl2/monitoring/subarray"

_PAIR_BYTES = 200  # memory of a pair-event while it is formed, selected and summarised


def _needs(options: EnergyAsymmetryOptions, *, uncertainty: bool) -> Needs:
    """Name the columns that the options make necessary, and no others."""
    energy = f"{options.energy_reconstructor}_tel_energy"
    columns = set(options.quality_criteria.columns)
    if uncertainty:
        columns.add(f"{energy}_uncert")
    if options.min_gammaness is not None:
        columns.add(f"{options.gammaness_reconstructor}_tel_prediction")
    if options.max_distance_asymmetry is not None:
        columns.add(f"{options.geometry_reconstructor}_tel_impact_distance")
    return Needs(energy, tuple(sorted(columns - {energy})))


def _join_layouts(surveys: Sequence[Survey]) -> Layout:
    """Unite the telescopes of all files.

    Raises
    ------
    ConfigError
        Two files contradict each other about a telescope.
    """
    layouts: list[tuple[str, ArrayLayout]] = [
        (survey.source.path, survey.facts.layout) for survey in surveys
    ]
    telescopes: dict[int, tuple[str, str, tuple[float, float, float]]] = {}
    first: dict[int, tuple[str, ArrayLayout]] = {}
    for path, layout in layouts:
        for number, kind, description, (x, y, z) in zip(
            layout.tel_id.tolist(),
            layout.tel_type,
            layout.tel_description,
            layout.position_m.tolist(),
            strict=True,
        ):
            known = first.setdefault(number, (path, layout))
            if known[1] is not layout and (what := known[1].contradiction(layout)):
                raise ConfigError(
                    f"{known[0]} and {path} are of different arrays: {what}; calibrate each array"
                    " by itself"
                )
            telescopes.setdefault(number, (kind, description, (x, y, z)))
    order = sorted(telescopes, key=lambda number: (telescopes[number][0], number))
    return Layout(
        tuple(order),
        tuple(telescopes[number][0] for number in order),
        tuple(telescopes[number][1] for number in order),
        tuple(telescopes[number][2] for number in order),
    )


@dataclass(frozen=True)
class _FromDl2(Calibration):
    """What the jobs that read DL2 files share: survey, layout, shards."""

    options: EnergyAsymmetryOptions
    shard_bytes: int
    notes: tuple[str, ...] = ()
    layout: Layout | None = None
    process_type: str = "Observation"
    obs_ids: tuple[int, ...] = ()

    preload: ClassVar[tuple[str, ...]] = ("astropy.units",)  # for units in quality criteria
    reads_uncertainty: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return _needs(self.options, uncertainty=self.reads_uncertainty)

    def survey(self, source: InputRef) -> Survey:
        """Look at the tables of a DL2 file."""
        if file_kind(source.path) != "DL2 events":
            raise WrongKind(f"{source.path}: holds no DL2 events")
        info = inspect_dl2(source.path, self.needs)
        if info.product_id:  # tells apart what equal size and samples would not
            source = replace(source, identity=f"{source.identity}:{info.product_id}")
        return Survey(source, order=info.obs_ids[:1], facts=info)

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts, and refuse what does not belong together."""
        types: dict[str, str] = {}
        for survey in surveys:
            types.setdefault(survey.facts.process_type or "Observation", survey.source.path)
        if len(types) > 1:
            listed = " and ".join(f"{path} ({kind})" for kind, path in sorted(types.items()))
            raise ConfigError(f"simulated and observed events in one run: {listed}; separate them")
        layout = _join_layouts(surveys)
        notes = self.options.max_impact_distance.unmatched(
            layout.tel_id, layout.tel_description, option="PairFinder.max_impact_distance"
        )
        return replace(
            self,
            layout=layout,
            process_type=next(iter(types)),
            notes=self.notes + notes,
            obs_ids=_obs_ids(surveys),
        )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut files that are too large for one shard into ranges of events."""
        for survey in surveys:
            info: Dl2Info = survey.facts
            n_rows = info.n_telescope_rows
            n_pairs = n_rows * max(n_rows / max(info.n_events, 1) - 1, 0) / 2
            peak_bytes = info.bytes_needed + int(n_pairs * _PAIR_BYTES)
            n_parts = -(-peak_bytes // self.shard_bytes)
            if n_parts <= 1:
                yield Piece(
                    (survey.source,),
                    order=survey.order,
                    n_bytes=survey.source.size,
                    peak_bytes=peak_bytes,
                )
                continue
            for first, stop in event_ranges(survey.source.path, n_parts):
                fraction = (stop - first) / info.n_events
                yield Piece(
                    (survey.source,),
                    (("first_trigger_row", first), ("stop_trigger_row", stop)),
                    order=(*survey.order, first),
                    n_bytes=int(survey.source.size * fraction),
                    peak_bytes=int(peak_bytes * fraction),
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
        return read_telescope_events(shard.inputs[0].path, self.needs, rows)


def _obs_ids(surveys: Sequence[Survey]) -> tuple[int, ...]:
    return tuple(sorted({number for survey in surveys for number in survey.facts.obs_ids}))


def _pairs(events: TelescopeEvents, options: EnergyAsymmetryOptions) -> PairRows:
    """Pair telescope events by the layout of their own file.

    So a file gives the same rows in whatever company it is calibrated.
    """
    array = events.layout
    layout = Layout(
        tuple(array.tel_id.tolist()),
        array.tel_type,
        array.tel_description,
        tuple((x, y, z) for x, y, z in array.position_m.tolist()),
    )
    return select_pairs(events, options, layout)


def _of_layout(layout: Layout | None) -> Layout:
    if layout is None:
        raise ValueError("the calibration was not planned: it knows no telescopes")
    return layout


def _type_of(layout: Layout, tel_id: NDArray[np.integer[Any]]) -> NDArray[np.bytes_]:
    """Type of each row's telescope, as bytes like in the files."""
    table = np.zeros(max(layout.tel_id) + 1, "S8")
    table[list(layout.tel_id)] = np.array(layout.tel_type, "S8")
    return np.asarray(table[tel_id])


# -- step 1: event-wise asymmetries -------------------------------------------------------------


@dataclass(frozen=True)
class EnergyAsymmetryEstimation(_FromDl2):
    """Energy asymmetry of every pair of telescopes in every event, one file per DL2 file."""

    name: ClassVar[str] = "energy-asymmetry-estimation"
    version: ClassVar[int] = 2
    summary: ClassVar[type[Summary]] = PairSummary
    reads_uncertainty: ClassVar[bool] = True

    def map_config(self) -> Mapping[str, Any]:
        """Give what the rows depend on."""
        return self.options.map_options()

    def read(self, shard: Shard, rows: Rows | None) -> TelescopeEvents:
        """Read telescope events."""
        del rows
        return self.read_events(shard)

    def reduce(self, stage: int, data: TelescopeEvents, given: Mapping[Cell, Any]) -> Reduced:
        """Pair the telescopes of each event; keep the rows, summarise the pairs."""
        del stage, given
        layout = _of_layout(self.layout)
        pairs = _pairs(data, self.options)
        one, two = pairs.row_1, pairs.row_2
        energy = f"{self.options.energy_reconstructor}_tel_energy"
        energy_tev, sigma_tev = data.columns[energy], data.columns[f"{energy}_uncert"]
        rows: dict[str, NDArray[Any]] = {
            "obs_id": data.obs_id[one],
            "event_id": data.event_id[one],
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "energy_1_tev": energy_tev[one],
            "energy_2_tev": energy_tev[two],
            "uncertainty_1_tev": sigma_tev[one],
            "uncertainty_2_tev": sigma_tev[two],
        }
        types = _type_of(layout, data.tel_id[one])
        summary = summarise_pairs(
            PairEvents(
                data.event[one],
                types,
                rows["tel_id_1"],
                rows["tel_id_2"],
                rows["energy_1_tev"],
                rows["energy_2_tev"],
            )
        )
        keys = event_keys(data.event[one], data.obs_id[one], data.event_id[one])
        flow = {**pairs.cut_flow, "events with a pair": len(keys)}
        return Reduced({ALL: summary}, flow, rows, keys, pairs.warnings)

    def fit(self, stage: int, cell: Cell, total: PairSummary, given: Any) -> State:
        """Count the events of each pair: there is nothing to fit."""
        del stage, cell, given
        n = total.difference.n
        if not n.sum():
            raise NotEnoughData("no pair of telescopes has a selected event in common")
        return Values({"pairs": total.pairs, "n_events": n, "tel_type": total.tel_type})

    def files(self, shards: Sequence[Shard]) -> Mapping[str, tuple[int, ...]]:
        """Name one output file per input, like the input.

        Raises
        ------
        ConfigError
            Two inputs have the same file name.
        """
        from pathlib import Path

        members: dict[str, list[Shard]] = {}
        for shard in shards:
            members.setdefault(Path(shard.inputs[0].path).stem + ".h5", []).append(shard)
        for name, mine in members.items():
            paths = sorted({shard.inputs[0].path for shard in mine})
            if len(paths) > 1:
                raise ConfigError(
                    f"{paths[0]} and {paths[1]} would both be written to {name}: rename one, or"
                    " calibrate them into different directories"
                )
        return {name: tuple(shard.index for shard in mine) for name, mine in members.items()}

    def write_file(self, path: Path, shards: Sequence[Shard], parts: Iterable[Rows]) -> None:
        """Write the event-wise asymmetries of one DL2 file."""
        del shards
        layout = _of_layout(self.layout)
        value = f"{self.options.energy_reconstructor}_tel_energy"
        path.unlink(missing_ok=True)  # what an interrupted try left
        with create_asymmetries(path, "energy_asymmetry", value) as writer:
            for rows in parts:
                x_1, x_2 = rows["energy_1_tev"], rows["energy_2_tev"]
                s_1, s_2 = rows["uncertainty_1_tev"], rows["uncertainty_2_tev"]
                writer.append(
                    Asymmetries(
                        obs_id=rows["obs_id"],
                        event_id=rows["event_id"],
                        tel_type=_type_of(layout, rows["tel_id_1"]),
                        tel_id_1=rows["tel_id_1"],
                        tel_id_2=rows["tel_id_2"],
                        value_1=x_1,
                        value_2=x_2,
                        asymmetry=asymmetry(x_1, x_2),
                        uncertainty_1=s_1,
                        uncertainty_2=s_2,
                        asymmetry_uncertainty=asymmetry_uncertainty(x_1, x_2, s_1, s_2),
                    )
                )


# -- step 2: coefficients -----------------------------------------------------------------------


@dataclass(frozen=True)
class _PairData:
    """What a shard of inter-calibration holds after reading."""

    events: PairEvents
    keys: NDArray[np.int64] | None = None
    cut_flow: Mapping[str, int] | None = None
    rows: Rows | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class InterCalibration(_FromDl2):
    """Relative throughput of telescopes of one type, from DL2 files or from asymmetries."""

    name: ClassVar[str] = "inter-calibration"
    version: ClassVar[int] = 2
    state: ClassVar[type[State]] = NetworkFit

    inter: InterCalibrationOptions | None = None
    from_asymmetries: bool = False
    truth: tuple[tuple[int, float], ...] = ()  # of a simulation, by telescope: for the report

    @property
    def _inter(self) -> InterCalibrationOptions:
        if self.inter is None:
            raise ValueError("the options of the inter-calibration are missing")
        return self.inter

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator."""
        inter = self._inter
        return NetworkOptions(
            estimator=inter.estimator,
            n_min=inter.n_min,
            clip_sigma=inter.clip_sigma,
            normalisation=inter.normalisation,
            reference_telescopes=inter.reference_telescopes,
            throughput_normalisation=inter.throughput_normalisation,
        )

    def summary_type(self, stage: int) -> type[Summary]:
        """Give scores in the last stage, moments of pairs before."""
        last = stage == STAGES[self._inter.estimator] - 1
        return ScoreSummary if last else PairSummary

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at a DL2 file or a file of asymmetries."""
        kind = file_kind(source.path)
        if kind == "other":
            raise WrongKind(f"{source.path}: holds neither DL2 events nor event-wise asymmetries")
        label = self._inter.asymmetry_label
        if kind == "DL2 events":
            if label != "energy_asymmetry":
                raise ConfigError(
                    f"{source.path}: {label} is calibrated from files of event-wise asymmetries,"
                    " not from DL2 files; or set CalculateInterCalibration.asymmetry_label to"
                    " energy_asymmetry"
                )
            return super().survey(source)
        info = inspect_asymmetries(source.path, label)
        if info.value != self._inter.value_column:
            raise MissingInput(
                f"{source.path}: holds asymmetries of {info.value}, but {self._inter.value_column}"
                " is configured: set CalculateInterCalibration.reconstruction_algorithm to match"
            )
        return Survey(source, order=info.obs_ids[:1], facts=info)

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts; refuse DL2 events and asymmetries in one run."""
        files = {
            isinstance(survey.facts, AsymmetryInfo): survey.source.path
            for survey in reversed(surveys)
        }
        if len(files) > 1:
            raise ConfigError(
                f"DL2 events ({files[False]}) and asymmetries ({files[True]}) in one run: the same"
                " events could count twice; give one kind"
            )
        if False in files:
            return super().planned(surveys)
        return replace(self, from_asymmetries=True, obs_ids=_obs_ids(surveys))

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut DL2 files into ranges of events; asymmetries are sorted by pair and stay whole."""
        if not self.from_asymmetries:
            yield from super().pieces(surveys)
            return
        for survey in surveys:
            yield Piece(
                (survey.source,),
                order=survey.order,
                n_bytes=survey.source.size,
                peak_bytes=survey.facts.n_rows * _PAIR_BYTES,
            )

    def map_config(self) -> Mapping[str, Any]:
        """Give what pair events and their first summary depend on."""
        robust = self._inter.estimator in ("log-median", "log-clipped")
        source = {} if self.from_asymmetries else self.options.map_options()
        return {**source, **self._inter.map_options(), "histogram": robust}

    def fit_config(self) -> Mapping[str, Any]:
        """Give what only the fit depends on, the telescopes without data among it."""
        layout = self.layout
        telescopes = [] if layout is None else [list(layout.tel_id), list(layout.tel_type)]
        return {**self._inter.fit_options(), "telescopes": telescopes}

    def warnings(self) -> Sequence[str]:
        """Tell what was odd about configuration and layout."""
        if self.layout is None:
            return self.notes
        known = dict(zip(self.layout.tel_id, self.layout.tel_type, strict=True))
        return [
            *self.notes,
            *(
                f"reference telescope {number} of {kind} is not among the {kind} of the inputs:"
                " another one is taken and flagged"
                for kind, number in self._inter.reference_telescopes
                if kind in self.layout.tel_type and known.get(number) != kind
            ),
        ]

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard, rows: Rows | None) -> _PairData | TelescopeEvents:
        """Read telescope events, or the pairs kept by the first stage, or a file of asymmetries."""
        if self.from_asymmetries:
            table = read_asymmetries(shard.inputs[0].path, self._inter.asymmetry_label)
            event = number_events(table.obs_id, table.event_id)
            return _PairData(
                PairEvents(
                    event, table.tel_type, table.tel_id_1, table.tel_id_2, table.value_1,
                    table.value_2,
                ),
                event_keys(event, table.obs_id, table.event_id),
                {"pairs": len(table), "events with a pair": int(event.max(initial=-1)) + 1},
            )  # fmt: skip
        if rows is None:
            return self.read_events(shard)
        return _PairData(self._pair_events(rows))

    def _pair_events(self, rows: Rows) -> PairEvents:
        return PairEvents(
            event=rows["event"],
            tel_type=_type_of(_of_layout(self.layout), rows["tel_id_1"]),
            tel_id_1=rows["tel_id_1"],
            tel_id_2=rows["tel_id_2"],
            x_1=rows["energy_1_tev"],
            x_2=rows["energy_2_tev"],
        )

    def _pair(self, data: TelescopeEvents) -> _PairData:
        pairs = _pairs(data, self.options)
        one, two = pairs.row_1, pairs.row_2
        energy_tev = data.columns[f"{self.options.energy_reconstructor}_tel_energy"]
        rows: dict[str, NDArray[Any]] = {
            "event": data.event[one].astype(np.int32),
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "energy_1_tev": energy_tev[one],
            "energy_2_tev": energy_tev[two],
        }
        keys = event_keys(data.event[one], data.obs_id[one], data.event_id[one])
        flow = {**pairs.cut_flow, "events with a pair": len(keys)}
        return _PairData(self._pair_events(rows), keys, flow, rows, pairs.warnings)

    def reduce(
        self, stage: int, data: _PairData | TelescopeEvents, given: Mapping[Cell, Any]
    ) -> Reduced:
        """Summarise the pairs, or the events' scores about a fit."""
        if isinstance(data, TelescopeEvents):
            data = self._pair(data)
        summary = cast("Summary", reduce_stage(stage, self.network, data.events, given.get(ALL)))
        if stage > 0:
            return Reduced({ALL: summary})
        return Reduced({ALL: summary}, data.cut_flow or {}, data.rows, data.keys, data.warnings)

    # -- fit and products -----------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: NetworkFit | None) -> NetworkFit:
        """Fit the network of each type, or finish it with the covariance of clustered events."""
        del cell
        if stage == 0 and not total.difference.n.sum():
            raise NotEnoughData(
                "no pair of telescopes has a selected event in common: nothing to calibrate"
            )
        telescopes = None
        if self.layout is not None:
            telescopes = Telescopes(np.array(self.layout.tel_id), np.array(self.layout.tel_type))
        return fit_stage(stage, self.network, total, given, telescopes)

    def combine(self, states: Mapping[Cell, NetworkFit]) -> NetworkFit:
        """Give the only state."""
        return states[ALL]

    def product(self, result: NetworkFit) -> Mapping[str, str]:
        """Describe the monitoring table."""
        del result
        return {
            "description": "Inter-calibration of telescope throughput",
            "data_level": "DL2",
            "process_type": self.process_type,
        }

    def tables(self, result: NetworkFit) -> Mapping[str, QTable]:
        """Give coefficients, pairs, covariance and components, or the values of a fit not done."""
        from astropy.table import QTable

        if result.done:
            named = coefficients(result)
        else:
            named = {"inter_calibration": values_so_far(result)}
        tables = {}
        for name, columns in named.items():
            tables[f"{MONITORING}/{name}"] = QTable(
                columns, meta={"obs_id": np.array(self.obs_ids, np.uint64)}
            )
        return tables

    def report(self, result: NetworkFit, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Give the sections of the report: coefficients, residuals, map, components."""
        from calibdask.array.report import TelescopeLayout, inter_calibration_sections

        places = {}
        if self.layout is not None:
            places = dict(zip(self.layout.tel_id, self.layout.position_m, strict=True))
        nowhere = (np.nan, np.nan, np.nan)
        position_m = np.array([places.get(int(number), nowhere) for number in result.tel_id])
        layout = TelescopeLayout(result.tel_id, result.tel_type, position_m[:, 0], position_m[:, 1])
        return inter_calibration_sections(tables, layout, truth=dict(self.truth) or None)
