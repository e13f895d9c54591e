"""Photon transfer: gain and read noise from variance against signal, on arrays.

Signals are in DN above the bias, variances are unbiased and in DN^2; axis 0 has the levels.

References: EMVA Standard 1288, release 4.0 linear (2021); Janesick, Photon Transfer (SPIE 2007);
Astier et al. 2019, A&A 629, A36; Burggraaff et al. 2019, Opt. Express 27, 19075.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.sensor.model import Floats, Mask, fit_lines, variance_of_variance

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PtcFit", "fit_ptc", "full_well", "photon_transfer"]


@dataclass(frozen=True, slots=True, eq=False)
class PhotonTransfer:
    """Variance against signal, one line per pixel.

    Attributes
    ----------
    gain, gain_error : ndarray of float64
        K, DN/e-, and its standard error.
    floor, floor_error : ndarray of float64
        Variance at no signal, DN^2: read noise and rounding.
    chi2 : ndarray of float64
        Of the line.
    n_levels : ndarray of int64
        Levels used.
    """

    gain: Floats
    gain_error: Floats
    floor: Floats
    floor_error: Floats
    chi2: Floats
    n_levels: NDArray[np.int64]


def photon_transfer(
    signal: Floats,
    variance: Floats,
    n: NDArray[Any],
    good: Mask,
    noise: tuple[float, float],
    flicker2: ArrayLike = 0.0,
) -> PhotonTransfer:
    """Fit gain and read noise of each pixel (Janesick 2007, ch. 5; Burggraaff et al. 2019, eq. 5).

    Weights are 1/Var(s^2) of a noise model common to the pixels: a weight made of the pixel's own
    variances would draw the gain down, as the low ones would count most.

    Parameters
    ----------
    signal, variance : ndarray of float64, shape (n_levels, ...)
        DN above the bias, and unbiased variance, DN^2.
    n : ndarray of int, shape (n_levels, ...)
        Frames.
    good : ndarray of bool, shape (n_levels, ...)
        Points to use: not saturated, at least two frames.
    noise : tuple of float
        Floor and gain of the noise model, from `pool_noise`.
    flicker2 : array_like, shape (n_levels, 1, ...)
        Variance f^2 of the light from frame to frame, relative to its mean, that was taken out of
        `variance`. What it had in common with the pixel's own noise is still there, and adds
        4 f^2 S^2 sigma^2/(n - 1) to the variance of the variance.

    Returns
    -------
    PhotonTransfer
        NaN in pixels with fewer than two usable levels.
    """
    floor, gain = noise
    model = floor + gain * np.maximum(signal, 0.0)
    spread = variance_of_variance(model, n, gain, signal)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = spread + 4.0 * np.asarray(flicker2) * signal**2 * model / (n - 1.0)
        weight = np.where(good & (spread > 0), 1.0 / spread, 0.0)
    line = fit_lines(signal, variance, weight)
    return PhotonTransfer(
        line.slope,
        np.sqrt(line.slope_variance),
        line.intercept,
        np.sqrt(line.intercept_variance),
        line.chi2,
        line.n_points,
    )


@dataclass(frozen=True, slots=True)
class PtcFit:
    """The photon transfer curve of one channel.

    Attributes
    ----------
    gain, gain_error : float
        K, DN/e-.
    floor, floor_error : float
        Variance at no signal, DN^2.
    a00, a00_error : float
        Change of a pixel's area per electron collected (brighter-fatter effect), 1/e-: negative
        where charges repel. NaN for a straight line.
    chi2 : float
        Of the fit.
    ndf : int
        Its degrees of freedom.
    """

    gain: float
    gain_error: float
    floor: float
    floor_error: float
    a00: float
    a00_error: float
    chi2: float
    ndf: int


def _astier(parameters: Floats, signal: Floats) -> Floats:
    """Variance by Astier et al. 2019, eq. 16, for K = 1/g in DN/e-."""
    gain, floor, a00 = parameters
    electrons = signal / gain
    # (exp(2 a mu) - 1)/(2 a mu) without cancellation at small a.
    z = 2.0 * a00 * electrons
    small = np.abs(z) < 1e-8
    stretch = np.where(small, 1.0 + z / 2.0, np.expm1(z) / np.where(small, 1.0, z))
    result: Floats = gain**2 * electrons * stretch + floor
    return result


def fit_ptc(
    signal: Floats, variance: Floats, error: Floats, *, brighter_fatter: bool = False
) -> PtcFit:
    """Fit the photon transfer curve of a channel, from spatial means of signal and variance.

    Parameters
    ----------
    signal, variance, error : ndarray of float64, shape (n_levels,)
        Mean signal (DN), mean temporal variance (DN^2), and the latter's standard error.
    brighter_fatter : bool
        Fit Astier et al. 2019, eq. 16, C00 = (exp(2 a00 mu) - 1)/(2 a00) K^2 + n, instead of the
        line that it is for a00 = 0.

    Returns
    -------
    PtcFit
        Errors are scaled by sqrt(chi2/ndf) where that is above 1.

    Raises
    ------
    NotEnoughData
        Fewer levels than parameters.
    """
    n_parameters = 3 if brighter_fatter else 2
    n_levels = len(np.unique(signal))
    if n_levels < n_parameters:
        raise NotEnoughData(
            f"a photon transfer curve with {n_parameters} parameters needs as many levels of "
            f"light, there are {n_levels} usable ones"
        )
    line = fit_lines(signal, variance, 1.0 / error**2)
    start = np.array([float(line.slope), float(line.intercept), 0.0])
    ndf = len(signal) - n_parameters
    if not brighter_fatter or start[0] <= 0:
        scale = max(float(line.chi2) / ndf, 1.0) if ndf else 1.0
        return PtcFit(
            start[0],
            math.sqrt(scale * float(line.slope_variance)),
            start[1],
            math.sqrt(scale * float(line.intercept_variance)),
            math.nan,
            math.nan,
            float(line.chi2),
            ndf,
        )
    from scipy.optimize import least_squares

    # Of the order of one: a00 in units of 1/(largest number of electrons).
    unit = np.array([start[0], max(abs(start[1]), 1.0), start[0] / float(signal.max())])
    fit = least_squares(
        lambda p: (_astier(p * unit, signal) - variance) / error, start / unit, method="lm",
        xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    chi2 = 2.0 * float(fit.cost)
    scale = max(chi2 / ndf, 1.0) if ndf else 1.0
    spread = np.sqrt(scale * np.diag(np.linalg.inv(fit.jac.T @ fit.jac))) * np.abs(unit)
    gain, floor, a00 = (fit.x * unit).tolist()
    return PtcFit(gain, float(spread[0]), floor, float(spread[1]), a00, float(spread[2]), chi2, ndf)


def full_well(signal: Floats, variance: Floats, error: Floats) -> tuple[float, bool]:
    """Saturation as the maximum of the photon transfer curve (EMVA 1288, sec. 6.7).

    Parameters
    ----------
    signal, variance, error : ndarray of float64, shape (n_levels,)
        All levels, saturated ones included, in order of rising light.

    Returns
    -------
    signal_dn : float
        Signal at the level of largest variance, DN; NaN without levels.
    reached : bool
        Whether the variance falls beyond it, by more than three standard errors. Otherwise the
        full well lies higher, and `signal_dn` is a lower limit.
    """
    if not len(signal):
        return math.nan, False
    top = int(np.argmax(variance))
    fall = variance[top] - variance[top + 1 :]
    noise = np.hypot(error[top], error[top + 1 :])
    return float(signal[top]), bool(np.any(fall > 3.0 * noise))
