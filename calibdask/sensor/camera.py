"""The camera file, made from one saturated raw image and what its user knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.errors import ConfigError, CorruptedInput
from calibdask.io.frames import inspect_frame, read_frame
from calibdask.io.spectacle import (
    CameraFile,
    CameraSettings,
    settings_path,
    write_camera_file,
    write_settings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from calibdask.io.frame_info import FrameInfo

__all__ = ["CAMERA_FILE", "generate_metadata"]

CAMERA_FILE = "camera_data.json"
_REACHED = 0.95  # of the white level, by an image that is saturated


def generate_metadata(
    image: Path,
    root: Path,
    *,
    name: str | None = None,
    manufacturer: str | None = None,
    model: str | None = None,
    bit_depth: int | None = None,
    settings: CameraSettings | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write ``camera_data.json``, and the camera's settings where they are known.

    Parameters
    ----------
    image : Path
        A raw image with saturated pixels: their value tells the bit depth.
    root : Path
        The camera's root folder; made when it is not there.
    name : str, optional
        What people call the camera; its model unless given.
    manufacturer, model : str, optional
        Instead of what the image says.
    bit_depth : int, optional
        Instead of what the pixels tell.
    settings : CameraSettings, optional
        Its range of ISO speeds and exposures.
    overwrite : bool
        Replace the camera file that is there.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    ConfigError
        There is a camera file already, or the image leaves something open that no option tells.
    CalibdaskError
        The image cannot be read.
    """
    path = root / CAMERA_FILE
    others = [one for one in sorted(root.glob("*data.json")) if one != path or not overwrite]
    if others:
        raise ConfigError(
            f"{others[0]}: a camera file is there already, and a root folder has one;"
            f" {'--overwrite replaces it' if others[0] == path else 'move it away'}"
        )
    info = inspect_frame(image)
    manufacturer, model = manufacturer or info.make, model or info.model
    if not model:
        raise ConfigError(f"{image}: does not say what camera took it; give --model")
    index = info.channel_index.tolist() if info.pattern else [[0]]
    flat = [colour for row in index for colour in row]
    levels = info.black_level or (0.0,) * len(flat)
    camera = CameraFile(
        name=name or model,
        manufacturer=manufacturer,
        name_internal=model,
        image_shape=info.shape,
        raw_extension=image.suffix,
        bias=tuple(levels[flat.index(colour)] for colour in range(len(flat))),
        bayer_pattern=tuple(tuple(row) for row in index),
        bit_depth=bit_depth or _bit_depth(image, info),
    )
    root.mkdir(parents=True, exist_ok=True)
    write_camera_file(path, camera)
    if settings is None:
        return (path,)
    beside = settings_path(root, camera)
    write_settings(beside, settings)
    return path, beside


def _bit_depth(image: Path, info: FrameInfo) -> int:
    """Return the bit depth by the largest pixel: 2^n - 1 where it is saturated."""
    if info.dtype != "uint16":
        raise CorruptedInput(f"{image}: holds {info.dtype}; a raw image holds integers")
    largest = int(read_frame(image).max())
    bits = largest.bit_length()
    if bits >= 8 and largest == 2**bits - 1:
        return bits
    if info.white_level is not None and largest >= _REACHED * info.white_level:
        return int(info.white_level).bit_length()
    stated = (
        "" if info.white_level is None else f", and it states a white level of {info.white_level}"
    )
    raise ConfigError(
        f"{image}: its largest value is {largest}, which is no saturated pixel's (2^n - 1 with n"
        f" from 8 to 16){stated}; take a saturated image, or give --bit-depth"
    )
