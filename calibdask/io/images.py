"""Camera images by telescope: from DL1 files by PyTables, from anything else through ctapipe.

Coordinates are those of ctapipe's telescope frame: the position in the focal plane over the focal
length, with fov_lon along the camera's y and fov_lat along its x.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.camera_images import (
    Camera,
    FocalLengthChoice,
    ImageInfo,
    TelescopeImages,
    measured_pixels,
    no_focal_length,
)
from calibdask.io.event_images import inspect_events, read_events
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.keys import whole_numbers
from calibdask.io.muon import read_times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import File, Table

__all__ = ["has_images", "inspect_images", "is_hdf5", "read_images"]

_IMAGES: Final = "/dl1/event/telescope/images"


_LAYOUT: Final = "/configuration/instrument/subarray/layout"


_OPTICS: Final = "/configuration/instrument/telescope/optics"


_CAMERA: Final = "/configuration/instrument/telescope/camera"


_OBSERVATIONS: Final = "/configuration/observation/observation_block"


_KEYS: Final = ("obs_id", "event_id", "tel_id")


_BLOCK_BYTES: Final = 32 * 2**20


_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path | str) -> bool:
    """Return whether a file is HDF5, which is read in parts; ctapipe reads others as a whole.

    Raises
    ------
    MissingInput
        No such file, or no permission to read it.
    CorruptedInput
        It is a directory.
    """
    try:
        with Path(path).open("rb") as stream:
            return stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    except FileNotFoundError:
        raise MissingInput(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CorruptedInput(f"{path}: is a directory, not a file of events") from None
    except PermissionError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from None


def has_images(path: Path | str) -> bool:
    """Return whether an HDF5 file has DL1 images (errors as `calibdask.io.hdf5.open_hdf5`)."""
    with open_hdf5(path) as file:
        return bool(file.children(_IMAGES))


def inspect_images(
    path: Path | str, focal_length_choice: FocalLengthChoice = "EFFECTIVE"
) -> ImageInfo:
    """Look at what a file with images holds.

    An HDF5 file is asked for its keys and times. Any other has no index: ctapipe reads through it.

    Parameters
    ----------
    path : Path or str
        A DL1 file with images, or any file that ctapipe has an event source for.
    focal_length_choice : str
        "EFFECTIVE" or "EQUIVALENT", as in ctapipe.

    Returns
    -------
    ImageInfo
        Everything a plan needs to know of the file.

    Raises
    ------
    MissingInput
        No such file, table or column; no event source for it; no focal length of this kind.
    CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`; or a file that ends too early.
    """
    return (_inspect_dl1 if is_hdf5(path) else inspect_events)(path, focal_length_choice)


def read_images(
    path: Path | str,
    focal_length_choice: FocalLengthChoice = "EFFECTIVE",
    *,
    tel_id: int | None = None,
    rows: tuple[int, int] | None = None,
) -> Iterator[TelescopeImages]:
    """Read images, one telescope after the other.

    Parameters
    ----------
    path : Path or str
        As for `inspect_images`.
    focal_length_choice : str
        "EFFECTIVE" or "EQUIVALENT", as in ctapipe.
    tel_id : int, optional
        Only this telescope.
    rows : (first, stop), optional
        Only these images of each telescope, in the order of the file.

    Yields
    ------
    TelescopeImages
        At most 32 MiB of images from an HDF5 file; all images of the telescope from another file.
        Of two gains that were both stored, the first (high) one counts, and the other where it was
        not measured; where the event source has waveforms of both, ctapipe's gain selector chooses.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
        As `inspect_images`; or a table with rows of another telescope, or with an image twice.
    """
    if is_hdf5(path):
        yield from _read_dl1(path, focal_length_choice, tel_id, rows)
    else:
        yield from read_events(path, focal_length_choice, tel_id, rows)


def _inspect_dl1(path: Path | str, choice: FocalLengthChoice) -> ImageInfo:
    cameras, sizes, keys = {}, {}, {}
    with open_hdf5(path) as file:
        for tel_id, table in _image_tables(file, path):
            cameras[tel_id] = _read_camera(file, path, tel_id, choice)
            _check_table(table, path, cameras[tel_id])
            sizes[tel_id] = 5 * 4 * len(cameras[tel_id].pixel_x_rad)
            keys[tel_id] = _all_keys(table, path, tel_id)
        product, process = (file.attribute(name) for name in ("CTA PRODUCT ID", "CTA PROCESS TYPE"))
        observations = file.find(_OBSERVATIONS)
        stored = [] if observations is None else observations.column("obs_id").tolist()
    # Where some telescopes have a focal length, the others are told from them, not refused.
    if not any(camera.focal_length_m > 0 for camera in cameras.values()):
        raise no_focal_length(path, next(iter(cameras.values())).tel_description, choice)
    events = np.concatenate([np.stack(one, axis=1) for one in keys.values()])
    obs_ids = {*np.unique(events[:, 0]).tolist(), *stored}
    times = {
        tel_id: read_times(path, obs_id, event_id, np.full(len(obs_id), tel_id))
        for tel_id, (obs_id, event_id) in keys.items()
    }
    return ImageInfo(
        tuple(sorted(obs_ids)),
        len(np.unique(events, axis=0)),
        cameras,
        times,
        sizes,
        product,
        process,
    )


def _read_dl1(
    path: Path | str, choice: FocalLengthChoice, wanted: int | None, rows: tuple[int, int] | None
) -> Iterator[TelescopeImages]:
    with open_hdf5(path) as file:
        found = dict(_image_tables(file, path))
        if wanted is not None and wanted not in found:
            raise MissingInput(f"{path}: has no images of telescope {wanted}")
        chosen = [wanted] if wanted is not None else list(found)
        cameras = {tel_id: _read_camera(file, path, tel_id, choice) for tel_id in chosen}
        n_rows = {}
        for tel_id, camera in cameras.items():
            _check_table(found[tel_id], path, camera)
            n_rows[tel_id] = found[tel_id].n_rows
    for tel_id, camera in cameras.items():
        first, stop = rows or (0, n_rows[tel_id])
        stop = min(stop, n_rows[tel_id])
        step = max(1, _BLOCK_BYTES // (5 * len(camera.pixel_x_rad)))
        for begin in range(first, stop, step):
            # Not kept open while the caller computes: a generator may be left where it is.
            with open_hdf5(path) as file:
                table = file.table(f"{_IMAGES}/tel_{tel_id:03d}")
                block = table.read(begin, min(begin + step, stop))
                obs_id, event_id = _keys(block, table, path, tel_id)
                image, mask = _charges(block, table)
            time_ns = read_times(path, obs_id, event_id, np.full(len(obs_id), tel_id))
            yield TelescopeImages(camera, obs_id, event_id, time_ns, image, mask)


def _image_tables(file: File, path: Path | str) -> Iterator[tuple[int, Table]]:
    """Telescope and table, by telescope number."""
    if not file.children(_IMAGES):
        raise MissingInput(f"{path}: has no images ({_IMAGES}); write DL1 with its images")
    found = {}
    for name in file.children(_IMAGES):
        if not name.startswith("tel_") or not name[4:].isdecimal():
            raise CorruptedInput(f"{path}: {_IMAGES}/{name} is not a table of a telescope")
        found[int(name[4:])] = file.table(f"{_IMAGES}/{name}")
    yield from sorted(found.items())


def _check_table(table: Table, path: Path | str, camera: Camera) -> None:
    missing = [name for name in (*_KEYS, "image") if name not in table.names]
    if missing:
        raise MissingInput(
            f"{path}: {table.path} has no column {missing[0]}; it has {', '.join(table.names)}"
        )
    n_pixels = len(camera.pixel_x_rad)
    shape = table.dtype["image"].shape
    if shape not in ((n_pixels,), (1, n_pixels), (2, n_pixels)):
        raise CorruptedInput(
            f"{path}: {table.path} has images of shape {shape}, but camera"
            f" {camera.tel_description} has {n_pixels} pixels"
        )
    if "image_mask" in table.names and table.dtype["image_mask"].shape != (n_pixels,):
        raise CorruptedInput(
            f"{path}: {table.path} has masks of shape {table.dtype['image_mask'].shape},"
            f" but images of {n_pixels} pixels"
        )


def _keys(
    rows: NDArray[Any], table: Table, path: Path | str, tel_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return observation and event of rows of an image table; each must be there once."""
    others = rows["tel_id"][rows["tel_id"] != tel_id]
    if len(others):
        raise CorruptedInput(f"{path}: {table.path} has rows of telescope {others[0]}")
    where = f"{path}: {table.path} has"
    columns = [whole_numbers(rows[name], f"{where} {name}") for name in ("obs_id", "event_id")]
    keys = np.stack(columns, axis=1)
    found, count = np.unique(keys, axis=0, return_counts=True)
    if (count > 1).any():
        obs_id, event_id = found[np.argmax(count > 1)]
        raise CorruptedInput(
            f"{path}: {table.path} has event {event_id} of observation {obs_id}"
            f" {count.max()} times; write the file again without repeated rows"
        )
    return keys[:, 0].copy(), keys[:, 1].copy()


def _all_keys(
    table: Table, path: Path | str, tel_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the keys of a whole table; its images pass through memory in blocks."""
    n = table.n_rows
    rows = np.empty(n, [(name, np.int64) for name in _KEYS])
    step = max(1, _BLOCK_BYTES // table.row_bytes)
    for begin in range(0, n, step):
        block = table.read(begin, min(begin + step, n))
        for name in _KEYS:
            rows[name][begin : begin + len(block)] = block[name]
    return _keys(rows, table, path, tel_id)


def _charges(
    block: NDArray[Any], table: Table
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return images and masks; what was stored as fixed point becomes p.e. again."""
    stored = block["image"]
    fixed_point = table.field("image", "TRANSFORM") == "fixed_point"
    image = np.array(stored, np.float32)
    if fixed_point:
        image -= np.float32(table.field("image", "TRANSFORM_OFFSET"))
        image /= np.float32(table.field("image", "TRANSFORM_SCALE"))
        for name in ("NAN", "POSINF", "NEGINF"):
            image[stored == table.field("image", f"{name}_VALUE")] = np.nan
    if image.ndim == 3:
        channels = image
        image = channels[:, 0].copy()
        for channel in range(1, channels.shape[1]):
            unmeasured = ~np.isfinite(image)
            image[unmeasured] = channels[:, channel][unmeasured]
    if not fixed_point:  # where charges are rounded, 0 is one of them
        image = measured_pixels(image)
    mask = np.array(block["image_mask"], np.bool_) if "image_mask" in table.names else None
    return image, mask


def _read_camera(file: File, path: Path | str, tel_id: int, choice: FocalLengthChoice) -> Camera:
    for where in (_LAYOUT, _OPTICS):
        if where not in file:
            raise MissingInput(f"{path}: has no table {where}; write the file again with ctapipe")
    layout = file.table(_LAYOUT).read()
    row = layout[layout["tel_id"] == tel_id]
    if len(row) != 1:
        raise CorruptedInput(f"{path}: telescope {tel_id} is {len(row)} times in {_LAYOUT}")
    description = row["tel_description"][0].decode("utf-8", "replace")
    optics = file.table(_OPTICS).read()
    number = int(row["optics_index"][0])
    if not 0 <= number < len(optics):
        raise CorruptedInput(f"{path}: {description} has optics {number} of {len(optics)}")
    column = f"{choice.lower()}_focal_length"
    focal_length_m = (
        float(optics[column][number]) if column in (optics.dtype.names or ()) else math.nan
    )
    if not focal_length_m > 0:
        focal_length_m = math.nan
    where = f"{_CAMERA}/geometry_{int(row['camera_index'][0])}"
    if where not in file:
        raise MissingInput(f"{path}: has no table {where}, the pixels of {description}")
    geometry = file.table(where)
    pixels = geometry.read()
    missing = {"pix_x", "pix_y", "pix_area"} - set(pixels.dtype.names or ())
    if missing or not len(pixels):
        what = f"lacks {', '.join(sorted(missing))}" if missing else "is empty"
        raise MissingInput(f"{path}: {where}, the pixels of {description}, {what}")
    shape = str(geometry.attribute("PIX_TYPE") or "")
    if shape not in ("hexagon", "square", "circle"):
        raise CorruptedInput(f"{path}: {where} has pixels of type {shape!r}")
    angle = math.radians(float(geometry.attribute("CAM_ROT") or 0.0))
    x_m, y_m = pixels["pix_x"].astype(np.float64), pixels["pix_y"].astype(np.float64)
    if angle:
        cosine, sine = math.cos(angle), math.sin(angle)
        x_m, y_m = cosine * x_m + sine * y_m, cosine * y_m - sine * x_m
    return Camera.from_lengths(
        tel_id,
        description,
        (int(optics["n_mirrors"][number]), float(optics["mirror_area"][number]), focal_length_m),
        (x_m, y_m, pixels["pix_area"].astype(np.float64)),
        shape,
        str(geometry.attribute("GRID") or "hex"),
    )
