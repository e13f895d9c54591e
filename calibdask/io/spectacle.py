"""SPECTACLE's folders and files: what names say about frames, and the camera file.

SPECTACLE (Burggraaff et al. 2019, Optics Express 27, 19075) keeps everything of a camera below one
root folder, which is the one that holds a file ``*data.json``: frames in ``images/<kind>/...``,
with ISO speed and exposure in the names of folders, and what comes of them in ``stacks``,
``intermediaries``, ``analysis`` and ``calibration``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Self

from calibdask.errors import ConfigError, CorruptedInput, MissingInput

__all__ = [
    "CameraFile",
    "CameraSettings",
    "NamedFrame",
    "camera_file_of",
    "is_product",
    "parse_names",
    "read_camera_file",
    "read_settings",
    "settings_path",
    "write_camera_file",
    "write_settings",
]

_KINDS: Final = {
    "bias_readnoise": "bias_readnoise",
    "dark_current": "dark_current",
    "flatfield": "flatfield",
    "gain": "gain",
    "iso_normalisation": "iso_normalisation",
    "light": "light",
    "linearity": "linearity",
    "linearity_jpeg": "linearity",
    "linearity_raw": "linearity",
    "spectral_response": "spectral_response",
    "spectral_response_ispex": "spectral_response",
    "spectral_response_monochromator": "spectral_response",
}
"""Kinds of frames by the names of SPECTACLE's folders; "light" is ours: frames to be calibrated."""

_PRODUCTS: Final = frozenset({"stacks", "intermediaries", "analysis", "calibration"})
_ISO: Final = re.compile(r"(?:^|_)iso(\d+)(?=_|$)", re.IGNORECASE)
_EXPOSURE: Final = re.compile(r"^t_(\d+(?:\.\d+)?)(?:_(\d+(?:\.\d+)?))?$")


# -- names -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NamedFrame:
    """What a frame's path says about it; empty or None where it says nothing."""

    kind: str = ""
    iso: int | None = None
    exposure_s: float | None = None
    level: str = ""


def parse_names(path: Path | str) -> NamedFrame:
    """Read what folders and file name say about a frame.

    Below ``images/<kind>``, a folder ``iso100`` is an ISO speed, ``t_0.5`` an exposure of 0.5 s and
    ``t_1_250`` one of 1/250 s; what else a folder is called is the name of the illumination, as
    ``pol45``. The ISO speed is also read from the file's name, as in ``iso100_0001.dng``.
    """
    path = Path(path)
    folders = path.parts[:-1]
    places = [
        place
        for place in range(1, len(folders))
        if folders[place - 1] == "images" and folders[place] in _KINDS
    ]
    if not places:
        return NamedFrame()
    iso, exposure_s, levels = None, None, []
    for name in folders[places[-1] + 1 :]:
        if found := _ISO.search(name):
            iso = int(found[1])
        elif found := _EXPOSURE.match(name):
            divisor = float(found[2]) if found[2] else 1.0
            exposure_s = float(found[1]) / divisor if divisor else None
        else:
            levels.append(name)
    if iso is None and (found := _ISO.search(path.stem)):
        iso = int(found[1])
    return NamedFrame(_KINDS[folders[places[-1]]], iso, exposure_s, "/".join(levels))


def is_product(path: Path) -> bool:
    """Return whether a file is something SPECTACLE made, or this program in its format.

    It is in ``stacks``, ... beside a camera file, or in an output directory.
    """
    return any(
        folder.name in _PRODUCTS
        and (any(folder.parent.glob("*data.json")) or (folder.parent / "calibdask.json").is_file())
        for folder in path.absolute().parents
    )


def camera_file_of(path: Path) -> Path | None:
    """Return the camera file of a frame in ``images``, beside which it lies; None without one.

    Raises
    ------
    ConfigError
        There are two.
    """
    for folder in path.absolute().parents:
        if folder.name == "images" and (found := _camera_file_in(folder.parent)) is not None:
            return found
    return None


def _camera_file_in(folder: Path) -> Path | None:
    found = sorted(folder.glob("*data.json")) if folder.is_dir() else []
    if len(found) > 1:
        raise ConfigError(
            f"{folder}: holds {len(found)} camera files ({', '.join(one.name for one in found)}),"
            " and SPECTACLE takes a folder with exactly one; move the others away"
        )
    return found[0] if found else None


# -- camera files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraFile:
    """A camera, as ``camera_data.json`` describes it.

    Attributes
    ----------
    name : str
        What people call it.
    manufacturer, name_internal : str
        Make and model, as its files say.
    image_shape : (int, int)
        Rows and columns of the raw image.
    raw_extension : str
        Ending of its raw files, with the dot.
    bias : tuple of float
        Black levels in DN, in the order of `colour_description`.
    bayer_pattern : tuple of tuple of int
        Colour of the first 2 x 2 pixels: places in `colour_description`.
    bit_depth : int
        Bits of a pixel; it is saturated at ``2**bit_depth - 1``.
    colour_description : str
        Names of the colours.
    """

    name: str
    manufacturer: str
    name_internal: str
    image_shape: tuple[int, int]
    raw_extension: str
    bias: tuple[float, ...]
    bayer_pattern: tuple[tuple[int, ...], ...]
    bit_depth: int
    colour_description: str = "RGBG"

    @property
    def white_level(self) -> int:
        """Value of a saturated pixel, in DN."""
        return int(2**self.bit_depth - 1)

    @property
    def pattern(self) -> str:
        """Colours of the first 2 x 2 pixels, row by row; empty without filters."""
        flat = [index for row in self.bayer_pattern for index in row]
        return "".join(self.colour_description[index] for index in flat) if len(flat) == 4 else ""

    @property
    def black_level(self) -> tuple[float, ...]:
        """Black levels in the order of `pattern`; one without filters."""
        flat = [index for row in self.bayer_pattern for index in row]
        return tuple(self.bias[index] for index in flat) if len(flat) == 4 else self.bias[:1]

    @property
    def short_name(self) -> str:
        """The name as SPECTACLE writes it in the names of files."""
        return self.name.replace(" ", "_")


