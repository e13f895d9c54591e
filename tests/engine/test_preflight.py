"""Workers with other code are refused by name, before or after they join; none gives a number."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import TESTS, Scripted, calls, run, wait_for, write_inputs

import calibdask
from calibdask.engine import preflight
from calibdask.engine.provenance import code_digest
from calibdask.errors import ConfigError


@pytest.fixture
def other_code(tmp_path):
    """A copy of the package with another version, ahead of the one that is installed."""
    package = Path(calibdask.__file__).parent
    copy = tmp_path / "other" / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    start = copy / "version.py"
    text = start.read_text()
    changed = text.replace(f'__version__ = "{calibdask.__version__}"', '__version__ = "0.0.9"')
    assert changed != text
    start.write_text(changed)
    return copy.parent


@pytest.fixture
def no_code(tmp_path):
    """A place ahead of the installed package whose own cannot be imported."""
    package = tmp_path / "none" / "calibdask"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no libhdf5.so here')\n")
    return package.parent


@contextmanager
def _worker(address, *path, name="rogue", options=(), **environment):
    """A worker process of its own, finding packages in `path` first."""
    process = subprocess.Popen(
        [
            sys.executable, "-P", "-m", "distributed.cli.dask_worker", address, "--no-nanny",
            "--nthreads", "1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
            "--name", name, *options,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=400)


@pytest.fixture
def scheduler():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0, host="127.0.0.1", protocol="tcp", dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler


@pytest.mark.cluster
def test_workers_with_other_code_are_named_before_the_first_task(
    scheduler, other_code, no_code, tmp_path
):
    journal = tmp_path / "journal"
    paths = write_inputs(tmp_path / "data", 3)
    with (
        _worker(scheduler.address, TESTS, name="good"),
        _worker(scheduler.address, other_code, name="old"),
        _worker(scheduler.address, no_code, name="bare"),
    ):
        wait_for(lambda: len(scheduler.workers) == 3)
        with pytest.raises(ConfigError, match="2 of 3 workers run other code") as caught:
            run(Scripted(journal=str(journal)), paths, tmp_path / "o.h5", cluster=scheduler.address)
    text = str(caught.value)
    assert "old on 127.0.0.1 (tcp://127.0.0.1:" in text
    assert f": calibdask 0.0.9+{code_digest().partition('+')[2][:0]}" in text
    assert f", here {code_digest()}" in text
    assert "bare on 127.0.0.1" in text
    assert "none that can be used (no libhdf5.so here)" in text
    assert "good" not in text
    assert "same command again" in text
    assert calls(journal) == {}, "the good worker was given nothing either"


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["other_code", "no_code"])
def test_a_worker_that_joins_later_gives_no_number(scheduler, kind, tmp_path, request):
    journal = tmp_path / "journal"
    paths = write_inputs(tmp_path / "data", 200)
    calibration = Scripted(journal=str(journal), script={"*": ["sleep 0.2!"]})
    late = {"other_code": "has calibdask 0.0.9", "no_code": "cannot import .* no libhdf5.so"}[kind]
    rogue = _worker(scheduler.address, request.getfixturevalue(kind))
    started = []
    with _worker(scheduler.address, TESTS, name="good"), ExitStack() as stack:

        def listen(event):
            if not started and calls(journal):
                started.append(stack.enter_context(rogue))

        wait_for(lambda: len(scheduler.workers) == 1)
        with pytest.raises(ConfigError, match=late):
            run(calibration, paths, tmp_path / "o.h5", cluster=scheduler.address, listener=listen)
    assert len(calls(journal)) < 200
    # Whatever is stored came from the good one: the rest is computed, and the sum is right.
    again = run(Scripted(), paths, tmp_path / "o.h5")
    assert again.account.cached > 0
    assert again.digest == run(Scripted(), paths, tmp_path / "truth.h5").digest


@pytest.mark.cluster
def test_a_worker_of_ours_with_other_code_ends_and_says_why(scheduler, other_code):
    options = ("--preload", "calibdask.engine.preflight")
    expected = {preflight.EXPECTED_CODE: code_digest()}
    with _worker(scheduler.address, options=options, name="good", **expected):
        wait_for(lambda: len(scheduler.workers) == 1)
        with _worker(scheduler.address, other_code, options=options, **expected) as process:
            _, log = process.communicate(timeout=400)
            assert process.returncode == 1
            assert "has calibdask 0.0.9+" in log
            assert f"the run was started with {code_digest()}" in log
            assert [ws.name for ws in scheduler.workers.values()] == ["good"]


def test_a_worker_is_let_in_with_the_same_code_or_when_nothing_is_expected(monkeypatch):
    worker = SimpleNamespace(name="w")
    monkeypatch.delenv(preflight.EXPECTED_CODE, raising=False)
    preflight.dask_setup(worker)
    monkeypatch.setenv(preflight.EXPECTED_CODE, code_digest())
    preflight.dask_setup(worker)
    monkeypatch.setenv(preflight.EXPECTED_CODE, "0.0.9+0")
    with pytest.raises(SystemExit):
        preflight.dask_setup(worker)


class _Client:
    """Answers for workers as it is told."""

    def __init__(self, python, probed):
        self.answers = [python, probed]
        self.asked = []

    def scheduler_info(self, n_workers):
        return {
            "workers": {name: {"name": name, "host": "n1"} for name in self.answers[0]},
        }

    def run(self, function, *, workers, on_error):
        self.asked.append(list(workers))
        answers = self.answers[0 if function is platform.python_version else 1]
        return {name: answers[name] for name in workers}


def _like_here(**other):
    return preflight._probe()() | other


def test_each_worker_is_asked_once():
    here = platform.python_version()
    client = _Client({"a": here}, {"a": _like_here()})
    checked = set()
    preflight.check_workers(client, checked)
    assert checked == {"a"}
    client.answers = [{"a": here, "b": here}, {"b": _like_here()}]
    preflight.check_workers(client, checked)
    assert checked == {"a", "b"}
    assert client.asked == [["a"], ["a"], ["b"], ["b"]]
    client.answers = [{}, {}]
    preflight.check_workers(client, checked)
    assert checked == set()


def test_another_python_is_not_sent_bytes_of_a_function():
    client = _Client({"a": "3.9.1"}, {})
    with pytest.raises(ConfigError, match=r"a on n1 \(a\): Python 3\.9\.1, here 3\."):
        preflight.check_workers(client, set())
    assert client.asked == [["a"]]


def test_another_numpy_is_refused_and_a_patch_of_python_is_not():
    major, minor, _ = platform.python_version_tuple()
    client = _Client({"a": f"{major}.{minor}.99"}, {"a": _like_here(NumPy="1.26.4")})
    with pytest.raises(ConfigError, match=r"1 of 1 workers .*\n.*: NumPy 1\.26\.4, here \d"):
        preflight.check_workers(client, set())


def test_a_worker_that_has_gone_is_no_fault():
    here = platform.python_version()
    client = _Client({"a": OSError("closed"), "b": here}, {"b": OSError("closed")})
    checked = set()
    preflight.check_workers(client, checked)
    assert checked == set()


def test_many_wrong_workers_are_not_all_listed():
    here = platform.python_version()
    names = [f"w{number}" for number in range(9)]
    client = _Client(
        dict.fromkeys(names, here), dict.fromkeys(names, _like_here(calibdask="0.0.9+0"))
    )
    with pytest.raises(ConfigError, match="and 4 more") as caught:
        preflight.check_workers(client, set())
    assert str(caught.value).count("0.0.9") == 5


@pytest.mark.parametrize("expected", [code_digest(), "0.0.9+0"])
def test_a_job_looks_before_dask_starts(expected):
    done = subprocess.run(
        [sys.executable, "-m", "calibdask.engine.preflight"],
        env={**os.environ, preflight.EXPECTED_CODE: expected},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    good = expected == code_digest()
    assert done.returncode == (0 if good else 1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == (0 if good else 1)
    assert good or "and the run was started with 0.0.9+0" in done.stderr
