"""Arrival times: the front against geometry done by other means, and times as integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.array.shower_simulation import simulate_events, stored_time
from calibdask.array.simulation import ArraySimulation, true_array
from calibdask.array.timing_model import (
    NS_PER_M,
    between_bin_variance,
    front_delay_ns,
    geodetic_height_m,
    since_first_ns,
)
from calibdask.stats.moments import Moments

START = 1_700_000_037

# -- the front ----------------------------------------------------------------------------------


def directions(n, rng):
    return np.radians(rng.uniform(20, 89, n)), np.radians(rng.uniform(-180, 360, n))


def test_spherical_front_is_the_path_from_the_maximum():
    rng = np.random.default_rng(1)
    alt, az = directions(200, rng)
    position_m = rng.uniform(-600, 600, (200, 3))
    distance_m = rng.uniform(1e3, 3e4, 200)
    towards = np.stack([np.cos(alt) * np.cos(az), -np.cos(alt) * np.sin(az), np.sin(alt)], axis=1)
    path_m = np.linalg.norm(distance_m[:, None] * towards - position_m, axis=1)
    np.testing.assert_allclose(
        front_delay_ns("spherical", position_m, alt, az, distance_m),
        (path_m - distance_m) * NS_PER_M,
        atol=1e-7,  # what the difference of two path lengths leaves
    )


def test_conventions_by_hand():
    # A shower from the North at 45 deg: a telescope 100 m North sees it first, by 70.7 m.
    north, west = np.array([[100.0, 0.0, 0.0]]), np.array([[0.0, 100.0, 0.0]])
    alt, far = np.radians([45.0]), np.array([1e9])
    from_north, from_west = np.radians([0.0]), np.radians([270.0])  # azimuth runs to the East
    early_ns = -100 * np.sqrt(0.5) * NS_PER_M
    for front in ("plane", "spherical"):
        assert front_delay_ns(front, north, alt, from_north, far) == pytest.approx(early_ns)
        assert front_delay_ns(front, west, alt, from_west, far) == pytest.approx(early_ns)
        assert front_delay_ns(front, west, alt, from_north, far) == pytest.approx(0, abs=1e-4)
    # Straight down and 100 m away, the path is longer by r^2/2L; a telescope 10 m up is earlier.
    down, near = np.radians([90.0]), np.array([10e3])
    assert front_delay_ns("spherical", north, down, from_north, near) == pytest.approx(
        0.5 * NS_PER_M, rel=1e-4
    )
    up = np.array([[0.0, 0.0, 10.0]])
    for front in ("plane", "spherical"):
        assert front_delay_ns(front, up, down, from_north, near) == pytest.approx(-10 * NS_PER_M)


def test_front_is_the_simulators():
    options = ArraySimulation(
        n_files=1, n_events=300, time_jitter_ns=0.0, time_offset_spread_ns=0.0,
        core_resolution_m=0.0, direction_resolution_deg=0.0, h_max_resolution=0.0, seed=8,
    )  # fmt: skip
    array = true_array(options)
    events, images = simulate_events(array, 0)
    row = images["event"]
    position_m = np.array([array.position_m[t] for t in images["tel_id"].tolist()])
    position_m[:, 0] -= events["reco_core_x_m"][row]
    position_m[:, 1] -= events["reco_core_y_m"][row]
    height_m = events["reco_h_max_m"] - options.observatory_altitude_m
    alt, az = events["reco_alt"], events["reco_az"]
    distance_m = (height_m / np.sin(alt))[row]
    left_ns = since_first_ns(images["time"], row, 300) - front_delay_ns(
        "spherical", position_m, alt[row], az[row], distance_m
    )
    left_ns -= (np.bincount(row, left_ns) / np.bincount(row))[row]
    # Times are stored to a quarter of a nanosecond.
    assert np.abs(left_ns).max() < 0.26
    assert left_ns.std() == pytest.approx(0.25 / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("distance_m", [0.0, -100.0, np.nan])
def test_a_maximum_below_the_ground_has_no_spherical_front(distance_m):
    here, one = np.zeros((1, 3)), np.ones(1)
    assert np.isnan(front_delay_ns("spherical", here, one, one, np.array([distance_m])))
    assert front_delay_ns("plane", here, one, one, np.array([distance_m])) == 0


def test_height_of_the_observatory():
    from astropy import units as u
    from astropy.coordinates import EarthLocation

    for lon, lat, height_m in ((-17.9, 28.76, 2158), (-70.3, -24.68, 2147), (0, 0, 0), (9, 89, 10)):
        place = EarthLocation.from_geodetic(lon * u.deg, lat * u.deg, height_m * u.m)
        x_m, y_m, z_m = (axis.to_value("m") for axis in (place.x, place.y, place.z))
        assert geodetic_height_m(x_m, y_m, z_m) == pytest.approx(height_m, abs=1e-3)


# -- times --------------------------------------------------------------------------------------


@given(
    st.integers(1, 2**32 - 3),
    st.lists(st.integers(0, 8_000_000_000), min_size=1, max_size=6),
    st.integers(0, 3_999_999_999),
)
def test_times_are_exact_wherever_the_second_ends(second, quarters, start):
    moved = np.array([start + q // 2 for q in quarters])
    carry, quarter = np.divmod(moved, 4_000_000_000)
    time = np.stack([second + carry, quarter], axis=1).astype(np.uint32)
    if (time[:, 0] == 2**32 - 1).any():
        return
    since = since_first_ns(time, np.zeros(len(time), np.int64), 1)
    np.testing.assert_array_equal(since, (moved - moved.min()) / 4)


def test_events_over_the_end_of_a_second():
    time = stored_time(np.full(4, START + 1.0), np.array([-0.25, 0.0, -1.0, 29.0]))
    assert len(np.unique(time[:, 0])) == 2
    since = since_first_ns(time, np.array([0, 0, 1, 1]), 2)
    np.testing.assert_array_equal(since, [0.0, 0.25, 0.0, 30.0])


def test_missing_times_are_left_out_and_no_others():
    good = [START, 100]
    rows = [good, [0, 0], [2**32 - 1, 7], [np.nan, np.nan], [START, 500]]
    since = since_first_ns(np.array(rows), np.zeros(5, np.int64), 1)
    np.testing.assert_array_equal(since, [0.0, np.nan, np.nan, np.nan, 100.0])
    nobody = since_first_ns(np.zeros((3, 2), np.uint32), np.array([0, 0, 1]), 2)
    assert np.isnan(nobody).all()


@pytest.mark.parametrize("lost", [1, 5, START - 1000, START + 7, 2**32 - 2])
def test_a_clock_that_lost_its_second_costs_the_others_nothing(lost):
    time = np.array([[START, 3], [lost, 5], [START, 7], [START, 3]], np.uint32)
    for order in ([0, 1, 2, 3], [1, 2, 0, 3]):
        since = since_first_ns(time[order], np.zeros(4, np.int64), 1)
        expected = np.array([0.0, np.nan, 1.0, 0.0])[order]
        np.testing.assert_array_equal(since, expected)


# -- the systematic floor -----------------------------------------------------------------------


def draw_bins(rng, tau, n_telescopes=30, n_bins=8, n=400, sigma=2.0):
    """Residuals in bins whose true means scatter by tau."""
    truth = rng.normal(0, tau, (n_telescopes, n_bins))
    group = np.repeat(np.arange(n_telescopes * n_bins), n)
    values = truth.ravel()[group] + rng.normal(0, sigma, len(group))
    flat = Moments.from_groups(group, values, truth.size)
    shape = truth.shape
    return Moments(flat.n.reshape(shape), flat.mean.reshape(shape), flat.m2.reshape(shape))


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_floor_finds_the_scatter_that_is_there(tau):
    rng = np.random.default_rng(3)
    group = np.zeros(30, np.int64)
    found = np.array(
        [between_bin_variance(draw_bins(rng, tau), group, 1, 30)[0] for _ in range(20)]
    )
    # 20 experiments of 210 degrees of freedom: the mean of tau^2 scatters by what the sample says.
    assert abs(found.mean() - tau**2) < 4 * found.std() / np.sqrt(20)
    assert found.std() / np.sqrt(20) < 0.3 * tau**2


def test_floor_without_anything_to_find():
    rng = np.random.default_rng(4)
    group = np.zeros(30, np.int64)
    found = [between_bin_variance(draw_bins(rng, 0.0), group, 1, 30)[0] for _ in range(20)]
    # Of 0.1 ns errors of the bins' means, pooled over 210 degrees of freedom.
    assert max(found) < 4 * 0.1**2 * np.sqrt(2 / 210)
    assert min(found) == 0.0


def test_floor_is_of_its_group_and_not_known_without_two_bins():
    rng = np.random.default_rng(5)
    quiet, loud = draw_bins(rng, 0.0, 10), draw_bins(rng, 1.0, 10)
    both = Moments(
        *(np.concatenate([getattr(q, k) for q in (quiet, loud)]) for k in ("n", "mean", "m2"))
    )
    group = np.repeat([0, 1], 10)
    tau2 = between_bin_variance(both, group, 3, 30)
    assert tau2[0] < 0.02
    assert tau2[1] == pytest.approx(1.0, rel=0.5)
    assert np.isnan(tau2[2])
    few = Moments(both.n.clip(max=29), both.mean, both.m2)
    assert np.isnan(between_bin_variance(few, group, 2, 30)).all()
