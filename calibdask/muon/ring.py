"""The circle of a muon ring and what describes its light: pure maths on one image.

The method is that of ctapipe (`ctapipe.image.muon`, 0.32), so that rings are the same: a weighted
Taubin fit, which after each of three iterations is restricted to an annulus. What ctapipe finds
with a general minimiser has a closed form here.

Angles are in radian, in the telescope frame. Functions have these arguments in common:

x, y : array of float64, (P,)
    Pixels, in rad.
image : array of float64, (P,)
    Charges, in p.e.; NaN in pixels that are not to be used.
mask : array of bool, (P,)
    The cleaned pixels.
circle : Circle
    The ring.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

type Vector = NDArray[np.float64]
type Mask = NDArray[np.bool_]

__all__ = [
    "Circle",
    "Light",
    "completeness",
    "containment",
    "dot",
    "fit_ring",
    "invert",
    "light",
    "noise",
    "saturated",
    "tailcuts",
    "times",
]

N_ITERATIONS = 3
"""How often the circle is fitted, each time to the annulus around the circle before."""

ANNULUS = 0.4
"""Half width of the annulus, in radii."""

COMPLETENESS_BINS = 30
"""Segments of the ring for its completeness."""

MIN_DARK_PIXELS = 100
"""Fewest pixels off the ring in which the noise is measured."""

MAX_FRACTION_ZERO = 0.1
"""Where more of them read exactly 0, the noise was cut away before."""

MIN_EQUAL = 3
"""So many pixels that read the same largest charge, to the last bit, are saturated."""


class Circle(NamedTuple):
    """A fitted circle; everything NaN where there is none.

    Attributes
    ----------
    x, y : float
        Centre, in rad.
    radius : float
        Radius, in rad.
    x_err, y_err, radius_err : float
        Errors as ctapipe gives them: where the loss is 1 deg² p.e. above its minimum. The loss is
        no likelihood, so they compare rings and are not standard deviations.
    """

    x: float
    y: float
    radius: float
    x_err: float
    y_err: float
    radius_err: float


class Light(NamedTuple):
    """What describes the light of an image with a ring; the names are ctapipe's."""

    intensity_ratio: float  # of the cleaned light, how much falls on the ring
    mean_squared_error: float  # mean squared distance of the cleaned light from the circle, rad²
    ring_intensity: float  # light within the integration width of the ring, in p.e.
    intensity_outside_ring: float  # cleaned light outside of it, in p.e.
    n_pixels_in_ring: float  # cleaned pixels within the integration width
    mean_intensity_outside_ring: float  # light per pixel in the strips beside that width, in p.e.
    radial_std_dev: float  # standard deviation of the light's distance from the centre, in rad
    skewness: float  # its third standardised moment
    excess_kurtosis: float  # and its fourth, less 3


@compiled
def invert(matrix: Vector) -> tuple[Vector, bool]:
    """Invert a symmetric matrix, shape (n, n), by Cholesky's method.

    Without BLAS: for matrices this small it takes longer, to compile too, and bits depend on it.
    It returns the inverse, or NaN, and whether the matrix is positive definite, to working
    precision.
    """
    n = matrix.shape[0]
    scale = np.empty(n)
    for k in range(n):
        if not (matrix[k, k] > 0.0 and math.isfinite(matrix[k, k])):
            return np.full((n, n), np.nan), False
        scale[k] = 1.0 / math.sqrt(matrix[k, k])
    lower = np.zeros((n, n))
    for k in range(n):
        for m in range(k + 1):
            total = matrix[k, m] * scale[k] * scale[m]
            for j in range(m):
                total -= lower[k, j] * lower[m, j]
            if k == m:
                if not total > 1e-10:
                    return np.full((n, n), np.nan), False
                lower[k, k] = math.sqrt(total)
            else:
                lower[k, m] = total / lower[m, m]
    half = np.zeros((n, n))
    for k in range(n):
        half[k, k] = 1.0 / lower[k, k]
        for m in range(k):
            total = 0.0
            for j in range(m, k):
                total -= lower[k, j] * half[j, m]
            half[k, m] = total / lower[k, k]
    inverse = np.zeros((n, n))
    for k in range(n):
        for m in range(n):
            total = 0.0
            for j in range(max(k, m), n):
                total += half[j, k] * half[j, m]
            inverse[k, m] = total * scale[k] * scale[m]
    return inverse, True


