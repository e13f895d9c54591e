"""Experiments that share no assumption with the fit beyond what it states; held out of its tuning.

Resolutions differ from shower to shower and between telescopes, tails are those of Student's t,
residuals of one shower are correlated over the array, and energies of a steep spectrum are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import kstest

from calibdask.array.network.coefficients import coefficients
from calibdask.array.network.drift import find_drift
from calibdask.array.network.model import NetworkOptions
from calibdask.array.network.pairs import PairEvents
from tests.array.toys import fit_shards
from tests.benchmarks.image_bias import DEFAULT, METHODS, REAL, biases, rows_of


def correlated(rng, throughput, *, n_events, take=1.0, keep=1.0):
    """Draw showers; telescopes take part by chance, and pairs of those are kept by chance."""
    n_tel = len(throughput)
    log_x = np.log(throughput) + (
        0.15
        * np.exp(rng.normal(0.0, 0.4, (n_events, 1)))
        * np.exp(np.linspace(-0.3, 0.3, n_tel))
        * rng.standard_t(5, (n_events, n_tel))
        / np.sqrt(5 / 3)
    )
    gradient = np.linspace(-1, 1, 2 * n_tel).reshape(2, n_tel)
    log_x += rng.normal(0.0, 0.05, (n_events, 2)) @ gradient
    return _pairs(rng, log_x, rng.random((n_events, n_tel)) < take, keep)


def cut(rng, throughput, *, n_events, keep=1.0):
    """Draw energies of a spectrum E^-2.7, of which those above 50 GeV count."""
    energy_tev = 0.02 * rng.random(n_events) ** (-1 / 1.7)
    sigma = 0.2 * (1 + 0.3 * (energy_tev[:, None] < 0.1))
    log_x = np.log(energy_tev[:, None] * throughput)
    log_x = log_x + sigma * rng.standard_normal(log_x.shape)
    return _pairs(rng, log_x, log_x > np.log(0.05), keep)


def _pairs(rng, log_x, seen, keep):
    one, two = np.triu_indices(log_x.shape[1], 1)
    both = seen[:, one] & seen[:, two] & (rng.random((len(log_x), len(one))) < keep)
    event, pair = np.nonzero(both)
    x = np.exp(log_x)
    return PairEvents(
        event,
        np.full(len(event), "LST"),
        one[pair] + 1,
        two[pair] + 1,
        x[event, one[pair]],
        x[event, two[pair]],
    )


class Study:
    """Deviations of ln c, their errors and the p-values over many experiments."""

    def __init__(self, draw, n_telescopes, n_experiments, *, estimator, symmetric=False, **how):
        rng = np.random.default_rng(5)
        options = NetworkOptions(
            estimator, n_min=5, reference_telescopes=(("LST", 1),), symmetric=symmetric
        )
        parts, p_values = [], []
        for _ in range(n_experiments):
            throughput = np.exp(rng.normal(0.0, 0.1, n_telescopes))
            throughput /= throughput[0]
            tables = coefficients(fit_shards(options, [draw(rng, throughput, **how)]))
            table = tables["inter_calibration"]
            truth = throughput[table["tel_id"] - 1]
            good = table["error"] > 0
            deviation = np.log(table["value"] / truth)
            error = table["error"] / table["value"]
            parts.append(np.stack([deviation, error, np.log(truth)])[:, good])
            p_values += tables["inter_calibration_components"]["p_value"].tolist()
        self.deviation, self.error, self.log_truth = np.concatenate(parts, axis=1)
        self.p_value = np.array(p_values)
        self.pull = self.deviation / self.error
        self.width = float(np.sqrt(np.mean(self.pull**2)))
        self.coverage = float(np.mean(np.abs(self.pull) < 1))
        self.drawn = float(self.deviation @ self.log_truth / np.sum(self.log_truth**2))

    @property
    def uniform(self):
        """Kolmogorov-Smirnov probability of the p-values; NaN if no experiment has freedom."""
        known = self.p_value[np.isfinite(self.p_value)]
        return float(kstest(known, "uniform").pvalue) if len(known) else float("nan")


def jumps(n_experiments, *, jump=0.0, estimator="log-clipped", n_telescopes=4, n_bins=6, **how):
    """Let telescope 3 jump in the middle of some time bins; parts of found and of false alarms."""
    rng = np.random.default_rng(9)
    options = NetworkOptions(estimator, n_min=5, reference_telescopes=(("LST", 1),))
    found, false = 0, 0
    for _ in range(n_experiments):
        throughput = np.exp(rng.normal(0.0, 0.1, n_telescopes))
        fits = []
        for k in range(n_bins):
            now = throughput * np.where(np.arange(n_telescopes) == 2, 1 + jump * (k >= 3), 1.0)
            fits.append(fit_shards(options, [correlated(rng, now, **how)]))
        drift = find_drift(
            *(np.stack([getattr(fit, name) for fit in fits]) for name in
              ("theta", "covariance", "freedom")), np.zeros(n_telescopes, int),
        )  # fmt: skip
        found += drift.jumps[3, 2]
        others = drift.jumps.copy()
        others[3, 2] &= jump == 0.0
        false += others.any()
    return found / n_experiments, false / n_experiments


@dataclass(frozen=True)
class ImageStudy:
    """Deviations of ln c from image sizes, about the mean of each type, with both errors."""

    deviation: np.ndarray
    error: np.ndarray
    systematic: np.ndarray
    n_arrays: int

    @property
    def n_independent(self):
        """Values less the mean of each array, about which they are: four LSTs have three."""
        return len(self.deviation) - self.n_arrays

    @classmethod
    def of(cls, radius_m, n_arrays, n_blocks, *, kinds=("LST", "MST", "SST"), seed=700):
        """Compare arrays of different throughputs, each lit within a radius, by type."""
        parts = {}
        for k in range(n_arrays):
            margin_m = 150.0 if radius_m < 500 else 500.0
            simulation = replace(REAL, seed=seed + k, core_margin_m=margin_m)
            rows = rows_of(simulation, n_blocks, radius_m).only(kinds)
            for kind, bias in biases(simulation, rows, METHODS[DEFAULT]).items():
                values = bias.deviation, bias.error, bias.systematic
                parts.setdefault(kind, []).append(values)
        return {
            kind: cls(*map(np.concatenate, zip(*found, strict=True)), n_arrays)
            for kind, found in parts.items()
        }

    @property
    def pull(self):
        return self.deviation / np.hypot(self.error, self.systematic)

    @property
    def width(self):
        return float(np.sqrt(np.mean(self.pull**2)))

    @property
    def coverage(self):
        return float(np.mean(np.abs(self.pull) < 1))


WINDOWS = {
    "4, 12 events": (correlated, 4, {"n_events": 12}),
    "4, 40 events, some pairs": (correlated, 4, {"n_events": 40, "keep": 0.3}),
    "4, 300 events, some see": (correlated, 4, {"n_events": 300, "take": 0.7, "keep": 0.3}),
    "4, 1000 events": (correlated, 4, {"n_events": 1000}),
    "14, 200 events, half see": (correlated, 14, {"n_events": 200, "take": 0.5}),
    "14, 800 events, tight": (correlated, 14, {"n_events": 800, "keep": 0.015}),
}
CUTS = {
    "4, 1000 a pair": (cut, 4, {"n_events": 6000}),
    "4, 6000 a pair": (cut, 4, {"n_events": 34_000}),
    "14, 130 a pair": (cut, 14, {"n_events": 13_500, "keep": 0.05}),
}
