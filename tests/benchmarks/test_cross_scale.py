"""The table of ``make cross-scale``, on little data: errors of the types' scales are honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.benchmarks.cross_scale import SIMULATION, Scale, scales, table


def test_scales_of_the_types_are_honest():
    small = replace(SIMULATION, n_telescope_events=10_000, array="reduced", core_margin_m=50.0)
    results: dict[tuple[float, int, str], list[Scale]] = {}
    for seed in range(24):
        for key, scale in scales(seed, (0.3,), small).items():
            results.setdefault(key, []).append(scale)
    assert results.keys() == {(0.3, steps, kind) for steps in (1, 2) for kind in ("LST", "SST")}
    for steps in (1, 2):
        found = [one for key, some in results.items() if key[1] == steps for one in some]
        pulls = np.array([one.deviation / one.error for one in found])
        naive = np.array([one.deviation / one.independent for one in found])
        # 48 of them: the width is known to 0.1, the mean to 0.15.
        assert 0.7 < np.sqrt(np.mean(pulls**2)) < 1.35
        assert abs(np.mean(pulls)) < 0.5
        assert np.sqrt(np.mean(naive**2)) > 1.4
        # 200 telescopes; those of an array share what they are compared with.
        deviation, error = np.concatenate([one.telescopes for one in found], axis=1)
        assert 0.8 < np.sqrt(np.mean((deviation / error) ** 2)) < 1.25
    lines = table(results)
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 6
