"""The table of sites, the choice of ``--cluster auto``, and Torque without a Torque."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from calibdask import cli
from calibdask.engine.sites import auto, queue
from calibdask.engine.sites.auto import choose
from calibdask.engine.sites.base import Settings, Site
from calibdask.engine.sites.table import SITES, find_site
from calibdask.engine.sites.torque import TorqueJob, TorqueQueue, parse_jobs, parse_torque_walltime
from calibdask.errors import ConfigError, TransientError


@pytest.mark.parametrize("name", SITES)
def test_every_site_of_the_table_can_be_made_and_is_in_the_help(name):
    assert issubclass(find_site(name), Site)
    assert name in CliRunner().invoke(cli.app, ["bias", "--help"]).output


def _plan(n_shards: int, n_files: int, mib: float, suffix: str):
    n_bytes = int(n_files * mib * 2**20 / n_shards)
    shard = SimpleNamespace(inputs=[SimpleNamespace(path=f"0{suffix}")], n_bytes=n_bytes)
    return SimpleNamespace(shards=[shard] * n_shards)


@pytest.mark.parametrize(
    ("plan", "cpus", "workers", "site"),
    [
        (_plan(8, 72, 23, ".dng"), 2, None, "serial"),  # 14.8 s local, 7.3 s serial
        (_plan(3, 24, 23, ".dng"), 2, None, "serial"),
        (_plan(100, 1000, 23, ".dng"), 2, None, "local"),
        (_plan(1, 1000, 23, ".dng"), 2, None, "serial"),  # nothing to share
        (_plan(8, 8, 20, ".h5"), 2, None, "serial"),
        (_plan(8, 8, 200, ".h5"), 2, None, "local"),
        (_plan(8, 8, 200, ".h5"), 2, 1, "serial"),
        (_plan(8, 8, 200, ".h5"), 1, None, "serial"),
        (_plan(8, 8, 200, ".h5"), 64, (0, 4), "local"),
    ],
)
def test_auto_is_local_where_the_work_is_worth_its_start(monkeypatch, plan, cpus, workers, site):
    monkeypatch.setattr(auto, "available_cpus", lambda: cpus)
    assert choose(plan, workers) == site


TORQUE = """\
Job Id: 12.server
    Job_Name = calibdask-worker
    job_state = R
    exec_host = n07/0+n07/1
    Variable_List = PBS_O_HOME=/home/me,
\tPBS_O_PATH=/bin

Job Id: 13.server
    job_state = Q
    comment = Not enough of the right type of nodes

Job Id: 14.server
    job_state = C
    exit_status = 271
"""


@pytest.fixture
def say(tmp_path, monkeypatch):
    """Put shell scripts on PATH in the place of Torque's commands."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def write(name, script):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return write


def test_jobs_are_read_with_their_attributes():
    jobs = parse_jobs(TORQUE)
    assert list(jobs) == ["12.server", "13.server", "14.server"]
    assert jobs["12.server"]["Variable_List"] == "PBS_O_HOME=/home/me,PBS_O_PATH=/bin"
    assert parse_jobs("Job Id:\t7\n\tjob_state = R\n\texec_host = n0/1\n") == {
        "7": {"job_state": "R", "exec_host": "n0/1"}
    }


def test_jobs_that_wait_or_run_are_alive(say, tmp_path):
    say("qstat", f"cat <<'END'\n{TORQUE}END\nexit 153")
    queued = TorqueQueue(tmp_path).alive(["12.server", "13.server", "14.server", "99.server"])
    assert {job: one.state for job, one in queued.items()} == {
        "12.server": "RUNNING", "13.server": "PENDING",
    }  # fmt: skip
    assert queued["13.server"].reason.startswith("Not enough")
    assert TorqueQueue(tmp_path).node_of("12.server") == "n07"
    assert TorqueQueue(tmp_path).explain_end("14.server") == "Torque job 14.server: exit code 271"


def test_a_server_that_does_not_answer_is_asked_again(say, tmp_path):
    say("qstat", "echo cannot connect to server >&2; exit 111")
    with pytest.raises(TransientError, match="cannot connect"):
        TorqueQueue(tmp_path).alive(["12.server"])


def test_a_job_is_submitted_from_the_directory_of_its_log(say, tmp_path):
    say("qsub", 'echo "$@" > arguments; echo 12.server')
    jobs = TorqueQueue(tmp_path / "a dir; touch owned")
    assert jobs.submit("#PBS -N x\ntrue\n", "worker-0") == "12.server"
    logs = tmp_path / "a dir; touch owned"
    assert (logs / "arguments").read_text() == "-V -j oe -o worker-0.log worker-0.pbs\n"
    assert jobs.logs_of("12.server") == [logs / "worker-0.log"]


def test_a_job_that_is_refused_names_what_it_asked_for(say, tmp_path):
    say("qsub", "echo Unknown queue >&2; exit 170")
    with pytest.raises(ConfigError, match=r"Unknown queue\nThe job asked for: -q nowhere"):
        TorqueQueue(tmp_path).submit("#PBS -q nowhere\ntrue\n", "worker-0")


def test_a_worker_job_asks_for_nodes_as_torque_understands(tmp_path):
    options = {"cores": 2, "memory": "3 GiB", "walltime": "01:30:00", "queue": "long"}
    job = TorqueJob.of(Settings(workdir=tmp_path / "a b", jobqueue=options))
    script = job.script("tls://1.2.3.4:5", "worker-0", directives=job.directives(()))
    header = [line for line in script.splitlines() if line.startswith("#PBS")]
    assert "#PBS -l nodes=1:ppn=2,mem=3072mb" in header
    assert {"#PBS -q long", "#PBS -l walltime=01:30:00", "#PBS -r n"} <= set(header)
    assert not [line for line in header if line.startswith(("#PBS -e", "#PBS -o"))]
    assert job.walltime_seconds() == 5400
    assert job.logs == tmp_path / "a b" / "logs"


@pytest.mark.parametrize(
    ("name", "value"), [("queue", "a\ntouch owned"), ("memory", "1 GiB; touch owned")]
)
def test_an_option_that_would_be_shell_is_refused(tmp_path, name, value):
    with pytest.raises(ConfigError, match=rf"Torque\.{name}"):
        TorqueJob.of(Settings(workdir=tmp_path, jobqueue={name: value}))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("10:00", 600), ("1:00:00", 3600), ("1:0:0:1", 86401)]
)
def test_time_limits_of_torque(text, seconds):
    assert parse_torque_walltime(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1-12", "", "1:2:3:4:5"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ConfigError, match="expected a time limit"):
        parse_torque_walltime(text)


def test_a_batch_script_of_torque(tmp_path):
    arguments = ["sbatch-script", "bias", "-i", "x", "-o", str(tmp_path / "o"), "--time", "1:00:00"]
    done = CliRunner().invoke(cli.app, [*arguments, "--cluster", "torque"])
    assert done.exit_code == 0, done.output
    assert "#PBS -l nodes=1:ppn=1,walltime=1:00:00" in done.output
    assert "SBATCH" not in done.output
    refused = CliRunner().invoke(cli.app, [*arguments, "--cluster", "torque", "--requeue"])
    assert isinstance(refused.exception, ConfigError)


def test_torques_commands_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no qsub here"):
        queue.find_commands("qsub")
    (finding,) = find_site("torque")("torque", Settings(workdir=tmp_path)).describe(0)
    assert (finding.level, "qsub" in finding.what) == ("FAIL", True)
