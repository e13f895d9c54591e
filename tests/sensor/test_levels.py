"""White levels that are stated too high, and values that come in steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import calibdask
from calibdask.flags import PixelFlag
from calibdask.io.dng import DngHeader, write_dng
from calibdask.io.maps import read_product
from calibdask.sensor import config
from calibdask.sensor.bias import BiasJob
from calibdask.sensor.clipping import stack_bounds
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.levels import pile_up, step_of
from calibdask.sensor.summary import frame_facts, summarise
from tests.sensor.toys import Camera, key, run_job

CLIP = 13584
STATED = 16383


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def facts_of(*stacks):
    return [
        np.stack([frame_facts(np.asarray(one, np.uint16)) for one in frames]) for frames in stacks
    ]


def level(frames, stated=STATED):
    facts = facts_of(*frames)
    return pile_up(facts, stated, frames[0][0].size, step_of(facts))


def normal(rng, mean, sigma, n=4, shape=(40, 50)):
    return np.rint(rng.normal(mean, sigma, (n, *shape)))


class TestPileUp:
    def test_hot_pixels_that_are_cut_off(self, rng):
        dark = normal(rng, 520, 3)
        hot = dark.copy()
        hot[:, ::9, 5] = CLIP
        assert level([dark, hot]) == CLIP
        assert level([dark, hot], CLIP) is None  # rightly stated
        assert level([dark, hot], 4095) is None  # the level stated counts
        assert level([dark, hot], None) == CLIP

    def test_a_flat_field_that_is_cut_off_in_the_middle_or_all_over(self, rng):
        light = np.minimum(normal(rng, 13_000, 1000), CLIP)
        bias = normal(rng, 512, 3)
        assert level([bias, light]) == CLIP
        assert level([light]) == CLIP
        assert level([bias, np.full((4, 40, 50), CLIP)]) == CLIP

    @pytest.mark.parametrize("sigma", [0.05, 0.15, 0.3, 0.5, 1.0, 5.0, 50.0])
    @pytest.mark.parametrize("mean", [512.0, 512.3, 512.5, 512.9])
    def test_frames_that_nothing_cuts_off(self, rng, sigma, mean):
        """Above all those without noise to speak of, of which most pixels have one value."""
        frames = normal(rng, mean, sigma)
        assert level([frames]) is None
        frames[:, 3, 3] = 0  # a dead pixel
        frames[:, 7, 7] = 900  # a stable hot one
        assert level([frames]) is None

    def test_one_frame_alone_shows_nothing(self, rng):
        frames = normal(rng, 512, 3)
        frames[0, :, 5] = CLIP
        assert level([frames]) is None


class TestSteps:
    @pytest.mark.parametrize("step", [1, 4, 16, 64])
    def test_values_that_are_multiples(self, rng, step):
        assert step_of(facts_of(normal(rng, 100, 3) * step)) == step

    def test_one_odd_value_is_enough(self, rng):
        frames = normal(rng, 100, 3) * 16
        frames[2, 5, 5] += 1
        assert step_of(facts_of(frames)) == 1

    def test_frames_of_one_value_or_of_fractions_show_none(self, rng):
        assert step_of(facts_of(np.full((3, 8, 8), 1024))) == 1
        assert step_of(facts_of(np.zeros((3, 8, 8)))) == 1
        still = np.full((3, 8, 8), 512)
        still[:, 2, 2] = 900
        assert step_of(facts_of(still)) == 1
        assert step_of([np.stack([frame_facts(rng.normal(size=(8, 8)))])]) == 1

    def test_read_noise_is_without_the_rounding_of_its_step(self):
        """Noise of 1.2 steps: a rounding of 1/12 DN^2 would leave 3 % of it in."""
        rng = np.random.default_rng(4)
        noise, step = 19.2, 16
        frames = np.rint(rng.normal(4000.0, noise, (40, 48, 64)) / step) * step
        camera = Camera(bits=16)
        maps, result, _ = run_job(
            BiasJob(), {key("bias_readnoise", iso=100): frames.astype(np.uint16)}, camera.sensor
        )
        row = result["rows"][0]
        assert abs(row["readnoise_dn"] - noise) < 4 * row["readnoise_dn_error"]
        assert row["readnoise_dn_error"] < 0.004 * noise
        assert not maps["readnoise/iso100/mask"].any()
        low = np.rint(rng.normal(4000.0, 4.0, frames.shape) / step) * step  # a quarter of a step
        maps, _, _ = run_job(
            BiasJob(), {key("bias_readnoise", iso=100): low.astype(np.uint16)}, camera.sensor
        )
        assert (maps["readnoise/iso100/mask"] & PixelFlag.UNDERSAMPLED.bit).all()

    def test_clipping_keeps_the_next_step(self):
        frames = np.full((12, 4, 4), 1600, np.uint16)
        frames[0] = 1616
        (summary,) = summarise([("a", i, one) for i, one in enumerate(frames)], [(0, 4)]).values()
        assert (stack_bounds(summary.stacks["a"], 5.0).high < 1616).all()
        assert (stack_bounds(summary.stacks["a"], 5.0, 16).high >= 1616).all()


class TestDarkCurrent:
    TIMES = (1.0, 5.0, 10.0, 20.0, 40.0, 60.0)

    def stacks(self, clip, n=4):
        rng = np.random.default_rng(1)
        rate = np.full((32, 48), 2.0)
        hot = np.zeros_like(rate, bool)
        hot[::7, ::9] = True
        rate[hot] = 600.0

        def frames(t, n):
            values = np.rint(
                512 + rng.poisson(rate * t, (n, *rate.shape)) + rng.normal(0, 3, (n, *rate.shape))
            )
            return np.minimum(values, clip).astype(np.uint16)

        stacks = {key("dark_current", iso=100, exposure_s=t): frames(t, n) for t in self.TIMES}
        return stacks | {key("bias_readnoise", iso=100): frames(0.0, 8)}, rate, hot

    def run(self, stacks, saturation):
        sensor = replace(Camera(shape=(32, 48)).sensor, saturation_dn=saturation, bit_depth=14)
        return run_job(DarkCurrentJob(), stacks, sensor)

    def test_hot_pixels_below_a_white_level_that_is_too_high(self):
        """204 instead of 600 DN/s, without a flag, where the stated level is believed."""
        stacks, rate, hot = self.stacks(CLIP)
        maps, _, _ = self.run(stacks, STATED)
        found, mask = maps["dark_current/dark_current"], maps["dark_current/mask"]
        np.testing.assert_allclose(found[hot] / rate[hot], 1.0, atol=0.02)
        assert (mask[hot] & PixelFlag.PARTLY_SATURATED.bit).all()
        assert not mask[~hot].any()

    def test_a_poor_fit_is_flagged(self):
        """One pixel that is cut off is no pile, and still it does not pass for good."""
        stacks, _, hot = self.stacks(60_000)
        for frames in stacks.values():
            frames[:, 0, 0] = np.minimum(frames[:, 0, 0], 9000)
        maps, _, _ = self.run(stacks, 60_000)
        mask = maps["dark_current/mask"]
        assert mask[0, 0] & PixelFlag.POOR_FIT.bit
        mask[0, 0] = 0
        assert not (mask & PixelFlag.POOR_FIT.bit).any()
        assert not mask[~hot].any()

    def test_good_pixels_are_not_flagged_however_few_frames_there_are(self):
        rng = np.random.default_rng(9)
        shape = (160, 240)
        for n in (2, 3, 10):
            stacks = {
                key("dark_current", iso=100, exposure_s=t): np.rint(
                    500 + rng.poisson(3 * t, (n, *shape)) + rng.normal(0, 2, (n, *shape))
                ).astype(np.uint16)
                for t in (1.0, 2.0, 4.0, 8.0, 16.0)
            }
            sensor = replace(Camera(shape=shape).sensor, saturation_dn=STATED)
            options = config.DarkCurrent(poor_fit=1e-3)
            maps, _, _ = run_job(DarkCurrentJob(options=options), stacks, sensor, tile_rows=160)
            share = np.mean((maps["dark_current/mask"] & PixelFlag.POOR_FIT.bit) > 0)
            assert share < 1e-3 + 4 * np.sqrt(1e-3 / 38_400) + 1e-3, (n, share)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A flat field that is cut off in the middle, from files, and the product of it."""
    folder = tmp_path_factory.mktemp("flat")
    rng = np.random.default_rng(1)
    shape = (48, 64)
    y, x = np.indices(shape)
    shade = 1 - 0.4 * ((x - 32) ** 2 + (y - 24) ** 2) / 1600

    def put(name, light):
        values = np.rint(512 + rng.poisson(light * shade) + rng.normal(0, 3, shape))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        header = DngHeader("M", "T", "RGGB", (512,) * 4, STATED, 100, 0.01)
        write_dng(path, np.clip(values, 0, CLIP).astype(np.uint16), header)

    for i in range(5):
        put(f"images/flatfield/a/{i}.dng", 14_500)
        put(f"images/bias_readnoise/iso100/{i}.dng", 0)
    put("light/0.dng", 20_000)
    result = calibdask.run(
        "flatfield", folder / "images", folder / "flat", cluster="serial", report=True,
        overrides={"Stacks.tile_rows": 20},
    )  # fmt: skip
    return folder, result, shade


