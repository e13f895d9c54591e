"""Times as ctapipe stores them in HDF5 tables, to integers: nanoseconds of TAI since 1970.

The attributes CTAFIELD_i_TIME_FORMAT and CTAFIELD_i_TIME_SCALE of a column say what its numbers
are: seconds and quarter-nanoseconds ("ctao_high_res"), or a number in one of astropy's formats,
such as "mjd" (`ctapipe.io.tableio.TimeColumnTransform`, ctapipe 0.32). For the former ctapipe
itself assumes TAI, whatever the scale says; here the scale counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput
from calibdask.stats.timebins import NO_TIME, ctao_time_ns

if TYPE_CHECKING:
    from pathlib import Path

    from astropy.time import Time
    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Table

__all__ = ["HIGH_RESOLUTION", "check_times", "ns_of_time", "stored_time_ns", "time_format"]

HIGH_RESOLUTION = "ctao_high_res"
"""Format of two unsigned integers: second, and quarter-nanosecond within it."""

_SCALES = ("tai", "utc", "tt", "tdb")
_MJD_OF_1970 = 40587
_JD_OF_1970 = 2_440_587.5
_NS_PER_DAY = 86_400_000_000_000
_END_NS = (2**32 - 1) * 1_000_000_000  # of what ctapipe stores

_FORMATS = {
    "mjd": (_MJD_OF_1970, 1),
    "jd": (_JD_OF_1970, 1),
    "unix": (0, 86400),
    "unix_tai": (0, 86400),
}
"""Formats of one number that are read: the number of 1970, and units in a day."""


def time_format(table: Table, name: str) -> tuple[str, str]:
    """Return format and scale of a column of times, as its attributes or else its type say.

    Parameters
    ----------
    table : Table
        The table.
    name : str
        Its column.

    Returns
    -------
    str
        `HIGH_RESOLUTION`, or a format of astropy, lower case.
    str
        Scale of astropy, lower case.
    """
    default = HIGH_RESOLUTION if table.dtype[name].shape == (2,) else "mjd"
    form, scale = (
        str(table.field(name, f"TIME_{key}") or otherwise).lower()
        for key, otherwise in (("FORMAT", default), ("SCALE", "tai"))
    )
    return form, scale


def check_times(path: Path | str, table: Table, name: str) -> None:
    """Refuse a column of times that cannot be read.

    Parameters
    ----------
    path : Path or str
        The file, for the message.
    table : Table
        The table.
    name : str
        Its column, which exists.

    Raises
    ------
    CorruptedInput
        The format or the scale is unknown, or the numbers are not of the format.
    """
    form, scale = time_format(table, name)
    dtype = table.dtype[name]
    if form == HIGH_RESOLUTION:
        fits = dtype.shape == (2,) and dtype.base.kind in "iu"
    else:
        fits = form in _FORMATS and dtype.shape == () and dtype.base.kind == "f"
    if not fits or scale not in _SCALES:
        msg = (
            f"{path}: {table.path} has {name} as {dtype}, in the format {form!r} and the"
            f" scale {scale!r}; expected are seconds and quarter-nanoseconds ({HIGH_RESOLUTION}) or"
            f" a number ({', '.join(_FORMATS)}), in the scale {', '.join(_SCALES)}: convert"
            " the file"
        )
        raise CorruptedInput(msg)


def stored_time_ns(
    path: Path | str, table: Table, name: str, values: NDArray[Any]
) -> NDArray[np.int64]:
    """Convert a column of times to nanoseconds of TAI since 1970.

    Parameters
    ----------
    path : Path or str
        The file, for messages.
    table : Table
        The table that the values are of.
    name : str
        Its column.
    values : ndarray, shape (N, 2) or (N,)
        What was read of it.

    Returns
    -------
    ndarray of int64, shape (N,)
        `NO_TIME` for what stands for no time: NaN, and times outside of 1970-2106, as ctapipe
        writes zeros where there is none.

    Raises
    ------
    CorruptedInput
        As `check_times`.
    """
    check_times(path, table, name)
    form, scale = time_format(table, name)
    if form == HIGH_RESOLUTION:
        time_ns = ctao_time_ns(values)
        if scale == "tai":
            return time_ns
        known = time_ns != NO_TIME
        # By the day's beginning: astropy stretches a day with a leap second, computers do not.
        day, rest_ns = np.divmod(np.where(known, time_ns, 0), _NS_PER_DAY)
        day_ns = _by_astropy(known, "mjd", scale, day + _MJD_OF_1970)
        return np.where(known, day_ns + rest_ns, NO_TIME)
    # Only dates that can be: astropy warns of others.
    first, per_day = _FORMATS[form]
    known = (values > first) & (values < first + per_day * (_END_NS / _NS_PER_DAY))
    if (form, scale) != ("mjd", "tai"):
        return _by_astropy(known, form, scale, values)
    value = np.where(known, values, first)
    days = np.floor(value)
    rest_ns = np.rint((value - days) * _NS_PER_DAY).astype(np.int64)
    time_ns = (days.astype(np.int64) - _MJD_OF_1970) * _NS_PER_DAY + rest_ns
    return _within(known, time_ns)


def _by_astropy(
    known: NDArray[np.bool_], form: str, scale: str, values: NDArray[Any]
) -> NDArray[np.int64]:
    from astropy.time import Time

    time_ns = np.full(len(known), NO_TIME)
    time_ns[known] = ns_of_time(Time(values[known].astype(np.float64), format=form, scale=scale))
    return time_ns


def _within(known: NDArray[np.bool_], time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(known & (time_ns > 0) & (time_ns < _END_NS), time_ns, NO_TIME)


def ns_of_time(time: Time) -> NDArray[np.int64]:
    """Convert astropy's times to nanoseconds of TAI since 1970, rounded down to whole ones.

    Parameters
    ----------
    time : astropy.time.Time, shape (N,) or ()
        Times in any scale.

    Returns
    -------
    ndarray of int64, the same shape
        `NO_TIME` for NaN and what is outside of 1970-2106.
    """
    tai = time.tai
    halves = np.asarray(2 * (tai.jd1 - _JD_OF_1970), np.float64)
    quarters = np.rint(np.asarray(tai.jd2, np.float64) * (4 * _NS_PER_DAY))
    known = np.isfinite(halves) & np.isfinite(quarters)
    halves, quarters = np.where(known, halves, 0.0), np.where(known, quarters, 0.0)
    time_ns = halves.astype(np.int64) * (_NS_PER_DAY // 2) + quarters.astype(np.int64) // 4
    return _within(known, time_ns)
