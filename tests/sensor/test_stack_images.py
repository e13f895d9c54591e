"""The job stack-images, from files to maps: exact, complete, the same bits whoever did it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray
from faults import run, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import calibdask
from calibdask.engine.products import digest_output
from calibdask.errors import CalibdaskError, ConfigError, CorruptedInput, TransientError
from calibdask.io.hdf5 import read_tables
from calibdask.io.maps import MAPS, TABLES, read_product
from calibdask.sensor import config, stream
from calibdask.sensor.config import Frames, Stacks
from calibdask.sensor.metadata import StackKey
from calibdask.sensor.stack_images import StackImagesJob, group_of, spectacle_stem
from tests.sensor.frames import make_frames, write_stack

BRIGHT = make_frames(14, seed=2, level=2000.0)
DARK = make_frames(9, seed=3, level=300.0)
GROUPS = {"gain/iso100/t0.01/bright": BRIGHT, "gain/iso100/t0.01/dark": DARK}


def _write(root):
    write_stack(root / "images/gain/iso100/bright", BRIGHT)
    write_stack(root / "images/gain/iso100/dark", DARK, minutes=5)
    return root / "images"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("camera"))


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The product of all frames in one task."""
    output = tmp_path_factory.mktemp("reference") / "out"
    return run(StackImagesJob(stacks=Stacks(tile_rows=16)), [images], output), output


def _check_maps(output, groups=None):
    for group, frames in (groups or GROUPS).items():
        with xarray.open_zarr(output / MAPS, group=group) as maps:
            assert np.array_equal(maps["mean"], frames.mean(0))
            np.testing.assert_allclose(maps["variance"], frames.var(0, ddof=1), rtol=1e-13)
            assert np.array_equal(maps["minimum"], frames.min(0))
            assert np.array_equal(maps["maximum"], frames.max(0))
            assert (maps["n"] == len(frames)).all()
            assert np.array_equal(maps["n_saturated"], (frames >= 4095).sum(0))
            means = frames.mean(axis=(1, 2))
            np.testing.assert_allclose(maps["frame_mean"], means, rtol=1e-14)
            yield maps


def test_the_product_opens_in_xarray_with_units_and_provenance(reference, images):
    _, output = reference
    maps = list(_check_maps(output))
    assert maps[0]["mean"].dims == ("y", "x")
    assert maps[0]["variance"].attrs["units"] == "DN2"
    assert maps[0].attrs["iso"] == 100
    assert maps[0].attrs["exposure_s"] == 0.01
    first = maps[0].attrs["frames"][0]
    assert first["path"] == str(images / "gain/iso100/bright/frame_0000.dng")
    assert first["time"] == "2026-03-01T20:00:00"
    assert len(maps[0].attrs["frames"]) == len(BRIGHT)
    tables = read_tables(output / TABLES)
    assert tables["/sensor/stacks"]["n_frames"].tolist() == [14, 9]
    assert len(tables["/sensor/frames"]["mean_dn"]) == 23


@settings(max_examples=6, deadline=None)
@given(
    size=st.integers(1, 15),
    fan_in=st.integers(2, 5),
    cluster=st.sampled_from(["serial", "threads"]),
    backwards=st.booleans(),
)
def test_one_digest_over_sharding_merging_order_and_executor(
    reference, images, tmp_path_factory, size, fan_in, cluster, backwards
):
    output = tmp_path_factory.mktemp("sharded") / "out"
    job = StackImagesJob(stacks=Stacks(tile_rows=16, frames_per_task=size))
    paths = sorted(images.rglob("*.dng"), reverse=backwards)
    result = run(job, paths, output, cluster=cluster, workers=2, fan_in=fan_in)
    assert len(result.plan.shards) >= 14 // size
    assert result.digest == reference[0].digest == digest_output(output)


def test_tiles_change_no_pixel(reference, images, tmp_path):
    run(StackImagesJob(stacks=Stacks(tile_rows=5, frames_per_task=4)), [images], tmp_path / "out")
    mine, theirs = read_product(tmp_path / "out"), read_product(reference[1])
    assert mine.layouts.keys() == theirs.layouts.keys()
    for name in mine.layouts:
        assert np.array_equal(mine.rows(name), theirs.rows(name))


