from __future__ import annotations

import operator
import pickle
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.select import (
    QualityCriteria,
    TelescopePatterns,
    compile_criteria,
    quote_names,
)

COLUMNS = {
    "energy": np.array([0.04, 0.05, 0.06, np.nan]),
    "length": np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32),
    "width": np.array([0.1, 0.1, 0.1, 0.0]),
    "tel_id": np.array([1, 2, 3, 40], dtype=np.uint8),
    "event_id": np.array([1, 2**53 + 1, 2**62, 4]),
    "is_valid": np.array([True, True, False, True]),
    "is_good": np.array([True, False, True, False]),
    "altitude": np.array([30.0, 60.0, 90.0, 0.0]),
}
UNITS = {"energy": "TeV", "length": "deg", "width": "deg", "altitude": "deg"}


def mask(expression: str) -> list[bool]:
    return compile_criteria([("cut", expression)]).evaluate(COLUMNS, UNITS).mask.tolist()


T, F = True, False


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("energy > 50 * u.GeV", [F, F, T, F]),
        ("energy >= 50 * u.GeV", [F, T, T, F]),
        ("50 * u.GeV < energy", [F, F, T, F]),
        ("0.045 * u.TeV < energy < 55 * u.GeV", [F, T, F, F]),
        ("energy > 0", [T, T, T, F]),
        ("energy < np.inf", [T, T, T, F]),
        ("energy != 50 * u.GeV", [T, F, T, T]),
        ("not energy > 50 * u.GeV", [T, T, F, T]),
        ("np.isfinite(energy)", [T, T, T, F]),
        ("~np.isnan(energy)", [T, T, T, F]),
        ("is_valid", [T, T, F, T]),
        ("is_valid & is_good", [T, F, F, F]),
        ("is_valid and not is_good", [F, T, F, T]),
        ("is_valid | is_good | False", [T, T, T, T]),
        ("is_valid == is_good", [T, F, F, F]),
        ("is_valid == 1", [T, T, F, T]),
        ("True", [T, T, T, T]),
        ("(tel_id > 1) & (tel_id < 40)", [F, T, T, F]),
        ("tel_id - 2 > 0", [F, F, T, T]),  # would wrap around in uint8
        ("tel_id * 10 == 400", [F, F, F, T]),
        ("tel_id > -1", [T, T, T, T]),
        ("tel_id < 1000", [T, T, T, T]),
        ("tel_id % 2 == 0", [F, T, F, T]),
        ("tel_id ** 2 == 9", [F, F, T, F]),
        ("2 ** -tel_id < 0.2", [F, F, T, T]),
        ("event_id == 9007199254740993", [F, T, F, F]),
        ("event_id == 9007199254740992", [F, F, F, F]),
        ("length / width > 2.5", [F, F, T, T]),
        ("width / length <= 1", [T, T, T, T]),
        ("length * 60 > 10 * u.deg", [F, T, T, T]),
        ("length + 30 * u.arcmin > 0.75 * u.deg", [F, F, T, T]),
        ("np.abs(length - width) < 0.15 * u.deg", [T, T, F, F]),
        ("abs(-width) > 0", [T, T, T, F]),
        ("sqrt(length * width) > 0.15 * u.deg", [F, F, T, F]),
        ("length ** 2 > 0.05 * u.deg ** 2", [F, F, T, T]),
        ("sin(altitude) > 0.8", [F, T, T, F]),
        ("np.cos(altitude) < 0.1", [F, F, T, F]),
        ("np.tan(altitude / (1 * u.rad)) > 1", [F, T, T, F]),
        ("arctan2(length, width) > 50 * u.deg", [F, T, T, T]),
        ("log10(energy / u.TeV) > -1.3", [F, F, T, F]),
        ("log10(energy / (1 * u.GeV)) > 1.7", [F, F, T, F]),
        ("np.exp(tel_id) < 10", [T, T, F, F]),
        ("np.minimum(length, width) == width", [T, T, T, T]),
        ("np.maximum(width, 0.2 * u.deg) > width", [T, T, T, T]),
        ("np.clip(length, 0, 15 * u.arcmin) == 0.25 * u.deg", [F, F, T, T]),
        ("tel_id / (50 * u.percent) == 4", [F, T, F, F]),
        ("np.sin(np.pi / 2) * tel_id > 2", [F, F, T, T]),
        ("1 / energy < 20 / u.TeV", [F, F, T, F]),
        ("1e3 * u.GeV > 1 * u.TeV", [F, F, F, F]),
        ("energy\n   >\n 50 * u.GeV", [F, F, T, F]),
    ],
)
def test_expression(expression: str, expected: list[bool]) -> None:
    assert mask(expression) == expected


