from __future__ import annotations

import pytest

from calibdask.errors import ConfigError
from calibdask.muon.config import DEFAULT_CRITERIA
from calibdask.registry import JOBS

THROUGHPUT, PSF = "calculate-throughput-muon", "calculate-psf-muon"


@pytest.fixture
def load(tmp_path):
    def load(text="", job=THROUGHPUT, **overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        return JOBS[job].prepare([path], given)

    return load


def test_defaults_are_those_of_the_peer(load):
    calibration = load().calibration
    options = calibration.section
    assert options.criteria.pairs == DEFAULT_CRITERIA
    assert (options.clip_sigma, options.iterations) == (4.0, 5)
    assert (calibration.chunk_size, calibration.bins, options.allowed_tels) == (None, None, None)
    assert load(job=PSF).calibration.section.min_number_of_muon == 100


def test_a_configuration_of_the_peer(load):
    config = load(
        """\
CalculateThroughputWithMuons:
  input_url: muons.dl1.h5
  allowed_tels: [2, 1]
  MuonQualityQuery:
    quality_criteria:
      - ["impact", "muonefficiency_impact <= 8.0"]
  aggregator_type: SigmaClippingAggregator
  SigmaClippingAggregator:
    max_sigma: 3
    iterations: 4
    chunking_type: SizeChunking
    SizeChunking:
      chunk_size: 1000
      last_chunk_policy: skip
      allow_undersized_tables: true
"""
    )
    options = config.calibration.section
    assert config.inputs == ("muons.dl1.h5",)
    assert options.allowed_tels == (1, 2)
    assert options.criteria.pairs == (("impact", "muonefficiency_impact <= 8.0"),)
    assert (options.clip_sigma, options.iterations) == (3.0, 4)
    assert config.calibration.chunk_size == 1000
    assert options.size_chunking.last_chunk_policy == "skip"
    assert options.size_chunking.allow_undersized_tables
    assert config.calibration.notes == ()


def test_inner_sections_win_option_by_option(load):
    text = """\
SizeChunking: {chunk_size: 7, last_chunk_policy: skip}
SigmaClippingAggregator: {max_sigma: 2.5, iterations: 2}
QualityQuery: {quality_criteria: [["outer", "muonefficiency_is_valid"]]}
CalculateThroughputWithMuons:
  SigmaClippingAggregator: {iterations: 3, SizeChunking: {chunk_size: 9}}
"""
    calibration = load(text).calibration
    options = calibration.section
    assert calibration.chunk_size == 9
    assert options.size_chunking.last_chunk_policy == "skip"
    assert (options.clip_sigma, options.iterations) == (2.5, 3)
    assert options.criteria.pairs == (("outer", "muonefficiency_is_valid"),)


def test_sections_of_the_other_job_do_not_count(load):
    text = "CalculatePSFWithMuons: {allowed_tels: [4], muonring_radius_fit_nbins: 20}\n"
    assert load(text).calibration.section.allowed_tels is None
    options = load(text, job=PSF).calibration.section
    assert (options.allowed_tels, options.muonring_radius_fit_nbins) == ((4,), 20)


def test_all_rings_with_the_plain_aggregator(load):
    options = load(
        "CalculateThroughputWithMuons: {aggregator_type: PlainAggregator}\n"
    ).calibration.section
    assert options.clip_sigma is None


def test_chunks_by_time_are_bins(load):
    text = """\
SigmaClippingAggregator: {chunking_type: TimeChunking, TimeChunking: {chunk_duration: 10 min}}
"""
    config = load(text)
    assert config.calibration.bins.width_ns == 600_000_000_000
    assert config.calibration.chunk_size is None
    assert "aligned" in config.calibration.notes[0]
    zero = load("SigmaClippingAggregator: {chunking_type: TimeChunking}\n")
    assert zero.calibration.bins is None


def test_time_bins_win_over_numbers(load):
    config = load("SizeChunking: {chunk_size: 100}\n", Campaign__time_bin="1 h")
    assert config.calibration.bins.width_ns == 3_600_000_000_000
    assert config.calibration.chunk_size is None
    assert "SizeChunking.chunk_size is not used" in config.calibration.notes[0]


def test_overlapping_chunks_are_not_made(load):
    config = load("SizeChunking: {chunk_size: 100, last_chunk_policy: overlap}\n")
    assert config.calibration.section.size_chunking.last_chunk_policy == "overlap"
    assert "twice" in config.calibration.notes[0]
    with pytest.raises(ConfigError, match=r"SizeChunking\.chunk_shift.*not independent"):
        load("SizeChunking: {chunk_size: 100, chunk_shift: 50}\n")


def test_chunks_by_number_mean_nothing_to_the_psf(load):
    config = load("SizeChunking: {chunk_size: 100}\n", job=PSF)
    assert config.calibration.chunk_size is None
    assert "without effect" in config.calibration.notes[0]


def test_nothing_is_appended(load):
    assert load("CalculateThroughputWithMuons: {append: false}\n").calibration.notes == ()
    assert (
        "without effect"
        in load("CalculateThroughputWithMuons: {append: true}\n").calibration.notes[0]
    )


def test_no_criteria_is_noted(load):
    config = load("MuonQualityQuery: {quality_criteria: []}\n")
    assert config.calibration.section.criteria.pairs == ()
    assert "every ring is used" in config.calibration.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CalculateThroughputWithMuons: {chunk_size: 5}", "SizeChunking"),
        ("CalculateThroughputWithMuons: {allowed_tels: [x]}", "telescope numbers"),
        ("CalculateThroughputWithMuons: {allowed_tels: []}", "list is empty"),
        ("CalculateThroughputWithMuons: {agregator_type: x}", "did you mean 'aggregator_type'"),
        ("SigmaClippingAggregator: {max_sigma: 1}", "at least 1.5"),
        ("SizeChunking: {chunk_size: 0}", "at least 1"),
        ("SizeChunking: {last_chunk_policy: Truncated}", "did you mean 'truncate'"),
        ("TimeChunking: {chunk_duration: 5}", "not a time"),
        ("TimeChunking: {chunk_duration: 5 m}", "not a time"),
        ("MuonQualityQuery: {quality_criteria: [[a]]}", "entry 1"),
        ("MuonQualityQuery: {quality_criteria: [[a, 'x.y > 1']]}", "'.y' is not allowed"),
        ("MuonProcessor: {RingQuery: {}}", "MuonQualityQuery"),
        ("CalculateThroughputWithMuon: {}", "did you mean 'CalculateThroughputWithMuons'"),
        ("EventSource: {focal_length_choice: real}", "'EFFECTIVE'"),
    ],
)
def test_wrong_options_are_named(load, text, message):
    with pytest.raises(ConfigError) as caught:
        load(text + "\n")
    assert message in str(caught.value)
    assert "config.yaml:1" in str(caught.value)


