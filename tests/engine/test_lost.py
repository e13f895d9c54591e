"""Inputs that cannot be used: one file of a shard, one of many, a second copy of the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tiny import MeanCounts

from calibdask.engine.options import RunOptions
from calibdask.engine.plan import make_plan
from calibdask.engine.protocol import Piece, Reduced, Values
from calibdask.engine.run import run_calibration
from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData, WrongKind


@dataclass(frozen=True)
class MeanOfBatches(MeanCounts):
    """Several files a shard; those that hold a negative count are lost from it."""

    rejects_copies: ClassVar[bool] = True
    batch: int = 4
    second_stage: bool = False
    forgives: bool = False  # in the second stage

    def survey(self, source):
        counts = np.load(source.path, mmap_mode="r")
        if len(counts) == 0:
            raise CorruptedInput(f"{source.path}: is empty")
        return super().survey(source)

    def misfits(self, surveys):
        return {
            place: NotEnoughData(f"{survey.source.path}: is alone")
            for place, survey in enumerate(surveys)
            if "alone" in survey.source.path
        }

    def pieces(self, surveys):
        refs = [survey.source for survey in surveys]
        for start in range(0, len(refs), self.batch):
            yield Piece(tuple(refs[start : start + self.batch]))

    def read(self, shard, *, forgives=False):
        good, lost = [], []
        for ref in shard.inputs:
            counts = np.load(ref.path)
            if counts.min() < 0 and not forgives:
                lost.append((ref.path, CorruptedInput(f"{ref.path}: has a negative count")))
            else:
                good.append(counts)
        if not good:
            raise lost[0][1]
        return np.concatenate(good), tuple(lost)

    def reduce(self, shard, data):
        counts, lost = data
        reduced = super().reduce(shard, counts)
        return Reduced(reduced.summaries, reduced.cut_flow, rows={"n": np.arange(1)}, lost=lost)

    def refine(self, stage, shard, data, given):
        return self.reduce(shard, self.read(shard, forgives=self.forgives))

    def fit(self, stage, cell, total, given):
        state = super().fit(stage, cell, total, given)
        return Later(state.arrays) if self.second_stage and stage == 0 else Done(state.arrays)

    state: ClassVar = None


@dataclass(frozen=True)
class Done(Values):
    @classmethod
    def from_arrays(cls, arrays):
        return Done(dict(arrays))


@dataclass(frozen=True)
class Later(Done):
    done: ClassVar[bool] = False


MeanOfBatches.state = Done


def write(folder, **more):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for index in range(10):
        np.save(folder / f"c{index}.npy", rng.poisson(50, 30))
    for name, counts in more.items():
        np.save(folder / f"{name}.npy", counts)
    return folder


def run(tmp_path, calibration, allow_missing=0.0, **more):
    heard = []
    result = run_calibration(
        calibration,
        [tmp_path / "in"],
        tmp_path / "out.h5",
        RunOptions(cluster="serial", overwrite=True, allow_missing=allow_missing, **more),
        heard.append,
    )
    return result, [str(one) for one in heard]


@pytest.mark.parametrize("fraction", [float("nan"), -0.1, 1.1])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"allow_missing: .* from 0 to 1"):
        RunOptions(allow_missing=fraction)


def test_a_file_lost_from_a_batch_is_named_and_the_others_are_used(tmp_path):
    write(tmp_path / "in", c3=np.array([1, 2, -1]))
    with pytest.raises(
        CorruptedInput, match=r"c3\.npy: has a negative count\n1 of 10 inputs or sh"
    ):
        run(tmp_path, MeanOfBatches())
    assert not (tmp_path / "out.h5").exists()
    with pytest.raises(CorruptedInput):
        run(tmp_path, MeanOfBatches(), allow_missing=0.09)
    result, heard = run(tmp_path, MeanOfBatches(), allow_missing=0.1)
    assert any("c3.npy: has a negative count" in one for one in heard)
    (tmp_path / "in" / "c3.npy").unlink()
    without, _ = run(tmp_path, MeanOfBatches())
    np.testing.assert_array_equal(
        result.tables["/mean_counts"]["mean"], without.tables["/mean_counts"]["mean"]
    )
    assert "1 MISSING" in str(result)
    assert "MISSING" not in str(without)


def test_a_lost_file_is_in_provenance_and_report(tmp_path):
    write(tmp_path / "in", c3=np.array([1, 2, -1]))
    for _ in range(2):  # the second time from the store
        run(tmp_path, MeanOfBatches(), allow_missing=0.5)
        activity = json.loads((tmp_path / "out.provenance.json").read_text())
        assert [one.rpartition("/")[2] for one in activity["missing"]] == [
            "c3.npy: has a negative count"
        ]
        assert activity["status"] == "incomplete"
    assert "has a negative count" in (tmp_path / "out.html").read_text()


def test_a_whole_shard_weighs_as_many_as_it_has_files(tmp_path):
    bad = np.array([-1])
    write(tmp_path / "in", c0=bad - 1, c1=bad - 2, c2=bad - 3, c3=bad - 4)  # first batch of four
    with pytest.raises(CorruptedInput, match="4 of 10 inputs or shards failed; the other 6"):
        run(tmp_path, MeanOfBatches(), allow_missing=0.39)
    run(tmp_path, MeanOfBatches(), allow_missing=0.4)


def test_two_stages_lose_the_same(tmp_path):
    write(tmp_path / "in", c3=np.array([1, 2, -1]))
    run(tmp_path, MeanOfBatches(second_stage=True), allow_missing=0.1)
    with pytest.raises(CorruptedInput, match="read in one stage and not in another"):
        run(tmp_path, MeanOfBatches(second_stage=True, forgives=True), allow_missing=0.1,
            workdir=tmp_path / "other")  # fmt: skip


def test_misfits_and_copies_are_rejected_alone(tmp_path):
    folder = write(tmp_path / "in", alone=np.arange(5), z_empty=np.arange(0))
    (folder / "d_copy.npy").write_bytes((folder / "c5.npy").read_bytes())
    plan = make_plan(MeanOfBatches(), [folder])
    assert [failure.describe().rpartition("/")[2] for failure in plan.rejected] == [
        "c5.npy, which is used",
        "z_empty.npy: is empty",
        "alone.npy: is alone",
    ]
    assert "d_copy.npy: holds the same data as" in plan.rejected[0].message
    assert len(plan.inputs) == 10
    result, _ = run(tmp_path, MeanOfBatches(), allow_missing=3 / 13)
    assert "3 MISSING" in str(result)


def test_misfits_alone_give_the_error_of_the_first(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "alone.npy", np.arange(5))
    with pytest.raises(NotEnoughData, match=r"alone\.npy: is alone"):
        make_plan(MeanOfBatches(), [folder])


def test_copies_still_end_the_planning_of_events(tmp_path):
    folder = write(tmp_path / "in")
    (folder / "d.npy").write_bytes((folder / "c5.npy").read_bytes())
    with pytest.raises(ConfigError, match="the same data twice"):
        make_plan(MeanCounts(), [folder])


def test_copies_are_judged_among_what_is_taken(tmp_path):
    @dataclass(frozen=True)
    class Picky(MeanCounts):
        def survey(self, source):
            if "other" in source.path:
                raise WrongKind(f"{source.path}: is of another kind")
            return super().survey(source)

    folder = write(tmp_path / "in")
    for name in ("a_other.npy", "other.npy"):
        (folder / name).write_bytes((folder / "c5.npy").read_bytes())
    assert len(make_plan(Picky(), [folder]).inputs) == 10


def test_the_same_data_may_be_two_measurements(tmp_path):
    @dataclass(frozen=True)
    class Counts(MeanOfBatches):
        def repeats(self, survey):
            return len(np.unique(np.load(survey.source.path))) == 1

    full = np.full(30, 4095)
    folder = write(tmp_path / "in", full_1=full, full_2=full, full_3=full)
    (folder / "d.npy").write_bytes((folder / "c5.npy").read_bytes())
    plan = make_plan(Counts(), [folder])
    assert [Path(failure.where).name for failure in plan.rejected] == ["d.npy"]
    identities = [ref.identity for ref in plan.inputs]
    assert len(identities) == len(set(identities)) == 13
    result, _ = run(tmp_path, Counts(), allow_missing=0.1)
    assert dict(result._summary())["counts"] == "390"


def test_skipped_files_of_one_reason_are_told_together(tmp_path):
    @dataclass(frozen=True)
    class Picky(MeanCounts):
        patterns: ClassVar[tuple[str, ...]] = ("**/*.npy",)

        def survey(self, source):
            if "c9" not in source.path:
                odd = "0.npy" in source.path
                raise WrongKind(f"{source.path}: is {'odd' if odd else 'of another kind'}")
            return super().survey(source)

    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a")
    rng = np.random.default_rng(9)
    (tmp_path / "in" / "b").mkdir()
    np.save(tmp_path / "in" / "b" / "x.npy", rng.poisson(3, 9))
    plan = make_plan(Picky(), [tmp_path / "in"])
    assert len(plan.skipped) == 10
    assert plan.skipped_alike() == [
        (str(tmp_path / "in" / "a" / "c0.npy"), "is odd"),
        (f"9 files below {tmp_path / 'in'}", "is of another kind"),
    ]
    assert str(plan).count("\nskipped ") == 2
