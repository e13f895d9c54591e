from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
import zarr
from astropy.io import fits
from PIL import Image

from calibdask.errors import ConfigError, CorruptedInput, MissingInput, WrongKind
from calibdask.io import raw as raw_files
from calibdask.io.dng import DngHeader, write_dng
from calibdask.io.frame_info import FrameInfo
from calibdask.io.frames import FRAME_PATTERNS, inspect_frame, read_frame, read_frames

TIME = datetime(2025, 3, 4, 5, 6, 7)  # noqa: DTZ001  cameras know no zone
BLACK = (100, 110, 120, 130)


def pixels(shape, top=4095):
    return np.random.default_rng(1).integers(0, top + 1, shape).astype(np.uint16)


def dng(path, shape=(40, 60), pattern="RGGB", **more):
    black = BLACK if pattern else BLACK[:1]
    frame = pixels(shape)
    header = {"white_level": 4095, "iso": 800, "exposure_s": 1 / 250, "time": TIME, **more}
    write_dng(path, frame, DngHeader("Acme", "Acme One", pattern, black, **header))
    return frame


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG", ""])
@pytest.mark.parametrize("shape", [(40, 60), (41, 61), (33, 24)])
def test_libraw_opens_our_dng_pixel_by_pixel(tmp_path, pattern, shape):
    path = tmp_path / "one.dng"
    frame = dng(path, shape, pattern)
    with rawpy.imread(str(path)) as raw:
        theirs = raw.raw_image.copy()
        assert raw.white_level == 4095
        assert (raw.other.iso_speed, raw.other.timestamp) == (800, TIME)
        assert raw.other.shutter_speed == pytest.approx(1 / 250)
        if pattern:
            names = raw.color_desc.decode()
            spatial = {names[raw.raw_color(i // 2, i % 2)] + str(i) for i in range(4)}
            assert spatial == {colour + str(i) for i, colour in enumerate(pattern)}
            indices = [raw.raw_color(i // 2, i % 2) for i in range(4)]
            assert [raw.black_level_per_channel[index] for index in indices] == list(BLACK)
    np.testing.assert_array_equal(theirs, frame)


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG", ""])
@pytest.mark.parametrize("shape", [(40, 60), (41, 61)])
def test_without_libraw_the_same(tmp_path, pattern, shape):
    path = tmp_path / "one.dng"
    dng(path, shape, pattern, temperature_c=-10.5)
    strip = raw_files._Strips.of(path)
    assert (strip is not None) is bool(pattern)  # a DNG without filters goes through LibRaw
    by_libraw = raw_files._inspect_libraw(path, raw_files._raw_tags(path)[0])
    assert inspect_frame(path) == by_libraw
    assert by_libraw == FrameInfo(
        str(path), shape, "uint16", bit_depth=12, white_level=4095, make="Acme", model="Acme One",
        pattern=pattern, black_level=BLACK if pattern else BLACK[:1], iso=800,
        exposure_s=0.004, time="2025-03-04T05:06:07", temperature_c=-10.5,
    )  # fmt: skip
    with raw_files._libraw(path) as raw:
        theirs = raw.raw_image.copy()
    np.testing.assert_array_equal(read_frame(path), theirs)


def test_what_libraw_changes_is_left_to_it(tmp_path):
    """A table of the linear values: LibRaw applies it, so the strip must not be read as it is."""
    table = (np.arange(4096) // 2 + 7).astype(np.uint16)
    frame = pixels((40, 60))
    path = tmp_path / "table.dng"
    more = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 0, "Acme One", True),
        (50712, 3, 4096, tuple(table.tolist()), True), (50717, 3, 1, 4095, True),
    ]  # fmt: skip
    tifffile.imwrite(path, frame, photometric="cfa", extratags=more, metadata=None)
    assert raw_files._Strips.of(path) is None
    np.testing.assert_array_equal(read_frame(path), table[frame])


@pytest.mark.parametrize(
    ("area", "pattern", "black"),
    [
        ((2, 4, 38, 60), "RGGB", BLACK),
        # The row above an RGGB pattern's first one is its second one. (LibRaw counts the black
        # levels from where it lets the visible part begin, which is an even row: not checked.)
        ((3, 4, 39, 60), "GBRG", None),
        ((3, 5, 39, 59), "BGGR", None),
    ],
)
def test_visible_part_does_not_move_the_pattern(tmp_path, area, pattern, black):
    """With masked borders LibRaw counts the pattern from the visible part, we from the corner."""
    frame = pixels((40, 60))
    path = tmp_path / "border.dng"
    more = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 0, "Acme One", True),
        (50713, 3, 2, (2, 2), True), (50714, 3, 4, BLACK, True), (50717, 3, 1, 4095, True),
        (50829, 4, 4, area, True),
    ]  # fmt: skip
    tifffile.imwrite(path, frame, photometric="cfa", extratags=more, metadata=None)
    info = inspect_frame(path)
    assert (info.shape, info.pattern) == ((40, 60), pattern)
    if black is not None:
        assert info.black_level == black
    np.testing.assert_array_equal(read_frame(path), frame)


def write_strips(path, frame, rows):
    more = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 0, "Acme One", True),
        (50717, 3, 1, 4095, True),
    ]  # fmt: skip
    tifffile.imwrite(
        path, frame, photometric="cfa", extratags=more, metadata=None, rowsperstrip=rows
    )


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_strips_one_behind_the_other_are_one_piece(tmp_path, rows):
    frame = pixels((40, 60))
    path = tmp_path / "strips.dng"
    write_strips(path, frame, rows)
    assert len(raw_files._Strips.of(path).runs) == 1
    np.testing.assert_array_equal(read_frame(path), frame)
    with rawpy.imread(str(path)) as raw:
        np.testing.assert_array_equal(raw.raw_image, frame)


