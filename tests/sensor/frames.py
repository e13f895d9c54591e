"""Small stacks of frames on disk, with known pixels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from calibdask.io.dng import DngHeader, write_dng
from calibdask.sensor.metadata import stack_keys

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BEGIN", "make_frames", "stacks_of", "write_stack"]

BEGIN = datetime(2026, 3, 1, 20, tzinfo=UTC)


def make_frames(n: int, shape=(37, 24), *, seed: int = 1, level: float = 800.0, rms: float = 6.0):
    """Return frames with a fixed pattern and normal noise, shape (n, rows, cols)."""
    random = np.random.default_rng(seed)
    pattern = level + np.random.default_rng(7).normal(0.0, 20.0, shape)
    frames = random.normal(pattern, rms, (n, *shape))
    return np.clip(np.rint(frames), 0, 4095).astype(np.uint16)


def write_stack(
    folder: Path,
    frames: NDArray[np.uint16],
    *,
    iso: int | None = 100,
    exposure_s: float | None = 0.01,
    minutes: float = 0.0,
    white_level: int = 4095,
    make: str = "Maker",
) -> list[Path]:
    """Write frames as DNG files, one second apart, `minutes` after the beginning."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, frame in enumerate(frames):
        path = folder / f"frame_{number:04d}.dng"
        header = DngHeader(
            make,
            "Model",
            iso=iso,
            exposure_s=exposure_s,
            time=BEGIN + timedelta(minutes=minutes, seconds=number),
            white_level=white_level,
        )
        write_dng(path, frame, header)
        paths.append(path)
    return paths


def stacks_of(infos, frames=None):
    """Sort what is known of frames by the key of their stack."""
    stacks = {}
    for info, key in zip(infos, stack_keys(infos, frames), strict=True):
        stacks.setdefault(key, []).append(info)
    return dict(sorted(stacks.items()))
