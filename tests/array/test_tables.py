"""Every table of the array's jobs is as declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import calibdask
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.array.tables import CROSS, INTER, INTER_CALIBRATION, SLOPES, TABLES, TIMING
from calibdask.flags import Flag
from tests.array.test_cross import write_muons
from tests.read_back import assert_read_back

CONFIGS = Path(__file__).parents[2] / "configs"
BINS = {"Campaign.time_bin": "20 min"}
OPTIONS = ArraySimulation(
    n_files=2, n_events=250, array="reduced", energy_range_tev=(3.0, 100.0), core_margin_m=0.0
)
DRIFT = next(path for path in CROSS if path.endswith("_drift"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("simulated"), OPTIONS)


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")

    def do(job, *more, overrides=None, config=()):
        output = folder / f"{len([*folder.iterdir()])}.h5"
        return calibdask.run(
            job, [*simulated.paths, *more], output, overrides=overrides or {}, config=config,
            cluster="serial", report=False,
        )  # fmt: skip

    return do


@pytest.fixture(scope="module")
def results(simulated, run, tmp_path_factory):
    """One result of each kind, and the schemas of the tables in it."""
    start_s = OPTIONS.start_tai_s(0), OPTIONS.start_tai_s(1) + OPTIONS.block_duration_s
    muons = write_muons(
        tmp_path_factory.mktemp("muons") / "muons.h5",
        {tel_id: simulated.throughput[tel_id] for tel_id in (1, 2, 5, 6, 30)},
        chunks=2,
        start_s=start_s,
    )
    inter = run("inter-calibration", overrides=BINS)
    given = run("inter-calibration").paths[0]
    config = CONFIGS / "inter_calibration_of_image_sizes.yaml"
    return {
        "inter": (inter, INTER.keys() - {SLOPES.path}),
        "images": (run("inter-calibration", config=config, overrides=BINS), INTER.keys()),
        "cross": (
            run("cross-calibration", muons, overrides=BINS),
            CROSS.keys() - {INTER_CALIBRATION.path},
        ),
        "given": (run("cross-calibration", muons, given), CROSS.keys() - {DRIFT}),
        "timing": (run("timing-calibration", overrides=BINS), TIMING.keys()),
    }


@pytest.mark.parametrize("kind", ["inter", "images", "cross", "given", "timing"])
def test_every_table_is_read_back_through_its_schema(results, kind):
    result, expected = results[kind]
    assert assert_read_back(result.paths[0], result.tables, TABLES) == set(expected)
    for table in result.tables.values():
        assert table.meta["obs_id"].tolist() == [1001, 1002]


def test_every_table_that_is_declared_is_written(results):
    written = set().union(*(expected for _, expected in results.values()))
    assert {one.path for one in TABLES} == written
    assert len(TABLES) == len(written)


def test_every_column_that_is_declared_is_written(results):
    written = {
        (path, name)
        for result, _ in results.values()
        for path, table in result.tables.items()
        for name in table.colnames
    }
    declared = {(one.path, column.name) for one in TABLES for column in one.columns}
    assert declared == written


def test_a_table_says_what_its_flags_mean(results):
    result, _ = results["timing"]
    table = result.tables[next(iter(TIMING))]
    assert table.meta["FLAG_T"] == f"no_total_error: {Flag.NO_TOTAL_ERROR.meaning}"
    assert np.asarray(table["flags"]).dtype == np.dtype("U16")
