"""Calibrated frames on disk, in Zarr or FITS: values, errors and masks, with what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.flags import ImageFlag
from calibdask.io.maps import MapLayout, create_maps, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FrameHeader", "write_fits", "write_zarr"]

_CHUNK_ROWS = 256
_TYPES = {"value": "<f4", "error": "<f4", "mask": "<u2"}


@dataclass(frozen=True)
class FrameHeader:
    """What a file says about its calibrated frames.

    Attributes
    ----------
    n_frames : int
        How many there are; of several the first dimension is the frame.
    shape : (int, int)
        Rows and columns.
    units : str
        Of values and errors.
    time : str
        When the frame was taken; empty where unknown.
    exposure_s : float or None
        Exposure.
    iso : int or None
        ISO speed.
    camera : str
        The camera; empty where unknown.
    products : mapping of str to str
        Digests of the calibrations that were applied.
    """

    n_frames: int
    shape: tuple[int, int]
    units: str
    time: str = ""
    exposure_s: float | None = None
    iso: int | None = None
    camera: str = ""
    products: Mapping[str, str] | None = None

    def attributes(self, name: str) -> dict[str, Any]:
        """Return the attributes of one of the arrays."""
        if name == "mask":
            return ImageFlag.attributes()
        meaning = {"value": "calibrated signal", "error": "standard error of the signal"}[name]
        return {"units": self.units, "long_name": meaning}


def write_zarr(
    path: Path, header: FrameHeader, parts: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Write frames to a Zarr directory that xarray opens.

    Parameters
    ----------
    path : Path
        The directory; replaced where it exists.
    header : FrameHeader
        What it says.
    parts : iterable of mapping of str to ndarray, shape (n, rows, columns)
        ``value``, ``error`` and ``mask`` of the frames, some at a time.
    """
    several = header.n_frames > 1
    rows, columns = header.shape
    layouts = {
        name: MapLayout(
            (header.n_frames, rows, columns) if several else (rows, columns),
            kind,
            1 if several else _CHUNK_ROWS,
            ("frame", "y", "x") if several else ("y", "x"),
            header.attributes(name),
        )
        for name, kind in _TYPES.items()
    }
    about = {
        "time": header.time,
        "exposure_s": header.exposure_s,
        "iso": header.iso,
        "camera": header.camera,
        "products": dict(header.products or {}),
    }
    create_maps(path, layouts, {"": about})
    first = 0
    for part in parts:
        for name in _TYPES:
            values = part[name]
            write_rows(path, name, first, values if several else values[0])
        first += len(part["value"])


def write_fits(
    path: Path, header: FrameHeader, parts: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Write frames to a FITS file: values, then extensions ERROR and MASK.

    Parameters are those of :func:`write_zarr`. The same frames give the same bytes.
    """
    from astropy.io import fits

    joined: dict[str, NDArray[Any]] = {}
    several = header.n_frames > 1
    shape = (header.n_frames, *header.shape) if several else header.shape
    first = 0
    for part in parts:
        count = len(part["value"])
        for name, kind in _TYPES.items():
            whole = joined.setdefault(name, np.empty(shape, np.dtype(kind)))
            if several:
                whole[first : first + count] = part[name]
            else:
                whole[...] = part[name][0]
        first += count
    primary = fits.PrimaryHDU(joined["value"])
    cards = primary.header
    cards["BUNIT"] = (header.units, "unit of the values and of ERROR")
    if header.time:
        cards["DATE-OBS"] = (header.time, "by the camera's clock")
    if header.exposure_s is not None:
        cards["EXPTIME"] = (header.exposure_s, "[s] exposure")
    if header.iso is not None:
        cards["ISOSPEED"] = (header.iso, "ISO speed")
    if header.camera:
        cards["INSTRUME"] = header.camera
    for name, digest in (header.products or {}).items():
        cards["HISTORY"] = f"calibrated for {name} by the product {digest[:16]}"
    mask = fits.ImageHDU(joined["mask"], name="MASK")
    for bit, flag in enumerate(ImageFlag):
        mask.header[f"FLAG{bit}"] = (flag.label, f"meaning of bit {bit}")
        mask.header["COMMENT"] = f"{flag.label}: {flag.meaning}"
    error = fits.ImageHDU(joined["error"], name="ERROR")
    error.header["BUNIT"] = header.units
    fits.HDUList([primary, error, mask]).writeto(path, overwrite=True)
