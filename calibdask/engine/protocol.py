"""The contract between the engine and a calibration: NumPy only, no Dask, no files.

A calibration maps shards to small mergeable summaries, merges them, and fits. What differs from one
calibration to the next is what one summary holds and which coefficients are fitted from it; the
engine does the rest: plan, store, resume, merge, account.

The smallest calibration names a summary type and writes four methods: :meth:`Calibration.read`,
:meth:`Calibration.reduce`, :meth:`Calibration.fit` and :meth:`Calibration.outputs`. Every other
method of :class:`Calibration` has a default that fits one stage, one cell and one shard per file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from calibdask.config.sections import JobSection, Section, Stage

if TYPE_CHECKING:
    from astropy.table import QTable

    from calibdask import report
    from calibdask.config import Campaign, Configuration
    from calibdask.errors import CalibdaskError
    from calibdask.io.metadata import Metadata

__all__ = [
    "ALL",
    "AnyCalibration",
    "Arrays",
    "Calibration",
    "Cell",
    "Files",
    "InputRef",
    "Maps",
    "Output",
    "Piece",
    "Reduced",
    "Rows",
    "Shard",
    "State",
    "Summary",
    "Survey",
    "Tables",
    "Values",
    "tables_of",
]

Cell = tuple[str | int, ...]
"""What gets its own merge tree, fit and stopping rule, e.g. ``("LST", 3)`` or a time bin."""

ALL: Cell = ()
"""The one cell of a calibration that fits everything together."""

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays: the form in which summaries, states and rows are stored."""

Rows = Arrays
"""Per-event arrays worth keeping, so that a later stage need not read the inputs again."""


