"""Do values stay the same from one time bin to the next? Jumps and drifts of telescopes.

The theta of one time bin are known up to a constant for each network: a telescope that is held
fixed and jumps makes all the others seem to jump. So nothing is said of theta themselves, but only
of differences between a telescope and others that stay, which do not depend on what is held fixed.
Time bins share no event, so their errors are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHANCE", "Drift", "find_drift"]

CHANCE = 0.01
"""Probability that any telescope of a network that stays the same is flagged, by either test."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """How T telescopes change over B time bins.

    Attributes
    ----------
    jumps : ndarray of bool, shape (B, T)
        The step from the telescope's last value to this one is none of chance.
    varies : ndarray of bool, shape (T,)
        Its values are not those of a constant.
    n_bins : ndarray of int64, shape (T,)
        Time bins in which it has a value and an error.
    chi2, ndf, p_value : ndarray, shape (T,)
        Of its values against their mean; NaN and 0 where there is nothing to compare with.
    step, step_error, step_sigma : ndarray of float64, shape (T,)
        Its most significant step, in theta, and its significance in standard deviations of a normal
        distribution; NaN without any.
    step_bin : ndarray of int64, shape (T,)
        Index of the time bin to which that step leads; -1 without any.
    limit_sigma : ndarray of float64, shape (T,)
        From this significance on a step is a jump: CHANCE over the number of steps in the network.
    """

    jumps: NDArray[np.bool_]
    varies: NDArray[np.bool_]
    n_bins: NDArray[np.int64]
    chi2: NDArray[np.float64]
    ndf: NDArray[np.int64]
    p_value: NDArray[np.float64]
    step: NDArray[np.float64]
    step_error: NDArray[np.float64]
    step_sigma: NDArray[np.float64]
    step_bin: NDArray[np.int64]
    limit_sigma: NDArray[np.float64]


def find_drift(
    theta: NDArray[np.float64],
    covariance: NDArray[np.float64],
    freedom: NDArray[np.float64],
    network: NDArray[np.integer],
) -> Drift:
    """Find telescopes that jump or drift.

    A step is the change of a telescope's theta from its last time bin with a value, less the mean
    change of the others. The most significant one of a pair of time bins is taken out if it is a
    jump, and the others are looked at again without it (the extreme Studentized deviate of Rosner
    1983, Technometrics 25, 165), so that one that jumps does not make the others suspect. Of two
    telescopes alone nobody can say which one jumped: both are flagged. Errors from few events are
    uncertain themselves: significances are those of Student's t with the degrees of freedom of the
    time bin that has fewer of them.

    Whether a telescope's values are those of a constant is tested by chi2, relative to the mean of
    those telescopes that have a value in every time bin and never jump.

    Parameters
    ----------
    theta : ndarray of float64, shape (B, T)
        Values in the order of time; NaN for no value or no error.
    covariance : ndarray of float64, shape (B, T, T)
        Their covariance in each time bin.
    freedom : ndarray of float64, shape (B, T)
        Degrees of freedom of the error of each value.
    network : ndarray of int, shape (T,)
        Telescopes with the same number compare with each other.

    Returns
    -------
    Drift
    """
    n_bins, n_tel = theta.shape
    jumps = np.zeros((n_bins, n_tel), np.bool_)
    found = {name: np.full(n_tel, np.nan) for name in ("step", "step_error", "step_sigma")}
    limit, chi2, p_value = (np.full(n_tel, np.nan) for _ in range(3))
    step_bin, ndf = np.full(n_tel, -1), np.zeros(n_tel, np.int64)
    varies = np.zeros(n_tel, np.bool_)
    has_value = np.isfinite(theta)
    for number in np.unique(network):
        mine = np.flatnonzero(network == number)
        pairs = _neighbours(has_value[:, mine])
        n_steps = sum(len(tels) for _, _, tels in pairs)
        for before, after, tels in pairs:
            both = has_value[before, mine] & has_value[after, mine]
            member = mine[both]
            block = np.ix_(member, member)
            of_step = np.minimum(freedom[before, member], freedom[after, member])
            steps = _steps(
                theta[after, member] - theta[before, member],
                covariance[after][block] + covariance[before][block],
                of_step,
                CHANCE / n_steps,
            )
            for k in np.flatnonzero(np.isin(member, mine[tels])):
                t = member[k]
                step, error, sigma, jump = (values[k] for values in steps)
                jumps[after, t] = jump
                if np.isfinite(sigma) and not sigma <= found["step_sigma"][t]:
                    found["step"][t], found["step_error"][t] = step, error
                    found["step_sigma"][t], step_bin[t] = sigma, after
        if n_steps:
            limit[mine] = _two_sided_sigma(np.array(CHANCE / n_steps))
        chi2[mine], ndf[mine], p_value[mine] = _constancy(
            theta[:, mine],
            covariance[:, mine[:, None], mine],
            freedom[:, mine],
            ~jumps[:, mine].any(axis=0),
        )
        with np.errstate(invalid="ignore"):
            varies[mine] = p_value[mine] < CHANCE / max(len(mine), 1)
    return Drift(
        jumps=jumps,
        varies=varies,
        n_bins=has_value.sum(axis=0),
        chi2=chi2,
        ndf=ndf,
        p_value=p_value,
        step_bin=step_bin,
        limit_sigma=limit,
        **found,
    )


def _neighbours(has_value: NDArray[np.bool_]) -> list[tuple[int, int, list[int]]]:
    """Pairs of time bins, and the telescopes for which the one follows the other."""
    pairs: dict[tuple[int, int], list[int]] = {}
    for t in range(has_value.shape[1]):
        bins = np.flatnonzero(has_value[:, t]).tolist()
        for before, after in pairwise(bins):
            pairs.setdefault((before, after), []).append(t)
    return [(before, after, tels) for (before, after), tels in sorted(pairs.items())]


def _steps(
    change: NDArray[np.float64],
    covariance: NDArray[np.float64],
    freedom: NDArray[np.float64],
    chance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Step of each telescope relative to those that stay: value, error, significance, jump."""
    n_tel = len(change)
    step, error, p_value = np.full((3, n_tel), np.nan)
    stays = np.ones(n_tel, np.bool_)
    while stays.sum() > 1:
        for t in np.flatnonzero(stays):
            contrast = -_shares(covariance, stays & (np.arange(n_tel) != t))
            contrast[t] = 1.0
            step[t] = contrast @ change
            error[t] = np.sqrt(np.maximum(contrast @ covariance @ contrast, 0.0))
            p_value[t] = _two_sided(step[t], error[t], freedom[t])
        worst = float(np.nanmin(np.where(stays, p_value, np.inf)))
        if not worst < chance:
            break
        # Two that remain differ by the same from each other: both go.
        stays &= ~(p_value <= worst * (1 + 1e-9))
    return step, error, _two_sided_sigma(p_value), ~stays & (p_value < chance)


