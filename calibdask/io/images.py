"""Camera images by telescope: from DL1 files by PyTables, from anything else through ctapipe.

Coordinates are those of ctapipe's telescope frame: the position in the focal plane over the focal
length, with fov_lon along the camera's y and fov_lat along its x.
"""

from __future__ import annotations

import math
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.keys import whole_numbers
from calibdask.io.muon import read_times
from calibdask.io.times import ns_of_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from calibdask.io.hdf5 import File, Table

__all__ = [
    "Camera",
    "FocalLengthChoice",
    "ImageInfo",
    "TelescopeImages",
    "has_images",
    "inspect_images",
    "is_hdf5",
    "neighbours_of",
    "read_images",
]

FocalLengthChoice = Literal["EFFECTIVE", "EQUIVALENT"]

_IMAGES: Final = "/dl1/event/telescope/images"
_LAYOUT: Final = "/configuration/instrument/subarray/layout"
_OPTICS: Final = "/configuration/instrument/telescope/optics"
_CAMERA: Final = "/configuration/instrument/telescope/camera"
_OBSERVATIONS: Final = "/configuration/observation/observation_block"
_KEYS: Final = ("obs_id", "event_id", "tel_id")
_BLOCK_BYTES: Final = 32 * 2**20
_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"

# An extracted charge is never 0 to the last bit: a pixel that reads 0 was not measured. But where a
# larger part of the camera reads 0, the data were reduced, and 0 stands for "no light".
_MAX_FRACTION_DEAD: Final = 0.1

_TRUNCATED: Final = ".*(truncated|_read_next_object)"

# warnings.catch_warnings is for the whole process.
_CTAPIPE: Final = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A telescope with its camera, as its images are fitted.

    Attributes
    ----------
    tel_id : int
        Number of the telescope.
    tel_description : str
        What ctapipe's patterns match, such as "LST_LST_LSTCam".
    n_mirrors : int
        1, or 2 for a dual-mirror telescope.
    mirror_area_m2 : float
        Area of the mirror.
    focal_length_m : float
        As chosen; NaN where the file has none.
    pixel_x_rad, pixel_y_rad : array of float64, (P,)
        fov_lon and fov_lat of the pixels.
    pixel_width_rad : array of float64, (P,)
        Flat-to-flat distance, side or diameter.
    pixel_shape : str
        "hexagon", "square" or "circle".
    fov_radius_rad : float
        Mean distance of the pixels at the border from the middle of the camera.
    neighbours : array of int32, (P, K)
        Neighbours of each pixel, filled up with -1.
    """

    tel_id: int
    tel_description: str
    n_mirrors: int
    mirror_area_m2: float
    focal_length_m: float
    pixel_x_rad: NDArray[np.float64]
    pixel_y_rad: NDArray[np.float64]
    pixel_width_rad: NDArray[np.float64]
    pixel_shape: str
    fov_radius_rad: float
    neighbours: NDArray[np.int32]

    @classmethod
    def from_lengths(
        cls,
        tel_id: int,
        tel_description: str,
        optics: tuple[int, float, float],
        pixels: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
        shape: str,
        grid: str,
    ) -> Camera:
        """Make a camera from what files have of it.

        Parameters
        ----------
        tel_id : int
            Number of the telescope.
        tel_description : str
            What ctapipe's patterns match.
        optics : (int, float, float)
            Number of mirrors, mirror area in m² and focal length in m.
        pixels : (x, y, area), arrays of float64, (P,)
            Pixels in the camera frame, in m and m².
        shape, grid : str
            Shape of the pixels, "hexagon", "square" or "circle", and grid, "hex" or "square".
        """
        n_mirrors, area_m2, focal_length_m = optics
        x_m, y_m, pixel_area_m2 = pixels
        neighbours = neighbours_of(x_m, y_m, grid, shape)
        # The axes of the camera are turned into those of the sky.
        lon, lat = y_m / focal_length_m, x_m / focal_length_m
        if shape == "hexagon":
            width_m = 2.0 * np.sqrt(pixel_area_m2 / (2.0 * math.sqrt(3.0)))
        elif shape == "circle":
            width_m = 2.0 * np.sqrt(pixel_area_m2 / math.pi)
        else:
            width_m = np.sqrt(pixel_area_m2)
        n_neighbours = np.count_nonzero(neighbours >= 0, axis=1)
        border = n_neighbours < n_neighbours.max()
        fov_radius = np.hypot(lon[border] - lon.mean(), lat[border] - lat.mean()).mean()
        return cls(
            tel_id,
            tel_description,
            n_mirrors,
            area_m2,
            focal_length_m,
            lon,
            lat,
            width_m / focal_length_m,
            shape,
            float(fov_radius),
            neighbours,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TelescopeImages:
    """Images of one telescope.

    Attributes
    ----------
    camera : Camera
        The telescope.
    obs_id : array of int64, (N,)
        Observation blocks.
    event_id : array of int64, (N,)
        Events.
    time_ns : array of int64, (N,)
        When the telescope was triggered, in ns of TAI since 1970; `NO_TIME` where the file
        does not tell.
    image : array of float32, (N, P)
        Charges, in p.e.; NaN where a pixel was not measured. (N, 0) for a dual-mirror telescope
        that was read through ctapipe: its images are of no use here.
    image_mask : array of bool, (N, P), or None
        The pixels that cleaning kept; None where the images are not cleaned.
    """

    camera: Camera
    obs_id: NDArray[np.int64]
    event_id: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    image: NDArray[np.float32]
    image_mask: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True, eq=False)
class ImageInfo:
    """What a file with images holds; no image was read.

    Attributes
    ----------
    obs_ids : tuple of int
        Observation blocks, sorted.
    n_events : int
        Events with at least one image.
    cameras : dict of int to Camera
        Telescopes with images, by number.
    times_ns : dict of int to array of int64, (N,)
        For each telescope the times of its images, in the order in which they are read.
    bytes_per_image : dict of int to int
        Memory of an image while its ring is fitted.
    product_id, process_type : str or None
        "CTA PRODUCT ID" and "CTA PROCESS TYPE".
    """

    obs_ids: tuple[int, ...]
    n_events: int
    cameras: dict[int, Camera]
    times_ns: dict[int, NDArray[np.int64]]
    bytes_per_image: dict[int, int]
    product_id: str | None
    process_type: str | None


def is_hdf5(path: Path | str) -> bool:
    """Tell HDF5 files, which are read in parts, from files that ctapipe reads from the beginning.

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
    """Tell whether an HDF5 file has DL1 images (errors as `calibdask.io.hdf5.open_hdf5`)."""
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
    return (_inspect_dl1 if is_hdf5(path) else _inspect_events)(path, focal_length_choice)


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
        yield from _read_events(path, focal_length_choice, tel_id, rows)


