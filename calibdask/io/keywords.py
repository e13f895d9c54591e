"""What the headers of frames say: every keyword that is read, its meaning and its effect.

The readers of `calibdask.io.frames` ask for keywords by this table only, and
``docs/reference/header_keywords.md`` is written from it (``python -m calibdask.io.keywords``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["KEYWORDS", "Keyword", "header_text", "keyword_page", "stated"]


@dataclass(frozen=True, slots=True)
class Keyword:
    """One thing that a file may say about its frames.

    Attributes
    ----------
    meaning : str
        What it is.
    effect : str
        What follows from it.
    fits : tuple of str
        FITS keywords; the first one that holds a usable value counts.
    exif : tuple of str
        Tags of a TIFF directory and of its EXIF directory (raw files, DNG, TIFF, PNG).
    zarr : tuple of str
        Attributes of a Zarr array or of its group.
    """

    meaning: str
    effect: str
    fits: tuple[str, ...] = ()
    exif: tuple[str, ...] = ()
    zarr: tuple[str, ...] = ()


_ONE_IN_RUN = "All frames of a run have one."
_ONE = "All frames of a run have one; products of another are refused."
_STACK = "Frames of another one are another stack"

KEYWORDS: Final[dict[str, Keyword]] = {
    "kind": Keyword(
        "What the frame was taken for",
        "The job takes the kinds it needs. A type that is not known is left out by name; a frame"
        " that states none is taken for the job's own kind.",
        ("IMAGETYP", "OBSTYPE"),
        zarr=("kind",),
    ),
    "make": Keyword("Maker of the camera", _ONE, ("MAKE",), ("Make",), ("make",)),
    "model": Keyword("The camera", _ONE, ("INSTRUME", "MODEL"), ("Model",), ("model",)),
    "serial_number": Keyword(
        "Serial number of the camera",
        _ONE,
        ("SERIALNO",),
        ("BodySerialNumber", "CameraSerialNumber"),
        ("serial_number",),
    ),
    "iso": Keyword(
        "ISO speed; where EXIF has 65535, the tags for larger ones tell it",
        f"{_STACK}; maps are made for each.",
        ("ISOSPEED", "ISO"),
        ("ISOSpeedRatings", "RecommendedExposureIndex", "ISOSpeed", "StandardOutputSensitivity"),
        ("iso",),
    ),
    "gain_setting": Keyword(
        "Setting of the amplifier, as the driver counts it",
        f"{_STACK}; maps are made for each, as for ISO speeds.",
        ("GAIN",),
        zarr=("gain_setting",),
    ),
    "offset_setting": Keyword(
        "Setting of the offset",
        f"{_STACK}; maps are made for each, as for ISO speeds.",
        ("OFFSET", "BLKLEVEL"),
        zarr=("offset_setting",),
    ),
    "readout_mode": Keyword(
        "Mode of the readout",
        f"{_STACK}; maps are made for each, as for ISO speeds.",
        ("READOUTM",),
        zarr=("readout_mode",),
    ),
    "exposure_s": Keyword(
        "Time of exposure in s",
        f"{_STACK}, except of bias frames; exposures within Frames.exposure_tolerance are one,"
        " their mean.",
        ("EXPTIME", "EXPOSURE"),
        ("ExposureTime",),
        ("exposure_s",),
    ),
    "temperature_c": Keyword(
        "Temperature of the sensor in degrees Celsius",
        f"{_STACK} where they are dark frames and differ by more than Frames.temperature_step_c;"
        " dark current of another temperature is refused.",
        ("CCD-TEMP",),
        ("Temperature", "AmbientTemperature"),
        ("temperature_c",),
    ),
    "filter": Keyword(
        "Filter in front of the sensor",
        f"{_STACK} where they see light; the flat field of another filter is refused.",
        ("FILTER",),
        zarr=("filter",),
    ),
    "level": Keyword("Name of the illumination", f"{_STACK}.", ("LEVEL",), zarr=("level",)),
    "photons": Keyword(
        "Mean number of photons that a pixel received",
        f"{_STACK}; gives the quantum efficiency (EMVA 1288).",
        ("PHOTONS",),
        zarr=("photons",),
    ),
    "binning": Keyword(
        "Pixels read as one, along columns and rows",
        _ONE,
        ("XBINNING", "YBINNING", "CCDSUM"),
        zarr=("binning",),
    ),
    "window": Keyword(
        "First column and row of the part of the sensor that was read",
        _ONE,
        ("XORGSUBF", "YORGSUBF"),
        zarr=("window",),
    ),
    "unit": Keyword(
        "Unit of the values; ADU, DN and counts are one",
        f"{_ONE} Another one than DN is told.",
        ("BUNIT",),
        zarr=("unit",),
    ),
    "time": Keyword(
        "When the frame was taken, by the camera's clock",
        "Order of the frames; first and last frame of a product. A date without a time of day is"
        " completed by TIME-OBS or UT.",
        ("DATE-OBS", "TIME-OBS", "UT"),
        ("DateTimeOriginal", "DateTime"),
        ("time",),
    ),
    "pattern": Keyword(
        "Colours of the first 2 x 2 pixels; XBAYROFF and YBAYROFF shift it, ROWORDER turns it over",
        f"Each channel is calibrated by itself. {_ONE}",
        ("BAYERPAT", "XBAYROFF", "YBAYROFF", "ROWORDER"),
        ("CFAPattern", "CFARepeatPatternDim", "CFAPlaneColor", "CFALayout"),
        ("pattern",),
    ),
    "may_be_colours": Keyword(
        "What the third axis of an image counts",
        "RGB: a picture in colour, which is left out. Otherwise planes are frames; three of them"
        " only with Frames.planes.",
        ("CTYPE3",),
    ),
    "lit_areas": Keyword(
        "Where light falls; those of amplifiers end with a letter or a number",
        f"Masked borders and overscan enter no fit, mean and count. {_ONE_IN_RUN}",
        ("TRIMSEC", "DATASEC", "BIASSEC"),
        ("ActiveArea",),
    ),
    "black_level": Keyword(
        "Black level in DN: one, or four in the order of the pattern",
        "Subtracted where there is neither a bias map nor bias frames.",
        ("BLACKLV0", "BLACKLV1", "BLACKLV2", "BLACKLV3"),
        ("BlackLevel", "BlackLevelRepeatDim"),
        ("black_level",),
    ),
    "white_level": Keyword(
        "Value in DN from which a pixel is saturated",
        "Saturated values enter no fit. Where pixels pile up below it, that counts instead, and is"
        " told; Stacks.saturation_dn counts before both.",
        ("SATURATE", "WHITELEV"),
        ("WhiteLevel",),
        ("white_level",),
    ),
    "bit_depth": Keyword(
        "Bits of the converter",
        f"Saturation, where nothing else tells it. {_ONE_IN_RUN}",
        zarr=("bit_depth",),
    ),
}
"""By attribute of `calibdask.io.frame_info.FrameInfo`."""


def header_text(value: Any) -> str | None:
    """Return the text of a header value; None where it is blank or undefined."""
    if not isinstance(value, (str, int, float)):
        return None
    return str(value).strip("\0 ") or None


def stated[T](
    header: Mapping[str, Any], names: tuple[str, ...], read: Callable[[Any], T | None]
) -> T | None:
    """Return the first usable value that a header has under some names.

    Parameters
    ----------
    header : mapping
        Values by keyword.
    names : tuple of str
        Keywords, the first one that holds a usable value counts.
    read : callable
        Gives the value, or None where it says nothing: a blank card is passed over.
    """
    return next((value for name in names if (value := read(header.get(name))) is not None), None)


_HEAD: Final = """# Header keywords

Every keyword, tag and attribute that calibdask reads from a frame, and what it does with it. (This
page is written by `python -m calibdask.io.keywords` from the table in that file.)

Several keywords of one format are alternatives: the first one with a usable value counts, and a
blank card is passed over. (XBINNING and YBINNING, XORGSUBF and YORGSUBF belong together.) What the
section `Frames` of the configuration says counts before what a file says. NumPy arrays (`.npy`) say
nothing. Products of other jobs are compared with the frames in what both state; `Frames.may_differ`
accepts a difference.

| What | FITS | TIFF, DNG, EXIF | Zarr | Effect |
|---|---|---|---|---|"""


def keyword_page() -> str:
    """Return the page of the documentation, in Markdown."""
    lines = [_HEAD]
    for one in KEYWORDS.values():
        names = (", ".join(f"`{name}`" for name in of) for of in (one.fits, one.exif, one.zarr))
        lines.append(f"| {' | '.join((one.meaning, *names, one.effect))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "reference" / "header_keywords.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(keyword_page(), encoding="utf-8")
