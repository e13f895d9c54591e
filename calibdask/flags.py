"""Every quality flag of the project, declared once.

Rows of tables carry flags as letters in a column ``flags``, e.g. "SU"; "" means all is well. A
letter means one thing in all tables. Which of them a table can carry, its schema says (see
`calibdask.schema`). Pixels carry flags as bits of a mask (`MaskFlag`).

``docs/reference/flags.md`` is written from here (``python -m calibdask.reference``).
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    type Masks = Mapping["Flag", ArrayLike]  # boolean, all of one shape

__all__ = [
    "MUON_FLAGS",
    "Flag",
    "ImageFlag",
    "MaskFlag",
    "PixelFlag",
    "Severity",
    "add",
    "column",
    "has",
    "present",
    "remove",
    "usable",
    "worst",
]


class Severity(IntEnum):
    """What a flag means for the use of a row."""

    NOTE = 1
    """The values can be used as they are."""
    CAUTION = 2
    """The values can be used, after a look at what the flag says."""
    UNUSABLE = 3
    """There is no value, or none that may enter another result unasked."""


_NOTE, _CAUTION, _UNUSABLE = Severity


@unique
class Flag(Enum):
    """A flag of a table's row. ``Flag("R")`` is the flag of a letter; `name` is its name.

    Members are in the order in which letters are joined. Letters are never given a new meaning:
    files that were written before would be misread.

    Attributes
    ----------
    meaning : str
        What it says about the row, without a full stop.
    severity : Severity
        What follows for its use.
    """

    meaning: str
    severity: Severity

    def __new__(cls, letter: str, severity: Severity, meaning: str) -> Self:
        """Make a member whose value is its letter."""
        flag = object.__new__(cls)
        flag._value_, flag.severity, flag.meaning = letter, severity, meaning
        return flag

    @property
    def letter(self) -> str:
        """The letter in the column ``flags``."""
        return str(self.value)

    # fmt: off
    # -- arrays of telescopes: pairs, networks, drift
    REFERENCE = "R", _NOTE, "the reference, held fixed"
    FALLBACK = "F", _CAUTION, (
        "fallback reference (the configured one has no usable pair in this component): values "
        "compare only within the component")
    DISCONNECTED = "D", _UNUSABLE, "disconnected from the reference's component"
    NO_PAIR = "N", _UNUSABLE, "no usable pair: no value"
    FEW_PAIR_EVENTS = "S", _NOTE, "some pair of it was dropped for few events (n < n_min)"
    NO_ERROR = "B", _UNUSABLE, "bad: too few events for an error of its own (no error quoted)"
    UNMEASURED_PAIR = "U", _NOTE, (
        "some pair of it was dropped because its centre or scatter could not be determined (no "
        "scatter, scatter below one histogram bin, or median outside the histogram)")
    INVALID_EVENTS = "I", _NOTE, (
        "some of its pair events were left out: a value was not finite and positive, or a time "
        "was too far off")
    LACKS_ROWS = "L", _CAUTION, (
        "lacks rows: its tables in the inputs lack rows that others have, or it has none although "
        "it triggered (a killed writer)")
    PRELIMINARY = "P", _UNUSABLE, "preliminary: its error needs a later stage of the fit"
    MUONS_DISAGREE = "M", _CAUTION, (
        "the scale of its type in the network disagrees with the muons, against other types: it "
        "is from the muons of the type alone")
    NO_TOTAL_ERROR = "T", _CAUTION, (
        "its total error is not known: too few events in bins of the impact distance to tell the "
        "systematic one, or no error of its own")
    JUMP = "J", _CAUTION, (
        "jumps: the step from its last time bin to this one is too large for chance")
    VARIES = "V", _CAUTION, "varies: its values in all time bins are not those of a constant"

    # -- muon rings
    TWO_MIRRORS = "W", _UNUSABLE, "two mirrors: there is no ring model for it, so it has no value"
    NO_RING = "E", _UNUSABLE, "empty: no ring of it is selected, or no file has any: no value"
    FEW_RINGS = "Q", _UNUSABLE, (
        "fewer rings than min_number_of_muon: no value, or not used for the trend")
    NO_SLOPE = "G", _NOTE, "too few bins for a slope"
    POOR_LINE = "X", _CAUTION, (
        "the values scatter more about the line than their errors allow (p < 0.001)")
    MANY_CLIPPED = "C", _NOTE, "more than a tenth of the rings was clipped"
    # fmt: on


MUON_FLAGS = (
    Flag.TWO_MIRRORS, Flag.NO_RING, Flag.FEW_RINGS, Flag.NO_SLOPE, Flag.POOR_LINE,
    Flag.MANY_CLIPPED,
)  # fmt: skip
"""What rows of muon tables can carry."""


class MaskFlag(Enum):
    """Base of the flags of pixels: each mask has its class, each bit a member, the lowest first.

    ::

        class PixelFlag(MaskFlag):
            FEW_FRAMES = "fewer than two frames: no variance"
            ...

        mask[n < 2] |= PixelFlag.FEW_FRAMES.bit

    Attributes
    ----------
    bit : uint16
        Its bit.
    meaning : str
        What it says about the pixel, without a full stop.
    """

    bit: np.uint16
    meaning: str

    def __new__(cls, meaning: str) -> Self:
        """Make a member with the next bit."""
        flag = object.__new__(cls)
        flag._value_ = 1 << len(cls.__members__)
        flag.bit, flag.meaning = np.uint16(flag._value_), meaning
        return flag

    @property
    def label(self) -> str:
        """Name in files and reports, e.g. "few-frames"."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def attributes(cls) -> dict[str, Any]:
        """Describe the mask by the CF conventions."""
        return {
            "long_name": "pixel flags, 0 where all is well",
            "flag_masks": [flag.value for flag in cls],
            "flag_meanings": " ".join(flag.label for flag in cls),
        }

    @classmethod
    def count(cls, mask: NDArray[np.uint16]) -> dict[str, int]:
        """Return how many pixels have each flag, by its label."""
        return {flag.label: int(np.count_nonzero(mask & flag.bit)) for flag in cls}


