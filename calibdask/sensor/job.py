"""What the calibrations of maps share: options, meanings of the maps, factors of ISO speeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calibdask.flags import PixelFlag
from calibdask.sensor.config import MapSection
from calibdask.sensor.isotable import IsoTable
from calibdask.sensor.stacked import StackCalibration

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MapCalibration"]


@dataclass(frozen=True)
class MapCalibration(StackCalibration):
    """Base of the sensor's jobs.

    Attributes
    ----------
    options : MapSection
        The section of the job.
    """

    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Unit and meaning of each map but masks, by the last part of its name."""

    options: MapSection = field(default_factory=MapSection)

    @property
    def iso_table(self) -> IsoTable | None:
        """The factors of ISO speeds, if the product is given."""
        tables = self.given_tables("iso")
        return IsoTable.from_tables(tables) if tables else None

    def describe_map(self, name: str) -> Mapping[str, Any]:
        """Return units and meaning of a map."""
        last = name.rpartition("/")[2]
        if last.endswith("mask"):
            return PixelFlag.attributes()
        unit, meaning = self.meanings[last]
        # A map of all ISO speeds together is beside their groups.
        if name.count("/") == 1 and self.given_tables("iso"):
            meaning += ", brought to the lowest ISO speed"
        return {"units": unit, "long_name": meaning}
