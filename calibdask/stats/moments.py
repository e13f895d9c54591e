"""Count, mean and scatter of many groups at once, mergeable without cancellation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask.stats import grouped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["CoMoments", "Moments"]


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
        """Moments of the values of each group (see `calibdask.stats.grouped.moments`).

        A value that is not a number makes
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
        grouped.check(group, values, n_groups)
        return cls(*grouped.moments(group, values, n_groups))

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


@dataclass(frozen=True, slots=True, eq=False)
class CoMoments:
    """What a straight line y = a + b x through each group needs, mergeable without cancellation.

    Attributes
    ----------
    n : ndarray of int64, shape (K,)
        Number of points. An empty group has zeros everywhere.
    mean_x, mean_y : ndarray of float64, shape (K,)
        Means.
    m2_x : ndarray of float64, shape (K,)
        Sum of squared deviations of x from its mean.
    c_xy : ndarray of float64, shape (K,)
        Sum of products of the deviations of x and y.
    """

    n: NDArray[np.int64]
    mean_x: NDArray[np.float64]
    mean_y: NDArray[np.float64]
    m2_x: NDArray[np.float64]
    c_xy: NDArray[np.float64]

    @classmethod
    def identity(cls, n_groups: int) -> Self:
        """Empty groups: merging them changes nothing, bit for bit."""
        return cls(np.zeros(n_groups, np.int64), *(np.zeros(n_groups) for _ in range(4)))

    @classmethod
    def from_groups(
        cls, group: NDArray[np.integer], x: NDArray[np.float64], y: NDArray[np.float64], n: int
    ) -> Self:
        """Return the moments of the points of each of n groups, in two passes.

        Parameters
        ----------
        group : ndarray of int, shape (N,)
            Group of each point, 0 <= group < n.
        x, y : ndarray of float64, shape (N,)
            The points.
        n : int
            Number of groups K.
        """
        count = np.bincount(group, minlength=n)
        at_least_one = np.maximum(count, 1)
        mean_x, mean_y = (np.bincount(group, values, n) / at_least_one for values in (x, y))
        from_x, from_y = x - mean_x[group], y - mean_y[group]
        # What rounding left over in the first pass.
        rest_x, rest_y = (np.bincount(group, values, n) for values in (from_x, from_y))
        m2_x = np.bincount(group, from_x**2, n) - rest_x**2 / at_least_one
        c_xy = np.bincount(group, from_x * from_y, n) - rest_x * rest_y / at_least_one
        return cls(
            count.astype(np.int64),
            mean_x + rest_x / at_least_one,
            mean_y + rest_y / at_least_one,
            np.maximum(m2_x, 0.0),
            c_xy,
        )

    def merge(self, other: Self) -> Self:
        """Both sets of points together (Chan, Golub & LeVeque 1983, eq. 2.1, for the product)."""
        if self.n.shape != other.n.shape:
            raise ValueError(f"moments of shapes {self.n.shape} and {other.n.shape} do not merge")
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        delta_x, delta_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        merged = {
            "mean_x": self.mean_x + delta_x * share,
            "mean_y": self.mean_y + delta_y * share,
            "m2_x": self.m2_x + other.m2_x + delta_x**2 * self.n * share,
            "c_xy": self.c_xy + other.c_xy + delta_x * delta_y * self.n * share,
        }
        # An empty side must not touch a single bit of the other.
        for name, values in merged.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            merged[name] = np.where(other.n == 0, mine, np.where(self.n == 0, theirs, values))
        return type(self)(n, **merged)

    def expand(self, index: NDArray[np.integer], n_groups: int) -> Self:
        """Put the groups into rows `index` of a larger set, whose other groups are empty."""
        larger = self.identity(n_groups)
        for field in fields(self):
            getattr(larger, field.name)[index] = getattr(self, field.name)
        return larger

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        real = (np.asarray(arrays[field.name], np.float64) for field in fields(cls)[1:])
        return cls(np.asarray(arrays["n"], np.int64), *real)
