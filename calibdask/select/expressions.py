"""Boolean expressions on the columns of a table, without Python's ``eval``.

An expression such as ``energy > 50 * u.GeV`` is parsed, every piece of it must be on a short list,
and what is left is turned into NumPy calls.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibdask.errors import ConfigError, CorruptedInput
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Rows", "bind", "names_in", "quote_names", "tidy"]

_MAX_LENGTH = 2000
_MAX_DEPTH = 60
_LARGEST_EXACT = 2**53  # above it float64 does not hold every integer

_COMPARISONS: dict[type[ast.cmpop], np.ufunc] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
# What a function does with units decides which of the rules in _Compiler._call it follows.
_FUNCTIONS: dict[str, tuple[str, int, Callable[..., Any]]] = {
    "abs": ("same unit", 1, np.abs),
    "sqrt": ("root", 1, np.sqrt),
    "isfinite": ("test", 1, np.isfinite),
    "isnan": ("test", 1, np.isnan),
    "log": ("plain", 1, np.log),
    "log10": ("plain", 1, np.log10),
    "exp": ("plain", 1, np.exp),
    "sin": ("angle", 1, np.sin),
    "cos": ("angle", 1, np.cos),
    "tan": ("angle", 1, np.tan),
    "arctan2": ("to angle", 2, np.arctan2),
    "minimum": ("same unit", 2, np.minimum),
    "maximum": ("same unit", 2, np.maximum),
    "clip": ("same unit", 3, np.clip),
}
_NUMPY_ONLY = frozenset({"isfinite", "isnan", "minimum", "maximum", "clip"})
_BARE_FUNCTIONS = frozenset(_FUNCTIONS) - _NUMPY_ONLY
_NUMPY_CONSTANTS = {"pi": np.pi, "inf": np.inf}
_REFUSED = {
    ast.Lambda: "lambda",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Subscript: "indexing with [...]",
    ast.NamedExpr: "assignment with :=",
    ast.IfExp: "if ... else",
    ast.JoinedStr: "text",
    ast.List: "a list",
    ast.Tuple: "a comma",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.Starred: "a star",
}
_BOOLEAN_HINT = (
    "'&', '|' and '~' bind more tightly than comparisons: put each comparison in parentheses, as "
    "in (a > 1) & (b > 2), or write 'and', 'or', 'not'"
)

type _Kind = Literal["boolean", "number", "unknown"]


class _UnknownUnit:
    """The unit of a column before a file has told it: nothing can be checked against it."""


_UNKNOWN = _UnknownUnit()


def _has_unit(unit: object) -> bool:
    return unit is not None and unit is not _UNKNOWN


class Rows:
    """The columns of one evaluation, and where a comparison met NaN."""

    __slots__ = ("columns", "nan")

    def __init__(self, columns: Mapping[str, NDArray[Any]], n_rows: int) -> None:
        self.columns = columns
        self.nan = np.zeros(n_rows, dtype=bool)

    def note_nan(self, values: NDArray[Any]) -> None:
        """Note the rows in which an operand of a comparison is NaN."""
        if values.dtype.kind == "f":
            self.nan |= np.isnan(values)


_NO_ROWS = Rows({}, 1)


@dataclass(frozen=True, slots=True)
class _Value:
    """A sub-expression: what is known of it before any row is read, and how to compute it."""

    node: ast.expr
    kind: _Kind
    unit: Any  # an astropy unit, None for a plain number, _UNKNOWN
    compute: Callable[[Rows], Any]
    constant: bool = False

    def scalar(self) -> float:
        """Value of a constant."""
        return float(self.compute(_NO_ROWS))


class _Compiler:
    """Turns one expression into NumPy calls.

    ``columns`` maps each column to its unit and to whether it is boolean. Without it the columns
    are unknown, and everything that does not depend on them is checked.
    """

    def __init__(
        self, name: str, source: str, columns: Mapping[str, tuple[str, bool]] | None = None
    ) -> None:
        self.name = name
        self.source = source
        self.columns = columns
        self.used: set[str] = set()
        self.depth = 0

    def compile(self, tree: ast.expr) -> _Value:
        """Check and translate the whole expression; its result must be boolean."""
        value = self._value(tree)
        if value.kind == "number":
            raise self._error(
                tree,
                "the result is a number, not true or false: compare it with something, "
                f"for instance ({self._text(tree)}) != 0",
            )
        return value

    # -- messages -------------------------------------------------------------------------------

    def _error(self, node: ast.expr, message: str) -> ConfigError:
        start, end = self._span(node)
        return ConfigError(_point_at(self.name, message, self.source, start, end))

    def _span(self, node: ast.expr) -> tuple[int, int]:
        # The parser counts bytes of UTF-8, a reader counts characters.
        encoded = _python(self.source).encode()
        end = node.end_col_offset if node.end_col_offset is not None else node.col_offset + 1
        return len(encoded[: node.col_offset].decode()), len(encoded[:end].decode())

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end]

    # -- the grammar ----------------------------------------------------------------------------

    def _value(self, node: ast.expr) -> _Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error(
                node, f"nested more than {_MAX_DEPTH} deep: split it into several criteria"
            )
        try:
            return self._dispatch(node)
        finally:
            self.depth -= 1

    def _dispatch(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._name(node, name.replace(_DASH, "-"))
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
            case ast.Compare():
                return self._compare(node)
            case ast.BoolOp(op=op, values=operands):
                combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
                word = "'and'" if isinstance(op, ast.And) else "'or'"
                return self._logical(node, combine, operands, word)
            case ast.BinOp(op=ast.BitAnd(), left=left, right=right):
                return self._logical(node, np.logical_and, [left, right], "'&'")
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return self._logical(node, np.logical_or, [left, right], "'|'")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self._logical(node, np.logical_not, [operand], "'not'")
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return self._logical(node, np.logical_not, [operand], "'~'")
            case ast.UnaryOp(op=sign, operand=operand):
                number = self._number(operand)
                function = np.negative if isinstance(sign, ast.USub) else np.positive
                return self._apply(node, function, [number], number.unit)
            case ast.BinOp():
                return self._arithmetic(node)
        what = _REFUSED.get(type(node), f"'{self._text(node)}'")
        raise self._error(node, f"{what} is not allowed in a quality criterion")

    def _constant(self, node: ast.expr, value: object) -> _Value:
        if isinstance(value, bool):
            return _Value(node, "boolean", None, lambda _: np.asarray(value), constant=True)
        if isinstance(value, int | float):
            if value >= 2**63 if isinstance(value, int) else math.isinf(value):
                raise self._error(node, "this number does not fit into 64 bits")
            return _Value(node, "number", None, lambda _: np.asarray(value), constant=True)
        what = "text" if isinstance(value, str | bytes) else f"'{self._text(node)}'"
        raise self._error(
            node,
            f"{what} is not allowed in a quality criterion: it may hold columns, numbers, units "
            "(50 * u.GeV) and functions",
        )

    def _name(self, node: ast.expr, name: str) -> _Value:
        if name in {"u", "np"}:
            example = "u.GeV" if name == "u" else "np.isfinite(x)"
            raise self._error(node, f"'{name}' needs a name behind it, such as {example}")
        if name in _BARE_FUNCTIONS:
            raise self._error(node, f"'{name}' is a function and needs its argument in parentheses")
        self.used.add(name)

        def column(rows: Rows) -> NDArray[Any]:
            return np.asarray(rows.columns[name])

        if self.columns is None:
            return _Value(node, "unknown", _UNKNOWN, column)
        unit, boolean = self.columns[name]
        if boolean:
            return _Value(node, "boolean", None, column)
        value = _Value(node, "number", None, column)
        return self._with_unit(value, self._unit_of_column(node, name, unit)) if unit else value

    def _unit_of_column(self, node: ast.expr, name: str, text: str) -> Any:
        from astropy import units as u

        try:
            return u.Unit(text)
        except (ValueError, TypeError) as error:
            start, end = self._span(node)
            message = (
                f"column {name} has the unit '{text}' in the file, which astropy cannot read: "
                "check how the file was written"
            )
            raise CorruptedInput(_point_at(self.name, message, self.source, start, end)) from error

    def _attribute(self, node: ast.Attribute) -> _Value:
        match node.value:
            case ast.Name(id="u"):
                return self._unit_constant(node)
            case ast.Name(id="np") if node.attr in _NUMPY_CONSTANTS:
                number = _NUMPY_CONSTANTS[node.attr]
                return _Value(node, "number", None, lambda _: np.asarray(number), constant=True)
            case ast.Name(id="np") if node.attr in _FUNCTIONS:
                raise self._error(node, f"'np.{node.attr}' needs its argument in parentheses")
            case ast.Name(id="np"):
                raise self._error(node, f"'np.{node.attr}' is not allowed; {_known_functions()}")
        raise self._error(
            node,
            f"'.{node.attr}' is not allowed: only 'u.<unit>' and 'np.<function>' may hold a dot, "
            "a column is a plain name",
        )

    def _unit_constant(self, node: ast.Attribute) -> _Value:
        from astropy import units as u

        unit = None if node.attr.startswith("_") else getattr(u, node.attr, None)
        if not isinstance(unit, u.UnitBase):
            names = [name for name in vars(u) if isinstance(getattr(u, name), u.UnitBase)]
            raise self._error(
                node, f"'{node.attr}' is not a unit{did_you_mean(node.attr, names, 'u.')}"
            )
        one = _Value(node, "number", None, lambda _: np.asarray(1.0), constant=True)
        return self._with_unit(one, unit)

    # -- operations -----------------------------------------------------------------------------

    def _number(self, node: ast.expr) -> _Value:
        value = self._value(node)
        if value.kind == "boolean":
            raise self._error(node, f"'{self._text(node)}' is true or false, not a number")
        return value

    def _logical(
        self, node: ast.expr, combine: np.ufunc, operands: Sequence[ast.expr], word: str
    ) -> _Value:
        values = [self._value(operand) for operand in operands]
        for value in values:
            if value.kind == "number":
                raise self._error(
                    value.node,
                    f"{word} needs true or false, '{self._text(value.node)}' is a number: "
                    f"{_BOOLEAN_HINT}",
                )

        def compute(rows: Rows) -> Any:
            result, *others = (value.compute(rows) for value in values)
            if not others:
                return combine(result)
            for other in others:
                result = combine(result, other)
            return result

        return _Value(node, "boolean", None, compute, all(value.constant for value in values))

    def _arithmetic(self, node: ast.BinOp) -> _Value:
        left, right = self._number(node.left), self._number(node.right)
        match node.op:
            case ast.Add():
                return self._in_one_unit(node, np.add, [left, right])
            case ast.Sub():
                return self._in_one_unit(node, np.subtract, [left, right])
            case ast.Mod():
                return self._in_one_unit(node, np.remainder, [left, right])
            case ast.Mult():
                return self._product(node, np.multiply, left, right, 1)
            case ast.Div():
                return self._product(node, np.divide, left, right, -1)
            case ast.Pow():
                return self._power(node, left, right)
        raise self._error(node, "this operator is not allowed: use + - * / % **")

    def _apply(
        self, node: ast.expr, function: Callable[..., Any], values: Sequence[_Value], unit: Any
    ) -> _Value:
        """Arithmetic in float64: small or unsigned integers of a file would wrap around."""
        floats = [self._as_float(value) for value in values]
        constant = all(value.constant for value in values)
        return _Value(
            node, "number", unit, lambda rows: function(*(x(rows) for x in floats)), constant
        )

    def _as_float(self, value: _Value, factor: float = 1.0) -> Callable[[Rows], NDArray[Any]]:
        def compute(rows: Rows) -> NDArray[Any]:
            x = np.asarray(value.compute(rows))
            inexact = x.dtype.kind in "iu" and x.size > 0
            if inexact and (x.max() > _LARGEST_EXACT or x.min() < -_LARGEST_EXACT):
                raise self._error(
                    value.node,
                    f"'{self._text(value.node)}' holds integers above 2**53, with which "
                    "arithmetic is not exact: compare it directly",
                )
            x = x.astype(np.float64, copy=False)
            return x if factor == 1.0 else np.asarray(x * factor)

        return compute

    def _with_unit(self, value: _Value, unit: Any) -> _Value:
        """Attach a unit; one without dimension (TeV/GeV, percent) becomes its factor."""
        if not _has_unit(unit):
            return replace(value, unit=unit)
        from astropy.units import dimensionless_unscaled

        if unit.is_equivalent(dimensionless_unscaled):
            factor = float(unit.to(dimensionless_unscaled))
            return replace(value, unit=None, compute=self._as_float(value, factor))
        return replace(value, unit=unit)

    def _product(
        self, node: ast.expr, function: np.ufunc, left: _Value, right: _Value, power: int
    ) -> _Value:
        unit: Any
        if left.unit is _UNKNOWN or right.unit is _UNKNOWN:
            unit = _UNKNOWN
        elif right.unit is None:
            unit = left.unit
        else:
            unit = right.unit**power if left.unit is None else left.unit * right.unit**power
        return self._with_unit(self._apply(node, function, [left, right], None), unit)

    def _power(self, node: ast.expr, base: _Value, exponent: _Value) -> _Value:
        self._require_plain(exponent, "an exponent")
        unit = base.unit
        if _has_unit(unit):
            if not exponent.constant:
                raise self._error(
                    exponent.node,
                    f"'{self._text(base.node)}' is in {unit}, so its exponent must be a constant",
                )
            unit = unit ** exponent.scalar()
        return self._with_unit(self._apply(node, np.power, [base, exponent], None), unit)

    def _in_one_unit(
        self, node: ast.expr, function: Callable[..., Any], values: Sequence[_Value]
    ) -> _Value:
        """Bring all to the unit of the first that has one, then apply the function."""
        unit = self._common_unit(values)
        floats = [self._as_float(value, self._factor(value, unit)) for value in values]
        constant = all(value.constant for value in values)
        return _Value(
            node, "number", unit, lambda rows: function(*(x(rows) for x in floats)), constant
        )

    def _common_unit(self, values: Sequence[_Value]) -> Any:
        if any(value.unit is _UNKNOWN for value in values):
            return _UNKNOWN
        with_unit = next((value for value in values if value.unit is not None), None)
        if with_unit is None:
            return None
        for value in values:
            if value.unit is None:
                self._require_arbitrary(value, with_unit)
            elif not value.unit.is_equivalent(with_unit.unit):
                raise self._error(
                    value.node,
                    f"'{self._text(value.node)}' is in {value.unit} and "
                    f"'{self._text(with_unit.node)}' in {with_unit.unit}: these units do not go "
                    "together",
                )
        return with_unit.unit

    def _require_arbitrary(self, bare: _Value, other: _Value) -> None:
        # Zero and infinity are the same in every unit; astropy takes them bare as well.
        if bare.constant and (bare.scalar() == 0.0 or not math.isfinite(bare.scalar())):
            return
        text = self._text(bare.node)
        text = text if isinstance(bare.node, ast.Constant | ast.Name) else f"({text})"
        raise self._error(
            bare.node,
            f"'{self._text(bare.node)}' has no unit, but '{self._text(other.node)}' is in "
            f"{other.unit}: write {text} * {_spell(other.unit)} (ctao-calibpipe refuses a bare "
            "number here, too)",
        )

    @staticmethod
    def _factor(value: _Value, unit: Any) -> float:
        known = _has_unit(unit) and _has_unit(value.unit)
        return float(value.unit.to(unit)) if known else 1.0

    def _require_plain(self, value: _Value, what: str) -> None:
        if _has_unit(value.unit):
            raise self._error(
                value.node,
                f"'{self._text(value.node)}' is in {value.unit}, but {what} must have no unit: "
                f"divide it by {_spell(value.unit)}",
            )

    def _compare(self, node: ast.Compare) -> _Value:
        values = [self._value(operand) for operand in (node.left, *node.comparators)]
        steps = [
            self._compare_two(op, left, right)
            for op, left, right in zip(node.ops, values[:-1], values[1:], strict=True)
        ]

        def compute(rows: Rows) -> Any:
            result = steps[0](rows)
            for step in steps[1:]:
                result = np.logical_and(result, step(rows))
            return result

        return _Value(node, "boolean", None, compute, all(value.constant for value in values))

    def _compare_two(self, op: ast.cmpop, left: _Value, right: _Value) -> Callable[[Rows], Any]:
        ufunc = _COMPARISONS.get(type(op))
        if ufunc is None:
            raise self._error(right.node, "'in' and 'is' are not allowed: use < <= > >= == !=")
        if "boolean" in {left.kind, right.kind}:
            self._check_boolean_comparison(op, left, right)
        unit = self._common_unit([left, right])
        first = self._comparable(left, self._factor(left, unit))
        second = self._comparable(right, self._factor(right, unit))

        def compute(rows: Rows) -> Any:
            a, b = first(rows), second(rows)
            rows.note_nan(a)
            rows.note_nan(b)
            return ufunc(a, b)

        return compute

    def _check_boolean_comparison(self, op: ast.cmpop, left: _Value, right: _Value) -> None:
        for value, other in ((left, right), (right, left)):
            zero_or_one = other.constant and other.unit is None and other.scalar() in {0.0, 1.0}
            fits = other.kind in {"boolean", "unknown"} or zero_or_one
            if value.kind == "boolean" and not (isinstance(op, ast.Eq | ast.NotEq) and fits):
                raise self._error(
                    value.node,
                    f"'{self._text(value.node)}' is true or false and cannot be compared with "
                    f"'{self._text(other.node)}': {_BOOLEAN_HINT}",
                )

    def _comparable(self, value: _Value, factor: float) -> Callable[[Rows], NDArray[Any]]:
        """Whole numbers stay as they are, so that comparing identifiers is exact."""
        if factor != 1.0:
            return self._as_float(value, factor)

        def compute(rows: Rows) -> NDArray[Any]:
            x = np.asarray(value.compute(rows))
            return x.astype(np.float64, copy=False) if x.dtype.kind == "f" else x

        return compute

    def _call(self, node: ast.Call) -> _Value:
        match node.func:
            case ast.Name(id=name) if name in _BARE_FUNCTIONS:
                function = name
            case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in _FUNCTIONS:
                function = name
            case _:
                raise self._error(
                    node.func,
                    f"'{self._text(node.func)}' is not a function that a quality criterion may "
                    f"call; {_known_functions()}",
                )
        rule, n_arguments, numpy_function = _FUNCTIONS[function]
        if node.keywords or len(node.args) != n_arguments:
            raise self._error(
                node,
                f"'{function}' takes {n_arguments} argument{'s' * (n_arguments > 1)}, by position",
            )
        values = [self._number(argument) for argument in node.args]
        first = values[0]
        match rule:
            case "test":
                # Whether a number is finite does not depend on its unit.
                return replace(self._apply(node, numpy_function, values, None), kind="boolean")
            case "same unit":
                return self._in_one_unit(node, numpy_function, values)
            case "root":
                unit = first.unit**0.5 if _has_unit(first.unit) else first.unit
                return self._with_unit(self._apply(node, numpy_function, values, None), unit)
            case "plain":
                self._require_plain(first, f"the argument of {function}")
                return self._apply(node, numpy_function, values, None)
            case "angle":
                return self._apply(node, numpy_function, [self._in_radian(first)], None)
        ratio = self._in_one_unit(node, numpy_function, values)  # "to angle"
        return self._with_unit(ratio, self._radian_like(ratio))

    def _in_radian(self, value: _Value) -> _Value:
        if not _has_unit(value.unit):
            return value
        from astropy.units import rad

        if not value.unit.is_equivalent(rad):
            raise self._error(
                value.node, f"'{self._text(value.node)}' is in {value.unit}, which is not an angle"
            )
        return replace(value, unit=None, compute=self._as_float(value, float(value.unit.to(rad))))

    @staticmethod
    def _radian_like(ratio: _Value) -> Any:
        # As in astropy: arctan2 of plain numbers is a plain number, of quantities an angle.
        if not _has_unit(ratio.unit):
            return ratio.unit
        from astropy.units import rad

        return rad


def _known_functions() -> str:
    return "it may use " + ", ".join(
        sorted(name if name in _BARE_FUNCTIONS else f"np.{name}" for name in _FUNCTIONS)
    )


def _spell(unit: Any) -> str:
    """Write a unit the way an expression needs it."""
    text = str(unit)
    return f"u.{text}" if text.isidentifier() else f"(its unit, {text}, from u.<name>)"


def _point_at(name: str, message: str, source: str, start: int, end: int) -> str:
    carets = "^" * max(end - start, 1)
    return f"quality criterion '{name}': {message}\n    {source}\n    {' ' * start}{carets}"


_DASH = "\N{MIDDLE DOT}"  # may be in a name of Python, and no file has it in one of a column
_QUOTED = re.compile(r"`([A-Za-z_][\w-]*)`")


def _python(source: str) -> str:
    """Write names in backquotes as names of Python, each character at its place."""
    return _QUOTED.sub(lambda match: f"({match[1].replace('-', _DASH)})", source)


def quote_names(source: str, names: Iterable[str]) -> str:
    """Put columns of algorithms whose names hold a dash into backquotes.

    Parameters
    ----------
    source : str
        An expression.
    names : iterable of str
        Algorithms, such as "Random-Forest": their columns begin with the name and an underscore.

    Returns
    -------
    str
        The expression, in which a column such as Random-Forest_tel_energy is no subtraction.
    """
    for name in sorted({name for name in names if "-" in name}, key=len, reverse=True):
        source = re.sub(rf"(?<![\w`-]){re.escape(name)}_\w+", r"`\g<0>`", source)
    return source


def tidy(source: str) -> str:
    """One line: a YAML block may fold an expression over several."""
    return " ".join(source.split())


def _parse(name: str, source: str) -> ast.expr:
    if not source:
        raise ConfigError(
            f"quality criterion '{name}': the expression is empty; leave the criterion out"
        )
    if len(source) > _MAX_LENGTH:
        raise ConfigError(
            f"quality criterion '{name}': {len(source)} characters are too long (at most "
            f"{_MAX_LENGTH}); split it into several criteria"
        )
    if not source.isprintable():
        raise ConfigError(
            f"quality criterion '{name}': {source!a} holds a character that cannot be printed"
        )
    comment = source.find("#")
    if comment >= 0:
        # Folded onto one line, a comment would swallow the rest of the expression.
        message = "'#' is not allowed in a quality criterion: put comments into the YAML"
        raise ConfigError(_point_at(name, message, source, comment, comment + 1))
    try:
        return ast.parse(_python(source), mode="eval").body
    except SyntaxError as error:
        # At the end of the text the parser gives no position.
        start = min(error.offset - 1, len(source)) if error.offset else len(source)
        message = f"this cannot be read ({error.msg})"
        raise ConfigError(_point_at(name, message, source, start, start + 1)) from None
    except (RecursionError, MemoryError, ValueError):
        raise ConfigError(
            f"quality criterion '{name}': this cannot be read (nested too deeply)\n    {source}"
        ) from None


@lru_cache(maxsize=256)
def names_in(name: str, source: str) -> frozenset[str]:
    """Check an expression without a file, and list its columns."""
    compiler = _Compiler(name, source)
    compiler.compile(_parse(name, source))
    return frozenset(compiler.used)


@lru_cache(maxsize=256)
def bind(
    name: str, source: str, columns: tuple[tuple[str, str, bool], ...]
) -> Callable[[Rows], Any]:
    """Translate an expression for columns with these units and kinds; worked out once."""
    known = {column: (unit, boolean) for column, unit, boolean in columns}
    return _Compiler(name, source, known).compile(_parse(name, source)).compute
