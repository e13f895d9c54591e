"""From telescope events to pair events: selection by quality, by distance, by pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from calibdask.array.model import distance_asymmetry, find_pairs, measurable, pair_events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.pair_config import PairSection
    from calibdask.select import TelescopePatterns

__all__ = [
    "ALTITUDE",
    "EventRows",
    "Layout",
    "PairRows",
    "by_telescope",
    "event_keys",
    "number_events",
    "pairs_of",
    "select_pairs",
]


class EventRows(Protocol):
    """Telescope events as they are read: see :class:`calibdask.io.dl2.TelescopeEvents`."""

    @property
    def event(self) -> NDArray[np.int64]:
        """Index of each row's event."""
        ...

    @property
    def n_events(self) -> int:
        """Number of events."""
        ...

    @property
    def tel_id(self) -> NDArray[np.uint16]:
        """Telescope of each row."""
        ...

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns by name."""
        ...

    @property
    def units(self) -> dict[str, str]:
        """Unit of each column."""
        ...

    @property
    def n_lacking(self) -> dict[int, int]:
        """Rows that the tables of a telescope lack, by telescope."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know about the rows."""
        ...


ALTITUDE = "pointing_altitude"
"""Column that the reader adds: where the telescope pointed when the event triggered, in rad."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The telescopes of all inputs together, ordered by type and number.

    Attributes
    ----------
    tel_id : tuple of int
        Telescope numbers.
    tel_type, tel_description : tuple of str
        LST, MST or SST; and what patterns match, such as "LST_LST_LSTCam".
    position_m : tuple of (x, y, z)
        Ground frame: x to the North, y to the West, z up.
    """

    tel_id: tuple[int, ...]
    tel_type: tuple[str, ...]
    tel_description: tuple[str, ...]
    position_m: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class PairRows:
    """Rows of telescope events that form pairs: the same event seen by two telescopes.

    Attributes
    ----------
    row_1, row_2 : ndarray of int64, shape (M,)
        Rows of the telescope events, ``tel_id[row_1] < tel_id[row_2]``.
    limit : ndarray of float64, shape (M,)
        What the asymmetry of the two impact distances stayed below; inf without such a cut.
    selected : ndarray of int64, shape (S,)
        Rows that passed the cuts on telescope events, in a pair or not.
    cut_flow : mapping of str to int
        What was left after each selection.
    warnings : tuple of str
        What was odd about the rows.
    """

    row_1: NDArray[np.int64]
    row_2: NDArray[np.int64]
    limit: NDArray[np.float64]
    selected: NDArray[np.int64]
    cut_flow: Mapping[str, int]
    warnings: tuple[str, ...]


def by_telescope(
    patterns: TelescopePatterns, layout: Layout, tel_id: NDArray[np.uint16], option: str
) -> NDArray[np.float64]:
    """Look up an option's value for each row; only telescopes that have rows need one."""
    present = np.unique(tel_id)
    known = {number: i for i, number in enumerate(layout.tel_id)}
    descriptions = [layout.tel_description[known[int(number)]] for number in present]
    values = patterns.resolve(present, descriptions, option=option)
    table = np.full((int(present[-1]) + 1 if len(present) else 1, *values.shape[1:]), np.nan)
    table[present] = values
    return np.asarray(table[tel_id])


def pairs_of(options: PairSection, layout: Layout) -> tuple[Any, Any]:
    """Return the numbers of the two telescopes of each pair that lies close enough."""
    radius_m = options.max_impact_distance.resolve(
        layout.tel_id, layout.tel_description, option="PairFinder.max_impact_distance"
    )
    return find_pairs(
        layout.tel_id, layout.tel_type, layout.position_m, radius_m, mixed=options.compares_types
    )


