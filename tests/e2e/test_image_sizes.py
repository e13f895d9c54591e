"""Inter-calibration by image sizes: files and DL2 alike, pointing, cuts, bad input, one digest."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tables

import calibdask
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine.protocol import ALL
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, MissingInput
from calibdask.io.asymmetry import create_asymmetries, inspect_asymmetries, read_asymmetries
from tests.e2e.tables import COEFFICIENTS, by_telescope, pulls

JOB = "inter-calibration"
STEP_1 = "image-asymmetry-estimation"
CONFIG = """\
CalculateImageAsymmetry:
  event_filters:
    minimum_individual_intensity: 80
    equidistant_event_selection: [0.05, 0.1]
  QualityQuery:
    quality_criteria:
      - ["gammaness", "RandomForestClassifier_tel_prediction > 0.3"]
CalculateInterCalibration:
  asymmetry_label: image_asymmetry
  RelativeThroughputFitter:
    reference_telescopes: {LST: 1, MST: 5, SST: 30}
"""
CUT = {"Campaign.shard_bytes": "8 MiB"}
# The telescopes rise by 8 degrees during each file, so that the limit changes with time.
SIMULATION = ArraySimulation(
    n_files=2,
    n_events=400,
    array="reduced",
    energy_range_tev=(1.0, 100.0),
    core_margin_m=50.0,
    pointing_drift_deg=8.0,
    seed=11,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two DL2 files: read only."""
    return simulate_array(tmp_path_factory.mktemp("images"), SIMULATION)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "images.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Run a job somewhere new."""

    def do(inputs, *, job=JOB, **options):
        output = tmp_path_factory.mktemp("run") / "out"
        options = {"cluster": "serial", "report": False, "config": config} | options
        return calibdask.run(job, inputs, output, **options)

    return do


@pytest.fixture(scope="module")
def asymmetries(images, run):
    return run(images.paths, job=STEP_1)


@pytest.fixture(scope="module")
def from_dl2(images, run):
    return run(images.paths)


@pytest.fixture
def spoilt(images, tmp_path):
    """A copy of the first file, to be changed."""
    return shutil.copy(images.paths[0], tmp_path / "spoilt.h5")


# -- two ways, one result -----------------------------------------------------------------------


def test_files_of_asymmetries_and_dl2_give_the_same(asymmetries, from_dl2, run):
    from_files = run(asymmetries.paths[:2])
    flow = from_dl2.account.total.cut_flow
    of_files = from_files.account.total.cut_flow
    assert flow["equidistant pairs"] == of_files["pairs"] > 1000
    for name in ("minimum_pair_intensity", "events with a pair"):
        assert flow[name] == of_files[name]
    table, other = from_dl2.tables[COEFFICIENTS], from_files.tables[COEFFICIENTS]
    seen = np.isin(table["tel_id"], other["tel_id"])
    assert set(table["flags"][~seen]) <= {"N"}
    for column in ("value", "error", "systematic", "error_independent"):
        np.testing.assert_allclose(other[column], table[column][seen], rtol=1e-9, err_msg=column)
    components = [one.tables[f"{COEFFICIENTS}_components"] for one in (from_dl2, from_files)]
    np.testing.assert_allclose(components[0]["chi2"], components[1]["chi2"], rtol=1e-9)
    slopes = [one.tables[f"{COEFFICIENTS}_slopes"] for one in (from_dl2, from_files)]
    for column in ("distance_from", "kappa", "kappa_error"):
        np.testing.assert_allclose(slopes[0][column], slopes[1][column], rtol=1e-9)
    far = slopes[0]["distance_from"].to_value("m") >= 150
    # Light falls by 1/e in 60 m, so d ln x / d ln d is -d/60 m.
    lowest = slopes[0]["distance_from"].to_value("m")[far] / 60
    sure = slopes[0]["kappa_error"][far] < 0.2
    assert sure.any()
    assert np.all(slopes[0]["kappa"][far][sure] < -lowest[sure] + 1)


