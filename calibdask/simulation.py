"""What simulators share: options that are declared once, random streams, files with their truth.

Options are frozen dataclasses, each field declared with default, limits and help::

    @simulation_options
    class StarSimulation:
        \"\"\"What to simulate.\"\"\"

        seed: int = simulation_option(0, "Of everything random.", 0)
        n_stars: int = simulation_option(100, "Stars in a field.", 1, 1e6)

        def check(self) -> None:
            \"\"\"Refuse options that contradict each other.\"\"\"

Their values are checked when they are made, also by `dataclasses.replace`.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, dataclass_transform

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from calibdask.config.load import explain_problem
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "START_TAI_S",
    "describe_options",
    "ignore_progress",
    "new_files",
    "random_stream",
    "refuse_option",
    "simulation_option",
    "simulation_options",
    "write_files",
    "write_truth",
]

START_TAI_S: Final = 1_700_000_037
"""Begin of the first observation block (2023-11-14T22:13:20 UTC), in seconds of TAI since 1970."""


def simulation_option(
    default: Any,
    help: str,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    choices: Sequence[str] = (),
) -> Any:
    """Declare an option of a simulation.

    Parameters
    ----------
    default : object
        Its default.
    help : str
        What it does.
    low, high : float
        Limits of the number, or of each number in a tuple or mapping; None is always allowed.
    choices : sequence of str
        The words allowed for text, or for each text in a tuple.

    Returns
    -------
    FieldInfo
        The value of the class attribute.
    """
    limits: Any = {"low": low, "high": high, "choices": tuple(choices)}
    if isinstance(default, dict):
        return Field(default_factory=default.copy, description=help, json_schema_extra=limits)
    return Field(default, description=help, json_schema_extra=limits)


@dataclass_transform(frozen_default=True)
def simulation_options[T](cls: type[T]) -> type[T]:
    """Make a frozen dataclass of options; see `calibdask.simulation`.

    Numbers and texts are not converted, but for integers where a float is declared. Wrong values
    raise `ConfigError`.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    fill = made.__init__

    def checked(self: Any, **values: Any) -> None:
        try:
            fill(self, **values)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, one['loc']))}: {explain_problem(one, one['loc'], {})}"
                for one in error.errors(include_url=False)
            ]
            raise ConfigError("\n".join(problems)) from None
        for name, info in made.__pydantic_fields__.items():
            _check_limits(name, getattr(self, name), **info.json_schema_extra)
        if hasattr(self, "check"):
            self.check()

    checked.__signature__ = inspect.signature(fill)  # type: ignore[attr-defined]
    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def _check_limits(
    name: str, value: object, low: float, high: float, choices: Sequence[str]
) -> None:
    for one in _single_values(value):
        if isinstance(one, str) and choices and one not in choices:
            refuse_option(name, one, f"one of {', '.join(choices)}")
        if isinstance(one, int | float) and not low <= one <= high:
            refuse_option(name, one, f"a number between {low:g} and {high:g}")


def _single_values(value: object) -> Iterator[object]:
    match value:
        case dict():
            yield from value.values()
        case tuple():
            for one in value:
                yield from _single_values(one)
        case _:
            yield value


def refuse_option(name: str, value: object, expected: str) -> NoReturn:
    """Raise `ConfigError` for a value of an option."""
    raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def describe_options(options: type[Any]) -> str:
    """Write what a simulation is, and its options with default and help, for people."""
    lines = [inspect.getdoc(options) or "", ""]
    for name, info in options.__pydantic_fields__.items():
        lines.append(f"{name} = {info.get_default(call_default_factory=True)!r}")
        lines.append(textwrap.indent(textwrap.fill(info.description, 92), "    "))
    return "\n".join(lines)


class _Seeded(Protocol):
    @property
    def seed(self) -> int: ...


def random_stream(options: _Seeded, *key: int) -> np.random.Generator:
    """Return random numbers that depend on the seed and on `key` alone."""
    return np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))


def new_files(output: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Make a directory and name the files that a simulation is about to write into it.

    Parameters
    ----------
    output : Path
        Directory; made when it does not exist.
    names : sequence of str
        Of the files; ``truth.json`` comes beside them.

    Raises
    ------
    ConfigError
        One of the files exists, or ``truth.json``.
    """
    output.mkdir(parents=True, exist_ok=True)
    paths = tuple(output / name for name in names)
    for path in (*paths, output / "truth.json"):
        if path.exists():
            raise ConfigError(f"{path}: exists already; remove it or choose another directory")
    return paths


def write_truth(output: Path, truth: Mapping[str, Any]) -> None:
    """Write what is true of simulated files into ``truth.json`` beside them."""
    text = json.dumps(truth, indent=1)
    (output / "truth.json").write_text(text + "\n", encoding="utf-8")


def ignore_progress(done: int, total: int) -> None:
    """Show no progress."""
    del done, total


def write_files(
    paths: Sequence[Path],
    write: Callable[[Path, int], None],
    progress: Callable[[int, int], None] = ignore_progress,
) -> None:
    """Write the files of a simulation one after the other.

    Parameters
    ----------
    paths : sequence of Path
        From `new_files`.
    write : callable
        Writes a file, given its path and its number from 0.
    progress : callable, optional
        Called with the number of files written and the number of all files.
    """
    for number, path in enumerate(paths):
        write(path, number)
        progress(number + 1, len(paths))
