from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tables

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.camera_images import neighbours_of
from calibdask.io.ctapipe_writer import (
    OpticsDescription,
    TelescopeDescription,
    square_camera,
    write_instrument,
    write_observation,
    write_reference_metadata,
    write_telescope_table,
    write_triggers,
)
from calibdask.io.images import has_images, inspect_images, is_hdf5, read_images
from calibdask.io.pytables import create_hdf5

START_NS = 1_700_000_037_000_000_000
N_SIDE = 12
N_PIXELS = N_SIDE**2
LST = OpticsDescription(effective_focal_length_m=28.0)
SST = OpticsDescription("SST", "SST", "SCHWARZSCHILD_COUDER", 8.0, 2, 19, 2.15, 2.2)
CAMERA = square_camera("LSTCam", N_SIDE, 0.05)
IMAGES = "/dl1/event/telescope/images"


def charges(n, seed, n_pixels=N_PIXELS):
    return np.random.default_rng(seed).normal(0.0, 5.0, (n, n_pixels)).astype(np.float32)


def write(path, images, telescopes=None, **columns):
    """A DL1 file with images by telescope; event 1, 2, ... in each."""
    telescopes = telescopes or [TelescopeDescription(tel_id, LST, CAMERA) for tel_id in images]
    keys = {
        tel_id: {"obs_id": np.full(len(image), 7), "event_id": np.arange(1, len(image) + 1)}
        for tel_id, image in images.items()
    }
    triggers = {
        "obs_id": np.concatenate([key["obs_id"] for key in keys.values()]),
        "event_id": np.concatenate([key["event_id"] for key in keys.values()]),
        "tel_id": np.concatenate([np.full(len(v), tel_id) for tel_id, v in images.items()]),
    }
    triggers["time_ns"] = START_NS + 1_000_000_000 * triggers["event_id"] + triggers["tel_id"]
    with create_hdf5(path) as file:
        write_reference_metadata(
            file,
            description="images",
            levels="DL1_IMAGES",
            identity=str(path.name),
            obs_id=7,
            start_s=START_NS / 1e9,
        )
        write_instrument(file, telescopes)
        write_observation(file, 7, START_NS / 1e9, 100.0)
        write_triggers(file, telescopes, triggers)
        for tel_id, image in images.items():
            own = {name: make(image) for name, make in columns.items()}
            write_telescope_table(file, IMAGES, tel_id, {**keys[tel_id], "image": image, **own}, {})
    return path


