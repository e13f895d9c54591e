"""Against ctao-calibpipe 0.8.0: the same rows, the same coefficients, files that it reads.

Its results lie among the shared data. They were made with, in the folder ``array``::

    calibpipe-energy-asymmetry-estimation -c peer_config/energy.yaml \
        -i dl2_small/dl2_obs1001.h5 -o peer_dl2_small/easym/dl2_obs1001.h5      # and 1002
    calibpipe-inter-calibration -c peer_config/inter.yaml \
        -i peer_dl2_small/easym -o peer_dl2_small/inter_e.h5
    calibpipe-image-asymmetry-estimation -c peer_config/image.yaml \
        -i dl2_small/dl2_obs1001.h5 -o peer_dl2_small/iasym/dl2_obs1001.h5      # and 1002
    calibpipe-inter-calibration -c peer_config/inter_img.yaml \
        -i peer_dl2_small/iasym -o peer_dl2_small/inter_i.h5
    calibpipe-energy-asymmetry-estimation -c dl2_ctapipe_chain/peer_energy_asymmetry.yaml \
        -i dl2_ctapipe_chain/run202.dl2.h5 -o dl2_ctapipe_chain/peer_energy_asymmetry.h5
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tables

import calibdask
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.io.asymmetry import read_asymmetries
from tests.e2e.tables import COEFFICIENTS, by_telescope, read_table

AS_PEER = {"RelativeThroughputFitter.estimator": "asymmetry", "RelativeThroughputFitter.n_min": 2}
BLOCKS = ("dl2_obs1001.h5", "dl2_obs1002.h5")


def _run(job, inputs, output, config, overrides=None):
    return calibdask.run(
        job, inputs, output, config=config, overrides=overrides, cluster="serial", report=False
    )


@pytest.fixture(scope="module")
def ours(shared_array, tmp_path_factory):
    """Our event-wise asymmetries of the same data with the same configuration."""
    output = tmp_path_factory.mktemp("ours") / "asymmetries"
    config = shared_array / "peer_config" / "energy.yaml"
    _run("energy-asymmetry-estimation", shared_array / "dl2_small", output, config)
    return output


def _in_order(rows):
    """Order of event and pair; the peer writes one pair after the other."""
    return np.lexsort((rows.tel_id_2, rows.tel_id_1, rows.event_id, rows.obs_id))


def _check_rows(mine, theirs):
    assert len(mine) == len(theirs) > 0
    i, j = _in_order(mine), _in_order(theirs)
    for name in ("obs_id", "event_id", "tel_type", "tel_id_1", "tel_id_2", "value_1", "value_2"):
        np.testing.assert_array_equal(getattr(mine, name)[i], getattr(theirs, name)[j], name)
    has_uncertainty = theirs.uncertainty_1 is not None
    for name in ("uncertainty_1", "uncertainty_2") if has_uncertainty else ():
        np.testing.assert_array_equal(getattr(mine, name)[i], getattr(theirs, name)[j], name)
    for name in ("asymmetry", "asymmetry_uncertainty") if has_uncertainty else ("asymmetry",):
        np.testing.assert_allclose(
            getattr(mine, name)[i], getattr(theirs, name)[j], rtol=0, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("block", BLOCKS)
def test_same_asymmetries(shared_array, ours, block):
    theirs = read_asymmetries(shared_array / "peer_dl2_small" / "easym" / block)
    _check_rows(read_asymmetries(ours / block), theirs)


def test_same_asymmetries_of_files_that_ctapipe_wrote(shared_array, tmp_path):
    # Real showers through ctapipe's own tools. Its layout is sorted, and its regressor gives all
    # telescopes of an event one energy: every asymmetry is 0, no uncertainty is known.
    chain = shared_array / "dl2_ctapipe_chain"
    _run(
        "energy-asymmetry-estimation",
        chain / "run202.dl2.h5",
        tmp_path / "ours",
        chain / "peer_energy_asymmetry.yaml",
    )
    mine = read_asymmetries(tmp_path / "ours" / "run202.dl2.h5")
    _check_rows(mine, read_asymmetries(chain / "peer_energy_asymmetry.h5"))
    assert len(mine) == 47
    assert np.isnan(mine.asymmetry_uncertainty).all()


@pytest.fixture(scope="module")
def fitted(shared_array, ours, tmp_path_factory):
    """Coefficients from our asymmetries, from the peer's, and straight from DL2."""
    where = tmp_path_factory.mktemp("fitted")
    inter = shared_array / "peer_config" / "inter.yaml"
    energy = shared_array / "peer_config" / "energy.yaml"
    sources = {
        "ours": (ours, inter),
        "peer": (shared_array / "peer_dl2_small" / "easym", inter),
        "dl2": (shared_array / "dl2_small", [energy, inter]),
    }
    return {
        name: _run("inter-calibration", inputs, where / f"{name}.h5", config, AS_PEER)
        for name, (inputs, config) in sources.items()
    }


