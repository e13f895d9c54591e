"""Masked borders and overscan: what no light falls on is in no fit, no mean and no count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

import calibdask
from calibdask.errors import CorruptedInput
from calibdask.flags import PixelFlag
from calibdask.io.areas import areas_of_fits, checked, without
from calibdask.io.frames import inspect_frame
from calibdask.io.maps import read_product
from calibdask.sensor import config
from calibdask.sensor.bias import BiasJob
from calibdask.sensor.dark import DarkCurrentJob
from calibdask.sensor.defects import DefectsJob
from calibdask.sensor.emva import Emva1288Job
from calibdask.sensor.flat import FlatFieldJob
from calibdask.sensor.gain import GainJob
from calibdask.sensor.iso import IsoNormalisationJob
from calibdask.sensor.metadata import describe_frame
from calibdask.sensor.stack_images import StackImagesJob
from calibdask.sensor.summary import summarise
from tests.sensor.toys import Camera, key, run_job

BORDER = PixelFlag.BORDER.bit
TOP, LEFT, RIGHT = 16, 16, 6  # whole blocks: pixels have the same neighbours
CAMERA = Camera(shape=(48, 64))


def stacks_of(kind):
    """Frames of a job, without borders."""
    bias = {key("bias_readnoise", iso=100): CAMERA.frames(12)}
    match kind:
        case "dark_current":
            return bias | {
                key(kind, iso=100, exposure_s=t): CAMERA.frames(6, exposure_s=t)
                for t in (1.0, 4.0, 9.0)
            }
        case "gain":
            return bias | {
                key(kind, iso=100, level=str(i)): CAMERA.frames(8, light=light, salt=i)
                for i, light in enumerate((500.0, 2000.0, 5000.0, 8000.0, 10_000.0))
            }
        case "flatfield":
            return bias | {key(kind, iso=100): CAMERA.frames(8, light=8000.0, vignetted=True)}
        case "iso_normalisation":
            speeds = {
                key(kind, iso=iso): CAMERA.frames(6, iso=iso, light=1500.0)
                for iso in (100, 200, 400)
            }
            return bias | speeds | {
                key("bias_readnoise", iso=iso): CAMERA.frames(8, iso=iso) for iso in (200, 400)
            }  # fmt: skip
        case "emva":
            times = (1.0, 2.0, 3.0, 4.0, 5.0)
            pairs = {
                key("emva_bright", iso=100, exposure_s=t): CAMERA.frames(2, light=2000 * t)
                for t in times
            }
            pairs |= {
                key("emva_dark", iso=100, exposure_s=t): CAMERA.frames(2, salt=int(t))
                for t in times
            }
            return pairs | {
                key("emva_bright_spatial", iso=100, exposure_s=3.0): CAMERA.frames(9, light=6000.0),
                key("emva_dark_spatial", iso=100, exposure_s=3.0): CAMERA.frames(9, salt=3),
            }
        case _:
            return bias


def bordered(frames, seed):
    """Add a border that is as wrong as it can be: other values, other noise, at both ends."""
    n, rows, columns = frames.shape
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 4096, (n, rows + TOP, columns + LEFT + RIGHT)).astype(np.uint16)
    whole[:, TOP:, LEFT : LEFT + columns] = frames
    return whole


def numbers_of(result, calibration):
    """All numbers of a job's tables by table, row and column."""
    found = {}
    for path, table in calibration.tables(result).items():
        for name in table.colnames:
            for row, value in enumerate(np.atleast_1d(np.asarray(table[name]))):
                found[path, row, name] = value
    return found


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (StackImagesJob(), "bias"), (BiasJob(), "bias"), (DarkCurrentJob(), "dark_current"),
        (GainJob(), "gain"), (IsoNormalisationJob(), "iso_normalisation"), (Emva1288Job(), "emva"),
        (DefectsJob(), "dark_current"),
        (FlatFieldJob(options=config.FlatField(block_size=4)), "flatfield"),
    ],
    ids=lambda one: getattr(one, "name", None),
)  # fmt: skip
def test_with_a_border_the_lit_part_is_calibrated_as_without(job, kind):
    stacks = stacks_of(kind)
    wide = {one: bordered(frames, i) for i, (one, frames) in enumerate(stacks.items())}
    rows, columns = CAMERA.shape
    area = (TOP, LEFT, TOP + rows, LEFT + columns)
    sensor = replace(CAMERA.sensor, shape=(rows + TOP, columns + LEFT + RIGHT), lit_areas=(area,))
    expected, result, plain = run_job(job, stacks, CAMERA.sensor)
    maps, wide_result, calibration = run_job(job, wide, sensor)
    lit = sensor.lit(0, sensor.shape[0])
    # The radius of the vignetting's model is in units of the farthest corner, of all pixels.
    radial = {"rtol": 2e-3} if isinstance(job, FlatFieldJob) else {"rtol": 1e-9}
    for name, values in expected.items():
        inside = maps[name][TOP:, LEFT : LEFT + columns]
        if name.endswith("mask"):
            np.testing.assert_array_equal(inside, values, name)
            assert (maps[name][~lit] == BORDER).all(), name
        else:
            atol = 1e-3 if isinstance(job, FlatFieldJob) else 1e-12
            np.testing.assert_allclose(inside, values, **radial, atol=atol, err_msg=name)
    found = numbers_of(wide_result, calibration)
    for (path, row, name), value in numbers_of(result, plain).items():
        where = f"{path} {name}"
        if path.endswith("flatfield_model") or name.startswith(("centre", "chi2", "column", "row")):
            continue  # coefficients and places are told in units of the whole frame
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(
                found[path, row, name], value, rtol=radial["rtol"], atol=1e-9, err_msg=where
            )
        else:
            assert found[path, row, name] == value, where


