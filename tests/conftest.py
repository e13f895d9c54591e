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


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes for ``-n auto``: one more than CPUs, for those that wait.

    By itself it would count cores: one on a machine of two threads.
    """
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no process ends long after the others.

    A file is run by one process (``--dist loadfile --no-loadscope-reorder``). Tests on a real SLURM
    mostly wait: each of their files is followed by two that keep the CPUs busy meanwhile.
    """
    marked = {item.path for name in ("slow", "cluster") for item in items
              if item.get_closest_marker(name)}  # fmt: skip
    paths = list(dict.fromkeys(item.path for item in items))
    waiting = [path for path in paths if path.parent.name == "slurm"]
    busy = [path for path in paths if path in marked and path not in waiting]
    turn = {path: 3 * i for i, path in enumerate(waiting)}
    turn |= {path: 3 * (i // 2) + 1 + i % 2 for i, path in enumerate(busy)}
    items.sort(key=lambda item: turn.get(item.path, 3 * len(paths)))


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
