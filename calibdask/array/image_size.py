"""What image sizes need besides energies: selections that are fair to both telescopes of a pair.

An image size fluctuates about the light of the shower times the telescope's throughput c: by the
Poisson law, and by how the light falls with the impact distance. A cut on each telescope's own size
lets through what fluctuated upwards in the dimmer telescope, which draws the ratio of the two
towards 1. A cut on the geometric mean of both sizes treats them alike: for fluctuations u and v
that are exchangeable, the mean of u - v given u + v is zero.

What is left is stated as a systematic error: by how much the throughputs move when the selection
is made harder (`SELECTIONS`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.array.model import distance_asymmetry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.network.state import NetworkFit

__all__ = ["HIGHER_CUT", "NARROWER_WINDOW", "harder_selections", "pair_size", "systematic"]

HIGHER_CUT = "higher pair cut"
"""Selection with 1.5 times the least size of a pair."""

NARROWER_WINDOW = "narrower window"
"""Selection with half of the limit on the asymmetry of the impact distances."""

CHANCE = 0.02
"""Probability that a change that is none but of statistics is taken for a systematic error."""

_HIGHER = 1.5
_NARROWER = 0.5


def pair_size(x_1: NDArray[np.float64], x_2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric mean of two image sizes; NaN where one is not positive."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.where((x_1 > 0) & (x_2 > 0), x_1, np.nan)) * np.sqrt(x_2)


def harder_selections(
    size: NDArray[np.float64],
    least: NDArray[np.float64] | None,
    impact_1_m: NDArray[np.float64] | None,
    impact_2_m: NDArray[np.float64] | None,
    limit: NDArray[np.float64] | None,
) -> dict[str, NDArray[np.bool_]]:
    """Which rows pass harder selections, by the name of the selection.

    Parameters
    ----------
    size : ndarray of float64, shape (N,)
        Of each pair, see `pair_size`.
    least : ndarray of float64, shape (N,), or None
        Its least value; without one there is no `HIGHER_CUT`.
    impact_1_m, impact_2_m, limit : ndarray of float64, shape (N,), or None
        Impact distances and the limit of their asymmetry; without them there is no
        `NARROWER_WINDOW`.
    """
    passed = {}
    if least is not None:
        passed[HIGHER_CUT] = size >= _HIGHER * least
    if impact_1_m is not None and impact_2_m is not None and limit is not None:
        passed[NARROWER_WINDOW] = distance_asymmetry(impact_1_m, impact_2_m) < _NARROWER * limit
    return passed


def systematic(fit: NetworkFit, harder: Mapping[str, NetworkFit]) -> NDArray[np.float64]:
    """Systematic error of ln c, from fits to the rows that pass harder selections.

    The rows of a harder selection are a part f of all rows, so by statistics alone the changes D of
    ln c have the covariance V = C_all + (1 - 2 f) C_harder: what the rows in common do to both,
    f C_harder, is taken out twice. For rows of equal scatter it is C_harder - C_all (Barlow 2002,
    hep-ex/0207026, eq. 7); large images scatter less. What exceeds it
    is systematic. About the mean over the T telescopes of a component, P = 1 - 1 1^T/T, its
    variance is s^2 = (|P D|^2 - tr(P V))/(T - 1), summed over the selections where it is none of
    chance (`CHANCE`, tested as in `network.goodness`): a check that is passed is no error (Barlow,
    section 4). The same independent error s of every telescope is then taken to where the fit has
    its zero, g . theta: s_i^2 = s^2 (1 - 2 g_i + sum_j g_j^2), which is 2 s^2 against a reference
    telescope.

    Parameters
    ----------
    fit : NetworkFit
        Finished fit to all rows.
    harder : mapping of str to NetworkFit
        Finished fits to the harder selections.

    Returns
    -------
    ndarray of float64, shape (T,)
        0 for a reference, NaN for a telescope without value, or where no harder selection has
        values for two telescopes of the component.
    """
    error = np.full(len(fit.tel_id), np.nan)
    for c in range(len(fit.component_n_events)):
        member = (fit.component == c) & np.isfinite(fit.theta)
        found = [
            square
            for other in harder.values()
            if (square := _excess(fit, other, member)) is not None
        ]
        if found:
            gauge = fit.gauge[member]
            spread = np.maximum(1 - 2 * gauge + np.sum(gauge**2), 0.0)
            error[member] = np.sqrt(sum(found) * spread)
    return error


def _excess(fit: NetworkFit, other: NetworkFit, member: NDArray[np.bool_]) -> float | None:
    """s^2 of one harder selection; None where it lacks two telescopes in common."""
    from scipy.special import fdtrc

    row = {int(tel_id): i for i, tel_id in enumerate(other.tel_id)}
    mine = np.flatnonzero(member)
    theirs = np.array([row.get(int(tel_id), -1) for tel_id in fit.tel_id[mine]], np.int64)
    known = theirs >= 0
    known[known] = np.isfinite(other.theta[theirs[known]])
    parts, counts = np.unique(other.component[theirs[known]], return_counts=True)
    if not len(parts) or counts.max() < 2:
        return None
    known[known] = other.component[theirs[known]] == parts[np.argmax(counts)]
    mine, theirs = mine[known], theirs[known]
    change = other.theta[theirs] - fit.theta[mine]
    change -= change.mean()
    part = _n_rows(other, theirs) / _n_rows(fit, mine)
    covariance = other.covariance[np.ix_(theirs, theirs)] * (1.0 - 2.0 * part)
    covariance += fit.covariance[np.ix_(mine, mine)]
    centred = np.eye(len(mine)) - 1.0 / len(mine)
    covariance = centred @ covariance @ centred
    expected, square = float(np.trace(covariance)), float(np.sum(change**2))
    excess = square - expected
    if expected <= 0.0:  # all rows pass, but for rounding
        return 0.0
    nu = expected**2 / np.sum(covariance**2)
    freedom = max(int(other.n_events[theirs].min()) - 1, 1)
    by_chance = fdtrc(nu, nu * freedom, square / expected) > CHANCE
    return 0.0 if by_chance else max(excess, 0.0) / (len(mine) - 1)


def _n_rows(fit: NetworkFit, member: NDArray[np.int64]) -> int:
    """Rows of used pairs among some telescopes."""
    inside = fit.used & np.isin(fit.first, member) & np.isin(fit.second, member)
    return int(fit.n[inside].sum())
