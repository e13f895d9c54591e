from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData, WrongKind
from calibdask.io.frame_info import FrameInfo
from calibdask.io.frames import inspect_frame
from calibdask.io.spectacle import CameraFile, write_camera_file
from calibdask.sensor.config import FrameRow, Frames
from calibdask.sensor.metadata import (
    SOURCES,
    StackKey,
    conflict_warnings,
    describe_frame,
    misfits,
    stack_keys,
    unused_rows,
)
from tests.sensor.frames import stacks_of


def info(path="a.dng", **more):
    values = {"shape": (40, 60), "dtype": "uint16", "model": "One", "pattern": "RGGB"}
    return FrameInfo(str(path), **{**values, "bit_depth": 12, "white_level": 4095, **more})


# -- who says what ---------------------------------------------------------------------------------


def test_names_of_folders_fill_what_the_file_does_not_say(tmp_path):
    path = tmp_path / "images" / "dark_current" / "iso100" / "t_1_4" / "1.npy"
    full, conflicts = describe_frame(info(path))
    assert (full.kind, full.iso, full.exposure_s) == ("dark_current", 100, 0.25)
    assert not conflicts
    assert describe_frame(info(path, iso=100, exposure_s=0.251))[1] == ()  # as cameras round


def test_the_file_counts_before_the_folder_and_the_table_before_both(tmp_path):
    path = tmp_path / "images" / "dark_current" / "iso100" / "t_1" / "1.dng"
    told = info(path, iso=200, exposure_s=0.5)
    full, conflicts = describe_frame(told)
    assert (full.iso, full.exposure_s) == (200, 0.5)
    assert [str(one) for one in conflicts] == [
        (
            f"{path}: the ISO speed is 200 by the file, which counts, and 100 by the names of its"
            " folders"
        ),
        (
            f"{path}: the exposure in s is 0.5 by the file, which counts, and 1 by the names of its"
            " folders"
        ),
    ]
    table = Frames(table=(FrameRow(path="t_1/*.dng", iso=100), FrameRow(path="x", exposure_s=9.0)))
    full, conflicts = describe_frame(told, table)
    assert (full.iso, full.exposure_s) == (100, 0.5)
    assert [(one.winner, one.value, one.other) for one in conflicts] == [
        ("the configuration", 100, 200),
        ("the file", 0.5, 1.0),
    ]


def test_of_the_rows_that_match_the_last_that_says_something_counts():
    rows = [
        {"path": "*.fits", "iso": 100, "kind": "gain"},
        {"path": "b/*.fits", "iso": 200},
        {"path": "*/x.fits", "level": "3", "photons": 5.0, "bit_depth": 14},
    ]
    frames = Frames.model_validate({"table": rows})
    full, _ = describe_frame(info("/a/b/x.fits", bit_depth=None, white_level=None), frames)
    assert (full.iso, full.kind, full.level, full.photons) == (200, "gain", "3", 5.0)
    assert (full.bit_depth, full.white_level) == (14, 16383)
    assert unused_rows(frames, ["/a/b/y.fits"]) == (
        "Frames.table: the row of '*/x.fits' matches none of the 1 frames",
    )


def test_what_bare_pixels_do_not_say():
    row = {
        "path": "*.npy", "pattern": "GBRG", "black_level": 100, "make": "Acme", "model": "Two",
        "time": datetime(2025, 3, 4, 5, 6, 7),  # noqa: DTZ001  as YAML reads it
    }  # fmt: skip
    bare = info("a.npy", model="", pattern="", bit_depth=None, white_level=None)
    full, conflicts = describe_frame(bare, Frames.model_validate({"table": [row]}))
    assert (full.camera, full.pattern, full.black_level) == ("Acme Two", "GBRG", (100,) * 4)
    assert (full.time, conflicts) == ("2025-03-04T05:06:07", ())
    four = Frames.model_validate({"table": [{"path": "*", "black_level": [1, 2, 3, 4]}]})
    assert describe_frame(info("a.dng"), four)[0].black_level == (1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"four black levels .* nothing tells the colour pattern"):
        describe_frame(bare, four)
    one = Frames.model_validate({"table": [{"path": "*", "black_level": 7.5}]})
    assert describe_frame(bare, one)[0].black_level == (7.5,)


