"""A simulated camera in memory, and jobs run on it tile by tile without files or engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from calibdask.engine.protocol import InputRef
from calibdask.io.frame_info import FrameInfo
from calibdask.sensor.metadata import StackKey
from calibdask.sensor.stream import Frame
from calibdask.sensor.summary import summarise
from calibdask.sensor.tiles import SensorFacts

__all__ = ["Camera", "run_job"]

PATTERNS = {"RGGB": ((0, 1), (3, 2)), "": ((0, 0), (0, 0))}


@dataclass(frozen=True)
class Camera:
    """A camera whose every pixel is known.

    Signal chain: electrons = Poisson(light x response + dark x time), clipped at the full well;
    DN = rint(bias(ISO) + factor(ISO) x gain x electrons + read noise), clipped to the converter.
    """

    seed: int = 1
    shape: tuple[int, int] = (48, 64)
    pattern: str = "RGGB"
    bits: int = 12
    black: float = 128.0
    gain_dn: float = 0.25
    read_noise_dn: float = 1.3
    full_well: float = 1e9
    knee: float = 1600.0
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, 0])
        y, x = np.indices(self.shape)
        height, width = self.shape
        r2 = ((y - 0.487 * height) ** 2 + (x - 0.515 * width) ** 2) / (
            (0.515 * width) ** 2 + (0.513 * height) ** 2
        )
        dark = rng.gamma(4.0, 0.25, self.shape)  # electrons/s
        hot = rng.random(self.shape) < 0.01
        dark[hot] = rng.uniform(50.0, 1500.0, hot.sum())
        self.truth.update(
            fixed_pattern=rng.normal(0.0, 2.0, self.shape),
            gain=self.gain_dn * (1 + rng.normal(0.0, 0.02, self.shape)),
            response=1 + rng.normal(0.0, 0.01, self.shape),
            vignetting=1 + 0.5 * r2 + 0.1 * r2**2,
            dark=dark,
            hot=hot,
        )

    @property
    def top(self):
        return 2**self.bits - 1

    @property
    def sensor(self):
        return SensorFacts(
            "Toy camera", self.shape, self.pattern, saturation_dn=self.top, bit_depth=self.bits,
            first="2026-01-01T00:00:00", last="2026-01-02T00:00:00",
        )  # fmt: skip

    def factor(self, iso):
        return 1 + (min(iso, self.knee) - 100) / 100

    def bias(self, iso):
        return self.black + self.truth["fixed_pattern"] * np.sqrt(self.factor(iso))

    def frames(
        self, n, *, iso=100, light=0.0, exposure_s=0.0, vignetted=False, flicker=0.0, salt=0
    ):
        """Frames of one stack: light in electrons per pixel."""
        rng = np.random.default_rng(
            [self.seed, n, iso, int(light * 1000), int(exposure_s * 1e6), salt]
        )
        even = light * self.truth["response"] / (self.truth["vignetting"] if vignetted else 1.0)
        lamp = 1 + flicker * rng.normal(0.0, 1.0, (n, 1, 1))
        electrons = rng.poisson(even * lamp + self.truth["dark"] * exposure_s, (n, *self.shape))
        electrons = np.minimum(electrons, self.full_well)
        values = self.bias(iso) + self.factor(iso) * self.truth["gain"] * electrons
        values = values + rng.normal(
            0.0, self.read_noise_dn * np.sqrt(self.factor(iso)), values.shape
        )
        return np.clip(np.rint(values), 0, self.top).astype(np.uint16)


def run_job(calibration, stacks, sensor, *, tile_rows=16, given=None, tables=None):
    """Run a job on frames in memory.

    Parameters
    ----------
    calibration : StackCalibration
        The job.
    stacks : mapping of StackKey to ndarray, shape (n_frames, H, W)
        The frames.
    sensor : SensorFacts
        Of the camera.
    tile_rows : int
        Rows of a tile.
    given : mapping, optional
        Maps of other products by product and name, of the whole sensor.
    tables : mapping, optional
        Their tables.

    Returns
    -------
    maps : dict of str to ndarray
        As they would be written.
    result
        Of `join`.
    calibration : StackCalibration
        As planned.
    """
    plan, values = [], {}
    for key in sorted(stacks):
        frames = []
        for number, image in enumerate(stacks[key]):
            name = f"{key.label}/{number}"
            info = FrameInfo(
                path=name, shape=sensor.shape, dtype=str(image.dtype), pattern=sensor.pattern,
                kind=key.kind, iso=None if key.iso < 0 else key.iso, level=key.level,
            )  # fmt: skip
            frame = Frame(InputRef(name, name, image.nbytes, 0), info, 0)
            frames.append(frame)
            values[frame.name] = image
        plan.append((key, tuple(frames)))
    options = calibration.stacks.model_copy(update={"tile_rows": tile_rows})
    calibration = replace(
        calibration, sensor=sensor, plan_frames=tuple(plan), stacks=options,
        product_tables=tables or {},
    )  # fmt: skip
    stream = [(key.label, one.name, values[one.name]) for key, frames in plan for one in frames]
    summaries = summarise(
        stream,
        calibration.tiles,
        saturation=sensor.saturation_dn or np.inf,
        lit_areas=sensor.lit_areas,
    )
    fits = {}
    for cell, summary in zip(calibration.cells, summaries.values(), strict=True):
        tile = calibration.tile(cell, summary)
        rows = slice(tile.y0, tile.y1)
        products = {
            name: {one: array[rows] for one, array in maps.items()}
            for name, maps in (given or {}).items()
        }
        fits[cell] = calibration.fit_tile(replace(tile, given=products))
    result = calibration.join({cell: fit.facts for cell, fit in fits.items()})
    finished = [calibration.finished(cell, fit.maps, result) for cell, fit in fits.items()]
    maps = {name: np.concatenate([one[name] for one in finished]) for name in finished[0]}
    return maps, result, calibration


def key(kind, **fields):
    """Make the key of a stack."""
    return StackKey(kind, **fields)
