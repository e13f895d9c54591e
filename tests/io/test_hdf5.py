from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibdask.errors import ConfigError, CorruptedInput, MissingInput, TransientError
from calibdask.io import hdf5
from calibdask.io.hdf5 import digest_hdf5, open_hdf5, read_tables, standard_unit
from calibdask.io.pytables import create_hdf5, write_root_attributes, write_table


class Executed:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def payload(mark: Path) -> np.bytes_:
    return np.bytes_(pickle.dumps(Executed(mark), protocol=0))


def set_raw(node, name: str, value) -> None:
    """Write an attribute as it is, which PyTables' own assignment would not for FILTERS."""
    node._v_attrs._g_setattr(node, name, value)


def example(path: Path, **changes):
    columns = {"energy": np.array([1.0, np.nan, 3.0]), "name": np.array(["a", "bü", ""])}
    with create_hdf5(path) as file:
        write_table(
            file,
            changes.pop("where", "/a/b/t"),
            columns | changes.pop("columns", {}),
            units={"energy": changes.pop("unit", "TeV")},
            **changes,
        )
    return path


def test_a_table_of_more_rows_than_are_stored_is_damaged_whatever_they_would_need(tmp_path):
    path = tmp_path / "one.h5"
    n_rows = 123_457  # so that these bytes stand once in the file: in the header
    with h5py.File(path, "w") as file:
        more = {"chunks": (1000,), "maxshape": (None,), "compression": "gzip", "fletcher32": True}
        file.create_dataset("t", data=np.zeros(n_rows, [("a", "u1")]), **more)
    content = path.read_bytes()
    stated = n_rows.to_bytes(8, "little")
    assert content.count(stated) == 1
    for more in (1000, 1 << 45):  # zeros that nobody wrote; more than any memory
        path.write_bytes(content.replace(stated, (n_rows + more).to_bytes(8, "little")))
        with pytest.raises(CorruptedInput, match="by its header, but at most 124000 are stored"):
            read_tables(path)


# --- nothing in a file is executed -----------------------------------------------------------


def visit_everything(file) -> None:
    for holder in (file, *file.tables()):
        for name in ("notes", "FILTERS", "TITLE", "CLASS"):
            holder.attribute(name)


def visit_with_pytables(file) -> None:
    for node in file.walk_nodes("/"):
        for name in node._v_attrs._f_list("all"):
            node._v_attrs[name]


@pytest.fixture(params=["root", "table", "group FILTERS", "root FILTERS", "TITLE"])
def trapped(request, tmp_path):
    """Path of a file with a pickle that makes a directory, and that directory."""
    path, mark = tmp_path / "trap.h5", tmp_path / "executed"
    with tables.open_file(path, "w") as file:
        table = file.create_table("/g", "t", obj=np.zeros(3, [("x", "f8")]), createparents=True)
        node, name = {
            "root": (file.root, "notes"),
            "table": (table, "notes"),
            "group FILTERS": (file.root.g, "FILTERS"),
            "root FILTERS": (file.root, "FILTERS"),
            "TITLE": (table, "TITLE"),
        }[request.param]
        set_raw(node, name, payload(mark))
    return path, mark


def test_a_pickled_attribute_is_not_executed(trapped):
    path, mark = trapped
    with open_hdf5(path) as file:
        visit_everything(file)
        assert file.table("/g/t").column("x").tolist() == [0, 0, 0]
    assert len(digest_hdf5(path)) == 64
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_no_protocol_is_executed(tmp_path, protocol):
    path, mark = tmp_path / "trap.h5", tmp_path / "executed"
    with tables.open_file(path, "w") as file:
        set_raw(file.root, "notes", np.bytes_(pickle.dumps(Executed(mark), protocol=protocol)))
    with open_hdf5(path) as file:
        visit_everything(file)
    assert not mark.exists()


