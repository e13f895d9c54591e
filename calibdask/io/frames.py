"""Raw frames from whatever a camera writes: what a file says about them, and their pixels.

Raw files go through LibRaw (rawpy), FITS through astropy, TIFF through tifffile, PNG through
Pillow; NumPy arrays and Zarr stacks hold bare pixels. `inspect_frame` reads metadata only,
`read_frame` gives one whole raw image. A DNG whose pixels lie in one piece and uncompressed is read
without LibRaw, which gives the same bits and takes a tenth of the time.
"""

from __future__ import annotations

import errno
import gzip
import io
import logging
import re
import struct
import tokenize
import warnings
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput, TransientError, WrongKind
from calibdask.io.areas import areas_of_fits
from calibdask.io.keywords import KEYWORDS, header_text, stated
from calibdask.io.tiff import DECODED, check_decoded, check_end, check_page, tag_value, tiff_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import rawpy
    import tifffile
    from numpy.typing import NDArray
    from PIL import Image

    from calibdask.io.areas import Area

__all__ = [
    "FRAME_PATTERNS",
    "FrameInfo",
    "inspect_frame",
    "libraries_of",
    "read_frame",
    "read_frames",
]

_RAW: Final = frozenset({
    "3fr", "arw", "bay", "cap", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "k25", "kdc",
    "mef", "mos", "mrw", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf",
    "srw", "x3f",
})  # fmt: skip
_FITS: Final = frozenset({"fits", "fit", "fts", "fz"})
_TIFF: Final = frozenset({"tif", "tiff"})
_OTHERS: Final = frozenset({"png", "npy"})
_GZIPPED: Final = frozenset(f"{one}.gz" for one in _FITS - {"fz"})
_PICTURES: Final = frozenset({"jpg", "jpeg"})


def _any_case(suffix: str) -> str:
    letters = "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix)
    return f"**/*.{letters}"


FRAME_PATTERNS: Final = tuple(
    _any_case(suffix)
    for suffix in sorted({*_RAW, *_FITS, *_GZIPPED, *_TIFF, *_OTHERS, *_PICTURES, "zarr"})
)
"""Which files of a directory, and of those below it, may be frames; pictures are left out by name.
"""

_CFA: Final = 32803
_PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_COLOURS: Final = "RGB"
_LARGEST_ISO: Final = 65535
"""What EXIF says of a larger ISO speed, which stands in a tag of its own."""

