"""Reading configurations: YAML files into checked, frozen sections.

A configuration is a mapping of section names to sections, as in ctapipe. Which sections there are
is the caller's business: it passes a mapping from section name to model. Whatever is wrong becomes
one `ConfigError` that lists every problem with its file, line, dotted path, value and remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import reprlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from calibdask.stats.timebins import TimeBins

__all__ = [
    "ENGINE_SECTIONS",
    "Campaign",
    "Configuration",
    "Section",
    "Slurm",
    "caseless",
    "describe",
    "format_bytes",
    "load_config",
    "load_yaml",
    "parse_bytes",
    "parse_yaml",
    "read_with",
]

type Schema = Mapping[str, type[Section]]
type _Path = tuple[str | int, ...]

_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_COMMAND_LINE = "command line"
_MOST_VALUES = 100_000  # in a file, with every alias written out


# -- sections -----------------------------------------------------------------------------------


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
                f"{_short(value)} is not a number of bytes: write for instance '256 MiB' or '4 GB'"
            )
        n_bytes = Decimal(match[1]) * factor
    if n_bytes < 1:
        raise ConfigError(f"{_short(value)} is less than one byte")
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


type _Bytes = Annotated[int, read_with(parse_bytes)]


def _time_bin(value: object) -> int:
    """Read the width of a time bin: text such as "1 h", to whole nanoseconds."""
    from astropy import units as u

    if not isinstance(value, str):
        raise ConfigError(f"{_short(value)} has no unit: write for instance '1 h' or '600 s'")
    try:
        width_ns = round(float(u.Quantity(value).to_value(u.ns)))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{_short(value)} is not a time: write for instance '1 h' or '600 s'"
        ) from None
    if not 1 <= width_ns < 2**62:
        raise ConfigError(f"{_short(value)} is not a width that a time bin can have")
    return width_ns


def _epoch(value: object) -> int:
    """Read a date in UTC, as nanoseconds of TAI since 1970."""
    from astropy.time import Time

    # YAML makes a date of what looks like one.
    text = value if isinstance(value, str) else getattr(value, "isoformat", lambda: "")()
    try:
        day = Time(text, scale="utc").tai
        # Whole days and the rest apart: one float cannot hold nanoseconds since 1970.
        start = Time("1970-01-01T00:00:00", scale="tai")
        days = round(float(day.jd1 - start.jd1))
        return days * 86_400_000_000_000 + round(float(day.jd2 - start.jd2) * 86_400e9)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{_short(value)} is not a date: write for instance '2027-01-31T12:00:00' (UTC)"
        ) from None


_DEFAULT_EPOCH = "2020-01-01T12:00:00"


class Campaign(Section):
    """How a campaign is cut into shards and run, whatever is calibrated."""

    shard_bytes: _Bytes = Field(
        default=256 * 1024**2,
        description="How much input one task reads.",
        json_schema_extra={"unit": "bytes"},
    )
    fan_in: int = Field(
        default=16,
        ge=2,
        description="How many summaries one merge takes. Another value is another plan.",
    )
    worker_memory: _Bytes | None = Field(
        default=None,
        description="Memory of one worker. A plan that needs more is refused before it starts; "
        "without it, what the cluster reports is used.",
        examples=["4 GiB"],
        json_schema_extra={"unit": "bytes"},
    )
    allow_missing: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Fraction of the inputs that may fail before the result is refused; of one "
        "that is cut into several shards, each counts.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of random numbers. No job draws any yet.")
    retries: int = Field(
        default=2, ge=0, description="How often a shard is tried again after a fault that may pass."
    )
    verify_inputs: Annotated[Literal["fast", "full"], caseless("fast", "full")] = Field(
        default="fast",
        description="How an input is recognised: 'fast' reads its first, middle and last MiB, "
        "'full' all of it.",
    )
    time_bin: Annotated[int, read_with(_time_bin)] | None = Field(
        default=None,
        description="Width of time bins, each calibrated by itself: number and unit. Without it, "
        "all data are calibrated together.",
        examples=["1 h"],
    )
    epoch: Annotated[int, read_with(_epoch)] | None = Field(
        default=None,
        description="Where a time bin begins, as a date in UTC: bins are aligned to it and never "
        f"depend on where files begin. Unless given, noon of {_DEFAULT_EPOCH[:10]}: one-day bins "
        "hold a night.",
        examples=[_DEFAULT_EPOCH],
    )

    @property
    def bins(self) -> TimeBins | None:
        """The time bins, if there are any."""
        from calibdask.stats.timebins import TimeBins

        if self.time_bin is None:
            return None
        return TimeBins(self.time_bin, _epoch(_DEFAULT_EPOCH) if self.epoch is None else self.epoch)


class Slurm(Section):
    """Worker jobs of --cluster slurm: dask-jobqueue's options, over those of its own files.

    For instance queue, account, cores, memory, walltime, interface, job_extra_directives,
    job_script_prologue, log_directory.
    """

    model_config = ConfigDict(extra="allow")


ENGINE_SECTIONS: Schema = {"Campaign": Campaign, "Slurm": Slurm}
"""The sections of every job."""


# -- YAML ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses tags, and keys given twice or not text."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            # No option needs one, and PyYAML stumbles over values that do not fit their tag.
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag '{tag}' is not allowed: leave it out", event.start_mark
            )
        return super().compose_node(parent, index)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the name {key!r} is not text: put it into quotes", key_node.start_mark
            )
        if key in lines:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"'{key}' is given twice, in line {lines[key]} and in line {line}: one of them "
                "would be lost",
                key_node.start_mark,
            )
        lines[key] = line
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
# PyYAML follows YAML 1.1, in which 5e-2 is text; everybody who writes it means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class _Source:
    """One configuration file (or the command line), with what is needed to point into it."""

    name: str
    values: dict[str, Any]
    root: yaml.Node | None = None

    def where(self, path: _Path) -> str | None:
        """Give file and line of an option, or None if it is not in here."""
        if self.root is None:
            value: Any = self.values
            for key in path:
                if not isinstance(value, Mapping) or key not in value:
                    return None
                value = value[key]
            return self.name
        node, line = self.root, self.root.start_mark.line + 1
        for key in path:
            match node:
                case yaml.MappingNode(value=items):
                    found = [(k, v) for k, v in items if k.value == key]
                case yaml.SequenceNode(value=items) if isinstance(key, int) and key < len(items):
                    found = [(items[key], items[key])]
                case _:
                    found = []
            if not found:
                return None
            key_node, node = found[-1]
            line = key_node.start_mark.line + 1
        return f"{self.name}:{line}"


def _read_source(path: Path | str) -> _Source:
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: byte {error.start} is not UTF-8 text: is this a YAML file?"
        ) from error
    root, values = _parse(name, text)
    if values is None:
        return _Source(name, {})
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name}: a configuration consists of sections ('Section:' with options below), not "
            f"of {_short(values)}"
        )
    return _Source(name, values, root)


def parse_yaml(name: str, text: str) -> Any:
    """Read one YAML value (ConfigError where it is none, or one too large).

    Parameters
    ----------
    name : str
        What to call it in messages.
    text : str
        The value.
    """
    return _parse(name, text)[1]


def _parse(name: str, text: str) -> tuple[yaml.Node | None, Any]:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, None
            _expanded_size(name, root, {})
            return root, loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        context = f" ({error.context})" if error.context else ""
        raise ConfigError(f"{place}: {error.problem}{context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{name}:{line}: the character U+{int(error.character):04X} is not allowed in YAML"
        ) from error
    except (RecursionError, ValueError, OverflowError) as error:
        # A date such as 2026-13-01, or brackets without end.
        raise ConfigError(f"{name}: a value cannot be read: {error}") from error


def _expanded_size(name: str, node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Count the values below a node with every alias written out.

    Raises
    ------
    ConfigError
        They are more than a configuration can have, or an alias stands within what it repeats.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise ConfigError(
                f"{name}:{node.start_mark.line + 1}: an alias (*) repeats the value that it is"
                " part of, which has no end"
            )
        return size
    sizes[id(node)] = None
    size = 1
    for item in node.value:
        for one in item if isinstance(item, tuple) else (item,):
            size += _expanded_size(name, one, sizes)
    if size > _MOST_VALUES:
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: with its aliases (*) written out this has more"
            f" than {_MOST_VALUES} values, which no configuration needs"
        )
    sizes[id(node)] = size
    return size


def _is_section(name: str) -> bool:
    # ctapipe's rule: sections are named like classes.
    return name[:1].isupper()


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if _is_section(name) and isinstance(value, dict):
            inner = into.get(name)
            into[name] = dict(inner) if isinstance(inner, dict) else {}
            _merge(into[name], value)
        elif not (_is_section(name) and value is None and name in into):
            into[name] = value


def _nested(overrides: Mapping[str, object]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *sections, option = dotted.split(".")
        level = values
        for section in sections:
            level = level.setdefault(section, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{_COMMAND_LINE}: {dotted}: '{section}' is set twice")
        level[option] = value
    return values


def _set(into: dict[str, Any], dotted: str, value: object) -> None:
    """Set what a dotted path names and leave everything beside it as it is."""
    *outer, last = dotted.split(".")
    for name in outer:
        inner = into.get(name)
        into[name] = dict(inner) if isinstance(inner, dict) else {}
        into = into[name]
    into[last] = value


def load_yaml(paths: Sequence[Path | str]) -> dict[str, Any]:
    """Read YAML files and merge them in order.

    Sections (names that begin with a capital letter) are merged; an option in a later file
    replaces the whole option, lists and mappings included, as in ctapipe. An empty section changes
    nothing.

    Parameters
    ----------
    paths : sequence of path
        Files; later ones win.

    Returns
    -------
    dict
        The merged sections, not checked further.

    Raises
    ------
    ConfigError
        A file that cannot be read, is not YAML (with line and column), gives a name twice (with
        both lines), or does not consist of sections.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read_source(path).values)
    return merged


