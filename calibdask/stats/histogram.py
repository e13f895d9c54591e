"""Counts of many groups in shared fixed bins, and the order statistics they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask.stats import grouped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Histogram"]


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """One histogram per group, all with the same bins.

    Bins are half open, [edge, next edge). Within a bin the values are taken as evenly spread;
    those in the underflow and overflow as infinitely far away. So an order statistic is good to a
    fraction of a bin, and NaN where it falls outside the edges.

    Attributes
    ----------
    edges : ndarray of float64, shape (B + 1,)
        Strictly rising bin edges.
    counts : ndarray of int64, shape (K, B + 2)
        Number of values per group and bin; first column the underflow, last the overflow.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def identity(cls, n_groups: int, edges: NDArray[np.float64]) -> Self:
        """Empty groups: merging them changes nothing."""
        if len(edges) < 2 or not np.all(np.diff(edges) > 0):
            raise ValueError("a histogram needs at least two edges, strictly rising")
        return cls(edges, np.zeros((n_groups, len(edges) + 1), np.int64))

    @classmethod
    def from_groups(
        cls,
        group: NDArray[np.integer],
        values: ArrayLike,
        n_groups: int,
        edges: NDArray[np.float64],
    ) -> Self:
        """Histogram of the values of each group.

        Parameters
        ----------
        group : ndarray of int, shape (N,)
            Group of each value, 0 <= group < n_groups.
        values : array_like of float, shape (N,)
            The values, in the unit of the edges.
        n_groups : int
            Number of groups K.
        edges : ndarray of float64, shape (B + 1,)
            Strictly rising bin edges.

        Raises
        ------
        ValueError
            If a value is NaN, a group out of range, or the edges do not rise.
        """
        cls.identity(n_groups, edges)  # refuses edges that do not rise
        values = np.asarray(values, np.float64)
        if np.isnan(values).any():
            raise ValueError("a histogram has no bin for values that are not numbers: drop them")
        grouped.check(group, values, n_groups)
        return cls(edges, grouped.histogram(group, values, n_groups, edges))

    @property
    def n(self) -> NDArray[np.int64]:
        """Number of values of each group, under- and overflow included, shape (K,)."""
        total: NDArray[np.int64] = self.counts.sum(axis=1)
        return total

    def merge(self, other: Self) -> Self:
        """Histogram of both sets of values together."""
        if not np.array_equal(self.edges, other.edges) or len(self.counts) != len(other.counts):
            raise ValueError("histograms with different edges or groups do not merge")
        return type(self)(self.edges, self.counts + other.counts)

    def expand(self, index: NDArray[np.integer], n_groups: int) -> Self:
        """Put the groups into rows `index` of a larger set, whose other groups are empty."""
        larger = self.identity(n_groups, self.edges)
        larger.counts[index] = self.counts
        return larger

    def cdf(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fraction of each group's values below its own x.

        Parameters
        ----------
        x : ndarray of float64, shape (K,)
            One point per group.

        Returns
        -------
        ndarray of float64, shape (K,)
            Linear within a bin; NaN for an empty group or x of NaN.
        """
        return self._cdf(np.cumsum(self.counts, axis=1), x)

    def _cdf(self, cumulative: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        row = np.arange(len(x))
        column = np.searchsorted(self.edges, x, side="right")
        low = np.maximum(column - 1, 0)
        high = np.minimum(column, len(self.edges) - 1)
        width = self.edges[high] - self.edges[low]
        inside = width > 0
        part = np.where(inside, (x - self.edges[low]) / np.where(inside, width, 1.0), 0.0)
        below = cumulative[row, low] + part * self.counts[row, high]
        n = cumulative[:, -1]
        return np.where((n > 0) & ~np.isnan(x), below / np.maximum(n, 1), np.nan)

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Value below which the fraction q of each group lies.

        Where a run of empty bins leaves a choice, its middle is taken (the usual median of an even
        number of values), so that mirrored data give a mirrored quantile.

        Parameters
        ----------
        q : float
            Between 0 and 1, both excluded.

        Returns
        -------
        ndarray of float64, shape (K,)
            NaN for an empty group, and where the quantile lies in the under- or overflow.
        """
        if not 0 < q < 1:
            raise ValueError(f"quantile {q} is not between 0 and 1")
        cumulative = np.cumsum(self.counts, axis=1)
        target = q * cumulative[:, -1]
        row = np.arange(len(target))
        total = np.zeros(len(target))
        for reached in (cumulative >= target[:, None], cumulative > target[:, None]):
            column = np.argmax(reached, axis=1)
            count = self.counts[row, column]
            before = cumulative[row, column] - count
            finite = (column > 0) & (column < len(self.edges)) & (count > 0)
            low = np.where(finite, column - 1, 0)
            part = (target - before) / np.maximum(count, 1)
            value = self.edges[low] + part * (self.edges[low + 1] - self.edges[low])
            total += np.where(finite, value, np.nan)
        return 0.5 * total

    def median(self) -> NDArray[np.float64]:
        """Median of each group, shape (K,); see `quantile`."""
        return self.quantile(0.5)

    def mad(self, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Median absolute deviation from a centre, without the factor 1.4826.

        Parameters
        ----------
        centre : ndarray of float64, shape (K,)
            One centre per group, usually its median.

        Returns
        -------
        ndarray of float64, shape (K,)
            NaN for an empty group, a centre of NaN, or where half of the values lie outside the
            edges.
        """
        cumulative = np.cumsum(self.counts, axis=1)
        reach = np.maximum(np.abs(centre - self.edges[0]), np.abs(self.edges[-1] - centre))

        def within(half_width: NDArray[np.float64]) -> NDArray[np.float64]:
            above = self._cdf(cumulative, centre + half_width)
            return above - self._cdf(cumulative, centre - half_width)

        total = np.zeros(len(centre))
        # Both ends of the interval of solutions: empty bins can leave a choice, as for the median.
        for least in (0.5 - 1e-12, 0.5 + 1e-12):
            low, high = np.zeros(len(centre)), reach
            for _ in range(25):
                middle = 0.5 * (low + high)
                enough = within(middle) >= least
                low, high = np.where(enough, low, middle), np.where(enough, middle, high)
            total += high
        return np.where(within(reach) > 0.5, 0.5 * total, np.nan)

    def density(
        self, x: NDArray[np.float64], half_width: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Probability density of each group at its own x, averaged over x +- half_width.

        Parameters
        ----------
        x, half_width : ndarray of float64, shape (K,)
            Points and bandwidths, in the unit of the edges.

        Returns
        -------
        ndarray of float64, shape (K,)
            In 1/unit; NaN for an empty group.
        """
        cumulative = np.cumsum(self.counts, axis=1)
        above = self._cdf(cumulative, x + half_width)
        return (above - self._cdf(cumulative, x - half_width)) / (2 * half_width)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        return {"edges": self.edges, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        return cls(np.asarray(arrays["edges"], np.float64), np.asarray(arrays["counts"], np.int64))
