from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from calibdask.io.pytables import create_hdf5, write_root_attributes, write_table

if TYPE_CHECKING:
    from pathlib import Path

ENERGY = "/dl2/event/telescope/energy/Forest"
IMPACT = "/dl2/event/telescope/impact/Hillas"
PARAMETERS = "/dl1/event/telescope/parameters"
TRIGGER = "/dl1/event/subarray/trigger"
TELESCOPE_TRIGGER = "/dl1/event/telescope/trigger"
GEOMETRY = "/dl2/event/subarray/geometry/Hillas"
LAYOUT = "/configuration/instrument/subarray/layout"

UNITS = {
    "Forest_tel_energy": "TeV",
    "Forest_tel_energy_uncert": "TeV",
    "Hillas_tel_impact_distance": "m",
    "Hillas_h_max": "m",
    "Hillas_alt": "deg",
    "pos_x": "m",
    "pos_y": "m",
    "pos_z": "m",
}


@pytest.fixture
def dl2():
    """Make the tables of a small DL2 file: path in the file to columns."""

    def make(n_events: int = 300, tel_ids=(30, 1, 5), obs_ids=(11,), seed: int = 1):
        rng = np.random.default_rng(seed)
        n_tels = len(tel_ids)
        obs_id = np.sort(rng.choice(obs_ids, n_events)).astype("i4")
        event_id = np.cumsum(rng.integers(1, 5, n_events)).astype("i8")
        mask = rng.random((n_events, n_tels)) < 0.6
        tables: dict[str, dict[str, Any]] = {
            LAYOUT: {
                "tel_id": np.array(tel_ids, "u2"),
                "type": np.array(["LST" if t < 5 else "MST" for t in tel_ids]),
                "tel_description": np.array([f"X_{t}_Cam" for t in tel_ids]),
                "pos_x": np.arange(n_tels, dtype="f4") * 100,
                "pos_y": np.zeros(n_tels, "f4"),
                "pos_z": np.zeros(n_tels, "f4"),
            },
            TRIGGER: {"obs_id": obs_id, "event_id": event_id, "tels_with_trigger": mask},
            GEOMETRY: {
                "obs_id": obs_id,
                "event_id": event_id,
                "Hillas_h_max": rng.uniform(8e3, 1.2e4, n_events),
                "Hillas_alt": rng.uniform(60, 80, n_events),
                "Hillas_is_valid": rng.random(n_events) < 0.9,
            },
        }
        row, column = np.nonzero(mask)
        tables[TELESCOPE_TRIGGER] = {
            "obs_id": obs_id[row],
            "event_id": event_id[row],
            "tel_id": np.array(tel_ids, "i2")[column],
            "n_trigger_pixels": rng.integers(3, 50, row.size),
        }
        for i, tel_id in enumerate(tel_ids):
            n = int(mask[:, i].sum())
            keys = {
                "obs_id": obs_id[mask[:, i]],
                "event_id": event_id[mask[:, i]],
                "tel_id": np.full(n, tel_id, "i2"),
            }
            energy = rng.lognormal(size=n)
            energy[::17] = np.nan
            tables[f"{ENERGY}/tel_{tel_id:03d}"] = keys | {
                "Forest_tel_energy": energy,
                "Forest_tel_is_valid": rng.random(n) < 0.9,
                "Forest_tel_energy_uncert": 0.1 * energy,
            }
            tables[f"{IMPACT}/tel_{tel_id:03d}"] = keys | {
                "Hillas_tel_impact_distance": rng.uniform(0, 300, n),
            }
            tables[f"{PARAMETERS}/tel_{tel_id:03d}"] = keys | {
                "hillas_intensity": rng.uniform(50, 1e4, n),
                "intensity_max": rng.uniform(5, 100, n).astype("f4"),
                "morphology_n_islands": rng.integers(1, 4, n).astype("i8"),
            }
        return tables

    return make


@pytest.fixture
def write_dl2(tmp_path):
    """Write such tables to a file."""
    count = iter(range(1000))

    def write(tables, units=None, name: str | None = None) -> Path:
        path = tmp_path / (name or f"dl2_{next(count)}.h5")
        units = UNITS | (units or {})
        with create_hdf5(path) as file:
            for where, columns in tables.items():
                own = {n: u for n, u in units.items() if n in columns and u}
                write_table(file, where, columns, units=own)
            write_root_attributes(
                file, {"CTA PRODUCT ID": "p-1", "CTA PROCESS TYPE": "Observation"}
            )
        return path

    return write
