"""One tile of a sensor as a calibration sees it: its stacks in, its maps out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.sensor.summary import Bounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Arrays
    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.summary import Stack

    type FactKey = tuple[str | int | float, ...]
    type Facts = Mapping[FactKey, NDArray[Any]]

__all__ = ["FACT", "FrameSum", "SensorFacts", "SideArray", "TileFit", "TileStacks"]

FACT = "fact "
"""How the names of a tile's facts begin where it is stored."""


@dataclass(frozen=True, slots=True)
class SensorFacts:
    """What all frames of a run have in common.

    Attributes
    ----------
    camera : str
        Make and model; empty where the files do not tell.
    shape : (int, int)
        Rows and columns of the raw image.
    pattern : str
        Colours of the 2 x 2 filter pattern, row by row from the first pixel on; empty for none.
    black_level : tuple of float
        As the files state it, at the four places of the pattern, or one number; empty if unknown.
    saturation_dn : int or None
        Value from which a pixel is saturated.
    bit_depth : int or None
        Bits of the converter.
    first, last : str
        Times of the first and the last frame; empty where unknown.
    serial_number, binning, window, unit
        As in `calibdask.io.frame_info.FrameInfo`.
    lit_areas : tuple of (int, int, int, int)
        Where light falls (see `calibdask.io.areas.Area`); empty for everywhere.
    step_dn : int
        Values are multiples of this: more than 1 where they are left-justified.
    """

    camera: str
    shape: tuple[int, int]
    pattern: str = ""
    black_level: tuple[float, ...] = ()
    saturation_dn: int | None = None
    bit_depth: int | None = None
    first: str = ""
    last: str = ""
    serial_number: str = ""
    binning: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    unit: str = ""
    lit_areas: tuple[tuple[int, int, int, int], ...] = ()
    step_dn: int = 1

    def lit(self, first: int, stop: int) -> NDArray[np.bool_]:
        """Return whether light falls on the pixels of some rows, shape (stop - first, W)."""
        lit = np.zeros((stop - first, self.shape[1]), bool)
        for top, left, bottom, right in self.lit_areas or ((0, 0, *self.shape),):
            lit[max(top - first, 0) : max(bottom - first, 0), left:right] = True
        return lit

    @property
    def n_lit_by_place(self) -> NDArray[np.float64]:
        """Lit pixels at the four places of the filter pattern, row by row."""
        counts = np.zeros(4)
        for top, left, bottom, right in self.lit_areas or ((0, 0, *self.shape),):
            rows, columns = (
                np.array([(stop + 1) // 2 - (first + 1) // 2, stop // 2 - first // 2])
                for first, stop in ((top, bottom), (left, right))
            )
            counts += np.outer(rows, columns).ravel()
        return counts

    @property
    def n_lit(self) -> int:
        """Pixels that light falls on."""
        return int(self.n_lit_by_place.sum())

    @property
    def lit_box(self) -> tuple[int, int, int, int]:
        """The least rectangle that holds all lit areas."""
        if not self.lit_areas:
            return (0, 0, *self.shape)
        tops, lefts, bottoms, rights = zip(*self.lit_areas, strict=True)
        return min(tops), min(lefts), max(bottoms), max(rights)


@dataclass(frozen=True, slots=True)
class FrameSum:
    """One frame in a tile.

    Attributes
    ----------
    name : int
        64 bits that stand for its content.
    path : str
        Its file.
    index : int
        Its place in the file.
    time : str
        When it was taken; empty where unknown.
    total : int or float
        Sum of all its pixels in the tile.
    n_clipped : int
        How many of them were clipped.
    """

    name: int
    path: str
    index: int
    time: str
    total: float
    n_clipped: int


@dataclass(frozen=True)
class SideArray:
    """A small array beside the maps.

    Attributes
    ----------
    values : ndarray
        All of it.
    dims : tuple of str
        Names of its dimensions.
    attributes : mapping
        JSON values: units, long_name, ...
    """

    values: NDArray[Any]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TileStacks:
    """The stacks of one tile.

    Attributes
    ----------
    y0, y1 : int
        First row, and the row after the last; tiles are of full width.
    channel : ndarray of int8, shape (rows, columns)
        Colour index of each pixel as LibRaw counts: 0 R, 1 G, 2 B, 3 second G; 0 without filters.
    sensor : SensorFacts
        The sensor.
    stacks : mapping of StackKey to PixelSums or PixelMoments
        In sorted order of the keys.
    frames : mapping of StackKey to tuple of FrameSum
        The frames in each stack, in order of time and path.
    given : mapping of str to mapping of str to ndarray
        Maps of other calibrations by the name under which they are configured, these rows of them;
        each is read when it is asked for.
    """

    y0: int
    y1: int
    channel: NDArray[np.int8]
    sensor: SensorFacts
    stacks: Mapping[StackKey, Stack]
    frames: Mapping[StackKey, tuple[FrameSum, ...]]
    given: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    @cached_property
    def lit(self) -> NDArray[np.bool_]:
        """Where light falls, shape (rows, columns): neither masked border nor overscan."""
        return self.sensor.lit(self.y0, self.y1)

    def places_of(self, channel: int) -> NDArray[np.bool_]:
        """Return which of the four places of the filter pattern a channel of the tile has."""
        rows, columns = self.shape
        found = np.zeros(4, bool)
        for place in range(4):
            row, column = (place // 2 - self.y0) % 2, place % 2
            inside = row < rows and column < columns
            found[place] = inside and self.channel[row, column] == channel
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.channel.shape
        return rows, columns


@dataclass(frozen=True)
class TileFit:
    """What a calibration makes of one tile; with bounds, another pass over the frames follows.

    Attributes
    ----------
    maps : mapping of str to ndarray, shape (rows, columns)
        By name: group in the Zarr directory and variable, as in ``bias/iso100/bias``.
    facts : mapping of tuple to ndarray
        Small arrays that are joined over all tiles, by what they are and of what: for instance
        ``("levels", "iso100")``.
    bounds : mapping of str to Bounds
        By stack: what to keep of each pixel in the next pass.
    """

    maps: Arrays = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether no further pass is needed."""
        return not self.bounds

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, named by what they are."""
        arrays = {f"map {name}": np.asarray(one) for name, one in self.maps.items()}
        arrays |= {FACT + json.dumps(key): np.asarray(one) for key, one in self.facts.items()}
        for name, one in self.bounds.items():
            arrays |= {f"low {name}": one.low, f"high {name}": one.high}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make it again from its arrays."""

        def named(kind: str) -> dict[str, NDArray[Any]]:
            start = f"{kind} "
            return {
                name.removeprefix(start): one
                for name, one in arrays.items()
                if name.startswith(start)
            }

        high = named("high")
        bounds = {name: Bounds(low, high[name]) for name, low in named("low").items()}
        facts = {tuple(json.loads(key)): one for key, one in named("fact").items()}
        return cls(named("map"), facts, bounds)
