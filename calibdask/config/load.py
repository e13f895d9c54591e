"""Checking of configurations, with every problem told at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from calibdask.config.sections import Schema, Section, options_of, section_type, short
from calibdask.config.yaml import (
    COMMAND_LINE,
    OptionPath,
    YamlSource,
    merge,
    nested,
    read_source,
    set_at,
)
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Configuration", "explain_problem", "load_config"]


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
    sources: tuple[YamlSource, ...] = dataclasses.field(repr=False)

    def get[S: Section](self, name: str, model: type[S]) -> S:
        """Return the section of this name, with its defaults if it was not given.

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
        """Return the section of this name, or None if it was not given.

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

    def first[S: Section](self, model: type[S]) -> S:
        """Return the section of a type, under whichever of its names it was given, or its defaults.

        Parameters
        ----------
        model : type
            The type, which is that of no other section of the job.

        Returns
        -------
        Section
            An instance of the model.
        """
        found = (one for one in self.sections.values() if type(one) is model)
        return next(found, None) or model()

    def where(self, *path: str | int) -> str:
        """Describe where an option was set: file, line and dotted path.

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
    *,
    others: Callable[[], Schema] = dict,
) -> Configuration:
    """Read, merge and check a configuration.

    Parameters
    ----------
    schema : mapping of str to type
        The model of each section of the job.
    paths : sequence of path
        YAML files, merged as in `load_yaml`.
    overrides : mapping of str to object, optional
        Options from the command line, by dotted path (``"Campaign.seed": 3``). They win.
    others : callable, optional
        Gives the sections of other jobs, which may be in the same file and are not looked into.

    Returns
    -------
    Configuration
        The checked sections.

    Raises
    ------
    ConfigError
        Everything that is wrong, each with file, line, dotted path, value and what was expected.
    """
    sources = [read_source(path) for path in paths]
    if overrides:
        sources.append(YamlSource(COMMAND_LINE, nested(overrides)))
    merged: dict[str, Any] = {}
    for source in sources[: len(paths)]:
        merge(merged, source.values)
    for dotted, value in (overrides or {}).items():
        set_at(merged, dotted, value)
    sections: dict[str, Section] = {}
    problems: list[str] = []
    for name, value in merged.items():
        if name not in schema:
            known = {**others(), **schema}
            if name in known:
                continue
            remedy = _remedy(name, (), known, known, "sections")
            problems.append(f"{_locate(sources, (name,))}: unknown section; {remedy}")
            continue
        try:
            sections[name] = schema[name].model_validate(value)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                path = (name, *details["loc"])
                problems.append(
                    f"{_locate(sources, path)}: {explain_problem(details, path, schema)}"
                )
    if problems:
        raise ConfigError(_listed(problems))
    return Configuration(sections, merged, tuple(sources))


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    bullets = "\n".join("- " + textwrap.indent(text, "  ").lstrip() for text in problems)
    return f"the configuration has {len(problems)} problems:\n{bullets}"


def _locate(sources: Sequence[YamlSource], path: OptionPath) -> str:
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    # An option that is missing is reported at the innermost section around it.
    for length in range(len(path), 0, -1):
        for source in reversed(sources):
            place = source.where(path[:length])
            if place is not None:
                return f"{place}: {dotted}"
    return f"default: {dotted}"


def _model_at(schema: Schema, path: OptionPath) -> type[Section] | None:
    model = schema.get(str(path[0]))
    for key in path[1:]:
        field = options_of(model).get(str(key)) if model else None
        model = section_type(field.annotation) if field else None
    return model


def _homes(schema: Schema, name: str) -> list[str]:
    """Dotted paths of the sections that have an option or a section of this name."""

    def search(model: type[Section], dotted: str) -> list[str]:
        options = options_of(model)
        found = [dotted] if name in options else []
        for option, field in options.items():
            inner = section_type(field.annotation)
            found += search(inner, f"{dotted}.{option}") if inner else []
        return found

    return [home for section, model in schema.items() for home in search(model, section)]


def _remedy(
    name: str, path: OptionPath, known: Mapping[str, Any], schema: Schema, what: str
) -> str:
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
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "dict_type": "a mapping of names to values",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a mapping of options, each on its own line as 'name: value'",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "a string that is not empty",
    "literal_error": "one of {expected}",
}


def explain_problem(details: Any, path: OptionPath, schema: Schema) -> str:
    """Return in plain words what pydantic found.

    Parameters
    ----------
    details : dict
        One of the errors of a `pydantic.ValidationError`.
    path : tuple of str or int
        Where the value stands, from the section on.
    schema : mapping of str to type
        The sections.
    """
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    name = str(path[-1])
    if kind == "extra_forbidden":
        model = _model_at(schema, path[:-1])
        options = options_of(model) if model else {}
        hint = model.hints.get(name) if model else None
        remedy = hint or _remedy(name, path, options, schema, "options")
        return f"unknown option (value {short(value)}); {remedy}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "this option is required"
    expected = _EXPECTED.get(kind, details["msg"]).format(**context)
    words = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
    close = difflib.get_close_matches(str(value), words, n=1)
    suggestion = f"; did you mean '{close[0]}'?" if close else ""
    return f"expected {expected}, got {short(value)}{suggestion}"
