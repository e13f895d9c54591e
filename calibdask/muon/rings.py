"""From images to the columns of ctapipe's muon table, and errors beside them. No files here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from calibdask.muon.columns import EFFICIENCY, LIGHT, MEASURED, RING
from calibdask.muon.intensity import Optics, predict, profile_points
from calibdask.muon.intensity_fit import average_over_hole, fit_intensity, misfit
from calibdask.muon.ring import (
    completeness,
    containment,
    fit_ring,
    light,
    noise,
    saturated,
    tailcuts,
)
from calibdask.muon.ring_options import RingOptions
from calibdask.stats.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.io.camera_images import Camera, TelescopeImages
    from calibdask.muon.intensity_fit import Fit
    from calibdask.muon.ring import Mask, Vector

__all__ = [
    "RING_COLUMNS",
    "RING_UNITS",
    "STATUS",
    "TROUBLED",
    "optics_of",
    "predicted_image",
    "rings_of",
    "unusable",
]

STATUS: Final = (
    "fitted",
    "too few pixels",
    "too little light",
    "no ring",
    "too few pixels on the ring",
    "ring outside of the camera",
    "fit not valid",
    "dual mirror",
    "no image",
    "no optics",
    "saturated pixels",
    "noise far above the pedestal",
    "poor fit",
)
"""What became of an image: the meaning of the column `status`."""

_FITTED, _FEW_PIXELS, _LITTLE_LIGHT, _NO_RING, _FEW_ON_RING, _OUTSIDE, _NOT_VALID = range(7)
_DUAL_MIRROR, _NO_IMAGE, _NO_OPTICS, _SATURATED, _NOISY, _POOR_FIT = range(7, len(STATUS))

TROUBLED: Final = (_SATURATED, _NOISY, _POOR_FIT)
"""Rings that were fitted, but whose efficiency is not to be trusted: none of them is used."""


class _Shape(NamedTuple):
    """Of pixels.

    Attributes
    ----------
    area : float
        Over the square of the width.
    variance : float
        Of the area along an axis, over the square of the width.
    factor_of_ctapipe : float
        Area of the circle in a pixel over that of the pixel, by which ctapipe multiplies.
    """

    area: float
    variance: float
    factor_of_ctapipe: float


_SHAPES: Final = {
    "hexagon": _Shape(math.sqrt(3.0) / 2.0, 5.0 / 72.0, math.pi / (2.0 * math.sqrt(3.0))),
    "square": _Shape(1.0, 1.0 / 12.0, math.pi / 4.0),
    "circle": _Shape(math.pi / 4.0, 1.0 / 16.0, 1.0),
}

_DTYPES: Final = {
    "muonparameters_n_pixels_in_ring": np.int64,
    "muonefficiency_is_valid": np.bool_,
    "muonefficiency_parameters_at_limit": np.bool_,
    "muonefficiency_n_iterations": np.int16,
    "muonefficiency_n_starts": np.int16,
    "muonefficiency_n_saturated_pixels": np.int32,
}

RING_COLUMNS: Final = (
    *("obs_id", "event_id", "tel_id", "time_ns"),
    *(name for name, _ in MEASURED),
    "n_broken_pixels",
    "status",
)
"""The columns of `rings_of`, in order."""

RING_UNITS: Final = {name: unit for name, unit in MEASURED if unit} | {"time_ns": "ns"}
"""Unit of each column that has one."""

_N_RING, _N_LIGHT, _N_EFFICIENCY = len(RING), len(LIGHT), len(EFFICIENCY)


def optics_of(camera: Camera, options: RingOptions) -> Optics:
    """Return what the model must know of a telescope."""
    options = RingOptions(*map(float, options))  # one specialisation of kernels
    shape, width = _SHAPES[camera.pixel_shape], float(camera.pixel_width_rad[0])
    if options.of_ctapipe:
        across, along = width, width * shape.factor_of_ctapipe
    else:
        across = width * math.sqrt(12.0 * shape.variance)
        along = width * width * shape.area / across
    return Optics(
        mirror_radius_m=math.sqrt(camera.mirror_area_m2 / math.pi),
        hole_radius_m=options.hole_radius_m,
        pixel_width_rad=across,
        pixel_length_rad=along,
        min_wavelength_m=options.min_lambda_m,
        max_wavelength_m=options.max_lambda_m,
        oversampling=options.oversampling,
        pedestal=options.pedestal,
        spe_width=options.spe_width,
        of_ctapipe=options.of_ctapipe,
    )


def unusable(camera: Camera) -> str | None:
    """Return why no ring can be fitted in the images of a telescope: one of `STATUS`, or None."""
    if camera.n_mirrors != 1:
        return STATUS[_DUAL_MIRROR]
    sound = (
        camera.mirror_area_m2 > 0
        and camera.focal_length_m > 0
        and camera.pixel_shape in _SHAPES
        and np.all(np.isfinite(camera.pixel_x_rad) & np.isfinite(camera.pixel_y_rad))
        and np.all(camera.pixel_width_rad > 0)
    )
    return None if sound else STATUS[_NO_OPTICS]


def rings_of(images: TelescopeImages, options: RingOptions) -> dict[str, NDArray[Any]]:
    """Fit a ring to each image of a telescope.

    Parameters
    ----------
    images : TelescopeImages
        N images of one telescope.
    options : RingOptions
        Cuts and model.

    Returns
    -------
    dict of str to array, (N,)
        The columns `RING_COLUMNS`, in the units of `RING_UNITS`: NaN, -1 or False from where a cut
        fails; pixels that were not measured; and what became of each image, an index into `STATUS`.
    """
    camera = images.camera
    n = len(images.event_id)
    reason = unusable(camera)
    if reason is None:
        measured, status = _measure(images, options)
    else:
        measured = np.tile(_nothing(), (n, 1))
        status = np.full(n, STATUS.index(reason), np.int8)
    columns: dict[str, NDArray[Any]] = {
        "obs_id": np.asarray(images.obs_id, np.int64),
        "event_id": np.asarray(images.event_id, np.int64),
        "tel_id": np.full(n, camera.tel_id, np.int16),
        "time_ns": np.asarray(images.time_ns, np.int64),
    }
    for k, (name, unit) in enumerate(MEASURED):
        values = measured[:, k]
        if unit in ("deg", "deg2"):
            values = values * math.degrees(1.0) ** (2 if unit == "deg2" else 1)
        columns[name] = values.astype(_DTYPES.get(name, np.float64))
    columns["n_broken_pixels"] = np.count_nonzero(np.isnan(images.image), axis=1).astype(np.int16)
    columns["status"] = status
    return columns


def _measure(images: TelescopeImages, options: RingOptions) -> tuple[Vector, NDArray[np.int8]]:
    """Fit all images of a telescope: rows of the measured columns (angles in rad), and status."""
    camera = images.camera
    x = np.ascontiguousarray(camera.pixel_x_rad, np.float64)
    y = np.ascontiguousarray(camera.pixel_y_rad, np.float64)
    width = np.ascontiguousarray(camera.pixel_width_rad, np.float64)
    neighbours = np.ascontiguousarray(camera.neighbours, np.int32)
    field = float(camera.fov_radius_rad)
    cuts = RingOptions(*map(float, options))
    optics = optics_of(camera, cuts)
    thresholds = (cuts.picture_threshold_pe, cuts.boundary_threshold_pe, cuts.min_picture_neighbors)
    rows = np.tile(_nothing(), (len(images.image), 1))
    status = np.empty(len(rows), np.int8)
    # The loop is Python's: compiled, it would be compiled with all that it calls once more.
    for k, row in enumerate(rows):
        image = images.image[k].astype(np.float64)
        if images.image_mask is None:
            mask = tailcuts(image, neighbours, *thresholds)
        else:
            mask = np.ascontiguousarray(images.image_mask[k], np.bool_)
        status[k] = _measure_one(image, mask, x, y, width, field, optics, cuts, row)
    return rows, status


def predicted_image(
    camera: Camera, options: RingOptions, ring: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the image that the model predicts for a fitted ring.

    Parameters
    ----------
    camera : Camera
        The telescope.
    options : RingOptions
        The model.
    ring : mapping of str to float
        One row of the columns of `rings_of`.

    Returns
    -------
    array of float64, (P,)
        Expected charges, in p.e.
    """
    dx = camera.pixel_x_rad - math.radians(ring["muonring_center_fov_lon"])
    dy = camera.pixel_y_rad - math.radians(ring["muonring_center_fov_lat"])
    parameters = np.array(
        [
            ring["muonefficiency_impact_x"],
            ring["muonefficiency_impact_y"],
            math.radians(ring["muonefficiency_width"]),
            ring["muonefficiency_optical_efficiency"],
            math.radians(ring["muonring_center_fov_lon"]),
            math.radians(ring["muonring_center_fov_lat"]),
            math.radians(ring["muonring_radius"]),
        ],
        dtype=np.float64,
    )
    optics = optics_of(camera, options)
    image: NDArray[np.float64] = predict(
        parameters,
        np.hypot(dx, dy),
        np.arctan2(dy, dx),
        profile_points(parameters[6], optics),
        optics,
    )
    return image


