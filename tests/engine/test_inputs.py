"""Finding inputs, and telling them apart by content."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from calibdask.engine.inputs import Identities, check_unchanged, find_inputs, identify
from calibdask.errors import ConfigError, CorruptedInput, MissingInput, TransientError

MIB = 1 << 20


@pytest.fixture
def files(tmp_path):
    for name in ("c.npy", "a.npy", "b.npy", "notes.txt", ".hidden.npy"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub.npy").mkdir()
    return tmp_path


def _names(found):
    return [one.path.name for one in found]


def test_a_directory_gives_its_files_in_order(files):
    found = find_inputs([files], ["*.npy"])
    assert _names(found) == ["a.npy", "b.npy", "c.npy"]
    assert not any(one.named for one in found)


def test_patterns_that_overlap_give_each_file_once(files):
    assert _names(find_inputs([files], ["*.npy", "a.*", "*.txt"])) == [
        "a.npy", "b.npy", "c.npy", "notes.txt",
    ]  # fmt: skip


def test_a_glob_gives_its_matches_in_order(files):
    found = find_inputs([f"{files}/[ab]*.npy"], ["*.npy"])
    assert _names(found) == ["a.npy", "b.npy"]
    assert not any(one.named for one in found)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    odd = tmp_path / "run[1].npy"
    odd.touch()
    (tmp_path / "run1.npy").touch()
    (one,) = find_inputs([odd], ["*.npy"])
    assert one.path == odd
    assert one.named


def test_a_list_is_read_relative_to_its_own_folder(files, monkeypatch):
    listing = files / "list.txt"
    listing.write_text(f"# nights\nb.npy\n\n  a.npy  \n{files}/c.npy\n[a]*.npy\n")
    monkeypatch.chdir("/")
    assert _names(find_inputs([f"@{listing}"], ["*.npy"])) == ["b.npy", "a.npy", "c.npy", "a.npy"]


def test_arguments_keep_their_order(files):
    found = find_inputs([files / "c.npy", str(files / "a.npy")], ["*.npy"])
    assert _names(found) == ["c.npy", "a.npy"]
    assert all(one.named for one in found)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{}/*.fits", "no file matches"),
        ("{}/sub.npy", r"no file named \*.npy in the directory"),
        ("@{}/absent.txt", "cannot read the list of inputs"),
        ("@{}/empty.txt", "names no file"),
        ("@{}/binary.txt", "cannot read the list of inputs"),
    ],
)
def test_what_gives_no_file_is_refused_and_named(files, argument, message):
    (files / "empty.txt").write_text("# nothing\n\n")
    (files / "binary.txt").write_bytes(b"\xff\xfe\x00")
    argument = argument.format(files)
    with pytest.raises(ConfigError, match=message) as caught:
        find_inputs([argument], ["*.npy"])
    assert argument.removeprefix("@") in str(caught.value)


def test_no_argument_at_all_is_refused():
    with pytest.raises(ConfigError, match="no input"):
        find_inputs([], ["*.npy"])


# -- identity -----------------------------------------------------------------------------------


def _write(path, content, mtime_s=1_000_000):
    path.write_bytes(content)
    os.utime(path, (mtime_s, mtime_s))
    return path


def _large(*, at=None):
    content = bytearray(os.urandom(0) + bytes(range(256)) * (5 * MIB // 256))
    if at is not None:
        content[at] ^= 1
    return bytes(content)


def test_identity_is_content_not_name_place_or_time(tmp_path):
    one = identify(_write(tmp_path / "one", b"data"))
    (tmp_path / "sub").mkdir()
    other = identify(_write(tmp_path / "sub" / "other", b"data", 2_000_000))
    assert one.identity == other.identity
    assert one.identity != identify(_write(tmp_path / "third", b"date")).identity
    assert (one.size, one.mtime_ns) == (4, 1_000_000 * 10**9)


@pytest.mark.parametrize("at", [0, MIB - 1, 2 * MIB, 3 * MIB - 1, 4 * MIB, 5 * MIB - 1])
def test_first_middle_and_last_mib_count(tmp_path, at):
    before = identify(_write(tmp_path / "x", _large()))
    after = identify(_write(tmp_path / "x", _large(at=at)))
    assert before.identity != after.identity


def test_a_full_identity_sees_every_byte(tmp_path):
    path = tmp_path / "x"
    fast, full = (identify(_write(path, _large()), full=one) for one in (False, True))
    assert full.identity.startswith(fast.identity + ":")
    changed = _write(path, _large(at=3 * MIB + MIB // 2))
    assert identify(changed).identity == fast.identity
    assert identify(changed, full=True).identity != full.identity


def test_a_change_of_time_makes_the_whole_file_count(tmp_path):
    memory = tmp_path / "work" / "inputs.json"
    path = _write(tmp_path / "x", _large(), 1_000_000)

    def look():
        identities = Identities(memory)
        ref = identities.of(path)
        identities.save()
        return ref.identity

    first = look()
    assert look() == first
    _write(path, _large(at=3 * MIB + MIB // 2), 2_000_000)
    assert identify(path).identity == first, "the edit is not in the three MiB"
    second = look()
    assert second != first
    assert look() == second, "the full hash stays part of the identity"
    _write(path, _large(at=3 * MIB + MIB // 2 + 1), 3_000_000)
    assert look() not in (first, second)


def test_full_verification_is_remembered(tmp_path):
    memory = tmp_path / "inputs.json"
    path = _write(tmp_path / "x", b"data")
    identities = Identities(memory, full=True)
    full = identities.of(path).identity
    identities.save()
    assert Identities(memory).of(path).identity == full


@pytest.mark.parametrize("text", ["", "{", "[]", '{"/x": 3}', "null", "\x00"])
def test_a_broken_memory_costs_a_hash_and_nothing_else(tmp_path, text):
    memory = tmp_path / "inputs.json"
    memory.write_text(text)
    path = _write(tmp_path / "x", b"data")
    identities = Identities(memory)
    assert identities.of(path) == identify(path)
    identities.save()
    assert Identities(memory).of(path) == identify(path)


def test_what_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingInput, match="no such file") as caught:
        identify(tmp_path / "absent")
    assert str(tmp_path / "absent") in str(caught.value)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CorruptedInput, match="not a regular file"):
            identify(path)


def _raise(number):
    def refused(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return refused


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = _write(tmp_path / "x", b"data")
    monkeypatch.setattr(Path, "open", _raise(errno.EACCES))
    with pytest.raises(MissingInput, match="may not be read") as caught:
        identify(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions_of_the_file_system_count(tmp_path):
    path = _write(tmp_path / "x", b"data")
    path.chmod(0)
    with pytest.raises(MissingInput, match="may not be read"):
        identify(path)


@pytest.mark.parametrize(("pattern", "place"), [("*.h5", "data"), ("**/*.h5", "data/sub")])
def test_a_directory_that_may_not_be_read_is_not_empty(tmp_path, monkeypatch, pattern, place):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    _write(tmp_path / "data" / "a.h5", b"data")
    whole = os.scandir

    def scandir(path="."):
        if Path(path) == tmp_path / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(MissingInput, match=rf"{place}: may not be read: Permission denied"):
        find_inputs([tmp_path / "data"], [pattern])


def test_a_directory_whose_files_may_not_be_looked_at(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    _write(tmp_path / "a.h5", b"data")
    with pytest.raises(MissingInput, match=r"a\.h5: may not be read"):
        find_inputs([tmp_path], ["*.h5"])


def test_an_error_of_the_file_system_may_pass(tmp_path, monkeypatch):
    path = _write(tmp_path / "x", b"data")
    monkeypatch.setattr(Path, "open", _raise(errno.EIO))
    with pytest.raises(TransientError, match="Input/output error"):
        identify(path)


# -- between plan and run -------------------------------------------------------------------------


def test_an_unchanged_file_passes(tmp_path):
    check_unchanged(identify(_write(tmp_path / "x", b"data")))


@pytest.mark.parametrize(("content", "mtime_s"), [(b"data", 2_000_000), (b"dates", 1_000_000)])
def test_a_file_changed_since_planning_is_refused(tmp_path, content, mtime_s):
    ref = identify(_write(tmp_path / "x", b"data"))
    _write(tmp_path / "x", content, mtime_s)
    with pytest.raises(CorruptedInput, match="changed between plan and run"):
        check_unchanged(ref)


def test_a_file_gone_since_planning_is_missing(tmp_path):
    ref = identify(_write(tmp_path / "x", b"data"))
    (tmp_path / "x").unlink()
    with pytest.raises(MissingInput, match="is gone"):
        check_unchanged(ref)


def _store(path, value=0, files=5):
    (path / "c").mkdir(parents=True)
    (path / "zarr.json").write_text("{}")
    for number in range(files):
        (path / "c" / str(number)).write_bytes(bytes([value + number]) * 10)
    return path


def test_a_zarr_store_is_one_input(tmp_path):
    for name in ("a.zarr", "sub/b.zarr", ".hidden.zarr"):
        _store(tmp_path / name)
    (tmp_path / "c.zarr").mkdir()  # no store
    patterns = ["**/*.[zZ]arr", "**/[0-9]"]
    assert [one.path.name for one in find_inputs([tmp_path], patterns[:1])] == ["a.zarr", "b.zarr"]
    (named,) = find_inputs([tmp_path / "a.zarr"], patterns)
    assert (named.path.name, named.named) == ("a.zarr", True)
    assert _names(find_inputs([f"{tmp_path}/*.zarr"], patterns)) == ["a.zarr"]
    # Whoever does not ask for stores sees a directory.
    assert len(find_inputs([tmp_path / "a.zarr"], ["**/[0-9]"])) == 5


def test_what_identifies_a_zarr_store(tmp_path):
    one, same, other = (_store(tmp_path / n, v) for n, v in (("a", 0), ("b", 0), ("c", 9)))
    ref = identify(one)
    assert ref.size == 52
    assert ref.identity == identify(same).identity
    assert ref.identity != identify(other).identity
    check_unchanged(ref)
    middle = same / "c" / "1"  # not one of the three that are looked into
    middle.write_bytes(b"9" * 10)
    assert identify(same).identity == ref.identity
    assert identify(same, full=True).identity != identify(one, full=True).identity
    (one / "c" / "9").write_bytes(b"more")
    with pytest.raises(CorruptedInput, match="changed between plan and run"):
        check_unchanged(ref)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptedInput, match="is not a regular file"):
        identify(tmp_path / "empty")
    gone = dataclasses.replace(ref, path=str(tmp_path / "gone"))
    with pytest.raises(MissingInput, match="is gone"):
        check_unchanged(gone)
