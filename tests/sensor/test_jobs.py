"""Jobs from their configuration: sections, products of other jobs, what is wrong with them."""

from __future__ import annotations

import pytest

from calibdask.errors import ConfigError
from calibdask.registry import JOBS

SENSOR_JOBS = [name for name, job in JOBS.items() if ".sensor." in job.calibration]


def prepare(job, paths, overrides):
    return JOBS[job].prepare(paths, overrides)


@pytest.mark.parametrize("job", SENSOR_JOBS)
def test_a_template_is_a_configuration(job, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(JOBS[job].template(), encoding="utf-8")
    prepared = prepare(job, [path], {})
    assert prepared.calibration.name == job
    assert prepared.calibration == prepare(job, [], {}).calibration


def test_products_are_found_wherever_a_worker_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = prepare("calibrate-images", [], {"CalibrateImages.bias": "made/bias"})
    assert prepared.calibration.products == (("bias", str(tmp_path / "made" / "bias")),)


def test_options_of_stacks_reach_every_job():
    overrides = {"Stacks.clip_sigma": 4.5, "Campaign.shard_bytes": "1 MiB"}
    prepared = prepare("gain", [], overrides)
    assert prepared.calibration.stacks.clip_sigma == 4.5
    assert prepared.calibration.shard_bytes == 1 << 20


def test_what_is_wrong_is_named():
    with pytest.raises(ConfigError, match=r"Stacks\.clip_sigma.*at least 3"):
        prepare("stack-images", [], {"Stacks.clip_sigma": 1.0})
    with pytest.raises(ConfigError, match=r"StackImages\.spectacel.*did you mean 'spectacle'"):
        prepare("stack-images", [], {"StackImages.spectacel": True})
