"""What the values of the frames themselves tell about the converter: where it ends, and its steps.

White levels in raw files are often too high: pixels then pile up below them, at a value that looks
like any other. And converters of 12 or 14 bits are often written left-justified, in steps of 16 or
4, so that rounding is coarser than it seems.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.sensor.summary import FACTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["pile_up", "step_of"]

_LEAST_PIXELS = 3  # at the greatest value of one frame
_PILE = 3  # times as many as at the value below: the tail of a distribution gets thinner
_LEAST_FRAMES = 2
_CLEAR = 16  # steps that some frame's greatest value lies below
_STEPS = 2  # that a frame's values must span


def _columns(facts: Iterable[NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    joined = [*facts]
    table = np.concatenate(joined) if joined else np.zeros((0, len(FACTS)))
    return dict(zip(FACTS, table.T, strict=True))


def step_of(facts: Iterable[NDArray[np.float64]]) -> int:
    """Find the power of two that all values of all frames are multiples of.

    Parameters
    ----------
    facts : iterable of ndarray, shape (n_frames, 10)
        Of each stack (`calibdask.sensor.summary.FACTS`).

    Returns
    -------
    int
        1 as well where frames are not of integers, or have too few different values to tell.
    """
    of = _columns(facts)
    if not of["bits"].size or not of["bits"].all():
        return 1
    bits = int(np.bitwise_or.reduce(of["bits"].astype(np.int64)))
    step = bits & -bits
    spans = of["greatest"] - of["least"]
    # A constant and an outlier have a common divisor, too, but not its next multiple.
    return step if bits & 2 * step and spans.max() >= _STEPS * step else 1


def pile_up(
    facts: Iterable[NDArray[np.float64]], stated: float | None, n_pixels: int, step: int = 1
) -> int | None:
    """Find the value at which pixels are cut off, below the stated saturation.

    It is the greatest value of all frames; at least two frames have three pixels or more there, and
    three times as many as at the next value below, which no tail of noise has. In a frame that has
    most of its pixels at these two values noise may be below a step, and so these frames count only
    where others end well below.

    Parameters
    ----------
    facts : iterable of ndarray, shape (n_frames, 10)
        Of each stack (`calibdask.sensor.summary.FACTS`).
    stated : float or None
        The saturation as it is stated, DN; None where it is not.
    n_pixels : int
        Pixels of a frame that the facts are of.
    step : int
        Step of the values, DN.

    Returns
    -------
    int or None
        DN; None where nothing piles up below `stated`.
    """
    of = _columns(facts)
    if not of["greatest"].size:
        return None
    top = float(of["greatest"].max())
    if not np.isfinite(top) or top <= 0 or (stated is not None and top >= stated):
        return None
    at_top = of["greatest"] == top
    piled = at_top & (of["n_greatest"] >= _LEAST_PIXELS)
    piled &= of["n_greatest"] >= _PILE * of["n_second"]
    narrow = of["n_greatest"] + of["n_second"] > 0.5 * n_pixels
    if not (of["greatest"] < top - _CLEAR * step).any():
        piled &= ~narrow
    return int(top) if np.count_nonzero(piled) >= _LEAST_FRAMES else None
