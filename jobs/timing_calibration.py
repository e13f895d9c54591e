#!/usr/bin/env python
"""Find the offsets of the telescopes' times, and see which telescopes jump.

Run it as::

    python jobs/timing_calibration.py demo/dl2 timing.h5 --time-bin "10 min"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "timing_calibration.yaml"
TABLE = "/dl2/monitoring/subarray/timing_calibration"


def main() -> None:
    """Run, and look at the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", help="DL2 files")
    parser.add_argument("output", type=Path)
    parser.add_argument("-c", "--config", type=Path, default=CONFIG)
    parser.add_argument("--time-bin", help="offsets for each hour, say: 1h")
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    arguments = parser.parse_args()

    overrides = {"Campaign.time_bin": arguments.time_bin} if arguments.time_bin else {}
    result = calibdask.run(
        "timing-calibration",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        overrides=overrides,
        cluster=arguments.cluster,
    )
    print(result)

    offsets = result.tables[TABLE]
    late = offsets[abs(offsets["value"]) > 5 * offsets["error_total"]]
    print(f"\n{len(late)} of {len(offsets)} offsets differ from the reference by five sigma")
    if arguments.time_bin:
        drift = result.tables[f"{TABLE}_drift"]
        jumping = drift[[bool(flags) for flags in drift["flags"]]]
        print(f"{len(jumping)} telescopes jump or drift:")
        print(jumping["tel_type", "tel_id", "step", "step_error", "step_sigma", "flags"])


if __name__ == "__main__":  # worker processes import this file
    main()
