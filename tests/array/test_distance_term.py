"""The slope of image sizes over the impact distance, fitted with the throughputs."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.array.network.coefficients import coefficients
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.model import NetworkOptions
from calibdask.array.network.pairs import PairSummary, summarise_pairs
from calibdask.array.network.scores import ScoreSummary, summarise_scores
from calibdask.array.network.state import NetworkFit
from tests.array.toys import draw_events, fit_shards, join_events, take
from tests.laws import assert_same, check_summary_laws

OPTIONS = NetworkOptions(reference_telescopes=(("LST", 1), ("MST", 5)))
LST = np.array([1.0, 0.8, 1.2, 0.9])
MST = np.array([1.0, 1.1, 0.7])


def two_types(seed=1, n_events=200, **others):
    """LSTs with a slope of -4, MSTs with one of -2; telescope i stands 3 % further than i - 1."""
    rng = np.random.default_rng(seed)
    others = {"keep": 0.6, "nearness": 0.03} | others
    return join_events(
        draw_events(rng, LST, n_events, kappa=-4.0, **others),
        draw_events(rng, MST, n_events, kappa=-2.0, tel_type="MST", first_id=5, **others),
    )


def tables(fit):
    return {name.removeprefix("inter_calibration"): t for name, t in coefficients(fit).items()}


class TestLaws:
    EVENTS = take(two_types(), np.arange(0, 250))
    FIT = fit_shards(OPTIONS, [two_types()])
    KINDS: ClassVar = {
        "moments": (summarise_pairs, PairSummary.identity(distance=True)),
        "scores": (lambda e: summarise_scores(TestLaws.FIT, e), ScoreSummary.identity(FIT)),
    }

    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=25, deadline=None)
    @given(assignment=st.lists(st.integers(0, 3), min_size=200, max_size=200))
    def test_any_split_by_event_is_the_whole(self, kind, assignment):
        summarise, identity = self.KINDS[kind]
        shard = np.array(assignment)[self.EVENTS.event % 200]
        parts = [summarise(take(self.EVENTS, shard == k)) for k in range(4)]
        check_summary_laws(parts, identity, summarise(self.EVENTS), rtol=1e-9, atol=1e-9)
        none = take(self.EVENTS, slice(0, 0))
        assert_same(summarise(none), identity, "the summary of no events")

    def test_what_does_not_merge(self):
        with pytest.raises(ValueError, match="distance"):
            PairSummary.identity(distance=True).merge(PairSummary.identity())
        with pytest.raises(ValueError, match="different fits"):
            ScoreSummary.identity(self.FIT).merge(
                ScoreSummary.identity(replace(self.FIT, distance_term=False))
            )
        with pytest.raises(ValueError, match="not both"):
            summarise_scores(self.FIT, replace(self.EVENTS, log_distance=None))


def test_slopes_and_throughputs_are_found():
    events = two_types(n_events=4000)
    found = tables(fit_shards(OPTIONS, [events]))
    slopes = found["_slopes"]
    assert slopes["tel_type"].tolist() == ["LST", "MST"]
    for kappa, error, truth in zip(
        slopes["kappa"], slopes["kappa_error"], (-4.0, -2.0), strict=True
    ):
        assert 0.003 < error < 0.03
        assert abs(kappa - truth) < 4 * error
    value, error = found[""]["value"], found[""]["error"]
    truth = np.concatenate([LST, MST])
    assert np.all(np.abs(value - truth) < 4 * error + 1e-12)
    # Without the term, the distances are taken for throughputs: telescope i stands 3 i % further.
    plain = tables(fit_shards(OPTIONS, [replace(events, log_distance=None)]))
    shift = np.log(plain[""]["value"] / truth)
    expected = np.concatenate([-4.0 * 0.03 * np.arange(4), -2.0 * 0.03 * np.arange(3)])
    np.testing.assert_allclose(shift, expected, atol=0.04)
    assert "_slopes" not in plain
    # Nearer telescopes scatter less about the line than about a constant.
    assert np.all(error[1:4] < 0.7 * plain[""]["error"][1:4])


def test_no_slope_changes_nothing_but_rounding():
    rng = np.random.default_rng(4)
    events = draw_events(rng, LST, 500, kappa=0.0)
    with_term = fit_shards(OPTIONS, [events])
    without = fit_shards(OPTIONS, [replace(events, log_distance=None)])
    np.testing.assert_allclose(with_term.theta, without.theta, atol=1e-3)
    assert abs(with_term.kappa[0, 0]) < 4 * with_term.kappa_error[0, 0]


def test_a_swapped_row_swaps_its_distances_too():
    events = two_types()
    swapped = replace(
        events,
        tel_id_1=events.tel_id_2,
        tel_id_2=events.tel_id_1,
        x_1=events.x_2,
        x_2=events.x_1,
        log_distance=-events.log_distance,
    )
    assert_same(summarise_pairs(swapped), summarise_pairs(events), "orientation of rows")
    fit = fit_shards(OPTIONS, [events])
    assert_same(summarise_scores(fit, swapped), summarise_scores(fit, events), "orientation")


def test_rows_without_a_distance_are_left_out_and_counted():
    events = two_types()
    spoilt = events.log_distance.copy()
    spoilt[::7] = np.nan
    spoilt[3] = np.inf
    lost = ~np.isfinite(spoilt)
    left = summarise_pairs(replace(events, log_distance=spoilt))
    clean = summarise_pairs(take(events, ~lost))
    assert left.n_invalid.sum() == lost.sum()
    assert_same(replace(left, n_invalid=clean.n_invalid), clean, "rows without a distance")
    fit = fit_shards(OPTIONS, [replace(events, log_distance=spoilt)])
    assert np.isfinite(fit.theta).all()
    assert "I" in coefficients(fit)["inter_calibration"]["flags"][1]


def test_equal_distances_have_no_slope():
    events = two_types()
    fit = fit_shards(OPTIONS, [replace(events, log_distance=np.zeros(len(events.event)))])
    plain = fit_shards(OPTIONS, [replace(events, log_distance=None)])
    assert (fit.kappa == 0).all()
    np.testing.assert_array_equal(fit.theta, plain.theta)
    np.testing.assert_array_equal(fit.covariance, plain.covariance)


def test_states_travel():
    fit = fit_shards(OPTIONS, [two_types()])
    again = NetworkFit.from_arrays(fit.to_arrays())
    assert again.distance_term is True
    assert_same(again, fit, "storing a state")


def test_sizes_on_a_line_without_scatter_do_not_break():
    events = two_types(sigma=0.0)
    fit = fit_shards(OPTIONS, [events])
    np.testing.assert_allclose(np.exp(fit.theta), np.concatenate([LST, MST]), rtol=1e-9)
    np.testing.assert_allclose(fit.kappa[:1, 0], -4.0, rtol=1e-9)


def test_shards_do_not_matter():
    events = two_types()
    parts = [take(events, events.event % 3 == k) for k in range(3)]
    one, three = fit_shards(OPTIONS, [events]), fit_shards(OPTIONS, parts)
    np.testing.assert_allclose(three.theta, one.theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(three.covariance, one.covariance, rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(three.kappa_error, one.kappa_error, rtol=1e-9)


def experiments(n_experiments, n_events, **others):
    """Pulls of ln c and of kappa; the first against the errors without that of kappa as well."""
    rng = np.random.default_rng(30)
    pulls, kappa_pulls, too_small = [], [], []
    for _ in range(n_experiments):
        events = draw_events(rng, LST, n_events, kappa=-4.0, sigma=0.3, **others)
        fit = fit_shards(OPTIONS, [events])
        deviation = (fit.theta - np.log(LST))[1:]
        pulls.append(deviation / np.sqrt(np.diagonal(fit.covariance))[1:])
        kappa_pulls.append((fit.kappa[0, 0] + 4.0) / fit.kappa_error[0, 0])
        unaware = replace(fit, kappa_weight=np.zeros_like(fit.kappa))
        state = fit_stage(1, OPTIONS, summarise_scores(unaware, events), unaware)
        too_small.append(deviation / np.sqrt(np.diagonal(state.covariance))[1:])
    return np.array(pulls), np.array(kappa_pulls), np.array(too_small)


@pytest.mark.parametrize("keep", [1.0, 0.2])
def test_pulls(keep):
    # Distances that differ by as much as they scatter: kappa's error counts.
    n_events = 60 if keep == 1 else 200
    pulls, kappa_pulls, too_small = experiments(250, n_events, keep=keep, nearness=0.1)
    assert 0.9 < np.std(pulls) < 1.1
    assert 0.9 < np.std(kappa_pulls) < 1.12
    assert np.max(np.abs(np.mean(pulls, axis=0))) < 0.2
    assert abs(np.mean(kappa_pulls)) < 0.2
    assert np.std(too_small[:, -1]) > 1.25 * np.std(pulls[:, -1])
