"""Monitoring tables: rows of plain values, with the sensor and the dates in front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable

    from calibdask.sensor.overview import Overview
    from calibdask.sensor.tiles import SensorFacts

    type Row = Mapping[str, Any]

__all__ = ["MONOCHROME", "channel_names", "count_columns", "monitoring_table"]

MONOCHROME = "mono"
"""Name of the one channel of a sensor without filters."""


def channel_names(sensor: SensorFacts) -> tuple[str, ...]:
    """Name the channels of a sensor in LibRaw's numbering."""
    return ("R", "G", "B", "G2") if sensor.pattern else (MONOCHROME,)


UNITS = {
    "dn": "DN",
    "dn2": "DN2",
    "dn_per_s": "DN / s",
    "dn_per_electron": "DN / electron",
    "dn_per_photon": "DN / ph",
    "electron": "electron",
    "electron_per_s": "electron / s",
    "photon": "ph",
    "percent": "%",
    "s": "s",
    "ev": "eV",
    "k": "K",
    "c": "deg_C",
}
"""Units by the end of a column's name, the longest that fits."""


def monitoring_table(
    sensor: SensorFacts, rows: Sequence[Row], descriptions: Mapping[str, str]
) -> QTable:
    """Make a table of rows, with camera and dates as its first columns.

    Parameters
    ----------
    sensor : SensorFacts
        Which sensor, and when.
    rows : sequence of mapping
        Equal keys. The end of a name gives the unit: ``bias_dn``, ``rate_dn_per_s``.
    descriptions : mapping of str to str
        What the columns hold.

    Returns
    -------
    QTable
    """
    from astropy.table import Column, QTable

    n = len(rows)
    columns: dict[str, Any] = {
        "camera": np.full(n, sensor.camera or "unknown"),
        "first_frame": np.full(n, sensor.first or "unknown"),
        "last_frame": np.full(n, sensor.last or "unknown"),
    }
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        columns[name] = np.array(values)
    table = QTable()
    for name, values in columns.items():
        table[name] = Column(values, unit=_unit(name), description=descriptions.get(name, ""))
    return table


def _unit(name: str) -> str | None:
    base = name.removesuffix("_error")
    fits = [end for end in UNITS if base.endswith(f"_{end}")]
    return UNITS[max(fits, key=len)] if fits else None


def count_columns(overview: Overview) -> dict[str, int | str]:
    """Say how many pixels a map has, how many are flagged, and why."""
    why = ", ".join(f"{flag.label}: {number}" for flag, number in overview.n_flagged.items())
    return {"n_pixels": overview.n_pixels, "n_flagged": overview.n_bad, "flags": why or "none"}
