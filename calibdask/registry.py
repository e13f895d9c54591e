"""The jobs by name. Only strings, so that ``calibdask --help`` imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calibdask.errors import ConfigError
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
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
    inputs : tuple of str
        Inputs that the configuration names; the command line wins.
    output_url : str or None
        Output that the configuration names; the command line wins.
    jobqueue : mapping of str to mapping
        Options of dask-jobqueue by the section of the batch system.
    """

    calibration: AnyCalibration
    campaign: Campaign
    overwrite: bool
    config: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    output_url: str | None = None
    jobqueue: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A calibration as people call it.

    Attributes
    ----------
    name : str
        Its name on the command line.
    summary : str
        What it does, in one line.
    calibration : str
        The class of the calibration, as ``module:class``.
    """

    name: str
    summary: str
    calibration: str

    def load(self) -> type[AnyCalibration]:
        """Import the class of the calibration."""
        module, _, name = self.calibration.partition(":")
        found: type[AnyCalibration] = getattr(import_module(module), name)
        return found

    def prepare(self, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
        """Read the configuration files, later ones first in rank, and build the calibration.

        Raises
        ------
        ConfigError
            Listing everything that is wrong.
        """
        from calibdask.config import BATCH_SECTIONS, ENGINE_SECTIONS, Campaign, load_config

        kind = self.load()
        schema = {**kind.sections, **kind.further_sections, **ENGINE_SECTIONS}
        document = load_config(schema, paths, overrides, others=all_sections)
        campaign = document.get("Campaign", Campaign)
        main = document.first(kind.main())
        return Prepared(
            kind.configured(document, campaign),
            campaign,
            main.overwrite,
            dict(document.values),
            main.inputs,
            main.output_url,
            {
                name: document.get(name, section).model_extra or {}
                for name, section in BATCH_SECTIONS.items()
            },
        )

    def template(self) -> str:
        """Write a commented configuration with every option at its default."""
        from calibdask.config import ENGINE_SECTIONS, describe

        return describe({**self.load().sections, **ENGINE_SECTIONS})


JOBS: dict[str, Job] = {
    one.name: one
    for one in (
        Job(
            "energy-asymmetry-estimation",
            "Event-wise energy asymmetries of telescope pairs, one file per DL2 file.",
            "calibdask.array.asymmetry_estimation:EnergyAsymmetryEstimation",
        ),
        Job(
            "image-asymmetry-estimation",
            "Event-wise asymmetries of image sizes of telescope pairs, one file per DL2 file.",
            "calibdask.array.asymmetry_estimation:ImageAsymmetryEstimation",
        ),
        Job(
            "inter-calibration",
            "Relative optical throughput of telescopes of one type, from DL2 or asymmetries.",
            "calibdask.array.inter_calibration:InterCalibration",
        ),
        Job(
            "cross-calibration",
            "Throughput of telescopes of all types on one scale, from DL2 files and muons.",
            "calibdask.array.cross:CrossCalibration",
        ),
        Job(
            "timing-calibration",
            "Offsets of the telescopes' times, from the arrival of the same shower's light.",
            "calibdask.array.timing:TimingCalibration",
        ),
        Job(
            "calculate-throughput-muon",
            "Optical throughput of telescopes by time, from muon rings in DL1 files or images.",
            "calibdask.muon.throughput:ThroughputFromMuons",
        ),
        Job(
            "calculate-psf-muon",
            "Optical point spread function of telescopes, from muon rings in DL1 files or images.",
            "calibdask.muon.psf:PsfFromMuons",
        ),
        Job(
            "stack-images",
            "Mean, variance and extremes of each pixel over stacks of raw frames, exactly.",
            "calibdask.sensor.stack_images:StackImagesJob",
        ),
        Job(
            "bias",
            "Bias and read noise of each pixel and ISO speed.",
            "calibdask.sensor.bias:BiasJob",
        ),
        Job(
            "readnoise",
            "Read noise of each pixel and ISO speed.",
            "calibdask.sensor.bias:ReadNoiseJob",
        ),
        Job(
            "iso-normalisation",
            "Signal of a camera at each ISO speed relative to the lowest one.",
            "calibdask.sensor.iso:IsoNormalisationJob",
        ),
        Job(
            "dark-current",
            "Dark current of each pixel, hot pixels, and the law of its temperature.",
            "calibdask.sensor.dark:DarkCurrentJob",
        ),
        Job(
            "gain",
            "Gain of each pixel and channel by photon transfer, read noise, full well.",
            "calibdask.sensor.gain:GainJob",
        ),
        Job(
            "flatfield",
            "Relative response of each pixel: vignetting and pixel response (PRNU).",
            "calibdask.sensor.flat:FlatFieldJob",
        ),
        Job(
            "emva1288",
            "Characterisation of a sensor by the standard EMVA 1288.",
            "calibdask.sensor.emva:Emva1288Job",
        ),
        Job(
            "defects",
            "Map of defect pixels from bias, dark and flat-field frames.",
            "calibdask.sensor.defects:DefectsJob",
        ),
        Job(
            "calibrate-images",
            "Raw frames corrected for bias, ISO speed, dark current, flat field and gain.",
            "calibdask.sensor.calibrate:CalibrateImagesJob",
        ),
    )
}

_SECTIONS = ("calibdask.array.config", "calibdask.muon.config", "calibdask.sensor.config")
"""Modules that list the sections of their jobs in ``SECTIONS``."""


@dataclass(frozen=True)
class Simulation:
    """Data with known truth, as people ask for them: ``calibdask simulate NAME``.

    Attributes
    ----------
    name : str
        Its name on the command line.
    summary : str
        What it makes, in one line.
    where : str
        Module and class of its options (see `calibdask.simulation`), as ``module:Class``.
    writer : str
        Module and function ``write(output, options, progress)`` that writes into a directory, calls
        ``progress(done, total)``, and returns the paths it wrote, or what has them as ``paths``.
    """

    name: str
    summary: str
    where: str
    writer: str

    def options(self) -> Any:
        """Return the class of the options."""
        return _imported(self.where)

    def simulate(
        self, output: Path, options: Any, progress: Callable[[int, int], None]
    ) -> Sequence[Path]:
        """Write the data and return their paths.

        Raises
        ------
        ConfigError
            An option is wrong, or a file exists.
        """
        made = _imported(self.writer)(output, options, progress)
        paths: Sequence[Path] = made if isinstance(made, tuple) else made.paths
        return paths


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


SIMULATIONS: dict[str, Simulation] = {
    one.name: one
    for one in (
        Simulation(
            "array",
            "DL2 files of an array of telescopes in ctapipe's format, with truth.json beside them.",
            "calibdask.array.simulation:ArraySimulation",
            "calibdask.array.simulate:simulate_array",
        ),
        Simulation(
            "sensor",
            "Raw frames of a camera as DNG or FITS in SPECTACLE's folders, with truth.npz beside.",
            "calibdask.sensor.simulation:SensorSimulation",
            "calibdask.sensor.simulate:simulate_sensor",
        ),
        Simulation(
            "muon-tables",
            "DL1 files with tables of muon rings in ctapipe's format, with truth.json beside them.",
            "calibdask.muon.simulate:MuonSimulation",
            "calibdask.muon.simulate:simulate_ring_tables",
        ),
        Simulation(
            "muon-images",
            "DL1 files with images of muon rings in ctapipe's format, with truth.json beside them.",
            "calibdask.muon.image_simulation:MuonImageSimulation",
            "calibdask.muon.simulate_images:simulate_ring_images",
        ),
    )
}


def all_sections() -> dict[str, type[Section]]:
    """Return the sections of all jobs, which may be in one configuration."""
    found: dict[str, type[Section]] = {}
    for module in _SECTIONS:
        found |= import_module(module).SECTIONS
    return found


def find_job(name: str) -> Job:
    """Return a job by its name.

    Raises
    ------
    ConfigError
        There is none; close names are suggested.
    """
    if name not in JOBS:
        hint = did_you_mean(name, JOBS)
        raise ConfigError(f"there is no job {name!r}{hint}; jobs are: {', '.join(JOBS)}")
    return JOBS[name]
