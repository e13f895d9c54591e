"""Timing calibration through files: known truth, bad input, time bins, one digest."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tables as pytables

import calibdask as package
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine.preliminary import preliminary
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext
from calibdask.errors import CorruptedInput, MissingInput, NotEnoughData
from tests.e2e.tables import MONITORING, by_telescope, read_table

JOB = "timing-calibration"
OFFSETS = f"{MONITORING}/timing_calibration"
TRIGGER = "/dl1/event/telescope/trigger"
GEOMETRY = "/dl2/event/subarray/geometry/HillasReconstructor"
BLOCKS = "/configuration/observation/observation_block"
LAYOUT = "/configuration/instrument/subarray/layout"
OPTION = "CalculateTimingCalibration"
REFERENCE = {f"{OPTION}.reference_telescope": 5}
# High energies on the array itself: every type sees many of few events.
SIMULATION = ArraySimulation(
    n_files=2,
    n_events=600,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    seed=77,
)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Two files: read only, tests copy what they change."""
    return simulate_array(tmp_path_factory.mktemp("night"), SIMULATION)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the job somewhere new."""

    def do(inputs, overrides=None, **options):
        output = tmp_path_factory.mktemp("run") / "out.h5"
        options = {"cluster": "serial", "report": False} | options
        return package.run(JOB, inputs, output, overrides=REFERENCE | (overrides or {}), **options)

    return do


@pytest.fixture(scope="module")
def result(night, run):
    """The night with no option but the reference."""
    return run(night.paths)


@pytest.fixture
def changed(night, tmp_path):
    """Change a copy of the first file."""

    def do(change):
        path = tmp_path / "changed.h5"
        shutil.copy(night.paths[0], path)
        with pytables.open_file(path, "a") as file:
            change(file)
        return path

    return do


def deviations(table, truth_ns, reference=5):
    """Offset less its truth, and the error, of the telescopes that have one."""
    good = np.asarray(table["error"]) > 0
    true = np.array([truth_ns[t] - truth_ns[reference] for t in table["tel_id"].tolist()])
    value, error = (np.asarray(table[name]) for name in ("value", "error"))
    return (value - true)[good], error[good]


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


# -- known truth --------------------------------------------------------------------------------


def test_offsets_through_files(night, result):
    deviation, error = deviations(result.tables[OFFSETS], night.time_offset_ns)
    assert len(deviation) == 16
    assert rms(deviation) < 0.15
    assert 0.5 < rms(deviation / error) < 1.5
    flow = result.account.total.cut_flow
    assert flow["events with a pair"] == 2 * SIMULATION.n_events
    assert flow["time known"] == flow["front known"] == night.n_telescope_events


def test_tables_are_read_by_ctapipe(result):
    offsets = read_table(result.paths[0], OFFSETS)
    for name in ("value", "error", "error_independent", "systematic", "error_total"):
        assert offsets[name].unit == "ns"
    assert "subtract" in offsets["value"].description
    total = np.hypot(offsets["error"].value, offsets["systematic"].value)
    np.testing.assert_array_equal(offsets["error_total"].value, total)
    covariance = read_table(result.paths[0], f"{OFFSETS}_covariance")
    assert covariance["covariance"].unit == covariance["systematic_covariance"].unit == "ns2"
    own = covariance[covariance["tel_id_1"] == covariance["tel_id_2"]]
    for column, error in (("covariance", "error"), ("systematic_covariance", "systematic")):
        variance = dict(zip(own["tel_id_1"].tolist(), own[column].value.tolist(), strict=True))
        for tel_id, sigma in by_telescope(offsets, error).items():
            assert sigma**2 == pytest.approx(variance[tel_id], rel=1e-12)
    pairs = read_table(result.paths[0], f"{OFFSETS}_pairs")
    assert {"LST", "LST-MST", "LST-SST", "MST", "MST-SST", "SST"} == set(pairs["tel_type"])
    assert pairs["difference"].unit == "ns"
    residuals = read_table(result.paths[0], f"{OFFSETS}_residuals")
    assert residuals["impact_low"].unit == "m"
    seen = residuals["n_events"] > 100
    assert np.abs(residuals["residual"][seen].value).max() < 1.0
    components = read_table(result.paths[0], f"{OFFSETS}_components")
    assert components["reference_tel_id"].tolist() == [5]


def test_plane_front_and_sea_level(night, run, result):
    def rms_with(overrides):
        table = run(night.paths, overrides).tables[OFFSETS]
        return rms(deviations(table, night.time_offset_ns)[0])

    spherical = rms(deviations(result.tables[OFFSETS], night.time_offset_ns)[0])
    plane = rms_with({f"{OPTION}.front": "plane"})
    assert plane > 10 * spherical
    assert rms_with({f"{OPTION}.h_max_above": "ground"}) > 5 * spherical
    # At equal distances the curvature of the front cancels: that selection helps a plane front.
    equal = {f"{OPTION}.event_filters.max_distance_asymmetry": 0.1}
    assert rms_with({f"{OPTION}.front": "plane"} | equal) < 0.5 * plane


def test_shuffled_layout_and_rows_and_what_is_missing(tmp_path, run):
    options = replace(
        SIMULATION,
        unsorted_layout=True,
        shuffled_rows=True,
        missing_time_fraction=0.1,
        failed_stereo_fraction=0.2,
        time_outlier_fraction=0.02,
    )
    night = simulate_array(tmp_path, options)
    result = run(night.paths)
    deviation, _ = deviations(result.tables[OFFSETS], night.time_offset_ns)
    assert len(deviation) == 16
    assert rms(deviation) < 0.25
    flow = result.account.total.cut_flow
    assert flow["impact distance finite and positive"] < 0.9 * flow["telescope events"]
    known = flow["time known"] / flow["impact distance finite and positive"]
    assert known == pytest.approx(0.9, abs=0.01)


def test_peak_times_instead_of_walking_triggers(tmp_path, run):
    delay_ns = {"LST": 20.0, "MST": 35.0, "SST": 90.0}
    options = replace(
        SIMULATION,
        trigger_walk_ns=6.0,
        peak_follows_trigger=True,
        peak_delay_ns=delay_ns,
    )
    night = simulate_array(tmp_path, options)
    truth = {t: v + delay_ns[night.tel_type[t]] for t, v in night.time_offset_ns.items()}
    walking = run(night.paths, {f"{OPTION}.time_walk": False}).tables[OFFSETS]
    for time in ("peak_time_mean", "timing_intercept"):
        steady = run(night.paths, {f"{OPTION}.time": time}).tables[OFFSETS]
        deviation, error = deviations(steady, truth)
        assert rms(deviation) < 0.1
        # Neither the walk nor the jitter of the trigger is left in it.
        assert np.median(error) < 0.7 * np.median(walking["error"][walking["error"] > 0].value)
        systematic = np.nanmedian(steady["systematic"].value)
        assert systematic < 0.2 * np.nanmedian(walking["systematic"].value)
    deviation, _ = deviations(walking, night.time_offset_ns)
    assert rms(deviation) > 0.3


def test_times_that_were_corrected_for_the_pointing(tmp_path, run, changed):
    options = replace(SIMULATION, pointing_delay_removed=True)
    night = simulate_array(tmp_path, options)
    removed = {f"{OPTION}.delay_removed": "pointing"}
    deviation, _ = deviations(run(night.paths, removed).tables[OFFSETS], night.time_offset_ns)
    assert rms(deviation) < 0.15
    unaware = run(night.paths).tables[OFFSETS]
    assert not rms(deviations(unaware, night.time_offset_ns)[0]) < 10

    def follow(file):
        rows = file.get_node(BLOCKS)[:]
        rows["subarray_pointing_frame"] = 1  # of coordinates in the sky
        file.get_node(BLOCKS)[:] = rows

    with pytest.raises(MissingInput, match=r"changed.h5.*where the array pointed"):
        run(changed(follow), removed)


def test_shared_data_are_recovered(shared_array, run):
    """Simulated by another programme: its h_max counts from the ground."""
    folder = shared_array / "dl2_small"
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["time_offset_ns"]
    truth_ns = {int(tel_id): offset for tel_id, offset in truth.items()}
    paths = sorted(folder.glob("*.h5"))
    ground = {f"{OPTION}.h_max_above": "ground"}
    result = run(paths, ground)
    table = result.tables[OFFSETS]
    often = table[(table["n_events"] >= 100) & (table["error"] > 0)]
    assert len(often) == 20
    deviation, error = deviations(often, truth_ns)
    assert rms(deviation) < 0.25
    assert rms(deviation / error) < 1.5
    near = often[often["tel_type"] != "SST"]
    assert rms(deviations(near, truth_ns)[0]) < 0.15
    plane = run(paths, ground | {f"{OPTION}.front": "plane"}).tables[OFFSETS]
    plane = plane[np.isin(plane["tel_id"], often["tel_id"])]
    assert rms(deviations(plane, truth_ns)[0]) > 2.4


def test_ctapipes_own_file_ends_in_flags(shared_array, tmp_path, calibdask, run):
    """Six showers: nothing to fit, but layout, times and heights of the real format are read."""
    path = shared_array / "dl2_ctapipe_chain" / "run202.dl2.h5"
    said = calibdask(JOB, "-i", path, "-o", tmp_path / "out.h5")
    assert said.code == 0
    assert "delay_removed" in said.err
    assert "nothing is known of it" in (tmp_path / "out.html").read_text(encoding="utf-8")
    table = read_table(tmp_path / "out.h5", OFFSETS)
    assert {"".join(sorted(set(flags))) for flags in table["flags"]} == {"NS"}
    # With two events a pair there are offsets, if no errors. It was simulated without any; its
    # times are corrected for where the array points, as sim_telarray does.
    few = {f"{OPTION}.n_min": 2}
    largest = []
    for removed in ("none", "pointing"):
        values = (
            run(path, few | {f"{OPTION}.delay_removed": removed}).tables[OFFSETS]["value"].value
        )
        assert np.isfinite(values).sum() >= 7
        largest.append(np.nanmax(np.abs(values)))
    assert largest[0] > 60
    assert largest[1] < 12


def test_the_largest_shower_of_the_real_format(shared_array):
    """Geometry, heights and signs are those of real files: its times agree only if they are."""
    path = shared_array / "dl2_ctapipe_chain" / "run202.dl2.h5"

    def scatter_ns(**given):
        plan = package.plan(JOB, path, overrides={f"{OPTION}.{k}": v for k, v in given.items()})
        (shard,) = plan.shards
        rows = plan.calibration.reduce(shard, plan.calibration.read(shard)).rows
        mine = rows["event"] == np.argmax(np.bincount(rows["event"]))
        lst = mine & (rows["tel_id"] <= 4)
        # One of 19 images has no size, and the time walk depends on it.
        assert (mine.sum(), lst.sum()) == (18, 4)
        return np.array([np.std(rows["residual_ns"][one]) for one in (lst, mine & ~lst)])

    corrected = {"delay_removed": "pointing"}
    spherical_ns = scatter_ns(**corrected)
    assert (spherical_ns < [2, 5]).all()
    assert (scatter_ns(**corrected, time="peak_time_mean") < [1.2, 3.2]).all()
    # The MSTs reach far enough out to tell a plane from a sphere, and its radius.
    assert scatter_ns(**corrected, front="plane")[1] > 3 * spherical_ns[1]
    assert scatter_ns(**corrected, h_max_above="ground")[1] > 1.3 * spherical_ns[1]
    assert (scatter_ns() > 40).all()


# -- bad input ----------------------------------------------------------------------------------


def test_unknown_place_of_the_array(changed, run):
    def forget(file):
        for axis in "xyz":
            file.del_node_attr(LAYOUT, f"reference_itrs_{axis}")

    path = changed(forget)
    with pytest.raises(MissingInput, match=r"changed.h5.*observatory_altitude"):
        run(path)
    told = run(path, {f"{OPTION}.observatory_altitude": "2.15 km"})
    assert np.isfinite(told.tables[OFFSETS]["value"].value).all()
    assert run(path, {f"{OPTION}.front": "plane"}).digest


def test_times_that_do_not_resolve_a_nanosecond(changed, run):
    def to_mjd(file):
        table = file.get_node(TRIGGER)
        rows = table[:]
        names = [name for name in rows.dtype.names if name != "time"]
        new = np.zeros(len(rows), [(n, rows.dtype[n]) for n in names] + [("time", "<f8")])
        for name in names:
            new[name] = rows[name]
        new["time"] = rows["time"][:, 0] / 86400 + 40587
        file.remove_node(TRIGGER)
        file.create_table(TRIGGER.rpartition("/")[0], "trigger", obj=new)

    with pytest.raises(CorruptedInput, match=r"changed.h5.*ctao_high_res"):
        run(changed(to_mjd))


def test_no_geometry_at_all(changed, run):
    def lose(file):
        column = file.get_node(GEOMETRY).cols.HillasReconstructor_h_max
        column[:] = np.full(len(column), np.nan)

    with pytest.raises(NotEnoughData, match="known times"):
        run(changed(lose))


def test_a_maximum_below_the_ground_is_no_maximum(changed, run):
    def sink(file):
        column = file.get_node(GEOMETRY).cols.HillasReconstructor_h_max
        column[::3] = np.full(len(column[::3]), 2000.0)

    flow = run(changed(sink)).account.total.cut_flow
    assert 0.5 < flow["front known"] / flow["time known"] < 0.8


def test_missing_columns_and_wrong_options(changed, night, calibdask, tmp_path):
    path = changed(lambda file: file.remove_node(TRIGGER))
    said = calibdask(JOB, "-i", path, "-o", tmp_path / "o.h5")
    assert said.code == 105
    assert re.search(r"changed.h5: has no trigger times of its telescopes", said.err)
    for option, text in (("max_offset: 20", "max_residual"), ("impact_bins: [0, 0, 1]", "rise")):
        config = tmp_path / "config.yaml"
        config.write_text(f"{OPTION}: {{{option}}}\n", encoding="utf-8")
        said = calibdask(JOB, "-c", config, "-i", night.paths[0], "-o", tmp_path / "o.h5")
        assert said.code == 2
        assert text in said.err
        assert option.partition(":")[0] in said.err


def test_a_reference_that_is_not_there(night, run):
    result = run(night.paths, {f"{OPTION}.reference_telescope": 99})
    assert any("99" in note for note in result.plan.calibration.warnings())
    flags = by_telescope(result.tables[OFFSETS], "flags")
    assert all("F" in text for text in flags.values())


def test_types_by_themselves(night, run):
    found = run(night.paths, {f"{OPTION}.mixed_types": False}).tables
    assert set(found[f"{OFFSETS}_pairs"]["tel_type"]) == {"LST", "MST", "SST"}
    components = found[f"{OFFSETS}_components"]
    assert components["tel_type"].tolist() == ["LST", "MST", "SST"]
    references = components["reference_tel_id"].tolist()
    assert references[1] == 5
    assert ["F" in flags for flags in components["flags"].tolist()] == [False, False, False]
    for kind, reference in zip(components["tel_type"].tolist(), references, strict=True):
        mine = found[OFFSETS][found[OFFSETS]["tel_type"] == kind]
        assert rms(deviations(mine, night.time_offset_ns, reference)[0]) < 0.3


# -- time ---------------------------------------------------------------------------------------


def test_a_telescope_that_jumps_is_flagged(tmp_path, calibdask):
    options = replace(
        SIMULATION,
        n_files=3,
        jumping_telescope=7,
        jump_time_s=1800.0,
        jump_offset_ns=2.0,
        jump_factor=1.0,
    )
    night = simulate_array(tmp_path / "dl2", options)
    # Bins begin with the first file, and the jump comes with the fourth.
    said = calibdask(
        JOB, "-i", *night.paths, "-o", tmp_path / "out.h5", "--time-bin", "10 min", "--epoch",
        "2023-11-14T22:13:20",
    )  # fmt: skip
    assert said.code == 0, said.err
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Telescope 7 jumps" in page
    assert "Systematic error" in page
    table = read_table(tmp_path / "out.h5", OFFSETS)
    assert sorted(set(table["time_bin"])) == [0, 1, 2, 3, 4, 5]
    jumps = [
        (t, b)
        for t, b, f in zip(
            table["tel_id"].tolist(), table["time_bin"].tolist(), table["flags"], strict=True
        )
        if "J" in f
    ]
    assert jumps == [(7, 3)]
    drift = read_table(tmp_path / "out.h5", f"{OFFSETS}_drift")
    (row,) = drift[drift["tel_id"] == 7]
    assert row["step"] == pytest.approx(2.0, abs=5 * row["step_error"])
    truth = dict(night.time_offset_ns)
    for b in range(6):
        mine = table[table["time_bin"] == b]
        now = truth | {7: truth[7] + (2.0 if b >= 3 else 0.0)}
        # The first telescope of the array is the reference in each of them.
        deviation, error = deviations(mine, now, reference=1)
        assert rms(deviation / error) < 2
        assert rms(deviation) < 0.4


def test_a_telescope_that_drifts_is_found(tmp_path, run):
    options = replace(SIMULATION, n_files=2, time_drift_ns_per_h=6.0)
    night = simulate_array(tmp_path, options)
    bins = {"Campaign.time_bin": "10 min", "Campaign.epoch": "2023-11-14T22:13:20"}
    result = run(night.paths, bins)
    drift = result.tables[f"{OFFSETS}_drift"]
    flags = by_telescope(drift, "flags")
    # A drift of 0.5 h at these rates, against errors of 0.1 ns.
    rate = night.time_drift_ns_per_h
    middle = np.median([*rate.values()])
    fast = [t for t in rate if abs(rate[t] - middle) > 6.0]
    assert fast
    assert all(flags[t] for t in fast)


def test_a_look_at_what_is_there_so_far(night, tmp_path, run):
    """Of two files by themselves all is stored, of both together the first stage alone."""
    work = tmp_path / "work"
    plan = package.plan(JOB, night.paths, overrides=REFERENCE)
    looks = []
    for k, path in enumerate(night.paths):
        run(path, workdir=work)
        context = WorkContext(plan.calibration, Store(work / "store"))
        looks.append(preliminary(plan, context))
        assert looks[k].merged == tuple(range(k + 1))
    assert looks[0].done
    assert f"{OFFSETS}_residuals" in looks[0].tables
    look = looks[1]
    assert not look.done
    table = look.tables[OFFSETS]
    assert set(table["flags"]) == {"P"}
    true = [night.time_offset_ns[t] - night.time_offset_ns[5] for t in table["tel_id"].tolist()]
    assert rms(table["value"].to_value("ns") - true) < 5  # bins of 20 ns
    assert str(look).startswith("timing-calibration: preliminary, 2 of 2 shards")


# -- one digest ---------------------------------------------------------------------------------

CUT = {"Campaign.shard_bytes": "3 MiB"}


@pytest.fixture(scope="module")
def reference(night, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "out.h5"
    result = package.run(
        JOB, night.paths, output, overrides=REFERENCE | CUT, cluster="serial", report=False
    )
    assert len(result.plan.shards) > 2 * len(night.paths)
    return result


def test_threads(night, run, reference):
    assert run(night.paths, CUT, cluster="threads", workers=3).digest == reference.digest


@pytest.mark.cluster
@pytest.mark.slow
def test_dask_workers(night, run, reference):
    assert run(night.paths, CUT, cluster="local", workers=2).digest == reference.digest


def test_order_and_names_of_files(night, run, reference, tmp_path):
    for path, name in zip(night.paths, ("z.h5", "a.h5"), strict=True):
        shutil.copy(path, tmp_path / name)
    assert run([tmp_path / "z.h5", tmp_path / "a.h5"], CUT).digest == reference.digest


def test_resumed_with_another_fit(night, run, reference, tmp_path):
    options = {"cluster": "serial", "report": False, "workdir": tmp_path / "work"}
    median = CUT | {f"{OPTION}.n_min": 200}
    package.run(JOB, night.paths, tmp_path / "a.h5", overrides=REFERENCE | median, **options)
    again = package.run(JOB, night.paths, tmp_path / "b.h5", overrides=REFERENCE | CUT, **options)
    assert again.digest == reference.digest
    assert again.account.total.cut_flow == reference.account.total.cut_flow


def test_cutting_moves_no_more_than_rounding(result, reference):
    whole = result.tables[OFFSETS]
    parts = reference.tables[OFFSETS]
    for name in ("value", "error", "systematic"):
        np.testing.assert_allclose(
            whole[name].value, parts[name].value, rtol=1e-9, atol=1e-9, err_msg=name
        )
