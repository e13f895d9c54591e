"""Frames are what their headers say: kinds, settings, parts of files, and products of others."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from faults import run
from PIL import Image

from calibdask.engine.plan import make_plan
from calibdask.engine.products import digest_output
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, WrongKind
from calibdask.io.frame_info import FrameInfo
from calibdask.io.frames import inspect_frame, read_frame, read_frames
from calibdask.io.maps import read_product
from calibdask.sensor import config
from calibdask.sensor.bias import BiasJob
from calibdask.sensor.calibrate import CalibrateImagesJob
from calibdask.sensor.config import Frames
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.flat import FlatFieldJob
from calibdask.sensor.gain import GainJob
from calibdask.sensor.iso import IsoNormalisationJob
from calibdask.sensor.metadata import describe_frame, misfits, setting_of, stack_keys
from calibdask.sensor.settings import Setting
from calibdask.sensor.stack_images import StackImagesJob

SHAPE = (16, 20)
CARDS = {"INSTRUME": "One", "SATURATE": 65535}
BIAS = {"IMAGETYP": "Bias Frame", "EXPTIME": 0.0}


def put(path, level, seed=0, rms=3.0, **cards):
    """Write a frame of one level with noise; underscores in names of cards are hyphens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([seed, int(level)]).normal(level, rms, SHAPE)
    hdu = fits.PrimaryHDU(np.clip(np.rint(values), 0, 65535).astype(np.uint16))
    hdu.header.update({**CARDS, **{name.replace("_", "-"): one for name, one in cards.items()}})
    hdu.writeto(path)
    return path


def series(folder, n, level, name="f", **cards):
    return [put(folder / f"{name}{i}.fits", level, i, **cards) for i in range(n)]


def column(result, table, name):
    return np.asarray(result.tables[table][name]).tolist()


