"""EMVA 1288 reference set 001, a real sensor, against the reference program's own results.

The numbers are those that the program emva1288 (EMVA 1288 working group, `emva1288` on GitHub)
published with the set (EMVA1288/datasets, CC BY-SA 3.0), as shared data.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import calibdask

EXACT = {
    "k_dn_per_electron": ("K", 1.0),
    "responsivity_dn_per_photon": ("R", 1.0),
    "quantum_efficiency": ("QE", 0.01),
    "dsnu1288_electron": ("DSNU1288", 1.0),
    "prnu1288_percent": ("PRNU1288", 1.0),
    "linearity_min_percent": ("LE_min", 1.0),
    "linearity_max_percent": ("LE_max", 1.0),
    "saturation_photon": ("u_p_sat", 1.0),
    "saturation_electron": ("u_e_sat", 1.0),
    "snr_max": ("SNR_max", 1.0),
    "s2_y_dark_dn2": ("s_2_y_dark", 1.0),
    "s2_y_bright_dn2": ("s_2_y", 1.0),
    "sigma_y_dark_dn": ("sigma_y_dark", 1.0),
    "sigma_d_electron": ("sigma_d", 1.0),
    "threshold_photon": ("u_p_min", 1.0),
    "dynamic_range": ("DR", 1.0),
}
"""Ours, theirs, and the unit of theirs in ours."""


@pytest.fixture(scope="module")
def result(shared_sensor, tmp_path_factory):
    return calibdask.run(
        "emva1288",
        [shared_sensor / "emva1288_001_ccd_12bit"],
        tmp_path_factory.mktemp("emva") / "result",
        cluster="serial",
    )


@pytest.fixture(scope="module")
def reference(shared_sensor):
    text = (shared_sensor / "emva1288_001_reference_results.json").read_text(encoding="utf-8")
    (numbers,) = json.loads(text).values()
    return numbers


@pytest.fixture(scope="module")
def row(result):
    table = result.tables["/sensor/emva1288"]
    assert len(table) == 1
    return {name: np.asarray(table[name]).item() for name in table.colnames}


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_reference_program(row, reference, name):
    theirs, unit = EXACT[name]
    assert row[name] == pytest.approx(reference[theirs] * unit, rel=1e-9)


def test_dark_current(row, reference):
    """Theirs is from a least-squares fit in other units: equal to 3e-8 of a mean of 28 e-/s."""
    mean, variance = (row[f"dark_current_{what}_electron_per_s"] for what in ("mean", "variance"))
    assert mean == pytest.approx(reference["u_I_mean"], rel=1e-6)
    assert variance == pytest.approx(reference["u_I_var"], rel=1e-6)


def test_rows_columns_and_pixels_add_up(row):
    """With independent parts, and rows and columns few against the pixels."""
    for what in ("dark", "bright"):
        parts = [row[f"s2_{what}_{part}_dn2"] for part in ("row", "column", "pixel")]
        assert np.sum(parts) == pytest.approx(row[f"s2_y_{what}_dn2"], rel=0.01)


def test_every_exposure_has_its_dark_frames(row, result):
    assert row["n_exposures"] == len(result.tables["/sensor/emva1288_points"])
    assert row["n_without_dark"] == 0
