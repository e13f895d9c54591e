from __future__ import annotations

import numpy as np
import pytest

from calibdask.array.network.pairs import PairEvents, summarise_pairs


@pytest.mark.parametrize("extreme", [1e300, 5e-324, 1e31, 1e-31, np.inf, 0.0, -1.0, np.nan])
def test_a_value_that_nothing_measures_is_counted_and_left_out(extreme):
    n = 20
    energy = np.linspace(1.0, 2.0, n)
    odd = np.append(energy, extreme)
    events = PairEvents(
        np.arange(n + 1), np.full(n + 1, "LST"), np.full(n + 1, 1), np.full(n + 1, 2),
        odd, np.append(energy, 1.0),
    )  # fmt: skip
    summary = summarise_pairs(events)
    assert summary.n_invalid.tolist() == [1]
    assert summary.difference.n.tolist() == [n]
    assert summary.difference.mean[0] == 0.0
