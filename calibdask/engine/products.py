"""Writing what a run gave: tables, provenance and report, complete or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from calibdask.engine.places import companion
from calibdask.engine.protocol import Tables, tables_of
from calibdask.engine.provenance import describe_activity, iso_time, new_id, user_name
from calibdask.errors import CalibdaskError, ConfigError, MissingInput
from calibdask.io.maps import MAPS, TABLES, digest_maps
from calibdask.io.metadata import Activity, Description
from calibdask.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from astropy.table import QTable

    from calibdask.engine.account import Account
    from calibdask.engine.options import RunOptions
    from calibdask.engine.plan import Plan
    from calibdask.engine.protocol import Output
    from calibdask.report import RunRecord

__all__ = ["Finished", "Products", "digest_output", "plan_of_product"]

_MANIFEST = "calibdask.json"
_PLAN = "CALIBDASK PLAN"  # attribute of a product


def digest_output(path: Path) -> str:
    """Return the digest of a product: of one file, or of all files in a directory.

    Raises
    ------
    MissingInput
        There is nothing to take a digest of.
    """
    from calibdask.io.hdf5 import digest_hdf5

    if not path.is_dir():
        return digest_hdf5(path)
    if path.suffix == ".zarr":
        return digest_maps(path)
    files = sorted(path / name for name in _manifest(path))
    files = files or sorted(one for one in path.iterdir() if one.suffix in (".h5", ".hdf5"))
    if not files:
        raise MissingInput(f"{path}: holds no HDF5 file")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {_digest_part(file)}\n".encode())
    return total.hexdigest()


def _digest_part(path: Path) -> str:
    """Return the digest of something in a product's directory: of its numbers, or of its bytes."""
    from calibdask.io.hdf5 import digest_hdf5

    if path.suffix in (".h5", ".hdf5"):
        return digest_hdf5(path)
    if path.suffix == ".zarr":
        return digest_maps(path)
    try:
        if not path.is_dir():
            with path.open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()
        total = hashlib.sha256()
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            total.update(f"{file.relative_to(path).as_posix()} {_digest_part(file)}\n".encode())
        return total.hexdigest()
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: {_MANIFEST} beside it names it, but it is gone") from error


def plan_of_product(path: Path) -> str | None:
    """Return the digest of the plan that a product was made by; None if it does not say so."""
    from calibdask.io.hdf5 import open_hdf5

    try:
        if path.is_dir():
            text = (path / _MANIFEST).read_text(encoding="utf-8")
            return str(json.loads(text)["plan"])
        with open_hdf5(path) as file:
            plan: str | None = file.attribute(_PLAN)
            return plan
    except (CalibdaskError, OSError, ValueError, KeyError, TypeError):
        return None


def _manifest(directory: Path) -> list[str]:
    """List the files that a run left in an output directory."""
    path = directory / _MANIFEST
    if not path.exists():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["files"]
        return [name for name in map(_name, names) if name]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibdaskError(f"{path}: is broken; remove it and run again") from error


def _name(path: str) -> str:
    """Return the last part of a path: what a list names outside of its directory is not touched."""
    name = Path(path).name
    return "" if name == ".." else name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Write under a temporary name beside `path`; take the name only when all is written."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Finished:
    """A run of which only the writing is left; `directory` is where workers wrote, if they did."""

    plan: Plan
    account: Account
    result: Any
    outputs: Sequence[Output]
    directory: Path | None
    options: RunOptions
    config: Mapping[str, Any]

    @property
    def tables(self) -> dict[str, QTable]:
        """The tables of the product by path."""
        return tables_of(self.outputs)


