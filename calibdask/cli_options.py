"""Options that several commands have, and how commands print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibdask.engine.sites.table import cluster_help
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "CONFIG_OPTIONS",
    "INPUT_OPTION",
    "PATH",
    "RUN_OPTIONS",
    "TIME_OPTIONS",
    "NumberRange",
    "say",
    "set_options",
    "with_options",
]

PATH = click.Path(path_type=Path)


class _WorkerRange(click.ParamType["int | tuple[int, int]"]):
    """``N`` or ``MIN:MAX``."""

    name = "workers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Read one or two numbers."""
        least, colon, most = str(value).partition(":")
        try:
            numbers = (int(least), int(most)) if colon else (int(least), int(least))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor MIN:MAX", param, ctx)
        if not (0 <= numbers[0] <= numbers[1] and numbers[1] >= 1):
            self.fail(f"{value!r}: MIN is at least 0, MAX at least 1 and MIN", param, ctx)
        return numbers if colon else numbers[0]


class NumberRange(click.FloatRange):
    """A number within limits; click takes NaN for one within any."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def set_options(
    values: Sequence[str], time_bin: str | None = None, epoch: str | None = None
) -> dict[str, object]:
    """Return the options that the command line sets, by ``SECTION.OPTION``."""
    given = {"Campaign.time_bin": time_bin, "Campaign.epoch": epoch}
    found: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if values:
        from calibdask.config import parse_yaml
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write SECTION.OPTION=VALUE")
        found[name.strip()] = parse_yaml(f"--set {text}", value)
    return found


CONFIG_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-c", "--config", "config", type=PATH, multiple=True, metavar="FILE",
        help="YAML configuration; give it several times to merge files, later ones win.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="SECTION.OPTION=VALUE",
        help="One option of the configuration; wins over all files.",
    ),
)  # fmt: skip

TIME_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--time-bin", metavar="WIDTH",
        help="Calibrate each bin of time by itself, e.g. '1 h': the same as Campaign.time_bin.",
    ),
    click.option(
        "--epoch", metavar="DATE",
        help="Where a time bin begins, in UTC: the same as Campaign.epoch.",
    ),
)  # fmt: skip

INPUT_OPTION = click.option(
    "-i", "--input", "inputs", multiple=True, metavar="INPUT",
    help="File, glob, directory, or @list.txt with one of these a line. Give it several times,"
    " or several inputs after it.",
)  # fmt: skip

RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-o", "--output", type=PATH, metavar="OUTPUT",
        help="The product. Report, provenance and a text table get its name with other endings.",
    ),
    click.option(
        "--cluster", default="auto", show_default=True, metavar="WHERE",
        help=f"{cluster_help()}, the address of a Dask scheduler (HOST:PORT), or its scheduler"
        " file. auto: serial or local, whichever is estimated to end first. The results"
        " are the same bit for bit.",
    ),
    click.option(
        "--workers", type=_WorkerRange(), metavar="N|MIN:MAX",
        help="Threads or worker processes [default: the processors there are; one SLURM job]."
        " With MIN:MAX, SLURM jobs come and go with the work there is.",
    ),
    click.option(
        "--workdir", type=PATH, metavar="DIR",
        help="Where results are kept, so that a run can be resumed [default: OUTPUT.work].",
    ),
    click.option(
        "--overwrite/--no-overwrite", default=None,
        help="Replace an existing output, whatever it is. A run replaces its own product unasked,"
        " if its inputs have grown and its options are the same.",
    ),
    click.option(
        "--allow-missing", type=NumberRange(0, 1), metavar="FRACTION",
        help="Write a product although up to this fraction of the inputs failed.",
    ),
    click.option(
        "--verify-inputs", type=click.Choice(["fast", "full"]),
        help="full: hash every byte of every input [default: three MiB of each].",
    ),
    click.option(
        "--numerics", type=click.Choice(["native", "portable"]), default="native",
        show_default=True,
        help="portable: use no processor feature beyond the baseline, so that different processors"
        " give the same bits, more slowly. Workers of a running scheduler are started elsewhere.",
    ),
    click.option("--no-report", is_flag=True, help="Write no HTML report."),
    click.option(
        "--dashboard/--no-dashboard", default=None,
        help="Serve Dask's dashboard while local workers run [default: on a terminal].",
    ),
    click.option(
        "--performance-report", type=PATH, metavar="FILE", help="Write Dask's own report (HTML)."
    ),
    click.option(
        "--provenance-log", type=PATH, metavar="FILE",
        help="Append the run's provenance, one JSON object a line.",
    ),
    click.option(
        "--log-level", default="WARNING", show_default=True,
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        help="What goes to the log.",
    ),
    click.option(
        "-l", "--log-file", type=PATH, metavar="FILE", help="Write the log here as well."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Log more: the same as --log-level INFO."),
)  # fmt: skip


def with_options(*groups: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Give a command groups of options, in their order."""

    def decorate(function: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


def say(text: object) -> None:
    """Print something; what names of files hold is shown, never obeyed."""
    from calibdask.engine.shown import printable

    click.echo(printable(str(text)))
