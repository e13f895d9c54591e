"""The sensor's jobs, made from their configuration."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.config import ENGINE_SECTIONS, Campaign, Section, Slurm, load_config
from calibdask.registry import Prepared, all_sections
from calibdask.sensor import config
from calibdask.sensor.config import Frames, Stacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calibdask.engine.protocol import AnyCalibration

__all__ = ["SECTIONS", "prepare", "template"]

_JOBS: dict[str, tuple[type[Section], str]] = {
    "stack-images": (config.StackImages, "stack_images:StackImages"),
    "bias": (config.Bias, "bias:Bias"),
    "readnoise": (config.ReadNoise, "bias:ReadNoise"),
    "iso-normalisation": (config.IsoNormalisation, "iso:IsoNormalisation"),
    "dark-current": (config.DarkCurrent, "dark:DarkCurrent"),
    "gain": (config.Gain, "gain:Gain"),
    "flatfield": (config.FlatField, "flat:FlatField"),
    "emva1288": (config.Emva1288, "emva:Emva1288"),
    "defects": (config.Defects, "defects:Defects"),
    "calibrate-images": (config.CalibrateImages, "calibrate:CalibrateImages"),
}
"""Section of the configuration and calibration of each job."""

_PRODUCTS = ("bias", "readnoise", "iso", "dark", "flat", "gain", "defects")
"""Options that name the output of another job."""

SECTIONS: Mapping[str, type[Section]] = {
    "Frames": Frames,
    "Stacks": Stacks,
    **{section.__name__: section for section, _ in _JOBS.values()},
    **ENGINE_SECTIONS,
}
"""All sections: those of other jobs may stand in the same file."""


def prepare(job: str, paths: Sequence[Path | str], overrides: Mapping[str, object]) -> Prepared:
    """Read the configuration of a job and build its calibration (ConfigError for what is wrong)."""
    document = load_config(SECTIONS, paths, overrides, others=all_sections)
    model, place = _JOBS[job]
    section: Any = document.get(model.__name__, model)
    campaign = document.get("Campaign", Campaign)
    module, _, name = place.partition(":")
    build = getattr(import_module(f"calibdask.sensor.{module}"), name)
    given = ((what, getattr(section, what, None)) for what in _PRODUCTS)
    calibration: AnyCalibration = build(
        frames=document.get("Frames", Frames),
        stacks=document.get("Stacks", Stacks),
        shard_bytes=campaign.shard_bytes,
        # Workers may run elsewhere, so that a relative path would lead them astray.
        products=tuple((what, str(Path(path).absolute())) for what, path in given if path),
        options=section,
    )
    return Prepared(
        calibration,
        campaign,
        section.overwrite,
        dict(document.values),
        slurm=document.get("Slurm", Slurm).model_extra or {},
    )


def template(job: str) -> str:
    """Write a commented configuration with all options at their defaults."""
    from calibdask.config import describe

    model, _ = _JOBS[job]
    return describe({model.__name__: model, "Frames": Frames, "Stacks": Stacks, **ENGINE_SECTIONS})
