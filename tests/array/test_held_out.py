"""Errors, and the test of the fit, on held-out experiments; `make held-out` has the full table."""

from __future__ import annotations

import numpy as np
import pytest

from tests.array.held_out import CUTS, WINDOWS, ImageStudy, Study


@pytest.mark.parametrize("estimator", ["log-mean", "log-clipped"])
@pytest.mark.parametrize("name", ["4, 12 events", "4, 40 events, some pairs"])
def test_few_events_have_honest_errors(name, estimator):
    draw, n_tel, how = WINDOWS[name]
    study = Study(draw, n_tel, 120, estimator=estimator, **how)
    # 360 pulls that share a reference: some 180 independent ones.
    assert abs(study.width - 1.0) < 4 / np.sqrt(2 * 180)
    assert abs(study.coverage - 0.683) < 4 * np.sqrt(0.683 * 0.317 / 180)


@pytest.mark.parametrize("name", ["4, 300 events, some see", "14, 200 events, half see"])
def test_p_values_are_uniform(name):
    draw, n_tel, how = WINDOWS[name]
    study = Study(draw, n_tel, 100, estimator="log-mean", **how)
    assert study.uniform > 1e-4
    assert 0.35 < np.mean(study.p_value) < 0.65


@pytest.mark.parametrize("estimator", ["log-mean", "log-clipped", "log-median"])
@pytest.mark.parametrize("name", ["4, 12 events", "4, 1000 events"])
def test_pairs_of_the_same_showers_alone_have_no_freedom(name, estimator):
    """All telescopes see all events: every network fits, and nothing can be tested."""
    draw, n_tel, how = WINDOWS[name]
    study = Study(draw, n_tel, 3, estimator=estimator, **how)
    assert np.isnan(study.p_value).all()


def test_a_pair_that_is_off_is_found():
    draw, n_tel, how = WINDOWS["14, 800 events, tight"]

    def off(rng, throughput, **how):
        events = draw(rng, throughput, **how)
        odd = (events.tel_id_1 == 3) & (events.tel_id_2 == 8)
        events.x_1[odd] *= 2.0
        return events

    assert np.mean(Study(off, n_tel, 20, estimator="log-mean", **how).p_value < 0.01) > 0.8


@pytest.mark.parametrize("estimator", ["log-mean", "log-clipped"])
def test_a_threshold_does_not_draw_throughputs_together(estimator):
    draw, n_tel, how = CUTS["4, 1000 a pair"]
    plain, fair = (
        Study(draw, n_tel, 30, estimator=estimator, symmetric=symmetric, **how)
        for symmetric in (False, True)
    )
    assert plain.drawn < -0.1
    assert plain.width > 2
    assert abs(fair.drawn) < 0.03
    assert fair.width < 1.5


@pytest.mark.parametrize("radius_m", [350.0, 900.0])
def test_image_sizes_have_honest_errors_wherever_the_light_ends(radius_m):
    """Where cores end near the array, those of the far side of a pair are missing."""
    for kind, study in ImageStudy.of(radius_m, 3, 3).items():
        n_free = study.n_independent
        assert abs(study.width - 1.0) < 4 / np.sqrt(2 * n_free), kind
        assert abs(study.coverage - 0.683) < 4 * np.sqrt(0.683 * 0.317 / n_free), kind
