"""Stacks of frames as a calibration of the engine: frames in, tiles to fit, maps out.

A shard is a batch of frames of one stack, or of several small ones; its cells are tiles, bands of
the sensor at full width. So frames are read once, as they lie in the files, while merges and fits
work on a tile of all stacks each, in parallel and in bounded memory. A calibration derives from
`StackCalibration` and says what it makes of one tile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.config import JobSection
from calibdask.engine.protocol import (
    Arrays,
    Calibration,
    Cell,
    InputRef,
    Maps,
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
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, TransientError, WrongKind
from calibdask.flags import PixelFlag
from calibdask.io.frames import (
    FRAME_PATTERNS,
    FrameInfo,
    inspect_frame,
    libraries_of,
    read_frame,
    read_frames,
)
from calibdask.io.maps import TABLES, MapLayout, ProductMaps, create_maps, read_product, write_rows
from calibdask.io.metadata import Description
from calibdask.io.spectacle import camera_file_of
from calibdask.sensor.clipping import stack_bounds
from calibdask.sensor.config import Frames, ProductField, Stacks
from calibdask.sensor.isotable import READ
from calibdask.sensor.kernel import check_frame_count
from calibdask.sensor.levels import pile_up, step_of
from calibdask.sensor.metadata import (
    KINDS,
    Conflict,
    StackKey,
    conflict_warnings,
    describe_frame,
    misfits,
    stack_keys,
    temperature_warnings,
    unused_rows,
)
from calibdask.sensor.pixels import saturation_dn
from calibdask.sensor.settings import differences, nearest, settings_of
from calibdask.sensor.summary import Bounds, StackSummary, Tile, summarise, tiles_of
from calibdask.sensor.tiles import FACT, FrameSum, SensorFacts, SideArray, TileFit, TileStacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.config import Campaign, Configuration
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import Facts

__all__ = ["Frame", "FrameStream", "StackCalibration", "Surveyed", "frames_of", "sensor_facts"]

_PIXEL_BYTES = {True: 18, False: 36}  # of a summary: exact sums, or moments of floats
_SMALLEST_RATIO = 4  # bytes read for each byte of summary, where there are frames enough
_LEVELS = ("sensor levels",)  # facts of a tile: saturation (0 for none) and step
_PRODUCTS = ("bias", "readnoise", "iso", "dark", "flat", "gain", "defects")  # options that name one
_BATCH = 4  # frames in memory while they are folded: the sums are read and written less often


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a look at a file's metadata gave, and where its sources contradict each other."""

    info: FrameInfo
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the plan.

    Attributes
    ----------
    source : InputRef
        Its file.
    info : FrameInfo
        What is known of the file's frames.
    index : int
        Its place in the file.
    """

    source: InputRef
    info: FrameInfo
    index: int

    @property
    def name(self) -> int:
        """64 bits that stand for its content and place: names of files play no part."""
        text = f"{self.source.identity}#{self.index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def frames_of(
    surveys: Sequence[Survey], frames: Frames | None = None
) -> dict[StackKey, list[Frame]]:
    """Put the frames of all files into stacks, in order of time and path.

    Parameters
    ----------
    surveys : sequence of Survey
        Their facts are `Surveyed`.
    frames : Frames, optional
        As for `stack_keys`.
    """
    stacks: dict[StackKey, list[Survey]] = {}
    keys = stack_keys([survey.facts.info for survey in surveys], frames)
    for survey, key in zip(surveys, keys, strict=True):
        stacks.setdefault(key, []).append(survey)
    return {
        key: [
            Frame(one.source, one.facts.info, index)
            for one in sorted(members, key=_time_and_path)
            for index in range(one.facts.info.n_frames)
        ]
        for key, members in sorted(stacks.items())
    }


def _time_and_path(survey: Survey) -> tuple[str, str]:
    info: FrameInfo = survey.facts.info
    return info.time, info.path


def sensor_facts(infos: Sequence[FrameInfo], saturated_from: int | None = None) -> SensorFacts:
    """Tell what frames that go together have in common.

    Parameters
    ----------
    infos : sequence of FrameInfo
        At least one; of one sensor.
    saturated_from : int, optional
        Where a value counts as saturated, if it is not what the files state.
    """
    levels = [one.white_level for one in infos if one.white_level is not None]
    times = sorted(one.time for one in infos if one.time)
    first = infos[0]
    return SensorFacts(
        camera=next((one.camera for one in infos if one.camera), ""),
        shape=first.shape,
        pattern=first.pattern,
        black_level=next((one.black_level for one in infos if one.black_level), ()),
        saturation_dn=min(levels, default=None) if saturated_from is None else saturated_from,
        bit_depth=next((one.bit_depth for one in infos if one.bit_depth is not None), None),
        serial_number=next((one.serial_number for one in infos if one.serial_number), ""),
        binning=next((one.binning for one in infos if one.binning), ()),
        window=next((one.window for one in infos if one.window), ()),
        unit=next((one.unit for one in infos if one.unit), ""),
        first=times[0] if times else "",
        last=times[-1] if times else "",
        lit_areas=next((one.lit_areas for one in infos if one.lit_areas), ()),
    )


class FrameStream:
    """The frames of a shard, read one after the other while they are folded.

    A frame that cannot be read, or that holds no number at all, is left out and kept in `lost`: the
    others are good. Of single values that are no numbers `odd` tells; they enter no sum.
    """

    def __init__(self, frames: Sequence[tuple[str, Frame]]) -> None:
        self.frames = frames
        self.lost: list[tuple[str, CalibdaskError]] = []
        self.odd: list[str] = []
        self.n_read = 0
        self._memory: NDArray[Any] | None = None  # of the last frame

    def __iter__(self) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Return label of the stack, name and values of each frame; the next overwrites them.

        Raises
        ------
        TransientError
            The file system does not answer.
        CalibdaskError
            None of the frames can be read: the error of the first.
        """
        for (label, path), members in groupby(
            self.frames, key=lambda one: (one[0], one[1].source.path)
        ):
            yield from self._read(label, path, [frame for _, frame in members])
        if self.lost and not self.n_read:
            raise self.lost[0][1]

    def _read(
        self, label: str, path: str, frames: Sequence[Frame]
    ) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Read frames that lie side by side in one file."""
        done = 0
        try:
            for frame, values in zip(frames, _values(path, frames, self._memory), strict=True):
                _check_values(frame, values)
                self._memory = values if values.flags.writeable else None
                done += 1
                if values.dtype.kind == "f" and not self._has_numbers(frame, values):
                    continue
                self.n_read += 1
                yield label, frame.name, values
        except TransientError:
            raise
        except CalibdaskError as error:
            lost = len(frames) - done
            if lost > 1:
                error = type(error)(
                    f"{error}; {lost} frames from number {frames[done].index} on are lost"
                )
            self.lost.append((path, error))

    def _has_numbers(self, frame: Frame, values: NDArray[Any]) -> bool:
        """Tell what is no number in a frame; a frame without any is lost."""
        n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        where = f"{frame.info.path}: frame {frame.index}"
        if n_bad == values.size:
            error = CorruptedInput(f"{where} holds no number: all its values are NaN or infinite")
            self.lost.append((frame.info.path, error))
        elif n_bad:
            self.odd.append(
                f"{where}: {n_bad} of {values.size} values are NaN or infinite and are left out"
            )
        return n_bad < values.size


def _values(
    path: str, frames: Sequence[Frame], memory: NDArray[Any] | None = None
) -> Iterator[NDArray[Any]]:
    """Read frames that lie side by side; each may overwrite the one before if there is `memory`."""
    first = frames[0]
    if first.info.n_frames == 1:
        yield read_frame(path, 0, first.info.hdu, memory)
    else:
        yield from read_frames(path, first.index, frames[-1].index + 1, first.info.hdu, memory)


def _check_values(frame: Frame, values: NDArray[Any]) -> None:
    """Refuse values that are not what the file's metadata promised."""
    if values.shape != frame.info.shape or values.dtype != np.dtype(frame.info.dtype):
        raise CorruptedInput(
            f"{frame.info.path}: frame {frame.index} is {values.shape} {values.dtype}, but its"
            f" metadata say {frame.info.shape} {frame.info.dtype}"
        )


