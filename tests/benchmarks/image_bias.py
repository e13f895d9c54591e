"""Where the biases of image sizes come from, and what is left of them: ``make image-bias``.

Effects are switched on and off in the simulation, selections and estimators in the calibration. All
numbers are of ln c, in percent; biases do not shrink with more events, errors do.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.api import load_config
from calibdask.array.image_size import harder_selections, pair_size, systematic
from calibdask.array.model import log_ratio
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.model import NetworkOptions
from calibdask.array.network.pairs import PairEvents, distance_range
from calibdask.array.network.stages import reduce_stage
from calibdask.array.pairs import ALTITUDE, Layout, select_pairs
from calibdask.array.shower_simulation import simulate_events
from calibdask.array.simulation import ArraySimulation, true_array

if TYPE_CHECKING:
    from calibdask.array.network.state import NetworkFit

__all__ = ["METHODS", "SETTINGS", "Bias", "biases", "rows_of", "study", "table"]

INDIVIDUAL_PE = 80.0
OPTIONS = {
    "CalculateImageAsymmetry.event_filters.equidistant_event_selection": [0.05, 0.1],
    "CalculateImageAsymmetry.QualityQuery.quality_criteria": [
        ["gammaness", "RandomForestClassifier_tel_prediction > 0.5"]
    ],
}

# -- what is simulated --------------------------------------------------------------------------

REAL = ArraySimulation(n_files=1, n_telescope_events=150_000, seed=3)
SETTINGS = {
    "all effects": REAL,
    # Distances known, no slope: a size fluctuates by the Poisson law alone.
    "Poisson noise only": replace(
        REAL, light_fall_m=1e9, core_margin_m=0.0, energy_range_tev=(0.01, 100.0)
    ),
    # No Poisson law: a size fluctuates by how the light falls with distance alone.
    "slope of the light only": replace(REAL, photon_statistics=False),
    "SST, from 3 TeV": replace(REAL, energy_range_tev=(3.0, 100.0)),
}
"""What is simulated; of the trigger there are two versions of each, see `METHODS`."""


@dataclass(frozen=True)
class Method:
    """How sizes are selected and compared.

    Attributes
    ----------
    select : str
        "each size": both reach 80 photoelectrons. "pair's size": in addition, the geometric mean
        reaches twice that. "true light": what both would see with c = 1 has a mean of 80; nobody
        can select by it, but it has no bias from any cut (and the trigger is out of the way).
    estimator : str
        Of the network.
    distance_term : bool
        Whether the slope over the distance is fitted.
    """

    select: str
    estimator: str = "log-mean"
    distance_term: bool = False


METHODS = {
    "true light, mean asymmetry": Method("true light", "asymmetry"),
    "true light, mean log": Method("true light"),
    "true light, mean log, distance term": Method("true light", distance_term=True),
    "each size, mean asymmetry (peer)": Method("each size", "asymmetry"),
    "each size, mean log": Method("each size"),
    "each size, mean log, distance term": Method("each size", distance_term=True),
    "pair's size, mean log": Method("pair's size"),
    "pair's size, mean log, distance term (default)": Method("pair's size", distance_term=True),
}
DEFAULT = "pair's size, mean log, distance term (default)"
FACTORS = (1.25, 1.5, 3.0)
"""Of the pair's least size over each telescope's, besides 2."""


# -- one fit ------------------------------------------------------------------------------------


@dataclass
class _Events:
    """Telescope events in memory, as they would be read."""

    event: np.ndarray
    tel_id: np.ndarray
    columns: dict[str, np.ndarray]
    units: dict[str, str]
    light: np.ndarray
    n_lacking: dict[int, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@cache
def _options(least: float) -> Any:
    name = "CalculateImageAsymmetry.event_filters.minimum_individual_intensity"
    prepared = load_config("image-asymmetry-estimation", (), OPTIONS | {name: least})
    return prepared.calibration.options


def _events(
    simulation: ArraySimulation, block: int, radius_m: float = np.inf
) -> tuple[_Events, Layout]:
    array = true_array(simulation)
    showers, images = simulate_events(array, block)
    inside = np.hypot(showers["core_x_m"], showers["core_y_m"]) < radius_m
    images = {name: values[inside[images["event"]]] for name, values in images.items()}
    columns = {
        "hillas_intensity": images["hillas_intensity"].astype(np.float64),
        "RandomForestClassifier_tel_prediction": images["gammaness"],
        "HillasReconstructor_tel_impact_distance": images["impact_m"],
        ALTITUDE: np.full(len(images["event"]), np.radians(simulation.pointing_alt_deg)),
    }
    order = sorted(array.tel_type, key=lambda tel: (array.tel_type[tel], tel))
    kinds = tuple(array.tel_type[tel] for tel in order)
    layout = Layout(tuple(order), kinds, kinds, tuple(array.position_m[tel] for tel in order))
    units = {"HillasReconstructor_tel_impact_distance": "m"}
    light = images["expected_pe"] / images["throughput"]
    return _Events(images["event"], images["tel_id"], columns, units, light), layout


@dataclass(frozen=True)
class _Rows:
    """Pair events of many blocks, with what selections look at."""

    pairs: PairEvents
    size: np.ndarray
    smaller: np.ndarray
    light: np.ndarray
    impact_1_m: np.ndarray
    impact_2_m: np.ndarray
    limit: np.ndarray

    def only(self, kinds: tuple[str, ...]) -> _Rows:
        """Pairs of telescopes of some types."""
        kept = np.isin(self.pairs.tel_type, kinds)
        parts = (getattr(self.pairs, one.name) for one in fields(PairEvents))
        pairs = PairEvents(*(None if part is None else part[kept] for part in parts))
        return _Rows(pairs, *(getattr(self, one.name)[kept] for one in fields(_Rows)[1:]))

    def of(self, method: Method, factor: float) -> tuple[np.ndarray, np.ndarray | None]:
        if method.select == "true light":
            return self.light >= INDIVIDUAL_PE, None
        kept = self.smaller >= INDIVIDUAL_PE
        if method.select == "each size":
            return kept, None
        least = np.full(len(kept), factor * INDIVIDUAL_PE)
        return kept & (self.size >= least), least


def rows_of(simulation: ArraySimulation, n_blocks: int, radius_m: float = np.inf) -> _Rows:
    """Pair events of showers that fall within a radius."""
    parts, first_event = [], 0
    for block in range(n_blocks):
        events, layout = _events(simulation, block, radius_m)
        pairs = select_pairs(events, _options(0.0), layout)
        one, two = pairs.row_1, pairs.row_2
        kind = dict(zip(layout.tel_id, layout.tel_type, strict=True))
        x = events.columns["hillas_intensity"]
        impact_m = events.columns["HillasReconstructor_tel_impact_distance"]
        parts.append(
            (
                events.event[one] + first_event,
                np.array([kind[int(tel)] for tel in events.tel_id[one]]),
                events.tel_id[one],
                events.tel_id[two],
                x[one],
                x[two],
                np.sqrt(events.light[one] * events.light[two]),
                impact_m[one],
                impact_m[two],
                pairs.limit,
            )
        )
        first_event += int(events.event.max()) + 1
    event, kind, tel_1, tel_2, x_1, x_2, light, d_1, d_2, limit = map(
        np.concatenate, zip(*parts, strict=True)
    )
    return _Rows(
        PairEvents(
            event, kind, tel_1, tel_2, x_1, x_2, log_ratio(d_1, d_2), distance_range(d_1, d_2)
        ),
        pair_size(x_1, x_2),
        np.minimum(x_1, x_2),
        light,
        d_1,
        d_2,
        limit,
    )


def _fit(rows: _Rows, kept: np.ndarray, method: Method) -> NetworkFit:
    pairs = rows.pairs
    columns = [pairs.event, pairs.tel_type, pairs.tel_id_1, pairs.tel_id_2, pairs.x_1, pairs.x_2]
    if method.distance_term:
        columns += [pairs.log_distance, pairs.distance_range]
    events = PairEvents(*(column[kept] for column in columns))
    options = NetworkOptions(method.estimator, n_min=10, normalisation="weighted-mean")
    state = None
    for stage in (0, 1):
        state = fit_stage(stage, options, reduce_stage(stage, options, events, state), state)
    return state


@dataclass(frozen=True)
class Bias:
    """What is wrong with the throughputs of one type, in ln c.

    Attributes
    ----------
    deviation, error, systematic : ndarray, shape (T,)
        Fitted less true value, both about their mean; statistical and stated systematic error.
    drawn, drawn_error : float
        By which fraction the fitted values are drawn towards their mean.
    """

    deviation: np.ndarray
    error: np.ndarray
    systematic: np.ndarray
    drawn: float
    drawn_error: float

    @property
    def rms(self) -> float:
        """Root mean square of what statistics do not explain."""
        return float(np.sqrt(max(np.mean(self.deviation**2 - self.error**2), 0.0)))


def biases(
    simulation: ArraySimulation, rows: _Rows, method: Method, factor: float = 2.0
) -> dict[str, Bias]:
    """Fit and compare with the truth, by type."""
    kept, least = rows.of(method, factor)
    fit = _fit(rows, kept, method)
    passed = harder_selections(rows.size, least, rows.impact_1_m, rows.impact_2_m, rows.limit)
    stated = np.zeros(len(fit.tel_id))
    if method.select == "pair's size" and least is not None:
        full = {name: np.zeros(len(kept), np.bool_) for name in passed}
        for name, holds in passed.items():
            full[name] = kept & holds
        stated = systematic(fit, {name: _fit(rows, rows_, method) for name, rows_ in full.items()})
    truth = true_array(simulation).throughput
    found = {}
    for kind in np.unique(fit.tel_type).tolist():
        of_kind = (fit.tel_type == kind) & np.isfinite(fit.theta) & fit.is_main
        log_c = np.log([truth[int(tel)] for tel in fit.tel_id[of_kind]])
        log_c -= log_c.mean()
        centred = np.eye(len(log_c)) - 1 / len(log_c)
        theta = centred @ fit.theta[of_kind]
        covariance = centred @ fit.covariance[np.ix_(of_kind, of_kind)] @ centred
        along = log_c / np.sum(log_c**2)
        found[kind] = Bias(
            theta - log_c,
            np.sqrt(np.diagonal(covariance)),
            stated[of_kind],
            float(1 - along @ theta),
            float(np.sqrt(along @ covariance @ along)),
        )
    return found


# -- the table ----------------------------------------------------------------------------------


def study(setting: str, n_blocks: int) -> dict[str, dict[str, Bias]]:
    """All methods on one setting."""
    simulation = SETTINGS[setting]
    # The truth may select what no telescope triggers on.
    untriggered = replace(simulation, threshold_scale=0.2)
    rows = {
        "true light": rows_of(untriggered, n_blocks),
        "each size": rows_of(simulation, n_blocks),
    }
    rows["pair's size"] = rows["each size"]
    results = {
        name: biases(simulation, rows[method.select], method) for name, method in METHODS.items()
    }
    for factor in FACTORS if setting == "all effects" else ():
        results[f"the default with {factor:g} for 2"] = biases(
            simulation, rows["each size"], METHODS[DEFAULT], factor
        )
    return results


def table(results: dict[str, dict[str, Bias]], kinds: list[str]) -> list[str]:
    """Lines of a table in Markdown, one per method."""
    columns = ("drawn", "rms", "max", "error", "systematic")
    head = ["method", *(f"{kind} {column}" for kind in kinds for column in columns)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, by_kind in results.items():
        cells = [name]
        for kind in kinds:
            bias = by_kind[kind]
            cells += [
                f"{100 * bias.drawn:.1f} ± {100 * bias.drawn_error:.1f}",
                f"{100 * bias.rms:.2f}",
                f"{100 * np.abs(bias.deviation).max():.2f}",
                f"{100 * bias.error.mean():.2f}",
                f"{100 * bias.systematic.max():.2f}" if bias.systematic.any() else "",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--blocks", type=int, default=40, help="observation blocks of 150 000 telescope-events"
    )
    arguments = parser.parse_args()
    print(__doc__)
    print("drawn: by how much of their scatter the throughputs are drawn towards each other")
    print("rms: of the bias, beyond statistics; max: greatest deviation of a telescope")
    print("error: mean statistical one; systematic: the greatest one stated")
    for setting in SETTINGS:
        began = time.process_time()
        results = study(setting, arguments.blocks)
        kinds = ["SST"] if setting.startswith("SST") else ["LST", "MST"]
        print(
            f"\n{setting}: {arguments.blocks} blocks, {time.process_time() - began:.0f} s of CPU\n"
        )
        print("\n".join(table(results, kinds)), flush=True)


if __name__ == "__main__":
    main()
