"""Offsets against a known truth, without files: recovery, errors, floors, laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.array.model import Telescopes, find_pairs, pair_events
from calibdask.array.network.coefficients import coefficients
from calibdask.array.network.model import NetworkOptions, Observable
from calibdask.array.shower_simulation import simulate_events
from calibdask.array.simulation import ArraySimulation, true_array
from calibdask.array.timing_model import front_delay_ns, since_first_ns
from calibdask.array.timing_summary import (
    TimingEvents,
    TimingFit,
    TimingOptions,
    TimingScores,
    fit_timing,
    n_timing_stages,
    offset_network,
    reduce_timing,
    residual_columns,
    systematic_covariance,
)
from calibdask.array.timing_walk import WalkSummary
from calibdask.errors import CorruptedInput
from tests.laws import assert_same, check_summary_laws

RADIUS_M = {"LST": 125.0, "MST": 125.0, "SST": 225.0}
REFERENCE = 5
FAR = {"LST": 0.0, "MST": 731.3, "SST": -1466.7}
# As many events in all types as the files of a night: MSTs and LSTs see 1000 each, SSTs 200.
NIGHT = ArraySimulation(n_files=1, n_events=2000)


def options(estimator="clipped", *, walk=False, **network):
    settings_ = {
        "n_min": 10,
        "reference_type": "MST",
        "reference_telescopes": (("MST", REFERENCE),),
        "observable": Observable("difference", -50, 50, 400, "ns"),
    } | network
    return TimingOptions(
        NetworkOptions(f"log-{estimator}", **settings_),
        Observable("difference", -5000, 5000, 500, "ns"),
        (0.0, 50.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 1000.0),
        walk,
    )


def times(simulation, *, front="spherical", delay_ns=None, mixed=True):
    """What the glue makes of a file: times less the front's, and the pairs."""
    array = true_array(simulation)
    events, images = simulate_events(array, 0)
    row, tel_id = images["event"], images["tel_id"]
    kinds = np.array([array.tel_type[t] for t in tel_id.tolist()])
    position_m = np.array([array.position_m[t] for t in tel_id.tolist()])
    position_m[:, 0] -= events["reco_core_x_m"][row]
    position_m[:, 1] -= events["reco_core_y_m"][row]
    alt, az = events["reco_alt"][row], events["reco_az"][row]
    height_m = events["reco_h_max_m"][row] - simulation.observatory_altitude_m
    front_ns = front_delay_ns(front, position_m, alt, az, height_m / np.sin(alt))
    residual_ns = since_first_ns(images["time"], row, len(events["time_s"])) - front_ns
    if delay_ns is not None:
        residual_ns += np.array([delay_ns[kind] for kind in kinds.tolist()])
    telescopes = Telescopes(np.array([*array.tel_type]), np.array([*array.tel_type.values()]))
    allowed = find_pairs(
        telescopes.tel_id,
        telescopes.tel_type,
        [array.position_m[t] for t in telescopes.tel_id.tolist()],
        [RADIUS_M[kind] for kind in telescopes.tel_type.tolist()],
        mixed=mixed,
    )
    kept = np.isfinite(residual_ns)
    row, tel_id = row[kept], tel_id[kept]
    row_1, row_2 = pair_events(row, tel_id, *allowed)
    small = np.sqrt(100.0 / images["hillas_intensity"][kept])
    impact_m = images["impact_m"][kept]
    found = TimingEvents(row, tel_id, residual_ns[kept], impact_m, row_1, row_2, small)
    return found, telescopes, array


def some(events, chosen):
    """The pairs of some events."""
    mine = chosen[events.event[events.row_1]]
    return replace(events, row_1=events.row_1[mine], row_2=events.row_2[mine])


def fit(timing, shards, telescopes, n=None):
    """All stages (or the first n) over shards merged in order."""
    state = None
    for stage in range(n_timing_stages(timing) if n is None else n):
        total, *others = [reduce_timing(stage, timing, s, telescopes, state) for s in shards]
        for other in others:
            total = total.merge(other)
        state = fit_timing(stage, timing, total, state, telescopes)
    return state


