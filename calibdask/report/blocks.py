"""What the sections of a report are made of: text, notices, tables and figures."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from calibdask.flags import Severity, worst
from calibdask.rounding import format_number, round_to_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import ArrayLike, NDArray

    from calibdask.schema import TableSchema

__all__ = [
    "Block",
    "FigureBlock",
    "Notice",
    "Paragraph",
    "ReportSection",
    "TableBlock",
    "table_block",
    "values_table",
]

FIGURE_SPACE = "\N{FIGURE SPACE}"
PUNCTUATION_SPACE = "\N{PUNCTUATION SPACE}"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence that must not be overlooked.

    Attributes
    ----------
    level : {"error", "warning", "info"}
        "error" and "warning" also count in the verdict at the top of the page.
    text : str
        What was found, where, and what to do about it.
    """

    kind: ClassVar[str] = "notice"
    level: Literal["error", "warning", "info"]
    text: str


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A figure.

    Attributes
    ----------
    image : str or bytes
        SVG as text, or PNG as bytes.
    alt, caption : str
        What the figure shows, for a reader who cannot see it; how to read it.

    Raises
    ------
    ValueError
        No alternative text, or bytes that are not PNG.
    """

    kind: ClassVar[str] = "figure"
    image: str | bytes
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError(f"figure {self.caption!r} needs an alternative text")
        if isinstance(self.image, bytes) and not self.image.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"figure {self.caption!r}: the bytes are not a PNG image")

    @property
    def source(self) -> str:
        """The image as a data URI."""
        # An <img> rather than inline <svg>: the identifiers inside several SVGs would collide.
        if isinstance(self.image, bytes):
            return "data:image/png;base64," + base64.b64encode(self.image).decode()
        return "data:image/svg+xml;base64," + base64.b64encode(self.image.encode()).decode()


@dataclass(frozen=True, slots=True, eq=False)
class TableBlock:
    """A table, given by columns.

    Attributes
    ----------
    columns : mapping of str to array_like, shape (n_rows,)
        Heading (with its unit) to values. NaN is shown as a dash, a bool as yes or no.
    caption : str
        What the table holds.
    formats : mapping of str to str
        Heading to format specification, as in "{:.3f}" without the "{:}". Columns without one
        are shown with four significant digits.
    error_of : mapping of str to str
        Heading of a value to the heading of its error: both are rounded to the same decimals,
        those of two significant digits of the error.
    marked : array_like of bool, shape (n_rows,), optional
        Rows to set off from the others.

    Raises
    ------
    ValueError
        Columns of different lengths, or a heading in `formats` or `error_of` that is no column.
    """

    kind: ClassVar[str] = "table"
    columns: Mapping[str, ArrayLike]
    caption: str
    formats: Mapping[str, str] = field(default_factory=dict)
    error_of: Mapping[str, str] = field(default_factory=dict)
    marked: ArrayLike = ()

    def __post_init__(self) -> None:
        lengths = {name: len(np.asarray(values)) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"table {self.caption!r}: columns of different lengths {lengths}")
        unknown = {*self.formats, *self.error_of, *self.error_of.values()} - set(self.columns)
        if unknown:
            raise ValueError(f"table {self.caption!r}: no columns {sorted(unknown)}")
        n_marked = len(np.asarray(self.marked))
        if n_marked and {n_marked} != set(lengths.values()):
            raise ValueError(f"table {self.caption!r}: {n_marked} marks for columns {lengths}")

    @property
    def numeric(self) -> list[bool]:
        """Which columns are numbers, and so stand on the right."""
        return [np.asarray(values).dtype.kind in "iuf" for values in self.columns.values()]

    def rows(self) -> list[tuple[bool, tuple[str, ...]]]:
        """Each row as (marked, cells), the cells as they are shown."""
        shown = {
            name: _format_column(np.asarray(values), self.formats.get(name))
            for name, values in self.columns.items()
        }
        for error_name in sorted(set(self.error_of.values())):
            errors = np.asarray(self.columns[error_name], dtype=float)
            for value_name in [name for name, of in self.error_of.items() if of == error_name]:
                values = np.asarray(self.columns[value_name], dtype=float)
                pairs = [round_to_error(*pair) for pair in zip(values, errors, strict=True)]
                shown[value_name] = _align([value for value, _ in pairs])
                shown[error_name] = _align([error for _, error in pairs])
        cells = list(zip(*shown.values(), strict=True))
        marked = np.asarray(self.marked, dtype=bool)
        return list(zip(marked.tolist() or [False] * len(cells), cells, strict=True))


type Block = Paragraph | Notice | TableBlock | FigureBlock
"""What a section is made of."""


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]


def table_block(
    schema: TableSchema,
    table: QTable | Mapping[str, ArrayLike],
    names: Sequence[str],
    caption: str,
    *,
    derived: Mapping[str, ArrayLike] | None = None,
    formats: Mapping[str, str] | None = None,
    error_of: Mapping[str, str] | None = None,
    marked: ArrayLike | None = None,
) -> TableBlock:
    """Show columns of a result table under the headings and with the formats of its schema.

    Parameters
    ----------
    schema : TableSchema
        Of the table.
    table : QTable or mapping of str to array_like
        The table, or rows of it.
    names : sequence of str
        Columns to show, in their order.
    caption : str
        As in `TableBlock`.
    derived : mapping of str to array_like, optional
        More columns by their headings; `names` says where they stand.
    formats, error_of : mapping of str to str, optional
        Of derived columns, as in `TableBlock`; those of others the schema knows.
    marked : array_like of bool, optional
        Rows to set off. Those with flags that restrict their use unless given, if the flags are
        shown.
    """
    derived = derived or {}
    declared = {name: schema.by_name[name] for name in names if name not in derived}
    if marked is None and "flags" in declared:
        marked = worst(schema.shown(table, "flags")) > Severity.NOTE
        caption += " Marked: flags that restrict the use."
    return TableBlock(
        columns={
            declared[name].title if name in declared else name: (
                schema.shown(table, name) if name in declared else derived[name]
            )
            for name in names
        },
        caption=caption,
        formats={one.title: one.format for one in declared.values() if one.format}
        | dict(formats or {}),
        error_of={
            one.title: declared[one.error].title
            for one in declared.values()
            if one.error in declared
        }
        | dict(error_of or {}),
        marked=() if marked is None else marked,
    )


def values_table(
    schema: TableSchema, rows: Mapping[str, Mapping[str, Any]], caption: str
) -> TableBlock:
    """Show rows of a table side by side, under their labels: a line for each quantity.

    Values are rounded to their errors, which stand behind them.
    """
    names = [name for name in next(iter(rows.values())) if name in schema.by_name]
    errors = {one.error for one in schema.columns if one.error in names}
    shown = [schema.by_name[name] for name in names if name not in errors]
    columns: dict[str, Any] = {"Quantity": [one.title for one in shown]}
    for label, row in rows.items():
        columns[label] = [_as_text(row[one.name], row.get(one.error)) for one in shown]
    return TableBlock(columns=columns, caption=caption)


def _as_text(value: Any, error: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str | int | np.integer):
        return str(value)
    if error is not None and math.isfinite(error) and error > 0 and math.isfinite(value):
        return " ± ".join(round_to_error(value, error))
    return format_number(value, ".6g")


def _format_column(values: NDArray[np.generic], spec: str | None) -> list[str]:
    """Format one column by its type."""
    if values.dtype.kind == "b":
        return ["yes" if value else "no" for value in values.tolist()]
    if values.dtype.kind == "f":
        return [format_number(value, spec or ".4g") for value in values.tolist()]
    return [format(value, spec or "") for value in values.tolist()]


def _align(numbers: list[str]) -> list[str]:
    """Pad with spaces as wide as digits, so that decimal points stand under each other."""
    fractions = [number.partition(".")[2] for number in numbers]
    width = max(map(len, fractions), default=0)
    return [
        number
        + ("" if fraction or not width else PUNCTUATION_SPACE)
        + FIGURE_SPACE * (width - len(fraction))
        for number, fraction in zip(numbers, fractions, strict=True)
    ]
