"""One digest whoever does the work, in whatever order, and what happens when workers die."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import pytest
from faults import ClippedMeans, Scripted, calls, run, write_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibdask.engine import events
from calibdask.engine import run as run_module
from calibdask.engine.executors import ThreadsExecutor, batch_sizes, batches
from calibdask.engine.protocol import Shard
from calibdask.engine.tasks import Task
from calibdask.errors import CalibdaskError, ConfigError, TransientError

FAN_IN = 3


class RandomExecutor:
    """One task at a time, any of those that are ready."""

    name = "random"
    workers = 1

    def __init__(self, seed):
        self._random = random.Random(seed)
        self.order = []

    def run(self, tasks, done, began):
        outcomes = {}
        left = list(tasks)
        while left:
            ready = [task for task in left if all(need in outcomes for need in task.needs)]
            task = self._random.choice(ready)
            left.remove(task)
            outcomes[task.key] = task.call(*task.args, *(outcomes[need] for need in task.needs))
            self.order.append(task.label)
            done(task, outcomes[task.key])
        return outcomes

    def announce(self, value):
        """Nobody can connect."""

    def close(self):
        """Nothing to give back."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("data"), 11)


@pytest.fixture(scope="module")
def truth(paths, tmp_path_factory):
    """The digest that every other way of running must give."""
    return run(Scripted(), paths, tmp_path_factory.mktemp("truth") / "o.h5", fan_in=FAN_IN).digest


@contextmanager
def _executing_with(monkeypatch, executor):
    @contextmanager
    def opened(_where, _site):
        yield executor, None

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "open_executor", opened)
        yield


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_any_order_of_completion_gives_one_digest(
    paths, truth, tmp_path_factory, monkeypatch, seed
):
    executor = RandomExecutor(seed)
    with _executing_with(monkeypatch, executor):
        output = tmp_path_factory.mktemp("random") / "o.h5"
        assert run(Scripted(), paths, output, fan_in=FAN_IN).digest == truth


def test_random_orders_are_different_orders(paths, tmp_path, monkeypatch):
    orders = set()
    for seed in range(3):
        executor = RandomExecutor(seed)
        with _executing_with(monkeypatch, executor):
            run(Scripted(), paths, tmp_path / f"{seed}.h5", fan_in=FAN_IN)
        orders.add(tuple(executor.order))
    assert len(orders) == 3


def test_merging_in_order_of_completion_would_show(paths):
    # The data must be able to tell a wrong order from the right one.
    sums = [np.load(path).sum() for path in paths]
    totals = set()
    for seed in range(20):
        total = 0.0
        for value in random.Random(seed).sample(sums, len(sums)):
            total += value
        totals.add(total)
    assert len(totals) > 1


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_give_the_digest_of_serial(paths, truth, tmp_path, workers):
    result = run(
        Scripted(), paths, tmp_path / "o.h5", fan_in=FAN_IN, cluster="threads", workers=workers
    )
    assert result.digest == truth
    assert (result.account.executor, result.account.workers) == ("threads", workers)


def test_threads_run_at_once_and_respect_needs():
    import threading

    barrier = threading.Barrier(2, timeout=300)
    ended = []

    def meet(*needs):
        if not needs:
            barrier.wait()
        return needs

    tasks = [
        Task("a", "map", "a", meet, ()),
        Task("b", "map", "b", meet, ()),
        Task("c", "merge", "c", meet, (), ("b", "a")),
        Task("d", "merge", "d", meet, (), ("c",)),
    ]
    executor = ThreadsExecutor(2)
    outcomes = executor.run(tasks, lambda task, _: ended.append(task.key))
    executor.close()
    assert ended[2:] == ["c", "d"]
    assert outcomes["c"] == ((), ())


# -- how many tasks a worker is handed at once ----------------------------------------------------

weights = st.lists(st.integers(0, 100 << 20), max_size=400)


@given(weights, st.integers(0, 40))
def test_calls_hold_every_task_once_and_not_too_much(n_bytes, workers):
    place = 0
    for size in batch_sizes(n_bytes, workers):
        assert 1 <= size <= 32
        assert size == 1 or sum(n_bytes[place : place + size]) <= 64 << 20
        # Whoever starts a call finds work for everybody else left, so that all end together.
        assert size == 1 or 2 * size * max(workers, 1) <= len(n_bytes) - place
        place += size
    assert place == len(n_bytes)


