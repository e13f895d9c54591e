"""Several cells per shard, each with its own stages: clipping until nothing is outside."""

from __future__ import annotations

import numpy as np
import pytest
from faults import ClippedMeans, calls, run

from calibdask.engine.store import Store
from calibdask.errors import CalibdaskError, CorruptedInput, NotEnoughData

CALM, ONE_CLIP, TWO_CLIPS = 1, 2, 3


@pytest.fixture
def data(tmp_path):
    """Three objects in three files: one calm, one with an outlier, one with two of them.

    The larger outlier of the third hides the smaller from the first clip. One file holds the first
    two objects only, one the last two.
    """
    directory = tmp_path / "data"
    directory.mkdir()
    random = np.random.default_rng(5)
    for name, objects in (("a", (1, 2, 3)), ("b", (1, 2)), ("c", (2, 3))):
        parts = []
        for number in objects:
            values = number + random.uniform(-1, 1, 200)
            if name == "a" and number == ONE_CLIP:
                values[0] = 40
            if name == "a" and number == TWO_CLIPS:
                values[:2] = 1000, 30
            parts.append(np.column_stack([np.full(len(values), number), values]))
        np.save(directory / f"{name}.npy", np.concatenate(parts))
    return directory


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def _clipped(values):
    stage = 0
    while True:
        mean, sigma = values.mean(), values.std()
        inside = np.abs(values - mean) <= 3 * sigma
        if inside.all():
            return mean, len(values), stage
        values, stage = values[inside], stage + 1


def _truth(data):
    rows = np.concatenate([np.load(path) for path in sorted(data.iterdir())])
    return [_clipped(rows[rows[:, 0] == number, 1]) for number in (1, 2, 3)]


def test_cells_end_at_their_own_stages_with_the_right_numbers(data, output, journal):
    table = run(ClippedMeans(journal=str(journal)), data, output).tables["/objects"]
    truth = _truth(data)
    assert [stage for _, _, stage in truth] == [0, 1, 2], "the data do not test what they should"
    assert list(table["object"]) == [1, 2, 3]
    np.testing.assert_allclose(table["mean"], [mean for mean, _, _ in truth], rtol=1e-12)
    assert list(table["n"]) == [n for _, n, _ in truth]
    assert list(table["stage"]) == [0, 1, 2]


def test_a_cell_that_is_done_is_not_mapped_again(data, output, journal):
    run(ClippedMeans(journal=str(journal)), data, output)
    counts = calls(journal)
    later = {name: count for name, count in counts.items() if name.startswith("stage")}
    assert later == {
        "stage 1 2 a.npy": 1, "stage 1 2 b.npy": 1, "stage 1 2 c.npy": 1,
        "stage 1 3 a.npy": 1, "stage 1 3 c.npy": 1,
        "stage 2 3 a.npy": 1, "stage 2 3 c.npy": 1,
    }  # fmt: skip
    fits = {name for name in counts if name.startswith("fit")}
    assert fits == {"fit 0 1", "fit 0 2", "fit 0 3", "fit 1 2", "fit 1 3", "fit 2 3"}


def test_files_are_read_once_and_rows_serve_the_later_stages(data, output, journal):
    run(ClippedMeans(journal=str(journal)), data, output)
    reads = {name: count for name, count in calls(journal).items() if name.startswith("read")}
    assert reads == {"read a.npy": 1, "read b.npy": 1, "read c.npy": 1}


def test_addresses_change_only_for_the_cells_concerned(data, output, journal):
    calibration = ClippedMeans(journal=str(journal))
    run(calibration, data, output)
    before = calls(journal)
    # Another file with objects 1 and 3: object 2 has the same members and states as before.
    extra = np.column_stack([[1.0, 1.0, 3.0, 3.0], [0.9, 1.1, 2.9, 3.1]])
    np.save(data / "d.npy", extra)
    run(calibration, data, output, overwrite=True)
    new = calls(journal) - before
    # File b holds objects 1 and 2; at stage 1 only object 2 is left in it, whose state is known.
    assert "fit 0 2" not in new
    assert "stage 1 2 b.npy" not in new
    assert new["stage 1 3 d.npy"] == new["stage 2 3 d.npy"] == 1
    assert new["read d.npy"] == 1
    assert not any(new[f"read {name}.npy"] for name in "abc")


def test_looser_clipping_maps_stage_0_no_more(data, output, journal):
    run(ClippedMeans(journal=str(journal)), data, output)
    result = run(ClippedMeans(journal=str(journal), n_sigma=100.0), data, output, overwrite=True)
    assert list(result.tables["/objects"]["stage"]) == [0, 0, 0]
    assert sum(count for name, count in calls(journal).items() if name.startswith("read")) == 3


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_the_digest_does_not_depend_on_the_executor(data, output, tmp_path, executor):
    digest = run(ClippedMeans(), data, output).digest
    other = run(ClippedMeans(), data, tmp_path / "other.h5", cluster=executor, fan_in=16)
    assert other.digest == digest