def test_what_the_asymmetries_hold(asymmetries, images):
    path = asymmetries.paths[0]
    info = inspect_asymmetries(path)
    assert (info.label, info.value, info.unit) == ("image_asymmetry", "hillas_intensity", "")
    assert info.geometry == "HillasReconstructor"
    rows = read_asymmetries(path)
    assert (rows.value_1 >= 80).all()
    assert (rows.value_2 >= 80).all()
    np.testing.assert_array_equal(
        rows.asymmetry, (rows.value_1 - rows.value_2) / (rows.value_1 + rows.value_2)
    )
    apart = np.abs(rows.impact_1_m - rows.impact_2_m) / (rows.impact_1_m + rows.impact_2_m)
    assert (apart < rows.limit).all()
    # The telescopes rise, so the limit falls: p0 + p1 cos(altitude).
    with tables.open_file(images.paths[0]) as file:
        trigger = file.root.dl1.event.subarray.trigger
        event_id, time = trigger.col("event_id"), trigger.col("time")
    row_of = {int(number): i for i, number in enumerate(event_id)}
    index = [row_of[int(number)] for number in rows.event_id]
    elapsed_s = (time[index, 0] - time[:, 0].min()).astype(float)
    altitude = np.radians(70 + 8 * elapsed_s / 1200)
    np.testing.assert_allclose(rows.limit, 0.05 + 0.1 * np.cos(altitude), atol=2e-5)
    assert np.ptp(rows.limit) > 0.008


@pytest.mark.parametrize("level", ["dl0", "dl1"])
def test_pointing_is_read_from_either_place(images, asymmetries, run, tmp_path, level):
    made = simulate_array(
        tmp_path / "dl2", replace(SIMULATION, n_files=1, pointing_levels=(level,))
    )
    result = run(made.paths, job=STEP_1)
    mine, both = (read_asymmetries(one.paths[0]) for one in (result, asymmetries))
    np.testing.assert_array_equal(mine.value_1, both.value_1)
    np.testing.assert_array_equal(mine.limit, both.limit)


# -- bits ---------------------------------------------------------------------------------------


def test_one_digest_however_it_is_run(images, from_dl2, run):
    serial = run(images.paths, overrides=CUT)
    threads = run(images.paths[::-1], overrides=CUT, cluster="threads", workers=3)
    assert len(serial.plan.shards) > 2
    assert serial.digest == threads.digest
    assert from_dl2.account.total.cut_flow == serial.account.total.cut_flow
    for column in ("value", "error", "systematic"):
        np.testing.assert_allclose(
            from_dl2.tables[COEFFICIENTS][column], serial.tables[COEFFICIENTS][column], rtol=1e-9
        )


def test_asymmetries_are_the_same_bits_however_files_are_cut(images, asymmetries, run):
    cut = run(images.paths[::-1], job=STEP_1, overrides=CUT, cluster="threads")
    assert len(cut.plan.shards) > len(asymmetries.plan.shards) == 2
    assert cut.digest == asymmetries.digest


@pytest.mark.cluster
@pytest.mark.slow
def test_dask_workers_give_the_digest_too(images, run):
    serial = run(images.paths, overrides=CUT)
    assert run(images.paths, overrides=CUT, cluster="local", workers=2).digest == serial.digest


def test_time_bins(images, from_dl2, run):
    binned = run(images.paths, overrides={"Campaign.time_bin": "20 min"})
    table = binned.tables[COEFFICIENTS]
    assert len(table) % len(from_dl2.tables[COEFFICIENTS]) == 0
    assert len(np.unique(table["time_bin"])) > 1
    assert "systematic" in table.colnames
    assert {"kappa", "time_bin"} <= set(binned.tables[f"{COEFFICIENTS}_slopes"].colnames)


# -- estimators ---------------------------------------------------------------------------------


