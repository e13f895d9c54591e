"""The tables of an open DL2 file: which of them have a column, and columns of one."""

from __future__ import annotations

import difflib
import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.dl2.data import ArrayLayout
from calibdask.io.dl2.matching import increasing, match, numbered, take
from calibdask.io.hdf5 import standard_unit
from calibdask.io.keys import whole_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.io.dl2.data import Needs
    from calibdask.io.hdf5 import Columns, File, Table

__all__ = ["TableReader", "TableSource", "Wanted"]

LAYOUT = "/configuration/instrument/subarray/layout"
OBSERVATIONS = "/configuration/observation/observation_block"
TRIGGER = "/dl1/event/subarray/trigger"
SIMULATION_RUN = "/configuration/simulation/run"
TELESCOPE_TRIGGER = "/dl1/event/telescope/trigger"
PARAMETERS = "/dl1/event/telescope/parameters"
DL2_TELESCOPE = "/dl2/event/telescope"
DL2_EVENT = "/dl2/event/subarray"

TIME = "time"
EVENT_TYPE = "event_type"
MASK = "tels_with_trigger"  # a column of the trigger table: (telescopes of the layout,)
EVENT_KEYS = ("obs_id", "event_id")
TELESCOPE_KEYS = ("obs_id", "event_id", "tel_id")

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

type Per = Literal["telescope", "telescope and event", "event"]


@functools.lru_cache(maxsize=1000)
def _expected_unit(column: str) -> str | None:
    """Return the unit that a column of this name has to have, None for any."""
    return next((unit for end, unit in _UNIT_OF_SUFFIX.items() if column.endswith(end)), None)


