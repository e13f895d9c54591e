"""Calibrations from frames: which files are frames, their stacks and shards, other jobs' products.

A shard is a batch of frames of one stack, or of several small ones; its cells are tiles, bands of
the sensor at full width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.config import JobSection
from calibdask.engine.protocol import (
    Calibration,
    Cell,
    InputRef,
    Piece,
    Shard,
    State,
    Survey,
    Tables,
)
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, WrongKind
from calibdask.io.frames import FRAME_PATTERNS, inspect_frame, libraries_of
from calibdask.io.maps import TABLES, ProductMaps, read_product
from calibdask.io.metadata import Description
from calibdask.io.spectacle import camera_file_of
from calibdask.sensor.config import Frames, ProductField, Stacks
from calibdask.sensor.isotable import READ
from calibdask.sensor.kernel import check_frame_count
from calibdask.sensor.metadata import (
    KINDS,
    StackKey,
    conflict_warnings,
    describe_frame,
    misfits,
    stack_keys,
    temperature_warnings,
    unused_rows,
)
from calibdask.sensor.settings import differences, nearest, settings_of
from calibdask.sensor.stream import Frame, FrameStream, Surveyed, frames_of, sensor_facts, values_of
from calibdask.sensor.summary import Tile, tiles_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.config import Campaign, Configuration
    from calibdask.io.frame_info import FrameInfo
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import SensorFacts

__all__ = ["BATCH", "FromFrames", "cell_of", "tile_of"]

_PIXEL_BYTES = {True: 18, False: 36}  # of a summary: exact sums, or moments of floats


_SMALLEST_RATIO = 4  # bytes read for each byte of summary, where there are frames enough


_PRODUCTS = ("bias", "readnoise", "iso", "dark", "flat", "gain", "defects")  # options that name one


BATCH = 4  # frames in memory while they are folded: the sums are read and written less often


@dataclass(frozen=True)
class FromFrames[Data, Fit: State, Result](Calibration[Data, Fit, Result]):
    """Base of what is calibrated from frames: survey, products, shards.

    Attributes
    ----------
    options : JobSection
        The section of the job.
    frames : Frames
        What the configuration says about frames.
    stacks : Stacks
        How frames are summed.
    shard_bytes : int
        How much of them a task reads.
    products : tuple of (name, path)
        Outputs of other calibrations that a fit needs; it finds their maps under these names.
    product_digests : tuple of (name, digest)
        Found while planning.
    product_tables : mapping of name to tables
        Found while planning: columns by table and product.
    sensor : SensorFacts, optional
        Found while planning.
    plan_frames : tuple of (StackKey, tuple of Frame)
        Found while planning.
    notes : tuple of str
        What is odd.
    """

    title: ClassVar[str]
    """What the product is."""

    version: ClassVar[int] = 3
    patterns: ClassVar[tuple[str, ...]] = FRAME_PATTERNS
    writes_directory: ClassVar[bool] = True
    rejects_copies: ClassVar[bool] = True
    preload: ClassVar[tuple[str, ...]] = ("calibdask.sensor.kernel",)

    def libraries(self, paths: Sequence[Path]) -> Iterable[str]:
        """Name those of the formats."""
        return libraries_of(paths)

    state_ratio: ClassVar[float] = 1.0
    """Bytes of what is fitted over those of the sums, as measured: for the plan's estimate."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Which kinds of frames it takes; all if empty."""

    any_kind: ClassVar[bool] = False
    """Whether it does not matter what frames are taken for."""

    own_kind: ClassVar[str] = ""
    """What frames are taken for that state no kind; they are of no kind if empty."""

    single: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Attributes of which all frames of a kind have one value, by kind (see `misfits`)."""

    options: JobSection = field(default_factory=JobSection)
    frames: Frames = field(default_factory=Frames)
    stacks: Stacks = field(default_factory=Stacks)
    shard_bytes: int = 256 << 20
    products: tuple[tuple[str, str], ...] = ()
    product_digests: tuple[tuple[str, str], ...] = ()
    product_tables: Mapping[str, Mapping[str, Mapping[str, NDArray[Any]]]] = field(
        default_factory=dict, compare=False
    )
    sensor: SensorFacts | None = None
    plan_frames: tuple[tuple[StackKey, tuple[Frame, ...]], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        options = document.first(cls.main())
        given = ((what, getattr(options, what, None)) for what in _PRODUCTS)
        return cls(
            options=options,
            frames=document.get("Frames", Frames),
            stacks=document.get("Stacks", Stacks),
            shard_bytes=campaign.shard_bytes,
            # Workers may run elsewhere, so that a relative path would lead them astray.
            products=tuple((what, str(Path(path).absolute())) for what, path in given if path),
        )

    # -- planning ---------------------------------------------------------------------------------

    def survey(self, source: InputRef) -> Survey:
        """Look at a file's metadata.

        Raises
        ------
        WrongKind
            It holds no frames, or frames of another kind.
        CorruptedInput
            It is broken.
        """
        found = inspect_frame(source.path, self.frames.hdu)
        if found.may_be_colours and self.frames.planes == "auto":
            raise WrongKind(
                f"{source.path}: is a cube of three planes, which may be the colours of a picture:"
                " if they are frames, say so by Frames.planes: frames"
            )
        info, conflicts = describe_frame(found, self.frames)
        if not info.kind:
            info = replace(info, kind=self.own_kind)
        if info.kind and info.kind not in KINDS and not self.any_kind:
            raise WrongKind(
                f"{source.path}: states the type {info.kind!r}, which is not known: if it is one of"
                f" {', '.join(self.kinds or KINDS)}, say so by kind in Frames.table"
            )
        if self.kinds and info.kind and info.kind not in self.kinds:
            raise WrongKind(
                f"{source.path}: is a frame of kind {info.kind}, but {self.name} takes"
                f" {', '.join(self.kinds)}"
            )
        return Survey(source, facts=Surveyed(info, conflicts))

    def repeats(self, survey: Survey) -> bool:
        """Tell that two frames of one value, as saturated ones are, may well be two frames."""
        info: FrameInfo = survey.facts.info
        if info.n_frames > 1:
            return False
        (frame,) = values_of(info.path, [Frame(survey.source, info, 0)])
        return bool(frame.min() == frame.max())

    def misfits(self, surveys: Sequence[Survey]) -> Mapping[int, CalibdaskError]:
        """Name the frames that do not go with the others."""
        infos = [survey.facts.info for survey in surveys]
        conflicts = [survey.facts.conflicts for survey in surveys]
        found: dict[int, CalibdaskError] = dict(_compressed_twins(infos))
        kept = [place for place in range(len(infos)) if place not in found]
        bad = misfits(
            [infos[place] for place in kept],
            self.frames,
            [conflicts[place] for place in kept],
            self.single,
        )
        found |= {kept[place]: error for place, error in bad.items()}
        types: dict[StackKey, Counter[str]] = {}
        keys = stack_keys(infos, self.frames)
        for place, (key, info) in enumerate(zip(keys, infos, strict=True)):
            if place not in found:
                types.setdefault(key, Counter())[info.dtype] += info.n_frames
        for place, (key, info) in enumerate(zip(keys, infos, strict=True)):
            if place in found:
                continue
            usual = min(types[key].items(), key=lambda one: (-one[1], one[0]))[0]
            if info.dtype != usual:
                found[place] = CorruptedInput(
                    f"{info.path}: holds {info.dtype}, but most frames of its stack ({key.label})"
                    f" hold {usual}: give it another level, or leave it out"
                )
        return found

    def also_read(self) -> Sequence[str]:
        """Name the products of other jobs."""
        return [path for _, path in self.products]

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Put the frames into stacks and look at the products that the fit needs.

        Raises
        ------
        ConfigError
            There are too many frames in a stack, or a product is of another sensor.
        MissingInput
            A product is not there.
        """
        infos = [survey.facts.info for survey in surveys]
        sensor = sensor_facts(infos, self.stacks.saturation_dn)
        stacks = frames_of(surveys, self.frames)
        labels = Counter(key.label for key in stacks)
        for key, frames in stacks.items():
            if labels[key.label] > 1:
                raise AssertionError(f"two stacks are called {key.label}")
            try:
                check_frame_count(len(frames))
            except OverflowError as error:
                raise ConfigError(f"stack {key.label}: {error}") from error
        planned = replace(
            self,
            sensor=sensor,
            plan_frames=tuple((key, tuple(frames)) for key, frames in stacks.items()),
        )
        return replace(
            planned,
            product_digests=tuple(self._look_at_products(sensor)),
            product_tables=self._read_tables(),
            notes=(
                *self.notes,
                *planned.check_products(),
                *temperature_warnings(
                    infos, stack_keys(infos, self.frames), self.frames.temperature_step_c
                ),
                *_other_unit(sensor),
                *conflict_warnings(one for survey in surveys for one in survey.facts.conflicts),
                *unused_rows(self.frames, [info.path for info in infos]),
                *self._without_camera_file(infos[0].path),
            ),
        )

    def _without_camera_file(self, path: str) -> Iterator[str]:
        """Say it where a product of SPECTACLE is asked for, which is named after the camera."""
        if getattr(self.options, "spectacle", False) and camera_file_of(Path(path)) is None:
            yield (
                f"{path}: lies in no folder 'images' beside a camera file (*data.json), by which"
                " SPECTACLE knows a camera; its products get the name that the frames state."
                " 'calibdask generate-metadata' writes that file"
            )

    def _look_at_products(self, sensor: SensorFacts) -> Iterator[tuple[str, str]]:
        from calibdask.io.hdf5 import digest_hdf5
        from calibdask.io.maps import digest_maps

        for name, path in self.products:
            maps = read_product(path)
            for layout in maps.layouts.values():
                if layout.dims == ("y", "x") and layout.shape != sensor.shape:
                    raise ConfigError(
                        f"{path}: is of another sensor: its maps have {layout.shape[0]} x"
                        f" {layout.shape[1]} pixels, the frames {sensor.shape[0]} x"
                        f" {sensor.shape[1]}"
                    )
            tables = Path(path) / TABLES
            yield name, digest_maps(maps.path) + (digest_hdf5(tables) if tables.exists() else "")

    def check_products(self) -> Iterator[str]:
        """Compare other jobs' products with the frames.

        Yields
        ------
        str
            A difference that the configuration accepts.

        Raises
        ------
        ConfigError
            A product differs from the frames in what they have to have in common.
        """
        for name, path in self.products:
            maps = read_product(path)
            accepted = self.frames.may_differ
            found = self.product_differences(name, maps)
            said = {
                one: f"the {one.removesuffix('_c').replace('_', ' ')} is {_said(mine)} in the"
                f" product and {_said(theirs)} in the frames"
                for one, (mine, theirs) in found.items()
            }
            if refused := [one for one in said if one not in accepted]:
                raise ConfigError(
                    f"{path}: does not go with the frames as their {name}:"
                    f" {'; '.join(said[one] for one in refused)}. Give a product of the same camera"
                    " and settings, or accept the difference by Frames.may_differ:"
                    f" [{', '.join(refused)}]"
                )
            for text in said.values():
                yield f"{path}: {text}, which Frames.may_differ accepts"

    def product_differences(self, name: str, maps: ProductMaps) -> dict[str, tuple[Any, Any]]:
        """Find what differs between a product and the frames, where both are known.

        Parameters
        ----------
        name : str
            Under which the product is configured.
        maps : ProductMaps
            The product.

        Returns
        -------
        dict of str to (product's value, frames' value)
            By the names of `Frames.may_differ`.
        """
        sensor = self._sensor
        theirs: dict[str, Any] = {one: getattr(sensor, one) for one in SENSOR_FIELDS}
        mine: dict[str, Any] = {one: _untyped(maps.about("").get(one)) for one in SENSOR_FIELDS}
        found = differences(_known(mine), _known(theirs), list(SENSOR_FIELDS))
        available = settings_of(maps.layouts, _GROUPS.get(name, ""))
        bias_frames = {key.setting for key in self.keys if key.kind == "bias_readnoise"}
        for setting in dict.fromkeys(key.setting for key in self.keys):
            if name == "bias" and setting in bias_frames:
                continue  # there is a bias of its own
            _, differing = nearest(setting, available, SETTING_FIELDS.get(name, ()))
            found = {**differing, **found}
        return found

    def _read_tables(self) -> dict[str, dict[str, dict[str, NDArray[Any]]]]:
        from calibdask.io.hdf5 import open_hdf5
        from calibdask.io.tables import read_columns

        found: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
        for name, path in self.products:
            if (Path(path) / TABLES).exists():
                with open_hdf5(Path(path) / TABLES) as file:
                    found[name] = {
                        table.path: read_columns(table, *READ[table.path])
                        for table in file.tables()
                        if table.path in READ
                    }
        return found

    def given_tables(self, product: str) -> Mapping[str, Mapping[str, NDArray[Any]]]:
        """Return the tables of another calibration by path; none where not configured."""
        return self.product_tables.get(product, {})

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles of the sensor."""
        return tuple(tiles_of(self._sensor.shape[0], self.stacks.tile_rows))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The tiles' cells."""
        return tuple(cell_of(tile) for tile in self.tiles)

    @property
    def keys(self) -> tuple[StackKey, ...]:
        """The stacks, in order."""
        return tuple(key for key, _ in self.plan_frames)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What the camera was set to for the stacks, in order."""
        return tuple(sorted({key.setting for key in self.keys}))

    @property
    def _sensor(self) -> SensorFacts:
        if self.sensor is None:
            raise ValueError(f"{self.name} has not been planned")
        return self.sensor

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut the stacks into batches of frames; put small stacks together."""
        del surveys
        open_runs: list[tuple[int, str, list[Frame]]] = []
        n_bytes = summary_bytes = number = 0
        for place, (key, frames) in enumerate(self.plan_frames):
            frame_bytes, held = self._bytes_of(frames[0])
            size = self._frames_per_task(frame_bytes, held)
            for run in _runs(frames, size):
                read = len(run) * frame_bytes
                full = n_bytes + read > size * frame_bytes
                if open_runs and (full or summary_bytes + held > self.shard_bytes):
                    yield self._piece(open_runs, number)
                    open_runs, n_bytes, summary_bytes, number = [], 0, 0, number + 1
                open_runs.append((place, key.label, run))
                n_bytes, summary_bytes = n_bytes + read, summary_bytes + held
        if open_runs:
            yield self._piece(open_runs, number)

    def _bytes_of(self, frame: Frame) -> tuple[int, int]:
        """How large a frame is in memory, and the sums of its stack."""
        n_pixels = frame.info.shape[0] * frame.info.shape[1]
        kind = np.dtype(frame.info.dtype)
        exact = kind in (np.dtype(np.uint8), np.dtype(np.uint16))
        return n_pixels * kind.itemsize, n_pixels * _PIXEL_BYTES[exact]

    def _frames_per_task(self, frame_bytes: int, summary_bytes: int) -> int:
        if self.stacks.frames_per_task is not None:
            return self.stacks.frames_per_task
        least = -(-_SMALLEST_RATIO * summary_bytes // frame_bytes)
        return max(least, self.shard_bytes // frame_bytes)

    def _piece(self, runs: Sequence[tuple[int, str, list[Frame]]], number: int) -> Piece:
        frames = [frame for _, _, run in runs for frame in run]
        sizes = [self._bytes_of(run[0]) for _, _, run in runs]
        frame_bytes = max(size for size, _ in sizes)
        held = sum(summary for _, summary in sizes)
        clipping = 0 if self.stacks.clip_sigma is None else held // 4
        part = [("first", frames[0].index), ("stop", frames[-1].index + 1)]
        return Piece(
            tuple(dict.fromkeys(frame.source for frame in frames)),
            part=(*part, *((label, len(run)) for _, label, run in runs)),
            cells=self.cells,
            order=(runs[0][0], number),
            n_bytes=sum(
                len(run) * size for (_, _, run), (size, _) in zip(runs, sizes, strict=True)
            ),
            peak_bytes=(BATCH + 3) * frame_bytes + held + clipping,
            stored_bytes=held * 10 // 9,  # the bounds of each pixel are stored wider
        )

    def stored_bytes(self, cell: Cell, shards: Sequence[Shard]) -> tuple[int, int]:
        """Estimate the sums of all stacks in a tile, and what is fitted to them."""
        del shards
        frames = [stack[0] for _, stack in self.plan_frames]
        rows = [int(part) for part in cell[1:]]  # ("rows", first, stop)
        share = (rows[1] - rows[0]) / frames[0].info.shape[0] if rows else 1.0
        merged = share * sum(self._bytes_of(frame)[1] for frame in frames) * 10 / 9
        return int(merged), int(merged * self.state_ratio)

    def map_config(self) -> Mapping[str, Any]:
        """Return options, and what is stated about the sensor."""
        stated = None if self.sensor is None else self.sensor.saturation_dn
        lit_areas = () if self.sensor is None else self.sensor.lit_areas
        return {
            **super().map_config(),
            "saturation_dn": stated,
            "lit_areas": [list(area) for area in lit_areas],
        }

    def fit_config(self) -> Mapping[str, Any]:
        """Return options, other products and what is stated about the sensor."""
        sensor = self.sensor
        return {
            **super().fit_config(),
            "products": [list(one) for one in self.product_digests],
            "sensor": [] if sensor is None else [
                list(sensor.shape), sensor.pattern, list(sensor.black_level), sensor.saturation_dn,
                sensor.bit_depth, [list(area) for area in sensor.lit_areas],
            ],
        }  # fmt: skip

    def warnings(self) -> Sequence[str]:
        """Return warnings about the frames."""
        sensor = self._sensor
        if sensor.saturation_dn is None and sensor.bit_depth is None:
            unknown = (
                "no file states where pixels saturate, so that none is left out for it unless"
                " many pile up at the greatest value: set Stacks.saturation_dn"
            )
            return (*self.notes, unknown)
        return self.notes

    # -- map --------------------------------------------------------------------------------------

    def frames_of(self, shard: Shard) -> FrameStream:
        """Return the frames of a shard, to be read one after the other."""
        known = self._infos
        all_frames = [
            Frame(source, known[source.identity], index)
            for source in shard.inputs
            for index in range(known[source.identity].n_frames)
        ]
        first, stop = (int(value) for _, value in shard.part[:2])
        last_file = known[shard.inputs[-1].identity].n_frames
        all_frames = all_frames[first : len(all_frames) - last_file + stop]
        frames: list[tuple[str, Frame]] = []
        place = 0
        for label, count in shard.part[2:]:
            frames += [(label, frame) for frame in all_frames[place : place + int(count)]]
            place += int(count)
        return FrameStream(frames)

    @cached_property
    def _infos(self) -> dict[str, FrameInfo]:
        return {
            frame.source.identity: frame.info for _, frames in self.plan_frames for frame in frames
        }

    @cached_property
    def _frames_by_name(self) -> dict[int, tuple[int, Frame]]:
        """Place in its stack, and frame, by name."""
        return {
            frame.name: (place, frame)
            for _, frames in self.plan_frames
            for place, frame in enumerate(frames)
        }

    # -- products ---------------------------------------------------------------------------------

    def described(self, result: Result) -> Tables:
        """Return the tables with what is known about the sensor."""
        sensor = self._sensor
        about = {
            "SENSOR CAMERA": sensor.camera,
            "SENSOR SERIAL NUMBER": sensor.serial_number,
            "SENSOR PATTERN": sensor.pattern,
            "SENSOR SHAPE": " x ".join(map(str, sensor.shape)),
        }
        known = {name: value for name, value in about.items() if value}
        return Tables(self.tables(result), Description(self.title, known))

    def tables(self, result: Result) -> Mapping[str, QTable]:
        """Return the tables of the product by path."""
        raise NotImplementedError


def _compressed_twins(infos: Sequence[FrameInfo]) -> dict[int, WrongKind]:
    """Find FITS files that are the same frame as one beside them, compressed."""
    plain = {info.path: info for info in infos}
    found = {}
    for place, info in enumerate(infos):
        path = Path(info.path)
        twin = plain.get(str(path.with_suffix("")))
        if path.suffix.lower() in (".fz", ".gz") and twin is not None:
            alike = (twin.shape, twin.time, twin.exposure_s) == (
                info.shape, info.time, info.exposure_s,
            )  # fmt: skip
            if alike:
                found[place] = WrongKind(
                    f"{path}: is the compressed copy of a frame beside it, which is read"
                )
    return found


def _other_unit(sensor: SensorFacts) -> Iterator[str]:
    if sensor.unit not in ("", "DN"):
        yield (
            f"the values of the frames are in {sensor.unit}, as their files say: what is called DN"
            " in the results is in that unit"
        )


SENSOR_FIELDS: tuple[ProductField, ...] = (
    "camera", "serial_number", "pattern", "binning", "window", "unit",
)  # fmt: skip
"""What any product and the frames have in common."""


SETTING_FIELDS: Mapping[str, tuple[ProductField, ...]] = {
    "bias": ("iso", "gain_setting", "offset_setting", "readout_mode"),
    "readnoise": ("iso", "gain_setting", "readout_mode"),
    # ISO speeds are brought together by an ISO normalisation, or missed by who looks for one.
    "iso": ("gain_setting", "readout_mode"),
    "dark": ("gain_setting", "readout_mode"),
    "gain": ("gain_setting", "readout_mode"),
}
"""Of which settings a product has to have maps, by the name under which it is configured."""


_GROUPS = {
    "bias": "bias",
    "readnoise": "readnoise",
    "iso": "iso_normalisation",
    "dark": "dark_current",
    "gain": "gain",
}
"""First part of the names of its maps."""


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in ("", (), None)}


def _untyped(value: Any) -> Any:
    """Return what JSON made a list of as it was."""
    return tuple(value) if isinstance(value, list) else value


def _said(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def cell_of(tile: Tile) -> Cell:
    """Return the cell of a tile."""
    return ("rows", *tile)


def tile_of(cell: Cell) -> Tile:
    """Return the tile of a cell."""
    _, top, bottom = cell
    return int(top), int(bottom)


def _runs(frames: Sequence[Frame], size: int) -> list[list[Frame]]:
    """Cut a stack into runs of `size`; a short rest goes with the run before it."""
    starts = list(range(0, len(frames), size))
    if len(starts) > 1 and len(frames) - starts[-1] < size / 2:
        starts.pop()
    stops = [*starts[1:], len(frames)]
    return [list(frames[start:stop]) for start, stop in zip(starts, stops, strict=True)]
