"""Configurations written out, with every option at its default."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import yaml

from calibdask.config.sections import Schema, Section, exact_bytes, section_type, unit_of

__all__ = ["describe"]


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
        unit = unit_of(field)
        text = f"{field.description or ''}{f' Unit: {unit}.' if unit else ''}".strip()
        lines += _comment(text, indent)
        default = getattr(defaults, attribute)
        inner = section_type(field.annotation)
        if inner is not None and isinstance(default, Section):
            lines += [f"{indent}{name}:", *_describe_options(inner, indent + "  ")]
        elif default is None:
            example = field.examples[0] if field.examples else ({} if inner else "...")
            lines += [f"{indent}# {line}" for line in _yaml_lines(name, example)]
        else:
            shown = exact_bytes(default) if unit == "bytes" else default
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
