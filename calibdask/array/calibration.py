"""Energy asymmetries and inter-calibration of telescopes: glue between files, model and engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from calibdask.array.model import NetworkOptions, asymmetry, asymmetry_uncertainty
from calibdask.array.pairs import PairRows, event_keys, number_events, select_pairs
from calibdask.array.pairwise import (
    MONITORING,
    PAIR_BYTES,
    FromDl2,
    PairData,
    PairwiseCalibration,
    join_obs_ids,
    layout_of_file,
    type_of,
)
from calibdask.array.summary import PairEvents, PairSummary, summarise_pairs
from calibdask.engine.protocol import (
    ALL,
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
from calibdask.io.dl2 import Needs, TelescopeEvents
from calibdask.io.kinds import file_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.config import EnergyAsymmetryOptions, InterCalibrationOptions
    from calibdask.array.network import NetworkFit
    from calibdask.report import Section

__all__ = ["EnergyAsymmetryEstimation", "InterCalibration"]


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


# -- step 1: event-wise asymmetries -------------------------------------------------------------


@dataclass(frozen=True)
class EnergyAsymmetryEstimation(FromDl2):
    """Energy asymmetry of every pair of telescopes in every event, one file per DL2 file."""

    options: EnergyAsymmetryOptions

    name: ClassVar[str] = "energy-asymmetry-estimation"
    version: ClassVar[int] = 2
    summary: ClassVar[type[Summary]] = PairSummary

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return _needs(self.options, uncertainty=True)

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
        pairs = select_pairs(data, self.options, layout_of_file(data.layout))
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
        types = type_of(self.telescopes, data.tel_id[one])
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
                        tel_type=type_of(self.telescopes, rows["tel_id_1"]),
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
class InterCalibration(PairwiseCalibration):
    """Relative throughput of telescopes of one type, from DL2 files or from asymmetries."""

    options: EnergyAsymmetryOptions
    name: ClassVar[str] = "inter-calibration"
    version: ClassVar[int] = 2
    table: ClassVar[str] = f"{MONITORING}/inter_calibration"

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

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return _needs(self.options, uncertainty=False)

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
        if self.bins is not None:
            raise ConfigError(
                f"{source.path}: asymmetries do not tell when their events were: time bins need"
                " the DL2 files as input"
            )
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
        obs_ids = join_obs_ids(survey.facts for survey in surveys)
        return replace(self, from_asymmetries=True, obs_ids=obs_ids)

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
                peak_bytes=survey.facts.n_rows * PAIR_BYTES,
            )

    def map_config(self) -> Mapping[str, Any]:
        """Give what pair events and their first summary depend on."""
        config = {**super().map_config(), **self._inter.map_options()}
        if self.from_asymmetries:  # nothing is selected any more
            config = {key: config[key] for key in config.keys() - self.options.map_options().keys()}
        return config

    def fit_config(self) -> Mapping[str, Any]:
        """Give what only the fit depends on, the telescopes without data among it."""
        return {**self._inter.fit_options(), "telescopes": self.fit_telescopes()}

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

    def read(self, shard: Shard, rows: Rows | None) -> PairData | tuple[Shard, TelescopeEvents]:
        """Read telescope events, or the pairs kept by the first stage, or a file of asymmetries."""
        if not self.from_asymmetries:
            return super().read(shard, rows)
        table = read_asymmetries(shard.inputs[0].path, self._inter.asymmetry_label)
        event = number_events(table.obs_id, table.event_id)
        return PairData(
            PairEvents(
                event, table.tel_type, table.tel_id_1, table.tel_id_2, table.value_1, table.value_2
            ),
            None,
            shard.cells,
            event_keys(event, table.obs_id, table.event_id),
            {"pairs": len(table), "events with a pair": int(event.max(initial=-1)) + 1},
        )

    def select(self, data: TelescopeEvents) -> PairRows:
        """Select pairs by the layout of their own file.

        So a file gives the same rows in whatever company it is calibrated.
        """
        return select_pairs(data, self.options, layout_of_file(data.layout))

    def compare(self, data: TelescopeEvents) -> NDArray[np.floating]:
        """Give the energies, TeV."""
        return data.columns[f"{self.options.energy_reconstructor}_tel_energy"]

    # -- products -------------------------------------------------------------------------------

    def product(self, result: Mapping[Cell, NetworkFit]) -> Mapping[str, str]:
        """Describe the monitoring table."""
        del result
        return {
            "description": "Inter-calibration of telescope throughput",
            "data_level": "DL2",
            "process_type": self.process_type,
        }

    def report(
        self, result: Mapping[Cell, NetworkFit], tables: Mapping[str, QTable]
    ) -> Sequence[Section]:
        """Give the sections of the report: coefficients, residuals, map, components."""
        from calibdask.array.report import inter_calibration_sections

        del result
        return inter_calibration_sections(
            tables, self.places(tables), truth=dict(self.truth) or None
        )
