"""DL2 files of a Cherenkov telescope array with known truth, in the format of ctapipe 0.32.

The model is as simple as an inter-calibration allows. A shower lights up a pool on the ground; a
telescope sees it when its image is large enough; each telescope then says what the energy was.

Per shower: energy from a power law, core uniform on the ground, direction around the pointing,
height of maximum, and one factor on all of its light (the shower's own fluctuation).

Per telescope i of throughput c_i, at distance r_i from the shower axis::

    expected image    m_i = energy * density(r_i) * area_i * efficiency * c_i   (photoelectrons)
    image             hillas_intensity ~ Poisson(m_i);  triggered where >= the type's threshold
    energy            ln x_i = ln energy + ln c_i + s_i z_i,  z_i ~ N(0, 1)
    its scatter       s_i^2 = energy_resolution^2 + photon_noise^2 / m_i
    trigger time      t_i = t_0 + spherical front + offset_i + jitter

What is biased, and what is not. The trigger looks at the image alone, and z_i is independent of
the image. So over any selection that does not look at x_i, the mean of d = ln x_i - ln x_j is
exactly ln c_i - ln c_j: cuts on the impact distances, on ``hillas_intensity``, on gammaness, on
validity, on the relative energy uncertainty, on time. Cuts on x_i (an energy threshold) or on
quantities made of it (absolute uncertainty, stereo energy) do shift d, for energies within a few
s_i of the threshold; ``energy_range_tev`` starts at three times the usual 0.05 TeV for it.
Ratios of *image sizes* carry the trigger bias (images just above threshold are fluctuations
upwards, in the dimmer telescope more often), the asymmetry of the Poisson law, and whatever the two
impact distances differ by.

Random numbers: telescopes, showers and faults have their own streams. A file depends on the
options, the seed and its number, not on how many other files there are. A fault that only touches
stored values or their order leaves all other values as they were.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask import __version__
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import tables
    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

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


_TYPES: Final = MappingProxyType(
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

# Light on the ground of a 1 TeV gamma-ray shower at about 2000 m: Völk & Bernlöhr 2009,
# Exp. Astron. 25, 173, section 2: about 100 photons/m^2 (300-600 nm), nearly flat within 120 m. The
# fall beyond is put as an exponential: it has to make trigger and size depend on distance, no more.
_LIGHT_DENSITY_PER_M2_TEV: Final = 100.0
_LIGHT_POOL_RADIUS_M: Final = 120.0
_LIGHT_FALL_M: Final = 60.0
_PHOTON_EFFICIENCY: Final = 0.15

# Heitler's shower, Matthews 2005, Astropart. Phys. 22, 387, section 2: X_max = X_0 ln(E / E_c).
_RADIATION_LENGTH_G_CM2: Final = 37.0
_CRITICAL_ENERGY_TEV: Final = 85e-6
_DEPTH_FLUCTUATION_G_CM2: Final = 40.0
_ATMOSPHERE_DEPTH_G_CM2: Final = 1030.0
_ATMOSPHERE_SCALE_HEIGHT_M: Final = 8000.0

_NS_PER_M: Final = 1.00025 / 0.299792458  # mean refractive index of air along the path, over c
_QUARTER_NS_PER_S: Final = 4_000_000_000
_EARTH_RADIUS_M: Final = 6_378_137.0  # WGS84, at the equator
_TAI_MINUS_UTC_S: Final = 37
_FIRST_OBS_ID: Final = 1001
_START_TAI_S: Final = 1_700_000_037  # 2023-11-14T22:13:20 UTC
_SUBARRAY_EVENT: Final = 32  # ctapipe.containers.EventType.SUBARRAY
_POINTING_STEP_S: Final = 10
_SHOWERS_PER_CHUNK: Final = 8192
_FRUITLESS_CHUNKS: Final = 100

# Least and greatest values of the options.
_RANGES: Final = {
    "n_files": (1, 20_000),
    "n_events": (1, 1e8),
    "n_telescope_events": (1, 1e10),
    "seed": (0, np.inf),
    "spectral_index": (-5, 5),
    "energy_resolution": (0, 2),
    "photon_noise": (0, 10),
    "shower_fluctuation": (0, 2),
    "core_margin_m": (0, 5000),
    "direction_spread_deg": (0, 5),
    "core_resolution_m": (0, 1000),
    "direction_resolution_deg": (0, 5),
    "h_max_resolution": (0, 1),
    "pointing_alt_deg": (30, 89),
    "pointing_az_deg": (-360, 360),
    "observatory_altitude_m": (0, 4000),
    "time_offset_spread_ns": (0, 1e6),
    "time_jitter_ns": (0, 1e6),
    "block_duration_s": (1, 1e5),
    "invalid_fraction": (0, 1),
    "nan_valid_fraction": (0, 1),
    "missing_uncertainty_fraction": (0, 1),
    "outlier_fraction": (0, 1),
    "outlier_factor": (1e-3, 1e3),
    "shift_m": (-1e5, 1e5),
    "jump_time_s": (0, 1e12),
    "jump_factor": (1e-3, 1e3),
}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _are_ints(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_int(v) for v in value)


def _is_map(value: object, is_key: Callable[[Any], bool], is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(is_key(k) and is_value(v) for k, v in value.items())


# By the annotation of an option: options also come from command lines, with any type.
_IS_OF_TYPE: Final[Mapping[str, Callable[[Any], bool]]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "int | None": lambda value: value is None or _is_int(value),
    "float": _is_number,
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": _are_ints,
    "tuple[float, float]": lambda value: (
        isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    ),
    "tuple[str, ...]": lambda value: (
        isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    ),
    "tuple[tuple[int, ...], ...]": lambda value: (
        isinstance(value, tuple) and all(map(_are_ints, value))
    ),
    "dict[str, float]": lambda value: _is_map(value, lambda k: isinstance(k, str), _is_number),
    "dict[int, int]": lambda value: _is_map(value, _is_int, _is_int),
}

# First numbers of the spawn keys.
_TELESCOPE_STREAM, _LAYOUT_STREAM, _SHOWER_STREAM, _FAULT_STREAM = range(4)


@dataclass(frozen=True)
class ArraySimulation:
    """What to simulate. Everything below "Faults" is off unless said otherwise.

    Parameters
    ----------
    n_files : int
        Files, each one observation block (obs_id 1001, 1002, ...) of `block_duration_s`.
    n_events : int
        Array events (two telescopes or more) in each file.
    n_telescope_events : int, optional
        Instead of `n_events`: telescope events in all files together. A file ends on an event, so
        there may be more by the telescopes of one event per file.
    seed : int
        Of everything random.
    array : str
        "mixed" (4 LST, 14 MST, 18 SST) or "reduced" (4 LST, 7 MST, 6 SST).
    spacing_m : mapping of str to float
        Distance of neighbours, per type: LSTs on a square, MSTs and SSTs on hexagonal grids.
    throughput_mean, throughput_spread : mapping of str to float
        Per type: median throughput, and the standard deviation of its logarithm.
    energy_range_tev : tuple of float
        Least and greatest energy of a shower.
    spectral_index : float
        Of the power law dN/dE ~ E**-index.
    energy_resolution : float
        Scatter of ln energy of one telescope, for a very large image.
    photon_noise : float
        Further scatter of one telescope: this over the square root of its expected photoelectrons.
    shower_fluctuation : float
        Standard deviation of the logarithm of the light of a shower, shared by its telescopes.
    core_margin_m : float
        Showers fall on the rectangle around the telescopes, enlarged by this on each side.
    direction_spread_deg : float
        Scatter of the showers' directions around the pointing, in each coordinate.
    core_resolution_m, direction_resolution_deg, h_max_resolution : float
        Errors of the stereo reconstruction (per coordinate; relative for h_max). The distances of
        all telescopes to one shower share them.
    pointing_alt_deg, pointing_az_deg : float
        Where the telescopes point, all the time.
    observatory_altitude_m : float
        Of the ground above the sea. As in ctapipe, the stored h_max counts from sea level.
    time_offset_spread_ns, time_jitter_ns : float
        Standard deviations of a telescope's clock offset, and of its single time stamps.
    block_duration_s : float
        Length of an observation block; its events are uniform in time.

        **Faults**
    unsorted_layout : bool
        Telescopes stand in the layout in a random order, not by tel_id.
    invalid_fraction : float
        Of the telescope energies: NaN with ``is_valid`` False, as of failed reconstructions (2 %).
    nan_valid_fraction : float
        NaN although ``is_valid`` is True.
    missing_uncertainty_fraction : float
        Energies without an uncertainty (NaN).
    outlier_fraction, outlier_factor : float
        Of the telescope energies: multiplied by the factor, with an uncertainty that knows nothing.
    silent_telescopes : tuple of int
        In the layout, without data.
    removed_telescopes : tuple of int
        Neither in the layout nor in the data.
    dead_types : tuple of str
        Types of telescope that are in the layout, without data.
    sparse_telescopes : mapping of int to int
        tel_id: greatest number of its telescope events in a file. With 1, its pairs have n = 1.
    disconnected_groups : tuple of tuple of int
        Groups of telescopes that have no event in common. Telescopes in none see all events.
    shifted_telescopes, shift_m : tuple of int, float
        These stand so many metres further North.
    jumping_telescope : int, optional
        A telescope whose throughput changes once, as by cleaning its mirrors.
    jump_time_s, jump_factor : float
        When, in seconds from the start of the first file; throughput after over throughput before.
    shuffled_rows : bool
        Each telescope's DL2 tables have their rows in an order of their own.
    shared_obs_id : bool
        All files have obs_id 1001, with event numbers of their own.

    Raises
    ------
    ConfigError
        A value out of its range, or a telescope or type that the array does not have.
    """

    n_files: int = 2
    n_events: int = 500
    n_telescope_events: int | None = None
    seed: int = 0
    array: str = "mixed"
    spacing_m: dict[str, float] = field(
        default_factory=lambda: {"LST": 115.0, "MST": 150.0, "SST": 250.0}
    )
    throughput_mean: dict[str, float] = field(
        default_factory=lambda: {"LST": 1.0, "MST": 1.0, "SST": 0.9}
    )
    throughput_spread: dict[str, float] = field(
        default_factory=lambda: {"LST": 0.1, "MST": 0.1, "SST": 0.1}
    )
    energy_range_tev: tuple[float, float] = (0.15, 100.0)
    spectral_index: float = 2.0
    energy_resolution: float = 0.15
    photon_noise: float = 1.0
    shower_fluctuation: float = 0.1
    core_margin_m: float = 150.0
    direction_spread_deg: float = 0.5
    core_resolution_m: float = 8.0
    direction_resolution_deg: float = 0.05
    h_max_resolution: float = 0.05
    pointing_alt_deg: float = 70.0
    pointing_az_deg: float = 180.0
    observatory_altitude_m: float = 2150.0
    time_offset_spread_ns: float = 8.0
    time_jitter_ns: float = 1.5
    block_duration_s: float = 1200.0
    unsorted_layout: bool = False
    invalid_fraction: float = 0.02
    nan_valid_fraction: float = 0.0
    missing_uncertainty_fraction: float = 0.0
    outlier_fraction: float = 0.0
    outlier_factor: float = 3.0
    silent_telescopes: tuple[int, ...] = ()
    removed_telescopes: tuple[int, ...] = ()
    dead_types: tuple[str, ...] = ()
    sparse_telescopes: dict[int, int] = field(default_factory=dict)
    disconnected_groups: tuple[tuple[int, ...], ...] = ()
    shifted_telescopes: tuple[int, ...] = ()
    shift_m: float = 0.0
    jumping_telescope: int | None = None
    jump_time_s: float = 600.0
    jump_factor: float = 0.8
    shuffled_rows: bool = False
    shared_obs_id: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._check_numbers()
        self._check_telescopes()

    def _check_types(self) -> None:
        for option in fields(self):
            if not _IS_OF_TYPE[str(option.type)](value := getattr(self, option.name)):
                _refuse(option.name, repr(value), f"of type {option.type}")

    def _check_numbers(self) -> None:
        if self.array not in ARRAYS:
            _refuse("array", self.array, f"one of {', '.join(ARRAYS)}")
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                _refuse(name, value, f"between {lowest:g} and {highest:g}")
        low_tev, high_tev = self.energy_range_tev
        if not 0.01 <= low_tev < high_tev <= 1e4:
            _refuse("energy_range_tev", self.energy_range_tev, "rising, within 0.01 and 10000 TeV")

    def _check_telescopes(self) -> None:
        types = set(_TYPES)
        for name in ("spacing_m", "throughput_mean", "throughput_spread"):
            values: dict[str, float] = getattr(self, name)
            lowest = 0.0 if name == "throughput_spread" else np.nextafter(0, 1)
            if set(values) != types or not all(lowest <= v < np.inf for v in values.values()):
                _refuse(name, values, f"a positive number for each of {', '.join(_TYPES)}")
        if unknown := set(self.dead_types) - types:
            _refuse("dead_types", sorted(unknown), f"among {', '.join(_TYPES)}")
        known = set(_all_telescopes(self.array))
        named: dict[str, Sequence[int]] = {
            "silent_telescopes": self.silent_telescopes,
            "removed_telescopes": self.removed_telescopes,
            "sparse_telescopes": list(self.sparse_telescopes),
            "shifted_telescopes": self.shifted_telescopes,
            "disconnected_groups": [t for group in self.disconnected_groups for t in group],
            "jumping_telescope": [] if self.jumping_telescope is None else [self.jumping_telescope],
        }
        for name, tel_ids in named.items():
            if unknown_ids := sorted(set(tel_ids) - known):
                _refuse(name, unknown_ids, f"telescopes of the array ({sorted(known)})")
        grouped = named["disconnected_groups"]
        if len(grouped) != len(set(grouped)):
            _refuse("disconnected_groups", self.disconnected_groups, "disjoint")
        if self.sparse_telescopes and min(self.sparse_telescopes.values()) < 1:
            _refuse("sparse_telescopes", self.sparse_telescopes, "1 event or more each")
        if len(known - set(self._without_data)) < 2:
            msg = "silent_telescopes, removed_telescopes, dead_types: leave at least two telescopes"
            raise ConfigError(msg)

    @property
    def _without_data(self) -> tuple[int, ...]:
        dead = [t for t, kind in _all_telescopes(self.array).items() if kind in self.dead_types]
        return (*self.silent_telescopes, *self.removed_telescopes, *dead)


@dataclass(frozen=True)
class SimulatedArray:
    """What was simulated: the truth, and the files that `simulate_array` wrote.

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
        By how much a telescope's time stamps are late.
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
    paths: tuple[Path, ...] = ()
    n_telescope_events: int = 0

    def to_json(self) -> str:
        """Return the truth as JSON: what ``truth.json`` holds."""
        return json.dumps(
            {
                "throughput": self.throughput,
                "time_offset_ns": self.time_offset_ns,
                "tel_type": self.tel_type,
                "position_m": self.position_m,
                "options": asdict(self.options),
                "n_tel_events": self.n_telescope_events,
                "files": [path.name for path in self.paths],
            },
            indent=1,
        )


