"""Reading results back, and comparing them with the truth of a simulation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable

    from calibdask.array.simulate import SimulatedArray

MONITORING = "/dl2/monitoring/subarray"
COEFFICIENTS = f"{MONITORING}/inter_calibration"


def read_table(path: Any, where: str = COEFFICIENTS) -> QTable:
    """Read a table with ctapipe's own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ctapipe's imports say is not about our files
        from ctapipe.io import read_table as read

        return read(path, where)


def by_telescope(table: QTable, column: str) -> dict[int, Any]:
    """Return a column by telescope number."""
    return dict(zip(table["tel_id"].tolist(), table[column].tolist(), strict=True))


def true_ratios(table: QTable, truth: SimulatedArray) -> np.ndarray:
    """Throughput of each row's telescope over that of its component's reference."""
    true = np.array([truth.throughput[number] for number in table["tel_id"].tolist()])
    fixed = ["R" in flags for flags in table["flags"]]
    reference = dict(zip(table["component"][fixed], true[fixed], strict=True))
    scale = np.array([reference.get(component, np.nan) for component in table["component"]])
    return true / scale


def pulls(table: QTable, truth: SimulatedArray) -> np.ndarray:
    """(value - truth)/error of the telescopes that have an error."""
    error = np.asarray(table["error"])
    good = np.isfinite(error) & (error > 0)
    value = np.asarray(table["value"])
    return (value - true_ratios(table, truth))[good] / error[good]


def normalised_chi2(tables: Mapping[str, QTable], truth: SimulatedArray) -> tuple[float, int]:
    """(c - c_true)^T C^-1 (c - c_true) over all components, and its degrees of freedom."""
    table = tables[COEFFICIENTS]
    covariance = tables[f"{COEFFICIENTS}_covariance"]
    deviation = dict(
        zip(
            table["tel_id"].tolist(),
            (np.asarray(table["value"]) - true_ratios(table, truth)).tolist(),
            strict=True,
        )
    )
    total, freedom = 0.0, 0
    for component in np.unique(table["component"][table["component"] >= 0]):
        rows = covariance[covariance["component"] == component]
        free = [
            number
            for number, flags in zip(table["tel_id"].tolist(), table["flags"], strict=True)
            if "R" not in flags and number in set(rows["tel_id_1"].tolist())
        ]
        index = {number: i for i, number in enumerate(free)}
        matrix = np.zeros((len(free), len(free)))
        for one, two, value in zip(
            rows["tel_id_1"].tolist(), rows["tel_id_2"].tolist(), rows["covariance"], strict=True
        ):
            if one in index and two in index:
                matrix[index[one], index[two]] = value
        delta = np.array([deviation[number] for number in free])
        total += float(delta @ np.linalg.solve(matrix, delta))
        freedom += len(free)
    return total, freedom
