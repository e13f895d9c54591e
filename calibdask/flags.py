"""Every quality flag of the project: declared once, with its letter, its meaning and its weight.

Tables have a column ``flags`` with one letter for each condition that holds, "" where all is well.
A letter means the same in every table. Maps and frames have masks whose bits are named here, too.
Readers of a product take the rows that are `usable`; reports and the documentation take names and
meanings from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["FLAGS", "Flag", "PixelFlags", "Severity", "has", "join", "remove", "usable"]

Severity = Literal["note", "caution", "unusable"]
"""How much a flag restricts the use of a value: not at all; it is good for less than others, see
its meaning; not to be used in another result."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A condition that a row of a table can carry.

    Attributes
    ----------
    letter : str
        What stands in the column; unique over the whole project.
    name : str
        A short name.
    meaning : str
        What it says of the row.
    severity : str
        How much it restricts the use of the row.
    """

    letter: str
    name: str
    meaning: str
    severity: Severity


_ALL: dict[str, Flag] = {}

FLAGS: Mapping[str, Flag] = MappingProxyType(_ALL)
"""All flags by their letter, in the order in which they are joined."""


def _flag(letter: str, name: str, severity: Severity, meaning: str) -> Flag:
    if letter in _ALL or len(letter) != 1:
        raise ValueError(f"flag {letter!r} ({name}): expected one letter that is not yet used")
    flag = Flag(letter, name, meaning, severity)
    _ALL[letter] = flag
    return flag


# -- columns ------------------------------------------------------------------------------------


def join(masks: Mapping[Flag, NDArray[np.bool_]]) -> NDArray[np.str_]:
    """Return the column of flags of a table.

    Parameters
    ----------
    masks : mapping of Flag to ndarray of bool, shape (n,)
        The rows for which each condition holds.

    Returns
    -------
    ndarray of str, shape (n,)
        The letters in the order of `FLAGS`.
    """
    joined = np.zeros(len(next(iter(masks.values()))), "U1")
    for flag in sorted(masks, key=lambda flag: list(_ALL).index(flag.letter)):
        joined = np.strings.add(joined, np.where(masks[flag], flag.letter, ""))
    return joined


def text(column: ArrayLike) -> NDArray[np.str_]:
    """Return a column of flags as text, however it was stored."""
    return np.asarray(column).astype(np.str_)


def has(column: ArrayLike, *flags: Flag) -> NDArray[np.bool_]:
    """Return which rows carry one of some flags."""
    letters = text(column)
    found = np.zeros(letters.shape, np.bool_)
    for flag in flags:
        found |= np.strings.find(letters, flag.letter) >= 0
    return found


def add(column: ArrayLike, masks: Mapping[Flag, NDArray[np.bool_]]) -> NDArray[np.str_]:
    """Return a column of flags with more of them, each row's letters in the order of `FLAGS`."""
    letters = text(column)
    before = {flag: has(letters, flag) for flag in present(letters)}
    for flag, mask in masks.items():
        before[flag] = before.get(flag, np.zeros(letters.shape, np.bool_)) | mask
    return join(before) if before else letters


def remove(column: ArrayLike, *flags: Flag) -> NDArray[np.str_]:
    """Return a column of flags without some of them."""
    letters = text(column)
    for flag in flags:
        letters = np.strings.replace(letters, flag.letter, "")
    return letters


def present(column: ArrayLike) -> list[Flag]:
    """Return the flags that a column carries, in the order of `FLAGS`.

    Raises
    ------
    ValueError
        A letter that is not declared, as from a newer version.
    """
    letters = set("".join(np.unique(text(column)).tolist()))
    if unknown := letters - _ALL.keys():
        raise ValueError(f"flags {sorted(unknown)} are not known to this version of calibdask")
    return [flag for letter, flag in _ALL.items() if letter in letters]


def usable(column: ArrayLike) -> NDArray[np.bool_]:
    """Return which rows may enter another result.

    A letter that is not declared, as from a newer version, makes its row unusable.
    """
    letters = text(column)
    allowed = {letter for letter, flag in _ALL.items() if flag.severity != "unusable"}
    return np.array([set(row) <= allowed for row in letters.ravel().tolist()], np.bool_).reshape(
        letters.shape
    )


def worst(flags: Iterable[Flag]) -> Severity | None:
    """Return the greatest severity among flags, None where there are none."""
    ranks: tuple[Severity, ...] = ("unusable", "caution", "note")
    severities = {flag.severity for flag in flags}
    return next((rank for rank in ranks if rank in severities), None)


# -- masks of pixels ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PixelFlags:
    """What the bits of a mask mean, lowest first; 0 means all is well.

    Attributes
    ----------
    meanings : mapping of str to str
        Meaning of each bit by its name.
    """

    meanings: Mapping[str, str]

    def bit(self, name: str) -> np.uint16:
        """Return the bit of this name."""
        return np.uint16(1 << list(self.meanings).index(name))

    def names(self, mask: int) -> list[str]:
        """Return the names of the bits of one mask."""
        return [name for bit, name in enumerate(self.meanings) if mask & (1 << bit)]

    def attributes(self) -> dict[str, Any]:
        """Return what says so in a file, by the CF conventions, section 3.5."""
        return {
            "flag_masks": [1 << bit for bit in range(len(self.meanings))],
            "flag_meanings": " ".join(self.meanings),
        }
