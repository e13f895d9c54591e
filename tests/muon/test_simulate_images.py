from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from calibdask.errors import ConfigError
from calibdask.io.hdf5 import digest_hdf5
from calibdask.io.images import inspect_images, read_images
from calibdask.muon.image_simulation import MuonImageSimulation
from calibdask.muon.ring_options import RingOptions
from calibdask.muon.rings import rings_of
from calibdask.muon.simulate_images import simulate_images, simulate_ring_images

OPTIONS = MuonImageSimulation(
    n_files=2, n_rings_per_telescope=6, n_telescopes=2, broken=0.01, seed=3
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return simulate_ring_images(tmp_path_factory.mktemp("muon-images"), OPTIONS, lambda *_: None)


def test_files_hold_what_was_drawn(files):
    for number, path in enumerate(files):
        info = inspect_images(path)
        assert info.n_events == 12
        assert list(info.cameras) == [1, 2]
        for images in read_images(path):
            _, drawn = simulate_images(OPTIONS, number, images.camera.tel_id)
            for name in ("obs_id", "event_id", "time_ns", "image_mask"):
                np.testing.assert_array_equal(getattr(images, name), getattr(drawn, name), name)
            measured = np.isfinite(images.image)
            np.testing.assert_array_equal(images.image[measured], drawn.image[measured])
            assert (drawn.image[~measured] == 0).all()
            np.testing.assert_allclose(images.camera.pixel_x_rad, drawn.camera.pixel_x_rad)
    truth = json.loads((files[0].parent / "truth.json").read_text())
    assert truth["optical_efficiency"] == OPTIONS.optical_efficiency


def test_equal_options_give_equal_files(files, tmp_path):
    again = simulate_ring_images(tmp_path / "again", OPTIONS, lambda *_: None)
    assert [digest_hdf5(path) for path in again] == [digest_hdf5(path) for path in files]
    with pytest.raises(ConfigError, match="exists already"):
        simulate_ring_images(tmp_path / "again", OPTIONS, lambda *_: None)


def test_broken_pixels_are_the_same_in_all_files(files):
    broken = [np.isnan(next(read_images(path, tel_id=1)).image) for path in files]
    assert broken[0].any()
    np.testing.assert_array_equal(broken[0][0], broken[1][-1])


def test_ctapipe_opens_the_files(files):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ctapipe.image import ImageProcessor
        from ctapipe.image.muon import MuonProcessor
        from ctapipe.io import EventSource, TableLoader, read_table

        with EventSource(files[0]) as source:
            process, fit = ImageProcessor(source.subarray), MuonProcessor(source.subarray)
            events = []
            for event in source:
                process(event)
                fit(event)
                (tel_id,) = event.dl1.tel
                efficiency = event.muon.tel[tel_id].efficiency.optical_efficiency
                events.append((event.index.event_id, int(tel_id), efficiency))
        with TableLoader(files[0], dl1_parameters=False, dl2=False) as loader:
            table = loader.read_telescope_events([1], dl1_images=True)
        truth = read_table(files[0], "/truth/event/telescope/muon/tel_001")
    assert [event_id for event_id, _, _ in events] == list(range(1, 13))
    assert len(table) == len(truth) == 6
    for images in read_images(files[0]):
        rings = rings_of(images, RingOptions(hole_radius_m=0.74))
        theirs = np.array([e for _, tel_id, e in events if tel_id == images.camera.tel_id])
        # The peer takes broken pixels as dark.
        np.testing.assert_allclose(rings["muonefficiency_optical_efficiency"], theirs, rtol=0.1)
