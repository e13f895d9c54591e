"""Which rows of a table count: named criteria, and the cut flow they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.select.expressions import Rows, bind, columns_of, tidy
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["Cut", "QualityCriteria", "Selection", "compile_criteria"]


@dataclass(frozen=True, slots=True)
class Cut:
    """One line of a cut flow.

    Attributes
    ----------
    name : str
        Name of the criterion.
    passed : int
        Rows that pass this criterion by itself.
    passed_so_far : int
        Rows that pass it and all before it.
    met_nan : int
        Rows in which a comparison of this criterion had NaN on one side. Such a comparison is
        false (``!=`` is true), whatever the row holds otherwise.
    """

    name: str
    passed: int
    passed_so_far: int
    met_nan: int


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The rows that pass all criteria, and how they came about.

    Attributes
    ----------
    mask : ndarray of bool, shape (n_rows,)
        True for the rows that pass every criterion, and were left before.
    cuts : tuple of Cut
        The cut flow, in the order of the criteria.
    """

    mask: NDArray[np.bool_]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True)
class QualityCriteria:
    """Named boolean expressions on the columns of a table.

    It holds text only: it can be pickled, hashed and compared, and is translated where it is used.
    Make it with `compile_criteria`, which checks the expressions.

    An expression may hold columns (any name; one with a dash in backquotes), numbers, ``True`` and
    ``False``, comparisons (also chained), ``and or not & | ~``, ``+ - * / % **``, units as
    ``u.GeV``, and the functions that an error message lists. Comparing and adding converts
    units; arithmetic is done in float64; integers are compared exactly. ``and``,
    ``or`` and ``not`` act row by row.

    Attributes
    ----------
    pairs : tuple of (str, str)
        Name and expression of each criterion, in order.
    """

    pairs: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> frozenset[str]:
        """Names of all columns that the criteria need."""
        return frozenset().union(*(columns_of(name, source) for name, source in self.pairs))

    def evaluate(
        self,
        columns: Mapping[str, NDArray[Any]],
        units: Mapping[str, str],
        n_rows: int | None = None,
        *,
        among: NDArray[np.bool_] | None = None,
    ) -> Selection:
        """Apply the criteria to a table.

        Parameters
        ----------
        columns : mapping of str to ndarray, shape (n_rows,)
            At least the columns named in `columns`; others are ignored.
        units : mapping of str to str
            Unit of each column that has one, as astropy writes it.
        n_rows : int, optional
            Number of rows; needed only when there may be no column to tell it.
        among : ndarray of bool, shape (n_rows,), optional
            Rows that are left by what comes before the criteria.

        Returns
        -------
        Selection
            Mask and cut flow.

        Raises
        ------
        MissingInput
            A column is not there.
        CorruptedInput
            A column does not hold one number or boolean per row, or has an unreadable unit.
        ConfigError
            Units do not go together, or the expression is not boolean for these columns.
        """
        if n_rows is None:
            if not columns:
                msg = "without columns the number of rows must be given"
                raise ValueError(msg)
            n_rows = len(next(iter(columns.values())))
        mask = np.ones(n_rows, dtype=bool) if among is None else among.copy()
        cuts = []
        for name, source in self.pairs:
            needed = sorted(columns_of(name, source))
            described = tuple(
                (
                    column,
                    units.get(column) or "",
                    _is_boolean(name, source, column, columns, n_rows),
                )
                for column in needed
            )
            rows = Rows(columns, n_rows)
            with np.errstate(all="ignore"):
                passed = np.broadcast_to(bind(name, source, described)(rows), n_rows)
            mask &= passed
            counts = (np.count_nonzero(x) for x in (passed, mask, rows.nan))
            cuts.append(Cut(name, *(int(count) for count in counts)))
        return Selection(mask, tuple(cuts))


def _is_boolean(
    name: str, source: str, column: str, columns: Mapping[str, NDArray[Any]], n_rows: int
) -> bool:
    """Whether a column is boolean (else a number); anything else is refused."""
    if column not in columns:
        raise MissingInput(
            f"quality criterion '{name}': there is no column '{column}'"
            f"{did_you_mean(column, columns)}\n    {source}"
        )
    values = columns[column]
    if values.dtype.kind not in "biuf" or values.shape != (n_rows,):
        raise CorruptedInput(
            f"quality criterion '{name}': column '{column}' holds {values.dtype} of shape "
            f"{values.shape}; needed is one number or boolean for each of {n_rows} rows\n"
            f"    {source}"
        )
    return values.dtype.kind == "b"


def compile_criteria(pairs: Iterable[tuple[str, str]]) -> QualityCriteria:
    """Check quality criteria as far as that goes without a file.

    Parameters
    ----------
    pairs : iterable of (str, str)
        Name and expression of each criterion.

    Returns
    -------
    QualityCriteria
        The checked criteria.

    Raises
    ------
    ConfigError
        An expression holds something that is not allowed; all such are listed, each with its
        position.

    Examples
    --------
    >>> criteria = compile_criteria([("bright", "intensity > 100")])
    >>> criteria.evaluate({"intensity": np.array([50.0, 200.0])}, {}).mask
    array([False,  True])
    """
    criteria = tuple((name, tidy(source)) for name, source in pairs)
    problems = []
    for number, (name, source) in enumerate(criteria):
        if any(name == other for other, _ in criteria[:number]):
            problems.append(
                f"quality criterion '{name}': two criteria have this name; the cut flow could "
                "not tell them apart"
            )
        try:
            columns_of(name, source)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return QualityCriteria(criteria)
