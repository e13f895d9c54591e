"""The plan: what will be done, known before anything is done."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from faults import ClippedMeans, Scripted, run, write_inputs

from calibdask.engine import executors
from calibdask.engine.plan import make_plan
from calibdask.engine.protocol import Piece
from calibdask.errors import ConfigError, CorruptedInput, MissingInput, NotEnoughData, WrongKind


@dataclass(frozen=True)
class Picky(Scripted):
    """Looks into its inputs while planning."""

    name = "picky"

    def survey(self, source):
        values = np.load(source.path)
        if values.size == 1:
            raise WrongKind(f"{source.path}: holds a single number")
        if not np.isfinite(values).all():
            raise CorruptedInput(f"{source.path}: value {np.nanmin(values)} is not finite")
        return super().survey(source)


@dataclass(frozen=True)
class Halved(Scripted):
    """Cuts each file in two parts, proposed in the wrong order."""

    name = "halved"

    def pieces(self, surveys):
        for survey in surveys:
            for first, stop in ((20, 40), (0, 20)):
                part = (("first", first), ("stop", stop))
                yield Piece((survey.source,), part, order=(first,), n_bytes=8 * (stop - first))


class Newer(Scripted):
    """Its numbers changed."""

    version = 2


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 5)


def _identities(plan):
    return [ref.identity for shard in plan.shards for ref in shard.inputs]


def test_order_of_inputs_does_not_count(paths):
    plan = make_plan(Scripted(), paths)
    for seed in range(5):
        shuffled = random.Random(seed).sample(paths, len(paths))
        again = make_plan(Scripted(), shuffled)
        assert again.digest == plan.digest
        assert _identities(again) == _identities(plan)
    assert make_plan(Scripted(), [paths[0].parent]).digest == plan.digest


def test_names_and_places_of_inputs_do_not_count(paths, tmp_path):
    plan = make_plan(Scripted(), paths)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, path in enumerate(reversed(paths)):
        shutil.copy(path, elsewhere / f"renamed{number}.npy")
    again = make_plan(Scripted(), [elsewhere])
    assert again.digest == plan.digest
    assert _identities(again) == _identities(plan)
    addresses = [plan.address(0, shard, {}) for shard in plan.shards]
    assert [again.address(0, shard, {}) for shard in again.shards] == addresses


def test_what_the_calibration_says_of_order_comes_first(paths):
    plan = make_plan(Halved(), paths)
    assert [shard.index for shard in plan.shards] == list(range(10))
    assert [dict(shard.part)["first"] for shard in plan.shards] == [0] * 5 + [20] * 5
    assert len({plan.address(0, shard, {}) for shard in plan.shards}) == 10
    assert "first=0,stop=20" in plan.shards[0].label
    assert len(plan.inputs) == 5


def test_the_digest_is_that_of_data_options_and_version(paths, tmp_path):
    plans = [
        make_plan(Scripted(), paths),
        make_plan(Scripted(), paths[1:]),
        make_plan(Scripted(scale=2.0), paths),
        make_plan(Scripted(offset=1.0), paths),
        make_plan(Newer(), paths),
        make_plan(Scripted(), paths, fan_in=3),
        make_plan(Halved(), paths),
        make_plan(Scripted(), write_inputs(tmp_path / "other", 5, first=9)),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)


def test_the_address_leaves_fit_options_and_other_inputs_out(paths):
    plan = make_plan(Scripted(), paths)
    shard = plan.shards[0]
    address = plan.address(0, shard, {})
    for other in (
        make_plan(Scripted(scale=2.0), paths),
        make_plan(Scripted(journal="/anywhere"), paths),
        make_plan(Scripted(), paths, fan_in=3),
        make_plan(Scripted(), [shard.inputs[0].path]),
    ):
        (same,) = [
            one for one in other.shards if one.inputs[0].identity == shard.inputs[0].identity
        ]
        assert other.address(0, same, {}) == address
    for other in (make_plan(Scripted(offset=1.0), paths), make_plan(Newer(), paths)):
        assert other.address(0, other.shards[0], {}) != address
    assert plan.address(1, shard, {}) != address


def test_only_the_states_of_its_own_cells_count_in_an_address(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "a.npy", np.array([[1.0, 0.5], [2.0, 0.7]]))
    np.save(data / "b.npy", np.array([[3.0, 0.5]]))
    plan = make_plan(ClippedMeans(), [data])
    shard = next(one for one in plan.shards if len(one.cells) == 2)
    one, two, three = ("object", 1), ("object", 2), ("object", 3)
    base = plan.address(1, shard, {one: "x", two: "y", three: "z"})
    assert plan.address(1, shard, {one: "x", two: "y", three: "other"}) == base
    assert plan.address(1, shard, {one: "x", two: "other", three: "z"}) != base
    assert plan.address(1, shard, {one: "x", three: "z"}) != base
    assert plan.cells.keys() == {one, two, three}


def test_the_same_content_twice_is_refused_naming_both(paths, tmp_path):
    copy = tmp_path / "copy.npy"
    shutil.copy(paths[2], copy)
    with pytest.raises(ConfigError, match="the same data twice") as caught:
        make_plan(Scripted(), [*paths, copy])
    assert str(copy) in str(caught.value)
    assert str(paths[2]) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_another_input_is_refused(paths, tmp_path, link):
    link(paths[0], tmp_path / "link.npy")
    with pytest.raises(ConfigError, match="the same data twice"):
        make_plan(Scripted(), [*paths, tmp_path / "link.npy"])


def test_the_same_path_twice_is_refused(paths):
    with pytest.raises(ConfigError, match="the same data twice"):
        make_plan(Scripted(), [*paths, paths[0].parent])


def test_a_copy_is_found_although_the_original_was_hashed_in_full(paths, tmp_path):
    make_plan(Scripted(), paths, workdir=tmp_path / "work")
    os.utime(paths[2], (1, 1))  # so that the next plan hashes it in full
    copy = tmp_path / "copy.npy"
    shutil.copy(paths[2], copy)
    for inputs in ([*paths, copy], [copy, *paths]):
        with pytest.raises(ConfigError, match="the same data twice"):
            make_plan(Scripted(), inputs, workdir=tmp_path / "work")


def test_files_that_differ_only_where_the_fast_hash_is_blind_are_told_apart_in_full(tmp_path):
    content = bytearray(5 << 20)
    (tmp_path / "a.npy").write_bytes(content)
    content[3_700_000] = 1
    (tmp_path / "b.npy").write_bytes(content)
    assert len(make_plan(Scripted(), [tmp_path], verify_full=True).shards) == 2


def test_a_shard_too_large_for_a_worker_is_refused_while_planning(paths, tmp_path):
    with pytest.raises(
        ConfigError, match=r"shard \S+ needs about 1.3 KiB .* has 1.0 KiB"
    ) as caught:
        make_plan(Scripted(), paths, worker_memory=1024, workdir=tmp_path / "work")
    assert "shard_bytes" in str(caught.value)
    make_plan(Scripted(), paths, worker_memory=2048)


def test_bad_inputs_are_rejected_and_the_others_planned(paths, tmp_path):
    bad = tmp_path / "bad.npy"
    np.save(bad, np.array([1.0, np.inf]))
    plan = make_plan(Picky(), [bad, *paths, tmp_path / "absent.npy"])
    assert len(plan.shards) == 5
    assert [failure.exit_code for failure in plan.rejected] == [104, 105]
    assert plan.digest == make_plan(Picky(), paths).digest


def test_another_kind_is_rejected_when_named_and_left_out_when_found(paths, tmp_path):
    odd = paths[0].parent / "odd.npy"
    np.save(odd, np.array([1.0]))
    named = make_plan(Picky(), [*paths, odd])
    assert [failure.exit_code for failure in named.rejected] == [105]
    found = make_plan(Picky(), [paths[0].parent])
    assert not found.rejected
    assert [path for path, _ in found.skipped] == [str(odd)]
    assert len(found.shards) == 5


def test_a_file_that_is_found_is_missing_where_its_name_is_that_of_inputs_but_for_a_number(paths):
    folder = paths[0].parent
    for name in ("a_1", "a_2", "a_3", "b_1", "c1_dl1", "c1_dl2"):
        odd = name in ("a_3", "c1_dl1")
        np.save(folder / f"{name}.npy", np.array([1.0] if odd else [float(len(name)), 2.0, 3.0]))
    np.save(folder / "a_2.npy", np.array([5.0, 6.0]))
    np.save(folder / "b_1.npy", np.array([7.0, 8.0]))
    plan = make_plan(Picky(), [folder])
    assert [failure.where for failure in plan.rejected] == [str(folder / "a_3.npy")]
    assert plan.rejected[0].exit_code == 105
    assert "named like inputs that are used" in plan.rejected[0].message
    # One of that name is no series: levels of the same run are not the same thing.
    assert [path for path, _ in plan.skipped] == [str(folder / "c1_dl1.npy")]


def test_where_no_input_can_be_used_the_first_reason_is_told(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([1.0, np.inf]))
    with pytest.raises(CorruptedInput, match=r"none of the 2 inputs can be used"):
        make_plan(Picky(), [tmp_path / "bad.npy", tmp_path / "absent.npy"])
    with pytest.raises(MissingInput, match="no such file"):
        make_plan(Picky(), [tmp_path / "absent.npy"])
    (tmp_path / "bad.npy").unlink()
    np.save(tmp_path / "odd.npy", np.array([1.0]))
    with pytest.raises(MissingInput, match="none is an input of picky"):
        make_plan(Picky(), [tmp_path])


def test_a_plan_without_shards_is_refused(paths):
    class Empty(Scripted):
        def pieces(self, surveys):
            return ()

    with pytest.raises(NotEnoughData, match="5 inputs"):
        make_plan(Empty(), paths)


def test_json_holds_the_whole_plan(paths, tmp_path):
    plan = make_plan(Halved(scale=2.0), [*paths, tmp_path / "absent.npy"])
    read = json.loads(plan.to_json())
    assert read["digest"] == plan.digest
    assert read["job"] == "halved"
    assert read["fit"] == {"scale": 2.0}
    assert len(read["shards"]) == 10
    assert {shard["inputs"][0]["path"] for shard in read["shards"]} == {str(one) for one in paths}
    assert read["shards"][3]["part"] == [["first", 0], ["stop", 20]]
    assert read["rejected"][0]["exit_code"] == 105


def test_print_and_notebook_show_the_main_numbers(paths):
    plan = replace(make_plan(Scripted(), paths), skipped=(("<b>.npy", "another kind"),))
    assert "shards       5" in str(plan)
    assert plan.digest in str(plan)
    assert "&lt;b&gt;" in plan._repr_html_()


def test_the_costs_of_a_plan_are_those_of_its_tasks(paths, tmp_path):
    plan = make_plan(Scripted(), write_inputs(tmp_path / "many", 100), fan_in=10)
    cost = plan.estimate(2)
    assert cost.tasks == cost.results == 100 + 10 + 1 + 1
    assert 20 < cost.calls < cost.tasks
    assert plan.estimate(200).calls == cost.tasks, "nobody waits for another's batch"
    assert f"{cost.results} files a stage" in str(plan)
    assert f"about {cost.metadata} operations" in str(plan)
    assert f"112 a stage: with 2 workers {cost.calls} calls" in str(plan)
    one = make_plan(Scripted(), paths[:1]).estimate(2)
    assert (one.tasks, one.calls) == (2, 2), "one shard is not merged"
    assert one.driver_bytes < cost.driver_bytes


def test_cells_are_reckoned_each_with_its_tree(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(5):
        objects = np.arange(number + 1, dtype=float)
        np.save(data / f"{number}.npy", np.stack([objects, objects + number / 7], axis=1))
    plan = make_plan(ClippedMeans(), [data], fan_in=2)
    # Objects 0 to 4 are in 5, 4, 3, 2 and 1 of the shards; two are merged where they are fitted.
    merges = (3 + 2 + 1) + (2 + 1) + (2 + 1)
    assert plan.n_merges == merges
    assert plan.estimate(1).tasks == 5 + merges + 5


def test_operations_on_the_file_system_are_as_many_as_a_plan_says(tmp_path, monkeypatch):
    counted = Counter()

    def counting(name, function):
        def wrapped(path, *arguments, **options):
            # What is asked of an open file by its number names nothing.
            if not isinstance(path, int) and str(path).startswith(str(tmp_path)):
                counted[name] += 1
            return function(path, *arguments, **options)

        return wrapped

    measured, reckoned = [], []
    for count in (200, 400):
        data, output = tmp_path / f"in-{count}", tmp_path / f"{count}.h5"
        write_inputs(data, count)
        reckoned.append(make_plan(Scripted(), [data]).estimate(1).metadata)
        counted.clear()
        with monkeypatch.context() as patch:
            for name in ("stat", "open", "mkdir", "link", "unlink", "rename", "replace"):
                patch.setattr(os, name, counting(name, getattr(os, name)))
            # The calibration itself calls open(), of which nothing is promised.
            patch.setattr(io, "open", counting("open", io.open))
            # Calls are counted in this process alone.
            patch.setattr(executors, "opens_inputs", lambda _: False)
            run(Scripted(), [data], output)
        measured.append(counted.total())
        assert counted["unlink"] >= counted["link"] >= count
    # A new directory of the store takes two more: there are 256, however many results.
    assert 0.98 < (measured[1] - measured[0]) / (reckoned[1] - reckoned[0]) < 1.1


def test_planning_reads_no_data(paths, tmp_path):
    make_plan(Scripted(journal=str(tmp_path / "journal")), paths)
    assert not (tmp_path / "journal").exists()


def test_progress_reaches_its_end(paths):
    told = []
    make_plan(Scripted(), paths, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)


def test_more_cells_than_anybody_means_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("calibdask.engine.plan._MANY_CELLS", 0)
    paths = write_inputs(tmp_path, 2)
    assert make_plan(Scripted(), paths).warnings == (
        "there are 1 cells, each with a fit of its own",
    )
