"""The merge tree: its shape depends on the number of shards alone.

Floating-point addition is not associative, so the order of merging is part of the result. Groups
are contiguous in plan order and folded from the left; which worker was faster plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibdask.engine.canonical import digest_json
from calibdask.errors import CalibdaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from calibdask.engine.protocol import Cell

__all__ = ["Node", "Ranges", "join_ranges", "merge_address", "merge_tree", "ranges_of"]

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint half-open ranges of shard indices."""


@dataclass(frozen=True, slots=True)
class Node:
    """One merge: `children` are places in the level below (level 0 holds the shards)."""

    level: int
    place: int
    children: tuple[int, ...]


def merge_tree(n_leaves: int, fan_in: int) -> Iterator[Node]:
    """Return the merges from the leaves up, ending with the root.

    A single leaf still has a root, so that every cell ends in a merge node.

    Raises
    ------
    ValueError
        There are no leaves, or `fan_in` is below 2.
    """
    if n_leaves < 1 or fan_in < 2:
        raise ValueError(f"no merge tree over {n_leaves} leaves with fan-in {fan_in}")
    level, width = 1, n_leaves
    while True:
        starts = range(0, width, fan_in)
        for place, start in enumerate(starts):
            yield Node(level, place, tuple(range(start, min(start + fan_in, width))))
        if len(starts) == 1:
            return
        level, width = level + 1, len(starts)


def merge_address(cell: Cell, level: int, children: Sequence[str | None]) -> str:
    """Return the address of what a merge gives, from the addresses of what it merges.

    Parameters
    ----------
    cell : Cell
        The cell.
    level : int
        Level of the merge's node; level 1 merges shards.
    children : sequence of str or None
        The addresses in order, None for those that gave nothing.
    """
    return digest_json(
        {"what": "merge", "cell": list(cell), "level": level, "children": list(children)}
    )


def ranges_of(indices: Sequence[int]) -> Ranges:
    """Write a set of shard indices as ranges."""
    joined: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if joined and joined[-1][1] == index:
            joined[-1] = (joined[-1][0], index + 1)
        else:
            joined.append((index, index + 1))
    return tuple(joined)


def join_ranges(parts: Sequence[Ranges]) -> Ranges:
    """Unite the shards of several parts.

    Raises
    ------
    CalibdaskError
        A shard occurs in two parts: it would be counted twice.
    """
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(one for part in parts for one in part):
        if joined and start < joined[-1][1]:
            raise CalibdaskError(
                f"shards {start} to {min(stop, joined[-1][1]) - 1} would be counted twice"
            )
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
