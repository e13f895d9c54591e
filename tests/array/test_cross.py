"""The job cross-calibration: types on one scale, given ratios, muons, and what cannot be done."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tables
from scipy.special import chdtrc

import calibdask
from calibdask.api import load_config, plan
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.errors import ConfigError, CorruptedInput, MissingInput, NotEnoughData
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.stats.timebins import ctao_time, to_time

JOB = "cross-calibration"
INTER = "/dl2/monitoring/subarray/inter_calibration"
CROSS = "/dl2/monitoring/subarray/cross_calibration"
COEFFICIENTS = f"{CROSS}/coefficients"
MUON = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
REFERENCES = {"LST": 1, "MST": 5, "SST": 30}
OVERRIDES = {
    "QualityQuery.quality_criteria": [["valid", "RandomForestRegressor_tel_is_valid"]],
    "CalculateCrossCalibration.event_filters": {"max_distance_asymmetry": 0.3},
    "CalculateEnergyAsymmetry.event_filters": {"max_distance_asymmetry": 0.3},
    "RelativeThroughputFitter.reference_telescopes": REFERENCES,
}
OPTIONS = ArraySimulation(
    n_files=2,
    n_events=300,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=50.0,
    throughput_mean={"LST": 1.2, "MST": 1.0, "SST": 0.7},
    seed=5,
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("simulated"), OPTIONS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def do(*inputs, job=JOB, overrides=None, **options):
        output = tmp_path_factory.mktemp("run") / "out.h5"
        options = {"cluster": "serial", "report": False} | options
        return calibdask.run(
            job, inputs, output, overrides=OVERRIDES | (overrides or {}), **options
        )

    return do


@pytest.fixture(scope="module")
def network(simulated, run):
    return run(*simulated.paths)


@pytest.fixture(scope="module")
def inter(simulated, run):
    return run(*simulated.paths, job="inter-calibration").paths[0]


def write_muons(path, throughput, *, error=0.005, scale=1.0, chunks=1, start_s=None, seed=1):
    """Muon tables as ctao-calibpipe writes them, of these telescopes, with this relative error."""
    rng = np.random.default_rng(seed)
    with create_hdf5(path) as file:
        for tel_id, true in throughput.items():
            sem = np.full(chunks, scale * true * error * np.sqrt(chunks))
            columns = {
                "mean": scale * true + sem * rng.standard_normal(chunks),
                "sem": sem,
                "n_events": np.full(chunks, 1000),
            }
            times = ()
            if start_s is not None:
                edges = np.linspace(*start_s, chunks + 1)
                times = ("time_start", "time_end")
                for name, edge in zip(times, (edges[:-1], edges[1:]), strict=True):
                    columns[name] = ctao_time(to_time(np.rint(edge * 1e9).astype(np.int64)))
            write_table(file, f"{MUON}/tel_{tel_id:03d}", columns, times=times)
    return path


def test_muons_of_which_none_can_be_used_set_no_scale_and_that_is_told(simulated, run, tmp_path):
    path = write_muons(tmp_path / "muons.h5", {1: 0.2, 5: 0.2}, error=np.nan)
    result = run(*simulated.paths, path)
    assert any("have no absolute scale" in one for one in result.plan.warnings)


def chance(result, truth, reference=None, time_bin=None):
    """Probability of a larger chi2 of all values that have an error against the truth.

    Pulls of single telescopes go together, as all are relative to the reference.
    """
    table, pairs = (result.tables[path] for path in (COEFFICIENTS, f"{COEFFICIENTS}_covariance"))
    if time_bin is not None:
        table, pairs = (one[one["time_bin"] == time_bin] for one in (table, pairs))
    table = table[table["error"] > 0]
    number = {int(tel_id): k for k, tel_id in enumerate(table["tel_id"])}
    expected = np.array(
        [truth[tel_id] / (truth[reference] if reference else 1.0) for tel_id in number]
    )
    covariance = np.diag(np.asarray(table["error"]) ** 2)
    for row in pairs:
        i, j = (number.get(int(row[f"tel_id_{k}"])) for k in (1, 2))
        if i is not None and j is not None:
            covariance[i, j] = row["covariance"]
    deviation = np.asarray(table["value"]) - expected
    return chdtrc(len(number), deviation @ np.linalg.solve(covariance, deviation))


# -- one network --------------------------------------------------------------------------------


def test_all_types_on_one_scale(simulated, network):
    table = network.tables[COEFFICIENTS]
    assert (table["error"] > 0).sum() == len(table) - 1 == 16
    assert 1e-3 < chance(network, simulated.throughput, 5) < 0.999
    assert set(table["flags"].tolist()) <= {"", "S", "R", "RS"}
    # Energies of three types, each with its own median throughput.
    factors = network.tables[f"{CROSS}/scaling_factors"]
    assert factors["tel_type"].tolist() == ["LST", "SST"]
    for row in factors:
        true = simulated.throughput[int(row["tel_id"])] / simulated.throughput[5]
        assert abs(row["scaling_factor"] - true) < 4 * row["scaling_factor_uncertainty"]
    assert network.tables[f"{COEFFICIENTS}_components"]["tel_type"].tolist() == ["LST-MST-SST"]


def test_the_peers_tables_and_columns(network):
    assert next(iter(network.tables)) == COEFFICIENTS
    assert network.tables[COEFFICIENTS].colnames[:4] == ["tel_type", "tel_id", "value", "error"]
    names = ["tel_type", "tel_ref", "scaling_factor", "scaling_factor_uncertainty"]
    assert network.tables[f"{CROSS}/scaling_factors"].colnames[:4] == names
    assert network.tables[COEFFICIENTS].meta["obs_id"].tolist() == [1001, 1002]


def test_events_count_once_however_many_pairs_they_make(network):
    table = network.tables[COEFFICIENTS]
    free = table[table["error"] > 0]
    ratio = free["error"] / free["error_independent"]
    assert np.median(ratio) > 1.3


@pytest.mark.parametrize("reference", [4, 11])
def test_the_reference_is_a_factor_and_no_more(simulated, run, network, reference):
    """calibpipe multiplies by a factor that depends on how often each telescope took part."""
    kind = simulated.tel_type[reference]
    other = run(*simulated.paths, overrides={
        "CalculateCrossCalibration.reference_subsystem": kind,
        "RelativeThroughputFitter.reference_telescopes": REFERENCES | {kind: reference},
    })  # fmt: skip
    ratio = other.tables[COEFFICIENTS]["value"] / network.tables[COEFFICIENTS]["value"]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_filters_of_events_are_honoured(simulated, run, network):
    tight = run(*simulated.paths, overrides={
        "CalculateCrossCalibration.event_filters": {"max_distance_asymmetry": 0.05}
    })  # fmt: skip
    flows = [result.account.total.cut_flow for result in (network, tight)]
    assert flows[0]["pairs"] == flows[1]["pairs"]
    assert flows[1]["equidistant pairs"] < 0.4 * flows[0]["equidistant pairs"]
    errors = [np.nanmedian(result.tables[COEFFICIENTS]["error"]) for result in (network, tight)]
    assert errors[1] > errors[0]


def test_pairs_of_two_types_need_enough_telescopes_of_both(simulated):
    made = [
        plan(JOB, simulated.paths[:1], overrides=OVERRIDES | {
            "CalculateCrossCalibration.min_triggered_telescopes_per_subsystem": least
        })
        for least in (1, 3)
    ]  # fmt: skip
    loose, strict = (one.calibration for one in made)
    shard = made[0].shards[0]
    data = loose.read(shard)
    rows = {one: one.select(data) for one in (loose, strict)}
    kinds = {number: kind[:1] for number, kind in simulated.tel_type.items()}
    selected = rows[loose].selected
    for least, one in ((1, loose), (3, strict)):
        found = set(zip(rows[one].row_1.tolist(), rows[one].row_2.tolist(), strict=True))
        count: dict[tuple[int, str], int] = {}
        for row in selected.tolist():
            key = (int(data.event[row]), kinds[int(data.tel_id[row])])
            count[key] = count.get(key, 0) + 1
        expected = set()
        for pair in zip(rows[loose].row_1.tolist(), rows[loose].row_2.tolist(), strict=True):
            types = [kinds[int(data.tel_id[row])] for row in pair]
            event = int(data.event[pair[0]])
            if len(set(types)) == 1 or min(count[event, kind] for kind in types) >= least:
                expected.add(pair)
        assert found == expected
    assert 0 < len(rows[strict].row_1) < len(rows[loose].row_1)


def test_bad_data_cost_nobody_else_anything(simulated, run, tmp_path):
    """Telescopes in any order, NaN energies said to be valid, telescopes with an event or two."""
    odd = replace(
        OPTIONS, unsorted_layout=True, nan_valid_fraction=0.02, sparse_telescopes={7: 1, 31: 2}
    )
    made = simulate_array(tmp_path / "dl2", odd)
    assert made.throughput == simulated.throughput
    result = run(*made.paths)
    assert chance(result, made.throughput, 5) > 1e-3
    table = result.tables[COEFFICIENTS]
    flags = dict(zip(table["tel_id"].tolist(), table["flags"].tolist(), strict=True))
    assert "N" in flags[7]
    assert "N" in flags[31]
    assert (table["error"] > 0).sum() == 14


@pytest.mark.parametrize("estimator", ["log-median", "log-clipped"])
def test_other_estimators(simulated, run, estimator):
    result = run(*simulated.paths, overrides={"RelativeThroughputFitter.estimator": estimator})
    assert chance(result, simulated.throughput, 5) > 1e-3


def test_one_digest(simulated, inter, run, tmp_path):
    cut = {"Campaign.shard_bytes": "3 MiB"}
    inputs = [*simulated.paths, inter, write_muons(tmp_path / "muons.h5", {1: 0.2, 7: 0.21})]
    results = [
        run(*some, overrides=cut, cluster=cluster, workers=2)
        for some, cluster in ((inputs, "serial"), (inputs[::-1], "threads"))
    ]
    assert len(results[0].plan.shards) > 6
    assert results[0].digest == results[1].digest


# -- given ratios -------------------------------------------------------------------------------


def test_ratios_within_types_are_taken_as_given(simulated, inter, run):
    result = run(*simulated.paths, inter)
    given = {int(row["tel_id"]): row["value"] for row in result.tables[INTER]}
    factors = {
        row["tel_type"]: row["scaling_factor"] for row in result.tables[f"{CROSS}/scaling_factors"]
    }
    for row in result.tables[COEFFICIENTS]:
        factor = factors.get(row["tel_type"], 1.0)
        assert row["value"] == pytest.approx(given[int(row["tel_id"])] * factor, rel=1e-12)
    assert chance(result, simulated.throughput, 5) > 1e-3
    for row in result.tables[f"{CROSS}/scaling_factors"]:
        true = simulated.throughput[REFERENCES[str(row["tel_type"])]] / simulated.throughput[5]
        assert abs(row["scaling_factor"] - true) < 4 * row["scaling_factor_uncertainty"]
    components = result.tables[f"{COEFFICIENTS}_components"]
    free = components["n_pairs"][0] - 2
    assert 0.3 * free < components["ndf"][0] <= free  # pairs share events
    by_chi2 = chdtrc(components["ndf"][0], components["chi2"][0])
    assert components["p_value"][0] == pytest.approx(by_chi2, abs=0.05)
    pairs = result.tables[f"{COEFFICIENTS}_pairs"]
    assert not any("-" not in kind for kind in pairs["tel_type"][pairs["used"]].tolist())


@pytest.mark.parametrize(("lost", "flags"), [(7, "N"), (5, "N"), (3, "D"), (9, "B")])
def test_a_telescope_without_a_given_value_costs_the_others_nothing(
    simulated, inter, run, tmp_path, lost, flags
):
    path = shutil.copy(inter, tmp_path / "inter.h5")
    with tables.open_file(path, "a") as file:
        table = file.get_node(INTER)
        rows = table.read()
        rows["flags"][rows["tel_id"] == lost] = flags.encode()
        if flags == "N":
            rows["value"][rows["tel_id"] == lost] = np.nan
        if flags != "D":
            rows["error"][rows["tel_id"] == lost] = np.nan
        table[:] = rows
    result = run(*simulated.paths, path)
    table, expected = (one.tables[COEFFICIENTS] for one in (result, run(*simulated.paths, inter)))
    mine, others = table["tel_id"] == lost, table["tel_id"] != lost
    assert table["flags"][mine].tolist() == ["N"]
    assert np.isnan(table["value"][mine]).all()
    usable = others & np.isfinite(expected["value"])
    assert np.isfinite(table["error"][usable]).all()
    # One telescope of many moves the scale of the others a little, and their errors, too.
    pull = (table["value"] - expected["value"])[usable] / np.maximum(expected["error"], 0.01)[
        usable
    ]
    assert np.abs(pull).max() < 4
    covariance = result.tables[f"{COEFFICIENTS}_covariance"]["covariance"]
    assert np.isfinite(covariance).all()
    for row in result.tables[f"{CROSS}/scaling_factors"]:
        assert 0 < row["scaling_factor_uncertainty"] < 0.2
    assert any(f"used of telescopes [{lost}]" in text for text in result.plan.warnings)
    copied = result.tables[INTER]
    assert copied["flags"][copied["tel_id"] == lost].tolist() == [flags]


def test_the_reports_say_what_is_true(simulated, inter, run):
    """A network of several types is one of each of them; what is held fixed needs no error."""
    for inputs in (simulated.paths, (*simulated.paths, inter)):
        page = run(*inputs, report=True).paths[0].with_suffix(".html").read_text()
        assert "Scale of the types" in page
        assert "no network could be fitted" not in page
        assert "a value without an error" not in page
        assert "weighted mean" not in page


def test_the_peers_inter_calibration_is_read(shared_array, run):
    """Its cross-calibration is off by the participation-weighted mean of its coefficients."""
    peer = shared_array / "peer_dl2_small"
    result = run(
        shared_array / "dl2_small",
        peer / "inter_e.h5",
        config=shared_array / "peer_config/cross.yaml",
    )
    import json

    truth = json.loads((shared_array / "dl2_small" / "truth.json").read_text())["throughput"]
    assert any("can be used of telescopes [31, 32, 33, 34, 35," in w for w in result.plan.warnings)
    for row in result.tables[f"{CROSS}/scaling_factors"]:
        kind = str(row["tel_type"])
        true = truth[str(REFERENCES[kind])] / truth["5"]
        assert abs(row["scaling_factor"] - true) < 3 * row["scaling_factor_uncertainty"]
    table = result.tables[COEFFICIENTS]
    without = np.isin(table["tel_id"], [34, 35, 36, 37])
    assert np.isnan(table["value"][without]).all()
    assert all("N" in flags for flags in table["flags"][without].tolist())


def test_an_inter_calibration_of_other_observations_is_refused(simulated, inter, run, tmp_path):
    with pytest.raises(ConfigError, match=r"is also from observations 1002, of which there is no"):
        run(simulated.paths[0], inter)
    more = simulate_array(tmp_path, replace(OPTIONS, n_files=3, n_events=20))
    with pytest.raises(ConfigError, match=r"other observations .*dl2_obs1003.h5 has \[1003\]"):
        run(*simulated.paths, more.paths[2], inter)


def test_inputs_that_do_not_belong_together(simulated, inter, run, tmp_path):
    with pytest.raises(MissingInput, match="no DL2 files among the inputs"):
        run(inter)
    copy = tmp_path / "copy.h5"
    shutil.copy(inter, copy)
    with copy.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match="two inter-calibrations"):
        run(*simulated.paths, inter, copy)
    with pytest.raises(ConfigError, match="has no place in time bins"):
        run(*simulated.paths, inter, overrides={"Campaign.time_bin": "20 min"})
    strange = write_muons(tmp_path / "strange.h5", {99: 0.2})
    with pytest.raises(ConfigError, match=r"muon throughputs of telescopes \[99\]"):
        run(*simulated.paths, strange)
    timeless = write_muons(tmp_path / "timeless.h5", {1: 0.2})
    with pytest.raises(ConfigError, match="do not tell from when they are"):
        run(*simulated.paths, timeless, overrides={"Campaign.time_bin": "20 min"})
    other = write_inter(tmp_path / "other.h5", {1: "MST", 5: "MST"})
    with pytest.raises(
        ConfigError, match="has telescope 1 as MST, but the DL2 files have it as LST"
    ):
        run(*simulated.paths, other)


def write_inter(path, tel_type, value=1.0, obs_id=(1001, 1002), **columns):
    with create_hdf5(path) as file:
        n = len(tel_type)
        rows = {
            "tel_type": np.array(list(tel_type.values())),
            "tel_id": np.array(list(tel_type)),
            "value": np.full(n, value),
            "error": np.full(n, 0.01),
        }
        write_table(file, INTER, rows | columns, attributes={"obs_id": np.array(obs_id)})
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": np.array([1.0, -2.0])}, "has value -2.0"),
        ({"tel_id": np.array([1, 1])}, "telescope 1 twice"),
        ({"time_bin": np.array([0, 1])}, "binned in time"),
    ],
)
def test_inter_calibrations_that_make_no_sense(simulated, run, tmp_path, change, says):
    path = write_inter(tmp_path / "inter.h5", {1: "LST", 5: "MST"}, **change)
    with pytest.raises(CorruptedInput, match=says):
        run(*simulated.paths, path)


# -- muons --------------------------------------------------------------------------------------


def test_muons_set_the_absolute_scale(simulated, run, network, tmp_path):
    truth = simulated.throughput
    path = write_muons(
        tmp_path / "muons.h5", {t: c for t, c in truth.items() if t < 30}, scale=0.2, chunks=3
    )
    nominal = {"CalculateCrossCalibration.nominal_throughput": dict.fromkeys(REFERENCES, 0.2)}
    result = run(*simulated.paths, path, overrides=nominal)
    table = result.tables[COEFFICIENTS]
    assert (table["error"] > 0).all()
    assert 1e-3 < chance(result, truth) < 0.999
    np.testing.assert_array_equal(
        np.asarray(table["value_of_pairs"]), np.asarray(network.tables[COEFFICIENTS]["value"])
    )
    assert table["absolute"].all()
    assert table["n_rings"][0] == 3000
    (row,) = result.tables[f"{CROSS}/consistency"]
    assert row["n_muons"] == row["ndf"] + 1 == 11
    assert 1e-3 < row["p_value"] < 1 - 1e-3
    covariance = result.tables[f"{COEFFICIENTS}_covariance"]
    diagonal = covariance["tel_id_1"] == covariance["tel_id_2"]
    np.testing.assert_allclose(covariance["covariance"][diagonal], table["error"] ** 2, rtol=1e-12)


def test_muons_that_disagree_are_told(simulated, run, tmp_path):
    truth = dict(simulated.throughput)
    truth[7] *= 1.1
    result = run(*simulated.paths, write_muons(tmp_path / "muons.h5", truth), report=True)
    muons = result.tables[f"{CROSS}/muons"]
    assert result.tables[f"{CROSS}/consistency"]["p_value"][0] < 1e-6
    assert muons["tel_id"][np.argmax(np.abs(muons["pull"]))] == 7
    page = result.paths[0].with_suffix(".html").read_text()
    assert "muon throughputs and the ratios from showers disagree" in page


def test_a_type_that_disagrees_with_its_muons_is_told(simulated, run, tmp_path):
    truth = {t: c * (1.1 if t >= 30 else 1.0) for t, c in simulated.throughput.items()}
    result = run(*simulated.paths, write_muons(tmp_path / "muons.h5", truth), report=True)
    kinds = result.tables[f"{CROSS}/consistency_types"]
    assert kinds["tel_type"].tolist() == ["LST", "MST", "SST"]
    assert kinds["flags"].tolist() == ["", "", "M"]
    assert kinds["contrast"][2] == pytest.approx(0.095, abs=4 * kinds["error"][2])
    table = result.tables[COEFFICIENTS]
    assert set(table["flags"][table["tel_type"] == "SST"]) == {"M"}
    assert set(table["flags"][table["tel_type"] != "SST"]) == {""}
    page = result.paths[0].with_suffix(".html").read_text()
    assert "SST: the energies of its telescopes disagree with its muons by +" in page
    with tables.open_file(result.paths[0]) as file:
        stored = file.get_node(f"{CROSS}/consistency_types").read()
    assert stored["flags"].tolist() == [b"", b"", b"M"]
    np.testing.assert_array_equal(stored["contrast"], kinds["contrast"])


def test_muons_from_too_few_rings_do_not_set_the_scale(simulated, run, tmp_path):
    truth = {t: simulated.throughput[t] for t in (1, 5, 6, 7)}
    path = write_muons(tmp_path / "good.h5", truth)
    wrong = write_muons(tmp_path / "wrong.h5", truth | {6: 3 * truth[6]})
    with tables.open_file(wrong, "a") as file:
        table = file.get_node(f"{MUON}/tel_006")
        rows = table.read()
        file.remove_node(table)
        columns = {name: rows[name] for name in rows.dtype.names} | {"flags": np.array(["Q"])}
        write_table(file, f"{MUON}/tel_006", columns)
    result, expected = (run(*simulated.paths, one) for one in (wrong, path))
    assert 6 not in result.tables[f"{CROSS}/muons"]["tel_id"]
    assert any("of telescopes [6], are flagged" in text for text in result.plan.warnings)
    value, error = (np.asarray(expected.tables[COEFFICIENTS][n]) for n in ("value", "error"))
    pull = (np.asarray(result.tables[COEFFICIENTS]["value"]) - value) / error
    assert np.abs(pull[np.isfinite(pull)]).max() < 2


def test_muons_with_given_ratios(simulated, inter, run, tmp_path):
    truth = simulated.throughput
    path = write_muons(tmp_path / "muons.h5", {t: truth[t] for t in (1, 2, 6, 31)})
    result = run(*simulated.paths, inter, path)
    assert chance(result, truth) > 1e-3
    assert result.tables[f"{CROSS}/consistency"]["ndf"][0] == 3


def test_muons_reach_what_no_pair_reaches(tmp_path, run):
    """A type without pairs with another, and a telescope without any, get their muons' scale."""
    groups = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (30, 31, 32, 33, 34, 35))
    options = replace(OPTIONS, disconnected_groups=groups, silent_telescopes=(9,), n_events=400)
    made = simulate_array(tmp_path / "dl2", options)
    truth = made.throughput
    path = write_muons(tmp_path / "muons.h5", {t: truth[t] for t in (1, 5, 6, 30, 31, 9)})
    result = run(*made.paths, path)
    table = result.tables[COEFFICIENTS]
    assert chance(result, truth) > 1e-3
    assert np.isfinite(table["value"]).all()
    assert table["absolute"].all()
    flags = dict(zip(table["tel_id"].tolist(), table["flags"].tolist(), strict=True))
    assert "N" in flags[9]
    assert all(set("FD") <= set(flags[number]) for number in range(30, 36))
    assert len(result.tables[f"{CROSS}/consistency"]) == 2
    factors = result.tables[f"{CROSS}/scaling_factors"]
    assert factors["flags"].tolist() == ["", "N"]
    assert np.isnan(factors["scaling_factor"][1])


