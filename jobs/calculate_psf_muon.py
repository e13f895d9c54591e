#!/usr/bin/env python
"""Optical point spread function from muon rings: copy this script and make it yours.

It does what ``calibdask calculate-psf-muon`` does, and then gives the width of a ring of 1.2 deg.

    python jobs/calculate_psf_muon.py muons/ psf.h5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "calculate_psf_muon.yaml"
OVERVIEW = "/dl1/monitoring/telescope/optical_psf_overview"
RADIUS_DEG = 1.2


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
        "calculate-psf-muon",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        cluster=arguments.cluster,
    )
    print(result)

    for line in result.tables[OVERVIEW]:
        width_deg = RADIUS_DEG * (line["intercept"] + line["slope"].value * RADIUS_DEG)
        print(f"telescope {line['tel_id']}: a ring of {RADIUS_DEG} deg is {width_deg:.4f} deg wide")


if __name__ == "__main__":  # worker processes import this file
    main()
