"""Chunks that are written and read without Zarr's pipeline are Zarr's."""

import shutil

import numpy as np
import pytest
import zarr

from calibdask.errors import CorruptedInput
from calibdask.io.maps import MapLayout, create_maps, digest_maps, read_product, write_rows

ROWS = 10
MAPS = {
    "a/float": np.linspace(0, 1, ROWS * 6).reshape(ROWS, 6),
    "a/single": np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 6),
    "a/counts": np.arange(ROWS * 6, dtype=np.uint16).reshape(ROWS, 6),
    "a/zeros": np.zeros((ROWS, 6), np.uint16),
    "a/unknown": np.full((ROWS, 6), np.nan),
    "frame": np.arange(ROWS, dtype=np.uint64),
}


def _create(path):
    layouts = {
        name: MapLayout(one.shape, one.dtype.str, 4, ("y", "x")[: one.ndim])
        for name, one in MAPS.items()
    }
    create_maps(path, layouts)


@pytest.fixture
def ours(tmp_path):
    _create(tmp_path / "ours.zarr")
    for name, values in MAPS.items():
        for first, stop in ((8, ROWS), (0, 8)):
            write_rows(tmp_path / "ours.zarr", name, first, values[first:stop])
    return tmp_path / "ours.zarr"


def _files(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def test_the_files_are_those_that_zarr_writes(ours, tmp_path):
    _create(tmp_path / "zarr.zarr")
    group = zarr.open_group(tmp_path / "zarr.zarr", mode="r+")
    for name, values in MAPS.items():
        group[name][:] = values
    theirs, mine = _files(tmp_path / "zarr.zarr"), _files(ours)
    assert mine.keys() == theirs.keys()
    assert not any("zeros/c" in name or "unknown/c" in name for name in mine)
    whole = {name for name in mine if not name.endswith("c/2/0")}  # what pads a chunk is free
    assert {name: mine[name] for name in whole} == {name: theirs[name] for name in whole}
    for name, values in MAPS.items():
        np.testing.assert_array_equal(zarr.open_group(ours)[name][:], values)


def test_rows_that_are_no_whole_chunks_are_written_all_the_same(ours):
    changed = np.full((3, 6), 7.0)
    write_rows(ours, "a/float", 3, changed)
    values = read_product(ours).rows("a/float")
    np.testing.assert_array_equal(values[3:6], changed)
    np.testing.assert_array_equal(values[:3], MAPS["a/float"][:3])


def test_the_digest_is_of_the_values_however_they_are_laid_out(ours, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(ours, other)
    for name, values in MAPS.items():
        shutil.rmtree(other / name)
        zarr.create_array(other / name, data=values, chunks=(3,) * values.ndim, zarr_format=3)
    assert digest_maps(other) == digest_maps(ours)
    write_rows(ours, "a/unknown", 4, np.zeros((4, 6)))
    assert digest_maps(other) != digest_maps(ours)


def test_a_damaged_chunk_has_no_digest(ours):
    (ours / "a" / "counts" / "c" / "1" / "0").write_bytes(b"nothing of the kind")
    with pytest.raises(CorruptedInput, match="a/counts cannot be read"):
        digest_maps(ours)
