"""Commands for campaigns that run somewhere, and for where they could run."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

from calibdask.cli_options import CONFIG_OPTIONS, PATH, NumberRange, say, set_options, with_options
from calibdask.engine.sites.table import SITES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["COMMANDS"]

_CAMPAIGN_ARGUMENT = click.argument("path", type=PATH, metavar="WORKDIR")


def _watch(workdir: Path) -> int:
    """Show a campaign until nothing runs there any more; give the exit code of its status."""
    try:
        return _show(workdir)
    except KeyboardInterrupt:
        click.echo(f"left; 'calibdask status {workdir}' tells how far it is", err=True)
        return 130


def _show(workdir: Path) -> int:
    from calibdask.engine.campaign import follow

    if not sys.stdout.isatty():
        last = ""
        for status in follow(workdir):
            if status.line() != last:
                last = status.line()
                say(last)
        say(status)
        return status.exit_code
    from rich.live import Live
    from rich.text import Text

    from calibdask.engine.shown import printable

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        for status in follow(workdir):
            live.update(Text(printable(str(status))), refresh=True)
    return status.exit_code


@click.command("status")
@_CAMPAIGN_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--watch", is_flag=True, help="Look again until it ends.")
def status_command(path: Path, as_json: bool, watch: bool) -> None:
    """Tell how far the campaign in WORKDIR is, or how it ended; OUTPUT will do as well.

    Everything comes from the files there: no scheduler has to be alive.

    Exit codes: 0 it is running or finished, 3 it stopped or failed, 2 no campaign was run there.
    """
    from calibdask.engine.campaign import find_workdir, read_status

    if watch and as_json:
        raise click.UsageError("--json looks once: leave out --watch")
    workdir = find_workdir(path)
    if watch:
        code = _watch(workdir)
    else:
        status = read_status(workdir)
        say(status.to_json() if as_json else status)
        code = status.exit_code
    click.get_current_context().exit(code)


@click.command("connect")
@_CAMPAIGN_ARGUMENT
@click.option("--once", is_flag=True, help="Show it once, with every worker.")
@click.option("--coefficients", is_flag=True,
              help="Print the coefficients from the shards merged so far.")  # fmt: skip
def connect_command(path: Path, once: bool, coefficients: bool) -> None:
    """Join the campaign that is running in WORKDIR, from any node that sees its scheduler.

    Shows how far it is until it ends. Leaving with Ctrl-C does not touch it.
    """
    from calibdask.engine.attach import connect

    with connect(path) as campaign:
        # That the campaign is over is told below, in other words than Dask's.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        if coefficients:
            say(campaign.preliminary())
            return
        text = str(campaign)
        workdir = campaign.workdir
    if once:
        say(text)
        return
    if not sys.stdout.isatty():
        say(text)
    click.get_current_context().exit(_watch(workdir))


@click.command("cancel")
@_CAMPAIGN_ARGUMENT
@click.option("--timeout", type=NumberRange(0), default=60.0, show_default=True,
              metavar="SECONDS", help="How long to wait for its end.")  # fmt: skip
def cancel_command(path: Path, timeout: float) -> None:
    """Ask the campaign that is running in WORKDIR, on whatever node, to stop; wait until it has.

    What was computed stays: the same command carries on. Worker jobs that a dead campaign left in
    SLURM's queue are cancelled.
    """
    from calibdask.engine.campaign import cancel, find_workdir

    say(cancel(find_workdir(path), timeout))


@click.command("clean")
@_CAMPAIGN_ARGUMENT
@click.option("--all", "everything", is_flag=True,
              help="Remove the results as well: the next run begins anew.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean_command(path: Path, everything: bool, yes: bool) -> None:
    """Remove what dead runs left in WORKDIR: locks, certificates, scratch, unfinished files."""
    from calibdask.engine.campaign import clean, find_workdir

    workdir = find_workdir(path)
    question = f"Remove {workdir} with all results in it?"
    if everything and not yes and not click.confirm(question):
        click.echo("nothing was removed")
        return
    say(clean(workdir, everything=everything))


@click.command("doctor")
@click.option("--cluster", default="local", show_default=True,
              type=click.Choice([name for name, one in SITES.items() if one.examined]),
              help="Where a campaign would run. allocation: inside a batch job.")  # fmt: skip
@click.option("--workdir", type=PATH, metavar="DIR",
              help="Where a campaign would work [default: the present directory].")  # fmt: skip
@click.option("--patience", type=NumberRange(0), default=120.0, show_default=True,
              metavar="SECONDS", help="How long the probe job may wait in the queue.")  # fmt: skip
@with_options(CONFIG_OPTIONS)
@click.pass_context
def doctor_command(
    ctx: click.Context,
    cluster: str,
    workdir: Path | None,
    patience: float,
    config: Sequence[Path],
    settings: Sequence[str],
) -> None:
    """Check whether a campaign would run here, and say what to do where it would not.

    For SLURM one short job is sent that looks at a node as a worker would, and reports back.
    Exit code 1 if anything says FAIL.
    """
    from calibdask.engine.doctor import cluster_settings, examine

    colours = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
    levels: list[str] = []
    given = cluster_settings(cluster, config, set_options(settings), workdir)
    for finding in examine(cluster, given, patience=patience):
        levels.append(finding.level)
        level, _, text = str(finding).partition(" ")
        click.echo(f"{click.style(level, fg=colours[level], bold=True)} ", nl=False)
        say(text)
    click.echo(", ".join(f"{levels.count(level)} {level}" for level in colours))
    ctx.exit(1 if "FAIL" in levels else 0)


COMMANDS = (status_command, connect_command, cancel_command, clean_command, doctor_command)
