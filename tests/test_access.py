"""Whose a directory is, and who may change what is in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from calibdask.access import check_private, distrust, make_private, make_scratch
from calibdask.errors import ConfigError

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids="umask {:03o}".format)
def any_umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("mode", "open_to_others", "secret"),
    [
        (0o700, False, False),
        (0o755, False, True),
        (0o750, False, True),
        (0o770, True, True),
        (0o775, True, True),
        (0o707, True, True),
        (0o1777, True, True),
    ],
)
def test_what_others_may_change_is_not_trusted(tmp_path, mode, open_to_others, secret):
    path = tmp_path / "directory"
    path.mkdir()
    path.chmod(mode)
    assert (distrust(path) is not None) == open_to_others
    assert (distrust(path, secret=True) is not None) == secret


def test_a_secret_is_not_reached_by_a_link(tmp_path):
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("there")
    assert distrust(tmp_path / "link") is None
    assert "symbolic link" in distrust(tmp_path / "link", secret=True)


@as_root
def test_what_others_own_is_not_trusted(tmp_path):
    path = tmp_path / "directory"
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY, NOBODY)
    assert "belongs to the user nobody, not to the user root" in distrust(path)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("mine")
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    assert "symbolic link made by the user nobody" in distrust(tmp_path / "link")
    os.chown(path, 3210987, NOBODY)
    assert "the user with the number 3210987" in distrust(path)


def test_a_refusal_says_what_to_do(tmp_path):
    tmp_path.chmod(0o770)
    with pytest.raises(ConfigError, match=rf"{tmp_path} has the permissions 770: .*; move away"):
        check_private(tmp_path, remedy="move away")
    check_private(tmp_path / "absent", remedy="")
    with pytest.raises(ConfigError, match="move away"):
        make_private(tmp_path, remedy="move away")


def test_a_private_directory_is_one_whatever_the_umask(tmp_path, any_umask):
    make_private(tmp_path / "new", remedy="")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    make_private(tmp_path / "new", remedy="")


def test_scratch_is_made_where_many_may_write_but_nobody_can_replace_it(tmp_path, any_umask):
    tmp_path.chmod(0o1777)
    one, other = make_scratch(tmp_path), make_scratch(tmp_path)
    assert one != other
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"0777.*Slurm.local_directory"):
        make_scratch(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        make_scratch(tmp_path / "absent")


@as_root
def test_scratch_is_not_made_in_a_directory_of_another(tmp_path):
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="belongs to the user nobody"):
        make_scratch(tmp_path)


def test_a_job_script_asks_for_scratch(tmp_path):
    command = [sys.executable, "-m", "calibdask.access"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=True)
    assert os.path.isdir(done.stdout.strip())  # noqa: PTH112  as the shell sees it
    done = subprocess.run(
        [*command, tmp_path / "absent"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
