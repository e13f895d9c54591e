"""What the keeper of worker jobs does, with a batch system that is a few lines of Python."""

from __future__ import annotations

import pytest

from calibdask.engine import events
from calibdask.engine.sites.keeper import Keeper, unit_of
from calibdask.errors import CalibdaskError, ConfigError, TransientError


class Batch:
    """A batch system whose jobs do as they are told."""

    def __init__(self, processes=1):
        self.processes = processes
        self.states = {}
        self.workers = set()
        self.names = {}
        self.launched = []
        self.cancelled = []
        self.refuses = None
        self.nodes = {}
        self.asked = 0
        self.silent = False

    # what the keeper sees

    def launch(self, number, avoid):
        if self.refuses is not None:
            raise self.refuses
        job = str(100 + number)
        self.launched.append((job, tuple(avoid)))
        self.names[job] = f"worker-{number}"
        self.states[job] = "PENDING (Priority)"
        return job

    def alive(self, jobs):
        self.asked += 1
        if self.silent:
            raise TransientError("squeue gave no answer")
        return {job: state for job, state in self.states.items() if job in jobs}

    def explain(self, job):
        return f"SLURM job {job}: FAILED; its log ends with\n    no such python"

    def where(self, job):
        return f"SLURM job {job}"

    def node(self, job):
        return self.nodes.get(job)

    def cancel(self, jobs):
        self.cancelled += sorted(jobs)
        for job in jobs:
            self.end(job)

    # what happens

    def run(self, job):
        self.states[job] = "RUNNING"

    def register(self, job):
        self.run(job)
        self.workers.add(self.names[job])

    def end(self, job):
        self.states.pop(job, None)
        self.workers.discard(self.names[job])

    @property
    def jobs(self):
        return sorted(self.states)


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("calibdask.engine.sites.keeper.time.monotonic", clock)
    return clock


class Rig:
    """A keeper that is driven by hand."""

    def __init__(self, clock, workers=(2, 2), *, processes=1, open_tasks=10**6, refuses=None):
        self.clock = clock
        self.batch = Batch(processes)
        self.batch.refuses = refuses
        self.open_tasks = open_tasks
        self.told = []
        self.errors = []
        self.retired = []
        self.known_jobs = []
        self.keeper = Keeper(
            self.batch,
            workers,
            registered=lambda: list(self.batch.workers),
            retire=self.retired.extend,
            open_tasks=lambda: self.open_tasks,
            emit=self.told.append,
            give_up=self.errors.append,
            changed=lambda jobs: setattr(self, "known_jobs", jobs),
        )
        self.keeper._thread.start = lambda: None  # ticks come from pass_time
        self.keeper.start()

    def pass_time(self, seconds=20):
        for _ in range(seconds):
            self.clock.now += 1
            self.keeper._tick()

    def messages(self, level):
        found = [one for one in self.told if isinstance(one, events.Message)]
        return [one.text for one in found if one.level == level]


@pytest.mark.parametrize(
    ("name", "unit"),
    [("worker-3", 3), ("worker-12-0", 12), ("worker-1-10", 1), ("tls://n:1", None), ("7", 7)],
)
def test_a_worker_tells_its_unit(name, unit):
    assert unit_of(name) == unit


def test_what_is_wanted_is_launched_and_then_left_alone(clock):
    rig = Rig(clock, (3, 3))
    assert rig.batch.jobs == ["100", "101", "102"]
    rig.pass_time(600)  # a long queue
    assert rig.batch.jobs == ["100", "101", "102"]
    assert rig.batch.asked < 100  # squeue is not asked every second
    for job in rig.batch.jobs:
        rig.batch.register(job)
    rig.pass_time(2)
    asked = rig.batch.asked
    rig.pass_time(600)
    assert rig.batch.asked == asked  # nor at all while everybody works
    assert not rig.batch.cancelled
    assert not rig.errors


def test_workers_share_jobs(clock):
    assert len(Rig(clock, (10, 10), processes=4).batch.jobs) == 3


@pytest.mark.parametrize("why", ["cancelled while it waited", "never worked", "worked"])
def test_a_lost_job_is_replaced(clock, why):
    rig = Rig(clock)
    rig.batch.register("101")
    if why == "worked":
        rig.batch.register("100")
    elif why == "never worked":
        rig.batch.run("100")
    rig.pass_time(3)
    rig.batch.end("100")
    rig.pass_time(20)
    assert rig.batch.jobs == ["101", "102"]
    assert rig.known_jobs == ["101", "102"]
    if why == "worked":
        assert "worker-0 is gone (SLURM job 100: FAILED): replaced" in rig.messages("INFO")
    else:
        assert "no such python" in rig.messages("WARNING")[0]


def test_a_worker_that_restarts_in_its_job_is_not_touched(clock):
    rig = Rig(clock)
    rig.batch.register("100")
    rig.batch.register("101")
    rig.pass_time(2)
    rig.batch.workers.discard("worker-0")  # the nanny starts another process
    rig.pass_time(300)
    assert rig.batch.jobs == ["100", "101"]
    assert not rig.batch.cancelled
    rig.batch.workers.add("worker-0")
    rig.pass_time(300)
    assert rig.batch.jobs == ["100", "101"]


def test_a_frozen_node_is_given_up_after_a_long_time(clock):
    rig = Rig(clock)
    rig.batch.register("100")
    rig.batch.register("101")
    rig.pass_time(2)
    rig.batch.workers.discard("worker-0")
    rig.pass_time(int(Keeper.absent_seconds) + 30)
    assert rig.batch.cancelled == ["100"]
    assert rig.batch.jobs == ["101", "102"]
    assert "has shown no worker for" in rig.messages("WARNING")[0]


