"""What cameras are set to: by it frames are put into stacks, and products compared with frames."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["NOT_STATED", "Setting", "differences", "nearest", "settings_of"]

NOT_STATED: Final = -999.0
"""A number that nothing tells."""

_UNKNOWN_ISO: Final = -1
_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_NAME: Final = re.compile(
    rf"(?:iso(?:(?P<iso>\d+)|_unknown))?(?:_?gain(?P<gain>{_NUMBER}))?"
    rf"(?:_?offset(?P<offset>{_NUMBER}))?(?:_?readout(?P<readout>[A-Za-z0-9.+-]+))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What the electronics of a camera were set to: maps are made for each setting.

    Attributes
    ----------
    iso : int
        ISO speed; -1 where unknown.
    gain, offset : float
        As the driver counts them; `NOT_STATED` where unknown.
    readout : str
        Mode of the readout; empty where unknown.
    """

    iso: int = _UNKNOWN_ISO
    gain: float = NOT_STATED
    offset: float = NOT_STATED
    readout: str = ""

    @property
    def known(self) -> dict[str, Any]:
        """What is known of it, by the names of `Frames.may_differ`."""
        return {
            name: value
            for name, value, unknown in (
                ("iso", self.iso, _UNKNOWN_ISO),
                ("gain_setting", self.gain, NOT_STATED),
                ("offset_setting", self.offset, NOT_STATED),
                ("readout_mode", self.readout, ""),
            )
            if value != unknown
        }

    @property
    def name(self) -> str:
        """Name of its group of maps, as ``iso100`` or ``gain0_offset10``; `parse` reads it."""
        parts = [f"iso{self.iso}"] if self.iso != _UNKNOWN_ISO else []
        for what, value in (("gain", self.gain), ("offset", self.offset)):
            if value != NOT_STATED:
                parts.append(f"{what}{value:.10g}")
        if self.readout:
            parts.append(f"readout{self.readout}")
        return "_".join(parts) or "iso_unknown"

    @property
    def label(self) -> str:
        """The setting for people."""
        words = {"iso": "ISO", "gain_setting": "gain", "offset_setting": "offset"}
        known = self.known.items()
        text = ", ".join(f"{words.get(name, 'readout')} {_shown(value)}" for name, value in known)
        return text or "ISO unknown"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read the name of a group of maps; None where it is none of a setting."""
        found = _NAME.fullmatch(name) if name else None
        if found is None:
            return None
        return cls(
            int(found["iso"] or _UNKNOWN_ISO),
            float(found["gain"] or NOT_STATED),
            float(found["offset"] or NOT_STATED),
            found["readout"] or "",
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Read it from the columns of a table."""
        gain, offset = (
            NOT_STATED if math.isnan(value) else value
            for value in (row.get(f"{one}_setting", math.nan) for one in ("gain", "offset"))
        )
        readout = row.get("readout_mode", "unknown")
        return cls(int(row["iso"]), gain, offset, "" if readout == "unknown" else readout)

    def columns(self, among: Iterable[Setting]) -> dict[str, Any]:
        """Return its columns of a table: the ISO speed, and what else is known of any setting."""
        others = {name for one in among for name in one.known} - {"iso"}
        values = {
            "gain_setting": math.nan if self.gain == NOT_STATED else self.gain,
            "offset_setting": math.nan if self.offset == NOT_STATED else self.offset,
            "readout_mode": self.readout or "unknown",
        }
        return {"iso": self.iso, **{name: values[name] for name in values if name in others}}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]
) -> dict[str, tuple[Any, Any]]:
    """Compare what is known of two things: values by name, where both are known and differ."""
    return {
        name: (one[name], other[name])
        for name in names
        if name in one and name in other and one[name] != other[name]
    }


def nearest(
    wanted: Setting, among: Iterable[Setting], names: Sequence[str]
) -> tuple[Setting | None, dict[str, tuple[Any, Any]]]:
    """Find the setting that fits best, and how it differs in what is known of both.

    Of those that differ in equally many of `names`, it is the one of the nearest ISO speed.
    """

    def distance(one: Setting) -> tuple[int, bool, int, Setting]:
        n = len(differences(one.known, wanted.known, names))
        return n, one != wanted, abs(one.iso - wanted.iso), one

    best = min(among, key=distance, default=None)
    return best, {} if best is None else differences(best.known, wanted.known, names)


def settings_of(maps: Iterable[str], variable: str) -> list[Setting]:
    """Return the settings of which a product has maps, by the names of its maps."""
    groups = {
        parts[1]
        for parts in (name.split("/") for name in maps)
        if len(parts) == 3 and parts[0] == variable
    }
    # A series of dark frames has its temperature behind its setting.
    parsed = (Setting.parse(re.sub(r"_[+-][0-9.]+C$", "", name)) for name in sorted(groups))
    return [one for one in parsed if one is not None]
