"""Raw files of cameras: through LibRaw, and uncompressed DNG as they lie in the file.

A DNG whose pixels lie in one piece and uncompressed is read without LibRaw, which gives the same
bits and takes a tenth of the time.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io.frame_info import (
    BAYER_PATTERNS,
    COLOURS,
    UNREADABLE,
    FrameInfo,
    exif_facts,
    iso_speed,
    joined_runs,
    n_bits,
    open_tiff,
    page_tags,
    positive_number,
    read_pixels,
    values_of_tag,
)
from calibdask.io.tiff import tag_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import rawpy
    from numpy.typing import NDArray

    from calibdask.io.areas import Area

__all__ = ["inspect_raw", "read_raw"]

_CFA: Final = 32803


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


def inspect_raw(path: Path) -> FrameInfo:
    """Return what a raw file says about its frame; some are decoded for that."""
    if path.suffix.lower() == ".dng" and (strip := _Strips.of(path)) is not None:
        strip.check_size(path)
        if strip.says_all:
            return strip.info(path)
    tags, layout = _raw_tags(path)
    said = exif_facts(tags)
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
            if pattern not in BAYER_PATTERNS:
                message = f"{path}: the colours {pattern} are not those of a Bayer pattern"
                # Other colours are those of another sensor; these in another order are of none.
                raise (CorruptedInput if set(pattern) <= set(COLOURS) else WrongKind)(message)
            black = tuple(float(raw.black_level_per_channel[index]) for index in indices)
        white = int(raw.white_level)
        exposure = positive_number(other.shutter_speed)
        taken = other.timestamp
        said = exif_facts(tags)
        told = {
            "iso": iso_speed(other.iso_speed),
            # LibRaw has it as float32.
            "exposure_s": None if exposure is None else float(f"{exposure:.6g}"),
            "time": "" if taken.year <= 1970 else taken.isoformat(),
        }
        return FrameInfo(
            str(path),
            (sizes.raw_height, sizes.raw_width),
            "uint16",
            bit_depth=n_bits(white),
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


def read_raw(path: Path, memory: NDArray[Any] | None) -> NDArray[Any]:
    """Read the frame of a raw file."""
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
        with open_tiff(path) as tiff:
            if tiff is None:
                return {}, ()
            first = tiff.pages.first
            layout = tuple(
                (page.shape, page.compression, page.bitspersample, tag_value(page, "ActiveArea"))
                for page in (first, *(first.pages or ()))
            )
            return page_tags(first), layout
    except UNREADABLE:
        return {}, ()


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
        except UNREADABLE:  # a broken directory: LibRaw says what it is
            return None

    @classmethod
    def _of(cls, path: Path) -> _Strips | None:
        with open_tiff(path) as tiff:
            if tiff is None or "DNGVersion" not in tiff.pages.first.tags:
                return None
            first = page_tags(tiff.pages.first)
            pages = [tiff.pages.first, *(tiff.pages.first.pages or ())]
            mosaics = [page_tags(page) for page in pages if page.photometric == _CFA]
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
            runs = joined_runs(
                values_of_tag(tags["StripOffsets"]), values_of_tag(tags["StripByteCounts"])
            )
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
        black = values_of_tag(tags.get("BlackLevel", 0))
        return (
            tags.get("CFARepeatPatternDim") == (2, 2)
            and pattern is not None
            and "".join(COLOURS[index] for index in pattern if index < 3) in BAYER_PATTERNS
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
        black = tuple(float(level) for level in values_of_tag(tags.get("BlackLevel", 0)))
        white = int(tags["WhiteLevel"])
        return FrameInfo(
            str(path),
            self.shape,
            "uint16",
            bit_depth=n_bits(white),
            white_level=white,
            pattern="".join(COLOURS[index] for index in tags["CFAPattern"]),
            black_level=black if len(black) == 4 else black * 4,
            **exif_facts(tags),
        )

    def read(self, path: Path, memory: NDArray[Any] | None) -> NDArray[Any]:
        return read_pixels(path, self.byte_order, self.shape, self.runs, memory)
