"""Images of muon rings with known truth: the model that is fitted, and chance. No files here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.muon.intensity import Optics, predict, profile_points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.muon.ring import Vector

__all__ = ["RingSimulation", "draw_images", "draw_rings", "hexagonal_pixels"]

_MAX_CONTAINED: Final = 0.95  # of the camera's radius, for the outer edge of rings that fit in


@dataclass(frozen=True)
class RingSimulation:
    """What is drawn; every ring has the same efficiency and width.

    Attributes
    ----------
    optical_efficiency : float
        Photoelectrons per Cherenkov photon on the mirror.
    width_deg : float
        Gaussian width of the ring, by the optical point spread and the muon's multiple scattering.
    min_radius_deg, max_radius_deg : float
        Radii, uniform between.
    min_impact_m, max_impact_m : float
        Impact distances, uniform in area between; the azimuth is uniform.
    truncated : float
        Part of the rings of which the camera contains only 50 to 99 %. The others lie in it.
    night_sky_pe : float
        Mean charge of the night sky in a pixel, in p.e.; its mean is subtracted, its noise stays.
    pedestal_pe : float
        Standard deviation of the charge in a dark pixel, in p.e.: night sky and electronics.
    spe_width : float
        Standard deviation of the charge of one photoelectron, in p.e.
    broken : float
        Part of the pixels that are not measured; they are the same in all images.
    """

    optical_efficiency: float = 0.2
    width_deg: float = 0.06
    min_radius_deg: float = 1.0
    max_radius_deg: float = 1.25
    min_impact_m: float = 0.0
    max_impact_m: float = 10.0
    truncated: float = 0.0
    night_sky_pe: float = 0.8
    pedestal_pe: float = 1.1
    spe_width: float = 0.5
    broken: float = 0.0


def hexagonal_pixels(n_pixels: int, width_m: float) -> tuple[Vector, Vector, Vector]:
    """Give a round camera of hexagonal pixels: x, y and area.

    Parameters
    ----------
    n_pixels : int
        How many; those nearest to the middle are taken.
    width_m : float
        Flat-to-flat distance.
    """
    n = math.ceil(math.sqrt(n_pixels)) + 4
    row, column = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), indexing="ij")
    x = (column + 0.5 * (row % 2)).ravel() * width_m
    y = row.ravel() * width_m * math.sqrt(3.0) / 2.0
    # Rounded, so that pixels at equal distances are told apart by their place alone.
    order = np.lexsort((x, y, np.round(np.hypot(x, y) / width_m, 6)))[:n_pixels]
    area = np.full(n_pixels, width_m**2 * math.sqrt(3.0) / 2.0)
    return x[order], y[order], area


def draw_rings(
    simulation: RingSimulation, fov_radius_rad: float, n: int, rng: np.random.Generator
) -> dict[str, Vector]:
    """Draw the true parameters of rings.

    Parameters
    ----------
    simulation : RingSimulation
        What to draw.
    fov_radius_rad : float
        Radius of the field of view.
    n : int
        How many.
    rng : Generator
        Source of chance.

    Returns
    -------
    dict of str to array, (n,)
        ``x``, ``y``, ``radius``, ``width`` in rad; ``impact``, ``impact_x``, ``impact_y`` in m;
        ``efficiency``.
    """
    radius = np.radians(rng.uniform(simulation.min_radius_deg, simulation.max_radius_deg, n))
    low, high = simulation.min_impact_m**2, simulation.max_impact_m**2
    impact = np.sqrt(rng.uniform(low, high, n))
    azimuth, direction = rng.uniform(-math.pi, math.pi, (2, n))
    within = np.maximum(_MAX_CONTAINED * fov_radius_rad - radius, 0.0)
    distance = within * np.sqrt(rng.uniform(0.0, 1.0, n))
    # A ring half in the camera has cos α = 0 (`calibdask.muon.ring.containment`).
    half = np.sqrt(np.maximum(fov_radius_rad**2 - radius**2, 0.0))
    nearly = fov_radius_rad - radius
    cut = rng.uniform(0.0, 1.0, n) < simulation.truncated
    distance = np.where(cut, rng.uniform(nearly, np.maximum(half, nearly)), distance)
    return {
        "x": distance * np.cos(direction),
        "y": distance * np.sin(direction),
        "radius": radius,
        "width": np.full(n, math.radians(simulation.width_deg)),
        "impact": impact,
        "impact_x": impact * np.cos(azimuth),
        "impact_y": impact * np.sin(azimuth),
        "efficiency": np.full(n, simulation.optical_efficiency),
    }


def draw_images(
    simulation: RingSimulation,
    rings: dict[str, Vector],
    pixels: tuple[Vector, Vector],
    optics: Optics,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw the charges of pixels for true rings.

    Photoelectrons are Poisson about the predicted image, each with a charge of its own; the night
    sky is Poisson too, and the electronics add Gaussian noise up to the pedestal's deviation.

    Parameters
    ----------
    simulation : RingSimulation
        Noise and broken pixels.
    rings : dict
        From `draw_rings`, n of them.
    pixels : (x, y), arrays of float64, (P,)
        Pixels, in rad.
    optics : Optics
        The telescope.
    rng : Generator
        Source of chance.

    Returns
    -------
    array of float32, (n, P)
        Charges, in p.e.; exactly 0 in broken pixels, as from a camera that does not read them.
    """
    x, y = pixels
    n = len(rings["radius"])
    expected = np.empty((n, len(x)))
    for k in range(n):
        one: dict[str, Any] = {name: float(values[k]) for name, values in rings.items()}
        dx, dy = x - one["x"], y - one["y"]
        names = ("impact_x", "impact_y", "width", "efficiency", "x", "y", "radius")
        parameters = np.array([one[name] for name in names])
        n_points = profile_points(one["radius"], optics)
        expected[k] = predict(parameters, np.hypot(dx, dy), np.arctan2(dy, dx), n_points, optics)
    n_electrons = rng.poisson(expected + simulation.night_sky_pe)
    charge = n_electrons - simulation.night_sky_pe
    charge += rng.standard_normal(charge.shape) * simulation.spe_width * np.sqrt(n_electrons)
    by_sky = simulation.night_sky_pe * (1.0 + simulation.spe_width**2)
    electronics = math.sqrt(max(simulation.pedestal_pe**2 - by_sky, 0.0))
    charge += rng.standard_normal(charge.shape) * electronics
    broken = rng.uniform(0.0, 1.0, len(x)) < simulation.broken
    charge[:, broken] = 0.0
    return charge.astype(np.float32)
