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

`reduce_stage` makes a shard's summary; `calibdask.array.network.fit_stage` the state that the next
stage sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask.array.goodness import N_GROUPS, ResidualScatter
from calibdask.array.model import (
    LOG_RATIO,
    MAX_TEL_ID,
    Observable,
    asymmetry,
    divergence,
    log_ratio,
    measurable,
)
from calibdask.errors import CorruptedInput
from calibdask.stats.histogram import Histogram
from calibdask.stats.keyed import union_keys
from calibdask.stats.moments import CoMoments, Moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.model import NetworkOptions
    from calibdask.array.state import NetworkFit

__all__ = [
    "DISTANCE_EDGES_M",
    "N_RANGES",
    "STAGES",
    "PairEvents",
    "PairSummary",
    "ScoreSummary",
    "check_stage",
    "distance_range",
    "mirrored",
    "n_stages",
    "reduce_stage",
    "rows_of",
    "summarise_pairs",
    "summarise_scores",
    "with_lacking",
]

STAGES: dict[str, int] = {"log-mean": 2, "asymmetry": 2, "log-median": 2, "log-clipped": 3}
"""Number of stages of each estimator; see `n_stages`."""

EVENTS_PER_BLOCK = 16384
"""Events whose scores are held at a time: bounds memory, fixed so that sums keep their order."""

DISTANCE_EDGES_M = (100.0, 125.0, 150.0, 175.0, 200.0, 250.0, 300.0, 400.0)
"""Edges of the ranges of the mean impact distance with a slope of the light of their own."""

N_RANGES = len(DISTANCE_EDGES_M) + 1
"""Number of these ranges."""

MODEL_STEP = 0.05
"""Change of ln c_1/c_2 by which it is found how much a symmetric selection follows the model."""


