"""Flags: letters that mean one thing, columns and masks made and read in one place."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask import flags
from calibdask.flags import Flag, MaskFlag, Severity

ROWS = st.lists(st.frozensets(st.sampled_from(Flag)), min_size=1, max_size=8)


class Mask(MaskFlag):
    FEW_FRAMES = "fewer than two frames"
    HOT = "too hot"


def masks_of(rows):
    return {flag: np.array([flag in row for row in rows]) for flag in Flag}


def test_a_letter_means_one_thing_in_the_whole_project():
    letters = [flag.letter for flag in Flag]
    assert len(set(letters)) == len(letters)
    assert all(re.fullmatch("[A-Za-z]", letter) for letter in letters)
    assert all(Flag(flag.letter) is flag for flag in Flag)
    assert not [flag for flag in Flag if flag.meaning.endswith(".")]


@given(ROWS)
def test_a_column_says_which_flags_each_row_has(rows):
    column = flags.column(masks_of(rows))
    assert [set(text) for text in column.tolist()] == [{f.letter for f in row} for row in rows]
    order = "".join(flag.letter for flag in Flag)
    assert all(list(text) == sorted(text, key=order.index) for text in column.tolist())
    for flag in Flag:
        assert flags.has(column, flag).tolist() == [flag in row for row in rows]
    assert set(flags.present(column)) == frozenset().union(*rows)


@given(ROWS, ROWS)
def test_flags_are_added_and_removed(rows, more):
    rows, more = zip(*zip(rows, more, strict=False), strict=True)
    column = flags.column(masks_of(rows))
    both = flags.add(column, masks_of(more))
    expected = flags.column(masks_of([a | b for a, b in zip(rows, more, strict=True)]))
    assert both.tolist() == expected.tolist()
    assert flags.add(column, {}).tolist() == column.tolist()
    without = flags.remove(both, Flag.NO_ERROR, Flag.VARIES)
    assert not flags.has(without, Flag.NO_ERROR, Flag.VARIES).any()
    assert (
        flags.add(without, masks_of(more)).tolist()
        == flags.add(flags.remove(column, Flag.NO_ERROR, Flag.VARIES), masks_of(more)).tolist()
    )


@given(ROWS)
def test_a_row_is_as_usable_as_its_most_severe_flag(rows):
    column = flags.column(masks_of(rows))
    severities = [max((flag.severity for flag in row), default=0) for row in rows]
    assert flags.worst(column).tolist() == severities
    assert flags.usable(column).tolist() == [one < Severity.UNUSABLE for one in severities]
    found = [flag.severity for flag in flags.present(column)]
    assert found == sorted(found, reverse=True)


def test_one_value_stands_for_all_rows_and_no_rows_have_no_flags():
    assert flags.column({Flag.JUMP: [True, False], Flag.VARIES: True}).tolist() == ["JV", "V"]
    assert flags.column({Flag.JUMP: np.zeros(0, bool)}).tolist() == []
    assert flags.present([]) == ()
    assert flags.usable([]).tolist() == []


def test_bits_of_a_mask_are_in_the_order_of_the_flags():
    assert [(flag.bit, flag.bit.dtype, flag.label) for flag in Mask] == [
        (1, np.uint16, "few-frames"),
        (2, np.uint16, "hot"),
    ]
    mask = np.array([0, 3, 1], np.uint16)
    mask[0] |= Mask.HOT.bit
    assert Mask.count(mask) == {"few-frames": 2, "hot": 2}
    assert Mask.attributes()["flag_masks"] == [1, 2]
    assert Mask.attributes()["flag_meanings"] == "few-frames hot"


def test_a_letter_that_is_no_flag_is_never_taken_for_a_good_row():
    with pytest.raises(ValueError, match="is not a valid Flag"):
        Flag("?")
    assert flags.usable(["", "?", "R"]).tolist() == [True, False, True]
