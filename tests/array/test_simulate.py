from __future__ import annotations

import json
import os
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tables as pytables
from hypothesis import given
from hypothesis import strategies as st

from calibdask.array.shower_simulation import stored_time
from calibdask.array.simulate import (
    ARRAYS,
    ArraySimulation,
    block_path,
    simulate_array,
    simulate_block,
    true_array,
)
from calibdask.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CALIBDASK_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

ENERGY = "/dl2/event/telescope/energy/RandomForestRegressor"
PARTICLE = "/dl2/event/telescope/particle_type/RandomForestClassifier"
IMPACT = "/dl2/event/telescope/impact/HillasReconstructor"
PARAMETERS = "/dl1/event/telescope/parameters"
TRIGGER = "/dl1/event/telescope/trigger"
GEOMETRY = "/dl2/event/subarray/geometry/HillasReconstructor"
LAYOUT = "/configuration/instrument/subarray/layout"

ER = "RandomForestRegressor_tel_"


def read(path, table):
    with pytables.open_file(path) as file:
        return file.get_node(table)[:]


def read_telescopes(path, group):
    """Rows of each telescope that has a table, by tel_id."""
    with pytables.open_file(path) as file:
        return {int(node.name[4:]): node[:] for node in file.get_node(group)._f_iter_nodes()}


def energies(path):
    return {t: rows[f"{ER}energy"] for t, rows in read_telescopes(path, ENERGY).items()}


def one_file(tmp_path, **options):
    simulated = simulate_array(tmp_path, small(**options))
    return simulated, simulated.paths[0]


def small(**options):
    return ArraySimulation(
        **{"n_files": 1, "n_events": 150, "array": "reduced", "seed": 5} | options
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("plain"), small())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    spread = dict.fromkeys(("LST", "MST", "SST"), 0.25)
    options = small(n_events=8000, throughput_spread=spread)
    return simulate_array(tmp_path_factory.mktemp("large"), options)


# Format


def describe(path):
    """Columns of each table: name, type, unit, time scale; numbers in paths left out."""
    described = {}
    with pytables.open_file(path) as file:
        for table in file.walk_nodes("/", "Table"):
            columns = []
            for i, name in enumerate(table.colnames):
                dtype = table.dtype[name]
                kind = "S" if dtype.kind == "S" else (dtype.base.str, dtype.shape)
                attributes = [
                    str(table.attrs[f"CTAFIELD_{i}_{key}"])
                    if f"CTAFIELD_{i}_{key}" in table.attrs
                    else None
                    for key in ("UNIT", "TRANSFORM", "TIME_SCALE", "TIME_FORMAT")
                ]
                columns.append((name, kind, *attributes))
            family = re.sub(r"(tel|geometry|readout)_\d+", r"\1", table._v_pathname)
            described.setdefault(family, set()).add(tuple(columns))
        return described, {name for name in file.root._v_attrs._f_list("all") if "CTA" in name}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data: {SHARED}")
def test_same_tables_columns_types_units_as_ctapipe_0_32(tmp_path):
    _, path = one_file(tmp_path, array="mixed")
    tables, metadata = describe(path)
    wanted_tables, wanted_metadata = describe(SHARED / "array/dl2_small/dl2_obs1001.h5")
    assert tables.keys() == wanted_tables.keys()
    assert metadata == wanted_metadata
    # The other file says less about this table than ctapipe does.
    block = "/configuration/observation/observation_block"
    wanted_tables[block] = describe(SHARED / "array/dl2_ctapipe_chain/run202.dl2.h5")[0][block]
    for family, wanted in wanted_tables.items():
        assert tables[family] == wanted, family


def test_ctapipe_reads_the_subarray(plain):
    from astropy import units as u
    from ctapipe.instrument import SubarrayDescription

    subarray = SubarrayDescription.from_hdf(plain.paths[0])
    assert {int(t): subarray.tel[t].type for t in subarray.tel} == plain.tel_type
    for tel_id, position_m in plain.position_m.items():
        np.testing.assert_allclose(subarray.positions[tel_id].to_value(u.m), position_m, rtol=1e-6)
    assert np.isclose(subarray.reference_location.geodetic.height.to_value(u.m), 2150, atol=0.1)
    camera = subarray.tel[1].camera
    assert camera.geometry.neighbor_matrix.sum(axis=1).max() == 4  # square pixels
    assert camera.readout.reference_pulse_shape.shape[0] == 2


