"""Running a graph of tasks in this process: one after the other, or in threads.

These two are the reference that every other executor must agree with, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from calibdask.engine.envelope import Outcome
from calibdask.engine.tasks import Task

__all__ = ["Executor", "SerialExecutor", "ThreadsExecutor"]

Done = Callable[[Task, Outcome], None]


class Executor(Protocol):
    """Runs tasks in any order that respects their needs."""

    name: str

    @property
    def workers(self) -> int:
        """How many tasks can run at once."""
        ...

    def run(self, tasks: Sequence[Task], done: Done) -> dict[str, Outcome]:
        """Run all tasks (each stands after those it needs); tell `done` of each as it ends."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class SerialExecutor:
    """One task after the other, in this thread."""

    name = "serial"
    workers = 1

    def run(self, tasks: Sequence[Task], done: Done) -> dict[str, Outcome]:
        """Run all tasks in the order given."""
        outcomes: dict[str, Outcome] = {}
        for task in tasks:
            outcome = task.call(*task.args, *(outcomes[need] for need in task.needs))
            outcomes[task.key] = outcome
            done(task, outcome)
        return outcomes

    def close(self) -> None:
        """Nothing to give back."""


class ThreadsExecutor:
    """Tasks in threads of this process."""

    name = "threads"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="calibdask")

    def run(self, tasks: Sequence[Task], done: Done) -> dict[str, Outcome]:
        """Run each task as soon as those it needs have ended."""
        outcomes: dict[str, Outcome] = {}
        open_needs = {task.key: len(task.needs) for task in tasks}
        waiting_for: dict[str, list[Task]] = {}
        for task in tasks:
            for need in task.needs:
                waiting_for.setdefault(need, []).append(task)
        running: dict[Future[Outcome], Task] = {}

        def start(task: Task) -> None:
            needs = (outcomes[need] for need in task.needs)
            running[self._pool.submit(task.call, *task.args, *needs)] = task

        for task in tasks:
            if not task.needs:
                start(task)
        while running:
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

    def close(self) -> None:
        """Let running tasks end and start no other."""
        self._pool.shutdown(cancel_futures=True)
