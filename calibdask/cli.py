"""The command line. Each command imports its work when it is called, so that help comes at once."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import calibdask
from calibdask.errors import CalibdaskError, ConfigError
from calibdask.registry import JOBS, did_you_mean, find_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from calibdask.engine.events import Listener

__all__ = ["app", "main"]

_PATH = click.Path(path_type=Path)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Terminated(BaseException):
    """SIGTERM arrived: a batch system ends the job, or somebody asked it to."""


_arrived: list[int] = []  # signals that ask to stop


def _raise_arrived() -> None:
    """Stop if a signal has asked for it.

    Raising in the handler alone is not enough: PyTables loses every exception that is raised while
    some of its compiled functions run, which a few reads in ten are.
    """
    if _arrived:
        raise KeyboardInterrupt if _arrived[0] == signal.SIGINT else _Terminated


class _Commands(click.Group):
    """Commands in two lists: the jobs, and what serves them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two lists."""
        for title, wanted in (("Jobs", True), ("Other commands", False)):
            rows = [
                (name, command.get_short_help_str(limit=88))
                for name, command in self.commands.items()
                if (name in JOBS) is wanted
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one may have been meant."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            hint = did_you_mean(name, self.commands)
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings=_CONTEXT)
@click.version_option(calibdask.__version__, prog_name="calibdask")
def app() -> None:
    r"""Calibrate telescopes and cameras: on a laptop, on many cores, on a cluster.

    \b
    Begin with    calibdask demo
    Then          calibdask init JOB > config.yaml      a commented configuration
                  calibdask plan JOB -c config.yaml -i DATA     what would be done
                  calibdask JOB -c config.yaml -i DATA -o OUTPUT.h5
    Run the same command again after a crash: only what is missing is computed.
    """


# -- options that jobs share --------------------------------------------------------------------


def _overrides(values: Sequence[str]) -> dict[str, object]:
    import yaml

    found: dict[str, object] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write SECTION.OPTION=VALUE")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from error
    return found


_CONFIG_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-c", "--config", "config", type=_PATH, multiple=True, metavar="FILE",
        help="YAML configuration; give it several times to merge files, later ones win.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="SECTION.OPTION=VALUE",
        help="One option of the configuration; wins over all files.",
    ),
)  # fmt: skip

_INPUT_OPTION = click.option(
    "-i", "--input", "inputs", multiple=True, metavar="INPUT",
    help="File, glob, directory, or @list.txt with one of these a line. Give it several times,"
    " or several inputs after it.",
)  # fmt: skip

_RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-o", "--output", type=_PATH, metavar="OUTPUT",
        help="The product. Report, provenance and a text table get its name with other endings.",
    ),
    click.option(
        "--cluster", default="auto", show_default=True, metavar="WHERE",
        help="serial, threads, local (worker processes on this machine), the address of a Dask"
        " scheduler (HOST:PORT), or its scheduler file. auto: local where there is enough to read"
        " for it to pay, else serial. The results are the same bit for bit.",
    ),
    click.option(
        "--workers", type=click.IntRange(1), metavar="N",
        help="Threads or local worker processes [default: the processors there are].",
    ),
    click.option(
        "--workdir", type=_PATH, metavar="DIR",
        help="Where results are kept, so that a run can be resumed [default: OUTPUT.work].",
    ),
    click.option("--overwrite/--no-overwrite", default=None, help="Replace an existing output."),
    click.option(
        "--allow-missing", type=click.FloatRange(0, 1), metavar="FRACTION",
        help="Write a product although up to this fraction of the shards failed.",
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
        "--performance-report", type=_PATH, metavar="FILE", help="Write Dask's own report (HTML)."
    ),
    click.option(
        "--provenance-log", type=_PATH, metavar="FILE",
        help="Append the run's provenance, one JSON object a line.",
    ),
    click.option(
        "--log-level", default="WARNING", show_default=True,
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        help="What goes to the log.",
    ),
    click.option(
        "-l", "--log-file", type=_PATH, metavar="FILE", help="Write the log here as well."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Log more: the same as --log-level INFO."),
)  # fmt: skip


def _with_options(*groups: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


@contextmanager
def _listening(
    *, log_level: str, log_file: Path | None, quiet: bool, verbose: bool
) -> Iterator[Listener]:
    """Show events: bars on a terminal, JSON lines elsewhere, and the log."""
    from calibdask.engine import events

    logger = logging.getLogger("calibdask")
    level = "INFO" if verbose and log_level.upper() in ("WARNING", "ERROR") else log_level.upper()
    logger.setLevel(level)
    # Without any handler Python would print warnings between the JSON lines.
    handlers: list[logging.Handler] = [logging.NullHandler()]
    terminal = sys.stderr.isatty()
    if quiet:
        handlers.append(logging.StreamHandler())
        handlers[-1].setLevel("ERROR")
    elif terminal:
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True)
        handlers.append(RichHandler(console=console, show_path=False))
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file))
        form = "%(asctime)s %(levelname)s %(message)s"
        handlers[-1].setFormatter(logging.Formatter(form))
    for handler in handlers:
        logger.addHandler(handler)
    listeners: list[Listener] = [events.log_event]
    bars = None
    if not quiet and terminal:
        bars = events.ProgressBars(console)
        listeners.append(bars)
    elif not quiet:
        listeners.append(events.JsonLines(sys.stderr))

    def tell(event: events.Event) -> None:
        _raise_arrived()
        for listener in listeners:
            listener(event)

    try:
        yield tell
    finally:
        if bars is not None:
            bars.close()
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _run_job(
    job: str,
    *,
    config: Sequence[Path],
    settings: Sequence[str],
    inputs: Sequence[str],
    output: Path | None,
    workdir: Path | None,
    verify_inputs: str | None,
    no_report: bool,
    dashboard: bool | None,
    numerics: str,
    log_level: str,
    log_file: Path | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    if numerics == "portable":
        from calibdask.engine.provenance import make_portable

        make_portable()
    from calibdask.api import run

    if verify_inputs is not None:
        options["verify_full"] = verify_inputs == "full"
    with _listening(
        log_level=log_level, log_file=log_file, quiet=quiet, verbose=verbose
    ) as listener:
        result = run(
            job,
            list(inputs),
            output,
            config=list(config),
            overrides=_overrides(settings),
            listener=listener,
            workdir=workdir,
            report=not no_report,
            dashboard=sys.stderr.isatty() if dashboard is None else dashboard,
            command=shlex.join(["calibdask", *sys.argv[1:]]),
            **options,
        )
    if quiet:
        click.echo(result.digest)
    else:
        click.echo(result)


def _add_job(name: str, summary: str) -> None:
    @app.command(name, help=_job_help(name, summary), short_help=summary)
    @_with_options(_CONFIG_OPTIONS, (_INPUT_OPTION,), _RUN_OPTIONS)
    def command(**options: Any) -> None:
        _run_job(name, **options)


def _job_help(name: str, summary: str) -> str:
    return f"""{summary}

    \b
    A commented configuration:  calibdask init {name} > config.yaml
    What would be done:         calibdask plan {name} -c config.yaml -i DATA
    Do it, or carry on:         calibdask {name} -c config.yaml -i DATA -o OUTPUT

    Exit codes: 0 done, 2 configuration or command line, 100 a fault that may pass, 104 an input is
    broken, 105 an input is missing, 106 not enough data, 130 Ctrl-C, 143 SIGTERM, 1 anything else.
    After any of them the same command carries on from what is stored.
    """


for _job in JOBS.values():
    _add_job(_job.name, _job.summary)


# -- commands that serve the jobs ---------------------------------------------------------------


@app.command()
@click.argument("directory", type=_PATH, default=Path("demo"))
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--cluster", default="local", show_default=True, metavar="WHERE")
def demo(directory: Path, workers: int, cluster: str) -> None:
    """Simulate an array of telescopes, calibrate it, compare with the truth.

    Writes into DIRECTORY (default: demo), which is made or replaced.
    """
    from calibdask.demo import run_demo

    with _listening(log_level="WARNING", log_file=None, quiet=False, verbose=False) as listener:
        text = run_demo(directory, cluster=cluster, workers=workers, listener=listener)
    click.echo(text)


@app.group()
def simulate() -> None:
    """Make data with known truth in the real file formats."""


@simulate.command("array")
@click.option("-o", "--output", type=_PATH, required=True, metavar="DIR", help="Where to write.")
@click.option("--files", "n_files", type=click.IntRange(1), default=2, show_default=True,
              help="Observation blocks, one file each.")  # fmt: skip
@click.option("--telescope-events", "n_telescope_events", type=click.IntRange(1), default=100_000,
              show_default=True, help="In all files together.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Equal seeds, equal bytes.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="Any other option of the simulation, faults among them, e.g."
              " --set 'sparse_telescopes={7: 1}' (see --list).")  # fmt: skip
@click.option("--list", "show", is_flag=True, is_eager=True, expose_value=False,
              callback=lambda ctx, _param, value: _list_simulation(ctx) if value else None,
              help="List all options of the simulation with their defaults.")  # fmt: skip
def simulate_array_command(
    output: Path, n_files: int, n_telescope_events: int, seed: int, settings: Sequence[str]
) -> None:
    """DL2 files of an array of telescopes in ctapipe's format, with truth.json beside them."""
    import dataclasses

    from calibdask.array.simulate import ArraySimulation, simulate_array

    known = {field.name for field in dataclasses.fields(ArraySimulation)}
    overrides = _overrides(settings)
    for name in overrides:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"--set {name}: the simulation has no such option{hint}")
    options = ArraySimulation(
        **{
            "n_files": n_files,
            "n_telescope_events": n_telescope_events,
            "seed": seed,
            **{name: _frozen(value) for name, value in overrides.items()},
        }
    )
    made = simulate_array(output, options)
    for path in made.paths:
        click.echo(path)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _list_simulation(ctx: click.Context) -> NoReturn:
    import dataclasses
    import inspect

    from calibdask.array.simulate import ArraySimulation

    click.echo(inspect.getdoc(ArraySimulation))
    click.echo("\nDefaults")
    for field in dataclasses.fields(ArraySimulation):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        click.echo(f"  {field.name} = {default}")
    ctx.exit()


