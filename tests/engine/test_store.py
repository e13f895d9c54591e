"""The store: atomic, checked, free of pickle, first result wins."""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

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


def test_a_flipped_bit_anywhere_never_gives_a_wrong_number(filled):
    path = filled.path(ADDRESS)
    whole = bytearray(path.read_bytes())
    noticed = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            groups, _ = _read(filled)
        except CorruptResult:
            noticed += 1
            continue
        # Dates and attributes of the archive are free to change; names and numbers are not.
        for group, arrays in GROUPS.items():
            assert groups[group].keys() == arrays.keys(), place
            for name, array in arrays.items():
                assert groups[group][name].tobytes() == array.tobytes(), place
    assert noticed > 0.5 * len(whole)


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


@pytest.mark.parametrize("change", [lambda a: a[:0], lambda a: np.full(a.shape, np.nan)])
def test_arrays_put_in_the_place_of_others_are_noticed(filled, change):
    path = filled.path(ADDRESS)
    with np.load(path, allow_pickle=False) as archive:
        members = dict(archive)
    members["rows/x"] = change(members["rows/x"].astype(float))
    np.savez(path.with_suffix(""), allow_pickle=False, **members)
    with pytest.raises(CorruptResult, match="not those that were stored"):
        filled.open(ADDRESS)
    assert not filled.is_sound(ADDRESS)


def test_a_pickle_is_refused_and_not_executed(filled, tmp_path):
    mine = tmp_path / "executed"
    with np.load(filled.path(ADDRESS)) as archive:
        members = dict(archive)
    members["cell []/n"] = np.array([_Bomb(mine)], dtype=object)
    np.savez(filled.path(ADDRESS), allow_pickle=True, **members)
    with pytest.raises(CorruptResult, match="not those that were stored"):
        filled.open(ADDRESS)
    filled.path(ADDRESS).write_bytes(pickle.dumps(_Bomb(mine)))
    with pytest.raises(CorruptResult):
        filled.open(ADDRESS)
    assert not mine.exists()
    # The bomb is live: NumPy itself would have set it off.
    np.load(filled.path(ADDRESS), allow_pickle=True)
    assert mine.exists()


def test_object_arrays_are_not_stored(store):
    with pytest.raises(ValueError, match="Object arrays"):
        store.save(ADDRESS, {}, {"rows": {"x": np.array([{}], dtype=object)}})
    assert _files(store) == []


def test_a_single_array_is_not_a_result(filled):
    with filled.path(ADDRESS).open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(CorruptResult, match="not an archive"):
        filled.open(ADDRESS)


def test_an_archive_without_header_is_not_a_result(filled):
    with zipfile.ZipFile(filled.path(ADDRESS), "w") as archive:
        archive.writestr("rows/x.npy", b"")
    with pytest.raises(CorruptResult):
        filled.open(ADDRESS)


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


def test_a_kill_while_bytes_are_written_leaves_nothing_visible(store, monkeypatch):
    # What is on disk half way through: look at the moment when savez has written one member.
    seen = []
    whole = np.lib.format.write_array

    def watching(*arguments, **options):
        whole(*arguments, **options)
        seen.append((store.has(ADDRESS), store.scan(), len(_files(store))))

    monkeypatch.setattr(np.lib._npyio_impl.format, "write_array", watching)
    store.save(ADDRESS, {}, GROUPS)
    assert seen
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
        patch.setattr(np, "savez", full)
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
            if self.tell() > 300:
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