@compiled
def dot(a: Vector, b: Vector) -> float:
    """Multiply two vectors."""
    total = 0.0
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@compiled
def times(matrix: Vector, vector: Vector) -> Vector:
    """Multiply a matrix with a vector."""
    product = np.empty(vector.size)
    for k in range(vector.size):
        product[k] = dot(matrix[k], vector)
    return product


@compiled
def taubin(x: Vector, y: Vector, image: Vector, mask: Mask) -> Circle:
    """Fit a circle to the pixels of a mask, weighted with their charge.

    The loss is Σ (w (d² - R²))² / Σ w d², with d the distance from the centre (G. Taubin, IEEE
    Trans. Pattern Anal. Mach. Intell. 13 (1991) 1115; weights as in ctapipe's
    `taubin_circle_fit`). For given centre the best R² is the mean of d² with weights w², so that
    numerator and denominator are quadratic forms of the centre alone. Their ratio λ is minimised by
    solving ∇N = λ ∇D for the centre, a linear system, and taking the λ of the solution
    (W. Dinkelbach, Manage. Sci. 13 (1967) 492): it converges quadratically, to the global minimum.

    The circle is NaN where the charges determine none.
    """
    none = Circle(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    # From here on relative to the centre of gravity: fourth moments lose digits far from it.
    total, x0, y0 = 0.0, 0.0, 0.0
    for i in range(x.size):
        if mask[i]:
            weight = image[i] * image[i]
            total += weight
            x0 += weight * x[i]
            y0 += weight * y[i]
    if not total > 0.0:
        return none
    x0 /= total
    y0 /= total
    s0, sx, sy, sz = 0.0, 0.0, 0.0, 0.0
    mz = 0.0
    for i in range(x.size):
        if mask[i]:
            u, v, w = x[i] - x0, y[i] - y0, image[i]
            z = u * u + v * v
            s0 += w
            sx += w * u
            sy += w * v
            sz += w * z
            mz += w * w * z
    mz /= total
    nxx, nxy, nyy, nxz, nyz, nzz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        if mask[i]:
            u, v, weight = x[i] - x0, y[i] - y0, image[i] * image[i]
            z = u * u + v * v - mz
            nxx += weight * u * u
            nxy += weight * u * v
            nyy += weight * v * v
            nxz += weight * u * z
            nyz += weight * v * z
            nzz += weight * z * z
    a, b, ratio = 0.0, 0.0, 0.0
    for _ in range(50):
        # ∇N = 8 M c - 4 m and ∇D = 2 s0 c - 2 s, with c = (a, b) the centre.
        hxx, hyy, hxy = 8.0 * nxx - 2.0 * ratio * s0, 8.0 * nyy - 2.0 * ratio * s0, 8.0 * nxy
        gx, gy = 4.0 * nxz - 2.0 * ratio * sx, 4.0 * nyz - 2.0 * ratio * sy
        determinant = hxx * hyy - hxy * hxy
        if not determinant > 1e-9 * hxx * hyy:  # pixels on a line
            return none
        a = (hyy * gx - hxy * gy) / determinant
        b = (hxx * gy - hxy * gx) / determinant
        numerator = nzz - 4.0 * (a * nxz + b * nyz)
        numerator += 4.0 * (a * a * nxx + 2.0 * a * b * nxy + b * b * nyy)
        denominator = s0 * (a * a + b * b) - 2.0 * (a * sx + b * sy) + sz
        if not denominator > 0.0:
            return none
        before = ratio
        ratio = numerator / denominator
        if abs(ratio - before) <= 1e-12 * abs(ratio):
            break
    else:
        return none
    radius = math.sqrt(mz + a * a + b * b)
    # Second derivatives of the loss at its minimum, where those of 1/D vanish with its gradient.
    h = np.zeros((3, 3))
    qa = nxx + total * a * a
    qb = nyy + total * b * b
    h[0, 0] = 8.0 * qa - 2.0 * ratio * s0
    h[1, 1] = 8.0 * qb - 2.0 * ratio * s0
    h[2, 2] = 8.0 * total * radius * radius
    h[0, 1] = h[1, 0] = 8.0 * (nxy + total * a * b)
    h[0, 2] = h[2, 0] = -8.0 * total * a * radius
    h[1, 2] = h[2, 1] = -8.0 * total * b * radius
    h /= 2.0 * denominator
    covariance, positive = invert(h)
    if not (positive and math.isfinite(radius)):
        return none
    # The loss has the unit of its coordinates squared, and ctapipe's are in degree.
    covariance *= math.radians(1.0) ** 2
    return Circle(
        x0 + a,
        y0 + b,
        radius,
        math.sqrt(covariance[0, 0]),
        math.sqrt(covariance[1, 1]),
        math.sqrt(covariance[2, 2]),
    )


@compiled
def fit_ring(x: Vector, y: Vector, image: Vector, mask: Mask) -> tuple[Circle, Mask]:
    """Fit the circle of a ring: first to the cleaned pixels, then twice to the annulus around it.

    It returns the circle, NaN where there is none, and a mask of the usable pixels around it.
    """
    annulus = mask & np.isfinite(image)
    circle = taubin(x, y, image, annulus)
    for iteration in range(N_ITERATIONS):
        if iteration:
            circle = taubin(x, y, image, annulus)
        for i in range(x.size):
            distance = math.hypot(x[i] - circle.x, y[i] - circle.y)
            near = abs(distance - circle.radius) < ANNULUS * circle.radius
            annulus[i] = near and math.isfinite(image[i])
    return circle, annulus


@compiled
def containment(distance: float, radius: float, fov_radius: float) -> float:
    """Return how much of a circle lies in a circular field of view.

    Two circles meet where cos α = (R² + d² - r²) / (2 d R), α seen from the centre of the ring and
    counted from the direction to the centre of the field.

    `distance` is that of the two centres. A ring around the whole field has nothing in it (ctapipe
    0.32 says 1).
    """
    if distance + radius <= fov_radius:
        return 1.0
    if radius >= distance + fov_radius or distance >= radius + fov_radius:
        return 0.0
    cosine = (radius**2 + distance**2 - fov_radius**2) / (2.0 * distance * radius)
    return math.acos(min(1.0, max(-1.0, cosine))) / math.pi


@compiled
def completeness(x: Vector, y: Vector, image: Vector, circle: Circle, threshold: float) -> float:
    """Return the fraction of 30 segments, seen from the ring's centre, that have enough light.

    A segment counts with more than `threshold`, in p.e.
    """
    charge = np.zeros(COMPLETENESS_BINS)
    for i in range(x.size):
        if math.isfinite(image[i]):
            angle = math.atan2(y[i] - circle.y, x[i] - circle.x)
            k = int((angle + math.pi) / (2.0 * math.pi) * COMPLETENESS_BINS)
            charge[min(k, COMPLETENESS_BINS - 1)] += image[i]
    n = 0
    for k in range(COMPLETENESS_BINS):
        if charge[k] > threshold:
            n += 1
    return n / COMPLETENESS_BINS


@compiled
def light(
    x: Vector,
    y: Vector,
    width: Vector,
    image: Vector,
    mask: Mask,
    circle: Circle,
    ratio_width: float,
    integration_width: float,
    outer_width: float,
) -> Light:
    """Describe the light of an image with a ring.

    Parameters
    ----------
    x, y, image, mask, circle
        See this module.
    width : array of float64, (P,)
        Widths of the pixels, in rad.
    ratio_width : float
        Width of the ring for `intensity_ratio`, in widths of a pixel.
    integration_width, outer_width : float
        Half width of the ring for its intensity, and width of each strip beside, in radii.

    Returns
    -------
    Light
        NaN where there is no light to divide by.
    """
    total, inside, squared = 0.0, 0.0, 0.0
    ring, outside, strip, n_ring, n_strip = 0.0, 0.0, 0.0, 0, 0
    s0, s1 = 0.0, 0.0
    distance = np.empty(x.size)
    for i in range(x.size):
        r = math.hypot(x[i] - circle.x, y[i] - circle.y)
        distance[i] = r
        charge = image[i]
        if not math.isfinite(charge):
            continue
        off = abs(r - circle.radius)
        on_ring = off < circle.radius * integration_width
        s0 += charge
        s1 += charge * r
        if on_ring:
            ring += charge
        elif off < circle.radius * (integration_width + outer_width):
            strip += charge
            n_strip += 1
        if mask[i]:
            total += charge
            squared += charge * off * off
            half = 0.5 * ratio_width * width[i]
            if circle.radius - half <= r <= circle.radius + half:
                inside += charge
            if on_ring:
                n_ring += 1
            else:
                outside += charge
    m2, m3, m4 = 0.0, 0.0, 0.0
    mean = s1 / s0
    for i in range(x.size):
        if math.isfinite(image[i]):
            d = distance[i] - mean
            m2 += image[i] * d * d
            m3 += image[i] * d * d * d
            m4 += image[i] * d * d * d * d
    variance = m2 / s0
    deviation = math.sqrt(variance) if variance > 0.0 else math.nan
    return Light(
        inside / total,
        squared / total,
        ring,
        outside,
        float(n_ring),
        strip / n_strip,
        deviation,
        m3 / s0 / deviation**3,
        m4 / s0 / deviation**4 - 3.0,
    )


@compiled
def noise(x: Vector, y: Vector, image: Vector, circle: Circle) -> float:
    """Measure the noise of a pixel off the ring: its standard deviation without outliers.

    In p.e., of the charges within 5 standard deviations of the median, which for this are taken
    from the quartiles. NaN where fewer than `MIN_DARK_PIXELS` lie off the annulus, or more than a
    tenth of them read exactly 0: they were set to 0.
    """
    dark = np.empty(x.size)
    n, n_zero = 0, 0
    for i in range(x.size):
        distance = math.hypot(x[i] - circle.x, y[i] - circle.y)
        if abs(distance - circle.radius) >= ANNULUS * circle.radius and math.isfinite(image[i]):
            dark[n] = image[i]
            n += 1
            n_zero += image[i] == 0.0
    if n < MIN_DARK_PIXELS or n_zero > MAX_FRACTION_ZERO * n:
        return math.nan
    dark = np.sort(dark[:n])
    median, reach = dark[n // 2], 5.0 / 1.349 * (dark[(3 * n) // 4] - dark[n // 4])
    total, squares, count = 0.0, 0.0, 0
    for i in range(n):
        off = dark[i] - median
        if abs(off) <= reach:
            total += off
            squares += off * off
            count += 1
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


@compiled
def saturated(charge: Vector, limit: float) -> int:
    """Count the pixels that read as much as they can.

    Of M charges on the ring, in p.e., it counts those at or above `limit` (0: not known), or those
    at the largest charge where they are at least `MIN_EQUAL`: measured charges are never equal to
    the last bit.
    """
    largest = charge.max()
    n_equal, n_above = 0, 0
    for i in range(charge.size):
        n_equal += charge[i] == largest
        n_above += charge[i] >= limit > 0.0
    return max(n_above, n_equal if n_equal >= MIN_EQUAL else 0)


@compiled
def tailcuts(
    image: NDArray[np.floating[Any]],
    neighbours: NDArray[np.integer[Any]],
    picture: float,
    boundary: float,
    min_neighbours: float,
) -> Mask:
    """Clean an image with two thresholds, as ctapipe's `tailcuts_clean` does.

    Parameters
    ----------
    image : array of float, (P,)
        NaN counts as dark.
    neighbours : array of int, (P, K)
        Neighbours of each pixel, filled up with -1.
    picture, boundary : float
        Thresholds, in p.e.
    min_neighbours : float
        Neighbours above `picture` that a pixel above it must have.

    Returns
    -------
    array of bool, (P,)
        The pixels kept: those in the picture beside one above `boundary`, and those above
        `boundary` beside the picture.
    """
    n, k = neighbours.shape
    in_picture = np.zeros(n, np.bool_)
    for i in range(n):
        if image[i] >= picture:
            count = 0
            for j in range(k):
                other = neighbours[i, j]
                if other >= 0 and image[other] >= picture:
                    count += 1
            in_picture[i] = count >= min_neighbours
    kept = np.zeros(n, np.bool_)
    for i in range(n):
        if image[i] >= boundary or in_picture[i]:
            beside_picture, beside_boundary = False, False
            for j in range(k):
                other = neighbours[i, j]
                if other >= 0:
                    beside_picture |= in_picture[other]
                    beside_boundary |= image[other] >= boundary
            kept[i] = (image[i] >= boundary and beside_picture) or (
                in_picture[i] and beside_boundary
            )
    return kept
