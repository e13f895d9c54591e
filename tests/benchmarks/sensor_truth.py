"""How near the truth the sensor jobs come: ``python tests/benchmarks/sensor_truth.py``.

One camera is simulated; our jobs run on its frames, and the formulas of SPECTACLE 3.1 (its
formulas, nothing of its code) on the same ones. Nothing here fails because a number is bad; the
tests do (tests/sensor/test_recovery.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import calibdask
from calibdask.io.frames import read_frame
from calibdask.io.maps import read_product
from calibdask.sensor.simulate import SimulatedSensor, simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

OPTIONS = SensorSimulation(
    rows=192, columns=256, n_frames=50, iso_knee=2000, hot_current_e_s=800.0, seed=11
)
CHAIN = (
    ("bias", "bias", "Bias", ()),
    ("iso-normalisation", "iso", "IsoNormalisation", ("bias",)),
    ("dark-current", "dark", "DarkCurrent", ("bias", "iso")),
    ("gain", "gain", "Gain", ("bias", "iso")),
    ("flatfield", "flat", "FlatField", ("bias",)),
)
Stacks = dict[tuple[str, int, float, str], tuple[np.ndarray, np.ndarray]]


def calibrate(made: SimulatedSensor, root: Path) -> None:
    """Run our chain."""
    for job, name, section, needs in CHAIN:
        overrides = {f"{section}.{need}": str(root / need) for need in needs}
        calibdask.run(
            job, [made.root], root / name, overrides=overrides, cluster="serial", report=False
        )


def peer_stacks(made: SimulatedSensor) -> Stacks:
    """Mean and standard deviation (divisor n) of each stack, in single precision."""
    paths: dict[tuple[str, int, float, str], list[Path]] = {}
    for path, spec in made.frames.items():
        exposure = spec.exposure_s if spec.kind == "dark_current" else 0.0
        paths.setdefault((spec.kind, spec.iso, exposure, spec.level), []).append(path)
    stacks = {}
    for key, files in paths.items():
        frames = np.stack([read_frame(str(path)) for path in files])
        stacks[key] = (
            frames.mean(axis=0, dtype=np.float32),
            frames.std(axis=0, dtype=np.float32),
        )
    return stacks


def peer_gain(stacks: Stacks, bias: np.ndarray) -> np.ndarray:
    """Slope of std^2 against mean - bias, weights 1/(mean - bias), levels below 0.95 of the top."""
    levels = [value for key, value in stacks.items() if key[0] == "gain"]
    x = np.array([mean - bias for mean, _ in levels], np.float64)
    y = np.array([std**2 for _, std in levels], np.float64)
    keep = np.array([mean < 0.95 * (2**OPTIONS.bits - 1) for mean, _ in levels])
    w = np.where(keep, 1.0 / x, 0.0)
    dx = x - (w * x).sum(axis=0) / w.sum(axis=0)
    dy = y - (w * y).sum(axis=0) / w.sum(axis=0)
    return (w * dx * dy).sum(axis=0) / (w * dx**2).sum(axis=0)


def peer_dark(stacks: Stacks, iso: int) -> np.ndarray:
    """Line through all exposures, saturated or not."""
    series = sorted(
        (key[2], value[0]) for key, value in stacks.items() if key[:2] == ("dark_current", iso)
    )
    times = np.array([time for time, _ in series])
    means = np.array([mean.ravel() for _, mean in series], np.float64)
    slope: np.ndarray = np.polyfit(times, means, 1)[0]
    return slope.reshape(OPTIONS.rows, OPTIONS.columns)


def peer_iso(stacks: Stacks, bias: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """Mean ratio by ISO speed; an unweighted line if its R^2 is 0.9 or more, else the knee."""
    means = {
        key[1]: value[0] - bias for key, value in stacks.items() if key[0] == "iso_normalisation"
    }
    iso = np.array(sorted(means), np.float64)
    ratio = np.array([np.mean(means[one] / means[int(iso[0])]) for one in iso.astype(int)])
    line = np.polyfit(iso, ratio, 1)
    rest = ratio - np.polyval(line, iso)
    if 1 - (rest**2).sum() / ((ratio - ratio.mean()) ** 2).sum() >= 0.9:
        return np.polyval(line, speeds)
    from scipy.optimize import curve_fit

    def knee(x: np.ndarray, a: float, b: float, k: float) -> np.ndarray:
        return np.minimum(a * x + b, a * k + b)

    bounds = ([0, -np.inf, 1.05 * iso[0]], [1, np.inf, 0.95 * iso[-1]])
    best, _ = curve_fit(knee, iso, ratio, p0=[1 / iso[0], 0, 200], bounds=bounds)
    return knee(speeds, *best)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        made = simulate_sensor(root / "camera", OPTIONS)
        calibrate(made, root)
        print(table(made, root))


def table(made: SimulatedSensor, root: Path) -> str:
    """Compare ours and the peer's with the truth."""
    truth, stacks = made.truth, peer_stacks(made)

    def ours(product: str, name: str) -> np.ndarray:
        return read_product(root / product).rows(name, 0, OPTIONS.rows)

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(values))))

    rows = []
    lowest = stacks["bias_readnoise", 100, 0.0, ""][0]
    for iso in (100, 3200):
        true = truth.bias_dn(iso)
        expected = rms(np.sqrt((truth.read_noise_dn(iso) ** 2 + 1 / 12) / OPTIONS.n_frames))
        errors = [
            rms(one - true) / expected for one in (ours("bias", f"bias/iso{iso}/bias"), lowest)
        ]
        rows.append((f"bias at ISO {iso}: rms error / expected from noise", *errors))
    noise = np.mean(truth.read_noise_dn(100) ** 2)
    peer = np.mean(stacks["bias_readnoise", 100, 0.0, ""][1].astype(np.float64) ** 2)
    mine = np.mean(ours("bias", "readnoise/iso100/readnoise") ** 2)
    rows.append(("read noise variance at ISO 100 / truth", mine / noise, peer / noise))

    speeds = np.arange(100, 3201)
    factor = np.array([OPTIONS.amplification(int(one)) for one in speeds])
    curve = calibdask.io.hdf5.read_tables(root / "iso" / "tables.h5")["/sensor/iso_curve"]
    model = 1 + curve["slope"][0] * (np.minimum(speeds, curve["knee"][0]) - 100)
    theirs = peer_iso(stacks, lowest, speeds)
    errors = [float(np.abs(one / factor - 1).max()) for one in (model, theirs)]
    rows.append(("ISO table, knee at 2000: largest relative error", *errors))

    dark = truth.gain_dn_e * truth.dark_e_s
    mine, peer = ours("dark", "dark_current/iso400/dark_current"), peer_dark(stacks, 400)
    dark = dark * OPTIONS.amplification(400)
    longest = max(OPTIONS.dark_exposures_s)
    full = dark * longest > 2**OPTIONS.bits - 1 - truth.bias_dn(400)
    both = np.isfinite(mine)
    rows.append(
        (
            "dark current, all pixels: sum / truth",
            mine[both].sum() / dark[both].sum(),
            peer.sum() / dark.sum(),
        )
    )
    picked = full & both
    name = f"the same, {int(picked.sum())} pixels that saturate: median / truth"
    rows.append(
        (name, float(np.median((mine / dark)[picked])), float(np.median((peer / dark)[picked])))
    )

    gain, peer = ours("gain", "gain/iso100/gain"), peer_gain(stacks, lowest)
    good = ours("gain", "gain/iso100/mask") == 0
    for label, what in (("mean", np.mean), ("scatter", np.std)):
        numbers = [float(what((one / truth.gain_dn_e)[good])) for one in (gain, peer)]
        rows.append((f"gain of pixels / truth: {label}", *numbers))
    pulls = (gain - truth.gain_dn_e) / ours("gain", "gain/iso100/gain_error")
    rows.append(("gain: width of the pulls", rms(pulls[good]), np.nan))
    pulls = (mine - dark) / ours("dark", "dark_current/iso400/dark_current_error")
    rows.append(("dark current: width of the pulls", rms(pulls[both]), np.nan))
    model = ours("flat", "flatfield/model") * truth.vignetting
    rows.append(("vignetting model / truth - 1: rms", rms(model - 1), np.nan))
    rows.append(("the same: largest, corners included", float(np.abs(model - 1).max()), np.nan))
    lines = ["| recovered | calibdask | SPECTACLE's formulas |", "|---|---|---|"]
    for name, one, other in rows:
        lines.append(f"| {name} | {one:#.4g} | {'' if np.isnan(other) else f'{other:#.4g}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