class Products:
    """The files of one run.

    Parameters
    ----------
    output : Path
        The product as the user named it: a file, or a directory.
    overwrite : bool
        Replace what an earlier run wrote there.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.overwrite = overwrite
        self.paths: list[Path] = []
        self._tell: Callable[[str, int], None] = lambda _what, _done: None

    def check_free(self) -> None:
        """Refuse an output that exists, before any work starts.

        Raises
        ------
        ConfigError
            Naming the path and the way out.
        """
        occupied = self.output.exists() and not (
            self.output.is_dir() and not any(self.output.iterdir())
        )
        if occupied and not self.overwrite:
            raise ConfigError(
                f"{self.output} exists already; choose another name with -o, or replace it with"
                " --overwrite"
            )

    def check_kind(self, *, directory: bool) -> None:
        """Refuse an output that exists as what this job does not write.

        Raises
        ------
        ConfigError
            The output is a directory where a file is written, or the other way round.
        """
        if self.output.exists() and self.output.is_dir() != directory:
            there, wanted = (
                ("a file", "a directory of files") if directory else ("a directory", "one file")
            )
            raise ConfigError(
                f"{self.output} is {there}, but this job writes {wanted}: choose another name"
                " with -o"
            )

    def partial_directory(self, plan_digest: str) -> Path:
        """Make the directory where workers write files until all of them are there."""
        partial = self.output.with_name(f"{self.output.name}.partial-{plan_digest[:12]}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _take_directory(self, finished: Path) -> None:
        """Let a finished directory take the output's name, or its files those of an earlier run."""
        if not self.output.exists() or not any(self.output.iterdir()):
            finished.rename(self.output)  # at once: nobody sees half of it
            return
        for name in _manifest(self.output):
            _remove(self.output / name)
        for file in sorted(finished.iterdir()):
            file.replace(self.output / file.name)
        finished.rmdir()

    def write(self, run: Finished, progress: Callable[[str, int], None]) -> str:
        """Write everything and give the digest of the numbers.

        Parameters
        ----------
        run : Finished
            What to write.
        progress : callable
            Told what begins to be written (0) and is written (1).

        Raises
        ------
        CalibdaskError
            A file cannot be written.
        """
        self._tell = progress
        try:
            return self._write(run)
        except OSError as error:
            raise CalibdaskError(
                f"cannot write {error.filename or self.output}: {error.strerror or error}; what was"
                " computed is stored: make room and run the same command again"
            ) from error

    def _write(self, run: Finished) -> str:
        """Write what belongs to the product, and let the product take its name last.

        So a run that is killed here leaves no product, and the same command writes it.
        """
        if run.directory is None:
            with _replacing(self.output) as product:
                ids = new_id(), new_id()
                _write_hdf5(product, run.tables, _attributes(run, *ids))
                self.paths = [self.output]
                return self._write_companions(run, product, self.output, ids)
        directory = run.directory
        ids = new_id(), new_id()
        if run.tables and (directory / MAPS).exists():
            _write_hdf5(directory / TABLES, run.tables, _attributes(run, *ids))
        names = sorted(file.name for file in directory.iterdir())
        text = json.dumps({"files": names, "plan": run.plan.digest}, indent=1)
        (directory / _MANIFEST).write_text(text, encoding="utf-8")
        self.paths = [self.output / name for name in names]
        digest = self._write_companions(run, directory, directory / "calibdask.h5", ids)
        self._take_directory(directory)
        return digest

    def _write_companions(
        self, run: Finished, product: Path, name: Path, ids: tuple[str, str]
    ) -> str:
        """Write the text table, the report and the provenance of a product; give its digest."""
        digest = digest_output(product)
        home = self.output.parent if run.directory is None else self.output

        def place(ending: str) -> Path:
            path = companion(name, ending)
            self.paths.append(home / path.name)
            return path

        for where, table in list(run.tables.items())[:1]:  # the coefficients, for people
            with _replacing(place(".ecsv")) as partial:
                _write_ecsv(partial, where, table, run, digest)
        if run.options.report:
            from calibdask.report import write_report

            self._tell("report", 0)
            sections = run.plan.calibration.report(run.result, run.tables)
            record = _run_record(run, digest)
            write_report(place(".html"), f"calibdask {run.plan.job}", record, sections)
            self._tell("report", 1)
        with _replacing(place(".provenance.json")) as partial:
            activity = _activity(run, *ids, digest, self.paths)
            partial.write_text(json.dumps(activity, indent=1), encoding="utf-8")
        if run.options.provenance_log is not None:
            with run.options.provenance_log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(activity) + "\n")
        return digest


def _n_missing(run: Finished) -> int:
    return len(run.account.missing(run.plan))


def _attributes(run: Finished, activity_id: str, product_id: str) -> dict[str, str]:
    activity = Activity(
        run.plan.job,
        activity_id,
        product_id,
        iso_time(run.account.started),
        iso_time(run.account.stopped),
        user_name(),
    )
    given = [one.metadata for one in run.outputs if isinstance(one, Tables) and one.metadata]
    attributes: dict[str, str] = {}
    for metadata in given or [Description(run.plan.job)]:
        attributes |= metadata(activity)
    attributes[_PLAN] = run.plan.digest
    attributes["CALIBDASK SHARDS"] = str(len(run.plan.shards) + len(run.plan.rejected))
    attributes["CALIBDASK SHARDS MISSING"] = str(_n_missing(run))
    return attributes


