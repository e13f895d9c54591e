"""Cross-calibration of telescope types: glue between files, model and engine.

Two forms. With DL2 files alone, pairs of one type and of two types make one network, whose
covariance knows that all its telescopes see the same showers. With an inter-calibration among the
inputs, the ratios within each type are taken from it, and pairs of two types give one scaling
factor for each type, as in ctao-calibpipe (without the further factor by which that multiplies).
Muon throughputs among the inputs set the absolute scale.

What both assume: energies of either type are right on average wherever a shower falls and whatever
its energy, but for the factor that the throughput makes. What an energy reconstruction does wrong
in one type and not in the other goes into the scale of the type.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask import flags
from calibdask.array.absolute import combine_with_muons, compare_types, pool_chunks, tie_types
from calibdask.array.config import FURTHER, SELECTION
from calibdask.array.cross_columns import (
    ScaledThroughputs,
    consistency_columns,
    contrast_columns,
    muon_columns,
)
from calibdask.array.from_dl2 import SurveyedDl2, layout_of_file
from calibdask.array.network.coefficients import MIN_EVENTS_FOR_ERROR, has_error, student_factor
from calibdask.array.network.stages import n_stages
from calibdask.array.pair_config import resolved
from calibdask.array.pairs import PairRows, select_pairs
from calibdask.array.pairwise import PairedRows, ThroughputCalibration
from calibdask.array.tables import (
    CONSISTENCY,
    CONTRASTS,
    CROSS,
    CROSS_CALIBRATION,
    INTER_CALIBRATION,
    MUONS,
    SCALING_FACTORS,
)
from calibdask.array.throughput_config import (
    ENERGY_ESTIMATOR,
    CalculateCrossCalibration,
    RelativeThroughputFitter,
    top_fitter,
)
from calibdask.engine.protocol import Cell, InputRef, Piece, Shard, Survey
from calibdask.errors import ConfigError, MissingInput, WrongKind
from calibdask.flags import Flag
from calibdask.io.dl2 import TelescopeEvents
from calibdask.io.kinds import file_kind
from calibdask.io.throughput import InterCalibrationTable, MuonThroughputs, read_throughputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.array.absolute import TypeScales
    from calibdask.array.network.model import NetworkOptions
    from calibdask.array.network.state import NetworkFit
    from calibdask.array.pairwise import Columns
    from calibdask.array.report import CalibratedQuantity
    from calibdask.config import Campaign, Configuration
    from calibdask.report import ReportSection
    from calibdask.schema import TableSchema

__all__ = ["CrossCalibration"]

COEFFICIENTS = CROSS_CALIBRATION.path

_TABLES = (("table", "throughputs"),)


@dataclass(frozen=True)
class CrossCalibration(ThroughputCalibration[TelescopeEvents | None]):
    """Throughput of the telescopes of all types on one scale."""

    options: CalculateCrossCalibration
    name: ClassVar[str] = "cross-calibration"
    version: ClassVar[int] = 3
    usual_stages: ClassVar[int] = 3
    kept_bytes: ClassVar[int] = 8  # keys
    kept_pair_bytes: ClassVar[int] = 24  # two values, event, two telescopes: stored as they are
    table: ClassVar[str] = COEFFICIENTS
    schemas: ClassVar[Mapping[str, TableSchema]] = CROSS
    title: ClassVar[str] = "Cross-calibration of telescope throughput over telescope types"

    given: InterCalibrationTable | None = None
    muons: tuple[tuple[int, float, float, int, int | None, int | None], ...] = ()

    sections: ClassVar = {
        "CalculateCrossCalibration": CalculateCrossCalibration,
        "RelativeThroughputFitter": RelativeThroughputFitter,
        **SELECTION,
    }
    further_sections: ClassVar = FURTHER

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        return cls(
            resolved(document, CalculateCrossCalibration, notes),
            campaign.shard_bytes,
            tuple(notes),
            bins=campaign.bins,
            fitter=top_fitter(document, ENERGY_ESTIMATOR),
        )

    @property
    def network(self) -> NetworkOptions:
        """The options of the estimator: one network whose scale is that of the reference type."""
        return self.network_options(symmetric=True, reference_type=self.options.reference_subsystem)

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at a DL2 file, or read the throughputs that another calibration found."""
        kind = file_kind(source.path)
        if kind == "DL2 events":
            return super().survey(source)
        if kind != "throughputs":
            raise WrongKind(
                f"{source.path}: holds neither DL2 events, nor an inter-calibration, nor muon"
                " throughputs"
            )
        return Survey(source, facts=read_throughputs(source.path))

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts; take throughputs from the files that have them.

        Raises
        ------
        ConfigError
            Inputs that do not belong together.
        MissingInput
            No DL2 files.
        """
        events = [one for one in surveys if isinstance(one.facts, SurveyedDl2)]
        tables = [one for one in surveys if not isinstance(one.facts, SurveyedDl2)]
        if not events:
            named = ", ".join(one.source.path for one in tables)
            raise MissingInput(
                f"there are no DL2 files among the inputs, but only throughputs ({named}): give the"
                " DL2 files, too"
            )
        planned = super().planned(events)
        inter = [one for one in tables if one.facts.inter_calibration is not None]
        if len(inter) > 1:
            raise ConfigError(
                f"two inter-calibrations: {inter[0].source.path} and {inter[1].source.path}; give"
                " one, or none for one network of all telescopes"
            )
        muons: list[tuple[int, float, float, int, int | None, int | None]] = []
        notes = planned.notes
        for one in tables:
            if one.facts.muons is None:
                continue
            muons += planned._muon_rows(one.source.path, one.facts.muons)
            if unusable := one.facts.muons.n_unusable:
                note = (
                    f"{one.source.path}: {sum(unusable.values())} muon throughputs, of telescopes"
                    f" {sorted(unusable)}, are flagged as not to be used, or lack a mean, its"
                    " error or two rings: they do not set the scale"
                )
                notes = (*notes, note)
        if not muons and any(one.facts.muons is not None for one in tables):
            note = "no muon throughput can be used: the throughputs have no absolute scale"
            notes = (*notes, note)
        notes = (*notes, *_same_times([one for one in tables if one.facts.muons is not None]))
        planned = replace(planned, muons=tuple(muons), notes=notes)
        if not inter:
            return planned
        table: InterCalibrationTable = inter[0].facts.inter_calibration
        if self.bins is not None:
            raise ConfigError(
                f"{table.path}: an inter-calibration of all data has no place in time bins: leave"
                " it out for one network of all telescopes in each time bin"
            )
        planned._check_inter(table, events)
        return replace(planned, given=table)

    def _muon_rows(
        self, path: str, muons: MuonThroughputs
    ) -> list[tuple[int, float, float, int, int | None, int | None]]:
        unknown = set(muons.tel_id.tolist()) - set(self.telescopes.tel_id)
        if unknown:
            raise ConfigError(
                f"{path}: holds muon throughputs of telescopes {sorted(unknown)}, which the DL2"
                " files do not have: they are of another array"
            )
        if self.bins is not None and (muons.start_ns is None or muons.end_ns is None):
            raise ConfigError(
                f"{path}: its muon throughputs do not tell from when they are, which time bins need"
            )
        starts: list[Any] = [None] * len(muons.tel_id)
        ends = list(starts)
        if muons.start_ns is not None and muons.end_ns is not None:
            starts, ends = muons.start_ns.tolist(), muons.end_ns.tolist()
        columns = (muons.tel_id, muons.mean, muons.sem, muons.n_rings)
        return list(zip(*(column.tolist() for column in columns), starts, ends, strict=True))

    def _check_inter(self, table: InterCalibrationTable, events: Sequence[Survey]) -> None:
        """Refuse an inter-calibration of other data, or of another array."""
        path, theirs = table.path, set(table.obs_ids)
        foreign = {
            one.source.path: sorted(set(one.facts.info.obs_ids) - theirs)
            for one in events
            if set(one.facts.info.obs_ids) - theirs
        }
        if foreign:
            listed = "; ".join(f"{name} has {ids}" for name, ids in foreign.items())
            raise ConfigError(
                f"{path} is from other observations (obs_id {_shorten(table.obs_ids)}): {listed};"
                " give the DL2 files it was made from, or none of its kind"
            )
        if lacking := sorted(theirs - set(self.obs_ids)):
            raise ConfigError(
                f"{path} is also from observations {_shorten(lacking)}, of which there is no DL2"
                " file among the inputs: give all the DL2 files it was made from"
            )
        known = self.type_of_telescope
        for number, kind in zip(table.tel_id.tolist(), table.tel_type, strict=True):
            if known.get(number) != kind:
                raise ConfigError(
                    f"{path}: has telescope {number} as {kind}, but the DL2 files have it as"
                    f" {known.get(number, 'no telescope at all')}: they are of different arrays"
                )
        if len(set(self.telescopes.tel_type)) < 2:
            raise ConfigError(
                f"all telescopes are {self.telescopes.tel_type[0]}: with an inter-calibration given"
                f" ({path}) there is nothing to find; cross-calibration needs two types"
            )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut DL2 files into ranges of events; a table of throughputs is a shard without events.

        So it is accounted for like any input, and a change during the run is noticed.
        """
        events = [one for one in surveys if isinstance(one.facts, SurveyedDl2)]
        pieces = list(super().pieces(events))
        yield from pieces
        cells = tuple(sorted({cell for piece in pieces for cell in piece.cells}))
        for one in surveys:
            if not isinstance(one.facts, SurveyedDl2):
                size = one.source.size
                yield Piece((one.source,), _TABLES, cells=cells, n_bytes=size, peak_bytes=size)

    def fit_config(self) -> Mapping[str, Any]:
        """Return what only the fit depends on, the ratios within types among it."""
        given = self.given
        return {
            **super().fit_config(),
            "given": None
            if given is None
            else [given.tel_id.tolist(), list(map(repr, given.value.tolist()))],
        }

    def warnings(self) -> Sequence[str]:
        """Return warnings about configuration and layout."""
        if self.layout is None:
            return self.notes
        notes = list(self.notes)
        types = sorted(set(self.layout.tel_type))
        reference = self.options.reference_subsystem
        if len(types) < 2:
            notes.append(f"all telescopes are {types[0]}: there is no other type to compare with")
        if reference not in types:
            notes.append(
                f"the reference type {reference} is not among the telescopes ({', '.join(types)}):"
                " another scale is taken and flagged"
            )
        notes += self.odd_types(
            "RelativeThroughputFitter and CalculateCrossCalibration.nominal_throughput",
            self.options.nominal_throughput.by_type,
        )
        notes += self.odd_references(reference)
        if self.given is not None and (lacking := set(self.layout.tel_id) - self.given.known):
            notes.append(
                f"{self.given.path} has no throughput that can be used of telescopes"
                f" {sorted(lacking)}: they get none here"
            )
        return notes

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> TelescopeEvents | None:
        """Read telescope events; a table of throughputs, read when planned, holds none."""
        return None if shard.part == _TABLES else self.read_events(shard)

    def pair_up(self, data: TelescopeEvents | None) -> PairedRows:
        """Select pairs; those of two types only in events that have enough of both types."""
        if data is None:
            return self._no_pairs()
        pairs = self.select(data)
        return PairedRows.of(data, self.rows_of(data, pairs), pairs.cut_flow, pairs.warnings)

    def _no_pairs(self) -> PairedRows:
        kinds: dict[str, type] = {"event": np.int32, "tel_id_1": np.uint16, "tel_id_2": np.uint16}
        kinds |= {"x_1": float, "x_2": float} | ({} if self.bins is None else {"time_bin": int})
        rows: Columns = {name: np.zeros(0, kind) for name, kind in kinds.items()}
        return PairedRows(rows, np.zeros((0, 2), np.int64), {})

    def select(self, data: TelescopeEvents) -> PairRows:
        """Select pairs; those of two types only in events that have enough of both types."""
        layout = layout_of_file(data.layout)
        pairs = select_pairs(data, self.options, layout, self.of_events(data))
        types = np.unique(layout.tel_type)
        number = np.zeros(max(layout.tel_id) + 1, np.int64)
        number[list(layout.tel_id)] = np.searchsorted(types, layout.tel_type)
        kind = number[data.tel_id]
        code = data.event * len(types) + kind
        count = np.bincount(code[pairs.selected], minlength=data.n_events * len(types))
        one, two = pairs.row_1, pairs.row_2
        enough = (
            np.minimum(count[code[one]], count[code[two]])
            >= self.options.min_triggered_telescopes_per_subsystem
        )
        keep = np.flatnonzero(enough | (kind[one] == kind[two]))
        flow = {**pairs.cut_flow, "enough telescopes of both types": len(keep)}
        return replace(
            pairs, row_1=one[keep], row_2=two[keep], limit=pairs.limit[keep], cut_flow=flow
        )

    # -- fit ------------------------------------------------------------------------------------

    def _given_for(self, tel_id: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """Return ln c, shape (T,), and its covariance, (T, T), from the inter-calibration."""
        given = self.given
        log_value, covariance = np.full(len(tel_id), np.nan), np.zeros((len(tel_id), len(tel_id)))
        if given is None:
            return log_value, covariance
        known = given.known
        row = {number: k for k, number in enumerate(given.tel_id.tolist()) if number in known}
        mine = np.array([k for k, number in enumerate(tel_id.tolist()) if number in row], int)
        theirs = [row[number] for number in tel_id[mine].tolist()]
        value = given.value[theirs]
        log_value[mine] = np.log(value)
        block = np.ix_(mine, mine)
        of_value = given.covariance[np.ix_(theirs, theirs)]
        # A telescope without a value takes no part, and its covariance costs the others nothing.
        covariance[block] = np.nan_to_num(of_value / np.outer(value, value))
        return log_value, covariance

    def fit(self, stage: int, cell: Cell, total: Any, given: NetworkFit | None) -> NetworkFit:
        """Fit the network, or one scale for each type with the ratios within types given."""
        fitted = super().fit(stage, cell, total, given)
        if self.given is None or stage != n_stages(self.network) - 2:
            return fitted
        return self._tie(fitted)[0]

    def _tie(self, fit: NetworkFit) -> tuple[NetworkFit, TypeScales]:
        given, covariance = self._given_for(fit.tel_id)
        return tie_types(fit, given, covariance, self.options.reference_subsystem)

    # -- products -------------------------------------------------------------------------------

    def columns_of(self, cell: Cell, result: Mapping[Cell, NetworkFit]) -> dict[str, Columns]:
        """Return coefficients, scaling factors, agreement with muons, and the network."""
        fit, named = result[cell], super().columns_of(cell, result)
        scales = None
        if self.given is not None:
            scales = self._tie(fit)[1]
            held = self._reference_of(self.options.reference_subsystem, fit)
            if held is not None:
                components = named[f"{COEFFICIENTS}_components"]
                components["reference_tel_id"][fit.component[held]] = fit.tel_id[held]
        scaled = self._scaled(cell, fit, scales)
        self._rescale(named, scaled)
        columns: dict[str, Columns] = {COEFFICIENTS: named.pop(COEFFICIENTS)}
        columns[SCALING_FACTORS.path] = self._scaling_factors(fit, scaled, scales)
        if self.muons:
            columns[MUONS.path] = muon_columns(fit, scaled)
            columns[CONSISTENCY.path] = consistency_columns(fit, scaled)
            columns[CONTRASTS.path] = contrast_columns(scaled)
        columns |= named
        if self.given is not None:
            names = ("tel_type", "tel_id", "value", "error", "flags")
            columns[INTER_CALIBRATION.path] = {
                name: np.array(getattr(self.given, name)) for name in names
            }
        return columns

    def _scaled(self, cell: Cell, fit: NetworkFit, scales: TypeScales | None) -> ScaledThroughputs:
        """Values and covariance of all telescopes, with muons where there are any."""
        n_tel = len(fit.tel_id)
        wider = student_factor(fit.freedom)
        log_value = fit.theta + np.log(fit.scale)
        covariance = fit.covariance * np.outer(wider, wider)
        known = has_error(fit) & np.isfinite(log_value)
        if scales is not None:
            many = fit.component_n_events >= MIN_EVENTS_FOR_ERROR
            known = np.isfinite(log_value) & (fit.component >= 0)
            known[known] = many[fit.component[known]]
        muon, muon_error, n_rings = self._muons_of(cell, fit)
        log_muon, variance = np.log(muon), (muon_error / muon) ** 2
        residual, pull = np.full((2, n_tel), np.nan)
        is_absolute = np.zeros(n_tel, np.bool_)
        component, fits, contrasts = fit.component.copy(), [], []
        freed = np.zeros(n_tel, np.bool_)
        groups = [np.flatnonzero(component == c) for c in range(len(fit.component_n_events))]
        groups += [np.array([t]) for t in np.flatnonzero((component < 0) & (n_rings > 0))]
        for number, group in enumerate(groups):
            alone = number >= len(fit.component_n_events)
            member = group[known[group] | alone]
            n_muons = int((n_rings[member] > 0).sum())
            if not n_muons:
                continue
            block = np.ix_(member, member)
            of_network = covariance[block]
            if not alone:
                compared = compare_types(
                    log_value[member], of_network, log_muon[member], variance[member],
                    fit.tel_type[member],
                )  # fmt: skip
                contrasts.append((number, compared))
                disagree = np.array(compared.types)[compared.freed]
                freed[member] = np.isin(fit.tel_type[member], disagree)
                of_network = compared.covariance
            combined = combine_with_muons(
                np.where(alone, 0.0, log_value[member]),
                of_network,
                log_muon[member],
                variance[member],
                0 if alone else int(fit.component_n_events[number]),
            )
            fits.append((-1 if alone else number, n_muons, combined))
            if combined is None:
                continue
            shift = 0.0 if alone else float(np.mean(combined.log_value - log_value[member]))
            log_value[group] += shift
            log_value[member], covariance[block] = combined.log_value, combined.covariance
            residual[member], pull[member] = combined.residual, combined.pull
            is_absolute[group] = True
            known[member] = True
        return ScaledThroughputs(
            log_value=log_value,
            covariance=covariance,
            known=known,
            is_absolute=is_absolute,
            muon=muon,
            muon_error=muon_error,
            n_rings=n_rings,
            residual=residual,
            pull=pull,
            fits=tuple(fits),
            contrasts=tuple(contrasts),
            freed=freed,
        )

    def _muons_of(
        self, cell: Cell, fit: NetworkFit
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Muon throughput over the nominal one, its error, and rings, of each telescope."""
        n_tel = len(fit.tel_id)
        muon, error, n_rings = np.full(n_tel, np.nan), np.full(n_tel, np.nan), np.zeros(n_tel, int)
        rows = self.muons
        if self.bins is not None:
            start_ns, end_ns = self.bins.edges_ns(int(cell[0]))
            rows = tuple(
                row for row in rows if row[4] is not None and row[5] is not None
                and row[4] < end_ns and row[5] >= start_ns
            )  # fmt: skip
        if not rows:
            return muon, error, n_rings
        tel_id, mean, sem, count, *_ = (np.array(column) for column in zip(*rows, strict=True))
        ids, mean, sem, count = pool_chunks(tel_id, mean, sem, count)
        where = {number: k for k, number in enumerate(fit.tel_id.tolist())}
        row = [where[number] for number in ids.tolist()]
        nominal = dict(self.options.nominal_throughput.by_type)
        scale = np.array([nominal.get(kind, 1.0) for kind in fit.tel_type[row].tolist()])
        muon[row], error[row], n_rings[row] = mean / scale, sem / scale, count
        return muon, error, n_rings

    def _rescale(self, named: Mapping[str, Columns], scaled: ScaledThroughputs) -> None:
        """Put final values, errors and covariance into the tables of the network."""
        main = named[COEFFICIENTS]
        value = np.exp(scaled.log_value)
        if self.muons:
            main["value_of_pairs"], main["error_of_pairs"] = main["value"], main["error"]
            main["n_rings"], main["absolute"] = scaled.n_rings, scaled.is_absolute
        main["value"] = value
        with np.errstate(invalid="ignore"):
            error = value * np.sqrt(np.diagonal(scaled.covariance))
        main["error"] = np.where(scaled.known, error, np.nan)
        uncertain = np.isfinite(value) & ~scaled.known
        letters = flags.remove(main["flags"], Flag.NO_ERROR)
        held = flags.has(letters, Flag.REFERENCE) | (scaled.known & (main["error"] == 0))
        main["flags"] = flags.add(
            flags.remove(letters, Flag.REFERENCE),
            {
                Flag.REFERENCE: held & ~scaled.is_absolute,
                Flag.NO_ERROR: uncertain,
                Flag.MUONS_DISAGREE: scaled.freed,
            },
        )
        components = named[f"{COEFFICIENTS}_components"]
        bad = np.isin(components["component"], main["component"][uncertain])
        components["flags"] = flags.add(
            flags.remove(components["flags"], Flag.NO_ERROR), {Flag.NO_ERROR: bad}
        )
        table = named[f"{COEFFICIENTS}_covariance"]
        where = {number: k for k, number in enumerate(main["tel_id"].tolist())}
        one, two = ([where[n] for n in table[f"tel_id_{k}"].tolist()] for k in (1, 2))
        covariance = value[one] * value[two] * scaled.covariance[one, two]
        known = scaled.known[one] & scaled.known[two]
        table["covariance"] = np.where(known, covariance, np.nan)

    def _scaling_factors(
        self, fit: NetworkFit, scaled: ScaledThroughputs, scales: TypeScales | None
    ) -> Columns:
        """Scale of each type relative to the reference type, from pairs alone.

        In one network, the ratio of the types' reference telescopes, which is what makes
        coefficients of an inter-calibration those of the network.
        """
        reference_type = self.options.reference_subsystem
        types = [kind for kind in np.unique(fit.tel_type).tolist() if kind != reference_type]
        rows: list[dict[str, Any]] = []
        held = self._reference_of(reference_type, fit)
        one, two = fit.tel_type[fit.first[fit.used]], fit.tel_type[fit.second[fit.used]]
        for kind in types:
            mine = self._reference_of(kind, fit)
            log_ratio = variance = np.nan
            has_scale = is_fallback = False
            if held is not None and mine is not None and fit.component[held] == fit.component[mine]:
                has_scale = True
                if scales is not None:
                    log_ratio = scales.log_scale[scales.types.index(kind)]
                    variance = fit.scale_covariance[mine, mine]
                else:
                    log_ratio = fit.theta[mine] - fit.theta[held]
                    covariance = fit.covariance
                    variance = covariance[mine, mine] + covariance[held, held]
                    variance -= 2 * covariance[mine, held]
                    configured = dict(self.fitter.reference_telescopes.by_type).get(kind)
                    is_fallback = configured not in (None, fit.tel_id[mine])
            factor = float(np.exp(log_ratio))
            tel_id, tel_id_ref = (
                -1 if t is None or scales is not None else int(fit.tel_id[t]) for t in (mine, held)
            )
            wider = 1.0 if mine is None else float(student_factor(fit.freedom[mine]))
            error = factor * wider * float(np.sqrt(variance))
            ends_known = scaled.known[[t for t in (mine, held) if t is not None]].all()
            uncertain = bool(np.isfinite(factor) and not ends_known)
            between = ((one == kind) & (two == reference_type)) | (
                (one == reference_type) & (two == kind)
            )
            masks = {
                Flag.FALLBACK: is_fallback, Flag.NO_PAIR: not has_scale, Flag.NO_ERROR: uncertain
            }  # fmt: skip
            rows.append(
                {
                    "tel_type": kind,
                    "tel_ref": reference_type,
                    "scaling_factor": factor,
                    "scaling_factor_uncertainty": np.nan if uncertain else error,
                    "tel_id": tel_id,
                    "tel_id_ref": tel_id_ref,
                    "n_pairs": np.count_nonzero(between),
                    "flags": str(flags.column(masks)),
                }
            )
        return {
            one.name: np.array(
                [row[one.name] for row in rows], str if one.kind == "text" else one.kind
            )
            for one in SCALING_FACTORS.columns
            if not one.optional
        }

    def _reference_of(self, tel_type: str, fit: NetworkFit) -> int | None:
        """Find the telescope of a type that stands for it: the configured one, or the busiest."""
        usable = (fit.tel_type == tel_type) & (fit.component >= 0) & np.isfinite(fit.theta)
        if not usable.any():
            return None
        configured = dict(self.fitter.reference_telescopes.by_type).get(tel_type)
        chosen = np.flatnonzero(usable & (fit.tel_id == configured))
        if len(chosen):
            return int(chosen[0])
        return int(np.argmax(np.where(usable, fit.n_events, -1)))

    @property
    def quantity(self) -> CalibratedQuantity:
        """What is calibrated, in words."""
        from calibdask.array.cross_report import CROSS_THROUGHPUT

        return CROSS_THROUGHPUT

    def report_sections(self, tables: Mapping[str, QTable]) -> list[ReportSection]:
        """Return the sections of the report: types, muons, coefficients, pairs, map, network."""
        from calibdask.array.cross_report import cross_calibration_sections

        return cross_calibration_sections(
            tables, self.places(tables), truth=dict(self.truth) or None
        )


def _same_times(tables: Sequence[Survey]) -> Iterator[str]:
    """Report each two files that hold muon throughputs of a telescope from the same time."""
    for one, two in itertools.combinations(tables, 2):
        mine, theirs = (_spans(survey.facts.muons) for survey in (one, two))
        both = sorted(
            tel_id
            for tel_id in mine.keys() & theirs.keys()
            if mine[tel_id][0] < theirs[tel_id][1] and theirs[tel_id][0] < mine[tel_id][1]
        )
        if both:
            yield (
                f"{one.source.path} and {two.source.path} both hold muon throughputs of telescopes"
                f" {_shorten(both)} from the same time: if they are of the same rings, these count"
                " twice; give one of them"
            )


def _spans(muons: MuonThroughputs) -> dict[int, tuple[float, float]]:
    """Return the first and the last time of each telescope's chunks; all times if not told."""
    n_rows = len(muons.tel_id)
    start = np.full(n_rows, -np.inf) if muons.start_ns is None else muons.start_ns
    end = np.full(n_rows, np.inf) if muons.end_ns is None else muons.end_ns
    of_telescopes = [(int(number), muons.tel_id == number) for number in np.unique(muons.tel_id)]
    return {number: (start[mine].min(), end[mine].max()) for number, mine in of_telescopes}


def _shorten(numbers: Sequence[int]) -> str:
    """Write out numbers, the first ten of them."""
    some = ", ".join(map(str, numbers[:10]))
    return some if len(numbers) <= 10 else f"{some} and {len(numbers) - 10} more"
