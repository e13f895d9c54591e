"""Many small cells: they share tasks and files, and stay independent of each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from faults import ClippedMeans, calls, run

from calibdask.engine.plan import make_plan
from calibdask.engine.store import Store
from calibdask.errors import CorruptedInput

N_OBJECTS = 60


@pytest.fixture(autouse=True)
def _bundles_of_few(monkeypatch):
    monkeypatch.setattr("calibdask.engine.plan._BUNDLES_PER_STAGE", 6)


@pytest.fixture
def data(tmp_path):
    """Objects in three files, every third of which has an outlier."""
    directory = tmp_path / "data"
    directory.mkdir()
    for number, name in enumerate("abc"):
        write(directory / f"{name}.npy", number, range(N_OBJECTS))
    return directory


def write(path, seed, objects):
    random = np.random.default_rng(seed)
    parts = []
    for one in objects:
        values = one + random.uniform(-1, 1, 20)
        values[0] += 500.0 * (one % 3 == 0 and seed == 0)
        parts.append(np.column_stack([np.full(len(values), one), values]))
    np.save(path, np.concatenate(parts))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def store_of(output):
    return Store(output.with_name(f"{output.name}.work") / "store")


def bundles(output):
    return sorted((store_of(output).root / "bundles").iterdir())


def fits(journal):
    return {name: n for name, n in calls(journal).items() if name.startswith("fit")}


def test_bundles_hold_what_single_files_would(data, output, tmp_path, monkeypatch):
    bundled = run(ClippedMeans(), data, output)
    monkeypatch.setattr("calibdask.engine.plan._BUNDLES_PER_STAGE", 10**9)
    other = tmp_path / "single.h5"
    single = run(ClippedMeans(), data, other)
    assert bundled.digest == single.digest
    assert store_of(output).scan() == store_of(other).scan()
    assert not (store_of(other).root / "bundles").exists()
    n_files = sum(path.is_file() for path in store_of(output).root.rglob("*"))
    assert n_files < 25 < N_OBJECTS < sum(p.is_file() for p in store_of(other).root.rglob("*"))


def test_every_executor_gives_the_same(data, output, tmp_path):
    digest = run(ClippedMeans(), data, output).digest
    assert run(ClippedMeans(), data, tmp_path / "t.h5", cluster="threads").digest == digest


@pytest.mark.cluster
def test_workers_give_the_same(data, output, tmp_path):
    digest = run(ClippedMeans(), data, output).digest
    assert run(ClippedMeans(), data, tmp_path / "l.h5", cluster="local", workers=2).digest == digest


def test_a_new_cell_costs_no_fit_of_the_others(data, output, tmp_path):
    journal = tmp_path / "journal"
    calibration = ClippedMeans(journal=str(journal))
    run(calibration, data, output)
    before = fits(journal)
    # Objects sort before, between and after the others, so that no bundle is what it was.
    write(data / "d.npy", 7, [-5, N_OBJECTS + 3])
    result = run(calibration, data, output, overwrite=True)
    new = {name: n for name, n in fits(journal).items() if before.get(name) != n}
    assert new == {"fit 0 -5": 1, f"fit 0 {N_OBJECTS + 3}": 1}
    assert len(result.tables["/objects"]) == N_OBJECTS + 2


@pytest.mark.parametrize("where", ["header", "data", "length", "empty"])
def test_a_broken_bundle_costs_what_is_in_it(data, output, tmp_path, where):
    journal = tmp_path / "journal"
    calibration = ClippedMeans(journal=str(journal))
    first = run(calibration, data, output)
    before = sum(fits(journal).values())
    broken = bundles(output)[0]
    content = bytearray(broken.read_bytes())
    match where:
        case "header":
            content[60] ^= 1
        case "data":
            content[-1] ^= 1
        case "length":
            content = content[:-3]
        case "empty":
            content = bytearray()
    broken.write_bytes(content)
    again = run(calibration, data, output, overwrite=True)
    assert again.digest == first.digest
    assert 0 < sum(fits(journal).values()) - before <= 30
    assert all(map(store_of(output).is_sound, store_of(output).scan()))


def test_a_cell_that_fails_does_not_take_its_neighbours(data, output, tmp_path):
    journal = tmp_path / "journal"
    script = {"fit 0 7": ["raise CorruptedInput!"]}
    calibration = ClippedMeans(journal=str(journal), script=script)
    with pytest.raises(CorruptedInput, match="object/7"):
        run(calibration, data, output)
    first = fits(journal)
    assert len({name for name in first if name.startswith("fit 0")}) == N_OBJECTS
    run(replace(calibration, script={}), data, output)
    again = fits(journal)
    assert [name for name in first if again[name] > first[name]] == ["fit 0 7"]


def test_all_cells_of_a_task_that_fail_are_told(data, output):
    told = []
    script = {f"fit 0 {one}": ["raise CorruptedInput!"] for one in (7, 8)}
    with pytest.raises(CorruptedInput):
        run(ClippedMeans(script=script), data, output, listener=told.append)
    text = "\n".join(map(repr, told))
    assert all(f"fit of object/{one}" in text for one in (7, 8))


def test_looking_removes_nothing(data, output):
    run(ClippedMeans(), data, output)
    broken = bundles(output)[0]
    broken.write_bytes(b"of another version")
    addresses = store_of(output).scan()
    assert broken.read_bytes() == b"of another version"
    run(ClippedMeans(), data, output, overwrite=True)
    assert store_of(output).scan() > addresses


def test_a_result_that_breaks_below_a_bundle_is_made_again(data, output):
    first = run(ClippedMeans(), data, output)
    store = store_of(output)
    for path in bundles(output):
        path.unlink()
    singles = [path for path in store.root.rglob("*.pack") if path.parent.name != "bundles"]
    content = bytearray(singles[0].read_bytes())
    content[-1] ^= 1
    singles[0].write_bytes(content)
    assert run(ClippedMeans(), data, output, overwrite=True).digest == first.digest


def test_cells_go_together_with_those_of_their_shards(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    for number in range(12):
        write(directory / f"{number:02}.npy", number, range(number, 200, 12))
    plan = make_plan(ClippedMeans(), [directory])
    divided = list(plan.bundles(list(plan.cells)))
    assert sorted(cell for part in divided for cell in part) == sorted(plan.cells)
    for part in divided:
        assert len({plan.cells[cell] for cell in part}) <= 3


def test_large_states_stay_alone(data, monkeypatch):
    monkeypatch.setattr(ClippedMeans, "stored_bytes", lambda *_: (2**23, 2**23))
    plan = make_plan(ClippedMeans(), [data])
    assert {len(part) for part in plan.bundles(list(plan.cells))} == {1}
