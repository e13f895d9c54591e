from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest

from calibdask.array.config import SECTIONS
from calibdask.array.pair_config import PairFinder
from calibdask.config import Campaign, Section, load_yaml
from calibdask.errors import ConfigError
from calibdask.registry import JOBS

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = Path(os.environ.get("CALIBDASK_SHARED_DATA", REPOSITORY / "../shared/data"))

DOCUMENTED_STEP_1 = """
CalculateAsymmetry:                 # also accept the newer section name CalculateEnergyAsymmetry
  event_filters:
    max_distance_asymmetry: 0.05    # equidistant events; scalar or [[type, "*", 0.05]]
    # min_gammaness: 0.5            # also documented: gamma-like showers
    # min_energy: 0.05              # TeV when a bare number
  chunk_size: 100000
  energy_reconstructor: RandomForestRegressor
  geometry_reconstructor: HillasReconstructor
  gammaness_reconstructor: RandomForestClassifier
  QualityQuery:
    quality_criteria:
      - ["energy threshold", "RandomForestRegressor_tel_energy > 50 * u.GeV"]
      - ["gammaness", "RandomForestClassifier_tel_prediction > 0.5"]
      - ["valid reco", "RandomForestRegressor_tel_is_valid"]
  PairFinder:
    max_impact_distance:            # m; a pair's distance may not exceed the sum of its two values
      - [type, "LST*", 125.0]
      - [type, "MST*", 125.0]
      - [type, "SST*", 225.0]
"""
DOCUMENTED_STEP_2 = """
CalculateInterCalibration:
  overwrite: True
  reconstruction_algorithm: RandomForestRegressor
  RelativeThroughputFitter:
    throughput_normalisation: {LST: 1.0, MST: 1.0, SST: 1.0}
    reference_telescopes: {LST: 1, MST: 5, SST: 34}
"""


class Loaded:
    """One configuration as all jobs of an array read it."""

    def __init__(self, paths, overrides=None) -> None:
        prepared = {
            name: job.prepare(paths, overrides or {})
            for name, job in JOBS.items()
            if ".array." in job.calibration
        }
        jobs = {name: one.calibration for name, one in prepared.items()}
        self.campaign = prepared["inter-calibration"].campaign
        self.overwrite = {name: one.overwrite for name, one in prepared.items()}
        self.energy, self.inter = jobs["energy-asymmetry-estimation"], jobs["inter-calibration"]
        self.cross, self.timing = jobs["cross-calibration"], jobs["timing-calibration"]
        self.image = jobs["image-asymmetry-estimation"]
        self.energy_asymmetry, self.image_asymmetry = self.energy.options, self.image.options
        self.notes = tuple(dict.fromkeys((*self.energy.notes, *self.inter.notes)))


@pytest.fixture
def load(tmp_path: Path):
    def load(*texts: str, **overrides: object):
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"config{number}.yaml")
            paths[-1].write_text(text, encoding="utf-8")
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return Loaded(paths, dotted)

    return load


def test_documented_configuration(load) -> None:
    config = load(DOCUMENTED_STEP_1 + DOCUMENTED_STEP_2)
    energy, inter, fitter = config.energy_asymmetry, config.inter, config.inter.fitter
    filters = energy.event_filters
    assert energy.energy_reconstructor == "RandomForestRegressor"
    assert filters.max_distance_asymmetry.resolve([1], ["LST_LST_LSTCam"]).tolist() == [0.05]
    assert filters.min_gammaness is None
    assert filters.min_energy is None
    assert [name for name, _ in energy.quality_criteria.pairs] == [
        "energy threshold",
        "gammaness",
        "valid reco",
    ]
    assert energy.max_impact_distance.resolve(
        [1, 5, 30], ["LST_LST_LSTCam", "MST_MST_NectarCam", "SST_GCT_CHEC"]
    ).tolist() == [125.0, 125.0, 225.0]
    assert config.overwrite["inter-calibration"] is True
    assert config.overwrite["energy-asymmetry-estimation"] is False
    assert inter.options.value_column == "RandomForestRegressor_tel_energy"
    assert fitter.reference_telescopes.by_type == (("LST", 1), ("MST", 5), ("SST", 34))
    assert fitter.throughput_normalisation.by_type == (("LST", 1.0), ("MST", 1.0), ("SST", 1.0))
    assert (fitter.estimator, fitter.n_min, fitter.clip_sigma) == ("log-clipped", 10, 3.0)