def test_deviations_fit_the_errors(images, from_dl2):
    table = from_dl2.tables[COEFFICIENTS]
    errors = np.hypot(table["error"], np.nan_to_num(table["systematic"]))
    deviation = pulls(table, images)
    assert len(deviation) > 8
    assert np.std(deviation) < 1.6
    assert np.isfinite(errors[np.isfinite(table["error"])]).all()
    assert (table["systematic"][["R" in flags for flags in table["flags"]]] == 0).all()


def test_results_are_shown_however_far_a_run_is(from_dl2):
    calibration, result = from_dl2.plan.calibration, from_dl2.result
    alone = {ALL: result[ALL]}
    tables_ = calibration.tables(calibration.combine(alone))
    assert np.isnan(tables_[COEFFICIENTS]["systematic"]).all()
    harder = {cell: fit for cell, fit in result.items() if cell != ALL}
    assert len(harder) == 2
    assert calibration.combine(harder) == {}
    assert calibration.tables({}) == {}
    begun = calibration.combine({**alone, ALL: replace(result[ALL], done=False)} | harder)
    flags = calibration.tables(begun)[COEFFICIENTS]["flags"]
    assert any("P" in one for one in flags)


def test_the_report_says_what_was_corrected(from_dl2):
    sections = from_dl2.plan.calibration.report_sections(from_dl2.tables)
    titles = [section.title for section in sections]
    assert titles[:3] == ["What needs attention", "Throughput", "Image sizes"]
    text = sections[2].blocks[0].text
    for part in ("geometric mean", "one slope by type", "1.5 times as high", "half of the window"):
        assert part in text


