"""The jobs of the array, made from their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.array.calibration import (
    EnergyAsymmetryEstimation,
    ImageAsymmetryEstimation,
    InterCalibration,
)
from calibdask.array.config import SECTIONS, CrossCalibrationOptions, load_array_config
from calibdask.array.cross import CrossCalibration
from calibdask.array.timing import TimingCalibration
from calibdask.config import Slurm
from calibdask.registry import Prepared, all_sections

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from calibdask.array.config import AsymmetryOptions, InterCalibrationOptions
    from calibdask.engine.protocol import AnyCalibration

__all__ = ["SECTIONS", "prepare", "template"]


def prepare(job: str, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
    """Read the configuration of a job and build its calibration (ConfigError for what is wrong)."""
    config = load_array_config(paths, overrides, others=all_sections)
    inter, shard_bytes = config.inter_calibration, config.campaign.shard_bytes
    calibration: AnyCalibration
    section: AsymmetryOptions | InterCalibrationOptions
    match job:
        case "inter-calibration":
            of_images = inter.asymmetry_label == config.image_asymmetry.label
            options = config.image_asymmetry if of_images else config.energy_asymmetry
            section = inter
            calibration = InterCalibration(
                options, shard_bytes, config.notes, bins=config.campaign.bins, inter=inter
            )
        case "image-asymmetry-estimation":
            section = config.image_asymmetry
            calibration = ImageAsymmetryEstimation(section, shard_bytes, config.notes)
        case "cross-calibration":
            section = config.cross_calibration
            calibration = CrossCalibration(
                section, shard_bytes, config.notes, bins=config.campaign.bins
            )
        case "timing-calibration":
            section = config.timing_calibration
            calibration = TimingCalibration(
                section, shard_bytes, config.notes, bins=config.campaign.bins
            )
        case _:
            section = config.energy_asymmetry
            calibration = EnergyAsymmetryEstimation(section, shard_bytes, config.notes)
    return Prepared(
        calibration,
        config.campaign,
        section.overwrite,
        dict(config.document.values),
        section.inputs if isinstance(section, CrossCalibrationOptions) else section.input_url,
        section.output_url,
        config.document.get("Slurm", Slurm).model_extra or {},
    )


def template(job: str) -> str:
    """Write a commented configuration with all options at their defaults."""
    from calibdask.array.config import JOB_SECTIONS
    from calibdask.config import describe

    return describe({name: SECTIONS[name] for name in JOB_SECTIONS[job]})