def test_files_may_be_moved_and_renamed(reference, images, tmp_path):
    for number, path in enumerate(sorted(images.rglob("*.dng"), reverse=True)):
        folder = tmp_path / "elsewhere" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number}.dng")
    table = [
        {"path": f"{level}/*.dng", "kind": "gain", "level": level} for level in ("bright", "dark")
    ]
    job = StackImagesJob(
        stacks=Stacks(tile_rows=16), frames=Frames.model_validate({"table": tuple(table)})
    )
    assert run(job, [tmp_path / "elsewhere"], tmp_path / "out").digest == reference[0].digest


@pytest.mark.cluster
def test_the_same_bits_on_a_local_cluster(reference, images, tmp_path):
    settings_file = tmp_path / "settings.yaml"
    settings_file.write_text("Stacks: {tile_rows: 16, frames_per_task: 5}\n", encoding="utf-8")
    result = calibdask.run(
        "stack-images",
        [images],
        tmp_path / "out",
        config=settings_file,
        cluster="local",
        workers=2,
        report=False,
    )
    assert result.account.executor == "local"
    assert result.digest == reference[0].digest


def test_more_frames_later_cost_only_themselves(images, tmp_path):
    paths = sorted((images / "gain/iso100/bright").iterdir())
    job = StackImagesJob(stacks=Stacks(frames_per_task=4))
    options = {"workdir": tmp_path / "work"}
    run(job, paths[:8], tmp_path / "first", **options)
    result = run(job, paths[:12], tmp_path / "second", **options)
    assert (result.account.cached, result.account.computed) == (2, 1)
    list(_check_maps(tmp_path / "second", {"gain/iso100/t0.01/bright": BRIGHT[:12]}))


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_broken_frame_is_named_and_the_others_are_used(tmp_path):
    frames = make_frames(8)
    paths = write_stack(tmp_path / "images/gain/iso100/a", frames)
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    job = StackImagesJob()
    with pytest.raises(CalibdaskError, match=r"frame_0003.dng"):
        run(job, paths, tmp_path / "out")
    result = run(job, paths, tmp_path / "out", allow_missing=0.2)
    assert any("frame_0003.dng" in one.describe() for one in result.plan.rejected)
    good = {"gain/iso100/t0.01/a": np.delete(frames, 3, axis=0)}
    list(_check_maps(tmp_path / "out", good))


@pytest.fixture
def unreadable(monkeypatch):
    """Frames that turn out to be broken only when their pixels are read."""
    broken: dict[str, Exception] = {}
    read = stream.read_frame

    def reads(path, *more):
        for name, error in list(broken.items()):
            if name in str(path):
                if isinstance(error, TransientError):
                    del broken[name]
                raise error
        return read(path, *more)

    monkeypatch.setattr(stream, "read_frame", reads)
    return broken


def test_a_frame_lost_while_reading_is_named_and_the_others_are_used(images, tmp_path, unreadable):
    unreadable["bright/frame_0005"] = CorruptedInput("frame_0005.dng: cannot be decoded")
    job = StackImagesJob(stacks=Stacks(frames_per_task=4))
    with pytest.raises(CalibdaskError, match=r"frame_0005\.dng: cannot be decoded"):
        run(job, [images], tmp_path / "out")
    result = run(job, [images], tmp_path / "out", allow_missing=0.1)
    flow = result.account.total.cut_flow
    assert (flow["frames"], flow["frames read"]) == (23, 22)
    assert result.tables["/sensor/stacks"]["n_lost"].tolist() == [1, 0]
    list(_check_maps(tmp_path / "out", {**GROUPS, next(iter(GROUPS)): np.delete(BRIGHT, 5, 0)}))
    provenance = (tmp_path / "out" / "calibdask.provenance.json").read_text()
    assert "frame_0005.dng: cannot be decoded" in provenance


