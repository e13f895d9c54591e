"""From muon tables, or images, to selected rings in order. No files here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calibdask.muon.summary import Rings
from calibdask.select import QualityCriteria
from calibdask.stats.exact import ExactMoments
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell, Rows
    from calibdask.io.camera_images import TelescopeImages
    from calibdask.muon.ring_config import RingFit
    from calibdask.stats.timebins import TimeBins

__all__ = [
    "NEEDED_UNITS",
    "RingImages",
    "RingTable",
    "Selected",
    "cells_of",
    "fit_images",
    "places_of",
    "select_rings",
]

_EFFICIENCY = "muonefficiency_optical_efficiency"
NEEDED_UNITS = {
    "muonring_radius": "deg",
    "muonefficiency_width": "deg",
    "muonefficiency_impact": "m",
    "muonefficiency_impact_x": "m",
    "muonefficiency_impact_y": "m",
}
"""Columns that are needed, beside the efficiency, and their units."""

_CUTS = {
    "images of telescopes with one mirror and known optics": ("dual mirror", "no optics"),
    "images that were measured": ("no image",),
    "images with enough pixels": ("too few pixels",),
    "images with enough light": ("too little light",),
    "images with a circle": ("no ring",),
    "images with enough pixels on the circle": ("too few pixels on the ring",),
    "images with enough of the circle in the camera": ("ring outside of the camera",),
    "rings without saturated pixels": ("saturated pixels",),
    "rings without noise far above the pedestal": ("noise far above the pedestal",),
    "rings that the model describes": ("poor fit",),
}
"""Steps of the cut flow of images, and what became of those that each of them leaves out."""


@dataclass(frozen=True, slots=True, eq=False)
class RingTable:
    """Rows of muon tables with their times, before any selection; where they were, the images."""

    columns: dict[str, NDArray[Any]]
    units: dict[str, str]
    time_ns: NDArray[np.int64]
    images: tuple[TelescopeImages, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RingImages:
    """Images of some telescopes, before any ring is fitted."""

    blocks: tuple[TelescopeImages, ...]


def fit_images(data: RingImages, ring_fit: RingFit) -> tuple[RingTable, dict[str, int]]:
    """Fit a ring to each image; give them with the cut flow of the images."""
    from calibdask.muon.rings import RING_UNITS, STATUS, rings_of

    tables = []
    for images in data.blocks:
        camera = images.camera
        options = ring_fit.of_telescope(camera.tel_id, camera.tel_description)
        tables.append(rings_of(images, options))
    columns = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    flow = {"images": len(columns["status"])}
    left = flow["images"]
    for name, reasons in _CUTS.items():
        left -= int(np.isin(columns["status"], [STATUS.index(one) for one in reasons]).sum())
        flow[name] = left
    time_ns = columns["time_ns"]
    return RingTable(columns, dict(RING_UNITS), time_ns, data.blocks), flow


class Selected(NamedTuple):
    """Selected rings in the order of telescope, bin, time, observation and event.

    Attributes
    ----------
    rows : dict of str to ndarray, shape (N,)
        The rings.
    place : ndarray of int, shape (N,)
        Where each stands in the data.
    flow : dict of str to int
        The cut flow.
    notes : tuple of str
        What is odd.
    """

    rows: dict[str, NDArray[Any]]
    place: NDArray[np.intp]
    flow: dict[str, int]
    notes: tuple[str, ...]


def select_rings(data: RingTable, criteria: QualityCriteria, bins: TimeBins | None) -> Selected:
    """Select rings and put them into order."""
    columns, n_rows = data.columns, len(data.time_ns)
    value = columns[_EFFICIENCY]
    radius, width = columns["muonring_radius"], columns["muonefficiency_width"]
    with np.errstate(divide="ignore", invalid="ignore"):
        good = ExactMoments.holds(value) & ExactMoments.holds(width / radius) & (radius > 0)
        good &= ExactMoments.holds(radius) & (value > 0) & (width > 0)
    if data.images:
        from calibdask.muon.rings import TROUBLED

        good &= ~np.isin(columns["status"], TROUBLED)
    flow = {"rings with efficiency, radius and width": int(good.sum())}
    for pair in criteria.pairs:
        # Bare numbers are in the units of the file, as in the peer; see MuonQualityQuery.
        units = data.units if re.search(r"\bu\s*\.", pair[1]) else {}
        good &= QualityCriteria((pair,)).evaluate(columns, units, n_rows).mask
        flow[pair[0]] = int(good.sum())
    timed = good & (data.time_ns != NO_TIME)
    flow["rings with a trigger time"] = int(timed.sum())
    notes: tuple[str, ...] = ()
    if flow["rings with a trigger time"] < int(good.sum()):
        n_lost = int(good.sum()) - flow["rings with a trigger time"]
        notes = (f"{n_lost} rings have no time in the trigger table of their file: left out",)
    index = np.flatnonzero(timed)
    rows: dict[str, NDArray[Any]] = {
        name: columns[name][index].astype(np.int64) for name in ("tel_id", "obs_id", "event_id")
    }
    time_ns = data.time_ns[index]
    rows["bin"] = np.zeros(len(index), np.int64) if bins is None else bins.index(time_ns)
    x_m, y_m = (columns[f"muonefficiency_impact_{axis}"][index] for axis in "xy")
    rows |= {
        "time_ns": time_ns,
        "efficiency": ExactMoments.rounded(value[index]),
        "radius_deg": radius[index],
        "width_deg": width[index],
        "impact_m": columns["muonefficiency_impact"][index],
        "azimuth_deg": np.degrees(np.arctan2(y_m, x_m)),
    }
    order = np.lexsort([rows[n] for n in ("event_id", "obs_id", "time_ns", "bin", "tel_id")])
    rows = {name: values[order] for name, values in rows.items()}
    return Selected(rows, index[order], flow, notes)


def places_of(rows: Rows) -> dict[Cell, slice]:
    """Cut rows, which are in the order of cells."""
    tel_id, number = rows["tel_id"], rows["bin"]
    edges = np.flatnonzero((tel_id[1:] != tel_id[:-1]) | (number[1:] != number[:-1])) + 1
    bounds = [0, *edges.tolist(), len(tel_id)] if len(tel_id) else [0]
    return {
        (int(tel_id[start]), int(number[start])): slice(start, stop)
        for start, stop in pairwise(bounds)
    }


def cells_of(rows: Rows) -> dict[Cell, Rings]:
    """Return the rings of each cell."""
    return {
        cell: Rings(*(rows[field.name][place] for field in fields(Rings)))
        for cell, place in places_of(rows).items()
    }
