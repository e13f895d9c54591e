"""What made ctao-calibpipe 0.8.0 give wrong numbers, none or a traceback, through files.

Each test has the fault in its data and checks our numbers against the truth of the simulation.
The faults of its cross-calibration (6 and 7) are in tests/array/test_cross.py.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import chdtrc

import calibdask
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.errors import ConfigError, MissingInput
from calibdask.io.asymmetry import Asymmetries, create_asymmetries, read_asymmetries
from tests.e2e.tables import COEFFICIENTS, by_telescope, normalised_chi2, pulls, true_ratios

# High energies on the array itself: every type sees many of few events.
BASE = ArraySimulation(
    n_files=1,
    n_events=1000,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    seed=7,
)
FITTER = "CalculateInterCalibration.RelativeThroughputFitter"
NO_CUTS = {"CalculateEnergyAsymmetry.QualityQuery.quality_criteria": []}


@pytest.fixture(scope="module")
def simulate(tmp_path_factory):
    """Simulate with some fault, each only once."""
    made = {}

    def run(**fault):
        options = replace(BASE, **fault)
        if repr(options) not in made:
            made[repr(options)] = simulate_array(tmp_path_factory.mktemp("dl2"), options)
        return made[repr(options)]

    return run


@pytest.fixture
def calibrate(tmp_path, config, simulate):
    """Calibrate data with some fault, and give result and truth."""

    def run(overrides=None, **fault):
        truth = simulate(**fault)
        result = calibdask.run(
            "inter-calibration",
            truth.paths,
            tmp_path / "inter.h5",
            config=config,
            overrides=overrides,
            cluster="serial",
            overwrite=True,
            report=False,
        )
        return result, truth

    return run


def _check_truth(result, truth, tel_types=("LST", "MST", "SST")):
    """Coefficients of these types agree with the truth within their errors."""
    table = result.tables[COEFFICIENTS]
    chosen = table[np.isin(table["tel_type"], tel_types)]
    found = pulls(chosen, truth)
    assert len(found) >= 3 * len(tel_types)
    # 14 pulls at most: one above 4.5 has a chance of 1e-4.
    assert np.abs(found).max() < 4.5
    seen = chosen[chosen["component"] >= 0]
    assert np.abs(seen["value"] / true_ratios(seen, truth) - 1).max() < 0.2
    chi2, freedom = normalised_chi2(result.tables, truth)
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_1_telescopes_in_any_order(calibrate):
    # It sorts the two numbers of a pair, but not their values: signs flip, and with throughputs
    # 10 % apart the coefficients are wrong by that much.
    result, truth = calibrate(unsorted_layout=True)
    assert [*truth.tel_type] != sorted(truth.tel_type)
    _check_truth(result, truth)


def test_1_the_order_of_the_layout_moves_no_number(calibrate):
    tables = []
    for unsorted_layout in (False, True):
        result, _ = calibrate(unsorted_layout=unsorted_layout)
        tables.append(result.tables[COEFFICIENTS])
    for column in ("tel_id", "n_events", "flags"):
        np.testing.assert_array_equal(tables[0][column], tables[1][column])
    for column in ("value", "error"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-12)


def test_2_pairs_of_one_event(calibrate):
    # Its chi2 is NaN: the whole type stays at the start value, with NaN errors and exit code 0.
    result, truth = calibrate(sparse_telescopes={7: 1})
    table = result.tables[COEFFICIENTS]
    flags, value = by_telescope(table, "flags"), by_telescope(table, "value")
    assert "N" in flags[7]
    assert "S" in flags[7]
    assert np.isnan(value[7])
    pairs = result.tables[f"{COEFFICIENTS}_pairs"]
    sparse = (pairs["tel_id_1"] == 7) | (pairs["tel_id_2"] == 7)
    assert (pairs["n_events"][sparse] == 1).all()
    assert not pairs["used"][sparse].any()
    _check_truth(result, truth, ("LST", "SST"))
    others = table[(table["tel_type"] == "MST") & (table["tel_id"] != 7)]
    assert np.abs(pulls(others, truth)).max() < 4.5
    assert len(pulls(others, truth)) == 5


def test_2_pairs_without_scatter(simulate, tmp_path, config):
    # Energies that agree to the last bit, as of a regressor that sees the event and not the image.
    truth = simulate()
    rows = _all_asymmetries(truth, tmp_path, config)
    pair = (rows.tel_id_1 == 2) & (rows.tel_id_2 == 3)
    assert pair.sum() > 20
    value_2 = np.where(pair, rows.value_1, rows.value_2)
    asymmetries = _write(tmp_path / "no_scatter.h5", _with(rows, value_2=value_2))
    result = _from_asymmetries(asymmetries, tmp_path, config)
    pairs = result.tables[f"{COEFFICIENTS}_pairs"]
    one = pairs[(pairs["tel_id_1"] == 2) & (pairs["tel_id_2"] == 3)]
    assert one["flags"].tolist() == ["U"]
    assert not one["used"].any()
    flags = by_telescope(result.tables[COEFFICIENTS], "flags")
    assert "U" in flags[2]
    assert "U" in flags[3]
    assert "U" not in flags[4]
    _check_truth(result, truth)


def test_3_energies_without_a_value(calibrate):
    # NaN in a mean is NaN in all of chi2. No validity cut here: a job must not need one.
    result, truth = calibrate(
        NO_CUTS, invalid_fraction=0.1, nan_valid_fraction=0.05, unsorted_layout=True
    )
    flow = result.account.total.cut_flow
    assert flow["energy finite and positive"] < 0.9 * flow["telescope events"]
    _check_truth(result, truth)


def test_3_energies_without_a_value_that_passed_the_cuts_are_told(calibrate):
    result, truth = calibrate(nan_valid_fraction=0.05)
    assert any("although their energy is NaN" in text for text in result.account.total.warnings)
    _check_truth(result, truth)


def test_3_asymmetries_without_a_value(simulate, tmp_path, config):
    truth = simulate()
    rows = _all_asymmetries(truth, tmp_path, config)
    lost = (rows.tel_id_1 == 5) & (np.arange(len(rows)) % 3 == 0)
    assert lost.sum() > 20
    bad = _with(rows, value_2=np.where(lost, np.nan, rows.value_2))
    result = _from_asymmetries(_write(tmp_path / "nan.h5", bad), tmp_path, config)
    flags = by_telescope(result.tables[COEFFICIENTS], "flags")
    assert "I" in flags[5]
    assert "I" not in flags[1]
    pairs = result.tables[f"{COEFFICIENTS}_pairs"]
    assert pairs["n_invalid"].sum() == lost.sum()
    _check_truth(result, truth)


@pytest.mark.parametrize("cause", ["absent", "silent", "unknown"])
def test_4_reference_without_data(calibrate, cause):
    # KeyError, and no output for any type.
    fault = {
        "absent": {"removed_telescopes": (5,)},
        "silent": {"silent_telescopes": (5,)},
        "unknown": {
            "overrides": {f"{FITTER}.reference_telescopes": {"LST": 1, "MST": 77, "SST": 30}}
        },
    }[cause]
    result, truth = calibrate(**fault)
    table = result.tables[COEFFICIENTS]
    mst = table[(table["tel_type"] == "MST") & (table["component"] >= 0)]
    assert all("F" in flags for flags in mst["flags"])
    assert sum("R" in flags for flags in mst["flags"]) == 1
    others = table[table["tel_type"] != "MST"]
    assert not any("F" in flags for flags in others["flags"])
    assert by_telescope(others, "value")[1] == by_telescope(others, "value")[30] == 1
    told = any("is not among the MST" in text for text in result.plan.warnings)
    assert told == (cause != "silent")  # a silent telescope is there: only its flag tells
    _check_truth(result, truth)


def test_4_type_without_reference_in_the_configuration(simulate, tmp_path):
    truth = simulate()
    config = tmp_path / "config.yaml"
    config.write_text("RelativeThroughputFitter:\n  reference_telescopes: {LST: 1, MST: 5}\n")
    result = calibdask.run(
        "inter-calibration", truth.paths, tmp_path / "o.h5", config=config, report=False
    )
    table = result.tables[COEFFICIENTS]
    # No reference was asked for among the SSTs, so none is missing.
    assert not any("F" in flags for flags in table["flags"])
    assert sum("R" in flags for flags in table["flags"]) == 3
    _check_truth(result, truth)


def test_4_type_without_any_data(calibrate):
    result, truth = calibrate(dead_types=("SST",))
    table = result.tables[COEFFICIENTS]
    assert set(table["flags"][table["tel_type"] == "SST"].tolist()) == {"N"}
    _check_truth(result, truth, ("LST", "MST"))


def test_5_network_in_two_parts(calibrate):
    # 1.05 +- 4.7 for what nothing ties to the reference, and no flag.
    result, truth = calibrate(disconnected_groups=((5, 6, 7), (8, 9, 10, 11)))
    table = result.tables[COEFFICIENTS]
    flags, component = by_telescope(table, "flags"), by_telescope(table, "component")
    assert component[5] == component[6] == component[7] != component[8]
    assert component[8] == component[9] == component[10] == component[11]
    for number in (5, 6, 7):
        assert "D" not in flags[number]
        assert "F" not in flags[number]
    for number in (8, 9, 10, 11):
        assert "D" in flags[number]
        assert "F" in flags[number]
    parts = result.tables[f"{COEFFICIENTS}_components"]
    assert len(parts) == 4
    # Within each part, values compare: the truth is relative to its own reference.
    _check_truth(result, truth)


def test_8_the_same_file_twice(simulate, tmp_path, config):
    # It divides its errors by sqrt 2, silently.
    path = simulate().paths[0]
    copy = tmp_path / "another_name.h5"
    shutil.copy(path, copy)
    with pytest.raises(ConfigError, match="the same data twice") as error:
        calibdask.plan("inter-calibration", [path, copy], config=config)
    assert str(path) in str(error.value)
    assert str(copy) in str(error.value)


def test_8_foreign_file_in_the_directory(calibrate, tmp_path, config):
    # OSError.
    result, truth = calibrate()
    dl2 = tmp_path / "dl2"
    dl2.mkdir()
    good, other = dl2 / "good.h5", dl2 / "weather.h5"
    shutil.copy(truth.paths[0], good)
    _write_other(other)
    again = calibdask.run("inter-calibration", dl2, tmp_path / "b.h5", config=config, report=False)
    assert again.digest == result.digest
    assert [path for path, _ in again.plan.skipped] == [str(other)]
    with pytest.raises(MissingInput, match=r"weather\.h5"):
        calibdask.run("inter-calibration", [good, other], tmp_path / "c.h5", config=config)


@pytest.mark.parametrize("job", ["inter-calibration", "energy-asymmetry-estimation"])
def test_8_nothing_selected(tmp_path, campaign, config, calibdask, job):
    # KeyError 'obs_id'; or, where events pass and no pair does, an empty file and exit code 0.
    for option, text in (
        ("min_energy=1 PeV", "min_energy 0"),
        ("max_distance_asymmetry=1.e-9", "equidistant pairs 0"),
    ):
        said = calibdask(
            job, "-c", config, "-i", campaign.paths[0], "-o", tmp_path / "out",
            "--set", f"CalculateEnergyAsymmetry.event_filters.{option}",
        )  # fmt: skip
        assert said.code == 106
        assert "no pair of telescopes has a selected event in common" in said.err
        assert text in said.err
        assert not (tmp_path / "out").exists()


def test_9_no_attenuation(tmp_path, config):
    # E[tanh(d/2)] is not tanh(E[d]/2): a fit of mean asymmetries shrinks ln ratios by 1.8 % at a
    # scatter of 0.3. So large throughput differences, and that scatter of pairs.
    options = replace(
        BASE,
        n_events=6000,
        energy_resolution=0.3 / np.sqrt(2),
        throughput_spread={"LST": 0.6, "MST": 0.6, "SST": 0.6},
        throughput_mean={"LST": 2.0, "MST": 2.0, "SST": 2.0},
        seed=11,
    )
    truth = simulate_array(tmp_path / "dl2", options)
    slope, error = {}, {}
    for estimator in ("log-mean", "asymmetry"):
        result = calibdask.run(
            "inter-calibration",
            tmp_path / "dl2",
            tmp_path / f"{estimator}.h5",
            config=config,
            overrides={f"{FITTER}.estimator": estimator},
            report=False,
        )
        table = result.tables[COEFFICIENTS]
        good = (table["error"] > 0) & (table["tel_type"] != "SST")
        true = np.log(true_ratios(table, truth))[good]
        table = table[good]
        fitted = np.log(np.asarray(table["value"]))
        weight = (np.asarray(table["value"]) / np.asarray(table["error"])) ** 2
        slope[estimator] = np.sum(weight * true * fitted) / np.sum(weight * true**2)
        error[estimator] = 1 / np.sqrt(np.sum(weight * true**2))
    assert error["log-mean"] < 0.005
    assert abs(slope["log-mean"] - 1) < 4 * error["log-mean"]
    assert 0.96 < slope["asymmetry"] < 0.99


def test_10_errors_covariance_and_quality_are_stored(calibrate):
    # Its fixed telescope has error 0.01, a step of its minimiser; nothing else is stored.
    result, truth = calibrate()
    table = result.tables[COEFFICIENTS]
    fixed = table[[("R" in flags) for flags in table["flags"]]]
    assert sorted(fixed["tel_id"].tolist()) == [1, 5, 30]
    assert (fixed["error"] == 0).all()
    assert (fixed["value"] == 1).all()
    parts = result.tables[f"{COEFFICIENTS}_components"]
    assert sorted(parts["reference_tel_id"].tolist()) == [1, 5, 30]
    # Pairs share events: fewer degrees of freedom than pairs beyond those that tie a network.
    free = parts["n_pairs"] - parts["n_telescopes"] + 1
    assert ((parts["ndf"] > 0.4 * free) & (parts["ndf"] <= free)).all()
    np.testing.assert_allclose(parts["p_value"], chdtrc(parts["ndf"], parts["chi2"]), atol=0.05)
    assert ((parts["p_value"] > 1e-4) & (parts["p_value"] <= 1)).all()
    covariance = result.tables[f"{COEFFICIENTS}_covariance"]
    diagonal = covariance[covariance["tel_id_1"] == covariance["tel_id_2"]]
    error = by_telescope(table, "error")
    assert len(diagonal) == len(table)
    for row in diagonal:
        assert np.sqrt(row["covariance"]) == pytest.approx(error[row["tel_id_1"]], rel=1e-12)
    _check_truth(result, truth)


# -- asymmetry files with something wrong in them ------------------------------------------------


def _all_asymmetries(truth, tmp_path, config):
    output = tmp_path / "asymmetries"
    calibdask.run("energy-asymmetry-estimation", truth.paths, output, config=config, report=False)
    return read_asymmetries(next(output.glob("dl2*.h5")))


def _with(rows, **changes):
    names = Asymmetries.__dataclass_fields__
    return Asymmetries(**({name: getattr(rows, name) for name in names} | changes))


def _write(path, rows):
    value = "RandomForestRegressor_tel_energy"
    with create_asymmetries(path, "energy_asymmetry", value) as writer:
        writer.append(rows)
    return path


def _from_asymmetries(path, tmp_path, config):
    return calibdask.run(
        "inter-calibration", path, tmp_path / "from.h5", config=config, report=False
    )


def _write_other(path):
    from calibdask.io.pytables import create_hdf5, write_table

    with create_hdf5(path) as file:
        write_table(file, "/weather", {"temperature": np.arange(3.0)}, units={"temperature": "K"})
