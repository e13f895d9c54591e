"""Running the graph of tasks on Dask: the only module that knows Dask graphs.

Results lie in the store and only small outcomes travel, so a lost worker costs the shards it had in
its hands and nothing else. Keys carry the run's id: Dask hands back the *old* result of a key that
is used twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import KilledWorker, as_completed
from distributed.client import FutureCancelledError

from calibdask.engine.envelope import Failure, Outcome
from calibdask.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client, Future

    from calibdask.engine.executors import Done
    from calibdask.engine.tasks import Task

__all__ = ["DaskExecutor"]


def _call(task: Task, *outcomes: Outcome) -> Outcome:
    return task.call(*task.args, *outcomes)


class DaskExecutor:
    """Tasks on the workers of a Dask scheduler.

    Parameters
    ----------
    client : distributed.Client
        The connection; closing it is up to whoever made it.
    name : str
        What to call it in reports.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._run_id = uuid4().hex[:12]
        self._rounds = 0
        self._futures: list[Future[Outcome]] = []

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def run(self, tasks: Sequence[Task], done: Done) -> dict[str, Outcome]:
        """Run all tasks, with merges waiting in the scheduler for what they merge.

        A task that kills its worker would take others of that worker's queue down with it, since
        Dask blames whatever the worker held. So every suspect is run alone before it is given up.

        Raises
        ------
        TransientError
            The scheduler is gone. What was stored stays.
        """
        outcomes: dict[str, Outcome] = {}
        left = list(tasks)
        while left:
            suspects = self._round(left, outcomes, done)
            for task in suspects:
                if self._round([task], outcomes, done):
                    text = (
                        f"{task.label}: killed its worker process twice, the second time with"
                        " nothing else running (out of memory, or a crash in a library)"
                    )
                    failure = Failure(task.label, "KilledWorker", text, 1)
                    outcomes[task.key] = Outcome(failure=failure)
                    done(task, outcomes[task.key])
            left = [task for task in left if task.key not in outcomes]
        return outcomes

    def _round(self, tasks: Sequence[Task], outcomes: dict[str, Outcome], done: Done) -> list[Task]:
        """Submit tasks whose needs are met or among them; give back those that were killed."""
        self._rounds += 1
        futures: dict[str, Future[Outcome]] = {}
        names: dict[str, Task] = {}
        for task in tasks:
            needs: list[Any] = [outcomes.get(need) or futures[need] for need in task.needs]
            key = f"{task.group}-{task.label}-{self._run_id}-{self._rounds}-{task.key}"
            names[key] = task
            futures[task.key] = self._client.submit(_call, task, *needs, key=key, pure=False)
        self._futures = list(futures.values())
        suspects: list[Task] = []
        del futures
        try:
            for future in as_completed(self._futures, loop=self._client.loop):
                task = names[future.key]
                error = future.exception() if future.status == "error" else None
                if future.status == "finished":
                    outcomes[task.key] = future.result()
                    done(task, outcomes[task.key])
                elif isinstance(error, KilledWorker):
                    # Whoever needs a killed task ends with the same exception: not a suspect.
                    if error.task == future.key:
                        suspects.append(task)
                elif error is not None:
                    raise error
                elif future.status in ("lost", "pending"):
                    # It was done, but its worker died before its outcome was fetched. The next
                    # round asks again, and the answer comes from the store.
                    continue
                else:
                    raise FutureCancelledError(future.key, f"{future.status} by the scheduler")  # noqa: TRY301  told like a lost connection, which it is
        except (FutureCancelledError, OSError) as error:
            raise TransientError(
                f"the connection to the Dask scheduler was lost ({error}); what was computed is"
                " stored: run the same command again to carry on"
            ) from error
        self._futures = []
        return suspects

    def close(self) -> None:
        """Withdraw what has not run yet."""
        if self._futures:
            self._client.cancel(self._futures, force=True)
            self._futures = []
