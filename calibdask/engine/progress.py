"""How far a run is, in a file that anybody can read at any time, whatever does the work.

The run keeps ``WORKDIR/progress.json`` up to date while it lives. The file stays behind when the
run ends or dies, so that it can still be told what was done and how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from calibdask.engine import events
from calibdask.engine.canonical import read_json
from calibdask.engine.provenance import user_name
from calibdask.errors import CalibdaskError
from calibdask.version import __version__

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Group", "Progress", "ProgressFile", "read_progress"]

WRITE_SECONDS = 1.0
_LAST = 20  # failures and messages that are kept
_WINDOW = 200  # shards over which the rate is taken
_RETRY_SECONDS = (0.1, 0.4)  # a network file system may show half of the past


@dataclass(slots=True)
class Group:
    """The tasks of one kind in one stage, e.g. all maps of stage 0."""

    stage: int
    name: str
    total: int
    done: int = 0
    cached: int = 0
    failed: int = 0


@dataclass(slots=True)
class Progress:
    """How far a run is, and how it ended.

    Attributes
    ----------
    job, plan, output, command, directory : str
        What is done; the plan's digest; what it is for; how and where it was started.
    host, pid, user, slurm_job, version
        Who does it, with which calibdask.
    executor, workers, dashboard
        By which means. `worker_jobs` tells about jobs of a batch system.
    started, updated, ended : float
        Unix seconds; `ended` is missing while the run lives, and for ever if it was killed.
    doing : str
        What is done now, for people.
    running, longest, longest_since : int, str, float
        How many shards run now; the one that has run longest, and since when.
    shards : int
        Shards in the plan.
    groups : list of Group
        The stages so far.
    failures, messages : list of str
        The last of them.
    work_seconds : float
        Time spent in tasks, summed over workers.
    rate, left_seconds : float, optional
        Shards a second, and how long the rest of this stage's would then take.
    digest, exit_code, error
        How it ended.
    """

    job: str = ""
    plan: str = ""
    output: str = ""
    command: str = ""
    directory: str = ""
    host: str = ""
    pid: int = 0
    user: str = ""
    slurm_job: str | None = None
    version: str = ""
    executor: str = ""
    workers: int = 0
    worker_jobs: str = ""
    dashboard: str | None = None
    started: float = 0.0
    updated: float = 0.0
    ended: float | None = None
    doing: str = ""
    running: int = 0
    longest: str = ""
    longest_since: float | None = None
    shards: int = 0
    groups: list[Group] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    work_seconds: float = 0.0
    rate: float | None = None
    left_seconds: float | None = None
    digest: str | None = None
    exit_code: int | None = None
    error: str = ""

    def group(self, stage: int, name: str) -> Group | None:
        """Find a group."""
        return next((one for one in self.groups if (one.stage, one.name) == (stage, name)), None)


def read_progress(workdir: Path) -> Progress | None:
    """Read what the last run in a work directory told; None if it told nothing that is readable."""
    from pydantic import TypeAdapter  # without which a run is to start

    for wait in (*_RETRY_SECONDS, None):
        try:
            found = read_json(workdir / "progress.json")
            told = TypeAdapter(Progress).validate_python(found)
            numbers = [*dataclasses.astuple(told), *chain(*map(dataclasses.astuple, told.groups))]
            if all(map(_can_be_shown, numbers)):
                return told
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            pass
        if wait is not None:
            # Cut short, or written by another version: the rest of the directory tells enough.
            time.sleep(wait)
    return None


def _can_be_shown(value: object) -> bool:
    """Return whether a number is one that a time, duration or rate can have."""
    return not isinstance(value, int | float) or value == 0 or 1e-9 < abs(value) < 1e11


class ProgressFile:
    """Listen to a run and keep its progress file, from the first input looked at to the end.

    Parameters
    ----------
    workdir : Path
        The work directory; the caller holds its lock.
    job : str
        Name of the job.
    output : Path
        The product.
    command : str
        The command that does this run again; empty where there is none.
    """

    def __init__(self, workdir: Path, *, job: str, output: Path, command: str) -> None:
        self._path = workdir / "progress.json"
        self._now = Progress(
            job=job,
            output=str(output),
            command=command,
            directory=str(Path.cwd()),
            host=socket.gethostname(),
            pid=os.getpid(),
            user=user_name(),
            slurm_job=os.environ.get("SLURM_JOB_ID"),
            version=__version__,
            started=time.time(),
        )
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._running = events.Running()
        self._changed = False
        self._guard = threading.Lock()  # a cluster's keeper tells from a thread of its own
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="progress", daemon=True)

    def before(self, listener: events.Listener) -> events.Listener:
        """Return a listener that notes each event before `listener` is told."""

        def tell(event: events.Event) -> None:
            self(event)
            listener(event)

        return tell

    def __call__(self, event: events.Event) -> None:
        """Note one event; what matters is written at once, the rest within a second."""
        with self._guard:
            important = self._note(event)
            self._changed = True
            if important:
                self._write()

    def _note(self, event: events.Event) -> bool:
        now = self._now
        self._running(event)
        match event:
            case events.Progress(what, done, total):
                now.doing = f"{what}: {done} of {total}"
            case events.RunStarted():
                now.job, now.plan, now.shards = event.job, event.plan, event.shards
                now.executor, now.workers = event.executor, event.workers
                now.dashboard = event.dashboard
                return True
            case events.StageStarted(stage, tasks):
                now.doing = f"stage {stage}: {', '.join(tasks)}"
                now.groups += [Group(stage, name, total) for name, total in tasks.items()]
                self._times.clear()
                now.rate = now.left_seconds = None
                return True
            case events.TaskEnded():
                self._count(event)
            case events.Workers(ready=ready):
                now.workers, now.worker_jobs = ready, str(event)
            case events.Message(level, text) if level not in ("DEBUG", "INFO"):
                now.messages = [*now.messages, text][-_LAST:]
            case events.Written(path):
                now.doing = f"writing: {path}"
            case events.RunEnded(digest=digest):
                self._end(0)
                now.digest = digest
                return True
        return False

    def _count(self, event: events.TaskEnded) -> None:
        now = self._now
        now.work_seconds += event.wall_seconds
        if event.failure is not None:
            now.failures = [*now.failures, event.failure][-_LAST:]
        group = now.group(event.stage, event.group)
        if group is None:
            return
        group.done += 1
        group.cached += event.cached
        group.failed += event.failure is not None
        if event.group == "map" and not event.cached:
            if not self._times:
                # Not when the stage began: workers may have waited in a queue for hours.
                self._times.append(time.time() - event.wall_seconds)
            self._times.append(time.time())

    def _end(self, exit_code: int) -> None:
        self._now.ended = time.time()
        self._now.exit_code = exit_code
        self._now.doing, self._now.left_seconds = "", None

    def _estimate(self) -> None:
        now = self._now
        if len(self._times) < 2 or now.ended is not None:
            return
        now.rate = (len(self._times) - 1) / max(time.time() - self._times[0], 1e-3)
        maps = [group for group in now.groups if group.name == "map"]
        now.left_seconds = (maps[-1].total - maps[-1].done) / now.rate

    def _write(self) -> None:
        self._changed = False
        self._estimate()
        longest = None if self._now.ended is not None else self._running.longest
        self._now.running = 0 if longest is None else len(self._running)
        self._now.longest, self._now.longest_since = longest or ("", None)
        self._now.updated = time.time()
        text = json.dumps(dataclasses.asdict(self._now), indent=1)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            # The disk may be full; telling how far a run is must not end it. The next time it may
            # succeed.
            self._changed = True
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _keep(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            with self._guard:
                if self._changed:
                    self._write()

    def __enter__(self) -> Self:
        with self._guard:
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        with self._guard:
            if error is not None and self._now.ended is None:
                exit_code, self._now.error = _ending(error)
                self._end(exit_code)
            self._write()


def _ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the words for what ends a run."""
    match error:
        case CalibdaskError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted"
        case Exception():
            return 1, f"{type(error).__name__}: {error}"
    return 143, "terminated"  # the command line's own way out of a SIGTERM
