"""Telescope events of a DL2 file: rows of several tables put together by their keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.dl2.data import ArrayLayout, Needs, TelescopeEvents
from calibdask.io.dl2.matching import first_row_from, increasing, match, numbered, take
from calibdask.io.dl2.tables import (
    EVENT_KEYS,
    EVENT_TYPE,
    MASK,
    TELESCOPE_KEYS,
    TELESCOPE_TRIGGER,
    TIME,
    TRIGGER,
    TableReader,
    TableSource,
    Wanted,
)
from calibdask.io.times import check_times, stored_time_ns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import Columns, Table

__all__ = ["EventReader"]

_SHOWN = 5  # telescopes in a message


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
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
    return MASK in table.names and table.dtype[MASK].shape == layout.tel_id.shape


def _part(table: Table, chosen: Chosen) -> slice:
    """Where the events are in a table, if it is in their order; anything if it is not."""
    n_rows = table.n_rows
    obs_id, event_id = chosen.keys["obs_id"], chosen.keys["event_id"]
    if not obs_id.size:
        return slice(0, 0)
    if not chosen.in_order:
        return slice(0, n_rows)
    start = first_row_from(table, int(obs_id[0]), int(event_id[0]))
    stop = first_row_from(table, int(obs_id[-1]), int(event_id[-1]) + 1)
    return slice(start, stop) if start <= stop else slice(0, n_rows)


@dataclass(frozen=True, slots=True, eq=False)
class EventReader(TableReader):
    """Puts the rows of all telescopes and tables together."""

    def chosen_events(self, layout: ArrayLayout, rows: tuple[int, int]) -> Chosen:
        """Read the keys of a range of rows of the trigger table."""
        table = self.table(TRIGGER)
        first, stop = rows
        if not 0 <= first <= stop <= table.n_rows:
            msg = (
                f"{self.path}: rows {first} to {stop} of {TRIGGER} asked for, but it has"
                f" {table.n_rows}; the file changed since it was planned: plan again"
            )
            raise CorruptedInput(msg)
        has_mask = _has_mask(table, layout)
        keys = self.read(table, [*EVENT_KEYS, *([MASK] if has_mask else [])], first, stop)
        triggered = keys.pop(MASK).astype(np.bool_) if has_mask else None
        self.refuse_duplicates(table, keys)
        return Chosen(
            rows=slice(first, stop),
            keys=keys,
            triggered=triggered,
            in_order=increasing(keys),
            n_events_in_file=table.n_rows,
        )

    def base_rows(
        self, table: Table, names: Sequence[str], chosen: Chosen | None, tel_index: int
    ) -> tuple[Columns, slice | None]:
        """Rows of a telescope, and the part of the table they fill; None where they do not."""
        if chosen is not None and chosen.triggered is not None:
            part = _part(table, chosen)
            columns = self.read(table, names, part.start, part.stop)
            # When these are the events that triggered the telescope, all of them and in order, no
            # row of theirs stands elsewhere: no need to look through the table.
            triggered = chosen.triggered[:, tel_index]
            if all(np.array_equal(columns[k], chosen.keys[k][triggered]) for k in EVENT_KEYS):
                return columns, part
        columns = self.read(table, names)
        keys = {name: columns[name] for name in EVENT_KEYS}
        self.refuse_duplicates(table, keys)
        if chosen is not None:
            keep = match(chosen.keys, keys) >= 0
            columns = {name: values[keep] for name, values in columns.items()}
        return columns, None

    def telescope_events(
        self,
        layout: ArrayLayout,
        wanted: Sequence[Wanted],
        needs: Needs,
        chosen: Chosen | None,
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
            names = [*TELESCOPE_KEYS, *base.names]
            columns, part = self.base_rows(table, names, chosen, tel_index[tel_id])
            self._check_tel_id(table, tel_id, columns["tel_id"])
            n_rows = len(columns["tel_id"])
            lacking.set(base.source.path, tel_id, lacking.n_triggers(tel_id) - n_rows)
            keys = {name: columns[name] for name in TELESCOPE_KEYS}
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
        # Joined one by one, so that no more than one column is in memory twice.
        columns = {name: np.concatenate(parts.pop(name)) for name in list(parts)}

        keys = {name: columns[name] for name in EVENT_KEYS}
        _, first, event = np.unique(
            numbered(list(keys.values())), return_index=True, return_inverse=True
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
                {name: columns[name] for name in TELESCOPE_KEYS},
                event_keys,
                event,
                chosen,
            )
            if needs.event_types
            else None,
            n_lacking=lacking.by_telescope(),
            warnings=lacking.warnings(self.path),
        )

    def _untabled(self, base: TableSource, layout: ArrayLayout, chosen: Chosen | None) -> _Lacking:
        """Begin to count what is lacking: with all triggers of telescopes that have no table."""
        triggered = None if chosen is None else chosen.triggered
        if chosen is None and TRIGGER in self.file:
            table = self.table(TRIGGER)
            if _has_mask(table, layout):
                triggered = self.read(table, (MASK,))[MASK]
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
        self, table: Table | None, want: Wanted, keys: Columns, part: slice | None
    ) -> tuple[Columns, NDArray[np.bool_]]:
        """Columns of a further table of a telescope, which may not exist."""
        if table is not None:
            return self.aligned(table, want.names, keys, part)
        n_rows = len(keys["event_id"])
        dtypes = {name: want.source.dtypes[name] for name in want.names}
        nothing = {name: np.empty((0, *d.shape), d.base) for name, d in dtypes.items()}
        nowhere = np.full(n_rows, -1)
        return {n: take(values, nowhere) for n, values in nothing.items()}, np.ones(
            n_rows, np.bool_
        )

    def _of_all(
        self,
        want: Wanted,
        columns: Columns,
        event_keys: Columns,
        event: NDArray[np.int64],
        chosen: Chosen | None,
    ) -> tuple[Columns, NDArray[np.bool_]]:
        """Columns of a table that all telescopes share."""
        table = self.table(want.source.path)
        if want.source.per == "event":
            in_step = chosen is not None and table.n_rows == chosen.n_events_in_file
            part = chosen.rows if chosen is not None and in_step else None
            more, missing = self.aligned(table, want.names, event_keys, part)
            return {name: values[event] for name, values in more.items()}, missing[event]
        keys = {name: columns[name] for name in TELESCOPE_KEYS}
        part = None if chosen is None else _part(table, chosen)
        return self.aligned(table, want.names, keys, part)

    def check_time(self, table: Table) -> None:
        """Refuse a trigger table whose times are not there or cannot be read."""
        if TIME not in table.names:
            msg = f"{self.path}: {TRIGGER} has no column {TIME}: time bins need trigger times"
            raise MissingInput(msg)
        check_times(self.path, table, TIME)

    def times_of(self, keys: Columns, chosen: Chosen | None) -> NDArray[np.int64]:
        """Time of each event, in ns of TAI since 1970, or `NO_TIME`."""
        table = self.table(TRIGGER)
        self.check_time(table)
        columns, missing = self.aligned(table, (TIME,), keys, chosen.rows if chosen else None)
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            msg = (
                f"{self.path}: {TRIGGER} lacks {int(missing.sum())} events that the telescopes"
                f" have, such as obs_id {keys['obs_id'][row]}, event_id {keys['event_id'][row]}:"
                " they have no time"
            )
            raise CorruptedInput(msg)
        return stored_time_ns(self.path, table, TIME, columns[TIME])

    def types_of(
        self,
        accepted: Sequence[int],
        keys: Columns,
        event_keys: Columns,
        event: NDArray[np.int64],
        chosen: Chosen | None,
    ) -> NDArray[np.int64] | None:
        """Type of each row; see `Needs.event_types`."""
        table = self.table(TRIGGER)
        if EVENT_TYPE not in table.names:
            return None
        part = chosen.rows if chosen else None
        columns, missing = self.aligned(table, (EVENT_TYPE,), event_keys, part)
        of_event = np.where(missing, -1, columns[EVENT_TYPE]).astype(np.int64)
        types: NDArray[np.int64] = of_event[event]
        for source in self.source(TELESCOPE_TRIGGER, "telescope and event"):
            if EVENT_TYPE not in source.dtypes:
                continue
            # Matched only where they differ, which is rare: to match takes a sort of all rows.
            own_table = self.table(source.path)
            part = None if chosen is None else _part(own_table, chosen)
            begin, end = (part.start, part.stop) if part else (0, None)
            own = self.read(own_table, (*TELESCOPE_KEYS, EVENT_TYPE), begin, end)
            others = ~np.isin(own[EVENT_TYPE], accepted)
            if others.any():
                own = {name: values[others] for name, values in own.items()}
                index = match({name: own[name] for name in TELESCOPE_KEYS}, keys)
                types[index >= 0] = own[EVENT_TYPE][index[index >= 0]]
        return types

    def _check_tel_id(self, table: Table, tel_id: int, values: NDArray[Any]) -> None:
        if (values != tel_id).any():
            other = values[values != tel_id][0]
            msg = f"{self.path}: {table.path} has rows of telescope {other}"
            raise CorruptedInput(msg)
