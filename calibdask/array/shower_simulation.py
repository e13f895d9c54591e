"""Simulated events of a Cherenkov telescope array with known truth; no files, NumPy only.

The model is as simple as an inter-calibration allows. A shower lights up a pool on the ground; a
telescope sees it when its image is large enough; each telescope then says what the energy was.

Per shower: energy from a power law, core uniform on the ground, direction around the pointing,
height of maximum, and one factor on all of its light (the shower's own fluctuation).

Per telescope i of throughput c_i, at distance r_i from the shower axis::

    expected image    m_i = energy * density(r_i) * area_i * efficiency * c_i   (photoelectrons)
    image             hillas_intensity ~ Poisson(m_i);  triggered where >= the type's threshold
    energy            ln x_i = ln energy + ln c_i + s_i z_i,  z_i ~ N(0, 1)
    its scatter       s_i^2 = energy_resolution^2 + photon_noise^2 / m_i
    trigger time      t_i = t_0 + spherical front + offset_i(t) + jitter + walk
    peak time         delay of the type's readout + noise (- jitter - walk, where it follows)

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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.array.simulation import TELESCOPE_TYPES
from calibdask.errors import ConfigError
from calibdask.simulation import random_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.simulation import ArraySimulation, SimulatedArray

    Columns = dict[str, NDArray[Any]]

__all__ = ["fault_stream", "simulate_events", "stored_time"]

# Light on the ground of a 1 TeV gamma-ray shower at about 2000 m: Völk & Bernlöhr 2009,
# Exp. Astron. 25, 173, section 2: about 100 photons/m^2 (300-600 nm), nearly flat within 120 m. The
# fall beyond is put as an exponential: it has to make trigger and size depend on distance, no more.
_LIGHT_DENSITY_PER_M2_TEV: Final = 100.0
_LIGHT_POOL_RADIUS_M: Final = 120.0
_PHOTON_EFFICIENCY: Final = 0.15

# Heitler's shower, Matthews 2005, Astropart. Phys. 22, 387, section 2: X_max = X_0 ln(E / E_c).
_RADIATION_LENGTH_G_CM2: Final = 37.0
_CRITICAL_ENERGY_TEV: Final = 85e-6
_DEPTH_FLUCTUATION_G_CM2: Final = 40.0
_ATMOSPHERE_DEPTH_G_CM2: Final = 1030.0
_ATMOSPHERE_SCALE_HEIGHT_M: Final = 8000.0

_NS_PER_M: Final = 1.00025 / 0.299792458  # mean refractive index of air along the path, over c
_QUARTER_NS_PER_S: Final = 4_000_000_000
_SHOWERS_PER_CHUNK: Final = 8192
_FRUITLESS_CHUNKS: Final = 100

_SHOWER_STREAM, _FAULT_STREAM = 2, 3  # first numbers of the spawn keys


def simulate_events(array: SimulatedArray, block: int) -> tuple[Columns, Columns]:
    """Return the events of one observation block: truth, reconstruction, time stamps, faults.

    Parameters
    ----------
    array : SimulatedArray
        See `true_array`.
    block : int
        Number of the block, from 0. May exceed ``options.n_files``.

    Returns
    -------
    events : dict of str to array, (E,)
        Quantities of the showers, sorted by time; reconstructed ones begin with "reco_".
        Angles are in radians and follow ctapipe: x North, y West, azimuth from North to East.
    images : dict of str to array, (R,)
        Of the triggered telescopes, sorted by event and then by tel_id. "event" is the row in
        `events`, "column" the telescope's place in the layout. What belongs to ctapipe's
        image parameters has their names and units. The "time" of both is as of `stored_time`.

    Raises
    ------
    ConfigError
        The options give no event at all.
    """
    options, telescopes = array.options, _Telescopes.of(array)
    events, images = _triggered_events(options, telescopes, block)
    images["tel_id"] = telescopes.tel_id[images["telescope"]]
    images["column"] = telescopes.column[images["telescope"]]
    _reconstruct(options, telescopes, block, events, images)
    images |= _image_parameters(options, telescopes, events, images)
    _add_faults(options, block, events, images)
    return events, images


def fault_stream(options: ArraySimulation, block: int, *key: int) -> np.random.Generator:
    """Return random numbers for the faults of a block; each `key` gives others."""
    return random_stream(options, _FAULT_STREAM, block, *key)


def stored_time(tai_s: NDArray[np.float64], delay_ns: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Return times as ctapipe stores them ("ctao_high_res").

    Parameters
    ----------
    tai_s : array, (n,)
        Seconds of TAI since 1970; known to about 240 ns, as floats are.
    delay_ns : array, (n,)
        To be added, to a quarter of a nanosecond.

    Returns
    -------
    array of uint32, (n, 2)
        Second and quarter-nanoseconds within it.
    """
    second = np.floor(tai_s)
    # The delay comes in as an integer: a float of 1.7e9 s resolves 240 ns only.
    quarters = np.floor((tai_s - second) * _QUARTER_NS_PER_S).astype(np.int64)
    quarters += np.rint(4 * delay_ns).astype(np.int64)
    carry, quarters = np.divmod(quarters, _QUARTER_NS_PER_S)
    return np.stack([second.astype(np.int64) + carry, quarters], axis=1).astype(np.uint32)


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
    time_drift_ns_per_h: NDArray[np.float64]

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
            time_drift_ns_per_h=np.array([array.time_drift_ns_per_h[t] for t in tel_ids]),
        )

    def of_type(self, attribute: str) -> NDArray[np.float64]:
        """Return a number of the telescopes' type for each telescope, (T,)."""
        return np.array(
            [float(getattr(TELESCOPE_TYPES[kind], attribute)) for kind in self.tel_type]
        )

    def index(self, tel_id: int) -> int:
        return int(np.flatnonzero(self.tel_id == tel_id)[0])


