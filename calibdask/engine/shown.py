"""How results are shown to people: names with values, and tables, as text and in notebooks."""

from __future__ import annotations

import textwrap
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from calibdask.rounding import error_columns, format_number, round_to_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable, Table

__all__ = ["facts_html", "facts_text", "printable", "shortened", "table_text", "tables_html"]

_MOST_ROWS = 40
"""Rows of a table that are still shown on a terminal."""
_MOST_LINES = 12
"""The same for a list."""


def printable(text: str, *, one_line: bool = False) -> str:
    """Escape what a terminal would obey instead of show, as names of files may hold it.

    Parameters
    ----------
    text : str
        For people.
    one_line : bool
        Escape line breaks and tabs as well, as is right for a name.
    """
    if text.isprintable():
        return text
    kept = "" if one_line else "\n\t"
    return "".join(
        one if one.isprintable() or one in kept or unicodedata.category(one) == "Zs"
        else one.encode("unicode_escape").decode("ascii")
        for one in text
    )  # fmt: skip


def facts_text(facts: Sequence[tuple[str, str]]) -> str:
    """Write names and values in two columns; values of several lines keep to theirs."""
    width = max(len(name) for name, _ in facts)
    lines = []
    for name, value in facts:
        first, *more = value.splitlines()
        lines.append(f"{name:<{width}}  {first}")
        lines += [f"{'':<{width}}  {line}" for line in more]
    return "\n".join(lines)


def facts_html(facts: Iterable[tuple[str, str]]) -> str:
    """Write names and values as a table for a notebook."""
    from html import escape

    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in facts
    )
    return f"<table>{rows}</table>"


def _as_text(table: QTable) -> dict[str, list[str]]:
    """Write every column for people: values to the digits that their errors leave them."""
    from astropy.time import Time

    texts: dict[str, list[str]] = {}
    numbers: dict[str, list[float]] = {}
    for name, column in table.columns.items():
        if isinstance(column, Time):
            texts[name] = [text[:19] for text in column.isot.tolist()]
            continue
        values = np.asarray(getattr(column, "value", column))
        if values.dtype.kind == "f" and values.ndim == 1:
            numbers[name] = values.tolist()
            texts[name] = [format_number(value, ".5g") for value in values.tolist()]
        else:
            texts[name] = [str(value) for value in values.tolist()]
    for name, found in numbers.items():  # errors of other kinds, and those without their value
        if name.startswith("error") or name.endswith(("_error", "_err")) or name == "systematic":
            texts[name] = [round_to_error(one, one)[1] for one in found]
    for name, error in error_columns(list(numbers)).items():
        pairs = [round_to_error(*pair) for pair in zip(numbers[name], numbers[error], strict=True)]
        texts[name], texts[error] = [one for one, _ in pairs], [other for _, other in pairs]
    return texts


def table_text(
    path: str, table: QTable, *, width: int | None = None, rest: str = "the product"
) -> str:
    """Write a table under its path.

    Parameters
    ----------
    path : str
        Where it lies in the product.
    table : QTable
        The table.
    width : int, optional
        Columns of the screen. The table is shortened to it: what is the same in all rows is said
        once, further columns and rows are left out, and it is said which. All of it unless given.
    rest : str
        Where all of it can be found.
    """
    texts = _as_text(table)
    units = {name: str(getattr(table[name], "unit", "") or "") for name in texts}
    right = {name: getattr(table[name], "dtype", None) is not None
             and table[name].dtype.kind in "iuf" for name in texts}  # fmt: skip
    lines, notes = [path], []
    if width is not None and len(table) > 2:
        same = [name for name, values in texts.items() if len(set(values)) == 1]
        of_all = [f"{name} {texts[name][0]} {units[name]}".strip() for name in same]
        lines += textwrap.wrap(f"in all rows: {', '.join(of_all)}", width) if same else []
        texts = {name: values for name, values in texts.items() if name not in same}
    n_rows = len(table)
    shown = n_rows if width is None or n_rows <= _MOST_ROWS else _MOST_ROWS - 10
    widths = {
        name: max(map(len, (name, units[name], *values[:shown]))) for name, values in texts.items()
    }
    names = list(texts)
    if width is not None:
        names = _that_fit(widths, width)
        if left := [name for name in texts if name not in names]:
            notes.append(f"columns {', '.join(left)}")
    if shown < n_rows:
        notes.insert(0, f"{n_rows - shown} rows")

    def line(cells: Mapping[str, str]) -> str:
        padded = [
            cells[name].rjust(widths[name]) if right[name] else cells[name].ljust(widths[name])
            for name in names
        ]
        return " ".join(padded).rstrip()

    if names:
        lines.append(line({name: name for name in names}))
        lines += [line(units)] if any(units[name] for name in names) else []
        lines.append(line({name: "-" * widths[name] for name in names}))
        lines += [line({name: texts[name][k] for name in names}) for k in range(shown)]
    if notes:
        lines += textwrap.wrap(f"... and {' and '.join(notes)}: see {rest}", width or 80)
    return "\n".join(lines)


def _that_fit(widths: Mapping[str, int], width: int) -> list[str]:
    """Choose the first columns that fit beside each other; flags always do."""
    first = [name for name in widths if name == "flags"]
    chosen = set(first)
    used = sum(widths[name] + 1 for name in first)
    for name in widths:
        used += 0 if name in chosen else widths[name] + 1
        if used > width + 1:
            break
        chosen.add(name)
    return [name for name in widths if name in chosen]


def shortened(lines: Sequence[str], rest: str, most: int = _MOST_LINES) -> list[str]:
    """Leave out the middle of a long list, and say so.

    Parameters
    ----------
    lines : sequence of str
        The list.
    rest : str
        Where all of it can be found.
    most : int
        How many lines are not too long.
    """
    if len(lines) <= most:
        return list(lines)
    hidden = len(lines) - 4
    return [*lines[:3], f"... {hidden} more: see {rest}", lines[-1]]


def tables_html(tables: Mapping[str, QTable]) -> str:
    """Write tables for a notebook, folded, each cut to the screen as Astropy does it."""
    from html import escape

    return "".join(
        f"<details><summary><code>{escape(path)}</code></summary>"
        f"{_rounded(table)._repr_html_()}</details>"
        for path, table in tables.items()
    )


def _rounded(table: QTable) -> Table:
    """Return a table of the texts of another, with the units in its head."""
    from astropy.table import Column, Table

    units = {name: getattr(table[name], "unit", None) for name in table.colnames}
    return Table({name: Column(text, unit=units[name]) for name, text in _as_text(table).items()})