def test_the_description_names_every_column():
    described = Frames.model_fields["table"].description
    assert all(name in described for name in FrameRow.model_fields)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"black_level": [1, 2]}, "neither a number nor four"),
        ({"black_level": True}, "neither a number nor four"),
        ({"black_level": "dark"}, "neither a number nor four"),
        ({"time": "yesterday"}, "is no time like"),
        ({"pattern": "RGBG"}, "'RGGB', 'BGGR', 'GRBG' or 'GBRG'"),
        ({"iso": "100"}, "valid integer"),
        ({"kind": "darks"}, "Input should be"),
        ({"exposure": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_rows_that_make_no_sense(row, message):
    with pytest.raises(ValidationError, match=message):
        Frames.model_validate({"table": [{"path": "*", **row}]})


def test_bit_depth_and_white_level_go_together():
    def told(row, **more):
        frames = Frames.model_validate({"table": [{"path": "*", **row}]})
        full = describe_frame(info(**more), frames)[0]
        return full.bit_depth, full.white_level

    unknown = {"bit_depth": None, "white_level": None}
    assert told({"bit_depth": 12}, bit_depth=16, white_level=65535) == (12, 4095)
    assert told({"white_level": 15520}, **unknown) == (14, 15520)
    assert told({"white_level": 60000, "bit_depth": 16}, **unknown) == (16, 60000)
    assert told({}, bit_depth=14, white_level=15520) == (14, 15520)
    assert told({}, **unknown) == (None, None)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Bias Frame", "bias_readnoise"),
        ("DARK", "dark_current"),
        ("dark_frame", "dark_current"),
        ("FLATFIELD", "flatfield"),
        ("gain", "gain"),
        ("", ""),
        # What is not known stays what it is called: it is nobody's kind.
        ("SKYFLAT", "SKYFLAT"),
        ("Master Bias", "Master Bias"),
    ],
)
def test_kinds_of_fits_files(said, kind):
    assert describe_frame(info(kind=said))[0].kind == kind


def camera(**more):
    values = {
        "name": "One", "manufacturer": "Acme", "name_internal": "One", "image_shape": (40, 60),
        "raw_extension": ".npy", "bias": (1, 2, 3, 4), "bayer_pattern": ((1, 0), (2, 3)),
        "bit_depth": 14,
    }  # fmt: skip
    return CameraFile(**{**values, **more})


def test_the_camera_file_fills_what_is_left(tmp_path):
    path = tmp_path / "images" / "flatfield" / "1.npy"
    write_camera_file(tmp_path / "camera_data.json", camera())
    (path.parent).mkdir(parents=True)
    bare = info(path, model="", pattern="", bit_depth=None, white_level=None)
    full, conflicts = describe_frame(bare)
    assert (full.camera, full.pattern, full.bit_depth) == ("Acme One", "GRBG", 14)
    assert (full.black_level, full.white_level) == ((2, 1, 3, 4), 16383)
    assert not conflicts
    _, conflicts = describe_frame(dataclasses.replace(bare, model="Two", shape=(4, 6)))
    assert {(one.what, one.loser) for one in conflicts} == {
        ("the model", "the camera file"),
        ("the shape", "the camera file"),
    }
    # A camera file that is written anew is read anew.
    write_camera_file(tmp_path / "camera_data.json", camera(bit_depth=10, name="A longer name"))
    assert describe_frame(bare)[0].bit_depth == 10
    write_camera_file(tmp_path / "other_data.json", camera())
    with pytest.raises(ConfigError, match="2 camera files"):
        describe_frame(bare)


def test_products_of_spectacle_are_no_frames(tmp_path):
    write_camera_file(tmp_path / "camera_data.json", camera())
    with pytest.raises(WrongKind, match="is a product made of frames"):
        describe_frame(info(tmp_path / "stacks" / "gain" / "iso100_mean.npy"))


def test_the_descriptor_of_emva(shared_sensor):
    folder = shared_sensor / "emva1288_001_ccd_12bit" / "images"
    infos = [describe_frame(inspect_frame(path))[0] for path in sorted(folder.glob("*.png"))]
    stacks = stacks_of(infos)
    sizes = Counter((key.kind, len(members)) for key, members in stacks.items())
    assert sizes == {
        ("emva_bright", 2): 50, ("emva_dark", 2): 50,
        ("emva_bright_spatial", 50): 1, ("emva_dark_spatial", 50): 1,
    }  # fmt: skip
    assert {one.white_level for one in infos} == {4095}
    (spatial,) = [key for key in stacks if key.kind == "emva_bright_spatial"]
    assert (spatial.exposure_s, spatial.photons) == (5.16e-3, 15508.0)
    assert spatial.label == "emva_bright_spatial, 0.00516 s, 15508 photons"
    assert not misfits(infos)


def test_a_descriptor_says_nothing_about_other_images(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "EMVA1288_Data.txt").write_text("n 12 60 40\nb 1000 5\ni a.png\ni b.png\n")
    assert describe_frame(info(tmp_path / "a.png"))[0].kind == "emva_bright"
    assert describe_frame(info(tmp_path / "c.png"))[0].kind == ""
    _, (conflict,) = describe_frame(info(tmp_path / "a.png", bit_depth=14))
    assert (conflict.what, conflict.winner, conflict.loser) == (
        "the bit depth", "the file", "the EMVA 1288 descriptor",
    )  # fmt: skip