def test_ctapipe_table_loader_joins_all_levels(plain):
    from ctapipe.io import TableLoader

    with TableLoader(plain.paths[0], dl2=True, observation_info=True) as loader:
        assert len(loader) == 150
        events = loader.read_telescope_events()
        chunks = [chunk.data for chunk in loader.read_telescope_events_chunked(40)]
        stereo = loader.read_subarray_events()
    assert len(events) == plain.n_telescope_events == sum(len(chunk) for chunk in chunks)
    for tel_id, rows in read_telescopes(plain.paths[0], ENERGY).items():
        mine = events[events["tel_id"] == tel_id]
        np.testing.assert_array_equal(mine["event_id"], rows["event_id"])
        np.testing.assert_array_equal(mine[f"{ER}energy"], rows[f"{ER}energy"])
    assert events[f"{ER}energy"].unit == "TeV"
    assert events["HillasReconstructor_tel_impact_distance"].unit == "m"
    np.testing.assert_allclose(events["telescope_pointing_altitude"].quantity.to_value("deg"), 70)
    np.testing.assert_array_equal(
        stereo["tels_with_trigger"].sum(axis=1),
        np.unique(events["event_id"], return_counts=True)[1],
    )
    assert np.isfinite(stereo["RandomForestRegressor_energy"]).mean() > 0.98


@given(
    st.floats(1.7e9, 1.8e9),
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=5),
)
def test_time_stamps_keep_quarters_of_a_nanosecond(tai_s, delays_ns):
    first = stored_time(np.array([tai_s]), np.zeros(1))[0].astype(np.int64)
    stamps = stored_time(np.full(len(delays_ns), tai_s), np.array(delays_ns))
    assert stamps[:, 1].max() < 4_000_000_000
    later = (stamps.astype(np.int64) - first) @ np.array([4_000_000_000, 1]) / 4
    np.testing.assert_allclose(later, delays_ns, atol=0.126)
    assert abs(first @ np.array([1, 0.25e-9]) - tai_s) < 1e-6


# Truth


def pair_pulls(simulated, least_intensity=0.0, least_energy_tev=0.0):
    """Pull of the mean of d = ln x_i - ln x_j for each pair of a type, i the brighter one."""
    rows = read_telescopes(simulated.paths[0], ENERGY)
    images = read_telescopes(simulated.paths[0], PARAMETERS)
    pulls = []
    for i, j in permutations(rows, 2):
        truth = np.log(simulated.throughput[i] / simulated.throughput[j])
        if simulated.tel_type[i] != simulated.tel_type[j] or truth < 0:
            continue
        _, at_i, at_j = np.intersect1d(
            rows[i]["event_id"], rows[j]["event_id"], return_indices=True
        )
        x_i, x_j = rows[i][f"{ER}energy"][at_i], rows[j][f"{ER}energy"][at_j]
        size = [images[t]["hillas_intensity"][at] for t, at in ((i, at_i), (j, at_j))]
        selected = np.minimum(x_i, x_j) > least_energy_tev
        selected &= np.minimum(*size) > least_intensity
        d = np.log(x_i / x_j)[selected]
        pulls.append((d.mean() - truth) / (d.std(ddof=1) / np.sqrt(len(d))))
    return np.array(pulls)


@pytest.mark.parametrize("least_intensity", [0, 100])
def test_pair_means_give_back_the_throughputs(large, least_intensity):
    pulls = pair_pulls(large, least_intensity)
    assert len(pulls) == 6 + 21 + 15
    assert np.abs(pulls).max() < 4
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.5
    assert abs(pulls.mean()) < 0.5


def test_a_cut_on_the_energies_themselves_biases_as_documented(large):
    """Near the threshold a dim telescope passes when it fluctuates upwards."""
    biased = pair_pulls(large, least_energy_tev=0.5).mean()
    assert biased < -0.6
    assert biased < pair_pulls(large).mean() - 0.8


def test_uncertainty_is_the_scatter(large):
    """Relative uncertainties, squared and summed, predict the variance of d."""
    rows = read_telescopes(large.paths[0], ENERGY)
    _, at_1, at_2 = np.intersect1d(rows[1]["event_id"], rows[2]["event_id"], return_indices=True)
    one, two = rows[1][at_1], rows[2][at_2]
    d = np.log(one[f"{ER}energy"] / two[f"{ER}energy"])
    d -= np.log(large.throughput[1] / large.throughput[2])
    relative = [r[f"{ER}energy_uncert"] / r[f"{ER}energy"] for r in (one, two)]
    assert np.nanstd(d / np.hypot(*relative)) == pytest.approx(1, abs=0.05)


