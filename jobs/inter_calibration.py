#!/usr/bin/env python
"""Inter-calibrate the telescopes of a campaign: copy this script and make it yours.

It does what ``calibdask inter-calibration`` does, step by step, so that there is a place for what
is particular to a campaign: which nights, which cluster, what to look at before a result is used.

    python jobs/inter_calibration.py demo/dl2 inter_calibration.h5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "inter_calibration.yaml"


def main() -> None:
    """Plan, run, and look at the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", help="DL2 files, or files of asymmetries")
    parser.add_argument("output", type=Path)
    parser.add_argument("-c", "--config", type=Path, default=CONFIG)
    # In a batch job the scheduler's file is named by the environment; on a laptop there is none.
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    arguments = parser.parse_args()

    plan = calibdask.plan("inter-calibration", arguments.inputs, config=arguments.config)
    print(plan)

    result = calibdask.run(
        "inter-calibration",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        cluster=arguments.cluster,
    )
    print(result)

    coefficients = result.tables["/dl2/monitoring/subarray/inter_calibration"]
    odd = coefficients[abs(coefficients["value"] - 1) > 5 * coefficients["error"]]
    print(f"\n{len(odd)} telescopes differ from their reference by more than five sigma:")
    print(odd["tel_type", "tel_id", "value", "error", "flags"])


if __name__ == "__main__":  # worker processes import this file
    main()
