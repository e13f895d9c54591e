"""Options of the sensor calibrations: one YAML section per job, shared ones beside them."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import model_validator

from calibdask.config import JobSection, Section, option, read_with
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_plan, _map, _fit, _run = (partial(option, stage=stage) for stage in ("plan", "map", "fit", "run"))

__all__ = [
    "SECTIONS",
    "Bias",
    "CalibrateImages",
    "DarkCurrent",
    "Defects",
    "Emva1288",
    "FlatField",
    "Gain",
    "IsoNormalisation",
    "MapSection",
    "ReadNoise",
    "StackImages",
    "Stacks",
    "sections_of",
]


class MapSection(JobSection):
    """What the sections of all jobs that fit maps have in common."""

    near_saturation: float = _fit(
        0.95,
        gt=0.0,
        le=1.0,
        help="A pixel counts as saturated where a frame reaches the white level, or where the "
        "mean of its frames reaches this fraction of it.",
    )
    spectacle: bool = _run(
        False, help="Write the product in SPECTACLE's format, too: OUTPUT/calibration/."
    )


_BIAS = _plan(
    None,
    help="Output directory of the job bias. Without it, bias frames among the inputs are used, or "
    "the black level that the files state.",
    example="bias",
)
_ISO = _plan(
    None,
    help="Output directory of the job iso-normalisation. With it, the results of all ISO speeds "
    "are brought to the lowest one and averaged.",
    example="iso",
)
_POOR_FIT = _fit(1e-6, ge=0.0, lt=1.0, help="A pixel whose fit has a smaller p-value is flagged.")
_OUTLIER = "Pixels farther than this from the median of their channel in their tile are flagged."


class Bias(MapSection):
    """Bias and read noise of each pixel and ISO speed, from frames without light or exposure."""

    outlier_sigma: float = _fit(10.0, gt=0.0, help=_OUTLIER, unit="robust sigma")


class ReadNoise(MapSection):
    """Read noise of each pixel and ISO speed, from frames without light or exposure."""

    outlier_sigma: float = _fit(10.0, gt=0.0, help=_OUTLIER, unit="robust sigma")


class IsoNormalisation(MapSection):
    """Signal at each ISO speed relative to the lowest one, under constant light."""

    bias: str | None = _BIAS
    min_signal: float = _fit(
        20.0,
        ge=0.0,
        help="Pixels with less signal at the lowest ISO speed are left out.",
        unit="DN",
    )
    model: Literal["auto", "linear", "knee"] = _fit(
        "auto",
        help="Signal against ISO speed: a line, a line that ends in a plateau, or whichever the "
        "Bayesian information criterion prefers.",
    )


class DarkCurrent(MapSection):
    """Dark current of each pixel, from frames without light at several exposure times."""

    bias: str | None = _BIAS
    iso: str | None = _ISO
    hot_sigma: float = _fit(
        8.0,
        gt=0.0,
        help="Pixels this far above the median of their channel in their tile are hot.",
        unit="robust sigma",
    )
    poor_fit: float = _POOR_FIT


class Gain(MapSection):
    """Gain of each pixel and channel by photon transfer, from frames at several levels of light."""

    bias: str | None = _BIAS
    iso: str | None = _ISO
    fit_fraction: float = _fit(
        0.7,
        gt=0.0,
        le=1.0,
        help="Levels up to this fraction of saturation are used (EMVA 1288: 0.7).",
    )
    min_levels: int = _fit(3, ge=2, help="A pixel with fewer usable levels is flagged.")
    poor_fit: float = _POOR_FIT
    brighter_fatter: bool = _fit(
        False,
        help="Fit each channel's curve with the brighter-fatter term of Astier et al. 2019, eq. "
        "16, instead of a line.",
    )
    flicker: bool = _fit(
        True, help="Take the variation of the light from frame to frame out of the variances."
    )


class FlatField(MapSection):
    """Relative response of each pixel: vignetting (radial model) and pixel response (PRNU)."""

    bias: str | None = _BIAS
    n_terms: int = _fit(5, ge=1, le=8, help="Terms r^2, r^4, ... of the model.")
    border: float = _fit(
        0.0,
        ge=0.0,
        lt=0.5,
        help="Fraction of height and width left out of the fit on each side. What lies farther "
        "out than the fit reached is flagged as extrapolated.",
    )
    block_size: int | None = _fit(
        None,
        ge=2,
        help="Rows and columns of the blocks that the radial model is fitted to. Without it, a "
        "64th of the longer side.",
        example=32,
    )
    outlier_sigma: float = _fit(
        10.0,
        gt=0.0,
        help="Pixels farther than this from their neighbours of the same channel are flagged.",
        unit="robust sigma",
    )

    @model_validator(mode="after")
    def _spectacle_has_room(self) -> Self:
        if self.spectacle and self.n_terms > 5:
            raise ValueError("SPECTACLE's format holds 5 terms: take n_terms: 5, or fewer")
        return self


class Emva1288(MapSection):
    """Characterisation of a sensor by the standard EMVA 1288, release 4.0 linear."""


class Defects(MapSection):
    """Map of defect pixels, from bias, dark and flat-field frames, whichever are there."""

    bias_sigma: float = _fit(
        10.0,
        gt=0.0,
        help="Bias this far from the median of its channel in its tile.",
        unit="robust sigma",
    )
    noise_sigma: float = _fit(
        10.0, gt=0.0, help="Read noise this far above the median.", unit="robust sigma"
    )
    dark_sigma: float = _fit(
        8.0, gt=0.0, help="Dark current this far above the median.", unit="robust sigma"
    )
    dark_limit: float | None = _fit(
        None,
        gt=0.0,
        help="Dark current above which a pixel is hot, whatever the others do.",
        example=50.0,
        unit="DN/s",
    )
    response_sigma: float = _fit(
        10.0,
        gt=0.0,
        help="Response to light this far from the neighbours of the same channel.",
        unit="robust sigma",
    )
    response_fraction: float = _fit(
        0.2, gt=0.0, help="Response to light that differs by this fraction from the neighbours."
    )


# -- frames ----------------------------------------------------------------------------------------


type FrameKind = Literal[
    "bias_readnoise",
    "dark_current",
    "emva_bright",
    "emva_bright_spatial",
    "emva_dark",
    "emva_dark_spatial",
    "flatfield",
    "gain",
    "iso_normalisation",
    "light",
    "linearity",
    "spectral_response",
]


type ProductField = Literal[
    "camera",
    "serial_number",
    "pattern",
    "binning",
    "window",
    "unit",
    "iso",
    "gain_setting",
    "offset_setting",
    "readout_mode",
    "filter",
    "temperature_c",
]
"""What products and frames have in common, or else are refused."""


def _black_level(value: object) -> tuple[float, ...]:
    given = value if isinstance(value, (list, tuple)) else [value]
    levels = [
        float(one) for one in given if isinstance(one, (int, float)) and not isinstance(one, bool)
    ]
    if len(levels) != len(given) or len(levels) not in (1, 4):
        raise ConfigError(f"{value!r} is neither a number nor four")
    return tuple(levels)


def _lit_areas(value: object) -> tuple[tuple[int, int, int, int], ...]:
    given = value if isinstance(value, (list, tuple)) else [value]
    areas = []
    for area in given if any(isinstance(one, (list, tuple)) for one in given) else [given]:
        match area:
            case [int(top), int(left), int(bottom), int(right)] if (
                0 <= top < bottom and 0 <= left < right
            ):
                areas.append((top, left, bottom, right))
            case _:
                raise ConfigError(
                    f"{value!r} is no [top, left, bottom, right] with bottom greater than top and"
                    " right greater than left, and no list of such"
                )
    return tuple(areas)


def _time(value: object) -> str:
    try:
        # YAML makes dates of what looks like one.
        return datetime.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise ConfigError(f"{value!r} is no time like 2025-03-04T05:06:07") from error


class FrameRow(Section):
    """What the configuration says about the frames whose path matches a pattern."""

    path: str = _plan(
        help="The frames: a path or glob, matched from its end, so that 'dark/*.fits' finds the "
        "folder wherever it lies."
    )
    kind: FrameKind | None = _plan(None, help="What they were taken for.")
    iso: int | None = _plan(None, ge=1, help="ISO speed.")
    exposure_s: float | None = _plan(None, ge=0.0, help="Exposure.", unit="s")
    level: str | None = _plan(None, help="Name of the illumination.")
    photons: float | None = _plan(
        None, ge=0.0, help="Mean number of photons that a pixel received."
    )
    temperature_c: float | None = _plan(None, gt=-273.15, help="Temperature.", unit="deg C")
    bit_depth: int | None = _plan(None, ge=1, le=16, help="Bits of a pixel.")
    white_level: int | None = _plan(None, ge=1, help="Saturation.", unit="DN")
    pattern: Literal["RGGB", "BGGR", "GRBG", "GBRG"] | None = _plan(
        None, help="Colours of the first 2 x 2 pixels, row by row."
    )
    black_level: Annotated[tuple[float, ...], read_with(_black_level)] | None = _plan(
        None, help="Black level: a number, or four in the order of the pattern.", unit="DN"
    )
    lit_areas: Annotated[tuple[tuple[int, int, int, int], ...], read_with(_lit_areas)] | None = (
        _plan(
            None,
            help="Where light falls: [top, left, bottom, right], the first row and column and "
            "those behind the last, as in DNG's ActiveArea, or a list of such where overscan lies "
            "between. What is outside is left out of fits and statistics.",
            unit="pixel",
        )
    )
    make: str | None = _plan(None, help="Maker of the camera.")
    model: str | None = _plan(None, help="The camera.")
    time: Annotated[str, read_with(_time)] | None = _plan(
        None, help="When they were taken, by the camera's clock: 2025-03-04T05:06:07."
    )
    serial_number: str | None = _plan(None, help="Serial number of the camera.")
    gain_setting: float | None = _plan(
        None, help="Setting of the amplifier, as the camera's driver counts it."
    )
    offset_setting: float | None = _plan(None, help="Setting of the offset.")
    readout_mode: str | None = _plan(None, help="Mode of the readout.")
    filter: str | None = _plan(None, help="Filter in front of the sensor.")

    def values(self) -> dict[str, object]:
        """Return what it says, without the path."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "path"}


