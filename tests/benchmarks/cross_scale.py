"""Scale of telescope types against the truth: pulls, coverage, bias: ``make cross-scale``.

Many simulated arrays, each with throughputs of its own. The scale of a type is the mean ln c of its
telescopes less that of the MSTs, so that it does not depend on which telescope is held fixed. In
one step all pairs make one network; in two, the ratios within types are those of an
inter-calibration of the same showers.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from calibdask.api import load_config
from calibdask.array.absolute import tie_types
from calibdask.array.model import Telescopes
from calibdask.array.network.coefficients import has_error, student_factor
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.pairs import PairEvents
from calibdask.array.network.stages import n_stages, reduce_stage
from calibdask.array.pairs import Layout
from calibdask.array.shower_simulation import simulate_events
from calibdask.array.simulation import ArraySimulation, true_array
from calibdask.io.dl2 import ArrayLayout, TelescopeEvents

if TYPE_CHECKING:
    from calibdask.array.network.model import NetworkOptions
    from calibdask.array.network.state import NetworkFit

__all__ = ["WINDOWS", "Scale", "scales", "study", "table"]

WINDOWS = (0.05, 0.3)
"""Largest asymmetry of the impact distances."""

SIMULATION = ArraySimulation(
    n_files=1, n_telescope_events=40_000, throughput_mean={"LST": 1.1, "MST": 1.0, "SST": 0.8}
)
OPTIONS = {
    "CalculateCrossCalibration.QualityQuery.quality_criteria": [
        ["valid reco", "RandomForestRegressor_tel_is_valid"],
        ["energy threshold", "RandomForestRegressor_tel_energy > 50 * u.GeV"],
        ["gammaness", "RandomForestClassifier_tel_prediction > 0.5"],
    ],
    "RelativeThroughputFitter.reference_telescopes": {"LST": 1, "MST": 5, "SST": 30},
}


@dataclass(frozen=True)
class Scale:
    """Deviation of the scale of a type in one array.

    Attributes
    ----------
    deviation, error, independent : float
        Of ln c, with its clustered error, and the one for independent pairs.
    telescopes : ndarray of float64, shape (2, T)
        Deviations of ln c of its telescopes from that of telescope 5, and their errors.
    """

    deviation: float
    error: float
    independent: float
    telescopes: np.ndarray


def _events(simulation: ArraySimulation) -> TelescopeEvents:
    """What is read from a file of this simulation, without the file."""
    array = true_array(simulation)
    events, images = simulate_events(array, 0)
    order = np.argsort(images["tel_id"], kind="stable")
    own = {name: values[order] for name, values in images.items()}
    tel_id = np.array([*array.tel_type], np.uint16)
    types = tuple(array.tel_type.values())
    layout = ArrayLayout(
        tel_id,
        types,
        tuple(f"{kind}_{kind}_{kind}Cam" for kind in types),
        np.array([*array.position_m.values()]),
    )
    columns = {
        "RandomForestRegressor_tel_energy": own["energy_tev"],
        "RandomForestRegressor_tel_is_valid": own["is_valid"],
        "RandomForestClassifier_tel_prediction": own["gammaness"],
        "HillasReconstructor_tel_impact_distance": own["impact_m"],
    }
    event = own["event"].astype(np.int64)
    return TelescopeEvents(
        layout=layout,
        obs_id=events["obs_id"][event].astype(np.int32),
        event_id=events["event_id"][event].astype(np.int64),
        event=event,
        tel_id=own["tel_id"].astype(np.uint16),
        columns=columns,
        units={name: "TeV" if name.endswith("energy") else "" for name in columns},
        n_events=len(events["event_id"]),
        n_missing={},
    )


def scales(
    seed: int, windows: tuple[float, ...] = WINDOWS, base: ArraySimulation = SIMULATION
) -> dict[tuple[float, int, str], Scale]:
    """Cross-calibrate one array with each window; give the scale of each type.

    Keys are the window, the number of steps, and the type.
    """
    simulation = replace(base, seed=seed)
    truth = true_array(simulation).throughput
    data = _events(simulation)
    found = {}
    for window in windows:
        name = "CalculateCrossCalibration.event_filters.max_distance_asymmetry"
        calibration = load_config("cross-calibration", (), {**OPTIONS, name: window}).calibration
        array = data.layout
        ids = tuple(array.tel_id.tolist())
        places = tuple((x, y, z) for x, y, z in array.position_m.tolist())
        layout = Layout(ids, array.tel_type, array.tel_description, places)
        calibration = replace(calibration, layout=layout)
        events = calibration.events_of(calibration.pair_up(data).rows)
        telescopes = Telescopes(np.array(ids), np.array(array.tel_type))
        for steps in (1, 2):
            state = _fit(calibration.network, events, telescopes, two_steps=steps == 2)
            found |= {
                (window, steps, kind): scale for kind, scale in _compare(state, truth).items()
            }
    return found


def _fit(
    options: NetworkOptions, events: PairEvents, telescopes: Telescopes, *, two_steps: bool
) -> NetworkFit:
    given = covariance = None
    if two_steps:
        inside = np.strings.find(events.tel_type.astype(np.str_), "-") < 0
        columns = (getattr(events, field.name) for field in fields(events))
        of_types = PairEvents(*(None if one is None else one[inside] for one in columns))
        inter = _fit(replace(options, reference_type=None), of_types, telescopes, two_steps=False)
        wider = np.where(has_error(inter), student_factor(inter.freedom), np.nan)
        given = np.where(has_error(inter) & inter.is_main, inter.theta, np.nan)
        covariance = inter.covariance * np.outer(wider, wider)
    state = None
    for stage in range(n_stages(options)):
        total = reduce_stage(stage, options, events, state)
        state = fit_stage(stage, options, total, state, telescopes)
        if given is not None and stage == n_stages(options) - 2:
            state, _ = tie_types(state, given, covariance, options.reference_type)
    return state


def _compare(state: NetworkFit, truth: dict[int, float]) -> dict[str, Scale]:
    found = {}
    usable = has_error(state) & state.is_main
    expected = np.log([truth[number] for number in state.tel_id.tolist()])
    for kind in ("LST", "SST"):
        mine, other = (usable & (state.tel_type == one) for one in (kind, "MST"))
        contrast = mine / mine.sum() - other / other.sum()
        deviation = contrast[usable] @ (state.theta - expected)[usable]
        block = np.ix_(usable, usable)
        variances = [
            contrast[usable] @ one[block] @ contrast[usable]
            for one in (state.covariance, state.covariance_independent)
        ]
        of_type, fixed = np.flatnonzero(mine), np.flatnonzero(state.tel_id == 5)[0]
        against = np.eye(len(expected))[of_type] - np.eye(len(expected))[fixed]
        errors = np.sqrt(np.diagonal(against @ np.nan_to_num(state.covariance) @ against.T))
        errors *= student_factor(state.freedom[of_type])
        off = (state.theta - expected)[of_type] - (state.theta - expected)[fixed]
        found[kind] = Scale(
            float(deviation), *map(float, np.sqrt(variances)), np.stack([off, errors])
        )
    return found


def study(
    n_arrays: int, windows: tuple[float, ...] = WINDOWS, first: int = 0
) -> dict[tuple[float, int, str], list[Scale]]:
    """Cross-calibrate many arrays."""
    results: dict[tuple[float, int, str], list[Scale]] = {}
    for seed in range(first, first + n_arrays):
        for key, scale in scales(seed, windows).items():
            results.setdefault(key, []).append(scale)
    return results


def table(results: dict[tuple[float, int, str], list[Scale]]) -> list[str]:
    """Write a table."""
    names = (
        "distance asymmetry below", "steps", "type against MST", "pull width", "68 % coverage",
        "bias, %", "error, %", "width with independent pairs", "of telescopes", "coverage",
        "values",
    )  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for (window, steps, kind), found in results.items():
        deviation, error, independent = (
            np.array([getattr(one, name) for one in found])
            for name in ("deviation", "error", "independent")
        )
        off, errors = np.concatenate([one.telescopes for one in found], axis=1)
        pulls = off / errors
        weight = error**-2.0
        bias = 100 * np.average(deviation, weights=weight)
        of_bias = 100 / np.sqrt(weight.sum())
        pull = deviation / error
        cells = (
            f"{window:g}",
            str(steps),
            kind,
            f"{np.sqrt(np.mean(pull**2)):.2f} ± {1 / np.sqrt(2 * len(pull)):.2f}",
            f"{np.mean(np.abs(pull) < 1):.2f} ± {np.sqrt(0.683 * 0.317 / len(pull)):.2f}",
            f"{bias:+.3f} ± {of_bias:.3f}",
            f"{100 * np.median(error):.2f}",
            f"{np.sqrt(np.mean((deviation / independent) ** 2)):.2f}",
            f"{np.sqrt(np.mean(pulls**2)):.2f}",
            f"{np.mean(np.abs(pulls) < 1):.2f}",
            str(len(pulls)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=int, default=200)
    parser.add_argument("--windows", type=float, nargs="*", default=list(WINDOWS))
    parser.add_argument("--seed", type=int, default=0, help="of the first array")
    given = parser.parse_args()
    start = time.process_time()
    for line in table(study(given.arrays, tuple(given.windows), given.seed)):
        print(line)
    events = SIMULATION.n_telescope_events
    print(
        f"\n{given.arrays} arrays of {events} telescope-events; {time.process_time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
