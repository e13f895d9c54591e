"""What damage does: flipped bits and cut-off ends in every kind of input (``make fuzz``).

Each case damages one file of a small data set and runs a job on it in a process of its own. A
breach is a process that a signal ends, that hangs, that shows a traceback or has an exit code
without meaning; an input that is left out with exit code 0; and a digest that changes with exit
code 0 where the format has a checksum over the damaged place. Cases follow from the seed alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE_SECONDS = 300.0  # a case takes about one
FORESEEN = {0, 2, 100, 104, 105, 106}
OUTCOMES = ("same digest", "other digest", "refused", "BREACH")


# -- data sets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A data set, what damages it and the job that reads it."""

    name: str
    make: Callable[[Path], None]
    damaged: Callable[[Path], list[Path]]
    command: Callable[[Path], list[str]]
    checked: Callable[[bytes, Path], list[tuple[int, int]]] = lambda _content, _path: []
    """Ranges of bytes that have a checksum."""


def _simulate(name: str, **options: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from calibdask.registry import SIMULATIONS

        simulation = SIMULATIONS[name]
        simulation.simulate(folder, simulation.options()(**options), lambda *_: None)

    return make


_make_dl2 = _simulate("array", n_files=2, n_telescope_events=2000)


def _frames(n: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 4096, (24, 32), dtype=np.uint16) for _ in range(n)]


def _make_dng(folder: Path) -> None:
    from calibdask.io.dng import DngHeader, write_dng

    folder.mkdir()
    header = DngHeader("Maker", "Model", iso=100, exposure_s=0.5, black_level=(1, 2, 3, 4))
    for number, frame in enumerate(_frames()):
        write_dng(folder / f"{number}.dng", frame, header)


def _make_fits(folder: Path) -> None:
    from astropy.io import fits

    folder.mkdir()
    for number, frame in enumerate(_frames()):
        fits.PrimaryHDU(frame).writeto(folder / f"{number}.fits", checksum=True)


