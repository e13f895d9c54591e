"""A shard that fails after it has been fitted with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from tiny import MeanCounts

import calibdask
from calibdask.engine.protocol import Reduced, Values
from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class First(Values):
    """A state that asks for one more stage until it has had it."""

    @property
    def done(self) -> bool:
        return bool(self.arrays["stage"][0])


@dataclass(frozen=True)
class TwoStages(MeanCounts):
    name: ClassVar[str] = "two-stages"
    state = First
    fails: str = ""

    def reduce(self, shard, data):
        return Reduced(super().reduce(shard, data).summaries, rows={"counts": data})

    def refine(self, stage, shard, data, given):
        if shard.label == self.fails:
            raise CorruptedInput(f"{shard.label}: its rows are gone")
        return super().reduce(shard, data["counts"])

    def fit(self, stage, cell, total, given):
        mean = super().fit(stage, cell, total, given).arrays
        return First({**mean, "stage": np.array([stage])})


def test_nothing_is_left_out_once_it_was_fitted_with(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.arange(10 + number))
    where = {"cluster": "serial", "report": False, "workdir": tmp_path / "work"}
    with pytest.raises(CorruptedInput, match=r"2.npy: its rows are gone\n\(stage 1;"):
        calibdask.run(
            TwoStages(fails="2.npy"), tmp_path, tmp_path / "out.h5", allow_missing=1.0, **where
        )
    assert not (tmp_path / "out.h5").exists()
    again = calibdask.run(TwoStages(), tmp_path, tmp_path / "out.h5", **where)
    assert (again.account.computed, again.account.cached) == (0, 4)
