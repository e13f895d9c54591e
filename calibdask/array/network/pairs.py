"""Pair events, and what the fit of a network needs to know about each pair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from calibdask.array.model import MAX_TEL_ID, asymmetry, log_ratio, measurable
from calibdask.array.network.model import LOG_RATIO, Observable
from calibdask.errors import CorruptedInput
from calibdask.stats.histogram import Histogram
from calibdask.stats.keyed import union_keys
from calibdask.stats.moments import CoMoments, Moments
from calibdask.stats.record import ArrayRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from calibdask.array.network.state import NetworkFit

__all__ = [
    "DISTANCE_EDGES_M",
    "N_RANGES",
    "PairEvents",
    "PairSummary",
    "distance_range",
    "mirrored",
    "oriented",
    "pair_difference",
    "range_of",
    "rows_of",
    "summarise_pairs",
    "with_lacking",
]

DISTANCE_EDGES_M = (100.0, 125.0, 150.0, 175.0, 200.0, 250.0, 300.0, 400.0)
"""Edges of the ranges of the mean impact distance with a slope of the light of their own."""

N_RANGES = len(DISTANCE_EDGES_M) + 1
"""Number of these ranges."""

MODEL_STEP = 0.05
"""Change of ln c_1/c_2 by which it is found how much a symmetric selection follows the model."""


@dataclass(frozen=True, slots=True, eq=False)
class PairEvents:
    """Telescope pairs, event by event: the rows of an asymmetry table.

    Attributes
    ----------
    event : ndarray of int, shape (N,)
        Index of each row's event, unique within the shard. An event is never split between shards.
    tel_type : ndarray of str or bytes, shape (N,)
        Type of both telescopes, or both types (see `calibdask.array.model.pair_types`).
    tel_id_1, tel_id_2 : ndarray of int, shape (N,)
        The telescopes. In either order: values go with them.
    x_1, x_2 : ndarray of float, shape (N,)
        What the observable compares: their energies (TeV), image sizes (photoelectrons), or
        arrival times less those of the shower front (ns).
    log_distance : ndarray of float, shape (N,), optional
        ln d_1 - ln d_2 of the impact distances: given, the fit has a term for it. Only for the mean
        of log ratios.
    distance_range : ndarray of int, shape (N,), optional
        Which of `DISTANCE_EDGES_M` the mean of both distances lies between (`distance_range`); by
        default all lie in the first range.
    group : ndarray of int, shape (N,), optional
        Random group of each row's event (`network.goodness.event_group`); by default from `event`.
    """

    event: NDArray[np.integer]
    tel_type: NDArray[np.str_] | NDArray[np.bytes_]
    tel_id_1: NDArray[np.integer]
    tel_id_2: NDArray[np.integer]
    x_1: NDArray[np.floating]
    x_2: NDArray[np.floating]
    log_distance: NDArray[np.floating] | None = None
    distance_range: NDArray[np.integer] | None = None
    group: NDArray[np.integer] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PairSummary(ArrayRecord):
    """What the fit needs to know about each pair.

    Attributes
    ----------
    pairs : ndarray of int64, shape (K, 2)
        (tel_id_1, tel_id_2), tel_id_1 < tel_id_2, in lexicographic order.
    tel_type : ndarray of str, shape (K,)
        Type of each pair's telescopes.
    n_invalid : ndarray of int64, shape (K,)
        Rows left out because a value was not finite (or, for a ratio, not positive), or a distance.
    difference : Moments, shape (K,)
        Of d, which is ln x_1 - ln x_2 or x_1 - x_2, within the clip bounds if there are any.
    asymmetry : Moments, shape (K,), or None
        Of (x_1 - x_2)/(x_1 + x_2), if d is a log ratio.
    histogram : Histogram of K groups, or None
        Of d.
    lowest : ndarray of float64, shape (K, 2)
        Least x_1 and x_2: where a threshold on either lies.
    distance : CoMoments, shape (K R,), or None
        Of x = ln d_1 - ln d_2 of the impact distances and y = d, in each of R ranges of the mean
        distance, if the fit has a term for them.
    higher, lower : Moments, shape (K,), or None
        As `difference`, with the symmetric selection about a model that is `MODEL_STEP` higher or
        lower: how much the centre follows it.
    lacking : ndarray of int64, shape (L, 2)
        Telescopes that lost rows in the inputs, by number, and how many rows.
    """

    parts: ClassVar = {
        "difference": ("difference_", Moments),
        "asymmetry": ("asymmetry_", Moments),
        "histogram": ("histogram_", Histogram),
        "distance": ("distance_", CoMoments),
        "higher": ("higher_", Moments),
        "lower": ("lower_", Moments),
    }

    pairs: NDArray[np.int64]
    tel_type: NDArray[np.str_]
    n_invalid: NDArray[np.int64]
    difference: Moments
    asymmetry: Moments | None
    histogram: Histogram | None
    lowest: NDArray[np.float64]
    distance: CoMoments | None = None
    higher: Moments | None = None
    lower: Moments | None = None
    lacking: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @classmethod
    def identity(
        cls, observable: Observable = LOG_RATIO, *, histogram: bool = False, distance: bool = False
    ) -> Self:
        """No pairs: merging it changes nothing."""
        return cls(
            np.zeros((0, 2), np.int64),
            np.zeros(0, "U1"),
            np.zeros(0, np.int64),
            Moments.identity(0),
            Moments.identity(0) if observable.kind == "log-ratio" else None,
            Histogram.identity(0, observable.edges) if histogram else None,
            np.zeros((0, 2)),
            CoMoments.identity(0) if distance else None,
        )

    def merge(self, other: Self) -> Self:
        """Both sets of events together.

        Raises
        ------
        CorruptedInput
            If a pair has two types: the inputs are of different arrays.
        ValueError
            If only one of the two has a histogram, the asymmetry, or distances.
        """
        pairs, mine, theirs = union_keys(self.pairs, other.pairs)
        size = len(pairs)
        tel_type = np.zeros(size, np.promote_types(self.tel_type.dtype, other.tel_type.dtype))
        tel_type[theirs] = other.tel_type
        tel_type[mine] = self.tel_type
        differ = tel_type[theirs] != other.tel_type
        if differ.any():
            first, second = other.pairs[differ][0]
            raise CorruptedInput(
                f"telescopes {first} and {second} are {tel_type[theirs][differ][0]} in one input "
                f"and {other.tel_type[differ][0]} in another: calibrate each array by itself"
            )
        n_invalid = np.zeros(size, np.int64)
        n_invalid[mine] += self.n_invalid
        n_invalid[theirs] += other.n_invalid
        lowest = np.full((size, 2), np.inf)
        lowest[mine] = self.lowest
        lowest[theirs] = np.minimum(lowest[theirs], other.lowest)
        parts: dict[str, Any] = {}
        for name in self.parts:
            one, two = getattr(self, name), getattr(other, name)
            if (one is None) != (two is None):
                raise ValueError(f"a summary with {name} does not merge with one without")
            per_pair = N_RANGES if name == "distance" else 1
            ones, twos = (
                (row[:, None] * per_pair + np.arange(per_pair)).ravel() for row in (mine, theirs)
            )
            n_groups = size * per_pair
            parts[name] = None
            if one is not None:
                parts[name] = one.expand(ones, n_groups).merge(two.expand(twos, n_groups))
        lacking = _sum_by_number(self.lacking, other.lacking)
        return type(self)(pairs, tel_type, n_invalid, lowest=lowest, lacking=lacking, **parts)


def with_lacking[S](summary: S, n_lacking: Mapping[int, int]) -> S:
    """Describe in a summary of pairs which telescopes lost rows, and how many."""
    if not isinstance(summary, PairSummary) or not n_lacking:
        return summary
    rows = np.array(sorted(n_lacking.items()), np.int64)
    return replace(summary, lacking=rows)


def distance_range(
    impact_1_m: NDArray[np.float64], impact_2_m: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Range of the geometric mean of both impact distances, 0 to `N_RANGES` - 1."""
    return np.digitize(np.sqrt(impact_1_m * impact_2_m), DISTANCE_EDGES_M).astype(np.uint8)


