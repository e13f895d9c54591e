"""The store: atomic, checked, free of pickle, first result wins."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibdask.engine import store as store_module
from calibdask.engine.store import CorruptResult, Store
from calibdask.errors import CalibdaskError, TransientError

ADDRESS = "ab" + "0" * 62
GROUPS = {"cell []": {"n": np.array(3), "s": np.array([1.5, -2.0])}, "rows": {"x": np.arange(5)}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def filled(store):
    store.save(ADDRESS, {"cells": [[]]}, GROUPS)
    return store


def _read(store):
    with store.open(ADDRESS) as pack:
        return {group: pack.group(group) for group in GROUPS}, pack.header


def _files(store):
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_gives_back_what_was_stored(filled):
    groups, header = _read(filled)
    for group, arrays in GROUPS.items():
        assert groups[group].keys() == arrays.keys()
        for name, array in arrays.items():
            assert groups[group][name].tobytes() == array.tobytes()
            assert groups[group][name].dtype == array.dtype
            assert groups[group][name].shape == array.shape
    assert header["cells"] == [[]]
    assert filled.has(ADDRESS)
    assert filled.scan() == {ADDRESS}
    assert filled.is_sound(ADDRESS)
    with filled.open(ADDRESS) as pack:
        assert pack.group("cell") == {}


def test_an_empty_store_is_empty(store):
    assert store.scan() == set()
    assert not store.has(ADDRESS)


def test_groups_with_separators_in_their_names_stay_apart(store):
    groups = {
        'cell ["a/b",1]': {"n": np.array(1)},
        'cell ["a"]': {"b,1]/n": np.array(2), "n": np.array(3)},
        'cell ["\\u00e9\\u0000"]': {"n": np.array(4)},
    }
    store.save(ADDRESS, {}, groups)
    with store.open(ADDRESS) as pack:
        for group, arrays in groups.items():
            assert {name: int(value) for name, value in pack.group(group).items()} == {
                name: int(value) for name, value in arrays.items()
            }


def test_the_first_sound_result_stays(filled):
    before = filled.path(ADDRESS).read_bytes()
    filled.save(ADDRESS, {}, {"cell []": {"n": np.array(99)}})
    assert filled.path(ADDRESS).read_bytes() == before
    assert _files(filled) == [filled.path(ADDRESS)]


def test_a_broken_result_gives_way(filled):
    path = filled.path(ADDRESS)
    path.write_bytes(path.read_bytes()[:-30])
    filled.save(ADDRESS, {}, {"cell []": {"n": np.array(99)}})
    with filled.open(ADDRESS) as pack:
        assert pack.group("cell []")["n"] == 99


def test_another_address_is_not_taken_for_this_one(filled):
    other = "ab" + "1" * 62
    filled.path(ADDRESS).rename(filled.path(other))
    with pytest.raises(CorruptResult, match="another address"):
        filled.open(other)


def test_truncation_anywhere_is_noticed(filled):
    path = filled.path(ADDRESS)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert not filled.is_sound(ADDRESS)
        with pytest.raises(CorruptResult, match=r"broken") as caught:
            _read(filled)
        assert str(path) in str(caught.value)


def test_a_flipped_bit_anywhere_is_noticed(filled):
    path = filled.path(ADDRESS)
    whole = bytearray(path.read_bytes())
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        assert not filled.is_sound(ADDRESS), place
        with pytest.raises(CorruptResult):
            _read(filled)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)

    def __init__(self, path):
        self.path = str(path)


def _replace_by_pipe(path):
    os.mkfifo(path)


def _replace_by_directory(path):
    path.mkdir()
    (path / "inside").touch()


def _replace_by_link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    "replaced", [_replace_by_pipe, _replace_by_directory, _replace_by_link_to_itself]
)
def test_what_is_no_file_is_discarded(filled, replaced):
    path = filled.path(ADDRESS)
    path.unlink()
    replaced(path)
    assert ADDRESS not in filled.scan()
    with pytest.raises(CorruptResult, match="stored result is broken"):
        filled.open(ADDRESS)
    filled.save(ADDRESS, {"cells": [[]]}, GROUPS)
    _read(filled)
    path.unlink()
    replaced(path)
    filled.discard(ADDRESS)
    assert not path.is_symlink()
    assert not path.exists()


def _swap(path, one, other):
    """Exchange bytes of a file for others, as often as they occur."""
    before = path.read_bytes()
    assert one in before
    path.write_bytes(before.replace(one, other))


def test_an_array_in_the_place_of_another_is_noticed(filled):
    path = filled.path(ADDRESS)
    _swap(path, np.arange(5).tobytes(), np.arange(1, 6).tobytes())
    with filled.open(ADDRESS) as pack, pytest.raises(CorruptResult, match="another checksum"):
        pack.group("rows")
    assert not filled.is_sound(ADDRESS)


@pytest.mark.parametrize(
    ("one", "other"),
    [(b'"rows/x"', b'"rows/y"'), (b'"<i8", [5]', b'"<f8", [5]'), (b'"<i8", [5]', b'"|O8", [5]')],
)
def test_an_array_described_as_another_is_noticed(filled, one, other):
    _swap(filled.path(ADDRESS), one, other)
    with pytest.raises(CorruptResult, match="header has another checksum"):
        filled.open(ADDRESS)
    assert not filled.is_sound(ADDRESS)


def _sealed(header):
    """Return a file with a header that has the right checksum."""
    text = json.dumps(header).encode()
    checksum = zlib.crc32(text).to_bytes(4, "little")
    return store_module._MAGIC + checksum + len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("dtype", ["O", "T", "V8", "f8,i4", "nonsense"])
def test_objects_are_not_read_although_all_checksums_are_right(filled, dtype):
    arrays = [["rows/x", dtype, [1], "C", zlib.crc32(b"12345678")]]
    path = filled.path(ADDRESS)
    path.write_bytes(_sealed({"address": ADDRESS, "arrays": arrays}) + b"12345678")
    with pytest.raises(CorruptResult, match="stored result is broken"):
        filled.open(ADDRESS)


@pytest.mark.parametrize(
    "header", [[], {}, {"address": ADDRESS}, {"address": ADDRESS, "arrays": [[]]}]
)
def test_a_header_that_lacks_something_is_refused(filled, header):
    filled.path(ADDRESS).write_bytes(_sealed(header))
    with pytest.raises(CorruptResult, match="stored result is broken"):
        filled.open(ADDRESS)


def test_a_pickle_is_refused_and_not_executed(filled, tmp_path):
    mine = tmp_path / "executed"
    filled.path(ADDRESS).write_bytes(pickle.dumps(_Bomb(mine)))
    with pytest.raises(CorruptResult, match="not a result in the format of this version"):
        filled.open(ADDRESS)
    assert not mine.exists()
    # The bomb is live: unpickled it would have gone off.
    pickle.loads(filled.path(ADDRESS).read_bytes())
    assert mine.exists()


def test_object_arrays_are_not_stored(store):
    with pytest.raises(ValueError, match="rows/x: arrays of object cannot be stored"):
        store.save(ADDRESS, {}, {"rows": {"x": np.array([{}], dtype=object)}})
    assert _files(store) == []


def test_an_archive_of_numpy_is_not_a_result(filled):
    with filled.path(ADDRESS).open("wb") as file:
        np.savez(file, x=np.arange(3))
    with pytest.raises(CorruptResult, match="not a result in the format of this version"):
        filled.open(ADDRESS)


@given(
    hnp.arrays(
        hnp.scalar_dtypes()
        | hnp.unicode_string_dtypes(max_len=3)
        | hnp.byte_string_dtypes(max_len=3),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_every_array_comes_back_with_its_type_shape_and_order(tmp_path_factory, array, turned):
    store = Store(tmp_path_factory.mktemp("store"))
    array = array.T if turned else array
    store.save(ADDRESS, {}, {"rows": {"x": array}})
    with store.open(ADDRESS) as pack:
        back = pack.group("rows")["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    if array.flags.forc:
        assert back.flags.c_contiguous == array.flags.c_contiguous


def test_parts_of_arrays_are_stored_as_they_look(store):
    whole = np.arange(24).reshape(4, 6)
    views = {
        "rows": {"step": whole[::2, 1::2], "back": whole[::-1], "wide": np.broadcast_to(7, (3,))}
    }
    store.save(ADDRESS, {}, views)
    with store.open(ADDRESS) as pack:
        for name, array in pack.group("rows").items():
            np.testing.assert_array_equal(array, views["rows"][name])


_WRITER = """
import os, sys, signal
from pathlib import Path
import numpy as np
from calibdask.engine.store import Store
count = 0
def dying(event, arguments):
    # Audit hooks see each opening, linking and renaming: die before or between them.
    global count
    if event in ("open", "os.link", "os.rename", "os.remove") and "store" in str(arguments[0]):
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(dying)
Store(Path(sys.argv[1])).save(sys.argv[3], {}, {"rows": {"x": np.arange(200_000)}})
print("survived")
"""


def test_a_writer_killed_anywhere_leaves_nothing_or_everything(store):
    survived = 0
    for moment in range(1, 6):
        address = f"{moment:02d}" + "0" * 62
        done = subprocess.run(
            [sys.executable, "-c", _WRITER, str(store.root), str(moment), address],
            capture_output=True,
            text=True,
            check=False,
        )
        survived += done.stdout == "survived\n"
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        if store.has(address):
            assert store.is_sound(address)
        store.save(address, {}, {"rows": {"x": np.arange(200_000)}})
        assert store.is_sound(address)
        assert address in store.scan()
    assert survived < 5


def _made(path):
    path.parent.mkdir(parents=True)
    return path


def test_a_kill_while_bytes_are_written_leaves_nothing_visible(store, monkeypatch):
    # What is on disk before anything is written, and after each piece of the file.
    seen = []

    class Watching(io.FileIO):
        def write(self, data):
            seen.append((store.has(ADDRESS), store.scan(), len(_files(store))))
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_create", lambda path: Watching(_made(path), "xb"))
        store.save(ADDRESS, {}, GROUPS)
    assert len(seen) > 2
    assert all(one == (False, set(), 1) for one in seen)
    assert store.scan() == {ADDRESS}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.EIO])
def test_a_network_file_system_gets_time(filled, monkeypatch, number):
    whole = os.open
    script = [number, number]
    pauses = []

    def scripted(*arguments, **options):
        if script:
            raise OSError(script.pop(), "scripted", str(filled.path(ADDRESS)))
        return whole(*arguments, **options)

    monkeypatch.setattr(os, "open", scripted)
    monkeypatch.setattr(store_module.time, "sleep", pauses.append)
    groups, _ = _read(filled)
    assert groups["rows"]["x"].tolist() == [0, 1, 2, 3, 4]
    assert len(pauses) == 2
    assert pauses == sorted(pauses)


def test_what_never_appears_is_a_fault_that_may_pass(store, monkeypatch):
    pauses = []
    monkeypatch.setattr(store_module.time, "sleep", pauses.append)
    with pytest.raises(TransientError, match="tried 4 times") as caught:
        store.open(ADDRESS)
    assert str(store.path(ADDRESS)) in str(caught.value)
    assert len(pauses) == 3


def test_other_errors_are_not_waited_for(filled, monkeypatch):
    def refused(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(store_module.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(TransientError, match="Permission denied"):
        filled.open(ADDRESS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_full_or_read_only_disk_is_said_and_leaves_nothing(store, monkeypatch, number):
    def full(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_write", full)
        with pytest.raises(CalibdaskError, match=os.strerror(number)) as caught:
            store.save(ADDRESS, {}, GROUPS)
    assert caught.value.exit_code == 1
    assert str(store.path(ADDRESS).parent) in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert _files(store) == []
    store.save(ADDRESS, {}, GROUPS)
    assert store.is_sound(ADDRESS)


def test_a_disk_that_fills_up_while_writing_leaves_nothing(store, monkeypatch):
    class Filling(io.FileIO):
        def write(self, data):
            if self.tell() > 200:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def filling(path, mode):
        return Filling(path, mode)

    monkeypatch.setattr(Path, "open", filling)
    with pytest.raises(CalibdaskError, match="No space left"):
        store.save(ADDRESS, {}, GROUPS)
    assert _files(store) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_works_without_hard_links(store, monkeypatch, number):
    def refused(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_module.os, "link", refused)
    store.save(ADDRESS, {}, GROUPS)
    assert store.is_sound(ADDRESS)
    assert _files(store) == [store.path(ADDRESS)]
