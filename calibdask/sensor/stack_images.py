"""The job stack-images: mean, variance and extremes of each pixel of each stack."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.overview import StackRecord, overview, overviews
from calibdask.sensor.pixels import saturated_in
from calibdask.sensor.settings import NOT_STATED
from calibdask.sensor.stacked import StackCalibration
from calibdask.sensor.tables import FRAMES, STACKS, build, count_columns
from calibdask.sensor.tiles import SideArray, TileFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.io.maps import ProductMaps
    from calibdask.report import ReportSection
    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["StackImagesJob", "StackRecord", "group_of", "spectacle_stem"]

_MAPS: dict[str, dict[str, Any]] = {
    "mean": {"units": "DN", "long_name": "mean over the frames"},
    "variance": {"units": "DN2", "long_name": "variance over the frames, divided by n - 1"},
    "n": {"units": "1", "long_name": "number of values"},
    "n_saturated": {"units": "1", "long_name": "number of saturated values"},
    "n_clipped": {"units": "1", "long_name": "number of values left out as outliers"},
    "minimum": {"units": "DN", "long_name": "least value"},
    "maximum": {"units": "DN", "long_name": "greatest value"},
}


def group_of(key: StackKey) -> str:
    """Name a stack's group of maps, as ``gain/iso100/t0.5/bright``."""
    parts = [key.kind or "frames"]
    if key.setting.known:
        parts.append(key.setting.name)
    if key.exposure_s >= 0:
        parts.append(f"t{key.exposure_s:.6g}")
    if key.level:
        parts.append(re.sub(r"[^A-Za-z0-9._+-]", "_", key.level))
    if key.photons >= 0:
        parts.append(f"photons{key.photons:.6g}")
    if key.temperature_c != NOT_STATED:
        parts.append(f"{key.temperature_c:g}C")
    return "/".join(parts)


def spectacle_stem(paths: Sequence[str], key: StackKey) -> Path:
    """Return where SPECTACLE keeps the stack of a folder below ``images``: below ``stacks``.

    Frames from elsewhere get the names that their stack has here.
    """
    folders = {Path(path).parent for path in paths}
    if len(folders) == 1:
        parts = folders.pop().parts
        if "images" in parts:
            below = parts[len(parts) - parts[::-1].index("images") :]
            if below:
                return Path(*below)
    return Path(group_of(key))


