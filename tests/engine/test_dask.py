"""Handing tasks to Dask: in calls, named for its pages, let go of when done, ended from outside."""

from __future__ import annotations

import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import ClippedMeans, Scripted, calls, run, write_inputs

from calibdask.engine import executors
from calibdask.engine.dask import DaskExecutor
from calibdask.engine.envelope import Outcome
from calibdask.engine.tasks import Task
from calibdask.errors import CalibdaskError, ConfigError, TransientError

pytestmark = pytest.mark.cluster


def _nap(seconds, number, *needs):
    time.sleep(seconds)
    return Outcome(f"{number} of {[one.address for one in needs]}")


def _tasks(count, seconds=0.0):
    maps = [Task(f"m{i}", "map", f"gamma-run {i}.h5", _nap, (seconds, i)) for i in range(count)]
    keys = tuple(task.key for task in maps)
    merges = [
        Task(f"g{i}", "merge", "LST", _nap, (seconds, i), keys[i : i + 10])
        for i in range(0, count, 10)
    ]
    needs = tuple(task.key for task in merges)
    return [*maps, *merges, Task("f", "fit", "everything", _nap, (seconds, "fit"), needs)]


@pytest.fixture
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, host="127.0.0.1", protocol="tcp",
        dashboard_address="127.0.0.1:0", silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture
def client(cluster):
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        yield client


def _wait(condition):
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_each_map_is_told_when_it_begins(client):
    told = set()
    executor = DaskExecutor(client, "test")
    for seconds in (0.0, 0.001):  # subscribed once
        tasks = _tasks(60, seconds)
        told.clear()
        executor.run(tasks, lambda *_: None, lambda task, slot: told.add((task.key, slot[:4])))
        _wait(lambda: len(told) == 60)
        assert told == {(task.key, "map-") for task in tasks if task.group == "map"}


def test_outcomes_find_their_way_through_calls_of_many(client):
    tasks = _tasks(200)
    told = []
    outcomes = DaskExecutor(client, "test").run(tasks, lambda task, _: told.append(task.key))
    assert sorted(told) == sorted(outcomes) == sorted(task.key for task in tasks)
    for task in tasks:
        needs = [outcomes[need].address for need in task.needs]
        assert outcomes[task.key].address == f"{task.args[1]} of {needs}"
    assert told.index("g0") < told.index("m150"), "what can be merged is merged early"


def test_calls_run_in_the_order_that_was_thought_out(client):
    order = []
    maps = [task for task in _tasks(120, 0.01) if task.group == "map"]
    DaskExecutor(client, "test").run(
        [*maps, *_tasks(120)[120:]], lambda task, _: order.append(task.key)
    )
    places = [int(key[1:]) for key in order if key.startswith("m")]
    # Two threads: a call may be overtaken by the next ones, not by one at the other end.
    assert max(abs(place - index) for index, place in enumerate(places)) < 40
    assert set(order[-20:]) >= {"m117", "m118", "m119"}


def test_the_size_of_calls_changes_no_bit(tmp_path, cluster, monkeypatch):
    paths = write_inputs(tmp_path / "data", 90)
    truth = run(Scripted(), paths, tmp_path / "truth.h5", fan_in=3)
    for most in (1, 7, 32):
        monkeypatch.setattr(executors, "_MOST_TASKS", most)
        result = run(
            Scripted(), paths, tmp_path / f"{most}.h5",
            fan_in=3, cluster=cluster.scheduler_address,
        )  # fmt: skip
        assert result.digest == truth.digest
        assert result.account.total.shards == ((0, 90),)
        names = {path.name for path in (tmp_path / f"{most}.h5.work/store").rglob("*.pack")}
        stored = {path.name for path in (tmp_path / "truth.h5.work/store").rglob("*.pack")}
        assert names == stored


def test_dasks_pages_show_groups_and_labels(client, cluster):
    names = []

    def done(task, outcome):
        names.extend(cluster.scheduler.tasks)

    DaskExecutor(client, "test").run(_tasks(40), done)
    # Words of letters in a label would be taken for a part of the group's name.
    assert set(cluster.scheduler.task_prefixes) == {"map", "merge", "fit"}
    assert any("gamma-run 0.h5" in name for name in names)
    assert any("LST" in name for name in names)


def test_what_is_done_is_let_go_of(client, cluster):
    held, known = [], []

    def done(task, outcome):
        held.append(len(client.futures))
        known.append(len(cluster.scheduler.tasks))

    executor = DaskExecutor(client, "test")
    executor.run(_tasks(300), done)
    assert held[0] > 20
    assert held[-1] <= 2
    _wait(lambda: not cluster.scheduler.tasks)
    assert max(known) < 100, "300 tasks are not 300 of Dask's"