def _triggered_events(
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
    rng = random_stream(options, _SHOWER_STREAM, block)
    n_sparse_seen = np.zeros(len(telescopes.tel_id), dtype=np.int64)
    least = options.n_telescope_events_per_file
    wanted = options.n_events if least is None else least
    chunks: list[tuple[Columns, Columns]] = []
    n_found, n_fruitless = 0, 0
    while n_found < wanted:
        showers, images = _throw_showers(rng, options, telescopes, block, n_sparse_seen)
        counted = showers["time_s"] if least is None else images["event"]
        n_found += len(counted)
        n_fruitless = 0 if len(images["event"]) else n_fruitless + 1
        if n_fruitless == _FRUITLESS_CHUNKS:
            n_showers = _FRUITLESS_CHUNKS * _SHOWERS_PER_CHUNK
            raise ConfigError(
                f"obs_id {options.obs_id(block)}: none of {n_showers} showers triggers two "
                "telescopes; raise energy_range_tev or let more telescopes take part"
            )
        chunks.append((showers, images))

    first = np.cumsum([0, *(len(showers["time_s"]) for showers, _ in chunks)])
    events = {k: np.concatenate([showers[k] for showers, _ in chunks]) for k in chunks[0][0]}
    images = {k: np.concatenate([found[k] for _, found in chunks]) for k in chunks[0][1]}
    images["event"] += np.repeat(first[:-1], [len(found["event"]) for _, found in chunks])

    n_events = wanted if least is None else int(images["event"][wanted - 1]) + 1
    order = np.argsort(events["time_s"][:n_events], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(n_events)
    events = {k: values[order] for k, values in events.items()}
    n_images = np.searchsorted(images["event"], n_events)
    images = {k: values[:n_images] for k, values in images.items()}
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
    fluctuation = np.exp(options.shower_fluctuation * rng.standard_normal(n))
    time_s = options.block_duration_s * rng.random(n)
    pointing_alt = options.pointing_alt_at(time_s)
    # Kept off the zenith, where the azimuth loses its meaning.
    alt = np.minimum(pointing_alt + np.radians(spread_deg[0]), np.radians(89.9))
    az = np.radians(options.pointing_az_deg) + np.radians(spread_deg[1]) / np.cos(pointing_alt)
    showers = {
        "time_s": time_s,
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
    expected_pe *= np.exp(-np.maximum(impact_m - _LIGHT_POOL_RADIUS_M, 0) / options.light_fall_m)

    threshold_pe = options.threshold_scale * telescopes.of_type("threshold_pe")
    # Below a quarter of the threshold, a Poisson law reaches it once in 1e7 times at most.
    possible = expected_pe > threshold_pe / 4
    possible[:, np.isin(telescopes.tel_id, options.without_data)] = False
    event, telescope = np.nonzero(possible)
    intensity_pe = expected_pe[event, telescope]
    if options.photon_statistics:
        intensity_pe = rng.poisson(intensity_pe)
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
    """Add what a reconstruction would say, and the time stamps."""
    # The stream of the showers is used up to a number that depends on their selection.
    rng = random_stream(options, _SHOWER_STREAM, block, 1)
    n_events, n_images = len(events["time_s"]), len(images["event"])
    event, telescope = images["event"], images["telescope"]

    events["event_id"] = np.arange(1, n_events + 1, dtype=np.int64)
    if options.shared_obs_id:
        events["event_id"] += block * 1_000_000_000
    events["obs_id"] = np.full(n_events, options.obs_id(block), dtype=np.int32)

    z_x, z_y, z_alt, z_az, z_h_max, z_gammaness = rng.standard_normal((6, n_events))
    direction_error = np.radians(options.direction_resolution_deg)
    events["reco_core_x_m"] = events["core_x_m"] + options.core_resolution_m * z_x
    events["reco_core_y_m"] = events["core_y_m"] + options.core_resolution_m * z_y
    events["reco_alt"] = np.minimum(events["alt"] + direction_error * z_alt, np.pi / 2)
    events["reco_az"] = events["az"] + direction_error * z_az / np.cos(events["alt"])
    events["reco_h_max_m"] = events["h_max_m"] * np.exp(options.h_max_resolution * z_h_max)
    if options.h_max_scale != 1.0:  # a product with 1 would move the last bit
        ground_m = options.observatory_altitude_m
        height_m = events["reco_h_max_m"] - ground_m
        events["reco_h_max_m"] = ground_m + options.h_max_scale * height_m
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
    time_s = events["time_s"][event] + block * options.block_duration_s
    delay_ns += telescopes.time_drift_ns_per_h[telescope] * time_s / 3600
    has_jumped = (images["tel_id"] == options.jumping_telescope) & (time_s >= options.jump_time_s)
    delay_ns += options.jump_offset_ns * has_jumped
    threshold_pe = options.threshold_scale * telescopes.of_type("threshold_pe")[telescope]
    walk_ns = options.trigger_walk_ns * np.sqrt(
        threshold_pe / np.maximum(images["intensity_pe"], 1.0)
    )
    delay_ns += walk_ns
    if options.pointing_delay_removed:
        alt, az = np.radians([options.pointing_alt_deg, options.pointing_az_deg])
        level = np.cos(alt)
        towards = np.array([level * np.cos(az), -level * np.sin(az), np.sin(alt)])
        delay_ns += position_m @ towards * _NS_PER_M
    start_s = options.start_tai_s(block)
    events["time"] = stored_time(start_s + events["time_s"], np.zeros(n_events))
    images["time"] = stored_time(start_s + events["time_s"][event], delay_ns)
    peak_delay_ns = np.array([options.peak_delay_ns[kind] for kind in telescopes.tel_type])
    images["peak_time_ns"] = peak_delay_ns[telescope] + 0.15 * rng.standard_normal(n_images)
    if options.peak_follows_trigger:
        images["peak_time_ns"] -= jitter_ns + walk_ns


def _add_faults(options: ArraySimulation, block: int, events: Columns, images: Columns) -> None:
    """Spoil energies and their uncertainties, times, and stereo reconstructions."""
    rng = fault_stream(options, block)
    # Each fault takes its numbers whether it is on or not, so that one does not move another.
    is_outlier, is_invalid, is_nan, has_no_uncertainty = (
        rng.random(len(images["event"])) < fraction
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

    rng = fault_stream(options, block, 2)
    n_events, n_images = len(events["time_s"]), len(images["event"])
    is_accidental = rng.random(n_images) < options.time_outlier_fraction
    moved_ns = options.time_outlier_ns * rng.uniform(-1, 1, n_images) * is_accidental
    time = images["time"].astype(np.int64)
    time[:, 1] += np.rint(4 * moved_ns).astype(np.int64)
    carry, time[:, 1] = np.divmod(time[:, 1], _QUARTER_NS_PER_S)
    time[:, 0] += carry
    time[rng.random(n_images) < options.missing_time_fraction] = 0
    images["time"] = time.astype(np.uint32)
    failed = rng.random(n_events) < options.failed_stereo_fraction
    for name in ("core_x_m", "core_y_m", "alt", "az", "h_max_m"):
        events[f"reco_{name}"][failed] = np.nan
    events["reco_is_valid"] = ~failed
    images["impact_m"][failed[images["event"]]] = np.nan


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


def _image_parameters(
    options: ArraySimulation, telescopes: _Telescopes, events: Columns, images: Columns
) -> Columns:
    """Return the image parameters that the model gives, by ctapipe's names and in its units.

    An image stands where the shower's maximum is seen, points to the shower's direction, has a
    fixed width and a length that grows with the impact distance, and leaks where the camera ends.
    """
    event, telescope = images["event"], images["telescope"]
    position_m = telescopes.position_m[telescope]
    pixel_size_deg = telescopes.of_type("pixel_size_deg")[telescope]
    camera_radius_deg = telescopes.of_type("camera_radius_deg")[telescope]
    alt, az = events["alt"][event], events["az"][event]
    pointing_alt = options.pointing_alt_at(events["time_s"][event])
    pointing_az = np.radians(options.pointing_az_deg)
    height_m = events["h_max_m"][event] - options.observatory_altitude_m
    x_m = events["core_x_m"][event] - position_m[:, 0] + height_m / np.tan(alt) * np.cos(az)
    y_m = events["core_y_m"][event] - position_m[:, 1] - height_m / np.tan(alt) * np.sin(az)
    max_alt = np.arctan2(height_m - position_m[:, 2], np.hypot(x_m, y_m))
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
        rim: np.clip(
            (r_deg + length_deg + rim * pixel_size_deg - camera_radius_deg) / (2 * length_deg), 0, 1
        )
        for rim in (1, 2)
    }
    return {
        "hillas_intensity": images["intensity_pe"],
        "hillas_fov_lon": lon_deg,
        "hillas_fov_lat": lat_deg,
        "hillas_r": r_deg,
        "hillas_phi": np.degrees(np.arctan2(lat_deg, lon_deg)),
        "hillas_length": length_deg,
        "hillas_width": np.full(len(event), width_deg),
        "hillas_psi": (psi_deg + 90) % 180 - 90,
        "timing_intercept": images["peak_time_ns"],
        "leakage_pixels_width_1": leakage[1],
        "leakage_pixels_width_2": leakage[2],
        "leakage_intensity_width_1": leakage[1],
        "leakage_intensity_width_2": leakage[2],
        # Twice the standard deviations hold most of an image.
        "morphology_n_pixels": np.ceil(np.pi * 2 * length_deg * 2 * width_deg / pixel_size_deg**2),
        "morphology_n_islands": np.ones(len(event)),
        "peak_time_mean": images["peak_time_ns"],
    }
