"""Joining a running campaign from another process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from distributed import Security
from faults import TESTS, Scripted, finish, run, start, start_python, wait_for, write_inputs

import calibdask
from calibdask.engine.attach import Campaign, connect
from calibdask.engine.campaign import cancel, clean, read_status
from calibdask.engine.lock import WorkdirLock
from calibdask.engine.session import Session
from calibdask.errors import ConfigError, TransientError

N_FILES = 24
N_FREE = 4  # files that are read at once; the others wait until a test opens the gate


def _command(*arguments, **environment):
    """Call the command line as it is installed; the tests' own modules can be imported."""
    done = subprocess.run(
        [sys.executable, "-m", "calibdask.cli", *map(str, arguments)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=500,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def _start(directory):
    """Start a campaign that reads ``N_FREE`` files, whichever come first, and then waits."""
    gate = directory / "gate"
    gate.mkdir()
    for number in range(N_FREE):
        (gate / f"ticket-{number}").touch()
    script = {"*": [f"take {gate}!"]}
    return start(
        "scripted", "-i", directory / "data", "-o", directory / "out.h5", "--no-report",
        "--cluster", "local", "--workers", "2", "--dashboard", "--set", "Campaign.fan_in=4",
        "--set", f"Scripted.journal={directory / 'journal'}",
        "--set", f"Scripted.script={json.dumps(script)}",
    )  # fmt: skip


def _stored(workdir):
    return (workdir / "plan.json").exists() and read_status(workdir).stored


@pytest.fixture
def open_directory():
    """A directory that every user can look into, as pytest's are not."""
    directory = Path(tempfile.mkdtemp(prefix="calibdask-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def running(open_directory):
    """A campaign with some shards stored and more to come."""
    write_inputs(open_directory / "data", N_FILES)
    process = _start(open_directory)
    try:
        wait_for(lambda: _stored(open_directory / "out.h5.work") == N_FREE)
        yield open_directory, process
    finally:
        process.kill()
        process.communicate()


AS_ANOTHER_USER = """
import encodings.ascii, os, sys
from pathlib import Path
# All while their files can be read.
import calibdask.engine.sites.scheduler, calibdask.engine.sites.local, distributed
from calibdask.engine.attach import connect
from calibdask.errors import ConfigError
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    connect(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
else:
    print("connected")
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_a_campaign_is_seen_until_it_is_killed_and_after(running):
    directory, process = running
    output, workdir = directory / "out.h5", directory / "out.h5.work"
    with calibdask.connect(output) as campaign:
        wait_for(lambda: sum(campaign.workers()["tasks"] > 0) == 2)
        workers = campaign.workers()
        assert all(workers["memory"].to_value("byte") > 1e7)
        status = campaign.status()
        assert (status.state, status.shards) == ("running", N_FILES)
        seen = campaign.preliminary()
        assert len(seen.merged) == N_FREE
        paths = [directory / "data" / f"{number:03d}.npy" for number in range(N_FILES)]
        plan = json.loads((workdir / "plan.json").read_text())
        names = [plan["shards"][index]["inputs"][0]["path"] for index in seen.merged]
        alone = run(Scripted(), names, directory / "alone.h5")
        for column in ("mean", "error"):
            np.testing.assert_allclose(
                seen.tables["/mean_counts"][column], alone.tables["/mean_counts"][column]
            )
        text = str(campaign)
        port = campaign.dashboard.rpartition(":")[2].partition("/")[0]
        assert f"ssh -L {port}:localhost:{port} {socket.gethostname()}" in text
        assert all(f"worker {name}" in text for name in workers["name"])
        assert "<table>" in campaign._repr_html_()

        code, _, complaint = _command("connect", output, "--coefficients", PYTHONPATH="")
        assert code == 2
        assert "cannot be imported here (No module named 'faults')" in complaint
        code, printed, _ = _command("connect", output, "--coefficients")
        assert code == 0
        assert "/mean_counts" in printed
        assert f"of {N_FILES} shards" in printed

        if os.geteuid() == 0:
            code, printed, _ = finish(start_python(AS_ANOTHER_USER, workdir))
            assert code == 0
            assert "only the user who started the campaign can connect" in printed
            assert "Permission denied" in printed

        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: "connection" in dict(campaign.facts()))
        with pytest.raises(TransientError, match="calibdask status"):
            campaign.workers()

    code, printed, _ = _command("status", output)
    assert code == 3
    assert "stopped" in printed
    code, _, complaint = _command("connect", output)
    assert code == 2
    assert f"process {process.pid} on {socket.gethostname()} died" in complaint
    assert f"calibdask status {workdir}" in complaint
    assert "Traceback" not in complaint
    assert "is dead already" in cancel(workdir)
    assert (workdir / "session").exists()
    clean(workdir)
    assert not (workdir / "session").exists()
    result = run(Scripted(), paths, output, fan_in=4)
    assert result.account.cached >= len(seen.merged)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_command_follows_a_campaign_to_its_end(tmp_path):
    write_inputs(tmp_path / "data", N_FILES)
    process = _start(tmp_path)
    workdir = tmp_path / "out.h5.work"
    try:
        wait_for(lambda: _stored(workdir) == N_FREE)
        follower = start_python("from calibdask.cli import main; main()", "connect", workdir)
        seen = ""
        while "running; " not in seen and (line := follower.stdout.readline()):
            seen += line
        (tmp_path / "gate" / "open").touch()
        code, printed, complaint = finish(follower)
        assert (code, complaint) == (0, "")
        assert "worker " in seen
        assert "running; " in seen
        assert "finished" in printed
        assert finish(process)[0] == 0
    finally:
        process.kill()
        process.communicate()
    assert not (workdir / "session").exists()
    code, _, complaint = _command("connect", workdir, "--once")
    assert code == 2
    assert "no campaign is running here" in complaint


@pytest.mark.cluster
def test_cancelling_a_campaign_with_workers(running):
    directory, process = running
    workdir = directory / "out.h5.work"
    assert "has stopped" in cancel(workdir, timeout=400)
    assert finish(process)[0] == 143
    assert not (workdir / "session").exists()
    assert not (workdir / "lock.json").exists()


def test_a_run_without_a_scheduler_has_nothing_to_join(tmp_path):
    with WorkdirLock(tmp_path), pytest.raises(ConfigError, match="status --watch"):
        connect(tmp_path)


def test_a_scheduler_that_is_starting(tmp_path):
    with WorkdirLock(tmp_path):
        Session.create(tmp_path, "certificate", "key")
        with pytest.raises(TransientError, match="starting or ending"):
            connect(tmp_path)


def test_no_campaign_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no campaign was run here"):
        connect(tmp_path)


@pytest.mark.cluster
def test_nobody_answers_although_the_run_lives(tmp_path):
    with socket.socket() as free, WorkdirLock(tmp_path):
        free.bind(("127.0.0.1", 0))
        address = f"tls://127.0.0.1:{free.getsockname()[1]}"
        made = Security.temporary().get_tls_config_for_role("client")
        session = Session.create(tmp_path, made["cert"], made["key"])
        session.publish({"address": address, "host": socket.gethostname()})
        with pytest.raises(ConfigError, match="nobody answers") as caught:
            connect(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "calibdask status" in str(caught.value)


@pytest.mark.parametrize("address", ["tls://127.0.0.1:1234", "tls://localhost:1234"])
def test_the_loopback_of_another_host_is_not_tried(tmp_path, address):
    with WorkdirLock(tmp_path):
        session = Session.create(tmp_path, "certificate", "key")
        session.publish({"address": address, "host": "login7"})
        with pytest.raises(ConfigError, match="runs on login7 and can be reached from there only"):
            connect(tmp_path)


def test_the_tunnel_to_another_host_goes_through_this_one(tmp_path):
    described = {"host": "node7", "dashboard": "http://127.0.0.1:8787/status"}
    campaign = Campaign(tmp_path, None, described)
    assert f"ssh -J {socket.gethostname()} -L 8787:localhost:8787 node7" in campaign.tunnel
    assert Campaign(tmp_path, None, {**described, "dashboard": None}).tunnel is None
