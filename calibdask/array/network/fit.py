"""The fit of the network of pairs: from merged summaries to throughputs with their errors.

:func:`fit_stage` makes the state that the next stage sees (`network.stages` lists the stages);
`network.coefficients` the columns of tables of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from calibdask import flags
from calibdask.array.model import MAX_TEL_ID, Telescopes, pair_types
from calibdask.array.network.goodness import test_of_fit
from calibdask.array.network.model import (
    connected_components,
    shrink_variance,
    solve_asymmetry_network,
    solve_network,
)
from calibdask.array.network.pairs import MODEL_STEP, N_RANGES, PairSummary, rows_of
from calibdask.array.network.scores import ScoreSummary
from calibdask.array.network.stages import check_stage, n_stages
from calibdask.array.network.state import NetworkFit
from calibdask.errors import CorruptedInput
from calibdask.flags import Flag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.network.model import NetworkOptions
    from calibdask.stats.histogram import Histogram
    from calibdask.stats.moments import CoMoments, Moments

__all__ = [
    "fit_stage",
]

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its MAD (Rousseeuw & Croux 1993, eq. 1.2)."""

WEIGHT_PRIOR_EVENTS = 100.0
"""Events a pair needs before its own variance counts as much as its type's for its weight.

Toy experiments with 6 events a pair: pull width 1.6 with each pair's own variance, 1.14 with a
prior of 5 events, 1.07 with 20, 1.02 with 100, 1.01 with the pooled variance alone. If the noise of
telescopes differs by a factor of three, a prior of 100 costs 2 % in precision against one of 5.
"""

ERROR_PRIOR_EVENTS = 5.0
"""Events a telescope needs before its own clustered variance counts as much as its type's.

Experiments with 12 events in common to 4 telescopes, held out: pull width 1.11 without, 1.01 with.
"""

SCALE_PRIOR_EVENTS = 10.0
"""The same for the scale in an influence function, where a wrong one is a wrong error."""

SLOPE_SPREAD = 3.0
"""Scatter of the slopes of a type's ranges of distances: light that falls by 1/e in 60 m has -2 at
120 m and -7 at 400 m."""

MOST_FOLLOWING = 0.8
"""Of a centre, at most, that follows the model about which its events are selected."""

MIN_SCATTER = 1e-9
"""Standard deviation of d or the asymmetry that is mere rounding."""

DENSITY_HALF_WIDTH = 0.3
"""Bandwidth of the density at the median, in sigma: 1.5 % low for a normal distribution."""


def fit_stage(
    stage: int,
    options: NetworkOptions,
    total: PairSummary | ScoreSummary,
    given: NetworkFit | None,
    telescopes: Telescopes | None = None,
) -> NetworkFit:
    """State after a stage, from the merged summaries of all shards.

    Parameters
    ----------
    stage, options, given
        As in `reduce_stage`.
    total : PairSummary or ScoreSummary
        All shards' summaries merged.
    telescopes : Telescopes, optional
        Those the result has a row for; read at stage 0. By default those with pair events.

    Raises
    ------
    CorruptedInput
        If a telescope with pair events is not among `telescopes`, or with another type.
    ValueError
        If pairs of different types come without `telescopes`.
    """
    check_stage(stage, options, given)
    if isinstance(total, ScoreSummary):
        if given is None or stage != n_stages(options) - 1:
            raise ValueError(f"scores do not belong to stage {stage} of {options.estimator}")
        return _with_scores(given, total)
    if given is None:
        start = _start(options, total, telescopes)
        if total.histogram is not None:
            fitted = _fit_histogram(options, start, total.histogram)
        else:
            fitted = _fit_moments(options, start, total)
        return _with_edges(options, fitted, total)
    return _fit_within(options, given, total)


