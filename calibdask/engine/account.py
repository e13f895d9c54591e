"""What a run did, what it cost, and what is missing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calibdask.engine.envelope import Envelope, Failure

if TYPE_CHECKING:
    from calibdask.engine.plan import Plan

__all__ = ["Account"]


@dataclass
class Account:
    """What was done, what it cost, and what is missing."""

    total: Envelope = field(default_factory=Envelope)
    failed_shards: dict[int, Failure] = field(default_factory=dict)
    failed_cells: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    cpu_seconds: float = 0.0
    executor: str = ""
    workers: int = 1
    started: float = field(default_factory=time.time)
    stopped: float = 0.0

    def missing(self, plan: Plan) -> list[tuple[int | None, Failure]]:
        """Return what is not in the product, in plan order, with the shard where it is a whole one.

        First the inputs that were rejected, then shards that failed, then inputs that were lost
        from shards that did not.
        """
        return [
            *((None, failure) for failure in plan.rejected),
            *sorted(self.failed_shards.items()),
            *((None, failure) for failure in self.total.lost),
        ]

    @property
    def wall_seconds(self) -> float:
        """Time from start to stop."""
        return (self.stopped or time.time()) - self.started