def _activity(
    run: Finished, activity_id: str, product_id: str, digest: str, outputs: Sequence[Path]
) -> dict[str, Any]:
    plan, account = run.plan, run.account
    return describe_activity(
        activity_id=activity_id,
        name=plan.job,
        started=account.started,
        stopped=account.stopped,
        status="incomplete" if _n_missing(run) else "completed",
        exit_code=0,
        inputs=[
            {"url": ref.path, "identity": ref.identity, "bytes": ref.size} for ref in plan.inputs
        ],
        outputs=[{"url": str(path)} for path in outputs],
        config=run.config,
        more={
            "product_id": product_id,
            "digest": digest,
            "plan": plan.digest,
            "missing": [failure.describe() for _, failure in account.missing(plan)],
            "skipped": [list(one) for one in plan.skipped],
            "cut_flow": dict(account.total.cut_flow or {}),
            "cpu_classes": list(account.total.cpu_classes),
            "cpu_seconds": account.total.cpu_seconds,
            "peak_bytes": account.total.peak_bytes,
            "executor": account.executor,
            "workers": account.workers,
            "warnings": _warnings(run),
        },
    )


def _warnings(run: Finished) -> list[str]:
    return [*run.plan.warnings, *run.account.total.warnings, *run.account.notes]


def _run_record(run: Finished, digest: str) -> RunRecord:
    from calibdask.report import FailureRecord, InputRecord, RunRecord

    plan, account = run.plan, run.account
    lost = {failure.where for failure in account.total.lost}
    shards_of: dict[str, list[int]] = {}
    for shard in plan.shards:
        for ref in shard.inputs:
            shards_of.setdefault(ref.path, []).append(shard.index)
    inputs = []
    for ref in plan.inputs:
        failed = account.failed_shards.keys() & shards_of[ref.path]
        status = f"{len(failed)} shards failed" if failed else "done"
        if ref.path in lost:
            status = "failed"
        inputs.append(InputRecord(ref.path, ref.size, len(shards_of[ref.path]), status))
    inputs += [InputRecord(one.where, 0, 0, "rejected") for one in plan.rejected]
    inputs += [
        InputRecord(where, 0, 0, f"left out: {reason}") for where, reason in plan.skipped_alike()
    ]
    return RunRecord(
        job=plan.job,
        version=__version__,
        command=run.options.command,
        plan_digest=plan.digest,
        result_digest=digest,
        started=iso_time(account.started),
        finished=iso_time(account.stopped),
        host=socket.gethostname(),
        executor=account.executor,
        workers=account.workers,
        n_shards=len(plan.shards),
        n_computed=account.computed,
        n_reused=account.cached,
        inputs=inputs,
        cut_flow=account.total.cut_flow or {},
        failures=[
            FailureRecord(index, one.where, one.exit_code, one.message)
            for index, one in account.missing(plan)
        ],
        warnings=_warnings(run),
        wall_s=account.wall_seconds,
        cpu_s=account.cpu_seconds,
        peak_memory_bytes=account.total.peak_bytes or None,
    )


def _unit_text(unit: Any) -> str:
    """Write a unit as ctapipe does; by its name where that standard has none (DN, electron)."""
    try:
        return str(unit.to_string("vounit"))
    except ValueError:
        return str(unit.to_string())


def _write_ecsv(path: Path, where: str, table: QTable, run: Finished, digest: str) -> None:
    """Write a table as text with all its digits, which programs read as well as people."""
    from astropy.table import Table

    # As plain columns: astropy 8 cannot serialise a Quantity whose name is "value".
    plain = Table(table)
    # Arrays as lists of numbers: they would become a block of binary data.
    plain.meta = {
        "table": where,
        "job": run.plan.job,
        "calibdask": __version__,
        "digest": digest,
        **{
            key: value.tolist() if hasattr(value, "tolist") else value
            for key, value in table.meta.items()
        },
    }
    plain.write(path, format="ascii.ecsv")


def _write_hdf5(path: Path, tables: Mapping[str, QTable], attributes: Mapping[str, str]) -> None:
    import numpy as np
    from astropy.time import Time

    from calibdask.io.pytables import create_hdf5, write_root_attributes, write_table
    from calibdask.stats.timebins import ctao_time

    with create_hdf5(path) as file:
        for where, table in tables.items():
            columns, units, descriptions, times = {}, {}, {}, []
            for name, column in table.columns.items():
                if column.info.description:
                    descriptions[name] = column.info.description
                if isinstance(column, Time):
                    columns[name] = ctao_time(column)
                    times.append(name)
                    continue
                unit = getattr(column, "unit", None)
                if unit is not None and str(unit):
                    units[name] = _unit_text(unit)
                columns[name] = np.asarray(getattr(column, "value", column))
            write_table(
                file,
                where,
                columns,
                units=units,
                descriptions=descriptions,
                times=times,
                attributes=table.meta,
            )
        write_root_attributes(file, attributes)