# -- checking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """The checked sections of a configuration, and where they came from.

    Attributes
    ----------
    sections : mapping of str to Section
        The sections that were given, and no others.
    values : mapping
        The merged YAML as plain values, for provenance.
    """

    sections: Mapping[str, Section]
    values: Mapping[str, Any]
    sources: tuple[_Source, ...] = dataclasses.field(repr=False)

    def get[S: Section](self, name: str, model: type[S]) -> S:
        """Give the section of this name, with its defaults if it was not given.

        Parameters
        ----------
        name : str
            Name of the section.
        model : type
            Its model.

        Returns
        -------
        Section
            An instance of the model.
        """
        section = self.find(name, model)
        return model() if section is None else section

    def find[S: Section](self, name: str, model: type[S]) -> S | None:
        """Give the section of this name, or None if it was not given.

        Parameters
        ----------
        name : str
            Name of the section.
        model : type
            Its model.

        Returns
        -------
        Section or None
            An instance of the model.
        """
        section = self.sections.get(name)
        if section is not None and not isinstance(section, model):
            msg = f"section {name} is a {type(section).__name__}, not a {model.__name__}"
            raise TypeError(msg)
        return section

    def where(self, *path: str | int) -> str:
        """Say where an option was set: file, line and dotted path.

        Parameters
        ----------
        *path : str or int
            Section, option, and so on inwards.

        Returns
        -------
        str
            For instance ``array.yaml:12: PairFinder.max_impact_distance``.
        """
        return _locate(self.sources, path)

    def error(self, message: str, *path: str | int) -> ConfigError:
        """Make the error for an option that is valid by itself but not in this configuration.

        Parameters
        ----------
        message : str
            What is wrong and what to do.
        *path : str or int
            The option.

        Returns
        -------
        ConfigError
            To be raised by the caller.
        """
        return ConfigError(f"{self.where(*path)}: {message}")


def load_config(
    schema: Schema,
    paths: Sequence[Path | str],
    overrides: Mapping[str, object] | None = None,
) -> Configuration:
    """Read, merge and check a configuration.

    Parameters
    ----------
    schema : mapping of str to type
        The model of each section that may occur, those of other jobs included.
    paths : sequence of path
        YAML files, merged as in `load_yaml`.
    overrides : mapping of str to object, optional
        Options from the command line, by dotted path (``"Campaign.seed": 3``). They win.

    Returns
    -------
    Configuration
        The checked sections.

    Raises
    ------
    ConfigError
        Everything that is wrong, each with file, line, dotted path, value and what was expected.
    """
    sources = [_read_source(path) for path in paths]
    if overrides:
        sources.append(_Source(_COMMAND_LINE, _nested(overrides)))
    merged: dict[str, Any] = {}
    for source in sources[: len(paths)]:
        _merge(merged, source.values)
    for dotted, value in (overrides or {}).items():
        _set(merged, dotted, value)
    sections: dict[str, Section] = {}
    problems: list[str] = []
    for name, value in merged.items():
        if name not in schema:
            remedy = _remedy(name, (), schema, schema, "sections")
            problems.append(f"{_locate(sources, (name,))}: unknown section; {remedy}")
            continue
        try:
            sections[name] = schema[name].model_validate(value)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                path = (name, *details["loc"])
                problems.append(f"{_locate(sources, path)}: {_explain(details, path, schema)}")
    if problems:
        raise ConfigError(_listed(problems))
    return Configuration(sections, merged, tuple(sources))


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    bullets = "\n".join("- " + textwrap.indent(text, "  ").lstrip() for text in problems)
    return f"the configuration has {len(problems)} problems:\n{bullets}"


def _locate(sources: Sequence[_Source], path: _Path) -> str:
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    # An option that is missing is reported at the innermost section around it.
    for length in range(len(path), 0, -1):
        for source in reversed(sources):
            place = source.where(path[:length])
            if place is not None:
                return f"{place}: {dotted}"
    return f"default: {dotted}"


def _options(model: type[Section]) -> dict[str, Any]:
    """Options and nested sections of a model, by the name that a YAML file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _section_type(annotation: Any) -> type[Section] | None:
    """Model of an option that is itself a section, optional or not."""
    for candidate in (annotation, *get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, Section):
            return candidate
    return None


