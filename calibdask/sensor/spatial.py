"""Maps in space, as pure maths: pixels against their neighbours, and vignetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import NotEnoughData

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "RadialModel",
    "block_means",
    "fit_radial",
    "local_response",
    "radial_blocks",
    "radial_gain",
    "steps_along",
    "within_range",
]

type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]


def radial_gain(r2: Floats, coefficients: Floats) -> Floats:
    """Correction for vignetting, g(r) = 1 + k0 r^2 + k1 r^4 + ... (Adobe DNG, FixVignetteRadial).

    Parameters
    ----------
    r2 : ndarray of float64
        Squared distance from the optical centre, in units of the distance of the farthest corner.
    coefficients : ndarray of float64, shape (n_terms,)
        k0, k1, ...: strongly degenerate. Compare maps, never coefficients.

    Returns
    -------
    ndarray of float64
        What the signal is to be multiplied with; 1 in the centre.
    """
    total = np.zeros_like(r2)
    for k in coefficients[::-1]:
        total = (total + k) * r2
    return total + 1.0


@dataclass(frozen=True, slots=True, eq=False)
class RadialModel:
    """Vignetting: signal = amplitude of the channel / g(r).

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the sensor.
    centre : ndarray of float64, shape (2,)
        Optical centre (x, y) as a fraction of width and height: pixel x lies at x/width, as
        SPECTACLE counts.
    centre_error : ndarray of float64, shape (2,)
        Standard errors.
    coefficients : ndarray of float64, shape (n_terms,)
        k0, k1, ... of `radial_gain`.
    amplitude : mapping of int to float
        Signal in the centre by channel, DN.
    covariance : ndarray of float64, shape (n_terms + 2, n_terms + 2)
        Of the coefficients and the centre.
    chi2 : float
        Of the blocks; with structure in the light or the lens it is large.
    ndf : int
        Degrees of freedom.
    r2_fitted : float
        Largest squared radius of a block in the fit: beyond, the model is extrapolated.
    """

    shape: tuple[int, int]
    centre: Floats
    centre_error: Floats
    coefficients: Floats
    amplitude: dict[int, float]
    covariance: Floats
    chi2: float
    ndf: int
    r2_fitted: float

    def radius2(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Squared radius of pixels in row y and column x."""
        return _radius2(np.asarray(y, np.float64), np.asarray(x, np.float64), self)

    def gain(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Correction g at row y and column x (arrays that broadcast)."""
        return radial_gain(self.radius2(y, x), self.coefficients)

    def gain_error(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Return the standard error of g, from the covariance of all parameters."""
        y, x = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(x, np.float64))
        r2, by_x, by_y = _radius2_slopes(y, x, self.shape, self.centre)
        slope = _radial_slope(r2, self.coefficients)
        terms = [r2 ** (k + 1) for k in range(len(self.coefficients))]
        gradient = np.stack([*terms, slope * by_x, slope * by_y], axis=-1)
        variance = np.einsum("...i,ij,...j->...", gradient, self.covariance, gradient)
        error: Floats = np.sqrt(np.maximum(variance, 0.0))
        return error


def _radius2(y: Floats, x: Floats, model: RadialModel) -> Floats:
    return _radius2_slopes(y, x, model.shape, model.centre)[0]


def _radius2_slopes(
    y: Floats, x: Floats, shape: tuple[int, int], centre: Floats
) -> tuple[Floats, Floats, Floats]:
    """Squared radius, and its derivatives by the centre's two fractions."""
    height, width = shape
    cx, cy = float(centre[0]), float(centre[1])
    far_x, far_y = max(cx, 1.0 - cx) * width, max(cy, 1.0 - cy) * height
    scale = far_x**2 + far_y**2
    dx, dy = x - cx * width, y - cy * height
    r2 = (dx**2 + dy**2) / scale
    # The farthest corner moves with the centre.
    grow_x = 2.0 * far_x * width * (1.0 if cx > 0.5 else -1.0)
    grow_y = 2.0 * far_y * height * (1.0 if cy > 0.5 else -1.0)
    by_x = (-2.0 * dx * width - r2 * grow_x) / scale
    by_y = (-2.0 * dy * height - r2 * grow_y) / scale
    return r2, by_x, by_y


def _radial_slope(r2: Floats, coefficients: Floats) -> Floats:
    """Differentiate g by r^2."""
    total = np.zeros_like(r2)
    for power in range(len(coefficients), 0, -1):
        total = total * r2 + power * coefficients[power - 1]
    return total


