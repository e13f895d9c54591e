"""What a table row and a figure need to know of a map, addable over the tiles of a sensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import PixelFlag
from calibdask.stats.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.tiles import FactKey, Facts, TileStacks

__all__ = ["N_CHANNELS", "Overview", "StackRecord", "overview", "overviews"]

N_CHANNELS = 4
"""Colour channels, in LibRaw's numbering: 0 red, 1 green, 2 blue, 3 second green."""

_THUMBNAIL = 360
"""Most rows or columns of the image of a map in a report."""

_OVERVIEW = "overview"  # first part of the keys of its facts

_SAMPLE = 20_000
"""About how many pixels of a map a histogram in a report is made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """A whole map in short.

    Attributes
    ----------
    n : ndarray of int64, shape (4,)
        Good pixels of each channel.
    mean, std : ndarray of float64, shape (4,)
        Their mean and standard deviation.
    n_flagged : mapping of PixelFlag to int
        Pixels with each flag that was set at all.
    n_bad : int
        Pixels with any flag, or without a value.
    n_pixels : int
        All of them; masked borders and overscan are never counted.
    thumbnail : ndarray of float64, shape (rows, columns)
        Means over square blocks of good pixels; NaN where there are none.
    step : int
        Rows and columns of a block.
    sample : ndarray of float64
        Values of good pixels, evenly picked: for histograms.
    """

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    n_flagged: Mapping[PixelFlag, int]
    n_bad: int
    n_pixels: int
    thumbnail: NDArray[np.float64]
    step: int
    sample: NDArray[np.float64]

    @property
    def total(self) -> tuple[int, float, float]:
        """Number, mean and standard deviation of all good pixels."""
        moments = Moments(self.n[0:0].sum(keepdims=True), np.zeros(1), np.zeros(1))
        for channel in range(N_CHANNELS):
            n = self.n[channel : channel + 1]
            m2 = np.nan_to_num(self.std[channel : channel + 1]) ** 2 * np.maximum(n - 1, 0)
            moments = moments.merge(Moments(n, np.nan_to_num(self.mean[channel : channel + 1]), m2))
        number = int(moments.n[0])
        mean = float(moments.mean[0]) if number else np.nan
        return number, mean, float(np.sqrt(moments.variance()[0]))


def overview(
    name: str,
    tile: TileStacks,
    values: NDArray[Any],
    mask: NDArray[np.uint16],
    ignored: int = 0,
) -> dict[FactKey, NDArray[Any]]:
    """Summarise the part of a map that lies in a tile; good is what has no flag.

    Parameters
    ----------
    name : str
        Name of the map.
    tile : TileStacks
        Where it lies.
    values : ndarray, shape (h, w)
        The map.
    mask : ndarray of uint16, shape (h, w)
        Its pixel flags.
    ignored : int
        Flags that are counted, but leave a pixel in the means: those that hang on the value itself,
        as without negative values a mean is too high.

    Returns
    -------
    dict of tuple to ndarray
        Facts for a `TileFit`; `overviews` reads them.
    """
    known = np.isfinite(values) & tile.lit
    good = known & (mask & ~np.uint16(ignored) == 0)
    filled = values if good.all() else np.where(good, values, 0.0)
    moments = _channel_moments(tile.channel, filled, good)
    height, width = tile.sensor.shape
    step = max(2, -(-max(height, width) // _THUMBNAIL))
    n_rows, n_columns = -(-height // step), -(-width // step)
    first = tile.y0 // step
    # Blocks are counted from the sensor's first row, so the first of a tile may be cut.
    down = np.maximum(np.arange(first * step, tile.y1, step) - tile.y0, 0)
    across = np.arange(0, width, step)
    count, total = (
        np.add.reduceat(np.add.reduceat(one, down, axis=0), across, axis=1).ravel()
        for one in (good.astype(np.float64), filled)
    )
    stride = max(1, height * width // _SAMPLE)
    picked = _picked(tile.y0 * width, tile.y1 * width, stride)
    sample = values.ravel()[picked][good.ravel()[picked]]
    n_lit = int(np.count_nonzero(tile.lit))
    bits = [0] * len(PixelFlag)
    if mask.any():
        bits = [*PixelFlag.count(np.where(tile.lit, mask, np.uint16(0))).values()]
    fields = {
        "n": moments.n,
        "mean": moments.mean,
        "m2": moments.m2,
        "flagged": np.array(
            [*bits, n_lit - int(np.count_nonzero(known & (mask == 0))), n_lit], np.int64
        ),
        "block": np.array([first, n_rows, n_columns, step], np.int64),
        "count": count.astype(np.int64),
        "sum": total,
        "sample": sample.astype(np.float64),
    }
    return {(_OVERVIEW, name, field): value for field, value in fields.items()}


def _channel_moments(
    channel: NDArray[np.int8], filled: NDArray[np.float64], good: NDArray[np.bool_]
) -> Moments:
    """Return the moments of each channel; the four places of the filter pattern one by one."""
    total = Moments.identity(N_CHANNELS)
    for place in np.ndindex(*np.minimum(channel.shape, 2)):
        here = tuple(slice(one, None, 2) for one in place)
        n = int(np.count_nonzero(good[here]))
        if n:
            mean = filled[here].sum() / n
            delta = filled[here] - mean
            if n < delta.size:
                delta = np.where(good[here], delta, 0.0)
            m2 = np.square(delta, out=delta).sum()
            one = Moments(np.zeros(N_CHANNELS, np.int64), *np.zeros((2, N_CHANNELS)))
            one.n[channel[place]], one.mean[channel[place]], one.m2[channel[place]] = n, mean, m2
            total = total.merge(one)
    return total


@lru_cache(maxsize=8)
def _picked(first: int, stop: int, stride: int) -> NDArray[np.int64]:
    """Pick about one pixel of `stride`, evenly; counted over the sensor, so tiles do not matter.

    The golden section keeps the picks from falling on the same columns, and channels, in every row.
    """
    golden = 0.6180339887498949
    # Two or fewer of each turn are picked: only those near its beginning are tried.
    turns = np.arange(int(first * golden) // stride, int(stop * golden) // stride + 1)
    place = (turns * stride / golden).astype(np.int64)[:, np.newaxis] + np.arange(-1, 4)
    place = np.unique(place[(place >= first) & (place < stop)])
    picked = place[(place * golden) % stride < 1.0] - first
    picked.flags.writeable = False
    return picked


def overviews(tiles: Iterable[Facts]) -> dict[str, Overview]:
    """Join the summaries of all tiles, in their order.

    Parameters
    ----------
    tiles : iterable of mapping
        Facts of each tile, with what `overview` put there.

    Returns
    -------
    dict of str to Overview
        By the name of the map.
    """
    parts: dict[str, list[dict[str, NDArray[Any]]]] = {}
    for facts in tiles:
        of_tile: dict[str, dict[str, NDArray[Any]]] = {}
        for (what, *of), value in facts.items():
            if what == _OVERVIEW:
                name, field = map(str, of)
                of_tile.setdefault(name, {})[field] = value
        for name, fields in of_tile.items():
            parts.setdefault(name, []).append(fields)
    return {name: _join(fields) for name, fields in parts.items()}


def _join(tiles: list[dict[str, NDArray[Any]]]) -> Overview:
    moments = Moments.identity(N_CHANNELS)
    flagged = np.zeros(len(PixelFlag) + 2, np.int64)
    _, n_rows, n_columns, step = tiles[0]["block"].tolist()
    count, total = np.zeros(n_rows * n_columns, np.int64), np.zeros(n_rows * n_columns)
    for tile in tiles:
        moments = moments.merge(Moments(tile["n"], tile["mean"], tile["m2"]))
        flagged += tile["flagged"]
        first = int(tile["block"][0]) * n_columns
        count[first : first + len(tile["count"])] += tile["count"]
        total[first : first + len(tile["sum"])] += tile["sum"]
    with np.errstate(invalid="ignore"):
        thumbnail = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    counts = flagged.tolist()
    return Overview(
        moments.n,
        np.where(moments.n > 0, moments.mean, np.nan),
        np.sqrt(moments.variance()),
        {flag: one for flag, one in zip(PixelFlag, counts, strict=False) if one},
        counts[-2],
        counts[-1],
        thumbnail.reshape(n_rows, n_columns),
        step,
        np.concatenate([tile["sample"] for tile in tiles]),
    )


@dataclass(frozen=True)
class StackRecord:
    """What is known of one stack besides its maps.

    Attributes
    ----------
    group : str
        Name of its group of maps.
    key : StackKey
        What its frames have in common.
    names : ndarray of uint64, shape (n_frames,)
        Identity of each frame.
    paths : tuple of str
        File of each frame.
    index : ndarray of int64, shape (n_frames,)
        Place of each frame in its file.
    times : tuple of str
        When each was taken; empty where unknown.
    mean : ndarray of float64, shape (n_frames,)
        Mean of all its pixels.
    n_clipped : ndarray of int64, shape (n_frames,)
        How many of its pixels were left out.
    n_lost : int
        Frames that were planned but could not be read.
    n_saturated : int
        Pixels that were saturated at least once.
    mean_map, variance_map : Overview
        The maps in short.
    """

    group: str
    key: StackKey
    names: NDArray[np.uint64]
    paths: tuple[str, ...]
    index: NDArray[np.int64]
    times: tuple[str, ...]
    mean: NDArray[np.float64]
    n_clipped: NDArray[np.int64]
    n_lost: int
    n_saturated: int
    mean_map: Overview
    variance_map: Overview
