"""Keys of events: the ranges they span, and how they are divided into parts of bounded size."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Rows

__all__ = ["buckets_of", "divided_keys", "hashed", "key_ranges", "overlapping", "power_of_two"]

_BUCKET_KEYS = 2**14  # keys that are stored together: tasks read little of what they do not need


def key_ranges(keys: NDArray[np.int64] | None, index: int) -> tuple[tuple[int, int, int, int], ...]:
    """Return (group, first, last, shard) for each group of the keys of a shard."""
    if keys is None or not len(keys):
        return ()
    ranges = []
    for group in np.unique(keys[:, 0]):
        identifiers = keys[keys[:, 0] == group, 1]
        ranges.append((int(group), int(identifiers.min()), int(identifiers.max()), index))
    return tuple(ranges)


def hashed(identifier: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return well-mixed bits (Fibonacci hashing; Knuth, TAOCP vol. 3, section 6.4)."""
    mixed = identifier.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(mixed >> np.uint64(32))


def power_of_two(n_keys: int, each: int) -> int:
    """Return into how many parts, a power of two, keys are divided so that each has few."""
    return 1 << max(0, (-(-n_keys // each) - 1).bit_length())


def divided_keys(keys: NDArray[np.int64]) -> Rows:
    """Return the keys of a shard as they are stored: in buckets by the hash of the identifier.

    Parameters
    ----------
    keys : ndarray of int64, shape (n, 2)
        Group and identifier of each event.
    """
    n_buckets = power_of_two(len(keys), _BUCKET_KEYS)
    if n_buckets == 1:
        return {"keys": keys}
    bucket = hashed(keys[:, 1]) % np.uint64(n_buckets)
    order = np.argsort(bucket, kind="stable")
    edges = np.searchsorted(bucket[order], np.arange(n_buckets + 1, dtype=np.uint64))
    return {
        f"{i:04x}-{n_buckets:x}": keys[order[start:stop]]
        for i, (start, stop) in enumerate(itertools.pairwise(edges))
    }


def buckets_of(names: Iterable[str], part: int, n_parts: int) -> Iterator[str]:
    """Yield the names of the buckets that may hold keys of a part."""
    for name in names:
        if name == "keys":
            yield name
            continue
        bucket, count = (int(number, 16) for number in name.split("-"))
        if (bucket - part) % min(count, n_parts) == 0:
            yield name


def overlapping(ranges: Iterable[tuple[int, int, int, int]]) -> dict[int, list[int]]:
    """Return, for each group, the shards whose ranges of identifiers overlap with another's."""
    by_group: dict[int, list[tuple[int, int, int]]] = {}
    for group, first, last, index in ranges:
        by_group.setdefault(group, []).append((first, last, index))
    clashes: dict[int, list[int]] = {}
    for group, spans in sorted(by_group.items()):
        first, last, index = np.array(sorted(spans)).T
        clashing = np.zeros(len(spans), np.bool_)
        clashing[1:] |= first[1:] <= np.maximum.accumulate(last)[:-1]
        clashing[:-1] |= last[:-1] >= first[1:]
        if clashing.any():
            clashes[group] = sorted(index[clashing].tolist())
    return clashes
