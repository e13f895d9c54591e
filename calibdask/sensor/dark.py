"""Dark current of each pixel, hot pixels, and the law of its temperature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.flags import PixelFlag
from calibdask.sensor import config
from calibdask.sensor.job import MapCalibration
from calibdask.sensor.model import dark_current, fit_temperature, hot_pixels
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.pixels import BIAS_SOURCES, bias_level, gather
from calibdask.sensor.settings import NOT_STATED, settings_of
from calibdask.sensor.tables import DARK_CURRENT, TEMPERATURE, build, count_columns
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
    from calibdask.sensor.model import DarkFit as Fit
    from calibdask.sensor.pixels import Pixels
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["DarkCurrentJob", "average_normalised", "dark_flags", "dark_series", "fit_series"]

_SETTING = ("iso", "gain_setting", "offset_setting", "readout_mode")
"""Columns of a row that tell the setting, those that are there."""

type Series = dict[float, Pixels]
"""Stacks by exposure time in seconds, rising."""


def dark_series(tile: TileStacks, near_saturation: float) -> dict[tuple[Setting, float], Series]:
    """Sort the dark stacks of a tile: (setting, temperature in deg C), then exposure time."""

    def key_of(key: StackKey) -> tuple[Setting, float, float]:
        return key.setting, key.temperature_c, key.exposure_s

    stacks = gather(tile, "dark_current", key_of, near_saturation=near_saturation)
    series: dict[tuple[Setting, float], Series] = {}
    for setting, temperature, exposure in sorted(stacks):
        if exposure >= 0:
            one = series.setdefault((setting, temperature), {})
            one[exposure] = stacks[setting, temperature, exposure]
    return series


def fit_series(series: Series) -> Fit:
    """Fit the dark current of one series."""
    points = list(series.values())
    return dark_current(
        np.array(list(series), np.float64),
        np.stack([one.mean for one in points]),
        np.stack([one.variance for one in points]),
        np.stack([one.n for one in points]),
        np.stack([one.good for one in points]),
    )


def dark_flags(
    tile: TileStacks,
    series: Series,
    fit: Fit,
    n_sigma: float,
    limit: float | None = None,
    poor_fit: float = 0.0,
) -> NDArray[np.uint16]:
    """Flag pixels without a line, those with points left out, and hot ones."""
    saturated = np.stack([one.saturated for one in series.values()])
    clipped = np.stack([one.clipped for one in series.values()])
    few = np.stack([one.n < 2 for one in series.values()])
    mask = np.zeros(tile.shape, np.uint16)
    fitted = np.isfinite(fit.rate)
    mask[~fitted] |= PixelFlag.FEW_LEVELS.bit
    mask[~fitted & saturated.any(axis=0)] |= PixelFlag.SATURATED.bit
    mask[fitted & saturated.any(axis=0)] |= PixelFlag.PARTLY_SATURATED.bit
    mask[clipped.any(axis=0)] |= PixelFlag.CLIPPED.bit
    mask[few.all(axis=0)] |= PixelFlag.FEW_FRAMES.bit
    for channel in np.unique(tile.channel):
        here = (tile.channel == channel) & fitted
        hot, _ = hot_pixels(fit.rate, fit.rate_error, here, n_sigma)
        mask[hot] |= PixelFlag.HOT.bit
    mask[fitted & (fit.p_value() < poor_fit)] |= PixelFlag.POOR_FIT.bit
    if limit is not None:
        mask[fitted & (fit.rate > limit)] |= PixelFlag.HOT.bit
    # Saturated before a line could be drawn: hot beyond measure.
    mask[~fitted & saturated.any(axis=0)] |= PixelFlag.HOT.bit
    mask[~tile.lit] = PixelFlag.BORDER.bit
    return mask


def average_normalised(
    parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint16], float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint16]]:
    """Average maps of several ISO speeds, each divided by its ISO factor.

    Parameters
    ----------
    parts : sequence of (values, errors, mask, factor)
        One per ISO speed.

    Returns
    -------
    values, errors, mask : ndarray
        Weighted by 1/error^2. A pixel carries the flags that all its used values have; a value
        with flags counts only where there is none without.
    """
    clean = np.stack([(mask == 0) & np.isfinite(values) for values, _, mask, _ in parts])
    usable = np.where(
        clean.any(axis=0), clean, np.stack([np.isfinite(values) for values, *_ in parts])
    )
    weight_sum = np.zeros(clean.shape[1:])
    total = np.zeros(clean.shape[1:])
    flags = np.full(clean.shape[1:], np.iinfo(np.uint16).max, np.uint16)
    with np.errstate(divide="ignore", invalid="ignore"):
        for (values, errors, mask, factor), use in zip(parts, usable, strict=True):
            weight = np.where(use, (factor / errors) ** 2, 0.0)
            total += np.where(use, weight * values / factor, 0.0)
            weight_sum += weight
            flags &= np.where(use | ~usable.any(axis=0), mask, np.iinfo(np.uint16).max)
        return total / weight_sum, 1.0 / np.sqrt(weight_sum), flags


def _group(setting: Setting, temperature: float, *, several: bool) -> str:
    name = f"dark_current/{setting.name}"
    return f"{name}_{temperature:+.10g}C" if several else name


@dataclass(frozen=True)
class DarkCurrentJob(MapCalibration):
    """Dark current by pixel."""

    name: ClassVar[str] = "dark-current"
    title: ClassVar[str] = "Dark current of pixels"
    state_ratio: ClassVar[float] = 0.3
    kinds: ClassVar[tuple[str, ...]] = ("dark_current", "bias_readnoise")
    own_kind: ClassVar[str] = "dark_current"
    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "dark_current": ("DN/s", "dark current"),
        "dark_current_error": ("DN/s", "standard error of the dark current"),
        "offset": ("DN", "signal at no exposure: the bias, if all is well"),
        "offset_error": ("DN", "standard error of the offset"),
    }

    sections = config.sections_of(config.DarkCurrent)
    options: config.DarkCurrent = field(default_factory=config.DarkCurrent)

    def fit_tile(self, tile: TileStacks) -> TileFit:
        """Fit the pixels of one tile at each ISO speed and temperature."""
        series = dark_series(tile, self.options.near_saturation)
        short = {key: list(one) for key, one in series.items() if len(one) < 2}
        series = {key: one for key, one in series.items() if len(one) > 1}
        if not series:
            there = "; ".join(f"{one.label}: {times} s" for (one, _), times in short.items())
            raise NotEnoughData(
                "dark-current: a rate needs dark frames at two exposure times or more, there are"
                f" {there or 'no dark frames with a known exposure time'}"
            )
        several = len({temperature for _, temperature in series}) > 1
        maps: dict[str, NDArray[Any]] = {}
        facts: dict[FactKey, NDArray[Any]] = {}
        parts = []
        reference = self._reference_temperature(series)
        table = self.iso_table
        settings = {setting for setting, temperature in series if temperature == reference}
        for (setting, temperature), one in series.items():
            fit = fit_series(one)
            mask = dark_flags(
                tile, one, fit, self.options.hot_sigma, poor_fit=self.options.poor_fit
            )
            group = _group(setting, temperature, several=several)
            maps |= {
                f"{group}/dark_current": fit.rate,
                f"{group}/dark_current_error": fit.rate_error,
                f"{group}/offset": fit.offset,
                f"{group}/offset_error": fit.offset_error,
                f"{group}/mask": mask,
            }
            facts |= overview(f"{group}/dark_current", tile, fit.rate, mask)
            facts |= self._facts(tile, group, setting, one, fit, mask)
            facts["temperature", group] = np.array([temperature])
            if temperature == reference and (table is not None or len(settings) == 1):
                factor = table(setting.iso)[0] if table is not None else 1.0
                parts.append((fit.rate, fit.rate_error, mask, factor))
        for (setting, temperature), times in short.items():
            at = "" if temperature == NOT_STATED else f", {temperature:g} deg C"
            facts["short", f"{setting.label}{at}"] = np.array(times)
        if parts:
            rate, error, mask = average_normalised(parts)
            facts["reference",] = np.array([reference])
            maps |= {
                "dark_current/dark_current": rate,
                "dark_current/dark_current_error": error,
                "dark_current/mask": mask,
            }
            facts |= overview("dark_current/dark_current", tile, rate, mask)
        return TileFit(maps, facts)

    @staticmethod
    def _reference_temperature(series: Mapping[tuple[Setting, float], Series]) -> float:
        """Return the temperature with most frames; of equals the lowest."""
        frames: dict[float, int] = {}
        for (_, temperature), one in series.items():
            n = sum(len(pixels.frame_means) for pixels in one.values())
            frames[temperature] = frames.get(temperature, 0) + n
        return min(frames, key=lambda temperature: (-frames[temperature], temperature))

    @staticmethod
    def _facts(
        tile: TileStacks,
        group: str,
        setting: Setting,
        series: Series,
        fit: Fit,
        mask: NDArray[np.uint16],
    ) -> dict[FactKey, NDArray[Any]]:
        """Sum up what the row of a series needs besides the map in short."""
        good = (mask == 0) & np.isfinite(fit.rate)
        bias = bias_level(tile, setting)
        variance = fit.offset_error**2 + bias.variance
        checked = good & (variance > 0) & np.isfinite(bias.value)
        difference = (fit.offset - bias.value)[checked]
        pulls = difference / np.sqrt(variance[checked])
        everything = np.isfinite(fit.rate)
        sums = [
            np.count_nonzero(good),
            (fit.rate_error[good] ** 2).sum(),
            np.count_nonzero(checked),
            difference.sum(),
            (pulls**2).sum(),
            np.count_nonzero(everything),
            fit.rate[everything].sum(),
            fit.chi2[good].sum(),
            np.maximum(fit.n_exposures[good] - 2, 0).sum(),
        ]
        exposures = list(series)
        return {
            ("sums", group): np.array(sums, np.float64),
            ("series", group): np.array(
                [
                    len(exposures),
                    min(exposures),
                    max(exposures),
                    sum(len(one.frame_means) for one in series.values()),
                    bias.source,
                ]
            ),
        }

    def join(self, facts: Mapping[Cell, Facts]) -> Any:
        """Make a row of each series, and fit the law of temperature."""
        tiles = list(facts.values())
        maps = overviews(tiles)
        rows = []
        about: dict[str, dict[str, Any]] = {}
        groups = [str(group) for what, *of in tiles[0] if what == "temperature" for group in of]
        settings = {
            name: settings_of([f"{name}/dark_current"], "dark_current")[0] for name in groups
        }
        for name in groups:
            (temperature,) = tiles[0]["temperature", name].tolist()
            if temperature != NOT_STATED:
                about[name] = {"temperature_c": temperature}
            sums = sum((tile["sums", name] for tile in tiles), np.zeros(9))
            n, error2, n_checked, difference, pull2, n_all, total, chi2, ndf = sums.tolist()
            n_times, shortest, longest, n_frames, _ = tiles[0]["series", name].tolist()
            source = max(int(tile["series", name][4]) for tile in tiles)
            short = maps[f"{name}/dark_current"]
            _, mean, std = short.total
            checked = n_checked > 0 and source != len(BIAS_SOURCES) - 1
            rows.append(
                {
                    **settings[name].columns(settings.values()),
                    "temperature_c": np.nan if temperature == NOT_STATED else temperature,
                    "n_exposures": int(n_times),
                    "shortest_s": shortest,
                    "longest_s": longest,
                    "n_frames": int(n_frames),
                    "dark_current_dn_per_s": mean,
                    "dark_current_dn_per_s_error": np.sqrt(error2) / n if n else np.nan,
                    "scatter_dn_per_s": std,
                    "dark_current_with_hot_dn_per_s": total / n_all if n_all else np.nan,
                    "n_hot": short.n_flagged.get(PixelFlag.HOT, 0),
                    "offset_minus_bias_dn": difference / n_checked if checked else np.nan,
                    "offset_pull_rms": np.sqrt(pull2 / n_checked) if checked else np.nan,
                    "bias_source": BIAS_SOURCES[source],
                    "chi2_per_ndf": chi2 / ndf if ndf else np.nan,
                    **count_columns(short),
                }
            )
        reference = tiles[0].get(("reference",), np.array([NOT_STATED])).item()
        if reference != NOT_STATED:
            about["dark_current"] = {"temperature_c": reference}
        left_out = sorted(str(label) for what, *of in tiles[0] if what == "short" for label in of)
        return {
            "rows": rows,
            "temperature": self._temperature_rows(rows),
            "left_out": left_out,
            "overviews": maps,
            "about": about,
        }

    @staticmethod
    def _temperature_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Fit the law of temperature at each ISO speed that has enough of them."""
        laws = []
        of_setting = [
            tuple(map(str, (row[name] for name in _SETTING if name in row))) for row in rows
        ]
        for setting in dict.fromkeys(of_setting):
            mine = [
                row
                for row, own in zip(rows, of_setting, strict=True)
                if own == setting and np.isfinite(row["temperature_c"])
            ]
            columns = ("temperature_c", "dark_current_dn_per_s", "dark_current_dn_per_s_error")
            temperature, rate, error = (np.array([row[name] for row in mine]) for name in columns)
            try:
                law = fit_temperature(temperature, rate, error)
            except NotEnoughData:
                continue  # most campaigns have one temperature: that is no fault
            laws.append(
                {
                    **{name: mine[0][name] for name in _SETTING if name in mine[0]},
                    "doubling_k": law.doubling_k,
                    "doubling_k_error": law.doubling_error,
                    "activation_energy_ev": law.energy_ev,
                    "activation_energy_ev_error": law.energy_error,
                    "reference_c": law.reference_c,
                    "rate_dn_per_s": law.rate,
                    "rate_dn_per_s_error": law.rate_error,
                    "chi2_doubling": law.chi2_doubling,
                    "chi2_arrhenius": law.chi2_arrhenius,
                    "ndf": law.ndf,
                }
            )
        return laws

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Return the monitoring table, and that of the law of temperature if there is one."""
        tables = {DARK_CURRENT.path: build(DARK_CURRENT, self._sensor, result["rows"])}
        if result["temperature"]:
            tables[TEMPERATURE.path] = build(TEMPERATURE, self._sensor, result["temperature"])
        return tables

    def describe_groups(self, result: Any) -> Mapping[str, Mapping[str, Any]]:
        """Return the temperature of each series."""
        about: Mapping[str, Mapping[str, Any]] = result["about"]
        return about

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[ReportSection]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.dark_report import dark_sections

        return dark_sections(result, tables)

    def export(self, directory: Path, maps: ProductMaps, result: Any) -> None:
        """Write the product in SPECTACLE's format, if asked for."""
        del result
        if self.options.spectacle:
            from calibdask.sensor.spectacle import write_dark

            write_dark(directory, self, maps)