def test_plain_pytables_does_execute_it(trapped):
    # The trap works: without this, the tests above could not fail.
    path, mark = trapped
    with tables.open_file(path) as file:
        visit_with_pytables(file)
    assert mark.is_dir()


# --- files that cannot be read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, MissingInput, "no such file"),
        (b"", CorruptedInput, "is empty"),
        (b"obs_id,event_id\n1,2\n", CorruptedInput, "not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", CorruptedInput, "x.h5"),
    ],
)
def test_what_is_not_hdf5(tmp_path, content, error, says):
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=says) as caught, open_hdf5(path):
        pass
    assert str(path) in str(caught.value)


def test_directory(tmp_path):
    with pytest.raises(CorruptedInput, match="is a directory"), open_hdf5(tmp_path):
        pass


def test_truncated_anywhere(tmp_path):
    whole = example(tmp_path / "whole.h5").read_bytes()
    path = tmp_path / "cut.h5"
    for size in [*range(1, 200, 13), *range(200, len(whole), 499), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptedInput, match=r"cut\.h5"):
            digest_hdf5(path)


def test_damaged_chunk_is_noticed(tmp_path):
    path = tmp_path / "x.h5"
    with create_hdf5(path) as file:
        write_table(file, "/t", {"x": np.random.default_rng(1).random(5000)})
    with tables.open_file(path) as file:
        offset = file.root.t.chunk_info((0,)).offset
    data = bytearray(path.read_bytes())
    data[offset + 1000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptedInput, match="damaged"):
        digest_hdf5(path)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_faults_of_the_file_system_are_transient(tmp_path, monkeypatch, code):
    path = example(tmp_path / "x.h5")

    def fail(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(TransientError, match="try again"), open_hdf5(path):
        pass


def test_fault_while_reading_is_transient(tmp_path, monkeypatch):
    path = example(tmp_path / "x.h5")

    def fail(*_args):
        raise OSError("Can't read data (file read failed: errno = 116, error message = 'Stale')")

    with open_hdf5(path) as file:
        (table,) = file.tables()
        monkeypatch.setattr(hdf5.h5s, "create_simple", fail)
        with pytest.raises(TransientError, match=r"x\.h5: cannot be read now \(Stale"):
            table.read(stop=1)


def test_locked_file_is_transient(tmp_path):
    path = example(tmp_path / "x.h5")
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match=r"x\.h5.*try again"), open_hdf5(path):
            pass


def test_missing_node_names_the_file(tmp_path):
    path = example(tmp_path / "x.h5")
    with pytest.raises(MissingInput, match=r"x\.h5.*/nothing"), open_hdf5(path) as file:
        file.table("/nothing")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_a_file_system_without_locks_is_no_damage(tmp_path, monkeypatch, number):
    path = example(tmp_path / "x.h5")
    opened = hdf5.h5f.open
    asked = []

    def without_locks(name, flags, access):
        asked.append(access.get_file_locking())
        if asked[-1] != (False, True):
            raise OSError(f"Unable to open file (unable to lock file, errno = {number})")
        return opened(name, flags, access)

    monkeypatch.setattr(hdf5.h5f, "open", without_locks)
    assert read_tables(path)
    assert len(asked) == 2


def test_what_is_no_fault_of_the_file_is_not_called_damage(tmp_path):
    path = example(tmp_path / "x.h5")
    with pytest.raises(TypeError), open_hdf5(path):
        len(3)


# --- writing ---------------------------------------------------------------------------------


def test_same_calls_give_the_same_bytes(tmp_path):
    first = example(tmp_path / "1.h5").read_bytes()
    time.sleep(1.1)  # HDF5 stores times in whole seconds
    assert example(tmp_path / "2.h5").read_bytes() == first


def test_existing_file_is_kept(tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists already"), create_hdf5(path):
        pass
    assert path.read_text() == "precious"


def test_directory_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="check its directory"), create_hdf5(tmp_path / "a" / "b"):
        pass


