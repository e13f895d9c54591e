"""Asymmetries and inter-calibration of telescopes: glue between files, model and engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.array.asymmetry_config import (
    CalculateEnergyAsymmetry,
    CalculateImageAsymmetry,
    energy_section,
    image_section,
)
from calibdask.array.config import FURTHER, OLD_NAME, SELECTION
from calibdask.array.goodness import event_group
from calibdask.array.image_size import (
    HIGHER_CUT,
    NARROWER_WINDOW,
    harder_selections,
    pair_size,
    systematic,
)
from calibdask.array.model import NetworkOptions, asymmetry, asymmetry_uncertainty, log_ratio
from calibdask.array.pairs import (
    Layout,
    PairRows,
    by_telescope,
    event_keys,
    number_events,
    select_pairs,
)
from calibdask.array.pairwise import (
    PAIR_BYTES,
    FromDl2,
    PairData,
    PairwiseCalibration,
    join_obs_ids,
    layout_of_file,
    selection_of,
    type_of,
    unknown_types,
)
from calibdask.array.summary import PairEvents, PairSummary, distance_range, summarise_pairs
from calibdask.array.tables import INTER, INTER_CALIBRATION
from calibdask.array.throughput_config import (
    ENERGY_ESTIMATOR,
    CalculateInterCalibration,
    RelativeThroughputFitter,
    inter_sections,
)
from calibdask.engine.protocol import (
    ALL,
    Cell,
    Files,
    InputRef,
    Output,
    Piece,
    Reduced,
    Rows,
    Shard,
    Summary,
    Survey,
    Values,
)
from calibdask.errors import ConfigError, MissingInput, NotEnoughData, WrongKind
from calibdask.io.asymmetry import (
    IMAGE_ASYMMETRY,
    Asymmetries,
    AsymmetryInfo,
    create_asymmetries,
    inspect_asymmetries,
    read_asymmetries,
)
from calibdask.io.dl2 import Needs, TelescopeEvents
from calibdask.io.kinds import file_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.pair_config import PairSection
    from calibdask.array.pairwise import Columns
    from calibdask.array.report import Quantity
    from calibdask.array.state import NetworkFit
    from calibdask.config import Campaign, Configuration
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema

__all__ = ["EnergyAsymmetryEstimation", "ImageAsymmetryEstimation", "InterCalibration"]


def _needs(options: PairSection, *further: str | None) -> Needs:
    """Name the columns that the options make necessary, and no others."""
    columns = {column for column in further if column is not None} | options.columns
    return Needs(options.value_column, tuple(sorted(columns - {options.value_column})))


# -- step 1: event-wise asymmetries -------------------------------------------------------------


@dataclass(frozen=True)
class _AsymmetryEstimation(FromDl2[TelescopeEvents, Values, Mapping[Cell, Values]]):
    """Asymmetry of every pair of telescopes in every event, one file per DL2 file."""

    options: CalculateEnergyAsymmetry | CalculateImageAsymmetry

    version: ClassVar[int] = 3
    kept_bytes: ClassVar[int] = 66
    summary: ClassVar[type[Summary]] = PairSummary
    writes_directory: ClassVar[bool] = True

    @property
    def needs_altitude(self) -> bool:
        """Whether the selection looks at where the telescopes pointed."""
        return self.options.needs_altitude

    @property
    def further(self) -> Mapping[str, str]:
        """Columns that are kept besides the values, by the name of the kept rows."""
        raise NotImplementedError

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return _needs(self.options, *self.further.values())

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts; refuse inputs of the same name, as outputs are named like inputs."""
        paths: dict[str, str] = {}
        for path in (survey.source.path for survey in surveys):
            name = _file_name_of(path)
            if paths.setdefault(name, path) != path:
                raise ConfigError(
                    f"{paths[name]} and {path} would both be written to {name}: rename one, or"
                    " calibrate them into different directories"
                )
        return super().planned(surveys)

    def read(self, shard: Shard) -> TelescopeEvents:
        """Read telescope events."""
        return self.read_events(shard)

    def reduce(self, shard: Shard, data: TelescopeEvents) -> Reduced:
        """Pair the telescopes of each event; keep the rows, summarise the pairs."""
        del shard
        pairs = select_pairs(data, self.options, layout_of_file(data.layout), self.of_events(data))
        one, two = pairs.row_1, pairs.row_2
        columns = {"x": self.options.value_column, **self.further}
        rows: dict[str, NDArray[Any]] = {
            "obs_id": data.obs_id[one],
            "event_id": data.event_id[one],
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "limit": pairs.limit,
        }
        for name, column in columns.items():
            rows[f"{name}_1"] = data.columns[column][one]
            rows[f"{name}_2"] = data.columns[column][two]
        types = type_of(self.telescopes, data.tel_id[one])
        summary = summarise_pairs(
            PairEvents(
                data.event[one],
                types,
                rows["tel_id_1"],
                rows["tel_id_2"],
                rows["x_1"],
                rows["x_2"],
            )
        )
        keys = event_keys(data.event[one], data.obs_id[one], data.event_id[one])
        flow = {**pairs.cut_flow, "events with a pair": len(keys)}
        return Reduced({ALL: summary}, flow, rows, keys, pairs.warnings)

    def fit(self, stage: int, cell: Cell, total: PairSummary, given: Values | None) -> Values:
        """Count the events of each pair: there is nothing to fit."""
        del stage, cell, given
        n = total.difference.n
        if not n.sum():
            raise NotEnoughData("no pair of telescopes has a selected event in common")
        return Values({"pairs": total.pairs, "n_events": n, "tel_type": total.tel_type})

    def outputs(self, result: Mapping[Cell, Values]) -> Sequence[Output]:
        """Return one file for each input."""
        del result
        return [Files(_file_name, self.write_file)]

    def write_file(self, path: Path, shards: Sequence[Shard], parts: Iterable[Rows]) -> None:
        """Write the event-wise asymmetries of one DL2 file."""
        del shards
        options = self.options
        geometry = options.geometry_reconstructor if "impact" in self.further else None
        path.unlink(missing_ok=True)  # what an interrupted try left
        longest = max((len(name.encode()) for name in self.telescopes.tel_type), default=0)
        with create_asymmetries(
            path,
            options.label,
            options.value_column,
            geometry,
            type_length=longest,
            obs_ids=self.obs_ids,
        ) as writer:
            for rows in parts:
                x_1, x_2 = rows["x_1"], rows["x_2"]
                further: dict[str, NDArray[np.float64]] = {}
                if "sigma_1" in rows:
                    s_1, s_2 = rows["sigma_1"], rows["sigma_2"]
                    further |= {
                        "uncertainty_1": s_1,
                        "uncertainty_2": s_2,
                        "asymmetry_uncertainty": asymmetry_uncertainty(x_1, x_2, s_1, s_2),
                    }
                if "impact_1" in rows:
                    further |= {
                        "impact_1_m": rows["impact_1"],
                        "impact_2_m": rows["impact_2"],
                        "limit": rows["limit"],
                    }
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
                        **further,
                    )
                )