class _Product(Mapping[str, "NDArray[Any]"]):
    """Some rows of another calibration's maps, each read when it is asked for."""

    def __init__(self, maps: ProductMaps, first: int, stop: int) -> None:
        self._maps, self._first, self._stop = maps, first, stop
        self._names = [name for name, one in maps.layouts.items() if one.dims == ("y", "x")]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._maps:
            raise KeyError(name)
        return self._maps.rows(name, self._first, self._stop)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
        (frame,) = _values(info.path, [Frame(survey.source, info, 0)])
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
        return tuple(_cell_of(tile) for tile in self.tiles)

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
            peak_bytes=(_BATCH + 3) * frame_bytes + held + clipping,
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
        """Tell what is odd about the frames."""
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


@dataclass(frozen=True)
class StackCalibration(FromFrames[FrameStream, TileFit, Any]):
    """Base of what is calibrated from stacks of frames: sums by tile, fits by tile, maps."""

    summary: ClassVar[type[Summary]] = StackSummary
    state: ClassVar[type[State]] = TileFit
    combines: ClassVar[str] = FACT

    # -- what a calibration says ------------------------------------------------------------------

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Fit one tile: maps, and small numbers to be joined. Pure."""
        raise NotImplementedError

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Join the small numbers of all tiles, from the first row on, into the result."""
        return facts

    def finish_tile(self, cell: Cell, maps: Arrays, result: Any) -> Arrays:
        """Change the maps of one tile with what is known of all, before they are written."""
        del cell, result
        return maps

    def describe_map(self, name: str) -> Mapping[str, Any]:
        """Return the attributes of a map: units, long_name, ..."""
        del name
        return {}

    def describe_groups(self, result: Any) -> Mapping[str, Mapping[str, Any]]:
        """Return the attributes of groups of maps."""
        del result
        return {}

    def more_arrays(self, result: Any) -> Mapping[str, SideArray]:
        """Return small arrays to be written beside the maps."""
        del result
        return {}

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write further files into the product's directory."""

    # -- map --------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> FrameStream:
        """Return the frames of a shard: a batch of them may be larger than memory should hold."""
        return self.frames_of(shard)

    def reduce(self, shard: Shard, data: FrameStream) -> Reduced:
        """Sum the frames up, tile by tile."""
        del shard
        return self._summarise(0, data, None)

    def refine(
        self, stage: int, shard: Shard, data: Rows | FrameStream, given: Mapping[Cell, TileFit]
    ) -> Reduced:
        """Sum the frames up again without outliers."""
        del shard
        if not isinstance(data, FrameStream):
            raise TypeError("the first stage keeps no frames")
        bounds = self._bounds({label for label, _ in data.frames}, given)
        return self._summarise(stage, data, bounds)

    def _summarise(
        self, stage: int, data: FrameStream, bounds: Mapping[str, Bounds] | None
    ) -> Reduced:
        last = stage == self.stacks.clip_iterations
        saturation = self._sensor.saturation_dn
        summaries = summarise(
            data,
            self.tiles,
            saturation=np.inf if saturation is None else saturation,
            bounds=bounds,
            lit_areas=self._sensor.lit_areas,
            batch=_BATCH,
        )
        n_read = sum(len(one.frames.frame_id) for one in summaries[self.tiles[0]].stacks.values())
        return Reduced(
            {_cell_of(tile): one for tile, one in summaries.items()},
            {"frames": len(data.frames), "frames read": n_read},
            warnings=(*data.odd, *(self._much_clipped(summaries) if last else ())),
            lost=tuple(data.lost),
        )

    def _bounds(self, labels: set[str], given: Mapping[Cell, TileFit]) -> dict[str, Bounds]:
        """Join the bounds of all tiles for some stacks; one tile's state in memory at a time."""
        shape = self._sensor.shape
        whole: dict[str, Bounds] = {}
        for tile in self.tiles:
            top, bottom = tile
            state = given[_cell_of(tile)]
            for label in labels & state.bounds.keys():
                mine = state.bounds[label]
                if label not in whole:
                    kind = mine.low.dtype
                    whole[label] = Bounds(np.empty(shape, kind), np.empty(shape, kind))
                whole[label].low[top:bottom] = mine.low
                whole[label].high[top:bottom] = mine.high
        return whole

    def _much_clipped(self, summaries: Mapping[Tile, StackSummary]) -> Iterator[str]:
        """Name frames of which many pixels are outliers: clouds, a lamp, a hand."""
        n_pixels = self._sensor.n_lit
        clipped: Counter[int] = Counter()
        for summary in summaries.values():
            for stack in summary.stacks.values():
                frames = zip(stack.frames.frame_id, stack.frames.frame_clipped, strict=True)
                clipped.update({int(name): int(count) for name, count in frames})
        for name, count in sorted(
            clipped.items(), key=lambda one: self._frames_by_name[one[0]][1].info.path
        ):
            if count > self.stacks.max_clipped * n_pixels:
                frame = self._frames_by_name[name][1]
                yield (
                    f"{frame.info.path}: {100 * count / n_pixels:.1f} % of the pixels of frame"
                    f" {frame.index} are outliers of its stack and were left out: look at it"
                )

    # -- fit --------------------------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: StackSummary, given: TileFit | None) -> TileFit:
        """Return bounds for another pass, or fit the tile."""
        del given
        sigma = self.stacks.clip_sigma
        if sigma is not None and stage < self.stacks.clip_iterations:
            step = self._levels(total).step_dn
            bounds = {
                label: stack_bounds(stack, sigma, step) for label, stack in total.stacks.items()
            }
            return TileFit(bounds=bounds)
        tile = self.tile(cell, total)
        fitted = self.fit_tile(tile)
        levels = np.array([tile.sensor.saturation_dn or 0, tile.sensor.step_dn])
        return replace(fitted, facts={**fitted.facts, _LEVELS: levels})

    def _levels(self, total: StackSummary) -> SensorFacts:
        """Complete what is stated about the sensor by what the frames show."""
        sensor = self._sensor
        facts = [stack.frames.facts for stack in total.stacks.values()]
        step = step_of(facts)
        top = None
        if self.stacks.saturation_dn is None:
            top = pile_up(facts, saturation_dn(sensor), sensor.n_lit, step)
        return replace(
            sensor, step_dn=step, saturation_dn=sensor.saturation_dn if top is None else top
        )

    def notices(self, states: Mapping[Cell, TileFit], result: Any) -> Sequence[str]:
        """Tell what the frames show about the converter, where it is not what is stated."""
        del result
        sensor = self._sensor
        found, step = self._found(states)
        told = []
        if found is not None and found != sensor.saturation_dn:
            stated = saturation_dn(sensor)
            told.append(
                f"pixels pile up at {found} DN, "
                + (
                    f"below the stated white level of {stated}"
                    if stated is not None
                    else "and no file states a white level"
                )
                + f": {found} counts as saturation (Stacks.saturation_dn says otherwise)"
            )
        if step > 1:
            told.append(
                f"all values are multiples of {step}: the data are left-justified, and rounding"
                f" counts as {step}^2/12 DN^2"
            )
        return told

    def _found(self, states: Mapping[Cell, TileFit]) -> tuple[int | None, int]:
        """Return saturation and step that the fits went by."""
        known = [cell for cell in self.cells if cell in states]
        top, step = states[known[0]].facts[_LEVELS].tolist() if known else (0, 1)
        return int(top) or None, int(step)

    def tile(self, cell: Cell, total: StackSummary) -> TileStacks:
        """Put together what a fit of one tile gets."""
        sensor = self._levels(total)
        top, bottom = _tile_of(cell)
        stacks, frames = {}, {}
        for key in self.keys:
            if key.label not in total.stacks:
                continue
            stack = stacks[key] = total.stacks[key.label]
            rows = zip(
                stack.frames.frame_id.tolist(),
                stack.frames.frame_sum.tolist(),
                stack.frames.frame_clipped.tolist(),
                strict=True,
            )
            placed = sorted((*self._frames_by_name[name], name, sums) for name, *sums in rows)
            frames[key] = tuple(
                FrameSum(name, frame.info.path, frame.index, frame.info.time, *sums)
                for _, frame, name, sums in placed
            )
        index = next(one.info for _, members in self.plan_frames for one in members).channel_index
        reps = (-(-sensor.shape[0] // 2), -(-sensor.shape[1] // 2))
        channel = np.tile(index, reps)[top:bottom, : sensor.shape[1]]
        given = {name: _Product(read_product(path), top, bottom) for name, path in self.products}
        return TileStacks(top, bottom, channel, sensor, stacks, frames, given)

    def combine(self, states: Mapping[Cell, TileFit]) -> Any:
        """Join the small numbers of the tiles."""
        return self.join({cell: states[cell].facts for cell in self.cells if cell in states})

    # -- maps -------------------------------------------------------------------------------------

    def outputs(self, result: Any) -> Sequence[Output]:
        """Return tables and maps."""
        maps = Maps(
            partial(self.create_maps, result=result),
            partial(self.write_maps, result=result),
            partial(self.finish_maps, result=result),
        )
        return [self.described(result), maps]

    def create_maps(self, path: Path, states: Mapping[Cell, TileFit], *, result: Any) -> None:
        """Make the maps that the first tile has, at the sensor's size."""
        cell = self.cells[0]
        first = states[cell]
        maps = self.finished(cell, first.maps, result)
        layouts = {
            name: MapLayout(
                self._sensor.shape,
                np.asarray(values).dtype.str,
                self.stacks.tile_rows,
                attributes=self.describe_map(name),
            )
            for name, values in sorted(maps.items())
        }
        more = self.more_arrays(result)
        layouts |= {
            name: MapLayout(
                one.values.shape, one.values.dtype.str, max(1, len(one.values)), one.dims,
                one.attributes,
            )
            for name, one in more.items()
        }  # fmt: skip
        sensor = self._sensor
        about = {
            "job": self.name,
            "version": self.version,
            "camera": sensor.camera,
            "pattern": sensor.pattern,
            "saturation_dn": self._found({cell: first})[0],
            "serial_number": sensor.serial_number,
            "binning": list(sensor.binning),
            "window": list(sensor.window),
            "unit": sensor.unit,
            "filters": sorted(
                {one.info.filter for _, frames in self.plan_frames for one in frames} - {""}
            ),
            "lit_areas": [list(area) for area in sensor.lit_areas],
            "first_frame": sensor.first,
            "last_frame": sensor.last,
        }
        create_maps(path, layouts, {"": about, **self.describe_groups(result)})
        for name, one in more.items():
            write_rows(path, name, 0, one.values)

    def finished(self, cell: Cell, maps: Arrays, result: Any) -> Arrays:
        """Return the maps of one tile as they are written: masks say where no light falls."""
        dark = ~self._sensor.lit(*_tile_of(cell))
        border = PixelFlag.BORDER.bit
        return {
            name: np.where(dark, border, one) if name.endswith("mask") and dark.any() else one
            for name, one in self.finish_tile(cell, maps, result).items()
        }

    def write_maps(self, path: Path, cell: Cell, state: TileFit, *, result: Any) -> None:
        """Write the maps of one tile: its rows are whole chunks."""
        for name, values in self.finished(cell, state.maps, result).items():
            write_rows(path, name, _tile_of(cell)[0], values)

    def finish_maps(self, path: Path, *, result: Any) -> None:
        """Let the calibration write what else it has."""
        self.export(path.parent, read_product(path), result)


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


def _cell_of(tile: Tile) -> Cell:
    return ("rows", *tile)


def _tile_of(cell: Cell) -> Tile:
    _, top, bottom = cell
    return int(top), int(bottom)


def _runs(frames: Sequence[Frame], size: int) -> list[list[Frame]]:
    """Cut a stack into runs of `size`; a short rest goes with the run before it."""
    starts = list(range(0, len(frames), size))
    if len(starts) > 1 and len(frames) - starts[-1] < size / 2:
        starts.pop()
    stops = [*starts[1:], len(frames)]
    return [list(frames[start:stop]) for start, stop in zip(starts, stops, strict=True)]