REFUSED = [
    # expression, part of the message, what the carets underline
    ("__import__('os').system('true')", "is not a function", "__import__('os').system"),
    ("__import__('os')", "'__import__' is not a function", "__import__"),
    ("open('/etc/passwd')", "'open' is not a function", "open"),
    ("eval('1')", "'eval' is not a function", "eval"),
    ("energy.__class__", "'.__class__' is not allowed", "energy.__class__"),
    ("energy.value > 0.05", "'.value' is not allowed", "energy.value"),
    ("np.os.getcwd()", "is not a function", "np.os.getcwd"),
    ("np.load('x')", "'np.load' is not a function", "np.load"),
    ("np.linalg > 3", "'np.linalg' is not allowed", "np.linalg"),
    ("u.__dict__ > 3", "'__dict__' is not a unit", "u.__dict__"),
    ("energy > 3 * u.Quantity", "'Quantity' is not a unit", "u.Quantity"),
    ("energy > u.Unit('GeV')", "'u.Unit' is not a function", "u.Unit"),
    ("energy > 50 * u.GeVV", "did you mean 'u.GeV'?", "u.GeVV"),
    ("(lambda: True)()", "is not a function", "lambda: True"),
    ("lambda x: x > 1", "lambda is not allowed", "lambda x: x > 1"),
    ("[x for x in energy]", "a comprehension is not allowed", "[x for x in energy]"),
    ("abs(x for x in energy) > 1", "a comprehension is not allowed", "(x for x in energy)"),
    ("energy[0] > 1", "indexing with [...] is not allowed", "energy[0]"),
    ("(y := energy) > 1", "assignment with := is not allowed", "y := energy"),
    ("is_valid if is_good else is_valid", "if ... else is not allowed", None),
    ("energy == 'high'", "text is not allowed", "'high'"),
    ("f'{energy}' == energy", "text is not allowed", "f'{energy}'"),
    ("energy == None", "'None' is not allowed", "None"),
    ("energy > 3j", "'3j' is not allowed", "3j"),
    ("energy in (1, 2)", "a comma is not allowed", "(1, 2)"),
    ("energy is tel_id", "'in' and 'is' are not allowed", "tel_id"),
    ("energy // 2 > 1", "this operator is not allowed", "energy // 2"),
    ("tel_id ^ 2", "this operator is not allowed", "tel_id ^ 2"),
    ("tel_id << 2 > 1", "this operator is not allowed", "tel_id << 2"),
    ("tel_id > 1 & tel_id < 4", "'&' needs true or false, '1' is a number", "1"),
    ("tel_id > 1 | is_good", "put each comparison in parentheses", "1"),
    ("is_valid & energy > 50 * u.GeV", "put each comparison in", "is_valid & energy"),
    ("~3", "'~' needs true or false", "3"),
    ("tel_id + 1", "the result is a number", "tel_id + 1"),
    ("np.clip(tel_id, a_min=1, a_max=2) > 1", "takes 3 arguments, by position", None),
    ("np.abs() > 1", "takes 1 argument, by position", "np.abs()"),
    ("isfinite(energy)", "'isfinite' is not a function", "isfinite"),
    ("np.isfinite", "needs its argument in parentheses", "np.isfinite"),
    ("log > 3", "'log' is a function", "log"),
    ("u > 3", "'u' needs a name behind it", "u"),
    ("is_valid + True > 1", "'True' is true or false, not a number", "True"),
    ("3 > True", "'True' is true or false and cannot be compared", "True"),
    ("50 * u.GeV > 3 * u.m", "these units do not go together", "3 * u.m"),
    ("3 * u.m > 2", "write 2 * u.m", "2"),
    ("np.sin(3 * u.m) > 0", "not an angle", "3 * u.m"),
    ("np.exp(3 * u.m) > 0", "must have no unit", "3 * u.m"),
    ("2 ** u.m > 0", "an exponent must have no unit", "u.m"),
    ("energy > 99999999999999999999", "does not fit into 64 bits", "99999999999999999999"),
    ("energy > 1e999", "does not fit into 64 bits", "1e999"),
    ("energy > \x00", "a character that cannot be printed", None),
    ("energy > \ud800", r"'energy > \ud800' holds a character", None),
    ("energy > 2 *", "cannot be read (invalid syntax)", ""),
    ("energy > 1)", "cannot be read", ")"),
    ("energy = 1", "cannot be read", None),
    ("import os", "cannot be read", None),
    ("µ_ß > 1 and energy.x", "'.x' is not allowed", "energy.x"),
    ("is_valid # always", "'#' is not allowed", "#"),
    ("(is_valid) # first\n & (is_good)", "'#' is not allowed", "#"),
    ("   ", "the expression is empty", None),
    ("-" * 500 + "tel_id > 1", "nested more than", None),
    ("(" * 500 + "is_valid" + ")" * 500, "cannot be read", None),
    ("is_valid & " * 400 + "is_valid", "are too long", None),
]


