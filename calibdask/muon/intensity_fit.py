"""The most likely impact, width, efficiency and circle of a muon ring. Pure maths.

The fit is not ctapipe's: derivatives are analytic, the position of the muon's impact is fitted in
Cartesian coordinates, and errors come from the information matrix. Functions have these arguments
in common:

x, y : array of float64, (M,)
    Pixels in the annulus, in rad; or their polar coordinates, distance and azimuth, about the
    centre of the ring (`calibdask.muon.intensity.polar`).
charge : array of float64, (M,)
    Their charges, in p.e.
circle : array of float64, (3,)
    Centre x and y and radius of the ring, in rad.
optics : Optics
    The telescope.
n_free : int
    4, with the circle fixed, as in ctapipe; or 7.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calibdask.muon.intensity import (
    Optics,
    likelihood,
    photons_per_m,
    polar,
    predict,
    profile_points,
)
from calibdask.muon.ring import dot, invert, times
from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

type Vector = NDArray[np.float64]

__all__ = ["Fit", "average_over_hole", "first_guess", "fit_intensity", "misfit"]

CLOSE = 1e-5
"""Expected distance to the maximum, in units of the log-likelihood, at which a fit ends."""

CLOSE_ENOUGH = 0.5
"""The same for a fit that no step improves, one standard deviation: it has come to a cusp."""

EVEN = 0.2
"""First harmonic of the light, relative to its mean, below which four places are tried.

