"""Where the SLURM of one machine lives: its daemons run as root, so nobody else may write there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm" / "one-machine"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it, and can chown")


def _refusal(script, prefix):
    """Run a script that is to end before it does anything; give what it complains of."""
    done = subprocess.run(
        ["bash", SCRIPTS / script], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "PREFIX": str(prefix)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def _marked(prefix):
    """What start.sh would take for its own, but for whose it is."""
    prefix.mkdir()
    mark = "# Written by calibdask, slurm/one-machine/start.sh"
    assert mark in (SCRIPTS / "prefix.sh").read_text()
    (prefix / "slurm.conf").write_text(f"{mark}\nSlurmUser=root\nProlog={prefix}/evil\n")
    return prefix


@pytest.mark.parametrize("script", ["start.sh", "stop.sh"])
def test_what_another_user_made_is_not_used(tmp_path, script):
    prefix = _marked(tmp_path / "slurm")
    for path in (prefix / "slurm.conf", prefix):
        os.chown(path, 65534, 65534)
    assert "belongs to the user with the number 65534" in _refusal(script, prefix)
    os.chown(prefix, 0, 0)
    assert "was not made by start.sh" in _refusal(script, prefix)


@pytest.mark.parametrize("script", ["start.sh", "stop.sh"])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_what_others_may_write_to_is_not_used(tmp_path, script, mode):
    prefix = _marked(tmp_path / "slurm")
    prefix.chmod(mode)
    assert "others than root may write to" in _refusal(script, prefix)


@pytest.mark.parametrize("script", ["start.sh", "stop.sh"])
def test_nor_is_what_lies_where_others_may_rename_it(tmp_path, script):
    above = tmp_path / "above"
    above.mkdir()
    prefix = _marked(above / "slurm")
    above.chmod(0o777)
    assert f"others than root may write to {above}" in _refusal(script, prefix)
    above.chmod(0o755)
    os.chown(above, 65534, 65534)
    assert f"{above} belongs to the user with the number 65534" in _refusal(script, prefix)


@pytest.mark.parametrize("script", ["start.sh", "stop.sh"])
def test_nor_is_a_link_or_somebody_elses_directory(tmp_path, script):
    (tmp_path / "link").symlink_to(_marked(tmp_path / "slurm"))
    assert "is a symbolic link" in _refusal(script, tmp_path / "link")
    other = tmp_path / "other"
    other.mkdir()
    assert "was not made by start.sh" in _refusal(script, other)
    assert "from the root" in _refusal(script, "slurm")


def test_a_new_prefix_is_made_below_roots_directories_only(tmp_path):
    tmp_path.chmod(0o777)
    assert "others than root may write to" in _refusal("start.sh", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert (
        "/tmp" not in (SCRIPTS / "prefix.sh").read_text().partition("PREFIX=")[2].partition("\n")[0]
    )
