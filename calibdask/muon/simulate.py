"""DL1 files with tables of muon rings of known truth, in the format of ctapipe 0.32.

The model is that of a ring's summary, not of its image. Per ring of telescope i at time t::

    efficiency   e = e_i (1 + trend (t - t_0)) (1 + impact_slope (impact - 5 m))
                     (1 + azimuth_amplitude cos phi) + sigma z
    outliers     e * outlier_factor, for a fraction of the rings
    impact       uniform on the mirror's plane, up to `max_impact_m`
    radius R     normal around `radius_deg`: 1.2 deg is the Cherenkov angle at 2000 m
    width        R (intercept + slope R) (1 + width_scatter z)

An event is seen by one telescope; `stereo_fraction` of them by all, as a bright muon or a shower
triggers them all, with a ring in each. Random numbers: a file depends on the options, the seed and
its number, not on how many other files there are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.io.ctapipe_writer import (
    OpticsDescription,
    TelescopeDescription,
    square_camera,
    write_instrument,
    write_observation,
    write_reference_metadata,
    write_telescope_table,
    write_triggers,
)
from calibdask.io.pytables import create_hdf5
from calibdask.muon.columns import CTAPIPE
from calibdask.simulation import (
    START_TAI_S,
    ignore_progress,
    new_files,
    random_stream,
    simulation_options,
    write_files,
    write_truth,
)
from calibdask.simulation import simulation_option as option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    type Columns = dict[str, NDArray[Any]]

__all__ = [
    "MuonSimulation",
    "describe_telescopes",
    "ring_columns",
    "simulate_ring_tables",
    "simulate_rings",
    "true_efficiency",
    "write_rings",
]

FIRST_OBS_ID: Final = 2001
_NS_PER_S: Final = 1_000_000_000
_SECONDS_PER_DAY: Final = 86_400.0
_TELESCOPES_STREAM, _FILE_STREAM = range(2)  # first numbers of the spawn keys
_SCATTER_OF_RADIUS_DEG: Final = 0.05

UNITS: Final = {name: unit.replace("deg2", "deg**2") for name, unit in CTAPIPE if unit}
"""Units of ctapipe's muon table."""


