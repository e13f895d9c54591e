"""DL1 files with images of muon rings of known truth, in the format of ctapipe 0.32.

What is drawn is told in `calibdask.muon.image_simulation`; here is where it is in a file. The
true parameters of each ring are in a table of their own, ``/truth/event/telescope/muon/tel_NNN``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.io.camera_images import Camera, TelescopeImages
from calibdask.io.ctapipe_writer import (
    CameraDescription,
    OpticsDescription,
    TelescopeDescription,
    write_instrument,
    write_observation,
    write_reference_metadata,
    write_telescope_table,
    write_triggers,
)
from calibdask.io.pytables import create_hdf5
from calibdask.muon.image_simulation import (
    MuonImageSimulation,
    draw_images,
    draw_rings,
    focal_plane,
    pixels_of,
)
from calibdask.muon.ring import tailcuts
from calibdask.muon.ring_options import RingOptions
from calibdask.simulation import (
    START_TAI_S,
    ignore_progress,
    new_files,
    random_stream,
    write_files,
    write_truth,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["describe_camera", "simulate_images", "simulate_ring_images"]

TRUTH: Final = "/truth/event/telescope/muon"
FIRST_OBS_ID: Final = 3001
_NS_PER_S: Final = 1_000_000_000
_PIXEL_PITCH_M: Final = 0.05
_FOCAL_LENGTH_M: Final = 28.0
_MIRROR_AREA_M2: Final = 386.73
_UNITS: Final = {
    **dict.fromkeys(("x", "y", "radius", "width"), "rad"),
    **dict.fromkeys(("impact", "impact_x", "impact_y"), "m"),
}


def describe_camera(tel_id: int, options: MuonImageSimulation) -> Camera:
    """Return a telescope like an LST: a mirror of 387 m², pixels every 0.1°."""
    optics = (1, _MIRROR_AREA_M2, _FOCAL_LENGTH_M)
    shape, grid = options.pixel_shape, _grid_of(options)
    return Camera.from_lengths(tel_id, "LST_LST_LSTCam", optics, _pixels_m(options), shape, grid)


def _pixels_m(
    options: MuonImageSimulation,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    return pixels_of(options.n_pixels, _PIXEL_PITCH_M, options.pixel_shape, options.gap)


def _grid_of(options: MuonImageSimulation) -> str:
    return "square" if options.pixel_shape == "square" else "hex"


def simulate_images(
    options: MuonImageSimulation, number: int, tel_id: int
) -> tuple[dict[str, NDArray[np.float64]], TelescopeImages]:
    """Simulate the images of one telescope in one file, as arrays.

    Files are numbered from 0, telescopes from 1. Returned are the true parameters, as from
    `calibdask.muon.image_simulation.draw_rings`, and the images, cleaned with ctapipe's default
    thresholds. Broken pixels read exactly 0.
    """
    # A telescope's broken pixels are the same in all files.
    broken, chance = random_stream(options, 0, tel_id), random_stream(options, 1, number, tel_id)
    camera = describe_camera(tel_id, options)
    focal = focal_plane(
        camera.pixel_x_rad,
        camera.pixel_y_rad,
        options.pixel_shape,
        _PIXEL_PITCH_M * (1.0 - options.gap) / _FOCAL_LENGTH_M,
    )
    n = options.n_rings_per_telescope
    truth = draw_rings(options, camera.fov_radius_rad, n, chance)
    image = draw_images(options, truth, focal, math.sqrt(_MIRROR_AREA_M2 / math.pi), chance)
    image[:, broken.random(options.n_pixels) < options.broken] = 0.0
    cuts = RingOptions()
    thresholds = (cuts.picture_threshold_pe, cuts.boundary_threshold_pe, cuts.min_picture_neighbors)
    mask = np.array(
        [tailcuts(one, camera.neighbours, *thresholds) for one in image.astype(np.float64)]
    )
    # One telescope after the other, so that each ring is an event of its own.
    first = number * n * options.n_telescopes
    event = first + np.arange(n) * options.n_telescopes + tel_id
    start_ns = START_TAI_S * _NS_PER_S
    time_ns = start_ns + (event * (_NS_PER_S / options.rate_hz)).astype(np.int64)
    obs_id = np.full(n, FIRST_OBS_ID + number)
    return truth, TelescopeImages(camera, obs_id, event, time_ns, image, mask)


def simulate_ring_images(
    output: Path,
    options: MuonImageSimulation,
    progress: Callable[[int, int], None] = ignore_progress,
) -> tuple[Path, ...]:
    """Write the DL1 files of a campaign, and ``truth.json`` beside them; return their paths.

    The same options give the same bytes (ConfigError where one of the files exists).
    """
    names = [f"dl1_images_obs{FIRST_OBS_ID + number}.h5" for number in range(options.n_files)]
    paths = new_files(output, names)
    write_files(paths, lambda path, number: _write_file(path, options, number), progress)
    write_truth(output, {"simulation": "muon-images", **asdict(options)})
    return paths


def _write_file(path: Path, options: MuonImageSimulation, number: int) -> None:
    """Write the file of one observation block."""
    known = options.effective_focal_length
    optics = OpticsDescription(
        mirror_area_m2=_MIRROR_AREA_M2,
        equivalent_focal_length_m=_FOCAL_LENGTH_M,
        # Equal, so that images are the same by either.
        effective_focal_length_m=_FOCAL_LENGTH_M if known else float("nan"),
    )
    camera = CameraDescription(
        "LSTCam", *_pixels_m(options), options.pixel_shape, _grid_of(options)
    )
    telescopes = [
        TelescopeDescription(tel_id, optics, camera, (100.0 * tel_id, 0.0, 16.0))
        for tel_id in range(1, options.n_telescopes + 1)
    ]
    obs_id = FIRST_OBS_ID + number
    duration_s = options.n_rings_per_telescope * options.n_telescopes / options.rate_hz
    start_s = START_TAI_S + number * duration_s
    identity = json.dumps([*asdict(options).items(), number])
    made = {one.tel_id: simulate_images(options, number, one.tel_id) for one in telescopes}
    triggers: dict[str, Any] = {
        "obs_id": np.concatenate([images.obs_id for _, images in made.values()]),
        "event_id": np.concatenate([images.event_id for _, images in made.values()]),
        "time_ns": np.concatenate([images.time_ns for _, images in made.values()]),
        "tel_id": np.concatenate([np.full(len(i.obs_id), tel) for tel, (_, i) in made.items()]),
    }
    order = np.argsort(triggers["event_id"])
    with create_hdf5(path) as file:
        write_reference_metadata(
            file,
            description="Simulated images of muon rings with known truth",
            levels="DL1_IMAGES",
            identity=identity,
            obs_id=obs_id,
            start_s=start_s,
        )
        write_instrument(file, telescopes)
        write_observation(file, obs_id, start_s, duration_s, altitude_deg=float("nan"))
        write_triggers(file, telescopes, {name: v[order] for name, v in triggers.items()})
        for tel_id, (truth, images) in made.items():
            keys: dict[str, NDArray[Any]] = {"obs_id": images.obs_id, "event_id": images.event_id}
            columns: dict[str, NDArray[Any]] = {
                "image": images.image,
                "peak_time": np.zeros_like(images.image),
                "image_mask": np.asarray(images.image_mask),
                "is_valid": np.ones(len(images.obs_id), np.bool_),
            }
            write_telescope_table(
                file, "/dl1/event/telescope/images", tel_id, {**keys, **columns}, {}
            )
            write_telescope_table(file, TRUTH, tel_id, {**keys, **truth}, _UNITS)
