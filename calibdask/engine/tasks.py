"""What a worker does: map one shard, merge a few results, fit one cell, write one file.

Each is a plain function of small arguments that ends with one atomic write to the store and hands
back an :class:`~calibdask.engine.envelope.Outcome`. It looks first whether its result is there
already, so doing it again is always safe. Failures are handed back as data.
"""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine.canonical import canonical_json, digest_arrays, digest_json
from calibdask.engine.envelope import Envelope, Failure, Outcome
from calibdask.engine.inputs import check_unchanged
from calibdask.engine.keys import divided_keys, key_ranges
from calibdask.engine.merge import join_ranges, merge_address
from calibdask.engine.provenance import cpu_class
from calibdask.engine.store import CorruptResult, Store
from calibdask.errors import CalibdaskError, NotEnoughData, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calibdask.engine.protocol import (
        AnyCalibration,
        Cell,
        Files,
        Maps,
        Rows,
        Shard,
        State,
        Summary,
    )
    from calibdask.engine.store import Pack

__all__ = [
    "CellFit",
    "States",
    "Task",
    "WorkContext",
    "Writing",
    "fit_cells",
    "guarded",
    "kept_arrays",
    "load_state",
    "load_summary",
    "map_shard",
    "merge_node",
    "opens_inputs",
    "write_file",
    "write_maps",
]


@dataclass(frozen=True)
class Task:
    """One node of the graph.

    Attributes
    ----------
    key : str
        Its name, unique in the run.
    group : str
        "map", "compare", "merge", "fit" or "write".
    label : str
        Name for people.
    call : callable
        A module-level function: ``call(*args, *outcomes of needs)``.
    args : tuple
        Small picklable arguments.
    needs : tuple of str
        Keys of the tasks whose outcomes come last among the arguments.
    """

    key: str
    group: str
    label: str
    call: Callable[..., Outcome]
    args: tuple[Any, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkContext:
    """What every task of a run needs."""

    calibration: AnyCalibration
    store: Store
    retries: int = 2
    retry_seconds: float = 0.5


def guarded(context: WorkContext, where: str, work: Callable[[], Outcome]) -> Outcome:
    """Do the work of a task; try again what may pass, and turn what does not into data."""
    wall, cpu = time.perf_counter(), time.thread_time()
    notes: list[str] = []
    attempt = 0
    while True:
        try:
            outcome = work()
            break
        except TransientError as error:
            attempt += 1
            if attempt > context.retries:
                outcome = Outcome(failure=Failure.of(error, where))
                break
            notes.append(f"{where}: tried again after: {error}")
            time.sleep(context.retry_seconds * 2 ** (attempt - 1))
        except MemoryError:
            message = f"{where}: out of memory; lower Campaign.shard_bytes or use fewer workers"
            outcome = Outcome(failure=Failure(where, "MemoryError", message, 1))
            break
        except Exception as error:  # noqa: BLE001  the one place where a bug in one shard must not cost the others: it is reported, with its traceback in the log
            foreseen = isinstance(error, CalibdaskError)
            trace = "" if foreseen else "".join(traceback.format_exception(error))
            outcome = Outcome(failure=Failure.of(error, where, trace))
            break
    return replace(
        outcome,
        notes=(*notes, *outcome.notes),
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.thread_time() - cpu,
    )


def _cell_group(cell: Cell) -> str:
    return "cell " + canonical_json(list(cell))


def load_state(context: WorkContext, address: str, prefix: str = "") -> State:
    """Read the state of a cell from the store: of its arrays those whose names begin so."""

    def wanted(names: Iterable[str]) -> Iterable[str]:
        return (name for name in names if name.startswith(prefix))

    try:
        with context.store.open(address) as pack:
            return context.calibration.state.from_arrays(pack.group("state", wanted))
    except CorruptResult:
        context.store.discard(address)
        raise


class States(Mapping["Cell", "State"]):
    """States of cells in the store, each read when it is asked for and not held."""

    def __init__(
        self, context: WorkContext, addresses: Mapping[Cell, str], prefix: str = ""
    ) -> None:
        self._context, self._prefix = context, prefix
        self.addresses = addresses

    def only(self, prefix: str) -> States:
        """Return the same states, of whose arrays those are read whose names begin so."""
        return States(self._context, self.addresses, prefix)

    def __getitem__(self, cell: Cell) -> State:
        return load_state(self._context, self.addresses[cell], self._prefix)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.addresses)

    def __len__(self) -> int:
        return len(self.addresses)


