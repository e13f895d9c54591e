"""One self-contained HTML page per run: failures first, then results, then how to repeat it.

A page needs no network and runs no script: style and figures are inside it, and its content
security policy forbids everything else. All text is escaped, since file names and error messages
come from outside. Equal arguments give equal bytes.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibdask.errors import ConfigError
from calibdask.report.blocks import Notice, ReportSection, TableBlock
from calibdask.rounding import NO_VALUE, format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Template

__all__ = ["FailureRecord", "InputRecord", "RunRecord", "render_report", "write_report"]

# Control characters, invisible ones, those that reverse the direction of text, and the lone
# surrogates of file names that are not UTF-8: shown as escapes, so that a name cannot hide.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True)
class InputRecord:
    """An input file, and what became of it.

    Its `status` is "done" when all is well; any other word is set off and listed first.
    """

    path: str
    size_bytes: int
    n_shards: int
    status: str


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Something that failed: a shard by its index, or None for a merge, the fit or writing."""

    shard: int | None
    path: str
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What ran, on what, and how it went.

    Attributes
    ----------
    command : str
        The command line that repeats the run.
    result_digest : str or None
        None when no result was written.
    started, finished : str
        ISO 8601, UTC.
    host, executor : str
        Where the run was started, and what computed the shards.
    n_shards, n_computed, n_reused : int
        Shards in the plan, computed by this run, and found finished in the store.
    inputs : sequence of InputRecord
        In plan order.
    cut_flow : mapping of str to int
        Name of each selection step, in order, to the number of rows left after it.
    failures : sequence of FailureRecord
        In plan order: the first one gives the run its exit code.
    wall_s, cpu_s : float
        Elapsed time, and processor time summed over workers; NaN when it was not measured.
    peak_memory_bytes : int or None
        Largest memory of one worker; None when it was not measured.
    """

    job: str
    version: str
    command: str
    plan_digest: str
    result_digest: str | None
    started: str
    finished: str
    host: str
    executor: str
    workers: int
    n_shards: int
    n_computed: int
    n_reused: int
    inputs: Sequence[InputRecord]
    cut_flow: Mapping[str, int]
    failures: Sequence[FailureRecord] = ()
    warnings: Sequence[str] = ()
    wall_s: float = math.nan
    cpu_s: float = math.nan
    peak_memory_bytes: int | None = None

    @property
    def n_failed(self) -> int:
        """Number of shards that failed."""
        return len({failure.shard for failure in self.failures} - {None})

    @property
    def n_missing(self) -> int:
        """Shards that neither finished nor failed: not zero when the run was stopped."""
        return self.n_shards - self.n_computed - self.n_reused - self.n_failed


def render_report(title: str, run: RunRecord, sections: Sequence[ReportSection]) -> str:
    """Return the page: a complete HTML document without references to anything outside it.

    Parameters
    ----------
    title : str
        Title of the page.
    run : RunRecord
        What ran, and how it went.
    sections : sequence of ReportSection
        The job's part, in order.
    """
    level, verdict = _verdict(run, sections)
    return _template().render(
        title=title,
        run=run,
        sections=sections,
        level=level,
        verdict=verdict,
        facts=_facts(run),
        failures=_failure_table(run),
        cut_flow=_cut_flow_rows(run.cut_flow),
        inputs=_input_table(run),
    )


def write_report(
    path: Path | str, title: str, run: RunRecord, sections: Sequence[ReportSection]
) -> None:
    """Render the page into a file, which appears whole or not at all.

    Other parameters are those of `render_report`; an existing file is replaced.

    Raises
    ------
    ConfigError
        The directory does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(
            f"cannot write the report {path}: there is no directory {path.parent}; create it first"
        )
    page = render_report(title, run, sections)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(page)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("calibdask"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_show_unprintable,
    )
    return environment.get_template("report.html.j2")


