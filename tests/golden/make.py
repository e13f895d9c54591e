"""Golden numbers of the array calibrations: how they are made, and made again.

    python -m tests.golden.make

writes ``inter_calibration.json``, ``timing_calibration.json`` and ``scales.json`` (types on one
scale, image sizes) anew. Do so when numbers are
meant to change, together with a raised ``version`` of the calibration: stored results of the old
version are then not used.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

import calibdask
from calibdask.array.asymmetry_estimation import EnergyAsymmetryEstimation
from calibdask.array.cross import CrossCalibration
from calibdask.array.inter_calibration import InterCalibration
from calibdask.array.network.pairs import PairSummary
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.array.timing import TimingCalibration
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext, map_shard

GOLDEN: Final = Path(__file__).with_name("inter_calibration.json")
TIMING: Final = Path(__file__).with_name("timing_calibration.json")
SCALES: Final = Path(__file__).with_name("scales.json")
CONFIGS: Final = Path(__file__).parents[2] / "configs"
ESTIMATORS: Final = ("log-mean", "log-median", "log-clipped", "asymmetry")
OPTIONS: Final = ArraySimulation(
    n_files=2,
    n_events=300,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    unsorted_layout=True,
    nan_valid_fraction=0.01,
    outlier_fraction=0.01,
    sparse_telescopes={8: 4},
    seed=2026,
)
TIMING_SECTION: Final = "CalculateTimingCalibration"
CONFIG: Final = """\
CalculateEnergyAsymmetry:
  event_filters: {max_distance_asymmetry: 0.3}
  QualityQuery:
    quality_criteria:
      - ["valid reco", "RandomForestRegressor_tel_is_valid"]
RelativeThroughputFitter:
  reference_telescopes: {LST: 1, MST: 5, SST: 30}
"""


def compute(folder: Path) -> dict[str, Any]:
    """Simulate into an empty folder, calibrate with each estimator, and give the numbers."""
    made = simulate_array(folder / "dl2", OPTIONS)
    config = folder / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    numbers: dict[str, Any] = {
        "versions": {
            kind.name: kind.version for kind in (EnergyAsymmetryEstimation, InterCalibration)
        },
        "map": _first_summary(folder, config, made.paths),
    }
    for estimator in ESTIMATORS:
        result = calibdask.run(
            "inter-calibration",
            made.paths,
            folder / f"{estimator}.h5",
            config=config,
            overrides={"RelativeThroughputFitter.estimator": estimator},
            cluster="serial",
            report=False,
        )
        table = result.tables["/dl2/monitoring/subarray/inter_calibration"]
        numbers[estimator] = {name: _plain(table[name]) for name in table.colnames}
    return numbers


def compute_timing(folder: Path) -> dict[str, Any]:
    """Simulate into an empty folder, find the offsets with each estimator, and give the numbers."""
    options = replace(OPTIONS, time_outlier_fraction=0.02, missing_time_fraction=0.01)
    made = simulate_array(folder / "dl2", options)
    numbers: dict[str, Any] = {"version": TimingCalibration.version}
    for estimator in ("mean", "median", "clipped"):
        result = calibdask.run(
            TimingCalibration.name,
            made.paths,
            folder / f"{estimator}.h5",
            overrides={f"{TIMING_SECTION}.estimator": estimator},
            cluster="serial",
            report=False,
        )
        for end in ("", "_residuals"):
            table = result.tables[f"/dl2/monitoring/subarray/timing_calibration{end}"]
            numbers[f"{estimator}{end}"] = {name: _plain(table[name]) for name in table.colnames}
    return numbers


def compute_scales(folder: Path) -> dict[str, Any]:
    """Simulate into an empty folder, calibrate types against each other and by image sizes."""
    made = simulate_array(folder / "dl2", replace(OPTIONS, n_events=600))
    numbers: dict[str, Any] = {"version": [CrossCalibration.version, InterCalibration.version]}
    for job, config in (
        ("cross-calibration", "cross_calibration.yaml"),
        ("inter-calibration", "inter_calibration_of_image_sizes.yaml"),
    ):
        result = calibdask.run(
            job,
            made.paths,
            folder / f"{job}.h5",
            config=CONFIGS / config,
            cluster="serial",
            report=False,
        )
        for path, table in result.tables.items():
            name = path.removeprefix("/dl2/monitoring/subarray/")
            if not name.endswith(("_covariance", "_pairs")):
                numbers[name] = {column: _plain(table[column]) for column in table.colnames}
    return numbers


def _first_summary(folder: Path, config: Path, paths: tuple[Path, ...]) -> dict[str, Any]:
    """What the map step stores for the first shard."""
    # Of the mean: other estimators store a histogram besides.
    plan = calibdask.plan(
        "inter-calibration",
        paths,
        config=config,
        overrides={"RelativeThroughputFitter.estimator": "log-mean"},
    )
    context = WorkContext(plan.calibration, Store(folder / "store"))
    shard = plan.shards[0]
    outcome = map_shard(context, 0, shard, plan.address(0, shard, {}), {}, None)
    with context.store.open(str(outcome.address)) as pack:
        summary = PairSummary.from_arrays(pack.group("cell []"))
    arrays = {name: _plain(values) for name, values in summary.to_arrays().items()}
    flow = outcome.envelope.cut_flow if outcome.envelope else None
    return {"cut_flow": dict(flow or {}), "summary": arrays}


def _plain(values: Any) -> list[Any]:
    # JSON has no NaN that all programs read.
    plain = np.asarray(values).tolist()
    return [None if isinstance(value, float) and np.isnan(value) else value for value in plain]


if __name__ == "__main__":
    for path, compute_all in (
        (GOLDEN, compute),
        (TIMING, compute_timing),
        (SCALES, compute_scales),
    ):
        with tempfile.TemporaryDirectory() as name:
            text = json.dumps(compute_all(Path(name)), indent=1)
        path.write_text(text + "\n", encoding="utf-8")
