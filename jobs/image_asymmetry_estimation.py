#!/usr/bin/env python
"""Write the event-wise asymmetries of image sizes: one file for each DL2 file.

Run it as::

    python jobs/image_asymmetry_estimation.py demo/dl2 image_asymmetries
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

CONFIG = Path(__file__).parent.parent / "configs" / "image_asymmetry_estimation.yaml"


def main() -> None:
    """Run, and say what was left after each selection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", help="DL2 files")
    parser.add_argument("output", type=Path, help="a directory")
    parser.add_argument("-c", "--config", type=Path, default=CONFIG)
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    arguments = parser.parse_args()

    result = calibdask.run(
        "image-asymmetry-estimation",
        arguments.inputs,
        arguments.output,
        config=arguments.config,
        cluster=arguments.cluster,
    )
    for name, count in result.account.total.cut_flow.items():
        print(f"{count:>12} {name}")
    print(f"wrote {len(result.paths)} files into {arguments.output}")


if __name__ == "__main__":  # worker processes import this file
    main()
