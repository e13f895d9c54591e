"""The account that travels with results."""

from __future__ import annotations

import json

import pytest

from calibdask import errors
from calibdask.engine.envelope import Envelope, Failure
from calibdask.errors import WrongKind

ONE = Envelope(
    ((0, 1),), {"all": 10, "good": 4}, ((1, 5, 9, 0),), 1.0, 2.0, 100, ("x86",), ("odd",)
)
TWO = Envelope(((2, 3),), {"all": 5, "bright": 3}, ((1, 20, 30, 2),), 0.5, 0.5, 300, ("arm",), ())


def test_merging_adds_everything_up():
    both = ONE.merge(TWO)
    assert both.shards == ((0, 1), (2, 3))
    assert both.cut_flow == {"all": 15, "good": 4, "bright": 3}
    assert list(both.cut_flow) == ["all", "good", "bright"]
    assert both.key_ranges == ((1, 5, 9, 0), (1, 20, 30, 2))
    assert (both.cpu_seconds, both.wall_seconds, both.peak_bytes) == (1.5, 2.5, 300)
    assert both.cpu_classes == ("arm", "x86")
    assert both.warnings == ("odd",)
    assert ONE.cut_flow == {"all": 10, "good": 4}


def test_the_empty_account_is_the_identity():
    assert Envelope().merge(ONE) == ONE
    assert ONE.merge(Envelope()) == ONE


def test_the_same_shard_twice_is_refused():
    with pytest.raises(errors.CalibdaskError, match="counted twice"):
        ONE.merge(ONE)


def test_header_comes_back_at_the_shards_new_place():
    header = json.loads(json.dumps(ONE.to_header(), sort_keys=True))
    back = Envelope.from_header(header, 7)
    assert back.shards == ((7, 8),)
    assert back.key_ranges == ((1, 5, 9, 7),)
    assert list(back.cut_flow) == ["all", "good"]  # the order of selection, not of the alphabet
    assert back.cut_flow == ONE.cut_flow
    assert (back.cpu_seconds, back.peak_bytes, back.warnings) == (1.0, 100, ("odd",))


@pytest.mark.parametrize("name", errors.__all__)
def test_failures_keep_kind_code_and_message(name):
    kind = getattr(errors, name)
    failure = Failure.of(kind("a.h5: row 3 is bad"), "a.h5")
    again = failure.error("\nmore")
    assert type(again) is kind
    assert str(again) == "a.h5: row 3 is bad\nmore"
    assert failure.exit_code == kind.exit_code


def test_a_derived_kind_keeps_its_exit_code():
    failure = Failure.of(WrongKind("a.h5: is a picture"), "a.h5")
    assert failure.error().exit_code == errors.MissingInput.exit_code


def test_an_unforeseen_error_exits_1_and_says_its_kind():
    failure = Failure.of(ZeroDivisionError("division by zero"), "a.h5", "Traceback ...")
    assert failure.exit_code == 1
    assert failure.describe() == "a.h5: division by zero (ZeroDivisionError)"
    assert type(failure.error()) is errors.CalibdaskError
    assert "Traceback" not in str(failure.error())
