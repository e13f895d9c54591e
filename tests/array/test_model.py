from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibdask.array.model import (
    Telescopes,
    asymmetry,
    asymmetry_uncertainty,
    distance_asymmetry,
    find_pairs,
    log_ratio,
    pair_events,
)
from calibdask.array.network.model import (
    NetworkOptions,
    connected_components,
    gauge_inverse,
    laplacian,
    shrink_variance,
    solve_asymmetry_network,
    solve_network,
)
from calibdask.errors import ConfigError, CorruptedInput

# The order of telescopes in a real subarray file.
TEL_ID = np.array([30, 31, 1, 2, 5, 102, 6])
TEL_TYPE = np.array(["SST", "SST", "LST", "LST", "MST", "MST", "MST"])
POSITION_M = np.array(
    [[0, 0, 0], [0, 450, 0], [0, 0, 16], [60, 0, 16], [0, 0, 10], [0, 200, 10], [0, 451, 10.0]]
)
RADIUS_M = np.array([225, 225, 125, 125, 125, 125, 125.0])


class TestPairs:
    def test_real_order(self):
        first, second = find_pairs(TEL_ID, TEL_TYPE, POSITION_M, RADIUS_M)
        # 5-6 are 451 m apart, 6-102 are 251 m: both too far; 30-31 are exactly at the limit.
        assert list(zip(first, second, strict=True)) == [(1, 2), (5, 102), (30, 31)]

    def test_distance_is_three_dimensional(self):
        position = np.array([[0, 0, 0], [0, 0, 251.0]])
        assert len(find_pairs([1, 2], ["LST", "LST"], position, [125, 125])[0]) == 0
        assert len(find_pairs([1, 2], ["LST", "LST"], position, [125, 126])[0]) == 1

    def test_telescopes_of_different_types_on_request(self):
        position = [[0, 0, 0], [251, 0, 0], [0, 100, 0]]
        one, two = find_pairs([3, 1, 2], ["MST", "LST", "MST"], position, [125, 126, 1], mixed=True)
        assert list(zip(one, two, strict=True)) == [(1, 3), (2, 3)]
        one, two = find_pairs([3, 1, 2], ["MST", "LST", "MST"], position, [125, 126, 1])
        assert list(zip(one, two, strict=True)) == [(2, 3)]

    def test_refusals(self):
        position = np.zeros((2, 3))
        with pytest.raises(CorruptedInput, match="telescope 4 is listed twice"):
            find_pairs([4, 4], ["LST", "LST"], position, [1, 1])
        with pytest.raises(CorruptedInput, match="telescope 2 has no finite position"):
            find_pairs([1, 2], ["LST"] * 2, [[0, 0, 0], [0, np.nan, 0]], [1, 1])
        for radius in (-1.0, np.nan):
            with pytest.raises(ConfigError, match="telescope 2 is not a distance"):
                find_pairs([1, 2], ["LST"] * 2, position, [1, radius])
        with pytest.raises(CorruptedInput, match="between 0 and 65535"):
            Telescopes(np.array([1, 70000]), np.array(["LST", "LST"]))


class TestPairEvents:
    @given(data=st.data())
    def test_against_all_combinations(self, data):
        seen = data.draw(
            st.lists(
                st.tuples(st.integers(0, 4), st.sampled_from(TEL_ID.tolist())),
                unique=True,
                max_size=25,
            )
        )
        possible = [(i, j) for i in TEL_ID.tolist() for j in TEL_ID.tolist() if i < j]
        pairs = data.draw(st.lists(st.sampled_from(possible), unique=True))
        expected = sorted(
            (event, (tel, other))
            for event, tel in seen
            for event_2, other in seen
            if event == event_2 and (tel, other) in pairs
        )
        event = np.array([s[0] for s in seen], np.int64)
        tel_id = np.array([s[1] for s in seen], np.int64)
        row_1, row_2 = pair_events(event, tel_id, [p[0] for p in pairs], [p[1] for p in pairs])
        found = [(event[a], (tel_id[a], tel_id[b])) for a, b in zip(row_1, row_2, strict=True)]
        assert found == expected
        np.testing.assert_array_equal(event[row_1], event[row_2])

    def test_unsorted_telescopes_keep_their_values(self):
        """The peer sorts the ids of a pair and leaves the values: half of its signs flip."""
        value = {30: 1.0, 31: 2.0, 1: 3.0, 2: 4.0, 5: 5.0, 102: 6.0, 6: 7.0}
        x = np.array([value[t] for t in TEL_ID.tolist()])
        pairs = find_pairs(TEL_ID, TEL_TYPE, np.zeros((7, 3)), RADIUS_M)
        row_1, row_2 = pair_events(np.zeros(7, np.int64), TEL_ID, *pairs)
        assert len(row_1) == 5
        for a, b in zip(row_1, row_2, strict=True):
            first, second = int(TEL_ID[a]), int(TEL_ID[b])
            assert first < second
            expected = (value[first] - value[second]) / (value[first] + value[second])
            assert asymmetry(x[a], x[b]) == expected

    def test_the_same_row_twice_is_refused(self):
        with pytest.raises(CorruptedInput, match=r"rows 0 and 2 are the same telescope \(1\)"):
            pair_events([7, 7, 7], [1, 2, 1], [1], [2])

    def test_nothing(self):
        assert [len(rows) for rows in pair_events([], [], [1], [2])] == [0, 0]
        assert [len(rows) for rows in pair_events([0, 0], [1, 2], [], [])] == [0, 0]
        assert [len(rows) for rows in pair_events([0, 0], [8, 9], [1], [2])] == [0, 0]

    def test_refusals(self):
        with pytest.raises(ValueError, match="tel_id_1 < tel_id_2"):
            pair_events([0, 0], [1, 2], [2], [1])
        with pytest.raises(ValueError, match="negative"):
            pair_events([-1, 0], [1, 2], [1], [2])


