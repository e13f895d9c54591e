#!/usr/bin/env python
"""Calibrate a camera from all its frames: copy this script and make it yours.

The folder holds the frames as SPECTACLE has them (images/bias_readnoise/iso100/...); each step
takes what it needs of them, and the products of the steps before. What is computed is stored:
after a fault, or with more frames, the same command carries on.

    python jobs/camera.py camera products
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import calibdask

# Job, name of its product, and the products that it takes.
CHAIN = (
    ("bias", "bias", ()),
    ("iso-normalisation", "iso", ("bias",)),
    ("dark-current", "dark", ("bias", "iso")),
    ("gain", "gain", ("bias", "iso")),
    ("flatfield", "flat", ("bias",)),
    ("defects", "defects", ()),
)
SECTIONS = {
    "iso-normalisation": "IsoNormalisation",
    "dark-current": "DarkCurrent",
    "gain": "Gain",
    "flatfield": "FlatField",
}


def main() -> None:
    """Run the chain, and say what to look at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, help="folder of the camera")
    parser.add_argument("products", type=Path, help="directory for the products")
    # In a batch job the scheduler's file is named by the environment; on a laptop there is none.
    parser.add_argument("--cluster", default=os.environ.get("DASK_SCHEDULER_FILE", "auto"))
    parser.add_argument("--allow-missing", type=float, default=0.0, help="fraction of bad frames")
    arguments = parser.parse_args()

    results = {}
    for job, product, needs in CHAIN:
        results[job] = calibdask.run(
            job,
            [arguments.frames],
            arguments.products / product,
            overrides={f"{SECTIONS[job]}.{name}": str(arguments.products / name) for name in needs},
            cluster=arguments.cluster,
            allow_missing=arguments.allow_missing,
        )
        print(results[job])

    gain = results["gain"].tables["/sensor/gain"]
    print("\nLook at these first, then at calibdask.html of each product:")
    print(gain["iso", "channel", "gain_dn_per_electron", "readnoise_electron", "pixel_flags"])
    print(results["defects"].tables["/sensor/defects"]["criterion", "n_defects", "fraction"])


if __name__ == "__main__":  # worker processes import this file
    main()
