"""Products in SPECTACLE's format: as its own software wrote them, and as it reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from faults import run

from calibdask.io.maps import read_product
from calibdask.sensor import config
from calibdask.sensor.bias import BiasJob
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.flat import FlatFieldJob
from calibdask.sensor.gain import GainJob
from calibdask.sensor.iso import IsoNormalisationJob
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

OPTIONS = SensorSimulation(
    rows=64, columns=96, n_frames=12, dark_exposures_s=(1.0, 4.0, 16.0), hot_fraction=0.0,
    gain_levels=(0.05, 0.2, 0.4, 0.6, 0.8), isos=(100, 400, 1600, 3200), gain_spread=0.0,
    black_level=(120, 140, 160, 180),
)  # fmt: skip


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """A camera's root folder, calibrated from beginning to end; SPECTACLE's products in it."""
    root = tmp_path_factory.mktemp("camera")
    made = simulate_sensor(root / "camera", OPTIONS)
    bias, iso = (("bias", str(root / "bias")),), (("iso", str(root / "iso")),)
    for name, calibration in (
        ("bias", BiasJob(options=config.Bias(spectacle=True))),
        ("iso", IsoNormalisationJob(
            options=config.IsoNormalisation(spectacle=True), products=bias)),
        ("dark", DarkCurrentJob(
            options=config.DarkCurrent(spectacle=True), products=bias + iso)),
        ("gain", GainJob(options=config.Gain(spectacle=True), products=bias + iso)),
        ("flat", FlatFieldJob(options=config.FlatField(spectacle=True), products=bias)),
    ):  # fmt: skip
        run(calibration, [made.root / "images"], root / name)
        for path in (root / name / "calibration").iterdir():
            shutil.copy(path, made.root / "calibration")
    return made, root


def product(camera, name):
    return camera[0].root / "calibration" / f"Simulated_One_{name}"


def test_the_products_are_those_of_spectacle(camera):
    found = {path.name for path in (camera[0].root / "calibration").iterdir()}
    assert found == {
        "Simulated_One_settings.json", "Simulated_One_bias.npy", "Simulated_One_readnoise.npy",
        "Simulated_One_iso_normalisation_model.csv",
        "Simulated_One_iso_normalisation_lookup_table.csv",
        "Simulated_One_dark_current_normalised.npy", "Simulated_One_gain.npy",
        "Simulated_One_flatfield_parameters.csv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype", "product_name", "map_name"),
    [
        ("bias", "float32", "bias", "bias/iso100/bias"),
        ("readnoise", "float32", "bias", "readnoise/iso100/readnoise"),
        ("dark_current_normalised", "float64", "dark", "dark_current/dark_current"),
        ("gain", "float64", "gain", "gain/gain"),
    ],
)
def test_maps_are_those_of_the_product(camera, name, dtype, product_name, map_name):
    values = np.load(product(camera, f"{name}.npy"), allow_pickle=False)
    assert (values.shape, values.dtype) == ((64, 96), dtype)
    ours = read_product(camera[1] / product_name).rows(map_name)
    np.testing.assert_array_equal(values, ours.astype(dtype))


def test_table_of_iso_speeds_has_every_one(camera):
    table = np.loadtxt(product(camera, "iso_normalisation_lookup_table.csv"), delimiter=",")
    np.testing.assert_array_equal(table[:, 0], np.arange(3201))
    for iso in OPTIONS.isos:
        assert table[iso, 1] == pytest.approx(OPTIONS.amplification(iso), rel=1e-3)
    kind, *numbers = np.loadtxt(
        product(camera, "iso_normalisation_model.csv"), dtype=str, delimiter=","
    )
    assert (kind, len(numbers)) == ("Knee", 6)
    slope, offset, knee = map(float, numbers[:3])
    np.testing.assert_allclose(
        table[:, 1], np.minimum(slope * table[:, 0] + offset, slope * knee + offset), atol=1e-6
    )


def test_radial_model_has_its_seven_numbers_and_their_errors(camera):
    numbers = np.loadtxt(product(camera, "flatfield_parameters.csv"), delimiter=",")
    assert numbers.shape == (14,)
    k, (centre_x, centre_y), errors = numbers[:5], numbers[5:7], numbers[7:]
    assert (errors > 0).any()
    # Coefficients are degenerate (and one for each colour is not in it): compare the maps.
    y, x = np.mgrid[0:64, 0:96]
    here = np.hypot(x - centre_x * 96, y - centre_y * 64)
    corner = np.hypot(max(centre_x, 1 - centre_x) * 96, max(centre_y, 1 - centre_y) * 64)
    map_of_it = 1 + sum(k[i] * (here / corner) ** (2 * i + 2) for i in range(5))
    inner = (slice(6, -6), slice(9, -9))
    np.testing.assert_allclose(map_of_it[inner], camera[0].truth.vignetting[inner], rtol=0.02)


BY_SPECTACLE = """
import sys, json
from pathlib import Path
import numpy as np
from spectacle import io, iso
from spectacle.camera import Camera
root = Path(sys.argv[1])
camera = Camera.read_from_file(root / "camera_data.json")
camera.load_all_calibrations()
paths = sorted(root.glob("images/gain/iso100/level02/*.dng"))
mean = np.mean([io.load_raw_image(path) for path in paths], axis=0, dtype=float)
data = camera.normalise_iso(100, camera.correct_bias(mean))
data = camera.correct_flatfield(camera.correct_dark_current(0.01, data))
model = iso.load_iso_model(root)
np.save(sys.argv[2], camera.convert_to_photoelectrons(data))
print(json.dumps({"model": [float(model(one)) for one in (100, 1600, 3200)]}))
"""


def test_spectacle_reads_and_applies_them(camera, tmp_path):
    python = Path(os.environ.get("CALIBDASK_SPECTACLE", "no such file"))
    if not python.exists():
        pytest.skip("no pyspectacle: set CALIBDASK_SPECTACLE to the Python that has it")
    made = camera[0]
    output = tmp_path / "electrons.npy"
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", BY_SPECTACLE, str(made.root), str(output)],
        capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["model"] == pytest.approx([1, 16, 16], rel=1e-3)
    electrons = np.load(output, allow_pickle=False)
    (light_e,) = {spec.light_e for spec in made.frames.values() if spec.level == "level02"}
    gain = np.load(product(camera, "gain.npy"), allow_pickle=False)
    # Divided by the noisy gain of each pixel; brought to the true one, all is light and noise.
    ratio = electrons * gain / (made.truth.gain_dn_e * light_e * (1 + made.truth.prnu))
    assert np.nanmean(ratio[8:-8, 8:-8]) == pytest.approx(1, abs=0.003)