def simulate_array(
    output: Path,
    options: ArraySimulation,
    progress: Callable[[int, int], None] | None = None,
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
    output.mkdir(parents=True, exist_ok=True)
    paths = tuple(block_path(output, options, block) for block in range(options.n_files))
    truth_path = output / "truth.json"
    if existing := [path for path in (*paths, truth_path) if path.exists()]:
        msg = f"{existing[0]}: exists already; remove it or choose another directory"
        raise ConfigError(msg)
    n_telescope_events = 0
    for block, path in enumerate(paths):
        n_telescope_events += simulate_block(path, options, block)
        if progress is not None:
            progress(block + 1, len(paths))
    simulated = replace(true_array(options), paths=paths, n_telescope_events=n_telescope_events)
    truth_path.write_text(simulated.to_json() + "\n", encoding="utf-8")
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
    from calibdask.io.hdf5 import create_hdf5, write_root_attributes

    array = true_array(options)
    telescopes = _Telescopes.of(array)
    events, images = _simulate_events(options, telescopes, block)
    _reconstruct(options, telescopes, block, events, images)
    with create_hdf5(path) as file:
        write_root_attributes(file, _reference_metadata(options, block))
        _write_instrument(file, options, array)
        _write_observation(file, options, telescopes, block)
        _write_subarray_events(file, telescopes, events, images)
        _write_telescope_events(file, options, telescopes, block, events, images)
    return len(images["telescope"])


def block_path(output: Path, options: ArraySimulation, block: int) -> Path:
    """Return the name that `simulate_array` gives to the file of a block."""
    name = f"dl2_obs{_obs_id(options, block)}"
    return output / (f"{name}_part{block}.h5" if options.shared_obs_id else f"{name}.h5")


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
        rng = _stream(options, _LAYOUT_STREAM)
        tel_type = {int(tel_id): tel_type[int(tel_id)] for tel_id in rng.permutation([*tel_type])}
    positions = _positions(options)
    throughput, time_offset_ns = {}, {}
    for tel_id, kind in tel_type.items():
        z_throughput, z_offset = _stream(options, _TELESCOPE_STREAM, tel_id).standard_normal(2)
        log_throughput = options.throughput_spread[kind] * z_throughput
        throughput[tel_id] = float(options.throughput_mean[kind] * np.exp(log_throughput))
        time_offset_ns[tel_id] = float(options.time_offset_spread_ns * z_offset)
    return SimulatedArray(
        options=options,
        tel_type=tel_type,
        position_m={tel_id: positions[tel_id] for tel_id in tel_type},
        throughput=throughput,
        time_offset_ns=time_offset_ns,
    )


def _refuse(name: str, value: object, wanted: str) -> None:
    msg = f"{name}: must be {wanted}, is {value}"
    raise ConfigError(msg)


def _stream(options: ArraySimulation, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))