def test_frames_are_added_up_and_searched_over_the_lit_part_alone():
    rng = np.random.default_rng(5)
    areas = ((2, 3, 9, 8), (2, 11, 9, 15))
    for frames in (
        rng.integers(0, 60_000, (5, 10, 16)).astype(np.uint16),
        rng.normal(0.0, 100.0, (5, 10, 16)),
    ):
        if frames.dtype.kind == "f":
            frames[1, 4, 4] = np.nan
        tiles = [(0, 4), (4, 10)]
        found = summarise([("a", i, one) for i, one in enumerate(frames)], tiles, lit_areas=areas)
        lit = np.zeros((10, 16), bool)
        lit[2:9, 3:8] = lit[2:9, 11:15] = True
        for (top, bottom), summary in found.items():
            sums = np.nansum(frames[:, top:bottom][:, lit[top:bottom]], axis=1)
            stack = summary.stacks["a"].frames
            np.testing.assert_allclose(stack.frame_sum, sums)
            for frame, facts in zip(frames, stack.facts, strict=True):
                values = frame[lit & np.isfinite(frame)]
                levels, counts = np.unique(values, return_counts=True)
                expected = [levels[0], levels[-1], counts[-1], levels[-2], counts[-2]]
                np.testing.assert_array_equal(facts[1:6], expected)
                if frame.dtype.kind == "u":
                    assert facts[0] == np.bitwise_or.reduce(values)
                places = [
                    np.nansum(np.where(lit, frame, 0)[y::2, x::2]) for y in (0, 1) for x in (0, 1)
                ]
                np.testing.assert_allclose(facts[6:], places)


SHAPE = (100, 220)


