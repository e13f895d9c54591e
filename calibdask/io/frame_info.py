"""What is known about the frames of a file, and how headers of all formats are read."""

from __future__ import annotations

import logging
import struct
import tokenize
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io.keywords import KEYWORDS, header_text, stated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

    from calibdask.io.areas import Area

__all__ = [
    "BAYER_PATTERNS",
    "COLOURS",
    "UNREADABLE",
    "FrameInfo",
    "dtype_read",
    "eight_bits",
    "exif_facts",
    "exposure_of",
    "finite",
    "iso_speed",
    "joined_runs",
    "n_bits",
    "open_tiff",
    "page_tags",
    "positive_number",
    "read_pixels",
    "refuse_last_axis",
    "time_of_text",
    "unit_of_values",
    "values_of_tag",
]

COLOURS: Final = "RGB"


_LARGEST_ISO: Final = 65535
"""What EXIF says of a larger ISO speed, which is in a tag of its own."""


BAYER_PATTERNS: Final = frozenset({"RGGB", "BGGR", "GRBG", "GBRG"})


UNREADABLE: Final = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, tokenize.TokenError,
    zlib.error,
)  # fmt: skip
"""What libraries raise when the bytes of a file make no sense to them."""


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """What is known about the frames of one file without their pixels.

    Attributes
    ----------
    path : str
        The file.
    n_frames : int
        How many frames it holds: stacks and cubes hold several of one kind.
    shape : (int, int)
        Rows and columns of the whole raw image, masked borders included.
    dtype : str
        Type that `read_frame` gives: "uint16", "float32" or "float64".
    bit_depth : int or None
        Bits of the analogue-to-digital converter.
    white_level : int or None
        Value in DN from which a pixel counts as saturated.
    make, model : str
        The camera; empty where unknown.
    pattern : str
        Colours of the 2 x 2 filter pattern from the first pixel on, row by row, e.g. "RGGB"; empty
        for a sensor without filters.
    black_level : tuple of float
        In DN and in the order of `pattern`; one for a sensor without filters, empty where unknown.
    iso : int or None
        ISO speed.
    iso_beyond : bool
        EXIF says that the ISO speed is larger than its field holds; another tag may tell it.
    exposure_s : float or None
        Time of exposure, in s.
    time : str
        When it was taken, as the camera's clock says (ISO 8601); empty where unknown.
    temperature_c : float or None
        Temperature of the sensor, or what the file has for it, in degrees Celsius.
    kind : str
        What it was taken for (see `calibdask.sensor.metadata.KINDS`); empty where unknown.
    level : str
        Name of the illumination; empty where it has none.
    photons : float or None
        Mean number of photons a pixel received.
    serial_number : str
        Of the camera; empty where unknown.
    gain_setting, offset_setting : float or None
        What amplifier and offset were set to, as the driver counts them.
    readout_mode : str
        Mode of the readout; empty where unknown.
    filter : str
        Filter in front of the sensor; empty where unknown.
    binning : tuple of int
        Columns and rows that were read as one pixel; empty where unknown.
    window : tuple of int
        First column and row that was read; empty where unknown.
    unit : str
        Unit of the values, "DN" for counts of the converter; empty where unknown.
    hdu : int or None
        Which HDU of a FITS file it is, where there are several images and one was asked for.
    may_be_colours : bool
        A FITS cube of three planes, of which nothing tells whether they are frames or colours.
    lit_areas : tuple of Area
        Where light falls, in rows and columns of the whole raw image: not on masked borders and
        overscan. Empty for all of it.
    """

    path: str
    shape: tuple[int, int]
    dtype: str
    n_frames: int = 1
    bit_depth: int | None = None
    white_level: int | None = None
    make: str = ""
    model: str = ""
    pattern: str = ""
    black_level: tuple[float, ...] = ()
    iso: int | None = None
    exposure_s: float | None = None
    time: str = ""
    temperature_c: float | None = None
    kind: str = ""
    level: str = ""
    photons: float | None = None
    serial_number: str = ""
    gain_setting: float | None = None
    offset_setting: float | None = None
    readout_mode: str = ""
    filter: str = ""
    binning: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    unit: str = ""
    hdu: int | None = None
    may_be_colours: bool = False
    iso_beyond: bool = False
    lit_areas: tuple[Area, ...] = ()

    @property
    def camera(self) -> str:
        """Make and model, without saying the make twice; empty where unknown."""
        if self.model.lower().startswith(self.make.lower()):
            return self.model
        return f"{self.make} {self.model}".strip()

    @property
    def channel_index(self) -> NDArray[np.int8]:
        """LibRaw's colour index of the first 2 x 2 pixels: 0 R, 1 G beside R, 2 B, 3 G beside B."""
        index = [COLOURS.index(colour) for colour in self.pattern] if self.pattern else [0] * 4
        channels = np.array(index, np.int8).reshape(2, 2)
        for row in channels:
            if 2 in row:
                row[row == 1] = 3
        return channels