def local_response(
    signal: Floats, good: Mask, channel: NDArray[Any], block: int
) -> tuple[Floats, Floats]:
    """Compare each pixel with the plane through its neighbours of the same channel.

    A plane follows vignetting across a block; what is left of a pixel is its own response.

    Parameters
    ----------
    signal : ndarray of float64, shape (h, w)
        Signal above the bias, DN.
    good : ndarray of bool, shape (h, w)
        Pixels that make the planes.
    channel : ndarray of int, shape (h, w)
        Colour channel of each.
    block : int
        Rows and columns of a block.

    Returns
    -------
    deviation : ndarray of float64, shape (h, w)
        Signal/plane - 1, of bad pixels, too; NaN where a block has fewer than four good pixels of
        the channel.
    freedom : ndarray of float64, shape (h, w)
        Share of each good pixel in its block's degrees of freedom, (n - 3)/n: the expected
        square of a deviation is the variance times this. 0 elsewhere.
    """
    cell, n_cells, rows, columns = _block_cells(signal.shape, channel, block)
    use = good & np.isfinite(signal)
    inside, value = cell[use], signal[use]
    y, x = rows[use].astype(np.float64), columns[use].astype(np.float64)
    count = np.bincount(inside, minlength=n_cells)
    number = np.maximum(count, 1)

    def total(values: NDArray[Any]) -> Floats:
        result: Floats = np.bincount(inside, values, n_cells)
        return result

    centre_y, centre_x, centre = total(y) / number, total(x) / number, total(value) / number
    y, x, value = y - centre_y[inside], x - centre_x[inside], value - centre[inside]
    yy, xx, xy, ys, xs = (
        total(y * y),
        total(x * x),
        total(x * y),
        total(y * value),
        total(x * value),
    )
    determinant = yy * xx - xy * xy
    enough = (count >= 4) & (determinant > 1e-9 * yy * xx)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_y = np.where(enough, (ys * xx - xs * xy) / determinant, np.nan)
        by_x = np.where(enough, (xs * yy - ys * xy) / determinant, np.nan)
        plane = (
            centre[cell]
            + by_y[cell] * (rows - centre_y[cell])
            + by_x[cell] * (columns - centre_x[cell])
        )
        deviation = np.where(plane > 0, signal / plane - 1.0, np.nan)
    freedom = np.where(use & enough[cell], 1.0 - 3.0 / number[cell], 0.0)
    return deviation, freedom


