from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from calibdask.io.camera_images import Camera, TelescopeImages
from calibdask.muon.image_simulation import MuonImageSimulation
from calibdask.muon.ring import tailcuts
from calibdask.muon.ring_options import RingOptions
from calibdask.muon.rings import (
    RING_COLUMNS,
    RING_UNITS,
    STATUS,
    predicted_image,
    rings_of,
    unusable,
)
from calibdask.muon.simulate_images import simulate_images

LST = RingOptions(hole_radius_m=0.74)
LOOSE = replace(LST, picture_threshold_pe=5.0, boundary_threshold_pe=2.5, min_pixels=50)
SIMULATION = MuonImageSimulation(n_rings_per_telescope=60, seed=5)


def named(columns):
    return [STATUS[k] for k in columns["status"]]


def drawn(n=60, options=LST, **settings):
    """Truth, images and fitted rings."""
    settings.setdefault("seed", 5)
    truth, images = simulate_images(MuonImageSimulation(n_rings_per_telescope=n, **settings), 0, 1)
    image = images.image.copy()
    image[image == 0] = np.nan  # as the reader does
    images = replace(images, image=image, image_mask=None)
    return truth, images, rings_of(images, options)


@pytest.fixture(scope="module")
def sixty():
    return drawn()


def test_the_columns_are_those_promised(sixty):
    _, images, rings = sixty
    assert tuple(rings) == RING_COLUMNS
    assert set(RING_UNITS) < set(RING_COLUMNS)
    assert {len(values) for values in rings.values()} == {60}
    np.testing.assert_array_equal(rings["event_id"], images.event_id)
    np.testing.assert_array_equal(rings["time_ns"], images.time_ns)
    assert (rings["tel_id"] == 1).all()


def test_rings_are_where_they_were_drawn(sixty):
    truth, _, rings = sixty
    fitted = rings["status"] == 0
    assert fitted.sum() > 50
    for name, true in (("center_fov_lon", "x"), ("center_fov_lat", "y"), ("radius", "radius")):
        difference = rings[f"muonring_{name}"] - np.degrees(truth[true])
        assert np.abs(difference[fitted]).max() < 0.03
    for name in ("impact_x", "impact_y"):
        difference = (rings[f"muonefficiency_{name}"] - truth[name])[fitted]
        assert np.median(np.abs(difference)) < 0.3, name
    np.testing.assert_allclose(
        np.hypot(rings["muonefficiency_impact_x"], rings["muonefficiency_impact_y"]),
        rings["muonefficiency_impact"],
    )
    np.testing.assert_allclose(
        np.hypot(rings["muonring_center_fov_lon"], rings["muonring_center_fov_lat"]),
        rings["muonring_center_distance"],
    )
    assert (rings["muonefficiency_is_valid"] == fitted).all()


def test_an_image_does_not_depend_on_its_company(sixty):
    """However the images are cut into shards: the same bits."""
    _, images, rings = sixty
    for part in (slice(0, 1), slice(7, 23), slice(59, 60)):
        some = TelescopeImages(
            images.camera,
            images.obs_id[part],
            images.event_id[part],
            images.time_ns[part],
            images.image[part],
            None,
        )
        for name, values in rings_of(some, LST).items():
            np.testing.assert_array_equal(values, rings[name][part], name)


def test_a_mask_given_is_the_mask_used(sixty):
    _, images, rings = sixty
    mask = np.array(
        [tailcuts(one, images.camera.neighbours, 10.0, 5.0, 2.0) for one in images.image]
    )
    given = rings_of(replace(images, image_mask=mask), LST)
    for name, values in given.items():
        np.testing.assert_array_equal(values, rings[name], name)
    none = rings_of(replace(images, image_mask=np.zeros_like(mask)), LST)
    assert set(named(none)) == {"too few pixels"}


def test_the_predicted_image_of_a_fit_resembles_the_image(sixty):
    _, images, rings = sixty
    k = int(np.argmax(rings["status"] == 0))
    row = {name: values[k] for name, values in rings.items()}
    predicted = predicted_image(images.camera, LST, row)
    pull = (images.image[k] - predicted) / np.sqrt(1.1**2 + 1.25 * predicted)
    assert np.nanstd(pull) == pytest.approx(1.0, abs=0.1)


