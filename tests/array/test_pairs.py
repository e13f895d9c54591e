from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.api import load_config
from calibdask.array.pairs import Layout, event_keys, number_events, select_pairs
from calibdask.errors import ConfigError, CorruptedInput

ENERGY = "RandomForestRegressor_tel_energy"
VALID = "RandomForestRegressor_tel_is_valid"
GAMMANESS = "RandomForestClassifier_tel_prediction"
IMPACT = "HillasReconstructor_tel_impact_distance"
SECTION = "CalculateEnergyAsymmetry"

# Two LSTs 100 m apart, a third 1 km away; two MSTs among them.
LAYOUT = Layout(
    tel_id=(30, 2, 1, 7, 5),
    tel_type=("LST", "LST", "LST", "MST", "MST"),
    tel_description=("LST_LST_LSTCam",) * 3 + ("MST_MST_FlashCam",) * 2,
    position_m=((1000.0, 0, 0), (100.0, 0, 0), (0.0, 0, 0), (50.0, 0, 0), (0.0, 50.0, 0)),
)


@dataclass
class Events:
    """Telescope events in memory."""

    event: np.ndarray
    tel_id: np.ndarray
    columns: dict[str, np.ndarray]
    units: dict[str, str] = field(default_factory=lambda: {ENERGY: "TeV", IMPACT: "m"})
    n_lacking: dict[int, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def make_events(rows, **columns):
    """Rows (event, tel_id, energy_tev, ...) with further columns by name."""
    event, tel_id, energy_tev = zip(*rows, strict=True)
    return Events(
        np.array(event, np.int64),
        np.array(tel_id, np.uint16),
        {ENERGY: np.array(energy_tev, float), **{k: np.array(v) for k, v in columns.items()}},
    )


def options(**overrides: Any):
    given = {f"{SECTION}.{name.replace('__', '.')}": one for name, one in overrides.items()}
    return load_config("energy-asymmetry-estimation", (), given).calibration.options


def selected(events, chosen):
    pairs = select_pairs(events, chosen, LAYOUT)
    one, two = pairs.row_1, pairs.row_2
    return list(
        zip(
            events.event[one].tolist(),
            events.tel_id[one].tolist(),
            events.tel_id[two].tolist(),
            strict=True,
        )
    ), pairs


def test_pairs_of_one_type_and_within_reach():
    events = make_events([(0, number, 1.0) for number in LAYOUT.tel_id] + [(1, 1, 1.0), (1, 7, 1)])
    found, pairs = selected(events, options())
    assert found == [(0, 1, 2), (0, 5, 7)]
    assert pairs.cut_flow == {
        "telescope events": 7,
        "energy finite and positive": 7,
        "pairs": 2,
    }


def test_reach_is_the_sum_of_two_values():
    events = make_events([(0, 1, 1.0), (0, 30, 1.0)])
    reach = [["type", "*", 100.0], ["id", 30, 900.0]]
    assert selected(events, options(PairFinder__max_impact_distance=reach))[0] == [(0, 1, 30)]
    reach = [["type", "*", 100.0], ["id", 30, 899.9]]
    assert selected(events, options(PairFinder__max_impact_distance=reach))[0] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_energy_without_value_is_left_out_and_told_if_it_passed_cuts(bad):
    events = make_events([(0, 1, bad), (0, 2, 1.0), (1, 1, 2.0), (1, 2, 1.0)])
    events.columns[VALID] = np.ones(4, bool)
    found, pairs = selected(events, options())
    assert found == [(1, 1, 2)]
    assert pairs.warnings == ()  # without any cut this is what is expected of invalid rows
    found, pairs = selected(events, options(QualityQuery__quality_criteria=[["valid", VALID]]))
    assert found == [(1, 1, 2)]
    assert len(pairs.warnings) == 1
    assert pairs.warnings[0].startswith("1 telescope events passed all quality criteria")


def test_cuts_on_a_telescope_need_both():
    events = make_events(
        [(0, 1, 0.06), (0, 2, 0.04), (1, 1, 0.06), (1, 2, 0.05)],
        **{GAMMANESS: [0.9, 0.9, 0.4, 0.9]},
    )
    found, pairs = selected(events, options(event_filters__min_energy="50 GeV"))
    assert found == [(1, 1, 2)]
    assert pairs.cut_flow["min_energy"] == 3
    assert selected(events, options(event_filters__min_gammaness=0.5))[0] == [(0, 1, 2)]
    # A threshold that is met exactly is met; one of 50 GeV is a number in TeV as well.
    assert selected(events, options(event_filters__min_energy=0.05))[0] == [(1, 1, 2)]


def test_the_stricter_distance_asymmetry_of_a_pair_counts():
    # |100 - 110|/210 = 0.0476
    events = make_events([(0, 1, 1.0), (0, 2, 1.0)], **{IMPACT: [100.0, 110.0]})
    name = "event_filters__max_distance_asymmetry"
    assert selected(events, options(**{name: 0.05}))[0] == [(0, 1, 2)]
    assert selected(events, options(**{name: 0.047}))[0] == []
    for strict in (1, 2):
        patterns = [["type", "*", 0.05], ["id", strict, 0.01]]
        found, pairs = selected(events, options(**{name: patterns}))
        assert found == []
        assert pairs.cut_flow["pairs"] == 1
        assert pairs.cut_flow["equidistant pairs"] == 0


@pytest.mark.parametrize("impact_m", [(np.nan, 100.0), (0.0, 0.0)])
def test_unknown_distance_is_not_equidistant(impact_m):
    events = make_events([(0, 1, 1.0), (0, 2, 1.0)], **{IMPACT: impact_m})
    assert selected(events, options(event_filters__max_distance_asymmetry=1.0))[0] == []


def test_a_type_without_events_needs_no_threshold():
    events = make_events([(0, 1, 1.0), (0, 2, 1.0)])
    name = "event_filters__min_energy"
    assert selected(events, options(**{name: [["type", "LST*", 0.1]]}))[0] == [(0, 1, 2)]
    with pytest.raises(ConfigError, match="min_energy"):
        selected(events, options(**{name: [["type", "MST*", 0.1]]}))


def test_no_rows():
    events = Events(np.zeros(0, np.int64), np.zeros(0, np.uint16), {ENERGY: np.zeros(0)})
    found, pairs = selected(events, options(event_filters__min_energy=0.1))
    assert found == []
    assert pairs.cut_flow["pairs"] == 0


def test_a_telescope_twice_in_an_event():
    with pytest.raises(CorruptedInput, match="read twice"):
        selected(make_events([(0, 1, 1.0), (0, 1, 1.0), (0, 2, 1.0)]), options())


rows_of_events = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(LAYOUT.tel_id)), unique=True, max_size=30
)


