"""Raw frames of a simulated camera, as DNG or FITS, with the truth beside them.

The model behind the numbers is `calibdask.sensor.simulation`; here is how they get into files. The
DNG are those LibRaw opens, in the folders in which SPECTACLE looks for them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import ConfigError
from calibdask.sensor.simulation import (
    FrameSpec,
    SensorSimulation,
    SensorTruth,
    assign_faults,
    expose,
    frame_specs,
    true_sensor,
)
from calibdask.simulation import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["SimulatedSensor", "simulate_sensor"]

_SHORT: Final = 0.6  # what is left of a file cut short


@dataclass(frozen=True, eq=False)
class SimulatedSensor:
    """What was written.

    Attributes
    ----------
    truth : SensorTruth
        The sensor.
    root : Path
        The directory.
    frames : mapping of Path to FrameSpec
        The frames by their files, copies and faulty ones included.
    faults : mapping of Path to str
        What is wrong with which of them.
    paths : tuple of Path
        All files, the truth among them.
    """

    truth: SensorTruth
    root: Path
    frames: Mapping[Path, FrameSpec]
    faults: Mapping[Path, str]
    paths: tuple[Path, ...]


def simulate_sensor(
    output: Path, options: SensorSimulation, progress: Callable[[int, int], None] = ignore_progress
) -> SimulatedSensor:
    """Write the frames of all series, ``truth.npz`` (maps) and ``truth.json`` (all else).

    Parameters
    ----------
    output : Path
        Directory; made when it is not there.
    options : SensorSimulation
        What to simulate. The same options give the same bytes.
    progress : callable, optional
        Called with the number of frames written and the number of frames asked for.

    Returns
    -------
    SimulatedSensor
        The truth and the paths.

    Raises
    ------
    ConfigError
        One of the files exists, or there are more faults than frames.
    """
    truth = true_sensor(options)
    specs = frame_specs(options)
    faults = assign_faults(options, specs)
    frames = {output / _name(options, spec): spec for spec in specs}
    others = [output / "truth.npz", output / "truth.json"]
    if existing := [path for path in (*frames, *others) if path.exists()]:
        raise ConfigError(f"{existing[0]}: exists already; remove it or choose another directory")
    wrong: dict[Path, str] = {}
    copies: dict[Path, FrameSpec] = {}
    for number, (path, spec) in enumerate(frames.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        fault = faults.get(number, "")
        _write_frame(path, truth, spec, fault)
        if fault:
            wrong[path] = fault
        if fault == "duplicate":
            copy = path.with_name(f"{path.stem}_copy{path.suffix}")
            shutil.copyfile(path, copy)
            copies[copy], wrong[copy] = spec, fault
        progress(number + 1, len(frames))
    written = frames | copies
    others += _write_around(output, options, written)
    maps: dict[str, Any] = truth.maps()
    np.savez(output / "truth.npz", **maps)
    (output / "truth.json").write_text(_to_json(output, truth, written, wrong), encoding="utf-8")
    return SimulatedSensor(truth, output, written, wrong, (*written, *others))


# -- where frames go -------------------------------------------------------------------------------


def _name(options: SensorSimulation, spec: FrameSpec) -> Path:
    """Return a frame's place in the output."""
    if spec.kind.startswith("emva"):
        kind = spec.kind.removeprefix("emva_")
        return Path("emva1288", "images", f"{kind}_{spec.stack:03}_{spec.index:03}.png")
    suffix = f".{options.file_format}"
    several = spec.kind == "dark_current" and len(options.temperatures_c) > 1
    warmth = f"_{spec.temperature_c:g}C" if several else ""
    if options.layout == "flat":
        parts = [spec.kind, f"{spec.iso}", spec.level, f"{spec.exposure_s:g}s"]
        return Path("_".join(filter(None, parts)) + f"{warmth}_{spec.index:04}{suffix}")
    folders = [spec.kind]
    if spec.kind != "flatfield":
        folders.append(f"iso{spec.iso}")
    if spec.kind in ("dark_current", "linearity"):
        folders.append(f"t_{spec.exposure_s:g}")
    if spec.level:
        folders.append(spec.level)
    return Path("images", *folders, f"{spec.index:04}{warmth}{suffix}")


def _write_around(
    output: Path, options: SensorSimulation, frames: Mapping[Path, FrameSpec]
) -> list[Path]:
    """Write what tells about the frames: camera file, configuration, EMVA 1288 descriptor."""
    others = []
    if any(spec.kind.startswith("emva") for spec in frames.values()):
        others.append(_write_emva_descriptor(output / "emva1288", options, frames))
    if options.layout == "flat":
        others.append(_write_table(output / "frames.yaml", frames))
    elif any(not spec.kind.startswith("emva") for spec in frames.values()):
        others += _write_camera(output, options)
    return others


def _write_camera(output: Path, options: SensorSimulation) -> list[Path]:
    from calibdask.io.spectacle import (
        CameraFile,
        CameraSettings,
        settings_path,
        write_camera_file,
        write_settings,
    )

    levels, bayer = options.black_levels, ((0,),)
    if options.pattern:
        index = _channel_index(options.pattern)
        order = [index.index(colour) for colour in range(4)]
        levels = tuple(levels[place] for place in order)
        bayer = ((index[0], index[1]), (index[2], index[3]))  # type: ignore[assignment]
    camera = CameraFile(
        name=options.model,
        manufacturer=options.make,
        name_internal=options.model,
        image_shape=(options.rows, options.columns),
        raw_extension=f".{options.file_format}",
        bias=levels,
        bayer_pattern=bayer,
        bit_depth=options.bits,
    )
    write_camera_file(output / "camera_data.json", camera)
    settings = settings_path(output, camera)
    write_settings(settings, CameraSettings(options.isos[0], options.isos[-1], "1/8000", 32))
    return [output / "camera_data.json", settings]