def rows(result, table):
    names = result.tables[table].colnames
    columns = [column(result, table, name) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


# -- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SKYFLAT", "DARKFLAT", "FOCUS", "Master Bias", "bias?frame 2"])
def test_a_type_that_is_not_known_is_left_out_by_name(tmp_path, kind):
    series(tmp_path / "in", 3, 1000, "bias", **BIAS)
    series(tmp_path / "in", 4, 20000, "other", IMAGETYP=kind, EXPTIME=3.0)
    result = run(BiasJob(), [tmp_path / "in"], tmp_path / "out")
    assert column(result, "/sensor/bias", "bias_dn") == pytest.approx([1000.0], abs=1)
    ((where, reason),) = result.plan.skipped_alike()
    assert where.startswith("4 files below")
    assert reason.startswith(f"states the type {kind!r}, which is not known: if it is one of bias")


def test_where_nothing_remains_it_is_refused_with_a_hint(tmp_path):
    paths = series(tmp_path, 3, 20000, IMAGETYP="SKYFLAT", EXPTIME=3.0)
    for job in (
        BiasJob(),
        FlatFieldJob(),
        DarkCurrentJob(),
        GainJob(),
        IsoNormalisationJob(),
        StackImagesJob(),
    ):
        with pytest.raises(WrongKind, match=r"the type 'SKYFLAT'.* say so by kind in Frames.table"):
            make_plan(job, [tmp_path])
    told = Frames.model_validate({"table": [{"path": "*.fits", "kind": "flatfield"}]})
    plan = make_plan(StackImagesJob(frames=told), [tmp_path])
    assert [key.kind for key in plan.calibration.keys] == ["flatfield"]
    # What frames to be calibrated were taken for does not matter.
    job = CalibrateImagesJob(products=(("bias", str(product(tmp_path / "p"))),))
    assert len(make_plan(job, paths).shards) == 3


def test_the_folder_tells_what_an_unknown_type_is_and_that_is_said(tmp_path):
    path = put(tmp_path / "images" / "flatfield" / "1.fits", 500, IMAGETYP="SKYFLAT")
    info, (conflict,) = describe_frame(inspect_frame(path))
    assert info.kind == "flatfield"
    assert conflict.statement == (
        "the kind is flatfield by the names of its folders, which counts, and 'SKYFLAT' by the file"
    )


@pytest.mark.parametrize(
    "job", [BiasJob, DarkCurrentJob, FlatFieldJob, GainJob, IsoNormalisationJob]
)
def test_frames_that_state_no_kind_are_taken_for_the_jobs_own(tmp_path, job):
    series(tmp_path, 2, 500, EXPTIME=1.0, ISOSPEED=100)
    assert [key.kind for key in make_plan(job(), [tmp_path]).calibration.keys] == [job.kinds[0]]


# -- settings --------------------------------------------------------------------------------------


def test_two_settings_of_a_camera_are_two_stacks(tmp_path):
    for gain, offset, level, rms in ((0, 10, 200, 2.0), (200, 50, 260, 6.0)):
        series(tmp_path / "in", 5, level, f"{gain}_", rms=rms, GAIN=gain, OFFSET=offset, **BIAS)
    result = run(BiasJob(), [tmp_path / "in"], tmp_path / "out")
    table = rows(result, "/sensor/bias")
    assert [(one["gain_setting"], one["offset_setting"]) for one in table] == [(0, 10), (200, 50)]
    assert column(result, "/sensor/bias", "bias_dn") == pytest.approx([200, 260], abs=0.5)
    assert column(result, "/sensor/bias", "readnoise_dn") == pytest.approx([2, 6], rel=0.1)
    assert "readout_mode" not in result.tables["/sensor/bias"].colnames
    assert "bias/gain200_offset50/bias" in read_product(tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"iso": 100}, {"iso": 204800}), ({"gain_setting": 0.0}, {"gain_setting": 1.5}),
        ({"offset_setting": 0.0}, {"offset_setting": 1.0}),
        ({"readout_mode": "fast 1"}, {"readout_mode": "fast 2"}),
        ({"filter": "R"}, {"filter": "B"}), ({"level": "1"}, {"level": "2"}),
        ({"photons": 1.0}, {"photons": 2.0}), ({"exposure_s": 1.0}, {"exposure_s": 1.01}),
    ],
)  # fmt: skip
def test_what_keeps_frames_apart(one, other):
    bare = FrameInfo("a", SHAPE, "uint16", kind="flatfield")
    keys = stack_keys([replace(bare, **one), replace(bare, **other), replace(bare, **one)])
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]
    assert len({key.label for key in keys}) == 2
    assert all(Setting.parse(key.setting.name) == key.setting for key in keys)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(), Setting(100), Setting(gain=0.0), Setting(100, -1.5, 10.0, "High-Gain.2"),
        Setting(readout="x"), Setting(gain=1e-7), Setting(offset=12345678.0),
    ],
)  # fmt: skip
def test_the_name_of_a_setting_holds_all_of_it(setting):
    assert Setting.parse(setting.name) == setting
    assert Setting.of_row(setting.columns([Setting(1, 1.0, 1.0, "x")])) == setting


def test_numbers_of_settings_are_those_in_the_names_of_maps():
    info = FrameInfo("a", SHAPE, "u2", gain_setting=0.1 + 0.2, readout_mode="High Gain (2)")
    setting = setting_of(info)
    assert setting == Setting.parse(setting.name) == Setting(gain=0.3, readout="High-Gain-2-")


def test_filters_matter_to_frames_that_see_light_only():
    for kind, n in (("flatfield", 2), ("gain", 2), ("dark_current", 1), ("bias_readnoise", 1)):
        infos = [FrameInfo("a", SHAPE, "u2", kind=kind, filter=name) for name in ("R", "B")]
        assert len(set(stack_keys(infos))) == n


def test_a_flat_field_is_of_one_filter(tmp_path):
    series(tmp_path, 3, 5000, "r", IMAGETYP="flat", EXPTIME=1.0, FILTER="R")
    series(tmp_path, 2, 5000, "b", IMAGETYP="flat", EXPTIME=1.0, FILTER="B")
    series(tmp_path, 2, 1000, "bias", FILTER="B", **BIAS)
    plan = make_plan(FlatFieldJob(), [tmp_path])
    assert [one.message.split(": ")[1] for one in plan.rejected] == [
        "its filter is B, that of most of its kind (flatfield) is R"
    ] * 2


