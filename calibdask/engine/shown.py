"""How results are shown to people: names with values, and tables, as text and in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from astropy.table import QTable

__all__ = ["facts_html", "facts_text", "table_text", "tables_html"]


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
        if getattr(column, "dtype", np.dtype(object)).kind == "f":
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
