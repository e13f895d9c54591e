"""Keys: two summaries brought to the same rows, and observation blocks for metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["obs_id_array", "union_keys"]


def union_keys(
    keys_a: NDArray[np.int64], keys_b: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """Sorted union of two sets of keys, and where each key went.

    Parameters
    ----------
    keys_a, keys_b : ndarray of int64, shape (K_a, M) and (K_b, M)
        Unique rows in lexicographic order, for example (tel_id_1, tel_id_2).

    Returns
    -------
    keys : ndarray of int64, shape (K, M)
        Every key once, in lexicographic order.
    index_a, index_b : ndarray of int, shape (K_a,) and (K_b,)
        ``keys[index_a] == keys_a`` and ``keys[index_b] == keys_b``.

    Raises
    ------
    ValueError
        If keys have different numbers of columns.
    """
    if keys_a.ndim != 2 or keys_b.ndim != 2 or keys_a.shape[1] != keys_b.shape[1]:
        raise ValueError(f"keys of shapes {keys_a.shape} and {keys_b.shape} do not merge")
    if np.array_equal(keys_a, keys_b):
        same = np.arange(len(keys_a))
        return keys_a, same, same
    keys, index = np.unique(np.concatenate([keys_a, keys_b]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    return keys, index[: len(keys_a)], index[len(keys_a) :]


def obs_id_array(numbers: Iterable[int]) -> NDArray[np.int64] | NDArray[np.uint64]:
    """Return observation blocks for the metadata of a product, as uint64 like in the data model.

    Only where one is negative, as ctapipe's -1 for "unknown", they are int64.
    """
    listed = list(numbers)
    if min(listed, default=0) < 0:
        return np.array(listed, np.int64)
    return np.array(listed, np.uint64)
