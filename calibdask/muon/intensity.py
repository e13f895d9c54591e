"""The light of a muon ring: predicted image and likelihood. Pure maths.

The model is that of G. Vacanti et al., Astropart. Phys. 2 (1994) 1, as reviewed by M. Gaug et al.,
ApJS 243 (2019) 11 (arXiv:1904.09816): light along a chord of the mirror, on a circle blurred by an
isotropic Gaussian. There are two forms of it.

* The exact one: the light per area, times the area of the pixel. A ring of radius R that is
  blurred by σ along each axis has at the distance r from its centre the light per area
  ρ/(2πσ²) exp(-(r² + R²)/(2σ²)) ∫ exp(rR cos φ/σ²) dφ = ρ/σ² exp(-(r - R)²/(2σ²)) e⁻ᶻ I₀(z) with
  z = rR/σ² and ρ the light per azimuth; e⁻ᶻ I₀(z) ≈ (1 + 1/(8z))/√(2πz) (M. Abramowitz &
  I. Stegun 1964, eq. 9.7.1). The blur along the circle smooths ρ by the variance σ²/R². A pixel
  counts as the square with the same second moments.
* That of ctapipe 0.32, whose predicted image and likelihood are the same numbers: Gaussian in
  r - R, no blur along the circle, and a factor for the shape of pixels that is not their area.

Angles are in radian in the telescope frame; lengths on the mirror in m.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

type Vector = NDArray[np.float64]

__all__ = ["Optics", "chord", "likelihood", "photons_per_m", "polar", "predict", "profile_points"]

ALPHA = 0.0072973525643
"""Fine-structure constant (CODATA 2022)."""

REACH = 7.0
"""Widths of the ring off its circle beyond which there is no light: 1e-12 of it."""


class Optics(NamedTuple):
    """What the model must know of a telescope, as floats.

    Attributes
    ----------
    mirror_radius_m : float
        Radius of the circle of the mirror's area.
    hole_radius_m : float
        Radius of the hole in it, or of the camera's shadow; 0 for none.
    pixel_width_rad : float
        Extent of a pixel across the ring: √12 times the standard deviation of its area along an
        axis. In ctapipe's form its flat-to-flat distance, side or diameter.
    pixel_length_rad : float
        Extent along the ring: area over `pixel_width_rad`. In ctapipe's form `pixel_width_rad`
        times the area of the circle in a pixel over that of the pixel (π/(2√3) for hexagons, π/4
        for squares, 1 for circles).
    min_wavelength_m, max_wavelength_m : float
        Range of the Cherenkov light that is counted.
    oversampling : float
        Points of the azimuth profile per pixel on the ring.
    pedestal : float
        Standard deviation of the noise in a pixel, in p.e.
    spe_width : float
        Standard deviation of the charge of one photoelectron, in p.e.
    of_ctapipe : float
        1 for ctapipe's form of the model, 0 for the exact one.
    """

    mirror_radius_m: float
    hole_radius_m: float
    pixel_width_rad: float
    pixel_length_rad: float
    min_wavelength_m: float
    max_wavelength_m: float
    oversampling: float
    pedestal: float
    spe_width: float
    of_ctapipe: float


@compiled
def _half_chord(q: float, radius: float) -> float:
    square = radius * radius - q * q
    return math.sqrt(square) if square > 0.0 else 0.0


@compiled
def chord(
    q: float, c: float, distance: float, radius: float, step: float
) -> tuple[float, float, float]:
    """Return the chord of the mirror seen from the impact of a muon, and its derivatives.

    With h = √(A² - q²) it is h + c from an impact inside of the circle of radius A, and 2h if c > 0
    from one outside (Vacanti et al. 1994, eq. 6 and 7).

    Parameters
    ----------
    q, c : float
        Coordinates of the impact across the direction of the light and along it, in m.
    distance : float
        Distance of the impact from the centre, √(q² + c²).
    radius : float
        Radius A of the circle.
    step : float
        Half width in q over which the derivative of h is averaged; 0 for the derivative itself,
        which is infinite at the edge |q| = A.

    Returns
    -------
    length, d_q, d_c : float
        Path and its derivatives by q and c.
    """
    h = _half_chord(q, radius)
    if step > 0.0:
        slope = (_half_chord(q + step, radius) - _half_chord(q - step, radius)) / (2.0 * step)
    else:
        slope = -q / h if h > 0.0 else 0.0
    if distance <= radius:
        return h + c, slope, 1.0
    if c > 0.0:
        return 2.0 * h, 2.0 * slope, 0.0
    return 0.0, 0.0, 0.0


@compiled
def profile_points(radius: float, optics: Optics) -> int:
    """Return the number of points around a ring, as ctapipe's `create_profile` has them."""
    n_pixels = int(2.0 * math.pi * radius / optics.pixel_width_rad)
    return n_pixels * int(optics.oversampling)