_OLD_DATE: Final = re.compile(r"(\d\d)/(\d\d)/(\d\d)")
_BAYER: Final = frozenset({"RGGB", "BGGR", "GRBG", "GBRG"})
_NONSENSE: Final = (
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
        index = [_COLOURS.index(colour) for colour in self.pattern] if self.pattern else [0] * 4
        channels = np.array(index, np.int8).reshape(2, 2)
        for row in channels:
            if 2 in row:
                row[row == 1] = 3
        return channels


def inspect_frame(path: Path | str, hdu: int | str | None = None) -> FrameInfo:
    """Read what a file says about its frames, without the pixels.

    Parameters
    ----------
    path : Path or str
        The file.
    hdu : int or str, optional
        Number or name of the HDU to read, of a FITS file that holds several images.

    Raises
    ------
    MissingInput
        There is no such file.
    WrongKind
        It holds no raw frame, e.g. a picture in colour.
    CorruptedInput
        It is cut short, or broken in another way that shows without reading the pixels.
    TransientError
        The file system answered with an error that may pass.
    """
    path = Path(path)
    with _named_errors(path):
        kind = _format(path)
        try:
            return _inspect(path, kind, hdu)
        except WrongKind:
            _check_sound(path, kind)
            raise


def _inspect(path: Path, kind: str, hdu: int | str | None) -> FrameInfo:
    match kind:
        case "raw":
            return _inspect_raw(path)
        case "fits":
            return _inspect_fits(path, hdu)
        case "tiff":
            return _inspect_tiff(path)
        case "png":
            return _inspect_png(path)
        case "npy":
            return _inspect_array(path, _open_npy(path), {})
    array, attributes = _open_zarr(path)
    if missing := array.nchunks - array.nchunks_initialized:
        # Zarr would read zeros.
        raise CorruptedInput(
            f"{path}: {missing} of {array.nchunks} chunks are missing; copy it again"
            " (stacks with empty frames are written with write_empty_chunks=True)"
        )
    return _inspect_array(path, array, attributes)


def _check_sound(path: Path, kind: str) -> None:
    """Check a file that seems to be of another kind: it may be a damaged frame (CorruptedInput)."""
    match kind:
        case "fits":
            with suppress(WrongKind), _fits(path, whole=True):
                pass
        case "tiff":
            with _tiff(path) as tiff:
                for page in () if tiff is None else tiff_pages(path, tiff):
                    check_decoded(path, page)
        case "png":
            _check_png(path)


def read_frame(
    path: Path | str, index: int = 0, hdu: int | None = None, memory: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Read one whole raw image.

    Parameters
    ----------
    path : Path or str
        The file.
    index : int
        Which of its frames.
    hdu : int, optional
        Which HDU of a FITS file (see `FrameInfo.hdu`).
    memory : ndarray, optional
        An earlier frame that may be overwritten, which is faster than new memory.

    Returns
    -------
    ndarray, shape (H, W)
        Of type uint16, float32 or float64, contiguous.

    Raises
    ------
    MissingInput, WrongKind, CorruptedInput, TransientError
        As `inspect_frame`; a file that is damaged among its pixels shows only here.
    """
    (frame,) = read_frames(path, index, index + 1, hdu, memory)
    return frame


def read_frames(
    path: Path | str,
    start: int,
    stop: int,
    hdu: int | None = None,
    memory: NDArray[Any] | None = None,
) -> Iterator[NDArray[Any]]:
    """Read frames `start` to `stop` of a file one after the other (see `read_frame`).

    With `memory`, the next frame may overwrite the one before.

    Raises
    ------
    MissingInput, WrongKind, CorruptedInput, TransientError
        As `read_frame`.
    """
    path = Path(path)
    frames: Iterator[NDArray[Any]]
    with _named_errors(path):
        match _format(path):
            case "raw":
                frames = (_read_raw(path, memory) for _ in range(start, min(stop, 1)))
            case "fits":
                frames = _read_fits(path, start, stop, hdu, memory)
            case "tiff":
                frames = _read_tiff(path, start, stop)
            case "png":
                frames = (_read_png(path) for _ in range(start, min(stop, 1)))
            case "npy":
                frames = _slices(_open_npy(path), start, stop)
            case _:
                frames = _slices(_open_zarr(path)[0], start, stop)
    for _ in range(start, stop):
        with _named_errors(path):
            frame = next(frames, None)
        if frame is None:
            raise CorruptedInput(f"{path}: has no frames {start} to {stop - 1}")
        yield np.ascontiguousarray(frame, _dtype(path, frame.dtype))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such file") from error
    except PermissionError as error:
        raise MissingInput(f"{path}: may not be read: {error.strerror}") from error
    except OSError as error:
        # Libraries for images say that a file is broken in this way too, but then without number. A
        # place that no file can have (EINVAL) was read from one.
        if error.errno in (None, errno.EINVAL):
            raise CorruptedInput(f"{path}: cannot be read: {error}") from error
        raise TransientError(f"{path}: {error.strerror or error}") from error
    except _NONSENSE as error:
        raise CorruptedInput(f"{path}: cannot be understood, it may be damaged: {error}") from error


def _format(path: Path) -> str:
    suffixes = [one.lower().lstrip(".") for one in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == "gz" and len(suffixes) > 1 and suffixes[-2] in _FITS:
        return "fits"
    if suffix == "zarr" or path.is_dir():
        return "zarr"
    for name, known in (("raw", _RAW), ("fits", _FITS), ("tiff", _TIFF)):
        if suffix in known:
            return name
    if suffix in _OTHERS:
        return suffix
    if suffix in _PICTURES:
        raise WrongKind(
            f"{path}: a JPEG is a picture made of a raw frame, its values are no longer linear: set"
            " the camera to save raw files and give those"
        )
    if path.name.startswith("EMVA1288"):
        raise WrongKind(f"{path}: is read when its images are given, or the folder they are in")
    raise WrongKind(
        f"{path}: no frame by its name; read are raw files ({', '.join(sorted(_RAW))}), FITS, TIFF,"
        " PNG, npy, and Zarr stacks"
    )


_LIBRARIES = {"raw": "tifffile", "fits": "astropy.io.fits", "tiff": "tifffile", "png": "PIL.Image"}


def libraries_of(paths: Iterable[Path]) -> list[str]:
    """Name the libraries that read files of these names."""
    formats = set()
    for path in {path.suffix: path for path in paths}.values():
        with suppress(WrongKind):  # told when it is looked at
            formats.add(_format(path))
    return sorted({_LIBRARIES[name] for name in formats & _LIBRARIES.keys()})


def _dtype(path: Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that pixels of a type are read as: no value (up to 2^53) changes."""
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return np.dtype(np.uint16)
    if dtype.kind in "iu":
        return np.dtype(np.float64)
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    raise WrongKind(f"{path}: pixels of type {dtype} are no frame; real numbers are")


def _eight_bits(dtype: Any) -> dict[str, Any]:
    """Tell saturation where the type does: more bits than eight are seldom all used."""
    return {"bit_depth": 8, "white_level": 255} if np.dtype(dtype) == np.uint8 else {}


def _bits(white_level: int) -> int:
    return max(int(white_level).bit_length(), 1)


def _finite(value: Any) -> float | None:
    """Return a number of a header, or None where it says nothing."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _ratio(value: Any) -> Any:
    """Return a TIFF rational as one number."""
    if isinstance(value, tuple):
        return value[0] / value[1] if len(value) == 2 and value[1] else None
    return value


def _exif(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tags of a TIFF directory and its EXIF say about a frame."""

    def of[T](name: str, read: Callable[[Any], T | None]) -> T | None:
        return stated(tags, KEYWORDS[name].exif, read)

    return {
        "make": of("make", header_text) or "",
        "model": of("model", header_text) or "",
        "serial_number": of("serial_number", header_text) or "",
        "iso": of("iso", lambda value: _iso(next(iter(_several(value)), None))),
        "iso_beyond": _LARGEST_ISO in _several(tags.get("ISOSpeedRatings")),
        "exposure_s": of("exposure_s", lambda value: _positive(_ratio(value))),
        "time": of("time", lambda value: _exif_time(value) or None) or "",
        "temperature_c": of("temperature_c", lambda value: _finite(_ratio(value))),
    }


def _exif_time(value: Any) -> str:
    """Return ``YYYY:MM:DD HH:MM:SS`` in ISO 8601; empty where it is no time."""
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()  # noqa: DTZ007  cameras know no zone
    except ValueError:
        return ""


def _iso_time(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value).strip()).isoformat()
    except ValueError:
        return ""


# -- raw files -------------------------------------------------------------------------------------


@contextmanager
def _libraw(path: Path) -> Iterator[rawpy.RawPy]:
    """Decode a raw file; its arrays must be copied before it is closed, which frees them."""
    import rawpy

    with rawpy.RawPy() as raw:
        try:
            raw.open_file(str(path))
            raw.unpack()
            yield raw
        except rawpy.LibRawFileUnsupportedError as error:
            path.stat()  # LibRaw says the same of a file that is not there
            raise CorruptedInput(f"{path}: LibRaw does not know this as a raw file") from error
        except rawpy.LibRawError as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
            raise CorruptedInput(
                f"{path}: LibRaw cannot read it, it may be cut short: {reason}"
            ) from error


_decoded: dict[tuple[Any, ...], FrameInfo] = {}
"""Files that were decoded for their metadata, by all that tells whether others are like them."""


def _inspect_raw(path: Path) -> FrameInfo:
    if path.suffix.lower() == ".dng" and (strip := _Strips.of(path)) is not None:
        strip.check_size(path)
        if strip.says_all:
            return strip.info(path)
    tags, layout = _raw_tags(path)
    said = _exif(tags)
    if not layout or None in (said["iso"], said["exposure_s"]) or not said["time"]:
        return _inspect_libraw(path, tags)
    # LibRaw tells pattern and levels only once it has decoded all pixels. They are the same in all
    # files of a folder in which a camera says the same of ISO speed and of all its images.
    folder = path.absolute().parent
    alike = (folder, folder.stat().st_mtime_ns, said["make"], said["model"], said["iso"], layout)
    if alike not in _decoded:
        if len(_decoded) >= 256:
            _decoded.clear()
        _decoded[alike] = _inspect_libraw(path, tags)
    return replace(_decoded[alike], path=str(path), **said)


def _inspect_libraw(path: Path, tags: Mapping[str, Any]) -> FrameInfo:
    with _libraw(path) as raw:
        sizes, other = raw.sizes, raw.other
        filters = raw.raw_pattern
        if raw.num_colors == 1 or (filters is not None and filters.shape == (1, 1)):
            pattern = ""
            black: tuple[float, ...] = (float(raw.black_level_per_channel[0]),)
        elif filters is None or filters.shape != (2, 2):
            size = "no" if filters is None else f"a {len(filters)} x {len(filters)}"
            raise WrongKind(
                f"{path}: has {size} colour pattern; read are sensors with one of 2 x 2 pixels and"
                " sensors without"
            )
        else:
            # Counted from the corner of the whole image, where raw_pattern is of the visible part.
            indices = [int(raw.raw_color(row, column)) for row in (0, 1) for column in (0, 1)]
            names = raw.color_desc.decode()
            pattern = "".join(names[index] for index in indices)
            if pattern not in _BAYER:
                message = f"{path}: the colours {pattern} are not those of a Bayer pattern"
                # Other colours are those of another sensor; these in another order are of none.
                raise (CorruptedInput if set(pattern) <= set(_COLOURS) else WrongKind)(message)
            black = tuple(float(raw.black_level_per_channel[index]) for index in indices)
        white = int(raw.white_level)
        exposure = _positive(other.shutter_speed)
        taken = other.timestamp
        said = _exif(tags)
        told = {
            "iso": _iso(other.iso_speed),
            # LibRaw has it as float32.
            "exposure_s": None if exposure is None else float(f"{exposure:.6g}"),
            "time": "" if taken.year <= 1970 else taken.isoformat(),
        }
        return FrameInfo(
            str(path),
            (sizes.raw_height, sizes.raw_width),
            "uint16",
            bit_depth=_bits(white),
            white_level=white,
            pattern=pattern,
            black_level=black,
            lit_areas=_visible(sizes),
            **{name: value or told.get(name, value) for name, value in said.items()},
        )


def _visible(sizes: Any) -> tuple[Area, ...]:
    """Return what LibRaw's margins leave."""
    top, left = int(sizes.top_margin), int(sizes.left_margin)
    area = (top, left, top + int(sizes.height), left + int(sizes.width))
    return () if area == (0, 0, sizes.raw_height, sizes.raw_width) else (area,)


def _iso(value: Any) -> int | None:
    number = _positive(value)
    return None if number is None or round(number) in (0, _LARGEST_ISO) else round(number)


def _read_raw(path: Path, memory: NDArray[Any] | None) -> NDArray[Any]:
    if path.suffix.lower() == ".dng" and (strip := _Strips.of(path)) is not None:
        strip.check_size(path)
        return strip.read(path, memory)
    with _libraw(path) as raw:
        if raw.raw_image is None:
            raise WrongKind(f"{path}: holds a picture in colour, not the pixels of a sensor")
        image: NDArray[Any] = raw.raw_image.copy()
        return image


def _raw_tags(path: Path) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return the tags of a raw file's first directory and its EXIF, and the layout of its images.

    Both are empty where it is no TIFF, or an odd one: LibRaw may still know it.
    """
    try:
        with _tiff(path) as tiff:
            if tiff is None:
                return {}, ()
            first = tiff.pages.first
            layout = tuple(
                (page.shape, page.compression, page.bitspersample, tag_value(page, "ActiveArea"))
                for page in (first, *(first.pages or ()))
            )
            return _page_tags(first), layout
    except _NONSENSE:
        return {}, ()


@contextmanager
def _tiff(path: Path) -> Iterator[tifffile.TiffFile | None]:
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


def _page_tags(page: Any) -> dict[str, Any]:
    tags = {tag.name: tag.value for tag in page.tags}
    exif = tags.get("ExifTag")
    return {**tags, **exif} if isinstance(exif, dict) else tags


@dataclass(frozen=True, slots=True)
class _Strips:
    """The pixels of an uncompressed DNG, which lie in the file as they are.

    `of` gives None wherever LibRaw would do more than copy them, or the tags leave a doubt.
    (Strips that do not follow each other are no reason: LibRaw would read behind the first.)
    """

    runs: tuple[tuple[int, int], ...]  # first byte and the one behind the last
    shape: tuple[int, int]
    byte_order: str
    tags: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> _Strips | None:
        try:
            return cls._of(path)
        except _NONSENSE:  # a broken directory: LibRaw says what it is
            return None

    @classmethod
    def _of(cls, path: Path) -> _Strips | None:
        with _tiff(path) as tiff:
            if tiff is None or "DNGVersion" not in tiff.pages.first.tags:
                return None
            first = _page_tags(tiff.pages.first)
            pages = [tiff.pages.first, *(tiff.pages.first.pages or ())]
            mosaics = [_page_tags(page) for page in pages if page.photometric == _CFA]
            if len(mosaics) != 1:
                return None
            (tags,) = mosaics
            as_they_are = (
                tags.get("Compression") == 1
                and tags.get("BitsPerSample") == 16
                and tags.get("SamplesPerPixel", 1) == 1
                and "StripOffsets" in tags
                and "TileOffsets" not in tags
                and "LinearizationTable" not in tags
                and tags.get("SampleFormat", 1) in (1, (1,))
            )
            if not as_they_are:
                return None
            shape = int(tags["ImageLength"]), int(tags["ImageWidth"])
            runs = _runs(_several(tags["StripOffsets"]), _several(tags["StripByteCounts"]))
            if sum(stop - start for start, stop in runs) != 2 * shape[0] * shape[1]:
                return None
            return cls(runs, shape, tiff.byteorder, {**first, **tags})

    def check_size(self, path: Path) -> None:
        wanted = max(stop for _, stop in self.runs)
        if (size := path.stat().st_size) < wanted:
            raise CorruptedInput(
                f"{path}: cut short: {size} bytes of at least {wanted}; copy it again"
            )

    @property
    def says_all(self) -> bool:
        """Whether the tags are so plain that LibRaw is not needed for the metadata either."""
        tags = self.tags
        pattern = tags.get("CFAPattern")
        black = _several(tags.get("BlackLevel", 0))
        return (
            tags.get("CFARepeatPatternDim") == (2, 2)
            and pattern is not None
            and "".join(_COLOURS[index] for index in pattern if index < 3) in _BAYER
            and tuple(tags.get("CFAPlaneColor", b"\0\1\2")) == (0, 1, 2)
            and tags.get("CFALayout", 1) == 1
            and (
                (len(black) == 4 and tags.get("BlackLevelRepeatDim") == (2, 2))
                or (len(black) == 1 and tags.get("BlackLevelRepeatDim", (1, 1)) == (1, 1))
            )
            and not {"BlackLevelDeltaH", "BlackLevelDeltaV", "MaskedAreas"} & tags.keys()
            and tuple(tags.get("ActiveArea", (0, 0, *self.shape))) == (0, 0, *self.shape)
            and isinstance(tags.get("WhiteLevel"), int)
        )

    def info(self, path: Path) -> FrameInfo:
        tags = self.tags
        black = tuple(float(level) for level in _several(tags.get("BlackLevel", 0)))
        white = int(tags["WhiteLevel"])
        return FrameInfo(
            str(path),
            self.shape,
            "uint16",
            bit_depth=_bits(white),
            white_level=white,
            pattern="".join(_COLOURS[index] for index in tags["CFAPattern"]),
            black_level=black if len(black) == 4 else black * 4,
            **_exif(tags),
        )

    def read(self, path: Path, memory: NDArray[Any] | None) -> NDArray[Any]:
        return _from_file(path, self.byte_order, self.shape, self.runs, memory)


def _from_file(
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


def _runs(offsets: Sequence[int], counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Join the strips of an image that lie one behind the other."""
    runs: list[tuple[int, int]] = []
    for offset, count in zip(offsets, counts, strict=True):
        if runs and runs[-1][1] == offset:
            runs[-1] = runs[-1][0], offset + count
        else:
            runs.append((offset, offset + count))
    return tuple(runs)


def _several(value: Any) -> tuple[Any, ...]:
    """Return the numbers of a tag that may hold one or several, rationals as numbers."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list, bytes)) else (value,)


# -- FITS ------------------------------------------------------------------------------------------


@contextmanager
def _fits(
    path: Path, wanted: int | str | None = None, *, whole: bool = False
) -> Iterator[tuple[Any, int | None]]:
    """Return the HDU with the frame, and its number where there are several and one is wanted.

    Of a `whole` file all checksums it has are compared.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings(record=True) as told, path.open("rb") as opened:
        # Said again by us, in one sentence that names the file.
        warnings.simplefilter("ignore", AstropyWarning)
        file: Any = opened
        if whole:
            warnings.filterwarnings("always", ".*(Checksum|Datasum) verification failed")
            if path.suffix.lower() == ".gz":
                # Its checksum stands behind everything, where astropy does not look.
                file = io.BytesIO(gzip.decompress(opened.read()))
        with fits.open(file, memmap=False, checksum=whole) as hdus:
            images = {}
            for number, hdu in enumerate(hdus):
                failed = [str(one.message) for one in told if "verification" in str(one.message)]
                if failed:
                    raise CorruptedInput(f"{path}: {failed[0].strip()}; copy it again")
                if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2:
                    _check_fits_size(path, hdu)  # what comes next is behind it
                    images[number] = hdu
            if not images:
                raise WrongKind(f"{path}: holds no image")
            if len(images) == 1:
                yield next(iter(images.values())), None
                return
            chosen = [
                number
                for number, hdu in images.items()
                if wanted == number or str(wanted).upper() == hdu.name
            ]
            if len(chosen) == 1:
                yield images[chosen[0]], chosen[0]
                return
            there = ", ".join(
                f"{number}{f' {hdu.name}' if hdu.name else ''} ({' x '.join(map(str, hdu.shape))})"
                for number, hdu in images.items()
            )
            problem = "none is said to be" if wanted is None else f"{wanted!r} is not one which is"
            raise WrongKind(
                f"{path}: holds {len(images)} images, and {problem} the frame: name one of them in"
                f" Frames.hdu, by number or name: {there}"
            )


def _inspect_fits(path: Path, wanted: int | str | None) -> FrameInfo:
    with _fits(path, wanted) as (hdu, number):
        header = _Header(hdu.header)
        axes = hdu.shape
        if len(axes) > 3:
            raise WrongKind(f"{path}: an image of {len(axes)} axes is no frame and no stack")
        if len(axes) == 3 and (header.text("CTYPE3") or "").upper() in ("RGB", "COLOR", "COLOUR"):
            raise WrongKind(f"{path}: is a picture in colour (CTYPE3), not the pixels of a sensor")
        _refuse_last_axis(path, axes)
        # Header cards and the type that comes of them are astropy's business: one pixel tells.
        pixel = hdu.section[(slice(0, 1),) * len(axes)]
        white = header.of("white_level", _positive)
        white = _eight_bits(pixel.dtype).get("white_level") if white is None else int(white)
        pattern = _fits_pattern(path, header, int(axes[-2]))
        black = tuple(
            value
            for index in range(4 if pattern else 1)
            if (value := _finite(header.get(f"BLACKLV{index}"))) is not None
        )
        return FrameInfo(
            str(path),
            (int(axes[-2]), int(axes[-1])),
            _dtype(path, pixel.dtype).name,
            n_frames=int(axes[0]) if len(axes) == 3 else 1,
            bit_depth=None if white is None else _bits(white),
            white_level=white,
            make=header.of("make", header_text) or "",
            model=header.of("model", header_text) or "",
            pattern=pattern,
            black_level=black if len(black) == (4 if pattern else 1) else (),
            iso=header.of("iso", _iso),
            exposure_s=header.of("exposure_s", _exposure),
            time=_fits_time(header),
            temperature_c=header.of("temperature_c", _finite),
            kind=header.of("kind", header_text) or "",
            level=header.of("level", header_text) or "",
            photons=header.of("photons", _finite),
            serial_number=header.of("serial_number", header_text) or "",
            gain_setting=header.of("gain_setting", _finite),
            offset_setting=header.of("offset_setting", _finite),
            readout_mode=header.of("readout_mode", header_text) or "",
            filter=header.of("filter", header_text) or "",
            binning=_pair(header, "XBINNING", "YBINNING", "CCDSUM"),
            window=_pair(header, "XORGSUBF", "YORGSUBF"),
            unit=_unit(header.of("unit", header_text)),
            hdu=number,
            may_be_colours=len(axes) == 3 and axes[0] == 3,
            lit_areas=_lit_areas(path, hdu.header, (int(axes[-2]), int(axes[-1]))),
        )


class _Header:
    """The cards of a FITS header, asked for by `KEYWORDS`."""

    _known: Final = frozenset(name for one in KEYWORDS.values() for name in one.fits)

    def __init__(self, cards: Any) -> None:
        self._cards = cards

    def get(self, name: str) -> Any:
        """Return the value of a card that is declared to be read; None where it is not there."""
        if name not in self._known:
            raise AssertionError(f"{name} is read, but KEYWORDS does not say so")
        return self._cards.get(name)

    def text(self, name: str) -> str | None:
        """Return the text of a card."""
        return header_text(self.get(name))

    def of[T](self, name: str, read: Callable[[Any], T | None]) -> T | None:
        """Return the first usable value among the keywords of one thing."""
        return stated(self._cards, KEYWORDS[name].fits, read)


def _refuse_last_axis(path: Path, axes: Sequence[int]) -> None:
    """Refuse arrays of shape (H, W, 3): no sensor has three columns."""
    if len(axes) == 3 and axes[-1] in (3, 4) and min(axes[:2]) > 4:
        raise WrongKind(
            f"{path}: an array of shape {tuple(axes)} is a picture in colour, not the pixels of a"
            " sensor"
        )


def _fits_pattern(path: Path, header: _Header, n_rows: int) -> str:
    """Return the colours of the first 2 x 2 pixels as BAYERPAT, its offsets and ROWORDER tell."""
    order = (header.text("ROWORDER") or "").upper()
    if order not in ("", "TOP-DOWN", "BOTTOM-UP"):
        raise WrongKind(f"{path}: ROWORDER {order!r} is neither 'TOP-DOWN' nor 'BOTTOM-UP'")
    pattern = (header.text("BAYERPAT") or "").upper()
    if not pattern:
        return ""
    if pattern not in _BAYER:
        raise WrongKind(f"{path}: BAYERPAT {pattern!r} is not one like 'RGGB'")
    shift = []
    for name in ("YBAYROFF", "XBAYROFF"):
        offset = _finite(header.get(name)) if header.text(name) is not None else 0.0
        if offset is None or offset != round(offset):
            raise CorruptedInput(
                f"{path}: {name} is {header.get(name)!r}, expected an integer number of pixels by"
                " which the colour pattern is shifted: correct the card"
            )
        shift.append(round(offset) % 2)
    if order == "BOTTOM-UP":
        # Patterns are told from the top of the picture, which is the last row of the file.
        shift[0] = (n_rows - 1 - shift[0]) % 2
    return "".join(
        pattern[2 * ((row + shift[0]) % 2) + (column + shift[1]) % 2]
        for row in (0, 1)
        for column in (0, 1)
    )


def _fits_time(header: _Header) -> str:
    """Return DATE-OBS in ISO 8601, with the time of day from another card where it has none."""
    date = header.text("DATE-OBS") or ""
    if found := _OLD_DATE.fullmatch(date):  # dd/mm/yy, before 1999
        date = f"19{found[3]}-{found[2]}-{found[1]}"
    if len(date) == len("2025-03-04"):
        for name in ("TIME-OBS", "UT"):
            if clock := header.text(name):
                hours, _, rest = clock.partition(":")
                if time := _iso_time(f"{date}T{hours.zfill(2)}:{rest}"):
                    return time
    return _iso_time(date)


def _pair(header: _Header, first: str, second: str, both: str | None = None) -> tuple[int, ...]:
    """Return two integers of two cards, or of one; nothing unless both are there."""
    values: Sequence[Any] = (header.get(first), header.get(second))
    if None in values and both is not None:
        values = (header.text(both) or "").split()
    numbers = [round(one) for value in values if (one := _finite(value)) is not None]
    return tuple(numbers) if len(numbers) == 2 else ()


def _unit(text: str | None) -> str:
    """Return the unit of the values; the names of converter counts are one."""
    if text is None:
        return ""
    known = text.lower().rstrip("s") in ("adu", "dn", "count", "ct")
    return "DN" if known else text


def _lit_areas(path: Path, header: Any, shape: tuple[int, int]) -> tuple[Area, ...]:
    try:
        return areas_of_fits(header, shape)
    except CorruptedInput as error:
        raise CorruptedInput(f"{path}: {error}; correct the card") from error


def _exposure(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number >= 0 else None  # a bias frame has 0 s


def _is_unsigned(header: Any) -> bool:
    """Tell whether an image is of 16 bits without sign, which FITS has as signed ones plus 2^15."""
    return (header["BITPIX"], header.get("BZERO", 0), header.get("BSCALE", 1)) == (16, 32768, 1)


def _is_plain(path: Path, hdu: Any) -> bool:
    """Tell whether neither the file nor the image in it is compressed."""
    from astropy.io import fits

    with path.open("rb") as file:
        return not isinstance(hdu, fits.CompImageHDU) and file.read(6) == b"SIMPLE"


def _check_fits_size(path: Path, hdu: Any) -> None:
    place = hdu.fileinfo()
    if path.suffix.lower() == ".gz":
        return
    wanted = place["datLoc"] + place["datSpan"]
    if (size := path.stat().st_size) < wanted:
        raise CorruptedInput(f"{path}: cut short: {size} bytes of {wanted}; copy it again")


def _read_fits(
    path: Path, start: int, stop: int, wanted: int | None, memory: NDArray[Any] | None
) -> Iterator[NDArray[Any]]:
    with _fits(path, wanted, whole=True) as (hdu, _):
        axes = hdu.shape
        plain = _is_unsigned(hdu.header) and _is_plain(path, hdu)
        for index in range(start, stop):
            if index >= (axes[0] if len(axes) == 3 else 1):
                return
            if plain:
                # As they lie in the file: with the sign bit the other way round.
                n_pixels = axes[-2] * axes[-1]
                place = hdu.fileinfo()["datLoc"] + 2 * n_pixels * index
                run = [(place, place + 2 * n_pixels)]
                signed = _from_file(path, ">", axes[-2:], run, memory)
                signed ^= 0x8000
                yield signed
            else:
                frame = hdu.data if len(axes) == 2 else hdu.section[index]
                # The memory is the file's, which is closed when the caller goes on.
                yield np.array(frame, frame.dtype.newbyteorder("="))


# -- images ----------------------------------------------------------------------------------------


def _inspect_tiff(path: Path) -> FrameInfo:
    with _tiff(path) as tiff:
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
            _dtype(path, np.dtype(page.dtype)).name,
            n_frames=_n_tiff_frames(path, tiff),
            **_eight_bits(page.dtype),
            **_exif(_page_tags(page)),
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
        if page.compression != 1 or len(_runs(page.dataoffsets, page.databytecounts)) != 1:
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


def _read_tiff(path: Path, start: int, stop: int) -> Iterator[NDArray[Any]]:
    with _tiff(path) as tiff:
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


def _inspect_png(path: Path) -> FrameInfo:
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
            **_eight_bits("u1" if image.mode == "L" else "u2"),
            **_exif({str(name): value for name, value in tags.items()}),
        )


def _check_png(path: Path) -> None:
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


def _read_png(path: Path) -> NDArray[Any]:
    _check_png(path)
    with _png(path) as image:
        return np.asarray(image).astype(np.uint16)


# -- arrays ----------------------------------------------------------------------------------------


def _open_npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NONSENSE as error:
        raise CorruptedInput(
            f"{path}: no array of numbers, or cut short (frames are written with numpy.save):"
            f" {error}"
        ) from error
    return array


def _open_zarr(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the stack of a Zarr store: the store itself, its array "frames", or its only array."""
    import zarr
    from zarr.errors import BaseZarrError

    try:
        store = zarr.open(path, mode="r")  # as text it would be an address, which ends at a #
    except (BaseZarrError, FileNotFoundError, ValueError, KeyError) as error:
        if not path.exists():
            raise MissingInput(f"{path}: no such file") from error
        raise CorruptedInput(f"{path}: cannot be opened as a Zarr store: {error}") from error
    if isinstance(store, zarr.Array):
        return store, dict(store.attrs)
    arrays = dict(store.arrays())
    if "frames" in arrays:
        array = arrays["frames"]
    elif len(arrays) == 1:
        (array,) = arrays.values()
    else:
        raise WrongKind(
            f"{path}: none of its arrays ({', '.join(sorted(arrays)) or 'there are none'}) is"
            " named 'frames'"
        )
    return array, {**store.attrs, **array.attrs}


def _inspect_array(path: Path, array: Any, attributes: Mapping[str, Any]) -> FrameInfo:
    known = frozenset(name for one in KEYWORDS.values() for name in one.zarr)
    attributes = {name: value for name, value in attributes.items() if name in known}
    _refuse_last_axis(path, array.shape)
    if array.ndim not in (2, 3):
        raise WrongKind(f"{path}: an array of {array.ndim} axes is no frame and no stack of frames")
    if 0 in array.shape:
        raise WrongKind(f"{path}: an array of shape {array.shape} holds no pixel")
    info = FrameInfo(
        str(path),
        (int(array.shape[-2]), int(array.shape[-1])),
        _dtype(path, array.dtype).name,
        n_frames=int(array.shape[0]) if array.ndim == 3 else 1,
    )
    black = attributes.get("black_level")
    white = _positive(attributes.get("white_level"))
    bits = _positive(attributes.get("bit_depth"))
    pattern = str(attributes.get("pattern", ""))
    if pattern and pattern not in _BAYER:
        raise CorruptedInput(f"{path}: the attribute pattern {pattern!r} is not one like 'RGGB'")
    if white is None and bits is not None:
        white = 2**bits - 1
    if white is None:
        white = _eight_bits(array.dtype).get("white_level")
    levels = [] if black is None else [_finite(level) for level in _several(black)]
    if None in levels or len(levels) not in (0, 4 if pattern else 1):
        raise CorruptedInput(
            f"{path}: the attribute black_level {black!r} is not"
            f" {'four numbers' if pattern else 'one number'}"
        )
    return replace(
        info,
        white_level=None if white is None else int(white),
        bit_depth=None if white is None else _bits(int(white)),
        make=str(attributes.get("make", "")),
        model=str(attributes.get("model", "")),
        pattern=pattern,
        black_level=tuple(level for level in levels if level is not None),
        iso=_iso(attributes.get("iso")),
        exposure_s=_exposure(attributes.get("exposure_s")),
        time=_iso_time(attributes.get("time", "")),
        temperature_c=_finite(attributes.get("temperature_c")),
        kind=str(attributes.get("kind", "")),
        level=str(attributes.get("level", "")),
        photons=_finite(attributes.get("photons")),
        serial_number=header_text(attributes.get("serial_number")) or "",
        gain_setting=_finite(attributes.get("gain_setting")),
        offset_setting=_finite(attributes.get("offset_setting")),
        readout_mode=header_text(attributes.get("readout_mode")) or "",
        filter=header_text(attributes.get("filter")) or "",
        binning=tuple(round(float(one)) for one in _several(attributes.get("binning"))),
        window=tuple(round(float(one)) for one in _several(attributes.get("window"))),
        unit=_unit(header_text(attributes.get("unit"))),
    )


def _slices(array: Any, start: int, stop: int) -> Iterator[NDArray[Any]]:
    if array.ndim == 2:
        if start == 0:
            yield np.asarray(array[:])
        return
    chunk = max(getattr(array, "chunks", (1,))[0], 1)
    index, stop = start, min(stop, array.shape[0])
    while index < stop:
        end = min((index // chunk + 1) * chunk, stop)  # each chunk is decoded once
        yield from np.asarray(array[index:end])
        index = end
