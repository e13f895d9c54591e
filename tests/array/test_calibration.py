"""The glue between files, model and engine; whole runs are tested in tests/e2e."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest

from calibdask.api import load_config, plan
from calibdask.array.asymmetry_estimation import EnergyAsymmetryEstimation
from calibdask.array.inter_calibration import InterCalibration
from calibdask.array.network.pairs import PairSummary
from calibdask.array.network.scores import ScoreSummary
from calibdask.array.network.state import NetworkFit
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine.inputs import identify
from calibdask.engine.protocol import ALL
from calibdask.errors import ConfigError, NotEnoughData, WrongKind
from calibdask.io.pytables import create_hdf5, write_table

ENERGY_JOB = "energy-asymmetry-estimation"
JOB = "inter-calibration"
VALID = {
    "CalculateEnergyAsymmetry.QualityQuery.quality_criteria": [
        ["valid", "RandomForestRegressor_tel_is_valid"]
    ]
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    options = ArraySimulation(
        n_files=2, n_events=200, array="reduced", energy_range_tev=(3.0, 100.0), core_margin_m=0.0
    )
    return simulate_array(tmp_path_factory.mktemp("simulated"), options)


def planned(job, paths, overrides=None):
    return plan(job, paths, overrides=VALID | (overrides or {}))


def stages(made):
    """All stages of a plan by hand: what the engine does, without its store."""
    calibration, given = made.calibration, {}
    kept = {}
    for stage in range(10):
        total = None
        for shard in made.shards:
            data = kept.get(shard.index) or calibration.read(shard)
            if stage:
                reduced = calibration.refine(stage, shard, data, given)
            else:
                reduced = calibration.reduce(shard, data)
                kept[shard.index] = reduced.rows
            summary = reduced.summaries[ALL]
            assert isinstance(summary, calibration.summary_type(stage))
            total = summary if total is None else total.merge(summary)
        given = {ALL: calibration.fit(stage, ALL, total, given.get(ALL))}
        if given[ALL].done:
            return given[ALL]
    raise AssertionError("never done")


@pytest.mark.parametrize("estimator", ["log-mean", "log-median", "log-clipped", "asymmetry"])
def test_stages_by_hand(simulated, estimator):
    made = planned(JOB, simulated.paths, {"RelativeThroughputFitter.estimator": estimator})
    fit = stages(made)
    assert isinstance(fit, NetworkFit)
    tables = made.calibration.tables({ALL: fit})
    assert len(tables["/dl2/monitoring/subarray/inter_calibration"]) == 17
    for table in tables.values():
        assert table.meta["obs_id"].tolist() == [1001, 1002]


@pytest.mark.parametrize("estimator", ["log-mean", "log-clipped"])
def test_summary_types(estimator):
    how = {"RelativeThroughputFitter.estimator": estimator}
    calibration = load_config(JOB, (), how).calibration
    kinds = [calibration.summary_type(stage) for stage in (0, 1, 2)]
    assert kinds == [PairSummary, PairSummary, ScoreSummary]
    how = {"RelativeThroughputFitter.estimator": "log-median"}
    median = load_config(JOB, (), how).calibration
    assert [median.summary_type(stage) for stage in (0, 1)] == [PairSummary, ScoreSummary]


@pytest.mark.parametrize("job", [JOB, ENERGY_JOB])
def test_calibrations_travel_to_workers(simulated, job):
    calibration = planned(job, simulated.paths).calibration
    again = pickle.loads(pickle.dumps(calibration))
    assert again == calibration
    assert again.map_config() == calibration.map_config()


def test_layout_is_sorted_by_type_and_number(tmp_path):
    options = ArraySimulation(n_files=1, n_events=20, array="reduced", unsorted_layout=True)
    made = simulate_array(tmp_path, options)
    layout = planned(JOB, made.paths).calibration.layout
    assert layout.tel_id == tuple(sorted(made.tel_type))
    for number, kind, place in zip(layout.tel_id, layout.tel_type, layout.position_m, strict=True):
        assert kind == made.tel_type[number]
        assert place == pytest.approx(made.position_m[number])


def test_rows_keep_each_energy_with_its_telescope(simulated):
    made = planned(ENERGY_JOB, simulated.paths[:1])
    shard = made.shards[0]
    rows = made.calibration.reduce(shard, made.calibration.read(shard)).rows
    data = made.calibration.read(shard)
    energy = dict(
        zip(
            zip(data.event_id.tolist(), data.tel_id.tolist(), strict=True),
            data.columns["RandomForestRegressor_tel_energy"].tolist(),
            strict=True,
        )
    )
    assert len(rows["event_id"]) > 100
    for i in (1, 2):
        keys = zip(rows["event_id"].tolist(), rows[f"tel_id_{i}"].tolist(), strict=True)
        assert rows[f"x_{i}"].tolist() == [energy[key] for key in keys]
    assert (rows["tel_id_1"] < rows["tel_id_2"]).all()


def test_files_are_cut_into_ranges_that_cover_them(simulated):
    made = planned(JOB, simulated.paths, {"Campaign.shard_bytes": "3 MiB"})
    assert len(made.shards) > 4
    for path in simulated.paths:
        parts = [dict(s.part) for s in made.shards if s.inputs[0].path == str(path)]
        edges = [(part["first_trigger_row"], part["stop_trigger_row"]) for part in parts]
        assert edges[0][0] == 0
        assert edges[-1][1] == 200
        assert all(one[1] == two[0] for one, two in pairwise(edges))
    assert made.peak_bytes <= 3 * 2**20 * 1.1
    whole = planned(JOB, simulated.paths)
    assert [shard.part for shard in whole.shards] == [(), ()]


def test_what_the_map_depends_on():
    # What only the fit depends on must not make stored summaries useless, and the other way round.
    base = load_config(JOB, (), VALID).calibration
    for name, value in (
        ("n_min", 20),
        ("normalisation", "weighted-mean"),
        ("reference_telescopes", {"LST": 2}),
        ("throughput_normalisation", {"LST": 0.8}),
    ):
        other = load_config(
            JOB, (), VALID | {f"RelativeThroughputFitter.{name}": value}
        ).calibration
        assert other.map_config() == base.map_config()
        assert other.fit_config() != base.fit_config()
    for name, value in (
        ("energy_reconstructor", "Other"),
        ("event_filters.min_energy", 0.1),
        ("PairFinder.max_impact_distance", 100.0),
    ):
        settings = VALID | {f"CalculateEnergyAsymmetry.{name}": value}
        assert load_config(JOB, (), settings).calibration.map_config() != base.map_config()
    mean = load_config(JOB, (), VALID | {"RelativeThroughputFitter.estimator": "log-mean"})
    assert mean.calibration.map_config() != base.map_config()  # it needs no histogram
    all_events = load_config(JOB, (), VALID | {"CalculateEnergyAsymmetry.event_types": []})
    assert all_events.calibration.map_config() != base.map_config()


def test_only_needed_columns_are_read():
    assert load_config(JOB).calibration.needs.names == ("RandomForestRegressor_tel_energy",)
    names = load_config(ENERGY_JOB, (), VALID).calibration.needs.names
    assert set(names) == {
        "RandomForestRegressor_tel_energy",
        "RandomForestRegressor_tel_energy_uncert",
        "RandomForestRegressor_tel_is_valid",
    }


@pytest.mark.parametrize("kind", [EnergyAsymmetryEstimation, InterCalibration])
def test_other_files_are_no_input(tmp_path, kind):
    path = tmp_path / "other.h5"
    with create_hdf5(path) as file:
        write_table(file, "/weather", {"x": np.arange(3.0)})
    job = {EnergyAsymmetryEstimation: ENERGY_JOB, InterCalibration: JOB}[kind]
    calibration = load_config(job).calibration
    assert isinstance(calibration, kind)
    with pytest.raises(WrongKind, match=r"other\.h5"):
        calibration.survey(identify(path))


def test_nothing_in_common(simulated):
    calibration = planned(JOB, simulated.paths).calibration
    with pytest.raises(NotEnoughData, match="nothing to calibrate"):
        calibration.fit(0, ALL, PairSummary.identity(), None)
    calibration = planned(ENERGY_JOB, simulated.paths).calibration
    with pytest.raises(NotEnoughData, match="no pair of telescopes"):
        calibration.fit(0, ALL, PairSummary.identity(), None)


def test_output_files_are_named_like_the_inputs(simulated, tmp_path):
    made = planned(ENERGY_JOB, simulated.paths, {"Campaign.shard_bytes": "3 MiB"})
    (files,) = made.calibration.outputs({})
    names = {files.name(shard) for shard in made.shards}
    assert names == {path.name for path in simulated.paths}
    (tmp_path / simulated.paths[0].name).write_bytes(simulated.paths[1].read_bytes())
    with pytest.raises(ConfigError, match="would both be written to"):
        planned(ENERGY_JOB, [simulated.paths[0], tmp_path / simulated.paths[0].name])


def test_unplanned_calibration_says_so(simulated):
    made = planned(ENERGY_JOB, simulated.paths)
    data = made.calibration.read(made.shards[0])
    with pytest.raises(ValueError, match="was not planned"):
        load_config(ENERGY_JOB, (), VALID).calibration.reduce(made.shards[0], data)
