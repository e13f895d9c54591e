"""Cost of many small cells: 100 telescopes times 100 nights, each a cell of one shard.

``python tests/benchmarks/many_cells.py`` prints processor time and files in the store, and the same
for a second run that finds everything stored.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import QTable
from tiny import MeanCounts, Sums

from calibdask.engine.options import RunOptions
from calibdask.engine.protocol import Piece, Reduced, Tables
from calibdask.engine.run import run_calibration


@dataclass(frozen=True)
class MeanCountsByCell(MeanCounts):
    """Mean counts of each telescope and night: a file is a night."""

    name = "mean-counts-by-cell"
    n_telescopes: int = 100

    def pieces(self, surveys):
        """Give one shard for each night."""
        for survey in surveys:
            night = Path(survey.source.path).stem
            cells = tuple((f"telescope {k}", night) for k in range(self.n_telescopes))
            yield Piece((survey.source,), cells=cells, n_bytes=survey.source.size)

    def reduce(self, shard, data):
        """Sum the counts of each telescope."""
        return Reduced(
            {
                cell: Sums({"n": np.array(part.size), "s1": part.sum(), "s2": (part**2).sum()})
                for cell, part in zip(shard.cells, data, strict=True)
            },
            cut_flow={"counts": data.size},
        )

    def outputs(self, states):
        """Write a row for each cell."""
        found = [state.arrays for state in states.values()]
        columns = {name: np.concatenate([one[name] for one in found]) for name in ("mean", "error")}
        return [Tables({"/mean_counts": QTable(columns)})]


def measure(directory: Path, n_nights: int, n_telescopes: int, cluster: str = "serial"):
    """Return digest, processor time of this process and its children, and files in the store."""
    for night in range(n_nights):
        path = directory / f"{night:04d}.npy"
        if not path.exists():
            random = np.random.default_rng(night)
            np.save(path, random.poisson(20, (n_telescopes, 50)))
    before = sum(os.times()[:4])
    done = run_calibration(
        MeanCountsByCell(n_telescopes=n_telescopes),
        [directory],
        directory / "product.h5",
        RunOptions(cluster=cluster, workers=2, overwrite=True),
        lambda event: None,
    )
    cpu = sum(os.times()[:4]) - before
    work = directory / "product.h5.work"
    return done.digest, cpu, sum(path.is_file() for path in work.rglob("*"))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--telescopes", type=int, default=100)
    parser.add_argument("--cluster", default="serial")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for what in ("new", "stored"):
            digest, cpu, files = measure(
                Path(directory), options.nights, options.telescopes, options.cluster
            )
            print(f"{what}: {cpu:.1f} s of processor time, {files} files, digest {digest[:16]}")


if __name__ == "__main__":
    main()
