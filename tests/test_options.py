"""Every option of every job is where its stage says: in addresses of the map, the fit, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest

from calibdask.config import ENGINE_SECTIONS, JobSection, Section, inner_section, option
from calibdask.config.sections import options_of, section_type, stage_of
from calibdask.engine.plan import Plan
from calibdask.engine.protocol import Calibration, InputRef, Shard
from calibdask.errors import ConfigError
from calibdask.registry import JOBS, all_sections
from calibdask.select import TelescopePatterns

SHARD = Shard(0, (InputRef("a.h5", "0:a", 1, 0),), cells=((),), n_bytes=1)

FURTHER = {
    "inter-calibration": [{"CalculateInterCalibration.asymmetry_label": "image_asymmetry"}],
    "calculate-throughput-muon": [
        {"CalculateThroughputWithMuons.aggregator_type": "PlainAggregator"}
    ],
    "calculate-psf-muon": [{"CalculatePSFWithMuons.aggregator_type": "PlainAggregator"}],
}
"""Options without which others have no effect."""


def options(model: type[Section], path: str):
    """Return path, option and its value unless given of a section and those inside of it."""
    for name, field in options_of(model).items():
        inner = section_type(field.annotation)
        if inner is not None and stage_of(field) is None:
            yield from options(inner, f"{path}.{name}")
        else:
            yield f"{path}.{name}", field, field.get_default(call_default_factory=True)


def words(annotation: Any):
    """Return the choices of a Literal, however deep it lies in an annotation."""
    annotation = getattr(annotation, "__value__", annotation)
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for one in get_args(annotation):
            yield from words(one)


def others(value: Any, field: Any):
    """Return values that may be valid and are not the given one, as a YAML file would have them."""
    yield from (word for word in words(field.annotation) if word != value)
    match value:
        case bool():
            yield not value
        case int():
            yield from (value + 1, value - 1)
        case float():
            yield from (value * 1.25, value * 0.75, value + 0.125)
        case str():
            yield f"{value}X"
        case TelescopePatterns():
            first = value.patterns[0][2]
            number = first[0] if isinstance(first, tuple) else first
            yield from (number * 0.75, number + 0.25)
        case tuple() | list() if value and all(isinstance(one, int | float) for one in value):
            yield from ([*value, value[-1] + 1], [one + 0.125 for one in value])
        case Section():
            yield from ({"LST": 1}, {"LST": 0.5})
        case _:
            # A list or a value for which the type alone tells nothing: see the examples.
            yield from ([["other", "muonefficiency_is_valid"]], "2 h", "other")


def flips(field: Any, default: Any):
    """Return pairs of values, None for an option that is not given, of which one may be refused."""
    examples = [*(field.examples or [])]
    yield from ((None, one) for one in examples if one != default)
    yield from ((None, one) for one in others(default, field))
    for one in examples:
        yield from ((one, other) for other in others(one, field))


def planned(job: str, overrides: dict[str, Any]) -> Plan | None:
    """Return a plan of one shard, or None where the configuration is refused."""
    try:
        calibration: Calibration = JOBS[job].prepare((), overrides).calibration
    except ConfigError:
        return None
    if hasattr(calibration, "fits_rings"):
        calibration = replace(calibration, fits_rings=True)  # or else nothing fits them
    return Plan(calibration, (SHARD,), fan_in=16)


def moves(job: str, path: str, field: Any, default: Any) -> set[str]:
    """Flip an option; say what of a plan moved each time: its map, only its fit, or nothing."""
    found = set()
    for context in ({}, *FURTHER.get(job, [])):
        if path in context:
            continue
        for one, other in flips(field, default):
            base = context if one is None else context | {path: one}
            pair = planned(job, base), planned(job, context | {path: other})
            if pair[0] is None or pair[1] is None:
                continue
            addresses = [plan.address(0, SHARD, {}) for plan in pair]
            digests = [plan.digest for plan in pair]
            if addresses[0] != addresses[1]:
                found.add("map")
            else:
                found.add("fit" if digests[0] != digests[1] else "nothing")
    return found


@pytest.mark.parametrize("job", JOBS)
def test_an_option_moves_the_addresses_of_its_stage(job):
    kind = JOBS[job].load()
    wrong = []
    for section, model in {**kind.sections, **kind.further_sections}.items():
        for path, field, default in options(model, section):
            stage, moved = stage_of(field), moves(job, path, field, default)
            if not moved and len(set(words(field.annotation))) != 1:
                wrong.append(f"{path}: no other valid value was found: give it an example")
            due = moved <= {"nothing"} if stage in ("plan", "run") else stage in moved
            if moved and not due:
                wrong.append(f"{path} is of the {stage}, but moves {moved}")
    assert not wrong, "\n".join(wrong)


def test_every_option_has_a_stage():
    without = [
        path
        for section, model in {**all_sections(), **ENGINE_SECTIONS}.items()
        for path, field, _ in options(model, section)
        if stage_of(field) is None
    ]
    assert not without


def test_sections_of_all_jobs_are_listed_for_the_others():
    for job in JOBS.values():
        kind = job.load()
        assert set(kind.sections) | set(kind.further_sections) <= set(all_sections())


class Inner(Section):
    of_fit: float = option(1.0, stage="fit", unit="m")


class Outer(JobSection):
    of_map: int = option(1, stage="map")
    forgotten: int = 2
    by_telescope: TelescopePatterns = option(TelescopePatterns((("type", "*", 1.0),)), stage="map")
    inner: Inner = inner_section(Inner(), help="", alias="Inner")
    given: Inner | None = inner_section(help="")


def test_a_section_tells_its_options_by_stage():
    section = Outer()
    of_map = {"of_map": 1, "forgotten": 2, "by_telescope": [["type", "*", 1.0]]}
    assert section.staged("map") == of_map  # also one whose stage was forgotten
    assert section.staged("fit") == {"Inner": {"of_fit": 1.0}}
    assert Outer(Inner=Inner(of_fit=2.0)).staged("fit") == {"Inner": {"of_fit": 2.0}}
    assert section.staged("run") == {"input_url": None, "output_url": None, "overwrite": False}