def mask_of(image):
    return image > 5.0


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A file of two telescopes."""
    path = tmp_path_factory.mktemp("images") / "two.h5"
    return write(path, {2: charges(5, 1), 1: charges(8, 2)}, image_mask=mask_of)


def edited(path, tmp_path, change):
    """A copy of a file with something changed in it."""
    copy = tmp_path / "edited.h5"
    shutil.copy(path, copy)
    with tables.open_file(copy, "a") as file:
        change(file)
    return copy


def test_what_a_file_holds(two):
    assert is_hdf5(two)
    assert has_images(two)
    info = inspect_images(two)
    assert info.obs_ids == (7,)
    assert info.n_events == 8
    assert list(info.cameras) == [1, 2]
    assert info.process_type == "Simulation"
    assert info.product_id
    np.testing.assert_array_equal(info.times_ns[2], START_NS + 10**9 * np.arange(1, 6) + 2)
    camera = info.cameras[1]
    assert camera.tel_description == "LST_LST_LSTCam"
    assert camera.n_mirrors == 1
    assert camera.focal_length_m == 28.0
    assert camera.pixel_shape == "square"


def test_images_come_by_telescope_and_by_part(two):
    first, second = read_images(two)
    assert [images.camera.tel_id for images in (first, second)] == [1, 2]
    np.testing.assert_array_equal(first.image, charges(8, 2))
    np.testing.assert_array_equal(first.image_mask, charges(8, 2) > 5.0)
    np.testing.assert_array_equal(second.time_ns, inspect_images(two).times_ns[2])
    (part,) = read_images(two, tel_id=1, rows=(3, 6))
    for name in ("obs_id", "event_id", "time_ns", "image", "image_mask"):
        np.testing.assert_array_equal(getattr(part, name), getattr(first, name)[3:6], name)
    (end,) = read_images(two, tel_id=1, rows=(6, 100))
    assert len(end.event_id) == 2


def test_blocks_are_small(two, monkeypatch):
    from calibdask.io import images as module

    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * 5 * N_PIXELS)
    blocks = list(read_images(two, tel_id=1))
    assert [len(block.event_id) for block in blocks] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([b.image for b in blocks]), charges(8, 2))


def test_axes_of_the_sky_and_turned_cameras(tmp_path, two):
    camera = inspect_images(two).cameras[1]
    np.testing.assert_allclose(camera.pixel_x_rad, CAMERA.pixel_y_m / 28.0)
    np.testing.assert_allclose(camera.pixel_y_rad, CAMERA.pixel_x_m / 28.0)
    np.testing.assert_allclose(camera.pixel_width_rad, 0.05 / 28.0)
    turn = np.radians(30.0)
    x, y = CAMERA.pixel_x_m, CAMERA.pixel_y_m
    turned = replace(
        CAMERA,
        pixel_x_m=x * np.cos(turn) - y * np.sin(turn),
        pixel_y_m=x * np.sin(turn) + y * np.cos(turn),
        camera_rotation_deg=30.0,
    )
    path = write(tmp_path / "turned.h5", {1: charges(2, 1)}, [TelescopeDescription(1, LST, turned)])
    again = inspect_images(path).cameras[1]
    np.testing.assert_allclose(again.pixel_x_rad, camera.pixel_x_rad, atol=1e-12)
    np.testing.assert_allclose(again.pixel_y_rad, camera.pixel_y_rad, atol=1e-12)


def test_without_masks_the_images_are_not_cleaned(tmp_path):
    (images,) = read_images(write(tmp_path / "plain.h5", {1: charges(2, 1)}))
    assert images.image_mask is None


def test_a_pixel_that_reads_zero_was_not_measured(tmp_path):
    image = charges(3, 1)
    image[:, 5] = 0.0  # dead
    image[1, 7] = np.inf
    image[2, :100] = 0.0  # reduced: zero stands for "no light"
    (images,) = read_images(write(tmp_path / "dead.h5", {1: image}))
    np.testing.assert_array_equal(np.isnan(images.image).sum(axis=1), [1, 2, 0])
    assert np.isnan(images.image[:2, 5]).all()


def test_of_two_gains_the_high_one_counts_where_it_was_measured(tmp_path):
    image = np.stack([charges(4, 1), charges(4, 2)], axis=1)
    image[:, 0, 3] = np.nan
    camera = square_camera("LSTCam", N_SIDE, 0.05, n_channels=2)
    path = write(tmp_path / "gains.h5", {1: image}, [TelescopeDescription(1, LST, camera)])
    (images,) = read_images(path)
    expected = image[:, 0].copy()
    expected[:, 3] = image[:, 1, 3]
    np.testing.assert_array_equal(images.image, expected)


def test_fixed_point_is_read_as_charges(tmp_path, two):
    """ctapipe's `DataWriter.transform_image` stores integers."""
    from ctapipe.io.tableio import FixedPointColumnTransform

    truth = np.round(charges(8, 2), 1)
    truth[0, 0] = np.nan
    transform = FixedPointColumnTransform(10, 200, np.float32, np.uint16)
    with np.errstate(invalid="ignore"):
        stored = np.array([transform(row) for row in truth])

    def change(file):
        old = file.get_node(f"{IMAGES}/tel_001")
        rows = old.read()
        dtype = [(n, stored.dtype if n == "image" else old.dtype[n].base, old.dtype[n].shape)
                 for n in old.colnames]  # fmt: skip
        new = np.empty(len(rows), dtype)
        for name in old.colnames:
            new[name] = stored if name == "image" else rows[name]
        number = old.colnames.index("image")
        file.remove_node(old)
        table = file.create_table(IMAGES, "tel_001", obj=new)
        for name, value in transform.get_meta(str(number)).items():
            table.attrs[name] = value

    (images,) = read_images(edited(two, tmp_path, change), tel_id=1)
    np.testing.assert_allclose(images.image, truth, atol=1e-5)


def test_a_telescope_without_focal_length_is_kept_for_the_report(tmp_path, two):
    lost = replace(LST, name="OLD", effective_focal_length_m=float("nan"))
    telescopes = [
        TelescopeDescription(1, LST, CAMERA),
        TelescopeDescription(2, lost, CAMERA),
        TelescopeDescription(3, SST, CAMERA),
    ]
    path = write(tmp_path / "lost.h5", {t: charges(2, t) for t in (1, 2, 3)}, telescopes)
    info = inspect_images(path)
    assert [np.isnan(camera.focal_length_m) for camera in info.cameras.values()] == [0, 1, 0]
    assert [camera.n_mirrors for camera in info.cameras.values()] == [1, 1, 2]
    assert len(list(read_images(path))) == 3
    alone = write(
        tmp_path / "alone.h5", {2: charges(2, 1)}, [TelescopeDescription(2, lost, CAMERA)]
    )
    with pytest.raises(MissingInput, match="focal_length_choice: EQUIVALENT"):
        inspect_images(alone)
    assert inspect_images(alone, "EQUIVALENT").cameras[2].focal_length_m == 28.0


# --- files that are wrong ------------------------------------------------------------------------


def _remove(where):
    return lambda file: file.remove_node(where, recursive=True)


def _set(where, column, row, value):
    def change(file):
        table = file.get_node(where)
        rows = table.read()
        rows[column][row] = value
        table.modify_rows(0, rows=rows)

    return change


