from __future__ import annotations

import numpy as np
import pytest
import tables

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.asymmetry import create_asymmetries
from calibdask.io.kinds import file_kind
from calibdask.io.pytables import create_hdf5, write_root_attributes, write_table


def test_dl2(dl2, write_dl2):
    assert file_kind(write_dl2(dl2())) == "DL2 events"


@pytest.mark.parametrize("label", ["energy_asymmetry", "image_asymmetry"])
def test_asymmetries(tmp_path, label):
    path = tmp_path / "a.h5"
    with create_asymmetries(path, label, "x"):
        pass
    assert file_kind(path) == "asymmetries"


MUON = "/dl1/monitoring/telescope/calibration/optical_throughput/muon/tel_001"


@pytest.mark.parametrize("where", ["/dl2/monitoring/subarray/inter_calibration", MUON])
def test_throughputs(tmp_path, where):
    path = tmp_path / "throughputs.h5"
    with create_hdf5(path) as file:
        write_table(file, where, {"x": np.arange(3.0)})
    assert file_kind(path) == "throughputs"


def test_muon_tables_beside_events(dl2, write_dl2):
    """Where ctao-calibpipe puts them; DL2 events stay DL2 events."""
    columns = dl2()
    columns[MUON] = {"mean": np.array([0.2])}
    assert file_kind(write_dl2(columns, name="dl2.h5")) == "DL2 events"
    dl1 = {name: table for name, table in columns.items() if not name.startswith("/dl2")}
    assert file_kind(write_dl2(dl1, name="dl1.h5")) == "throughputs"
    del dl1[MUON]
    assert file_kind(write_dl2(dl1, name="no_muons.h5")) == "DL2 events"


@pytest.mark.parametrize(
    "where", ["/weather", "/dl2/monitoring/subarray/timing_calibration", "/dl1/monitoring/pointing"]
)
def test_other(tmp_path, where):
    # A product of ours is no input of ours, though its tables stand under /dl2.
    path = tmp_path / "other.h5"
    with create_hdf5(path) as file:
        write_table(file, where, {"x": np.arange(3.0)})
    assert file_kind(str(path)) == "other"


@pytest.mark.parametrize("lost", ["dl1", "dl2", "both"])
def test_a_file_of_events_that_lost_them_is_no_other_kind(dl2, write_dl2, lost):
    path = write_dl2(dl2())
    with tables.open_file(path, "a") as file:
        for group in ("dl1", "dl2") if lost == "both" else (lost,):
            file.rename_node(f"/{group}", "dlx" if group == "dl1" else "dly")
        write_root_attributes(file, {"CTA PRODUCT DATA LEVELS": "DL1_PARAMETERS,DL2"})
    if lost == "both":
        with pytest.raises(MissingInput, match="holds no events although it has the attribute"):
            file_kind(path)
    else:
        assert file_kind(path) == "DL2 events"  # and the look at its tables refuses it


@pytest.mark.parametrize("where", ["/dl1/service/x", "/dl2/evemt/x", "/energy_asymmetry/evemts"])
def test_groups_of_events_without_events(tmp_path, where):
    path = tmp_path / "a.h5"
    with create_hdf5(path) as file:
        write_table(file, where, {"x": np.arange(3.0)})
    with pytest.raises(MissingInput, match="holds no events although it has the group"):
        file_kind(path)


def test_a_file_with_nothing_in_it_lost_it(tmp_path):
    path = tmp_path / "a.h5"
    with create_hdf5(path):
        pass
    with pytest.raises(MissingInput, match="nothing else in it"):
        file_kind(path)


def test_no_hdf5(tmp_path):
    path = tmp_path / "file.h5"
    with pytest.raises(MissingInput, match=r"file\.h5"):
        file_kind(path)
    path.write_text("not HDF5")
    with pytest.raises(CorruptedInput, match=r"file\.h5"):
        file_kind(path)


def test_shared_files(shared_array):
    assert file_kind(shared_array / "dl2_small" / "dl2_obs1001.h5") == "DL2 events"
    assert file_kind(shared_array / "peer_dl2_small" / "easym" / "dl2_obs1001.h5") == "asymmetries"
    assert file_kind(shared_array / "peer_dl2_small" / "inter_e.h5") == "throughputs"
    assert file_kind(shared_array / "subarray_sorted.h5") == "other"