@dataclass(frozen=True, slots=True, eq=False)
class PairEvents:
    """Telescope pairs, event by event: the rows of an asymmetry table.

    Attributes
    ----------
    event : ndarray of int, shape (N,)
        Index of each row's event, unique within the shard. An event is never split between shards.
    tel_type : ndarray of str or bytes, shape (N,)
        Type of both telescopes, or both types (see `calibdask.array.model.pair_types`).
    tel_id_1, tel_id_2 : ndarray of int, shape (N,)
        The telescopes. In either order: values go with them.
    x_1, x_2 : ndarray of float, shape (N,)
        What the observable compares: their energies (TeV), image sizes (photoelectrons), or
        arrival times less those of the shower front (ns).
    log_distance : ndarray of float, shape (N,), optional
        ln d_1 - ln d_2 of the impact distances: given, the fit has a term for it. Only for the mean
        of log ratios.
    distance_range : ndarray of int, shape (N,), optional
        Which of `DISTANCE_EDGES_M` the mean of both distances lies between (`distance_range`); by
        default all lie in the first range.
    group : ndarray of int, shape (N,), optional
        Random group of each row's event (`calibdask.array.goodness.event_group`); by default from
        `event`.
    """

    event: NDArray[np.integer]
    tel_type: NDArray[np.str_] | NDArray[np.bytes_]
    tel_id_1: NDArray[np.integer]
    tel_id_2: NDArray[np.integer]
    x_1: NDArray[np.floating]
    x_2: NDArray[np.floating]
    log_distance: NDArray[np.floating] | None = None
    distance_range: NDArray[np.integer] | None = None
    group: NDArray[np.integer] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PairSummary:
    """What the fit needs to know about each pair.

    Attributes
    ----------
    pairs : ndarray of int64, shape (K, 2)
        (tel_id_1, tel_id_2), tel_id_1 < tel_id_2, in lexicographic order.
    tel_type : ndarray of str, shape (K,)
        Type of each pair's telescopes.
    n_invalid : ndarray of int64, shape (K,)
        Rows left out because a value was not finite (or, for a ratio, not positive), or a distance.
    difference : Moments, shape (K,)
        Of d, which is ln x_1 - ln x_2 or x_1 - x_2, within the clip bounds if there are any.
    asymmetry : Moments, shape (K,), or None
        Of (x_1 - x_2)/(x_1 + x_2), if d is a log ratio.
    histogram : Histogram of K groups, or None
        Of d.
    lowest : ndarray of float64, shape (K, 2)
        Least x_1 and x_2: where a threshold on either lies.
    distance : CoMoments, shape (K R,), or None
        Of x = ln d_1 - ln d_2 of the impact distances and y = d, in each of R ranges of the mean
        distance, if the fit has a term for them.
    higher, lower : Moments, shape (K,), or None
        As `difference`, with the symmetric selection about a model that is `MODEL_STEP` higher or
        lower: how much the centre follows it.
    lacking : ndarray of int64, shape (L, 2)
        Telescopes that lost rows in the inputs, by number, and how many rows.
    """

    pairs: NDArray[np.int64]
    tel_type: NDArray[np.str_]
    n_invalid: NDArray[np.int64]
    difference: Moments
    asymmetry: Moments | None
    histogram: Histogram | None
    lowest: NDArray[np.float64]
    distance: CoMoments | None = None
    higher: Moments | None = None
    lower: Moments | None = None
    lacking: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @classmethod
    def identity(
        cls, observable: Observable = LOG_RATIO, *, histogram: bool = False, distance: bool = False
    ) -> Self:
        """No pairs: merging it changes nothing."""
        return cls(
            np.zeros((0, 2), np.int64),
            np.zeros(0, "U1"),
            np.zeros(0, np.int64),
            Moments.identity(0),
            Moments.identity(0) if observable.kind == "log-ratio" else None,
            Histogram.identity(0, observable.edges) if histogram else None,
            np.zeros((0, 2)),
            CoMoments.identity(0) if distance else None,
        )

    def merge(self, other: Self) -> Self:
        """Both sets of events together.

        Raises
        ------
        CorruptedInput
            If a pair has two types: the inputs are of different arrays.
        ValueError
            If only one of the two has a histogram, the asymmetry, or distances.
        """
        for name in ("histogram", "asymmetry", "distance", "higher", "lower"):
            if (getattr(self, name) is None) != (getattr(other, name) is None):
                raise ValueError(f"a summary with {name} does not merge with one without")
        pairs, mine, theirs = union_keys(self.pairs, other.pairs)
        size = len(pairs)
        tel_type = np.zeros(size, np.promote_types(self.tel_type.dtype, other.tel_type.dtype))
        tel_type[theirs] = other.tel_type
        tel_type[mine] = self.tel_type
        differ = tel_type[theirs] != other.tel_type
        if differ.any():
            first, second = other.pairs[differ][0]
            raise CorruptedInput(
                f"telescopes {first} and {second} are {tel_type[theirs][differ][0]} in one input "
                f"and {other.tel_type[differ][0]} in another: calibrate each array by itself"
            )
        n_invalid = np.zeros(size, np.int64)
        n_invalid[mine] += self.n_invalid
        n_invalid[theirs] += other.n_invalid
        lowest = np.full((size, 2), np.inf)
        lowest[mine] = self.lowest
        lowest[theirs] = np.minimum(lowest[theirs], other.lowest)
        asymmetry_ = histogram = distance = None
        if self.asymmetry is not None and other.asymmetry is not None:
            asymmetry_ = self.asymmetry.expand(mine, size).merge(
                other.asymmetry.expand(theirs, size)
            )
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram.expand(mine, size).merge(
                other.histogram.expand(theirs, size)
            )
        if self.distance is not None and other.distance is not None:
            distance = self.distance.expand(_ranges_of(mine), size * N_RANGES).merge(
                other.distance.expand(_ranges_of(theirs), size * N_RANGES)
            )
        higher, lower = (
            None if one is None or two is None
            else one.expand(mine, size).merge(two.expand(theirs, size))
            for one, two in ((self.higher, other.higher), (self.lower, other.lower))
        )  # fmt: skip
        return type(self)(
            pairs,
            tel_type,
            n_invalid,
            self.difference.expand(mine, size).merge(other.difference.expand(theirs, size)),
            asymmetry_,
            histogram,
            lowest,
            distance,
            higher,
            lower,
            _sum_by_number(self.lacking, other.lacking),
        )

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        arrays: dict[str, NDArray[np.generic]] = {
            "pairs": self.pairs,
            "tel_type": self.tel_type,
            "n_invalid": self.n_invalid,
            "lowest": self.lowest,
            "lacking": self.lacking,
        }
        for name in ("difference", "asymmetry", "histogram", "distance", "higher", "lower"):
            part = getattr(self, name)
            if part is not None:
                arrays |= {f"{name}_{key}": value for key, value in part.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""

        def part(name: str) -> dict[str, NDArray[np.generic]]:
            prefix = f"{name}_"
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        asymmetry_, histogram, distance = part("asymmetry"), part("histogram"), part("distance")
        higher, lower = part("higher"), part("lower")
        return cls(
            np.asarray(arrays["pairs"], np.int64),
            np.asarray(arrays["tel_type"], np.str_),
            np.asarray(arrays["n_invalid"], np.int64),
            Moments.from_arrays(part("difference")),
            Moments.from_arrays(asymmetry_) if asymmetry_ else None,
            Histogram.from_arrays(histogram) if histogram else None,
            np.asarray(arrays["lowest"], np.float64),
            CoMoments.from_arrays(distance) if distance else None,
            Moments.from_arrays(higher) if higher else None,
            Moments.from_arrays(lower) if lower else None,
            np.asarray(arrays["lacking"], np.int64),
        )


def with_lacking[S](summary: S, n_lacking: Mapping[int, int]) -> S:
    """Say in a summary of pairs which telescopes lost rows, and how many."""
    if not isinstance(summary, PairSummary) or not n_lacking:
        return summary
    rows = np.array(sorted(n_lacking.items()), np.int64)
    return replace(summary, lacking=rows)


def distance_range(
    impact_1_m: NDArray[np.float64], impact_2_m: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Range of the geometric mean of both impact distances, 0 to `N_RANGES` - 1."""
    return np.digitize(np.sqrt(impact_1_m * impact_2_m), DISTANCE_EDGES_M).astype(np.uint8)


def _ranges_of(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of `PairSummary.distance` that belong to rows of pairs."""
    return np.asarray(row[:, None] * N_RANGES + np.arange(N_RANGES)).ravel()


def _sum_by_number(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join rows of (number, count): one for each number, in their order."""
    rows = np.concatenate([one, two])
    number, place = np.unique(rows[:, 0], return_inverse=True)
    count = np.zeros(len(number), np.int64)
    np.add.at(count, place, rows[:, 1])
    return np.stack([number, count], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSummary:
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

    def merge(self, other: Self) -> Self:
        """Both sets of events together."""
        mine, theirs = self.to_arrays(), other.to_arrays()
        if any(mine[name].shape != theirs[name].shape for name in mine):
            raise ValueError("scores about different fits do not merge")
        return type(self)(
            self.outer + other.outer,
            self.n_events + other.n_events,
            self.component_n_events + other.component_n_events,
            self.kappa_variance + other.kappa_variance,
            self.scatter.merge(other.scatter),
        )

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        own = {one.name: getattr(self, one.name) for one in fields(self)[:-1]}
        return own | self.scatter.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        return cls(
            np.asarray(arrays["outer"], np.float64),
            np.asarray(arrays["n_events"], np.int64),
            np.asarray(arrays["component_n_events"], np.int64),
            np.asarray(arrays["kappa_variance"], np.float64),
            ResidualScatter.from_arrays(arrays),
        )


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


def mirrored(
    fit: NetworkFit,
    pair: NDArray[np.int64],
    x_1: NDArray[np.float64],
    x_2: NDArray[np.float64],
    step: float = 0.0,
) -> NDArray[np.bool_]:
    """Events that would be selected with their deviation from the model reversed as well.

    A threshold on each value of a pair lets through what fluctuated upwards in the dimmer telescope
    and cuts off what fluctuated downwards, which draws the ratio towards 1. With the deviation of d
    from the model Delta reversed, the values are x_2 exp(Delta) and x_1 exp(-Delta): if those pass
    the thresholds e_1 and e_2 too, what is left is symmetric about the model.

    Parameters
    ----------
    fit : NetworkFit
        With thresholds and model of each pair; without thresholds (-inf) all events pass.
    pair : ndarray of int64, shape (N,)
        Row of the pair.
    x_1, x_2 : ndarray of float64, shape (N,)
        Positive where thresholds are finite.
    step : float
        Added to the model.
    """
    ratio = np.exp(np.where(np.isfinite(fit.about), fit.about, 0.0) + step)
    return np.asarray(
        (x_2 * ratio[pair] >= fit.edge_1[pair]) & (x_1 / ratio[pair] >= fit.edge_2[pair])
    )


def check_stage(stage: int, options: NetworkOptions, given: NetworkFit | None) -> None:
    """Refuse a stage that the estimator does not have, or one without its state (ValueError)."""
    if not 0 <= stage < n_stages(options):
        raise ValueError(f"{options.estimator} has no stage {stage}")
    if (stage == 0) != (given is None):
        raise ValueError("the state of the stage before is needed from stage 1 on, and only then")


def summarise_pairs(
    events: PairEvents,
    observable: Observable = LOG_RATIO,
    *,
    histogram: bool = False,
    clip: NetworkFit | None = None,
) -> PairSummary:
    """Moments of what each pair compares.

    Parameters
    ----------
    events : PairEvents
        The pair events of a shard.
    observable : Observable
        What is compared.
    histogram : bool
        Also fill the histogram of d.
    clip : NetworkFit, optional
        Leave out d outside its bounds.
    """
    one, two, x_1, x_2, log_distance = _oriented(events)
    # A dense numbering of the telescopes gives the pairs without sorting the rows.
    number, tel_id = _number(one, two)
    code = number[one] * len(tel_id) + number[two]
    present = np.flatnonzero(np.bincount(code, minlength=len(tel_id) ** 2))
    index = np.searchsorted(present, np.arange(len(tel_id) ** 2))
    pair = index[code]
    ends = np.divmod(present, max(len(tel_id), 1))
    pairs = np.stack([tel_id[ends[0]], tel_id[ends[1]]], axis=1)

    first_row = np.zeros(len(pairs), np.int64)
    first_row[pair[::-1]] = np.arange(len(pair))[::-1]
    tel_type = events.tel_type[first_row]
    mixed = np.flatnonzero(events.tel_type != tel_type[pair])
    if len(mixed):
        row = mixed[0]
        earlier = first_row[pair[row]]
        here, there = _text(events.tel_type[[row, earlier]])
        raise CorruptedInput(
            f"pair-event row {row}: telescopes {one[row]} and {two[row]} are {here}, but {there} "
            f"in row {earlier}"
        )

    d, valid = _compare(observable.kind, x_1, x_2)
    if log_distance is not None:
        valid &= np.isfinite(log_distance)
    a = asymmetry(x_1, x_2) if observable.kind == "log-ratio" else None
    n_invalid = np.bincount(pair[~valid], minlength=len(pairs))
    higher = lower = None
    if clip is not None:
        known = rows_of(clip.pairs, one, two)
        valid &= known >= 0

        def within(step: float) -> NDArray[np.bool_]:
            with np.errstate(invalid="ignore"):
                kept = (d >= clip.low[known] + step) & (d <= clip.high[known] + step)
                return np.asarray(valid & kept & mirrored(clip, known, x_1, x_2, step))

        if np.isfinite(clip.edge_1).any():
            higher, lower = (
                Moments.from_groups(pair[kept], d[kept], len(pairs))
                for kept in (within(MODEL_STEP), within(-MODEL_STEP))
            )
        valid = within(0.0)
    pair, d = pair[valid], d[valid]
    lowest = np.full((len(pairs), 2), np.inf)
    for column, x in enumerate((x_1, x_2)):
        np.minimum.at(lowest[:, column], pair, x[valid])
    distance = None
    if log_distance is not None:
        group = pair * N_RANGES + _range(events)[valid]
        distance = CoMoments.from_groups(group, log_distance[valid], d, len(pairs) * N_RANGES)
    return PairSummary(
        pairs,
        _text(tel_type),
        n_invalid.astype(np.int64),
        Moments.from_groups(pair, d, len(pairs)),
        None if a is None else Moments.from_groups(pair, a[valid], len(pairs)),
        Histogram.from_groups(pair, d, len(pairs), observable.edges) if histogram else None,
        lowest,
        distance,
        higher,
        lower,
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
    `calibdask.array.state.NetworkFit`). So s_e gets -B times it.

    For the test of the fit, events move the centre of a pair by IF_p(d_ep)/n_p, with the influence
    about the centre, whatever the model, and times sqrt(n_p/(n_p - 1)): residuals about a mean of
    n_p are that much too small.
    """
    one, two, x_1, x_2, log_distance = _oriented(events)
    n_telescopes, n_components = len(fit.tel_id), len(fit.component_n_events)
    pair = rows_of(fit.pairs, one, two)
    d, valid = _compare(fit.kind, x_1, x_2)
    distance_pull = _distance_pull(fit)
    range_ = _range(events)
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


def _range(events: PairEvents) -> NDArray[np.int64]:
    """Range of distances of each row."""
    if events.distance_range is None:
        return np.zeros(len(events.event), np.int64)
    return np.asarray(events.distance_range, np.int64)


def _distance_pull(fit: NetworkFit) -> NDArray[np.float64]:
    """Return what each slope pulls theta by, B, shape (Y R, T)."""
    flow = -fit.levers * fit.weight
    return divergence(len(fit.tel_id), fit.first, fit.second, flow.T).T


def _oriented(
    events: PairEvents,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64] | None,
]:
    """Ids, values and distances with tel_id_1 < tel_id_2, each value staying with its telescope."""
    one, two = np.asarray(events.tel_id_1, np.int64), np.asarray(events.tel_id_2, np.int64)
    x_1, x_2 = np.asarray(events.x_1, np.float64), np.asarray(events.x_2, np.float64)
    out_of_range = (np.minimum(one, two) < 0) | (np.maximum(one, two) > MAX_TEL_ID)
    wrong = np.flatnonzero((one == two) | out_of_range)
    if len(wrong):
        row = wrong[0]
        raise CorruptedInput(
            f"pair-event row {row}: telescopes {one[row]} and {two[row]} are not two different ids "
            f"between 0 and {MAX_TEL_ID}"
        )
    swap = one > two
    if swap.any():
        one, two = np.where(swap, two, one), np.where(swap, one, two)
        x_1, x_2 = np.where(swap, x_2, x_1), np.where(swap, x_1, x_2)
    if events.log_distance is None:
        return one, two, x_1, x_2, None
    log_distance = np.asarray(events.log_distance, np.float64)
    return one, two, x_1, x_2, np.where(swap, -log_distance, log_distance)


def _compare(
    kind: str, x_1: NDArray[np.float64], x_2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return d of an observable of this kind, and whether both values can be used."""
    if kind == "difference":
        with np.errstate(invalid="ignore", over="ignore"):
            d = x_1 - x_2
        return d, np.isfinite(d)
    return log_ratio(x_1, x_2), measurable(x_1) & measurable(x_2)


def _number(*ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dense number of each telescope id (by id), and the ids in order."""
    seen = np.zeros(MAX_TEL_ID + 1, np.bool_)
    for some in ids:
        seen[some] = True
    return np.cumsum(seen) - 1, np.flatnonzero(seen)


def rows_of(
    pairs: NDArray[np.int64], one: NDArray[np.int64], two: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Row of each (one, two) in `pairs`, or -1."""
    number, tel_id = _number(pairs[:, 0], pairs[:, 1])
    known = np.zeros(MAX_TEL_ID + 1, np.bool_)
    known[tel_id] = True
    # One more number for telescopes that are in no pair.
    number = np.where(known, number, len(tel_id))
    table = np.full((len(tel_id) + 1, len(tel_id) + 1), -1)
    table[number[pairs[:, 0]], number[pairs[:, 1]]] = np.arange(len(pairs))
    return table[number[one], number[two]]


def _text(values: NDArray[np.str_] | NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Strings of either kind as str, no wider than needed."""
    if len(values) == 0:
        return np.zeros(0, "U1")
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()])
