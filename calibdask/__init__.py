"""Distributed, resumable, bit-reproducible calibration of telescopes and cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibdask.version import __version__

if TYPE_CHECKING:
    from calibdask.api import connect, load_config, plan, run, status

__all__ = ["__version__", "connect", "load_config", "plan", "run", "status"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `calibdask --help` and workers must start fast.
    if name in __all__:
        from calibdask import api

        return getattr(api, name)
    raise AttributeError(f"module 'calibdask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
