"""What every job computes today, frozen: names of stored results, numbers, and products.

    python -m tests.golden.freeze                       writes freeze.json anew
    python -m tests.golden.freeze --only addresses      renews one of KINDS
    python -m tests.golden.freeze inter-calibration     renews one job (several can be named)

A step that only moves code moves nothing. Options that change their stage move `addresses`. Other
types and widths of columns, and other prefixes of units, move `products`; letters and bits of flags
move `flags` as well. `values` move only where numbers or names of columns do: then the version of
the calibration is raised and CHANGELOG.md says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
from astropy import units as u
from threadpoolctl import threadpool_info

import calibdask
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.engine import canonical, inputs
from calibdask.engine.provenance import cpu_class
from calibdask.engine.store import Store
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.maps import read_product
from calibdask.muon.image_simulation import MuonImageSimulation
from calibdask.muon.simulate import MuonSimulation, simulate_ring_tables
from calibdask.muon.simulate_images import simulate_ring_images
from calibdask.sensor.simulate import simulate_sensor
from calibdask.sensor.simulation import SensorSimulation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GOLDEN: Final = Path(__file__).with_name("freeze.json")
CONFIGS: Final = Path(__file__).parents[2] / "configs"
KINDS: Final = ("addresses", "values", "flags", "products")
FLAGS: Final = ("flags", "mask")
"""Ends of the names of columns and maps that hold flags."""
DIGITS: Final = 10
"""Significant digits of numbers in digests: processors differ in the last two or three."""


@dataclass(frozen=True)
class Campaign:
    """One run: of the job of its name, up to the first space."""

    data: str
    config: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    products: dict[str, str] = field(default_factory=dict)
    """Options that name the output of another campaign."""


RUNS: Final = {
    "energy-asymmetry-estimation": Campaign("array", "energy_asymmetry_estimation.yaml"),
    "image-asymmetry-estimation": Campaign("array", "image_asymmetry_estimation.yaml"),
    "inter-calibration": Campaign("array", "inter_calibration.yaml"),
    "inter-calibration of image sizes": Campaign("array", "inter_calibration_of_image_sizes.yaml"),
    "cross-calibration": Campaign("array", "cross_calibration.yaml"),
    "timing-calibration": Campaign("array", "timing_calibration.yaml"),
    "calculate-throughput-muon": Campaign("rings", options={"Campaign.time_bin": "5 min"}),
    "calculate-throughput-muon by size": Campaign(
        "rings", options={"SizeChunking.chunk_size": 500}
    ),
    "calculate-throughput-muon of images": Campaign("images"),
    "calculate-psf-muon": Campaign("rings"),
    "stack-images": Campaign("camera", options={"Stacks.clip_sigma": 5.0}),
    "bias": Campaign("camera"),
    "readnoise": Campaign("camera"),
    "iso-normalisation": Campaign("camera", products={"IsoNormalisation.bias": "bias"}),
    "dark-current": Campaign(
        "camera", products={"DarkCurrent.bias": "bias", "DarkCurrent.iso": "iso-normalisation"}
    ),
    "gain": Campaign("camera", products={"Gain.bias": "bias", "Gain.iso": "iso-normalisation"}),
    "flatfield": Campaign("camera", products={"FlatField.bias": "bias"}),
    "defects": Campaign("camera"),
    "emva1288": Campaign("emva"),
    "calibrate-images": Campaign(
        "camera/images/light",
        products={
            f"CalibrateImages.{option}": job
            for option, job in {
                "bias": "bias",
                "readnoise": "readnoise",
                "iso": "iso-normalisation",
                "dark": "dark-current",
                "flat": "flatfield",
                "gain": "gain",
                "defects": "defects",
            }.items()
        },
    ),
}
"""Campaigns in the order in which they need each other's products."""

