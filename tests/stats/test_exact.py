from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.stats.exact import ExactMoments
from tests.laws import assert_same, check_summary_laws


def draw(seed, n=200, n_groups=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_groups, n), rng.normal(-0.2, 0.05, n) * rng.choice([1, 100], n)


def split(group, values, cuts, n_groups=3):
    edges = [0, *sorted(cuts), len(values)]
    return [ExactMoments.from_groups(group[a:b], values[a:b], n_groups) for a, b in pairwise(edges)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 200), min_size=2, max_size=6))
def test_laws_hold_bit_for_bit_over_any_split(seed, cuts):
    group, values = draw(seed)
    whole = ExactMoments.from_groups(group, values, 3)
    parts = split(group, values, cuts)
    check_summary_laws(parts, ExactMoments.identity(3), whole, rtol=0.0)
    total = parts[-1]
    for part in parts[-2::-1]:
        total = part.merge(total)
    assert_same(total, whole, "any order")


@given(st.permutations(range(40)))
def test_the_order_of_values_moves_no_bit(order):
    group, values = draw(1, 40)
    one = ExactMoments.from_groups(group, values, 3)
    two = ExactMoments.from_groups(group[list(order)], values[list(order)], 3)
    assert_same(one, two, "order")


def test_moments_are_those_of_the_values():
    group, values = draw(2, 5000)
    found = ExactMoments.from_groups(group, values, 3).moments()
    for k in range(3):
        own = values[group == k]
        assert found.n[k] == len(own)
        assert found.mean[k] == pytest.approx(own.mean(), rel=1e-12)
        assert found.m2[k] == pytest.approx(((own - own.mean()) ** 2).sum(), rel=1e-11)


def test_extreme_values_are_exact():
    large = 64 - 2.0**-33
    values = np.array([large, -large, 2.0**-40, -(2.0**-40), 0.0])
    found = ExactMoments.from_groups(np.zeros(5, int), values, 1).moments()
    assert found.mean[0] == 0.0
    assert found.m2[0] == pytest.approx(2 * large**2, rel=1e-15)


def test_times_in_whole_milliseconds():
    times = np.array([2**40 + 1, 2**40 + 2, 2**40 + 3])
    found = ExactMoments.from_groups(np.zeros(3, int), times, 1, exponent=0).moments()
    assert (found.mean[0], found.m2[0]) == (2**40 + 2, 2.0)


def test_an_empty_group_has_zeros():
    found = ExactMoments.identity(2).moments()
    assert found.n.tolist() == [0, 0]
    assert found.mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 64.0, -1e9])
def test_what_cannot_be_held_is_refused(value):
    assert not ExactMoments.holds(value)
    with pytest.raises(ValueError, match="too large"):
        ExactMoments.from_groups(np.array([0]), np.array([value]), 1)


def test_groups_out_of_range_are_refused():
    with pytest.raises(ValueError, match="outside"):
        ExactMoments.from_groups(np.array([1]), np.array([0.1]), 1)


def test_different_exponents_do_not_merge():
    with pytest.raises(ValueError, match="do not merge"):
        ExactMoments.identity(1).merge(ExactMoments.identity(1, exponent=0))
