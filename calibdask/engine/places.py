"""Where a run writes, settled before anything is made, and compared with what it reads.

Files are compared by what they are (device and inode), so that no symbolic link, hard link or
relative path hides that two names mean one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING

from calibdask.access import check_private
from calibdask.engine.written import Memory, real_path
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from calibdask.engine.inputs import Found

__all__ = ["COMPANIONS", "OWN_NAMES", "REMEDY", "Places", "companion", "workdir_of"]

COMPANIONS = (".ecsv", ".html", ".provenance.json")
"""Endings of what is written beside a product that is one file."""

OWN_NAMES = (
    "cancel", "inputs.json", "lock.json", "lock.takeover", "logs", "plan.json", "products.json",
    "progress.json", "session", "store",
)  # fmt: skip
"""What a run keeps in its work directory."""

REMEDY = (
    "choose another --workdir, or, if nobody else has written there, make it yours and take the"
    " rights of others away (chmod go-w)"
)
"""What to do about a work directory that cannot be trusted."""

_PRODUCT_SUFFIXES = (".h5", ".hdf5")
_LONGEST_SUFFIX = len(".partial-0123456789ab")
"""What a name gets while it is being written, see `products`."""

_Identity = tuple[int, int]


def companion(output: Path, ending: str) -> Path:
    """Return the name of a file beside a product.

    A suffix that is the product's own gives way; any other is part of its name: those of ``v1.01``
    and ``v1.02`` are different.
    """
    own = output.suffix in _PRODUCT_SUFFIXES
    return output.with_name((output.stem if own else output.name) + ending)


def workdir_of(output: Path) -> Path:
    """Return the work directory of a product unless another is named."""
    return output.with_name(f"{output.name}.work")


def _identity(path: Path) -> _Identity | None:
    """Return what a path leads to; None where it leads nowhere."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


class _Read:
    """What a run reads, by identity."""

    def __init__(self, sources: Iterable[tuple[str, Path]]) -> None:
        self.files: dict[_Identity, str] = {}
        self.directories: dict[_Identity, str] = {}
        seen: set[Path] = set()
        for what, path in sources:
            identity = _identity(path)
            if identity is None:  # reading it will say so
                continue
            name = f"{what} {path}"
            self.files.setdefault(identity, name)
            places = {path.absolute().parent}
            if path.is_symlink():
                places.add(path.resolve().parent)
            for place in places - seen:
                seen.add(place)
                real = place.resolve()
                for above in (real, *real.parents):
                    if (found := _identity(above)) is not None:
                        self.directories.setdefault(found, name)