class TestObservables:
    @given(x_1=st.floats(1e-3, 1e3), x_2=st.floats(1e-3, 1e3))
    def test_asymmetry_and_log_ratio_are_one_quantity(self, x_1, x_2):
        assert asymmetry(x_1, x_2) == pytest.approx(np.tanh(0.5 * log_ratio(x_1, x_2)), abs=1e-13)
        assert asymmetry(x_1, x_2) == -asymmetry(x_2, x_1)

    def test_uncertainty_is_the_linear_propagation(self):
        x_1, x_2, sigma_1, sigma_2, step = 1.3, 0.7, 0.2, 0.1, 1e-6
        by_1 = (asymmetry(x_1 + step, x_2) - asymmetry(x_1 - step, x_2)) / (2 * step)
        by_2 = (asymmetry(x_1, x_2 + step) - asymmetry(x_1, x_2 - step)) / (2 * step)
        expected = np.hypot(by_1 * sigma_1, by_2 * sigma_2)
        assert asymmetry_uncertainty(x_1, x_2, sigma_1, sigma_2) == pytest.approx(expected)
        assert np.isnan(asymmetry_uncertainty(x_1, x_2, np.nan, sigma_2))

    def test_what_is_not_a_number(self):
        x = np.array([0.0, -1.0, np.nan, np.inf])
        for other in (np.ones(4), x):
            assert np.isnan(log_ratio(x, other)).all()
            assert np.isnan(log_ratio(other, x)).all()
        assert np.isnan(asymmetry(0.0, 0.0))
        assert np.isnan(distance_asymmetry(0.0, 0.0))

    def test_distance_asymmetry(self):
        np.testing.assert_allclose(distance_asymmetry([90, 110], [110, 90]), 0.1)