def neighbours_of(
    x: NDArray[np.float64], y: NDArray[np.float64], grid: str, pixel_shape: str
) -> NDArray[np.int32]:
    """Find the neighbours of each pixel, by ctapipe's rule (`CameraGeometry.calc_pixel_neighbors`).

    Parameters
    ----------
    x, y : array of float64, (P,)
        Pixels.
    grid : str
        "hex" or "square"; on a square grid diagonals do not count.
    pixel_shape : str
        Square pixels on a hexagonal grid lie on a stretched one.

    Returns
    -------
    array of int32, (P, K)
        K is 6 or 4; -1 where there is none.
    """
    from scipy.spatial import cKDTree

    n, p, reach = (4, 1, 1.5) if grid == "square" else (6, 2, 1.4)
    if grid != "square" and pixel_shape == "square":
        reach *= math.sqrt(5) / 2
    k = min(n, len(x) - 1)
    if k < 1:
        return np.full((len(x), n), -1, np.int32)
    points = np.column_stack([x, y])
    distance, other = cKDTree(points).query(points, k=k + 1, p=p)
    distance, other = distance[:, 1:], other[:, 1:]
    near = distance < reach * distance.min(axis=1, keepdims=True)
    found = np.full((len(x), n), -1, np.int32)
    found[:, :k] = np.where(near, other, -1)
    return found


def _no_focal_length(path: Path | str, description: str, choice: str) -> MissingInput:
    other = "EQUIVALENT" if choice == "EFFECTIVE" else "EFFECTIVE"
    return MissingInput(
        f"{path}: {description} has no {choice.lower()} focal length; set"
        f" focal_length_choice: {other}, or write the file again with it"
    )


