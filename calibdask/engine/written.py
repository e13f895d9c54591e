"""What runs in a work directory have written, in its one memory of that, ``products.json``."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calibdask.engine.canonical import read_json
from calibdask.errors import CalibdaskError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Made", "Memory", "Written", "real_path"]


@dataclass(frozen=True)
class Made:
    """From what a product was made.

    Attributes
    ----------
    options : str
        Digest of the settings.
    inputs : dict of str to str
        Paths by identity.
    settings : dict of str to str
        Job, version and options by their names, as JSON; empty in memories of earlier versions.
    """

    options: str
    inputs: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What was written for one output.

    Attributes
    ----------
    job : str
        The job that wrote last.
    files : list of str
        The product and what is beside it.
    plans : dict of str to Made
        By the digest of its plan, the product that is there; of two, the run was killed between.
    """

    job: str
    files: list[str]
    plans: dict[str, Made] = field(default_factory=dict)


class Memory:
    """What a work directory knows about what was written from it.

    Files are named relative to it, so that both may move together.

    Parameters
    ----------
    workdir : Path
        The work directory.

    Attributes
    ----------
    path : Path
        Where it is kept.
    problem : str
        What keeps it from being read; then nothing is known.
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "products.json"
        self.problem = ""
        self._all: dict[str, Written] = {}
        try:
            found = read_json(self.path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        from pydantic import TypeAdapter, ValidationError  # a first run does not need it

        try:
            text = json.dumps(found)
            self._all = TypeAdapter(dict[str, Written]).validate_json(text, strict=True)
        except ValidationError as error:
            self.problem = str(error.errors()[0]["msg"])

    def _name(self, path: Path) -> str:
        return os.path.relpath(real_path(path), self.path.parent.resolve())

    def of(self, output: Path) -> Written | None:
        """Return what was written for an output, None where nothing was."""
        return self._all.get(self._name(output))

    def is_of(self, job: str, path: Path) -> bool:
        """Return whether a job wrote a file from here."""
        name = self._name(path)
        return any(one.job == job and name in one.files for one in self._all.values())

    def record(self, output: Path, job: str, files: list[Path], plans: dict[str, Made]) -> None:
        """Note what is about to be written for an output.

        Raises
        ------
        CalibdaskError
            The work directory cannot be written.
        """
        self._all[self._name(output)] = Written(job, [self._name(one) for one in files], plans)
        everything = {name: dataclasses.asdict(one) for name, one in self._all.items()}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(everything, indent=1), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CalibdaskError(
                f"cannot write {self.path}: {error.strerror or error}; what was computed is"
                " stored: make room and run the same command again"
            ) from error


def real_path(path: Path) -> Path:
    """Return a path without links in its directory; the name itself is kept, as it is replaced."""
    absolute = path.absolute()
    if absolute.name in ("", ".."):
        return absolute.resolve()
    return absolute.parent.resolve() / absolute.name
