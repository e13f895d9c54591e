"""One self-contained HTML page per run: failures first, then results, then how to repeat it.

A page needs no network and runs no script: style and figures are inside it, and its content
security policy forbids everything else. All text is escaped, since file names and error messages
come from outside. Equal arguments give equal bytes.

A domain describes its part as `Section` objects made of `Paragraph`, `Notice`, `TableBlock` and
`FigureBlock`; it never writes HTML. Figures come from `draw_figure`.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from calibdask.errors import ConfigError
from calibdask.flags import Severity, has, present, worst
from calibdask.rounding import NO_VALUE, format_number, round_to_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from astropy.table import QTable
    from jinja2 import Template
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from calibdask.schema import TableSchema

__all__ = [
    "PALETTE",
    "FailureRecord",
    "FigureBlock",
    "InputRecord",
    "Notice",
    "Paragraph",
    "RunRecord",
    "Section",
    "TableBlock",
    "draw_figure",
    "flag_notices",
    "name_telescopes",
    "render_report",
    "table_block",
    "write_report",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008), strongest first."""

FIGURE_SPACE = "\N{FIGURE SPACE}"
PUNCTUATION_SPACE = "\N{PUNCTUATION SPACE}"

# Control characters, invisible ones, those that reverse the direction of text, and the lone
# surrogates of file names that are not UTF-8: shown as escapes, so that a name cannot hide.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence that must not be overlooked.

    Attributes
    ----------
    level : {"error", "warning", "info"}
        "error" and "warning" also count in the verdict at the top of the page.
    text : str
        What was found, where, and what to do about it.
    """

    kind: ClassVar[str] = "notice"
    level: Literal["error", "warning", "info"]
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class TableBlock:
    """A table, given by columns.

    Attributes
    ----------
    columns : mapping of str to array_like, shape (n_rows,)
        Heading (with its unit) to values. NaN is shown as a dash, a bool as yes or no.
    caption : str
        What the table holds.
    formats : mapping of str to str
        Heading to format specification, as in "{:.3f}" without the "{:}". Columns without one
        are shown with four significant digits.
    error_of : mapping of str to str
        Heading of a value to the heading of its error: both are rounded to the same decimals,
        those of two significant digits of the error.
    marked : array_like of bool, shape (n_rows,), optional
        Rows to set off from the others.

    Raises
    ------
    ValueError
        Columns of different lengths, or a heading in `formats` or `error_of` that is no column.
    """

    kind: ClassVar[str] = "table"
    columns: Mapping[str, ArrayLike]
    caption: str
    formats: Mapping[str, str] = field(default_factory=dict)
    error_of: Mapping[str, str] = field(default_factory=dict)
    marked: ArrayLike = ()

    def __post_init__(self) -> None:
        lengths = {name: len(np.asarray(values)) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"table {self.caption!r}: columns of different lengths {lengths}")
        unknown = {*self.formats, *self.error_of, *self.error_of.values()} - set(self.columns)
        if unknown:
            raise ValueError(f"table {self.caption!r}: no columns {sorted(unknown)}")
        n_marked = len(np.asarray(self.marked))
        if n_marked and {n_marked} != set(lengths.values()):
            raise ValueError(f"table {self.caption!r}: {n_marked} marks for columns {lengths}")

    @property
    def numeric(self) -> list[bool]:
        """Which columns are numbers, and so stand on the right."""
        return [np.asarray(values).dtype.kind in "iuf" for values in self.columns.values()]

    def rows(self) -> list[tuple[bool, tuple[str, ...]]]:
        """Each row as (marked, cells), the cells as they are shown."""
        shown = {
            name: _format_column(np.asarray(values), self.formats.get(name))
            for name, values in self.columns.items()
        }
        for error_name in sorted(set(self.error_of.values())):
            errors = np.asarray(self.columns[error_name], dtype=float)
            for value_name in [name for name, of in self.error_of.items() if of == error_name]:
                values = np.asarray(self.columns[value_name], dtype=float)
                pairs = [round_to_error(*pair) for pair in zip(values, errors, strict=True)]
                shown[value_name] = _align([value for value, _ in pairs])
                shown[error_name] = _align([error for _, error in pairs])
        cells = list(zip(*shown.values(), strict=True))
        marked = np.asarray(self.marked, dtype=bool)
        return list(zip(marked.tolist() or [False] * len(cells), cells, strict=True))


def table_block(
    schema: TableSchema,
    table: QTable | Mapping[str, ArrayLike],
    names: Sequence[str],
    caption: str,
    *,
    derived: Mapping[str, ArrayLike] | None = None,
    formats: Mapping[str, str] | None = None,
    error_of: Mapping[str, str] | None = None,
    marked: ArrayLike | None = None,
) -> TableBlock:
    """Show columns of a result table under the headings and with the formats of its schema.

    Parameters
    ----------
    schema : TableSchema
        Of the table.
    table : QTable or mapping of str to array_like
        The table, or rows of it.
    names : sequence of str
        Columns to show, in their order.
    caption : str
        As in `TableBlock`.
    derived : mapping of str to array_like, optional
        More columns by their headings; `names` says where they stand.
    formats, error_of : mapping of str to str, optional
        Of derived columns, as in `TableBlock`; those of others the schema knows.
    marked : array_like of bool, optional
        Rows to set off. Those with flags that restrict their use unless given, if the flags are
        shown.
    """
    derived = derived or {}
    declared = {name: schema.by_name[name] for name in names if name not in derived}
    if marked is None and "flags" in declared:
        marked = worst(schema.shown(table, "flags")) > Severity.NOTE
        caption += " Marked: flags that restrict the use."
    return TableBlock(
        columns={
            declared[name].title if name in declared else name: (
                schema.shown(table, name) if name in declared else derived[name]
            )
            for name in names
        },
        caption=caption,
        formats={one.title: one.format for one in declared.values() if one.format}
        | dict(formats or {}),
        error_of={
            one.title: declared[one.error].title
            for one in declared.values()
            if one.error in declared
        }
        | dict(error_of or {}),
        marked=() if marked is None else marked,
    )


def name_telescopes(tel_id: NDArray[np.integer], limit: int = 12) -> str:
    """Write out telescope numbers, the first `limit` of them."""
    names = ", ".join(map(str, tel_id[:limit].tolist()))
    rest = len(tel_id) - limit
    noun = "Telescope" if len(tel_id) == 1 else "Telescopes"
    return f"{noun} {names}" + (f" and {rest} more" if rest > 0 else "")


def flag_notices(tel_id: NDArray[np.integer], flags: NDArray[np.str_]) -> list[Notice]:
    """Say which telescopes have which flag, the most severe first.

    Parameters
    ----------
    tel_id : ndarray of int, shape (N,)
        Telescope of each row; several rows may be of one.
    flags : ndarray of str, shape (N,)
        Flags of each row.
    """
    return [
        Notice(
            "info" if flag.severity == Severity.NOTE else "warning",
            f"{name_telescopes(np.unique(tel_id[has(flags, flag)]))} ({flag.letter}):"
            f" {flag.meaning}.",
        )
        for flag in present(flags)
    ]


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A figure.

    Attributes
    ----------
    image : str or bytes
        SVG as text, or PNG as bytes.
    alt : str
        What the figure shows, for a reader who cannot see it.
    caption : str
        How to read it.

    Raises
    ------
    ValueError
        No alternative text, or bytes that are not PNG.
    """

    kind: ClassVar[str] = "figure"
    image: str | bytes
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError(f"figure {self.caption!r} needs an alternative text")
        if isinstance(self.image, bytes) and not self.image.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"figure {self.caption!r}: the bytes are not a PNG image")

    @property
    def source(self) -> str:
        """The image as a data URI."""
        # An <img> rather than inline <svg>: the identifiers inside several SVGs would collide.
        if isinstance(self.image, bytes):
            return "data:image/png;base64," + base64.b64encode(self.image).decode()
        return "data:image/svg+xml;base64," + base64.b64encode(self.image.encode()).decode()


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Paragraph | Notice | TableBlock | FigureBlock]


