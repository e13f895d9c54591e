from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.stats.moments import Moments
from tests.laws import check_summary_laws

N_GROUPS = 4
VALUE = st.floats(-1e6, 1e6, allow_subnormal=False)
ROWS = st.lists(st.tuples(st.integers(0, N_GROUPS - 1), VALUE), max_size=60)


def moments(rows: list[tuple[int, float]]) -> Moments:
    group = np.array([row[0] for row in rows], np.int64)
    return Moments.from_groups(group, [row[1] for row in rows], N_GROUPS)


@given(rows=ROWS, cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_laws(rows, cuts):
    first, second = sorted(cuts)
    parts = [moments(rows[:first]), moments(rows[first:second]), moments(rows[second:])]
    # Values near 1e6 that cancel have rounding of 1e6 eps in their mean.
    check_summary_laws(parts, Moments.identity(N_GROUPS), moments(rows), rtol=1e-9, atol=1e-7)


@given(rows=ROWS)
def test_against_numpy(rows):
    found = moments(rows)
    for group in range(N_GROUPS):
        values = np.array([row[1] for row in rows if row[0] == group])
        assert found.n[group] == len(values)
        if len(values):
            scale = max(1.0, np.max(np.abs(values)))
            assert found.mean[group] == pytest.approx(np.mean(values), abs=1e-12 * scale)
            assert found.variance(0)[group] == pytest.approx(np.var(values), abs=1e-10 * scale**2)
        if len(values) < 2:
            assert np.isnan(found.variance()[group])


def test_no_cancellation_far_from_zero():
    """Sums of squares would lose every digit of this variance."""
    values = 1e9 + np.array([-1.0, 0.0, 1.0])
    group = np.zeros(3, np.int64)
    assert Moments.from_groups(group, values, 1).variance()[0] == pytest.approx(1.0, rel=1e-12)
    halves = [Moments.from_groups(group[k], values[k], 1) for k in (slice(0, 2), slice(2, 3))]
    assert halves[0].merge(halves[1]).variance()[0] == pytest.approx(1.0, rel=1e-12)


def test_nan_stays_in_its_group():
    found = Moments.from_groups(np.array([0, 0, 1, 1]), [1.0, np.nan, 2.0, 4.0], 2)
    assert np.isnan(found.mean[0])
    assert found.mean[1] == 3.0
    assert found.variance()[1] == 2.0


def test_identity_keeps_the_sign_of_zero():
    zero = Moments.from_groups(np.array([0]), [-0.0], 1)
    for merged in (zero.merge(Moments.identity(1)), Moments.identity(1).merge(zero)):
        assert np.signbit(merged.mean[0]) == np.signbit(zero.mean[0])


def test_any_shape():
    empty = Moments.identity((2, 3))
    image = Moments(np.full((2, 3), 2), np.arange(6.0).reshape(2, 3), np.ones((2, 3)))
    assert empty.merge(image).variance().shape == (2, 3)


def test_refusals():
    with pytest.raises(ValueError, match="only 2 groups"):
        Moments.from_groups(np.array([0, 2]), [1.0, 2.0], 2)
    with pytest.raises(ValueError, match="do not merge"):
        Moments.identity(2).merge(Moments.identity(3))