def _start(
    options: NetworkOptions, total: PairSummary, telescopes: Telescopes | None
) -> NetworkFit:
    """State before any fit: telescopes, pairs, and which pairs can be used."""
    if telescopes is None:
        ids = np.concatenate([total.pairs[:, 0], total.pairs[:, 1]])
        tel_id, row = np.unique(ids, return_index=True)
        if options.reference_type is not None:
            raise ValueError("a network of several types needs to know the telescopes")
        tel_type = np.concatenate([total.tel_type, total.tel_type])[row]
    else:
        tel_id = np.asarray(telescopes.tel_id, np.int64)
        tel_type = np.asarray(telescopes.tel_type, np.str_)
    order = np.lexsort((tel_id, tel_type))
    tel_id, tel_type = tel_id[order], tel_type[order]
    index = np.full(MAX_TEL_ID + 1, -1)
    index[tel_id] = np.arange(len(tel_id))
    ends = index[total.pairs]
    found = np.where(ends >= 0, tel_type[ends] if len(tel_id) else "", "")
    wrong = np.flatnonzero(pair_types(found[:, 0], found[:, 1]) != total.tel_type)
    if len(wrong):
        expected = str(total.tel_type[wrong[0]])
        column = 0 if found[wrong[0], 0] not in expected.split("-") else 1
        raise CorruptedInput(
            f"telescope {total.pairs[wrong[0], column]} has pair events as {expected}, but the "
            f"subarray has it as {found[wrong[0], column] or 'no telescope at all'}: input and "
            "subarray do not belong together"
        )
    scales = dict(options.throughput_normalisation)
    scaled_as = tel_type.tolist()
    if options.reference_type is not None:
        scaled_as = [options.reference_type] * len(tel_id)
    n = total.difference.n
    std_difference = np.sqrt(total.difference.variance())
    few = n < options.n_min
    mean_asymmetry = std_asymmetry = np.full(len(n), np.nan)
    if total.asymmetry is not None:
        mean_asymmetry = np.where(n > 0, total.asymmetry.mean, np.nan)
        std_asymmetry = np.sqrt(total.asymmetry.variance())
    fitted = std_asymmetry if options.estimator == "asymmetry" else std_difference
    unusable = ~few & ~(fitted > MIN_SCATTER)
    n_tel, n_pair = len(tel_id), len(n)
    nothing = np.full(n_pair, np.nan)
    return NetworkFit(
        estimator=options.estimator,
        kind=options.observable.kind,
        done=False,
        tel_id=tel_id,
        tel_type=tel_type,
        scale=np.array([scales.get(t, 1.0) for t in scaled_as], np.float64),
        component=np.full(n_tel, -1),
        is_reference=np.zeros(n_tel, np.bool_),
        is_fallback=np.zeros(n_tel, np.bool_),
        is_main=np.zeros(n_tel, np.bool_),
        gauge=np.zeros(n_tel),
        theta=np.full(n_tel, np.nan),
        n_events=np.zeros(n_tel, np.int64),
        covariance_independent=np.zeros((n_tel, n_tel)),
        covariance=np.zeros((n_tel, n_tel)),
        component_n_events=np.zeros(0, np.int64),
        first=ends[:, 0],
        second=ends[:, 1],
        n=n,
        n_invalid=total.n_invalid,
        mean_asymmetry=mean_asymmetry,
        std_asymmetry=std_asymmetry,
        std_difference=std_difference,
        centre=nothing,
        variance=nothing,
        weight=np.zeros(n_pair),
        used=~few & ~unusable,
        pair_flags=flags.column(
            {
                Flag.FEW_PAIR_EVENTS: few,
                Flag.UNMEASURED_PAIR: unusable,
                Flag.INVALID_EVENTS: total.n_invalid > 0,
            }
        ),
        n_centre=n,
        low=np.full(n_pair, -np.inf),
        high=np.full(n_pair, np.inf),
        median=np.zeros(n_pair),
        slope=np.ones(n_pair),
        jump=np.zeros(n_pair),
        distance_term=total.distance is not None,
        kappa=np.zeros((n_pair, N_RANGES)),
        kappa_error=np.zeros((n_pair, N_RANGES)),
        mean_log_distance=np.zeros((n_pair, N_RANGES)),
        kappa_weight=np.zeros((n_pair, N_RANGES)),
        range_share=np.zeros((n_pair, N_RANGES)),
        edge_1=np.full(n_pair, -np.inf),
        edge_2=np.full(n_pair, -np.inf),
        about=np.zeros(n_pair),
        given=np.zeros(n_pair, np.bool_),
        weight_given=np.zeros(n_pair),
        given_bread=np.zeros((n_tel, n_tel)),
        given_pull=np.zeros((n_tel, n_tel)),
        given_error=np.zeros((n_tel, n_tel)),
        scale_covariance=np.zeros((n_tel, n_tel)),
        freedom=np.zeros(n_tel),
        chi2=np.zeros(0),
        ndf=np.zeros(0),
        p_value=np.zeros(0),
        n_lacking=_of_telescopes(total.lacking, tel_id),
    )