@pytest.mark.parametrize(
    ("cards", "areas"),
    [
        ({}, ()),
        ({"DATASEC": "[1:220,1:100]"}, ()),
        ({"TRIMSEC": "[0:0,0:0]", "BIASSEC": "  "}, ()),
        ({"TRIMSEC": "[11:200,3:100]", "DATASEC": "[1:200,1:100]"}, ((2, 10, 100, 200),)),
        ({"DATASEC": "[200:11,1:100]"}, ((0, 10, 100, 200),)),
        ({"DATASEC": "[ 11 : 200 , * ]"}, ((0, 10, 100, 200),)),
        ({"BIASSEC": "[201:220,1:100]"}, ((0, 0, 100, 200),)),
        ({"BIASSEC": "[101:120,1:100]"}, ((0, 0, 100, 100), (0, 120, 100, 220))),
        ({"DATASEC": "[1:220,1:100]", "BIASSEC": "[1:8,1:100]"}, ((0, 8, 100, 220),)),
        (
            {"DATASECA": "[1:100,1:100]", "DATASECB": "[121:220,1:100]"},
            ((0, 0, 100, 100), (0, 120, 100, 220)),
        ),
        (
            {"BIASSEC1": "[1:5,1:100]", "BIASSEC2": "[216:220,1:100]"},
            ((0, 5, 100, 215),),
        ),
    ],
)  # fmt: skip
def test_sections_of_fits_files(cards, areas):
    header = fits.Header(cards)
    assert checked(areas_of_fits(header, SHAPE), SHAPE) == areas


def test_a_section_that_is_none_is_refused():
    with pytest.raises(CorruptedInput, match="TRIMSEC is '1:20,1:30', no section like"):
        areas_of_fits(fits.Header({"TRIMSEC": "1:20,1:30"}), SHAPE)


def test_rectangles_are_cut_out_of_rectangles():
    hole = (3, 4, 6, 8)
    pieces = without(((0, 0, 10, 12),), (hole, (20, 20, 30, 30)))
    seen = np.zeros((10, 12), int)
    for top, left, bottom, right in pieces:
        seen[top:bottom, left:right] += 1
    expected = np.ones((10, 12), int)
    expected[3:6, 4:8] = 0
    np.testing.assert_array_equal(seen, expected)


