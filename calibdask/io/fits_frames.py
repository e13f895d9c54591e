"""Frames in FITS files: headers, checksums, and pixels as they lie in the file where they can."""

from __future__ import annotations

import gzip
import io
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io.areas import areas_of_fits
from calibdask.io.frame_info import (
    BAYER_PATTERNS,
    FrameInfo,
    dtype_read,
    eight_bits,
    exposure_of,
    finite,
    iso_speed,
    n_bits,
    positive_number,
    read_pixels,
    refuse_last_axis,
    time_of_text,
    unit_of_values,
)
from calibdask.io.keywords import KEYWORDS, header_text, stated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calibdask.io.areas import Area

__all__ = ["inspect_fits", "open_fits", "read_fits"]

_OLD_DATE: Final = re.compile(r"(\d\d)/(\d\d)/(\d\d)")


@contextmanager
def open_fits(
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


def inspect_fits(path: Path, wanted: int | str | None) -> FrameInfo:
    """Return what a FITS header says about its frames."""
    with open_fits(path, wanted) as (hdu, number):
        header = _Header(hdu.header)
        axes = hdu.shape
        if len(axes) > 3:
            raise WrongKind(f"{path}: an image of {len(axes)} axes is no frame and no stack")
        if len(axes) == 3 and (header.text("CTYPE3") or "").upper() in ("RGB", "COLOR", "COLOUR"):
            raise WrongKind(f"{path}: is a picture in colour (CTYPE3), not the pixels of a sensor")
        refuse_last_axis(path, axes)
        # Header cards and the type that comes of them are astropy's business: one pixel tells.
        pixel = hdu.section[(slice(0, 1),) * len(axes)]
        white = header.of("white_level", positive_number)
        white = eight_bits(pixel.dtype).get("white_level") if white is None else int(white)
        pattern = _fits_pattern(path, header, int(axes[-2]))
        black = tuple(
            value
            for index in range(4 if pattern else 1)
            if (value := finite(header.get(f"BLACKLV{index}"))) is not None
        )
        return FrameInfo(
            str(path),
            (int(axes[-2]), int(axes[-1])),
            dtype_read(path, pixel.dtype).name,
            n_frames=int(axes[0]) if len(axes) == 3 else 1,
            bit_depth=None if white is None else n_bits(white),
            white_level=white,
            make=header.of("make", header_text) or "",
            model=header.of("model", header_text) or "",
            pattern=pattern,
            black_level=black if len(black) == (4 if pattern else 1) else (),
            iso=header.of("iso", iso_speed),
            exposure_s=header.of("exposure_s", exposure_of),
            time=_fits_time(header),
            temperature_c=header.of("temperature_c", finite),
            kind=header.of("kind", header_text) or "",
            level=header.of("level", header_text) or "",
            photons=header.of("photons", finite),
            serial_number=header.of("serial_number", header_text) or "",
            gain_setting=header.of("gain_setting", finite),
            offset_setting=header.of("offset_setting", finite),
            readout_mode=header.of("readout_mode", header_text) or "",
            filter=header.of("filter", header_text) or "",
            binning=_pair(header, "XBINNING", "YBINNING", "CCDSUM"),
            window=_pair(header, "XORGSUBF", "YORGSUBF"),
            unit=unit_of_values(header.of("unit", header_text)),
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


def _fits_pattern(path: Path, header: _Header, n_rows: int) -> str:
    """Return the colours of the first 2 x 2 pixels as BAYERPAT, its offsets and ROWORDER tell."""
    order = (header.text("ROWORDER") or "").upper()
    if order not in ("", "TOP-DOWN", "BOTTOM-UP"):
        raise WrongKind(f"{path}: ROWORDER {order!r} is neither 'TOP-DOWN' nor 'BOTTOM-UP'")
    pattern = (header.text("BAYERPAT") or "").upper()
    if not pattern:
        return ""
    if pattern not in BAYER_PATTERNS:
        raise WrongKind(f"{path}: BAYERPAT {pattern!r} is not one like 'RGGB'")
    shift = []
    for name in ("YBAYROFF", "XBAYROFF"):
        offset = finite(header.get(name)) if header.text(name) is not None else 0.0
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
                if time := time_of_text(f"{date}T{hours.zfill(2)}:{rest}"):
                    return time
    return time_of_text(date)


def _pair(header: _Header, first: str, second: str, both: str | None = None) -> tuple[int, ...]:
    """Return two integers of two cards, or of one; nothing unless both are there."""
    values: Sequence[Any] = (header.get(first), header.get(second))
    if None in values and both is not None:
        values = (header.text(both) or "").split()
    numbers = [round(one) for value in values if (one := finite(value)) is not None]
    return tuple(numbers) if len(numbers) == 2 else ()


def _lit_areas(path: Path, header: Any, shape: tuple[int, int]) -> tuple[Area, ...]:
    try:
        return areas_of_fits(header, shape)
    except CorruptedInput as error:
        raise CorruptedInput(f"{path}: {error}; correct the card") from error


def _is_unsigned(header: Any) -> bool:
    """Return whether an image is of unsigned 16 bits, which FITS stores as signed less 2^15."""
    return (header["BITPIX"], header.get("BZERO", 0), header.get("BSCALE", 1)) == (16, 32768, 1)


def _is_plain(path: Path, hdu: Any) -> bool:
    """Return whether neither the file nor the image in it is compressed."""
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


def read_fits(
    path: Path, start: int, stop: int, wanted: int | None, memory: NDArray[Any] | None
) -> Iterator[NDArray[Any]]:
    """Read frames `start` to `stop` of a FITS file; all its checksums are compared."""
    with open_fits(path, wanted, whole=True) as (hdu, _):
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
                signed = read_pixels(path, ">", axes[-2:], run, memory)
                signed ^= 0x8000
                yield signed
            else:
                frame = hdu.data if len(axes) == 2 else hdu.section[index]
                # The memory is the file's, which is closed when the caller goes on.
                yield np.array(frame, frame.dtype.newbyteorder("="))
