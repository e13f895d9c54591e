"""The state of a network of pairs: what one stage of the fit hands to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.array.model import pair_types
from calibdask.stats.record import ArrayRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NetworkFit"]


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFit(ArrayRecord):
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
        symmetrically (`calibdask.array.network.pairs.mirrored`); -inf without.
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
        Test of the fit (`calibdask.array.network.goodness`), once it is done.
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
        """Inverse normal matrix, shape (T, T), with 0 where it could not be determined."""
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
