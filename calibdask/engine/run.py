"""From a plan to written products: map, merge, fit, stage after stage, then tables.

Everything a run computes lies in its work directory under the address of what it was computed from.
So a run can be killed at any time: the same command finds what is there and computes the rest.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine import events
from calibdask.engine.account import Account
from calibdask.engine.canonical import canonical_json
from calibdask.engine.duplicates import comparisons, raise_duplicates
from calibdask.engine.envelope import Envelope, Failure, Outcome
from calibdask.engine.growth import OwnProduct
from calibdask.engine.inputs import Found, find_inputs, lists_of
from calibdask.engine.lock import WorkdirLock
from calibdask.engine.merge import merge_tree
from calibdask.engine.plan import Plan, make_plan
from calibdask.engine.products import Finished, Products
from calibdask.engine.progress import ProgressFile
from calibdask.engine.protocol import Files, Maps, tables_of
from calibdask.engine.shown import facts_html, facts_text, shortened, table_text, tables_html
from calibdask.engine.sites.table import check_cluster, open_executor
from calibdask.engine.store import Store
from calibdask.engine.tasks import (
    CellFit,
    States,
    Task,
    WorkContext,
    Writing,
    fit_cells,
    map_shard,
    merge_node,
    write_file,
    write_maps,
)
from calibdask.errors import CalibdaskError
from calibdask.io.maps import MAPS
from calibdask.stats.compiled import cache_problem, will_compile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from astropy.table import QTable

    from calibdask.engine.executors import Executor
    from calibdask.engine.options import RunOptions
    from calibdask.engine.protocol import AnyCalibration, Cell, Output, Shard

__all__ = ["RunResult", "execute", "run_calibration"]

_MAX_STAGES = 100
_MAX_REPAIRS = 5


@dataclass(frozen=True)
class RunResult:
    """What a run gave: shown by ``print`` and, in a notebook, by its name.

    Attributes
    ----------
    job : str
        The job's name.
    digest : str
        The name of the numbers: equal digests mean equal tables, bit for bit.
    tables : mapping of str to QTable
        The output tables by HDF5 path.
    result : object
        What the calibration combined.
    paths : tuple of Path
        The files written.
    plan : Plan
        What was to be done.
    account : Account
        What was done.
    """

    job: str
    digest: str
    tables: Mapping[str, QTable]
    result: Any
    paths: tuple[Path, ...]
    plan: Plan
    account: Account

    def _summary(self) -> list[tuple[str, str]]:
        account = self.account
        n_missing = len(account.missing(self.plan))
        shards = f"{len(self.plan.shards) - len(account.failed_shards)} used"
        shards += f" ({account.computed} computed now, {account.cached} found in the store)"
        if n_missing:
            shards += f", {n_missing} MISSING"
        rows = [("job", self.job), ("shards", shards)]
        flow = account.total.cut_flow or {}
        rows += [(name, f"{count:,}".replace(",", " ")) for name, count in flow.items()]
        cpu = f"{account.cpu_seconds:.1f} s of processor time in tasks"
        rows += [("time", f"{account.wall_seconds:.1f} s ({cpu})")]
        written = [str(path) for path in self.paths]
        rest = str(self.paths[-1].parent) if self.paths else ""
        rows += [("wrote", path) for path in shortened(written, rest)]
        return [*rows, ("digest", self.digest)]

    def text(self, width: int | None = None) -> str:
        """Show the first table, shortened to a screen if its width is given, and the account."""
        parts = []
        if self.tables:
            rest = next((path for path in self.paths if path.suffix == ".ecsv"), "the product")
            table = next(iter(self.tables.items()))
            parts.append(table_text(*table, width=width, rest=str(rest)))
        parts.append(self.account_text())
        return "\n\n".join(parts)

    def __str__(self) -> str:
        """Show the first table and the account."""
        return self.text()

    def account_text(self) -> str:
        """Describe what was done and written."""
        return facts_text(self._summary())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return facts_html(self._summary()) + tables_html(self.tables)


class _Stage:
    """The graph of one stage and what came of it."""

    def __init__(
        self,
        context: WorkContext,
        plan: Plan,
        stage: int,
        active: Mapping[Cell, tuple[int, ...]],
        given: Mapping[Cell, Outcome],
        rows: Mapping[int, str],
    ) -> None:
        self.stage = stage
        self.tasks: list[Task] = []
        self.map_keys: dict[int, str] = {}
        self.fits: dict[Cell, tuple[str, int]] = {}  # a task and the cell's place in it
        digests = {cell: outcome.digest for cell, outcome in given.items() if cell in active}
        states = {
            cell: outcome.address
            for cell, outcome in given.items()
            if cell in active and outcome.address is not None
        }
        for index in sorted({index for members in active.values() for index in members}):
            shard = plan.shards[index]
            address = plan.address(stage, shard, digests)
            mine = {cell: states[cell] for cell in shard.cells if cell in states}
            key = f"{stage}-{index}"
            do_map = (context, stage, shard, address, mine, rows.get(index))
            self.tasks.append(Task(key, "map", shard.label, map_shard, do_map))
            self.map_keys[index] = key
        fit_config = canonical_json(plan.calibration.fit_config())
        deep = [cell for cell, members in active.items() if len(members) > plan.fan_in]
        for number, cell in enumerate(deep):
            members = active[cell]
            below = [self.map_keys[index] for index in members]
            above: list[str] = []
            level = 1
            for node in merge_tree(len(members), plan.fan_in):
                if node.level > level:
                    below, above, level = above, [], node.level
                key = f"{stage}-{number}-{node.level}-{node.place}"
                needs = tuple(below[child] for child in node.children)
                label = "/".join(map(str, (*cell, f"level {node.level}")))
                do_merge = (context, stage, cell, node.level)
                self.tasks.append(Task(key, "merge", label, merge_node, do_merge, needs))
                above.append(key)
            fit = CellFit(cell, states.get(cell), (0,))
            self._add_fit(context, [fit], level, fit_config, [above[-1]])
        for cells in plan.bundles([cell for cell in active if len(active[cell]) <= plan.fan_in]):
            together = sorted({index for one in cells for index in active[one]})
            place = {index: number for number, index in enumerate(together)}
            fits = [
                CellFit(one, states.get(one), tuple(place[index] for index in active[one]))
                for one in cells
            ]
            maps = [self.map_keys[index] for index in together]
            self._add_fit(context, fits, 0, fit_config, maps)

    def _add_fit(
        self,
        context: WorkContext,
        fits: Sequence[CellFit],
        level: int,
        fit_config: str,
        needs: Sequence[str],
    ) -> None:
        key = f"{self.stage}-fit-{len(self.fits)}"
        label = "/".join(map(str, fits[0].cell)) or "everything"
        if len(fits) > 1:
            label += f" +{len(fits) - 1}"
        arguments = (context, self.stage, fits, level, fit_config)
        self.tasks.append(Task(key, "fit", label, fit_cells, arguments, tuple(needs)))
        self.fits |= {fit.cell: (key, place) for place, fit in enumerate(fits)}

    def fitted(self, cell: Cell, outcomes: Mapping[str, Outcome]) -> Outcome:
        """Return the outcome of the fit of a cell."""
        key, place = self.fits[cell]
        # A task that failed as a whole has no members.
        return outcomes[key].members[place] if outcomes[key].members else outcomes[key]


def _run_tasks(
    executor: Executor,
    stage: int,
    tasks: Sequence[Task],
    account: Account,
    emit: events.Listener,
) -> dict[str, Outcome]:
    """Run a graph; where a stored result turned out to be broken, run what it needs again."""
    emit(events.StageStarted(stage, dict(Counter(task.group for task in tasks))))
    told: set[str] = set()

    def done(task: Task, outcome: Outcome) -> None:
        account.cpu_seconds += outcome.cpu_seconds
        for note in (note for one in (outcome, *outcome.members) for note in one.notes):
            account.notes.append(note)
            emit(events.Message("WARNING", note))
        failures = outcome.failures()
        if any(one.kind == "CorruptResult" for one in failures):
            return
        failure = failures[0] if failures else None
        if task.key not in told:
            told.add(task.key)
            if task.group == "map" and stage == 0 and failure is None:
                account.cached += outcome.cached
                account.computed += not outcome.cached
                for lost in outcome.envelope.lost if outcome.envelope is not None else ():
                    emit(events.Message("ERROR", lost.describe()))
            text = None if failure is None else failure.describe()
            for one in failures:
                if one.trace:
                    emit(events.Message("DEBUG", one.trace))
            for one in failures[1:]:  # of other cells of the same task
                emit(events.Message("ERROR", one.describe()))
            emit(
                events.TaskEnded(
                    stage,
                    task.group,
                    task.label,
                    outcome.cached,
                    outcome.wall_seconds,
                    text,
                    task.key,
                )
            )
        if failure is not None and failure.kind == "StoreFailure":
            # Whatever else is computed now is lost as well.
            raise failure.error()

    def began(task: Task, slot: str) -> None:
        emit(events.TaskStarted(task.key, task.label, slot))

    for _ in range(_MAX_REPAIRS):
        outcomes = executor.run(tasks, done, began)
        broken = [
            failure
            for outcome in outcomes.values()
            for failure in outcome.failures()
            if failure.kind == "CorruptResult"
        ]
        if not broken:
            break
        for failure in {one.message: one for one in broken}.values():
            note = f"{failure.message}; computed again"
            account.notes.append(note)
            emit(events.Message("WARNING", note))
    return outcomes


def _merge_all(envelopes: Sequence[Envelope]) -> Envelope:
    """Join the accounts of all shards, in pairs: one after the other would copy the sum each time.

    Raises
    ------
    CalibdaskError
        A shard is in two of them.
    """
    if not envelopes:
        return Envelope()
    while len(envelopes) > 1:
        odd = envelopes[len(envelopes) // 2 * 2 :]
        pairs = zip(envelopes[::2], envelopes[1::2], strict=False)
        envelopes = [*(one.merge(other) for one, other in pairs), *odd]
    return envelopes[0]


def execute(
    plan: Plan,
    context: WorkContext,
    executor: Executor,
    account: Account,
    emit: events.Listener,
) -> tuple[States, dict[int, str]]:
    """Run all stages of a plan.

    Returns
    -------
    states : States
        The final state of every cell that could be fitted.
    rows : dict of int to str
        Where the first stage's result of every good shard lies.

    Raises
    ------
    CalibdaskError
        An event is in two inputs, or a shard that was already fitted with failed in a later stage.
    """
    active = plan.cells
    late: list[str] = []  # warnings of later stages
    given: dict[Cell, Outcome] = {}
    rows: dict[int, str] = {}
    lost: dict[int, tuple[Failure, ...]] = {}
    for number in range(_MAX_STAGES):
        stage = _Stage(context, plan, number, active, given, rows)
        outcomes = _run_tasks(executor, number, stage.tasks, account, emit)
        envelopes: list[Envelope] = []
        for index, key in stage.map_keys.items():
            outcome = outcomes[key]
            if outcome.failure is not None:
                if number > 0:
                    # The stages before hold this shard: a product with and without it is neither.
                    raise outcome.failure.error(
                        f"\n(stage {number}; the stages before it were already fitted with this"
                        " shard: run the same command again)"
                    )
                account.failed_shards[index] = outcome.failure
            elif outcome.envelope is not None and outcome.address is not None:
                if number > 0:
                    _check_lost(number, lost[index], outcome.envelope.lost)
                    late += outcome.envelope.warnings
                    continue
                envelopes.append(outcome.envelope)
                rows[index] = outcome.address
                lost[index] = outcome.envelope.lost
        if number == 0:
            account.total = _merge_all(envelopes)
            compared = comparisons(context, plan, account.total, rows)
            if compared:
                raise_duplicates(plan, _run_tasks(executor, 0, compared, account, emit).values())
        _check_complete(plan, stage, outcomes, account)
        for cell in active:
            outcome = stage.fitted(cell, outcomes)
            if outcome.failure is not None:
                account.failed_cells.append(outcome.failure)
                given.pop(cell, None)
            else:
                given[cell] = outcome
        active = {
            cell: tuple(index for index in members if index not in account.failed_shards)
            for cell, members in active.items()
            if cell in given and not given[cell].done
        }
        active = {cell: members for cell, members in active.items() if members}
        if not active:
            break
    else:
        raise CalibdaskError(
            f"{plan.job}: cells {list(active)[:3]} were not done after {_MAX_STAGES} stages"
        )
    account.total = replace(account.total, warnings=(*account.total.warnings, *late))
    final = {
        cell: outcome.address for cell, outcome in given.items() if outcome.address is not None
    }
    return States(context, final), rows


def _check_lost(stage: int, before: Sequence[Failure], now: Sequence[Failure]) -> None:
    """Check that a later stage could read what the first one could, and no more."""
    if changed := {*before} ^ {*now}:
        raise min(changed, key=lambda failure: failure.where).error(
            f"\n(it could be read in one stage and not in another, here stage {stage}: run the"
            " same command again)"
        )


def _check_complete(
    plan: Plan, stage: _Stage, outcomes: Mapping[str, Outcome], account: Account
) -> None:
    """Check that each cell holds every shard that did not fail, and none twice."""
    failed = {index for index, key in stage.map_keys.items() if outcomes[key].failure is not None}
    good = stage.map_keys.keys() - failed
    members = plan.cells
    for cell in stage.fits:
        outcome = stage.fitted(cell, outcomes)
        if outcome.failure is not None and not outcome.shards:
            continue
        inside = {index for start, stop in outcome.shards for index in range(start, stop)}
        expected = good.intersection(members[cell])
        if inside != expected:
            lost = sorted(expected - inside)[:5]
            raise CalibdaskError(
                f"the merge of {cell or 'everything'} lost shards {lost}: this is a fault of"
                f" calibdask, please report it (failed: {sorted(account.failed_shards)[:5]})"
            )


def _judge(plan: Plan, account: Account, allow_missing: float, workdir: Path) -> None:
    """Decide whether what is missing is within what was allowed.

    Raises
    ------
    CalibdaskError
        The first failure in plan order, with its exit code.
    """
    # A shard of many inputs weighs as many, so that one that failed alone is a small part of it.
    weights = [len(shard.inputs) for shard in plan.shards]
    n_missing = sum(weights[index] for index in account.failed_shards)
    n_missing += len(plan.rejected) + len(account.total.lost)
    n_all = sum(weights) + len(plan.rejected)
    allowed = n_missing <= allow_missing * n_all
    if allowed and not account.failed_cells:
        return
    if allowed:
        left = (account.total.cut_flow or {}).items()
        flow = ", ".join(f"{name} {count}" for name, count in left)
        raise account.failed_cells[0].error(
            f"\nWhat was left after each selection: {flow}" if flow else ""
        )
    (_, first), *_ = account.missing(plan)
    good = n_all - n_missing
    raise first.error(
        f"\n{n_missing} of {n_all} inputs or shards failed; the other {good} are stored in"
        f" {workdir}. No product was written. Mend or leave out what failed and run the same"
        " command again, or accept the loss with --allow-missing FRACTION"
    )


def run_calibration(
    calibration: AnyCalibration,
    inputs: Sequence[str | Path],
    output: Path,
    options: RunOptions,
    emit: Callable[[events.Event], None],
    *,
    config: Mapping[str, Any] | None = None,
    config_files: Sequence[Path] = (),
) -> RunResult:
    """Plan, run and write.

    Parameters
    ----------
    calibration : Calibration
        What to do.
    inputs : sequence of path-like
        Files, globs, directories or ``@list.txt``.
    output : Path
        The product: a file, or a directory where the calibration writes one file for each block.
    options : RunOptions
        How to run.
    emit : callable
        Called with every event.
    config : mapping, optional
        The full configuration, for provenance.
    config_files : sequence of Path
        Where it was read from: no output may take their place.

    Raises
    ------
    CalibdaskError
        Nothing was written; what was computed is kept for the next run.
    """
    from threadpoolctl import threadpool_limits

    account = Account()
    places = options.places(calibration.name, output)
    read = [("configuration", path) for path in config_files]
    read += [("list of inputs", path) for path in lists_of(inputs)]
    read += [("product", Path(path)) for path in calibration.also_read()]
    places.check(find_inputs(inputs, calibration.patterns), read)
    workdir = places.workdir
    own = OwnProduct(places.memory, output, calibration)
    if not options.overwrite:
        own.check_known()
    products = Products(output, overwrite=options.overwrite or own.is_there)
    products.check_free()
    progress = ProgressFile(workdir, job=calibration.name, output=output, command=options.command)
    emit = progress.before(emit)
    preload = (type(calibration).__module__, *calibration.preload)
    settings = options.settings(workdir, emit, preload)
    check_cluster(options.cluster, settings)
    memory = options.memory_per_worker(settings)
    # Sums in BLAS depend on its number of threads, and one worker is one processor.
    with places.making(), WorkdirLock(workdir) as lock, progress, threadpool_limits(1):
        if lock.taken_over:
            emit(
                events.Message(
                    "WARNING", f"took {workdir} over from a dead run ({lock.taken_over})"
                )
            )
        if problem := cache_problem():
            emit(events.Message("WARNING", problem))
        plan = make_plan(
            calibration,
            inputs,
            fan_in=options.fan_in,
            worker_memory=memory,
            workdir=workdir,
            verify_full=options.verify_full,
            progress=lambda done, total: emit(events.Progress("looking at inputs", done, total)),
        )
        directory = plan.calibration.writes_directory
        with places.settling():
            products.check_kind(directory=directory)
            replaced = None if options.overwrite else own.check(plan)
            if not directory:
                places.check_new(overwrite=options.overwrite)
            # Some inputs name others: those of a descriptor, for one.
            places.check((Found(Path(ref.path), named=False) for ref in plan.inputs), read)
            if replaced:
                emit(events.Message("INFO", replaced))
        (workdir / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        for failure in plan.rejected:
            emit(events.Message("ERROR", failure.describe()))
        if plan.skipped:
            emit(events.Message("INFO", plan.skipped_text()))
        for warning in plan.warnings:
            emit(events.Message("WARNING", warning))
        store = Store(workdir / "store")
        calibration = plan.calibration
        context = WorkContext(calibration, store, retries=options.retries)
        stored = len(store.scan())
        with open_executor(options.where(plan), settings) as (executor, dashboard):
            account.executor, account.workers = executor.name, executor.workers
            emit(
                events.RunStarted(
                    plan.job,
                    plan.digest,
                    len(plan.shards),
                    stored,
                    executor.name,
                    executor.workers,
                    str(workdir),
                    dashboard,
                    events.tunnel_command(dashboard) if dashboard else None,
                )
            )
            # A calibration of an interactive session has no file.
            source = getattr(sys.modules[type(calibration).__module__], "__file__", None)
            if source is not None and will_compile(Path(source).parent):
                note = "compiling kernels first, once for this installation: some 15 s"
                emit(events.Message("INFO", note))
            executor.announce((plan, context))
            states, rows = execute(plan, context, executor, account, emit)
            _judge(plan, account, options.allow_missing, workdir)
            needed = states.only(calibration.combines)
            result = calibration.combine(needed)
            for notice in calibration.notices(needed, result):
                account.notes.append(notice)
                emit(events.Message("WARNING", notice))
            outputs = calibration.outputs(result)
            partial = products.partial_directory(plan.digest) if directory else None
            if partial is not None:
                writing = Writing(context, _the(Files, outputs), _the(Maps, outputs))
                _write_directory(executor, plan, writing, partial, states, rows, account, emit)
        tables = tables_of(outputs)
        account.stopped = time.time()
        for warning in account.total.warnings:
            emit(events.Message("WARNING", warning))
        if len(account.total.cpu_classes) > 1:
            classes = ", ".join(account.total.cpu_classes)
            note = (
                f"results of different processor classes were merged ({classes}): bits may differ"
            )
            account.notes.append(note)
            emit(events.Message("WARNING", note))
        own.record(plan, [output, *places.companions])
        digest = products.write(
            Finished(plan, account, result, outputs, partial, options, config or {}),
            lambda what, done: emit(events.Progress(f"writing {what}", done, 1)),
        )
        for written in products.paths:
            emit(events.Written(str(written)))
        emit(
            events.RunEnded(
                digest,
                account.computed,
                account.cached,
                len(account.missing(plan)),
                account.wall_seconds,
            )
        )
    return RunResult(plan.job, digest, tables, result, tuple(products.paths), plan, account)


def _the[Kind: (Files, Maps)](kind: type[Kind], outputs: Sequence[Output]) -> Kind | None:
    """Return the output of a kind of which there is one at most."""
    return next((output for output in outputs if isinstance(output, kind)), None)


def _write_directory(
    executor: Executor,
    plan: Plan,
    writing: Writing,
    directory: Path,
    states: States,
    rows: Mapping[int, str],
    account: Account,
    emit: events.Listener,
) -> None:
    """Let the workers write files and maps under a temporary name (the first failure is raised)."""
    tasks = []
    if writing.files is not None:
        members: dict[str, list[Shard]] = {}
        for shard in plan.shards:
            if shard.index in rows:
                members.setdefault(writing.files.name(shard), []).append(shard)
        for name, shards in members.items():
            args = (writing, str(directory / name), shards, [rows[one.index] for one in shards])
            tasks.append(Task(f"write-{name}", "write", name, write_file, args))
    maps = str(directory / MAPS)
    if writing.maps is not None:
        writing.maps.create(directory / MAPS, states)
        for number, (cell, address) in enumerate(states.addresses.items()):
            label = "/".join(map(str, cell)) or "everything"
            task = Task(
                f"maps-{number}", "write", label, write_maps, (writing, maps, cell, address)
            )
            tasks.append(task)
    for outcome in _run_tasks(executor, 0, tasks, account, emit).values():
        if outcome.failure is not None:
            raise outcome.failure.error()
    if writing.maps is not None:
        writing.maps.finish(directory / MAPS)
