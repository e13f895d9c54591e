"""What ``--cluster auto`` stands for: the site that is estimated to end a plan first."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from calibdask.engine.sites.base import available_cpus

if TYPE_CHECKING:
    from calibdask.engine.plan import Plan

__all__ = ["choose", "estimate_seconds"]

_BYTES_PER_SECOND = {".h5": 30e6, ".hdf5": 30e6}
"""What one processor reduces: events of HDF5 files are decompressed, selected and paired."""

_RAW_BYTES_PER_SECOND = 230e6
"""The same for all else: 72 raw frames of 24 MB in 7.3 s, start included."""

_START_SECONDS = 11.0
"""What local workers cost: the same frames took two of them 14.8 s instead of half of 7.3 s."""


def estimate_seconds(plan: Plan) -> float:
    """Return the estimated time of a plan on one processor, in s."""
    return sum(
        shard.n_bytes
        / _BYTES_PER_SECOND.get(PurePath(shard.inputs[0].path).suffix, _RAW_BYTES_PER_SECOND)
        for shard in plan.shards
    )


def choose(plan: Plan, workers: int | tuple[int, int] | None) -> str:
    """Return the name of a site.

    Parameters
    ----------
    plan : Plan
        What is to be done.
    workers : int or (int, int), optional
        The number of workers that was asked for; else as many as there are processors.
    """
    cpus = available_cpus()
    if workers is not None:
        cpus = min(cpus, workers if isinstance(workers, int) else workers[1])
    # No more than one worker is at work on a shard, nor on a processor.
    at_work = max(1, min(cpus, len(plan.shards)))
    return "local" if estimate_seconds(plan) * (1 - 1 / at_work) > _START_SECONDS else "serial"
