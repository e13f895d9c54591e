"""One digest of muon throughputs, however rings are cut, ordered, interrupted or computed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import calibdask
from calibdask.muon.simulate import (
    MuonSimulation,
    describe_telescopes,
    simulate_rings,
    write_rings,
)

JOBS = ("calculate-throughput-muon", "calculate-psf-muon")
# A ring takes 400 bytes: three shards a file.
CUT = {"Campaign.shard_bytes": "330 KiB"}
WAYS = {
    "bins": {"Campaign.time_bin": "13 min"},
    "chunks": {"SizeChunking.chunk_size": 500},
    "one bin": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a job somewhere new."""

    def do(job, inputs, *, overrides=CUT, **options):
        output = tmp_path_factory.mktemp("run") / "out.h5"
        options = {"cluster": "serial", "report": False} | options
        return calibdask.run(job, inputs, output, overrides=overrides, **options)

    return do


@pytest.mark.parametrize(
    ("job", "way"), [(JOBS[0], "bins"), (JOBS[0], "chunks"), (JOBS[1], "one bin")]
)
def test_shards_order_and_threads_move_no_bit(job, way, muons, run):
    whole = run(job, muons, overrides=WAYS[way])
    cut = run(job, muons[::-1], overrides=WAYS[way] | CUT, cluster="threads", workers=4)
    assert len(whole.plan.shards) == 2
    assert len(cut.plan.shards) == 6
    assert whole.digest == cut.digest


def test_other_files_with_the_same_rings(muons, run, tmp_path):
    """All rings in one file, or each telescope's in a file of its own, in any order."""
    options = MuonSimulation(n_rings=4000, n_dual_mirror=1, trend_per_day=-0.05, gap_s=80_000)
    files = [simulate_rings(options, number) for number in range(2)]
    rows = {name: np.concatenate([one[name] for one in files]) for name in files[0]}
    telescopes = describe_telescopes(options)
    digests = {run(JOBS[0], muons, overrides=WAYS["bins"]).digest}
    for number, tel_id in enumerate((2, 1)):
        own = rows["tel_id"] == tel_id
        order = np.random.default_rng(1).permutation(int(own.sum()))
        part = {name: values[own][order] for name, values in rows.items()}
        write_rings(tmp_path / f"{number}.h5", telescopes, part)
    split = [tmp_path / "0.h5", tmp_path / "1.h5"]
    result = run(JOBS[0], split, overrides=WAYS["bins"])
    # The files name one observation block each; the numbers are the same.
    assert digests == {result.digest}


@pytest.mark.cluster
@pytest.mark.slow
def test_dask_workers(muons, run):
    reference = run(JOBS[0], muons, overrides={})
    result = run(JOBS[0], muons, cluster="local", workers=2)
    assert result.digest == reference.digest


def test_both_jobs_share_their_map(muons, run, tmp_path):
    """In one work directory the second job finds the rings that the first one read."""
    first = run(JOBS[0], muons, workdir=tmp_path / "work")
    second = run(JOBS[1], muons, workdir=tmp_path / "work")
    assert first.account.cached == 0
    assert second.account.computed == 0
    assert second.digest == run(JOBS[1], muons, overrides={}).digest
    assert first.digest == run(JOBS[0], muons, overrides={}).digest


def test_files_added_later_cost_only_themselves(muons, run, tmp_path):
    overrides = {"Campaign.time_bin": "1 d"}
    run(JOBS[0], muons[:1], overrides=overrides, workdir=tmp_path / "work")
    more = run(JOBS[0], muons, overrides=overrides, workdir=tmp_path / "work")
    assert (more.account.computed, more.account.cached) == (1, 1)
    assert more.digest == run(JOBS[0], muons, overrides=overrides).digest


def test_options_of_the_clipping_cost_no_reading(muons, run, tmp_path):
    name = "CalculateThroughputWithMuons.SigmaClippingAggregator.max_sigma"
    run(JOBS[0], muons, workdir=tmp_path / "work")
    again = run(JOBS[0], muons, overrides=CUT | {name: 3}, workdir=tmp_path / "work")
    assert again.account.computed == 0
    assert again.digest == run(JOBS[0], muons, overrides={name: 3}).digest


def test_a_bad_file_does_not_bend_the_rest(muons, run, tmp_path):
    broken = tmp_path / "broken.h5"
    shutil.copy(muons[1], broken)
    with broken.open("r+b") as stream:
        stream.truncate(broken.stat().st_size // 2)
    with pytest.raises(calibdask.errors.CorruptedInput, match=r"broken\.h5"):
        run(JOBS[0], [muons[0], broken])
    lost = run(JOBS[0], [muons[0], broken], allow_missing=0.5)
    assert lost.digest == run(JOBS[0], muons[:1]).digest


@pytest.mark.slow
def test_killed_and_run_again(muons, run, tmp_path):
    command = [sys.executable, "-m", "calibdask.cli", JOBS[0], "--cluster", "serial", "-q"]
    command += ["--set", "Campaign.shard_bytes=100 KiB", "--no-report"]
    command += ["-o", str(tmp_path / "out.h5"), "-i", *map(str, muons)]
    store = tmp_path / "out.h5.work" / "store"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 400
    while len(list(store.rglob("*.pack"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=400)
    assert not (tmp_path / "out.h5").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == run(JOBS[0], muons, overrides={}).digest