def test_two_files_are_one_configuration(load) -> None:
    both = load(DOCUMENTED_STEP_1, DOCUMENTED_STEP_2)
    one = load(DOCUMENTED_STEP_1 + DOCUMENTED_STEP_2)
    assert both.energy_asymmetry == one.energy_asymmetry
    assert both.inter == one.inter


def test_old_and_new_section_name_mean_the_same(load) -> None:
    new = DOCUMENTED_STEP_1.replace("CalculateAsymmetry:", "CalculateEnergyAsymmetry:")
    assert load(new).energy_asymmetry == load(DOCUMENTED_STEP_1).energy_asymmetry


def test_both_section_names_are_refused(load) -> None:
    with pytest.raises(ConfigError, match=r"config1.yaml:1: CalculateAsymmetry: .*config0.yaml:1"):
        load("CalculateEnergyAsymmetry: {}\n", "CalculateAsymmetry: {}\n")


PEER_FILES = sorted(
    [
        *(SHARED_DATA / "array/peer_config").glob("*.yaml"),
        *(SHARED_DATA / "array/dl2_ctapipe_chain").glob("*.yaml"),
    ]
)


@pytest.mark.skipif(not PEER_FILES, reason="CALIBDASK_SHARED_DATA has no array/peer_config")
@pytest.mark.parametrize("path", PEER_FILES, ids=lambda path: path.stem)
def test_configurations_of_ctao_calibpipe_load(path: Path) -> None:
    config = Loaded([path])
    if {"CalculateAsymmetry", "CalculateEnergyAsymmetry"} & set(load_yaml([path])):
        assert config.energy_asymmetry.quality_criteria.pairs[-1][0]


@pytest.mark.parametrize("name", ["energy_asymmetry_estimation", "inter_calibration"])
def test_shipped_configurations(name: str, load) -> None:
    config = Loaded([REPOSITORY / "configs" / f"{name}.yaml"])
    documented = load(DOCUMENTED_STEP_1, DOCUMENTED_STEP_2)
    if name == "inter_calibration":
        assert config.inter.fitter == documented.inter.fitter
        assert not config.overwrite["inter-calibration"]
    else:
        assert config.energy_asymmetry == documented.energy_asymmetry


def test_shipped_configurations_of_image_sizes(load) -> None:
    paths = [
        REPOSITORY / "configs" / f"{name}.yaml"
        for name in ("image_asymmetry_estimation", "inter_calibration_of_image_sizes")
    ]
    config = Loaded(paths)
    assert config.image_asymmetry.needs_altitude
    # What the file of step 2 spells out is what it would be with that of step 1 alone.
    corrected = config.inter.fitter
    assert corrected.minimum_pair_intensity.to_plain() == [["type", "*", 160.0]]
    assert corrected.distance_term is True
    derived = Loaded(
        paths[:1], {"CalculateInterCalibration.asymmetry_label": "image_asymmetry"}
    ).inter.fitter
    assert derived.minimum_pair_intensity == corrected.minimum_pair_intensity
    assert derived.distance_term is True


def test_shipped_configuration_of_the_timing(load) -> None:
    text = (REPOSITORY / "configs" / "timing_calibration.yaml").read_text()
    shipped = load(text).timing.options
    assert shipped.reference_telescope == 5
    assert shipped.quality_criteria.columns == {"HillasReconstructor_h_max"}
    assert [name for name, *_ in shipped.minima] == ["minimum_individual_intensity"]
    # Every option that is commented out is valid, and most show their default.
    switched_on, count = re.subn(r"(?m)^( +)# (?=[a-z_]+: )", r"\1", text)
    assert count == 8
    config = load(switched_on).timing.options
    assert config.observatory_altitude == 2158.0
    assert (config.max_offset, config.max_residual) == (5000.0, 50.0)
    assert next(name for name, *_ in config.minima) == "min_gammaness"


