"""Defect pixels, against a camera in which some were made."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.errors import NotEnoughData
from calibdask.sensor import config
from calibdask.sensor.defects import DefectsJob
from tests.sensor.toys import Camera, key, run_job

HOT, BAD_BIAS, NOISY, BAD_RESPONSE = (1 << bit for bit in (8, 9, 10, 11))


@pytest.fixture(scope="module")
def camera():
    camera = Camera(shape=(64, 96))
    camera.truth["dark"][:] = np.minimum(camera.truth["dark"], 5.0)
    camera.truth["dark"][10, 11] = 400.0
    camera.truth["response"][30, 31] = 0.4
    camera.truth["fixed_pattern"][50, 51] = 300.0
    return camera


def stacks_of(camera, n=20):
    stacks = {
        key("bias_readnoise", iso=100): camera.frames(n),
        key("flatfield", iso=100): camera.frames(n, light=6000.0, vignetted=True),
    }
    stacks |= {
        key("dark_current", iso=100, exposure_s=t): camera.frames(n, exposure_s=t)
        for t in (1.0, 5.0, 10.0)
    }
    bias = stacks[key("bias_readnoise", iso=100)]
    bias[::2, 40, 41] += 50  # random telegraph
    return stacks


def test_every_defect_is_found_for_its_reason(camera):
    maps, result, calibration = run_job(DefectsJob(), stacks_of(camera), camera.sensor)
    mask = maps["defects/mask"]
    assert mask[10, 11] == HOT
    assert mask[30, 31] == BAD_RESPONSE
    assert mask[50, 51] == BAD_BIAS
    assert mask[40, 41] & NOISY
    assert 4 <= (mask > 0).sum() <= 6
    tables = calibration.tables(result)
    assert len(tables["/sensor/defect_pixels"]) == result["n_defects"]
    rows = {row["criterion"]: row for row in result["rows"]}
    assert 1 <= rows["hot"]["n_defects"] <= 3  # gamma tails
    assert rows["any"]["n_defects"] == (mask > 0).sum()
    assert all(row["applied"] for row in rows.values())
    listed = {
        (int(one["row"]), int(one["column"])): one["why"] for one in tables["/sensor/defect_pixels"]
    }
    assert listed[30, 31] == "bad-response"


def test_a_limit_in_absolute_terms(camera):
    options = config.Defects(dark_limit=0.1)
    stacks = {k: v for k, v in stacks_of(camera).items() if k.kind == "dark_current"}
    maps, _, _ = run_job(DefectsJob(options=options), stacks, camera.sensor)
    assert (maps["defects/mask"] & HOT > 0).mean() > 0.5


def test_what_could_not_be_judged_is_said(camera):
    stacks = {k: v for k, v in stacks_of(camera, n=5).items() if k.kind == "bias_readnoise"}
    _, result, calibration = run_job(DefectsJob(), stacks, camera.sensor)
    applied = {row["criterion"]: row["applied"] for row in result["rows"]}
    sections = calibration.report(result, calibration.tables(result))
    assert any("No frames to judge by: hot" in block.text for block in sections[0].blocks)
    assert applied["bad-bias"]
    assert not applied["hot"]
    assert not applied["bad-response"]


def test_nothing_to_judge_by(camera):
    one = key("dark_current", iso=100, exposure_s=1.0)
    with pytest.raises(NotEnoughData, match="nothing to judge"):
        run_job(DefectsJob(), {one: camera.frames(3)}, camera.sensor)