def _shares(covariance: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights in the mean of some telescopes, by inverse variance relative to their plain mean."""
    n_tel = len(among)
    number = int(among.sum())
    centred = np.eye(n_tel) - np.where(among, 1.0 / number, 0.0)[None, :]
    variance = np.diagonal(centred @ covariance @ centred.T)
    usable = among & (variance > 0)
    weight = np.where(usable, 1.0 / np.where(usable, variance, 1.0), 0.0)
    if not usable.any():  # one alone
        weight = among.astype(np.float64)
    return np.asarray(weight / weight.sum())


def _constancy(
    theta: NDArray[np.float64],
    covariance: NDArray[np.float64],
    freedom: NDArray[np.float64],
    never_jumps: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """chi2, ndf and p-value of each telescope against a constant."""
    from scipy.special import chdtrc

    n_tel = theta.shape[1]
    chi2, ndf, p_value = np.full(n_tel, np.nan), np.zeros(n_tel, np.int64), np.full(n_tel, np.nan)
    has_value = np.isfinite(theta)
    bins = np.flatnonzero(has_value.any(axis=1))
    if len(bins) < 2:
        return chi2, ndf, p_value
    steady = never_jumps & has_value[bins].all(axis=0)
    mean_covariance = np.mean(covariance[bins], axis=0)
    for t in range(n_tel):
        others = steady & (np.arange(n_tel) != t)
        mine = bins[has_value[bins, t]]
        if not others.any() or len(mine) < 2:
            continue
        contrast = -_shares(mean_covariance, others)
        contrast[t] = 1.0
        value = np.nan_to_num(theta[mine]) @ contrast
        variance = np.einsum("i,bij,j->b", contrast, covariance[mine], contrast)
        if not np.all(variance > 0):
            continue
        residual = value - np.average(value, weights=1.0 / variance)
        p_residual = _two_sided(residual, np.sqrt(variance), freedom[mine, t])
        chi2[t], ndf[t] = np.sum(_two_sided_sigma(p_residual) ** 2), len(mine) - 1
        p_value[t] = chdtrc(ndf[t], chi2[t])
    return chi2, ndf, p_value


def _two_sided(
    value: NDArray[np.float64], error: NDArray[np.float64], freedom: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probability of a larger value by chance, with an error of so many degrees of freedom."""
    from scipy.special import stdtr

    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(value) / error
    return np.asarray(2.0 * stdtr(np.maximum(freedom, 1), -t))


def _two_sided_sigma(p_value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviations of a normal distribution with the same probability."""
    from scipy.special import ndtri

    return np.asarray(-ndtri(np.maximum(0.5 * p_value, 1e-300)))
