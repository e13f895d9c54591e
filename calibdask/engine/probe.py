"""What the doctor runs on a compute node, to see it as a worker there would.

The doctor puts the source of this module into a job script. So it needs nothing but the standard
library, also where calibdask is missing or the home directory is another one, and keeps to what
Python 3.8 understands, so that a wrong Python can still say which one it is.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["TASK", "main"]

TASK = "CALIBDASK_PROBE"
"""Environment variable that tells the probe what to do, as JSON."""

_CONNECT_SECONDS = 10
_IMPORT_SECONDS = 240
_READ_TRIES = 20  # every half second: network file systems show a new file late
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_IMPORT = """
import importlib, json, sys, time
begin = time.perf_counter()
for name in sys.argv[1:]:
    importlib.import_module(name)
import calibdask
seconds = time.perf_counter() - begin
found = {"seconds": seconds, "version": calibdask.__version__, "path": calibdask.__file__}
try:
    from calibdask.engine.provenance import code_digest
    found["code"] = code_digest()
except ImportError:
    found["code"] = calibdask.__version__
print(json.dumps(found))
"""


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "nothing"


def _imported(modules: list[str]) -> dict[str, Any]:
    """Import what a worker imports, in a process of its own: whatever it does, the probe lives."""
    command = [sys.executable, "-c", _IMPORT, *modules]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_IMPORT_SECONDS
        )
        if done.returncode:
            return {"error": _last_line(done.stderr)}
        found: dict[str, Any] = json.loads(_last_line(done.stdout))
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {_IMPORT_SECONDS} s"}
    except ValueError:
        return {"error": f"it printed {_last_line(done.stdout)}"}
    return found


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _shared(directory: str) -> dict[str, str]:
    """Read what the doctor wrote."""
    path = Path(directory, "token")
    for _ in range(_READ_TRIES):
        if path.exists():
            break
        time.sleep(0.5)
    try:
        return {"token": path.read_text(encoding="ascii")}
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def _file_system(path: str) -> str:
    """Name the type of the file system that a path is on."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, place, name = line.split()[:3]
        inside = (os.path.realpath(path) + "/").startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, name
    return kind


def _scratch(directory: str | None) -> dict[str, Any]:
    """Write where a worker keeps its temporary files."""
    place = directory or tempfile.gettempdir()
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"calibdask")
        status = os.statvfs(place)
    except OSError as error:
        return {"path": place, "error": str(error)}
    free = status.f_bavail * status.f_frsize
    return {"path": place, "free": free, "kind": _file_system(place)}


def _may_submit(header: str) -> dict[str, str]:
    """Ask whether a job may be submitted from here, without submitting it."""
    script = f"#!/bin/sh\n{header}\ntrue\n"
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip
    except OSError as error:
        return {"error": str(error)}
    except subprocess.TimeoutExpired:
        return {"error": "sbatch gave no answer in 30 s"}
    return {"error": _last_line(done.stderr)} if done.returncode else {}


def _report_to(address: list[Any], report: dict[str, Any]) -> dict[str, Any]:
    """Send the report as a worker would connect, and let the doctor connect to us."""
    begin = time.time()
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family) as here:
            here.bind(("", 0))
            here.listen(1)
            with socket.create_connection(tuple(address), timeout=_CONNECT_SECONDS) as there:
                network = {"seconds": time.time() - begin}
                port = here.getsockname()[1]
                message = dict(report, network=network, port=port, time=time.time())
                there.sendall(json.dumps(message).encode() + b"\n")
                there.settimeout(2 * _CONNECT_SECONDS)
                if there.recv(1):
                    return network
                return {"error": "the other side hung up"}
    except OSError as error:
        return {"error": str(error)}


def _write(directory: str, report: dict[str, Any]) -> str:
    """Leave the report in the shared directory."""
    path = Path(directory, f"answer-{report['node']}.json")
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(report), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        return f"cannot write {path}: {error}"
    return f"wrote {path}"


def main() -> None:
    """Do what the doctor asks, and tell it over the network, by a file, and in the job's log."""
    task = json.loads(os.environ.pop(TASK))
    host = socket.gethostname()
    report = {
        "token": task["token"],
        "host": host,
        "node": os.environ.get("SLURMD_NODENAME", host),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": _versions(task["packages"]),
        "imported": _imported(task["modules"]),
        "threads": {name: os.environ.get(name) for name in _THREADS},
        "shared": _shared(task["directory"]),
        "scratch": _scratch(os.environ.get("DASK_TEMPORARY_DIRECTORY")),
        "sbatch": _may_submit(task["header"]),
    }
    report["network"] = _report_to(task["address"], report)
    written = _write(task["directory"], report)
    # Without the token: others may read the log of a job.
    sys.stdout.write(f"{json.dumps(dict(report, token=''))}\n{written}\n")


if __name__ == "__main__":
    main()
