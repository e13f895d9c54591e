"""What stacks of frames are summed up to, for a tile of the sensor, and how that merges.

Integers merge by addition, so the bits depend neither on how the frames were cut into batches nor
on who came first. Floating-point frames merge by Chan, Golub & LeVeque (1979), in the plan's order.
Each summary names the frames in it: none can count twice, none gets lost unseen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.errors import CorruptedInput
from calibdask.sensor.kernel import (
    check_frame_count,
    fold,
    fold_clipped,
    fold_floats,
    frame_extremes,
    mean_and_variance,
    place_sums,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays

__all__ = [
    "FACTS",
    "Areas",
    "Bounds",
    "Frames",
    "PixelMoments",
    "PixelSums",
    "Stack",
    "StackSummary",
    "Tile",
    "frame_facts",
    "summarise",
    "tiles_of",
]

NEVER = 65536
"""A saturation that no 16-bit value reaches."""

FACTS = (
    "bits",  # of all its values, joined by "or": what they are multiples of; 0 of other numbers
    "least",
    "greatest",
    "n_greatest",
    "second",  # greatest value but one
    "n_second",
    "sum_00",  # of the places of the filter pattern, by row and column
    "sum_01",
    "sum_10",
    "sum_11",
)
"""What is known of a whole frame: columns of `Frames.facts`."""

type Tile = tuple[int, int]
"""First row of a band of full width, and the row after its last."""

type Areas = tuple[tuple[int, int, int, int], ...]
"""Parts of a frame (see `calibdask.io.areas.Area`)."""


@dataclass(frozen=True)
class Frames:
    """Which frames are in a summary, and what is known of each, sorted by `frame_id`.

    Attributes
    ----------
    frame_id : ndarray of uint64, shape (n_frames,)
        Name of each frame, from its content.
    frame_sum : ndarray of uint64 or float64, shape (n_frames,)
        Sum of all its pixels in the tile.
    frame_clipped : ndarray of uint32, shape (n_frames,)
        How many of its pixels in the tile were clipped.
    facts : ndarray of float64, shape (n_frames, 10)
        About all of the frame, the same in every tile, by `FACTS`. Masked borders do not count, in
        this as in the sums above.
    """

    frame_id: NDArray[np.uint64]
    frame_sum: NDArray[Any]
    frame_clipped: NDArray[np.uint32]
    facts: NDArray[np.float64]

    def merge(self, other: Frames) -> Frames:
        """Unite two sets of frames.

        Raises
        ------
        CorruptedInput
            A frame is in both.
        """
        both = np.concatenate([self.frame_id, other.frame_id])
        order = np.argsort(both, kind="stable")
        frame_id = both[order]
        if (frame_id[1:] == frame_id[:-1]).any():
            raise CorruptedInput("the same frame would be counted twice in one stack")
        return Frames(
            frame_id,
            np.concatenate([self.frame_sum, other.frame_sum])[order],
            np.concatenate([self.frame_clipped, other.frame_clipped])[order],
            np.concatenate([self.facts, other.facts])[order],
        )


class _PerPixel:
    """What sums and moments of a tile's pixels have in common."""

    n: NDArray[np.uint16]
    frames: Frames

    @property
    def n_frames(self) -> int:
        """How many frames are in it."""
        return len(self.frames.frame_id)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.n.shape
        return rows, columns

    def moments(self, ddof: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of every pixel; NaN where there are too few values."""
        raise NotImplementedError

    def mean(self) -> NDArray[np.float64]:
        """Return the mean of every pixel; NaN where there is no value."""
        return self.moments()[0]

    def variance(self, ddof: int = 1) -> NDArray[np.float64]:
        """Return the variance of every pixel; NaN where there are not more than `ddof` values."""
        return self.moments(ddof)[1]


@dataclass(frozen=True)
class PixelSums(_PerPixel):
    """Exact sums over integer frames for each pixel of a tile.

    Attributes
    ----------
    n : ndarray of uint16, shape (rows, columns)
        How many values were summed.
    s1 : ndarray of uint32
        Their sum.
    s2 : ndarray of uint64
        The sum of their squares.
    minimum, maximum : ndarray of uint16
        Their extremes; 65535 and 0 where there are none.
    n_saturated : ndarray of uint16
        How many were at the saturation level or above.
    frames : Frames
        The frames they are of.
    """

    n: NDArray[np.uint16]
    s1: NDArray[np.uint32]
    s2: NDArray[np.uint64]
    minimum: NDArray[np.uint16]
    maximum: NDArray[np.uint16]
    n_saturated: NDArray[np.uint16]
    frames: Frames

    def merge(self, other: PixelSums) -> PixelSums:
        """Add the sums of other frames.

        Raises
        ------
        CorruptedInput
            A frame is in both.
        OverflowError
            There are too many frames.
        """
        check_frame_count(self.n_frames + other.n_frames)
        return PixelSums(
            self.n + other.n,
            self.s1 + other.s1,
            self.s2 + other.s2,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.n_saturated + other.n_saturated,
            self.frames.merge(other.frames),
        )

    def moments(self, ddof: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of every pixel; NaN where there are too few values."""
        mean, variance = np.empty(self.n.size), np.empty(self.n.size)
        sums = (self.n, self.s1, self.s2)
        n, s1, s2 = (np.ascontiguousarray(one).reshape(-1) for one in sums)
        finish: Any = mean_and_variance
        finish(n, s1, s2, ddof, mean, variance)
        return mean.reshape(self.shape), variance.reshape(self.shape)


@dataclass(frozen=True)
class PixelMoments(_PerPixel):
    """Moments over floating-point frames for each pixel of a tile: not exact, but stable.

    Attributes
    ----------
    n : ndarray of uint16, shape (rows, columns)
        How many finite values there were.
    average : ndarray of float64
        Their mean, 0 where there is none.
    m2 : ndarray of float64
        The sum of squared deviations from it.
    minimum, maximum : ndarray of float64
        Their extremes; infinite where there are none.
    n_saturated : ndarray of uint16
        How many were at the saturation level or above.
    frames : Frames
        The frames they are of.
    """

    n: NDArray[np.uint16]
    average: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    n_saturated: NDArray[np.uint16]
    frames: Frames

    def merge(self, other: PixelMoments) -> PixelMoments:
        """Join the moments of other frames (errors as for :meth:`PixelSums.merge`)."""
        check_frame_count(self.n_frames + other.n_frames)
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        delta = other.average - self.average
        return PixelMoments(
            n,
            np.where(self.n == 0, other.average, self.average + delta * share),
            self.m2 + other.m2 + delta**2 * (self.n * share),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.n_saturated + other.n_saturated,
            self.frames.merge(other.frames),
        )

    def moments(self, ddof: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of every pixel; NaN where there are too few values."""
        n = self.n.astype(np.int64)
        mean = np.where(n > 0, self.average, np.nan)
        variance = np.where(n > ddof, self.m2 / np.maximum(n - ddof, 1), np.nan)
        return mean, variance


Stack = PixelSums | PixelMoments
_PIXELS: dict[type[Stack], tuple[str, ...]] = {
    kind: tuple(one.name for one in fields(kind) if one.name != "frames")
    for kind in (PixelSums, PixelMoments)
}
_FRAMES = tuple(one.name for one in fields(Frames))


@dataclass(frozen=True)
class StackSummary:
    """The stacks of one tile by their key: union of keys, sum of what has the same key."""

    stacks: Mapping[str, Stack]
    empty: ClassVar[Self]

    def merge(self, other: StackSummary) -> StackSummary:
        """Join the stacks of other frames.

        Raises
        ------
        CorruptedInput
            A frame is in both, or one stack has integer frames here and floating-point ones there.
        """
        joined: dict[str, Stack] = {}
        for key in sorted({*self.stacks, *other.stacks}):
            mine, theirs = self.stacks.get(key), other.stacks.get(key)
            if mine is None or theirs is None:
                joined[key] = mine if theirs is None else theirs  # type: ignore[assignment]
            elif type(mine) is type(theirs):
                joined[key] = mine.merge(theirs)  # type: ignore[arg-type]
            else:
                raise CorruptedInput(
                    f"stack {key}: integer and floating-point frames cannot be in one stack;"
                    " give each its own level"
                )
        return StackSummary(joined)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, named by place and field; the keys are one of them."""
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.array(list(self.stacks), dtype=np.str_).reshape(-1),
            "exact": np.array([isinstance(one, PixelSums) for one in self.stacks.values()], bool),
        }
        for number, stack in enumerate(self.stacks.values()):
            for name in _PIXELS[type(stack)]:
                arrays[f"{number}.{name}"] = getattr(stack, name)
            for name in _FRAMES:
                arrays[f"{number}.{name}"] = getattr(stack.frames, name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make the summary again from its arrays."""
        stacks: dict[str, Stack] = {}
        kinds = zip(arrays["keys"].tolist(), arrays["exact"].tolist(), strict=True)
        for number, (key, exact) in enumerate(kinds):
            kind = PixelSums if exact else PixelMoments
            frames = Frames(*(arrays[f"{number}.{name}"] for name in _FRAMES))
            pixels = {name: arrays[f"{number}.{name}"] for name in _PIXELS[kind]}
            stacks[key] = kind(**pixels, frames=frames)
        return cls(stacks)


StackSummary.empty = StackSummary({})


@dataclass(frozen=True)
class Bounds:
    """Which values of each pixel to keep, for a second pass.

    Attributes
    ----------
    low, high : ndarray, shape (rows, columns)
        The least and the greatest value kept: uint16 for integer frames, float64 for others.
    """

    low: NDArray[Any]
    high: NDArray[Any]


def tiles_of(n_rows: int, tile_rows: int) -> list[Tile]:
    """Cut a sensor into bands of full width; the last may have fewer rows."""
    return [(top, min(top + tile_rows, n_rows)) for top in range(0, n_rows, tile_rows)]


class _Sums:
    """Sums of one stack over the whole sensor, while frames are added."""

    def __init__(
        self, shape: tuple[int, int], saturation: float, areas: Areas, *, exact: bool
    ) -> None:
        self.shape = shape
        self.areas = areas
        self.exact = exact
        self.pixels: list[NDArray[Any]]
        if exact:
            self.pixels = [
                np.zeros(shape, np.uint16),
                np.zeros(shape, np.uint32),
                np.zeros(shape, np.uint64),
                np.full(shape, 65535, np.uint16),
                np.zeros(shape, np.uint16),
                np.zeros(shape, np.uint16),
            ]
            self.saturation: float = int(min(np.ceil(saturation), NEVER))
        else:
            self.pixels = [
                np.zeros(shape, np.uint16),
                np.zeros(shape),
                np.zeros(shape),
                np.full(shape, np.inf),
                np.full(shape, -np.inf),
                np.zeros(shape, np.uint16),
            ]
            self.saturation = float(saturation)
        self.ids: list[int] = []
        self.frame_sums: list[NDArray[Any]] = []  # of a batch: shape (tiles, frames)
        self.frame_clipped: list[NDArray[np.uint32]] = []
        self.facts: list[NDArray[np.float64]] = []  # of a batch

    def add(
        self, ids: Sequence[int], batch: NDArray[Any], tiles: Sequence[Tile], bounds: Bounds | None
    ) -> None:
        check_frame_count(len(self.ids) + len(ids))
        columns = self.shape[1]
        flat = batch.reshape(len(batch), -1)
        sums = np.zeros((len(tiles), len(batch)), np.uint64 if self.exact else np.float64)
        clipped = np.zeros((len(tiles), len(batch)), np.uint32)
        for number, (top, bottom) in enumerate(tiles):
            here = slice(top, bottom)
            pixels: Any = [one[here].reshape(-1) for one in self.pixels]
            limits: Any = [] if bounds is None else [bounds.low[here], bounds.high[here]]
            limits = [one.reshape(-1) for one in limits]
            first = top * columns
            if not limits and not self.exact:
                limits = [np.full(pixels[0].size, -np.inf), np.full(pixels[0].size, np.inf)]
            add: Any = fold
            arguments = [flat, first, *limits, *pixels, self.saturation, sums[number]]
            if limits:
                add = fold_clipped if self.exact else fold_floats
                arguments.append(clipped[number])
            add(*arguments)
            if self.areas:
                self._only_lit(batch, (top, bottom), bounds, sums[number], clipped[number])
        self.ids += ids
        self.facts.append(np.stack([frame_facts(frame, self.areas) for frame in batch]))
        self.frame_sums.append(sums)
        self.frame_clipped.append(clipped)

    def _only_lit(
        self, batch: NDArray[Any], tile: Tile, bounds: Bounds | None,
        sums: NDArray[Any], clipped: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """Put in the numbers of whole frames what they are without masked borders."""
        sums[:], clipped[:] = 0, 0
        for top, left, bottom, right in self.areas:
            here = (slice(max(top, tile[0]), min(bottom, tile[1])), slice(left, right))
            values = batch[:, *here]
            finite = values if self.exact else np.where(np.isfinite(values), values, 0)
            sums += finite.sum(axis=(1, 2), dtype=sums.dtype)
            if bounds is not None:
                outside = (values < bounds.low[here]) | (values > bounds.high[here])
                clipped += outside.sum(axis=(1, 2), dtype=np.uint32)

    def stacks(self, tiles: Sequence[Tile]) -> Iterator[Stack]:
        """Return the sums of each tile: views, so that nothing is held twice."""
        ids = np.array(self.ids, np.uint64)
        order = np.argsort(ids, kind="stable")
        if (ids[order][1:] == ids[order][:-1]).any():
            raise CorruptedInput("the same frame would be counted twice in one stack")
        sums = np.concatenate(self.frame_sums, axis=1)[:, order]
        clipped = np.concatenate(self.frame_clipped, axis=1)[:, order]
        facts = np.concatenate(self.facts)[order]
        kind = PixelSums if self.exact else PixelMoments
        for number, (top, bottom) in enumerate(tiles):
            frames = Frames(ids[order], sums[number], clipped[number], facts)
            pixels = dict(zip(_PIXELS[kind], (one[top:bottom] for one in self.pixels), strict=True))
            yield kind(**pixels, frames=frames)


def frame_facts(frame: NDArray[Any], areas: Areas = ()) -> NDArray[np.float64]:
    """Return what is known of a whole frame, or of some areas of it: see `FACTS`."""
    areas = areas or ((0, 0, *frame.shape),)
    facts = np.array([0, np.inf, -np.inf, 0, -np.inf, 0, 0, 0, 0, 0], np.float64)
    if frame.dtype.kind == "u":
        find: Any = frame_extremes
        add: Any = place_sums
        for top, left, bottom, right in areas:
            bits = np.bitwise_or.reduce(frame[top:bottom, left:right], axis=None)
            facts[0] = int(facts[0]) | int(bits)
            find(frame, top, left, bottom, right, facts[1:6])
            add(frame, top, left, bottom, right, facts[6:])
        return facts
    lit = np.zeros(frame.shape, bool)
    for top, left, bottom, right in areas:
        lit[top:bottom, left:right] = True
    known = lit & np.isfinite(frame)
    one = frame[known]
    if one.size:
        facts[1:4] = one.min(), one.max(), np.count_nonzero(one == one.max())
        one = one[one < one.max()]
    if one.size:
        facts[4:6] = one.max(), np.count_nonzero(one == one.max())
    values = np.where(known, frame, 0.0)
    facts[6:] = [values[row::2, column::2].sum() for row in (0, 1) for column in (0, 1)]
    return facts


def summarise(
    frames: Iterable[tuple[str, int, NDArray[Any]]],
    tiles: Sequence[Tile],
    *,
    saturation: float = np.inf,
    bounds: Mapping[str, Bounds] | None = None,
    lit_areas: Areas = (),
    batch: int = 4,
) -> dict[Tile, StackSummary]:
    """Sum up frames, a few in memory at a time.

    Parameters
    ----------
    frames : iterable of (str, int, ndarray)
        Key of its stack, name (64 bits, see :attr:`Frames.frame_id`) and values of each frame.
        Frames of one key follow each other; all have the same shape.
    tiles : sequence of (int, int)
        The bands that together make the sensor.
    saturation : float
        From where on a value counts as saturated.
    bounds : mapping of str to Bounds, optional
        By key: values outside are left out and counted.
    lit_areas : tuple of (int, int, int, int)
        Where light falls (see `calibdask.io.areas.Area`); everywhere unless given. What is outside
        is summed pixel by pixel, but is no part of the numbers of whole frames.
    batch : int
        How many frames are added in one go. It changes no bit of integer frames.

    Returns
    -------
    dict of (int, int) to StackSummary
        One for each tile.

    Raises
    ------
    CorruptedInput
        A frame has another shape or type than the others of its stack, or comes twice.
    OverflowError
        There are too many frames in one stack.
    """
    found: dict[Tile, dict[str, Stack]] = {tile: {} for tile in tiles}
    open_key: str | None = None
    sums: _Sums | None = None
    ids: list[int] = []
    values: NDArray[Any] | None = None

    def flush() -> None:
        if sums is not None and ids and values is not None:
            sums.add(ids, values[: len(ids)], tiles, (bounds or {}).get(str(open_key)))
            ids.clear()

    def close() -> None:
        flush()
        if sums is not None:
            for tile, stack in zip(tiles, sums.stacks(tiles), strict=True):
                found[tile][str(open_key)] = stack

    for key, frame_id, frame in frames:
        exact = frame.dtype in (np.uint8, np.uint16)
        if key != open_key:
            close()
            if key in found[tiles[0]]:
                raise ValueError(f"the frames of stack {key} do not follow each other")
            open_key, values = key, None
            shape = (frame.shape[0], frame.shape[1])
            sums = _Sums(shape, saturation, lit_areas, exact=exact)
        if values is None:
            values = np.empty((batch, *frame.shape), frame.dtype)
        if sums is None or frame.shape != sums.shape or frame.dtype != values.dtype:
            raise CorruptedInput(
                f"stack {key}: a frame of {frame.shape} {frame.dtype} among frames of"
                f" {values.shape[1:]} {values.dtype}"
            )
        values[len(ids)] = frame
        ids.append(frame_id)
        if len(ids) == batch:
            flush()
    close()
    return {tile: StackSummary(dict(sorted(stacks.items()))) for tile, stacks in found.items()}
