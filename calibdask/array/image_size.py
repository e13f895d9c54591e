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

    from calibdask.array.network import NetworkFit

__all__ = ["HIGHER_CUT", "NARROWER_WINDOW", "harder_selections", "pair_size", "systematic"]

HIGHER_CUT = "higher pair cut"
"""Selection with 1.5 times the least size of a pair."""

NARROWER_WINDOW = "narrower window"
"""Selection with half of the limit on the asymmetry of the impact distances."""

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

    The rows of a harder selection are some of all rows, so a change D_i of ln c_i has the variance
    V_i = var_harder - var_all by statistics alone (Barlow 2002, hep-ex/0207026, eq. 7). What
    exceeds it, pooled over the telescopes of a component, is systematic:
    s^2 = sum over selections of max(0, mean_i(D_i^2 - V_i)).

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
    square = np.full(len(fit.tel_id), np.nan)
    for other in harder.values():
        row = {int(tel_id): i for i, tel_id in enumerate(other.tel_id)}
        rows = np.array([row[int(tel_id)] for tel_id in fit.tel_id], np.int64)
        change = other.theta[rows] - fit.theta
        variance = np.diagonal(other.covariance)[rows] - np.diagonal(fit.covariance)
        same_part = other.component[rows]
        for c in range(len(fit.component_n_events)):
            inside = (fit.component == c) & np.isfinite(change) & (same_part >= 0)
            parts, counts = np.unique(same_part[inside], return_counts=True)
            if not len(parts):
                continue
            inside &= same_part == parts[np.argmax(counts)]
            gauge = np.where(inside, fit.gauge, 0.0)
            if not gauge.any():  # the reference is not among them: compare with the mean
                gauge = inside.astype(np.float64)
            moved = change - np.sum(gauge[inside] * change[inside]) / gauge.sum()
            inside &= ~fit.is_reference
            if not inside.any():
                continue
            excess = np.mean(moved[inside] ** 2 - np.maximum(variance[inside], 0.0))
            member = (fit.component == c) & np.isfinite(fit.theta)
            square[member] = np.nan_to_num(square[member]) + max(excess, 0.0)
    square[fit.is_reference & np.isfinite(square)] = 0.0
    return np.sqrt(square)