The light then tells little of the direction of the impact, and the hole in the mirror makes several
maxima. Elsewhere all starts ended in one (in 800 simulated rings, also outside of the mirror).
"""

HOLE_REACH = 4.0
"""Errors of the impact from the edge of the hole within which the muon may have fallen into it."""

HOLE_POINTS = 64
"""Places of the impact over which a ring is averaged there."""

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))

MAX_EVALUATIONS = 60
MAX_STEP_M = 3.0
MAX_FACTOR = 2.0
SHORT_STEPS = 6.0
"""Damping that ends a fit which is closer than a tenth of that."""

MAX_DAMPING = 100.0


class Fit(NamedTuple):
    """The most likely parameters of a ring.

    Attributes
    ----------
    parameters : array of float64, (7,)
        Impact x and y, in m; width of the ring, in rad; optical efficiency; centre x and y and
        radius of the ring, in rad.
    covariance : array of float64, (7, 7)
        Of the parameters; 0 for those that were fixed. With the information matrix I and the
        covariance S of the gradient it is I⁻¹ S I⁻¹ (P. J. Huber, Proc. 5th Berkeley Symp. 1 (1967)
        221), because the charges are Poisson sums and their likelihood is taken as Gaussian.
    negative_log_likelihood : float
        At the parameters, with all constants.
    distance : float
        Expected distance to the maximum: ½ gᵀ I⁻¹ g, in units of the log-likelihood.
    iterations : float
        Evaluations of the likelihood, all starts together.
    starts : float
        From how many places the fit began.
    converged : bool
        Whether `distance` is small and the information matrix positive definite.
    """

    parameters: Vector
    covariance: Vector
    negative_log_likelihood: float
    distance: float
    iterations: float
    starts: float
    converged: bool


@compiled
def misfit(
    fit: Fit, x: Vector, y: Vector, charge: Vector, optics: Optics, n_free: int, pedestal: float
) -> float:
    """Return χ² over degrees of freedom of the charges about what a fit expects.

    About 1 for a good fit. `pedestal` replaces that of `optics`.
    """
    distance, azimuth = np.empty(x.size), np.empty(x.size)
    polar(x, y, fit.parameters, distance, azimuth)
    n_points = profile_points(fit.parameters[6], optics)
    expected = predict(fit.parameters, distance, azimuth, n_points, optics)
    total = 0.0
    for i in range(charge.size):
        variance = pedestal**2 + expected[i] * (1.0 + optics.spe_width**2)
        total += (charge[i] - expected[i]) ** 2 / variance
    return total / max(charge.size - n_free, 1)


@compiled
def first_guess(
    charge: Vector, distance: Vector, azimuth: Vector, circle: Vector, optics: Optics
) -> Vector:
    """Guess the parameters of a ring from the first harmonic of its light.

    The path on the mirror is about A + d cos(φ - φ₀) for an impact d from its centre, so that a
    least-squares fit of a + b cos φ + c sin φ to the charges gives impact and efficiency, also
    where a part of the ring is missing.
    It returns parameters as in `Fit`, NaN without light; the impact may lie outside of the mirror.
    """
    half = 0.5 * optics.pixel_width_rad
    radius = circle[2]
    root = 1.0 / (math.sqrt(2.0) * half)
    matrix = np.zeros((3, 3))
    vector = np.zeros(3)
    row = np.empty(3)
    for i in range(charge.size):
        outer = (distance[i] + half - radius) * root
        inner = (distance[i] - half - radius) * root
        part = 0.5 * (math.erf(outer) - math.erf(inner))
        row[0] = part
        row[1] = part * math.cos(azimuth[i])
        row[2] = part * math.sin(azimuth[i])
        for m in range(3):
            vector[m] += row[m] * charge[i]
            for k in range(3):
                matrix[m, k] += row[m] * row[k]
    found = np.full(7, np.nan)
    inverse, positive = invert(matrix)
    if positive:
        solution = times(inverse, vector)
        if solution[0] > 0.0:
            found[0] = solution[1] / solution[0] * optics.mirror_radius_m
            found[1] = solution[2] / solution[0] * optics.mirror_radius_m
            found[2] = half
            found[3] = solution[0] / (photons_per_m(radius, optics) * optics.mirror_radius_m)
            found[4:7] = circle
    return found


@compiled
def _climb(
    start: Vector, x: Vector, y: Vector, charge: Vector, n_points: int, optics: Optics, n_free: int
) -> tuple[Vector, Vector, float, float, float, bool]:
    """Go to the nearest maximum by Fisher scoring, damped (Levenberg) where a step fails."""
    distance, azimuth = np.empty(x.size), np.empty(x.size)
    # Where the muon goes through the hole its place leaves no trace. It fell on the telescope.
    faint = 1.0 / optics.mirror_radius_m**2
    parameters, trial = start.copy(), start.copy()
    polar(x, y, parameters, distance, azimuth)
    value, gradient, information = likelihood(
        parameters, charge, distance, azimuth, n_points, optics, n_free, 1.0, 0.0
    )
    information[0, 0] += faint
    information[1, 1] += faint
    damping, evaluations = 0.0, 1
    covariance, positive = invert(information)
    gap = 0.5 * dot(gradient, times(covariance, gradient))
    while evaluations < MAX_EVALUATIONS and not (positive and gap < CLOSE):
        matrix = information.copy()
        for k in range(n_free):
            matrix[k, k] += damping * matrix[k, k]
        inverse, usable = invert(matrix)
        if not usable:
            break
        step = -times(inverse, gradient)
        length = math.hypot(step[0], step[1])
        if length > MAX_STEP_M:
            step[0] *= MAX_STEP_M / length
            step[1] *= MAX_STEP_M / length
        trial[:n_free] = parameters[:n_free] + step
        for k in (2, 3, 6):
            low, high = parameters[k] / MAX_FACTOR, parameters[k] * MAX_FACTOR
            trial[k] = min(max(trial[k], low), high)
        if n_free > 4:
            polar(x, y, trial, distance, azimuth)
        new_value, new_gradient, new_information = likelihood(
            trial, charge, distance, azimuth, n_points, optics, n_free, 1.0, 0.0
        )
        evaluations += 1
        if new_value < value:
            parameters[:] = trial
            value, gradient, information = new_value, new_gradient, new_information
            information[0, 0] += faint
            information[1, 1] += faint
            covariance, positive = invert(information)
            gap = 0.5 * dot(gradient, times(covariance, gradient))
            damping = damping / 8.0 if damping > 0.05 else 0.0
        else:
            damping = max(4.0 * damping, 0.3)
            # Steps have become so short that what stops them is a cusp.
            if damping > (SHORT_STEPS if positive and gap < 0.1 * CLOSE_ENOUGH else MAX_DAMPING):
                break
    full = np.zeros((7, 7))
    full[:n_free, :n_free] = covariance
    return parameters, full, value, gap, float(evaluations), positive and gap < CLOSE_ENOUGH


@compiled
def fit_intensity(
    x: Vector, y: Vector, charge: Vector, circle: Vector, optics: Optics, n_free: int
) -> Fit:
    """Find the most likely impact, width and efficiency of a ring, and its circle if that is free.

    It has NaN where there was no light to begin with.
    """
    best = Fit(np.full(7, np.nan), np.full((7, 7), np.nan), np.nan, np.nan, 0.0, 0.0, False)
    distance, azimuth = np.empty(x.size), np.empty(x.size)
    guess = np.zeros(7)
    guess[4:7] = circle
    polar(x, y, guess, distance, azimuth)
    guess = first_guess(charge, distance, azimuth, circle, optics)
    if not math.isfinite(guess[0]):
        return best
    n_points = profile_points(circle[2], optics)
    contrast = math.hypot(guess[0], guess[1]) / optics.mirror_radius_m
    evaluations = 0.0
    starts = 4 if contrast < EVEN else 1
    scale = 0.9 / max(contrast, 1.0) * max(0.5 * EVEN / max(contrast, 1e-3), 1.0)
    for quarter in range(starts):
        start = guess.copy()
        sine, cosine = (0.0, 1.0, 0.0, -1.0)[quarter], (1.0, 0.0, -1.0, 0.0)[quarter]
        start[0] = scale * (cosine * guess[0] - sine * guess[1])
        start[1] = scale * (sine * guess[0] + cosine * guess[1])
        found, covariance, value, gap, n, converged = _climb(
            start, x, y, charge, n_points, optics, n_free
        )
        evaluations += n
        if not value >= best.negative_log_likelihood:
            best = Fit(found, covariance, value, gap, 0.0, 0.0, converged)
    polar(x, y, best.parameters, distance, azimuth)
    _, _, spread = likelihood(
        best.parameters, charge, distance, azimuth, n_points, optics, n_free, 1.0, 1.0
    )
    inverse = best.covariance[:n_free, :n_free].copy()
    for k in range(n_free):
        side = times(spread, inverse[k])
        for m in range(n_free):
            best.covariance[k, m] = dot(side, inverse[m])
    return Fit(
        best.parameters,
        best.covariance,
        best.negative_log_likelihood,
        best.distance,
        evaluations,
        float(starts),
        best.converged,
    )


@compiled
def average_over_hole(
    best: Fit, x: Vector, y: Vector, charge: Vector, optics: Optics, n_free: int
) -> Fit:
    """Average a ring over the places where its muon may have fallen, in and beside the hole.

    In the hole the light is all but even and does not tell the place, while the efficiency depends
    on it: the path is A - a in the middle and A - 2a/π in the mean at the edge of a hole of radius
    a, 3 % more in an LST. The maximum of the likelihood lies outside of the hole, where the first
    harmonic of chance is fitted, so the efficiency there is too low. The mean over all places,
    weighted with the likelihood, is right for muons that fall anywhere with equal probability.

    The places are a spiral of equal areas (H. Vogel, Math. Biosci. 44 (1979) 179). At each of them
    one step of Fisher scoring gives the other parameters and their likelihood.
    It returns means of the parameters, with the variance of those of all places in the covariance.
    The impact is that of the mean distance, in the direction of `best`. It is `best` itself where
    there is no hole, or that lies `HOLE_REACH` errors, or another radius, outside of it.
    """
    hole, n_other = optics.hole_radius_m, n_free - 2
    impact = math.hypot(best.parameters[0], best.parameters[1])
    cosine, sine = 1.0, 0.0
    if impact > 0.0:
        cosine, sine = best.parameters[0] / impact, best.parameters[1] / impact
    v = best.covariance
    error = math.sqrt(
        cosine * cosine * v[0, 0] + 2.0 * cosine * sine * v[0, 1] + sine * sine * v[1, 1]
    )
    beyond = min(HOLE_REACH * error, hole)
    if not (best.converged and impact < hole + beyond):
        return best
    reach = max(impact, hole) + beyond
    n_points = profile_points(best.parameters[6], optics)
    distance, azimuth = np.empty(x.size), np.empty(x.size)
    polar(x, y, best.parameters, distance, azimuth)
    found, values = np.empty((HOLE_POINTS, n_free)), np.empty(HOLE_POINTS)
    place = best.parameters.copy()
    for k in range(HOLE_POINTS):
        from_middle = reach * math.sqrt((k + 0.5) / HOLE_POINTS)
        place[0] = from_middle * math.cos(k * GOLDEN_ANGLE)
        place[1] = from_middle * math.sin(k * GOLDEN_ANGLE)
        value, gradient, information = likelihood(
            place, charge, distance, azimuth, n_points, optics, n_free, 1.0, 0.0
        )
        inverse, positive = invert(information[2:, 2:].copy())
        if not positive:
            return best
        step = times(inverse, gradient[2:])
        values[k] = value - 0.5 * dot(gradient[2:], step)
        # The mean distance, not the distance of the mean place, which is 0 in the hole.
        across = cosine * place[1] - sine * place[0]
        found[k, 0] = cosine * from_middle - sine * across
        found[k, 1] = sine * from_middle + cosine * across
        found[k, 2:] = place[2:n_free] - step
    weight = np.exp(values.min() - values)
    weight /= weight.sum()
    parameters = best.parameters.copy()
    for m in range(n_free):
        parameters[m] = dot(weight, found[:, m].copy())
        found[:, m] -= parameters[m]
    polar(x, y, parameters, distance, azimuth)
    value, _, information = likelihood(
        parameters, charge, distance, azimuth, n_points, optics, n_free, 1.0, 0.0
    )
    _, _, spread = likelihood(
        parameters, charge, distance, azimuth, n_points, optics, n_free, 1.0, 1.0
    )
    inverse, positive = invert(information[2:, 2:].copy())
    if not positive:
        return best
    covariance = np.zeros((7, 7))
    for m in range(n_free):
        weighted = weight * found[:, m]
        for j in range(n_free):
            covariance[m, j] = dot(weighted, found[:, j].copy())
    for m in range(n_other):
        side = times(spread[2:, 2:].copy(), inverse[m])
        for j in range(n_other):
            covariance[m + 2, j + 2] += dot(side, inverse[j])
    return Fit(
        parameters,
        covariance,
        value,
        best.distance,
        best.iterations + HOLE_POINTS,
        best.starts,
        best.converged,
    )
