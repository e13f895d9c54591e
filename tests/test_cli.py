"""The command line as people and workflow systems meet it: texts, streams, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from faults import SCRIPTED, calls, finish, start, wait_for, write_inputs

from calibdask import cli, registry
from calibdask.array.simulate import ArraySimulation, simulate_array

COMMANDS = sorted(cli.app.commands)


@pytest.fixture
def scripted(monkeypatch):
    """The scripted job among the others."""
    monkeypatch.setitem(registry.JOBS, "scripted", SCRIPTED)
    monkeypatch.setattr(cli.app, "commands", dict(cli.app.commands))
    cli._add_job("scripted", "Follows a script.")


@pytest.fixture
def call(monkeypatch, capsys, scripted):
    """Call the command line in this process; give its exit code, output and errors."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def call(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["calibdask", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    yield call
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 4)


@pytest.fixture
def job(tmp_path, paths):
    """Arguments of a run of the scripted job."""
    return [
        "scripted", "-i", paths[0].parent, "-o", tmp_path / "out.h5", "--no-report",
        "--cluster", "serial", "--set", f"Scripted.journal={tmp_path / 'journal'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def dl2(tmp_path_factory):
    """Two small DL2 files."""
    directory = tmp_path_factory.mktemp("dl2")
    options = ArraySimulation(n_files=2, n_telescope_events=3000, array="reduced")
    simulate_array(directory, options)
    return directory


def _script(**script):
    return f"Scripted.script={json.dumps({f'{name}.npy': word for name, word in script.items()})}"


# -- help and mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    code, out, err = call(command, "--help")
    assert code == 0
    assert err == ""
    assert out.startswith(f"Usage: calibdask {command}")
    assert len(out.splitlines()) > 3
    assert "\\b" not in out


def test_help_lists_jobs_and_other_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    for name, one in registry.JOBS.items():
        assert name in out
        assert one.summary.split()[0] in out
    jobs, others = out.split("Other commands:")
    assert "inter-calibration" in jobs
    assert re.search(r"^\s+plan\s", others, re.MULTILINE)


def test_version(call):
    assert call("--version")[:2] == (0, f"calibdask, version {cli.calibdask.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["inter-calibratoin"], "did you mean 'inter-calibration'?"),
        (["plam", "inter-calibration"], "did you mean 'plan'?"),
        (["xyzzy"], "there is no command 'xyzzy'"),
        (["init", "inter-calibratoin"], "did you mean 'inter-calibration'?"),
        (["scripted", "-i", "x", "-o", "y", "--overwrit"], "--overwrite"),
        (["scripted", "-i", "x", "-o", "y", "--workers", "0"], "--workers"),
        (["scripted", "-i", "x", "-o", "y", "--allow-missing", "2"], "--allow-missing"),
        (["scripted", "-i", "x", "-o", "y", "--allow-missing", "nan"], "'nan' is not a number"),
        (["scripted", "-i"], "-i"),
    ],
)
def test_a_mistake_exits_2_with_a_hint(call, arguments, hint):
    code, out, err = call(*arguments)
    assert code == 2
    assert hint in err
    assert out == ""
    assert "Traceback" not in err


def test_values_set_on_the_command_line_are_checked(call, dl2, tmp_path):
    base = ["inter-calibration", "-i", dl2, "-o", tmp_path / "o.h5"]
    code, _, err = call(*base, "--set", "RelativeThroughputFiter.n_min=3")
    assert code == 2
    assert "RelativeThroughputFitter" in err
    code, _, err = call(*base, "--set", "Campaign.fan_in")
    assert code == 2
    assert "SECTION.OPTION=VALUE" in err
    code, _, err = call(*base, "--set", "Campaign.fan_in=[")
    assert code == 2
    assert "--set Campaign.fan_in=[:1:2: expected the node content" in err
    bomb = "&a [x,x,x,x,x,x,x,x,x,x]"
    for name in "bcdef":
        bomb = f"&{name} [{bomb}{f', *{chr(ord(name) - 1)}' * 9}]"
    code, _, err = call(*base, "--set", f"Campaign.fan_in={bomb}")
    assert code == 2
    assert "more than 100000 values" in err


