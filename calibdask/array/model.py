"""Relative throughput of telescopes from pairs that see the same shower: the formulas.

Two telescopes i, j of one type at the same distance from a shower should reconstruct the same x
(energy or image size). Their throughputs c make x_i/x_j = c_i/c_j on average, so the log ratio
d = ln x_i - ln x_j measures theta_i - theta_j with theta = ln c. All pairs of a connected set of
telescopes together are a weighted least squares problem whose normal matrix is the Laplacian of the
graph of pairs.

Method: Mitchell, Parsons, Hofmann & Bernlöhr 2016, Astropart. Phys. 75, 1 (arXiv:1510.06526).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from calibdask.errors import ConfigError, CorruptedInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LOG_RATIO",
    "NetworkOptions",
    "Observable",
    "Telescopes",
    "asymmetry",
    "asymmetry_uncertainty",
    "connected_components",
    "distance_asymmetry",
    "divergence",
    "find_pairs",
    "gauge_inverse",
    "laplacian",
    "log_ratio",
    "measurable",
    "pair_events",
    "pair_types",
    "shrink_variance",
    "solve_asymmetry_network",
    "solve_network",
]

MAX_TEL_ID = 65535
"""Largest telescope id: ctapipe stores them in 16 bits."""

Estimator = Literal["log-mean", "log-median", "log-clipped", "asymmetry"]


@dataclass(frozen=True, slots=True)
class Observable:
    """What a pair of telescopes compares, d, and what the fitted theta of a telescope means.

    Attributes
    ----------
    kind : {"log-ratio", "difference"}
        d = ln x_1 - ln x_2 of positive x, and the result is c = scale exp(theta); or
        d = x_1 - x_2 of finite x, and the result is theta itself.
    low, high : float
        Range of d in which median and clipping are found.
    n_bins : int
        Bins of that range: they must be narrower than the scatter of d.
    unit : str
        Unit of x and theta of a difference.
    """

    kind: Literal["log-ratio", "difference"] = "log-ratio"
    low: float = -2.0
    high: float = 2.0
    n_bins: int = 400
    unit: str = ""

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, shape (n_bins + 1,)."""
        return np.linspace(self.low, self.high, self.n_bins + 1)

    @property
    def column(self) -> str:
        """Name of d in tables."""
        return self.kind.replace("-", "_")


LOG_RATIO = Observable()
"""Of energies or image sizes: bins of 1 %, ratios from 1/7.4 to 7.4."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the network of pairs is turned into coefficients.

    Attributes
    ----------
    estimator : {"log-mean", "log-median", "log-clipped", "asymmetry"}
        Centre of a pair: mean, median, or once-clipped mean of the log ratio; or the mean
        asymmetry, which is what calibpipe fits. The last is there to compare: it is attenuated,
        and as each pair is weighted by its own scatter, its errors hold from some 30 events a pair.
    n_min : int
        Pairs with fewer events are dropped and flagged S. At least 2: one event has no scatter.
    clip_sigma : float
        Half width of the accepted interval of "log-clipped", in units of 1.4826 MAD.
    normalisation : {"reference", "weighted-mean"}
        What fixes the scale of a component: its reference, or a mean ln c of zero, weighted by the
        total weight of each telescope's pairs.
    reference_telescopes : tuple of (type, tel_id)
        The telescope of each type held at `throughput_normalisation`.
    throughput_normalisation : tuple of (type, float)
        Throughput of the reference (or the mean) of each type; 1 for a type not listed.
    reference_type : str, optional
        Given, all types make one network: its scale is fixed by this type alone, by its reference
        telescope or the mean over its telescopes. Otherwise each type has a network of its own.
    symmetric : bool
        Use an event of a pair only if it would have been selected with its deviation from the model
        reversed as well (`calibdask.array.summary.mirrored`): for "log-mean" and "log-clipped".
    observable : Observable
        What the pairs compare.
    """

    estimator: Estimator = "log-mean"
    n_min: int = 2
    clip_sigma: float = 3.0
    normalisation: Literal["reference", "weighted-mean"] = "reference"
    reference_telescopes: tuple[tuple[str, int], ...] = ()
    throughput_normalisation: tuple[tuple[str, float], ...] = ()
    reference_type: str | None = None
    symmetric: bool = False
    observable: Observable = LOG_RATIO

    def __post_init__(self) -> None:
        """Refuse what has no meaning, with a `ConfigError` that names the option."""
        estimators = ("log-mean", "log-median", "log-clipped", "asymmetry")
        if self.estimator not in estimators:
            known = ", ".join(estimators)
            raise ConfigError(f"estimator: {self.estimator!r} is not one of {known}")
        if self.estimator == "asymmetry" and self.observable.kind == "difference":
            raise ConfigError("estimator: asymmetry is of positive quantities, not of differences")
        if self.normalisation not in {"reference", "weighted-mean"}:
            raise ConfigError(
                f"normalisation: {self.normalisation!r} is not one of reference, weighted-mean"
            )
        if self.n_min < 2:
            raise ConfigError(f"n_min: {self.n_min} is below 2, and one event has no scatter")
        if not 1.0 <= self.clip_sigma < np.inf:
            raise ConfigError(
                f"clip_sigma: {self.clip_sigma} is not a number of at least 1; 3 is usual"
            )
        for tel_type, scale in self.throughput_normalisation:
            if not 0.0 < scale < np.inf:
                raise ConfigError(
                    f"throughput_normalisation.{tel_type}: {scale} is not a positive number"
                )
        for name in ("reference_telescopes", "throughput_normalisation"):
            types = [entry[0] for entry in getattr(self, name)]
            twice = sorted({t for t in types if types.count(t) > 1})
            if twice:
                raise ConfigError(f"{name}: {', '.join(twice)} given more than once")