@dataclass(frozen=True, slots=True)
class InputRecord:
    """An input file, and what became of it.

    Attributes
    ----------
    path : str
        As given by the user.
    size_bytes : int
        Size when it was planned.
    n_shards : int
        Number of shards that read it.
    status : str
        "done" when all is well; any other word is set off and listed first.
    """

    path: str
    size_bytes: int
    n_shards: int
    status: str


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Something that failed.

    Attributes
    ----------
    shard : int or None
        Index in the plan; None when it was not a shard (a merge, the fit, writing).
    path : str
        The input, or empty.
    exit_code : int
        As in `calibdask.errors`.
    message : str
        The error message in full.
    """

    shard: int | None
    path: str
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What ran, on what, and how it went.

    Attributes
    ----------
    job, version : str
        Name of the job and version of calibdask.
    command : str
        The command line that repeats the run.
    plan_digest : str
        Digest of the plan.
    result_digest : str or None
        Digest of the result; None when no result was written.
    started, finished : str
        Times as text (ISO 8601, UTC).
    host, executor : str
        Where the run was started, and what computed the shards.
    workers : int
        Number of workers.
    n_shards, n_computed, n_reused : int
        Shards in the plan, computed by this run, and found finished in the store.
    inputs : sequence of InputRecord
        The inputs, in plan order.
    cut_flow : mapping of str to int
        Name of each selection step, in order, to the number of rows left after it.
    failures : sequence of FailureRecord
        In plan order: the first one gives the run its exit code.
    warnings : sequence of str
        Warnings of the run.
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


def draw_figure(
    paint: Callable[[Figure], None],
    *,
    size_in: tuple[float, float],
    margins_in: tuple[float, float, float, float] = (0.8, 0.15, 0.55, 0.65),
    alt: str,
    caption: str,
) -> FigureBlock:
    """Draw a figure as SVG that depends on nothing but what is painted.

    Parameters
    ----------
    paint : callable
        Takes an empty `matplotlib.figure.Figure` and draws on it.
    size_in : tuple of float
        Width and height in inches.
    margins_in : tuple of float
        Room around the axes in inches: left, right, below and above. It must hold the labels, the
        titles and a legend of the figure.
    alt, caption : str
        As in `FigureBlock`.

    Returns
    -------
    FigureBlock
        The figure as SVG, without date or random identifiers.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    # pyplot is left alone: it is slow to import, and keeps every figure alive.
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the page
        mpl.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.edgecolor": "#666666",
                "axes.grid": True,
                "axes.linewidth": 0.8,
                "axes.prop_cycle": cycler(color=PALETTE),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlelocation": "left",
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "font.size": 9,
                "grid.color": "#e4e4e4",
                "grid.linewidth": 0.6,
                "legend.fontsize": 8,
                "legend.frameon": False,
                "svg.hashsalt": "calibdask",
            }
        )
        # Stated margins: a layout engine draws every figure several times to find them.
        (width, height), (left, right, below, above) = size_in, margins_in
        figure = Figure(figsize=size_in, facecolor="white")
        figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=below / height,
            top=1 - above / height,
        )
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return FigureBlock(image=buffer.getvalue(), alt=alt, caption=caption)


