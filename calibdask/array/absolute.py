"""Throughputs of all types on one scale: ratios from a network, types tied by given ratios, muons.

The network of pairs knows ratios of throughputs and their covariance; muon rings know the
throughput of single telescopes. Together they are one generalised least squares problem, whose chi2
tells whether they agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from calibdask.array.network.model import connected_components, divergence, gauge_inverse, laplacian

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.network.state import NetworkFit

__all__ = [
    "Combined",
    "TypeContrasts",
    "TypeScales",
    "combine_with_muons",
    "compare_types",
    "pool_chunks",
    "tie_types",
]


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """Network and muons together.

    Attributes
    ----------
    log_value : ndarray of float64, shape (T,)
        ln of the throughputs.
    covariance : ndarray of float64, shape (T, T)
        Its covariance.
    residual, pull : ndarray of float64, shape (T,)
        ln of the muon throughput less `log_value`, and that over its standard deviation; NaN
        without muons, and no pull where they alone set the scale.
    chi2 : float
        Of the muons against the network's ratios.
    ndf : int
        Muon throughputs less one.
    p_value : float
        Probability of a larger chi2 by chance; NaN without degrees of freedom.
    """

    log_value: NDArray[np.float64]
    covariance: NDArray[np.float64]
    residual: NDArray[np.float64]
    pull: NDArray[np.float64]
    chi2: float
    ndf: int
    p_value: float


def combine_with_muons(
    theta: NDArray[np.float64],
    covariance: NDArray[np.float64],
    log_muon: NDArray[np.float64],
    muon_variance: NDArray[np.float64],
    n_events: int,
) -> Combined | None:
    """Find throughputs that fit the network's ratios and the muons' throughputs best.

    Minimises (D theta - D phi)^T (D S D^T)^-1 (D theta - D phi) + sum_t (y_t - phi_t)^2/v_t over
    phi = ln c, where D takes the differences to one telescope: theta is known up to a constant,
    which the muons fix. The inverse of a covariance estimated from n events is too large by
    (n - 1)/(n - p - 2) for p differences (Hartlap, Simon & Schneider 2007, A&A 464, 399, eq. 17).

    Parameters
    ----------
    theta : ndarray of float64, shape (T,)
        ln of the throughputs in the network, with any constant.
    covariance : ndarray of float64, shape (T, T)
        Its covariance S.
    log_muon, muon_variance : ndarray of float64, shape (T,)
        ln of the muon throughputs y and its variance v; NaN where there is none.
    n_events : int
        Events behind the covariance.

    Returns
    -------
    Combined, or None
        None without any muon throughput, or with too few events for the covariance.
    """
    from scipy.special import chdtrc

    n_tel = len(theta)
    has_muon = np.isfinite(log_muon) & (muon_variance > 0)
    if not has_muon.any():
        return None
    weight = np.where(has_muon, 1.0 / np.where(has_muon, muon_variance, 1.0), 0.0)
    y = np.where(has_muon, log_muon, 0.0)
    precision = np.zeros((n_tel, n_tel))
    if n_tel > 1:
        correction = (n_events - n_tel - 1) / (n_events - 1) if n_events > n_tel + 1 else 0.0
        difference = np.eye(n_tel)[1:] - np.eye(n_tel)[0]
        spread = difference @ covariance @ difference.T
        size = np.sqrt(np.diagonal(spread))
        if correction <= 0 or not np.all(size > 0):
            return None
        eigenvalues, vectors = np.linalg.eigh(spread / np.outer(size, size))
        if eigenvalues[0] <= n_tel * np.finfo(np.float64).eps * eigenvalues[-1]:
            return None
        inverse = np.outer(1 / size, 1 / size) * ((vectors / eigenvalues) @ vectors.T)
        precision = correction * difference.T @ inverse @ difference
    # About a first guess of the constant, so that no digits are lost.
    constant = np.average((y - theta)[has_muon], weights=weight[has_muon])
    start = theta + constant
    combined = np.linalg.inv(precision + np.diag(weight))
    combined = 0.5 * (combined + combined.T)
    shift = combined @ (weight * (y - start))
    phi = start + shift
    residual = np.where(has_muon, log_muon - phi, np.nan)
    chi2 = float(
        shift @ precision @ shift + np.sum(np.where(has_muon, weight * (y - phi) ** 2, 0.0))
    )
    ndf = int(has_muon.sum()) - 1
    with np.errstate(invalid="ignore"):
        free = muon_variance - np.diagonal(combined)
        pull = residual / np.sqrt(np.where(free > 1e-9 * muon_variance, free, np.nan))
    return Combined(
        log_value=phi,
        covariance=combined,
        residual=residual,
        pull=pull,
        chi2=chi2 if ndf else 0.0,
        ndf=ndf,
        p_value=float(chdtrc(ndf, chi2)) if ndf else float("nan"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class TypeContrasts:
    """Muons of each of K types against those of all other types; of one component.

    Attributes
    ----------
    types : tuple of str
        Types with muons, sorted.
    n_muons : ndarray of int64, shape (K,)
        Their telescopes with muons.
    contrast, error : ndarray of float64, shape (K,)
        Mean residual of ln muon throughput against the network, less that of the other types.
    p_value : ndarray of float64, shape (K,)
        Probability of a larger one by chance; NaN without another type.
    freed : ndarray of bool, shape (K,)
        The network's scale of the type disagrees with the muons and is left free.
    covariance : ndarray of float64, shape (T, T)
        Of the network, with the scales of those types free.
    """

    types: tuple[str, ...]
    n_muons: NDArray[np.int64]
    contrast: NDArray[np.float64]
    error: NDArray[np.float64]
    p_value: NDArray[np.float64]
    freed: NDArray[np.bool_]
    covariance: NDArray[np.float64]


FREE_SCALE = 1.0
"""Standard deviation of ln of a scale that is left free: nothing is known of it."""

TYPE_CHANCE = 0.01
"""Probability that any type of a component that agrees with its muons is freed."""


def compare_types(
    theta: NDArray[np.float64],
    covariance: NDArray[np.float64],
    log_muon: NDArray[np.float64],
    muon_variance: NDArray[np.float64],
    tel_type: NDArray[np.str_],
) -> TypeContrasts:
    """Test the scale of each type in the network against the muons, by one contrast each.

    An energy reconstruction that is off by one factor in one type moves all its telescopes alike: a
    contrast of one degree of freedom finds that where a chi2 of all telescopes drowns it. The type
    with the most significant contrast is freed if that is none of chance, and the others are looked
    at again (as in Rosner 1983, Technometrics 25, 165), until two are left: of those nobody can say
    which is wrong, and one free scale between them is enough.

    Parameters
    ----------
    theta, covariance, log_muon, muon_variance
        As in `combine_with_muons`.
    tel_type : ndarray of str, shape (T,)
        Type of each telescope.
    """
    from scipy.special import ndtr

    has_muon = np.isfinite(log_muon) & (muon_variance > 0)
    types = np.unique(tel_type[has_muon])
    n_types = len(types)
    contrast, error, p_value = np.full((3, n_types), np.nan)
    freed = np.zeros(n_types, np.bool_)
    residual = np.where(has_muon, log_muon - theta, 0.0)
    total = covariance + np.diag(np.where(has_muon, muon_variance, 0.0))
    means = np.zeros((n_types, len(theta)))
    for k, kind in enumerate(types.tolist()):
        mine = has_muon & (tel_type == kind)
        means[k, mine] = 1.0 / muon_variance[mine]
        means[k] /= means[k].sum()
    stays = np.ones(n_types, np.bool_)
    while stays.sum() > 1:
        for k in np.flatnonzero(stays).tolist():
            others = stays & (np.arange(n_types) != k)
            # Types weigh by what is known of each of them, telescopes of one by their muons.
            weight = np.where(others, 1.0 / np.einsum("kt,tu,ku->k", means, total, means), 0.0)
            along = means[k] - (weight / weight.sum()) @ means
            contrast[k] = along @ residual
            error[k] = np.sqrt(along @ total @ along)
            p_value[k] = 2.0 * ndtr(-abs(contrast[k]) / error[k])
        worst = int(np.argmin(np.where(stays, p_value, np.inf)))
        if not p_value[worst] < TYPE_CHANCE / n_types:
            break
        freed[worst], stays[worst] = True, False
    free = np.isin(tel_type, types[freed])
    same = tel_type[:, None] == tel_type
    return TypeContrasts(
        tuple(types.tolist()),
        np.array([np.count_nonzero(has_muon & (tel_type == kind)) for kind in types], np.int64),
        contrast,
        error,
        p_value,
        freed,
        covariance + FREE_SCALE**2 * (free[:, None] & same),
    )


def pool_chunks(
    tel_id: NDArray[np.int64],
    mean: NDArray[np.float64],
    sem: NDArray[np.float64],
    n_rings: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean throughput of each telescope over all its chunks, as if their rings were one chunk.

    Weighted with the rings, not with 1/sem^2: a chunk whose rings agree by chance does not count
    more. The error is of the mean over this time; whether the chunks agree is another question.

    Returns
    -------
    tel_id : ndarray of int64, shape (M,)
        Telescopes, sorted.
    mean, sem : ndarray of float64, shape (M,)
    n_rings : ndarray of int64, shape (M,)
    """
    ids, index = np.unique(tel_id, return_inverse=True)
    total = np.bincount(index, n_rings)
    pooled = np.bincount(index, n_rings * mean) / total
    error = np.sqrt(np.bincount(index, (n_rings * sem) ** 2)) / total
    return ids, pooled, error, total.astype(np.int64)


