"""What is asked of a DL2 file, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Columns

__all__ = ["ArrayLayout", "Dl2Info", "Needs", "TelescopeEvents"]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayLayout:
    """The telescopes of a subarray, in the order of the file, which need not be sorted.

    Attributes
    ----------
    tel_id : array of uint16, (T,)
        Telescope numbers.
    tel_type : tuple of str, (T,)
        LST, MST or SST.
    tel_description : tuple of str, (T,)
        What ctapipe's patterns match, such as "LST_LST_LSTCam".
    position_m : array of float64, (T, 3)
        Ground frame: x to the North, y to the West, z up.
    reference_itrs_m : tuple of float or None
        Where on Earth the origin of that frame is (ITRS x, y, z), if the file says so.
    """

    tel_id: NDArray[np.uint16]
    tel_type: tuple[str, ...]
    tel_description: tuple[str, ...]
    position_m: NDArray[np.float64]
    reference_itrs_m: tuple[float, float, float] | None = None

    def contradiction(self, other: ArrayLayout) -> str | None:
        """Describe what two files tell differently about a telescope that both have.

        Parameters
        ----------
        other : ArrayLayout
            The layout in another file. Either may have telescopes that the other has not.

        Returns
        -------
        str or None
            The first contradiction: another type, or a position more than 1 m away.
        """
        index = {int(tel_id): i for i, tel_id in enumerate(self.tel_id)}
        for j, tel_id in enumerate(other.tel_id.tolist()):
            i = index.get(tel_id)
            if i is None:
                continue
            if self.tel_type[i] != other.tel_type[j]:
                return f"telescope {tel_id} is {self.tel_type[i]} and {other.tel_type[j]}"
            distance_m = float(np.linalg.norm(self.position_m[i] - other.position_m[j]))
            if not distance_m <= 1.0:
                return f"telescope {tel_id} stands in two places, {distance_m:.1f} m apart"
        return None


@dataclass(frozen=True, slots=True)
class Needs:
    """The columns a calibration reads.

    Attributes
    ----------
    base : str
        A column of the tables per telescope: its table gives the rows, one per telescope and event.
    columns : tuple of str
        Further columns, from any of the tables; without repetition.
    event_time : bool
        Also the time of each event, that of the array's trigger.
    event_types : tuple of int
        Given, also the type of each row (`ctapipe.containers.EventType`): that of the event, but
        where the telescope's own is none of these, that one.
    """

    base: str
    columns: tuple[str, ...] = ()
    event_time: bool = False
    event_types: tuple[int, ...] = ()

    @classmethod
    def energy(
        cls, energy_reconstructor: str, geometry_reconstructor: str, further: Iterable[str] = ()
    ) -> Needs:
        """Energy per telescope, its uncertainty and validity, and the impact distance.

        Parameters
        ----------
        energy_reconstructor, geometry_reconstructor : str
            Names of the algorithms, such as "RandomForestRegressor" and "HillasReconstructor".
        further : iterable of str
            More columns, such as those a quality expression mentions.
        """
        own = [f"{energy_reconstructor}_tel_{what}" for what in ("energy_uncert", "is_valid")]
        own.append(f"{geometry_reconstructor}_tel_impact_distance")
        return cls._of(f"{energy_reconstructor}_tel_energy", own, further)

    @classmethod
    def intensity(cls, geometry_reconstructor: str, further: Iterable[str] = ()) -> Needs:
        """Image intensity per telescope, and the impact distance.

        Parameters
        ----------
        geometry_reconstructor : str
            Name of the algorithm, such as "HillasReconstructor".
        further : iterable of str
            More columns, such as those a quality expression mentions.
        """
        return cls._of(
            "hillas_intensity", [f"{geometry_reconstructor}_tel_impact_distance"], further
        )

    @classmethod
    def _of(cls, base: str, own: Sequence[str], further: Iterable[str]) -> Needs:
        return cls(base, (*own, *sorted(set(further) - {base, *own})))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, the base first."""
        return (self.base, *self.columns)


@dataclass(frozen=True, slots=True)
class Dl2Info:
    """What a DL2 file holds, by its metadata.

    Attributes
    ----------
    layout : ArrayLayout
        Its telescopes.
    obs_ids : tuple of int
        Its observation blocks, sorted.
    n_events : int
        Rows of the trigger table: one per event.
    n_telescope_rows : int
        Rows of telescope events, from above: some may be in no table but the trigger's.
    bytes_needed : int
        Memory at the peak of `read_telescope_events` for the whole file, estimated from above.
    product_id : str or None
        "CTA PRODUCT ID" of the file.
    process_type : str or None
        "CTA PROCESS TYPE": "Observation" or "Simulation".
    has_telescope_times : bool
        Whether each telescope has trigger times: else a column "time" is that of the event.
    has_event_types : bool
        Whether the array's trigger table tells the type of each event.
    is_from_simtel : bool
        Whether the showers were simulated by sim_telarray.
    """

    layout: ArrayLayout
    obs_ids: tuple[int, ...]
    n_events: int
    n_telescope_rows: int
    bytes_needed: int
    product_id: str | None
    process_type: str | None
    has_telescope_times: bool = False
    has_event_types: bool = True
    is_from_simtel: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TelescopeEvents:
    """One row per telescope and event; telescopes one after the other, in the order of the layout.

    Attributes
    ----------
    layout : ArrayLayout
        The telescopes of the file.
    obs_id : array of int64, (N,)
        Observation block.
    event_id : array of int64, (N,)
        Event number in the block.
    event : array of int64, (N,)
        Index of the event here, 0 ... n_events - 1, in the order of (obs_id, event_id).
    tel_id : array of uint16, (N,)
        Telescope number.
    columns : dict of str to array, (N,) or (N, ...)
        The columns asked for. Real numbers are float64. Where a table lacks the row: NaN, or False
        for booleans; integers become float64 for it.
    units : dict of str to str
        Unit of each column, "" for none. Energies are in TeV, lengths in m.
    n_events : int
        Number of different events with at least one row.
    n_missing : dict of str to int
        For each column, the rows that its table lacks.
    event_time_ns : array of int64, (n_events,), or None
        Time of each event in ns of TAI since 1970, if it was asked for;
        `calibdask.stats.timebins.NO_TIME` where it is not known.
    event_type : array of int64, (N,), or None
        See `Needs`; -1 where the trigger table lacks the event. None where it was not asked for, or
        the table has no such column.
    n_lacking : dict of int to int
        For each telescope that lost any, the most rows that one of its tables lacks, of those that
        triggered it or that its other tables have: a writer was killed.
    warnings : tuple of str
        What people should know about these rows.
    """

    layout: ArrayLayout
    obs_id: NDArray[np.int64]
    event_id: NDArray[np.int64]
    event: NDArray[np.int64]
    tel_id: NDArray[np.uint16]
    columns: Columns
    units: dict[str, str]
    n_events: int
    n_missing: dict[str, int]
    event_time_ns: NDArray[np.int64] | None = None
    event_type: NDArray[np.int64] | None = None
    n_lacking: dict[int, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
