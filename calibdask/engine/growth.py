"""Which product a run may replace unasked: its own, made from inputs that are all here again.

A work directory remembers from which inputs and with which options it wrote a product, under the
digest of the plan, which the product holds as well. So a product that somebody else put there in
the meantime is not taken for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calibdask.engine.canonical import canonical_json, digest_json
from calibdask.engine.products import plan_of_product
from calibdask.engine.written import Made
from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from calibdask.engine.plan import Plan
    from calibdask.engine.protocol import AnyCalibration
    from calibdask.engine.written import Memory

__all__ = ["OwnProduct"]

_SHOWN = 5  # options in a message
_REMEDY = "choose another name with -o, or replace it with --overwrite"


class OwnProduct:
    """What a work directory remembers of the product at a place.

    Parameters
    ----------
    memory : Memory
        That of the work directory.
    output : Path
        The product.
    calibration : Calibration
        What is to be done, as configured.
    """

    def __init__(self, memory: Memory, output: Path, calibration: AnyCalibration) -> None:
        self._memory = memory
        self._output = output
        self._job = calibration.name
        settings = {
            "job": calibration.name,
            "version": calibration.version,
            "map": calibration.map_config(),
            "fit": calibration.fit_config(),
        }
        self._options = digest_json(settings)
        self._settings = _flat(settings)
        remembered = memory.of(output)
        plan = plan_of_product(output) if remembered and output.exists() else None
        # Of a run that was killed before its product took its name, the product knows nothing.
        self._before = {
            digest: made
            for digest, made in (remembered.plans if remembered else {}).items()
            if digest == plan
        }

    @property
    def is_there(self) -> bool:
        """Whether the product that is there was written from this work directory."""
        return bool(self._before)

    def check_known(self) -> None:
        """Refuse a product of which nobody can tell whether it was written from here.

        Raises
        ------
        ConfigError
            It is there, and the memory of the work directory is damaged.
        """
        if self._memory.problem and self._output.exists():
            raise ConfigError(
                f"{self._memory.path} is damaged or of another version ({self._memory.problem}), so"
                f" nobody knows whether {self._output} may be replaced; {_REMEDY}"
            )

    def check(self, plan: Plan) -> str | None:
        """Refuse to replace a product by another than a later one of the same run.

        Returns
        -------
        str or None
            What will happen to the product that is there; None where there is none.

        Raises
        ------
        ConfigError
            It was made with other options, or from an input that is not here now.
        """
        for made in self._before.values():
            if made.options != self._options:
                raise ConfigError(
                    f"{self._output} was made {_differences(made.settings, self._settings)};"
                    f" {_REMEDY}"
                )
            now = _inputs(plan)
            # One of the two may have been hashed in full (see `inputs`): the other begins it.
            gone = [path for one, path in made.inputs.items() if not _among(one, now)]
            if gone:
                raise ConfigError(
                    f"{self._output} was made from {len(gone)} inputs that are not given now or"
                    f" have changed, e.g. {gone[0]}; {_REMEDY}"
                )
            held, given = len(made.inputs), len(now)
            which = f"{held} of these {given}" if given > held else f"the same {given}"
            return f"{self._output} was made from {which} inputs: this run replaces it"
        return None

    def record(self, plan: Plan, files: list[Path]) -> None:
        """Remember a plan, and the files that it writes, before they are written.

        Raises
        ------
        CalibdaskError
            The work directory cannot be written.
        """
        made = {plan.digest: Made(self._options, _inputs(plan), self._settings)}
        self._memory.record(self._output, self._job, files, self._before | made)


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say by which job or with which other options or version of it a product was made."""
    if not before:
        return "by another job, with other options or by another version of it"
    if before.get("job") != now["job"]:
        return f"by another job, {before.get('job')}"
    other = [
        f"{name} was {before.get(name, 'unknown')} and is {now.get(name, 'unknown')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return f"with other options: {', '.join(other[:_SHOWN])}{more}"


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as JSON by their names and those of what they are in, without the stage."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = _flat(value)
            stage = name in ("map", "fit")
            found |= inner if stage else {f"{name}.{key}": one for key, one in inner.items()}
        else:
            found[name] = canonical_json(value)
    return found


def _inputs(plan: Plan) -> dict[str, str]:
    return {ref.identity: ref.path for ref in plan.inputs}


def _among(identity: str, others: Mapping[str, str]) -> bool:
    return identity in others or any(
        one.startswith(identity) or identity.startswith(one) for one in others
    )
