"""Gain by photon transfer, of each pixel and of each channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.dark import average_normalised
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import (
    MIN_TEMPORAL_VARIANCE,
    QUANTISATION_VARIANCE,
    chi2_probability,
    pool_noise,
    variance_fit_probability,
)
from calibdask.sensor.overview import N_CHANNELS, overview, overviews
from calibdask.sensor.photon_transfer import fit_ptc, full_well, photon_transfer
from calibdask.sensor.pixels import BIAS_SOURCES, bias_level, gather, saturation_dn, without_flicker
from calibdask.sensor.spatial import steps_along
from calibdask.sensor.tables import AMPLIFIERS, CURVE, GAIN, build, channel_names, count_columns
from calibdask.sensor.tiles import TileFit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.io.maps import ProductMaps
    from calibdask.report import ReportSection
    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.pixels import BiasLevel, Pixels
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

    type Floats = NDArray[np.float64]
    type Level = tuple[str, float, float]

__all__ = ["GainJob"]

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


_BY_VALUE = PixelFlag.UNPHYSICAL.value
"""Flags that hang on the gain itself: means without these pixels would be too high."""


@dataclass(frozen=True)
class GainJob(MapCalibration):
    """Gain by pixel and by channel."""

    name: ClassVar[str] = "gain"
    title: ClassVar[str] = "Gain of pixels"
    state_ratio: ClassVar[float] = 0.3
    kinds: ClassVar[tuple[str, ...]] = ("gain", "bias_readnoise")
    own_kind: ClassVar[str] = "gain"
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "gain": ("DN/electron", "gain"),
        "gain_error": ("DN/electron", "standard error of the gain"),
        "floor": ("DN2", "variance at no light: read noise and rounding"),
        "floor_error": ("DN2", "standard error of the floor"),
    }

    sections = config.sections_of(config.Gain)
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
        facts: dict[FactKey, NDArray[Any]] = {}
        table = self.iso_table
        parts = []
        for setting in sorted(levels):
            fitted, of_setting = self._fit_setting(tile, setting, levels[setting])
            maps |= fitted
            facts |= of_setting
            group = f"gain/{setting.name}"
            gain, error, mask = (fitted[f"{group}/{n}"] for n in ("gain", "gain_error", "mask"))
            facts |= overview(f"{group}/gain", tile, gain, mask, _BY_VALUE)
            facts |= overview(f"{group}/gain_variance", tile, error**2, mask, _BY_VALUE)
            for axis in ("columns", "rows"):
                good = np.isfinite(gain) & (mask & ~np.uint16(_BY_VALUE) == 0)
                facts[axis, setting.name] = np.stack(
                    [
                        _profile(gain, good & (tile.channel == channel), axis)
                        for channel in range(N_CHANNELS)
                    ]
                )
            if table is not None or len(levels) == 1:
                factor = 1.0 if table is None else table(setting.iso)[0]
                parts.append((gain, error, mask & ~np.uint16(_BY_VALUE), factor))
        for setting, n in short.items():
            facts["short", setting.label] = np.array([n])
        if parts:
            gain, error, mask = average_normalised(parts)
            mask[gain <= 0] |= PixelFlag.UNPHYSICAL.bit
            maps |= {"gain/gain": gain, "gain/gain_error": error, "gain/mask": mask}
            facts |= overview("gain/gain", tile, gain, mask, _BY_VALUE)
        return TileFit(maps, facts)

    def _fit_setting(
        self, tile: TileStacks, setting: Setting, points: list[Pixels]
    ) -> tuple[dict[str, NDArray[Any]], dict[FactKey, NDArray[Any]]]:
        bias = bias_level(tile, setting)
        signal = np.stack([one.mean - bias.value for one in points])
        if self.options.flicker:
            pairs = zip(points, signal, strict=True)
            steady = [without_flicker(one, light) for one, light in pairs]
            variance = np.stack([one for one, _ in steady])
            flicker2 = np.array([f2 for _, f2 in steady])[:, None]
        else:
            variance = np.stack([one.variance for one in points])
            flicker2 = np.zeros((len(points), 1))
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
            used = self._used(tile, channel, points, y, bias)
            usable = usable & used[:, None]
            parts = np.zeros(x.shape[1], np.int64)
            for again in (False, True):
                for part in np.unique(parts).tolist():
                    mine = parts == part
                    where = tuple(one[mine] for one in np.nonzero(here))
                    data = (x[:, mine], y[:, mine], n_here[:, mine], usable[:, mine])
                    noise = pool_noise(data[0], data[1], data[3])
                    fit = photon_transfer(*data, noise, flicker2)
                    gain[where], gain_error[where] = fit.gain, fit.gain_error
                    # The error of the bias shifts all levels together, and so the floor only.
                    shift = fit.gain * np.sqrt(np.nan_to_num(bias.variance[where]))
                    floor[where], floor_error[where] = fit.floor, np.hypot(fit.floor_error, shift)
                    chi2[where], n_levels[where] = fit.chi2, fit.n_levels
                # Amplifiers differ in noise as well: then each has its own noise model.
                parts = _amplifiers(gain, here)
                if again or not parts.any():
                    break
            known = np.isfinite(x) & np.isfinite(y)
            for of, chosen in ((0, known), (4, usable)):
                x_of, y_of = np.where(chosen, x, 0.0), np.where(chosen, y, 0.0)
                columns = [chosen.sum(axis=1), x_of.sum(axis=1), y_of.sum(axis=1)]
                columns.append((y_of**2).sum(axis=1))
                sums[channel, :, of : of + 4] = np.stack(columns, axis=1)
        mask = np.zeros(tile.shape, np.uint16)
        saturated = np.stack([one.saturated for one in points])
        mask[n_levels < self.options.min_levels] |= PixelFlag.FEW_LEVELS.bit
        mask[saturated.all(axis=0)] |= PixelFlag.SATURATED.bit
        mask[(n < 2).all(axis=0)] |= PixelFlag.FEW_FRAMES.bit
        mask[np.stack([one.clipped for one in points]).all(axis=0)] |= PixelFlag.CLIPPED.bit
        mask[gain <= 0] |= PixelFlag.UNPHYSICAL.bit
        frames_each = np.where(good, n, 0).sum(axis=0) / np.maximum(good.sum(axis=0), 1)
        p_value = variance_fit_probability(np.nan_to_num(chi2), n_levels - 2, frames_each)
        mask[p_value < self.options.poor_fit] |= PixelFlag.POOR_FIT.bit
        group = f"gain/{setting.name}"
        maps = {
            f"{group}/gain": gain,
            f"{group}/gain_error": gain_error,
            f"{group}/floor": floor,
            f"{group}/floor_error": floor_error,
            f"{group}/mask": mask,
        }
        frames = sum(len(one.frame_means) for one in points)
        facts: dict[FactKey, NDArray[Any]] = {
            ("sums", setting.name): sums,
            ("levels", setting.name): np.array(
                [len(points), frames, bias.source, tile.sensor.step_dn], np.int64
            ),
        }
        return maps, facts

    def _used(
        self, tile: TileStacks, channel: int, points: Sequence[Pixels], y: Floats, bias: BiasLevel
    ) -> NDArray[np.bool_]:
        """Return which levels a channel uses: those up to a fraction of saturation.

        A level is used whole or not at all, by its mean over the sensor: if each pixel decided by
        its own signal, the noise and the response that make it low would be picked with it.
        """
        places = tile.places_of(channel)
        weight = tile.sensor.n_lit_by_place * places
        level = np.array([np.average(one.level - bias.level, weights=weight) for one in points])
        known = np.isfinite(y)
        count = np.maximum(known.sum(axis=1), 1)
        mean_y = np.where(known, y, 0.0).sum(axis=1) / count
        spread = np.where(known, y - mean_y[:, None], 0.0)
        error = np.sqrt((spread**2).sum(axis=1)) / count
        order = np.argsort(level, kind="stable")
        top, reached = full_well(level[order], mean_y[order], error[order])
        limits = [top] if reached else []
        saturation = saturation_dn(tile.sensor)
        if saturation is not None:
            limits.append(saturation - float(np.average(bias.level, weights=weight)))
        used: NDArray[np.bool_] = level <= self.options.fit_fraction * min(limits, default=np.inf)
        return used

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Fit the curve of each channel, and make its row."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        rows: list[dict[str, Any]] = []
        points: list[dict[str, Any]] = []
        amplifiers: list[dict[str, Any]] = []
        notices: list[str] = []
        step = 1
        settings = [one for one in self.settings if ("levels", one.name) in tiles[0]]
        for setting in settings:
            of_setting = setting.columns(settings)
            name = setting.name
            total = sum(
                (tile["sums", name] for tile in tiles), np.zeros(tiles[0]["sums", name].shape)
            )
            n_levels, n_frames, _, step = tiles[0]["levels", name].tolist()
            source = max(int(tile["levels", name][2]) for tile in tiles)
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
                        **self._channel_row(curve, step),
                        "bias_source": BIAS_SOURCES[source],
                        **count_columns(short),
                    }
                )
                points += [
                    {**of_setting, "channel": channel_name, **point} for point in curve.points()
                ]
            parts = self._amplifier_rows(tiles, setting)
            notices += self._amplifier_notices(setting, parts)
            amplifiers += [{**of_setting, **one} for one in parts]
        left_out = [str(label) for what, *of in tiles[0] if what == "short" for label in of]
        return {
            "rows": rows,
            "points": points,
            "amplifiers": amplifiers,
            "notices": notices,
            "step_dn": step,
            "left_out": left_out,
            "overviews": maps,
        }

    def _amplifier_rows(self, tiles: Sequence[Facts], setting: Setting) -> list[dict[str, Any]]:
        """Identify amplifiers by their gains, along columns and rows; none for a single one."""
        rows = []
        for axis in ("columns", "rows"):
            parts = [tile[axis, setting.name] for tile in tiles]
            # shape (channels, columns or rows, 3)
            sums = np.sum(parts, axis=0) if axis == "columns" else np.concatenate(parts, axis=1)
            seams = steps_along(*_relative(sums))
            edges = [0, *seams, sums.shape[1]]
            for first, stop in pairwise(edges) if seams else ():
                n, total, squares = sums[:, first:stop].sum(axis=1).T
                for channel, name in enumerate(channel_names(self._sensor)):
                    if n[channel] > 1:
                        mean = total[channel] / n[channel]
                        spread = max(squares[channel] / n[channel] - mean**2, 0.0)
                        rows.append(
                            {
                                "along": axis,
                                "first": first,
                                "last": stop - 1,
                                "channel": name,
                                "n_used": int(n[channel]),
                                "gain_dn_per_electron": mean,
                                "gain_dn_per_electron_error": np.sqrt(spread / n[channel]),
                            }
                        )
        return rows

    def notices(self, states: Mapping[Cell, TileFit], result: Any) -> Sequence[str]:
        """Report several amplifiers, besides what the frames show about the converter."""
        return [*super().notices(states, result), *result["notices"]]

    @staticmethod
    def _amplifier_notices(setting: Setting, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        told = []
        for along in sorted({one["along"] for one in rows}):
            # Of the first channel: people look for the jump, and the table has all.
            parts = {
                (one["first"], one["last"]): one["gain_dn_per_electron"]
                for one in reversed(rows)
                if one["along"] == along
            }
            text = ", ".join(
                f"{first}-{last} ({gain:.4g} DN/e-)"
                for (first, last), gain in sorted(parts.items())
            )
            told.append(
                f"{setting.label}: the gain jumps between the {along} {text}: these are several"
                " amplifiers, and a row of a channel is the mean of all (gain_amplifiers has each)"
            )
        return told

    def _channel_row(self, curve: _Curve, step_dn: int) -> dict[str, Any]:
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
        floor = max(fit.floor, MIN_TEMPORAL_VARIANCE * step_dn**2)
        noise = np.sqrt(floor - QUANTISATION_VARIANCE * step_dn**2)
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
        """Return the monitoring table, the points of the curves, and amplifiers where there are."""
        rows = {GAIN: result["rows"], CURVE: result["points"]}
        if result["amplifiers"]:
            rows[AMPLIFIERS] = result["amplifiers"]
        return {schema.path: build(schema, self._sensor, one) for schema, one in rows.items()}

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.gain_report import gain_sections

        return gain_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        del result
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_gain

            write_gain(directory, self, maps)


def _profile(gain: Floats, good: NDArray[np.bool_], axis: str) -> Floats:
    """Sum gains up along columns or rows: number, sum and sum of squares, shape (n, 3)."""
    along = 0 if axis == "columns" else 1
    values = np.where(good, gain, 0.0)
    return np.stack([one.sum(axis=along) for one in (good, values, values**2)], axis=1)


def _relative(sums: Floats) -> tuple[Floats, Floats]:
    """Join the profiles of all channels, each relative to its mean.

    Parameters
    ----------
    sums : ndarray of float64, shape (channels, n, 3)
        From `_profile`.

    Returns
    -------
    value, error : ndarray of float64, shape (n,)
        Weighted mean over channels; NaN where fewer than two pixels are known.
    """
    n, total, squares = np.moveaxis(sums, 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        overall = (total.sum(axis=1) / n.sum(axis=1))[:, None]
        mean = total / n
        # One scatter for all: a weight of the point's own would draw the mean down.
        inner = (squares - n * mean**2)[n > 1].sum() / np.maximum(n - 1, 0).sum()
        weight = np.where((n > 1) & (overall > 0), n * overall**2 / inner, 0.0)
        summed = weight.sum(axis=0)
        value = np.where(weight > 0, weight * mean / overall, 0.0).sum(axis=0) / summed
        return value, 1.0 / np.sqrt(summed)


def _amplifiers(gain: Floats, here: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count off the amplifiers that pixels of a channel belong to, by their gains in a tile.

    Returns
    -------
    ndarray of int64, shape (n_pixels,)
        Of the pixels in `here`, in their order; 0 for all where there is one amplifier.
    """
    good = here & np.isfinite(gain)
    number = np.zeros(np.count_nonzero(here), np.int64)
    for axis, place in zip(("rows", "columns"), np.nonzero(here), strict=True):
        seams = steps_along(*_relative(_profile(gain, good, axis)[None]))
        number = number * (len(seams) + 1) + np.searchsorted(seams, place, side="right")
    return number


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
        """Return signal, variance and its error of all pixels, by rising signal."""
        order = self.order[self.n[self.order] > 0]
        return self.signal[order], self.variance[order], self.error[order]

    def used_levels(self) -> tuple[Floats, Floats, Floats]:
        """Return signal, variance and its error of what the fit may use, by rising signal."""
        order = self.order[self.used[self.order]]
        return self.signal_used[order], self.variance_used[order], self.error_used[order]

    def points(self) -> list[dict[str, Any]]:
        """Return the points for a table and a figure."""
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
