"""Numbers do not move unless they are meant to: see make.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden.make import ESTIMATORS, GOLDEN, compute

MEANT = (
    "the numbers moved: raise the calibration's version if this change is meant, and write the"
    " golden numbers again (python -m tests.golden.make)"
)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("golden"))


def _same(computed, golden, where):
    assert set(computed) == set(golden), f"{where}: {MEANT}"
    for name, expected in golden.items():
        message = f"{where}.{name}: {MEANT}"
        if any(isinstance(value, float) for value in expected):
            # Means of differences lie about zero, where only the absolute size counts.
            np.testing.assert_allclose(
                np.array(computed[name], float),
                np.array(expected, float),
                rtol=1e-12,
                atol=1e-15,
                err_msg=message,
            )
        else:
            np.testing.assert_array_equal(computed[name], expected, message)


def test_versions(computed, golden):
    assert computed["versions"] == golden["versions"], (
        "a version was raised: write the golden numbers again (python -m tests.golden.make)"
    )


def test_map(computed, golden):
    assert computed["map"]["cut_flow"] == golden["map"]["cut_flow"], MEANT
    _same(computed["map"]["summary"], golden["map"]["summary"], "map")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_coefficients(computed, golden, estimator):
    _same(computed[estimator], golden[estimator], estimator)


def test_the_golden_campaign_has_something_to_lose(golden):
    flags = golden["log-mean"]["flags"]
    assert any("S" in letters for letters in flags)
    assert sum(value is not None for value in golden["log-mean"]["error"]) >= 14