def test_common_shower_fluctuation_is_in_energies_and_images_alike(tmp_path):
    options = {"energy_resolution": 0.0, "photon_noise": 0.0, "invalid_fraction": 0.0}
    simulated, path = one_file(tmp_path, **options, shower_fluctuation=0.5)
    light = {}
    for tel_id, rows in read_telescopes(path, ENERGY).items():
        for event_id, energy in zip(rows["event_id"], rows[f"{ER}energy"], strict=True):
            light.setdefault(event_id, []).append(energy / simulated.throughput[tel_id])
    assert all(np.ptp(values) < 1e-9 * values[0] for values in light.values())
    size = {t: r["hillas_intensity"] for t, r in read_telescopes(path, PARAMETERS).items()}
    distance = read_telescopes(path, IMPACT)
    in_pool = distance[1]["HillasReconstructor_tel_impact_distance"] < 90
    light_1 = energies(path)[1][in_pool]
    per_tev = size[1][in_pool] / light_1
    np.testing.assert_allclose(per_tev, 100 * 0.15 * 370, rtol=5 / np.sqrt(size[1][in_pool].min()))


def test_light_pool_shapes_trigger_and_images(large):
    rows = read_telescopes(large.paths[0], PARAMETERS)
    distance_m = {
        t: r["HillasReconstructor_tel_impact_distance"]
        for t, r in read_telescopes(large.paths[0], IMPACT).items()
    }
    thresholds = {"LST": 60, "MST": 50, "SST": 25}
    for tel_id, kind in large.tel_type.items():
        assert rows[tel_id]["hillas_intensity"].min() >= thresholds[kind]
    # An LST sees further than an SST, and a far shower must be a bright one.
    assert np.median(distance_m[1]) > np.median(distance_m[30])
    light = np.log(energies(large.paths[0])[30])
    assert np.nanmean(light[distance_m[30] > 250]) > np.nanmean(light[distance_m[30] < 120]) + 0.5


def sizes_and_distances(path):
    """Image size and true distance of all telescope events of the LSTs, and their throughput."""
    size = read_telescopes(path, PARAMETERS)
    distance = read_telescopes(path, IMPACT)
    return {
        t: (size[t]["hillas_intensity"], distance[t]["HillasReconstructor_tel_impact_distance"])
        for t in (1, 2, 3, 4)
    }


def test_light_pool_photon_statistics_and_thresholds_can_be_taken_away(tmp_path):
    exact = {"core_resolution_m": 0.0, "direction_resolution_deg": 0.0, "shower_fluctuation": 0.0}
    # Light of the shower by the energy: exact, too, so that sizes can be predicted.
    exact |= {"energy_resolution": 0.0, "photon_noise": 0.0, "invalid_fraction": 0.0}
    _, path = one_file(tmp_path / "flat", light_fall_m=1e9, photon_statistics=False, **exact)
    for tel_id, (size, distance_m) in sizes_and_distances(path).items():
        assert distance_m.max() > 250
        np.testing.assert_allclose(size, energies(path)[tel_id] * 100 * 0.15 * 370, rtol=1e-6)
    # Half the scale of the fall squares the loss of light beyond the pool.
    _, path = one_file(tmp_path / "steep", light_fall_m=30.0, photon_statistics=False, **exact)
    for tel_id, (size, distance_m) in sizes_and_distances(path).items():
        fall = np.exp(-np.maximum(distance_m - 120, 0) / 30)
        expected = energies(path)[tel_id] * 100 * 0.15 * 370 * fall
        np.testing.assert_allclose(size, expected, rtol=1e-6)
        assert size.min() >= 60
    _, path = one_file(tmp_path / "low", threshold_scale=0.25)
    sizes = np.concatenate([size for size, _ in sizes_and_distances(path).values()])
    assert 15 <= sizes.min() < 20