class Frames(Section):
    """Which frames are what, where their files and folders do not tell or tell wrong."""

    table: tuple[FrameRow, ...] = _plan(
        (),
        strict=False,
        help="What is known about frames by their paths: rows of path (a glob, matched from its "
        "end) and any of kind, iso, exposure_s, level, photons, temperature_c, time, make, model, "
        "serial_number, pattern, black_level, white_level, bit_depth, lit_areas, gain_setting, "
        "offset_setting, readout_mode, filter. It counts before what files and folders say; of "
        "the rows that match a frame, the last one that tells something counts.",
        example=[{"path": "dark/*.fits", "kind": "dark_current", "iso": 100}],
    )
    min_frames: int = _plan(
        2, ge=2, help="Frames of smaller stacks are left out and counted as missing."
    )
    temperature_step_c: float | None = _plan(
        2.0,
        gt=0.0,
        help="Dark frames whose temperatures differ by more than this are of several stacks, and "
        "dark current is applied to frames within this of its temperature. null: temperatures do "
        "not matter.",
        unit="deg C",
    )
    exposure_tolerance: float = _plan(
        0.005,
        ge=0.0,
        lt=1.0,
        help="Exposures that differ by no more than this fraction are one, their mean: drivers "
        "write what they measured.",
        unit="fraction",
    )
    hdu: int | str | None = _map(
        None,
        help="Number or name of the HDU that is the frame, where FITS files hold several images, "
        "as one for each amplifier.",
        example="AMP1",
    )
    planes: Literal["auto", "frames"] = _plan(
        "auto",
        help="What a FITS cube of three planes holds: frames; without that, it may be a picture "
        "in colour, and is left out.",
    )
    may_differ: tuple[ProductField, ...] = _plan(
        (),
        strict=False,
        help="In what products of other jobs may differ from the frames that they are used for. "
        "Otherwise a difference is refused.",
        example=["temperature_c"],
    )


