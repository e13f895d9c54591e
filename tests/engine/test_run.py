"""A run: what is computed, what is kept, what failures do, what a broken store costs."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults import Keyed, Scripted, calls, run, write_inputs

from calibdask.engine import events, products, store, tasks
from calibdask.engine.products import digest_output
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext
from calibdask.errors import (
    CalibdaskError,
    ConfigError,
    CorruptedInput,
    MissingInput,
    NotEnoughData,
    TransientError,
)


class Newer(Scripted):
    """Its numbers changed."""

    version = 2


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 7)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(tasks.time, "sleep", lambda _: None)


def _read(journal):
    """How often each input was read."""
    return {name: count for name, count in calls(journal).items() if name.endswith(".npy")}


def _packs(output, kind=None):
    """The stored results; of one kind if asked."""
    found = []
    root = output.with_name(output.name + ".work") / "store"
    for address in sorted(Store(root).scan()):
        with Store(root).open(address) as pack:
            what = (
                "map" if "envelope" in pack.header
                else "merge" if "filled" in pack.header
                else "fit"
            )  # fmt: skip
        if kind in (None, what):
            found.append(Store(root).path(address))
    return found


def test_the_result_is_right(paths, output):
    result = run(Scripted(), paths, output, fan_in=3)
    values = np.concatenate([np.load(path) for path in paths])
    table = result.tables["/mean_counts"]
    np.testing.assert_allclose(table["mean"], values.mean(), rtol=1e-9)
    np.testing.assert_allclose(table["error"], values.std(ddof=1) / np.sqrt(values.size), rtol=1e-9)
    assert result.account.total.shards == ((0, 7),)
    assert result.account.total.cut_flow == {"counts": values.size}
    assert digest_output(output) == result.digest


def test_the_order_of_merging_can_be_seen_in_these_data(paths, output):
    # Otherwise none of the comparisons of digests in these tests would mean anything.
    sums = [np.load(path).sum() for path in paths]
    orders = [sums, sums[::-1], sums[3:] + sums[:3], sorted(sums), sorted(sums, key=abs)]
    assert len({sum(order) for order in orders}) > 1
    digests = {run(Scripted(), paths, output, fan_in=n, overwrite=True).digest for n in (2, 16)}
    assert len(digests) == 2


# -- resuming ---------------------------------------------------------


def test_running_again_computes_nothing(paths, output, journal):
    calibration = Scripted(journal=str(journal))
    first = run(calibration, paths, output)
    before = calls(journal)
    again = run(calibration, paths, output, overwrite=True)
    assert calls(journal) == before
    assert again.digest == first.digest
    assert (first.account.computed, first.account.cached) == (7, 0)
    assert (again.account.computed, again.account.cached) == (0, 7)
    assert again.account.total.cut_flow == first.account.total.cut_flow


def test_adding_files_computes_only_the_new_ones(paths, output, journal, tmp_path):
    calibration = Scripted(journal=str(journal))
    run(calibration, paths[2:5], output)
    result = run(calibration, paths, output, overwrite=True)
    assert _read(journal) == {path.name: 1 for path in paths}
    assert (result.account.computed, result.account.cached) == (4, 3)
    assert result.account.total.shards == ((0, 7),)
    assert result.digest == run(Scripted(), paths, tmp_path / "fresh.h5").digest


def test_renamed_inputs_are_not_read_again(paths, output, journal, tmp_path):
    calibration = Scripted(journal=str(journal))
    first = run(calibration, paths, output)
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(reversed(paths)):
        shutil.move(path, moved / f"x{number}.npy")
    assert run(calibration, moved, output, overwrite=True).digest == first.digest
    assert sum(_read(journal).values()) == 7


def test_an_edited_input_is_read_again(paths, output, journal, tmp_path):
    calibration = Scripted(journal=str(journal))
    first = run(calibration, paths, output)
    np.save(paths[3], np.load(paths[3]) + 1)
    second = run(calibration, paths, output, overwrite=True)
    assert _read(journal) == {path.name: 1 + (path == paths[3]) for path in paths}
    assert second.digest != first.digest
    assert second.digest == run(Scripted(), paths, tmp_path / "fresh.h5").digest


def test_fit_options_reuse_every_map(paths, output, journal):
    first = run(Scripted(journal=str(journal)), paths, output)
    second = run(Scripted(journal=str(journal), scale=2.0), paths, output, overwrite=True)
    assert _read(journal) == {path.name: 1 for path in paths}
    assert calls(journal)["fit"] == 2
    one, two = (each.tables["/mean_counts"]["mean"][0] for each in (first, second))
    assert two == 2 * one


def test_map_options_reuse_nothing(paths, output, journal):
    run(Scripted(journal=str(journal)), paths, output)
    run(Scripted(journal=str(journal), offset=1.0), paths, output, overwrite=True)
    assert _read(journal) == {path.name: 2 for path in paths}


def test_a_new_version_reuses_nothing(paths, output, journal):
    run(Scripted(journal=str(journal)), paths, output)
    run(Newer(journal=str(journal)), paths, output, overwrite=True)
    assert _read(journal) == {path.name: 2 for path in paths}
    assert calls(journal)["fit"] == 2


# -- a broken store ---------------------------------------------------------


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path):
    """Flip a bit in the first array's numbers, leaving the header readable."""
    content = bytearray(path.read_bytes())
    content[20 + int.from_bytes(content[12:20], "little")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip])
