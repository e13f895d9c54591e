"""What the engine costs from ten shards to a hundred thousand: ``make scale``.

Everything is synthetic: inputs of three numbers, and a map step that computes for as long as it is
told. Two local workers throughout. Each line is measured in a process of its own, so that its
memory is its own. Nothing here fails because something was slow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from tiny import MeanCounts

from calibdask import api
from calibdask.engine import events, executors
from calibdask.engine import plan as plan_module
from calibdask.engine.account import Account
from calibdask.engine.plan import Plan, make_plan
from calibdask.engine.protocol import InputRef, Shard
from calibdask.engine.provenance import cpu_class, versions
from calibdask.engine.run import execute
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
TESTS = HERE.parent
WORKERS = 2
EFFICIENCY = {0.001: 4000, 0.01: 1000, 0.1: 200, 1.0: 40}  # seconds of a shard: how many of them
END_TO_END = (1_000, 10_000)
RATE = 2_000
RATE_ORDER = ("tls", "tcp", "tcp", "tls", "tls", "tcp")  # the best of each counts
CAMPAIGN = 100_000, 200  # shards and workers that the extrapolation is for


@dataclass(frozen=True)
class Timed(MeanCounts):
    """The mean of counts, with so many seconds of computing for each shard."""

    seconds: float = 0.0

    name = "timed"

    def read(self, shard):
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return super().read(shard)


def write_inputs(directory: Path, count: int) -> Path:
    """Write `count` different inputs of three numbers."""
    directory.mkdir(parents=True)
    for number in range(count):
        np.save(directory / f"{number:06d}.npy", np.array([number, number + 1, 2 * number]))
    return directory


# -- what is measured, each in a process of its own -----------------------------------------------


def run_once(inputs: str, output: str, seconds: float) -> dict[str, float]:
    """Run a campaign on local workers and tell when what happened."""
    marks: dict[str, float] = {}
    mapped: list[float] = []
    started = time.perf_counter()

    def listen(event: events.Event) -> None:
        now = time.perf_counter() - started
        match event:
            case events.Progress(done=done, total=total) if done == total:
                marks["looked"] = now
            case events.RunStarted() | events.StageStarted() | events.RunEnded():
                marks[type(event).__name__] = now
            case events.TaskEnded(group="map", wall_seconds=wall):
                mapped.append(wall)
                marks["mapped"] = now

    result = api.run(
        Timed(seconds=seconds), [inputs], output,
        cluster="local", workers=WORKERS, report=False, dashboard=False, listener=listen,
    )  # fmt: skip
    files = list(Path(f"{output}.work/store").rglob("*.pack"))
    map_wall = marks["mapped"] - marks["StageStarted"]
    cost = result.plan.estimate(WORKERS)
    return {
        "tasks": cost.tasks,
        "calls": cost.calls,
        "plan": marks["looked"],
        "start": marks["RunStarted"] - marks["looked"],
        "map": map_wall,
        "rest": marks["RunEnded"] - marks["mapped"],
        "wall": marks["RunEnded"],
        "cpu": time.process_time(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "efficiency": sum(mapped) / (WORKERS * map_wall),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "cached": result.account.cached,
    }


def rate_once(inputs: str, scratch: str, protocol: str, most: int) -> dict[str, float]:
    """Run the tasks of a plan, `most` in a call, over TLS or plain TCP."""
    from distributed import Client, LocalCluster, Security

    from calibdask.engine.dask import DaskExecutor

    plan = make_plan(Timed(), [inputs])
    context = WorkContext(plan.calibration, Store(Path(scratch)))
    count: Counter[str] = Counter()

    def listen(event: events.Event) -> None:
        count[type(event).__name__] += 1

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", protocol=f"{protocol}://",
            security=Security.temporary() if protocol == "tls" else None,
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            worker_dashboard_address=None,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        mock.patch.object(executors, "_MOST_TASKS", most),
    ):  # fmt: skip
        executor = DaskExecutor(client, protocol)
        wall, cpu = time.perf_counter(), time.process_time()
        execute(plan, context, executor, Account(), listen)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        calls = plan.estimate(WORKERS).calls
    tasks = count["TaskEnded"]
    return {"tasks": tasks, "calls": calls, "rate": tasks / wall, "cpu": cpu}


def _child(function: str, *arguments: object) -> dict[str, float]:
    """Call one of the functions above in a new process."""
    code = f"import json, scale, sys; print(json.dumps(scale.{function}(*json.loads(sys.argv[1]))))"
    path = os.pathsep.join([str(TESTS), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{function}{arguments} failed:\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


# -- the tables -----------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def _spaced(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def efficiency(scratch: Path, scale: float) -> str:
    """Part of the workers' time that is map work, while there is map work."""
    rows = []
    for seconds, most in EFFICIENCY.items():
        count = max(int(most * scale), 4)
        inputs = write_inputs(scratch / f"efficiency-{seconds}", count)
        one = _child("run_once", str(inputs), str(scratch / f"{seconds}.h5"), seconds)
        rows.append(
            [f"{1000 * seconds:.0f} ms", _spaced(count), f"{one['map']:.1f} s",
             f"{100 * one['efficiency']:.1f} %"]
        )  # fmt: skip
    return _table(["a shard takes", "shards", "map phase", "workers' time in map work"], rows)


