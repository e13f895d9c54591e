"""The same pixels in every format a frame can have give the same maps, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr
from astropy.io import fits
from faults import run
from PIL import Image

from calibdask.errors import CorruptedInput
from calibdask.io.dng import DngHeader, write_dng
from calibdask.io.maps import read_product
from calibdask.sensor.stack_images import StackImagesJob

FRAMES = np.random.default_rng(8).integers(100, 4000, (7, 33, 46)).astype(np.uint16)


def write(folder, name):
    """Write the frames in a format; give what to name as input."""
    folder.mkdir(parents=True)
    if name == "npy":
        np.save(folder / "all.npy", FRAMES)
        return folder / "all.npy"
    if name == "zarr":
        group = zarr.open_group(str(folder / "all.zarr"), mode="w")
        array = group.create_array("frames", shape=FRAMES.shape, chunks=(3, 16, 46), dtype="u2")
        array[:] = FRAMES
        return folder / "all.zarr"
    if name == "cube":
        fits.PrimaryHDU(FRAMES).writeto(folder / "all.fits")
        return folder
    for index, frame in enumerate(FRAMES):
        path = folder / f"{index}.{name}"
        match name:
            case "dng":
                write_dng(path, frame, DngHeader("", "", "RGGB", (0, 0, 0, 0), 4095))
            case "fits":
                fits.PrimaryHDU(frame).writeto(path)
            case "png":
                Image.fromarray(frame).save(path)
            case _:
                tifffile.imwrite(path, frame, compression="zlib")
    return folder


@pytest.mark.parametrize("name", ["dng", "fits", "cube", "png", "tif", "npy", "zarr"])
def test_the_same_maps(tmp_path, name):
    run(StackImagesJob(), [write(tmp_path / "in", name)], tmp_path / "out")
    maps = read_product(tmp_path / "out")
    (prefix,) = {place.rpartition("/")[0] for place in maps.layouts if place.endswith("/mean")}
    np.testing.assert_array_equal(maps.rows(f"{prefix}/mean"), FRAMES.mean(axis=0))
    # (n S2 - S1^2) / (n (n - 1)) in integers, rounded once.
    values = FRAMES.astype(object)
    exact = 7 * (values**2).sum(axis=0) - values.sum(axis=0) ** 2
    np.testing.assert_array_equal(maps.rows(f"{prefix}/variance"), (exact / 42).astype(float))


def test_a_zarr_stack_that_lost_a_chunk_is_noticed(tmp_path):
    """Zarr takes a missing chunk for zeros: the plan must not have been of such a store."""
    store = write(tmp_path / "in", "zarr")
    calibration = StackImagesJob()
    run(calibration, [store], tmp_path / "out")
    next(path for path in (store / "frames" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(CorruptedInput, match=r"all\.zarr: 1 of 9 chunks are missing"):
        run(calibration, [store], tmp_path / "again")


def test_stacks_in_a_directory(tmp_path):
    """A Zarr store below the directory that is given is one input, its chunks are none."""
    write(tmp_path / "in" / "a", "zarr")
    write(tmp_path / "in" / "b", "npy")
    result = run(StackImagesJob(), [tmp_path / "in"], tmp_path / "out", allow_missing=0.5)
    assert len(result.plan.inputs) == 2
