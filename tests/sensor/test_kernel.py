"""The loops over pixels: exact, whatever the batches; every number against plain NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibdask.sensor.kernel import (
    MAX_FRAMES,
    check_frame_count,
    fold,
    fold_clipped,
    fold_floats,
    mean_and_variance,
    stack_moments,
)

frames_of_any_size = st.tuples(st.integers(1, 11), st.integers(1, 9)).flatmap(
    lambda shape: st.sampled_from([np.uint8, np.uint16]).flatmap(lambda kind: arrays(kind, shape))
)


def _sums(n_pixels):
    kinds = (np.uint16, np.uint32, np.uint64, np.uint16, np.uint16, np.uint16)
    sums = [np.zeros(n_pixels, kind) for kind in kinds]
    sums[3][:] = 65535
    return sums


@settings(max_examples=60, deadline=None)
@given(frames_of_any_size, st.integers(1, 65536), st.integers(1, 5))
def test_sums_are_those_of_numpy_however_they_are_batched(frames, saturation, batch):
    sums, frame_sum = _sums(frames.shape[1]), np.zeros(len(frames), np.uint64)
    for k in range(0, len(frames), batch):
        fold(frames[k : k + batch], 0, *sums, saturation, frame_sum[k : k + batch])
    wide = frames.astype(np.uint64)
    expected = (
        np.full(frames.shape[1], len(frames)), wide.sum(0), (wide**2).sum(0), frames.min(0),
        frames.max(0), (wide >= saturation).sum(0),
    )  # fmt: skip
    for found, wanted in zip(sums, expected, strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(frame_sum, wide.sum(1))


@settings(max_examples=40, deadline=None)
@given(frames_of_any_size, st.data())
def test_what_is_out_of_bounds_is_counted_and_not_summed(frames, data):
    n_pixels = frames.shape[1]
    low = data.draw(arrays(np.uint16, n_pixels, elements=st.integers(0, 300)))
    high = data.draw(arrays(np.uint16, n_pixels, elements=st.integers(0, 65535)))
    sums, frame_sum = _sums(n_pixels), np.zeros(len(frames), np.uint64)
    clipped = np.zeros(len(frames), np.uint32)
    fold_clipped(frames, 0, low, high, *sums, 200, frame_sum, clipped)
    wide = frames.astype(np.uint64)
    keep = (low <= frames) & (frames <= high)
    n, s1, s2, least, most, saturated = sums
    assert np.array_equal(n, keep.sum(0))
    assert np.array_equal(s1, (wide * keep).sum(0))
    assert np.array_equal(s2, (wide**2 * keep).sum(0))
    assert np.array_equal(least, np.where(keep, wide, 65535).min(0))
    assert np.array_equal(most, np.where(keep, wide, 0).max(0))
    assert np.array_equal(saturated, ((wide >= 200) & keep).sum(0))
    assert np.array_equal(frame_sum, wide.sum(1))
    assert np.array_equal(clipped, (~keep).sum(1))


def test_a_part_of_the_pixels_is_found_by_its_first():
    frames = np.arange(60, dtype=np.uint16).reshape(3, 20)
    sums, frame_sum = _sums(5), np.zeros(3, np.uint64)
    fold(frames, 7, *sums, 65536, frame_sum)
    assert np.array_equal(sums[1], frames[:, 7:12].sum(0))
    assert np.array_equal(frame_sum, frames[:, 7:12].sum(1))


def test_more_pixels_than_a_tile_of_the_cache():
    frames = np.random.default_rng(1).integers(0, 65536, (6, 9001), np.uint16)
    sums, frame_sum = _sums(9001), np.zeros(6, np.uint64)
    fold(frames, 0, *sums, 65536, frame_sum)
    assert np.array_equal(sums[2], (frames.astype(np.uint64) ** 2).sum(0))
    mean, variance = stack_moments(frames, dtype=np.float64)
    assert np.array_equal(mean, frames.mean(0))
    np.testing.assert_allclose(variance, frames.var(0, ddof=1), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(frames_of_any_size, st.sampled_from([0, 1]))
def test_moments_have_one_rounding(frames, ddof):
    mean, variance = stack_moments(frames, ddof=ddof, dtype=np.float64)
    n = len(frames)
    for pixel, values in enumerate(frames.T.tolist()):
        assert mean[pixel] == float(Fraction(sum(values), n))
        if n > ddof:
            scatter = n * sum(v * v for v in values) - sum(values) ** 2
            assert variance[pixel] == pytest.approx(scatter / (n * (n - ddof)), rel=3e-16)
        else:
            assert np.isnan(variance[pixel])


def test_the_greatest_sums_there_can_be():
    # Half of the frames at 0 and half at 65535: the scatter n s2 - s1^2 is greatest.
    n = MAX_FRAMES - 1
    half = n // 2
    s1, s2 = half * 65535, half * 65535**2
    mean, variance = np.empty(2), np.empty(2)
    mean_and_variance(
        np.array([n, MAX_FRAMES], np.uint16),
        np.array([s1, MAX_FRAMES * 65535], np.uint32),
        np.array([s2, MAX_FRAMES * 65535**2], np.uint64),
        1,
        mean,
        variance,
    )
    assert mean.tolist() == [65535 / 2, 65535.0]
    assert variance[0] == float(Fraction(n * s2 - s1**2, n * (n - 1)))
    assert variance[1] == 0.0


def test_all_frames_there_can_be_at_the_greatest_value():
    frames = np.full((MAX_FRAMES, 3), 65535, np.uint16)
    sums, frame_sum = _sums(3), np.zeros(MAX_FRAMES, np.uint64)
    fold(frames, 0, *sums, 65535, frame_sum)
    expected = (MAX_FRAMES, MAX_FRAMES * 65535, MAX_FRAMES * 65535**2, 65535, 65535, MAX_FRAMES)
    assert [int(one[0]) for one in sums] == list(expected)


def test_no_more_frames_than_the_sums_hold():
    check_frame_count(MAX_FRAMES)
    with pytest.raises(OverflowError, match=r"65538 frames in one stack.*at most 65535.*split"):
        check_frame_count(65538)
    with pytest.raises(OverflowError, match="at most 65535"):
        stack_moments(np.zeros((MAX_FRAMES + 1, 1), np.uint16))


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.float32])
def test_other_types_have_no_exact_moments(kind):
    with pytest.raises(TypeError, match="8 or 16 bit"):
        stack_moments(np.zeros((3, 4), kind))


def test_one_frame_and_none():
    mean, variance = stack_moments(np.full((1, 2, 3), 5, np.uint16))
    assert mean.tolist() == [[5.0] * 3] * 2
    assert np.isnan(variance).all()
    mean, variance = stack_moments(np.zeros((0, 2), np.uint16))
    assert np.isnan(mean).all()
    assert np.isnan(variance).all()


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 7)),
        elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]),
    ),
    st.floats(-1e4, 1e4),
)
def test_moments_of_floats(frames, low):
    n_pixels = frames.shape[1]
    n, saturated = np.zeros(n_pixels, np.uint16), np.zeros(n_pixels, np.uint16)
    mean, m2 = np.zeros(n_pixels), np.zeros(n_pixels)
    least, most = np.full(n_pixels, np.inf), np.full(n_pixels, -np.inf)
    frame_sum, clipped = np.zeros(len(frames)), np.zeros(len(frames), np.uint32)
    limits = np.full(n_pixels, low), np.full(n_pixels, np.inf)
    fold_floats(
        frames, 0, *limits, n, mean, m2, least, most, saturated, 1e3, frame_sum, clipped
    )  # fmt: skip
    finite = np.isfinite(frames)
    keep = finite & (frames.astype(np.float64) >= low)
    assert np.array_equal(n, keep.sum(0))
    assert np.array_equal(clipped, (finite & ~keep).sum(1))
    assert np.array_equal(saturated, (keep & (frames >= 1e3)).sum(0))
    for pixel in range(n_pixels):
        values = frames[keep[:, pixel], pixel].astype(np.float64)
        if len(values):
            assert mean[pixel] == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
            assert m2[pixel] == pytest.approx(values.var() * len(values), rel=1e-6, abs=1e-5)
            assert (least[pixel], most[pixel]) == (values.min(), values.max())


def test_the_peers_single_precision_is_off_where_sums_are_exact():
    """SPECTACLE's mean and std in float32 lose digits on long stacks of large numbers."""
    frames = np.random.default_rng(2).integers(60000, 60004, (4000, 8), np.uint16)
    truth = frames.mean(0)
    peer = frames.mean(axis=0, dtype=np.float32)
    ours, variance = stack_moments(frames, dtype=np.float64)
    assert np.array_equal(ours, truth)
    assert np.abs(peer - truth).max() > 1e-3
    np.testing.assert_allclose(variance, frames.var(0, ddof=1), rtol=1e-9)