@pytest.mark.parametrize("rows", [1, 7])
def test_strips_in_another_order(tmp_path, rows):
    """LibRaw reads on behind the first strip, whatever the directory says of the others."""
    frame = pixels((40, 60))
    path = tmp_path / "strips.dng"
    write_strips(path, frame, rows)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["StripOffsets"]
        place, size = tag.valueoffset, {3: 2, 4: 4}[tag.dtype]
    whole = bytearray(path.read_bytes())
    first, second = whole[place : place + size], whole[place + size : place + 2 * size]
    whole[place : place + 2 * size] = second + first
    path.write_bytes(whole)
    swapped = np.concatenate([frame[rows : 2 * rows], frame[:rows], frame[2 * rows :]])
    np.testing.assert_array_equal(read_frame(path), swapped)


def test_big_endian_dng(tmp_path):
    frame = pixels((40, 60))
    path = tmp_path / "big.dng"
    more = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([2, 1, 1, 0]), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 0, "Acme One", True),
        (50717, 3, 1, 4095, True),
    ]  # fmt: skip
    tifffile.imwrite(path, frame, photometric="cfa", extratags=more, metadata=None, byteorder=">")
    assert raw_files._Strips.of(path).byte_order == ">"
    ours = read_frame(path)
    assert ours.dtype.isnative
    np.testing.assert_array_equal(ours, frame)
    with rawpy.imread(str(path)) as raw:
        np.testing.assert_array_equal(raw.raw_image, frame)
    assert inspect_frame(path).pattern == "BGGR"


def test_channels_are_numbered_as_libraw_does(tmp_path):
    for pattern in ("RGGB", "BGGR", "GRBG", "GBRG"):
        path = tmp_path / f"{pattern}.dng"
        dng(path, pattern=pattern)
        with rawpy.imread(str(path)) as raw:
            np.testing.assert_array_equal(inspect_frame(path).channel_index, raw.raw_pattern)
    assert inspect_frame_of(tmp_path / "m.npy", pixels((4, 4))).channel_index.tolist() == [
        [0, 0],
        [0, 0],
    ]


def inspect_frame_of(path, array):
    np.save(path, array)
    return inspect_frame(path)


def test_a_dng_without_exif(tmp_path):
    path = tmp_path / "bare.dng"
    dng(path, iso=None, exposure_s=None, time=None)
    info = inspect_frame(path)
    assert (info.iso, info.exposure_s, info.time) == (None, None, "")
    assert info == raw_files._inspect_libraw(path, raw_files._raw_tags(path)[0])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (DngHeader("A", "B", "RGBG", BLACK), "RGBG"),
        (DngHeader("A", "B", "RGGB", (1,)), "1 black levels"),
        (DngHeader("A", "B", "", BLACK), "4 black levels"),
    ],
)
def test_a_dng_that_makes_no_sense(tmp_path, header, message):
    with pytest.raises(ConfigError, match=message):
        write_dng(tmp_path / "one.dng", pixels((40, 60)), header)