@pytest.mark.parametrize(
    ("what", "one", "other"),
    [
        ("serial number", {"serial_number": "1"}, {"serial_number": "2"}),
        ("binning", {"binning": (1, 1)}, {"binning": (2, 2)}),
        ("first column and row", {"window": (0, 0)}, {"window": (8, 0)}),
        ("unit", {"unit": "DN"}, {"unit": "electron"}),
    ],
)
def test_what_all_frames_of_a_run_have_in_common(what, one, other):
    bare = FrameInfo("a", SHAPE, "uint16", kind="gain", level="1")
    infos = [replace(bare, **one), replace(bare, **one), bare, replace(bare, **other)]
    ((place, error),) = misfits(infos).items()
    assert place == 3
    assert f"its {what} is" in str(error)


def test_another_unit_than_that_of_a_converter_is_told(tmp_path):
    series(tmp_path, 2, 1000, BUNIT="electron", **BIAS)
    (note,) = make_plan(BiasJob(), [tmp_path]).warnings
    assert "the values of the frames are in electron" in note


def test_iso_speeds_beyond_16_bits(tmp_path):
    more = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True), (50717, 3, 1, 16383, True),
        (34855, 3, 1, 65535, True), (34864, 3, 1, 2, True),
    ]  # fmt: skip
    random = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for iso, level in ((102400, 520), (204800, 600)):
        for i in range(3):
            frame = np.rint(random.normal(level, 5, SHAPE)).astype(np.uint16)
            tags = [*more, (34866, 4, 1, iso, True)]
            path = tmp_path / "in" / f"{iso}_{i}.dng"
            tifffile.imwrite(path, frame, photometric="cfa", extratags=tags, metadata=None)
    result = run(BiasJob(), [tmp_path / "in"], tmp_path / "out")
    assert column(result, "/sensor/bias", "iso") == [102400, 204800]
    assert column(result, "/sensor/bias", "bias_dn") == pytest.approx([520, 600], abs=1)


def test_an_iso_speed_that_is_too_large_for_its_field_has_to_be_told(tmp_path):
    path = tmp_path / "iso.png"
    exif = Image.Exif()
    exif[271] = "Acme"  # Pillow writes no tags without one in front
    exif.get_ifd(34665)[34855] = 65535
    Image.fromarray(np.zeros(SHAPE, np.uint16)).save(path, exif=exif)
    with pytest.raises(CorruptedInput, match=r"iso\.png: says ISO 65535, which stands for any"):
        describe_frame(inspect_frame(path))
    told = Frames.model_validate({"table": [{"path": "*.png", "iso": 102400}]})
    assert describe_frame(inspect_frame(path), told)[0].iso == 102400


def test_measured_exposures_are_those_that_were_set(tmp_path):
    """Exposures scatter by 0.08 %: three points of a line, at their mean exposures."""
    random = np.random.default_rng(3)
    for set_s in (10.0, 30.0, 60.0):
        for i in range(4):
            t = round(set_s * (1 + 8e-4 * random.normal()), 4)
            put(tmp_path / "in" / f"{set_s}_{i}.fits", 1000 + 20 * t, i, IMAGETYP="Dark", EXPTIME=t)
    series(tmp_path / "in", 4, 1000, "bias", **BIAS)
    result = run(DarkCurrentJob(), [tmp_path / "in"], tmp_path / "out")
    (row,) = rows(result, "/sensor/dark_current")
    assert (row["n_exposures"], row["n_frames"]) == (3, 12)
    # The mean of 320 pixels at 60 s, with 12 frames of 3 DN: better than 0.01 DN/s.
    assert float(row["dark_current_dn_per_s"]) == pytest.approx(20.0, abs=0.01)
    exact = DarkCurrentJob(frames=Frames(exposure_tolerance=0.0))
    with pytest.raises(CalibdaskError, match="is the only frame of its stack"):
        make_plan(exact, [tmp_path / "in" / "10.0_0.fits", tmp_path / "in" / "10.0_1.fits"])


