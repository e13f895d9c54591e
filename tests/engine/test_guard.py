from __future__ import annotations

import ctypes
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Scripted, calls, run, write_inputs

from calibdask.engine.guard import Crashed, Guard, Unforeseen
from calibdask.errors import CorruptedInput, TransientError


def crash(*_: object) -> None:
    ctypes.string_at(0)


def do(what: str) -> object:
    match what:
        case "crash":
            crash()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise CorruptedInput("a.h5: damaged")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "no pickle":
            return threading.Lock()
    return what, os.getpid()


def test_a_call_runs_in_another_process_and_the_next_one_in_the_same():
    with Guard(do) as guard:
        (one, first), (two, second) = guard("one"), guard("two")
    assert (one, two) == ("one", "two")
    assert first == second != os.getpid()


def test_a_crash_costs_its_own_call_only():
    with Guard(do) as guard:
        for what, name in (("crash", "SIGSEGV"), ("kill", "SIGKILL")):
            with pytest.raises(Crashed, match=f"killed by {name}") as caught:
                guard(what)
            assert caught.value.out_of_memory == (what == "kill")
            assert guard("next")[0] == "next"


def test_errors_arrive_as_they_are_and_bugs_with_their_traceback():
    with Guard(do) as guard:
        with pytest.raises(CorruptedInput, match=r"a\.h5: damaged"):
            guard("raise")
        with pytest.raises(Unforeseen, match="a bug") as caught:
            guard("bug")
        assert caught.value.kind == "ZeroDivisionError"
        assert "in do" in caught.value.trace
        assert guard("next")[0] == "next"


def test_what_cannot_be_sent_is_made_here():
    with Guard(do) as guard:
        assert guard("no pickle").acquire(blocking=False)


def test_calls_of_several_threads_do_not_mix():
    with Guard(do, 3) as guard, ThreadPoolExecutor(6) as pool:
        guard.start()
        names = [str(number) for number in range(200)]
        assert [name for name, _ in pool.map(guard, names)] == names


def test_no_process_is_left_and_none_started_in_vain():
    guard = Guard(do)
    guard.close()
    guard = Guard(do)
    _, child = guard("one")
    guard.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with pytest.raises(TransientError, match="the run ends"):
        guard("one")


# -- runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crashing(Scripted):
    """Files whose name says where reading them crashes."""

    name = "crashing"

    def survey(self, source):
        if Path(source.path).stem == "survey":
            crash()
        if Path(source.path).stem == "bug":
            raise ZeroDivisionError("a bug")
        return super().survey(source)

    def pieces(self, surveys):
        for one in surveys:
            if Path(one.source.path).stem == "pieces":
                crash()
        yield from super().pieces(surveys)

    def read(self, shard):
        if Path(shard.inputs[0].path).stem == "map":
            crash()
        return super().read(shard)


@pytest.mark.parametrize("where", ["serial", "threads"])
@pytest.mark.parametrize("place", ["survey", "pieces", "map"])
def test_a_file_that_crashes_its_reader_is_named_and_the_others_are_computed(
    tmp_path, place, where
):
    paths = write_inputs(tmp_path / "in", 3)
    bad = paths[1].rename(tmp_path / "in" / f"{place}.npy")
    journal = tmp_path / "journal"
    job = Crashing(journal=str(journal))
    with pytest.raises(CorruptedInput, match=rf"{bad.name}: damaged.*SIGSEGV"):
        run(job, [tmp_path / "in"], tmp_path / "out.h5", cluster=where)
    read = calls(journal)
    assert sum(count for name, count in read.items() if name != "fit") == 2
    done = run(job, [tmp_path / "in"], tmp_path / "out.h5", cluster=where, allow_missing=0.4)
    bad.unlink()
    assert run(job, [tmp_path / "in"], tmp_path / "good.h5").digest == done.digest


def test_a_bug_in_the_look_at_one_file_costs_that_file(tmp_path):
    paths = write_inputs(tmp_path / "in", 3)
    bad = paths[1].rename(tmp_path / "in" / "bug.npy")
    done = run(Crashing(), [tmp_path / "in"], tmp_path / "out.h5", allow_missing=0.4)
    (failure,) = done.plan.rejected
    assert Path(failure.where) == bad
    assert failure.exit_code == 1
    assert failure.describe().endswith("a bug (ZeroDivisionError)")
    assert "in survey" in failure.trace