class Places:
    """The names that a run writes to.

    Parameters
    ----------
    job : str
        Name of the job.
    output : Path
        The product.
    workdir : Path, optional
        The work directory; the output's name with ``.work`` unless given.
    report : bool
        Whether there is a report beside the product.
    provenance_log, log_file, performance_report : Path, optional
        What else is written to.

    Raises
    ------
    ConfigError
        The output has no name, or one that belongs to a companion.
    """

    def __init__(
        self,
        job: str,
        output: Path,
        *,
        workdir: Path | None = None,
        report: bool = True,
        provenance_log: Path | None = None,
        log_file: Path | None = None,
        performance_report: Path | None = None,
    ) -> None:
        if output.name in ("", ".."):
            raise ConfigError(
                f"-o {str(output)!r}: names no file; name the product itself, e.g. -o"
                f" {output / 'result.h5'}"
            )
        for ending in COMPANIONS:
            if output.name.endswith(ending):
                raise ConfigError(
                    f"-o {output}: files that end with {ending} are written beside the product;"
                    f" name it, e.g., -o {str(output).removesuffix(ending)}.h5"
                )
        self.job = job
        self.output = output
        self.workdir = workdir or workdir_of(output)
        endings = [ending for ending in COMPANIONS if report or ending != ".html"]
        self.memory = Memory(self.workdir)
        self.companions = [companion(output, ending) for ending in endings]
        self._replaced = [(f"-o {output}", output)]
        self._replaced += [
            (f"{path} (written beside -o {output})", path) for path in self.companions
        ]
        if performance_report is not None:
            self._replaced.append(
                (f"--performance-report {performance_report}", performance_report)
            )
        given = (("--provenance-log", provenance_log), ("--log-file", log_file))
        self._appended = [(f"{option} {path}", path) for option, path in given if path is not None]
        self._workdir_name = f"--workdir {workdir}" if workdir else f"work directory {self.workdir}"
        self._made: list[Path] = []
        self._refused = False

    # -- what is refused ------------------------------------------------------------------------

    def check(self, inputs: Iterable[Found], others: Iterable[tuple[str, Path]] = ()) -> None:
        """Refuse to write over anything that is read, or that is no file; nothing is made.

        A product of the same job and work directory that is found again in a directory of inputs
        is none of them.

        Parameters
        ----------
        inputs : iterable of Found
            The inputs.
        others : iterable of (str, Path)
            What else is read: its kind, for people, and its path.

        Raises
        ------
        ConfigError
            Naming the option, the file and what to do.
        """
        try:
            self._check_names()
            check_private(self.workdir, remedy=REMEDY)
            mine = _identity(self.output) if self.memory.is_of(self.job, self.output) else None
            sources = [
                ("input", one.path)
                for one in inputs
                if one.named or mine is None or _identity(one.path) != mine
            ]
            read = _Read((*sources, *others))
            self._check_apart()
            for name, path in self._names():
                self._check_not_read(name, path, read)
                made = path in (self.output, self.workdir, *self.companions)
                _check_parent(name, path, made=made)
            self._check_kinds()
        except OSError as error:
            raise ConfigError(
                f"-o {self.output}: cannot look at {error.filename}: {error.strerror or error}"
            ) from error

    def _names(self) -> list[tuple[str, Path]]:
        return [*self._replaced, *self._appended, (self._workdir_name, self.workdir)]

    def _check_apart(self) -> None:
        """Refuse two names of one file."""
        seen: dict[object, str] = {}
        inside = {
            real_path(self.workdir / name): f"{name} in the work directory" for name in OWN_NAMES
        }
        for name, path in self._names():
            real = real_path(path)
            for above in (real, *real.parents):
                if above in inside:
                    raise ConfigError(
                        f"{name}: is kept for {inside[above]} {self.workdir}; choose another name"
                    )
            for key in (real, _identity(path)):
                if key is not None and key in seen:
                    raise ConfigError(f"{name}: is the same file as {seen[key]}; choose two names")
            seen |= {key: name for key in (real, _identity(path)) if key is not None}

    def _check_names(self) -> None:
        """Refuse a name that leaves no room for those that are made from it."""
        longest = max((path for _, path in self._replaced), key=lambda path: len(_bytes(path)))
        nearest = next(one for one in longest.absolute().parents if one.is_dir())
        most = os.pathconf(nearest, "PC_NAME_MAX") - _LONGEST_SUFFIX
        surplus = max(len(_bytes(longest)), len(_bytes(self.workdir))) - most
        if surplus > 0:
            raise ConfigError(
                f"-o {self.output}: the name is too long by {surplus} bytes, as other names are"
                " made from it; choose a shorter one"
            )

    def _check_not_read(self, name: str, path: Path, read: _Read) -> None:
        real = real_path(path)
        identity = _identity(path)
        if identity is not None and identity in read.files:
            raise ConfigError(
                f"{name}: is the {read.files[identity]}, which would be lost; choose another name"
            )
        if identity is not None and identity in read.directories:
            raise ConfigError(
                f"{name}: is a directory that holds the {read.directories[identity]}; choose"
                " another name"
            )
        for above in real.parents:
            if (found := _identity(above)) is not None and found in read.files:
                raise ConfigError(
                    f"{name}: lies inside the {read.files[found]}; choose another place"
                )

    def _check_kinds(self) -> None:
        for name, path in self._replaced:
            mode = _mode(path)
            # Whether a product may be a directory is known when the run is planned.
            good = stat.S_ISREG(mode) or (path == self.output and stat.S_ISDIR(mode))
            if mode and not good:
                raise ConfigError(f"{name}: exists and is {_kind(mode)}; choose another name")
        for name, path in self._appended:
            mode = _mode(path)
            if mode and not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
                raise ConfigError(f"{name}: exists and is {_kind(mode)}; choose another name")
            if mode and not os.access(path, os.W_OK):
                raise ConfigError(f"{name}: cannot be written to; choose another name")
        mode = _mode(self.workdir)
        if mode and not stat.S_ISDIR(mode):
            raise ConfigError(
                f"{self._workdir_name}: is {_kind(mode)}; choose another with --workdir"
            )

    def check_new(self, *, overwrite: bool) -> None:
        """Refuse to replace files beside a product that no run for this output wrote.

        Raises
        ------
        ConfigError
            Naming the file and the way out.
        """
        if overwrite:
            return
        told = self._told_by_provenance()
        for path in self.companions:
            if path.exists() and not self.memory.is_of(self.job, path) and path.name not in told:
                raise ConfigError(
                    f"{path} exists already and would be replaced, as it has the name of a file"
                    f" beside {self.output}; choose another name with -o, or replace it with"
                    " --overwrite"
                )

    # -- what is made ---------------------------------------------------------------------------

    def _told_by_provenance(self) -> set[str]:
        """Return the names of what an earlier run of the same job wrote with this product.

        They outlive the work directory.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            path = companion(self.output, ".provenance.json")
            activity = json.loads(path.read_text(encoding="utf-8"))
            names = {os.path.basename(one["url"]) for one in activity["output"]}  # noqa: PTH119
            if activity["activity_name"] == f"calibdask {self.job}" and self.output.name in names:
                return names
        return set()

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Make the directories that are missing; a run refused by :meth:`settling` leaves none."""
        had_workdir = self.workdir.exists()
        for path in (self.output, self.workdir):
            if not path.parent.exists():
                path.parent.mkdir()
                self._made.append(path.parent)
        try:
            yield
        except ConfigError:
            if self._refused:
                self._unmake(workdir=not had_workdir)
            raise

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """Check what can only be checked when the run is planned."""
        try:
            yield
        except ConfigError:
            self._refused = True
            raise

    def _unmake(self, *, workdir: bool) -> None:
        with contextlib.suppress(OSError):
            if workdir:
                for name in ("inputs.json", "plan.json", "progress.json"):
                    (self.workdir / name).unlink(missing_ok=True)
                self.workdir.rmdir()
            for path in reversed(self._made):
                path.rmdir()


def _given(*options: tuple[str, Path | None]) -> list[tuple[str, Path]]:
    return [(f"{option} {path}", path) for option, path in options if path is not None]


def _bytes(path: Path) -> bytes:
    return os.fsencode(path.name)


def _mode(path: Path) -> int:
    """Return the mode of what a path leads to, 0 where it leads nowhere."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a file" if stat.S_ISREG(mode) else "no regular file"


def _check_parent(name: str, path: Path, *, made: bool) -> None:
    """Check that the directory of a file is there; of some it is made, but only the last level."""
    parent = path.absolute().parent
    if not parent.is_dir():
        if parent.exists():
            raise ConfigError(
                f"{name}: cannot write in {parent}: it is no directory; choose another place"
            )
        missing = parent.parent if made else parent
        if not missing.is_dir():
            raise ConfigError(
                f"{name}: there is no directory {missing}; make it first (mkdir -p), or"
                " choose another place"
            )
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: cannot write in {parent}; choose another place")
