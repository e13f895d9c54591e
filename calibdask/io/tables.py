"""Reading of tables by their schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput
from calibdask.io.times import stored_time_ns
from calibdask.schema import FLAGS, flag_attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from calibdask.flags import Flag
    from calibdask.io.hdf5 import Columns, Table
    from calibdask.schema import Column, TableSchema

__all__ = ["read_columns"]

_COMPATIBLE = {"f": "fiu", "i": "iu", "u": "iu", "?": "b", "t": "SO"}
"""Kinds of stored types that are read as a column of a kind."""


def read_columns(table: Table, schema: TableSchema, names: Sequence[str] | None = None) -> Columns:
    """Read columns of a table as its schema has them.

    Parameters
    ----------
    table : Table
        From `calibdask.io.hdf5.open_hdf5`.
    schema : TableSchema
        What is expected of it.
    names : sequence of str, optional
        Columns to read. All that the schema has unless given.

    Returns
    -------
    dict of str to ndarray, each (N,)
        As `TableSchema.build` takes them: numbers in the unit of the schema, text as str, times as
        int64, in ns of TAI since 1970. Optional columns that the table lacks are left out. Flags
        are always read; where a table has no such column, as those of other programs, no row has
        any.

    Raises
    ------
    CorruptedInput
        A column is missing, is of another kind, in another unit or has none; a row carries a flag
        that the schema has not, or one with another meaning; or a chunk fails its checksum.
    """
    wanted = [schema.by_name[name] for name in names or schema.by_name if name != FLAGS.name]
    lacking = [one for one in wanted if one.name not in table.names]
    if required := [one.name for one in lacking if not one.optional]:
        raise CorruptedInput(
            f"{table.file}: {table.path} has no column {', '.join(required)}; it is to hold:"
            f" {schema.description}"
        )
    there = [one for one in wanted if one not in lacking]
    has_flags = bool(schema.flags) and FLAGS.name in table.names
    stored = table.columns([one.name for one in (*there, *[FLAGS] * has_flags)])
    found = {one.name: _as_declared(table, one, stored[one.name]) for one in there}
    if schema.flags:
        n_rows = table.n_rows
        found[FLAGS.name] = (
            _flags(table, schema, stored[FLAGS.name]) if has_flags else np.full(n_rows, "")
        )
    return found


def _as_declared(table: Table, column: Column, values: NDArray[Any]) -> NDArray[Any]:
    if column.kind == "time":
        return stored_time_ns(table.file, table, column.name, values)
    where = f"{table.file}: {table.path} has {column.name}"
    if values.dtype.kind not in _COMPATIBLE[column.kind[0]] or values.ndim != 1:
        raise CorruptedInput(
            f"{where} as {values.dtype} of shape {values.shape[1:]}, expected {column.kind}"
        )
    if column.kind == "text":
        return _text(values)
    unit = table.unit(column.name)
    if unit != column.unit:
        values = values * _factor(unit, column.unit, where)
    narrow = values.astype(column.kind)
    return narrow if values.dtype.kind == "f" or np.array_equal(narrow, values) else values


def _text(values: NDArray[Any]) -> NDArray[np.str_]:
    decoded = [
        one if isinstance(one, str) else one.decode("utf-8", "replace") for one in values.tolist()
    ]
    return np.array(decoded, np.str_)


def _factor(unit: str, wanted: str, where: str) -> float:
    from astropy.units import Unit, UnitConversionError

    try:
        return float(Unit(unit).to(wanted))
    except (ValueError, TypeError, UnitConversionError) as error:
        raise CorruptedInput(
            f"{where} in the unit {unit!r}, expected one that can be converted to {wanted!r}:"
            " correct the unit in the file"
        ) from error


def _flags(table: Table, schema: TableSchema, values: NDArray[Any]) -> NDArray[np.str_]:
    """Return the flags as text; refuse letters that do not mean what they mean here."""
    flags = _text(values)
    known: dict[str, Flag] = {flag.letter: flag for flag in schema.flags}
    for letter in sorted(set("".join(np.unique(flags).tolist()))):
        meaning = table.attribute(flag_attribute(letter))
        ours = known.get(letter)
        if ours is None or (meaning and str(meaning).partition(":")[0] != ours.name.lower()):
            row = int(np.flatnonzero(np.strings.find(flags, letter) >= 0)[0])
            raise CorruptedInput(
                f"{table.file}: {table.path} has the flag {letter} in row {row}"
                f" ({meaning or 'the file does not say what it means'}), which this version does"
                " not have in this table: the file is of another version; run the job that wrote"
                " it again with this one"
            )
    return flags
