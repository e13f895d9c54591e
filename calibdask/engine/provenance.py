"""Where a result comes from: inputs, versions, configuration, machine."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import platform
import socket
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.errors import CalibdaskError
from calibdask.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "code_digest",
    "cpu_class",
    "describe_activity",
    "iso_time",
    "make_portable",
    "new_id",
    "user_name",
    "versions",
]

_PACKAGES = ("numpy", "tables", "astropy", "scipy", "numba", "dask", "distributed", "ctapipe")


@functools.cache
def code_digest() -> str:
    """Name this very code: the version, and a digest of the package's sources.

    An installation that is edited in place keeps its version while its numbers may change.
    """
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        total.update(f"{path.relative_to(package).as_posix()} {len(source)}\n".encode())
        total.update(source)
    return f"{__version__}+{total.hexdigest()[:12]}"


@functools.cache
def cpu_class() -> str:
    """Name the processor class: results are bit-identical within one.

    NumPy picks its exp and log by instruction set, and BLAS its kernels, so two classes may differ
    in the last bit.
    """
    from importlib import import_module

    umath = import_module("numpy._core._multiarray_umath")  # the only place NumPy tells it
    chosen = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    used = [*umath.__cpu_baseline__, *chosen]
    short = hashlib.sha256(" ".join(used).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{chosen[-1] if chosen else 'baseline'}-{short}"


def make_portable() -> None:
    """Keep NumPy and OpenBLAS to their baseline, in this process and those it starts.

    Raises
    ------
    CalibdaskError
        NumPy is imported already, and has chosen.
    """
    if "numpy" in sys.modules:
        raise CalibdaskError("portable numerics must be chosen before NumPy is imported")
    # Which features NumPy chooses from depends on its build, and only NumPy knows.
    ask = "from numpy._core._multiarray_umath import __cpu_dispatch__ as d; print(*d)"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    os.environ["NPY_DISABLE_CPU_FEATURES"] = answer.stdout.strip()
    if platform.machine() == "x86_64":
        os.environ["OPENBLAS_CORETYPE"] = "Nehalem"


def versions() -> dict[str, str]:
    """Return the versions of Python, calibdask and the libraries that make the numbers."""
    found = {"python": platform.python_version(), "calibdask": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def iso_time(seconds: float) -> str:
    """Write a Unix time as UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6]


def describe_activity(
    *,
    activity_id: str,
    name: str,
    started: float,
    stopped: float,
    status: str,
    exit_code: int,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a run in the form of ctapipe's provenance log: an activity with its ins and outs."""
    return {
        "activity_name": f"calibdask {name}",
        "activity_uuid": activity_id,
        "start": {"time_utc": iso_time(started)},
        "stop": {"time_utc": iso_time(stopped)},
        "duration_min": round((stopped - started) / 60, 4),
        "status": status,
        "exit_code": exit_code,
        "system": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpu_class": cpu_class(),
            "host": socket.gethostname(),
            "executable": sys.executable,
            "arguments": sys.argv,
            "start_time_utc": iso_time(started),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        },
        "versions": versions(),
        "input": list(inputs),
        "output": list(outputs),
        "config": dict(config),
        **more,
    }


def user_name() -> str:
    """Return the name of the user, or the number where there is none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def new_id() -> str:
    """Make a random identifier for an activity or a product."""
    return str(uuid.uuid4())
