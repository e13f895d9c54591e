from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import rawpy
import yaml
from click.testing import CliRunner

from calibdask.cli import app
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput
from calibdask.io.frames import inspect_frame, read_frame
from calibdask.io.spectacle import read_camera_file, read_settings
from calibdask.sensor.config import Frames
from calibdask.sensor.metadata import describe_frame, misfits
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import (
    FAULTS,
    SIMULATED_KINDS,
    SensorSimulation,
    expose,
    frame_specs,
    true_sensor,
)
from tests.sensor.frames import stacks_of

SMALL = SensorSimulation(rows=31, columns=44, n_frames=3, kinds=SIMULATED_KINDS, emva_points=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_sensor(tmp_path_factory.mktemp("sensor"), SMALL)


def described(made):
    return {path: describe_frame(inspect_frame(path)) for path in made.frames}


def test_libraw_reads_what_was_drawn(made):
    for path, spec in list(made.frames.items())[::7]:
        frame = expose(made.truth, spec)
        np.testing.assert_array_equal(read_frame(path), frame)
        if path.suffix == ".dng":
            with rawpy.imread(str(path)) as raw:
                np.testing.assert_array_equal(raw.raw_image, frame)
                assert raw.other.iso_speed == spec.iso


def test_what_is_known_about_frames_is_what_was_simulated(made):
    for path, (info, conflicts) in described(made).items():
        spec = made.frames[path]
        assert not conflicts
        assert (info.kind, info.level) == (spec.kind, spec.level)
        assert info.exposure_s == pytest.approx(spec.exposure_s, rel=1e-5)
        assert info.white_level == 4095
        if spec.kind.startswith("emva"):
            assert info.photons == pytest.approx(spec.photons(SMALL), rel=1e-6)
            continue
        assert (info.iso, info.time) == (spec.iso, spec.time.isoformat())
        assert (info.camera, info.pattern) == ("Calibdask Simulated One", "RGGB")
        assert info.black_level == SMALL.black_level


def test_frames_come_into_their_stacks(made):
    infos = [info for info, _ in described(made).values()]
    stacks = stacks_of([one for one in infos if not one.kind.startswith("emva")])
    sizes = Counter((key.kind, len(members)) for key, members in stacks.items())
    assert sizes == {
        ("bias_readnoise", 3): 6, ("dark_current", 3): 10, ("flatfield", 3): 1, ("gain", 3): 10,
        ("iso_normalisation", 3): 6, ("light", 3): 2, ("linearity", 3): 9,
    }  # fmt: skip
    assert not misfits([one for one in infos if not one.kind.startswith("emva")])


def test_camera_file_and_settings(made):
    root = made.root
    camera = read_camera_file(root / "camera_data.json")
    assert (camera.pattern, camera.black_level) == ("RGGB", SMALL.black_level)
    with rawpy.imread(str(next(root.glob("images/gain/**/*.dng")))) as raw:
        assert list(camera.bias) == raw.black_level_per_channel  # LibRaw's order, as SPECTACLE's
        assert [list(row) for row in camera.bayer_pattern] == raw.raw_pattern.tolist()
    settings = read_settings(root / "calibration" / "Simulated_One_settings.json")
    assert (settings.iso_min, settings.iso_max) == (100, 3200)


def test_truth_beside_the_frames(made):
    maps = np.load(made.root / "truth.npz", allow_pickle=False)
    np.testing.assert_allclose(maps["gain_dn_e"], made.truth.gain_dn_e, rtol=1e-6)
    told = json.loads((made.root / "truth.json").read_text())
    assert told["amplification"] == {"100": 1, "200": 2, "400": 4, "800": 8, "1600": 16, "3200": 16}
    assert len(told["frames"]) == len(made.frames)
    assert told["options"]["n_frames"] == 3


@pytest.mark.parametrize("pattern", ["", "BGGR", "GRBG", "GBRG"])
def test_flat_folder_of_fits_with_its_configuration(tmp_path, pattern):
    options = replace(
        SMALL, layout="flat", file_format="fits", pattern=pattern, black_level=(77,),
        kinds=("gain", "dark_current", "light"), gain_levels=(0.1, 0.2), temperatures_c=(0.0, 20.0),
    )  # fmt: skip
    made = simulate_sensor(tmp_path, options)
    frames = Frames.model_validate(yaml.safe_load((tmp_path / "frames.yaml").read_text())["Frames"])
    for path, spec in made.frames.items():
        assert path.parent == tmp_path
        info, conflicts = describe_frame(inspect_frame(path), frames)
        assert not conflicts
        told = info.kind, info.level, info.iso, info.exposure_s, info.temperature_c, info.pattern
        assert told == (
            spec.kind, spec.level, spec.iso, spec.exposure_s, spec.temperature_c, pattern,
        )  # fmt: skip
        assert info.black_level == (77,) * (4 if pattern else 1)
    path, spec = next(iter(made.frames.items()))
    np.testing.assert_array_equal(read_frame(path), expose(made.truth, spec))
    infos = [describe_frame(inspect_frame(p), frames)[0] for p in made.frames]
    assert len(stacks_of(infos)) == 2 + 2 * 2 * 5 + 2


def test_from_the_command_line(tmp_path):
    result = CliRunner().invoke(
        app,
        ["simulate", "sensor", "-o", str(tmp_path), "--rows", "30", "--columns", "40", "--frames",
         "2", "--seed", "3", "--set", "kinds=[gain]", "--set", "gain_levels=[0.2, 0.5]"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = result.output.split()
    assert len(written) == 4 + 4  # frames; truth in two files, camera file, settings
    options = SensorSimulation(
        rows=30, columns=40, n_frames=2, seed=3, kinds=("gain",), gain_levels=(0.2, 0.5)
    )
    np.testing.assert_array_equal(
        read_frame(written[3]), expose(true_sensor(options), frame_specs(options)[3])
    )
    listed = CliRunner().invoke(app, ["simulate", "sensor", "--list"]).output
    assert "n_truncated = 0" in listed


# -- streams ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    options = replace(SMALL, kinds=("gain", "emva1288"), n_frames=2, cosmic_rays=2.0)
    one, two = (simulate_sensor(tmp_path / name, options) for name in "ab")
    for here, there in zip(one.paths, two.paths, strict=True):
        assert here.read_bytes() == there.read_bytes()
    np.testing.assert_array_equal(one.truth.prnu, two.truth.prnu)
    other = true_sensor(replace(options, seed=2))
    assert not np.array_equal(one.truth.prnu, other.prnu)


def test_more_frames_and_series_do_not_move_others():
    few = replace(SMALL, kinds=("gain",), n_frames=2)
    many = replace(SMALL, kinds=("bias_readnoise", "gain"), n_frames=4, n_truncated=3)
    known = {(spec.kind, spec.level, spec.index): spec for spec in frame_specs(many)}
    for spec in frame_specs(few)[:4]:
        same = known[spec.kind, spec.level, spec.index]
        np.testing.assert_array_equal(
            expose(true_sensor(few), spec), expose(true_sensor(many), same)
        )
    first, second = frame_specs(few)[:2]
    assert not np.array_equal(expose(true_sensor(few), first), expose(true_sensor(few), second))


def test_an_option_of_one_map_does_not_move_another():
    plain, other = true_sensor(SMALL), true_sensor(replace(SMALL, prnu=0.05, hot_fraction=0.1))
    for name in ("fpn_dn", "gain_dn_e", "read_noise_e", "vignetting"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
    np.testing.assert_allclose(other.prnu, 5 * plain.prnu)
    cold = ~other.hot
    np.testing.assert_array_equal(
        plain.dark_e_s[cold & ~plain.hot], other.dark_e_s[cold & ~plain.hot]
    )


# -- the model -------------------------------------------------------------------------------------


def stack(truth, kind, n, **where):
    spec = next(
        one
        for one in frame_specs(truth.options)
        if one.kind == kind and all(getattr(one, name) == value for name, value in where.items())
    )
    return np.stack([expose(truth, replace(spec, index=i)) for i in range(n)]).astype(float), spec


@pytest.fixture(scope="module")
def truth():
    options = SensorSimulation(
        rows=60, columns=80, kinds=SIMULATED_KINDS, bits=14, hot_fraction=0.0
    )
    return true_sensor(options)


@pytest.mark.parametrize("iso", [100, 1600, 3200])
def test_mean_and_variance_of_bias_frames(truth, iso):
    n = 200
    frames, spec = stack(truth, "bias_readnoise", n, iso=iso)
    variance = truth.read_noise_dn(iso) ** 2 + 1 / 12
    # Rounding of a narrow distribution is not uniform: +-0.01 DN remain (sigma is > 1.4 DN).
    pulls = (frames.mean(0) - truth.bias_dn(iso) - iso_dark(truth, spec)) / np.sqrt(variance / n)
    assert abs(pulls.mean()) < 4 / np.sqrt(pulls.size) + 0.02
    assert pulls.std() == pytest.approx(1, abs=0.05)
    ratio = frames.var(0, ddof=1) / variance
    assert ratio.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / n / ratio.size) + 2e-3)


def iso_dark(truth, spec):
    gain = truth.options.amplification(spec.iso) * truth.gain_dn_e
    return gain * truth.dark_e_s * truth.warmth(spec.temperature_c) * spec.exposure_s


def test_mean_and_variance_under_light(truth):
    n = 200
    frames, spec = stack(truth, "gain", n, level="level05")
    electrons = spec.light_e * (1 + truth.prnu) / truth.vignetting + 0.01 * truth.dark_e_s
    mean = truth.bias_dn(100) + truth.gain_dn_e * electrons
    variance = truth.gain_dn_e**2 * electrons + truth.read_noise_dn(100) ** 2 + 1 / 12
    pulls = (frames.mean(0) - mean) / np.sqrt(variance / n)
    assert abs(pulls.mean()) < 4 / np.sqrt(pulls.size)
    assert pulls.std() == pytest.approx(1, abs=0.05)
    ratio = frames.var(0, ddof=1) / variance
    assert ratio.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / n / ratio.size))


