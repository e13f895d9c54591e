"""Does the network fit its pairs? chi2 with the scatter and the freedom that the events show.

A shower is in many pairs, so the residuals r_p of a network scatter together: less than their
weights say where telescopes share all showers, and with fewer degrees of freedom than pairs. The
distribution of X = sum_p W_p r_p^2 is that of a sum of squares with the eigenvalues of
Lambda = W^1/2 V W^1/2 as weights, V the covariance of the residuals. It is taken as that of
t_1/nu chi2(nu) with

    t_1 = tr Lambda ,  t_2 = tr Lambda^2 ,  nu = t_1^2/t_2

(Satterthwaite 1946, Biometrics Bull. 2, 110; Rao & Scott 1981, J. Am. Stat. Assoc. 76, 221, section
4): no matrix is inverted, so no rank matters. As t_1 is itself the sum of what n events q_e say,
X/t_1 is taken to follow F(nu, nu_2) with the relative variance of t_1 as 2/nu_2,

    2/nu_2 = sum q_e^2/t_1^2 - 1/n ,

which is nu_2 = nu n for nu equal normal contrasts, and less where events have tails.

`residual_scatter` takes what is needed from the events of a shard, `test_of_fit` makes the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from calibdask.array.network.model import divergence, laplacian
from calibdask.stats.record import ArraySums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.network.state import NetworkFit

__all__ = ["N_GROUPS", "ResidualScatter", "TestOfFit", "event_group", "test_of_fit"]

N_GROUPS = 64
"""Random groups of events: they give t_2 to some 2/64."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def event_group(obs_id: NDArray[np.integer], event_id: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Random group of each event, the same in whatever shard it is.

    Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4) of both numbers.
    """
    mixed = np.asarray(obs_id).astype(np.uint64) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(29))) + np.asarray(event_id).astype(np.uint64)
    mixed = mixed * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _GOLDEN
    return np.asarray((mixed >> np.uint64(58)).astype(np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class ResidualScatter(ArraySums):
    """Sums over events; K pairs, C components.

    Attributes
    ----------
    group_sums : ndarray of float64, shape (K, N_GROUPS)
        What the events of each random group move the centre of each pair by.
    trace : ndarray of float64, shape (C,)
        Sum of q_e, what an event adds to t_1.
    trace_square : ndarray of float64, shape (C,)
        Sum of q_e^2.
    trace_total : ndarray of float64, shape (C,)
        The first if nothing were fitted: what rounding of t_1 compares with.
    """

    group_sums: NDArray[np.float64]
    trace: NDArray[np.float64]
    trace_square: NDArray[np.float64]
    trace_total: NDArray[np.float64]

    @classmethod
    def identity(cls, n_pairs: int, n_components: int) -> Self:
        """No events: merging it changes nothing."""
        return cls(np.zeros((n_pairs, N_GROUPS)), *np.zeros((3, n_components)))

    def add(
        self,
        fit: NetworkFit,
        pair: NDArray[np.int64],
        event: NDArray[np.int64],
        group: NDArray[np.int64],
        moves: NDArray[np.float64],
        of_kappa: NDArray[np.float64],
    ) -> Self:
        """Add events, each whole.

        Event e moves the centre of pair p by u_ep and, where distance slopes are fitted, all
        centres of a type by the levers (`NetworkFit.levers`) times dkappa_e. The residuals then
        move by M u, and with v = C A^T W u + D A'^T W' u', of pairs A' whose ratios were taken as
        given (`NetworkFit`),

            q = |M u|^2_W = u^T W u - 2 v^T A^T W u + v^T A^T W A v .

        Parameters
        ----------
        fit : NetworkFit
            The fit.
        pair, event, group : ndarray of int64, shape (N,)
            Pair, number of the event from 0, and its random group, of each row.
        moves : ndarray of float64, shape (N,)
            u_ep.
        of_kappa : ndarray of float64, shape (E, S)
            dkappa_e of each slope.
        """
        n_events, n_tel, n_groups = int(event[-1]) + 1, len(fit.tel_id), N_GROUPS
        n_components = len(self.trace)
        weight = fit.weight * fit.gradient
        first, second = fit.first[pair], fit.second[pair]
        component = fit.component[first]
        used = fit.used[pair]

        def by_telescope(flow: NDArray[np.float64]) -> NDArray[np.float64]:
            cells = np.concatenate([event * n_tel + first, event * n_tel + second])
            both = np.concatenate([flow, -flow])
            return np.bincount(cells, both, n_events * n_tel).reshape(n_events, n_tel)

        def by_component(rows: NDArray[np.float64]) -> NDArray[np.float64]:
            cells = event * n_components + component
            total = np.bincount(cells, rows, n_events * n_components)
            return total.reshape(n_events, n_components)

        square = by_component(np.where(used, fit.weight[pair] * moves**2, 0.0))
        pushed = by_telescope(np.where(used, weight[pair] * moves, 0.0))
        n_pairs = len(fit.first)
        flat = np.bincount(pair * n_groups + group, moves, n_pairs * n_groups)
        group_sums = flat.reshape(n_pairs, n_groups)
        levers = fit.levers
        if len(levers):
            of_event = np.zeros(n_events, np.int64)
            of_event[event] = group
            of_group = np.zeros((n_groups, len(levers)))
            np.add.at(of_group, of_event, of_kappa)
            group_sums += np.einsum("sp,gs->pg", levers, of_group)
            for slope, lever in zip(of_kappa.T, levers, strict=True):
                cross = by_component(np.where(used, fit.weight[pair] * moves * lever[pair], 0.0))
                square += 2 * slope[:, None] * cross
            for c in range(n_components):
                mine = fit.used & (fit.component[fit.first] == c)
                squares = np.einsum(
                    "sp,tp->st", levers[:, mine] * fit.weight[mine], levers[:, mine]
                )
                square[:, c] += np.sum(np.einsum("es,st->et", of_kappa, squares) * of_kappa, axis=1)
            flow = (levers * weight)[:, fit.used].T
            pull = divergence(n_tel, fit.first[fit.used], fit.second[fit.used], flow)
            pushed += np.einsum("es,ts->et", of_kappa, pull)
        inside = (fit.component[:, None] == np.arange(n_components)).astype(np.float64)
        # einsum, not BLAS: its sums do not depend on the number of threads.
        follows = np.einsum("et,tu->eu", pushed, fit.bread)
        if fit.given.any():
            theirs = by_telescope(np.where(fit.given[pair], fit.weight_given[pair] * moves, 0.0))
            follows += np.einsum("et,ut->eu", theirs, fit.given_response)
            of_model = np.einsum("et,tu->eu", follows, _curvature(fit))
            left = square + np.einsum("et,tc->ec", (of_model - 2 * pushed) * follows, inside)
        else:
            left = square - np.einsum("et,tc->ec", pushed * follows, inside)
        return self.merge(
            type(self)(group_sums, left.sum(axis=0), np.sum(left**2, axis=0), square.sum(axis=0))
        )


@dataclass(frozen=True, slots=True, eq=False)
class TestOfFit:
    """The test of each of C components.

    Attributes
    ----------
    chi2, ndf : ndarray of float64, shape (C,)
        nu X/t_1 and nu; X and 0 where the residuals have no freedom to scatter.
    p_value : ndarray of float64, shape (C,)
        Probability of a larger X by chance; NaN without freedom.
    """

    chi2: NDArray[np.float64]
    ndf: NDArray[np.float64]
    p_value: NDArray[np.float64]


def test_of_fit(
    fit: NetworkFit, scatter: ResidualScatter, n_events: NDArray[np.int64]
) -> TestOfFit:
    """Test each component.

    Parameters
    ----------
    fit : NetworkFit
        The fit.
    scatter : ResidualScatter
        Of all shards.
    n_events : ndarray of int64, shape (C,)
        Events of each component.
    """
    from scipy.special import fdtrc

    n_tel, n_components = len(fit.tel_id), len(n_events)
    used = fit.used
    first, second, weight = fit.first[used], fit.second[used], fit.weight[used]
    gradient = fit.gradient[used]
    component = fit.component[first]
    bread, curvature = fit.bread, _curvature(fit)
    sums = scatter.group_sums[used]
    follows = bread @ divergence(n_tel, first, second, (weight * gradient)[:, None] * sums)
    if fit.given.any():
        flow = (fit.weight_given[:, None] * scatter.group_sums)[fit.given]
        follows += fit.given_response @ divergence(
            n_tel, fit.first[fit.given], fit.second[fit.given], flow
        )
    sums = sums - gradient[:, None] * (follows[first] - follows[second])
    of_given = curvature @ fit.given_covariance
    residual = (fit.centre - fit.model)[used]
    chi2, ndf = np.bincount(component, weight * residual**2, n_components), np.zeros(n_components)
    p_value = np.full(n_components, np.nan)
    for c in range(n_components):
        mine, tels = component == c, fit.component == c
        n_free = float(np.count_nonzero(mine) - np.count_nonzero(tels) + 1)
        n, trace = float(n_events[c]), float(scatter.trace[c])
        # Pairs that all have all showers fit whatever the throughputs are; clipping, pair by pair,
        # leaves a scatter that says nothing of them. Ratios that were given may not fit.
        same_showers = np.all(fit.n[used][mine] >= n) and not fit.given_pull.any()
        if n < 3 or same_showers or not trace > 1e-9 * scatter.trace_total[c]:
            continue
        weighted = sums[mine] * np.sqrt(weight[mine])[:, None]
        gram = weighted.T @ weighted
        # Products of different groups only: they do not know the events' own squares.
        square = np.sum(gram**2) - np.sum(np.diagonal(gram) ** 2)
        square /= (1 - 1 / n) * (1 - 1 / N_GROUPS)
        block = of_given[np.ix_(tels, tels)]
        pushed = divergence(
            n_tel, first[mine], second[mine], (weight * gradient)[mine, None] * sums[mine]
        )
        square += 2 * np.einsum("tg,tu,ug->", pushed, fit.given_covariance, pushed)
        square += np.sum(block * block.T)
        trace += np.trace(block)
        # The events' own scatter only: what given ratios add is taken as known.
        uncertain = scatter.trace_square[c] / scatter.trace[c] ** 2 - 1.0 / n
        nu = min(max(trace**2 / square, 1.0), max(n_free, 1.0)) if square > 0 else n_free
        ratio = chi2[c] / trace
        freedom = 2.0 / max(uncertain, 2.0 / (nu * n))
        chi2[c], ndf[c], p_value[c] = nu * ratio, nu, fdtrc(nu, freedom, ratio)
    return TestOfFit(chi2, ndf, p_value)


def _curvature(fit: NetworkFit) -> NDArray[np.float64]:
    """A^T W A of the used pairs, shape (T, T)."""
    used = fit.used
    weight = (fit.weight * fit.gradient**2)[used]
    return laplacian(len(fit.tel_id), fit.first[used], fit.second[used], weight)