def test_same_coefficients_from_all_sources(fitted):
    from_dl2 = fitted["dl2"].tables[COEFFICIENTS]
    seen = from_dl2["n_pairs"] > 0
    # A file of asymmetries does not know of telescopes that saw nothing; DL2 does, and flags them.
    assert set(from_dl2["flags"][~seen].tolist()) == {"N"}
    for name in ("ours", "peer"):
        table = fitted[name].tables[COEFFICIENTS]
        for column in ("tel_id", "n_pairs", "n_events", "flags"):
            np.testing.assert_array_equal(table[column], from_dl2[column][seen], column)
        for column in ("value", "error", "error_independent"):
            np.testing.assert_allclose(table[column], from_dl2[column][seen], rtol=1e-12)


def test_same_pairs_as_peer(shared_array, fitted):
    # What its fit starts from: n, mean and standard deviation of each pair of its own rows.
    parts = [read_asymmetries(shared_array / "peer_dl2_small" / "easym" / b) for b in BLOCKS]
    one, two, asymmetry = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("tel_id_1", "tel_id_2", "asymmetry")
    )
    table = fitted["ours"].tables[f"{COEFFICIENTS}_pairs"]
    mine = {(row["tel_id_1"], row["tel_id_2"]): row for row in table}
    assert set(mine) == set(zip(one.tolist(), two.tolist(), strict=True))
    for (first, second), row in mine.items():
        values = asymmetry[(one == first) & (two == second)]
        assert row["n_events"] == len(values)
        assert row["mean_asymmetry"] == pytest.approx(values.mean(), rel=1e-12, abs=1e-15)
        if len(values) > 1:
            assert row["std_asymmetry"] == pytest.approx(values.std(ddof=1), rel=1e-9)


def test_same_coefficients_as_peer(shared_array, fitted):
    theirs = read_table(shared_array / "peer_dl2_small" / "inter_e.h5")
    mine = fitted["ours"].tables[COEFFICIENTS]
    value, error = by_telescope(mine, "value"), by_telescope(mine, "error_independent")
    compared = 0
    for row in theirs:
        number = row["tel_id"]
        if row["tel_type"] in ("LST", "MST"):
            # Its minimiser stops where the distance to the minimum is 1e-4 of an error or so.
            assert value[number] == pytest.approx(row["value"], abs=2e-4)
            if number not in (1, 5):  # the fixed ones: it stores a fitter's default step, 0.01
                assert error[number] == pytest.approx(row["error"], rel=3e-3)
            compared += 1
    assert compared == 4 + 14
    assert error[1] == error[5] == 0


@pytest.fixture(scope="module")
def our_images(shared_array, tmp_path_factory):
    """Our event-wise asymmetries of image sizes with the peer's configuration."""
    output = tmp_path_factory.mktemp("images") / "asymmetries"
    config = shared_array / "peer_config" / "image.yaml"
    _run("image-asymmetry-estimation", shared_array / "dl2_small", output, config)
    return output


@pytest.mark.parametrize("block", BLOCKS)
def test_same_asymmetries_of_image_sizes(shared_array, our_images, block):
    theirs = read_asymmetries(shared_array / "peer_dl2_small" / "iasym" / block)
    mine = read_asymmetries(our_images / block)
    _check_rows(mine, theirs)
    assert len(mine) == {"dl2_obs1001.h5": 1295, "dl2_obs1002.h5": 1340}[block]


def test_same_coefficients_from_image_asymmetries(shared_array, our_images, tmp_path):
    theirs = read_table(shared_array / "peer_dl2_small" / "inter_i.h5")
    good = theirs[np.isfinite(theirs["error"])]
    assert len(good) >= 4 + 14
    configs = [shared_array / "peer_config" / name for name in ("image.yaml", "inter_img.yaml")]
    sources = {
        "peer": (shared_array / "peer_dl2_small" / "iasym", configs[1:]),
        "ours": (our_images, configs[1:]),
        "dl2": (shared_array / "dl2_small", configs),
    }
    for name, (inputs, config) in sources.items():
        result = _run("inter-calibration", inputs, tmp_path / f"{name}.h5", config, AS_PEER)
        value = by_telescope(result.tables[COEFFICIENTS], "value")
        for row in good:
            assert value[row["tel_id"]] == pytest.approx(row["value"], abs=2e-4)