def _map_packs(output, *, with_rows):
    store = Store(output.with_name("out.h5.work") / "store")
    found = []
    for address in sorted(store.scan()):
        with store.open(address) as pack:
            if "envelope" in pack.header and bool(pack.group("rows")) is with_rows:
                found.append(store.path(address))
    return found


def test_lost_rows_are_made_again(data, output, journal):
    calibration = ClippedMeans(journal=str(journal))
    first = run(calibration, data, output)
    for path in _map_packs(output, with_rows=True) + _map_packs(output, with_rows=False):
        path.unlink()
    assert run(calibration, data, output, overwrite=True).digest == first.digest


def test_rows_that_break_between_stages_are_made_again(data, output, journal):
    first = run(ClippedMeans(), data, output)

    class Breaking(ClippedMeans):
        def fit(self, stage, cell, total, given):
            if (stage, cell) == (0, ("object", CALM)):
                for path in _map_packs(output, with_rows=True):
                    content = bytearray(path.read_bytes())
                    content[-1] ^= 1  # the rows are the last of its arrays
                    path.write_bytes(content)
            return super().fit(stage, cell, total, given)

    for path in _map_packs(output, with_rows=False):
        path.unlink()
    for path in (output.with_name("out.h5.work") / "store").rglob("*.pack"):
        with Store(path.parents[1]).open(path.stem) as pack:
            is_fit = "done" in pack.header
        if is_fit:
            path.unlink()
    calibration = Breaking(journal=str(journal))
    assert run(calibration, data, output, overwrite=True).digest == first.digest
    reads = {name: count for name, count in calls(journal).items() if name.startswith("read")}
    assert reads == {"read a.npy": 1, "read b.npy": 1, "read c.npy": 1}


def test_a_cell_without_data_is_told_and_the_others_are_kept(data, output, journal):
    np.save(data / "e.npy", np.array([[9.0, np.nan], [9.0, np.inf]]))
    calibration = ClippedMeans(journal=str(journal))
    with pytest.raises(NotEnoughData, match="object/9: no input holds anything for it") as caught:
        run(calibration, data, output)
    assert "values 1402" in str(caught.value)
    assert not output.exists()
    assert calls(journal)["fit 2 3"] == 1, "the other cells went through all their stages"


def test_a_failing_fit_of_one_cell_does_not_stop_the_others(data, output, journal):
    np.save(data / "e.npy", np.array([[9.0, 1.0], [9.0, 2.0]]))
    calibration = ClippedMeans(journal=str(journal))
    with pytest.raises(NotEnoughData, match="object 9: 2 values, 3 are needed"):
        run(calibration, data, output)
    assert not output.exists()
    before = calls(journal)
    assert before["fit 2 3"] == 1
    # A fit option mends it; no file is read again.
    result = run(ClippedMeans(journal=str(journal), n_min=2), data, output)
    assert list(result.tables["/objects"]["object"]) == [1, 2, 3, 9]
    assert calls(journal)["read a.npy"] == before["read a.npy"]


def test_a_bug_in_a_fit_is_told_with_its_cell(data, output, journal):
    calibration = ClippedMeans(journal=str(journal), script={"fit 0 2": ["raise ValueError"]})
    with pytest.raises(CalibdaskError, match=r"fit of object/2: .*\(ValueError\)"):
        run(calibration, data, output)
    run(calibration, data, output)


def test_a_shard_that_fails_is_left_out_of_every_stage(data, output, journal):
    calibration = ClippedMeans(journal=str(journal), script={"a.npy": ["raise CorruptedInput!"]})
    with pytest.raises(CorruptedInput):
        run(calibration, data, output)
    result = run(calibration, data, output, allow_missing=0.5)
    (data / "a.npy").unlink()
    truth = _truth(data)
    np.testing.assert_allclose(result.tables["/objects"]["mean"], [one[0] for one in truth])
    assert list(result.tables["/objects"]["n"]) == [one[1] for one in truth]


def test_a_calibration_that_never_ends_is_stopped(data, output):
    class Endless(ClippedMeans):
        def fit(self, stage, cell, total, given):
            state = super().fit(stage, cell, total, given)
            return type(state)({**state.arrays, "inside": np.array(False)})

    with pytest.raises(CalibdaskError, match="were not done after 100 stages"):
        run(Endless(), data / "c.npy", output)
