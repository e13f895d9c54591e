"""Raw frames as uncompressed DNG, written with nothing but a TIFF directory.

A DNG is a TIFF file with the tags of Adobe's Digital Negative specification 1.4. Every program that
reads raw files takes it, so that frames made here go the way of a camera's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DngHeader", "write_dng"]

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SRATIONAL = 1, 2, 3, 4, 5, 10
_FORMAT: Final = {
    _BYTE: "B",
    _ASCII: "B",
    _SHORT: "H",
    _LONG: "I",
    _RATIONAL: "II",
    _SRATIONAL: "ii",
}
_COLOURS: Final = {"R": 0, "G": 1, "B": 2}
_CFA: Final = 32803  # PhotometricInterpretation of a mosaic
_LINEAR: Final = 34892  # of a sensor without colour filters
_D65: Final = 21  # CalibrationIlluminant
# From CIE XYZ to the camera's colours; any regular matrix lets raw converters open the file.
_COLOUR_MATRIX: Final = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)


@dataclass(frozen=True)
class DngHeader:
    """What a frame's file says about it.

    Attributes
    ----------
    make, model : str
        The camera.
    pattern : str
        Colours of the 2 x 2 filter pattern, row by row, e.g. "RGGB"; empty for a sensor without.
    black_level : sequence of int
        Four levels in the same order (one for a sensor without filters), in DN.
    white_level : int
        The largest value a pixel can have, in DN.
    iso : int, optional
        ISO speed; left out of the file where there is none.
    exposure_s : float, optional
        Time of exposure, in s.
    time : datetime, optional
        When the frame was taken, by the camera's clock.
    temperature_c : float, optional
        Temperature, in degrees Celsius.
    """

    make: str
    model: str
    pattern: str = "RGGB"
    black_level: Sequence[int] = (0, 0, 0, 0)
    white_level: int = 65535
    iso: int | None = None
    exposure_s: float | None = None
    time: datetime | None = None
    temperature_c: float | None = None


def write_dng(path: Path, frame: NDArray[np.uint16], header: DngHeader) -> None:
    """Write one raw frame.

    Parameters
    ----------
    path : Path
        The new file.
    frame : ndarray of uint16, shape (H, W)
        The pixels in DN, of any size.
    header : DngHeader
        What the file says about them.

    Raises
    ------
    ConfigError
        The pattern is not one of four colours red, green and blue, or the black levels do not go
        with it.
    """
    path.write_bytes(_head(frame.shape, header) + frame.astype("<u2", copy=False).tobytes())


def _head(shape: tuple[int, ...], header: DngHeader) -> bytes:
    pattern = header.pattern
    if pattern not in ("", "RGGB", "BGGR", "GRBG", "GBRG"):
        raise ConfigError(f"the colour pattern {pattern!r} is not one like 'RGGB'")
    if len(header.black_level) != (4 if pattern else 1):
        raise ConfigError(f"{len(header.black_level)} black levels do not fit {pattern!r}")
    rows, columns = shape
    exif: list[tuple[int, int, Sequence[Any]]] = []
    if header.exposure_s is not None:
        fraction = Fraction(header.exposure_s).limit_denominator(1_000_000)
        exif.append((33434, _RATIONAL, [fraction.numerator, fraction.denominator]))
    if header.iso is not None:
        exif.append((34855, _SHORT, [header.iso]))
    if header.time is not None:
        exif.append((36867, _ASCII, _text(f"{header.time:%Y:%m:%d %H:%M:%S}")))
    if header.temperature_c is not None:
        exif.append((37888, _SRATIONAL, [round(header.temperature_c * 100), 100]))
    tags: list[tuple[int, int, Sequence[Any]]] = [
        (254, _LONG, [0]),
        (256, _LONG, [columns]),
        (257, _LONG, [rows]),
        (258, _SHORT, [16]),
        (259, _SHORT, [1]),  # not compressed
        (262, _SHORT, [_CFA if pattern else _LINEAR]),
        (271, _ASCII, _text(header.make)),
        (272, _ASCII, _text(header.model)),
        (273, _LONG, [0]),  # where the pixels begin: known when the directory's length is
        (274, _SHORT, [1]),
        (277, _SHORT, [1]),
        (278, _LONG, [rows]),
        (279, _LONG, [2 * rows * columns]),
        (284, _SHORT, [1]),
        (305, _ASCII, _text("calibdask")),
        (34665, _LONG, [0]),  # where the EXIF directory begins
        (50706, _BYTE, [1, 4, 0, 0]),
        (50707, _BYTE, [1, 1, 0, 0]),
        (50708, _ASCII, _text(f"{header.make} {header.model}")),
        (50714, _LONG, [round(level) for level in header.black_level]),
        (50717, _LONG, [header.white_level]),
    ]
    if header.time is not None:
        tags.append((306, _ASCII, _text(f"{header.time:%Y:%m:%d %H:%M:%S}")))
    if pattern:
        matrix = [part for value in _COLOUR_MATRIX for part in (round(value * 10000), 10000)]
        tags += [
            (33421, _SHORT, [2, 2]),
            (33422, _BYTE, [_COLOURS[colour] for colour in pattern]),
            (50710, _BYTE, [0, 1, 2]),
            (50711, _SHORT, [1]),
            (50713, _SHORT, [2, 2]),
            (50721, _SRATIONAL, matrix),
            (50728, _RATIONAL, [1, 1, 1, 1, 1, 1]),
            (50778, _SHORT, [_D65]),
        ]
    start = 8
    exif_start = start + len(_directory(start, tags))
    places = {34665: exif_start, 273: exif_start + len(_directory(exif_start, exif))}
    placed = [(tag, kind, [places[tag]] if tag in places else value) for tag, kind, value in tags]
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + _directory(start, placed)
        + _directory(exif_start, exif)
    )


def _text(text: str) -> bytes:
    return text.encode("ascii", "replace") + b"\0"


def _directory(start: int, tags: Sequence[tuple[int, int, Sequence[Any]]]) -> bytes:
    """Return a TIFF directory that begins at an offset of the file, with its long values."""
    entries, values = b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, kind, value in sorted(tags):
        packed = struct.pack(f"<{len(value)}{_FORMAT[kind][0]}", *value)
        count = len(value) // len(_FORMAT[kind])
        if len(packed) <= 4:
            field = packed.ljust(4, b"\0")
        else:
            field = struct.pack("<I", behind + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack("<HHI", tag, kind, count) + field
    head = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values
    return head + b"\0" * (-len(head) % 4)
