"""A real SLURM for tests: the one that slurm/one-machine/start.sh starts, and no other."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "TIMEOUT"}


@dataclass(frozen=True)
class OneMachine:
    """The SLURM under test.

    Attributes
    ----------
    key : str
        What marks the jobs of these tests: others may use the same SLURM meanwhile.
    """

    key: str

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; give what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    @property
    def partitions(self) -> list[str]:
        """Names of the partitions."""
        return self.run("sinfo", "-h", "-o", "%R").split()

    def jobs(self) -> dict[str, str]:
        """State of each job of these tests that waits, runs or is ending."""
        rows = self.run("squeue", "-h", "-o", "%A|%w|%T").splitlines()
        jobs = [row.split("|") for row in rows]
        return {job: state for job, key, state in jobs if key == self.key and state not in ENDED}

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain; jobs: {self.jobs()}")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Iterator[OneMachine]:
    """Return the SLURM under test, or say why there is none."""
    if os.environ.get("CALIBDASK_TEST_SLURM") != "1":
        pytest.skip("set CALIBDASK_TEST_SLURM=1 after slurm/one-machine/start.sh")
    one = OneMachine(f"calibdask-{uuid4().hex[:12]}")
    name = re.search(r"ClusterName\s*=\s*(\S+)", one.run("scontrol", "show", "config"))
    if name is None or name[1] != "emul":
        # These tests cancel jobs and stop nodes.
        pytest.fail(f"this is the cluster {name and name[1]}, and not one for tests: unset"
                    " CALIBDASK_TEST_SLURM")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for command in ("SBATCH", "SALLOC", "SLURM"):
            patch.setenv(f"{command}_WCKEY", one.key)
        yield one
        if left := one.jobs():
            one.run("scancel", "--quiet", *left)


@pytest.fixture(autouse=True)
def _no_job_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "slurm" not in request.fixturenames:
        yield
        return
    one: OneMachine = request.getfixturevalue("slurm")
    yield
    end = time.monotonic() + 15  # a job that was cancelled takes some seconds to go
    while (left := one.jobs()) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        one.run("scancel", "--quiet", *left)
        one.wait(lambda: not one.jobs(), 30)
        pytest.fail(f"jobs were left behind: {left}")
