"""The command line. Each command imports its work when it is called, so that help comes at once."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import calibdask
from calibdask.cli_campaigns import COMMANDS
from calibdask.cli_options import (
    CONFIG_OPTIONS,
    INPUT_OPTION,
    PATH,
    RUN_OPTIONS,
    TIME_OPTIONS,
    say,
    set_options,
    with_options,
)
from calibdask.engine.sites.table import find_site
from calibdask.errors import CalibdaskError, ConfigError
from calibdask.registry import JOBS, SIMULATIONS, find_job
from calibdask.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from calibdask.engine.events import Listener

__all__ = ["app", "main"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: a batch system ends the job, or its terminal went away."""


_arrived: list[int] = []  # signals that ask to stop


def _raise_arrived() -> None:
    """Stop if a signal has asked for it.

    Raising in the handler alone is not enough: an exception that is raised in a destructor, or in
    compiled code that returns nothing, is lost. While an exception is on its way, the run is
    already stopping.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if _arrived and in_main_thread and sys.exc_info()[0] is None:
        raise KeyboardInterrupt if _arrived[0] == signal.SIGINT else _Terminated


@contextmanager
def _no_complaint_about_lost_signals() -> Iterator[None]:
    """Keep Python from printing a traceback where a signal was lost: the next event stops."""
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt | _Terminated):
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
    """Calibrate telescopes and cameras: on a laptop, on many cores, on a cluster.

    \b
    Begin with    calibdask demo
    Then          calibdask init JOB > config.yaml      a commented configuration
                  calibdask plan JOB -c config.yaml -i DATA     what would be done
                  calibdask JOB -c config.yaml -i DATA -o OUTPUT.h5
    Run the same command again after a crash: only what is missing is computed.
    """


def _for_people(record: logging.LogRecord) -> logging.LogRecord:
    """Do the same to a record of the log: further lines are indented, so that none looks new."""
    from calibdask.engine.shown import printable

    record.msg = printable(record.getMessage()).replace("\n", "\n    ")
    record.args = None
    return record


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
        # Opened by the first message: until then it may turn out to be an input.
        handlers.append(
            logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace", delay=True)
        )
        form = "%(asctime)s %(levelname)s %(message)s"
        handlers[-1].setFormatter(logging.Formatter(form))
    for handler in handlers:
        handler.addFilter(_for_people)
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
    time_bin: str | None,
    epoch: str | None,
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
            overrides=set_options(settings, time_bin, epoch),
            listener=listener,
            workdir=workdir,
            log_file=log_file,
            report=not no_report,
            dashboard=sys.stderr.isatty() if dashboard is None else dashboard,
            command=shlex.join(["calibdask", *sys.argv[1:]]),
            **options,
        )
    if quiet:
        say(result.digest)
    else:
        say(result.text(_screen_width()))


def _screen_width() -> int | None:
    """Return the columns of the terminal; None where output goes elsewhere and may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _say_list(lines: Sequence[str], rest: str) -> None:
    """Print a list, shortened on a terminal."""
    from calibdask.engine.shown import shortened

    for line in lines if _screen_width() is None else shortened(lines, rest):
        say(line)


def _add_job(name: str, summary: str) -> None:
    @app.command(name, help=_job_help(name, summary), short_help=summary)
    @with_options(CONFIG_OPTIONS, TIME_OPTIONS, (INPUT_OPTION,), RUN_OPTIONS)
    def command(**options: Any) -> None:
        _run_job(name, **options)


def _job_help(name: str, summary: str) -> str:
    return f"""{summary}

    \b
    A commented configuration:  calibdask init {name} > config.yaml
    What would be done:         calibdask plan {name} -c config.yaml -i DATA
    Do it, or carry on:         calibdask {name} -c config.yaml -i DATA -o OUTPUT

    Exit codes: 0 done, 2 configuration or command line, 100 a transient failure, 104 an input is
    broken, 105 an input is missing, 106 not enough data, 130 Ctrl-C, 143 SIGTERM or SIGHUP, 1
    anything else.
    After any of them the same command carries on from what is stored.
    """


for _job in JOBS.values():
    _add_job(_job.name, _job.summary)


# -- commands that serve the jobs ---------------------------------------------------------------


@app.command()
@click.argument("directory", type=PATH, default=Path("demo"))
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--cluster", default="local", show_default=True, metavar="WHERE")
def demo(directory: Path, workers: int, cluster: str) -> None:
    """Simulate an array of telescopes, calibrate it, compare with the truth.

    Writes into DIRECTORY (default: demo), which is made or replaced.
    """
    from calibdask.demo import run_demo

    with _listening(log_level="WARNING", log_file=None, quiet=False, verbose=False) as listener:
        text = run_demo(directory, cluster=cluster, workers=workers, listener=listener)
    say(text)