@dataclass(frozen=True, slots=True, eq=False)
class Telescopes:
    """The telescopes a result has a row for, whether they saw anything or not.

    Attributes
    ----------
    tel_id : ndarray of int64, shape (T,)
        Unique ids, in any order.
    tel_type : ndarray of str, shape (T,)
        Type of each: LST, MST, SST.
    """

    tel_id: NDArray[np.int64]
    tel_type: NDArray[np.str_]

    def __post_init__(self) -> None:
        """Refuse an id that is given twice or out of range, with a `CorruptedInput`."""
        ids, count = np.unique(self.tel_id, return_counts=True)
        if np.any(count > 1):
            raise CorruptedInput(f"subarray: telescope {ids[count > 1][0]} is listed twice")
        if len(ids) and (ids[0] < 0 or ids[-1] > MAX_TEL_ID):
            raise CorruptedInput(
                f"subarray: telescope ids {ids[0]} to {ids[-1]} do not lie between 0 and "
                f"{MAX_TEL_ID}"
            )


def find_pairs(
    tel_id: ArrayLike,
    tel_type: ArrayLike,
    position_m: ArrayLike,
    radius_m: ArrayLike,
    *,
    mixed: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs whose distance does not exceed the sum of their radii.

    Parameters
    ----------
    tel_id : array_like of int, shape (T,)
        Unique telescope ids, in any order.
    tel_type : array_like of str, shape (T,)
        Telescope types.
    position_m : array_like of float, shape (T, 3)
        Positions in m, in any common frame.
    radius_m : array_like of float, shape (T,)
        Largest impact distance at which each telescope is used, in m.
    mixed : bool
        Also pair telescopes of different types.

    Returns
    -------
    tel_id_1, tel_id_2 : ndarray of int64, shape (P,)
        The pairs, tel_id_1 < tel_id_2, in lexicographic order.

    Raises
    ------
    CorruptedInput
        If a telescope is listed twice or has no finite position.
    ConfigError
        If a radius is negative or not a number.
    """
    telescopes = Telescopes(np.asarray(tel_id, np.int64), np.asarray(tel_type, np.str_))
    order = np.argsort(telescopes.tel_id)
    ids, types = telescopes.tel_id[order], telescopes.tel_type[order]
    position = np.asarray(position_m, np.float64)[order]
    radius = np.asarray(radius_m, np.float64)[order]
    lost = ~np.isfinite(position).all(axis=1)
    if lost.any():
        raise CorruptedInput(
            f"subarray: telescope {ids[lost][0]} has no finite position: {position[lost][0]} m"
        )
    wrong = ~(radius >= 0)
    if wrong.any():
        raise ConfigError(
            f"max_impact_distance: {radius[wrong][0]} m for telescope {ids[wrong][0]} is not a "
            "distance"
        )
    first, second = np.triu_indices(len(ids), k=1)
    distance = np.sqrt(np.sum((position[first] - position[second]) ** 2, axis=1))
    near = distance <= radius[first] + radius[second]
    if not mixed:
        near &= types[first] == types[second]
    return ids[first[near]], ids[second[near]]


def pair_events(
    event: ArrayLike, tel_id: ArrayLike, tel_id_1: ArrayLike, tel_id_2: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one event that form an allowed pair of telescopes.

    Rows are returned rather than telescope ids, so that whatever belongs to a telescope is taken by
    the same index and can never end up under the other's name.

    Parameters
    ----------
    event : array_like of int, shape (N,)
        Index of the event of each telescope row, not negative; rows in any order.
    tel_id : array_like of int, shape (N,)
        Telescope of each row.
    tel_id_1, tel_id_2 : array_like of int, shape (P,)
        The allowed pairs, tel_id_1 < tel_id_2.

    Returns
    -------
    row_1, row_2 : ndarray of int64, shape (M,)
        Indices into the N rows, ``tel_id[row_1] < tel_id[row_2]``, ordered by event, then by pair.

    Raises
    ------
    CorruptedInput
        If a telescope has two rows in one event.
    ValueError
        If a pair is not ordered, or an event or telescope id is negative.
    """
    events = np.asarray(event, np.int64)
    tels = np.asarray(tel_id, np.int64)
    first, second = np.asarray(tel_id_1, np.int64), np.asarray(tel_id_2, np.int64)
    if np.any(first >= second):
        raise ValueError("a pair must be given as tel_id_1 < tel_id_2")
    none = np.zeros(0, np.int64)
    if len(first) == 0 or len(events) == 0:
        return none, none
    if min(events.min(), tels.min(), first.min()) < 0:
        raise ValueError("events and telescope ids must not be negative")

    # Telescopes in any allowed pair, densely numbered in the order of their ids.
    paired = np.unique(np.concatenate([first, second]))
    size = int(max(tels.max(), paired[-1])) + 1
    number = np.full(size, -1)
    number[paired] = np.arange(len(paired))
    allowed = np.zeros((len(paired), len(paired)), np.bool_)
    allowed[number[first], number[second]] = True

    dense = number[tels]
    row = np.flatnonzero(dense >= 0)
    code = events[row] * len(paired) + dense[row]
    order = np.argsort(code, kind="stable")
    code, row = code[order], row[order]
    again = np.flatnonzero(code[1:] == code[:-1])
    if len(again):
        raise CorruptedInput(
            f"telescope rows {row[again[0]]} and {row[again[0] + 1]} are the same telescope "
            f"({tels[row[again[0]]]}) in the same event: the event was read twice"
        )
    sorted_event, tel = code // len(paired), code % len(paired)
    # Each row is combined with those after it in its event; the order of the output follows.
    last = np.flatnonzero(np.append(sorted_event[1:] != sorted_event[:-1], True))
    partners = np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(row))
    one = np.repeat(np.arange(len(row)), partners)
    two = np.arange(len(one)) - np.repeat(np.cumsum(partners) - partners, partners) + one + 1
    keep = np.flatnonzero(allowed.ravel()[tel[one] * len(paired) + tel[two]])
    return row[one[keep]], row[two[keep]]