@pytest.mark.parametrize(("expression", "fragment", "underlined"), REFUSED)
def test_refused_before_any_file_is_read(
    expression: str, fragment: str, underlined: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_criteria([("my cut", expression)])
    message = str(caught.value)
    assert message.startswith("quality criterion 'my cut': ")
    assert fragment in message
    if underlined is not None:
        source, carets = message.split("\n")[-2:]
        assert source[carets.index("^") : carets.rindex("^") + 1] == underlined  # "": the end


@pytest.mark.parametrize(
    ("expression", "fragment", "underlined"),
    [
        ("energy > 0.05", "'energy' is in TeV: write 0.05 * u.TeV", "0.05"),
        ("energy > tel_id", "write tel_id * u.TeV", "tel_id"),
        ("energy + 1 > 2 * u.TeV", "write 1 * u.TeV", "1"),
        ("energy > 2 - 1", "write (2 - 1) * u.TeV", "2 - 1"),
        ("energy > 3 * u.m", "these units do not go together", "3 * u.m"),
        ("energy > length", "in deg and 'energy' in TeV", "length"),
        ("energy", "the result is a number", "energy"),
        ("is_valid & tel_id", "'&' needs true or false", "tel_id"),
        ("energy and is_valid", "'and' needs true or false", "energy"),
        ("not energy", "'not' needs true or false", "energy"),
        ("is_valid > is_good", "is true or false and cannot be compared", "is_valid"),
        ("is_valid == 2", "is true or false and cannot be compared", "is_valid"),
        ("is_valid * 2 > 1", "is true or false, not a number", "is_valid"),
        ("event_id + 1 > 0", "above 2**53", "event_id"),
        ("np.log(energy) > 0", "divide it by u.TeV", "energy"),
        ("energy ** tel_id > 1", "its exponent must be a constant", "tel_id"),
        ("np.sin(energy) > 0", "which is not an angle", "energy"),
    ],
)
def test_refused_for_these_columns(expression: str, fragment: str, underlined: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mask(expression)
    message = str(caught.value)
    assert fragment in message
    source, carets = message.split("\n")[-2:]
    assert source[carets.index("^") : carets.rindex("^") + 1] == underlined


def test_nothing_runs_outside_the_whitelist() -> None:
    """No audit event of importing, opening, compiling to code or executing may occur."""
    seen: list[str] = []
    forbidden = {"exec", "open", "os.system", "subprocess.Popen", "import", "socket.connect"}
    watching = True

    def watch(event: str, _arguments: tuple[object, ...]) -> None:
        if watching and event in forbidden:
            seen.append(event)

    compile_criteria([("warm up", "energy > 50 * u.GeV")])
    sys.addaudithook(watch)
    try:
        for expression, _, _ in REFUSED:
            with pytest.raises(ConfigError):
                compile_criteria([("cut", expression)])
    finally:
        watching = False
    assert seen == []


def test_names_with_dashes_stand_in_backquotes() -> None:
    columns = {"Random-Forest_tel_energy": np.array([0.1, 0.02]), "a": np.array([3, 1])}
    expression = "`Random-Forest_tel_energy` > 50 * u.GeV and a-2 > 0"
    criteria = compile_criteria([("energy", expression)])
    assert criteria.columns == set(columns)
    selection = criteria.evaluate(columns, {"Random-Forest_tel_energy": "TeV"})
    assert selection.mask.tolist() == [True, False]
    with pytest.raises(ConfigError) as caught:
        compile_criteria([("energy", "a == 'x' or `b-c` > 1")])
    assert caught.value.args[0].splitlines()[-1].index("^") == 4 + len("a == ")
    for wrong in ("`a", "`a b` > 1", "`a.b` > 1", "`__import__('os')` > 1", "`1-a` > 0"):
        with pytest.raises(ConfigError):
            compile_criteria([("wrong", wrong)])


@pytest.mark.parametrize(
    ("expression", "quoted"),
    [
        ("R-F_tel_energy - R-F_x > 0", "`R-F_tel_energy` - `R-F_x` > 0"),
        ("`R-F_tel_energy` > 0", "`R-F_tel_energy` > 0"),
        ("a-R-F_x > 0", "a-R-F_x > 0"),
        ("R-F-2_x > R-F_x", "`R-F-2_x` > `R-F_x`"),
        ("other-name_x > 0", "other-name_x > 0"),
    ],
)
def test_columns_of_algorithms_with_dashes_are_quoted(expression: str, quoted: str) -> None:
    assert quote_names(expression, ["R-F", "R-F-2", "plain"]) == quoted


def test_rows_that_are_left_out_before_pass_no_criterion() -> None:
    columns = {"x": np.array([1.0, 2.0, 3.0])}
    among = np.array([True, False, True])
    selection = compile_criteria([("large", "x > 1.5")]).evaluate(columns, {}, among=among)
    assert selection.mask.tolist() == [False, False, True]
    assert (selection.cuts[0].passed, selection.cuts[0].passed_so_far) == (2, 1)
    assert among.tolist() == [True, False, True]


def test_all_bad_criteria_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_criteria([("a", "x >"), ("b", "x > 1"), ("c", "x.y"), ("b", "x > 2")])
    message = str(caught.value)
    assert "criterion 'a'" in message
    assert "criterion 'c'" in message
    assert "'b': two criteria have this name" in message


def test_cut_flow_counts_alone_together_and_nan() -> None:
    criteria = compile_criteria(
        [
            ("energy", "energy > 45 * u.GeV"),
            ("valid", "is_valid"),
            ("finite", "np.isfinite(energy)"),
        ]
    )
    selection = criteria.evaluate(COLUMNS, UNITS)
    assert criteria.columns == {"energy", "is_valid"}
    assert [(c.name, c.passed, c.passed_so_far, c.met_nan) for c in selection.cuts] == [
        ("energy", 2, 2, 1),
        ("valid", 3, 1, 0),
        ("finite", 3, 1, 0),
    ]
    assert selection.mask.tolist() == [False, True, False, False]


def test_nan_that_arises_in_the_expression_is_counted() -> None:
    selection = compile_criteria([("log", "log(tel_id - 2) < 10")]).evaluate(COLUMNS, UNITS)
    assert selection.cuts[0].met_nan == 1


def test_no_criteria_and_no_rows() -> None:
    assert compile_criteria([]).evaluate(COLUMNS, UNITS).mask.tolist() == [True] * 4
    assert compile_criteria([]).evaluate({}, {}, n_rows=2).mask.tolist() == [True] * 2
    empty = {name: values[:0] for name, values in COLUMNS.items()}
    for expression in ("event_id - 1 > 0", "energy > 50 * u.GeV", "is_valid", "True"):
        assert compile_criteria([("c", expression)]).evaluate(empty, UNITS).mask.shape == (0,)
    with pytest.raises(ValueError, match="number of rows"):
        compile_criteria([]).evaluate({}, {})


def test_missing_column_suggests_one_that_is_there() -> None:
    with pytest.raises(MissingInput, match=r"no column 'enrgy'; did you mean 'energy'\?"):
        mask("enrgy > 50 * u.GeV")


@pytest.mark.parametrize(
    "values",
    [np.array(["a", "b"]), np.zeros((2, 3)), np.zeros(3), np.array([1, "a"], dtype=object)],
)
def test_column_of_the_wrong_kind(values: np.ndarray) -> None:
    criteria = compile_criteria([("c", "x > 1")])
    with pytest.raises(CorruptedInput, match="one number or boolean for each of 2 rows"):
        criteria.evaluate({"x": values}, {}, n_rows=2)


def test_unreadable_unit_in_a_file() -> None:
    with pytest.raises(
        CorruptedInput, match="unit 'furlongs per' in the file, which astropy cannot read"
    ):
        compile_criteria([("c", "x > 1")]).evaluate({"x": np.ones(2)}, {"x": "furlongs per"})


def test_criteria_are_values_and_travel() -> None:
    pairs = [("a", "energy > 50 * u.GeV")]
    criteria = compile_criteria(pairs)
    copy = pickle.loads(pickle.dumps(criteria))
    assert copy == criteria
    assert hash(copy) == hash(criteria)
    assert copy.evaluate(COLUMNS, UNITS).mask.tolist() == [False, False, True, False]
    assert isinstance(copy, QualityCriteria)


def test_plain_numbers_need_no_astropy(tmp_path) -> None:
    import subprocess

    code = (
        "import sys, numpy as np\n"
        "from calibdask.select import compile_criteria\n"
        "c = compile_criteria([('a', '(x > 1) & np.isfinite(x)')])\n"
        "assert c.evaluate({'x': np.arange(3.0)}, {}).mask.tolist() == [False, False, True]\n"
        "assert not {'astropy', 'pydantic', 'yaml', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# -- random expressions against astropy and NumPy -------------------------------------------------

NUMBERS = st.sampled_from(["0.5", "2", "3.0", "10"])


def _combined(parts: st.SearchStrategy[str], joined: list[str]) -> st.SearchStrategy[str]:
    return st.tuples(parts, st.sampled_from(joined), parts).map(lambda p: f"({p[0]} {p[1]} {p[2]})")


plain = st.recursive(
    NUMBERS | st.sampled_from(["count", "ratio"]),
    lambda inner: st.one_of(
        _combined(inner, ["+", "-", "*", "/"]),
        inner.map(lambda x: f"(-{x})"),
        inner.map(lambda x: f"np.abs({x})"),
        inner.map(lambda x: f"np.cos({x})"),
        st.tuples(inner, inner).map(lambda p: f"np.minimum({p[0]}, {p[1]})"),
        inner.map(lambda x: f"({x} ** 2)"),
    ),
    max_leaves=6,
)
energies = st.recursive(
    st.sampled_from(["energy_tev", "energy_gev"])
    | st.tuples(NUMBERS, st.sampled_from(["TeV", "GeV", "MeV"])).map(
        lambda p: f"({p[0]} * u.{p[1]})"
    ),
    lambda inner: st.one_of(
        _combined(inner, ["+", "-"]),
        st.tuples(inner, plain).map(lambda p: f"({p[0]}) * ({p[1]})"),
        st.tuples(inner, NUMBERS).map(lambda p: f"({p[0]}) / {p[1]}"),
        inner.map(lambda x: f"np.sqrt(({x}) * ({x}))"),
        st.tuples(inner, inner).map(lambda p: f"np.maximum({p[0]}, {p[1]})"),
    ),
    max_leaves=5,
)
ratios = st.tuples(energies, energies).map(lambda p: f"(({p[0]}) / ({p[1]}))")
ORDER = ["<", "<=", ">", ">="]
comparisons = st.one_of(
    _combined(plain, ORDER),
    _combined(energies.map(lambda e: f"({e})"), ORDER),
    st.tuples(ratios, st.sampled_from(ORDER), plain).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    energies.map(lambda e: f"np.isfinite({e})"),
    st.just("flag"),
)
booleans = st.recursive(
    comparisons,
    lambda inner: st.one_of(_combined(inner, ["&", "|"]), inner.map(lambda x: f"(~({x}))")),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(booleans, st.integers(0, 2**32 - 1))
def test_agrees_with_astropy_quantities(expression: str, seed: int) -> None:
    from astropy import units as u

    rng = np.random.default_rng(seed)
    n_rows = 40
    columns = {
        "energy_tev": rng.lognormal(size=n_rows),
        "energy_gev": 1e3 * rng.lognormal(size=n_rows),
        "count": rng.integers(0, 50, n_rows),
        "ratio": np.where(rng.random(n_rows) < 0.1, np.nan, rng.normal(size=n_rows)),
        "flag": rng.random(n_rows) < 0.5,
    }
    units = {"energy_tev": "TeV", "energy_gev": "GeV"}
    quantities = {
        name: values << u.Unit(units[name]) if name in units else values
        for name, values in columns.items()
    }

    # Python deprecates ~ on a plain bool, and NumPy's integers overflow.
    quantities["count"] = columns["count"].astype(float)
    expression_for_numpy = expression.replace("~", "np.logical_not")

    def by_astropy(factor: float) -> np.ndarray:
        # Nudging the data tells apart a row that rounding decides from one that it does not.
        nudged = {
            name: values * factor if values.dtype.kind == "f" else values
            for name, values in quantities.items()
        }
        return np.broadcast_to(eval(expression_for_numpy, {"np": np, "u": u}, nudged), n_rows)

    with np.errstate(all="ignore"):
        expected = by_astropy(1.0)
        stable = (by_astropy(1 + 1e-12) == expected) & (by_astropy(1 - 1e-12) == expected)
    got = compile_criteria([("random", expression)]).evaluate(columns, units).mask
    assert np.array_equal(got[stable], expected[stable])


@pytest.mark.parametrize("operation", ["<", "<=", ">", ">=", "==", "!="])
def test_bit_equal_to_astropy_at_the_edge(operation: str) -> None:
    from astropy import units as u

    compare = {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
    }[operation]
    edge = 0.05
    energy_tev = np.array([np.nextafter(edge, 0), edge, np.nextafter(edge, 1)])
    got = compile_criteria([("e", f"energy {operation} 50 * u.GeV")]).evaluate(
        {"energy": energy_tev}, {"energy": "TeV"}
    )
    assert got.mask.tolist() == compare(energy_tev << u.TeV, 50 * u.GeV).tolist()


# -- telescope patterns ---------------------------------------------------------------------------

TEL_ID = [30, 1, 5, 102]  # a real array is not sorted
TEL = ["SST_GCT_CHEC", "LST_LST_LSTCam", "MST_MST_NectarCam", "MST_MST_FlashCam"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.05, [0.05] * 4),
        ([["type", "*", 0.05]], [0.05] * 4),
        ([["type", "*", 1], ["type", "MST*", 2.0], ["id", 5, 3.0]], [1, 1, 3, 2]),
        ([["id", "5", 3.0], ["type", "*", 1.0]], [1, 1, 1, 1]),
        ([["type", "*", 1.0], ["type", "*FlashCam", 2.0]], [1, 1, 1, 2]),
    ],
)
def test_last_match_wins(value: object, expected: list[float]) -> None:
    patterns = TelescopePatterns.parse(value)
    assert patterns.resolve(TEL_ID, TEL).tolist() == expected
    assert TelescopePatterns.parse(patterns.to_plain()) == patterns
    assert pickle.loads(pickle.dumps(patterns)) == patterns


def test_agrees_with_ctapipe() -> None:
    from ctapipe.core.telescope_component import TelescopeParameterLookup

    class Subarray:
        telescope_types = tuple(TEL)

        def get_tel_ids_for_type(self, name: str) -> list[int]:
            return [tel_id for tel_id, other in zip(TEL_ID, TEL, strict=True) if other == name]

    value = [("type", "*", 1.0), ("type", "MST*", 2.0), ("id", 30, 4.0), ("type", "*Nectar*", 3.0)]
    lookup = TelescopeParameterLookup(value)
    lookup.attach_subarray(Subarray())
    ours = TelescopePatterns.parse([list(entry) for entry in value]).resolve(TEL_ID, TEL)
    assert ours.tolist() == [lookup[tel_id] for tel_id in TEL_ID]


def test_values_of_two_numbers() -> None:
    patterns = TelescopePatterns.parse([["type", "*", [0.05, 0.1]], ["id", 5, [0.1, 0.2]]], tuple)
    assert patterns.resolve(TEL_ID, TEL).shape == (4, 2)
    assert patterns.resolve([5], TEL[2:3]).tolist() == [[0.1, 0.2]]
    assert patterns.resolve([], []).shape == (0, 2)
    assert TelescopePatterns.parse([0.05, 0.1], tuple).resolve([1], TEL[1:2]).shape == (1, 2)


def test_telescope_without_a_value() -> None:
    patterns = TelescopePatterns.parse([["type", "LST*", 125.0]])
    with pytest.raises(
        ConfigError, match=r"max_impact_distance: .*30 \(SST_GCT_CHEC\), 5 "
    ) as caught:
        patterns.resolve(TEL_ID, TEL, option="max_impact_distance")
    assert '[[type, "LST*", 125.0]]' in str(caught.value)
    assert patterns.resolve([1], ["LST_LST_LSTCam"]).tolist() == [125.0]


def test_pattern_that_matches_nothing_is_reported() -> None:
    patterns = TelescopePatterns.parse(
        [["type", "*", 1], ["type", "ASTRI*", 2], ["id", 7, 3], ["id", 5, 4]]
    )
    notes = patterns.unmatched(TEL_ID, TEL, option="min_energy")
    assert [re.findall(r"\[.*\]", note)[0] for note in notes] == ["[type, 'ASTRI*']", "[id, 7]"]
    assert all(note.startswith("min_energy: ") for note in notes)


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        (["type", "*", 0.05], 'needs two pairs of brackets: [[type, "*", 0.05]]'),
        ([], "the list is empty"),
        ("0.05", "'0.05' is not a finite number"),
        (True, "True is not a finite number"),
        (float("nan"), "is not a finite number"),
        ([["typ", "*", 1.0]], "did you mean 'type'?"),
        ([[3, "*", 1.0]], "begins with 'type' or 'id'"),
        ([["type", "*"]], "is not a pattern"),
        ([["type", "*", "x"]], "[type, \"*\", x]: 'x' is not a finite number"),
        ([["type", 5, 1.0]], "a type is a pattern in quotes"),
        ([["id", "LST*", 1.0]], "'LST*' is not a telescope number"),
        ([["id", -5, 1.0]], "-5 is not a telescope number"),
        ([["id", True, 1.0]], "True is not a telescope number"),
        ([1.0, ["id", 5, 1.0]], "1.0 is not a pattern"),
        ([0.05, 0.1], "[0.05, 0.1] is not a finite number"),
        ({"type": 3}, "is not a finite number"),
    ],
)
def test_bad_patterns(value: object, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TelescopePatterns.parse(value)
    assert fragment in str(caught.value)
