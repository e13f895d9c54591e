"""What calibration from tables of muon rings costs, against the peer and the floor.

    python tests/benchmarks/muon_tables.py [--peer .venv-peer/bin/python] [--scale 0.1]

The floor is reading the columns that are needed with PyTables, in one process that has nothing else
to do. The peer reads one file at a time, so it is compared on one of them. Nothing here fails
because something was slow.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tables

sys.path.insert(0, str(Path(__file__).parent))
from bench import CALIBDASK, Cost, Row, describe_machine, format_table, run

from calibdask.muon.simulate import MuonSimulation, simulate_ring_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

N_FILES = 8
CONFIG = """\
CalculateThroughputWithMuons:
  SigmaClippingAggregator: {SizeChunking: {chunk_size: 1000}}
CalculatePSFWithMuons: {}
"""
NEEDED = (
    *("obs_id", "event_id", "tel_id", "muonring_radius", "muonefficiency_width"),
    *("muonefficiency_impact", "muonefficiency_impact_x", "muonefficiency_impact_y"),
    *("muonefficiency_optical_efficiency", "muonefficiency_is_valid"),
    "muonefficiency_parameters_at_limit",
)


def read(paths: Sequence[Path]) -> float:
    """Read the columns of all rings and their times; give CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    for path in paths:
        with tables.open_file(path) as file:
            for table in file.get_node("/dl1/event/telescope/muon")._f_iter_nodes("Table"):
                rows = table.read()
                for name in NEEDED:
                    rows[name].copy()
            file.get_node("/dl1/event/telescope/trigger").read()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def job(kind: str, paths: Sequence[Path], folder: Path, *options: str) -> Cost:
    """Run a job from the shell."""
    output = folder / f"{kind}.h5"
    command = [CALIBDASK, f"calculate-{kind}-muon", "-q", "--overwrite", "-o", output]
    cost = run([*command, "-i", *paths, *options], folder)
    shutil.rmtree(f"{output}.work")
    return cost


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="Python with ctao-calibpipe")
    parser.add_argument("--scale", type=float, default=1.0, help="of a million rings")
    parsed = parser.parse_args(arguments)
    n_rings = round(1e6 * parsed.scale)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = MuonSimulation(n_files=N_FILES, n_rings=n_rings, n_telescopes=4, gap_s=80_000)
        paths = simulate_ring_tables(folder / "rings", options)
        config = folder / "config.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        floor_s = read(paths)
        floor = "PyTables reading the columns"
        local = ("--cluster", "local", "--workers", "2")
        what = f"{n_rings:,} rings in {N_FILES} files"
        rows = []
        for kind, *more in (
            ("throughput", "--time-bin", "1 d"),
            ("throughput", "-c", str(config)),
            ("psf",),
        ):
            way = {"--time-bin": ", bins of a day", "-c": ", 1000 rings a chunk"}
            title = f"{kind}{way[more[0]] if more else ''}"
            cost = job(kind, paths, folder, *more, *local)
            rows += [
                Row(f"{title}: {what}, 2 workers, wall", cost.wall_s, "s"),
                Row(f"{title}: the same", cost.cpu_s, "s", floor_s, floor),
            ]
            serial = job(kind, paths, folder, *more, "--cluster", "serial")
            rows.append(Row(f"{title}: serial", serial.cpu_s, "s", floor_s, floor))
            if kind == "throughput" and more[0] == "-c":
                continue
            few = job(kind, paths[: N_FILES // 4], folder, *more, *local)
            against = f"{N_FILES // 4} files"
            rows += [
                Row(f"{title}: memory of a worker", cost.worker_mb, "MB", few.worker_mb, against),
                Row(f"{title}: of the driver", cost.driver_mb, "MB", few.driver_mb, against),
            ]
        if parsed.peer is not None:
            for kind in ("throughput", "psf"):
                copy = folder / "peer.h5"
                shutil.copy(paths[0], copy)  # it writes into its input
                tool = parsed.peer.absolute().with_name(f"calibpipe-calculate-{kind}-muon")
                own = folder / f"{kind}.yaml"
                section = CONFIG.splitlines()
                own.write_text("\n".join(section[:2] if kind == "throughput" else section[2:]))
                theirs = run([tool, "-c", own, "-i", copy], folder)
                ours = job(kind, paths[:1], folder, "-c", str(config), "--cluster", "serial")
                one = f"{kind}: one file of {n_rings // N_FILES:,} rings, serial"
                rows += [
                    Row(one, ours.cpu_s, "s", theirs.cpu_s, "calibpipe"),
                    Row(f"{one}, memory", ours.driver_mb, "MB", theirs.driver_mb, "calibpipe"),
                ]
        print(describe_machine(parsed.peer))
        print(format_table(rows))


if __name__ == "__main__":
    main()
