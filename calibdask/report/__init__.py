"""Reports: one self-contained HTML page per run, made of parts that all domains share.

A job describes its part of the page as `ReportSection` objects made of `Paragraph`, `Notice`,
`TableBlock` and `FigureBlock` (`blocks`); it never writes HTML. Headings, units and digits of
tables come from their schemas, the notices about flags from the registry of flags (`attention`),
figures and what they have in common from `figures` and `telescopes`. `page` puts it together.
"""

from __future__ import annotations

from calibdask.report.attention import attention_section, flag_notices, name_telescopes
from calibdask.report.blocks import (
    Block,
    FigureBlock,
    Notice,
    Paragraph,
    ReportSection,
    TableBlock,
    table_block,
)
from calibdask.report.figures import PALETTE, draw_figure
from calibdask.report.page import (
    FailureRecord,
    InputRecord,
    RunRecord,
    render_report,
    write_report,
)

__all__ = [
    "PALETTE",
    "Block",
    "FailureRecord",
    "FigureBlock",
    "InputRecord",
    "Notice",
    "Paragraph",
    "ReportSection",
    "RunRecord",
    "TableBlock",
    "attention_section",
    "draw_figure",
    "flag_notices",
    "name_telescopes",
    "render_report",
    "table_block",
    "write_report",
]
