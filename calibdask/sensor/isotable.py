"""The factors of ISO speeds, as the job iso-normalisation writes them and others read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from calibdask.errors import MissingInput
from calibdask.sensor.model import IsoCurve
from calibdask.sensor.tables import ISO_CURVE, ISO_FACTORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays

__all__ = ["CURVE_COLUMNS", "READ", "IsoTable"]

CURVE_COLUMNS = ("slope", "slope_error", "knee", "knee_error", "covariance")

READ: Final = {
    ISO_FACTORS.path: (ISO_FACTORS, ("iso", "factor", "factor_error")),
    ISO_CURVE.path: (ISO_CURVE, ("kind", *CURVE_COLUMNS, "chi2", "ndf", "bic_linear", "bic_knee")),
}
"""Tables of products that other jobs read, by path, and which columns of them."""


@dataclass(frozen=True)
class IsoTable:
    """The factors of a camera: what was measured where it was, the curve elsewhere."""

    iso: NDArray[np.int64]
    factor: NDArray[np.float64]
    factor_error: NDArray[np.float64]
    curve: IsoCurve

    @classmethod
    def from_tables(cls, tables: Mapping[str, Arrays]) -> IsoTable:
        """Make it from the tables of an iso-normalisation product.

        Raises
        ------
        MissingInput
            They are another job's.
        """
        for name in (ISO_FACTORS.path, ISO_CURVE.path):
            if name not in tables:
                raise MissingInput(
                    f"the option iso names an output without the table {name}: it is to be that of"
                    " the job iso-normalisation"
                )
        table, curve = tables[ISO_FACTORS.path], tables[ISO_CURVE.path]
        kind = str(curve["kind"][0])
        slope, slope_error, knee, knee_error, covariance = (
            float(np.asarray(curve[name])[0]) for name in CURVE_COLUMNS
        )
        iso = np.asarray(table["iso"], np.int64)
        fit = IsoCurve(
            kind="knee" if kind == "knee" else "linear",
            slope=slope,
            slope_error=slope_error,
            knee=knee,
            knee_error=knee_error,
            covariance=covariance,
            iso_min=int(iso.min()),
            chi2=float(np.asarray(curve["chi2"])[0]),
            ndf=int(np.asarray(curve["ndf"])[0]),
            bic_linear=float(np.asarray(curve["bic_linear"])[0]),
            bic_knee=float(np.asarray(curve["bic_knee"])[0]),
        )
        return cls(
            iso,
            np.asarray(table["factor"], np.float64),
            np.asarray(table["factor_error"], np.float64),
            fit,
        )

    def __call__(self, iso: int) -> tuple[float, float]:
        """Return the factor of an ISO speed and its standard error."""
        (measured,) = np.nonzero(self.iso == iso)
        if len(measured):
            return float(self.factor[measured[0]]), float(self.factor_error[measured[0]])
        value, error = self.curve(iso)
        return float(value), float(error)
