from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import CorruptedInput
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.io.throughput import read_throughputs
from calibdask.stats.timebins import ctao_time, to_time

INTER = "/dl2/monitoring/subarray/inter_calibration"
MUON = "/dl1/monitoring/telescope/calibration/optical_throughput/muon"
ROWS = {
    "tel_type": np.array(["LST", "MST", "MST"]),
    "tel_id": np.array([2, 5, 6]),
    "value": np.array([1.1, 1.0, np.nan]),
    "error": np.array([0.02, 0.0, np.nan]),
}
CHUNKS = {
    "mean": np.array([0.21, np.nan, 0.19, 0.2]),
    "sem": np.array([0.001, 0.001, 0.002, np.nan]),
    "n_events": np.array([100, 90, 50, 1]),
}
START_NS = 1_700_000_000_000_000_000


def write(path, tables, attributes=None, times=()):
    with create_hdf5(path) as file:
        for where, columns in tables.items():
            named = times if where.startswith(MUON) else ()
            write_table(file, where, columns, times=named, attributes=(attributes or {}).get(where))
    return path


def test_an_inter_calibration(tmp_path):
    path = write(tmp_path / "inter.h5", {INTER: ROWS}, {INTER: {"obs_id": np.array([8, 7, 7])}})
    found = read_throughputs(path)
    inter = found.inter_calibration
    assert found.muons is None
    assert inter.tel_id.tolist() == [2, 5, 6]
    assert inter.tel_type == ("LST", "MST", "MST")
    np.testing.assert_array_equal(inter.value, ROWS["value"])
    np.testing.assert_array_equal(inter.covariance, np.diag(ROWS["error"] ** 2))
    assert inter.obs_ids == (7, 8)


def test_its_covariance_where_it_has_one(tmp_path):
    covariance = {
        "tel_id_1": np.array([5, 5, 2, 2]),
        "tel_id_2": np.array([5, 2, 5, 2]),
        "covariance": np.array([0.0, 1e-5, 1e-5, 4e-4]),
    }
    tables = {INTER: ROWS, f"{INTER}_covariance": covariance}
    attributes = {INTER: {"obs_id": np.array([7])}}
    inter = read_throughputs(write(tmp_path / "a.h5", tables, attributes)).inter_calibration
    np.testing.assert_array_equal(inter.covariance[:2, :2], [[4e-4, 1e-5], [1e-5, 0.0]])
    covariance["covariance"][1] = np.nan
    with pytest.raises(CorruptedInput, match=r"has 1e-05 for telescopes 2 and 5, nan for 5 and 2"):
        read_throughputs(write(tmp_path / "nan.h5", tables, attributes))
    covariance["covariance"][:] = [0.0, 1e-5, 1e-5, 9e-4]
    with pytest.raises(CorruptedInput, match=r"has 0.0009 for telescopes 2 and 2.* are 0.02 and"):
        read_throughputs(write(tmp_path / "other.h5", tables, attributes))
    short = {name: values[:-1] for name, values in covariance.items()}
    tables[f"{INTER}_covariance"] = short
    with pytest.raises(CorruptedInput, match=r"has nan for telescopes 2 and 2"):
        read_throughputs(write(tmp_path / "short.h5", tables, attributes))
    tables[f"{INTER}_covariance"] = covariance
    covariance["tel_id_1"] = np.array([5, 5, 2, 9])
    with pytest.raises(CorruptedInput, match=r"has telescopes that .*inter_calibration has not"):
        read_throughputs(write(tmp_path / "b.h5", tables, attributes))


def test_muon_throughputs(tmp_path):
    """Chunks without a mean or an error of it do not count, and are counted."""
    path = write(tmp_path / "muons.h5", {f"{MUON}/tel_007": CHUNKS, f"{MUON}/note": CHUNKS})
    found = read_throughputs(path)
    assert found.inter_calibration is None
    assert found.muons.tel_id.tolist() == [7, 7]
    assert found.muons.mean.tolist() == [0.21, 0.19]
    assert found.muons.sem.tolist() == [0.001, 0.002]
    assert found.muons.n_rings.tolist() == [100, 50]
    assert found.muons.start_ns is None
    assert found.muons.n_unusable == {7: 2}


