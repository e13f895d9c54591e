"""Tables, each declared once: where it lies, its columns, the flags that its rows can carry.

A `TableSchema` builds the table that is written, names its columns in reports, and tells
`calibdask.io.tables.read_columns` what to expect; ``docs/reference/tables.md`` is written from all
of them (``python -m calibdask.reference``).
"""

from __future__ import annotations

import re
import string
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.stats.timebins import NO_TIME, to_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.flags import Flag

__all__ = ["FLAGS", "Column", "TableSchema", "flag_attribute"]

_KIND: Final = re.compile(r"\?|[iu][1248]|f[48]|text|time")
_TAKEN: Final = {"?": "b", "i": "iu", "u": "iu", "f": "fiu"}
"""Kinds of NumPy types that are taken as values of a kind of column."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
        Its name in the file.
    kind : str
        NumPy type ("f8", "i8", "i2", "?", ...), "text" or "time". Integers and text that do not fit
        make the column wider: nothing is cut off, and usual values always have the same type.
    description : str
        What it holds, for the file and the documentation; without a full stop.
    unit : str
        Unit as astropy writes it, e.g. "m" or "deg-1".
    heading : str
        Heading in reports, without the unit; made from the name unless given.
    error : str
        Name of the column with its standard error: reports round both to the same digits.
    format : str
        Format specification of numbers in reports.
    optional : bool
        Whether tables may lack it.
    width : int
        Bytes of text.

    Raises
    ------
    ValueError
        A kind that is not one, or a unit of something else than f4 and f8.
    """

    name: str
    kind: str
    description: str
    _: KW_ONLY
    unit: str = ""
    heading: str = ""
    error: str = ""
    format: str = ""
    optional: bool = False
    width: int = 16

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ValueError(f"column {self.name}: no kind of column {self.kind!r}")
        if self.unit and self.kind not in ("f4", "f8"):
            raise ValueError(f"column {self.name}: {self.kind} has no unit")

    @property
    def title(self) -> str:
        """Heading in reports, with the unit."""
        heading = self.heading or self.name.replace("_", " ").capitalize()
        if not self.unit:
            return heading
        from astropy.units import Unit

        return f"{heading} / {Unit(self.unit).to_string('unicode', fraction=False)}"

    def stored(self, values: Any, where: str) -> Any:
        """Return values in the type and unit of the column.

        Parameters
        ----------
        values : array_like, Quantity or Time, shape (N,)
            Numbers without a unit are in the column's unit, integers for times in ns of TAI since
            1970; `NO_TIME` becomes 1970, by which ctapipe says that there is none.
        where : str
            The table, for messages.

        Returns
        -------
        ndarray, Quantity or Time, shape (N,)

        Raises
        ------
        TypeError
            Values of another kind.
        ValueError
            Not one-dimensional, or in a unit that cannot be converted.
        """
        where = f"{where}: column {self.name}"
        if self.kind == "time":
            if not hasattr(values, "tai"):
                time_ns = np.asarray(values)
                values = to_time(np.where(time_ns == NO_TIME, 0, time_ns))
        elif self.unit:
            from astropy.units import Quantity, UnitConversionError

            try:
                values = Quantity(values, self.unit)
            except (TypeError, UnitConversionError) as error:
                raise ValueError(f"{where} is in {self.unit}: {error}") from error
            values = Quantity(self._typed(values.value, where), values.unit, copy=False)
        elif unit := getattr(values, "unit", None):
            raise ValueError(f"{where} has no unit, got values in {unit}")
        else:
            values = self._typed(np.asarray(values), where)
        if values.ndim != 1:
            raise ValueError(f"{where} has one value a row, got an array of shape {values.shape}")
        return values

    def _typed(self, values: NDArray[Any], where: str) -> NDArray[Any]:
        if self.kind == "text" and (values.dtype.kind in "US" or not values.size):
            text = values.astype(np.str_)
            n_bytes = np.strings.str_len(np.strings.encode(text, "utf-8"))
            return text.astype(f"U{max(self.width, n_bytes.max(initial=0))}")
        if values.dtype.kind not in _TAKEN.get(self.kind[0], ""):
            raise TypeError(f"{where} is {self.kind}, got values of {values.dtype}")
        narrow = values.astype(self.kind)
        return narrow if values.dtype.kind == "f" or np.array_equal(narrow, values) else values