@pytest.mark.parametrize(
    ("kind", "lost"), [("map", ["merge", "fit"]), ("merge", ["fit"]), ("fit", [])]
)
def test_a_broken_result_is_computed_again_with_a_warning(paths, output, kind, lost, damage):
    told = []
    first = run(Scripted(), paths, output, fan_in=3)
    damaged = _packs(output, kind)[-1]
    for path in [path for other in lost for path in _packs(output, other)]:
        path.unlink()  # so that the damaged result is needed
    if kind == "merge":
        damaged = _root(output)
    damage(damaged)
    again = run(Scripted(), paths, output, fan_in=3, overwrite=True, listener=told.append)
    assert again.digest == first.digest
    warnings = [one.text for one in told if isinstance(one, events.Message)]
    assert any("computed again" in text and str(damaged) in text for text in warnings)
    assert any("computed again" in note for note in again.account.notes)
    store = Store(output.with_name("out.h5.work") / "store")
    assert all(store.is_sound(address) for address in store.scan())


def _root(output):
    """The merge of everything: the last one written."""
    return max(_packs(output, "merge"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("damage", [_truncate, _flip])
def test_a_broken_result_that_nobody_needs_costs_nothing(paths, output, journal, damage):
    calibration = Scripted(journal=str(journal))
    first = run(calibration, paths, output, fan_in=3)
    before = calls(journal)
    damage(_packs(output, "merge")[0])
    assert run(calibration, paths, output, fan_in=3, overwrite=True).digest == first.digest
    assert calls(journal) == before


def test_every_result_broken_costs_a_run_and_no_bit(paths, output):
    first = run(Scripted(), paths, output, fan_in=3)
    for path in _packs(output):
        path.write_bytes(b"")
    assert run(Scripted(), paths, output, fan_in=3, overwrite=True).digest == first.digest


def test_any_part_of_the_store_may_be_lost(paths, output, journal):
    calibration = Scripted(journal=str(journal))
    first = run(calibration, paths, output, fan_in=3)
    packs = _packs(output)
    for seed in range(6):
        for path in random.Random(seed).sample(packs, len(packs) // 2):
            path.unlink()
        assert run(calibration, paths, output, fan_in=3, overwrite=True).digest == first.digest
    shutil.rmtree(packs[0].parents[1])
    assert run(calibration, paths, output, fan_in=3, overwrite=True).digest == first.digest


# -- faults by script ---------------------------------------------------------


def test_a_fault_that_passes_is_tried_again(paths, output, journal, tmp_path):
    script = {"003.npy": ["raise TransientError", "raise TransientError", "ok"]}
    told = []
    result = run(Scripted(journal=str(journal), script=script), paths, output, listener=told.append)
    assert _read(journal)["003.npy"] == 3
    assert sum(_read(journal).values()) == 9
    assert result.digest == run(Scripted(), paths, tmp_path / "fresh.h5").digest
    assert sum("tried again" in note for note in result.account.notes) == 2


def test_a_fault_that_does_not_pass_exits_100_and_can_be_carried_on(paths, output, journal):
    script = {"003.npy": ["raise TransientError"] * 3}
    calibration = Scripted(journal=str(journal), script=script)
    with pytest.raises(TransientError, match=r"003\.npy") as caught:
        run(calibration, paths, output, retries=2)
    assert caught.value.exit_code == 100
    assert _read(journal)["003.npy"] == 3
    assert not output.exists()
    run(calibration, paths, output, retries=2)
    assert _read(journal) == {path.name: 4 if path.name == "003.npy" else 1 for path in paths}


def test_retries_can_be_switched_off(paths, output, journal):
    script = {"003.npy": ["raise TransientError"]}
    with pytest.raises(TransientError):
        run(Scripted(journal=str(journal), script=script), paths, output, retries=0)
    assert _read(journal)["003.npy"] == 1


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("CorruptedInput", CorruptedInput, 104),
        ("MissingInput", MissingInput, 105),
        ("NotEnoughData", NotEnoughData, 106),
        ("ConfigError", ConfigError, 2),
        ("ValueError", CalibdaskError, 1),
        ("MemoryError", CalibdaskError, 1),
        ("OSError", CalibdaskError, 1),
    ],
)
def test_a_bad_shard_is_not_tried_again_and_does_not_stop_the_others(
    paths, output, journal, name, kind, code
):
    calibration = Scripted(journal=str(journal), script={"003.npy": [f"raise {name}!"]})
    with pytest.raises(kind, match=r"003\.npy") as caught:
        run(calibration, paths, output)
    text = str(caught.value)
    assert caught.value.exit_code == code
    assert "1 of 7 inputs or shards failed; the other 6 are stored" in text
    assert "--allow-missing" in text
    assert "Traceback" not in text
    assert _read(journal) == {path.name: 1 for path in paths}
    assert not output.exists()
    assert not list(output.parent.glob("out*.*[!k]"))
    # Mended, only the bad one is computed.
    run(Scripted(journal=str(journal)), paths, output)
    assert _read(journal) == {path.name: 1 + (path.name == "003.npy") for path in paths}


def test_the_traceback_of_a_bug_goes_to_the_log(paths, output):
    told = []
    with pytest.raises(CalibdaskError, match=r"\(ValueError\)"):
        run(Scripted(journal=str(output.parent / "j"), script={"003.npy": ["raise ValueError"]}),
            paths, output, listener=told.append)  # fmt: skip
    traces = [one for one in told if isinstance(one, events.Message) and "Traceback" in one.text]
    assert [one.level for one in traces] == ["DEBUG"]


def test_the_exit_code_is_that_of_the_first_failure_in_plan_order(paths, output, journal):
    plan = run(Scripted(), paths, output).plan
    names = [Path(shard.inputs[0].path).name for shard in plan.shards]
    assert names != sorted(names), "the plan's order is not that of the names"
    script = {names[2]: ["raise NotEnoughData!"], names[5]: ["raise CorruptedInput!"]}
    for executor in ("serial", "threads"):
        with pytest.raises(NotEnoughData, match=names[2]):
            run(Scripted(journal=str(journal / executor), script=script, offset=1.0),
                paths[::-1], output.with_name(f"{executor}.h5"), cluster=executor)  # fmt: skip


def test_an_input_refused_while_planning_counts_as_missing(paths, output, journal):
    absent = paths[0].parent / "absent.npy"
    with pytest.raises(MissingInput, match=r"absent\.npy") as caught:
        run(Scripted(journal=str(journal)), [*paths, absent], output)
    assert "1 of 8 inputs or shards failed; the other 7 are stored" in str(caught.value)
    assert sum(_read(journal).values()) == 7
    assert run(Scripted(), [*paths, absent], output, allow_missing=0.2).account.failed_shards == {}


def test_a_product_with_a_loss_says_so(paths, output, journal, tmp_path):
    import tables

    calibration = Scripted(journal=str(journal), script={"003.npy": ["raise CorruptedInput!"]})
    with pytest.raises(CorruptedInput):
        run(calibration, paths, output, allow_missing=0.1)
    result = run(calibration, paths, output, allow_missing=0.15)
    good = [path for path in paths if path.name != "003.npy"]
    assert result.digest == run(Scripted(), good, tmp_path / "good.h5").digest
    assert "1 MISSING" in str(result)
    with tables.open_file(output) as file:
        attributes = file.root._v_attrs
        assert attributes["CALIBDASK SHARDS MISSING"] == "1"
        assert attributes["CALIBDASK SHARDS"] == "7"
    provenance = json.loads(output.with_suffix(".provenance.json").read_text())
    assert provenance["status"] == "incomplete"
    assert ["003.npy" in one for one in provenance["missing"]] == [True]


def test_everything_missing_is_never_a_product(paths, output, journal):
    script = {"*": ["raise CorruptedInput!"]}
    with pytest.raises(CalibdaskError):
        run(Scripted(journal=str(journal), script=script), paths, output, allow_missing=1.0)
    assert not output.exists()


def test_a_failing_fit_is_told_although_a_loss_is_allowed(paths, output, journal):
    class Unfit(Scripted):
        def fit(self, stage, cell, total, given):
            raise NotEnoughData("too few to fit")

    calibration = Unfit(journal=str(journal), script={"003.npy": ["raise CorruptedInput!"]})
    with pytest.raises(NotEnoughData, match="too few to fit"):
        run(calibration, paths, output, allow_missing=0.5)


# -- what the disk may do ---------------------------------------------------------


def _full_after(monkeypatch, count, *, once=False):
    """Let the disk fill up after so many stored results, for ever or for one of them."""
    whole = store._write
    saved = itertools.count()

    def filling(*arguments, **options):
        number = next(saved)
        if number == count or (number > count and not once):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(*arguments, **options)

    monkeypatch.setattr(store, "_write", filling)


@pytest.mark.parametrize("count", [0, 3, 6, 7, 8, 9, 10, 11])
def test_a_full_disk_is_said_at_any_moment_and_carried_on_after(
    paths, output, journal, monkeypatch, count
):
    calibration = Scripted(journal=str(journal))
    with monkeypatch.context() as patch:
        _full_after(patch, count)
        with pytest.raises(CalibdaskError, match="No space left on device") as caught:
            run(calibration, paths, output, fan_in=3)
    assert caught.value.exit_code == 1
    assert "--workdir" in str(caught.value)
    assert not output.exists()
    before = sum(_read(journal).values())
    assert before == min(count + 1, 7), "nothing is read that could not be kept"
    run(calibration, paths, output, fan_in=3)
    assert sum(_read(journal).values()) == before + max(7 - count, 0)


@pytest.mark.parametrize("count", range(11))
def test_a_disk_full_for_a_moment_is_said_too(paths, output, monkeypatch, count):
    with monkeypatch.context() as patch:
        _full_after(patch, count, once=True)
        with pytest.raises(CalibdaskError, match="No space left on device"):
            run(Scripted(), paths, output, fan_in=3)
    assert not output.exists()
    run(Scripted(), paths, output, fan_in=3)


def test_a_product_that_cannot_be_written_costs_nothing_computed(
    paths, output, journal, monkeypatch
):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))

    calibration = Scripted(journal=str(journal))
    with monkeypatch.context() as patch:
        patch.setattr(products, "_write_hdf5", full)
        with pytest.raises(CalibdaskError, match="cannot write"):
            run(calibration, paths, output)
    assert not output.exists()
    run(calibration, paths, output)
    assert sum(_read(journal).values()) == 7


