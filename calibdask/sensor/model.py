"""Sensor calibration from the moments of frame stacks: the formulas, on arrays.

Signals are in DN above the bias unless said otherwise, variances are unbiased (divisor n - 1) and
in DN^2. Arrays "by level" have the exposures, illumination levels or ISO speeds along axis 0 and
any pixel shape behind; a `good` mask of the same shape says which points a fit may use.

References: EMVA Standard 1288, release 4.0 linear (2021); Janesick, Photon Transfer (SPIE 2007);
Astier et al. 2019, A&A 629, A36; Burggraaff et al. 2019, Opt. Express 27, 19075.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibdask.errors import NotEnoughData

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BOLTZMANN_EV",
    "PIXEL_FLAGS",
    "QUANTISATION_VARIANCE",
    "EmvaPoints",
    "IsoCurve",
    "Lines",
    "PtcFit",
    "RadialModel",
    "SpatialSums",
    "TemperatureLaw",
    "chi2_probability",
    "dark_current",
    "emva1288",
    "fit_iso_curve",
    "fit_lines",
    "fit_ptc",
    "fit_radial",
    "fit_temperature",
    "full_well",
    "hot_pixels",
    "iso_ratios",
    "local_response",
    "photon_transfer",
    "pixel_flag",
    "pool_noise",
    "radial_blocks",
    "radial_gain",
    "read_noise",
    "robust_centre",
    "spatial_variance",
    "split_nonuniformity",
    "variance_fit_probability",
    "variance_of_variance",
    "within_range",
]

type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]

QUANTISATION_VARIANCE = 1.0 / 12.0
"""Variance of rounding to whole DN, DN^2 (EMVA 1288, sec. 2.5)."""

MIN_TEMPORAL_VARIANCE = 0.24
"""Below this variance (DN^2) rounding hides the noise (EMVA 1288, sec. 6.6)."""

BOLTZMANN_EV = 8.617333262e-5
"""Boltzmann's constant, eV/K (CODATA 2018)."""

PIXEL_FLAGS: dict[str, str] = {
    "few-frames": "fewer than two frames: no variance",
    "saturated": "saturated in all that could have been used",
    "clipped": "at zero in some frame: mean and variance are biased",
    "few-levels": "too few usable levels or exposures for the fit",
    "no-signal": "signal too low for the quantity",
    "poor-fit": "the fit is worse than chance allows",
    "unphysical": "the fitted value cannot be, e.g. a gain of at most 0",
    "undersampled": "noise below half a DN, hidden by rounding: the value is an upper limit",
    "hot": "dark current far above the other pixels'",
    "bad-bias": "bias far from the other pixels'",
    "noisy": "read noise far above the other pixels'",
    "bad-response": "response to light far from the other pixels'",
    "extrapolated": "outside the region that was fitted",
    "partly-saturated": "some points were left out for saturation; the value is from the others",
}
"""What the bits of a pixel mask mean, lowest first; 0 means all is well."""

_BITS = {name: np.uint16(1 << bit) for bit, name in enumerate(PIXEL_FLAGS)}


def pixel_flag(name: str) -> np.uint16:
    """Give the bit of a pixel mask by its name in `PIXEL_FLAGS`."""
    return _BITS[name]


# -- statistics ---------------------------------------------------------------------------------


