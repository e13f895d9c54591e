"""The law checker finds what is broken: a check that cannot fail would prove nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.laws import check_summary_laws


@dataclass
class Total:
    """A sum, right as it stands; each broken one below differs in one respect."""

    value: np.ndarray

    def merge(self, other):
        return type(self)(self.value + other.value)

    def to_arrays(self):
        return {"value": self.value}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["value"])


class Mutates(Total):
    def merge(self, other):
        result = super().merge(other)
        self.value += 1e-3
        return result


class Inexact(Total):
    def merge(self, other):
        return type(self)((self.value + other.value) * (1 + 1e-15))


class NotAssociative(Total):
    def merge(self, other):
        if not self.value.any() or not other.value.any():
            return super().merge(other)
        return type(self)(0.5 * (self.value + other.value))


class Forgets(Total):
    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["value"].astype(np.float32).astype(np.float64))


def check(kind, whole=None):
    parts = [kind(np.array([v])) for v in (0.1, 0.7, 5.3, 1.9)]
    check_summary_laws(parts, kind(np.zeros(1)), whole)


def test_a_sum_obeys():
    check(Total, Total(np.array([8.0])))


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Mutates, "identity|mutation"),
        (Inexact, "identity"),
        (NotAssociative, "associativity"),
        (Forgets, "storing"),
    ],
)
def test_what_is_broken_is_found(kind, law):
    with pytest.raises(AssertionError, match=law):
        check(kind)


def test_a_lost_value_is_found():
    with pytest.raises(AssertionError, match="whole"):
        check(Total, Total(np.array([8.1])))