def test_times_of_chunks(tmp_path):
    edges_ns = START_NS + 600_000_000_000 * np.arange(5)
    times = {
        "time_start": ctao_time(to_time(edges_ns[:-1])),
        "time_end": ctao_time(to_time(edges_ns[1:])),
    }
    path = write(tmp_path / "muons.h5", {f"{MUON}/tel_007": CHUNKS | times}, times=tuple(times))
    muons = read_throughputs(path).muons
    assert muons.start_ns.tolist() == edges_ns[[0, 2]].tolist()
    assert muons.end_ns.tolist() == edges_ns[[1, 3]].tolist()


@pytest.mark.parametrize("letters", ["N", "FD", "B", "P"])
def test_values_of_an_inter_calibration_that_are_flagged_are_not_given(tmp_path, letters):
    rows = ROWS | {"value": np.array([1.1, 1.0, 0.9]), "error": np.array([0.02, 0.0, 0.01])}
    rows["flags"] = np.array([letters, "RF", "S"])
    path = write(tmp_path / "inter.h5", {INTER: rows}, {INTER: {"obs_id": np.array([7])}})
    inter = read_throughputs(path).inter_calibration
    assert np.isnan(inter.value).tolist() == [True, False, False]
    assert inter.flags == (letters, "RF", "S")


def test_muon_throughputs_from_too_few_rings_are_not_given(tmp_path):
    chunks = CHUNKS | {"flags": np.array(["C", "", "Q", "Q"])}
    muons = read_throughputs(write(tmp_path / "m.h5", {f"{MUON}/tel_007": chunks})).muons
    assert muons.mean.tolist() == [0.21]
    assert muons.n_unusable == {7: 3}
    chunks["flags"][:] = "Q"
    muons = read_throughputs(write(tmp_path / "n.h5", {f"{MUON}/tel_007": chunks})).muons
    assert (len(muons.tel_id), muons.n_unusable) == (0, {7: 4})


@pytest.mark.parametrize("letters", ["F", "CF", "D", "M", "B"])
def test_letters_of_muons_that_mean_something_else_now_are_refused(tmp_path, letters):
    """As earlier versions wrote them: F stood for too few rings, now it is of the array."""
    chunks = CHUNKS | {"flags": np.array(["", letters, "", ""])}
    path = write(tmp_path / "old.h5", {f"{MUON}/tel_007": chunks})
    with pytest.raises(CorruptedInput, match=r"old.h5: .*tel_007 has the flag . in row 1 .*again"):
        read_throughputs(path)


def test_nothing(tmp_path):
    nothing = {name: values[:0] for name, values in CHUNKS.items()}
    muons = read_throughputs(write(tmp_path / "a.h5", {f"{MUON}/note": CHUNKS})).muons
    assert len(muons.tel_id) == 0
    muons = read_throughputs(write(tmp_path / "b.h5", {f"{MUON}/tel_001": nothing})).muons
    assert len(muons.tel_id) == 0
    found = read_throughputs(write(tmp_path / "c.h5", {"/weather": CHUNKS}))
    assert found.inter_calibration is None
    assert found.muons is None


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({INTER: ROWS}, "does not tell by its attribute obs_id"),
        ({INTER: {"tel_id": ROWS["tel_id"]}}, "has no column tel_type, value, error"),
        ({f"{INTER}/table": ROWS}, "inter_calibration is not a table"),
        ({f"{MUON}/tel_001": {"mean": CHUNKS["mean"]}}, "tel_001 has no column sem, n_events"),
        (
            {f"{MUON}/tel_001": CHUNKS | {"sem": np.zeros(4)}},
            "tel_001 has a throughput of 0.21 .* 0 in row 0, expected .* mend the row",
        ),
        (
            {f"{MUON}/tel_001": CHUNKS | {"mean": np.array([0.21, 21.0, 0.2, 0.2])}},
            "tel_001 has a throughput of 21 .* in row 1, expected .*not in percent",
        ),
        (
            {f"{MUON}/tel_001": {name: values[[0, 2, 0]] for name, values in CHUNKS.items()}},
            "tel_001 has the same rings in rows 0 and 2: remove one",
        ),
    ],
)
def test_tables_that_make_no_sense(tmp_path, tables, says):
    with pytest.raises(CorruptedInput, match=says):
        read_throughputs(write(tmp_path / "wrong.h5", tables))
