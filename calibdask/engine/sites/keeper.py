"""Keeping worker jobs alive: what should run, what does run, and why something does not.

A cluster's workers come as *units*: a SLURM job, or one step on a node of an allocation, each with
one or more worker processes. The keeper compares what is wanted with what has registered at the
scheduler and with what the batch system still has. It replaces what was lost, leaves what is
starting in peace, and gives up with a reason when units die again and again before they register.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from calibdask.engine import events
from calibdask.errors import CalibdaskError, ConfigError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

__all__ = ["Keeper", "Launcher", "Unit", "unit_of"]

_NAME = re.compile(r"(?:worker-)?(\d+)(-\d+)?")


def unit_of(worker: str) -> int | None:
    """Return the number of the unit that a worker of this name belongs to."""
    match = _NAME.fullmatch(str(worker))
    return None if match is None else int(match[1])


@dataclass
class Unit:
    """Workers that come and go together.

    Attributes
    ----------
    number : int
        Its workers are called ``worker-NUMBER`` or ``worker-NUMBER-0`` and so on.
    job : str
        How the batch system calls it.
    since : float
        When it was launched, or when its workers were last seen (monotonic clock).
    running : bool
        The batch system has started it.
    seen : bool
        Its workers have registered.
    retiring : bool
        It was asked to end.
    """

    number: int
    job: str
    since: float
    running: bool = False
    seen: bool = False
    retiring: bool = False


class Launcher(Protocol):
    """Where units run."""

    local: bool
    """Whether units end with this process and need no asking of a batch system."""
    processes: int
    """Workers in a unit."""
    n_workers: int
    """Workers wanted where the settings do not say."""

    def launch(self, number: int, avoid: Collection[str]) -> str:
        """Start a unit, not on some nodes if it can be helped; give the batch system's name."""
        ...

    def alive(self, jobs: Collection[str]) -> Mapping[str, str]:
        """Return which units wait or run: their state, ``PENDING (reason)`` while they wait."""
        ...

    def explain(self, job: str) -> str:
        """Describe where a unit was, how it ended, and what its log says last."""
        ...

    def where(self, job: str) -> str:
        """Describe where a unit runs and where its log is, in a few words."""
        ...

    def node(self, job: str) -> str | None:
        """Name the node that a unit runs or ran on."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """End units."""
        ...


class Keeper:
    """Watches over the units of a cluster.

    Parameters
    ----------
    launcher : Launcher
        Starts and ends units.
    workers : (int, int)
        How many worker processes there should be at least and at most.
    registered : callable
        Gives the names of the workers that the scheduler has.
    retire : callable
        Asks the workers of units, by number, to end.
    open_tasks : callable
        Gives how many tasks are left to do.
    emit : callable
        Told what happens.
    give_up : callable
        Told the error when no unit can be started.
    changed : callable
        Told the jobs of all units when they change.
    most_deaths : int, optional
        So many units that end while no task is done end the run, also where they could work: for
        workers that nobody but this run has reason to end.
    """

    seconds = 1.0
    """Between two looks at the scheduler."""
    patient_seconds = 15.0
    """At most between two calls of squeue while something is not as it should be."""
    absent_seconds = 600.0
    """A unit that runs but shows no worker for so long is ended: its node is frozen."""
    idle_seconds = 30.0
    """A surplus lasts so long before it is let go."""
    max_early_deaths = 3
    """So many in a row, with no worker at work meanwhile, end the run."""
    max_deaths_of_node = 2
    """A node where so many units died before they could work gets no more."""

    def __init__(
        self,
        launcher: Launcher,
        workers: tuple[int, int],
        *,
        registered: Callable[[], Iterable[str]],
        retire: Callable[[Collection[int]], None],
        open_tasks: Callable[[], int],
        emit: events.Listener,
        give_up: Callable[[CalibdaskError], None],
        changed: Callable[[list[str]], None] = lambda _: None,
        most_deaths: int | None = None,
    ) -> None:
        self._launcher = launcher
        self._least, self._most = workers
        self._registered = registered
        self._retire = retire
        self._open_tasks = open_tasks
        self._emit = emit
        self._give_up = give_up
        self._changed = changed
        self._most_deaths = most_deaths
        self._deaths: Counter[int] = Counter()  # by the number of tasks that were open
        self._units: dict[int, Unit] = {}
        self._next = 0
        self._early_deaths = 0
        self._deaths_of_node: Counter[str] = Counter()
        self._launch_after = 0.0
        self._asked = 0.0
        self._pause = self.seconds
        self._surplus_since: float | None = None
        self._told = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    # -- for others -----------------------------------------------------------------------------

    def start(self) -> None:
        """Launch what is wanted and begin to watch.

        Raises
        ------
        CalibdaskError
            The batch system refuses the units.
        """
        try:
            for _ in range(self._wanted()):
                self._launch()
        except TransientError as error:
            self._emit(events.Message("WARNING", f"{error}; trying again"))
        self._thread.start()

    def describe(self, worker: str) -> str:
        """Describe where a worker runs or ran, for an error message."""
        with self._lock:
            unit = self._units.get(number) if (number := unit_of(worker)) is not None else None
        return worker if unit is None else f"{worker}, {self._launcher.where(unit.job)}"

    def stop(self) -> None:
        """Watch no longer: from now on nothing is replaced."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self, seconds: float = 10.0) -> None:
        """Wait for units that were told to end, and end those that do not in time."""
        self.stop()
        left = {unit.job for unit in self._units.values()}
        end = time.monotonic() + seconds
        try:
            while left:
                states = self._launcher.alive(left)
                waiting = {job for job, state in states.items() if state.startswith("PENDING")}
                late = time.monotonic() > end
                self._launcher.cancel(set(states) if late else waiting)
                left = set() if late else set(states) - waiting
                if left:
                    time.sleep(0.3)
        except CalibdaskError as error:
            jobs = ", ".join(sorted(left))
            text = f"could not see to the end of the worker jobs {jobs}: {error}"
            self._emit(events.Message("WARNING", text))

    # -- the watch ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self._tick()
            except CalibdaskError as error:
                self._give_up(error)
                return
            except BaseException as error:
                # Without its keeper a run may wait for ever: it must end with the reason.
                text = f"the keeper of worker jobs failed ({type(error).__name__}: {error})"
                self._give_up(CalibdaskError(text))
                raise

    def _tick(self) -> None:
        now = time.monotonic()
        present = {number for name in self._registered() if (number := unit_of(name)) is not None}
        for unit in self._units.values():
            if unit.number in present:
                if not unit.seen:
                    self._early_deaths = 0
                    self._pause = self.seconds
                unit.seen = unit.running = True
                unit.since = now
        absent = [unit for unit in self._units.values() if unit.number not in present]
        if absent and now - self._asked >= self._pause:
            self._asked = now
            # Batch systems do not like to be asked every second for an hour.
            self._pause = min(1.5 * self._pause, self.patient_seconds)
            self._look_after(absent, now, at_work=bool(present))
        self._scale(present, now)
        self._tell(present)

    def _look_after(self, absent: list[Unit], now: float, *, at_work: bool) -> None:
        try:
            states = self._launcher.alive({unit.job for unit in absent})
        except TransientError as error:
            self._emit(events.Message("INFO", f"{error}; asking again later"))
            return
        for unit in absent:
            state = states.get(unit.job)
            if state is None:
                self._ended(unit, now, at_work=at_work)
            elif state.startswith("PENDING"):
                unit.since = now
            else:
                if not unit.running:
                    unit.running, unit.since = True, now
                if now - unit.since > self.absent_seconds:
                    text = (
                        f"{self._launcher.where(unit.job)} runs but has shown no worker for"
                        f" {now - unit.since:.0f} s: ended and replaced"
                    )
                    self._emit(events.Message("WARNING", text))
                    self._launcher.cancel([unit.job])
                    self._drop(unit)

    def _ended(self, unit: Unit, now: float, *, at_work: bool) -> None:
        self._drop(unit)
        if unit.retiring:
            return
        reason = self._launcher.explain(unit.job)
        if self._most_deaths is not None:
            n_open = self._open_tasks()
            self._deaths = Counter({n_open: self._deaths[n_open] + 1})
            if self._deaths[n_open] >= self._most_deaths:
                raise TransientError(
                    f"{self._most_deaths} workers died in a row before one had done anything, the"
                    f" last: {reason}; what was computed is stored: run the same command again"
                )
        if unit.seen:
            first = reason.partition("; ")[0]
            self._emit(events.Message("INFO", f"worker-{unit.number} is gone ({first}): replaced"))
            return
        self._early_deaths += 1
        if node := self._launcher.node(unit.job):
            self._deaths_of_node[node] += 1
        text = f"worker-{unit.number} ended before it could work: {reason}"
        if self._most_deaths is None and self._early_deaths >= self.max_early_deaths:
            if not at_work:
                raise ConfigError(
                    f"{self._early_deaths} worker jobs in a row ended before they could work. The"
                    f" last: {reason}\nSee what fails with 'calibdask doctor'. What was computed is"
                    " stored"
                )
            # Others work: a bad node swallows job after job, and must not do so at full speed.
            self._launch_after = now + 30 * 2 ** min(self._early_deaths - self.max_early_deaths, 5)
            text += f"\nthe next is launched in {self._launch_after - now:.0f} s"
        self._emit(events.Message("WARNING", text))

    def _drop(self, unit: Unit) -> None:
        with self._lock:
            del self._units[unit.number]
        self._pause = self.seconds
        self._tell_jobs()

    def _tell_jobs(self) -> None:
        self._changed([unit.job for unit in self._units.values()])

    # -- how many -------------------------------------------------------------------------------

    def _wanted(self) -> int:
        workers = min(max(self._open_tasks(), self._least), self._most)
        return -(-workers // self._launcher.processes)

    def _scale(self, present: Collection[int], now: float) -> None:
        wanted = self._wanted()
        kept = [unit for unit in self._units.values() if not unit.retiring]
        try:
            for _ in range(wanted - len(kept) if now >= self._launch_after else 0):
                self._launch()
        except TransientError as error:
            self._emit(events.Message("INFO", f"{error}; trying again"))
        surplus = len(kept) - wanted
        if surplus <= 0:
            self._surplus_since = None
            return
        self._surplus_since = self._surplus_since or now
        if now - self._surplus_since < self.idle_seconds:
            return
        # Those that are starting are left alone: they were waited for, and will be let go if they
        # find nothing to do.
        idle = [unit for unit in kept if unit.number in present][-surplus:]
        if idle:
            self._retire([unit.number for unit in idle])
            for unit in idle:
                unit.retiring = True

    def _launch(self) -> None:
        number = self._next
        deaths = self._deaths_of_node.items()
        avoid = [node for node, count in deaths if count >= self.max_deaths_of_node]
        job = self._launcher.launch(number, avoid)
        self._next += 1
        with self._lock:
            self._units[number] = Unit(number, job, time.monotonic())
        self._pause = self.seconds
        self._tell_jobs()

    def _tell(self, present: Collection[int]) -> None:
        """Return how many workers there are, whenever that changes."""
        kept = [unit for unit in self._units.values() if not unit.retiring]
        ready = sum(unit.number in present for unit in kept)
        starting = sum(unit.running and unit.number not in present for unit in kept)
        told = f"{ready} {starting} {len(kept)}"
        if told != self._told:
            self._told = told
            waiting = len(kept) - ready - starting
            self._emit(events.Workers(ready, starting, waiting))
