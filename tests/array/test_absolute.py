"""Network and muons together, types tied by given ratios: against brute force and by toys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibdask.array.absolute import combine_with_muons, compare_types, pool_chunks, tie_types
from calibdask.array.model import Telescopes, pair_types
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.model import NetworkOptions
from calibdask.array.network.stages import reduce_stage
from tests.array.toys import draw_events, fit_shards

N = 5
TRUTH = np.log(np.array([0.21, 0.18, 0.2, 0.25, 0.16]))
MUON_VARIANCE = np.array([0.01, 0.02, 0.005, np.nan, 0.01]) ** 2


def network(rng, n_events=2000):
    """ln c of telescopes that have some noise in common, relative to the first."""
    root = rng.normal(0, 0.01, (N, N)) + 0.01 * np.eye(N)
    gauge = np.eye(N)
    gauge[:, 0] -= 1
    theta = gauge @ (TRUTH + root @ rng.normal(0, 1, N))
    return theta, gauge @ root @ root.T @ gauge.T, n_events


def muons(rng):
    return TRUTH + np.sqrt(MUON_VARIANCE) * rng.normal(0, 1, N)


def objective(phi, theta, covariance, log_muon, n_events):
    difference = np.eye(N)[1:] - np.eye(N)[0]
    inverse = np.linalg.inv(difference @ covariance @ difference.T)
    inverse *= (n_events - N - 1) / (n_events - 1)
    u = difference @ (theta - phi)
    return u @ inverse @ u + np.nansum((log_muon - phi) ** 2 / MUON_VARIANCE)


def test_it_is_the_minimum():
    rng = np.random.default_rng(1)
    theta, covariance, n_events = network(rng)
    log_muon = muons(rng)
    found = combine_with_muons(theta, covariance, log_muon, MUON_VARIANCE, n_events)
    lowest = objective(found.log_value, theta, covariance, log_muon, n_events)
    assert found.chi2 == pytest.approx(lowest, rel=1e-8)
    hessian = np.zeros((N, N))
    step = 1e-4 * np.eye(N)
    for i, j in np.ndindex(N, N):
        corners = [
            objective(
                found.log_value + a * step[i] + b * step[j], theta, covariance, log_muon, n_events
            )
            for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))
        ]
        hessian[i, j] = (corners[0] - corners[1] - corners[2] + corners[3]) / 4e-8
        assert corners[0] > lowest
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian / 2), rtol=1e-3, atol=1e-9)
    assert found.ndf == 3
    assert np.isnan(found.residual[3])


def test_the_constant_of_the_network_does_not_matter():
    rng = np.random.default_rng(2)
    theta, covariance, n_events = network(rng)
    log_muon = muons(rng)
    one, two = (
        combine_with_muons(theta + shift, covariance, log_muon, MUON_VARIANCE, n_events)
        for shift in (0.0, 7.0)
    )
    np.testing.assert_allclose(one.log_value, two.log_value, atol=1e-10)
    np.testing.assert_allclose(one.covariance, two.covariance, atol=1e-14)
    assert one.chi2 == pytest.approx(two.chi2, rel=1e-6)


def test_errors_and_chi2_are_honest():
    rng = np.random.default_rng(3)
    pulls, own, p_values = [], [], []
    for _ in range(600):
        theta, covariance, n_events = network(rng)
        found = combine_with_muons(theta, covariance, muons(rng), MUON_VARIANCE, n_events)
        pulls.append((found.log_value - TRUTH) / np.sqrt(np.diagonal(found.covariance)))
        own.append(found.pull)
        p_values.append(found.p_value)
    assert np.std(pulls, axis=0) == pytest.approx(1.0, abs=0.1)
    assert np.mean(pulls, axis=0) == pytest.approx(0.0, abs=0.15)
    assert np.std(own, axis=0)[[0, 1, 2, 4]] == pytest.approx(1.0, abs=0.1)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.04)


def test_muons_that_disagree_are_found():
    rng = np.random.default_rng(4)
    theta, covariance, n_events = network(rng)
    log_muon = muons(rng)
    log_muon[0] += 0.2
    found = combine_with_muons(theta, covariance, log_muon, MUON_VARIANCE, n_events)
    assert found.p_value < 1e-6
    assert np.nanargmax(np.abs(found.pull)) == 0


def test_one_muon_throughput_sets_the_scale():
    rng = np.random.default_rng(5)
    theta, covariance, n_events = network(rng)
    log_muon = np.where(np.arange(N) == 2, TRUTH, np.nan)
    found = combine_with_muons(theta, covariance, log_muon, MUON_VARIANCE, n_events)
    np.testing.assert_allclose(found.log_value - theta, TRUTH[2] - theta[2], atol=1e-10)
    assert found.covariance[2, 2] == pytest.approx(MUON_VARIANCE[2])
    assert (found.chi2, found.ndf) == (0.0, 0)
    assert np.isnan(found.p_value)
    assert np.isnan(found.pull).all()


def test_what_cannot_be_combined():
    rng = np.random.default_rng(6)
    theta, covariance, _ = network(rng)
    nothing = np.full(N, np.nan)
    assert combine_with_muons(theta, covariance, nothing, MUON_VARIANCE, 100) is None
    assert combine_with_muons(theta, covariance, TRUTH, MUON_VARIANCE, N + 1) is None
    singular = np.outer(theta, theta)
    assert combine_with_muons(theta, singular, TRUTH, MUON_VARIANCE, 100) is None
    alone = combine_with_muons(*(np.array(x) for x in ([0.0], [[0.0]], [-1.5], [1e-4])), 0)
    assert alone.log_value[0] == pytest.approx(-1.5)
    assert alone.covariance[0, 0] == pytest.approx(1e-4)


def test_chunks_are_pooled_as_their_rings():
    rng = np.random.default_rng(7)
    rings = [rng.normal(0.2, 0.012, n) for n in (400, 1000, 50)]
    columns = (
        np.array([3, 3, 3, 8]),
        np.array([r.mean() for r in rings] + [0.1]),
        np.array([r.std(ddof=1) / np.sqrt(len(r)) for r in rings] + [0.01]),
        np.array([len(r) for r in rings] + [9]),
    )
    tel_id, mean, sem, n_rings = pool_chunks(*columns)
    together = np.concatenate(rings)
    assert tel_id.tolist() == [3, 8]
    assert n_rings.tolist() == [1450, 9]
    assert mean[0] == pytest.approx(together.mean(), rel=1e-12)
    assert sem[0] == pytest.approx(together.std(ddof=1) / np.sqrt(1450), rel=0.01)
    assert (mean[1], sem[1]) == (0.1, 0.01)


THROUGHPUT = np.array([1.0, 0.8, 1.2, 0.9, 1.1, 0.7, 0.6, 0.65])
TELESCOPES = Telescopes(np.arange(1, 9), np.array(["LST"] * 3 + ["MST"] * 3 + ["SST"] * 2))
SCALES = np.log([1.0, 0.9, 0.6])  # of the first telescope of each type


def mixed_events(rng, n_events=200, **options):
    events = draw_events(rng, THROUGHPUT, n_events, **options)
    types = TELESCOPES.tel_type
    return replace(
        events, tel_type=pair_types(types[events.tel_id_1 - 1], types[events.tel_id_2 - 1])
    )


def tied(rng, given, reference="MST", estimator="log-mean"):
    """All stages with ratios within types given, as the cross-calibration does it."""
    options = NetworkOptions(estimator, reference_type=reference)
    events = mixed_events(rng)
    state = None
    for stage in range(2):
        total = reduce_stage(stage, options, events, state)
        state = fit_stage(stage, options, total, state, TELESCOPES)
        if not state.done:
            state, scales = tie_types(state, given, np.zeros((8, 8)), reference)
    return state, scales


def relative(throughput):
    kinds = TELESCOPES.tel_type
    first = np.array([np.flatnonzero(kinds == kind)[0] for kind in kinds])
    return np.log(throughput / throughput[first])


@pytest.mark.parametrize("estimator", ["log-mean", "log-median"])
def test_scales_of_types_with_given_ratios(estimator):
    rng = np.random.default_rng(8)
    pulls, naive = [], []
    truth = SCALES - SCALES[1]
    for _ in range(120):
        fit, scales = tied(rng, relative(THROUGHPUT), estimator=estimator)
        assert scales.types == ("LST", "MST", "SST")
        assert scales.log_scale[1] == 0.0
        of_type = [0, 6]  # any telescope of LST and SST
        variance = np.diagonal(fit.covariance)[of_type]
        pulls.append((scales.log_scale - truth)[[0, 2]] / np.sqrt(variance))
        naive.append(
            (scales.log_scale - truth)[[0, 2]] / np.sqrt(np.diagonal(scales.inverse)[[0, 2]])
        )
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)
    assert np.mean(pulls) == pytest.approx(0.0, abs=0.3)
    # Each event counts 3 * 3 times for LST and MST when pairs are taken as independent.
    assert np.std(naive) > 1.3


def test_scales_against_brute_force():
    given = relative(THROUGHPUT)
    fit, scales = tied(np.random.default_rng(9), given)
    used = fit.used
    types = np.searchsorted(scales.types, fit.tel_type)
    assert np.all(types[fit.first[used]] != types[fit.second[used]])
    design = np.zeros((used.sum(), 3))
    design[np.arange(used.sum()), types[fit.first[used]]] += 1
    design[np.arange(used.sum()), types[fit.second[used]]] -= 1
    design = design[:, [0, 2]]
    y = fit.centre[used] - given[fit.first[used]] + given[fit.second[used]]
    root = np.sqrt(fit.weight[used])
    expected = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
    np.testing.assert_allclose(scales.log_scale[[0, 2]], expected, atol=1e-12)
    np.testing.assert_allclose(fit.theta, given + scales.log_scale[types], atol=1e-14)


def test_derivative_by_the_given_ratios():
    given = relative(THROUGHPUT)
    _, scales = tied(np.random.default_rng(10), given)
    for t in range(8):
        moved = given.copy()
        moved[t] += 1e-3
        _, other = tied(np.random.default_rng(10), moved)
        np.testing.assert_allclose(
            (other.log_scale - scales.log_scale) / 1e-3, scales.pull_of_given[:, t], atol=1e-9
        )


def test_telescopes_without_a_given_ratio_are_left_out():
    given = relative(THROUGHPUT)
    given[[1, 6, 7]] = np.nan
    fit, scales = tied(np.random.default_rng(11), given)
    assert fit.component.tolist() == [0, -1, 0, 0, 0, 0, -1, -1]
    assert np.isnan(fit.theta[[1, 6, 7]]).all()
    assert np.isnan(scales.log_scale[2])
    ends = np.concatenate([fit.first[fit.used], fit.second[fit.used]])
    assert not set(ends.tolist()) & {1, 6, 7}


def test_types_that_are_not_connected_with_the_reference():
    fit, scales = tied(np.random.default_rng(12), relative(THROUGHPUT), reference="XST")
    assert scales.log_scale[0] == 0.0  # the first takes its place
    assert fit.is_fallback.all()
    assert not fit.is_main.any()


def test_one_network_and_given_ratios_agree():
    """With the ratios that the network itself finds, tying changes next to nothing."""
    rng = np.random.default_rng(13)
    options = NetworkOptions(reference_type="MST", reference_telescopes=(("MST", 4),))
    fit = fit_shards(options, [mixed_events(rng, 500)], TELESCOPES)
    first = np.array([0, 0, 0, 3, 3, 3, 6, 6])
    given = fit.theta - fit.theta[first]
    _, scales = tie_types(replace(fit, done=False), given, np.zeros((8, 8)), "MST")
    error = np.sqrt(np.diagonal(fit.covariance))
    np.testing.assert_allclose(scales.log_scale[0], fit.theta[0], atol=0.5 * error[0])
    np.testing.assert_allclose(scales.log_scale[2], fit.theta[6], atol=0.5 * error[6])


# -- types against muons ------------------------------------------------------------------------

KINDS = np.repeat(["LST", "MST", "SST"], [4, 14, 18])


def draw_types(rng, bias):
    """A network with 0.3 % per telescope and 0.3 % per type, and muons with 1 %."""
    covariance = 0.003**2 * (np.eye(36) + (KINDS[:, None] == KINDS))
    theta = rng.multivariate_normal(np.where(KINDS == "SST", bias, 0.0), covariance)
    return theta, covariance, rng.normal(0.0, 0.01, 36), np.full(36, 0.01**2)


def test_one_contrast_finds_a_type_that_is_off():
    """A bias of 2 % in the energies of one type: chi2 sees it less often than one contrast."""
    rng = np.random.default_rng(31)
    found, by_chi2 = [], []
    for _ in range(100):
        drawn = draw_types(rng, 0.02)
        compared = compare_types(*drawn, KINDS)
        found.append(compared.freed.tolist() == [False, False, True])
        by_chi2.append(combine_with_muons(*drawn, 10_000).p_value < 0.01)
    assert np.mean(found) > 0.6
    assert np.mean(by_chi2) < np.mean(found) - 0.2


def test_types_that_agree_are_left_alone():
    rng = np.random.default_rng(32)
    compared = [compare_types(*draw_types(rng, 0.0), KINDS) for _ in range(500)]
    assert np.mean([one.freed.any() for one in compared]) < 0.025
    p_value = np.concatenate([one.p_value for one in compared])
    assert np.mean(p_value < 0.1) == pytest.approx(0.1, abs=0.03)


def test_a_freed_type_has_its_scale_from_its_own_muons():
    theta, covariance, log_muon, variance = draw_types(np.random.default_rng(33), 0.05)
    compared = compare_types(theta, covariance, log_muon, variance, KINDS)
    held, free = (
        combine_with_muons(theta, one, log_muon, variance, 10_000)
        for one in (covariance, compared.covariance)
    )
    sst = KINDS == "SST"
    assert abs(np.mean(held.log_value[sst])) > 0.008
    assert abs(np.mean(free.log_value[sst])) < 3 * 0.01 / np.sqrt(18)
    np.testing.assert_allclose(np.diff(free.log_value[sst]), np.diff(theta[sst]), atol=0.02)


def test_one_type_has_nothing_to_compare_with():
    theta, covariance, log_muon, variance = draw_types(np.random.default_rng(34), 0.0)
    one = KINDS == "LST"
    compared = compare_types(
        theta[one], covariance[np.ix_(one, one)], log_muon[one], variance[one], KINDS[one]
    )
    assert np.isnan(compared.p_value).all()
    assert not compared.freed.any()


def test_a_given_telescope_without_value_costs_the_others_nothing():
    """Its covariance is NaN in the table: errors of the others stay numbers."""
    events = mixed_events(np.random.default_rng(41))
    options = NetworkOptions(reference_type="MST")
    given, covariance = relative(THROUGHPUT), 0.01**2 * np.eye(8)
    given[1] = covariance[1] = covariance[:, 1] = np.nan
    state = fit_stage(0, options, reduce_stage(0, options, events, None), None, TELESCOPES)
    state, _ = tie_types(state, given, covariance, "MST")
    state = fit_stage(1, options, reduce_stage(1, options, events, state), state)
    others = np.arange(8) != 1
    assert np.all(np.diagonal(state.covariance)[others] > 0)
    assert np.isnan(state.theta).tolist() == (~others).tolist()
    assert np.all(state.p_value >= 0)
