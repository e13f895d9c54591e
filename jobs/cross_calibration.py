#!/usr/bin/env python
"""Put telescopes of all types on one scale, and see whether showers and muons agree.

It does what ``calibdask cross-calibration`` does, with a place for what a campaign has of its own.

    python jobs/cross_calibration.py demo/dl2 cross_calibration.h5
    python jobs/cross_calibration.py demo/dl2 muons.h5 cross_calibration.h5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "cross_calibration.yaml"
TABLES = "/dl2/monitoring/subarray/cross_calibration"


def main() -> None:
    """Run, and look at the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs", nargs="+", help="DL2 files, and files of an inter-calibration and of muons"
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("-c", "--config", type=Path, default=CONFIG)
    # In a batch job the scheduler's file is named by the environment; on a laptop there is none.
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    arguments = parser.parse_args()

    result = calibdask.run(
        "cross-calibration",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        cluster=arguments.cluster,
    )
    print(result)

    print("\nScale of the types, from showers alone:")
    factors = result.tables[f"{TABLES}/scaling_factors"]
    print(factors["tel_type", "tel_ref", "scaling_factor", "scaling_factor_uncertainty", "flags"])
    for row in result.tables.get(f"{TABLES}/consistency", ()):
        agree = "agree" if row["p_value"] > 1e-3 else "DISAGREE"
        print(f"showers and {row['n_muons']} muon throughputs {agree}: p = {row['p_value']:.2g}")


if __name__ == "__main__":  # worker processes import this file
    main()