def test_peer_loses_a_type_that_we_keep(shared_array, fitted):
    # Pairs of one event have no standard deviation: NaN in its chi2, and all SST stay at 1 +- NaN.
    theirs = read_table(shared_array / "peer_dl2_small" / "inter_e.h5")
    sst = theirs[theirs["tel_type"] == "SST"]
    assert (sst["value"] == 1).all()
    assert np.isnan(sst["error"][sst["tel_id"] != 30]).all()
    mine = fitted["ours"].tables[COEFFICIENTS]
    mine = mine[mine["tel_type"] == "SST"]
    assert set(sst["tel_id"].tolist()) == set(mine["tel_id"].tolist())
    assert np.isfinite(mine["value"]).all()
    for row in mine:
        few = row["n_events"] < 10
        assert ("B" in row["flags"]) == few
        assert np.isfinite(row["error"]) == (not few)
    dropped = fitted["ours"].tables[f"{COEFFICIENTS}_pairs"]
    dropped = dropped[~dropped["used"]]
    assert len(dropped)
    assert (dropped["n_events"] == 1).all()
    assert set(dropped["flags"].tolist()) == {"S"}


# -- outputs that the tools of the field read ---------------------------------------------------


def test_ctapipe_reads_the_result(fitted):
    result = fitted["dl2"]
    path = result.paths[0]
    for where, table in result.tables.items():
        read = read_table(path, where)
        assert read.colnames == table.colnames
        assert len(read) == len(table)
        for name in read.colnames:
            np.testing.assert_array_equal(np.asarray(read[name]), np.asarray(table[name]), name)
            assert read[name].dtype.kind == np.asarray(table[name]).dtype.kind
        assert np.asarray(read.meta["obs_id"]).dtype == np.uint64
        assert np.asarray(read.meta["obs_id"]).tolist() == [1001, 1002]


def test_asymmetries_say_their_units(ours):
    from astropy.table.meta import get_header_from_yaml

    # Where QTable.read and ctapipe's read_table look for them, if there is h5py: see below, too.
    energy = "RandomForestRegressor_tel_energy"
    with tables.open_file(ours / BLOCKS[0]) as file:
        text = file.get_node("/energy_asymmetry", "events.__table_column_meta__").read()
    header = get_header_from_yaml([line.decode() for line in text])
    assert header["meta"]["obs_id"] == [1001]
    units = {
        column["name"]: str(column["unit"]) for column in header["datatype"] if "unit" in column
    }
    assert units == {f"{energy}{what}_{i}": "TeV" for what in ("", "_uncert") for i in (1, 2)}