class PixelFlag(MaskFlag):
    """Flags of the pixels of calibration maps."""

    FEW_FRAMES = "fewer than two frames: no variance"
    SATURATED = "saturated in all that could have been used"
    CLIPPED = "at zero in some frame: mean and variance are biased"
    FEW_LEVELS = "too few usable levels or exposures for the fit"
    NO_SIGNAL = "signal too low for the quantity"
    POOR_FIT = "the fit is worse than chance allows"
    UNPHYSICAL = "the fitted value cannot be, e.g. a gain of at most 0"
    UNDERSAMPLED = "noise below half a DN, hidden by rounding: the value is an upper limit"
    HOT = "dark current far above the other pixels'"
    BAD_BIAS = "bias far from the other pixels'"
    NOISY = "read noise far above the other pixels'"
    BAD_RESPONSE = "response to light far from the other pixels'"
    EXTRAPOLATED = "outside the region that was fitted"
    PARTLY_SATURATED = "some points were left out for saturation; the value is from the others"
    BORDER = "masked border or overscan: no light falls there, it is left out of everything"


class ImageFlag(MaskFlag):
    """Flags of the pixels of calibrated frames."""

    SATURATED = "the raw value is at the saturation level"
    BIAS = "the bias map is flagged there"
    DARK = "the map of dark current is flagged there"
    FLAT = "the flat field is flagged there"
    GAIN = "the map of the gain is flagged there"
    DEFECT = "a defect pixel"
    NO_VALUE = "there is no number: a map has none, or divides by nothing"
    BORDER = "masked border or overscan: no light falls there"


def column(masks: Masks) -> NDArray[np.str_]:
    """Return the column ``flags``: the letters of all flags that a row has, in their fixed order.

    Parameters
    ----------
    masks : mapping of Flag to array_like of bool, shape (N,)
        Which rows have the flag; of one value where all have it, or none.

    Returns
    -------
    ndarray of str, shape (N,)
        "" for rows without a flag.
    """
    shape = np.broadcast_shapes(*(np.shape(mask) for mask in masks.values()))
    joined = np.full(shape, "")
    for flag in Flag:
        if flag in masks:
            joined = np.strings.add(joined, np.where(masks[flag], flag.letter, ""))
    return joined


def add(flags: ArrayLike, masks: Masks) -> NDArray[np.str_]:
    """Return a column with more flags; those that a row has already stay."""
    own = {flag: has(flags, flag) for flag in Flag}
    return column(own | {flag: own[flag] | np.asarray(mask) for flag, mask in masks.items()})


def remove(flags: ArrayLike, *without: Flag) -> NDArray[np.str_]:
    """Return a column without some flags."""
    return column({flag: has(flags, flag) for flag in Flag if flag not in without})


def has(flags: ArrayLike, *any_of: Flag) -> NDArray[np.bool_]:
    """Return which rows have any of some flags.

    Parameters
    ----------
    flags : array_like of str, shape (N,)
        A column ``flags``.
    *any_of : Flag
        The flags.

    Returns
    -------
    ndarray of bool, shape (N,)
    """
    letters = np.asarray(flags, np.str_)
    found = np.zeros(letters.shape, np.bool_)
    for flag in any_of:
        found |= np.strings.find(letters, flag.letter) >= 0
    return found


def present(*columns: ArrayLike) -> tuple[Flag, ...]:
    """Return the flags that occur in some columns, the most severe first."""
    letters = {letter for flags in columns for text in np.unique(flags) for letter in str(text)}
    return tuple(sorted((f for f in Flag if f.letter in letters), key=lambda f: -f.severity))


def worst(flags: ArrayLike) -> NDArray[np.int64]:
    """Return the severity of each row's most severe flag; shape (N,).

    It is 0 where a row has no flag. A letter that is no flag is taken for an unusable one.
    """
    letters = np.asarray(flags, np.str_)
    texts, rows = np.unique(letters, return_inverse=True)
    severity = [max((_SEVERITY.get(one, _UNUSABLE) for one in text), default=0) for text in texts]
    return np.array(severity, np.int64)[rows].reshape(letters.shape)


def usable(flags: ArrayLike) -> NDArray[np.bool_]:
    """Return which rows may enter another result: those without an `Severity.UNUSABLE` flag."""
    return worst(flags) < Severity.UNUSABLE


_SEVERITY = {flag.letter: flag.severity for flag in Flag}
