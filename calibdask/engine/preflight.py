"""Before the first task: every worker must run the same code, or the numbers would be others.

Workers that this package starts check themselves, before Dask starts in a job (``python -m
calibdask.engine.preflight``) and whenever one starts (``dask worker --preload
calibdask.engine.preflight``). Those of somebody else's scheduler are asked. And every call says
which code it expects, for workers that join later.
"""

from __future__ import annotations

import logging
import os
import platform
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calibdask.engine.provenance import code_digest
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from distributed import Client, Worker

__all__ = ["EXPECTED_CODE", "OTHER_CODE", "check_workers", "dask_setup"]

EXPECTED_CODE = "CALIBDASK_EXPECTED_CODE"
"""Environment variable that tells a worker which code the run expects."""

OTHER_CODE = (
    "Start the workers in the environment of this command (same installation, same PYTHONPATH) and"
    " run the same command again: what was computed is kept"
)
"""What to do about a worker with other code."""

_SHOWN = 5


def dask_setup(worker: Worker) -> None:
    """Check a worker of ours as it starts, and import what its tasks need.

    Raises
    ------
    SystemExit
        It runs other code than the run expects. Dask would log any other exception and carry on.
    """
    if problem := _problem():
        text = f"this worker ({worker.name} on {platform.node()}) {problem}. {OTHER_CODE}"
        logging.getLogger(__name__).critical("%s", text)
        raise SystemExit(1)


def _problem() -> str | None:
    expected = os.environ.get(EXPECTED_CODE)
    try:
        import_module("calibdask.engine.tasks")
    except ImportError as error:
        return f"cannot import calibdask.engine.tasks: {error}"
    if expected in (None, code_digest()):
        return None
    return f"has calibdask {code_digest()}, and the run was started with {expected}"


def _probe() -> Callable[[], dict[str, str]]:
    """Return a function that tells what a worker would compute with.

    It is nested so that it travels by value: looked up by its name, it would be the worker's own
    version of it, or no function at all, and the worker would break off the connection.
    """

    def probe() -> dict[str, str]:
        import socket

        found = {"host": socket.gethostname()}
        try:
            from calibdask.engine.provenance import code_digest

            found["calibdask"] = code_digest()
        except ImportError as error:
            found["calibdask"] = f"none that can be used ({error})"
        try:
            import numpy as np

            found["NumPy"] = np.__version__
        except ImportError as error:
            found["NumPy"] = f"none that can be used ({error})"
        return found

    return probe


def check_workers(client: Client, checked: set[str]) -> None:
    """Ask every worker that was not asked before what it would compute with.

    Parameters
    ----------
    client : distributed.Client
        The connection to the scheduler.
    checked : set of str
        Addresses of the workers that were found good; those found now are added.

    Raises
    ------
    ConfigError
        A worker has another calibdask, NumPy or Python, or none.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    checked.intersection_update(workers)
    asked = [address for address in workers if address not in checked]
    # Bytes of a function mean nothing to another Python, so that is asked first, by name.
    pythons = _ask(client, platform.python_version, asked)
    wrong = {
        address: f"Python {found}, here {platform.python_version()}"
        for address, found in pythons.items()
        if isinstance(found, Exception) or _minor(found) != _minor(platform.python_version())
    }
    here = _probe()()
    same = [address for address in pythons if address not in wrong]
    for address, found in _ask(client, _probe(), same).items():
        other = (
            [str(found)]
            if isinstance(found, Exception)
            else [f"{what} {found[what]}, here {here[what]}" for what in ("calibdask", "NumPy")
                  if found[what] != here[what]]
        )  # fmt: skip
        if other:
            wrong[address] = "; ".join(other)
        else:
            checked.add(address)
    if wrong:
        lines = [
            f"  {workers[address]['name']} on {workers[address]['host']} ({address}): {text}"
            for address, text in sorted(wrong.items())
        ]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"]
        raise ConfigError(
            f"{len(wrong)} of {len(workers)} workers run other code than this command:\n"
            + "\n".join(lines)
            + f"\n{OTHER_CODE}"
        )


def _ask(client: Client, function: Callable[[], Any], workers: list[str]) -> Mapping[str, Any]:
    """Run a function on workers; those that have gone meanwhile give no answer."""
    if not workers:
        return {}
    answers = client.run(function, workers=workers, on_error="return")
    return {
        address: answer for address, answer in answers.items() if not isinstance(answer, OSError)
    }


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


if __name__ == "__main__":
    if _found := _problem():
        raise SystemExit(f"this node ({platform.node()}) {_found}. {OTHER_CODE}")
