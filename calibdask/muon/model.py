"""What is computed from the rings of a telescope: bounds of clipping, straight lines, residuals.

Pure maths on arrays. The optical efficiency of a telescope is the mean over its muon rings (Vacanti
et al. 1994, Astropart. Phys. 2, 1; Gaug et al. 2019, ApJS 243, 11); the width of a ring over its
radius, against the radius, tells the optical point spread function (Gaug et al. 2019, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.stats.moments import Moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

__all__ = [
    "AZIMUTH_EDGES_DEG",
    "IMPACT_EDGES_M",
    "PROFILES",
    "RADIUS_EDGES_DEG",
    "LineFit",
    "assign_chunks",
    "chunk_starts",
    "clip_bounds",
    "fit_line",
    "fit_quadratic_term",
    "radius_edges",
    "residuals",
]

IMPACT_EDGES_M = np.arange(0.0, 16.0)
AZIMUTH_EDGES_DEG = np.arange(-180.0, 181.0, 30.0)
RADIUS_EDGES_DEG = np.round(np.arange(0.6, 1.601, 0.05), 2)

PROFILES: dict[str, tuple[str, Floats]] = {
    "impact": ("m", IMPACT_EDGES_M),
    "azimuth": ("deg", AZIMUTH_EDGES_DEG),
    "radius": ("deg", RADIUS_EDGES_DEG),
}
"""Quantities that residuals are shown against: unit and edges of their bins."""


@dataclass(frozen=True, slots=True, eq=False)
class LineFit:
    """A straight line y = intercept + slope x.

    Attributes
    ----------
    slope, intercept : float
        NaN where there are fewer than two different x.
    covariance : ndarray of float64, shape (2, 2)
        Of (slope, intercept), from the errors of y alone: it is not scaled by chi2.
    chi2 : float
        Sum of squared pulls.
    ndf : int
        Points minus two.
    """

    slope: float
    intercept: float
    covariance: Floats
    chi2: float
    ndf: int

    @property
    def slope_err(self) -> float:
        """Standard error of the slope."""
        return float(np.sqrt(self.covariance[0, 0]))

    @property
    def intercept_err(self) -> float:
        """Standard error of the intercept."""
        return float(np.sqrt(self.covariance[1, 1]))


def fit_line(x: Floats, y: Floats, sigma: Floats) -> LineFit:
    """Fit a straight line by least squares with weights 1 / sigma**2.

    Press et al. 2007, Numerical Recipes, section 15.2, about the weighted mean of x.

    Parameters
    ----------
    x, y, sigma : ndarray of float64, shape (n,)
        Points, and standard errors of y, above zero.
    """
    nothing = LineFit(np.nan, np.nan, np.full((2, 2), np.nan), np.nan, len(x) - 2)
    if len(x) < 2:
        return nothing
    weight = 1 / sigma**2
    total = weight.sum()
    centre = (weight * x).sum() / total
    offset = x - centre
    spread = (weight * offset**2).sum()
    if not spread > 0:
        return nothing
    slope = (weight * offset * y).sum() / spread
    mean = (weight * y).sum() / total
    var_slope, var_mean = 1 / spread, 1 / total
    cov = -centre * var_slope
    covariance = np.array([[var_slope, cov], [cov, var_mean + centre**2 * var_slope]])
    chi2 = (weight * (y - mean - slope * offset) ** 2).sum()
    return LineFit(float(slope), float(mean - slope * centre), covariance, float(chi2), len(x) - 2)


def fit_quadratic_term(x: Floats, y: Floats, sigma: Floats) -> tuple[float, float]:
    """Fit a parabola and give the coefficient of x**2 with its error: how straight the line is.

    Parameters
    ----------
    x, y, sigma : ndarray of float64, shape (n,)
        Points, and standard errors of y, above zero.

    Returns
    -------
    value, error : float
        NaN for fewer than three points.
    """
    if len(x) < 3:
        return np.nan, np.nan
    centre, scale = float(x.mean()), float(np.ptp(x)) or 1.0
    design = np.vander((x - centre) / scale, 3) / sigma[:, None]
    q, r = np.linalg.qr(design)
    if not np.all(np.abs(np.diag(r)) > 1e-12 * np.abs(r).max()):
        return np.nan, np.nan
    coefficient = np.linalg.solve(r, q.T @ (y / sigma))
    covariance = np.linalg.inv(r.T @ r)
    return float(coefficient[0]) / scale**2, float(np.sqrt(covariance[0, 0])) / scale**2


def clip_bounds(
    mean: Floats, std: Floats, clip_sigma: float | None, low: Floats, high: Floats
) -> tuple[Floats, Floats]:
    """Narrow the bounds within which values count to mean +- clip_sigma * std.

    With the standard deviation of the values within (divisor n), as `astropy.stats.sigma_clip`.

    Parameters
    ----------
    mean, std : ndarray of float64, shape (K,)
        Of the values within the bounds so far; NaN: nothing there.
    clip_sigma : float or None
        None: bounds stay.
    low, high : ndarray of float64, shape (K,)
        Bounds so far.
    """
    if clip_sigma is None:
        return low, high
    return np.fmax(low, mean - clip_sigma * std), np.fmin(high, mean + clip_sigma * std)


def residuals(profile: Moments, mean: Floats) -> Moments:
    """Join the profiles of chunks, each relative to the mean of its chunk.

    Parameters
    ----------
    profile : Moments of K * B groups
        Efficiency in B bins of each of K chunks.
    mean : ndarray of float64, shape (K,)
        Mean efficiency of each chunk.

    Returns
    -------
    Moments of B groups
        Of efficiency / mean - 1.
    """
    n, means, m2 = (
        values.reshape(len(mean), -1) for values in (profile.n, profile.mean, profile.m2)
    )
    total = Moments.identity(n.shape[1])
    for i in np.flatnonzero(n.sum(axis=1)).tolist():
        relative = np.where(n[i] > 0, means[i] / mean[i] - 1, 0.0)
        total = total.merge(Moments(n[i], relative, m2[i] / mean[i] ** 2))
    return total


def radius_edges(least_deg: float, greatest_deg: float, n_bins: int) -> Floats:
    """Cut the range of ring radii into bins of equal width, of which the last is closed."""
    return np.linspace(least_deg, greatest_deg, n_bins + 1)


def chunk_starts(
    n: int, chunk_size: int, *, skip_last: bool, allow_undersized: bool
) -> tuple[list[int], int]:
    """Cut n rings in order of time into chunks that share none.

    Returns
    -------
    starts : list of int
        Rank of the first ring of each chunk.
    stop : int
        Rank behind the last ring used.
    """
    if n < chunk_size and not allow_undersized:
        return [], 0
    stop = n // chunk_size * chunk_size if skip_last and n >= chunk_size else n
    return list(range(0, stop, chunk_size)), stop


def assign_chunks(
    keys: NDArray[np.int64], starts: NDArray[np.int64], stop: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Find the chunk of each ring, by its place in the order of (time, observation, event).

    Parameters
    ----------
    keys : ndarray of int64, shape (N, 3)
        Of the rings, in any order.
    starts : ndarray of int64, shape (K, 3)
        Key of the first ring of each chunk, rising.
    stop : ndarray of int64, shape (0 or 1, 3)
        Key of the first ring behind the last chunk.

    Returns
    -------
    ndarray of int64, shape (N,)
        Number of the chunk; -1 for rings behind the last.
    """
    bounds = np.concatenate([starts, stop])
    place = np.searchsorted(bounds[:, 0], keys[:, 0], side="right")
    # Where a ring is as old as a bound, the rest of the key decides.
    tied = bounds[np.maximum(place, 1) - 1, 0] == keys[:, 0]
    if tied.any():
        joined = np.concatenate([bounds, keys[tied]])
        order = np.lexsort((np.arange(len(joined)), joined[:, 2], joined[:, 1], joined[:, 0]))
        is_bound = order < len(bounds)
        place_of = np.empty(len(joined), np.int64)
        place_of[order] = np.cumsum(is_bound)
        place[tied] = place_of[len(bounds) :]
    chunk = place.astype(np.int64) - 1
    return np.where(chunk < len(starts), chunk, -1)
