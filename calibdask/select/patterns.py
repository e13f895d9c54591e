"""Options whose value may differ between telescopes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.errors import ConfigError
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["TelescopePatterns", "finite_number"]


def finite_number(value: object) -> float:
    """Read a finite number; the default reader of the values in telescope patterns.

    Parameters
    ----------
    value : object
        What the YAML file holds.

    Returns
    -------
    float
        The number.

    Raises
    ------
    ConfigError
        Not a finite number. Text and booleans are not numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{value!r} is not a finite number")
    return float(value)


type _PatternValue = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TelescopePatterns:
    """An option whose value may differ between telescopes; the last match wins.

    Attributes
    ----------
    patterns : tuple of (kind, which, value)
        ``("type", pattern, value)``: all telescopes whose description (``str(tel)``, for instance
        ``MST_MST_NectarCam``) matches the shell pattern. ``("id", tel_id, value)``: one telescope.
    """

    patterns: tuple[tuple[str, str | int, _PatternValue], ...]

    @classmethod
    def parse(
        cls, value: object, read_value: Callable[[object], _PatternValue] = finite_number
    ) -> Self:
        """Read a value as it is in a YAML file.

        Parameters
        ----------
        value : object
            One value for all telescopes, or ``[[type, "LST*", 125.0], [id, 5, 3.0]]``.
        read_value : callable
            Turns a value into a float, or a tuple of floats; raises `ConfigError` if it cannot.

        Returns
        -------
        TelescopePatterns
            The patterns, in order.

        Raises
        ------
        ConfigError
            Not a value nor a list of patterns; the message names the entry.
        """
        if not isinstance(value, list | tuple) or _all_numbers(value):
            return cls((("type", "*", read_value(value)),))
        if not value:
            raise ConfigError("the list is empty; give one value, or patterns for all telescopes")
        if value[0] in ("type", "id"):
            raise ConfigError(
                f"one pattern needs two pairs of brackets: [{_yaml_list(value)}], not "
                f"{_yaml_list(value)}"
            )
        return cls(tuple(_read_pattern(entry, read_value) for entry in value))

    def to_plain(self) -> list[list[Any]]:
        """Return back lists, strings and numbers, as for YAML and JSON."""
        return [
            [kind, which, list(value) if isinstance(value, tuple) else value]
            for kind, which, value in self.patterns
        ]

    def resolve(
        self,
        tel_id: ArrayLike,
        tel_description: Sequence[str],
        *,
        option: str = "this option",
    ) -> NDArray[np.float64]:
        """Look up the value for each telescope.

        Parameters
        ----------
        tel_id : array_like of int, shape (n_tel,)
            The telescopes that need a value, and no others.
        tel_description : sequence of str, length n_tel
            ``str(tel)`` of each.
        option : str
            Name of the option in messages.

        Returns
        -------
        ndarray of float64, shape (n_tel,) or (n_tel, n_values)
            In the order of ``tel_id``.

        Raises
        ------
        ConfigError
            A telescope without a value; the message names all of them.
        """
        telescopes = _telescopes(tel_id, tel_description)
        found = [self._value_for(*tel) for tel in telescopes]
        without = [tel for tel, value in zip(telescopes, found, strict=True) if value is None]
        if without:
            listed = ", ".join(f"{number} ({description})" for number, description in without)
            raise ConfigError(
                f"{option}: no pattern matches telescope {listed}; the patterns are "
                f'{_yaml_list(self.to_plain())}; begin the list with [type, "*", value] to give '
                "every telescope a value"
            )
        values = np.array(found, dtype=np.float64)
        first = self.patterns[0][2]
        width = (len(first),) if isinstance(first, tuple) else ()
        return values.reshape(len(telescopes), *width)

    def _value_for(self, tel_id: int, description: str) -> _PatternValue | None:
        for kind, which, value in reversed(self.patterns):
            if _match(kind, which, tel_id, description):
                return value
        return None

    def unmatched(
        self,
        tel_id: ArrayLike,
        tel_description: Sequence[str],
        *,
        option: str = "this option",
    ) -> tuple[str, ...]:
        """Describe which patterns match no telescope: not an error, but worth a line in a report.

        Parameters
        ----------
        tel_id : array_like of int, shape (n_tel,)
            All telescopes of the array.
        tel_description : sequence of str, length n_tel
            ``str(tel)`` of each.
        option : str
            Name of the option in the sentences.

        Returns
        -------
        tuple of str
            One sentence per such pattern.
        """
        telescopes = _telescopes(tel_id, tel_description)
        return tuple(
            f"{option}: the pattern [{kind}, {which!r}] matches no telescope"
            for kind, which, _ in self.patterns
            if not any(_match(kind, which, *tel) for tel in telescopes)
        )


def _telescopes(tel_id: ArrayLike, tel_description: Sequence[str]) -> list[tuple[int, str]]:
    numbers = np.asarray(tel_id, dtype=np.int64).tolist()
    return list(zip(numbers, tel_description, strict=True))


def _match(kind: str, which: str | int, tel_id: int, description: str) -> bool:
    return tel_id == which if kind == "id" else fnmatchcase(description, str(which))


def _all_numbers(values: Sequence[object]) -> bool:
    return len(values) > 0 and all(isinstance(value, int | float) for value in values)


def _yaml_list(value: object) -> str:
    """Write nested lists as a YAML file would."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml_list(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) and not value.isidentifier() else str(value)


def _read_pattern(
    entry: object, read_value: Callable[[object], _PatternValue]
) -> tuple[str, str | int, _PatternValue]:
    if not isinstance(entry, list | tuple) or len(entry) != 3:
        raise ConfigError(f'{entry!r} is not a pattern such as [type, "LST*", 125.0]')
    kind, which, value = entry
    shown = _yaml_list(entry)
    if kind not in ("type", "id"):
        suggestion = did_you_mean(kind, ("type", "id")) if isinstance(kind, str) else ""
        raise ConfigError(f"{shown}: a pattern begins with 'type' or 'id'{suggestion}")
    try:
        number = read_value(value)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if kind == "type":
        if not isinstance(which, str) or not which:
            raise ConfigError(f'{shown}: a type is a pattern in quotes such as "LST*"')
        return kind, which, number
    return kind, _read_tel_id(which, shown), number


def _read_tel_id(which: object, shown: str) -> int:
    text = str(which) if isinstance(which, int) and not isinstance(which, bool) else which
    if not isinstance(text, str) or not text.isdecimal():
        raise ConfigError(f"{shown}: {which!r} is not a telescope number")
    return int(text)