def test_exposures_that_were_set_a_percent_apart_stay_apart():
    infos = [FrameInfo("a", SHAPE, "u2", kind="gain", exposure_s=t) for t in (1.0, 1.01, 1.02)]
    assert [key.exposure_s for key in stack_keys(infos)] == [1.0, 1.01, 1.02]
    close = [
        replace(info, exposure_s=t) for info, t in zip(infos, (1.0, 1.001, 1.003), strict=True)
    ]
    assert [key.exposure_s for key in stack_keys(close)] == [1.00133] * 3
    standard = [replace(info, kind="emva_bright") for info in close]
    assert len(set(stack_keys(standard))) == 3


def test_dark_frames_are_kept_apart_by_temperature(tmp_path):
    """-10 and 0 °C with half a kelvin of scatter; the steps of a grid do not cut a series."""
    for celsius, rate in ((-10.0, 5.0), (0.0, 20.0)):
        for t in (10.0, 20.0):
            for i in range(3):
                put(
                    tmp_path / "in" / f"{celsius:g}_{t:g}_{i}.fits", 1000 + rate * t, i,
                    IMAGETYP="Dark", EXPTIME=t, CCD_TEMP=celsius + 0.5 * (i - 1),
                )  # fmt: skip
    result = run(DarkCurrentJob(), [tmp_path / "in"], tmp_path / "out")
    assert column(result, "/sensor/dark_current", "temperature_c") == [-10.0, 0.0]
    found = column(result, "/sensor/dark_current", "dark_current_dn_per_s")
    assert found == pytest.approx([5.0, 20.0], abs=0.1)
    maps = read_product(tmp_path / "out")
    assert maps.about("dark_current/iso_unknown_-10C")["temperature_c"] == -10.0
    together = DarkCurrentJob(frames=Frames(temperature_step_c=None))
    assert len(make_plan(together, [tmp_path / "in"]).calibration.keys) == 2


def test_temperatures_of_other_stacks_are_told(tmp_path):
    for i, celsius in enumerate((-10.0, -10.5, 15.0)):
        put(tmp_path / f"{i}.fits", 1000, i, CCD_TEMP=celsius, **BIAS)
    (note,) = make_plan(BiasJob(), [tmp_path]).warnings
    assert note == "stack bias_readnoise: its frames were taken at -10.5 to 15 °C"


# -- products --------------------------------------------------------------------------------------


def product(folder, level=1000, **cards):
    series(folder / "in", 3, level, **{**BIAS, **cards})
    run(BiasJob(), [folder / "in"], folder / "out")
    return folder / "out"


