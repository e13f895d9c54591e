"""The table of ``make image-bias``, on little data; what it shows is tested in tests/array."""

from __future__ import annotations

from tests.benchmarks.image_bias import DEFAULT, FACTORS, METHODS, study, table


def test_the_table_has_every_method_and_type():
    results = study("all effects", 1)
    assert len(results) == len(METHODS) + len(FACTORS)
    lines = table(results, ["LST", "MST"])
    assert len({line.count("|") for line in lines}) == 1
    row = next(line for line in lines if DEFAULT in line)
    # Two types of five numbers; a systematic error may be none.
    assert len([cell for cell in row.split("|")[2:-1] if cell.strip()]) >= 8
    assert all(bias.error.min() > 0 for by_kind in results.values() for bias in by_kind.values())
