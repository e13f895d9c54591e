"""What ``--cluster auto`` stands for: the site that is estimated to end a plan first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.engine.sites.base import available_cpus

if TYPE_CHECKING:
    from calibdask.engine.plan import Plan

__all__ = ["choose"]

_WORTH_A_CLUSTER_BYTES = 1 << 30  # about what is read while worker processes start


def choose(plan: Plan, workers: int | tuple[int, int] | None) -> str:
    """Return the name of a site.

    Parameters
    ----------
    plan : Plan
        What is to be done.
    workers : int or (int, int), optional
        The number that was asked for.
    """
    several = len(plan.shards) > 1 and workers != 1 and available_cpus() > 1
    return "local" if several and plan.n_bytes > _WORTH_A_CLUSTER_BYTES else "serial"
