"""What travels with a result: which shards are in it, what was cut, what failed, what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from calibdask import errors
from calibdask.engine.merge import Ranges, join_ranges
from calibdask.engine.shown import printable
from calibdask.errors import CalibdaskError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Envelope", "Failure", "Outcome"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that could not be done, as data: it must not stop what can.

    Attributes
    ----------
    where : str
        The file, shard or cell.
    kind : str
        Name of the exception.
    message : str
        What to tell people.
    exit_code : int
        What the process will exit with if this is the first failure.
    trace : str
        The traceback of an unforeseen error: for the log, never for the terminal.
    """

    where: str
    kind: str
    message: str
    exit_code: int
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, where: str, trace: str = "") -> Self:
        """Describe an exception."""
        code = error.exit_code if isinstance(error, CalibdaskError) else 1
        return cls(where, type(error).__name__, str(error), code, trace)

    def describe(self) -> str:
        """Return it as one line, naming the place once."""
        text = self.message if self.where in self.message else f"{self.where}: {self.message}"
        text = text.replace(self.where, printable(self.where, one_line=True))
        return text if self.kind in errors.__all__ else f"{text} ({self.kind})"

    def error(self, more: str = "") -> CalibdaskError:
        """Return an exception with this failure's message and exit code."""
        for name in (self.kind, *errors.__all__) if self.kind in errors.__all__ else errors.__all__:
            known = getattr(errors, name)
            if known.exit_code == self.exit_code and known is not CalibdaskError:
                return known(self.describe() + more)  # type: ignore[no-any-return]
        return CalibdaskError(self.describe() + more)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Account of one or more shards' map step; summed over all of them it accounts for the run.

    Attributes
    ----------
    shards : Ranges
        The shards in it.
    cut_flow : mapping of str to int
        Entries left after each selection.
    key_ranges : tuple of (group, first, last, shard)
        The span of event identifiers that each shard used in each group (observation).
    n_keys : int
        Number of event identifiers used.
    cpu_seconds, wall_seconds : float
        Cost of computing it, whenever that was.
    peak_bytes : int
        Largest resident memory of a process that computed it.
    cpu_classes : tuple of str
        Processor classes it was computed on: bits may differ between classes.
    warnings : tuple of str
        What people should know.
    lost : tuple of Failure
        Inputs that could not be read although others of their shard could.
    """

    shards: Ranges = ()
    cut_flow: Mapping[str, int] | None = None
    key_ranges: tuple[tuple[int, int, int, int], ...] = ()
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    cpu_classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    lost: tuple[Failure, ...] = ()
    n_keys: int = 0

    def merge(self, other: Envelope) -> Envelope:
        """Join the accounts of different shards (CalibdaskError where one occurs twice)."""
        flow = dict(self.cut_flow or {})
        for name, count in (other.cut_flow or {}).items():
            flow[name] = flow.get(name, 0) + count
        return Envelope(
            join_ranges([self.shards, other.shards]),
            flow,
            self.key_ranges + other.key_ranges,
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
            max(self.peak_bytes, other.peak_bytes),
            tuple(sorted({*self.cpu_classes, *other.cpu_classes})),
            self.warnings + other.warnings,
            self.lost + other.lost,
            self.n_keys + other.n_keys,
        )

    def to_header(self) -> dict[str, Any]:
        """Return JSON values for a stored result's header."""
        return {
            "shards": [list(one) for one in self.shards],
            "cut_flow": dict(self.cut_flow or {}),
            "cut_order": list(self.cut_flow or {}),
            "key_ranges": [list(one) for one in self.key_ranges],
            "n_keys": self.n_keys,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "peak_bytes": self.peak_bytes,
            "cpu_classes": list(self.cpu_classes),
            "warnings": list(self.warnings),
            "lost": [asdict(failure) for failure in self.lost],
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any], index: int) -> Self:
        """Read it back for the shard that has place `index` in the present plan.

        The content address leaves the place out, since adding files moves it.
        """
        return cls(
            ((index, index + 1),),
            {name: header["cut_flow"][name] for name in header["cut_order"]},
            tuple((group, first, last, index) for group, first, last, _ in header["key_ranges"]),
            header["cpu_seconds"],
            header["wall_seconds"],
            header["peak_bytes"],
            tuple(header["cpu_classes"]),
            tuple(header["warnings"]),
            tuple(Failure(**failure) for failure in header.get("lost", ())),
            header.get("n_keys", 0),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task hands back: small, since everything large lies in the store.

    Attributes
    ----------
    address : str, optional
        Where the result lies; none if it failed or there was nothing to do.
    shards : Ranges
        The shards in it.
    failure : Failure, optional
        Why there is none.
    envelope : Envelope, optional
        Account of a map task.
    cached : bool
        It was in the store already.
    cpu_seconds, wall_seconds : float
        What this task cost now.
    notes : tuple of str
        What happened on the way: retries, broken results computed again.
    done : bool
        Of a fit: the cell needs no further stage.
    digest : str
        Of a fit: digest of the state.
    duplicates : tuple of (group, identifier, shard, shard, int)
        Of a comparison of keys: the smallest in each group that two shards hold, and how many do.
    members : tuple of Outcome
        Of fits of several cells: the outcome of each.
    """

    address: str | None = None
    shards: Ranges = ()
    failure: Failure | None = None
    envelope: Envelope | None = None
    cached: bool = False
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    done: bool = True
    digest: str = ""
    duplicates: tuple[tuple[int, int, int, int, int], ...] = ()
    members: tuple[Outcome, ...] = ()

    def failures(self) -> list[Failure]:
        """Return the failures of the task and of its members."""
        found = [one.failure for one in (self, *self.members)]
        return [failure for failure in found if failure is not None]
