"""What kind of HDF5 file this is, by the groups it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from calibdask.io.hdf5 import open_hdf5

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Kind", "file_kind"]

Kind = Literal["DL2 events", "asymmetries", "throughputs", "other"]

_THROUGHPUTS = (
    "/dl2/monitoring/subarray/inter_calibration",
    "/dl1/monitoring/telescope/calibration/optical_throughput/muon",
)


def file_kind(path: Path | str) -> Kind:
    """Tell whether a file holds DL2 events, event-wise asymmetries, throughputs, or none of them.

    Throughputs of muons may stand in a file of DL1 events, where ctao-calibpipe puts them.

    Raises
    ------
    MissingInput, CorruptedInput, TransientError
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
        return "other"
