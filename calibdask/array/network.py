"""The fit of the network of pairs: from merged summaries to throughputs with their errors.

:func:`fit_stage` makes the state that the next stage sees (`calibdask.array.summary` lists the
stages), and :func:`coefficients` the tables once a state is `done`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask import flags
from calibdask.array.goodness import test_of_fit
from calibdask.array.model import (
    MAX_TEL_ID,
    Telescopes,
    connected_components,
    pair_types,
    shrink_variance,
    solve_asymmetry_network,
    solve_network,
)
from calibdask.array.summary import (
    DISTANCE_EDGES_M,
    MODEL_STEP,
    N_RANGES,
    PairSummary,
    ScoreSummary,
    check_stage,
    n_stages,
    rows_of,
)
from calibdask.errors import CorruptedInput
from calibdask.flags import Flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.model import NetworkOptions
    from calibdask.stats.histogram import Histogram
    from calibdask.stats.moments import CoMoments, Moments

__all__ = [
    "NetworkFit",
    "coefficients",
    "fit_stage",
    "has_error",
    "student_factor",
    "together",
    "values_so_far",
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

MIN_EVENTS_FOR_ERROR = 10
"""Fewer events than this, and the scatter between events says nothing about an error."""

MIN_SCATTER = 1e-9
"""Standard deviation of d or the asymmetry that is mere rounding."""

PAIR_FLAGS = (Flag.FEW_PAIR_EVENTS, Flag.UNMEASURED_PAIR, Flag.INVALID_EVENTS)
"""Flags of pairs; a telescope has those of any of its pairs."""

DENSITY_HALF_WIDTH = 0.3
"""Bandwidth of the density at the median, in sigma: 1.5 % low for a normal distribution."""


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFit:
    """State of the fit after a stage; T telescopes by (type, id), K pairs, C components.

    Theta is ln(c/scale), or the offset itself where differences are compared. An event with the
    log ratio or difference d has, on its pair's centre, the influence

        IF(d) = slope (d - model) [low <= d <= high] + jump sign(d - median - (model - centre))

    about the model, which covers the mean (1, 0), the median (0, 1/(2 f(m))) and the one-step
    clipped mean (see `_clip_bounds`). For the estimator "asymmetry" it is that of the asymmetry.

    Attributes
    ----------
    estimator, kind : str
        As in the options and their observable.
    done : bool
        No further stage is needed.
    tel_id, tel_type, scale, component, is_reference, is_fallback, is_main, theta, n_events : (T,)
        One value per telescope; component -1 and theta NaN without a usable pair. `is_fallback`
        and `is_main` are said of the telescope's component.
    gauge : ndarray of float64, shape (T,)
        Weight in the mean theta of its component that is held at 0; 1 for a reference.
    covariance_independent, covariance : ndarray of float64, shape (T, T)
        Of theta: with pairs taken as independent, and the event-clustered sandwich.
    component_n_events : ndarray of int64, shape (C,)
        Events with a used pair of each component.
    first, second : ndarray of int64, shape (K,)
        Telescopes of each pair, as indices 0..T-1.
    n, n_invalid, mean_asymmetry, std_asymmetry, std_difference : (K,)
        All events of the pair; the asymmetry is NaN where differences are compared.
    centre, variance, weight, used, pair_flags : (K,)
        Centre of the pair, variance of one event's influence on it, and weight n/variance.
    n_centre : ndarray of int64, shape (K,)
        Events that made the centre.
    low, high, median, slope, jump : ndarray of float64, shape (K,)
        The influence function.
    distance_term : bool
        Whether d = theta_1 - theta_2 + kappa_r x is fitted, with x = ln d_1 - ln d_2 of the impact
        distances and a slope for each of R ranges of their mean; the centre of a pair is then the
        mean of d - kappa_r x.
    kappa, kappa_error, mean_log_distance, kappa_weight : ndarray of float64, shape (K, R)
        Slopes of the pair's type with their event-clustered errors, mean of x, and what an event's
        product of deviations counts in the slope: 1/variance over the type's sum of M2_x/variance.
        Zeros without a distance term.
    range_share : ndarray of float64, shape (K, R)
        Part of the pair's events in each range.
    edge_1, edge_2, about : ndarray of float64, shape (K,)
        Thresholds on the values of a pair and the model about which its events are selected
        symmetrically (`calibdask.array.summary.mirrored`); -inf without.
    given, weight_given : ndarray of bool and float64, shape (K,)
        Pairs whose ratios are taken from an inter-calibration of the same events, and their weights
        in it (see `calibdask.array.absolute.tie_types`). They are not `used`.
    given_bread, given_pull, given_error : ndarray of float64, shape (T, T)
        Inverse normal matrix of the given pairs; derivative of the types' scales by the given
        ln c; and the covariance of ln c if the given ratios are of other events.
    scale_covariance : ndarray of float64, shape (T, T)
        Of the scale of each telescope's type, once the fit is done.
    freedom : ndarray of float64, shape (T,)
        Degrees of freedom of the error of theta, once the fit is done.
    chi2, ndf, p_value : ndarray of float64, shape (C,)
        Test of the fit (`calibdask.array.goodness`), once it is done.
    n_lacking : ndarray of int64, shape (T,)
        Rows that the inputs lack of each telescope.
    """

    estimator: str
    kind: str
    done: bool
    tel_id: NDArray[np.int64]
    tel_type: NDArray[np.str_]
    scale: NDArray[np.float64]
    component: NDArray[np.int64]
    is_reference: NDArray[np.bool_]
    is_fallback: NDArray[np.bool_]
    is_main: NDArray[np.bool_]
    gauge: NDArray[np.float64]
    theta: NDArray[np.float64]
    n_events: NDArray[np.int64]
    covariance_independent: NDArray[np.float64]
    covariance: NDArray[np.float64]
    component_n_events: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    n: NDArray[np.int64]
    n_invalid: NDArray[np.int64]
    mean_asymmetry: NDArray[np.float64]
    std_asymmetry: NDArray[np.float64]
    std_difference: NDArray[np.float64]
    centre: NDArray[np.float64]
    variance: NDArray[np.float64]
    weight: NDArray[np.float64]
    used: NDArray[np.bool_]
    pair_flags: NDArray[np.str_]
    n_centre: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    median: NDArray[np.float64]
    slope: NDArray[np.float64]
    jump: NDArray[np.float64]
    distance_term: bool
    kappa: NDArray[np.float64]
    kappa_error: NDArray[np.float64]
    mean_log_distance: NDArray[np.float64]
    kappa_weight: NDArray[np.float64]
    range_share: NDArray[np.float64]
    edge_1: NDArray[np.float64]
    edge_2: NDArray[np.float64]
    about: NDArray[np.float64]
    given: NDArray[np.bool_]
    weight_given: NDArray[np.float64]
    given_bread: NDArray[np.float64]
    given_pull: NDArray[np.float64]
    given_error: NDArray[np.float64]
    scale_covariance: NDArray[np.float64]
    freedom: NDArray[np.float64]
    chi2: NDArray[np.float64]
    ndf: NDArray[np.float64]
    p_value: NDArray[np.float64]
    n_lacking: NDArray[np.int64]

    @property
    def bread(self) -> NDArray[np.float64]:
        """Inverse normal matrix, shape (T, T), with 0 for what cannot be had."""
        return np.where(np.isfinite(self.covariance_independent), self.covariance_independent, 0.0)

    @property
    def given_response(self) -> NDArray[np.float64]:
        """How theta follows the scores of the given pairs, shape (T, T)."""
        return np.asarray(self.given_bread + self.given_pull @ self.given_bread)

    @property
    def given_covariance(self) -> NDArray[np.float64]:
        """Covariance of theta from given ratios that are of other events, shape (T, T)."""
        follows = np.eye(len(self.tel_id)) + self.given_pull
        return np.asarray(follows @ self.given_error @ follows.T)

    @property
    def levers(self) -> NDArray[np.float64]:
        """What the slopes, by type and range of distances, do to centres of pairs, (Y R, K)."""
        if not self.distance_term:
            return np.zeros((0, len(self.first)))
        of_type = np.unique(self.pair_type)[:, None] == self.pair_type
        mean = np.where(self.used[:, None], self.range_share * self.mean_log_distance, 0.0)
        return np.asarray(-(of_type[:, None, :] * mean.T).reshape(-1, len(self.first)))

    @property
    def pairs(self) -> NDArray[np.int64]:
        """(tel_id_1, tel_id_2) of each pair, shape (K, 2)."""
        return np.stack([self.tel_id[self.first], self.tel_id[self.second]], axis=1)

    @property
    def pair_type(self) -> NDArray[np.str_]:
        """Type of each pair's telescopes, shape (K,)."""
        types = pair_types(self.tel_type[self.first], self.tel_type[self.second])
        return np.asarray(types, np.str_)

    @property
    def model(self) -> NDArray[np.float64]:
        """The centre that theta predicts for each pair, shape (K,)."""
        difference = self.theta[self.first] - self.theta[self.second]
        return np.tanh(0.5 * difference) if self.estimator == "asymmetry" else difference

    @property
    def gradient(self) -> NDArray[np.float64]:
        """Derivative of the model by theta_1 - theta_2, shape (K,)."""
        if self.estimator == "asymmetry":
            return 0.5 * (1.0 - self.model**2)
        return np.ones(len(self.first))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        values: dict[str, object] = {field.name: arrays[field.name] for field in fields(cls)}
        values["estimator"] = str(arrays["estimator"])
        values["kind"] = str(arrays["kind"])
        values["done"] = bool(arrays["done"])
        values["distance_term"] = bool(arrays["distance_term"])
        return cls(**values)  # type: ignore[arg-type]


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


