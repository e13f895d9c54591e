"""Arrival times of the light of one shower at several telescopes: the formulas.

Cherenkov light reaches the ground as a thin front. Taken as a sphere around the shower's maximum,
at the distance L along the direction n from the core, it passes a telescope at r (seen from the
core) at

    t = t_0 + (|L n - r| - L) n_air/c ,

with n = (cos alt cos az, -cos alt sin az, sin alt) in ctapipe's ground frame: x to the North, y to
the West, azimuth from North to East. For L to infinity this is the plane front, t_0 - n.r n_air/c.
A telescope whose clock or trigger reads o_i late has t_i = t + o_i, so over pairs the differences
(t_i - t_j) - (model_i - model_j) measure o_i - o_j: the network of `calibdask.array.network`.

This is geometry alone: light is emitted all along the shower, so the real front is no exact sphere,
least so within some 120 m of the core. What that costs shows as residuals that depend on the impact
distance: see `between_bin_variance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.pairs import EventRows
    from calibdask.stats.moments import Moments

__all__ = [
    "NS_PER_M",
    "RADIANS",
    "Front",
    "between_bin_variance",
    "front_delay_ns",
    "geodetic_height_m",
    "residual_times",
    "since_first_ns",
]

type Front = Literal["spherical", "plane"]

NS_PER_M = 1.00025 / 0.299792458
"""Time of light over a metre of air.

The refractive index is a mean over the last kilometres above an observatory at 2 km. Only path
differences count: an error of 1e-4 of it is 0.1 ns over 300 m.
"""

RADIANS = {"deg": np.pi / 180, "rad": 1.0}
"""Of an angle in each unit that is read."""

_QUARTERS_PER_S = 4_000_000_000
_NO_SECONDS = (0, 2**32 - 1)  # what ctapipe stores for times before 1970 and after 2106

_WGS84_RADIUS_M = 6_378_137.0
_WGS84_FLATTENING = 1 / 298.257223563


def since_first_ns(
    time: NDArray[Any], event: NDArray[np.int64], n_events: int
) -> NDArray[np.float64]:
    """Return the times since the first one of their event, exact to the stored quarter of a ns.

    A second of TAI and a float do not go together (1.7e9 s are resolved to 240 ns), so all is
    subtracted as integers. A time more than a second from the middle of its event's times is a
    clock that lost its second: it is left out, and the others keep their resolution.

    Parameters
    ----------
    time : ndarray, shape (N, 2)
        Second and quarter-nanoseconds within it ("ctao_high_res"): integers, or floats with NaN
        where there is no time. A second of 0 or 2**32 - 1 is no time either.
    event : ndarray of int64, shape (N,)
        Event of each row, 0 ... n_events - 1.
    n_events : int
        Number of events.

    Returns
    -------
    ndarray of float64, shape (N,)
        In ns; NaN for no time.
    """
    known = np.isfinite(time).all(axis=1) & ~np.isin(time[:, 0], _NO_SECONDS)
    row = np.flatnonzero(known)
    second, quarter = (time[row, i].astype(np.int64) for i in (0, 1))
    event = event[row]
    base = np.full(n_events, np.iinfo(np.int64).max)
    np.minimum.at(base, event, second)
    far = np.zeros(n_events, np.bool_)
    far[event[second - base[event] > 1]] = True
    if far.any():
        odd = np.flatnonzero(far[event])
        order = odd[np.lexsort((second[odd], event[odd]))]
        number, start, count = np.unique(event[order], return_index=True, return_counts=True)
        base[number] = second[order[start + (count - 1) // 2]]
        near = np.abs(second - base[event]) <= 1
        row, second, quarter, event = row[near], second[near], quarter[near], event[near]
    quarter += (second - base[event]) * _QUARTERS_PER_S
    first = np.full(n_events, np.iinfo(np.int64).max)
    np.minimum.at(first, event, quarter)
    since = np.full(len(time), np.nan)
    since[row] = (quarter - first[event]) / 4
    return since


def residual_times(
    events: EventRows,
    tel_id: NDArray[np.integer],
    position_m: NDArray[np.float64],
    *,
    geometry: str,
    front: Front,
    altitude_m: float,
    pointing: NDArray[np.float64] | None,
    delay: str | None,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    """Return the time of each telescope event less that of the front.

    Parameters
    ----------
    events : EventRows
        N rows, with the column ``time`` and those of the shower's geometry.
    tel_id, position_m : ndarray, shape (T,) and (T, 3)
        The telescopes and their positions.
    geometry : str
        Algorithm of direction, core and height: the first part of the names of columns.
    front : {"spherical", "plane"}
        Shape of the front.
    altitude_m : float
        Height of the ground in the system in which ``h_max`` is given.
    pointing : ndarray of float64, shape (N, 2), or None
        Altitude and azimuth, in rad, of the direction whose delay was taken out of the times.
    delay : str or None
        Column of a further delay after the trigger, in ns.

    Returns
    -------
    residual_ns : ndarray of float64, shape (N,)
        Times in ns, NaN where they are not known.
    known : dict of str to ndarray of bool, shape (N,)
        What each row has to fulfil.
    """
    columns = events.columns
    alt, az = (
        columns[f"{geometry}_{name}"] * RADIANS[events.units[f"{geometry}_{name}"]]
        for name in ("alt", "az")
    )
    position = np.zeros((int(tel_id.max(initial=0)) + 1, 3))
    position[tel_id] = position_m
    time_ns = since_first_ns(columns["time"], events.event, events.n_events)
    from_core_m = position[events.tel_id]
    distance_m = np.full(len(alt), np.inf)
    if pointing is not None:
        time_ns += front_delay_ns("plane", from_core_m, pointing[:, 0], pointing[:, 1], distance_m)
    from_core_m[:, 0] -= columns[f"{geometry}_core_x"]
    from_core_m[:, 1] -= columns[f"{geometry}_core_y"]
    if front == "spherical":
        distance_m = (columns[f"{geometry}_h_max"] - altitude_m) / np.sin(alt)
    delay_ns = front_delay_ns(front, from_core_m, alt, az, distance_m)
    if delay is not None:
        time_ns = time_ns + columns[delay]
    known = {
        "time known": np.isfinite(time_ns),
        "front known": columns[f"{geometry}_is_valid"].astype(np.bool_) & np.isfinite(delay_ns),
    }
    return time_ns - delay_ns, known


def front_delay_ns(
    front: Front,
    position_m: NDArray[np.float64],
    alt: NDArray[np.float64],
    az: NDArray[np.float64],
    distance_m: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Time at which the front passes a telescope, after it passed the core.

    |L n - r| - L is taken as (r^2 - 2 L n.r)/(|L n - r| + L): the same, without the difference of
    two large numbers.

    Parameters
    ----------
    front : {"spherical", "plane"}
        Shape of the front.
    position_m : ndarray of float64, shape (N, 3)
        The telescope seen from the core: x to the North, y to the West, z up.
    alt, az : ndarray of float64, shape (N,)
        Where the shower comes from, in radians.
    distance_m : ndarray of float64, shape (N,)
        Distance L of the maximum from the core: its height over the core, over sin(alt). The plane
        front does without.

    Returns
    -------
    ndarray of float64, shape (N,)
        In ns; NaN where a value is not finite or L is not positive.
    """
    x_m, y_m, z_m = position_m.T
    level = np.cos(alt)
    along_m = level * np.cos(az) * x_m - level * np.sin(az) * y_m + np.sin(alt) * z_m
    if front == "plane":
        return np.asarray(-along_m * NS_PER_M)
    distance = np.where(distance_m > 0, distance_m, np.nan)
    excess_m2 = x_m**2 + y_m**2 + z_m**2 - 2 * distance * along_m
    path_m = np.sqrt(distance**2 + excess_m2)
    return np.asarray(excess_m2 / (path_m + distance) * NS_PER_M)


