"""The muon jobs, made from their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.config import Slurm
from calibdask.muon.calibration import PsfFromMuons, ThroughputFromMuons
from calibdask.muon.config import SECTIONS, load_muon_config
from calibdask.registry import Prepared, all_sections

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["SECTIONS", "prepare", "template"]


def prepare(job: str, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
    """Read the configuration of a job and build its calibration (ConfigError for what is wrong)."""
    config = load_muon_config(job, paths, overrides, others=all_sections)
    kind = PsfFromMuons if job == PsfFromMuons.name else ThroughputFromMuons
    return Prepared(
        kind(config.options, config.campaign.shard_bytes, config.notes),
        config.campaign,
        config.overwrite,
        dict(config.document.values),
        config.input_url,
        config.output_url,
        config.document.get("Slurm", Slurm).model_extra or {},
    )


def template(job: str) -> str:
    """Write a commented configuration with all options at their defaults."""
    from calibdask.config import describe
    from calibdask.muon.config import JOB_SECTIONS

    return describe({name: SECTIONS[name] for name in JOB_SECTIONS[job]})
