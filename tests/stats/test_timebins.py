from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.config import Campaign
from calibdask.errors import ConfigError
from calibdask.stats.timebins import TimeBins, ctao_time, ctao_time_ns, to_time

HOUR_NS = 3_600_000_000_000


@given(st.integers(1, 10**15), st.integers(-(10**18), 2 * 10**18), st.integers(0, 2 * 10**18))
def test_a_time_lies_between_the_edges_of_its_bin(width, epoch, time):
    bins = TimeBins(width, epoch)
    start, stop = bins.edges_ns(int(bins.index(np.array([time]))[0]))
    assert start <= time < stop
    assert stop - start == width


def test_a_time_at_an_edge_belongs_to_the_bin_that_begins_there():
    bins = TimeBins(HOUR_NS, 0)
    edges = np.arange(5) * HOUR_NS
    assert bins.index(edges).tolist() == [0, 1, 2, 3, 4]
    assert bins.index(edges - 1).tolist() == [-1, 0, 1, 2, 3]


def test_times_must_be_integers():
    with pytest.raises(TypeError, match="integers"):
        TimeBins(HOUR_NS, 0).index(np.array([1.7e18]))
    with pytest.raises(ValueError, match="time bin"):
        TimeBins(0, 0)


def test_stored_times_keep_their_nanosecond():
    stored = np.array([[1_700_000_000, 4 * 123_456_789 + 3]], np.uint32)
    assert ctao_time_ns(stored).tolist() == [1_700_000_000_123_456_789]


def test_bins_of_a_campaign():
    assert Campaign().bins is None
    # 2020-01-01T12:00:00 UTC is 37 s later in TAI.
    noon = 1_577_880_037 * 10**9
    assert Campaign(time_bin="1 h").bins == TimeBins(HOUR_NS, noon)
    other = Campaign(time_bin="90 s", epoch="2020-01-01T12:00:00.000000001").bins
    assert other == TimeBins(90 * 10**9, noon + 1)


@pytest.mark.parametrize("value", [3, "3", "3 m", "-1 h", "0 s", "much"])
def test_a_wrong_width_is_refused(value):
    with pytest.raises((ConfigError, ValueError), match=r"time|unit|width"):
        Campaign(time_bin=value)


def test_a_wrong_epoch_is_refused():
    with pytest.raises((ConfigError, ValueError), match="date"):
        Campaign(epoch="yesterday")


@settings(deadline=None)  # the first call imports astropy
@given(st.lists(st.integers(10**17, 18 * 10**17), min_size=1))
def test_times_come_back_from_what_astropy_makes_of_them(times):
    stored = ctao_time(to_time(np.array(times)))
    assert stored.dtype == np.uint32
    assert ctao_time_ns(stored).tolist() == times


def test_times_are_shown_in_utc():
    assert to_time([1_700_000_037 * 10**9])[0].isot == "2023-11-14T22:13:20.000000000"
    with pytest.raises(ValueError, match="before 1970 or after 2106"):
        ctao_time(to_time([-(10**9)]))
