"""Pages of the documentation that are written from declarations.

``python -m calibdask.reference`` writes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibdask.array import tables as array
from calibdask.flags import Flag, ImageFlag, PixelFlag
from calibdask.muon import tables as muon
from calibdask.sensor import tables as sensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from calibdask.schema import TableSchema

__all__ = ["DIRECTORY", "PAGES", "SCHEMAS", "flag_page", "table_page"]

SCHEMAS: Final[Mapping[str, tuple[TableSchema, ...]]] = {
    "Arrays of telescopes": array.TABLES,
    "Muon rings": muon.TABLES,
    "Sensors": sensor.TABLES,
}
"""All tables, by the heading of the page that they stand under."""

DIRECTORY: Final = Path(__file__).parents[1] / "docs" / "reference"

_WRITTEN: Final = "(This page is written by `python -m calibdask.reference`.)"

_FLAGS: Final = f"""# Quality flags

Rows of result tables carry flags as letters in the column `flags`: "SU" means S and U, an empty
text that all is well. A letter means one thing in all tables.
{_WRITTEN}

- **note**: the values can be used as they are.
- **caution**: the values can be used, after a look at what the flag says.
- **unusable**: there is no value, or none that may enter another result unasked. Jobs that read the
  results of others leave these rows out, and say so.

Each table says in its attributes `FLAG_<letter>` what its flags mean. A file with a flag that this
version does not know in the table, or with another meaning, is refused: run the job that wrote it
again.

| Flag | Name | Use | Meaning |
|---|---|---|---|"""

_MASKS: Final = """
## Flags of pixels

Maps and frames of sensors carry flags as bits of a `mask`, 0 where all is well. Its attributes
`flag_masks` and `flag_meanings` name them."""


def flag_page() -> str:
    """Return the page about flags, in Markdown."""
    lines = [_FLAGS]
    for flag in Flag:
        name, use = flag.name.lower().replace("_", " "), flag.severity.name.lower()
        lines.append(f"| {flag.letter} | {name} | {use} | {flag.meaning} |")
    lines.append(_MASKS)
    for heading, mask in {"Calibration maps": PixelFlag, "Calibrated frames": ImageFlag}.items():
        lines += [f"\n### {heading}\n", "| Bit | Name | Meaning |", "|---|---|---|"]
        lines += [f"| {flag.value} | {flag.label} | {flag.meaning} |" for flag in mask]
    return "\n".join(lines) + "\n"


_TABLES: Final = f"""# Result tables

Every table of the result files, with its columns in their order.
{_WRITTEN}

Types are those of NumPy; *text* is UTF-8 of fixed width; *time* is what ctapipe stores as
`ctao_high_res` in TAI. Text and integers that do not fit make their column wider. Columns in
brackets are not in all tables. `ctapipe.io.read_table` reads all of them with units and times.
What the letters in `flags` mean: [flags](flags.md)."""


def table_page() -> str:
    """Return the page about tables, in Markdown."""
    lines = [_TABLES]
    for heading, schemas in SCHEMAS.items():
        lines.append(f"\n## {heading}")
        for schema in schemas:
            path = re.sub(r"\{(\w+)[^}]*\}", r"<\1>", schema.path)
            lines += [f"\n### `{path}`", f"\n{schema.description}.\n"]
            lines += ["| Column | Type | Unit | Meaning |", "|---|---|---|---|"]
            for one in schema.columns:
                name = f"[`{one.name}`]" if one.optional else f"`{one.name}`"
                kind = _KINDS.get(one.kind, one.kind)
                meaning = one.description
                if one.name == "flags":
                    meaning += f": {', '.join(flag.letter for flag in schema.flags)}"
                lines.append(f"| {name} | {kind} | {one.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


_KINDS: Final = {"?": "bool"} | {
    f"{letter}{n}": f"{name}{8 * n}"
    for letter, name in (("i", "int"), ("u", "uint"), ("f", "float"))
    for n in (1, 2, 4, 8)
}

PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "flags.md": flag_page,
    "tables.md": table_page,
}
"""What writes each page, by its name in `DIRECTORY`."""


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (DIRECTORY / name).write_text(page(), encoding="utf-8")
