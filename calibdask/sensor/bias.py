"""Bias and read noise of each pixel and ISO speed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import QUANTISATION_VARIANCE, read_noise, robust_centre
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.pixels import gather
from calibdask.sensor.tables import BIAS, READ_NOISE, build, count_columns
from calibdask.sensor.tiles import TileFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.io.maps import ProductMaps
    from calibdask.report import Section
    from calibdask.sensor.pixels import Pixels
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["BiasJob", "ReadNoiseJob", "bias_flags", "noise_flags"]

type Floats = NDArray[np.float64]


def bias_flags(tile: TileStacks, pixels: Pixels, n_sigma: float) -> NDArray[np.uint16]:
    """Flag pixels whose bias is no good, or far from the median of their channel in the tile."""
    mask = pixels.mask()
    error = np.sqrt(np.nan_to_num(pixels.mean_variance))
    for channel in np.unique(tile.channel):
        here = (tile.channel == channel) & (mask == 0)
        centre, scale = robust_centre(pixels.mean, here)
        far = np.abs(pixels.mean - centre) > n_sigma * np.hypot(scale, error)
        mask[here & far] |= PixelFlag.BAD_BIAS.bit
    return mask


def noise_flags(
    tile: TileStacks, pixels: Pixels, n_sigma: float
) -> tuple[Floats, Floats, NDArray[np.uint16]]:
    """Return read noise, its error, and flags where it is no good or far above the median."""
    noise, error, undersampled = read_noise(pixels.variance, pixels.n, tile.sensor.step_dn)
    mask = pixels.mask()
    mask[undersampled] |= PixelFlag.UNDERSAMPLED.bit
    for channel in np.unique(tile.channel):
        here = (tile.channel == channel) & pixels.good
        centre, scale = robust_centre(noise, here)
        mask[here & (noise - centre > n_sigma * scale)] |= PixelFlag.NOISY.bit
    return noise, error, mask


@dataclass(frozen=True)
class _FromBiasFrames(MapCalibration):
    """What both jobs share: the stacks, by ISO speed."""

    kinds: ClassVar[tuple[str, ...]] = ("bias_readnoise",)
    own_kind: ClassVar[str] = "bias_readnoise"
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "bias": ("DN", "mean of the bias frames"),
        "bias_error": ("DN", "standard error of the bias"),
        "readnoise": ("DN", "read noise, without that of rounding (1/12 DN^2)"),
        "readnoise_error": ("DN", "standard error of the read noise"),
    }
    writes_bias: ClassVar[bool] = True

    options: config.Bias | config.ReadNoise = field(default_factory=config.Bias)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Make the maps of one tile."""
        stacks = gather(
            tile,
            "bias_readnoise",
            lambda key: key.setting,
            near_saturation=self.options.near_saturation,
        )
        maps: dict[str, NDArray[Any]] = {}
        facts: dict[FactKey, NDArray[Any]] = {}
        for setting, pixels in stacks.items():
            n_sigma = self.options.outlier_sigma
            noise, noise_error, noise_mask = noise_flags(tile, pixels, n_sigma)
            group = f"readnoise/{setting.name}"
            maps |= {
                f"{group}/readnoise": noise,
                f"{group}/readnoise_error": noise_error,
                f"{group}/mask": noise_mask,
            }
            facts |= overview(f"{group}/readnoise", tile, noise, noise_mask)
            facts |= overview(f"{group}/variance", tile, pixels.variance, noise_mask)
            facts["n_frames", setting.name] = np.array(
                [len(pixels.frame_means), tile.sensor.step_dn]
            )
            if self.writes_bias:
                group = f"bias/{setting.name}"
                mask = bias_flags(tile, pixels, n_sigma)
                maps |= {
                    f"{group}/bias": pixels.mean,
                    f"{group}/bias_error": np.sqrt(pixels.mean_variance),
                    f"{group}/mask": mask,
                }
                facts |= overview(f"{group}/bias", tile, pixels.mean, mask)
                facts |= overview(f"{group}/variance", tile, pixels.mean_variance, mask)
        return TileFit(maps, facts)

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Sum up the tiles: one row per ISO speed, and the maps in short."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        rows = []
        settings = [one for one in self.settings if ("n_frames", one.name) in tiles[0]]
        if not settings:
            raise NotEnoughData(
                f"{self.name}: no bias frames among the inputs; name them in the section Frames"
                " (kind: bias_readnoise), or put them into a folder bias_readnoise/iso<ISO>"
            )
        for setting in settings:
            group = setting.name
            n_frames, step = tiles[0]["n_frames", group].tolist()
            row: dict[str, Any] = {**setting.columns(settings), "n_frames": n_frames}
            if self.writes_bias:
                short = maps[f"bias/{group}/bias"]
                n, mean, std = short.total
                _, noise_left, _ = maps[f"bias/{group}/variance"].total
                row |= {
                    "bias_dn": mean,
                    "bias_dn_error": std / np.sqrt(n) if n else np.nan,
                    # EMVA 1288, eq. 32: the scatter of the pixels less what noise leaves of it.
                    "fixed_pattern_dn": np.sqrt(max(std**2 - noise_left, 0.0)) if n else np.nan,
                }
            _, variance, spread = maps[f"readnoise/{group}/variance"].total
            n_noise = max(maps[f"readnoise/{group}/variance"].total[0], 1)
            rms = np.sqrt(max(variance - step**2 * QUANTISATION_VARIANCE, 0.0))
            row |= {
                "readnoise_dn": rms,
                "readnoise_dn_error": spread / np.sqrt(n_noise) / (2 * rms) if rms > 0 else np.nan,
            }
            kind = "bias" if self.writes_bias else "readnoise"
            row |= count_columns(maps[f"{kind}/{group}/{kind}"])
            rows.append(row)
        return {"rows": rows, "settings": settings, "overviews": maps}

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the monitoring table."""
        schema = BIAS if self.writes_bias else READ_NOISE
        return {schema.path: build(schema, self._sensor, result["rows"])}

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import bias_sections

        return bias_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_bias

            write_bias(directory, self, maps, result["settings"])


@dataclass(frozen=True)
class BiasJob(_FromBiasFrames):
    """Bias and read noise."""

    name: ClassVar[str] = "bias"
    title: ClassVar[str] = "Bias and read noise of pixels"
    state_ratio: ClassVar[float] = 4.2
    sections = config.sections_of(config.Bias)
    options: config.Bias = field(default_factory=config.Bias)


@dataclass(frozen=True)
class ReadNoiseJob(_FromBiasFrames):
    """Read noise only."""

    name: ClassVar[str] = "readnoise"
    title: ClassVar[str] = "Read noise of pixels"
    state_ratio: ClassVar[float] = 2.1
    writes_bias: ClassVar[bool] = False
    sections = config.sections_of(config.ReadNoise)
    options: config.ReadNoise = field(default_factory=config.ReadNoise)
