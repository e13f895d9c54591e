"""Numbers of timing, types and image sizes do not move unless they are meant to: see make.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden.make import SCALES, TIMING, compute_scales, compute_timing

MEANT = (
    "the numbers moved: raise the version of the calibration if this change is meant, and write the"
    " golden numbers again (python -m tests.golden.make)"
)


@pytest.fixture(scope="module")
def golden():
    return json.loads(TIMING.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "compute"),
    [(TIMING, compute_timing), (SCALES, compute_scales)],
    ids=["timing", "scales"],
)
def test_numbers(path, compute, tmp_path):
    golden = json.loads(path.read_text(encoding="utf-8"))
    computed = compute(tmp_path)
    assert computed.pop("version") == golden.pop("version"), MEANT
    assert set(computed) == set(golden), MEANT
    for table, columns in computed.items():
        assert set(columns) == set(golden[table]), f"{table}: {MEANT}"
        for name, values in columns.items():
            expected, message = golden[table][name], f"{table}.{name}: {MEANT}"
            if any(isinstance(value, float) for value in expected):
                # Means of residuals lie about zero, where only the absolute size counts.
                np.testing.assert_allclose(
                    np.array(values, float),
                    np.array(expected, float),
                    rtol=1e-12,
                    atol=1e-11,
                    err_msg=message,
                )
            else:
                np.testing.assert_array_equal(values, expected, message)


def test_the_golden_offsets_have_something_to_lose(golden):
    table = golden["clipped"]
    assert any("S" in letters for letters in table["flags"])
    assert all("I" in letters for letters in table["flags"] if "N" not in letters)
    assert sum(value is not None for value in table["systematic"]) >= 10
