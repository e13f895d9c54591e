"""No event counts twice: the keys of shards whose ranges overlap are compared, part by part.

Shards that hold other observations, or other events of one, need not be looked into. The keys of
those whose ranges of identifiers overlap (the streams of one run, for instance, interleave) are
divided by a hash of the identifier into parts of bounded size, and each part is compared by a task
of its own. Neither the driver nor a worker ever holds more than one part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.engine.envelope import Outcome
from calibdask.engine.keys import buckets_of, hashed, overlapping, power_of_two
from calibdask.engine.shown import printable
from calibdask.engine.tasks import Task, WorkContext, guarded, kept_arrays
from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from calibdask.engine.envelope import Envelope
    from calibdask.engine.plan import Plan
    from calibdask.engine.protocol import Shard

__all__ = ["comparisons", "raise_duplicates"]

_PART_KEYS = 2**20  # keys that one task compares: some 30 MB


def comparisons(
    context: WorkContext, plan: Plan, total: Envelope, rows: Mapping[int, str]
) -> list[Task]:
    """Return the tasks that compare the keys of shards whose ranges overlap.

    Parameters
    ----------
    context : WorkContext
        What every task needs.
    plan : Plan
        The plan.
    total : Envelope
        The joint account of all shards.
    rows : mapping of int to address
        Where the first stage's result of each shard lies.
    """
    clashes = overlapping(total.key_ranges)
    if not clashes:
        return []
    members = sorted({index for indices in clashes.values() for index in indices})
    groups = np.array(sorted(clashes), np.int64)
    where = [(plan.shards[index], rows[index]) for index in members]
    n_parts = power_of_two(total.n_keys, _PART_KEYS)
    return [
        Task(
            f"keys-{part}",
            "compare",
            f"events in two inputs, part {part + 1} of {n_parts}",
            _compare,
            (context, groups, where, part, n_parts),
        )
        for part in range(n_parts)
    ]


def _keys_of(
    context: WorkContext,
    shard: Shard,
    address: str,
    groups: NDArray[np.int64],
    part: int,
    n_parts: int,
) -> NDArray[np.int64]:
    """Read the keys of a shard that belong to some groups and to one part."""
    stored = kept_arrays(
        context, shard, address, "keys", lambda names: buckets_of(names, part, n_parts)
    )
    keys: NDArray[np.int64] = np.concatenate([np.empty((0, 2), np.int64), *stored.values()])
    mine = np.isin(keys[:, 0], groups) & (hashed(keys[:, 1]) % np.uint64(n_parts) == part)
    return np.asarray(keys[mine])


def _compare(
    context: WorkContext,
    groups: NDArray[np.int64],
    where: Sequence[tuple[Shard, str]],
    part: int,
    n_parts: int,
) -> Outcome:
    """Look for keys that two shards hold: of each group the smallest, and how many there are."""

    def work() -> Outcome:
        parts = [_keys_of(context, shard, at, groups, part, n_parts) for shard, at in where]
        owner = np.repeat([shard.index for shard, _ in where], [len(keys) for keys in parts])
        keys = np.concatenate(parts)
        order = np.lexsort((owner, keys[:, 1], keys[:, 0]))
        keys, owner = keys[order], owner[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))
        found = []
        for group in np.unique(keys[same, 0]).tolist():
            mine = same[keys[same, 0] == group]
            first = mine[0]
            pair = (int(owner[first]), int(owner[first + 1]))
            found.append((group, int(keys[first, 1]), *pair, len(mine)))
        return Outcome(duplicates=tuple(found))

    return guarded(context, f"events in two inputs, part {part + 1}", work)


def raise_duplicates(plan: Plan, outcomes: Iterable[Outcome]) -> None:
    """Refuse an event that occurs in two shards.

    Raises
    ------
    CorruptedInput
        Naming both files and an event.
    CalibdaskError
        The keys could not be compared.
    """
    found: list[tuple[int, int, int, int, int]] = []
    for outcome in outcomes:
        if outcome.failure is not None:
            raise outcome.failure.error()
        found += outcome.duplicates
    if not found:
        return
    group, identifier, *pair, _ = min(found)
    count = sum(number for other, *_, number in found if other == group)
    names = (printable(plan.shards[index].inputs[0].path, one_line=True) for index in pair)
    raise CorruptedInput(
        f"{' and '.join(names)} both hold {plan.calibration.name_event(group, identifier)}"
        f" ({count} events are in two inputs): counting events twice would make the errors too"
        " small; leave one of them out"
    )
