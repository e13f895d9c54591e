"""Corrections of raw frames, and what they leave uncertain: arrays in, arrays out.

A raw value x of a pixel, exposed for t seconds, becomes (Burggraaff et al. 2019, Optics Express 27,
19075, sec. 4; the order is SPECTACLE's)::

    x1 = x - bias               DN
    x2 = x1 / iso_factor        DN at the lowest ISO speed
    x3 = x2 - dark_current t    the same
    x4 = x3 / flat_field        as if every pixel responded alike
    x5 = x4 / gain              electrons

Its variance begins with read noise, rounding (1/12 DN^2) and, where the gain is known, photon noise
(variance = gain x signal, EMVA 1288 r4.0 eq. 13), and every correction adds its own, by the usual
first-order propagation of independent errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.flags import ImageFlag

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["Calibrated", "Corrections", "Term", "calibrate"]

QUANTISATION_VARIANCE = 1 / 12


@dataclass(frozen=True)
class Term:
    """One calibration as it is applied.

    Attributes
    ----------
    value : ndarray or float
        What is subtracted or divided by.
    error : ndarray or float
        Its standard error.
    bad : ndarray of bool, optional
        Where its map is flagged.
    """

    value: NDArray[Any] | float
    error: NDArray[Any] | float = 0.0
    bad: NDArray[np.bool_] | None = None

    def rows(self, first: int, stop: int) -> Term:
        """Return some rows of it."""
        bad = None if self.bad is None else self.bad[first:stop]
        return Term(_rows(self.value, first, stop), _rows(self.error, first, stop), bad)


def _rows(values: NDArray[Any] | float, first: int, stop: int) -> NDArray[Any] | float:
    return values[first:stop] if isinstance(values, np.ndarray) and values.ndim else values


@dataclass(frozen=True)
class Corrections:
    """What is done to a frame: a step that is None is left out.

    Attributes
    ----------
    bias : Term, optional
        In DN.
    readnoise : ndarray or float
        Read noise without rounding, in DN.
    iso_factor : Term, optional
        Signal at the frame's ISO speed relative to the lowest one.
    dark : Term, optional
        Dark current at the lowest ISO speed, in DN/s.
    flat : Term, optional
        Relative response.
    gain : Term, optional
        At the lowest ISO speed, in DN per electron.
    defects : ndarray of bool, optional
        Defect pixels.
    saturation_dn : float
        Where raw values are saturated.
    step_dn : float
        Step of the raw values.
    """

    bias: Term | None = None
    readnoise: NDArray[Any] | float = 0.0
    iso_factor: Term | None = None
    dark: Term | None = None
    flat: Term | None = None
    gain: Term | None = None
    defects: NDArray[np.bool_] | None = None
    saturation_dn: float = np.inf
    step_dn: float = 1.0

    @property
    def units(self) -> str:
        """Units of what comes out."""
        return "DN" if self.gain is None else "electron"

    def rows(self, first: int, stop: int) -> Corrections:
        """Return some rows of all maps."""
        terms = (self.bias, self.iso_factor, self.dark, self.flat, self.gain)
        bias, iso_factor, dark, flat, gain = (
            None if one is None else one.rows(first, stop) for one in terms
        )
        defects = None if self.defects is None else self.defects[first:stop]
        readnoise = _rows(self.readnoise, first, stop)
        return Corrections(
            bias, readnoise, iso_factor, dark, flat, gain, defects, self.saturation_dn, self.step_dn
        )


@dataclass(frozen=True)
class Calibrated:
    """A corrected frame.

    Attributes
    ----------
    value, error : ndarray of float64, shape (rows, columns)
        In DN at the lowest ISO speed, or in electrons; NaN where there is no number.
    mask : ndarray of uint16, shape (rows, columns)
        Bits of `ImageFlag`.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]
    mask: NDArray[np.uint16]


def calibrate(
    frame: NDArray[Any], corrections: Corrections, exposure_s: float | None = None
) -> Calibrated:
    """Correct a raw frame.

    Parameters
    ----------
    frame : ndarray, shape (rows, columns)
        Raw values in DN.
    corrections : Corrections
        What to do; maps have the frame's shape.
    exposure_s : float, optional
        The frame's exposure; needed where dark current is subtracted.

    Raises
    ------
    ValueError
        Dark current is to be subtracted, but the exposure is not known.
    """
    raw = np.asarray(frame, np.float64)
    value = raw.copy()
    mask = np.zeros(raw.shape, np.uint16)
    mask[raw >= corrections.saturation_dn] |= ImageFlag.SATURATED.bit
    variance = np.square(corrections.readnoise) + np.full(
        raw.shape, QUANTISATION_VARIANCE * corrections.step_dn**2
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        if corrections.bias is not None:
            value -= corrections.bias.value
            variance += np.square(corrections.bias.error)
        if corrections.gain is not None:
            factor = 1.0 if corrections.iso_factor is None else corrections.iso_factor.value
            dn_per_electron = np.asarray(corrections.gain.value, np.float64) * factor
            variance += dn_per_electron * np.maximum(value, 0.0)
        if corrections.iso_factor is not None:
            value, variance = _divided(value, variance, corrections.iso_factor)
        if corrections.dark is not None:
            if exposure_s is None:
                raise ValueError("dark current takes an exposure")
            value -= exposure_s * np.asarray(corrections.dark.value, np.float64)
            variance += np.square(exposure_s * np.asarray(corrections.dark.error, np.float64))
        for divisor in (corrections.flat, corrections.gain):
            if divisor is not None:
                value, variance = _divided(value, variance, divisor)
        error = np.sqrt(variance)
    for name in ("bias", "dark", "flat", "gain"):
        term: Term | None = getattr(corrections, name)
        if term is not None and term.bad is not None:
            mask[term.bad] |= ImageFlag[name.upper()].bit
    if corrections.defects is not None:
        mask[corrections.defects] |= ImageFlag.DEFECT.bit
    lost = ~(np.isfinite(value) & np.isfinite(error))
    mask[lost] |= ImageFlag.NO_VALUE.bit
    value[lost] = error[lost] = np.nan
    return Calibrated(value, error, mask)


def _divided(
    value: NDArray[np.float64], variance: NDArray[np.float64], term: Term
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Divide by a quantity that has an error of its own."""
    divisor = np.asarray(term.value, np.float64)
    value = value / divisor
    return value, (variance + np.square(value * term.error)) / np.square(divisor)