JOBS = {
    "flatfield": (FlatFieldJob, {"IMAGETYP": "Flat", "EXPTIME": 1.0}),
    "dark-current": (DarkCurrentJob, {"IMAGETYP": "Dark", "EXPTIME": 10.0}),
    "gain": (GainJob, {"IMAGETYP": "gain", "EXPTIME": 1.0}),
    "calibrate-images": (CalibrateImagesJob, {"IMAGETYP": "Light", "EXPTIME": 1.0}),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_product_of_another_camera_is_refused_unless_it_is_accepted(tmp_path, name):
    made = product(tmp_path / "bias")
    job, cards = JOBS[name]
    series(tmp_path / "in", 3, 800, **cards, INSTRUME="Two")
    refused = job(products=(("bias", str(made)),))
    message = (
        r"bias/out: does not go with the frames as their bias: the camera is One in the product and"
        r" Two in the frames.*or accept the difference by Frames\.may_differ: \[camera\]"
    )
    with pytest.raises(ConfigError, match=message):
        make_plan(refused, [tmp_path / "in"])
    accepted = replace(refused, frames=Frames(may_differ=("camera",)))
    notes = make_plan(accepted, [tmp_path / "in"]).warnings
    assert any("the camera is One in the product and Two in the frames, which" in n for n in notes)


TOLD = {
    "serial_number": ({"SERIALNO": "1"}, {"SERIALNO": "2"}),
    "pattern": ({"BAYERPAT": "RGGB"}, {"BAYERPAT": "BGGR"}),
    "binning": ({"XBINNING": 1, "YBINNING": 1}, {"XBINNING": 2, "YBINNING": 2}),
    "window": ({"XORGSUBF": 0, "YORGSUBF": 0}, {"XORGSUBF": 8, "YORGSUBF": 0}),
    "unit": ({"BUNIT": "adu"}, {"BUNIT": "electron"}),
    "iso": ({"ISOSPEED": 100}, {"ISOSPEED": 800}),
    "gain_setting": ({"GAIN": 0}, {"GAIN": 100}),
    "offset_setting": ({"OFFSET": 10}, {"OFFSET": 50}),
    "readout_mode": ({"READOUTM": "fast"}, {"READOUTM": "slow"}),
}
ALL_TOLD = {card: value for one, _ in TOLD.values() for card, value in one.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A bias whose frames told everything that products and frames are compared in."""
    return product(tmp_path_factory.mktemp("told") / "bias", **ALL_TOLD)


@pytest.mark.parametrize("field", TOLD)
def test_in_what_products_and_frames_are_compared(tmp_path, told, field):
    one, other = TOLD[field]
    rest = {card: value for card, value in ALL_TOLD.items() if card not in one}
    series(tmp_path / "other", 3, 800, IMAGETYP="Flat", EXPTIME=1.0, **rest, **other)
    series(tmp_path / "silent", 3, 800, IMAGETYP="Flat", EXPTIME=1.0, **rest)
    job = FlatFieldJob(products=(("bias", str(told)),))
    with pytest.raises(ConfigError, match=rf"the {field.replace('_', ' ')} is .*\[{field}\]"):
        make_plan(job, [tmp_path / "other"])
    make_plan(replace(job, frames=Frames(may_differ=(field,))), [tmp_path / "other"])
    make_plan(job, [tmp_path / "silent"])  # what is not known goes with everything


def test_frames_that_are_as_their_product_says_go_with_it(tmp_path, told):
    series(tmp_path / "same", 3, 800, IMAGETYP="Flat", EXPTIME=1.0, **ALL_TOLD)
    make_plan(FlatFieldJob(products=(("bias", str(told)),)), [tmp_path / "same"])


def test_bias_frames_among_the_inputs_spare_a_product_of_their_setting(tmp_path):
    made = product(tmp_path / "bias", GAIN=0)
    series(tmp_path / "in", 3, 800, "flat", IMAGETYP="Flat", EXPTIME=1.0, GAIN=100)
    series(tmp_path / "in", 3, 500, "bias", GAIN=100, **BIAS)
    job = FlatFieldJob(products=(("bias", str(made)),))
    result = run(job, [tmp_path / "in"], tmp_path / "out")
    (row,) = rows(result, "/sensor/flatfield")
    assert float(row["signal_mono_dn"]) == pytest.approx(300, abs=2)


def test_each_setting_gets_its_own_bias(tmp_path):
    for gain, level in ((0, 200), (100, 260)):
        series(tmp_path / "b", 3, level, f"{gain}_", GAIN=gain, **BIAS)
        series(tmp_path / "l", 1, level + 50, f"{gain}_", IMAGETYP="Light", EXPTIME=1.0, GAIN=gain)
    run(BiasJob(), [tmp_path / "b"], tmp_path / "bias")
    job = CalibrateImagesJob(products=(("bias", str(tmp_path / "bias")),))
    result = run(job, [tmp_path / "l"], tmp_path / "out")
    assert column(result, "/sensor/calibrated", "mean") == pytest.approx([50, 50], abs=1)


def test_dark_current_of_another_temperature_and_flats_of_another_filter(tmp_path):
    for t in (10.0, 20.0):
        series(
            tmp_path / "d", 2, 1000 + 5 * t, f"{t:g}_", IMAGETYP="Dark", EXPTIME=t, CCD_TEMP=-10.0
        )
    run(DarkCurrentJob(), [tmp_path / "d"], tmp_path / "dark")
    series(tmp_path / "f", 2, 5000, "f", IMAGETYP="Flat", EXPTIME=1.0, FILTER="R")
    series(tmp_path / "f", 2, 1000, "b", **BIAS)
    run(FlatFieldJob(), [tmp_path / "f"], tmp_path / "flat")
    job = CalibrateImagesJob(
        products=(("dark", str(tmp_path / "dark")), ("flat", str(tmp_path / "flat")))
    )
    light = {"IMAGETYP": "Light", "EXPTIME": 1.0}
    series(tmp_path / "good", 1, 1300, CCD_TEMP=-9.0, FILTER="R", **light)
    series(tmp_path / "warm", 1, 1300, CCD_TEMP=5.0, FILTER="R", **light)
    series(tmp_path / "blue", 1, 1300, CCD_TEMP=-10.0, FILTER="B", **light)
    make_plan(job, [tmp_path / "good"])
    with pytest.raises(ConfigError, match=r"the temperature is -10.0 in the product and 5.0 in"):
        make_plan(job, [tmp_path / "warm"])
    with pytest.raises(ConfigError, match=r"the filter is R in the product and B in the frames"):
        make_plan(job, [tmp_path / "blue"])
    accepted = Frames(may_differ=("temperature_c", "filter"))
    for folder in ("warm", "blue"):
        make_plan(replace(job, frames=accepted), [tmp_path / folder])


# -- parts of files --------------------------------------------------------------------------------


def amplifiers(path, levels, thumbnail=False):
    path.parent.mkdir(exist_ok=True)
    primary = fits.PrimaryHDU(np.zeros((4, 5), np.uint8)) if thumbnail else fits.PrimaryHDU()
    primary.header.update({**CARDS, **BIAS})
    hdus = fits.HDUList([primary])
    for number, level in enumerate(levels):
        data = np.full(SHAPE, level, np.uint16) + np.arange(SHAPE[1], dtype=np.uint16)
        hdus.append(fits.ImageHDU(data, name=f"AMP{number}"))
    hdus.writeto(path)
    return path


def test_a_file_of_several_amplifiers_is_refused_until_one_is_chosen(tmp_path):
    for i in range(3):
        amplifiers(tmp_path / "in" / f"{i}.fits", (1000 + i, 1100 + i))
    message = r"holds 2 images, and none is said to be the frame: name one .*1 AMP0 \(16 x 20\), 2"
    with pytest.raises(WrongKind, match=message):
        make_plan(BiasJob(), [tmp_path / "in"])
    with pytest.raises(WrongKind, match=r"'AMP7' is not one which is the frame"):
        make_plan(BiasJob(frames=Frames(hdu="AMP7")), [tmp_path / "in"])
    addresses = set()
    for hdu, level in (("AMP0", 1010.5), ("amp1", 1110.5), (2, 1110.5)):
        job = BiasJob(frames=Frames(hdu=hdu))
        result = run(job, [tmp_path / "in"], tmp_path / f"out{hdu}", workdir=tmp_path / "work")
        (mean,) = column(result, "/sensor/bias", "bias_dn")
        assert mean == pytest.approx(level)
        assert result.account.cached == 0
        addresses.add(result.plan.address(0, result.plan.shards[0], {}))
    assert len(addresses) == 3


def test_a_thumbnail_before_the_frame(tmp_path):
    path = amplifiers(tmp_path / "in" / "1.fits", (1000,), thumbnail=True)
    with pytest.raises(WrongKind, match=r"holds 2 images.*0 PRIMARY \(4 x 5\), 1 AMP0 \(16 x 20\)"):
        inspect_frame(path)
    info = inspect_frame(path, 1)
    assert (info.shape, info.hdu) == (SHAPE, 1)
    assert read_frame(path, hdu=1)[0, 0] == 1000


def test_a_cube_of_three_planes_is_left_out_unless_they_are_frames(tmp_path):
    cube = np.random.default_rng(1).integers(900, 1100, (3, *SHAPE)).astype(np.uint16)
    hdu = fits.PrimaryHDU(cube)
    hdu.header.update(CARDS)
    hdu.writeto(tmp_path / "cube.fits")
    with pytest.raises(WrongKind, match=r"may be the colours .* Frames\.planes: frames"):
        make_plan(StackImagesJob(), [tmp_path])
    plan = make_plan(StackImagesJob(frames=Frames(planes="frames")), [tmp_path])
    assert [len(frames) for _, frames in plan.calibration.plan_frames] == [3]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_stack_of_imagej_is_read_whole(tmp_path, order):
    """Above 4 GB ImageJ writes one directory, and how many images follow in its description."""
    stack = np.random.default_rng(1).integers(0, 4096, (5, *SHAPE)).astype(np.uint16)
    path = tmp_path / "stack.tif"
    about = "ImageJ=1.53t\nimages=5\nframes=5\n"
    tifffile.imwrite(path, stack[0], description=about, metadata=None, byteorder=order)
    with path.open("ab") as file:
        file.write(stack[1:].astype(f"{order}u2").tobytes())
    assert inspect_frame(path).n_frames == 5
    np.testing.assert_array_equal(np.stack(list(read_frames(path, 0, 5))), stack)
    np.testing.assert_array_equal(read_frame(path, 3), stack[3])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CorruptedInput, match="cut short"):
        inspect_frame(path)


def test_channels_of_imagej_are_no_frames(tmp_path):
    path = tmp_path / "stack.tif"
    colours = np.zeros((2, 3, *SHAPE), np.uint16)
    tifffile.imwrite(path, colours, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(WrongKind, match="an ImageJ stack of 3 channels"):
        inspect_frame(path)


def test_frames_without_numbers_and_single_infinities_are_named(tmp_path):
    cube = np.random.default_rng(1).normal(1000, 3, (5, *SHAPE)).astype(np.float32)
    cube[1] = np.nan
    cube[3, 2, 4] = np.inf
    np.save(tmp_path / "cube.npy", cube)
    named = Frames.model_validate({"table": [{"path": "*", "kind": "bias_readnoise"}]})
    job = StackImagesJob(frames=named)
    with pytest.raises(CorruptedInput, match=r"cube\.npy: frame 1 holds no number: all its values"):
        run(job, [tmp_path / "cube.npy"], tmp_path / "refused")
    result = run(job, [tmp_path / "cube.npy"], tmp_path / "out", allow_missing=1.0)
    expected = f"{tmp_path}/cube.npy: frame 3: 1 of 320 values are NaN or infinite and are left out"
    assert expected in result.account.total.warnings
    (n_frames,) = column(result, "/sensor/stacks", "n_frames")
    maps = read_product(tmp_path / "out")
    n = maps.rows("bias_readnoise/n")
    assert (n_frames, n[2, 4], n.max(), (n == 4).sum()) == (4, 3, 4, 319)
    good = cube[[0, 2, 3, 4]].astype(np.float64)
    good[2, 2, 4] = np.nan
    np.testing.assert_allclose(maps.rows("bias_readnoise/mean"), np.nanmean(good, 0), rtol=1e-12)


def test_a_frame_and_its_compressed_copy_are_one_frame(tmp_path):
    for path in series(tmp_path / "in", 3, 1000, **BIAS):
        (path.parent / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        with fits.open(path) as hdus:
            packed = fits.CompImageHDU(hdus[0].data, hdus[0].header)
            fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path.parent / f"{path.name}.fz")
    result = run(BiasJob(), [tmp_path / "in"], tmp_path / "out")
    (row,) = rows(result, "/sensor/bias")
    assert int(row["n_frames"]) == 3
    assert result.plan.skipped_alike() == [
        (f"6 files below {tmp_path / 'in'}",
         "is the compressed copy of a frame beside it, which is read")
    ]  # fmt: skip
    # By themselves they are frames as others are.
    for path in (tmp_path / "in").glob("*.fits"):
        path.unlink()
    for ending in ("gz", "fz"):
        plan = make_plan(BiasJob(), [tmp_path / "in" / f"f{i}.fits.{ending}" for i in range(3)])
        assert [len(frames) for _, frames in plan.calibration.plan_frames] == [3]


# -- names and messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run #2 what?", "a[1] 50%25 a&b;c star*"])
def test_any_name_of_a_folder_will_do(tmp_path, name):
    folder = tmp_path / name
    series(folder / "in", 3, 1000, **BIAS)
    result = run(BiasJob(), [folder / "in"], folder / "bias")
    assert digest_output(folder / "bias") == result.digest
    assert read_product(folder / "bias").rows("bias/iso_unknown/bias").mean() > 900
    series(folder / "light", 1, 1300, IMAGETYP="Light", EXPTIME=1.0)
    job = CalibrateImagesJob(products=(("bias", str(folder / "bias")),))
    done = run(job, [folder / "light"], folder / "out")
    assert digest_output(folder / "out") == done.digest
    stack = np.random.default_rng(1).integers(900, 1100, (3, *SHAPE)).astype(np.uint16)
    import zarr

    zarr.create_array(folder / "stack.zarr", data=stack)
    assert inspect_frame(folder / "stack.zarr").n_frames == 3
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_jpegs_says_what_to_do(tmp_path):
    for i in range(2):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.JPG")
    with pytest.raises(WrongKind, match=r"a JPEG is a picture .* set the camera to save raw files"):
        make_plan(BiasJob(), [tmp_path])


def test_a_folder_without_frames_says_what_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"no file named .*\*\.dng.* in the directory") as caught:
        make_plan(BiasJob(), [tmp_path])
    assert "[" not in str(caught.value)


def test_compressed_tiffs_say_what_to_do(tmp_path):
    path = tmp_path / "one.tif"
    Image.fromarray(np.zeros(SHAPE, np.uint16)).save(path, compression="tiff_lzw")
    with pytest.raises(WrongKind, match=r"is compressed by LZW, .* save it uncompressed or with"):
        inspect_frame(path)


# -- reports ---------------------------------------------------------------------------------------


def test_the_report_shows_a_frame_before_and_after_with_its_mask(tmp_path):
    made = product(tmp_path / "bias")
    paths = series(tmp_path / "in", 2, 1300, IMAGETYP="Light", EXPTIME=1.0)
    with fits.open(paths[0], mode="update") as hdus:
        hdus[0].data[2:4, 4:6] = 65535
    options = config.CalibrateImages(format="fits")
    job = CalibrateImagesJob(products=(("bias", str(made)),), options=options)
    done = []
    for shard_bytes in (1, 1 << 30):
        output = tmp_path / f"out{shard_bytes}"
        done.append(run(replace(job, shard_bytes=shard_bytes), [tmp_path / "in"], output))
    assert done[0].digest == done[1].digest
    calibration = done[0].plan.calibration
    shown = done[0].result.shown
    raw = read_frame(paths[0]).reshape(8, 2, 10, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(shown["before"], raw)
    assert shown["flagged"][1, 2] == 1.0
    assert shown["flagged"].sum() == 1.0
    assert np.median(shown["after"]) == pytest.approx(300, abs=3)
    figure = calibration.report(done[0].result, done[0].tables)[1].blocks[0]
    assert "f0.fits, the first frame, before and after calibration, and its mask" in figure.caption
    assert all(f"<!-- {title} -->" in figure.image for title in ("raw", "calibrated", "mask"))


def test_residuals_of_the_photon_transfer_curve_have_error_bars(monkeypatch):
    from matplotlib.figure import Figure

    from calibdask.sensor import report
    from tests.sensor.toys import Camera, key, run_job

    camera = Camera(shape=(8, 12), pattern="")
    stacks = {key("bias_readnoise", iso=100): camera.frames(6)}
    for light in (100.0, 1000.0, 4000.0):
        stacks[key("gain", iso=100, level=f"{light:g}")] = camera.frames(6, light=light)
    _, result, _ = run_job(GainJob(), stacks, camera.sensor)
    monkeypatch.setattr(report, "draw_figure", lambda paint, **_: paint)
    paint = report._draw_ptc(result["rows"], result["points"], Setting(100), result["step_dn"])
    figure = Figure()
    paint(figure)
    (bars,) = figure.axes[1].containers
    points, caps, (lines,) = bars.lines
    lengths = np.array([np.ptp(one[:, 1]) for one in lines.get_segments()])
    used = [one for one in result["points"] if one["used"]]
    assert len(points.get_xdata()) == len(lengths) == len(used)
    expected = [200 * one["variance_dn2_error"] / one["variance_dn2"] for one in used]
    np.testing.assert_allclose(lengths, expected, rtol=0.3)
    assert len(caps) == 2
    assert points.get_markersize() < caps[0].get_markersize()
