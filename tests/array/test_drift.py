from __future__ import annotations

import numpy as np
import pytest

from calibdask.array.network.drift import CHANCE, find_drift


def draw(rng, n_bins, n_tel, *, sigma=0.01, n_events=300, held=0):
    """Values of independent telescopes relative to one of them, with errors as from n_events."""
    scatter = sigma * (1 + np.linspace(0, 1, n_tel))
    absolute = rng.normal(0, 1, (n_bins, n_tel)) * scatter
    variance = scatter**2 * rng.chisquare(n_events - 1, absolute.shape) / (n_events - 1)
    return absolute, variance, relative_to(held, n_tel)


def relative_to(held, n_tel):
    gauge = np.eye(n_tel)
    gauge[:, held] -= 1
    return gauge


def drift_of(absolute, variance, gauge, n_events=300, network=None):
    n_bins, n_tel = absolute.shape
    return find_drift(
        np.where(np.isnan(absolute), np.nan, np.nan_to_num(absolute) @ gauge.T),
        np.array([gauge @ np.diag(v) @ gauge.T for v in variance]).reshape(n_bins, n_tel, n_tel),
        np.full((n_bins, n_tel), n_events),
        np.zeros(n_tel, int) if network is None else network,
    )


@pytest.mark.parametrize(
    ("n_tel", "n_bins", "n_events"), [(2, 5, 200), (3, 6, 30), (4, 24, 30), (14, 6, 300)]
)
def test_what_stays_is_rarely_flagged(n_tel, n_bins, n_events):
    rng = np.random.default_rng(n_tel)
    drifts = [drift_of(*draw(rng, n_bins, n_tel, n_events=n_events), n_events) for _ in range(100)]
    # 2 CHANCE for the two tests together; 100 experiments.
    assert sum(drift.jumps.any() for drift in drifts) <= 4
    assert sum(drift.varies.any() for drift in drifts) <= 4
    p_value = np.concatenate([drift.p_value for drift in drifts])
    assert 0.4 < np.mean(p_value) < 0.6
    assert np.mean(p_value < 0.1) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("held", [0, 3, 5])
def test_whoever_jumps_is_found_and_no_other(held):
    absolute, variance, gauge = draw(np.random.default_rng(2), 8, 6, held=held)
    absolute[5:, 0] += 0.2
    absolute[3:, 4] -= 0.15
    drift = drift_of(absolute, variance, gauge)
    assert np.argwhere(drift.jumps).tolist() == [[3, 4], [5, 0]]
    assert np.flatnonzero(drift.varies).tolist() == [0, 4]
    assert drift.step_bin[[0, 4]].tolist() == [5, 3]
    np.testing.assert_allclose(drift.step[[0, 4]], [0.2, -0.15], atol=4 * 0.02)
    assert np.all(drift.step_sigma[[0, 4]] > drift.limit_sigma[[0, 4]])
    assert drift.n_bins.tolist() == [8] * 6
    assert drift.ndf.tolist() == [7] * 6


def test_what_is_held_fixed_does_not_matter():
    absolute, variance, _ = draw(np.random.default_rng(3), 5, 4)
    absolute[2:, 1] += 0.1
    drifts = [drift_of(absolute, variance, relative_to(held, 4)) for held in range(4)]
    for drift in drifts[1:]:
        np.testing.assert_array_equal(drift.jumps, drifts[0].jumps)
        np.testing.assert_allclose(drift.chi2, drifts[0].chi2, rtol=1e-9)
        np.testing.assert_allclose(drift.step_sigma, drifts[0].step_sigma, rtol=1e-9)


def test_a_slow_drift_varies_without_a_jump():
    absolute, variance, gauge = draw(np.random.default_rng(4), 20, 5)
    absolute[:, 2] += np.linspace(0, 0.12, 20)
    drift = drift_of(absolute, variance, gauge)
    assert not drift.jumps.any()
    assert np.flatnonzero(drift.varies).tolist() == [2]


def test_of_two_alone_both_are_suspect():
    absolute, variance, gauge = draw(np.random.default_rng(5), 4, 2)
    absolute[2:, 1] += 0.3
    assert np.argwhere(drift_of(absolute, variance, gauge).jumps).tolist() == [[2, 0], [2, 1]]


def test_the_step_over_a_gap_is_seen():
    absolute, variance, gauge = draw(np.random.default_rng(6), 6, 4)
    absolute[3:, 2] += 0.2
    absolute[2:4, 2] = np.nan
    drift = drift_of(absolute, variance, gauge)
    assert np.argwhere(drift.jumps).tolist() == [[4, 2]]
    assert drift.n_bins.tolist() == [6, 6, 4, 6]
    assert drift.ndf.tolist() == [5, 5, 3, 5]


def test_few_events_are_not_believed():
    """A step of six standard deviations, from three events and from three hundred."""
    absolute, variance = np.zeros((2, 4)), np.full((2, 4), 1e-4)
    absolute[1, 1] = 0.1
    few, many = (drift_of(absolute, variance, relative_to(0, 4), n) for n in (3, 300))
    assert few.step_error[1] == pytest.approx(np.sqrt(2e-4 * (1 + 1 / 3)))
    assert not few.jumps.any()
    assert few.step_sigma[1] < 3
    assert np.argwhere(many.jumps).tolist() == [[1, 1]]


def test_networks_do_not_mix():
    absolute, variance, _ = draw(np.random.default_rng(8), 4, 6)
    absolute[2:, 0] += 0.2  # the telescope held fixed in the first network
    gauge = np.eye(6)
    gauge[:3, 0] -= 1
    gauge[3:, 3] -= 1
    drift = drift_of(absolute, variance, gauge, network=np.array([0, 0, 0, 1, 1, 1]))
    assert np.argwhere(drift.jumps).tolist() == [[2, 0]]


@pytest.mark.parametrize("n_bins", [0, 1])
def test_nothing_to_compare(n_bins):
    drift = drift_of(*draw(np.random.default_rng(9), n_bins, 3))
    assert not drift.jumps.any()
    assert not drift.varies.any()
    assert np.isnan(drift.chi2).all()
    assert np.isnan(drift.step).all()
    assert drift.step_bin.tolist() == [-1] * 3
    alone = drift_of(*draw(np.random.default_rng(9), 3, 1))
    assert np.isnan(alone.p_value).all()
    assert 0 < CHANCE < 0.1
