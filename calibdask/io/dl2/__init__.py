"""Reading of ctapipe's DL2 files (and the image parameters of DL1), by PyTables alone.

A column is asked for by its name. It may be in

* a table per telescope: `/dl2/event/telescope/<kind>/<algorithm>/tel_XXX` or
  `/dl1/event/telescope/parameters/tel_XXX`;
* one table for all telescopes: `/dl1/event/telescope/trigger`;
* a table of events: `/dl2/event/subarray/<kind>/<algorithm>` or `/dl1/event/subarray/trigger`.

What comes back is one row per telescope and event. Rows belong together when their keys are equal,
never by position alone. The layout is that of ctapipe 0.32 (data model 7, `ctapipe.io.DataWriter`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.io.dl2.data import ArrayLayout, Dl2Info, Needs, TelescopeEvents
from calibdask.io.dl2.events import EventReader
from calibdask.io.dl2.tables import (
    EVENT_KEYS,
    EVENT_TYPE,
    SIMULATION_RUN,
    TELESCOPE_TRIGGER,
    TIME,
    TRIGGER,
    Wanted,
)
from calibdask.io.hdf5 import BLOCK_BYTES, open_hdf5
from calibdask.io.times import stored_time_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

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
        reader = EventReader(Path(path), file)
        layout = reader.layout()
        wanted = reader.resolve(needs)
        n_rows = reader.n_telescope_rows(wanted[0].source, layout)
        trigger = reader.table(TRIGGER)
        return Dl2Info(
            layout=layout,
            obs_ids=reader.obs_ids(),
            n_events=trigger.n_rows,
            n_telescope_rows=n_rows,
            bytes_needed=_bytes_needed(wanted, n_rows),
            product_id=file.attribute("CTA PRODUCT ID"),
            process_type=file.attribute("CTA PROCESS TYPE"),
            has_telescope_times=any(
                TIME in source.dtypes
                for source in reader.source(TELESCOPE_TRIGGER, "telescope and event")
            ),
            has_event_types=EVENT_TYPE in trigger.names,
            is_from_simtel=SIMULATION_RUN in file,
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
        An event is in two rows of the trigger table; or as `open_hdf5`.
    MissingInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        reader = EventReader(Path(path), file)
        table = reader.table(TRIGGER)
        n_events = table.n_rows
        reader.refuse_duplicates(table, reader.read(table, EVENT_KEYS))
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
        reader = EventReader(Path(path), file)
        table = reader.table(TRIGGER)
        reader.check_time(table)
        return stored_time_ns(path, table, TIME, reader.read(table, (TIME,))[TIME])


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
        reader = EventReader(Path(path), file)
        layout = reader.layout()
        wanted = reader.resolve(needs)
        chosen = None if rows is None else reader.chosen_events(layout, rows)
        return reader.telescope_events(layout, wanted, needs, chosen)


def _bytes_needed(wanted: Sequence[Wanted], n_rows: int) -> int:
    """Output, one more copy of a column while they are joined, and what comparing keys takes."""
    width = 8 + 8 + 8 + 2  # obs_id, event_id, event, tel_id
    joined_apart = 0
    for want in wanted:
        item_bytes = sum(max(8, want.source.dtypes[name].itemsize) for name in want.names)
        width += item_bytes
        if want.source.per != "telescope":
            joined_apart = max(joined_apart, want.source.n_rows * (item_bytes + 64))
    return n_rows * (width + 64) + joined_apart + 4 * BLOCK_BYTES