def put(path, frame, **cards):
    header = fits.Header({name.replace("_", "-"): value for name, value in cards.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(frame, header).writeto(path)
    return path


def test_a_section_of_the_frame_before_it_was_trimmed_is_refused_unless_told_better(tmp_path):
    path = put(tmp_path / "one.fits", np.zeros((20, 30), np.uint16), TRIMSEC="[11:40,1:20]")
    with pytest.raises(CorruptedInput, match=r"columns 10 to 39, .* 30 columns; .*lit_areas in"):
        describe_frame(inspect_frame(path))
    row = config.FrameRow.model_validate({"path": "*.fits", "lit_areas": [0, 0, 20, 30]})
    info, _ = describe_frame(inspect_frame(path), config.Frames(table=(row,)))
    assert info.lit_areas == ()
    row = config.FrameRow.model_validate(
        {"path": "*.fits", "lit_areas": [[0, 2, 20, 12], [0, 18, 20, 28]]}
    )
    info, _ = describe_frame(inspect_frame(path), config.Frames(table=(row,)))
    assert info.lit_areas == ((0, 2, 20, 12), (0, 18, 20, 28))


@pytest.mark.parametrize(
    "wrong", [[0, 0, 0, 5], [1, 2, 3], "all", [[0, 0, 5, 5], 3], [0, -1, 5, 5]]
)
def test_an_area_that_is_none_is_a_mistake_in_the_configuration(wrong):
    with pytest.raises(Exception, match=r"no \[top, left, bottom, right\]"):
        config.FrameRow.model_validate({"path": "*", "lit_areas": wrong})


@pytest.mark.parametrize("rows", [16, 17])
@pytest.mark.parametrize(("order", "flipped"), [("TOP-DOWN", False), ("BOTTOM-UP", True)])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_pattern_is_told_from_the_top_of_the_picture(tmp_path, rows, order, flipped, offset):
    """ROWORDER, as Siril, N.I.N.A. and others write it; YBAYROFF is counted from there, too."""
    colours = np.array([["R", "G"], ["G", "B"]])
    y, x = np.indices((rows, 12))
    picture = colours[(y + offset) % 2, x % 2]
    values = np.select([picture == "R", picture == "B"], [3000, 700], 1500).astype(np.uint16)
    path = put(
        tmp_path / "one.fits", values[::-1].copy() if flipped else values,
        BAYERPAT="RGGB", ROWORDER=order, YBAYROFF=offset,
    )  # fmt: skip
    info = inspect_frame(path)
    written = fits.getdata(path)
    channel = np.tile(info.channel_index, (rows // 2 + 1, 6))[:rows]
    assert set(written[channel == 0]) == {3000}
    assert set(written[channel == 2]) == {700}
    assert set(written[(channel == 1) | (channel == 3)]) == {1500}


def test_an_order_of_rows_that_is_none_is_refused(tmp_path):
    path = put(tmp_path / "one.fits", np.zeros((4, 4), np.uint16), BAYERPAT="RGGB", ROWORDER="UP")
    with pytest.raises(calibdask.errors.CalibdaskError, match="'UP' is neither"):
        inspect_frame(path)


def test_flat_fields_with_overscan_through_files(tmp_path):
    """The whole way: cards, maps, table, and new frames that are calibrated with them."""
    rng = np.random.default_rng(3)
    rows, columns, over = 60, 96, 20
    y, x = np.indices((rows, columns))
    r2 = ((x - 47.5) ** 2 + (y - 29.5) ** 2) / (47.5**2 + 29.5**2)
    truth = 1 / (1 + 0.6 * r2)

    def frame(light):
        values = np.rint(512 + rng.normal(0, 3, (rows, columns + over)))
        values[:, :columns] += rng.poisson(light * truth)
        return values.astype(np.uint16)

    cards = {
        "INSTRUME": "c", "DATASEC": "[1:96,1:60]", "BIASSEC": "[97:116,1:60]", "SATURATE": 60000
    }  # fmt: skip
    for i in range(6):
        put(tmp_path / f"in/f{i}.fits", frame(8000), IMAGETYP="FLAT", EXPTIME=1.0, **cards)
        put(tmp_path / f"in/b{i}.fits", frame(0), IMAGETYP="BIAS", EXPTIME=0.0, **cards)
    put(tmp_path / "light/l.fits", frame(3000), IMAGETYP="LIGHT", EXPTIME=1.0, **cards)
    run = {"cluster": "serial", "report": False}
    result = calibdask.run(
        "flatfield",
        tmp_path / "in",
        tmp_path / "flat",
        overrides={"FlatField.block_size": 4},
        **run,
    )
    maps = read_product(tmp_path / "flat")
    ratio = maps.rows("flatfield/model")[:, :columns] / truth
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.005  # 0.34 rms with the overscan
    mask = maps.rows("flatfield/mask")
    assert (mask[:, columns:] == BORDER).all()
    assert not mask[:, :columns].any()
    row = result.tables["/sensor/flatfield"][0]
    assert (row["n_pixels"], row["n_flagged"]) == (rows * columns, 0)
    calibrated = calibdask.run(
        "calibrate-images", tmp_path / "light", tmp_path / "done",
        overrides={"CalibrateImages.flat": str(tmp_path / "flat")}, **run,
    )  # fmt: skip
    row = calibrated.tables["/sensor/calibrated"][0]
    assert (row["n_pixels"], row["n_good"], row["n_border"]) == (
        rows * columns, rows * columns, rows * over,
    )  # fmt: skip
    assert row["mean"] == pytest.approx(3000 + 512 / truth.mean(), rel=0.02)


@pytest.mark.parametrize("areas", [(), ((3, 2, 8, 9),), ((0, 0, 5, 4), (1, 7, 5, 10))])
def test_lit_pixels_are_counted_by_their_place(areas):
    sensor = replace(CAMERA.sensor, shape=(9, 11), lit_areas=areas)
    lit = sensor.lit(0, 9)
    counts = [np.count_nonzero(lit[row::2, column::2]) for row in (0, 1) for column in (0, 1)]
    np.testing.assert_array_equal(sensor.n_lit_by_place, counts)
    assert sensor.n_lit == np.count_nonzero(lit)
