"""Options of the event-wise asymmetries of energies and of image sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from calibdask.array.pair_config import EnergyPairSection, PairSection, given_minima, resolved
from calibdask.config import Section, inner_section, option
from calibdask.config.fields import Algorithm, between, patterns
from calibdask.errors import ConfigError
from calibdask.select import TelescopePatterns, finite_number

if TYPE_CHECKING:
    from calibdask.config import Configuration

__all__ = [
    "AsymmetryLabel",
    "CalculateEnergyAsymmetry",
    "CalculateImageAsymmetry",
    "ImageEventFilters",
    "energy_name",
    "energy_section",
    "image_section",
]

type AsymmetryLabel = Literal["energy_asymmetry", "image_asymmetry"]


def _two_numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"expected two numbers [p0, p1], got {value!r}")
    return tuple(finite_number(number) for number in value)


class ImageEventFilters(Section):
    """Which events of a pair are used; each filter is a value or patterns by telescope."""

    minimum_individual_intensity: Annotated[TelescopePatterns, patterns(between(0.0))] | None = (
        option(
            None,
            stage="map",
            help="Smallest image size, reached in both telescopes.",
            example=80.0,
            unit="photoelectrons",
        )
    )
    equidistant_event_selection: Annotated[TelescopePatterns, patterns(_two_numbers)] | None = (
        option(
            None,
            stage="map",
            help="[p0, p1]: the asymmetry of the impact distances stays below "
            "p0 + p1 cos(altitude) (Mitchell, PhD thesis 2016, eq. 4.2.2).",
            example=[0.05, 0.1],
        )
    )


class CalculateEnergyAsymmetry(EnergyPairSection):
    """Energies of the same shower in two telescopes, for every pair and event.

    May also be called CalculateAsymmetry.
    """

    label: ClassVar[AsymmetryLabel] = "energy_asymmetry"

    @property
    def uncertainty_column(self) -> str:
        """Column of the uncertainty of x."""
        return f"{self.value_column}_uncert"


class CalculateImageAsymmetry(PairSection):
    """Image sizes of the same shower in two telescopes, for every pair and event."""

    event_filters: ImageEventFilters = inner_section(
        ImageEventFilters(), help="Which events of a pair are used."
    )
    image_reconstructor: Algorithm = option(
        "hillas_intensity", stage="map", help="Column with the image size."
    )

    label: ClassVar[AsymmetryLabel] = "image_asymmetry"
    value_name: ClassVar[str] = "image size"

    @property
    def value_column(self) -> str:
        """Column of x."""
        return self.image_reconstructor

    @property
    def minima(self) -> tuple[tuple[str, str, TelescopePatterns], ...]:
        """(option, column, least value) of each cut that both telescopes have to pass."""
        least = self.event_filters.minimum_individual_intensity
        return given_minima(("minimum_individual_intensity", self.image_reconstructor, least))

    @property
    def window(self) -> tuple[str, TelescopePatterns] | None:
        """Option and limit of the asymmetry of the impact distances."""
        limit = self.event_filters.equidistant_event_selection
        return None if limit is None else ("equidistant_event_selection", limit)


_ENERGY_NAMES = ("CalculateEnergyAsymmetry", "CalculateAsymmetry")


def energy_section(
    document: Configuration, notes: list[str], *, algorithm: str | None = None
) -> CalculateEnergyAsymmetry:
    """Resolve the section of the energy asymmetry.

    Parameters
    ----------
    document : Configuration
        The sections of the job.
    notes : list of str
        Gets what is worth a line in the log and the report.
    algorithm : str, optional
        Of the energies, where the section is not given.

    Raises
    ------
    ConfigError
        It has two names at once, or is contradictory.
    """
    given = [name for name in _ENERGY_NAMES if name in document.sections]
    if len(given) == 2:
        raise document.error(
            f"this is the old name of CalculateEnergyAsymmetry, which is given as well "
            f"({document.where(given[0])}): keep one of them",
            given[1],
        )
    section = resolved(document, CalculateEnergyAsymmetry, notes, energy_name(document))
    if given and not section.quality_criteria.pairs:
        notes.append(f"{given[0]}: no quality criteria, so every telescope-event is used")
    if given or algorithm is None:
        return section
    return section.model_copy(update={"energy_reconstructor": algorithm})


def energy_name(document: Configuration) -> str:
    """Return the name under which the section of the energy asymmetry stands, or would stand."""
    given = [name for name in _ENERGY_NAMES if name in document.sections]
    return given[0] if given else _ENERGY_NAMES[0]


def image_section(document: Configuration, notes: list[str]) -> CalculateImageAsymmetry:
    """Resolve the section of the asymmetry of image sizes (see `energy_section`)."""
    section = resolved(document, CalculateImageAsymmetry, notes)
    if section.image_reconstructor in section.quality_criteria.columns:
        notes.append(
            f"a quality criterion selects by {section.image_reconstructor} of each telescope:"
            " minimum_individual_intensity has to be above it, as the cut on pairs follows from it"
        )
    return section
