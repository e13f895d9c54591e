"""Toy experiments: are the coefficients unbiased, and the errors what they say?

Two settings of each array. Loose cuts: all telescopes see all events, the pairs of an event are
anything but independent. Tight cuts: a few pairs an event, 5 to 30 events a pair.
"""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.array.network.coefficients import coefficients
from calibdask.array.network.model import NetworkOptions
from tests.array.toys import draw_events, fit_shards

SETTINGS = {
    "4 LST loose": {"n_telescopes": 4, "n_events": 150, "keep": 1.0},
    "4 LST tight": {"n_telescopes": 4, "n_events": 180, "keep": 0.17},
    "14 MST loose": {"n_telescopes": 14, "n_events": 70, "keep": 1.0},
    "14 MST tight": {"n_telescopes": 14, "n_events": 600, "keep": 0.015},
}


def experiments(n_experiments, options, *, n_telescopes, n_events, keep, outliers=0.0, seed=20):
    """Deviation of ln c from the truth, its error, and the error with pairs independent.

    Each of shape (experiments, telescopes but the reference).
    """
    rng = np.random.default_rng(seed)
    throughput = np.exp(rng.normal(0.0, 0.1, n_telescopes))
    throughput[0] = 1.0
    result = np.empty((3, n_experiments, n_telescopes - 1))
    for k in range(n_experiments):
        events = draw_events(rng, throughput, n_events, keep=keep, outliers=outliers)
        table = coefficients(fit_shards(options, [events]))["inter_calibration"]
        value = table["value"]
        result[:, k] = [
            np.log(value / throughput)[1:],
            (table["error"] / value)[1:],
            (table["error_independent"] / value)[1:],
        ]
    return result


def options_for(estimator, **others):
    return NetworkOptions(estimator, reference_telescopes=(("LST", 1),), **others)


def check_log_mean(setting, n_experiments):
    """Check the pulls of a setting; limits are those of 2000 experiments times sqrt(2000/n)."""
    options = options_for("log-mean")
    deviation, error, naive = experiments(n_experiments, options, **SETTINGS[setting])
    wider = np.sqrt(2000 / n_experiments)
    pull = deviation / error
    assert abs(np.std(pull) - 1) < 0.05 * wider
    assert abs(np.mean(np.abs(pull) < 1) - 0.68) < 0.02 * wider
    assert np.max(np.abs(np.mean(pull, axis=0))) < 0.1 * wider
    assert np.max(np.abs(np.mean(deviation, axis=0))) < 0.1 * wider * np.mean(error)

    # What the peer does: errors sqrt(n/2) too small where all telescopes share all events.
    naive_width = np.std(deviation / naive)
    n = SETTINGS[setting]["n_telescopes"]
    expected = np.sqrt(n / 2) if "loose" in setting else 1.05
    assert naive_width == pytest.approx(expected, rel=0.07 * wider)
    return deviation, error, naive


def check_robust(estimator, setting, n_experiments):
    """The same with outliers; limits are those of 500 experiments times sqrt(500/n)."""
    options = options_for(estimator)
    deviation, error, _ = experiments(n_experiments, options, outliers=0.05, **SETTINGS[setting])
    wider = np.sqrt(500 / n_experiments)
    pull = deviation / error
    assert abs(np.std(pull) - 1) < 0.1 * wider
    assert np.max(np.abs(np.mean(pull, axis=0))) < 0.15 * wider


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_log_mean(setting):
    check_log_mean(setting, 500)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("estimator", ["log-median", "log-clipped"])
def test_robust_estimators_with_outliers(estimator, setting):
    check_robust(estimator, setting, 200)


@pytest.mark.parametrize("estimator", ["log-mean", "log-median", "log-clipped", "asymmetry"])
def test_pulls_quickly(estimator):
    """The same in a second, for every day; wide enough for 150 experiments."""
    deviation, error, _ = experiments(150, options_for(estimator), **SETTINGS["4 LST loose"])
    pull = deviation / error
    assert 0.85 < np.std(pull) < 1.15
    assert np.max(np.abs(np.mean(pull, axis=0))) < 0.25


def test_weighted_mean_errors():
    """Every telescope has an error against the mean, and they hold."""
    rng = np.random.default_rng(21)
    pulls = []
    for _ in range(300):
        events = draw_events(rng, np.ones(4), 100)
        options = NetworkOptions(normalisation="weighted-mean")
        table = coefficients(fit_shards(options, [events]))["inter_calibration"]
        pulls.append(np.log(table["value"]) * table["value"] / table["error"])
    assert 0.92 < np.std(pulls) < 1.08


def test_outliers_cost_the_mean_more_than_the_robust_centres():
    setting = SETTINGS["4 LST loose"]
    rms = {
        estimator: np.std(experiments(150, options_for(estimator), outliers=0.05, **setting)[0])
        for estimator in ("log-mean", "log-median", "log-clipped")
    }
    assert rms["log-median"] < 0.9 * rms["log-mean"]
    assert rms["log-clipped"] < 0.9 * rms["log-mean"]
