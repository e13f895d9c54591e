"""Configurations: YAML files into checked, frozen sections.

A configuration is a mapping of section names to sections, as in ctapipe. Which sections there are
is the caller's business: it passes a mapping from section name to model. Whatever is wrong becomes
one `ConfigError` that lists every problem with its file, line, dotted path, value and remedy.
"""

from calibdask.config.campaign import BATCH_SECTIONS, ENGINE_SECTIONS, Campaign
from calibdask.config.describe import describe
from calibdask.config.load import Configuration, load_config
from calibdask.config.sections import (
    JobSection,
    Section,
    caseless,
    exact_bytes,
    inner_section,
    option,
    parse_bytes,
    read_with,
)
from calibdask.config.yaml import load_yaml, parse_yaml

__all__ = [
    "BATCH_SECTIONS",
    "ENGINE_SECTIONS",
    "Campaign",
    "Configuration",
    "JobSection",
    "Section",
    "caseless",
    "describe",
    "exact_bytes",
    "inner_section",
    "load_config",
    "load_yaml",
    "option",
    "parse_bytes",
    "parse_yaml",
    "read_with",
]