@given(rows_of_events, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_same_pairs_whatever_the_order_of_rows(rows, random):
    chosen = options()
    events = make_events([(e, t, 1.0 + e) for e, t in rows]) if rows else None
    if events is None:
        return
    allowed = {(1, 2), (5, 7)}
    expected = [
        (event, one, two)
        for event in range(6)
        for one, two in sorted(combinations(sorted(t for e, t in rows if e == event), 2))
        if (one, two) in allowed
    ]
    assert selected(events, chosen)[0] == expected
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert selected(make_events([(e, t, 1.0 + e) for e, t in shuffled]), chosen)[0] == expected


# -- numbers of events --------------------------------------------------------------------------

keys = st.lists(st.tuples(st.integers(1, 3), st.integers(-(2**40), 2**40)), max_size=40)


@given(keys)
def test_event_numbers_follow_their_keys(pairs):
    obs_id = np.array([pair[0] for pair in pairs], np.int32)
    event_id = np.array([pair[1] for pair in pairs], np.int64)
    number = number_events(obs_id, event_id)
    distinct = sorted(set(pairs))
    assert number.tolist() == [distinct.index(pair) for pair in pairs]
    found = event_keys(number, obs_id, event_id)
    assert found.dtype == np.int64
    assert found.tolist() == [list(pair) for pair in distinct]


# -- image sizes ----------------------------------------------------------------------------------

SIZE = "hillas_intensity"


def image_options(**overrides: Any):
    names = {
        f"CalculateImageAsymmetry.event_filters.{name}": value for name, value in overrides.items()
    }
    return load_config("image-asymmetry-estimation", (), names).calibration.options


def make_images(rows, impact_m, **columns):
    events = make_events(rows, **{IMPACT: impact_m}, **columns)
    events.columns[SIZE] = events.columns.pop(ENERGY)
    return events


def test_image_size_is_a_cut_on_both_telescopes():
    rows = [(0, 1, 80.0), (0, 2, 79.9), (1, 1, 80.0), (1, 2, 80.0)]
    found, pairs = selected(
        make_images(rows, [9.0] * 4), image_options(minimum_individual_intensity=80)
    )
    assert found == [(1, 1, 2)]
    assert pairs.cut_flow == {
        "telescope events": 4,
        "image size finite and positive": 4,
        "minimum_individual_intensity": 3,
        "pairs": 1,
    }
    assert pairs.limit.tolist() == [np.inf]


def test_limit_of_the_distances_falls_with_the_greater_altitude():
    # |d1 - d2|/(d1 + d2) is 0.1 in every event.
    rows = [(event, tel, 100.0) for event in range(3) for tel in (1, 2)]
    altitude = np.radians([60.0, 50.0, 60.0, 61.0, 60.0, np.nan])
    events = make_images(rows, [90.0, 110.0] * 3, pointing_altitude=altitude)
    chosen = image_options(equidistant_event_selection=[0.05, 0.1001])
    found, pairs = selected(events, chosen)
    # 0.05 + 0.1001 cos 60 deg = 0.10005 lets it through, with 61 deg it does not.
    assert found == [(0, 1, 2)]
    assert pairs.limit[0] == pytest.approx(0.05 + 0.1001 * np.cos(np.radians(60)))
    (warning,) = pairs.warnings
    assert "1 telescope events have no altitude, of telescopes 2:" in warning
    # Without p1 the altitude is neither needed nor known.
    level = image_options(equidistant_event_selection=[0.101, 0])
    del events.columns["pointing_altitude"]
    assert len(selected(events, level)[0]) == 3


def test_the_stricter_of_two_limits_counts():
    # ctao-calibpipe ends with an error where the two telescopes have different limits.
    events = make_images([(0, 1, 100.0), (0, 2, 100.0)], [90.0, 110.0])
    for first, second, n in ((0.2, 0.05, 0), (0.05, 0.2, 0), (0.2, 0.2, 1)):
        limits = [["id", 1, [first, 0]], ["id", 2, [second, 0]]]
        found, pairs = selected(events, image_options(equidistant_event_selection=limits))
        assert len(found) == n
        assert pairs.limit.tolist() == [0.2] * n


def test_distances_that_are_no_numbers_make_no_equidistant_pair():
    rows = [(event, tel, 100.0) for event in range(3) for tel in (1, 2)]
    events = make_images(rows, [90.0, np.nan, 90.0, 90.0, 0.0, 0.0])
    found, _ = selected(events, image_options(equidistant_event_selection=[0.1, 0]))
    assert found == [(1, 1, 2)]
