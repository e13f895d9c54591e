"""What the checks of the doctor report: passed, a warning or a failure, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level", "failed", "passed", "warned"]

type Level = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    level : {"PASS", "WARN", "FAIL"}
        FAIL: a campaign would not run. WARN: it may run badly.
    what : str
        What was seen.
    remedy : str
        What to do; empty where all is well.
    """

    level: Level
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.level}  {self.what}"
        return f"{text}\n      -> {self.remedy}" if self.remedy else text


def passed(what: str) -> Finding:
    """Return a check that passed."""
    return Finding("PASS", what)


def warned(what: str, remedy: str) -> Finding:
    """Return a warning with its remedy."""
    return Finding("WARN", what, remedy)


def failed(what: str, remedy: str) -> Finding:
    """Return a failure with its remedy."""
    return Finding("FAIL", what, remedy)