def _obs_id(options: ArraySimulation, block: int) -> int:
    return _FIRST_OBS_ID + (0 if options.shared_obs_id else block)


def _all_telescopes(array: str) -> dict[int, str]:
    """Return the type of each tel_id of an array."""
    return {
        _TYPES[kind].first_tel_id + i: kind
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
            tel_id = _TYPES[kind].first_tel_id + i
            x_m, y_m = ground_m[kind][i]
            x_m += options.shift_m if tel_id in options.shifted_telescopes else 0.0
            positions[tel_id] = (float(x_m), float(y_m), _TYPES[kind].height_m)
    return positions


def _hexagonal_grid(n: int) -> NDArray[np.float64]:
    """Return the n points nearest to the origin of a hexagonal grid of spacing 1, (n, 2)."""
    i, j = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), indexing="ij")
    points = np.stack([i + j / 2, j * np.sqrt(3) / 2], axis=-1).reshape(-1, 2)
    # Rounded, so that points at one distance sort by angle and not by rounding errors.
    distance = np.hypot(points[:, 0], points[:, 1]).round(6)
    angle = (np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)).round(6)
    return points[np.lexsort((angle, distance))[:n]]


@dataclass(frozen=True)
class _Telescopes:
    """The telescopes of the layout as arrays, (T,) or (T, 3), by tel_id.

    `column` is the place of each in the layout, which telescope masks follow.
    """

    tel_id: NDArray[np.int64]
    column: NDArray[np.int64]
    tel_type: NDArray[np.str_]
    position_m: NDArray[np.float64]
    throughput: NDArray[np.float64]
    time_offset_ns: NDArray[np.float64]

    @classmethod
    def of(cls, array: SimulatedArray) -> _Telescopes:
        layout = [*array.tel_type]
        tel_ids = sorted(layout)
        return cls(
            tel_id=np.array(tel_ids),
            column=np.array([layout.index(t) for t in tel_ids]),
            tel_type=np.array([array.tel_type[t] for t in tel_ids]),
            position_m=np.array([array.position_m[t] for t in tel_ids]),
            throughput=np.array([array.throughput[t] for t in tel_ids]),
            time_offset_ns=np.array([array.time_offset_ns[t] for t in tel_ids]),
        )

    def of_type(self, attribute: str) -> NDArray[np.float64]:
        """Return a number of the telescopes' type for each telescope, (T,)."""
        return np.array([float(getattr(_TYPES[kind], attribute)) for kind in self.tel_type])

    def index(self, tel_id: int) -> int:
        return int(np.flatnonzero(self.tel_id == tel_id)[0])