def geodetic_height_m(x_m: float, y_m: float, z_m: float) -> float:
    """Height above the WGS84 ellipsoid of a geocentric position.

    Bowring 1976, Surv. Rev. 23, 323, one step: good to 1 mm for any place on the ground.

    Parameters
    ----------
    x_m, y_m, z_m : float
        Earth-fixed coordinates (ITRS).
    """
    a_m, f = _WGS84_RADIUS_M, _WGS84_FLATTENING
    b_m, e2 = a_m * (1 - f), f * (2 - f)
    p_m = float(np.hypot(x_m, y_m))
    reduced = np.arctan2(z_m * a_m, p_m * b_m)
    lat = np.arctan2(
        z_m + e2 / (1 - e2) * b_m * np.sin(reduced) ** 3, p_m - e2 * a_m * np.cos(reduced) ** 3
    )
    curvature_m = a_m / np.sqrt(1 - e2 * np.sin(lat) ** 2)
    return float(p_m * np.cos(lat) + z_m * np.sin(lat) - a_m**2 / curvature_m)


def between_bin_variance(
    residuals: Moments, group: NDArray[np.integer], n_groups: int, n_min: int
) -> NDArray[np.float64]:
    """Variance of the true means of bins, beyond what their errors explain.

    Method of moments of DerSimonian & Laird 1986, Control. Clin. Trials 7, 177, pooled over the
    telescopes of a group. For telescope i with bins b of mean m and w = n/variance,

        Q_i = sum_b w (m - m_i)^2 ,  m_i = sum_b w m/sum_b w ,
        E[Q_i] = B_i - 1 + tau^2 (sum_b w - sum_b w^2/sum_b w) ,

    if the bins' true means scatter by tau about the telescope's own. Sums of both sides over the
    group give tau^2; below zero it is 0.

    Parameters
    ----------
    residuals : Moments, shape (T, B)
        Residuals of each telescope in bins, for instance of the impact distance.
    group : ndarray of int, shape (T,)
        Group (telescope type) of each telescope.
    n_groups : int
        Number of groups.
    n_min : int
        Bins with fewer events are left out.

    Returns
    -------
    ndarray of float64, shape (n_groups,)
        tau^2, in the unit of the residuals squared; NaN where no telescope has two bins.
    """
    variance = residuals.variance()
    used = (residuals.n >= max(n_min, 2)) & (variance > 0)
    weight = np.where(used, residuals.n / np.where(used, variance, 1.0), 0.0)
    total = weight.sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    mean = np.sum(weight * residuals.mean, axis=1) / safe
    q = np.sum(weight * (residuals.mean - mean[:, None]) ** 2, axis=1)
    freedom = np.maximum(used.sum(axis=1) - 1, 0)
    scale = np.where(freedom > 0, total - np.sum(weight**2, axis=1) / safe, 0.0)
    excess = np.bincount(group, np.where(freedom > 0, q - freedom, 0.0), n_groups)
    scales = np.bincount(group, scale, n_groups)
    return np.where(scales > 0, np.maximum(excess, 0.0) / np.where(scales > 0, scales, 1.0), np.nan)
