"""What the calibrations of maps share: options, meanings of the maps, factors of ISO speeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calibdask.flags import PixelFlag
from calibdask.sensor.calibration import StackCalibration
from calibdask.sensor.config import JobSection
from calibdask.sensor.isotable import IsoTable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MapCalibration"]

_ELSEWHERE = {"overwrite", "spectacle", "bias", "iso"}
"""Options that no fit reads: products are known by their digests."""


@dataclass(frozen=True)
class MapCalibration(StackCalibration):
    """Base of the sensor's jobs.

    Attributes
    ----------
    options : JobSection
        The section of the job.
    """

    meanings: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Unit and meaning of each map but masks, by the last part of its name."""

    joined: ClassVar[frozenset[str]] = frozenset()
    """Options that only the joining of tiles depends on: another value fits no pixel again."""

    options: JobSection = field(default_factory=JobSection)

    @property
    def iso_table(self) -> IsoTable | None:
        """The factors of ISO speeds, if the product is given."""
        tables = self.given_tables("iso")
        return IsoTable.from_tables(tables) if tables else None

    def fit_options(self) -> Mapping[str, Any]:
        """Give the options that the maps depend on."""
        return self.options.model_dump(exclude=_ELSEWHERE | self.joined)

    def describe_map(self, name: str) -> Mapping[str, Any]:
        """Give units and meaning of a map."""
        last = name.rpartition("/")[2]
        if last.endswith("mask"):
            return PixelFlag.attributes()
        unit, meaning = self.meanings[last]
        # A map of all ISO speeds together stands beside their groups.
        if name.count("/") == 1 and self.given_tables("iso"):
            meaning += ", brought to the lowest ISO speed"
        return {"units": unit, "long_name": meaning}
