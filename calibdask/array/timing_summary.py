"""Summaries and state of the telescope timing: rough offsets, then the network, then its errors.

Offsets between camera types may be microseconds while the scatter is a nanosecond. So the first
stage finds rough offsets in wide bins, and those of the network (`network.stages`) see what is
left of the times around them. The last stage also takes the moments of the residuals in
bins of the impact distance, from which the systematic error follows.

Small images trigger late. Where image sizes are known, a stage after the rough one fits this time
walk as w sqrt(100/size), one w for each type: a leading edge that rises as t^2 passes a fixed
threshold that late (see `calibdask.array.timing_walk`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask import flags
from calibdask.array.model import pair_types
from calibdask.array.network.coefficients import together
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.model import connected_components, solve_network
from calibdask.array.network.pairs import PairEvents, PairSummary, rows_of, summarise_pairs
from calibdask.array.network.scores import ScoreSummary
from calibdask.array.network.stages import n_stages as network_stages
from calibdask.array.network.stages import reduce_stage
from calibdask.array.network.state import NetworkFit
from calibdask.array.timing_model import between_bin_variance
from calibdask.array.timing_walk import (
    WalkRows,
    WalkSummary,
    walk_effect,
    walk_normal,
    walk_scores,
)
from calibdask.flags import Flag
from calibdask.stats.moments import Moments
from calibdask.stats.record import ArrayRecord, ArraySums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.model import Telescopes
    from calibdask.array.network.model import NetworkOptions, Observable

__all__ = [
    "TimingEvents",
    "TimingFit",
    "TimingOptions",
    "TimingScores",
    "add_systematic",
    "fit_timing",
    "n_timing_stages",
    "offset_network",
    "reduce_timing",
    "residual_columns",
    "rough_columns",
    "systematic_covariance",
    "walk_columns",
]

MIN_EVENTS_PER_IMPACT_BIN = 30
"""Fewer events, and the variance of a bin's mean is too uncertain to weight it with."""


