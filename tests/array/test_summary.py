from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.array.model import Telescopes, pair_types
from calibdask.array.network.coefficients import coefficients
from calibdask.array.network.fit import fit_stage
from calibdask.array.network.model import NetworkOptions, Observable
from calibdask.array.network.pairs import PairEvents, PairSummary, summarise_pairs
from calibdask.array.network.scores import ScoreSummary, summarise_scores
from calibdask.array.network.stages import STAGES, reduce_stage
from calibdask.array.network.state import NetworkFit
from calibdask.errors import ConfigError, CorruptedInput
from calibdask.flags import Flag
from tests.array.toys import draw_events, fit_shards, join_events, take
from tests.laws import assert_same, check_summary_laws

SHARED = Path(
    os.environ.get(
        "CALIBDASK_SHARED_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    )
)
ESTIMATORS = sorted(STAGES)
NONE = PairEvents(
    np.zeros(0, np.int64),
    np.zeros(0, "U3"),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros(0),
    np.zeros(0),
)
LST = np.array([1.0, 0.8, 1.2, 0.9])
MST = np.array([1.0, 1.1, 0.7])


def two_types(seed=1, n_events=200):
    rng = np.random.default_rng(seed)
    return join_events(
        draw_events(rng, LST, n_events, keep=0.6),
        draw_events(rng, MST, n_events, keep=0.6, tel_type="MST", first_id=5),
    )


def by_telescope(fit):
    """Row of the main table of each telescope."""
    table = coefficients(fit)["inter_calibration"]
    return {
        int(tel_id): {name: column[k] for name, column in table.items()}
        for k, tel_id in enumerate(table["tel_id"])
    }


class TestLaws:
    EVENTS = take(two_types(), np.arange(0, 250))
    FIT = fit_shards(NetworkOptions("log-clipped", clip_sigma=2.0), [two_types()])

    KINDS: ClassVar = {
        "moments": (summarise_pairs, PairSummary.identity()),
        "histogram": (
            lambda e: summarise_pairs(e, histogram=True),
            PairSummary.identity(histogram=True),
        ),
        "clipped": (lambda e: summarise_pairs(e, clip=TestLaws.FIT), PairSummary.identity()),
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
        assert_same(summarise(NONE), identity, "the summary of no events")

    def test_order_of_rows_does_not_matter(self):
        shuffled = np.random.default_rng(5).permutation(len(self.EVENTS.event))
        parts = [self.EVENTS, take(self.EVENTS, shuffled)]
        for summarise in (summarise_pairs, lambda e: summarise_scores(self.FIT, e)):
            left, right = (summarise(part).to_arrays() for part in parts)
            for name in left:
                if left[name].dtype.kind == "f":
                    np.testing.assert_allclose(left[name], right[name], rtol=1e-9, atol=1e-9)
                else:
                    np.testing.assert_array_equal(left[name], right[name])

    def test_what_does_not_merge(self):
        with pytest.raises(ValueError, match="histogram"):
            summarise_pairs(NONE).merge(summarise_pairs(NONE, histogram=True))
        another = fit_shards(NetworkOptions(), [take(two_types(), two_types().tel_type == "LST")])
        with pytest.raises(ValueError, match="different fits"):
            ScoreSummary.identity(self.FIT).merge(ScoreSummary.identity(another))
        other = replace(self.EVENTS, tel_type=np.full(250, "SST"))
        with pytest.raises(CorruptedInput, match="LST in one input and SST in another"):
            summarise_pairs(self.EVENTS).merge(summarise_pairs(other))


class TestSummaries:
    def test_moments_of_each_pair(self):
        events = two_types()
        found = summarise_pairs(events)
        for k, (one, two) in enumerate(found.pairs):
            rows = (events.tel_id_1 == one) & (events.tel_id_2 == two)
            x_1, x_2 = events.x_1[rows], events.x_2[rows]
            a = (x_1 - x_2) / (x_1 + x_2)
            assert found.difference.n[k] == rows.sum()
            assert found.difference.mean[k] == pytest.approx(np.mean(np.log(x_1 / x_2)), abs=1e-13)
            assert found.asymmetry.mean[k] == pytest.approx(np.mean(a), abs=1e-13)
            assert found.asymmetry.variance()[k] == pytest.approx(np.var(a, ddof=1))
            assert found.tel_type[k] == ("LST" if one < 5 else "MST")

    def test_a_swapped_row_swaps_its_values_too(self):
        events = two_types()
        swapped = replace(
            events,
            tel_id_1=events.tel_id_2,
            tel_id_2=events.tel_id_1,
            x_1=events.x_2,
            x_2=events.x_1,
        )
        assert_same(summarise_pairs(swapped), summarise_pairs(events), "swapping telescopes")

    def test_bytes_and_str_are_the_same_types(self):
        events = two_types()
        as_bytes = replace(events, tel_type=events.tel_type.astype("S"))
        assert_same(summarise_pairs(as_bytes), summarise_pairs(events), "bytes for str")

    def test_scores_are_the_derivative_of_the_fit(self):
        """Brute force: event by event, the half of the gradient of chi2, without the correction."""
        events = take(two_types(n_events=40), slice(0, 60))
        fit = fit_shards(NetworkOptions(), [events])
        uncorrected = replace(fit, covariance_independent=np.zeros_like(fit.covariance))
        n_tel = len(fit.tel_id)
        number = {int(tel_id): k for k, tel_id in enumerate(fit.tel_id)}
        expected = np.zeros((n_tel, n_tel))
        for event in np.unique(events.event):
            score = np.zeros(n_tel)
            for k in np.flatnonzero(events.event == event):
                i, j = number[int(events.tel_id_1[k])], number[int(events.tel_id_2[k])]
                pair = np.flatnonzero((fit.first == i) & (fit.second == j))[0]
                residual = np.log(events.x_1[k] / events.x_2[k]) - (fit.theta[i] - fit.theta[j])
                pull = fit.used[pair] * fit.weight[pair] / fit.n[pair] * residual
                score[i] += pull
                score[j] -= pull
            expected += np.outer(score, score)
        np.testing.assert_allclose(
            summarise_scores(uncorrected, events).outer, expected, rtol=1e-9, atol=1e-9
        )

    def test_blocks_of_events_do_not_show(self, monkeypatch):
        events = two_types()
        fit = fit_shards(NetworkOptions(), [events])
        whole = summarise_scores(fit, events).to_arrays()
        monkeypatch.setattr("calibdask.array.network.scores.EVENTS_PER_BLOCK", 7)
        for name, values in summarise_scores(fit, events).to_arrays().items():
            np.testing.assert_allclose(values, whole[name], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("tel_id_1", 2, "row 1: telescopes 2 and 2 are not two different ids"),
            ("tel_id_1", -1, "not two different ids between 0 and 65535"),
            ("tel_id_2", 70000, "not two different ids between 0 and 65535"),
            ("tel_type", "MST", "row 1: telescopes 1 and 2 are MST, but LST in row 0"),
        ],
    )
    def test_rows_that_cannot_be(self, column, value, message):
        events = PairEvents(
            np.array([0, 1]),
            np.array(["LST", "LST"]),
            np.array([1, 1]),
            np.array([2, 2]),
            np.ones(2),
            np.ones(2),
        )
        getattr(events, column)[1] = value
        with pytest.raises(CorruptedInput, match=message):
            summarise_pairs(events)


class TestFit:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_truth_without_bias(self, estimator):
        rng = np.random.default_rng(2)
        events = draw_events(rng, LST, 4000, keep=0.6)
        options = NetworkOptions(
            estimator,
            reference_telescopes=(("LST", 3),),
            throughput_normalisation=(("LST", 1.2),),
        )
        rows = by_telescope(fit_shards(options, [events]))
        for k, c in enumerate(LST):
            row = rows[k + 1]
            assert row["value"] == pytest.approx(c, abs=max(4 * row["error"], 1e-12))
            assert row["flags"] == ("R" if k == 2 else "")

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_shards_give_what_the_whole_gives(self, estimator):
        events = two_types()
        shards = [take(events, events.event % 3 == k) for k in range(3)]
        options = NetworkOptions(estimator)
        whole, merged = (
            coefficients(fit_shards(options, some)) for some in ([events], [*shards, NONE])
        )
        for table, columns in whole.items():
            for name, values in columns.items():
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(
                        merged[table][name], values, rtol=1e-9, atol=1e-7, err_msg=name
                    )
                else:
                    np.testing.assert_array_equal(merged[table][name], values, err_msg=name)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_states_store(self, estimator, tmp_path):
        options = NetworkOptions(estimator)
        events = two_types()
        first = fit_stage(0, options, reduce_stage(0, options, events, None), None)
        for fit in (first, fit_shards(options, [events])):
            np.savez(tmp_path / "state.npz", allow_pickle=False, **fit.to_arrays())
            with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
                again = NetworkFit.from_arrays(dict(stored))
            assert_same(again, fit, "storing a state")
            assert [type(getattr(again, f.name)) for f in fields(fit)] == [
                type(getattr(fit, f.name)) for f in fields(fit)
            ]
        assert not first.done
        assert fit.done

    def test_weighted_mean(self):
        events = two_types()
        options = NetworkOptions(
            normalisation="weighted-mean", throughput_normalisation=(("LST", 0.5),)
        )
        fit = fit_shards(options, [events])
        reference = fit_shards(NetworkOptions(), [events])
        weight = np.zeros(7)
        np.add.at(weight, fit.first, fit.weight)
        np.add.at(weight, fit.second, fit.weight)
        for tel_type, scale in (("LST", 0.5), ("MST", 1.0)):
            of = fit.tel_type == tel_type
            assert np.average(fit.theta[of], weights=weight[of]) == pytest.approx(0, abs=1e-12)
            # Only the scale differs from a fit with a reference.
            differences = fit.theta[of] - reference.theta[of]
            np.testing.assert_allclose(differences, differences[0], atol=1e-12)
            values = np.array([r["value"] for r in by_telescope(fit).values()])[of]
            np.testing.assert_allclose(values, scale * np.exp(fit.theta[of]))
        tables = coefficients(fit)
        assert list(tables["inter_calibration_components"]["reference_tel_id"]) == [-1, -1]
        assert not tables["inter_calibration"]["flags"].astype(bool).any()
        # No telescope is free of error, and their errors are smaller than against a reference.
        error = tables["inter_calibration"]["error"]
        assert np.all(error > 0)

    def test_tables_agree_with_each_other(self):
        fit = fit_shards(
            NetworkOptions(reference_telescopes=(("LST", 1), ("MST", 5))), [two_types()]
        )
        tables = coefficients(fit)
        telescopes, pairs = tables["inter_calibration"], tables["inter_calibration_pairs"]
        components = tables["inter_calibration_components"]
        covariance = tables["inter_calibration_covariance"]
        assert list(components["n_telescopes"]) == [4, 3]
        assert list(components["n_pairs"]) == [6, 3]
        assert np.all((components["ndf"] >= 1) & (components["ndf"] <= [3, 1]))
        assert np.all((components["p_value"] > 0) & (components["p_value"] < 1))
        assert len(covariance["covariance"]) == 4**2 + 3**2
        diagonal = covariance["tel_id_1"] == covariance["tel_id_2"]
        np.testing.assert_allclose(
            covariance["covariance"][diagonal], telescopes["error"] ** 2, atol=1e-15
        )
        np.testing.assert_allclose(
            pairs["residual"], pairs["log_ratio"] - pairs["model_log_ratio"], atol=1e-15
        )
        assert np.all(np.abs(pairs["pull"]) < 5)
        for table in tables.values():
            assert len({len(column) for column in table.values()}) == 1

    @pytest.mark.parametrize("estimator", ["log-mean", "log-median", "log-clipped"])
    def test_influence_of_a_few_events_is_the_influence_function(self, estimator):
        """Add 0.2 % of events at d: the centre moves by 0.002 IF(d).

        Clipped at 1.5 sigma, where the move of the bounds with the median is a third of the effect.
        """
        from scipy.special import ndtri

        options = NetworkOptions(estimator, clip_sigma=1.5)
        d = 0.2 * ndtri((np.arange(100_000) + 0.5) / 100_000)

        def state(values):
            n = len(values)
            one = np.ones(n, np.int64)
            events = PairEvents(
                np.arange(n), np.full(n, "LST"), one, 2 * one, np.exp(values), np.ones(n)
            )
            return fit_shards(options, [events])

        fit = state(d)
        for at in (-0.5, -0.25, -0.1, 0.15, 0.28, 0.4):
            moved = (state(np.append(d, np.full(200, at))).centre[0] - fit.centre[0]) / 0.002
            inside = fit.low[0] <= at <= fit.high[0]
            influence = fit.slope[0] * at * inside + fit.jump[0] * np.sign(at)
            assert moved == pytest.approx(influence, rel=0.05), at
        values = fit.slope[0] * d * ((d >= fit.low[0]) & (d <= fit.high[0]))
        values += fit.jump[0] * np.sign(d)
        assert fit.variance[0] == pytest.approx(np.var(values), rel=0.02)


class TestFaultsOfThePeer:
    """Rows of "where the peer goes wrong" that concern the estimate, by number."""

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("poison", ["one event", "zero scatter", "nan", "negative", "infinite"])
    def test_2_and_3_one_bad_pair_harms_nobody(self, estimator, poison):
        good = two_types()
        n_bad = 1 if poison == "one event" else 5
        x_1 = {"nan": np.nan, "negative": -1.0, "infinite": np.inf}.get(poison, 3.0)
        bad = PairEvents(
            np.arange(n_bad),
            np.full(n_bad, "MST"),
            np.full(n_bad, 5),
            np.full(n_bad, 9),
            np.full(n_bad, x_1),
            np.ones(n_bad),
        )
        options = NetworkOptions(estimator, reference_telescopes=(("LST", 1), ("MST", 5)))
        clean = by_telescope(fit_shards(options, [good]))
        fit = fit_shards(options, [join_events(good, bad)])
        found = by_telescope(fit)
        for tel_id, row in clean.items():
            assert np.isfinite(row["value"])
            assert found[tel_id]["value"] == row["value"]
            assert found[tel_id]["error"] == row["error"]
        flag = {"one event": "S", "zero scatter": "U"}.get(poison, "SI")
        assert set(found[9]["flags"]) == {"N", *flag}
        assert np.isnan(found[9]["value"])
        assert set(found[5]["flags"]) == {"R", *flag}
        pairs = coefficients(fit)["inter_calibration_pairs"]
        dropped = pairs["tel_id_2"] == 9
        assert not pairs["used"][dropped].any()
        assert set(pairs["flags"][dropped][0]) == set(flag)
        assert pairs["n_invalid"][dropped][0] == (5 if "I" in flag else 0)

    def test_3_a_bad_row_leaves_the_rest_of_its_pair(self):
        events = draw_events(np.random.default_rng(8), LST, 100)
        broken = replace(events, x_2=np.where(np.arange(600) == 17, np.nan, events.x_2))
        fit = fit_shards(NetworkOptions(), [broken])
        without = fit_shards(NetworkOptions(), [take(events, np.arange(600) != 17)])
        np.testing.assert_array_equal(fit.theta, without.theta)
        np.testing.assert_array_equal(fit.covariance, without.covariance)
        flags = coefficients(fit)["inter_calibration"]["flags"]
        assert sum("I" in f for f in flags) == 2

    def test_4_reference_without_data_or_type_without_configuration(self):
        telescopes = Telescopes(
            np.array([5, 6, 7, 99, 1, 2, 3, 4]), np.array(["MST"] * 3 + ["LST"] * 5)
        )
        options = NetworkOptions(reference_telescopes=(("LST", 99), ("SST", 30)))
        asked = {"LST": "F", "MST": ""}  # nobody asked for a reference of the MSTs
        fit = fit_shards(options, [two_types()], telescopes)
        rows = by_telescope(fit)
        assert list(rows) == [1, 2, 3, 4, 99, 5, 6, 7]
        assert rows[99]["flags"] == "N"
        assert np.isnan(rows[99]["value"])
        assert rows[99]["component"] == -1
        for tel_type, ids in (("LST", [1, 2, 3, 4]), ("MST", [5, 6, 7])):
            flags = [rows[k]["flags"] for k in ids]
            assert all(("F" in f) == bool(asked[tel_type]) for f in flags), tel_type
            assert sum("R" in f for f in flags) == 1
            weight = np.bincount(fit.first, fit.weight, 8) + np.bincount(fit.second, fit.weight, 8)
            heaviest = max(ids, key=lambda k: weight[list(fit.tel_id).index(k)])
            assert rows[heaviest]["flags"] == f"R{asked[tel_type]}"
            assert rows[heaviest]["value"] == 1.0
        assert list(coefficients(fit)["inter_calibration_components"]["flags"]) == ["F", ""]

    def test_4_fallback_takes_the_lowest_id_among_equals(self):
        one = draw_events(np.random.default_rng(9), LST[:2], 50)
        asked = NetworkOptions(reference_telescopes=(("LST", 99),))
        assert by_telescope(fit_shards(asked, [one]))[1]["flags"] == "RF"
        assert by_telescope(fit_shards(NetworkOptions(), [one]))[1]["flags"] == "R"

    def test_5_parts_without_a_common_pair(self):
        rng = np.random.default_rng(10)
        main = draw_events(rng, LST, 100)
        island = draw_events(rng, MST[:2], 100, first_id=11)
        options = NetworkOptions(reference_telescopes=(("LST", 12),))
        fit = fit_shards(options, [join_events(main, island)])
        rows = by_telescope(fit)
        # The reference's part is the main one, small as it is.
        assert rows[12]["flags"] == "R"
        assert rows[11]["flags"] == ""
        assert [rows[k]["flags"].strip("R") for k in (1, 2, 3, 4)] == ["FD"] * 4
        assert rows[1]["component"] != rows[11]["component"]
        tables = coefficients(fit)
        assert list(tables["inter_calibration_components"]["flags"]) == ["FD", ""]
        # No covariance is claimed between the parts.
        assert len(tables["inter_calibration_covariance"]["covariance"]) == 4**2 + 2**2
        alone = by_telescope(fit_shards(NetworkOptions(), [main]))
        assert rows[2]["value"] == pytest.approx(alone[2]["value"], rel=1e-12)

    def test_9_no_attenuation(self):
        """E[tanh] shrinks the fitted log ratio, by 2 % at a pair scatter of 0.3; E[ln] does not."""
        truth = np.log(1.5)
        rng = np.random.default_rng(12)
        noise = rng.normal(0.0, 0.3, 200_000)
        d = truth + np.concatenate([noise, -noise])
        events = PairEvents(
            np.arange(len(d)),
            np.full(len(d), "LST"),
            np.full(len(d), 1),
            np.full(len(d), 2),
            np.exp(d),
            np.ones(len(d)),
        )
        shrunk = {}
        for estimator in ESTIMATORS:
            options = NetworkOptions(estimator, reference_telescopes=(("LST", 2),))
            shrunk[estimator] = fit_shards(options, [events]).theta[0] / truth
        z, weight = np.polynomial.hermite_e.hermegauss(40)
        expected = np.average(np.tanh(0.5 * (truth + 0.3 * z)), weights=weight)
        assert shrunk["asymmetry"] == pytest.approx(2 * np.arctanh(expected) / truth, abs=1e-3)
        assert shrunk["asymmetry"] < 0.985
        for estimator in ("log-mean", "log-median", "log-clipped"):
            assert shrunk[estimator] == pytest.approx(1.0, abs=1e-3)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_10_the_reference_has_no_error(self, estimator):
        options = NetworkOptions(
            estimator,
            reference_telescopes=(("LST", 2), ("MST", 6)),
            throughput_normalisation=(("LST", 0.3),),
        )
        rows = by_telescope(fit_shards(options, [two_types()]))
        assert (rows[2]["value"], rows[2]["error"], rows[2]["flags"]) == (0.3, 0.0, "R")
        assert (rows[6]["value"], rows[6]["error"], rows[6]["flags"]) == (1.0, 0.0, "R")
        assert all(rows[k]["error"] > 0 for k in (1, 3, 4, 5, 7))


class TestFewEvents:
    def test_no_error_from_a_handful_of_events(self):
        rng = np.random.default_rng(13)
        many = draw_events(rng, LST[:3], 100)
        few = take(draw_events(rng, LST, 6), slice(None))
        few = take(few, few.tel_id_2 == 4)
        options = NetworkOptions(reference_telescopes=(("LST", 1),))
        rows = by_telescope(fit_shards(options, [join_events(many, few)]))
        assert rows[4]["flags"] == "B"
        assert np.isnan(rows[4]["error"])
        assert rows[4]["error_independent"] > 0
        assert rows[2]["flags"] == ""
        # Everything is relative to the reference: if that is badly known, so is the rest.
        options = NetworkOptions(reference_telescopes=(("LST", 4),))
        fit = fit_shards(options, [join_events(many, few)])
        assert [r["flags"] for r in by_telescope(fit).values()] == ["B", "B", "B", "RB"]
        assert np.isnan(coefficients(fit)["inter_calibration_covariance"]["covariance"]).all()

    def test_n_min(self):
        events = two_types()
        n = summarise_pairs(events).difference.n
        limit = int(np.sort(n)[1])
        fit = fit_shards(NetworkOptions(n_min=limit), [events])
        assert sum(~fit.used) == 1
        assert fit.pair_flags[~fit.used][0] == "S"
        rows = by_telescope(fit)
        assert sum("S" in r["flags"] for r in rows.values()) == 2

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_no_events_at_all(self, estimator):
        telescopes = Telescopes(np.array([1, 2]), np.array(["LST", "LST"]))
        for layout, n in ((telescopes, 2), (None, 0)):
            tables = coefficients(fit_shards(NetworkOptions(estimator), [NONE], layout))
            assert list(tables["inter_calibration"]["flags"]) == ["N"] * n
            assert all(len(c) == 0 for c in tables["inter_calibration_pairs"].values())

    @pytest.mark.parametrize("estimator", ["log-median", "log-clipped"])
    def test_scatter_below_a_bin_is_refused(self, estimator):
        rng = np.random.default_rng(14)
        events = draw_events(rng, LST, 50, sigma=0.001)
        rows = by_telescope(fit_shards(NetworkOptions(estimator), [events]))
        assert all(r["flags"] == "NU" for r in rows.values())

    def test_median_outside_the_histogram_is_refused(self):
        rng = np.random.default_rng(15)
        events = draw_events(rng, np.array([1.0, 0.9, 9.0]), 50)
        rows = by_telescope(fit_shards(NetworkOptions("log-median"), [events]))
        assert rows[3]["flags"] == "NU"
        assert np.isfinite(rows[2]["value"])


class TestRefusals:
    def test_stages(self):
        options = NetworkOptions()
        summary = reduce_stage(0, options, two_types(), None)
        fit = fit_stage(0, options, summary, None)
        with pytest.raises(ValueError, match="no stage 2"):
            reduce_stage(2, options, two_types(), fit)
        with pytest.raises(ValueError, match="state of the stage before"):
            reduce_stage(1, options, two_types(), None)
        with pytest.raises(ValueError, match="scores do not belong"):
            fit_stage(0, options, ScoreSummary.identity(fit), None)
        fewer = ScoreSummary.identity(replace(fit, tel_id=fit.tel_id[1:]))
        with pytest.raises(ValueError, match="other telescopes"):
            fit_stage(1, options, fewer, fit)
        with pytest.raises(ValueError, match="further stages"):
            coefficients(fit)

    def test_telescopes_that_do_not_belong(self):
        options = NetworkOptions()
        summary = reduce_stage(0, options, two_types(), None)
        few = Telescopes(np.array([1, 2]), np.array(["LST", "LST"]))
        with pytest.raises(
            CorruptedInput, match=r"telescope 3 has .* LST, but .* no telescope at all"
        ):
            fit_stage(0, options, summary, None, few)
        other = Telescopes(np.arange(1, 8), np.array(["LST"] * 4 + ["SST"] * 3))
        with pytest.raises(CorruptedInput, match="but the subarray has it as SST"):
            fit_stage(0, options, summary, None, other)


def test_every_flag_is_declared():
    used = set()
    options = NetworkOptions(reference_telescopes=(("LST", 1),))
    rng = np.random.default_rng(16)
    island = draw_events(rng, LST[:2], 5, first_id=11)
    for tables in (
        coefficients(fit_shards(options, [join_events(two_types(), island)])),
        coefficients(fit_shards(options, [NONE], Telescopes(np.array([1]), np.array(["LST"])))),
    ):
        for table in tables.values():
            used |= set("".join(table.get("flags", [])))
    assert {"R", "F", "D", "N", "B"} <= used <= {flag.letter for flag in Flag}


@pytest.fixture(scope="module")
def peer():
    folder = SHARED / "array" / "peer_dl2_small"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {SHARED}: set CALIBDASK_SHARED_DATA")
    import tables

    rows = []
    for path in sorted((folder / "easym").glob("*.h5")):
        with tables.open_file(path) as file:
            rows.append(file.root.energy_asymmetry.events[:])
    with tables.open_file(folder / "inter_e.h5") as file:
        result = file.root.dl2.monitoring.subarray.inter_calibration[:]
    return np.concatenate(rows), {int(r["tel_id"]): r for r in result}


@pytest.fixture(scope="module")
def peer_events(peer):
    rows = peer[0]
    keys = np.stack([rows["obs_id"].astype(np.int64), rows["event_id"]], axis=1)
    event = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    energy = "RandomForestRegressor_tel_energy_"
    return PairEvents(
        event,
        rows["tel_type"],
        rows["tel_id_1"],
        rows["tel_id_2"],
        rows[f"{energy}1"],
        rows[f"{energy}2"],
    )


class TestAgainstThePeer:
    """The event-wise asymmetries and the coefficients of ctao-calibpipe 0.8.0."""

    REFERENCES = (("LST", 1), ("MST", 5), ("SST", 30))

    def test_means(self, peer, peer_events):
        rows = peer[0]
        found = summarise_pairs(peer_events)
        for k, (one, two) in enumerate(found.pairs):
            of = (rows["tel_id_1"] == one) & (rows["tel_id_2"] == two)
            expected = np.mean(rows["energy_asymmetry"][of])
            assert found.asymmetry.mean[k] == pytest.approx(expected, rel=0, abs=1e-12)

    def test_coefficients(self, peer, peer_events):
        options = NetworkOptions("asymmetry", reference_telescopes=self.REFERENCES)
        fit = fit_shards(options, [peer_events])
        rows = by_telescope(fit)
        theirs = peer[1]
        free = [k for k, r in rows.items() if r["tel_type"] != "SST" and r["flags"] != "R"]
        assert len(free) == 16
        for tel_id in free:
            ours, their = rows[tel_id], theirs[tel_id]
            # Minuit stops short of the minimum, by less than 0.5 % of the error.
            assert abs(ours["value"] - their["value"]) < 5e-3 * their["error"]
            assert ours["error_independent"] == pytest.approx(their["error"], rel=5e-4)

        # It is theirs that stops short: chi2 at their coefficients is higher, by next to nothing.
        for tel_type, tolerance in (("LST", 1e-4), ("MST", 2e-4)):
            ids = [k for k, r in rows.items() if r["tel_type"] == tel_type]
            worst = max(abs(rows[k]["value"] - theirs[k]["value"]) for k in ids)
            assert worst < tolerance
            of = fit.used & (fit.tel_type[fit.first] == tel_type)
            c = np.array(
                [theirs[int(k)]["value"] if int(k) in theirs else np.nan for k in fit.tel_id]
            )
            model = (c[fit.first] - c[fit.second]) / (c[fit.first] + c[fit.second])
            excess = np.sum(
                (fit.weight * ((fit.centre - model) ** 2 - (fit.centre - fit.model) ** 2))[of]
            )
            assert 0 <= excess < 1e-3

    def test_where_the_peer_gives_nothing(self, peer, peer_events):
        """Row 2 of the faults: pairs with one event leave all its SST at 1 with errors of NaN."""
        theirs = [r for r in peer[1].values() if r["tel_type"] == b"SST" and r["tel_id"] != 30]
        assert all(r["value"] == 1.0 and np.isnan(r["error"]) for r in theirs)
        counts = summarise_pairs(peer_events)
        assert np.any(counts.difference.n[counts.tel_type == "SST"] == 1)
        fit = fit_shards(NetworkOptions(reference_telescopes=self.REFERENCES), [peer_events])
        for r in theirs:
            ours = by_telescope(fit)[int(r["tel_id"])]
            assert np.isfinite(ours["value"])
            assert ours["value"] != 1.0
            assert np.isfinite(ours["error"]) or "B" in ours["flags"]


TIMES = Observable("difference", -100.0, 100.0, 800, "ns")


def times(seed=3, n_events=400, offsets=(0.0, 3.0, -8.0), **options):
    """Arrival times less the front's, with these offsets and a jitter of 1.5 ns."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng, np.exp(np.array(offsets) / 1e3), n_events, sigma=1.5e-3, **options)
    return replace(events, x_1=1e3 * np.log(events.x_1), x_2=1e3 * np.log(events.x_2))


class TestDifferences:
    @pytest.mark.parametrize("estimator", ["log-mean", "log-median", "log-clipped"])
    def test_offsets_come_back_with_their_unit(self, estimator):
        options = NetworkOptions(
            estimator, reference_telescopes=(("LST", 1),), observable=TIMES, n_min=5
        )
        fit = fit_shards(options, [times(4), times(5)])
        table = coefficients(fit, "timing")["timing"]
        pull = (table["value"][1:] - [3.0, -8.0]) / table["error"][1:]
        assert table["value"][0] == table["error"][0] == 0.0
        assert np.all(np.abs(pull) < 3.5)
        # One jitter each of the telescope and the reference, 800 events.
        expected = 1.5 * np.sqrt(2 / 800)
        np.testing.assert_allclose(table["error"][1:], expected, rtol=0.35)
        pairs = coefficients(fit, "timing")["timing_pairs"]
        assert "mean_asymmetry" not in pairs

    def test_laws(self):
        events = times()
        parts = [
            summarise_pairs(take(events, events.event % 3 == k), TIMES, histogram=True)
            for k in range(3)
        ]
        whole = summarise_pairs(events, TIMES, histogram=True)
        identity = PairSummary.identity(TIMES, histogram=True)
        check_summary_laws(parts, identity, whole, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="asymmetry"):
            whole.merge(PairSummary.identity(histogram=True))

    def test_negative_values_are_as_good_as_others_and_nan_is_not(self):
        events = times()
        shifted = replace(events, x_1=events.x_1 - 1e4, x_2=events.x_2 - 1e4)
        found, expected = summarise_pairs(shifted, TIMES), summarise_pairs(events, TIMES)
        np.testing.assert_allclose(found.difference.mean, expected.difference.mean, atol=1e-9)
        broken = replace(events, x_1=np.where(events.event < 10, np.nan, events.x_1))
        assert np.all(summarise_pairs(broken, TIMES).n_invalid == 10)

    def test_there_is_no_asymmetry_of_times(self):
        with pytest.raises(ConfigError, match="not of differences"):
            NetworkOptions("asymmetry", observable=TIMES)


class TestOneNetworkOfAllTypes:
    TELESCOPES = Telescopes(np.arange(1, 8), np.array(["LST"] * 4 + ["MST"] * 3))

    def events(self, seed=11, n_events=300):
        events = draw_events(np.random.default_rng(seed), np.append(LST, MST), n_events)
        types = self.TELESCOPES.tel_type
        return replace(
            events, tel_type=pair_types(types[events.tel_id_1 - 1], types[events.tel_id_2 - 1])
        )

    def test_scale_is_that_of_the_reference_type(self):
        options = NetworkOptions(
            reference_type="MST",
            reference_telescopes=(("LST", 1), ("MST", 6)),
            throughput_normalisation=(("LST", 5.0), ("MST", 1.1)),
        )
        fit = fit_shards(options, [self.events()], self.TELESCOPES)
        tables = coefficients(fit, "cross")
        table, components = tables["cross"], tables["cross_components"]
        assert components["tel_type"].tolist() == ["LST-MST"]
        assert components["reference_tel_id"].tolist() == [6]
        assert table["flags"].tolist() == ["", "", "", "", "", "R", ""]
        truth = np.append(LST, MST)
        free = np.arange(7) != 5
        pull = (table["value"] - truth)[free] / table["error"][free]
        assert np.sqrt(np.mean(pull**2)) < 2.0
        assert set(tables["cross_pairs"]["tel_type"].tolist()) == {"LST", "LST-MST", "MST"}

    def test_weighted_mean_is_over_the_reference_type(self):
        options = NetworkOptions(reference_type="MST", normalisation="weighted-mean")
        fit = fit_shards(options, [self.events()], self.TELESCOPES)
        weight = np.bincount(fit.first, fit.weight, 7) + np.bincount(fit.second, fit.weight, 7)
        assert np.average(fit.theta[4:], weights=weight[4:]) == pytest.approx(0.0, abs=1e-12)
        assert not fit.is_fallback.any()

    def test_a_part_without_the_reference_type_is_flagged(self):
        lst = draw_events(np.random.default_rng(1), LST, 100)
        mst = draw_events(np.random.default_rng(2), MST, 30, tel_type="MST", first_id=5)
        for normalisation in ("reference", "weighted-mean"):
            options = NetworkOptions(
                reference_type="MST",
                normalisation=normalisation,
                reference_telescopes=(("LST", 1), ("MST", 5)),
            )
            fit = fit_shards(options, [join_events(lst, mst)], self.TELESCOPES)
            flags = coefficients(fit)["inter_calibration"]["flags"]
            assert all("F" in f and "D" in f for f in flags[:4])
            assert not any(set(f) & set("FD") for f in flags[4:])

    def test_it_needs_the_telescopes(self):
        with pytest.raises(ValueError, match="needs to know the telescopes"):
            fit_shards(NetworkOptions(reference_type="MST"), [self.events()])
        wrong = Telescopes(np.arange(1, 8), np.array(["LST"] * 3 + ["MST"] * 4))
        with pytest.raises(CorruptedInput, match="telescope 4 has pair events as LST"):
            fit_shards(NetworkOptions(reference_type="MST"), [self.events()], wrong)
