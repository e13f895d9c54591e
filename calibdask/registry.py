"""The jobs by name. Only strings, so that ``calibdask --help`` imports nothing heavy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from calibdask.config import Campaign, Section
    from calibdask.engine.protocol import AnyCalibration

__all__ = [
    "JOBS",
    "SIMULATIONS",
    "Job",
    "Prepared",
    "Simulation",
    "all_sections",
    "did_you_mean",
    "find_job",
]


@dataclass(frozen=True)
class Prepared:
    """A job with its configuration read.

    Attributes
    ----------
    calibration : Calibration
        Ready to plan and run.
    campaign : Campaign
        The engine's section of the configuration.
    overwrite : bool
        Whether the configuration allows to replace an output.
    config : mapping
        The whole configuration, for provenance.
    input_url : str, tuple of str, or None
        Inputs that the configuration names; the command line wins.
    output_url : str or None
        Output that the configuration names; the command line wins.
    slurm : mapping
        Options of dask-jobqueue.
    """

    calibration: AnyCalibration
    campaign: Campaign
    overwrite: bool
    config: Mapping[str, Any]
    input_url: str | tuple[str, ...] | None = None
    output_url: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A calibration as people call it.

    Attributes
    ----------
    name : str
        Its name on the command line.
    summary : str
        What it does, in one line.
    module : str
        Where it is prepared and described: a module with ``prepare`` and ``template``.
    """

    name: str
    summary: str
    module: str

    def prepare(self, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
        """Read the configuration files, later ones first in rank, and build the calibration."""
        prepared: Prepared = import_module(self.module).prepare(self.name, paths, overrides)
        return prepared

    def template(self) -> str:
        """Write a commented configuration with every option at its default."""
        text: str = import_module(self.module).template(self.name)
        return text


_JOBS = {
    "calibdask.array.jobs": {
        "energy-asymmetry-estimation": (
            "Event-wise energy asymmetries of telescope pairs, one file per DL2 file."
        ),
        "image-asymmetry-estimation": (
            "Event-wise asymmetries of image sizes of telescope pairs, one file per DL2 file."
        ),
        "inter-calibration": (
            "Relative optical throughput of telescopes of one type, from DL2 or asymmetries."
        ),
        "cross-calibration": (
            "Throughput of telescopes of all types on one scale, from DL2 files and muons."
        ),
        "timing-calibration": (
            "Offsets of the telescopes' times, from the arrival of the same shower's light."
        ),
    },
    "calibdask.muon.jobs": {
        "calculate-throughput-muon": (
            "Optical throughput of telescopes by time, from muon rings in DL1 files or images."
        ),
        "calculate-psf-muon": (
            "Optical point spread function of telescopes, from muon rings in DL1 files or images."
        ),
    },
    "calibdask.sensor.jobs": {
        "stack-images": (
            "Mean, variance and extremes of each pixel over stacks of raw frames, exactly."
        ),
        "bias": "Bias and read noise of each pixel and ISO speed.",
        "readnoise": "Read noise of each pixel and ISO speed.",
        "iso-normalisation": "Signal of a camera at each ISO speed relative to the lowest one.",
        "dark-current": "Dark current of each pixel, hot pixels, and the law of its temperature.",
        "gain": "Gain of each pixel and channel by photon transfer, read noise, full well.",
        "flatfield": "Relative response of each pixel: vignetting and pixel response (PRNU).",
        "emva1288": "Characterisation of a sensor by the standard EMVA 1288.",
        "defects": "Map of defect pixels from bias, dark and flat-field frames.",
        "calibrate-images": (
            "Raw frames corrected for bias, ISO speed, dark current, flat field and gain."
        ),
    },
}

JOBS: dict[str, Job] = {
    name: Job(name, summary, module)
    for module, jobs in _JOBS.items()
    for name, summary in jobs.items()
}


@dataclass(frozen=True)
class Simulation:
    """Data with known truth, as people ask for them: ``calibdask simulate NAME``.

    Attributes
    ----------
    name : str
        Its name on the command line.
    summary : str
        What it makes, in one line.
    module : str
        A module with ``Options``, a frozen dataclass of plain values that has at least `seed` and
        whose docstring lists the options, and ``simulate(output, options, progress)``, which
        writes into a directory, calls ``progress(done, total)`` and gives the paths it wrote.
    """

    name: str
    summary: str
    module: str

    def options(self) -> Any:
        """Give the class of the options."""
        return import_module(self.module).Options

    def simulate(
        self, output: Path, options: Any, progress: Callable[[int, int], None]
    ) -> Sequence[Path]:
        """Write the data and give their paths (ConfigError where an option or a place is wrong)."""
        paths: Sequence[Path] = import_module(self.module).simulate(output, options, progress)
        return paths


SIMULATIONS: dict[str, Simulation] = {
    one.name: one
    for one in (
        Simulation(
            "array",
            "DL2 files of an array of telescopes in ctapipe's format, with truth.json beside them.",
            "calibdask.array.simulate",
        ),
        Simulation(
            "sensor",
            "Raw frames of a camera as DNG or FITS in SPECTACLE's folders, with truth.npz beside.",
            "calibdask.sensor.simulate",
        ),
        Simulation(
            "muon-tables",
            "DL1 files with tables of muon rings in ctapipe's format, with truth.json beside them.",
            "calibdask.muon.simulate",
        ),
        Simulation(
            "muon-images",
            "DL1 files with images of muon rings in ctapipe's format, with truth.json beside them.",
            "calibdask.muon.simulate_images",
        ),
    )
}


def all_sections() -> dict[str, type[Section]]:
    """Return the sections of all jobs, which may stand in one configuration."""
    found: dict[str, type[Section]] = {}
    for module in _JOBS:
        found |= import_module(module).SECTIONS
    return found


def find_job(name: str) -> Job:
    """Give a job by its name.

    Raises
    ------
    ConfigError
        There is none; close names are suggested.
    """
    if name not in JOBS:
        hint = did_you_mean(name, JOBS)
        raise ConfigError(f"there is no job {name!r}{hint}; jobs are: {', '.join(JOBS)}")
    return JOBS[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name closest to a misspelt one, for the end of a message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
