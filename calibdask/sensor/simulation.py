"""Simulated frames of a camera with known truth; no files, NumPy only.

One pixel of one frame, at an exposure t under a light that gives L electrons at the centre::

    electrons         n ~ Poisson(L (1 + prnu) / vignetting + dark t)
    nonlinearity      n (1 - nonlinearity n / full_well), and no more than full_well
    signal            DN = black + g(ISO) (fpn + K (n + a)) + b,  a ~ N(0, read_noise_e) before
                      the amplifier, b ~ N(0, read_noise_dn) behind it
    digitisation      rounded, and cut to 0 and 2**bits - 1

where prnu, dark, K and fpn have a value of their own in each pixel, some pixels are hot,
``g(ISO) = min(ISO, iso_knee) / ISO_min``, and the vignetting is a radial polynomial:
``vignetting(r) = 1 + k0 r^2 + k1 r^4 + ...`` with r = 1 in the corner farthest from its centre (the
form of Adobe's FixVignetteRadial, which SPECTACLE fits).

Random numbers: the sensor, each frame, and faults have their own streams. A frame depends on the
options, the seed and what it is, not on how many others there are; faults leave it as it was.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import ConfigError
from calibdask.simulation import random_stream, refuse_option, simulation_options
from calibdask.simulation import simulation_option as option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Map = NDArray[np.float64]

__all__ = [
    "FAULTS",
    "SIMULATED_KINDS",
    "FrameSpec",
    "SensorSimulation",
    "SensorTruth",
    "assign_faults",
    "expose",
    "frame_specs",
    "true_sensor",
]

SIMULATED_KINDS: Final = (
    "bias_readnoise",
    "dark_current",
    "emva1288",
    "flatfield",
    "gain",
    "iso_normalisation",
    "light",
    "linearity",
)

FAULTS: Final = (
    "truncated",
    "wrong_shape",
    "wrong_exposure",
    "missing_iso",
    "other_camera",
    "outlier",
    "duplicate",
)
"""What can be wrong with a frame, in the order in which frames are given faults."""

_SENSOR, _FRAME, _FAULT, _COSMIC = range(4)  # random streams
_REFERENCE_C: Final = 20.0
_STACK_SECONDS: Final = 3600
_BAND: Final = 32  # rows; with another number the same seed gives other frames


_ZERO_UP: Any = {"low": 0, "high": 100_000}
_FRACTION: Any = {"low": 0, "high": 1}


@simulation_options
class SensorSimulation:
    """A camera, the series of frames that it takes, and what is wrong with some of them.

    ISO speeds: gain, flat field and linearity have the lowest, light frames the two lowest, dark
    frames the lowest and the third lowest.
    """

    rows: int = option(96, "Rows of the sensor; LibRaw opens DNG from 22 on.", low=1, high=40_000)
    columns: int = option(128, "Columns of the sensor, likewise.", low=1, high=40_000)
    n_frames: int = option(10, "Frames of a stack.", low=1, high=100_000)
    seed: int = option(1, "Of everything random.", low=0, high=2**64)
    kinds: tuple[str, ...] = option(
        ("bias_readnoise", "dark_current", "flatfield", "gain", "iso_normalisation"),
        "Which series. light: a scene, to be calibrated; linearity: several exposures; emva1288:"
        " pairs and stacks, no filters, no vignetting, as PNG with their descriptor.",
        choices=SIMULATED_KINDS,
    )
    file_format: str = option("dng", "Format of the frames.", choices=("dng", "fits"))
    layout: str = option(
        "spectacle",
        "spectacle: folders and names by which SPECTACLE knows kind, ISO speed and exposure, with"
        " the camera file; flat: all frames in one folder, and frames.yaml describes them.",
        choices=("spectacle", "flat"),
    )
    make: str = option("Calibdask", "Maker of the camera.")
    model: str = option("Simulated One", "The camera.")
    pattern: str = option(
        "RGGB", "Colours of the first 2 x 2 pixels; empty for a sensor without filters.",
        choices=("", "RGGB", "BGGR", "GRBG", "GBRG"),
    )  # fmt: skip
    bits: int = option(12, "Of the analogue-to-digital converter.", low=8, high=16)
    black_level: tuple[int, ...] = option(
        (128, 129, 130, 131), "DN: four, in the order of the pattern, or one for all."
    )
    isos: tuple[int, ...] = option(
        (100, 200, 400, 800, 1600, 3200), "ISO speeds, rising.", low=1, high=60_000
    )
    iso_knee: int | None = option(
        1600, "From this ISO speed on, the amplification is constant.", low=1, high=60_000
    )
    gain_dn_e: float = option(
        0.3, "K, in DN per electron at the lowest ISO speed.", low=1e-3, high=1e3
    )
    gain_spread: float = option(0.02, "Relative standard deviation of K.", low=0, high=0.3)
    prnu: float = option(0.01, "Relative deviation of the pixels' sensitivity.", low=0, high=0.3)
    vignetting: tuple[float, ...] = option(
        (0.6, -0.2, 0.3), "Coefficients k0, k1, ... of the correction.", low=-10, high=10
    )
    vignetting_centre: tuple[float, ...] = option(
        (0.515, 0.487), "Its centre, as fractions of columns and rows.", **_FRACTION
    )
    full_well_e: float = option(20_000.0, "Most electrons a pixel holds.", low=10, high=1e7)
    nonlinearity: float = option(
        0.0, "Fraction of the signal that is lost at full well.", low=0, high=0.5
    )
    fixed_pattern_dn: float = option(
        0.5, "Standard deviation of the offsets, DN at the lowest ISO speed.", low=0, high=1000
    )
    read_noise_e: float = option(4.0, "Before the amplifier, electrons.", low=0, high=1000)
    read_noise_dn: float = option(0.8, "Behind the amplifier, DN.", low=0, high=1000)
    read_noise_spread: float = option(
        0.1, "Standard deviation of the logarithm of the noise before the amplifier.", **_FRACTION
    )
    dark_current_e_s: float = option(
        5.0, "Median dark current at 20 deg C, electrons per second.", low=0, high=1e6
    )
    dark_current_spread: float = option(0.2, "Standard deviation of its logarithm.", low=0, high=2)
    hot_fraction: float = option(0.002, "Of the pixels: they are hot.", **_FRACTION)
    hot_current_e_s: float = option(
        400.0, "Mean of the exponential law of what hot pixels have more.", low=0, high=1e7
    )
    dark_doubling_c: float = option(
        6.3, "Rise of temperature that doubles the dark current.", low=0.1, high=1000
    )
    temperatures_c: tuple[float, ...] = option(
        (20.0,), "Of the dark frames; others are taken at the first.", low=-270, high=200
    )
    dark_exposures_s: tuple[float, ...] = option(
        (1.0, 4.0, 8.0, 16.0, 32.0), "Exposures of the dark frames.", low=0, high=1e5
    )
    gain_levels: tuple[float, ...] = option(
        (0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "Illumination of the gain frames, as fractions of saturation.", low=0, high=5,
    )  # fmt: skip
    flat_level: float = option(0.6, "Illumination of the flat field.", low=0, high=5)
    iso_level: float = option(
        0.7, "Illumination of the ISO series at the highest amplification.", low=0, high=5
    )
    linearity_exposures_s: tuple[float, ...] = option(
        (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
        "Exposures of that series; the longest reaches 0.9 of saturation.", low=1e-6, high=1e5,
    )  # fmt: skip
    emva_points: int = option(
        30, "Exposures of the EMVA 1288 series, to beyond saturation.", low=3, high=1000
    )
    emva_frames: int = option(50, "Frames of its spatial stacks.", low=3, high=10_000)
    quantum_efficiency: float = option(0.5, "Electrons per photon of it.", low=0.001, high=1)
    n_truncated: int = option(0, "Fault: files that are cut short.", **_ZERO_UP)
    n_wrong_shape: int = option(0, "Fault: frames of another size.", **_ZERO_UP)
    n_wrong_exposure: int = option(0, "Fault: frames with thrice their exposure.", **_ZERO_UP)
    n_missing_iso: int = option(0, "Fault: frames that state no ISO speed.", **_ZERO_UP)
    n_other_camera: int = option(0, "Fault: frames of another camera.", **_ZERO_UP)
    n_outlier: int = option(0, "Fault: frames under another light.", **_ZERO_UP)
    outlier_factor: float = option(1.5, "Times the light that these got.", low=0, high=100)
    n_duplicate: int = option(0, "Fault: frames that are there twice.", **_ZERO_UP)
    cosmic_rays: float = option(
        0.0, "Fault: mean hits in a frame, of 1000 electrons and more.", low=0, high=1e5
    )
    saturated_fraction: float = option(
        0.0, "Fault: of the pixels, that always have the largest value.", **_FRACTION
    )

    def check(self) -> None:
        """Refuse options that contradict each other (ConfigError)."""
        for name in ("kinds", "isos", "temperatures_c", "dark_exposures_s", "gain_levels"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                refuse_option(name, getattr(self, name), "one or more different values")
        if tuple(sorted(self.isos)) != self.isos:
            refuse_option("isos", self.isos, "rising values")
        if len(self.black_level) not in ((1, 4) if self.pattern else (1,)):
            wanted = "one value or four" if self.pattern else "one value, as there are no filters"
            refuse_option("black_level", self.black_level, wanted)
        if len(self.vignetting_centre) != 2:
            refuse_option("vignetting_centre", self.vignetting_centre, "two fractions")
        if not all(0 <= level < 2**self.bits - 1 for level in self.black_level):
            refuse_option("black_level", self.black_level, f"values below {2**self.bits - 1}")

    @property
    def white_level(self) -> int:
        """Largest value of a pixel, in DN."""
        return int(2**self.bits - 1)

    @property
    def black_levels(self) -> tuple[int, ...]:
        """Black level of each pixel of the pattern; one without filters."""
        same = self.pattern and len(self.black_level) == 1
        return self.black_level * 4 if same else self.black_level

    def amplification(self, iso: int) -> float:
        """Return g: the signal at an ISO speed over that at the lowest one."""
        knee = self.isos[-1] if self.iso_knee is None else self.iso_knee
        return min(iso, knee) / min(self.isos[0], knee)

    def saturation_e(self, iso: int) -> float:
        """Return the electrons at which a mean pixel saturates."""
        swing_dn = self.white_level - max(self.black_level)
        return min(self.full_well_e, swing_dn / (self.amplification(iso) * self.gain_dn_e))


# -- the sensor ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SensorTruth:
    """What the sensor is, pixel by pixel; each map has the shape (rows, columns).

    Attributes
    ----------
    options : SensorSimulation
        What was asked for.
    black_dn : ndarray of float
        Black level.
    fpn_dn : ndarray of float
        Offset at the lowest ISO speed; the bias at an ISO speed is ``black + g(ISO) fpn``.
    gain_dn_e : ndarray of float
        K at the lowest ISO speed.
    prnu : ndarray of float
        Relative deviation of the sensitivity.
    vignetting : ndarray of float
        Factor by which the light of the edges must be multiplied.
    dark_e_s : ndarray of float
        Dark current at 20 degrees Celsius, hot pixels included.
    read_noise_e : ndarray of float
        Read noise before the amplifier.
    hot, saturated : ndarray of bool
        Pixels of large dark current; pixels that always have the largest value.
    scene_e : ndarray of float
        Electrons that the scene of the light frames gives to a perfect pixel.
    """

    options: SensorSimulation
    black_dn: Map
    fpn_dn: Map
    gain_dn_e: Map
    prnu: Map
    vignetting: Map
    dark_e_s: Map
    read_noise_e: Map
    hot: NDArray[np.bool_]
    saturated: NDArray[np.bool_]
    scene_e: Map

    def bias_dn(self, iso: int) -> Map:
        """Return the mean of a frame without light and exposure, before it is digitised."""
        return self.black_dn + self.options.amplification(iso) * self.fpn_dn

    def read_noise_dn(self, iso: int, rows: slice = slice(None)) -> Map:
        """Return the standard deviation of such a frame, with that of digitisation (1/12 DN^2)."""
        before = self.gain_dn_e[rows] * self.read_noise_e[rows]
        before *= self.options.amplification(iso)
        noise: Map = np.hypot(before, self.options.read_noise_dn)
        return noise

    def warmth(self, temperature_c: float) -> float:
        """Return the dark current at a temperature over that at 20 degrees Celsius."""
        return float(2.0 ** ((temperature_c - _REFERENCE_C) / self.options.dark_doubling_c))

    def maps(self) -> dict[str, NDArray[Any]]:
        """Return the maps by name, as they are written: with 7 digits."""
        maps = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "options"}
        return {
            name: values.astype(np.float32) if values.dtype == float else values
            for name, values in maps.items()
        }


def true_sensor(options: SensorSimulation) -> SensorTruth:
    """Draw a sensor; the same options and seed give the same one."""
    rows, columns = shape = options.rows, options.columns
    # One stream a map, so that an option of one does not move another.
    fpn, gain, prnu, dark, hot, hot_dark, noise, stuck = (
        random_stream(options, _SENSOR, number) for number in range(8)
    )
    levels = np.array(options.black_levels, float)
    black = np.resize(levels.reshape(2, 2), (2, 2)) if levels.size == 4 else levels.reshape(1, 1)
    black_dn = np.tile(black, (rows // black.shape[0] + 1, columns // black.shape[1] + 1))
    is_hot = hot.random(shape) < options.hot_fraction
    dark_e_s = options.dark_current_e_s * np.exp(
        options.dark_current_spread * dark.standard_normal(shape)
    )
    dark_e_s += np.where(is_hot, options.hot_current_e_s * hot_dark.standard_exponential(shape), 0)
    return SensorTruth(
        options,
        black_dn=np.ascontiguousarray(black_dn[:rows, :columns]),
        fpn_dn=options.fixed_pattern_dn * fpn.standard_normal(shape),
        gain_dn_e=options.gain_dn_e * (1 + options.gain_spread * gain.standard_normal(shape)),
        prnu=options.prnu * prnu.standard_normal(shape),
        vignetting=_vignetting(options),
        dark_e_s=dark_e_s,
        read_noise_e=options.read_noise_e
        * np.exp(options.read_noise_spread * noise.standard_normal(shape)),
        hot=is_hot,
        saturated=stuck.random(shape) < options.saturated_fraction,
        scene_e=_scene(options),
    )


def _vignetting(options: SensorSimulation) -> Map:
    """Evaluate the radial polynomial (Adobe's DNG specification 1.4, FixVignetteRadial)."""
    rows, columns = options.rows, options.columns
    centre_x, centre_y = (
        fraction * size
        for fraction, size in zip(options.vignetting_centre, (columns, rows), strict=True)
    )
    y, x = np.mgrid[0:rows, 0:columns]
    farthest = np.hypot(max(centre_x, columns - centre_x), max(centre_y, rows - centre_y))
    r_squared = ((x - centre_x) ** 2 + (y - centre_y) ** 2) / farthest**2
    factor = np.ones((rows, columns))
    for power, coefficient in enumerate(options.vignetting, start=1):
        factor += coefficient * r_squared**power
    if factor.min() <= 0:
        refuse_option(
            "vignetting", options.vignetting, "coefficients whose factor is above 0 everywhere"
        )
    return factor


def _scene(options: SensorSimulation) -> Map:
    """Return a smooth scene with bars of several widths, from 5 to 70 % of saturation."""
    y, x = np.mgrid[0 : options.rows, 0 : options.columns]
    across, down = x / options.columns, y / options.rows
    scene: Map = 0.3 + 0.2 * np.cos(3 * across) * np.sin(2 * down + 0.5)
    scene += 0.15 * (np.sin(2 * np.pi * 20 * across**2) > 0)
    return options.saturation_e(options.isos[min(1, len(options.isos) - 1)]) * scene


# -- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """One frame to be simulated.

    Attributes
    ----------
    kind : str
        What it is taken for, by the names of `calibdask.sensor.metadata`.
    iso : int
        ISO speed.
    exposure_s : float
        Time of exposure, in s.
    level : str
        Name of the illumination.
    light_e : float
        Electrons that the light gives to a perfect pixel in the centre; of the scene, a factor.
    index : int
        Its place in its stack.
    stack : int
        The place of its stack among all.
    temperature_c : float
        Temperature of the sensor.
    """

    kind: str
    iso: int
    exposure_s: float
    level: str
    light_e: float
    index: int
    stack: int
    temperature_c: float

    @property
    def time(self) -> datetime:
        """When it is taken: stacks an hour apart, frames a second."""
        start = datetime(2025, 1, 1, tzinfo=UTC)
        seconds = _STACK_SECONDS * self.stack + self.index
        return (start + timedelta(seconds=seconds)).replace(tzinfo=None)

    @property
    def stream_key(self) -> int:
        """A number for what it is, so that its random numbers depend on nothing else."""
        text = f"{self.kind} {self.iso} {self.exposure_s!r} {self.level} {self.temperature_c!r}"
        return zlib.crc32(text.encode())

    def photons(self, options: SensorSimulation) -> float | None:
        """Return the photons of a frame of the EMVA 1288 series; None for others."""
        if not self.kind.startswith("emva"):
            return None
        return self.light_e / options.quantum_efficiency


def frame_specs(options: SensorSimulation) -> list[FrameSpec]:
    """List all frames of the series asked for."""
    lowest, first_c = options.isos[0], options.temperatures_c[0]
    full_e = options.saturation_e(lowest)
    highest = max(options.amplification(iso) for iso in options.isos)
    stacks: list[tuple[str, int, float, str, float, float, int]] = []

    def add(
        kind: str,
        iso: int,
        exposure_s: float,
        light_e: float = 0.0,
        level: str = "",
        temperature_c: float = first_c,
        n_frames: int = options.n_frames,
    ) -> None:
        stacks.append((kind, iso, exposure_s, level, light_e, temperature_c, n_frames))

    for kind in options.kinds:
        match kind:
            case "bias_readnoise":
                for iso in options.isos:
                    add(kind, iso, 0.000125)
            case "dark_current":
                for iso in {lowest: 0, options.isos[min(2, len(options.isos) - 1)]: 0}:
                    for temperature_c in options.temperatures_c:
                        for exposure_s in options.dark_exposures_s:
                            add(kind, iso, exposure_s, temperature_c=temperature_c)
            case "flatfield":
                add(kind, lowest, 0.01, options.flat_level * full_e, "white")
            case "gain":
                for number, fraction in enumerate(options.gain_levels):
                    add(kind, lowest, 0.01, fraction * full_e, f"level{number:02}")
            case "iso_normalisation":
                for iso in options.isos:
                    add(kind, iso, 0.01, options.iso_level * full_e / highest)
            case "light":
                for iso in options.isos[:2]:
                    add(kind, iso, 0.5, 1.0, "scene")
            case "linearity":
                longest = max(options.linearity_exposures_s)
                for exposure_s in options.linearity_exposures_s:
                    add(kind, lowest, exposure_s, 0.9 * full_e * exposure_s / longest)
            case _:
                _add_emva(options, add, full_e)
    return [
        FrameSpec(kind, iso, exposure_s, level, light_e, index, stack, temperature_c)
        for stack, (kind, iso, exposure_s, level, light_e, temperature_c, n) in enumerate(stacks)
        for index in range(n)
    ]


def _add_emva(options: SensorSimulation, add: Callable[..., None], full_e: float) -> None:
    """Add pairs with and without light from nearly nothing to beyond saturation, and stacks."""
    iso = options.isos[0]
    exposures = np.linspace(0.02, 1.15, options.emva_points) * 10e-3
    middle = float(exposures[options.emva_points // 2 - 1])
    for exposure in exposures:
        light_e = full_e * exposure / 10e-3
        add("emva_bright", iso, float(exposure), light_e, n_frames=2)
        add("emva_dark", iso, float(exposure), n_frames=2)
    for kind, light_e in (("bright", full_e * middle / 10e-3), ("dark", 0.0)):
        add(f"emva_{kind}_spatial", iso, middle, light_e, n_frames=options.emva_frames)


def assign_faults(options: SensorSimulation, specs: Sequence[FrameSpec]) -> dict[int, str]:
    """Choose which frames get which fault, none more than one; by place in `specs`.

    Raises
    ------
    ConfigError
        There are more faults than frames that can have one.
    """
    able = [place for place, spec in enumerate(specs) if not spec.kind.startswith("emva")]
    wanted = [fault for fault in FAULTS for _ in range(getattr(options, f"n_{fault}"))]
    if len(wanted) > len(able):
        raise ConfigError(f"{len(wanted)} faults are more than the {len(able)} frames for them")
    chosen = random_stream(options, _FAULT).permutation(len(able))[: len(wanted)]
    return {able[int(place)]: fault for place, fault in zip(chosen, wanted, strict=True)}


def expose(truth: SensorTruth, spec: FrameSpec, light_factor: float = 1.0) -> NDArray[np.uint16]:
    """Take one frame.

    Parameters
    ----------
    truth : SensorTruth
        The sensor.
    spec : FrameSpec
        What to take.
    light_factor : float
        So many times the light; the random numbers stay what they are.

    Returns
    -------
    ndarray of uint16, shape (rows, columns)
        The pixels, in DN.
    """
    options = truth.options
    rng = random_stream(options, _FRAME, spec.stream_key, spec.index)
    frame = np.empty((options.rows, options.columns), np.uint16)
    hits = _cosmic_rays(options, spec)
    for first in range(0, options.rows, _BAND):  # what a band needs stays in the cache
        band = slice(first, first + _BAND)
        frame[band] = _expose_band(truth, spec, light_factor, band, rng, hits)
    frame[truth.saturated] = options.white_level
    return frame


def _expose_band(
    truth: SensorTruth,
    spec: FrameSpec,
    light_factor: float,
    band: slice,
    rng: np.random.Generator,
    hits: Sequence[NDArray[Any]],
) -> Map:
    options = truth.options
    mean = truth.dark_e_s[band] * (spec.exposure_s * truth.warmth(spec.temperature_c))
    if light := light_factor * spec.light_e:
        lit = light * (1 + truth.prnu[band])
        if not spec.kind.startswith("emva"):  # which has an integrating sphere and no lens
            lit /= truth.vignetting[band]
        if spec.kind == "light":
            lit *= truth.scene_e[band]
        mean += np.maximum(lit, 0, out=lit)
    electrons = rng.poisson(mean).astype(float)
    rows, columns, charge_e = hits
    inside = (rows >= band.start) & (rows < band.stop)
    np.add.at(electrons, (rows[inside] - band.start, columns[inside]), charge_e[inside])
    if options.nonlinearity:
        electrons -= options.nonlinearity / options.full_well_e * electrons**2
    np.minimum(electrons, options.full_well_e, out=electrons)
    # Both read noises are normal, so that one number stands for their sum.
    noise = rng.standard_normal(electrons.shape, dtype=np.float32)
    dn: Map = truth.gain_dn_e[band] * electrons
    dn += truth.fpn_dn[band]
    dn *= options.amplification(spec.iso)
    dn += truth.black_dn[band]
    dn += noise * truth.read_noise_dn(spec.iso, band)
    np.rint(dn, out=dn)
    np.clip(dn, 0, options.white_level, out=dn)
    return dn


def _cosmic_rays(options: SensorSimulation, spec: FrameSpec) -> tuple[NDArray[Any], ...]:
    """Return rows, columns and electrons of the hits of one frame."""
    rng = random_stream(options, _COSMIC, spec.stream_key, spec.index)
    number = rng.poisson(options.cosmic_rays)
    rows = rng.integers(0, options.rows, number)
    columns = rng.integers(0, options.columns, number)
    return rows, columns, 1000 * (1 + rng.standard_exponential(number))