@dataclass(frozen=True, slots=True, eq=False)
class TableSource:
    """A table, or a group with one table per telescope, and the types of its columns."""

    path: str
    per: Per
    dtypes: dict[str, np.dtype[Any]]
    n_rows: int  # of the table; of one of the tables in a group


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """The columns to read from a source."""

    source: TableSource
    names: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class TableReader:
    """Reads the tables of one open file; knows its name for the messages."""

    path: Path
    file: File
    units: dict[str, str] = field(default_factory=dict)

    # -- metadata

    def table(self, path: str) -> Table:
        """Return the table at `path`, which must have the keys of an event."""
        table = self._any_table(path)
        if lacking := [name for name in EVENT_KEYS if name not in table.names]:
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
        """Return the telescopes."""
        table = self._any_table(LAYOUT)
        axes = ("pos_x", "pos_y", "pos_z")
        texts = ("type", "tel_description")
        if lacking := {"tel_id", *texts, *axes} - set(table.names):
            msg = f"{self.path}: {LAYOUT} has no column {', '.join(sorted(lacking))}"
            raise MissingInput(msg)
        if any(table.dtype[name].kind != "S" for name in texts):
            msg = f"{self.path}: {LAYOUT} has no text in {' or '.join(texts)}"
            raise CorruptedInput(msg)
        columns = self.read(table, ("tel_id", *axes))
        tel_id = columns["tel_id"].astype(np.uint16)
        if not np.array_equal(tel_id, columns["tel_id"]) or np.unique(tel_id).size != tel_id.size:
            msg = f"{self.path}: {LAYOUT} has wrong tel_id: {columns['tel_id'].tolist()}"
            raise CorruptedInput(msg)
        position_m = np.stack([columns[name] for name in axes], axis=1)
        if (lost := ~np.isfinite(position_m).all(axis=1)).any():
            msg = f"{self.path}: {LAYOUT} has no position for telescopes {tel_id[lost].tolist()}"
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
        """Return the observation blocks, sorted."""
        # The trigger table would tell as well, but has a row per event.
        path = OBSERVATIONS if OBSERVATIONS in self.file else TRIGGER
        obs_id = self.read(self._any_table(path), ("obs_id",))["obs_id"]
        return tuple(int(value) for value in np.unique(obs_id))

    def _places(self, names: Sequence[str]) -> Iterator[tuple[str, Per, bool]]:
        """Where columns are looked for, in this order, and whether all of these must be looked at.

        Those are the tables of algorithms that begin the name of a column, as ctapipe's do, with
        "_tel_" behind them for telescopes: only there the same name can stand more than once.
        """
        below: list[tuple[str, Per, bool]] = []
        groups: dict[str, Per] = {DL2_TELESCOPE: "telescope", DL2_EVENT: "event"}
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
        yield PARAMETERS, "telescope", False
        yield TELESCOPE_TRIGGER, "telescope and event", False
        yield TRIGGER, "event", False
        yield from (place for place in below if not place[2])

    def source(self, path: str, per: Per) -> list[TableSource]:
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
        return [TableSource(path, per, dtypes, table.n_rows)]

    def resolve(self, needs: Needs) -> list[Wanted]:
        """Find the source of each column, that of the base first.

        To open a table takes a while: no more are looked at than is necessary.
        """
        names = [name for name in needs.names if name not in TELESCOPE_KEYS]
        looked_at: list[TableSource] = []
        having: dict[str, list[TableSource]] = {name: [] for name in names}
        for path, per, necessary in self._places(names):
            if not necessary and all(having.values()):
                break
            for source in self.source(path, per):
                looked_at.append(source)
                for name in names:
                    # Of the tables that any column may be in, the first counts.
                    if name in source.dtypes and (necessary or not having[name]):
                        having[name].append(source)
        if lacking := [name for name in names if not having[name]]:
            raise MissingInput(self._no_column(lacking[0], looked_at))
        in_use = {having[name][0].path for name in names if len(having[name]) == 1}
        base = having.get(needs.base, [])
        wanted: dict[str, Wanted] = {}
        for name in names:
            source = self._one_of(name, having[name], [*base] * (len(base) == 1), in_use)
            wanted.setdefault(source.path, Wanted(source, [])).names.append(name)
        found = list(wanted.values())
        if not found or needs.base not in found[0].names or found[0].source.per != "telescope":
            msg = f"{self.path}: {needs.base} is not in a table per telescope, so it has no rows"
            raise MissingInput(msg)
        return found

    def _one_of(
        self,
        name: str,
        having: Sequence[TableSource],
        base: Sequence[TableSource],
        in_use: set[str],
    ) -> TableSource:
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

    def _no_column(self, name: str, sources: Sequence[TableSource]) -> str:
        known = sorted({column for source in sources for column in source.dtypes})
        if near := difflib.get_close_matches(name, known, n=3):
            hint = f"did you mean {' or '.join(near)}?"
        else:
            hint = f"the tables it has: {', '.join(source.path for source in sources) or 'none'}"
        return f"{self.path}: no table has a column {name}; {hint}"

    def n_telescope_rows(self, base: TableSource, layout: ArrayLayout) -> int:
        """Rows of the base tables, from above."""
        paths = self.telescope_paths(base, layout)
        trigger = self.source(TELESCOPE_TRIGGER, "telescope and event")
        if not trigger:
            return sum(self.table(path).n_rows for path in paths.values())
        # Every telescope event has a row in the trigger table. To count the base tables' own rows
        # would open one per telescope, which takes longer than the rest of a survey: the keys are
        # looked for in the first alone.
        self.table(min(paths.values()))
        return trigger[0].n_rows

    def telescope_tables(self, source: TableSource, layout: ArrayLayout) -> dict[int, Table]:
        """Tables of a group in the order of the layout; some telescopes may have none."""
        paths = self.telescope_paths(source, layout)
        return {tel_id: self.table(path) for tel_id, path in paths.items()}

    def telescope_paths(self, source: TableSource, layout: ArrayLayout) -> dict[int, str]:
        """Paths of the tables of a group in the order of the layout."""
        names = {f"tel_{tel_id:03d}": tel_id for tel_id in layout.tel_id.tolist()}
        present = {n for n in self.file.children(source.path) if n.startswith("tel_")}
        if foreign := sorted(present - names.keys()):
            msg = f"{self.path}: {source.path} has {', '.join(foreign)}, not telescopes of {LAYOUT}"
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
        for name in set(TELESCOPE_KEYS) & out.keys():
            what = f"{self.path}: {table.path} has {name}"
            out[name] = whole_numbers(out[name], what)
        return out

    def _dtype(self, table: Table, name: str) -> np.dtype[Any]:
        if name not in table.names:
            msg = f"{self.path}: {table.path} has no column {name}"
            raise CorruptedInput(msg)
        dtype: np.dtype[Any] = table.dtype[name]
        if dtype.base.kind not in ("iuf" if name in TELESCOPE_KEYS else "biuf"):
            msg = f"{self.path}: {table.path} has {name} as {dtype.base}: not a number"
            raise CorruptedInput(msg)
        return dtype

    def _unit(self, table: Table, name: str) -> tuple[float, str]:
        """Return the factor to the standard unit, and that unit."""
        if table.field(name, "TRANSFORM_SCALE") is not None:
            msg = f"{self.path}: {table.path} has {name} as scaled integers: not supported"
            raise CorruptedInput(msg)
        if name in TELESCOPE_KEYS:  # numbers of events and telescopes have no unit
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
        """Raise CorruptedInput when a key is in two rows."""
        if increasing(keys):
            return
        number = numbered(list(keys.values()))
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
        index = match(have, want)
        missing = index < 0
        if missing.any() and part is not None:
            return self.aligned(table, names, want, None)
        self.refuse_duplicates(table, have)
        return {name: take(values, index) for name, values in columns.items()}, missing
