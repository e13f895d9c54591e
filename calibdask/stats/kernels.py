"""Compiled sums and counts by group; `calibdask.stats.grouped` says what each returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["exact_sums", "histogram", "moments"]


@compiled
def moments(
    group: NDArray[Any], values: NDArray[Any], n_groups: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return number, mean and sum of squared deviations of each group."""
    n, mean = np.zeros(n_groups, np.int64), np.zeros(n_groups)
    m2, rest = np.zeros(n_groups), np.zeros(n_groups)
    for i in range(len(values)):
        n[group[i]] += 1
        mean[group[i]] += values[i]
    for k in range(n_groups):
        mean[k] /= max(n[k], 1)
    for i in range(len(values)):
        deviation = values[i] - mean[group[i]]
        rest[group[i]] += deviation
        m2[group[i]] += deviation * deviation
    for k in range(n_groups):
        at_least_one = max(n[k], 1)
        m2[k] = max(m2[k] - rest[k] * rest[k] / at_least_one, 0.0)
        mean[k] += rest[k] / at_least_one
    return n, mean, m2


@compiled
def histogram(
    group: NDArray[Any], values: NDArray[Any], n_groups: int, edges: NDArray[Any]
) -> NDArray[Any]:
    """Return counts of each group in half-open bins, with under- and overflow."""
    n_edges = len(edges)
    counts = np.zeros((n_groups, n_edges + 1), np.int64)
    per_width = (n_edges - 1) / (edges[-1] - edges[0])
    for i in range(len(values)):
        value = values[i]
        if value < edges[0]:
            column = 0
        elif value >= edges[-1]:
            column = n_edges
        else:
            # Right at once where bins are equal; else a few steps away, or far.
            column = min(int((value - edges[0]) * per_width) + 1, n_edges - 1)
            if not edges[column - 1] <= value < edges[column]:
                column = np.searchsorted(edges, value, side="right")
        counts[group[i], column] += 1
    return counts


@compiled
def exact_sums(
    group: NDArray[Any], units: NDArray[Any], n_groups: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return sums of integers and of their squares, by limbs of 16 bits."""
    n = np.zeros(n_groups, np.int64)
    s1, s2 = np.zeros((n_groups, 3), np.int64), np.zeros((n_groups, 5), np.int64)
    for i in range(len(units)):
        k = group[i]
        a, b, c = units[i] & 0xFFFF, (units[i] >> 16) & 0xFFFF, units[i] >> 32
        n[k] += 1
        s1[k, 0] += a
        s1[k, 1] += b
        s1[k, 2] += c
        s2[k, 0] += a * a
        s2[k, 1] += 2 * a * b
        s2[k, 2] += b * b + 2 * a * c
        s2[k, 3] += 2 * b * c
        s2[k, 4] += c * c
    return n, s1, s2
