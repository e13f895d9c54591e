"""Kill a run at any moment, run the same command again: only what is missing is computed."""

from __future__ import annotations

import os
import signal

import pytest
from faults import Scripted, calls, finish, run, start, wait_for, write_inputs

N_FILES = 24
OPTIONS = ("--no-report", "--set", "Campaign.fan_in=4", "--set", "Campaign.retries=0")


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", N_FILES)


def _start(paths, tmp_path, *more, script="{}", **options):
    journal = tmp_path / "journal"
    return start(
        "scripted", "-i", paths[0].parent, "-o", tmp_path / "out.h5", *OPTIONS,
        "--set", f"Scripted.journal={journal}", "--set", f"Scripted.script={script}", *more,
        **options,
    )  # fmt: skip


def _n_read(tmp_path):
    return sum(count for name, count in calls(tmp_path / "journal").items() if name != "fit")


@pytest.mark.parametrize("after", [1, 9, 20])
def test_killed_without_warning_after_some_shards(paths, tmp_path, after):
    process = _start(paths, tmp_path, "--cluster", "serial", script='{"*": ["sleep 0.03"]}')
    try:
        wait_for(lambda: _n_read(tmp_path) >= after)
    finally:
        process.kill()
    code, _, _ = finish(process)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "out.h5").exists()
    n_before = _n_read(tmp_path)
    assert after <= n_before < N_FILES
    told = []
    result = run(
        Scripted(journal=str(tmp_path / "journal")), paths, tmp_path / "out.h5",
        fan_in=4, listener=told.append,
    )  # fmt: skip
    # The shard in hand may have been lost, nothing else.
    assert N_FILES <= _n_read(tmp_path) <= N_FILES + 1
    assert result.account.cached >= n_before - 1
    assert result.account.cached + result.account.computed == N_FILES
    assert any("took" in getattr(one, "text", "") for one in told), "the dead run's lock"
    assert result.digest == run(Scripted(), paths, tmp_path / "fresh.h5", fan_in=4).digest


@pytest.mark.cluster
@pytest.mark.slow
def test_killed_with_all_its_workers(paths, tmp_path):
    script = '{"*": ["sleep 0.1"]}'
    process = _start(
        paths, tmp_path, "--cluster", "local", "--workers", "2",
        script=script, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: _n_read(tmp_path) >= 5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    n_before = _n_read(tmp_path)
    assert n_before < N_FILES
    result = run(Scripted(journal=str(tmp_path / "journal")), paths, tmp_path / "out.h5", fan_in=4)
    assert N_FILES <= _n_read(tmp_path) <= N_FILES + 4  # what two workers had in hand and queue
    assert result.account.cached >= n_before - 4
    assert result.digest == run(Scripted(), paths, tmp_path / "fresh.h5", fan_in=4).digest


def test_killed_again_and_again_a_run_still_ends(paths, tmp_path):
    for after in (3, 8, 13, 18):
        process = _start(paths, tmp_path, "--cluster", "serial", script='{"*": ["sleep 0.03"]}')
        try:
            wait_for(lambda after=after: _n_read(tmp_path) >= after)
        finally:
            process.kill()
        finish(process)
    process = _start(paths, tmp_path, "--cluster", "serial", "-q")
    code, printed, _ = finish(process)
    assert code == 0
    assert _n_read(tmp_path) <= N_FILES + 4
    digest = run(Scripted(), paths, tmp_path / "fresh.h5", fan_in=4).digest
    assert printed.strip() == digest
