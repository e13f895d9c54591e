"""The demonstration: simulate an array, calibrate it, compare with the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from calibdask.api import load_config, run
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine import events

if TYPE_CHECKING:
    from pathlib import Path

    from calibdask.array.inter_calibration import InterCalibration
    from calibdask.engine.events import Listener
    from calibdask.engine.run import RunResult

__all__ = ["CONFIG", "run_demo"]

CONFIG = """\
# Inter-calibration of the simulated array: see `calibdask init inter-calibration` for all options.
CalculateEnergyAsymmetry:
  event_filters:
    max_distance_asymmetry: 0.2
  QualityQuery:
    quality_criteria:
      - ["valid reco", "RandomForestRegressor_tel_is_valid"]
      - ["energy threshold", "RandomForestRegressor_tel_energy > 50 * u.GeV"]
      - ["gammaness", "RandomForestClassifier_tel_prediction > 0.5"]
  PairFinder:
    max_impact_distance:
      - [type, "LST*", 125.0]
      - [type, "MST*", 125.0]
      - [type, "SST*", 225.0]
CalculateInterCalibration:
  RelativeThroughputFitter:
    reference_telescopes: {LST: 1, MST: 5, SST: 30}
"""


def run_demo(directory: Path, *, cluster: str, workers: int, listener: Listener) -> str:
    """Simulate into a directory, calibrate, and give the comparison as text.

    Parameters
    ----------
    directory : Path
        Where everything goes.
    cluster, workers
        As for :func:`calibdask.run`.
    listener : callable
        Called with what happens.
    """
    data = directory / "dl2"
    output = directory / "inter_calibration.h5"
    config = directory / "inter_calibration.yaml"
    directory.mkdir(parents=True, exist_ok=True)
    config.write_text(CONFIG, encoding="utf-8")
    if not (data / "truth.json").exists():
        simulate_array(
            data,
            ArraySimulation(n_files=4, n_telescope_events=200_000, seed=2026),
            lambda done, total: listener(events.Progress("simulating", done, total)),
        )
    truth = json.loads((data / "truth.json").read_text(encoding="utf-8"))["throughput"]
    prepared = load_config("inter-calibration", config)
    calibration = replace(
        cast("InterCalibration", prepared.calibration),
        truth=tuple((int(number), float(value)) for number, value in truth.items()),
    )
    result = run(
        calibration,
        data,
        output,
        cluster=cluster,
        workers=workers,
        overwrite=True,
        listener=listener,
        command=f"calibdask inter-calibration -c {config} -i {data} -o {output}",
    )
    return f"{_compare(result, calibration.truth)}\n\n{result.account_text()}"


def _compare(result: RunResult, truth: tuple[tuple[int, float], ...]) -> str:
    """Write true against fitted throughput, telescope by telescope, and how well they agree.

    All telescopes of a component share showers and the reference, so that their pulls are
    correlated: the agreement is chi2 = r C^-1 r of all deviations r with their covariance C.
    """
    from scipy.special import chdtrc

    true = dict(truth)
    path, table = next(iter(result.tables.items()))
    reference = {row["tel_type"]: true[row["tel_id"]] for row in table if "R" in row["flags"]}
    lines = ["type  tel   true   fitted   error    pull"]
    deviation: dict[int, float] = {}
    for row in table:
        expected = true[row["tel_id"]] / reference.get(row["tel_type"], np.nan)
        text = f"{row['tel_type']:<4} {row['tel_id']:>4}  {expected:.4f}"
        if not np.isfinite(row["value"]):
            lines.append(f"{text}  no value: {row['flags']}")
        elif row["error"] == 0:
            lines.append(f"{text}  {row['value']:.4f}  (reference, held fixed)")
        else:
            deviation[int(row["tel_id"])] = row["value"] - expected
            pull = deviation[int(row["tel_id"])] / row["error"]
            lines.append(f"{text}  {row['value']:.4f}  {row['error']:.4f}  {pull:+6.2f}")
    place = {number: k for k, number in enumerate(deviation)}
    covariance = np.zeros((len(place), len(place)))
    for row in result.tables[f"{path}_covariance"]:
        one, two = (place.get(int(row[f"tel_id_{k}"])) for k in (1, 2))
        if one is not None and two is not None:
            covariance[one, two] = covariance[two, one] = row["covariance"]
    off = np.array(list(deviation.values()))
    chi2 = float(off @ np.linalg.solve(covariance, off))
    p_value = float(chdtrc(len(off), chi2))
    lines.append(
        f"\nfitted - true of {len(off)} telescopes, with their covariance:"
        f" chi2 {chi2:.1f}, p-value {p_value:.2f}"
    )
    return "\n".join(lines)