@pytest.fixture(scope="module")
def peer():
    """Run a tool of ctao-calibpipe, where it is installed."""
    default = Path(__file__).parents[2] / ".venv-peer" / "bin"
    tools = Path(os.environ.get("CALIBDASK_PEER", default))
    if not (tools / "calibpipe-inter-calibration").exists():
        pytest.skip(
            f"no ctao-calibpipe at {tools}: `make bench` installs it, or set CALIBDASK_PEER"
        )

    def run(tool, *arguments, cwd):
        """Return what it printed; fail with its complaint."""
        command = [str(tools / tool), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_peer_reads_our_asymmetries(shared_array, ours, peer, tmp_path):
    config = shared_array / "peer_config" / "inter.yaml"
    files = tmp_path / "asymmetries"
    files.mkdir()
    for block in BLOCKS:  # its directory may hold nothing else
        shutil.copy(ours / block, files)
    peer("calibpipe-inter-calibration", "-c", config, "-i", files, "-o", "inter.h5", cwd=tmp_path)
    mine = read_table(tmp_path / "inter.h5")
    theirs = read_table(shared_array / "peer_dl2_small" / "inter_e.h5")
    # Its fits go by sets, so that its rows come in any order and its values to its own tolerance.
    for column, tolerance in (("value", 2e-4), ("error", 2e-4)):
        expected = by_telescope(theirs, column)
        found = by_telescope(mine, column)
        assert found.keys() == expected.keys()
        for number, value in expected.items():
            assert found[number] == pytest.approx(value, abs=tolerance, nan_ok=True)


@pytest.mark.slow
def test_peer_reads_our_asymmetries_of_image_sizes(shared_array, our_images, peer, tmp_path):
    # It reads over the impact distances that ours have at the end of each row.
    config = shared_array / "peer_config" / "inter_img.yaml"
    files = tmp_path / "asymmetries"
    files.mkdir()
    for block in BLOCKS:
        shutil.copy(our_images / block, files)
    peer("calibpipe-inter-calibration", "-c", config, "-i", files, "-o", "inter.h5", cwd=tmp_path)
    found = by_telescope(read_table(tmp_path / "inter.h5"), "value")
    expected = by_telescope(read_table(shared_array / "peer_dl2_small" / "inter_i.h5"), "value")
    assert found.keys() == expected.keys()
    for number, value in expected.items():
        assert found[number] == pytest.approx(value, abs=2e-4)


@pytest.mark.slow
def test_ctapipe_reads_the_asymmetries(ours, peer, tmp_path):
    code = """
from sys import argv
from ctapipe.io import read_table
table = read_table(argv[1], "/energy_asymmetry/events")
energy = table["RandomForestRegressor_tel_energy_1"]
print(len(table), energy.unit, float(energy[0]).hex(), *table.meta["obs_id"])
"""
    rows = read_asymmetries(ours / BLOCKS[0])
    said = peer("python", "-c", code, ours / BLOCKS[0], cwd=tmp_path)
    assert said.split() == [str(len(rows)), "TeV", float(rows.value_1[0]).hex(), "1001"]


@pytest.mark.slow
def test_peer_cross_calibrates_with_our_coefficients(shared_array, fitted, peer, tmp_path):
    table = tmp_path / "inter.h5"
    shutil.copy(fitted["ours"].paths[0], table)
    config = shared_array / "peer_config" / "cross.yaml"
    peer(
        "calibpipe-cross-calibration",
        *("-c", config, "-i", table, "-d", shared_array / "dl2_small"),
        cwd=tmp_path,
    )
    factors = read_table(table, "/dl2/monitoring/subarray/cross_calibration/scaling_factors")
    assert set(factors["tel_type"].tolist()) == {"LST", "SST"}
    assert np.isfinite(factors["scaling_factor"]).all()


@pytest.mark.slow
def test_peer_swaps_signs_where_we_do_not(shared_array, peer, tmp_path):
    # Fault 1: its pairs come in the order of the layout; sorting the two numbers afterwards leaves
    # each value under the other's name. What is right says the file: energies by telescope.
    options = ArraySimulation(
        n_files=1, n_events=60, array="reduced", unsorted_layout=True, invalid_fraction=0.0, seed=3
    )
    path = simulate_array(tmp_path / "dl2", options).paths[0]
    config = shared_array / "peer_config" / "energy.yaml"
    _run("energy-asymmetry-estimation", path, tmp_path / "ours", config)
    mine = read_asymmetries(tmp_path / "ours" / path.name)
    peer(
        "calibpipe-energy-asymmetry-estimation",
        *("-c", config, "-i", path, "-o", "theirs.h5"),
        cwd=tmp_path,
    )
    theirs = read_asymmetries(tmp_path / "theirs.h5")
    i, j = _in_order(mine), _in_order(theirs)
    assert len(mine) == len(theirs) > 20
    np.testing.assert_array_equal(mine.tel_id_1[i], theirs.tel_id_1[j])
    np.testing.assert_array_equal(mine.tel_id_2[i], theirs.tel_id_2[j])
    swapped = mine.value_1[i] != theirs.value_1[j]
    assert 0.1 < swapped.mean() < 0.9
    np.testing.assert_array_equal(mine.value_1[i][swapped], theirs.value_2[j][swapped])
    energy = energies(path)
    for row in range(len(mine)):
        key = (mine.obs_id[row], mine.event_id[row])
        assert mine.value_1[row] == energy[*key, mine.tel_id_1[row]]
        assert mine.value_2[row] == energy[*key, mine.tel_id_2[row]]


def energies(path):
    """Energy by (obs_id, event_id, tel_id), straight from the tables of a file."""
    found = {}
    with tables.open_file(path) as file:
        for table in file.root.dl2.event.telescope.energy.RandomForestRegressor:
            for row in table.read():
                key = (row["obs_id"], row["event_id"], row["tel_id"])
                found[key] = row["RandomForestRegressor_tel_energy"]
    return found


@pytest.mark.parametrize("n_min", [2, 10])
def test_one_to_three_real_showers_a_pair_give_flags_and_no_wrong_value(
    shared_array, calibdask, tmp_path, n_min
):
    chain = shared_array / "dl2_ctapipe_chain"
    said = calibdask(
        "inter-calibration", "-c", chain / "peer_energy_asymmetry.yaml",
        "--set", f"RelativeThroughputFitter.n_min={n_min}",
        "-i", chain / "run202.dl2.h5", "-o", tmp_path / "out.h5", "--cluster", "serial",
    )  # fmt: skip
    assert said.code == 0, said.err
    table = read_table(tmp_path / "out.h5")
    assert len(table["tel_id"]) == 19
    flagged = np.array([bool(flags) for flags in table["flags"]])
    assert np.all(flagged | (np.isfinite(table["value"]) & np.isfinite(table["error"])))