def test_a_camera_of_1997(shared_sensor):
    path = shared_sensor / "kodak_dc50.kdc"
    info = inspect_frame(path)
    assert info.camera == "Eastman Kodak Company Kodak Digital Science DC50 Zoom Camera"
    assert (info.shape, info.pattern, info.bit_depth) == ((512, 768), "GRBG", 14)
    assert (info.iso, info.exposure_s, info.time) == (84, 0.00435, "1997-04-23T08:00:47")
    with rawpy.imread(str(path)) as raw:
        np.testing.assert_array_equal(read_frame(path), raw.raw_image)
        assert list(info.black_level) == raw.black_level_per_channel
        assert info.white_level == raw.white_level


def test_a_camera_of_1997_cut_short(shared_sensor, tmp_path):
    whole = (shared_sensor / "kodak_dc50.kdc").read_bytes()
    path = tmp_path / "short.kdc"
    path.write_bytes(whole[:-1])
    for look in (inspect_frame, read_frame):
        with pytest.raises(CorruptedInput, match=r"short\.kdc: LibRaw cannot read it"):
            look(path)


@pytest.mark.parametrize("name", ["one.png", "one.tif"])
def test_damage_among_compressed_pixels_shows_in_reading(tmp_path, name):
    frame, path = pixels((200, 300)), tmp_path / name
    if name == "one.png":
        Image.fromarray(frame).save(path)
    else:
        tifffile.imwrite(path, frame, compression="zlib")
    broken = bytearray(path.read_bytes())
    middle = len(broken) // 2
    broken[middle : middle + 200] = bytes(200)
    path.write_bytes(broken)
    inspect_frame(path)
    with pytest.raises(CorruptedInput, match=name):
        read_frame(path)


def test_pixels_that_fail_their_checksum_are_not_read(tmp_path):
    frame = pixels((40, 60))
    Image.fromarray(frame).save(tmp_path / "one.png")
    fits.PrimaryHDU(frame).writeto(tmp_path / "one.fits", checksum=True)
    fits.PrimaryHDU(frame).writeto(tmp_path / "one.fits.gz")
    content = (tmp_path / "one.png").read_bytes()
    start = content.index(b"IDAT")
    # The data are those of another image: they decode, and only the checksum tells.
    other = zlib.compress(b"".join(b"\0" + row.tobytes() for row in (frame ^ 1).byteswap()))
    length = int.from_bytes(content[start - 4 : start])
    swapped = content[: start - 4] + len(other).to_bytes(4) + b"IDAT" + other
    (tmp_path / "other.png").write_bytes(swapped + content[start + 4 + length :])
    content = bytearray((tmp_path / "one.fits").read_bytes())
    content[2880 + 7] ^= 1
    (tmp_path / "other.fits").write_bytes(content)
    packed = bytearray((tmp_path / "one.fits.gz").read_bytes())
    packed[-8] ^= 1  # the checksum itself: the image is sound, as far as anybody can tell
    (tmp_path / "other.fits.gz").write_bytes(packed)
    for name in ("png", "fits", "fits.gz"):
        assert np.array_equal(read_frame(tmp_path / f"one.{name}"), frame)
        inspect_frame(tmp_path / f"other.{name}")
        with pytest.raises(CorruptedInput, match=f"other.{name}"):
            read_frame(tmp_path / f"other.{name}")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_without_some_of_its_strips_is_refused(tmp_path, compression):
    path = tmp_path / "one.tif"
    tifffile.imwrite(path, pixels((40, 60)), rowsperstrip=8, compression=compression)
    assert inspect_frame(path).shape == (40, 60)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = list(tiff.pages[0].tags["StripByteCounts"].value)
        counts[3] = 0
        tiff.pages[0].tags["StripByteCounts"].overwrite(counts)
    for look in (inspect_frame, read_frame):
        with pytest.raises(CorruptedInput, match="4 of 5 strips"):
            look(path)


