"""Inter-calibration of the telescopes of one type, from DL2 files or from asymmetries."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from calibdask.array.asymmetry_config import CalculateEnergyAsymmetry, CalculateImageAsymmetry
from calibdask.array.config import FURTHER, OLD_NAME, SELECTION
from calibdask.array.from_dl2 import join_obs_ids, layout_of_file
from calibdask.array.image_pairs import ImagePairs
from calibdask.array.image_size import systematic
from calibdask.array.network.goodness import event_group
from calibdask.array.pairs import Layout, event_keys, number_events, select_pairs
from calibdask.array.pairwise import PairedRows, ThroughputCalibration, selection_of
from calibdask.array.tables import INTER, INTER_CALIBRATION
from calibdask.array.throughput_config import (
    CalculateInterCalibration,
    RelativeThroughputFitter,
    inter_sections,
)
from calibdask.engine.protocol import Cell, InputRef, Piece, Shard, Survey
from calibdask.errors import ConfigError, MissingInput, WrongKind
from calibdask.io.asymmetry import (
    IMAGE_ASYMMETRY,
    Asymmetries,
    AsymmetryInfo,
    inspect_asymmetries,
    read_asymmetries,
)
from calibdask.io.dl2 import Needs, TelescopeEvents
from calibdask.io.kinds import file_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable

    from calibdask.array.network.model import NetworkOptions
    from calibdask.array.network.state import NetworkFit
    from calibdask.array.pairwise import Columns
    from calibdask.array.report import CalibratedQuantity
    from calibdask.config import Campaign, Configuration
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema

__all__ = ["InterCalibration"]

ASYMMETRY_BYTES = 200
"""Memory of a row of asymmetries while it is read, selected and summarised."""


@dataclass(frozen=True)
class InterCalibration(ThroughputCalibration[TelescopeEvents]):
    """Relative throughput of telescopes of one type, from DL2 files.

    Asymmetries among the inputs make it an `InterCalibrationOfAsymmetries`. What image sizes need
    besides energies is in `images`.
    """

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

    inter: CalculateInterCalibration = field(default_factory=CalculateInterCalibration)
    images: ImagePairs | None = None

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        inter, fitter, options = inter_sections(document, notes)
        images = None
        if inter.asymmetry_label == IMAGE_ASYMMETRY:
            images = ImagePairs.of(fitter, windowed=options.window is not None)
        return cls(
            options,
            campaign.shard_bytes,
            tuple(notes),
            bins=campaign.bins,
            fitter=fitter,
            inter=inter,
            images=images,
        )

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator: one network for each type."""
        return self.network_options(symmetric=self.images is None, reference_type=None)

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return self.needs_besides(*([] if self.images is None else [self.options.impact_column]))

    @property
    def selections(self) -> tuple[str, ...]:
        """Harder selections that show the systematic error of image sizes."""
        return () if self.images is None else self.images.selections

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
        return cast("Self", InterCalibrationOfAsymmetries.among(self, surveys))

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut DL2 files into ranges of events; harder selections have cells of their own."""
        for piece in super().pieces(surveys):
            cells = [(*cell, name) for cell in piece.cells for name in self.selections]
            yield replace(piece, cells=(*piece.cells, *cells))

    def map_config(self) -> Mapping[str, Any]:
        """Return what pair events and their first summary depend on."""
        of_images = {} if self.images is None else self.images.map_config()
        return {**super().map_config(), "value_column": self.options.value_column, **of_images}

    def warnings(self) -> Sequence[str]:
        """Return warnings about configuration and layout."""
        if self.layout is None:
            return self.notes
        odd = self.odd_types("RelativeThroughputFitter")
        return [*self.notes, *odd, *self.odd_references(*self.layout.tel_type)]

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> TelescopeEvents:
        """Read telescope events."""
        return self.read_events(shard)

    def pair_up(self, data: TelescopeEvents) -> PairedRows:
        """Select pairs by the layout of their own file.

        So a file gives the same rows in whatever company it is calibrated.
        """
        layout = layout_of_file(data.layout)
        pairs = select_pairs(data, self.options, layout, self.of_events(data))
        rows, flow = self.rows_of(data, pairs), dict(pairs.cut_flow)
        if self.images is not None:
            impact_m = data.columns[self.options.impact_column]
            near = impact_m[pairs.row_1], impact_m[pairs.row_2], pairs.limit
            rows, flow = self.images.select(layout, rows, flow, *near)
        return PairedRows.of(data, rows, flow, pairs.warnings)

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
    def quantity(self) -> CalibratedQuantity:
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
        if self.images is not None:
            # After what needs attention and the values.
            what = image_size_section(tables, self.table, corrections=self.images.in_words())
            sections.insert(2, what)
        return sections


@dataclass(frozen=True)
class InterCalibrationOfAsymmetries(InterCalibration):
    """The same from event-wise asymmetries, whose pairs are already selected."""

    @classmethod
    def among(cls, job: InterCalibration, surveys: Sequence[Survey]) -> Self:
        """Take over what is configured, and what the files say."""
        images, notes = job.images, job.notes
        if images is not None:
            lacking = [one.source.path for one in surveys if one.facts.geometry is None]
            if lacking and images.distance_term:
                note = (
                    f"no distance term is fitted: {lacking[0]} holds no impact distances"
                    f" ({len(lacking)} such files); give the DL2 files, or asymmetries that"
                    " image-asymmetry-estimation wrote"
                )
                notes = (*notes, note)
            images = images.with_distances(known=not lacking)
        values = {one.name: getattr(job, one.name) for one in fields(job)}
        obs_ids = join_obs_ids(survey.facts for survey in surveys)
        return cls(**values | {"images": images, "notes": notes, "obs_ids": obs_ids})

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Return one piece for each file: asymmetries are sorted by pair and stay whole."""
        for survey in surveys:
            yield Piece(
                (survey.source,),
                cells=((), *((name,) for name in self.selections)),
                order=survey.order,
                n_bytes=survey.source.size,
                peak_bytes=survey.facts.n_rows * ASYMMETRY_BYTES,
            )

    def map_config(self) -> Mapping[str, Any]:
        """Return what the first summary depends on: no selection any more."""
        return {name: value for name, value in super().map_config().items() if name != "options"}

    def read(self, shard: Shard) -> Any:
        """Read a file of asymmetries."""
        return read_asymmetries(shard.inputs[0].path, self.inter.asymmetry_label)

    def pair_up(self, data: Any) -> PairedRows:
        """Take the pairs of a file of asymmetries, those large enough."""
        table: Asymmetries = data
        names = ("obs_id", "event_id", "tel_type", "tel_id_1", "tel_id_2")
        rows: Columns = {name: getattr(table, name) for name in names}
        rows |= {"x_1": table.value_1, "x_2": table.value_2}
        flow = {"pairs": len(table)}
        if self.images is not None:
            near = (table.impact_1_m, table.impact_2_m, table.limit)
            rows, flow = self.images.select(_layout_of_rows(table), rows, flow, *near)
        numbers = rows["obs_id"], rows["event_id"]
        rows |= {"event": number_events(*numbers), "group": event_group(*numbers)}
        keys = event_keys(rows["event"], *numbers)
        return PairedRows(rows, keys, {**flow, "events with a pair": len(keys)}, is_kept=False)


def _layout_of_rows(table: Asymmetries) -> Layout:
    """Return what asymmetries know of the telescopes: their types, which stand for descriptions."""
    ids = np.concatenate([table.tel_id_1, table.tel_id_2])
    tel_id, first = np.unique(ids, return_index=True)
    types = np.concatenate([table.tel_type, table.tel_type])[first].astype(np.str_)
    names = tuple(types.tolist())
    return Layout(tuple(tel_id.tolist()), names, names, ())