def variance_of_variance(
    variance: Floats, n: ArrayLike, gain: ArrayLike = 0.0, signal: ArrayLike = 0.0
) -> Floats:
    """Give the variance of an unbiased sample variance.

    Var(s^2) = 2 sigma^4/(n - 1) + kappa_4/n (Kenney & Keeping 1951, eq. 7.20), where the fourth
    cumulant of Poisson electrons seen through a gain K is K^4 N = K^3 S and that of Gaussian noise
    is zero.

    Parameters
    ----------
    variance : ndarray of float64
        True or modelled variance sigma^2, DN^2.
    n : array_like
        Number of frames.
    gain : array_like
        K, DN/e-.
    signal : array_like
        S, DN above the bias.

    Returns
    -------
    ndarray of float64
        DN^4; NaN for fewer than two frames.
    """
    n = np.asarray(n, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = 2.0 * variance**2 / (n - 1.0) + np.asarray(gain) ** 3 * np.maximum(signal, 0.0) / n
    return np.where(n >= 2, total, np.nan)


def robust_centre(values: Floats, good: Mask) -> tuple[float, float]:
    """Median, and 1.4826 times the median absolute deviation, of the good values.

    Parameters
    ----------
    values, good : ndarray, same shape
        Values and which of them count; NaN never does.

    Returns
    -------
    centre, scale : float
        NaN where nothing is good.
    """
    kept = values[good & np.isfinite(values)]
    if not kept.size:
        return math.nan, math.nan
    centre = float(np.median(kept))
    return centre, 1.4826 * float(np.median(np.abs(kept - centre)))


def chi2_probability(chi2: ArrayLike, ndf: ArrayLike) -> Floats:
    """Give the probability of a chi2 at least this large; NaN without degrees of freedom."""
    from scipy.special import gammaincc

    ndf = np.asarray(ndf, np.float64)
    p = gammaincc(np.maximum(ndf, 1.0) / 2.0, np.maximum(chi2, 0.0) / 2.0)
    return np.where(ndf > 0, p, np.nan)


def variance_fit_probability(chi2: ArrayLike, ndf: ArrayLike, n: ArrayLike) -> Floats:
    """Give the probability of a chi2 at least this large for a fit to sample variances.

    The squared pull of a variance of n frames has itself the variance 2 + 12/(n - 1), not 2, so
    chi2 is taken as a scaled chi2 of fewer degrees of freedom with equal mean and variance
    (Satterthwaite 1946). Without that, ten frames make a good pixel look bad a hundred times too
    often.

    Parameters
    ----------
    chi2, ndf : array_like
        Of the fit.
    n : array_like
        Frames of each point.

    Returns
    -------
    ndarray of float64
        NaN without degrees of freedom.
    """
    from scipy.special import gammaincc

    ndf = np.asarray(ndf, np.float64)
    scale = 1.0 + 6.0 / np.maximum(np.asarray(n, np.float64) - 1.0, 1.0)
    half = np.maximum(ndf, 1.0) / scale / 2.0
    p = gammaincc(half, np.maximum(chi2, 0.0) / scale / 2.0)
    return np.where(ndf > 0, p, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Weighted straight lines y = intercept + slope x, one per pixel.

    Attributes
    ----------
    slope, intercept : ndarray of float64, pixel shape
        NaN with fewer than two different x.
    slope_variance, intercept_variance : ndarray of float64
        For weights 1/variance of y.
    chi2 : ndarray of float64
        Weighted sum of squared residuals.
    n_points : ndarray of int64
        Points used.
    """

    slope: Floats
    intercept: Floats
    slope_variance: Floats
    intercept_variance: Floats
    chi2: Floats
    n_points: NDArray[np.int64]


def fit_lines(x: Floats, y: Floats, weight: Floats) -> Lines:
    """Fit one straight line per pixel by weighted least squares, about the weighted centre.

    Bevington & Robinson 2003, eq. 6.12, in the form that does not cancel.

    Parameters
    ----------
    x, y, weight : ndarray of float64, shape (n_levels, ...)
        Weights are 1/variance of y; points with weight 0 are left out, whatever x and y are there.

    Returns
    -------
    Lines
    """
    # Level by level: temporaries stay as large as one level, and the order of sums is fixed.
    pixels = y.shape[1:]
    zero = np.zeros(pixels)
    total, total_x, total_y = zero.copy(), zero.copy(), zero.copy()
    n_points = np.zeros(pixels, np.int64)
    low, high = np.full(pixels, np.inf), np.full(pixels, -np.inf)
    for x_i, y_i, w_i in zip(x, y, weight, strict=True):
        used = w_i > 0
        total += np.where(used, w_i, 0.0)
        total_x += np.where(used, w_i * x_i, 0.0)
        total_y += np.where(used, w_i * y_i, 0.0)
        n_points += used
        low = np.where(used, np.minimum(low, x_i), low)
        high = np.where(used, np.maximum(high, x_i), high)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre_x, centre_y = total_x / total, total_y / total
        s_xx, s_xy = zero.copy(), zero.copy()
        for x_i, y_i, w_i in zip(x, y, weight, strict=True):
            used = w_i > 0
            s_xx += np.where(used, w_i * (x_i - centre_x) ** 2, 0.0)
            s_xy += np.where(used, w_i * (x_i - centre_x) * (y_i - centre_y), 0.0)
        s_xx = np.where(high > low, s_xx, np.nan)
        slope = s_xy / s_xx
        intercept = centre_y - slope * centre_x
        chi2 = zero.copy()
        for x_i, y_i, w_i in zip(x, y, weight, strict=True):
            chi2 += np.where(w_i > 0, w_i * (y_i - intercept - slope * x_i) ** 2, 0.0)
        return Lines(slope, intercept, 1.0 / s_xx, 1.0 / total + centre_x**2 / s_xx, chi2, n_points)


# -- bias and read noise ------------------------------------------------------------------------


def read_noise(variance: Floats, n: NDArray[Any]) -> tuple[Floats, Floats, Mask]:
    """Read noise from the variance of bias frames, without the noise of rounding.

    sigma^2 = s^2 - 1/12 (EMVA 1288, eq. 17 and sec. 6.6: a variance below 0.24 DN^2 counts as
    0.24, since rounding then hides it).

    Parameters
    ----------
    variance : ndarray of float64
        Unbiased variance of each pixel, DN^2.
    n : ndarray of int
        Frames.

    Returns
    -------
    noise, error : ndarray of float64
        Standard deviation and its standard error, DN.
    undersampled : ndarray of bool
        Where the noise is an upper limit only.
    """
    undersampled = variance < MIN_TEMPORAL_VARIANCE
    used = np.maximum(variance, MIN_TEMPORAL_VARIANCE)
    noise = np.sqrt(used - QUANTISATION_VARIANCE)
    # NaN stays NaN: np.maximum passes it on.
    error = np.sqrt(variance_of_variance(used, n)) / (2.0 * noise)
    return noise, error, undersampled


# -- ISO speed ----------------------------------------------------------------------------------


def iso_ratios(
    numerator: Floats, numerator_variance: Floats, reference: Floats, reference_variance: Floats
) -> tuple[Floats, Floats]:
    """Signal at each ISO speed relative to the lowest one, with the full covariance.

    Ratios of sums over the same pixels, so no ratio of two noisy numbers is averaged. All share the
    frames of the lowest ISO, so that errors are correlated: to first order
    cov(r_i, r_j) = delta_ij V_i/D_i^2 + r_i r_j U_ij/(D_i D_j), with U_ij <= min(U_i, U_j) the
    variance of the reference's sum over the pixels that both use; the bound is taken.

    Parameters
    ----------
    numerator, numerator_variance : ndarray of float64, shape (n_iso,)
        Sum of the signal over the pixels used at this ISO, and its variance V; entry 0 is the
        lowest ISO itself.
    reference, reference_variance : ndarray of float64, shape (n_iso,)
        Sum D of the lowest ISO's signal over the same pixels, and its variance U.

    Returns
    -------
    ratio : ndarray of float64, shape (n_iso,)
        1 for entry 0.
    covariance : ndarray of float64, shape (n_iso, n_iso)
        Zero in row and column 0: the lowest ISO is 1 by definition.
    """
    ratio = numerator / reference
    covariance = np.diag(numerator_variance / reference**2)
    shared = np.minimum.outer(reference_variance, reference_variance)
    covariance = covariance + np.outer(ratio / reference, ratio / reference) * shared
    ratio[0] = 1.0
    covariance[0] = covariance[:, 0] = 0.0
    return ratio, covariance


@dataclass(frozen=True, slots=True)
class IsoCurve:
    """Signal against ISO speed: r(ISO) = 1 + slope (min(ISO, knee) - lowest ISO).

    Attributes
    ----------
    kind : {"linear", "knee"}
        Which of the two the Bayesian information criterion prefers.
    slope, slope_error : float
        Per ISO unit.
    knee, knee_error : float
        ISO speed above which the signal stays the same; infinity for "linear".
    covariance : float
        Of slope and knee.
    iso_min : int
        Where r = 1.
    chi2 : float
        Of the preferred model.
    ndf : int
        Its degrees of freedom.
    bic_linear, bic_knee : float
        Bayesian information criterion of both (Schwarz 1978): chi2 + k ln n; NaN where a model
        cannot be fitted.
    """

    kind: Literal["linear", "knee"]
    slope: float
    slope_error: float
    knee: float
    knee_error: float
    covariance: float
    iso_min: int
    chi2: float
    ndf: int
    bic_linear: float
    bic_knee: float

    def __call__(self, iso: ArrayLike) -> tuple[Floats, Floats]:
        """Give the relative signal at ISO speeds, and its standard error."""
        iso = np.asarray(iso, np.float64)
        step = np.minimum(iso, self.knee) - self.iso_min
        beyond = iso > self.knee
        variance = (step * self.slope_error) ** 2
        if self.kind == "knee":
            tail = (self.slope * self.knee_error) ** 2 + 2 * step * self.slope * self.covariance
            variance = variance + np.where(beyond, tail, 0.0)
        return 1.0 + self.slope * step, np.sqrt(np.maximum(variance, 0.0))


def fit_iso_curve(
    iso: NDArray[Any],
    ratio: Floats,
    covariance: Floats,
    kind: Literal["auto", "linear", "knee"] = "auto",
) -> IsoCurve:
    """Fit a line, and a line with a knee, to the signal at each ISO speed; keep the better by BIC.

    For a knee between two measured speeds the model is linear in the slope and the height of the
    plateau, so each interval has its exact minimum and the best of all is the global one. (A knee
    below the second lowest speed cannot be told from any slope and is not looked for.)

    Parameters
    ----------
    iso : ndarray of int, shape (n_iso,)
        Rising; entry 0 is the lowest.
    ratio : ndarray of float64, shape (n_iso,)
        As from `iso_ratios`.
    covariance : ndarray of float64, shape (n_iso, n_iso)
        Of the ratios; that of entry 0 is not used.
    kind : {"auto", "linear", "knee"}
        Keep the better one, or this one.

    Returns
    -------
    IsoCurve
        Errors are scaled by sqrt(chi2/ndf) where that is above 1.

    Raises
    ------
    NotEnoughData
        Fewer than two ISO speeds, or fewer than three for a knee.
    """
    if len(iso) < 2:
        there = f"only ISO {iso[0]}" if len(iso) else "none"
        raise NotEnoughData(f"the ISO curve needs at least two ISO speeds, but there is {there}")
    x = iso[1:].astype(np.float64) - float(iso[0])
    y = ratio[1:] - 1.0
    inverse = np.linalg.inv(covariance[1:, 1:])
    n = len(x)

    def solve(design: Floats) -> tuple[Floats, Floats, float]:
        normal = design.T @ inverse @ design
        spread = np.linalg.inv(normal)
        value = spread @ (design.T @ inverse @ y)
        rest = y - design @ value
        return value, spread, float(rest @ inverse @ rest)

    line, line_spread, line_chi2 = solve(x[:, None])
    bic_linear = line_chi2 + math.log(n)
    best: tuple[float, float, float, Floats] | None = None
    # The knee lies at or above speed j and below speed j + 1 (counted without the lowest).
    for j in range(n - 1):
        below = np.arange(n) <= j
        value, spread, chi2 = solve(np.column_stack([np.where(below, x, 0.0), ~below]))
        slope, plateau = float(value[0]), float(value[1])
        step = plateau / slope if slope > 0 else math.nan
        if x[j] <= step < x[j + 1]:
            jacobian = np.array([[1.0, 0.0], [-plateau / slope**2, 1.0 / slope]])
            spread = jacobian @ spread @ jacobian.T
        else:  # the best of this interval is at an end, where one parameter is left
            last = j == n - 2 and step >= x[-1]  # right ends are the next interval's left ones
            step = float(x[-1] if last else x[j])
            (slope,), one, chi2 = solve(np.minimum(x, step)[:, None])
            spread = np.array([[one[0, 0], 0.0], [0.0, 0.0]])
        if best is None or chi2 < best[0]:
            best = (chi2, float(slope), step, spread)
    bic_knee = best[0] + 2 * math.log(n) if best is not None else math.nan
    if best is None and kind == "knee":
        raise NotEnoughData("a knee needs at least three ISO speeds, but there are two")
    if best is not None and kind != "linear" and (kind == "knee" or bic_knee < bic_linear):
        chi2, slope, step, spread = best
        ndf = n - 2
    else:
        chi2, slope, step, ndf = line_chi2, float(line[0]), math.inf, n - 1
        spread = np.array([[line_spread[0, 0], 0.0], [0.0, 0.0]])
    scale = max(chi2 / ndf, 1.0) if ndf else 1.0
    return IsoCurve(
        "linear" if math.isinf(step) else "knee",
        slope,
        math.sqrt(scale * spread[0, 0]),
        float(iso[0]) + step,
        math.sqrt(scale * spread[1, 1]),
        float(scale * spread[0, 1]),
        int(iso[0]),
        chi2,
        ndf,
        bic_linear,
        bic_knee,
    )


# -- dark current -------------------------------------------------------------------------------


def pool_noise(signal: Floats, variance: Floats, good: Mask) -> tuple[float, float]:
    """Noise of a group of pixels as one line, variance = floor + gain x signal.

    The slope is taken within each pixel, over its levels, and then over all pixels: pixels that
    differ in read noise do not bend it.

    Parameters
    ----------
    signal, variance : ndarray of float64, shape (n_levels, ...)
        DN and DN^2.
    good : ndarray of bool, same shape
        Points to use.

    Returns
    -------
    floor, gain : float
        DN^2, at least 1/12, and DN/e-, at least 0; NaN where nothing is good.
    """
    count = np.maximum(good.sum(axis=0), 1)
    x, y = np.where(good, signal, 0.0), np.where(good, variance, 0.0)
    dx = np.where(good, signal - x.sum(axis=0) / count, 0.0)
    dy = np.where(good, variance - y.sum(axis=0) / count, 0.0)
    n, s_xx = int(good.sum()), float((dx * dx).sum())
    if not n:
        return math.nan, math.nan
    gain = max(float((dx * dy).sum()) / s_xx, 0.0) if s_xx > 0 else 0.0
    floor = (float(y.sum()) - gain * float(x.sum())) / n
    return max(floor, QUANTISATION_VARIANCE), gain


@dataclass(frozen=True, slots=True, eq=False)
class DarkCurrent:
    """Signal in the dark against exposure time, one line per pixel.

    Attributes
    ----------
    rate, rate_error : ndarray of float64
        DN/s and its standard error.
    offset, offset_error : ndarray of float64
        Signal at no exposure, DN: the bias, if all is well.
    chi2 : ndarray of float64
        Of the line, with the scatter of the pixel's own frames.
    n_exposures : ndarray of int64
        Exposures used.
    """

    rate: Floats
    rate_error: Floats
    offset: Floats
    offset_error: Floats
    chi2: Floats
    n_exposures: NDArray[np.int64]


def dark_current(
    exposure_s: Floats, mean: Floats, variance: Floats, n: NDArray[Any], good: Mask
) -> DarkCurrent:
    """Fit the dark current of each pixel.

    The weights come from a noise model, variance = floor + gain x rate x time, whose two numbers
    are pooled over the pixels and whose rate is that of an unweighted fit: a pixel's own sample
    variances are correlated with its means, and as weights would bias the rate low. The errors
    are scaled to the scatter of the pixel's own frames.

    Parameters
    ----------
    exposure_s : ndarray of float64, shape (n_exposures,)
        s.
    mean, variance : ndarray of float64, shape (n_exposures, ...)
        DN and DN^2.
    n : ndarray of int, shape (n_exposures, ...)
        Frames.
    good : ndarray of bool, shape (n_exposures, ...)
        Points to use: not saturated, at least two frames.

    Returns
    -------
    DarkCurrent
        NaN in pixels with fewer than two usable exposures.
    """
    time = np.broadcast_to(exposure_s.reshape(-1, *[1] * (mean.ndim - 1)), mean.shape)
    frames = np.where(good, n, 0).astype(np.float64)
    first = fit_lines(time, mean, frames)
    collected = np.maximum(np.nan_to_num(first.slope), 0.0) * time
    floor, gain = pool_noise(collected, variance, good)
    model = floor + gain * collected
    line = fit_lines(time, mean, frames / model)
    # The pixel's own noise against the model's, from all its frames.
    freedom = np.where(good, frames - 1.0, 0.0)
    own = np.where(good, freedom * variance / model, 0.0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = own / freedom.sum(axis=0)
        return DarkCurrent(
            line.slope,
            np.sqrt(scale * line.slope_variance),
            line.intercept,
            np.sqrt(scale * line.intercept_variance),
            line.chi2 / scale,
            line.n_points,
        )


def hot_pixels(rate: Floats, error: Floats, good: Mask, n_sigma: float) -> tuple[Mask, float]:
    """Pixels whose dark current stands out from the others of their group.

    Parameters
    ----------
    rate, error : ndarray of float64
        DN/s.
    good : ndarray of bool
        Pixels with a value.
    n_sigma : float
        Distance above the median, in units of the scatter (1.4826 MAD) and of the pixel's error
        added in quadrature.

    Returns
    -------
    hot : ndarray of bool
        Never true where `good` is false.
    threshold : float
        Rate above which a pixel without error is hot; NaN where nothing is good.
    """
    centre, scale = robust_centre(rate, good)
    with np.errstate(invalid="ignore"):
        hot = good & (rate - centre > n_sigma * np.hypot(scale, error))
    return hot, centre + n_sigma * scale


@dataclass(frozen=True, slots=True)
class TemperatureLaw:
    """Dark current against temperature.

    Attributes
    ----------
    doubling_k, doubling_error : float
        Temperature difference that doubles it, K: D = D0 2^((T - T0)/doubling).
    energy_ev, energy_error : float
        Activation energy of the Arrhenius law D ~ exp(-E/kT), eV (Widenhorn et al. 2002, Proc.
        SPIE 4669, 193).
    reference_c, rate, rate_error : float
        Mean temperature (deg C), and the dark current there by the better law, DN/s.
    chi2_doubling, chi2_arrhenius : float
        Of both laws.
    ndf : int
        Degrees of freedom of either; 0 for two temperatures.
    """

    doubling_k: float
    doubling_error: float
    energy_ev: float
    energy_error: float
    reference_c: float
    rate: float
    rate_error: float
    chi2_doubling: float
    chi2_arrhenius: float
    ndf: int


def fit_temperature(temperature_c: Floats, rate: Floats, error: Floats) -> TemperatureLaw:
    """Fit the doubling and the Arrhenius law to ln(dark current).

    Parameters
    ----------
    temperature_c : ndarray of float64, shape (n,)
        Sensor temperatures.
    rate, error : ndarray of float64, shape (n,)
        Dark current and its standard error, DN/s; only rates above 0 can be used.

    Returns
    -------
    TemperatureLaw

    Raises
    ------
    NotEnoughData
        Fewer than two different temperatures with a dark current above zero.
    """
    used = (rate > 0) & (error > 0)
    temperature_c, rate, error = temperature_c[used], rate[used], error[used]
    if len(np.unique(temperature_c)) < 2:
        raise NotEnoughData(
            "a temperature law needs dark current above zero at two temperatures or more, there"
            f" are {len(np.unique(temperature_c))}"
        )
    weight = (rate / error) ** 2
    reference = float(np.average(temperature_c))
    logarithm = np.log(rate)
    double = fit_lines(temperature_c - reference, logarithm, weight)
    kelvin, kelvin_0 = temperature_c + 273.15, reference + 273.15
    arrhenius = fit_lines((1.0 / kelvin_0 - 1.0 / kelvin) / BOLTZMANN_EV, logarithm, weight)
    slope = float(double.slope)
    better = arrhenius if arrhenius.chi2 < double.chi2 else double
    rate_0 = math.exp(float(better.intercept))
    return TemperatureLaw(
        math.log(2.0) / slope,
        math.log(2.0) / slope**2 * math.sqrt(float(double.slope_variance)),
        float(arrhenius.slope),
        math.sqrt(float(arrhenius.slope_variance)),
        reference,
        rate_0,
        rate_0 * math.sqrt(float(better.intercept_variance)),
        float(double.chi2),
        float(arrhenius.chi2),
        len(rate) - 2,
    )


# -- photon transfer ----------------------------------------------------------------------------


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
    signal: Floats, variance: Floats, n: NDArray[Any], good: Mask, noise: tuple[float, float]
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

    Returns
    -------
    PhotonTransfer
        NaN in pixels with fewer than two usable levels.
    """
    floor, gain = noise
    model = floor + gain * np.maximum(signal, 0.0)
    spread = variance_of_variance(model, n, gain, signal)
    with np.errstate(divide="ignore", invalid="ignore"):
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


# -- flat field ---------------------------------------------------------------------------------


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
        """Give the standard error of g, from the covariance of all parameters."""
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
    """Give the block cell of each pixel, the number of cells, and rows and columns."""
    height, width = shape
    rows, columns = np.indices((height, width))
    n_across = -(-width // block)
    cell = (rows // block * n_across + columns // block) * 4 + channel
    return cell, -(-height // block) * n_across * 4, rows, columns


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
    pixel_scatter: float = 0.0,
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
        Fraction of height and width left out of the fit on each side.
    pixel_scatter : float
        Relative scatter of the pixels' response (PRNU): adds to the variance of a block.

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
    inside = (y >= border * height) & (y <= (1 - border) * height - 1)
    inside &= (x >= border * width) & (x <= (1 - border) * width - 1) & (value > 0)
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
    start = np.concatenate([[0.5], np.zeros(n_terms - 1), [0.5, 0.5], np.ones(len(names))])
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


# -- EMVA 1288 ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SpatialSums:
    """Spatial moments of the mean image of a stack, addable over tiles.

    Attributes
    ----------
    n : int
        Pixels.
    mean, m2 : float
        Mean (DN) of the pixel means, and sum of their squared deviations (DN^2).
    variance_sum : float
        Sum over pixels of the temporal variance of the pixel mean, s^2/L, DN^2.
    """

    n: int
    mean: float
    m2: float
    variance_sum: float


def spatial_variance(sums: SpatialSums) -> float:
    """Variance of the pixels' true values: what is seen less what the noise leaves in the mean.

    s_y^2 = s_measured^2 - sigma_stack^2/L (EMVA 1288, eq. 32).
    """
    return sums.m2 / (sums.n - 1) - sums.variance_sum / sums.n


def split_nonuniformity(
    sums: SpatialSums, row_means: Floats, column_means: Floats
) -> tuple[float, float, float]:
    """Split the spatial variance into that of rows, of columns, and of single pixels.

    With independent parts, s_y^2 = row + column + pixel, the variance of row means is
    row + pixel/N, and that of column means column + pixel/M, for M rows and N columns; each less
    what temporal noise leaves in it (EMVA 1288, release 4.0, sec. 8.2).

    Parameters
    ----------
    sums : SpatialSums
        Of the whole sensor.
    row_means : ndarray of float64, shape (M,)
        Mean of each row of the mean image, DN.
    column_means : ndarray of float64, shape (N,)
        Mean of each column, DN.

    Returns
    -------
    row, column, pixel : float
        DN^2; small ones may come out negative. NaN for a single row or column.
    """
    m, n = len(row_means), len(column_means)
    if m < 2 or n < 2 or m * n <= m + n:
        return math.nan, math.nan, math.nan
    noise = sums.variance_sum / sums.n
    rows = float(row_means.var(ddof=1)) - noise / n
    columns = float(column_means.var(ddof=1)) - noise / m
    pixel = m * n / (m * n - m - n) * (spatial_variance(sums) - rows - columns)
    return rows - pixel / n, columns - pixel / m, pixel


@dataclass(frozen=True, slots=True, eq=False)
class EmvaPoints:
    """Photon transfer data of a whole sensor: one entry per exposure, of bright and dark pairs.

    Attributes
    ----------
    exposure_s : ndarray of float64, shape (n,)
        Exposure times, rising.
    photons : ndarray of float64, shape (n,)
        Mean photons per pixel; NaN where not known.
    bright, bright_variance : ndarray of float64, shape (n,)
        Mean (DN) and temporal variance (DN^2) with light.
    dark, dark_variance : ndarray of float64, shape (n,)
        The same without light, at the same exposure.
    """

    exposure_s: Floats
    photons: Floats
    bright: Floats
    bright_variance: Floats
    dark: Floats
    dark_variance: Floats


def emva1288(
    points: EmvaPoints, bright: SpatialSums | None, dark: SpatialSums | None
) -> dict[str, float]:
    """Characterise a sensor by the standard EMVA 1288, release 4.0 linear.

    Parameters
    ----------
    points : EmvaPoints
        The photon transfer series.
    bright, dark : SpatialSums or None
        The spatial stacks; without them DSNU and PRNU are NaN.

    Returns
    -------
    dict of str to float
        k_dn_per_electron (eq. 14), responsivity_dn_per_photon (eq. 13), quantum_efficiency
        (eq. 15), sigma_y_dark_dn, sigma_d_electron (eq. 17), saturation_dn (signal),
        saturation_photon, saturation_electron (sec. 6.7), threshold_photon, threshold_electron
        (sec. 6.8), dynamic_range, snr_max, linearity_min_percent, linearity_max_percent,
        linearity_mean_percent (sec. 6.10: largest, smallest and mean absolute deviation from a line
        with relative weights between 5 and 95 % of saturation), dark_current_mean_dn_per_s,
        dark_current_mean_electron_per_s, dark_current_variance_electron_per_s (eq. 29, 30),
        s2_y_dark_dn2, s2_y_bright_dn2 (eq. 32), dsnu1288_electron, prnu1288_percent (eq. 41), and the
        standard errors of K, R and QE from the scatter about their lines. What
        needs photons is NaN without them.

    Raises
    ------
    NotEnoughData
        Fewer than three exposures below 70 % of saturation.
    """
    signal = points.bright - points.dark
    excess = points.bright_variance - points.dark_variance
    top = int(np.argmax(points.bright_variance))
    saturation = float(signal[top])
    low = signal <= 0.7 * saturation
    if int(low.sum()) < 3:
        raise NotEnoughData(
            f"EMVA 1288 fits the gain below 70 % of saturation, but only {int(low.sum())} of"
            f" {len(signal)} exposures are there: record more of them, over the whole range"
        )
    k, k_error = _through_origin(signal[low], excess[low])
    r, r_error = _through_origin(points.photons[low], signal[low])
    qe = r / k

    time, length = points.exposure_s, len(points.exposure_s)
    weight = np.ones(length)
    dark_line = fit_lines(time, points.dark, weight)
    noise_line = fit_lines(time, points.dark_variance, weight)
    # With one exposure time for all levels there is no line.
    many = len(np.unique(time)) > 1
    variance_0 = float(noise_line.intercept if many else points.dark_variance.mean())
    variance_0 = max(variance_0, MIN_TEMPORAL_VARIANCE)
    sigma_y = math.sqrt(variance_0)
    sigma_d = math.sqrt(variance_0 - QUANTISATION_VARIANCE) / k
    threshold_e = sigma_y / k + 0.5
    saturation_photon = float(points.photons[top])
    saturation_e = qe * saturation_photon
    if math.isnan(saturation_e):
        saturation_e = saturation / k

    middle = (signal >= 0.05 * saturation) & (signal <= 0.95 * saturation)
    # Relative to photons, or to the exposure where only that is known.
    light = points.photons if np.isfinite(points.photons).all() else time
    straight = fit_lines(light[middle], signal[middle], 1.0 / signal[middle] ** 2)
    fitted = straight.intercept + straight.slope * light[middle]
    deviation = 100.0 * (signal[middle] - fitted) / fitted
    known = bool(np.isfinite(deviation).any())

    result = {
        "k_dn_per_electron": k,
        "k_dn_per_electron_error": k_error,
        "responsivity_dn_per_photon": r,
        "responsivity_dn_per_photon_error": r_error,
        "quantum_efficiency": qe,
        "quantum_efficiency_error": qe * math.hypot(k_error / k, r_error / r),
        "sigma_y_dark_dn": sigma_y,
        "sigma_d_electron": sigma_d,
        "saturation_dn": saturation,
        "saturation_photon": saturation_photon,
        "saturation_electron": saturation_e,
        "threshold_photon": threshold_e / qe,
        "threshold_electron": threshold_e,
        "dynamic_range": saturation_e / threshold_e,
        "snr_max": math.sqrt(saturation_e),
        "linearity_min_percent": float(deviation.min()) if known else math.nan,
        "linearity_max_percent": float(deviation.max()) if known else math.nan,
        "linearity_mean_percent": float(np.abs(deviation).mean()) if known else math.nan,
        "dark_current_mean_dn_per_s": float(dark_line.slope),
        "dark_current_mean_electron_per_s": float(dark_line.slope) / k,
        "dark_current_variance_electron_per_s": float(noise_line.slope) / k**2,
        "s2_y_dark_dn2": math.nan,
        "s2_y_bright_dn2": math.nan,
        "dsnu1288_electron": math.nan,
        "prnu1288_percent": math.nan,
    }
    if dark is not None:
        s2_dark = spatial_variance(dark)
        result["s2_y_dark_dn2"] = s2_dark
        result["dsnu1288_electron"] = _root(s2_dark) / k
        if bright is not None:
            s2_bright = spatial_variance(bright)
            result["s2_y_bright_dn2"] = s2_bright
            result["prnu1288_percent"] = (
                100.0 * _root(s2_bright - s2_dark) / (bright.mean - dark.mean)
            )
    return result


def _root(value: float) -> float:
    """Square root; NaN of a variance that came out negative."""
    return math.sqrt(value) if value >= 0 else math.nan


def _through_origin(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of y = slope x by least squares, and its standard error from the scatter."""
    s_xx = float(x @ x)
    slope = float(x @ y) / s_xx
    rest = y - slope * x
    return slope, math.sqrt(float(rest @ rest) / (len(x) - 1) / s_xx)
