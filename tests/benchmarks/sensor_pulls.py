"""Pulls of sensor maps and of held-out frames with borders, overscan, two amplifiers and flicker.

    make sensor-pulls

simulates a sensor (`tests.sensor.pulls`), calibrates it in memory and prints, for each map, the
number of pixels, the mean and the width of their pulls, and the share within one error.
"""

from __future__ import annotations

import numpy as np

from tests.sensor.pulls import Sensor, pulls_of, width


def main() -> None:
    """Print the tables."""
    for what, changes in {
        "two amplifiers, steady lamp": {"flicker": 0.0},
        "two amplifiers, 1 % flicker": {},
        "two amplifiers, 2 % flicker": {"flicker": 0.02},
        "one amplifier, 1 % flicker": {"step": 1.0},
    }.items():
        pulls = pulls_of(Sensor(shape=(118, 120), seed=5, **changes))
        print(f"{what}; masked border and overscan\n  {'map':16} pixels    mean   width  |pull|<1")
        for name, one in pulls.items():
            inside = np.mean(np.abs(one) < 1)
            print(f"  {name:16} {one.size:6d}  {one.mean():+.3f}   {width(one):.3f}  {inside:.3f}")


if __name__ == "__main__":
    main()