def test_pytables_takes_no_lock():
    code = (
        "import fcntl, os, sys, calibdask.io.pytables, tables\n"
        "path = sys.argv[1]\n"
        "tables.open_file(path, 'w').close()\n"
        "fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)\n"
        "tables.open_file(path).close()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, f"{folder}/a.h5"], check=True)


def test_a_name_that_is_not_utf_8_is_no_damage(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.h5")
    with create_hdf5(path) as file:
        write_table(file, "/x", {"a": np.arange(3)})
    assert read_tables(path)["/x"]["a"].tolist() == [0, 1, 2]


def test_failed_block_leaves_no_file(tmp_path):
    path = tmp_path / "x.h5"

    def fail() -> None:
        with create_hdf5(path) as file:
            write_table(file, "/t", {"x": np.arange(3)})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not path.exists()


def test_ctapipe_reads_what_was_written(tmp_path):
    from ctapipe.io import read_table

    obs_id = np.array([1, 2], np.uint64)
    path = example(
        tmp_path / "x.h5",
        descriptions={"energy": "reconstructed"},
        attributes={"obs_id": obs_id, "version": 3, "who": "us", "none": ""},
        columns={"mask": np.eye(3, dtype=bool), "n": np.array([1, 2, 3], ">i4")},
    )
    table = read_table(path, "/a/b/t")
    assert table.colnames == ["energy", "name", "mask", "n"]
    assert table["energy"].unit == "TeV"
    assert table["energy"].description == "reconstructed"
    np.testing.assert_array_equal(table["energy"].value, [1.0, np.nan, 3.0])
    assert table["name"].tolist() == ["a", "bü", ""]
    assert table["mask"].tolist() == np.eye(3, dtype=bool).tolist()
    assert table["n"].tolist() == [1, 2, 3]
    assert table.meta["obs_id"].tolist() == [1, 2]
    assert table.meta["obs_id"].dtype == np.uint64
    assert (table.meta["version"], table.meta["who"], table.meta["none"]) == (3, "us", "")


def test_reference_metadata(tmp_path):
    path = tmp_path / "x.h5"
    with create_hdf5(path) as file:
        write_root_attributes(file, {"CTA PRODUCT ID": "a-b", "CTA CONTACT NAME": ""})
    with open_hdf5(path) as file:
        assert file.attribute("CTA PRODUCT ID") == "a-b"
        assert file.attribute("CTA CONTACT NAME") == ""


def test_empty_table(tmp_path):
    path = tmp_path / "x.h5"
    with create_hdf5(path) as file:
        write_table(file, "/t", {"x": np.empty(0), "name": np.empty(0, "U4")}, units={"x": "m"})
    with open_hdf5(path) as file:
        assert file.table("/t").n_rows == 0
        assert file.table("/t").unit("x") == "m"


@pytest.mark.parametrize(
    ("columns", "options", "error", "says"),
    [
        ({"x": np.zeros(2), "y": np.zeros(3)}, {}, ValueError, "one length"),
        ({}, {}, ValueError, "one length"),
        ({"x": np.zeros(2)}, {"units": {"z": "m"}}, ValueError, "unknown columns"),
        ({"x": np.array([None, {}])}, {}, TypeError, "column x"),
        ({"x": np.zeros(2)}, {"attributes": {"a": {"b": 1}}}, TypeError, "attribute a"),
    ],
)
def test_what_cannot_be_written(tmp_path, columns, options, error, says):
    with pytest.raises(error, match=says), create_hdf5(tmp_path / "x.h5") as file:
        write_table(file, "/t", columns, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.sampled_from(["f8", "f4", "i8", "u2", "?", "<u4", ">f8"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=2, max_side=6))
    ),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
)
def test_values_survive_bit_for_bit(tmp_path_factory, values, text):
    path = tmp_path_factory.mktemp("h") / "x.h5"
    with create_hdf5(path) as file:
        write_table(file, "/t", {"x": values, "s": np.full(len(values), text)})
    with open_hdf5(path) as file:
        rows = file.table("/t").read()
    native = values.astype(values.dtype.newbyteorder("="))
    assert np.ascontiguousarray(rows["x"]).tobytes() == native.tobytes()
    assert {value.decode() for value in rows["s"].tolist()} == {text}


# --- digest ----------------------------------------------------------------------------------


def test_digest_leaves_out_what_is_said_about_the_data(tmp_path):
    plain = digest_hdf5(example(tmp_path / "1.h5"))
    said = example(
        tmp_path / "2.h5", descriptions={"energy": "now described"}, attributes={"host": "here"}
    )
    assert digest_hdf5(said) == plain
    other = tmp_path / "3.h5"
    with create_hdf5(other) as file, open_hdf5(tmp_path / "1.h5") as source:
        rows = source.table("/a/b/t").read()
        columns = {"name": rows["name"], "energy": rows["energy"]}
        write_table(file, "/a/b/t", columns, units={"energy": "TeV"})
    assert digest_hdf5(other) == plain


def test_digest_is_blind_to_byte_order_and_blocks(tmp_path, monkeypatch):
    for name, byteorder in (("l", "little"), ("b", "big")):
        with create_hdf5(tmp_path / name) as file:
            rows = np.zeros(1000, [("x", "f8"), ("y", "i4")])
            rows["x"] = np.arange(1000) / 7
            file.create_table("/", "t", obj=rows, byteorder=byteorder)
    plain = digest_hdf5(tmp_path / "l")
    assert digest_hdf5(tmp_path / "b") == plain
    monkeypatch.setattr("calibdask.io.hdf5.BLOCK_BYTES", 100)
    assert digest_hdf5(tmp_path / "l") == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "GeV"},
        {"where": "/a/b/u"},
        {"columns": {"energy": np.array([1.0, np.nan, 3.0 + 1e-15])}},
        {"columns": {"energy": np.array([1.0, np.nan, 3.0], "f4")}},
        {"columns": {"more": np.zeros(3)}},
        {"columns": {"name": np.array(["a", "bü", "c"])}},
    ],
)
def test_digest_sees_every_change_of_the_data(tmp_path, changes):
    assert digest_hdf5(example(tmp_path / "1.h5")) != digest_hdf5(
        example(tmp_path / "2.h5", **changes)
    )


