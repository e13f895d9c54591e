"""Which part of a frame light falls on: rectangles, and how FITS files name them.

Cameras read out more than their image: optically black borders, which DNG's ActiveArea and LibRaw's
margins leave out, and overscan, which IRAF's section cards name (Tody 1986, Proc. SPIE 627, 733;
Valdes, NOAO FITS image keywords). A card is ``[x1:x2,y1:y2]``, counted from 1, both ends included.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Area", "areas_of_fits", "checked", "without"]

type Area = tuple[int, int, int, int]
"""First row and column, and the row and column behind the last (as DNG's ActiveArea)."""

_TO_KEEP: Final = ("TRIMSEC", "DATASEC")
_OVERSCAN: Final = "BIASSEC"
_AMPLIFIER: Final = r"([A-H]|\d{1,2})"
_SECTION: Final = re.compile(r"\[\s*(\*|\d+\s*:\s*\d+)\s*,\s*(\*|\d+\s*:\s*\d+)\s*\]")


def areas_of_fits(header: Mapping[str, Any], shape: tuple[int, int]) -> tuple[Area, ...]:
    """Read the section cards of a FITS header.

    What is to be kept (TRIMSEC, else DATASEC; where there is one for each amplifier, as TRIMSECA
    or DATASEC1, all of them), less the overscan (BIASSEC, BIASSECA, ...).

    Parameters
    ----------
    header : mapping
        Its cards.
    shape : (int, int)
        Rows and columns of the image.

    Returns
    -------
    tuple of Area
        Disjoint, and not checked against the shape; empty where light falls on the whole image.

    Raises
    ------
    CorruptedInput
        A card is no section.
    """
    whole = (0, 0, *shape)
    kept: list[Area] = []
    for name in _TO_KEEP:
        if kept := list(_sections(header, name, shape)) or list(
            _sections(header, name + _AMPLIFIER, shape)
        ):
            break
    areas: tuple[Area, ...] = ()
    for one in kept or [whole]:
        areas += without((one,), areas)
    for pattern in (_OVERSCAN, _OVERSCAN + _AMPLIFIER):
        areas = without(areas, tuple(_sections(header, pattern, shape)))
    return () if areas == (whole,) else areas


def _sections(header: Mapping[str, Any], pattern: str, shape: tuple[int, int]) -> Iterator[Area]:
    for name in header:
        if not re.fullmatch(pattern, name):
            continue
        text = str(header[name]).strip()
        if text.replace(" ", "") in ("", "[0:0,0:0]"):  # what IRAF writes where there is none
            continue
        if (match := _SECTION.fullmatch(text)) is None:
            raise CorruptedInput(f"{name} is {text!r}, no section like '[1:2048,1:1024]'")
        columns, rows = (
            (0, size) if part == "*" else _range(part)
            for part, size in zip(match.groups(), shape[::-1], strict=True)
        )
        yield rows[0], columns[0], rows[1], columns[1]


def _range(part: str) -> tuple[int, int]:
    first, last = sorted(int(one) for one in part.split(":"))  # [2048:1] is read out mirrored
    return first - 1, last


def without(areas: Sequence[Area], holes: Sequence[Area]) -> tuple[Area, ...]:
    """Cut rectangles out of others: what is left of each lies above, below, left and right."""
    left = tuple(areas)
    for h_top, h_left, h_bottom, h_right in holes:
        pieces: list[Area] = []
        for top, first, bottom, end in left:
            y0, y1 = max(top, h_top), min(bottom, h_bottom)
            x0, x1 = max(first, h_left), min(end, h_right)
            if y0 >= y1 or x0 >= x1:
                pieces.append((top, first, bottom, end))
                continue
            around = ((top, first, y0, end), (y1, first, bottom, end),
                      (y0, first, y1, x0), (y0, x1, y1, end))  # fmt: skip
            pieces += [one for one in around if one[0] < one[2] and one[1] < one[3]]
        left = tuple(pieces)
    return left


def checked(areas: Sequence[Area], shape: tuple[int, int]) -> tuple[Area, ...]:
    """Refuse areas that are not inside a frame; give none where they are all of it.

    Raises
    ------
    CorruptedInput
        They are empty, or stick out of the frame.
    """
    rows, columns = shape
    for area in areas:
        top, left, bottom, right = area
        if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
            raise CorruptedInput(
                f"light is said to fall on rows {top} to {bottom - 1} and columns {left} to"
                f" {right - 1}, but the frame has {rows} rows and {columns} columns"
            )
    return () if tuple(areas) == ((0, 0, rows, columns),) else tuple(areas)
