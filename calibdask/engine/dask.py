"""Running the graph of tasks on Dask: the only module that knows Dask graphs.

Results lie in the store and only small outcomes travel, so a lost worker costs the shards it had in
its hands and nothing else. A call costs the scheduler a millisecond or two whatever it does, so a
worker is handed several cheap tasks in one call.

Whatever passes through the scheduler is bytes: a scheduler or a worker with other software gets as
far as being told so, instead of breaking off the connection over a class that it does not have.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import KilledWorker, as_completed, get_worker
from distributed.client import ClosedClientError
from distributed.protocol.pickle import dumps, loads

from calibdask.engine.envelope import Failure, Outcome
from calibdask.engine.executors import batches, tell_nobody
from calibdask.engine.preflight import OTHER_CODE, check_workers
from calibdask.engine.provenance import code_digest
from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client, Future

    from calibdask.engine.executors import Began, Done
    from calibdask.engine.tasks import Task

__all__ = ["DaskExecutor", "announced", "run_call"]

_ANNOUNCED = "calibdask-campaign"

_BEGAN = "calibdask-began"
"""Topic of the scheduler's events on which workers tell which map of a call begins."""

_MAX_BARREN_ROUNDS = 3


@functools.lru_cache(maxsize=2)
def _unpacked(shared: bytes) -> Any:
    return loads(shared)


def run_call(shared: bytes, packed: bytes, needed: Sequence[bytes]) -> bytes:
    """Do on a worker what one call holds.

    Parameters
    ----------
    shared : bytes
        The first argument of every task of the run: unpacked once by each worker.
    packed : bytes
        For each task its function, its other arguments and the outcomes it needs, which are given
        or stand at (which of `needed`, place in it).
    needed : sequence of bytes
        What earlier calls gave back.

    Returns
    -------
    bytes
        The tasks' outcomes.
    """
    context = _unpacked(shared)
    earlier = [loads(one) for one in needed]
    outcomes = []
    worker = get_worker()
    name = str(worker.get_current_task())
    for place, (call, arguments, needs) in enumerate(loads(packed)):
        if name.startswith("map-"):
            worker.log_event(_BEGAN, [name, place])
        given = [one if isinstance(one, Outcome) else earlier[one[0]][one[1]] for one in needs]
        outcomes.append(call(context, *arguments, *given))
    answer: bytes = dumps(outcomes)
    return answer


def _by_value() -> Callable[..., bytes | str]:
    """Return the function that workers are sent: it answers with outcomes, or says why it cannot.

    It is nested so that it travels by value, as a worker with other code must be able to run it.
    """

    def call(expected: str, shared: bytes, packed: bytes, *needed: bytes | str) -> bytes | str:
        import socket

        answers = []
        for one in needed:
            if isinstance(one, str):
                return one
            answers.append(one)
        try:
            from calibdask.engine.provenance import code_digest

            if code_digest() == expected:
                from calibdask.engine.dask import run_call

                return run_call(shared, packed, answers)
            problem = f"has calibdask {code_digest()}, and this run {expected}"
        except ImportError as error:
            problem = f"cannot import what its tasks need: {error}"
        return f"a worker on {socket.gethostname()} {problem}"

    return call


def announced(client: Client) -> Any:
    """Return what the run on a scheduler has announced; None if it has not, or is over."""
    found = client.get_dataset(_ANNOUNCED, default=None)
    return None if found is None else loads(found)


