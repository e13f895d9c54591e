"""Optical throughput and PSF from muon rings: glue between files, model and engine.

Both jobs have one map: it reads the rings of a shard (or fits them to its images), selects them,
and keeps them as rows, so that no later stage reads an input or fits a ring again. The stages after
it clip: each takes the rings within the bounds that the stage before gave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from calibdask.engine.protocol import (
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
    WrongKind,
)
from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData
from calibdask.io.muon import (
    MuonInfo,
    has_muon_tables,
    inspect_muons,
    read_rings,
    read_times,
    ring_times,
)
from calibdask.muon.model import (
    assign_chunks,
    chunk_starts,
    radius_edges,
)
from calibdask.muon.result import (
    CellState,
    psf_tables,
    throughput_tables,
)
from calibdask.muon.summary import (
    ChunkKeys,
    EfficiencySummary,
    Rings,
    RingSummary,
    WidthSummary,
)
from calibdask.select import QualityCriteria
from calibdask.stats.exact import ExactMoments
from calibdask.stats.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.muon.config import MuonOptions
    from calibdask.muon.result import Telescope
    from calibdask.report import Section

__all__ = ["PsfFromMuons", "ThroughputFromMuons"]

_EFFICIENCY = "muonefficiency_optical_efficiency"
_UNITS = {
    "muonring_radius": "deg",
    "muonefficiency_width": "deg",
    "muonefficiency_impact": "m",
    "muonefficiency_impact_x": "m",
    "muonefficiency_impact_y": "m",
}
"""Columns that are needed, beside the efficiency, and their units."""

_NO_TIME = np.iinfo(np.int64).min
_TEL_IDS = 1 << 16  # telescope numbers have 16 bits
_ROW_BYTES = 400  # memory of a ring while it is read, joined, sorted and summarised
_REACH_UNCLIPPED = 8.0  # standard deviations that the histogram for the median covers

_ROWS = (
    "time_ns",
    "obs_id",
    "event_id",
    "efficiency",
    "radius_deg",
    "width_deg",
    "impact_m",
    "azimuth_deg",
)
"""Fields of `Rings`, as they are kept."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a survey found: the file's metadata, and the cells that its rings may fall into."""

    info: MuonInfo
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _RingTable:
    """Rows of muon tables with their times, before any selection."""

    columns: dict[str, NDArray[Any]]
    units: dict[str, str]
    time_ns: NDArray[np.int64]


