"""Raw frames from whatever a camera writes: what a file says about them, and their pixels.

Raw files go through LibRaw (rawpy), FITS through astropy, TIFF through tifffile, PNG through
Pillow; NumPy arrays and Zarr stacks hold bare pixels. `inspect_frame` reads metadata only,
`read_frame` gives one whole raw image.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput, TransientError, WrongKind
from calibdask.io.array_frames import inspect_array, open_npy, open_zarr, slices_of
from calibdask.io.fits_frames import inspect_fits, open_fits, read_fits
from calibdask.io.frame_info import UNREADABLE, FrameInfo, dtype_read, open_tiff
from calibdask.io.image_frames import check_png, inspect_png, inspect_tiff, read_png, read_tiff
from calibdask.io.raw import inspect_raw, read_raw
from calibdask.io.tiff import check_decoded, tiff_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray


__all__ = ["FRAME_PATTERNS", "inspect_frame", "libraries_of", "read_frame", "read_frames"]

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
            return inspect_raw(path)
        case "fits":
            return inspect_fits(path, hdu)
        case "tiff":
            return inspect_tiff(path)
        case "png":
            return inspect_png(path)
        case "npy":
            return inspect_array(path, open_npy(path), {})
    array, attributes = open_zarr(path)
    if missing := array.nchunks - array.nchunks_initialized:
        # Zarr would read zeros.
        raise CorruptedInput(
            f"{path}: {missing} of {array.nchunks} chunks are missing; copy it again"
            " (stacks with empty frames are written with write_empty_chunks=True)"
        )
    return inspect_array(path, array, attributes)


def _check_sound(path: Path, kind: str) -> None:
    """Check a file that seems to be of another kind: it may be a damaged frame (CorruptedInput)."""
    match kind:
        case "fits":
            with suppress(WrongKind), open_fits(path, whole=True):
                pass
        case "tiff":
            with open_tiff(path) as tiff:
                for page in () if tiff is None else tiff_pages(path, tiff):
                    check_decoded(path, page)
        case "png":
            check_png(path)


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
                frames = (read_raw(path, memory) for _ in range(start, min(stop, 1)))
            case "fits":
                frames = read_fits(path, start, stop, hdu, memory)
            case "tiff":
                frames = read_tiff(path, start, stop)
            case "png":
                frames = (read_png(path) for _ in range(start, min(stop, 1)))
            case "npy":
                frames = slices_of(open_npy(path), start, stop)
            case _:
                frames = slices_of(open_zarr(path)[0], start, stop)
    for _ in range(start, stop):
        with _named_errors(path):
            frame = next(frames, None)
        if frame is None:
            raise CorruptedInput(f"{path}: has no frames {start} to {stop - 1}")
        yield np.ascontiguousarray(frame, dtype_read(path, frame.dtype))


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
    except UNREADABLE as error:
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
