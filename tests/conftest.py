from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test depends on time: kernels are compiled when first called, and machines are busy.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def _shared(name: str) -> Path:
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("CALIBDASK_SHARED_DATA", default)) / name
    if not path.is_dir():
        pytest.skip(f"no shared test data at {path}: set CALIBDASK_SHARED_DATA")
    return path


@pytest.fixture(scope="session")
def shared_array() -> Path:
    """Directory of array data shared between projects, where there is one."""
    return _shared("array")


@pytest.fixture(scope="session")
def shared_sensor() -> Path:
    """Directory of sensor data shared between projects, where there is one."""
    return _shared("sensor")


@pytest.fixture(scope="session")
def shared_simtel() -> Path:
    """Directory of sim_telarray files shared between projects, where there is one."""
    return _shared("simtel")
