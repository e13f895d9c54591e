"""A few rings with their images, kept through all stages for the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.stats.record import ArrayRecord
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.io.camera_images import TelescopeImages
    from calibdask.muon.report import Picture
    from calibdask.muon.ring_config import RingFit
    from calibdask.stats.timebins import TimeBins

__all__ = ["Gallery", "galleries_of", "pictures"]

_N_SHOWN = 6
"""Images that the report shows."""


@dataclass(frozen=True, slots=True, eq=False)
class Gallery(ArrayRecord):
    """What images add to a cell: its first few rings to look at, and how many are in trouble.

    Attributes
    ----------
    limit : int
        How many are kept.
    keys : ndarray of int64, shape (G, 3)
        (time, observation, event) of each, in rising order.
    rings : ndarray of float64, shape (G, 7)
        Centre (fov_lon, fov_lat), radius and width in deg; efficiency; impact distance in m; width
        of a pixel in deg.
    n_pixels : ndarray of int64, shape (G,)
        Pixels of each image.
    pixels : ndarray of float32, shape (4, sum of n_pixels)
        fov_lon and fov_lat in deg, charge and expected charge in p.e., one image after the other.
    troubled : ndarray of int64, shape (3,)
        Rings that were left out, by the reasons `calibdask.muon.rings.TROUBLED`.
    """

    limit: int
    keys: NDArray[np.int64]
    rings: NDArray[np.float64]
    n_pixels: NDArray[np.int64]
    pixels: NDArray[np.float32]
    troubled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    @classmethod
    def identity(cls, limit: int = 0) -> Self:
        """Return one without images."""
        return cls(
            limit,
            np.empty((0, 3), np.int64),
            np.empty((0, 7)),
            np.empty(0, np.int64),
            np.empty((4, 0), np.float32),
        )

    def merge(self, other: Self) -> Self:
        """Keep the first rings of both, and count all that are in trouble."""
        limit, troubled = max(self.limit, other.limit), self.troubled + other.troubled
        if not len(other.keys):
            return replace(self, limit=limit, troubled=troubled)
        if not len(self.keys):
            return replace(other, limit=limit, troubled=troubled)
        keys = np.concatenate([self.keys, other.keys])
        chosen = np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0]))[:limit]
        images = [*self.images(), *other.images()]
        return type(self)(
            limit,
            keys[chosen],
            np.concatenate([self.rings, other.rings])[chosen],
            np.concatenate([self.n_pixels, other.n_pixels])[chosen],
            np.concatenate([images[i] for i in chosen.tolist()], axis=1),
            troubled,
        )

    def images(self) -> list[NDArray[np.float32]]:
        """Pixels of each image, shape (4, n_pixels)."""
        return (
            np.split(self.pixels, np.cumsum(self.n_pixels)[:-1], axis=1) if len(self.keys) else []
        )


def _picture(
    images: TelescopeImages,
    number: int,
    ring: Mapping[str, Any],
    expected: NDArray[np.float64],
    limit: int,
) -> Gallery:
    """Return a gallery of one image."""
    camera = images.camera
    fields = (
        *("muonring_center_fov_lon", "muonring_center_fov_lat", "muonring_radius"),
        *("muonefficiency_width", "muonefficiency_optical_efficiency", "muonefficiency_impact"),
    )
    width_deg = np.degrees(camera.pixel_width_rad[0])
    pixels = [
        np.degrees(camera.pixel_x_rad),
        np.degrees(camera.pixel_y_rad),
        images.image[number],
        expected,
    ]
    return Gallery(
        limit,
        np.array([[ring[name] for name in ("time_ns", "obs_id", "event_id")]], np.int64),
        np.array([[*(float(ring[name]) for name in fields), width_deg]]),
        np.array([len(expected)], np.int64),
        np.array(pixels, np.float32),
    )


def galleries_of(
    blocks: Sequence[TelescopeImages],
    columns: Mapping[str, NDArray[Any]],
    selected: Mapping[Cell, NDArray[np.intp]],
    ring_fit: RingFit,
    bins: TimeBins | None,
) -> dict[Cell, Gallery]:
    """Take the first few images of each cell, with the fits; count the rings in trouble.

    Parameters
    ----------
    blocks : sequence of TelescopeImages
        The images.
    columns : mapping of str to ndarray, shape (N,)
        What was fitted to them, with ``time_ns``.
    selected : mapping of Cell to ndarray of int
        Selected rings of each cell, in the order of (time, observation, event).
    ring_fit : RingFit
        How they were fitted.
    bins : TimeBins or None
        Time bins.
    """
    from calibdask.muon.rings import TROUBLED, predicted_image

    starts = np.cumsum([0, *(len(images.event_id) for images in blocks)])
    limit = _N_SHOWN if bins is None else 1
    found: dict[Cell, Gallery] = {}
    for cell, numbers in selected.items():
        found[cell] = Gallery.identity(limit)
        for number in numbers[:limit].tolist():
            block = int(np.searchsorted(starts, number, side="right")) - 1
            images, camera = blocks[block], blocks[block].camera
            ring = {name: values[number] for name, values in columns.items()}
            options = ring_fit.of_telescope(camera.tel_id, camera.tel_description)
            expected = predicted_image(camera, options, ring)
            one = _picture(images, number - int(starts[block]), ring, expected, limit)
            found[cell] = found[cell].merge(one)
    status, time_ns = columns["status"], columns["time_ns"]
    troubled: dict[Cell, NDArray[np.int64]] = {}
    for row in np.flatnonzero(np.isin(status, TROUBLED) & (time_ns != NO_TIME)).tolist():
        number = 0 if bins is None else int(bins.index(time_ns[row : row + 1])[0])
        own = troubled.setdefault((int(columns["tel_id"][row]), number), np.zeros(3, np.int64))
        own[TROUBLED.index(int(status[row]))] += 1
    for cell, counts in troubled.items():
        found[cell] = replace(found.get(cell, Gallery.identity(limit)), troubled=counts)
    return found


def pictures(galleries: Mapping[Cell, Gallery]) -> list[Picture]:
    """Pick images for the report, of every telescope in turn."""
    from calibdask.muon.report import Picture

    by_telescope: dict[int, list[Picture]] = {}
    for cell, gallery in sorted(galleries.items()):
        for key, ring, pixels in zip(gallery.keys, gallery.rings, gallery.images(), strict=True):
            tel_id = int(cell[0])
            one = Picture(tel_id, int(key[1]), int(key[2]), ring, pixels)
            by_telescope.setdefault(tel_id, []).append(one)
    turns = zip_longest(*by_telescope.values())
    return [one for turn in turns for one in turn if one is not None][:_N_SHOWN]
