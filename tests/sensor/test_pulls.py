"""Errors hold on a sensor with borders, overscan, two amplifiers and a flickering lamp."""

from __future__ import annotations

import numpy as np
import pytest

from tests.sensor.pulls import Sensor, pulls_of, width


@pytest.fixture(scope="module")
def sensor():
    return Sensor(shape=(40, 44))


@pytest.fixture(scope="module")
def pulls(sensor):
    return pulls_of(sensor)


@pytest.mark.parametrize(
    "name", ["bias", "readnoise", "dark_current", "gain", "flatfield", "held-out frames"]
)
def test_pulls_are_as_wide_as_they_should_be(sensor, pulls, name):
    """`make sensor-pulls` has 28 000 pixels of each, and all widths between 0.95 and 1.05."""
    found = pulls[name]
    assert found.size > 0.995 * np.count_nonzero(sensor.lit)
    chance = 4 / np.sqrt(2 * found.size)
    assert 0.95 - chance < width(found) < 1.05 + chance
