"""Map of defect pixels: bias, read noise, dark current and response, whichever frames there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.bias import bias_flags, noise_flags
from calibdask.sensor.dark import dark_flags, dark_series, fit_series
from calibdask.sensor.flat import light_of, response_flags
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.pixels import BIAS_SOURCES, gather
from calibdask.sensor.tables import DEFECT_PIXELS, DEFECTS, build
from calibdask.sensor.tiles import TileFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.report import Section
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["DEFECT_FLAGS", "DefectsJob"]

DEFECT_FLAGS = (
    PixelFlag.HOT,
    PixelFlag.BAD_BIAS,
    PixelFlag.NOISY,
    PixelFlag.BAD_RESPONSE,
    PixelFlag.FEW_FRAMES,
)
"""Flags that make a pixel defect; others belong to single measurements."""

_LISTED = 2000
"""Most defect pixels of one tile that are listed by row and column; all are in the map."""


@dataclass(frozen=True)
class DefectsJob(MapCalibration):
    """Pixels that stand out in any of the frames given."""

    name: ClassVar[str] = "defects"
    title: ClassVar[str] = "Map of defect pixels"
    state_ratio: ClassVar[float] = 0.1
    kinds: ClassVar[tuple[str, ...]] = ("bias_readnoise", "dark_current", "flatfield")

    sections = config.sections_of(config.Defects)
    options: config.Defects = field(default_factory=config.Defects)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Apply all criteria to one tile."""
        options = self.options
        mask = np.zeros(tile.shape, np.uint16)
        applied: set[PixelFlag] = set()
        stacks = gather(
            tile, "bias_readnoise", lambda key: key.setting, near_saturation=options.near_saturation
        )
        for pixels in stacks.values():
            applied |= {PixelFlag.BAD_BIAS, PixelFlag.NOISY, PixelFlag.FEW_FRAMES}
            mask |= bias_flags(tile, pixels, options.bias_sigma)
            mask |= noise_flags(tile, pixels, options.noise_sigma)[2]
        series = dark_series(tile, options.near_saturation)
        for one in series.values():
            if len(one) > 1:
                applied |= {PixelFlag.HOT, PixelFlag.FEW_FRAMES}
                fit = fit_series(one)
                mask |= dark_flags(tile, one, fit, options.dark_sigma, options.dark_limit)
        light = light_of(tile, options.near_saturation)
        if light is not None and light.bias_source < len(BIAS_SOURCES) - 1:
            applied |= {PixelFlag.BAD_RESPONSE, PixelFlag.FEW_FRAMES}
            sigma, fraction = options.response_sigma, options.response_fraction
            mask |= response_flags(tile, light, sigma, fraction)[2]
        if not applied:
            raise NotEnoughData(
                "defects: nothing to judge pixels by: give bias frames, dark frames at two exposure"
                " times or more, or flat fields with bias frames"
            )
        defect = np.where(tile.lit, mask & sum(flag.bit for flag in DEFECT_FLAGS), np.uint16(0))
        y, x = np.nonzero(defect)
        listed = np.stack([y + tile.y0, x, tile.channel[y, x], defect[y, x]], axis=1)
        facts: dict[FactKey, NDArray[Any]] = {
            ("applied",): np.array([flag in applied for flag in DEFECT_FLAGS]),
            ("listed",): listed[:_LISTED].astype(np.int64),
            ("n_defects",): np.array([len(listed)]),
        }
        # The share of defect pixels, for a figure: no pixel is left out of it.
        share = (defect > 0).astype(np.float64)
        facts |= overview("defects/share", tile, share, np.zeros_like(defect))
        facts |= overview("defects/mask", tile, share, defect)
        return TileFit({"defects/mask": defect}, facts)

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Count the defects of all tiles, and list them."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        applied = tiles[0]["applied",].tolist()
        counts = maps["defects/mask"].n_flagged
        n_pixels = maps["defects/mask"].n_pixels
        rows = [
            {
                "criterion": flag.label,
                "applied": bool(used),
                "n_defects": counts.get(flag, 0),
                "fraction": counts.get(flag, 0) / n_pixels,
            }
            for flag, used in zip(DEFECT_FLAGS, applied, strict=True)
        ]
        n_all = int(sum(tile["n_defects",][0] for tile in tiles))
        rows.append(
            {"criterion": "any", "applied": True, "n_defects": n_all, "fraction": n_all / n_pixels}
        )
        listed = np.concatenate([tile["listed",] for tile in tiles])
        return {
            "rows": rows,
            "listed": listed,
            "n_defects": n_all,
            "n_pixels": n_pixels,
            "overviews": maps,
        }

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the counts, and the list of pixels."""
        listed = [
            {
                "row": int(row),
                "column": int(column),
                "channel": int(channel),
                "mask": int(mask),
                "why": ", ".join(flag.label for flag in PixelFlag if mask & flag.value),
            }
            for row, column, channel, mask in result["listed"].tolist()
        ]
        tables = {DEFECTS.path: build(DEFECTS, self._sensor, result["rows"])}
        if listed:
            tables[DEFECT_PIXELS.path] = build(DEFECT_PIXELS, self._sensor, listed)
        return tables

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import defect_sections

        return defect_sections(result, tables)
