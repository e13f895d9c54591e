"""What the report says about offsets, and that no result breaks it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import tables as pytables

import calibdask
from calibdask.array.report import TelescopeLayout
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.array.timing_report import OFFSET, timing_sections
from calibdask.errors import MissingInput
from calibdask.report import FigureBlock, Notice, Paragraph, TableBlock

SECTION = "CalculateTimingCalibration"
SIMULATION = ArraySimulation(
    n_files=1, n_events=400, array="reduced", energy_range_tev=(3.0, 100.0), core_margin_m=0.0
)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("night"), SIMULATION)


@pytest.fixture(scope="module")
def calibrate(night, tmp_path_factory):
    def do(overrides=None):
        output = tmp_path_factory.mktemp("run") / "out.h5"
        return calibdask.run(
            "timing-calibration",
            night.paths,
            output,
            overrides=overrides or {},
            cluster="serial",
            report=False,
        ).tables

    return do


@pytest.fixture(scope="module")
def tables(calibrate):
    return calibrate()


@pytest.fixture(scope="module")
def layout(night):
    tel_id = np.array([*night.tel_type])
    position_m = np.array([*night.position_m.values()])
    kinds = np.array([*night.tel_type.values()])
    return TelescopeLayout(tel_id, kinds, position_m[:, 0], position_m[:, 1])


def blocks(sections, title, kind):
    (section,) = [one for one in sections if one.title == title]
    return [block for block in section.blocks if isinstance(block, kind)]


def test_sections(tables, layout):
    sections = timing_sections(tables, layout)
    assert [section.title for section in sections] == [
        "What needs attention", "Offset", "Systematic error", "Map", "Pairs", "Network fit",
    ]  # fmt: skip
    (table,) = blocks(sections, "Offset", TableBlock)
    np.testing.assert_array_equal(table.columns["Offset / ns"], tables[OFFSET.table]["value"].value)
    words = " ".join(block.text for block in blocks(sections, "Offset", Paragraph))
    assert "subtracted" in words
    assert "throughput" not in " ".join(
        block.caption + block.alt
        for section in sections
        for block in section.blocks
        if isinstance(block, FigureBlock)
    )


def test_systematic_error(tables, layout):
    sections = timing_sections(tables, layout)
    (figure,) = blocks(sections, "Systematic error", FigureBlock)
    assert re.findall(r"(\w+): [\d.]+ ns between", figure.alt) == ["LST", "MST", "SST"]
    walk, table = blocks(sections, "Systematic error", TableBlock)
    assert list(walk.columns["Type"]) == ["LST", "MST", "SST"]
    np.testing.assert_array_equal(
        walk.columns["Time walk / ns"], tables[f"{OFFSET.table}_walk"]["time_walk"].value
    )
    total = np.hypot(table.columns["Error / ns"], table.columns["Systematic / ns"])
    np.testing.assert_array_equal(table.columns["Total error / ns"], total)


@pytest.mark.parametrize("normalisation", ["reference", "weighted-mean"])
def test_truth(night, calibrate, layout, normalisation):
    found = calibrate({f"{SECTION}.normalisation": normalisation})
    sections = timing_sections(found, layout, truth=night.time_offset_ns)
    (text,) = (block.text for block in blocks(sections, "Comparison with the truth", Paragraph))
    rms_ns, pull = map(float, re.findall(r"deviation is ([\d.]+) ns.* error\) ([\d.]+);", text)[0])
    assert rms_ns < 0.25
    assert pull < 2
    (table,) = blocks(sections, "Comparison with the truth", TableBlock)
    true = np.array([night.time_offset_ns[t] for t in table.columns["Telescope"].tolist()])
    # On the scale of the result: all are moved by the same.
    assert np.ptp(table.columns["Truth"] - true) < 1e-9


def test_nothing_known_of_the_residuals(tables, layout):
    few = {path: table.copy() for path, table in tables.items()}
    few[f"{OFFSET.table}_residuals"]["n_events"] = 1
    sections = timing_sections(few, layout)
    (notice,) = blocks(sections, "Systematic error", Notice)
    assert notice.level == "warning"
    assert "nothing is known" in notice.text


def test_a_table_that_is_missing_is_named(tables, layout):
    for kind in ("", "_pairs", "_components", "_covariance"):
        rest = {path: table for path, table in tables.items() if path != f"{OFFSET.table}{kind}"}
        with pytest.raises(MissingInput, match=r"timing_calibration.*timing-calibration again"):
            timing_sections(rest, layout)


def test_nobody_without_a_place_breaks_it(tables, layout):
    nowhere = replace(layout, x_m=np.full(len(layout.x_m), np.nan))
    sections = timing_sections(tables, nowhere)
    (notice,) = blocks(sections, "Map", Notice)
    assert "position" in notice.text


def test_an_offset_whose_total_error_is_not_known_is_flagged_and_stored_so(tmp_path):
    made = simulate_array(tmp_path / "short", replace(SIMULATION, n_events=40))
    run = calibdask.run(
        "timing-calibration", made.paths, tmp_path / "out.h5", cluster="serial", report=False
    )
    table = run.tables[OFFSET.table]
    unknown = np.isfinite(table["value"]) & ~np.isfinite(table["error_total"])
    assert unknown.any()
    np.testing.assert_array_equal(["T" in flags for flags in table["flags"].tolist()], unknown)
    with pytables.open_file(run.paths[0]) as file:
        stored = file.get_node(f"{OFFSET.table}").read()
        walk = file.get_node(f"{OFFSET.table}_walk").read()
    assert [b"T" in flags for flags in stored["flags"].tolist()] == unknown.tolist()
    expected = run.tables[f"{OFFSET.table}_walk"]["time_walk"].to_value("ns")
    np.testing.assert_array_equal(walk["time_walk"], expected)
