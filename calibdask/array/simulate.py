"""DL2 files of a simulated array of telescopes, in the format of ctapipe 0.32.

The model behind the numbers is `calibdask.array.simulation`; here is where they are in a file.
The tables are those that ctapipe's own tools write, so that its readers open them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from calibdask.array.shower_simulation import fault_stream, simulate_events, stored_time
from calibdask.array.simulation import (
    ARRAYS,
    TELESCOPE_TYPES,
    ArraySimulation,
    SimulatedArray,
    true_array,
)
from calibdask.io.ctapipe_writer import (
    OpticsDescription,
    TelescopeDescription,
    square_camera,
    write_instrument,
    write_observation,
    write_reference_metadata,
    write_subarray_triggers,
    write_telescope_triggers,
    write_transformed,
)
from calibdask.io.pytables import create_hdf5
from calibdask.simulation import ignore_progress, new_files, write_files, write_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import tables

    from calibdask.array.shower_simulation import Columns

__all__ = [
    "ARRAYS",
    "ArraySimulation",
    "SimulatedArray",
    "block_path",
    "simulate_array",
    "simulate_block",
    "true_array",
]

ENERGY_RECONSTRUCTOR: Final = "RandomForestRegressor"
PARTICLE_RECONSTRUCTOR: Final = "RandomForestClassifier"
GEOMETRY_RECONSTRUCTOR: Final = "HillasReconstructor"
_POINTING_STEP_S: Final = 10


def simulate_array(
    output: Path, options: ArraySimulation, progress: Callable[[int, int], None] = ignore_progress
) -> SimulatedArray:
    """Write the DL2 files of a campaign, and ``truth.json`` beside them.

    Parameters
    ----------
    output : Path
        Directory; made when it is not there.
    options : ArraySimulation
        What to simulate. The same options give the same bytes.
    progress : callable, optional
        Called with the number of files written and the number of files asked for.

    Returns
    -------
    SimulatedArray
        The truth and the paths.

    Raises
    ------
    ConfigError
        One of the files exists, or the options give no event at all.
    """
    names = [block_path(output, options, block).name for block in range(options.n_files)]
    paths = new_files(output, names)
    array, numbers = true_array(options), []
    telescopes = _describe_telescopes(array)

    def write(path: Path, block: int) -> None:
        numbers.append(_write_block(path, array, telescopes, block))

    write_files(paths, write, progress)
    simulated = replace(array, paths=paths, n_telescope_events=sum(numbers))
    write_truth(output, simulated.to_plain())
    return simulated


def simulate_block(path: Path, options: ArraySimulation, block: int) -> int:
    """Write the file of one observation block; blocks can be made in any order or in parallel.

    Parameters
    ----------
    path : Path
        The new file; see `block_path`.
    options : ArraySimulation
        What to simulate.
    block : int
        Number of the block, from 0. May exceed ``options.n_files``: files added later.

    Returns
    -------
    int
        Telescope events in the file.

    Raises
    ------
    ConfigError
        The file exists, or the options give no event at all.
    """
    array = true_array(options)
    return _write_block(path, array, _describe_telescopes(array), block)


def _write_block(
    path: Path, array: SimulatedArray, telescopes: list[TelescopeDescription], block: int
) -> int:
    options = array.options
    events, images = simulate_events(array, block)
    start_s = options.start_tai_s(block)
    with create_hdf5(path) as file:
        write_reference_metadata(
            file,
            description="Simulated DL2 with known throughputs and time offsets",
            levels="DL1_PARAMETERS,DL2",
            identity=_identity(options, block),
            obs_id=options.obs_id(block),
            start_s=start_s,
            instrument=options.array,
        )
        write_instrument(
            file,
            telescopes,
            subarray=f"calibdask-{options.array}",
            altitude_m=options.observatory_altitude_m,
        )
        write_observation(
            file,
            options.obs_id(block),
            start_s,
            options.block_duration_s,
            altitude_deg=options.pointing_alt_deg,
            azimuth_deg=options.pointing_az_deg,
            scheduled=False,
        )
        _write_pointing(file, array, block)
        _write_subarray_events(file, array, events, images)
        _write_telescope_events(file, options, block, events, images)
    return len(images["event"])


def block_path(output: Path, options: ArraySimulation, block: int) -> Path:
    """Return the name that `simulate_array` gives to the file of a block."""
    name = f"dl2_obs{options.obs_id(block)}"
    return output / (f"{name}_part{block}.h5" if options.shared_obs_id else f"{name}.h5")


def _identity(options: ArraySimulation, block: int) -> str:
    """Return what a file is made from; other blocks do not show in it."""
    alone = replace(options, n_files=1, n_telescope_events=options.n_telescope_events_per_file)
    return json.dumps(asdict(alone) | {"block": block})


def _describe_telescopes(array: SimulatedArray) -> list[TelescopeDescription]:
    """Return the telescopes in the order of the array; their cameras are invented."""
    from calibdask.io.ctapipe_writer import TelescopeDescription

    optics, cameras = {}, {}
    for name, kind in TELESCOPE_TYPES.items():
        optics[name] = OpticsDescription(
            name=name,
            size_type=name,
            reflector_shape=kind.reflector_shape,
            mirror_area_m2=kind.mirror_area_m2,
            n_mirrors=kind.n_mirrors,
            n_mirror_tiles=kind.n_mirror_tiles,
            equivalent_focal_length_m=kind.focal_length_m,
            effective_focal_length_m=kind.effective_focal_length_m,
        )
        cameras[name] = replace(
            square_camera(f"{name}Cam", kind.n_pixels_per_side, kind.pixel_size_m, kind.n_channels),
            n_samples=kind.n_samples,
            sampling_rate_ghz=kind.sampling_rate_ghz,
        )
    return [
        TelescopeDescription(tel_id, optics[name], cameras[name], array.position_m[tel_id])
        for tel_id, name in array.tel_type.items()
    ]


def _write_pointing(file: tables.File, array: SimulatedArray, block: int) -> None:
    options = array.options
    start_s = options.start_tai_s(block)
    # From before the first event to after the last: readers interpolate and do not extrapolate.
    n_steps = int(np.ceil(options.block_duration_s / _POINTING_STEP_S)) + 3
    times = start_s + _POINTING_STEP_S * np.arange(-1, n_steps - 1, dtype=np.float64)
    pointing = {
        "time": stored_time(times, np.zeros(n_steps)),
        "azimuth": np.full(n_steps, np.radians(options.pointing_az_deg)),
        "altitude": options.pointing_alt_at(times - start_s),
    }
    if options.pointing_coverage < 1:
        covered = times - start_s <= options.pointing_coverage * options.block_duration_s
        pointing = {name: values[covered] for name, values in pointing.items()}
    for tel_id in sorted(array.tel_type):
        for level in options.pointing_levels:
            write_transformed(
                file,
                f"/{level}/monitoring/telescope/pointing/tel_{tel_id:03d}",
                pointing,
                units={"azimuth": "rad", "altitude": "rad"},
            )


def _write_subarray_events(
    file: tables.File, array: SimulatedArray, events: Columns, images: Columns
) -> None:
    event, column = images["event"], images["column"]
    n_events = len(events["event_id"])
    n_images = np.bincount(event)
    index = {"obs_id": events["obs_id"], "event_id": events["event_id"]}
    nan = np.broadcast_to(np.nan, n_events)
    always = np.ones(n_events, dtype=bool)
    triggered = np.zeros((n_events, len(array.tel_type)), dtype=bool)
    triggered[event, column] = True
    write_subarray_triggers(file, index | {"time": events["time"]}, triggered)

    unknown_m = (
        *("core_uncert_x", "core_uncert_y", "core_tilted_x", "core_tilted_y"),
        *("core_tilted_uncert_x", "core_tilted_uncert_y"),
    )
    _write_reconstructed(
        file,
        f"/dl2/event/subarray/geometry/{GEOMETRY_RECONSTRUCTOR}",
        index,
        GEOMETRY_RECONSTRUCTOR,
        {
            "alt": np.degrees(events["reco_alt"]),
            "alt_uncert": nan,
            "az": np.degrees(events["reco_az"]) % 360,
            "az_uncert": nan,
            "ang_distance_uncert": nan,
            "core_x": events["reco_core_x_m"],
            "core_y": events["reco_core_y_m"],
            **dict.fromkeys(unknown_m, nan),
            "h_max": events["reco_h_max_m"],
            "h_max_uncert": nan,
            "is_valid": events["reco_is_valid"],
            "average_intensity": np.bincount(event, images["hillas_intensity"]) / n_images,
            "goodness_of_fit": nan,
            "telescopes": triggered,
        },
        dict.fromkeys(("alt", "alt_uncert", "az", "az_uncert", "ang_distance_uncert"), "deg")
        | dict.fromkeys(("core_x", "core_y", *unknown_m, "h_max", "h_max_uncert"), "m"),
    )

    # The mean of ln energy, weighted with the expected photoelectrons.
    used = np.isfinite(images["energy_tev"]) & images["is_valid"]
    weight = np.where(used, images["expected_pe"], 0)
    log_energy = np.log(np.where(used, images["energy_tev"], 1))
    has_energy = np.bincount(event, used) > 0
    weights = np.where(has_energy, np.bincount(event, weight), np.nan)
    combined = np.zeros_like(triggered)
    combined[event[used], column[used]] = True
    _write_reconstructed(
        file,
        f"/dl2/event/subarray/energy/{ENERGY_RECONSTRUCTOR}",
        index,
        ENERGY_RECONSTRUCTOR,
        {
            "energy": np.exp(np.bincount(event, weight * log_energy) / weights),
            "energy_uncert": nan,
            "is_valid": has_energy,
            "goodness_of_fit": nan,
            "telescopes": combined,
        },
        {"energy": "TeV", "energy_uncert": "TeV"},
    )
    _write_reconstructed(
        file,
        f"/dl2/event/subarray/particle_type/{PARTICLE_RECONSTRUCTOR}",
        index,
        PARTICLE_RECONSTRUCTOR,
        {
            "prediction": np.bincount(event, images["gammaness"]) / n_images,
            "is_valid": always,
            "goodness_of_fit": nan,
            "telescopes": triggered,
        },
    )


def _write_telescope_events(
    file: tables.File, options: ArraySimulation, block: int, events: Columns, images: Columns
) -> None:
    event = images["event"]
    index = {
        "obs_id": events["obs_id"][event],
        "event_id": events["event_id"][event],
        "tel_id": images["tel_id"].astype(np.int16),
    }
    write_telescope_triggers(file, index | {"time": images["time"]})

    rng = fault_stream(options, block, 1)
    for tel_id in np.unique(images["tel_id"]):  # as ctapipe does: no events, no table
        leaf = f"tel_{tel_id:03d}"
        rows = np.flatnonzero(images["tel_id"] == tel_id)
        own_index = {name: values[rows] for name, values in index.items()}
        own = {name: values[rows] for name, values in images.items()}
        write_transformed(
            file,
            f"/dl1/event/telescope/parameters/{leaf}",
            own_index | _parameter_columns(own),
            units={name: unit for name, (_, unit) in _PARAMETERS.items() if unit},
        )
        nan = np.broadcast_to(np.nan, len(rows))
        energy = {
            "energy": own["energy_tev"],
            "is_valid": own["is_valid"],
            "energy_uncert": own["energy_uncert_tev"],
            "goodness_of_fit": nan,
        }
        particle_type = {
            "prediction": own["gammaness"],
            "is_valid": np.ones(len(rows), dtype=bool),
            "goodness_of_fit": nan,
        }
        impact = {"impact_distance": own["impact_m"], "impact_distance_uncert": nan}
        for kind, reconstructor, columns, units in (
            ("energy", ENERGY_RECONSTRUCTOR, energy, {"energy": "TeV", "energy_uncert": "TeV"}),
            ("particle_type", PARTICLE_RECONSTRUCTOR, particle_type, {}),
            ("impact", GEOMETRY_RECONSTRUCTOR, impact, dict.fromkeys(impact, "m")),
        ):
            order = rng.permutation(len(rows)) if options.shuffled_rows else np.s_[:]
            _write_reconstructed(
                file,
                f"/dl2/event/telescope/{kind}/{reconstructor}/{leaf}",
                {name: values[order] for name, values in own_index.items()},
                f"{reconstructor}_tel",
                {name: values[order] for name, values in columns.items()},
                units,
            )


_PARAMETERS_TEXT: Final = """
    hillas_intensity:f8 hillas_skewness:f8 hillas_kurtosis:f8 hillas_fov_lon:f8:deg
    hillas_fov_lat:f8:deg hillas_r:f8:deg hillas_phi:f8:deg hillas_length:f8:deg
    hillas_length_uncertainty:f8:deg hillas_width:f8:deg hillas_width_uncertainty:f8:deg
    hillas_psi:f8:deg hillas_psi_uncertainty:f8:deg hillas_transverse_cog_uncertainty:f8:deg
    timing_intercept:f8 timing_deviation:f8 timing_slope:f8:deg**-1 leakage_pixels_width_1:f8
    leakage_pixels_width_2:f8 leakage_intensity_width_1:f4 leakage_intensity_width_2:f4
    concentration_cog:f8 concentration_core:f8 concentration_pixel:f8 morphology_n_pixels:i8
    morphology_n_islands:i8 morphology_n_small_islands:i8 morphology_n_medium_islands:i8
    morphology_n_large_islands:i8 intensity_max:f4 intensity_min:f4 intensity_mean:f4
    intensity_std:f4 intensity_skewness:f8 intensity_kurtosis:f8 peak_time_max:f4 peak_time_min:f4
    peak_time_mean:f4 peak_time_std:f4 peak_time_skewness:f8 peak_time_kurtosis:f8 core_psi:f8:deg
"""
"""The columns of ctapipe's image parameters after the index, in its order: name, type and unit."""

_PARAMETERS: Final[Mapping[str, tuple[str, str]]] = {
    name: (dtype, unit)
    for name, dtype, unit in (f"{one}:".split(":")[:3] for one in _PARAMETERS_TEXT.split())
}


def _parameter_columns(images: Columns) -> Columns:
    """Return the image parameters: what the model gives, else NaN (or -1)."""
    n = len(images["event"])
    return {
        name: images[name].astype(dtype)
        if name in images
        else np.broadcast_to(np.array(-1 if dtype == "i8" else np.nan, dtype=dtype), n)
        for name, (dtype, _) in _PARAMETERS.items()
    }


def _write_reconstructed(
    file: tables.File,
    path: str,
    index: Columns,
    prefix: str,
    columns: Columns,
    units: Mapping[str, str] | None = None,
) -> None:
    """Write a DL2 table: its columns, not those of the index, bear the name of the algorithm."""
    write_transformed(
        file,
        path,
        index | {f"{prefix}_{name}": values for name, values in columns.items()},
        units={f"{prefix}_{name}": unit for name, unit in (units or {}).items()},
    )
