"""Pulls, coverage and p-values on held-out experiments: ``make held-out`` prints the table."""

from __future__ import annotations

import argparse
import math

from tests.array.held_out import CUTS, WINDOWS, ImageStudy, Study, jumps

N_VALUES = 1000
N_EXPERIMENTS = 200
JUMPS = {
    "400 events": {"n_events": 400},
    "1000 events, some see": {"n_events": 1000, "take": 0.7, "keep": 0.3},
}


def main() -> None:
    """Print a row for each array, window and estimator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("energies", "images", "jumps"), help="one table")
    parser.add_argument("--arrays", type=int, default=30, help="of image sizes, for each radius")
    parser.add_argument("--types", nargs="*", default=["LST", "MST", "SST"], help="of image sizes")
    parser.add_argument("--seed", type=int, default=700, help="of the first of these arrays")
    given = parser.parse_args()
    if given.only in (None, "energies"):
        energies()
    if given.only in (None, "images"):
        image_sizes(given.arrays, tuple(given.types), given.seed)
    if given.only in (None, "jumps"):
        time_bins()


def energies() -> None:
    """Print pulls and p-values of throughputs from energies."""
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


def image_sizes(n_arrays: int, kinds: tuple[str, ...], seed: int) -> None:
    """Print pulls of throughputs from image sizes, with what chance does to so few values."""
    print(
        "\n| image sizes, illuminated radius | type | pull width, total | 68 % coverage |"
        " independent values |"
    )
    print("|---|---|---|---|---|")
    for radius_m in (350.0, 900.0):
        for kind, found in ImageStudy.of(radius_m, n_arrays, 4, kinds=kinds, seed=seed).items():
            n = found.n_independent
            width = f"{found.width:.3f} ± {1 / math.sqrt(2 * n):.3f}"
            coverage = f"{found.coverage:.3f} ± {math.sqrt(0.683 * 0.317 / n):.3f}"
            print(f"| {radius_m:g} m | {kind} | {width} | {coverage} | {n} |", flush=True)


def time_bins() -> None:
    """Print how many jumps are found, and how many false alarms there are."""
    print("\n| time bins of | estimator | jumps of 5 % found | false alarms | without any jump |")
    print("|---|---|---|---|---|")
    for name, how in JUMPS.items():
        for estimator in ("log-mean", "log-clipped"):
            found, false = jumps(N_EXPERIMENTS, jump=0.05, estimator=estimator, **how)
            _, undisturbed = jumps(N_EXPERIMENTS, estimator=estimator, **how)
            print(
                f"| {name} | {estimator} | {found:.3f} | {false:.3f} | {undisturbed:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
