"""What a trivial run imports: libraries that take long are imported only where they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COMMAND = """
import atexit, os, sys
from calibdask import cli, registry
registry.JOBS["mean-counts"] = registry.Job("mean-counts", "Means.", "tiny:MeanCounts")
cli._add_job("mean-counts", "Means.")
main = os.getpid()
atexit.register(lambda: os.getpid() == main and print("MODULES", *sys.modules))
cli.main()
"""
NEVER = {"matplotlib", "numba", "scipy", "pandas", "dask", "distributed", "xarray", "zarr",
         "ctapipe", "rich", "jinja2", "calibdask.report"}  # fmt: skip
WITH_A_REPORT = {"jinja2", "calibdask.report"}


@pytest.mark.parametrize("report", [False, True])
def test_a_trivial_run_imports_only_what_it_uses(tmp_path, report):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "counts.npy", np.arange(10))
    command = [sys.executable, "-c", COMMAND, "mean-counts", "-i", "in", "-o", "out.h5"]
    command += [] if report else ["--no-report"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    line = next(line for line in ended.stdout.splitlines() if line.startswith("MODULES"))
    imported = set(line.split()[1:])
    assert (tmp_path / "out.h5").exists()
    assert (tmp_path / "out.html").exists() == report
    assert {"numpy", "astropy.table", "tables"} <= imported, "the command did its work"
    unexpected = {name for name in NEVER if any(one.split(".")[0] == name for one in imported)}
    unexpected |= NEVER & imported
    assert unexpected - (WITH_A_REPORT if report else set()) == set()
