"""Reading of ctapipe's DL2 files (and the image parameters of DL1), by PyTables alone.

A column is asked for by its name. It may stand in

* a table per telescope: `/dl2/event/telescope/<kind>/<algorithm>/tel_XXX` or
  `/dl1/event/telescope/parameters/tel_XXX`;
* one table for all telescopes: `/dl1/event/telescope/trigger`;
* a table of events: `/dl2/event/subarray/<kind>/<algorithm>` or `/dl1/event/subarray/trigger`.

What comes back is one row per telescope and event. Rows belong together when their keys are equal,
never by position alone. The layout is that of ctapipe 0.32 (data model 7, `ctapipe.io.DataWriter`).
"""

from __future__ import annotations

import difflib
import functools
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.hdf5 import BLOCK_BYTES, open_hdf5, standard_unit
from calibdask.io.keys import whole_numbers
from calibdask.io.times import check_times, stored_time_ns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Columns, File, Table

__all__ = [
    "ArrayLayout",
    "Dl2Info",
    "Needs",
    "TelescopeEvents",
    "event_ranges",
    "event_times",
    "inspect_dl2",
    "read_telescope_events",
]

_LAYOUT = "/configuration/instrument/subarray/layout"
_OBSERVATIONS = "/configuration/observation/observation_block"
_TRIGGER = "/dl1/event/subarray/trigger"
_SIMULATION_RUN = "/configuration/simulation/run"
_TELESCOPE_TRIGGER = "/dl1/event/telescope/trigger"
_PARAMETERS = "/dl1/event/telescope/parameters"
_DL2_TELESCOPE = "/dl2/event/telescope"
_DL2_EVENT = "/dl2/event/subarray"

_TIME = "time"
_EVENT_TYPE = "event_type"
_MASK = "tels_with_trigger"  # a column of the trigger table: (telescopes of the layout,)
_EVENT_KEYS = ("obs_id", "event_id")
_TELESCOPE_KEYS = ("obs_id", "event_id", "tel_id")

# What these must be in, whatever the file says of them.
_UNIT_OF_SUFFIX = {
    "_energy": "TeV",
    "_energy_uncert": "TeV",
    "_impact_distance": "m",
    "_core_x": "m",
    "_core_y": "m",
    "_h_max": "m",
    "pos_x": "m",
    "pos_y": "m",
    "pos_z": "m",
}

_SEARCH_ROWS = 4096

