"""One run per work directory: a lock file with a heartbeat, taken over when its owner is dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from calibdask.errors import CalibdaskError, ConfigError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["WorkdirLock"]

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0


def _process_start(pid: int) -> str | None:
    """Tell when a process of this host began, which also tells a recycled process id apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *rest = fields.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


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
        self.taken_over: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._token = uuid4().hex

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            owner = {}  # cut short: its owner died while writing it, or is writing it now
        return owner if isinstance(owner, dict) else {}

    def _is_stale(self, owner: dict[str, Any]) -> bool:
        if owner.get("host") == socket.gethostname() and "pid" in owner:
            return _process_start(int(owner["pid"])) != owner.get("started")
        try:
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return True
        return age > STALE_SECONDS

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
            if self._owner() == stale:
                self.path.unlink()
                self.taken_over = who
        finally:
            guard.unlink()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                owner = self._owner()
                if owner is None:
                    continue
                who = f"process {owner.get('pid')} on {owner.get('host')}"
                if owner.get("slurm_job"):
                    who += f", SLURM job {owner['slurm_job']}"
                if not self._is_stale(owner):
                    raise ConfigError(
                        f"{self.path.parent} is in use by another run ({who}); wait for it,"
                        " stop it, or choose another directory with --workdir"
                    )
                self._take_over(owner, who)
        except OSError as error:
            raise CalibdaskError(
                f"cannot use the work directory {self.path.parent}: {error.strerror or error};"
                " choose another with --workdir"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="workdir-lock", daemon=True)
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A lost heartbeat is not worth ending a run for: the next one may succeed.
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        owner = self._owner()
        if owner is not None and owner.get("token") == self._token:
            self.path.unlink(missing_ok=True)
