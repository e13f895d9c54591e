"""Types of options that several domains have: quantities, values by telescope, names, numbers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

from calibdask.config.sections import read_with
from calibdask.errors import ConfigError
from calibdask.select import TelescopePatterns, finite_number

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EVENT_TYPES",
    "Algorithm",
    "EventTypes",
    "TelId",
    "between",
    "for_all",
    "patterns",
    "positive",
    "quantity",
]


def quantity(unit: str) -> Callable[[object], float]:
    """Make a reader of a non-negative number in a unit, or of text such as "50 GeV".

    Parameters
    ----------
    unit : str
        Unit of the option.
    """

    def read(value: object) -> float:
        if not isinstance(value, str):
            number = finite_number(value)
        else:
            from astropy import units as u

            try:
                number = float(u.Quantity(value).to_value(unit))
            except (TypeError, ValueError):
                raise ConfigError(
                    f"{value!r} is not a quantity that can be converted to {unit}: write a number "
                    f"in {unit}, or number and unit such as '1.5 {unit}'"
                ) from None
        if number < 0.0 or not math.isfinite(number):
            raise ConfigError(f"{value!r} is negative or not finite")
        return number

    return read


def between(low: float, high: float = math.inf) -> Callable[[object], float]:
    """Make a reader of a number in [low, high]."""

    def read(value: object) -> float:
        number = finite_number(value)
        if not low <= number <= high:
            limit = f"between {low} and {high}" if math.isfinite(high) else f"of at least {low}"
            raise ConfigError(f"expected a number {limit}, got {value!r}")
        return number

    return read


def positive(value: object) -> float:
    """Read a number above 0."""
    number = finite_number(value)
    if number <= 0.0:
        raise ConfigError(f"expected a number above 0, got {value!r}")
    return number


def patterns(read_value: Callable[[object], float | tuple[float, ...]] = finite_number) -> Any:
    """Make a validator of values by telescope: one value, or a list of patterns."""
    return read_with(lambda value: TelescopePatterns.parse(value, read_value))


def for_all(value: float) -> TelescopePatterns:
    """Return one value for all telescopes."""
    return TelescopePatterns((("type", "*", value),))


def _algorithm(value: object) -> str:
    # It becomes part of the names of columns and tables.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", value):
        raise ConfigError(
            f"{value!r} is not the name of a reconstruction algorithm such as RandomForestRegressor"
        )
    return value


EVENT_TYPES = {
    "FLATFIELD": 0,
    "SINGLE_PE": 1,
    "PEDESTAL": 2,
    "DARK_PEDESTAL": 3,
    "ELECTRONIC_PEDESTAL": 4,
    "SKY_PEDESTAL": 5,
    "OTHER_CALIBRATION": 15,
    "MUON": 16,
    "HARDWARE_STEREO": 17,
    "RANDOM_MONO": 18,
    "DAQ": 24,
    "SUBARRAY": 32,
    "LONG_EVENT": 33,
    "UNKNOWN": 255,
}
"""As in ctapipe.containers.EventType, 0.32."""


def _event_types(value: object) -> tuple[int, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    found = []
    for one in listed:
        number = EVENT_TYPES.get(one.upper()) if isinstance(one, str) else one
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 255:
            raise ConfigError(
                f"expected a number or one of {', '.join(EVENT_TYPES)} as the event type,"
                f" got {one!r}"
            )
        found.append(number)
    return tuple(sorted(set(found)))


def _tel_id(value: object) -> int:
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{value!r} is not a telescope number such as 5")
    return int(text)


type Algorithm = Annotated[str, read_with(_algorithm)]
"""Name of a reconstruction algorithm."""

type EventTypes = Annotated[tuple[int, ...], read_with(_event_types)]
"""Types of events, by number or name."""

type TelId = Annotated[int, read_with(_tel_id)]
"""Number of a telescope."""
