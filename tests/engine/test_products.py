"""Products that are a directory of files, complete or not there at all."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from astropy.table import QTable
from faults import Scripted, run, write_inputs
from tiny import Sums

from calibdask.engine import products
from calibdask.engine.products import digest_output
from calibdask.engine.protocol import ALL, Files, Reduced, Tables
from calibdask.errors import CalibdaskError, ConfigError, MissingInput
from calibdask.io.pytables import create_hdf5, write_table


def file_name(shard):
    return shard.label.replace(".npy", ".h5")


@dataclass(frozen=True)
class PerFile(Scripted):
    """Writes, for each input, a file of its values."""

    name = "per-file"
    writes_directory = True
    files_script: tuple[str, ...] = ()

    def reduce(self, shard, data):
        summary = Sums({"n": np.array(data.size), "s1": data.sum(), "s2": (data**2).sum()})
        return Reduced({ALL: summary}, rows={"value": data})

    def write_file(self, path, shards, parts):
        if path.stem in self.files_script:
            raise ValueError(f"{path.stem} cannot be written")
        with create_hdf5(path) as file:
            for rows in parts:
                write_table(file, "/values", {"value": rows["value"]})

    def outputs(self, states):
        table = QTable(dict(states[ALL].arrays))
        return [Tables({"/mean_counts": table}), Files(file_name, self.write_file)]


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 3)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


NAMES = {
    "000.h5", "001.h5", "002.h5",
    "calibdask.json", "calibdask.ecsv", "calibdask.provenance.json",
}  # fmt: skip


def test_a_directory_has_its_files_and_their_digest(paths, output):
    result = run(PerFile(), paths, output)
    assert {path.name for path in output.iterdir()} == NAMES
    assert all(path.exists() for path in result.paths)
    assert digest_output(output) == result.digest
    assert {path.name for path in output.parent.iterdir()} == {"data", "out", "out.work"}
    activity = json.loads((output / "calibdask.provenance.json").read_text())
    assert {one["url"] for one in activity["output"]} == {str(path) for path in result.paths}


def test_the_digest_is_that_of_threads_and_of_another_time(paths, output, tmp_path):
    digest = run(PerFile(), paths, output).digest
    assert run(PerFile(), paths, tmp_path / "other", cluster="threads").digest == digest


def test_an_existing_directory_is_refused_unless_empty(paths, output):
    output.mkdir()
    run(PerFile(), paths, output)
    with pytest.raises(ConfigError, match="--overwrite"):
        run(PerFile(), paths[1:], output)


def test_overwriting_removes_its_own_files_and_keeps_those_of_others(paths, output):
    first = run(PerFile(), paths, output)
    (output / "mine.txt").write_text("precious")
    second = run(PerFile(), paths[1:], output, overwrite=True)
    assert {path.name for path in output.iterdir()} == NAMES - {"000.h5"} | {"mine.txt"}
    assert second.digest != first.digest
    assert digest_output(output) == second.digest


class _Killed(BaseException):
    """Stands for a kill: nothing but clean-up runs after it."""


@pytest.mark.parametrize("moment", ["_activity", "digest_output", "_replacing"])
def test_killed_while_writing_the_same_command_carries_on(paths, output, monkeypatch, moment):
    def killed(*_arguments, **_options):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(products, moment, killed)
        with pytest.raises(_Killed):
            run(PerFile(), paths, output)
    assert not output.exists()
    result = run(PerFile(), paths, output)
    assert {path.name for path in output.iterdir()} == NAMES
    assert digest_output(output) == result.digest
    assert {path.name for path in output.parent.iterdir()} == {"data", "out", "out.work"}


def test_a_file_that_cannot_be_written_means_no_product(paths, output):
    with pytest.raises(CalibdaskError, match="001 cannot be written"):
        run(PerFile(files_script=("001",)), paths, output)
    assert not output.exists()


def test_a_file_in_the_way_of_a_directory_is_refused(paths, output):
    output.write_text("precious")
    with pytest.raises(ConfigError, match="is a file"):
        run(PerFile(), paths, output, overwrite=True)
    assert output.read_text() == "precious"


def test_nothing_has_no_digest(tmp_path):
    with pytest.raises(MissingInput, match="no HDF5 file"):
        digest_output(tmp_path)
    with pytest.raises(MissingInput):
        digest_output(tmp_path / "absent.h5")
