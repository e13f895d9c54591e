"""Sections and their options, each declared once: type, default, limits, unit, help and stage.

The stage of an option says what depends on it, and so which addresses of stored results hold it:

``map``
    What a shard is reduced to. Another value is another address of everything.
``fit``
    Fits, what is joined of them and what is written of that; the map's results stay valid.
``plan``
    What planning finds with it: shards, their parts and cells, digests of other jobs' products,
    facts about the detector. Addresses hold what was found, so that the option need not be in them.
``run``
    No number: where the output goes, whether it may be replaced, which further formats it has.

An option without a stage counts as one of the map, which is the safe side; a test refuses it.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = [
    "JobSection",
    "Schema",
    "Section",
    "Stage",
    "caseless",
    "exact_bytes",
    "inner_section",
    "option",
    "options_of",
    "parse_bytes",
    "read_with",
    "section_type",
    "short",
    "stage_of",
    "unit_of",
]

type Schema = Mapping[str, type[Section]]
type Stage = Literal["map", "fit", "plan", "run"]

_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def option(
    default: Any = PydanticUndefined,
    *,
    stage: Stage,
    help: str = "",
    unit: str | None = None,
    example: Any = None,
    **limits: Any,
) -> Any:
    """Declare an option of a section.

    Parameters
    ----------
    default : object
        Its default; without one it is required.
    stage : str
        What depends on it (see this module).
    help : str
        What it does, for the configuration that ``calibdask init`` writes.
    unit : str, optional
        Unit of plain numbers.
    example : object, optional
        Shown for an option that is off by default.
    **limits : object
        What else `pydantic.Field` takes: ``ge``, ``gt``, ``le``, ``lt``, ``min_length``, ``alias``.

    Returns
    -------
    FieldInfo
        The value of the class attribute.
    """
    extra: dict[str, Any] = {"stage": stage} if unit is None else {"stage": stage, "unit": unit}
    examples = None if example is None else [example]
    return Field(default, description=help, examples=examples, json_schema_extra=extra, **limits)


def inner_section(default: Section | None = None, *, help: str, alias: str | None = None) -> Any:
    """Declare a section inside another, whose options have stages of their own.

    Parameters
    ----------
    default : Section, optional
        Its default.
    help : str
        What it does.
    alias : str, optional
        Its name in a YAML file.

    Returns
    -------
    FieldInfo
        The value of the class attribute.
    """
    return Field(default, description=help, alias=alias)


class Section(BaseModel):
    """Base of every section: unknown options are refused, values are not converted, all is frozen.

    An empty section means its defaults. Options are declared by `option`, sections inside of it by
    `inner_section`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    hints: ClassVar[Mapping[str, str]] = {}
    """What to do about an option that belongs to other software or to the command line."""

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, values: object) -> object:
        return {} if values is None else values

    def staged(self, stage: Stage) -> dict[str, Any]:
        """Return the options of one stage, those of sections inside among them, ready for JSON.

        Parameters
        ----------
        stage : str
            The stage (see this module).

        Returns
        -------
        dict
            Values by the name that a YAML file uses. Sections inside that have no option of the
            stage, or are not given, are left out.
        """
        found: dict[str, Any] = {}
        for attribute, field in type(self).model_fields.items():
            name, value = field.alias or attribute, getattr(self, attribute)
            declared = stage_of(field)
            if declared is None and section_type(field.annotation) is not None:
                within = value.staged(stage) if isinstance(value, Section) else {}
                found |= {name: within} if within else {}
            elif (declared or "map") == stage:
                found[name] = _plain(value)
        return found


class JobSection(Section):
    """Base of the main section of a job: where it reads and writes."""

    hints: ClassVar[Mapping[str, str]] = {
        "log_level": "use --log-level on the command line",
        "log_file": "use -l FILE on the command line",
        "log_file_level": "use --log-level on the command line",
        "provenance_log": "use --provenance-log on the command line",
        "quiet": "use -q on the command line",
    }

    input_url: str | None = option(
        None,
        stage="run",
        help="Input, where the command line names none (-i).",
        example="input/",
    )
    output_url: str | None = option(
        None,
        stage="run",
        help="Output, where the command line names none (-o).",
        example="out.h5",
    )
    overwrite: bool = option(False, stage="run", help="Replace an output that exists.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs that are named."""
        return () if self.input_url is None else (self.input_url,)


def _plain(value: object) -> Any:
    """Make JSON of a value of an option."""
    match value:
        case Section():
            values = {name: getattr(value, name) for name in type(value).model_fields}
            return _plain(values | (value.model_extra or {}))
        case Mapping():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case None | bool() | int() | float() | str():
            return value
    return value.to_plain()  # type: ignore[attr-defined] # values by telescope


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


def exact_bytes(n_bytes: int) -> str:
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


def options_of(model: type[Section]) -> dict[str, FieldInfo]:
    """Options and nested sections of a model, by the name that a YAML file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def stage_of(field: FieldInfo) -> Stage | None:
    """Return the stage of an option; None where it has none, as sections inside others do."""
    stage: Stage | None = _extra(field).get("stage")
    return stage


def unit_of(field: FieldInfo) -> str | None:
    """Return the unit of an option, if it has one."""
    unit: str | None = _extra(field).get("unit")
    return unit


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


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