# -- types tied together by given ratios --------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class TypeScales:
    """Scale of each type relative to the reference type, S in ln; K types.

    Attributes
    ----------
    types : tuple of str
        Sorted.
    log_scale : ndarray of float64, shape (K,)
        NaN for a type without pairs with another.
    component : ndarray of int64, shape (K,)
        Connected types; -1 without pairs.
    inverse : ndarray of float64, shape (K, K)
        (M^T A^T W A M)^-1 with the reference type held fixed.
    pull_of_given : ndarray of float64, shape (K, T)
        Derivative of `log_scale` by the given ln c of each telescope.
    """

    types: tuple[str, ...]
    log_scale: NDArray[np.float64]
    component: NDArray[np.int64]
    inverse: NDArray[np.float64]
    pull_of_given: NDArray[np.float64]


def tie_types(
    fit: NetworkFit,
    given: NDArray[np.float64],
    given_covariance: NDArray[np.float64],
    reference_type: str,
) -> tuple[NetworkFit, TypeScales]:
    """Fit one scale per type to pairs of different types, with the ratios within types given.

    The model of a pair is ln c_i + S_type(i) - ln c_j - S_type(j): with M the telescopes' types,
    S = (M^T A^T W A M)^-1 M^T A^T W (m - A ln c). The reference type has S = 0; among types that
    are not connected with it, the first.

    Given ratios that the pairs within the types reproduce here, to half of their own error, are of
    the same showers: then theta and the residuals follow the scatter of both kinds of pairs event
    by event. Otherwise the given ratios are independent of these events, and their covariance adds.

    Parameters
    ----------
    fit : NetworkFit
        Of a stage before the last, with weights and centres of the pairs.
    given : ndarray of float64, shape (T,)
        ln c within the type; NaN where there is none.
    given_covariance : ndarray of float64, shape (T, T)
        Its covariance.
    reference_type : str
        Type whose scale stays 1.

    Returns
    -------
    NetworkFit
        With theta = ln c + S of the telescopes' types, only pairs of different types in use, and as
        `covariance_independent` that of S spread over the telescopes: what the last stage needs to
        give the covariance of S with events as clusters.
    TypeScales
    """
    n_tel = len(fit.tel_id)
    types, number = np.unique(fit.tel_type, return_inverse=True)
    known = np.isfinite(given)
    given_covariance = np.where(known[:, None] & known, given_covariance, 0.0)
    used = (
        fit.used & (number[fit.first] != number[fit.second]) & known[fit.first] & known[fit.second]
    )
    first, second = fit.first[used], fit.second[used]
    weight = fit.weight[used]
    component = connected_components(len(types), number[first], number[second])
    log_scale = np.full(len(types), np.nan)
    inverse = np.zeros((len(types), len(types)))
    leads = np.zeros(len(types), np.bool_)
    normal = laplacian(len(types), number[first], number[second], weight)
    known_first = np.nan_to_num(given)
    flow = weight * (fit.centre[used] - known_first[first] + known_first[second])
    pushed = np.bincount(number[first], flow, len(types))
    pushed -= np.bincount(number[second], flow, len(types))
    # M^T A^T W A: how much each telescope's given value takes part.
    share = np.zeros((len(types), n_tel))
    for sign, end in ((1.0, first), (-1.0, second)):
        np.add.at(share, (number[first], end), sign * weight)
        np.add.at(share, (number[second], end), -sign * weight)
    for c in range(int(component.max(initial=-1)) + 1):
        member = np.flatnonzero(component == c)
        fixed = member[types[member] == reference_type]
        held = fixed[0] if len(fixed) else member[0]
        leads[member] = len(fixed) > 0
        block = np.ix_(member, member)
        found = gauge_inverse(normal[block], (member == held).astype(np.float64))
        if found is not None:
            inverse[block] = found
            log_scale[member] = found @ pushed[member]
    pull_of_given = -inverse @ share
    has_value = known & (component[number] >= 0) & np.isfinite(log_scale[number])
    theta = np.where(has_value, known_first + log_scale[number], np.nan)
    spread = np.eye(len(types))[number]
    same, weight_given, bread = _same_showers(fit, given, given_covariance)
    tied = replace(
        fit,
        given=same,
        weight_given=weight_given,
        given_bread=bread,
        given_pull=pull_of_given[number],
        given_error=np.zeros_like(bread) if same.any() else given_covariance,
        used=used & has_value[fit.first] & has_value[fit.second],
        component=np.where(has_value, component[number], -1),
        scale=np.ones(n_tel),
        theta=theta,
        covariance_independent=spread @ inverse @ spread.T,
        component_n_events=np.zeros(int(component.max(initial=-1)) + 1, np.int64),
        is_reference=np.zeros(n_tel, np.bool_),
        is_main=leads[number] & has_value,
        is_fallback=~leads[number] & has_value,
        weight=np.where(used, fit.weight, 0.0),
    )
    return tied, TypeScales(tuple(types.tolist()), log_scale, component, inverse, pull_of_given)


