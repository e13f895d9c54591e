"""Coefficients from what is stored so far, compared with runs over just those shards."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from faults import ClippedMeans, Scripted, calls, run, write_inputs

from calibdask import api
from calibdask.array.inter_calibration import InterCalibration
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine import events
from calibdask.engine.plan import make_plan
from calibdask.engine.preliminary import preliminary
from calibdask.engine.products import digest_output
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext

FAN_IN = 3
TABLE = "/dl2/monitoring/subarray/inter_calibration"


def _look(calibration, paths, workdir, fan_in=FAN_IN):
    inputs = [paths] if isinstance(paths, Path) else paths
    plan = make_plan(calibration, inputs, fan_in=fan_in)
    return preliminary(plan, WorkContext(plan.calibration, Store(workdir / "store")))


def _files(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def _spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    path.write_bytes(content)


class _Stop(Exception):
    """End a run at an event."""


def _run_until(calibration, paths, output, stop, **options):
    def listener(event):
        if stop(event):
            raise _Stop

    with pytest.raises(_Stop):
        run(calibration, paths, output, listener=listener, **options)


# -- one stage, one cell --------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[0], [0, 1, 2, 3], [1, 5, 6, 7, 8, 13], range(13)])
def test_equal_to_a_run_over_only_those_shards(tmp_path, indices):
    paths = write_inputs(tmp_path / "data", 14)
    some = [paths[index] for index in indices]
    workdir = tmp_path / "work"
    alone = run(Scripted(), some, tmp_path / "out.h5", workdir=workdir, fan_in=FAN_IN)
    before = _files(workdir)
    seen = _look(Scripted(), paths, workdir)
    assert _files(workdir) == before, "nothing is written"
    assert (len(seen.merged), seen.n_shards, seen.done) == (len(some), 14, True)
    for column in ("mean", "error"):
        np.testing.assert_allclose(
            seen.tables["/mean_counts"][column], alone.tables["/mean_counts"][column], rtol=1e-12
        )
    assert f"{len(some)} of 14 shards" in str(seen)
    assert f"{len(some)} of 14 shards" in seen._repr_html_()


def test_of_a_finished_run_it_is_the_result_bit_for_bit(tmp_path):
    paths = write_inputs(tmp_path / "data", 14)
    result = run(Scripted(), paths, tmp_path / "out.h5", workdir=tmp_path / "work", fan_in=FAN_IN)
    seen = _look(Scripted(), paths, tmp_path / "work")
    assert seen.merged == tuple(range(14))
    table, other = seen.tables["/mean_counts"], result.tables["/mean_counts"]
    assert [np.array_equal(table[name], other[name]) for name in ("mean", "error")] == [True, True]


def test_no_input_is_read_and_merges_are_taken_as_they_are(tmp_path, monkeypatch):
    paths = write_inputs(tmp_path / "data", 9)
    journal = tmp_path / "journal"
    calibration = Scripted(journal=str(journal))
    result = run(calibration, paths, tmp_path / "out.h5", workdir=tmp_path / "work", fan_in=FAN_IN)
    plan = make_plan(calibration, paths, fan_in=FAN_IN)
    reads = {name: n for name, n in calls(journal).items() if name != "fit"}
    for path in paths:
        path.unlink()
    loaded = []
    load = Store.open
    monkeypatch.setattr(Store, "open", lambda *a: (loaded.append(a[1]), load(*a))[1])
    preliminary(plan, WorkContext(calibration, Store(tmp_path / "work" / "store")))
    assert {name: n for name, n in calls(journal).items() if name != "fit"} == reads
    leaves = {plan.address(0, shard, {}) for shard in plan.shards}
    assert not leaves & set(loaded), "four merges hold them all"
    assert result.account.computed == 9


def test_while_it_runs(tmp_path):
    paths = write_inputs(tmp_path / "data", 8)
    workdir = tmp_path / "work"
    seen = []

    def listener(event):
        if isinstance(event, events.TaskEnded) and event.group == "map":
            seen.append(_look(Scripted(), paths, workdir))

    run(Scripted(), paths, tmp_path / "out.h5", workdir=workdir, fan_in=FAN_IN, listener=listener)
    assert [len(one.merged) for one in seen] == list(range(1, 9))
    means = [float(one.tables["/mean_counts"]["mean"][0]) for one in seen]
    assert len(set(means)) == 8


def test_nothing_is_stored_yet(tmp_path):
    seen = _look(Scripted(), write_inputs(tmp_path / "data", 3), tmp_path / "work")
    assert (seen.merged, dict(seen.tables)) == ((), {})
    assert "nothing can be fitted yet" in str(seen)
    assert not (tmp_path / "work").exists()


def test_a_shard_that_failed_is_not_in_it(tmp_path):
    paths = write_inputs(tmp_path / "data", 7)
    workdir = tmp_path / "work"
    calibration = Scripted(script={"002.npy": ["raise CorruptedInput!"]})
    result = run(
        calibration, paths, tmp_path / "out.h5", workdir=workdir, fan_in=FAN_IN, allow_missing=0.5
    )
    seen = _look(calibration, paths, workdir)
    assert len(seen.merged) == 6
    table, other = seen.tables["/mean_counts"], result.tables["/mean_counts"]
    assert np.array_equal(table["mean"], other["mean"]), "the merges without it are found"


def test_what_is_broken_is_left_out_and_left_alone(tmp_path):
    paths = write_inputs(tmp_path / "data", 9)
    workdir = tmp_path / "work"
    run(Scripted(), paths, tmp_path / "out.h5", workdir=workdir, fan_in=FAN_IN)
    plan = make_plan(Scripted(), paths, fan_in=FAN_IN)
    store = Store(workdir / "store")
    leaves = [plan.address(0, shard, {}) for shard in plan.shards]
    for address in store.scan() - set(leaves):
        _spoil(store.path(address))  # every merge, and the fit
    _spoil(store.path(leaves[4]))
    before = _files(workdir)
    seen = _look(Scripted(), paths, workdir)
    assert _files(workdir) == before
    assert seen.merged == (0, 1, 2, 3, 5, 6, 7, 8)
    assert leaves[4] in str(seen)
    good = [path for shard in plan.shards if shard.index != 4 for path in [shard.inputs[0].path]]
    alone = run(Scripted(), good, tmp_path / "alone.h5")
    np.testing.assert_allclose(
        seen.tables["/mean_counts"]["mean"], alone.tables["/mean_counts"]["mean"], rtol=1e-12
    )


# -- stages and cells -----------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path):
    """Six files of three objects, with values that need clipping."""
    rng = np.random.default_rng(5)
    directory = tmp_path / "objects"
    directory.mkdir()
    for number in range(6):
        values = [
            np.column_stack([np.full(60, one), rng.normal(one, 1.0, 60)]) for one in (1, 2, 3)
        ]
        values[0][:3, 1] += 40.0
        np.save(directory / f"{number}.npy", np.concatenate(values))
    return directory


def _is_stage(number):
    return lambda event: isinstance(event, events.StageStarted) and event.stage == number


def test_later_stages_count_where_they_are_complete(objects, tmp_path):
    calibration = ClippedMeans(n_sigma=3.0)
    workdir = tmp_path / "work"
    result = run(calibration, objects, tmp_path / "out.h5", workdir=workdir, fan_in=2)
    last = int(max(result.tables["/objects"]["stage"]))
    assert last >= 2
    seen = _look(calibration, objects, workdir, fan_in=2)
    assert seen.done
    for name in ("object", "mean", "n", "stage"):
        assert np.array_equal(seen.tables["/objects"][name], result.tables["/objects"][name])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_under_way_leaves_what_the_one_before_gave(objects, tmp_path, stage):
    calibration = ClippedMeans(n_sigma=3.0)
    workdir = tmp_path / "work"

    def stop(event):
        return (
            isinstance(event, events.TaskEnded)
            and (event.stage, event.group) == (stage, "map")
            and event.label.startswith("3")
        )

    _run_until(calibration, objects, tmp_path / "out.h5", stop, workdir=workdir, fan_in=2)
    seen = _look(calibration, objects, workdir, fan_in=2)
    assert not seen.done
    assert max(seen.tables["/objects"]["stage"]) == stage - 1
    assert "later stages of the fit missing" in str(seen)
    assert len(seen.merged) == 6


def test_cells_without_a_shard_are_counted(objects, tmp_path):
    rng = np.random.default_rng(6)
    workdir = tmp_path / "work"
    run(ClippedMeans(), objects, tmp_path / "out.h5", workdir=workdir, fan_in=2)
    np.save(objects / "9.npy", np.column_stack([np.full(60, 4), rng.normal(4, 1.0, 60)]))
    seen = _look(ClippedMeans(), objects, workdir, fan_in=2)
    assert list(seen.tables["/objects"]["object"]) == [1, 2, 3]
    assert "1 of 4 cells cannot be fitted yet" in str(seen)
    assert (len(seen.merged), seen.n_shards) == (6, 7)


def test_a_cell_with_too_little_says_so(objects, tmp_path):
    workdir = tmp_path / "work"
    _run_until(ClippedMeans(), objects, tmp_path / "out.h5", _is_stage(1), workdir=workdir)
    # The limit is an option of the fit alone: it makes no other shards.
    seen = _look(ClippedMeans(n_min=1000), objects, workdir, fan_in=16)
    assert dict(seen.tables) == {}
    assert "1000 are needed" in str(seen)


# -- inter-calibration ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dl2(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dl2")
    simulate_array(directory, ArraySimulation(n_files=3, n_telescope_events=9000, array="reduced"))
    return sorted(directory.glob("*.h5"))


def _calibration(estimator):
    overrides = {"CalculateInterCalibration.RelativeThroughputFitter.estimator": estimator}
    return api.load_config("inter-calibration", overrides=overrides).calibration


class _Unselective(InterCalibration):
    """What the first stage of log-mean fits: it cannot select about its own model yet."""

    @property
    def network(self):
        return replace(super().network, symmetric=False)


@pytest.mark.parametrize("estimator", ["log-mean", "log-median", "log-clipped", "asymmetry"])
def test_a_number_that_is_no_error_is_not_shown_as_one(dl2, tmp_path, estimator):
    calibration, workdir = _calibration(estimator), tmp_path / "work"
    final = run(calibration, dl2[:2], tmp_path / "done.h5").tables[TABLE]
    if estimator == "log-mean":
        known = {one.name: getattr(calibration, one.name) for one in fields(calibration)}
        final = run(_Unselective(**known), dl2[:2], tmp_path / "first.h5").tables[TABLE]
    stop = _is_stage(1)
    _run_until(calibration, dl2[:2], tmp_path / "out.h5", stop, workdir=workdir)
    seen = _look(calibration, dl2, workdir)
    assert (len(seen.merged), seen.n_shards, seen.done) == (2, 3, False)
    assert list(seen.tables) == [TABLE]
    table = seen.tables[TABLE]
    assert np.all(np.isnan(table["error"]))
    assert "n_events" not in table.colnames, "nobody has counted them yet"
    good = np.isfinite(final["value"])
    assert good.sum() > 5
    flags = np.asarray(table["flags"])
    assert all("P" in one and "B" not in one for one in flags[good])
    if estimator == "log-clipped":
        # Its first stage gives medians: close, and without an error of any kind.
        np.testing.assert_allclose(table["value"][good], final["value"][good], atol=0.05)
        assert np.all(np.isnan(table["error_independent"]))
    else:
        for name in ("value", "error_independent"):
            np.testing.assert_allclose(table[name][good], final[name][good], rtol=1e-9)


def test_the_errors_are_there_once_they_are_known(dl2, tmp_path):
    calibration, workdir = _calibration("log-mean"), tmp_path / "work"
    result = run(calibration, dl2, tmp_path / "out.h5", workdir=workdir)
    seen = _look(calibration, dl2, workdir, fan_in=16)
    assert seen.done
    assert list(seen.tables) == list(result.tables)
    for name in ("value", "error", "n_events", "flags"):
        assert np.array_equal(
            seen.tables[TABLE][name], result.tables[TABLE][name],
            equal_nan=name in ("value", "error"),
        )  # fmt: skip
    assert digest_output(tmp_path / "out.h5") == result.digest
    assert not any("P" in one for one in seen.tables[TABLE]["flags"])
