"""Signal against ISO speed: a factor per speed, and the curve through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.isotable import CURVE_COLUMNS
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import chi2_probability, fit_iso_curve, iso_ratios
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.pixels import BIAS_SOURCES, bias_level, gather, saturation_dn
from calibdask.sensor.spatial import within_range
from calibdask.sensor.tables import ISO_CURVE, ISO_FACTORS, build, count_columns
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

    type Floats = NDArray[np.float64]

__all__ = ["IsoNormalisationJob"]

_BLOCK = 16  # rows and columns of the blocks that are taken or left as a whole

_SUMS = ("numerator", "numerator_variance", "reference", "reference_variance", "n_pixels")


@dataclass(frozen=True)
class IsoNormalisationJob(MapCalibration):
    """Factor of every ISO speed relative to the lowest one."""

    name: ClassVar[str] = "iso-normalisation"
    title: ClassVar[str] = "Signal at each ISO speed"
    kinds: ClassVar[tuple[str, ...]] = ("iso_normalisation", "bias_readnoise")
    own_kind: ClassVar[str] = "iso_normalisation"
    single: ClassVar[Mapping[str, Sequence[str]]] = {
        "iso_normalisation": ("gain_setting", "offset_setting", "readout_mode", "filter")
    }
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "ratio": ("1", "signal relative to the lowest ISO speed"),
        "ratio_error": ("1", "standard error of the ratio"),
    }

    sections = config.sections_of(config.IsoNormalisation)
    options: config.IsoNormalisation = field(default_factory=config.IsoNormalisation)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Sum up signals over the pixels that two ISO speeds can both use."""
        stacks = gather(
            tile,
            "iso_normalisation",
            lambda key: key.setting,
            near_saturation=self.options.near_saturation,
        )
        settings = sorted(stacks)
        speeds = [setting.iso for setting in settings]
        maps: dict[str, NDArray[Any]] = {}
        facts: dict[FactKey, NDArray[Any]] = {("iso",): np.array(speeds, np.int64)}
        sums = np.zeros((len(speeds), len(_SUMS)))
        sources = np.zeros(len(speeds), np.int64)
        signals: dict[int, tuple[Floats, Floats, NDArray[np.uint16]]] = {}
        for i, setting in enumerate(settings):
            iso, pixels, bias = setting.iso, stacks[setting], bias_level(tile, setting)
            sources[i] = bias.source
            signal, variance = pixels.mean - bias.value, pixels.mean_variance + bias.variance
            # Expected from the speed below: a mean must not decide by its own noise whether it
            # counts. (The lowest one's noise is in the denominator.)
            below = signals[speeds[i - 1]][0] if i > 1 else None
            own = self._flags(tile, pixels, signal, below)
            signals[iso] = signal, variance, own
            reference, reference_variance, mask = signals[speeds[0]]
            mask = mask | own
            lit = mask == 0
            # By channel of the tile, since picking single pixels would pick by their noise.
            for channel in np.unique(tile.channel):
                here = tile.channel == channel
                usable = here & lit
                if not usable.any() or reference[usable].mean() < self.options.min_signal:
                    mask[here] |= PixelFlag.NO_SIGNAL.bit
            used = mask == 0
            sums[i] = (
                signal[used].sum(),
                variance[used].sum(),
                reference[used].sum(),
                reference_variance[used].sum(),
                np.count_nonzero(used),
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = signal / reference
                relative = variance / signal**2 + reference_variance / reference**2
                error = np.abs(ratio) * np.sqrt(relative)
            if i == 0:
                error = np.zeros_like(error)  # it is 1 by definition
            group = f"iso_normalisation/{setting.name}"
            maps |= {f"{group}/ratio": ratio, f"{group}/ratio_error": error, f"{group}/mask": mask}
            facts |= overview(f"{group}/ratio", tile, ratio, mask)
            facts["n_frames", iso] = np.array([len(pixels.frame_means)])
        return TileFit(maps, facts | {("sums",): sums, ("sources",): sources})

    @staticmethod
    def _flags(
        tile: TileStacks, pixels: Pixels, signal: Floats, below: Floats | None
    ) -> NDArray[np.uint16]:
        """Flag what cannot be used at one speed; ends of the converter by blocks of pixels."""
        mask = np.zeros(tile.shape, np.uint16)
        mask[(pixels.n < 2) | ~np.isfinite(signal)] |= PixelFlag.FEW_FRAMES.bit
        mask[pixels.stuck] |= PixelFlag.SATURATED.bit
        mask[~tile.lit] = PixelFlag.BORDER.bit
        top = saturation_dn(tile.sensor)
        limits = (0.0, np.inf if top is None else float(top))
        expected = pixels.mean if below is None else pixels.mean.copy()
        if below is not None:
            for channel in np.unique(tile.channel):
                here = (tile.channel == channel) & (mask == 0) & np.isfinite(below)
                if below[here].sum() > 0:
                    factor = signal[here].sum() / below[here].sum()
                    expected[here] += factor * below[here] - signal[here]
        low, high = within_range(expected, pixels.variance, mask == 0, tile.channel, limits, _BLOCK)
        mask[low] |= PixelFlag.CLIPPED.bit
        mask[high] |= PixelFlag.SATURATED.bit
        return mask

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Add the tiles, divide, and fit the curve."""
        tiles = list(facts.values())
        speeds = tiles[0]["iso",]
        sums = sum((tile["sums",] for tile in tiles), np.zeros_like(tiles[0]["sums",]))
        numbers = dict(zip(_SUMS, sums.T, strict=True))
        if not len(speeds):
            raise NotEnoughData(
                "iso-normalisation: no frames of kind iso_normalisation with an ISO speed among the"
                " inputs"
            )
        usable = (numbers["n_pixels"] > 0) & (numbers["reference"] > 0)
        if not usable[0]:
            raise NotEnoughData(
                f"iso-normalisation: at the lowest ISO speed, {speeds[0]}, no pixel is usable:"
                " all are saturated, clipped or without signal (option min_signal)"
            )
        count = np.maximum(numbers["n_pixels"], 1)
        kept = [numbers[name][usable] for name in _SUMS[:4]]
        ratio, covariance = iso_ratios(*kept)
        curve = fit_iso_curve(speeds[usable], ratio, covariance, self.options.model)
        factor, error = np.full(len(speeds), np.nan), np.full(len(speeds), np.nan)
        factor[usable], error[usable] = ratio, np.sqrt(np.diag(covariance))
        fitted, fitted_error = curve(speeds)
        # They have one setting, but for the ISO speed (see `single`).
        names = {key.iso: key.setting.name for key in self.keys if key.kind == "iso_normalisation"}
        maps = overviews(tiles)
        rows = [
            {
                "iso": int(iso),
                "factor": factor[i],
                "factor_error": error[i],
                "model": fitted[i],
                "model_error": fitted_error[i],
                "signal_dn": numbers["numerator"][i] / count[i],
                "n_used": int(numbers["n_pixels"][i]),
                "n_frames": int(tiles[0]["n_frames", iso][0]),
                "bias_source": BIAS_SOURCES[max(int(tile["sources",][i]) for tile in tiles)],
                **count_columns(maps[f"iso_normalisation/{names[iso]}/ratio"]),
            }
            for i, iso in enumerate(speeds.tolist())
        ]
        return {"rows": rows, "curve": curve, "overviews": maps}

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the factors, and the curve."""
        curve = result["curve"]
        row = {
            "kind": curve.kind,
            **{name: getattr(curve, name) for name in CURVE_COLUMNS},
            "iso_min": curve.iso_min,
            "chi2": curve.chi2,
            "ndf": curve.ndf,
            "p_value": float(chi2_probability(curve.chi2, curve.ndf)),
            "bic_linear": curve.bic_linear,
            "bic_knee": curve.bic_knee,
        }
        return {
            ISO_FACTORS.path: build(ISO_FACTORS, self._sensor, result["rows"]),
            ISO_CURVE.path: build(ISO_CURVE, self._sensor, [row]),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import iso_sections

        return iso_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        del maps
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_iso

            write_iso(directory, self, result["rows"], result["curve"])
