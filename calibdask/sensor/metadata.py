"""What is known about frames, put together from all who say something, and frames into stacks.

A frame's kind, ISO speed, exposure and illumination are told by its file, by SPECTACLE's names of
folders, by an EMVA 1288 descriptor, by the camera file, and by the configuration. Whoever comes
first in `SOURCES` counts; where others say something else, that is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isclose
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, get_args

from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, NotEnoughData, WrongKind
from calibdask.io.areas import checked
from calibdask.io.emva import EmvaDescriptor, find_emva_descriptor, read_emva_descriptor
from calibdask.io.spectacle import (
    CameraFile,
    camera_file_of,
    is_product,
    parse_names,
    read_camera_file,
)
from calibdask.sensor.config import FrameKind, Frames
from calibdask.sensor.settings import NOT_STATED, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from calibdask.io.frame_info import FrameInfo
    from calibdask.sensor.config import FrameRow

__all__ = [
    "KINDS",
    "SOURCES",
    "Conflict",
    "StackKey",
    "conflict_warnings",
    "describe_frame",
    "misfits",
    "setting_of",
    "stack_keys",
    "temperature_warnings",
    "unused_rows",
]

KINDS: Final[tuple[str, ...]] = get_args(FrameKind.__value__)
"""What frames are taken for; "light" are those to be calibrated."""

SOURCES: Final = (
    "the configuration",
    "the file",
    "the EMVA 1288 descriptor",
    "the names of its folders",
    "the camera file",
)
"""Who says something about a frame; the first one who does counts."""

_IMAGETYP: Final = {
    "bias": "bias_readnoise",
    "zero": "bias_readnoise",
    "dark": "dark_current",
    "flat": "flatfield",
    "flat field": "flatfield",
    "flatfield": "flatfield",
    "light": "light",
    "object": "light",
    "science": "light",
}
"""Kinds by what FITS files call them (IMAGETYP), in small letters and without "frame"."""

_NEEDS_EXPOSURE: Final = frozenset(
    {"dark_current", "emva_bright", "emva_dark", "emva_bright_spatial", "emva_dark_spatial"}
)
_NEEDS_ISO: Final = frozenset({"iso_normalisation"})
_ONE_EXPOSURE: Final = frozenset({"bias_readnoise", "iso_normalisation"})
_NO_EXPOSURE: Final = frozenset({"bias_readnoise"})
_SAME_EXPOSURE: Final = 0.03  # cameras round what they show: 1/5 s is 1/5.2 s
_EXACT_EXPOSURE: Final = frozenset(kind for kind in KINDS if kind.startswith("emva_"))
_DARK: Final = frozenset({"bias_readnoise", "dark_current", "emva_dark", "emva_dark_spatial"})
"""Kinds that see no light: the filter in front of them does not matter."""

_SAME_TEMPERATURE_C: Final = 0.5
_UNKNOWN: Final = -1


# -- who says what ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two sources that say different things about a frame; `winner` is the one that counts."""

    path: str
    what: str
    winner: str
    value: Any
    loser: str
    other: Any

    def __str__(self) -> str:
        """Return it as a sentence."""
        return f"{self.path}: {self.statement}"

    @property
    def statement(self) -> str:
        """The sentence without the frame."""
        return (
            f"{self.what} is {_shown(self.value)} by {self.winner}, which counts, and"
            f" {_shown(self.other)} by {self.loser}"
        )


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_frame(
    info: FrameInfo, frames: Frames | None = None
) -> tuple[FrameInfo, tuple[Conflict, ...]]:
    """Complete what a frame's file says by what others say about it.

    Parameters
    ----------
    info : FrameInfo
        What the file says (see `calibdask.io.frames.inspect_frame`).
    frames : Frames, optional
        What the configuration says; of the rows that match a frame, the last one counts.

    Returns
    -------
    info : FrameInfo
        Completed. A type that the file states and nobody knows stays its kind, unless others tell
        what the frame is.
    conflicts : tuple of Conflict
        Where others say something else.

    Raises
    ------
    WrongKind
        It is no frame but something SPECTACLE made of frames.
    ConfigError
        There are two camera files or two descriptors where one belongs, or four black levels
        without a colour pattern.
    CorruptedInput
        The camera file or descriptor makes no sense, or the ISO speed is beyond what EXIF holds and
        stands nowhere else.
    """
    path = Path(info.path)
    if is_product(path):
        raise WrongKind(f"{path}: is a product made of frames, not a frame")
    names = parse_names(path)
    by_source: list[Mapping[str, Any]] = [
        _by_table(path, () if frames is None else frames.table),
        _by_file(info),
        _by_descriptor(path),
        {
            "kind": names.kind,
            "iso": names.iso,
            "exposure_s": names.exposure_s,
            "level": names.level,
        },
        _by_camera_file(path),
    ]
    told: dict[str, Any] = {}
    rank = dict.fromkeys(_FIELDS, len(SOURCES))
    conflicts = []
    for field in _FIELDS:
        said = [
            (source, one[field])
            for source, one in zip(SOURCES, by_source, strict=True)
            if one.get(field) not in (None, "", ())
        ]
        if not said:
            told[field] = _FIELDS[field][1]
            continue
        (winner, value), *others = said
        told[field], rank[field] = value, SOURCES.index(winner)
        same = _FIELDS[field][2]
        conflicts += [
            Conflict(info.path, _FIELDS[field][0], winner, value, loser, other)
            for loser, other in others
            if not same(value, other)
        ]
    conflicts += [
        Conflict(info.path, "the shape", SOURCES[1], info.shape, source, one["shape"])
        for source, one in zip(SOURCES, by_source, strict=True)
        if one.get("shape", info.shape) != info.shape
    ]
    unknown = info.kind if info.kind and not by_source[1]["kind"] else ""
    if not told["kind"]:
        told["kind"] = unknown
    elif unknown and rank["kind"] > 0:
        winner = SOURCES[rank["kind"]]
        conflicts.append(
            Conflict(info.path, "the kind", winner, told["kind"], SOURCES[1], repr(unknown))
        )
    if info.iso_beyond and told["iso"] is None:
        raise CorruptedInput(
            f"{path}: says ISO 65535, which stands for any larger one, and nothing tells which:"
            " tell it by iso in Frames.table"
        )
    # One follows from the other, where who counts more says only one.
    if rank["bit_depth"] < rank["white_level"]:
        told["white_level"] = 2 ** told["bit_depth"] - 1
    elif rank["white_level"] < rank["bit_depth"]:
        told["bit_depth"] = told["white_level"].bit_length()
    if told["pattern"] and len(told["black_level"]) == 1:
        told["black_level"] *= 4
    if len(told["black_level"]) == 4 and not told["pattern"]:
        raise ConfigError(
            f"{path}: has four black levels ({told['black_level']}) and nothing tells the colour"
            " pattern they are of; tell it in the configuration (Frames.table)"
        )
    try:
        told["lit_areas"] = checked(told["lit_areas"], info.shape)
    except CorruptedInput as error:
        raise CorruptedInput(
            f"{path}: {error}; tell it in the configuration (lit_areas in Frames.table)"
        ) from error
    return replace(info, **told), tuple(conflicts)


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other)


