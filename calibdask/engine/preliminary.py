"""What a running campaign's coefficients look like so far: from its plan and its store alone.

No input is read and nothing is written. Merges that are stored are taken as they are, so a look
costs no more than the merges that have not been made yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calibdask.engine.canonical import digest_arrays
from calibdask.engine.merge import merge_address, merge_tree
from calibdask.engine.protocol import tables_of
from calibdask.engine.shown import table_text, tables_html
from calibdask.engine.store import CorruptResult
from calibdask.engine.tasks import load_summary
from calibdask.errors import CalibdaskError, TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from astropy.table import QTable

    from calibdask.engine.plan import Plan
    from calibdask.engine.protocol import Cell, State, Summary
    from calibdask.engine.tasks import WorkContext

__all__ = ["Preliminary", "preliminary"]


@dataclass(frozen=True)
class Preliminary:
    """Tables made of what is stored; shown by ``print`` and, in a notebook, by its name.

    Attributes
    ----------
    job : str
        The job's name.
    tables : mapping of str to QTable
        As the run will write them, from fewer shards; empty where nothing can be fitted yet.
    merged : tuple of int
        The shards in them, by their place in the plan.
    n_shards : int
        Shards in the plan.
    done : bool
        Whether every stage of the fit was made with these shards. If not, some columns are missing.
    notes : tuple of str
        What could not be had yet, and why.
    """

    job: str
    tables: Mapping[str, QTable]
    merged: tuple[int, ...]
    n_shards: int
    done: bool
    notes: tuple[str, ...] = ()

    def headline(self) -> str:
        """Describe in one line what this is worth."""
        text = f"{self.job}: preliminary, {len(self.merged)} of {self.n_shards} shards"
        return text if self.done or not self.tables else f"{text}, later stages of the fit missing"

    def __str__(self) -> str:
        """Show the first table."""
        parts = [self.headline(), *self.notes]
        for path, table in list(self.tables.items())[:1]:
            parts += ["", table_text(path, table)]
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        html = "".join(f"<p>{escape(line)}</p>" for line in (self.headline(), *self.notes))
        return html + tables_html(self.tables)


@dataclass(slots=True)
class _Node:
    """A place in the merge tree of one cell.

    Attributes
    ----------
    level : int
        0 for a shard.
    stored : str or None
        Where its result lies, if it does.
    given : str or None
        The address that a run would hand on to the merge above.
    settled : bool
        Whether `given` is known: not if a merge below has not been made.
    shards : tuple of int
        The shards below whose results are stored.
    children : list of _Node
        What it merges.
    """

    level: int
    stored: str | None
    given: str | None
    settled: bool
    shards: tuple[int, ...]
    children: list[_Node] = field(default_factory=list)


class _Look:
    """One look at the store."""

    def __init__(self, plan: Plan, context: WorkContext) -> None:
        self.plan = plan
        self.context = context
        self.stored = context.store.scan()
        self.notes: list[str] = []

    def tree(self, cell: Cell, addresses: Mapping[int, str]) -> _Node:
        """Find what is stored of a cell's merge tree over some shards."""
        below = [
            _Node(0, address, address, True, (index,))
            if address in self.stored
            else _Node(0, None, None, True, ())
            for index, address in addresses.items()
        ]
        above: list[_Node] = []
        level = 1
        for place in merge_tree(len(below), self.plan.fan_in):
            if place.level > level:
                below, above, level = above, [], place.level
            above.append(self._merge(cell, level, [below[child] for child in place.children]))
        return above[-1]

    def _merge(self, cell: Cell, level: int, children: list[_Node]) -> _Node:
        shards = tuple(index for child in children for index in child.shards)
        node = _Node(level, None, None, False, shards, children)
        if all(child.settled for child in children):
            # A shard without a result has failed, or it has not been done: in the second case
            # there is no such merge.
            address = merge_address(cell, level, [child.given for child in children])
            if address in self.stored:
                try:
                    with self.context.store.open(address) as pack:
                        filled = pack.header["filled"]
                except (CorruptResult, TransientError):
                    return node  # it is as good as not there
                node.stored, node.given, node.settled = address, address if filled else None, True
        return node

    def load(self, stage: int, cell: Cell, node: _Node) -> tuple[Summary | None, tuple[int, ...]]:
        """Read a node, or merge what is below it; give its shards as well."""
        if node.stored is not None:
            try:
                summary = load_summary(self.context, stage, cell, node.level, node.stored)
            except (CorruptResult, TransientError) as error:
                if not node.children:
                    self.notes.append(str(error))
            else:
                return summary, node.shards
        total: Summary | None = None
        merged: list[int] = []
        for child in node.children:
            summary, shards = self.load(stage, cell, child)
            merged += shards
            if summary is not None:
                total = summary if total is None else total.merge(summary)
        return total, tuple(merged)

    def fit(
        self, stage: int, cell: Cell, addresses: Mapping[int, str], given: State | None
    ) -> tuple[State | None, tuple[int, ...]]:
        """Fit a cell with what is stored; give the shards that are in it as well."""
        total, shards = self.load(stage, cell, self.tree(cell, addresses))
        if total is None:
            return None, shards
        try:
            return self.context.calibration.fit(stage, cell, total, given), shards
        except CalibdaskError as error:
            self.notes.append(str(error))
            return None, shards


