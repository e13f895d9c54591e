"""Time bins of the array calibrations: cells, empty bins, tables, jumps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tables as pytables

import calibdask
from calibdask.api import load_config, plan
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine.plan import make_plan
from calibdask.engine.preliminary import preliminary
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext
from calibdask.errors import ConfigError, NotEnoughData
from calibdask.io.dl2 import event_times

JOB = "inter-calibration"
TABLE = "/dl2/monitoring/subarray/inter_calibration"
VALID = {
    "CalculateEnergyAsymmetry.QualityQuery.quality_criteria": [
        ["valid", "RandomForestRegressor_tel_is_valid"]
    ],
    "RelativeThroughputFitter.reference_telescopes": {"LST": 1, "MST": 5, "SST": 30},
}
OPTIONS = ArraySimulation(
    n_files=3,
    n_events=200,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    block_duration_s=1200.0,
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("simulated"), OPTIONS)


def bins(minutes, offset_s=0.0):
    """Options for bins that begin with the first block."""
    from calibdask.stats.timebins import to_time

    start = to_time(int((OPTIONS.start_tai_s(0) + offset_s) * 1e9)).utc
    return {"Campaign.time_bin": f"{minutes} min", "Campaign.epoch": start.isot}


def run(paths, output, overrides, **options):
    return calibdask.run(
        JOB,
        paths,
        output,
        overrides=VALID | overrides,
        **({"cluster": "serial", "report": False} | options),
    )


def columns_of(table, rows=slice(None)):
    names = [name for name in table.colnames if not name.startswith("time_")]
    return {name: np.asarray(table[name])[rows].tolist() for name in names}


def test_a_bin_is_what_its_events_give_alone(simulated, tmp_path):
    binned = run(simulated.paths, tmp_path / "binned.h5", bins(20)).tables
    assert np.unique(binned[TABLE]["time_bin"]).tolist() == [0, 1, 2]
    for number, path in enumerate(simulated.paths):
        alone = run([path], tmp_path / f"{number}.h5", {}).tables
        assert alone.keys() == binned.keys() - {f"{TABLE}_drift"}
        for name, table in alone.items():
            rows = np.asarray(binned[name]["time_bin"]) == number
            np.testing.assert_equal(columns_of(binned[name], rows), columns_of(table))
    start = binned[TABLE]["time_start"]
    assert start[0].unix_tai == pytest.approx(OPTIONS.start_tai_s(0), abs=1e-6)
    np.testing.assert_allclose((binned[TABLE]["time_end"] - start).sec, 1200.0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["log-mean", "log-clipped"])
def test_bins_across_files_hold_every_event_once(simulated, tmp_path, estimator):
    overrides = bins(20, offset_s=600.0) | {"RelativeThroughputFitter.estimator": estimator}
    whole = run(simulated.paths, tmp_path / "whole.h5", overrides)
    times = np.concatenate([event_times(path) for path in simulated.paths])
    start = int((OPTIONS.start_tai_s(0) + 600.0) * 1e9)
    numbers = np.unique((times - start) // 1_200_000_000_000)
    components = whole.tables[f"{TABLE}_components"]
    assert np.unique(whole.tables[TABLE]["time_bin"]).tolist() == numbers.tolist() == [-1, 0, 1, 2]
    together = run(simulated.paths, tmp_path / "together.h5", {
        "RelativeThroughputFitter.estimator": estimator
    }).tables[f"{TABLE}_pairs"]  # fmt: skip
    pairs = whole.tables[f"{TABLE}_pairs"]
    for row in together:
        mine = (pairs["tel_id_1"] == row["tel_id_1"]) & (pairs["tel_id_2"] == row["tel_id_2"])
        assert pairs["n_events"][mine].sum() == row["n_events"]
    assert len(components) >= len(numbers)


def test_cut_into_shards_the_numbers_stay(simulated, tmp_path):
    overrides = bins(7)
    whole = run(simulated.paths, tmp_path / "whole.h5", overrides).tables
    cut = run(simulated.paths, tmp_path / "cut.h5", {**overrides, "Campaign.shard_bytes": "3 MiB"})
    assert cut.tables.keys() == whole.keys()
    for name, table in whole.items():
        for column in table.colnames:
            left, right = table[column], cut.tables[name][column]
            if np.asarray(left).dtype.kind == "f":
                np.testing.assert_allclose(
                    np.asarray(left), np.asarray(right), rtol=1e-9, atol=1e-9
                )
            else:
                assert np.all(left == right), (name, column)


def test_shards_know_their_bins_and_no_others(simulated):
    made = plan(JOB, simulated.paths, overrides=VALID | bins(7) | {"Campaign.shard_bytes": "3 MiB"})
    assert len(made.shards) > 6
    start = int(OPTIONS.start_tai_s(0) * 1e9)
    for shard in made.shards:
        part = dict(shard.part)
        times = event_times(shard.inputs[0].path)
        times = times[part["first_trigger_row"] : part["stop_trigger_row"]]
        assert shard.cells == tuple((int(k),) for k in np.unique((times - start) // (420 * 10**9)))
    assert len(made.cells) == 9


def test_a_bin_in_which_nothing_is_selected_has_rows_without_values(simulated, tmp_path):
    spoilt = spoil(simulated.paths[1], tmp_path)
    paths = [simulated.paths[0], spoilt, simulated.paths[2]]
    table = run(paths, tmp_path / "out.h5", bins(20)).tables[TABLE]
    empty = table["time_bin"] == 1
    assert empty.sum() == len(simulated.tel_type)
    assert np.isnan(table["value"][empty]).all()
    assert set(table["flags"][empty].tolist()) == {"N"}
    assert np.isfinite(table["value"][~empty]).sum() > 20
    with pytest.raises(NotEnoughData, match="nothing to calibrate"):
        run([spoilt], tmp_path / "nothing.h5", bins(10))


def spoil(path, folder):
    """The same file with no valid energy."""
    import shutil

    copy = folder / "spoilt.h5"
    shutil.copy(path, copy)
    with pytables.open_file(copy, "a") as file:
        group = "/dl2/event/telescope/energy/RandomForestRegressor"
        for table in file.list_nodes(group):
            table.modify_column(
                column=np.zeros(table.nrows, bool), colname="RandomForestRegressor_tel_is_valid"
            )
    return copy


@pytest.mark.parametrize("jumping", [7, 5])  # 5 is held fixed
def test_a_telescope_that_jumps_is_flagged_where_it_does(tmp_path, jumping):
    options = replace(
        OPTIONS, n_events=400, jumping_telescope=jumping, jump_time_s=1200.0, jump_factor=0.8
    )
    made = simulate_array(tmp_path / "dl2", options)
    tables = run(made.paths, tmp_path / "out.h5", bins(20)).tables
    table, drift = tables[TABLE], tables[f"{TABLE}_drift"]
    jumps = np.array(["J" in flags for flags in table["flags"].tolist()])
    assert list(zip(table["tel_id"][jumps], table["time_bin"][jumps], strict=True)) == [
        (jumping, 1)
    ]
    row = drift[drift["tel_id"] == jumping][0]
    assert row["flags"] == "JV"
    assert row["step_time_bin"] == 1
    assert row["step_sigma"] > row["limit_sigma"]
    assert row["step"] == pytest.approx(np.log(0.8), abs=4 * row["step_error"])
    assert drift["flags"].tolist().count("") == len(drift) - 1


def test_asymmetries_have_no_times(simulated, tmp_path):
    calibdask.run(
        "energy-asymmetry-estimation",
        simulated.paths[:1],
        tmp_path / "asymmetries",
        overrides=VALID,
        cluster="serial",
        report=False,
    )
    with pytest.raises(ConfigError, match="time bins need the DL2 files"):
        run([tmp_path / "asymmetries"], tmp_path / "out.h5", bins(10))


def test_the_first_step_has_no_bins(simulated):
    with pytest.raises(ConfigError, match="time_bin"):
        plan("energy-asymmetry-estimation", simulated.paths, overrides=VALID | bins(10))


def test_preliminary_values_of_a_campaign_in_bins(simulated, tmp_path):
    """Of the bins whose shards are stored."""
    config = load_config(JOB, overrides=VALID | bins(20))
    first = make_plan(config.calibration, [str(path) for path in simulated.paths[:2]])
    workdir = tmp_path / "out.h5.work"
    run(simulated.paths[:2], tmp_path / "out.h5", bins(20), workdir=workdir)
    context = WorkContext(first.calibration, Store(workdir / "store"))
    done = preliminary(first, context)
    assert done.done
    assert f"{TABLE}_drift" in done.tables
    whole = make_plan(config.calibration, [str(path) for path in simulated.paths])
    seen = preliminary(whole, WorkContext(whole.calibration, Store(workdir / "store")))
    table = seen.tables[TABLE]
    assert np.unique(table["time_bin"]).tolist() == [0, 1]
    assert np.isfinite(table["value"]).sum() > 20
    assert "2 of 3 shards" in str(seen)
    assert "1 of 3 cells cannot be fitted yet" in str(seen)


def test_one_digest(simulated, tmp_path):
    overrides = bins(7) | {"Campaign.shard_bytes": "3 MiB"}
    paths = simulated.paths
    results = [
        run(some, tmp_path / f"{cluster}.h5", overrides | {"Campaign.seed": 1}, cluster=cluster)
        for some, cluster in ((paths, "serial"), (paths[::-1], "threads"))
    ]
    assert results[0].digest == results[1].digest


def test_times_as_ctapipe_stores_them_and_for_people(simulated, tmp_path):
    result = run(simulated.paths, tmp_path / "out.h5", bins(20), report=True)
    assert "2023-11-14T22:13:20" in (tmp_path / "out.ecsv").read_text()
    page = (tmp_path / "out.html").read_text()
    assert ">2023-11-14 22:13:20</td>" in page
    assert "What follows is of the last time bin" in page
    with pytables.open_file(tmp_path / "out.h5") as file:
        stored = file.get_node(TABLE)
        i = stored.colnames.index("time_start")
        assert str(stored.attrs[f"CTAFIELD_{i}_TIME_FORMAT"]) == "ctao_high_res"
        seconds = stored.col("time_start")
    np.testing.assert_array_equal(
        seconds[:, 0] - OPTIONS.start_tai_s(0), 1200 * np.asarray(result.tables[TABLE]["time_bin"])
    )
    assert not seconds[:, 1].any()


def test_values_of_bins_whose_errors_are_still_to_come(simulated):
    """One bin after its last stage, the others after the first: values flagged P, no drift."""
    of_median = {"RelativeThroughputFitter.estimator": "log-median"}  # it has two stages
    made = plan(JOB, simulated.paths, overrides=VALID | bins(20) | of_median)
    calibration, states = made.calibration, {}
    for shard in made.shards:
        (cell,) = shard.cells
        first = calibration.reduce(shard, calibration.read(shard))
        states[cell] = calibration.fit(0, cell, first.summaries[cell], None)
        assert not states[cell].done
    before = calibration.tables(calibration.combine(states))
    again = calibration.refine(1, shard, first.rows, {cell: states[cell]})
    scores = again.summaries[cell]
    states[cell] = calibration.fit(1, cell, scores, states[cell])
    assert states[cell].done
    for tables in (before, calibration.tables(calibration.combine(states))):
        assert list(tables) == [TABLE]
        assert "n_events" not in tables[TABLE].colnames
        assert len(tables[TABLE]) == 3 * len(simulated.tel_type)
    late = np.asarray(tables[TABLE]["time_bin"]) == cell[0]
    has_value = np.isfinite(tables[TABLE]["value"])
    is_preliminary = np.array(["P" in flags for flags in tables[TABLE]["flags"].tolist()])
    np.testing.assert_array_equal(is_preliminary, has_value & ~late)
