from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibdask.stats import compiled as module
from calibdask.stats.compiled import cache_directory, compiled

KERNELS = """
from calibdask.stats.compiled import compiled

@compiled
def inner(x):
    return x + {constant}
"""
CALLER = """
from calibdask.stats.compiled import compiled
from kernels import inner

@compiled
def outer(x):
    return 2 * inner(x)
"""


def _run(directory, code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{Path.cwd()}", **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNELS.format(constant=1))
    (tmp_path / "caller.py").write_text(CALLER)
    return tmp_path


def test_an_edit_elsewhere_is_never_answered_from_the_cache(package, tmp_path_factory):
    """numba alone looks at the file of the function that is called, and gives the old number."""
    cache = str(tmp_path_factory.mktemp("cache"))
    code = "from caller import outer; print(outer(3), sum(outer.stats.cache_hits.values()))"
    assert _run(package, code, NUMBA_CACHE_DIR=cache) == "8 0"
    assert _run(package, code, NUMBA_CACHE_DIR=cache) == "8 1"
    (package / "kernels.py").write_text(KERNELS.format(constant=2))
    assert _run(package, code, NUMBA_CACHE_DIR=cache) == "10 0"


def test_a_home_that_cannot_be_written_to_costs_time_only(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "from caller import outer; print(outer(3))"
    environment = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "NUMBA_CACHE_DIR": ""}
    assert _run(package, code, **environment) == "8"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_costs_time_only(package, tmp_path, number):
    code = (
        "import os\n"
        "def fail(*_): raise OSError(int(os.environ['NUMBER']), 'scripted')\n"
        "from caller import outer\n"
        "os.replace = fail\n"
        "print(outer(3), len(outer.signatures))"
    )
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBER": str(number)}
    assert _run(package, code, **environment) == "8 1"


def test_a_user_without_home_has_no_cache(monkeypatch):
    def nowhere(_path):
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert compiled(lambda x: x + 1)(2) == 3


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/node")
    name = cache_directory(tmp_path).name
    assert cache_directory(tmp_path) == Path("/node") / name
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_directory(tmp_path) == Path("/cache/calibdask/numba") / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_directory(tmp_path) == Path("/home/user/.cache/calibdask/numba") / name


def test_other_libraries_keep_their_cache():
    import numba

    before = numba.config.CACHE_DIR
    assert compiled(module.cache_directory) is not module.cache_directory
    assert before == numba.config.CACHE_DIR


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_sensor_job_works_where_the_disks_of_home_and_cache_are_full(tmp_path):
    full = tmp_path / "full"
    full.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", full]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this container may not mount a file system")
    try:
        with pytest.raises(OSError, match="No space left"):
            (full / "ballast").write_bytes(bytes(1 << 17))
        data = tmp_path / "data"
        data.mkdir()
        for number in range(3):
            frame = np.random.default_rng(number).integers(0, 99, (8, 8), np.uint16)
            Image.fromarray(frame).save(data / f"{number}.png")
        code = "from calibdask.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "bias", "-i", data, "-o", tmp_path / "out", "--no-report",
             "--cluster", "serial"],
            env={**os.environ, "XDG_CACHE_HOME": "", "HOME": full, "NUMBA_CACHE_DIR": full / "n"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "1 used (1 computed now" in done.stdout
        assert not list(full.rglob("*.nbc"))
    finally:
        subprocess.run(["umount", full], check=True)
