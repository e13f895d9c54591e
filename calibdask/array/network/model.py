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

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LOG_RATIO",
    "NetworkOptions",
    "Observable",
    "connected_components",
    "divergence",
    "gauge_inverse",
    "laplacian",
    "shrink_variance",
    "solve_asymmetry_network",
    "solve_network",
]

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
        reversed as well (`network.pairs.mirrored`): for "log-mean" and "log-clipped".
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
