"""Which product a run may replace unasked: its own, made from inputs that are all here again.

A work directory remembers from which inputs and with which options it wrote a product, under the
digest of the plan, which the product holds as well. So a product that somebody else put there in
the meantime is not taken for its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from calibdask.engine.canonical import digest_json, read_json
from calibdask.engine.products import plan_of_product
from calibdask.errors import CalibdaskError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from calibdask.engine.plan import Plan
    from calibdask.engine.protocol import AnyCalibration

__all__ = ["OwnProduct"]

_REMEDY = "choose another name with -o, or replace it with --overwrite"


class OwnProduct:
    """What a work directory remembers of the product at a place.

    Parameters
    ----------
    workdir : Path
        The work directory.
    output : Path
        The product.
    calibration : Calibration
        What is to be done, as configured.
    """

    def __init__(self, workdir: Path, output: Path, calibration: AnyCalibration) -> None:
        self._path = workdir / "products.json"
        self._output = output
        self._name = os.path.relpath(output, workdir)
        self._options = digest_json(
            {
                "job": calibration.name,
                "version": calibration.version,
                "map": calibration.map_config(),
                "fit": calibration.fit_config(),
            }
        )
        remembered = self._all().get(self._name, {})
        plan = plan_of_product(output) if remembered and output.exists() else None
        # Of a run that was killed before its product took its name, the product knows nothing.
        self._before: dict[str, Any] = {
            digest: made for digest, made in remembered.items() if digest == plan
        }

    @property
    def is_there(self) -> bool:
        """Whether the product that is there was written from this work directory."""
        return bool(self._before)

    def _all(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = read_json(self._path)
            return found if isinstance(found, dict) else {}
        return {}

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
            if made["options"] != self._options:
                raise ConfigError(
                    f"{self._output} was made by another job, with other options or by another"
                    f" version of it; {_REMEDY}"
                )
            now = _inputs(plan)
            # One of the two may have been hashed in full (see `inputs`): the other begins it.
            gone = [path for one, path in made["inputs"].items() if not _among(one, now)]
            if gone:
                raise ConfigError(
                    f"{self._output} was made from {len(gone)} inputs that are not given now or"
                    f" have changed, e.g. {gone[0]}; {_REMEDY}"
                )
            held, given = len(made["inputs"]), len(now)
            which = f"{held} of these {given}" if given > held else f"the same {given}"
            return f"{self._output} was made from {which} inputs: this run replaces it"
        return None

    def record(self, plan: Plan) -> None:
        """Remember a plan before its product is written.

        Raises
        ------
        CalibdaskError
            The work directory cannot be written.
        """
        made = {plan.digest: {"options": self._options, "inputs": _inputs(plan)}}
        everything = self._all() | {self._name: self._before | made}
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(everything, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CalibdaskError(
                f"cannot write {self._path}: {error.strerror or error}; what was computed is"
                " stored: make room and run the same command again"
            ) from error


def _inputs(plan: Plan) -> dict[str, str]:
    return {ref.identity: ref.path for ref in plan.inputs}


def _among(identity: str, others: Mapping[str, str]) -> bool:
    return identity in others or any(
        one.startswith(identity) or identity.startswith(one) for one in others
    )