def test_a_descriptor_of_another_size(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "EMVA1288_Data.txt").write_text("n 12 6 4\nd 1000\ni a.png\ni b.png\n")
    (conflict,) = describe_frame(info(tmp_path / "a.png"))[1]
    assert (conflict.what, conflict.value, conflict.other) == ("the shape", (40, 60), (4, 6))


def test_equal_contradictions_are_told_once(tmp_path):
    conflicts = []
    for number in range(3):
        path = tmp_path / "images" / "gain" / "iso100" / f"{number}.dng"
        conflicts += describe_frame(info(path, iso=200))[1]
    (text,) = conflict_warnings(conflicts)
    assert text.endswith("0.dng and 2 more: the ISO speed is 200 by the file, which counts, and 100"
                         " by the names of its folders")  # fmt: skip


def test_what_counts_first_is_stated():
    assert SOURCES[:2] == ("the configuration", "the file")


# -- stacks ----------------------------------------------------------------------------------------


def key_of(one, **options):
    (key,) = stack_keys([one], Frames(**options))
    return key


def test_keys_of_frames():
    assert key_of(info()) == StackKey()
    key = key_of(info(kind="gain", iso=100, exposure_s=1 / 3, level="2"))
    assert key == StackKey("gain", 100, 0.3333, "2")
    assert key.label == "gain, ISO 100, 0.3333 s, illumination 2"
    # The exposure of a bias frame is none, whatever the camera's shortest one is called.
    assert key_of(info(kind="bias_readnoise", iso=100, exposure_s=1 / 8000)).exposure_s == -1
    dark = info(kind="dark_current", exposure_s=1.0, temperature_c=-9.6)
    assert key_of(dark, temperature_step_c=None).temperature_c == -999
    assert key_of(dark).temperature_c == -9.6
    assert key_of(dark).label == "dark_current, 1 s, -9.6 °C"
    assert key_of(dataclasses.replace(dark, kind="gain")).temperature_c == -999


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"model": "Two"}, r"odd: its camera is Two, that of most of the inputs is One"),
        ({"shape": (4, 6)}, r"odd: its shape is 4 x 6, that of most of the inputs is 40 x 60"),
        ({"pattern": "BGGR"}, r"odd: its colour pattern is BGGR"),
        ({"bit_depth": 14}, r"odd: its bit depth is 14"),
        ({"iso": None}, r"odd: nothing tells its ISO speed, which others of its kind have"),
        ({"exposure_s": None}, r"odd: frames of the kind dark_current need an exposure"),
    ],
)
def test_a_frame_that_does_not_go_with_the_others(odd, message):
    good = [info(str(i), kind="dark_current", iso=100, exposure_s=1.0) for i in range(3)]
    bad = dataclasses.replace(good[0], path="odd", **odd)
    found = misfits([good[0], bad, *good[1:]])
    assert list(found) == [1]
    with pytest.raises(CorruptedInput, match=message):
        raise found[1]


def test_a_frame_that_is_alone():
    frames = [info(str(i), kind="dark_current", iso=100, exposure_s=1.0) for i in range(3)]
    wrong = dataclasses.replace(frames[0], path="wrong", exposure_s=0.5)
    found = misfits([*frames, wrong])
    assert list(found) == [3]
    with pytest.raises(NotEnoughData, match=r"wrong: is the only frame of its stack \(dark_current,"
                       r" ISO 100, 0\.5 s\), which needs 2"):  # fmt: skip
        raise found[3]
    assert set(misfits(frames, Frames(min_frames=4))) == {0, 1, 2}
    assert not misfits([info("stack.npy", n_frames=2)])
    assert not misfits([info("one", kind="light")])


def test_bias_and_iso_frames_have_one_exposure():
    for kind in ("bias_readnoise", "iso_normalisation"):
        frames = [info(str(i), kind=kind, iso=100 * (1 + i % 2), exposure_s=0.1) for i in range(6)]
        frames.append(dataclasses.replace(frames[0], path="odd", exposure_s=1.0))
        found = misfits(frames)
        assert list(found) == [6]
        assert f"that of most of its kind ({kind}) is 0.1" in str(found[6])
    assert list(misfits([*frames, info("x", kind="iso_normalisation")])) == [6, 7]


def test_what_is_unknown_goes_with_everything():
    frames = [info("a"), info("b"), info("c", model="", pattern="", bit_depth=None)]
    assert not misfits(frames)


def test_as_many_of_one_as_of_another():
    frames = [info("a"), info("b"), info("c", model="Two"), info("d", model="Two")]
    with pytest.raises(ConfigError, match="2 frames of the inputs have the camera One and as many"):
        misfits(frames)


def test_paths_are_matched_from_their_end():
    frames = Frames(table=(FrameRow(path="dark/*.fits", kind="dark_current"),))
    assert describe_frame(info(Path("/data/dark/1.fits")), frames)[0].kind == "dark_current"
    assert describe_frame(info(Path("/dark/more/1.fits")), frames)[0].kind == ""
