"""Whether the directories of a TIFF file agree with themselves, with its size, and with its pixels.

tifffile takes what a damaged directory lacks for its default, follows directories that are linked
in a circle, gives zeros for strips that are missing, cuts off what is too much, and asks for as
much memory as it is told.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import tifffile

__all__ = ["DECODED", "check_decoded", "check_end", "check_page", "tag_value", "tiff_pages"]

_MOST_FROM_A_BYTE: Final = {1: 1, 8: 1032, 32946: 1032, 32773: 64}
"""Bytes that a byte gives at most: zlib's technical details; TIFF 6.0, section 9 (PackBits)."""

DECODED: Final = frozenset(_MOST_FROM_A_BYTE)
"""Compressions of TIFF files that are read without further software: none, Deflate, PackBits."""

_YCBCR: Final = 6


def tiff_pages(path: Path, file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Return the directories of a file one after the other.

    Raises
    ------
    CorruptedInput
        They are linked in a circle.
    """
    seen = set()
    for page in file.pages:
        if page.offset in seen:
            raise CorruptedInput(f"{path}: its directories are linked in a circle; copy it again")
        seen.add(page.offset)
        yield cast("tifffile.TiffPage", page)  # the other kind is for those who ask for it


def tag_value(page: tifffile.TiffPage, name: str) -> Any:
    """Return the value of a tag, None where it is missing."""
    tag = page.tags.get(name)
    return None if tag is None else tag.value


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The strips or tiles of a page, as its directory tells them.

    Attributes
    ----------
    offsets, counts : sequence of int
        Where they lie, and how many bytes each has there.
    number : int
        How many there must be for an image of this size.
    of_plane : int
        The same for one plane.
    each, last : int
        Bytes of pixels in one, and in the last one of a plane.
    """

    offsets: Sequence[int]
    counts: Sequence[int]
    number: int
    of_plane: int
    each: int
    last: int

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> Self:
        planes, samples = 1, page.samplesperpixel
        if page.planarconfig == 2:
            planes, samples = samples, 1
        n_rows, n_columns = page.imagelength, page.imagewidth
        if page.is_tiled:
            kind, height, last, width = "Tile", page.tilelength, page.tilelength, page.tilewidth
            of_plane = -(-n_rows // height) * -(-n_columns // width)
        else:
            kind, height, width = "Strip", min(page.rowsperstrip or n_rows, n_rows), n_columns
            of_plane, last = -(-n_rows // height), (n_rows - 1) % height + 1
        row = -(-width * samples * page.bitspersample // 8)
        # Not those of tifffile, which joins pieces and drops surplus ones.
        found = [tag_value(page, f"{kind}{what}") for what in ("Offsets", "ByteCounts")]
        offsets, counts = (one if isinstance(one, tuple) else (one,) for one in found)
        if counts == (None,):  # as old programs leave it
            counts = tuple(page.databytecounts)
        return cls(offsets, counts, planes * of_plane, of_plane, height * row, last * row)

    def n_bytes(self, place: int) -> int:
        """Return the bytes of pixels in one of them."""
        return self.last if (place + 1) % self.of_plane == 0 else self.each


def _is_simple(page: tifffile.TiffPage) -> bool:
    """Return whether the sizes of a page follow from its tags, as those of any frame do."""
    return page.photometric != _YCBCR and page.imagedepth == 1


def check_end(path: Path, wanted: int) -> None:
    """Refuse a file that has fewer bytes than wanted (CorruptedInput)."""
    if (size := path.stat().st_size) < wanted:
        raise CorruptedInput(f"{path}: cut short: {size} bytes of {wanted}; copy it again")


def check_page(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a directory that contradicts itself or the size of the file; no pixel is read.

    Raises
    ------
    CorruptedInput
        It has no size, it has more or fewer strips or tiles than that size needs, or there are more
        or fewer bytes in one than its pixels take.
    """
    for name in ("ImageWidth", "ImageLength"):
        if not tag_value(page, name):
            raise CorruptedInput(f"{path}: a directory without {name}; copy it again")
    if not page.dataoffsets:
        raise CorruptedInput(f"{path}: a directory does not tell where pixels are; copy it again")
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
    if not _is_simple(page):
        check_end(path, max(ends, default=0))
        return
    pieces = _Pieces.of(page)
    there = sum(count > 0 for count in pieces.counts)
    if there != pieces.number or not pieces.number == len(pieces.counts) == len(pieces.offsets):
        raise CorruptedInput(
            f"{path}: has {there} of {pieces.number} strips or tiles; copy it again"
        )
    check_end(path, max(map(sum, zip(pieces.offsets, pieces.counts, strict=True))))
    most = _MOST_FROM_A_BYTE.get(page.compression)
    for place, count in enumerate(pieces.counts):
        needed = pieces.n_bytes(place)
        good = most is None or needed <= most * count
        if page.compression == 1:
            # Some programs fill up the last strip, or an odd number of bytes.
            good = count in (needed, needed + needed % 2, pieces.each)
        if not good:
            raise CorruptedInput(
                f"{path}: the pixels of a strip or tile take {needed} bytes by its directory, but"
                f" it has {count}; copy it again"
            )


def check_decoded(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page whose first or last strip or tile gives more or fewer bytes than it should.

    Raises
    ------
    CorruptedInput
        It does, or it is compressed by another method than its directory says.
    """
    if page.compression == 1 or not _is_simple(page):
        return
    pieces = _Pieces.of(page)
    for place in sorted({0, pieces.of_plane - 1}):
        with path.open("rb") as file:
            file.seek(pieces.offsets[place])
            data = file.read(pieces.counts[place])
        allowed = (pieces.n_bytes(place), pieces.each)
        if page.compression in DECODED:
            n_bytes = _n_decoded(page.compression, data)
            if n_bytes not in allowed:
                found = "cannot be decoded" if n_bytes is None else f"gives {n_bytes}"
                raise CorruptedInput(
                    f"{path}: the pixels of a strip or tile take {allowed[0]} bytes by its"
                    f" directory, but it {found}; copy it again"
                )
        elif any(_n_decoded(method, data) in allowed for method in sorted(DECODED)):
            raise CorruptedInput(
                f"{path}: is not compressed as its directory says (method {page.compression});"
                " copy it again"
            )


def _n_decoded(method: int, data: bytes) -> int | None:
    """Return the number of bytes that come of compressed ones; None where they make no sense."""
    from tifffile import TIFF

    try:
        return len(TIFF.DECOMPRESSORS[method](data))
    except (zlib.error, IndexError, ValueError):
        return None