def test_dark_current_with_temperature(truth):
    warm = true_sensor(replace(truth.options, temperatures_c=(20.0, 26.3)))
    assert warm.warmth(26.3) == pytest.approx(2)
    means = [
        stack(warm, "dark_current", 20, exposure_s=32.0, temperature_c=t)[0].mean()
        - warm.bias_dn(100).mean()
        for t in (20.0, 26.3)
    ]
    assert means[1] / means[0] == pytest.approx(2, rel=0.01)


def test_full_well_nonlinearity_and_digitisation():
    plain = SensorSimulation(
        rows=20, columns=20, kinds=("gain",), gain_levels=(0.9, 3.0), vignetting=(), prnu=0.0,
        gain_spread=0.0, full_well_e=5000.0, read_noise_e=0.0, read_noise_dn=0.0, bits=12,
        fixed_pattern_dn=0.0, gain_dn_e=0.5, black_level=(100,),
    )  # fmt: skip
    bright = frame_specs(plain)[-1]
    assert expose(true_sensor(plain), bright).max() == 2600  # the well
    small = replace(plain, bits=10)
    assert expose(true_sensor(small), frame_specs(small)[-1]).max() == 1023  # the converter
    curved = replace(plain, nonlinearity=0.1)
    low = frame_specs(plain)[0]
    lost = expose(true_sensor(plain), low).mean() - expose(true_sensor(curved), low).mean()
    assert lost == pytest.approx(0.5 * 0.1 * 4500**2 / 5000, rel=0.01)