@simulation_options
class MuonSimulation:
    """Rings of telescopes with one mirror; all faults are off unless said otherwise."""

    n_files: int = option(
        2,
        "Files, each one observation block (obs_id 2001, 2002, ...) of duration_s.",
        low=1,
        high=20_000,
    )
    n_rings: int = option(
        10_000,
        "Images with a ring in all files and telescopes together, about; at least.",
        low=1,
        high=1e9,
    )
    n_telescopes: int = option(2, "LSTs with single mirrors, tel_id 1, 2, ...", low=1, high=1000)
    n_channels: int = option(2, "Gain channels of their cameras.", low=1, high=2)
    seed: int = option(0, "Of everything random.", low=0)
    efficiency: float = option(
        0.2,
        "Optical efficiency of the telescopes at the beginning of the first file.",
        low=0.001,
        high=10,
    )
    efficiency_spread: float = option(
        0.0, "Relative scatter of it between telescopes.", low=0, high=1
    )
    efficiency_sigma: float = option(
        0.012, "Scatter of the rings' values around it, in efficiency.", low=0, high=1
    )
    trend_per_day: float = option(
        0.0, "Relative change of the efficiency in a day.", low=-0.1, high=0.1
    )
    impact_slope_per_m: float = option(
        0.0,
        "Relative change of a ring's value with its impact distance, zero at 5 m.",
        low=-0.05,
        high=0.05,
    )
    azimuth_amplitude: float = option(
        0.0,
        "Relative change with the azimuth of the impact, as its cosine.",
        low=-0.5,
        high=0.5,
    )
    max_impact_m: float = option(
        11.0, "Largest impact distance; the usual cut is at 10 m.", low=0.1, high=100
    )
    radius_deg: float = option(1.15, "Mean ring radius; it scatters by 0.05 deg.", low=0.5, high=3)
    width_intercept: float = option(
        0.13, "Ring width over radius is intercept + slope * radius.", low=0.001, high=1
    )
    width_slope_per_deg: float = option(-0.08, "See width_intercept.", low=-1, high=1)
    width_scatter: float = option(0.1, "Relative scatter of a ring's width.", low=0, high=1)
    duration_s: float = option(1200.0, "Length of a block.", low=1, high=1e5)
    gap_s: float = option(
        600.0, "Time from the end of a block to the beginning of the next.", low=0, high=1e8
    )
    n_dual_mirror: int = option(
        0,
        "Telescopes with two mirrors, after the others: in the layout, without muon table.",
        low=0,
        high=1000,
    )
    effective_focal_length: bool = option(
        True, "Whether the file has it: real files of single telescopes do not."
    )
    outlier_fraction: float = option(
        0.02, "Of the rings: efficiency multiplied by outlier_factor.", low=0, high=1
    )
    outlier_factor: float = option(1.8, "See outlier_fraction.", low=1e-3, high=10)
    no_ring_fraction: float = option(
        0.1, "Images without a ring, in addition: rows of NaN.", low=0, high=1
    )
    invalid_fraction: float = option(
        0.01, "Of the rings: the fit not valid, so their efficiency is nonsense.", low=0, high=1
    )
    at_limit_fraction: float = option(
        0.01,
        "Of the rings: a parameter at its limit, so their efficiency is nonsense.",
        low=0,
        high=1,
    )
    stereo_fraction: float = option(
        0.0, "Of the events: every telescope triggers and has a ring.", low=0, high=1
    )
    no_time_fraction: float = option(0.0, "Of the rings: not in the trigger table.", low=0, high=1)
    shuffled_rows: bool = option(
        False, "The rows of every table stand in an order of their own, so times do not rise."
    )

    @property
    def n_rings_per_file(self) -> int:
        """Rings of all telescopes in a file."""
        return -(-self.n_rings // self.n_files)

    def start_tai_s(self, number: int) -> float:
        """When a file begins, in seconds of TAI since 1970."""
        return START_TAI_S + number * (self.duration_s + self.gap_s)


def efficiency_at_start(options: MuonSimulation) -> NDArray[np.float64]:
    """Efficiency of each telescope when the first file begins, shape (n_telescopes,)."""
    scatter = random_stream(options, _TELESCOPES_STREAM).standard_normal(options.n_telescopes)
    return np.asarray(options.efficiency * (1 + options.efficiency_spread * scatter))


def true_efficiency(
    options: MuonSimulation, tel_id: NDArray[np.integer], time_ns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Efficiency of telescopes 1, 2, ... at given times (TAI since 1970), shape (N,)."""
    days = (np.asarray(time_ns) - START_TAI_S * _NS_PER_S) / _NS_PER_S / _SECONDS_PER_DAY
    start = efficiency_at_start(options)[np.asarray(tel_id) - 1]
    return np.asarray(start * (1 + options.trend_per_day * days))


def describe_telescopes(options: MuonSimulation) -> list[TelescopeDescription]:
    """Return the telescopes of the layout; the cameras are invented."""
    known = options.effective_focal_length
    lst = OpticsDescription(effective_focal_length_m=29.3 if known else float("nan"))
    sst = OpticsDescription("SST", "SST", "SCHWARZSCHILD_COUDER", 8.0, 2, 19, 2.15, 2.2)
    lst_camera = square_camera("LSTCam", 43, 0.05, options.n_channels)
    sst_camera = square_camera("SSTCam", 48, 0.0072)
    n = options.n_telescopes + options.n_dual_mirror
    return [
        TelescopeDescription(
            i + 1,
            *((lst, lst_camera) if i < options.n_telescopes else (sst, sst_camera)),
            (100.0 * i, 0.0, 16.0),
        )
        for i in range(n)
    ]


def ring_columns(n_rows: int, **given: ArrayLike) -> Columns:
    """Return all columns of ctapipe's muon table; those not given as for an image without a ring.

    Parameters
    ----------
    n_rows : int
        Rows.
    **given : array_like
        Columns, with or without the rows of ``obs_id``, ``event_id`` and so on.
    """
    columns: Columns = {}
    for name, _ in CTAPIPE:
        empty: Any = np.nan
        if name in ("muonefficiency_is_valid", "muonefficiency_parameters_at_limit"):
            empty = False
        elif name == "muonparameters_n_pixels_in_ring":
            empty = np.int64(-1)
        columns[name] = np.full(n_rows, empty)
    return columns | {name: np.broadcast_to(values, n_rows) for name, values in given.items()}


def simulate_rings(options: MuonSimulation, number: int) -> Columns:
    """Simulate the images of one file, as arrays.

    Parameters
    ----------
    options : MuonSimulation
        What to simulate.
    number : int
        Of the file, from 0.

    Returns
    -------
    dict of str to ndarray
        ctapipe's columns, ``time_ns``, and ``has_time``, in the order of time.
    """
    rng = random_stream(options, _FILE_STREAM, number)
    per_event = 1 + options.stereo_fraction * (options.n_telescopes - 1)
    n_events = max(1, round(options.n_rings_per_file / per_event / (1 - options.no_ring_fraction)))
    stereo = rng.random(n_events) < options.stereo_fraction
    alone = rng.integers(0, options.n_telescopes, n_events)
    seen = stereo[:, None] | (alone[:, None] == np.arange(options.n_telescopes))
    event, index = np.nonzero(seen)
    n = len(event)

    start_ns = round(options.start_tai_s(number) * _NS_PER_S)
    event_ns = np.sort(rng.integers(0, round(options.duration_s * _NS_PER_S), n_events))
    # Telescopes of one event trigger within a microsecond.
    time_ns = start_ns + event_ns[event] + rng.integers(0, 1000, n)

    impact_m = options.max_impact_m * np.sqrt(rng.random(n))
    phi = rng.uniform(-np.pi, np.pi, n)
    factor = 1 + options.impact_slope_per_m * (impact_m - 5.0)
    factor *= 1 + options.azimuth_amplitude * np.cos(phi)
    value = true_efficiency(options, index + 1, time_ns) * factor
    value += options.efficiency_sigma * rng.standard_normal(n)
    value *= np.where(rng.random(n) < options.outlier_fraction, options.outlier_factor, 1.0)
    radius_deg = options.radius_deg + _SCATTER_OF_RADIUS_DEG * rng.standard_normal(n)
    ratio = options.width_intercept + options.width_slope_per_deg * radius_deg
    width_deg = radius_deg * ratio * (1 + options.width_scatter * rng.standard_normal(n))
    invalid, at_limit = (
        rng.random(n) < fraction
        for fraction in (options.invalid_fraction, options.at_limit_fraction)
    )
    value = np.where(invalid | at_limit, rng.uniform(0.01, 0.9, n), value)
    lon_deg, lat_deg = rng.normal(0, 0.5, (2, n))

    columns = ring_columns(
        n,
        obs_id=np.int32(FIRST_OBS_ID + number),
        event_id=event.astype(np.int64) + 1,
        tel_id=(index + 1).astype(np.int16),
        time_ns=time_ns,
        has_time=rng.random(n) >= options.no_time_fraction,
        muonring_center_fov_lon=lon_deg,
        muonring_center_fov_lat=lat_deg,
        muonring_radius=radius_deg,
        muonring_center_phi=np.degrees(np.arctan2(lat_deg, lon_deg)),
        muonring_center_distance=np.hypot(lon_deg, lat_deg),
        muonefficiency_width=width_deg,
        muonefficiency_impact=impact_m,
        muonefficiency_impact_x=impact_m * np.cos(phi),
        muonefficiency_impact_y=impact_m * np.sin(phi),
        muonefficiency_optical_efficiency=value,
        muonefficiency_is_valid=~invalid,
        muonefficiency_parameters_at_limit=at_limit,
    )
    no_ring = rng.random(n) < options.no_ring_fraction
    for name, empty in ring_columns(1).items():
        columns[name] = np.where(no_ring, empty, columns[name])
    if options.shuffled_rows:
        order = rng.permutation(n)
        columns = {name: values[order] for name, values in columns.items()}
    return columns


def write_rings(
    path: Path,
    telescopes: Sequence[TelescopeDescription],
    columns: Columns,
    *,
    start_s: float = START_TAI_S,
    duration_s: float = 1200.0,
    identity: str = "",
) -> None:
    """Write a DL1 file with muon tables.

    Parameters
    ----------
    path : Path
        The new file.
    telescopes : sequence of TelescopeDescription
        The layout.
    columns : mapping of str to ndarray, shape (N,)
        As `simulate_rings` gives them: rows go into the tables in their order. Rows whose
        ``has_time`` is False are left out of the trigger tables.
    start_s, duration_s : float
        Of the observation block.
    identity : str
        What the file was made from: equal text gives an equal product id.

    Raises
    ------
    ConfigError
        The file exists.
    """
    timed = columns["has_time"] if "has_time" in columns else np.ones(len(columns["obs_id"]), bool)
    obs_id = int(columns["obs_id"][0])
    with create_hdf5(path) as file:
        write_reference_metadata(
            file,
            description="Simulated muon rings with known throughput",
            levels="DL1_MUON",
            identity=identity or path.name,
            obs_id=obs_id,
            start_s=start_s,
        )
        write_instrument(file, telescopes)
        write_observation(file, obs_id, start_s, duration_s)
        keys = ("obs_id", "event_id", "tel_id", "time_ns")
        write_triggers(file, telescopes, {name: columns[name][timed] for name in keys})
        for tel_id in np.unique(columns["tel_id"]).tolist():
            own = columns["tel_id"] == tel_id
            rows = {name: columns[name][own] for name in ("obs_id", "event_id", *dict(CTAPIPE))}
            write_telescope_table(file, "/dl1/event/telescope/muon", tel_id, rows, UNITS)


def simulate_ring_tables(
    output: Path,
    options: MuonSimulation,
    progress: Callable[[int, int], None] = ignore_progress,
) -> tuple[Path, ...]:
    """Write the DL1 files of a campaign, and ``truth.json`` beside them; return their paths.

    The same options give the same bytes (ConfigError where one of the files exists).
    """
    names = [f"muons_obs{FIRST_OBS_ID + i}.dl1.h5" for i in range(options.n_files)]
    paths = new_files(output, names)
    telescopes = describe_telescopes(options)
    # What other files there are must not show in one.
    alone = asdict(replace(options, n_files=1, n_rings=options.n_rings_per_file))

    def write(path: Path, number: int) -> None:
        write_rings(
            path,
            telescopes,
            simulate_rings(options, number),
            start_s=options.start_tai_s(number),
            duration_s=options.duration_s,
            identity=json.dumps(alone | {"number": number}),
        )

    write_files(paths, write, progress)
    truth = {
        "options": asdict(options),
        "start_tai_s": START_TAI_S,
        "efficiency": dict(enumerate(efficiency_at_start(options).tolist(), start=1)),
        "trend_per_day": options.trend_per_day,
        "width_over_radius": {
            "intercept": options.width_intercept,
            "slope_per_deg": options.width_slope_per_deg,
        },
    }
    write_truth(output, truth)
    return paths
