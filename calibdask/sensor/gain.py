"""Gain by photon transfer, of each pixel and of each channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.sensor import config
from calibdask.sensor.dark import average_normalised
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import (
    MIN_TEMPORAL_VARIANCE,
    QUANTISATION_VARIANCE,
    chi2_probability,
    fit_ptc,
    full_well,
    photon_transfer,
    pixel_flag,
    pool_noise,
    variance_fit_probability,
)
from calibdask.sensor.monitoring import channel_names, count_columns, monitoring_table
from calibdask.sensor.overview import N_CHANNELS, overview, overviews
from calibdask.sensor.pixels import (
    BIAS_SOURCES,
    bias_level,
    gather,
    saturation_dn,
)
from calibdask.sensor.tiles import TileFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays, Cell
    from calibdask.io.maps import ProductMaps
    from calibdask.report import Section
    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.pixels import BiasLevel, Pixels
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import TileStacks

    type Floats = NDArray[np.float64]
    type Level = tuple[str, float, float]

__all__ = ["Gain", "without_flicker"]

# Sums over the pixels of a channel at one level: of all, and of those that the fit may use.
_SUMS = (
    "n",
    "signal",
    "variance",
    "variance2",
    "used",
    "signal_used",
    "variance_used",
    "variance2_used",
)


def without_flicker(pixels: Pixels, signal: Floats) -> Floats:
    """Take out of the variances what the light's own variation from frame to frame adds.

    All pixels see the same relative variation f, which adds (f signal)^2. It shows in the means of
    the frames, beyond what the noise of single pixels leaves there.

    Parameters
    ----------
    pixels : Pixels
        Moments of one level.
    signal : ndarray of float64, shape (h, w)
        DN above the bias.

    Returns
    -------
    ndarray of float64, shape (h, w)
        Variance, DN^2. Its expectation is right whether or not the light varies.
    """
    means, seen = pixels.frame_means, np.isfinite(pixels.variance) & pixels.lit
    lit = signal[np.isfinite(signal) & pixels.lit]
    light = float(lit.mean()) if lit.size else 0.0
    if len(means) < 2 or not seen.any() or light <= 0:
        return pixels.variance
    own = float(pixels.variance[seen].mean()) / np.count_nonzero(pixels.lit)
    flicker2 = (float(means.var(ddof=1)) - own) / light**2
    return pixels.variance - flicker2 * signal**2


@dataclass(frozen=True)
class Gain(MapCalibration):
    """Gain by pixel and by channel."""

    name: ClassVar[str] = "gain"
    kinds: ClassVar[tuple[str, ...]] = ("gain", "bias_readnoise")
    own_kind: ClassVar[str] = "gain"
    joined: ClassVar[frozenset[str]] = frozenset({"brighter_fatter"})
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "gain": ("DN/electron", "gain"),
        "gain_error": ("DN/electron", "standard error of the gain"),
        "floor": ("DN2", "variance at no light: read noise and rounding"),
        "floor_error": ("DN2", "standard error of the floor"),
    }

    options: config.Gain = field(default_factory=config.Gain)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Fit the pixels of one tile at each ISO speed."""

        def key_of(key: StackKey) -> tuple[Setting, Level]:
            return key.setting, (key.level, key.exposure_s, key.photons)

        stacks = gather(tile, "gain", key_of, near_saturation=self.options.near_saturation)
        levels: dict[Setting, list[Pixels]] = {}
        for (setting, _), pixels in stacks.items():
            levels.setdefault(setting, []).append(pixels)
        short = {setting: len(one) for setting, one in levels.items() if len(one) < 2}
        levels = {setting: one for setting, one in levels.items() if len(one) > 1}
        if not levels:
            there = ", ".join(f"{n} at {setting.label}" for setting, n in short.items())
            raise NotEnoughData(
                "gain: photon transfer needs frames at two levels of light or more at one ISO"
                f" speed, there are {there or 'no frames of kind gain'}"
            )
        maps: dict[str, NDArray[Any]] = {}
        scalars: dict[str, NDArray[Any]] = {}
        table = self.iso_table
        parts = []
        for setting in sorted(levels):
            fitted, facts = self._fit_setting(tile, setting, levels[setting])
            maps |= fitted
            scalars |= facts
            group = f"gain/{setting.name}"
            gain, error, mask = (fitted[f"{group}/{n}"] for n in ("gain", "gain_error", "mask"))
            scalars |= overview(f"{group}/gain", tile, gain, mask)
            scalars |= overview(f"{group}/gain_variance", tile, error**2, mask)
            if table is not None or len(levels) == 1:
                parts.append((gain, error, mask, 1.0 if table is None else table(setting.iso)[0]))
        for setting, n in short.items():
            scalars[f"short:{setting.label}"] = np.array([n])
        if parts:
            gain, error, mask = average_normalised(parts)
            maps |= {"gain/gain": gain, "gain/gain_error": error, "gain/mask": mask}
            scalars |= overview("gain/gain", tile, gain, mask)
        return TileFit(maps, scalars)

    def _fit_setting(
        self, tile: TileStacks, setting: Setting, points: list[Pixels]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        bias = bias_level(tile, setting)
        signal = np.stack([one.mean - bias.value for one in points])
        if self.options.flicker:
            pairs = zip(points, signal, strict=True)
            variance = np.stack([without_flicker(one, light) for one, light in pairs])
        else:
            variance = np.stack([one.variance for one in points])
        n = np.stack([one.n for one in points])
        good = np.stack([one.good for one in points]) & np.isfinite(signal)
        gain, gain_error, floor, floor_error, chi2 = (np.full(tile.shape, np.nan) for _ in range(5))
        n_levels = np.zeros(tile.shape, np.int64)
        sums = np.zeros((N_CHANNELS, len(points), len(_SUMS)))
        for channel in np.unique(tile.channel).tolist():
            here = (tile.channel == channel) & tile.lit
            if not here.any():
                continue
            x, y, n_here, usable = signal[:, here], variance[:, here], n[:, here], good[:, here]
            usable = usable & (x <= self._limit(tile, x, y, bias, here))
            fit = photon_transfer(x, y, n_here, usable, pool_noise(x, y, usable))
            gain[here], gain_error[here] = fit.gain, fit.gain_error
            # The error of the bias shifts all levels together, and so the floor only.
            shift = fit.gain * np.sqrt(np.nan_to_num(bias.variance[here]))
            floor[here], floor_error[here] = fit.floor, np.hypot(fit.floor_error, shift)
            chi2[here], n_levels[here] = fit.chi2, fit.n_levels
            known = np.isfinite(x) & np.isfinite(y)
            for of, chosen in ((0, known), (4, usable)):
                x_of, y_of = np.where(chosen, x, 0.0), np.where(chosen, y, 0.0)
                columns = [chosen.sum(axis=1), x_of.sum(axis=1), y_of.sum(axis=1)]
                columns.append((y_of**2).sum(axis=1))
                sums[channel, :, of : of + 4] = np.stack(columns, axis=1)
        mask = np.zeros(tile.shape, np.uint16)
        saturated = np.stack([one.saturated for one in points])
        mask[n_levels < self.options.min_levels] |= pixel_flag("few-levels")
        mask[saturated.all(axis=0)] |= pixel_flag("saturated")
        mask[(n < 2).all(axis=0)] |= pixel_flag("few-frames")
        mask[np.stack([one.clipped for one in points]).all(axis=0)] |= pixel_flag("clipped")
        mask[gain <= 0] |= pixel_flag("unphysical")
        frames_each = np.where(good, n, 0).sum(axis=0) / np.maximum(good.sum(axis=0), 1)
        p_value = variance_fit_probability(np.nan_to_num(chi2), n_levels - 2, frames_each)
        mask[p_value < self.options.poor_fit] |= pixel_flag("poor-fit")
        group = f"gain/{setting.name}"
        maps = {
            f"{group}/gain": gain,
            f"{group}/gain_error": gain_error,
            f"{group}/floor": floor,
            f"{group}/floor_error": floor_error,
            f"{group}/mask": mask,
        }
        frames = sum(len(one.frame_means) for one in points)
        facts = {
            f"sums:{setting.name}": sums,
            f"levels:{setting.name}": np.array([len(points), frames, bias.source], np.int64),
        }
        return maps, facts

    def _limit(
        self, tile: TileStacks, x: Floats, y: Floats, bias: BiasLevel, here: NDArray[np.bool_]
    ) -> float:
        """Give the signal up to which a channel is used: a fraction of saturation."""
        with np.errstate(invalid="ignore"):
            known = np.isfinite(x) & np.isfinite(y)
            count = np.maximum(known.sum(axis=1), 1)
            mean_x = np.where(known, x, 0.0).sum(axis=1) / count
            mean_y = np.where(known, y, 0.0).sum(axis=1) / count
            spread = np.where(known, y - mean_y[:, None], 0.0)
        error = np.sqrt((spread**2).sum(axis=1)) / count
        order = np.argsort(mean_x, kind="stable")
        top, reached = full_well(mean_x[order], mean_y[order], error[order])
        limits = [top] if reached else []
        saturation = saturation_dn(tile.sensor)
        if saturation is not None:
            level = bias.value[here]
            level = level[np.isfinite(level)]
            offset = float(level.mean()) if level.size else 0.0
            limits.append(saturation - offset)
        return self.options.fit_fraction * min(limits, default=np.inf)

    def join(self, scalars: Mapping[Cell, Arrays]) -> Any:
        """Fit the curve of each channel, and make its row."""
        tiles = list(scalars.values())
        maps = overviews(tiles)
        rows: list[dict[str, Any]] = []
        points: list[dict[str, Any]] = []
        settings = [one for one in self.settings if f"levels:{one.name}" in tiles[0]]
        for setting in settings:
            of_setting = setting.columns(settings)
            name = setting.name
            total = sum(
                (tile[f"sums:{name}"] for tile in tiles), np.zeros(tiles[0][f"sums:{name}"].shape)
            )
            n_levels, n_frames, _ = tiles[0][f"levels:{name}"].tolist()
            source = max(int(tile[f"levels:{name}"][2]) for tile in tiles)
            short = maps[f"gain/{name}/gain"]
            noise = maps[f"gain/{name}/gain_variance"]
            for channel, channel_name in enumerate(channel_names(self._sensor)):
                if not total[channel, :, 0].any():
                    continue
                curve = _Curve(total[channel])
                rows.append(
                    {
                        **of_setting,
                        "channel": channel_name,
                        "n_levels": n_levels,
                        "n_frames": n_frames,
                        "gain_dn_per_electron": short.mean[channel],
                        "gain_dn_per_electron_error": short.std[channel]
                        / np.sqrt(max(short.n[channel], 1)),
                        # The pixels' gains differ by this, less what noise adds.
                        "gain_scatter_dn_per_electron": np.sqrt(
                            max(short.std[channel] ** 2 - noise.mean[channel], 0.0)
                        ),
                        **self._channel_row(curve),
                        "bias_source": BIAS_SOURCES[source],
                        **count_columns(short),
                    }
                )
                points += [
                    {**of_setting, "channel": channel_name, **point} for point in curve.points()
                ]
        left_out = [name[6:] for name in tiles[0] if name.startswith("short:")]
        return {"rows": rows, "points": points, "left_out": left_out, "overviews": maps}

    def _channel_row(self, curve: _Curve) -> dict[str, Any]:
        """Fit a channel's curve; NaN, and the reason, where that cannot be done."""
        brighter_fatter = self.options.brighter_fatter
        well, reached = full_well(*curve.all_levels())
        row: dict[str, Any] = {
            "ptc_gain_dn_per_electron": np.nan,
            "ptc_gain_dn_per_electron_error": np.nan,
            "readnoise_dn": np.nan,
            "readnoise_electron": np.nan,
            "full_well_dn": well,
            "full_well_electron": np.nan,
            "full_well_reached": reached,
            "a00_per_electron": np.nan,
            "a00_per_electron_error": np.nan,
            "chi2": np.nan,
            "ndf": 0,
            "p_value": np.nan,
        }
        signal, variance, error = curve.used_levels()
        try:
            fit = fit_ptc(signal, variance, error, brighter_fatter=brighter_fatter)
        except NotEnoughData:
            return row
        floor = max(fit.floor, MIN_TEMPORAL_VARIANCE) - QUANTISATION_VARIANCE
        noise = np.sqrt(floor)
        return row | {
            "ptc_gain_dn_per_electron": fit.gain,
            "ptc_gain_dn_per_electron_error": fit.gain_error,
            "readnoise_dn": noise,
            "readnoise_electron": noise / fit.gain if fit.gain > 0 else np.nan,
            "full_well_electron": well / fit.gain if fit.gain > 0 else np.nan,
            "a00_per_electron": fit.a00,
            "a00_per_electron_error": fit.a00_error,
            "chi2": fit.chi2,
            "ndf": fit.ndf,
            "p_value": float(chi2_probability(fit.chi2, fit.ndf)),
        }

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Give the monitoring table, and the points of the curves."""
        return {
            "/sensor/gain": monitoring_table(
                self._sensor,
                result["rows"],
                {
                    "gain_dn_per_electron": "mean of the good pixels' gains",
                    "gain_scatter_dn_per_electron": "their scatter, less that from noise",
                    "ptc_gain_dn_per_electron": "slope of the channel's curve: where pixels differ,"
                    " larger than the mean by the square of their relative scatter",
                    "readnoise_dn": "from the curve at no light, without rounding",
                    "full_well_dn": "signal at the largest variance; a lower limit unless reached",
                    "a00_per_electron": "brighter-fatter effect (Astier et al. 2019, eq. 16)",
                },
            ),
            "/sensor/gain_curve": monitoring_table(
                self._sensor,
                result["points"],
                {"used": "whether it is part of the fit", "n_used": "pixels used"},
            ),
        }

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Give the sections of the HTML report."""
        del tables
        from calibdask.sensor.report import gain_sections

        return gain_sections(result)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        del result
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_gain

            write_gain(directory, self, maps)


class _Curve:
    """The photon transfer curve of a channel, from the sums of all tiles.

    Levels of which fewer than one in a hundred pixels can be used are left out of the fit.
    """

    def __init__(self, sums: Floats) -> None:
        by_name = dict(zip(_SUMS, sums.T, strict=True))
        self.n, self.n_used = by_name["n"], by_name["used"]
        count, count_used = np.maximum(self.n, 1), np.maximum(self.n_used, 1)
        self.signal, self.variance = by_name["signal"] / count, by_name["variance"] / count
        self.signal_used = by_name["signal_used"] / count_used
        self.variance_used = by_name["variance_used"] / count_used
        spread = by_name["variance2"] / count - self.variance**2
        spread_used = by_name["variance2_used"] / count_used - self.variance_used**2
        self.error = np.sqrt(np.maximum(spread, 0.0) / count)
        self.error_used = np.sqrt(np.maximum(spread_used, 0.0) / count_used)
        self.used = (self.n_used > 0.01 * self.n) & (self.error_used > 0)
        self.order = np.argsort(self.signal, kind="stable")

    def all_levels(self) -> tuple[Floats, Floats, Floats]:
        """Give signal, variance and its error of all pixels, by rising signal."""
        order = self.order[self.n[self.order] > 0]
        return self.signal[order], self.variance[order], self.error[order]

    def used_levels(self) -> tuple[Floats, Floats, Floats]:
        """Give signal, variance and its error of what the fit may use, by rising signal."""
        order = self.order[self.used[self.order]]
        return self.signal_used[order], self.variance_used[order], self.error_used[order]

    def points(self) -> list[dict[str, Any]]:
        """Give the points for a table and a figure."""
        return [
            {
                "signal_dn": self.signal[i],
                "variance_dn2": self.variance[i],
                "variance_dn2_error": self.error[i],
                "n_used": int(self.n_used[i]),
                "used": bool(self.used[i]),
            }
            for i in self.order.tolist()
        ]