# --- images without a ring ----------------------------------------------------------------------


def _with_image(images, image):
    n = len(image)
    return replace(
        images,
        obs_id=images.obs_id[:n],
        event_id=images.event_id[:n],
        time_ns=images.time_ns[:n],
        image=np.asarray(image, np.float32),
    )


def test_images_without_a_ring_say_why(sixty):
    _, images, _ = sixty
    camera = images.camera
    n = len(camera.pixel_x_rad)
    rng = np.random.default_rng(0)
    x, y = camera.pixel_x_rad, camera.pixel_y_rad

    def circle(x_deg, radius_deg, charge):
        off = np.hypot(x - math.radians(x_deg), y) - math.radians(radius_deg)
        return np.where(np.abs(off) < math.radians(0.11), charge, rng.normal(0.0, 1.0, n))

    line = np.where(np.abs(x) < math.radians(0.16), 20.0, 0.0)
    faint = replace(LST, picture_threshold_pe=2.0, boundary_threshold_pe=1.5, min_pixels=10)
    several = _with_image(
        images,
        [
            np.zeros(n),
            rng.normal(0.0, 1.0, n),
            np.full(n, np.nan),
            circle(2.2, 1.6, 30.0),
            circle(0.0, 1.2, 3.0),
            circle(0.0, 1.2, 30.0) + rng.normal(0.0, 1.0, n),
        ],
    )
    assert named(rings_of(several, replace(LST, min_pixels=50))) == [
        "too few pixels",
        "too few pixels",
        "no image",
        "ring outside of the camera",
        "too few pixels",
        "fitted",
    ]
    assert named(rings_of(several, replace(faint, min_intensity=1e9)))[-1] == "too little light"
    assert named(rings_of(several, replace(LST, min_ring_pixels=5000)))[-1] == (
        "too few pixels on the ring"
    )
    (status,) = named(rings_of(_with_image(images, [line]), LST))
    assert status in ("no ring", "ring outside of the camera", "too few pixels on the ring")


def test_where_a_cut_fails_the_rest_is_empty(sixty):
    _, images, _ = sixty
    rings = rings_of(_with_image(images, np.zeros((2, images.image.shape[1]))), LST)
    for name, values in rings.items():
        if name.startswith("muon"):
            if values.dtype.kind == "f":
                assert np.isnan(values).all(), name
            elif name == "muonparameters_n_pixels_in_ring":
                assert (values == -1).all()
            else:
                assert not values.any(), name


def test_no_images_are_no_rings(sixty):
    _, images, _ = sixty
    rings = rings_of(_with_image(images, np.empty((0, images.image.shape[1]))), LST)
    assert tuple(rings) == RING_COLUMNS
    assert all(len(values) == 0 for values in rings.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_mirrors": 2}, "dual mirror"),
        ({"focal_length_m": math.nan}, "no optics"),
        ({"mirror_area_m2": 0.0}, "no optics"),
        ({"pixel_shape": "star"}, "no optics"),
        ({"pixel_x_rad": np.full(1855, np.nan)}, "no optics"),
        ({"pixel_width_rad": np.zeros(1855)}, "no optics"),
    ],
)
def test_telescopes_that_cannot_be_fitted_are_told_not_dropped(sixty, change, reason):
    _, images, _ = sixty
    camera = replace(images.camera, **change)
    assert unusable(camera) == reason
    rings = rings_of(replace(images, camera=camera), LST)
    assert named(rings) == [reason] * 60
    assert np.isnan(rings["muonring_radius"]).all()


def test_single_and_dual_mirror_telescopes_are_told_apart(sixty):
    assert unusable(sixty[1].camera) is None


# --- statistics -----------------------------------------------------------------------------------


def pulls(truth, rings, name, error, true, factor=1.0):
    ok = rings["status"] == 0
    found = rings[f"muonefficiency_{name}"][ok]
    return (found - factor * truth[true][ok]) / rings[f"muonefficiency_{error}"][ok]