def _file_name_of(path: str) -> str:
    return Path(path).stem + ".h5"


def _file_name(shard: Shard) -> str:
    return _file_name_of(shard.inputs[0].path)


@dataclass(frozen=True)
class EnergyAsymmetryEstimation(_AsymmetryEstimation):
    """Energy asymmetry of every pair of telescopes in every event."""

    options: CalculateEnergyAsymmetry

    name: ClassVar[str] = "energy-asymmetry-estimation"
    sections: ClassVar = {"CalculateEnergyAsymmetry": CalculateEnergyAsymmetry, **SELECTION}
    further_sections: ClassVar = {**FURTHER, **OLD_NAME}

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        return cls(energy_section(document, notes), campaign.shard_bytes, tuple(notes))

    @property
    def further(self) -> Mapping[str, str]:
        """Keep the uncertainties."""
        return {"sigma": self.options.uncertainty_column}


@dataclass(frozen=True)
class ImageAsymmetryEstimation(_AsymmetryEstimation):
    """Asymmetry of image sizes of every pair of telescopes in every event."""

    options: CalculateImageAsymmetry

    name: ClassVar[str] = "image-asymmetry-estimation"
    sections: ClassVar = {"CalculateImageAsymmetry": CalculateImageAsymmetry, **SELECTION}
    further_sections: ClassVar = FURTHER

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        return cls(image_section(document, notes), campaign.shard_bytes, tuple(notes))

    @property
    def further(self) -> Mapping[str, str]:
        """Keep the impact distances: the light falls with them."""
        return {"impact": self.options.impact_column}