def student_factor(freedom: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half width of Student's t that holds as much as one standard deviation of a normal."""
    from scipy.special import ndtr, stdtrit

    return np.asarray(stdtrit(np.maximum(freedom, 1.0), ndtr(1.0)))


def coefficients(
    fit: NetworkFit, name: str = "inter_calibration"
) -> dict[str, dict[str, NDArray[np.generic]]]:
    """Columns of the result tables.

    The throughput is c = scale exp(theta), its error c times that of theta (delta method); where
    differences are compared, the value is theta. A pair's
    pull is its residual over the residual's standard deviation for independent pairs,
    sqrt(1/W - A C A^T); chi2 and its degrees of freedom are those of `calibdask.array.goodness`.
    Errors are half widths of 68.3 % intervals: with few events they are times `student_factor`,
    and so is the covariance.

    Parameters
    ----------
    fit : NetworkFit
        A finished state.
    name : str
        Name of the table of telescopes.

    Returns
    -------
    dict of dict of ndarray
        The name, and with "_pairs", "_covariance", "_components" and, with a distance term,
        "_slopes" appended: column name to values (see `calibdask.array.tables`).

    Raises
    ------
    ValueError
        If the fit is not done.
    """
    if not fit.done:
        raise ValueError("the fit needs further stages before it has coefficients")
    return {
        name: _telescope_columns(fit),
        f"{name}_pairs": _pair_columns(fit),
        f"{name}_covariance": _covariance_columns(fit),
        f"{name}_components": _component_columns(fit),
        **({f"{name}_slopes": _slope_columns(fit)} if fit.distance_term else {}),
    }


def values_so_far(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    """Columns of the telescopes' table before the last stage, flagged P.

    The clustered errors come with the last stage, and so do the numbers of events. The clipped mean
    begins with medians, whose errors are not even known for independent pairs.

    Parameters
    ----------
    fit : NetworkFit
        A state that is not done.

    Raises
    ------
    ValueError
        If the fit is done.
    """
    if fit.done:
        raise ValueError("the fit is done: it has coefficients")
    columns = _telescope_columns(fit)
    del columns["n_events"]
    if fit.estimator == "log-clipped":
        columns["error_independent"] = np.full(len(fit.tel_id), np.nan)
    # Nobody knows yet where there will be no error because of too few events.
    has_value = np.isfinite(fit.theta) & (fit.component >= 0)
    known = flags.remove(columns["flags"], Flag.NO_ERROR)
    columns["flags"] = flags.add(known, {Flag.PRELIMINARY: has_value})
    return columns


def _value(fit: NetworkFit) -> NDArray[np.float64]:
    return fit.theta if fit.kind == "difference" else fit.scale * np.exp(fit.theta)


def _slope(fit: NetworkFit) -> NDArray[np.float64]:
    """Differentiate the value by theta."""
    return np.ones_like(fit.theta) if fit.kind == "difference" else _value(fit)


def has_error(fit: NetworkFit) -> NDArray[np.bool_]:
    """Telescopes with enough events, their reference included, for an error of their own."""
    enough = fit.n_events >= MIN_EVENTS_FOR_ERROR
    for reference in np.flatnonzero(fit.is_reference & ~enough):
        enough &= fit.component != fit.component[reference]
    variance = np.diagonal(fit.covariance)
    return enough & np.isfinite(variance) & ((variance > 0) | fit.is_reference)


def _telescope_columns(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    has_value = (fit.component >= 0) & np.isfinite(fit.theta)
    known_error = has_error(fit) & has_value
    value = _value(fit)
    n_tel = len(fit.tel_id)

    def of_pairs(pair: NDArray[np.bool_]) -> NDArray[np.int64]:
        count = np.bincount(fit.first[pair], minlength=n_tel)
        return np.asarray(count + np.bincount(fit.second[pair], minlength=n_tel), np.int64)

    def error(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return _slope(fit) * np.sqrt(np.diagonal(covariance))

    return {
        "tel_type": fit.tel_type,
        "tel_id": fit.tel_id,
        "value": value,
        "error": np.where(known_error, error(fit.covariance) * student_factor(fit.freedom), np.nan),
        "error_independent": np.where(has_value, error(fit.covariance_independent), np.nan),
        "n_pairs": of_pairs(fit.used),
        "n_events": fit.n_events,
        "component": fit.component,
        "flags": flags.column(
            {
                Flag.REFERENCE: fit.is_reference,
                Flag.FALLBACK: fit.is_fallback,
                Flag.DISCONNECTED: (fit.component >= 0) & ~fit.is_main,
                Flag.NO_PAIR: ~has_value,
                Flag.NO_ERROR: has_value & ~known_error,
                Flag.LACKS_ROWS: fit.n_lacking > 0,
            }
            | {flag: of_pairs(flags.has(fit.pair_flags, flag)) > 0 for flag in PAIR_FLAGS}
        ),
    }


def _pair_columns(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    together = fit.component[fit.first] == fit.component[fit.second]
    model = np.where(together, fit.theta[fit.first] - fit.theta[fit.second], np.nan)
    centre = np.where(fit.n_centre > 0, fit.centre, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(fit.variance / fit.n)
        covariance = fit.covariance_independent
        variance = np.diagonal(covariance)
        of_model = fit.gradient**2 * (
            variance[fit.first] + variance[fit.second] - 2 * covariance[fit.first, fit.second]
        )
        free = error**2 - of_model
        # A pair that alone ties two parts together has no residual: what is left is rounding.
        free = np.where(fit.used & (free > 1e-9 * error**2), free, np.nan)
        pull = (centre - fit.model) / np.sqrt(free)
        if fit.estimator == "asymmetry":
            error = 2.0 * error / (1.0 - centre**2)
            centre = 2.0 * np.arctanh(centre)
    name = fit.kind.replace("-", "_")
    of_asymmetry: dict[str, NDArray[np.generic]] = {}
    if fit.kind == "log-ratio":
        of_asymmetry = {"mean_asymmetry": fit.mean_asymmetry, "std_asymmetry": fit.std_asymmetry}
    return {
        "tel_type": fit.pair_type,
        "tel_id_1": fit.tel_id[fit.first],
        "tel_id_2": fit.tel_id[fit.second],
        "n_events": fit.n,
        "n_invalid": fit.n_invalid,
        **of_asymmetry,
        name: centre,
        f"{name}_error": np.where(fit.used, error, np.nan),
        **({"mean_log_distance": -fit.levers.sum(axis=0)} if fit.distance_term else {}),
        **({"n_symmetric": fit.n_centre} if np.isfinite(fit.edge_1).any() else {}),
        f"std_{name}": fit.std_difference,
        f"model_{name}": model,
        "residual": centre - model,
        "pull": pull,
        "used": fit.used,
        "flags": fit.pair_flags,
    }


def together(component: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all ordered pairs of telescopes of one component, as indices, by component."""
    one, two = np.nonzero((component[:, None] == component) & (component >= 0))
    order = np.argsort(component[one], kind="stable")
    return one[order], two[order]


def _covariance_columns(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    one, two = together(fit.component)
    slope, known_error = _slope(fit) * student_factor(fit.freedom), has_error(fit)
    covariance = slope[one] * slope[two] * fit.covariance[one, two]
    return {
        "tel_type": np.asarray(pair_types(fit.tel_type[one], fit.tel_type[two]), np.str_),
        "component": fit.component[one],
        "tel_id_1": fit.tel_id[one],
        "tel_id_2": fit.tel_id[two],
        "covariance": np.where(known_error[one] & known_error[two], covariance, np.nan),
    }


def _component_columns(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    n_components = len(fit.component_n_events)
    member, index = np.unique(fit.component, return_index=True)
    index = index[member >= 0]
    pair_component = fit.component[fit.first[fit.used]]
    n_pairs = np.bincount(pair_component, minlength=n_components)
    n_telescopes = np.bincount(fit.component[fit.component >= 0], minlength=n_components)
    reference = np.full(n_components, -1)
    reference[fit.component[fit.is_reference]] = fit.tel_id[fit.is_reference]
    bad = np.zeros(n_components, np.bool_)
    bad[fit.component[(fit.component >= 0) & ~has_error(fit)]] = True
    return {
        "tel_type": _types_of_components(fit),
        "component": np.arange(n_components),
        "reference_tel_id": reference,
        "n_telescopes": n_telescopes,
        "n_pairs": n_pairs,
        "n_events": fit.component_n_events,
        "chi2": fit.chi2,
        "ndf": fit.ndf,
        "p_value": fit.p_value,
        "flags": flags.column(
            {
                Flag.FALLBACK: fit.is_fallback[index],
                Flag.DISCONNECTED: ~fit.is_main[index],
                Flag.NO_ERROR: bad,
            }
        ),
    }


def _slope_columns(fit: NetworkFit) -> dict[str, NDArray[np.generic]]:
    """Slopes over the impact distance that events say something about."""
    types, row = np.unique(fit.pair_type, return_index=True)
    kappa, error = fit.kappa[row].ravel(), fit.kappa_error[row].ravel()
    edges = np.array([0.0, *DISTANCE_EDGES_M, np.inf])
    known = error > 0
    return {
        "tel_type": np.repeat(types, N_RANGES)[known],
        "distance_from": np.tile(edges[:-1], len(types))[known],
        "distance_to": np.tile(edges[1:], len(types))[known],
        "kappa": kappa[known],
        "kappa_error": error[known],
    }


def _types_of_components(fit: NetworkFit) -> NDArray[np.str_]:
    """All types of each component, as in LST-MST-SST."""
    joined = [
        "-".join(np.unique(fit.tel_type[fit.component == c]).tolist())
        for c in range(len(fit.component_n_events))
    ]
    return np.array(joined or np.zeros(0, "U1"), np.str_)
