"""What the reports of networks of pairs share: the quantity in words, rows, correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.schema import TableSchema

    type Columns = dict[str, NDArray[Any]]

__all__ = ["CalibratedQuantity", "correlation_of", "take_rows"]


@dataclass(frozen=True, slots=True)
class CalibratedQuantity:
    """What the telescopes are calibrated for, in words.

    Attributes
    ----------
    job : str
        Name of the job.
    schemas : mapping of str to TableSchema
        Tables of the result by path (see `calibdask.array.tables`), that of the telescopes first.
    name, symbol : str
        What a value is called in text, and at an axis.
    text : str
        What it is and how it was found.
    baseline : float
        Value of a telescope like its reference.
    column : str
        Column of what the pairs compare.
    """

    job: str
    schemas: Mapping[str, TableSchema]
    name: str
    symbol: str
    text: str
    baseline: float
    column: str

    @property
    def table(self) -> str:
        """Path of the table of telescopes."""
        return next(iter(self.schemas))

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.name.capitalize()

    @property
    def unit(self) -> str:
        """Unit of values and differences; "" for ratios, whose deviations are in percent."""
        return self.schemas[self.table].by_name["value"].unit

    @property
    def difference(self) -> str:
        """What the pairs compare, in words."""
        return self.schemas[f"{self.table}_pairs"].by_name[self.column].heading

    @property
    def of_pairs(self) -> tuple[str, ...]:
        """Columns of the pairs that are shown."""
        d = self.column
        return (
            "tel_type", "tel_id_1", "tel_id_2", "n_events", d, f"{d}_error", f"model_{d}",
            "residual", "pull", f"std_{d}",
            *(() if self.unit else ("mean_asymmetry", "std_asymmetry")), "used", "flags",
        )  # fmt: skip


def take_rows(columns: Columns, rows: NDArray[Any]) -> Columns:
    """Select rows, by mask or by index."""
    return {name: values[rows] for name, values in columns.items()}


def correlation_of(tel_id: NDArray[Any], covariance: Columns) -> NDArray[np.float64]:
    """Correlation matrix of the values, shape (n_telescopes, n_telescopes).

    NaN across components, and for a fixed reference, which has no variance.
    """
    row_of = {tel: row for row, tel in enumerate(tel_id.tolist())}
    known = np.isin(covariance["tel_id_1"], tel_id) & np.isin(covariance["tel_id_2"], tel_id)
    rows_1 = [row_of[tel] for tel in covariance["tel_id_1"][known].tolist()]
    rows_2 = [row_of[tel] for tel in covariance["tel_id_2"][known].tolist()]
    matrix = np.full((len(tel_id), len(tel_id)), math.nan)
    matrix[rows_1, rows_2] = covariance["covariance"][known]
    variance = np.diagonal(matrix)
    sigma = np.sqrt(np.where(variance > 0, variance, math.nan))
    return np.asarray(matrix / np.outer(sigma, sigma))
