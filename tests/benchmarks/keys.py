"""Memory of the driver while the events of inputs with overlapping ranges are compared.

    python tests/benchmarks/keys.py [--millions 4 16 40] [--shards 40]

The shards are streams of one observation: event i lies in shard i modulo their number, so that all
ranges overlap, and the last shard also holds the first event. Keys are made, stored and compared by
a worker process, one task after the other; the driver makes the tasks and judges what they found,
as in a run. Each number of events has a driver and a worker of its own. It is an error where the
one event that is in two shards is not found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from calibdask.engine.duplicates import comparisons, raise_duplicates
from calibdask.engine.envelope import Envelope, Outcome
from calibdask.engine.keys import divided_keys, key_ranges
from calibdask.engine.plan import Plan
from calibdask.engine.protocol import InputRef, Shard
from calibdask.engine.store import Store
from calibdask.engine.tasks import Task, WorkContext
from calibdask.errors import CorruptedInput

if TYPE_CHECKING:
    from collections.abc import Sequence


def make(root: Path, index: int, n_shards: int, n_events: int) -> Envelope:
    """Store the keys of one shard, and return its account."""
    identifiers = np.arange(index, n_events, n_shards, dtype=np.int64)
    if index == n_shards - 1:
        identifiers = np.concatenate([[0], identifiers])
    keys = np.column_stack([np.ones_like(identifiers), identifiers])
    Store(root).save(f"{index:064x}", {}, {"keys": divided_keys(keys)})
    ranges = key_ranges(keys, index)
    return Envelope(((index, index + 1),), {}, ranges, n_keys=len(keys))


def compare(task: Task) -> Outcome:
    """Run a comparison."""
    return task.call(*task.args)


def peak_mb(_: object = None) -> float:
    """Return the largest resident memory that this process has had [MB]."""
    # Not ru_maxrss: that begins with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(n_events: int, n_shards: int, root: Path) -> tuple[float, float, float]:
    """Return the peaks of driver and worker [MB], and the CPU time of both [s]."""
    calibration = SimpleNamespace(name_event=lambda group, event: f"event {event} of {group}")
    shards = tuple(Shard(i, (InputRef(f"{i}.h5", "", 0, 0),)) for i in range(n_shards))
    context = WorkContext(None, Store(root))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as worker:
        job = partial(make, root, n_shards=n_shards, n_events=n_events)
        total = Envelope()
        for envelope in worker.map(job, range(n_shards)):
            total = total.merge(envelope)
        plan = Plan(calibration, shards)
        tasks = comparisons(context, plan, total, {i: f"{i:064x}" for i in range(n_shards)})
        outcomes = list(worker.map(compare, tasks))
        try:
            raise_duplicates(plan, outcomes)
        except CorruptedInput as error:
            if "(1 events are in two inputs)" not in str(error):
                raise
        else:
            raise AssertionError("the event in two shards was not found")
        of_worker = worker.submit(peak_mb).result()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return peak_mb(), of_worker, sum(one.ru_utime + one.ru_stime for one in used)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[4, 16, 40], help="of events")
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.one:
        (millions,) = parsed.millions
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            driver, worker, cpu_s = measure(round(millions * 1e6), parsed.shards, Path(name))
            wall_s = time.perf_counter() - began
            print(
                f"{millions:10g} {driver:8.0f} MB {worker:8.0f} MB {cpu_s:8.1f} s {wall_s:8.1f} s"
            )
        return
    print("  million      driver      worker        CPU       wall")
    for millions in parsed.millions:
        command = [sys.executable, __file__, "--one", "--millions", str(millions)]
        subprocess.run([*command, "--shards", str(parsed.shards)], check=True)


if __name__ == "__main__":
    main()