def test_muons_of_each_time_bin(simulated, run, tmp_path):
    start = OPTIONS.start_tai_s(0)
    truth = {t: c for t, c in simulated.throughput.items() if t < 12}
    path = write_muons(tmp_path / "muons.h5", truth, start_s=(start + 1, start + 1199))
    overrides = {
        "Campaign.time_bin": "20 min",
        "Campaign.epoch": to_time(int(start * 1e9)).utc.isot,
    }
    result = run(*simulated.paths, path, overrides=overrides, report=True)
    page = result.paths[0].with_suffix(".html").read_text()
    assert "No telescope has a muon throughput here" in page  # in the last bin
    table = result.tables[COEFFICIENTS]
    first = np.asarray(table["time_bin"]) == 0
    assert table["absolute"][first].all()
    assert not table["absolute"][~first].any()
    assert result.tables[f"{CROSS}/consistency"]["time_bin"].tolist() == [0]
    assert chance(result, simulated.throughput, time_bin=0) > 1e-3
    assert f"{COEFFICIENTS}_drift" in result.tables


def test_muons_of_the_same_time_in_two_files_are_told(simulated, tmp_path):
    start = OPTIONS.start_tai_s(0)
    one, two = (
        write_muons(tmp_path / f"{name}.h5", {1: value, 5: 0.2}, start_s=(start, start + 60))
        for name, value in (("one", 0.2), ("two", 0.25))
    )
    later = write_muons(tmp_path / "later.h5", {1: 0.2}, start_s=(start + 60, start + 120))
    made = plan(JOB, [*simulated.paths, one, two, later])
    (told,) = [text for text in made.warnings if "same time" in text]
    assert all(str(part) in told for part in (one, two, "telescopes 1, 5"))