GEOMETRY = "/configuration/instrument/telescope/camera/geometry_0"
LAYOUT = "/configuration/instrument/subarray/layout"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_remove(IMAGES), MissingInput, "has no images"),
        (_remove(GEOMETRY), MissingInput, "the pixels of LST_LST_LSTCam"),
        (_remove(LAYOUT), MissingInput, "layout"),
        (_remove("/dl1/event/telescope/trigger"), MissingInput, "trigger"),
        (_set(f"{IMAGES}/tel_001", "tel_id", 2, 5), CorruptedInput, "rows of telescope 5"),
        (_set(f"{IMAGES}/tel_001", "event_id", 2, 2), CorruptedInput, "event 2 of .* 2 times"),
        (_set(LAYOUT, "tel_id", 0, 99), CorruptedInput, "telescope 2 is 0 times"),
        (_set(LAYOUT, "optics_index", 1, 9), CorruptedInput, "optics 9"),
        (lambda f: f.get_node(GEOMETRY).remove_rows(0, 10), CorruptedInput, "has 134 pixels"),
        (
            lambda f: f.get_node(GEOMETRY).attrs.__setitem__("PIX_TYPE", "star"),
            CorruptedInput,
            "pixels of type 'star'",
        ),
        (
            lambda f: f.rename_node(f"{IMAGES}/tel_001", "camera"),
            CorruptedInput,
            "not a table of a telescope",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_name(two, tmp_path, change, error, says):
    path = edited(two, tmp_path, change)
    with pytest.raises(error, match=says) as caught:
        inspect_images(path)
    assert str(path) in str(caught.value)
    with pytest.raises(error, match=says):
        list(read_images(path))


def test_a_telescope_that_is_not_there(two):
    with pytest.raises(MissingInput, match="no images of telescope 9"):
        list(read_images(two, tel_id=9))


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        inspect_images(tmp_path / "none.h5")
    with pytest.raises(CorruptedInput, match="is a directory"):
        inspect_images(tmp_path)
    text = tmp_path / "text.simtel.zst"
    text.write_text("no events")
    with pytest.raises(MissingInput, match="no event source"):
        inspect_images(text)
    short = tmp_path / "short.h5"
    short.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CorruptedInput):
        inspect_images(short)


# --- neighbours ---------------------------------------------------------------------------------


def test_neighbours_on_a_square_grid():
    found = neighbours_of(CAMERA.pixel_x_m, CAMERA.pixel_y_m, "square", "square")
    count = np.count_nonzero(found >= 0, axis=1)
    assert np.bincount(count).tolist() == [0, 0, 4, 4 * (N_SIDE - 2), (N_SIDE - 2) ** 2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_neighbours_of_very_few_pixels(n):
    found = neighbours_of(np.arange(n) * 1.0, np.zeros(n), "hex", "hexagon")
    assert found.shape == (n, 6)
    assert np.count_nonzero(found >= 0) == 2 * (n - 1)


# --- through ctapipe ----------------------------------------------------------------------------


def test_muons_in_an_lst(shared_simtel):
    path = shared_simtel / "lst_muons.simtel.zst"
    assert not is_hdf5(path)
    with pytest.raises(MissingInput, match="focal_length_choice: EQUIVALENT"):
        inspect_images(path)
    info = inspect_images(path, "EQUIVALENT")
    assert info.n_events == 30
    assert info.obs_ids == (69,)
    (images,) = read_images(path, "EQUIVALENT")
    assert images.image.shape == (30, 1855)
    assert images.image_mask is None
    np.testing.assert_array_equal(images.time_ns, info.times_ns[1])
    assert images.time_ns[0] == 1_523_531_916_101_450_000
    (part,) = read_images(path, "EQUIVALENT", tel_id=1, rows=(4, 7))
    np.testing.assert_array_equal(part.image, images.image[4:7])


def test_dual_mirror_telescopes_are_told_not_dropped(shared_simtel):
    path = shared_simtel / "gct_checs_muons.simtel.zst"
    info = inspect_images(path)
    assert info.cameras[1].n_mirrors == 2
    (images,) = read_images(path)
    assert images.image.shape == (20, 0)


def test_two_gains_and_broken_pixels_of_a_real_array(shared_simtel):
    """ctapipe selects the gain of the LSTs; what it fills in broken pixels stays out."""
    blocks = list(read_images(shared_simtel / "run202_proton_north_prod5_mini.simtel.zst"))
    assert len(blocks) == 19
    for images in blocks:
        broken = np.isnan(images.image).sum(axis=1)
        assert (broken == (0 if "LST" in images.camera.tel_description else 6)).all()


def test_a_file_that_ends_too_early(shared_simtel, tmp_path):
    whole = (shared_simtel / "lst_muons.simtel.zst").read_bytes()
    path = tmp_path / "cut.simtel.zst"
    for size in (len(whole) // 10, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptedInput, match="ends too early"):
            inspect_images(path, "EQUIVALENT")
        with pytest.raises(CorruptedInput, match="ends too early"):
            list(read_images(path, "EQUIVALENT"))
