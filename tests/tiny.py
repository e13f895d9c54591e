"""A whole calibration: the mean of some counts and its error. The README shows this file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.table import QTable

from calibdask.engine.protocol import ALL, Calibration, Reduced, Tables, Values


@dataclass(frozen=True)
class Sums:
    """What can be merged: number, sum and sum of squares of integer counts, hence exact."""

    arrays: dict[str, np.ndarray]

    def merge(self, other):
        return Sums({name: self.arrays[name] + other.arrays[name] for name in self.arrays})

    def to_arrays(self):
        return self.arrays

    @classmethod
    def from_arrays(cls, arrays):
        return cls(dict(arrays))


@dataclass(frozen=True)
class MeanCounts(Calibration):
    name = "mean-counts"
    patterns = ("*.npy",)
    summary = Sums

    def read(self, shard):
        return np.load(shard.inputs[0].path)

    def reduce(self, shard, data):
        sums = {"n": np.array(data.size), "s1": data.sum(), "s2": (data**2).sum()}
        return Reduced({ALL: Sums(sums)}, cut_flow={"counts": data.size})

    def fit(self, stage, cell, total, given):
        n, s1, s2 = (float(total.arrays[name]) for name in ("n", "s1", "s2"))
        variance = (s2 - s1**2 / n) / (n - 1)
        return Values({"mean": np.array([s1 / n]), "error": np.array([np.sqrt(variance / n)])})

    def outputs(self, states):
        return [Tables({"/mean_counts": QTable(dict(states[ALL].arrays))})]
