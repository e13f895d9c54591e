"""Whether errors mean what they say: many campaigns with known truth, through files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import calibdask
from calibdask.array.simulate import simulate_array
from tests.e2e.conftest import SIMULATION
from tests.e2e.tables import COEFFICIENTS, normalised_chi2, pulls, true_ratios

N_CAMPAIGNS = 24


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory, config):
    """Campaigns with a truth and showers of their own, calibrated with the default estimator."""
    made = []
    for seed in range(N_CAMPAIGNS):
        folder = tmp_path_factory.mktemp("campaign")
        options = replace(SIMULATION, n_files=1, n_events=800, seed=1000 + seed)
        truth = simulate_array(folder / "dl2", options)
        result = calibdask.run(
            "inter-calibration",
            truth.paths,
            folder / "o.h5",
            config=config,
            cluster="serial",
            report=False,
        )
        made.append((result, truth))
    return made


@pytest.mark.slow
def test_errors_are_as_large_as_the_deviations(campaigns):
    # With the full covariance, (c - c_true)^T C^-1 (c - c_true) follows a chi-square law with 14
    # degrees of freedom (17 telescopes, 3 held fixed) in each of 24 campaigns. chi2/ndf then
    # scatters by sqrt(2/336) = 0.077; the band is four of these. With pairs taken as independent it
    # is n/2 where n telescopes share all events: 2 to 3.5 here.
    sums = np.array([normalised_chi2(result.tables, truth) for result, truth in campaigns])
    chi2, freedom = sums.sum(axis=0)
    assert freedom == 14 * N_CAMPAIGNS
    assert abs(chi2 / freedom - 1) < 4 * np.sqrt(2 / freedom)


@pytest.mark.slow
def test_coverage_and_bias(campaigns):
    # Coefficients of one type share their reference: correlation 1/2. Counting 336 of them as 112
    # independent ones (1.6 for each type of a campaign) makes the bands wide enough.
    found = np.concatenate(
        [pulls(result.tables[COEFFICIENTS], truth) for result, truth in campaigns]
    )
    assert len(found) == 14 * N_CAMPAIGNS
    n_independent = len(found) / 3
    coverage = np.mean(np.abs(found) < 1)
    assert abs(coverage - 0.683) < 4 * np.sqrt(0.683 * 0.317 / n_independent)
    assert abs(np.mean(found)) < 4 / np.sqrt(n_independent)


@pytest.mark.slow
def test_no_bias_in_the_slope(campaigns):
    # A shrunken scale (as of a fitted tanh) shows against the truth, not in the mean.
    true, fitted, weight = [], [], []
    for result, truth in campaigns:
        table = result.tables[COEFFICIENTS]
        good = np.asarray(table["error"]) > 0
        value, error = (np.asarray(table[name])[good] for name in ("value", "error"))
        true.append(np.log(true_ratios(table, truth))[good])
        fitted.append(np.log(value))
        weight.append((value / error) ** 2)
    true, fitted, weight = map(np.concatenate, (true, fitted, weight))
    slope = np.sum(weight * true * fitted) / np.sum(weight * true**2)
    # Factor 3 as above.
    assert abs(slope - 1) < 4 * np.sqrt(3 / np.sum(weight * true**2))
    assert np.sqrt(3 / np.sum(weight * true**2)) < 0.01
