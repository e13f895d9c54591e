"""The sections of all jobs of an array.

They have the names, options and types that the observatory's documented configurations use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.array.asymmetry_config import CalculateEnergyAsymmetry, CalculateImageAsymmetry
from calibdask.array.pair_config import EventPreprocessor, PairFinder, QualityQuery
from calibdask.array.throughput_config import (
    CalculateCrossCalibration,
    CalculateInterCalibration,
    RelativeThroughputFitter,
)
from calibdask.array.timing_config import CalculateTimingCalibration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibdask.config import Section

__all__ = ["FURTHER", "OLD_NAME", "SECTIONS", "SELECTION"]

SELECTION: Mapping[str, type[Section]] = {"QualityQuery": QualityQuery, "PairFinder": PairFinder}
"""Which events and pairs are used, at top level."""

FURTHER: Mapping[str, type[Section]] = {"EventPreprocessor": EventPreprocessor}
"""Where a QualityQuery may stand as well."""

OLD_NAME: Mapping[str, type[Section]] = {"CalculateAsymmetry": CalculateEnergyAsymmetry}
"""The older name of a section."""

SECTIONS: Mapping[str, type[Section]] = {
    **{
        model.__name__: model
        for model in (
            CalculateEnergyAsymmetry,
            CalculateImageAsymmetry,
            CalculateInterCalibration,
            CalculateCrossCalibration,
            CalculateTimingCalibration,
            RelativeThroughputFitter,
        )
    },
    **SELECTION,
    **FURTHER,
    **OLD_NAME,
}
"""The sections of all jobs of an array."""
