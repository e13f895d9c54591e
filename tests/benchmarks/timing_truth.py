"""How near the truth the telescope timing comes, and whether its errors say so.

    PYTHONPATH=. python tests/benchmarks/timing_truth.py

Offsets of 8 ns rms, 1.5 ns of jitter, 36 telescopes; pulls are root mean squares over telescopes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.array.test_timing_summary import NIGHT, find

MANY = {"n_events": 20_000}
ROWS = (
    ("spherical", 24, {}, {}),
    ("spherical", 4, MANY, {}),
    ("plane", 2, MANY, {"front": "plane"}),
    ("spherical, h_max 20 % too low", 2, {**MANY, "h_max_scale": 0.8}, {}),
    ("spherical, triggers walk by 3 ns at threshold", 2, {**MANY, "trigger_walk_ns": 3.0}, {}),
    ("spherical, 10 % accidental triggers", 2, {**MANY, "time_outlier_fraction": 0.1}, {}),
)


def main() -> None:
    """Print the table."""
    print("| front | events | arrays | rms error | statistical | total | independent pairs |")
    for name, n_arrays, simulation, how in ROWS:
        found = [
            find(replace(NIGHT, seed=500 + seed, **simulation), **how) for seed in range(n_arrays)
        ]
        deviation = np.concatenate([one.deviation for one in found])

        def pull(what: str, found=found, deviation=deviation) -> float:
            error = np.concatenate([getattr(one, what) for one in found])
            return float(np.sqrt(np.mean((deviation / error) ** 2)))

        n_events = simulation.get("n_events", NIGHT.n_events)
        rms_ns = np.sqrt(np.mean(deviation**2))
        pulls = " | ".join(f"{pull(what):.2f}" for what in ("error", "total", "independent"))
        print(f"| {name} | {n_events} | {n_arrays} | {rms_ns:.3f} ns | {pulls} |", flush=True)


if __name__ == "__main__":
    main()