@dataclass(frozen=True, slots=True)
class TimingOptions:
    """How times become offsets.

    Attributes
    ----------
    network : NetworkOptions
        Estimator, reference and the range of d = x_1 - x_2 around the rough offsets, in ns.
    rough : Observable
        The range in which rough offsets are looked for, in ns.
    impact_edges_m : tuple of float
        Bins of the impact distance.
    walk : bool
        Whether the time walk is fitted, which needs image sizes.
    """

    network: NetworkOptions
    rough: Observable
    impact_edges_m: tuple[float, ...]
    walk: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TimingEvents:
    """Times of telescope events, less the front's: what differs is clocks, triggers and noise.

    Attributes
    ----------
    event : ndarray of int, shape (N,)
        Index of each row's event.
    tel_id : ndarray of int, shape (N,)
        Its telescope.
    residual_ns : ndarray of float64, shape (N,)
        Time since the first of the event, less the delay of the front.
    impact_m : ndarray of float, shape (N,)
        Impact distance.
    row_1, row_2 : ndarray of int, shape (M,)
        The pairs: rows of the same event.
    smallness : ndarray of float, shape (N,), optional
        sqrt(100 photoelectrons/image size).
    group : ndarray of int, shape (N,), optional
        Random group of each row's event, as in `PairEvents`.
    """

    event: NDArray[np.integer]
    tel_id: NDArray[np.integer]
    residual_ns: NDArray[np.float64]
    impact_m: NDArray[np.floating]
    row_1: NDArray[np.integer]
    row_2: NDArray[np.integer]
    smallness: NDArray[np.floating] | None = None
    group: NDArray[np.integer] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TimingScores(ArraySums):
    """What the last stage takes from a shard.

    Attributes
    ----------
    scores : ScoreSummary
        For the event-clustered covariance.
    residuals : Moments, shape (T, B)
        Per telescope and bin of the impact distance: residual of a telescope against the others of
        its pairs, averaged over the pairs of one event.
    walk_outer : ndarray of float64, shape (Y, Y)
        Sum over events of the outer products of what each moves the time walk by; Y types.
    walk_sums : ndarray of float64, shape (K, 3)
        Events of each pair, and the sums of the smallness of its two images.
    """

    parts: ClassVar = {"scores": ("", ScoreSummary), "residuals": ("residual_", Moments)}

    scores: ScoreSummary
    residuals: Moments
    walk_outer: NDArray[np.float64]
    walk_sums: NDArray[np.float64]

    @classmethod
    def identity(cls, fit: TimingFit, network: NetworkFit, n_bins: int) -> Self:
        """No events about a fit: merging it changes nothing."""
        n_types = len(fit.walk_ns)
        return cls(
            ScoreSummary.identity(network),
            Moments.identity((len(network.tel_id), n_bins)),
            np.zeros((n_types, n_types)),
            np.zeros((len(network.first), 3)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TimingFit(ArrayRecord):
    """State after a stage.

    Attributes
    ----------
    rough_tel_id : ndarray of int64, shape (T,)
        Telescopes, in the order of the network.
    rough_ns : ndarray of float64, shape (T,)
        Rough offsets, NaN where there is none.
    network : NetworkFit or None
        From the second stage on, about the rough offsets; once it is done, of the offsets.
    residuals : Moments, shape (T, B)
        See `TimingScores`; empty before the last stage.
    walk_ns : ndarray of float64, shape (Y,)
        Time walk of each type (sorted) at 100 photoelectrons; of length 0 if none is fitted.
    walk_response : ndarray of float64, shape (Y, M)
        How the walk follows the normal equations' right hand side.
    walk_covariance : ndarray of float64, shape (Y, Y)
        Of the walk, with events as clusters, in ns^2; from the last stage.
    walk_effect : ndarray of float64, shape (T, Y)
        Derivative of the offsets by the walk; from the last stage.
    """

    parts: ClassVar = {"network": ("network_", NetworkFit), "residuals": ("residual_", Moments)}

    rough_tel_id: NDArray[np.int64]
    rough_ns: NDArray[np.float64]
    network: NetworkFit | None
    residuals: Moments
    walk_ns: NDArray[np.float64]
    walk_response: NDArray[np.float64]
    walk_covariance: NDArray[np.float64]
    walk_effect: NDArray[np.float64]

    @property
    def done(self) -> bool:
        """No further stage is needed."""
        return self.network is not None and self.network.done


def n_timing_stages(options: TimingOptions) -> int:
    """Return the number of stages: rough offsets, perhaps the time walk, and the network's."""
    return 1 + options.walk + network_stages(options.network)


def reduce_timing(
    stage: int,
    options: TimingOptions,
    events: TimingEvents,
    telescopes: Telescopes,
    given: TimingFit | None,
) -> PairSummary | WalkSummary | TimingScores:
    """Summary of one shard.

    Parameters
    ----------
    stage : int
        0 <= stage < n_timing_stages(options).
    options : TimingOptions
        How times become offsets.
    events : TimingEvents
        The shard's telescope events.
    telescopes : Telescopes
        All telescopes of the result.
    given : TimingFit or None
        State after the stage before; None at stage 0.

    Raises
    ------
    CorruptedInput
        If a telescope has two rows in one event, or is not among `telescopes`.
    ValueError
        If the state of the stage before is missing, or given at stage 0.
    """
    if (stage == 0) != (given is None):
        raise ValueError("the state of the stage before is needed from stage 1 on, and only then")
    if given is None:
        pairs = _pair_events(events, telescopes, events.residual_ns)
        return summarise_pairs(pairs, options.rough, histogram=True)
    size = int(max(given.rough_tel_id.max(initial=0), np.max(events.tel_id, initial=0))) + 1
    rough_ns, walk_ns = np.full(size, np.nan), np.zeros(size)
    rough_ns[given.rough_tel_id] = given.rough_ns
    around_ns = events.residual_ns - np.nan_to_num(rough_ns)[events.tel_id]
    walks = options.walk and stage > 1
    if walks and events.smallness is not None:
        number = np.unique(telescopes.tel_type, return_inverse=True)[1]
        walk_ns[telescopes.tel_id] = given.walk_ns[number]
        around_ns = around_ns - walk_ns[events.tel_id] * events.smallness
    pairs = _pair_events(events, telescopes, around_ns)
    # What is far off is no time of this shower: it counts as invalid and is reported as such.
    observable = options.network.observable
    d = pairs.x_1 - pairs.x_2
    far = (d < observable.low) | (d > observable.high)
    far &= np.isfinite(rough_ns[pairs.tel_id_1] + rough_ns[pairs.tel_id_2])
    pairs = replace(pairs, x_1=np.where(far, np.nan, pairs.x_1))
    if options.walk and stage == 1:
        return walk_normal(_walk_rows(events, telescopes, pairs, given))
    network = given.network
    summary = reduce_stage(stage - 1 - options.walk, options.network, pairs, network)
    if isinstance(summary, PairSummary) or network is None:
        return summary  # type: ignore[return-value]
    residuals = _impact_moments(options, network, pairs, events)
    nothing = TimingScores.identity(given, network, len(options.impact_edges_m) - 1)
    outer, sums = nothing.walk_outer, nothing.walk_sums
    if options.walk:
        rows = _walk_rows(events, telescopes, pairs, given)
        outer, sums = walk_scores(rows, network, given.walk_response, events.event[events.row_1])
    return TimingScores(summary, residuals, outer, sums)


def _walk_rows(
    events: TimingEvents, telescopes: Telescopes, pairs: PairEvents, given: TimingFit
) -> WalkRows:
    """Pairs with what the time walk depends on."""
    if events.smallness is None:
        raise ValueError("the time walk needs image sizes")
    place, number = (np.full(int(telescopes.tel_id.max()) + 1, -1) for _ in range(2))
    place[given.rough_tel_id] = np.arange(len(given.rough_tel_id))
    number[telescopes.tel_id] = np.unique(telescopes.tel_type, return_inverse=True)[1]
    one, two = events.tel_id[events.row_1], events.tel_id[events.row_2]
    return WalkRows(
        len(given.rough_tel_id),
        len(given.walk_ns),
        place[one],
        place[two],
        number[one],
        number[two],
        events.smallness[events.row_1].astype(np.float64),
        events.smallness[events.row_2].astype(np.float64),
        pairs.x_1 - pairs.x_2,
    )


def _pair_events(
    events: TimingEvents, telescopes: Telescopes, x_ns: NDArray[np.float64]
) -> PairEvents:
    """Pairs of each event with their times."""
    size = int(telescopes.tel_id.max(initial=0)) + 1
    number = np.zeros(size, np.int64)
    kinds, number[telescopes.tel_id] = np.unique(telescopes.tel_type, return_inverse=True)
    joined = pair_types(kinds[:, None], kinds[None, :])
    one, two = events.tel_id[events.row_1], events.tel_id[events.row_2]
    return PairEvents(
        events.event[events.row_1],
        joined[number[one], number[two]],
        one,
        two,
        x_ns[events.row_1],
        x_ns[events.row_2],
        group=None if events.group is None else events.group[events.row_1],
    )


def _impact_moments(
    options: TimingOptions,
    network: NetworkFit,
    pairs: PairEvents,
    events: TimingEvents,
) -> Moments:
    """Moments of the residuals of each telescope by impact distance, shape (T, B)."""
    one, two = (np.asarray(ids, np.int64) for ids in (pairs.tel_id_1, pairs.tel_id_2))
    known = rows_of(network.pairs, one, two)
    d = pairs.x_1 - pairs.x_2
    with np.errstate(invalid="ignore"):
        good = (known >= 0) & network.used[known]
        good &= (d >= network.low[known]) & (d <= network.high[known])
    row_1, row_2, known = events.row_1[good], events.row_2[good], known[good]
    residual = d[good] - network.model[known]
    n_rows = len(events.tel_id)
    n_partners = np.bincount(row_1, minlength=n_rows) + np.bincount(row_2, minlength=n_rows)
    total = np.bincount(row_1, residual, n_rows) - np.bincount(row_2, residual, n_rows)
    edges = np.array(options.impact_edges_m)
    inside = (events.impact_m >= edges[0]) & (events.impact_m < edges[-1])
    row = np.flatnonzero((n_partners > 0) & inside)
    n_bins = len(edges) - 1
    place = np.full(int(network.tel_id.max(initial=0)) + 1, -1)
    place[network.tel_id] = np.arange(len(network.tel_id))
    column = np.searchsorted(edges, events.impact_m[row], side="right") - 1
    group = place[events.tel_id[row]] * n_bins + column
    shape = (len(network.tel_id), n_bins)
    flat = Moments.from_groups(group, total[row] / n_partners[row], shape[0] * shape[1])
    return Moments(flat.n.reshape(shape), flat.mean.reshape(shape), flat.m2.reshape(shape))


def fit_timing(
    stage: int,
    options: TimingOptions,
    total: PairSummary | WalkSummary | TimingScores,
    given: TimingFit | None,
    telescopes: Telescopes,
) -> TimingFit:
    """State after a stage, from the merged summaries of all shards.

    Parameters
    ----------
    stage, options, telescopes, given
        As in `reduce_timing`.
    total : PairSummary or TimingScores
        All shards' summaries merged.
    """
    if isinstance(total, WalkSummary):
        if given is None:
            raise ValueError("the time walk comes after the rough offsets")
        walk_ns, response = total.solve(len(given.rough_tel_id), len(given.walk_ns))
        return replace(given, walk_ns=walk_ns, walk_response=response)
    if given is None:
        return _rough_fit(options, total, telescopes)
    scores = total.scores if isinstance(total, TimingScores) else total
    stage -= 1 + options.walk
    network = fit_stage(stage, options.network, scores, given.network, telescopes)
    if not isinstance(total, TimingScores):
        return replace(given, network=network)
    return replace(
        given,
        network=_with_rough(network, given.rough_ns),
        residuals=total.residuals,
        walk_covariance=total.walk_outer,
        walk_effect=walk_effect(network, total.walk_sums, len(given.walk_ns)),
    )


def _rough_fit(
    options: TimingOptions, total: PairSummary | TimingScores, telescopes: Telescopes
) -> TimingFit:
    """Least squares of the pairs' medians, each weighted with its events."""
    if isinstance(total, TimingScores) or total.histogram is None:
        raise ValueError("rough offsets are found in histograms")
    order = np.lexsort((telescopes.tel_id, telescopes.tel_type))
    tel_id = telescopes.tel_id[order]
    place = np.full(int(max(tel_id.max(initial=0), total.pairs.max(initial=0))) + 1, -1)
    place[tel_id] = np.arange(len(tel_id))
    median = total.histogram.median()
    first, second = place[total.pairs[:, 0]], place[total.pairs[:, 1]]
    # A telescope that is not of the array is refused by the network, with its name.
    used = (total.difference.n >= options.network.n_min) & np.isfinite(median)
    used &= (first >= 0) & (second >= 0)
    first, second, median = first[used], second[used], median[used]
    weight = total.difference.n[used].astype(np.float64)
    component = connected_components(len(tel_id), first, second)
    rough_ns = np.full(len(tel_id), np.nan)
    for c in range(int(component.max(initial=-1)) + 1):
        member = np.flatnonzero(component == c)
        local = np.zeros(len(tel_id), np.int64)
        local[member] = np.arange(len(member))
        inside = component[first] == c
        gauge = np.zeros(len(member))
        gauge[0] = 1.0
        theta, _ = solve_network(
            local[first[inside]], local[second[inside]], median[inside], weight[inside], gauge
        )
        rough_ns[member] = theta
    n_tel, n_types = len(tel_id), len(np.unique(telescopes.tel_type)) if options.walk else 0
    return TimingFit(
        tel_id,
        rough_ns,
        None,
        Moments.identity((n_tel, 0)),
        np.zeros(n_types),
        np.zeros((n_types, 0)),
        np.zeros((n_types, n_types)),
        np.zeros((n_tel, n_types)),
    )


def offset_network(fit: TimingFit) -> NetworkFit | None:
    """Return the network of the offsets themselves, at whatever stage; None before the second."""
    if fit.network is None or fit.done:
        return fit.network
    return _with_rough(fit.network, fit.rough_ns)


def _with_rough(fit: NetworkFit, rough_ns: NDArray[np.float64]) -> NetworkFit:
    """Fit of the offsets themselves, from the one about the rough offsets, in the same gauge."""
    rough_ns = np.nan_to_num(rough_ns)
    has_component = fit.component >= 0
    n_components = int(fit.component.max(initial=-1)) + 1
    fixed = np.bincount(
        fit.component[has_component], (fit.gauge * rough_ns)[has_component], n_components
    )
    shift = np.where(has_component, rough_ns - np.append(fixed, 0.0)[fit.component], 0.0)
    moved = shift[fit.first] - shift[fit.second]
    # Pairs without a component keep what they were measured to be.
    apart = (fit.component[fit.first] < 0) | (fit.component[fit.second] < 0)
    moved = np.where(apart, rough_ns[fit.first] - rough_ns[fit.second], moved)
    return replace(
        fit,
        theta=fit.theta + shift,
        centre=fit.centre + moved,
        low=fit.low + moved,
        high=fit.high + moved,
        median=fit.median + moved,
    )


def add_systematic(
    fit: TimingFit,
    network: NetworkFit,
    offsets: dict[str, NDArray[Any]],
    covariance: dict[str, NDArray[Any]],
) -> None:
    """Add systematic and total errors to the columns of offsets and of their covariance."""
    floor = systematic_covariance(fit)
    has_value = np.isfinite(offsets["value"])
    systematic = np.where(has_value, np.sqrt(np.diagonal(floor)), np.nan)
    total = np.hypot(offsets["error"], systematic)
    unknown = has_value & ~np.isfinite(total)
    offsets |= {
        "systematic": systematic,
        "error_total": total,
        "flags": flags.add(offsets["flags"], {Flag.NO_TOTAL_ERROR: unknown}),
    }
    one, two = together(network.component)
    covariance["systematic_covariance"] = floor[one, two]


def rough_columns(
    fit: TimingFit, types: Mapping[int, str], references: list[int]
) -> dict[str, NDArray[Any]]:
    """Columns of the offsets before the second stage, good to some nanoseconds."""
    fixed_ns = fit.rough_ns[np.isin(fit.rough_tel_id, references)]
    value = fit.rough_ns - (fixed_ns[0] if np.isfinite(fixed_ns).any() else 0.0)
    has_value = np.isfinite(value)
    return {
        "tel_type": np.array([types[number] for number in fit.rough_tel_id.tolist()]),
        "tel_id": fit.rough_tel_id,
        "value": value,
        "flags": flags.column({Flag.PRELIMINARY: has_value, Flag.NO_PAIR: ~has_value}),
    }


def walk_columns(fit: TimingFit, types: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    """Columns of the table of time walks, one row for each type."""
    error = np.sqrt(np.diagonal(fit.walk_covariance))
    return {"tel_type": types, "time_walk": fit.walk_ns, "error": error}


def residual_columns(
    fit: TimingFit, impact_edges_m: tuple[float, ...]
) -> dict[str, NDArray[np.generic]]:
    """Columns of the table of residuals: one row per telescope and bin of the impact distance."""
    network, residuals = fit.network, fit.residuals
    n_tel, n_bins = residuals.n.shape
    if network is None or n_bins == 0:  # nothing was fitted
        n_tel, n_bins = 0, 0
    edges = np.array(impact_edges_m)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(residuals.variance() / residuals.n)
    tel_id = fit.rough_tel_id[:n_tel]
    tel_type = np.zeros(0, "U1") if network is None else network.tel_type[:n_tel]
    return {
        "tel_type": np.repeat(tel_type, n_bins),
        "tel_id": np.repeat(tel_id, n_bins),
        "impact_low": np.tile(edges[:-1][:n_bins], n_tel),
        "impact_high": np.tile(edges[1:][:n_bins], n_tel),
        "n_events": residuals.n.ravel(),
        "residual": np.where(residuals.n > 0, residuals.mean, np.nan).ravel(),
        "residual_error": error.ravel(),
    }


def systematic_covariance(fit: TimingFit) -> NDArray[np.float64]:
    """Covariance of what the front's model does to the offsets, shape (T, T), in ns^2.

    If the front were as modelled, the residuals of a telescope would not depend on how far the
    shower was. Their means in bins of the impact distance scatter by tau beyond their errors
    (`between_bin_variance`, pooled over each type): so far off may the mean over the showers that a
    telescope happened to see be, too, and it does not shrink with more of them. With tau_i of each
    telescope's type and the gauge u of its component, offsets being relative to what u fixes,

        S = P diag(tau^2) P^T ,  P = 1 - 1 u^T ,

    so that a fixed reference has no error and the others also have that of the reference. It covers
    shapes of the front, time walk and core or height that are wrong in the mean, as far as they
    depend on the impact distance. It cannot see what is the same at all distances. The error of the
    fitted time walk w adds B cov(w) B^T, with B the derivative of the offsets by w.
    """
    network = fit.network
    if network is None or not network.done:
        raise ValueError("the systematic error comes with the last stage")
    kinds, group = np.unique(network.tel_type, return_inverse=True)
    tau2 = between_bin_variance(fit.residuals, group, len(kinds), MIN_EVENTS_PER_IMPACT_BIN)[group]
    n_tel = len(network.tel_id)
    covariance = np.zeros((n_tel, n_tel))
    for c in range(int(network.component.max(initial=-1)) + 1):
        member = np.flatnonzero(network.component == c)
        project = np.eye(len(member)) - network.gauge[member]
        known = np.isfinite(tau2[member])
        block = np.einsum("ik,k,jk->ij", project, np.where(known, tau2[member], 0.0), project)
        # A type without a floor leaves unknown only what depends on it: not a fixed reference.
        needed = np.einsum("ik,k,jk->ij", np.abs(project), ~known, np.abs(project)) > 0
        covariance[np.ix_(member, member)] = np.where(needed, np.nan, block)
    return covariance + fit.walk_effect @ fit.walk_covariance @ fit.walk_effect.T
