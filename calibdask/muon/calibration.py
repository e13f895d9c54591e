"""Optical throughput and PSF from muon rings: glue between files, model and engine.

Both jobs have one map: it reads the rings of a shard (or fits them to its images), selects them,
and keeps them as rows, so that no later stage reads an input or fits a ring again. The stages after
it clip: each takes the rings within the bounds that the stage before gave.

The ring fit is imported where it is needed: tables of rings do without numba, which is slow to
import.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.engine.protocol import (
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
from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData, WrongKind
from calibdask.flags import Flag
from calibdask.io.images import (
    TelescopeImages,
    has_images,
    inspect_images,
    is_hdf5,
    read_images,
)
from calibdask.io.kinds import file_kind
from calibdask.io.metadata import CtaReference
from calibdask.io.muon import (
    has_muon_tables,
    inspect_muons,
    read_rings,
    read_times,
    ring_times,
)
from calibdask.muon.config import (
    SECTIONS,
    SHOWN,
    CalculatePSFWithMuons,
    CalculateThroughputWithMuons,
    RingFit,
    resolve,
)
from calibdask.muon.model import (
    assign_chunks,
    chunk_starts,
    radius_edges,
    residuals,
)
from calibdask.muon.result import (
    CellState,
    psf_tables,
    throughput_tables,
)
from calibdask.muon.summary import (
    MILLISECONDS_OF_2020,
    ChunkKeys,
    EfficiencySummary,
    Gallery,
    Rings,
    RingSummary,
    WidthSummary,
)
from calibdask.select import QualityCriteria
from calibdask.stats.exact import ExactMoments
from calibdask.stats.histogram import Histogram
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.config import Campaign, Configuration, JobSection
    from calibdask.muon.config import MuonOptions
    from calibdask.muon.report import Picture
    from calibdask.muon.result import Telescope
    from calibdask.muon.rings import RingOptions
    from calibdask.report import ReportSection
    from calibdask.stats.timebins import TimeBins

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

_TEL_IDS = 1 << 16  # telescope numbers have 16 bits
_END_OBS_ID = 1 << 47  # so that number of observation and telescope fit 64 bits together
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

_CUTS = {
    "images of telescopes with one mirror and known optics": ("dual mirror", "no optics"),
    "images that were measured": ("no image",),
    "images with enough pixels": ("too few pixels",),
    "images with enough light": ("too little light",),
    "images with a circle": ("no ring",),
    "images with enough pixels on the circle": ("too few pixels on the ring",),
    "images with enough of the circle in the camera": ("ring outside of the camera",),
    "rings without saturated pixels": ("saturated pixels",),
    "rings without noise far above the pedestal": ("noise far above the pedestal",),
    "rings that the model describes": ("poor fit",),
}
"""Steps of the cut flow of images, and what became of those that each of them leaves out."""

_GALLERY = 6  # images that the report shows

_RING_BYTES = 85
"""A kept ring with its key: for the plan's estimate of the store, where all are selected."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a survey found in a file.

    Attributes
    ----------
    telescopes : tuple of (int, str, int)
        Number, description and mirrors of each.
    obs_ids : tuple of int
        Observation blocks.
    process_type : str or None
        "CTA PROCESS TYPE".
    cells : tuple of Cell
        Those that rings of the file may fall into.
    n_rows : dict of int to int
        Rings, or images, of each telescope to calibrate.
    row_bytes : dict of int to int
        Memory of one while it is worked on.
    more_bytes : int
        Memory besides.
    kind : str
        ``rings``: tables of rings; ``images``: DL1 images; ``events``: what ctapipe opens.
    """

    telescopes: tuple[Telescope, ...]
    obs_ids: tuple[int, ...]
    process_type: str | None
    cells: tuple[Cell, ...]
    n_rows: dict[int, int]
    row_bytes: dict[int, int]
    more_bytes: int
    kind: str

    @property
    def peak_bytes(self) -> int:
        """Memory of all rows."""
        return sum(n * self.row_bytes[tel_id] for tel_id, n in self.n_rows.items())


@dataclass(frozen=True, slots=True, eq=False)
class _RingTable:
    """Rows of muon tables with their times, before any selection; where they were, the images."""

    columns: dict[str, NDArray[Any]]
    units: dict[str, str]
    time_ns: NDArray[np.int64]
    images: tuple[TelescopeImages, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """Images of some telescopes, before any ring is fitted."""

    blocks: tuple[TelescopeImages, ...]


@dataclass(frozen=True)
class _FromRings(Calibration[_RingTable | _Images, CellState, Mapping[Cell, CellState]]):
    """What both jobs share: survey, shards, the map."""

    options: MuonOptions
    shard_bytes: int
    notes: tuple[str, ...] = ()
    telescopes: tuple[Telescope, ...] = ()
    process_type: str = "Observation"
    obs_ids: tuple[int, ...] = ()
    fits_rings: bool = False
    section: JobSection = field(default_factory=CalculateThroughputWithMuons)
    ring_fit: RingFit = field(default_factory=RingFit)

    description: ClassVar[str]
    version: ClassVar[int] = 4
    usual_stages: ClassVar[int] = 3
    small_bytes: ClassVar[int] = 6_000
    map_name: ClassVar[str] = "muon-rings"
    state: ClassVar[type[State]] = CellState
    bins_time: ClassVar[bool] = True
    patterns: ClassVar[tuple[str, ...]] = ("*.h5", "*.hdf5", "*.simtel", "*.simtel.*")
    preload: ClassVar[tuple[str, ...]] = ("astropy.units",)  # for units in quality criteria
    further_sections: ClassVar = {
        one: SECTIONS[one] for one in ("QualityQuery", "PlainAggregator", "TimeChunking")
    }

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        config = resolve(cls.name, document, campaign)
        return cls(
            config.options,
            campaign.shard_bytes,
            config.notes,
            section=config.section,
            ring_fit=config.ring_fit,
        )

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
        """Return the type of the first stage; jobs give those of the others."""
        del stage
        return ChunkKeys if self.by_number else RingSummary

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at what a file holds: tables of rings, else images to fit them to."""
        path, options = source.path, self.options
        if not source.size:
            raise CorruptedInput(f"{path}: is empty; copy or produce it again")
        of_events = not is_hdf5(path)
        times: Mapping[int, NDArray[np.int64]] = {}
        if not of_events and has_muon_tables(path):
            info = inspect_muons(path, self.columns)
            wanted = self._wanted(info.n_rows)
            if options.bins is not None:
                times = ring_times(path, wanted)
            telescopes = [(t, text, info.n_mirrors[t]) for t, text in info.telescopes.items()]
            n_rows = {tel_id: info.n_rows[tel_id] for tel_id in wanted}
            kind, row_bytes = "rings", dict.fromkeys(wanted, _ROW_BYTES)
            more_bytes, product_id = info.n_trigger_rows * 64, info.product_id
            obs_ids, process_type = info.obs_ids, info.process_type
        elif of_events or has_images(path):
            from calibdask.muon.rings import unusable

            found = inspect_images(path, options.ring_fit.focal_length_choice)
            # Where there is no model, there is no cell: the telescope is flagged.
            wanted = [t for t in self._wanted(found.cameras) if not unusable(found.cameras[t])]
            times = found.times_ns
            telescopes = [(t, c.tel_description, c.n_mirrors) for t, c in found.cameras.items()]
            n_rows = {tel_id: len(times[tel_id]) for tel_id in wanted}
            kind, row_bytes = "events" if of_events else "images", found.bytes_per_image
            more_bytes, product_id = 0, found.product_id
            obs_ids, process_type = found.obs_ids, found.process_type
        else:
            file_kind(path)  # refuses a file that should have events and has none
            raise WrongKind(f"{path}: holds neither tables of muon rings nor images")
        if max(obs_ids, default=0) >= _END_OBS_ID:
            raise CorruptedInput(f"{path}: has obs_id {max(obs_ids)}, which does not fit 47 bits")
        if product_id:  # tells apart what equal size and samples would not
            source = replace(source, identity=f"{source.identity}:{product_id}")
        cells = tuple(
            (tel_id, number)
            for tel_id in wanted
            for number in ([0] if options.bins is None else _bins_of(times[tel_id], options.bins))
        )
        facts = _Facts(
            tuple(telescopes), obs_ids, process_type, cells, n_rows, row_bytes, more_bytes, kind
        )
        return Survey(source, order=obs_ids[:1], facts=facts)

    def _wanted(self, tel_ids: Iterable[int]) -> list[int]:
        allowed = self.options.allowed_tels
        return [one for one in sorted(tel_ids) if allowed is None or one in allowed]

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the telescopes, and refuse what does not belong together."""
        types: dict[str, str] = {}
        found: dict[int, tuple[Telescope, str]] = {}
        for survey in surveys:
            path, facts = survey.source.path, survey.facts
            types.setdefault(facts.process_type or "Observation", path)
            for one in facts.telescopes:
                if not self._wanted(one[:1]):
                    continue
                known, before = found.setdefault(one[0], (one, path))
                if known != one:
                    raise ConfigError(
                        f"{before} and {path} are of different arrays: telescope {one[0]} is"
                        f" {known[1]} and {one[1]}; calibrate each array by itself"
                    )
        if len(types) > 1:
            listed = " and ".join(f"{path} ({kind})" for kind, path in sorted(types.items()))
            raise ConfigError(f"simulated and observed rings in one run: {listed}; separate them")
        telescopes = tuple(found[tel_id][0] for tel_id in sorted(found))
        if not any(survey.facts.cells for survey in surveys):
            why = _two_mirrors(telescopes) or "no telescope to calibrate has an image or a ring"
            raise NotEnoughData(f"{why}: nothing to calibrate")
        missing = sorted(set(self.options.allowed_tels or ()) - set(found))
        notes = self.notes
        if missing:
            listed = ", ".join(map(str, missing))
            notes += (f"allowed_tels: no input has telescope {listed}",)
        for survey in surveys:
            with_cells = {cell[0] for cell in survey.facts.cells}
            timeless = [t for t, n in survey.facts.n_rows.items() if n and t not in with_cells]
            if timeless:
                note = (
                    f"{survey.source.path}: no trigger of telescope"
                    f" {', '.join(map(str, sorted(timeless)))} is known, so its rings belong to no"
                    " time bin and are left out"
                )
                notes += (note,)
        obs_ids = {number for survey in surveys for number in survey.facts.obs_ids}
        return replace(
            self,
            telescopes=telescopes,
            process_type=next(iter(types)),
            obs_ids=tuple(sorted(obs_ids)),
            fits_rings=any(survey.facts.kind != "rings" for survey in surveys),
            notes=notes,
        )

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut files that are too large for one shard.

        Tables of rings are cut into equal parts of every table, DL1 images by telescope and rows;
        other files are read from their beginning and stay whole.
        """
        for survey in surveys:
            facts: _Facts = survey.facts
            if not facts.cells:
                continue
            peak_bytes, size = facts.peak_bytes, survey.source.size
            n_parts = max(1, -(-peak_bytes // self.shard_bytes))
            if facts.kind == "images" and n_parts > 1:
                yield from self._pieces_of_images(survey)
                continue
            if facts.kind == "events":
                n_parts = 1
            for number in range(n_parts):
                yield Piece(
                    (survey.source,),
                    (("part", number), ("of", n_parts)) if n_parts > 1 else (),
                    facts.cells,
                    order=(*survey.order, number),
                    n_bytes=size // n_parts,
                    # Every part looks its times up in the whole trigger table.
                    peak_bytes=peak_bytes // n_parts + facts.more_bytes,
                    stored_bytes=_RING_BYTES * sum(facts.n_rows.values()) // n_parts,
                )

    def _pieces_of_images(self, survey: Survey) -> Iterable[Piece]:
        facts: _Facts = survey.facts
        for tel_id, n_rows in facts.n_rows.items():
            row_bytes = facts.row_bytes[tel_id]
            n_parts = max(1, -(-n_rows * row_bytes // self.shard_bytes))
            cells = tuple(cell for cell in facts.cells if cell[0] == tel_id)
            for number in range(n_parts):
                first, stop = (n_rows * i // n_parts for i in (number, number + 1))
                share = (stop - first) * row_bytes / max(facts.peak_bytes, 1)
                yield Piece(
                    (survey.source,),
                    (("tel_id", tel_id), ("first_row", first), ("stop_row", stop)),
                    cells,
                    order=(*survey.order, tel_id, number),
                    n_bytes=int(survey.source.size * share),
                    peak_bytes=(stop - first) * row_bytes,
                    stored_bytes=_RING_BYTES * (stop - first),
                )

    def map_config(self) -> Mapping[str, Any]:
        """Return what the rings and their first summary depend on."""
        bins = self.options.bins
        config = dict(super().map_config())
        if not self.fits_rings:
            del config["ring_fit"]
        return {
            **config,
            "bins": None if bins is None else bins.config(),
            "by_number": self.by_number,
        }

    def warnings(self) -> Sequence[str]:
        """Tell what was odd about configuration and telescopes."""
        dual = _two_mirrors(self.telescopes)
        return [*self.notes, dual] if dual else self.notes

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> _RingTable | _Images:
        """Read muon tables, or images."""
        path = shard.inputs[0].path
        part = dict(shard.part)
        tel_ids = sorted({int(cell[0]) for cell in shard.cells})
        if not is_hdf5(path) or not has_muon_tables(path):
            choice = self.options.ring_fit.focal_length_choice
            if "tel_id" in part:
                chosen = int(part["first_row"]), int(part["stop_row"])
                blocks = read_images(path, choice, tel_id=tel_ids[0], rows=chosen)
            else:
                blocks = read_images(path, choice)
            wanted = (images for images in blocks if images.camera.tel_id in tel_ids)
            return _Images(tuple(wanted))
        rings = read_rings(
            path, self.columns, tel_ids, (int(part.get("part", 0)), int(part.get("of", 1)))
        )
        for name, unit in _UNITS.items():
            if rings.units.get(name, unit) != unit:
                raise CorruptedInput(f"{path}: {name} is in {rings.units[name]}, not in {unit}")
        keys = (rings.columns[name] for name in ("obs_id", "event_id", "tel_id"))
        return _RingTable(rings.columns, rings.units, read_times(path, *keys))

    def _ring_options(self, images: TelescopeImages) -> RingOptions:
        """Return the options of the ring fit for a telescope."""
        from calibdask.muon.rings import RingOptions

        camera = images.camera
        values: dict[str, Any] = {
            **self.options.ring_fit.of_telescope(camera.tel_id, camera.tel_description)
        }
        for name in ("min_picture_neighbors", "oversampling"):
            values[name] = round(values[name])
        fit = self.options.ring_fit
        return RingOptions(**values, fit_circle=fit.fit_circle, of_ctapipe=fit.of_ctapipe)

    def _fit_rings(self, data: _Images) -> tuple[_RingTable, dict[str, int]]:
        """Fit a ring to each image; give them with the cut flow of the images."""
        from calibdask.muon.rings import RING_UNITS, STATUS, rings_of

        tables = [rings_of(images, self._ring_options(images)) for images in data.blocks]
        columns = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
        flow = {"images": len(columns["status"])}
        left = flow["images"]
        for name, reasons in _CUTS.items():
            left -= int(np.isin(columns["status"], [STATUS.index(one) for one in reasons]).sum())
            flow[name] = left
        time_ns = columns.pop("time_ns")
        return _RingTable(columns, dict(RING_UNITS), time_ns, data.blocks), flow

    def reduce(self, shard: Shard, data: _RingTable | _Images) -> Reduced:
        """Select rings and summarise them."""
        if isinstance(data, _Images):
            data, flow = self._fit_rings(data)
        else:
            flow = {"images": len(data.time_ns)}
        rows, index, more_flow, notes = self._select(data)
        keys = np.stack([rows["obs_id"] * _TEL_IDS + rows["tel_id"], rows["event_id"]], axis=1)
        first = ChunkKeys if self.by_number else RingSummary
        found, galleries = _cells_of(rows), self._galleries(data, rows, index)
        # A cell whose rings were all left out still is one: it has a state, with no ring.
        summaries: dict[Cell, Summary] = {}
        for cell in {*shard.cells, *found}:
            summary = first.of(found[cell]) if cell in found else first.identity()
            summaries[cell] = replace(summary, gallery=galleries.get(cell, summary.gallery))
        return Reduced(summaries, {**flow, **more_flow}, rows, keys, notes)

    def refine(
        self,
        stage: int,
        shard: Shard,
        data: Rows | _RingTable | _Images,
        given: Mapping[Cell, CellState],
    ) -> Reduced:
        """Summarise the rings within the bounds so far."""
        del shard
        if isinstance(data, _RingTable | _Images):
            raise TypeError("the first stage keeps the rings of every shard")
        found = _cells_of(data)
        return Reduced(
            {
                cell: self.summarise(stage, found[cell], state)
                for cell, state in given.items()
                if cell in found
            }
        )

    def _galleries(
        self, data: _RingTable, rows: Rows, index: NDArray[np.intp]
    ) -> dict[Cell, Gallery]:
        """Take the first few images of each cell, with the fits; count the rings in trouble."""
        if not data.images:
            return {}
        from calibdask.muon.rings import predicted_image

        starts = np.cumsum([0, *(len(images.event_id) for images in data.images)])
        limit = _GALLERY if self.options.bins is None else 1
        galleries: dict[Cell, Gallery] = {}
        for cell, place in _places_of(rows).items():
            total = Gallery.identity(limit)
            for row in range(place.start, min(place.start + limit, place.stop)):
                number = int(index[row])
                block = int(np.searchsorted(starts, number, side="right")) - 1
                images = data.images[block]
                ring = {name: values[number] for name, values in data.columns.items()}
                key = [rows[name][row] for name in ("time_ns", "obs_id", "event_id")]
                expected = predicted_image(images.camera, self._ring_options(images), ring)
                total = total.merge(
                    _picture(images, number - int(starts[block]), ring, expected, limit, key)
                )
            galleries[cell] = total
        for cell, counts in self._troubled(data).items():
            gallery = galleries.get(cell, Gallery.identity(limit))
            galleries[cell] = replace(gallery, troubled=counts)
        return galleries

    def _troubled(self, data: _RingTable) -> dict[Cell, NDArray[np.int64]]:
        """Count the rings in trouble of each cell, by reason."""
        from calibdask.muon.rings import TROUBLED

        status, tel_id = data.columns["status"], data.columns["tel_id"]
        bins = self.options.bins
        counts: dict[Cell, NDArray[np.int64]] = {}
        for row in np.flatnonzero(np.isin(status, TROUBLED) & (data.time_ns != NO_TIME)).tolist():
            number = 0 if bins is None else int(bins.index(data.time_ns[row : row + 1])[0])
            own = counts.setdefault((int(tel_id[row]), number), np.zeros(3, np.int64))
            own[TROUBLED.index(int(status[row]))] += 1
        return counts

    def name_event(self, group: int, identifier: int) -> str:
        """Say which ring a key of `reduce` means."""
        obs_id, tel_id = divmod(group, _TEL_IDS)
        return f"telescope {tel_id} in event {identifier} of observation {obs_id}"

    def summarise(self, stage: int, rings: Rings, given: CellState) -> Summary:
        """Summarise the rings of a cell in a later stage."""
        raise NotImplementedError

    def _select(
        self, data: _RingTable
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.intp], dict[str, int], tuple[str, ...]]:
        """Select rings and put them into order.

        Returns
        -------
        rows : dict of str to ndarray
            The rings.
        index : ndarray of int
            Where each stands in the data.
        flow : dict of str to int
            The cut flow.
        notes : tuple of str
            What is odd.
        """
        columns, n_rows = data.columns, len(data.time_ns)
        value = columns[_EFFICIENCY]
        radius, width = columns["muonring_radius"], columns["muonefficiency_width"]
        with np.errstate(divide="ignore", invalid="ignore"):
            good = ExactMoments.holds(value) & ExactMoments.holds(width / radius) & (radius > 0)
            good &= ExactMoments.holds(radius) & (value > 0) & (width > 0)
        if data.images:
            from calibdask.muon.rings import TROUBLED

            good &= ~np.isin(columns["status"], TROUBLED)
        flow = {"rings with efficiency, radius and width": int(good.sum())}
        for pair in self.options.quality_criteria.pairs:
            # Bare numbers are in the units of the file, as in the peer; see MuonQualityQuery.
            units = data.units if re.search(r"\bu\s*\.", pair[1]) else {}
            good &= QualityCriteria((pair,)).evaluate(columns, units, n_rows).mask
            flow[pair[0]] = int(good.sum())
        timed = good & (data.time_ns != NO_TIME)
        flow["rings with a trigger time"] = int(timed.sum())
        notes: tuple[str, ...] = ()
        if flow["rings with a trigger time"] < int(good.sum()):
            n_lost = int(good.sum()) - flow["rings with a trigger time"]
            notes = (f"{n_lost} rings have no time in the trigger table of their file: left out",)
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
            "efficiency": ExactMoments.rounded(value[index]),
            "radius_deg": radius[index],
            "width_deg": width[index],
            "impact_m": columns["muonefficiency_impact"][index],
            "azimuth_deg": np.degrees(np.arctan2(y_m, x_m)),
        }
        order = np.lexsort([rows[n] for n in ("event_id", "obs_id", "time_ns", "bin", "tel_id")])
        return {name: values[order] for name, values in rows.items()}, index[order], flow, notes

    # -- products -------------------------------------------------------------------------------

    def combine(self, states: Mapping[Cell, CellState]) -> Mapping[Cell, CellState]:
        """Return the states of all telescopes and bins.

        Raises
        ------
        NotEnoughData
            No ring is left of any telescope.
        """
        if not any(state.arrays["n"].sum() for state in states.values()):
            raise NotEnoughData(
                "no ring is left after the selection, or too few for a chunk: nothing to calibrate;"
                " see the cut flow"
            )
        return states

    def tables(self, result: Mapping[Cell, CellState]) -> Mapping[str, QTable]:
        """Return the monitoring tables."""
        raise NotImplementedError

    def outputs(self, result: Mapping[Cell, CellState]) -> Sequence[Output]:
        """Return the monitoring tables."""
        text = f"{self.description} of telescopes from muon rings"
        return [Tables(self.tables(result), CtaReference(text, "DL1", self.process_type))]


def _bins_of(time_ns: NDArray[np.int64], bins: TimeBins) -> list[int]:
    """List the bins that times fall into."""
    numbers: list[int] = np.unique(bins.index(time_ns[time_ns != NO_TIME])).tolist()
    return numbers


def _two_mirrors(telescopes: Sequence[Telescope]) -> str:
    """Name the telescopes that have two mirrors; empty for none."""
    dual = [str(tel_id) for tel_id, _, n_mirrors in telescopes if n_mirrors != 1]
    if not dual:
        return ""
    who = f"telescope {dual[0]} has" if len(dual) == 1 else f"telescopes {', '.join(dual)} have"
    flag = Flag.TWO_MIRRORS.letter
    return f"{who} two mirrors: there is no ring model for that, so no value (flag {flag})"


def _places_of(rows: Rows) -> dict[Cell, slice]:
    """Cut rows, which are in the order of cells."""
    tel_id, number = rows["tel_id"], rows["bin"]
    edges = np.flatnonzero((tel_id[1:] != tel_id[:-1]) | (number[1:] != number[:-1])) + 1
    bounds = [0, *edges.tolist(), len(tel_id)] if len(tel_id) else [0]
    return {
        (int(tel_id[start]), int(number[start])): slice(start, stop)
        for start, stop in pairwise(bounds)
    }


def _cells_of(rows: Rows) -> dict[Cell, Rings]:
    """Return the rings of each cell."""
    return {
        cell: Rings(*(rows[name][place] for name in _ROWS))
        for cell, place in _places_of(rows).items()
    }


def _pictures(states: Mapping[Cell, CellState]) -> list[Picture]:
    """Pick images for the report, of every telescope in turn."""
    from calibdask.muon.report import Picture

    by_telescope: dict[int, list[Picture]] = {}
    for cell, state in sorted(states.items()):
        gallery = Gallery.from_arrays(state.arrays)
        for key, ring, pixels in zip(gallery.keys, gallery.rings, gallery.images(), strict=True):
            tel_id = int(cell[0])
            one = Picture(tel_id, int(key[1]), int(key[2]), ring, pixels)
            by_telescope.setdefault(tel_id, []).append(one)
    turns = zip_longest(*by_telescope.values())
    return [one for turn in turns for one in turn if one is not None][:_GALLERY]


def _picture(
    images: TelescopeImages,
    number: int,
    ring: Mapping[str, Any],
    expected: NDArray[np.float64],
    limit: int,
    key: Sequence[Any],
) -> Gallery:
    """Return a gallery of one image."""
    camera = images.camera
    fields = (
        *("muonring_center_fov_lon", "muonring_center_fov_lat", "muonring_radius"),
        *("muonefficiency_width", _EFFICIENCY, "muonefficiency_impact"),
    )
    width_deg = np.degrees(camera.pixel_width_rad[0])
    pixels = [
        np.degrees(camera.pixel_x_rad),
        np.degrees(camera.pixel_y_rad),
        images.image[number],
        expected,
    ]
    return Gallery(
        limit,
        np.array([key], np.int64),
        np.array([[*(float(ring[name]) for name in fields), width_deg]]),
        np.array([len(expected)], np.int64),
        np.array(pixels, np.float32),
    )


@dataclass(frozen=True)
class ThroughputFromMuons(_FromRings):
    """Optical throughput of telescopes by time, and its trend."""

    name: ClassVar[str] = "calculate-throughput-muon"
    sections: ClassVar = {"CalculateThroughputWithMuons": CalculateThroughputWithMuons, **SHOWN}
    description: ClassVar[str] = "Optical throughput"

    def summary_type(self, stage: int) -> type[Summary]:
        """Return efficiencies within bounds, after the first stage."""
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
            **total.gallery.to_arrays(),
            done=not moments.n.sum(),
            round=0,
            reach=options.clip_sigma or _REACH_UNCLIPPED,
            n=moments.n,
            mean=moments.mean,
            std=np.sqrt(moments.variance(ddof=0)),
            # What follows is for a look at a running campaign: nothing is clipped yet.
            m2=moments.m2,
            n_all=moments.n,
            median=np.full(1, np.nan),
            time_ms=_middle_ms(total),
            least=total.least[:, None],
            greatest=total.greatest[:, None],
        )

    def tables(self, result: Mapping[Cell, CellState]) -> Mapping[str, QTable]:
        """Return throughputs by telescope, their trends and their residuals."""
        return throughput_tables(
            result, self.telescopes, self.options, self.obs_ids, from_images=self.fits_rings
        )

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the report."""
        from calibdask.muon.report import throughput_sections

        return throughput_sections(tables, _pictures(result))


def _middle_ms(total: RingSummary) -> NDArray[np.float64]:
    """Time between the first ring and the last, in ms from the beginning of 2020."""
    if not total.efficiency.n[0]:
        return np.zeros(1)
    first, last = int(total.least[0]), int(total.greatest[0])
    return np.array([(first + last) / 2e6 - MILLISECONDS_OF_2020])


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
        **total.gallery.to_arrays(),
    )


def _clip_efficiency(total: EfficiencySummary, given: CellState, options: MuonOptions) -> CellState:
    """Return the moments of what is within the bounds, and the next bounds."""
    before = given.arrays
    total = total.over(0, len(before["n"]))
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
    kept = {
        name: values
        for name, values in before.items()
        if name in ("starts", "stop") or name.startswith("gallery")
    }
    profiles = {}
    for name, sums in total.profiles.items():
        residual = residuals(sums.moments(), moments.mean)
        for part, values in residual.to_arrays().items():
            profiles[f"{name}_{part}"] = values
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
    sections: ClassVar = {"CalculatePSFWithMuons": CalculatePSFWithMuons, **SHOWN}
    description: ClassVar[str] = "Optical point spread function"

    def summary_type(self, stage: int) -> type[Summary]:
        """Return widths within bounds, after the first stage."""
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
                **total.gallery.to_arrays(),
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
            **{
                name: values
                for name, values in before.items()
                if name in ("edges_deg", "least", "greatest") or name.startswith("gallery")
            },
        )

    def tables(self, result: Mapping[Cell, CellState]) -> Mapping[str, QTable]:
        """Return the lines by telescope, and the points they are fitted to."""
        return psf_tables(
            result, self.telescopes, self.options, self.obs_ids, from_images=self.fits_rings
        )

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the report."""
        from calibdask.muon.report import psf_sections

        return psf_sections(tables, _pictures(result))
