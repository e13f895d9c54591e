"""Products with maps of pixels: written cell by cell, in one piece or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import zarr
from astropy.table import QTable
from faults import Scripted, run, write_inputs
from tiny import Sums

from calibdask.engine import products, tasks
from calibdask.engine.products import digest_output
from calibdask.engine.protocol import Maps, Reduced, Tables, Values
from calibdask.errors import CalibdaskError, MissingInput
from calibdask.io.maps import MAPS, MapLayout, create_maps, read_product, write_rows

CELLS = (("rows", 0, 2), ("rows", 2, 4), ("rows", 4, 5))


@dataclass(frozen=True)
class Mapped(Scripted):
    """Each cell is a band of rows of a map that holds the sum of all inputs."""

    name = "mapped"
    writes_directory = True
    chunk_rows: int = 2
    offset: float = 0.0
    fails: tuple[str, ...] = ()

    def pieces(self, surveys):
        for piece in super().pieces(surveys):
            yield type(piece)(piece.inputs, piece.part, CELLS, piece.order, piece.n_bytes)

    def reduce(self, shard, data):
        sums = Sums({"n": np.array(data.size), "s1": data.sum(), "s2": (data**2).sum()})
        return Reduced(dict.fromkeys(CELLS, sums))

    def refine(self, stage, shard, data, given):
        return replace(self.reduce(shard, data), warnings=("seen twice",))

    def fit(self, stage, cell, total, given):
        _, first, stop = cell
        rows = np.arange(first, stop)[:, None] + np.zeros((1, 3))
        return Values({"rows": rows * float(total.arrays["s1"]), "n": total.arrays["n"]})

    def combine(self, states):
        return {"n": sum(int(state.arrays["n"]) for state in states.values())}

    def create_maps(self, path, states, result):
        shape = (5, states[CELLS[0]].arrays["rows"].shape[1])
        layout = MapLayout(shape, "float64", self.chunk_rows, attributes={"units": "DN"})
        create_maps(path, {"group/sum": layout}, {"": {"n": result["n"]}})

    def write_maps(self, path, cell, state):
        if str(cell[1]) in self.fails:
            raise ValueError(f"row {cell[1]} cannot be written")
        write_rows(path, "group/sum", cell[1], state.arrays["rows"] + self.offset)

    def finish_maps(self, path):
        (path.parent / "more").mkdir()
        np.save(path.parent / "more" / "sum.npy", read_product(path).rows("group/sum"))

    def outputs(self, result):
        maps = Maps(partial(self.create_maps, result=result), self.write_maps, self.finish_maps)
        return [Tables({"/counts": QTable({"n": np.array([result["n"]])})}), maps]


class TwiceState(Values):
    @property
    def done(self):
        return "done" in self.arrays


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 3)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def test_the_maps_are_there_with_tables_and_provenance_beside_them(paths, output):
    result = run(Mapped(), paths, output)
    names = {one.name for one in output.iterdir()}
    assert names == {
        "maps.zarr", "more", "tables.h5", "calibdask.json", "calibdask.ecsv",
        "calibdask.provenance.json",
    }  # fmt: skip
    total = sum(np.load(path).sum() for path in paths)
    values = read_product(output).rows("group/sum")
    assert np.array_equal(values, np.arange(5)[:, None] * np.full((1, 3), float(total)))
    assert result.digest == digest_output(output)
    assert json.loads((output / "calibdask.json").read_text())["files"] == [
        "maps.zarr", "more", "tables.h5",
    ]  # fmt: skip
    assert set(result.paths) >= {output / "maps.zarr", output / "tables.h5", output / "more"}
    assert [one.name for one in output.parent.iterdir() if "partial" in one.name] == []


@pytest.mark.parametrize("cluster", ["threads", "serial"])
def test_one_digest_whoever_ran_it_and_however_it_was_chunked(paths, output, cluster):
    digest = run(Mapped(), paths, output).digest
    other = output.with_name("other")
    assert run(Mapped(chunk_rows=1), paths[::-1], other, cluster=cluster).digest == digest


def test_the_digest_sees_values_units_and_files(paths, output, tmp_path):
    digest = run(Mapped(), paths, output).digest
    assert run(Mapped(offset=1.0), paths, tmp_path / "other").digest != digest
    array = zarr.open_array(output / MAPS / "group/sum", mode="r+")
    array.attrs["units"] = "electron"
    changed = digest_output(output)
    assert changed != digest
    np.save(output / "more" / "sum.npy", np.zeros(3))
    assert digest_output(output) not in (digest, changed)
    assert digest_output(output / MAPS) == digest_output(output / MAPS)
    (output / "tables.h5").unlink()
    with pytest.raises(MissingInput, match="tables"):
        digest_output(output)


def test_a_worker_that_cannot_write_leaves_no_product(paths, output):
    with pytest.raises(CalibdaskError, match="row 2 cannot be written"):
        run(Mapped(fails=("2",)), paths, output)
    assert not output.exists()
    run(Mapped(), paths, output)
    assert read_product(output).rows("group/sum").shape == (5, 3)


def test_replacing_takes_away_what_the_earlier_run_wrote_and_nothing_else(paths, output):
    run(Mapped(), paths, output)
    (output / "mine.txt").write_text("keep", encoding="utf-8")
    stranger = output.parent / "keep.txt"
    stranger.write_text("keep", encoding="utf-8")
    manifest = output / "calibdask.json"
    names = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({"files": [*names, "..", "../keep.txt", "/"]}))
    digest = run(Mapped(offset=1.0), paths, output, overwrite=True).digest
    assert (output / "mine.txt").exists()
    assert stranger.exists()
    assert digest == digest_output(output)


def test_states_are_read_one_at_a_time_and_not_held(paths, output, monkeypatch):
    seen = []
    load = tasks.load_state
    monkeypatch.setattr(
        tasks, "load_state", lambda *args: seen.append(args[1]) or load(*args)
    )  # fmt: skip
    run(Mapped(), paths, output)
    # Once each for combine() and to write, one more to know what the maps look like.
    assert len(seen) == 2 * len(CELLS) + 1
    assert len(set(seen)) == len(CELLS)


def test_what_a_later_stage_warns_of_is_told(paths, output):
    class Later(Mapped):
        name = "later"
        state = TwiceState

        def fit(self, stage, cell, total, given):
            arrays = super().fit(stage, cell, total, given).arrays
            return TwiceState({**arrays, "done": np.array(1)} if stage else arrays)

    result = run(Later(), paths, output)
    assert result.account.total.warnings.count("seen twice") == len(paths)
    provenance = json.loads((output / "calibdask.provenance.json").read_text())
    assert provenance["warnings"].count("seen twice") == len(paths)


def test_a_directory_without_maps_is_no_product(tmp_path):
    with pytest.raises(MissingInput, match="no pixel maps"):
        read_product(tmp_path)
    create_maps(tmp_path / MAPS, {"a/b": MapLayout((2, 2), "uint16", 1)})
    maps = read_product(tmp_path)
    assert "a/b" in maps
    assert maps.rows("a/b").sum() == 0
    with pytest.raises(MissingInput, match="no map 'a/c', but a/b"):
        maps.rows("a/c")


def test_maps_open_in_xarray_without_a_warning(paths, output):
    import xarray

    run(Mapped(), paths, output)
    with xarray.open_zarr(output / MAPS, group="group") as dataset:
        assert dataset["sum"].dims == ("y", "x")
        assert dataset["sum"].attrs["units"] == "DN"


def test_the_product_takes_its_name_last(paths, output, monkeypatch):
    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(products.Products, "_write_companions", dies)
    with pytest.raises(KeyboardInterrupt):
        run(Mapped(), paths, output)
    assert not output.exists()
