from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.stats.histogram import Histogram
from tests.laws import check_summary_laws

EDGES = np.linspace(-2.0, 2.0, 41)
N_GROUPS = 3
ROWS = st.lists(st.tuples(st.integers(0, N_GROUPS - 1), st.floats(-3, 3)), max_size=60)


def histogram(rows: list[tuple[int, float]]) -> Histogram:
    group = np.array([row[0] for row in rows], np.int64)
    return Histogram.from_groups(group, [row[1] for row in rows], N_GROUPS, EDGES)


def one_group(values, edges=EDGES) -> Histogram:
    return Histogram.from_groups(np.zeros(len(values), np.int64), values, 1, edges)


@given(rows=ROWS, cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_laws(rows, cuts):
    first, second = sorted(cuts)
    parts = [histogram(rows[:first]), histogram(rows[first:second]), histogram(rows[second:])]
    check_summary_laws(parts, Histogram.identity(N_GROUPS, EDGES), histogram(rows), rtol=0)


@given(rows=ROWS)
def test_every_value_is_counted_once_in_its_bin(rows):
    found = histogram(rows)
    assert found.n.sum() == len(rows)
    for group in range(N_GROUPS):
        values = np.array([row[1] for row in rows if row[0] == group])
        assert found.counts[group, 0] == np.sum(values < EDGES[0])
        assert found.counts[group, -1] == np.sum(values >= EDGES[-1])
        for b in range(len(EDGES) - 1):
            within = (values >= EDGES[b]) & (values < EDGES[b + 1])
            assert found.counts[group, b + 1] == np.sum(within)


@given(values=st.lists(st.floats(-1.9, 1.9), min_size=1, max_size=40))
def test_median_and_mad_are_good_to_a_bin(values):
    found = one_group(values)
    median = found.median()
    # Bin and interpolation: the middle of an even number depends on two values.
    assert median[0] == pytest.approx(np.median(values), abs=0.1 + 1e-9)
    deviation = np.median(np.abs(values - median[0]))
    assert found.mad(median)[0] == pytest.approx(deviation, abs=0.2 + 1e-9)


def test_order_statistics_of_a_normal_sample():
    rng = np.random.default_rng(11)
    values = rng.normal(0.3, 0.25, 20000)
    found = one_group(values, np.linspace(-2, 2, 401))
    assert found.median()[0] == pytest.approx(np.median(values), abs=2e-4)
    assert found.quantile(0.9)[0] == pytest.approx(np.quantile(values, 0.9), abs=1e-3)
    mad = np.median(np.abs(values - np.median(values)))
    assert found.mad(found.median())[0] == pytest.approx(mad, abs=5e-4)
    density = found.density(np.array([0.3]), np.array([0.05]))
    assert density[0] == pytest.approx(1 / (0.25 * np.sqrt(2 * np.pi)), rel=0.03)


@given(values=st.lists(st.integers(-17, 17), min_size=1, max_size=30))
def test_mirrored_values_have_the_mirrored_median(values):
    middles = np.array(values) * 0.1 + 0.05
    median = one_group(middles).median()[0]
    assert one_group(-middles).median()[0] == pytest.approx(-median, abs=1e-12)


def test_median_between_two_values_is_their_middle():
    assert one_group([-1.05, 0.95]).median()[0] == pytest.approx(-0.05)


def test_cdf_under_and_overflow():
    found = one_group([-5.0, 0.05, 7.0, 8.0])
    assert found.cdf(np.array([-10.0]))[0] == 0.25  # the underflow lies infinitely far below
    assert found.cdf(np.array([0.2]))[0] == 0.5
    assert found.cdf(np.array([100.0]))[0] == 0.5
    assert found.cdf(np.array([0.05]))[0] == pytest.approx(0.375)


def test_no_answer_is_not_a_number():
    assert np.isnan(one_group([5.0, 6.0, 0.0]).median()[0])
    assert np.isnan(one_group([]).median()[0])
    assert np.isnan(one_group([]).mad(np.array([0.0]))[0])
    assert np.isnan(one_group([0.0, 5.0, -7.0, 8.0]).mad(np.array([0.0]))[0])


def test_refusals():
    with pytest.raises(ValueError, match="not numbers"):
        one_group([np.nan])
    with pytest.raises(ValueError, match="strictly rising"):
        Histogram.identity(1, np.array([0.0, 0.0]))
    with pytest.raises(ValueError, match="only 1 groups"):
        Histogram.from_groups(np.array([1]), [0.0], 1, EDGES)
    with pytest.raises(ValueError, match="do not merge"):
        one_group([0.0]).merge(one_group([0.0], EDGES + 1.0))
    with pytest.raises(ValueError, match="not between"):
        one_group([0.0]).quantile(1.0)
