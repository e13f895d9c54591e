"""Time ctao-calibpipe's energy-asymmetry step in one process, again and again.

Runs with the peer's own Python. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import tables
from calibpipe.tools.telescope_energy_asymmetry_calculator import CalculateEnergyAsymmetry
from ctapipe.core import run_tool


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("dl2")
    parser.add_argument("folder", type=Path, help="where the tool writes")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.chdir(given.folder)  # the tool leaves its provenance log where it runs
    cpu_s = []
    for repeat in range(given.repeats + 1):
        output = given.folder / f"asymmetry_{repeat}.h5"
        start = time.process_time()
        run_tool(
            CalculateEnergyAsymmetry(),
            ["-c", given.config, "-i", given.dl2, "-o", str(output), "--log-level", "ERROR"],
            raises=True,
        )
        cpu_s.append(time.process_time() - start)
    with tables.open_file(output) as file:
        n_pairs = int(file.root.energy_asymmetry.events.nrows)
    print(json.dumps({"cold": cpu_s[0], "warm": cpu_s[1:], "pairs": n_pairs}))


if __name__ == "__main__":
    main()
