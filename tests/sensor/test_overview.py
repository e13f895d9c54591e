"""A map in short is the same, however the sensor is cut into tiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.flags import PixelFlag
from calibdask.sensor.overview import overview, overviews
from calibdask.sensor.tiles import SensorFacts, TileStacks

SHAPE = 37, 23
SENSOR = SensorFacts("Toy", SHAPE, "RGGB")
CHANNEL = np.tile(np.array([[0, 1], [3, 2]], np.int8), (19, 12))[:37, :23]


def in_short(values, mask, edges):
    """Summarise a map tile by tile and join the tiles."""
    tiles = []
    for top, bottom in pairwise(edges):
        tile = TileStacks(top, bottom, CHANNEL[top:bottom], SENSOR, {}, {})
        tiles.append(overview("map", tile, values[top:bottom], mask[top:bottom]))
    return overviews(tiles)["map"]


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(5)
    values = rng.normal(10.0, 2.0, SHAPE)
    values[rng.random(SHAPE) < 0.05] = np.nan
    mask = (rng.random(SHAPE) < 0.1).astype(np.uint16) * np.uint16(1 << 8)
    return values, mask


@settings(max_examples=25)
@given(cuts=st.sets(st.integers(1, SHAPE[0] - 1), max_size=6))
def test_tiles_do_not_matter(example, cuts):
    values, mask = example
    whole = in_short(values, mask, [0, SHAPE[0]])
    parts = in_short(values, mask, [0, *sorted(cuts), SHAPE[0]])
    np.testing.assert_array_equal(parts.n, whole.n)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-12)
    np.testing.assert_allclose(parts.thumbnail, whole.thumbnail, rtol=1e-12)
    np.testing.assert_array_equal(parts.sample, whole.sample)
    assert parts.n_flagged == whole.n_flagged
    assert (parts.n_bad, parts.n_pixels) == (whole.n_bad, whole.n_pixels)


def test_it_says_what_the_map_holds(example):
    values, mask = example
    one = in_short(values, mask, [0, 20, SHAPE[0]])
    good = (mask == 0) & np.isfinite(values)
    n, mean, std = one.total
    assert n == good.sum()
    assert mean == pytest.approx(values[good].mean())
    assert std == pytest.approx(values[good].std(ddof=1))
    assert one.n_flagged == {PixelFlag.HOT: int((mask > 0).sum())}
    assert one.n_bad == (~good).sum()
    block = values[:2, :2][good[:2, :2]]
    assert one.thumbnail[0, 0] == pytest.approx(block.mean())


def test_a_map_without_a_good_pixel():
    one = in_short(np.full(SHAPE, np.nan), np.zeros(SHAPE, np.uint16), [0, SHAPE[0]])
    assert one.total[0] == 0
    assert np.isnan(one.total[1])
    assert np.isnan(one.thumbnail).all()
    assert not one.sample.size
