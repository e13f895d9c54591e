"""What kind of HDF5 file this is, by the groups it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from calibdask.io.hdf5 import open_hdf5

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Kind", "file_kind"]

Kind = Literal["DL2 events", "asymmetries", "other"]


def file_kind(path: Path | str) -> Kind:
    """Tell whether a file holds DL2 events, event-wise asymmetries, or neither.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        if "/dl1/event" in file or "/dl2/event" in file:
            return "DL2 events"
        if "/energy_asymmetry/events" in file or "/image_asymmetry/events" in file:
            return "asymmetries"
        return "other"
