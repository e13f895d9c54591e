"""Pair events with a known truth, drawn at array level."""

from __future__ import annotations

import numpy as np

from calibdask.array.network import fit_stage
from calibdask.array.summary import STAGES, PairEvents, reduce_stage


def draw_events(
    rng, throughput, n_events, *, keep=1.0, sigma=0.15, outliers=0.0, tel_type="LST", first_id=1
):
    """Draw showers with ln x = ln c + noise per telescope; a pair of an event is kept by chance.

    keep=1: all telescopes share all events (loose cuts); keep << 1: few pairs an event (tight).
    An outlier is a telescope whose ln x has another normal error of 1.
    """
    n_telescopes = len(throughput)
    one, two = np.triu_indices(n_telescopes, 1)
    shape = (n_events, n_telescopes)
    log_x = np.log(throughput) + rng.normal(0.0, sigma, shape)
    log_x += np.where(rng.random(shape) < outliers, rng.normal(0.0, 1.0, shape), 0.0)
    event, pair = np.nonzero(rng.random((n_events, len(one))) < keep)
    return PairEvents(
        event,
        np.full(len(event), tel_type),
        one[pair] + first_id,
        two[pair] + first_id,
        np.exp(log_x[event, one[pair]]),
        np.exp(log_x[event, two[pair]]),
    )


def join_events(*several):
    """All rows together; events of different parts are different events."""
    offset, event = 0, []
    for part in several:
        event.append(np.asarray(part.event) + offset)
        offset += int(np.max(part.event, initial=-1)) + 1
    names = ("tel_type", "tel_id_1", "tel_id_2", "x_1", "x_2")
    columns = [np.concatenate([getattr(part, name) for part in several]) for name in names]
    return PairEvents(np.concatenate(event), *columns)


def take(events, rows):
    """Some rows of the pair events."""
    names = ("event", "tel_type", "tel_id_1", "tel_id_2", "x_1", "x_2")
    return PairEvents(*(getattr(events, name)[rows] for name in names))


def fit_shards(options, shards, telescopes=None):
    """All stages of a fit over shards merged in order."""
    state = None
    for stage in range(STAGES[options.estimator]):
        summaries = [reduce_stage(stage, options, shard, state) for shard in shards]
        total = summaries[0]
        for summary in summaries[1:]:
            total = total.merge(summary)
        state = fit_stage(stage, options, total, state, telescopes)
    return state
