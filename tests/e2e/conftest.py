"""Campaigns simulated once, and the command line as a function."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import calibdask as package
from calibdask.array.simulate import ArraySimulation, SimulatedArray, simulate_array
from calibdask.cli import main
from calibdask.muon.simulate import MuonSimulation, simulate_ring_tables
from calibdask.registry import JOBS
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
CalculateEnergyAsymmetry:
  event_filters:
    max_distance_asymmetry: 0.3
  QualityQuery:
    quality_criteria:
      - ["valid reco", "RandomForestRegressor_tel_is_valid"]
CalculateInterCalibration:
  RelativeThroughputFitter:
    reference_telescopes: {LST: 1, MST: 5, SST: 30}
"""
# High energies on the array itself: every type sees many of few events.
SIMULATION = ArraySimulation(
    n_files=4,
    n_events=500,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    seed=42,
)


@pytest.fixture(scope="session")
def campaign(tmp_path_factory) -> SimulatedArray:
    """Four DL2 files: read only, tests copy what they change."""
    return simulate_array(tmp_path_factory.mktemp("campaign"), SIMULATION)


@pytest.fixture(scope="session")
def muons(tmp_path_factory) -> tuple[Path, ...]:
    """Two DL1 files with muon tables: read only."""
    options = MuonSimulation(n_rings=4000, n_dual_mirror=1, trend_per_day=-0.05, gap_s=80_000)
    return simulate_ring_tables(tmp_path_factory.mktemp("muons"), options)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    """The configuration that the campaign is calibrated with."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def calibdask(capsys, monkeypatch):
    """Run the command line in this process: ``calibdask("init", "inter-calibration")``."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")

    def run(*arguments: object) -> Said:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                main([str(argument) for argument in arguments])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(int(end.value.code), out, err)

    return run


@pytest.fixture(scope="session")
def camera(tmp_path_factory) -> Path:
    """Frames of a small camera for the sensor's jobs: read only."""
    options = SensorSimulation(
        rows=40,
        columns=64,
        n_frames=3,
        isos=(100, 400),
        iso_knee=None,
        kinds=(
            *("bias_readnoise", "dark_current", "flatfield", "gain", "iso_normalisation"),
            "light",
        ),
    )
    return simulate_sensor(tmp_path_factory.mktemp("camera"), options).root


@pytest.fixture(scope="session")
def emva_set(tmp_path_factory) -> Path:
    """A small data set for EMVA 1288: read only."""
    options = SensorSimulation(
        rows=40, columns=64, n_frames=3, emva_points=9, emva_frames=4, kinds=("emva1288",)
    )
    return simulate_sensor(tmp_path_factory.mktemp("emva"), options).root


@pytest.fixture(scope="session")
def products(camera, tmp_path_factory) -> Path:
    """Where the output of the job bias lies, as the configuration of calibrate-images says."""
    root = tmp_path_factory.mktemp("products")
    package.run("bias", [camera], root / "bias", cluster="serial", report=False)
    return root


@pytest.fixture
def inputs_of(request):
    """Return the inputs of a job: ``inputs_of("inter-calibration")``."""

    def find(job: str) -> tuple[Path, ...]:
        if JOBS[job].calibration.startswith("calibdask.muon"):
            return request.getfixturevalue("muons")
        if job == "emva1288":
            return (request.getfixturevalue("emva_set"),)
        if job == "calibrate-images":
            products = request.getfixturevalue("products")
            request.getfixturevalue("monkeypatch").chdir(products)
            return (request.getfixturevalue("camera") / "images" / "light",)
        if JOBS[job].calibration.startswith("calibdask.sensor"):
            return (request.getfixturevalue("camera"),)
        paths: tuple[Path, ...] = request.getfixturevalue("campaign").paths
        return paths

    return find
