"""The jobs of the array, made from their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.array.calibration import EnergyAsymmetryEstimation, InterCalibration
from calibdask.array.config import load_array_config
from calibdask.config import Slurm
from calibdask.registry import Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from calibdask.engine.protocol import Calibration

__all__ = ["prepare", "template"]


def prepare(job: str, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
    """Read the configuration of a job and build its calibration (ConfigError for what is wrong)."""
    config = load_array_config(paths, overrides)
    energy, inter = config.energy_asymmetry, config.inter_calibration
    shard_bytes = config.campaign.shard_bytes
    calibration: Calibration
    if job == "inter-calibration":
        calibration = InterCalibration(
            energy, shard_bytes, config.notes, bins=config.campaign.bins, inter=inter
        )
    else:
        calibration = EnergyAsymmetryEstimation(energy, shard_bytes, config.notes)
    section = inter if job == "inter-calibration" else energy
    return Prepared(
        calibration,
        config.campaign,
        section.overwrite,
        dict(config.document.values),
        section.input_url,
        section.output_url,
        config.document.get("Slurm", Slurm).model_extra or {},
    )


def template(job: str) -> str:
    """Write a commented configuration with all options at their defaults."""
    from calibdask.array.config import JOB_SECTIONS, SECTIONS
    from calibdask.config import describe

    return describe({name: SECTIONS[name] for name in JOB_SECTIONS[job]})