def test_pointing_tables_where_and_how_long(tmp_path, plain):
    both = read_telescopes(plain.paths[0], "/dl1/monitoring/telescope/pointing")
    _, path = one_file(tmp_path / "dl0", pointing_levels=("dl0",))
    with pytables.open_file(path) as file:
        assert "/dl1/monitoring/telescope/pointing" not in file
    only = read_telescopes(path, "/dl0/monitoring/telescope/pointing")
    np.testing.assert_array_equal(only[1], both[1])
    simulated, path = one_file(tmp_path / "half", pointing_coverage=0.5)
    half = read_telescopes(path, "/dl1/monitoring/telescope/pointing")[1]
    start_s = simulated.options.start_tai_s(0)
    assert half["time"][-1, 0] == int(start_s) + 600
    np.testing.assert_array_equal(half, both[1][: len(half)])
    for tel_id, values in energies(path).items():
        np.testing.assert_array_equal(values, energies(plain.paths[0])[tel_id])


def test_a_drifting_pointing_takes_the_showers_along(tmp_path):
    simulated, path = one_file(tmp_path, pointing_drift_deg=10.0, n_events=400)
    table = read_telescopes(path, "/dl1/monitoring/telescope/pointing")[1]
    elapsed_s = table["time"][:, 0] - simulated.options.start_tai_s(0)
    np.testing.assert_allclose(np.degrees(table["altitude"]), 70 + elapsed_s / 120, atol=0.01)
    stereo, trigger = read(path, GEOMETRY), read(path, "/dl1/event/subarray/trigger")
    elapsed_s = trigger["time"][:, 0] - simulated.options.start_tai_s(0)
    apart_deg = stereo["HillasReconstructor_alt"] - (70 + elapsed_s / 120)
    assert abs(np.mean(apart_deg)) < 0.15
    assert 0.3 < np.std(apart_deg) < 0.7


def test_trigger_times_follow_the_spherical_front(tmp_path):
    """Residuals from the reconstructed geometry are the jitter; their means are the offsets."""
    options = {"core_resolution_m": 0.0, "direction_resolution_deg": 0.0, "h_max_resolution": 0.0}
    simulated, path = one_file(tmp_path, **options, time_offset_spread_ns=8.0, n_events=400)
    stereo, stamps = read(path, GEOMETRY), read(path, TRIGGER)
    event = np.searchsorted(stereo["event_id"], stamps["event_id"])
    g = {
        key: stereo[f"HillasReconstructor_{key}"][event]
        for key in ("alt", "az", "core_x", "core_y", "h_max")
    }
    alt, az = np.radians(g["alt"]), np.radians(g["az"])
    length = ((g["h_max"] - 2150) / np.sin(alt))[:, None]
    axis = np.stack([np.cos(alt) * np.cos(az), -np.cos(alt) * np.sin(az), np.sin(alt)], axis=1)
    position = np.array([simulated.position_m[t] for t in stamps["tel_id"]])
    position -= np.stack([g["core_x"], g["core_y"], np.zeros(len(alt))], axis=1)
    path_m = np.linalg.norm(length * axis - position, axis=1) - length[:, 0]
    central = read(path, "/dl1/event/subarray/trigger")["time"][event].astype(np.int64)
    delay_ns = (stamps["time"].astype(np.int64) - central) @ np.array([1e9, 0.25])
    residual_ns = delay_ns - path_m * 1.00025 / 0.299792458
    residual_ns -= [simulated.time_offset_ns[t] for t in stamps["tel_id"]]
    assert residual_ns.std() == pytest.approx(1.5, rel=0.1)
    assert abs(residual_ns.mean()) < 5 * 1.5 / np.sqrt(len(residual_ns))


def test_truth_file_says_what_was_simulated(plain):
    truth = json.loads((plain.paths[0].parent / "truth.json").read_text())
    assert truth["throughput"] == {str(t): c for t, c in plain.throughput.items()}
    assert truth["time_offset_ns"].keys() == truth["tel_type"].keys() == truth["throughput"].keys()
    assert truth["n_tel_events"] == len(read(plain.paths[0], TRIGGER)) == plain.n_telescope_events
    assert truth["files"] == [path.name for path in plain.paths]
    assert truth["options"]["seed"] == 5
    assert truth["position_m"]["1"] == list(plain.position_m[1])


# Reproducibility


def test_same_options_give_the_same_bytes(plain, tmp_path):
    again = simulate_array(tmp_path, small())
    assert again.paths[0].read_bytes() == plain.paths[0].read_bytes()


def test_another_seed_gives_other_telescopes_and_events(plain, tmp_path):
    other, path = one_file(tmp_path, seed=6)
    assert all(other.throughput[t] != c for t, c in plain.throughput.items())
    assert not np.isin(energies(path)[1], energies(plain.paths[0])[1]).any()


