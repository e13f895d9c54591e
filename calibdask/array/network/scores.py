"""Scores of events about a fit: the inner matrix of the event-clustered covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from calibdask.array.model import asymmetry
from calibdask.array.network.goodness import N_GROUPS, ResidualScatter
from calibdask.array.network.model import divergence
from calibdask.array.network.pairs import (
    N_RANGES,
    mirrored,
    oriented,
    pair_difference,
    range_of,
    rows_of,
)
from calibdask.stats.record import ArraySums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.network.pairs import PairEvents
    from calibdask.array.network.state import NetworkFit

__all__ = ["ScoreSummary", "summarise_scores"]

EVENTS_PER_BLOCK = 16384
"""Events whose scores are held at a time: bounds memory, fixed so that sums keep their order."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSummary(ArraySums):
    """Sum of the outer products of the events' scores: the inner matrix of the covariance.

    Attributes
    ----------
    outer : ndarray of float64, shape (T, T) or (2T, 2T)
        sum_e s_e s_e^T, telescopes in the order of the fit. Zero between components. Where ratios
        are given, the scores of their pairs stand behind those of the used ones.
    n_events : ndarray of int64, shape (T,)
        Events in which each telescope is part of a used pair.
    component_n_events : ndarray of int64, shape (C,)
        Events with a used pair of each component.
    kappa_variance : ndarray of float64, shape (Y R,)
        Of the distance slope of each pair type (sorted) and range of distances; without a distance
        term it is empty.
    scatter : ResidualScatter
        For the test of the fit.
    """

    parts: ClassVar = {"scatter": ("", ResidualScatter)}

    outer: NDArray[np.float64]
    n_events: NDArray[np.int64]
    component_n_events: NDArray[np.int64]
    kappa_variance: NDArray[np.float64]
    scatter: ResidualScatter

    @classmethod
    def identity(cls, fit: NetworkFit) -> Self:
        """No events about a fit: merging it changes nothing."""
        n_telescopes, n_components = len(fit.tel_id), len(fit.component_n_events)
        n_scores = 2 * n_telescopes if fit.given.any() else n_telescopes
        n_slopes = len(fit.levers)
        return cls(
            np.zeros((n_scores, n_scores)),
            np.zeros(n_telescopes, np.int64),
            np.zeros(n_components, np.int64),
            np.zeros(n_slopes),
            ResidualScatter.identity(len(fit.first), n_components),
        )