def _same_text(one: str, other: str) -> bool:
    return one.strip().lower() == other.strip().lower()


_FIELDS: Final[dict[str, tuple[str, Any, Callable[[Any, Any], bool]]]] = {
    "kind": ("the kind", "", _equal),
    "iso": ("the ISO speed", None, _equal),
    "exposure_s": (
        "the exposure in s",
        None,
        lambda one, other: isclose(one, other, rel_tol=_SAME_EXPOSURE, abs_tol=1e-9),
    ),
    "level": ("the illumination", "", _equal),
    "photons": (
        "the number of photons",
        None,
        lambda one, other: isclose(one, other, rel_tol=1e-6, abs_tol=1e-9),
    ),
    "temperature_c": (
        "the temperature in °C",
        None,
        lambda one, other: isclose(one, other, abs_tol=_SAME_TEMPERATURE_C),
    ),
    "bit_depth": ("the bit depth", None, _equal),
    "white_level": ("the white level", None, _equal),
    "pattern": ("the colour pattern", "", _equal),
    "black_level": ("the black level", (), _equal),
    "lit_areas": ("the area on which light falls", (), _equal),
    "time": ("the time", "", _equal),
    "make": ("the make", "", _same_text),
    "model": ("the model", "", _same_text),
    "serial_number": ("the serial number", "", _same_text),
    "gain_setting": ("the gain setting", None, _equal),
    "offset_setting": ("the offset setting", None, _equal),
    "readout_mode": ("the readout mode", "", _same_text),
    "filter": ("the filter", "", _same_text),
}
"""What is put together: its name for people, the value of the unknown, and what counts as equal."""


