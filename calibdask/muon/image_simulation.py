"""Images of muon rings with known truth, drawn photon by photon. No files here.

Nothing of the fit is used: a muon flies through the air above the mirror, each Cherenkov photon
leaves its track at a height and into a direction of its own, hits the mirror or not, is blurred,
and falls into a pixel or between two. So a fit that is judged on these images is not judged on its
own model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from calibdask.simulation import refuse_option, simulation_options
from calibdask.simulation import simulation_option as option

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.spatial import cKDTree

    type Vector = NDArray[np.float64]

__all__ = [
    "Focal",
    "MuonImageSimulation",
    "draw_images",
    "draw_photoelectrons",
    "draw_rings",
    "focal_plane",
    "pixels_of",
]

_MAX_CONTAINED: Final = 0.95  # of the camera's radius, for the outer edge of rings that fit in
_FINE_STRUCTURE: Final = 1.0 / 137.035999177  # CODATA 2022
_MIN_WAVELENGTH_M: Final = 300e-9
_MAX_WAVELENGTH_M: Final = 600e-9


@simulation_options
class MuonImageSimulation:
    """Telescopes like an LST; every ring has the same efficiency and width."""

    n_files: int = option(
        1, "Files, each one observation block (obs_id 3001, 3002, ...).", low=1, high=20_000
    )
    n_rings_per_telescope: int = option(
        100,
        "Rings of each telescope in each file; each is an event of its own.",
        low=1,
        high=100_000,
    )
    n_telescopes: int = option(1, "Telescopes, tel_id 1, 2, ...", low=1, high=1000)
    seed: int = option(0, "Of everything random.", low=0)
    rate_hz: float = option(1.0, "Rings per second, all telescopes together.", low=1e-6, high=1e6)
    effective_focal_length: bool = option(
        True, "Whether the file has it: real files of single telescopes do not."
    )
    n_pixels: int = option(
        1855, "Pixels of the cameras, 0.1 deg wide; 1855 in an LST.", low=100, high=20_000
    )
    hole_radius_m: float = option(0.74, "Radius of the hole in the mirror.", low=0, high=10)
    optical_efficiency: float = option(
        0.2, "Photoelectrons per Cherenkov photon on the mirror.", low=0.001, high=10
    )
    width_deg: float = option(
        0.06,
        "Standard deviation, along each axis, of the isotropic Gaussian that blurs each photon's"
        " direction: the optical point spread and the muon's multiple scattering.",
        low=0.001,
        high=1,
    )
    min_radius_deg: float = option(1.0, "Smallest radius; uniform between.", low=0.1, high=3)
    max_radius_deg: float = option(1.25, "Largest radius.", low=0.1, high=3)
    min_impact_m: float = option(
        0.0,
        "Smallest impact distance; uniform in area between, with uniform azimuth.",
        low=0,
        high=100,
    )
    max_impact_m: float = option(10.0, "Largest impact distance.", low=0, high=100)
    truncated: float = option(
        0.0,
        "Part of the rings of which the camera contains only 50 to 99 %. The others lie in it.",
        low=0,
        high=1,
    )
    night_sky_pe: float = option(
        0.8,
        "Mean charge of the night sky in a pixel, in p.e.; its mean is subtracted, its noise"
        " stays.",
        low=0,
        high=100,
    )
    pedestal_pe: float = option(
        1.1,
        "Standard deviation of the charge in a dark pixel, in p.e.: night sky and electronics.",
        low=0.01,
        high=100,
    )
    spe_width: float = option(
        0.5, "Standard deviation of the charge of one photoelectron, in p.e.", low=0, high=2
    )
    broken: float = option(
        0.0,
        "Part of the pixels that read exactly 0, the same in all images of a telescope.",
        low=0,
        high=1,
    )
    pixel_shape: str = option(
        "hexagon",
        "hexagon or circle, on a hexagonal grid, or square on a square one.",
        choices=["hexagon", "square", "circle"],
    )
    gap: float = option(
        0.0,
        "Distance between the edges of neighbouring pixels, relative to that of their centres;"
        " light that falls between them is lost.",
        low=0,
        high=0.5,
    )
    saturation_pe: float = option(
        0.0, "Largest charge that a pixel can read, in p.e.; 0 for no limit.", low=0, high=1e6
    )
    second_ring: float = option(
        0.0,
        "Part of the images with the ring of a second muon, anywhere in the same ranges.",
        low=0,
        high=1,
    )

    def check(self) -> None:
        """Refuse ranges that are empty, and a night sky noisier than the pedestal."""
        for what in ("radius_deg", "impact_m"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low > high:
                refuse_option(f"min_{what}", low, f"at most max_{what}, {high:g}")
        by_sky = math.sqrt(self.night_sky_pe * (1.0 + self.spe_width**2))
        if self.pedestal_pe < by_sky:
            refuse_option(
                "pedestal_pe", self.pedestal_pe, f"at least {by_sky:.3g}, which the night sky makes"
            )


class Focal(NamedTuple):
    """The focal plane, as light falls into it.

    Attributes
    ----------
    tree : cKDTree
        The centres of the pixels, in rad.
    shape : str
        Of the pixels.
    half_width : float
        Half their flat-to-flat distance, side or diameter, without the gap, in rad.
    """

    tree: cKDTree
    shape: str
    half_width: float


def pixels_of(n_pixels: int, pitch: float, shape: str, gap: float) -> tuple[Vector, Vector, Vector]:
    """Return a round camera: x, y and area of its pixels.

    Parameters
    ----------
    n_pixels : int
        How many; those nearest to the middle are taken.
    pitch : float
        Distance of the centres of neighbours, in any unit.
    shape : str
        "hexagon", "square" or "circle".
    gap : float
        Distance between the edges of neighbours, relative to the pitch.

    Returns
    -------
    x, y, area : arrays of float64, (n_pixels,)
        In this unit, and its square. Hexagons have flat sides towards their neighbours along x.
    """
    n = math.ceil(math.sqrt(n_pixels)) + 4
    row, column = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), indexing="ij")
    if shape == "square":
        x, y = (values.ravel() * pitch for values in (column, row))
    else:
        x = (column + 0.5 * (row % 2)).ravel() * pitch
        y = row.ravel() * pitch * math.sqrt(3.0) / 2.0
    # Rounded, so that pixels at equal distances are told apart by their place alone.
    order = np.lexsort((x, y, np.round(np.hypot(x, y) / pitch, 6)))[:n_pixels]
    width = pitch * (1.0 - gap)
    per_square = {"hexagon": math.sqrt(3.0) / 2.0, "square": 1.0, "circle": math.pi / 4.0}[shape]
    area = np.full(n_pixels, width**2 * per_square)
    return np.asarray(x[order]), np.asarray(y[order]), area


def focal_plane(x: Vector, y: Vector, shape: str, width: float) -> Focal:
    """Make a focal plane of pixels at x and y, in rad; see `Focal`."""
    from scipy.spatial import cKDTree

    return Focal(cKDTree(np.column_stack([x, y])), shape, 0.5 * width)


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


def draw_photoelectrons(
    ring: dict[str, float], mirror_radius_m: float, hole_radius_m: float, rng: np.random.Generator
) -> tuple[Vector, Vector]:
    """Draw the photoelectrons of one muon: where their photons fall in the focal plane.

    A charge e gives off 2π α sin²θ (1/λ₁ - 1/λ₂) photons per length of its track (I. Frank &
    I. Tamm 1937), at any height and azimuth with equal probability. A photon from the height h
    hits the plane of the mirror h tan θ away from the muon's own impact, and is seen in the
    direction opposite to where it went.

    Parameters
    ----------
    ring : dict of str to float
        One ring of `draw_rings`. The radius is the Cherenkov angle θ.
    mirror_radius_m, hole_radius_m : float
        The mirror is a disc with a hole in its middle.
    rng : Generator
        Source of chance.

    Returns
    -------
    x, y : arrays of float64
        In rad.
    """
    angle, slope = ring["radius"], math.tan(ring["radius"])
    per_m = 1.0 / _MIN_WAVELENGTH_M - 1.0 / _MAX_WAVELENGTH_M
    per_m *= 2.0 * math.pi * _FINE_STRUCTURE * math.sin(angle) ** 2 * ring["efficiency"]
    # From above this height all photons miss the mirror.
    height_m = (mirror_radius_m + ring["impact"]) / slope
    n = rng.poisson(per_m * height_m)
    away_m = slope * height_m * rng.random(n)
    azimuth = rng.uniform(-math.pi, math.pi, n)
    cosine, sine = np.cos(azimuth), np.sin(azimuth)
    from_axis_m = np.hypot(ring["impact_x"] - away_m * cosine, ring["impact_y"] - away_m * sine)
    hit = (from_axis_m < mirror_radius_m) & (from_axis_m >= hole_radius_m)
    blur_x, blur_y = ring["width"] * rng.standard_normal((2, np.count_nonzero(hit)))
    x = ring["x"] + angle * cosine[hit] + blur_x
    y = ring["y"] + angle * sine[hit] + blur_y
    return x, y


def collect(focal: Focal, x: Vector, y: Vector) -> NDArray[np.int64]:
    """Count the photoelectrons in each pixel; those beside and between pixels are lost."""
    _, nearest = focal.tree.query(np.column_stack([x, y]))
    dx, dy = np.abs(np.column_stack([x, y]) - focal.tree.data[nearest]).T
    if focal.shape == "circle":
        inside = np.hypot(dx, dy) < focal.half_width
    elif focal.shape == "square":
        inside = np.maximum(dx, dy) < focal.half_width
    else:  # flat sides towards y: the axes of a camera are turned into those of the sky
        inside = np.maximum(dy, 0.5 * dy + 0.5 * math.sqrt(3.0) * dx) < focal.half_width
    counts: NDArray[np.int64] = np.bincount(nearest[inside], minlength=focal.tree.n)
    return counts


def draw_images(
    simulation: MuonImageSimulation,
    rings: dict[str, Vector],
    focal: Focal,
    mirror_radius_m: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw the charges of pixels for true rings.

    Each photoelectron has a charge of its own; the night sky is Poisson, and the electronics add
    Gaussian noise up to the pedestal's deviation.

    Parameters
    ----------
    simulation : MuonImageSimulation
        Noise, saturation and second rings.
    rings : dict
        From `draw_rings`, n of them.
    focal : Focal
        P pixels, from `focal_plane`.
    mirror_radius_m : float
        Radius of the mirror.
    rng : Generator
        Source of chance.

    Returns
    -------
    array of float32, (n, P)
        Charges, in p.e.
    """
    n = len(rings["radius"])
    n_electrons = rng.poisson(simulation.night_sky_pe, (n, focal.tree.n))
    fov_radius = float(np.hypot(*focal.tree.data.T).max())
    for k in range(n):
        muons = [{name: float(values[k]) for name, values in rings.items()}]
        if rng.random() < simulation.second_ring:
            (another,) = zip(*draw_rings(simulation, fov_radius, 1, rng).values(), strict=True)
            muons.append(dict(zip(rings, map(float, another), strict=True)))
        for muon in muons:
            seen = draw_photoelectrons(muon, mirror_radius_m, simulation.hole_radius_m, rng)
            n_electrons[k] += collect(focal, *seen)
    charge = n_electrons.astype(np.float64) - simulation.night_sky_pe
    charge += rng.standard_normal(charge.shape) * simulation.spe_width * np.sqrt(n_electrons)
    by_sky = simulation.night_sky_pe * (1.0 + simulation.spe_width**2)
    electronics = math.sqrt(max(simulation.pedestal_pe**2 - by_sky, 0.0))
    charge += rng.standard_normal(charge.shape) * electronics
    if simulation.saturation_pe > 0.0:
        np.minimum(charge, simulation.saturation_pe, out=charge)
    return charge.astype(np.float32)
