"""A campaign seen from outside: how far it is, how to end it, what it leaves behind.

All of it comes from the work directory alone. No scheduler has to be alive, and nothing here knows
Dask.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calibdask.access import check_private, distrust
from calibdask.engine.canonical import read_json
from calibdask.engine.events import tunnel_command
from calibdask.engine.lock import Holder, WorkdirLock, ask_to_stop, holder_of
from calibdask.engine.places import REMEDY
from calibdask.engine.progress import Progress, read_progress
from calibdask.engine.session import Session
from calibdask.engine.shown import facts_html, facts_text
from calibdask.engine.sites.base import Settings
from calibdask.engine.sites.table import SITES
from calibdask.engine.store import Store
from calibdask.errors import CalibdaskError, ConfigError
from calibdask.rounding import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calibdask.engine.progress import Group

__all__ = [
    "Removed",
    "Status",
    "cancel",
    "clean",
    "find_workdir",
    "follow",
    "read_status",
]

State = Literal["running", "finished", "failed", "stopped", "never started"]

_KNOWN = ("plan.json", "progress.json", "inputs.json", "lock.json", "store")
_LEFT_BY_THE_DEAD = ("session", "scratch", "lock.takeover")
_RESULTS = (
    "store", "logs", "plan.json", "progress.json", "inputs.json", "products.json",
)  # fmt: skip
_BAR = 24  # characters
_SHOWN = 5  # failures and messages for people; JSON has all that the run kept


def find_workdir(path: Path) -> Path:
    """Find a work directory from its own name or from that of the output.

    Raises
    ------
    ConfigError
        There is none, or it may not be looked into.
    """
    beside = path.with_name(f"{path.name}.work") if path.name else path
    try:
        for candidate in (path, beside):
            if any((candidate / name).exists() for name in _KNOWN):
                return candidate
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; only the user who started the campaign can"
            " connect to it or look into it"
        ) from error
    raise ConfigError(
        f"{path}: no campaign was run here: neither it nor {beside.name} is a work directory; name"
        " the OUTPUT of the run, or what was given with --workdir"
    )


# -- status ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """How far a campaign is; shown by ``print`` and, in a notebook, by its name.

    Attributes
    ----------
    workdir : Path
        The work directory.
    state : str
        ``running``, ``finished``, ``failed`` (it ended with an error), ``stopped`` (somebody or
        something ended it) or ``never started``.
    reason : str
        Why it is not running, where that is not its success.
    holder : Holder or None
        Whose lock is there.
    seen : float or None
        Last sign of life in Unix seconds.
    shards, stored : int
        Shards in the plan, and how many of them the first stage's results are stored of.
    rejected : int
        Inputs that cannot be used.
    progress : Progress or None
        What the last run told.
    """

    workdir: Path
    state: State
    reason: str
    holder: Holder | None
    seen: float | None
    shards: int
    stored: int
    rejected: int
    progress: Progress | None

    @property
    def exit_code(self) -> int:
        """What ``calibdask status`` ends with: 0 where all is well, 3 where someone has to act."""
        return 0 if self.state in ("running", "finished") else 3

    @property
    def carry_on(self) -> str:
        """The command that carries on; empty where the run was started by a script."""
        told = self.progress
        if told is None or not told.command or distrust(self.workdir) is not None:
            return ""  # who else may write there could say anything
        return f"cd {shlex.quote(told.directory)} && {told.command}"

    def to_json(self) -> str:
        """Write everything for other programs."""
        told = None if self.progress is None else dataclasses.asdict(self.progress)
        holder = None if self.holder is None else dataclasses.asdict(self.holder)
        record: dict[str, Any] = {
            "workdir": str(self.workdir),
            "state": self.state,
            "reason": self.reason,
            "seen": self.seen,
            "shards": self.shards,
            "stored": self.stored,
            "rejected": self.rejected,
            "carry_on": self.carry_on,
            "holder": holder,
            "progress": told,
        }
        return json.dumps(record, indent=1)

    def line(self) -> str:
        """Return it as one line."""
        told = self.progress
        parts = [self.state, f"{self.stored} of {self.shards} shards"]
        if told is not None:
            now = [f"{one.name} {one.done}/{one.total}" for one in _current(told)]
            parts += [f"stage {told.groups[-1].stage}: {', '.join(now)}"] if now else [told.doing]
        return "; ".join(part for part in parts if part)

    def facts(self) -> list[tuple[str, str]]:
        """Return what there is to say, with names, for printing."""
        told = self.progress or Progress()
        stored = f"{_bar(self.stored, self.shards)} {self.stored} of {self.shards} stored"
        if self.rejected:
            stored += f", {self.rejected} inputs cannot be used"
        facts = [("campaign", self._headline()), ("work directory", str(self.workdir))]
        facts += [("output", told.output), ("run by", self._run_by())]
        # Those of a run that is over are gone.
        facts += [("workers", _workers(told) if self.state == "running" else told.executor)]
        facts += [("shards", stored if self.shards else "")]
        facts += [(f"stage {one.stage} {one.name}", _group_text(one)) for one in self._groups()]
        if self.state == "running":
            facts += [("now", told.doing), ("running", self._running(told))]
            facts += [("speed", _speed(told))]
            facts += [("dashboard", told.dashboard or "")]
            if told.dashboard:
                facts += [("tunnel", tunnel_command(told.dashboard, told.host))]
        facts += [("failed", text) for text in told.failures[-_SHOWN:]]
        facts += [("message", text) for text in told.messages[-_SHOWN:]]
        facts += [("ended", self.reason), ("digest", told.digest or "")]
        if self.state not in ("running", "finished"):
            facts += [("carry on with", self.carry_on or "the same command, or script, as before")]
        return [(name, value) for name, value in facts if value]

    def _groups(self) -> list[Group]:
        """Return the stages as last reported by the run (a killed run: before its end)."""
        groups = [] if self.progress is None else self.progress.groups
        if self.state == "running" or not self.shards:
            return groups
        return [
            dataclasses.replace(one, done=min(one.total, self.stored + one.failed))
            if (one.stage, one.name) == (0, "map")
            else one
            for one in groups
        ]

    def _headline(self) -> str:
        told = self.progress
        if told is None:
            return self.state
        text = f"{told.job}, {self.state}"
        if self.state == "running":
            return f"{text} for {_duration(self._since(told.started))}"
        if told.ended is not None:
            took = _duration(told.ended - told.started)
            return f"{text} at {_moment(told.ended)} after {took}"
        return text

    def _since(self, moment: float) -> float:
        """Return the age by the clock of the run, which may differ from this machine's."""
        told = self.progress or Progress()
        return max(max(self.seen or 0.0, told.updated) - moment, 0.0)

    def _running(self, told: Progress) -> str:
        if told.longest_since is None:
            return ""
        took = _duration(self._since(told.longest_since))
        shards = "shard" if told.running == 1 else "shards"
        return f"{told.running} {shards}, the longest for {took}: {told.longest}"

    def _run_by(self) -> str:
        told = self.progress
        if self.holder is not None:
            text = self.holder.name
        elif told is not None:
            text = f"process {told.pid} on {told.host}"
            text += f", SLURM job {told.slurm_job}" if told.slurm_job else ""
        else:
            return ""
        if told is not None:
            text += f" ({told.user}, calibdask {told.version})"
        if self.seen is not None and self.state in ("running", "stopped"):
            ago = time.time() - self.seen
            text += f"; last sign of life {_moment(self.seen)}, "
            text += f"{_duration(ago)} ago" if ago > -1 else "by a clock ahead of that of this host"
        return text

    def __str__(self) -> str:
        """Show it as lines of name and value."""
        return facts_text(self.facts())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return facts_html(self.facts())


