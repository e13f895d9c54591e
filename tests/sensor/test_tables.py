"""Every table of the sensor jobs is as declared."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import QTable

import calibdask
from calibdask.io.maps import TABLES as FILE
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation
from calibdask.sensor.tables import (
    AMPLIFIERS,
    BIAS,
    CALIBRATED,
    CURVE,
    DARK_CURRENT,
    DEFECT_PIXELS,
    DEFECTS,
    EMVA,
    EMVA_POINTS,
    FLAT_FIELD,
    FLAT_MODEL,
    FRAMES,
    GAIN,
    ISO_CURVE,
    ISO_FACTORS,
    READ_NOISE,
    STACKS,
    TABLES,
    TEMPERATURE,
    build,
)
from calibdask.sensor.tiles import SensorFacts
from tests.read_back import assert_read_back

WRITTEN = {
    "stack-images": {STACKS, FRAMES},
    "bias": {BIAS},
    "readnoise": {READ_NOISE},
    "iso-normalisation": {ISO_FACTORS, ISO_CURVE},
    "dark-current": {DARK_CURRENT, TEMPERATURE},
    "gain": {GAIN, CURVE},
    "flatfield": {FLAT_FIELD, FLAT_MODEL},
    "defects": {DEFECTS, DEFECT_PIXELS},
    "emva1288": {EMVA, EMVA_POINTS},
}
"""What each job writes of the frames below."""

CAMERA = SensorSimulation(
    rows=16,
    columns=24,
    n_frames=3,
    isos=(100, 200),
    iso_knee=None,
    temperatures_c=(10.0, 20.0, 30.0),
    kinds=(
        *("bias_readnoise", "dark_current", "flatfield", "gain", "iso_normalisation", "light"),
        "emva1288",
    ),
    emva_points=8,
    emva_frames=4,
    seed=3,
)


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    return simulate_sensor(tmp_path_factory.mktemp("tables") / "camera", CAMERA).root


def run(job, camera, below="", **overrides):
    output = camera.parent / job
    return calibdask.run(
        job, camera / below, output, overrides=overrides, cluster="serial", report=False
    )


@pytest.mark.parametrize("job", WRITTEN)
def test_every_table_is_read_back_through_its_schema(job, camera):
    # Some pixels of the defect map differ from others by chance.
    overrides = {"Defects.response_fraction": 0.001} if job == "defects" else {}
    result = run(job, camera, **overrides)
    met = assert_read_back(camera.parent / job / FILE, result.tables, TABLES)
    assert met == {one.path for one in WRITTEN[job]}


def test_the_table_of_calibrated_frames_is_read_back_from_its_text(camera):
    overrides = {"CalibrateImages.bias": str(camera.parent / "for_frames")}
    calibdask.run("bias", camera, camera.parent / "for_frames", cluster="serial", report=False)
    result = run("calibrate-images", camera, "images/light", **overrides)
    assert set(result.tables) == {CALIBRATED.path}
    read = QTable.read(camera.parent / "calibrate-images" / "calibdask.ecsv")
    again = CALIBRATED.build({name: read[name] for name in read.colnames})
    for name, column in result.tables[CALIBRATED.path].columns.items():
        np.testing.assert_array_equal(again[name], column)
        assert again[name].info.dtype == column.info.dtype
        assert read[name].info.description == column.info.description


def test_every_table_that_is_declared_is_written():
    written = set().union(*WRITTEN.values())
    assert set(TABLES) == written | {CALIBRATED, AMPLIFIERS}  # amplifiers: see test_jobs_gain.py


@pytest.mark.parametrize("schema", TABLES, ids=lambda one: one.path)
def test_a_table_without_rows_has_the_declared_columns(schema):
    table = build(schema, SensorFacts("Toy", (8, 8)), [])
    assert table.colnames == [one.name for one in schema.columns if not one.optional]
    assert len(table) == 0