class Stacks(Section):
    """How frames are summed up, whatever is calibrated from them."""

    tile_rows: int = _plan(
        128,
        ge=1,
        help="Rows of a tile: the sensor is merged, fitted and written in bands of full width, "
        "which changes no pixel of a map.",
    )
    frames_per_task: int | None = _plan(
        None,
        ge=1,
        help="Frames that one task sums up. Unless given, as many as Campaign.shard_bytes holds, "
        "and so many at least that their sums are a quarter of what is read.",
        example=50,
    )
    clip_sigma: float | None = _fit(
        None,
        ge=3.0,
        help="Sum up the frames a second time, without values farther than this from the mean of "
        "their pixel: cosmic rays, and frames that went wrong. Below 4 it makes variances too "
        "small. Stacks of fewer than 5 frames are not clipped.",
        example=5.0,
        unit="standard deviations",
    )
    clip_iterations: int = _fit(
        1,
        ge=1,
        le=10,
        help="How often values are clipped. Each time reads all frames again; one outlier per "
        "pixel and stack takes one, two take two.",
    )
    max_clipped: float = _map(
        0.01,
        ge=0.0,
        le=1.0,
        help="A frame of which more pixels are clipped is named in a warning.",
        unit="fraction",
    )
    saturation_dn: int | None = _map(
        None,
        ge=1,
        help="Value from which a pixel counts as saturated, if it is not what the files state.",
        example=4095,
        unit="DN",
    )


