"""The benchmarks measure what they say: checked on small data and on programs of known cost."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = _load("bench")


def test_cost_includes_children_and_their_memory(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    hold = "x = bytearray(200_000_000)\nx[::4096] = b'1' * len(x[::4096])\n"
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {hold + burn!r}], check=True)\n"
    )
    cost = bench.run([sys.executable, script], tmp_path)
    assert 0.5 <= cost.cpu_s < 3
    assert cost.driver_mb < 100
    assert 190 < cost.total_mb - cost.driver_mb < 300
    assert cost.worker_mb == 0


def test_a_command_that_fails_is_told_with_what_it_printed(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3 .*no such star"):
        bench.run(
            [sys.executable, "-c", "import sys; print('no such star'); sys.exit(3)"], tmp_path
        )


def test_time_until_the_first_shard_needs_a_shard(tmp_path):
    tell = 'import sys; print(\'{"event": "RunEnded"}\', file=sys.stderr)'
    with pytest.raises(RuntimeError, match="no shard was done"):
        bench.cpu_until_first_shard([sys.executable, "-c", tell], tmp_path)


@pytest.mark.parametrize(
    ("ours", "other", "most", "verdict", "ratio"),
    [
        (3.0, 2.0, 2.0, "met", "1.50"),
        (5.0, 2.0, 2.0, "NOT MET", "2.50"),
        (1.0, 20.0, 1 / 15, "met", "1/20.0"),
        (1.0, 14.0, 1 / 15, "NOT MET", "1/14.0"),
        (1.0, math.nan, 1 / 15, "", ""),
        (1.2, 2.0, None, "", "0.60"),
    ],
)
def test_verdicts(ours, other, most, verdict, ratio):
    row = bench.Row("name", ours, "s", other, "peer", most)
    assert row.verdict == verdict
    assert row.cells()[4] == ratio


def test_different_work_is_not_compared():
    bench._same(5, 5)
    with pytest.raises(RuntimeError, match="selected 5 pairs and the peer 6"):
        bench._same(5, 6)


def test_warm_on_small_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALIBDASK_BENCH_DATA", str(tmp_path / "data"))
    output = tmp_path / "table.txt"
    rows = bench.main(
        ["--only", "warm", "--scale", "0.02", "--repeats", "1", "--output", str(output)]
    )
    assert [row.against for row in rows] == ["reading the tables"] * 2
    first_map, everything = rows
    assert 0 < first_map.ours < everything.ours
    assert first_map.other == everything.other > 0
    assert output.read_text() == capsys.readouterr().out
    assert len(list((tmp_path / "data").glob("array-1-3000-*/*.h5"))) == 1


def test_muon_images_on_few_rings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["muon.py", "--rings", "12"])
    _load("muon").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 images, ")
    assert all(float(line[32:41]) > 0 for line in lines[2:7])


def test_muon_truth_on_few_rings(monkeypatch, capsys):
    module = _load("muon_truth")
    pulls = dict.fromkeys(("efficiency", "width", "impact"), np.array([-1.0, 1.0]))
    row = module.Row(3, 0.001, 0.002, pulls, {})
    monkeypatch.setattr(module, "study", lambda *_, **__: row)
    monkeypatch.setattr(sys, "argv", ["muon_truth.py", "--rings", "400"])
    module.main()
    assert capsys.readouterr().out.count("   3/ 400  +0.10 ± 0.20") == len([*module.rows()])
    far = row._replace(bias=0.1, bias_error=0.001)
    monkeypatch.setattr(module, "study", lambda *_, **__: far)
    with pytest.raises(SystemExit, match="off: hexagon"):
        module.main()
    monkeypatch.undo()
    found = module.study(20, module.FITS["default"], broken=0.01)
    assert found.n_fitted > 15
    assert abs(found.bias) < 5 * found.bias_error
    assert all(np.isfinite(one).all() for one in found.pulls.values())


def test_muon_tables_on_few_rings(monkeypatch, capsys, tmp_path):
    module = _load("muon_tables")
    asked = []

    def job(kind, paths, folder, *options):
        asked.append((kind, len(paths), options))
        return bench.Cost(2.0, 3.0, 100.0, 50.0, 150.0, "")

    real = module.job
    monkeypatch.setattr(module, "job", job)
    module.main(["--scale", "0.0005"])
    shown = capsys.readouterr().out
    assert shown.count("PyTables reading the columns") == 6
    assert {n for _, n, _ in asked} == {8, 2}
    options = module.MuonSimulation(n_files=1, n_rings=400)
    (path,) = module.simulate_ring_tables(tmp_path / "rings", options)
    assert module.read([path]) >= 0
    cost = real("psf", [path], tmp_path, "--cluster", "serial")
    assert cost.cpu_s > 0.1
    assert list(tmp_path.glob("psf.h5*")) == [tmp_path / "psf.h5"]
