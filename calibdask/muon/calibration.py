"""Optical throughput and PSF from muon rings: glue between files, model and engine.

Both jobs have one map: it reads the rings of a shard (or fits them to its images), selects them,
and keeps them as rows, so that no later stage reads an input or fits a ring again. The stages after
it clip: each takes the rings within the bounds that the stage before gave.

The ring fit is imported where it is needed: tables of rings do without numba, which is slow to
import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData
from calibdask.flags import Flag
from calibdask.io.images import is_hdf5, read_images
from calibdask.io.metadata import CtaReference
from calibdask.io.muon import has_muon_tables, read_rings, read_times
from calibdask.muon.config import (
    SECTIONS,
    CalculatePSFWithMuons,
    CalculateThroughputWithMuons,
    resolve,
)
from calibdask.muon.files import facts_of, pieces_of
from calibdask.muon.gallery import galleries_of, pictures
from calibdask.muon.selection import (
    NEEDED_UNITS,
    RingImages,
    RingTable,
    cells_of,
    fit_images,
    places_of,
    select_rings,
)
from calibdask.muon.state import CellState
from calibdask.muon.summary import ChunkKeys, Rings, RingSummary
from calibdask.stats.keyed import obs_id_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from astropy.table import QTable

    from calibdask.config import Campaign, Configuration
    from calibdask.muon.report import Picture
    from calibdask.muon.ring_config import RingFit
    from calibdask.muon.state import Telescope
    from calibdask.stats.timebins import TimeBins

__all__ = ["RingCalibration"]

_TEL_IDS = 1 << 16  # telescope numbers have 16 bits


@dataclass(frozen=True)
class RingCalibration(Calibration[RingTable | RingImages, CellState, Mapping[Cell, CellState]]):
    """What both jobs share: survey, shards, the map."""

    shard_bytes: int
    section: CalculateThroughputWithMuons | CalculatePSFWithMuons
    ring_fit: RingFit
    bins: TimeBins | None = None
    chunk_size: int | None = None
    notes: tuple[str, ...] = ()
    telescopes: tuple[Telescope, ...] = ()
    process_type: str = "Observation"
    obs_ids: tuple[int, ...] = ()
    fits_rings: bool = False

    description: ClassVar[str]
    within_bounds: ClassVar[type[Summary]]
    """Type of the summaries after the first stage."""
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
        psf = cls.main() is CalculatePSFWithMuons
        return cls(campaign.shard_bytes, *resolve(document, campaign, psf=psf))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the muon table to read."""
        needed = ("muonefficiency_optical_efficiency", *NEEDED_UNITS)
        return (*needed, *sorted(set(self.section.criteria.columns) - {*needed}))

    @property
    def by_number(self) -> bool:
        """Whether rings are cut into chunks of equal number."""
        return self.chunk_size is not None

    def summary_type(self, stage: int) -> type[Summary]:
        """Return the type of the first stage, or that of rings within bounds."""
        if stage > 0:
            return self.within_bounds
        return ChunkKeys if self.by_number else RingSummary

    # -- planning -------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at what a file holds: tables of rings, else images to fit them to."""
        if not source.size:
            raise CorruptedInput(f"{source.path}: is empty; copy or produce it again")
        choice = self.ring_fit.source.focal_length_choice
        facts = facts_of(source.path, self.columns, self._wanted, choice, self.bins)
        if facts.product_id:  # tells apart what equal size and samples would not
            source = replace(source, identity=f"{source.identity}:{facts.product_id}")
        return Survey(source, order=facts.obs_ids[:1], facts=facts)

    def _wanted(self, tel_ids: Iterable[int]) -> list[int]:
        allowed = self.section.allowed_tels
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
            why = two_mirrors_note(telescopes) or "no telescope to calibrate has an image or a ring"
            raise NotEnoughData(f"{why}: nothing to calibrate")
        missing = sorted(set(self.section.allowed_tels or ()) - set(found))
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
        """Cut files that are too large for one shard."""
        for survey in surveys:
            yield from pieces_of(survey, self.shard_bytes)

    def map_config(self) -> Mapping[str, Any]:
        """Return what the rings and their first summary depend on."""
        bins = self.bins
        config = dict(super().map_config())
        if not self.fits_rings:
            del config["ring_fit"]
        return {
            **config,
            "bins": None if bins is None else bins.config(),
            "by_number": self.by_number,
        }

    def warnings(self) -> Sequence[str]:
        """Return warnings about configuration and telescopes."""
        dual = two_mirrors_note(self.telescopes)
        return [*self.notes, dual] if dual else self.notes

    # -- map ------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> RingTable | RingImages:
        """Read muon tables, or images."""
        path = shard.inputs[0].path
        part = dict(shard.part)
        tel_ids = sorted({int(cell[0]) for cell in shard.cells})
        if not is_hdf5(path) or not has_muon_tables(path):
            choice = self.ring_fit.source.focal_length_choice
            if "tel_id" in part:
                chosen = int(part["first_row"]), int(part["stop_row"])
                blocks = read_images(path, choice, tel_id=tel_ids[0], rows=chosen)
            else:
                blocks = read_images(path, choice)
            wanted = (images for images in blocks if images.camera.tel_id in tel_ids)
            return RingImages(tuple(wanted))
        rings = read_rings(
            path, self.columns, tel_ids, (int(part.get("part", 0)), int(part.get("of", 1)))
        )
        for name, unit in NEEDED_UNITS.items():
            if rings.units.get(name, unit) != unit:
                raise CorruptedInput(f"{path}: {name} is in {rings.units[name]}, not in {unit}")
        keys = (rings.columns[name] for name in ("obs_id", "event_id", "tel_id"))
        return RingTable(rings.columns, rings.units, read_times(path, *keys))

    def reduce(self, shard: Shard, data: RingTable | RingImages) -> Reduced:
        """Select rings and summarise them."""
        if isinstance(data, RingImages):
            data, flow = fit_images(data, self.ring_fit)
        else:
            flow = {"images": len(data.time_ns)}
        rows, index, more_flow, notes = select_rings(data, self.section.criteria, self.bins)
        keys = np.stack([rows["obs_id"] * _TEL_IDS + rows["tel_id"], rows["event_id"]], axis=1)
        first = ChunkKeys if self.by_number else RingSummary
        found, galleries = cells_of(rows), {}
        if data.images:
            chosen = {cell: index[place] for cell, place in places_of(rows).items()}
            galleries = galleries_of(data.images, data.columns, chosen, self.ring_fit, self.bins)
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
        data: Rows | RingTable | RingImages,
        given: Mapping[Cell, CellState],
    ) -> Reduced:
        """Summarise the rings within the bounds so far."""
        del shard
        if isinstance(data, RingTable | RingImages):
            raise TypeError("the first stage keeps the rings of every shard")
        found = cells_of(data)
        return Reduced(
            {
                cell: self.summarise(stage, found[cell], state)
                for cell, state in given.items()
                if cell in found
            }
        )

    def name_event(self, group: int, identifier: int) -> str:
        """Describe which ring a key of `reduce` means."""
        obs_id, tel_id = divmod(group, _TEL_IDS)
        return f"telescope {tel_id} in event {identifier} of observation {obs_id}"

    def summarise(self, stage: int, rings: Rings, given: CellState) -> Summary:
        """Summarise the rings of a cell in a later stage."""
        raise NotImplementedError

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

    def metadata(self) -> dict[str, Any]:
        """Return the attributes of all tables."""
        found: dict[str, Any] = {"obs_ids": obs_id_array(self.obs_ids)}
        if self.fits_rings:
            found["compatibility"] = "ctapipe" if self.ring_fit.of_ctapipe else "none"
            found["fit_circle"] = self.ring_fit.fit_circle
        if self.bins is not None:
            found["time_bin_ns"] = self.bins.width_ns
            found["epoch_tai_ns"] = self.bins.epoch_ns
        return found

    def pictures(self, states: Mapping[Cell, CellState]) -> list[Picture]:
        """Pick images for the report, of every telescope in turn."""
        return pictures({cell: state.gallery for cell, state in states.items()})

    def outputs(self, result: Mapping[Cell, CellState]) -> Sequence[Output]:
        """Return the monitoring tables."""
        text = f"{self.description} of telescopes from muon rings"
        return [Tables(self.tables(result), CtaReference(text, "DL1", self.process_type))]


def two_mirrors_note(telescopes: Sequence[Telescope]) -> str:
    """Name the telescopes that have two mirrors; empty for none."""
    dual = [str(tel_id) for tel_id, _, n_mirrors in telescopes if n_mirrors != 1]
    if not dual:
        return ""
    who = f"telescope {dual[0]} has" if len(dual) == 1 else f"telescopes {', '.join(dual)} have"
    flag = Flag.TWO_MIRRORS.letter
    return f"{who} two mirrors: there is no ring model for that, so no value (flag {flag})"
