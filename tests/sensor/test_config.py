"""Options of the sensor jobs: defaults, what contradicts itself, what is misspelt."""

from __future__ import annotations

import pytest

from calibdask.errors import ConfigError
from calibdask.registry import find_job


def prepare(job, text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return find_job(job).prepare([path], {})


def test_sections_of_other_jobs_may_stand_beside(tmp_path):
    prepared = prepare("bias", "Gain: {min_levels: 5}\nBias: {outlier_sigma: 5.0}", tmp_path)
    assert prepared.calibration.options.outlier_sigma == 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FlatField: {spectacle: true, n_terms: 6}", "holds 5 terms"),
        ("FlatField: {border: 0.5}", "below 0.5"),
        ("FlatField: {boarder: 0.1}", "did you mean 'border'"),
        ("Frames: {exposure_tolerance: 1.5}", "below 1"),
        ("Frames: {planes: frame}", "did you mean 'frames'"),
        ("Gian: {}", "did you mean 'Gain'"),
    ],
)
def test_what_is_wrong_is_said(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        prepare("flatfield", text, tmp_path)


def test_fit_options_alone_change_no_address_of_the_sums(tmp_path):
    """Other thresholds read no frame again."""
    one = prepare("gain", "Gain: {fit_fraction: 0.5}", tmp_path).calibration
    other = prepare("gain", "Gain: {fit_fraction: 0.6}", tmp_path).calibration
    assert one.fit_config() != other.fit_config()
    assert one.map_config() == other.map_config()
