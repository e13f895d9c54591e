"""Pulls of all maps, and of held-out frames, of a sensor that has everything at once.

Masked borders, overscan between two amplifiers whose gains and read noise differ, vignetting, and a
lamp that flickers. The sensor is simulated here, with nothing of the package's own simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from calibdask.sensor.apply import Corrections, Term, calibrate
from calibdask.sensor.bias import BiasJob
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.flat import FlatFieldJob
from calibdask.sensor.gain import GainJob
from calibdask.sensor.tiles import SensorFacts
from tests.sensor.toys import key, run_job

__all__ = ["Sensor", "pulls_of", "width"]

TOP, LEFT, OVERSCAN = 10, 12, 8
STATED = 16383


def width(pulls):
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(pulls))))


@dataclass
class Sensor:
    """A sensor of two amplifiers, `shape` lit pixels each."""

    seed: int = 1
    shape: tuple[int, int] = (54, 60)
    flicker: float = 0.01
    step: float = 1.2
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        rng = self.rng = np.random.default_rng(self.seed)
        rows, columns = self.shape
        self.whole = (TOP + rows, LEFT + 2 * columns + OVERSCAN)
        second = LEFT + columns + OVERSCAN
        self.areas = (
            (TOP, LEFT, TOP + rows, LEFT + columns),
            (TOP, second, TOP + rows, second + columns),
        )
        y, x = np.indices(self.whole)
        r2 = ((y - self.whole[0] / 2) ** 2 + (x - self.whole[1] / 2) ** 2) / self.whole[1] ** 2
        right = x >= second - OVERSCAN // 2
        self.truth.update(
            bias=500 + rng.normal(0, 4, self.whole) + 30 * right,
            gain=0.5 * (1 + rng.normal(0, 0.01, self.whole)) * np.where(right, self.step, 1.0),
            readnoise=np.where(right, 3.5, 2.5),
            dark=rng.gamma(4.0, 0.5, self.whole),
            response=(1 + rng.normal(0, 0.01, self.whole)) / (1 + 0.4 * r2),
        )
        lit = np.zeros(self.whole, bool)
        for top, left, bottom, end in self.areas:
            lit[top:bottom, left:end] = True
        self.lit = lit
        self.facts = SensorFacts(
            "one", self.whole, "RGGB", saturation_dn=STATED, bit_depth=14, lit_areas=self.areas
        )

    def frames(self, n, light=0.0, exposure_s=0.0):
        """Return frames with so many electrons of light."""
        true, rng = self.truth, self.rng
        lamp = 1 + (self.flicker if light else 0.0) * rng.normal(size=(n, 1, 1))
        expected = (light * lamp * true["response"] + true["dark"] * exposure_s) * self.lit
        values = true["bias"] + true["gain"] * rng.poisson(expected)
        values = values + rng.normal(0, 1, values.shape) * true["readnoise"]
        return np.clip(np.rint(values), 0, STATED).astype(np.uint16)


def pulls_of(sensor: Sensor) -> dict[str, np.ndarray]:
    """Calibrate the sensor; give pulls of unflagged pixels by map, and those of new frames.

    There are frames enough that a pixel's gain is known to 5 %: to divide by one known to 20 % has
    no normal error.
    """
    bias = {key("bias_readnoise", iso=100): sensor.frames(50)}
    lit, true = sensor.lit, sensor.truth
    found: dict[str, np.ndarray] = {}
    kept: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def keep(job, stacks, name, group):
        maps, _, _ = run_job(job, stacks, sensor.facts, tile_rows=64)
        value, error, mask = (
            maps[f"{group}{end}"] for end in (f"/{name}", f"/{name}_error", "/mask")
        )
        kept[name] = value, error, mask
        return value, error, (mask == 0) & lit

    for name in ("bias", "readnoise"):
        value, error, good = keep(BiasJob(), bias, name, f"{name}/iso100")
        found[name] = ((value - true[name]) / error)[good]
    stacks = {
        key("dark_current", iso=100, exposure_s=t): sensor.frames(20, exposure_s=t)
        for t in (1.0, 20.0, 60.0, 120.0)
    }
    value, error, good = keep(
        DarkCurrentJob(), bias | stacks, "dark_current", "dark_current/iso100"
    )
    found["dark_current"] = ((value - true["dark"] * true["gain"]) / error)[good]
    stacks = {
        key("gain", iso=100, level=f"{i:02d}"): sensor.frames(60, light)
        for i, light in enumerate(np.linspace(1000, 17_000, 14))
    }
    value, error, good = keep(GainJob(), bias | stacks, "gain", "gain/iso100")
    found["gain"] = ((value - true["gain"]) / error)[good]
    stacks = {key("flatfield", iso=100): sensor.frames(30, 15_000.0)}
    value, error, good = keep(FlatFieldJob(), bias | stacks, "flatfield", "flatfield")
    # The scale of a flat field is free, for each channel.
    shape = true["gain"] * true["response"]
    scale = np.ones(sensor.whole)
    for row in (0, 1):
        for column in (0, 1):
            place = (slice(row, None, 2), slice(column, None, 2))
            weight = good[place] / error[place] ** 2
            ratio = (weight * value[place] * shape[place]).sum() / (
                weight * shape[place] ** 2
            ).sum()
            scale[place] = ratio
    found["flatfield"] = ((value - scale * shape) / error)[good]
    found["held-out frames"] = _held_out(sensor, kept, scale)
    return found


def _held_out(sensor, kept, scale):
    terms = {name: Term(value, error, mask > 0) for name, (value, error, mask) in kept.items()}
    corrections = Corrections(
        bias=terms["bias"],
        readnoise=terms["readnoise"].value,
        dark=terms["dark_current"],
        flat=terms["flatfield"],
        gain=terms["gain"],
        saturation_dn=STATED,
    )
    flicker, sensor.flicker = sensor.flicker, 0.0
    (frame,) = sensor.frames(1, 9000.0, 30.0)
    sensor.flicker = flicker
    done = calibrate(frame, corrections, 30.0)
    good = (done.mask == 0) & sensor.lit
    expected = 9000.0 / (scale * sensor.truth["gain"])
    return ((done.value - expected) / done.error)[good]