def test_a_block_does_not_depend_on_the_others(plain, tmp_path):
    simulated = simulate_array(tmp_path, small(n_files=2))
    assert simulated.paths[0].read_bytes() == plain.paths[0].read_bytes()
    later = tmp_path / "later.h5"
    n_telescope_events = simulate_block(later, small(n_files=1), 1)
    assert later.read_bytes() == simulated.paths[1].read_bytes()
    assert n_telescope_events + plain.n_telescope_events == simulated.n_telescope_events
    with pytables.open_file(simulated.paths[0]) as one, pytables.open_file(later) as two:
        assert one.root._v_attrs["CTA PRODUCT ID"] != two.root._v_attrs["CTA PRODUCT ID"]
    assert set(energies(later)[1]).isdisjoint(energies(simulated.paths[0])[1])
    starts = [read(p, TRIGGER)["time"][:, 0] for p in simulated.paths]
    assert starts[0].max() - starts[0].min() <= 1200
    assert starts[0].max() < starts[1].min()


def test_telescope_events_asked_for(tmp_path):
    simulated = simulate_array(tmp_path, small(n_telescope_events=1000, n_files=2))
    assert 1000 <= simulated.n_telescope_events <= 1000 + 2 * 17
    assert [read(p, TRIGGER)["obs_id"][0] for p in simulated.paths] == [1001, 1002]


def test_progress_is_told_after_each_file(tmp_path):
    told = []
    simulate_array(tmp_path, small(n_files=3, n_events=5), lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_existing_files_are_kept(tmp_path):
    path = block_path(tmp_path, small(), 0)
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"dl2_obs1001\.h5: exists already"):
        simulate_array(tmp_path, small())
    assert path.read_text() == "precious"


# Faults


def test_unsorted_layout_changes_the_order_and_nothing_else(plain, tmp_path):
    simulated, path = one_file(tmp_path, unsorted_layout=True)
    tel_ids = read(path, LAYOUT)["tel_id"].tolist()
    assert tel_ids == list(simulated.tel_type) != sorted(tel_ids)
    assert simulated.throughput == plain.throughput
    before = energies(plain.paths[0])
    for tel_id, energy in energies(path).items():
        np.testing.assert_array_equal(energy, before[tel_id])
    trigger = read(path, "/dl1/event/subarray/trigger")
    mine = trigger["tels_with_trigger"][:, tel_ids.index(30)]
    assert (
        trigger["event_id"][mine].tolist() == read_telescopes(path, ENERGY)[30]["event_id"].tolist()
    )


def test_invalid_energies(tmp_path):
    _, path = one_file(tmp_path, invalid_fraction=0.3, nan_valid_fraction=0.1)
    rows = np.concatenate([*read_telescopes(path, ENERGY).values()])
    is_nan, is_valid = np.isnan(rows[f"{ER}energy"]), rows[f"{ER}is_valid"]
    assert is_nan[~is_valid].all()
    assert np.mean(~is_valid) == pytest.approx(0.3, abs=0.06)
    assert np.mean(is_nan[is_valid]) == pytest.approx(0.1, abs=0.05)
    assert np.isnan(rows[f"{ER}energy_uncert"][is_nan]).all()
    stereo = read(path, "/dl2/event/subarray/energy/RandomForestRegressor")
    np.testing.assert_array_equal(
        np.isfinite(stereo["RandomForestRegressor_energy"]),
        stereo["RandomForestRegressor_telescopes"].any(axis=1),
    )


def test_missing_uncertainties_leave_the_energies(plain, tmp_path):
    _, path = one_file(tmp_path, missing_uncertainty_fraction=1.0)
    before = read_telescopes(plain.paths[0], ENERGY)
    for tel_id, rows in read_telescopes(path, ENERGY).items():
        np.testing.assert_array_equal(rows[f"{ER}energy"], before[tel_id][f"{ER}energy"])
        assert np.isnan(rows[f"{ER}energy_uncert"]).all()


def test_outliers_multiply_some_energies_and_leave_the_others(plain, tmp_path):
    _, path = one_file(tmp_path, outlier_fraction=0.2, outlier_factor=4.0)
    before, after = energies(plain.paths[0]), energies(path)
    ratio = np.concatenate([after[t] / before[t] for t in before])
    ratio = ratio[np.isfinite(ratio)]
    np.testing.assert_allclose(np.unique(ratio.round(9)), [1, 4])
    assert np.mean(ratio > 2) == pytest.approx(0.2, abs=0.05)


