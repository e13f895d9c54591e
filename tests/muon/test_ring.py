from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calibdask.io.camera_images import neighbours_of
from calibdask.muon.image_simulation import pixels_of
from calibdask.muon.ring import (
    Circle,
    completeness,
    containment,
    fit_ring,
    invert,
    light,
    tailcuts,
    taubin,
)

X_M, Y_M, AREA_M2 = pixels_of(1855, 0.05, "hexagon", 0.0)
X, Y = X_M / 28.0, Y_M / 28.0
WIDTH = np.full(X.size, 0.05 / 28.0)
NEIGHBOURS = neighbours_of(X_M, Y_M, "hex", "hexagon")

RINGS = st.tuples(
    st.floats(-0.7, 0.7), st.floats(-0.7, 0.7), st.floats(0.8, 1.3), st.integers(0, 2**31)
)


def ring_image(x_deg, y_deg, radius_deg, seed, width_deg=0.06):
    """A ring of about 2500 p.e. on noise, and its cleaned pixels."""
    rng = np.random.default_rng(seed)
    x, y, radius, width = np.radians([x_deg, y_deg, radius_deg, width_deg])
    off = (np.hypot(X - x, Y - y) - radius) / width
    image = rng.poisson(20.0 * np.exp(-0.5 * off**2)) + rng.normal(0.0, 1.1, X.size)
    return image, tailcuts(image, NEIGHBOURS, 10.0, 5.0, 2.0)


def loss(at, x, y, w):
    squared = (x - at[0]) ** 2 + (y - at[1]) ** 2
    return np.sum((w * (squared - at[2] ** 2)) ** 2) / abs(np.sum(w * squared))


@settings(deadline=None, max_examples=30)
@given(drawn=RINGS)
def test_the_closed_form_is_the_minimum_of_the_loss(drawn):
    image, mask = ring_image(*drawn)
    assume(mask.sum() > 20)
    circle = taubin(X, Y, image, mask)
    x, y, w = np.degrees(X[mask]), np.degrees(Y[mask]), image[mask]
    at = np.degrees([circle.x, circle.y, circle.radius])
    lowest = loss(at, x, y, w)
    rng = np.random.default_rng(drawn[3])
    for scale in (1e-5, 1e-3, 0.1, 1.0):
        for shift in rng.normal(0.0, scale, (30, 3)):
            assert loss(at + shift, x, y, w) >= lowest * (1 - 1e-12)
    # Errors: by the curvature, where the loss has risen by 1 with the others free to follow.
    step = 1e-3
    hessian = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            e, f = step * np.eye(3)[i], step * np.eye(3)[j]
            corners = [loss(at + s * e + t * f, x, y, w) * s * t for s in (-1, 1) for t in (-1, 1)]
            hessian[i, j] = sum(corners) / (4 * step**2)
    expected = np.sqrt(np.diag(np.linalg.inv(hessian / 2)))
    np.testing.assert_allclose(np.degrees(circle[3:]), expected, rtol=1e-2)


@settings(deadline=None, max_examples=30)
@given(drawn=RINGS, broken=st.floats(0.0, 0.3))
def test_a_ring_is_found_with_pixels_missing(drawn, broken):
    image, mask = ring_image(*drawn)
    image[np.random.default_rng(1).random(X.size) < broken] = np.nan
    assume((mask & np.isfinite(image)).sum() > 100)
    circle, annulus = fit_ring(X, Y, image, mask)
    np.testing.assert_allclose(np.degrees(circle[:3]), drawn[:3], atol=0.05)
    assert not annulus[np.isnan(image)].any()
    distance = np.hypot(X - circle.x, Y - circle.y)
    expected = np.isfinite(image) & (np.abs(distance - circle.radius) < 0.4 * circle.radius)
    np.testing.assert_array_equal(annulus, expected)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pixels_are_no_circle(n):
    mask = np.zeros(X.size, bool)
    mask[:n] = True
    image = np.where(mask, 10.0, 0.0)
    circle, annulus = fit_ring(X, Y, image, mask)
    assert np.isnan(circle).all()
    assert not annulus.any()


def test_a_straight_line_is_no_circle():
    x = np.linspace(-0.02, 0.02, 50)
    circle = taubin(x, 2 * x, np.ones(50), np.ones(50, bool))
    assert np.isnan(circle).all() or circle.radius > 1.0


# --- what describes a ring --------------------------------------------------------------------


@settings(deadline=None)
@given(distance=st.floats(0.0, 6.0), radius=st.floats(0.1, 4.0), field=st.floats(0.5, 3.0))
def test_containment_is_the_part_of_the_circle_in_the_field(distance, radius, field):
    angle = np.linspace(0.0, 2 * np.pi, 20_001)[:-1]
    points = np.hypot(distance + radius * np.cos(angle), radius * np.sin(angle))
    # Circles that touch meet in a wide arc.
    assume(min(abs(distance + radius - field), abs(abs(distance - radius) - field)) > 1e-3)
    expected = pytest.approx(np.mean(points <= field), abs=1e-3)
    assert containment(distance, radius, field) == expected


