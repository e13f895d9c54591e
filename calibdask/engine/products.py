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

from calibdask.engine.provenance import cta_attributes, describe_activity, iso_time, new_id
from calibdask.errors import CalibdaskError, ConfigError, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from astropy.table import QTable

    from calibdask.engine.plan import Plan
    from calibdask.engine.run import Account, RunOptions
    from calibdask.report import RunRecord

__all__ = ["Finished", "Products", "digest_output"]

_MANIFEST = "calibdask.json"


def digest_output(path: Path) -> str:
    """Give the digest of a product: of one file, or of all files in a directory.

    Raises
    ------
    MissingInput
        There is nothing to take a digest of.
    """
    from calibdask.io.hdf5 import digest_hdf5

    if not path.is_dir():
        return digest_hdf5(path)
    files = sorted(one for one in path.iterdir() if one.suffix in (".h5", ".hdf5"))
    if not files:
        raise MissingInput(f"{path}: holds no HDF5 file")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {digest_hdf5(file)}\n".encode())
    return total.hexdigest()


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
    """A run of which only the writing is left."""

    plan: Plan
    account: Account
    result: Any
    tables: Mapping[str, QTable]
    files: Sequence[Path]
    options: RunOptions
    config: Mapping[str, Any]


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

    def check_writable(self) -> None:
        """Refuse an output that exists or cannot be written, before any work starts.

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
        parent = self.output.parent
        probe = parent / f".calibdask-{uuid4().hex[:8]}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write in {parent}: {error.strerror or error}; choose another place with -o"
            ) from error

    def partial_directory(self, plan_digest: str) -> Path:
        """Make the directory where workers write files until all of them are there.

        Raises
        ------
        ConfigError
            The output is a file, but this calibration writes a directory.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(
                f"{self.output} is a file, but this job writes a directory of files: choose another"
                " name with -o"
            )
        partial = self.output.with_name(f"{self.output.name}.partial-{plan_digest[:12]}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _take_files(self, files: Sequence[Path]) -> list[Path]:
        """Move finished files into the output directory, and remove an earlier run's own files."""
        self.output.mkdir(exist_ok=True)
        manifest = self.output / _MANIFEST
        if manifest.exists():
            try:
                earlier = json.loads(manifest.read_text(encoding="utf-8"))["files"]
            except (ValueError, KeyError) as error:
                raise CalibdaskError(f"{manifest}: is broken; remove it and run again") from error
            for name in earlier:
                (self.output / Path(name).name).unlink(missing_ok=True)
        taken = []
        for file in files:
            target = self.output / file.name
            file.replace(target)
            taken.append(target)
        shutil.rmtree(files[0].parent, ignore_errors=True)
        text = json.dumps({"files": [path.name for path in taken]}, indent=1)
        manifest.write_text(text, encoding="utf-8")
        return taken

    def write(self, run: Finished) -> str:
        """Write everything and give the digest of the numbers.

        Raises
        ------
        CalibdaskError
            A file cannot be written.
        """
        try:
            return self._write(run)
        except OSError as error:
            raise CalibdaskError(
                f"cannot write {error.filename or self.output}: {error.strerror or error}; what was"
                " computed is stored: make room and run the same command again"
            ) from error

    def _write(self, run: Finished) -> str:
        activity_id, product_id = new_id(), new_id()
        if run.files:
            written = self._take_files(run.files)
            stem = self.output / "calibdask"
        else:
            written = [self.output]
            stem = self.output.with_suffix("")
            with _replacing(self.output) as partial:
                _write_hdf5(partial, run.tables, _attributes(run, activity_id, product_id))
        digest = digest_output(self.output)
        self.paths = list(written)
        for table in list(run.tables.values())[:1]:  # the coefficients, for people
            path = stem.with_name(stem.name + ".ecsv")
            with _replacing(path) as partial:
                table.write(partial, format="ascii.ecsv")
            self.paths.append(path)
        if run.options.report:
            from calibdask.report import write_report

            path = stem.with_name(stem.name + ".html")
            sections = run.plan.calibration.report(run.result, run.tables)
            write_report(path, f"calibdask {run.plan.job}", _run_record(run, digest), sections)
            self.paths.append(path)
        path = stem.with_name(stem.name + ".provenance.json")
        self.paths.append(path)
        activity = _activity(run, activity_id, product_id, digest, self.paths)
        with _replacing(path) as partial:
            partial.write_text(json.dumps(activity, indent=1), encoding="utf-8")
        if run.options.provenance_log is not None:
            with run.options.provenance_log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(activity) + "\n")
        return digest


def _n_missing(run: Finished) -> int:
    return len(run.account.failed_shards) + len(run.plan.rejected)


def _attributes(run: Finished, activity_id: str, product_id: str) -> dict[str, str]:
    attributes = cta_attributes(
        name=run.plan.job,
        activity_id=activity_id,
        started=run.account.started,
        stopped=run.account.stopped,
        product_id=product_id,
        **run.plan.calibration.product(run.result),
    )
    attributes["CALIBDASK PLAN"] = run.plan.digest
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
            "missing": [
                failure.describe() for failure in (*plan.rejected, *account.failed_shards.values())
            ],
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
    skipped = [f"{path} was left out: {reason}" for path, reason in run.plan.skipped]
    return [*run.plan.warnings, *skipped, *run.account.total.warnings, *run.account.notes]


def _run_record(run: Finished, digest: str) -> RunRecord:
    import calibdask
    from calibdask.report import FailureRecord, InputRecord, RunRecord

    plan, account = run.plan, run.account
    shards_of: dict[str, list[int]] = {}
    for shard in plan.shards:
        for ref in shard.inputs:
            shards_of.setdefault(ref.path, []).append(shard.index)
    inputs = []
    for ref in plan.inputs:
        lost = account.failed_shards.keys() & shards_of[ref.path]
        status = f"{len(lost)} shards failed" if lost else "done"
        inputs.append(InputRecord(ref.path, ref.size, len(shards_of[ref.path]), status))
    inputs += [InputRecord(one.where, 0, 0, "rejected") for one in plan.rejected]
    inputs += [InputRecord(path, 0, 0, "left out") for path, _ in plan.skipped]
    return RunRecord(
        job=plan.job,
        version=calibdask.__version__,
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
            for index, one in (
                *((None, one) for one in plan.rejected),
                *sorted(account.failed_shards.items()),
            )
        ],
        warnings=_warnings(run),
        wall_s=account.wall_seconds,
        cpu_s=account.cpu_seconds,
        peak_memory_bytes=account.total.peak_bytes or None,
    )


def _write_hdf5(path: Path, tables: Mapping[str, QTable], attributes: Mapping[str, str]) -> None:
    import numpy as np

    from calibdask.io.hdf5 import create_hdf5, write_root_attributes, write_table

    with create_hdf5(path) as file:
        for where, table in tables.items():
            columns, units, descriptions = {}, {}, {}
            for name, column in table.columns.items():
                unit = getattr(column, "unit", None)
                if unit is not None and str(unit):
                    units[name] = unit.to_string("vounit")
                columns[name] = np.asarray(getattr(column, "value", column))
                if column.info.description:
                    descriptions[name] = column.info.description
            write_table(
                file, where, columns, units=units, descriptions=descriptions, attributes=table.meta
            )
        write_root_attributes(file, attributes)