def test_files_of_one_camera_are_decoded_once_for_their_metadata(tmp_path, monkeypatch):
    """LibRaw tells levels only after decoding, which would take as long as the whole job."""
    decoded = []
    inspect = raw_files._inspect_libraw
    monkeypatch.setattr(
        raw_files, "_inspect_libraw", lambda path, tags: decoded.append(path) or inspect(path, tags)
    )
    for number in range(6):
        iso = 100 if number < 4 else 200
        path = tmp_path / f"{number}.dng"
        dng(path, pattern="", iso=iso, exposure_s=number + 1.0, temperature_c=float(number))
    dng(tmp_path / "size.dng", (30, 40), pattern="")
    dng(tmp_path / "silent.dng", pattern="", iso=None)
    (tmp_path / "other").mkdir()
    dng(tmp_path / "other" / "0.dng", pattern="", iso=100)
    paths = sorted(tmp_path.rglob("*.dng"))
    infos = {path: inspect_frame(path) for path in paths}
    assert [path.stem for path in decoded] == ["0", "4", "0", "silent", "size"]
    for path, info in infos.items():
        assert info == inspect(path, raw_files._raw_tags(path)[0])
    assert (infos[paths[3]].exposure_s, infos[paths[3]].temperature_c) == (4.0, 3.0)
    again = len(decoded)
    dng(
        tmp_path / "more.dng", pattern="", iso=100
    )  # the folder changed: nothing is taken for known
    inspect_frame(paths[0])
    assert len(decoded) == again + 1


def test_emva_png(shared_sensor):
    path = shared_sensor / "emva1288_001_ccd_12bit" / "images" / "b_000_snap_001.png"
    info = inspect_frame(path)
    assert (info.shape, info.dtype, info.pattern) == ((480, 640), "uint16", "")
    np.testing.assert_array_equal(read_frame(path), np.asarray(Image.open(path)))


def test_fits(tmp_path):
    frame = pixels((31, 20), 65535)
    path = tmp_path / "one.fits"
    hdu = fits.PrimaryHDU(frame)
    hdu.header.update(
        {
            "INSTRUME": "Cam", "EXPTIME": 0.25, "CCD-TEMP": -20.5, "BAYERPAT": "RGGB",
            "XBAYROFF": 1, "ISOSPEED": 400, "DATE-OBS": "2025-03-04T05:06:07.5",
            "SATURATE": 60000, "IMAGETYP": "dark",
        }
    )  # fmt: skip
    hdu.writeto(path)
    info = inspect_frame(path)
    assert (info.shape, info.dtype, info.n_frames) == ((31, 20), "uint16", 1)
    assert (info.pattern, info.iso, info.exposure_s, info.temperature_c) == (
        "GRBG",
        400,
        0.25,
        -20.5,
    )
    assert (info.white_level, info.time, info.kind) == (60000, "2025-03-04T05:06:07.500000", "dark")
    ours = read_frame(path)
    assert ours.dtype == np.uint16
    assert ours.dtype.isnative
    np.testing.assert_array_equal(ours, frame)


def test_fits_cube_and_floats(tmp_path):
    cube = pixels((3, 8, 10)).astype(np.float32) / 3
    for name, data, dtype in (
        ("f4", cube, "float32"), ("f8", cube.astype(float), "float64"),
        ("i4", (cube * 3).astype(np.int32), "float64"),
        ("u1", (cube / 20).astype(np.uint8), "uint16"),
        ("i2", (cube - 500).astype(np.int16), "float64"), ("u2", cube.astype(np.uint16), "uint16"),
    ):  # fmt: skip
        path = tmp_path / f"{name}.fits"
        fits.PrimaryHDU(data).writeto(path)
        info = inspect_frame(path)
        assert (info.n_frames, info.shape, info.dtype) == (3, (8, 10), dtype), name
        for index, frame in enumerate(read_frames(path, 0, 3)):
            assert frame.dtype == dtype, name
            np.testing.assert_array_equal(frame, data[index])
        np.testing.assert_array_equal(read_frame(path, 2), data[2])