def _channel_index(pattern: str) -> list[int]:
    """Return LibRaw's colour indices of a pattern: R 0, G beside R 1, B 2, G beside B 3."""
    rows = pattern[:2], pattern[2:]
    return [{"R": 0, "B": 2}.get(colour, 1 if "R" in row else 3) for row in rows for colour in row]


def _write_table(path: Path, frames: Mapping[Path, FrameSpec]) -> Path:
    """Write the section Frames of a configuration: what names of one flat folder do not tell."""
    rows = {
        f"{{path: '{spec.kind}_*_{spec.level}_*', kind: {spec.kind}, level: {spec.level}}}"
        if spec.level
        else f"{{path: '{spec.kind}_*', kind: {spec.kind}}}"
        for spec in frames.values()
        if not spec.kind.startswith("emva")
    }
    lines = ["# What the frames of this folder were taken for.", "Frames:", "  table:"]
    lines += [f"    - {row}" for row in sorted(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_emva_descriptor(
    folder: Path, options: SensorSimulation, frames: Mapping[Path, FrameSpec]
) -> Path:
    lines = ["# Simulated measurement for EMVA 1288", "v 3.0"]
    lines.append(f"n {options.bits} {options.columns} {options.rows}")
    stack = -1
    for path, spec in frames.items():
        if not spec.kind.startswith("emva"):
            continue
        if spec.stack != stack:
            stack = spec.stack
            exposure_ns = f"{spec.exposure_s * 1e9:.6f}"
            bright = spec.kind.startswith("emva_bright")
            lines.append(
                f"b {exposure_ns} {spec.photons(options):.6f}" if bright else f"d {exposure_ns}"
            )
        lines.append(f"i images\\{path.name}")
    path = folder / "EMVA1288_Data.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _to_json(
    output: Path, truth: SensorTruth, frames: Mapping[Path, FrameSpec], faults: Mapping[Path, str]
) -> str:
    options = truth.options
    return json.dumps(
        {
            "options": asdict(options),
            "amplification": {str(iso): options.amplification(iso) for iso in options.isos},
            "saturation_e": {str(iso): options.saturation_e(iso) for iso in options.isos},
            "read_noise_dn": {
                str(iso): float(np.sqrt(np.mean(truth.read_noise_dn(iso) ** 2)))
                for iso in options.isos
            },
            "frames": {
                path.relative_to(output).as_posix(): {
                    **asdict(spec),
                    "time": spec.time.isoformat(),
                    "photons": spec.photons(options),
                    "fault": faults.get(path, ""),
                }
                for path, spec in frames.items()
            },
        },
        indent=1,
    )


# -- files -----------------------------------------------------------------------------------------


def _write_frame(path: Path, truth: SensorTruth, spec: FrameSpec, fault: str) -> None:
    options = truth.options
    factor = options.outlier_factor if fault == "outlier" else 1.0
    frame = expose(truth, spec, factor)
    said: dict[str, Any] = {
        "make": options.make,
        "model": options.model,
        "iso": spec.iso,
        "exposure_s": spec.exposure_s,
    }
    match fault:
        case "wrong_shape":
            frame = np.ascontiguousarray(frame[: max(options.rows - 2, 1)])
        case "wrong_exposure":
            said["exposure_s"] = 3 * spec.exposure_s
        case "missing_iso":
            said["iso"] = None
        case "other_camera":
            said["model"] = f"Other {options.model}"
    if path.suffix == ".png":
        from PIL import Image

        Image.fromarray(frame).save(path)
    elif path.suffix == ".dng":
        _write_dng(path, frame, options, spec, said)
    else:
        _write_fits(path, frame, options, spec, said)
    if fault == "truncated":
        whole = path.read_bytes()
        path.write_bytes(whole[: int(_SHORT * len(whole))])


def _write_dng(
    path: Path,
    frame: NDArray[np.uint16],
    options: SensorSimulation,
    spec: FrameSpec,
    said: Mapping[str, Any],
) -> None:
    from calibdask.io.dng import DngHeader, write_dng

    header = DngHeader(
        **said,
        pattern=options.pattern,
        black_level=options.black_levels,
        white_level=options.white_level,
        time=spec.time,
        temperature_c=spec.temperature_c,
    )
    write_dng(path, frame, header)


def _write_fits(
    path: Path,
    frame: NDArray[np.uint16],
    options: SensorSimulation,
    spec: FrameSpec,
    said: Mapping[str, Any],
) -> None:
    from astropy.io import fits

    hdu = fits.PrimaryHDU(frame)
    cards: list[tuple[str, Any, str]] = [
        ("MAKE", said["make"], "maker of the camera"),
        ("INSTRUME", said["model"], "camera"),
        ("EXPTIME", said["exposure_s"], "[s] exposure"),
        ("DATE-OBS", spec.time.isoformat(), "start of exposure"),
        ("CCD-TEMP", spec.temperature_c, "[deg C] temperature of the sensor"),
        ("SATURATE", options.white_level, "[adu] largest value"),
    ]
    if said["iso"] is not None:
        cards.append(("ISOSPEED", said["iso"], "ISO speed"))
    if options.pattern:
        cards.append(("BAYERPAT", options.pattern, "colours of the first 2 x 2 pixels"))
    cards += [
        (f"BLACKLV{place}", level, "[adu] black level")
        for place, level in enumerate(options.black_levels)
    ]
    hdu.header.extend(cards)
    hdu.writeto(path)