def test_muon_tables_in_a_file_of_dl1_events(simulated, run, tmp_path):
    """Where ctao-calibpipe puts them."""
    path = write_muons(tmp_path / "dl1.h5", {1: 0.2})
    import tables

    with tables.open_file(path, "a") as file:
        file.create_group("/dl1/event", "telescope", createparents=True)
    assert run(*simulated.paths, path).tables[f"{CROSS}/muons"]["tel_id"].tolist() == [1]


def test_muon_tables_that_make_no_sense(simulated, run, tmp_path):
    path = write_muons(tmp_path / "muons.h5", {1: -0.2})
    with pytest.raises(CorruptedInput, match=r"tel_001 has a throughput of -0.2"):
        run(*simulated.paths, path)


# -- what is missing ----------------------------------------------------------------------------


def test_types_that_are_missing(tmp_path, run):
    made = simulate_array(tmp_path / "dl2", replace(OPTIONS, dead_types=("MST",), n_events=200))
    result = run(*made.paths)
    table = result.tables[COEFFICIENTS]
    for row in table:
        wanted = {"N"} if row["tel_type"] == "MST" else {"F"}
        assert wanted <= set(row["flags"])
    factors = result.tables[f"{CROSS}/scaling_factors"]
    assert factors["flags"].tolist() == ["N", "N"]
    both = run(*made.paths, overrides={"CalculateCrossCalibration.reference_subsystem": "SST"})
    assert both.tables[f"{CROSS}/scaling_factors"]["flags"].tolist() == ["", "N"]
    assert chance(both, made.throughput, 30) > 1e-3


