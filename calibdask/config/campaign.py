"""Sections of the engine, which every job has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict

from calibdask.config.sections import (
    Schema,
    Section,
    caseless,
    option,
    parse_bytes,
    read_with,
    short,
)
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from calibdask.stats.timebins import TimeBins

__all__ = ["BATCH_SECTIONS", "ENGINE_SECTIONS", "Campaign"]

type _Bytes = Annotated[int, read_with(parse_bytes)]


def _time_bin(value: object) -> int:
    """Read the width of a time bin: text such as "1 h", to whole nanoseconds."""
    from astropy import units as u

    if not isinstance(value, str):
        raise ConfigError(f"{short(value)} has no unit: write for instance '1 h' or '600 s'")
    try:
        width_ns = round(float(u.Quantity(value).to_value(u.ns)))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{short(value)} is not a time: write for instance '1 h' or '600 s'"
        ) from None
    if not 1 <= width_ns < 2**62:
        raise ConfigError(f"{short(value)} is not a width that a time bin can have")
    return width_ns


def _epoch(value: object) -> int:
    """Read a date in UTC, as nanoseconds of TAI since 1970."""
    from astropy.time import Time

    # YAML makes a date of what looks like one.
    text = value if isinstance(value, str) else getattr(value, "isoformat", lambda: "")()
    try:
        day = Time(text, scale="utc").tai
        # Whole days and the rest apart: one float cannot hold nanoseconds since 1970.
        start = Time("1970-01-01T00:00:00", scale="tai")
        days = round(float(day.jd1 - start.jd1))
        return days * 86_400_000_000_000 + round(float(day.jd2 - start.jd2) * 86_400e9)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{short(value)} is not a date: write for instance '2027-01-31T12:00:00' (UTC)"
        ) from None


_DEFAULT_EPOCH = "2020-01-01T12:00:00"


class Campaign(Section):
    """How a campaign is cut into shards and run, whatever is calibrated."""

    shard_bytes: _Bytes = option(
        256 * 1024**2,
        stage="plan",
        help="How much input one task reads.",
        unit="bytes",
    )
    fan_in: int = option(
        16,
        stage="plan",
        ge=2,
        help="How many summaries one merge takes. Another value is another plan.",
    )
    worker_memory: _Bytes | None = option(
        None,
        stage="run",
        help="Memory of one worker. A plan that needs more is refused before it starts; "
        "without it, what the cluster reports is used.",
        example="4 GiB",
        unit="bytes",
    )
    allow_missing: float = option(
        0.0,
        stage="run",
        ge=0.0,
        le=1.0,
        help="Fraction of the inputs that may fail before the result is refused; of one "
        "that is cut into several shards, each counts.",
    )
    seed: int = option(
        0,
        stage="run",
        ge=0,
        help="Seed of random numbers. No job draws any yet.",
    )
    retries: int = option(
        2,
        stage="run",
        ge=0,
        help="How often a shard is tried again after a transient failure.",
    )
    verify_inputs: Annotated[Literal["fast", "full"], caseless("fast", "full")] = option(
        "fast",
        stage="plan",
        help="How an input is recognised: 'fast' reads its first, middle and last MiB, "
        "'full' all of it.",
    )
    time_bin: Annotated[int, read_with(_time_bin)] | None = option(
        None,
        stage="plan",
        help="Width of time bins, each calibrated by itself: number and unit. Without it, "
        "all data are calibrated together.",
        example="1 h",
    )
    epoch: Annotated[int, read_with(_epoch)] | None = option(
        None,
        stage="plan",
        help="Where a time bin begins, as a date in UTC: bins are aligned to it and never "
        f"depend on where files begin. Unless given, noon of {_DEFAULT_EPOCH[:10]}: one-day bins "
        "hold a night.",
        example=_DEFAULT_EPOCH,
    )

    @property
    def bins(self) -> TimeBins | None:
        """The time bins, if there are any."""
        from calibdask.stats.timebins import TimeBins

        if self.time_bin is None:
            return None
        return TimeBins(self.time_bin, _epoch(_DEFAULT_EPOCH) if self.epoch is None else self.epoch)


class Slurm(Section):
    """Worker jobs of --cluster slurm: dask-jobqueue's options, over those of its own files.

    For instance queue, account, cores, memory, walltime, interface, job_extra_directives,
    job_script_prologue, log_directory.
    """

    model_config = ConfigDict(extra="allow")


class Torque(Section):
    """Worker jobs of --cluster torque (Torque or PBS): options of dask-jobqueue's PBSCluster.

    For instance queue, account, cores, memory, walltime, resource_spec, interface.
    """

    model_config = ConfigDict(extra="allow")


BATCH_SECTIONS: dict[str, type[Section]] = {"Slurm": Slurm, "Torque": Torque}
"""Sections whose options dask-jobqueue declares, one for each batch system."""

ENGINE_SECTIONS: Schema = {"Campaign": Campaign, **BATCH_SECTIONS}
"""The sections of every job."""
