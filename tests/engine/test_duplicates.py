"""Keys are divided, and what two shards hold is found in whatever part it lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.engine import duplicates
from calibdask.engine import keys as keys_module
from calibdask.engine.keys import buckets_of, divided_keys, hashed, overlapping
from calibdask.engine.options import RunOptions
from calibdask.engine.run import run_calibration
from calibdask.errors import CorruptedInput
from tests.engine.test_run import Keyed, _events


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-(2**40), 2**40)), max_size=50),
    st.sampled_from([1, 2, 8, 64]),
)
def test_buckets_hold_every_key_once_and_each_part_finds_its_own(pairs, n_parts):
    keys = np.array(pairs, np.int64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "_BUCKET_KEYS", 4)
        stored = divided_keys(keys)
    together = np.concatenate([*stored.values()])
    assert sorted(map(tuple, together)) == sorted(map(tuple, keys))
    for part in range(n_parts):
        read = [stored[name] for name in buckets_of(stored, part, n_parts)]
        found = np.concatenate([np.empty((0, 2), np.int64), *read])
        mine = found[hashed(found[:, 1]) % np.uint64(n_parts) == part]
        expected = keys[hashed(keys[:, 1]) % np.uint64(n_parts) == part]
        assert sorted(map(tuple, mine)) == sorted(map(tuple, expected))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 9)), max_size=8))
def test_shards_with_a_common_identifier_in_reach_are_looked_into(spans):
    ranges = [(group, first, first + n, index) for index, (group, first, n) in enumerate(spans)]
    expected = {}
    for group, first, last, index in ranges:
        others = [one for one in ranges if one[0] == group and one[3] != index]
        if any(first <= stop and start <= last for _, start, stop, _ in others):
            expected.setdefault(group, []).append(index)
    assert overlapping(ranges) == {group: sorted(index) for group, index in expected.items()}


@pytest.mark.parametrize("cluster", ["serial", "threads"])
def test_an_event_in_two_inputs_is_found_in_its_part(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(keys_module, "_BUCKET_KEYS", 64)
    monkeypatch.setattr(duplicates, "_PART_KEYS", 200)
    identifiers = np.random.default_rng(3).permutation(4000)
    paths = [_events(tmp_path / f"{number}.npy", 1, identifiers[number::5]) for number in range(5)]
    _events(paths[3], 1, [*identifiers[3::5], *identifiers[1:1000:5]])
    first = identifiers[1:1000:5].min()
    with pytest.raises(CorruptedInput, match=f"event {first} of observation 1") as caught:
        run_calibration(
            Keyed(), paths, tmp_path / "out.h5", RunOptions(cluster=cluster), lambda _: None
        )
    assert "(200 events are in two inputs)" in str(caught.value)
    assert str(paths[1]) in str(caught.value)
    assert str(paths[3]) in str(caught.value)


def test_results_stored_before_keys_were_divided_are_still_compared():
    assert list(buckets_of(["keys"], 3, 8)) == ["keys"]
