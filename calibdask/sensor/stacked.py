"""Stacks of frames as a calibration of the engine: frames in, tiles to fit, maps out.

Frames are read once, as they lie in the files, while merges and fits work on a tile of all stacks
each, in parallel and in bounded memory. A calibration derives from `StackCalibration` and says what
it makes of one tile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.engine.protocol import (
    Arrays,
    Cell,
    Maps,
    Output,
    Reduced,
    Rows,
    Shard,
    State,
    Summary,
)
from calibdask.flags import PixelFlag
from calibdask.io.maps import MapLayout, ProductMaps, create_maps, read_product, write_rows
from calibdask.sensor.calibration import BATCH, FromFrames, cell_of, tile_of
from calibdask.sensor.clipping import stack_bounds
from calibdask.sensor.levels import pile_up, step_of
from calibdask.sensor.pixels import saturation_dn
from calibdask.sensor.stream import FrameStream
from calibdask.sensor.summary import Bounds, StackSummary, Tile, summarise
from calibdask.sensor.tiles import FACT, FrameSum, SensorFacts, SideArray, TileFit, TileStacks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.sensor.tiles import Facts

__all__ = ["StackCalibration"]

_LEVELS = ("sensor levels",)  # facts of a tile: saturation (0 for none) and step


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
            batch=BATCH,
        )
        n_read = sum(len(one.frames.frame_id) for one in summaries[self.tiles[0]].stacks.values())
        return Reduced(
            {cell_of(tile): one for tile, one in summaries.items()},
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
            state = given[cell_of(tile)]
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
        """Return what the frames show about the converter, where it is not what is stated."""
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
        top, bottom = tile_of(cell)
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
        dark = ~self._sensor.lit(*tile_of(cell))
        border = PixelFlag.BORDER.bit
        return {
            name: np.where(dark, border, one) if name.endswith("mask") and dark.any() else one
            for name, one in self.finish_tile(cell, maps, result).items()
        }

    def write_maps(self, path: Path, cell: Cell, state: TileFit, *, result: Any) -> None:
        """Write the maps of one tile: its rows are whole chunks."""
        for name, values in self.finished(cell, state.maps, result).items():
            write_rows(path, name, tile_of(cell)[0], values)

    def finish_maps(self, path: Path, *, result: Any) -> None:
        """Let the calibration write what else it has."""
        self.export(path.parent, read_product(path), result)
