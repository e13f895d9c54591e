"""Sums over frames for every pixel: the loops that set the speed of a stack.

Integers are summed exactly: n, the sum and the sum of squares of up to 65535 values of 16 bits fit
into 16, 32 and 64 bits, and the variance needs one rounding only. So the result has the same bits
however the frames are cut into batches, and in any order. Each kernel goes through the pixels in
tiles that stay in the cache while all frames of a batch pass over them; the loops run over slices,
because that is what the compiler turns into vector instructions (four times faster than global
indices here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_FRAMES",
    "check_frame_count",
    "fold",
    "fold_clipped",
    "fold_floats",
    "frame_extremes",
    "mean_and_variance",
    "place_sums",
    "stack_moments",
]

MAX_FRAMES = 65535
"""Most frames of one stack: beyond it n overflows 16 bits, then the sum overflows 32."""

_TILE = 4096  # pixels: 16 bytes of sums each stay in the first two caches


def check_frame_count(n_frames: int) -> None:
    """Refuse more frames than the sums can hold.

    Raises
    ------
    OverflowError
        There are more than `MAX_FRAMES`.
    """
    if n_frames > MAX_FRAMES:
        raise OverflowError(
            f"{n_frames} frames in one stack, but the exact sums hold at most {MAX_FRAMES}:"
            " split the stack (for instance by time), or calibrate fewer frames"
        )


@compiled
def _add(frames: NDArray[Any], start: int, s1: NDArray[np.uint32], s2: NDArray[np.uint64]) -> None:
    """Add one tile of several frames, four at a time: the sums are read and written less often."""
    n_frames = len(frames)
    stop = start + s1.size
    fours = n_frames // 4 * 4
    for k in range(0, fours, 4):
        a, b = frames[k, start:stop], frames[k + 1, start:stop]
        c, d = frames[k + 2, start:stop], frames[k + 3, start:stop]
        for i in range(s1.size):
            w, x, y, z = np.uint32(a[i]), np.uint32(b[i]), np.uint32(c[i]), np.uint32(d[i])
            s1[i] += np.uint32(w + x + y + z)
            s2[i] += (
                np.uint64(np.uint32(w * w))
                + np.uint64(np.uint32(x * x))
                + np.uint64(np.uint32(y * y))
                + np.uint64(np.uint32(z * z))
            )
    for k in range(fours, n_frames):
        values = frames[k, start:stop]
        for i in range(s1.size):
            v = np.uint32(values[i])
            s1[i] += v
            s2[i] += np.uint64(np.uint32(v * v))


@compiled
def fold(
    frames: NDArray[Any],
    first: int,
    n: NDArray[np.uint16],
    s1: NDArray[np.uint32],
    s2: NDArray[np.uint64],
    minimum: NDArray[np.uint16],
    maximum: NDArray[np.uint16],
    n_saturated: NDArray[np.uint16],
    saturation: int,
    frame_sum: NDArray[np.uint64],
) -> None:
    """Add frames to the sums of every pixel, in place.

    Parameters
    ----------
    frames : ndarray of uint8 or uint16, shape (n_frames, at least first + n_pixels)
        The values, C-contiguous: loops over other layouts are not vectorised.
    first : int
        Where in each frame the pixels begin that the sums are of.
    n, s1, s2 : ndarray, shape (n_pixels,)
        Number, sum and sum of squares so far.
    minimum, maximum : ndarray, shape (n_pixels,)
        Extremes so far; begin with 65535 and 0.
    n_saturated : ndarray, shape (n_pixels,)
        How many values were at `saturation` or above.
    saturation : int
        From where on a value is saturated; 65536 for never.
    frame_sum : ndarray of uint64, shape (n_frames,)
        Sum of all pixels of each frame; it is added to.
    """
    n_frames, n_pixels = len(frames), n.size
    for start in range(0, n_pixels, _TILE):
        stop = min(start + _TILE, n_pixels)
        t_n, t_s1, t_s2 = n[start:stop], s1[start:stop], s2[start:stop]
        t_low, t_high, t_sat = minimum[start:stop], maximum[start:stop], n_saturated[start:stop]
        _add(frames, first + start, t_s1, t_s2)
        for k in range(n_frames):
            values = frames[k, first + start : first + stop]
            total = np.uint64(0)
            for i in range(values.size):
                v16 = np.uint16(values[i])
                t_low[i] = min(t_low[i], v16)
                t_high[i] = max(t_high[i], v16)
                total += np.uint64(v16)
            if saturation < 65536:
                for i in range(values.size):
                    t_sat[i] += np.uint16(values[i] >= saturation)
            frame_sum[k] += total
        for i in range(t_n.size):
            t_n[i] += np.uint16(n_frames)


@compiled
def fold_clipped(
    frames: NDArray[Any],
    first: int,
    low: NDArray[np.uint16],
    high: NDArray[np.uint16],
    n: NDArray[np.uint16],
    s1: NDArray[np.uint32],
    s2: NDArray[np.uint64],
    minimum: NDArray[np.uint16],
    maximum: NDArray[np.uint16],
    n_saturated: NDArray[np.uint16],
    saturation: int,
    frame_sum: NDArray[np.uint64],
    frame_clipped: NDArray[np.uint32],
) -> None:
    """Add frames to the sums of every pixel, without values outside [low, high] of the pixel.

    Parameters are those of :func:`fold`; `frame_sum` is still of all pixels, and `frame_clipped`
    counts those left out of each frame.
    """
    n_frames, n_pixels = len(frames), n.size
    for start in range(0, n_pixels, _TILE):
        stop = min(start + _TILE, n_pixels)
        t_from, t_to = low[start:stop], high[start:stop]
        t_n, t_s1, t_s2 = n[start:stop], s1[start:stop], s2[start:stop]
        t_low, t_high, t_sat = minimum[start:stop], maximum[start:stop], n_saturated[start:stop]
        for k in range(n_frames):
            values = frames[k, first + start : first + stop]
            total = np.uint64(0)
            inside = np.uint32(0)
            for i in range(values.size):
                v16 = np.uint16(values[i])
                keep = np.int64(t_from[i] <= v16) & np.int64(v16 <= t_to[i])
                v = np.int64(v16)
                kept = v * keep
                t_n[i] += np.uint16(keep)
                t_s1[i] += np.uint32(kept)
                t_s2[i] += np.uint64(np.uint32(kept * kept))
                total += np.uint64(v)
                inside += np.uint32(keep)
            for i in range(values.size):
                v16 = np.uint16(values[i])
                if t_from[i] <= v16 <= t_to[i]:
                    t_low[i] = min(t_low[i], v16)
                    t_high[i] = max(t_high[i], v16)
                    t_sat[i] += np.uint16(np.int64(v16) >= saturation)
            frame_sum[k] += total
            frame_clipped[k] += np.uint32(values.size) - inside


@compiled
def fold_floats(
    frames: NDArray[Any],
    first: int,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    n: NDArray[np.uint16],
    mean: NDArray[np.float64],
    m2: NDArray[np.float64],
    minimum: NDArray[np.float64],
    maximum: NDArray[np.float64],
    n_saturated: NDArray[np.uint16],
    saturation: float,
    frame_sum: NDArray[np.float64],
    frame_clipped: NDArray[np.uint32],
) -> None:
    """Add frames of floating-point numbers to the moments of every pixel (Welford 1962), in place.

    Values that are not finite, or outside [low, high] of the pixel, are left out; the latter are
    counted in `frame_clipped`.

    Parameters
    ----------
    frames : ndarray of float or int32, shape (n_frames, at least first + n_pixels)
        The values.
    first : int
        Where in each frame the pixels begin that the moments are of.
    low, high : ndarray, shape (n_pixels,)
        What to keep.
    n, mean, m2 : ndarray, shape (n_pixels,)
        Number, mean and sum of squared deviations so far.
    minimum, maximum, n_saturated, saturation
        As for :func:`fold`; `saturation` may be infinite.
    frame_sum : ndarray, shape (n_frames,)
        Sum of all finite pixels of each frame; it is added to.
    frame_clipped : ndarray, shape (n_frames,)
        How many pixels of each frame were clipped; it is added to.
    """
    n_frames, n_pixels = len(frames), n.size
    for start in range(0, n_pixels, _TILE):
        stop = min(start + _TILE, n_pixels)
        for k in range(n_frames):
            values = frames[k, first + start : first + stop]
            total = 0.0
            for i in range(values.size):
                p = start + i
                v = np.float64(values[i])
                if not np.isfinite(v):
                    continue
                total += v
                if v < low[p] or v > high[p]:
                    frame_clipped[k] += np.uint32(1)
                    continue
                n[p] += np.uint16(1)
                delta = v - mean[p]
                mean[p] += delta / n[p]
                m2[p] += delta * (v - mean[p])
                minimum[p] = min(minimum[p], v)
                maximum[p] = max(maximum[p], v)
                n_saturated[p] += np.uint16(v >= saturation)
            frame_sum[k] += total


@compiled
def frame_extremes(
    frame: NDArray[Any], top: int, left: int, bottom: int, right: int, facts: NDArray[np.float64]
) -> None:
    """Find the least, the greatest and the second greatest value of a frame.

    Parameters
    ----------
    frame : ndarray of uint8 or uint16, shape (rows, columns)
        The values.
    top, left, bottom, right : int
        The part of it.
    facts : ndarray of float64, shape (5,)
        Least, greatest, how often it is there, second greatest, how often. It goes on from what is
        there: begin with infinity, -infinity and 0.
    """
    for y in range(top, bottom):
        row = frame[y, left:right]
        least, most = row[0], row[0]
        for i in range(row.size):
            least = min(least, row[i])
            most = max(most, row[i])
        facts[0] = min(facts[0], np.float64(least))
        if most < facts[3]:
            continue
        # A row with one of the greatest values: how many, and what comes next in it.
        next_one = least
        for i in range(row.size):
            next_one = max(next_one, row[i] if row[i] < most else least)
        n_most, n_next = np.int64(0), np.int64(0)
        for i in range(row.size):
            n_most += np.int64(row[i] == most)
            n_next += np.int64(row[i] == next_one)
        _take_in(facts, np.float64(most), np.float64(n_most))
        if next_one < most:
            _take_in(facts, np.float64(next_one), np.float64(n_next))


@compiled
def _take_in(facts: NDArray[np.float64], value: float, count: float) -> None:
    """Put a value among the two greatest of `facts`."""
    if value > facts[1]:
        facts[3], facts[4] = facts[1], facts[2]
        facts[1], facts[2] = value, count
    elif value == facts[1]:
        facts[2] += count
    elif value > facts[3]:
        facts[3], facts[4] = value, count
    elif value == facts[3]:
        facts[4] += count


@compiled
def place_sums(
    frame: NDArray[Any], top: int, left: int, bottom: int, right: int, sums: NDArray[np.float64]
) -> None:
    """Add up a frame of integers at the four places of its filter pattern.

    Parameters
    ----------
    frame : ndarray of uint8 or uint16, shape (rows, columns)
        The values.
    top, left, bottom, right : int
        The part of it.
    sums : ndarray of float64, shape (4,)
        By row and column of the place; it is added to.
    """
    for y in range(top, bottom):
        for first in range(left, right, 65536):  # of which half fits into 32 bits
            row = frame[y, first : min(first + 65536, right)]
            even, total = np.uint32(0), np.uint64(0)
            for i in range((row.size + 1) // 2):
                even += np.uint32(row[2 * i])
            for i in range(row.size):
                total += np.uint64(row[i])
            place = 2 * (y % 2) + first % 2
            sums[place] += np.float64(even)
            sums[place ^ 1] += np.float64(total - np.uint64(even))


@compiled
def mean_and_variance(
    n: NDArray[np.uint16],
    s1: NDArray[np.uint32],
    s2: NDArray[np.uint64],
    ddof: int,
    mean: NDArray[Any],
    variance: NDArray[Any],
) -> None:
    """Finalise sums of integers: n s2 - s1^2 is exact in 64 bits, so there is one rounding.

    Parameters
    ----------
    n, s1, s2 : ndarray, shape (n_pixels,)
        From :func:`fold`.
    ddof : int
        0 or 1: what is subtracted from n to divide by.
    mean, variance : ndarray of float, shape (n_pixels,)
        Written; NaN where there are not more than 0 or `ddof` values.
    """
    for i in range(n.size):
        count = np.int64(n[i])
        mean[i] = np.float64(s1[i]) / count if count > 0 else np.nan
        if count > ddof:
            total = np.uint64(s1[i])
            scatter = np.uint64(count) * s2[i] - total * total
            variance[i] = np.float64(scatter) / np.float64(count * (count - ddof))
        else:
            variance[i] = np.nan


@compiled
def _stack_moments(
    frames: NDArray[Any], ddof: int, mean: NDArray[Any], variance: NDArray[Any]
) -> None:
    n_frames, n_pixels = frames.shape
    s1 = np.empty(_TILE, np.uint32)
    s2 = np.empty(_TILE, np.uint64)
    for start in range(0, n_pixels, _TILE):
        stop = min(start + _TILE, n_pixels)
        t_s1, t_s2 = s1[: stop - start], s2[: stop - start]
        t_s1[:] = np.uint32(0)
        t_s2[:] = np.uint64(0)
        _add(frames, start, t_s1, t_s2)
        t_mean, t_variance = mean[start:stop], variance[start:stop]
        count = np.uint64(n_frames)
        divisor = np.float64(n_frames * (n_frames - ddof))
        for i in range(t_s1.size):
            total = np.uint64(t_s1[i])
            t_mean[i] = np.float64(total) / n_frames
            t_variance[i] = np.float64(count * t_s2[i] - total * total) / divisor


def stack_moments(
    stack: NDArray[Any], *, ddof: int = 1, dtype: type[np.floating[Any]] = np.float32
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and variance over the frames of a stack in memory.

    Nothing but the two results is allocated: the sums live in the cache, tile by tile.

    Parameters
    ----------
    stack : ndarray of uint8 or uint16, shape (n_frames, ...)
        C-contiguous.
    ddof : int
        0 or 1.
    dtype : type
        Of the results. Sums are exact whatever it is.

    Returns
    -------
    mean, variance : ndarray, shape (...)
        Variance is NaN where there are not more than `ddof` frames.

    Raises
    ------
    OverflowError
        There are too many frames.
    TypeError
        The values are not 8 or 16 bit unsigned integers.
    """
    if stack.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"exact sums are of 8 or 16 bit unsigned integers, not of {stack.dtype}")
    n_frames = len(stack)
    check_frame_count(n_frames)
    if n_frames <= ddof:
        mean = stack.sum(axis=0, dtype=np.float64) / n_frames if n_frames else np.nan
        shape = stack.shape[1:]
        return np.full(shape, mean, dtype), np.full(shape, np.nan, dtype)
    flat = stack.reshape(n_frames, -1)
    mean, variance = np.empty(flat.shape[1], dtype), np.empty(flat.shape[1], dtype)
    _stack_moments(flat, ddof, mean, variance)
    return mean.reshape(stack.shape[1:]), variance.reshape(stack.shape[1:])