def _model_at(schema: Schema, path: _Path) -> type[Section] | None:
    model = schema.get(str(path[0]))
    for key in path[1:]:
        field = _options(model).get(str(key)) if model else None
        model = _section_type(field.annotation) if field else None
    return model


def _homes(schema: Schema, name: str) -> list[str]:
    """Dotted paths of the sections that have an option or a section of this name."""

    def search(model: type[Section], dotted: str) -> list[str]:
        options = _options(model)
        found = [dotted] if name in options else []
        for option, field in options.items():
            inner = _section_type(field.annotation)
            found += search(inner, f"{dotted}.{option}") if inner else []
        return found

    return [home for section, model in schema.items() for home in search(model, section)]


def _remedy(name: str, path: _Path, known: Mapping[str, Any], schema: Schema, what: str) -> str:
    by_lower = {option.lower(): option for option in known}
    homes = _homes(schema, name)
    if homes and name.lower() not in by_lower:
        # The nearest home is the one that shares the section, then the outermost.
        home = min(homes, key=lambda home: (home.split(".")[0] not in path[:1], home.count(".")))
        return f"it belongs in {home}"
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    if close:
        return f"did you mean '{by_lower[close[0]]}'?"
    return f"the {what} here are {', '.join(known)}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of names to values",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "options, each on a line of its own as 'name: value'",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "text that is not empty",
    "literal_error": "one of {expected}",
}