def test_silent_and_removed_telescopes_and_dead_types(tmp_path):
    simulated, path = one_file(
        tmp_path, silent_telescopes=(2,), removed_telescopes=(3,), dead_types=("SST",)
    )
    layout = read(path, LAYOUT)["tel_id"].tolist()
    assert set(layout) == set(simulated.throughput) == {1, 2, 4, *range(5, 12), *range(30, 36)}
    assert set(energies(path)) == {1, 4, *range(5, 12)}
    assert set(read(path, TRIGGER)["tel_id"]) == {1, 4, *range(5, 12)}
    mask = read(path, "/dl1/event/subarray/trigger")["tels_with_trigger"]
    assert mask.shape[1] == len(layout)
    assert mask.sum(axis=1).min() >= 2


def test_truth_of_a_telescope_does_not_depend_on_the_others(plain):
    fewer = true_array(small(removed_telescopes=(1, 30), unsorted_layout=True))
    assert fewer.throughput.items() < plain.throughput.items()
    assert fewer.time_offset_ns.items() < plain.time_offset_ns.items()


def test_sparse_telescopes(tmp_path):
    _, path = one_file(tmp_path, sparse_telescopes={2: 1, 6: 3})
    rows = read_telescopes(path, ENERGY)
    assert len(rows[2]) == 1
    assert len(rows[6]) == 3
    stamps = read(path, TRIGGER)
    assert np.unique(stamps["event_id"], return_counts=True)[1].min() >= 2


def test_disconnected_groups_share_no_event(tmp_path):
    groups = ((1, 2), (3, 4, 5))
    _, path = one_file(tmp_path, disconnected_groups=groups)
    seen = {t: set(r["event_id"]) for t, r in read_telescopes(path, ENERGY).items()}
    one, two = ({e for t in group for e in seen[t]} for group in groups)
    assert one
    assert two
    assert one.isdisjoint(two)
    assert seen[6] & one
    assert seen[6] & two


def test_shifted_telescopes_stand_apart(plain, tmp_path):
    simulated, path = one_file(tmp_path, shifted_telescopes=(3, 4), shift_m=3000.0)
    for tel_id, (x, y, z) in plain.position_m.items():
        shift = 3000.0 if tel_id in (3, 4) else 0.0
        assert simulated.position_m[tel_id] == (x + shift, y, z)
    seen = {t: set(r["event_id"]) for t, r in read_telescopes(path, ENERGY).items()}
    assert seen[3] & seen[4]
    assert seen[1].isdisjoint(seen[3])


def test_throughput_jump(tmp_path):
    noiseless = {"energy_resolution": 0.0, "photon_noise": 0.0, "invalid_fraction": 0.0}
    jump = {"jumping_telescope": 2, "jump_time_s": 1800.0, "jump_factor": 0.7}
    simulated = simulate_array(tmp_path, small(**noiseless, n_files=2, **jump))
    start_s = read(simulated.paths[0], "/dl0/monitoring/telescope/pointing/tel_001")["time"][1, 0]
    found = set()
    for path in simulated.paths:
        trigger = read(path, "/dl1/event/subarray/trigger")
        rows = read_telescopes(path, ENERGY)
        common, at_1, at_2 = np.intersect1d(
            rows[1]["event_id"], rows[2]["event_id"], return_indices=True
        )
        c = rows[2][f"{ER}energy"][at_2] / rows[1][f"{ER}energy"][at_1] * simulated.throughput[1]
        second = trigger["time"][np.searchsorted(trigger["event_id"], common), 0] - start_s
        after = second >= 1800
        np.testing.assert_allclose(c, simulated.throughput[2] * np.where(after, 0.7, 1), rtol=1e-9)
        found |= set(after.tolist())
    assert found == {False, True}


def test_shuffled_rows_are_the_same_rows(plain, tmp_path):
    _, path = one_file(tmp_path, shuffled_rows=True)
    for group in (ENERGY, IMPACT, PARTICLE):
        before, after = read_telescopes(plain.paths[0], group), read_telescopes(path, group)
        for tel_id, rows in after.items():
            order = np.argsort(rows["event_id"])
            assert rows[order].tobytes() == before[tel_id].tobytes()
        assert any((np.diff(rows["event_id"]) < 0).any() for rows in after.values())
    np.testing.assert_array_equal(read(path, TRIGGER), read(plain.paths[0], TRIGGER))


