"""A simulated camera on disk, calibrated by the jobs as people run them: truth, errors, bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import calibdask
from calibdask.io.maps import read_product
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

OPTIONS = SensorSimulation(
    rows=96, columns=128, n_frames=25, isos=(100, 400, 1600, 3200), iso_knee=2000, seed=7
)
CHAIN = (
    ("bias", "bias", "Bias", ()),
    ("iso-normalisation", "iso", "IsoNormalisation", ("bias",)),
    ("dark-current", "dark", "DarkCurrent", ("bias", "iso")),
    ("gain", "gain", "Gain", ("bias", "iso")),
    ("flatfield", "flat", "FlatField", ("bias",)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_sensor(tmp_path_factory.mktemp("camera"), OPTIONS)


@pytest.fixture(scope="module")
def products(made, tmp_path_factory):
    """The whole chain: each job takes the products of those before."""
    root = tmp_path_factory.mktemp("products")
    results = {}
    for job, name, section, needs in CHAIN:
        results[name] = calibdask.run(
            job,
            [made.root],
            root / name,
            overrides={
                f"{section}.spectacle": True,
                **{f"{section}.{need}": str(root / need) for need in needs},
            },
            cluster="serial",
        )
    return root, results


@pytest.fixture(scope="module")
def maps(products):
    root, _ = products

    def read(product, name):
        return read_product(root / product).rows(name, 0, OPTIONS.rows)

    return read


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def plain(table, name):
    return np.asarray(table[name])


class TestTruth:
    @pytest.mark.parametrize("iso", [100, 3200])
    def test_bias(self, made, maps, iso):
        """Its rms error within 1 % of sqrt(variance/n), plus what chance makes of 12288 pixels."""
        truth = made.truth
        error = maps("bias", f"bias/iso{iso}/bias") - truth.bias_dn(iso)
        expected = np.sqrt((truth.read_noise_dn(iso) ** 2 + 1 / 12) / OPTIONS.n_frames)
        assert rms(error) / rms(expected) == pytest.approx(1.0, abs=0.01 + 3 * 0.0064)
        assert 0.9 < rms(error / maps("bias", f"bias/iso{iso}/bias_error")) < 1.1

    @pytest.mark.parametrize("iso", [100, 3200])
    def test_read_noise(self, made, maps, iso):
        truth = made.truth.read_noise_dn(iso)
        noise = maps("bias", f"readnoise/iso{iso}/readnoise")
        chance = np.sqrt(2 / (OPTIONS.n_frames - 1) / noise.size)
        assert np.mean(noise**2) / np.mean(truth**2) == pytest.approx(1.0, abs=0.002 + 3 * chance)
        pulls = (noise - truth) / maps("bias", f"readnoise/iso{iso}/readnoise_error")
        assert 0.9 < rms(pulls) < 1.15  # of 25 frames: t-distributed

    def test_iso_table(self, products):
        table = products[1]["iso"].tables["/sensor/iso_normalisation"]
        factor = np.array([OPTIONS.amplification(int(iso)) for iso in plain(table, "iso")])
        assert np.abs(plain(table, "factor") / factor - 1).max() < 1e-3
        assert np.abs(plain(table, "model") / factor - 1).max() < 1e-3
        pulls = (plain(table, "factor") - factor)[1:] / plain(table, "factor_error")[1:]
        assert np.abs(pulls).max() < 4
        curve = products[1]["iso"].tables["/sensor/iso_curve"]
        assert plain(curve, "kind")[0] == "knee"
        assert abs(plain(curve, "knee")[0] - 2000) < 4 * plain(curve, "knee_error")[0]

    def test_dark_current(self, made, maps):
        truth = made.truth.gain_dn_e * made.truth.dark_e_s
        rate = maps("dark", "dark_current/dark_current")
        error = maps("dark", "dark_current/dark_current_error")
        known = np.isfinite(rate)
        assert known.mean() > 0.999
        assert 0.98 < rate[known].sum() / truth[known].sum() < 1.02
        assert 0.9 < rms(((rate - truth) / error)[known]) < 1.1
        hot = made.truth.hot
        assert np.all(maps("dark", "dark_current/mask")[hot & (truth > 10)] & (1 << 8))
        assert 0.98 < np.median((rate / truth)[hot & known]) < 1.02

    def test_gain(self, made, maps, products):
        truth = made.truth.gain_dn_e
        good = maps("gain", "gain/mask") == 0
        assert good.mean() > 0.999
        gain, error = maps("gain", "gain/gain"), maps("gain", "gain/gain_error")
        ratio = (gain / truth)[good]
        chance = ratio.std() / np.sqrt(ratio.size)
        assert ratio.mean() == pytest.approx(1.0, abs=0.001 + 3 * chance)
        assert 0.9 < rms(((gain - truth) / error)[good]) < 1.1
        table = products[1]["gain"].tables["/sensor/gain"]
        for channel, gain_e, gain_error in zip(
            plain(table, "channel"),
            plain(table, "ptc_gain_dn_per_electron"),
            plain(table, "ptc_gain_dn_per_electron_error"),
            strict=True,
        ):
            # Pixels differ by 2 %: the curve's slope is the mean times 1 + 0.02^2.
            assert abs(gain_e - 1.0004 * OPTIONS.gain_dn_e) < 4 * gain_error, channel

    def test_flat_field(self, made, maps):
        truth = made.truth
        model = maps("flat", "flatfield/model") * truth.vignetting
        # Pixels differ by 2 %, and there are 12288 of them for ten parameters.
        assert rms(model - 1) < 2e-3
        pulls = (model - 1) / (maps("flat", "flatfield/model_error") * truth.vignetting)
        assert rms(pulls) < 2.0
        assert np.abs(pulls).max() < 4.5
        response = truth.gain_dn_e * (1 + truth.prnu) / truth.vignetting
        flat, error = maps("flat", "flatfield/flatfield"), maps("flat", "flatfield/flatfield_error")
        pulls = []
        for place in np.ndindex(2, 2):  # one scale for each channel
            here = tuple(slice(start, None, 2) for start in place)
            ratio = flat[here] / response[here]
            pulls.append((ratio / ratio.mean() - 1) * flat[here] / error[here])
        assert 0.9 < rms(np.array(pulls)) < 1.1

    def test_reports_have_their_figures(self, products):
        for product in ("bias", "iso", "dark", "gain", "flat"):
            page = (products[0] / product / "calibdask.html").read_text(encoding="utf-8")
            assert page.count("data:image/svg+xml") >= 2, product

    def test_spectacles_files_are_the_same_maps(self, products, maps):
        root, _ = products
        name = f"{OPTIONS.model.replace(' ', '_')}_"
        gain = np.load(root / "gain" / "calibration" / f"{name}gain.npy", allow_pickle=False)
        np.testing.assert_array_equal(gain, maps("gain", "gain/gain"))
        bias = np.load(root / "bias" / "calibration" / f"{name}bias.npy", allow_pickle=False)
        np.testing.assert_array_equal(bias, maps("bias", "bias/iso100/bias").astype(np.float32))
        table = np.loadtxt(
            root / "iso" / "calibration" / f"{name}iso_normalisation_lookup_table.csv",
            delimiter=",",
        )
        truth = [OPTIONS.amplification(int(iso)) for iso in table[100:, 0]]
        assert np.abs(table[100:, 1] / truth - 1).max() < 1e-3
        numbers = np.loadtxt(root / "flat" / "calibration" / f"{name}flatfield_parameters.csv")
        assert numbers.shape == (14,)
        assert numbers[5] == pytest.approx(OPTIONS.vignetting_centre[0], abs=0.01)


JOBS = ("bias", "gain", "flatfield")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a job on fewer and smaller frames: bits need no statistics."""
    options = replace(OPTIONS, rows=40, columns=64, n_frames=15, isos=(100, 400))
    frames = simulate_sensor(tmp_path_factory.mktemp("small"), options).root

    def do(job, **options):
        output = tmp_path_factory.mktemp("run") / "out"
        options = {"cluster": "serial", "report": False} | options
        return calibdask.run(job, [frames], output, **options)

    return do


