"""What kind of HDF5 file this is, by the groups it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from calibdask.errors import MissingInput
from calibdask.io.hdf5 import open_hdf5

if TYPE_CHECKING:
    from pathlib import Path

    from calibdask.io.hdf5 import File


__all__ = ["Kind", "file_kind"]

Kind = Literal["DL2 events", "asymmetries", "throughputs", "other"]

_THROUGHPUTS = (
    "/dl2/monitoring/subarray/inter_calibration",
    "/dl1/monitoring/telescope/calibration/optical_throughput/muon",
)

_OF_EVENTS = ("/simulation", "/dl0", "/dl1", "/dl2", "/energy_asymmetry", "/image_asymmetry")
_PRODUCTS = ("/dl1/monitoring", "/dl2/monitoring")  # they have groups of the same names
_LEVELS = "CTA PRODUCT DATA LEVELS"


def file_kind(path: Path | str) -> Kind:
    """Return whether a file holds DL2 events, event-wise asymmetries, throughputs, or none of them.

    Throughputs of muons may be in a file of DL1 events, where ctao-calibpipe puts them.

    Raises
    ------
    MissingInput
        By its metadata or groups it is a file of events, but holds none; or as `open_hdf5`.
    CorruptedInput, TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        if "/dl2/event" in file:
            return "DL2 events"
        if any(table in file for table in _THROUGHPUTS):
            return "throughputs"
        if "/dl1/event" in file:
            return "DL2 events"
        if "/energy_asymmetry/events" in file or "/image_asymmetry/events" in file:
            return "asymmetries"
        if sign := _sign_of_events(file):
            raise MissingInput(
                f"{path}: holds no events although it has {sign}: it is damaged, or its writer was"
                " killed; copy or produce it again, or leave it out"
            )
        return "other"


def _sign_of_events(file: File) -> str:
    """Return what makes a file look like one of events; empty where nothing does."""
    if not file.children("/"):
        return "the ending of such a file, and nothing else in it"
    if any(group in file for group in _PRODUCTS):
        return ""
    if found := [group for group in _OF_EVENTS if group in file]:
        return f"the group {found[0]}"
    return f"the attribute {_LEVELS!r}" if file.attribute(_LEVELS) is not None else ""
