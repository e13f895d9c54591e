"""The exceptions calibdask raises on purpose, with the exit code of each.

The codes are the observatory's interface standard for pipelines (ctapipe and calibpipe use the same
ones), so that a workflow system can tell "send it again" from "this file is broken" without reading
a log. A message names the file, the rows, the value, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CalibdaskError",
    "ConfigError",
    "CorruptedInput",
    "MissingInput",
    "NotEnoughData",
    "TransientError",
    "WrongKind",
]


class CalibdaskError(Exception):
    """Base of every error that calibdask raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(CalibdaskError):
    """The configuration, the command line or the plan is wrong: nothing has been computed."""

    exit_code = 2


class TransientError(CalibdaskError):
    """A fault that may go away by itself: it is tried again, then the job may be resubmitted."""

    exit_code = 100


class CorruptedInput(CalibdaskError):
    """An input is there but cannot be used as it is."""

    exit_code = 104


class MissingInput(CalibdaskError):
    """An input, or a table or column in it, is not there."""

    exit_code = 105


class NotEnoughData(CalibdaskError):
    """The inputs are fine but hold too little to calibrate anything."""

    exit_code = 106


class WrongKind(MissingInput):
    """A sound file, but not one this calibration reads.

    Named on the command line it is an error; found in a directory it is left out and reported.
    """
