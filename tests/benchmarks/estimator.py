"""How honest the errors of the inter-calibration are: ``make statistics`` prints the table.

The same toy experiments as in ``tests/array/test_statistics.py``, which asserts on them.
"""

from __future__ import annotations

import numpy as np

from tests.array.test_statistics import SETTINGS, experiments, options_for

N_EXPERIMENTS = 2000


def main() -> None:
    """Print one row for each array and strength of cuts."""
    print("| setting | pull width | 68 % coverage | mean pull | width with independent pairs |")
    print("|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        deviation, error, independent = experiments(
            N_EXPERIMENTS, options_for("log-mean"), **setting
        )
        pull = deviation / error
        worst = np.max(np.abs(np.mean(pull, axis=0)))
        print(
            f"| {name} | {np.std(pull):.3f} | {np.mean(np.abs(pull) < 1):.3f} | {worst:.2f} |"
            f" {np.std(deviation / independent):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