def end_to_end(scratch: Path, scale: float) -> tuple[str, dict[str, float]]:
    """Plan, run and merge; then the same command again with everything stored."""
    found, rows = {}, []
    for most in END_TO_END:
        count = max(int(most * scale), 4)
        inputs, output = scratch / f"end-{most}", scratch / f"end-{most}.h5"
        write_inputs(inputs, count)
        for name in ("new", "stored"):
            one = _child("run_once", str(inputs), str(output), 0.0)
            output.unlink()
            found[name, most] = one | {"count": count}
            if one["cached"] != (count if name == "stored" else 0):
                raise RuntimeError(f"{one['cached']} of {count} shards were stored: not measured")
            rows.append(
                [_spaced(count), name, *(f"{one[key]:.1f} s" for key in
                 ("wall", "plan", "start", "map", "rest", "cpu")),
                 f"{one['peak'] / 1e6:.0f} MB", _spaced(one["files"]),
                 f"{one['bytes'] / one['files'] / 1e3:.1f} kB"]
            )  # fmt: skip
        shutil.rmtree(f"{output}.work")
    few, many = (found["new", most] for most in END_TO_END)
    per_shard = (many["peak"] - few["peak"]) / (many["count"] - few["count"])
    model = {
        **{f"more_{key}": many[key] - few[key] for key in ("cpu", "tasks", "calls")},
        "bytes_per_shard": per_shard,
        "bytes": few["peak"] - per_shard * few["count"],
        "bytes_per_result": many["bytes"] / many["files"],
    }
    head = ["shards", "results are", "wall", "plan", "start workers", "map", "rest", "driver CPU",
            "driver peak", "files", "each"]  # fmt: skip
    text = _table(head, rows)
    return f"{text}\nThe driver's memory grows by {per_shard / 1e3:.1f} kB a shard.\n", model


def rates(scratch: Path, scale: float) -> tuple[str, dict[str, float]]:
    """Tasks a second, over TLS and over plain TCP, in calls of many and of one."""
    inputs = write_inputs(scratch / "rates", max(int(RATE * scale), 4))
    found: dict[tuple[int, str], dict[str, float]] = {}
    rows = []
    for most in (executors._MOST_TASKS, 1):
        for number, protocol in enumerate(RATE_ORDER):
            store = scratch / f"rates-{most}-{number}"
            one = _child("rate_once", str(inputs), str(store), protocol, most)
            shutil.rmtree(store)
            known = found.get((most, protocol))
            if known is None or one["rate"] > known["rate"]:
                found[most, protocol] = one
        tls, tcp = found[most, "tls"], found[most, "tcp"]
        rows.append(
            [_spaced(tls["tasks"]), _spaced(tls["calls"]), f"{tls['rate']:.0f} /s",
             f"{tcp['rate']:.0f} /s", f"{100 * (1 - tls['rate'] / tcp['rate']):.0f} %"]
        )  # fmt: skip
    many, single = (found[most, "tls"] for most in (executors._MOST_TASKS, 1))
    per_call = (single["cpu"] - many["cpu"]) / max(single["calls"] - many["calls"], 1)
    head = ["tasks", "in calls", "TLS", "plain TCP", "TLS costs"]
    text = _table(head, rows)
    return text, {"seconds_per_call": per_call}


def extrapolation(model: Mapping[str, float]) -> str:
    """Compare what a plan reckons with what was measured, and let it reckon for a campaign."""
    n_shards, workers = CAMPAIGN
    reckoned = {
        "seconds_per_task": plan_module.DRIVER_SECONDS_PER_TASK,
        "seconds_per_call": plan_module.DRIVER_SECONDS_PER_CALL,
        "bytes": plan_module.DRIVER_BYTES,
        "bytes_per_shard": plan_module.DRIVER_BYTES_PER_SHARD,
        "bytes_per_result": plan_module.BYTES_PER_RESULT,
    }
    lines = [
        f"{name:<18} measured {model[name]:.3g}, a plan reckons with {value:.3g}"
        for name, value in reckoned.items()
    ]
    shards = tuple(
        Shard(number, (InputRef(f"{number:06d}.npy", f"152:{number:064x}", 152, 0),), n_bytes=152)
        for number in range(n_shards)
    )
    cost = Plan(Timed(), shards).estimate(workers)
    return "\n".join(lines) + (
        f"\n\nExtrapolated with a plan's numbers, not measured: {_spaced(n_shards)} shards on"
        f" {workers} workers cost one stage\n"
        f"  {_spaced(cost.tasks)} tasks in {_spaced(cost.calls)} calls,"
        f" {cost.driver_seconds:.0f} s of the driver's CPU and {cost.driver_bytes / 1e6:.0f} MB"
        " of its memory;\n"
        f"  {_spaced(cost.results)} files in the store, {cost.result_bytes / 1e6:.0f} MB or more;\n"
        f"  {_spaced(cost.metadata)} operations on the file system that name a file.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the tables here as well")
    parser.add_argument("--scale", type=float, default=1.0, help="size of it all, to try things")
    given = parser.parse_args(arguments)
    found = versions()
    told = ", ".join(f"{name} {found[name]}" for name in ("python", "dask", "distributed", "numpy"))
    parts = [f"{os.cpu_count()} CPUs, {cpu_class()}; calibdask {found['calibdask']}, {told}\n"]
    if given.scale != 1:
        parts.append(f"scale {given.scale:g}: too small to mean anything\n")
    with tempfile.TemporaryDirectory(prefix="calibdask-scale-") as temporary:
        scratch = Path(temporary)
        parts.append(efficiency(scratch, given.scale))
        text, model = end_to_end(scratch, given.scale)
        parts.append(text)
        text, more = rates(scratch, given.scale)
        model |= more
        # Planning included: what the longer of two campaigns took more.
        in_calls = model["more_calls"] * model["seconds_per_call"]
        model["seconds_per_task"] = (model["more_cpu"] - in_calls) / model["more_tasks"]
        parts += [text, extrapolation(model)]
    parts.append(f"load after: {' '.join(f'{one:.1f}' for one in os.getloadavg())}\n")
    text = "\n".join(parts)
    print(text, end="")
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