def test_a_ring_around_the_whole_camera_is_not_in_it():
    assert containment(0.1, 3.0, 2.0) == 0.0


@settings(deadline=None, max_examples=20)
@given(drawn=RINGS)
def test_light_against_its_definition(drawn):
    image, mask = ring_image(*drawn)
    assume(mask.sum() > 20)
    circle, _ = fit_ring(X, Y, image, mask)
    found = light(X, Y, WIDTH, image, mask, circle, 1.5, 0.25, 0.2)
    r = np.hypot(X - circle.x, Y - circle.y)
    off = np.abs(r - circle.radius) / circle.radius
    on_ring, strip = off < 0.25, (off >= 0.25) & (off < 0.45)
    near = np.abs(r - circle.radius) <= 0.75 * WIDTH
    mean = np.average(r, weights=image)
    variance = np.average((r - mean) ** 2, weights=image)
    assume(variance > 0)  # with noise below zero it need not be
    third, fourth = (np.average((r - mean) ** k, weights=image) for k in (3, 4))
    cleaned = image * mask
    expected = (
        cleaned[near].sum() / cleaned.sum(),
        np.average((r - circle.radius) ** 2, weights=cleaned),
        image[on_ring].sum(),
        cleaned[~on_ring].sum(),
        (mask & on_ring).sum(),
        image[strip].mean(),
        np.sqrt(variance),
        third / variance**1.5,
        fourth / variance**2 - 3,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    angle = np.arctan2(Y - circle.y, X - circle.x)
    bins, _ = np.histogram(angle, 30, (-np.pi, np.pi), weights=image)
    assert completeness(X, Y, image, circle, 30.0) == np.count_nonzero(bins > 30.0) / 30


def test_light_leaves_out_what_was_not_measured():
    image, mask = ring_image(0.1, -0.2, 1.1, 4)
    circle, _ = fit_ring(X, Y, image, mask)
    lost = np.random.default_rng(2).random(X.size) < 0.1
    holes = np.where(lost, np.nan, image)
    kept = ~lost
    found = light(X, Y, WIDTH, holes, mask, circle, 1.5, 0.25, 0.2)
    expected = light(X[kept], Y[kept], WIDTH[kept], image[kept], mask[kept], circle, 1.5, 0.25, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_light_is_nan_not_an_error():
    circle = Circle(0.0, 0.0, math.radians(1.1), 0.0, 0.0, 0.0)
    none = np.zeros(X.size, bool)
    found = light(X, Y, WIDTH, np.zeros(X.size), none, circle, 1.5, 0.25, 0.2)
    assert math.isnan(found.intensity_ratio)
    assert math.isnan(found.radial_std_dev)
    assert found.ring_intensity == 0.0


@settings(deadline=None)
@given(n=st.integers(1, 7), seed=st.integers(0, 2**31), scale=st.floats(-8.0, 8.0))
def test_inverse_against_numpy(n, seed, scale):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, n)) + 2 * np.eye(n)
    units = 10.0 ** (scale * rng.uniform(-1, 1, n))
    matrix = (factor @ factor.T) * np.outer(units, units)
    inverse, positive = invert(matrix)
    assume(np.linalg.cond(factor) < 1e3)
    assert positive
    np.testing.assert_allclose(
        (inverse * np.outer(units, units)), np.linalg.inv(factor @ factor.T), rtol=1e-6, atol=1e-9
    )
    assert not invert(-matrix)[1]
    assert not invert(np.full((n, n), math.nan))[1]
    if n > 1:
        assert not invert(np.ones((n, n)))[1]


# --- cleaning ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), minimum=st.integers(0, 3), scale=st.floats(1.0, 10.0))
def test_tailcuts_against_the_definition(seed, minimum, scale):
    image = np.random.default_rng(seed).exponential(scale, X.size)
    image[:5] = np.nan
    beside = np.zeros((X.size, X.size), bool)
    rows, columns = np.nonzero(NEIGHBOURS >= 0)
    beside[rows, NEIGHBOURS[rows, columns]] = True
    above = image >= 10.0
    picture = above & (beside.astype(int) @ above >= minimum)
    boundary = image >= 5.0
    expected = (boundary & (beside.astype(int) @ picture > 0)) | (
        picture & (beside.astype(int) @ boundary > 0)
    )
    np.testing.assert_array_equal(tailcuts(image, NEIGHBOURS, 10.0, 5.0, float(minimum)), expected)
