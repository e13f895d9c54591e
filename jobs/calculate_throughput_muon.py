#!/usr/bin/env python
"""Optical throughput from muon rings: copy this script and make it yours.

It does what ``calibdask calculate-throughput-muon`` does, and then looks at the trends: which
telescopes lose light, and how fast.

    python jobs/calculate_throughput_muon.py muons/ throughput.h5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "calculate_throughput_muon.yaml"
TREND = "/dl1/monitoring/telescope/calibration/optical_throughput/muon_trend"


def main() -> None:
    """Run, and look at the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", help="DL1 files with muon tables or images, or simtel")
    parser.add_argument("output", type=Path)
    parser.add_argument("-c", "--config", type=Path, default=CONFIG)
    # In a batch job the scheduler's file is named by the environment; on a laptop there is none.
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    arguments = parser.parse_args()

    result = calibdask.run(
        "calculate-throughput-muon",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        cluster=arguments.cluster,
    )
    print(result)

    trend = result.tables[TREND]
    losing = trend[trend["slope"] < -3 * trend["slope_err"]]
    print(f"\n{len(losing)} telescopes lose light by more than three sigma:")
    for row in losing:
        percent = 100 * row["slope"] / row["mean"]
        print(f"  telescope {row['tel_id']}: {percent:.3g}")


if __name__ == "__main__":  # worker processes import this file
    main()