class Found:
    """A fit beside the truth, for the telescopes that have an error."""

    def __init__(self, state, array, delay_ns=None):
        self.state, self.network = state, state.network
        self.table = coefficients(state.network, "offsets")["offsets"]
        tel_id = self.table["tel_id"].tolist()
        truth = np.array([array.time_offset_ns[t] for t in tel_id])
        if delay_ns is not None:
            truth += [delay_ns[array.tel_type[t]] for t in tel_id]
        truth -= np.sum(state.network.gauge * truth)
        self.good = self.table["error"] > 0
        self.deviation = (self.table["value"] - truth)[self.good]
        self.error = self.table["error"][self.good]
        self.independent = self.table["error_independent"][self.good]
        self.systematic = np.sqrt(np.diagonal(systematic_covariance(state)))[self.good]
        self.total = np.hypot(self.error, self.systematic)

    @property
    def rms_ns(self):
        return np.sqrt(np.mean(self.deviation**2))

    def pull(self, error):
        return np.sqrt(np.mean((self.deviation / error) ** 2))

    @property
    def chi2(self):
        block = np.ix_(self.good, self.good)
        covariance = self.network.covariance[block]
        return self.deviation @ np.linalg.solve(covariance, self.deviation)


def find(simulation, timing=None, *, delay_ns=None, **how):
    events, telescopes, array = times(simulation, delay_ns=delay_ns, **how)
    return Found(fit(timing or options(), [events], telescopes), array, delay_ns)


# -- recovery -----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["mean", "median", "clipped"])
def test_offsets_are_found_to_a_tenth_of_a_nanosecond(estimator):
    """8 ns of offsets, 1.5 ns of jitter, 93 000 telescope-events."""
    found = find(replace(NIGHT, n_events=12_000, seed=11), options(estimator))
    assert found.good.sum() == 35
    assert np.std(found.table["value"]) > 5
    assert found.rms_ns < 0.1


def test_a_plane_front_is_measurably_worse():
    simulation = replace(NIGHT, seed=12)
    spherical, plane = find(simulation), find(simulation, front="plane")
    assert spherical.rms_ns < 0.3
    assert 2.4 < plane.rms_ns < 7
    # It says so itself: the residuals depend on the impact distance.
    assert plane.pull(plane.error) > 3
    assert np.median(plane.systematic) > 2.4
    assert np.median(spherical.systematic) < 0.3


def test_offsets_of_camera_types_may_be_far_apart():
    far = find(replace(NIGHT, seed=13), delay_ns=FAR)
    near = find(replace(NIGHT, seed=13))
    assert far.rms_ns == pytest.approx(near.rms_ns, abs=0.03)
    assert far.table["flags"].tolist() == near.table["flags"].tolist()


def test_the_mean_of_the_reference_type_can_be_fixed_instead():
    delay_ns = {"LST": 0.0, "MST": 300.0, "SST": 0.0}
    timing = options(normalisation="weighted-mean")
    found = find(replace(NIGHT, seed=13), timing, delay_ns=delay_ns)
    gauge = found.network.gauge
    assert set(found.table["tel_type"][gauge > 0].tolist()) == {"MST"}
    assert abs(np.sum(gauge * found.table["value"])) < 1e-9
    assert found.rms_ns < 0.3


def test_accidental_triggers_do_not_move_a_robust_centre():
    # Most lie outside the window around the rough offsets, which serves the mean as well.
    far = replace(NIGHT, seed=14, time_outlier_fraction=0.1)
    found = [find(far, options(estimator)) for estimator in ("mean", "median", "clipped")]
    assert max(one.rms_ns for one in found) < 0.3
    assert all("I" in flags for flags in found[2].table["flags"].tolist())
    # Those inside are left to the estimator.
    near = replace(far, time_outlier_ns=40.0)
    mean, median, clipped = (find(near, options(e)) for e in ("mean", "median", "clipped"))
    assert max(median.rms_ns, clipped.rms_ns) < 0.3
    assert mean.rms_ns > 2 * clipped.rms_ns


# -- errors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nights():
    """Arrays with a truth and showers of their own."""
    return [find(replace(NIGHT, seed=100 + seed)) for seed in range(24)]


def test_pulls_and_coverage(nights):
    pulls = np.concatenate([found.deviation / found.error for found in nights])
    assert len(pulls) > 24 * 30
    assert 0.9 < np.sqrt(np.mean(pulls**2)) < 1.1
    # One reference makes the pulls of a night move together: some 12 independent ones in each.
    n_independent = 24 * 12
    assert abs(np.mean(np.abs(pulls) < 1) - 0.683) < 3 * np.sqrt(0.683 * 0.317 / n_independent)
    assert abs(np.mean(pulls)) < 4 / np.sqrt(24)


def test_chi2_with_the_whole_covariance(nights):
    chi2 = sum(found.chi2 for found in nights)
    ndf = sum(found.good.sum() for found in nights)
    # SSTs have 100 to 250 events for 35 errors: a sandwich of so few is some 5 % low.
    assert abs(chi2 / ndf - 1.05) < 4 * np.sqrt(2 / ndf)


