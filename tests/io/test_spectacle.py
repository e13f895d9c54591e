from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.io.spectacle import (
    CameraFile,
    CameraSettings,
    NamedFrame,
    camera_file_of,
    is_product,
    parse_names,
    read_camera_file,
    read_settings,
    settings_path,
    write_camera_file,
    write_settings,
)

CAMERA = CameraFile(
    "Acme One", "Acme", "A-1", (40, 60), ".dng", (100, 110, 130, 120.5), ((0, 1), (3, 2)), 12
)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("r/images/bias_readnoise/iso100/1.dng", NamedFrame("bias_readnoise", 100)),
        ("r/images/dark_current/iso1600/t_1_5.2/x.NEF",
         NamedFrame("dark_current", 1600, 1 / 5.2)),
        ("r/images/dark_current/iso100/t_0.5/x.dng", NamedFrame("dark_current", 100, 0.5)),
        ("r/images/dark_current/iso100/t_1/x.dng", NamedFrame("dark_current", 100, 1.0)),
        ("r/images/dark_current/iso100/t_1_0/x.dng", NamedFrame("dark_current", 100)),
        ("r/images/gain/iso100/level3/x.dng", NamedFrame("gain", 100, None, "level3")),
        ("r/images/flatfield/x.dng", NamedFrame("flatfield")),
        ("r/images/flatfield/f2/iso50_7.dng", NamedFrame("flatfield", 50, None, "f2")),
        ("r/images/linearity_jpeg/pol45.5/x.dng", NamedFrame("linearity", None, None, "pol45.5")),
        ("r/images/spectral_response_monochromator/g3/550/x.dng",
         NamedFrame("spectral_response", None, None, "g3/550")),
        ("r/images/iso_normalisation/7_iso200_a/x.dng", NamedFrame("iso_normalisation", 200)),
        ("r/images/unheard_of/iso100/x.dng", NamedFrame()),
        ("r/gain/iso100/x.dng", NamedFrame()),
        ("iso100.dng", NamedFrame()),
    ],
)  # fmt: skip
def test_names(path, named):
    assert parse_names(Path(path)) == named


def test_the_root_is_the_folder_with_one_camera_file(tmp_path):
    frames = tmp_path / "root" / "images" / "gain" / "iso100"
    frames.mkdir(parents=True)
    assert camera_file_of(frames / "x.dng") is None
    first = tmp_path / "root" / "camera_data.json"
    write_camera_file(first, CAMERA)
    assert camera_file_of(frames / "x.dng") == first
    assert camera_file_of(tmp_path / "root" / "elsewhere" / "x.dng") is None
    write_camera_file(tmp_path / "root" / "old_data.json", CAMERA)
    with pytest.raises(ConfigError, match=r"2 camera files \(camera_data\.json, old_data\.json\)"):
        camera_file_of(frames / "x.dng")


def test_products_are_no_frames(tmp_path):
    assert not is_product(tmp_path / "stacks" / "gain" / "iso100_mean.npy")
    write_camera_file(tmp_path / "camera_data.json", CAMERA)
    assert is_product(tmp_path / "stacks" / "gain" / "iso100_mean.npy")
    assert is_product(tmp_path / "calibration" / "A_bias.npy")
    assert not is_product(tmp_path / "images" / "gain" / "iso100.npy")
    output = tmp_path / "elsewhere"
    output.mkdir()
    (output / "calibdask.json").touch()
    assert is_product(output / "stacks" / "gain" / "iso100_mean.npy")


def test_camera_file_there_and_back(tmp_path):
    path = tmp_path / "camera_data.json"
    write_camera_file(path, CAMERA)
    assert read_camera_file(path) == CAMERA
    assert json.loads(path.read_text()) == {
        "name": "Acme One", "manufacturer": "Acme", "name_internal": "A-1",
        "image_shape": [40, 60], "raw_extension": ".dng", "bias": [100, 110, 130, 120.5],
        "bayer_pattern": [[0, 1], [3, 2]], "bit_depth": 12, "colour_description": "RGBG",
    }  # fmt: skip
    assert (CAMERA.pattern, CAMERA.white_level) == ("RGGB", 4095)
    assert CAMERA.black_level == (100, 110, 120.5, 130)  # where they are, not by colour
    mono = dataclasses.replace(CAMERA, bayer_pattern=((0,),), bias=(7,))
    assert (mono.pattern, mono.black_level) == ("", (7,))


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("bit_depth", None, "'bit_depth' is None, not int"),
        ("bit_depth", 99, "bit_depth is 99, not 1 to 16"),
        ("bit_depth", True, "'bit_depth' is True, not int"),
        ("image_shape", [3], "an entry of the camera file makes no sense"),
        ("bayer_pattern", [[0, 1], [9, 2]], "an entry of the camera file makes no sense"),
        ("bias", ["a"], "an entry of the camera file makes no sense"),
        ("name", ..., "has no entry 'name'"),
    ],
)
def test_a_camera_file_that_makes_no_sense(tmp_path, entry, value, message):
    path = tmp_path / "camera_data.json"
    write_camera_file(path, CAMERA)
    data = json.loads(path.read_text()) | {entry: value}
    if value is ...:
        del data[entry]
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptedInput, match=message):
        read_camera_file(path)


def test_files_that_are_no_camera_files(tmp_path):
    path = tmp_path / "camera_data.json"
    with pytest.raises(MissingInput):
        read_camera_file(path)
    for text, message in (("{", "is no JSON"), ("[1]", "no object"), ("\xff", "is no JSON")):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(CorruptedInput, match=message):
            read_camera_file(path)


def test_settings_there_and_back(tmp_path):
    path = settings_path(tmp_path, CAMERA)
    assert path == tmp_path / "calibration" / "Acme_One_settings.json"
    for settings in (CameraSettings(100, 6400, "1/8000", 30), CameraSettings(50, 800)):
        write_settings(path, settings)
        assert read_settings(path) == settings
    path.write_text('{"ISO_min": "a", "ISO_max": 3}')
    with pytest.raises(CorruptedInput, match="'ISO_min' is 'a', not int"):
        read_settings(path)