def load_summary(
    context: WorkContext, stage: int, cell: Cell, level: int, address: str
) -> Summary | None:
    """Read the summary of a cell from the result of a shard (level 0) or of a merge.

    None where it holds nothing of the cell.

    Raises
    ------
    CorruptResult
        The result is broken.
    TransientError
        It is not there.
    """
    with context.store.open(address) as pack:
        return _summary_in(context, stage, cell, level, pack)


def _summary_in(
    context: WorkContext, stage: int, cell: Cell, level: int, pack: Pack
) -> Summary | None:
    filled = pack.header["filled"] if level else list(cell) in pack.header["cells"]
    if not filled:
        return None
    arrays = pack.group("total" if level else _cell_group(cell))
    return context.calibration.summary_type(stage).from_arrays(arrays)


def map_shard(
    context: WorkContext,
    stage: int,
    shard: Shard,
    address: str,
    given: Mapping[Cell, str],
    rows_address: str | None,
) -> Outcome:
    """Read one shard, reduce it, and store its summaries.

    Parameters
    ----------
    context : WorkContext
        What every task needs.
    stage : int
        The stage.
    shard : Shard
        What to read.
    address : str
        Where the result goes.
    given : mapping of Cell to address
        The states of the stage before.
    rows_address : str, optional
        Where the first stage left this shard's rows.
    """

    def work() -> Outcome:
        notes: list[str] = []
        if context.store.has(address):
            try:
                with context.store.open(address) as pack:
                    envelope = Envelope.from_header(pack.header["envelope"], shard.index)
                return Outcome(address, envelope.shards, envelope=envelope, cached=True)
            except CorruptResult as error:
                notes.append(_discard(context, address, error))
        wall, cpu = time.perf_counter(), time.thread_time()
        for ref in shard.inputs:
            check_unchanged(ref)
        calibration = context.calibration
        if rows_address is None:
            reduced = calibration.reduce(shard, calibration.read(shard))
        else:
            rows = kept_arrays(context, shard, rows_address, "rows")
            data = rows or calibration.read(shard)
            reduced = calibration.refine(stage, shard, data, States(context, given))
            del rows, data
        stray = set(reduced.summaries) - set(shard.cells)
        if stray:
            raise AssertionError(f"reduce() gave cells that the plan does not know: {stray}")
        envelope = Envelope(
            shards=((shard.index, shard.index + 1),),
            cut_flow=dict(reduced.cut_flow),
            key_ranges=key_ranges(reduced.keys, shard.index),
            n_keys=0 if reduced.keys is None else len(reduced.keys),
            cpu_seconds=time.thread_time() - cpu,
            wall_seconds=time.perf_counter() - wall,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            cpu_classes=(cpu_class(),),
            warnings=reduced.warnings,
            lost=tuple(Failure.of(error, path) for path, error in reduced.lost),
        )
        groups: dict[str, Rows] = {
            _cell_group(cell): summary.to_arrays() for cell, summary in reduced.summaries.items()
        }
        if reduced.rows is not None:
            groups["rows"] = reduced.rows
        if reduced.keys is not None:
            groups["keys"] = divided_keys(reduced.keys)
        header = {
            "envelope": envelope.to_header(),
            "cells": [list(cell) for cell in reduced.summaries],
        }
        context.store.save(address, header, groups)
        return Outcome(address, envelope.shards, envelope=envelope, notes=tuple(notes))

    return guarded(context, shard.label, work)