def test_pairs_are_not_independent(nights):
    """One shower is in many pairs: errors that forget it are far too small."""
    pulls = np.concatenate([found.deviation / found.independent for found in nights])
    assert np.sqrt(np.mean(pulls**2)) > 1.5


@pytest.mark.parametrize(
    "wrong", [{"h_max_scale": 0.8}, {"h_max_scale": 1.2}, {"trigger_walk_ns": 3.0}], ids=str
)
def test_the_floor_covers_what_the_model_has_wrong(wrong):
    found = find(replace(NIGHT, n_events=10_000, seed=15, **wrong))
    assert found.pull(found.error) > 3
    assert 0.4 < found.pull(found.total) < 1.3


def test_the_floor_is_relative_to_what_is_fixed():
    found = find(replace(NIGHT, seed=16, h_max_scale=0.8))
    covariance = systematic_covariance(found.state)
    fixed = found.table["tel_id"] == REFERENCE
    assert covariance[fixed][:, fixed] == 0.0
    # Any two share the error of the reference.
    mst = np.flatnonzero((found.table["tel_type"] == "MST") & ~fixed)
    assert covariance[mst[0], mst[1]] == pytest.approx(covariance[mst[0], mst[0]] / 2)
    eigenvalues = np.linalg.eigvalsh(covariance)
    assert eigenvalues.min() > -1e-9


def test_too_few_events_for_a_floor_are_no_floor_of_zero():
    found = find(replace(NIGHT, seed=17, n_events=60))
    variance = np.diagonal(systematic_covariance(found.state))
    mst = found.table["tel_type"] == "MST"
    with_value = np.isfinite(found.table["value"])
    assert np.isnan(variance[with_value & ~mst]).any()
    assert variance[found.table["tel_id"] == REFERENCE] == 0.0


def test_time_walk_is_fitted_and_its_error_is_in_the_total_one():
    """1 ns at 100 photoelectrons; without the term, the total error is a third of the deviation."""
    without, walking = [], []
    for seed in range(12):
        events, telescopes, array = times(replace(NIGHT, n_events=4000, seed=700 + seed))
        events = replace(events, residual_ns=events.residual_ns + events.smallness)
        for found, walk in ((without, False), (walking, True)):
            found.append(Found(fit(options(walk=walk), [events], telescopes), array))
    walk_ns = np.mean([one.state.walk_ns for one in walking], axis=0)
    assert np.all(np.abs(walk_ns - 1.0) < 0.15)
    deviation, total = (
        np.concatenate([getattr(one, name) for one in walking]) for name in ("deviation", "total")
    )
    rms_ns = np.sqrt(np.mean(deviation**2))
    assert rms_ns < 0.6 * np.sqrt(np.mean(np.concatenate([o.deviation for o in without]) ** 2))
    assert 0.8 < np.sqrt(np.mean((deviation / total) ** 2)) < 1.2
    assert np.sqrt(np.mean(np.concatenate([o.deviation / o.total for o in without]) ** 2)) > 1.3


def test_no_image_triggers_early():
    events, telescopes, array = times(replace(NIGHT, seed=23))
    events = replace(events, residual_ns=events.residual_ns - events.smallness)
    state = fit(options(walk=True), [events], telescopes)
    assert state.walk_ns.tolist() == [0.0, 0.0, 0.0]
    assert len(array.tel_type) == len(state.rough_tel_id)


# -- networks -----------------------------------------------------------------------------------


def test_groups_without_common_events_are_told_apart():
    groups = ((1, 2, 3, 4), (5, 6, 7, 8, 9, 10, 11))
    simulation = replace(
        NIGHT, array="reduced", disconnected_groups=groups, dead_types=("SST",), seed=18
    )
    found = find(simulation)
    component = dict(
        zip(found.table["tel_id"].tolist(), found.table["component"].tolist(), strict=True)
    )
    assert len({component[t] for t in groups[0]}) == len({component[t] for t in groups[1]}) == 1
    assert component[1] != component[5]
    for tel_id, flags in zip(
        found.table["tel_id"].tolist(), found.table["flags"].tolist(), strict=True
    ):
        expected = {"R" if tel_id == REFERENCE else ""}
        if tel_id in groups[0]:
            expected = {"FD", "RFD"}
        elif tel_id >= 30:
            expected = {"N"}
        assert flags in expected


def test_a_reference_without_events_is_replaced_and_flagged():
    found = find(replace(NIGHT, seed=19, silent_telescopes=(REFERENCE,)))
    flags = dict(zip(found.table["tel_id"].tolist(), found.table["flags"].tolist(), strict=True))
    assert flags[REFERENCE] == "N"
    assert all("F" in text for tel_id, text in flags.items() if tel_id != REFERENCE)
    assert found.rms_ns < 0.3


