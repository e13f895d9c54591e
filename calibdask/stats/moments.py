"""Count, mean and scatter of many groups at once, mergeable without cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First two moments of each group, as (n, mean, M2) and never as sums of squares.

    Attributes
    ----------
    n : ndarray of int64, any shape
        Number of values. An empty group has n, mean and m2 of zero.
    mean : ndarray of float64, same shape
        Arithmetic mean, in the unit of the values.
    m2 : ndarray of float64, same shape
        Sum of squared deviations from the mean, in the unit squared.
    """

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def identity(cls, shape: int | tuple[int, ...]) -> Self:
        """Empty groups: merging them changes nothing, bit for bit."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))

    @classmethod
    def from_groups(cls, group: NDArray[np.integer], values: ArrayLike, n_groups: int) -> Self:
        """Moments of the values of each group, by the corrected two-pass algorithm.

        Chan, Golub & LeVeque 1983 (Am. Stat. 37, 242), eq. 1.7. A value that is not a number makes
        the moments of its own group NaN and leaves the others alone.

        Parameters
        ----------
        group : ndarray of int, shape (N,)
            Group of each value, 0 <= group < n_groups.
        values : array_like of float, shape (N,)
            The values.
        n_groups : int
            Number of groups K.

        Returns
        -------
        Moments
            Of shape (K,).

        Raises
        ------
        ValueError
            If a group lies outside 0..n_groups-1, or the two arrays differ in length.
        """
        values = np.asarray(values, np.float64)
        n = np.bincount(group, minlength=n_groups)
        if len(n) > n_groups:
            raise ValueError(f"group {len(n) - 1} given, but only {n_groups} groups announced")
        at_least_one = np.maximum(n, 1)
        mean = np.bincount(group, values, n_groups) / at_least_one
        deviation = values - mean[group]
        # What rounding left over in the first pass: corrects both the mean and M2.
        rest = np.bincount(group, deviation, n_groups)
        m2 = np.bincount(group, deviation**2, n_groups) - rest**2 / at_least_one
        return cls(n.astype(np.int64), mean + rest / at_least_one, np.maximum(m2, 0.0))

    def merge(self, other: Self) -> Self:
        """Moments of both sets of values together (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        if self.n.shape != other.n.shape:
            raise ValueError(f"moments of shapes {self.n.shape} and {other.n.shape} do not merge")
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        m2 = self.m2 + other.m2 + delta**2 * self.n * share
        # An empty side must not touch a single bit of the other, not even the sign of a zero.
        mean = np.where(other.n == 0, self.mean, np.where(self.n == 0, other.mean, mean))
        m2 = np.where(other.n == 0, self.m2, np.where(self.n == 0, other.m2, m2))
        return type(self)(n, mean, m2)

    def expand(self, index: NDArray[np.integer], n_groups: int) -> Self:
        """Put the groups into rows `index` of a larger set, whose other groups are empty."""
        larger = self.identity((n_groups, *self.n.shape[1:]))
        larger.n[index], larger.mean[index], larger.m2[index] = self.n, self.mean, self.m2
        return larger

    def variance(self, ddof: int = 1) -> NDArray[np.float64]:
        """Variance with divisor n - ddof; NaN where n <= ddof."""
        freedom = self.n - ddof
        return np.where(freedom > 0, self.m2 / np.maximum(freedom, 1), np.nan)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        return {"n": self.n, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        return cls(
            np.asarray(arrays["n"], np.int64),
            np.asarray(arrays["mean"], np.float64),
            np.asarray(arrays["m2"], np.float64),
        )
