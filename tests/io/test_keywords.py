"""Every header keyword that is read: declared once, documented, and each with its example."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from astropy.io import fits
from PIL import Image

from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io import fits_frames, frame_info, image_frames, raw
from calibdask.io.frame_info import FrameInfo
from calibdask.io.frames import inspect_frame
from calibdask.io.keywords import KEYWORDS, keyword_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "header_keywords.md"
BAYER = {"BAYERPAT": "RGGB"}
FOUR = {f"BLACKLV{i}": 10.0 + i for i in range(4)}

FITS = {
    "IMAGETYP": ({"IMAGETYP": "Dark Frame"}, "kind", "Dark Frame"),
    "OBSTYPE": ({"IMAGETYP": "  ", "OBSTYPE": "BIAS"}, "kind", "BIAS"),
    "MAKE": ({"MAKE": "Acme"}, "make", "Acme"),
    "INSTRUME": ({"INSTRUME": "Cam", "MODEL": "other"}, "model", "Cam"),
    "MODEL": ({"INSTRUME": "", "MODEL": "Cam"}, "model", "Cam"),
    "SERIALNO": ({"SERIALNO": 1234}, "serial_number", "1234"),
    "ISOSPEED": ({"ISOSPEED": 400, "ISO": 100}, "iso", 400),
    "ISO": ({"ISOSPEED": "", "ISO": 204800}, "iso", 204800),
    "GAIN": ({"GAIN": 120}, "gain_setting", 120.0),
    "OFFSET": ({"OFFSET": 0}, "offset_setting", 0.0),
    "BLKLEVEL": ({"BLKLEVEL": 50}, "offset_setting", 50.0),
    "READOUTM": ({"READOUTM": "High Gain"}, "readout_mode", "High Gain"),
    "EXPTIME": ({"EXPTIME": 0.0, "EXPOSURE": 3.0}, "exposure_s", 0.0),
    "EXPOSURE": ({"EXPTIME": " ", "EXPOSURE": 2.5}, "exposure_s", 2.5),
    "CCD-TEMP": ({"CCD-TEMP": -10.5}, "temperature_c", -10.5),
    "FILTER": ({"FILTER": "R "}, "filter", "R"),
    "LEVEL": ({"LEVEL": "pol45"}, "level", "pol45"),
    "PHOTONS": ({"PHOTONS": 12.5}, "photons", 12.5),
    "XBINNING": ({"XBINNING": 2, "YBINNING": 3}, "binning", (2, 3)),
    "YBINNING": ({"YBINNING": 3}, "binning", ()),
    "CCDSUM": ({"CCDSUM": "2 1"}, "binning", (2, 1)),
    "XORGSUBF": ({"XORGSUBF": 8, "YORGSUBF": 0}, "window", (8, 0)),
    "YORGSUBF": ({"XORGSUBF": 0, "YORGSUBF": 6}, "window", (0, 6)),
    "BUNIT": ({"BUNIT": "adu"}, "unit", "DN"),
    "DATE-OBS": ({"DATE-OBS": "2025-03-04T05:06:07"}, "time", "2025-03-04T05:06:07"),
    "TIME-OBS": (
        {"DATE-OBS": "04/03/98", "TIME-OBS": "05:06:07.5"}, "time", "1998-03-04T05:06:07.500000",
    ),
    "UT": ({"DATE-OBS": "2025-03-04", "TIME-OBS": "", "UT": "5:06:07"}, "time",
           "2025-03-04T05:06:07"),
    "BAYERPAT": (BAYER, "pattern", "RGGB"),
    "XBAYROFF": ({**BAYER, "XBAYROFF": 1.0}, "pattern", "GRBG"),
    "YBAYROFF": ({**BAYER, "YBAYROFF": "1"}, "pattern", "GBRG"),
    "CTYPE3": ({"CTYPE3": "RGB"}, "may_be_colours", False),  # an image of one plane is a frame
    "ROWORDER": ({**BAYER, "ROWORDER": "BOTTOM-UP"}, "pattern", "GBRG"),
    "TRIMSEC": ({"TRIMSEC": "[2:6,1:4]", "DATASEC": "[1:6,2:4]"}, "lit_areas", ((0, 1, 4, 6),)),
    "DATASEC": ({"TRIMSEC": "", "DATASEC": "[1:6,2:4]"}, "lit_areas", ((1, 0, 4, 6),)),
    "BIASSEC": ({"BIASSEC": "[5:6,1:4]"}, "lit_areas", ((0, 0, 4, 4),)),
    "BLACKLV0": ({"BLACKLV0": 7.5}, "black_level", (7.5,)),
    "BLACKLV1": ({**BAYER, **FOUR}, "black_level", (10.0, 11.0, 12.0, 13.0)),
    "BLACKLV2": ({**BAYER, **FOUR, "BLACKLV2": 99}, "black_level", (10.0, 11.0, 99.0, 13.0)),
    "BLACKLV3": ({**BAYER, **FOUR, "BLACKLV3": ""}, "black_level", ()),
    "SATURATE": ({"SATURATE": 60000.0, "WHITELEV": 1}, "white_level", 60000),
    "WHITELEV": ({"WHITELEV": 4095}, "white_level", 4095),
}  # fmt: skip
"""By keyword: cards, and what comes of them."""

MOSAIC = {
    "CFARepeatPatternDim": (33421, 3, 2, (2, 2)),
    "CFAPattern": (33422, 1, 4, bytes([0, 1, 1, 2])),
    "DNGVersion": (50706, 1, 4, bytes([1, 4, 0, 0])),
    "UniqueCameraModel": (50708, 2, 0, "Acme One"),
    "WhiteLevel": (50717, 3, 1, 4095),
}

EXIF = {
    "Make": ((271, 2, 0, "Acme"), "make", "Acme"),
    "Model": ((272, 2, 0, "One"), "model", "One"),
    "BodySerialNumber": ((42033, 2, 0, "A12"), "serial_number", "A12"),
    "CameraSerialNumber": ((50735, 2, 0, "B34"), "serial_number", "B34"),
    "ISOSpeedRatings": ((34855, 3, 1, 800), "iso", 800),
    "RecommendedExposureIndex": ((34866, 4, 1, 102400), "iso", 102400),
    "ISOSpeed": ((34867, 4, 1, 204800), "iso", 204800),
    "StandardOutputSensitivity": ((34865, 4, 1, 409600), "iso", 409600),
    "ExposureTime": ((33434, 5, 1, (1, 250)), "exposure_s", 0.004),
    "Temperature": ((37888, 10, 1, (-105, 10)), "temperature_c", -10.5),
    "DateTimeOriginal": ((36867, 2, 0, "2025:03:04 05:06:07"), "time", "2025-03-04T05:06:07"),
    "DateTime": ((306, 2, 0, "2025:03:04 05:06:08"), "time", "2025-03-04T05:06:08"),
    "CFAPattern": ((33422, 1, 4, bytes([2, 1, 1, 0])), "pattern", "BGGR"),
    "CFARepeatPatternDim": ((33421, 3, 2, (2, 2)), "pattern", "RGGB"),
    "CFAPlaneColor": ((50710, 1, 3, bytes([0, 1, 2])), "pattern", "RGGB"),
    "CFALayout": ((50711, 3, 1, 1), "pattern", "RGGB"),
    "ActiveArea": ((50829, 4, 4, (2, 4, 38, 60)), "lit_areas", ((2, 4, 38, 60),)),
    "BlackLevel": ((50714, 3, 1, 64), "black_level", (64.0,) * 4),
    "BlackLevelRepeatDim": ((50713, 3, 2, (1, 1)), "black_level", (0.0,) * 4),
    "WhiteLevel": ((50717, 3, 1, 4000), "white_level", 4000),
}
"""By tag of a DNG: its entry, and what comes of it."""

ZARR = {
    "kind": ("gain", "gain"), "make": ("Acme", "Acme"), "model": ("One", "One"),
    "serial_number": ("A12", "A12"), "iso": (100, 100), "gain_setting": (0, 0.0),
    "offset_setting": (10, 10.0), "readout_mode": ("fast", "fast"), "exposure_s": (0.5, 0.5),
    "temperature_c": (-10.0, -10.0), "filter": ("R", "R"), "level": ("pol45", "pol45"),
    "photons": (5.0, 5.0), "binning": ([2, 2], (2, 2)), "window": ([8, 4], (8, 4)),
    "unit": ("electron", "electron"), "time": ("2025-03-04T05:06:07", "2025-03-04T05:06:07"),
    "pattern": ("GBRG", "GBRG"), "black_level": (64, (64.0,)), "white_level": (4000, 4000),
    "bit_depth": (12, 12),
}  # fmt: skip


def test_the_page_of_the_documentation_is_what_the_code_declares():
    assert PAGE.read_text(encoding="utf-8") == keyword_page(), "python -m calibdask.io.keywords"


def test_each_keyword_has_an_example_and_each_field_is_one_of_a_frame():
    assert set(FITS) == {name for one in KEYWORDS.values() for name in one.fits}
    # What Pillow calls the tag that tifffile calls Temperature is tested with a PNG.
    tags = {name for one in KEYWORDS.values() for name in one.exif}
    assert set(EXIF) == tags - {"AmbientTemperature"}
    assert set(ZARR) == {name for one in KEYWORDS.values() for name in one.zarr}
    assert set(KEYWORDS) <= set(FrameInfo.__slots__)


def test_the_reader_asks_for_declared_keywords_only():
    """Cards go through `_Header.get`, which refuses others; tags of TIFF directories are read."""
    modules = (raw, image_frames, frame_info)
    source = "\n".join(Path(one.__file__).read_text(encoding="utf-8") for one in modules)
    asked = set(re.findall(r'\btags(?:\.get\(|\[)"(\w+)"', source))
    # How the pixels lie in the file, not what they are.
    layout = {
        "BitsPerSample", "Compression", "ExifTag", "ImageLength", "ImageWidth", "SampleFormat",
        "SamplesPerPixel", "StripByteCounts", "StripOffsets",
    }  # fmt: skip
    assert asked
    assert asked - layout <= {name for one in KEYWORDS.values() for name in one.exif}
    with pytest.raises(AssertionError, match="GAIN2 is read, but KEYWORDS does not say so"):
        fits_frames._Header({}).get("GAIN2")


@pytest.mark.parametrize("name", FITS)
def test_a_card_is_read(tmp_path, name):
    cards, field, expected = FITS[name]
    hdu = fits.PrimaryHDU(np.zeros((4, 6), np.uint16))
    hdu.header.update(cards)
    hdu.writeto(tmp_path / "one.fits")
    assert getattr(inspect_frame(tmp_path / "one.fits"), field) == expected
    fits.PrimaryHDU(np.zeros((4, 6), np.uint16)).writeto(tmp_path / "bare.fits")
    assert getattr(inspect_frame(tmp_path / "bare.fits"), field) in (None, "", (), False)


@pytest.mark.parametrize("name", EXIF)
def test_a_tag_is_read(tmp_path, name):
    entry, field, expected = EXIF[name]
    tags = {**MOSAIC, name: entry}
    more = [(*one, True) for one in tags.values()]
    frame = np.zeros((40, 60), np.uint16)  # LibRaw refuses small ones
    path = tmp_path / "one.dng"
    tifffile.imwrite(path, frame, photometric="cfa", extratags=more, metadata=None, software=False)
    assert getattr(inspect_frame(path), field) == expected


@pytest.mark.parametrize("name", ZARR)
def test_an_attribute_is_read(tmp_path, name):
    value, expected = ZARR[name]
    store = zarr.create_array(tmp_path / "one.zarr", shape=(4, 6), dtype="u2", chunks=(4, 6))
    store[...] = np.ones((4, 6), np.uint16)
    store.attrs[name] = value
    assert getattr(inspect_frame(tmp_path / "one.zarr"), name) == expected


def test_a_png_has_the_tags_of_exif(tmp_path):
    exif = Image.Exif()
    exif[271], exif[272] = "Acme", "One"
    inner = exif.get_ifd(34665)
    inner.update({34855: 65535, 34866: 102400, 33434: 0.25, 37888: -3.5, 42033: "A12"})
    path = tmp_path / "one.png"
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path, exif=exif)
    info = inspect_frame(path)
    told = info.camera, info.serial_number, info.iso, info.exposure_s, info.temperature_c
    assert told == ("Acme One", "A12", 102400, 0.25, -3.5)


@pytest.mark.parametrize("value", ["odd", 0.5])
def test_an_odd_offset_of_the_pattern_is_named(tmp_path, value):
    hdu = fits.PrimaryHDU(np.zeros((4, 6), np.uint16))
    hdu.header.update({"BAYERPAT": "RGGB", "XBAYROFF": value})
    hdu.writeto(tmp_path / "one.fits")
    message = rf"one\.fits: XBAYROFF is {value!r}, expected an integer number of pixels"
    with pytest.raises(CorruptedInput, match=message):
        inspect_frame(tmp_path / "one.fits")


@pytest.mark.parametrize("kind", ["CTYPE3", "last axis"])
def test_pictures_in_colour_are_no_frames(tmp_path, kind):
    if kind == "CTYPE3":
        hdu = fits.PrimaryHDU(np.zeros((3, 8, 10), np.uint16))
        hdu.header["CTYPE3"] = "RGB"
        hdu.writeto(tmp_path / "one.fits")
    else:
        fits.PrimaryHDU(np.zeros((8, 10, 3), np.uint16)).writeto(tmp_path / "one.fits")
        np.save(tmp_path / "one.npy", np.zeros((8, 10, 3), np.uint16))
        zarr.save_array(tmp_path / "one.zarr", np.ones((8, 10, 4), np.uint16))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WrongKind, match="is a picture in colour"):
            inspect_frame(path)