_SHOWN = 5  # telescopes in a message


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
        """Say what two files tell differently about a telescope that both have.

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


def inspect_dl2(path: Path | str, needs: Needs) -> Dl2Info:
    """Look at the metadata of a DL2 file: what it holds, and whether it has the columns needed.

    Parameters
    ----------
    path : Path or str
        The file.
    needs : Needs
        The columns.

    Returns
    -------
    Dl2Info
        Everything a plan needs to know of the file.

    Raises
    ------
    MissingInput
        No such file, table or column; with the nearest names there are.
    CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`, or a layout that makes no sense.
    """
    with open_hdf5(path) as file:
        reader = _Reader(Path(path), file)
        layout = reader.layout()
        wanted = reader.resolve(needs)
        n_rows = reader.n_telescope_rows(wanted[0].source, layout)
        trigger = reader.table(_TRIGGER)
        return Dl2Info(
            layout=layout,
            obs_ids=reader.obs_ids(),
            n_events=trigger.n_rows,
            n_telescope_rows=n_rows,
            bytes_needed=_bytes_needed(wanted, n_rows),
            product_id=file.attribute("CTA PRODUCT ID"),
            process_type=file.attribute("CTA PROCESS TYPE"),
            has_telescope_times=any(
                _TIME in source.dtypes
                for source in reader._source(_TELESCOPE_TRIGGER, "telescope and event")
            ),
            has_event_types=_EVENT_TYPE in trigger.names,
            is_from_simtel=_SIMULATION_RUN in file,
        )


def event_ranges(path: Path | str, n_ranges: int) -> tuple[tuple[int, int], ...]:
    """Cut the trigger table into ranges of about equal length, none of which splits an event.

    Parameters
    ----------
    path : Path or str
        The file.
    n_ranges : int
        How many; fewer when there are fewer events.

    Returns
    -------
    tuple of (first, stop)
        For `read_telescope_events`; together they cover the table.

    Raises
    ------
    CorruptedInput
        An event stands in two rows of the trigger table; or as `open_hdf5`.
    MissingInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        reader = _Reader(Path(path), file)
        table = reader.table(_TRIGGER)
        n_events = table.n_rows
        reader.refuse_duplicates(table, reader.read(table, _EVENT_KEYS))
    n_ranges = max(1, min(n_ranges, n_events))
    edges = [n_events * i // n_ranges for i in range(n_ranges + 1)]
    return tuple(pairwise(edges))


def event_times(path: Path | str) -> NDArray[np.int64]:
    """Read the time of each event, that of the array's trigger.

    Parameters
    ----------
    path : Path or str
        The file.

    Returns
    -------
    array of int64, (n_events,)
        In ns of TAI since 1970, in the order of the trigger table, which need not be that of time;
        `calibdask.stats.timebins.NO_TIME` for what stands for no time.

    Raises
    ------
    MissingInput
        No such file, or no time in its trigger table.
    CorruptedInput
        The times are stored in an unknown way; or as `open_hdf5`.
    TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        reader = _Reader(Path(path), file)
        table = reader.table(_TRIGGER)
        reader.check_time(table)
        return stored_time_ns(path, table, _TIME, reader.read(table, (_TIME,))[_TIME])


def read_telescope_events(
    path: Path | str, needs: Needs, rows: tuple[int, int] | None = None
) -> TelescopeEvents:
    """Read columns of a DL2 file, one row per telescope and event.

    Parameters
    ----------
    path : Path or str
        The file.
    needs : Needs
        The columns.
    rows : (first, stop), optional
        Rows of `/dl1/event/subarray/trigger`: only the telescope rows of these events are read.
        They are found by their keys: quickly where the tables are in the order of the events, by
        reading the whole table where they are not.

    Returns
    -------
    TelescopeEvents
        The rows.

    Raises
    ------
    MissingInput
        No such file, table or column; with the nearest names there are.
    CorruptedInput
        An event stands twice in a telescope's table, keys contradict the table's name, an energy
        or distance has no known unit, the file does not have these rows; or as `open_hdf5`.
    TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        reader = _Reader(Path(path), file)
        layout = reader.layout()
        wanted = reader.resolve(needs)
        chosen = None if rows is None else reader.chosen_events(layout, rows)
        return reader.telescope_events(layout, wanted, needs, chosen)


# --- what is in the file ---------------------------------------------------------------------

type _Per = Literal["telescope", "telescope and event", "event"]


@functools.lru_cache(maxsize=1000)
def _expected_unit(column: str) -> str | None:
    """Return the unit that a column of this name has to have, None for any."""
    return next((unit for end, unit in _UNIT_OF_SUFFIX.items() if column.endswith(end)), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A table, or a group with one table per telescope, and the types of its columns."""

    path: str
    per: _Per
    dtypes: dict[str, np.dtype[Any]]
    n_rows: int  # of the table; of one of the tables in a group


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """The columns to read from a source."""

    source: _Source
    names: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """The events of a range of rows of the trigger table."""

    rows: slice
    keys: Columns
    triggered: NDArray[np.bool_] | None  # (events, telescopes of the layout)
    in_order: bool
    n_events_in_file: int


@dataclass(frozen=True, slots=True, eq=False)
class _Lacking:
    """Counts the rows that tables lack, by table and telescope."""

    triggers: dict[int, int]
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def n_triggers(self, tel_id: int) -> int:
        return self.triggers.get(tel_id, 0)

    def set(self, path: str, tel_id: int, count: int) -> None:
        if count > 0:
            self.counts.setdefault(path, {})[tel_id] = count

    def by_telescope(self) -> dict[int, int]:
        most: dict[int, int] = {}
        for counts in self.counts.values():
            for tel_id, count in counts.items():
                most[tel_id] = max(count, most.get(tel_id, 0))
        return dict(sorted(most.items()))

    def warnings(self, path: Path) -> tuple[str, ...]:
        return tuple(
            f"{path}: {group} lacks {sum(counts.values())} rows of telescope events that the"
            f" trigger or other tables have ({_listed(counts)}): was its writer killed? These"
            " telescope events are left out wherever they need it"
            for group, counts in self.counts.items()
        )


def _listed(counts: dict[int, int]) -> str:
    shown = [f"telescope {tel_id}: {count}" for tel_id, count in sorted(counts.items())]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more)


def _has_mask(table: Table, layout: ArrayLayout) -> bool:
    return _MASK in table.names and table.dtype[_MASK].shape == layout.tel_id.shape


def _bytes_needed(wanted: Sequence[_Wanted], n_rows: int) -> int:
    """Output, one more copy of a column while they are joined, and what comparing keys takes."""
    width = 8 + 8 + 8 + 2  # obs_id, event_id, event, tel_id
    joined_apart = 0
    for want in wanted:
        item_bytes = sum(max(8, want.source.dtypes[name].itemsize) for name in want.names)
        width += item_bytes
        if want.source.per != "telescope":
            joined_apart = max(joined_apart, want.source.n_rows * (item_bytes + 64))
    return n_rows * (width + 64) + joined_apart + 4 * BLOCK_BYTES


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """Reads the tables of one open file; knows its name for the messages."""

    path: Path
    file: File
    units: dict[str, str] = field(default_factory=dict)

    # -- metadata

    def table(self, path: str) -> Table:
        """Return the table at `path`, which must have the keys of an event."""
        table = self._any_table(path)
        if lacking := [name for name in _EVENT_KEYS if name not in table.names]:
            msg = f"{self.path}: {path} has no column {lacking[0]}"
            raise CorruptedInput(msg)
        return table

    def _any_table(self, path: str) -> Table:
        table = self.file.find(path)
        if table is None:
            msg = f"{self.path}: has no table {path}; is it a ctapipe file with DL1 and DL2 data?"
            raise MissingInput(msg)
        return table

    def layout(self) -> ArrayLayout:
        table = self._any_table(_LAYOUT)
        axes = ("pos_x", "pos_y", "pos_z")
        texts = ("type", "tel_description")
        if lacking := {"tel_id", *texts, *axes} - set(table.names):
            msg = f"{self.path}: {_LAYOUT} has no column {', '.join(sorted(lacking))}"
            raise MissingInput(msg)
        if any(table.dtype[name].kind != "S" for name in texts):
            msg = f"{self.path}: {_LAYOUT} has no text in {' or '.join(texts)}"
            raise CorruptedInput(msg)
        columns = self.read(table, ("tel_id", *axes))
        tel_id = columns["tel_id"].astype(np.uint16)
        if not np.array_equal(tel_id, columns["tel_id"]) or np.unique(tel_id).size != tel_id.size:
            msg = f"{self.path}: {_LAYOUT} has wrong tel_id: {columns['tel_id'].tolist()}"
            raise CorruptedInput(msg)
        position_m = np.stack([columns[name] for name in axes], axis=1)
        if (lost := ~np.isfinite(position_m).all(axis=1)).any():
            msg = f"{self.path}: {_LAYOUT} has no position for telescopes {tel_id[lost].tolist()}"
            raise CorruptedInput(msg)
        rows = table.read()
        tel_type, tel_description = (
            tuple(sys.intern(text.decode("utf-8", "replace")) for text in rows[name].tolist())
            for name in texts
        )
        reference = [f"reference_itrs_{axis}" for axis in "xyz"]
        itrs_m = None
        place_m = [table.attribute(name) for name in reference]
        if None not in place_m:
            x_m, y_m, z_m = map(float, place_m)
            itrs_m = (x_m, y_m, z_m)
        return ArrayLayout(tel_id, tel_type, tel_description, position_m, itrs_m)

    def obs_ids(self) -> tuple[int, ...]:
        # The trigger table would tell as well, but has a row per event.
        path = _OBSERVATIONS if _OBSERVATIONS in self.file else _TRIGGER
        obs_id = self.read(self._any_table(path), ("obs_id",))["obs_id"]
        return tuple(int(value) for value in np.unique(obs_id))

    def _places(self, names: Sequence[str]) -> Iterator[tuple[str, _Per, bool]]:
        """Where columns are looked for, in this order, and whether all of these must be looked at.

        Those are the tables of algorithms that begin the name of a column, as ctapipe's do, with
        "_tel_" behind them for telescopes: only there the same name can stand more than once.
        """
        below: list[tuple[str, _Per, bool]] = []
        groups: dict[str, _Per] = {_DL2_TELESCOPE: "telescope", _DL2_EVENT: "event"}
        for path, per in groups.items():
            for kind in self.file.children(path):
                for algorithm in self.file.children(f"{path}/{kind}"):
                    own = any(
                        name.startswith(f"{algorithm}_")
                        and name.startswith(f"{algorithm}_tel_") == (per == "telescope")
                        for name in names
                    )
                    below.append((f"{path}/{kind}/{algorithm}", per, own))
        yield from (place for place in below if place[2])
        yield _PARAMETERS, "telescope", False
        yield _TELESCOPE_TRIGGER, "telescope and event", False
        yield _TRIGGER, "event", False
        yield from (place for place in below if not place[2])

    def _source(self, path: str, per: _Per) -> list[_Source]:
        """Return the source at `path`; an empty list where there is none."""
        below = self.file.children(path)
        if per == "telescope":
            names = [name for name in below if name.startswith("tel_")]
            table = self.file.table(f"{path}/{names[0]}") if names else None
        else:
            table = None if below else self.file.find(path)
        if table is None:
            return []
        dtypes = {name: table.dtype[name] for name in table.names}
        return [_Source(path, per, dtypes, table.n_rows)]

    def resolve(self, needs: Needs) -> list[_Wanted]:
        """Find the source of each column, that of the base first.

        To open a table takes a while: no more are looked at than is necessary.
        """
        names = [name for name in needs.names if name not in _TELESCOPE_KEYS]
        looked_at: list[_Source] = []
        having: dict[str, list[_Source]] = {name: [] for name in names}
        for path, per, necessary in self._places(names):
            if not necessary and all(having.values()):
                break
            for source in self._source(path, per):
                looked_at.append(source)
                for name in names:
                    # Of the tables that any column may be in, the first counts.
                    if name in source.dtypes and (necessary or not having[name]):
                        having[name].append(source)
        if lacking := [name for name in names if not having[name]]:
            raise MissingInput(self._no_column(lacking[0], looked_at))
        in_use = {having[name][0].path for name in names if len(having[name]) == 1}
        base = having.get(needs.base, [])
        wanted: dict[str, _Wanted] = {}
        for name in names:
            source = self._one_of(name, having[name], [*base] * (len(base) == 1), in_use)
            wanted.setdefault(source.path, _Wanted(source, [])).names.append(name)
        found = list(wanted.values())
        if not found or needs.base not in found[0].names or found[0].source.per != "telescope":
            msg = f"{self.path}: {needs.base} is not in a table per telescope, so it has no rows"
            raise MissingInput(msg)
        return found

    def _one_of(
        self, name: str, having: Sequence[_Source], base: Sequence[_Source], in_use: set[str]
    ) -> _Source:
        """Choose between tables that have a column: that of the base, or the one in use anyway."""
        for preferred in ({one.path for one in base}, in_use):
            left = [one for one in having if one.path in preferred]
            if len(left) == 1:
                return left[0]
        if len(having) > 1:
            listed = " and ".join(one.path for one in having)
            msg = (
                f"{self.path}: {name} stands in {listed}, and which is meant is not known: write"
                " the file with another prefix for each algorithm, or do without this column"
            )
            raise CorruptedInput(msg)
        return having[0]

    def _no_column(self, name: str, sources: Sequence[_Source]) -> str:
        known = sorted({column for source in sources for column in source.dtypes})
        if near := difflib.get_close_matches(name, known, n=3):
            hint = f"did you mean {' or '.join(near)}?"
        else:
            hint = f"the tables it has: {', '.join(source.path for source in sources) or 'none'}"
        return f"{self.path}: no table has a column {name}; {hint}"

    def n_telescope_rows(self, base: _Source, layout: ArrayLayout) -> int:
        """Rows of the base tables, from above."""
        paths = self.telescope_paths(base, layout)
        trigger = self._source(_TELESCOPE_TRIGGER, "telescope and event")
        if not trigger:
            return sum(self.table(path).n_rows for path in paths.values())
        # Every telescope event has a row in the trigger table. To count the base tables' own rows
        # would open one per telescope, which takes longer than the rest of a survey: the keys are
        # looked for in the first alone.
        self.table(min(paths.values()))
        return trigger[0].n_rows

    def telescope_tables(self, source: _Source, layout: ArrayLayout) -> dict[int, Table]:
        """Tables of a group in the order of the layout; some telescopes may have none."""
        paths = self.telescope_paths(source, layout)
        return {tel_id: self.table(path) for tel_id, path in paths.items()}

    def telescope_paths(self, source: _Source, layout: ArrayLayout) -> dict[int, str]:
        """Paths of the tables of a group in the order of the layout."""
        names = {f"tel_{tel_id:03d}": tel_id for tel_id in layout.tel_id.tolist()}
        present = {n for n in self.file.children(source.path) if n.startswith("tel_")}
        if foreign := sorted(present - names.keys()):
            msg = (
                f"{self.path}: {source.path} has {', '.join(foreign)}, not telescopes of {_LAYOUT}"
            )
            raise CorruptedInput(msg)
        return {
            tel_id: f"{source.path}/{name}" for name, tel_id in names.items() if name in present
        }

    # -- columns of one table

    def read(
        self, table: Table, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Columns:
        """Columns of a range of rows: floats as float64, in standard units."""
        stop = table.n_rows if stop is None else stop
        out: Columns = {}
        factors: dict[str, float] = {}
        for name in names:
            dtype = self._dtype(table, name)
            factor, unit = self._unit(table, name)
            if self.units.setdefault(name, unit) != unit:
                msg = (
                    f"{self.path}: {table.path} has {name} in {unit!r},"
                    f" another table in {self.units[name]!r}"
                )
                raise CorruptedInput(msg)
            if factor != 1.0:
                factors[name] = factor
            is_real = dtype.base.kind == "f" or name in factors
            target = np.float64 if is_real else dtype.base.newbyteorder("=")
            out[name] = np.empty((stop - start, *dtype.shape), target)
        done = 0
        for block in table.blocks(start, stop):
            for name, values in out.items():
                values[done : done + len(block)] = block[name]
            done += len(block)
        for name, factor in factors.items():
            out[name] *= factor
        for name in set(_TELESCOPE_KEYS) & out.keys():
            what = f"{self.path}: {table.path} has {name}"
            out[name] = whole_numbers(out[name], what)
        return out

    def _dtype(self, table: Table, name: str) -> np.dtype[Any]:
        if name not in table.names:
            msg = f"{self.path}: {table.path} has no column {name}"
            raise CorruptedInput(msg)
        dtype: np.dtype[Any] = table.dtype[name]
        if dtype.base.kind not in ("iuf" if name in _TELESCOPE_KEYS else "biuf"):
            msg = f"{self.path}: {table.path} has {name} as {dtype.base}: not a number"
            raise CorruptedInput(msg)
        return dtype

    def _unit(self, table: Table, name: str) -> tuple[float, str]:
        """Return the factor to the standard unit, and that unit."""
        if table.field(name, "TRANSFORM_SCALE") is not None:
            msg = f"{self.path}: {table.path} has {name} as scaled integers: not supported"
            raise CorruptedInput(msg)
        if name in _TELESCOPE_KEYS:  # numbers of events and telescopes have no unit
            return 1.0, ""
        unit = table.unit(name)
        expected = _expected_unit(name)
        factor, standard = standard_unit(unit)
        if expected is not None and standard != expected:
            msg = (
                f"{self.path}: {table.path} has {name} in {unit!r}, which calibdask cannot"
                f" convert to {expected}"
            )
            raise CorruptedInput(msg)
        return factor, standard

    def refuse_duplicates(self, table: Table, keys: Columns) -> None:
        """Raise CorruptedInput when a key stands in two rows."""
        if _increasing(keys):
            return
        number = _numbered(list(keys.values()))
        order = np.argsort(number, kind="stable")
        repeated = np.flatnonzero(number[order[1:]] == number[order[:-1]])
        if repeated.size:
            first, second = order[repeated[0]], order[repeated[0] + 1]
            key = ", ".join(f"{name} {values[first]}" for name, values in keys.items())
            msg = (
                f"{self.path}: {table.path} has {key} twice, in rows {first} and {second} of"
                f" those read ({repeated.size} such rows); write the file again without them"
            )
            raise CorruptedInput(msg)

    def aligned(
        self, table: Table, names: Sequence[str], want: Columns, part: slice | None
    ) -> tuple[Columns, NDArray[np.bool_]]:
        """Columns in the order of the keys `want`, and which of these the table lacks.

        The rows are looked for in a part of the table, or in all of it (None). That all are found
        proves that the part was the right one, as no key may stand twice.
        """
        start, stop = (0, table.n_rows) if part is None else (part.start, part.stop)
        columns = self.read(table, [*want, *names], start, stop)
        have = {key: columns.pop(key) for key in want}
        if all(np.array_equal(have[key], want[key]) for key in want):
            return columns, np.zeros(len(want["event_id"]), np.bool_)
        index = _match(have, want)
        missing = index < 0
        if missing.any() and part is not None:
            return self.aligned(table, names, want, None)
        self.refuse_duplicates(table, have)
        return {name: _take(values, index) for name, values in columns.items()}, missing

    # -- rows of the events chosen

    def chosen_events(self, layout: ArrayLayout, rows: tuple[int, int]) -> _Chosen:
        table = self.table(_TRIGGER)
        first, stop = rows
        if not 0 <= first <= stop <= table.n_rows:
            msg = (
                f"{self.path}: rows {first} to {stop} of {_TRIGGER} asked for, but it has"
                f" {table.n_rows}; the file changed since it was planned: plan again"
            )
            raise CorruptedInput(msg)
        has_mask = _has_mask(table, layout)
        keys = self.read(table, [*_EVENT_KEYS, *([_MASK] if has_mask else [])], first, stop)
        triggered = keys.pop(_MASK).astype(np.bool_) if has_mask else None
        self.refuse_duplicates(table, keys)
        return _Chosen(
            rows=slice(first, stop),
            keys=keys,
            triggered=triggered,
            in_order=_increasing(keys),
            n_events_in_file=table.n_rows,
        )

    def base_rows(
        self, table: Table, names: Sequence[str], chosen: _Chosen | None, tel_index: int
    ) -> tuple[Columns, slice | None]:
        """Rows of a telescope, and the part of the table they fill; None where they do not."""
        if chosen is not None and chosen.triggered is not None:
            part = _part(table, chosen)
            columns = self.read(table, names, part.start, part.stop)
            # When these are the events that triggered the telescope, all of them and in order, no
            # row of theirs stands elsewhere: no need to look through the table.
            triggered = chosen.triggered[:, tel_index]
            if all(np.array_equal(columns[k], chosen.keys[k][triggered]) for k in _EVENT_KEYS):
                return columns, part
        columns = self.read(table, names)
        keys = {name: columns[name] for name in _EVENT_KEYS}
        self.refuse_duplicates(table, keys)
        if chosen is not None:
            keep = _match(chosen.keys, keys) >= 0
            columns = {name: values[keep] for name, values in columns.items()}
        return columns, None

    def telescope_events(
        self,
        layout: ArrayLayout,
        wanted: Sequence[_Wanted],
        needs: Needs,
        chosen: _Chosen | None,
    ) -> TelescopeEvents:
        """Put the rows of all telescopes and tables together."""
        base, *others = wanted
        per_telescope = [
            (want, self.telescope_tables(want.source, layout))
            for want in others
            if want.source.per == "telescope"
        ]
        tel_index = {tel_id: i for i, tel_id in enumerate(layout.tel_id.tolist())}
        parts: dict[str, list[NDArray[Any]]] = {}
        n_missing = dict.fromkeys(needs.names, 0)
        lacking = self._untabled(base.source, layout, chosen)
        for tel_id, table in self.telescope_tables(base.source, layout).items():
            names = [*_TELESCOPE_KEYS, *base.names]
            columns, part = self.base_rows(table, names, chosen, tel_index[tel_id])
            self._check_tel_id(table, tel_id, columns["tel_id"])
            n_rows = len(columns["tel_id"])
            lacking.set(base.source.path, tel_id, lacking.n_triggers(tel_id) - n_rows)
            keys = {name: columns[name] for name in _TELESCOPE_KEYS}
            for want, by_telescope in per_telescope:
                other = by_telescope.get(tel_id)
                # Tables of different lengths cannot be in step.
                same_part = part if other is not None and other.n_rows == table.n_rows else None
                more, missing = self._of_telescope(other, want, keys, same_part)
                columns |= more
                lacking.set(want.source.path, tel_id, int(missing.sum()))
                for name in more:
                    n_missing[name] += int(missing.sum())
            for name, values in columns.items():
                parts.setdefault(name, []).append(values)
        # Joined one by one, so that no more than one column stands in memory twice.
        columns = {name: np.concatenate(parts.pop(name)) for name in list(parts)}

        keys = {name: columns[name] for name in _EVENT_KEYS}
        _, first, event = np.unique(
            _numbered(list(keys.values())), return_index=True, return_inverse=True
        )
        event_keys = {name: values[first] for name, values in keys.items()}
        for want in others:
            if want.source.per == "telescope":
                continue
            more, missing = self._of_all(want, columns, event_keys, event, chosen)
            columns |= more
            if missing.any():
                for number, count in zip(
                    *np.unique(columns["tel_id"][missing], return_counts=True), strict=True
                ):
                    lacking.set(want.source.path, int(number), int(count))
            for name in more:
                n_missing[name] += int(missing.sum())
        return TelescopeEvents(
            layout=layout,
            obs_id=columns["obs_id"],
            event_id=columns["event_id"],
            event=event.astype(np.int64, copy=False),
            tel_id=columns["tel_id"].astype(np.uint16),
            columns={name: columns[name] for name in needs.names},
            units={name: self.units.get(name, "") for name in needs.names},
            n_events=first.size,
            n_missing=n_missing,
            event_time_ns=self.times_of(event_keys, chosen) if needs.event_time else None,
            event_type=self.types_of(
                needs.event_types,
                {name: columns[name] for name in _TELESCOPE_KEYS},
                event_keys,
                event,
                chosen,
            )
            if needs.event_types
            else None,
            n_lacking=lacking.by_telescope(),
            warnings=lacking.warnings(self.path),
        )

    def _untabled(self, base: _Source, layout: ArrayLayout, chosen: _Chosen | None) -> _Lacking:
        """Begin to count what is lacking: with all triggers of telescopes that have no table."""
        triggered = None if chosen is None else chosen.triggered
        if chosen is None and _TRIGGER in self.file:
            table = self.table(_TRIGGER)
            if _has_mask(table, layout):
                triggered = self.read(table, (_MASK,))[_MASK]
        counts = np.zeros(len(layout.tel_id), np.int64)
        if triggered is not None:
            counts = np.count_nonzero(triggered, axis=0)
        lacking = _Lacking(dict(zip(layout.tel_id.tolist(), counts.tolist(), strict=True)))
        tables = self.file.children(base.path)
        for tel_id in layout.tel_id[counts > 0].tolist():
            if f"tel_{tel_id:03d}" not in tables:
                lacking.set(base.path, tel_id, lacking.n_triggers(tel_id))
        return lacking

    def _of_telescope(
        self, table: Table | None, want: _Wanted, keys: Columns, part: slice | None
    ) -> tuple[Columns, NDArray[np.bool_]]:
        """Columns of a further table of a telescope, which may not exist."""
        if table is not None:
            return self.aligned(table, want.names, keys, part)
        n_rows = len(keys["event_id"])
        dtypes = {name: want.source.dtypes[name] for name in want.names}
        nothing = {name: np.empty((0, *d.shape), d.base) for name, d in dtypes.items()}
        nowhere = np.full(n_rows, -1)
        return {n: _take(values, nowhere) for n, values in nothing.items()}, np.ones(
            n_rows, np.bool_
        )

    def _of_all(
        self,
        want: _Wanted,
        columns: Columns,
        event_keys: Columns,
        event: NDArray[np.int64],
        chosen: _Chosen | None,
    ) -> tuple[Columns, NDArray[np.bool_]]:
        """Columns of a table that all telescopes share."""
        table = self.table(want.source.path)
        if want.source.per == "event":
            in_step = chosen is not None and table.n_rows == chosen.n_events_in_file
            part = chosen.rows if chosen is not None and in_step else None
            more, missing = self.aligned(table, want.names, event_keys, part)
            return {name: values[event] for name, values in more.items()}, missing[event]
        keys = {name: columns[name] for name in _TELESCOPE_KEYS}
        part = None if chosen is None else _part(table, chosen)
        return self.aligned(table, want.names, keys, part)

    def check_time(self, table: Table) -> None:
        """Refuse a trigger table whose times are not there or cannot be read."""
        if _TIME not in table.names:
            msg = f"{self.path}: {_TRIGGER} has no column {_TIME}: time bins need trigger times"
            raise MissingInput(msg)
        check_times(self.path, table, _TIME)

    def times_of(self, keys: Columns, chosen: _Chosen | None) -> NDArray[np.int64]:
        """Time of each event, in ns of TAI since 1970, or `NO_TIME`."""
        table = self.table(_TRIGGER)
        self.check_time(table)
        columns, missing = self.aligned(table, (_TIME,), keys, chosen.rows if chosen else None)
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            msg = (
                f"{self.path}: {_TRIGGER} lacks {int(missing.sum())} events that the telescopes"
                f" have, such as obs_id {keys['obs_id'][row]}, event_id {keys['event_id'][row]}:"
                " they have no time"
            )
            raise CorruptedInput(msg)
        return stored_time_ns(self.path, table, _TIME, columns[_TIME])

    def types_of(
        self,
        accepted: Sequence[int],
        keys: Columns,
        event_keys: Columns,
        event: NDArray[np.int64],
        chosen: _Chosen | None,
    ) -> NDArray[np.int64] | None:
        """Type of each row; see `Needs.event_types`."""
        table = self.table(_TRIGGER)
        if _EVENT_TYPE not in table.names:
            return None
        part = chosen.rows if chosen else None
        columns, missing = self.aligned(table, (_EVENT_TYPE,), event_keys, part)
        of_event = np.where(missing, -1, columns[_EVENT_TYPE]).astype(np.int64)
        types: NDArray[np.int64] = of_event[event]
        for source in self._source(_TELESCOPE_TRIGGER, "telescope and event"):
            if _EVENT_TYPE not in source.dtypes:
                continue
            # Matched only where they differ, which is rare: to match takes a sort of all rows.
            own_table = self.table(source.path)
            part = None if chosen is None else _part(own_table, chosen)
            begin, end = (part.start, part.stop) if part else (0, None)
            own = self.read(own_table, (*_TELESCOPE_KEYS, _EVENT_TYPE), begin, end)
            others = ~np.isin(own[_EVENT_TYPE], accepted)
            if others.any():
                own = {name: values[others] for name, values in own.items()}
                index = _match({name: own[name] for name in _TELESCOPE_KEYS}, keys)
                types[index >= 0] = own[_EVENT_TYPE][index[index >= 0]]
        return types

    def _check_tel_id(self, table: Table, tel_id: int, values: NDArray[Any]) -> None:
        if (values != tel_id).any():
            other = values[values != tel_id][0]
            msg = f"{self.path}: {table.path} has rows of telescope {other}"
            raise CorruptedInput(msg)


# --- keys ------------------------------------------------------------------------------------


def _increasing(keys: Columns) -> bool:
    """Whether each row's key is above the one before, the first column counting most."""
    above: NDArray[np.bool_] | bool = False
    equal: NDArray[np.bool_] | bool = True
    for values in keys.values():
        above = above | (equal & (values[1:] > values[:-1]))
        equal = equal & (values[1:] == values[:-1])
    return bool(np.all(above))


def _numbered(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """One number per row: equal for equal rows, and in their order."""
    number = np.zeros(len(columns[0]), np.int64)
    for values in columns:
        if values.size and values.min() != values.max():
            distinct, rank = np.unique(values, return_inverse=True)
            number = number * distinct.size + rank
    return number


def _match(have: Columns, want: Columns) -> NDArray[np.int64]:
    """For each row of `want`, the row of `have` with the same key; -1 where there is none."""
    n_have = len(have["event_id"])
    if not n_have:
        return np.full(len(want["event_id"]), -1)
    number = _numbered([np.concatenate((have[key], want[key])) for key in want])
    order = np.argsort(number[:n_have], kind="stable")
    ranked, wanted = number[order], number[n_have:]
    place = np.minimum(np.searchsorted(ranked, wanted), n_have - 1)
    return np.where(ranked[place] == wanted, order[place], -1)


def _take(values: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of `values`; where the index is -1, False for booleans and NaN for the rest."""
    missing = index < 0
    if not missing.any():
        return values[index]
    shape = (len(index), *values.shape[1:])
    is_bool = values.dtype.kind == "b"
    out: NDArray[Any] = np.zeros(shape, np.bool_) if is_bool else np.full(shape, np.nan)
    out[~missing] = values[index[~missing]]
    return out


def _part(table: Table, chosen: _Chosen) -> slice:
    """Where the events stand in a table, if it is in their order; anything if it is not."""
    n_rows = table.n_rows
    obs_id, event_id = chosen.keys["obs_id"], chosen.keys["event_id"]
    if not obs_id.size:
        return slice(0, 0)
    if not chosen.in_order:
        return slice(0, n_rows)
    start = _first_row_from(table, int(obs_id[0]), int(event_id[0]))
    stop = _first_row_from(table, int(obs_id[-1]), int(event_id[-1]) + 1)
    return slice(start, stop) if start <= stop else slice(0, n_rows)


def _first_row_from(table: Table, obs_id: int, event_id: int) -> int:
    """First row at or above a key in a table that is in the order of the keys."""
    low, high = 0, table.n_rows
    while high - low > _SEARCH_ROWS:
        middle = (low + high) // 2
        row = table.read(middle, middle + 1)
        if (int(row["obs_id"][0]), int(row["event_id"][0])) < (obs_id, event_id):
            low = middle + 1
        else:
            high = middle
    rows = table.read(low, high)
    same = rows["obs_id"] == obs_id
    below = (rows["obs_id"] < obs_id) | (same & (rows["event_id"] < event_id))
    return low + int(np.count_nonzero(below))
