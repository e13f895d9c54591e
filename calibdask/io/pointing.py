"""Where the telescopes pointed: ctapipe's monitoring tables, interpolated at the time of an event.

The tables stand at `/dl1/monitoring/telescope/pointing/tel_XXX` or, in other versions, at
`/dl0/monitoring/telescope/pointing/tel_XXX`; where both are, the first counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.times import stored_time_ns
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Table

__all__ = ["PLACES", "Pointing", "read_block_pointing", "read_pointing", "require_pointing"]

PLACES = ("/dl1/monitoring/telescope/pointing", "/dl0/monitoring/telescope/pointing")
"""Groups of the pointing tables, in the order in which they are looked for."""

_BLOCKS = "/configuration/observation/observation_block"
_ALTAZ = 0  # ctapipe.containers.CoordinateFrameType.ALTAZ

_TO_RAD = {"rad": 1.0, "deg": np.pi / 180}


@dataclass(frozen=True, slots=True, eq=False)
class Pointing:
    """The altitude of one telescope over time.

    Attributes
    ----------
    time_ns : ndarray of int64, shape (N,)
        In ns of TAI since 1970, not falling.
    altitude_rad : ndarray of float64, shape (N,)
        Angle above the horizon.
    """

    time_ns: NDArray[np.int64]
    altitude_rad: NDArray[np.float64]

    def altitude_at(self, time_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Interpolate linearly; NaN before the first time and after the last.

        Times are subtracted as integers: a float of 1.7e9 s resolves 240 ns.

        Parameters
        ----------
        time_ns : ndarray of int64, shape (M,)
            In ns of TAI since 1970.
        """
        altitude = np.full(len(time_ns), np.nan)
        if not len(self.time_ns):
            return altitude
        inside = (time_ns >= self.time_ns[0]) & (time_ns <= self.time_ns[-1])
        wanted = time_ns[inside]
        after = np.searchsorted(self.time_ns, wanted, side="left")
        before = np.maximum(after - 1, 0)
        step_ns = np.maximum(self.time_ns[after] - self.time_ns[before], 1)
        fraction = (wanted - self.time_ns[before]) / step_ns
        exact = self.time_ns[after] == wanted
        fraction[exact] = 1.0
        low, high = self.altitude_rad[before], self.altitude_rad[after]
        altitude[inside] = np.where(exact, high, low + fraction * (high - low))
        return altitude


def require_pointing(path: Path | str) -> None:
    """Make sure that a file has pointing tables.

    Raises
    ------
    MissingInput
        It has none, in neither place.
    CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        if not any(place in file for place in PLACES):
            raise MissingInput(
                f"{path}: no pointing tables at {' or '.join(PLACES)}, which the altitude in"
                " equidistant_event_selection needs; set its second number to 0 to do without"
            )


def read_pointing(path: Path | str, tel_ids: Iterable[int]) -> dict[int, Pointing]:
    """Read the pointing of telescopes; those without a table are left out.

    Parameters
    ----------
    path : Path or str
        The file.
    tel_ids : iterable of int
        The telescopes.

    Raises
    ------
    CorruptedInput
        A table without times or altitudes, or with others than ctapipe's; or as
        `calibdask.io.hdf5.open_hdf5`.
    MissingInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    found = {}
    with open_hdf5(path) as file:
        for tel_id in tel_ids:
            for place in PLACES:
                where = f"{place}/tel_{tel_id:03d}"
                if where in file:
                    found[tel_id] = _read(Path(path), file.table(where))
                    break
    return found


def read_block_pointing(path: Path | str) -> dict[int, tuple[float, float]]:
    """Read where the array was pointed in each observation block, altitude and azimuth in rad.

    Blocks that follow a source in the sky have no such direction and are left out.

    Parameters
    ----------
    path : Path or str
        The file.

    Raises
    ------
    MissingInput
        No such file, or no block with a direction.
    CorruptedInput
        The directions have no unit of an angle; or as `calibdask.io.hdf5.open_hdf5`.
    TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    names = ("obs_id", "subarray_pointing_lat", "subarray_pointing_lon", "subarray_pointing_frame")
    found: dict[int, tuple[float, float]] = {}
    with open_hdf5(path) as file:
        table = file.find(_BLOCKS)
        if table is not None and set(names) <= set(table.names):
            factors = []
            for name in names[1:3]:
                unit = table.unit(name)
                if unit not in _TO_RAD:
                    raise CorruptedInput(
                        f"{path}: {_BLOCKS} has {name} in {unit!r}, expected rad or deg"
                    )
                factors.append(_TO_RAD[unit])
            for obs_id, lat, lon, frame in zip(*table.columns(names).values(), strict=True):
                if frame == _ALTAZ and np.isfinite([lat, lon]).all():
                    found[int(obs_id)] = float(lat) * factors[0], float(lon) * factors[1]
    if not found:
        raise MissingInput(
            f"{path}: {_BLOCKS} does not tell where the array pointed (altitude and azimuth)"
        )
    return found


def _read(path: Path, table: Table) -> Pointing:
    where = f"{path}: {table.path}"
    if lacking := [name for name in ("time", "altitude") if name not in table.names]:
        raise CorruptedInput(f"{where} has no column {lacking[0]}")
    unit = table.unit("altitude")
    if unit not in _TO_RAD:
        raise CorruptedInput(f"{where} has altitude in {unit!r}, expected rad or deg")
    rows = table.read()
    time_ns = stored_time_ns(path, table, "time", rows["time"])
    altitude_rad = rows["altitude"].astype(np.float64) * _TO_RAD[unit]
    order = np.argsort(time_ns, kind="stable")
    order = order[time_ns[order] != NO_TIME]
    return Pointing(time_ns[order], altitude_rad[order])