def _sum_by_number(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join rows of (number, count): one for each number, in their order."""
    rows = np.concatenate([one, two])
    number, place = np.unique(rows[:, 0], return_inverse=True)
    count = np.zeros(len(number), np.int64)
    np.add.at(count, place, rows[:, 1])
    return np.stack([number, count], axis=1)


def mirrored(
    fit: NetworkFit,
    pair: NDArray[np.int64],
    x_1: NDArray[np.float64],
    x_2: NDArray[np.float64],
    step: float = 0.0,
) -> NDArray[np.bool_]:
    """Events that would be selected with their deviation from the model reversed as well.

    A threshold on each value of a pair lets through what fluctuated upwards in the dimmer telescope
    and cuts off what fluctuated downwards, which draws the ratio towards 1. With the deviation of d
    from the model Delta reversed, the values are x_2 exp(Delta) and x_1 exp(-Delta): if those pass
    the thresholds e_1 and e_2 too, what is left is symmetric about the model.

    Parameters
    ----------
    fit : NetworkFit
        With thresholds and model of each pair; without thresholds (-inf) all events pass.
    pair : ndarray of int64, shape (N,)
        Row of the pair.
    x_1, x_2 : ndarray of float64, shape (N,)
        Positive where thresholds are finite.
    step : float
        Added to the model.
    """
    ratio = np.exp(np.where(np.isfinite(fit.about), fit.about, 0.0) + step)
    return np.asarray(
        (x_2 * ratio[pair] >= fit.edge_1[pair]) & (x_1 / ratio[pair] >= fit.edge_2[pair])
    )


def summarise_pairs(
    events: PairEvents,
    observable: Observable = LOG_RATIO,
    *,
    histogram: bool = False,
    clip: NetworkFit | None = None,
) -> PairSummary:
    """Moments of what each pair compares.

    Parameters
    ----------
    events : PairEvents
        The pair events of a shard.
    observable : Observable
        What is compared.
    histogram : bool
        Also fill the histogram of d.
    clip : NetworkFit, optional
        Leave out d outside its bounds.
    """
    one, two, x_1, x_2, log_distance = oriented(events)
    # A dense numbering of the telescopes gives the pairs without sorting the rows.
    number, tel_id = _number(one, two)
    code = number[one] * len(tel_id) + number[two]
    present = np.flatnonzero(np.bincount(code, minlength=len(tel_id) ** 2))
    index = np.searchsorted(present, np.arange(len(tel_id) ** 2))
    pair = index[code]
    ends = np.divmod(present, max(len(tel_id), 1))
    pairs = np.stack([tel_id[ends[0]], tel_id[ends[1]]], axis=1)

    first_row = np.zeros(len(pairs), np.int64)
    first_row[pair[::-1]] = np.arange(len(pair))[::-1]
    tel_type = events.tel_type[first_row]
    mixed = np.flatnonzero(events.tel_type != tel_type[pair])
    if len(mixed):
        row = mixed[0]
        earlier = first_row[pair[row]]
        here, there = _text(events.tel_type[[row, earlier]])
        raise CorruptedInput(
            f"pair-event row {row}: telescopes {one[row]} and {two[row]} are {here}, but {there} "
            f"in row {earlier}"
        )

    d, valid = pair_difference(observable.kind, x_1, x_2)
    if log_distance is not None:
        valid &= np.isfinite(log_distance)
    a = asymmetry(x_1, x_2) if observable.kind == "log-ratio" else None
    n_invalid = np.bincount(pair[~valid], minlength=len(pairs))
    higher = lower = None
    if clip is not None:
        known = rows_of(clip.pairs, one, two)
        valid &= known >= 0

        def within(step: float) -> NDArray[np.bool_]:
            with np.errstate(invalid="ignore"):
                kept = (d >= clip.low[known] + step) & (d <= clip.high[known] + step)
                return np.asarray(valid & kept & mirrored(clip, known, x_1, x_2, step))

        if np.isfinite(clip.edge_1).any():
            higher, lower = (
                Moments.from_groups(pair[kept], d[kept], len(pairs))
                for kept in (within(MODEL_STEP), within(-MODEL_STEP))
            )
        valid = within(0.0)
    pair, d = pair[valid], d[valid]
    lowest = np.full((len(pairs), 2), np.inf)
    for column, x in enumerate((x_1, x_2)):
        np.minimum.at(lowest[:, column], pair, x[valid])
    distance = None
    if log_distance is not None:
        group = pair * N_RANGES + range_of(events)[valid]
        distance = CoMoments.from_groups(group, log_distance[valid], d, len(pairs) * N_RANGES)
    return PairSummary(
        pairs,
        _text(tel_type),
        n_invalid.astype(np.int64),
        Moments.from_groups(pair, d, len(pairs)),
        None if a is None else Moments.from_groups(pair, a[valid], len(pairs)),
        Histogram.from_groups(pair, d, len(pairs), observable.edges) if histogram else None,
        lowest,
        distance,
        higher,
        lower,
    )


def range_of(events: PairEvents) -> NDArray[np.int64]:
    """Range of distances of each row."""
    if events.distance_range is None:
        return np.zeros(len(events.event), np.int64)
    return np.asarray(events.distance_range, np.int64)


def oriented(
    events: PairEvents,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64] | None,
]:
    """Ids, values and distances with tel_id_1 < tel_id_2, each value staying with its telescope."""
    one, two = np.asarray(events.tel_id_1, np.int64), np.asarray(events.tel_id_2, np.int64)
    x_1, x_2 = np.asarray(events.x_1, np.float64), np.asarray(events.x_2, np.float64)
    out_of_range = (np.minimum(one, two) < 0) | (np.maximum(one, two) > MAX_TEL_ID)
    wrong = np.flatnonzero((one == two) | out_of_range)
    if len(wrong):
        row = wrong[0]
        raise CorruptedInput(
            f"pair-event row {row}: telescopes {one[row]} and {two[row]} are not two different ids "
            f"between 0 and {MAX_TEL_ID}"
        )
    swap = one > two
    if swap.any():
        one, two = np.where(swap, two, one), np.where(swap, one, two)
        x_1, x_2 = np.where(swap, x_2, x_1), np.where(swap, x_1, x_2)
    if events.log_distance is None:
        return one, two, x_1, x_2, None
    log_distance = np.asarray(events.log_distance, np.float64)
    return one, two, x_1, x_2, np.where(swap, -log_distance, log_distance)


def pair_difference(
    kind: str, x_1: NDArray[np.float64], x_2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return d of an observable of this kind, and whether both values can be used."""
    if kind == "difference":
        with np.errstate(invalid="ignore", over="ignore"):
            d = x_1 - x_2
        return d, np.isfinite(d)
    return log_ratio(x_1, x_2), measurable(x_1) & measurable(x_2)


def _number(*ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dense number of each telescope id (by id), and the ids in order."""
    seen = np.zeros(MAX_TEL_ID + 1, np.bool_)
    for some in ids:
        seen[some] = True
    return np.cumsum(seen) - 1, np.flatnonzero(seen)


def rows_of(
    pairs: NDArray[np.int64], one: NDArray[np.int64], two: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Row of each (one, two) in `pairs`, or -1."""
    number, tel_id = _number(pairs[:, 0], pairs[:, 1])
    known = np.zeros(MAX_TEL_ID + 1, np.bool_)
    known[tel_id] = True
    # One more number for telescopes that are in no pair.
    number = np.where(known, number, len(tel_id))
    table = np.full((len(tel_id) + 1, len(tel_id) + 1), -1)
    table[number[pairs[:, 0]], number[pairs[:, 1]]] = np.arange(len(pairs))
    return table[number[one], number[two]]


def _text(values: NDArray[np.str_] | NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Strings of either kind as str, no wider than needed."""
    if len(values) == 0:
        return np.zeros(0, "U1")
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()])