def test_vignetting_has_its_centre_and_corner():
    options = SensorSimulation(rows=200, columns=300, vignetting=(0.5, 0.25))
    vignetting = true_sensor(options).vignetting
    y, x = np.unravel_index(vignetting.argmin(), vignetting.shape)
    assert (x, y) == (round(0.515 * 300), round(0.487 * 200))
    assert vignetting.max() == pytest.approx(1.75, rel=0.02)


def test_cosmic_rays_and_stuck_pixels():
    options = replace(SMALL, kinds=("bias_readnoise",), isos=(100,), cosmic_rays=5.0)
    spec = frame_specs(options)[0]
    plain = expose(true_sensor(replace(options, cosmic_rays=0.0)), spec)
    hit = expose(true_sensor(options), spec)
    changed = hit != plain
    assert 1 <= changed.sum() <= 20
    assert (hit[changed].astype(int) - plain[changed] > 250).all()
    stuck = true_sensor(replace(options, saturated_fraction=0.1))
    assert (expose(stuck, spec)[stuck.saturated] == 4095).all()
    assert stuck.saturated.mean() == pytest.approx(0.1, abs=0.03)


# -- faults ----------------------------------------------------------------------------------------


def test_every_fault_is_in_its_file_and_found(tmp_path):
    options = SensorSimulation(
        rows=31, columns=44, n_frames=8, kinds=("dark_current",), dark_exposures_s=(1.0, 4.0),
        isos=(100,), **{f"n_{fault}": 1 for fault in FAULTS},
    )  # fmt: skip
    made = simulate_sensor(tmp_path, options)
    assert sorted(set(made.faults.values())) == sorted(FAULTS)
    assert len(made.faults) == 8  # a copy and what it is a copy of
    by_fault = {fault: path for path, fault in made.faults.items() if "copy" not in path.name}
    infos, errors, conflicts = [], {}, []
    for path in made.frames:
        try:
            info, more = describe_frame(inspect_frame(path))
        except CalibdaskError as error:
            errors[path] = error
            continue
        infos.append(info)
        conflicts += more
    assert list(errors) == [by_fault["truncated"]]
    assert isinstance(errors[by_fault["truncated"]], CorruptedInput)
    found = misfits(infos)
    names = {infos[place].path: str(error) for place, error in found.items()}
    expected = {
        str(by_fault[one]) for one in FAULTS if one not in ("truncated", "outlier", "duplicate")
    }
    # The name of its folder tells the ISO speed of the frame that does not say it.
    expected.discard(str(by_fault["missing_iso"]))
    assert set(names) == expected
    assert "shape is 29 x 44" in names[str(by_fault["wrong_shape"])]
    assert "camera is Calibdask Other" in names[str(by_fault["other_camera"])]
    assert "the only frame of its stack" in names[str(by_fault["wrong_exposure"])]
    assert {(one.path, one.what) for one in conflicts} >= {
        (str(by_fault["wrong_exposure"]), "the exposure in s"),
        (str(by_fault["other_camera"]), "the model"),
        (str(by_fault["wrong_shape"]), "the shape"),
    }
    duplicate = by_fault["duplicate"]
    copy = duplicate.with_name(f"{duplicate.stem}_copy.dng")
    assert copy.read_bytes() == duplicate.read_bytes()
    outlier = by_fault["outlier"]
    spec = made.frames[outlier]
    np.testing.assert_array_equal(read_frame(outlier), expose(made.truth, spec, 1.5))