@compiled
def _paths(
    impact_x: float, impact_y: float, n: int, delta: float, optics: Optics, smoothing: float
) -> Vector:
    """Return the path of light on the mirror at n azimuths from -π on: P, ∂P/∂x, ∂P/∂y, (3, n)."""
    distance = math.hypot(impact_x, impact_y)
    # A point moves across the edge of a circle by a square root, and the likelihood has a cusp
    # there. The mean of the derivative over the spacing of the points knows no cusps.
    step = smoothing * 0.5 * delta * distance
    path = np.empty((3, n))
    for k in range(n):
        angle = -math.pi + k * delta
        sine, cosine = math.sin(angle), math.cos(angle)
        q = impact_x * sine - impact_y * cosine
        c = impact_x * cosine + impact_y * sine
        length, by_q, by_c = chord(q, c, distance, optics.mirror_radius_m, step)
        if optics.hole_radius_m > 0.0:
            hole, hole_q, hole_c = chord(q, c, distance, optics.hole_radius_m, step)
            length -= hole
            by_q -= hole_q
            by_c -= hole_c
        path[0, k] = length
        path[1, k] = by_q * sine + by_c * cosine
        path[2, k] = -by_q * cosine + by_c * sine
    return path


@compiled
def _profile(parameters: Vector, n: int, optics: Optics, smoothing: float) -> Vector:
    """Return the smoothed chord by azimuth: P, ∂P/∂x, ∂P/∂y and ∂P/∂(variance), (n, 4).

    It is smoothed by a Gaussian whose variance is that of the blur and of a pixel along the ring,
    less that of the spline between the points (`_expected`). In ctapipe's form (`create_profile`)
    the points are others, and it is smoothed by the mean over a pixel.
    """
    smooth = np.zeros((n, 4))
    if optics.of_ctapipe > 0.0:
        path = _paths(parameters[0], parameters[1], n, 2.0 * math.pi / (n - 1), optics, smoothing)
        oversampling = int(optics.oversampling)
        first = oversampling // 2
        for k in range(n):
            for j in range(oversampling):
                other = (k - first + j) % n
                for m in range(3):
                    smooth[k, m] += path[m, other]
            for m in range(3):
                smooth[k, m] /= oversampling
        return smooth
    delta = 2.0 * math.pi / n
    path = _paths(parameters[0], parameters[1], n, delta, optics, smoothing)
    variance, is_least = _variance(parameters, n, optics)
    reach = min(math.ceil(4.5 * math.sqrt(variance) / delta), n // 2)
    weight, by_variance = np.empty(reach + 1), np.empty(reach + 1)
    total, second = 0.0, 0.0
    for j in range(reach + 1):
        square = (j * delta) ** 2 / (2.0 * variance)
        weight[j] = math.exp(-square) * (0.5 if j == 0 else 1.0)
        total += 2.0 * weight[j]
        second += 2.0 * weight[j] * square
    for j in range(reach + 1):
        weight[j] /= total
        square = (j * delta) ** 2 / (2.0 * variance)
        by_variance[j] = 0.0 if is_least else weight[j] * (square - second / total) / variance
    padded = np.empty((3, n + 2 * reach))
    for m in range(3):
        for k in range(n + 2 * reach):
            padded[m, k] = path[m, (k - reach) % n]
    sums = np.zeros((4, n))
    for j in range(reach + 1):
        for m in range(3):
            for k in range(n):
                sums[m, k] += weight[j] * (padded[m, k + reach + j] + padded[m, k + reach - j])
        for k in range(n):
            sums[3, k] += by_variance[j] * (padded[0, k + reach + j] + padded[0, k + reach - j])
    for m in range(4):
        for k in range(n):
            smooth[k, m] = sums[m, k]
    return smooth


@compiled
def _variance(parameters: Vector, n: int, optics: Optics) -> tuple[float, bool]:
    """Return the variance in azimuth by which the profile is smoothed, besides the spline's.

    And tell whether it is the least, half the spacing squared: points show no narrower Gaussian.
    """
    square = parameters[2] ** 2 + optics.pixel_width_rad**2 / 12.0
    delta = 2.0 * math.pi / n
    variance, least = square / parameters[6] ** 2 - delta**2 / 4.0, delta**2 / 2.0
    return max(variance, least), variance < least


@compiled
def photons_per_m(radius: float, optics: Optics) -> float:
    """Return the photons in a pixel on the ring per m of path.

    Cherenkov light of a charge e per unit of path and azimuth is α/(2π) sin(2θ) (1/λ₁ - 1/λ₂)
    after the projection of the mirror (Vacanti et al. 1994; the 2π cancel out).
    """
    wavelengths = 1.0 / optics.min_wavelength_m - 1.0 / optics.max_wavelength_m
    return ALPHA * wavelengths * (optics.pixel_length_rad / radius) * 0.5 * math.sin(2.0 * radius)


@compiled
def _expected(
    distance: float,
    azimuth: float,
    parameters: Vector,
    profile: Vector,
    photons: float,
    optics: Optics,
    n_free: int,
    d: Vector,
) -> float:
    """Return the expected charge of a pixel, and write its first `n_free` derivatives into `d`.

    Between the points of the profile runs a quadratic spline, so that the derivatives by the centre
    have no jumps; in ctapipe's form a straight line.
    """
    width, efficiency, radius = parameters[2], parameters[3], parameters[6]
    half = 0.5 * optics.pixel_width_rad
    if abs(distance - radius) > half + REACH * width:
        for m in range(n_free):
            d[m] = 0.0
        return 0.0
    n = profile.shape[0]
    if optics.of_ctapipe > 0.0:
        per_angle = (n - 1) / (2.0 * math.pi)
        place = (azimuth + math.pi) * per_angle
        k = min(max(int(place), 0), n - 2)
        t = place - k
        before, left, right = k, 1.0 - t, t
        here, after, middle = k, k + 1, 0.0
        slope_left, slope_middle, slope_right = -1.0, 0.0, 1.0
    else:
        per_angle = n / (2.0 * math.pi)
        place = (azimuth + math.pi) * per_angle
        k = int(place + 0.5)
        t = place - k
        before, here, after = (k - 1) % n, k % n, (k + 1) % n
        left, middle, right = 0.5 * (0.5 - t) ** 2, 0.75 - t * t, 0.5 * (0.5 + t) ** 2
        slope_left, slope_middle, slope_right = t - 0.5, -2.0 * t, t + 0.5
    p = left * profile[before, 0] + middle * profile[here, 0] + right * profile[after, 0]
    # The part of the ring's radial profile that falls into the pixel.
    root = 1.0 / (math.sqrt(2.0) * width)
    outer = (distance + half - radius) * root
    inner = (distance - half - radius) * root
    part = 0.5 * (math.erf(outer) - math.erf(inner))
    scale = photons * efficiency
    excess = 0.0
    if optics.of_ctapipe == 0.0:
        # Of the light per area; pixels far inside of the ring have none.
        r = max(distance, 0.1 * radius)
        excess = width * width / (8.0 * r * radius)
        scale *= math.sqrt(radius / r) * (1.0 + excess)
    mu: float = scale * p * part
    if n_free == 0:
        return mu
    px = left * profile[before, 1] + middle * profile[here, 1] + right * profile[after, 1]
    py = left * profile[before, 2] + middle * profile[here, 2] + right * profile[after, 2]
    pv = left * profile[before, 3] + middle * profile[here, 3] + right * profile[after, 3]
    density = 1.0 / (math.sqrt(2.0 * math.pi) * width)
    at_outer = math.exp(-outer * outer) * density
    at_inner = math.exp(-inner * inner) * density
    relative = excess / (1.0 + excess)
    d[0] = scale * px * part
    d[1] = scale * py * part
    d[2] = -scale * p * (outer * at_outer - inner * at_inner) * math.sqrt(2.0)
    d[2] += 2.0 * mu * relative / width + scale * part * pv * 2.0 * width / radius**2
    d[3] = mu / efficiency
    if n_free > 4:
        outwards = scale * p * (at_outer - at_inner)
        by_distance, by_radius = outwards, mu * (2.0 / math.tan(2.0 * radius) - 1.0 / radius)
        by_radius -= outwards
        if optics.of_ctapipe == 0.0:
            by_distance -= mu * (0.5 + relative) / distance
            by_radius += mu * (0.5 - relative) / radius
            square = width * width + optics.pixel_width_rad**2 / 12.0
            by_radius -= scale * part * pv * 2.0 * square / radius**3
        rise = slope_left * profile[before, 0] + slope_middle * profile[here, 0]
        rise += slope_right * profile[after, 0]
        around = scale * part * rise * per_angle / distance
        sine, cosine = math.sin(azimuth), math.cos(azimuth)
        d[4] = -cosine * by_distance + sine * around
        d[5] = -sine * by_distance - cosine * around
        d[6] = by_radius
    return mu


@compiled
def polar(x: Vector, y: Vector, parameters: Vector, distance: Vector, azimuth: Vector) -> None:
    """Put pixels into polar coordinates about the centre of the ring, in place."""
    for i in range(x.size):
        dx, dy = x[i] - parameters[4], y[i] - parameters[5]
        distance[i] = math.hypot(dx, dy)
        azimuth[i] = math.atan2(dy, dx)


@compiled
def likelihood(
    parameters: Vector,
    charge: Vector,
    distance: Vector,
    azimuth: Vector,
    n_points: int,
    optics: Optics,
    n_free: int,
    smoothing: float,
    poisson: float,
) -> tuple[float, Vector, Vector]:
    """Return the negative log-likelihood of a ring, its gradient and the information matrix.

    A charge s has the variance V = σ² + μ (1 + σ₁²) about the prediction μ, with the pedestal σ and
    the width σ₁ of one photoelectron. The Gaussian approximation of its likelihood is
    ½ ln(2πV) + (s - μ)²/(2V) (M. de Naurois & L. Rolland, Astropart. Phys. 32 (2009) 231, between
    eq. 24 and 25), and its information on μ is 1/V + ½ (V'/V)².

    Parameters
    ----------
    parameters : array of float64, (7,)
        Impact x and y, in m; width of the ring, in rad; optical efficiency; centre x and y and
        radius of the ring, in rad.
    charge : array of float64, (M,)
        Pixels in the annulus, in p.e.
    distance, azimuth : array of float64, (M,)
        Polar coordinates of these pixels about the centre of the ring, in rad (`polar`).
    n_points : int
        Points of the azimuth profile (`profile_points`).
    optics : Optics
        The telescope.
    n_free : int
        4 or 7: how many of the parameters the derivatives are for.
    smoothing : float
        1 for derivatives by the impact that are means over the spacing of the azimuth profile, 0
        for the derivatives themselves.
    poisson : float
        0 for the information; 1 for the covariance of the gradient where charges are Poisson sums,
        not Gaussian. It exceeds the information by their third and fourth cumulant,
        κ₃ = μ (1 + 3σ₁²) and κ₄ = μ (1 + 6σ₁² + 3σ₁⁴), which enter as V' κ₃/V³ + V'² κ₄/(4V⁴).

    Returns
    -------
    value : float
        Negative log-likelihood.
    gradient : array of float64, (n_free,)
        Its derivatives.
    information : array of float64, (n_free, n_free)
        Fisher information, or the covariance of the gradient.
    """
    profile = _profile(parameters, n_points, optics, smoothing)
    photons = photons_per_m(parameters[6], optics)
    noise = optics.pedestal**2
    square = optics.spe_width**2
    per_pe = 1.0 + square
    third, fourth = 1.0 + 3.0 * square, 1.0 + 6.0 * square + 3.0 * square**2

    logarithms, value, product = 0.0, 0.0, 1.0
    gradient = np.zeros(n_free)
    matrix = np.zeros((n_free, n_free))
    d = np.empty(7)
    for i in range(charge.size):
        mu = _expected(distance[i], azimuth[i], parameters, profile, photons, optics, n_free, d)
        variance = noise + mu * per_pe
        residual = charge[i] - mu
        weight = 1.0 / variance
        product *= variance
        if product > 1e200 or product < 1e-200:
            logarithms += math.log(product)
            product = 1.0
        pull = residual * weight
        value += 0.5 * residual * pull
        slope = 0.5 * per_pe * weight - pull - 0.5 * per_pe * pull * pull
        relative = per_pe * weight
        information = weight + 0.5 * relative**2
        information += poisson * mu * relative * weight**2 * (third + 0.25 * relative * fourth)
        for m in range(n_free):
            gradient[m] += slope * d[m]
            weighted = information * d[m]
            for j in range(m + 1):
                matrix[m, j] += weighted * d[j]
    logarithms += math.log(product) + charge.size * math.log(2.0 * math.pi)
    for m in range(n_free):
        for j in range(m):
            matrix[j, m] = matrix[m, j]
    return value + 0.5 * logarithms, gradient, matrix


@compiled
def predict(
    parameters: Vector, distance: Vector, azimuth: Vector, n_points: int, optics: Optics
) -> Vector:
    """Return the predicted image of a ring.

    Parameters
    ----------
    parameters, distance, azimuth, n_points, optics
        As for `likelihood`.

    Returns
    -------
    array of float64, (M,)
        Expected charges, in p.e.
    """
    profile = _profile(parameters, n_points, optics, 0.0)
    photons = photons_per_m(parameters[6], optics)
    unused = np.empty(0)
    image = np.empty(distance.size)
    for i in range(distance.size):
        image[i] = _expected(
            distance[i], azimuth[i], parameters, profile, photons, optics, 0, unused
        )
    return image
