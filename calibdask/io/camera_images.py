"""Cameras and their images, from whatever file they are.

Coordinates are those of ctapipe's telescope frame: the position in the focal plane over the focal
length, with fov_lon along the camera's y and fov_lat along its x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from calibdask.errors import MissingInput

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


__all__ = [
    "Camera",
    "FocalLengthChoice",
    "ImageInfo",
    "TelescopeImages",
    "measured_pixels",
    "neighbours_of",
    "no_focal_length",
]

FocalLengthChoice = Literal["EFFECTIVE", "EQUIVALENT"]


# An extracted charge is never 0 to the last bit: a pixel that reads 0 was not measured. But where a
# larger part of the camera reads 0, the data were reduced, and 0 stands for "no light".
_MAX_FRACTION_DEAD: Final = 0.1


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


def no_focal_length(path: Path | str, description: str, choice: str) -> MissingInput:
    """Return the error of a telescope without a focal length of this kind."""
    other = "EQUIVALENT" if choice == "EFFECTIVE" else "EFFECTIVE"
    return MissingInput(
        f"{path}: {description} has no {choice.lower()} focal length; set"
        f" focal_length_choice: {other}, or write the file again with it"
    )


def measured_pixels(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mark the pixels that were not measured, in place: infinite, or dead."""
    image[~np.isfinite(image)] = np.nan
    dead = image == 0
    few = np.count_nonzero(dead, axis=1) < _MAX_FRACTION_DEAD * image.shape[1]
    image[dead & few[:, None]] = np.nan
    return image
