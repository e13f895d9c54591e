"""The account of a run: every shard in it once, however many there are."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.engine.envelope import Envelope
from calibdask.engine.run import _merge_all
from calibdask.errors import CalibdaskError


def _envelope(index):
    return Envelope(
        ((index, index + 1),), {"all": 3, f"cut {index % 3}": 1}, ((7, index, index + 9, index),),
        0.5, 0.25, 100 + index, ("x86",), (f"shard {index} is odd",),
    )  # fmt: skip


@given(st.integers(0, 70))
def test_joining_in_pairs_gives_what_joining_in_turn_gives(count):
    envelopes = [_envelope(index) for index in range(count)]
    assert _merge_all(envelopes) == reduce(Envelope.merge, envelopes, Envelope())


def test_a_shard_twice_is_refused_wherever_it_stands():
    with pytest.raises(CalibdaskError, match="shards 3 to 3 would be counted twice"):
        _merge_all([_envelope(index) for index in (0, 1, 2, 3, 4, 5, 6, 3)])


def test_what_is_joined_is_not_copied_for_every_shard(monkeypatch):
    copied = []
    merge = Envelope.merge

    def counting(one, other):
        copied.append(len(one.key_ranges) + len(other.key_ranges))
        return merge(one, other)

    monkeypatch.setattr(Envelope, "merge", counting)
    _merge_all([_envelope(index) for index in range(1024)])
    assert sum(copied) == 1024 * 10, "one after the other it is 50 times as much"
