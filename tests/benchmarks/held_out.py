"""Pulls, coverage and p-values on held-out experiments: ``make held-out`` prints the table."""

from __future__ import annotations

from tests.array.held_out import CUTS, WINDOWS, ImageStudy, Study, jumps

N_VALUES = 1000
N_EXPERIMENTS = 200
N_ARRAYS = 30
JUMPS = {
    "400 events": {"n_events": 400},
    "1000 events, some see": {"n_events": 1000, "take": 0.7, "keep": 0.3},
}


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
    print(
        "\n| image sizes, illuminated radius | type | pull width, total | 68 % coverage | values |"
    )
    print("|---|---|---|---|---|")
    for radius_m in (350.0, 900.0):
        for kind, found in ImageStudy.of(radius_m, N_ARRAYS, 4).items():
            cells = f"{found.width:.3f} | {found.coverage:.3f} | {len(found.pull)}"
            print(f"| {radius_m:g} m | {kind} | {cells} |", flush=True)
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