def summarise_scores(fit: NetworkFit, events: PairEvents) -> ScoreSummary:
    """Outer products of the events' scores about a fit.

    The score of event e is s_e = sum_p (W_p/n_p) g_p IF_p(d_ep) A_p over its used pairs, the
    derivative of the weighted least squares with respect to theta: cluster-robust covariance with
    the event as the cluster (Liang & Zeger 1986, Biometrika 73, 13, eq. 6).

    Residuals about a fitted model are too small, most for events with much leverage. To first
    order in the leverage, the correction of Bell & McCaffrey 2002 (Surv. Methodol. 28, 169) adds to
    each residual half of what its own event pulled the model by: g_p A_p C s_e/2.

    A distance slope kappa_r that the fit took from the same events moves theta by -C B dkappa with
    B = sum_p W_p n_pr/n_p mean(x)_pr A_p over its type; an event's part of dkappa is the sum over
    its pairs in the range r of w_pr (x_ep - mean(x)_pr) (d_ep - kappa x_ep - centre_p) (see
    `calibdask.array.network.state.NetworkFit`). So s_e gets -B times it.

    For the test of the fit, events move the centre of a pair by IF_p(d_ep)/n_p, with the influence
    about the centre, whatever the model, and times sqrt(n_p/(n_p - 1)): residuals about a mean of
    n_p are that much too small.
    """
    one, two, x_1, x_2, log_distance = oriented(events)
    n_telescopes, n_components = len(fit.tel_id), len(fit.component_n_events)
    pair = rows_of(fit.pairs, one, two)
    d, valid = pair_difference(fit.kind, x_1, x_2)
    distance_pull = _distance_pull(fit)
    range_ = range_of(events)
    if (log_distance is None) != (len(distance_pull) == 0):
        raise ValueError("the fit has a distance term, or these events have distances: not both")
    if log_distance is not None:
        valid &= np.isfinite(log_distance)
        d = d - fit.kappa[pair, range_] * log_distance
    valid &= pair >= 0
    with np.errstate(invalid="ignore"):
        valid &= mirrored(fit, pair, x_1, x_2)
    row = np.flatnonzero(valid)
    row = row[(fit.used | fit.given)[pair[row]]]
    identity = ScoreSummary.identity(fit)
    kappa_variance, scatter = identity.kappa_variance, identity.scatter
    if len(row) == 0:
        return identity
    event = np.asarray(events.event[row], np.int64)
    if np.any(event[1:] < event[:-1]):
        order = np.argsort(event, kind="stable")
        row, event = row[order], event[order]
    group = np.asarray(event % N_GROUPS if events.group is None else events.group[row], np.int64)
    event = np.cumsum(np.diff(event, prepend=event[0]) != 0, dtype=np.int64)
    pair, d = pair[row], d[row]
    of_kappa, slope_of = np.zeros(len(row)), np.zeros(len(row), np.int64)
    if log_distance is not None:
        range_ = range_[row]
        from_mean = log_distance[row] - fit.mean_log_distance[pair, range_]
        of_kappa = fit.kappa_weight[pair, range_] * from_mean * (d - fit.centre[pair])
        slope_of = np.unique(fit.pair_type, return_inverse=True)[1][pair] * N_RANGES + range_

    compared = asymmetry(x_1[row], x_2[row]) if fit.estimator == "asymmetry" else d
    influence = _influence(fit, pair, compared, fit.model)
    n_centre = np.maximum(fit.n_centre, 2)
    few = np.sqrt(n_centre / (n_centre - 1)) / np.maximum(fit.n, 1)
    moves = _influence(fit, pair, compared, fit.centre) * few[pair]
    gradient = fit.gradient
    weight = np.where(fit.given, fit.weight_given, fit.weight * gradient)
    factor = (weight / np.maximum(fit.n, 1))[pair]
    pull = gradient[pair]
    first, second = fit.first[pair], fit.second[pair]
    is_given = fit.given[pair]

    outer = identity.outer
    n_events = np.zeros(n_telescopes, np.int64)
    component_n_events = np.zeros(n_components, np.int64)
    n_total = int(event[-1]) + 1
    for start in range(0, n_total, EVENTS_PER_BLOCK):
        begin, end = np.searchsorted(event, [start, start + EVENTS_PER_BLOCK])
        rows = slice(begin, end)
        n_block = min(EVENTS_PER_BLOCK, n_total - start)
        number = event[rows] - start
        block = _Block(n_block, n_telescopes, number, first[rows], second[rows], pull[rows])
        flow, mine = factor[rows] * influence[rows], ~is_given[rows]
        score = block.scores(np.where(mine, flow, 0.0), factor[rows] * mine, fit.bread)
        moved = np.zeros((n_block, len(distance_pull)))
        if log_distance is not None:
            np.add.at(moved, (number, slope_of[rows]), of_kappa[rows])
            score -= np.einsum("es,st->et", moved, distance_pull)
            kappa_variance += np.sum(moved**2, axis=0)
        if fit.given.any():
            theirs = np.where(mine, 0.0, flow), factor[rows] * ~mine
            score = np.concatenate([score, block.scores(*theirs, fit.given_bread)], axis=1)
        outer += np.einsum("et,eu->tu", score, score)
        scatter = scatter.add(fit, pair[rows], number, group[rows], moves[rows], moved)
        seen = block.by_telescope(mine.astype(np.float64), 1.0) > 0
        n_events += seen.sum(axis=0)
        for c in range(n_components):
            component_n_events[c] += seen[:, fit.component == c].any(axis=1).sum()
    return ScoreSummary(outer, n_events, component_n_events, kappa_variance, scatter)


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of some events: number of each row's event, its pair's ends and derivative."""

    n_events: int
    n_telescopes: int
    event: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    gradient: NDArray[np.float64]

    def by_telescope(self, flow: NDArray[np.float64], sign: float = -1.0) -> NDArray[np.float64]:
        """Sum over the pairs of each event: to the first telescope, and `sign` to the second."""
        offset = self.event * self.n_telescopes
        cells = np.concatenate([offset + self.first, offset + self.second])
        both = np.concatenate([flow, sign * flow])
        total = np.bincount(cells, both, self.n_events * self.n_telescopes)
        return total.reshape(self.n_events, self.n_telescopes)

    def scores(
        self, flow: NDArray[np.float64], factor: NDArray[np.float64], bread: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Scores of the events, with half of what each pulled the model by added."""
        score = self.by_telescope(flow)
        # einsum, not BLAS: its sums do not depend on the number of threads.
        moved = np.einsum("et,tu->eu", score, bread)
        half = moved[self.event, self.first] - moved[self.event, self.second]
        return score + self.by_telescope(factor * (0.5 * self.gradient * half))


def _influence(
    fit: NetworkFit,
    pair: NDArray[np.int64],
    d: NDArray[np.float64],
    about: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Influence of each event on the centre of its pair, about the model or the centre, (K,)."""
    if fit.estimator == "asymmetry":
        return np.asarray(d - about[pair])
    inside = (d >= fit.low[pair]) & (d <= fit.high[pair])
    influence = np.where(inside, fit.slope[pair] * (d - about[pair]), 0.0)
    shifted_median = fit.median + about - fit.centre
    return np.asarray(influence + fit.jump[pair] * np.sign(d - shifted_median[pair]))


def _distance_pull(fit: NetworkFit) -> NDArray[np.float64]:
    """Return what each slope pulls theta by, B, shape (Y R, T)."""
    flow = -fit.levers * fit.weight
    return divergence(len(fit.tel_id), fit.first, fit.second, flow.T).T
