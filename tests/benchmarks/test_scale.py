"""The benchmark of the engine fills its tables: checked on a few shards, without times."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def scale(monkeypatch):
    spec = importlib.util.spec_from_file_location("scale", Path(__file__).with_name("scale.py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scale", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EFFICIENCY", {0.01: 6})
    monkeypatch.setattr(module, "END_TO_END", (4, 40))
    monkeypatch.setattr(module, "RATE", 40)
    monkeypatch.setattr(module, "RATE_ORDER", ("tls", "tcp"))
    return module


def test_every_table_is_filled(scale, tmp_path, capsys):
    output = tmp_path / "table.txt"
    scale.main(["--output", str(output)])
    text = output.read_text()
    assert capsys.readouterr().out == text
    assert re.search(r"\| 10 ms \| 6 \| \d+\.\d s \| \d+\.\d % \|", text)
    for count, files in ((4, 5), (40, 45)):
        for name in ("new", "stored"):
            row = rf"\| {count} \| {name} \|( \d+\.\d s \|){{6}} \d+ MB \| {files} \| \d\.\d kB \|"
            assert re.search(row, text), (count, name)
    assert re.search(r"memory grows by -?\d+\.\d kB a shard", text)
    # 40 maps, 3 merges, their merge and the fit: in fewer calls, then each in its own.
    assert re.search(r"\| 45 \| [1-3]\d \| \d+ /s \| \d+ /s \| -?\d+ % \|", text)
    assert re.search(r"\| 45 \| 45 \| \d+ /s \| \d+ /s \| -?\d+ % \|", text)
    assert "Extrapolated with a plan's numbers, not measured: 100 000 shards on 200 workers" in text
    assert "106 670 tasks in" in text


def test_a_measurement_that_fails_is_told_with_its_reason(scale, tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)run_once.* failed:.*no file named \*\.npy"):
        scale._child("run_once", str(tmp_path), str(tmp_path / "o.h5"), 0.0)
