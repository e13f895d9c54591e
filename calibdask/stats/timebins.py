"""Time bins that do not depend on where files begin: whole multiples of a width since an epoch.

Times are integers: nanoseconds of TAI since 1970-01-01 TAI. A float of 1.7e9 s resolves 240 ns, and
an event at the edge of a bin must fall on the same side wherever it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.time import Time
    from numpy.typing import ArrayLike, NDArray

__all__ = ["NO_TIME", "TimeBins", "ctao_time", "ctao_time_ns", "to_time"]

_NS_PER_S = 1_000_000_000

NO_TIME: int = np.iinfo(np.int64).min
"""Stands for a time that is not known, and for the bin of such a time."""

_NO_SECONDS = (0, 2**32 - 1)
"""What ctapipe stores for times that it does not know, or cannot store."""


@dataclass(frozen=True, slots=True)
class TimeBins:
    """Half-open bins [epoch + k width, epoch + (k + 1) width).

    Attributes
    ----------
    width_ns : int
        Width, in ns.
    epoch_ns : int
        Where bin 0 begins, in ns of TAI since 1970.
    """

    width_ns: int
    epoch_ns: int

    def __post_init__(self) -> None:
        if self.width_ns < 1:
            raise ValueError(f"a time bin of {self.width_ns} ns")

    def index(self, time_ns: ArrayLike) -> NDArray[np.int64]:
        """Return the number of each time's bin; negative before the epoch.

        Parameters
        ----------
        time_ns : array_like of int
            Times in ns of TAI since 1970; `NO_TIME` has the bin `NO_TIME`, which is none.
        """
        time = np.asarray(time_ns)
        if time.dtype.kind not in "iu" and time.size:
            raise TypeError(f"times are integers in ns, not {time.dtype}")
        time = time.astype(np.int64)
        known = time != NO_TIME
        number = (np.where(known, time, self.epoch_ns) - self.epoch_ns) // self.width_ns
        return np.where(known, number, NO_TIME)

    def edges_ns(self, index: int) -> tuple[int, int]:
        """Return where bin `index` begins and ends, in ns of TAI since 1970."""
        start = self.epoch_ns + index * self.width_ns
        return start, start + self.width_ns

    def config(self) -> dict[str, int]:
        """Return what identifies the bins, for the address of what is computed from them."""
        return {"width_ns": self.width_ns, "epoch_ns": self.epoch_ns}


def ctao_time_ns(stored: NDArray[Any]) -> NDArray[np.int64]:
    """Convert ctapipe's stored times to integers, whole nanoseconds of TAI since 1970.

    Parameters
    ----------
    stored : ndarray of uint32, shape (n, 2)
        Second and quarter-nanosecond within it ("ctao_high_res"). A second of 0 or 2**32 - 1, of
        which ctapipe writes the former where there is no time, gives `NO_TIME`.
    """
    second, quarter = stored[:, 0].astype(np.int64), stored[:, 1].astype(np.int64)
    time_ns = second * _NS_PER_S + quarter // 4
    return np.where(np.isin(second, _NO_SECONDS) | (second < 0), NO_TIME, time_ns)


def to_time(time_ns: ArrayLike) -> Time:
    """Convert integers, ns of TAI since 1970, to times in UTC that astropy and people read."""
    from astropy.time import Time

    second, ns = np.divmod(np.asarray(time_ns, np.int64), _NS_PER_S)
    time = Time(second, ns * 1e-9, format="unix_tai", precision=9).utc
    time.format = "isot"
    return time


def ctao_time(time: Time) -> NDArray[np.uint32]:
    """Convert times to ctapipe's stored form, the inverse of `ctao_time_ns`.

    Raises
    ------
    ValueError
        A time before 1970 or after 2106, which this form does not hold.
    """
    tai = time.tai
    # jd1 is a whole or half day and jd2 a fraction of one, so this resolves 10 ps.
    whole, rest = (tai.jd1 - 2440587.5) * 86400.0, tai.jd2 * 86400.0
    quarters = np.rint(rest * 4e9).astype(np.int64) + whole.astype(np.int64) * 4 * _NS_PER_S
    second, quarter = np.divmod(quarters, 4 * _NS_PER_S)
    if np.any((second < 0) | (second >= 2**32)):
        raise ValueError("a time before 1970 or after 2106 cannot be stored")
    return np.stack([second, quarter], axis=-1).astype(np.uint32)