class TestNetwork:
    FIRST = np.array([0, 0, 1, 2, 0])
    SECOND = np.array([1, 2, 2, 3, 3])

    @given(edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
    def test_components(self, edges):
        edges = [(a, b) for a, b in edges if a != b]
        found = connected_components(
            10,
            np.array([e[0] for e in edges], np.int64),
            np.array([e[1] for e in edges], np.int64),
        )
        groups = [{node} for node in range(10)]
        for a, b in edges:
            joined = next(g for g in groups if a in g) | next(g for g in groups if b in g)
            groups = [g for g in groups if not g & joined] + [joined]
        expected = sorted((sorted(g) for g in groups if len(g) > 1), key=lambda g: g[0])
        assert [np.flatnonzero(found == c).tolist() for c in range(len(expected))] == expected
        assert np.sum(found == -1) == sum(len(g) == 1 for g in groups)

    @pytest.mark.parametrize("gauge", [[0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4]])
    def test_gauge_inverse(self, gauge):
        normal = laplacian(4, self.FIRST, self.SECOND, np.array([1.0, 2.0, 3.0, 1e6, 5.0]))
        inverse = gauge_inverse(normal, np.array(gauge))
        # A reflexive generalised inverse that gives the gauge condition.
        np.testing.assert_allclose(inverse @ normal @ inverse, inverse, atol=1e-9)
        np.testing.assert_allclose(np.array(gauge) @ inverse, 0, atol=1e-12)

    def test_reference_has_no_error_at_all(self):
        """The peer reports the default step of a fitter, 0.01, for the fixed telescope."""
        normal = laplacian(4, self.FIRST, self.SECOND, np.ones(5))
        inverse = gauge_inverse(normal, np.array([0, 0, 1.0, 0]))
        assert np.all(inverse[2] == 0)
        assert np.all(inverse[:, 2] == 0)

    def test_disconnected_or_broken_weights_have_no_inverse(self):
        unit = np.array([1.0, 0, 0, 0])
        two_parts = laplacian(4, np.array([0, 2]), np.array([1, 3]), np.ones(2))
        assert gauge_inverse(two_parts, unit) is None
        broken = np.array([1, 1, 1, np.nan, 1])
        assert gauge_inverse(laplacian(4, self.FIRST, self.SECOND, broken), unit) is None
        theta, covariance = solve_network(self.FIRST, self.SECOND, np.ones(5), broken, unit)
        assert np.isnan(theta).all()
        assert np.isnan(covariance).all()

    @pytest.mark.parametrize("gauge", [[0, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]])
    def test_against_dense_least_squares(self, gauge):
        rng = np.random.default_rng(3)
        gauge = np.array(gauge, float)
        centre, weight = rng.normal(size=5), rng.uniform(1, 9, 5)
        design = np.zeros((6, 4))
        design[np.arange(5), self.FIRST] = np.sqrt(weight)
        design[np.arange(5), self.SECOND] = -np.sqrt(weight)
        design[5] = gauge * 1e6  # the gauge as a measurement of high weight
        data = np.append(np.sqrt(weight) * centre, 0)
        expected = np.linalg.lstsq(design, data)[0]
        theta, covariance = solve_network(self.FIRST, self.SECOND, centre, weight, gauge)
        np.testing.assert_allclose(theta, expected, atol=1e-9)
        np.testing.assert_allclose(
            covariance, np.linalg.inv(design.T @ design), rtol=1e-5, atol=1e-11
        )

    def test_asymmetry_network_against_a_general_minimiser(self):
        from scipy.optimize import minimize

        rng = np.random.default_rng(4)
        c = np.array([1.0, 0.7, 1.3, 0.9])
        mean = asymmetry(c[self.FIRST], c[self.SECOND]) + rng.normal(0, 0.02, 5)
        weight = rng.uniform(500, 5000, 5)

        def chi2(free):
            trial = np.append(1.0, free)
            return np.sum(weight * (mean - asymmetry(trial[self.FIRST], trial[self.SECOND])) ** 2)

        gauge = np.array([1.0, 0, 0, 0])
        theta, covariance = solve_asymmetry_network(self.FIRST, self.SECOND, mean, weight, gauge)
        best = minimize(
            chi2, np.ones(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
        )
        np.testing.assert_allclose(np.exp(theta[1:]), best.x, atol=1e-6)

        # Minuit's errors: twice the inverse of the Hessian of chi2 in c.
        step = 1e-3
        unit = np.eye(3) * step
        hessian = [
            [
                (
                    chi2(best.x + a + b)
                    - chi2(best.x + a - b)
                    - chi2(best.x - a + b)
                    + chi2(best.x - a - b)
                )
                / (4 * step**2)
                for b in unit
            ]
            for a in unit
        ]
        expected = np.sqrt(np.diagonal(2 * np.linalg.inv(hessian)))
        found = np.exp(theta[1:]) * np.sqrt(np.diagonal(covariance)[1:])
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_asymmetry_network_far_from_the_start(self):
        c = np.array([1.0, 30.0, 0.01, 5.0])
        mean = asymmetry(c[self.FIRST], c[self.SECOND])
        gauge = np.array([1.0, 0, 0, 0])
        theta, _ = solve_asymmetry_network(self.FIRST, self.SECOND, mean, np.ones(5), gauge)
        np.testing.assert_allclose(np.exp(theta), c, rtol=1e-6)


def test_shrunk_variance_lies_between_own_and_pooled():
    squares, freedom = np.array([1.0, 400.0, 8.0]), np.array([2.0, 200.0, 4.0])
    group = np.array([0, 0, 1])
    found = shrink_variance(squares, freedom, group, 20.0)
    pooled = 401.0 / 202.0
    assert found[0] == pytest.approx((20 * pooled + 1) / 22)
    assert 0.5 < found[0] < pooled < found[1] < 2.0
    assert found[2] == pytest.approx(2.0)  # alone in its group: its own


class TestOptions:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"estimator": "mean"}, "estimator: 'mean' is not one of log-mean"),
            ({"normalisation": "none"}, "normalisation: 'none' is not one of"),
            ({"n_min": 1}, "n_min: 1 is below 2"),
            ({"clip_sigma": 0.5}, "clip_sigma: 0.5"),
            ({"clip_sigma": float("nan")}, "clip_sigma: nan"),
            ({"throughput_normalisation": (("LST", 0.0),)}, "throughput_normalisation.LST: 0.0"),
            ({"throughput_normalisation": (("LST", float("inf")),)}, "not a positive number"),
            ({"reference_telescopes": (("LST", 1), ("LST", 2))}, "LST given more than once"),
        ],
    )
    def test_refusals_name_the_option(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            NetworkOptions(**wrong)
