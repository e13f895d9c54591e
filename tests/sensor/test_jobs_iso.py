"""ISO normalisation, against a camera with a knee."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor import config
from calibdask.sensor.iso import IsoNormalisationJob
from calibdask.sensor.isotable import IsoTable
from calibdask.sensor.tables import ISO_CURVE, ISO_FACTORS
from tests.sensor.toys import Camera, key, run_job

SPEEDS = (100, 200, 400, 800, 1600, 3200)


def stacks_of(camera, *, light=300.0, n=30, speeds=SPEEDS):
    stacks = {}
    for iso in speeds:
        stacks[key("iso_normalisation", iso=iso)] = camera.frames(n, iso=iso, light=light)
        stacks[key("bias_readnoise", iso=iso)] = camera.frames(n, iso=iso)
    return stacks


class TestIso:
    @pytest.mark.parametrize("knee", [400.0, 2000.0, 1e9])
    def test_the_table_holds_to_a_thousandth(self, knee):
        """Also at a knee of 2000, where the peer's line is 194 % off at ISO 100."""
        camera = Camera(shape=(96, 128), knee=knee, gain_dn=0.35)
        maps, result, calibration = run_job(IsoNormalisationJob(), stacks_of(camera), camera.sensor)
        tables = calibration.tables(result)
        curve = result["curve"]
        assert curve.kind == ("linear" if knee > 3200 else "knee")
        speeds = np.arange(100, 3201)
        truth = np.array([camera.factor(iso) for iso in speeds])
        assert np.abs(curve(speeds)[0] / truth - 1).max() < 1e-3
        for row in result["rows"]:
            assert row["factor"] == pytest.approx(camera.factor(row["iso"]), rel=1.5e-3)
            pull = (row["factor"] - camera.factor(row["iso"])) / (row["factor_error"] or 1.0)
            assert abs(pull) < 4
        table = IsoTable.from_tables(
            {name: {c: np.asarray(t[c]) for c in t.colnames} for name, t in tables.items()}
        )
        assert table(400)[0] == result["rows"][2]["factor"]
        assert table(1234)[0] == pytest.approx(camera.factor(1234), rel=1e-3)
        assert set(tables) == {ISO_FACTORS.path, ISO_CURVE.path}
        pulls = maps["iso_normalisation/iso800/ratio"] - camera.factor(800)
        pulls = pulls / maps["iso_normalisation/iso800/ratio_error"]
        good = maps["iso_normalisation/iso800/mask"] == 0
        assert 0.9 < np.sqrt(np.mean(pulls[good] ** 2)) < 1.1

    def test_errors_hold_over_many_cameras(self):
        pulls = []
        for seed in range(25):
            camera = Camera(seed=seed, shape=(32, 32), knee=1e9)
            stacks = stacks_of(camera, n=10, speeds=(100, 400, 800))
            _, result, _ = run_job(IsoNormalisationJob(), stacks, camera.sensor)
            pulls += [
                (row["factor"] - camera.factor(row["iso"])) / row["factor_error"]
                for row in result["rows"][1:]
            ]
        assert 0.8 < np.sqrt(np.mean(np.square(pulls))) < 1.2

    def test_saturated_pixels_do_not_flatten_the_curve(self):
        """Half the pixels saturate at ISO 3200; a mean over all would be low."""
        camera = Camera(shape=(96, 128), knee=1e9, gain_dn=0.35)
        camera.truth["response"] = np.where(np.indices(camera.shape)[1] < 64, 1.0, 1.6)
        _, result, _ = run_job(IsoNormalisationJob(), stacks_of(camera, light=280.0), camera.sensor)
        last = result["rows"][-1]
        assert "saturated" in last["pixel_flags"]
        assert last["n_flagged"] > 5000
        assert last["factor"] == pytest.approx(32.0, rel=2e-3)


class TestBadInput:
    def test_one_speed(self):
        camera = Camera()
        with pytest.raises(NotEnoughData, match="only ISO 100"):
            run_job(IsoNormalisationJob(), stacks_of(camera, speeds=(100,)), camera.sensor)

    def test_no_light(self):
        camera = Camera()
        stacks = stacks_of(camera, light=3.0, n=4, speeds=(100, 200))
        with pytest.raises(NotEnoughData, match="min_signal"):
            run_job(IsoNormalisationJob(), stacks, camera.sensor)

    def test_all_saturated_at_one_speed_loses_that_speed_only(self):
        camera = Camera(knee=1e9)
        stacks = stacks_of(camera, light=4000.0, n=6, speeds=(100, 200, 3200))
        _, result, calibration = run_job(IsoNormalisationJob(), stacks, camera.sensor)
        assert np.isnan(result["rows"][2]["factor"])
        assert result["rows"][1]["factor"] == pytest.approx(2.0, rel=0.01)
        calibration.tables(result)

    def test_without_bias_frames_the_result_says_so(self):
        camera = Camera()
        stacks = {
            one: values
            for one, values in stacks_of(camera, n=4).items()
            if one.kind != "bias_readnoise"
        }
        _, result, _ = run_job(IsoNormalisationJob(), stacks, camera.sensor)
        assert result["rows"][0]["bias_source"] == "none"

    def test_the_model_can_be_chosen(self):
        camera = Camera(knee=1e9)
        options = config.IsoNormalisation(model="knee")
        stacks = stacks_of(camera, n=4)
        _, result, _ = run_job(IsoNormalisationJob(options=options), stacks, camera.sensor)
        assert result["curve"].kind == "knee"
