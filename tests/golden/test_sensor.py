"""Numbers of the sensor's calibrations do not move unless they are meant to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden.sensor import GOLDEN, RUNS, compute

MEANT = (
    "the numbers moved: raise the version of the calibration if this change is meant, and write the"
    " golden numbers again (python -m tests.golden.sensor)"
)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("golden"))


def _check(found, expected, where):
    if any(isinstance(value, float) for value in expected):
        found, expected = np.array(found, float), np.array(expected, float)
        # Residuals are differences of near equals.
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10, err_msg=where)
    else:
        np.testing.assert_array_equal(found, expected, where)


def test_versions(computed, golden):
    assert computed["versions"] == golden["versions"], (
        "a version was raised: write the golden numbers again (python -m tests.golden.sensor)"
    )


@pytest.mark.parametrize("job", RUNS)
def test_numbers(computed, golden, job):
    tables, maps = golden[job]["tables"], golden[job]["maps"]
    assert set(computed[job]["tables"]) == set(tables), MEANT
    assert set(computed[job]["maps"]) == set(maps), MEANT
    for path, columns in tables.items():
        for name, expected in columns.items():
            _check(computed[job]["tables"][path][name], expected, f"{path}.{name}: {MEANT}")
    for name, expected in maps.items():
        _check(computed[job]["maps"][name], expected, f"{name}: {MEANT}")
