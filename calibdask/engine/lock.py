"""One run per work directory: a lock file with a heartbeat, taken over when its owner is dead.

The lock is also the way to ask a run to stop from anywhere that sees its work directory: a request
is a file beside the lock, which the run's heartbeat finds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from calibdask.access import make_private
from calibdask.engine.canonical import read_json
from calibdask.engine.places import REMEDY
from calibdask.errors import CalibdaskError, ConfigError

__all__ = ["Holder", "WorkdirLock", "ask_to_stop", "holder_of"]

HEARTBEAT_SECONDS = 10.0
REQUEST_SECONDS = 2.0
STALE_SECONDS = 120.0

log = logging.getLogger("calibdask")


def _process_start(pid: int) -> str | None:
    """Return when a process of this host began, which also tells a recycled process id apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *rest = fields.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        owner = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        owner = {}  # cut short: its owner died while writing it, or is writing it now
    sound = (
        isinstance(owner, dict)
        and isinstance(owner.get("pid", 0), int)
        and all(isinstance(owner.get(name, ""), str) for name in ("host", "token"))
    )
    return owner if sound else {}


def _is_stale(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") == socket.gethostname() and "pid" in owner:
        return _process_start(int(owner["pid"])) != owner.get("started")
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    return age > STALE_SECONDS


def _name(owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    return f"{who}, SLURM job {owner['slurm_job']}" if owner.get("slurm_job") else who


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds a work directory, or held it when it died.

    Attributes
    ----------
    name : str
        Process, host and batch job, for people.
    host : str or None
        Where it runs.
    pid : int or None
        Its process there.
    slurm_job : str or None
        The batch job it is in.
    uid : int
        The user it belongs to.
    seen : float
        When it last gave a sign of life, in Unix seconds.
    alive : bool
        Whether it lives, as far as can be told from here: of another host only by its signs.
    token : str
        Tells it from all other runs.
    """

    name: str
    host: str | None
    pid: int | None
    slurm_job: str | None
    uid: int
    seen: float
    alive: bool
    token: str


def holder_of(workdir: Path) -> Holder | None:
    """Return whose a work directory is, without touching it; None where no run has left a lock."""
    path = workdir / "lock.json"
    owner = _read(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if owner is None:
        return None
    return Holder(
        _name(owner),
        owner.get("host"),
        owner.get("pid"),
        owner.get("slurm_job"),
        status.st_uid,
        status.st_mtime,
        not _is_stale(path, owner),
        owner.get("token", ""),
    )


def ask_to_stop(workdir: Path, holder: Holder) -> None:
    """Ask one certain run to stop: a later one in the same directory does not heed the request.

    Raises
    ------
    CalibdaskError
        The request cannot be written.
    """
    path = workdir / "cancel"
    temporary = workdir / f".cancel.{uuid4().hex}.tmp"
    try:
        temporary.write_text(holder.token, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CalibdaskError(
            f"cannot write {path}: {error.strerror or error}; end {holder.name} by other means"
        ) from error


def _interrupt_main_thread() -> None:
    """Do to this process what somebody at its terminal would."""
    number = signal.SIGINT
    # The command line has a handler that ends with 143. Elsewhere SIGTERM would kill at once, and
    # SIGINT is a KeyboardInterrupt, unless the shell made the process deaf to it.
    if callable(signal.getsignal(signal.SIGTERM)) or not callable(signal.getsignal(signal.SIGINT)):
        number = signal.SIGTERM
    main = threading.main_thread().ident
    if main is not None:
        # To that thread and no other, so that a system call it waits in returns.
        signal.pthread_kill(main, number)


class WorkdirLock:
    """Hold a work directory for the time of a run.

    Raises
    ------
    ConfigError
        Another run that is alive holds the directory.
    CalibdaskError
        The directory cannot be written.
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "lock.json"
        self._request = workdir / "cancel"
        self.taken_over: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._token = uuid4().hex

    def _create(self) -> bool:
        pid = os.getpid()
        owner = {
            "host": socket.gethostname(),
            "pid": pid,
            "started": _process_start(pid),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "token": self._token,
        }
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)
        return True

    def _take_over(self, stale: dict[str, Any], who: str) -> None:
        """Remove a dead run's lock; a guard file keeps two heirs from removing each other's."""
        guard = self.path.with_name("lock.takeover")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - guard.stat().st_mtime > STALE_SECONDS:
                    guard.unlink()
            time.sleep(0.1)
            return
        try:
            if _read(self.path) == stale:
                self.path.unlink()
                self.taken_over = who
        finally:
            guard.unlink()

    def __enter__(self) -> Self:
        try:
            make_private(self.path.parent, remedy=REMEDY)
            while not self._create():
                owner = _read(self.path)
                if owner is None:
                    continue
                who = _name(owner)
                if not _is_stale(self.path, owner):
                    raise ConfigError(
                        f"{self.path.parent} is in use by another run ({who}); wait for it, stop it"
                        " with 'calibdask cancel', or choose another directory with --workdir"
                    )
                self._take_over(owner, who)
            self._request.unlink(missing_ok=True)  # to a run of the past
        except OSError as error:
            raise CalibdaskError(
                f"cannot use the work directory {self.path.parent}: {error.strerror or error};"
                " choose another with --workdir"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="workdir-lock", daemon=True)
        self._thread.start()
        return self

    def _beat(self) -> None:
        beaten = time.monotonic()
        while not self._stop.wait(min(REQUEST_SECONDS, HEARTBEAT_SECONDS)):
            # What fails here is not worth ending a run for: the next time it may succeed.
            with contextlib.suppress(OSError):
                if time.monotonic() - beaten >= HEARTBEAT_SECONDS:
                    beaten = time.monotonic()
                    os.utime(self.path)
                if self._is_asked_to_stop():
                    log.warning("asked to stop by calibdask cancel")
                    _interrupt_main_thread()

    def _is_asked_to_stop(self) -> bool:
        """Take a request, if there is one, and tell whether it is this run's user's to this run."""
        try:
            status = self._request.lstat()
        except FileNotFoundError:
            return False
        mine = stat.S_ISREG(status.st_mode) and status.st_uid == self.path.stat().st_uid
        asked = mine and self._request.read_bytes() == self._token.encode()
        self._request.unlink()
        return asked

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            if self._thread is not None:
                self._thread.join()
        finally:  # a request may still arrive while we wait
            owner = _read(self.path)
            if owner is not None and owner.get("token") == self._token:
                self.path.unlink(missing_ok=True)
