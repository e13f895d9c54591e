"""The factors of ISO speeds, as the job iso-normalisation writes them and others read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibdask.errors import MissingInput
from calibdask.sensor.model import IsoCurve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays

__all__ = ["CURVE", "CURVE_COLUMNS", "TABLE", "IsoTable"]

TABLE = "/sensor/iso_normalisation"
CURVE = "/sensor/iso_curve"

CURVE_COLUMNS = ("slope", "slope_error", "knee", "knee_error", "covariance")


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
        for name in (TABLE, CURVE):
            if name not in tables:
                raise MissingInput(
                    f"the option iso names an output without the table {name}: it is to be that of"
                    " the job iso-normalisation"
                )
        table, curve = tables[TABLE], tables[CURVE]
        kind = np.asarray(curve["kind"]).astype(str).tolist()[0]
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
        """Give the factor of an ISO speed and its standard error."""
        (measured,) = np.nonzero(self.iso == iso)
        if len(measured):
            return float(self.factor[measured[0]]), float(self.factor_error[measured[0]])
        value, error = self.curve(iso)
        return float(value), float(error)
