from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from calibdask.config import (
    Campaign,
    Section,
    caseless,
    describe,
    exact_bytes,
    load_config,
    load_yaml,
    parse_bytes,
    parse_yaml,
    read_with,
)
from calibdask.errors import ConfigError
from calibdask.registry import JOBS, find_job

if TYPE_CHECKING:
    from pathlib import Path


class Filters(Section):
    """Filters."""

    min_size: float | None = Field(default=None, gt=0.0, lt=1e6, description="Size.", examples=[5])


class Tool(Section):
    """A tool."""

    hints = {"log_level": "use --log-level on the command line"}  # noqa: RUF012

    threshold: float = Field(default=1.5, ge=0.0, le=10.0, json_schema_extra={"unit": "TeV"})
    steps: int = Field(default=3, description="Number of steps.")
    name: str = Field(default="x", min_length=1)
    names: list[str] = Field(default=["a", "b"])
    by_type: dict[str, float] = Field(default={})
    mode: Annotated[Literal["fast", "slow"], caseless("fast", "slow")] = "fast"
    overwrite: bool = False
    size: Annotated[int, read_with(parse_bytes)] = Field(
        default=1024, json_schema_extra={"unit": "bytes"}
    )
    filters: Filters = Filters()
    nested: Filters | None = Field(default=None, alias="Filters")


class Needs(Section):
    """A section with an option that has no default."""

    must: int


SCHEMA = {"Tool": Tool, "Filters": Filters, "Campaign": Campaign, "Needs": Needs}


