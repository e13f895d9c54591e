"""The merge tree and the ranges of shards."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.engine.merge import join_ranges, merge_tree, ranges_of
from calibdask.errors import CalibdaskError

sizes = st.integers(1, 600)
fan_ins = st.integers(2, 20)


def _leaves(n_leaves, fan_in):
    """The leaves under every node, by level."""
    levels = {0: [[leaf] for leaf in range(n_leaves)]}
    for node in merge_tree(n_leaves, fan_in):
        below = levels[node.level - 1]
        levels.setdefault(node.level, []).append(
            [leaf for child in node.children for leaf in below[child]]
        )
        assert node.place == len(levels[node.level]) - 1
    return levels


@given(sizes, fan_ins)
def test_every_leaf_is_merged_once_in_plan_order(n_leaves, fan_in):
    levels = _leaves(n_leaves, fan_in)
    for level in levels.values():
        assert [leaf for node in level for leaf in node] == list(range(n_leaves))
    assert len(levels[max(levels)]) == 1


@given(sizes, fan_ins)
def test_groups_are_contiguous_and_within_the_fan_in(n_leaves, fan_in):
    for node in merge_tree(n_leaves, fan_in):
        assert 1 <= len(node.children) <= fan_in
        assert node.children == tuple(range(node.children[0], node.children[-1] + 1))


@given(sizes, fan_ins)
def test_children_come_before_their_parent_and_the_root_last(n_leaves, fan_in):
    nodes = list(merge_tree(n_leaves, fan_in))
    assert [node.level for node in nodes] == sorted(node.level for node in nodes)
    assert sum(node.level == nodes[-1].level for node in nodes) == 1
    assert nodes == list(merge_tree(n_leaves, fan_in))


def test_a_single_leaf_has_a_root():
    (node,) = merge_tree(1, 16)
    assert (node.level, node.children) == (1, (0,))


@pytest.mark.parametrize(("n_leaves", "fan_in"), [(0, 16), (3, 1), (-1, 2)])
def test_refuses_trees_that_cannot_be(n_leaves, fan_in):
    with pytest.raises(ValueError, match="no merge tree"):
        list(merge_tree(n_leaves, fan_in))


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_their_indices(indices):
    ranges = ranges_of(sorted(indices, reverse=True))
    assert {index for start, stop in ranges for index in range(start, stop)} == indices
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))


@given(st.sets(st.integers(0, 60)), st.data())
def test_joining_is_the_union_whatever_the_parts(indices, data):
    parts = [set() for _ in range(4)]
    for index in indices:
        parts[data.draw(st.integers(0, 3))].add(index)
    assert join_ranges([ranges_of(list(part)) for part in parts]) == ranges_of(list(indices))


@given(st.sets(st.integers(0, 20), min_size=1), st.sets(st.integers(0, 20), min_size=1))
def test_a_shard_in_two_parts_is_refused(one, other):
    parts = [ranges_of(list(one)), ranges_of(list(other))]
    if one & other:
        with pytest.raises(CalibdaskError, match="counted twice"):
            join_ranges(parts)
    else:
        assert join_ranges(parts) == ranges_of(list(one | other))
