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
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from calibdask.io.ctapipe_writer import TelescopeDescription

    type Columns = dict[str, NDArray[Any]]

__all__ = [
    "MuonSimulation",
    "Options",
    "describe_telescopes",
    "ring_columns",
    "simulate",
    "simulate_rings",
    "true_efficiency",
    "write_rings",
]

FIRST_OBS_ID: Final = 2001
START_TAI_S: Final = 1_700_000_037  # 2023-11-14T22:13:20 UTC
_NS_PER_S: Final = 1_000_000_000
_SECONDS_PER_DAY: Final = 86_400.0
_TELESCOPES_STREAM, _FILE_STREAM = range(2)  # first numbers of the spawn keys
_SCATTER_OF_RADIUS_DEG: Final = 0.05

UNITS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "muonring_center_fov_lon",
            "muonring_center_fov_lat",
            "muonring_radius",
            "muonring_center_fov_lon_err",
            "muonring_center_fov_lat_err",
            "muonring_radius_err",
            "muonring_center_phi",
            "muonring_center_distance",
            "muonparameters_radial_std_dev",
            "muonefficiency_width",
        ),
        "deg",
    ),
    "muonparameters_mean_squared_error": "deg**2",
    "muonefficiency_impact": "m",
    "muonefficiency_impact_x": "m",
    "muonefficiency_impact_y": "m",
}
"""Units of ctapipe's muon table."""

_COLUMNS: Final = (
    "muonring_center_fov_lon",
    "muonring_center_fov_lat",
    "muonring_radius",
    "muonring_center_fov_lon_err",
    "muonring_center_fov_lat_err",
    "muonring_radius_err",
    "muonring_center_phi",
    "muonring_center_distance",
    "muonparameters_containment",
    "muonparameters_completeness",
    "muonparameters_intensity_ratio",
    "muonparameters_mean_squared_error",
    "muonparameters_ring_intensity",
    "muonparameters_intensity_outside_ring",
    "muonparameters_n_pixels_in_ring",
    "muonparameters_mean_intensity_outside_ring",
    "muonparameters_radial_std_dev",
    "muonparameters_skewness",
    "muonparameters_excess_kurtosis",
    "muonefficiency_width",
    "muonefficiency_impact",
    "muonefficiency_impact_x",
    "muonefficiency_impact_y",
    "muonefficiency_optical_efficiency",
    "muonefficiency_is_valid",
    "muonefficiency_parameters_at_limit",
    "muonefficiency_likelihood_value",
)

# Least and greatest values of the options.
_RANGES: Final = {
    "n_files": (1, 20_000),
    "n_rings": (1, 1e9),
    "n_telescopes": (1, 1000),
    "n_dual_mirror": (0, 1000),
    "n_channels": (1, 2),
    "seed": (0, np.inf),
    "efficiency": (0.001, 10),
    "efficiency_spread": (0, 1),
    "efficiency_sigma": (0, 1),
    "trend_per_day": (-0.1, 0.1),
    "impact_slope_per_m": (-0.05, 0.05),
    "azimuth_amplitude": (-0.5, 0.5),
    "max_impact_m": (0.1, 100),
    "radius_deg": (0.5, 3),
    "width_intercept": (0.001, 1),
    "width_slope_per_deg": (-1, 1),
    "width_scatter": (0, 1),
    "duration_s": (1, 1e5),
    "gap_s": (0, 1e8),
    "outlier_fraction": (0, 1),
    "outlier_factor": (1e-3, 10),
    "no_ring_fraction": (0, 1),
    "invalid_fraction": (0, 1),
    "at_limit_fraction": (0, 1),
    "stereo_fraction": (0, 1),
    "no_time_fraction": (0, 1),
}