_JOB_ARGUMENT = click.argument("job", metavar="JOB")


@app.command()
@_JOB_ARGUMENT
@_with_options(_CONFIG_OPTIONS, (_INPUT_OPTION,))
@click.option("--json", "as_json", is_flag=True, help="Every shard, as JSON.")
def plan(
    job: str, config: Sequence[Path], settings: Sequence[str], inputs: Sequence[str], as_json: bool
) -> None:
    """Tell what a run of JOB would do: shards, bytes, memory, files. Nothing is computed."""
    from calibdask.api import plan as make_plan

    planned = make_plan(job, list(inputs), config=list(config), overrides=_overrides(settings))
    click.echo(planned.to_json() if as_json else planned)


@app.command("init")
@_JOB_ARGUMENT
def init_command(job: str) -> None:
    """Print a commented configuration of JOB with every option at its default."""
    click.echo(find_job(job).template(), nl=False)


@app.command("check-config")
@_JOB_ARGUMENT
@_with_options(_CONFIG_OPTIONS)
def check_config(job: str, config: Sequence[Path], settings: Sequence[str]) -> None:
    """Read a configuration of JOB and tell everything that is wrong with it."""
    find_job(job).prepare(list(config), _overrides(settings))
    click.echo(f"{', '.join(map(str, config)) or 'the default configuration'}: fine for {job}")