def test_shared_obs_id_with_events_of_their_own(tmp_path):
    simulated = simulate_array(tmp_path, small(n_files=2, shared_obs_id=True))
    one, two = (read(path, TRIGGER) for path in simulated.paths)
    assert set(one["obs_id"]) == set(two["obs_id"]) == {1001}
    assert set(one["event_id"]).isdisjoint(two["event_id"])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"array": "alpha"}, "array: expected one of mixed, reduced, got 'alpha'"),
        ({"n_files": 0}, "n_files: expected a number between 1 and 20000, got 0"),
        ({"outlier_fraction": 1.5}, "outlier_fraction: expected a number between 0 and 1, got 1.5"),
        ({"time_jitter_ns": float("nan")}, "time_jitter_ns: expected a number between 0"),
        ({"energy_range_tev": (2.0, 1.0)}, "energy_range_tev: expected increasing"),
        ({"energy_range_tev": (2.0, 1e5)}, "energy_range_tev: expected a number between 0.01"),
        ({"throughput_spread": {"LST": 0.1}}, "throughput_spread: expected a number for each"),
        (
            {"throughput_mean": {"LST": 1.0, "MST": 0.0, "SST": 1.0}},
            "throughput_mean: expected a number between .* got 0.0",
        ),
        ({"silent_telescopes": (99,)}, r"silent_telescopes: expected telescopes .* got \[99\]"),
        ({"dead_types": ("XST",)}, "dead_types: expected one of LST, MST, SST, got 'XST'"),
        ({"dead_types": ("LST", "MST", "SST")}, "leave at least two telescopes"),
        ({"disconnected_groups": ((1, 2), (2, 3))}, "disconnected_groups: expected disjoint"),
        ({"sparse_telescopes": {1: 0}}, "sparse_telescopes: expected a number between 1"),
        ({"jumping_telescope": 1, "jump_factor": -1.0}, "jump_factor: expected a number between"),
        ({"jumping_telescope": 77}, "jumping_telescope: expected telescopes of the array"),
        ({"n_files": "two"}, "n_files: expected an integer, got 'two'"),
        ({"n_events": None}, "n_events: expected an integer, got None"),
        ({"unsorted_layout": 1}, "unsorted_layout: expected true or false, got 1"),
        ({"time_jitter_ns": True}, "time_jitter_ns: expected a number, got True"),
        ({"silent_telescopes": 7}, "silent_telescopes: expected a list, got 7"),
        ({"disconnected_groups": (1, 2)}, "disconnected_groups.0: expected a list, got 1"),
        ({"sparse_telescopes": {"1": 2}}, r"sparse_telescopes.1.* expected an integer, got '1'"),
        ({"energy_range_tev": (1.0, 2.0, 3.0)}, "energy_range_tev: "),
        ({"light_fall_m": 0.0}, "light_fall_m: expected a number between 1 and 1e"),
        ({"pointing_levels": ("dl2",)}, "pointing_levels: expected one of dl0, dl1, got 'dl2'"),
        ({"pointing_coverage": 2.0}, "pointing_coverage: expected a number between 0 and 1"),
        ({"no_such_option": 2.0}, "no_such_option: "),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_an_array_that_never_triggers_is_an_error_not_an_endless_loop(tmp_path):
    silent = tuple(range(1, 12)) + tuple(range(32, 36))
    options = small(silent_telescopes=silent, shifted_telescopes=(30,), shift_m=50_000.0)
    with pytest.raises(ConfigError, match=r"none of .* showers triggers two telescopes"):
        simulate_array(tmp_path, options)


@pytest.mark.parametrize("array", ARRAYS)
def test_positions_are_distinct_and_neighbours_at_the_spacing(array):
    truth = true_array(ArraySimulation(array=array))
    assert {kind: [*truth.tel_type.values()].count(kind) for kind in ("LST", "MST", "SST")} == dict(
        ARRAYS[array]
    )
    for kind, spacing_m in truth.options.spacing_m.items():
        points = np.array([truth.position_m[t] for t, k in truth.tel_type.items() if k == kind])
        distance = np.linalg.norm(points[:, None] - points, axis=2)
        np.fill_diagonal(distance, np.inf)
        np.testing.assert_allclose(distance.min(axis=1), spacing_m)


# Times


def delays(path):
    """Time of each telescope event after its event's own time, in quarters of a nanosecond."""
    events, rows = read(path, "/dl1/event/subarray/trigger"), read(path, TRIGGER)
    start = dict(zip(events["event_id"].tolist(), events["time"].astype(np.int64), strict=True))
    difference = rows["time"] - np.array([start[e] for e in rows["event_id"].tolist()])
    return difference[:, 0] * 4_000_000_000 + difference[:, 1]


