"""How honest the errors of the inter-calibration are: ``make statistics`` prints the table.

The same toy experiments and checks as in ``tests/array/test_statistics.py``, more of them.
"""

from __future__ import annotations

import numpy as np

from tests.array.test_statistics import SETTINGS, check_log_mean, check_robust

N_EXPERIMENTS = 2000
N_ROBUST = 500


def main() -> None:
    """Print one row for each array and strength of cuts; end where a limit does not hold."""
    print("| setting | pull width | 68 % coverage | mean pull | width with independent pairs |")
    print("|---|---|---|---|---|")
    for name in SETTINGS:
        deviation, error, independent = check_log_mean(name, N_EXPERIMENTS)
        pull = deviation / error
        worst = np.max(np.abs(np.mean(pull, axis=0)))
        print(
            f"| {name} | {np.std(pull):.3f} | {np.mean(np.abs(pull) < 1):.3f} | {worst:.2f} |"
            f" {np.std(deviation / independent):.2f} |",
            flush=True,
        )
    for name in SETTINGS:
        for estimator in ("log-median", "log-clipped"):
            check_robust(estimator, name, N_ROBUST)


if __name__ == "__main__":
    main()
