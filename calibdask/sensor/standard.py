"""EMVA Standard 1288, release 4.0 linear (2021): the formulas, on arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.errors import NotEnoughData
from calibdask.sensor.model import MIN_TEMPORAL_VARIANCE, QUANTISATION_VARIANCE, fit_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "EmvaPoints",
    "SpatialSums",
    "emva1288",
    "saturation_index",
    "spatial_variance",
    "split_nonuniformity",
]

type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]


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
    points: EmvaPoints, bright: SpatialSums | None, dark: SpatialSums | None, step_dn: int = 1
) -> dict[str, float]:
    """Characterise a sensor by the standard EMVA 1288, release 4.0 linear.

    Parameters
    ----------
    points : EmvaPoints
        The photon transfer series.
    bright, dark : SpatialSums or None
        The spatial stacks; without them DSNU and PRNU are NaN.
    step_dn : int
        Step of the values: rounding, and the noise that it hides, go with its square.

    Returns
    -------
    dict of str to float
        k_dn_per_electron (eq. 14), responsivity_dn_per_photon (eq. 13), quantum_efficiency
        (eq. 15), sigma_y_dark_dn, sigma_d_electron (eq. 17), saturation_dn (signal),
        saturation_photon, saturation_electron (sec. 6.7, see `saturation_index`),
        threshold_photon, threshold_electron (sec. 6.8), dynamic_range, snr_max,
        linearity_min_percent, linearity_max_percent, linearity_mean_percent (sec. 6.10: largest,
        smallest and mean absolute deviation from a line with relative weights between 5 and 95 % of
        saturation), dark_current_mean_dn_per_s,
        dark_current_mean_electron_per_s, dark_current_variance_electron_per_s (eq. 29, 30),
        s2_y_dark_dn2, s2_y_bright_dn2 (eq. 32), dsnu1288_electron, prnu1288_percent (eq. 41), and
        the standard errors of K, R and QE from the scatter about their lines. What needs photons
        is NaN without them.

    Raises
    ------
    NotEnoughData
        Fewer than three exposures below 70 % of saturation.
    """
    signal = points.bright - points.dark
    excess = points.bright_variance - points.dark_variance
    top = saturation_index(points.bright_variance)
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
    variance_0 = max(variance_0, MIN_TEMPORAL_VARIANCE * step_dn**2)
    sigma_y = math.sqrt(variance_0)
    sigma_d = math.sqrt(variance_0 - QUANTISATION_VARIANCE * step_dn**2) / k
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


def saturation_index(variance: Floats) -> int:
    """Find the saturation: the first maximum of the variance below the largest exposure.

    EMVA 1288, sec. 6.7, as the reference program reads it (emva1288, Results1288.index_u_ysat):
    from the largest exposure down, an exposure is passed on to as long as its variance, or that
    of the next one below, is not less than that of the last one taken. So one low point does not
    end the search, and a larger maximum at low exposures (a nonlinear sensor, an outlier) is not
    taken for saturation.

    Parameters
    ----------
    variance : ndarray of float64, shape (n,)
        Temporal variance of the bright pairs by rising exposure, DN^2.

    Returns
    -------
    int
        Index of the exposure.
    """
    top, reached = len(variance) - 1, 0.0
    for index in range(len(variance) - 1, -1, -1):
        if max(variance[index], variance[max(index - 1, 0)]) < reached:
            break
        top, reached = index, float(variance[index])
    return top


def _root(value: float) -> float:
    """Square root; NaN of a variance that came out negative."""
    return math.sqrt(value) if value >= 0 else math.nan


def _through_origin(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of y = slope x by least squares, and its standard error from the scatter."""
    s_xx = float(x @ x)
    slope = float(x @ y) / s_xx
    rest = y - slope * x
    return slope, math.sqrt(float(rest @ rest) / (len(x) - 1) / s_xx)
