"""Which rows count, and which value belongs to which telescope."""

from calibdask.select.criteria import Cut, QualityCriteria, Selection, compile_criteria
from calibdask.select.expressions import quote_names
from calibdask.select.patterns import TelescopePatterns, finite_number

__all__ = [
    "Cut",
    "QualityCriteria",
    "Selection",
    "TelescopePatterns",
    "compile_criteria",
    "finite_number",
    "quote_names",
]