class StackImages(JobSection):
    """Mean, variance and extremes of each pixel of each stack."""

    spectacle: bool = _run(
        False, help="Write OUTPUT/stacks/.../*_mean.npy and *_stds.npy as SPECTACLE does, too."
    )
    spectacle_ddof: Literal[0, 1] = _fit(
        0,
        help="Divide by n - ddof in *_stds.npy. SPECTACLE has 0, which makes a gain from n frames "
        "too small by the factor (n - 1)/n.",
    )


class CalibrateImages(JobSection):
    """Frames in, calibrated frames out: bias, ISO speed, dark current, flat field, gain."""

    overwrite: bool = _plan(False, help="Replace an output that exists.")
    bias: str | None = _plan(
        None,
        help="Output directory of the job bias. Without it, the black level that the files state "
        "is subtracted.",
        example="bias",
    )
    readnoise: str | None = _plan(
        None,
        help="Output directory of the job readnoise or bias: read noise enters the uncertainty.",
        example="readnoise",
    )
    iso: str | None = _plan(
        None,
        help="Output directory of the job iso-normalisation: frames are brought to the lowest ISO "
        "speed.",
        example="iso",
    )
    dark: str | None = _plan(None, help="Output directory of the job dark-current.", example="dark")
    flat: str | None = _plan(None, help="Output directory of the job flatfield.", example="flat")
    gain: str | None = _plan(
        None,
        help="Output directory of the job gain. With it, frames are in electrons.",
        example="gain",
    )
    defects: str | None = _plan(
        None, help="Output directory of the job defects: its pixels are flagged.", example="defects"
    )
    format: Literal["zarr", "fits"] = _run(
        "zarr", help="Format of the calibrated frames, one file for each input."
    )


SECTIONS: Mapping[str, type[Section]] = {
    section.__name__: section
    for section in (
        Frames,
        Stacks,
        StackImages,
        Bias,
        ReadNoise,
        IsoNormalisation,
        DarkCurrent,
        Gain,
        FlatField,
        Emva1288,
        Defects,
        CalibrateImages,
    )
}
"""The sections of all jobs of a sensor."""


def sections_of(main: type[Section]) -> Mapping[str, type[Section]]:
    """Return the sections of a job: its own, and those that all have."""
    return {main.__name__: main, "Frames": Frames, "Stacks": Stacks}
