"""Corrections of frames: the formulas against a simulation, and the job from files to files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray
from astropy.io import fits
from faults import run

from calibdask.engine.products import digest_output
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, MissingInput
from calibdask.flags import ImageFlag
from calibdask.io.maps import MAPS, TABLES, MapLayout, create_maps, write_rows
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.sensor import config, stream
from calibdask.sensor.apply import (
    QUANTISATION_VARIANCE,
    Corrections,
    Term,
    calibrate,
)
from calibdask.sensor.calibrate import CalibrateImagesJob
from calibdask.sensor.config import Frames
from tests.sensor.frames import write_stack

SHAPE = (70, 48)


# -- formulas -----------------------------------------------------------------------------------


def test_each_step_by_hand():
    frame = np.array([[1000, 1200], [500, 90]], np.uint16)
    corrections = Corrections(
        bias=Term(100.0, 0.5),
        readnoise=3.0,
        iso_factor=Term(2.0, 0.01),
        dark=Term(4.0, 0.2),
        flat=Term(np.array([[1.0, 0.8], [0.5, 1.0]]), 0.001),
        gain=Term(0.25, 0.002),
    )
    done = calibrate(frame, corrections, exposure_s=10.0)
    x1 = frame.astype(float) - 100
    x2 = x1 / 2
    x3 = x2 - 40
    flat = np.array([[1.0, 0.8], [0.5, 1.0]])
    x4 = x3 / flat
    x5 = x4 / 0.25
    np.testing.assert_allclose(done.value, x5, rtol=1e-14)
    v1 = 9 + QUANTISATION_VARIANCE + 0.25 + 0.5 * np.maximum(x1, 0)
    v2 = v1 / 4 + (x1 / 4 * 0.01) ** 2
    v3 = v2 + 4.0
    v4 = v3 / flat**2 + (x3 / flat**2 * 0.001) ** 2
    v5 = v4 / 0.0625 + (x4 / 0.0625 * 0.002) ** 2
    np.testing.assert_allclose(done.error, np.sqrt(v5), rtol=1e-13)
    assert not done.mask.any()
    assert corrections.units == "electron"


def test_pulls_of_simulated_frames_are_standard_normal():
    random = np.random.default_rng(11)
    shape, n = (40, 50), 60
    bias, gain, read_noise = random.normal(500, 5, shape), 0.3, 2.0
    dark, flat = random.uniform(0, 20, shape), random.uniform(0.7, 1.0, shape)
    bias_error, flat_error = 0.4, 0.002
    electrons = 4000.0
    pulls = []
    for _ in range(n):
        signal = random.poisson(electrons * flat + dark * 2.0 / gain)
        raw = np.rint(bias + gain * signal + random.normal(0, read_noise, shape))
        corrections = Corrections(
            bias=Term(bias + random.normal(0, bias_error, shape), bias_error),
            readnoise=read_noise,
            dark=Term(dark, 0.0),
            flat=Term(flat + random.normal(0, flat_error, shape), flat_error),
            gain=Term(gain),
        )
        done = calibrate(raw, corrections, 2.0)
        pulls.append((done.value - electrons) / done.error)
    pulls = np.array(pulls)
    assert abs(pulls.mean()) < 0.02
    assert abs(pulls.std() - 1) < 0.01
    assert abs((np.abs(pulls) < 1).mean() - 0.6827) < 0.01


def test_flags_say_what_is_wrong_with_a_pixel():
    frame = np.full((1, 6), 700, np.uint16)
    frame[0, 0] = 4095
    bad = np.zeros((1, 6), bool)
    bad[0, 1] = True
    gain = np.full((1, 6), 0.5)
    gain[0, 2] = np.nan
    flat = np.ones((1, 6))
    flat[0, 3] = 0.0
    defects = np.zeros((1, 6), bool)
    defects[0, 4] = True
    done = calibrate(
        frame,
        Corrections(
            bias=Term(100.0, 0.0, bad), flat=Term(flat), gain=Term(gain), defects=defects,
            saturation_dn=4095,
        ),
    )  # fmt: skip
    names = [
        {flag.label for flag in ImageFlag if mask & flag.value} for mask in done.mask[0].tolist()
    ]
    expected = [{"saturated"}, {"bias"}, {"no-value"}, {"no-value"}, {"defect"}, set()]
    assert names == expected
    assert np.isnan(done.value[0, 2:4]).all()
    assert np.isnan(done.error[0, 2:4]).all()
    assert np.isfinite(done.value[0, [0, 1, 4, 5]]).all()


def test_nothing_to_do_leaves_the_values_and_rounding():
    frame = np.arange(12, dtype=np.uint8).reshape(3, 4)
    done = calibrate(frame, Corrections())
    assert np.array_equal(done.value, frame)
    assert np.allclose(done.error, np.sqrt(1 / 12))


def test_dark_current_takes_an_exposure():
    with pytest.raises(ValueError, match="exposure"):
        calibrate(np.zeros((2, 2)), Corrections(dark=Term(1.0)))


def test_below_the_bias_there_is_no_photon_noise_but_a_value():
    done = calibrate(np.full((1, 1), 90), Corrections(bias=Term(100.0), gain=Term(0.5)))
    assert done.value[0, 0] == -20
    assert done.error[0, 0] == pytest.approx(np.sqrt(1 / 12) / 0.5)


# -- the job ------------------------------------------------------------------------------------


class Sensor:
    """Maps of a sensor, as other jobs write them."""

    def __init__(self):
        random = np.random.default_rng(5)
        self.bias = {iso: random.normal(500 + iso / 10, 4, SHAPE) for iso in (100, 400)}
        self.dark = random.uniform(0, 5, SHAPE)
        self.flat = random.uniform(0.8, 1.0, SHAPE)
        self.gain = random.normal(0.5, 0.01, SHAPE)
        self.factor = {100: 1.0, 400: 3.9}

    def write(self, root, **changes):
        made = {}
        groups = {
            "bias": {
                **{f"bias/iso{iso}/bias": one for iso, one in self.bias.items()},
                **{f"readnoise/iso{iso}/readnoise": np.full(SHAPE, 2.0) for iso in self.bias},
            },
            "dark": {"dark_current/dark_current": self.dark, "dark_current/iso100/dark_current":
                     self.dark},
            "flat": {"flatfield/flatfield": self.flat},
            "gain": {"gain/gain": self.gain, "gain/iso100/gain": self.gain},
            "iso": {},
        }  # fmt: skip
        for name, maps in groups.items():
            place = root / name / MAPS
            layouts, values = {}, {}
            for full, one in maps.items():
                normalised = {"iso_normalised": True} if full.count("/") == 1 else {}
                layouts[full] = MapLayout(one.shape, "<f8", 32, attributes=normalised)
                layouts[f"{full}_error"] = MapLayout(one.shape, "<f8", 32)
                layouts[f"{full.rpartition('/')[0]}/mask"] = MapLayout(one.shape, "<u2", 32)
                values[full] = one
                values[f"{full}_error"] = np.full(one.shape, 1e-3)
                values[f"{full.rpartition('/')[0]}/mask"] = np.zeros(one.shape, np.uint16)
            values |= changes.get(name, {})
            create_maps(place, layouts)
            for full, one in values.items():
                write_rows(place, full, 0, one)
            made[name] = str(root / name)
        with create_hdf5(root / "iso" / TABLES) as file:
            iso = np.array(list(self.factor))
            factor = np.array(list(self.factor.values()))
            columns = {"iso": iso, "factor": factor, "factor_error": factor * 1e-4}
            write_table(file, "/sensor/iso_normalisation", columns)
            curve = {
                name: np.array([value])
                for name, value in {
                    "slope": 0.01, "slope_error": 1e-5, "knee": np.nan, "knee_error": np.nan,
                    "covariance": 0.0, "chi2": 1.0, "ndf": 1, "bic_linear": 1.0, "bic_knee": 2.0,
                }.items()
            }  # fmt: skip
            curve["kind"] = np.array([b"linear"])
            write_table(file, "/sensor/iso_curve", curve)
        return made

    def expose(self, electrons, iso, exposure_s, seed):
        random = np.random.default_rng(seed)
        factor = self.factor[iso]
        signal = random.poisson(electrons * self.flat + self.dark * exposure_s / self.gain)
        raw = self.bias[iso] + factor * self.gain * signal + random.normal(0, 2.0, SHAPE)
        return np.clip(np.rint(raw), 0, 16383).astype(np.uint16)


@pytest.fixture(scope="module")
def sensor():
    return Sensor()


@pytest.fixture(scope="module")
def made(sensor, tmp_path_factory):
    return sensor.write(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def lights(sensor, tmp_path_factory):
    root = tmp_path_factory.mktemp("lights")
    for iso, exposure_s in ((100, 0.5), (400, 2.0)):
        frames = np.stack([sensor.expose(1500.0, iso, exposure_s, iso + k) for k in range(2)])
        write_stack(
            root / f"night{iso}", frames, iso=iso, exposure_s=exposure_s, white_level=16383,
            minutes=iso,
        )  # fmt: skip
    return root


def _job(made, *names, **options):
    products = tuple((name, made[{"readnoise": "bias"}.get(name, name)]) for name in names)
    return CalibrateImagesJob(products=products, options=config.CalibrateImages(**options))


ALL_OF_THEM = ("bias", "readnoise", "iso", "dark", "flat", "gain")


def test_frames_of_all_speeds_come_out_in_electrons_with_their_errors(made, lights, tmp_path):
    result = run(_job(made, *ALL_OF_THEM), [lights], tmp_path / "out")
    names = sorted(one.name for one in (tmp_path / "out").glob("*.zarr"))
    assert names == [
        "night100_frame_0000.zarr", "night100_frame_0001.zarr", "night400_frame_0000.zarr",
        "night400_frame_0001.zarr",
    ]  # fmt: skip
    for name in names:
        with xarray.open_zarr(tmp_path / "out" / name) as frame:
            assert frame["value"].attrs["units"] == "electron"
            assert frame.attrs["iso"] in (100, 400)
            pulls = (frame["value"] - 1500.0) / frame["error"]
            assert abs(float(pulls.mean())) < 0.1
            assert abs(float(pulls.std()) - 1) < 0.05
            assert not frame["mask"].any()
    table = result.tables["/sensor/calibrated"]
    assert table["n_good"].tolist() == [SHAPE[0] * SHAPE[1]] * 4
    assert abs(np.mean(table["mean"]) / 1500 - 1) < 0.01
    assert digest_output(tmp_path / "out") == result.digest


def test_the_same_as_the_functions_on_arrays(sensor, made, lights, tmp_path):
    run(_job(made, "bias", "gain"), [lights / "night100"], tmp_path / "out")
    raw = stream.read_frame(lights / "night100/frame_0001.dng")
    corrections = Corrections(
        bias=Term(sensor.bias[100].astype(np.float32), np.float32(1e-3)),
        gain=Term(sensor.gain.astype(np.float32), np.float32(1e-3)),
    )
    done = calibrate(raw, corrections)
    with xarray.open_zarr(tmp_path / "out/frame_0001.zarr") as frame:
        assert np.array_equal(frame["value"], done.value.astype(np.float32))
        np.testing.assert_allclose(frame["error"], done.error, rtol=1e-6)


def test_one_digest_over_executors_and_a_fits_file_for_each(made, lights, tmp_path):
    digests = set()
    for cluster in ("serial", "threads"):
        output = tmp_path / cluster
        job = _job(made, *ALL_OF_THEM, format="fits")
        digests.add(run(job, [lights], output, cluster=cluster, workers=2).digest)
    assert len(digests) == 1
    with fits.open(output / "night400_frame_0000.fits") as file:
        assert [one.name for one in file] == ["PRIMARY", "ERROR", "MASK"]
        assert file[0].header["BUNIT"] == "electron"
        assert file[0].header["ISOSPEED"] == 400
        assert file[0].header["EXPTIME"] == 2.0
        assert file[2].header["FLAG0"] == "saturated"
        assert file[0].data.dtype == np.dtype(">f4")
        assert abs(np.median(file[0].data) - 1500) < 10


def test_a_cube_of_frames_stays_a_cube(sensor, made, tmp_path):
    cube = np.stack([sensor.expose(1500.0, 100, 0.5, k) for k in range(5)])
    np.save(tmp_path / "cube.npy", cube)
    row = {"path": "cube.npy", "iso": 100, "exposure_s": 0.5, "kind": "light"}
    results = []
    for shard_bytes in (1, 1 << 30):
        output = tmp_path / f"out{shard_bytes}"
        job = CalibrateImagesJob(
            products=(("bias", made["bias"]), ("gain", made["gain"])),
            frames=Frames.model_validate({"table": (row,)}),
            shard_bytes=shard_bytes,
        )
        results.append(run(job, [tmp_path / "cube.npy"], output))
    assert [len(one.plan.shards) for one in results] == [5, 1]
    assert results[0].digest == results[1].digest
    with xarray.open_zarr(output / "cube.zarr") as frames:
        assert frames["value"].shape == (5, *SHAPE)
        assert frames["value"].dims == ("frame", "y", "x")


def test_without_an_iso_normalisation_each_speed_needs_its_own_maps(made, lights, tmp_path):
    job = _job(made, "bias", "dark", "gain")
    run(job, [lights / "night100"], tmp_path / "one")
    with pytest.raises(MissingInput, match=r"no dark_current for iso400, only for iso100"):
        run(job, [lights], tmp_path / "two")


def test_another_iso_speeds_bias_is_refused_unless_it_is_accepted(made, sensor, tmp_path):
    frames = sensor.expose(1500.0, 100, 0.5, 1)[None]
    write_stack(tmp_path / "in", frames, iso=200, exposure_s=0.5)
    job = _job(made, "bias")
    with pytest.raises(ConfigError, match=r"the iso is 100 in the product and 200 in the frames"):
        run(job, [tmp_path / "in"], tmp_path / "out")
    job = replace(job, frames=Frames(may_differ=("iso",)))
    result = run(job, [tmp_path / "in"], tmp_path / "out")
    assert any("no bias for ISO 200; that of ISO 100" in one for one in result.plan.warnings)
    assert any("photon noise" in one for one in result.plan.warnings)


def test_the_black_level_of_the_file_where_no_bias_map_is_given(made, sensor, tmp_path):
    write_stack(tmp_path / "in", sensor.expose(1500.0, 100, 0.5, 1)[None])
    result = run(_job(made, "flat"), [tmp_path / "in"], tmp_path / "out")
    assert any("black level" in one for one in result.plan.warnings)


def test_saturated_and_flagged_pixels_are_marked(sensor, lights, tmp_path):
    mask = np.zeros(SHAPE, np.uint16)
    mask[3, 4] = 8
    products = sensor.write(tmp_path / "products", bias={"bias/iso100/mask": mask})
    frame = sensor.expose(1500.0, 100, 0.5, 3)
    frame[10, 11] = 16383
    write_stack(tmp_path / "in", frame[None], exposure_s=0.5, white_level=16383)
    run(_job(products, "bias"), [tmp_path / "in"], tmp_path / "out")
    with xarray.open_zarr(tmp_path / "out/frame_0000.zarr") as one:
        found = set(zip(*np.nonzero(one["mask"].values), strict=True))
        assert found == {(3, 4), (10, 11)}
        assert one["mask"].values[3, 4] == ImageFlag.BIAS.bit


def test_a_product_of_another_sensor(made, tmp_path):
    write_stack(tmp_path / "in", np.zeros((1, 20, 20), np.uint16))
    with pytest.raises(ConfigError, match=r"of another sensor: its maps have 70 x 48.*20 x 20"):
        run(_job(made, "bias"), [tmp_path / "in"], tmp_path / "out")


def test_a_product_that_is_not_there(lights, tmp_path):
    job = CalibrateImagesJob(products=(("bias", str(tmp_path / "nothing")),))
    with pytest.raises(MissingInput, match="nothing: holds no pixel maps"):
        run(job, [lights], tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to correct frames for"):
        run(CalibrateImagesJob(), [lights], tmp_path / "out")


def test_dark_current_needs_the_exposure_of_each_frame(made, sensor, tmp_path):
    write_stack(tmp_path / "in", sensor.expose(1500.0, 100, 0.5, 1)[None], exposure_s=None)
    with pytest.raises(ConfigError, match="the exposure of some frames is not known"):
        run(_job(made, "bias", "dark"), [tmp_path / "in"], tmp_path / "out")


def test_a_frame_that_cannot_be_read_does_not_stop_the_others(
    made, lights, tmp_path, monkeypatch
):  # fmt: skip
    read = stream.read_frame

    def reads(path, *more):
        if "night400/frame_0001" in str(path):
            raise CorruptedInput(f"{path}: cannot be decoded")
        return read(path, *more)

    monkeypatch.setattr(stream, "read_frame", reads)
    job = _job(made, *ALL_OF_THEM)
    with pytest.raises(CalibdaskError, match=r"night400/frame_0001\.dng: cannot be decoded"):
        run(job, [lights], tmp_path / "out")
    result = run(job, [lights], tmp_path / "out", allow_missing=0.5)
    assert len(list((tmp_path / "out").glob("*.zarr"))) == 3
    assert result.account.cached == 3


def test_other_calibrations_are_other_work(sensor, made, lights, tmp_path):
    workdir = tmp_path / "work"
    first = run(_job(made, "bias"), [lights], tmp_path / "one", workdir=workdir)
    again = run(_job(made, "bias"), [lights], tmp_path / "two", workdir=workdir)
    assert (again.account.cached, again.digest) == (4, first.digest)
    other = sensor.write(tmp_path / "products", bias={"bias/iso100/bias": sensor.bias[100] + 1})
    changed = run(_job(other, "bias"), [lights], tmp_path / "three", workdir=workdir)
    assert changed.account.cached == 0
    assert changed.digest != first.digest


def test_another_exposure_in_the_configuration_is_other_work(made, lights, tmp_path):
    workdir = tmp_path / "work"
    digests = []
    for exposure_s in (0.5, 0.5, 5.0):
        table = ({"path": "*.dng", "exposure_s": exposure_s},)
        job = CalibrateImagesJob(
            products=(("bias", made["bias"]), ("dark", made["dark"])),
            frames=Frames.model_validate({"table": table}),
        )
        output = tmp_path / f"out{len(digests)}"
        result = run(job, [lights / "night100"], output, workdir=workdir)
        digests.append((result.digest, result.account.cached))
    assert digests[1] == (digests[0][0], 2)
    assert digests[2][0] != digests[0][0]
    assert digests[2][1] == 0