def _of_telescopes(rows: NDArray[np.int64], tel_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spread rows of (telescope, count) over telescopes; others have none."""
    counts = np.zeros(MAX_TEL_ID + 1, np.int64)
    counts[rows[:, 0]] = rows[:, 1]
    return np.asarray(counts[tel_id])


def _type_of_pairs(fit: NetworkFit) -> NDArray[np.int64]:
    """Return the number of each pair's type, shape (K,)."""
    return np.unique(fit.pair_type, return_inverse=True)[1]


def _fit_moments(options: NetworkOptions, start: NetworkFit, total: PairSummary) -> NetworkFit:
    """Fit to the mean of d or of the asymmetry."""
    if total.distance is not None:
        return _solve(options, _fit_distance(start, total.difference, total.distance))
    if start.estimator == "asymmetry" and total.asymmetry is not None:
        # The peer weights each pair by its own scatter; so does this, to give its numbers.
        centre, variance = total.asymmetry.mean, total.asymmetry.variance()
    else:
        centre = total.difference.mean
        variance = _shrunk(
            start, total.difference.m2, (start.n - 1).astype(np.float64), WEIGHT_PRIOR_EVENTS
        )
    return _solve(options, replace(start, centre=centre, variance=variance))


def _fit_distance(start: NetworkFit, difference: Moments, distance: CoMoments) -> NetworkFit:
    """Centres of the pairs at equal distances, by slopes kappa for each type.

    How steeply light falls depends on the distance itself: flat near the shower, steep far away. So
    each range of the mean distance has a slope. Within a pair and range d and x scatter about their
    means, whatever the throughputs are: the weighted least squares of d - mean(d) =
    kappa_r (x - mean(x)) over the pairs of a type,

        kappa_r = sum_p C_pr/v_p / sum_p M2_pr/v_p ,

    with C_pr and M2_pr the sums of products and squares of deviations, does not depend on theta.
    Where few events are in a range, kappa_r is drawn to the common slope of the type, about which
    those of the ranges scatter by `SLOPE_SPREAD`.
    The variances v_p of a pair's events are first those of d, then twice those of d - kappa_r x.
    """
    types = _type_of_pairs(start)
    n_types = int(types.max(initial=-1)) + 1
    freedom = (start.n - 1).astype(np.float64)
    used = start.used
    n, mean, mean_y, m2_x, c_xy = (
        np.where(used[:, None], part.reshape(-1, N_RANGES), 0.0)
        for part in (distance.n, distance.mean_x, distance.mean_y, distance.m2_x, distance.c_xy)
    )

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((n_types, N_RANGES))
        np.add.at(total, types[used], values[used])
        return total

    sums = n * mean
    variance = _shrunk(start, difference.m2, freedom, WEIGHT_PRIOR_EVENTS)
    kappa, weight = np.zeros_like(n), np.zeros_like(n)
    for _ in range(2):
        squares, products = (summed(part / variance[:, None]) for part in (m2_x, c_xy))
        # Equal distances have no slope: it is 0 then, and nothing is known about it.
        total = np.sum(squares, axis=1, keepdims=True)
        common = np.sum(products, axis=1, keepdims=True) / np.where(total > 0, total, 1.0)
        inverse = 1.0 / (squares + SLOPE_SPREAD**-2.0)
        kappa = (inverse * (products + common * SLOPE_SPREAD**-2.0))[types]
        weight = np.where(used[:, None], inverse[types] / variance[:, None], 0.0)
        # About the mean of the pair, not of the range.
        along = c_xy + sums * (mean_y - difference.mean[:, None])
        left = difference.m2 - np.sum(2 * kappa * along - kappa**2 * (m2_x + sums * mean), axis=1)
        left -= np.sum(kappa * sums, axis=1) ** 2 / np.maximum(start.n, 1)
        left = np.maximum(left, freedom * MIN_SCATTER**2)
        variance = _shrunk(start, left, freedom, WEIGHT_PRIOR_EVENTS)
    share = n / np.maximum(start.n, 1)[:, None]
    return replace(
        start,
        centre=difference.mean - np.sum(kappa * share * mean, axis=1),
        variance=variance,
        kappa=kappa,
        mean_log_distance=mean,
        kappa_weight=weight,
        range_share=share,
    )


def _shrunk(
    fit: NetworkFit,
    sum_of_squares: NDArray[np.float64],
    freedom: NDArray[np.float64],
    prior_events: float,
) -> NDArray[np.float64]:
    """`shrink_variance` of the used pairs by type; NaN for the others."""
    used = fit.used
    variance = np.full(len(used), np.nan)
    variance[used] = shrink_variance(
        sum_of_squares[used], freedom[used], _type_of_pairs(fit)[used], prior_events
    )
    return variance


def _fit_histogram(options: NetworkOptions, start: NetworkFit, histogram: Histogram) -> NetworkFit:
    """Fit to the medians; for "log-clipped", the bounds of the next stage as well.

    A pair has a scale sigma_p of its own, 1.4826 MAD drawn towards its type's; the shape of the
    distribution, f(m) sigma, is pooled over the type. A density at the pair's own median would be
    too high (an event lies there by construction), so it is taken at the model.
    """
    median = histogram.median()
    sigma = MAD_TO_SIGMA * histogram.mad(median)
    resolved = sigma >= np.diff(histogram.edges).max()
    fit = replace(
        start,
        used=start.used & resolved,
        pair_flags=flags.add(start.pair_flags, {Flag.UNMEASURED_PAIR: start.used & ~resolved}),
    )
    n = fit.n.astype(np.float64)
    variance = _shrunk(fit, n * sigma**2, n, WEIGHT_PRIOR_EVENTS)
    sigma = np.sqrt(_shrunk(fit, n * sigma**2, n, SCALE_PRIOR_EVENTS))
    fit = _solve(options, replace(fit, centre=median, median=median, variance=variance))

    used, group = fit.used, _type_of_pairs(fit)
    known = replace(histogram, counts=histogram.counts[used])
    at_median = _pooled(
        fit, sigma[used] * known.density(fit.model[used], DENSITY_HALF_WIDTH * sigma[used])
    )[group]
    jump = sigma / (2.0 * at_median)
    if fit.estimator == "log-median":
        variance = variance / (2.0 * at_median) ** 2
        fit = replace(fit, slope=np.zeros(len(used)), jump=jump, variance=variance)
        return _solve(options, fit)
    return _clip_bounds(options, fit, known, sigma, at_median)


def _clip_bounds(
    options: NetworkOptions,
    fit: NetworkFit,
    known: Histogram,
    sigma: NDArray[np.float64],
    at_median: NDArray[np.float64],
) -> NetworkFit:
    """Bounds of the one-step clipped mean, and its influence function.

    The estimator is T(F) = mean of d in [lo, hi], lo = m - k s, hi = m + k s, with m the median and
    s = 1.4826 MAD. With p = F(hi) - F(lo) and T = (1/p) int_lo^hi x dF, contaminating F at d gives
    (influence functions as in Hampel 1974, J. Am. Stat. Assoc. 69, 383)

        p IF(d) = (d - T) [lo <= d <= hi] + (hi - T) f(hi) dhi - (lo - T) f(lo) dlo ,
        dhi = dm + k ds,  dlo = dm - k ds,  dm = sign(d - m)/(2 f(m)) ,

    where the bounds contribute because events enter or leave as they move. For a symmetric F,
    T = m and f(lo) = f(hi) = f(k s): the terms in ds cancel, those in dm add up to 2 k s f(k s) dm:

        IF(d) = (d - T)/p [lo <= d <= hi] + k s f(k s)/(p f(m)) sign(d - m) .

    f(k s) s, f(m) s, p and the variance of IF over s^2 are pooled over the type. For an asymmetric
    F the terms in ds are left out, which is of the order of the skewness times f(k s).
    """
    used, group = fit.used, _type_of_pairs(fit)
    reach = options.clip_sigma * sigma
    low, high = fit.median - reach, fit.median + reach
    width = DENSITY_HALF_WIDTH * sigma[used]
    at_bounds = 0.5 * (known.density(low[used], width) + known.density(high[used], width))
    shoulder = _pooled(fit, reach[used] * at_bounds)[group]
    inside = _pooled(fit, known.cdf(high[used]) - known.cdf(low[used]))[group]
    jump = shoulder * sigma / (at_median * inside)

    # Variance of the influence over sigma^2, from the histogram about the model.
    bins = 0.5 * (known.edges[1:] + known.edges[:-1])
    within = (bins >= low[used, None]) & (bins <= high[used, None])
    distance = np.where(within, (bins - fit.model[used, None]) / sigma[used, None], 0.0)
    share = known.counts[:, 1:-1] / fit.n[used, None]
    square = _pooled(fit, np.sum(share * distance**2, axis=1))[group]
    absolute = _pooled(fit, np.sum(share * np.abs(distance), axis=1))[group]
    relative_jump = jump / sigma
    relative = square / inside**2 + 2 * relative_jump * absolute / inside + relative_jump**2
    return replace(
        fit, low=low, high=high, slope=1.0 / inside, jump=jump, variance=relative * fit.variance
    )


def _pooled(fit: NetworkFit, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a value of the used pairs, weighted with their events, for each number of a type."""
    group = _type_of_pairs(fit)
    n_types = int(group.max(initial=-1)) + 1
    n = fit.n[fit.used]
    total = np.bincount(group[fit.used], n * values, n_types)
    events = np.bincount(group[fit.used], n, n_types)
    return np.asarray(total / np.where(events > 0, events, np.nan))


def _with_edges(options: NetworkOptions, fit: NetworkFit, total: PairSummary) -> NetworkFit:
    """Find the thresholds, the least value of each telescope over all its pairs.

    The bounds of the clipped mean are then taken about the model, too.
    """
    if not (options.symmetric and options.estimator in ("log-mean", "log-clipped")):
        return fit
    least = np.full(len(fit.tel_id), np.inf)
    for end, lowest in ((fit.first, total.lowest[:, 0]), (fit.second, total.lowest[:, 1])):
        np.minimum.at(least, end, lowest)
    moved = np.where(np.isfinite(fit.model), fit.model - fit.median, 0.0)
    return replace(
        fit,
        edge_1=least[fit.first],
        edge_2=least[fit.second],
        about=fit.model,
        low=fit.low + moved,
        high=fit.high + moved,
        jump=np.zeros(len(fit.first)),
    )


def _fit_within(options: NetworkOptions, fit: NetworkFit, total: PairSummary) -> NetworkFit:
    """Fit to the means of the events within the bounds, and symmetric about the model.

    A mean m of events selected about a model Delta follows it, by lambda = dm/dDelta. What is
    wanted is Delta = m(Delta), of which Newton's step gives (m - lambda Delta)/(1 - lambda); the
    influence of an event is larger by 1/(1 - lambda). Lambda is pooled over each type.
    """
    row = rows_of(total.pairs, fit.pairs[:, 0], fit.pairs[:, 1])
    n_centre = np.where(row >= 0, total.difference.n[row], 0)
    unusable = fit.used & (n_centre < 2)
    part = fit.n / np.maximum(n_centre, 1)
    fit = replace(
        fit,
        centre=total.difference.mean[row],
        n_centre=n_centre,
        slope=part,
        used=fit.used & ~unusable,
        pair_flags=flags.add(fit.pair_flags, {Flag.UNMEASURED_PAIR: unusable}),
    )
    if total.higher is not None and total.lower is not None:
        follows = (total.higher.mean - total.lower.mean)[row] / (2 * MODEL_STEP)
        both = (total.higher.n > 0) & (total.lower.n > 0)
        follows = np.where(both[row] & (row >= 0), follows, 0.0)
        share = np.clip(_pooled(fit, follows[fit.used]), 0.0, MOST_FOLLOWING)[_type_of_pairs(fit)]
        about = np.where(np.isfinite(fit.about), fit.about, fit.centre)
        slope = part / (1.0 - share)
        squares = np.where(row >= 0, total.difference.m2[row], 0.0)
        freedom = np.maximum(n_centre - 1.0, 0.0)
        variance = _shrunk(fit, squares, freedom, WEIGHT_PRIOR_EVENTS) * slope**2 / part
        centre = (fit.centre - share * about) / (1.0 - share)
        fit = replace(fit, centre=centre, slope=slope, variance=variance)
    return _solve(options, fit)


def _solve(options: NetworkOptions, fit: NetworkFit) -> NetworkFit:
    """Choose components and references, and solve each component."""
    n_tel = len(fit.tel_id)
    weight = np.zeros(len(fit.n))
    weight[fit.used] = fit.n[fit.used] / fit.variance[fit.used]
    first, second = fit.first[fit.used], fit.second[fit.used]
    component = connected_components(n_tel, first, second)
    total_weight = np.bincount(first, weight[fit.used], n_tel)
    total_weight += np.bincount(second, weight[fit.used], n_tel)

    configured = dict(options.reference_telescopes)
    of_reference_type = np.ones(n_tel, np.bool_)
    if options.reference_type is not None:
        of_reference_type = fit.tel_type == options.reference_type
    is_configured = of_reference_type & np.array(
        [
            configured.get(tel_type) == tel_id
            for tel_type, tel_id in zip(fit.tel_type.tolist(), fit.tel_id.tolist(), strict=True)
        ],
        np.bool_,
    )
    # Where nobody asked for a reference, the telescope that is held fixed falls back on nothing.
    asked = of_reference_type & np.isin(fit.tel_type, list(configured))
    if options.normalisation == "weighted-mean":
        is_configured[:] = False
    is_reference = np.zeros(n_tel, np.bool_)
    is_fallback, is_main = is_reference.copy(), is_reference.copy()
    gauges, theta = np.zeros(n_tel), np.full(n_tel, np.nan)
    covariance = np.zeros((n_tel, n_tel))
    solve = solve_asymmetry_network if fit.estimator == "asymmetry" else solve_network
    for c in range(int(component.max(initial=-1)) + 1):
        member = np.flatnonzero(component == c)
        fixing = of_reference_type[member]
        is_fallback[member] = not fixing.any()
        if not fixing.any():
            fixing[:] = True
        share = np.where(fixing, total_weight[member], 0.0)
        if options.normalisation == "weighted-mean":
            gauge = share / share.sum()
        else:
            # The first of several largest: the lowest id, as telescopes are sorted.
            chosen = np.argmax(np.where(is_configured[member], np.inf, share))
            is_reference[member[chosen]] = True
            is_fallback[member] |= asked[member].any() and not is_configured[member[chosen]]
            gauge = np.zeros(len(member))
            gauge[chosen] = 1.0
        gauges[member] = gauge
        inside = fit.used & (component[fit.first] == c)
        local = np.zeros(n_tel, np.int64)
        local[member] = np.arange(len(member))
        theta[member], covariance[np.ix_(member, member)] = solve(
            local[fit.first[inside]],
            local[fit.second[inside]],
            fit.centre[inside],
            weight[inside],
            gauge,
        )
    # In a network of all types, what has the reference type is the main part.
    leads = is_configured if options.reference_type is None else of_reference_type
    network = fit.tel_type if options.reference_type is None else np.full(n_tel, "all")
    for name in np.unique(network[component >= 0]):
        inside = (network == name) & (component >= 0)
        size = np.bincount(component[inside])
        for rank, first_choice in enumerate((leads, is_configured), start=1):
            size[np.unique(component[inside & first_choice])] += rank * n_tel
        is_main |= component == np.argmax(size)
    return replace(
        fit,
        weight=weight,
        component=component,
        is_reference=is_reference,
        is_fallback=is_fallback,
        is_main=is_main,
        gauge=gauges,
        theta=theta,
        covariance_independent=covariance,
        component_n_events=np.zeros(int(component.max(initial=-1)) + 1, np.int64),
    )


def _with_scores(fit: NetworkFit, scores: ScoreSummary) -> NetworkFit:
    """Finish the fit: covariance S = C (sum_e s_e s_e^T) C of each component, and its test."""
    if scores.outer.shape != ScoreSummary.identity(fit).outer.shape:
        raise ValueError("these scores are about a fit with other telescopes")
    n_tel, of_scales = len(fit.tel_id), fit.scale_covariance
    if fit.given.any():
        covariance, of_scales = (
            follows @ scores.outer @ follows.T
            for response in (fit.given_response, fit.given_pull @ fit.given_bread)
            for follows in [np.concatenate([fit.bread, response], axis=1)]
        )
    else:
        covariance = np.zeros((n_tel, n_tel))
        for c in range(len(fit.component_n_events)):
            block = np.ix_(fit.component == c, fit.component == c)
            inverse = fit.covariance_independent[block]
            covariance[block] = inverse @ scores.outer[block] @ inverse
        if fit.given_error.any():
            of_scales = covariance + fit.given_pull @ fit.given_error @ fit.given_pull.T
            covariance = covariance + fit.given_covariance
    kappa_error = fit.kappa_error
    if fit.distance_term:
        errors = np.sqrt(scores.kappa_variance).reshape(-1, N_RANGES)
        kappa_error = errors[_type_of_pairs(fit)]
    fit = replace(fit, n_events=scores.n_events, component_n_events=scores.component_n_events)
    covariance, freedom = _steadied(fit, covariance)
    test = test_of_fit(fit, scores.scatter, scores.component_n_events)
    return replace(
        fit,
        done=True,
        kappa_error=kappa_error,
        covariance=0.5 * (covariance + covariance.T),
        scale_covariance=of_scales,
        freedom=freedom,
        chi2=test.chi2,
        ndf=test.ndf,
        p_value=test.p_value,
    )


def _steadied(
    fit: NetworkFit, sandwich: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the errors of telescopes with few events towards what their type shows.

    By how much the clustered variances of the telescopes of a type exceed those of independent
    pairs is pooled, over contrasts of the telescopes that do not depend on the gauge,

        rho = tr((P C P)^+ P S P)/(T - 1) ,  P = 1 - 1 1^T/T ,

    and S becomes w_1 S w_1 + w_0 rho C w_0 with w_0^2 = n_0/(n_0 + nu), w_1^2 = 1 - w_0^2, and nu
    the telescope's events less one, as in `shrink_variance`. These nu stay its degrees of freedom.

    Returns
    -------
    covariance : ndarray of float64, shape (T, T)
    freedom : ndarray of float64, shape (T,)
    """
    freedom = np.maximum(fit.n_events - 1.0, 1.0)
    if fit.given_pull.any():  # one scale for each type: pooled as it is
        events = np.append(fit.component_n_events, 0)[fit.component]
        return sandwich, np.maximum(events - 1.0, 1.0)
    covariance, pooled = fit.bread, np.ones(len(freedom))
    for c in range(len(fit.component_n_events)):
        member = np.flatnonzero(fit.component == c)
        for kind in np.unique(fit.tel_type[member]):
            mine = member[fit.tel_type[member] == kind]
            pool = mine if len(mine) > 1 else member
            centred = np.eye(len(pool)) - 1.0 / len(pool)
            block = np.ix_(pool, pool)
            inverse = np.linalg.pinv(
                centred @ covariance[block] @ centred, rcond=1e-10, hermitian=True
            )
            excess = np.sum(inverse * (centred @ sandwich[block] @ centred))
            pooled[mine] = max(excess, 0.0) / (len(pool) - 1)
    prior = ERROR_PRIOR_EVENTS / (ERROR_PRIOR_EVENTS + freedom)
    own, of_type = np.sqrt(1.0 - prior), np.sqrt(prior * pooled)
    steadied = np.outer(own, own) * sandwich + np.outer(of_type, of_type) * covariance
    return steadied, freedom