def test_the_model_is_ours_unless_compatibility_is_asked_for(load):
    ours, peers = (
        load(text).calibration.ring_fit
        for text in ("", "MuonIntensityFitter: {compatibility: ctapipe}\n")
    )
    assert (ours.of_ctapipe, ours.fit_circle) == (False, True)
    assert (peers.of_ctapipe, peers.fit_circle) == (True, False)
    fixed = load("MuonIntensityFitter: {fit_circle: false}\n").calibration.ring_fit
    assert (fixed.of_ctapipe, fixed.fit_circle) == (False, False)
    with pytest.raises(ConfigError, match="fixes the circle; leave one of them out"):
        load("MuonIntensityFitter: {compatibility: ctapipe, fit_circle: true}\n")
    with pytest.raises(ConfigError, match="compatibility"):
        load("MuonIntensityFitter: {compatibility: lstchain}\n")


def test_options_of_the_ring_fit_by_telescope(load):
    text = """\
MuonProcessor: {pedestal: [[type, "*", 1.0], [id, 2, 2.0]]}
MuonIntensityFitter: {oversampling: 5}
"""
    fit = load(text).calibration.ring_fit
    assert fit.of_telescope(1, "LST_LST_LSTCam").pedestal == 1.0
    two = fit.of_telescope(2, "MST_MST_NectarCam")
    assert (two.pedestal, two.hole_radius_m, two.oversampling) == (2.0, 0.59, 5)
    assert fit.of_telescope(3, "SST_SST_SSTCam").hole_radius_m == 0.0


def test_what_only_fits_depend_on_is_not_in_the_map(load):
    one = load("SigmaClippingAggregator: {max_sigma: 3}\n").calibration
    two = load().calibration
    assert one.map_config() == two.map_config()
    assert one.fit_config() != two.fit_config()
