"""Calibrations that fail by script, counted in files, and a command line that knows them.

A script names, for each input file, what happens at its first, second, ... reading, e.g.
``{"b.npy": ["raise TransientError", "ok"]}``. After the last word of a script all is well, unless
the word ends in ``!``, which means for ever. ``*`` stands for every file that has no script of its
own. Calls are counted in files, so that worker processes count together and a kill loses nothing.
"""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from astropy.table import QTable
from tiny import MeanCounts, Sums

from calibdask import api, errors
from calibdask.config import JobSection, option
from calibdask.engine import store
from calibdask.engine.protocol import ALL, Calibration, Piece, Reduced, Survey, Tables, Values
from calibdask.errors import NotEnoughData
from calibdask.registry import Job

TESTS = Path(__file__).parent

Script = Mapping[str, Sequence[str]]


def write_inputs(directory: Path, count: int, *, first: int = 0, size: int = 40) -> list[Path]:
    """Write arrays of floats whose sum depends on the order of adding."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(first, first + count):
        random = np.random.default_rng([7, number])
        path = directory / f"{number:03d}.npy"
        np.save(path, random.normal(size=size) * 10.0 ** random.uniform(-6, 6, size))
        paths.append(path)
    return paths


# -- scripts ------------------------------------------------------------------------------------


def count(journal: str, what: str) -> int:
    """Count one more call and say how many there were before (none where there is no journal)."""
    if not journal:
        return 0
    Path(journal).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(Path(journal) / what, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        before = os.fstat(descriptor).st_size
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)
    return before


def calls(journal: Path | str) -> Counter[str]:
    """Return the number of calls of each kind."""
    if not Path(journal).exists():
        return Counter()
    return Counter({one.name: one.stat().st_size for one in Path(journal).iterdir()})


def perform(script: Script, name: str, calls_before: int) -> None:
    """Do what the script says for this call."""
    words = script.get(name, script.get("*", ()))
    if not words:
        return
    if calls_before < len(words):
        word = words[calls_before]
    elif words[-1].endswith("!"):
        word = words[-1]
    else:
        return
    verb, _, rest = word.rstrip("!").partition(" ")
    match verb:
        case "ok":
            pass
        case "sleep":
            time.sleep(float(rest))
        case "take":
            _take_ticket(Path(rest))
        case "wait":
            while not Path(rest).exists():
                time.sleep(0.02)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat":
            eaten = np.ones(int(float(rest)) // 8)
            time.sleep(5 + eaten[-1])
        case "raise":
            kind = getattr(errors, rest, None) or getattr(builtins, rest)
            raise kind(f"{name}: scripted {rest}")
        case _:
            raise AssertionError(f"no such word in a script: {word}")


def _take_ticket(directory: Path) -> None:
    """Wait for a file in a directory and take it, or go on where there is one called ``open``."""
    while not (directory / "open").exists():
        for ticket in directory.glob("ticket-*"):
            with suppress(FileNotFoundError):
                ticket.unlink()
                return
        time.sleep(0.02)


def _break_the_store(journal: str) -> None:
    """Let the store fail from the k-th shard on, where ``CALIBDASK_TEST_STORE_ERRNO=errno:k``."""
    number, _, first = os.environ.get("CALIBDASK_TEST_STORE_ERRNO", "").partition(":")
    if number and sum(calls(journal).values()) >= int(first):

        def fail(*_args: object, **_options: object) -> None:
            raise OSError(int(number), os.strerror(int(number)))

        store._write = fail


# -- calibrations -------------------------------------------------------------------------------


class ScriptedOptions(JobSection):
    """Options of the scripted job."""

    journal: str = option("", stage="run")
    script: dict[str, Any] = option({}, stage="run")
    scale: float = option(1.0, stage="fit")
    offset: float = option(0.0, stage="map")


@dataclass(frozen=True)
class Scripted(MeanCounts):
    """The mean of floats; reading follows a script, and the fit has an option of its own."""

    journal: str = ""
    script: Script = field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0

    name = "scripted"
    sections: ClassVar = {"Scripted": ScriptedOptions}

    @classmethod
    def configured(cls, document, campaign):
        options = document.get("Scripted", ScriptedOptions)
        return cls(options.journal, options.script, options.scale, options.offset)

    def map_config(self):
        return {"offset": self.offset}

    def fit_config(self):
        return {"scale": self.scale}

    def read(self, shard):
        name = Path(shard.inputs[0].path).name
        perform(self.script, name, count(self.journal, name))
        _break_the_store(self.journal)
        return super().read(shard) + self.offset

    def fit(self, stage, cell, total, given):
        count(self.journal, "fit")
        values = super().fit(stage, cell, total, given)
        return Values({name: value * self.scale for name, value in values.arrays.items()})


@dataclass(frozen=True)
class Keyed(Calibration):
    """The sum of the events in files of (observation, event, value), each event counted once."""

    name = "keyed"
    patterns = ("*.npy",)
    summary = Sums

    def read(self, shard):
        return np.load(shard.inputs[0].path)

    def reduce(self, shard, data):
        good = data[data[:, 2] > 0]
        sums = {"n": np.array(len(good)), "s1": good[:, 2].sum()}
        flow = {"events": len(data), "positive": len(good)}
        return Reduced({ALL: Sums(sums)}, cut_flow=flow, keys=data[:, :2].astype(np.int64))

    def fit(self, stage, cell, total, given):
        return Values({name: np.atleast_1d(value) for name, value in total.arrays.items()})

    def outputs(self, states):
        return [Tables({"/sum": QTable(dict(states[ALL].arrays))})]


@dataclass(frozen=True)
class Extremes(Sums):
    """Sums with the smallest and the largest value."""

    def merge(self, other):
        how = {"min": np.minimum, "max": np.maximum}
        return Extremes(
            {name: how.get(name, np.add)(one, other.arrays[name])
             for name, one in self.arrays.items()}
        )  # fmt: skip


@dataclass(frozen=True)
class Clip(Values):
    """Mean and scatter of one object's values; done when none lies outside the bounds."""

    @property
    def done(self):
        return bool(self.arrays["inside"])


