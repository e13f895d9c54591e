"""The Python interface: what the command line calls, for scripts and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibdask.engine import events
from calibdask.engine.options import RunOptions
from calibdask.engine.protocol import AnyCalibration, Calibration
from calibdask.engine.run import run_calibration
from calibdask.errors import ConfigError
from calibdask.registry import Prepared, find_job

if TYPE_CHECKING:
    from calibdask.engine.attach import Campaign
    from calibdask.engine.campaign import Status
    from calibdask.engine.plan import Plan
    from calibdask.engine.run import RunResult

__all__ = ["connect", "load_config", "plan", "run", "status"]

Paths = Sequence[str | Path] | str | Path


def _many(paths: Paths) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def load_config(
    job: str, config: Paths = (), overrides: Mapping[str, object] | None = None
) -> Prepared:
    """Read and check a job's configuration.

    Parameters
    ----------
    job : str
        Name of the job.
    config : path or sequence of paths
        YAML files; later ones win over earlier ones.
    overrides : mapping of dotted path to value
        What wins over all files, e.g. ``{"CalculateInterCalibration.n_min": 20}``.

    Returns
    -------
    Prepared
        The calibration, ready to plan and run, and the engine's options.

    Raises
    ------
    ConfigError
        Listing everything that is wrong, with file, line and dotted path.
    """
    prepared = find_job(job).prepare([Path(path) for path in _many(config)], overrides or {})
    if prepared.campaign.time_bin is not None and not prepared.calibration.bins_time:
        raise ConfigError(
            f"Campaign.time_bin (--time-bin): {job} has no time bins; leave it out for this job"
        )
    return prepared


def _prepare(job: str | AnyCalibration, config: Paths, overrides: Mapping[str, object]) -> Prepared:
    if isinstance(job, Calibration):
        from calibdask.config import Campaign

        return Prepared(job, Campaign(), overwrite=False, config=dict(job.map_config()))
    return load_config(job, config, overrides)


def _inputs(inputs: Paths, prepared: Prepared) -> list[str | Path]:
    return _many(inputs) or list(prepared.inputs)


def _section_of(cluster: str | None) -> str:
    """Return the section with the options of a cluster's jobs; empty for most."""
    from calibdask.engine.sites.table import SITES

    return SITES[cluster].load().section if cluster in SITES else ""


def run_options(prepared: Prepared, options: Mapping[str, Any]) -> RunOptions:
    """Join the engine's section of the configuration with options that win over it."""
    campaign = prepared.campaign
    base = RunOptions(
        worker_memory=campaign.worker_memory,
        overwrite=prepared.overwrite,
        allow_missing=campaign.allow_missing,
        verify_full=campaign.verify_inputs == "full",
        retries=campaign.retries,
        fan_in=campaign.fan_in,
        jobqueue=prepared.jobqueue.get(_section_of(options.get("cluster")), {}),
    )
    given = {name: value for name, value in options.items() if value is not None}
    return replace(base, **given)


def _default_listener() -> events.Listener:
    if sys.stderr.isatty():
        from rich.console import Console

        return events.ProgressBars(Console(stderr=True))
    return events.log_event


def run(
    job: str | AnyCalibration,
    inputs: Paths = (),
    output: str | Path | None = None,
    *,
    config: Paths = (),
    overrides: Mapping[str, object] | None = None,
    listener: events.Listener | None = None,
    **options: Any,
) -> RunResult:
    """Run a calibration and write its products.

    Parameters
    ----------
    job : str or Calibration
        Name of a job (``calibdask --help`` lists them), or a calibration of your own.
    inputs : path or sequence of paths
        Files, globs, directories, or ``@list.txt``; what the configuration names unless given.
    output : path
        The product; provenance, ECSV and report get the same name with another ending. What the
        configuration names unless given.
    config : path or sequence of paths
        YAML files; later ones win over earlier ones.
    overrides : mapping of dotted path to value
        What wins over all files, e.g. ``{"CalculateInterCalibration.n_min": 20}``.
    listener : callable, optional
        Called with every event; a progress bar on a terminal, the ``calibdask`` logger elsewhere.
    **options
        Fields of :class:`calibdask.engine.options.RunOptions`: ``cluster``, ``workers``,
        ``workdir``, ``overwrite``, ``allow_missing``, ...

    Returns
    -------
    RunResult
        With the tables, the digest and the account; it prints well.

    Raises
    ------
    CalibdaskError
        No product was written. What was computed is stored; the same call carries on.
    """
    prepared = _prepare(job, config, overrides or {})
    output = output or prepared.output_url
    if output is None:
        raise ConfigError("no output was given: name it with -o, or as output_url in the config")
    return run_calibration(
        prepared.calibration,
        _inputs(inputs, prepared),
        Path(output),
        run_options(prepared, options),
        listener or _default_listener(),
        config=prepared.config,
        config_files=[Path(path) for path in _many(config)],
    )


def plan(
    job: str | AnyCalibration,
    inputs: Paths = (),
    *,
    config: Paths = (),
    overrides: Mapping[str, object] | None = None,
) -> Plan:
    """Look at the inputs' metadata and tell what a run would do; nothing is computed or written.

    Parameters and errors are those of :func:`run`.
    """
    from calibdask.engine.plan import make_plan

    prepared = _prepare(job, config, overrides or {})
    return make_plan(
        prepared.calibration,
        _inputs(inputs, prepared),
        fan_in=prepared.campaign.fan_in,
        worker_memory=prepared.campaign.worker_memory,
        verify_full=prepared.campaign.verify_inputs == "full",
    )


def status(path: str | Path) -> Status:
    """Return how far a campaign is, from its work directory alone.

    Parameters
    ----------
    path : path
        Its work directory, or its output.

    Raises
    ------
    ConfigError
        There is none.
    """
    from calibdask.engine.campaign import find_workdir, read_status

    return read_status(find_workdir(Path(path)))


def connect(path: str | Path) -> Campaign:
    """Join a running campaign from another process, e.g. a notebook.

    Parameters
    ----------
    path : path
        Its work directory, or its output.

    Returns
    -------
    Campaign
        With the status, the workers, the dashboard's address and the coefficients so far. Close it,
        or use it in a ``with`` statement; the campaign goes on.

    Raises
    ------
    ConfigError
        No campaign with a scheduler runs there, it is another user's, or nobody answers.
    """
    from calibdask.engine.attach import connect as join

    return join(Path(path))
