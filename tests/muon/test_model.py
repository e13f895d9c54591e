from __future__ import annotations

import numpy as np
import pytest
from astropy.stats import sigma_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.muon.model import (
    assign_chunks,
    chunk_starts,
    clip_bounds,
    fit_line,
    fit_quadratic_term,
)


def clipped_in_stages(values, sigma, iterations):
    """What the stages of the calibration do to one group."""
    low, high = np.array([-np.inf]), np.array([np.inf])
    inside = np.ones(len(values), bool)
    for _ in range(iterations):
        own = values[inside]
        low, high = clip_bounds(np.array([own.mean()]), np.array([own.std()]), sigma, low, high)
        after = (values >= low[0]) & (values <= high[0])
        if after.sum() == inside.sum():
            break
        inside = after
    return inside


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(5, 400),
    sigma=st.sampled_from([2.0, 3.0, 4.0]),
    iterations=st.integers(1, 6),
)
def test_clipping_by_bounds_is_astropys_clipping(seed, n, sigma, iterations):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.2, 0.01, n) + rng.standard_t(1.5, n) * 0.004
    expected = ~sigma_clip(values, sigma=sigma, maxiters=iterations, cenfunc="mean").mask
    np.testing.assert_array_equal(clipped_in_stages(values, sigma, iterations), expected)


def test_bounds_stay_where_nothing_is_clipped():
    low, high = np.array([-np.inf]), np.array([np.inf])
    assert clip_bounds(np.array([1.0]), np.array([1.0]), None, low, high) == (low, high)
    found = clip_bounds(np.array([np.nan]), np.array([np.nan]), 4.0, np.array([0.1]), high)
    assert found[0] == 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 20))
def test_a_line_is_numpys_with_the_right_weights(seed, n):
    rng = np.random.default_rng(seed)
    x, sigma = rng.uniform(1, 1.3, n), rng.uniform(0.5, 2, n) * 1e-3
    y = 0.13 - 0.08 * x + sigma * rng.standard_normal(n)
    fit = fit_line(x, y, sigma)
    coefficient, covariance = np.polyfit(x, y, 1, w=1 / sigma, cov="unscaled")
    np.testing.assert_allclose([fit.slope, fit.intercept], coefficient, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-5)
    assert fit.chi2 == pytest.approx(
        (((y - np.polyval(coefficient, x)) / sigma) ** 2).sum(), rel=1e-6, abs=1e-9
    )
    assert fit.ndf == n - 2
    if n > 3:
        value, error = fit_quadratic_term(x, y, sigma)
        parabola, covariance = np.polyfit(x, y, 2, w=1 / sigma, cov="unscaled")
        assert value == pytest.approx(parabola[0], rel=1e-4, abs=1e-6)
        assert error == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-4)


def test_errors_of_a_line_are_those_of_its_scatter():
    rng = np.random.default_rng(1)
    x = np.linspace(0.9, 1.3, 8)
    sigma = np.geomspace(2e-4, 2e-3, 8)
    pulls = []
    for _ in range(2000):
        fit = fit_line(x, 0.13 - 0.08 * x + sigma * rng.standard_normal(8), sigma)
        pulls.append([(fit.slope + 0.08) / fit.slope_err, (fit.intercept - 0.13)
                      / fit.intercept_err, fit.chi2 / fit.ndf])  # fmt: skip
    pulls = np.array(pulls)
    assert np.abs(pulls[:, :2].mean(axis=0)).max() < 0.08
    np.testing.assert_allclose(pulls[:, :2].std(axis=0), 1, atol=0.05)
    assert pulls[:, 2].mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("x", [[], [1.0], [1.0, 1.0]])
def test_no_line_through_fewer_than_two_places(x):
    x = np.array(x)
    fit = fit_line(x, x, np.ones(len(x)))
    assert np.isnan([fit.slope, fit.intercept, fit.slope_err]).all()
    assert np.isnan(fit_quadratic_term(x, x, np.ones(len(x)))).all()


@pytest.mark.parametrize(
    ("n", "skip", "undersized", "starts", "stop"),
    [
        (10, False, False, [0, 4, 8], 10),
        (10, True, False, [0, 4], 8),
        (8, False, False, [0, 4], 8),
        (3, False, False, [], 0),
        (3, False, True, [0], 3),
        (3, True, True, [0], 3),
        (0, False, False, [], 0),
    ],
)
def test_chunks_share_no_ring(n, skip, undersized, starts, stop):
    found = chunk_starts(n, 4, skip_last=skip, allow_undersized=undersized)
    assert found == (starts, stop)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 30)), min_size=1, unique=True
    ),
    size=st.integers(1, 7),
    skip=st.booleans(),
)
def test_rings_at_one_time_are_cut_by_their_events(keys, size, skip):
    ordered = np.array(sorted(keys), np.int64)
    starts, stop = chunk_starts(len(ordered), size, skip_last=skip, allow_undersized=True)
    shuffled = np.random.default_rng(0).permutation(ordered)
    chunk = assign_chunks(shuffled, ordered[starts], ordered[stop : stop + 1])
    rank = [sorted(keys).index(tuple(key)) for key in shuffled.tolist()]
    expected = [k // size if k < stop else -1 for k in rank]
    assert chunk.tolist() == expected
