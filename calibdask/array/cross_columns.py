"""Values of all telescopes on one scale, and the columns of the tables about muons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask import flags
from calibdask.flags import Flag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.absolute import Combined, TypeContrasts
    from calibdask.array.network.state import NetworkFit

    type Columns = dict[str, NDArray[Any]]

__all__ = ["ScaledThroughputs", "consistency_columns", "contrast_columns", "muon_columns"]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledThroughputs:
    """Values of all telescopes of one fit, with what muons make of them; T telescopes."""

    log_value: NDArray[np.float64]
    covariance: NDArray[np.float64]
    known: NDArray[np.bool_]  # an error
    is_absolute: NDArray[np.bool_]
    muon: NDArray[np.float64]
    muon_error: NDArray[np.float64]
    n_rings: NDArray[np.int64]
    residual: NDArray[np.float64]
    pull: NDArray[np.float64]
    fits: tuple[tuple[int, int, Combined | None], ...]  # component, muons, their fit
    contrasts: tuple[tuple[int, TypeContrasts], ...]  # component, its types against muons
    freed: NDArray[np.bool_]  # the scale of its type is from muons alone


def muon_columns(fit: NetworkFit, scaled: ScaledThroughputs) -> Columns:
    """Muon throughputs of the telescopes, and what they differ by from the values."""
    rows = np.flatnonzero(scaled.n_rings > 0)
    return {
        "tel_type": fit.tel_type[rows],
        "tel_id": fit.tel_id[rows],
        "muon_throughput": scaled.muon[rows],
        "muon_throughput_error": scaled.muon_error[rows],
        "n_rings": scaled.n_rings[rows],
        "value": np.exp(scaled.log_value[rows]),
        "residual": scaled.residual[rows],
        "pull": scaled.pull[rows],
        "component": fit.component[rows],
    }


def consistency_columns(fit: NetworkFit, scaled: ScaledThroughputs) -> Columns:
    """Fit of network and muons in each component that has muons."""
    rows = [one for one in scaled.fits if one[0] >= 0]
    combined = [one[2] for one in rows]
    return {
        "component": np.array([one[0] for one in rows], int),
        "tel_type": np.array(
            ["-".join(np.unique(fit.tel_type[fit.component == one[0]]).tolist()) for one in rows],
            str,
        ),
        "n_muons": np.array([one[1] for one in rows], int),
        "chi2": np.array([np.nan if one is None else one.chi2 for one in combined], float),
        "ndf": np.array([0 if one is None else one.ndf for one in combined], int),
        "p_value": np.array([np.nan if one is None else one.p_value for one in combined], float),
        "flags": flags.column({Flag.NO_ERROR: np.array([one is None for one in combined], bool)}),
    }


def contrast_columns(scaled: ScaledThroughputs) -> Columns:
    """Muons of each type against those of the others, in each component that has muons."""
    rows = scaled.contrasts
    columns = {
        name: np.concatenate([*(getattr(one, name) for _, one in rows), np.zeros(0, kind)])
        for name, kind in {
            "n_muons": np.int64, "contrast": float, "error": float, "p_value": float, "freed": bool
        }.items()
    }  # fmt: skip
    return {
        "component": np.array([number for number, one in rows for _ in one.types], int),
        "tel_type": np.array([kind for _, one in rows for kind in one.types], str),
        "flags": flags.column({Flag.MUONS_DISAGREE: columns.pop("freed")}),
        **columns,
    }