def test_a_frame_without_iso_speed_among_others(tmp_path):
    options = replace(SMALL, layout="flat", kinds=("gain",), gain_levels=(0.1,), n_missing_iso=1)
    made = simulate_sensor(tmp_path, options)
    infos = [describe_frame(inspect_frame(path))[0] for path in made.frames]
    (error,) = misfits(infos).values()
    assert "nothing tells its ISO speed" in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 99}, "bits: expected a number between 8 and 16, got 99"),
        ({"rows": 1.5}, "rows: expected an integer, got 1.5"),
        ({"kinds": ("gian",)}, "kinds: expected one of bias_readnoise"),
        ({"kinds": ()}, "kinds: expected one or more different"),
        ({"isos": (200, 100)}, "isos: expected rising"),
        ({"pattern": "RGBG"}, "pattern: expected one of"),
        ({"black_level": (1, 2)}, "black_level: expected one value or four"),
        ({"black_level": (5000,)}, "black_level: expected values below 4095"),
        (
            {"pattern": "", "black_level": (1, 2, 3, 4)},
            "black_level: expected one value, as there are",
        ),
        ({"file_format": "jpg"}, "file_format: expected one of"),
        ({"gain_levels": (0.1, 0.1)}, "gain_levels: expected one or more different"),
        ({"vignetting_centre": (0.5,)}, "vignetting_centre: expected two"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        SensorSimulation(**options)


def test_what_cannot_be_simulated(tmp_path):
    with pytest.raises(ConfigError, match="vignetting: expected coefficients"):
        true_sensor(replace(SMALL, vignetting=(-2.0,)))
    with pytest.raises(ConfigError, match="31 faults are more than the 30 frames"):
        simulate_sensor(tmp_path, replace(SMALL, kinds=("gain",), n_truncated=31))
    (tmp_path / "truth.json").touch()
    with pytest.raises(ConfigError, match=r"truth\.json: exists already"):
        simulate_sensor(tmp_path, replace(SMALL, kinds=("gain",)))
