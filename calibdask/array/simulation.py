"""Simulated array of Cherenkov telescopes: options, telescopes and their true throughputs.

The model of showers is in `calibdask.array.shower_simulation`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import ConfigError
from calibdask.simulation import START_TAI_S, random_stream, refuse_option, simulation_options
from calibdask.simulation import simulation_option as option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

__all__ = [
    "ARRAYS",
    "TELESCOPE_TYPES",
    "ArraySimulation",
    "SimulatedArray",
    "true_array",
]

ARRAYS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "mixed": {"LST": 4, "MST": 14, "SST": 18},
        "reduced": {"LST": 4, "MST": 7, "SST": 6},
    }
)


@dataclass(frozen=True, slots=True)
class _TelescopeType:
    """What telescopes of one type have in common; sizes as of the CTAO designs, rounded."""

    first_tel_id: int
    mirror_area_m2: float
    focal_length_m: float
    effective_focal_length_m: float
    reflector_shape: str
    n_mirrors: int
    n_mirror_tiles: int
    height_m: float
    threshold_pe: float
    n_pixels_per_side: int
    pixel_size_deg: float
    n_channels: int
    n_samples: int
    sampling_rate_ghz: float

    @property
    def pixel_size_m(self) -> float:
        return float(self.focal_length_m * np.tan(np.radians(self.pixel_size_deg)))

    @property
    def camera_radius_deg(self) -> float:
        return self.n_pixels_per_side * self.pixel_size_deg / 2


TELESCOPE_TYPES: Final = MappingProxyType(
    {
        "LST": _TelescopeType(
            1, 370.0, 28.0, 29.3, "PARABOLIC", 1, 198, 16.0, 60.0, 43, 0.1, 2, 40, 1.0
        ),
        "MST": _TelescopeType(
            5, 88.0, 16.0, 16.4, "DAVIES_COTTON", 1, 86, 10.0, 50.0, 42, 0.18, 1, 25, 0.25
        ),
        "SST": _TelescopeType(
            30, 8.0, 2.15, 2.2, "SCHWARZSCHILD_COUDER", 2, 19, 5.0, 25.0, 48, 0.19, 1, 128, 1.0
        ),
    }
)

_FIRST_OBS_ID: Final = 1001
# First numbers of the spawn keys.
_TELESCOPE_STREAM, _LAYOUT_STREAM = range(2)  # showers and faults have the next two


@simulation_options
class ArraySimulation:
    """Showers seen by an array of telescopes; all faults are off unless said otherwise.

    Types of telescopes are LST, MST and SST; mappings have a value for each of them.
    """

    n_files: int = option(
        2,
        "Files, each one observation block (obs_id 1001, 1002, ...) of block_duration_s.",
        1,
        20_000,
    )
    n_events: int = option(500, "Array events (two telescopes or more) in each file.", 1, 1e8)
    n_telescope_events: int | None = option(
        None,
        "Instead of n_events: telescope events in all files together. A file ends on an event, so"
        " there may be more by the telescopes of one event per file.",
        1,
        1e10,
    )
    seed: int = option(0, "Of everything random.", 0)
    array: str = option(
        "mixed",
        "mixed (4 LST, 14 MST, 18 SST) or reduced (4 LST, 7 MST, 6 SST).",
        choices=[*ARRAYS],
    )
    spacing_m: dict[str, float] = option(
        {"LST": 115.0, "MST": 150.0, "SST": 250.0},
        "Distance of neighbours: LSTs on a square, MSTs and SSTs on hexagonal grids.",
        np.nextafter(0, 1),
        1e9,
    )
    throughput_mean: dict[str, float] = option(
        {"LST": 1.0, "MST": 1.0, "SST": 0.9}, "Median throughput.", np.nextafter(0, 1), 1e9
    )
    throughput_spread: dict[str, float] = option(
        {"LST": 0.1, "MST": 0.1, "SST": 0.1},
        "Standard deviation of the logarithm of the throughput.",
        0,
        1e9,
    )
    energy_range_tev: tuple[float, float] = option(
        (0.15, 100.0), "Lowest and highest energy of a shower.", 0.01, 1e4
    )
    spectral_index: float = option(2.0, "Of the power law dN/dE ~ E**-index.", -5, 5)
    energy_resolution: float = option(
        0.15, "Scatter of ln energy of one telescope, for a very large image.", 0, 2
    )
    photon_noise: float = option(
        1.0,
        "Further scatter of one telescope: this over the square root of its expected"
        " photoelectrons.",
        0,
        10,
    )
    shower_fluctuation: float = option(
        0.1,
        "Standard deviation of the logarithm of the light of a shower, shared by its telescopes.",
        0,
        2,
    )
    light_fall_m: float = option(
        60.0,
        "Beyond the pool's radius of 120 m the light falls by 1/e within this; 1e9 makes it flat.",
        1,
        1e9,
    )
    photon_statistics: bool = option(
        True, "Image sizes scatter by the Poisson law; else every image is its expectation."
    )
    threshold_scale: float = option(
        1.0,
        "Multiplies the sizes at which telescopes trigger; 0 lets all telescopes see all showers.",
        0,
        10,
    )
    core_margin_m: float = option(
        150.0,
        "Showers fall on the rectangle around the telescopes, enlarged by this on each side.",
        0,
        5000,
    )
    direction_spread_deg: float = option(
        0.5, "Scatter of the showers' directions around the pointing, in each coordinate.", 0, 5
    )
    core_resolution_m: float = option(
        8.0,
        "Error of the reconstructed core, in each coordinate; all telescopes share it.",
        0,
        1000,
    )
    direction_resolution_deg: float = option(
        0.05, "Error of the reconstructed direction, in each coordinate.", 0, 5
    )
    h_max_resolution: float = option(
        0.05, "Relative error of the reconstructed height of the maximum.", 0, 1
    )
    pointing_alt_deg: float = option(
        70.0, "Altitude to which the telescopes point at the start of a block.", 30, 89
    )
    pointing_az_deg: float = option(180.0, "Azimuth to which the telescopes point.", -360, 360)
    pointing_drift_deg: float = option(
        0.0, "By how much the altitude rises during a block.", -20, 20
    )
    observatory_altitude_m: float = option(
        2150.0,
        "Of the ground above the sea. As in ctapipe, the stored h_max counts from sea level.",
        0,
        4000,
    )
    time_offset_spread_ns: float = option(
        8.0, "Standard deviation of the telescopes' clock offsets.", 0, 1e6
    )
    time_jitter_ns: float = option(
        1.5, "Standard deviation of a telescope's single time stamps.", 0, 1e6
    )
    peak_delay_ns: dict[str, float] = option(
        {"LST": 20.0, "MST": 20.0, "SST": 20.0},
        "Position of a pulse in the readout window.",
        0,
        1e9,
    )
    block_duration_s: float = option(
        1200.0, "Length of an observation block; its events are uniform in time.", 1, 1e5
    )

    # Faults
    unsorted_layout: bool = option(
        False, "Telescopes stand in the layout in a random order, not by tel_id."
    )
    invalid_fraction: float = option(
        0.02,
        "Of the telescope energies: NaN with is_valid False, as of failed reconstructions.",
        0,
        1,
    )
    nan_valid_fraction: float = option(
        0.0, "Of the telescope energies: NaN although is_valid is True.", 0, 1
    )
    missing_uncertainty_fraction: float = option(
        0.0, "Of the telescope energies: without an uncertainty (NaN).", 0, 1
    )
    outlier_fraction: float = option(
        0.0, "Of the telescope energies: multiplied by outlier_factor; the uncertainty stays.", 0, 1
    )
    outlier_factor: float = option(3.0, "See outlier_fraction.", 1e-3, 1e3)
    silent_telescopes: tuple[int, ...] = option((), "In the layout, without data.")
    removed_telescopes: tuple[int, ...] = option((), "Neither in the layout nor in the data.")
    dead_types: tuple[str, ...] = option(
        (),
        "Types of telescope that are in the layout, without data.",
        choices=["LST", "MST", "SST"],
    )
    sparse_telescopes: dict[int, int] = option(
        {},
        "tel_id: largest number of its telescope events in a file. With 1, its pairs have n = 1.",
        1,
        1e10,
    )
    disconnected_groups: tuple[tuple[int, ...], ...] = option(
        (), "Groups of telescopes that have no event in common. Telescopes in none see all events."
    )
    shifted_telescopes: tuple[int, ...] = option((), "These stand shift_m farther North.")
    shift_m: float = option(0.0, "See shifted_telescopes.", -1e5, 1e5)
    jumping_telescope: int | None = option(
        None, "A telescope whose throughput changes once, as by cleaning its mirrors."
    )
    jump_time_s: float = option(
        600.0, "When it changes, in seconds from the start of the first file.", 0, 1e12
    )
    jump_factor: float = option(0.8, "Throughput after the jump over throughput before.", 1e-3, 1e3)
    jump_offset_ns: float = option(
        0.0, "How much later that telescope's time stamps are after the jump.", -1e6, 1e6
    )
    time_drift_ns_per_h: float = option(
        0.0, "Standard deviation of the rates at which the telescopes' clock offsets grow.", 0, 1e6
    )
    trigger_walk_ns: float = option(
        0.0,
        "Small images trigger late: by this times the square root of threshold over size.",
        0,
        1e3,
    )
    peak_follows_trigger: bool = option(
        False,
        "A late trigger opens the readout window late: what delays it is missing in the peak time.",
    )
    pointing_delay_removed: bool = option(
        False,
        "The delay of a plane front from the pointing is taken out of the telescopes' time stamps,"
        " as sim_telarray does.",
    )
    time_outlier_fraction: float = option(
        0.0,
        "Of the telescopes' time stamps: moved by up to time_outlier_ns, as accidental triggers"
        " are.",
        0,
        1,
    )
    time_outlier_ns: float = option(500.0, "See time_outlier_fraction.", 0, 1e6)
    missing_time_fraction: float = option(
        0.0, "Of the telescopes' time stamps: zero, as ctapipe stores no time.", 0, 1
    )
    h_max_scale: float = option(
        1.0,
        "Reconstructed over true height of the shower's maximum above the ground, in the mean.",
        0.1,
        10,
    )
    failed_stereo_fraction: float = option(
        0.0, "Of the events: no direction, no core, no height, and is_valid False.", 0, 1
    )
    shuffled_rows: bool = option(
        False, "Each telescope's DL2 tables have their rows in an order of their own."
    )
    pointing_levels: tuple[str, ...] = option(
        ("dl0", "dl1"), "Data levels under which the pointing tables stand.", choices=["dl0", "dl1"]
    )
    pointing_coverage: float = option(
        1.0, "Part of a block, from its start, that the pointing tables cover.", 0, 1
    )
    shared_obs_id: bool = option(
        False, "All files have obs_id 1001, with event numbers of their own."
    )

    def check(self) -> None:
        """Refuse options that contradict each other or the array."""
        for name in ("spacing_m", "throughput_mean", "throughput_spread", "peak_delay_ns"):
            if set(getattr(self, name)) != set(TELESCOPE_TYPES):
                types = ", ".join(TELESCOPE_TYPES)
                refuse_option(name, getattr(self, name), f"a number for each of {types}")
        if not self.energy_range_tev[0] < self.energy_range_tev[1]:
            refuse_option("energy_range_tev", self.energy_range_tev, "increasing energies")
        known = set(_all_telescopes(self.array))
        grouped = [tel_id for group in self.disconnected_groups for tel_id in group]
        named: dict[str, Iterable[int]] = {
            "silent_telescopes": self.silent_telescopes,
            "removed_telescopes": self.removed_telescopes,
            "sparse_telescopes": self.sparse_telescopes,
            "shifted_telescopes": self.shifted_telescopes,
            "disconnected_groups": grouped,
            "jumping_telescope": [] if self.jumping_telescope is None else [self.jumping_telescope],
        }
        for name, tel_ids in named.items():
            if unknown := sorted(set(tel_ids) - known):
                refuse_option(name, unknown, f"telescopes of the array ({sorted(known)})")
        if len(grouped) != len(set(grouped)):
            refuse_option("disconnected_groups", self.disconnected_groups, "disjoint groups")
        if len(known - set(self.without_data)) < 2:
            raise ConfigError(
                "silent_telescopes, removed_telescopes, dead_types: leave at least two telescopes"
            )

    @property
    def n_telescope_events_per_file(self) -> int | None:
        """Telescope events at least in each file, where `n_telescope_events` is given."""
        if self.n_telescope_events is None:
            return None
        return -(-self.n_telescope_events // self.n_files)

    def obs_id(self, block: int) -> int:
        """Return the number of an observation block."""
        return _FIRST_OBS_ID + (0 if self.shared_obs_id else block)

    def start_tai_s(self, block: int) -> float:
        """Return when an observation block begins, in seconds of TAI since 1970."""
        return START_TAI_S + block * self.block_duration_s

    def pointing_alt_at(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the altitude in rad at which the telescopes point, so long after a block began."""
        drift_deg = self.pointing_drift_deg * (time_s / self.block_duration_s)
        return np.asarray(np.radians(self.pointing_alt_deg) + np.radians(drift_deg))

    @property
    def without_data(self) -> tuple[int, ...]:
        """Telescopes that see nothing, or are not there."""
        dead = [t for t, kind in _all_telescopes(self.array).items() if kind in self.dead_types]
        return (*self.silent_telescopes, *self.removed_telescopes, *dead)


