"""Campaigns of muon rings, simulated once."""

from __future__ import annotations

import pytest

import calibdask
from calibdask.muon.simulate import MuonSimulation, simulate_ring_tables

THROUGHPUT = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
PSF = "/dl1/monitoring/telescope/optical_psf"

OPTIONS = MuonSimulation(
    n_files=3,
    n_rings=9000,
    n_telescopes=2,
    efficiency_spread=0.05,
    trend_per_day=-0.03,
    gap_s=40_000,
    n_dual_mirror=1,
    effective_focal_length=False,
    stereo_fraction=0.2,
    seed=11,
)


@pytest.fixture(scope="session")
def muons(tmp_path_factory):
    """Three files of two telescopes that lose 3 % a day, and one with two mirrors."""
    return simulate_ring_tables(tmp_path_factory.mktemp("muons"), OPTIONS)


@pytest.fixture
def run(tmp_path):
    """Run a muon job somewhere new: ``run("throughput", paths, chunk_size=100)``."""
    counter = iter(range(1000))

    def run(kind, inputs, overrides=None, **options):
        output = tmp_path / f"out{next(counter)}.h5"
        options = {"cluster": "serial", "report": False} | options
        job = f"calculate-{kind}-muon"
        return calibdask.run(job, inputs, output, overrides=overrides or {}, **options)

    return run