@pytest.fixture(scope="module")
def references(run):
    return {job: run(job).digest for job in JOBS}


class TestSameBits:
    """One digest for one set of frames, however they are cut and wherever they are summed."""

    @pytest.mark.parametrize("job", JOBS)
    def test_cut_otherwise_and_in_threads(self, run, references, job):
        cut = {"Stacks.frames_per_task": 7, "Campaign.fan_in": 2}
        result = run(job, overrides=cut, cluster="threads", workers=3)
        assert len(result.plan.shards) > 3
        assert result.digest == references[job]

    @pytest.mark.cluster
    @pytest.mark.slow
    def test_dask_workers(self, run, references):
        cut = {"Stacks.frames_per_task": 10}
        result = run("gain", overrides=cut, cluster="local", workers=2)
        assert result.digest == references["gain"]


@pytest.fixture(scope="module")
def calibrated(products, tmp_path_factory):
    """A scene taken with the same camera."""
    root, _ = products
    options = replace(OPTIONS, kinds=("light",), n_frames=3)
    lights = simulate_sensor(tmp_path_factory.mktemp("lights"), options)
    names = {name: name for name in ("bias", "iso", "dark", "gain", "flat")}
    output = tmp_path_factory.mktemp("calibrated") / "out"
    calibdask.run(
        "calibrate-images",
        [lights.root],
        output,
        overrides={
            f"CalibrateImages.{name}": str(root / product)
            for name, product in {**names, "readnoise": "bias"}.items()
        },
        cluster="serial",
        report=False,
    )
    return lights.truth, sorted(output.glob("*.zarr"))


class TestCalibratedImages:
    """The light frames, corrected with what the chain made: the scene comes back."""

    def test_the_scene_in_electrons(self, calibrated):
        """Errors are right, but for one number: the flat field is 1 at its brightest."""
        truth, paths = calibrated
        scene = truth.scene_e
        frames = {"iso100": [], "iso400": []}
        for path in paths:
            one = read_product(path)
            good = one.rows("mask") == 0
            assert good.mean() > 0.9
            value, error = one.rows("value"), one.rows("error")
            scale = np.median((value / scene)[good])
            assert scale == pytest.approx(1.0, abs=0.05)
            pulls = ((value / scale - scene) / error)[good]
            assert abs(np.median(pulls)) < 0.1
            frames[path.name[:6]].append(rms(pulls[np.abs(pulls) < 5]))
        assert all(frames.values())
        # Of 25 frames, maps have errors of their own, and errors of errors.
        assert all(0.9 < np.mean(one) < 1.1 for one in frames.values())