# -- products ---------------------------------------------------------


def test_an_existing_output_is_refused_before_any_work(paths, output, journal):
    output.write_text("precious")
    with pytest.raises(ConfigError, match="--overwrite"):
        run(Scripted(journal=str(journal)), paths, output)
    assert output.read_text() == "precious"
    assert not journal.exists()
    assert not output.with_name("out.h5.work").exists()
    run(Scripted(journal=str(journal)), paths, output, overwrite=True)
    assert digest_output(output)


class _Killed(BaseException):
    """Stands for a kill: nothing but clean-up runs after it."""


@pytest.mark.parametrize("moment", ["Activity", "_write_hdf5", "_run_record", "_activity"])
def test_killed_while_writing_the_same_command_carries_on(paths, output, monkeypatch, moment):
    def killed(*_arguments, **_options):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(products, moment, killed)
        with pytest.raises(_Killed):
            run(Scripted(), paths, output, report=True)
    result = run(Scripted(), paths, output, report=True)
    assert all(path.exists() for path in result.paths)
    assert [path.suffix for path in result.paths] == [".h5", ".ecsv", ".html", ".json"]
    assert not list(output.parent.glob(".*"))


def test_provenance_names_inputs_versions_and_digest(paths, output, tmp_path):
    log = tmp_path / "provenance.log"
    result = run(Scripted(), paths, output, provenance_log=log)
    run(Scripted(), paths, output, provenance_log=log, overwrite=True)
    activity, again = map(json.loads, log.read_text().splitlines())
    assert again["activity_uuid"] != activity["activity_uuid"]
    assert activity["digest"] == result.digest
    assert activity["plan"] == result.plan.digest
    assert {one["url"] for one in activity["input"]} == {str(path) for path in paths}
    assert activity["status"] == "completed"
    assert activity["versions"]["numpy"] == np.__version__
    assert activity["cut_flow"] == {"counts": 280}