def test_types_by_themselves():
    found = find(replace(NIGHT, seed=20), options(reference_type=None), mixed=False)
    components = {
        kind: set(found.table["component"][found.table["tel_type"] == kind].tolist()) - {-1}
        for kind in ("LST", "MST", "SST")
    }
    assert [len(numbers) for numbers in components.values()] == [1, 1, 1]
    assert len(set.union(*components.values())) == 3


def test_a_telescope_twice_in_an_event_or_not_of_the_array():
    events, telescopes, _ = times(replace(NIGHT, n_events=50))
    known = telescopes.tel_id != 3
    fewer = Telescopes(telescopes.tel_id[known], telescopes.tel_type[known])
    with pytest.raises(CorruptedInput, match="telescope 3"):
        fit(options(), [events], fewer)


def test_nothing_selected_has_no_values():
    events, telescopes, _ = times(replace(NIGHT, n_events=50))
    state = fit(options(), [some(events, np.zeros(50, np.bool_))], telescopes)
    table = coefficients(state.network, "offsets")["offsets"]
    assert set(table["flags"].tolist()) == {"N"}
    assert np.isnan(table["value"]).all()
    assert (residual_columns(state, options().impact_edges_m)["n_events"] == 0).all()


def test_what_is_known_before_the_last_stage():
    """Preliminary offsets are offsets, not what is left of them around rough ones."""
    events, telescopes, _ = times(replace(NIGHT, seed=22), delay_ns=FAR)
    timing = options()
    states = [fit(timing, [events], telescopes, n=n) for n in range(1, n_timing_stages(timing) + 1)]
    assert offset_network(states[0]) is None
    final = states[-1].network.theta
    for state in states[1:]:
        assert state.done == (state is states[-1])
        np.testing.assert_allclose(offset_network(state).theta, final, atol=1.0)
    assert np.ptp(final) > 2000


# -- laws ---------------------------------------------------------------------------------------

EVENTS, TELESCOPES, _ = times(replace(NIGHT, array="reduced", n_events=120, seed=21))
WALKING = options(n_min=2, walk=True)
STATE = fit(WALKING, [EVENTS], TELESCOPES, n=n_timing_stages(WALKING) - 1)
LAST = n_timing_stages(WALKING) - 1
ROUGH = fit(WALKING, [EVENTS], TELESCOPES, n=1)


@settings(max_examples=20, deadline=None)
@given(assignment=st.lists(st.integers(0, 3), min_size=120, max_size=120))
def test_any_split_by_event_is_the_whole(assignment):
    timing, where = WALKING, np.array(assignment)
    for stage, given_ in ((0, None), (1, ROUGH), (LAST, STATE)):
        parts = [
            reduce_timing(stage, timing, some(EVENTS, where == k), TELESCOPES, given_)
            for k in range(4)
        ]
        whole = reduce_timing(stage, timing, EVENTS, TELESCOPES, given_)
        if stage == LAST:
            identity = TimingScores.identity(STATE, STATE.network, 8)
        elif stage == 1:
            identity = WalkSummary.identity(len(whole.flow))
        else:
            identity = type(whole).identity(timing.rough, histogram=True)
        check_summary_laws(parts, identity, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stages", range(1, LAST + 2))
def test_states_are_stored(stages):
    state = fit(WALKING, [EVENTS], TELESCOPES, n=stages)
    assert state.done == (stages == LAST + 1)
    assert_same(TimingFit.from_arrays(state.to_arrays()), state, "storing and reading back")


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(1)
    order = rng.permutation(len(EVENTS.tel_id))
    place = np.argsort(order)
    shuffled = TimingEvents(
        *(getattr(EVENTS, name)[order] for name in ("event", "tel_id", "residual_ns", "impact_m")),
        place[EVENTS.row_1],
        place[EVENTS.row_2],
        EVENTS.smallness[order],
    )
    swapped = replace(EVENTS, row_1=EVENTS.row_2, row_2=EVENTS.row_1)
    timing = options(n_min=2)
    value = [
        coefficients(fit(timing, [one], TELESCOPES).network, "offsets")["offsets"]["value"]
        for one in (EVENTS, shuffled, swapped)
    ]
    for other in value[1:]:
        np.testing.assert_allclose(other, value[0], rtol=0, atol=1e-9)


def test_stages_need_their_states():
    with pytest.raises(ValueError, match="from stage 1 on"):
        reduce_timing(1, options(), EVENTS, TELESCOPES, None)
    with pytest.raises(ValueError, match="from stage 1 on"):
        reduce_timing(0, options(), EVENTS, TELESCOPES, STATE)
    with pytest.raises(ValueError, match="last stage"):
        systematic_covariance(STATE)