# -- step 2: coefficients -----------------------------------------------------------------------


@dataclass(frozen=True)
class InterCalibration(PairwiseCalibration[TelescopeEvents | Asymmetries]):
    """Relative throughput of telescopes of one type, from DL2 files or from asymmetries."""

    options: CalculateEnergyAsymmetry | CalculateImageAsymmetry
    name: ClassVar[str] = "inter-calibration"
    version: ClassVar[int] = 4
    usual_stages: ClassVar[int] = 3
    small_bytes: ClassVar[int] = 40_000
    table: ClassVar[str] = INTER_CALIBRATION.path
    schemas: ClassVar[Mapping[str, TableSchema]] = INTER
    title: ClassVar[str] = "Inter-calibration of telescope throughput"
    sections: ClassVar = {
        "CalculateInterCalibration": CalculateInterCalibration,
        "RelativeThroughputFitter": RelativeThroughputFitter,
        # It reads DL2 files, too, and then forms the asymmetries on the way.
        "CalculateEnergyAsymmetry": CalculateEnergyAsymmetry,
        **SELECTION,
        "CalculateImageAsymmetry": CalculateImageAsymmetry,
    }
    further_sections: ClassVar = {**FURTHER, **OLD_NAME}

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        inter, fitter, options = inter_sections(document, notes)
        return cls(
            options,
            campaign.shard_bytes,
            tuple(notes),
            bins=campaign.bins,
            inter=inter,
            fitter=fitter,
        )

    inter: CalculateInterCalibration = field(default_factory=CalculateInterCalibration)
    fitter: RelativeThroughputFitter = field(default_factory=RelativeThroughputFitter)
    from_asymmetries: bool = False
    has_limits: bool = False  # asymmetries with impact distances and their limits
    truth: tuple[tuple[int, float], ...] = ()  # of a simulation, by telescope: for the report

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator."""
        fitter = self.fitter
        return NetworkOptions(
            estimator=fitter.estimator or ENERGY_ESTIMATOR,
            n_min=fitter.n_min,
            clip_sigma=fitter.clip_sigma,
            normalisation=fitter.normalisation,
            reference_telescopes=fitter.reference_telescopes.by_type,
            throughput_normalisation=fitter.throughput_normalisation.by_type,
            symmetric=not self.of_images,
        )

    @property
    def of_images(self) -> bool:
        """Whether image sizes are compared."""
        return self.inter.asymmetry_label == IMAGE_ASYMMETRY

    @property
    def selections(self) -> tuple[str, ...]:
        """Harder selections that show the systematic error of image sizes."""
        if not self.of_images or self.fitter.estimator == "asymmetry":
            return ()
        windowed = self.has_limits if self.from_asymmetries else self.options.window is not None
        higher = self.fitter.minimum_pair_intensity is not None
        return (HIGHER_CUT,) * higher + (NARROWER_WINDOW,) * windowed

    @property
    def distance_term(self) -> bool:
        """Whether the slope over the impact distance is fitted."""
        return bool(self.fitter.distance_term) and (self.has_limits or not self.from_asymmetries)

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return _needs(self.options, self.options.impact_column if self.of_images else None)

    @property
    def needs_altitude(self) -> bool:
        """Whether the selection looks at where the telescopes pointed."""
        return self.options.needs_altitude

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at a DL2 file or a file of asymmetries."""
        kind = file_kind(source.path)
        if kind not in ("DL2 events", "asymmetries"):
            raise WrongKind(f"{source.path}: holds neither DL2 events nor event-wise asymmetries")
        if kind == "DL2 events":
            return super().survey(source)
        if self.bins is not None:
            raise ConfigError(
                f"{source.path}: asymmetries do not tell when their events were: time bins need"
                " the DL2 files as input"
            )
        info = inspect_asymmetries(source.path, self.inter.asymmetry_label)
        if info.value != self.options.value_column:
            raise MissingInput(
                f"{source.path}: holds asymmetries of {info.value}, but {self.options.value_column}"
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
        has_limits, notes = self.of_images, self.notes
        if lacking := [one.source.path for one in surveys if one.facts.geometry is None]:
            has_limits = False
            if self.fitter.distance_term:
                note = (
                    f"no distance term is fitted: {lacking[0]} holds no impact distances"
                    f" ({len(lacking)} such files); give the DL2 files, or asymmetries that"
                    " image-asymmetry-estimation wrote"
                )
                notes = (*notes, note)
        return replace(
            self, from_asymmetries=True, has_limits=has_limits, obs_ids=obs_ids, notes=notes
        )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut DL2 files into ranges of events; asymmetries are sorted by pair and stay whole."""
        for piece in self._pieces(surveys):
            cells = [(*cell, name) for cell in piece.cells for name in self.selections]
            yield replace(piece, cells=(*piece.cells, *cells))

    def _pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
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
        """Return what pair events and their first summary depend on."""
        config = {**super().map_config(), "value_column": self.options.value_column}
        if self.of_images:
            config |= {"distance_term": self.distance_term, "selections": list(self.selections)}
        if self.from_asymmetries:  # nothing is selected any more
            del config["options"]
        return config

    def fit_config(self) -> Mapping[str, Any]:
        """Return what only the fit depends on, the telescopes without data among it."""
        return {**super().fit_config(), "telescopes": self.fit_telescopes()}

    def warnings(self) -> Sequence[str]:
        """Tell what was odd about configuration and layout."""
        if self.layout is None:
            return self.notes
        known = dict(zip(self.layout.tel_id, self.layout.tel_type, strict=True))
        references = self.fitter.reference_telescopes.by_type
        scales = self.fitter.throughput_normalisation.by_type
        named = [kind for kind, _ in (*references, *scales)]
        return [
            *self.notes,
            *unknown_types(self.layout, "RelativeThroughputFitter", named),
            *(
                f"reference telescope {number} of {kind} is not among the {kind} of the inputs:"
                " another one is taken and flagged"
                for kind, number in references
                if kind in self.layout.tel_type and known.get(number) != kind
            ),
        ]

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> TelescopeEvents | Asymmetries:
        """Read telescope events, or a file of asymmetries."""
        if not self.from_asymmetries:
            return self.read_events(shard)
        return read_asymmetries(shard.inputs[0].path, self.inter.asymmetry_label)

    def reduce(self, shard: Shard, data: TelescopeEvents | Asymmetries) -> Reduced:
        """Summarise the pairs of a shard."""
        if isinstance(data, Asymmetries):
            return self.summarise_first(shard, self._pairs_of(data))
        return self.summarise_first(shard, self.pair_up(data))

    def refine(
        self,
        stage: int,
        shard: Shard,
        data: Rows | TelescopeEvents | Asymmetries,
        given: Mapping[Cell, NetworkFit],
    ) -> Reduced:
        """Summarise the pairs within the bounds so far, or the events' scores about a fit."""
        del shard
        if isinstance(data, TelescopeEvents):
            raise TypeError("the first stage keeps the pairs of telescope events")
        again = self._pairs_of(data) if isinstance(data, Asymmetries) else self.kept_pairs(data)
        return self.summarise_again(stage, again, given)

    def _pairs_of(self, table: Asymmetries) -> PairData:
        """Select the pairs of a file of asymmetries."""
        flow = {"pairs": len(table)}
        chosen = np.ones(len(table), np.bool_)
        more: dict[str, NDArray[Any]] = {}
        if self.of_images:
            layout = _layout_of_rows(table)
            chosen = self._large(
                layout, table.tel_id_1, table.tel_id_2, table.value_1, table.value_2
            )
            flow |= self._large_flow(chosen)
            table = table.take(np.flatnonzero(chosen))
            distances = (table.impact_1_m, table.impact_2_m, table.limit)
            more = self._image_rows(
                layout, table.tel_id_1, table.tel_id_2, table.value_1, table.value_2, *distances
            )
        event = number_events(table.obs_id, table.event_id)
        keys = event_keys(event, table.obs_id, table.event_id)
        flow["events with a pair"] = len(keys)
        return PairData(
            PairEvents(
                event,
                table.tel_type,
                table.tel_id_1,
                table.tel_id_2,
                table.value_1,
                table.value_2,
                more.get("log_distance"),
                more.get("distance_range"),
                event_group(table.obs_id, table.event_id),
            ),
            None,
            self.harder(more),
            keys,
            flow,
        )

    def select(self, data: TelescopeEvents) -> PairRows:
        """Select pairs by the layout of their own file.

        So a file gives the same rows in whatever company it is calibrated.
        """
        layout = layout_of_file(data.layout)
        pairs = select_pairs(data, self.options, layout, self.of_events(data))
        if not self.of_images:
            return pairs
        one, two = pairs.row_1, pairs.row_2
        large = self._large(layout, *self._of_pairs(data, pairs))
        return replace(
            pairs,
            row_1=one[large],
            row_2=two[large],
            limit=pairs.limit[large],
            cut_flow={**pairs.cut_flow, **self._large_flow(large)},
        )

    def _of_pairs(
        self, data: TelescopeEvents, pairs: PairRows
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Telescopes and values of the pairs."""
        one, two, x = pairs.row_1, pairs.row_2, self.compare(data)
        return data.tel_id[one], data.tel_id[two], x[one], x[two]

    def _least(
        self, layout: Layout, tel_id_1: NDArray[np.uint16], tel_id_2: NDArray[np.uint16]
    ) -> NDArray[np.float64] | None:
        """Least size of each pair, the greater one of its two telescopes; None for no cut."""
        patterns = self.fitter.minimum_pair_intensity
        if patterns is None:
            return None
        option = "RelativeThroughputFitter.minimum_pair_intensity"
        return np.maximum(
            *(by_telescope(patterns, layout, tel_id, option) for tel_id in (tel_id_1, tel_id_2))
        )

    def _large(
        self,
        layout: Layout,
        tel_id_1: NDArray[np.uint16],
        tel_id_2: NDArray[np.uint16],
        x_1: NDArray[np.float64],
        x_2: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Pairs whose images are large enough; a size that is no number goes on, to be counted."""
        least = self._least(layout, tel_id_1, tel_id_2)
        if least is None:
            return np.ones(len(x_1), np.bool_)
        return ~(pair_size(x_1, x_2) < least)

    def _large_flow(self, large: NDArray[np.bool_]) -> dict[str, int]:
        if self.fitter.minimum_pair_intensity is None:
            return {}
        return {"minimum_pair_intensity": int(np.count_nonzero(large))}

    def _image_rows(
        self,
        layout: Layout,
        tel_id_1: NDArray[np.uint16],
        tel_id_2: NDArray[np.uint16],
        x_1: NDArray[np.float64],
        x_2: NDArray[np.float64],
        impact_1_m: NDArray[np.float64] | None,
        impact_2_m: NDArray[np.float64] | None,
        limit: NDArray[np.float64] | None,
    ) -> dict[str, NDArray[Any]]:
        """Return what is kept of pairs of images: distances, and which pass harder selections."""
        least = self._least(layout, tel_id_1, tel_id_2)
        passed = harder_selections(pair_size(x_1, x_2), least, impact_1_m, impact_2_m, limit)
        rows: dict[str, NDArray[Any]] = {name: passed[name] for name in self.selections}
        if self.distance_term and impact_1_m is not None and impact_2_m is not None:
            rows["log_distance"] = log_ratio(impact_1_m, impact_2_m)
            rows["distance_range"] = distance_range(impact_1_m, impact_2_m)
        return rows

    def harder(self, rows: Rows) -> Mapping[str, NDArray[np.bool_]]:
        """Return the kept rows that pass harder selections."""
        return {name: rows[name] for name in self.selections}

    def compare(self, data: TelescopeEvents) -> NDArray[np.floating]:
        """Return the energies (TeV), or the image sizes (photoelectrons)."""
        return data.columns[self.options.value_column]

    def rows_of(self, data: TelescopeEvents, pairs: PairRows) -> dict[str, NDArray[Any]]:
        """Return what is kept of each pair event for the later stages."""
        rows = super().rows_of(data, pairs)
        if not self.of_images:
            return rows
        impact_m = data.columns[self.options.impact_column]
        return rows | self._image_rows(
            layout_of_file(data.layout),
            *self._of_pairs(data, pairs),
            impact_m[pairs.row_1],
            impact_m[pairs.row_2],
            pairs.limit,
        )

    def pair_events(self, rows: Rows) -> PairEvents:
        """Make pair events of the rows that were kept."""
        return replace(
            super().pair_events(rows),
            log_distance=rows.get("log_distance"),
            distance_range=rows.get("distance_range"),
        )

    # -- products -------------------------------------------------------------------------------

    def combine(self, states: Mapping[Cell, NetworkFit]) -> dict[Cell, NetworkFit]:
        """Return the fits in the order of time, and after them those of harder selections."""
        counted = {cell: fit for cell, fit in states.items() if selection_of(cell) is None}
        fits = super().combine(counted)
        harder = sorted(cell for cell in states.keys() - counted.keys() if cell[:-1] in counted)
        return {**fits, **{cell: states[cell] for cell in harder}}

    def columns_of(self, cell: Cell, result: Mapping[Cell, Any]) -> dict[str, Columns]:
        """Return the columns of the tables, with what harder selections say about the values."""
        named = super().columns_of(cell, result)
        if self.selections and all(fit.done for fit in result.values()):
            harder = {name: result.get((*cell, name)) for name in self.selections}
            known = {name: other for name, other in harder.items() if other is not None}
            telescopes = named[self.table]
            telescopes["systematic"] = telescopes["value"] * systematic(result[cell], known)
        return named

    @property
    def quantity(self) -> Quantity:
        """What is calibrated, in words."""
        from calibdask.array.report import THROUGHPUT

        return THROUGHPUT

    def report_sections(self, tables: Mapping[str, QTable]) -> list[ReportSection]:
        """Return the sections of the report: coefficients, residuals, map, components."""
        from calibdask.array.image_report import image_size_section
        from calibdask.array.report import inter_calibration_sections

        sections = inter_calibration_sections(
            tables, self.places(tables), truth=dict(self.truth) or None
        )
        if self.of_images:
            # After what needs attention and the values.
            what = image_size_section(tables, self.table, corrections=self._corrections())
            sections.insert(2, what)
        return sections

    def _corrections(self) -> list[str]:
        """Say what was done about the biases of image sizes."""
        cut, estimator = self.fitter.minimum_pair_intensity, self.fitter.estimator
        said = [
            "No cut on the size of a pair was made."
            if cut is None
            else "A cut on the geometric mean of both sizes treats the two alike.",
            "The mean asymmetry was fitted as it is, for comparison."
            if estimator == "asymmetry"
            else "Scatter leaves the centre of ln x1 - ln x2 where it is.",
        ]
        if self.distance_term:
            said.append("What the two impact distances differ by was fitted, one slope by type.")
        if HIGHER_CUT in self.selections:
            said.append("A systematic error is told by a cut on the pair 1.5 times as high.")
        if NARROWER_WINDOW in self.selections:
            said.append("A systematic error is told by half of the window of equal distances.")
        return said


def _layout_of_rows(table: Asymmetries) -> Layout:
    """Return what asymmetries know of the telescopes: their types, which stand for descriptions."""
    ids = np.concatenate([table.tel_id_1, table.tel_id_2])
    tel_id, first = np.unique(ids, return_index=True)
    types = np.concatenate([table.tel_type, table.tel_type])[first].astype(np.str_)
    names = tuple(types.tolist())
    return Layout(tuple(tel_id.tolist()), names, names, ())
