"""Summaries of stacks: laws, sharding, what is refused; and the bounds of outliers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_same, check_summary_laws

from calibdask.errors import CorruptedInput
from calibdask.sensor.clipping import LEAST_FRAMES, stack_bounds, trimmed_variance_factor
from calibdask.sensor.kernel import MAX_FRAMES
from calibdask.sensor.summary import (
    FACTS,
    Bounds,
    Frames,
    PixelMoments,
    PixelSums,
    StackSummary,
    summarise,
    tiles_of,
)
from tests.sensor.frames import make_frames

SHAPE = (7, 5)
FRAMES = make_frames(24, SHAPE)
FLOATS = FRAMES.astype(np.float32) / 3


def _named(frames, first=0, key="a"):
    return [(key, first + number, frame) for number, frame in enumerate(frames)]


def _whole(frames, **options):
    """Everything in one tile."""
    return summarise(frames, [(0, SHAPE[0])], **options)[0, SHAPE[0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 24), min_size=2, max_size=5), st.integers(1, 6), st.integers(1, 8))
def test_integer_sums_have_the_same_bits_however_frames_are_sharded(cuts, batch, tile_rows):
    edges = [0, *sorted(cuts), 24]
    whole = _whole(_named(FRAMES), saturation=810)
    parts = [
        summarise(
            _named(FRAMES[a:b], a), tiles_of(SHAPE[0], tile_rows), saturation=810, batch=batch
        )
        for a, b in pairwise(edges)
    ]  # fmt: skip
    for tile in tiles_of(SHAPE[0], tile_rows):
        total = parts[-1][tile]
        for part in parts[-2::-1]:
            total = total.merge(part[tile])
        stack, expected = total.stacks["a"], whole.stacks["a"]
        for name in ("n", "s1", "s2", "minimum", "maximum", "n_saturated"):
            wanted = getattr(expected, name)[tile[0] : tile[1]]
            assert np.array_equal(getattr(stack, name), wanted), name
        sums = FRAMES[:, tile[0] : tile[1]].sum(axis=(1, 2), dtype=np.uint64)
        assert np.array_equal(stack.frames.frame_sum, sums)


@pytest.mark.parametrize("frames", [FRAMES, FLOATS], ids=["integers", "floats"])
def test_laws(frames):
    parts = [
        _whole(_named(frames[:6])),
        _whole(_named(frames[6:7], 6)),
        _whole(_named(frames[7:15], 7) + _named(frames[15:18], 15, "b")),
        _whole(_named(frames[18:], 18)),
    ]
    named = _named(frames[:15]) + _named(frames[18:], 18) + _named(frames[15:18], 15, "b")
    check_summary_laws(parts, StackSummary.empty, _whole(named), rtol=1e-9)


def test_union_of_keys_and_of_kinds():
    both = _whole(_named(FRAMES[:3]) + _named(FLOATS[3:6], 3, "b"))
    assert isinstance(both.stacks["a"], PixelSums)
    assert isinstance(both.stacks["b"], PixelMoments)
    assert_same(StackSummary.from_arrays(both.to_arrays()), both, "stored")
    np.testing.assert_allclose(both.stacks["b"].mean(), FLOATS[3:6].mean(0), rtol=1e-6)
    np.testing.assert_allclose(both.stacks["b"].variance(), FLOATS[3:6].var(0, ddof=1), rtol=1e-5)


def test_moments_of_one_frame_of_all_saturated_pixels_and_of_none():
    one = _whole(_named(np.full((1, *SHAPE), 65535, np.uint16)), saturation=65535)
    stack = one.stacks["a"]
    assert (stack.mean() == 65535).all()
    assert np.isnan(stack.variance()).all()
    assert (stack.variance(ddof=0) == 0).all()
    assert (stack.n_saturated == 1).all()
    nan = _whole(_named(np.full((3, *SHAPE), np.nan, np.float32)))
    assert np.isnan(nan.stacks["a"].mean()).all()
    assert not nan.stacks["a"].n.any()
    assert np.array_equal(
        nan.merge(_whole(_named(FLOATS[:2], 3))).stacks["a"].mean(),
        _whole(_named(FLOATS[:2], 3)).stacks["a"].mean(),
    )


def test_a_frame_cannot_count_twice():
    part = _whole(_named(FRAMES[:3]))
    with pytest.raises(CorruptedInput, match="twice"):
        part.merge(_whole(_named(FRAMES[2:5], 2)))
    with pytest.raises(CorruptedInput, match="twice"):
        _whole([*_named(FRAMES[:3]), ("a", 1, FRAMES[1])])


def test_integers_and_floats_are_not_one_stack():
    with pytest.raises(CorruptedInput, match="integer and floating-point"):
        _whole(_named(FRAMES[:3])).merge(_whole(_named(FLOATS[3:5], 3)))
    with pytest.raises(CorruptedInput, match="float32"):
        _whole(_named(FRAMES[:3]) + _named(FLOATS[3:5], 3))
    with pytest.raises(CorruptedInput, match=r"\(7, 4\)"):
        _whole([*_named(FRAMES[:3]), ("a", 9, FRAMES[0][:, :4].copy())])


def test_a_stack_that_comes_in_pieces_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="follow each other"):
        _whole(_named(FRAMES[:2]) + _named(FRAMES[2:4], 2, "b") + _named(FRAMES[4:6], 4))


def test_too_many_frames_are_refused_when_merging():
    def many(n, first):
        frames = Frames(
            np.arange(first, first + n, dtype=np.uint64), np.zeros(n, np.uint64),
            np.zeros(n, np.uint32), np.zeros((n, len(FACTS))),
        )  # fmt: skip
        kinds = (np.uint16, np.uint32, np.uint64, np.uint16, np.uint16, np.uint16)
        return StackSummary({"a": PixelSums(*(np.zeros((1, 1), kind) for kind in kinds), frames)})

    half = MAX_FRAMES // 2
    total = many(half, 0).merge(many(MAX_FRAMES - half, half))
    with pytest.raises(OverflowError, match="65536 frames"):
        total.merge(many(1, MAX_FRAMES))


# -- outliers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 12, 60])
def test_what_trimming_takes_from_a_variance_is_given_back(n):
    values = np.sort(np.random.default_rng(n).normal(size=(40_000, n)), axis=1)[:, 1:-1]
    variances = values.var(axis=1, ddof=1)
    error = variances.std() / np.sqrt(len(variances))
    assert abs(variances.mean() - trimmed_variance_factor(n)) < 4 * error


def _clip(frames, n_sigma=5.0, **options):
    first = _whole(_named(frames), **options)
    bounds = {key: stack_bounds(stack, n_sigma) for key, stack in first.stacks.items()}
    return bounds["a"], _whole(_named(frames), bounds=bounds, **options).stacks["a"]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("n", [8, 50])
def test_a_cosmic_ray_is_left_out_and_the_rest_is_exact(kind, n):
    frames = make_frames(n, SHAPE, seed=n).astype(kind)
    hit = frames.copy()
    hit[3, 2, 1] = 4000
    _, stack = _clip(hit)
    assert stack.n[2, 1] == n - 1
    assert stack.n.sum() == frames.size - 1
    good = np.delete(frames[:, 2, 1].astype(np.float64), 3)
    assert stack.mean()[2, 1] == pytest.approx(good.mean(), rel=1e-12)
    assert stack.variance()[2, 1] == pytest.approx(good.var(ddof=1), rel=1e-9)
    assert stack.frames.frame_clipped.tolist() == [int(number == 3) for number in range(n)]


def test_a_cosmic_ray_hides_from_a_mean_and_variance_that_it_is_in():
    """Why the extremes are taken out first: of 8 values none is beyond 2.5 sigma of them all."""
    values = make_frames(8, (1, 1)).ravel().astype(float)
    values[3] = 4000
    assert np.abs((values - values.mean()) / values.std(ddof=1)).max() < 2.5


def test_good_noise_is_hardly_ever_clipped_and_its_variance_stays():
    frames = make_frames(10, (200, 150), rms=4.0)
    first = summarise(_named(frames), [(0, 200)])[0, 200]
    bounds = {"a": stack_bounds(first.stacks["a"], 5.0)}
    stack = summarise(_named(frames), [(0, 200)], bounds=bounds)[0, 200].stacks["a"]
    assert stack.frames.frame_clipped.sum() <= 3  # 0.2 expected of 300 000
    ratio = np.nanmean(stack.variance()) / np.mean(first.stacks["a"].variance())
    assert abs(ratio - 1) < 1e-3


def test_pixels_that_never_change_and_few_frames_are_not_clipped():
    still = np.full((12, *SHAPE), 700, np.uint16)
    bounds, stack = _clip(still)
    assert (bounds.low <= 700).all()
    assert (bounds.high >= 700).all()
    assert (stack.n == 12).all()
    few = make_frames(LEAST_FRAMES - 1, SHAPE)
    few[0, 0, 0] = 4095
    bounds, stack = _clip(few)
    assert (bounds.low == 0).all()
    assert (bounds.high == 65535).all()
    assert (stack.n == LEAST_FRAMES - 1).all()


def test_a_frame_that_went_wrong_is_clipped_all_over():
    frames = make_frames(20, SHAPE)
    frames[7] += 500
    _, stack = _clip(frames)
    assert stack.frames.frame_clipped.tolist() == [
        SHAPE[0] * SHAPE[1] * (k == 7) for k in range(20)
    ]
    assert np.array_equal(stack.mean(), np.delete(frames, 7, axis=0).mean(0))


def test_extreme_values_do_not_wrap_around():
    frames = np.zeros((6, *SHAPE), np.uint16)
    frames[::2] = 65535
    bounds, stack = _clip(frames)
    assert isinstance(bounds, Bounds)
    assert (bounds.low == 0).all()
    assert (bounds.high == 65535).all()
    assert (stack.variance() == frames.var(axis=0, ddof=1)).all()