def _explain(details: Any, path: _Path, schema: Schema) -> str:
    """Say in plain words what pydantic found."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    name = str(path[-1])
    if kind == "extra_forbidden":
        model = _model_at(schema, path[:-1])
        options = _options(model) if model else {}
        hint = model.hints.get(name) if model else None
        remedy = hint or _remedy(name, path, options, schema, "options")
        return f"unknown option (value {_short(value)}); {remedy}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "this option is required"
    expected = _EXPECTED.get(kind, details["msg"]).format(**context)
    words = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
    close = difflib.get_close_matches(str(value), words, n=1)
    suggestion = f"; did you mean '{close[0]}'?" if close else ""
    return f"{_short(value)} was given, expected is {expected}{suggestion}"


def _short(value: object) -> str:
    shorten = reprlib.Repr(maxlevel=2, maxstring=80, maxother=80, maxlist=8, maxdict=8)
    return shorten.repr(value)


# -- documentation ------------------------------------------------------------------------------


def describe(schema: Schema) -> str:
    """Write a commented YAML configuration with every option at its default.

    Options that are off by default stand there commented out.

    Parameters
    ----------
    schema : mapping of str to type
        The sections to describe, in order.

    Returns
    -------
    str
        YAML that `load_config` reads as the defaults.
    """
    blocks = []
    for name, model in schema.items():
        lines = [*_comment(inspect.cleandoc(model.__doc__ or "")), f"{name}:"]
        blocks.append("\n".join(lines + _describe_options(model, "  ")))
    return "\n\n".join(blocks) + "\n"


def _describe_options(model: type[Section], indent: str) -> list[str]:
    lines = []
    defaults = model()
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        extra = field.json_schema_extra
        unit = extra.get("unit") if isinstance(extra, dict) else None
        text = f"{field.description or ''}{f' Unit: {unit}.' if unit else ''}".strip()
        lines += _comment(text, indent)
        default = getattr(defaults, attribute)
        inner = _section_type(field.annotation)
        if inner is not None and isinstance(default, Section):
            lines += [f"{indent}{name}:", *_describe_options(inner, indent + "  ")]
        elif default is None:
            example = field.examples[0] if field.examples else ({} if inner else "...")
            lines += [f"{indent}# {line}" for line in _yaml_lines(name, example)]
        else:
            shown = format_bytes(default) if unit == "bytes" else default
            lines += [f"{indent}{line}" for line in _yaml_lines(name, shown)]
    return lines


def _yaml_lines(name: str, value: Any) -> list[str]:
    plain = value.to_plain() if hasattr(value, "to_plain") else value
    plain = list(plain) if isinstance(plain, tuple) else plain
    # Lists within a list stay on one line each.
    style = None if isinstance(plain, list) else False
    dumped = yaml.safe_dump({name: plain}, default_flow_style=style, width=10**6)
    return str(dumped).splitlines()


def _comment(text: str, indent: str = "") -> list[str]:
    wrapped = textwrap.wrap(" ".join(text.split()), width=96 - len(indent))
    return [f"{indent}# {line}" for line in wrapped]