@app.group()
def simulate() -> None:
    """Make data with known truth in the real file formats."""


def _add_simulation(name: str) -> None:
    """Add ``simulate NAME``."""
    simulation = SIMULATIONS[name]
    sizes: tuple[Callable[[Any], Any], ...] = ()
    if name == "array":
        sizes = (
            click.option("--files", "n_files", type=click.IntRange(1), default=2,
                         show_default=True, help="Observation blocks, one file each."),
            click.option("--telescope-events", "n_telescope_events", type=click.IntRange(1),
                         default=100_000, show_default=True, help="In all files together."),
        )  # fmt: skip
    if name == "sensor":
        sizes = (
            click.option("--rows", type=click.IntRange(1), default=96, show_default=True),
            click.option("--columns", type=click.IntRange(1), default=128, show_default=True),
            click.option("--frames", "n_frames", type=click.IntRange(1), default=10,
                         show_default=True, help="In each stack."),
        )  # fmt: skip

    def show(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            _list_simulation(ctx, simulation.options())

    options = (
        click.option("-o", "--output", type=PATH, required=True, metavar="DIR",
                     help="Where to write."),
        *sizes,
        click.option("--seed", type=int, default=1, show_default=True,
                     help="Equal seeds, equal bytes."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
                     help="Any other option of the simulation, faults among them (see --list)."),
        click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=show,
                     help="List all options of the simulation with their defaults."),
    )  # fmt: skip

    @simulate.command(name, help=simulation.summary, short_help=simulation.summary)
    @with_options(options)
    def command(output: Path, settings: Sequence[str], **given: Any) -> None:
        import dataclasses

        kind = simulation.options()
        known = {field.name for field in dataclasses.fields(kind)}
        overrides = set_options(settings)
        for option in overrides:
            if option not in known:
                hint = did_you_mean(option, known)
                raise ConfigError(f"--set {option}: the simulation has no such option{hint}")
        values = {option: _frozen(value) for option, value in overrides.items()}
        made = simulation.simulate(output, kind(**{**given, **values}), _show_progress)
        _say_list([str(path) for path in made], str(output))


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total}", err=True, nl=done == total)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _list_simulation(ctx: click.Context, kind: Any) -> NoReturn:
    import dataclasses
    import inspect

    if hasattr(kind, "__pydantic_fields__"):
        from calibdask.simulation import describe_options

        click.echo(describe_options(kind))
        ctx.exit()
    click.echo(inspect.getdoc(kind))
    click.echo("\nDefaults")
    for field in dataclasses.fields(kind):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        click.echo(f"  {field.name} = {default}")
    ctx.exit()


for _name in SIMULATIONS:
    _add_simulation(_name)


_JOB_ARGUMENT = click.argument("job", metavar="JOB")


@app.command()
@_JOB_ARGUMENT
@with_options(CONFIG_OPTIONS, TIME_OPTIONS, (INPUT_OPTION,))
@click.option("--json", "as_json", is_flag=True, help="Every shard, as JSON.")
def plan(
    job: str,
    config: Sequence[Path],
    settings: Sequence[str],
    time_bin: str | None,
    epoch: str | None,
    inputs: Sequence[str],
    as_json: bool,
) -> None:
    """Tell what a run of JOB would do: shards, bytes, memory, files. Nothing is computed."""
    from calibdask.api import plan as make_plan

    overrides = set_options(settings, time_bin, epoch)
    planned = make_plan(job, list(inputs), config=list(config), overrides=overrides)
    say(planned.to_json() if as_json else planned)


@app.command("init")
@_JOB_ARGUMENT
def init_command(job: str) -> None:
    """Print a commented configuration of JOB with every option at its default."""
    click.echo(find_job(job).template(), nl=False)


@app.command("check-config")
@_JOB_ARGUMENT
@with_options(CONFIG_OPTIONS, TIME_OPTIONS)
def check_config(
    job: str,
    config: Sequence[Path],
    settings: Sequence[str],
    time_bin: str | None,
    epoch: str | None,
) -> None:
    """Read a configuration of JOB and tell everything that is wrong with it."""
    from calibdask.api import load_config

    load_config(job, list(config), set_options(settings, time_bin, epoch))
    click.echo(f"{', '.join(map(str, config)) or 'the default configuration'}: fine for {job}")


