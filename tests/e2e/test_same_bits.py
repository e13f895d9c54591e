"""One digest, however and wherever a campaign is run, interrupted, ordered or cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import calibdask
from calibdask.array.simulate import simulate_array, simulate_block
from tests.e2e.conftest import SIMULATION
from tests.e2e.tables import COEFFICIENTS

JOB = "inter-calibration"
# Every read takes 8 MiB at its peak and more, so this cuts each file into three ranges of events.
CUT = {"Campaign.shard_bytes": "3 MiB"}


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Run a job somewhere new."""

    def do(inputs, *, job=JOB, overrides=CUT, **options):
        output = tmp_path_factory.mktemp("run") / "out"
        options = {"cluster": "serial", "report": False} | options
        return calibdask.run(job, inputs, output, config=config, overrides=overrides, **options)

    return do


@pytest.fixture(scope="module")
def paths(campaign):
    """The first two files."""
    return campaign.paths[:2]


@pytest.fixture(scope="module")
def reference(paths, run):
    """What all others must equal."""
    result = run(paths)
    assert len(result.plan.shards) > 2 * len(paths)
    return result


def test_threads(paths, run, reference):
    assert run(paths, cluster="threads", workers=4).digest == reference.digest


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_dask_workers(paths, run, reference, workers):
    result = run(paths, cluster="local", workers=workers)
    assert result.digest == reference.digest
    assert result.account.computed == len(reference.plan.shards)


def test_any_order_name_and_place_of_the_inputs(paths, run, reference, tmp_path):
    for i, j in enumerate((1, 0)):
        (tmp_path / str(i)).mkdir()
        shutil.copy(paths[j], tmp_path / str(i) / f"{9 - i}.h5")
    result = run([tmp_path / str(i) for i in range(2)])
    assert result.digest == reference.digest
    assert result.plan.digest == reference.plan.digest


def test_estimators_that_take_more_stages(paths, run):
    for estimator in ("log-median", "log-clipped"):
        name = "CalculateInterCalibration.RelativeThroughputFitter.estimator"
        overrides = CUT | {name: estimator}
        results = [
            run(inputs, overrides=overrides, cluster=cluster)
            for inputs, cluster in ((paths, "serial"), (paths[::-1], "threads"))
        ]
        assert results[0].digest == results[1].digest


def test_asymmetries_are_the_same_bits_however_files_are_cut(paths, run):
    job = "energy-asymmetry-estimation"
    whole = run(paths, job=job, overrides={})
    cut = run(paths[::-1], job=job, cluster="threads")
    assert len(whole.plan.shards) == 2 < len(cut.plan.shards)
    assert whole.digest == cut.digest


@pytest.mark.parametrize("shuffled_rows", [False, True])
def test_sharding_moves_nothing_but_rounding(run, tmp_path, shuffled_rows):
    made = simulate_array(
        tmp_path / "dl2", replace(SIMULATION, n_files=2, shuffled_rows=shuffled_rows)
    )
    whole, cut = run(made.paths, overrides={}), run(made.paths)
    assert len(whole.plan.shards) == 2 < len(cut.plan.shards)
    assert whole.account.total.cut_flow == cut.account.total.cut_flow
    for name, table in whole.tables.items():
        for column in table.colnames:
            one, two = np.asarray(table[column]), np.asarray(cut.tables[name][column])
            if one.dtype.kind == "f":
                # A residual is a difference of near equals; a coefficient is not.
                loose = column in ("residual", "pull", "chi2", "p_value", "covariance")
                rtol, atol = (1e-9, 1e-12) if loose else (1e-12, 1e-15)
                np.testing.assert_allclose(one, two, rtol=rtol, atol=atol, err_msg=column)
            else:
                np.testing.assert_array_equal(one, two, column)


def test_shuffled_rows_are_the_same_events(paths, run, reference, tmp_path):
    made = simulate_array(tmp_path / "dl2", replace(SIMULATION, n_files=2, shuffled_rows=True))
    result = run(made.paths)
    assert result.account.total.cut_flow == reference.account.total.cut_flow
    for column in ("value", "error"):
        np.testing.assert_allclose(
            result.tables[COEFFICIENTS][column],
            reference.tables[COEFFICIENTS][column],
            rtol=1e-12,
        )