def _make_png(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number, frame in enumerate(_frames()):
        Image.fromarray(frame).save(folder / f"{number}.png")


def _make_tiff(folder: Path) -> None:
    import tifffile

    folder.mkdir()
    for number, frame in enumerate(_frames()):
        tifffile.imwrite(folder / f"{number}.tif", frame, rowsperstrip=8, compression="zlib")


def _make_descriptor(folder: Path) -> None:
    _make_png(folder)
    lines = ["v 4.0", "n 12 32 24", "b 1000 50", "i 0.png", "i 1.png", "d 1000", "i 2.png"]
    lines += ["i 3.png", "b 2000 100", "i 4.png", "i 5.png"]
    (folder / "EMVA1288_Data.txt").write_text("\n".join(lines) + "\n")


def _make_yaml(folder: Path) -> None:
    from calibdask.registry import find_job

    _make_dl2(folder)
    (folder / "my.yaml").write_text(find_job("inter-calibration").template())


def _suffix(*suffixes: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(one for one in folder.iterdir() if one.suffix in suffixes)


def _job(name: str, *more: str) -> Callable[[Path], list[str]]:
    return lambda folder: [name, "-i", str(folder), *more]


def _chunks(_content: bytes, path: Path) -> list[tuple[int, int]]:
    """Chunks of tables: fletcher32 is over them, and over nothing else in an HDF5 file."""
    import h5py

    found = []

    def visit(_name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and node.fletcher32:
            for number in range(node.id.get_num_chunks()):
                chunk = node.id.get_chunk_info(number)
                found.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def _all_of_it(content: bytes, _path: Path) -> list[tuple[int, int]]:
    return [(0, len(content))]


TARGETS = (
    Target("HDF5 of events", _make_dl2, _suffix(".h5"), _job("inter-calibration"), _chunks),
    Target(
        "HDF5 of muons", _simulate("muon-tables", n_files=2), _suffix(".h5"),
        _job("calculate-throughput-muon"), _chunks,
    ),
    # Stacks name the content of each frame, so that their digest tells any change of a file: the
    # digest of bias maps is that of the numbers alone.
    Target("DNG", _make_dng, _suffix(".dng"), _job("bias")),
    Target("FITS", _make_fits, _suffix(".fits"), _job("bias"), _all_of_it),
    Target("PNG", _make_png, _suffix(".png"), _job("bias"), _all_of_it),
    Target("TIFF", _make_tiff, _suffix(".tif"), _job("bias")),
    Target("EMVA descriptor", _make_descriptor, _suffix(".txt"), _job("stack-images")),
    Target(
        "YAML", _make_yaml, _suffix(".yaml"),
        lambda folder: ["inter-calibration", "-c", str(folder / "my.yaml"), "-i", str(folder)],
    ),
)  # fmt: skip


# -- damage ---------------------------------------------------------------------------------------


def damage(content: bytes, rng: random.Random) -> tuple[bytes, str, list[int]]:
    """Cut a file short, or flip one to eight of its bits; tell what was done and where."""
    if rng.random() < 0.25:
        length = rng.randrange(len(content))
        return content[:length], f"cut to {length} bytes", []
    flipped = bytearray(content)
    # Headers are small and matter most.
    top = rng.choice((len(content), min(len(content), 4096)))
    places = sorted(rng.randrange(top) for _ in range(rng.choice((1, 1, 2, 8))))
    for place in places:
        flipped[place] ^= 1 << rng.randrange(8)
    return bytes(flipped), f"bits flipped in bytes {places}", places


# -- running --------------------------------------------------------------------------------------


def in_child(work: Callable[[], object], log: Path) -> tuple[int | None, str]:
    """Work in a child of this process; give its exit code (None: it hangs) and output."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            with log.open("wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001  shown as Python would, for the parent to judge
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, log.read_text(errors="replace")


def _run(target: Target, data: Path, work: Path) -> tuple[int | None, str]:
    from calibdask.cli import main as calibdask

    more = ["-o", str(work / "out.h5"), "--cluster", "serial", "--no-report"]
    return in_child(lambda: calibdask([*target.command(data), *more]), work / "log")


def _digest(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("digest ")]
    return lines[-1].split()[-1] if lines else ""


def judge(code: int | None, text: str, sound: str, *, checked: bool, cut: bool) -> tuple[str, str]:
    """Return the outcome of a case, and why where it is a breach."""
    if code is None:
        return "BREACH", "hangs"
    if code < 0:
        return "BREACH", f"ended by {signal.Signals(-code).name}"
    if "Traceback (most recent call last)" in text:
        return "BREACH", "shows a traceback"
    if code not in FORESEEN:
        return "BREACH", f"exit code {code}"
    if code:
        return "refused", ""
    if "left out:" in text:
        return "BREACH", "an input is left out, and all is said to be well"
    if _digest(text) == sound:
        return "same digest", ""
    return ("BREACH", "another digest in silence") if checked or cut else ("other digest", "")


@dataclass
class Table:
    """How often each outcome was seen for each kind of input."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    breaches: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{'input':<18}{'cases':>7}" + "".join(f"{one:>15}" for one in OUTCOMES)]
        for name, counts in self.counts.items():
            row = "".join(f"{counts[one]:>15}" for one in OUTCOMES)
            rows.append(f"{name:<18}{counts.total():>7}{row}")
        total: Counter[str] = sum(self.counts.values(), Counter())
        row = "".join(f"{total[one]:>15}" for one in OUTCOMES)
        rows.append(f"{'all':<18}{total.total():>7}{row}")
        return "\n".join([*rows, *self.breaches])


def fuzz(
    folder: Path,
    cases: int,
    seed: int,
    targets: Sequence[Target] = TARGETS,
    tell: Callable[[str], None] = lambda _: None,
) -> Table:
    """Do `cases` cases with each target."""
    table = Table()
    for target in targets:
        data, work = folder / "data", folder / "work"
        work.mkdir()
        code, text = in_child(partial(target.make, data), work / "log")
        if code != 0:
            raise AssertionError(f"{target.name} cannot be made: {text}")
        code, text = _run(target, data, work)
        sound = _digest(text)
        if code != 0 or not sound:
            raise AssertionError(f"{target.name} undamaged: exit code {code}\n{text[-2000:]}")
        shutil.rmtree(work)
        contents = {path: path.read_bytes() for path in target.damaged(data)}
        ranges = {path: target.checked(content, path) for path, content in contents.items()}
        for number in range(cases):
            rng = random.Random(f"{seed} {target.name} {number}")
            path = rng.choice(list(contents))
            changed, what, places = damage(contents[path], rng)
            path.write_bytes(changed)
            work.mkdir()
            code, text = _run(target, data, work)
            checked = bool(places) and all(
                any(start <= place < stop for start, stop in ranges[path]) for place in places
            )
            # A descriptor or a configuration that is cut short may be another whole one.
            cut = not places and target.name not in ("EMVA descriptor", "YAML")
            outcome, why = judge(code, text, sound, checked=checked, cut=cut)
            table.counts[target.name][outcome] += 1
            if why:
                last = text.strip().splitlines()[-1:] or [""]
                table.breaches.append(
                    f"{target.name}, case {number}: {path.name}, {what}: {why}: {last[0][:300]}"
                )
                tell(table.breaches[-1])
            path.write_bytes(contents[path])
            shutil.rmtree(work)
        shutil.rmtree(data)
        tell(f"{target.name}: {dict(table.counts[target.name])}")
    return table


def _preload() -> None:
    """Import once for all cases what their jobs need."""
    from importlib import import_module

    from calibdask.registry import find_job
    from calibdask.stats.compiled import warm_up

    for name in ("api", "cli", "engine.run", "io.hdf5", "io.frames", "io.maps"):
        import_module(f"calibdask.{name}")
    for name in (
        "astropy.table",
        "astropy.io.fits",
        "astropy.io.misc.yaml",
        "PIL.Image",
        "tifffile",
        "zarr",
        "h5py",
    ):
        import_module(name)
    for name in ("inter-calibration", "calculate-throughput-muon", "stack-images", "bias"):
        find_job(name).prepare((), {})
    warm_up()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=70, help="for each kind of input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="kinds of input")
    options = parser.parse_args()
    targets = [one for one in TARGETS if not options.only or one.name in options.only]
    _preload()
    with tempfile.TemporaryDirectory(prefix="calibdask-fuzz-") as folder:
        table = fuzz(Path(folder), options.cases, options.seed, targets, print)
    print(f"\nseed {options.seed}")
    print(table)
    return 1 if table.breaches else 0


if __name__ == "__main__":
    raise SystemExit(main())
