"""The contract between the engine and a calibration: NumPy only, no Dask, no files.

A calibration maps shards to small mergeable summaries, merges them, and fits. What differs from one
calibration to the next is what one summary holds and which coefficients are fitted from it; the
engine does the rest: plan, store, resume, merge, account.

The smallest calibration names a summary type and writes four methods: :meth:`Calibration.read`,
:meth:`Calibration.reduce`, :meth:`Calibration.fit` and :meth:`Calibration.tables`. Every other
method of :class:`Calibration` has a default that fits one stage, one cell and one shard per file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from calibdask.config.sections import JobSection, Section, Stage
from calibdask.errors import CalibdaskError, MissingInput

if TYPE_CHECKING:
    from astropy.table import QTable

    from calibdask import report
    from calibdask.config import Campaign, Configuration

__all__ = [
    "ALL",
    "Arrays",
    "Calibration",
    "Cell",
    "InputRef",
    "Piece",
    "Reduced",
    "Rows",
    "Shard",
    "State",
    "Summary",
    "Survey",
    "Values",
    "WrongKind",
]

Cell = tuple[str | int, ...]
"""What gets its own merge tree, fit and stopping rule, e.g. ``("LST", 3)`` or a time bin."""

ALL: Cell = ()
"""The one cell of a calibration that fits everything together."""

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays: the form in which summaries, states and rows are stored."""

Rows = Arrays
"""Per-event arrays worth keeping, so that a later stage need not read the inputs again."""


class WrongKind(MissingInput):
    """A sound file, but not one this calibration reads.

    Named on the command line it is an error; found in a directory it is left out and reported.
    """


class Summary(Protocol):
    """A monoid: identity exact, merge associative up to rounding, arguments never changed."""

    def merge(self, other: Self) -> Self:
        """Combine two summaries of disjoint data."""
        ...

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the arrays that stand for this summary in the store."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make the summary again from its arrays."""
        ...


class State(Protocol):
    """What a fit of one cell gave; ``done`` ends the cell, otherwise another stage follows."""

    @property
    def done(self) -> bool:
        """Whether this cell needs no further stage."""
        ...

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the arrays that stand for this state in the store."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make the state again from its arrays."""
        ...


