"""Nothing moves unless it is meant to: names of stored results, numbers, products (freeze.py)."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from calibdask.registry import JOBS
from tests.golden.freeze import GOLDEN, KINDS, RUNS, Frozen, machine, moved, summarise

MEANING = {
    "addresses": "stored results have other names, so that none is found again",
    "values": "NUMBERS MOVED: if that is meant, raise the version of the calibration and say why",
    "flags": "other pixels, rows or values are flagged, or flags have other names",
    "products": "the product has other bits, if nothing else moved: other types, widths or units",
}


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return Frozen(tmp_path_factory.mktemp("frozen"))


def test_every_job_is_frozen(golden):
    assert {run.partition(" ")[0] for run in RUNS} == set(JOBS)
    assert list(golden["runs"]) == list(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_nothing_moved(run, frozen, golden):
    same = golden["machine"] == machine()
    differences = moved(frozen.find(run), golden["runs"][run], same_machine=same)
    command = f'python -m tests.golden.freeze "{run}" --only '
    assert not differences, "\n".join(
        [f"{run}: {', '.join(differences)} moved"]
        + [
            f"- {kind}: {what}\n  {MEANING[kind]}; then: {command}{kind}"
            for kind, what in differences.items()
        ]
        + [f"- {kind}: as before" for kind in KINDS if kind not in differences]
    )


@pytest.fixture
def results(golden):
    return copy.deepcopy(golden["runs"]["inter-calibration"])


def test_each_kind_is_told_from_the_others(results):
    column = next(name for name in results["values"] if name.endswith("inter_calibration.value"))
    other = copy.deepcopy(results)
    assert moved(other, results, same_machine=True) == {}
    other["values"][column][0] = "moved"
    other["products"] = "moved"
    differences = moved(other, results, same_machine=True)
    assert set(differences) == {"values", "products"}
    assert differences["values"].startswith(column)
    other = copy.deepcopy(results)
    other["addresses"]["fit 0"]["fit"] = "moved"
    assert moved(other, results, same_machine=True) == {"addresses": "fit 0 fit"}
    del other["values"][column]
    assert moved(other, results, same_machine=True)["values"] == f"{column} is gone"
    other = copy.deepcopy(results)
    flags = next(iter(other["flags"]))
    other["flags"][flags] = ["moved"]
    assert set(moved(other, results, same_machine=True)) == {"flags"}


def test_another_machine_may_differ_in_the_last_bits_only(results):
    column = next(name for name in results["values"] if name.endswith("inter_calibration.value"))
    other = copy.deepcopy(results)
    digest, n_finite, mean, rms = other["values"][column]
    other["values"][column] = [f"not {digest}", n_finite, mean * (1 + 1e-12), rms]
    other["products"] = "moved"
    assert moved(other, results, same_machine=False) == {}
    other["values"][column] = [f"not {digest}", n_finite, mean * (1 + 1e-6), rms]
    assert set(moved(other, results, same_machine=False)) == {"values"}
    other["values"][column] = [digest.swapcase(), n_finite - 1, mean, rms]
    assert set(moved(other, results, same_machine=False)) == {"values"}


def test_values_do_not_depend_on_types_widths_and_prefixes():
    numbers = np.array([1.0, 2.5, np.nan, -0.0])
    assert summarise(numbers, "km")[0] == summarise(numbers * 1000, "m")[0]
    assert summarise(numbers, "")[0] == summarise(numbers * (1 + 1e-15), "")[0]
    assert summarise(numbers, "")[0] == summarise(np.abs(numbers).astype(np.float32), "")[0]
    assert summarise(numbers, "")[0] != summarise(numbers * (1 + 1e-8), "")[0]
    assert summarise(numbers, "m")[0] != summarise(numbers, "s")[0]
    whole = np.array([0, 1, 3])
    assert summarise(whole.astype(np.uint8), "") == summarise(whole, "")
    assert summarise(whole > 0, "") == summarise(np.minimum(whole, 1), "")
    assert summarise(np.array(["a", ""]), "") == summarise(np.array([b"a", b""], "S9"), "")
    assert summarise(np.array(["a", ""]), "") != summarise(np.array(["", "a"]), "")