def test_calls_are_small_at_both_ends_and_large_between():
    sizes = list(batch_sizes([200] * 10_000, 2))
    assert sizes[:4] == [1, 1, 1, 1]
    assert sizes[-4:] == [1, 1, 1, 1]
    assert sizes[len(sizes) // 2] == 32
    assert len(sizes) < 400
    assert list(batch_sizes([1 << 30] * 50, 2)) == [1] * 50
    assert list(batch_sizes([200] * 50, 200)) == [1] * 50


@given(st.data(), st.integers(1, 3))
def test_what_a_call_needs_stands_in_calls_before(data, workers):
    tasks = []
    for number in range(data.draw(st.integers(0, 120))):
        some = st.sampled_from(tasks) if tasks else st.nothing()
        needs = data.draw(st.lists(some, max_size=3)) if tasks else []
        group = data.draw(st.sampled_from(["merge", "fit"])) if needs else "map"
        keys = tuple(task.key for task in needs)
        tasks.append(Task(str(number), group, "", len, (), keys))
    before = set()
    for members in batches(tasks, workers):
        assert len({task.group for task in members}) == 1
        for task in members:
            assert before.issuperset(task.needs)
        before |= {task.key for task in members}
    assert before == {task.key for task in tasks}


def test_what_a_shard_reads_counts():
    large, small = (
        [Task(str(i), "map", "", len, (Shard(i, (), n_bytes=n_bytes),)) for i in range(100)]
        for n_bytes in (256 << 20, 256)
    )
    assert max(map(len, batches(large, 1))) == 1
    assert max(map(len, batches(small, 1))) > 10


def test_an_unknown_place_is_refused(paths, tmp_path):
    with pytest.raises(ConfigError, match="--cluster nowhere"):
        run(Scripted(), paths, tmp_path / "o.h5", cluster="nowhere")


def test_a_dask_report_without_dask_is_refused(paths, tmp_path):
    with pytest.raises(ConfigError, match="needs a Dask cluster"):
        run(Scripted(), paths, tmp_path / "o.h5", performance_report=tmp_path / "r.html")


# -- Dask ---------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2])
def test_dask_gives_the_digest_of_serial(paths, truth, tmp_path, workers):
    told = []
    journal = tmp_path / "journal"
    result = run(
        Scripted(journal=str(journal)), paths, tmp_path / "o.h5",
        fan_in=FAN_IN, cluster="local", workers=workers, listener=told.append,
    )  # fmt: skip
    assert result.digest == truth
    assert calls(journal) == {**{path.name: 1 for path in paths}, "fit": 1}
    assert (result.account.executor, result.account.workers) == ("local", workers)
    (started,) = [one for one in told if isinstance(one, events.RunStarted)]
    assert started.dashboard.startswith("http://127.0.0.1:")
    ended = [one for one in told if isinstance(one, events.TaskEnded)]
    assert sum(one.group == "map" for one in ended) == len(paths)


@pytest.mark.cluster
def test_a_scheduler_that_runs_already_serves_several_runs(paths, truth, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, host="127.0.0.1", protocol="tcp",
        dashboard_address="127.0.0.1:0", silence_logs=40,
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        first = run(Scripted(), paths, tmp_path / "1.h5", fan_in=FAN_IN, cluster=address)
        # The same keys again, in the same scheduler: it must not hand back the old outcomes.
        second = run(Scripted(offset=1.0), paths, tmp_path / "2.h5", fan_in=FAN_IN, cluster=address)
        third = run(Scripted(), paths, tmp_path / "3.h5", fan_in=FAN_IN, cluster=address, retries=0)
    assert first.digest == third.digest == truth
    assert second.digest != truth
    assert third.account.computed == len(paths)


@pytest.mark.cluster
def test_a_scheduler_that_does_not_answer_may_answer_later(paths, tmp_path, monkeypatch):
    import distributed

    def silent(*_arguments, **_options):
        raise TimeoutError("no answer")

    monkeypatch.setattr(distributed, "Client", silent)
    with pytest.raises(TransientError, match=r"tcp://127\.0\.0\.1:1"):
        run(Scripted(), paths, tmp_path / "o.h5", cluster="tcp://127.0.0.1:1")


@pytest.mark.cluster
def test_cells_and_stages_on_dask(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).normal(size=(300, 2))
        values[:, 0] = np.arange(300) % 4
        values[number, 1] = 50
        np.save(data / f"{number}.npy", values)
    serial = run(ClippedMeans(), data, tmp_path / "serial.h5")
    local = run(ClippedMeans(), data, tmp_path / "local.h5", cluster="local", workers=2)
    assert max(serial.tables["/objects"]["stage"]) > 0
    assert local.digest == serial.digest


@pytest.mark.cluster
def test_a_worker_killed_once_costs_a_repetition_and_no_bit(paths, truth, tmp_path):
    journal = tmp_path / "journal"
    calibration = Scripted(journal=str(journal), script={"004.npy": ["kill", "ok"]})
    result = run(calibration, paths, tmp_path / "o.h5", fan_in=FAN_IN, cluster="local", workers=2)
    assert result.digest == truth
    assert calls(journal)["004.npy"] == 2
    assert result.account.failed_shards == {}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_shard_that_kills_its_worker_is_named_and_the_innocent_finish(paths, truth, tmp_path):
    journal = tmp_path / "journal"
    output = tmp_path / "o.h5"
    script = {"004.npy": ["kill!"]}
    with pytest.raises(CalibdaskError, match=r"004\.npy: killed its worker process") as caught:
        run(
            Scripted(journal=str(journal), script=script), paths, output,
            fan_in=FAN_IN, cluster="local", workers=2,
        )  # fmt: skip
    assert caught.value.exit_code == 1
    assert f"1 of {len(paths)} inputs or shards failed; the other {len(paths) - 1}" in str(
        caught.value
    )
    assert not output.exists()
    before = calls(journal)
    assert {path.name for path in paths} <= set(before)
    assert before["004.npy"] <= 5, "a killer is not tried for ever"
    # Mended, here by other means: only the killer is computed.
    result = run(Scripted(journal=str(journal)), paths, output, fan_in=FAN_IN)
    assert result.digest == truth
    assert calls(journal) - before == {"004.npy": 1, "fit": 1}


@pytest.mark.cluster
def test_errors_on_workers_come_back_with_their_codes(paths, tmp_path):
    journal = tmp_path / "journal"
    script = {
        "002.npy": ["raise ValueError!"],
        "004.npy": ["raise CorruptedInput!"],
        "006.npy": ["raise TransientError", "ok"],
    }
    calibration = Scripted(journal=str(journal), script=script)
    with pytest.raises(CalibdaskError, match="2 of 11 inputs or shards failed"):
        run(calibration, paths, tmp_path / "o.h5", cluster="local", workers=2)
    counts = calls(journal)
    assert (counts["002.npy"], counts["004.npy"], counts["006.npy"]) == (1, 1, 2)
    assert sum(counts[path.name] for path in paths) == len(paths) + 1
