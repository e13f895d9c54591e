"""Summaries of pair events: what each stage of the fit takes from a shard.

Stage by stage, with each reduction additive over shards as long as no event is split between two:

============= ======================= ================================ ==================
estimator     stage 0                 stage 1                          stage 2
============= ======================= ================================ ==================
log-mean      moments -> fit          scores -> covariance
asymmetry     moments -> fit          scores -> covariance
log-median    + histogram -> fit      scores -> covariance
log-clipped   + histogram -> bounds   moments within the bounds -> fit scores -> covariance
============= ======================= ================================ ==================

Where pairs are selected symmetrically, log-mean has a stage more: moments of the events that the
first fit lets through.

`reduce_stage` makes a shard's summary; `network.fit.fit_stage` the state that the next stage
sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.array.network.pairs import summarise_pairs
from calibdask.array.network.scores import summarise_scores

if TYPE_CHECKING:
    from calibdask.array.network.model import NetworkOptions
    from calibdask.array.network.pairs import PairEvents, PairSummary
    from calibdask.array.network.scores import ScoreSummary
    from calibdask.array.network.state import NetworkFit

__all__ = ["STAGES", "check_stage", "n_stages", "reduce_stage"]

STAGES: dict[str, int] = {"log-mean": 2, "asymmetry": 2, "log-median": 2, "log-clipped": 3}
"""Number of stages of each estimator; see `n_stages`."""


def reduce_stage(
    stage: int, options: NetworkOptions, events: PairEvents, given: NetworkFit | None
) -> PairSummary | ScoreSummary:
    """Summary of one shard.

    Parameters
    ----------
    stage : int
        0 <= stage < n_stages(options).
    options : NetworkOptions
        Only estimator, observable and symmetry matter here.
    events : PairEvents
        The shard's pair events.
    given : NetworkFit or None
        State after the stage before; None at stage 0.

    Raises
    ------
    CorruptedInput
        If a row pairs a telescope with itself, a pair has two types, or an id is out of range.
    """
    check_stage(stage, options, given)
    if given is None:
        robust = options.estimator in {"log-median", "log-clipped"}
        return summarise_pairs(events, options.observable, histogram=robust)
    if stage == n_stages(options) - 1:
        return summarise_scores(given, events)
    return summarise_pairs(events, options.observable, clip=given)


def n_stages(options: NetworkOptions) -> int:
    """Return the number of stages."""
    return STAGES[options.estimator] + (options.symmetric and options.estimator == "log-mean")


def check_stage(stage: int, options: NetworkOptions, given: NetworkFit | None) -> None:
    """Refuse a stage that the estimator does not have, or one without its state (ValueError)."""
    if not 0 <= stage < n_stages(options):
        raise ValueError(f"{options.estimator} has no stage {stage}")
    if (stage == 0) != (given is None):
        raise ValueError("the state of the stage before is needed from stage 1 on, and only then")
