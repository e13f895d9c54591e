"""States of the cells of both muon jobs, and what the tables of both are made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.flags import Flag
from calibdask.muon.gallery import Gallery
from calibdask.muon.model import clip_bounds
from calibdask.muon.tables import TROUBLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from calibdask.engine.protocol import Cell
    from calibdask.muon.model import LineFit

    type Telescope = tuple[int, str, int]  # number, description, mirrors
    type Columns = dict[str, NDArray[Any]]

__all__ = [
    "MANY_CLIPPED",
    "METHOD",
    "P_VALUE_LIMIT",
    "CellState",
    "joined",
    "no_value_flag",
    "only_observation",
    "p_value",
    "stacked",
    "states_by_telescope",
    "troubled_counts",
]

METHOD = "Muon Rings"

MANY_CLIPPED = 0.1
P_VALUE_LIMIT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class CellState:
    """What the fit of a cell gave: moments of the rings within bounds, and the next bounds.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        By chunk or by bin of radius: ``n``, ``mean``, ``std`` and ``m2`` of what is within the
        bounds, the next bounds ``low`` and ``high``, ``n_all`` with clipped rings; ``done``,
        ``round``: how often was clipped; and what else the job's own tables need.
    """

    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        clip_sigma: float | None,
        low: NDArray[np.float64] | None = None,
        high: NDArray[np.float64] | None = None,
        *,
        gallery: Gallery,
        **arrays: Any,
    ) -> Self:
        """Make a state, with bounds narrowed by its moments."""
        values = {name: np.asarray(value) for name, value in arrays.items()}
        values |= {f"gallery_{name}": value for name, value in gallery.to_arrays().items()}
        n = values["n"]
        low = np.full(n.shape, -np.inf) if low is None else low
        high = np.full(n.shape, np.inf) if high is None else high
        mean = np.where(n > 0, values["mean"], np.nan)
        values["low"], values["high"] = clip_bounds(mean, values["std"], clip_sigma, low, high)
        return cls(values)

    @property
    def done(self) -> bool:
        """Whether clipping has come to its end."""
        return bool(self.arrays["done"])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays."""
        return dict(self.arrays)

    @property
    def gallery(self) -> Gallery:
        """A few rings with their images."""
        own = {k.removeprefix("gallery_"): v for k, v in self.arrays.items() if k[:8] == "gallery_"}
        return Gallery.from_arrays(own)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make the state again from its arrays."""
        return cls(dict(arrays))


def states_by_telescope(states: Mapping[Cell, CellState]) -> dict[int, list[tuple[int, CellState]]]:
    """Bins with their states, by telescope, in the order of time."""
    found: dict[int, list[tuple[int, CellState]]] = {}
    for cell, state in sorted(states.items()):
        found.setdefault(int(cell[0]), []).append((int(cell[1]), state))
    return found


def only_observation(least: NDArray[np.int64], greatest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Observation that all rings are of; -1 where they are of several."""
    return np.where(least == greatest, least, -1)


def p_value(fit: LineFit) -> float:
    """Return the probability of a larger chi2; NaN without degrees of freedom."""
    from scipy.special import chdtrc

    return float(chdtrc(fit.ndf, fit.chi2)) if fit.ndf > 0 else np.nan


def no_value_flag(n_mirrors: int) -> Flag:
    """Return why a telescope has no value."""
    return Flag.TWO_MIRRORS if n_mirrors != 1 else Flag.NO_RING


def stacked(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Turn rows into columns."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def joined(parts: Iterable[Columns]) -> Columns:
    """Join tables with the same columns."""
    parts = list(parts)
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def troubled_counts(
    keys: Sequence[tuple[int, ...]], states: Mapping[Cell, CellState]
) -> dict[str, NDArray[np.int64]]:
    """Count the rings that were left out, by telescope or by telescope and bin."""
    counts = np.zeros((len(keys), len(TROUBLED)), np.int64)
    for cell, state in states.items():
        troubled = state.arrays["gallery_troubled"]
        if troubled.any():
            counts[keys.index(cell[: len(keys[0])])] += troubled
    return dict(zip(TROUBLED, counts.T, strict=True))