@app.command()
@click.argument("output", type=_PATH)
def digest(output: Path) -> None:
    """Compute the digest of the tables in OUTPUT (a file, or a directory of files)."""
    from calibdask.engine.products import digest_output

    click.echo(digest_output(output))


# -- the process --------------------------------------------------------------------------------


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _arrived.append(number)
    _raise_arrived()


def _complain(text: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + text, err=True)


def _spread_inputs(arguments: Sequence[str]) -> list[str]:
    """Let ``-i`` take several values, as shells expand globs: ``-i a b c``."""
    spread: list[str] = []
    pending = taking = False
    for argument in arguments:
        if argument in ("-i", "--input"):
            pending = taking = True
        elif taking and not argument.startswith("-"):
            spread += ["-i", argument]
            pending = False
        else:
            spread += ["-i"] * pending + [argument]
            pending = taking = False
    spread += ["-i"] * pending  # nothing after it: let click say so
    return spread


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _arrived.clear()
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, _on_signal)
    carry_on = "what was computed is stored: run the same command again to carry on"
    try:
        code = app.main(
            _spread_inputs(sys.argv[1:] if arguments is None else arguments),
            prog_name="calibdask",
            standalone_mode=False,
        )
    except CalibdaskError as error:
        _complain(str(error))
        code = error.exit_code
    except click.UsageError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        _complain(error.format_message())
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain(f"interrupted; {carry_on}")
        code = 130
    except _Terminated:
        _complain(f"terminated; {carry_on}")
        code = 143
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: not our error, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}; {carry_on}")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
