"""Golden numbers of the sensor's calibrations: how they are made, and made again.

    python -m tests.golden.sensor

writes ``sensor.json`` anew. Do so when numbers are meant to change, together with a raised
``version`` of the calibration: stored results of the old version are then not used.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

import calibdask
from calibdask.io.maps import read_product
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

GOLDEN: Final = Path(__file__).with_name("sensor.json")
CAMERA: Final = SensorSimulation(
    rows=24, columns=32, n_frames=4, isos=(100, 400), iso_knee=None, seed=11
)
EMVA: Final = SensorSimulation(
    rows=24, columns=32, n_frames=3, emva_points=8, emva_frames=5, kinds=("emva1288",), seed=11
)
RUNS: Final = {
    "stack-images": {"Stacks.clip_sigma": 5.0},
    "bias": {},
    "iso-normalisation": {"IsoNormalisation.bias": "bias"},
    "dark-current": {"DarkCurrent.bias": "bias", "DarkCurrent.iso": "iso-normalisation"},
    "gain": {"Gain.bias": "bias", "Gain.iso": "iso-normalisation"},
    "flatfield": {"FlatField.bias": "bias"},
    "defects": {},
    "emva1288": {},
}
"""Options of each job, in the order in which they need each other's products."""


def compute(folder: Path) -> dict[str, Any]:
    """Simulate into an empty folder, calibrate, and give tables, and two numbers of each map."""
    camera = simulate_sensor(folder / "camera", CAMERA).root
    emva = simulate_sensor(folder / "emva", EMVA).root
    numbers: dict[str, Any] = {"versions": {}}
    for job, options in RUNS.items():
        overrides = {
            name: str(folder / value) if value in RUNS else value for name, value in options.items()
        }
        result = calibdask.run(
            job,
            emva if job == "emva1288" else camera,
            folder / job,
            overrides=overrides,
            cluster="serial",
            report=False,
        )
        numbers["versions"][job] = result.plan.calibration.version
        maps = read_product(folder / job)
        numbers[job] = {
            "tables": {
                path: {name: _plain(table[name]) for name in table.colnames}
                for path, table in result.tables.items()
            },
            "maps": {name: _summary(maps.rows(name)) for name in sorted(maps.layouts)},
        }
    return numbers


def _summary(values: np.ndarray[Any, Any]) -> list[float]:
    """Count what is finite, and give its root mean square."""
    good = np.asarray(values, np.float64)
    good = good[np.isfinite(good)]
    return [len(good), float(np.sqrt(np.mean(good**2))) if len(good) else 0.0]


def _plain(values: Any) -> list[Any]:
    # JSON has no NaN that all programs read.
    plain = np.asarray(values).tolist()
    return [None if isinstance(value, float) and np.isnan(value) else value for value in plain]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        GOLDEN.write_text(json.dumps(compute(Path(name)), indent=1) + "\n", encoding="utf-8")