def _nothing() -> Vector:
    """Return a row of an image without a ring."""
    row = np.full(_N_RING + _N_LIGHT + _N_EFFICIENCY, np.nan)
    row[_N_RING + 6] = -1.0  # n_pixels_in_ring
    # is_valid, parameters_at_limit, n_iterations, n_starts, n_saturated_pixels
    for k in (5, 6, 15, 16, 19):
        row[_N_RING + _N_LIGHT + k] = 0.0
    return row


@compiled
def _describe_fit(fit: Fit, row: Vector) -> bool:
    """Write a fit into the last columns of a row; tell whether it is valid."""
    x, y, width, efficiency = fit.parameters[:4]
    impact = math.hypot(x, y)
    cosine, sine = (x / impact, y / impact) if impact > 0.0 else (1.0, 0.0)
    v = fit.covariance
    impact_err = math.sqrt(
        cosine * cosine * v[0, 0] + 2.0 * cosine * sine * v[0, 1] + sine * sine * v[1, 1]
    )
    across = sine * sine * v[0, 0] - 2.0 * cosine * sine * v[0, 1] + cosine * cosine * v[1, 1]
    width_err, efficiency_err = math.sqrt(v[2, 2]), math.sqrt(v[3, 3])
    valid = fit.converged and width > 0.0 and efficiency > 0.0
    # As in Minuit: closer to the limit than half an error.
    at_limit = (
        impact < 0.5 * impact_err or width < 0.5 * width_err or efficiency < 0.5 * efficiency_err
    )
    row[0] = width
    row[1] = impact
    row[2] = x
    row[3] = y
    row[4] = efficiency
    row[5] = valid
    row[6] = at_limit
    row[7] = fit.negative_log_likelihood
    row[8] = width_err
    row[9] = impact_err
    row[10] = math.sqrt(across) / impact if impact > 0.0 else np.nan
    row[11] = efficiency_err
    row[12] = cosine * v[0, 3] + sine * v[1, 3]
    row[13] = v[2, 3]
    row[14] = math.sqrt(2.0 * fit.distance)
    row[15] = fit.iterations
    row[16] = fit.starts
    return valid


