"""Local workers that are killed again and again."""

from __future__ import annotations

import psutil
import pytest
from faults import Scripted, finish, run, start, wait_for, write_inputs

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Storm:
    """A run of two local workers, and what kills them."""

    def __init__(self, directory):
        self.paths = write_inputs(directory / "data", 24)
        self.journal = directory / "journal"
        self.process = start(
            "scripted", "-i", directory / "data", "-o", directory / "out.h5", "--no-report",
            "--cluster", "local", "--workers", "2", "--set", f"Scripted.journal={self.journal}",
            "--set", 'Scripted.script={"*": ["sleep 0.05!"]}',
        )  # fmt: skip
        self.killed = set()

    def kill(self):
        """Kill all worker processes that there are; tell whether the run is over."""
        try:
            for server in psutil.Process(self.process.pid).children():
                if "forkserver" in " ".join(server.cmdline()):
                    for worker in server.children():
                        worker.kill()
                        self.killed.add(worker)
        except psutil.NoSuchProcess:
            pass
        return self.process.poll() is not None

    def kill_until(self, count):
        wait_for(lambda: self.kill() or len(self.killed) >= count)

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def storm(tmp_path):
    storm = Storm(tmp_path)
    yield storm
    storm.end()


def _check(storm, directory):
    code, printed, complaint = finish(storm.process)
    assert code == 0, complaint
    alone = run(Scripted(), storm.paths, directory / "alone.h5")
    assert f"digest  {alone.digest}" in printed
    assert "Traceback" not in complaint


@pytest.mark.parametrize("count", [1, 2, 5])
def test_workers_killed_while_they_start_are_replaced(storm, tmp_path, count):
    storm.kill_until(count)
    _check(storm, tmp_path)


def test_workers_killed_at_work_and_while_they_start_again_are_replaced(storm, tmp_path):
    wait_for(storm.journal.exists)
    storm.kill_until(6)
    _check(storm, tmp_path)


@pytest.mark.parametrize("at_work", [False, True])
def test_workers_that_die_again_and_again_end_the_run_with_one_sentence(storm, at_work):
    if at_work:
        wait_for(storm.journal.exists)
    storm.kill_until(10**6)
    code, _, complaint = finish(storm.process)
    assert code == 100
    assert complaint.splitlines()[-1].startswith("error: 9 workers died in a row before one had")
    assert "Traceback" not in complaint
