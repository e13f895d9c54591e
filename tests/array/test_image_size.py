"""Selections of image sizes that are fair to both telescopes, and what is left of their bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibdask.array.image_size import (
    HIGHER_CUT,
    NARROWER_WINDOW,
    harder_selections,
    pair_size,
    systematic,
)
from calibdask.array.network.model import NetworkOptions
from tests.array.toys import draw_events, fit_shards, join_events, take
from tests.benchmarks.image_bias import DEFAULT, METHODS, REAL, biases, rows_of

MEAN = NetworkOptions(normalisation="weighted-mean")
LST = np.array([1.0, 0.8, 1.2, 0.9])


def test_size_of_a_pair():
    size = pair_size(np.array([100.0, 400.0, 0.0, -1.0, np.nan, np.inf]), np.full(6, 100.0))
    np.testing.assert_allclose(size, [100, 200, np.nan, np.nan, np.nan, np.inf])
    assert np.isnan(pair_size(np.array([100.0]), np.array([-100.0]))).all()


def test_harder_selections():
    size, least = np.array([100.0, 149.0, 150.0]), np.full(3, 100.0)
    near, far = np.array([100.0, 100, 100]), np.array([104.0, 108, 112])
    passed = harder_selections(size, least, near, far, np.full(3, 0.08))
    assert passed[HIGHER_CUT].tolist() == [False, False, True]
    assert passed[NARROWER_WINDOW].tolist() == [True, True, False]
    assert harder_selections(size, None, None, None, None) == {}
    assert list(harder_selections(size, least, None, None, None)) == [HIGHER_CUT]


# -- the systematic error ------------------------------------------------------------------------


def half(events):
    """Every other event: a harder selection that selects on nothing."""
    return take(events, events.event % 2 == 0)


def test_nothing_systematic_is_found_where_there_is_nothing():
    rng = np.random.default_rng(7)
    found, error = [], []
    for _ in range(40):
        events = draw_events(rng, LST, 400)
        fit = fit_shards(MEAN, [events])
        found.append(systematic(fit, {HIGHER_CUT: fit_shards(MEAN, [half(events)])}))
        error.append(np.sqrt(np.diagonal(fit.covariance)))
    # Nearly always the change is what statistics explain: nothing is stated.
    assert np.mean(np.array(found)[:, 0] == 0) > 0.8
    assert np.mean(np.square(found)) < 0.5 * np.mean(np.square(error))


def test_large_images_that_scatter_less_are_no_systematic_error():
    """A harder selection of better rows is as good as all rows: their difference is not zero."""
    rng = np.random.default_rng(17)
    found = []
    for _ in range(40):
        good, bad = (draw_events(rng, LST, 300, sigma=sigma) for sigma in (0.1, 0.2))
        fit, other = fit_shards(MEAN, [join_events(good, bad)]), fit_shards(MEAN, [good])
        found.append(systematic(fit, {HIGHER_CUT: other})[0] > 0)
    assert np.mean(found) < 0.25


def test_a_shift_under_a_harder_selection_is_stated():
    rng = np.random.default_rng(8)
    events = draw_events(rng, LST, 20_000)
    shift = np.array([0.03, -0.03, 0.03, -0.03])
    harder = half(events)
    harder = replace(
        harder,
        x_1=harder.x_1 * np.exp(shift[harder.tel_id_1 - 1]),
        x_2=harder.x_2 * np.exp(shift[harder.tel_id_2 - 1]),
    )
    stated = systematic(fit_shards(MEAN, [events]), {HIGHER_CUT: fit_shards(MEAN, [harder])})
    # The standard deviation of the shifts, about a mean that nearly is a quarter of each.
    np.testing.assert_allclose(stated, 0.03, rtol=0.1)
    # Of two selections both count.
    twice = dict.fromkeys("ab", fit_shards(MEAN, [harder]))
    np.testing.assert_allclose(systematic(fit_shards(MEAN, [events]), twice), np.sqrt(2) * stated)
    # Against a reference two such errors count; the reference has none against itself.
    options = NetworkOptions(reference_telescopes=(("LST", 1),))
    fit = fit_shards(options, [events])
    stated = systematic(fit, {HIGHER_CUT: fit_shards(options, [harder])})
    assert stated[0] == 0
    np.testing.assert_allclose(stated[1:], np.sqrt(2 * 4 / 3) * 0.03, rtol=0.1)


def test_telescopes_that_a_harder_selection_loses():
    rng = np.random.default_rng(9)
    events = draw_events(rng, LST, 500)
    options = NetworkOptions(reference_telescopes=(("LST", 1),))
    fit = fit_shards(options, [events])
    # The reference itself is lost: the others tell.
    without_1 = take(events, (events.tel_id_1 != 1) & (events.tel_id_2 != 1))
    stated = systematic(fit, {HIGHER_CUT: _with_all(fit_shards(options, [without_1]), fit)})
    assert stated[0] == 0
    assert np.isfinite(stated).all()
    assert (stated < 0.05).all()
    # All are lost: nothing is known.
    nothing = _with_all(fit_shards(options, [take(events, slice(0, 0))]), fit)
    assert np.isnan(systematic(fit, {HIGHER_CUT: nothing})).all()
    assert np.isnan(systematic(fit, {})).all()


def _with_all(fit, other):
    """A fit with rows for all telescopes of another, as a job's fits have."""
    n = len(other.tel_id)
    index = np.searchsorted(other.tel_id, fit.tel_id)
    theta, component = np.full(n, np.nan), np.full(n, -1)
    theta[index], component[index] = fit.theta, fit.component
    covariance = np.zeros((n, n))
    covariance[np.ix_(index, index)] = fit.covariance
    n_events = np.zeros(n, np.int64)
    n_events[index] = fit.n_events
    return replace(
        fit,
        tel_id=other.tel_id,
        theta=theta,
        component=component,
        covariance=covariance,
        n_events=n_events,
    )