def test_options_of_the_timing(load) -> None:
    default = load("").timing
    assert default.map_config()["options"]["front"] == "spherical"
    assert default.options.compares_types
    assert default.options.window is None
    text = """
CalculateTimingCalibration:
  time: Peak_Time_Mean
  max_residual: 0.1 us
  mixed_types: False
  event_filters: {max_distance_asymmetry: 0.2}
"""
    given = load(text).timing
    assert given.map_config()["options"]["time"] == "peak_time_mean"
    assert given.map_config()["options"]["max_residual"] == pytest.approx(100.0)
    assert not given.options.compares_types
    assert given.options.window[0] == "max_distance_asymmetry"
    # What only the fit sees does not make the map work again.
    median = load("CalculateTimingCalibration: {n_min: 20, clip_sigma: 2}").timing
    assert median.map_config() == default.map_config()
    assert median.fit_config() != default.fit_config()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("time: gps", "trigger"),
        ("impact_bins: [0, 50, 50]", "rise"),
        ("impact_bins: [0, 50]", "three"),
        ("impact_bins: [-1, 0, 50]", "below 0"),
        ("max_residual: 3 m", "ns"),
        ("max_offset: 20 ns", "max_residual"),
        ("max_offset: 0.5 ms", "max_residual"),
        ("max_residual: 1 ns", "5"),
        ("reference_telescope: LST", "telescope number"),
        ("fornt: plane", "front"),
    ],
)
def test_wrong_options_of_the_timing(load, option: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as told:
        load(f"CalculateTimingCalibration:\n  {option}\n")
    assert option.partition(":")[0] in str(told.value)


@pytest.mark.parametrize("name", ["energy_asymmetry_estimation", "inter_calibration"])
def test_commented_options_of_shipped_configurations_are_valid(name: str, load) -> None:
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    switched_on, count = re.subn(r"(?m)^( +)# (?=[a-z_]+: \S+( GeV)? +#)", r"\1", text)
    assert count >= 2
    config = load(switched_on)
    if name == "energy_asymmetry_estimation":
        assert config.energy_asymmetry.event_filters.min_energy.to_plain() == [["type", "*", 0.05]]


# -- what counts where ----------------------------------------------------------------------------


def test_inner_quality_query_counts(load) -> None:
    levels = [
        'QualityQuery: {quality_criteria: [[top, "x > 1"]]}\n',
        'EventPreprocessor: {QualityQuery: {quality_criteria: [[outer, "x > 1"]]}}\n',
        'CalculateAsymmetry: {QualityQuery: {quality_criteria: [[inner, "x > 1"]]}}\n',
        "CalculateAsymmetry:\n  EventPreprocessor:\n    QualityQuery: {quality_criteria: INNER}\n",
    ]
    levels[3] = levels[3].replace("INNER", '[[innermost, "x > 1"]]')
    for number, expected in enumerate(["top", "outer", "inner", "innermost"]):
        config = load(*levels[: number + 1])
        assert config.energy_asymmetry.quality_criteria.pairs == ((expected, "x > 1"),)
        assert sum("is not used" in note for note in config.notes) == number


def test_inner_pair_finder_counts(load) -> None:
    text = "PairFinder: {max_impact_distance: 10}\n"
    assert load(text).energy_asymmetry.max_impact_distance.to_plain() == [["type", "*", 10.0]]
    inner = "CalculateAsymmetry: {PairFinder: {max_impact_distance: 20 m}}\n"
    config = load(text + inner)
    assert config.energy_asymmetry.max_impact_distance.to_plain() == [["type", "*", 20.0]]
    assert "PairFinder is not used: CalculateAsymmetry.PairFinder counts" in config.notes


def test_fitter_options_win_one_by_one(load) -> None:
    top = "RelativeThroughputFitter: {n_min: 20, estimator: log-median}\n"
    inner = "CalculateInterCalibration: {RelativeThroughputFitter: {n_min: 30}}\n"
    options = load(top + inner).inter.fitter
    assert (options.n_min, options.estimator, options.clip_sigma) == (30, "log-median", 3.0)


def test_no_criteria_is_noted(load) -> None:
    assert "every telescope-event is used" in load("CalculateAsymmetry: {}").notes[0]
    assert load("").notes == ()


def test_energy_units_and_patterns(load) -> None:
    text = """
    CalculateEnergyAsymmetry:
      event_filters:
        min_energy: [[type, "*", 0.05], [type, "LST*", 20 GeV], [id, 5, "1e5 MeV"]]
        min_gammaness: [[type, "*", 0.5], [id, "5", 1]]
    """
    options = load(text).energy_asymmetry.event_filters
    tel = ["SST_GCT_CHEC", "LST_LST_LSTCam", "MST_MST_NectarCam"]
    assert options.min_energy.resolve([30, 1, 5], tel) == pytest.approx([0.05, 0.02, 0.1])
    assert options.min_gammaness.resolve([30, 1, 5], tel).tolist() == [0.5, 0.5, 1.0]


def test_reference_telescopes_may_be_text_or_partial(load) -> None:
    options = load(
        'RelativeThroughputFitter: {reference_telescopes: {SST: "30", MST: 5}}'
    ).inter.fitter
    assert options.reference_telescopes.by_type == (("MST", 5), ("SST", 30))


def test_types_of_any_name(load) -> None:
    fitter = """
RelativeThroughputFitter:
  reference_telescopes: {LST: 1, "MST x/Flash": 7}
  throughput_normalisation: {UNKNOWN: 0.5}
CalculateCrossCalibration: {reference_subsystem: "MST x/Flash", nominal_throughput: {UNKNOWN: 0.2}}
"""
    options = load(fitter)
    for one in (options.inter.fitter, options.cross.fitter):
        assert one.reference_telescopes.by_type == (("LST", 1), ("MST x/Flash", 7))
        assert dict(one.throughput_normalisation.by_type)["UNKNOWN"] == 0.5
    assert options.cross.options.reference_subsystem == "MST x/Flash"
    assert dict(options.cross.options.nominal_throughput.by_type)["UNKNOWN"] == 0.2


def test_event_types_by_name_and_number(load) -> None:
    assert load("{}").energy_asymmetry.event_types == (32,)
    for text, expected in (
        ("[]", ()),
        ("[subarray, 33]", (32, 33)),
        ("FLATFIELD", (0,)),
        ("[32, SUBARRAY]", (32,)),
    ):
        options = load(f"CalculateImageAsymmetry: {{event_types: {text}}}")
        assert options.image_asymmetry.event_types == expected
        assert options.energy_asymmetry.event_types == (32,)


def test_the_default_estimator_is_that_of_what_is_compared(load) -> None:
    options = load("{}")
    assert options.inter.fitter.estimator == "log-clipped"
    assert options.cross.fitter.estimator == "log-clipped"
    images = load("CalculateInterCalibration: {asymmetry_label: image_asymmetry}")
    assert images.inter.fitter.estimator == "log-mean"
    assert images.inter.fitter.distance_term
    for name in ("log-mean", "log-median", "log-clipped", "asymmetry"):
        options = load(f"RelativeThroughputFitter: {{estimator: {name}}}")
        assert options.inter.fitter.estimator == name
        assert options.cross.fitter.estimator == name


def test_image_asymmetry_uses_the_image_column(load) -> None:
    text = "CalculateInterCalibration: {asymmetry_label: Image_Asymmetry}\n"
    assert load(text).inter.options.value_column == "hillas_intensity"
    other = "CalculateImageAsymmetry: {image_reconstructor: size}\n"
    assert load(text + other).inter.options.value_column == "size"


def test_sections_of_other_jobs_are_read(load) -> None:
    config = load(
        "CalculateImageAsymmetry:\n"
        "  event_filters:\n"
        "    minimum_individual_intensity: 80\n"
        "    equidistant_event_selection: [[type, '*', [0.05, 0.1]]]\n"
        "CalculateCrossCalibration:\n"
        "  reference_subsystem: lst\n"
        "  min_triggered_telescopes_per_subsystem: 3\n"
    )
    image = config.image_asymmetry
    assert image.event_filters.equidistant_event_selection.to_plain() == [
        ["type", "*", [0.05, 0.1]]
    ]
    cross = config.cross.options
    assert cross.reference_subsystem == "LST"
    assert cross.min_triggered_telescopes_per_subsystem == 3
    scalar = load("CalculateImageAsymmetry: {event_filters: {equidistant_event_selection: [1, 2]}}")
    image = scalar.image_asymmetry
    assert image.event_filters.equidistant_event_selection.to_plain() == [["type", "*", [1.0, 2.0]]]


@pytest.mark.parametrize("job", ["inter-calibration", "calculate-throughput-muon", "gain"])
def test_what_is_wrong_with_another_job_stops_none(job: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "CalculateTimingCalibration: {max_offset: 20 ns, max_residual: 50 ns}\n"
        "CalculateThroughputWithMuons: {min_number_of_muon: 30}\n"
        "CalculateInterCalibration: {RelativeThroughputFitter: {n_min: 20}}\n"
        "Stacks: {clip_sigma: 5.0}\nCampaign: {seed: 5}\n"
    )
    prepared = JOBS[job].prepare([path], {})
    assert prepared.campaign == Campaign(seed=5)
    with pytest.raises(ConfigError, match=r"CalculateTimingCalibration\.max_offset"):
        JOBS["timing-calibration"].prepare([path], {})
    assert JOBS["inter-calibration"].prepare([path], {}).calibration.fitter.n_min == 20
    muons = JOBS["calculate-throughput-muon"].prepare([path], {}).calibration
    assert muons.section.min_number_of_muon == 30


# -- what must not pass ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            DOCUMENTED_STEP_1.replace("chunk_size", "chunk_sise"),
            [":7: CalculateAsymmetry.chunk_sise", "did you mean 'chunk_size'?"],
        ),
        (
            DOCUMENTED_STEP_1.replace("max_distance_asymmetry:", "max_distance_asymetry:"),
            [":4: CalculateAsymmetry.event_filters.", "did you mean 'max_distance_asymmetry'?"],
        ),
        (
            DOCUMENTED_STEP_1.replace("QualityQuery", "QualtyQuery"),
            ["CalculateAsymmetry.QualtyQuery", "did you mean 'QualityQuery'?"],
        ),
        (
            DOCUMENTED_STEP_2.replace("CalculateInter", "CalculatInter"),
            [":2: CalculatInterCalibration: unknown section", "did you mean"],
        ),
        (
            DOCUMENTED_STEP_1.replace('0.5"]', '0.5 *"]'),
            [":12: ", "QualityQuery.quality_criteria: entry 2: ", "'gammaness'", "\n", "^"],
        ),
        (
            DOCUMENTED_STEP_1.replace('0.5"]', 'u.GeVV"]').replace("is_valid", "is.valid"),
            ["entry 2: ", "did you mean 'u.GeV'?", "entry 3: ", "'.valid' is not allowed"],
        ),
        (
            "QualityQuery: {quality_criteria: [[a, \"__import__('os').getcwd()\"]]}",
            ["QualityQuery.quality_criteria", "^^^"],
        ),
        ("QualityQuery: {quality_criteria: [a, b]}", ["'a' is not a criterion such as ["]),
        ("QualityQuery: {quality_criteria: [[a, 3]]}", ["['a', 3] is not a criterion"]),
        ("QualityQuery: {quality_criteria: a}", ["'a' is not a list of criteria"]),
        (
            'QualityQuery: {quality_criteria: [[a, "x > 1"], [a, "x > 2"]]}',
            ["two criteria have this name"],
        ),
        ("quality_criteria: []", ["it belongs in QualityQuery"]),
        ("CalculateAsymmetry: {quality_criteria: []}", ["in CalculateAsymmetry.QualityQuery"]),
        (
            "CalculateInterCalibration: {n_min: 3}",
            ["it belongs in CalculateInterCalibration.RelativeThroughputFitter"],
        ),
        ("CalculateAsymmetry: {log_level: INFO}", ["use --log-level on the command line"]),
        ("EventPreprocessor: {features: [a]}", ["leave it out"]),
        ("EventPreprocessor: {feature_set: dl2_irf}", ["expected one of 'custom'"]),
        (
            "CalculateAsymmetry: {chunk_size: 0}",
            ["expected a number of at least 1, got 0"],
        ),
        ("CalculateAsymmetry: {chunk_size: 1.5}", ["expected an integer"]),
        ("CalculateAsymmetry: {energy_reconstructor: ../x}", ["not the name of a reconstruction"]),
        ("CalculateAsymmetry: {energy_reconstructor: 3}", ["3 is not the name"]),
        (
            "CalculateAsymmetry: {event_filters: {min_energy: 50 m}}",
            ["event_filters.min_energy: '50 m' is not a quantity that can be converted to TeV"],
        ),
        ("CalculateAsymmetry: {event_filters: {min_energy: '50'}}", ["number and unit such as"]),
        ("CalculateAsymmetry: {event_filters: {min_energy: GeV}}", ["'GeV' is not a quantity"]),
        ("CalculateAsymmetry: {event_filters: {min_energy: -1 GeV}}", ["negative or not finite"]),
        ("CalculateAsymmetry: {event_filters: {min_energy: nan GeV}}", ["negative or not finite"]),
        ("CalculateAsymmetry: {event_filters: {min_gammaness: 50}}", ["between 0.0 and 1.0"]),
        (
            "CalculateAsymmetry: {event_filters: {max_distance_asymmetry: 0}}",
            ["expected a number above 0"],
        ),
        (
            'CalculateAsymmetry: {event_filters: {max_distance_asymmetry: [type, "*", 0.05]}}',
            ['needs two pairs of brackets: [[type, "*", 0.05]]'],
        ),
        (
            "CalculateImageAsymmetry: {event_filters: {max_distance_asymmetry: 0.05}}",
            ["event_filters.max_distance_asymmetry: unknown option"],
        ),
        (
            "CalculateImageAsymmetry: {event_filters: {equidistant_event_selection: 0.1}}",
            ["expected two numbers [p0, p1], got 0.1"],
        ),
        (
            "CalculateImageAsymmetry: {event_filters: {equidistant_event_selection: [1, 2, 3]}}",
            ["expected two numbers [p0, p1]"],
        ),
        ("CalculateCrossCalibration: {reference_subsystem: ''}", ["reference_subsystem"]),
        ("CalculateCrossCalibration: {event_types: FLASH}", ["got 'FLASH'"]),
        ("CalculateEnergyAsymmetry: {event_types: [32, 300]}", ["event type, got 300"]),
        ("CalculateEnergyAsymmetry: {event_types: [true]}", ["event type, got True"]),
        ("PairFinder: {max_impact_distance: far}", ["'far' is not a quantity", "converted to m"]),
        (
            "RelativeThroughputFitter: {reference_telescopes: {LST: one}}",
            ["reference_telescopes.LST: 'one' is not a telescope number such as 5"],
        ),
        ("RelativeThroughputFitter: {reference_telescopes: {LST: 1.0}}", ["1.0 is not a tele"]),
        ("RelativeThroughputFitter: {reference_telescopes: 1}", ["expected a mapping of options"]),
        (
            "RelativeThroughputFitter: {throughput_normalisation: {LST: 0}}",
            ["expected a number above 0"],
        ),
        (
            'RelativeThroughputFitter: {throughput_normalisation: {"MST x/Flash": -1}}',
            ["MST x/Flash: ", "expected a number above 0"],
        ),
        (
            "RelativeThroughputFitter: {reference_telescopes: {UNKNOWN: x}}",
            ["reference_telescopes.UNKNOWN: 'x' is not a telescope number"],
        ),
        (
            'QualityQuery: {quality_criteria: [["valid", "A-B_tel_is_valid"]]}',
            ["the result is a number"],
        ),
        ("RelativeThroughputFitter: {estimator: logmean}", ["did you mean 'log-mean'?"]),
        ("RelativeThroughputFitter: {n_min: 1}", ["expected a number of at least 2"]),
        ("RelativeThroughputFitter: {clip_sigma: 0}", ["expected a number above 0"]),
        ("RelativeThroughputFitter: {normalisation: mean}", ["'reference' or 'weighted-mean'"]),
        (
            (
                "CalculateEnergyAsymmetry: {energy_reconstructor: A}\n"
                "CalculateInterCalibration: {reconstruction_algorithm: B}\n"
            ),
            [
                ":2: CalculateInterCalibration.reconstruction_algorithm: 'B' differs from 'A'",
                ":1: CalculateEnergyAsymmetry.energy_reconstructor",
            ],
        ),
        (
            "CalculateAsymmetry: {}\nCalculateInterCalibration: {reconstruction_algorithm: B}\n",
            ["'B' differs from 'RandomForestRegressor'", "CalculateAsymmetry.energy_reconstructor"],
        ),
        (
            "CalculateAsymmetry: {EventPreprocessor: {geometry_reconstructor: A}}\n",
            [
                ":1: CalculateAsymmetry.EventPreprocessor.geometry_reconstructor: 'A' contradicts",
                "'HillasReconstructor'",
            ],
        ),
    ],
)
def test_bad_configurations(load, text: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert "config0.yaml:" in message
    for fragment in fragments:
        assert fragment in message
    for jargon in ("Input should", "pydantic", "function-plain"):
        assert jargon not in message


IMAGES = """\
CalculateImageAsymmetry:
  event_filters:
    minimum_individual_intensity: [[type, "*", 80.0], [type, "SST*", 50.0]]
    equidistant_event_selection: [0.05, 0.1]
  QualityQuery: {quality_criteria: [["gammaness", "RandomForestClassifier_tel_prediction > 0.5"]]}
CalculateInterCalibration: {asymmetry_label: image_asymmetry}
"""


def test_options_of_image_sizes(load) -> None:
    config = load(IMAGES)
    image, inter = config.image_asymmetry, config.inter.fitter
    assert (image.label, image.value_column) == ("image_asymmetry", "hillas_intensity")
    assert image.impact_column == "HillasReconstructor_tel_impact_distance"
    assert [(name, column) for name, column, _ in image.minima] == [
        ("minimum_individual_intensity", "hillas_intensity")
    ]
    assert image.window[0] == "equidistant_event_selection"
    assert image.needs_altitude
    assert [name for name, _ in image.quality_criteria.pairs] == ["gammaness"]
    # Corrections are the default: a cut on the pair of twice the size, and the distance term.
    assert config.inter.options == image
    assert inter.distance_term is True
    assert inter.minimum_pair_intensity.to_plain() == [
        ["type", "*", 160.0],
        ["type", "SST*", 100.0],
    ]
    assert config.notes == ()
    (note,) = load(
        IMAGES.replace("RandomForestClassifier_tel_prediction", "hillas_intensity")
    ).notes
    assert "a quality criterion selects by hillas_intensity of each telescope" in note
    level = load(IMAGES.replace("[0.05, 0.1]", "[0.05, 0]"))
    assert not level.image_asymmetry.needs_altitude
    assert not load(DOCUMENTED_STEP_1).energy_asymmetry.needs_altitude
    assert not load("").image_asymmetry.needs_altitude


@pytest.mark.parametrize(
    ("fitter", "least", "distance_term"),
    [
        ("{estimator: asymmetry}", None, False),
        ("{estimator: log-median}", 160.0, False),
        ("{minimum_pair_intensity: 0, distance_term: False}", 0.0, False),
        ("{minimum_pair_intensity: 200}", 200.0, True),
        ("{estimator: asymmetry, minimum_pair_intensity: 120}", 120.0, False),
    ],
)
def test_corrections_of_image_sizes_can_be_chosen(load, fitter, least, distance_term) -> None:
    inter = load(IMAGES + f"RelativeThroughputFitter: {fitter}\n").inter.fitter
    patterns = inter.minimum_pair_intensity
    assert (None if patterns is None else patterns.patterns[0][2]) == least
    assert inter.distance_term is distance_term


def test_an_unknown_threshold_of_the_size_is_noted(load) -> None:
    bare = "CalculateInterCalibration: {asymmetry_label: image_asymmetry}\n"
    config = load(bare)
    assert config.inter.fitter.minimum_pair_intensity is None
    (note,) = config.notes
    assert "no cut on the size of a pair" in note
    assert load(bare + "RelativeThroughputFitter: {minimum_pair_intensity: 9}\n").notes == ()
    assert load(bare + "RelativeThroughputFitter: {estimator: asymmetry}\n").notes == ()


def test_image_options_of_energies_are_refused(load) -> None:
    for text in (
        "RelativeThroughputFitter: {distance_term: True}\n",
        "CalculateInterCalibration: {RelativeThroughputFitter: {minimum_pair_intensity: 9}}\n",
    ):
        with pytest.raises(ConfigError, match=r"config0.yaml:1: .*this is of image sizes"):
            load(text)
    assert load("RelativeThroughputFitter: {distance_term: False}\n")


def test_algorithm_of_the_asymmetries_is_taken_over(load) -> None:
    text = "CalculateEnergyAsymmetry: {energy_reconstructor: A}\n"
    assert load(text).inter.options.value_column == "A_tel_energy"
    image = (
        "CalculateInterCalibration: {reconstruction_algorithm: B, asymmetry_label: image_asymmetry}"
    )
    assert load(text + image).inter.options.value_column == "hillas_intensity"
    alone = "CalculateInterCalibration: {reconstruction_algorithm: B}"
    assert load(alone).inter.options.value_column == "B_tel_energy"
    assert load(alone).inter.options.energy_reconstructor == "B"
    assert load(alone).energy_asymmetry == load("").energy_asymmetry  # of another job


# -- what content addresses are made of -----------------------------------------------------------


def test_options_are_values(load) -> None:
    config = load(DOCUMENTED_STEP_1 + DOCUMENTED_STEP_2)
    for calibration in (config.energy, config.inter):
        copy = pickle.loads(pickle.dumps(calibration))
        assert copy == calibration
        assert hash(copy.options) == hash(calibration.options)
        for mapping in (calibration.map_config(), calibration.fit_config()):
            assert json.loads(json.dumps(mapping, allow_nan=False)) == mapping


def test_what_does_not_matter_stays_out_of_the_address(load) -> None:
    text = DOCUMENTED_STEP_1 + DOCUMENTED_STEP_2
    reference = load(text)
    spelt_out = load(text.replace("0.05    #", '[[type, "*", 0.05]]   #'))
    outside = load(
        text.replace("  QualityQuery", "QualityQuery", 1)
        .replace("    quality_criteria", "  quality_criteria")
        .replace("  PairFinder", "PairFinder")
        .replace("    max_impact", "  max_impact")
    )
    for other in (spelt_out, outside):
        assert other.energy.map_config() == reference.energy.map_config()
        assert other.inter.map_config() == reference.inter.map_config()


# -- commented configurations ---------------------------------------------------------------------


def test_described_configurations_load_to_the_defaults(load) -> None:
    defaults = load("")
    for name in ("energy-asymmetry-estimation", "inter-calibration", "timing-calibration"):
        config = load(JOBS[name].template())
        assert config.energy_asymmetry == defaults.energy_asymmetry
        assert config.inter.options == defaults.inter.options
        assert config.inter.fitter == defaults.inter.fitter
        assert config.timing.options == defaults.timing.options
        assert config.campaign == defaults.campaign


def test_every_option_is_explained_and_its_example_is_valid(load) -> None:
    def check(model: type[Section]) -> None:
        for name, field in model.model_fields.items():
            inner = getattr(model(), name)
            key = field.alias or name
            if isinstance(inner, Section):
                check(type(inner))
            for example in field.examples or []:
                assert getattr(model.model_validate({key: example}), name) is not None
            if model.__name__ not in {"ThroughputNormalisation", "ReferenceTelescopes"}:
                assert field.description, f"{model.__name__}.{key}"

    for model in SECTIONS.values():
        check(model)
    assert PairFinder().max_impact_distance.patterns[0] == ("type", "LST*", 125.0)