# -- events in two inputs ---------------------------------------------------------


def _events(path, observation, identifiers):
    values = np.column_stack(
        [np.full(len(identifiers), observation), identifiers, np.ones(len(identifiers))]
    ).astype(float)
    np.save(path, values)
    return path


def test_an_event_in_two_inputs_is_refused_naming_both(tmp_path, output):
    one = _events(tmp_path / "one.npy", 5, np.arange(0, 20, 2))
    two = _events(tmp_path / "two.npy", 5, [7, 8, 9])
    three = _events(tmp_path / "three.npy", 6, np.arange(0, 20))
    with pytest.raises(CorruptedInput, match=r"both hold event 8 of observation 5") as caught:
        run(Keyed(), [one, two, three], output)
    assert "1 events are in two inputs" in str(caught.value)
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)
    assert str(three) not in str(caught.value)
    assert not output.exists()
    with pytest.raises(CorruptedInput, match="event 8"):
        run(Keyed(), [one, two, three], output)


def test_interleaved_events_of_one_observation_are_fine(tmp_path, output):
    one = _events(tmp_path / "one.npy", 5, np.arange(0, 20, 2))
    two = _events(tmp_path / "two.npy", 5, np.arange(1, 21, 2))
    three = _events(tmp_path / "three.npy", 6, np.arange(0, 20))
    result = run(Keyed(), [one, two, three], output)
    assert result.tables["/sum"]["n"][0] == 40
    assert result.account.total.cut_flow == {"events": 40, "positive": 40}
    assert sorted(one[:3] for one in result.account.total.key_ranges) == [
        (5, 0, 18), (5, 1, 19), (6, 0, 19),
    ]  # fmt: skip