@pytest.mark.parametrize("cards", [{"BZERO": -128}, {"BSCALE": 0.5}, {"BZERO": 1000}])
@pytest.mark.parametrize("bits", [8, 16])
def test_fits_of_scaled_numbers(tmp_path, cards, bits):
    path = tmp_path / "one.fits"
    hdu = fits.PrimaryHDU(pixels((8, 10), 100).astype(np.uint8 if bits == 8 else np.int16))
    hdu.writeto(path)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as file:
        file[0].header.update(cards)
    with fits.open(path) as file:
        wanted = np.array(file[0].data)
    frame = read_frame(path)
    assert frame.dtype == inspect_frame(path).dtype
    np.testing.assert_array_equal(frame, wanted)


def test_compressed_fits(tmp_path):
    frame = pixels((64, 50))
    path = tmp_path / "one.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(frame)]).writeto(path)
    assert inspect_frame(path).shape == (64, 50)
    np.testing.assert_array_equal(read_frame(path), frame)
    hidden = tmp_path / "compressed.fits"
    hidden.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_frame(hidden), frame)
    zipped = tmp_path / "one.fits.gz"
    fits.PrimaryHDU(frame).writeto(zipped)
    np.testing.assert_array_equal(read_frame(zipped), frame)


def test_png_and_tiff(tmp_path):
    frame = pixels((20, 31), 65535)
    Image.fromarray(frame).save(tmp_path / "one.png")
    Image.fromarray((frame >> 8).astype(np.uint8)).save(tmp_path / "eight.png")
    tifffile.imwrite(tmp_path / "one.tif", frame, compression="zlib")
    tifffile.imwrite(tmp_path / "three.TIFF", np.stack([frame, frame // 2, frame // 3]),
                     photometric="minisblack", metadata=None)  # fmt: skip
    for name in ("one.png", "one.tif"):
        info = inspect_frame(tmp_path / name)
        assert (info.shape, info.dtype, info.n_frames) == ((20, 31), "uint16", 1)
        np.testing.assert_array_equal(read_frame(tmp_path / name), frame)
    eight = read_frame(tmp_path / "eight.png")
    assert eight.dtype == np.uint16
    np.testing.assert_array_equal(eight, frame >> 8)
    assert inspect_frame(tmp_path / "three.TIFF").n_frames == 3
    np.testing.assert_array_equal(read_frame(tmp_path / "three.TIFF", 2), frame // 3)


def test_eight_bits_tell_their_saturation(tmp_path):
    frame = pixels((20, 31), 255).astype(np.uint8)
    Image.fromarray(frame).save(tmp_path / "one.png")
    tifffile.imwrite(tmp_path / "one.tif", frame)
    fits.PrimaryHDU(frame).writeto(tmp_path / "one.fits")
    np.save(tmp_path / "one.npy", frame)
    for name in ("one.png", "one.tif", "one.fits", "one.npy"):
        info = inspect_frame(tmp_path / name)
        assert (info.dtype, info.bit_depth, info.white_level) == ("uint16", 8, 255), name
        np.testing.assert_array_equal(read_frame(tmp_path / name), frame)
        with pytest.raises(CorruptedInput, match="has no frames 1 to 1"):
            read_frame(tmp_path / name, 1)


def test_npy(tmp_path):
    stack = pixels((5, 6, 7))
    info = inspect_frame_of(tmp_path / "stack.npy", stack)
    assert (info.n_frames, info.shape, info.dtype) == (5, (6, 7), "uint16")
    got = list(read_frames(tmp_path / "stack.npy", 1, 4))
    np.testing.assert_array_equal(got, stack[1:4])
    assert inspect_frame_of(tmp_path / "f.npy", stack[0] / 3).dtype == "float64"
    with pytest.raises(CorruptedInput, match="no frames 4 to 5"):
        list(read_frames(tmp_path / "stack.npy", 4, 6))
    with pytest.raises(WrongKind, match="complex"):
        inspect_frame_of(tmp_path / "c.npy", stack * 1j)
    with pytest.raises(WrongKind, match="4 axes"):
        inspect_frame_of(tmp_path / "d.npy", stack[None])
    with pytest.raises(WrongKind, match="no pixel"):
        inspect_frame_of(tmp_path / "e.npy", stack[:, :0])


def test_npy_is_never_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(CorruptedInput, match=r"o\.npy: no array of numbers"):
        inspect_frame(tmp_path / "o.npy")


def test_zarr_stack(tmp_path):
    stack = pixels((7, 20, 30))
    group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w")
    array = group.create_array("frames", shape=stack.shape, chunks=(3, 10, 30), dtype="u2")
    array[:] = stack
    group.attrs.update(
        {
            "iso": 200, "exposure_s": 0.5, "kind": "gain", "level": "3", "pattern": "BGGR",
            "black_level": [1, 2, 3, 4], "bit_depth": 14, "model": "Cam", "photons": 12.5,
            "temperature_c": -5, "time": "2025-03-04T05:06:07",
        }
    )  # fmt: skip
    info = inspect_frame(tmp_path / "s.zarr")
    assert info == FrameInfo(
        str(tmp_path / "s.zarr"), (20, 30), "uint16", n_frames=7, bit_depth=14, white_level=16383,
        model="Cam", pattern="BGGR", black_level=(1, 2, 3, 4), iso=200, exposure_s=0.5,
        time="2025-03-04T05:06:07", temperature_c=-5, kind="gain", level="3", photons=12.5,
    )  # fmt: skip
    np.testing.assert_array_equal(list(read_frames(tmp_path / "s.zarr", 2, 7)), stack[2:7])
    group.attrs["black_level"] = [1, 2]
    with pytest.raises(CorruptedInput, match=r"black_level \[1, 2\] is not four numbers"):
        inspect_frame(tmp_path / "s.zarr")


def test_zarr_arrays_that_are_no_stack(tmp_path):
    plain = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(3, 8, 9), chunks=(1, 8, 9), dtype="u2"
    )
    plain[:] = pixels((3, 8, 9))
    assert inspect_frame(tmp_path / "a.zarr").n_frames == 3
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("x", shape=(3, 8, 9), dtype="u2")
    group.create_array("y", shape=(3, 8, 9), dtype="u2")
    with pytest.raises(WrongKind, match="none of its arrays \\(x, y\\) is named 'frames'"):
        inspect_frame(tmp_path / "g.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(CorruptedInput, match="cannot be opened as a Zarr store"):
        inspect_frame(tmp_path / "empty.zarr")


@pytest.fixture
def one_of_each(tmp_path):
    frame = pixels((200, 300))
    dng(tmp_path / "one.dng", (200, 300))
    fits.PrimaryHDU(frame).writeto(tmp_path / "one.fits")
    Image.fromarray(frame).save(tmp_path / "one.png")
    tifffile.imwrite(tmp_path / "one.tif", frame)
    np.save(tmp_path / "one.npy", frame)
    return tmp_path


@pytest.mark.parametrize("name", ["one.dng", "one.fits", "one.png", "one.tif", "one.npy"])
@pytest.mark.parametrize("fraction", [0, 0.0001, 0.002, 0.5, 0.999])
def test_a_file_cut_short_is_told_before_its_pixels_are_read(one_of_each, name, fraction):
    path = one_of_each / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    for look in (inspect_frame, read_frame):
        with pytest.raises((CorruptedInput, WrongKind), match=name):
            look(path)


@pytest.mark.parametrize("name", ["one.dng", "one.fits", "one.png", "one.tif", "one.npy"])
def test_no_rubbish_gives_a_traceback(one_of_each, name):
    """Bytes of the head overwritten at random: an answer or an error of ours, nothing else."""
    path = one_of_each / name
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(150):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 700), 4):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            info = inspect_frame(path)
            if info.shape[0] * info.shape[1] < 1e7:
                read_frame(path)
        except (CorruptedInput, MissingInput):  # WrongKind is a MissingInput
            continue


def test_what_is_no_frame(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "colour.png")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(WrongKind, match="is read when its images are given"):
        inspect_frame(tmp_path / "EMVA1288_Data.txt")
    for name in ("colour.png", "colour.tif", "empty.fits", "notes.txt"):
        with pytest.raises(WrongKind, match=name):
            inspect_frame(tmp_path / name)
    (tmp_path / "text.nef").write_text("nothing" * 100)
    with pytest.raises(CorruptedInput, match=r"text\.nef: LibRaw does not know this"):
        inspect_frame(tmp_path / "text.nef")
    for name in ("gone.dng", "gone.nef", "gone.png", "gone.npy", "gone.fits", "gone.zarr"):
        with pytest.raises(MissingInput, match=f"{name}: no such file"):
            inspect_frame(tmp_path / name)


def test_patterns_find_frames_of_any_case_at_any_depth(tmp_path):
    deep = tmp_path / "images" / "gain"
    deep.mkdir(parents=True)
    for name in ("a.DNG", "b.nef", "c.Fits", "d.fits.GZ", "e.fit.gz", "f.jpg", "g.txt", "h.gz"):
        (deep / name).touch()
    found = {path.name for pattern in FRAME_PATTERNS for path in tmp_path.glob(pattern)}
    # A picture is looked at to say that it is none.
    assert found == {"a.DNG", "b.nef", "c.Fits", "d.fits.GZ", "e.fit.gz", "f.jpg"}


def test_frames_outlive_their_file(tmp_path):
    """LibRaw's memory goes with its file: what we give must be a copy, or the process dies."""
    dng(tmp_path / "one.dng", pattern="")
    code = (
        "import sys; from calibdask.io.frames import read_frame\n"
        "kept = [read_frame(sys.argv[1]) for _ in range(20)]\n"
        "print(sum(int(one.sum()) for one in kept))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one.dng")],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert int(done.stdout) == 20 * int(pixels((40, 60)).sum())
    assert Path(tmp_path / "one.dng").exists()


