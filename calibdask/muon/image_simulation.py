"""Images of muon rings with known truth: the model that is fitted, and chance. No files here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import ConfigError
from calibdask.muon.intensity import Optics, predict, profile_points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.muon.ring import Vector

__all__ = ["MuonImageSimulation", "draw_images", "draw_rings", "hexagonal_pixels"]

_MAX_CONTAINED: Final = 0.95  # of the camera's radius, for the outer edge of rings that fit in


# Least and greatest values of the options.
_RANGES: Final = {
    "n_files": (1, 20_000),
    "n_rings_per_telescope": (1, 100_000),
    "n_telescopes": (1, 1000),
    "seed": (0, math.inf),
    "rate_hz": (1e-6, 1e6),
    "n_pixels": (100, 20_000),
    "hole_radius_m": (0, 10),
    "optical_efficiency": (0.001, 10),
    "width_deg": (0.001, 1),
    "min_radius_deg": (0.1, 3),
    "max_radius_deg": (0.1, 3),
    "min_impact_m": (0, 100),
    "max_impact_m": (0, 100),
    "night_sky_pe": (0, 100),
    "pedestal_pe": (0.01, 100),
    "spe_width": (0, 2),
}


@dataclass(frozen=True)
class MuonImageSimulation:
    """What to simulate: telescopes like an LST; every ring has the same efficiency and width.

    Parameters
    ----------
    n_files : int
        Files, each one observation block (obs_id 3001, 3002, ...).
    n_rings_per_telescope : int
        Rings of each telescope in each file; each is an event of its own.
    n_telescopes : int
        Telescopes, tel_id 1, 2, ...
    seed : int
        Of everything random.
    rate_hz : float
        Rings per second, all telescopes together.
    effective_focal_length : bool
        Whether the file knows it: real files of single telescopes do not.
    n_pixels : int
        Pixels of the cameras, 0.1 deg wide; 1855 in an LST.
    hole_radius_m : float
        Radius of the hole in the mirror.
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
        Part of the pixels that read exactly 0; they are the same in all images of a telescope.
    """

    n_files: int = 1
    n_rings_per_telescope: int = 100
    n_telescopes: int = 1
    seed: int = 0
    rate_hz: float = 1.0
    effective_focal_length: bool = True
    n_pixels: int = 1855
    hole_radius_m: float = 0.74
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

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, bool) != (option.type == "bool") or (
                option.type == "int" and not isinstance(value, int)
            ):
                raise ConfigError(f"{option.name}: {value!r} was given, expected: {option.type}")
            low, high = _RANGES.get(option.name, (0, 1))
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"{option.name}: {value!r} was given, expected: between {low:g} and {high:g}"
                )
        for what in ("radius_deg", "impact_m"):
            if getattr(self, f"min_{what}") > getattr(self, f"max_{what}"):
                raise ConfigError(f"min_{what} is larger than max_{what}")
        if self.pedestal_pe**2 < self.night_sky_pe * (1.0 + self.spe_width**2):
            raise ConfigError(
                f"pedestal_pe: {self.pedestal_pe:g} was given, but the night sky alone makes"
                f" {math.sqrt(self.night_sky_pe * (1.0 + self.spe_width**2)):.3g}"
            )


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
    return np.asarray(x[order]), np.asarray(y[order]), area


def draw_rings(
    simulation: MuonImageSimulation, fov_radius_rad: float, n: int, rng: np.random.Generator
) -> dict[str, Vector]:
    """Draw the true parameters of rings.

    Parameters
    ----------
    simulation : MuonImageSimulation
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
    simulation: MuonImageSimulation,
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
    simulation : MuonImageSimulation
        Noise.
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
        Charges, in p.e.
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
    electronics = math.sqrt(simulation.pedestal_pe**2 - by_sky)
    charge += rng.standard_normal(charge.shape) * electronics
    return charge.astype(np.float32)
