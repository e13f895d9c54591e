"""A campaign on Torque's commands, as Debian's slurm-wlm-torque has them over SLURM."""

from __future__ import annotations

import re
import shutil

import pytest
from faults import TESTS, Scripted, run, write_inputs


def test_a_campaign_by_qsub_has_the_digest_of_a_serial_one(slurm, tmp_path, monkeypatch):
    if shutil.which("qsub") is None:
        pytest.skip("there is no qsub: install slurm-wlm-torque")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # workers import the calibration from here
    paths = write_inputs(tmp_path / "in", 4)
    serial = run(Scripted(), paths, tmp_path / "serial.h5", cluster="serial")
    result = run(
        Scripted(), paths, tmp_path / "torque.h5", cluster="torque", workers=1,
        jobqueue={"memory": "500 MiB", "walltime": "00:05:00"},
    )  # fmt: skip
    assert result.digest == serial.digest
    assert result.account.executor == "torque"
    slurm.wait(lambda: not slurm.jobs(), 60)
    logs = tmp_path / "torque.h5.work" / "logs"
    assert re.search(r"Start worker|Registered", (logs / "worker-0.log").read_text())
