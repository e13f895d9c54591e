from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.muon.gallery import Gallery
from calibdask.muon.summary import (
    N_BINS,
    ChunkKeys,
    EfficiencySummary,
    RingSummary,
    WidthSummary,
)
from calibdask.stats.histogram import Histogram
from tests.laws import assert_same, check_summary_laws
from tests.muon.toys import draw_rings, pictures, take

LOW, HIGH = np.array([0.15, 0.16]), np.array([0.25, 0.3])
MEAN, STD = np.array([0.2, 0.21]), np.array([0.012, 0.02])
EDGES = np.linspace(1.0, 1.3, 6)


def efficiency(rings):
    chunk = (rings.event_id % 3) - 1  # none, first, second
    return EfficiencySummary.of(rings, chunk, LOW, HIGH, MEAN, STD, 5.0)


def width(rings):
    return WidthSummary.of(rings, EDGES, np.full(5, 0.02), np.full(5, 0.06))


def with_pictures(rings):
    return RingSummary.of(rings, pictures(rings, 3))


KINDS = {
    "rings": (RingSummary.of, RingSummary.identity()),
    "rings with images": (with_pictures, RingSummary.identity()),
    "keys": (ChunkKeys.of, ChunkKeys.identity()),
    "gallery": (lambda rings: pictures(rings, 3), Gallery.identity(3)),
    "efficiency": (efficiency, EfficiencySummary.identity()),
    "width": (width, width(take(draw_rings(1), slice(0)))),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    owner=st.lists(st.integers(0, 3), min_size=80, max_size=80),
)
def test_laws_hold_bit_for_bit_over_any_split(kind, seed, owner):
    make, identity = KINDS[kind]
    rings = draw_rings(seed, 80)
    owner = np.array(owner)
    parts = [make(take(rings, owner == i)) for i in range(4)]
    check_summary_laws(parts, identity, make(rings), rtol=0.0)


def test_a_gallery_keeps_the_first_rings():
    rings = draw_rings(5, 20)
    parts = [pictures(take(rings, slice(i, None, 2)), 3) for i in range(2)]
    total = parts[1].merge(parts[0])
    np.testing.assert_array_equal(total.keys, rings.keys[:3])
    assert [image[0, 0] for image in total.images()] == rings.event_id[:3].tolist()
    assert [image.shape[1] for image in total.images()] == total.n_pixels.tolist()


def test_bounds_belong_to_what_is_kept():
    rings = draw_rings(2, 5)
    rings.efficiency[:] = [0.15, np.nextafter(0.15, 0), 0.25, np.nextafter(0.25, 1), 0.2]
    found = EfficiencySummary.of(rings, np.zeros(5, int), LOW[:1], HIGH[:1], MEAN[:1], STD[:1], 5.0)
    assert found.efficiency.n.tolist() == [3]
    assert found.n_all.tolist() == [5]


def test_the_histogram_gives_the_median():
    rings = draw_rings(3, 2001)
    found = EfficiencySummary.of(
        rings, np.zeros(2001, int), LOW[:1], HIGH[:1], MEAN[:1], STD[:1], 5.0
    )
    inside = rings.efficiency[(rings.efficiency >= LOW[0]) & (rings.efficiency <= HIGH[0])]
    edges = np.linspace(-5, 5, N_BINS + 1)
    median = MEAN[0] + STD[0] * Histogram(edges, found.counts).median()[0]
    assert median == pytest.approx(np.median(inside), abs=2e-5)


@pytest.mark.parametrize(
    ("radius", "bin_number"), [(1.0, 0), (1.06, 1), (np.nextafter(1.06, 0), 0), (1.3, 4)]
)
def test_rings_at_the_edges_of_radius_bins(radius, bin_number):
    rings = draw_rings(4, 1)
    rings.radius_deg[:] = radius
    rings.width_deg[:] = 0.04
    edges = EDGES.copy()
    edges[1] = 1.06
    found = WidthSummary.of(rings, edges, np.full(5, 0.0), np.full(5, 1.0))
    assert found.ratio.n.tolist() == [int(i == bin_number) for i in range(5)]


def test_rings_beyond_the_radius_bins_are_left_out():
    rings = draw_rings(4, 2)
    rings.radius_deg[:] = [0.99, 1.31]
    assert width(rings).n_all.sum() == 0


def test_profiles_hold_rings_at_their_edges():
    rings = draw_rings(6, 4)
    rings.impact_m[:] = [0.0, 1.0, 15.0, 15.5]
    rings.azimuth_deg[:] = [-180.0, 180.0, 0.0, -0.0]
    found = EfficiencySummary.of(
        rings, np.zeros(4, int), np.array([-9.0]), np.array([9.0]), MEAN[:1], STD[:1], 5.0
    )
    by_impact = found.profiles["impact"].n
    assert by_impact[[0, 1, 14]].tolist() == [1, 1, 1]
    assert by_impact.sum() == 3
    by_azimuth = found.profiles["azimuth"].n
    assert (by_azimuth[0], by_azimuth[-1], by_azimuth[6]) == (1, 1, 2)


def test_a_summary_holds_the_chunks_that_it_has():
    rings = draw_rings(8, 40)
    n = 1000
    bounds = np.zeros(n), np.ones(n), np.full(n, 0.2), np.full(n, 0.01)
    chunk = np.arange(40) // 10 + 500
    found = EfficiencySummary.of(rings, chunk, *bounds, 5.0)
    assert (found.first, len(found.n_all)) == (500, 4)
    other = EfficiencySummary.of(rings, chunk + 6, *bounds, 5.0)
    joined = other.merge(found)
    assert (joined.first, joined.n_all.tolist()) == (500, [10] * 4 + [0, 0] + [10] * 4)
    whole = joined.over(0, n)
    assert whole.n_all.sum() == 80
    assert whole.efficiency.moments().mean[503] == found.efficiency.moments().mean[3]


def test_an_empty_side_changes_nothing():
    rings = draw_rings(7)
    for make, identity in KINDS.values():
        assert_same(make(rings).merge(identity), make(rings), "identity")