def measurable(x: ArrayLike) -> NDArray[np.bool_]:
    """Whether values can be energies (TeV) or sizes (photoelectrons): finite, positive, sane.

    Beyond 1e-30 and 1e30 lies no measurement, and one such value would carry a mean away.
    """
    values = np.asarray(x)
    return np.asarray((values > 1e-30) & (values < 1e30))


def pair_types(type_1: NDArray[np.str_], type_2: NDArray[np.str_]) -> NDArray[np.str_]:
    """Type of each pair: that of both telescopes, or the two in alphabetic order, as in LST-MST."""
    in_order = type_1 < type_2
    first, second = np.where(in_order, type_1, type_2), np.where(in_order, type_2, type_1)
    joined = np.strings.add(np.strings.add(first, "-"), second)
    return np.where(type_1 == type_2, type_1, joined)


def asymmetry(x_1: ArrayLike, x_2: ArrayLike) -> NDArray[np.float64]:
    """(x_1 - x_2)/(x_1 + x_2), dimensionless (Mitchell et al. 2016, eq. 1)."""
    one, two = np.asarray(x_1, np.float64), np.asarray(x_2, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray((one - two) / (one + two))


def asymmetry_uncertainty(
    x_1: ArrayLike, x_2: ArrayLike, sigma_1: ArrayLike, sigma_2: ArrayLike
) -> NDArray[np.float64]:
    """Uncertainty of the asymmetry by linear propagation, x_1 and x_2 independent.

    2/(x_1 + x_2)^2 sqrt((x_1 sigma_2)^2 + (x_2 sigma_1)^2), dimensionless; NaN where an uncertainty
    is NaN.
    """
    one, two = np.asarray(x_1, np.float64), np.asarray(x_2, np.float64)
    spread = np.hypot(one * np.asarray(sigma_2), two * np.asarray(sigma_1))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray(2.0 * spread / (one + two) ** 2)


def log_ratio(x_1: ArrayLike, x_2: ArrayLike) -> NDArray[np.float64]:
    """Natural log of x_1/x_2; NaN where a value is not positive and finite."""
    one, two = np.asarray(x_1, np.float64), np.asarray(x_2, np.float64)
    usable = (one > 0) & (two > 0) & np.isfinite(one) & np.isfinite(two)
    return np.log(np.where(usable, one, np.nan)) - np.log(np.where(usable, two, np.nan))


def distance_asymmetry(impact_1_m: ArrayLike, impact_2_m: ArrayLike) -> NDArray[np.float64]:
    """|d_1 - d_2|/(d_1 + d_2): 0 for a shower equally far from both telescopes.

    NaN where a distance is NaN or both are zero, and so on the wrong side of any threshold.
    """
    return np.abs(asymmetry(impact_1_m, impact_2_m))


def connected_components(
    n_nodes: int, first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Component of each node, numbered by its lowest node; -1 for a node without any edge.

    Parameters
    ----------
    n_nodes : int
        Number of nodes T.
    first, second : ndarray of int, shape (P,)
        Ends of each edge.
    """
    label = np.arange(n_nodes)
    while True:
        lowest = label.copy()
        np.minimum.at(lowest, first, label[second])
        np.minimum.at(lowest, second, label[first])
        if np.array_equal(lowest, label):
            break
        label = lowest
    joined = np.zeros(n_nodes, np.bool_)
    joined[first] = joined[second] = True
    component = np.full(n_nodes, -1)
    component[joined] = np.unique(label[joined], return_inverse=True)[1]
    return component


def laplacian(
    n_nodes: int,
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the normal matrix A^T W A of differences theta_first - theta_second, (T, T)."""
    one = np.concatenate([first, second, first, second])
    two = np.concatenate([first, second, second, first])
    entries = np.concatenate([weight, weight, -weight, -weight])
    return np.bincount(one * n_nodes + two, entries, n_nodes**2).reshape(n_nodes, n_nodes)


def gauge_inverse(
    normal: NDArray[np.float64], gauge: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Inverse of the Laplacian of one component, with its free constant fixed by a gauge.

    A Laplacian is singular: a constant added to every theta changes no difference. The gauge u
    chooses the solution with u . theta = 0: C = P L^- P^T with P = 1 - 1 u^T and any generalised
    inverse L^- (Rao & Mitra 1971, ch. 7).

    Parameters
    ----------
    normal : ndarray of float64, shape (T, T)
        Laplacian of a connected graph.
    gauge : ndarray of float64, shape (T,)
        Weights that sum to 1: a unit vector for a reference, shares for a weighted mean.

    Returns
    -------
    ndarray of float64, shape (T, T), or None
        The inverse; None where the matrix is not positive definite apart from the constant.
    """
    # The pivot that is left out has no influence but for rounding, which the best connected
    # telescope keeps smallest. The gauge's own pivot gives it exact zeros.
    pivot = int(np.argmax(gauge))
    others = np.delete(np.arange(len(normal)), pivot)
    reduced = normal[np.ix_(others, others)]
    # Scaled to a unit diagonal: weights may differ by many orders of magnitude.
    diagonal = np.diagonal(reduced)
    if not (np.isfinite(reduced).all() and np.all(diagonal > 0)):
        return None
    unit = 1.0 / np.sqrt(diagonal)
    eigenvalues, vectors = np.linalg.eigh(reduced * np.outer(unit, unit))
    if eigenvalues[0] <= len(normal) * np.finfo(np.float64).eps:
        return None
    inverse = np.zeros_like(normal)
    inverse[np.ix_(others, others)] = np.outer(unit, unit) * ((vectors / eigenvalues) @ vectors.T)
    inverse -= (gauge @ inverse)[None, :]
    inverse -= (inverse @ gauge)[:, None]
    return 0.5 * (inverse + inverse.T)


def shrink_variance(
    sum_of_squares: NDArray[np.float64],
    freedom: NDArray[np.float64],
    group: NDArray[np.integer],
    prior_events: float,
) -> NDArray[np.float64]:
    """Variance of each pair, drawn towards the pooled variance of its group.

    v_p = (n_0 v_g + SS_p)/(n_0 + f_p) with v_g = sum SS/sum f over the group: the mean of a
    scaled inverse chi-square posterior with n_0 prior degrees of freedom (Smyth 2004, Stat. Appl.
    Genet. Mol. Biol. 3, 3, eq. 4). A pair of three events that agree by chance does not get a large
    weight, and one with many events keeps its own scatter.

    Parameters
    ----------
    sum_of_squares, freedom : ndarray of float64, shape (P,)
        Sum of squares of each pair and its degrees of freedom.
    group : ndarray of int, shape (P,)
        Group (telescope type) of each pair.
    prior_events : float
        Weight n_0 of the group's variance, in degrees of freedom.
    """
    pooled_squares = np.bincount(group, sum_of_squares)
    pooled_freedom = np.bincount(group, freedom)
    pooled = pooled_squares / np.where(pooled_freedom > 0, pooled_freedom, np.nan)
    return np.asarray((prior_events * pooled[group] + sum_of_squares) / (prior_events + freedom))


def solve_network(
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    centre: NDArray[np.float64],
    weight: NDArray[np.float64],
    gauge: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least squares of centre = theta_first - theta_second over one component.

    Minimises sum_p W_p (m_p - A_p theta)^2 subject to gauge . theta = 0.

    Parameters
    ----------
    first, second : ndarray of int, shape (P,)
        Ends of each pair, 0..T-1; the graph is connected.
    centre, weight : ndarray of float64, shape (P,)
        Centre of each pair's log ratio, and its inverse variance.
    gauge : ndarray of float64, shape (T,)
        See `gauge_inverse`.

    Returns
    -------
    theta : ndarray of float64, shape (T,)
        NaN where the weights cannot be used.
    covariance : ndarray of float64, shape (T, T)
        (A^T W A)^-1 under the gauge: the covariance of theta if pairs were independent.
    """
    n_nodes = len(gauge)
    covariance = gauge_inverse(laplacian(n_nodes, first, second, weight), gauge)
    if covariance is None:
        return np.full(n_nodes, np.nan), np.full((n_nodes, n_nodes), np.nan)
    return covariance @ divergence(n_nodes, first, second, weight * centre), covariance


def solve_asymmetry_network(
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    mean_asymmetry: NDArray[np.float64],
    weight: NDArray[np.float64],
    gauge: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares of the mean asymmetries over one component, as calibpipe defines it.

    Minimises chi2 = sum_p W_p (a_p - (c_i - c_j)/(c_i + c_j))^2. In theta = ln c the model is
    t = tanh((theta_i - theta_j)/2), with derivative g = (1 - t^2)/2 and second derivative -t g.
    Gauss-Newton with step halving; then half the Hessian of chi2, W (g^2 + (a - t) t g), gives the
    covariance. At the minimum the Hessians in theta and in c differ by the factors c alone, so
    error(c) = c error(theta) is what Minuit quotes for c.

    Parameters
    ----------
    first, second, mean_asymmetry, weight, gauge
        As in `solve_network`, with the mean asymmetry as the centre.

    Returns
    -------
    theta : ndarray of float64, shape (T,)
        NaN where the weights cannot be used.
    covariance : ndarray of float64, shape (T, T)
        Inverse of half the Hessian under the gauge; NaN where that is not positive definite.
    """
    n_nodes = len(gauge)
    undefined = np.full((n_nodes, n_nodes), np.nan)
    theta = np.zeros(n_nodes)
    model = np.zeros(len(first))
    chi2 = np.sum(weight * mean_asymmetry**2)
    for _ in range(100):
        slope = 0.5 * (1.0 - model**2)
        inverse = gauge_inverse(laplacian(n_nodes, first, second, weight * slope**2), gauge)
        if inverse is None:
            return np.full(n_nodes, np.nan), undefined
        score = weight * slope * (mean_asymmetry - model)
        step = inverse @ divergence(n_nodes, first, second, score)
        for _ in range(30):
            trial = np.tanh(0.5 * ((theta + step)[first] - (theta + step)[second]))
            trial_chi2 = np.sum(weight * (mean_asymmetry - trial) ** 2)
            if trial_chi2 <= chi2:
                theta, model, chi2 = theta + step, trial, trial_chi2
                break
            step = 0.5 * step
        if np.max(np.abs(step)) < 1e-12:
            break
    slope = 0.5 * (1.0 - model**2)
    curvature = weight * (slope**2 + (mean_asymmetry - model) * model * slope)
    inverse = gauge_inverse(laplacian(n_nodes, first, second, curvature), gauge)
    return theta, undefined if inverse is None else inverse


def divergence(
    n_nodes: int,
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    flow: NDArray[np.float64],
) -> NDArray[np.float64]:
    """A^T flow: what each pair adds to its first telescope and takes from its second.

    The flow has the shape (P,), or (P, N) for N flows at once.
    """
    if flow.ndim == 1:
        return np.bincount(first, flow, n_nodes) - np.bincount(second, flow, n_nodes)
    total = np.zeros((n_nodes, flow.shape[1]))
    np.add.at(total, first, flow)
    np.subtract.at(total, second, flow)
    return total
