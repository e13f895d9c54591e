"""Sums and counts by group: kernels for many values, NumPy for few, the same bits from both.

Each kernel adds the values of a group one after the other, as `numpy.bincount` does, and contracts
no multiplication with an addition, so the floats agree with NumPy's as well. To import numba and to
load a kernel costs as much CPU as NumPy needs for some million values: small data do without.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["LIMB_BITS", "bin_of", "check", "exact_sums", "histogram", "moments"]

LIMB_BITS = 16
"""Bits of a limb of `calibdask.stats.exact.ExactMoments`."""

_MANY = 200_000  # values for which numba is worth importing
_SOME = 2_000  # values for which a kernel is worth calling, where numba is there already


def _worthwhile(n_values: int) -> bool:
    return n_values >= (_SOME if "numba" in sys.modules else _MANY)


def check(group: NDArray[np.integer], values: NDArray[np.float64], n_groups: int) -> None:
    """Make sure that every value has a group, as the functions here do not.

    Raises
    ------
    ValueError
        If a group lies outside 0..n_groups-1, or the two arrays differ in length.
    """
    if len(group) != len(values):
        raise ValueError(f"{len(group)} groups given for {len(values)} values")
    if len(group) and not 0 <= (low := group.min()) <= (high := group.max()) < n_groups:
        raise ValueError(
            f"groups {low} to {high}: outside of 0..{n_groups - 1}, only {n_groups} groups"
        )


def moments(
    group: NDArray[np.integer], values: NDArray[np.float64], n_groups: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return number, mean and sum of squared deviations of each group.

    The corrected two-pass algorithm: Chan, Golub & LeVeque 1983 (Am. Stat. 37, 242), eq. 1.7.

    Parameters
    ----------
    group : ndarray of int, shape (N,)
        Group of each value, 0 <= group < n_groups: not checked.
    values : ndarray of float64, shape (N,)
        The values.
    n_groups : int
        Number of groups K.

    Returns
    -------
    n, mean, m2 : ndarray, shape (K,)
        Zeros for an empty group.
    """
    if _worthwhile(len(values)):
        return _kernel("moments")(group, values, n_groups)  # type: ignore[no-any-return]
    n = np.bincount(group, minlength=n_groups)
    at_least_one = np.maximum(n, 1)
    mean = np.bincount(group, values, n_groups) / at_least_one
    deviation = values - mean[group]
    # What rounding left over in the first pass: corrects both the mean and M2.
    rest = np.bincount(group, deviation, n_groups)
    m2 = np.bincount(group, deviation**2, n_groups) - rest**2 / at_least_one
    return n.astype(np.int64), mean + rest / at_least_one, np.maximum(m2, 0.0)


def histogram(
    group: NDArray[np.integer],
    values: NDArray[np.float64],
    n_groups: int,
    edges: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Count the values of each group in half-open bins [edge, next edge).

    Parameters
    ----------
    group : ndarray of int, shape (N,)
        Group of each value, 0 <= group < n_groups: not checked.
    values : ndarray of float64, shape (N,)
        The values; none is NaN.
    n_groups : int
        Number of groups K.
    edges : ndarray of float64, shape (B + 1,)
        Strictly rising.

    Returns
    -------
    ndarray of int64, shape (K, B + 2)
        The first column counts the values below all edges, the last those above.
    """
    if _worthwhile(len(values)):
        return _kernel("histogram")(group, values, n_groups, edges)  # type: ignore[no-any-return]
    n_bins = len(edges) + 1
    cell = np.asarray(group, np.int64) * n_bins + bin_of(values, edges)
    return np.bincount(cell, minlength=n_groups * n_bins).reshape(n_groups, n_bins).astype(np.int64)


def bin_of(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return ``numpy.searchsorted(edges, values, side="right")``, faster where bins are equal.

    Parameters
    ----------
    values : ndarray of float64, shape (N,)
        The values.
    edges : ndarray of float64, shape (B + 1,)
        Rising.

    Returns
    -------
    ndarray of int, shape (N,)
        0 for values below all edges, B + 1 for those above and for NaN.
    """
    n_edges = len(edges)
    with np.errstate(all="ignore"):
        column = (values - edges[0]) * ((n_edges - 1) / (edges[-1] - edges[0]))
    index: NDArray[np.intp] = np.fmin(np.fmax(column, -1.0), n_edges - 1.0).astype(np.intp) + 1
    low, high = np.append(-np.inf, edges), np.append(edges, np.inf)
    wrong = np.flatnonzero(~((low[index] <= values) & (values < high[index])))
    index[wrong] = np.searchsorted(edges, values[wrong], side="right")
    return index


def exact_sums(
    group: NDArray[np.int64], units: NDArray[np.int64], n_groups: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sum integers and their squares by group, in limbs of 16 bits.

    Parameters
    ----------
    group : ndarray of int64, shape (N,)
        Group of each value, 0 <= group < n_groups: not checked.
    units : ndarray of int64, shape (N,)
        The values, below 2**46 in size.
    n_groups : int
        Number of groups K.

    Returns
    -------
    n : ndarray of int64, shape (K,)
        Numbers of values.
    s1, s2 : ndarray of int64, shape (K, 3) and (K, 5)
        Limbs of the sums: ``sum_j s[:, j] * 2**(16 j)``.
    """
    if _worthwhile(len(units)):
        return _kernel("exact_sums")(group, units, n_groups)  # type: ignore[no-any-return]
    n = np.zeros(n_groups, np.int64)
    s1, s2 = np.zeros((n_groups, 3), np.int64), np.zeros((n_groups, 5), np.int64)
    if not len(group):
        return n, s1, s2
    if (group[1:] < group[:-1]).any():
        # NumPy sorts whole numbers of 16 bits by radix.
        order = np.argsort(group.astype(np.uint16) if n_groups <= 2**16 else group, kind="stable")
        group, units = group[order], units[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    filled = group[starts]
    n[filled] = np.diff(starts, append=len(group))
    mask = (1 << LIMB_BITS) - 1
    a, b, c = units & mask, (units >> LIMB_BITS) & mask, units >> (2 * LIMB_BITS)
    for j, limb in enumerate((a, b, c)):
        s1[filled, j] = np.add.reduceat(limb, starts)
    for j, product in enumerate((a * a, 2 * a * b, b * b + 2 * a * c, 2 * b * c, c * c)):
        s2[filled, j] = np.add.reduceat(product, starts)
    return n, s1, s2


@functools.cache
def _kernel(name: str) -> Callable[..., Any]:
    """Compile the kernel of this name; only here is numba imported."""
    from calibdask.stats import kernels

    kernel: Callable[..., Any] = getattr(kernels, name)
    return kernel
