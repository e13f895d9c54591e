"""What the README shows is what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_calibration_it_shows_is_the_one_that_is_tested() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert (ROOT / "tests" / "tiny.py").read_text(encoding="utf-8") in blocks


def test_files_it_names_exist() -> None:
    names = re.findall(r"`((?:calibdask|tests|jobs|configs|slurm)/[\w./]+)`", README)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