@dataclass(frozen=True)
class SimulatedArray:
    """What was simulated: the truth, and the files it was written to, if any.

    Parameters
    ----------
    options : ArraySimulation
        As asked for.
    tel_type : dict of int to str
        Type (LST, MST, SST) of each telescope of the layout, in the layout's order.
    position_m : dict of int to tuple of float
        x (North), y (West), z (up).
    throughput : dict of int to float
        c, such that a telescope's energies are c times too high; before a jump.
    time_offset_ns : dict of int to float
        By how much a telescope's time stamps are late at the start of the first file.
    time_drift_ns_per_h : dict of int to float
        By how much more they are late an hour later.
    paths : tuple of Path
        The files, by obs_id.
    n_telescope_events : int
        In all files.
    """

    options: ArraySimulation
    tel_type: dict[int, str]
    position_m: dict[int, tuple[float, float, float]]
    throughput: dict[int, float]
    time_offset_ns: dict[int, float]
    time_drift_ns_per_h: dict[int, float]
    paths: tuple[Path, ...] = ()
    n_telescope_events: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return the truth for JSON: what ``truth.json`` holds."""
        return {
            "throughput": self.throughput,
            "time_offset_ns": self.time_offset_ns,
            "time_drift_ns_per_h": self.time_drift_ns_per_h,
            "tel_type": self.tel_type,
            "position_m": self.position_m,
            "options": asdict(self.options),
            "n_tel_events": self.n_telescope_events,
            "files": [path.name for path in self.paths],
        }


def true_array(options: ArraySimulation) -> SimulatedArray:
    """Return the telescopes and their true throughputs and time offsets; nothing is written.

    Each telescope has a random stream of its own, so its truth does not depend on which others
    take part.
    """
    tel_type = {
        tel_id: kind
        for tel_id, kind in _all_telescopes(options.array).items()
        if tel_id not in options.removed_telescopes
    }
    if options.unsorted_layout:
        rng = random_stream(options, _LAYOUT_STREAM)
        tel_type = {int(tel_id): tel_type[int(tel_id)] for tel_id in rng.permutation([*tel_type])}
    positions = _positions(options)
    throughput, time_offset_ns, time_drift = {}, {}, {}
    for tel_id, kind in tel_type.items():
        z_throughput, z_offset = random_stream(options, _TELESCOPE_STREAM, tel_id).standard_normal(
            2
        )
        log_throughput = options.throughput_spread[kind] * z_throughput
        throughput[tel_id] = float(options.throughput_mean[kind] * np.exp(log_throughput))
        time_offset_ns[tel_id] = float(options.time_offset_spread_ns * z_offset)
        z_drift = random_stream(options, _TELESCOPE_STREAM, tel_id, 1).standard_normal()
        time_drift[tel_id] = float(options.time_drift_ns_per_h * z_drift)
    return SimulatedArray(
        options=options,
        tel_type=tel_type,
        position_m={tel_id: positions[tel_id] for tel_id in tel_type},
        throughput=throughput,
        time_offset_ns=time_offset_ns,
        time_drift_ns_per_h=time_drift,
    )


def _all_telescopes(array: str) -> dict[int, str]:
    """Return the type of each tel_id of an array."""
    return {
        TELESCOPE_TYPES[kind].first_tel_id + i: kind
        for kind, number in ARRAYS[array].items()
        for i in range(number)
    }


def _positions(options: ArraySimulation) -> dict[int, tuple[float, float, float]]:
    numbers = ARRAYS[options.array]
    half_m = options.spacing_m["LST"] / 2
    ground_m = {
        "LST": half_m * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]),
        "MST": options.spacing_m["MST"] * _hexagonal_grid(numbers["MST"]),
        # SSTs leave out the centre, where the other types stand.
        "SST": options.spacing_m["SST"] * _hexagonal_grid(numbers["SST"] + 1)[1:],
    }
    positions = {}
    for kind, number in numbers.items():
        for i in range(number):
            tel_id = TELESCOPE_TYPES[kind].first_tel_id + i
            x_m, y_m = ground_m[kind][i]
            x_m += options.shift_m if tel_id in options.shifted_telescopes else 0.0
            positions[tel_id] = (float(x_m), float(y_m), TELESCOPE_TYPES[kind].height_m)
    return positions


def _hexagonal_grid(n: int) -> NDArray[np.float64]:
    """Return the n points nearest to the origin of a hexagonal grid of spacing 1, (n, 2)."""
    i, j = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), indexing="ij")
    points = np.stack([i + j / 2, j * np.sqrt(3) / 2], axis=-1).reshape(-1, 2)
    # Rounded, so that points at one distance sort by angle and not by rounding errors.
    distance = np.hypot(points[:, 0], points[:, 1]).round(6)
    angle = (np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)).round(6)
    return points[np.lexsort((angle, distance))[:n]]
