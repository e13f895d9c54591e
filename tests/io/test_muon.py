from __future__ import annotations

import numpy as np
import pytest
import tables

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.muon import (
    has_muon_tables,
    inspect_muons,
    read_rings,
    read_times,
    ring_times,
)
from calibdask.io.pytables import create_hdf5, write_table
from tests.muon.toys import START_NS, S, write_file

COLUMNS = ("muonefficiency_optical_efficiency", "muonring_radius")
NONE = np.iinfo(np.int64).min


def edit(path, change):
    """Let a function change a file in place."""
    with tables.open_file(path, "a") as file:
        change(file)
    return path


@pytest.fixture
def stereo(tmp_path):
    """Two events, seen by both telescopes, one of them later by 100 ns."""
    event_id = np.array([5, 5, 9, 9])
    tel_id = np.array([1, 2, 1, 2], np.int16)
    time_ns = START_NS + np.array([0, 100, S, S + 100])
    return write_file(tmp_path / "stereo.h5", 2, event_id=event_id, tel_id=tel_id, time_ns=time_ns)


def test_what_a_file_holds(stereo):
    info = inspect_muons(stereo, COLUMNS)
    assert info.n_rows == {1: 2, 2: 2}
    assert info.telescopes == {1: "LST_LST_LSTCam", 2: "LST_LST_LSTCam"}
    assert info.n_mirrors == {1: 1, 2: 1}
    assert (info.obs_ids, info.process_type) == ((1,), "Simulation")


def test_a_ring_has_the_time_of_its_own_telescope(stereo):
    rows = read_rings(stereo, COLUMNS, [1, 2]).columns
    assert len(rows["event_id"]) == 4
    times = read_times(stereo, rows["obs_id"], rows["event_id"], rows["tel_id"])
    assert (times - START_NS).tolist() == [0, S, 100, S + 100]
    found = ring_times(stereo, [2])
    assert (found[2] - START_NS).tolist() == [100, S + 100]


def test_units_and_parts(stereo):
    rows = read_rings(stereo, COLUMNS, [2], (1, 2))
    assert rows.units == {"muonring_radius": "deg"}
    assert rows.columns["event_id"].tolist() == [9]


def test_parts_make_the_whole(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(11))
    for n in (1, 2, 3, 5, 20):
        parts = [read_rings(path, COLUMNS, [1], (i, n)).columns["event_id"] for i in range(n)]
        assert np.concatenate(parts).tolist() == list(range(11))


def test_any_order_of_triggers(tmp_path):
    event_id = np.array([3, 1, 2, 7])
    path = write_file(tmp_path / "a.h5", event_id=event_id)

    def turn_round(file):
        table = file.get_node("/dl1/event/telescope/trigger")
        table[:] = table[:][::-1]

    edit(path, turn_round)
    times = read_times(path, np.full(5, 1), np.array([1, 2, 3, 7, 8]), np.full(5, 1))
    expected = [START_NS + S, START_NS + 2 * S, START_NS, START_NS + 3 * S, NONE]
    assert times.tolist() == expected


def test_triggers_of_other_observations(tmp_path):
    obs_id = np.array([1, 1, 2, 2], np.int32)
    path = write_file(tmp_path / "a.h5", event_id=np.array([1, 2, 1, 2]), obs_id=obs_id)
    times = read_times(path, np.array([2, 3, 1]), np.array([1, 1, 1]), np.full(3, 1))
    assert times.tolist() == [START_NS + 2 * S, NONE, START_NS]


def test_times_of_old_files_as_mjd(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(3))
    with tables.open_file(path, "a") as file:
        rows = file.get_node("/dl1/event/telescope/trigger")[:]
        file.remove_node("/dl1/event/telescope/trigger")
        columns = {name: rows[name] for name in ("obs_id", "event_id", "tel_id")}
        mjd = 40587 + (START_NS + np.arange(3) * S) / 86_400e9
        write_table(file, "/dl1/event/telescope/trigger", {**columns, "time": mjd})
    times = read_times(path, np.full(3, 1), np.arange(3), np.full(3, 1))
    np.testing.assert_allclose(times - START_NS, np.arange(3) * S, atol=2000)


def test_a_trigger_with_two_times_is_refused(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(3))

    def repeat(file):
        table = file.get_node("/dl1/event/telescope/trigger")
        row = table[1:2]
        row["time"][0, 0] += 1
        table.append(row)

    edit(path, repeat)
    with pytest.raises(CorruptedInput, match=r"telescope 1 in event 1 .*two different times"):
        read_times(path, np.full(3, 1), np.arange(3), np.full(3, 1))


def test_a_ring_that_is_there_twice_is_refused(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.array([4, 6]))

    def repeat(file):
        table = file.get_node("/dl1/event/telescope/muon/tel_001")
        table.append(table[:])

    edit(path, repeat)
    with pytest.raises(CorruptedInput, match=r"event 4 of observation 1 twice, in rows 0 and 2"):
        read_rings(path, COLUMNS, [1])


def test_rows_of_another_telescope_are_refused(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.array([4, 6]))

    def relabel(file):
        table = file.get_node("/dl1/event/telescope/muon/tel_001")
        rows = table[:]
        rows["tel_id"][1] = 9
        table[:] = rows

    edit(path, relabel)
    with pytest.raises(CorruptedInput, match="rows of telescope 9"):
        read_rings(path, COLUMNS, [1])


def test_no_trigger_table(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(3))
    edit(path, lambda file: file.remove_node("/dl1/event/telescope/trigger"))
    with pytest.raises(MissingInput, match="times of the rings are not known"):
        inspect_muons(path, COLUMNS)


def test_no_such_column(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(3))
    with pytest.raises(MissingInput, match=r"tel_001 has no column nonsense; it has obs_id"):
        inspect_muons(path, ("nonsense",))


def test_no_layout_no_observation(tmp_path):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(3))
    edit(path, lambda file: file.remove_node("/configuration", recursive=True))
    info = inspect_muons(path, COLUMNS)
    assert info.telescopes == {1: "UNKNOWN_tel_001"}
    assert info.obs_ids == (1,)


def test_files_without_rings(tmp_path):
    with create_hdf5(tmp_path / "other.h5") as file:
        write_table(file, "/dl1/event/subarray/trigger", {"event_id": np.arange(3)})
    assert not has_muon_tables(tmp_path / "other.h5")
    with pytest.raises(MissingInput):
        inspect_muons(tmp_path / "other.h5", COLUMNS)


def test_units_that_differ_between_telescopes(tmp_path):
    tel_id = np.array([1, 2], np.int16)
    path = write_file(tmp_path / "a.h5", 2, event_id=np.arange(2), tel_id=tel_id)

    def relabel(file):
        table = file.get_node("/dl1/event/telescope/muon/tel_002")
        number = table.colnames.index("muonring_radius")
        table.attrs[f"CTAFIELD_{number}_UNIT"] = "rad"

    edit(path, relabel)
    with pytest.raises(CorruptedInput, match=r"muonring_radius is in 'deg' and.*'rad'"):
        read_rings(path, COLUMNS, [1, 2])
