"""Flat field, against a camera with vignetting off the centre."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor import config
from calibdask.sensor.flat import FlatFieldJob
from tests.sensor.toys import Camera, key, run_job


@pytest.fixture(scope="module")
def camera():
    camera = Camera(shape=(96, 128))
    camera.truth["gain"][:] = camera.gain_dn
    return camera


def stacks_of(camera, n=30):
    return {
        key("flatfield", iso=100, level="even"): camera.frames(n, light=9000.0, vignetted=True),
        key("bias_readnoise", iso=100): camera.frames(n),
    }


@pytest.fixture(scope="module")
def product(camera):
    return run_job(FlatFieldJob(), stacks_of(camera), camera.sensor)


class TestFlat:
    def test_the_model_is_the_vignetting_up_to_the_corners(self, camera, product):
        """The peer leaves out 250 px on each side and extrapolates: corners off by 7 % and more."""
        maps, result, _ = product
        model, error = maps["flatfield/model"], maps["flatfield/model_error"]
        pulls = (model * camera.truth["vignetting"] - 1) / error
        assert np.abs(model * camera.truth["vignetting"] - 1).max() < 4e-3
        assert 0.3 < np.sqrt(np.mean(pulls**2)) < 2.0  # few parameters: few independent pulls
        row = result["row"]
        assert row["centre_x"] == pytest.approx(0.515, abs=0.004)
        assert row["centre_y"] == pytest.approx(0.487, abs=0.004)
        assert not row["extrapolated"]
        assert not (maps["flatfield/mask"] & (1 << 12)).any()
        assert row["chi2"] / row["ndf"] == pytest.approx(1.0, abs=0.15)

    def test_the_map_is_the_response(self, camera, product):
        maps, result, _ = product
        truth = camera.truth["response"] / camera.truth["vignetting"]
        pulls = (maps["flatfield/flatfield"] - truth) / maps["flatfield/flatfield_error"]
        # One scale for each channel is common to all its pixels.
        assert 0.9 < np.sqrt(np.mean(pulls**2)) < 1.1
        residual = maps["flatfield/prnu"] - camera.truth["response"]
        prnu_pulls = residual / maps["flatfield/prnu_error"]
        assert 0.9 < np.sqrt(np.mean(prnu_pulls**2)) < 1.1
        for name in ("R", "G", "B", "G2"):
            assert result["row"][f"prnu_{name}_percent"] == pytest.approx(1.0, rel=0.06)

    def test_a_border_is_flagged_as_extrapolated(self, camera):
        options = config.FlatField(border=0.2)
        maps, result, calibration = run_job(
            FlatFieldJob(options=options), stacks_of(camera, n=6), camera.sensor
        )
        flagged = maps["flatfield/mask"] & (1 << 12) > 0
        assert flagged[0, 0]
        assert flagged[-1, -1]
        assert not flagged[48, 64]
        assert result["row"]["extrapolated"]
        assert set(calibration.tables(result)) == {"/sensor/flatfield", "/sensor/flatfield_model"}

    def test_a_monochrome_sensor(self):
        camera = Camera(shape=(96, 128), pattern="")
        maps, result, _ = run_job(FlatFieldJob(), stacks_of(camera), camera.sensor)
        assert np.abs(maps["flatfield/model"] * camera.truth["vignetting"] - 1).max() < 5e-3
        assert "signal_mono_dn" in result["row"]
        assert "signal_R_dn" not in result["row"]

    def test_several_levels_are_added(self, camera):
        stacks = stacks_of(camera, n=10)
        other = key("flatfield", iso=100, level="dim")
        stacks[other] = camera.frames(10, light=4000.0, vignetted=True)
        maps, result, _ = run_job(FlatFieldJob(), stacks, camera.sensor)
        truth = camera.truth["response"] / camera.truth["vignetting"]
        pulls = (maps["flatfield/flatfield"] - truth) / maps["flatfield/flatfield_error"]
        assert 0.9 < np.sqrt(np.mean(pulls**2)) < 1.15
        assert result["row"]["n_stacks"] == 2


class TestBadInput:
    def test_dust_and_dead_pixels_are_flagged_and_bend_nothing(self, camera):
        stacks = stacks_of(camera, n=10)
        flat = stacks[key("flatfield", iso=100, level="even")]
        bias = camera.bias(100)
        flat[:, 20, 30] = np.rint(bias[20, 30])
        flat[:, 50, 60] = (flat[:, 50, 60] - bias[50, 60]) * 0.5 + bias[50, 60]
        maps, result, _ = run_job(FlatFieldJob(), stacks, camera.sensor)
        bad = maps["flatfield/mask"] & (1 << 11) > 0
        assert bad[20, 30]
        assert bad[50, 60]
        assert bad.sum() <= 3
        assert np.abs(maps["flatfield/model"] * camera.truth["vignetting"] - 1).max() < 6e-3
        assert "bad-response" in result["row"]["pixel_flags"]

    def test_no_bias(self, camera):
        stacks = {k: v for k, v in stacks_of(camera, n=2).items() if k.kind == "flatfield"}
        with pytest.raises(NotEnoughData, match="no bias to subtract"):
            run_job(FlatFieldJob(), stacks, camera.sensor)

    def test_no_flats(self, camera):
        stacks = {k: v for k, v in stacks_of(camera, n=2).items() if k.kind != "flatfield"}
        with pytest.raises(NotEnoughData, match="kind flatfield"):
            run_job(FlatFieldJob(), stacks, camera.sensor)

    def test_all_saturated(self, camera):
        stacks = stacks_of(camera, n=3)
        stacks[key("flatfield", iso=100, level="even")][:] = 4095
        with pytest.raises(NotEnoughData, match="blocks"):
            run_job(FlatFieldJob(), stacks, camera.sensor)
