"""The formulas of sensor calibration, against truth drawn here and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor import model, photon_transfer, spatial, standard


def moments(frames):
    """Mean and unbiased variance over axis 0 of a stack of frames."""
    return frames.mean(axis=0), frames.var(axis=0, ddof=1)


def width(pulls):
    """Standard deviation about zero."""
    return float(np.sqrt(np.mean(np.square(pulls))))


@pytest.fixture
def rng():
    return np.random.default_rng(1288)


class TestLines:
    def test_a_line_by_hand(self):
        x = np.array([0.0, 1.0, 2.0])[:, None]
        lines = model.fit_lines(x, 3.0 + 2.0 * x, np.ones_like(x))
        assert lines.slope == pytest.approx(2.0)
        assert lines.intercept == pytest.approx(3.0)
        assert lines.slope_variance == pytest.approx(0.5)
        assert lines.intercept_variance == pytest.approx(1 / 3 + 0.5)
        assert lines.chi2 == pytest.approx(0.0, abs=1e-20)

    def test_what_has_no_weight_does_not_count_even_if_it_is_no_number(self):
        x = np.array([0.0, 1.0, np.nan, 7.0])[:, None]
        y = np.array([1.0, 2.0, 5.0, np.nan])[:, None]
        lines = model.fit_lines(x, y, np.array([1.0, 1.0, 0.0, 0.0])[:, None])
        assert lines.slope == pytest.approx(1.0)
        assert lines.n_points == 2

    def test_one_x_gives_no_slope(self):
        x = np.full((3, 1), 4.1)
        lines = model.fit_lines(x, np.array([1.0, 2.0, 3.0])[:, None], np.ones_like(x))
        assert np.isnan(lines.slope)
        assert np.isnan(lines.slope_variance)

    def test_a_large_offset_does_not_cancel(self):
        x = (1e9 + np.arange(5.0))[:, None]
        lines = model.fit_lines(x, 3.0 + 2.0 * np.arange(5.0)[:, None], np.ones_like(x))
        assert lines.slope == pytest.approx(2.0, rel=1e-12)


class TestNoise:
    @pytest.mark.parametrize("n", [2, 5, 50])
    def test_variance_of_a_variance_of_gaussian_numbers(self, rng, n):
        samples = rng.normal(0, 3.0, (n, 100_000)).var(axis=0, ddof=1)
        expected = model.variance_of_variance(np.array(9.0), n)
        assert samples.var() == pytest.approx(expected, rel=0.05)

    def test_variance_of_a_variance_of_few_electrons(self, rng):
        """At two electrons a pixel the Gaussian formula alone is 20 % low."""
        gain, electrons, n = 4.0, 2.0, 50
        frames = gain * rng.poisson(electrons, (n, 40_000))
        variance = gain**2 * electrons
        expected = model.variance_of_variance(np.array(variance), n, gain, gain * electrons)
        measured = frames.var(axis=0, ddof=1).var()
        assert measured == pytest.approx(expected, rel=0.03)
        assert model.variance_of_variance(np.array(variance), n) < 0.85 * measured

    def test_one_frame_has_no_variance(self):
        assert np.isnan(model.variance_of_variance(np.array(1.0), 1))

    def test_read_noise_is_without_the_noise_of_rounding(self, rng):
        frames = np.rint(rng.normal(100.0, 0.9, (60, 20_000)))
        n = np.full(20_000, 60)
        noise, error, undersampled = model.read_noise(frames.var(axis=0, ddof=1), n)
        assert np.mean(noise**2) == pytest.approx(0.81, rel=0.003)
        assert width((noise - 0.9) / error) == pytest.approx(1.0, abs=0.05)
        assert not undersampled.any()

    def test_noise_hidden_by_rounding_is_a_limit(self):
        noise, error, undersampled = model.read_noise(np.array([0.0, 0.2, 4.0]), np.full(3, 10))
        assert undersampled.tolist() == [True, True, False]
        assert noise[0] == pytest.approx(np.sqrt(0.24 - 1 / 12))
        assert np.isfinite(error).all()

    @pytest.mark.parametrize("n", [8, 10, 50])
    def test_errors_of_read_noise_hold_for_few_frames(self, rng, n):
        """Pulls were 1.05 wide for 50 frames and 1.3 for 10: an error goes with its own value."""
        frames = rng.normal(0.0, 3.0, (n, 40_000))
        frames = np.rint(frames + rng.uniform(0, 1, 40_000))
        noise, error, _ = model.read_noise(frames.var(axis=0, ddof=1), np.full(40_000, n))
        pulls = (noise - 3.0) / error
        # Fourth moments of the pulls are what makes 4 sigma of 40 000 wide.
        spread = np.sqrt(np.mean(pulls**4) / np.mean(pulls**2) ** 2 / 4 / pulls.size)
        assert np.sqrt(np.mean(pulls**2)) == pytest.approx(1.0, abs=0.01 + 4 * spread)

    def test_fewer_than_four_frames_have_an_error_all_the_same(self):
        _, error, _ = model.read_noise(np.array([4.0, 4.0, 4.0]), np.array([2, 3, 4]))
        assert (error[:-1] > error[1:]).all()
        assert np.isfinite(error).all()


ISO = np.array([100, 200, 400, 800, 1600, 3200])


def iso_data(rng, knee, error=2e-4):
    truth = 1 + (np.minimum(ISO, knee) - 100) / 100
    covariance = np.diag((error * truth) ** 2)
    covariance[0, 0] = 0.0
    return truth + rng.normal(0, 1, len(ISO)) * np.sqrt(np.diag(covariance)), covariance


class TestIso:
    @pytest.mark.parametrize("knee", [200, 300, 400, 900, 1600, 2000, 2400, 3000])
    def test_every_knee_is_found(self, rng, knee):
        """The peer accepts a line at R2 >= 0.9: at a knee of 2000 it is 194 % off at ISO 100."""
        curve = model.fit_iso_curve(ISO, *iso_data(rng, knee))
        assert curve.kind == "knee"
        speeds = np.arange(100, 3201)
        value, _ = curve(speeds)
        truth = 1 + (np.minimum(speeds, knee) - 100) / 100
        assert np.abs(value / truth - 1).max() < 1e-3

    def test_a_line_stays_a_line(self, rng):
        kinds = [model.fit_iso_curve(ISO, *iso_data(rng, np.inf)).kind for _ in range(200)]
        # BIC: chi2 must fall by ln 5 = 1.6 for the knee to be kept, as it does now and then.
        assert kinds.count("linear") > 150

    @pytest.mark.parametrize("knee", [1000.0, 2000.0])
    def test_errors_of_the_knee_hold(self, rng, knee):
        fits = [model.fit_iso_curve(ISO, *iso_data(rng, knee)) for _ in range(300)]
        pulls = [(fit.knee - knee) / fit.knee_error for fit in fits]
        # chi2/ndf scaling makes errors somewhat too large on average, never too small.
        assert 0.75 < width(pulls) < 1.1
        value = np.array([fit(3200) for fit in fits])
        assert 0.75 < width((value[:, 0] - (knee / 100)) / value[:, 1]) < 1.1

    def test_the_lowest_speed_is_one(self, rng):
        value, error = model.fit_iso_curve(ISO, *iso_data(rng, 1600))([100])
        assert value == 1.0
        assert error == 0.0

    def test_one_speed_is_refused(self):
        with pytest.raises(NotEnoughData, match="only ISO 100"):
            model.fit_iso_curve(ISO[:1], np.ones(1), np.zeros((1, 1)))

    def test_ratios_and_their_covariance(self, rng):
        truth = np.array([1.0, 2.0, 4.0])
        draws = []
        for _ in range(4000):
            signal = 1000 * truth + rng.normal(0, 5, 3)
            reference = np.full(3, signal[0])
            ratio, covariance = model.iso_ratios(
                signal, np.full(3, 25.0), reference, np.full(3, 25.0)
            )
            draws.append(ratio[1:])
        seen = np.cov(np.array(draws).T)
        np.testing.assert_allclose(seen, covariance[1:, 1:], rtol=0.15)


class TestDark:
    times = np.array([0.1, 1.0, 3.0, 10.0, 20.0])

    def simulate(self, rng, rate_e, n_frames=20, gain=0.8, noise=1.5, saturation=4095):
        electrons = self.times[:, None, None] * rate_e
        shape = (len(self.times), n_frames, len(rate_e))
        frames = 100 + gain * rng.poisson(np.broadcast_to(electrons, shape))
        frames = np.clip(np.rint(frames + rng.normal(0, noise, shape)), 0, saturation)
        mean = frames.mean(axis=1)
        good = ~(frames >= saturation).any(axis=1)
        n = np.full(mean.shape, n_frames)
        return model.dark_current(self.times, mean, frames.var(axis=1, ddof=1), n, good), good

    def test_rate_and_error(self, rng):
        rate_e = np.where(np.arange(20_000) % 50 == 0, 100.0, 0.3)
        dark, _ = self.simulate(rng, rate_e)
        truth = 0.8 * rate_e
        for part in (rate_e < 1, rate_e > 1):
            pulls = ((dark.rate - truth) / dark.rate_error)[part]
            assert width(pulls) == pytest.approx(1.0, abs=0.06)
            assert abs(pulls.mean()) < 4 / np.sqrt(part.sum())
        assert width((dark.offset - 100) / dark.offset_error) == pytest.approx(1.0, abs=0.06)
        assert dark.chi2.mean() == pytest.approx(3.0, rel=0.1)

    def test_pixels_that_saturate_are_not_low(self, rng):
        """The peer fits saturated points too: hot pixels come out at a median of 0.70 of truth."""
        rate_e = np.full(2000, 600.0)  # 9600 DN in 20 s, 4800 in 10 s: both saturated
        dark, good = self.simulate(rng, rate_e)
        assert good.sum(axis=0).max() == 3
        assert np.mean(dark.rate) / 480.0 == pytest.approx(1.0, abs=0.002)
        line = np.polyfit(self.times, [160, 580, 1540, 4095, 4095], 1)
        assert line[0] / 480.0 < 0.5  # what all points together give

    def test_one_exposure_left_is_no_line(self):
        mean = np.array([[10.0], [400.0]])
        good = np.array([[True], [False]])
        n = np.full((2, 1), 9)
        dark = model.dark_current(np.array([1.0, 2.0]), mean, np.ones((2, 1)), n, good)
        assert np.isnan(dark.rate).all()
        assert dark.n_exposures.tolist() == [1]

    def test_hot_pixels_stand_out(self, rng):
        rate = rng.normal(1.0, 0.1, 10_000)
        rate[::1000] = 50.0
        good = np.full(10_000, True)
        good[1000] = False
        hot, threshold = model.hot_pixels(rate, np.full(10_000, 0.01), good, 6.0)
        assert np.flatnonzero(hot).tolist() == [0, *range(2000, 10_000, 1000)]
        assert threshold == pytest.approx(1.6, abs=0.05)

    def test_doubling_temperature(self, rng):
        temperature = np.array([-10.0, 0.0, 10.0, 20.0, 30.0])
        pulls, energy_pulls = [], []
        for _ in range(300):
            rate = 2.0 ** (temperature / 6.5) * (1 + rng.normal(0, 0.01, 5))
            law = model.fit_temperature(temperature, rate, 0.01 * rate)
            pulls.append((law.doubling_k - 6.5) / law.doubling_error)
            kelvin = temperature + 273.15
            rate = np.exp(-0.6 / (model.BOLTZMANN_EV * kelvin) + 25) * (1 + rng.normal(0, 0.01, 5))
            law = model.fit_temperature(temperature, rate, 0.01 * rate)
            energy_pulls.append((law.energy_ev - 0.6) / law.energy_error)
        assert width(pulls) == pytest.approx(1.0, abs=0.1)
        assert width(energy_pulls) == pytest.approx(1.0, abs=0.1)
        assert law.chi2_arrhenius < law.chi2_doubling

    def test_one_temperature_is_no_law(self):
        with pytest.raises(NotEnoughData, match="there are 1"):
            model.fit_temperature(np.full(3, 20.0), np.ones(3), np.full(3, 0.1))


class TestPhotonTransfer:
    def simulate(self, rng, n_pixels=20_000, n_frames=50, levels=12):
        gain = 0.25 * (1 + rng.normal(0, 0.03, n_pixels))
        electrons = np.linspace(200, 6000, levels)
        signal = np.empty((levels, n_pixels))
        variance = np.empty_like(signal)
        for i, level in enumerate(electrons):
            frames = gain * rng.poisson(level, (n_frames, n_pixels))
            frames = np.rint(100 + frames + rng.normal(0, 1.2, frames.shape))
            signal[i], variance[i] = moments(frames)
        signal -= 100.0
        return gain, signal, variance, np.full(signal.shape, n_frames)

    def test_gain_is_right_and_its_errors_are(self, rng):
        """Mean gain 1.000 +- 0.001; variances with divisor n are low by 1/n: 0.980 of truth."""
        truth, signal, variance, n = self.simulate(rng)
        good = np.ones(signal.shape, bool)
        noise = model.pool_noise(signal, variance, good)
        fit = photon_transfer.photon_transfer(signal, variance, n, good, noise)
        ratio = fit.gain / truth
        assert ratio.mean() == pytest.approx(1.0, abs=0.002)
        assert ratio.std() < 0.072  # 1/mean as weight gives 0.078
        assert width((fit.gain - truth) / fit.gain_error) == pytest.approx(1.0, abs=0.05)
        assert fit.floor.mean() == pytest.approx(1.44 + 1 / 12, rel=0.05)
        floor_pulls = (fit.floor - 1.44 - 1 / 12) / fit.floor_error
        assert width(floor_pulls) == pytest.approx(1.0, abs=0.08)
        biased = photon_transfer.photon_transfer(signal, variance * 49 / 50, n, good, noise)
        assert (biased.gain / truth).mean() == pytest.approx(0.98, abs=0.002)

    def test_noise_of_a_group_comes_from_within_its_pixels(self, rng):
        """Pixels with more signal and more read noise must not look like gain."""
        signal = np.linspace(0, 100, 5)[:, None] * np.linspace(1, 3, 1000)
        variance = 0.5 * signal + np.linspace(2, 40, 1000)
        floor, gain = model.pool_noise(signal, variance, np.ones(signal.shape, bool))
        assert gain == pytest.approx(0.5)
        assert floor == pytest.approx(21.0)

    def test_channel_curve_with_and_without_brighter_fatter(self, rng):
        a00, gain = -2e-6, 0.5
        electrons = np.linspace(1000, 60_000, 15)
        z = 2 * a00 * electrons
        variance = gain**2 * np.expm1(z) / (2 * a00) + 9.0
        error = 1e-4 * variance
        fits = []
        for _ in range(100):
            noisy = variance + rng.normal(0, 1, 15) * error
            fits.append(
                photon_transfer.fit_ptc(gain * electrons, noisy, error, brighter_fatter=True)
            )
        for name, truth in (("gain", gain), ("a00", a00), ("floor", 9.0)):
            pulls = [(getattr(f, name) - truth) / getattr(f, f"{name}_error") for f in fits]
            assert 0.7 < width(pulls) < 1.2
        line = photon_transfer.fit_ptc(gain * electrons, variance, error)
        assert line.gain < 0.97 * gain  # what the line makes of it
        assert np.isnan(line.a00)

    def test_no_brighter_fatter_effect_is_found_as_none(self):
        electrons = np.linspace(1000, 60_000, 15)
        fit = photon_transfer.fit_ptc(
            electrons, electrons + 4.0, 0.01 * electrons, brighter_fatter=True
        )
        assert fit.a00 == pytest.approx(0.0, abs=1e-12)
        assert fit.gain == pytest.approx(1.0)

    @pytest.mark.parametrize("n_frames", [10, 50])
    def test_good_pixels_do_not_look_bad(self, rng, n_frames):
        """Of ten frames, plain chi2 calls hundreds of times too many fits bad."""
        true = np.linspace(20.0, 400.0, 10)[:, None]
        variance = true * rng.chisquare(n_frames - 1, (10, 100_000)) / (n_frames - 1)
        signal = np.broadcast_to(true, variance.shape)
        n = np.full(variance.shape, n_frames)
        good = np.ones(variance.shape, bool)
        fit = photon_transfer.photon_transfer(signal, variance, n, good, (0.0, 1.0))
        p = model.variance_fit_probability(fit.chi2, fit.n_levels - 2, n_frames)
        assert (p < 1e-2).mean() == pytest.approx(1e-2, rel=0.3)
        assert (p < 1e-6).sum() <= 6
        plain = model.chi2_probability(fit.chi2, fit.n_levels - 2)
        assert (plain < 1e-6).sum() >= (30 if n_frames == 10 else 0)

    def test_too_few_levels(self):
        with pytest.raises(NotEnoughData, match="there are 1"):
            photon_transfer.fit_ptc(np.ones(1), np.ones(1), np.ones(1))

    def test_full_well_is_where_the_variance_turns(self):
        signal = np.array([10.0, 20.0, 30.0, 40.0])
        turned = photon_transfer.full_well(signal, np.array([1.0, 2.0, 3.0, 0.5]), np.full(4, 0.1))
        assert turned == (30.0, True)
        rising = photon_transfer.full_well(signal, np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 0.1))
        assert rising == (40.0, False)
        wiggle = photon_transfer.full_well(signal, np.array([1.0, 2.0, 3.1, 3.0]), np.full(4, 0.1))
        assert wiggle == (30.0, False)


class TestRadial:
    shape = (120, 180)
    k = np.array([0.6, -0.3, 0.5, -0.2, 0.1])
    centre = np.array([0.515, 0.487])

    def flat(self, rng, noise):
        channel = np.tile(np.array([[0, 1], [3, 2]]), (60, 90))
        truth = spatial.RadialModel(
            self.shape, self.centre, np.zeros(2), self.k, {}, np.zeros((7, 7)), 0.0, 1, 1.0
        )
        y, x = np.indices(self.shape)
        gain = truth.gain(y, x)
        amplitude = np.array([900.0, 1500.0, 700.0, 1500.0])[channel]
        signal = amplitude / gain + rng.normal(0, noise, self.shape)
        return signal, channel, gain

    def blocks(self, signal, channel, noise, block=12):
        tiles = [
            spatial.radial_blocks(
                signal[y : y + 40], np.full((40, 180), noise**2), np.ones((40, 180), bool),
                channel[y : y + 40], (y, 0), block,
            )
            for y in range(0, 120, 40)
        ]  # fmt: skip
        return np.concatenate(tiles)

    def test_the_map_is_right_up_to_the_corners(self, rng):
        """The peer fits what is inside of a border of 250 px and extrapolates: corners 7 % off."""
        y, x = np.indices(self.shape)
        pulls, centre_pulls = [], []
        for _ in range(6):
            signal, channel, gain = self.flat(rng, 2.0)
            fit = spatial.fit_radial(self.blocks(signal, channel, 2.0, block=4), self.shape)
            pulls.append((fit.gain(y, x) - gain) / fit.gain_error(y, x))
            centre_pulls.append((fit.centre - self.centre) / fit.centre_error)
            assert np.abs(fit.gain(y, x) / gain - 1).max() < 5e-3
        assert 0.6 < width(pulls) < 1.3
        assert 0.5 < width(centre_pulls) < 1.5

    def test_without_noise_only_the_blocks_width_is_left(self, rng):
        signal, channel, gain = self.flat(rng, 0.0)
        y, x = np.indices(self.shape)
        fit = spatial.fit_radial(self.blocks(signal, channel, 1.0, block=6), self.shape)
        assert np.abs(fit.gain(y, x) / gain - 1).max() < 2e-4
        np.testing.assert_allclose(fit.centre, self.centre, atol=1e-4)
        assert fit.amplitude[0] == pytest.approx(900.0, rel=2e-4)

    def test_a_border_is_seen_in_the_radius_that_was_fitted(self, rng):
        signal, channel, _ = self.flat(rng, 0.0)
        fit = spatial.fit_radial(self.blocks(signal, channel, 1.0), self.shape, border=0.2)
        assert fit.r2_fitted < 0.4
        assert fit.radius2(0, 0) > 0.9

    def test_too_few_blocks(self):
        with pytest.raises(NotEnoughData, match="block_size"):
            spatial.fit_radial(np.ones((3, 7)), (10, 10))

    def test_the_gradient_is_the_gradient(self, rng):
        """Through the covariance: error of g by finite differences of the parameters."""
        signal, channel, _ = self.flat(rng, 2.0)
        fit = spatial.fit_radial(self.blocks(signal, channel, 2.0), self.shape)
        for y, x in ((3, 170), (60, 90), (110, 5)):
            gradient = []
            parameters = np.concatenate([fit.coefficients, fit.centre])
            for i in range(7):
                step = np.zeros(7)
                step[i] = 1e-6
                high, low = (
                    spatial.RadialModel(
                        fit.shape, p[5:], fit.centre_error, p[:5], {}, fit.covariance, 0, 1, 1
                    ).gain(y, x)
                    for p in (parameters + step, parameters - step)
                )
                gradient.append((high - low) / 2e-6)
            expected = np.sqrt(np.array(gradient) @ fit.covariance @ np.array(gradient))
            assert fit.gain_error(y, x) == pytest.approx(expected, rel=1e-3)


class TestEmva:
    def points(self, **changes):
        exposure = np.linspace(1, 20, 20)
        photons = 1000 * exposure
        bright = 0.1 * photons + 50.0
        fields = {
            "exposure_s": exposure,
            "photons": photons,
            "bright": np.minimum(bright, 1900.0),
            "bright_variance": np.where(bright < 1850, 0.2 * 0.1 * photons + 4.0, 1.0),
            "dark": np.full(20, 50.0),
            "dark_variance": np.full(20, 4.0),
        }
        return standard.EmvaPoints(**(fields | changes))

    def test_a_perfect_sensor(self):
        result = standard.emva1288(self.points(), None, None)
        assert result["k_dn_per_electron"] == pytest.approx(0.2)
        assert result["responsivity_dn_per_photon"] == pytest.approx(0.1)
        assert result["quantum_efficiency"] == pytest.approx(0.5)
        assert result["saturation_photon"] == 17000.0
        assert result["saturation_electron"] == pytest.approx(8500.0)
        assert result["sigma_d_electron"] == pytest.approx(np.sqrt(4 - 1 / 12) / 0.2)
        assert result["linearity_max_percent"] == pytest.approx(0.0, abs=1e-9)
        assert np.isnan(result["prnu1288_percent"])

    def test_without_photons_what_needs_none_is_there(self):
        result = standard.emva1288(self.points(photons=np.full(20, np.nan)), None, None)
        assert result["k_dn_per_electron"] == pytest.approx(0.2)
        assert np.isnan(result["quantum_efficiency"])
        assert result["saturation_electron"] == pytest.approx(8500.0)
        assert result["linearity_max_percent"] == pytest.approx(0.0, abs=1e-9)

    def test_saturation_is_the_first_maximum_below_the_largest_exposure(self):
        points = self.points()
        variance = points.bright_variance.copy()
        variance[7] = 1000.0  # a lamp that flickered: above all others, at 40 % of saturation
        result = standard.emva1288(self.points(bright_variance=variance), None, None)
        assert result["saturation_photon"] == 17000.0

    @pytest.mark.parametrize(
        ("variance", "index"),
        [
            ([1, 2, 3, 4], 3),  # not reached: the largest exposure
            ([1, 9, 3, 6, 5, 2], 1),  # one low point does not end the search, as in the reference
            ([1, 9, 2, 3, 6, 5, 2], 4),  # two do
            ([9, 2, 1, 7, 1], 3),  # the global maximum lies lower
            ([3, 2, 1], 0),
            ([5], 0),
        ],
    )
    def test_the_search_for_saturation_goes_down_as_the_reference_program_does(
        self, variance, index
    ):
        assert standard.saturation_index(np.array(variance, float)) == index

    def test_nonuniformity_is_without_what_noise_leaves(self, rng):
        offset, n = rng.normal(0, 0.5, 40_000), 20
        frames = 30 + offset + rng.normal(0, 3.0, (n, 40_000))
        mean, variance = moments(frames)
        m2 = float(((mean - mean.mean()) ** 2).sum())
        sums = standard.SpatialSums(40_000, float(mean.mean()), m2, float(variance.sum() / n))
        assert standard.spatial_variance(sums) == pytest.approx(0.25, rel=0.06)
        assert m2 / 39_999 > 0.6  # what it would be with the noise

    def test_too_few_exposures(self):
        few = standard.EmvaPoints(*(np.array([1.0, 2.0]) for _ in range(6)))
        with pytest.raises(NotEnoughData, match="70 %"):
            standard.emva1288(few, None, None)


class TestLocalResponse:
    def test_a_plane_leaves_nothing_and_a_pixel_stands_out(self):
        rows, columns = np.indices((24, 32))
        channel = np.tile(np.array([[0, 1], [3, 2]]), (12, 16))
        signal = 1000.0 + 3 * rows + 5 * columns + 200 * channel
        signal[5, 7] *= 1.5
        good = np.ones(signal.shape, bool)
        good[5, 7] = False
        deviation, freedom = spatial.local_response(signal, good, channel, 8)
        assert deviation[5, 7] == pytest.approx(0.5)
        deviation[5, 7] = 0.0
        assert np.abs(deviation).max() < 1e-12
        assert freedom[5, 7] == 0.0
        assert freedom[0, 0] == pytest.approx(13 / 16)

    def test_the_scatter_of_the_response_is_found(self, rng):
        rows, _ = np.indices((64, 64))
        channel = np.zeros((64, 64), np.int8)
        signal = (1000.0 + 10 * rows) * (1 + rng.normal(0, 0.02, (64, 64)))
        deviation, freedom = spatial.local_response(signal, signal > 0, channel, 4)
        scatter = np.sqrt((deviation**2).sum() / freedom.sum())
        assert scatter == pytest.approx(0.02, rel=0.05)

    def test_too_few_pixels_make_no_plane(self):
        deviation, freedom = spatial.local_response(
            np.ones((4, 4)), np.ones((4, 4), bool), np.tile([[0, 1], [3, 2]], (2, 2)), 2
        )
        assert np.isnan(deviation).all()
        assert not freedom.any()