def _current(told: Progress) -> list[Group]:
    last = max((one.stage for one in told.groups), default=0)
    return [one for one in told.groups if one.stage == last]


def _bar(done: int, total: int) -> str:
    full = min(max(round(_BAR * done / total), 0), _BAR) if total else 0
    return "█" * full + "░" * (_BAR - full)


def _group_text(group: Group) -> str:
    text = f"{_bar(group.done, group.total)} {group.done} of {group.total}"
    text += f", {group.cached} of them found in the store" if group.cached else ""
    return f"{text}, {group.failed} FAILED" if group.failed else text


def _workers(told: Progress) -> str:
    if not told.executor:
        return ""
    return f"{told.executor}, {told.worker_jobs or told.workers}"


def _speed(told: Progress) -> str:
    if told.rate is None or told.left_seconds is None:
        return ""
    rate = f"{told.rate:.3g} shards a second"
    if told.rate < 1:
        rate = f"a shard every {_duration(1 / told.rate)}"
    return f"{rate}, about {_duration(told.left_seconds)} for the rest of this stage"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _read_plan(workdir: Path, digest: str | None) -> tuple[set[str], int, int]:
    """Return the first stage's addresses, the number of shards, and that of rejected inputs.

    There are none while the last run is still planning, or where it failed to: what lies there is
    the plan of a run before it.
    """
    try:
        plan = read_json(workdir / "plan.json")
        if digest is not None and plan["digest"] != digest:
            return set(), 0, 0
        addresses = {shard["address"] for shard in plan["shards"]}
        return addresses, len(plan["shards"]), len(plan["rejected"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set(), 0, 0  # none, half of one, or one by another version


def read_status(workdir: Path) -> Status:
    """Look at a work directory.

    Parameters
    ----------
    workdir : Path
        The work directory (see :func:`find_workdir`).

    Raises
    ------
    ConfigError
        It may not be read.
    """
    try:
        # In this order: a run that ends while we look has told so before it gave up its lock.
        holder = holder_of(workdir)
        told = read_progress(workdir)
        addresses, shards, rejected = _read_plan(workdir, None if told is None else told.plan)
        stored = len(addresses & Store(workdir / "store").scan()) if addresses else 0
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    state, reason = _judge(holder, told)
    signs = [holder.seen] if holder is not None else []
    signs += [told.updated] if told is not None else []
    seen = max(signs, default=None)
    return Status(workdir, state, reason, holder, seen, shards, stored, rejected, told)


def _judge(holder: Holder | None, told: Progress | None) -> tuple[State, str]:
    if holder is not None and holder.alive:
        return "running", ""
    if told is None and holder is None:
        return "never started", ""
    if told is None or (holder is not None and (holder.host, holder.pid) != (told.host, told.pid)):
        return "stopped", "terminated before reporting progress"
    if told.ended is None:
        return "stopped", "killed without warning, or its last words could not be written"
    if told.exit_code == 0:
        return "finished", ""
    stopped = told.exit_code in (130, 143)
    code = f"exit code {told.exit_code}"
    return "stopped" if stopped else "failed", f"{code}: {told.error}"


def follow(workdir: Path) -> Iterator[Status]:
    """Look again and again until nothing runs any more; the last look is the end.

    A look at a large store on a slow file system takes its time, and looking must not be a load:
    the pauses are at least ten times as long, and a second.
    """
    while True:
        begun = time.monotonic()
        status = read_status(workdir)
        yield status
        if status.state != "running":
            return
        time.sleep(max(1.0, 10 * (time.monotonic() - begun)))


# -- cancel ---------------------------------------------------------------------------------------


def cancel(workdir: Path, timeout: float = 60.0) -> str:
    """Ask the run in a work directory to stop, and wait until it has.

    Worker jobs that a dead run left in the queue of the batch system are cancelled.

    Parameters
    ----------
    workdir : Path
        The work directory.
    timeout : float
        How many seconds to wait.

    Returns
    -------
    str
        What was found and done.

    Raises
    ------
    ConfigError
        The directory belongs to another user, or others may write to it.
    CalibdaskError
        The run goes on in spite of the request.
    """
    check_private(workdir, remedy=REMEDY)
    holder = holder_of(workdir)
    if holder is None or not holder.alive:
        gone = "no run is going on" if holder is None else f"{holder.name} is dead already"
        return "; ".join([f"{workdir}: {gone}", *_cancel_worker_jobs(workdir)])
    check_private(workdir / "lock.json", remedy=REMEDY)  # it would not heed us
    ask_to_stop(workdir, holder)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        time.sleep(0.2)
        now = holder_of(workdir)
        if now is None or now.token != holder.token:
            return f"{workdir}: {holder.name} has stopped; what was computed is stored"
        if not now.alive:
            jobs = _cancel_worker_jobs(workdir)
            return "; ".join([f"{workdir}: {holder.name} died on the way", *jobs])
    raise CalibdaskError(
        f"{workdir}: {holder.name} was asked to stop and still stands after {timeout:.0f} s; it"
        " stops when what it has in hand allows: look again with calibdask status, or end it by"
        " other means"
    )


def _cancel_worker_jobs(workdir: Path) -> list[str]:
    """Cancel the worker jobs of a dead run; say so if there were any."""
    if not (workdir / "session").exists():
        return []
    try:
        described = Session(workdir / "session").read()
    except ConfigError:
        return []
    named = [str(job) for job in described.get("worker_jobs", [])]
    where = str(described.get("site"))
    if not named or where not in SITES:
        return []
    jobs = SITES[where].load()(where, Settings()).cancel(named)
    if not jobs:
        return []
    return [f"cancelled its worker jobs {', '.join(jobs)}"]


# -- clean ----------------------------------------------------------------------------------------


@dataclass
class Removed:
    """What was removed.

    Attributes
    ----------
    files, n_bytes : int
        How much.
    left : list of str
        What stayed although all was to go, since it is not calibdask's.
    notes : list of str
        What else was done.
    """

    files: int = 0
    n_bytes: int = 0
    left: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """Return it as one line."""
        text = f"removed {self.files} files, {format_bytes(self.n_bytes)}"
        if self.left:
            text += f"; left what is not calibdask's: {', '.join(self.left)}"
        return "; ".join([text, *self.notes])

    def take(self, path: Path) -> None:
        """Remove a file or a directory with all in it; of a symbolic link only the link."""
        if path.is_dir() and not path.is_symlink():
            for folder, _, names in os.walk(path):
                for name in names:
                    self._count(Path(folder, name))
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            self._count(path)
            path.unlink()

    def _count(self, path: Path) -> None:
        self.files += 1
        self.n_bytes += path.lstat().st_size


def clean(workdir: Path, *, everything: bool = False) -> Removed:
    """Remove what dead runs left; with `everything` also results, plan and the directory itself.

    Parameters
    ----------
    workdir : Path
        The work directory.
    everything : bool
        Remove all of it that is calibdask's.

    Raises
    ------
    ConfigError
        A run that is alive holds the directory, it is not a work directory, or others own it or may
        write to it.
    CalibdaskError
        Something cannot be removed.
    """
    check_private(workdir, remedy=REMEDY)
    if everything:
        _check_is_workdir(workdir)
    removed = Removed()
    holder = holder_of(workdir)
    if holder is not None and not holder.alive:
        removed.notes += _cancel_worker_jobs(workdir)
        removed.files += 1
        removed.n_bytes += (workdir / "lock.json").stat().st_size
    try:
        # Holding the lock, so that no run begins meanwhile. Taking it removes a dead run's.
        with WorkdirLock(workdir):
            for name in _LEFT_BY_THE_DEAD + (_RESULTS if everything else ()):
                removed.take(workdir / name)
            for path in _temporary(workdir):
                removed.take(path)
        if everything:
            removed.left = sorted(one.name for one in workdir.iterdir())
            if not removed.left:
                workdir.rmdir()
    except OSError as error:
        raise CalibdaskError(
            f"cannot remove {error.filename or workdir}: {error.strerror or error}"
        ) from error
    return removed


def _temporary(workdir: Path) -> list[Path]:
    """Find files that were being written when their writer died."""
    found = list(workdir.glob("*.tmp"))
    store = workdir / "store"
    if store.is_dir() and not store.is_symlink():
        for folder in store.iterdir():
            if folder.is_dir() and not folder.is_symlink():
                found += folder.glob("*.tmp")
    return found


def _check_is_workdir(workdir: Path) -> None:
    """Refuse to empty what may be something else.

    Raises
    ------
    ConfigError
        Neither a plan nor a store of calibdask's is in it.
    """
    if workdir.is_symlink():
        raise ConfigError(
            f"{workdir} is a symbolic link to {workdir.resolve()}: name that directory itself"
        )
    store = workdir / "store"
    is_store = store.is_dir() and all(_is_prefix(one.name) for one in store.iterdir())
    if not (is_store or _read_plan(workdir, None)[1]):
        raise ConfigError(f"{workdir}: holds neither a plan nor a store: not a work directory")
    if store.exists() and not is_store:
        raise ConfigError(f"{store}: holds something else than results: remove it by hand")


def _is_prefix(name: str) -> bool:
    return len(name) == 2 and set(name) <= set("0123456789abcdef")
