"""Sections and the types of their options."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    model_validator,
)

from calibdask.errors import ConfigError

__all__ = [
    "Schema",
    "Section",
    "caseless",
    "format_bytes",
    "options_of",
    "parse_bytes",
    "read_with",
    "section_type",
    "short",
]

type Schema = Mapping[str, type[Section]]

_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


class Section(BaseModel):
    """Base of every section: unknown options are refused, values are not converted, all is frozen.

    An empty section means its defaults. Options are documented by ``Field(description=...)``, with
    ``json_schema_extra={"unit": ...}`` for the unit; an option that is off by default may have an
    example.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    hints: ClassVar[Mapping[str, str]] = {}
    """What to do about an option that belongs to other software or to the command line."""

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, values: object) -> object:
        return {} if values is None else values


def read_with(read: Callable[[Any], object]) -> PlainValidator:
    """Make a pydantic validator of a function that raises `ConfigError`.

    Parameters
    ----------
    read : callable
        Turns what the YAML file holds into the option's value.

    Returns
    -------
    PlainValidator
        For use in ``Annotated``.
    """

    def validate(value: object) -> object:
        try:
            return read(value)
        except ConfigError as error:
            # pydantic collects ValueErrors together with where they happened.
            raise ValueError(str(error)) from None

    return PlainValidator(validate)


def caseless(*choices: str) -> BeforeValidator:
    """Make a pydantic validator that spells one of several words as they are listed.

    Parameters
    ----------
    *choices : str
        The words of a ``Literal``.

    Returns
    -------
    BeforeValidator
        For use in ``Annotated``.
    """
    by_lower = {choice.lower(): choice for choice in choices}

    def spell(value: object) -> object:
        return by_lower.get(value.lower(), value) if isinstance(value, str) else value

    return BeforeValidator(spell)


def parse_bytes(value: object) -> int:
    """Read a number of bytes.

    Parameters
    ----------
    value : int or str
        ``268435456``, or ``"256 MiB"`` (1024-based) or ``"256 MB"`` (1000-based).

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    ConfigError
        Not such a number, not positive, or a letter without B (``4G`` means different things to
        different programs).
    """
    if isinstance(value, int) and not isinstance(value, bool):
        n_bytes: int | Decimal = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", str(value))
        factor = _BYTES.get(match[2].lower()) if match and isinstance(value, str) else None
        if match is None or factor is None:
            raise ConfigError(
                f"{short(value)} is not a number of bytes: write for instance '256 MiB' or '4 GB'"
            )
        n_bytes = Decimal(match[1]) * factor
    if n_bytes < 1:
        raise ConfigError(f"{short(value)} is less than one byte")
    return int(n_bytes)


def format_bytes(n_bytes: int) -> str:
    """Write a number of bytes so that `parse_bytes` gives it back exactly.

    Parameters
    ----------
    n_bytes : int
        Bytes.

    Returns
    -------
    str
        In the largest 1024-based unit of which it is a multiple.
    """
    for name, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if n_bytes and n_bytes % factor == 0:
            return f"{n_bytes // factor} {name}"
    return f"{n_bytes} B"


def options_of(model: type[Section]) -> dict[str, Any]:
    """Options and nested sections of a model, by the name that a YAML file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def section_type(annotation: Any) -> type[Section] | None:
    """Model of an option that is itself a section, optional or not."""
    for candidate in (annotation, *get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, Section):
            return candidate
    return None


def short(value: object) -> str:
    """Return a value for a message, shortened."""
    shorten = reprlib.Repr(maxlevel=2, maxstring=80, maxother=80, maxlist=8, maxdict=8)
    return shorten.repr(value)
