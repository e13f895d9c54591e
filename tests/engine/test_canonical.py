"""One text and one digest for one value."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.engine.canonical import canonical_json, digest_arrays, digest_json

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_text_is_json_and_loses_nothing(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_of_keys_does_not_count(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(backwards) == canonical_json(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_bit(value):
    back = json.loads(canonical_json(value))
    assert np.float64(back).tobytes() == np.float64(value).tobytes()
    assert canonical_json(np.float64(value)) == canonical_json(value)


def test_different_values_have_different_texts():
    values = [0.1, 0.1 + 2**-56, 1, 1.0, "1", True, None, [], {}, [1], [[1]], "", -0.0, 0.0]
    assert len({canonical_json(value) for value in values}) == len(values)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        np.float32(np.nan),
        {"a": [1, float("-inf")]},
        {1: "number as key"},
        {"set": {1, 2}},
        {"bytes": b"x"},
        {"array": np.arange(3)},
        object(),
    ],
)
def test_refuses_what_has_no_single_text(value):
    with pytest.raises(TypeError, match=r"\$"):
        canonical_json(value)


def test_refusal_names_the_place():
    with pytest.raises(TypeError, match=r"\$\.pairs\[1\]\.x"):
        canonical_json({"pairs": [{}, {"x": np.arange(2)}]})


def test_two_large_arrays_do_not_collide():
    # str() of both is the same text, with dots in the middle: the trap of json's `default=str`.
    one = np.arange(100_000)
    other = one.copy()
    other[50_000] = -1
    assert str(one) == str(other)
    with pytest.raises(TypeError, match="ndarray"):
        digest_json({"array": one})
    assert digest_json(one.tolist()) != digest_json(other.tolist())
    assert digest_arrays({"a": one}) != digest_arrays({"a": other})


def test_digest_of_arrays_sees_name_type_shape_and_bits():
    base = np.array([0.0, 1.0])
    different = [
        {"a": base},
        {"b": base},
        {"a": base.astype("f4")},
        {"a": base.view("i8")},
        {"a": base.reshape(2, 1)},
        {"a": np.array([-0.0, 1.0])},
        {"a": np.array(0.0)},
        {"a": np.array([0.0])},
        {"a": base, "c": base},
        {},
    ]
    assert len({digest_arrays(arrays) for arrays in different}) == len(different)


def test_digest_of_arrays_does_not_see_storage():
    base = np.arange(12.0).reshape(3, 4)
    assert digest_arrays({"a": base, "b": base}) == digest_arrays({"b": base, "a": base})
    assert digest_arrays({"a": base.astype(">f8")}) == digest_arrays({"a": base})
    assert digest_arrays({"a": np.asfortranarray(base)}) == digest_arrays({"a": base})
    assert digest_arrays({"a": np.repeat(base, 2, axis=0)[::2]}) == digest_arrays({"a": base})
