"""Every fault the simulation knows in one campaign: each is named, the good frames are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import run
from PIL import Image

from calibdask.engine.plan import make_plan
from calibdask.errors import ConfigError, CorruptedInput, NotEnoughData
from calibdask.io.maps import read_product
from calibdask.io.spectacle import read_camera_file, write_camera_file
from calibdask.sensor.config import Frames
from calibdask.sensor.config import StackImagesJob as StackImagesOptions
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import FAULTS, SensorSimulation
from calibdask.sensor.stack_images import StackImagesJob

OPTIONS = SensorSimulation(
    rows=24, columns=32, n_frames=8, kinds=("dark_current", "gain"), isos=(100,),
    dark_exposures_s=(1.0, 4.0), gain_levels=(0.2, 0.5), seed=4,
    **{f"n_{fault}": 1 for fault in FAULTS if fault != "outlier"},
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_sensor(tmp_path_factory.mktemp("bad"), OPTIONS)


def bad_paths(made):
    """Frames that must be left out: the missing ISO speed is told by the folder's name."""
    copies = [path for path in made.frames if "_copy" in path.name]
    other = [p for p, fault in made.faults.items() if fault not in ("duplicate", "missing_iso")]
    return sorted([*copies, *other])


def maps_of(output):
    maps = read_product(output)
    return {name: maps.rows(name) for name in maps.layouts}


def test_each_is_named_and_the_others_give_what_they_give_alone(made, tmp_path):
    bad = bad_paths(made)
    assert len(bad) == 5
    plan = make_plan(StackImagesJob(), [made.root / "images"])
    assert sorted(failure.where for failure in plan.rejected) == [str(path) for path in bad]
    told = {Path(one.where): one.message for one in plan.rejected}
    for path, fault in made.faults.items():
        if path in told:
            word = {
                "truncated": "cut short", "wrong_shape": "its shape is 22 x 32",
                "wrong_exposure": "the only frame of its stack",
                "other_camera": "its camera is Calibdask Other Simulated One",
                "duplicate": "holds the same data as",
            }[fault]  # fmt: skip
            assert word in told[path]
            if fault == "wrong_exposure":
                assert "by the file, which counts, and" in told[path]
                assert "by the names of its folders" in told[path]
            assert str(path) in told[path]
    with pytest.raises((CorruptedInput, NotEnoughData), match="5 of 33 inputs or shards failed"):
        run(StackImagesJob(), [made.root / "images"], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    kept = run(StackImagesJob(), [made.root / "images"], tmp_path / "kept", allow_missing=0.16)
    assert "5 MISSING" in str(kept)
    alone = tmp_path / "alone"
    for path in made.frames:
        if path not in bad:
            place = alone / path.relative_to(made.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    run(StackImagesJob(), [alone], tmp_path / "good")
    mine, theirs = maps_of(tmp_path / "kept"), maps_of(tmp_path / "good")
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_a_frame_damaged_among_its_pixels_is_lost_from_its_batch(tmp_path):
    """A PNG whose pixels cannot be unpacked: its head is sound, so that the plan takes it."""
    frames = np.random.default_rng(2).integers(0, 4096, (6, 40, 50)).astype(np.uint16)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    broken = bytearray((tmp_path / "2.png").read_bytes())
    broken[1500:1600] = bytes(100)
    (tmp_path / "2.png").write_bytes(broken)
    with pytest.raises(CorruptedInput, match=r"2\.png: .*\n1 of 6 inputs or shards failed"):
        run(StackImagesJob(), [tmp_path], tmp_path / "out")
    run(StackImagesJob(), [tmp_path], tmp_path / "out", allow_missing=0.2)
    maps = maps_of(tmp_path / "out")
    good = np.delete(frames, 2, axis=0)
    (mean,) = [values for name, values in maps.items() if name.endswith("/mean")]
    np.testing.assert_array_equal(mean, good.mean(axis=0))


def test_the_table_mends_what_files_say_wrong(made):
    """The frame of the wrong exposure is right again once the configuration says so."""
    (wrong,) = [path for path, fault in made.faults.items() if fault == "wrong_exposure"]
    exposure_s = made.frames[wrong].exposure_s
    frames = Frames.model_validate(
        {"table": [{"path": str(wrong), "exposure_s": exposure_s}, {"path": "misspelt/*"}]}
    )
    plan = make_plan(StackImagesJob(frames=frames), [made.root / "images"])
    assert str(wrong) not in [failure.where for failure in plan.rejected]
    assert any("misspelt/*" in warning for warning in plan.warnings)


def test_nothing_but_frames_that_are_alone(tmp_path):
    options = SensorSimulation(rows=24, columns=24, n_frames=1, kinds=("gain",))
    made = simulate_sensor(tmp_path, options)
    with pytest.raises(NotEnoughData, match="is the only frame of its stack"):
        make_plan(StackImagesJob(), [made.root / "images"])


def test_two_camera_files_in_the_root(tmp_path):
    made = simulate_sensor(
        tmp_path, SensorSimulation(rows=24, columns=24, n_frames=2, kinds=("flatfield",))
    )
    write_camera_file(tmp_path / "other_data.json", read_camera_file(tmp_path / "camera_data.json"))
    with pytest.raises(
        ConfigError, match=r"2 camera files \(camera_data\.json, other_data\.json\)"
    ):
        make_plan(StackImagesJob(), [made.root / "images"])


def test_no_camera_file_where_spectacle_needs_it(tmp_path):
    """Its products are named after the camera: said where they are asked for, and only there."""
    options = SensorSimulation(rows=24, columns=24, n_frames=2, kinds=("flatfield",))
    made = simulate_sensor(tmp_path, options)
    asked = StackImagesJob(options=StackImagesOptions(spectacle=True))
    assert not make_plan(asked, [made.root / "images"]).warnings
    (tmp_path / "camera_data.json").unlink()
    (said,) = make_plan(asked, [made.root / "images"]).warnings
    assert "beside a camera file (*data.json)" in said
    assert "calibdask generate-metadata" in said
    assert not make_plan(StackImagesJob(), [made.root / "images"]).warnings


def test_saturated_frames_that_are_all_alike_are_no_copies(tmp_path):
    """EMVA 1288 goes beyond saturation, where frames of several exposures are one and the same."""
    (tmp_path / "images").mkdir()
    lines = ["n 12 40 30"]
    random = np.random.default_rng(3)
    for step in range(3):
        lines.append(f"b {1000 * (step + 1)} {100 * step}")
        for index in range(2):
            frame = random.integers(0, 4096, (30, 40)) if step == 0 else np.full((30, 40), 4095)
            name = f"{step}_{index}.png"
            Image.fromarray(frame.astype(np.uint16)).save(tmp_path / "images" / name)
            lines.append(f"i images\\{name}")
    shutil.copyfile(tmp_path / "images" / "0_1.png", tmp_path / "images" / "0_2.png")
    lines.insert(4, "i images\\0_2.png")
    (tmp_path / "EMVA1288_Data.txt").write_text("\n".join(lines) + "\n")
    plan = make_plan(StackImagesJob(), [tmp_path])
    assert [Path(failure.where).name for failure in plan.rejected] == ["0_2.png"]
    run(StackImagesJob(), [tmp_path], tmp_path / "out", allow_missing=0.2)
    maps = maps_of(tmp_path / "out")
    saturated = [values for name, values in maps.items() if name.endswith("/n_saturated")]
    assert len(saturated) == 3
    assert sum(bool((values == 2).all()) for values in saturated) == 2
