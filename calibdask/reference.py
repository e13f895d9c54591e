"""Pages of the documentation that are written from declarations.

``python -m calibdask.reference`` writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibdask.flags import Flag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DIRECTORY", "PAGES", "flag_page"]

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


def flag_page() -> str:
    """Return the page about flags, in Markdown."""
    lines = [_FLAGS]
    for flag in Flag:
        name, use = flag.name.lower().replace("_", " "), flag.severity.name.lower()
        lines.append(f"| {flag.letter} | {name} | {use} | {flag.meaning} |")
    return "\n".join(lines) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {"flags.md": flag_page}
"""What writes each page, by its name in `DIRECTORY`."""


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (DIRECTORY / name).write_text(page(), encoding="utf-8")