def dtype_read(path: Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that pixels of a type are read as: no value (up to 2^53) changes."""
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return np.dtype(np.uint16)
    if dtype.kind in "iu":
        return np.dtype(np.float64)
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    raise WrongKind(f"{path}: pixels of type {dtype} are no frame; real numbers are")


def eight_bits(dtype: Any) -> dict[str, Any]:
    """Return saturation where the type does: more bits than eight are seldom all used."""
    return {"bit_depth": 8, "white_level": 255} if np.dtype(dtype) == np.uint8 else {}


def n_bits(white_level: int) -> int:
    """Return the bits that a value takes, one or more."""
    return max(int(white_level).bit_length(), 1)


def finite(value: Any) -> float | None:
    """Return a number of a header, or None where it says nothing."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if isfinite(number) else None


def positive_number(value: Any) -> float | None:
    """Return a positive number of a header, or None where it says nothing."""
    number = finite(value)
    return number if number is not None and number > 0 else None


def _ratio(value: Any) -> Any:
    """Return a TIFF rational as one number."""
    if isinstance(value, tuple):
        return value[0] / value[1] if len(value) == 2 and value[1] else None
    return value


def exif_facts(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tags of a TIFF directory and its EXIF say about a frame."""

    def of[T](name: str, read: Callable[[Any], T | None]) -> T | None:
        return stated(tags, KEYWORDS[name].exif, read)

    return {
        "make": of("make", header_text) or "",
        "model": of("model", header_text) or "",
        "serial_number": of("serial_number", header_text) or "",
        "iso": of("iso", lambda value: iso_speed(next(iter(values_of_tag(value)), None))),
        "iso_beyond": _LARGEST_ISO in values_of_tag(tags.get("ISOSpeedRatings")),
        "exposure_s": of("exposure_s", lambda value: positive_number(_ratio(value))),
        "time": of("time", lambda value: _exif_time(value) or None) or "",
        "temperature_c": of("temperature_c", lambda value: finite(_ratio(value))),
    }


def _exif_time(value: Any) -> str:
    """Return ``YYYY:MM:DD HH:MM:SS`` in ISO 8601; empty where it is no time."""
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()  # noqa: DTZ007  cameras know no zone
    except ValueError:
        return ""


def time_of_text(value: Any) -> str:
    """Return a time of ISO 8601 as Python writes it; empty where it is none."""
    try:
        return datetime.fromisoformat(str(value).strip()).isoformat()
    except ValueError:
        return ""


def iso_speed(value: Any) -> int | None:
    """Return an ISO speed, or None where EXIF's field was too small for it."""
    number = positive_number(value)
    return None if number is None or round(number) in (0, _LARGEST_ISO) else round(number)


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile | None]:
    """Open a TIFF file; None where it is none."""
    import tifffile

    # It writes to the log what it finds odd; what matters to us becomes an error of ours.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with path.open("rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            yield None
            return
        file.seek(0)
        with tifffile.TiffFile(file, name=path.name) as tiff:
            yield tiff


def page_tags(page: Any) -> dict[str, Any]:
    """Return the tags of a TIFF directory by name, those of its EXIF among them."""
    tags = {tag.name: tag.value for tag in page.tags}
    exif = tags.get("ExifTag")
    return {**tags, **exif} if isinstance(exif, dict) else tags


def read_pixels(
    path: Path,
    byte_order: str,
    shape: tuple[int, int],
    runs: Iterable[tuple[int, int]],
    memory: NDArray[Any] | None,
) -> NDArray[Any]:
    """Read pixels of 16 bits that lie in some runs of bytes."""
    if memory is None or memory.shape != shape or memory.dtype != np.uint16:
        memory = np.empty(shape, np.uint16)
    done, part = 0, memory.reshape(-1).view(np.uint8)
    with path.open("rb", buffering=0) as file:
        for start, stop in runs:
            file.seek(start)
            end = done + stop - start
            while done < end:
                if not (n_bytes := file.readinto(part[done:end])):
                    raise CorruptedInput(f"{path}: cut short; copy it again")
                done += n_bytes
    if np.dtype(f"{byte_order}u2") != np.uint16:
        memory.byteswap(inplace=True)
    return memory


def joined_runs(offsets: Sequence[int], counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Join the strips of an image that lie one behind the other."""
    runs: list[tuple[int, int]] = []
    for offset, count in zip(offsets, counts, strict=True):
        if runs and runs[-1][1] == offset:
            runs[-1] = runs[-1][0], offset + count
        else:
            runs.append((offset, offset + count))
    return tuple(runs)


def values_of_tag(value: Any) -> tuple[Any, ...]:
    """Return the numbers of a tag that may hold one or several, rationals as numbers."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list, bytes)) else (value,)


def refuse_last_axis(path: Path, axes: Sequence[int]) -> None:
    """Refuse arrays of shape (H, W, 3): no sensor has three columns."""
    if len(axes) == 3 and axes[-1] in (3, 4) and min(axes[:2]) > 4:
        raise WrongKind(
            f"{path}: an array of shape {tuple(axes)} is a picture in colour, not the pixels of a"
            " sensor"
        )


def unit_of_values(text: str | None) -> str:
    """Return the unit of the values; the names of converter counts are one."""
    if text is None:
        return ""
    known = text.lower().rstrip("s") in ("adu", "dn", "count", "ct")
    return "DN" if known else text


def exposure_of(value: Any) -> float | None:
    """Return an exposure in s; bias frames have 0 s."""
    number = finite(value)
    return number if number is not None and number >= 0 else None  # a bias frame has 0 s