def test_a_batch_of_which_nothing_can_be_read_is_a_lost_shard(images, tmp_path, unreadable):
    unreadable["dark/frame"] = CorruptedInput("cannot be decoded")
    job = StackImagesJob(stacks=Stacks(frames_per_task=20))
    with pytest.raises(CalibdaskError, match="cannot be decoded"):
        run(job, [images / "gain/iso100/dark"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_system_that_stutters_loses_no_frame(reference, images, tmp_path, unreadable):
    unreadable["bright/frame_0002"] = TransientError("stale file handle")
    job = StackImagesJob(stacks=Stacks(tile_rows=16, frames_per_task=4))
    result = run(job, [images], tmp_path / "out")
    assert result.digest == reference[0].digest
    assert any("stale file handle" in note for note in result.account.notes)


def test_pixels_that_are_not_what_the_metadata_promise(images, tmp_path, monkeypatch):
    read = stream.read_frame

    def reads(path, *more):
        values = read(path, *more)
        return values[:, :-2] if "frame_0004" in str(path) else values

    monkeypatch.setattr(stream, "read_frame", reads)
    with pytest.raises(CalibdaskError, match=r"frame_0004.dng.*\(37, 22\).*\(37, 24\)"):
        run(StackImagesJob(), [images / "gain/iso100/dark"], tmp_path / "out")


def test_the_same_frame_twice_is_used_once(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    folder = tmp_path / "images/gain/iso100/dark"
    shutil.copy(folder / "frame_0002.dng", folder / "copy.dng")
    result = run(
        StackImagesJob(), [tmp_path / "images"], tmp_path / "out",
        allow_missing=0.1,
    )  # fmt: skip
    assert len(result.plan.rejected) == 1
    assert "same data as" in result.plan.rejected[0].describe()
    list(_check_maps(tmp_path / "out"))


def test_too_many_frames_in_one_stack_are_refused_while_planning(tmp_path, monkeypatch):
    monkeypatch.setattr("calibdask.sensor.kernel.MAX_FRAMES", 5)
    paths = write_stack(tmp_path / "images/gain/iso100/a", make_frames(6))
    with pytest.raises(ConfigError, match=r"gain.*6 frames in one stack.*at most 5.*split"):
        run(StackImagesJob(), paths, tmp_path / "out")


def test_a_task_that_needs_more_memory_than_there_is_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match="needs about"):
        run(StackImagesJob(), [images], tmp_path / "out", worker_memory=20_000)


# -- other files --------------------------------------------------------------------------------


def test_floats_and_cubes_of_several_frames(tmp_path):
    floats = make_frames(11).astype(np.float32) / 7
    folder = tmp_path / "flat"
    folder.mkdir()
    np.save(folder / "cube.npy", floats[:8])
    np.save(folder / "rest.npy", floats[8:])
    for size in (3, 50):
        job = StackImagesJob(stacks=Stacks(frames_per_task=size, tile_rows=10))
        output = tmp_path / f"out{size}"
        run(job, [folder], output)
        maps = read_product(output)
        np.testing.assert_allclose(maps.rows("frames/mean"), floats.mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            maps.rows("frames/variance"), floats.astype(float).var(0, ddof=1), rtol=1e-9
        )
        assert (maps.rows("frames/n") == 11).all()


def test_a_cube_that_breaks_off_gives_the_frames_before(tmp_path, monkeypatch):
    frames = make_frames(9)
    np.save(tmp_path / "cube.npy", frames)

    def reads(path, start, stop, *more):
        yield from frames[start : min(stop, 6)]
        raise CorruptedInput(f"{path}: frame 6 is damaged")

    monkeypatch.setattr(stream, "read_frames", reads)
    result = run(
        StackImagesJob(), [tmp_path / "cube.npy"], tmp_path / "out",
        allow_missing=1.0,
    )  # fmt: skip
    assert result.account.total.cut_flow["frames read"] == 6
    assert np.array_equal(read_product(tmp_path / "out").rows("frames/mean"), frames[:6].mean(0))


# -- outliers -----------------------------------------------------------------------------------


def test_cosmic_rays_and_a_bad_frame_are_left_out_in_a_second_pass(tmp_path):
    frames = make_frames(20, seed=5)
    spoilt = frames.copy()
    spoilt[4, 10, 3] = 3900
    spoilt[11, 30, 20] = 4000
    spoilt[13] = np.clip(spoilt[13].astype(int) + 300, 0, 4095)
    paths = write_stack(tmp_path / "images/gain/iso100/a", spoilt)
    digests = set()
    for size, cluster in ((3, "serial"), (50, "threads")):
        output = tmp_path / f"out{size}"
        stacks = Stacks(tile_rows=16, frames_per_task=size, clip_sigma=5.0, clip_iterations=2)
        job = StackImagesJob(stacks=stacks)
        result = run(job, paths, output, cluster=cluster, workers=2)
        digests.add(result.digest)
    assert len(digests) == 1
    maps = read_product(output)
    group = "gain/iso100/t0.01/a"
    keep = np.ones_like(spoilt, bool)
    keep[13] = keep[4, 10, 3] = keep[11, 30, 20] = False
    assert np.array_equal(maps.rows(f"{group}/n"), keep.sum(0))
    assert np.array_equal(maps.rows(f"{group}/n_clipped"), (~keep).sum(0))
    masked = np.ma.masked_array(spoilt, ~keep)
    np.testing.assert_allclose(maps.rows(f"{group}/mean"), masked.mean(0), rtol=1e-14)
    np.testing.assert_allclose(maps.rows(f"{group}/variance"), masked.var(0, ddof=1), rtol=1e-12)
    clipped = maps.rows(f"{group}/frame_clipped")
    assert clipped.tolist() == [(~keep[k]).sum() for k in range(20)]
    named = [one for one in result.account.total.warnings if "outliers" in one]
    assert len(named) == 1
    assert "frame_0013.dng: 100.0 %" in named[0]


def test_two_outliers_in_a_pixel_take_two_passes(tmp_path):
    spoilt = make_frames(30, seed=6)
    spoilt[4, 10, 3], spoilt[9, 10, 3] = 3000, 900
    paths = write_stack(tmp_path / "images/gain/iso100/a", spoilt)
    left = []
    for passes in (1, 2):
        output = tmp_path / f"out{passes}"
        run(StackImagesJob(stacks=Stacks(clip_sigma=5.0, clip_iterations=passes)), paths, output)
        left.append(int(read_product(output).rows("gain/iso100/t0.01/a/n")[10, 3]))
    assert left == [29, 28]


# -- SPECTACLE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ddof", [0, 1])
def test_stacks_as_spectacle_has_them(images, tmp_path, ddof):
    options = config.StackImages(spectacle=True, spectacle_ddof=ddof)
    result = run(StackImagesJob(options=options), [images], tmp_path / "out")
    for name, frames in (("bright", BRIGHT), ("dark", DARK)):
        stem = tmp_path / "out/stacks/gain/iso100" / name
        mean = np.load(stem.with_name(f"{name}_mean.npy"), allow_pickle=False)
        std = np.load(stem.with_name(f"{name}_stds.npy"), allow_pickle=False)
        assert mean.dtype == std.dtype == np.float32
        # The peer's own formula, in single precision.
        np.testing.assert_allclose(mean, frames.mean(axis=0, dtype=np.float32), rtol=1e-6)
        np.testing.assert_allclose(std, frames.std(axis=0, ddof=ddof), rtol=1e-6)
    assert json.loads((tmp_path / "out/calibdask.json").read_text())["files"] == [
        "maps.zarr", "stacks", "tables.h5",
    ]  # fmt: skip
    assert digest_output(tmp_path / "out") == result.digest


def test_names_of_groups():
    assert group_of(StackKey("gain", 100, 0.5, "lamp 3/a")) == "gain/iso100/t0.5/lamp_3_a"
    assert group_of(StackKey()) == "frames"
    key = StackKey("gain", 100)
    assert spectacle_stem(["/x/images/gain/iso100/a/1.dng"], key).as_posix() == "gain/iso100/a"
    assert spectacle_stem(["/x/1.dng", "/y/2.dng"], key).as_posix() == "gain/iso100"


# -- killed -------------------------------------------------------------------------------------

_SLOW = """
import sys, time
from calibdask.sensor import stream
read = stream.read_frame
def slow(path, *more):
    time.sleep(0.1)
    return read(path, *more)
stream.read_frame = slow
from calibdask.cli import main
main()
"""


def test_killed_in_the_middle_and_started_again(reference, images, tmp_path):
    output = tmp_path / "out"
    arguments = [
        "stack-images", "-i", str(images), "-o", str(output), "--cluster", "serial", "--no-report",
        "--set", "Stacks.tile_rows=16", "--set", "Stacks.frames_per_task=3",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = tmp_path / "out.work" / "store"
    try:
        wait_for(lambda: sum(1 for _ in store.glob("*/*.pack")) >= 2, 60)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not output.exists()
    job = StackImagesJob(stacks=Stacks(tile_rows=16, frames_per_task=3))
    result = run(job, [images], output)
    assert result.account.cached >= 2
    assert result.digest == reference[0].digest
