"""The benchmark of comparing events fills its table: checked on few events, without times."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_memory_of_driver_and_worker_is_printed():
    script = Path(__file__).with_name("keys.py")
    command = [sys.executable, str(script), "--millions", "0.01", "0.02", "--shards", "3"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for millions in ("0.01", "0.02"):
        row = rf"^ +{millions} +\d+ MB +\d+ MB +\d+\.\d s +\d+\.\d s$"
        assert re.search(row, said, re.MULTILINE), said