def _same_showers(
    fit: NetworkFit, given: NDArray[np.float64], given_covariance: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Pairs within types that the given ratios come from, their weights, and their bread.

    None if they are of other showers: of independent ones, the differences between what these
    pairs say and what was given would have at least the given variance in the mean.
    """
    n_tel = len(given)
    of_type = fit.used & (fit.tel_type[fit.first] == fit.tel_type[fit.second])
    of_type &= np.isfinite(given)[fit.first] & np.isfinite(given)[fit.second]
    first, second = fit.first[of_type], fit.second[of_type]
    component = connected_components(n_tel, first, second)
    bread, square, expected = np.zeros((n_tel, n_tel)), 0.0, 0.0
    weight = np.where(of_type, fit.weight * fit.gradient, 0.0)
    normal = laplacian(n_tel, first, second, fit.weight[of_type])
    flow = divergence(n_tel, first, second, (fit.weight * fit.centre)[of_type])
    for c in range(int(component.max(initial=-1)) + 1):
        member = np.flatnonzero(component == c)
        block = np.ix_(member, member)
        held = np.diagonal(given_covariance)[member] == 0
        held = held if held.any() else ~held
        found = gauge_inverse(normal[block], held / held.sum())
        if found is None:
            return np.zeros_like(of_type), np.zeros(len(weight)), np.zeros((n_tel, n_tel))
        bread[block] = found
        centred = np.eye(len(member)) - 1.0 / len(member)
        square += float(np.sum((centred @ (found @ flow[member] - given[member])) ** 2))
        expected += float(np.trace(centred @ given_covariance[block] @ centred))
    # Telescopes that were given but have no pair of their type here are of other showers, too.
    alone = np.isfinite(given) & (component < 0) & (np.diagonal(given_covariance) > 0)
    same = square < 0.25 * expected and not alone.any()
    if not same:
        return np.zeros_like(of_type), np.zeros(len(weight)), np.zeros((n_tel, n_tel))
    return of_type, weight, bread
