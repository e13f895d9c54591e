from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.stats.keyed import union_keys

KEYS = st.sets(st.tuples(st.integers(-5, 5), st.integers(0, 5)), max_size=20)


def sorted_keys(keys: set[tuple[int, int]]) -> np.ndarray:
    return np.array(sorted(keys), np.int64).reshape(-1, 2)


@given(left=KEYS, right=KEYS)
def test_union(left, right):
    a, b = sorted_keys(left), sorted_keys(right)
    keys, index_a, index_b = union_keys(a, b)
    np.testing.assert_array_equal(keys, sorted_keys(left | right))
    np.testing.assert_array_equal(keys[index_a], a)
    np.testing.assert_array_equal(keys[index_b], b)
    assert keys.dtype == np.int64


def test_different_columns_are_refused():
    with pytest.raises(ValueError, match="do not merge"):
        union_keys(np.zeros((1, 2), np.int64), np.zeros((1, 3), np.int64))
