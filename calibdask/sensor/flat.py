"""Flat field: vignetting as a radial model, and the response of each pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import robust_centre
from calibdask.sensor.overview import N_CHANNELS, overview, overviews
from calibdask.sensor.pixels import BIAS_SOURCES, bias_level, gather, without_flicker
from calibdask.sensor.spatial import block_means, fit_radial, local_response, radial_blocks
from calibdask.sensor.tables import FLAT_FIELD, FLAT_MODEL, build, channel_names, count_columns
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
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

    type Floats = NDArray[np.float64]
    type Mask = NDArray[np.uint16]

__all__ = ["NEIGHBOURHOOD", "FlatFieldJob", "FlatSignal", "light_of", "response_flags"]

_FLICKER = 0.05  # of the variance without it: what it adds beyond that is taken out

NEIGHBOURHOOD = 16
"""Rows and columns within which a pixel is compared with others of its channel."""


@dataclass(frozen=True, slots=True, eq=False)
class FlatSignal:
    """Signal under even light, summed over stacks.

    Attributes
    ----------
    signal, variance : ndarray of float64, shape (h, w)
        DN above the bias, and the variance of its error, DN^2.
    mask : ndarray of uint16, shape (h, w)
        Pixel flags.
    n_frames : int
        Frames.
    n_stacks : int
        Stacks.
    bias_source : int
        Index in `BIAS_SOURCES`, the worst of all stacks.
    """

    signal: Floats
    variance: Floats
    mask: Mask
    n_frames: int
    n_stacks: int
    bias_source: int


def light_of(tile: TileStacks, near_saturation: float) -> FlatSignal | None:
    """Add up the flat-field stacks of a tile; None if there are none."""
    stacks = gather(
        tile,
        "flatfield",
        lambda key: (key.setting, key.level, key.exposure_s, key.photons),
        near_saturation=near_saturation,
    )
    if not stacks:
        return None
    signal, variance = np.zeros(tile.shape), np.zeros(tile.shape)
    mask = np.zeros(tile.shape, np.uint16)
    source = n_frames = 0
    n_of_setting: dict[Setting, int] = {}
    for (setting, *_), pixels in stacks.items():
        bias = bias_level(tile, setting)
        light = pixels.mean - bias.value
        signal += light
        variance += _steady_variance(pixels, light, tile)
        n_of_setting[setting] = n_of_setting.get(setting, 0) + 1
        mask |= pixels.mask()
        source = max(source, bias.source)
        n_frames += len(pixels.frame_means)
    # One bias is subtracted from all stacks of a setting: its error adds up, not its variance.
    for setting, n in n_of_setting.items():
        variance += n**2 * np.nan_to_num(bias_level(tile, setting).variance)
    with np.errstate(invalid="ignore"):
        mask[~(signal > 0)] |= PixelFlag.NO_SIGNAL.bit
    return FlatSignal(signal, variance, mask, n_frames, len(stacks), source)


def _steady_variance(pixels: Pixels, signal: Floats, tile: TileStacks) -> Floats:
    """Return the variance of the pixels' means, without what flicker adds to all of them alike.

    That moves the signal as a whole, which a relative response does not hold. Where it shows, a
    pixel's own variance has too much of it to tell the rest: then it is that of its neighbours.
    """
    steady, flicker2 = without_flicker(pixels, signal)
    good = pixels.good & np.isfinite(signal)
    if not good.any() or flicker2 * np.mean(signal[good] ** 2) < _FLICKER * np.mean(steady[good]):
        return pixels.mean_variance
    near = block_means(steady, good, tile.channel, NEIGHBOURHOOD)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = near / pixels.n
    return result


def response_flags(
    tile: TileStacks, light: FlatSignal, n_sigma: float, fraction: float = np.inf
) -> tuple[Floats, Floats, Mask]:
    """Compare each pixel's response with its neighbours' and flag those that stand out.

    Parameters
    ----------
    tile : TileStacks
        The tile.
    light : Light
        Its signal.
    n_sigma : float
        Deviation, in robust standard deviations of the channel in the tile, that is flagged.
    fraction : float
        Relative deviation that is flagged in any case.

    Returns
    -------
    deviation : ndarray of float64, shape (h, w)
        Relative deviation from the plane through the neighbours.
    freedom : ndarray of float64, shape (h, w)
        As from `local_response`.
    mask : ndarray of uint16, shape (h, w)
        The flags of `light` and "bad-response".
    """
    mask = light.mask.copy()
    deviation, _ = local_response(light.signal, mask == 0, tile.channel, NEIGHBOURHOOD)
    for channel in np.unique(tile.channel):
        here = (tile.channel == channel) & ((mask == 0) | (mask == PixelFlag.NO_SIGNAL.bit))
        centre, scale = robust_centre(deviation, here)
        far = np.abs(deviation - centre) > n_sigma * scale
        mask[here & (far | (np.abs(deviation) > fraction))] |= PixelFlag.BAD_RESPONSE.bit
    # Again without those that stood out: they had drawn their neighbours' planes.
    deviation, freedom = local_response(light.signal, mask == 0, tile.channel, NEIGHBOURHOOD)
    return deviation, freedom, mask


@dataclass(frozen=True)
class FlatFieldJob(MapCalibration):
    """Relative response: measured map, radial model, and what is left between them."""

    name: ClassVar[str] = "flatfield"
    title: ClassVar[str] = "Relative response of pixels"
    state_ratio: ClassVar[float] = 0.4
    kinds: ClassVar[tuple[str, ...]] = ("flatfield", "bias_readnoise")
    own_kind: ClassVar[str] = "flatfield"
    single: ClassVar[Mapping[str, Sequence[str]]] = {"flatfield": ("filter",)}
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "flatfield": ("1", "response relative to the optical centre: divide by it"),
        "flatfield_error": ("1", "standard error of the flat field from noise"),
        "model": ("1", "radial model of the vignetting"),
        "model_error": ("1", "standard error of the model"),
        "prnu": ("1", "flat field over model: the pixel's own response"),
        "prnu_error": ("1", "standard error of the pixel's own response from noise"),
    }

    sections = config.sections_of(config.FlatField)
    options: config.FlatField = field(default_factory=config.FlatField)

    @property
    def _block(self) -> int:
        longer = max(self._sensor.shape)
        # Even: a block holds whole cells of the filter pattern.
        return self.options.block_size or max(4, longer // 64 // 2 * 2)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Average the signal of one tile over blocks, and find pixels that stand out."""
        light = light_of(tile, self.options.near_saturation)
        if light is None:
            raise NotEnoughData(
                "flatfield: no frames of kind flatfield among the inputs; name them in the section"
                " Frames, or put them into a folder flatfield"
            )
        if light.bias_source == len(BIAS_SOURCES) - 1:
            raise NotEnoughData(
                "flatfield: there is no bias to subtract, so that no ratio of signals can be had;"
                " add bias frames to the inputs, or name the product of the job bias"
                " (FlatField.bias)"
            )
        deviation, freedom, mask = response_flags(tile, light, self.options.outlier_sigma)
        good = mask == 0
        blocks = radial_blocks(
            light.signal, light.variance, good, tile.channel, (tile.y0, 0), self._block
        )
        scatter = np.zeros((N_CHANNELS, 3))
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = light.variance / light.signal**2
        counted = good & (freedom > 0)
        for channel in np.unique(tile.channel).tolist():
            here = counted & (tile.channel == channel)
            scatter[channel] = (
                (deviation[here] ** 2).sum(),
                (freedom[here] * noise[here]).sum(),
                freedom[here].sum(),
            )
        maps = {
            "flatfield/flatfield": light.signal,
            "flatfield/flatfield_error": np.sqrt(light.variance),
            "flatfield/mask": mask,
        }
        facts: dict[FactKey, NDArray[Any]] = {
            ("blocks",): blocks,
            ("scatter",): scatter,
            ("frames",): np.array([light.n_frames, light.n_stacks, light.bias_source], np.int64),
        }
        facts |= overview("flatfield/signal", tile, light.signal, mask)
        facts |= overview("flatfield/deviation", tile, deviation, mask)
        return TileFit(maps, facts)

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Fit the radial model to the blocks of all tiles."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        blocks = np.concatenate([tile["blocks",] for tile in tiles])
        scatter = sum((tile["scatter",] for tile in tiles), np.zeros((N_CHANNELS, 3)))
        with np.errstate(divide="ignore", invalid="ignore"):
            prnu = np.sqrt((scatter[:, 0] - scatter[:, 1]) / scatter[:, 2])
        known = prnu[np.isfinite(prnu)]
        model = fit_radial(
            blocks,
            self._sensor.shape,
            n_terms=self.options.n_terms,
            border=self.options.border,
            pixel_scatter=float(known.mean()) if known.size else 0.0,
            lit=self._sensor.lit_box,
        )
        n_frames, n_stacks, _ = tiles[0]["frames",].tolist()
        source = max(int(tile["frames",][2]) for tile in tiles)
        y0, x0, y1, x1 = self._sensor.lit_box
        corner_y, corner_x = np.meshgrid([y0, y1 - 1], [x0, x1 - 1])
        corners = model.radius2(corner_y, corner_x)
        row: dict[str, Any] = {"n_frames": n_frames, "n_stacks": n_stacks}
        for channel, name in enumerate(channel_names(self._sensor)):
            if channel in model.amplitude:
                row[f"signal_{name}_dn"] = model.amplitude[channel]
                row[f"prnu_{name}_percent"] = 100.0 * prnu[channel]
        row |= {
            "centre_x": float(model.centre[0]),
            "centre_x_error": float(model.centre_error[0]),
            "centre_y": float(model.centre[1]),
            "centre_y_error": float(model.centre_error[1]),
            "largest_correction": float(model.gain(corner_y, corner_x).max()),
            "extrapolated": bool(corners.max() > _reach(model, self._block)),
            "chi2": model.chi2,
            "ndf": model.ndf,
            "bias_source": BIAS_SOURCES[source],
            **count_columns(maps["flatfield/signal"]),
        }
        return {"row": row, "model": model, "blocks": blocks, "overviews": maps}

    def finish_tile(
        self, cell: Cell, maps: Mapping[str, NDArray[Any]], result: Any
    ) -> Mapping[str, NDArray[Any]]:
        """Divide by the channel's signal in the optical centre, and by the radial model."""
        model, first_row = result["model"], int(cell[1])
        signal = maps["flatfield/flatfield"]
        error = maps["flatfield/flatfield_error"]
        mask = maps["flatfield/mask"].copy()
        rows, columns = np.indices(signal.shape)
        rows += first_row
        amplitude = np.full(N_CHANNELS, np.nan)
        amplitude[list(model.amplitude)] = list(model.amplitude.values())
        index = self.plan_frames[0][1][0].info.channel_index
        scale = amplitude[index[rows % 2, columns % 2]]
        gain = model.gain(rows, columns)
        mask[model.radius2(rows, columns) > _reach(model, self._block)] |= (
            PixelFlag.EXTRAPOLATED.bit
        )
        return {
            "flatfield/flatfield": signal / scale,
            "flatfield/flatfield_error": error / scale,
            "flatfield/mask": mask,
            "flatfield/model": 1.0 / gain,
            "flatfield/model_error": model.gain_error(rows, columns) / gain**2,
            "flatfield/prnu": signal / scale * gain,
            "flatfield/prnu_error": error / scale * gain,
        }

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the monitoring table, and the parameters of the radial model."""
        model = result["model"]
        errors = np.sqrt(np.diag(model.covariance))
        names = [f"k{i}" for i in range(len(model.coefficients))] + ["centre_x", "centre_y"]
        values = [*model.coefficients.tolist(), *model.centre.tolist()]
        parameters = [
            {"parameter": name, "value": value, "value_error": float(error)}
            for name, value, error in zip(names, values, errors, strict=True)
        ]
        return {
            FLAT_FIELD.path: build(FLAT_FIELD, self._sensor, [result["row"]]),
            FLAT_MODEL.path: build(FLAT_MODEL, self._sensor, parameters),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import flat_sections

        return flat_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        del maps
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_flat

            write_flat(directory, self, result["model"])


def _reach(model: Any, block: int) -> float:
    """Return the squared radius up to which the model holds: a block beyond the last one fitted."""
    height, width = model.shape
    far_x = max(model.centre[0], 1 - model.centre[0]) * width
    far_y = max(model.centre[1], 1 - model.centre[1]) * height
    step = block / float(np.hypot(far_x, far_y))
    return float((np.sqrt(model.r2_fitted) + step) ** 2)