@app.command("generate-metadata")
@click.argument("image", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path(),
    metavar="DIR",
    help="The camera's root folder [default: here].",
)
@click.option("--name", help="What people call the camera [default: its model].")
@click.option("--manufacturer", help="Instead of what the image says.")
@click.option("--model", help="Instead of what the image says.")
@click.option(
    "--bit-depth", type=click.IntRange(8, 16), help="Instead of what the largest pixel tells."
)
@click.option(
    "--iso",
    type=(int, int),
    metavar="MIN MAX",
    help="Range of ISO speeds: the settings file is written as well.",
)
@click.option(
    "--exposure",
    type=(str, str),
    default=("-1", "-1"),
    metavar="MIN MAX",
    help="Range of exposures in s, as 0.5 or 1/8000, for the settings file.",
)
@click.option("--overwrite", is_flag=True, help="Replace the camera file that is there.")
def generate_metadata_command(
    image: Path, output: Path, iso: tuple[int, int] | None, exposure: tuple[str, str], **given: Any
) -> None:
    """Write the camera file of SPECTACLE, camera_data.json, from a saturated raw image."""
    from calibdask.io.spectacle import CameraSettings
    from calibdask.sensor.camera import generate_metadata

    settings = None if iso is None else CameraSettings.of(iso, exposure)
    if settings is None and exposure != ("-1", "-1"):
        raise ConfigError("--exposure goes into the settings file, which needs --iso MIN MAX")
    for path in generate_metadata(image, output, settings=settings, **given):
        say(path)


@app.command()
@click.argument("output", type=PATH)
def digest(output: Path) -> None:
    """Compute the digest of the tables in OUTPUT (a file, or a directory of files)."""
    from calibdask.engine.products import digest_output

    click.echo(digest_output(output))


for _command in COMMANDS:
    app.add_command(_command)


@app.command("sbatch-script", context_settings={"ignore_unknown_options": True})
@click.argument("job", metavar="JOB")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THE JOB]...")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--workers-per-node", type=click.IntRange(1),
              help="[default: 4; 1 for a head job, whose workers are other jobs]")  # fmt: skip
@click.option("--time", "walltime", required=True, metavar="TIME",
              help="Time limit in SLURM's notation, e.g. 02:00:00.")  # fmt: skip
@click.option("--memory-per-worker", metavar="SIZE", help="In SLURM's notation, e.g. 4G.")
@click.option("--requeue", is_flag=True,
              help="At the time limit, go back into the queue and carry on.")  # fmt: skip
@click.option("--sbatch", "directives", multiple=True, metavar="OPTION",
              help="Any other option of sbatch, e.g. --sbatch=--account=cta.")  # fmt: skip
@click.option("--setup", multiple=True, metavar="LINE",
              help="A line of shell before the run, e.g. 'module load hdf5'.")  # fmt: skip
def sbatch_script(
    job: str,
    arguments: Sequence[str],
    nodes: int,
    workers_per_node: int | None,
    walltime: str,
    memory_per_worker: str | None,
    requeue: bool,
    directives: Sequence[str],
    setup: Sequence[str],
) -> None:
    """Print a batch script that runs JOB in one SLURM allocation.

    \b
    calibdask sbatch-script inter-calibration -c my.yaml -i DATA -o OUT.h5 --requeue
        --nodes 4 --workers-per-node 32 --time 02:00:00 > campaign.sbatch
    sbatch campaign.sbatch

    All other options are the job's own. Scheduler, client and workers run inside the allocation, so
    this also works where compute nodes may not submit jobs.
    """
    from calibdask.engine.sites.batch import BatchJob

    find_job(job)
    words = _spread_inputs(arguments)
    command = app.commands[job]
    given = command.make_context(f"calibdask {job}", list(words)).params
    if given["output"] is None:
        raise ConfigError("name the output with -o: a job that is submitted again carries on there")
    if given["cluster"] == "auto":
        words += ["--cluster", "allocation"]
    inside = given["cluster"] in ("auto", "allocation")
    site = find_site("allocation" if inside else given["cluster"])
    program = Path(sys.executable).with_name("calibdask")  # this one, whatever the job's PATH is
    batch = BatchJob(
        (str(program) if program.exists() else "calibdask", job, *words),
        nodes, workers_per_node or (4 if inside else 1), walltime, memory_per_worker, requeue,
        directives, setup,
    )  # fmt: skip
    click.echo(site.batch_script(batch), nl=False)


# -- the process --------------------------------------------------------------------------------


def _on_signal(number: int, _frame: FrameType | None) -> None:
    first = not _arrived
    _arrived.append(number)
    # A batch system may say TERM several times to a run that is tidying up; a second Ctrl-C comes
    # from somebody who does not want to wait for that.
    if first or number == signal.SIGINT:
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _complain(text: str) -> None:
    from calibdask.engine.shown import printable

    shown = printable(text).replace("\n", "\n  ")
    click.echo(click.style("error: ", fg="red", bold=True) + shown, err=True)


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


def _ensure_home() -> None:
    """Return libraries that look for their configuration at home a place to find none.

    A user id without an entry in passwd has no home where HOME is not set, as in containers.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _arrived.clear()
    _ensure_home()
    signal.signal(signal.SIGTERM, _on_signal)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _on_signal)
    carry_on = "what was computed is stored: run the same command again to carry on"
    try:
        with _no_complaint_about_lost_signals():
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
