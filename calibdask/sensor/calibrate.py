"""The job calibrate-images: raw frames in, calibrated frames out, one file for each input."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.engine.protocol import (
    ALL,
    Cell,
    Files,
    Output,
    Piece,
    Reduced,
    Shard,
    State,
    Summary,
    Values,
)
from calibdask.errors import CalibdaskError, ConfigError, MissingInput
from calibdask.flags import ImageFlag
from calibdask.sensor import config
from calibdask.sensor.apply import Corrections, Term, calibrate
from calibdask.sensor.calibration import FromFrames
from calibdask.sensor.isotable import IsoTable
from calibdask.sensor.levels import step_of
from calibdask.sensor.metadata import misfits, setting_of
from calibdask.sensor.pixels import saturation_dn
from calibdask.sensor.settings import nearest, settings_of
from calibdask.sensor.summary import frame_facts
from calibdask.sensor.tables import CALIBRATED, build

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from astropy.table import QTable
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays, Rows, Survey
    from calibdask.io.frame_info import FrameInfo
    from calibdask.io.maps import ProductMaps
    from calibdask.report import Section
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.stream import FrameStream
    from calibdask.sensor.tiles import SensorFacts

__all__ = ["Batch", "CalibrateImagesJob", "CalibratedFrames"]

_OUT_BYTES = 10  # of a calibrated pixel: value, error, mask
_SHOWN = "shown "
_THUMBNAIL = 240  # most rows or columns of a frame in the report
_BAND = 64  # rows corrected at a time: their numbers stay in the cache


@dataclass(frozen=True)
class CalibratedFrames:
    """One row for each frame, sorted by its name; merging joins the rows.

    Attributes
    ----------
    columns : mapping of str to ndarray, shape (n_frames,)
        The rows.
    shown : mapping of str to ndarray, shape (rows, columns)
        One frame in short for the report: "before", "after", "flagged" (share of the pixels), and
        "step", how many rows and columns a pixel of these stands for.
    """

    columns: Mapping[str, NDArray[Any]]
    shown: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def merge(self, other: Self) -> Self:
        """Join the rows of other frames."""
        shown = {**other.shown, **self.shown}
        if not other.columns or not self.columns:
            return type(self)({**self.columns, **other.columns}, shown)
        order = np.argsort(
            np.concatenate([self.columns["name"], other.columns["name"]]), kind="stable"
        )
        joined = {
            name: np.concatenate([values, other.columns[name]])[order]
            for name, values in self.columns.items()
        }
        return type(self)(joined, shown)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns, and what is shown."""
        return {**self.columns, **{f"{_SHOWN}{name}": one for name, one in self.shown.items()}}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make it again from its arrays."""
        columns = {name: one for name, one in arrays.items() if not name.startswith(_SHOWN)}
        shown = {
            name.removeprefix(_SHOWN): one
            for name, one in arrays.items()
            if name.startswith(_SHOWN)
        }
        return cls(columns, shown)


@dataclass(frozen=True)
class Batch:
    """Frames, and what is to be done to each."""

    stream: FrameStream
    corrections: Mapping[int, Corrections]  # by name of the frame


@dataclass(frozen=True)
class CalibrateImagesJob(FromFrames[Batch, Values, CalibratedFrames]):
    """Corrects frames for bias, ISO speed, dark current, flat field and gain."""

    name: ClassVar[str] = "calibrate-images"
    title: ClassVar[str] = "Calibrated frames"
    any_kind: ClassVar[bool] = True
    summary: ClassVar[type[Summary]] = CalibratedFrames
    state: ClassVar[type[State]] = Values
    preload: ClassVar[tuple[str, ...]] = ()

    sections = config.sections_of(config.CalibrateImages)
    options: config.CalibrateImages = field(default_factory=config.CalibrateImages)

    # -- planning ---------------------------------------------------------------------------------

    def misfits(self, surveys: Sequence[Survey]) -> Mapping[int, CalibdaskError]:
        """Name the frames that are of another sensor; each is calibrated by itself."""
        infos = [replace(survey.facts.info, kind="light") for survey in surveys]
        return misfits(infos, self.frames)

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Look at the calibrations, and whether they go with each frame.

        Raises
        ------
        ConfigError
            None is given, or one does not go with a frame.
        MissingInput
            One is not there.
        """
        if not self.products:
            raise ConfigError(
                "nothing to correct frames for: name the outputs of other jobs in CalibrateImages"
                " (bias, iso, dark, flat, gain)"
            )
        planned = super().planned(surveys)
        notes: list[str] = []
        for setting, exposed, temperature_c in sorted(
            {
                (key.setting, one.info.exposure_s is not None, one.info.temperature_c)
                for key, frames in planned.plan_frames
                for one in frames
            },
            key=str,
        ):
            if not exposed and any(name == "dark" for name, _ in self.products):
                raise ConfigError(
                    "dark current is to be subtracted, but the exposure of some frames is not"
                    " known: tell it in Frames.table, or leave CalibrateImages.dark out"
                )
            notes += planned.choice(setting, temperature_c).notes
        products = () if self.stacks.saturation_dn is not None else self.products
        sensor, told = _clipping(planned._sensor, products)
        planned = replace(
            planned, sensor=sensor, notes=(*planned.notes, *dict.fromkeys(notes), *told)
        )
        planned._check_names()
        return planned

    def choice(self, setting: Setting, temperature_c: float | None) -> _Choice:
        """Choose maps for frames of a setting and temperature.

        Raises
        ------
        MissingInput
            A product has nothing for them.
        """
        table = self.given_tables("iso")
        if not table and any(name == "iso" for name, _ in self.products):
            raise MissingInput(f"{dict(self.products)['iso']}: holds no table of ISO factors")
        factors = IsoTable.from_tables(table) if table else None
        any_iso = "iso" in self.frames.may_differ
        return _Choice.of(
            dict(self.products), setting, temperature_c, factors, self._black_level, any_iso=any_iso
        )

    def product_differences(self, name: str, maps: ProductMaps) -> dict[str, tuple[Any, Any]]:
        """Find what differs, the filter and the temperature too."""
        found = super().product_differences(name, maps)
        infos = [one.info for _, frames in self.plan_frames for one in frames]
        filters = maps.about("").get("filters", [])
        if name == "flat" and filters:
            others = sorted({info.filter for info in infos} - {"", *filters})
            if others:
                found["filter"] = (", ".join(filters), ", ".join(others))
        step_c = self.frames.temperature_step_c
        if name != "dark" or step_c is None:
            return found
        for key, frames in self.plan_frames:
            for info in (one.info for one in frames):
                made = self._dark_temperature(maps, key.setting, info.temperature_c)
                wanted = info.temperature_c
                if made is not None and wanted is not None and abs(made - wanted) > step_c:
                    found["temperature_c"] = (made, wanted)
        return found

    def _dark_temperature(
        self, maps: ProductMaps, setting: Setting, temperature_c: float | None
    ) -> float | None:
        """Return the temperature of the dark current that is subtracted at a temperature."""
        if any(name == "iso" for name, _ in self.products) and _is_normalised(maps, "dark_current"):
            return maps.about("dark_current").get("temperature_c")
        series = _series(maps, "dark_current")
        one = _nearest(series, setting, temperature_c)
        return None if one is None else one.temperature_c

    @property
    def _black_level(self) -> tuple[float, ...]:
        return self._sensor.black_level

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut files of many frames; every other file is a shard."""
        del surveys
        n_maps = 0 if self.sensor is None else 3 * len(self.products)
        for place, (key, frames) in enumerate(self.plan_frames):
            frame_bytes, _ = self._bytes_of(frames[0])
            n_pixels = frames[0].info.shape[0] * frames[0].info.shape[1]
            out = n_pixels * _OUT_BYTES
            size = max(1, self.shard_bytes // out)
            by_file: dict[str, list[Any]] = {}
            for frame in frames:
                by_file.setdefault(frame.source.path, []).append(frame)
            for number, mine in enumerate(by_file.values()):
                for start in range(0, len(mine), size):
                    run = mine[start : start + size]
                    part = [("first", run[0].index), ("stop", run[-1].index + 1)]
                    yield Piece(
                        (run[0].source,),
                        part=(*part, (key.label, len(run)), *_metadata(run[0].info)),
                        cells=(ALL,),
                        order=(place, number, start),
                        n_bytes=len(run) * frame_bytes,
                        peak_bytes=len(run) * out + 3 * frame_bytes + n_maps * n_pixels * 4,
                    )

    def map_config(self) -> Mapping[str, Any]:
        """Return what calibrated frames depend on."""
        return {
            **super().map_config(),
            "products": [list(one) for one in self.product_digests],
            "black_level": [] if self.sensor is None else list(self.sensor.black_level),
        }

    # -- map --------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> Batch:
        """Return the frames of a shard and the maps to correct them with."""
        stream = self.frames_of(replace(shard, part=shard.part[:3]))
        corrections = {}
        for _, frame in stream.frames:
            choice = self.choice(setting_of(frame.info), frame.info.temperature_c)
            saturation = self._sensor.saturation_dn
            corrections[frame.name] = replace(
                _load(choice, self.product_digests, self._sensor.shape, self._sensor.pattern),
                saturation_dn=np.inf if saturation is None else float(saturation),
            )
        return Batch(stream, corrections)

    def reduce(self, shard: Shard, data: Batch) -> Reduced:
        """Correct the frames; keep them, and say what became of each."""
        del shard
        infos = {frame.name: frame.info for _, frame in data.stream.frames}
        places = {frame.name: place for place, (_, frame) in enumerate(data.stream.frames)}
        shape = (len(places), *self._sensor.shape)
        # A frame that turns out to be lost keeps its place, so that a file has all of its frames.
        kept: dict[str, NDArray[Any]] = {
            "value": np.full(shape, np.nan, np.float32),
            "error": np.full(shape, np.nan, np.float32),
            "mask": np.full(shape, ImageFlag.NO_VALUE.bit),
        }
        rows: dict[str, list[Any]] = {}
        shown: dict[str, NDArray[Any]] = {}
        dark = ~self._sensor.lit(0, self._sensor.shape[0])
        n_dark = np.count_nonzero(dark)
        for _, name, raw in data.stream:
            step = step_of([frame_facts(raw, self._sensor.lit_areas)[None]])
            todo = replace(data.corrections[name], step_dn=step)
            frame = _calibrated(raw, todo, infos[name].exposure_s)
            frame["mask"][dark] = ImageFlag.BORDER.bit
            for column, values in frame.items():
                kept[column][places[name]] = values
            mask = frame["mask"]
            if name == self._shown_frame:
                shown = _in_short(raw, frame["value"], mask)
            good = frame["value"][mask == 0]
            row = {
                "name": np.uint64(name),
                "mean": np.mean(good, dtype=np.float64) if good.size else np.nan,
                "median": np.median(good) if good.size else np.nan,
                "n_pixels": mask.size - n_dark,
                "n_good": good.size,
                **{f"n_{label}": number for label, number in ImageFlag.count(mask).items()},
            }
            for column, entry in row.items():
                rows.setdefault(column, []).append(entry)
        summary = CalibratedFrames({name: np.array(values) for name, values in rows.items()}, shown)
        flow = {"frames": len(places), "frames calibrated": data.stream.n_read}
        stream = data.stream
        return Reduced(
            {ALL: summary}, flow, rows=kept, warnings=tuple(stream.odd), lost=tuple(stream.lost)
        )

    @property
    def _shown_frame(self) -> int:
        """The frame that the report shows."""
        return self.plan_frames[0][1][0].name

    # -- products ---------------------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: CalibratedFrames, given: Values | None) -> Values:
        """Return the rows: there is nothing to fit."""
        del stage, cell, given
        return Values(total.to_arrays())

    def combine(self, states: Mapping[Cell, Values]) -> CalibratedFrames:
        """Return the rows of all frames, and the one that is shown."""
        return CalibratedFrames.from_arrays(states[ALL].arrays)

    def tables(self, result: CalibratedFrames) -> Mapping[str, QTable]:
        """Return one row for each frame."""
        rows = self._rows(result.columns)
        return {CALIBRATED.path: build(CALIBRATED, self._sensor, rows)}

    def _rows(self, result: Any) -> list[dict[str, Any]]:
        rows = []
        names = result["name"].tolist()
        frames = [self._frames_by_name[name][1] for name in names]
        order = sorted(
            range(len(names)),
            key=lambda one: (frames[one].info.time, frames[one].index, names[one]),
        )
        for number in order:
            frame, name = frames[number], names[number]
            info, several = frame.info, f"[{frame.index}]" if frame.info.n_frames > 1 else ""
            numbers = {
                column: values[number].item()
                for column, values in result.items()
                if column != "name"
            }
            rows.append(
                {
                    "file": f"{Path(info.path).name}{several}",
                    "identity": f"{name:016x}",
                    "index": frame.index,
                    "time": info.time or "unknown",
                    "iso": -1 if info.iso is None else info.iso,
                    "exposure_s": np.nan if info.exposure_s is None else info.exposure_s,
                    **numbers,
                }
            )
        return rows

    @property
    def units(self) -> str:
        """Units of the calibrated frames."""
        return "electron" if any(name == "gain" for name, _ in self.products) else "DN"

    @cached_property
    def _names(self) -> dict[str, str]:
        """Name of the output of each input: like it, with its folders where two are alike."""
        paths = sorted({frame.source.path for _, frames in self.plan_frames for frame in frames})
        stems: dict[str, list[str]] = {}
        for path in paths:
            stems.setdefault(Path(path).stem, []).append(path)
        home = os.path.commonpath([Path(path).absolute().parent for path in paths])
        names = {}
        for stem, mine in stems.items():
            for path in mine:
                folders = Path(path).absolute().parent.relative_to(home).parts
                names[path] = "_".join((*folders, stem)) if len(mine) > 1 else stem
        return names

    def _check_names(self) -> None:
        """Refuse two inputs whose outputs would have one name (ConfigError)."""
        first: dict[str, str] = {}
        for path, name in self._names.items():
            if first.setdefault(name, path) != path:
                raise ConfigError(
                    f"{first[name]} and {path} would both be written to"
                    f" {name}.{self.options.format}: rename one, or calibrate them into different"
                    " directories"
                )

    def outputs(self, result: CalibratedFrames) -> Sequence[Output]:
        """Return one file of frames for each input, and the table of all."""
        return [self.described(result), Files(self.file_name, self.write_file)]

    def file_name(self, shard: Shard) -> str:
        """Return the name of the output file of an input."""
        return f"{self._names[shard.inputs[0].path]}.{self.options.format}"

    def write_file(self, path: Path, shards: Sequence[Shard], parts: Iterable[Rows]) -> None:
        """Write the calibrated frames of one input."""
        from calibdask.io.calibrated import FrameHeader, write_fits, write_zarr

        info = self._infos[shards[0].inputs[0].identity]
        count = sum(int(shard.part[2][1]) for shard in shards)
        header = FrameHeader(
            n_frames=count,
            shape=info.shape,
            units=self.units,
            time=info.time,
            exposure_s=info.exposure_s,
            iso=info.iso,
            camera=info.camera,
            products=dict(self.product_digests),
        )
        writer = write_fits if self.options.format == "fits" else write_zarr
        writer(path, header, parts)

    def report(self, result: CalibratedFrames, tables: Mapping[str, QTable]) -> Sequence[Section]:
        """Return the sections of the HTML report."""
        from calibdask.sensor.report import calibrated_sections

        frame = self._frames_by_name[self._shown_frame][1]
        name = Path(frame.info.path).name
        return calibrated_sections(
            self._rows(result.columns), self.units, name, result.shown, tables
        )


def _clipping(
    sensor: SensorFacts, products: Sequence[tuple[str, str]]
) -> tuple[SensorFacts, Sequence[str]]:
    """Take a lower saturation from the products: their frames were many, and showed it."""
    levels = [
        (level, path)
        for _, path in products
        if (level := _product(path).about("").get("saturation_dn")) is not None
    ]
    lowest, path = min(levels, default=(None, ""))
    stated = saturation_dn(sensor)
    if lowest is None or (stated is not None and stated <= lowest):
        return sensor, ()
    told = "" if stated is None else f", not the stated {stated}"
    note = f"{path}: its frames saturate at {lowest} DN: so do these{told}"
    return replace(sensor, saturation_dn=lowest), (note,)


def _metadata(info: FrameInfo) -> Iterator[tuple[str, str]]:
    """Return what a calibrated frame depends on and its file may not tell: it is in the address."""
    if info.iso is not None:
        yield "iso", str(info.iso)
    if info.exposure_s is not None:
        yield "exposure_s", repr(float(info.exposure_s))
    if info.temperature_c is not None:
        yield "temperature_c", repr(float(info.temperature_c))


def _calibrated(
    raw: NDArray[Any], corrections: Corrections, exposure_s: float | None
) -> dict[str, NDArray[Any]]:
    """Correct a frame, some rows at a time; single precision is enough for what comes out."""
    value, error = np.empty(raw.shape, np.float32), np.empty(raw.shape, np.float32)
    mask = np.empty(raw.shape, np.uint16)
    for first in range(0, len(raw), _BAND):
        here = slice(first, first + _BAND)
        one = calibrate(raw[here], corrections.rows(first, first + _BAND), exposure_s)
        value[here], error[here], mask[here] = one.value, one.error, one.mask
    return {"value": value, "error": error, "mask": mask}


def _in_short(
    raw: NDArray[Any], value: NDArray[Any], mask: NDArray[np.uint16]
) -> dict[str, NDArray[Any]]:
    """Average a frame, and what came of it, over square blocks of an even number of rows."""
    step = 2 * max(1, -(-max(raw.shape) // (2 * _THUMBNAIL)))

    def blocks(values: NDArray[Any]) -> NDArray[np.float64]:
        starts = (np.arange(0, n, step) for n in raw.shape)
        sums = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
        counts = np.isfinite(values).astype(np.float64)
        for axis, start in enumerate(starts):
            sums, counts = (np.add.reduceat(one, start, axis=axis) for one in (sums, counts))
        with np.errstate(invalid="ignore"):
            return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    return {
        "before": blocks(raw),
        "after": blocks(value),
        "flagged": blocks((mask > 0).astype(np.float64)),
        "step": np.array([step]),
    }


# -- which maps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Which maps correct a frame: (product, group, factor that the map is divided by)."""

    maps: tuple[tuple[str, str, str, float], ...]  # product, its path, group, divisor
    iso_factor: tuple[float, float] | None
    black_level: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        products: Mapping[str, str],
        setting: Setting,
        temperature_c: float | None,
        factors: IsoTable | None,
        black_level: tuple[float, ...],
        *,
        any_iso: bool,
    ) -> Self:
        maps: list[tuple[str, str, str, float]] = []
        notes: list[str] = []
        for name in ("bias", "readnoise"):
            if name in products:
                one = _of_setting(products[name], name, setting, None, same=False)
                maps.append((name, products[name], f"{name}/{one.group}", 1.0))
                if one.setting.iso != setting.iso:
                    notes.append(
                        f"{products[name]}: has no {name} for {setting.label}; that of"
                        f" {one.setting.label} is used, which leaves fixed pattern behind"
                    )
        if "bias" not in products:
            notes.append(
                "no bias map is given: the black level that the files state is subtracted"
                if black_level
                else "no bias map is given, and the files state no black level: none is subtracted"
            )
        for name, variable in (("dark", "dark_current"), ("gain", "gain")):
            if name not in products:
                continue
            if factors is not None and _is_normalised(_product(products[name]), variable):
                maps.append((name, products[name], variable, 1.0))
                continue
            same = factors is None and not any_iso
            one = _of_setting(products[name], variable, setting, temperature_c, same=same)
            if factors is None and one.setting.iso != setting.iso:
                notes.append(
                    f"{products[name]}: has no {variable} for {setting.label}; that of"
                    f" {one.setting.label} is used, which Frames.may_differ accepts"
                )
            divisor = 1.0 if factors is None else factors(one.setting.iso)[0]
            maps.append((name, products[name], f"{variable}/{one.group}", divisor))
        if "flat" in products:
            maps.append(("flat", products["flat"], "flatfield", 1.0))
        if "defects" in products:
            maps.append(("defects", products["defects"], "defects", 1.0))
        if "gain" not in products:
            notes.append("no gain is given: errors do not hold photon noise")
        if factors is not None and setting.iso < 0:
            raise ConfigError(
                "an ISO normalisation is given, but the ISO speed of some frames is not known:"
                " tell it in Frames.table"
            )
        factor = None if factors is None else factors(setting.iso)
        return cls(tuple(maps), factor, black_level, tuple(notes))


