"""The report's part about simulated arrays: results against the true values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from calibdask.array.report_quantity import correlation_of, take_rows
from calibdask.report.blocks import Notice, Paragraph, table_block
from calibdask.report.telescopes import draw_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.report_quantity import CalibratedQuantity, Columns
    from calibdask.report.blocks import Block

__all__ = ["compare_with_truth"]


def compare_with_truth(
    telescopes: Columns,
    pairs: Columns,
    covariance: Columns,
    truth: Mapping[int, float],
    quantity: CalibratedQuantity,
) -> list[Block]:
    """Compare with the true values, after putting these on the scale of each component."""
    schema = quantity.schemas[quantity.table]
    value, error = telescopes["value"], telescopes["error"]
    expected = np.array([truth.get(tel, math.nan) for tel in telescopes["tel_id"].tolist()])
    for component in np.unique(telescopes["component"]).tolist():
        rows = telescopes["component"] == component
        expected[rows] = _scaled_truth(take_rows(telescopes, rows), pairs, expected[rows], quantity)
    pull = np.full(len(value), math.nan)
    np.divide(value - expected, error, out=pull, where=error > 0)
    tested = np.isfinite(pull)
    if not tested.any():
        text = f"No telescope has a true {quantity.name} and a value with an error."
        return [Notice("warning", text)]
    kind, unit = ("", f" {quantity.unit}") if quantity.unit else ("relative ", "%")
    scale = 1.0 if quantity.unit else 100 / expected
    deviation = scale * (value - expected)
    rms = f"{math.sqrt(np.mean(deviation[tested] ** 2)):.3g}{unit}"
    rms_pull = math.sqrt(np.mean(pull[tested] ** 2))
    n_beyond = int((np.abs(pull[tested]) > 3).sum())
    chi2, ndf = _correlated_chi2(
        pull[tested], correlation_of(telescopes["tel_id"][tested], covariance)
    )
    return [
        Paragraph(
            f"{int(tested.sum())} telescopes have a known true {quantity.name}. The root mean "
            f"square of the {kind}deviation is {rms}, that of the pulls (deviation over "
            f"error) {rms_pull:.2f}; {n_beyond} deviate by more than three errors. Telescopes of "
            "one component share the error of its reference, so their pulls move together: with "
            f"the full covariance chi2 is {chi2:.1f} for {ndf} degrees of freedom, and honest "
            "errors make the two about equal. The truth is put on the scale of each component: "
            "that of its reference, or of its weighted mean where that is what is fixed."
        ),
        draw_values(
            telescopes,
            deviation,
            scale * error,
            label=f"deviation, {unit.strip()}",
            baseline=0.0,
            alt=f"{kind.capitalize()}deviation from the true {quantity.name} by telescope: root "
            f"mean square {rms}, of the pulls {rms_pull:.2f}.",
            caption=f"Deviation from the true {quantity.name}, with its standard error.",
        ),
        table_block(
            schema,
            telescopes,
            ("tel_type", "tel_id", "value", "error", "Truth", "Pull", "flags"),
            "Value and truth of every telescope. Marked: more than three errors apart.",
            derived={"Truth": expected, "Pull": pull},
            formats={"Pull": "z.2f"},
            error_of={"Truth": schema.by_name["error"].title},
            marked=np.abs(pull) > 3,
        ),
    ]


def _scaled_truth(
    telescopes: Columns, pairs: Columns, expected: NDArray[np.float64], quantity: CalibratedQuantity
) -> NDArray[np.float64]:
    """Truth of one component, on the scale of its values.

    Without a reference the weighted mean of ln c (or of the offsets) is fixed, and the weight of a
    telescope is that of its pairs, as in the fit.
    """
    value = telescopes["value"]
    usable = np.isfinite(value) & np.isfinite(expected)
    if not quantity.unit:
        usable &= (value > 0) & (expected > 0)
    if (usable & telescopes["is_reference"]).any():
        usable &= telescopes["is_reference"]
    error = pairs[f"{quantity.column}_error"]
    used = pairs["used"] & (error > 0)
    weights = np.zeros(len(expected))
    for side in ("tel_id_1", "tel_id_2"):
        ends = telescopes["tel_id"][:, None] == pairs[side][used]
        weights += ends @ (error[used] ** -2.0)
    if not weights[usable].any():
        return np.full(len(expected), math.nan)
    if quantity.unit:
        shift = np.average(value[usable] - expected[usable], weights=weights[usable])
        return np.asarray(expected + shift)
    log_ratio = np.log(value[usable] / expected[usable])
    return np.asarray(expected * math.exp(np.average(log_ratio, weights=weights[usable])))


def _correlated_chi2(
    pull: NDArray[np.float64], correlation: NDArray[np.float64]
) -> tuple[float, int]:
    """Sum of squared pulls along the independent directions of a correlation matrix.

    Directions without variance, as the fixed mean of a component, count neither in chi2 nor in
    the degrees of freedom.
    """
    eigenvalues, vectors = np.linalg.eigh(np.nan_to_num(correlation, nan=0.0))
    free = eigenvalues > 1e-9 * eigenvalues[-1]
    projected = vectors.T[free] @ pull
    return float(np.sum(projected**2 / eigenvalues[free])), int(free.sum())