# -- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("ok", 0),
        ("raise ValueError!", 1),
        ("raise ConfigError!", 2),
        ("raise TransientError!", 100),
        ("raise CorruptedInput!", 104),
        ("raise MissingInput!", 105),
        ("raise NotEnoughData!", 106),
    ],
)
def test_exit_codes_of_main(call, job, tmp_path, word, code):
    retries = ["--set", "Campaign.retries=0"]
    found, out, err = call(*job, *retries, "--set", _script(**{"001": [word]}))
    assert found == code
    assert (tmp_path / "out.h5").exists() is (code == 0)
    assert "Traceback" not in out
    if code:
        last = err.splitlines()[-2:]
        assert "001.npy" in "".join(last)
        assert err.count("error: ") == 1


def test_the_exit_code_reaches_the_shell(tmp_path, job):
    code, _, err = finish(start(*job, "--set", _script(**{"001": ["raise CorruptedInput!"]})))
    assert code == 104
    assert "Traceback" not in err.splitlines()[-1]
    code, out, _ = finish(start(*job))
    assert code == 0
    assert out.splitlines()[-1].startswith("digest")


def test_a_missing_input_exits_105(call, tmp_path):
    code, _, err = call("scripted", "-i", tmp_path / "absent.npy", "-o", tmp_path / "o.h5")
    assert code == 105
    assert "absent.npy: no such file" in err


def test_the_same_data_twice_exits_2_naming_both(call, job, paths, tmp_path):
    shutil.copy(paths[0], tmp_path / "copy.npy")
    code, _, err = call(*job, "-i", tmp_path / "copy.npy")
    assert code == 2
    assert str(paths[0]) in err
    assert "copy.npy" in err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.parametrize(
    "where",
    ["serial", "threads", pytest.param("local", marks=[pytest.mark.cluster, pytest.mark.slow])],
)
def test_signals_keep_what_was_computed_and_say_how_to_carry_on(
    job, call, tmp_path, number, code, where
):
    journal = tmp_path / "journal"
    slow = '{"*": ["sleep 0.2"], "003.npy": ["sleep 2"]}'
    job = [*job, "--cluster", where, "--workers", "2"]
    # Whoever runs the tests (nohup, a shell in the background) may ignore it, and so do children.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = start(*job, "--set", f"Scripted.script={slow}")
    finally:
        signal.signal(number, before)
    store = tmp_path / "out.h5.work" / "store"
    try:
        wait_for(lambda: len(list(store.rglob("*.pack"))) >= 1)
    finally:
        process.send_signal(number)
    found, _, err = finish(process)
    assert found == code, err
    assert "run the same command again to carry on" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "out.h5").exists()
    assert not (tmp_path / "out.h5.work" / "lock.json").exists()
    n_stored = len(list(store.rglob("*.pack")))
    assert n_stored >= 1
    found, out, err = call(*job, "--cluster", "serial", "--set", "Scripted.script={}")
    assert found == 0, err
    cached = int(re.search(r"(\d+) found in the store", out)[1])
    assert cached >= 1
    assert sum(count for name, count in calls(journal).items() if name != "fit") <= 8 - cached


def test_a_reader_that_goes_away_is_not_an_error(paths):
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m calibdask.cli init inter-calibration | head -1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.stderr == ""
    assert process.stdout.startswith("#")


# -- outputs ------------------------------------------------------------------------------------


def test_an_existing_output_exits_2_before_any_work(call, job, tmp_path):
    (tmp_path / "out.h5").write_text("precious")
    code, _, err = call(*job)
    assert code == 2
    assert "--overwrite" in err
    assert (tmp_path / "out.h5").read_text() == "precious"
    assert not (tmp_path / "journal").exists()
    assert not (tmp_path / "out.h5.work").exists()
    assert call(*job, "--overwrite")[0] == 0