def _next_stage(
    look: _Look, stage: int, states: dict[Cell, State], merged: Mapping[Cell, Sequence[int]]
) -> bool:
    """Carry on every cell for which this stage is stored; tell whether all could be."""
    active = {cell: state for cell, state in states.items() if not state.done}
    digests = {cell: digest_arrays(state.to_arrays()) for cell, state in active.items()}
    complete = True
    for cell, state in active.items():
        shards = [look.plan.shards[index] for index in merged[cell]]
        addresses = {shard.index: look.plan.address(stage, shard, digests) for shard in shards}
        after: State | None = None
        found: tuple[int, ...] = ()
        if look.stored.issuperset(addresses.values()):
            after, found = look.fit(stage, cell, addresses, state)
        if after is not None and found == tuple(addresses):
            states[cell] = after
        else:
            complete = False  # the cell stays with what the stage before gave
    return complete


def preliminary(plan: Plan, context: WorkContext) -> Preliminary:
    """Fit what is stored of a plan.

    Later stages are made only where all their results are stored; elsewhere the tables are those of
    the stage before, in which a calibration leaves out what it does not know yet.

    Parameters
    ----------
    plan : Plan
        What is being done.
    context : WorkContext
        Calibration and store.
    """
    from threadpoolctl import threadpool_limits

    look = _Look(plan, context)
    states: dict[Cell, State] = {}
    merged: dict[Cell, tuple[int, ...]] = {}
    addresses = {shard.index: plan.address(0, shard, {}) for shard in plan.shards}
    cells = plan.cells
    with threadpool_limits(1):  # as in a run: another number of threads may give other bits
        for cell, members in cells.items():
            mine = {index: addresses[index] for index in members}
            state, merged[cell] = look.fit(0, cell, mine, None)
            if state is not None:
                states[cell] = state
        stage = 1
        while any(not state.done for state in states.values()):
            if not _next_stage(look, stage, states, merged):
                break
            stage += 1
        calibration = context.calibration
        tables: Mapping[str, QTable] = {}
        try:
            result = calibration.combine(states) if states else None
            tables = {} if result is None else tables_of(calibration.outputs(result))
        except CalibdaskError as error:  # the first stage need not tell anything yet
            look.notes.append(str(error))
    if missing := len(cells) - len(states):
        look.notes.append(
            "nothing can be fitted yet"
            if not states
            else f"{missing} of {len(cells)} cells cannot be fitted yet"
        )
    together = tuple(sorted({index for indices in merged.values() for index in indices}))
    done = all(state.done for state in states.values())
    notes = tuple(dict.fromkeys(look.notes))
    return Preliminary(plan.job, tables, together, len(plan.shards), done, notes)