@compiled
def _measure_one(
    image: Vector,
    mask: Mask,
    x: Vector,
    y: Vector,
    width: Vector,
    fov_radius: float,
    optics: Optics,
    cuts: RingOptions,
    row: Vector,
) -> int:
    """Fit one image; write what was found into its row and give its status."""
    n_usable, n_clean, intensity = 0, 0, 0.0
    for i in range(x.size):
        if math.isfinite(image[i]):
            n_usable += 1
            if mask[i]:
                n_clean += 1
                intensity += image[i]
    if n_usable == 0:
        return _NO_IMAGE
    if not n_clean > cuts.min_pixels:
        return _FEW_PIXELS
    if not intensity > cuts.min_intensity:
        return _LITTLE_LIGHT
    circle, annulus = fit_ring(x, y, image, mask)
    if not circle.radius > 0.0:
        return _NO_RING
    row[0], row[1], row[2] = circle.x, circle.y, circle.radius
    row[3], row[4], row[5] = circle.x_err, circle.y_err, circle.radius_err
    row[6] = math.atan2(circle.y, circle.x)
    row[7] = math.hypot(circle.x, circle.y)
    contained = containment(row[7], circle.radius, fov_radius)
    row[_N_RING] = contained
    row[_N_RING + 1] = completeness(x, y, image, circle, cuts.completeness_threshold)
    found = light(
        x,
        y,
        width,
        image,
        mask,
        circle,
        cuts.ratio_width,
        cuts.ring_integration_width,
        cuts.outer_ring_width,
    )
    for k in range(9):
        row[_N_RING + 2 + k] = found[k]
    n_on_ring = 0
    for i in range(x.size):
        n_on_ring += annulus[i]
    # Below eight points the azimuth profile means nothing.
    n_around = int(2.0 * math.pi * circle.radius / optics.pixel_width_rad)
    if not (n_on_ring > cuts.min_ring_pixels and n_around >= 8):
        return _FEW_ON_RING
    if not contained > cuts.min_containment:
        return _OUTSIDE
    near = np.flatnonzero(annulus)
    n_free = 7 if cuts.fit_circle > 0.0 else 4
    measured = noise(x, y, image, circle)
    believed = measured if measured > 0.0 else optics.pedestal
    used = optics if optics.of_ctapipe > 0.0 else _with_pedestal(optics, believed)
    place = np.array([circle.x, circle.y, circle.radius])
    fit = fit_intensity(x[near], y[near], image[near], place, used, n_free)
    if optics.of_ctapipe == 0.0:
        fit = average_over_hole(fit, x[near], y[near], image[near], used, n_free)
    if cuts.fit_circle > 0.0:
        for k in range(3):
            row[k] = fit.parameters[4 + k]
            row[3 + k] = math.sqrt(fit.covariance[4 + k, 4 + k])
        row[6] = math.atan2(row[1], row[0])
        row[7] = math.hypot(row[0], row[1])
    of_fit = row[_N_RING + _N_LIGHT :]
    valid = _describe_fit(fit, of_fit)
    n_saturated = saturated(image[near], cuts.saturation_pe)
    if valid:
        of_fit[17] = misfit(fit, x[near], y[near], image[near], optics, n_free, believed)
    of_fit[18], of_fit[19] = measured, n_saturated
    status = _FITTED if valid else _NOT_VALID
    if n_saturated > 0:
        status = _SATURATED
    elif believed > cuts.max_noise * optics.pedestal:
        status = _NOISY
    elif valid and of_fit[17] > cuts.max_misfit:
        status = _POOR_FIT
    of_fit[5] = status == _FITTED
    return status


@compiled
def _with_pedestal(optics: Optics, pedestal: float) -> Optics:
    """Put what was measured in place of what was configured."""
    return Optics(
        optics.mirror_radius_m,
        optics.hole_radius_m,
        optics.pixel_width_rad,
        optics.pixel_length_rad,
        optics.min_wavelength_m,
        optics.max_wavelength_m,
        optics.oversampling,
        pedestal,
        optics.spe_width,
        optics.of_ctapipe,
    )