def test_files_added_later_cost_only_themselves(paths, run, tmp_path):
    workdir = tmp_path / "work"
    overrides = {}
    some = run(paths[1:], workdir=workdir, overrides=overrides)
    assert some.account.computed == 1
    more = run(paths, workdir=workdir, overrides=overrides)
    assert (more.account.computed, more.account.cached) == (1, 1)
    assert more.digest == run(paths, overrides=overrides).digest


def test_fit_options_cost_no_reading(paths, run, tmp_path):
    workdir = tmp_path / "work"
    run(paths, workdir=workdir)
    name = "CalculateInterCalibration.RelativeThroughputFitter.normalisation"
    again = run(paths, workdir=workdir, overrides=CUT | {name: "weighted-mean"})
    assert again.account.computed == 0
    assert again.digest == run(paths, overrides=CUT | {name: "weighted-mean"}).digest


def test_surveyed_positions_that_differ_a_little(config, run, tmp_path):
    # The second file has one telescope 0.5 m further North: the same array to within 1 m. Pairs
    # just within reach in one file are just out of it in the other; neither the order of the
    # inputs nor what was calibrated before may decide.
    name = "CalculateEnergyAsymmetry.PairFinder.max_impact_distance"
    overrides = {name: [["type", "*", 200.0], ["type", "MST*", 75.1]]}
    here = tmp_path / "here.h5"
    there = tmp_path / "there.h5"
    options = replace(SIMULATION, n_files=2)
    simulate_block(here, options, 0)
    simulate_block(there, replace(options, shifted_telescopes=(5,), shift_m=0.5), 1)
    forward = run([here, there], overrides=overrides)
    backward = run([there, here], overrides=overrides)
    assert forward.digest == backward.digest
    workdir = tmp_path / "work"
    run([there], overrides=overrides, workdir=workdir)
    resumed = run([here, there], overrides=overrides, workdir=workdir)
    assert resumed.account.cached == 1
    assert resumed.digest == forward.digest


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_run_again(paths, config, reference, tmp_path, number):
    command = [sys.executable, "-m", "calibdask.cli", JOB, "-c", str(config), "--cluster", "serial"]
    command += ["--set", "Campaign.shard_bytes=3 MiB", "--no-report", "-q"]
    command += ["-o", str(tmp_path / "out.h5"), "-i", *map(str, paths)]
    store = tmp_path / "out.h5.work" / "store"
    # A test run started in the background may have been told to ignore Ctrl-C; children inherit it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 400
    while len(list(store.rglob("*.pack"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, number)
    _, complaint = process.communicate(timeout=400)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert process.returncode == expected
    if number != signal.SIGKILL:
        assert b"run the same command again to carry on" in complaint
        assert b"Traceback" not in complaint
    assert not (tmp_path / "out.h5").exists()
    done = len(list(store.rglob("*.pack")))
    assert 3 <= done < len(reference.plan.shards)

    # What was there is there still, and was not written again: first valid result wins.
    result = calibdask.run(
        JOB,
        paths,
        tmp_path / "out.h5",
        config=config,
        overrides=CUT,
        cluster="serial",
        report=False,
    )
    assert result.account.cached >= 3
    assert result.account.cached + result.account.computed == len(reference.plan.shards)
    assert result.digest == reference.digest


@pytest.mark.cluster
@pytest.mark.slow
def test_types_in_time_bins_on_dask_workers(paths, run):
    overrides = {**CUT, "Campaign.time_bin": "7 min", "QualityQuery.quality_criteria": []}
    results = [
        run(inputs, job="cross-calibration", overrides=overrides, **options)
        for inputs, options in ((paths, {}), (paths[::-1], {"cluster": "local", "workers": 2}))
    ]
    assert len(results[0].plan.cells) > 4
    assert results[0].digest == results[1].digest
