"""Golden numbers of the muon calibrations: our own, and those of ctao-calibpipe.

    python -m tests.golden.muon

writes ``muon.json`` anew. Do so when numbers are meant to change, together with a raised
``version`` of the calibrations: stored results of the old version are then not used.

    python -m tests.golden.muon --peer .venv-peer

writes ``muon_peer.json``: what ctao-calibpipe 0.8.0 on ctapipe 0.32.0 gives on the same file with
``calibpipe-calculate-throughput-muon -c throughput.yaml -i rings.h5`` and
``calibpipe-calculate-psf-muon -c psf.yaml -i rings.h5``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import tables as pytables

import calibdask
from calibdask.muon.psf import PsfFromMuons
from calibdask.muon.simulate import MuonSimulation, simulate_ring_tables
from calibdask.muon.throughput import ThroughputFromMuons

GOLDEN: Final = Path(__file__).with_name("muon.json")
PEER: Final = Path(__file__).with_name("muon_peer.json")
THROUGHPUT: Final = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
PSF: Final = "/dl1/monitoring/telescope/optical_psf"
OPTIONS: Final = MuonSimulation(n_files=1, n_rings=6000, seed=7)
# The peer's bins of radius are one less than it is told.
PEER_CONFIGS: Final = {
    "throughput": """\
CalculateThroughputWithMuons:
  SigmaClippingAggregator: {max_sigma: 4, iterations: 5, SizeChunking: {chunk_size: 1000}}
""",
    "psf": "CalculatePSFWithMuons: {muonring_radius_fit_nbins: 10, min_number_of_muon: 100}\n",
}


def compute(folder: Path) -> dict[str, Any]:
    """Simulate into an empty folder, calibrate, and give the numbers."""
    paths = simulate_ring_tables(folder / "rings", OPTIONS)
    numbers: dict[str, Any] = {
        "versions": {kind.name: kind.version for kind in (ThroughputFromMuons, PsfFromMuons)}
    }
    for name, job, overrides in (
        ("bins", "calculate-throughput-muon", {"Campaign.time_bin": "5 min"}),
        ("chunks", "calculate-throughput-muon", {"SizeChunking.chunk_size": 1000}),
        ("psf", "calculate-psf-muon", {}),
    ):
        result = calibdask.run(
            job, paths, folder / f"{name}.h5", overrides=overrides, cluster="serial", report=False
        )
        numbers[name] = {
            path.rpartition("/")[2]: {
                column: _plain(table[column])
                for column in table.colnames
                if not column.startswith("time_")
            }
            for path, table in result.tables.items()
        }
    return numbers


def ask_peer(folder: Path, environment: Path) -> dict[str, Any]:
    """Let the peer calibrate the same file."""
    paths = simulate_ring_tables(folder / "rings", OPTIONS)
    path = folder / "rings.h5"
    shutil.copy(paths[0], path)  # it writes into its input
    for kind, text in PEER_CONFIGS.items():
        (folder / f"{kind}.yaml").write_text(text, encoding="utf-8")
        tool = environment / "bin" / f"calibpipe-calculate-{kind}-muon"
        command = [str(tool), "-c", str(folder / f"{kind}.yaml"), "-i", str(path)]
        subprocess.run(command, check=True, cwd=folder)
    numbers: dict[str, Any] = {}
    with pytables.open_file(path) as file:
        for tel_id in (1, 2):
            leaf = f"tel_{tel_id:03d}"
            for kind, group in (("throughput", THROUGHPUT), ("psf", PSF)):
                rows = file.get_node(f"{group}/{leaf}")[:]
                numbers.setdefault(kind, {})[leaf] = {
                    column: _plain(rows[column])
                    for column in rows.dtype.names
                    if column not in ("obs_id", "method")
                }
    return numbers


def _plain(column: Any) -> list[Any]:
    values = np.asarray(getattr(column, "value", column)).tolist()
    # JSON has no NaN that all programs read.
    return [None if isinstance(value, float) and np.isnan(value) else value for value in values]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="environment with ctao-calibpipe")
    environment = parser.parse_args().peer
    with tempfile.TemporaryDirectory() as name:
        if environment is None:
            GOLDEN.write_text(json.dumps(compute(Path(name)), indent=1) + "\n", encoding="utf-8")
        else:
            numbers = ask_peer(Path(name), environment.resolve())
            PEER.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