# -- biases, on the simulated array ----------------------------------------------------------------


@pytest.fixture(scope="module")
def studied():
    """Six blocks of 150 000 telescope-events, by each method."""
    rows = rows_of(REAL, 6)
    kept = {name: METHODS[name] for name in METHODS if METHODS[name].select != "true light"}
    return {name: biases(REAL, rows, method) for name, method in kept.items()}


def total_pull(bias):
    return bias.deviation / np.hypot(bias.error, bias.systematic)


@pytest.mark.parametrize("kind", ["LST", "MST"])
def test_the_peers_selection_is_biased_and_ours_is_not(studied, kind):
    peer = studied["each size, mean asymmetry (peer)"][kind]
    ours = studied[DEFAULT][kind]
    # Bias beyond statistics: the peer's draws telescopes together, by 12 to 17 % of their scatter.
    assert peer.rms > 0.01
    assert np.abs(peer.deviation).max() > 0.018
    assert peer.drawn > 0.1 + 2 * peer.drawn_error
    assert np.std(peer.deviation / peer.error) > 3
    assert ours.rms < 0.003
    assert abs(ours.drawn) < 3 * ours.drawn_error + 0.01
    assert np.sqrt(np.mean(total_pull(ours) ** 2)) < 1.5
    # With it comes precision: less scatter about the line of the distances.
    assert ours.error.mean() < 0.8 * studied["pair's size, mean log"][kind].error.mean()


def test_each_correction_takes_away_its_part(studied):
    for kind in ("LST", "MST"):
        drawn = [
            studied[name][kind].drawn
            for name in (
                "each size, mean asymmetry (peer)",
                "each size, mean log",
                "each size, mean log, distance term",
                DEFAULT,
            )
        ]
        assert drawn == sorted(drawn, reverse=True)


def test_what_a_low_cut_leaves_is_stated():
    # A pair's size that need not exceed the cut on each leaves 1 to 2 tenths of a percent.
    rows = rows_of(REAL, 12)
    for kind, bias in biases(REAL, rows, METHODS[DEFAULT], 1.0).items():
        if kind != "SST":
            assert bias.rms > 0.0007
            assert bias.systematic.max() > 0.4 * bias.rms
            assert np.sqrt(np.mean(total_pull(bias) ** 2)) < 2