def render_report(title: str, run: RunRecord, sections: Sequence[Section]) -> str:
    """Render the page.

    Parameters
    ----------
    title : str
        Title of the page.
    run : RunRecord
        What ran, and how it went.
    sections : sequence of Section
        The domain's part, in order.

    Returns
    -------
    str
        A complete HTML document without references to anything outside it.
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


def write_report(path: Path | str, title: str, run: RunRecord, sections: Sequence[Section]) -> None:
    """Render the page into a file, which appears whole or not at all.

    Parameters
    ----------
    path : Path or str
        File to write; an existing one is replaced.
    title, run, sections
        As in `render_report`.

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


def _format_column(values: NDArray[np.generic], spec: str | None) -> list[str]:
    """Format one column by its type."""
    if values.dtype.kind == "b":
        return ["yes" if value else "no" for value in values.tolist()]
    if values.dtype.kind == "f":
        return [format_number(value, spec or ".4g") for value in values.tolist()]
    return [format(value, spec or "") for value in values.tolist()]


def _align(numbers: list[str]) -> list[str]:
    """Pad with spaces as wide as digits, so that decimal points stand under each other."""
    fractions = [number.partition(".")[2] for number in numbers]
    width = max(map(len, fractions), default=0)
    return [
        number
        + ("" if fraction or not width else PUNCTUATION_SPACE)
        + FIGURE_SPACE * (width - len(fraction))
        for number, fraction in zip(numbers, fractions, strict=True)
    ]


def _format_duration(seconds: float) -> str:
    if math.isnan(seconds):
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _format_bytes(n_bytes: float | None) -> str:
    if n_bytes is None:
        return NO_VALUE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} TiB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _verdict(run: RunRecord, sections: Sequence[Section]) -> tuple[str, str]:
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
    n_points = sum(level != "info" for level in levels)
    found = []
    if n_points:
        found.append(
            f"{_count(n_points, 'point')} {'needs' if n_points == 1 else 'need'} attention"
        )
    if run.warnings:
        found.append(f"{_count(len(run.warnings), 'warning')} of the run")
    if found:
        return "error" if "error" in levels else "warning", f"Finished; {', '.join(found)}"
    return "good", "Finished: every shard is accounted for"


def _facts(run: RunRecord) -> dict[str, str]:
    """Key figures of the run, as shown under the title."""
    size_bytes = sum(record.size_bytes for record in run.inputs)
    return {
        "Inputs": f"{_count(len(run.inputs), 'file')}, {_format_bytes(size_bytes)}",
        "Shards": f"{run.n_computed:,} computed, {run.n_reused:,} reused, {run.n_failed:,} failed",
        "Elapsed": _format_duration(run.wall_s),
        "Processor time": _format_duration(run.cpu_s),
        "Peak memory": _format_bytes(run.peak_memory_bytes),
        "Computed by": f"{run.executor}, {_count(run.workers, 'worker')}",
    }


def _failure_table(run: RunRecord) -> TableBlock:
    failures = run.failures
    return TableBlock(
        columns={
            "Shard": [NO_VALUE if f.shard is None else str(f.shard) for f in failures],
            "File": [f.path or NO_VALUE for f in failures],
            "Exit code": np.array([f.exit_code for f in failures], dtype=np.int64),
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
            "Size": [_format_bytes(record.size_bytes) for record in records],
            "Shards": np.array([record.n_shards for record in records], dtype=np.int64),
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