@dataclass(frozen=True)
class StackImagesJob(StackCalibration):
    """Exact moments of every pixel over the frames of each stack."""

    name: ClassVar[str] = "stack-images"
    title: ClassVar[str] = "Stacks of raw frames"
    state_ratio: ClassVar[float] = 2.5

    sections = config.sections_of(config.StackImages)
    options: config.StackImages = field(default_factory=config.StackImages)

    @cached_property
    def groups(self) -> dict[StackKey, str]:
        """Name of each stack's group of maps; two that would be called the same are numbered.

        One temperature that all dark frames have is in no name.
        """
        names: dict[StackKey, str] = {}
        temperatures = {key.temperature_c for key in self.keys if key.kind == "dark_current"}
        for key in self.keys:
            several = len(temperatures) > 1
            name = group_of(key if several else replace(key, temperature_c=NOT_STATED))
            alike = sum(other == name or other.startswith(f"{name}~") for other in names.values())
            names[key] = f"{name}~{alike + 1}" if alike else name
        return names

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Finalise the sums."""
        maps: dict[str, NDArray[Any]] = {}
        facts: dict[FactKey, NDArray[Any]] = {}
        for key, stack in tile.stacks.items():
            group = self.groups[key]
            mean, variance = stack.moments()
            maps |= {
                f"{group}/mean": mean,
                f"{group}/variance": variance,
                f"{group}/n": stack.n,
                f"{group}/n_saturated": stack.n_saturated,
                f"{group}/minimum": stack.minimum,
                f"{group}/maximum": stack.maximum,
            }
            if self.stacks.clip_sigma is not None:
                maps[f"{group}/n_clipped"] = np.uint16(stack.n_frames) - stack.n
            saturated = saturated_in(stack, tile.sensor) & tile.lit
            mask = np.where(saturated, PixelFlag.SATURATED.bit, np.uint16(0)).astype(np.uint16)
            facts |= overview(f"{group}/mean", tile, mean, mask)
            facts |= overview(f"{group}/variance", tile, variance, mask)
            frames = tile.frames[key]
            facts["total", group] = np.array([one.total for one in frames])
            facts["clipped", group] = np.array([one.n_clipped for one in frames], np.int64)
            facts["name", group] = np.array([one.name for one in frames], np.uint64)
            facts["saturated", group] = np.array(np.count_nonzero(saturated))
        return TileFit(maps, facts)

    def join(self, facts: Mapping[Cell, Facts]) -> tuple[StackRecord, ...]:
        """Add up what is known of the frames."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        n_pixels = self._sensor.n_lit
        records = []
        for key, planned in self.plan_frames:
            group = self.groups[key]
            if ("name", group) not in tiles[0]:
                continue
            names = tiles[0]["name", group]
            frames = [self._frames_by_name[int(name)][1] for name in names]
            records.append(
                StackRecord(
                    group,
                    key,
                    names,
                    tuple(frame.info.path for frame in frames),
                    np.array([frame.index for frame in frames]),
                    tuple(frame.info.time for frame in frames),
                    np.sum([tile["total", group] for tile in tiles], axis=0) / n_pixels,
                    np.sum([tile["clipped", group] for tile in tiles], axis=0),
                    len(planned) - len(frames),
                    sum(int(tile["saturated", group]) for tile in tiles),
                    maps[f"{group}/mean"],
                    maps[f"{group}/variance"],
                )
            )
        return tuple(records)

    def describe_map(self, name: str) -> Mapping[str, Any]:
        """Return units and meaning of a map."""
        return _MAPS[name.rpartition("/")[2]]

    def describe_groups(self, result: Any) -> Mapping[str, Mapping[str, Any]]:
        """Describe which frames each stack is of."""
        return {
            one.group: {
                "kind": one.key.kind,
                "iso": one.key.iso if one.key.iso >= 0 else None,
                "gain_setting": one.key.setting.known.get("gain_setting"),
                "offset_setting": one.key.setting.known.get("offset_setting"),
                "readout_mode": one.key.readout,
                "exposure_s": one.key.exposure_s if one.key.exposure_s >= 0 else None,
                "illumination": one.key.level,
                "frames": [
                    {"path": path, "index": index, "identity": f"{name:016x}", "time": time}
                    for path, index, name, time in zip(
                        one.paths, one.index.tolist(), one.names.tolist(), one.times, strict=True
                    )
                ],
            }
            for one in result
        }

    def more_arrays(self, result: Any) -> Mapping[str, SideArray]:
        """Return what is known of each frame, along a dimension of its own."""
        arrays = {}
        for one in result:
            columns = {
                "frame_mean": (one.mean, {"units": "DN", "long_name": "mean of all pixels"}),
                "frame_clipped": (
                    one.n_clipped,
                    {"units": "1", "long_name": "pixels left out as outliers"},
                ),
                "frame_identity": (one.names, {"long_name": "identity of the frame's content"}),
            }
            for name, (values, about) in columns.items():
                arrays[f"{one.group}/{name}"] = SideArray(values, ("frame",), about)
        return arrays

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return one row for each stack, and one for each frame."""
        stacks: list[dict[str, Any]] = []
        frames: list[dict[str, Any]] = []
        for one in result:
            _, mean, _ = one.mean_map.total
            _, variance, _ = one.variance_map.total
            stacks.append(
                {
                    "group": one.group,
                    "kind": one.key.kind or "unknown",
                    **one.key.setting.columns(key.setting for key in self.keys),
                    "exposure_s": one.key.exposure_s if one.key.exposure_s >= 0 else np.nan,
                    "illumination": one.key.level or "none",
                    "n_frames": len(one.names),
                    "n_lost": one.n_lost,
                    "mean_dn": mean,
                    "variance_dn2": variance,
                    "n_clipped": int(one.n_clipped.sum()),
                    "n_saturated": one.n_saturated,
                    **count_columns(one.mean_map),
                }
            )
            frames += [
                {
                    "group": one.group,
                    "identity": f"{name:016x}",
                    "index": index,
                    "time": time or "unknown",
                    "mean_dn": mean,
                    "n_clipped": n_clipped,
                }
                for name, index, time, mean, n_clipped in zip(
                    one.names.tolist(), one.index.tolist(), one.times, one.mean.tolist(),
                    one.n_clipped.tolist(), strict=True,
                )
            ]  # fmt: skip
        return {
            STACKS.path: build(STACKS, self._sensor, stacks),
            FRAMES.path: build(FRAMES, self._sensor, frames),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.frames_report import stack_sections

        return stack_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the stacks as SPECTACLE has them, if asked for."""
        if not self.options.spectacle:
            return
        ddof = self.options.spectacle_ddof
        stems: dict[Path, str] = {}
        for one in result:
            stem = spectacle_stem(one.paths, one.key)
            if stem in stems:  # one folder holds several stacks
                stem = Path(one.group)
            stems[stem] = one.group
            place = directory / "stacks" / stem
            place.parent.mkdir(parents=True, exist_ok=True)
            mean, std = (
                np.lib.format.open_memmap(
                    place.with_name(f"{place.name}_{what}.npy"),
                    mode="w+",
                    dtype=np.float32,
                    shape=self._sensor.shape,
                )
                for what in ("mean", "stds")
            )
            for top, bottom in self.tiles:
                mean[top:bottom] = maps.rows(f"{one.group}/mean", top, bottom)
                variance = maps.rows(f"{one.group}/variance", top, bottom)
                n = maps.rows(f"{one.group}/n", top, bottom).astype(np.float64)
                std[top:bottom] = np.sqrt(variance * (n - 1) / (n - ddof))
            mean.flush()
            std.flush()
