"""Pair events with a known truth, drawn at array level."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from calibdask.array.network.fit import fit_stage
from calibdask.array.network.pairs import PairEvents
from calibdask.array.network.stages import n_stages, reduce_stage


def draw_events(
    rng,
    throughput,
    n_events,
    *,
    keep=1.0,
    sigma=0.15,
    outliers=0.0,
    tel_type="LST",
    first_id=1,
    kappa=None,
    nearness=0.0,
):
    """Draw showers with ln x = ln c + noise per telescope; a pair of an event is kept by chance.

    keep=1: all telescopes share all events (loose cuts); keep << 1: few pairs an event (tight).
    An outlier is a telescope whose ln x has another normal error of 1.
    Given kappa, ln x has a part kappa ln d, with the distances d of a telescope further by
    `nearness` per number of the telescope.
    """
    n_telescopes = len(throughput)
    one, two = np.triu_indices(n_telescopes, 1)
    shape = (n_events, n_telescopes)
    log_x = np.log(throughput) + rng.normal(0.0, sigma, shape)
    log_x += np.where(rng.random(shape) < outliers, rng.normal(0.0, 1.0, shape), 0.0)
    log_d = None
    if kappa is not None:
        log_d = rng.normal(nearness * np.arange(n_telescopes), 0.1, shape)
        log_x += kappa * log_d
    event, pair = np.nonzero(rng.random((n_events, len(one))) < keep)
    return PairEvents(
        event,
        np.full(len(event), tel_type),
        one[pair] + first_id,
        two[pair] + first_id,
        np.exp(log_x[event, one[pair]]),
        np.exp(log_x[event, two[pair]]),
        None if log_d is None else log_d[event, one[pair]] - log_d[event, two[pair]],
    )


def join_events(*several):
    """All rows together; events of different parts are different events."""
    offset, event = 0, []
    for part in several:
        event.append(np.asarray(part.event) + offset)
        offset += int(np.max(part.event, initial=-1)) + 1
    names = ("tel_type", "tel_id_1", "tel_id_2", "x_1", "x_2")
    if several[0].log_distance is not None:
        names = (*names, "log_distance")
    columns = [np.concatenate([getattr(part, name) for part in several]) for name in names]
    return PairEvents(np.concatenate(event), *columns)


def take(events, rows):
    """Some rows of the pair events."""
    columns = [getattr(events, field.name) for field in fields(events)]
    return PairEvents(*(None if column is None else column[rows] for column in columns))


def fit_shards(options, shards, telescopes=None):
    """All stages of a fit over shards merged in order."""
    state = None
    for stage in range(n_stages(options)):
        summaries = [reduce_stage(stage, options, shard, state) for shard in shards]
        total = summaries[0]
        for summary in summaries[1:]:
            total = total.merge(summary)
        state = fit_stage(stage, options, total, state, telescopes)
    return state