def opens_inputs(task: Task) -> bool:
    """Return whether a task will open inputs: the map of a shard whose result is not stored."""
    if task.call is not map_shard:
        return False
    context, _, _, address, *_ = task.args
    return not context.store.has(address)


def _discard(context: WorkContext, address: str, error: CorruptResult) -> str:
    """Remove a broken result that will be computed at once; give what to tell people."""
    context.store.discard(address)
    return f"{error}; computed again"


def kept_arrays(
    context: WorkContext,
    shard: Shard,
    address: str,
    group: str,
    choose: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Rows:
    """Read what the first stage kept ("rows" or "keys"), or make it again where it is lost.

    `choose` picks those of the group's arrays that are read.
    """
    if context.store.has(address):
        try:
            with context.store.open(address) as pack:
                return pack.group(group, choose)
        except CorruptResult:
            context.store.discard(address)
    outcome = map_shard(context, 0, shard, address, {}, None)
    if outcome.failure is not None:
        raise outcome.failure.error()
    with context.store.open(address) as pack:
        return pack.group(group, choose)


def merge_node(
    context: WorkContext, stage: int, cell: Cell, level: int, *children: Outcome
) -> Outcome:
    """Merge the results of a few children, from the left.

    Shards that failed are left out and stay accounted for by the ranges of those that are in. A
    merge that failed (the disk was full) fails all above it.
    """

    def work() -> Outcome:
        notes: list[str] = []
        for child in children:
            if level > 1 and child.failure is not None:
                return Outcome(failure=child.failure)
        shards = join_ranges([child.shards for child in children])
        address = merge_address(cell, level, [child.address for child in children])
        if context.store.has(address):
            try:
                with context.store.open(address) as pack:
                    filled = bool(pack.header["filled"])
                return Outcome(address if filled else None, shards, cached=True)
            except CorruptResult as error:
                notes.append(_discard(context, address, error))
        total = None
        for child in children:
            if child.address is None:
                continue
            try:
                summary = load_summary(context, stage, cell, level - 1, child.address)
            except CorruptResult:
                context.store.discard(child.address)
                raise
            if summary is not None:
                total = summary if total is None else total.merge(summary)
        filled = total is not None
        groups = {} if total is None else {"total": total.to_arrays()}
        context.store.save(address, {"filled": filled}, groups)
        return Outcome(address if filled else None, shards, notes=tuple(notes))

    return guarded(context, f"merge of {_cell_name(cell)}", work)


@dataclass(frozen=True, slots=True)
class CellFit:
    """A cell to be fitted.

    Attributes
    ----------
    cell : Cell
        The cell.
    given : str or None
        Address of the cell's state of the stage before.
    children : tuple of int
        What is merged for it: places among the outcomes that the task is given. One child that is
        the root of a merge tree is merged already.
    """

    cell: Cell
    given: str | None
    children: tuple[int, ...]


def fit_cells(
    context: WorkContext,
    stage: int,
    cells: Sequence[CellFit],
    level: int,
    fit_config: str,
    *outcomes: Outcome,
) -> Outcome:
    """Fit some cells, and store their states together where they are many.

    Parameters
    ----------
    context : WorkContext
        What every task needs.
    stage : int
        The stage.
    cells : sequence of CellFit
        The cells.
    level : int
        Level of the outcomes in the merge trees: shards (0) are merged here, and that is not
        stored.
    fit_config : str
        Canonical JSON of the options that the fit depends on.
    *outcomes : Outcome
        What the cells are made of.
    """
    label = _cell_name(cells[0].cell) + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")

    def work() -> Outcome:
        if len(cells) > 1:
            context.store.look()
        results: list[tuple[str, Mapping[str, Any], Mapping[str, Rows]]] = []
        opened: dict[str, Pack] = {}  # a shard holds many cells, and its header is read once
        members = tuple(
            _fit_cell(context, stage, one, level, fit_config, outcomes, opened, results)
            for one in cells
        )
        if len(cells) > 1 and results:
            context.store.save_many(results)
        elif results:
            context.store.save(*results[0])
        return Outcome(members=members, cached=all(one.cached for one in members))

    return guarded(context, f"fit of {label}", work)


_MOST_OPEN = 64  # results of shards, by one task


def _fit_cell(
    context: WorkContext,
    stage: int,
    one: CellFit,
    level: int,
    fit_config: str,
    outcomes: Sequence[Outcome],
    opened: dict[str, Pack],
    results: list[tuple[str, Mapping[str, Any], Mapping[str, Rows]]],
) -> Outcome:
    """Fit a cell, and add what is to be stored to `results`."""
    calibration, cell = context.calibration, one.cell
    children = [outcomes[place] for place in one.children]

    def work() -> Outcome:
        notes: list[str] = []
        if level and children[0].failure is not None:
            return Outcome(shards=children[0].shards, failure=children[0].failure)
        shards = join_ranges([child.shards for child in children])
        addresses = [child.address for child in children]
        total_address = addresses[0] if level else merge_address(cell, 1, addresses)
        address = digest_json(
            {
                "what": "fit",
                "job": calibration.name,
                "version": calibration.version,
                "stage": stage,
                "cell": list(cell),
                "fit": fit_config,
                "given": one.given,
                "total": total_address,
            }
        )
        if context.store.has(address):
            try:
                with context.store.open(address) as pack:
                    pack.check()  # nobody below makes it again when it turns out to be broken
                    done, digest = pack.header["done"], pack.header["digest"]
                return Outcome(address, shards, cached=True, done=done, digest=digest)
            except CorruptResult as error:
                notes.append(_discard(context, address, error))
        total = None
        for child in addresses:
            if child is None:
                continue
            try:
                if child not in opened:
                    if len(opened) == _MOST_OPEN:
                        opened.pop(next(iter(opened)))
                    opened[child] = context.store.open(child)
                summary = _summary_in(context, stage, cell, level, opened[child])
            except CorruptResult:
                context.store.discard(child)
                raise
            if summary is not None:
                total = summary if total is None else total.merge(summary)
        if total is None:
            raise NotEnoughData(f"{_cell_name(cell)}: no input holds anything for it")
        before = None if one.given is None else load_state(context, one.given)
        state = calibration.fit(stage, cell, total, before)
        stored = state.to_arrays()
        digest = digest_arrays(stored)
        results.append((address, {"done": state.done, "digest": digest}, {"state": stored}))
        return Outcome(address, shards, done=state.done, digest=digest, notes=tuple(notes))

    return guarded(context, f"fit of {_cell_name(cell)}", work)


@dataclass(frozen=True)
class Writing:
    """What every task that writes an output needs, and goes to each worker once."""

    context: WorkContext
    files: Files | None
    maps: Maps | None


def write_file(
    writing: Writing,
    path: str,
    shards: Sequence[Shard],
    addresses: Sequence[str],
) -> Outcome:
    """Write one output file from the kept rows of its shards, one shard in memory at a time."""
    if writing.files is None:
        raise ValueError("the outputs have no files")
    write, context = writing.files.write, writing.context

    def work() -> Outcome:
        parts = (
            kept_arrays(context, shard, address, "rows")
            for shard, address in zip(shards, addresses, strict=True)
        )
        write(Path(path), shards, parts)
        return Outcome()

    return guarded(context, path, work)


def write_maps(writing: Writing, path: str, cell: Cell, state: str) -> Outcome:
    """Write the maps of one cell from its state."""
    if writing.maps is None:
        raise ValueError("the outputs have no maps")
    write, context = writing.maps.write, writing.context

    def work() -> Outcome:
        write(Path(path), cell, load_state(context, state))
        return Outcome()

    return guarded(context, f"maps of {_cell_name(cell)}", work)


def _cell_name(cell: Cell) -> str:
    return "everything" if cell == () else "/".join(str(part) for part in cell)