@dataclass(frozen=True)
class CameraSettings:
    """The range of a camera's settings, as ``<Name>_settings.json`` holds it.

    Attributes
    ----------
    iso_min, iso_max : int
        ISO speeds.
    exposure_min, exposure_max : str or float
        Exposures in s, as a number or a fraction such as "1/8000"; -1 where unknown.
    """

    iso_min: int
    iso_max: int
    exposure_min: str | float = -1
    exposure_max: str | float = -1

    @classmethod
    def of(cls, iso: tuple[int, int], exposure: tuple[str, str]) -> Self:
        """Check and make them from two ranges (ConfigError where one is none)."""
        seconds = []
        for text in exposure:
            try:
                seconds.append(float(Fraction(text)))
            except (ValueError, ZeroDivisionError) as error:
                raise ConfigError(f"{text!r} is no exposure, like 0.5 or 1/8000") from error
        if not 0 < iso[0] <= iso[1]:
            raise ConfigError(f"ISO speeds from {iso[0]} to {iso[1]}: the first one is the lowest")
        if min(seconds) > 0 and seconds[0] > seconds[1]:
            raise ConfigError(f"exposures from {exposure[0]} s to {exposure[1]} s do not rise")
        written = [text if "/" in text else _plain(value)
                   for text, value in zip(exposure, seconds, strict=True)]  # fmt: skip
        return cls(*iso, *written)


_REQUIRED: Final = {
    "name": str,
    "manufacturer": str,
    "name_internal": str,
    "image_shape": list,
    "raw_extension": str,
    "bias": list,
    "bayer_pattern": list,
    "bit_depth": int,
}


def read_camera_file(path: Path) -> CameraFile:
    """Read ``camera_data.json``.

    Raises
    ------
    MissingInput
        There is no such file.
    CorruptedInput
        It is no JSON, or an entry is missing or makes no sense.
    """
    data = _read_json(path, _REQUIRED)
    try:
        camera = CameraFile(
            name=data["name"],
            manufacturer=data["manufacturer"],
            name_internal=data["name_internal"],
            image_shape=(int(data["image_shape"][0]), int(data["image_shape"][1])),
            raw_extension=data["raw_extension"],
            bias=tuple(float(level) for level in data["bias"]),
            bayer_pattern=tuple(tuple(int(i) for i in row) for row in data["bayer_pattern"]),
            bit_depth=data["bit_depth"],
            colour_description=str(data.get("colour_description", "RGBG")),
        )
        camera.pattern, camera.black_level  # noqa: B018  they fail where the indices are wrong
    except (TypeError, ValueError, IndexError) as error:
        raise CorruptedInput(
            f"{path}: an entry of the camera file makes no sense: {error}"
        ) from error
    if not 1 <= camera.bit_depth <= 16:
        raise CorruptedInput(f"{path}: bit_depth is {camera.bit_depth}, not 1 to 16")
    return camera


def write_camera_file(path: Path, camera: CameraFile) -> None:
    """Write ``camera_data.json``."""
    _write_json(
        path,
        {
            "name": camera.name,
            "manufacturer": camera.manufacturer,
            "name_internal": camera.name_internal,
            "image_shape": list(camera.image_shape),
            "raw_extension": camera.raw_extension,
            "bias": [_plain(level) for level in camera.bias],
            "bayer_pattern": [list(row) for row in camera.bayer_pattern],
            "bit_depth": camera.bit_depth,
            "colour_description": camera.colour_description,
        },
    )


def settings_path(root: Path, camera: CameraFile) -> Path:
    """Return the place of a camera's settings below its root folder."""
    return root / "calibration" / f"{camera.short_name}_settings.json"


def read_settings(path: Path) -> CameraSettings:
    """Read ``<Name>_settings.json`` (errors as `read_camera_file`)."""
    data = _read_json(path, {"ISO_min": int, "ISO_max": int})
    exposures = data.get("exposure_min", -1), data.get("exposure_max", -1)
    return CameraSettings(data["ISO_min"], data["ISO_max"], *exposures)


def write_settings(path: Path, settings: CameraSettings) -> None:
    """Write ``<Name>_settings.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(
        path,
        {
            "ISO_min": settings.iso_min,
            "ISO_max": settings.iso_max,
            "exposure_min": settings.exposure_min,
            "exposure_max": settings.exposure_max,
        },
    )


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _read_json(path: Path, required: dict[str, type]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CorruptedInput(f"{path}: is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CorruptedInput(f"{path}: holds no object with names")
    for name, kind in required.items():
        if name not in data:
            raise CorruptedInput(f"{path}: has no entry {name!r}; it has {', '.join(sorted(data))}")
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise CorruptedInput(
                f"{path}: the entry {name!r} is {data[name]!r}, not {kind.__name__}"
            )
    return data


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")