def _measured(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mark the pixels that were not measured, in place: infinite, or dead."""
    image[~np.isfinite(image)] = np.nan
    dead = image == 0
    few = np.count_nonzero(dead, axis=1) < _MAX_FRACTION_DEAD * image.shape[1]
    image[dead & few[:, None]] = np.nan
    return image


# --- DL1 files ---------------------------------------------------------------------------------


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
        raise _no_focal_length(path, next(iter(cameras.values())).tel_description, choice)
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
        image = _measured(image)
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


# --- anything else, through ctapipe ------------------------------------------------------------


@contextmanager
def _event_source(path: Path | str, choice: FocalLengthChoice) -> Iterator[Any]:
    """Open a file with ctapipe; what it tells of a bad file becomes our exceptions."""
    from ctapipe.io import EventSource

    with _CTAPIPE, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        # All that ctapipe and eventio do about a file that ends too early is to say so.
        warnings.filterwarnings("always", message=_TRUNCATED)
        try:
            source = EventSource(input_url=Path(path), focal_length_choice=choice)
        except (ValueError, OSError) as error:
            raise MissingInput(
                f"{path}: ctapipe has no event source for it ({str(error).splitlines()[0]})"
            ) from error
        except RuntimeError as error:
            if "focal" not in str(error):
                raise
            raise _no_focal_length(path, "a telescope", choice) from error
        except EOFError as error:
            raise _ends_early(path) from error
        with source:
            try:
                yield source
            except EOFError as error:
                raise _ends_early(path) from error
        if caught:
            raise _ends_early(path)


def _ends_early(path: Path | str) -> CorruptedInput:
    return CorruptedInput(f"{path}: ends too early; copy or produce it again")


def _source_camera(path: Path | str, source: Any, tel_id: int, choice: str) -> Camera:
    telescope = source.subarray.tel[tel_id]
    optics, geometry = telescope.optics, telescope.camera.geometry
    length = getattr(optics, f"{choice.lower()}_focal_length").to_value("m")
    if not length > 0:
        raise _no_focal_length(path, str(telescope), choice)
    return Camera.from_lengths(
        tel_id,
        str(telescope),
        (
            int(getattr(optics.n_mirrors, "value", optics.n_mirrors)),
            float(optics.mirror_area.to_value("m2")),
            float(length),
        ),
        (
            geometry.pix_x.to_value("m"),
            geometry.pix_y.to_value("m"),
            geometry.pix_area.to_value("m2"),
        ),
        str(geometry.pix_type.value),
        str(geometry.grid_type.value),
    )


def _time_ns(event: Any, tel_id: int) -> int:
    """Return the time of a telescope's trigger, in whole ns as ctapipe's files have it."""
    trigger = event.trigger
    return int(ns_of_time(trigger.tel[tel_id].time if tel_id in trigger.tel else trigger.time))


def _inspect_events(path: Path | str, choice: FocalLengthChoice) -> ImageInfo:
    cameras: dict[int, Camera] = {}
    times: dict[int, list[int]] = {}
    n_events = 0
    with _event_source(path, choice) as source:
        obs_ids = {int(number) for number in source.obs_ids}
        for event in source:
            n_events += 1
            obs_ids.add(int(event.index.obs_id))
            for tel_id in _telescopes(event):
                if tel_id not in cameras:
                    cameras[tel_id] = _source_camera(path, source, tel_id, choice)
                times.setdefault(tel_id, []).append(_time_ns(event, tel_id))
        process = "Simulation" if source.is_simulation else "Observation"
    order = sorted(cameras)
    return ImageInfo(
        tuple(sorted(obs_ids)),
        n_events,
        {tel_id: cameras[tel_id] for tel_id in order},
        {tel_id: np.array(times[tel_id], np.int64) for tel_id in order},
        {tel_id: 5 * 4 * len(cameras[tel_id].pixel_x_rad) for tel_id in order},
        None,
        process,
    )


def _telescopes(event: Any) -> list[int]:
    """Telescopes with data in an event, at whatever level they are."""
    return sorted({int(t) for level in (event.r1, event.dl0, event.dl1) for t in level.tel})


def _read_events(
    path: Path | str, choice: FocalLengthChoice, wanted: int | None, rows: tuple[int, int] | None
) -> Iterator[TelescopeImages]:
    from ctapipe.calib import CameraCalibrator

    cameras: dict[int, Camera] = {}
    keys: dict[int, list[tuple[int, int, int]]] = {}
    images: dict[int, list[NDArray[np.float32]]] = {}
    with _event_source(path, choice) as source:
        calibrate = CameraCalibrator(subarray=source.subarray)
        for event in source:
            telescopes = [one for one in _telescopes(event) if wanted in (None, one)]
            for tel_id in telescopes:
                if tel_id not in cameras:
                    cameras[tel_id] = _source_camera(path, source, tel_id, choice)
                    keys[tel_id], images[tel_id] = [], []
            if any(cameras[tel_id].n_mirrors == 1 for tel_id in telescopes):
                calibrate(event)
            for tel_id in telescopes:
                number = len(keys[tel_id])
                index = event.index
                time_ns = _time_ns(event, tel_id)
                keys[tel_id].append((int(index.obs_id), int(index.event_id), time_ns))
                chosen = rows is None or rows[0] <= number < rows[1]
                if chosen and cameras[tel_id].n_mirrors == 1:
                    images[tel_id].append(_event_image(event, tel_id))
    if wanted is not None and wanted not in cameras:
        raise MissingInput(f"{path}: has no images of telescope {wanted}")
    for tel_id in sorted(cameras):
        first, stop = rows or (0, len(keys[tel_id]))
        table = np.array(keys[tel_id], np.int64)[first:stop]
        image = np.array(images.pop(tel_id), np.float32).reshape(len(table), -1)
        yield TelescopeImages(
            cameras[tel_id],
            table[:, 0].copy(),
            table[:, 1].copy(),
            table[:, 2].copy(),
            image if cameras[tel_id].n_mirrors == 1 else np.empty((len(table), 0), np.float32),
            None,
        )


def _event_image(event: Any, tel_id: int) -> NDArray[np.float32]:
    """Return the calibrated image; ctapipe fills broken pixels from others, here they stay out."""
    image: NDArray[np.float32]
    image = np.atleast_2d(np.array(event.dl1.tel[tel_id].image, np.float32))[0]
    selected = event.dl0.tel[tel_id].selected_gain_channel
    coefficients = event.monitoring.tel[tel_id].camera.coefficients
    broken = coefficients.outlier_mask if coefficients is not None else None
    if broken is not None:
        broken = np.atleast_2d(broken)
        pixel = np.arange(len(image))
        channel = np.zeros(len(image), int) if selected is None else selected
        image[broken[np.minimum(channel, len(broken) - 1), pixel]] = np.nan
    image[~np.isfinite(image)] = np.nan
    return image