def test_open_tasks_are_those_that_workers_can_share(client):
    executor = DaskExecutor(client, "test")
    assert executor.open_tasks == 0
    opened = []

    def done(task, outcome):
        opened.append((task.group, executor.open_tasks))

    executor.run(_tasks(60, 0.001), done)
    counts = [count for _, count in opened]
    assert counts == sorted(counts, reverse=True)
    n_maps = sum(1 for _ in executors.batch_sizes([0] * 60, 2))
    assert counts[0] in (n_maps, n_maps - 1, n_maps + 1)
    assert {count for group, count in opened if group == "merge"} <= set(range(n_maps + 1))
    assert opened[-1] == ("fit", 0)


def test_an_abort_ends_the_run_with_its_error(client):
    executor = DaskExecutor(client, "test")
    error = CalibdaskError("three jobs in a row died")
    first = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(executor.run, _tasks(400, 0.05), lambda *_: first.set())
        assert first.wait(20)
        started = time.monotonic()
        executor.abort(error)
        executor.abort(CalibdaskError("too late"))
        with pytest.raises(CalibdaskError) as caught:
            running.result(20)
    assert caught.value is error
    assert time.monotonic() - started < 5, "400 tasks take 10 s"
    executor.close()


def test_an_abort_between_two_runs_ends_the_next(client):
    executor = DaskExecutor(client, "test")
    executor.run(_tasks(3), lambda *_: None)
    executor.abort(CalibdaskError("no workers any more"))
    told = []
    with pytest.raises(CalibdaskError, match="no workers any more"):
        executor.run(_tasks(400, 0.05), lambda task, _: told.append(task))
    assert not told
    executor.close()


def test_the_loss_of_the_scheduler_is_said_to_pass(tmp_path):
    from distributed import Client, LocalCluster

    first = threading.Event()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, host="127.0.0.1", protocol="tcp",
        dashboard_address="127.0.0.1:0", silence_logs=50,
    ) as cluster, Client(cluster.scheduler_address, set_as_default=False) as client:  # fmt: skip
        executor = DaskExecutor(client, "test")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(executor.run, _tasks(400, 0.05), lambda *_: first.set())
            assert first.wait(20)
            cluster.close()
            with pytest.raises(TransientError, match="run the same command again"):
                running.result(60)


def test_a_calibration_that_workers_cannot_import_is_named(client):
    class Shared:
        """Travels by the name of a module that workers do not have."""

        def __reduce__(self):
            return __import__, ("no_such_calibration",)

    task = Task("m", "map", "a.h5", _nap, (Shared(), 0))
    with pytest.raises(ConfigError, match=r"cannot import .*no_such_calibration"):
        DaskExecutor(client, "test").run([task], lambda *_: None)


@pytest.mark.slow
def test_a_killer_is_found_in_its_call_and_costs_nobody_else(tmp_path):
    journal = tmp_path / "journal"
    paths = write_inputs(tmp_path / "data", 60)
    killer = paths[30].name
    with pytest.raises(CalibdaskError, match="1 of 60 inputs or shards failed") as caught:
        run(
            Scripted(journal=str(journal), script={killer: ["kill!"]}), paths, tmp_path / "o.h5",
            cluster="local", workers=1,
        )  # fmt: skip
    text = str(caught.value)
    assert f"{killer}: killed its worker process 4 times, the last 2 with nothing else" in text
    assert re.search(r"the last was worker \d+ at tls://127\.0\.0\.1:", text)
    read = calls(journal)
    assert (read.pop(killer), read.pop("fit")) == (4, 1)
    assert set(read.values()) == {1}, "what was done in a call before its worker died is stored"
    assert len(read) == 59


def test_a_worker_is_described_by_who_started_it():
    import dask
    from distributed import Client, LocalCluster

    # Its first argument is what all tasks share: here the signal that each sends to itself.
    task = Task("m", "map", "a.h5", signal.raise_signal, (signal.SIGKILL,))
    told = []
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", protocol="tcp",
            dashboard_address="127.0.0.1:0", worker_dashboard_address=None, silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        executor = DaskExecutor(client, "test", lambda name: f"SLURM job 12 ({name}), log 12.out")
        outcomes = executor.run([task], lambda *ended: told.append(ended))
        # Dask cannot close a nanny that is just starting another worker.
        _wait(lambda: cluster.scheduler.workers)
    failure = outcomes["m"].failure
    assert failure.message.startswith("a.h5: killed its worker process 2 times, the last 1 with")
    assert failure.message.endswith("the last was SLURM job 12 (0), log 12.out")
    assert told == [(task, outcomes["m"])]


def test_cells_in_calls_of_many(tmp_path, cluster):
    import numpy as np

    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        values = np.random.default_rng(number).normal(size=(400, 2))
        values[:, 0] = np.arange(400) % 80
        values[number, 1] = 50
        np.save(data / f"{number}.npy", values)
    serial = run(ClippedMeans(), data, tmp_path / "serial.h5", fan_in=2)
    shared = run(
        ClippedMeans(), data, tmp_path / "dask.h5", fan_in=2, cluster=cluster.scheduler_address
    )
    assert max(serial.tables["/objects"]["stage"]) > 0
    assert shared.digest == serial.digest