@dataclass(frozen=True)
class _FromRings(Calibration):
    """What both jobs share: survey, shards, the map."""

    options: MuonOptions
    shard_bytes: int
    notes: tuple[str, ...] = ()
    telescopes: tuple[Telescope, ...] = ()
    process_type: str = "Observation"
    obs_ids: tuple[int, ...] = ()

    version: ClassVar[int] = 1
    map_name: ClassVar[str] = "muon-rings"
    state: ClassVar[type[State]] = CellState
    bins_time: ClassVar[bool] = True
    preload: ClassVar[tuple[str, ...]] = ("astropy.units",)  # for units in quality criteria

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the muon table to read."""
        return (_EFFICIENCY, *_UNITS, *sorted(self._further))

    @property
    def _further(self) -> set[str]:
        return set(self.options.quality_criteria.columns) - {_EFFICIENCY, *_UNITS}

    @property
    def by_number(self) -> bool:
        """Whether rings are cut into chunks of equal number."""
        return self.options.chunk_size is not None

    def summary_type(self, stage: int) -> type[Summary]:
        """Give the type of the first stage; jobs give those of the others."""
        del stage
        return ChunkKeys if self.by_number else RingSummary

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at the metadata of a file."""
        if not has_muon_tables(source.path):
            raise WrongKind(f"{source.path}: holds no tables of muon rings")
        info = inspect_muons(source.path, self.columns)
        if info.product_id:  # tells apart what equal size and samples would not
            source = replace(source, identity=f"{source.identity}:{info.product_id}")
        wanted = self._wanted(info.n_rows)
        bins = self.options.bins
        cells: list[Cell] = []
        if bins is None:
            cells = [(tel_id, 0) for tel_id in wanted]
        else:
            for tel_id, time_ns in ring_times(source.path, wanted).items():
                cells += [(tel_id, number) for number in np.unique(bins.index(time_ns)).tolist()]
        return Survey(source, order=info.obs_ids[:1], facts=_Facts(info, tuple(cells)))

    def _wanted(self, tel_ids: Iterable[int]) -> list[int]:
        allowed = self.options.allowed_tels
        return [one for one in sorted(tel_ids) if allowed is None or one in allowed]

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the telescopes, and refuse what does not belong together."""
        types: dict[str, str] = {}
        found: dict[int, tuple[Telescope, str]] = {}
        for survey in surveys:
            path, info = survey.source.path, survey.facts.info
            types.setdefault(info.process_type or "Observation", path)
            for tel_id in self._wanted(info.telescopes):
                one: Telescope = (tel_id, info.telescopes[tel_id], info.n_mirrors[tel_id])
                known, before = found.setdefault(tel_id, (one, path))
                if known != one:
                    raise ConfigError(
                        f"{before} and {path} are of different arrays: telescope {tel_id} is"
                        f" {known[1]} and {one[1]}; calibrate each array by itself"
                    )
        if len(types) > 1:
            listed = " and ".join(f"{path} ({kind})" for kind, path in sorted(types.items()))
            raise ConfigError(f"simulated and observed rings in one run: {listed}; separate them")
        missing = sorted(set(self.options.allowed_tels or ()) - set(found))
        notes = self.notes
        if missing:
            listed = ", ".join(map(str, missing))
            notes += (f"allowed_tels: no input has telescope {listed}",)
        obs_ids = {number for survey in surveys for number in survey.facts.info.obs_ids}
        return replace(
            self,
            telescopes=tuple(found[tel_id][0] for tel_id in sorted(found)),
            process_type=next(iter(types)),
            obs_ids=tuple(sorted(obs_ids)),
            notes=notes,
        )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut files that are too large for one shard into equal parts of every table."""
        for survey in surveys:
            info: MuonInfo = survey.facts.info
            if not survey.facts.cells:
                continue
            n_rows = sum(info.n_rows[tel_id] for tel_id in self._wanted(info.n_rows))
            peak_bytes = n_rows * _ROW_BYTES
            n_parts = max(1, -(-peak_bytes // self.shard_bytes))
            for number in range(n_parts):
                yield Piece(
                    (survey.source,),
                    (("part", number), ("of", n_parts)) if n_parts > 1 else (),
                    survey.facts.cells,
                    order=(*survey.order, number),
                    n_bytes=survey.source.size // n_parts,
                    # Every part looks its times up in the whole trigger table.
                    peak_bytes=peak_bytes // n_parts + info.n_trigger_rows * 64,
                )

    def map_config(self) -> Mapping[str, Any]:
        """Give what the rings and their first summary depend on."""
        return self.options.map_options()

    def fit_config(self) -> Mapping[str, Any]:
        """Give what only fits depend on."""
        return self.options.fit_options()

    def warnings(self) -> Sequence[str]:
        """Tell what was odd about configuration and telescopes."""
        dual = [tel_id for tel_id, _, n_mirrors in self.telescopes if n_mirrors != 1]
        if not dual:
            return self.notes
        listed = ", ".join(map(str, dual))
        text = f"telescopes {listed} have two mirrors: there is no ring model for them, so they get"
        return [*self.notes, f"{text} no value (flag D)"]

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard, rows: Rows | None) -> Rows | _RingTable:
        """Read muon tables, or the rings kept by the first stage."""
        if rows is not None:
            return rows
        path = shard.inputs[0].path
        part = dict(shard.part)
        tel_ids = sorted({int(cell[0]) for cell in shard.cells})
        rings = read_rings(
            path, self.columns, tel_ids, (int(part.get("part", 0)), int(part.get("of", 1)))
        )
        for name, unit in _UNITS.items():
            if rings.units.get(name, unit) != unit:
                raise CorruptedInput(f"{path}: {name} is in {rings.units[name]}, not in {unit}")
        keys = (rings.columns[name] for name in ("obs_id", "event_id", "tel_id"))
        return _RingTable(rings.columns, rings.units, read_times(path, *keys))

    def reduce(
        self, stage: int, data: Rows | _RingTable, given: Mapping[Cell, CellState]
    ) -> Reduced:
        """Select rings and summarise them, or summarise those within the bounds so far."""
        if not isinstance(data, _RingTable):
            return Reduced(
                {
                    cell: self.summarise(stage, rings, given[cell])
                    for cell, rings in _cells_of(data).items()
                    if cell in given
                }
            )
        rows, flow, notes = self._select(data)
        keys = np.stack([rows["obs_id"] * _TEL_IDS + rows["tel_id"], rows["event_id"]], axis=1)
        first = ChunkKeys if self.by_number else RingSummary
        summaries: dict[Cell, Summary] = {
            cell: first.of(rings) for cell, rings in _cells_of(rows).items()
        }
        return Reduced(summaries, flow, rows, keys, notes)

    def name_event(self, group: int, identifier: int) -> str:
        """Say which ring a key of `reduce` means."""
        obs_id, tel_id = divmod(group, _TEL_IDS)
        return f"telescope {tel_id} in event {identifier} of observation {obs_id}"

    def summarise(self, stage: int, rings: Rings, given: CellState) -> Summary:
        """Summarise the rings of a cell in a later stage."""
        raise NotImplementedError

    def _select(
        self, data: _RingTable
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int], tuple[str, ...]]:
        """Select rings and put them into order; give them with the cut flow and what is odd."""
        columns, n_rows = data.columns, len(data.time_ns)
        value = columns[_EFFICIENCY]
        radius, width = columns["muonring_radius"], columns["muonefficiency_width"]
        with np.errstate(divide="ignore", invalid="ignore"):
            good = ExactMoments.holds(value) & ExactMoments.holds(width / radius) & (radius > 0)
            good &= ExactMoments.holds(radius)
        flow = {"images": n_rows, "rings with efficiency, radius and width": int(good.sum())}
        for pair in self.options.quality_criteria.pairs:
            # Bare numbers are in the units of the file, as in the peer; see MuonQualityQuery.
            units = data.units if re.search(r"\bu\s*\.", pair[1]) else {}
            good &= QualityCriteria((pair,)).evaluate(columns, units, n_rows).mask
            flow[pair[0]] = int(good.sum())
        timed = good & (data.time_ns != _NO_TIME)
        flow["rings with a trigger time"] = int(timed.sum())
        notes: tuple[str, ...] = ()
        if flow["rings with a trigger time"] < int(good.sum()):
            n_lost = int(good.sum()) - flow["rings with a trigger time"]
            notes = (f"{n_lost} rings are not in the trigger table of their file: left out",)
        index = np.flatnonzero(timed)
        rows: dict[str, NDArray[Any]] = {
            name: columns[name][index].astype(np.int64) for name in ("tel_id", "obs_id", "event_id")
        }
        time_ns = data.time_ns[index]
        bins = self.options.bins
        rows["bin"] = np.zeros(len(index), np.int64) if bins is None else bins.index(time_ns)
        x_m, y_m = (columns[f"muonefficiency_impact_{axis}"][index] for axis in "xy")
        rows |= {
            "time_ns": time_ns,
            "efficiency": value[index],
            "radius_deg": radius[index],
            "width_deg": width[index],
            "impact_m": columns["muonefficiency_impact"][index],
            "azimuth_deg": np.degrees(np.arctan2(y_m, x_m)),
        }
        order = np.lexsort([rows[n] for n in ("event_id", "obs_id", "time_ns", "bin", "tel_id")])
        return {name: values[order] for name, values in rows.items()}, flow, notes

    # -- products -------------------------------------------------------------------------------

    def combine(self, states: Mapping[Cell, CellState]) -> Mapping[Cell, CellState]:
        """Give the states of all telescopes and bins.

        Raises
        ------
        NotEnoughData
            No ring is left of any telescope.
        """
        if not any(state.arrays["n"].sum() for state in states.values()):
            raise NotEnoughData(
                "no ring is left after the selection: nothing to calibrate; see the cut flow"
            )
        return states

    def product(self, result: Any) -> Mapping[str, str]:
        """Describe the monitoring tables."""
        del result
        return {
            "description": f"{self.description} of telescopes from muon rings",
            "data_level": "DL1",
            "process_type": self.process_type,
        }

    description: ClassVar[str] = ""


