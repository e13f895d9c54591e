"""Time the stages of the inter-calibration of one file in one process, against its floor.

The floor is what any program based on PyTables has to do: open the file, and read the tables that
hold the needed columns, whole. Floor and stages take turns, so that a busy machine slows both.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tables

from calibdask.api import load_config
from calibdask.engine.canonical import canonical_json
from calibdask.engine.plan import Plan, make_plan
from calibdask.engine.protocol import ALL
from calibdask.engine.store import Store
from calibdask.engine.tasks import CellFit, WorkContext, fit_cells, map_shard

if TYPE_CHECKING:
    from calibdask.engine.envelope import Outcome

FLOOR_GROUPS = (
    "/dl2/event/telescope/energy/RandomForestRegressor",
    "/dl2/event/telescope/particle_type/RandomForestClassifier",
    "/dl2/event/telescope/impact/HillasReconstructor",
)


def read_needed_tables(path: Path) -> int:
    """Read the tables of all telescopes that hold what the configuration needs."""
    n_rows = 0
    with tables.open_file(path) as file:
        for group in FLOOR_GROUPS:
            for table in file.iter_nodes(group, "Table"):
                n_rows += len(table.read())
    return n_rows


def _good(outcome: Outcome) -> Outcome:
    if outcome.failure is not None:
        raise outcome.failure.error()
    return outcome


def run_stages(plan: Plan, store: Path) -> tuple[float, float, int]:
    """Run all stages of a plan of one shard into a fresh store, as the engine does.

    Returns
    -------
    tuple of float, float, int
        CPU seconds of the first map, of everything, and the number of selected pairs.
    """
    context = WorkContext(plan.calibration, Store(store))
    (shard,) = plan.shards
    fit_config = canonical_json(plan.calibration.fit_config())
    start = time.process_time()
    first_map_s = 0.0
    n_pairs = 0
    state: Outcome | None = None
    rows: str | None = None
    stage = 0
    while state is None or not state.done:
        given = {} if state is None else {ALL: state.address or ""}
        digests = {} if state is None else {ALL: state.digest}
        address = plan.address(stage, shard, digests)
        mapped = _good(map_shard(context, stage, shard, address, given, rows))
        if state is None:
            first_map_s = time.process_time() - start
            rows = address
            if mapped.envelope is not None and mapped.envelope.cut_flow is not None:
                n_pairs = mapped.envelope.cut_flow["equidistant pairs"]
        fit = CellFit(ALL, None if state is None else state.address, (0,))
        (state,) = _good(fit_cells(context, stage, [fit], 0, fit_config, mapped)).members
        _good(state)
        stage += 1
    return first_map_s, time.process_time() - start, n_pairs


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("dl2", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    prepared = load_config("inter-calibration", given.config)
    plan = make_plan(prepared.calibration, [given.dl2])
    floor: list[float] = []
    first_map: list[float] = []
    all_stages: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats + 1):  # the first turn warms up
            start = time.process_time()
            read_needed_tables(given.dl2)
            floor.append(time.process_time() - start)
            map_s, all_s, n_pairs = run_stages(plan, Path(folder) / str(repeat))
            first_map.append(map_s)
            all_stages.append(all_s)
    result = {"floor": floor[1:], "map": first_map[1:], "all": all_stages[1:], "pairs": n_pairs}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
