"""What stacks of raw frames cost: ``make bench-sensor``.

Three comparisons, each in processes of its own, so that memory is its own: moments of a stack that
is in memory; stacks of DNG files from the first byte to the product; and a long stack on two local
workers. The peer is SPECTACLE's way, its formula and nothing of its code: all frames in one array,
then ``mean`` and ``std`` over them in single precision. The floor is to read the bytes.

Nothing here fails because something was slow; it does where results differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from bench import Cost, Row, format_table, run

HERE = Path(__file__).parent
SHAPE = 3000, 4000
IN_RAM = 50  # frames
END_TO_END = 24, 72, 144
LONG = 1000
TURNS = 3


def make_stack(n: int, shape: tuple[int, int]) -> np.ndarray:
    """Return frames of a noisy sensor."""
    random = np.random.default_rng(1)
    stack = np.empty((n, *shape), np.uint16)
    pattern = random.normal(800.0, 20.0, shape).astype(np.float32)
    for frame in stack:
        frame[...] = pattern + random.standard_normal(shape, np.float32) * 6.0
    return stack


def write_frames(folder: Path, n: int, shape: tuple[int, int]) -> None:
    """Write uncompressed DNG files that all differ; of many, some share their pixels."""
    from calibdask.io.dng import DngHeader, write_dng

    stack = make_stack(min(n, 24), shape)
    leaf = folder / "images" / "bias_readnoise" / "iso100"
    leaf.mkdir(parents=True)
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(n):
        header = DngHeader(
            "Maker", "Model", iso=100, exposure_s=0.001, white_level=4095,
            time=begin + timedelta(seconds=number),
        )  # fmt: skip
        # The first pixel tells frames apart whose others are alike.
        frame = stack[number % len(stack)]
        frame[0, 0] = number
        write_dng(leaf / f"iso100_{number:05d}.dng", frame, header)


# -- what is measured, each in a process of its own -----------------------------------------------


def _memory_mb(what: str) -> float:
    """Return resident memory now (VmRSS) or at most since the last reset (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel tells no {what}")


def moments_floor(stack: np.ndarray) -> None:
    """Read every byte once."""
    stack.view(np.uint64).max()


def moments_ours(stack: np.ndarray) -> None:
    """Exact sums, finalised."""
    from calibdask.sensor.kernel import stack_moments

    stack_moments(stack)


def moments_peer(stack: np.ndarray) -> None:
    """The formula of SPECTACLE 3.1.2: two passes in single precision."""
    stack.mean(axis=0, dtype=np.float32)
    stack.std(axis=0, dtype=np.float32)


def in_ram(what: str, n: int, shape: tuple[int, int]) -> dict[str, float]:
    """Time one of the ways to moments of a stack in memory, the best of three."""
    work = {"floor": moments_floor, "ours": moments_ours, "peer": moments_peer}[what]
    if what == "ours":
        from calibdask.sensor.kernel import stack_moments

        stack_moments(np.zeros((5, 2, 4), np.uint16))  # compile, or load what was compiled
    stack = make_stack(n, shape)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _memory_mb("VmRSS")
    times = []
    for _ in range(1 if what == "peer" else 3):
        start = time.perf_counter()
        work(stack)
        times.append(time.perf_counter() - start)
    return {"wall": min(times), "more_mb": _memory_mb("VmHWM") - before}


def files_floor(folder: Path, output: Path) -> None:
    """Read the files, one after the other."""
    del output
    for path in sorted(folder.rglob("*.dng")):
        path.read_bytes()


def files_numpy(folder: Path, output: Path) -> None:
    """Number, sum and sum of squares over LibRaw or astropy: one frame in memory at a time."""
    import rawpy
    from astropy.io import fits

    n, total, squares = 0, np.zeros((), np.uint32), np.zeros((), np.uint64)
    for path in sorted([*folder.rglob("*.dng"), *folder.rglob("*.fits")]):
        if path.suffix == ".fits":
            frame = fits.getdata(path)
        else:
            with rawpy.imread(str(path)) as raw:
                frame = raw.raw_image.copy()
        if not n:
            total, squares = np.zeros(frame.shape, np.uint32), np.zeros(frame.shape, np.uint64)
        n += 1
        total += frame
        squares += np.square(frame, dtype=np.uint32)
    output.mkdir()
    np.save(output / "mean.npy", (total / n).astype(np.float32))
    variance = (n * squares - total.astype(np.uint64) ** 2) / (n * (n - 1))
    np.save(output / "stds.npy", np.sqrt(variance).astype(np.float32))


def files_peer(folder: Path, output: Path) -> None:
    """All frames into one array by LibRaw, then mean and standard deviation, then two files."""
    import rawpy

    frames = []
    for path in sorted(folder.rglob("*.dng")):
        with rawpy.imread(str(path)) as raw:
            frames.append(raw.raw_image.copy())
    stack = np.stack(frames)
    output.mkdir()
    np.save(output / "mean.npy", stack.mean(axis=0, dtype=np.float32))
    np.save(output / "stds.npy", stack.std(axis=0, dtype=np.float32))


def _best(costs: list[Cost]) -> Cost:
    """Take the least of each number: other programs only ever add."""
    return Cost(
        *(min(getattr(one, f.name) for one in costs) for f in fields(Cost) if f.name != "stdout"),
        stdout="",
    )


def _job(folder: Path, output: Path, *more: str) -> list[object]:
    program = Path(sys.executable).with_name("calibdask")
    return [
        program, "stack-images", "-i", folder, "-o", output, "--no-report", "-q", *more,
    ]  # fmt: skip


def _check(output: Path, expected: Path) -> None:
    """Refuse to compare what is not the same."""
    import zarr

    group = zarr.open_group(output / "maps.zarr", mode="r")["bias_readnoise/iso100"]
    mean, std = (np.load(expected / f"{name}.npy") for name in ("mean", "stds"))
    n = int(group["n"][0, 0])
    np.testing.assert_allclose(group["mean"][:], mean, rtol=1e-4)
    np.testing.assert_allclose(group["variance"][:] * (n - 1) / n, std**2, rtol=1e-2, atol=1e-2)


# -- the table ------------------------------------------------------------------------------------


def bench_in_ram(folder: Path, shape: tuple[int, int]) -> list[Row]:
    """Moments of a stack in memory."""
    cost = {}
    for what in ("floor", "ours", "peer"):
        command = [sys.executable, HERE / "sensor.py", "--one", what, "--shape", *shape]
        cost[what] = json.loads(run(command, folder).stdout.splitlines()[-1])
    ours, peer, floor = cost["ours"], cost["peer"], cost["floor"]
    name = f"moments of {IN_RAM} frames in memory"
    return [
        Row(name, ours["wall"], "s", peer["wall"], "the peer's formula", 1 / 15),
        Row(name, ours["wall"], "s", floor["wall"], "to read the bytes"),
        Row(f"{name}: memory beyond the stack", ours["more_mb"], "MB", 160.0, "allowed", 1.0),
        Row(
            f"{name}: memory beyond the stack", ours["more_mb"], "MB", peer["more_mb"],
            "the peer's formula",
        ),
    ]  # fmt: skip


def bench_files(folder: Path, shape: tuple[int, int]) -> list[Row]:
    """Stacks of DNG files, from the shell to the product."""
    few, many, more = END_TO_END
    write_frames(folder / "few", few, shape)
    one = [sys.executable, HERE / "sensor.py", "--files"]
    job = _job(folder / "few", folder / "ours", "--cluster", "serial")
    run(job, folder)  # files into the page cache, modules and loops compiled
    expected = folder / "peer"
    costs: dict[str, list[Cost]] = {"floor": [], "peer": [], "ours": []}
    for _ in range(TURNS):
        for what in ("floor", "peer"):
            _remove(expected)
            costs[what].append(run([*one, what, folder / "few", expected], folder))
        _check(folder / "ours", expected)
        _remove(folder / "ours")
        costs["ours"].append(run(job, folder))
    floor, peer, ours = (_best(costs[what]) for what in ("floor", "peer", "ours"))
    threads = run(
        _job(
            folder / "few",
            folder / "threads",
            "--cluster",
            "threads",
            "--workers",
            "2",
            "--set",
            f"Stacks.frames_per_task={few // 2}",
        ),
        folder,
    )
    write_frames(folder / "more", more, shape)
    longest = run(_job(folder / "more", folder / "longest", "--cluster", "serial"), folder)
    for path in sorted((folder / "more").rglob("*.dng"))[many:]:
        path.unlink()
    longer = run(_job(folder / "more", folder / "longer", "--cluster", "serial"), folder)
    longer_peer = run([*one, "peer", folder / "more", folder / "peer2"], folder)
    name = f"stack of {few} DNG files"
    marginal = (longest.cpu_s - longer.cpu_s) / (more - many)
    marginal_peer = (longer_peer.cpu_s - peer.cpu_s) / (many - few)
    rows = [
        Row(f"{name}, serial", ours.wall_s, "s", peer.wall_s, "the peer's way", 1 / 2),
        Row(f"{name}, serial: CPU", ours.cpu_s, "s", peer.cpu_s, "the peer's way"),
        Row(f"{name}, serial: CPU", ours.cpu_s, "s", floor.cpu_s, "to read the files"),
        Row(f"{name}, two threads", threads.wall_s, "s", peer.wall_s, "the peer's way", 1 / 2),
        Row(
            f"stack of {many} DNG files, serial", longer.wall_s, "s", longer_peer.wall_s,
            "the peer's way", 1 / 2,
        ),
        Row(
            f"stack of {many} DNG files, serial: CPU", longer.cpu_s, "s", longer_peer.cpu_s,
            "the peer's way",
        ),
        Row("each further frame: CPU", marginal, "s", marginal_peer, "the peer's way"),
        Row(f"{name}: memory", ours.driver_mb, "MB", peer.driver_mb, "the peer's way"),
        Row(
            f"memory with {more} files", longest.driver_mb, "MB", longer.driver_mb, f"with {many}",
            1.1,
        ),
    ]  # fmt: skip
    for name_of_part in ("few", "more", "ours", "threads", "longer", "longest"):
        _remove(folder / name_of_part)
    return rows


def bench_streaming(folder: Path, shape: tuple[int, int]) -> list[Row]:
    """CPU beyond that of a trivial run, against a streaming NumPy loop over the same files."""
    from astropy.io import fits

    write_frames(folder / "trivial", 2, (64, 64))
    sources = {f"{n} DNG files": folder / f"dng{n}" for n in END_TO_END[:2]}
    for n, source in zip(END_TO_END, sources.values(), strict=False):
        write_frames(source, n, shape)
    sources["40 FITS files"] = folder / "fits"
    (folder / "fits" / "bias_readnoise").mkdir(parents=True)
    stack = make_stack(8, shape)
    for number in range(40):
        frame = stack[number % len(stack)]
        frame[0, 0] = number
        fits.writeto(folder / "fits" / "bias_readnoise" / f"{number:02d}.fits", frame)
    costs: dict[str, list[tuple[Cost, Cost, Cost]]] = {name: [] for name in sources}
    for _ in range(TURNS):
        for name, source in sources.items():
            mine = []
            for one in (folder / "trivial", source):
                mine.append(run(_job(one, folder / "ours", "--cluster", "serial"), folder))
                _remove(folder / "ours")
            loop = [sys.executable, HERE / "sensor.py", "--files", "numpy", source]
            costs[name].append((*mine, run([*loop, folder / "loop"], folder)))
            _remove(folder / "loop")
    rows = []
    for name, turns in costs.items():
        trivial, ours, loop = (_best([*of]) for of in zip(*turns, strict=True))
        allowed = {"24 DNG files": 2.0, "72 DNG files": 1.1}.get(name, 1.5)
        beyond = ours.cpu_s - trivial.cpu_s
        what = f"stack of {name}, serial: CPU beyond a trivial run"
        rows.append(Row(what, beyond, "s", loop.cpu_s, "a NumPy loop", allowed))
    for source in (*sources.values(), folder / "trivial"):
        _remove(source)
    return rows


def bench_long(folder: Path, shape: tuple[int, int], n: int) -> list[Row]:
    """A long stack on two local workers."""
    write_frames(folder / "long", n, shape)
    run(
        [sys.executable, HERE / "sensor.py", "--files", "floor", folder / "long", folder / "none"],
        folder,
    )
    two = ("--cluster", "local", "--workers", "2")
    local = run(_job(folder / "long", folder / "two", *two), folder)
    clipped = run(
        _job(folder / "long", folder / "clipped", *two, "--set", "Stacks.clip_sigma=5.0"), folder
    )
    rows = [
        Row(f"stack of {n} DNG files, two workers", local.wall_s, "s"),
        Row(f"stack of {n}: CPU", local.cpu_s, "s"),
        Row(f"stack of {n}: largest worker", local.worker_mb, "MB", 1500.0, "allowed", 1.0),
        Row(f"stack of {n}: driver", local.driver_mb, "MB"),
        Row(f"stack of {n} with sigma clipping", clipped.wall_s, "s", local.wall_s, "without"),
        Row(
            f"stack of {n} with sigma clipping: largest worker", clipped.worker_mb, "MB", 1500.0,
            "allowed", 1.0,
        ),
    ]  # fmt: skip
    for name in ("long", "two", "clipped"):
        _remove(folder / name)
    return rows


def _remove(path: Path) -> None:
    import shutil

    for one in (path, path.with_name(f"{path.name}.work")):
        shutil.rmtree(one, ignore_errors=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=["ram", "files", "streaming", "long"], default=None
    )
    parser.add_argument("--shape", nargs=2, type=int, default=SHAPE, help="rows and columns")
    parser.add_argument("--frames", type=int, default=LONG, help="frames of the long stack")
    parser.add_argument("--one", choices=["floor", "ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = tuple(given.shape)
    if given.one:
        print(json.dumps(in_ram(given.one, IN_RAM, shape)))
        return
    if given.files:
        what, source, output = given.files
        ways = {"floor": files_floor, "numpy": files_numpy, "peer": files_peer}
        ways[what](Path(source), Path(output))
        return
    # Modules are compiled once on a user's machine; without it, each start pays for it again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parts = given.only or ["ram", "files", "streaming", "long"]
    rows: list[Row] = []
    base = os.environ.get("CALIBDASK_BENCH_DATA")
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name)
        if "ram" in parts:
            rows += bench_in_ram(folder, shape)
        if "files" in parts:
            rows += bench_files(folder, shape)
        if "streaming" in parts:
            rows += bench_streaming(folder, shape)
        if "long" in parts:
            rows += bench_long(folder, shape, given.frames)
    print(f"{shape[0]} x {shape[1]} pixels of 16 bits\n\n{format_table(rows)}")


if __name__ == "__main__":
    main()
