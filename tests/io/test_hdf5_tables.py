"""Tables through h5py are those that PyTables reads."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
import tables

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.pytables import create_hdf5, write_table

ROWS = np.zeros(
    5000,
    [
        ("tel_id", "u2"),
        ("flag", "?"),
        ("mask", "?", (3,)),
        ("energy", "f4"),
        ("name", "S5"),
        ("image", "f8", (2, 4)),
    ],
)
ROWS["tel_id"] = np.arange(5000) % 7
ROWS["flag"] = ROWS["tel_id"] > 3
ROWS["mask"][:, 1] = ROWS["flag"]
ROWS["energy"] = np.random.default_rng(1).lognormal(size=5000)
ROWS["name"] = b"ab\xc3\xbc"
ROWS["image"] = np.arange(8).reshape(2, 4)


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.h5"
    with create_hdf5(path) as file:
        columns = {name: ROWS[name] for name in ROWS.dtype.names}
        write_table(file, "/a/t", columns, units={"energy": "TeV"}, attributes={"n": 3, "x": "bü"})
        write_table(file, "/a/empty", {"x": np.zeros(0)})
    return path


def test_rows_attributes_and_groups_are_those_of_pytables(example):
    with tables.open_file(example) as oracle, open_hdf5(example) as file:
        assert file.children("/a") == ("empty", "t")
        assert file.children("/nothing") == file.children("/a/t") == ()
        assert [table.path for table in file.tables()] == ["/a/empty", "/a/t"]
        assert "/a/t" in file
        assert "/a/b/t" not in file
        for table in file.tables():
            theirs = oracle.get_node(table.path)
            assert table.names == tuple(theirs.colnames)
            np.testing.assert_array_equal(table.read(), theirs.read())
            np.testing.assert_array_equal(table.read(7, 12), theirs.read(7, 12))
            for name in theirs.attrs._f_list("all"):
                value = theirs.attrs[name]
                text = value.decode() if isinstance(value, bytes) else value
                assert table.attribute(name) == text
        table = file.table("/a/t")
        assert table.unit("energy") == "TeV"
        assert table.unit("tel_id") == ""
        assert table.attribute("absent") is None


def test_columns_are_contiguous_native_and_read_in_blocks(example, monkeypatch):
    monkeypatch.setattr("calibdask.io.hdf5.BLOCK_BYTES", 1000)
    with open_hdf5(example) as file:
        table = file.table("/a/t")
        found = table.columns(["energy", "mask"], 10, 4990)
        for name, values in found.items():
            np.testing.assert_array_equal(values, ROWS[name][10:4990])
            assert values.flags.c_contiguous
        with pytest.raises(CorruptedInput, match=r"example\.h5: /a/t has no column size"):
            table.columns(["size"])


def test_files_of_h5py_with_text_of_any_length_enumerations_and_big_endian_numbers(tmp_path):
    path = tmp_path / "h5py.h5"
    rows = np.array(
        [("short", True, 1.5, 2), ("a much longer text", False, -2.0, 3)],
        [("text", h5py.string_dtype()), ("good", "?"), ("x", ">f4"), ("y", ">i8")],
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("g/t", data=rows)
        file["g/t"].attrs["title"] = "of any length"
        file["g/array"] = np.arange(3)
    with open_hdf5(path) as file:
        table = file.table("/g/t")
        assert [text.decode() for text in table.read()["text"]] == ["short", "a much longer text"]
        columns = table.columns(["good", "x", "y"])
        assert columns["good"].dtype == np.bool_
        assert columns["good"].tolist() == [True, False]
        assert columns["x"].tolist() == [1.5, -2.0]
        assert columns["y"].dtype == np.dtype("=i8")
        assert table.attribute("title") == "of any length"
        with pytest.raises(CorruptedInput, match="/g/array is not a table but an array"):
            file.table("/g/array")
        with pytest.raises(CorruptedInput, match="/g is not a table but a group"):
            file.table("/g")
        with pytest.raises(MissingInput, match=r"h5py\.h5: has no table /g/u"):
            file.table("/g/u")


def test_a_pickled_attribute_is_bytes(tmp_path):
    path = tmp_path / "list.h5"
    with tables.open_file(path, "w") as file:
        file.root._v_attrs["values"] = [1, 2]
    with open_hdf5(path) as file:
        assert pickle.loads(file.attribute("values").encode()) == [1, 2]


def test_a_flipped_bit_in_any_chunk_is_noticed_and_the_table_named(tmp_path):
    path = tmp_path / "bits.h5"
    rows = np.zeros(3000, [("x", "f8")])
    rows["x"] = np.random.default_rng(2).normal(size=3000)
    with create_hdf5(path) as file:
        write_table(file, "/g/t", {"x": rows["x"]})
    with h5py.File(path) as file:
        chunk = file["g/t"].id.get_chunk_info(0)
    sound = path.read_bytes()
    for at in np.linspace(0, chunk.size - 1, 20).astype(int):
        broken = bytearray(sound)
        broken[chunk.byte_offset + at] ^= 16
        path.write_bytes(broken)
        with (
            pytest.raises(CorruptedInput, match=r"bits\.h5: /g/t is damaged \(filter"),
            open_hdf5(path) as file,
        ):
            file.table("/g/t").read()


def test_shared_files_read_as_with_pytables(shared_array):
    for path in sorted(shared_array.rglob("*.h5")):
        with tables.open_file(path) as oracle, open_hdf5(path) as file:
            for table in file.tables():
                theirs = oracle.get_node(table.path).read()
                ours = table.read()
                for name in table.names:
                    np.testing.assert_array_equal(ours[name], theirs[name])