def test_corrections_can_be_left_out(images, asymmetries, run):
    # As ctao-calibpipe does it: all rows, mean asymmetry.
    plain = run(images.paths, overrides={"RelativeThroughputFitter.estimator": "asymmetry"})
    assert "systematic" not in plain.tables[COEFFICIENTS].colnames
    assert "kappa" not in plain.tables[f"{COEFFICIENTS}_components"].colnames
    flow = plain.account.total.cut_flow
    assert "minimum_pair_intensity" not in flow
    rows = [read_asymmetries(path) for path in asymmetries.paths[:2]]
    pairs = plain.tables[f"{COEFFICIENTS}_pairs"]
    for row in pairs[pairs["n_events"] > 0]:
        mine = [
            one.asymmetry[(one.tel_id_1 == row["tel_id_1"]) & (one.tel_id_2 == row["tel_id_2"])]
            for one in rows
        ]
        values = np.concatenate(mine)
        assert row["n_events"] == len(values)
        assert row["mean_asymmetry"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
    # One by one.
    overrides = {
        "RelativeThroughputFitter.minimum_pair_intensity": 0,
        "RelativeThroughputFitter.distance_term": False,
    }
    uncorrected = run(images.paths, overrides=overrides)
    assert uncorrected.account.total.cut_flow["minimum_pair_intensity"] == flow["equidistant pairs"]
    assert "kappa" not in uncorrected.tables[f"{COEFFICIENTS}_components"].colnames


@pytest.mark.parametrize("estimator", ["log-median", "log-clipped"])
def test_robust_centres_go_without_the_distance_term(images, run, estimator):
    result = run(images.paths, overrides={"RelativeThroughputFitter.estimator": estimator})
    assert "kappa" not in result.tables[f"{COEFFICIENTS}_components"].colnames
    table = result.tables[COEFFICIENTS]
    assert np.isfinite(table["value"]).sum() > 8
    assert "systematic" in table.colnames


def test_files_without_distances_are_calibrated_without_them(asymmetries, from_dl2, run, tmp_path):
    rows = read_asymmetries(asymmetries.paths[0])
    bare = tmp_path / "bare.h5"
    with create_asymmetries(bare, "image_asymmetry", "hillas_intensity") as writer:
        writer.append(replace(rows, impact_1_m=None, impact_2_m=None, limit=None))
    result = run([bare, asymmetries.paths[1]])
    assert any("no distance term" in note and "bare.h5" in note for note in result.plan.warnings)
    assert "kappa" not in result.tables[f"{COEFFICIENTS}_components"].colnames
    expected = from_dl2.account.total.cut_flow["minimum_pair_intensity"]
    assert result.account.total.cut_flow["minimum_pair_intensity"] == expected
    # The harder cut on the size alone still tells something of the systematic error.
    assert np.isfinite(result.tables[COEFFICIENTS]["systematic"]).sum() > 8


def test_without_a_known_size_threshold_it_says_so(asymmetries, run):
    overrides = {"CalculateInterCalibration.asymmetry_label": "image_asymmetry"}
    result = run(asymmetries.paths[:2], config=(), overrides=overrides)
    assert any("no cut on the size of a pair" in note for note in result.plan.warnings)
    assert "minimum_pair_intensity" not in result.account.total.cut_flow


# -- bad input ----------------------------------------------------------------------------------


POINTING = [f"/{level}/monitoring/telescope/pointing" for level in ("dl0", "dl1")]


def test_missing_pointing(run, spoilt):
    with tables.open_file(spoilt, "a") as file:
        for group in POINTING:
            file.remove_node(group, recursive=True)
    with pytest.raises(MissingInput, match=r"no pointing tables at .* second number to 0"):
        run(spoilt)
    # Where the altitude does not count, no pointing is needed.
    name = "CalculateImageAsymmetry.event_filters.equidistant_event_selection"
    assert run(spoilt, job=STEP_1, overrides={name: [0.08, 0]}).digest


def test_a_telescope_without_pointing_costs_its_own_pairs_alone(run, spoilt, from_dl2):
    with tables.open_file(spoilt, "a") as file:
        for group in POINTING:
            file.remove_node(f"{group}/tel_002")
    result = run(spoilt, job=STEP_1)
    rows = read_asymmetries(result.paths[0])
    assert not ((rows.tel_id_1 == 2) | (rows.tel_id_2 == 2)).any()
    assert ((rows.tel_id_1 == 1) & (rows.tel_id_2 == 3)).any()
    (warning,) = result.account.total.warnings
    assert "no altitude" in str(warning)
    assert "of telescopes 2:" in str(warning)


def test_times_outside_the_pointing_table_are_left_out(run, asymmetries, tmp_path):
    made = simulate_array(tmp_path / "dl2", replace(SIMULATION, n_files=1, pointing_coverage=0.5))
    result = run(made.paths, job=STEP_1)
    half, whole = (read_asymmetries(one.paths[0]) for one in (result, asymmetries))
    assert 0.4 * len(whole) < len(half) < 0.6 * len(whole)
    n = len(half)
    np.testing.assert_array_equal(half.event_id, whole.event_id[:n])  # events come in time order
    np.testing.assert_array_equal(half.limit, whole.limit[:n])
    (warning,) = result.account.total.warnings
    assert "no altitude" in str(warning)


def test_a_distance_that_is_no_number_is_no_equidistant_pair(run, spoilt, asymmetries):
    where = "/dl2/event/telescope/impact/HillasReconstructor/tel_001"
    with tables.open_file(spoilt, "a") as file:
        table = file.get_node(where)
        distance = table.col("HillasReconstructor_tel_impact_distance")
        event_id = table.col("event_id")
        distance[::2] = np.nan
        table.modify_column(column=distance, colname="HillasReconstructor_tel_impact_distance")
    result = run(spoilt, job=STEP_1)
    rows, all_rows = (read_asymmetries(one.paths[0]) for one in (result, asymmetries))
    assert not np.isin(rows.event_id[rows.tel_id_1 == 1], event_id[::2]).any()
    others = (all_rows.tel_id_1 != 1) & (all_rows.tel_id_2 != 1)
    assert ((rows.tel_id_1 != 1) & (rows.tel_id_2 != 1)).sum() == others.sum()
    # Without the window they cannot be used for the distance term: left out, and flagged.
    overrides = {"CalculateImageAsymmetry.event_filters.equidistant_event_selection": None}
    flags = by_telescope(run(spoilt, overrides=overrides).tables[COEFFICIENTS], "flags")
    assert "I" in flags[1]
    assert "I" not in flags[5]


def test_missing_intensity(run, spoilt):
    overrides = {"CalculateImageAsymmetry.image_reconstructor": "hillas_intensiti"}
    with pytest.raises(MissingInput, match="did you mean hillas_intensity"):
        run(spoilt, job=STEP_1, overrides=overrides)
    with tables.open_file(spoilt, "a") as file:
        file.remove_node("/dl1/event/telescope/parameters", recursive=True)
    with pytest.raises(CalibdaskError, match="hillas_intensity") as failed:
        run(spoilt)
    assert isinstance(failed.value, MissingInput)


def test_spoilt_sizes_cost_their_pairs_alone(run, spoilt, from_dl2):
    with tables.open_file(spoilt, "a") as file:
        table = file.get_node("/dl1/event/telescope/parameters/tel_003")
        size = table.col("hillas_intensity")
        size[:3] = np.nan, np.inf, -1.0
        table.modify_column(column=size, colname="hillas_intensity")
    result = run(spoilt)
    flow = result.account.total.cut_flow
    assert flow["gammaness"] - flow["image size finite and positive"] <= 3
    assert np.isfinite(by_telescope(result.tables[COEFFICIENTS], "value")[3])


def test_pointing_of_another_kind(run, spoilt):
    with tables.open_file(spoilt, "a") as file:
        table = file.get_node("/dl1/monitoring/telescope/pointing/tel_001")
        table.attrs["CTAFIELD_2_UNIT"] = "hourangle"
    with pytest.raises(CorruptedInput, match="altitude in 'hourangle'"):
        run(spoilt)


def test_energies_have_no_image_options(images, run):
    for option, value in (("minimum_pair_intensity", 100), ("distance_term", True)):
        overrides = {
            "CalculateInterCalibration.asymmetry_label": "energy_asymmetry",
            f"RelativeThroughputFitter.{option}": value,
        }
        with pytest.raises(ConfigError, match=rf"{option}.*this is of image sizes"):
            run(images.paths, overrides=overrides)
    overrides = {
        "RelativeThroughputFitter.estimator": "log-median",
        "RelativeThroughputFitter.distance_term": True,
    }
    with pytest.raises(ConfigError, match="'log-median' has no distance term"):
        run(images.paths, overrides=overrides)


def test_a_file_is_not_read_as_what_it_is_not(asymmetries, run):
    overrides = {"CalculateInterCalibration.asymmetry_label": "energy_asymmetry"}
    with pytest.raises(MissingInput, match="has no table /energy_asymmetry/events"):
        run(asymmetries.paths[:1], overrides=overrides)


def test_files_that_ctapipe_wrote(shared_array, run):
    # Real showers through ctapipe's own tools; they have one pointing for all and no tables of it.
    path = shared_array / "dl2_ctapipe_chain" / "run202.dl2.h5"
    filters = "CalculateImageAsymmetry.event_filters"
    overrides = {
        "CalculateImageAsymmetry.QualityQuery.quality_criteria": [],
        f"{filters}.minimum_individual_intensity": 50,
    }
    with pytest.raises(MissingInput, match="no pointing tables"):
        run(path, job=STEP_1, overrides=overrides)
    overrides[f"{filters}.equidistant_event_selection"] = [0.2, 0]
    rows = read_asymmetries(run(path, job=STEP_1, overrides=overrides).paths[0])
    assert len(rows) == 25
    with tables.open_file(path) as file:
        for tel_id in np.unique(rows.tel_id_1).tolist():
            table = file.get_node(f"/dl1/event/telescope/parameters/tel_{tel_id:03d}")
            size = dict(zip(table.col("event_id"), table.col("hillas_intensity"), strict=True))
            mine = rows.tel_id_1 == tel_id
            expected = [size[number] for number in rows.event_id[mine]]
            np.testing.assert_array_equal(rows.value_1[mine], expected)
