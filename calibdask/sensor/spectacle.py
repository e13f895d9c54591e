"""Products in SPECTACLE's format: what its users find below ``calibration/`` of a camera.

Formats as in Burggraaff et al. 2019, Optics Express 27, 19075, and its software SPECTACLE 3.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.io.spectacle import camera_file_of, read_camera_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calibdask.io.maps import ProductMaps
    from calibdask.sensor.model import IsoCurve
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.spatial import RadialModel
    from calibdask.sensor.stacked import StackCalibration

__all__ = ["N_TERMS", "write_bias", "write_dark", "write_flat", "write_gain", "write_iso"]

N_TERMS = 5
"""Terms of the radial model that its format has room for."""


def write_bias(
    directory: Path, calibration: StackCalibration, maps: ProductMaps, settings: Sequence[Setting]
) -> None:
    """Write bias and read noise of the lowest ISO speed: SPECTACLE has one of each for all."""
    group = min(settings).name
    for name in ("bias", "readnoise"):
        if f"{name}/{group}/{name}" in maps:
            _write_map(directory, calibration, maps, f"{name}/{group}/{name}", name, np.float32)


def write_dark(directory: Path, calibration: StackCalibration, maps: ProductMaps) -> None:
    """Write the dark current at the lowest ISO speed, DN/s."""
    if "dark_current/dark_current" in maps:
        what = "dark_current_normalised"
        _write_map(directory, calibration, maps, "dark_current/dark_current", what, np.float64)


def write_gain(directory: Path, calibration: StackCalibration, maps: ProductMaps) -> None:
    """Write the gain at the lowest ISO speed, DN/e-."""
    if "gain/gain" in maps:
        _write_map(directory, calibration, maps, "gain/gain", "gain", np.float64)


def write_iso(
    directory: Path,
    calibration: StackCalibration,
    rows: Sequence[Mapping[str, Any]],
    curve: IsoCurve,
) -> None:
    """Write the curve, and the table of every ISO speed from 0 to the highest measured."""
    offset = 1.0 - curve.slope * curve.iso_min
    offset_error = curve.slope_error * curve.iso_min
    values = [curve.slope, offset]
    errors = [curve.slope_error, offset_error]
    header = "Model, a, b, a_err, b_err"
    if curve.kind == "knee":
        values.append(curve.knee)
        errors.append(curve.knee_error)
        header = "Model, a, b, K, a_err, b_err, K_err"
    line = ",".join([curve.kind.capitalize(), *(repr(float(one)) for one in (*values, *errors))])
    place = _place(directory, calibration, "iso_normalisation_model.csv")
    place.write_text(f"# {header}\n{line}\n", encoding="utf-8")
    speeds = np.arange(max(row["iso"] for row in rows) + 1)
    table = np.column_stack([speeds, curve(speeds)[0]])
    place = _place(directory, calibration, "iso_normalisation_lookup_table.csv")
    np.savetxt(place, table, fmt="%i, %.6f")


def write_flat(directory: Path, calibration: StackCalibration, model: RadialModel) -> None:
    """Write the parameters of the radial model, k0 to k4 and the centre, and their errors."""
    k = np.zeros(N_TERMS)
    errors = np.zeros(N_TERMS)
    n = len(model.coefficients)
    k[:n], errors[:n] = model.coefficients, np.sqrt(np.diag(model.covariance)[:n])
    numbers = np.concatenate([k, model.centre, errors, model.centre_error])
    np.savetxt(_place(directory, calibration, "flatfield_parameters.csv"), numbers, delimiter=",")


def _place(directory: Path, calibration: StackCalibration, name: str) -> Path:
    folder = directory / "calibration"
    folder.mkdir(exist_ok=True)
    return folder / f"{_camera_name(calibration)}_{name}"


def _camera_name(calibration: StackCalibration) -> str:
    """Return the camera's name as SPECTACLE writes it: from its file beside the frames, if any."""
    path = calibration.plan_frames[0][1][0].source.path
    found = camera_file_of(Path(path))
    if found is not None:
        return read_camera_file(found).short_name
    sensor = calibration.sensor
    name = sensor.camera if sensor is not None else ""
    return (name or "camera").replace(" ", "_").replace("/", "_")


def _write_map(
    directory: Path,
    calibration: StackCalibration,
    maps: ProductMaps,
    name: str,
    what: str,
    kind: type[np.floating[Any]],
) -> None:
    """Copy a map, a band at a time."""
    if calibration.sensor is None:
        raise ValueError(f"{calibration.name} has not been planned")
    place = _place(directory, calibration, f"{what}.npy")
    array = np.lib.format.open_memmap(place, mode="w+", dtype=kind, shape=calibration.sensor.shape)
    for top, bottom in calibration.tiles:
        array[top:bottom] = maps.rows(name, top, bottom)
    array.flush()