ARRAY: Final = ArraySimulation(
    n_files=2,
    n_events=500,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    unsorted_layout=True,
    nan_valid_fraction=0.01,
    outlier_fraction=0.01,
    sparse_telescopes={8: 4},
    time_outlier_fraction=0.02,
    missing_time_fraction=0.01,
    seed=14,
)
RINGS: Final = MuonSimulation(n_files=2, n_rings=2000, n_dual_mirror=1, seed=14)
IMAGES: Final = MuonImageSimulation(n_rings_per_telescope=120, seed=14)
CAMERA: Final = SensorSimulation(
    rows=24,
    columns=32,
    n_frames=4,
    isos=(100, 400),
    iso_knee=None,
    kinds=(
        *("bias_readnoise", "dark_current", "flatfield", "gain", "iso_normalisation"),
        "light",
    ),
    seed=14,
)
EMVA: Final = SensorSimulation(
    rows=24, columns=32, n_frames=3, emva_points=8, emva_frames=5, kinds=("emva1288",), seed=14
)


def machine() -> str:
    """Name what last bits depend on: instruction sets, and the kernels of BLAS."""
    kernels = {one.get("architecture", one["prefix"]) for one in threadpool_info()}
    return " ".join([cpu_class(), *sorted(kernels)])


class Frozen:
    """Campaigns below an empty folder: simulated, and run, when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._found: dict[str, dict[str, Any]] = {}

    @cached_property
    def _array(self) -> Sequence[Path]:
        return simulate_array(self.folder / "array", ARRAY).paths

    @cached_property
    def _rings(self) -> Sequence[Path]:
        return simulate_ring_tables(self.folder / "rings", RINGS)

    @cached_property
    def _images(self) -> Sequence[Path]:
        return simulate_ring_images(self.folder / "images", IMAGES, lambda _done, _all: None)

    @cached_property
    def _camera(self) -> Sequence[Path]:
        return (simulate_sensor(self.folder / "camera", CAMERA).root,)

    @cached_property
    def _emva(self) -> Sequence[Path]:
        return (simulate_sensor(self.folder / "emva", EMVA).root,)

    def inputs(self, data: str) -> Sequence[Path]:
        """Return files of a simulation, or one of its folders."""
        kind, _, below = data.partition("/")
        paths: Sequence[Path] = getattr(self, f"_{kind}")
        return [paths[0] / below] if below else paths

    def find(self, run: str) -> dict[str, Any]:
        """Run a campaign once and give its addresses, values and product."""
        if run not in self._found:
            self._found[run] = self._run(run)
        return self._found[run]

    def output(self, run: str) -> Path:
        """Return the place of a campaign's product."""
        return self.folder / "products" / run.replace(" ", "_")

    def _run(self, run: str) -> dict[str, Any]:
        campaign = RUNS[run]
        for other in campaign.products.values():
            self.find(other)
        overrides = campaign.options | {
            option: str(self.output(other)) for option, other in campaign.products.items()
        }
        work = self.folder / "work" / run.replace(" ", "_")
        with self._recorded() as documents:
            result = calibdask.run(
                run.partition(" ")[0],
                self.inputs(campaign.data),
                self.output(run),
                config=CONFIGS / campaign.config if campaign.config else (),
                overrides=overrides,
                cluster="serial",
                workdir=work,
                report=False,
            )
        columns = {
            name: summarise(values, unit, str(self.folder))
            for name, unit, values in sorted(_columns(self.output(run)), key=lambda one: one[0])
        }
        return {
            "addresses": self._addresses(documents, Store(work / "store").scan()),
            "values": {name: one for name, one in columns.items() if not name.endswith(FLAGS)},
            "flags": {name: one for name, one in columns.items() if name.endswith(FLAGS)},
            "products": result.digest,
        }

    @contextmanager
    def _recorded(self) -> Iterator[dict[str, Any]]:
        """Note what each address is made of; identify inputs by name instead of by their bytes.

        Bytes of simulated files depend on versions of libraries and on processors.
        """
        documents: dict[str, Any] = {}
        digest_json, identify = canonical.digest_json, inputs.identify
        notes = self.folder / "notes"  # a file, as some work is done in child processes

        def noted(value: Any) -> str:
            with notes.open("a", encoding="ascii") as file:
                file.write(canonical.canonical_json(value) + "\n")
            return digest_json(value)

        def by_name(path: Path, *, full: bool = False) -> Any:
            name = path.resolve().relative_to(self.folder).as_posix()
            identity = hashlib.sha256(name.encode()).hexdigest()
            return replace(identify(path, full=full), identity=f"0:{identity}")

        import_module("calibdask.engine.run")  # with all modules that name results
        with ExitStack() as patches:
            for name, module in list(sys.modules.items()):
                if (
                    name.startswith("calibdask.")
                    and getattr(module, "digest_json", None) is digest_json
                ):
                    patches.enter_context(patch.object(module, "digest_json", noted))
            patches.enter_context(patch.object(inputs, "identify", by_name))
            yield documents
        for line in notes.read_text(encoding="ascii").splitlines():
            value = json.loads(line)
            documents[digest_json(value)] = value
        notes.unlink()

    def _addresses(self, documents: dict[str, Any], stored: set[str]) -> dict[str, Any]:
        """Digest what stored results are named after: by step, and of it field by field.

        Digests in it that stand for bits of data, those of states and of products, are left out.
        """
        unknown = stored - documents.keys()
        assert not unknown, f"stored under names of unknown origin: {sorted(unknown)[:3]}"
        steps: dict[str, list[dict[str, str]]] = {}
        for address in stored:
            document = documents[address]
            step = f"{document['what']} {document.get('stage', '')}".strip()
            steps.setdefault(step, []).append(
                {
                    name: self._normal(value, documents)
                    for name, value in document.items()
                    if name not in ("what", "stage")
                }
            )
        return {
            step: {"results": len(found)}
            | {
                name: _short("\n".join(sorted(one[name] for one in found if name in one)))
                for name in sorted({name for one in found for name in one})
            }
            for step, found in sorted(steps.items())
        }

    def _normal(self, value: Any, documents: dict[str, Any]) -> str:
        """Write a value without digests of bits, folders and what other addresses stand for."""
        text = canonical.canonical_json(value).replace(str(self.folder), "")

        def stand_in(match: re.Match[str]) -> str:
            if match[0].startswith("0:"):
                return match[0]  # an input
            if match[0] in documents:
                return _short(self._normal(documents[match[0]], documents))
            return "digest"

        return re.sub(r"(0:)?\b([0-9a-f]{64})+\b", stand_in, text)


