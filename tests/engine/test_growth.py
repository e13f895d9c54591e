"""A run whose inputs grew replaces its own product, and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from faults import Scripted, run, write_inputs
from tiny import MeanCounts

from calibdask.engine import events
from calibdask.engine import run as engine_run
from calibdask.engine.growth import OwnProduct
from calibdask.engine.products import digest_output
from calibdask.engine.written import Memory
from calibdask.errors import ConfigError
from calibdask.registry import JOBS


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def told(calibration, paths, output, **options):
    """Run, and give what was said."""
    messages = []

    def listen(event):
        if isinstance(event, events.Message):
            messages.append((event.level, event.text))

    result = run(calibration, paths, output, listener=listen, **options)
    return result, messages


def test_a_run_whose_inputs_grew_replaces_its_product_and_says_so(tmp_path, output):
    paths = write_inputs(tmp_path / "in", 5)
    first, messages = told(Scripted(), paths[:3], output)
    assert messages == []
    second, messages = told(Scripted(), paths, output)
    assert messages == [
        ("INFO", f"{output} was made from 3 of these 5 inputs: this run replaces it")
    ]
    assert (second.account.computed, second.account.cached) == (2, 3)
    assert digest_output(output) == second.digest != first.digest
    # Once more it stays what it is, however often the command is given.
    third, messages = told(Scripted(), paths, output)
    assert messages == [("INFO", f"{output} was made from the same 5 inputs: this run replaces it")]
    assert third.digest == second.digest


def test_a_directory_of_inputs_that_grew_moved_to_another_place(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write_inputs(here / "in", 2)
    run(Scripted(), here / "in", here / "out.h5")
    here.rename(there)
    write_inputs(there / "in", 1, first=2)
    _, messages = told(Scripted(), there / "in", there / "out.h5")
    assert "2 of these 3 inputs" in messages[0][1]


@pytest.mark.parametrize(
    ("calibration", "kept", "complaint"),
    [
        (Scripted(), slice(1, 5), "from 1 inputs that are not given now or have changed, e.g. .*0"),
        (Scripted(scale=2.0), slice(5), "with other options: scale was 1.0 and is 2.0;"),
        (Scripted(offset=2.0), slice(5), "with other options: offset was 0.0 and is 2.0;"),
        (MeanCounts(), slice(5), 'out.h5 was made by another job, "scripted";'),
    ],
    ids=["an input is gone", "option of the fit", "option of the map", "another job"],
)
def test_what_is_no_later_product_of_the_same_run_is_refused(
    tmp_path, output, calibration, kept, complaint
):
    paths = write_inputs(tmp_path / "in", 5)
    digest = run(Scripted(), paths[:4], output).digest
    with pytest.raises(ConfigError, match=f"(?s){complaint}.*--overwrite"):
        run(calibration, paths[kept], output)
    assert digest_output(output) == digest
    run(calibration, paths[kept], output, overwrite=True)


def test_an_input_that_changed_is_another(tmp_path, output):
    paths = write_inputs(tmp_path / "in", 2)
    run(Scripted(), paths, output)
    write_inputs(tmp_path / "in", 1, size=41)
    with pytest.raises(ConfigError, match="not given now or have changed"):
        run(Scripted(), paths, output)


def test_a_product_of_another_work_directory_is_refused(tmp_path, output):
    paths = write_inputs(tmp_path / "in", 3)
    other = tmp_path / "other.h5"
    run(Scripted(), paths[:2], other)
    run(Scripted(), paths[:1], output)
    shutil.copy(other, output)  # same job, same options, fewer inputs: still not its own
    with pytest.raises(ConfigError, match="exists already"):
        run(Scripted(), paths, output)
    output.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        run(Scripted(), paths, output)
    assert output.read_bytes() == b"precious"


def test_killed_before_the_new_product_took_its_name_the_old_one_is_still_its_own(
    tmp_path, output, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(*_args):
        raise Killed

    paths = write_inputs(tmp_path / "in", 3)
    run(Scripted(), paths[:1], output)
    with monkeypatch.context() as patch:
        patch.setattr(engine_run.Products, "write", die)
        with pytest.raises(Killed):
            run(Scripted(), paths[:2], output)
    _, messages = told(Scripted(), paths, output)
    assert "1 of these 3 inputs" in messages[0][1]


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "[1, 2",
        lambda _: "[]",
        lambda _: '{"../out.h5": {"job": 3}}',
        lambda text: text.replace('"inputs": {', '"inputs": 7, "more": {'),
        lambda text: text.replace('"options": "', '"options": null, "more": "'),
        lambda text: text.replace('"files": [', '"files": "out.h5", "more": ['),
        lambda _: "\x00" * 100,
    ],
)
def test_a_damaged_memory_of_products_is_told_and_costs_nothing(tmp_path, output, change):
    paths = write_inputs(tmp_path / "in", 2)
    digest = run(Scripted(), paths[:1], output).digest
    memory = tmp_path / "out.h5.work" / "products.json"
    text = memory.read_text()
    memory.write_text(change(text))
    with pytest.raises(ConfigError, match=r"products.json is damaged .*--overwrite"):
        run(Scripted(), paths, output)
    assert digest_output(output) == digest
    assert run(Scripted(), paths, output, overwrite=True).account.cached == 1
    assert run(Scripted(), paths, output).account.cached == 2


def test_two_jobs_in_one_work_directory_know_their_own_products(tmp_path):
    paths = write_inputs(tmp_path / "in", 3)
    for n in (2, 3):
        for name, scale in (("one.h5", 1.0), ("two.h5", 2.0)):
            run(Scripted(scale=scale), paths[:n], tmp_path / name, workdir=tmp_path / "work")


@pytest.mark.parametrize("job", sorted(JOBS))
def test_every_job_tells_its_options_before_it_is_planned(job, tmp_path):
    calibration = JOBS[job].prepare([], {}).calibration
    assert not OwnProduct(Memory(tmp_path), tmp_path / "out", calibration).is_there


def test_a_memory_that_does_not_hold_the_options_still_refuses_others(tmp_path, output):
    paths = write_inputs(tmp_path / "in", 1)
    run(Scripted(), paths, output)
    memory = output.with_name(f"{output.name}.work") / "products.json"
    held = json.loads(memory.read_text())
    for one in held.values():
        for made in one["plans"].values():
            del made["settings"]  # as versions before this one wrote it
    memory.write_text(json.dumps(held))
    with pytest.raises(ConfigError, match="another job, with other options or by another version"):
        run(Scripted(scale=2.0), paths, output)
    run(Scripted(), paths, output)
