"""How results are shown to people: names with values, and tables, as text and in notebooks."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable

__all__ = ["facts_html", "facts_text", "printable", "table_text", "tables_html"]


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


def _for_people(table: QTable) -> QTable:
    """Give a view of a table that prints five digits of real numbers instead of seventeen."""
    shown = table.copy(copy_data=False)
    for column in shown.columns.values():
        dtype = getattr(column, "dtype", None)  # times have none
        if dtype is not None and dtype.kind == "f":
            column.info.format = ".5g"
    return shown


def table_text(path: str, table: QTable) -> str:
    """Write a whole table under its path."""
    return "\n".join([path, *_for_people(table).pformat(max_lines=-1, max_width=-1)])


def tables_html(tables: Mapping[str, QTable]) -> str:
    """Write tables for a notebook, folded, each cut to the screen as Astropy does it."""
    from html import escape

    return "".join(
        f"<details><summary><code>{escape(path)}</code></summary>"
        f"{_for_people(table)._repr_html_()}</details>"
        for path, table in tables.items()
    )
