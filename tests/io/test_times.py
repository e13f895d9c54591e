from __future__ import annotations

import numpy as np
import pytest
from astropy.time import Time

from calibdask.errors import CorruptedInput
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.io.times import ns_of_time, stored_time_ns
from calibdask.stats.timebins import NO_TIME

TIMES = Time(["2026-11-30T20:00:00", "2016-12-31T12:00:00", "1999-01-01T00:00:01"], scale="utc")
TRUTH_NS = [
    # Seconds of UTC since 1970 and the leap seconds of these dates.
    (1_796_068_800 + 37) * 10**9,
    (1_483_185_600 + 36) * 10**9,
    (915_148_801 + 32) * 10**9,
]


def read(tmp_path, values, **attributes):
    path = tmp_path / "times.h5"
    with create_hdf5(path) as file:
        named = {f"CTAFIELD_0_TIME_{name.upper()}": text for name, text in attributes.items()}
        write_table(file, "/trigger", {"time": np.asarray(values)}, attributes=named)
    with open_hdf5(path) as file:
        table = file.table("/trigger")
        return stored_time_ns(path, table, "time", table.column("time"))


def in_seconds(scale):
    """Seconds since 1970 in a scale, as two integers."""
    second = np.array(TRUTH_NS) // 10**9 - np.array([37, 36, 32]) * (scale == "utc")
    return np.stack([second, np.full_like(second, 2_000_000_004)], axis=1).astype(np.uint32)


@pytest.mark.parametrize("scale", ["tai", "utc"])
def test_the_scale_of_seconds_is_honoured(tmp_path, scale):
    found = read(tmp_path, in_seconds(scale), format="ctao_high_res", scale=scale)
    assert found.tolist() == [time + 500_000_001 for time in TRUTH_NS]


def test_times_without_attributes_are_of_tai(tmp_path):
    assert read(tmp_path, in_seconds("tai")).tolist() == [t + 500_000_001 for t in TRUTH_NS]
    (tmp_path / "times.h5").unlink()
    found = read(tmp_path, TIMES.tai.mjd)
    assert np.abs(found - TRUTH_NS).max() < 1000


@pytest.mark.parametrize("scale", ["tai", "utc", "tt", "TAI"])
@pytest.mark.parametrize("form", ["mjd", "jd", "unix", "unix_tai"])
def test_numbers_of_any_format_and_scale_give_the_same_times(tmp_path, form, scale):
    values = getattr(getattr(TIMES, scale.lower()), form)
    found = read(tmp_path, values, format=form, scale=scale)
    assert np.abs(found - TRUTH_NS).max() < (100_000 if form == "jd" else 2_000)


def test_what_stands_for_no_time_is_none(tmp_path):
    pairs = np.array([[0, 0], [0, 7], [2**32 - 1, 0], [1_700_000_000, 8]], np.uint32)
    for scale in ("tai", "utc"):
        found = read(tmp_path, pairs, format="ctao_high_res", scale=scale)
        assert (found == NO_TIME).tolist() == [True, True, True, False]
        (tmp_path / "times.h5").unlink()
    for form, numbers in (("mjd", [np.nan, 0.0, 60000.0, 1e9, -1e300]), ("unix", [np.nan, 0, 1e9])):
        for scale in ("tai", "utc"):
            found = read(tmp_path, np.array(numbers, float)[:3], format=form, scale=scale)
            assert (found == NO_TIME).tolist() == [True, True, False]
            (tmp_path / "times.h5").unlink()
    found = read(tmp_path, np.array([np.inf, 1e9, -1e300, 60000.0]), format="mjd", scale="tai")
    assert (found == NO_TIME).tolist() == [True, True, True, False]


def test_times_of_events_that_have_none():
    assert ns_of_time(Time(0, format="mjd", scale="tai")) == NO_TIME
    assert ns_of_time(TIMES).tolist() == TRUTH_NS


@pytest.mark.parametrize(
    ("values", "attributes"),
    [
        (np.array([[1, 2]], np.uint32), {"format": "mjd"}),
        (np.array([6e4]), {"format": "ctao_high_res"}),
        (np.array([6e4]), {"format": "cxcsec"}),
        (np.array([6e4]), {"scale": "local"}),
        (np.array([60000]), {}),
    ],
)
def test_times_that_cannot_be_read_are_refused(tmp_path, values, attributes):
    with pytest.raises(CorruptedInput, match=r"times\.h5: /trigger has time as"):
        read(tmp_path, values, **attributes)
