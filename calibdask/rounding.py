"""Numbers for people: a value to the digits that its error leaves it. Products are not rounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_VALUE", "error_columns", "format_bytes", "format_number", "round_to_error"]

NO_VALUE = "–"
"""What stands for a value that is not there."""


def format_number(value: float, spec: str) -> str:
    """Format a number; NaN is no value."""
    return NO_VALUE if math.isnan(value) else format(value, spec)


def format_bytes(n_bytes: float) -> str:
    """Format a number of bytes with one decimal, in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def round_to_error(value: float, error: float) -> tuple[str, str]:
    """Round a value and its error to the same decimals.

    Parameters
    ----------
    value, error : float
        In the same unit.

    Returns
    -------
    value, error : str
        With two significant digits of the error. Where the error is zero or not finite it cannot
        say how many digits count, and both are shown with four significant digits.
    """
    if not (math.isfinite(error) and error > 0):
        return format_number(value, ".4g"), format_number(error, ".4g")
    # The exponent of the *rounded* error: 0.0996 is 0.10, not 0.100.
    decimals = 1 - int(f"{error:.1e}".partition("e")[2])
    if decimals > 9:
        return format_number(value, ".10g"), f"{error:.1e}"
    if decimals < 0:
        value, error = float(np.round(value, decimals)), float(np.round(error, decimals))
    digits = max(decimals, 0)
    return format_number(value, f"z.{digits}f"), f"{error:.{digits}f}"


def error_columns(names: Sequence[str]) -> dict[str, str]:
    """Return the error of each column that has one among them, by the names that products use."""
    known = {"value": "error", "mean": "sem"}
    found = {}
    for name in names:
        for error in (known.get(name, ""), f"{name}_error", f"{name}_err"):
            if error in names:
                found[name] = error
                break
    return found
