"""Reading of YAML files: safely, strictly, with the place of every option."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calibdask.config.sections import short
from calibdask.errors import ConfigError

__all__ = [
    "COMMAND_LINE",
    "OptionPath",
    "YamlSource",
    "load_yaml",
    "merge",
    "nested",
    "parse_yaml",
    "read_source",
    "set_at",
]

type OptionPath = tuple[str | int, ...]

COMMAND_LINE = "command line"
"""Name of the source of options that the command line sets."""

_MOST_VALUES = 100_000  # in a file, with every alias written out


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses tags, and keys given twice or not text."""

    key_types: tuple[type, ...] = (str,)

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
        if type(key) not in loader.key_types:
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


class _ValueLoader(_Loader):
    """The same for the value of one option, in which numbers may be keys: ``{7: 1}``."""

    key_types = (str, int)


@dataclass(frozen=True)
class YamlSource:
    """One configuration file (or the command line), with what is needed to point into it."""

    name: str
    values: dict[str, Any]
    root: yaml.Node | None = None

    def where(self, path: OptionPath) -> str | None:
        """Return file and line of an option, or None if it is not in here."""
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


def read_source(path: Path | str) -> YamlSource:
    """Read one file, with the place of every option (ConfigError as `load_yaml`)."""
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
        return YamlSource(name, {})
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name}: a configuration consists of sections ('Section:' with options below), not "
            f"of {short(values)}"
        )
    return YamlSource(name, values, root)


def parse_yaml(name: str, text: str) -> Any:
    """Read one YAML value (ConfigError where it is none, or one too large).

    Parameters
    ----------
    name : str
        What to call it in messages.
    text : str
        The value.
    """
    return _parse(name, text, _ValueLoader)[1]


def _parse(
    name: str, text: str, loader_type: type[_Loader] = _Loader
) -> tuple[yaml.Node | None, Any]:
    try:
        loader = loader_type(text)
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


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Merge sections into others; an option replaces the whole option."""
    for name, value in values.items():
        if _is_section(name) and isinstance(value, dict):
            inner = into.get(name)
            into[name] = dict(inner) if isinstance(inner, dict) else {}
            merge(into[name], value)
        elif not (_is_section(name) and value is None and name in into):
            into[name] = value


def nested(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Return options by dotted path as nested sections (ConfigError where one is set twice)."""
    values: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *sections, option = dotted.split(".")
        level = values
        for section in sections:
            level = level.setdefault(section, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{COMMAND_LINE}: {dotted}: '{section}' is set twice")
        level[option] = value
    return values


def set_at(into: dict[str, Any], dotted: str, value: object) -> None:
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
        merge(merged, read_source(path).values)
    return merged
