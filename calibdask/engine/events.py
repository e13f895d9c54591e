"""What happens in a run, as typed events, and the two ways of showing it.

On a terminal a progress bar; in batch one JSON object a line, which other programs can follow.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from calibdask.engine.shown import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Event",
    "JsonLines",
    "Listener",
    "Message",
    "Progress",
    "ProgressBars",
    "RunEnded",
    "RunStarted",
    "Running",
    "StageStarted",
    "TaskEnded",
    "TaskStarted",
    "Workers",
    "Written",
    "log_event",
    "tunnel_command",
]

log = logging.getLogger("calibdask")

LONG_SECONDS = 2.0
"""From when on it is told that a shard runs."""


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """Something before the run itself goes on, e.g. inputs are looked at."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The plan is made and the executor is up."""

    job: str
    plan: str
    shards: int
    stored: int
    executor: str
    workers: int
    workdir: str
    dashboard: str | None = None
    tunnel: str | None = None


@dataclass(frozen=True, slots=True)
class Workers(Event):
    """The number of worker jobs at work, starting, or waiting in the queue has changed."""

    ready: int
    starting: int
    waiting: int

    def __str__(self) -> str:
        """Return it in a few words."""
        parts = [f"{self.ready} at work"]
        parts += [f"{self.starting} starting"] if self.starting else []
        parts += [f"{self.waiting} in the queue"] if self.waiting else []
        return "worker jobs: " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage begins: so many tasks of each group."""

    stage: int
    tasks: dict[str, int]


@dataclass(frozen=True, slots=True)
class TaskStarted(Event):
    """The map of a shard begins; `slot` is the call it is in, whose tasks run one by one."""

    key: str
    label: str
    slot: str


@dataclass(frozen=True, slots=True)
class TaskEnded(Event):
    """A task ended, well or not."""

    stage: int
    group: str
    label: str
    cached: bool
    wall_seconds: float
    failure: str | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Message(Event):
    """Something people should know; `level` is a logging level name."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Written(Event):
    """A file was written."""

    path: str


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """The run is over."""

    digest: str | None
    computed: int
    cached: int
    failed: int
    wall_seconds: float


Listener = Callable[[Event], None]


class Running:
    """The shards that run now, as the events of several threads tell.

    Parameters
    ----------
    clock : callable
        Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._slots: dict[str, tuple[str, str, float]] = {}  # key, label, start
        self._slot_of: dict[str, str] = {}
        self._ended: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Note one event."""
        match event:
            case StageStarted() | RunEnded():
                self._slots, self._slot_of, self._ended = {}, {}, set()
            case TaskStarted(key, label, slot):
                self._forget(key)  # of a call that killed its worker
                self._slots[slot] = key, label, self._clock()
                self._slot_of[key] = slot
                if key in self._ended:  # in another thread, or the start was told late
                    self._forget(key)
            case TaskEnded(key=key):
                self._ended.add(key)
                self._forget(key)

    def _forget(self, key: str) -> None:
        slot = self._slot_of.pop(key, "")
        if self._slots.get(slot, ("",))[0] == key:
            self._slots.pop(slot, None)

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._slots)

    @property
    def longest(self) -> tuple[str, float] | None:
        """Label and start of the shard that has run longest."""
        slots = list(self._slots.values())
        return min(slots, key=lambda one: one[2])[1:] if slots else None

    def __str__(self) -> str:
        """Say it where a shard takes long; else nothing."""
        longest = self.longest
        seconds = 0.0 if longest is None else self._clock() - longest[1]
        return f"{len(self)} running, longest {seconds:.0f} s" if seconds >= LONG_SECONDS else ""


class JsonLines:
    """Write every event as one JSON object a line, with its name and the time (Unix seconds)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Write one event (of progress only the end: a line for each file would drown the rest)."""
        if isinstance(event, TaskStarted) or (
            isinstance(event, Progress) and event.done < event.total
        ):
            return
        record: dict[str, Any] = {"time": round(time.time(), 3), "event": type(event).__name__}
        record |= dataclasses.asdict(event)
        print(json.dumps(record), file=self._stream, flush=True)


def log_event(event: Event) -> None:
    """Send what people should know to the log."""
    match event:
        case Message(level, text):
            log.log(logging.getLevelNamesMapping()[level], "%s", printable(text))
        case TaskEnded(failure=str(text)):
            log.error("%s", printable(text))
        case Workers():
            log.info("%s", event)
        case RunStarted():
            log.info("%s: %d shards, plan %s", event.job, event.shards, event.plan)
        case Written(path):
            log.info("wrote %s", printable(path, one_line=True))
        case TaskEnded():
            label = printable(event.label, one_line=True)
            log.debug("stage %d %s %s", event.stage, event.group, label)


def tunnel_command(link: str, host: str | None = None) -> str:
    """Describe how to see a page of a host, this one unless named, from where the user sits."""
    port = urlsplit(link).port
    here = socket.gethostname()
    jump = "" if host in (None, here) else f"-J {here} "
    return f"from your own machine: ssh {jump}-L {port}:localhost:{port} {host or here}"


@dataclass(frozen=True, slots=True)
class _Note:
    """What is beside the bar of the maps: what runs long, else what ended last."""

    shards: Running
    ended: str = ""

    def __str__(self) -> str:
        return str(self.shards) or self.ended


class ProgressBars:
    """Bars on a terminal, one a stage, gone when the run is over."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = console
        self._progress = Progress(
            # A task may take minutes: what turns and counts says that it is alive.
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<17}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),  # written anew with each refresh
            console=console,
            transient=True,
        )
        self._bars: dict[str, Any] = {}
        self._running = False
        self._shards = Running(clock)

    def _bar(self, name: str, total: int) -> Any:
        if name not in self._bars:
            if not self._running:
                self._progress.start()
                self._running = True
            self._bars[name] = self._progress.add_task(name, total=total, note="")
        return self._bars[name]

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._shards(event)
        match event:
            case Progress(what, done, total):
                self._progress.update(self._bar(what, total), completed=done)
            case StageStarted(stage, tasks):
                for group, count in tasks.items():
                    bar = self._bar(f"stage {stage} {group}", count)
                    if group == "map":
                        self._progress.update(bar, note=_Note(self._shards))
            case TaskEnded(stage=stage, group=group, label=label):
                note = printable(label, one_line=True)[:24]
                self._progress.update(
                    self._bars[f"stage {stage} {group}"],
                    advance=1,
                    note=_Note(self._shards, note) if group == "map" else note,
                )
            case RunStarted(dashboard=str(link)):
                self._console.print(f"dashboard: {link}\n{tunnel_command(link)}")
            case Workers():
                self._console.print(f"{event}")
            case Message("INFO", text) if not log.isEnabledFor(logging.INFO):
                self._console.print(printable(text), markup=False, highlight=False)
            case RunEnded():
                self.close()

    def close(self) -> None:
        """Take the bars away."""
        if self._running:
            self._progress.stop()
            self._running = False