@pytest.mark.parametrize(
    ("efficiency", "width_deg"), [(0.1, 0.1), (0.2, 0.05), (0.2, 0.2), (0.4, 0.1)]
)
def test_errors_are_what_they_say(efficiency, width_deg):
    """A corner of the table that tests/benchmarks/muon_truth.py prints."""
    n = 300
    truth, _, rings = drawn(
        n,
        LOOSE,
        optical_efficiency=efficiency,
        width_deg=width_deg,
        seed=2,
    )
    ok = rings["status"] == 0
    assert ok.mean() > 0.97
    found = rings["muonefficiency_optical_efficiency"][ok]
    standard_error = found.std() / math.sqrt(n)
    assert abs(found.mean() - efficiency) < 0.005 * efficiency + 2 * standard_error
    spread = 3 / math.sqrt(2 * n)  # of a standard deviation of n pulls
    for name, error, true, factor in (
        ("optical_efficiency", "optical_efficiency_err", "efficiency", 1.0),
        ("width", "width_err", "width", math.degrees(1.0)),
    ):
        pull = pulls(truth, rings, name, error, true, factor)
        assert 0.9 - spread < pull.std() < 1.1 + spread, name


@pytest.mark.parametrize(
    "settings",
    [
        {"max_impact_m": 3.0},
        {"min_impact_m": 6.0, "max_impact_m": 10.0},
        {"truncated": 1.0},
        {"broken": 0.03},
    ],
    ids=["central", "distant", "truncated", "broken"],
)
def test_the_bias_is_small(settings):
    truth, _, rings = drawn(300, seed=3, width_deg=0.06, **settings)
    ok = rings["status"] == 0
    found = rings["muonefficiency_optical_efficiency"][ok]
    relative = found / truth["efficiency"][ok] - 1
    standard_error = relative.std() / math.sqrt(ok.sum())
    assert abs(relative.mean()) < 0.005 + 2 * standard_error
    pull = pulls(truth, rings, "optical_efficiency", "optical_efficiency_err", "efficiency")
    assert 0.85 < pull.std() < 1.2


def test_a_wide_ring_is_biased_with_the_circle_of_the_peer_and_not_with_ours():
    """The Taubin fit makes it too large; what follows is not small."""
    _, images, ours = drawn(300, width_deg=0.2, seed=2)
    peers = rings_of(images, replace(LST, fit_circle=False))
    ok = (peers["status"] == 0) & (ours["status"] == 0)
    relative = [rings["muonefficiency_optical_efficiency"][ok] / 0.2 - 1 for rings in (peers, ours)]
    error = relative[1].std() / math.sqrt(ok.sum())
    assert relative[0].mean() < -0.005
    assert abs(relative[1].mean()) < 0.005 + 2 * error
    assert (peers["muonring_radius"] - ours["muonring_radius"])[ok].mean() > 0.01


def test_a_pixel_that_was_not_measured_counts_for_nothing(sixty):
    """Read as 0 it would make the telescope look 3 % worse."""
    truth, images, rings = drawn(100, broken=0.03, seed=8)
    assert (rings["n_broken_pixels"] > 20).all()
    as_zero = rings_of(replace(images, image=np.nan_to_num(images.image)), LST)
    ok = (rings["status"] == 0) & (as_zero["status"] == 0)
    ratio = (
        as_zero["muonefficiency_optical_efficiency"] / rings["muonefficiency_optical_efficiency"]
    )
    assert ratio[ok].mean() < 0.99
    assert (sixty[2]["n_broken_pixels"] == 0).all()
    assert truth["efficiency"][0] == 0.2


def test_options_of_the_simulation_are_checked():
    from calibdask.errors import ConfigError

    for wrong in (
        {"optical_efficiency": -1.0},
        {"n_files": 1.5},
        {"effective_focal_length": 1},
        {"min_impact_m": 5.0, "max_impact_m": 2.0},
        {"pedestal_pe": 0.5},
        {"broken": 1.5},
    ):
        with pytest.raises(ConfigError):
            MuonImageSimulation(**wrong)


def test_the_camera_is_an_lst():
    _, images = simulate_images(SIMULATION, 0, 1)
    camera = images.camera
    assert isinstance(camera, Camera)
    assert len(camera.pixel_x_rad) == 1855
    assert math.degrees(camera.fov_radius_rad) == pytest.approx(2.3, abs=0.1)
    assert np.count_nonzero(camera.neighbours >= 0, axis=1).max() == 6