FLAGS: Final = Column(
    "flags", "text", "Letters that say what is special or wrong; empty where all is well"
)
"""The column of the flags: the last one of each table that has any."""


@dataclass(frozen=True)
class TableSchema:
    """A table, or all tables whose paths differ in a name or number only.

    Attributes
    ----------
    path : str
        Where it lies in the file. It may have fields, as in ".../tel_{tel_id:03d}".
    description : str
        What it holds: one sentence without a full stop.
    columns : tuple of Column
        In their order.
    flags : tuple of Flag
        Flags that a row can carry; where there are any, the column `FLAGS` follows the others.

    Raises
    ------
    ValueError
        Two columns of one name, or an error of a value that is no column.
    """

    path: str
    description: str
    columns: tuple[Column, ...]
    flags: tuple[Flag, ...] = ()

    def __post_init__(self) -> None:
        if self.flags:
            object.__setattr__(self, "columns", (*self.columns, FLAGS))
        errors = {one.error for one in self.columns if one.error}
        if len(self.by_name) < len(self.columns) or errors - self.by_name.keys():
            raise ValueError(f"{self.path}: names of columns are not unique, or errors are missing")

    @cached_property
    def by_name(self) -> Mapping[str, Column]:
        """The columns by their names."""
        return {one.name: one for one in self.columns}

    def at(self, **fields: str | int) -> str:
        """Return the path of one table, e.g. ``at(tel_id=3)``."""
        return self.path.format(**fields)

    def fields(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path as text; None where the path is another table's."""
        pattern = ""
        for text, name, spec, _ in string.Formatter().parse(self.path):
            kind = r"\d+" if (spec or "").endswith("d") else "[^/]+"
            pattern += re.escape(text) + (f"(?P<{name}>{kind})" if name else "")
        found = re.fullmatch(pattern, path)
        return None if found is None else found.groupdict()

    def build(self, columns: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> QTable:
        """Make the table.

        Parameters
        ----------
        columns : mapping of str to array_like, Quantity or Time, each (N,)
            Values by the names of the columns, in any order (see `Column.stored`).
        meta : mapping of str to str, number or ndarray, optional
            More metadata. Descriptions of the table and of its flags are added.

        Returns
        -------
        QTable
            Columns in the order of the schema, with units and descriptions.

        Raises
        ------
        ValueError, TypeError
            A column is missing, is not declared, has another length than the others, or as
            `Column.stored`.
        """
        from astropy.table import QTable

        unknown = columns.keys() - self.by_name.keys()
        lacking = [n for n, one in self.by_name.items() if not one.optional and n not in columns]
        if unknown or lacking:
            raise ValueError(
                f"{self.path}: columns {sorted(unknown)} are not declared, {lacking} are missing"
            )
        stored = {
            name: one.stored(columns[name], self.path)
            for name, one in self.by_name.items()
            if name in columns
        }
        lengths = {name: len(values) for name, values in stored.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.path}: columns of different lengths {lengths}")
        described = {
            flag_attribute(flag.letter): f"{flag.name.lower()}: {flag.meaning}"
            for flag in self.flags
        }
        table = QTable(stored, meta={"description": self.description, **described, **(meta or {})})
        for name in stored:
            table[name].info.description = self.by_name[name].description
        return table

    def shown(self, table: QTable | Mapping[str, Any], name: str) -> NDArray[Any]:
        """Return a column for a report: numbers in their unit, times as text in UTC, to s."""
        column = table[name]
        if self.by_name[name].kind == "time":
            return np.asarray(column.utc.iso).astype("U19")
        return np.asarray(getattr(column, "value", column))


def flag_attribute(letter: str) -> str:
    """Return the attribute of a table that says what a flag means: its name, colon, meaning."""
    return f"FLAG_{letter}"
