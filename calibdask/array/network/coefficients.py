"""Columns of the tables of a network: coefficients, pairs, covariance, components and slopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask import flags
from calibdask.array.model import pair_types
from calibdask.array.network.pairs import DISTANCE_EDGES_M, N_RANGES
from calibdask.flags import Flag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.network.state import NetworkFit

__all__ = [
    "MIN_EVENTS_FOR_ERROR",
    "coefficients",
    "has_error",
    "student_factor",
    "together",
    "values_so_far",
]

MIN_EVENTS_FOR_ERROR = 10
"""Fewer events than this, and the scatter between events says nothing about an error."""

PAIR_FLAGS = (Flag.FEW_PAIR_EVENTS, Flag.UNMEASURED_PAIR, Flag.INVALID_EVENTS)
"""Flags of pairs; a telescope has those of any of its pairs."""


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
    sqrt(1/W - A C A^T); chi2 and its degrees of freedom are those of `network.goodness`.
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