@dataclass(frozen=True)
class ClippedMeans(Calibration):
    """Mean per object, clipped again and again until nothing is outside: one stage a clip.

    Files hold (object, value). Rows are kept at stage 0, so that files are read once.
    """

    journal: str = ""
    script: Script = field(default_factory=dict)
    n_sigma: float = 3.0
    n_min: int = 3

    name = "clipped-means"
    patterns = ("*.npy",)
    summary = Extremes
    state = Clip

    def survey(self, source):
        objects = np.unique(np.load(source.path)[:, 0].astype(int))
        return Survey(source, facts=tuple(int(one) for one in objects))

    def pieces(self, surveys):
        for survey in surveys:
            cells = tuple(("object", number) for number in survey.facts)
            yield Piece((survey.source,), cells=cells, n_bytes=survey.source.size)

    def fit_config(self):
        return {"n_sigma": self.n_sigma, "n_min": self.n_min}

    def read(self, shard):
        name = Path(shard.inputs[0].path).name
        perform(self.script, name, count(self.journal, f"read {name}"))
        return np.load(shard.inputs[0].path)

    def reduce(self, shard, data):
        summaries = {}
        for cell in shard.cells:
            summaries |= self._summary(cell, data[data[:, 0] == cell[1], 1])
        return Reduced(summaries, {"values": len(data)}, rows={"values": data})

    def refine(self, stage, shard, data, given):
        values = data["values"]
        name = Path(shard.inputs[0].path).name
        summaries = {}
        for cell in given:
            count(self.journal, f"stage {stage} {cell[1]} {name}")
            mine = values[values[:, 0] == cell[1], 1]
            bounds = given[cell].arrays
            inside = (mine >= bounds["low"]) & (mine <= bounds["high"])
            summaries |= self._summary(cell, mine[inside])
        return Reduced(summaries, {"values": len(values)})

    def _summary(self, cell, values):
        values = values[np.isfinite(values)]
        if not values.size:
            return {}
        sums = {"n": np.array(values.size), "s1": values.sum(), "s2": (values**2).sum(),
                "min": values.min(), "max": values.max()}  # fmt: skip
        return {cell: Extremes(sums)}

    def fit(self, stage, cell, total, given):
        name = f"fit {stage} {cell[1]}"
        perform(self.script, name, count(self.journal, name))
        n, s1, s2, low, high = (
            float(total.arrays[name]) for name in ("n", "s1", "s2", "min", "max")
        )
        if n < self.n_min:
            raise NotEnoughData(f"object {cell[1]}: {n:.0f} values, {self.n_min} are needed")
        mean = s1 / n
        sigma = np.sqrt(max(s2 / n - mean**2, 0))
        bounds = mean - self.n_sigma * sigma, mean + self.n_sigma * sigma
        inside = bounds[0] <= low and high <= bounds[1]
        return Clip(
            {"mean": np.array(mean), "n": np.array(n), "stage": np.array(stage),
             "low": np.array(bounds[0]), "high": np.array(bounds[1]), "inside": np.array(inside)}
        )  # fmt: skip

    def outputs(self, states):
        columns = {name: [float(state.arrays[name]) for state in states.values()]
                   for name in ("mean", "n", "stage")}  # fmt: skip
        table = QTable({"object": [cell[1] for cell in states], **columns})
        return [Tables({"/objects": table})]


def run(calibration: Calibration, inputs: Any, output: Path, **options: Any) -> api.RunResult:
    """Run in this process, without a report, unless told otherwise."""
    options = {"cluster": "serial", "report": False, "listener": lambda _: None, **options}
    return api.run(calibration, inputs, output, **options)


# -- a command line that knows them ---------------------------------------------------------------


SCRIPTED = Job("scripted", "Follows a script.", "faults:Scripted")


def command_line() -> None:
    """Be ``calibdask`` with one more job."""
    from calibdask import cli, registry

    registry.JOBS["scripted"] = SCRIPTED
    cli._add_job("scripted", "Follows a script.")
    cli.main()


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start that command line in a process of its own."""
    return _popen("import faults; faults.command_line()", *arguments, **options)


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with the tests' own modules at hand."""
    return _popen(code, *arguments)


def _popen(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        **options,
    )


def finish(process: subprocess.Popen[str], timeout: float = 500) -> tuple[int, str, str]:
    """Wait for a process; give its exit code, output and errors."""
    output, complaints = process.communicate(timeout=timeout)
    return process.returncode, output, complaints


def wait_for(condition, timeout: float = 400) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.02)