def _block_cells(
    shape: tuple[int, ...], channel: NDArray[Any], block: int
) -> tuple[NDArray[Any], int, NDArray[Any], NDArray[Any]]:
    """Return the block cell of each pixel, the number of cells, and rows and columns."""
    height, width = shape
    rows, columns = np.indices((height, width))
    n_across = -(-width // block)
    cell = (rows // block * n_across + columns // block) * 4 + channel
    return cell, -(-height // block) * n_across * 4, rows, columns


def block_means(values: Floats, good: Mask, channel: NDArray[Any], block: int) -> Floats:
    """Return each pixel the mean of the good ones of its channel in its block; NaN without any.

    Parameters
    ----------
    values : ndarray of float64, shape (h, w)
        A map.
    good : ndarray of bool, shape (h, w)
        Pixels that count.
    channel : ndarray of int, shape (h, w)
        Colour channel of each.
    block : int
        Rows and columns of a block.
    """
    cell, n_cells, _, _ = _block_cells(values.shape, channel, block)
    count = np.bincount(cell[good], minlength=n_cells)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(cell[good], values[good], n_cells) / count
    spread: Floats = mean[cell]
    return spread


def within_range(
    mean: Floats,
    variance: Floats,
    good: Mask,
    channel: NDArray[Any],
    limits: tuple[float, float],
    block: int,
    n_sigma: float = 3.0,
) -> tuple[Mask, Mask]:
    """Find where the noise is cut off by the ends of the converter, by blocks of pixels.

    Whole blocks are taken or left: to leave out the single pixels that reached an end in some frame
    would leave out those with upward noise, and what is left would be low by parts in a thousand.

    Parameters
    ----------
    mean, variance : ndarray of float64, shape (h, w)
        Of each pixel over the frames, DN and DN^2.
    good : ndarray of bool, shape (h, w)
        Pixels that count.
    channel : ndarray of int, shape (h, w)
        Colour channel of each.
    limits : tuple of float
        Lowest and highest value of the converter, DN.
    block : int
        Rows and columns of a block.
    n_sigma : float
        Distance that the mean of a block must keep from the limits, in standard deviations of
        noise and pixels together.

    Returns
    -------
    low, high : ndarray of bool, shape (h, w)
        Where the noise reaches the lower and the upper limit.
    """
    cell, n_cells, _, _ = _block_cells(mean.shape, channel, block)
    inside = cell[good]
    number = np.maximum(np.bincount(inside, minlength=n_cells), 1)
    centre = np.bincount(inside, mean[good], n_cells) / number
    spread = np.bincount(inside, variance[good], n_cells) / number
    spread += np.bincount(inside, (mean[good] - centre[inside]) ** 2, n_cells) / number
    reach = n_sigma * np.sqrt(spread)
    return (centre - reach <= limits[0])[cell], (centre + reach >= limits[1])[cell]


def steps_along(
    value: Floats, error: Floats, *, n_sigma: float = 8.0, least: float = 0.005, margin: int = 8
) -> list[int]:
    """Find where a profile jumps: the seams between amplifiers.

    A step at each place is fitted together with a parabola, which takes what changes smoothly; of
    the steps that stand out by `n_sigma` the largest cuts the profile, and both parts are searched
    again.

    Parameters
    ----------
    value, error : ndarray of float64, shape (n,)
        The profile; NaN where there is nothing.
    n_sigma : float
        Standard errors that a step must have.
    least : float
        Size that it must have, relative to the mean of the profile.
    margin : int
        Points that each part must have.

    Returns
    -------
    list of int
        First point of each part but the first, rising.
    """
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    if np.count_nonzero(known) < 2 * margin:
        return []
    place = np.flatnonzero(known)
    weight = 1.0 / error[known] ** 2
    u = np.linspace(-1.0, 1.0, len(place))
    # Weighted Gram-Schmidt: what is left of each step, and of the profile, beside the parabola.
    root = np.sqrt(weight)
    basis, _ = np.linalg.qr(np.stack([np.ones_like(u), u, u * u], axis=1) * root[:, None])
    rest = value[known] * root
    rest = (rest - basis @ (basis.T @ rest)) * root
    # Sums over all points from one on.
    behind = np.cumsum(rest[::-1])[::-1]
    shares = np.cumsum((basis * root[:, None])[::-1], axis=0)[::-1]
    freedom = np.cumsum(weight[::-1])[::-1] - (shares**2).sum(axis=1)
    inner = slice(margin, len(place) - margin + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where(freedom > 0, np.abs(behind) / np.sqrt(freedom), 0.0)[inner]
        size = np.where(freedom > 0, np.abs(behind) / freedom, 0.0)[inner]
    if not strength.size:
        return []
    best = int(np.argmax(strength))
    mean = abs(float(np.average(value[known], weights=weight)))
    if strength[best] < n_sigma or size[best] < least * mean:
        return []
    seam = int(place[best + margin])
    options = {"n_sigma": n_sigma, "least": least}
    left = steps_along(value[:seam], error[:seam], margin=margin, **options)
    right = steps_along(value[seam:], error[seam:], margin=margin, **options)
    return [*left, seam, *(seam + one for one in right)]


def radial_blocks(
    signal: Floats,
    variance: Floats,
    good: Mask,
    channel: NDArray[Any],
    corner: tuple[int, int],
    block: int,
) -> Floats:
    """Average a map over blocks of one channel each, for the radial fit.

    The mean square distance of the pixels from their centroid is kept: a block's mean squared
    radius is that of its centroid plus this number, which takes out most of the curvature of the
    model within a block.

    Parameters
    ----------
    signal, variance : ndarray of float64, shape (h, w)
        Signal above the bias and the variance of its mean, DN and DN^2.
    good : ndarray of bool, shape (h, w)
        Pixels to use.
    channel : ndarray of int, shape (h, w)
        Colour channel of each.
    corner : tuple of int
        Row and column of the first pixel in the sensor.
    block : int
        Rows and columns of a block.

    Returns
    -------
    ndarray of float64, shape (n_blocks, 7)
        Channel, row, column, mean square distance (px^2), signal, its variance, pixels.
    """
    cell, n_cells, rows, columns = _block_cells(signal.shape, channel, block)
    use = good & np.isfinite(signal) & (variance > 0)
    cell, y, x = cell[use], rows[use] + float(corner[0]), columns[use] + float(corner[1])
    count = np.bincount(cell, minlength=n_cells)
    number = np.maximum(count, 1)

    def mean(values: NDArray[Any]) -> Floats:
        result: Floats = np.bincount(cell, values, n_cells) / number
        return result

    mean_y, mean_x = mean(y), mean(x)
    spread = mean((y - mean_y[cell]) ** 2 + (x - mean_x[cell]) ** 2)
    noise = mean(variance[use]) / number
    channels = np.arange(n_cells) % 4
    blocks = np.stack([channels, mean_y, mean_x, spread, mean(signal[use]), noise, count], axis=1)
    return blocks[count > 0].astype(np.float64)


def fit_radial(
    blocks: Floats, shape: tuple[int, int], *, n_terms: int = 5, border: float = 0.0,
    pixel_scatter: float = 0.0, lit: tuple[int, int, int, int] | None = None,
) -> RadialModel:  # fmt: skip
    """Fit vignetting to block means by least squares, with an analytic gradient.

    Parameters
    ----------
    blocks : ndarray of float64, shape (n_blocks, 7)
        From `radial_blocks`, of all tiles.
    shape : tuple of int
        Rows and columns of the sensor.
    n_terms : int
        Terms of g(r).
    border : float
        Fraction of the lit part's height and width left out of the fit on each side.
    pixel_scatter : float
        Relative scatter of the pixels' response (PRNU): adds to the variance of a block.
    lit : tuple of int, optional
        First row and column of the lit part, and those behind the last; all unless given.

    Returns
    -------
    RadialModel

    Raises
    ------
    NotEnoughData
        Fewer blocks than parameters.
    """
    from scipy.optimize import least_squares

    height, width = shape
    channel, y, x, spread, value, variance, count = blocks.T
    top, left, bottom, right = lit or (0, 0, height, width)
    inside = value > 0
    for place, first, size in ((y, top, bottom - top), (x, left, right - left)):
        inside &= (place - first >= border * size) & (place - first <= (1 - border) * size - 1)
    blocks = blocks[inside]
    channel, y, x, spread, value, variance, count = blocks.T
    names = np.unique(channel).astype(int).tolist()
    n_parameters = n_terms + 2 + len(names)
    if len(value) <= n_parameters:
        raise NotEnoughData(
            f"a radial flat field with {n_parameters} parameters cannot be fitted to"
            f" {len(value)} blocks of pixels with signal: take smaller blocks (block_size), a"
            " smaller border, or fewer terms"
        )
    member = channel[:, None] == np.array(names)
    start_amplitude = np.array([np.max(value[one]) for one in member.T])
    weight = 1.0 / np.sqrt(variance + (pixel_scatter * value) ** 2 / count)

    def spread_r2(r2: Floats, centre: Floats) -> Floats:
        far_x = float(max(centre[0], 1 - centre[0])) * width
        far_y = float(max(centre[1], 1 - centre[1])) * height
        return r2 + np.asarray(spread) / (far_x**2 + far_y**2)

    def unpack(p: Floats) -> tuple[Floats, Floats, Floats]:
        return p[:n_terms], p[n_terms : n_terms + 2], p[n_terms + 2 :] * start_amplitude

    def residuals(p: Floats) -> Floats:
        k, centre, amplitude = unpack(p)
        r2, _, _ = _radius2_slopes(y, x, shape, centre)
        model = member @ amplitude / radial_gain(spread_r2(r2, centre), k)
        return np.asarray((model - value) * weight)

    def jacobian(p: Floats) -> Floats:
        k, centre, amplitude = unpack(p)
        r2, by_x, by_y = _radius2_slopes(y, x, shape, centre)
        r2 = spread_r2(r2, centre)
        g = radial_gain(r2, k)
        by_g = -(member @ amplitude) / g**2
        slope = _radial_slope(r2, k)
        parts = [by_g * r2 ** (i + 1) for i in range(n_terms)]
        parts += [by_g * slope * by_x, by_g * slope * by_y]
        shares = (member * start_amplitude / g[:, None]).T
        return np.asarray(np.stack([*parts, *shares], axis=1) * weight[:, None])

    # First a parabola: from a flat start the centre has no slope.
    middle = [(left + right) / 2 / width, (top + bottom) / 2 / height]
    start = np.concatenate([[0.5], np.zeros(n_terms - 1), middle, np.ones(len(names))])
    fit = least_squares(
        residuals, start, jac=jacobian, method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    k, centre, amplitude = unpack(fit.x)
    chi2, ndf = 2.0 * float(fit.cost), len(value) - n_parameters
    normal = fit.jac.T @ fit.jac
    # Degenerate coefficients: the pseudo-inverse keeps what the data say.
    covariance = np.linalg.pinv(normal, rcond=1e-14, hermitian=True)[: n_terms + 2, : n_terms + 2]
    covariance = covariance * max(chi2 / ndf, 1.0)
    r2, _, _ = _radius2_slopes(y, x, shape, centre)
    return RadialModel(
        (height, width),
        centre.copy(),
        np.sqrt(np.diag(covariance)[n_terms:]),
        k.copy(),
        dict(zip(names, amplitude.tolist(), strict=True)),
        covariance,
        chi2,
        ndf,
        float(r2.max()),
    )
