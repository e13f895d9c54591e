"""The plan: what will be done, known before anything is done.

A plan lists every shard with its inputs' identities, the cells it contributes to and the address
of its result. Nothing in it depends on who will run it, so it is the same on a laptop and on a
thousand workers. What cannot work is refused here, before the first byte of data is read.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calibdask.engine.canonical import canonical_json, digest_json
from calibdask.engine.envelope import Failure
from calibdask.engine.executors import batch_sizes
from calibdask.engine.guard import Crashed, Guard, Unforeseen, unreadable
from calibdask.engine.inputs import Found, Identities, find_inputs
from calibdask.engine.merge import merge_tree
from calibdask.engine.protocol import AnyCalibration, Cell, InputRef, Piece, Shard, Survey
from calibdask.engine.shown import facts_html, printable
from calibdask.errors import (
    CalibdaskError,
    ConfigError,
    CorruptedInput,
    MissingInput,
    NotEnoughData,
    WrongKind,
)
from calibdask.rounding import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Estimate", "Plan", "make_plan"]

SCHEMA = 1
"""Version of addresses, packs and envelopes: raise it when any of them changes its meaning."""

# What a campaign costs beside its own work. tests/engine/test_plan.py counts the first two, `make
# scale` measures the others and shows them beside these, which it gave on a machine of two cores.
METADATA_PER_RESULT = 10
"""Operations by name for each stored result: look for it, create, link, unlink, and open it to
merge or fit it."""
METADATA_PER_INPUT = 4
"""The same for each input: looked at twice and opened to plan, looked at once more to map."""
BYTES_PER_RESULT = 1_500
"""A stored result with the smallest of summaries, three numbers: what files cost beside data."""
DRIVER_SECONDS_PER_TASK = 0.4e-3
"""CPU of the driver for planning a task, sending it, and taking its outcome."""
DRIVER_SECONDS_PER_CALL = 3e-3
"""CPU of the driver, with the scheduler in it, for a call, whatever the call holds."""
DRIVER_BYTES = 137e6
"""Memory of the driver without shards."""
DRIVER_BYTES_PER_SHARD = 3.5e3
"""Memory that the driver takes more for each shard."""

_MANY_CELLS = 10_000  # more are told of
_BUNDLES_PER_STAGE = 100  # tasks that cells are divided among, where they are many
_CELLS_PER_BUNDLE = 100
_BYTES_PER_BUNDLE = 16 << 20  # of summaries and states: they are in memory together
_FEW_AND_MANY = 2, 200  # workers that the printed plan assumes


@dataclass(frozen=True)
class Estimate:
    """What one stage of a run costs beside its own work.

    Attributes
    ----------
    tasks, calls : int
        Maps, merges and fits, and how many calls hand them out.
    results, result_bytes : int
        Files in the store, and their bytes in all stages.
    metadata : int
        Operations on the file system that name a file: stat, open, mkdir, link, unlink.
    driver_seconds, driver_bytes : float
        CPU and memory of the process that plans and schedules.
    """

    tasks: int
    calls: int
    results: int
    result_bytes: int
    metadata: int
    driver_seconds: float
    driver_bytes: float


@dataclass(frozen=True)
class Plan:
    """Everything a run will do.

    Attributes
    ----------
    calibration : Calibration
        What is done, with what it must know of all inputs together.
    shards : tuple of Shard
        In merge order.
    rejected : tuple of Failure
        Inputs that cannot be used.
    skipped : tuple of (path, reason)
        Files found in a directory that are of another kind.
    fan_in : int
        How many results one merge takes.
    peak_bytes : int
        Estimated memory of the largest shard.
    warnings : tuple of str
        What is odd although it can be run.
    """

    calibration: AnyCalibration
    shards: tuple[Shard, ...]
    rejected: tuple[Failure, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    fan_in: int = 16
    peak_bytes: int = 0
    warnings: tuple[str, ...] = field(default=())

    @property
    def job(self) -> str:
        """Name of the calibration."""
        return self.calibration.name

    @functools.cached_property
    def _map_config(self) -> Mapping[str, Any]:
        return self.calibration.map_config()  # once, not for every address

    @functools.cached_property
    def cells(self) -> dict[Cell, tuple[int, ...]]:
        """The shards that contribute to each cell, in plan order."""
        members: dict[Cell, list[int]] = {}
        for shard in self.shards:
            for cell in shard.cells:
                members.setdefault(cell, []).append(shard.index)
        return {cell: tuple(indices) for cell, indices in sorted(members.items(), key=_cell_key)}

    def bundles(self, cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
        """Divide cells among tasks that fit them: small cells of a large number share one.

        What a task holds changes no number. Neighbours in the order of shards go together, so that
        a shard's result is opened by few tasks.

        Parameters
        ----------
        cells : sequence of Cell
            Cells of a few shards each.
        """
        most = min(len(cells) // _BUNDLES_PER_STAGE, _CELLS_PER_BUNDLE)
        if most < 2:
            yield from ([cell] for cell in cells)
            return
        members = self.cells
        bundle: list[Cell] = []
        n_bytes = 0
        for cell in sorted(cells, key=members.__getitem__):
            needed = sum(self.calibration.stored_bytes(cell, self.shards))
            if bundle and (len(bundle) == most or n_bytes + needed > _BYTES_PER_BUNDLE):
                yield bundle
                bundle, n_bytes = [], 0
            bundle.append(cell)
            n_bytes += needed
        yield bundle

    @property
    def inputs(self) -> tuple[InputRef, ...]:
        """All inputs, each once, in plan order."""
        return tuple({ref: None for shard in self.shards for ref in shard.inputs})

    @property
    def n_bytes(self) -> int:
        """Bytes to be read."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def n_merges(self) -> int:
        """Merges of one stage whose results are stored: those of a few shards are in the fit."""
        return sum(
            sum(1 for _ in merge_tree(len(members), self.fan_in))
            for members in self.cells.values()
            if len(members) > self.fan_in
        )

    def estimate(self, workers: int) -> Estimate:
        """Estimate what a stage costs beside its own work, from what was measured of others."""
        waves = {(1, "map"): [shard.n_bytes for shard in self.shards]}  # done at once: bytes read
        cells = self.cells
        few = [cell for cell, members in cells.items() if len(members) <= self.fan_in]
        waves[2, "fit"] = [0 for _ in self.bundles(few)]
        for cell in cells.keys() - few:
            level = 0
            for node in merge_tree(len(cells[cell]), self.fan_in):
                level = node.level
                waves.setdefault((level + 1, "merge"), []).append(0)
            waves.setdefault((level + 2, "fit"), []).append(0)
        tasks = sum(len(wave) for wave in waves.values())
        calls = sum(1 for wave in waves.values() for _ in batch_sizes(wave, workers))
        return Estimate(
            tasks=tasks,
            calls=calls,
            results=tasks,
            result_bytes=self._stored_bytes(tasks),
            metadata=tasks * METADATA_PER_RESULT + len(self.inputs) * METADATA_PER_INPUT,
            driver_seconds=tasks * DRIVER_SECONDS_PER_TASK + calls * DRIVER_SECONDS_PER_CALL,
            driver_bytes=DRIVER_BYTES + len(self.shards) * DRIVER_BYTES_PER_SHARD,
        )

    def _stored_bytes(self, tasks: int) -> int:
        """Estimate what all stages leave in the store, where nothing is selected away."""
        total = tasks * BYTES_PER_RESULT + sum(shard.stored_bytes for shard in self.shards)
        for cell, members in self.cells.items():
            merged, state = self.calibration.stored_bytes(cell, self.shards)
            total += state
            if len(members) > self.fan_in:
                total += sum(1 for _ in merge_tree(len(members), self.fan_in)) * merged
        # Later stages sum up less than the first, with as many files.
        again = self.calibration.usual_stages - 1
        return total + again * tasks * (BYTES_PER_RESULT + self.calibration.small_bytes)

    @property
    def digest(self) -> str:
        """Name of the work: the same for the same data, options and version, wherever it lies."""
        return digest_json(
            {
                "schema": SCHEMA,
                "job": self.job,
                "version": self.calibration.version,
                "map": self._map_config,
                "fit": self.calibration.fit_config(),
                "fan_in": self.fan_in,
                "shards": [_shard_identity(shard) for shard in self.shards],
            }
        )

    def address(self, stage: int, shard: Shard, given: Mapping[Cell, str]) -> str:
        """Return the address of a shard's result.

        Parameters
        ----------
        stage : int
            The stage.
        shard : Shard
            The shard.
        given : mapping of Cell to str
            Digests of the states that the stage builds on; only those of the shard's own cells
            count, so that one cell's second pass does not repeat another's.
        """
        return digest_json(
            {
                "schema": SCHEMA,
                "what": "map",
                "job": (stage == 0 and self.calibration.map_name) or self.job,
                "version": self.calibration.version,
                "stage": stage,
                "map": self._map_config,
                "shard": _shard_identity(shard),
                "given": [[list(cell), given[cell]] for cell in shard.cells if cell in given],
            }
        )

    def to_json(self) -> str:
        """Write the plan for people and other programs."""
        return canonical_json(
            {
                "digest": self.digest,
                "job": self.job,
                "version": self.calibration.version,
                "map": self._map_config,
                "fit": self.calibration.fit_config(),
                "fan_in": self.fan_in,
                "peak_bytes": self.peak_bytes,
                "shards": [
                    {**dataclasses.asdict(shard), "address": self.address(0, shard, {})}
                    for shard in self.shards
                ],
                "rejected": [dataclasses.asdict(failure) for failure in self.rejected],
                "skipped": self.skipped,
                "warnings": self.warnings,
            }
        )

    def __str__(self) -> str:
        """Describe in a few lines what will be done."""
        return "\n".join(f"{name:<12} {value}" for name, value in self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """Return the plan's main numbers with their names, for printing."""
        facts = [
            ("job", f"{self.job} (version {self.calibration.version})"),
            ("inputs", f"{len(self.inputs)} files, {format_bytes(self.n_bytes)} to read"),
            ("shards", str(len(self.shards))),
            ("cells", str(len(self.cells))),
            ("merges", f"{self.n_merges} a stage, {self.fan_in} at a time"),
            *self._costs(),
            ("digest", self.digest),
        ]
        facts += [("rejected", failure.describe()) for failure in self.rejected]
        facts += [("skipped", f"{where}: {reason}") for where, reason in self.skipped_alike()]
        facts += [("warning", warning) for warning in self.warnings]
        return facts

    def skipped_alike(self) -> list[tuple[str, str]]:
        """Return what was skipped and why for people: files of one reason together."""
        alike: dict[str, list[str]] = {}
        for path, reason in self.skipped:
            alike.setdefault(reason.removeprefix(f"{path}: "), []).append(path)
        return [
            (
                printable(
                    paths[0]
                    if len(paths) == 1
                    else f"{len(paths)} files below"
                    f" {os.path.commonpath(map(os.path.dirname, paths))}",
                    one_line=True,
                ),
                reason,
            )
            for reason, paths in alike.items()
        ]

    def skipped_text(self) -> str:
        """Describe in one line that files were skipped."""
        alike = self.skipped_alike()
        if len(alike) == 1:
            where, reason = alike[0]
            return f"{where} left out: {reason}"
        return (
            f"{len(self.skipped)} of {len(self.skipped) + len(self.inputs)} files are not for"
            f" {self.job}: calibdask plan lists them"
        )

    def _costs(self) -> list[tuple[str, str]]:
        few, many = (self.estimate(workers) for workers in _FEW_AND_MANY)
        memory = f"{format_bytes(self.peak_bytes)} for the largest shard, about"
        memory += f" {format_bytes(few.driver_bytes)} for the driver"
        store = f"{few.results} files a stage, about {format_bytes(few.result_bytes)} in all"
        metadata = f"about {few.metadata} operations a stage (stat, open, mkdir, link, unlink)"
        calls = [
            f"with {workers} workers {cost.calls} calls, {cost.driver_seconds:.1f} s of the driver"
            for cost, workers in zip((few, many), _FEW_AND_MANY, strict=True)
        ]
        tasks = f"{few.tasks} a stage: {'; '.join(calls)}"
        return [("memory", memory), ("store", store), ("metadata", metadata), ("tasks", tasks)]

    def _repr_html_(self) -> str:
        return facts_html(self.facts())


def _cell_key(item: tuple[Cell, Any]) -> list[tuple[bool, str | int]]:
    # Numbers before names, so that cells of mixed types still have an order.
    return [(isinstance(part, str), part) for part in item[0]]


def _shard_identity(shard: Shard) -> list[Any]:
    return [
        [ref.identity for ref in shard.inputs],
        [list(entry) for entry in shard.part],
        [list(cell) for cell in shard.cells],
    ]


_NAMED_ALIKE = "copy it again if it should be one of them, else give it another name or place"


def _alike(paths: Sequence[str]) -> Callable[[str], bool]:
    """Return what tells of a path whether two or more of these differ from it in one number alone.

    What such a file holds cannot tell a damaged input from a file of another kind.
    """

    def pattern(path: str) -> tuple[str, str]:
        folder, name = os.path.split(path)
        stem, dot, suffix = name.rpartition(".")
        return folder, re.sub(r"\d+(?=\D*$)", "#", stem, count=1) + dot + suffix

    counts = Counter(map(pattern, paths))
    return lambda path: "#" in pattern(path)[1] and counts[pattern(path)] > 1


def _survey_all(
    calibration: AnyCalibration,
    found: Sequence[Found],
    identities: Identities,
    look: Guard,
    progress: Callable[[int, int], None],
) -> tuple[list[Survey], list[Failure], list[tuple[str, str]]]:
    surveys: list[Survey] = []
    rejected: list[Failure] = []
    skipped: list[tuple[str, str]] = []
    seen: dict[str, list[tuple[str, Path]]] = {}
    for number, one in enumerate(found):
        progress(number, len(found))
        try:
            ref = identities.of(one.path)
            survey: Survey = look("survey", ref)
            # One of two copies may have been hashed in full and the other not.
            alike = seen.setdefault(":".join(ref.identity.split(":")[:2]), [])
            copies = [
                path
                for identity, path in (alike if ref.size else ())
                if identity.startswith(ref.identity) or ref.identity.startswith(identity)
            ]
            alike.append((ref.identity, one.path))
            if copies and look("repeats", survey):
                named = replace(survey.source, identity=f"{ref.identity}#{len(copies) + 1}")
                survey = replace(survey, source=named)
            elif copies and calibration.rejects_copies:
                first = printable(str(copies[0]), one_line=True)
                raise CorruptedInput(f"{one.path}: holds the same data as {first}, which is used")
            elif copies:
                names = [printable(str(path), one_line=True) for path in (copies[0], one.path)]
                raise ConfigError(  # noqa: TRY301  the only error that is not this file's alone
                    f"the same data twice: {names[0]} and {names[1]} have the same content, and"
                    " counting events twice would make the errors too small; leave one of them out"
                )
            surveys.append(survey)
        except ConfigError:
            raise
        except WrongKind as error:
            if one.named:
                rejected.append(Failure.of(error, str(one.path)))
            else:
                skipped.append((str(one.path), str(error)))
        except Crashed as crash:
            where = str(one.path)
            rejected.append(Failure.of(unreadable(where, crash), where))
        except Unforeseen as bug:
            # A bug in the look at one input, or damage that nobody foresaw, costs that input.
            rejected.append(Failure(str(one.path), bug.kind, str(bug), 1, bug.trace))
        except CalibdaskError as error:
            rejected.append(Failure.of(error, str(one.path)))
    progress(len(found), len(found))
    return surveys, rejected, skipped


def _pieces(
    calibration: AnyCalibration, surveys: Sequence[Survey], rejected: list[Failure]
) -> list[Piece]:
    """Cut the inputs into shards, in a child process, as that may open them again."""
    with Guard(
        lambda *places: list(calibration.pieces([surveys[place] for place in places]))
    ) as cut:
        good = list(range(len(surveys)))
        for _ in range(2):
            try:
                pieces: list[Piece] = cut(*good)
            except Crashed as crash:
                bad = []
                for place in good:
                    try:
                        cut(place)
                    except Crashed as own:
                        bad.append(place)
                        path = surveys[place].source.path
                        rejected.append(Failure.of(unreadable(path, own), path))
                if not bad:
                    raise CalibdaskError(f"cutting the inputs into shards was {crash}") from None
                good = [place for place in good if place not in bad]
            else:
                return pieces
    raise CalibdaskError("cutting the inputs into shards crashed again without the damaged ones")


def _many_cells(calibration: AnyCalibration, shards: Sequence[Shard]) -> Iterator[str]:
    """Warn of more cells than a campaign is likely to be meant to have."""
    n_cells = len({cell for shard in shards for cell in shard.cells})
    if n_cells > _MANY_CELLS:
        wider = "; a longer Campaign.time_bin makes fewer" if calibration.bins_time else ""
        yield f"there are {n_cells} cells, each with a fit of its own{wider}"


def make_plan(
    calibration: AnyCalibration,
    inputs: Sequence[str | os.PathLike[str]],
    *,
    fan_in: int = 16,
    worker_memory: int | None = None,
    workdir: Path | None = None,
    verify_full: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Look at all inputs' metadata and plan the run.

    Parameters
    ----------
    calibration : Calibration
        What to do.
    inputs : sequence of path-like
        Files, globs, directories, or ``@list.txt``.
    fan_in : int
        How many results one merge takes.
    worker_memory : int, optional
        Bytes a worker may use; a plan that needs more is refused.
    workdir : Path, optional
        Where earlier runs left their memory of the inputs' identities.
    verify_full : bool
        Hash the inputs in full.
    progress : callable
        Told how many inputs of how many have been looked at.

    Raises
    ------
    ConfigError
        The inputs contradict each other, the same data came twice, or a shard needs more memory
        than a worker has.
    CalibdaskError
        No input can be used: the error of the first.
    NotEnoughData
        The inputs hold nothing to read.
    """
    found = find_inputs([os.fspath(one) for one in inputs], calibration.patterns)
    memory = None if workdir is None else workdir / "inputs.json"
    identities = Identities(memory, full=verify_full)

    def prepare() -> None:
        for name in calibration.libraries([one.path for one in found]):
            import_module(name)

    with Guard(lambda method, one: getattr(calibration, method)(one), prepare=prepare) as look:
        surveys, rejected, skipped = _survey_all(calibration, found, identities, look, progress)
    like_used = _alike([survey.source.path for survey in surveys])
    for path, reason in [one for one in skipped if like_used(one[0])]:
        skipped.remove((path, reason))
        alike = MissingInput(f"{reason}; it is named like inputs that are used: {_NAMED_ALIKE}")
        rejected.append(Failure.of(alike, path))
    misfits = calibration.misfits(surveys) if surveys else {}
    for place, error in sorted(misfits.items()):
        path = surveys[place].source.path
        if isinstance(error, WrongKind):
            skipped.append((path, str(error)))
        else:
            rejected.append(Failure.of(error, path))
    surveys = [survey for place, survey in enumerate(surveys) if place not in misfits]
    if not surveys:
        if rejected:
            raise rejected[0].error(
                f" (none of the {len(found)} inputs can be used)" if len(found) > 1 else ""
            )
        path, reason = skipped[0]
        raise WrongKind(
            f"{reason} ({len(skipped)} files were looked at, none is an input of"
            f" {calibration.name}, e.g. {path})"
        )
    calibration = calibration.planned(surveys)
    pieces = sorted(
        _pieces(calibration, surveys, rejected),
        key=lambda piece: (piece.order, [ref.identity for ref in piece.inputs], piece.part),
    )
    shards = tuple(
        Shard(
            index,
            piece.inputs,
            piece.part,
            piece.cells,
            piece.n_bytes,
            piece.peak_bytes,
            piece.stored_bytes,
        )
        for index, piece in enumerate(pieces)
    )
    if not shards:
        raise NotEnoughData(
            f"{calibration.name}: the {len(surveys)} inputs that can be used hold nothing to read"
        )
    peaks = [shard.peak_bytes or 3 * shard.n_bytes for shard in shards]
    peak = max(peaks)
    if worker_memory is not None and peak > worker_memory:
        shard = shards[peaks.index(peak)]
        raise ConfigError(
            f"shard {shard.label} needs about {format_bytes(peak)} but a worker has"
            f" {format_bytes(worker_memory)}: lower Campaign.shard_bytes, use fewer workers, or"
            " give each more memory (Campaign.worker_memory)"
        )
    identities.save()
    return Plan(
        calibration,
        shards,
        rejected=tuple(rejected),
        skipped=tuple(skipped),
        fan_in=fan_in,
        peak_bytes=peak,
        warnings=(*calibration.warnings(), *_many_cells(calibration, shards)),
    )