def _cells_of(rows: Rows) -> dict[Cell, Rings]:
    """Cut rows, which are in the order of cells, into the rings of each."""
    tel_id, number = rows["tel_id"], rows["bin"]
    edges = np.flatnonzero((tel_id[1:] != tel_id[:-1]) | (number[1:] != number[:-1])) + 1
    bounds = [0, *edges.tolist(), len(tel_id)] if len(tel_id) else [0]
    cells = {}
    for start, stop in pairwise(bounds):
        part = slice(start, stop)
        cell = int(tel_id[start]), int(number[start])
        cells[cell] = Rings(*(rows[name][part] for name in _ROWS))
    return cast("dict[Cell, Rings]", cells)


@dataclass(frozen=True)
class ThroughputFromMuons(_FromRings):
    """Optical throughput of telescopes by time, and its trend."""

    name: ClassVar[str] = "calculate-throughput-muon"
    description: ClassVar[str] = "Optical throughput"

    def summary_type(self, stage: int) -> type[Summary]:
        """Give efficiencies within bounds, after the first stage."""
        return super().summary_type(stage) if stage == 0 else EfficiencySummary

    def summarise(self, stage: int, rings: Rings, given: CellState) -> EfficiencySummary:
        """Summarise the rings within the bounds."""
        del stage
        state = given.arrays
        if self.by_number:
            chunk = assign_chunks(rings.keys, state["starts"], state["stop"])
        else:
            chunk = np.zeros(len(rings.time_ns), np.int64)
        low, high, mean, std = (state[name] for name in ("low", "high", "mean", "std"))
        return EfficiencySummary.of(rings, chunk, low, high, mean, std, float(state["reach"]))

    def fit(self, stage: int, cell: Cell, total: Any, given: CellState | None) -> CellState:
        """Take the moments, and clip again where rings were clipped; one stage each."""
        del cell
        options = self.options
        if stage > 0:
            if given is None:
                raise AssertionError("a stage after the first builds on one")
            return _clip_efficiency(total, given, options)
        if isinstance(total, ChunkKeys):
            return _cut_into_chunks(total, options)
        moments = total.efficiency.moments()
        return CellState.of(
            options.clip_sigma,
            done=not moments.n.sum(),
            round=0,
            reach=options.clip_sigma or _REACH_UNCLIPPED,
            n=moments.n,
            mean=moments.mean,
            std=np.sqrt(moments.variance(ddof=0)),
        )

    def tables(self, result: Mapping[Cell, CellState]) -> Mapping[str, QTable]:
        """Give throughputs by telescope, their trends and their residuals."""
        return throughput_tables(result, self.telescopes, self.options, self.obs_ids)

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Give the sections of the report."""
        from calibdask.muon.report import throughput_sections

        del result
        return throughput_sections(tables)


def _cut_into_chunks(total: ChunkKeys, options: MuonOptions) -> CellState:
    """Cut the rings of a telescope into chunks of equal number, in order of time."""
    n, size = len(total.keys), options.chunk_size or 1
    starts, stop = chunk_starts(
        n, size, skip_last=options.skip_last, allow_undersized=options.allow_undersized
    )
    n_chunks = len(starts)
    return CellState.of(
        None,  # nothing is known yet that could be clipped
        done=not n_chunks,
        round=-1,
        reach=options.clip_sigma or _REACH_UNCLIPPED,
        n=np.zeros(n_chunks, np.int64) if n_chunks else np.array([0]),
        mean=np.zeros(max(n_chunks, 1)),
        std=np.ones(max(n_chunks, 1)),
        starts=total.keys[starts].reshape(-1, 3),
        stop=total.keys[stop : stop + 1],
        n_too_few=np.array(0 if n_chunks else n),
    )


def _clip_efficiency(total: EfficiencySummary, given: CellState, options: MuonOptions) -> CellState:
    """Give the moments of what is within the bounds, and the next bounds."""
    before = given.arrays
    moments = total.efficiency.moments()
    std = np.sqrt(moments.variance(ddof=0))
    number = int(before["round"]) + 1
    # A median in units of moments that were not known yet is too coarse.
    settled = number > 0 and (
        np.array_equal(moments.n, before["n"]) or number >= options.iterations
    )
    edges = np.linspace(-float(before["reach"]), float(before["reach"]), total.counts.shape[1] - 1)
    unit = np.where(before["std"] > 0, before["std"], 1.0)
    median = before["mean"] + unit * Histogram(edges, total.counts).median()
    kept = {name: before[name] for name in ("starts", "stop") if name in before}
    profiles = {}
    for name, sums in total.profiles.items():
        profile = sums.moments()
        shape = (len(moments.n), -1)
        for field in ("n", "mean", "m2"):
            profiles[f"{name}_{field}"] = getattr(profile, field).reshape(shape)
    return CellState.of(
        options.clip_sigma,
        before["low"],
        before["high"],
        done=settled,
        round=number,
        reach=before["reach"],
        n=moments.n,
        mean=moments.mean,
        std=std,
        m2=moments.m2,
        median=median,
        n_all=total.n_all,
        time_ms=total.time_ms.moments().mean,
        least=total.least,
        greatest=total.greatest,
        **profiles,
        **kept,
    )


@dataclass(frozen=True)
class PsfFromMuons(_FromRings):
    """Width over radius of rings against their radius: the optical point spread function."""

    name: ClassVar[str] = "calculate-psf-muon"
    description: ClassVar[str] = "Optical point spread function"

    def summary_type(self, stage: int) -> type[Summary]:
        """Give widths within bounds, after the first stage."""
        return super().summary_type(stage) if stage == 0 else WidthSummary

    def summarise(self, stage: int, rings: Rings, given: CellState) -> WidthSummary:
        """Summarise the rings within the bounds."""
        del stage
        state = given.arrays
        return WidthSummary.of(rings, state["edges_deg"], state["low"], state["high"])

    def fit(self, stage: int, cell: Cell, total: Any, given: CellState | None) -> CellState:
        """Bin the radius, then take moments and clip; one stage each."""
        del cell
        options = self.options
        if stage == 0:
            n = int(total.efficiency.n[0])
            least, greatest = total.radius_deg.tolist()
            # Rings of one radius alone have one bin, and no line.
            n_bins = options.n_radius_bins if greatest > least else 1
            return CellState.of(
                None,
                done=not n,
                round=-1,
                n=np.full(n_bins if n else 1, -1 if n else 0),
                mean=np.full(n_bins if n else 1, np.nan),
                std=np.full(n_bins if n else 1, np.nan),
                edges_deg=radius_edges(least, greatest, n_bins) if n else np.empty(0),
                least=total.least,
                greatest=total.greatest,
            )
        if given is None:
            raise AssertionError("a stage after the first builds on one")
        before = given.arrays
        ratio, radius_deg = total.ratio.moments(), total.radius_deg.moments()
        number = int(before["round"]) + 1
        settled = np.array_equal(ratio.n, before["n"]) or number >= options.iterations
        return CellState.of(
            options.clip_sigma,
            before["low"],
            before["high"],
            done=settled,
            round=number,
            n=ratio.n,
            mean=ratio.mean,
            std=np.sqrt(ratio.variance(ddof=0)),
            m2=ratio.m2,
            radius_deg=radius_deg.mean,
            n_all=total.n_all,
            **{name: before[name] for name in ("edges_deg", "least", "greatest")},
        )

    def tables(self, result: Mapping[Cell, CellState]) -> Mapping[str, QTable]:
        """Give the lines by telescope, and the points they are fitted to."""
        return psf_tables(result, self.telescopes, self.options, self.obs_ids)

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Give the sections of the report."""
        from calibdask.muon.report import psf_sections

        del result
        return psf_sections(tables)
