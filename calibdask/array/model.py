"""Pairs of telescopes that see the same shower: which there are, and how their values compare.

Method: Mitchell, Parsons, Hofmann & Bernlöhr 2016, Astropart. Phys. 75, 1 (arXiv:1510.06526).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.errors import ConfigError, CorruptedInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Telescopes",
    "asymmetry",
    "asymmetry_uncertainty",
    "distance_asymmetry",
    "find_pairs",
    "log_ratio",
    "measurable",
    "pair_events",
    "pair_types",
]

MAX_TEL_ID = 65535
"""Largest telescope id: ctapipe stores them in 16 bits."""


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
