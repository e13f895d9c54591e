"""Count, mean and scatter of many groups in integers: the same bits in whatever order.

A sum of floats depends on the order of its terms, so a value that lies at a clipping bound may fall
inside or outside of it depending on how the data were cut. Here values are rounded once, to whole
multiples of a power of two, and everything after that is integer arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask.stats import grouped
from calibdask.stats.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ExactMoments"]

_LARGEST = 2**46  # of a rounded value, in units: its upper limb stays below 2**14


@dataclass(frozen=True, slots=True, eq=False)
class ExactMoments:
    """Number, sum and sum of squares of each group, in units of ``2**exponent``.

    Sums are kept by limbs of 16 bits, so that 64 bits hold those of 2**29 values.

    Attributes
    ----------
    exponent : int
        Values are rounded to multiples of 2**exponent.
    n : ndarray of int64, shape (K,)
        Number of values.
    s1 : ndarray of int64, shape (K, 3)
        Sum, by limbs: ``sum_j s1[:, j] * 2**(16 j)`` units.
    s2 : ndarray of int64, shape (K, 5)
        Sum of squares, likewise, in units squared.
    """

    exponent: int
    n: NDArray[np.int64]
    s1: NDArray[np.int64]
    s2: NDArray[np.int64]

    @classmethod
    def identity(cls, n_groups: int, exponent: int = -40) -> Self:
        """Empty groups: merging them changes nothing."""
        return cls(
            exponent,
            np.zeros(n_groups, np.int64),
            np.zeros((n_groups, 3), np.int64),
            np.zeros((n_groups, 5), np.int64),
        )

    @staticmethod
    def holds(values: ArrayLike, exponent: int = -40) -> NDArray[np.bool_]:
        """Return which values can be held: finite, and below 2**(46 + exponent) (64 by default)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(values) < math.ldexp(_LARGEST - 1, exponent))

    @staticmethod
    def rounded(values: ArrayLike, exponent: int = -40) -> NDArray[np.float64]:
        """Round values as the sums do it, so that equal values have this value as their mean."""
        return np.asarray(np.rint(np.asarray(values) * 2.0**-exponent) * 2.0**exponent)

    @classmethod
    def from_groups(
        cls,
        group: NDArray[np.integer],
        values: ArrayLike,
        n_groups: int,
        exponent: int = -40,
    ) -> Self:
        """Sum the values of each group.

        Parameters
        ----------
        group : ndarray of int, shape (N,)
            Group of each value, 0 <= group < n_groups.
        values : array_like of float, shape (N,)
            The values; all must be held, see `holds`.
        n_groups : int
            Number of groups K.
        exponent : int
            Values are rounded to multiples of 2**exponent.

        Raises
        ------
        ValueError
            A value that cannot be held, or a group out of range.
        """
        values = np.asarray(values, np.float64)
        if not np.all(cls.holds(values, exponent)):
            raise ValueError("values that are not numbers or too large for this exponent: drop")
        grouped.check(group, values, n_groups)
        units = np.rint(values * 2.0**-exponent).astype(np.int64)
        return cls(exponent, *grouped.exact_sums(np.asarray(group, np.int64), units, n_groups))

    def merge(self, other: Self) -> Self:
        """Add the sums of another set of values."""
        if self.exponent != other.exponent or self.n.shape != other.n.shape:
            raise ValueError("exact moments with different exponents or groups do not merge")
        return type(self)(self.exponent, self.n + other.n, self.s1 + other.s1, self.s2 + other.s2)

    def padded(self, before: int, after: int) -> Self:
        """Add empty groups before and after these."""
        n_groups = before + len(self.n) + after
        larger, own = self.identity(n_groups, self.exponent), slice(before, n_groups - after)
        larger.n[own], larger.s1[own], larger.s2[own] = self.n, self.s1, self.s2
        return larger

    def moments(self) -> Moments:
        """Return n, mean and M2 as floats, each rounded once."""
        filled = np.flatnonzero(self.n)
        # Whole numbers of Python, which divide with one rounding, however large they are.
        n = self.n[filled].astype(object)
        one, two = (
            sum(limb << (grouped.LIMB_BITS * j) for j, limb in enumerate(limbs[filled].T))
            for limbs in (self.s1.astype(object), self.s2.astype(object))
        )
        mean, m2 = np.zeros(len(self.n)), np.zeros(len(self.n))
        mean[filled] = np.ldexp((one / n).astype(np.float64), self.exponent)
        m2[filled] = np.ldexp(((n * two - one * one) / n).astype(np.float64), 2 * self.exponent)
        return Moments(self.n.copy(), mean, m2)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        exponent = np.array(self.exponent)
        return {"exponent": exponent, "n": self.n, "s1": self.s1, "s2": self.s2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        n, s1, s2 = (np.asarray(arrays[name], np.int64) for name in ("n", "s1", "s2"))
        return cls(int(arrays["exponent"]), n, s1, s2)
