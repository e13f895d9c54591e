"""The command generate-metadata, which writes the camera file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rawpy
from click.testing import CliRunner

from calibdask.cli import app
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, MissingInput
from calibdask.io.dng import DngHeader, write_dng
from calibdask.io.spectacle import camera_file_of, read_camera_file, read_settings
from calibdask.sensor.camera import generate_metadata

BLACK = (100, 110, 120, 130)


def image(path, largest=4095, pattern="GRBG", white_level=4095):
    frame = np.random.default_rng(1).integers(0, 200, (40, 60)).astype(np.uint16)
    frame[3, 4] = largest
    header = DngHeader("Acme", "A 1", pattern, BLACK if pattern else (7,), white_level, 100, 0.5)
    write_dng(path, frame, header)
    return path


def call(*arguments):
    """Run it as the command line does; give what it wrote on the terminal."""
    result = CliRunner().invoke(app, ["generate-metadata", *map(str, arguments)])
    if isinstance(result.exception, CalibdaskError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_saturated_image(tmp_path):
    path, root = image(tmp_path / "s.dng"), tmp_path / "root"
    said = call(path, "-o", root, "--iso", 100, 6400, "--exposure", "1/8000", "30")
    assert said.splitlines() == [
        str(root / "camera_data.json"), str(root / "calibration" / "A_1_settings.json"),
    ]  # fmt: skip
    camera = read_camera_file(root / "camera_data.json")
    assert (camera.name, camera.manufacturer, camera.name_internal) == ("A 1", "Acme", "A 1")
    assert (camera.image_shape, camera.raw_extension, camera.bit_depth) == ((40, 60), ".dng", 12)
    assert (camera.pattern, camera.black_level) == ("GRBG", BLACK)
    with rawpy.imread(str(path)) as raw:
        assert [list(row) for row in camera.bayer_pattern] == raw.raw_pattern.tolist()
        assert list(camera.bias) == raw.black_level_per_channel
    settings = json.loads((root / "calibration" / "A_1_settings.json").read_text())
    assert settings == {
        "ISO_min": 100, "ISO_max": 6400, "exposure_min": "1/8000", "exposure_max": 30,
    }  # fmt: skip
    # Unlike SPECTACLE's, it leaves one camera file, so that what comes next finds the root.
    assert camera_file_of(root / "images" / "gain" / "x.dng") == root / "camera_data.json"


@pytest.mark.parametrize("bits", [8, 10, 14, 16])
def test_bit_depth_is_that_of_the_largest_pixel(tmp_path, bits):
    generate_metadata(image(tmp_path / "s.dng", 2**bits - 1, white_level=65535), tmp_path)
    assert read_camera_file(tmp_path / "camera_data.json").bit_depth == bits


def test_where_the_image_does_not_tell(tmp_path):
    path = image(tmp_path / "s.dng", largest=3000)
    with pytest.raises(ConfigError, match="largest value is 3000, which is no saturated"):
        call(path, "-o", tmp_path)
    call(path, "-o", tmp_path, "--bit-depth", 14)
    assert read_camera_file(tmp_path / "camera_data.json").bit_depth == 14
    # A camera that saturates below 2^n - 1 and says so.
    generate_metadata(image(tmp_path / "t.dng", 15_300, white_level=15_520), tmp_path / "two")
    assert read_camera_file(tmp_path / "two" / "camera_data.json").bit_depth == 14


def test_an_image_that_does_not_name_its_camera(tmp_path):
    np.save(tmp_path / "s.npy", np.full((6, 8), 1023, np.uint16))
    with pytest.raises(
        ConfigError, match=r"s\.npy: does not say what camera took it; give --model"
    ):
        call(tmp_path / "s.npy", "-o", tmp_path)
    call(tmp_path / "s.npy", "-o", tmp_path, "--model", "Lab", "--name", "Our lab's",
         "--manufacturer", "We")  # fmt: skip
    camera = read_camera_file(tmp_path / "camera_data.json")
    assert (camera.name, camera.manufacturer, camera.name_internal) == ("Our lab's", "We", "Lab")
    assert (camera.pattern, camera.bias, camera.bit_depth) == ("", (0,), 10)
    np.save(tmp_path / "f.npy", np.ones((6, 8)))
    with pytest.raises(CorruptedInput, match="holds float64"):
        generate_metadata(tmp_path / "f.npy", tmp_path / "f", model="Lab")


def test_no_second_camera_file(tmp_path):
    path = image(tmp_path / "s.dng")
    call(path, "-o", tmp_path)
    with pytest.raises(ConfigError, match=r"is there already.*--overwrite replaces it"):
        call(path, "-o", tmp_path)
    call(path, "-o", tmp_path, "--overwrite", "--name", "New")
    assert read_camera_file(tmp_path / "camera_data.json").name == "New"
    (tmp_path / "camera_data.json").rename(tmp_path / "A_data.json")
    with pytest.raises(ConfigError, match=r"A_data\.json: a camera file is there.*move it away"):
        call(path, "-o", tmp_path, "--overwrite")


def test_settings_that_make_no_sense(tmp_path):
    path = image(tmp_path / "s.dng")
    for iso, exposure, message in (
        ((200, 100), (), "the first one is the lowest"),
        ((100, 200), ("1/0", "1"), "'1/0' is no exposure"),
        ((100, 200), ("2", "1"), "do not rise"),
        ((), ("1", "2"), "needs --iso"),
    ):
        arguments = [
            *(("--iso", *iso) if iso else ()),
            *(("--exposure", *exposure) if exposure else ()),
        ]
        with pytest.raises(ConfigError, match=message):
            call(path, "-o", tmp_path / "root", *arguments)
    with pytest.raises(MissingInput, match=r"gone\.dng: no such file"):
        call(tmp_path / "gone.dng", "-o", tmp_path / "root")
    assert not (tmp_path / "root").exists()
    call(path, "-o", tmp_path, "--iso", 50, 100)
    settings = read_settings(tmp_path / "calibration" / "A_1_settings.json")
    assert (settings.iso_min, settings.exposure_min, settings.exposure_max) == (50, -1, -1)