def _simulate_events(
    options: ArraySimulation, telescopes: _Telescopes, block: int
) -> tuple[Columns, Columns]:
    """Throw showers until the block is full.

    Returns
    -------
    events : dict of str to array, (E,)
        True quantities of the showers, sorted by time.
    images : dict of str to array, (R,)
        Of the triggered telescopes, sorted by event; "event" and "telescope" are indices.
    """
    rng = _stream(options, _SHOWER_STREAM, block)
    n_sparse_seen = np.zeros(len(telescopes.tel_id), dtype=np.int64)
    if options.n_telescope_events is not None:
        wanted = -(-options.n_telescope_events // options.n_files)
    else:
        wanted = options.n_events
    chunks: list[tuple[Columns, Columns]] = []
    n_found, n_fruitless = 0, 0
    while n_found < wanted:
        showers, images = _throw_showers(rng, options, telescopes, block, n_sparse_seen)
        counted = showers["time_s"] if options.n_telescope_events is None else images["event"]
        n_found += len(counted)
        n_fruitless = 0 if len(images["event"]) else n_fruitless + 1
        if n_fruitless == _FRUITLESS_CHUNKS:
            n_showers = _FRUITLESS_CHUNKS * _SHOWERS_PER_CHUNK
            msg = (
                f"obs_id {_obs_id(options, block)}: none of {n_showers} showers triggers two "
                "telescopes; raise energy_range_tev or let more telescopes take part"
            )
            raise ConfigError(msg)
        chunks.append((showers, images))

    first = np.cumsum([0, *(len(showers["time_s"]) for showers, _ in chunks)])
    events = {k: np.concatenate([showers[k] for showers, _ in chunks]) for k in chunks[0][0]}
    images = {k: np.concatenate([found[k] for _, found in chunks]) for k in chunks[0][1]}
    images["event"] += np.repeat(first[:-1], [len(found["event"]) for _, found in chunks])

    n_events = wanted
    if options.n_telescope_events is not None:
        n_events = int(images["event"][wanted - 1]) + 1
    order = np.argsort(events["time_s"][:n_events], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(n_events)
    events = {k: values[order] for k, values in events.items()}
    images = {
        k: values[: np.searchsorted(images["event"], n_events)] for k, values in images.items()
    }
    images["event"] = rank[images["event"]]
    order = np.argsort(images["event"], kind="stable")
    return events, {k: values[order] for k, values in images.items()}


def _throw_showers(
    rng: np.random.Generator,
    options: ArraySimulation,
    telescopes: _Telescopes,
    block: int,
    n_sparse_seen: NDArray[np.int64],
) -> tuple[Columns, Columns]:
    """Throw a chunk of showers; keep those that two telescopes or more see.

    `n_sparse_seen` counts, from chunk to chunk, the events of the telescopes that may have few.
    """
    n = _SHOWERS_PER_CHUNK
    energy_tev = _power_law(rng.random(n), options.energy_range_tev, options.spectral_index)
    corners_m = telescopes.position_m[:, :2]
    lowest_m = corners_m.min(axis=0) - options.core_margin_m
    highest_m = corners_m.max(axis=0) + options.core_margin_m
    core_m = rng.uniform(lowest_m, highest_m, size=(n, 2))
    spread_deg = options.direction_spread_deg * rng.standard_normal((2, n))
    pointing_alt = np.radians(options.pointing_alt_deg)
    # Kept off the zenith, where the azimuth loses its meaning.
    alt = np.minimum(pointing_alt + np.radians(spread_deg[0]), np.radians(89.9))
    az = np.radians(options.pointing_az_deg) + np.radians(spread_deg[1]) / np.cos(pointing_alt)
    fluctuation = np.exp(options.shower_fluctuation * rng.standard_normal(n))
    showers = {
        "time_s": options.block_duration_s * rng.random(n),
        "light_tev": energy_tev * fluctuation,
        "core_x_m": core_m[:, 0],
        "core_y_m": core_m[:, 1],
        "alt": alt,
        "az": az,
        "h_max_m": _height_of_maximum(energy_tev, alt, rng.standard_normal(n)),
    }

    impact_m, along_m = _impact(telescopes.position_m[None], showers, np.s_[:, None])
    area_m2 = telescopes.of_type("mirror_area_m2")
    throughput = np.broadcast_to(telescopes.throughput, impact_m.shape)
    if options.jumping_telescope in telescopes.tel_id:
        time_s = showers["time_s"] + block * options.block_duration_s
        jumping = telescopes.tel_id == options.jumping_telescope
        after = (time_s >= options.jump_time_s)[:, None] & jumping
        throughput = np.where(after, options.jump_factor, 1) * throughput
    expected_pe = showers["light_tev"][:, None] * throughput
    expected_pe *= area_m2 * (_LIGHT_DENSITY_PER_M2_TEV * _PHOTON_EFFICIENCY)
    expected_pe *= np.exp(-np.maximum(impact_m - _LIGHT_POOL_RADIUS_M, 0) / _LIGHT_FALL_M)

    threshold_pe = telescopes.of_type("threshold_pe")
    # Below a quarter of the threshold, a Poisson law reaches it once in 1e7 times at most.
    possible = expected_pe > threshold_pe / 4
    possible[:, np.isin(telescopes.tel_id, options._without_data)] = False
    event, telescope = np.nonzero(possible)
    intensity_pe = rng.poisson(expected_pe[event, telescope])
    triggered = np.zeros(impact_m.shape, dtype=bool)
    triggered[event, telescope] = intensity_pe >= threshold_pe[telescope]
    if options.disconnected_groups:
        seen_by = rng.integers(len(options.disconnected_groups), size=n)
        for i, group in enumerate(options.disconnected_groups):
            triggered &= ~np.isin(telescopes.tel_id, group) | (seen_by == i)[:, None]
    for tel_id, n_most in options.sparse_telescopes.items():
        if tel_id in telescopes.tel_id:
            i = telescopes.index(tel_id)
            coincident = triggered[:, i] & (triggered.sum(axis=1) >= 2)
            triggered[:, i] = coincident & (n_sparse_seen[i] + np.cumsum(coincident) <= n_most)
            n_sparse_seen[i] += np.count_nonzero(triggered[:, i])

    kept = triggered.sum(axis=1) >= 2
    seen = (triggered & kept[:, None])[event, telescope]
    event, telescope = event[seen], telescope[seen]
    images = {
        "event": (np.cumsum(kept) - 1)[event],
        "telescope": telescope,
        "intensity_pe": intensity_pe[seen],
        "expected_pe": expected_pe[event, telescope],
        "throughput": throughput[event, telescope],
        "true_impact_m": impact_m[event, telescope],
        "true_along_m": along_m[event, telescope],
    }
    return {k: values[kept] for k, values in showers.items()}, images


def _power_law(
    uniform: NDArray[np.float64], range_tev: tuple[float, float], index: float
) -> NDArray[np.float64]:
    """Return energies of dN/dE ~ E**-index by inverting its integral."""
    low_tev, high_tev = range_tev
    if np.isclose(index, 1):
        return np.asarray(low_tev * (high_tev / low_tev) ** uniform)
    low, high = low_tev ** (1 - index), high_tev ** (1 - index)
    return np.asarray((low + uniform * (high - low)) ** (1 / (1 - index)))


def _height_of_maximum(
    energy_tev: NDArray[np.float64], alt: NDArray[np.float64], z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the height above sea level of showers' maxima in an exponential atmosphere."""
    depth_g_cm2 = _RADIATION_LENGTH_G_CM2 * np.log(energy_tev / _CRITICAL_ENERGY_TEV)
    # No deeper than 500 g/cm^2: 5.8 km, above all grounds that are allowed.
    depth_g_cm2 = np.clip(depth_g_cm2 + _DEPTH_FLUCTUATION_G_CM2 * z, 50, 500)
    vertical_g_cm2 = depth_g_cm2 * np.sin(alt)
    return np.asarray(_ATMOSPHERE_SCALE_HEIGHT_M * np.log(_ATMOSPHERE_DEPTH_G_CM2 / vertical_g_cm2))


def _impact(
    position_m: NDArray[np.float64], showers: Columns, index: Any, prefix: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distances of telescopes from shower axes, and their places along them.

    `position_m` is (..., 3); ``showers[name][index]`` must have the shape (...) or broadcast to it.
    The axis points to n = (cos alt cos az, -cos alt sin az, sin alt), x North and y West.
    """
    alt, az = showers[f"{prefix}alt"][index], showers[f"{prefix}az"][index]
    x_m = position_m[..., 0] - showers[f"{prefix}core_x_m"][index]
    y_m = position_m[..., 1] - showers[f"{prefix}core_y_m"][index]
    z_m = position_m[..., 2]
    along_m = (
        x_m * (np.cos(alt) * np.cos(az)) - y_m * (np.cos(alt) * np.sin(az)) + z_m * np.sin(alt)
    )
    impact_m = np.sqrt(np.maximum(x_m**2 + y_m**2 + z_m**2 - along_m**2, 0))
    return impact_m, along_m


def _reconstruct(
    options: ArraySimulation, telescopes: _Telescopes, block: int, events: Columns, images: Columns
) -> None:
    """Add what a reconstruction would say, and the time stamps; then the faults of the values."""
    # The stream of the showers is used up to a number that depends on their selection.
    rng = _stream(options, _SHOWER_STREAM, block, 1)
    n_events, n_images = len(events["time_s"]), len(images["event"])
    event, telescope = images["event"], images["telescope"]

    events["event_id"] = np.arange(1, n_events + 1, dtype=np.int64)
    if options.shared_obs_id:
        events["event_id"] += block * 1_000_000_000
    events["obs_id"] = np.full(n_events, _obs_id(options, block), dtype=np.int32)

    z_x, z_y, z_alt, z_az, z_h_max, z_gammaness = rng.standard_normal((6, n_events))
    direction_error = np.radians(options.direction_resolution_deg)
    events["reco_core_x_m"] = events["core_x_m"] + options.core_resolution_m * z_x
    events["reco_core_y_m"] = events["core_y_m"] + options.core_resolution_m * z_y
    events["reco_alt"] = np.minimum(events["alt"] + direction_error * z_alt, np.pi / 2)
    events["reco_az"] = events["az"] + direction_error * z_az / np.cos(events["alt"])
    events["reco_h_max_m"] = events["h_max_m"] * np.exp(options.h_max_resolution * z_h_max)
    position_m = telescopes.position_m[telescope]
    images["impact_m"], _ = _impact(position_m, events, event, "reco_")

    images["gammaness"] = 1 / (
        1 + np.exp(-1.5 - z_gammaness[event] - rng.standard_normal(n_images))
    )
    scatter = np.hypot(
        options.energy_resolution, options.photon_noise / np.sqrt(images["expected_pe"])
    )
    energy_tev = events["light_tev"][event] * images["throughput"]
    energy_tev *= np.exp(scatter * rng.standard_normal(n_images))
    images["energy_tev"] = energy_tev
    images["energy_uncert_tev"] = energy_tev * scatter
    images["is_valid"] = np.ones(n_images, dtype=bool)

    jitter_ns = options.time_jitter_ns * rng.standard_normal(n_images)
    delay_ns = _spherical_delay(options, events, images) + jitter_ns
    delay_ns += telescopes.time_offset_ns[telescope]
    start_s = _block_start(options, block)
    events["time"] = _ctao_time(start_s + events["time_s"], np.zeros(n_events))
    images["time"] = _ctao_time(start_s + events["time_s"][event], delay_ns)
    images["peak_time_ns"] = 20 + 0.15 * rng.standard_normal(n_images)

    rng = _stream(options, _FAULT_STREAM, block)
    # Each fault takes its numbers whether it is on or not, so that one does not move another.
    is_outlier, is_invalid, is_nan, has_no_uncertainty = (
        rng.random(n_images) < fraction
        for fraction in (
            options.outlier_fraction,
            options.invalid_fraction,
            options.nan_valid_fraction,
            options.missing_uncertainty_fraction,
        )
    )
    images["energy_tev"][is_outlier] *= options.outlier_factor
    images["energy_tev"][is_invalid | is_nan] = np.nan
    images["energy_uncert_tev"][is_invalid | is_nan | has_no_uncertainty] = np.nan
    images["is_valid"][is_invalid] = False


def _block_start(options: ArraySimulation, block: int) -> float:
    return _START_TAI_S + block * options.block_duration_s


def _spherical_delay(
    options: ArraySimulation, events: Columns, images: Columns
) -> NDArray[np.float64]:
    """Return when light from the shower's maximum reaches a telescope, after the core, in ns.

    t = (|L n - r| - L) n_air / c, with r the telescope seen from the core and L the distance of the
    maximum; |L n - r|^2 = (L - r.n)^2 + impact^2.
    """
    height_m = events["h_max_m"] - options.observatory_altitude_m
    distance_m = (height_m / np.sin(events["alt"]))[images["event"]]
    path_m = np.hypot(distance_m - images["true_along_m"], images["true_impact_m"])
    return np.asarray((path_m - distance_m) * _NS_PER_M)


def _ctao_time(tai_s: NDArray[np.float64], delay_ns: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Return times as ctapipe stores them: seconds of TAI since 1970 and quarter-ns, (n, 2)."""
    second = np.floor(tai_s)
    # The delay comes in as an integer: a float of 1.7e9 s resolves 240 ns only.
    quarters = np.floor((tai_s - second) * _QUARTER_NS_PER_S).astype(np.int64)
    quarters += np.rint(4 * delay_ns).astype(np.int64)
    carry, quarters = np.divmod(quarters, _QUARTER_NS_PER_S)
    return np.stack([second.astype(np.int64) + carry, quarters], axis=1).astype(np.uint32)


def _reference_metadata(options: ArraySimulation, block: int) -> dict[str, str]:
    """Return the observatory's "CTA ..." attributes; the same in each run, but for the block."""
    # What other blocks there are must not show in this one.
    identity = asdict(options) | {"n_files": 1, "block": block}
    if options.n_telescope_events is not None:
        identity["n_telescope_events"] = -(-options.n_telescope_events // options.n_files)
    product = uuid.uuid5(uuid.NAMESPACE_URL, f"calibdask-simulation:{json.dumps(identity)}")
    start_utc_s = _block_start(options, block) - _TAI_MINUS_UTC_S
    date = datetime.fromtimestamp(start_utc_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S.000")
    return {
        "CTA REFERENCE VERSION": "1",
        "CTA CONTACT ORGANIZATION": "unknown",
        "CTA CONTACT NAME": "unknown",
        "CTA CONTACT EMAIL": "unknown",
        "CTA PRODUCT DESCRIPTION": "Simulated DL2 with known throughputs and time offsets",
        "CTA PRODUCT CREATION TIME": date,
        "CTA PRODUCT ID": str(product),
        "CTA PRODUCT DATA CATEGORY": "Sim",
        "CTA PRODUCT DATA LEVELS": "DL1_PARAMETERS,DL2",
        "CTA PRODUCT DATA ASSOCIATION": "Subarray",
        "CTA PRODUCT DATA MODEL NAME": "ASWG",
        "CTA PRODUCT DATA MODEL VERSION": "v7.6.0",
        "CTA PRODUCT FORMAT": "hdf5",
        "CTA PROCESS TYPE": "Simulation",
        "CTA PROCESS SUBTYPE": "",
        "CTA PROCESS ID": str(_obs_id(options, block)),
        "CTA ACTIVITY NAME": "calibdask simulate",
        "CTA ACTIVITY TYPE": "software",
        "CTA ACTIVITY ID": str(uuid.uuid5(product, "activity")),
        "CTA ACTIVITY START TIME": date,
        "CTA ACTIVITY STOP TIME": date,
        "CTA ACTIVITY SOFTWARE NAME": "calibdask",
        "CTA ACTIVITY SOFTWARE VERSION": __version__,
        "CTA INSTRUMENT SITE": "Other",
        "CTA INSTRUMENT CLASS": "Other",
        "CTA INSTRUMENT TYPE": "unspecified",
        "CTA INSTRUMENT SUBTYPE": "unspecified",
        "CTA INSTRUMENT VERSION": "unspecified",
        "CTA INSTRUMENT ID": options.array,
    }


def _write_instrument(file: tables.File, options: ArraySimulation, array: SimulatedArray) -> None:
    """Write what `ctapipe.instrument.SubarrayDescription.from_hdf` reads; cameras are invented."""
    kinds = sorted(set(array.tel_type.values()))
    index = np.array([kinds.index(kind) for kind in array.tel_type.values()])
    names = np.array(kinds)[index]
    cameras = np.array([f"{kind}Cam" for kind in kinds])[index]
    position_m = np.array([*array.position_m.values()]).astype(np.float32)
    origin = {
        "ORIGIN": "ctapipe.instrument.SubarrayDescription",
        "SUBARRAY": f"calibdask-{options.array}",
        "SOFT_VER": "0.32.0",
    }
    _write_table(
        file,
        "/configuration/instrument/subarray/layout",
        {
            "tel_id": np.array([*array.tel_type], dtype=np.uint16),
            "name": names,
            "type": names,
            "pos_x": position_m[:, 0],
            "pos_y": position_m[:, 1],
            "pos_z": position_m[:, 2],
            "camera_name": cameras,
            "optics_name": names,
            "camera_index": index,
            "optics_index": index,
            "tel_description": np.array(
                [f"{name}_{name}_{camera}" for name, camera in zip(names, cameras, strict=True)]
            ),
        },
        units={"pos_x": "m", "pos_y": "m", "pos_z": "m"},
        attributes=origin
        | {
            "TAB_TYPE": "subarray",
            "TAB_VER": "2.0",
            "name": f"calibdask-{options.array}",
            "reference_itrs_x": _EARTH_RADIUS_M + options.observatory_altitude_m,
            "reference_itrs_y": 0.0,
            "reference_itrs_z": 0.0,
        },
    )
    types = [_TYPES[kind] for kind in kinds]
    _write_table(
        file,
        "/configuration/instrument/telescope/optics",
        {
            "optics_name": np.array(kinds),
            "size_type": np.array(kinds),
            "reflector_shape": np.array([t.reflector_shape for t in types]),
            "mirror_area": np.array([t.mirror_area_m2 for t in types]),
            "n_mirrors": np.array([t.n_mirrors for t in types]),
            "n_mirror_tiles": np.array([t.n_mirror_tiles for t in types]),
            "equivalent_focal_length": np.array([t.focal_length_m for t in types]),
            "effective_focal_length": np.array([t.effective_focal_length_m for t in types]),
        },
        units={
            "mirror_area": "m**2",
            "equivalent_focal_length": "m",
            "effective_focal_length": "m",
        },
        attributes=origin | {"TAB_TYPE": "optics", "TAB_VER": "4.0"},
    )
    for i, kind in enumerate(kinds):
        _write_camera(file, i, f"{kind}Cam", _TYPES[kind])


def _write_camera(file: tables.File, index: int, name: str, kind: _TelescopeType) -> None:
    """Write a camera of square pixels on a square grid, with a Gaussian reference pulse."""
    n = kind.n_pixels_per_side
    centre_m = (np.arange(n) - (n - 1) / 2) * kind.pixel_size_m
    x_m, y_m = np.meshgrid(centre_m, centre_m)
    _write_table(
        file,
        f"/configuration/instrument/telescope/camera/geometry_{index}",
        {
            "pix_id": np.arange(n * n),
            "pix_x": x_m.ravel(),
            "pix_y": y_m.ravel(),
            "pix_area": np.full(n * n, kind.pixel_size_m**2),
        },
        units={"pix_x": "m", "pix_y": "m", "pix_area": "m**2"},
        attributes={
            "CAM_ID": name,
            "PIX_TYPE": "square",
            "GRID": "square",
            "PIX_ROT": 0.0,
            "CAM_ROT": 0.0,
            "TAB_TYPE": "ctapipe.instrument.CameraGeometry",
            "TAB_VER": "2.1",
        },
    )
    time_ns = np.arange(0, 25, 0.1)
    pulse = np.exp(-0.5 * ((time_ns - 12.5) / 2) ** 2)
    _write_table(
        file,
        f"/configuration/instrument/telescope/camera/readout_{index}",
        {f"reference_pulse_shape_channel{i}": pulse for i in range(kind.n_channels)}
        | {"reference_pulse_sample_time": time_ns},
        units={"reference_pulse_sample_time": "ns"},
        attributes={
            "CAM_ID": name,
            "NCHAN": kind.n_channels,
            "NPIXELS": n * n,
            "NSAMPLES": kind.n_samples,
            "SAMPFREQ": kind.sampling_rate_ghz,
            "REFWIDTH": 0.1,
            "TAB_TYPE": "ctapipe.instrument.CameraReadout",
            "TAB_VER": "3.0",
        },
    )


def _write_observation(
    file: tables.File, options: ArraySimulation, telescopes: _Telescopes, block: int
) -> None:
    start_s = _block_start(options, block)
    start_mjd = start_s / 86400 + 40587  # of TAI
    duration_min = options.block_duration_s / 60
    row = {
        "obs_id": np.uint64(_obs_id(options, block)),
        "sb_id": np.uint64(1),
        "producer_id": np.str_("calibdask"),
        "state": np.int64(1),  # ctapipe.containers.ObservationBlockState.COMPLETED_SUCCEDED
        "subarray_pointing_lat": np.float32(options.pointing_alt_deg),
        "subarray_pointing_lon": np.float32(options.pointing_az_deg),
        "subarray_pointing_frame": np.int64(0),  # ctapipe.containers.CoordinateFrameType.ALTAZ
        "scheduled_duration": np.float64(duration_min),
        "scheduled_start_time": np.float64(start_mjd),
        "actual_start_time": np.float64(start_mjd),
        "actual_duration": np.float64(duration_min),
    }
    _write_table(
        file,
        "/configuration/observation/observation_block",
        {name: np.array([value]) for name, value in row.items()},
        units={
            "subarray_pointing_lat": "deg",
            "subarray_pointing_lon": "deg",
            "scheduled_duration": "min",
            "actual_duration": "min",
        },
    )
    # From before the first event to after the last: readers interpolate and do not extrapolate.
    n_steps = int(np.ceil(options.block_duration_s / _POINTING_STEP_S)) + 3
    times = start_s + _POINTING_STEP_S * np.arange(-1, n_steps - 1, dtype=np.float64)
    pointing = {
        "time": _ctao_time(times, np.zeros(n_steps)),
        "azimuth": np.full(n_steps, np.radians(options.pointing_az_deg)),
        "altitude": np.full(n_steps, np.radians(options.pointing_alt_deg)),
    }
    for tel_id in telescopes.tel_id:
        for level in ("dl0", "dl1"):
            _write_table(
                file,
                f"/{level}/monitoring/telescope/pointing/tel_{tel_id:03d}",
                pointing,
                units={"azimuth": "rad", "altitude": "rad"},
            )


def _write_subarray_events(
    file: tables.File, telescopes: _Telescopes, events: Columns, images: Columns
) -> None:
    n_events = len(events["event_id"])
    index = {"obs_id": events["obs_id"], "event_id": events["event_id"]}
    nan = np.broadcast_to(np.nan, n_events)
    event = images["event"]
    triggered = np.zeros((n_events, len(telescopes.tel_id)), dtype=bool)
    column = telescopes.column[images["telescope"]]
    triggered[event, column] = True
    _write_table(
        file,
        "/dl1/event/subarray/trigger",
        index
        | {
            "time": events["time"],
            "tels_with_trigger": triggered,
            "event_type": np.full(n_events, _SUBARRAY_EVENT, dtype=np.int64),
        },
    )

    size = np.bincount(event, images["intensity_pe"], n_events) / np.bincount(event)
    name = GEOMETRY_RECONSTRUCTOR
    units = dict.fromkeys(("alt", "alt_uncert", "az", "az_uncert", "ang_distance_uncert"), "deg")
    unknown = [
        *("core_uncert_x", "core_uncert_y", "core_tilted_x", "core_tilted_y"),
        *("core_tilted_uncert_x", "core_tilted_uncert_y"),
    ]
    units |= dict.fromkeys(("core_x", "core_y", *unknown, "h_max", "h_max_uncert"), "m")
    geometry = {
        "alt": np.degrees(events["reco_alt"]),
        "alt_uncert": nan,
        "az": np.degrees(events["reco_az"]) % 360,
        "az_uncert": nan,
        "ang_distance_uncert": nan,
        "core_x": events["reco_core_x_m"],
        "core_y": events["reco_core_y_m"],
        **dict.fromkeys(unknown, nan),
        "h_max": events["reco_h_max_m"],
        "h_max_uncert": nan,
        "is_valid": np.ones(n_events, dtype=bool),
        "average_intensity": size,
        "goodness_of_fit": nan,
        "telescopes": triggered,
    }
    _write_table(
        file,
        f"/dl2/event/subarray/geometry/{name}",
        index | {f"{name}_{key}": values for key, values in geometry.items()},
        units={f"{name}_{key}": unit for key, unit in units.items()},
    )

    used = np.isfinite(images["energy_tev"]) & images["is_valid"]
    weight = np.zeros(len(event))
    weight[used] = images["expected_pe"][used]
    log_energy = np.log(np.where(used, images["energy_tev"], 1))
    has_energy = np.bincount(event, used, n_events) > 0
    weights = np.where(has_energy, np.bincount(event, weight, n_events), np.nan)
    combined = np.zeros_like(triggered)
    combined[event[used], column[used]] = True
    name = ENERGY_RECONSTRUCTOR
    _write_table(
        file,
        f"/dl2/event/subarray/energy/{name}",
        index
        | {
            f"{name}_energy": np.exp(np.bincount(event, weight * log_energy, n_events) / weights),
            f"{name}_energy_uncert": nan,
            f"{name}_is_valid": has_energy,
            f"{name}_goodness_of_fit": nan,
            f"{name}_telescopes": combined,
        },
        units={f"{name}_energy": "TeV", f"{name}_energy_uncert": "TeV"},
    )
    name = PARTICLE_RECONSTRUCTOR
    gammaness = np.bincount(event, images["gammaness"], n_events) / np.bincount(event)
    _write_table(
        file,
        f"/dl2/event/subarray/particle_type/{name}",
        index
        | {
            f"{name}_prediction": gammaness,
            f"{name}_is_valid": np.ones(n_events, dtype=bool),
            f"{name}_goodness_of_fit": nan,
            f"{name}_telescopes": triggered,
        },
    )


def _write_telescope_events(
    file: tables.File,
    options: ArraySimulation,
    telescopes: _Telescopes,
    block: int,
    events: Columns,
    images: Columns,
) -> None:
    event = images["event"]
    tel_id = telescopes.tel_id[images["telescope"]].astype(np.int16)
    index = {
        "obs_id": events["obs_id"][event],
        "event_id": events["event_id"][event],
        "tel_id": tel_id,
    }
    _write_table(
        file,
        "/dl1/event/telescope/trigger",
        index
        | {
            "time": images["time"],
            "event_type": np.full(len(event), _SUBARRAY_EVENT, dtype=np.int64),
            "n_trigger_pixels": np.full(len(event), -1, dtype=np.int64),  # not simulated
        },
    )

    rng = _stream(options, _FAULT_STREAM, block, 1)
    by_telescope = np.argsort(images["telescope"], kind="stable")
    bounds = np.searchsorted(
        images["telescope"][by_telescope], np.arange(len(telescopes.tel_id) + 1)
    )
    for i, tel in enumerate(telescopes.tel_id):
        rows = by_telescope[bounds[i] : bounds[i + 1]]
        if len(rows) == 0:
            continue  # as ctapipe does: no events, no table
        leaf = f"tel_{tel:03d}"
        kind = _TYPES[str(telescopes.tel_type[i])]
        own_index = {key: values[rows] for key, values in index.items()}
        own_images = {key: values[rows] for key, values in images.items()}
        position_m = telescopes.position_m[i]
        _write_table(
            file,
            f"/dl1/event/telescope/parameters/{leaf}",
            own_index | _image_parameters(options, kind, position_m, events, own_images),
            units=_PARAMETER_UNITS,
        )
        nan = np.broadcast_to(np.nan, len(rows))
        er, gr, pr = ENERGY_RECONSTRUCTOR, GEOMETRY_RECONSTRUCTOR, PARTICLE_RECONSTRUCTOR
        dl2 = {
            f"energy/{er}": {
                f"{er}_tel_energy": own_images["energy_tev"],
                f"{er}_tel_is_valid": own_images["is_valid"],
                f"{er}_tel_energy_uncert": own_images["energy_uncert_tev"],
                f"{er}_tel_goodness_of_fit": nan,
            },
            f"particle_type/{pr}": {
                f"{pr}_tel_prediction": own_images["gammaness"],
                f"{pr}_tel_is_valid": np.ones(len(rows), dtype=bool),
                f"{pr}_tel_goodness_of_fit": nan,
            },
            f"impact/{gr}": {
                f"{gr}_tel_impact_distance": own_images["impact_m"],
                f"{gr}_tel_impact_distance_uncert": nan,
            },
        }
        units = {
            f"energy/{er}": {f"{er}_tel_energy": "TeV", f"{er}_tel_energy_uncert": "TeV"},
            f"impact/{gr}": {
                f"{gr}_tel_impact_distance": "m",
                f"{gr}_tel_impact_distance_uncert": "m",
            },
        }
        for table, values in dl2.items():
            columns = own_index | values
            if options.shuffled_rows:
                order = rng.permutation(len(rows))
                columns = {key: column[order] for key, column in columns.items()}
            _write_table(
                file, f"/dl2/event/telescope/{table}/{leaf}", columns, units=units.get(table)
            )


# The columns of ctapipe's image parameters after the index, in its order: type and unit.
_PARAMETERS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "hillas_intensity": ("f8", ""),
        "hillas_skewness": ("f8", ""),
        "hillas_kurtosis": ("f8", ""),
        "hillas_fov_lon": ("f8", "deg"),
        "hillas_fov_lat": ("f8", "deg"),
        "hillas_r": ("f8", "deg"),
        "hillas_phi": ("f8", "deg"),
        "hillas_length": ("f8", "deg"),
        "hillas_length_uncertainty": ("f8", "deg"),
        "hillas_width": ("f8", "deg"),
        "hillas_width_uncertainty": ("f8", "deg"),
        "hillas_psi": ("f8", "deg"),
        "hillas_psi_uncertainty": ("f8", "deg"),
        "hillas_transverse_cog_uncertainty": ("f8", "deg"),
        "timing_intercept": ("f8", ""),
        "timing_deviation": ("f8", ""),
        "timing_slope": ("f8", "deg**-1"),
        "leakage_pixels_width_1": ("f8", ""),
        "leakage_pixels_width_2": ("f8", ""),
        "leakage_intensity_width_1": ("f4", ""),
        "leakage_intensity_width_2": ("f4", ""),
        "concentration_cog": ("f8", ""),
        "concentration_core": ("f8", ""),
        "concentration_pixel": ("f8", ""),
        "morphology_n_pixels": ("i8", ""),
        "morphology_n_islands": ("i8", ""),
        "morphology_n_small_islands": ("i8", ""),
        "morphology_n_medium_islands": ("i8", ""),
        "morphology_n_large_islands": ("i8", ""),
        "intensity_max": ("f4", ""),
        "intensity_min": ("f4", ""),
        "intensity_mean": ("f4", ""),
        "intensity_std": ("f4", ""),
        "intensity_skewness": ("f8", ""),
        "intensity_kurtosis": ("f8", ""),
        "peak_time_max": ("f4", ""),
        "peak_time_min": ("f4", ""),
        "peak_time_mean": ("f4", ""),
        "peak_time_std": ("f4", ""),
        "peak_time_skewness": ("f8", ""),
        "peak_time_kurtosis": ("f8", ""),
        "core_psi": ("f8", "deg"),
    }
)
_PARAMETER_UNITS: Final = {name: unit for name, (_, unit) in _PARAMETERS.items() if unit}


def _image_parameters(
    options: ArraySimulation,
    kind: _TelescopeType,
    position_m: NDArray[np.float64],
    events: Columns,
    images: Columns,
) -> Columns:
    """Return the image parameters of one telescope: what the model gives, else NaN (or -1).

    An image stands where the shower's maximum is seen, points to the shower's direction, has a
    fixed width and a length that grows with the impact distance, and leaks where the camera ends.
    """
    event = images["event"]
    n = len(event)
    alt, az = events["alt"][event], events["az"][event]
    pointing_alt, pointing_az = np.radians([options.pointing_alt_deg, options.pointing_az_deg])
    height_m = events["h_max_m"][event] - options.observatory_altitude_m
    x_m = events["core_x_m"][event] - position_m[0] + height_m / np.tan(alt) * np.cos(az)
    y_m = events["core_y_m"][event] - position_m[1] - height_m / np.tan(alt) * np.sin(az)
    max_alt = np.arctan2(height_m - position_m[2], np.hypot(x_m, y_m))
    max_az = np.arctan2(-y_m, x_m)

    def field_of_view(to_alt: Any, to_az: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        turn = (to_az - pointing_az + np.pi) % (2 * np.pi) - np.pi
        return np.degrees(turn * np.cos(pointing_alt)), np.degrees(to_alt - pointing_alt)

    lon_deg, lat_deg = field_of_view(max_alt, max_az)
    source_lon_deg, source_lat_deg = field_of_view(alt, az)
    psi_deg = np.degrees(np.arctan2(source_lat_deg - lat_deg, source_lon_deg - lon_deg))
    r_deg = np.hypot(lon_deg, lat_deg)
    width_deg = 0.08
    length_deg = 0.1 + 0.1 * images["true_impact_m"] / _LIGHT_POOL_RADIUS_M
    leakage = {
        f"leakage_{what}_width_{rim}": np.clip(
            (r_deg + length_deg + rim * kind.pixel_size_deg - kind.camera_radius_deg)
            / (2 * length_deg),
            0,
            1,
        )
        for what in ("pixels", "intensity")
        for rim in (1, 2)
    }
    # Twice the standard deviations hold most of an image.
    n_pixels = np.ceil(np.pi * 2 * length_deg * 2 * width_deg / kind.pixel_size_deg**2)
    given = leakage | {
        "hillas_intensity": images["intensity_pe"],
        "hillas_fov_lon": lon_deg,
        "hillas_fov_lat": lat_deg,
        "hillas_r": r_deg,
        "hillas_phi": np.degrees(np.arctan2(lat_deg, lon_deg)),
        "hillas_length": length_deg,
        "hillas_width": np.full(n, width_deg),
        "hillas_psi": (psi_deg + 90) % 180 - 90,
        "timing_intercept": images["peak_time_ns"],
        "peak_time_mean": images["peak_time_ns"],
        "morphology_n_pixels": n_pixels,
        "morphology_n_islands": np.ones(n),
    }
    return {
        name: given[name].astype(dtype)
        if name in given
        else np.broadcast_to(np.array(-1 if dtype == "i8" else np.nan, dtype=dtype), n)
        for name, (dtype, _) in _PARAMETERS.items()
    }


def _write_table(
    file: tables.File,
    path: str,
    columns: Mapping[str, NDArray[Any]],
    units: Mapping[str, str] | None = None,
    attributes: Mapping[str, object] | None = None,
) -> None:
    """Write a table with the transforms that ctapipe notes for times, telescope masks and enums.

    ctapipe also pickles the classes of its enums into attributes; its table readers do without,
    and a file that carries no pickle can be opened by anybody.
    """
    from calibdask.io.hdf5 import write_table

    transforms: dict[str, object] = {}
    for i, name in enumerate(columns):
        if name in ("time", "scheduled_start_time", "actual_start_time"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "time"
            transforms[f"CTAFIELD_{i}_TIME_FORMAT"] = "ctao_high_res" if name == "time" else "mjd"
            transforms[f"CTAFIELD_{i}_TIME_SCALE"] = "tai"
        elif name == "tels_with_trigger" or name.endswith("_telescopes"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "tel_list_to_mask"
        elif name in ("event_type", "state", "subarray_pointing_frame"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "enum"
    write_table(file, path, columns, units=units, attributes=transforms | dict(attributes or {}))
    # Else the order on disk follows PyTables' node cache and the garbage collector.
    file.flush()
