"""Reading of ctapipe's tables of muon rings, by PyTables alone.

A ring is a row of ``/dl1/event/telescope/muon/tel_NNN``; when it was seen is in the row of
``/dl1/event/telescope/trigger`` with the same observation, event **and telescope**: an event that
several telescopes saw has as many rows there, and each ring takes the time of its own telescope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.keys import whole_numbers
from calibdask.io.times import check_times, stored_time_ns
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import File, Table

    type Columns = dict[str, NDArray[Any]]

__all__ = [
    "MuonInfo",
    "RingRows",
    "has_muon_tables",
    "inspect_muons",
    "read_rings",
    "read_times",
    "ring_times",
]

MUON_GROUP = "/dl1/event/telescope/muon"
TRIGGER = "/dl1/event/telescope/trigger"
_LAYOUT = "/configuration/instrument/subarray/layout"
_OPTICS = "/configuration/instrument/telescope/optics"
_OBSERVATIONS = "/configuration/observation/observation_block"

_KEYS = ("obs_id", "event_id", "tel_id")


@dataclass(frozen=True, slots=True)
class MuonInfo:
    """What a file with muon tables holds, by its metadata."""

    telescopes: dict[int, str]  # what ctapipe's patterns match; in the order of the layout
    n_mirrors: dict[int, int]  # of each telescope, 1 where the file does not have it
    n_rows: dict[int, int]  # of each muon table
    obs_ids: tuple[int, ...]  # observation blocks, sorted
    n_trigger_rows: int
    product_id: str | None  # "CTA PRODUCT ID"
    process_type: str | None  # "CTA PROCESS TYPE"


@dataclass(frozen=True, slots=True, eq=False)
class RingRows:
    """Rows of muon tables, telescopes one after the other.

    Attributes
    ----------
    columns : dict of str to ndarray, shape (N,)
        ``obs_id``, ``event_id``, ``tel_id`` and the columns asked for.
    units : dict of str to str
        Unit of each column that has one, as in the file.
    """

    columns: Columns
    units: dict[str, str]


def has_muon_tables(path: Path | str) -> bool:
    """Return whether an HDF5 file has muon tables (errors as `calibdask.io.hdf5.open_hdf5`)."""
    with open_hdf5(path) as file:
        return bool(file.children(MUON_GROUP))


def inspect_muons(path: Path | str, columns: Sequence[str]) -> MuonInfo:
    """Look at the metadata of a file whose muon tables will be read.

    Raises
    ------
    MissingInput
        No such file, table or column.
    CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        trigger = _table(file, path, TRIGGER)
        for name in (*_KEYS, "time"):
            _check_column(trigger, path, name)
        check_times(path, trigger, "time")
        n_rows = {}
        for tel_id, table in _muon_tables(file, path):
            for name in (*_KEYS, *columns):
                _check_column(table, path, name)
            n_rows[tel_id] = table.n_rows
        telescopes, n_mirrors = _layout(file, n_rows)
        if _OBSERVATIONS in file:
            obs_ids = file.table(_OBSERVATIONS).column("obs_id")
        else:
            obs_ids = np.concatenate([b["obs_id"] for b in trigger.blocks()] or [np.empty(0)])
        product, process = (file.attribute(name) for name in ("CTA PRODUCT ID", "CTA PROCESS TYPE"))
        return MuonInfo(
            telescopes,
            n_mirrors,
            n_rows,
            tuple(np.unique(whole_numbers(obs_ids, f"{path}: has obs_id")).tolist()),
            trigger.n_rows,
            product,
            process,
        )


