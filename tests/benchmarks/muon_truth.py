"""Simulated rings of known truth: bias and pulls of the fit (`make bench-muon`).

Per row: rings drawn and fitted, relative bias of the efficiency with its error in %, mean and
standard deviation of the pulls of efficiency, width and impact. The cleaning is loose (5 and 2.5
p.e., more than 50 pixels): with ctapipe's thresholds no wide ring of a tenth of the light is left.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np

from calibdask.muon.rings import RingOptions, rings_of
from calibdask.muon.simulate_images import Options, simulate_images

LOOSE = RingOptions(
    hole_radius_m=0.74, picture_threshold=5.0, boundary_threshold=2.5, min_pixels=50
)


def study(n, options, **settings):
    """Simulate and fit; the figures of one row."""
    truth, images = simulate_images(Options(n_rings_per_telescope=n, **settings), 0, 1)
    image = np.where(images.image == 0, np.nan, images.image).astype(np.float32)
    rings = rings_of(replace(images, image=image, image_mask=None), options)
    ok = rings["status"] == 0

    def pull(name, true):
        return (rings[f"muonefficiency_{name}"][ok] - true[ok]) / rings[
            f"muonefficiency_{name}_err"
        ][ok]

    relative = rings["muonefficiency_optical_efficiency"][ok] / truth["efficiency"][ok] - 1
    pulls = (
        pull("optical_efficiency", truth["efficiency"]),
        pull("width", np.degrees(truth["width"])),
        pull("impact", truth["impact"]),
    )
    return ok.sum(), 100 * relative.mean(), 100 * relative.std() / math.sqrt(ok.sum()), pulls


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rings", type=int, default=400, help="per row")
    n = parser.parse_args().rings
    rows = [
        (f"efficiency {e:.1f}, width {w:.2f} deg", {"optical_efficiency": e, "width_deg": w})
        for e in (0.1, 0.2, 0.3, 0.4)
        for w in (0.05, 0.1, 0.15, 0.2)
    ]
    rows += [
        (f"impact {low}-{high} m", {"min_impact_m": low, "max_impact_m": high})
        for low, high in ((0, 1), (1, 3), (3, 6), (6, 9), (9, 10))
    ]
    rows += [("truncated", {"truncated": 1.0}), ("2 % of the pixels broken", {"broken": 0.02})]
    for name, free in (("circle of the peer", False), ("circle free", True)):
        print(f"\n{name:28} {'rings':>9} {'bias %':>13}", end="")
        print("".join(f" {kind:>13}" for kind in ("efficiency", "width", "impact")))
        options = replace(LOOSE, fit_circle=free)
        for label, settings in rows:
            found, bias, error, pulls = study(n, options, **settings)
            shown = " ".join(f"{one.mean():+6.2f} ±{one.std():5.2f}" for one in pulls)
            print(f"{label:28} {found:4d}/{n:4d} {bias:+6.2f} ± {error:4.2f} {shown}")


if __name__ == "__main__":
    main()
