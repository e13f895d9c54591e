"""Rings as arrays, and files made of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.engine.protocol import Shard
from calibdask.muon.gallery import Gallery
from calibdask.muon.selection import RingTable
from calibdask.muon.simulate import (
    UNITS,
    MuonSimulation,
    describe_telescopes,
    ring_columns,
    write_rings,
)
from calibdask.muon.summary import Rings
from calibdask.registry import JOBS

if TYPE_CHECKING:
    from pathlib import Path

S = 1_000_000_000
START_NS = 1_700_000_037 * S


def draw_rings(seed: int, n: int = 300) -> Rings:
    """Draw rings of one telescope, in the order of time, some at the same time."""
    rng = np.random.default_rng(seed)
    time_ns = np.sort(START_NS + rng.integers(0, n, n) * S)
    event_id = rng.permutation(n).astype(np.int64)
    efficiency = rng.normal(0.2, 0.012, n) * np.where(rng.random(n) < 0.03, 1.8, 1.0)
    radius = rng.normal(1.15, 0.05, n)
    return in_order(
        Rings(
            time_ns,
            np.full(n, 7, np.int64),
            event_id,
            efficiency,
            radius,
            radius * (0.13 - 0.08 * radius) * rng.normal(1, 0.1, n),
            11 * np.sqrt(rng.random(n)),
            rng.uniform(-180, 180, n),
        )
    )


def take(rings: Rings, index: Any) -> Rings:
    """Take some rings."""
    return Rings(*(getattr(rings, field.name)[index] for field in fields(Rings)))


def in_order(rings: Rings) -> Rings:
    """Put rings into the order of (time, observation, event)."""
    return take(rings, np.lexsort((rings.event_id, rings.obs_id, rings.time_ns)))


def pictures(rings: Rings, limit: int) -> Gallery:
    """Make a gallery with images of different sizes, told apart by their content."""
    total = Gallery.identity(limit)
    for key in rings.keys:
        n = 3 + int(key[2]) % 4
        pixels = np.full((4, n), key[2], np.float32)
        troubled = np.array([key[2] % 2, key[2] % 3, 1])
        ring = np.full((1, 7), float(key[2]))
        one = Gallery(limit, key[None, :], ring, np.array([n]), pixels, troubled)
        if key[2] % 5 == 0:  # nothing to look at
            one = replace(Gallery.identity(limit), troubled=troubled)
        total = total.merge(one)
    return total


def write_file(path: Path, telescopes: int = 1, **columns: Any) -> Path:
    """Write a DL1 file with rings of given columns; what is not given is that of a good ring."""
    n = len(columns["event_id"])
    rng = np.random.default_rng(3)
    options = MuonSimulation(n_telescopes=telescopes)
    good: dict[str, Any] = {
        "obs_id": np.int32(1),
        "tel_id": np.int16(1),
        "time_ns": START_NS + np.arange(n, dtype=np.int64) * S,
        "muonring_radius": rng.normal(1.15, 0.05, n),
        "muonefficiency_width": rng.normal(0.045, 0.004, n),
        "muonefficiency_impact": np.full(n, 5.0),
        "muonefficiency_impact_x": np.full(n, 5.0),
        "muonefficiency_impact_y": np.zeros(n),
        "muonefficiency_optical_efficiency": rng.normal(0.2, 0.01, n),
        "muonefficiency_is_valid": np.bool_(True),
    }
    own = ring_columns(n, **(good | columns))
    write_rings(path, describe_telescopes(options), own)
    return path


SECTION = {"throughput": "CalculateThroughputWithMuons", "psf": "CalculatePSFWithMuons"}


def in_memory(kind: str, columns: Any, bins: Any = None, min_rings: int | None = None) -> Any:
    """Run all stages of a job on simulated columns, without files and engine; give its tables."""
    overrides = {} if min_rings is None else {f"{SECTION[kind]}.min_number_of_muon": min_rings}
    calibration = JOBS[f"calculate-{kind}-muon"].prepare([], overrides).calibration
    calibration = replace(calibration, bins=bins)
    number = (
        np.zeros(len(columns["tel_id"]), int) if bins is None else bins.index(columns["time_ns"])
    )
    cells = tuple(sorted(set(zip(columns["tel_id"].tolist(), number.tolist(), strict=True))))
    table = RingTable(dict(columns), dict(UNITS), columns["time_ns"])
    shard = Shard(0, (), cells=cells)
    reduced = calibration.reduce(shard, table)
    rows, active, states = reduced.rows, dict.fromkeys(cells), {}
    for stage in range(20):
        if stage:
            reduced = calibration.refine(stage, shard, rows, active)
        fitted = {
            cell: calibration.fit(stage, cell, reduced.summaries[cell], state)
            for cell, state in active.items()
        }
        states |= fitted
        active = {cell: state for cell, state in fitted.items() if not state.done}
        if not active:
            return calibration.tables(calibration.combine(states))
    raise AssertionError("clipping has no end")
