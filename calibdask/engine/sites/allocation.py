"""Workers in the SLURM job that this process runs in, one step on each node."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calibdask.engine import probe
from calibdask.engine.sites import node_checks, slurm_checks
from calibdask.engine.sites.findings import failed
from calibdask.engine.sites.queue import tail
from calibdask.engine.sites.scheduler import (
    DaskSite,
    keeping,
    making_session,
    publish,
    running_scheduler,
    worker_arguments,
    worker_environment,
)
from calibdask.engine.sites.slurm_commands import hosts_of_allocation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from distributed import Client

    from calibdask.engine.dask import DaskExecutor
    from calibdask.engine.session import Session
    from calibdask.engine.sites.base import Settings
    from calibdask.engine.sites.findings import Finding

__all__ = ["Allocation", "step_environment"]


class Allocation(DaskSite):
    """Scheduler in this process, workers beside it on the nodes of its SLURM job."""

    def require(self) -> None:
        """Check that this process is in a SLURM job."""
        hosts_of_allocation()

    @contextmanager
    def start(self) -> Iterator[tuple[DaskExecutor, Client, str | None]]:
        """Run the scheduler here and start a step on each node."""
        with making_session(self.settings) as (session, security):
            steps = _Steps(self.settings, session)
            with running_scheduler(security, self.settings, {}) as (cluster, client):
                steps.scheduler = cluster.scheduler_address
                link = publish(session, cluster, self)
                with keeping(
                    steps, cluster, client, self.settings, session, self.where
                ) as executor:
                    yield executor, client, link

    def describe(self, patience: float) -> Iterator[Finding]:
        """Check SLURM, and send a probe to each node."""
        del patience
        for finding in slurm_checks.check_system():
            yield finding
            if finding.level == "FAIL":
                return
        found, address = node_checks.find_address({})
        yield found
        if address is not None:
            directory = self.settings.workdir or Path.cwd()
            with closing(node_checks.Post(address, directory)) as post:
                yield from _probe_by_steps(post)


BESIDE_OTHERS = ("--overlap", "--mem=0", "--kill-on-bad-exit=0", "--export=ALL")
"""Options of srun for a step that shares its nodes with others and lives longer than some."""


def step_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of srun for a step of workers that keep their files in `scratch`."""
    # The step's ntasks and memory are its own, not those of the job.
    jobs = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE")
    mine = {name: value for name, value in os.environ.items() if name not in jobs}
    return mine | worker_environment(scratch)


class _Steps:
    """Units that are steps of the SLURM job that this process runs in, one on each node."""

    local = False

    def __init__(self, settings: Settings, session: Session) -> None:
        self.scheduler = ""
        hosts = hosts_of_allocation()
        if settings.workers is not None:
            each = -(-settings.least_and_most[1] // len(hosts))
            hosts = [(host, each) for host, _ in hosts]
        self.processes = max(count for _, count in hosts)
        self.n_workers = sum(count for _, count in hosts)
        self._hosts = dict(hosts)
        self._logs = (settings.workdir or Path.cwd()).absolute() / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._arguments = worker_arguments(session)
        self._scratch = session.scratch
        self._memory = settings.worker_memory
        self._steps: dict[str, tuple[str, subprocess.Popen[bytes], Path]] = {}

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Start a step on the node that has fewest."""
        del avoid  # there are no others
        busy = [host for host, step, _ in self._steps.values() if step.poll() is None]
        host = min(self._hosts, key=busy.count)
        count = self._hosts[host]
        log = self._logs / f"worker-{number}-{host}.log"
        cpus = count * int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        command = [
            *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", f"--cpus-per-task={cpus}"),
            *(*BESIDE_OTHERS, f"--output={log}"),
            *(sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler),
            *("--name", f"worker-{number}", "--nworkers", str(count), "--nthreads", "1", "--nanny"),
            *("--memory-limit", self._memory_limit(count), "--death-timeout", "60"),
            *self._arguments,
        ]
        with log.with_suffix(".srun").open("wb") as complaints:
            step = subprocess.Popen(
                command,
                env=step_environment(self._scratch),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C is for this process: steps end in their turn
            )
        name = f"{os.environ['SLURM_JOB_ID']} step {number}"
        self._steps[name] = (host, step, log)
        return name

    def _memory_limit(self, count: int) -> str:
        if self._memory is not None:
            return str(self._memory)
        mib = os.environ.get("SLURM_MEM_PER_NODE")
        if mib is None and "SLURM_MEM_PER_CPU" in os.environ:
            cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
            mib = str(int(os.environ["SLURM_MEM_PER_CPU"]) * cpus)
        if not mib or mib == "0":
            return "auto"
        return str(int(mib) * 1024**2 // count)

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Look which steps run."""
        return {name: "RUNNING" for name in jobs if self._steps[name][1].poll() is None}

    def explain(self, job: str) -> str:
        """Return exit code and the end of the log."""
        host, step, log = self._steps[job]
        last = tail(log) or tail(log.with_suffix(".srun"))
        text = f"SLURM job {job} on {host}: ended with code {step.poll()}"
        return f"{text}; {log} ends with\n{last}" if last else f"{text}; nothing in its log {log}"

    def node(self, job: str) -> str | None:
        """Name the node of a step."""
        return self._steps[job][0]

    def where(self, job: str) -> str:
        """Name job, step, node and log."""
        host, _, log = self._steps[job]
        return f"SLURM job {job} on {host}, log {log}"

    def cancel(self, jobs: Collection[str]) -> None:
        """Let srun end its step."""
        for job in jobs:
            step = self._steps[job][1]
            if step.poll() is None:
                step.terminate()
        for job in jobs:
            try:
                self._steps[job][1].wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._steps[job][1].kill()


def _probe_by_steps(post: node_checks.Post) -> Iterator[Finding]:
    """Send the probe to every node of the allocation that this process runs in."""
    hosts = [host for host, _ in hosts_of_allocation()]
    command = [
        *("srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"),
        *BESIDE_OTHERS,
        *(sys.executable, "-c", node_checks.probe_source()),
    ]
    environment = step_environment(post.directory) | {probe.TASK: post.task(())}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=node_checks.SILENT_SECONDS,
        )  # fmt: skip
        said = done.stderr.strip()
    except subprocess.TimeoutExpired:
        said = f"not done after {node_checks.SILENT_SECONDS:.0f} s"
    node_checks.wait_until(lambda: post.complete(len(hosts)), node_checks.LATE_SECONDS)
    answers = post.answers()
    for node in sorted(set(hosts) - set(answers)):
        yield failed(
            f"node {node}: no report from the probe (srun: {said or 'said nothing'})",
            "see whether srun starts Python there",
        )
    for node, report in sorted(answers.items()):
        yield from node_checks.assess(report, f"node {node}", post.address, may_submit=False)
