"""Rows of tables that belong together, as their keys are equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Columns, Table

__all__ = ["first_row_from", "increasing", "match", "numbered", "take"]

SEARCH_ROWS = 4096


def increasing(keys: Columns) -> bool:
    """Whether each row's key is above the one before, the first column counting most."""
    above: NDArray[np.bool_] | bool = False
    equal: NDArray[np.bool_] | bool = True
    for values in keys.values():
        above = above | (equal & (values[1:] > values[:-1]))
        equal = equal & (values[1:] == values[:-1])
    return bool(np.all(above))


def numbered(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """One number per row: equal for equal rows, and in their order."""
    number = np.zeros(len(columns[0]), np.int64)
    for values in columns:
        if values.size and values.min() != values.max():
            distinct, rank = np.unique(values, return_inverse=True)
            number = number * distinct.size + rank
    return number


def match(have: Columns, want: Columns) -> NDArray[np.int64]:
    """For each row of `want`, the row of `have` with the same key; -1 where there is none."""
    n_have = len(have["event_id"])
    if not n_have:
        return np.full(len(want["event_id"]), -1)
    number = numbered([np.concatenate((have[key], want[key])) for key in want])
    order = np.argsort(number[:n_have], kind="stable")
    ranked, wanted = number[order], number[n_have:]
    place = np.minimum(np.searchsorted(ranked, wanted), n_have - 1)
    return np.where(ranked[place] == wanted, order[place], -1)


def take(values: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of `values`; where the index is -1, False for booleans and NaN for the rest."""
    missing = index < 0
    if not missing.any():
        return values[index]
    shape = (len(index), *values.shape[1:])
    is_bool = values.dtype.kind == "b"
    out: NDArray[Any] = np.zeros(shape, np.bool_) if is_bool else np.full(shape, np.nan)
    out[~missing] = values[index[~missing]]
    return out


def first_row_from(table: Table, obs_id: int, event_id: int) -> int:
    """First row at or above a key in a table that is in the order of the keys."""
    low, high = 0, table.n_rows
    while high - low > SEARCH_ROWS:
        middle = (low + high) // 2
        row = table.read(middle, middle + 1)
        if (int(row["obs_id"][0]), int(row["event_id"][0])) < (obs_id, event_id):
            low = middle + 1
        else:
            high = middle
    rows = table.read(low, high)
    same = rows["obs_id"] == obs_id
    below = (rows["obs_id"] < obs_id) | (same & (rows["event_id"] < event_id))
    return low + int(np.count_nonzero(below))