def _by_table(path: PurePath, table: Sequence[FrameRow]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for row in table:
        if _matches(path, row.path):
            said |= {name: value for name, value in row.values().items() if value is not None}
    return said


def _matches(path: PurePath, pattern: str) -> bool:
    # From the right, so that "dark/*.fits" is found wherever the folder lies.
    return path.match(pattern)


def _by_file(info: FrameInfo) -> dict[str, Any]:
    said = {field: getattr(info, field) for field in _FIELDS}
    words = re.sub(r"[\W_]+", " ", info.kind.lower()).strip().removesuffix(" frame")
    said["kind"] = info.kind if info.kind in KINDS else _IMAGETYP.get(words, "")
    return said


def _by_descriptor(path: Path) -> dict[str, Any]:
    path = path.absolute()
    for folder in list(path.parents)[:2]:
        if not folder.is_dir() or not (found := _descriptor_in(folder, folder.stat().st_mtime_ns)):
            continue
        descriptor = _descriptor(found, found.stat().st_mtime_ns)
        if (image := descriptor.images.get(path)) is not None:
            return {
                "kind": image.kind,
                "exposure_s": image.exposure_s,
                "photons": image.photons,
                "bit_depth": descriptor.bit_depth,
                "shape": descriptor.shape,
            }
    return {}


# Looked for and read once, not once a frame; the time is there so that a change is seen.
@lru_cache(maxsize=256)
def _descriptor_in(folder: Path, _mtime_ns: int) -> Path | None:
    return find_emva_descriptor(folder)


@lru_cache(maxsize=16)
def _descriptor(path: Path, _mtime_ns: int) -> EmvaDescriptor:
    return read_emva_descriptor(path)


def _by_camera_file(path: Path) -> dict[str, Any]:
    found = camera_file_of(path)
    if found is None:
        return {}
    camera = _camera_file(found, found.stat().st_mtime_ns)
    return {
        "make": camera.manufacturer,
        "model": camera.name_internal,
        "bit_depth": camera.bit_depth,
        "pattern": camera.pattern,
        "black_level": camera.black_level,
        "shape": camera.image_shape,
    }


@lru_cache(maxsize=16)
def _camera_file(path: Path, _mtime_ns: int) -> CameraFile:
    return read_camera_file(path)


def conflict_warnings(conflicts: Iterable[Conflict]) -> tuple[str, ...]:
    """List each contradiction once, with the number of frames and the first of them."""
    alike: dict[str, list[str]] = {}
    for conflict in conflicts:
        alike.setdefault(conflict.statement, []).append(conflict.path)
    return tuple(
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {statement}"
        for statement, paths in alike.items()
    )


def unused_rows(frames: Frames, paths: Iterable[str]) -> tuple[str, ...]:
    """Name the rows of the configuration that match no frame: most likely they are misspelt."""
    given = [PurePath(path) for path in paths]
    return tuple(
        f"Frames.table: the row of {row.path!r} matches none of the {len(given)} frames"
        for row in frames.table
        if not any(_matches(path, row.path) for path in given)
    )


# -- stacks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class StackKey:
    """What the frames of one stack have in common.

    Attributes
    ----------
    kind : str
        One of `KINDS`; empty where unknown.
    iso : int
        ISO speed; -1 where unknown.
    exposure_s : float
        Time of exposure in s, to four digits; -1 where unknown. Where exposures differ within the
        tolerance, their mean.
    level : str
        Name of the illumination, and the filter.
    photons : float
        Mean number of photons of a pixel; -1 where unknown.
    temperature_c : float
        Mean temperature of dark frames that differ by no more than the step that was asked for;
        `NOT_STATED` where it does not matter or is unknown.
    gain, offset, readout
        As in `Setting`.
    """

    kind: str = ""
    iso: int = _UNKNOWN
    exposure_s: float = float(_UNKNOWN)
    level: str = ""
    photons: float = float(_UNKNOWN)
    temperature_c: float = NOT_STATED
    gain: float = NOT_STATED
    offset: float = NOT_STATED
    readout: str = ""

    @property
    def setting(self) -> Setting:
        """What the electronics were set to."""
        return Setting(self.iso, self.gain, self.offset, self.readout)

    @property
    def label(self) -> str:
        """The key for people."""
        parts = [self.kind or "frames"]
        if self.setting.known:
            parts.append(self.setting.label)
        if self.exposure_s >= 0:
            parts.append(f"{self.exposure_s:.6g} s")
        if self.level:
            parts.append(f"illumination {self.level}")
        if self.photons >= 0:
            parts.append(f"{self.photons:.6g} photons")
        if self.temperature_c != NOT_STATED:
            parts.append(f"{self.temperature_c:g} °C")
        return ", ".join(parts)


def stack_keys(infos: Sequence[FrameInfo], frames: Frames | None = None) -> list[StackKey]:
    """Return which stack each frame belongs to.

    Parameters
    ----------
    infos : sequence of FrameInfo
        The frames, described in full. What drivers measure differs a little from frame to frame:
        exposures and temperatures that differ by less than asked for are one.
    frames : Frames, optional
        How much exposures and temperatures of one stack may differ.
    """
    frames = Frames() if frames is None else frames
    exposures = _exposures(infos, frames.exposure_tolerance)
    temperatures: list[float | None] = [None] * len(infos)
    if (step := frames.temperature_step_c) is not None:
        dark = [one.temperature_c if one.kind == "dark_current" else None for one in infos]
        weights = [one.n_frames for one in infos]
        temperatures = _joined(dark, weights, lambda _: step, lambda mean: round(mean, 1) + 0.0)
    return [
        StackKey(
            info.kind,
            setting.iso,
            float(_UNKNOWN) if exposure_s is None or info.kind in _NO_EXPOSURE else exposure_s,
            _level(info),
            float(_UNKNOWN) if info.photons is None else float(info.photons),
            NOT_STATED if temperature_c is None else temperature_c,
            setting.gain,
            setting.offset,
            setting.readout,
        )
        for info, setting, exposure_s, temperature_c in zip(
            infos, map(setting_of, infos), exposures, temperatures, strict=True
        )
    ]


def setting_of(info: FrameInfo) -> Setting:
    """Return what the electronics were set to for a frame."""
    gain, offset = (
        NOT_STATED if value is None else float(f"{value:.10g}")  # as in the names of maps
        for value in (info.gain_setting, info.offset_setting)
    )
    iso = _UNKNOWN if info.iso is None else info.iso
    return Setting(iso, gain, offset, re.sub(r"[^A-Za-z0-9.+-]+", "-", info.readout_mode))


def _level(info: FrameInfo) -> str:
    """Name the illumination: the light and the filter that it passed."""
    filters = [f"filter {info.filter}"] if info.filter and info.kind not in _DARK else []
    return ", ".join([info.level, *filters] if info.level else filters)


def _exposures(infos: Sequence[FrameInfo], tolerance: float) -> list[float | None]:
    """Return the exposure of each frame's stack: exposures within the tolerance are one."""
    result: list[float | None] = [None] * len(infos)
    alike: dict[tuple[str, Setting], list[int]] = {}
    for place, info in enumerate(infos):
        alike.setdefault((info.kind, setting_of(info)), []).append(place)
    for (kind, _), places in alike.items():
        # A series by the standard EMVA 1288 is set, not measured.
        allowed = 0.0 if kind in _EXACT_EXPOSURE else tolerance
        joined = _joined(
            [infos[place].exposure_s for place in places],
            [infos[place].n_frames for place in places],
            lambda shortest, allowed=allowed: shortest * allowed,  # type: ignore[misc]
            lambda mean: float(f"{mean:.6g}"),
            lambda value: float(f"{value:.4g}"),
        )
        for place, exposure_s in zip(places, joined, strict=True):
            result[place] = exposure_s
    return result


def _joined(
    values: Sequence[float | None],
    weights: Sequence[int],
    width: Callable[[float], float],
    of_mean: Callable[[float], float],
    of_one: Callable[[float], float] | None = None,
) -> list[float | None]:
    """Join values that lie close together, and give the mean of its group for each.

    Parameters
    ----------
    values : sequence of float or None
        None is in no group.
    weights : sequence of int
        Frames of each value.
    width : callable
        How far a group reaches above its smallest value.
    of_mean, of_one : callable
        Round the mean of a group; and a value by itself, before groups are made.
    """
    rounded = [None if one is None else one if of_one is None else of_one(one) for one in values]
    order = sorted((one, place) for place, one in enumerate(rounded) if one is not None)
    groups: list[list[int]] = []
    smallest = 0.0
    for one, place in order:
        if groups and one <= smallest + width(smallest):
            groups[-1].append(place)
        else:
            groups.append([place])
            smallest = one
    result: list[float | None] = [None] * len(values)
    for group in groups:
        members = [
            (value, weights[place]) for place in group if (value := values[place]) is not None
        ]
        mean = sum(value * weight for value, weight in members) / sum(n for _, n in members)
        alike = of_one is not None and len({rounded[place] for place in group}) == 1
        for place in group:
            result[place] = rounded[place] if alike else of_mean(mean)
    return result


def temperature_warnings(
    infos: Sequence[FrameInfo], keys: Sequence[StackKey], step_c: float | None
) -> tuple[str, ...]:
    """Return where temperatures in a stack differ by more than the step that keeps darks apart."""
    if step_c is None:
        return ()
    found: dict[StackKey, list[float]] = {}
    for info, key in zip(infos, keys, strict=True):
        if info.temperature_c is not None and info.kind != "light":
            found.setdefault(key, []).append(info.temperature_c)
    spread = {key: max(all_c) - min(all_c) for key, all_c in found.items()}
    wide = [key for key in spread if spread[key] > step_c]
    if not wide:
        return ()
    worst = max(wide, key=lambda key: spread[key])
    more = f" (most of {len(wide)} stacks that drift)" if len(wide) > 1 else ""
    low, high = min(found[worst]), max(found[worst])
    return (f"stack {worst.label}: its frames were taken at {low:g} to {high:g} °C{more}",)


def misfits(
    infos: Sequence[FrameInfo],
    frames: Frames | None = None,
    conflicts: Sequence[Sequence[Conflict]] = (),
    single: Mapping[str, Sequence[str]] | None = None,
) -> dict[int, CalibdaskError]:
    """Find the frames that cannot be used together with the others.

    Frames are of one camera and shape, and of one colour pattern and bit depth: what most of them
    have. Where a kind of frames needs an ISO speed or an exposure, or one exposure for all, frames
    that lack or break it are left out, and so are frames that are too few in their stack.

    Parameters
    ----------
    infos : sequence of FrameInfo
        All frames, described in full.
    frames : Frames, optional
        How many frames a stack must have (two unless given; frames to be calibrated are in none),
        and what `stack_keys` takes.
    conflicts : sequence of sequence of Conflict, optional
        What `describe_frame` gave with each of the frames: said again with what is wrong.
    single : mapping of str to sequence of str, optional
        Attributes of which all frames of a kind have one value, by kind.

    Returns
    -------
    dict of int to CalibdaskError
        By place in `infos`: what is wrong.

    Raises
    ------
    ConfigError
        Two cameras (or shapes, ...) have equally many frames.
    """
    frames = Frames() if frames is None else frames
    found: dict[int, CalibdaskError] = {}
    for what, of in _COMMON.items():
        good = [place for place in range(len(infos)) if place not in found]
        found |= _minority(infos, good, what, [of(info) for info in infos], "the inputs")
    have_iso = {info.kind for info in infos if info.iso is not None}
    for place, info in enumerate(infos):
        if place not in found and (missing := _missing(info, have_iso)):
            found[place] = CorruptedInput(
                f"{info.path}: {missing}; tell it in the configuration (Frames.table)"
            )
    exposures = [
        "" if one is None else f"{one:.4g}" for one in _exposures(infos, frames.exposure_tolerance)
    ]
    alone = [(kind, "exposure in s", exposures) for kind in sorted(_ONE_EXPOSURE)]
    alone += [
        (kind, name.replace("_", " "), [_plain(getattr(info, name)) for info in infos])
        for kind, names in (single or {}).items()
        for name in names
    ]
    for kind, what, texts in alone:
        places = [
            place for place, info in enumerate(infos) if place not in found and info.kind == kind
        ]
        found |= _minority(infos, places, what, texts, f"its kind ({kind})")
    keys = stack_keys(infos, frames)
    sizes: Counter[StackKey] = Counter()
    for place, (info, key) in enumerate(zip(infos, keys, strict=True)):
        if place not in found:
            sizes[key] += info.n_frames
    for place, (info, key) in enumerate(zip(infos, keys, strict=True)):
        if place not in found and info.kind != "light" and sizes[key] < frames.min_frames:
            number = "the only frame" if sizes[key] == 1 else f"one of only {sizes[key]} frames"
            found[place] = NotEnoughData(
                f"{info.path}: is {number} of its stack ({key.label}), which needs"
                f" {frames.min_frames}"
            )
    for place, error in found.items() if conflicts else ():
        if more := "; ".join(conflict.statement for conflict in conflicts[place]):
            found[place] = type(error)(f"{error} ({more})")
    return dict(sorted(found.items()))


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_COMMON: Final[dict[str, Callable[[FrameInfo], str]]] = {
    "camera": lambda info: info.camera,
    "shape": lambda info: f"{info.shape[0]} x {info.shape[1]}",
    "colour pattern": lambda info: info.pattern,
    "bit depth": lambda info: "" if info.bit_depth is None else str(info.bit_depth),
    "serial number": lambda info: info.serial_number,
    "binning": lambda info: " x ".join(map(str, info.binning)),
    "first column and row": lambda info: ", ".join(map(str, info.window)),
    "unit": lambda info: info.unit,
    "lit area": lambda info: " and ".join(str(list(area)) for area in info.lit_areas),
}
"""What all frames of a run have in common; an empty text goes with everything."""


def _minority(
    infos: Sequence[FrameInfo], places: Sequence[int], what: str, texts: Sequence[str], among: str
) -> dict[int, CalibdaskError]:
    counts: Counter[str] = Counter()
    for place in places:
        if value := texts[place]:
            counts[value] += infos[place].n_frames
    if len(counts) < 2:
        return {}
    (most, n_most), (next_most, n_next) = counts.most_common(2)
    if n_most == n_next:
        raise ConfigError(
            f"{n_most} frames of {among} have the {what} {most} and as many {next_most}: frames of"
            " one run have one, so that it cannot be told which are wrong; leave some out"
        )
    return {
        place: CorruptedInput(
            f"{infos[place].path}: its {what} is {value}, that of most of {among} is {most}"
        )
        for place in places
        if (value := texts[place]) not in ("", most)
    }


def _missing(info: FrameInfo, have_iso: set[str]) -> str:
    if info.exposure_s is None and info.kind in _NEEDS_EXPOSURE:
        return f"frames of the kind {info.kind} need an exposure, and nothing tells its"
    if info.iso is None and info.kind in _NEEDS_ISO:
        return f"frames of the kind {info.kind} need an ISO speed, and nothing tells its"
    if info.iso is None and info.kind in have_iso:
        return "nothing tells its ISO speed, which others of its kind have"
    return ""