def _is_normalised(maps: ProductMaps, variable: str) -> bool:
    layout = maps.layouts.get(f"{variable}/{variable}")
    return layout is not None and bool(layout.attributes.get("iso_normalised"))


@dataclass(frozen=True)
class _Series:
    """A group of maps: of a setting, of dark current also of a temperature where it is known."""

    group: str
    setting: Setting
    temperature_c: float | None


def _series(maps: ProductMaps, variable: str) -> list[_Series]:
    """List the groups of maps of one variable."""
    found = []
    for name in maps.layouts:
        parts = name.split("/")
        if len(parts) != 3 or not parts[0] == variable == parts[2]:
            continue
        for setting in settings_of([name], variable):
            temperature = maps.about(f"{variable}/{parts[1]}").get("temperature_c")
            found.append(_Series(parts[1], setting, temperature))
    return found


def _nearest(
    series: Sequence[_Series], wanted: Setting, temperature_c: float | None
) -> _Series | None:
    """Find the maps of a setting, or of the nearest one, at the nearest temperature."""
    setting, _ = nearest(wanted, [one.setting for one in series], tuple(wanted.known))

    def warmer(one: _Series) -> tuple[float, str]:
        if one.temperature_c is None or temperature_c is None:
            return 0.0, one.group
        return abs(one.temperature_c - temperature_c), one.group

    return min((one for one in series if one.setting == setting), key=warmer, default=None)