def directory_of(path):
    """Return the places of a TIFF file's header and first directory, with the link behind it."""
    with tifffile.TiffFile(path) as tiff:
        places = [tag.offset for tag in tiff.pages.first.tags]
    return [*range(8), *range(min(places) - 2, max(places) + 16)]


@pytest.mark.parametrize(
    "how", [{"rowsperstrip": 8}, {"rowsperstrip": 8, "compression": "zlib"}], ids=["plain", "zlib"]
)
def test_no_flipped_bit_of_a_tiff_directory_gives_another_kind_of_file_or_asks_for_memory(
    tmp_path, how
):
    path = tmp_path / "one.tif"
    frame = pixels((24, 32))
    tifffile.imwrite(path, frame, **how)
    sound = path.read_bytes()
    seen = set()
    tracemalloc.start()
    try:
        for place in directory_of(path):
            for bit in (0, 3, 7):
                damaged = bytearray(sound)
                damaged[place] ^= 1 << bit
                path.write_bytes(damaged)
                try:  # of another kind it must not seem: then it would be left out
                    found = inspect_frame(path)
                    (again,) = read_frames(path, 0, found.n_frames)
                except CorruptedInput:
                    seen.add("refused")
                else:
                    seen.add("read")
                    assert again.shape == frame.shape
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == {"refused", "read"}
    assert peak < 1 << 24  # the file has 2 KB; a flipped bit of its width asks for 100 GB