def test_time_knobs_move_what_they_say_and_nothing_else(tmp_path, plain):
    before = delays(plain.paths[0])
    rows = read(plain.paths[0], TRIGGER)
    energy = energies(plain.paths[0])
    knobs = {
        "jump": {"jumping_telescope": 1, "jump_time_s": 600.0, "jump_offset_ns": 5.0},
        "drift": {"time_drift_ns_per_h": 30.0},
        "walk": {"trigger_walk_ns": 4.0},
        "outliers": {"time_outlier_fraction": 0.1, "time_outlier_ns": 400.0},
    }
    after = {}
    for name, options in knobs.items():
        simulated, path = one_file(tmp_path / name, **options, jump_factor=1.0)
        moved_ns = (delays(path) - before) / 4
        seconds = rows["time"][:, 0].astype(float) - simulated.options.start_tai_s(0)
        after[name] = moved_ns, seconds, simulated
        for tel_id, values in energies(path).items():
            np.testing.assert_array_equal(values, energy[tel_id])

    moved_ns, seconds, _ = after["jump"]
    jumped = (rows["tel_id"] == 1) & (seconds >= 600)
    np.testing.assert_array_equal(moved_ns, np.where(jumped, 5.0, 0.0))

    moved_ns, seconds, simulated = after["drift"]
    rate = np.array([simulated.time_drift_ns_per_h[t] for t in rows["tel_id"].tolist()])
    assert 10 < np.std([*simulated.time_drift_ns_per_h.values()]) < 60
    # A whole second more or less is 1/3600 of the hourly rate; rounding a quarter of a ns.
    np.testing.assert_allclose(moved_ns, rate * seconds / 3600, atol=0.3)

    moved_ns, _, _ = after["walk"]
    assert moved_ns.min() >= 0
    assert moved_ns.max() <= 4.25  # the walk of an image at threshold

    moved_ns, _, _ = after["outliers"]
    assert 0.05 < np.mean(moved_ns != 0) < 0.15
    assert 200 < np.abs(moved_ns).max() <= 400.25


def test_a_late_trigger_is_missing_in_the_peak_time(tmp_path):
    delay = {"LST": 30.0, "MST": 45.0, "SST": 60.0}
    _, path = one_file(tmp_path, time_jitter_ns=5.0, peak_delay_ns=delay, peak_follows_trigger=True)
    _, still = one_file(tmp_path / "still", time_jitter_ns=5.0, peak_delay_ns=delay)
    follows, fixed = (read_telescopes(one, PARAMETERS) for one in (path, still))
    assert fixed[1]["peak_time_mean"].std() < 0.3
    assert follows[1]["peak_time_mean"].std() > 4
    assert fixed[1]["peak_time_mean"].mean() == pytest.approx(30, abs=0.1)
    assert fixed[5]["peak_time_mean"].mean() == pytest.approx(45, abs=0.1)


def test_missing_times_and_failed_reconstructions(tmp_path):
    _, path = one_file(tmp_path, missing_time_fraction=0.2, failed_stereo_fraction=0.3)
    missing = (read(path, TRIGGER)["time"] == 0).all(axis=1)
    assert 0.15 < missing.mean() < 0.25
    geometry = read(path, GEOMETRY)
    failed = ~geometry["HillasReconstructor_is_valid"]
    assert 0.2 < failed.mean() < 0.4
    for name in ("alt", "az", "core_x", "core_y", "h_max"):
        np.testing.assert_array_equal(np.isnan(geometry[f"HillasReconstructor_{name}"]), failed)
    lost = set(geometry["event_id"][failed].tolist())
    for rows in read_telescopes(path, IMPACT).values():
        is_lost = [event in lost for event in rows["event_id"].tolist()]
        impact_m = rows["HillasReconstructor_tel_impact_distance"]
        np.testing.assert_array_equal(np.isnan(impact_m), is_lost)


def test_height_of_maximum_can_be_wrong_in_the_mean(tmp_path, plain):
    _, path = one_file(tmp_path, h_max_scale=0.8)
    wrong, right = (
        read(one, GEOMETRY)["HillasReconstructor_h_max"] for one in (path, plain.paths[0])
    )
    np.testing.assert_allclose((wrong - 2150.0) / (right - 2150.0), 0.8, rtol=1e-12)
