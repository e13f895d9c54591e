"""Which values of a pixel to leave out: cosmic rays, and frames that went wrong.

A single outlier of n values is never further than (n - 1) / sqrt(n) standard deviations from their
mean, because it is in both: of ten values none is beyond 2.85 sigma, whatever a cosmic ray did.
So the bounds come from the sums without the least and the greatest value, which are known exactly;
what that takes from the variance of normal noise is given back. A variance of few values is itself
uncertain, so the bounds are quantiles of Student's t: good noise is clipped as rarely as the same
number of sigma of the normal distribution promises.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.sensor.summary import Bounds, PixelSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.sensor.summary import Stack

__all__ = ["LEAST_FRAMES", "stack_bounds", "trimmed_variance_factor"]

LEAST_FRAMES = 5
"""With fewer values nothing is clipped: too little is left to tell what is usual."""

_QUANTISATION = 1 / 12  # variance of rounding to integers (DN^2)


@lru_cache(maxsize=4096)
def trimmed_variance_factor(n: int) -> float:
    """Return what is left of the variance of normal noise without the two extremes of n values.

    With order statistics Z_1 <= ... <= Z_n of the standard normal distribution (David & Nagaraja
    2003, eqs. 2.1.6 and 2.2.1), and because each has covariance 1 with the sum of all::

        E[sum of squares of the inner ones] = n - 2 E[Z_n^2]
        E[(sum of the inner ones)^2] = n - 4 + 2 E[Z_n^2] + 2 E[Z_1 Z_n]

    Parameters
    ----------
    n : int
        Number of values, at least 4.

    Returns
    -------
    float
        The expected variance (ddof 1) of the inner n - 2 values of unit variance.
    """
    from scipy.special import ndtr

    z = np.linspace(-9.0, 9.0, 721)
    step = z[1] - z[0]
    density, below = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), ndtr(z)
    top = float((z**2 * n * density * below ** (n - 1)).sum() * step)
    weight = z * density
    between = np.clip(below[None, :] - below[:, None], 0.0, None) ** (n - 2)
    ends = float(n * (n - 1) * (weight @ between @ weight) * step**2)
    inner = n - 2
    squares, square_of_sum = n - 2 * top, n - 4 + 2 * top + 2 * ends
    return (squares - square_of_sum / inner) / (inner - 1)


@lru_cache(maxsize=4096)
def _reach(n: int, n_sigma: float) -> float:
    """How far to keep values, in trimmed standard deviations of n values."""
    from scipy.special import ndtr, stdtrit

    return float(-stdtrit(n - 3, ndtr(-n_sigma)) / np.sqrt(trimmed_variance_factor(n)))


def stack_bounds(stack: Stack, n_sigma: float, step_dn: int = 1) -> Bounds:
    """Return the bounds of what to keep of each pixel.

    Parameters
    ----------
    stack : PixelSums or PixelMoments
        All values.
    n_sigma : float
        How many standard deviations from the mean a value may be, were they known. Below 4 also the
        tails of good noise are clipped, and the variance of what is left is too small.
    step_dn : int
        Values are multiples of this.

    Returns
    -------
    Bounds
        For integer frames the least and greatest integers kept. Where a pixel has fewer than
        `LEAST_FRAMES` values, everything is kept.
    """
    n = stack.n.astype(np.int64)
    few = n < LEAST_FRAMES
    inner = np.where(few, 3, n - 2)
    low, high = stack.minimum.astype(np.float64), stack.maximum.astype(np.float64)
    if isinstance(stack, PixelSums):
        # Exact: the extremes are taken from the integer sums.
        s1 = stack.s1.astype(np.int64) - stack.minimum - stack.maximum
        squares = (one.astype(np.uint64) ** 2 for one in (stack.minimum, stack.maximum))
        s2 = stack.s2 - sum(squares)
        mean = s1 / inner
        scatter = inner.astype(np.uint64) * s2 - s1.astype(np.uint64) ** 2
        variance = scatter / (inner * (inner - 1))
        variance = np.maximum(variance, step_dn**2 * _QUANTISATION)
    else:
        mean, m2 = _without(*_without(stack.average, stack.m2, n, low, few), n - 1, high, few)
        variance = np.clip(m2, 0.0, None) / (inner - 1)
    counts, which = np.unique(np.where(few, LEAST_FRAMES, n), return_inverse=True)
    reaches = np.array([_reach(int(count), n_sigma) for count in counts])
    reach = reaches[which].reshape(n.shape) * np.sqrt(variance)
    if not isinstance(stack, PixelSums):
        return Bounds(np.where(few, -np.inf, mean - reach), np.where(few, np.inf, mean + reach))
    lowest = np.where(few, 0.0, np.clip(np.ceil(mean - reach), 0, 65535))
    highest = np.where(few, 65535.0, np.clip(np.floor(mean + reach), 0, 65535))
    return Bounds(lowest.astype(np.uint16), highest.astype(np.uint16))


def _without(
    mean: NDArray[Any], m2: NDArray[Any], n: NDArray[Any], value: NDArray[Any], few: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take one value from the mean and the sum of squared deviations of n."""
    value = np.where(few, mean, value)
    left = np.maximum(n - 1, 1)
    new = mean - (value - mean) / left
    return new, m2 - (value - mean) * (value - new)
