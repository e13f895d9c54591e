"""Numbers do not move unless they are meant to, and are the peer's where it is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

import calibdask
from calibdask.muon.simulate import simulate_ring_tables
from tests.golden.muon import GOLDEN, OPTIONS, PEER, PSF, compute

MEANT = (
    "the numbers moved: raise the version of the muon calibrations if this change is meant, and"
    " write the golden numbers again (python -m tests.golden.muon)"
)
TELESCOPES = ("tel_001", "tel_002")


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def peer():
    return json.loads(PEER.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("golden"))


def test_versions(computed, golden):
    assert computed["versions"] == golden["versions"], (
        "a version was raised: write the golden numbers again (python -m tests.golden.muon)"
    )


@pytest.mark.parametrize("run", ["bins", "chunks", "psf"])
def test_numbers(computed, golden, run):
    assert set(computed[run]) == set(golden[run]), MEANT
    for table, columns in golden[run].items():
        assert set(computed[run][table]) == set(columns), MEANT
        for name, expected in columns.items():
            message = f"{run}.{table}.{name}: {MEANT}"
            found = computed[run][table][name]
            if any(isinstance(value, float) for value in expected):
                np.testing.assert_allclose(
                    np.array(found, float),
                    np.array(expected, float),
                    rtol=1e-9,  # of differences: a residual is one of near equals
                    atol=1e-12,
                    err_msg=message,
                )
            else:
                np.testing.assert_array_equal(found, expected, message)


@pytest.mark.parametrize("tel", TELESCOPES)
def test_whole_chunks_are_the_peers(computed, peer, tel):
    ours, theirs = computed["chunks"][tel], peer["throughput"][tel]
    whole = slice(0, len(theirs["mean"]) - 1)
    assert ours["n_events"][whole] == theirs["n_events"][whole]
    for name in ("mean", "std"):
        np.testing.assert_allclose(ours[name][whole], theirs[name][whole], rtol=2e-11)
    # The median comes from a histogram with bins of a fiftieth of the standard deviation.
    np.testing.assert_allclose(ours["median"][whole], theirs["median"][whole], atol=1e-4)
    # Theirs divides by n where n - 1 belongs.
    n = np.array(ours["n_events"][whole])
    np.testing.assert_allclose(
        np.array(ours["sem"][whole]) * np.sqrt((n - 1) / n), theirs["sem"][whole], rtol=2e-11
    )


@pytest.mark.parametrize("tel", TELESCOPES)
def test_the_last_chunk_overlaps_only_at_the_peers(computed, peer, tel):
    ours, theirs = computed["chunks"][tel], peer["throughput"][tel]
    n_rings = sum(ours["n_events"]) + sum(ours["n_clipped"])
    assert ours["n_events"][-1] + ours["n_clipped"][-1] == n_rings % 1000
    assert theirs["n_events"][-1] > n_rings % 1000  # filled up with rings of the one before
    assert theirs["time_start"][-1] < theirs["time_end"][-2]


def test_lines_agree_within_what_the_peer_gets_wrong(peer, tmp_path):
    """Same nine bins as the peer: the points are the same, weights and errors are not."""
    paths = simulate_ring_tables(tmp_path / "rings", OPTIONS)
    overrides = {"CalculatePSFWithMuons.muonring_radius_fit_nbins": 9}
    result = calibdask.run(
        "calculate-psf-muon", paths, tmp_path / "psf.h5", overrides=overrides, cluster="serial",
        report=False,
    )  # fmt: skip
    for tel in TELESCOPES:
        line, theirs = result.tables[f"{PSF}/{tel}"][0], peer["psf"][tel]
        assert abs(line["slope"].value - theirs["slope"][0]) < 1.5 * line["slope_err"].value
        assert abs(line["intercept"] - theirs["intercept"][0]) < 1.5 * line["intercept_err"]
        points = result.tables[f"{PSF}_bins"]
        own = points[(points["tel_id"] == int(tel[4:])) & points["used"]]
        middle = 0.5 * (own["radius_low"] + own["radius_high"]).value
        # Their y: mean width over the middle of the bin; ours: mean of width over radius.
        radius, ratio = own["radius"].value, np.asarray(own["ratio"])
        weight = 1 / (middle**2 + ratio**2)
        slope, _ = np.polyfit(middle, ratio * radius / middle, 1, w=weight)
        assert slope == pytest.approx(theirs["slope"][0], abs=2e-4)