@dataclass(frozen=True)
class MuonSimulation:
    """What to simulate. Everything below "Faults" is off unless said otherwise.

    Parameters
    ----------
    n_files : int
        Files, each one observation block (obs_id 2001, 2002, ...) of `duration_s`.
    n_rings : int
        Images with a ring in all files and telescopes together, about; at least.
    n_telescopes : int
        LSTs with single mirrors, tel_id 1, 2, ...
    n_channels : int
        Gain channels of their cameras.
    seed : int
        Of everything random.
    efficiency : float
        Optical efficiency of the telescopes at the beginning of the first file.
    efficiency_spread : float
        Relative scatter of it between telescopes.
    efficiency_sigma : float
        Scatter of the rings' values around it, in efficiency.
    trend_per_day : float
        Relative change of the efficiency in a day.
    impact_slope_per_m : float
        Relative change of a ring's value with its impact distance, zero at 5 m.
    azimuth_amplitude : float
        Relative change with the azimuth of the impact, as its cosine.
    max_impact_m : float
        Largest impact distance; the usual cut is at 10 m.
    radius_deg : float
        Mean ring radius; it scatters by 0.05 deg.
    width_intercept, width_slope_per_deg : float
        Ring width over radius: intercept + slope * radius.
    width_scatter : float
        Relative scatter of a ring's width.
    duration_s, gap_s : float
        Length of a block, and time from its end to the next one's begin.

        **Faults**
    n_dual_mirror : int
        Telescopes with two mirrors, after the others: in the layout, without muon table.
    effective_focal_length : bool
        Whether the file knows it: real files of single telescopes do not.
    outlier_fraction, outlier_factor : float
        Of the rings: efficiency multiplied by the factor (2 %).
    no_ring_fraction : float
        Images without a ring, in addition: rows of NaN.
    invalid_fraction, at_limit_fraction : float
        Of the rings: the fit not valid, a parameter at its limit; their efficiency is nonsense.
    stereo_fraction : float
        Of the events: every telescope triggers and has a ring.
    no_time_fraction : float
        Of the rings: not in the trigger table.
    shuffled_rows : bool
        The rows of every table stand in an order of their own, so times do not rise.
    """

    n_files: int = 2
    n_rings: int = 10_000
    n_telescopes: int = 2
    n_channels: int = 2
    seed: int = 0
    efficiency: float = 0.2
    efficiency_spread: float = 0.0
    efficiency_sigma: float = 0.012
    trend_per_day: float = 0.0
    impact_slope_per_m: float = 0.0
    azimuth_amplitude: float = 0.0
    max_impact_m: float = 11.0
    radius_deg: float = 1.15
    width_intercept: float = 0.13
    width_slope_per_deg: float = -0.08
    width_scatter: float = 0.1
    duration_s: float = 1200.0
    gap_s: float = 600.0
    n_dual_mirror: int = 0
    effective_focal_length: bool = True
    outlier_fraction: float = 0.02
    outlier_factor: float = 1.8
    no_ring_fraction: float = 0.1
    invalid_fraction: float = 0.01
    at_limit_fraction: float = 0.01
    stereo_fraction: float = 0.0
    no_time_fraction: float = 0.0
    shuffled_rows: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, bool) != (option.type == "bool") or (
                option.type == "int" and not isinstance(value, int)
            ):
                raise ConfigError(f"{option.name}: expected {option.type}, got {value!r}")
            low, high = _RANGES.get(option.name, (0, 1))
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"{option.name}: expected a value between {low:g} and {high:g}, got {value!r}"
                )

    @property
    def n_rings_per_file(self) -> int:
        """Rings of all telescopes in a file."""
        return -(-self.n_rings // self.n_files)

    def start_tai_s(self, number: int) -> float:
        """When a file begins, in seconds of TAI since 1970."""
        return START_TAI_S + number * (self.duration_s + self.gap_s)


Options = MuonSimulation


def efficiency_at_start(options: MuonSimulation) -> NDArray[np.float64]:
    """Efficiency of each telescope when the first file begins, shape (n_telescopes,)."""
    key = (_TELESCOPES_STREAM,)
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))
    scatter = rng.standard_normal(options.n_telescopes)
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
    from calibdask.io.ctapipe_writer import OpticsDescription, TelescopeDescription, square_camera

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
    for name in _COLUMNS:
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
    key = (_FILE_STREAM, number)
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))
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
    from calibdask.io.ctapipe_writer import (
        write_instrument,
        write_observation,
        write_reference_metadata,
        write_telescope_table,
        write_triggers,
    )
    from calibdask.io.pytables import create_hdf5

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
            rows = {name: columns[name][own] for name in ("obs_id", "event_id", *_COLUMNS)}
            write_telescope_table(file, "/dl1/event/telescope/muon", tel_id, rows, UNITS)


def simulate(
    output: Path, options: MuonSimulation, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """Write the DL1 files of a campaign, and ``truth.json`` beside them.

    Parameters
    ----------
    output : Path
        Directory; made when it is not there.
    options : MuonSimulation
        What to simulate. The same options give the same bytes.
    progress : callable, optional
        Called with the number of files written and the number of files asked for.

    Returns
    -------
    tuple of Path
        The DL1 files.

    Raises
    ------
    ConfigError
        One of the files exists.
    """
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"muons_obs{FIRST_OBS_ID + i}.dl1.h5" for i in range(options.n_files)]
    truth_path = output / "truth.json"
    if existing := [path for path in (*paths, truth_path) if path.exists()]:
        raise ConfigError(f"{existing[0]}: exists already; remove it or choose another directory")
    telescopes = describe_telescopes(options)
    for number, path in enumerate(paths):
        # What other files there are must not show in this one.
        alone = replace(options, n_files=1, n_rings=options.n_rings_per_file)
        write_rings(
            path,
            telescopes,
            simulate_rings(options, number),
            start_s=options.start_tai_s(number),
            duration_s=options.duration_s,
            identity=json.dumps(asdict(alone) | {"number": number}),
        )
        if progress is not None:
            progress(number + 1, len(paths))
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
    truth_path.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return tuple(paths)
