"""What people are told to type works: configurations, scripts and `init`."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import calibdask as package
from calibdask.registry import JOBS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "jobs").glob("*.py"))
# Scripts of one calibration are named like it; others may come with arguments of their own.
JOB_SCRIPTS = [path for path in SCRIPTS if path.stem.replace("_", "-") in JOBS]


def _job(path):
    """Job of a file; one that shows a variant begins with the name of the job."""
    name = path.stem.replace("_", "-")
    return max((job for job in JOBS if name.startswith(job)), key=len, default=name)


def _environment():
    """Commands of this environment come first, and talk to no cluster that happens to be there."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


def test_every_job_has_its_configuration_and_its_script():
    assert {_job(path) for path in CONFIGS} >= set(JOBS)
    told = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    # One command each: a script has nothing to add.
    alone = {"calibrate-images", "emva1288", "readnoise", "stack-images"}
    assert {job for job in JOBS if f'"{job}"' not in told} <= alone


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration(path, inputs_of, tmp_path, calibdask):
    job = _job(path)
    inputs = inputs_of(job)
    assert calibdask("check-config", job, "-c", path).code == 0
    planned = package.plan(job, inputs, config=path)
    if inputs[0].is_file():  # small frames share a shard
        assert len(planned.shards) == len(inputs)
    result = package.run(job, inputs, tmp_path / "out", config=path, cluster="serial", report=False)
    assert result.digest
    assert min(result.account.total.cut_flow.values()) > 0


@pytest.mark.parametrize("path", JOB_SCRIPTS, ids=lambda path: path.stem)
def test_script(path, inputs_of, tmp_path, monkeypatch, capsys):
    inputs = map(str, inputs_of(_job(path)))
    monkeypatch.chdir(tmp_path)
    command = [str(path), *inputs, str(tmp_path / "out.h5"), "--cluster", "serial"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(path), run_name="__main__")
    assert (tmp_path / "out.h5").exists()
    assert capsys.readouterr().out


@pytest.mark.slow
def test_script_of_a_camera(camera, tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "camera.py"), str(camera), "out"]
    done = subprocess.run(
        [*command, "--cluster", "serial"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "flat" / "maps.zarr").is_dir()
    assert "Look at these first" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_says_how_it_is_used(path, tmp_path):
    command = [sys.executable, str(path), "--help"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage:" in said.stdout


# Jobs whose plan states how much they store, within a factor of 1.5.
STATED = {
    *("inter-calibration", "energy-asymmetry-estimation", "calculate-throughput-muon"),
    *("calculate-psf-muon", "bias", "stack-images", "gain", "defects", "cross-calibration"),
    "timing-calibration",
}


@pytest.mark.parametrize("job", JOBS)
def test_init_gives_a_configuration_that_runs_and_stores_what_the_plan_states(
    job, inputs_of, tmp_path, calibdask
):
    said = calibdask("init", job)
    assert said.code == 0
    assert "#" in said.out
    path = tmp_path / "config.yaml"
    text = said.out
    if job == "calibrate-images":  # it needs the product of another job
        text = text.replace("# bias: bias", "bias: bias")
    path.write_text(text)
    assert calibdask("check-config", job, "-c", path).code == 0
    inputs = inputs_of(job)
    done = calibdask(job, "-c", path, "-i", *inputs, "-o", tmp_path / "out", "--no-report")
    assert done.code == 0, done.err
    if job in STATED:
        stated = package.plan(job, inputs, config=path).estimate(2).result_bytes
        store = tmp_path / "out.work" / "store"
        written = sum(one.stat().st_size for one in store.rglob("*.pack"))
        assert stated / 1.5 < written < 1.5 * stated, (stated, written)


@pytest.mark.parametrize("job", JOBS)
def test_help_and_its_promises(job, calibdask):
    said = calibdask(job, "--help")
    assert said.code == 0
    for option in ("-c", "-i", "-o", "--cluster", "--workdir", "--overwrite", "-q", "-v"):
        assert re.search(rf"(^|\s){option}[ ,/]", said.out), option


def test_misspelt_job_gets_a_suggestion(calibdask):
    said = calibdask("inter-calibraton")
    assert said.code == 2
    assert "did you mean 'inter-calibration'" in said.err


def test_digest_command(campaign, config, tmp_path, calibdask):
    output = tmp_path / "out.h5"
    said = calibdask("inter-calibration", "-c", config, "-i", *campaign.paths, "-o", output, "-q")
    assert said.code == 0
    assert calibdask("digest", output).out.strip() == said.out.strip()


def test_the_text_table_says_what_it_is(campaign, config, tmp_path):
    """Described columns, all digits, version and digest, and nothing in binary."""
    from astropy.table import Table

    output = tmp_path / "out.h5"
    result = package.run(
        "inter-calibration", campaign.paths, output, config=config, cluster="serial", report=False
    )
    path = output.with_suffix(".ecsv")
    text = path.read_text(encoding="utf-8")
    assert "binary" not in text
    assert "ndarray" not in text
    table = Table.read(path, format="ascii.ecsv")
    assert all(table[name].info.description for name in table.colnames)
    assert table.meta["digest"] == result.digest
    assert table.meta["calibdask"] == package.__version__
    values = next(iter(result.tables.values()))["value"]
    assert table["value"].tolist() == values.tolist()