def _columns(product: Path) -> Iterator[tuple[str, str, np.ndarray[Any, Any]]]:
    """Read a product: name, unit and values of every column of a table, and of every map."""
    if not product.is_dir():
        parts = [("", product)]
    else:
        names = json.loads((product / "calibdask.json").read_text(encoding="utf-8"))["files"]
        parts = [(f"{name}:", product / name) for name in names]
    for name, path in parts:
        if path.suffix == ".zarr":
            maps = read_product(path)
            for layout in maps.layouts:
                unit = str(maps.layouts[layout].attributes.get("units", ""))
                yield f"{name}{layout}", unit, maps.rows(layout)
        elif path.suffix == ".h5" or not name:
            with open_hdf5(path) as file:
                for table in file.tables():
                    for column in table.names:
                        yield (
                            f"{name}{table.path}.{column}",
                            table.unit(column),
                            table.column(column),
                        )


def summarise(values: np.ndarray[Any, Any], unit: str, folder: str = "") -> list[Any]:
    """Digest a column so that types, widths of text and prefixes of units do not show.

    Parameters
    ----------
    values : ndarray
        Numbers or text.
    unit : str
        Unit of the numbers, "" for none.
    folder : str
        Left out of text.

    Returns
    -------
    digest : str
        Of numbers in SI units with ten significant digits, or of text.
    n_finite, mean, rms : int, float, float
        Of numbers, so that processors can be compared that differ in the last bits.
    """
    if values.dtype.kind in "SUO":
        texts = [
            one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
            for one in values.ravel().tolist()
        ]
        lines = [text.rstrip("\0 ").replace(folder, "") for text in texts]
        return [_short(json.dumps(lines))]
    if values.dtype.kind in "iub" and not unit:
        whole = [int(one) for one in values.ravel().tolist()]
        return [_short(json.dumps(whole))]
    factor, base = _si(unit)
    numbers = values.astype(np.float64).ravel() * factor
    good = numbers[np.isfinite(numbers)]
    mean, rms = (float(np.mean(good)), float(np.sqrt(np.mean(good**2)))) if good.size else (0, 0)
    text = base + " ".join(f"{one + 0.0:.{DIGITS - 1}e}" for one in numbers.tolist())
    return [_short(text), int(good.size), float(f"{mean:.12g}"), float(f"{rms:.12g}")]