def ring_times(path: Path | str, tel_ids: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Read when each telescope was triggered: the only times that its rings can have.

    Times are nanoseconds of TAI since 1970 in the order of the trigger table; `NO_TIME` for none.
    """
    with open_hdf5(path) as file:
        tel_id, _, _, time_ns = _read_triggers(_table(file, path, TRIGGER), path)
        return {number: time_ns[tel_id == number] for number in tel_ids}


def read_rings(
    path: Path | str, columns: Sequence[str], tel_ids: Sequence[int], part: tuple[int, int] = (0, 1)
) -> RingRows:
    """Read rows of the muon tables, as they are.

    Parameters
    ----------
    path : Path or str
        The file.
    columns : sequence of str
        Columns besides the keys.
    tel_ids : sequence of int
        Telescopes whose tables are read, in this order.
    part : tuple of int
        (i, n): the i-th of n equal parts of each table.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
        As `inspect_muons`; or a table with rows of another telescope, or with a ring twice.
    """
    wanted = [*_KEYS, *(name for name in columns if name not in _KEYS)]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    units: dict[str, str] = {}
    number, count = part
    with open_hdf5(path) as file:
        tables_of = dict(_muon_tables(file, path))
        for tel_id in tel_ids:
            table = tables_of[tel_id]
            start, stop = (table.n_rows * i // count for i in (number, number + 1))
            for name in wanted:
                unit = table.unit(name)
                if units.setdefault(name, unit) != unit:
                    msg = f"{path}: {name} is in {units[name]!r} and, in {table.path},"
                    raise CorruptedInput(f"{msg} in {unit!r}")
            rows = _read(table, path, wanted, start, stop)
            _check_rows(rows, table, path, tel_id)
            for name, values in rows.items():
                parts[name].append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items() if values}
    return RingRows(joined, {name: unit for name, unit in units.items() if unit})


def read_times(
    path: Path | str,
    obs_id: NDArray[np.integer],
    event_id: NDArray[np.integer],
    tel_id: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Look up when rings were seen.

    Parameters
    ----------
    path : Path or str
        The file.
    obs_id, event_id, tel_id : ndarray of int, shape (N,)
        Keys of the rings.

    Returns
    -------
    ndarray of int64, shape (N,)
        Nanoseconds of TAI since 1970; `NO_TIME` where the trigger table has no row or no time.

    Raises
    ------
    CorruptedInput
        A key stands twice in the trigger table with different times.
    """
    with open_hdf5(path) as file:
        triggers = _read_triggers(_table(file, path, TRIGGER), path)
    out = np.full(len(obs_id), NO_TIME)
    for tel in np.unique(tel_id).tolist():
        mine, theirs = tel_id == tel, triggers[0] == tel
        have = [values[theirs] for values in triggers[1:]]
        out[mine] = _match_times(path, tel, have, obs_id[mine], event_id[mine])
    return out


def _match_times(
    path: Path | str,
    tel_id: int,
    triggers: Sequence[NDArray[np.int64]],
    obs_id: NDArray[np.integer],
    event_id: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Look up the times of the rings of one telescope."""
    t_obs, t_event, t_time = triggers
    if np.array_equal(t_obs, obs_id) and np.array_equal(t_event, event_id):
        if not _rises(t_obs, t_event):
            _check_times(path, tel_id, *triggers)
        return t_time
    out = np.full(len(obs_id), NO_TIME)
    for obs in np.unique(obs_id):  # few: so that one number is left to look for
        mine, theirs = np.flatnonzero(obs_id == obs), np.flatnonzero(t_obs == obs)
        if not theirs.size:
            continue
        theirs = theirs[np.argsort(t_event[theirs], kind="stable")]
        events, times = t_event[theirs], t_time[theirs]
        _check_times(path, tel_id, t_obs[theirs], events, times)
        place = np.minimum(np.searchsorted(events, event_id[mine]), len(events) - 1)
        found = events[place] == event_id[mine]
        out[mine[found]] = times[place[found]]
    return out


def _check_times(
    path: Path | str,
    tel_id: int,
    obs_id: NDArray[np.int64],
    event_id: NDArray[np.int64],
    time_ns: NDArray[np.int64],
) -> None:
    """Refuse a trigger that has two times."""
    order = np.lexsort((time_ns, event_id, obs_id))
    same = (obs_id[order][1:] == obs_id[order][:-1]) & (event_id[order][1:] == event_id[order][:-1])
    twice = np.flatnonzero(same & (time_ns[order][1:] != time_ns[order][:-1]))
    if twice.size:
        row = order[twice[0]]
        msg = f"{path}: {TRIGGER} has telescope {tel_id} in event {event_id[row]} of observation"
        msg += f" {obs_id[row]} at two different times ({twice.size} such events)"
        raise CorruptedInput(f"{msg}; write the file again")


def _rises(obs_id: NDArray[np.integer], event_id: NDArray[np.integer]) -> bool:
    """Whether the keys rise strictly, so that none is there twice."""
    above = obs_id[1:] > obs_id[:-1]
    same = obs_id[1:] == obs_id[:-1]
    return bool(np.all(above | (same & (event_id[1:] > event_id[:-1]))))


def _check_rows(rows: Columns, table: Table, path: Path | str, tel_id: int) -> None:
    """Refuse rows of other telescopes, and a ring that is there twice."""
    if (rows["tel_id"] != tel_id).any():
        other = rows["tel_id"][rows["tel_id"] != tel_id][0]
        raise CorruptedInput(f"{path}: {table.path} has rows of telescope {other}")
    if _rises(rows["obs_id"], rows["event_id"]):
        return
    order = np.lexsort((rows["event_id"], rows["obs_id"]))
    obs_id, event_id = rows["obs_id"][order], rows["event_id"][order]
    twice = np.flatnonzero((obs_id[1:] == obs_id[:-1]) & (event_id[1:] == event_id[:-1]))
    if twice.size:
        first, second = order[twice[0]], order[twice[0] + 1]
        raise CorruptedInput(
            f"{path}: {table.path} has event {event_id[twice[0]]} of observation"
            f" {obs_id[twice[0]]} twice, in rows {min(first, second)} and {max(first, second)} of"
            f" those read ({twice.size} such rows): rings that count twice make the errors too"
            " small; write the file again without them"
        )


# -- tables ---------------------------------------------------------------------------------------


def _table(file: File, path: Path | str, where: str) -> Table:
    if where not in file:
        raise MissingInput(
            f"{path}: has no table {where}; without it the times of the rings are not known: write"
            " the file again with ctapipe"
        )
    return file.table(where)


def _muon_tables(file: File, path: Path | str) -> Iterator[tuple[int, Table]]:
    """Telescope and table, by telescope number."""
    if MUON_GROUP not in file:
        raise MissingInput(f"{path}: has no muon tables ({MUON_GROUP})")
    found = {}
    for name in file.children(MUON_GROUP):
        if not name.startswith("tel_") or not name[4:].isdecimal():
            raise CorruptedInput(f"{path}: {MUON_GROUP}/{name} is not a table of a telescope")
        found[int(name[4:])] = file.table(f"{MUON_GROUP}/{name}")
    yield from sorted(found.items())


def _layout(file: File, with_table: Mapping[int, int]) -> tuple[dict[int, str], dict[int, int]]:
    """Descriptions and mirrors of all telescopes; what the file does not tell is left open."""
    telescopes = {number: f"UNKNOWN_tel_{number:03d}" for number in with_table}
    n_mirrors = dict.fromkeys(telescopes, 1)
    if _LAYOUT not in file:
        return telescopes, n_mirrors
    layout = file.table(_LAYOUT)
    mirrors: list[int] = []
    optics_table = file.find(_OPTICS)
    if optics_table is not None and "n_mirrors" in optics_table.names:
        mirrors = optics_table.column("n_mirrors").tolist()
    named = {}
    has_index = "optics_index" in layout.names
    for row in layout.read():
        number = int(row["tel_id"])
        named[number] = row["tel_description"].decode("utf-8", "replace")
        optics = int(row["optics_index"]) if has_index else -1
        n_mirrors[number] = mirrors[optics] if 0 <= optics < len(mirrors) else 1
    return {**named, **{n: t for n, t in telescopes.items() if n not in named}}, n_mirrors


def _check_column(table: Table, path: Path | str, name: str) -> None:
    if name not in table.names:
        raise MissingInput(
            f"{path}: {table.path} has no column {name}; it has {', '.join(table.names)}"
        )
    if table.dtype[name].base.kind not in "biuf":
        raise CorruptedInput(f"{path}: {table.path} has {name} as {table.dtype[name]}")


def _read(table: Table, path: Path | str, names: Sequence[str], start: int, stop: int) -> Columns:
    out = table.columns(names, start, stop)
    for name in set(_KEYS) & out.keys():
        out[name] = whole_numbers(out[name], f"{path}: {table.path} has {name}")
    return out


def _read_triggers(
    table: Table, path: Path | str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Telescope, observation, event and time of every trigger."""
    columns = _read(table, path, [*_KEYS, "time"], 0, table.n_rows)
    time_ns = stored_time_ns(path, table, "time", columns.pop("time"))
    return columns["tel_id"], columns["obs_id"], columns["event_id"], time_ns
