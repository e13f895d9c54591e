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
    "QUANTISATION_VARIANCE",
    "Floats",
    "IsoCurve",
    "Lines",
    "Mask",
    "TemperatureLaw",
    "chi2_probability",
    "dark_current",
    "fit_iso_curve",
    "fit_lines",
    "fit_temperature",
    "hot_pixels",
    "iso_ratios",
    "pool_noise",
    "read_noise",
    "robust_centre",
    "variance_fit_probability",
    "variance_of_variance",
]

type Floats = NDArray[np.float64]


type Mask = NDArray[np.bool_]


QUANTISATION_VARIANCE = 1.0 / 12.0
"""Variance of rounding to whole DN, DN^2 (EMVA 1288, sec. 2.5)."""


MIN_TEMPORAL_VARIANCE = 0.24
"""Below this variance (DN^2) rounding hides the noise (EMVA 1288, sec. 6.6)."""


BOLTZMANN_EV = 8.617333262e-5
"""Boltzmann's constant, eV/K (CODATA 2018)."""


def variance_of_variance(
    variance: Floats, n: ArrayLike, gain: ArrayLike = 0.0, signal: ArrayLike = 0.0
) -> Floats:
    """Return the variance of an unbiased sample variance.

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
    """Return the probability of a chi2 at least this large; NaN without degrees of freedom."""
    from scipy.special import gammaincc

    ndf = np.asarray(ndf, np.float64)
    p = gammaincc(np.maximum(ndf, 1.0) / 2.0, np.maximum(chi2, 0.0) / 2.0)
    return np.where(ndf > 0, p, np.nan)


def variance_fit_probability(chi2: ArrayLike, ndf: ArrayLike, n: ArrayLike) -> Floats:
    """Return the probability of a chi2 at least this large for a fit to sample variances.

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


def read_noise(
    variance: Floats, n: NDArray[Any], step_dn: float = 1.0
) -> tuple[Floats, Floats, Mask]:
    """Read noise from the variance of bias frames, without the noise of rounding.

    sigma^2 = s^2 - 1/12 (EMVA 1288, eq. 17 and sec. 6.6: a variance below 0.24 DN^2 counts as
    0.24, since rounding then hides it).

    Parameters
    ----------
    variance : ndarray of float64
        Unbiased variance of each pixel, DN^2.
    n : ndarray of int
        Frames.
    step_dn : float
        Step of the values: rounding goes with its square.

    Returns
    -------
    noise, error : ndarray of float64
        Standard deviation and its standard error, DN; the latter allows for few frames.
    undersampled : ndarray of bool
        Where the noise is an upper limit only.
    """
    least, rounding = MIN_TEMPORAL_VARIANCE * step_dn**2, QUANTISATION_VARIANCE * step_dn**2
    undersampled = variance < least
    used = np.maximum(variance, least)
    noise = np.sqrt(used - rounding)
    # NaN stays NaN: np.maximum passes it on.
    error = np.sqrt(variance_of_variance(used, n)) / (2.0 * noise) * _spread_of_deviation(n)
    return noise, error, undersampled


def _spread_of_deviation(n: NDArray[Any]) -> Floats:
    """Return the rms of (s - sigma)/(s/sqrt(2 nu)), nu = n - 1, for normal noise.

    The usual error of a standard deviation s goes with s itself, so that one that is low by chance
    has a small error, too. With s^2 = sigma^2 chi2_nu/nu, E[sigma/s] = sqrt(nu/2)
    Gamma((nu - 1)/2)/Gamma(nu/2) and E[sigma^2/s^2] = nu/(nu - 2) (Johnson, Kotz & Balakrishnan
    1994, sec. 18.3). 1.05 for 50 frames, 1.30 for 10; infinite for 3, which take that of 4.
    """
    from scipy.special import gammaln

    counts, which = np.unique(n, return_inverse=True)
    nu = np.maximum(counts - 1.0, 3.0)
    inverse = np.sqrt(nu / 2.0) * np.exp(gammaln((nu - 1.0) / 2.0) - gammaln(nu / 2.0))
    factor: Floats = np.sqrt(2.0 * nu * (1.0 - 2.0 * inverse + nu / (nu - 2.0)))
    return factor[which].reshape(np.shape(n))


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
        """Return the relative signal at ISO speeds, and its standard error."""
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
class DarkFit:
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
    freedom : ndarray of float64
        Degrees of freedom of the noise of the pixel's own frames.
    """

    rate: Floats
    rate_error: Floats
    offset: Floats
    offset_error: Floats
    chi2: Floats
    n_exposures: NDArray[np.int64]
    freedom: Floats

    def p_value(self) -> Floats:
        """Return the probability of a chi2 at least this large; NaN with fewer than three points.

        Both the line's residuals and the noise that scales them are from the same few frames, so
        that their ratio follows Fisher's F.
        """
        from scipy.special import fdtrc

        ndf = self.n_exposures - 2.0
        with np.errstate(divide="ignore", invalid="ignore"):
            p = fdtrc(np.maximum(ndf, 1.0), self.freedom, self.chi2 / ndf)
        return np.where((ndf > 0) & (self.freedom > 0), p, np.nan)


def dark_current(
    exposure_s: Floats, mean: Floats, variance: Floats, n: NDArray[Any], good: Mask
) -> DarkFit:
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
    DarkFit
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
        return DarkFit(
            line.slope,
            np.sqrt(scale * line.slope_variance),
            line.intercept,
            np.sqrt(scale * line.intercept_variance),
            line.chi2 / scale,
            line.n_points,
            freedom.sum(axis=0),
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