def test_an_output_that_cannot_be_written_exits_2_before_any_work(call, job, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call(*job, "-o", tmp_path / "file" / "out.h5")
    assert code == 2
    assert "cannot write in" in err
    assert not (tmp_path / "journal").exists()


def test_a_workdir_that_cannot_be_used_exits_2(call, job, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call(*job, "--workdir", tmp_path / "file" / "work")
    assert code == 2
    assert "--workdir" in err
    assert "Traceback" not in err


def test_a_log_that_cannot_be_written_is_an_error_and_no_traceback(call, job, tmp_path):
    code, _, err = call(*job, "-l", tmp_path / "absent" / "log.txt")
    assert code in (1, 2)
    assert "log.txt" in err
    assert "Traceback" not in err


def test_a_disk_full_while_planning_is_an_error_and_no_traceback(call, job, monkeypatch):
    from calibdask.engine.inputs import Identities

    def full(_self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "inputs.json")

    monkeypatch.setattr(Identities, "save", full)
    code, _, err = call(*job)
    assert code == 1
    assert "No space left on device" in err
    assert "Traceback" not in err


def test_outputs_stand_beside_each_other(call, job, tmp_path):
    job.remove("--no-report")
    code, out, _ = call(*job)
    assert code == 0
    names = {"out.h5", "out.ecsv", "out.html", "out.provenance.json"}
    assert {path.name for path in tmp_path.glob("out.*")} == {*names, "out.h5.work"}
    for name in names:
        assert str(tmp_path / name) in out
    activity = json.loads((tmp_path / "out.provenance.json").read_text())
    assert activity["exit_code"] == 0


def test_the_digest_printed_last_is_that_of_the_output(call, job, tmp_path):
    code, out, _ = call(*job)
    assert code == 0
    printed = out.splitlines()[-1].split()
    assert printed[0] == "digest"
    assert call("digest", tmp_path / "out.h5")[:2] == (0, printed[1] + "\n")
    code, out, err = call("digest", tmp_path / "absent.h5")
    assert (code, out) == (105, "")
    assert "absent.h5" in err


def test_a_loss_that_is_allowed_is_told(call, job):
    broken = ["--set", _script(**{"001": ["raise CorruptedInput!"]})]
    assert call(*job, *broken)[0] == 104
    code, out, _ = call(*job, *broken, "--allow-missing", "0.3")
    assert code == 0
    assert "1 MISSING" in out


# -- streams ------------------------------------------------------------------------------------


def test_in_batch_errors_are_json_lines(call, job):
    code, _, err = call(*job, "--set", _script(**{"001": ["raise TransientError", "ok"]}))
    assert code == 0
    records = [json.loads(line) for line in err.splitlines()]
    assert all(isinstance(record, dict) for record in records)
    names = [record["event"] for record in records]
    assert names[-1] == "RunEnded"
    assert "RunStarted" in names
    assert any("tried again" in record.get("text", "") for record in records)


def test_in_batch_a_failing_run_adds_one_text_for_people(call, job):
    code, _, err = call(*job, "--set", _script(**{"001": ["raise ValueError!"]}))
    assert code == 1
    lines = err.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    records = [json.loads(line) for line in lines[:first]]
    assert [one["failure"] for one in records if one.get("failure")]


def test_in_a_process_of_its_own_the_streams_are_the_same(job):
    more = ["--set", _script(**{"001": ["raise TransientError", "ok"]})]
    code, _, err = finish(start(*job, *more))
    assert code == 0
    assert all(json.loads(line) for line in err.splitlines())


def test_quiet_prints_the_digest_and_nothing_else(call, job, tmp_path):
    code, out, err = call(*job, "-q")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", out)
    assert call("digest", tmp_path / "out.h5")[1] == out


def test_quiet_still_tells_errors(call, job):
    code, out, err = call(*job, "-q", "--set", _script(**{"001": ["raise CorruptedInput!"]}))
    assert (code, out) == (104, "")
    assert "001.npy" in err


def test_a_log_file_gets_what_people_should_know(call, job, tmp_path):
    broken = ["--set", _script(**{"001": ["raise ValueError!"]})]
    log = tmp_path / "log.txt"
    assert call(*job, *broken, "-l", log, "--log-level", "debug")[0] == 1
    text = log.read_text()
    assert "001.npy: scripted ValueError" in text
    assert "Traceback" in text, "a bug's traceback is in the log at level DEBUG"
    assert "INFO" in text
    log.unlink()
    assert call(*job, *broken, "-l", log)[0] == 1
    assert "Traceback" not in log.read_text()


def test_provenance_goes_to_a_common_log(call, job, tmp_path):
    log = tmp_path / "provenance.jsonl"
    for _ in range(2):
        assert call(*job, "--overwrite", "--provenance-log", log)[0] == 0
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 2


# -- inputs -------------------------------------------------------------------------------------


def _n_inputs(out):
    return int(re.search(r"^inputs +(\d+)", out, re.MULTILINE)[1])


def test_inputs_may_follow_one_option(call, paths):
    for arguments in (
        ["plan", "scripted", "-i", *paths],
        ["plan", "scripted", "-i", paths[0], "--input", *paths[1:]],
        ["plan", "scripted", "-i", *paths[:2], "-i", *paths[2:]],
        ["plan", "scripted", f"--input={paths[0]}", "-i", *paths[1:]],
    ):
        code, out, err = call(*arguments)
        assert code == 0, err
        assert _n_inputs(out) == 4


def test_options_after_several_inputs_are_options(call, paths, tmp_path):
    code, _, err = call("scripted", "-i", *paths, "-o", tmp_path / "o.h5", "-q", "--no-report")
    assert (code, err) == (0, "")
    assert (tmp_path / "o.h5").exists()


def test_a_list_of_inputs(call, paths, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("# two of them\ndata/000.npy\n\ndata/00[12].npy\n")
    code, out, _ = call("plan", "scripted", "-i", f"@{listing}")
    assert code == 0
    assert _n_inputs(out) == 3
    assert call("plan", "scripted", "-i", f"@{tmp_path}/absent.txt")[0] == 2


def test_set_wins_and_takes_yaml(call, job, tmp_path):
    digests = []
    for value in ("1.0", "2", "2.0"):
        code, out, _ = call(*job, "-q", "--overwrite", "--set", f"Scripted.scale={value}")
        assert code == 0
        digests.append(out)
    assert len(set(digests)) == 2
    assert sum(n for name, n in calls(tmp_path / "journal").items() if name != "fit") == 4


# -- plan and configuration -----------------------------------------------------------------------


def test_a_plan_computes_and_writes_nothing(call, paths, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = call("plan", "scripted", "-i", paths[0].parent)
    assert code == 0
    assert "shards       4" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_as_json_is_that_of_the_run(call, job, paths, tmp_path):
    code, out, err = call("plan", "scripted", "-i", paths[0].parent, "--json", *job[-2:])
    assert (code, err) == (0, "")
    planned = json.loads(out)
    assert len(planned["shards"]) == 4
    assert call(*job)[0] == 0
    assert json.loads((tmp_path / "out.h5.work" / "plan.json").read_text()) == planned


@pytest.mark.parametrize("name", sorted(registry.JOBS))
def test_the_configuration_that_init_writes_loads(call, tmp_path, name):
    code, out, _ = call("init", name)
    assert code == 0
    config = tmp_path / "config.yaml"
    config.write_text(out)
    code, out, err = call("check-config", name, "-c", config)
    assert (code, err) == (0, "")
    assert f"fine for {name}" in out
    config.write_text(config.read_text() + "\nNoSuchSection:\n  a: 1\n")
    code, _, err = call("check-config", name, "-c", config)
    assert code == 2
    assert "NoSuchSection" in err
    assert call("check-config", name, "-c", tmp_path / "absent.yaml")[0] == 2


def test_a_real_job_from_configuration_to_digest(call, dl2, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(call("init", "inter-calibration")[1])
    job = ["inter-calibration", "-c", config, "-i", dl2, "--no-report", "-q"]
    code, first, err = call(*job, "-o", tmp_path / "a.h5")
    assert code == 0, err
    code, second, _ = call(*job, "-o", tmp_path / "b.h5", "--cluster", "threads", "--workers", "2")
    assert (code, second) == (0, first)
    assert call("digest", tmp_path / "b.h5")[:2] == (0, first)
    planned = json.loads(call("plan", *job[:5], "--json")[1])
    assert len(planned["shards"]) == 2
    bounded = ["plan", *job[:5], "--set", "Campaign.worker_memory=1 KiB"]
    code, _, err = call(*bounded)
    assert code == 2
    assert "a worker has 1.0 KiB" in err


def test_a_file_that_is_broken_exits_104(call, paths, tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    code, _, err = call("inter-calibration", "-i", tmp_path / "text.h5", "-o", tmp_path / "o.h5")
    assert code == 104
    assert "text.h5" in err
    assert "Traceback" not in err


def test_time_bins_are_refused_by_a_job_without_them(call, job):
    code, _, err = call(*job, "--time-bin", "1 h")
    assert code == 2
    assert "--time-bin" in err
    assert "scripted has no time bins" in err
    code, _, err = call("check-config", "energy-asymmetry-estimation", "--time-bin", "1 h")
    assert code == 2
    code, _, err = call("check-config", "energy-asymmetry-estimation", "--epoch", "yesterday")
    assert code == 2
    assert "yesterday" in err


def test_a_simulation_lists_its_options_and_suggests_them(call, tmp_path):
    code, out, _ = call("simulate", "array", "--list")
    assert code == 0
    assert "sparse_telescopes" in out
    code, _, err = call("simulate", "array", "-o", tmp_path / "sim", "--set", "sparse_telescope={}")
    assert code == 2
    assert "did you mean 'sparse_telescopes'" in err