@dataclass(frozen=True)
class Values:
    """A plain state: named arrays, done after one stage."""

    arrays: Arrays
    done: ClassVar[bool] = True

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the arrays."""
        return {name: np.asarray(value) for name, value in self.arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Make the state again from its arrays."""
        return cls(dict(arrays))


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input file and what identifies its content.

    Attributes
    ----------
    path : str
        Where the file is: provenance only, it may move.
    identity : str
        What is in it (see :func:`calibdask.engine.inputs.identify`).
    size : int
        Bytes.
    mtime_ns : int
        Time of last modification when it was identified; a change is noticed when it is read.
    """

    path: str
    identity: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One shard as a calibration proposes it, before the plan numbers it.

    Attributes
    ----------
    inputs : tuple of InputRef
        The files to read.
    part : tuple of (name, value)
        Which part of them, e.g. ``(("first_row", 0), ("stop_row", 100000))``; empty for all.
    cells : tuple of Cell
        The cells this shard contributes to.
    order : tuple of int
        Natural order of the data (observation, first event, ...). Shards are merged in this order,
        ties broken by content, so that file names and places do not move a single bit.
    n_bytes : int
        Bytes to be read.
    peak_bytes : int
        Estimate of the memory that mapping it needs, so that a run can refuse to start; three times
        `n_bytes` unless given.
    stored_bytes : int
        Estimate of what its result holds: summaries and kept rows. Nothing that counts unless
        given.
    """

    inputs: tuple[InputRef, ...]
    part: tuple[tuple[str, int | str], ...] = ()
    cells: tuple[Cell, ...] = (ALL,)
    order: tuple[int, ...] = ()
    n_bytes: int = 0
    peak_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: `index` is its place in the plan, which is the order of merging."""

    index: int
    inputs: tuple[InputRef, ...]
    part: tuple[tuple[str, int | str], ...] = ()
    cells: tuple[Cell, ...] = (ALL,)
    n_bytes: int = 0
    peak_bytes: int = 0
    stored_bytes: int = 0

    @property
    def label(self) -> str:
        """Name for people: the file names and the part."""
        files = [Path(ref.path).name for ref in self.inputs]
        if len(files) > 3:
            files = [files[0], "...", f"{files[-1]} ({len(files)} files)"]
        # Not every name is UTF-8, and only text that is can be sent to others.
        names = "+".join(files).encode("utf-8", "backslashreplace").decode()
        part = ",".join(f"{name}={value}" for name, value in self.part)
        return f"{names}[{part}]" if part else names


@dataclass(frozen=True)
class Survey:
    """What a look at one input's metadata showed; `facts` is the calibration's own."""

    source: InputRef
    order: tuple[int, ...] = ()
    facts: Any = None


@dataclass(frozen=True)
class Reduced:
    """What the map step makes of one shard.

    Attributes
    ----------
    summaries : mapping of Cell to Summary
        One for each of the shard's cells; an absent cell counts as empty.
    cut_flow : mapping of str to int
        How many entries were left after each selection, in the order of selection.
    rows : Rows, optional
        Arrays to keep for later stages and for output files.
    keys : ndarray of int64, shape (n, 2), optional
        (group, identifier) of every event used, e.g. (obs_id, event_id). No event may occur in
        two shards: the engine checks.
    warnings : tuple of str
        What people should know about this shard although it could be used.
    lost : tuple of (path, CalibdaskError)
        Inputs of this shard that could not be read and are not in the summaries, while the others
        are: named, and counted as missing. In each stage they must be the same.
    """

    summaries: Mapping[Cell, Summary]
    cut_flow: Mapping[str, int] = field(default_factory=dict)
    rows: Rows | None = None
    keys: NDArray[np.int64] | None = None
    warnings: tuple[str, ...] = ()
    lost: tuple[tuple[str, CalibdaskError], ...] = ()


class Calibration:
    """Base of every calibration: a frozen dataclass that holds its options and no state.

    It is pickled to workers, so it must hold plain values only.
    """

    name: ClassVar[str]
    """The job's name on the command line."""

    version: ClassVar[int] = 1
    """Raise it whenever the numbers change: stored results of older versions are then not used."""

    map_name: ClassVar[str] = ""
    """Jobs whose first stage is the same give it this name: in one work directory, what one of them
    stored is found by the others. They have one version."""

    summary: ClassVar[type[Summary]]
    """Type of the summaries (override :meth:`summary_type` where stages differ)."""

    state: ClassVar[type[State]] = Values
    """Type of the states that :meth:`fit` returns."""

    patterns: ClassVar[tuple[str, ...]] = ("*.h5", "*.hdf5")
    """Which files to take from a directory given as input."""

    usual_stages: ClassVar[int] = 1
    """How many stages there usually are, for the plan's estimate."""

    small_bytes: ClassVar[int] = 0
    """About what a merged summary, a state, or a later stage's result holds, for the estimate."""

    bins_time: ClassVar[bool] = False
    """Whether it has cells by time bin (``Campaign.time_bin``); otherwise bins are refused."""

    has_maps: ClassVar[bool] = False
    """Whether it writes maps of pixels, cell by cell: the output is then a directory."""

    rejects_copies: ClassVar[bool] = False
    """Whether the second of two files with the same data is rejected and the rest is used; if not,
    nothing is."""

    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that the map step imports when it needs them: local workers begin with them."""

    sections: ClassVar[Mapping[str, type[Section]]] = {}
    """Sections of its configuration, the main one first, as a new configuration shows them."""

    further_sections: ClassVar[Mapping[str, type[Section]]] = {}
    """Sections that it reads as well, and other names of sections, which none shows."""

    # -- configuration ----------------------------------------------------------------------------

    @classmethod
    def main(cls) -> type[JobSection]:
        """Give the type of its main section."""
        first = next(iter(cls.sections.values()), JobSection)
        if not issubclass(first, JobSection):
            raise TypeError(f"{first.__name__} is not a JobSection")
        return first

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its configuration.

        Parameters
        ----------
        document : Configuration
            Its sections, each valid by itself.
        campaign : Campaign
            The engine's section.

        Raises
        ------
        ConfigError
            Options contradict each other.
        """
        del document, campaign
        return cls()

    def _staged(self, stage: Stage) -> dict[str, Any]:
        """Give the options of a stage of all sections that are fields of this calibration."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        staged = {
            name: value.staged(stage)
            for name, value in values.items()
            if isinstance(value, Section)
        }
        return {name: options for name, options in staged.items() if options}

    # -- planning: metadata only, cheap -----------------------------------------------------------

    def libraries(self, paths: Sequence[Path]) -> Iterable[str]:
        """Name modules that reading files of these names takes: imported once for all children."""
        del paths
        return ()

    def also_read(self) -> Sequence[str]:
        """Name files and directories that are read beside the inputs: no product replaces them."""
        return ()

    def survey(self, source: InputRef) -> Survey:
        """Look at one input's metadata.

        Raises
        ------
        CalibdaskError
            The input cannot be used; the others still are.
        """
        return Survey(source)

    def repeats(self, survey: Survey) -> bool:
        """Tell of an input with the same data as another whether it is a measurement of its own."""
        del survey
        return False

    def misfits(self, surveys: Sequence[Survey]) -> Mapping[int, CalibdaskError]:
        """Tell which inputs, by their place, cannot be used with the others: they are rejected."""
        del surveys
        return {}

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Give this calibration with what it must know of all inputs together.

        Raises
        ------
        CalibdaskError
            The inputs contradict each other.
        """
        del surveys
        return self

    def pieces(self, surveys: Sequence[Survey]) -> Iterable[Piece]:
        """Cut the inputs into shards; one shard per input unless overridden."""
        for survey in surveys:
            yield Piece((survey.source,), order=survey.order, n_bytes=survey.source.size)

    def stored_bytes(self, cell: Cell, shards: Sequence[Shard]) -> tuple[int, int]:
        """Estimate the bytes of a merged summary and of the state of a cell.

        Parameters
        ----------
        cell : Cell
            The cell.
        shards : sequence of Shard
            All shards of the plan.
        """
        del cell, shards
        return self.small_bytes, self.small_bytes

    def map_config(self) -> Mapping[str, Any]:
        """Give what :meth:`read` and :meth:`reduce` depend on beside the shard (JSON values only).

        That is the options of the stage "map" of all sections among the fields. Override it to add
        what is no option: digests of other products, what planning found.
        """
        return self._staged("map")

    def fit_config(self) -> Mapping[str, Any]:
        """Give what only fits and products depend on, likewise by the stage "fit"."""
        return self._staged("fit")

    def warnings(self) -> Sequence[str]:
        """Tell what is odd about the plan although it can be run."""
        return ()

    # -- map --------------------------------------------------------------------------------------

    def read(self, shard: Shard, rows: Rows | None) -> Any:
        """Read what :meth:`reduce` needs: the only input in a calibration.

        `rows` are the arrays kept by the first stage, from the second stage on.
        """
        raise NotImplementedError

    def reduce(self, stage: int, data: Any, given: Mapping[Cell, Any]) -> Reduced:
        """Summarise what was read. Pure: no files, no clock, no chance."""
        raise NotImplementedError

    def name_event(self, group: int, identifier: int) -> str:
        """Say what a key of `Reduced` means, where two inputs hold it."""
        return f"event {identifier} of observation {group}"

    def summary_type(self, stage: int) -> type[Summary]:
        """Give the type of the summaries of a stage."""
        del stage
        return self.summary

    # -- fit --------------------------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: Any) -> State:
        """Fit one cell from its merged summary (`given` is its state of the stage before)."""
        raise NotImplementedError

    def combine(self, states: Mapping[Cell, Any]) -> Any:
        """Join the final states of all cells into the result. Small; runs on the driver.

        Each state is read from the store when it is asked for, and not held: states may be larger
        together than memory, their result may not.
        """
        return states

    def notices(self, states: Mapping[Cell, Any], result: Any) -> Sequence[str]:
        """Tell what the fits found odd about the data, in sentences. Runs on the driver."""
        del states, result
        return ()

    # -- products ---------------------------------------------------------------------------------

    def tables(self, result: Any) -> Mapping[str, QTable]:
        """Give the output tables by their HDF5 path."""
        del result
        return {}

    def product(self, result: Any) -> Mapping[str, str]:
        """Give what the CTA reference metadata say about the product."""
        del result
        return {"description": self.name, "data_level": "Other", "process_type": "Other"}

    def files(self, shards: Sequence[Shard]) -> Mapping[str, tuple[int, ...]]:
        """Name the files written beside each other in an output directory, with their shards."""
        del shards
        return {}

    def write_file(self, path: Path, shards: Sequence[Shard], parts: Iterable[Rows]) -> None:
        """Write one of :meth:`files` from the kept rows of its shards, one shard at a time."""
        raise NotImplementedError

    def create_maps(self, path: Path, states: Mapping[Cell, Any], result: Any) -> None:
        """Make the Zarr directory of the maps, for :meth:`write_maps` to fill; on the driver."""
        raise NotImplementedError

    def write_maps(self, path: Path, cell: Cell, state: Any, result: Any) -> None:
        """Write the maps of one cell, whole chunks of them; on a worker."""
        raise NotImplementedError

    def finish_maps(self, path: Path, result: Any) -> None:
        """Write other files beside the finished maps, if there are any; on the driver."""

    def report(self, result: Any, tables: Mapping[str, QTable]) -> Sequence[report.Section]:
        """Give the sections of the HTML report."""
        del result, tables
        return ()