def test_digest_of_no_table(tmp_path):
    with create_hdf5(tmp_path / "x.h5"):
        pass
    with pytest.raises(MissingInput, match="no table"):
        digest_hdf5(tmp_path / "x.h5")


def test_standard_units():
    assert standard_unit("GeV") == (1e-3, "TeV")
    assert standard_unit("km") == (1e3, "m")
    assert standard_unit("deg") == (1.0, "deg")
    assert standard_unit("") == (1.0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_pytables_is_done(number, tmp_path):
    """PyTables loses exceptions of signal handlers in compiled functions, and prints tracebacks."""

    class Stopped(BaseException):
        pass

    def stop(number, frame):
        raise Stopped

    path = tmp_path / "out.h5"
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    done = []

    def work(*numbers):
        with create_hdf5(path):
            for one in numbers:
                signal.raise_signal(one)
            done.append("what was begun")

    try:
        with pytest.raises(Stopped):
            work(number)
        assert done == ["what was begun"]
        assert signal.getsignal(number) is stop
        with pytest.raises(Stopped):  # who presses Ctrl-C again does not want to wait
            work(number, signal.SIGINT)
        assert done == ["what was begun"]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_threads_open_files_though_signals_do_not_reach_them(tmp_path):
    path = example(tmp_path / "out.h5")
    found = []

    def look():
        with open_hdf5(path) as file:
            found.append(file.table("/a/b/t").n_rows)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [3]
