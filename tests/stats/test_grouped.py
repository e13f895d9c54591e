"""The kernels of groups give the bits of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.stats import grouped, kernels

FINITE = st.floats(-1e6, 1e6, width=64)


@st.composite
def groups(draw, elements):
    n_groups = draw(st.integers(1, 5))
    pairs = draw(st.lists(st.tuples(st.integers(0, n_groups - 1), elements), max_size=60))
    group = np.array([k for k, _ in pairs], np.int64)
    return group, [value for _, value in pairs], n_groups


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(groups(FINITE))
def test_moments_are_those_of_numpy_bit_for_bit(drawn):
    group, values, n_groups = drawn
    same(
        kernels.moments(group, np.array(values, float), n_groups),
        grouped.moments(group, np.array(values, float), n_groups),
    )


@given(groups(st.integers(-(2**46) + 1, 2**46 - 1)))
def test_exact_sums_are_those_of_numpy(drawn):
    group, units, n_groups = drawn
    same(
        kernels.exact_sums(group, np.array(units, np.int64), n_groups),
        grouped.exact_sums(group, np.array(units, np.int64), n_groups),
    )


@given(
    groups(st.one_of(FINITE, st.sampled_from([0.0, -1.0, 2.5, 7.0, np.inf, -np.inf]))),
    st.one_of(
        st.just(np.linspace(-1.0, 7.0, 33)),
        st.lists(st.floats(-100, 100), min_size=2, max_size=9, unique=True).map(
            lambda edges: np.sort(np.array(edges))
        ),
    ),
)
def test_counts_are_those_of_numpy_for_equal_and_unequal_bins(drawn, edges):
    group, values, n_groups = drawn
    values = np.array([*values, *edges], float)  # values on the edges, too
    group = np.concatenate([group, np.zeros(len(edges), np.int64)])
    np.testing.assert_array_equal(
        kernels.histogram(group, values, n_groups, edges),
        grouped.histogram(group, values, n_groups, edges),
    )


@given(
    st.lists(st.one_of(FINITE, st.floats(), st.sampled_from([-1.0, 0.0, 0.3, 7.0])), max_size=40),
    st.one_of(
        st.just(np.linspace(-1.0, 7.0, 33)),
        st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=9, unique=True).map(
            lambda edges: np.sort(np.array(edges))
        ),
    ),
)
def test_bins_are_those_of_searchsorted(values, edges):
    values = np.array([*values, *edges, *np.nextafter(edges, -np.inf)], float)
    np.testing.assert_array_equal(
        grouped.bin_of(values, edges), np.searchsorted(edges, values, side="right")
    )


def test_sums_of_more_groups_than_16_bits_hold():
    group = np.array([70_000, 3, 70_000, 65_539, 3])
    units = np.array([1, 2, -3, 4, 2**46 - 1])
    same(grouped.exact_sums(group, units, 70_001), kernels.exact_sums(group, units, 70_001))


def test_large_data_take_the_kernel_and_small_data_do_not(monkeypatch):
    taken = []
    monkeypatch.setattr(grouped, "_kernel", lambda name: taken.append(name) or (lambda *_: None))
    many = np.zeros(grouped._MANY, np.int64)
    grouped.exact_sums(many, many, 1)
    assert taken == ["exact_sums"]
    grouped.exact_sums(many[:10], many[:10], 1)
    assert taken == ["exact_sums"]


def test_a_group_out_of_range_is_refused_before_a_kernel_writes_there():
    with pytest.raises(ValueError, match=r"groups 0 to 2: outside of 0\.\.1"):
        grouped.check(np.array([0, 2]), np.zeros(2), 2)
    with pytest.raises(ValueError, match="2 groups given for 3 values"):
        grouped.check(np.array([0, 1]), np.zeros(3), 2)