def select_pairs(
    events: EventRows,
    options: PairSection,
    layout: Layout,
    of_events: Mapping[str, NDArray[np.bool_]] | None = None,
    also: Mapping[str, NDArray[np.bool_]] | None = None,
) -> PairRows:
    """Select telescope events and pair them within each event.

    Quality criteria and least values are cuts on a telescope event; the asymmetry of the impact
    distances is a cut on a pair, for which the stricter limit of its telescopes counts.

    Parameters
    ----------
    events : EventRows
        Telescope events with the columns that the options mention.
    options : PairSection
        What to select.
    layout : Layout
        All telescopes.
    of_events : mapping of str to ndarray of bool, shape (N,), optional
        Conditions before all others, by their name in the cut flow.
    also : mapping of str to ndarray of bool, shape (N,), optional
        Conditions after the cuts on telescope events.

    Returns
    -------
    PairRows
        Ordered by event, then by pair.
    """
    value = events.columns[options.value_column]
    flow = {"telescope events": len(value)}
    warnings = list(events.warnings)
    passed = np.ones(len(value), np.bool_)
    for name, holds in (of_events or {}).items():
        passed &= holds
        flow[name] = int(np.count_nonzero(passed))
    if of_events and len(value) and not passed.any():
        steps = " and ".join(f"'{name}'" for name in of_events)
        warnings.append(f"none of the {len(value)} telescope events of a shard passes {steps}")
    selection = options.quality_criteria.evaluate(
        events.columns, events.units, len(value), among=passed
    )
    flow |= {cut.name: cut.passed_so_far for cut in selection.cuts}
    passed = selection.mask & measurable(value)
    usable = f"{options.value_name} finite and positive"
    flow[usable] = int(np.count_nonzero(passed))
    n_bad = int(np.count_nonzero(selection.mask)) - flow[usable]
    if n_bad and options.quality_criteria.pairs:
        warnings.append(
            f"{n_bad} telescope events passed all quality criteria although their"
            f" {options.value_name} is NaN, infinite or not positive, or beyond 1e±30: they"
            " were left out"
        )
    for name, column, patterns in options.minima:
        least = by_telescope(patterns, layout, events.tel_id, name)
        passed &= events.columns[column] >= least
        flow[name] = int(np.count_nonzero(passed))
    for name, holds in (also or {}).items():
        passed &= holds
        flow[name] = int(np.count_nonzero(passed))
    rows = np.flatnonzero(passed)
    if ALTITUDE in events.columns:
        lost = rows[np.isnan(events.columns[ALTITUDE][rows])]
        if len(lost):
            listed = ", ".join(map(str, np.unique(events.tel_id[lost]).tolist()))
            warnings.append(
                f"{len(lost)} telescope events have no altitude, of telescopes {listed}: no"
                " pointing table, or their times are outside of it; they are in no equidistant pair"
            )
    one, two = pair_events(events.event[rows], events.tel_id[rows], *pairs_of(options, layout))
    row_1, row_2 = rows[one], rows[two]
    flow["pairs"] = len(row_1)
    limit = np.full(len(row_1), np.inf)
    if options.window is not None:
        limit = _limit(events, *options.window, layout, row_1, row_2)
        impact_m = events.columns[options.impact_column]
        near = distance_asymmetry(impact_m[row_1], impact_m[row_2]) < limit
        row_1, row_2, limit = row_1[near], row_2[near], limit[near]
        flow["equidistant pairs"] = len(row_1)
    return PairRows(row_1, row_2, limit, rows, flow, tuple(warnings))


def _limit(
    events: EventRows,
    option: str,
    patterns: TelescopePatterns,
    layout: Layout,
    row_1: NDArray[np.int64],
    row_2: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Limit of the distance asymmetry of each pair, shape (M,).

    Either a number t, or p0 + p1 cos(altitude) with the greater of the two altitudes, which is the
    stricter one (Mitchell, PhD thesis 2016, eq. 4.2.2).
    """
    by_row = by_telescope(patterns, layout, events.tel_id, option)
    if by_row.ndim == 1:
        return np.minimum(by_row[row_1], by_row[row_2])
    cosine = np.zeros(len(row_1))
    if ALTITUDE in events.columns:  # not read where it makes no difference
        altitude = events.columns[ALTITUDE]
        cosine = np.cos(np.maximum(altitude[row_1], altitude[row_2]))
    one, two = (by_row[row, 0] + by_row[row, 1] * cosine for row in (row_1, row_2))
    return np.asarray(np.minimum(one, two))


def number_events(
    obs_id: NDArray[np.integer[Any]], event_id: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Return each row the number of its event, counted in the order of (obs_id, event_id)."""
    order = np.lexsort((event_id, obs_id))
    new = np.zeros(len(order), np.int64)
    if len(order):
        obs, event = obs_id[order], event_id[order]
        new[1:] = (obs[1:] != obs[:-1]) | (event[1:] != event[:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new)
    return number


def event_keys(
    event: NDArray[np.int64], obs_id: NDArray[np.integer[Any]], event_id: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Return (obs_id, event_id) of each event that occurs, shape (E, 2), by event number."""
    _, first = np.unique(event, return_index=True)
    return np.stack([obs_id[first], event_id[first]], axis=1).astype(np.int64)
