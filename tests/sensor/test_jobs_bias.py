"""Bias and read noise, against a camera whose every pixel is known."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor.bias import BiasJob, ReadNoiseJob
from tests.sensor.toys import Camera, key, run_job


@pytest.fixture(scope="module")
def camera():
    return Camera(shape=(96, 128))


@pytest.fixture(scope="module")
def product(camera):
    stacks = {key("bias_readnoise", iso=iso): camera.frames(50, iso=iso) for iso in (100, 1600)}
    return run_job(BiasJob(), stacks, camera.sensor)


class TestBias:
    def test_rms_error_is_what_the_noise_leaves(self, camera, product):
        """Within 1 % of sqrt(variance/N)."""
        maps, _, _ = product
        for iso in (100, 1600):
            error = maps[f"bias/iso{iso}/bias"] - camera.bias(iso)
            expected = np.sqrt((1.3**2 * camera.factor(iso) + 1 / 12) / 50)
            assert np.sqrt(np.mean(error**2)) == pytest.approx(expected, rel=0.015)
            pulls = error / maps[f"bias/iso{iso}/bias_error"]
            assert 0.95 < np.sqrt(np.mean(pulls**2)) < 1.07

    def test_each_iso_speed_has_its_own_bias(self, camera, product):
        """The peer takes the lowest one's at all speeds: fixed pattern stays in the frames."""
        maps, _, _ = product
        left = (maps["bias/iso100/bias"] - camera.bias(1600)).std()
        assert left > 5.0
        assert (maps["bias/iso1600/bias"] - camera.bias(1600)).std() < 1.0

    def test_read_noise_variance_is_unbiased(self, camera, product):
        """1.000 +- 0.002; with divisor N, as in the peer, it would be 0.980."""
        maps, result, _ = product
        ratios = []
        for row in result["rows"]:
            truth = 1.3**2 * camera.factor(row["iso"])
            ratios.append(row["readnoise_dn"] ** 2 / truth)
            group = f"readnoise/iso{row['iso']}"
            pulls = maps[f"{group}/readnoise"] - np.sqrt(truth)
            pulls = pulls / maps[f"{group}/readnoise_error"]
            assert 0.93 < np.sqrt(np.mean(pulls**2)) < 1.07
        # Two stacks of 12288 pixels: the ratio is good to 0.0013 each.
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.003)

    def test_the_row(self, camera, product):
        _, result, calibration = product
        row = result["rows"][0]
        assert row["n_frames"] == 50
        assert row["n_pixels"] == 96 * 128
        assert abs(row["bias_dn"] - camera.bias(100).mean()) < 3 * row["bias_dn_error"]
        assert row["fixed_pattern_dn"] == pytest.approx(2.0, rel=0.03)
        (table,) = calibration.tables(result).values()
        assert table.colnames[:3] == ["camera", "first_frame", "last_frame"]
        assert str(table["bias_dn_error"].unit) == "DN"

    def test_tiles_change_no_map_and_no_count(self, camera):
        stacks = {key("bias_readnoise", iso=100): camera.frames(10)}
        one, whole, _ = run_job(ReadNoiseJob(), stacks, camera.sensor, tile_rows=96)
        many, parts, _ = run_job(ReadNoiseJob(), stacks, camera.sensor, tile_rows=7)
        for name in one:
            if not name.endswith("mask"):  # outliers are looked for within a tile
                np.testing.assert_array_equal(one[name], many[name])
        assert whole["rows"][0]["readnoise_dn"] == pytest.approx(parts["rows"][0]["readnoise_dn"])

    def test_frames_of_floats(self, camera):
        frames = camera.frames(10)
        one, _, _ = run_job(BiasJob(), {key("bias_readnoise", iso=100): frames}, camera.sensor)
        other, _, _ = run_job(
            BiasJob(), {key("bias_readnoise", iso=100): frames.astype(np.float32)}, camera.sensor
        )
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-9)


class TestBadInput:
    def test_a_pixel_that_stands_out_is_flagged(self, camera):
        frames = camera.frames(20)
        frames[:, 5, 9] += 400
        frames[::2, 40, 50] += 60
        maps, result, _ = run_job(
            BiasJob(), {key("bias_readnoise", iso=100): frames}, camera.sensor
        )
        assert maps["bias/iso100/mask"][5, 9] == 1 << 9
        assert maps["readnoise/iso100/mask"][40, 50] == 1 << 10
        assert result["rows"][0]["n_flagged"] <= 3
        assert "bad-bias: 1" in result["rows"][0]["pixel_flags"]

    def test_clipped_at_zero_is_said(self, camera):
        """Cameras that subtract the black level cut the noise in half."""
        frames = np.maximum(camera.frames(20).astype(int) - 128, 0).astype(np.uint16)
        _, result, calibration = run_job(
            BiasJob(), {key("bias_readnoise", iso=100): frames}, camera.sensor
        )
        sections = calibration.report(result, calibration.tables(result))
        assert "at zero in some frame" in sections[0].blocks[0].text
        assert "clipped" in result["rows"][0]["pixel_flags"]
        assert result["rows"][0]["n_flagged"] > 0.9 * 96 * 128

    def test_frames_without_iso_have_a_name(self, camera):
        maps, _, _ = run_job(BiasJob(), {key("bias_readnoise"): camera.frames(4)}, camera.sensor)
        assert "bias/iso_unknown/bias" in maps

    def test_no_bias_frames(self, camera):
        stacks = {key("gain", iso=100): camera.frames(3)}
        with pytest.raises(NotEnoughData, match="kind: bias_readnoise"):
            run_job(BiasJob(), stacks, camera.sensor)
