"""Frames in TIFF and PNG files."""

from __future__ import annotations

import warnings
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io.frame_info import (
    FrameInfo,
    dtype_read,
    eight_bits,
    exif_facts,
    joined_runs,
    open_tiff,
    page_tags,
)
from calibdask.io.tiff import DECODED, check_decoded, check_end, check_page, tiff_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray
    from PIL import Image


__all__ = ["check_png", "inspect_png", "inspect_tiff", "read_png", "read_tiff"]

_PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def inspect_tiff(path: Path) -> FrameInfo:
    """Return what a TIFF file says about its frames; its directories are checked first."""
    with open_tiff(path) as tiff:
        if tiff is None:
            raise CorruptedInput(f"{path}: is no TIFF file")
        shapes = set()
        for page in tiff_pages(path, tiff):
            check_page(path, page)
            shapes.add(page.shape)
        page = tiff.pages.first
        if "DNGVersion" in page.tags:
            raise WrongKind(f"{path}: is a DNG by its tags; give it the ending .dng")
        if len(shapes) != 1 or page.ndim != 2:
            raise WrongKind(f"{path}: pages of shape {sorted(shapes)} are no raw frames")
        if page.compression not in DECODED:
            raise WrongKind(
                f"{path}: is compressed by {_compression(path, page.compression)}, which is not"
                " read here: save it uncompressed or with Deflate (ZIP), e.g. 'tiffcp -c none IN"
                " OUT'"
            )
        return FrameInfo(
            str(path),
            (int(page.shape[0]), int(page.shape[1])),
            dtype_read(path, np.dtype(page.dtype)).name,
            n_frames=_n_tiff_frames(path, tiff),
            **eight_bits(page.dtype),
            **exif_facts(page_tags(page)),
        )


def _compression(path: Path, code: int) -> str:
    from tifffile import COMPRESSION

    if code not in set(COMPRESSION):
        raise CorruptedInput(f"{path}: says it is compressed by {code}, which is no method")
    return COMPRESSION(code).name


def _n_tiff_frames(path: Path, tiff: tifffile.TiffFile) -> int:
    """Return the number of frames of a TIFF file.

    ImageJ writes one directory for a stack of more than 4 GB: its description counts the images,
    which lie one behind the other.
    """
    n_pages = sum(1 for _ in tiff_pages(path, tiff))
    about = tiff.imagej_metadata or {}
    channels, images = int(about.get("channels", 1)), int(about.get("images", 1))
    if channels > 1:
        raise WrongKind(
            f"{path}: an ImageJ stack of {channels} channels: split the channels, and give those of"
            " one"
        )
    page = tiff.pages.first
    if images > 1 and n_pages == 1:
        if page.compression != 1 or len(joined_runs(page.dataoffsets, page.databytecounts)) != 1:
            raise WrongKind(
                f"{path}: its description counts {images} images in one compressed page: save the"
                " stack uncompressed"
            )
        check_end(path, page.dataoffsets[0] + images * page.nbytes)
        return images
    if images > 1 and images != n_pages:
        raise CorruptedInput(
            f"{path}: has {n_pages} pages, but its description counts {images} images"
        )
    return n_pages


def read_tiff(path: Path, start: int, stop: int) -> Iterator[NDArray[Any]]:
    """Read frames `start` to `stop` of a TIFF file, each checked before."""
    with open_tiff(path) as tiff:
        if tiff is None:
            raise CorruptedInput(f"{path}: is no TIFF file")
        n_frames = _n_tiff_frames(path, tiff)
        first = tiff.pages.first
        check_page(path, first)
        for index in range(start, min(stop, n_frames)):
            if n_frames > len(tiff.pages):
                place = first.dataoffsets[0] + index * first.nbytes
                kind = np.dtype(first.dtype).newbyteorder(tiff.byteorder)
                yield np.fromfile(path, kind, first.size, offset=place).reshape(first.shape)
                continue
            page = cast("tifffile.TiffPage", tiff.pages[index])
            if page.ndim != 2:
                raise WrongKind(f"{path}: a page of shape {page.shape} is no raw frame")
            check_page(path, page)
            check_decoded(path, page)
            yield page.asarray()


@contextmanager
def _png(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - len(_PNG_END), 0))
        if file.read() != _PNG_END:
            raise CorruptedInput(f"{path}: cut short: a PNG ends with IEND; copy it again")
    with warnings.catch_warnings():
        # Sensors are larger than what Pillow takes for an attack.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("L", "I;16", "I;16B", "I"):
                    raise WrongKind(f"{path}: a picture of mode {image.mode} is no raw frame")
                yield image
        except Image.DecompressionBombError as error:
            raise CorruptedInput(f"{path}: {error}; write frames of this size as TIFF") from error


def inspect_png(path: Path) -> FrameInfo:
    """Return what a PNG file says about its frame."""
    from PIL.ExifTags import TAGS
    from PIL.Image import Exif

    exif = Exif()
    with _png(path) as image:
        # Asked for all of it, Pillow would decode the pixels to look behind them.
        exif.load(image.info.get("exif", b""))
        tags = {
            TAGS.get(code): value for code, value in (*exif.items(), *exif.get_ifd(34665).items())
        }
        return FrameInfo(
            str(path),
            (image.height, image.width),
            "uint16",
            **eight_bits("u1" if image.mode == "L" else "u2"),
            **exif_facts({str(name): value for name, value in tags.items()}),
        )


def check_png(path: Path) -> None:
    """Check what Pillow does not: the checksum of each chunk (PNG specification, 5.3)."""
    content = memoryview(path.read_bytes())
    start = 8  # behind the signature
    while start < len(content):
        length = int.from_bytes(content[start : start + 4])
        stop = start + 8 + length
        if zlib.crc32(content[start + 4 : stop]) != int.from_bytes(content[stop : stop + 4]):
            name = bytes(content[start + 4 : start + 8]).decode("ascii", "replace")
            raise CorruptedInput(
                f"{path}: the chunk {name!r} at byte {start} fails its checksum; copy it again"
            )
        start = stop + 4


def read_png(path: Path) -> NDArray[Any]:
    """Read the frame of a PNG file."""
    check_png(path)
    with _png(path) as image:
        return np.asarray(image).astype(np.uint16)