def _of_setting(
    path: str, variable: str, wanted: Setting, temperature_c: float | None, *, same: bool
) -> _Series:
    """Find the maps of a setting, or of the nearest one unless they have to be of the same ISO."""
    series = _series(_product(path), variable)
    fitting = [one for one in series if one.setting.iso == wanted.iso or not same]
    one = _nearest(fitting, wanted, temperature_c)
    if one is None:
        there = ", ".join(sorted({one.setting.name for one in series})) or "none"
        raise MissingInput(
            f"{path}: has no {variable} for {wanted.name}, only for {there}; give an ISO"
            " normalisation (CalibrateImages.iso), or a product made at that ISO speed"
        )
    return one


def _product(path: str) -> Any:
    from calibdask.io.maps import read_product

    stamp = Path(path).stat().st_mtime_ns if Path(path).exists() else 0
    return _cached(read_product, path, stamp)


@lru_cache(maxsize=32)
def _cached(read: Any, path: str, _stamp: int) -> Any:
    return read(path)


@lru_cache(maxsize=2)
def _load(
    choice: _Choice, _digests: tuple[tuple[str, str], ...], shape: tuple[int, int], pattern: str
) -> Corrections:
    """Read maps, in single precision; a worker keeps them for its next frames."""
    terms: dict[str, Term] = {}
    for name, path, group, divisor in choice.maps:
        maps = _product(path)
        variable = group.split("/")[0]
        mask = maps.rows(f"{group}/mask") != 0 if f"{group}/mask" in maps else None
        if name == "defects":
            terms[name] = Term(0.0, 0.0, mask)
            continue
        value, error = (
            (maps.rows(f"{group}/{variable}{end}") / divisor).astype(np.float32)
            for end in ("", "_error")
        )
        terms[name] = Term(value, error, mask)
    bias = terms.get("bias")
    if bias is None and choice.black_level:
        bias = Term(_black_map(choice.black_level, shape, pattern))
    factor = None if choice.iso_factor is None else Term(*choice.iso_factor)
    defects = terms.get("defects")
    return Corrections(
        bias=bias,
        readnoise=terms["readnoise"].value if "readnoise" in terms else 0.0,
        iso_factor=factor,
        dark=terms.get("dark"),
        flat=terms.get("flat"),
        gain=terms.get("gain"),
        defects=None if defects is None else defects.bad,
    )


def _black_map(
    level: tuple[float, ...], shape: tuple[int, int], pattern: str
) -> NDArray[np.float32] | float:
    """Lay the four levels of a filter pattern over the sensor."""
    if len(level) == 1 or not pattern:
        return level[0]
    rows, columns = shape
    cell = np.array(level, np.float32).reshape(2, 2)
    return np.tile(cell, (-(-rows // 2), -(-columns // 2)))[:rows, :columns]
