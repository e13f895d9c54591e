from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.pointing import (
    PLACES,
    Pointing,
    read_block_pointing,
    read_pointing,
    require_pointing,
)
from calibdask.io.pytables import create_hdf5, write_table

SECOND = 1_000_000_000
START_NS = 1_700_000_037 * SECOND


def ctao(seconds, quarters=0):
    """Times as the files have them: seconds and quarter-nanoseconds, since an hour of 1970."""
    seconds = np.asarray(seconds) + 3600
    return np.stack([seconds, np.full_like(seconds, quarters)], axis=1).astype(np.uint32)


def write(path, tables, **others):
    """Write pointing tables by place and telescope: (seconds, altitude)."""
    with create_hdf5(path) as file:
        for (place, tel_id), (seconds, altitude) in tables.items():
            columns = {
                "time": ctao(seconds),
                "azimuth": np.zeros(len(seconds)),
                "altitude": np.asarray(altitude, float),
            } | others.get("columns", {})
            write_table(
                file,
                f"{place}/tel_{tel_id:03d}",
                columns,
                units={"altitude": "rad"} | others.get("units", {}),
            )
    return path


def test_altitude_between_two_times():
    pointing = Pointing(START_NS + SECOND * np.array([0, 10, 20]), np.array([1.0, 1.1, 1.0]))
    times = START_NS + np.array([0, 5 * SECOND, 10 * SECOND, 17_500_000_000, 20 * SECOND])
    np.testing.assert_allclose(
        pointing.altitude_at(times), [1.0, 1.05, 1.1, 1.025, 1.0], rtol=1e-15
    )
    # Exact where a time is in the table, and unknown outside of it.
    assert pointing.altitude_at(times[[2]])[0] == 1.1
    outside = pointing.altitude_at(START_NS + np.array([-1, 20 * SECOND + 1]))
    assert np.isnan(outside).all()


def test_nanoseconds_count():
    # As floats, 1.7e18 ns are known to 256 ns: these three times would be one.
    pointing = Pointing(START_NS + np.array([0, 100]), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(
        pointing.altitude_at(START_NS + np.array([0, 25, 50, 100])), [0.0, 0.25, 0.5, 1.0]
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True),
    st.lists(st.integers(-100, 1100), min_size=1, max_size=30),
)
def test_the_same_as_numpy(table_s, wanted_s):
    table_ns = START_NS + SECOND * np.sort(np.array(table_s, np.int64))
    altitude = np.cos(np.arange(len(table_s)))
    wanted = np.array(wanted_s, np.int64)
    found = Pointing(table_ns, altitude).altitude_at(START_NS + SECOND * wanted)
    expected = np.interp(wanted, np.sort(table_s), altitude, left=np.nan, right=np.nan)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_table_without_rows_knows_nothing():
    nothing = Pointing(np.zeros(0, np.int64), np.zeros(0))
    assert np.isnan(nothing.altitude_at(np.array([START_NS]))).all()


def test_either_place_is_read_and_the_first_counts(tmp_path):
    first, second = PLACES
    path = write(
        tmp_path / "pointing.h5",
        {
            (first, 1): ([0, 10], [1.0, 1.0]),
            (second, 1): ([0, 10], [0.5, 0.5]),
            (second, 2): ([0], [0.7]),
        },
    )
    found = read_pointing(path, [1, 2, 3])
    assert sorted(found) == [1, 2]
    assert found[1].altitude_rad.tolist() == [1.0, 1.0]
    assert found[2].altitude_rad.tolist() == [0.7]
    require_pointing(path)


def test_times_out_of_order_are_sorted(tmp_path):
    path = write(tmp_path / "p.h5", {(PLACES[0], 1): ([20, 0, 10], [1.2, 1.0, 1.1])})
    pointing = read_pointing(path, [1])[1]
    assert pointing.time_ns.tolist() == [3600 * SECOND, 3610 * SECOND, 3620 * SECOND]
    assert pointing.altitude_rad.tolist() == [1.0, 1.1, 1.2]


def test_degrees_are_turned_into_radians(tmp_path):
    path = write(tmp_path / "p.h5", {(PLACES[0], 1): ([0], [70.0])}, units={"altitude": "deg"})
    assert read_pointing(path, [1])[1].altitude_rad[0] == pytest.approx(np.radians(70))


def test_no_pointing_says_what_to_do(tmp_path):
    path = write(tmp_path / "p.h5", {("/dl1/monitoring/elsewhere", 1): ([0], [1.0])})
    with pytest.raises(MissingInput, match=r"p\.h5: no pointing tables at /dl1/.* or /dl0/.* to 0"):
        require_pointing(path)
    assert read_pointing(path, [1]) == {}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"units": {"altitude": "TeV"}}, "altitude in 'TeV', expected rad or deg"),
        ({"columns": {"time": np.array([1, 2])}}, "time as int64, in the format 'mjd'"),
    ],
)
def test_tables_of_another_kind_are_refused(tmp_path, others, message):
    path = write(tmp_path / "p.h5", {(PLACES[0], 7): ([0, 1], [1.0, 1.0])}, **others)
    with pytest.raises(CorruptedInput, match=rf"tel_007 has {message}"):
        read_pointing(path, [7])


def test_tables_without_the_columns_are_refused(tmp_path):
    with create_hdf5(tmp_path / "p.h5") as file:
        write_table(file, f"{PLACES[0]}/tel_001", {"time": ctao([0])})
    with pytest.raises(CorruptedInput, match="has no column altitude"):
        read_pointing(tmp_path / "p.h5", [1])


# -- of observation blocks ------------------------------------------------------------------------


def write_blocks(path, frame, *, units=("deg", "rad")):
    columns = {
        "obs_id": np.array([7, 9, 11], np.uint64),
        "subarray_pointing_lat": np.array([70.0, 60.0, np.nan]),
        "subarray_pointing_lon": np.array([1.0, 2.0, 3.0]),
        "subarray_pointing_frame": np.array(frame),
    }
    names = ("subarray_pointing_lat", "subarray_pointing_lon")
    with create_hdf5(path) as file:
        write_table(
            file,
            "/configuration/observation/observation_block",
            columns,
            units=dict(zip(names, units, strict=True)),
        )
    return path


def test_pointing_of_blocks(tmp_path):
    found = read_block_pointing(write_blocks(tmp_path / "a.h5", [0, 0, 0]))
    assert found == {7: (np.radians(70.0), 1.0), 9: (np.radians(60.0), 2.0)}
    # Coordinates in the sky (1: ICRS) are no direction over the ground.
    assert set(read_block_pointing(write_blocks(tmp_path / "b.h5", [1, 0, 0]))) == {9}


def test_blocks_without_a_direction(tmp_path):
    with pytest.raises(MissingInput, match=r"c.h5: .* where the array pointed"):
        read_block_pointing(write_blocks(tmp_path / "c.h5", [1, 2, 0]))
    with pytest.raises(CorruptedInput, match=r"lon in 'm', expected rad or deg"):
        read_block_pointing(write_blocks(tmp_path / "d.h5", [0, 0, 0], units=("deg", "m")))
    with create_hdf5(tmp_path / "e.h5") as file:
        write_table(file, "/nothing", {"obs_id": np.array([1])})
    with pytest.raises(MissingInput, match=r"e.h5: .* where the array pointed"):
        read_block_pointing(tmp_path / "e.h5")


def test_pointing_of_a_block_in_ctapipes_own_file(shared_array):
    found = read_block_pointing(shared_array / "dl2_ctapipe_chain" / "run202.dl2.h5")
    assert found == {202: (pytest.approx(np.radians(70.0)), 0.0)}
