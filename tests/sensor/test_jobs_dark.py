"""Dark current, against a camera with hot pixels that saturate."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.tables import ISO_CURVE, ISO_FACTORS
from tests.sensor.toys import Camera, key, run_job

TIMES = (1.0, 3.0, 6.0, 12.0, 24.0)


@pytest.fixture(scope="module")
def camera():
    camera = Camera(shape=(80, 96), gain_dn=0.8)
    camera.truth["dark"][:2, :4] = 6000.0  # saturates in the second exposure
    camera.truth["hot"][:2, :4] = True
    return camera


def stacks_of(camera, *, iso=100, n=20, times=TIMES, **more):
    return {
        key("dark_current", iso=iso, exposure_s=t, **more): camera.frames(n, iso=iso, exposure_s=t)
        for t in times
    }


@pytest.fixture(scope="module")
def product(camera):
    stacks = stacks_of(camera) | {key("bias_readnoise", iso=100): camera.frames(30)}
    return run_job(DarkCurrentJob(), stacks, camera.sensor)


class TestDark:
    def test_rates_of_all_pixels_that_have_one(self, camera, product):
        """Including hot pixels at least 0.98 of truth; the peer's saturated ones are at 0.70."""
        maps, _, _ = product
        rate, error = (
            maps[f"dark_current/iso100/{n}"] for n in ("dark_current", "dark_current_error")
        )
        truth = camera.truth["dark"] * camera.truth["gain"]
        known = np.isfinite(rate)
        assert known.mean() > 0.995
        assert 0.98 < rate[known].sum() / truth[known].sum() < 1.02
        hot = camera.truth["hot"] & known
        assert 0.98 < np.median(rate[hot] / truth[hot]) < 1.02
        pulls = (rate - truth)[known] / error[known]
        assert 0.9 < np.sqrt(np.mean(pulls**2)) < 1.1
        hot_pulls = (rate - truth)[hot] / error[hot]
        assert 0.7 < np.sqrt(np.mean(hot_pulls**2)) < 1.3  # 80 pixels
        offset = maps["dark_current/iso100/offset"] - camera.bias(100)
        offset_pulls = (offset / maps["dark_current/iso100/offset_error"])[known]
        assert 0.9 < np.sqrt(np.mean(offset_pulls**2)) < 1.1

    def test_hot_pixels_are_found(self, camera, product):
        maps, result, _ = product
        hot = maps["dark_current/iso100/mask"] & (1 << 8) > 0
        assert (hot == camera.truth["hot"]).mean() > 0.999
        assert result["rows"][0]["n_hot"] == hot.sum()

    def test_what_saturates_before_a_line_is_flagged_not_wrong(self, camera, product):
        maps, _, _ = product
        lost = np.isnan(maps["dark_current/iso100/dark_current"])
        assert lost.sum() == 8
        flags = maps["dark_current/iso100/mask"][lost]
        assert np.all(flags & (1 << 1) > 0)  # saturated
        assert np.all(flags & (1 << 8) > 0)  # hot
        assert camera.truth["dark"][lost].min() == 6000.0

    def test_the_offset_is_compared_with_the_bias(self, product):
        _, result, _ = product
        row = result["rows"][0]
        assert abs(row["offset_minus_bias_dn"]) < 0.02
        assert 0.9 < row["offset_pull_rms"] < 1.1
        assert row["chi2_per_ndf"] == pytest.approx(1.0, abs=0.1)

    def test_one_iso_speed_makes_the_normalised_map(self, product):
        maps, _, _ = product
        np.testing.assert_allclose(
            maps["dark_current/dark_current"], maps["dark_current/iso100/dark_current"], rtol=1e-12
        )

    def test_iso_speeds_are_brought_together_by_the_iso_product(self, camera):
        stacks = stacks_of(camera, n=10) | stacks_of(camera, iso=400, n=10)
        nan = np.array([np.nan])
        tables = {
            ISO_FACTORS.path: {
                "iso": np.array([100, 400]),
                "factor": np.array([1.0, 4.0]),
                "factor_error": np.array([0.0, 0.001]),
            },
            ISO_CURVE.path: {
                "kind": np.array(["linear"]), "slope": np.array([0.01]), "slope_error": nan,
                "knee": np.array([np.inf]), "knee_error": nan, "covariance": nan, "chi2": nan,
                "ndf": np.array([0]), "bic_linear": nan, "bic_knee": nan,
            },
        }  # fmt: skip
        maps, _, _ = run_job(DarkCurrentJob(), stacks, camera.sensor, tables={"iso": tables})
        truth = camera.truth["dark"] * camera.truth["gain"]
        good = maps["dark_current/mask"] == 0
        pulls = (maps["dark_current/dark_current"] - truth) / maps[
            "dark_current/dark_current_error"
        ]
        assert 0.9 < np.sqrt(np.mean(pulls[good] ** 2)) < 1.1
        without, _, _ = run_job(DarkCurrentJob(), stacks, camera.sensor)
        assert "dark_current/dark_current" not in without

    def test_temperature_law(self, camera):
        stacks = {}
        for temperature in (0.0, 7.0, 14.0):
            factor = 2.0 ** (temperature / 7.0)
            times = (2.0 * factor, 10.0 * factor)
            for t, warmer in zip((2.0, 10.0), times, strict=True):
                one = key("dark_current", iso=100, exposure_s=t, temperature_c=temperature)
                stacks[one] = camera.frames(20, exposure_s=warmer)
        maps, result, calibration = run_job(DarkCurrentJob(), stacks, camera.sensor)
        (law,) = result["temperature"]
        assert abs(law["doubling_k"] - 7.0) < 4 * law["doubling_k_error"]
        assert law["doubling_k"] == pytest.approx(7.0, rel=0.05)
        assert "dark_current/iso100_+7C/dark_current" in maps
        assert "/sensor/dark_current_temperature" in calibration.tables(result)


class TestBadInput:
    def test_one_exposure_only(self, camera):
        with pytest.raises(NotEnoughData, match=r"two exposure times.*ISO 100: \[3.0\] s"):
            run_job(DarkCurrentJob(), stacks_of(camera, n=3, times=(3.0,)), camera.sensor)

    def test_one_exposure_at_one_iso_loses_that_iso_only(self, camera):
        stacks = stacks_of(camera, n=3) | stacks_of(camera, iso=800, n=3, times=(3.0,))
        maps, result, _ = run_job(DarkCurrentJob(), stacks, camera.sensor)
        assert "dark_current/iso100/dark_current" in maps
        assert result["left_out"] == ["ISO 800"]

    def test_all_pixels_saturated(self, camera):
        stacks = {one: np.full_like(v, 4095) for one, v in stacks_of(camera, n=3).items()}
        maps, result, calibration = run_job(DarkCurrentJob(), stacks, camera.sensor)
        sections = calibration.report(result, calibration.tables(result))
        assert "100.0 % of the pixels are flagged" in sections[0].blocks[0].text
        assert np.isnan(maps["dark_current/iso100/dark_current"]).all()
        assert np.isnan(result["rows"][0]["dark_current_dn_per_s"])
        assert result["rows"][0]["n_flagged"] == 80 * 96
