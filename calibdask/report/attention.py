"""What needs attention: the first section of every job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.flags import Severity, has, present
from calibdask.report.blocks import Notice, Paragraph, ReportSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from calibdask.report.blocks import Block

__all__ = ["attention_section", "flag_notices", "name_telescopes"]


def attention_section(notices: Iterable[Notice], summary: str = "", *more: Block) -> ReportSection:
    """Return the section that lists what restricts the use of the result.

    Parameters
    ----------
    notices : iterable of Notice
        In any order: errors come first on the page, then warnings.
    summary : str
        A sentence that follows them.
    *more : Block
        Shown below.
    """
    ordered = sorted(notices, key=lambda one: ("error", "warning", "info").index(one.level))
    nothing = "" if ordered else f"Nothing: {summary}" if summary else "Nothing."
    text = nothing or summary
    return ReportSection(
        "What needs attention", [*ordered, *([Paragraph(text)] if text else []), *more]
    )


def name_telescopes(tel_id: NDArray[np.integer], limit: int = 12) -> str:
    """Write out telescope numbers, the first `limit` of them."""
    names = ", ".join(map(str, tel_id[:limit].tolist()))
    rest = len(tel_id) - limit
    noun = "Telescope" if len(tel_id) == 1 else "Telescopes"
    return f"{noun} {names}" + (f" and {rest} more" if rest > 0 else "")


def flag_notices(tel_id: NDArray[np.integer], flags: NDArray[np.str_]) -> list[Notice]:
    """Return a notice for each flag that names its telescopes, the most severe flag first.

    Parameters
    ----------
    tel_id, flags : ndarray of int and of str, shape (N,)
        Telescope and flags of each row; several rows may be of one telescope.
    """
    return [
        Notice(
            "info" if flag.severity == Severity.NOTE else "warning",
            f"{name_telescopes(np.unique(tel_id[has(flags, flag)]))} ({flag.letter}):"
            f" {flag.meaning}.",
        )
        for flag in present(flags)
    ]