def test_one_type_only(tmp_path, run):
    removed = tuple(t for t in simulate_types() if t < 5 or t >= 30)
    made = simulate_array(
        tmp_path / "dl2", replace(OPTIONS, removed_telescopes=removed, n_events=150)
    )
    result = run(*made.paths, report=True)
    assert len(result.tables[f"{CROSS}/scaling_factors"]) == 0
    assert any("there is no other type" in warning for warning in result.plan.warnings)
    path = write_inter(tmp_path / "inter.h5", {5: "MST", 6: "MST"})
    with pytest.raises(ConfigError, match="cross-calibration needs two types"):
        run(*made.paths, path)


def simulate_types():
    from calibdask.array.simulate import true_array

    return true_array(OPTIONS).tel_type


def test_the_reference_type_is_not_there(tmp_path, run):
    removed = tuple(t for t in simulate_types() if 5 <= t < 30)
    made = simulate_array(
        tmp_path / "dl2", replace(OPTIONS, removed_telescopes=removed, n_events=150)
    )
    result = run(*made.paths)
    assert any("reference type MST is not among" in warning for warning in result.plan.warnings)
    assert all("F" in flags for flags in result.tables[COEFFICIENTS]["flags"].tolist())
    assert np.isnan(result.tables[f"{CROSS}/scaling_factors"]["scaling_factor"]).all()


def test_nothing_is_selected(simulated, run):
    nothing = {"QualityQuery.quality_criteria": [["no", "RandomForestRegressor_tel_energy < 0"]]}
    with pytest.raises(NotEnoughData, match="nothing to calibrate"):
        run(*simulated.paths, overrides=nothing)


def test_the_peers_configuration(shared_array):
    prepared = load_config(JOB, shared_array / "peer_config" / "cross.yaml")
    options = prepared.calibration.options
    assert options.min_triggered_telescopes_per_subsystem == 2
    assert options.reference_subsystem == "MST"
    assert options.event_filters.max_distance_asymmetry.to_plain() == [["type", "*", 0.05]]
    named = {
        f"CalculateCrossCalibration.{name}": f"{name}.h5"
        for name in ("input_url", "input_data_url")
    }
    prepared = load_config(JOB, shared_array / "peer_config" / "cross.yaml", named)
    assert prepared.inputs == ("input_data_url.h5", "input_url.h5")
