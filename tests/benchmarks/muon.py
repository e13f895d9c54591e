"""Rings from images: CPU time per ring, against ctapipe's `MuonProcessor` on the same rings.

Run with `make bench-muon`. Images are simulated in memory; both sides fit the same ones, cleaned in
the same way, in the same process. The floor is one pass over the pixels of the images: their sum.
What is read from a DL1 file is timed too. numba's compilation is timed apart and counted nowhere.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibdask.io.images import inspect_images, read_images
from calibdask.muon.image_simulation import MuonImageSimulation
from calibdask.muon.ring_options import RingOptions
from calibdask.muon.rings import rings_of
from calibdask.muon.simulate_images import simulate_ring_images

OPTIONS = RingOptions(hole_radius_m=0.74)
OF_CTAPIPE = replace(OPTIONS, of_ctapipe=True, fit_circle=False)


def cpu_s(work, repeat=3):
    """Least CPU time of several calls, and the last result."""
    best, result = np.inf, None
    for _ in range(repeat):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def peer(path):
    """CPU time of the peer's muon stage, and its efficiencies."""
    from ctapipe.image import ImageProcessor
    from ctapipe.image.muon import MuonProcessor
    from ctapipe.io import EventSource

    total, efficiency = 0.0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with EventSource(path) as source:
            process, fit = ImageProcessor(source.subarray), MuonProcessor(source.subarray)
            for event in source:
                process(event)
                if not efficiency:
                    fit(event)  # compiles
                start = time.process_time()
                fit(event)
                total += time.process_time() - start
                efficiency.append(event.muon.tel[1].efficiency.optical_efficiency)
    return total, np.array(efficiency)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rings", type=int, default=400)
    n = parser.parse_args().rings
    with tempfile.TemporaryDirectory() as directory:
        (path,) = simulate_ring_images(
            Path(directory), MuonImageSimulation(n_rings_per_telescope=n), lambda *_: None
        )
        inspect_images(path)
        start = time.perf_counter()
        rings_of(next(read_images(path, rows=(0, 1))), OPTIONS)
        ready_s = time.perf_counter() - start
        read_s, blocks = cpu_s(lambda: list(read_images(path)))
        floor_s, _ = cpu_s(lambda: [block.image.sum(axis=1) for block in blocks])
        ours_s, _ = cpu_s(lambda: [rings_of(block, OPTIONS) for block in blocks])
        fixed = replace(OPTIONS, fit_circle=False)
        fixed_s, _ = cpu_s(lambda: [rings_of(block, fixed) for block in blocks])
        same_s, rings = cpu_s(lambda: [rings_of(block, OF_CTAPIPE) for block in blocks])
        peer_s, theirs = peer(path)
    mine = np.concatenate([one["muonefficiency_optical_efficiency"] for one in rings])
    n_rings = int(np.isfinite(mine).sum())
    both = np.isfinite(mine) & np.isfinite(theirs)
    apart = np.abs(mine - theirs)[both]
    print(
        f"{n} images, {n_rings} rings fitted; ready (kernels loaded or compiled) in {ready_s:.1f} s"
    )
    print(f"{'CPU per ring':32} {'ms':>8} {'peer : this':>12} {'this : floor':>13}")
    for name, seconds in (
        ("floor: one pass over the pixels", floor_s),
        ("reading a DL1 file", read_s),
        ("ours", ours_s),
        ("ours, the peer's circle", fixed_s),
        ("ours, the peer's model", same_s),
        ("ctapipe's MuonProcessor", peer_s),
    ):
        print(
            f"{name:32} {1e3 * seconds / n_rings:8.4f} {peer_s / seconds:12.1f}"
            f" {seconds / floor_s:13.1f}"
        )
    print(
        "with the peer's model "
        f"efficiencies differ by {np.median(apart):.1e} (median), {np.mean(apart > 1e-3):.1%} by"
        f" more than 1e-3, all by less than {apart.max():.1e}"
    )


if __name__ == "__main__":
    main()
