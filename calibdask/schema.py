"""Tables, declared once: their columns with type, unit, meaning and heading, and their flags.

A job builds a table through its schema, the engine writes what the schema says of each column, a
reader reads and checks through the same schema, and reports, the text tables for people and the
documentation take headings and descriptions from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.flags import Flag
    from calibdask.io.hdf5 import File, Table

__all__ = ["Column", "Kind", "TableSchema"]

Kind = Literal["int", "float", "bool", "text", "time"]
"""Type of a column: integers of 64 bits unless `width` says otherwise, floats of 64 bits, text of
any length, times in UTC at the edge and in ns of TAI since 1970 inside."""

_KINDS: Mapping[Kind, str] = {"int": "iu", "float": "f", "bool": "b", "text": "SUO", "time": "u"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
        As in the file.
    kind : str
        Its type.
    description : str
        What it holds, for the file, the text table and the documentation.
    unit : str
        In astropy's notation; "" for none.
    heading : str
        Above it in a report; the name without underscores unless given.
    error : str
        Name of the column with its standard error, to which a value is rounded for people.
    optional : bool
        Whether a table may be without it.
    width : str
        NumPy type of integers that files of others need narrower, e.g. "uint16".
    """

    name: str
    kind: Kind
    description: str
    unit: str = ""
    heading: str = ""
    error: str = ""
    optional: bool = False
    width: str = ""

    @property
    def shown(self) -> str:
        """Heading for people."""
        return self.heading or self.name.replace("_", " ").capitalize()

    def cast(self, values: Any) -> NDArray[Any]:
        """Return values in the type of the column.

        Raises
        ------
        TypeError
            They cannot be had in it without a loss.
        """
        array = np.asarray(values)
        if array.dtype.kind not in {**_KINDS, "text": "SU"}[self.kind] and array.size:
            widened = self.kind == "float" and array.dtype.kind in "iu"
            if not widened:
                raise TypeError(f"column {self.name}: expected {self.kind}, got {array.dtype}")
        if self.kind == "text":
            text: NDArray[Any] = array.astype(np.str_)
            return text
        types = {"int": self.width or "int64", "float": "float64", "bool": "bool"}
        cast: NDArray[Any] = array.astype(types[self.kind])
        if self.kind == "int" and not np.array_equal(cast, array):
            raise TypeError(f"column {self.name}: values do not fit {types['int']}")
        return cast


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table that a job writes.

    Attributes
    ----------
    path : str
        Where it is in the file.
    description : str
        What its rows are.
    columns : tuple of Column
        In their order.
    flags : tuple of Flag
        Those that its column "flags" may carry.
    """

    path: str
    description: str
    columns: tuple[Column, ...]
    flags: tuple[Flag, ...] = ()

    def __getitem__(self, name: str) -> Column:
        """Return the column of this name (KeyError where there is none)."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(column.name for column in self.columns)

    def at(self, path: str) -> TableSchema:
        """Return the same table at another path."""
        return replace(self, path=path)

    def with_first(self, columns: Iterable[Column]) -> TableSchema:
        """Return a table with further columns before its own."""
        return replace(self, columns=(*columns, *self.columns))

    def build(self, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> QTable:
        """Make the table of its columns.

        Parameters
        ----------
        values : mapping of str to array, each shape (n, ...)
            By the names of the columns, in any order; plain numbers in the unit of the column.
            Times are `astropy.time.Time`.
        metadata : mapping of str to object, optional
            Attributes of the table in the file.

        Raises
        ------
        ValueError
            A column that the schema does not have, or none where it must be.
        TypeError
            Values of another type.
        """
        from astropy import units as u
        from astropy.table import QTable
        from astropy.time import Time

        if unknown := values.keys() - set(self.names):
            raise ValueError(f"{self.path}: columns {sorted(unknown)} are not in its schema")
        table = QTable(meta=dict(metadata or {}))
        for column in self.columns:
            if column.name not in values:
                if column.optional:
                    continue
                raise ValueError(f"{self.path}: column {column.name} is missing")
            given = values[column.name]
            if column.kind == "time":
                if not isinstance(given, Time):
                    raise TypeError(f"column {column.name}: expected times, got {type(given)}")
                table[column.name] = given
            else:
                cast = column.cast(given)
                table[column.name] = u.Quantity(cast, column.unit) if column.unit else cast
            table[column.name].info.description = column.description
        if "flags" in table.colnames:
            self._check_flags(table["flags"])
        return table

    def _check_flags(self, flags: Any) -> None:
        letters = set("".join(np.asarray(flags).astype(np.str_).tolist()))
        if unknown := letters - {flag.letter for flag in self.flags}:
            raise ValueError(f"{self.path}: flags {sorted(unknown)} are not in its schema")

    def read(self, file: File) -> dict[str, NDArray[Any]]:
        """Read the table from a file and check it.

        Parameters
        ----------
        file : File
            From `calibdask.io.hdf5.open_hdf5`.

        Returns
        -------
        dict of str to ndarray
            Its columns in the units of the schema, text as str, times in ns of TAI since 1970.
            Columns that the schema does not know are left out.

        Raises
        ------
        MissingInput
            No such table, or a column is missing.
        CorruptedInput
            A column of another type or of a unit that cannot be converted.
        """
        table = file.table(self.path)
        lacking = [c.name for c in self.columns if not c.optional and c.name not in table.names]
        if lacking:
            raise MissingInput(f"{table.file}: {self.path} has no column {', '.join(lacking)}")
        wanted = [column for column in self.columns if column.name in table.names]
        for column in wanted:
            kind = table.dtype[column.name].base.kind
            if kind not in _KINDS[column.kind]:
                raise CorruptedInput(
                    f"{table.file}: {self.path} has {column.name} as"
                    f" {table.dtype[column.name]}, expected {column.kind}"
                )
        stored = table.columns([column.name for column in wanted])
        return {column.name: _inside(table, column, stored[column.name]) for column in wanted}


def _inside(table: Table, column: Column, values: NDArray[Any]) -> NDArray[Any]:
    """Return a column as it is used inside: text as str, numbers in its unit, times in ns."""
    if column.kind == "text":
        raw = values.astype("S") if values.dtype.kind == "O" else values
        return np.asarray(np.strings.decode(raw, "utf-8") if raw.dtype.kind == "S" else raw)
    if column.kind == "time":
        from calibdask.stats.timebins import ctao_time_ns

        return ctao_time_ns(values)
    unit = table.unit(column.name)
    if unit == column.unit or column.kind == "bool":
        return values
    from astropy import units as u

    try:
        factor = float(u.Unit(unit).to(u.Unit(column.unit)))
    except (ValueError, u.UnitConversionError):
        raise CorruptedInput(
            f"{table.file}: {table.path} has {column.name} in {unit!r}, expected a unit of"
            f" {column.unit or 'a pure number'!r}"
        ) from None
    return np.asarray(values * factor)