def _si(unit: str) -> tuple[float, str]:
    """Return the factor to SI, and the unit there; (1, unit) where astropy does not know it."""
    parsed = u.Unit(unit, parse_strict="silent")
    if isinstance(parsed, u.UnrecognizedUnit) or not isinstance(parsed, u.UnitBase):
        return 1.0, unit
    base = parsed.decompose()
    powers = zip(base.bases, base.powers, strict=True)
    return float(base.scale), " ".join(sorted(f"{one}^{float(power)}" for one, power in powers))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def moved(found: dict[str, Any], frozen: dict[str, Any], *, same_machine: bool) -> dict[str, str]:
    """Say by kind what moved of a campaign: the first difference, and how many there are.

    On another machine last bits differ: there products are not compared, and numbers by count, mean
    and root mean square to 1e-8.
    """
    differences: dict[str, str] = {}
    for kind in KINDS[:-1]:
        said = [
            f"{name} {text}"
            for name in sorted(frozen[kind].keys() | found[kind].keys())
            if (text := _difference(found[kind].get(name), frozen[kind].get(name), same_machine))
        ]
        if said and kind == "addresses":
            differences[kind] = "; ".join(said)
        elif said:
            more = f" (and {len(said) - 1} others)" if said[1:] else ""
            differences[kind] = said[0] + more
    if same_machine and found["products"] != frozen["products"]:
        differences["products"] = "another digest"
    return differences


def _difference(now: Any, before: Any, same_machine: bool) -> str:
    if now is None or before is None:
        return "is gone" if now is None else "is new"
    if isinstance(before, dict):
        fields = sorted(before.keys() | now.keys())
        return ", ".join(one for one in fields if before.get(one) != now.get(one))
    if _alike(now, before, exact=same_machine):
        return ""
    return f"was {before}, is {now} (digest, then finite numbers, mean, root mean square)"


def _alike(now: list[Any], before: list[Any], *, exact: bool) -> bool:
    if now[0] == before[0]:
        return True
    if exact or len(now) != 4 or len(before) != 4 or now[1] != before[1]:
        return False
    room = 1e-8 * max(abs(before[3]), 1e-6)
    return all(math.isclose(now[i], before[i], rel_tol=0, abs_tol=room) for i in (2, 3))


def main() -> None:
    """Write what is asked for into freeze.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="all, or some of: " + ", ".join(RUNS)
    )
    parser.add_argument("--only", choices=KINDS, action="append", help="renew one kind")
    chosen = parser.parse_args()
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    wanted = set(chosen.runs or RUNS)
    runs = [run for run in RUNS if wanted & {run, run.partition(" ")[0]}]
    if unknown := wanted - {*RUNS, *(run.partition(" ")[0] for run in RUNS)}:
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    if golden.setdefault("machine", machine()) != machine() and chosen.only != ["addresses"]:
        if chosen.only or len(runs) < len(RUNS):
            parser.error(f"made on {golden['machine']}: renew it there, or all of it here")
        golden["machine"] = machine()
    with tempfile.TemporaryDirectory() as name:
        frozen = Frozen(Path(name))
        for run in runs:
            found = frozen.find(run)
            kept = golden.setdefault("runs", {}).setdefault(run, {})
            kept |= {kind: found[kind] for kind in chosen.only or KINDS}
            print(f"{run}: {', '.join(chosen.only or KINDS)}")
    golden["runs"] = {run: golden["runs"][run] for run in RUNS if run in golden["runs"]}
    GOLDEN.write_text(_write(golden), encoding="utf-8")


def _write(golden: dict[str, Any]) -> str:
    """Write JSON with a line for each step and column."""
    text = json.dumps(golden, indent=1)
    return (
        re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
        + "\n"
    )


if __name__ == "__main__":
    main()
