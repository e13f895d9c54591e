"""A campaign of scripted shards on SLURM, started as people start it, and what became of it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import faults
import psutil

if TYPE_CHECKING:
    from pathlib import Path

SHARDS = 12
SECONDS = 1.0  # of each shard


@dataclass
class Ended:
    """How a run ended."""

    code: int
    output: str
    complaints: str
    seconds: float

    @property
    def digest(self) -> str:
        """The digest it printed last."""
        return self.output.split()[-1]

    def events(self, name: str) -> list[dict]:
        """What it told of one kind."""
        lines = [line for line in self.complaints.splitlines() if line.startswith("{")]
        return [one for one in map(json.loads, lines) if one["event"] == name]


@dataclass
class Campaign:
    """Twelve shards of one second each."""

    directory: Path
    cluster: str = "slurm"
    workers: str = "2"
    script: dict = field(default_factory=lambda: {"*": [f"sleep {SECONDS}!"]})
    settings: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    environment: dict = field(default_factory=dict)

    def __post_init__(self):
        self.inputs = self.directory / "in"
        if not self.inputs.exists():
            faults.write_inputs(self.inputs, SHARDS)
        self.output = self.directory / "out.h5"
        self.workdir = self.directory / "out.h5.work"
        self.journal = self.directory / "journal"

    def arguments(self) -> list[str]:
        settings = [
            f"Scripted.journal={self.journal}",
            f"Scripted.script={json.dumps(self.script)}",
            "Slurm.memory=500 MiB",
            "Slurm.walltime=00:10:00",
            *self.settings,
        ]
        return [
            *("scripted", "-i", str(self.inputs), "-o", str(self.output), "--no-report"),
            *("--cluster", self.cluster, "--workers", self.workers, *self.more),
            *(word for setting in settings for word in ("--set", setting)),
        ]

    def start(self):
        """Start the command line; with a process group of its own, as a shell does it."""
        self.began = time.monotonic()
        before = dict(os.environ)
        os.environ.update(self.environment)
        # A shell makes what it runs in the background deaf to Ctrl-C, and that is inherited.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return faults.start(*self.arguments(), start_new_session=True)
        finally:
            signal.signal(signal.SIGINT, heard)
            os.environ.clear()
            os.environ.update(before)

    def finish(self, process, timeout=240) -> Ended:
        code, output, complaints = faults.finish(process, timeout)
        return Ended(code, output, complaints, time.monotonic() - self.began)

    def run(self) -> Ended:
        return self.finish(self.start())

    # -- while it runs

    def done(self) -> int:
        """How many shards are stored (merges too, later)."""
        return sum(1 for _ in (self.workdir / "store").glob("*/*.pack"))

    def begun(self) -> int:
        """How many times a shard was begun."""
        return sum(n for name, n in faults.calls(self.journal).items() if name.endswith(".npy"))

    def wait_for(self, begun: int, timeout=60) -> None:
        faults.wait_for(lambda: self.begun() >= begun, timeout)

    def worker_jobs(self) -> list[str]:
        return json.loads((self.workdir / "session" / "session.json").read_text())["worker_jobs"]


def processes_of_job(job: str) -> list[psutil.Process]:
    """Every process of a job on this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


def nanny_and_worker(job: str) -> tuple[psutil.Process, psutil.Process]:
    """The process of a job that watches, and the one that computes."""
    watching = [
        one for one in processes_of_job(job) if "distributed.cli.dask_worker" in one.cmdline()
    ]
    [nanny] = watching
    return nanny, max(nanny.children(recursive=True), key=lambda one: one.memory_info().rss)


def node_of(slurm, job: str) -> str:
    return re.search(r"BatchHost=(\S+)", slurm.run("scontrol", "show", "job", job))[1]


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
