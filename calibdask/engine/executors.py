"""Running a graph of tasks in this process: one after the other, or in threads.

These two are the reference that every other executor must agree with, bit for bit. Others hand
tasks to workers in batches, whose size is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Protocol

from calibdask.engine.envelope import Failure, Outcome
from calibdask.engine.guard import Crashed, Guard, Unforeseen, unreadable
from calibdask.engine.protocol import Shard
from calibdask.engine.tasks import Task, opens_inputs
from calibdask.errors import TransientError
from calibdask.stats.compiled import warm_up

__all__ = [
    "Began",
    "Done",
    "Executor",
    "SerialExecutor",
    "ThreadsExecutor",
    "batch_sizes",
    "batches",
    "tell_nobody",
]

Done = Callable[[Task, Outcome], None]
Began = Callable[[Task, str], None]
"""Called with a map that begins, and by a name in which call: its tasks run one after the other."""

_MOST_TASKS = 32  # in a call: handing them out then costs the driver 0.1 ms each
_MOST_BYTES = 64 << 20  # read by a call: about what takes a second, and then nothing is gained
_RAMP = 2  # for W workers, a call is at most 1/(2 W) of what went before it, and of what is left


def tell_nobody(task: Task, slot: str) -> None:
    """Leave it untold that a map begins."""


def batch_sizes(n_bytes: Sequence[int], workers: int) -> Iterator[int]:
    """Decide how many tasks a worker is handed at once, in one call.

    It depends on what is known beforehand, not on a clock, so a run is handed out in the same way
    each time. The first calls are small, so that results come soon, and the last are, so that
    nobody waits for another: they hold one task each. Whatever the tasks cost, a call is a small
    part of the run.

    Parameters
    ----------
    n_bytes : sequence of int
        What each task reads, in the order in which they are handed out.
    workers : int
        How many there are to do it.
    """
    ramp = _RAMP * max(workers, 1)
    place = 0
    while place < len(n_bytes):
        most = min(_MOST_TASKS, place // ramp, (len(n_bytes) - place) // ramp)
        size, n_read = 1, n_bytes[place]
        for more in n_bytes[place + 1 : place + most]:
            n_read += more
            if n_read > _MOST_BYTES:
                break
            size += 1
        yield size
        place += size


def batches(tasks: Sequence[Task], workers: int) -> Iterator[list[Task]]:
    """Put tasks that can be done at once together: those of one group that none other waits for.

    Parameters
    ----------
    tasks : sequence of Task
        Each stands after those it needs.
    workers : int
        How many there are to do them.

    Yields
    ------
    list of Task
        Each list stands after those that hold what it needs.
    """
    depths: dict[str, int] = {}
    alike: dict[tuple[int, str], list[Task]] = {}
    for task in tasks:
        depth = max((depths.get(need, 0) for need in task.needs), default=0) + 1
        depths[task.key] = depth
        alike.setdefault((depth, task.group), []).append(task)
    for _, members in sorted(alike.items(), key=lambda item: item[0]):
        n_bytes = [
            sum(one.n_bytes for one in task.args if isinstance(one, Shard)) for task in members
        ]
        place = 0
        for size in batch_sizes(n_bytes, workers):
            yield members[place : place + size]
            place += size


class Executor(Protocol):
    """Runs tasks in any order that respects their needs."""

    name: str

    @property
    def workers(self) -> int:
        """How many tasks can run at once."""
        ...

    def run(
        self, tasks: Sequence[Task], done: Done, began: Began = tell_nobody
    ) -> dict[str, Outcome]:
        """Run all tasks (each stands after those it needs); tell `done` of each as it ends."""
        ...

    def announce(self, value: object) -> None:
        """Let other processes that connect to it have a value."""
        ...

    def close(self) -> None:
        """Return back what it holds."""
        ...


def _guard_of(tasks: Sequence[Task], children: int) -> Guard:
    """Return what runs a task by its place in a child process."""

    def call(place: int, *needed: Outcome) -> Outcome:
        return tasks[place].call(*tasks[place].args, *needed)

    return Guard(call, children, prepare=warm_up)


def _run_guarded(guard: Guard, place: int, task: Task, *needed: Outcome) -> Outcome:
    """Run a task in a child process; one that ends its process twice fails."""
    for last in (False, True):
        try:
            outcome: Outcome = guard(place, *needed)
        except Crashed as crash:
            if last:
                return Outcome(failure=_failure_of(task, crash))
        except (Unforeseen, TransientError) as error:
            return Outcome(failure=Failure.of(error, task.label))
        else:
            return outcome
    raise AssertionError("unreachable")


def _failure_of(task: Task, crash: Crashed) -> Failure:
    label = task.label
    if crash.out_of_memory:
        text = f"{label}: {crash} twice, as a system does that is out of memory; lower"
        return Failure(
            label, "KilledWorker", f"{text} Campaign.shard_bytes or use fewer workers", 1
        )
    error = unreadable(label, crash)
    return Failure.of(error, label)


class SerialExecutor:
    """One task after the other; where inputs are opened, in a child process."""

    name = "serial"
    workers = 1

    def run(
        self, tasks: Sequence[Task], done: Done, began: Began = tell_nobody
    ) -> dict[str, Outcome]:
        """Run all tasks in the order given."""
        outcomes: dict[str, Outcome] = {}
        guarded = any(map(opens_inputs, tasks))
        with _guard_of(tasks, 1) as guard:
            for place, task in enumerate(tasks):
                needed = [outcomes[need] for need in task.needs]
                if task.group == "map":
                    began(task, task.key)
                if guarded:  # all of them, so that one process alone loads what they need
                    outcome = _run_guarded(guard, place, task, *needed)
                else:
                    outcome = task.call(*task.args, *needed)
                outcomes[task.key] = outcome
                done(task, outcome)
        return outcomes

    def announce(self, value: object) -> None:
        """Nobody can connect."""

    def close(self) -> None:
        """Nothing to give back."""


class ThreadsExecutor:
    """Tasks in threads of this process; each opens inputs in a child process of its own."""

    name = "threads"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="calibdask")

    def run(
        self, tasks: Sequence[Task], done: Done, began: Began = tell_nobody
    ) -> dict[str, Outcome]:
        """Run each task as soon as those it needs have ended."""
        outcomes: dict[str, Outcome] = {}
        open_needs = {task.key: len(task.needs) for task in tasks}
        waiting_for: dict[str, list[Task]] = {}
        for task in tasks:
            for need in task.needs:
                waiting_for.setdefault(need, []).append(task)
        running: dict[Future[Outcome], Task] = {}
        places = {task.key: place for place, task in enumerate(tasks) if opens_inputs(task)}
        with _guard_of(tasks, self.workers) as guard:
            if places:
                guard.start()  # while no other thread is at work

            def start(task: Task) -> None:
                if task.key in places:
                    future = self._pool.submit(_run_guarded, guard, places[task.key], task)
                else:
                    needs = (outcomes[need] for need in task.needs)
                    future = self._pool.submit(task.call, *task.args, *needs)
                running[future] = task

            for task in tasks:
                if not task.needs:
                    start(task)
            told: set[str] = set()
            while running:
                # Threads take tasks in the order in which they were handed in.
                for task in islice(running.values(), self.workers):
                    if task.group == "map" and task.key not in told:
                        told.add(task.key)
                        began(task, task.key)
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    task = running.pop(future)
                    outcomes[task.key] = future.result()
                    done(task, outcomes[task.key])
                    for follower in waiting_for.get(task.key, ()):
                        open_needs[follower.key] -= 1
                        if not open_needs[follower.key]:
                            start(follower)
        return outcomes

    def announce(self, value: object) -> None:
        """Nobody can connect."""

    def close(self) -> None:
        """Let running tasks end and start no other."""
        self._pool.shutdown(cancel_futures=True)