def _show_unprintable(value: object) -> object:
    """Replace what cannot be seen by its escape; leave everything else, markup included."""
    if type(value) is str:
        return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], value)
    return value


def _format_duration(seconds: float) -> str:
    if math.isnan(seconds):
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _verdict(run: RunRecord, sections: Sequence[ReportSection]) -> tuple[str, str]:
    """Sum up the run in a level and a sentence: the first thing a reader sees."""
    levels = [
        block.level for section in sections for block in section.blocks if isinstance(block, Notice)
    ]
    lost = []
    if run.failures and not run.n_failed:
        lost.append("not every step succeeded")
    if run.n_failed:
        lost.append(f"{run.n_failed:,} of {_count(run.n_shards, 'shard')} failed")
    if run.n_missing:
        lost.append(f"{run.n_missing:,} of {_count(run.n_shards, 'shard')} not computed")
    if run.result_digest is None:
        return "error", "No result: " + (", ".join(lost) or "none was written")
    if lost:
        return "warning", "Incomplete result: " + ", ".join(lost)
    # Two counts, as there are two places where a reader finds them.
    found = []
    if n_points := sum(level != "info" for level in levels):
        need = "needs" if n_points == 1 else "need"
        found.append(f"{_count(n_points, 'point')} {need} attention")
    if run.warnings:
        found.append(f"{_count(len(run.warnings), 'warning')} of the run")
    if found:
        return "error" if "error" in levels else "warning", f"Finished; {', '.join(found)}"
    return "good", "Finished: every shard is accounted for"


def _facts(run: RunRecord) -> dict[str, str]:
    """Key figures of the run, as shown under the title."""
    size_bytes = sum(record.size_bytes for record in run.inputs)
    return {
        "Inputs": f"{_count(len(run.inputs), 'file')}, {format_bytes(size_bytes)}",
        "Shards": f"{run.n_computed:,} computed, {run.n_reused:,} reused, {run.n_failed:,} failed",
        "Elapsed": _format_duration(run.wall_s),
        "Processor time": _format_duration(run.cpu_s),
        "Peak memory": NO_VALUE if (peak := run.peak_memory_bytes) is None else format_bytes(peak),
        "Computed by": f"{run.executor}, {_count(run.workers, 'worker')}",
    }


def _failure_table(run: RunRecord) -> TableBlock:
    failures = run.failures
    return TableBlock(
        columns={
            "Shard": [NO_VALUE if f.shard is None else str(f.shard) for f in failures],
            "File": [f.path or NO_VALUE for f in failures],
            "Exit code": np.array([f.exit_code for f in failures], np.int64),
            "Message": [f.message for f in failures],
        },
        caption="What failed, in plan order. The first one gives the run its exit code.",
        marked=[True] * len(failures),
    )


def _input_table(run: RunRecord) -> TableBlock:
    # Stable: within each group the order stays that of the plan.
    records = sorted(run.inputs, key=lambda record: record.status == "done")
    return TableBlock(
        columns={
            "File": [record.path for record in records],
            "Status": [record.status for record in records],
            "Size": [format_bytes(record.size_bytes) for record in records],
            "Shards": np.array([record.n_shards for record in records], np.int64),
        },
        caption="Input files: those with a problem first, then in plan order.",
        marked=[record.status != "done" for record in records],
    )


def _cut_flow_rows(cut_flow: Mapping[str, int]) -> list[tuple[str, str, str, str, float]]:
    """Name, count, fraction of the row above, fraction of the first, length of the bar."""
    rows = []
    counts = list(cut_flow.values())
    for name, count, previous in zip(cut_flow, counts, counts[:1] + counts, strict=False):
        of_previous = f"{count / previous:.1%}" if previous else NO_VALUE
        of_first = f"{count / counts[0]:.2%}" if counts[0] else NO_VALUE
        length = 100 * count / max(counts) if max(counts) else 0.0
        rows.append((name, f"{count:,}", of_previous, of_first, round(length, 2)))
    return rows
