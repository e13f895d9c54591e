"""Summaries of muon rings: what is merged, and what each stage makes of the rings of a cell.

Values are summed in integers (`calibdask.stats.exact`), so every summary has the same bits
however the rings were cut into shards, and a ring at a clipping bound falls on one side of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from calibdask.muon.gallery import Gallery
from calibdask.muon.model import PROFILES
from calibdask.stats import grouped
from calibdask.stats.exact import ExactMoments
from calibdask.stats.record import ArrayRecord, ArraySums

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ChunkKeys",
    "EfficiencySummary",
    "RingSummary",
    "Rings",
    "WidthSummary",
]

N_BINS = 400
"""Bins of the histogram for the median."""

_LATEST, _EARLIEST = np.iinfo(np.int64).max, np.iinfo(np.int64).min
_NS_PER_MS = 1_000_000
MILLISECONDS_OF_2020 = 1_577_836_800_000
"""Times are summed from here (TAI since 1970)."""

_EFFICIENCY = {"efficiency": ("efficiency_", ExactMoments)}
_GALLERY = {"gallery": ("gallery_", Gallery)}


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Selected rings of one cell, in the order of (time, observation, event).

    Attributes
    ----------
    time_ns, obs_id, event_id : ndarray of int64, shape (N,)
        When, in TAI since 1970, and which.
    efficiency : ndarray of float64, shape (N,)
        Optical efficiency.
    radius_deg, width_deg : ndarray of float64, shape (N,)
        Of the ring.
    impact_m, azimuth_deg : ndarray of float64, shape (N,)
        Where the muon hit: distance from the centre of the mirror, and direction.
    """

    time_ns: NDArray[np.int64]
    obs_id: NDArray[np.int64]
    event_id: NDArray[np.int64]
    efficiency: NDArray[np.float64]
    radius_deg: NDArray[np.float64]
    width_deg: NDArray[np.float64]
    impact_m: NDArray[np.float64]
    azimuth_deg: NDArray[np.float64]

    @property
    def keys(self) -> NDArray[np.int64]:
        """(time, observation, event) of each, shape (N, 3)."""
        return np.stack([self.time_ns, self.obs_id, self.event_id], axis=1)

    @property
    def profile(self) -> dict[str, NDArray[np.float64]]:
        """What residuals are shown against."""
        return {
            "impact": self.impact_m,
            "azimuth": self.azimuth_deg,
            "radius": self.radius_deg,
        }


