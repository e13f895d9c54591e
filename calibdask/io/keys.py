"""Numbers of observations, events and telescopes, whatever type a file stores them in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["whole_numbers"]


def whole_numbers(values: NDArray[Any], what: str) -> NDArray[np.int64]:
    """Convert identifiers to int64, in which those of all tables can be compared.

    Parameters
    ----------
    values : ndarray of int, uint or float
        As they were read: the data model has uint64, and tables that were joined may have floats.
    what : str
        File, table and column, for the message.

    Returns
    -------
    ndarray of int64
        The same numbers.

    Raises
    ------
    CorruptedInput
        A number is not whole, or does not fit.
    """
    if values.dtype.kind not in "iuf":
        raise CorruptedInput(f"{what} as {values.dtype}: not a number")
    if values.dtype.kind == "f":
        # Above 2**53 a float does not tell two integers apart.
        good = (np.abs(values) <= 2**53) & (values == np.floor(values))
    elif values.dtype == np.uint64:
        good = values < 2**63
    else:
        return values.astype(np.int64, copy=False)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise CorruptedInput(
            f"{what} with {values[row]} in row {row} of those read ({int((~good).sum())} such"
            " rows): expected integers that fit 64 bits with a sign; write the file again"
        )
    return values.astype(np.int64)
