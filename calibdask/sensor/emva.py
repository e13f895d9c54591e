"""EMVA 1288: a sensor characterised by pairs over exposure and two spatial stacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.pixels import gather
from calibdask.sensor.settings import Setting
from calibdask.sensor.standard import EmvaPoints, SpatialSums, emva1288, split_nonuniformity
from calibdask.sensor.tables import EMVA, EMVA_POINTS, build
from calibdask.sensor.tiles import TileFit
from calibdask.stats.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.report import Section
    from calibdask.sensor.pixels import Pixels
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["Emva1288Job"]

PAIRS = ("emva_bright", "emva_dark")
SPATIAL = ("emva_bright_spatial", "emva_dark_spatial")

type Key = tuple[Setting, float, float]
"""ISO speed, exposure time in s, mean photons per pixel (-1 unknown)."""


@dataclass(frozen=True)
class Emva1288Job(MapCalibration):
    """All results of the standard, one row per ISO speed."""

    name: ClassVar[str] = "emva1288"
    title: ClassVar[str] = "Characterisation by EMVA 1288"
    kinds: ClassVar[tuple[str, ...]] = (*PAIRS, *SPATIAL)
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "bright": ("DN", "mean of the bright frames of the spatial stack"),
        "bright_error": ("DN", "standard error of the mean of the bright frames"),
        "dark": ("DN", "mean of the dark frames of the spatial stack"),
        "dark_error": ("DN", "standard error of the mean of the dark frames"),
    }

    sections = config.sections_of(config.Emva1288)
    options: config.Emva1288 = field(default_factory=config.Emva1288)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Sum up what the standard asks for over the pixels of one tile.

        All lit pixels count, whatever they are like, as the standard demands.
        """
        lit = tile.lit
        maps: dict[str, NDArray[Any]] = {}
        facts: dict[FactKey, NDArray[Any]] = {("step",): np.array([tile.sensor.step_dn])}
        for kind in (*PAIRS, *SPATIAL):
            stacks = gather(
                tile,
                kind,
                lambda key: (key.setting, key.exposure_s, key.photons),
                near_saturation=self.options.near_saturation,
            )
            for key in sorted(stacks):
                pixels = stacks[key]
                name = (kind, key[0].name, *key[1:])
                facts["sums", *name] = np.array(
                    [lit.sum(), pixels.mean[lit].sum(), pixels.variance[lit].sum()]
                )
                facts["frames", *name] = pixels.frame_means * lit.sum()
                if kind in SPATIAL:
                    facts |= {(what, *name): one for what, one in _spatial_sums(pixels).items()}
                    what = kind.removeprefix("emva_").removesuffix("_spatial")
                    group = f"emva1288/{key[0].name}_{key[1]:g}s/{what}"
                    mask = pixels.mask()
                    maps[group] = pixels.mean
                    maps[f"{group}_error"] = np.sqrt(pixels.mean_variance)
                    maps[f"{group}_mask"] = mask
                    # Dark frames may touch zero: that is no reason to leave pixels out of a figure.
                    shown = mask & ~PixelFlag.CLIPPED.bit
                    facts |= overview(group, tile, pixels.mean, shown)
        return TileFit(maps, facts)

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Evaluate the standard at each ISO speed."""
        tiles = list(facts.values())
        stacks: dict[str, dict[Key, FactKey]] = {kind: {} for kind in (*PAIRS, *SPATIAL)}
        own = {setting.name: setting for setting in self.settings}
        for what, *name in tiles[0]:
            if what == "sums":
                kind, setting_name, exposure_s, photons = name
                key = own[str(setting_name)], float(exposure_s), float(photons)
                stacks[str(kind)][key] = tuple(name)
        rows, points = [], []
        settings = sorted({key[0] for key in stacks["emva_bright"]})
        for setting in settings:
            series, unpaired = _series(tiles, stacks, setting)
            spatial, split = _nonuniformity(tiles, stacks, setting)
            result = emva1288(series, *spatial, int(tiles[0]["step",][0]))
            rows.append(
                {
                    **setting.columns(settings),
                    "n_exposures": len(series.exposure_s),
                    "n_without_dark": unpaired,
                    **result,
                    **split,
                }
            )
            points += [
                {
                    **setting.columns(settings),
                    "exposure_s": series.exposure_s[i],
                    "mean_photon": series.photons[i],
                    "bright_dn": series.bright[i],
                    "bright_variance_dn2": series.bright_variance[i],
                    "dark_dn": series.dark[i],
                    "dark_variance_dn2": series.dark_variance[i],
                }
                for i in range(len(series.exposure_s))
            ]
        if not rows:
            raise NotEnoughData(
                "emva1288: no pairs of bright frames among the inputs (kind emva_bright): give the"
                " folder of a data set with its EMVA1288_Data.txt, or name them in the section"
                " Frames"
            )
        return {"rows": rows, "points": points, "overviews": overviews(tiles)}

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the results, and the photon transfer series."""
        return {
            EMVA.path: build(EMVA, self._sensor, result["rows"]),
            EMVA_POINTS.path: build(EMVA_POINTS, self._sensor, result["points"]),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import emva_sections

        return emva_sections(result, tables)


def _spatial_sums(pixels: Pixels) -> dict[str, NDArray[Any]]:
    mean, lit = pixels.mean, pixels.lit
    values = mean[lit]
    moments = Moments.from_groups(np.zeros(values.size, np.int64), values, 1)
    # Rows and columns without light are no part of the sensor.
    inside, across = lit.any(axis=1), np.count_nonzero(lit, axis=1)
    return {
        "moments": np.array([moments.n[0], moments.mean[0], moments.m2[0]]),
        "left": np.array([pixels.mean_variance[lit].sum()]),
        "rows": np.where(lit, mean, 0.0).sum(axis=1)[inside] / across[inside],
        "columns": np.where(lit, mean, 0.0).sum(axis=0),
        "heights": np.count_nonzero(lit, axis=0),
    }


def _temporal(tiles: Sequence[Facts], name: FactKey) -> tuple[float, float]:
    """Mean and temporal variance of a stack.

    The variance of the frames' means is no noise of pixels: EMVA 1288, eq. 25, takes
    (mean of A - mean of B)^2/2 out of that of a pair.
    """
    n, mean, variance = sum((tile["sums", *name] for tile in tiles), np.zeros(3)).tolist()
    frames = sum(
        (tile["frames", *name] for tile in tiles), np.zeros_like(tiles[0]["frames", *name])
    )
    return mean / n, variance / n - float((frames / n).var(ddof=1))


def _series(
    tiles: Sequence[Facts], stacks: Mapping[str, Mapping[Key, FactKey]], setting: Setting
) -> tuple[EmvaPoints, int]:
    """Put bright and dark pairs of the same exposure together."""
    dark = {key[1]: name for key, name in stacks["emva_dark"].items() if key[0] == setting}
    if not dark:
        raise NotEnoughData(
            f"emva1288: there are no pairs of dark frames (kind emva_dark) at {setting.label}: the"
            " standard subtracts one at each exposure time"
        )
    rows, unpaired = [], 0
    bright = {key: name for key, name in stacks["emva_bright"].items() if key[0] == setting}
    for key in sorted(bright):
        # One dark series serves all levels if the light was varied at one exposure time.
        pair = dark.get(key[1], next(iter(dark.values())) if len(dark) == 1 else None)
        if pair is None:
            unpaired += 1
            continue
        photons = key[2] if key[2] >= 0 else np.nan
        rows.append([key[1], photons, *_temporal(tiles, bright[key]), *_temporal(tiles, pair)])
    if not rows:
        raise NotEnoughData(
            f"emva1288: at {setting.label} no bright exposure has dark frames of the same exposure"
            " time"
        )
    return EmvaPoints(*np.array(rows, np.float64).T), unpaired


def _nonuniformity(
    tiles: Sequence[Facts], stacks: Mapping[str, Mapping[Key, FactKey]], setting: Setting
) -> tuple[tuple[SpatialSums | None, SpatialSums | None], dict[str, float]]:
    """Join the spatial stacks: of several the one with most frames, and its dark."""
    found: list[SpatialSums | None] = []
    split: dict[str, float] = {}
    exposure: float | None = None
    for kind in SPATIAL:
        names = {key: name for key, name in stacks[kind].items() if key[0] == setting}
        if not names:
            found.append(None)
            continue
        wanted = exposure
        key = min(
            names,
            key=lambda one: (
                0.0 if wanted is None else abs(one[1] - wanted),
                -len(tiles[0]["frames", *names[one]]),
                one,
            ),
        )
        exposure, name = key[1], names[key]
        moments = Moments.identity(1)
        for tile in tiles:
            n, mean, m2 = (tile["moments", *name][i : i + 1] for i in range(3))
            moments = moments.merge(Moments(n.astype(np.int64), mean, m2))
        left = float(sum(tile["left", *name][0] for tile in tiles))
        sums = SpatialSums(int(moments.n[0]), float(moments.mean[0]), float(moments.m2[0]), left)
        found.append(sums)
        rows = np.concatenate([tile["rows", *name] for tile in tiles])
        columns, heights = (
            np.sum([tile[what, *name] for tile in tiles], axis=0) for what in ("columns", "heights")
        )
        parts = split_nonuniformity(sums, rows, columns[heights > 0] / heights[heights > 0])
        what = kind.removeprefix("emva_").removesuffix("_spatial")
        split |= {
            f"s2_{what}_{part}_dn2": value
            for part, value in zip(("row", "column", "pixel"), parts, strict=True)
        }
    for kind in SPATIAL:  # the same columns for every ISO speed
        what = kind.removeprefix("emva_").removesuffix("_spatial")
        for part in ("row", "column", "pixel"):
            split.setdefault(f"s2_{what}_{part}_dn2", np.nan)
    return (found[0], found[1]), {name: split[name] for name in sorted(split)}