def test_directories_of_a_tiff_that_are_linked_in_a_circle_are_refused(tmp_path):
    path = tmp_path / "one.tif"
    tifffile.imwrite(path, pixels((24, 32)))
    content = bytearray(path.read_bytes())
    link = max(place for place in directory_of(path)) - 3
    content[link : link + 4] = content[4:8]
    path.write_bytes(content)
    with pytest.raises(CorruptedInput, match="linked in a circle"):
        inspect_frame(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_sound_picture_in_colour_is_of_another_kind_and_a_damaged_frame_is_none(
    tmp_path, compression
):
    path = tmp_path / "one.tif"
    tifffile.imwrite(path, pixels((8, 8, 3)), photometric="rgb", compression=compression)
    with pytest.raises(WrongKind):
        inspect_frame(path)
    tifffile.imwrite(path, pixels((24, 32)), compression=compression)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["BitsPerSample"].overwrite(1)  # pixels of type bool
    with pytest.raises(CorruptedInput, match="take 96 bytes by its directory"):
        inspect_frame(path)


def test_a_dng_with_colours_of_no_sensor_is_damaged(tmp_path):
    path = tmp_path / "one.dng"
    dng(path)
    content = path.read_bytes()
    assert content.count(b"\x00\x01\x01\x02") == 1  # the pattern
    path.write_bytes(content.replace(b"\x00\x01\x01\x02", b"\x00\x01\x00\x02"))
    with pytest.raises(CorruptedInput, match="colours RGRB"):
        inspect_frame(path)