class Summary(Protocol):
    """A monoid: identity exact, merge associative up to rounding, arguments never changed."""

    def merge(self, other: Self) -> Self:
        """Combine two summaries of disjoint data."""
        ...

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that stand for this summary in the store."""
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
        """Return the arrays that stand for this state in the store."""
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
        """Return the arrays."""
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


@dataclass(frozen=True)
class Tables:
    """Tables of the product.

    Attributes
    ----------
    tables : mapping of str to QTable
        By their path in the HDF5 file. The first one is also written as text.
    metadata : callable, optional
        Makes the attributes of the file from the run (see :mod:`calibdask.io.metadata`).
    """

    tables: Mapping[str, QTable]
    metadata: Metadata | None = None


@dataclass(frozen=True)
class Files:
    """Files beside each other in an output directory, made from the rows that shards kept.

    Attributes
    ----------
    name : callable
        ``name(shard)`` is the name of the file that the rows of a shard go to.
    write : callable
        ``write(path, shards, parts)`` writes one file from the rows of its shards, of which one at
        a time is in memory. Called on a worker.
    """

    name: Callable[[Shard], str]
    write: Callable[[Path, Sequence[Shard], Iterable[Rows]], None]


@dataclass(frozen=True)
class Maps:
    """A Zarr directory of maps, written cell by cell, in an output directory.

    Attributes
    ----------
    create : callable
        ``create(path, states)`` makes the directory with its empty maps. Called on the driver.
    write : callable
        ``write(path, cell, state)`` writes the maps of one cell, in whole chunks. Called on a
        worker.
    finish : callable
        ``finish(path)`` writes other files beside the finished maps. Called on the driver.
    """

    create: Callable[[Path, Mapping[Cell, Any]], None]
    write: Callable[[Path, Cell, Any], None]
    finish: Callable[[Path], None] = lambda path: None


type Output = Tables | Files | Maps


def tables_of(outputs: Iterable[Output]) -> dict[str, QTable]:
    """Return the tables among the outputs by their path."""
    return {
        path: table
        for output in outputs
        if isinstance(output, Tables)
        for path, table in output.tables.items()
    }


class Calibration[Data, Fit: State, Result]:
    """Base of every calibration: a frozen dataclass that holds its options and no state.

    It is pickled to workers, so it must hold plain values only. `Data` is what :meth:`read` gives,
    `Fit` the state of a cell, `Result` what all states give together.
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

    combines: ClassVar[str] = ""
    """How the names of those arrays of a state begin that :meth:`combine` and :meth:`notices` need:
    others are not read."""

    patterns: ClassVar[tuple[str, ...]] = ("*.h5", "*.hdf5")
    """Which files to take from a directory given as input."""

    usual_stages: ClassVar[int] = 1
    """How many stages there usually are, for the plan's estimate."""

    small_bytes: ClassVar[int] = 0
    """About what a merged summary, a state, or a later stage's result holds, for the estimate."""

    bins_time: ClassVar[bool] = False
    """Whether it has cells by time bin (``Campaign.time_bin``); otherwise bins are refused."""

    writes_directory: ClassVar[bool] = False
    """Whether its output is a directory: it has `Files` or `Maps` among its outputs."""

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
        """Return the type of its main section."""
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
        """Return the options of a stage of all sections that are fields of this calibration."""
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
        """Return which inputs, by index, cannot be used with the others: they are rejected."""
        del surveys
        return {}

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Return this calibration with what it must know of all inputs together.

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
        """Return what :meth:`read` and :meth:`reduce` depend on beside the shard (JSON only).

        That is the options of the stage "map" of all sections among the fields. Override it to add
        what is no option: digests of other products, what planning found.
        """
        return self._staged("map")

    def fit_config(self) -> Mapping[str, Any]:
        """Return what only fits and products depend on, likewise by the stage "fit"."""
        return self._staged("fit")

    def warnings(self) -> Sequence[str]:
        """Return warnings about the plan although it can be run."""
        return ()

    # -- map --------------------------------------------------------------------------------------

    def read(self, shard: Shard) -> Data:
        """Read what :meth:`reduce` needs: the only input in a calibration."""
        raise NotImplementedError

    def reduce(self, shard: Shard, data: Data) -> Reduced:
        """Summarise what was read, in the first stage. Pure: no files, no clock, no chance."""
        raise NotImplementedError

    def refine(
        self, stage: int, shard: Shard, data: Rows | Data, given: Mapping[Cell, Fit]
    ) -> Reduced:
        """Summarise again in a later stage, with the states of the stage before.

        Parameters
        ----------
        stage : int
            Number of the stage, at least 1.
        shard : Shard
            The shard.
        data : Rows or Data
            The rows that :meth:`reduce` kept of this shard; what :meth:`read` gives where it kept
            none.
        given : mapping of Cell to Fit
            The states of the shard's cells that are not done.
        """
        raise NotImplementedError

    def name_event(self, group: int, identifier: int) -> str:
        """Describe what a key of `Reduced` means, where two inputs hold it."""
        return f"event {identifier} of observation {group}"

    def summary_type(self, stage: int) -> type[Summary]:
        """Return the type of the summaries of a stage."""
        del stage
        return self.summary

    # -- fit --------------------------------------------------------------------------------------

    def fit(self, stage: int, cell: Cell, total: Any, given: Fit | None) -> Fit:
        """Fit one cell from its merged summary (`given` is its state of the stage before)."""
        raise NotImplementedError

    def combine(self, states: Mapping[Cell, Fit]) -> Result:
        """Join the final states of all cells into the result. Small; runs on the driver.

        Each state is read from the store when it is asked for, and not held: states may be larger
        together than memory, their result may not.
        """
        return cast("Result", states)

    def notices(self, states: Mapping[Cell, Fit], result: Result) -> Sequence[str]:
        """Return warnings of the fits about the data. Runs on the driver."""
        del states, result
        return ()

    # -- products ---------------------------------------------------------------------------------

    def outputs(self, result: Result) -> Sequence[Output]:
        """Return what is written: tables, files, maps."""
        raise NotImplementedError

    def report(
        self, result: Result, tables: Mapping[str, QTable]
    ) -> Sequence[report.ReportSection]:
        """Return the sections of the HTML report."""
        del result, tables
        return ()


type AnyCalibration = Calibration[Any, Any, Any]
"""A calibration whose types do not matter, as in all of the engine."""
