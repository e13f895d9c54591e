"""Frames in NumPy arrays and Zarr stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput, WrongKind
from calibdask.io.frame_info import (
    BAYER_PATTERNS,
    UNREADABLE,
    FrameInfo,
    dtype_read,
    eight_bits,
    exposure_of,
    finite,
    iso_speed,
    n_bits,
    positive_number,
    refuse_last_axis,
    time_of_text,
    unit_of_values,
    values_of_tag,
)
from calibdask.io.keywords import KEYWORDS, header_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


__all__ = ["inspect_array", "open_npy", "open_zarr", "slices_of"]


def open_npy(path: Path) -> NDArray[Any]:
    """Open a NumPy array as memory map (CorruptedInput where it is none)."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise CorruptedInput(
            f"{path}: no array of numbers, or cut short (frames are written with numpy.save):"
            f" {error}"
        ) from error
    return array


def open_zarr(path: Path) -> tuple[Any, dict[str, Any]]:
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


def inspect_array(path: Path, array: Any, attributes: Mapping[str, Any]) -> FrameInfo:
    """Return what an array and its attributes say about its frames."""
    known = frozenset(name for one in KEYWORDS.values() for name in one.zarr)
    attributes = {name: value for name, value in attributes.items() if name in known}
    refuse_last_axis(path, array.shape)
    if array.ndim not in (2, 3):
        raise WrongKind(f"{path}: an array of {array.ndim} axes is no frame and no stack of frames")
    if 0 in array.shape:
        raise WrongKind(f"{path}: an array of shape {array.shape} holds no pixel")
    info = FrameInfo(
        str(path),
        (int(array.shape[-2]), int(array.shape[-1])),
        dtype_read(path, array.dtype).name,
        n_frames=int(array.shape[0]) if array.ndim == 3 else 1,
    )
    black = attributes.get("black_level")
    white = positive_number(attributes.get("white_level"))
    bits = positive_number(attributes.get("bit_depth"))
    pattern = str(attributes.get("pattern", ""))
    if pattern and pattern not in BAYER_PATTERNS:
        raise CorruptedInput(f"{path}: the attribute pattern {pattern!r} is not one like 'RGGB'")
    if white is None and bits is not None:
        white = 2**bits - 1
    if white is None:
        white = eight_bits(array.dtype).get("white_level")
    levels = [] if black is None else [finite(level) for level in values_of_tag(black)]
    if None in levels or len(levels) not in (0, 4 if pattern else 1):
        raise CorruptedInput(
            f"{path}: the attribute black_level {black!r} is not"
            f" {'four numbers' if pattern else 'one number'}"
        )
    return replace(
        info,
        white_level=None if white is None else int(white),
        bit_depth=None if white is None else n_bits(int(white)),
        make=str(attributes.get("make", "")),
        model=str(attributes.get("model", "")),
        pattern=pattern,
        black_level=tuple(level for level in levels if level is not None),
        iso=iso_speed(attributes.get("iso")),
        exposure_s=exposure_of(attributes.get("exposure_s")),
        time=time_of_text(attributes.get("time", "")),
        temperature_c=finite(attributes.get("temperature_c")),
        kind=str(attributes.get("kind", "")),
        level=str(attributes.get("level", "")),
        photons=finite(attributes.get("photons")),
        serial_number=header_text(attributes.get("serial_number")) or "",
        gain_setting=finite(attributes.get("gain_setting")),
        offset_setting=finite(attributes.get("offset_setting")),
        readout_mode=header_text(attributes.get("readout_mode")) or "",
        filter=header_text(attributes.get("filter")) or "",
        binning=tuple(round(float(one)) for one in values_of_tag(attributes.get("binning"))),
        window=tuple(round(float(one)) for one in values_of_tag(attributes.get("window"))),
        unit=unit_of_values(header_text(attributes.get("unit"))),
    )


def slices_of(array: Any, start: int, stop: int) -> Iterator[NDArray[Any]]:
    """Return frames `start` to `stop` of an array, each chunk read once."""
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