def _extent(
    chunk: NDArray[np.int64], values: NDArray[np.int64], n_chunks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least and greatest value of each chunk."""
    least, greatest = np.full(n_chunks, _LATEST), np.full(n_chunks, _EARLIEST)
    np.minimum.at(least, chunk, values)
    np.maximum.at(greatest, chunk, values)
    return least, greatest


def _closed_bins(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each value; half open bins but for the last, which holds its upper edge."""
    bins = grouped.bin_of(values, edges).astype(np.int64, copy=False) - 1
    bins[values == edges[-1]] = len(edges) - 2
    return bins


@dataclass(frozen=True, slots=True, eq=False)
class RingSummary(ArrayRecord):
    """The rings of a cell before any clipping: both jobs begin with it.

    Attributes
    ----------
    efficiency : ExactMoments of 1 group
        Optical efficiency.
    least, greatest : ndarray of int64, shape (2,)
        Earliest and latest time in ns, and smallest and largest observation number.
    radius_deg : ndarray of float64, shape (2,)
        Smallest and largest ring radius.
    gallery : Gallery
        A few rings with their images, where rings were fitted to images.
    """

    efficiency: ExactMoments
    least: NDArray[np.int64]
    greatest: NDArray[np.int64]
    radius_deg: NDArray[np.float64]
    gallery: Gallery

    parts: ClassVar = _EFFICIENCY | _GALLERY

    @classmethod
    def identity(cls) -> Self:
        """Return one without rings."""
        return cls(
            ExactMoments.identity(1),
            np.full(2, _LATEST),
            np.full(2, _EARLIEST),
            np.array([np.inf, -np.inf]),
            Gallery.identity(),
        )

    @classmethod
    def of(cls, rings: Rings, gallery: Gallery | None = None) -> Self:
        """Summarise rings."""
        if not len(rings.time_ns):
            return cls.identity()
        group = np.zeros(len(rings.time_ns), np.int64)
        whole = np.stack([rings.time_ns, rings.obs_id])
        return cls(
            ExactMoments.from_groups(group, rings.efficiency, 1),
            whole.min(axis=1),
            whole.max(axis=1),
            np.array([rings.radius_deg.min(), rings.radius_deg.max()]),
            gallery or Gallery.identity(),
        )

    def merge(self, other: Self) -> Self:
        """Join the summaries of different rings."""
        low = min(self.radius_deg[0], other.radius_deg[0])
        high = max(self.radius_deg[1], other.radius_deg[1])
        return type(self)(
            self.efficiency.merge(other.efficiency),
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
            np.array([low, high]),
            self.gallery.merge(other.gallery),
        )


@dataclass(frozen=True, slots=True, eq=False)
class ChunkKeys(ArrayRecord):
    """When the rings of a telescope were seen: 24 bytes each, to cut them into equal numbers.

    Attributes
    ----------
    keys : ndarray of int64, shape (N, 3)
        (time, observation, event), in rising order.
    gallery : Gallery
        A few rings with their images, where rings were fitted to images.
    """

    keys: NDArray[np.int64]
    gallery: Gallery

    parts: ClassVar = _GALLERY

    @classmethod
    def identity(cls) -> Self:
        """Return one without rings."""
        return cls(np.empty((0, 3), np.int64), Gallery.identity())

    @classmethod
    def of(cls, rings: Rings, gallery: Gallery | None = None) -> Self:
        """Take the keys of rings."""
        return cls(rings.keys, gallery or Gallery.identity())

    def merge(self, other: Self) -> Self:
        """Join the keys of different rings."""
        keys = np.concatenate([self.keys, other.keys])
        # Shards mostly follow each other in time.
        if len(self.keys) and len(other.keys) and self.keys[-1, 0] >= other.keys[0, 0]:
            keys = keys[np.lexsort(keys.T[::-1])]
        return type(self)(keys, self.gallery.merge(other.gallery))


@dataclass(frozen=True, slots=True, eq=False)
class EfficiencySummary(ArrayRecord):
    """The rings of a cell within the clipping bounds, by chunk; one chunk where there are bins.

    It holds the range of chunks that have rings here: a shard of a long campaign knows few of them.

    Attributes
    ----------
    first : int
        Number of the first of these K chunks.
    efficiency : ExactMoments of K groups
        Optical efficiency of the rings within the bounds.
    time_ms : ExactMoments of K groups
        Their times, from the beginning of 2020.
    n_all : ndarray of int64, shape (K,)
        Rings of the chunk, clipped ones with them.
    least, greatest : ndarray of int64, shape (2, K)
        Earliest and latest time in ns and smallest and largest observation number, likewise.
    counts : ndarray of int64, shape (K, N_BINS + 2)
        Histogram of (efficiency - mean) / std with the mean and std of the stage before.
    by_impact, by_azimuth, by_radius : ExactMoments of K * n_bins groups
        Efficiency by bins of what residuals are shown against; see `PROFILES`.
    """

    first: int
    efficiency: ExactMoments
    time_ms: ExactMoments
    n_all: NDArray[np.int64]
    least: NDArray[np.int64]
    greatest: NDArray[np.int64]
    counts: NDArray[np.int64]
    by_impact: ExactMoments
    by_azimuth: ExactMoments
    by_radius: ExactMoments

    parts: ClassVar = (
        _EFFICIENCY
        | {"time_ms": ("time_ms_", ExactMoments)}
        | {f"by_{name}": (f"by_{name}_", ExactMoments) for name in PROFILES}
    )

    @property
    def profiles(self) -> dict[str, ExactMoments]:
        """Efficiency by the name of what residuals are shown against."""
        return {name: getattr(self, f"by_{name}") for name in PROFILES}

    @classmethod
    def identity(cls) -> Self:
        """Return one without rings."""
        return cls(
            0,
            ExactMoments.identity(0),
            ExactMoments.identity(0, exponent=0),
            np.empty(0, np.int64),
            np.empty((2, 0), np.int64),
            np.empty((2, 0), np.int64),
            np.empty((0, N_BINS + 2), np.int64),
            *(ExactMoments.identity(0) for _ in PROFILES),
        )

    @classmethod
    def of(
        cls,
        rings: Rings,
        chunk: NDArray[np.int64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        mean: NDArray[np.float64],
        std: NDArray[np.float64],
        reach: float,
    ) -> Self:
        """Summarise rings within bounds.

        Parameters
        ----------
        rings : Rings
            Rings of the cell.
        chunk : ndarray of int64, shape (N,)
            Chunk of each; -1: none.
        low, high : ndarray of float64, shape (all chunks,)
            Bounds of the efficiency, both included.
        mean, std : ndarray of float64, shape (all chunks,)
            Origin and unit of the histogram.
        reach : float
            The histogram covers +- reach.
        """
        keep = chunk >= 0
        if not keep.any():
            return cls.identity()
        first, last = int(chunk[keep].min()), int(chunk.max())
        n_chunks = last - first + 1
        low, high, mean, std = (values[first : last + 1] for values in (low, high, mean, std))
        own, value = chunk[keep] - first, rings.efficiency[keep]
        times, observations = (
            _extent(own, values[keep], n_chunks) for values in (rings.time_ns, rings.obs_id)
        )
        inside = (value >= low[own]) & (value <= high[own])
        n_all = np.bincount(own, minlength=n_chunks).astype(np.int64)
        own, value = own[inside], value[inside]
        index = np.flatnonzero(keep)[inside]
        unit = np.where(std > 0, std, 1.0)
        edges = np.linspace(-reach, reach, N_BINS + 1)
        counts = grouped.histogram(own, (value - mean[own]) / unit[own], n_chunks, edges)
        profiles = []
        for name, (_, bin_edges) in PROFILES.items():
            bins, n_bins = _closed_bins(rings.profile[name][index], bin_edges), len(bin_edges) - 1
            group, seen = own * n_bins + bins, (bins >= 0) & (bins < n_bins)
            of_group = (group, value) if seen.all() else (group[seen], value[seen])
            profiles.append(ExactMoments.from_groups(*of_group, n_chunks * n_bins))
        time_ms = rings.time_ns[index] // _NS_PER_MS - MILLISECONDS_OF_2020
        return cls(
            first,
            ExactMoments.from_groups(own, value, n_chunks),
            ExactMoments.from_groups(own, time_ms, n_chunks, exponent=0),
            n_all,
            np.stack([times[0], observations[0]]),
            np.stack([times[1], observations[1]]),
            counts,
            *profiles,
        )

    def merge(self, other: Self) -> Self:
        """Join the summaries of different rings within the same bounds."""
        if not len(other.n_all):
            return self
        if not len(self.n_all):
            return other
        first = min(self.first, other.first)
        stop = max(one.first + len(one.n_all) for one in (self, other))
        one, two = self.over(first, stop), other.over(first, stop)
        return type(self)(
            first,
            one.efficiency.merge(two.efficiency),
            one.time_ms.merge(two.time_ms),
            one.n_all + two.n_all,
            np.minimum(one.least, two.least),
            np.maximum(one.greatest, two.greatest),
            one.counts + two.counts,
            *(sums.merge(two.profiles[name]) for name, sums in one.profiles.items()),
        )

    def over(self, first: int, stop: int) -> Self:
        """Return the same over a larger range of chunks, of which the others have no ring."""
        before, after = self.first - first, stop - self.first - len(self.n_all)
        if not before and not after:
            return self
        ends = ((0, 0), (before, after))
        profiles = []
        for name, sums in self.profiles.items():
            n_bins = len(PROFILES[name][1]) - 1
            profiles.append(sums.padded(before * n_bins, after * n_bins))
        return type(self)(
            first,
            self.efficiency.padded(before, after),
            self.time_ms.padded(before, after),
            np.pad(self.n_all, (before, after)),
            np.pad(self.least, ends, constant_values=_LATEST),
            np.pad(self.greatest, ends, constant_values=_EARLIEST),
            np.pad(self.counts, ((before, after), (0, 0))),
            *profiles,
        )


@dataclass(frozen=True, slots=True, eq=False)
class WidthSummary(ArraySums):
    """Width over radius of the rings of a cell within the clipping bounds, by bins of radius.

    Attributes
    ----------
    ratio : ExactMoments of B groups
        Width over radius.
    radius_deg : ExactMoments of B groups
        Radius of the same rings.
    n_all : ndarray of int64, shape (B,)
        Rings of the bin, clipped ones with them.
    """

    ratio: ExactMoments
    radius_deg: ExactMoments
    n_all: NDArray[np.int64]

    parts: ClassVar = {
        "ratio": ("ratio_", ExactMoments),
        "radius_deg": ("radius_deg_", ExactMoments),
    }

    @classmethod
    def of(
        cls,
        rings: Rings,
        edges_deg: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> Self:
        """Summarise rings within bounds.

        Parameters
        ----------
        rings : Rings
            Rings of the cell.
        edges_deg : ndarray of float64, shape (B + 1,)
            Bins of the radius: half open, but for the last one, which holds its upper edge.
        low, high : ndarray of float64, shape (B,)
            Bounds of width over radius, both included.
        """
        n_bins, bins = len(low), _closed_bins(rings.radius_deg, edges_deg)
        keep = (bins >= 0) & (bins < n_bins)
        own, radius_deg = bins[keep], rings.radius_deg[keep]
        ratio = ExactMoments.rounded(rings.width_deg[keep] / radius_deg)
        inside = (ratio >= low[own]) & (ratio <= high[own])
        return cls(
            ExactMoments.from_groups(own[inside], ratio[inside], n_bins),
            ExactMoments.from_groups(own[inside], radius_deg[inside], n_bins),
            np.bincount(own, minlength=n_bins).astype(np.int64),
        )