class DaskExecutor:
    """Tasks on the workers of a Dask scheduler.

    Parameters
    ----------
    client : distributed.Client
        The connection; closing it is up to whoever made it.
    name : str
        What to call it in reports.
    describe_worker : callable, optional
        Tells people where a worker of a name is: its job, its host, its log.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        describe_worker: Callable[[str], str] | None = None,
    ) -> None:
        self.name = name
        self.describe_worker = describe_worker
        self.expected_workers = 0
        """How many workers there will be, where they come after the tasks."""
        self._client = client
        # It begins with a digit: Dask counts words of letters as part of a group's name.
        self._run_id = f"0{uuid4().hex[:11]}"
        self._rounds = 0
        self._checked: set[str] = set()
        self._futures: dict[str, Future[bytes | str]] = {}
        self._calls_out: dict[str, list[Task]] = {}
        self._began: Began | None = None
        self._aside = 0
        self._error: CalibdaskError | None = None
        self._announced = False

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    @property
    def open_tasks(self) -> int:
        """How many workers could have something to do: calls not done, except quick merges."""
        return self._aside + sum(not key.startswith("merge-") for key in list(self._futures))

    def await_workers(self) -> None:
        """Wait until there are as many workers as are expected.

        Raises
        ------
        CalibdaskError
            Whoever watches them gave up.
        """
        while self.workers < self.expected_workers:
            self._raise_if_aborted()
            time.sleep(0.05)

    def abort(self, error: CalibdaskError) -> None:
        """End the run with an error, from another thread than the one that runs it."""
        self._error = self._error or error
        futures = list(self._futures.values())
        if futures:
            self._client.cancel(futures, force=True)

    def _tell_began(self, event: tuple[float, list[Any]]) -> None:
        """Return which map begins, in the thread of the client; others' calls have other names."""
        name, place = event[1]
        members = self._calls_out.get(name)
        if members is not None and self._began is not None:
            self._began(members[place], name)

    def run(
        self, tasks: Sequence[Task], done: Done, began: Began = tell_nobody
    ) -> dict[str, Outcome]:
        """Run all tasks, with merges waiting in the scheduler for what they merge.

        A task that kills its worker takes others down with it: those of its own call, and those
        that Dask blames because the worker had them in its queue. So every suspect is run alone
        before it is given up.

        Raises
        ------
        ConfigError
            A worker runs other code.
        TransientError
            The scheduler is gone. What was stored stays.
        CalibdaskError
            Whoever watches the workers gave up, or workers die whatever they are given.
        """
        outcomes: dict[str, Outcome] = {}
        left = {task.key: task for task in tasks}
        if not left:
            return outcomes
        with self._talking():
            check_workers(self._client, self._checked)
            if self._began is None:
                self._client.subscribe_topic(_BEGAN, self._tell_began)
        self._began = began
        shared = dumps(tasks[0].args[0])
        deaths: Counter[str] = Counter()
        barren = 0

        def attempt(some: Sequence[Task]) -> dict[str, str]:
            killed = self._round(some, shared, outcomes, done)
            for key, (n_deaths, _) in killed.items():
                deaths[key] += n_deaths
            for task in some:
                if task.key in outcomes:
                    left.pop(task.key, None)
            return {key: worker for key, (_, worker) in killed.items()}

        while left:
            before = len(left)
            for key in attempt(list(left.values())):
                if any(need not in outcomes for need in left[key].needs):
                    continue  # an outcome was lost: it is its turn again in the next round
                self._aside = sum(task.group != "merge" for task in left.values())
                task, earlier = left[key], deaths[key]
                worker = attempt([task]).get(key)
                if worker is not None:
                    text = (
                        f"{task.label}: killed its worker process {deaths[key]} times, the last"
                        f" {deaths[key] - earlier} with nothing else running (out of memory, or a"
                        f" crash in a library); the last was {worker}"
                    )
                    outcomes[key] = Outcome(failure=Failure(task.label, "KilledWorker", text, 1))
                    done(left.pop(key), outcomes[key])
                    # That explains the deaths: the other suspects are as good as any.
                    break
            self._aside = 0
            barren = 0 if len(left) < before else barren + 1
            if barren == _MAX_BARREN_ROUNDS:
                raise TransientError(
                    f"{barren} times in a row the workers of {self.name!r} were lost before they"
                    " had done anything: look into their logs. What was computed is stored: run"
                    " the same command again to carry on"
                )
        return outcomes

    def _calls(self, tasks: Sequence[Task]) -> dict[str, list[Task]]:
        """Put tasks into calls, named for Dask's pages: group first, label of the first task."""
        self._rounds += 1
        with self._talking():
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        threads = sum(worker["nthreads"] for worker in workers)
        at_once = max(threads, self.expected_workers)
        named = {}
        for members in batches(tasks, at_once):
            first = members[0]
            more = f" +{len(members) - 1}" if len(members) > 1 else ""
            run = f"{self._run_id}.{self._rounds}"
            named[f"{first.group}-{run}-{first.label}{more}-{first.key}"] = members
        return named

    def _round(
        self,
        tasks: Sequence[Task],
        shared: bytes,
        outcomes: dict[str, Outcome],
        done: Done,
    ) -> dict[str, tuple[int, str]]:
        """Submit tasks whose needs are met or among them.

        Returns
        -------
        killed : dict of str to (int, str)
            Keys of the tasks that were in a call that killed its worker: how often it did, and
            where the last time.
        """
        calls = self._calls(tasks)
        places = {
            task.key: (name, place)
            for name, members in calls.items()
            for place, task in enumerate(members)
        }
        graph: dict[str, tuple[Any, ...]] = {}
        function = _by_value()
        for name, members in calls.items():
            needed: dict[str, int] = {}  # names of calls and their places among the arguments
            packed = []
            for task in members:
                needs: list[Outcome | tuple[int, int]] = []
                for need in task.needs:
                    if need in outcomes:
                        needs.append(outcomes[need])
                    else:
                        other, place = places[need]
                        needs.append((needed.setdefault(other, len(needed)), place))
                packed.append((task.call, task.args[1:], needs))
            graph[name] = (function, code_digest(), shared, dumps(packed), *needed)
        killed: dict[str, tuple[int, str]] = {}
        self._calls_out = calls
        for name, answer in self._answers(graph):
            members = calls.pop(name)
            if isinstance(answer, KilledWorker):
                # Whoever needs a killed task ends with the same exception: not a suspect.
                if answer.task == name:
                    where = answer.allowed_failures + 1, self._describe(answer)
                    killed |= dict.fromkeys((task.key for task in members), where)
            elif isinstance(answer, str):
                raise ConfigError(f"{answer}. {OTHER_CODE}")
            else:
                for task, outcome in zip(members, loads(answer), strict=True):
                    outcomes[task.key] = outcome
                    done(task, outcome)
        return killed

    def _answers(
        self, graph: dict[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, bytes | str | KilledWorker]]:
        """Return each call's name and answer as it ends, and let go of it."""
        import dask
        from dask.base import annotate

        # Merges as soon as they can be, the rest in the order in which it was put into calls: left
        # to itself Dask might keep a large one for last, and then all wait for one worker.
        ranks = {
            name: 1 if needed else -place
            for place, (name, (_, _, _, _, *needed)) in enumerate(graph.items())
        }
        # One graph, so that the scheduler holds what is shared once. However large, it is small
        # beside what is read.
        any_size = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}
        with self._talking():
            # The scheduler calls what it finds here, so it must not be a function of ours.
            with dask.config.set(any_size), annotate(priority=ranks.__getitem__):
                futures = self._client.get(graph, list(graph), sync=False)
            self._futures = dict(zip(graph, futures, strict=True))
            graph.clear()
            del futures
            self._raise_if_aborted()
            for future in as_completed(list(self._futures.values()), loop=self._client.loop):
                self._raise_if_aborted()
                answer: bytes | str | KilledWorker | None
                try:
                    # A call may be done, and lost with its worker before its answer was fetched.
                    # The next round asks again, and the answer comes from the store.
                    lost = future.status in ("lost", "pending")
                    answer = None if lost else future.result()
                except KilledWorker as error:
                    answer = error
                # Once nobody holds a future, Dask forgets what it stands for.
                del self._futures[future.key]
                if answer is not None:
                    yield future.key, answer

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Return what the loss of the scheduler means (TransientError)."""
        try:
            yield
        except (CancelledError, ClosedClientError, OSError) as error:
            self._raise_if_aborted()
            raise TransientError(
                f"the connection to the Dask scheduler was lost ({error}); what was computed is"
                " stored: run the same command again to carry on"
            ) from error

    def _describe(self, error: KilledWorker) -> str:
        worker = error.last_worker
        if self.describe_worker is not None:
            return self.describe_worker(str(worker.name))
        return f"worker {worker.name} at {worker.address}"

    def _raise_if_aborted(self) -> None:
        if self._error is not None:
            raise self._error

    def announce(self, value: object) -> None:
        """Let whoever connects to the scheduler have a value, until :meth:`close`."""
        self._client.publish_dataset(dumps(value), name=_ANNOUNCED, override=True)
        self._announced = True

    def close(self) -> None:
        """Withdraw what was announced and what has not run yet."""
        if self._announced:
            # The scheduler may be somebody else's and go on, or it may be gone.
            with contextlib.suppress(OSError, TimeoutError):
                self._client.unpublish_dataset(_ANNOUNCED)
        futures = list(self._futures.values())
        if futures:
            self._client.cancel(futures, force=True)
        self._futures = {}