def test_it_gives_up_after_three_early_deaths_in_a_row_and_says_why(clock):
    rig = Rig(clock, (1, 1))
    for job in ("100", "101"):
        rig.batch.end(job)
        rig.pass_time(5)
    assert rig.batch.jobs == ["102"]
    rig.batch.end("102")
    with pytest.raises(ConfigError, match=r"(?s)3 worker jobs in a row.*job 102.*no such python"):
        rig.pass_time(5)


def test_deaths_are_in_a_row_only_if_none_works_between(clock):
    rig = Rig(clock, (1, 1))
    for _ in range(4):
        for _ in range(2):
            rig.batch.end(rig.batch.jobs[0])
            rig.pass_time(5)
        rig.batch.register(rig.batch.jobs[0])
        rig.pass_time(2)
        rig.batch.end(rig.batch.jobs[0])
        rig.pass_time(5)
    assert not rig.errors


def test_a_bad_node_does_not_end_a_run_that_works_elsewhere(clock):
    rig = Rig(clock)
    rig.batch.register("100")
    rig.pass_time(2)
    for _ in range(12):
        for job in set(rig.batch.jobs) - {"100"}:
            rig.batch.nodes[job] = "n7"
            rig.batch.end(job)
        rig.pass_time(60)
    assert "100" in rig.batch.jobs
    assert rig.batch.launched[2][1] == ()
    assert rig.batch.launched[3][1] == ("n7",)  # two died there
    assert len(rig.batch.launched) < 11  # and it is in no hurry any more


def test_silence_of_the_batch_system_changes_nothing(clock):
    rig = Rig(clock)
    rig.batch.silent = True
    rig.pass_time(300)
    assert rig.batch.jobs == ["100", "101"]
    rig.batch.silent = False
    rig.batch.end("100")
    rig.pass_time(30)
    assert rig.batch.jobs == ["101", "102"]


def test_a_submission_that_may_work_later_is_tried_again(clock):
    rig = Rig(clock)
    rig.batch.register("100")
    rig.batch.register("101")
    rig.pass_time(2)
    rig.batch.refuses = TransientError("sbatch: Socket timed out")
    rig.batch.end("100")
    rig.pass_time(30)
    assert rig.batch.jobs == ["101"]
    rig.batch.refuses = None
    rig.pass_time(30)
    assert rig.batch.jobs == ["101", "102"]


def test_a_submission_that_is_refused_ends_the_run(clock):
    with pytest.raises(ConfigError, match="no such partition"):
        Rig(clock, refuses=ConfigError("no such partition"))


def test_between_two_numbers_workers_follow_the_work(clock):
    rig = Rig(clock, (1, 4), open_tasks=100)
    assert len(rig.batch.jobs) == 4
    for job in rig.batch.jobs[:3]:
        rig.batch.register(job)
    rig.open_tasks = 2
    rig.pass_time(10)
    assert rig.retired == []  # a lull is not the end
    rig.pass_time(60)
    assert len(rig.retired) == 2
    assert 3 not in rig.retired  # the one that is starting is left alone
    assert not rig.batch.cancelled
    for number in rig.retired:
        rig.batch.end(str(100 + number))
    rig.pass_time(60)
    assert len(rig.batch.jobs) == 2
    rig.open_tasks = 50
    rig.pass_time(5)
    assert len(rig.batch.jobs) == 4


def test_none_at_all_where_nothing_is_to_do(clock):
    rig = Rig(clock, (0, 4), open_tasks=0)
    assert rig.batch.jobs == []
    rig.open_tasks = 1
    rig.pass_time(2)
    assert len(rig.batch.jobs) == 1


def test_it_says_how_many_there_are(clock):
    rig = Rig(clock)
    rig.batch.run("100")
    rig.pass_time(5)
    rig.batch.register("100")
    rig.pass_time(2)
    told = [str(one) for one in rig.told if isinstance(one, events.Workers)]
    assert told == [
        "worker jobs: 0 at work, 1 starting, 1 in the queue",
        "worker jobs: 1 at work, 1 in the queue",
    ]


def test_closing_waits_for_those_that_end_and_cancels_the_others(clock, monkeypatch):
    rig = Rig(clock, (3, 3))
    rig.batch.register("100")
    rig.batch.register("101")

    def sleep(seconds):
        clock.now += seconds
        if clock.now > 1002:
            rig.batch.end("100")

    monkeypatch.setattr("calibdask.engine.sites.keeper.time.sleep", sleep)
    rig.keeper.close(seconds=5)
    assert rig.batch.cancelled == ["102", "101"]  # waiting: at once; still there after 5 s
    assert rig.batch.jobs == []


def test_an_unforeseen_error_of_the_keeper_ends_the_run(monkeypatch):
    batch = Batch()
    errors = []
    keeper = Keeper(
        batch, (1, 1), registered=lambda: 1 / 0, retire=print, open_tasks=lambda: 1,
        emit=print, give_up=errors.append,
    )  # fmt: skip
    keeper.seconds = 0.01
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    keeper.start()
    keeper._thread.join(timeout=300)
    assert isinstance(errors[0], CalibdaskError)
    assert "ZeroDivisionError" in str(errors[0])
    batch.end("100")
    keeper.close()