def test_an_event_in_two_inputs_is_found_among_many(tmp_path, output):
    identifiers = np.random.default_rng(3).permutation(400)
    paths = [_events(tmp_path / f"{number}.npy", 1, identifiers[number::8]) for number in range(8)]
    _events(paths[6], 1, [*identifiers[6::8], identifiers[1]])
    with pytest.raises(CorruptedInput, match=f"event {identifiers[1]} of") as caught:
        run(Keyed(), paths, output)
    assert str(paths[1]) in str(caught.value)
    assert str(paths[6]) in str(caught.value)


def test_broken_keys_are_computed_again(tmp_path, output):
    one = _events(tmp_path / "one.npy", 5, np.arange(0, 20, 2))
    two = _events(tmp_path / "two.npy", 5, np.arange(1, 21, 2))
    first = run(Keyed(), [one, two], output)
    for path in _packs(output, "map"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # the keys are the last of its arrays
        path.write_bytes(content)
        assert not Store(path.parents[1]).is_sound(path.stem)
    assert run(Keyed(), [one, two], output, overwrite=True).digest == first.digest


# -- the contract ---------------------------------------------------------


@dataclass(frozen=True)
class Stray(Scripted):
    """Return a cell that it did not plan."""

    def reduce(self, shard, data):
        reduced = super().reduce(shard, data)
        (summary,) = reduced.summaries.values()
        return type(reduced)({("stray",): summary})


def test_a_cell_that_was_not_planned_is_a_bug_that_shows(paths, output):
    with pytest.raises(CalibdaskError, match="stray"):
        run(Stray(), paths, output)


def test_a_merge_that_loses_a_shard_is_noticed(paths, output, monkeypatch):
    from calibdask.engine import merge
    from calibdask.engine import run as run_module

    def forgetful(n_leaves, fan_in):
        for node in merge.merge_tree(n_leaves, fan_in):
            children = node.children[:-1] if (node.level, node.place) == (1, 0) else node.children
            yield type(node)(node.level, node.place, children)

    monkeypatch.setattr(run_module, "merge_tree", forgetful)
    with pytest.raises(CalibdaskError, match=r"lost shards \[2\]"):
        run(Scripted(), paths, output, fan_in=3)
    assert not output.exists()


def test_a_merge_that_counts_a_shard_twice_is_noticed(paths, output, monkeypatch):
    from calibdask.engine import merge
    from calibdask.engine import run as run_module

    def greedy(n_leaves, fan_in):
        for node in merge.merge_tree(n_leaves, fan_in):
            children = (0, *node.children) if (node.level, node.place) == (1, 1) else node.children
            yield type(node)(node.level, node.place, children)

    monkeypatch.setattr(run_module, "merge_tree", greedy)
    with pytest.raises(CalibdaskError, match="counted twice"):
        run(Scripted(), paths, output, fan_in=3)
    assert not output.exists()


def test_a_file_changed_while_the_run_goes_on_is_refused(paths, output):
    @dataclass(frozen=True)
    class Meddling(Scripted):
        def read(self, shard):
            for path in paths:
                os.utime(path, (1, 1))
            return super().read(shard)

    with pytest.raises(CorruptedInput, match="changed between plan and run"):
        run(Meddling(), paths, output)


def test_seen_through_a_second_run_the_directory_is_taken(paths, output):
    @dataclass(frozen=True)
    class Nested(Scripted):
        def read(self, shard):
            run(Scripted(), paths, output, overwrite=True)

    with pytest.raises(CalibdaskError, match="in use by another run") as caught:
        run(Nested(), paths, output)
    assert str(os.getpid()) in str(caught.value)


def test_a_context_is_small_and_picklable(paths):
    import pickle

    context = WorkContext(Scripted(), Store(paths[0].parent))
    assert len(pickle.dumps(context)) < 1000
    assert pickle.loads(pickle.dumps(context)).calibration == Scripted()