def test_what_is_cut_off_below_the_stated_level_is_flagged_and_told(flat):
    folder, _, shade = flat
    maps = read_product(folder / "flat")
    cut = 14_500 * shade + 512 > CLIP + 300
    mask = maps.rows("flatfield/mask")
    assert (mask[cut] & PixelFlag.SATURATED.bit).all()
    lit = mask == 0
    ratio = (maps.rows("flatfield/model") / shade)[lit]
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.01
    assert maps.about("")["saturation_dn"] == CLIP
    told = "pixels pile up at 13584 DN, below the stated white level of 16383"
    assert told in (folder / "flat" / "calibdask.html").read_text(encoding="utf-8")
    assert told in (folder / "flat" / "calibdask.provenance.json").read_text(encoding="utf-8")


def test_frames_calibrated_with_the_product_are_cut_off_there_too(flat):
    folder, _, shade = flat
    calibdask.run(
        "calibrate-images", folder / "light", folder / "done", cluster="serial", report=False,
        overrides={"CalibrateImages.flat": str(folder / "flat"), "CalibrateImages.format": "fits"},
    )  # fmt: skip
    from astropy.io import fits

    mask = fits.getdata(folder / "done" / "0.fits", "MASK")
    cut = 20_000 * shade + 512 > CLIP + 600
    assert (mask[cut] & 1).all()
    assert not (mask[20_000 * shade + 512 < CLIP - 600] & 1).any()