def _bomb(section: str) -> str:
    """Ten lines that stand for 9 ** 9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]
    return "\n".join([*lines, f"{section}: *a8\n"])


@pytest.fixture
def yaml_file(tmp_path: Path):
    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- reading and merging --------------------------------------------------------------------------


def test_an_alias_may_be_used_often(yaml_file) -> None:
    path = yaml_file("Tool:\n  names: &a [x, y]\n  others: [*a, *a, *a]\n")
    assert load_yaml([path])["Tool"]["others"] == [["x", "y"]] * 3


def test_sections_merge_and_options_are_replaced(yaml_file) -> None:
    first = yaml_file(
        "Tool: {threshold: 2, names: [a, b], by_type: {LST: 1, MST: 2}, filters: {min_size: 3}}\n"
        "Filters: {min_size: 7}\n",
        "first.yaml",
    )
    second = yaml_file(
        "Tool:\n  names: [c]\n  by_type: {SST: 3}\n  steps: 4\nFilters:\n", "second.yaml"
    )
    assert load_yaml([first, second]) == {
        "Tool": {
            "threshold": 2,
            "names": ["c"],
            "by_type": {"SST": 3},
            "filters": {"min_size": 3},
            "steps": 4,
        },
        "Filters": {"min_size": 7},
    }
    assert load_yaml([second, first])["Tool"]["names"] == ["a", "b"]


def test_command_line_wins_and_is_named_in_errors(yaml_file) -> None:
    path = yaml_file("Tool: {steps: 4}\n")
    config = load_config(SCHEMA, [path], {"Tool.steps": 5, "Tool.Filters.min_size": 2.0})
    tool = config.get("Tool", Tool)
    assert tool.steps == 5
    assert tool.nested == Filters(min_size=2.0)
    assert config.where("Tool", "steps") == "command line: Tool.steps"
    with pytest.raises(ConfigError, match=r"^command line: Tool.steps: expected an integer, got"):
        load_config(SCHEMA, [path], {"Tool.steps": "x"})


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "Tool:\n", "Tool: {}\n"])
def test_empty_files_and_sections_mean_the_defaults(yaml_file, text: str) -> None:
    assert load_config(SCHEMA, [yaml_file(text)]).get("Tool", Tool) == Tool()


@pytest.mark.parametrize("number", ["5e-2", "0.05", "5.e-2", "+5E-2", "5.0e-2"])
def test_numbers_with_exponent_are_numbers(yaml_file, number: str) -> None:
    assert load_yaml([yaml_file(f"Tool: {{threshold: {number}}}\n")]) == {
        "Tool": {"threshold": 0.05}
    }


def test_anchors_and_merge_keys(yaml_file) -> None:
    text = "Tool: &tool {steps: 4, threshold: 2}\nFilters:\n  <<: *tool\n  steps: 9\n"
    assert load_yaml([yaml_file(text)])["Filters"] == {"steps": 9, "threshold": 2}


@pytest.mark.parametrize(
    ("text", "place", "fragment"),
    [
        (
            "Tool:\n  steps: 1\n  steps: 2\n",
            ":3:3",
            "'steps' is given twice, in line 2 and in line 3",
        ),
        ("Tool: {}\nTool: {}\n", ":2:1", "'Tool' is given twice"),
        ("Tool:\n  names:\n    - {a: 1, a: 2}\n", ":3:14", "'a' is given twice"),
        ("Tool:\n  steps: [1, 2\n", ":3:1", "expected ',' or ']'"),
        ("Tool:\n\tsteps: 1\n", ":2:1", "cannot start any token"),
        ("Tool: {1: 2}\n", ":1:8", "the name 1 is not text: put it into quotes"),
        ("Tool: {on: 2}\n", ":1:8", "the name True is not text"),
        ("Tool: {? [a, b] : 2}\n", ":1:10", "is not text"),
        ("Tool: !!python/object/apply:os.getcwd []\n", ":1:7", "is not allowed: leave it out"),
        ("Tool: {a: !!timestamp x}\n", ":1:11", "tag 'tag:yaml.org,2002:timestamp' is not"),
        ("Tool: &a {b: *a}\n", ":1", "which has no end"),
        ("Tool: &a {<<: *a}\n", ":1", "which has no end"),
        ("Tool: &a [[*a]]\n", ":1", "which has no end"),
        (_bomb("Tool"), ":6", "more than 100000 values"),
        ("Tool: *missing\n", ":1:7", "undefined alias"),
        ("Tool: {}\n---\nTool: {}\n", ":2:1", "another document"),
        ("Tool:\n  name: \x07\n", ":2", "U+0007 is not allowed"),
        ("Tool:\n  when: 2026-13-01\n", "", "month must be in 1..12"),
        ("- Tool\n", "", "consists of sections"),
        ("Tool\n", "", "consists of sections"),
        ("[" * 5000, "", "cannot be read"),
    ],
)
def test_bad_yaml(yaml_file, text: str, place: str, fragment: str) -> None:
    path = yaml_file(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml([path])
    assert str(caught.value).startswith(f"{path}{place}: ")
    assert fragment in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such configuration file"):
        load_yaml([tmp_path / "no.yaml"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml([tmp_path])
    (tmp_path / "data.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ConfigError, match="byte 0 is not UTF-8 text"):
        load_yaml([tmp_path / "data.h5"])


# -- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tol: {}", ":1: Tol: unknown section; did you mean 'Tool'?"),
        ("tool: {}", ":1: tool: unknown section; did you mean 'Tool'?"),
        ("threshold: 3", ":1: threshold: unknown section; it belongs in Tool"),
        (
            "Xyz: 3",
            ":1: Xyz: unknown section; the sections here are Tool, Filters, Campaign, Needs",
        ),
        (
            "Tool:\n  thresholt: 3",
            ":2: Tool.thresholt: unknown option (value 3); did you mean 'threshold'?",
        ),
        (
            "Tool:\n  filters:\n    minsize: 3",
            ":3: Tool.filters.minsize: unknown option (value 3); did you mean 'min_size'?",
        ),
        (
            "Tool: {Filters: {qqq: 1}}",
            ":1: Tool.Filters.qqq: unknown option (value 1); the options here are min_size",
        ),
        (
            "Tool: {min_size: 1}",
            ":1: Tool.min_size: unknown option (value 1); it belongs in Tool.filters",
        ),
        ("Tool: {seed: 1}", "Tool.seed: unknown option (value 1); it belongs in Campaign"),
        ("Tool: {nested: {}}", "Tool.nested: unknown option (value {})"),
        ("Tool: {log_level: INFO}", "(value 'INFO'); use --log-level on the command line"),
        ("Tool: {steps: 3.0}", "Tool.steps: expected an integer, got 3.0"),
        ("Tool: {steps: '3'}", "Tool.steps: expected an integer, got '3'"),
        ("Tool: {steps: true}", "Tool.steps: expected an integer, got True"),
        ("Tool: {steps: null}", "Tool.steps: expected an integer, got None"),
        ("Tool: {threshold: high}", "expected a number, got 'high'"),
        ("Tool: {threshold: .nan}", "expected a finite number, got nan"),
        ("Tool: {threshold: -1}", "expected a number of at least 0.0, got -1"),
        ("Tool: {threshold: 11}", "expected a number of at most 10.0, got 11"),
        ("Tool: {filters: {min_size: 0}}", "expected a number above 0.0, got 0"),
        ("Tool: {filters: {min_size: 1e6}}", "expected a number below 1000000.0"),
        ("Tool: {overwrite: 1}", "expected true or false, got 1"),
        ("Tool: {name: 3}", "expected a string, got 3"),
        ("Tool: {name: ''}", "expected a string that is not empty, got ''"),
        ("Tool: {names: a}", "expected a list, got 'a'"),
        ("Tool:\n  names:\n    - a\n    - 5", ":4: Tool.names[1]: expected a string, got 5"),
        ("Tool: {by_type: 3}", "expected a mapping of names to values, got 3"),
        ("Tool: {by_type: {LST: x}}", "Tool.by_type.LST: expected a number, got 'x'"),
        ("Tool: {filters: 3}", "Tool.filters: expected a mapping of options, each on"),
        ("Tool: 3", ":1: Tool: expected a mapping of options, each on its own line"),
        (
            "Tool: {mode: fats}",
            "expected one of 'fast' or 'slow', got 'fats'; did you mean 'fast'?",
        ),
        ("Tool: {mode: 3}", "expected one of 'fast' or 'slow', got 3"),
        ("Tool: {size: 4G}", "'4G' is not a number of bytes: write for instance '256 MiB'"),
        ("Needs: {}", ":1: Needs.must: this option is required"),
        ("Campaign: {fan_in: 1}", "expected a number of at least 2, got 1"),
        ("Campaign: {allow_missing: 2}", "expected a number of at most 1.0"),
        ("Campaign: {shard_bytes: 0}", "0 is less than one byte"),
        ("Campaign: {verify_inputs: ful}", "did you mean 'full'?"),
    ],
)
def test_bad_values(yaml_file, text: str, message: str) -> None:
    path = yaml_file(text)
    with pytest.raises(ConfigError) as caught:
        load_config(SCHEMA, [path])
    full = str(caught.value)
    assert full.startswith(f"{path}:")
    assert message in full
    for jargon in ("Input should", "pydantic", "type=", "https://"):
        assert jargon not in full


def test_all_problems_are_listed_with_the_file_that_caused_them(yaml_file) -> None:
    first = yaml_file("Tool: {steps: x, threshold: 2}\nTol: 3\n", "first.yaml")
    second = yaml_file("# later\nTool: {threshold: y}\n", "second.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(SCHEMA, [first, second])
    lines = str(caught.value).splitlines()
    assert lines[0] == "the configuration has 3 problems:"
    assert sorted(lines[1:]) == sorted(
        [
            f"- {first}:1: Tool.steps: expected an integer, got 'x'",
            f"- {second}:2: Tool.threshold: expected a number, got 'y'",
            f"- {first}:2: Tol: unknown section; did you mean 'Tool'?",
        ]
    )


def test_a_huge_value_does_not_flood_the_message(yaml_file) -> None:
    bomb = "Tool:\n  a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"  {b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(ConfigError) as caught:
        load_config(SCHEMA, [yaml_file(bomb)])
    assert len(str(caught.value)) < 20_000


def test_sections_of_other_jobs_are_checked_but_may_be_there(yaml_file) -> None:
    config = load_config(SCHEMA, [yaml_file("Needs: {must: 3}\nTool: {mode: SLOW}\n")])
    assert set(config.sections) == {"Needs", "Tool"}
    assert config.get("Tool", Tool).mode == "slow"
    assert config.find("Campaign", Campaign) is None
    with pytest.raises(TypeError, match="Tool is a Tool"):
        config.get("Tool", Campaign)


def test_sections_are_frozen_values() -> None:
    campaign = Campaign()
    assert campaign.shard_bytes == 256 * 1024**2
    assert hash(campaign) == hash(Campaign(seed=0))
    with pytest.raises(ValueError, match="frozen"):
        campaign.seed = 3  # type: ignore[misc]


def test_campaign_takes_bytes_and_text(yaml_file) -> None:
    path = yaml_file("Campaign: {shard_bytes: 1.5 GiB, worker_memory: 4000000000}\n")
    campaign = load_config(SCHEMA, [path]).get("Campaign", Campaign)
    assert (campaign.shard_bytes, campaign.worker_memory) == (3 * 512 * 1024**2, 4_000_000_000)


# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [(1, 1), ("7 B", 7), ("4kB", 4000), ("256 MiB", 2**28), ("1.5 gib", 3 * 2**29), ("2 TB", 2e12)],
)
def test_parse_bytes(text: object, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "value", ["4G", "MiB", "-4 MiB", "", "4 Mib!", None, True, 1.5, "0 B", 0, -3]
)
def test_bad_bytes(value: object) -> None:
    with pytest.raises(ConfigError, match="byte"):
        parse_bytes(value)


@given(st.integers(1, 2**60))
def test_bytes_survive_formatting(n_bytes: int) -> None:
    assert parse_bytes(exact_bytes(n_bytes)) == n_bytes


# -- describe -------------------------------------------------------------------------------------


def test_described_configuration_loads_to_the_defaults(yaml_file) -> None:
    schema = {"Tool": Tool, "Filters": Filters, "Campaign": Campaign}
    text = describe(schema)
    config = load_config(schema, [yaml_file(text)])
    assert dict(config.sections) == {"Tool": Tool(), "Filters": Filters(), "Campaign": Campaign()}
    for model in schema.values():
        for name, field in model.model_fields.items():
            assert f"{field.alias or name}:" in text


def test_described_configuration_explains() -> None:
    text = describe({"Campaign": Campaign, "Tool": Tool})
    assert "  # How much input one task reads. Unit: bytes.\n  shard_bytes: 256 MiB\n" in text
    assert "\n  # worker_memory: 4 GiB\n" in text
    assert "  # Unit: TeV.\n  threshold: 1.5\n" in text
    assert "    # min_size: 5\n" in text


def test_switched_on_examples_are_valid(yaml_file) -> None:
    text = describe({"Campaign": Campaign}).replace("# worker_memory", "worker_memory")
    campaign = load_config(SCHEMA, [yaml_file(text)]).get("Campaign", Campaign)
    assert campaign.worker_memory == 4 * 1024**3


def test_an_override_leaves_what_stands_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("Outer:\n  options: {one: 1, two: 2}\n", encoding="utf-8")

    class Outer(Section):
        options: dict[str, int] = {}  # noqa: RUF012  pydantic copies it

    sections = load_config({"Outer": Outer}, [file], {"Outer.options.two": 3}).sections
    assert sections["Outer"].options == {"one": 1, "two": 3}


def test_one_file_may_hold_the_sections_of_all_jobs(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(
        "Campaign: {seed: 5}\n"
        "CalculateInterCalibration: {RelativeThroughputFitter: {n_min: 20}}\n"
        "CalculateThroughputWithMuons: {min_number_of_muon: 30}\n"
        "Bias: {outlier_sigma: 8.0}\n"
    )
    for job in JOBS:
        assert find_job(job).prepare([path], {}).campaign.seed == 5
    path.write_text("CalculateTroughputWithMuons: {}\n")
    for job in ("inter-calibration", "bias"):
        with pytest.raises(ConfigError, match="did you mean 'CalculateThroughputWithMuons'"):
            find_job(job).prepare([path], {})


def test_numbers_are_keys_in_a_value_of_the_command_line():
    assert parse_yaml("--set", "{7: 1, '8': 2}") == {7: 1, "8": 2}
    with pytest.raises(ConfigError, match="the name True is not text"):
        parse_yaml("--set", "{on: 1}")
