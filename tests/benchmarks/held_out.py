"""Pulls, coverage and p-values on held-out experiments: ``make held-out`` prints the table."""

from __future__ import annotations

from tests.array.held_out import CUTS, WINDOWS, Study

N_VALUES = 1000
N_EXPERIMENTS = 200


def main() -> None:
    """Print a row for each array, window and estimator."""
    print("| telescopes, events | estimator | pull width | 68 % coverage | values | KS p | slope |")
    print("|---|---|---|---|---|---|---|")
    for estimator in ("log-mean", "log-clipped"):
        for settings, symmetric in ((WINDOWS, False), (CUTS, True)):
            for name, (draw, n_tel, how) in settings.items():
                number = max(N_EXPERIMENTS, -(-N_VALUES // (n_tel - 1)))
                study = Study(draw, n_tel, number, estimator=estimator, symmetric=symmetric, **how)
                print(
                    f"| {name}{', 50 GeV cut' * symmetric} | {estimator} | {study.width:.3f} |"
                    f" {study.coverage:.3f} | {len(study.pull)} | {study.uniform:.2f} |"
                    f" {study.drawn:+.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
