"""The report's part about cross-calibration: scale of the types, agreement with muons, network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.report import (
    P_VALUE_LIMIT,
    Quantity,
    TelescopeLayout,
    inter_calibration_sections,
)
from calibdask.array.tables import CONSISTENCY, CONTRASTS, CROSS, MUONS, SCALING_FACTORS
from calibdask.flags import Flag, has
from calibdask.report import PALETTE, Notice, Paragraph, Section, draw_figure, table_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure

    from calibdask.report import FigureBlock, TableBlock

    type Block = Paragraph | Notice | TableBlock | FigureBlock

__all__ = ["CROSS_THROUGHPUT", "cross_calibration_sections"]

CROSS_THROUGHPUT = Quantity(
    job="cross-calibration",
    schemas=CROSS,
    name="throughput",
    symbol="throughput c",
    text="The throughput c of telescopes of all types on one scale, from the energies that they "
    "reconstruct for the same showers. That is right if the energies of every type are right on "
    "average, whatever the distance and the energy, but for the factor c.",
    baseline=1.0,
    column="log_ratio",
)


def cross_calibration_sections(
    tables: Mapping[str, QTable],
    layout: TelescopeLayout,
    *,
    truth: Mapping[int, float] | None = None,
) -> list[Section]:
    """Describe a cross-calibration.

    Parameters
    ----------
    tables : mapping of str to QTable
        As the calibration gives them, by their path in the result file.
    layout : TelescopeLayout
        Positions of the telescopes of the array, whether or not they have a value.
    truth : mapping of int to float, optional
        True throughput by telescope number, where it is known from a simulation.

    Returns
    -------
    list of Section
        What every network has, the scale of the types, and the agreement with muons.
    """
    sections = inter_calibration_sections(tables, layout, truth=truth, quantity=CROSS_THROUGHPUT)
    # After what needs attention and the values themselves.
    more = [Section("Scale of the types", _types(tables[SCALING_FACTORS.path]))]
    if MUONS.path in tables:
        blocks = _muons(tables[MUONS.path], tables[CONSISTENCY.path])
        blocks += _contrasts(tables[CONTRASTS.path])
        more.append(Section("Agreement with muons", blocks))
    return [*sections[:2], *more, *sections[2:]]


def _types(factors: QTable) -> list[Block]:
    if not len(factors):
        return [Notice("warning", "There is one type of telescope only: nothing to compare with.")]
    blocks: list[Block] = [
        Notice(
            "warning",
            f"{row['tel_type']}: no pairs connect it with {row['tel_ref']}: no scale.",
        )
        for row in factors[has(factors["flags"], Flag.NO_PAIR)]
    ]
    by_telescopes = (np.asarray(factors["tel_id"]) >= 0).any()
    how = (
        "ratio of the reference telescopes of the two types"
        if by_telescopes
        else "factor for all telescopes of the type, their ratios taken from the inter-calibration"
    )
    return [
        *blocks,
        table_block(
            SCALING_FACTORS,
            factors,
            (
                "tel_type",
                "tel_ref",
                "scaling_factor",
                "scaling_factor_uncertainty",
                "tel_id",
                "tel_id_ref",
                "n_pairs",
                "flags",
            ),
            f"Scale of each type: {how}. From pairs alone, whatever muons say. Multiply the"
            " coefficients of an inter-calibration, whose reference telescopes are 1, by it.",
        ),
    ]


def _muons(muons: QTable, consistency: QTable) -> list[Block]:
    if not len(muons):
        return [Notice("warning", "No telescope has a muon throughput here.")]
    blocks: list[Block] = []
    for row in consistency:
        who = f"{row['tel_type']}, component {int(row['component'])}"
        p_value, ndf, n_muons = float(row["p_value"]), int(row["ndf"]), int(row["n_muons"])
        fit = f"chi2/ndf {float(row['chi2']):.4g}/{ndf}, p = {p_value:.2g}"
        if has(row["flags"], Flag.NO_ERROR):
            text = f"{who}: too few events for a covariance: muons do not set the scale."
            blocks.append(Notice("warning", text))
        elif ndf < 1:
            text = f"{who}: one muon throughput sets the scale, and there is nothing to test."
            blocks.append(Paragraph(text))
        elif p_value < P_VALUE_LIMIT:
            text = (
                f"{who}: the {n_muons} muon throughputs and the ratios from showers disagree "
                f"({fit}): look for the telescopes with large pulls."
            )
            blocks.append(Notice("warning", text))
        else:
            text = f"{who}: {n_muons} muon throughputs and the ratios from showers agree ({fit})."
            blocks.append(Paragraph(text))
    return [
        *blocks,
        _draw_muons(muons),
        table_block(
            MUONS,
            muons,
            (
                "tel_type",
                "tel_id",
                "muon_throughput",
                "muon_throughput_error",
                "n_rings",
                "value",
                "residual",
                "pull",
            ),
            "Muon throughputs (over the nominal one of the type), and the values that fit them and"
            " the network best. Residual: ln of the ratio of the two. Marked: a pull beyond 3.",
            marked=np.abs(muons["pull"]) > 3,
        ),
    ]


def _contrasts(contrasts: QTable) -> list[Block]:
    """Muons of each type against those of the others."""
    if not np.isfinite(np.asarray(contrasts["contrast"])).any():  # of one type alone
        return []
    freed = [
        Notice(
            "warning",
            f"{row['tel_type']}: the energies of its telescopes disagree with its muons by "
            f"{100 * row['contrast']:+.2g} % against the other types: its scale is from its own"
            " muons.",
        )
        for row in contrasts[has(contrasts["flags"], Flag.MUONS_DISAGREE)]
    ]
    return [
        *freed,
        table_block(
            CONTRASTS,
            contrasts,
            ("tel_type", "component", "n_muons", "contrast", "error", "p_value", "flags"),
            "Mean of ln of muon over shower throughput of each type, less that of the other types."
            " M: the two disagree, and the scale of the type is from its own muons.",
        ),
    ]


def _draw_muons(muons: QTable) -> FigureBlock:
    types = np.asarray(muons["tel_type"])
    value, muon = np.asarray(muons["value"]), np.asarray(muons["muon_throughput"])
    error = np.asarray(muons["muon_throughput_error"])

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4), gridspec_kw={"wspace": 0.25})
        for number, kind in enumerate(np.unique(types).tolist()):
            rows = types == kind
            style: dict[str, Any] = {"fmt": "o", "color": PALETTE[number], "markersize": 4}
            left.errorbar(value[rows], muon[rows], yerr=error[rows], label=kind, **style)
            x = np.flatnonzero(rows)
            deviation = 100 * np.asarray(muons["residual"])[rows]
            right.errorbar(x, deviation, yerr=100 * error[rows] / muon[rows], **style)
        ends = [min(value.min(), muon.min()), max(value.max(), muon.max())]
        left.plot(ends, ends, color="#333333", linewidth=0.9, zorder=1)
        left.set_xlabel("showers and muons")
        left.set_ylabel("muons")
        left.set_title("Throughput")
        right.axhline(0, color="#333333", linewidth=0.9, zorder=1)
        ticks = np.arange(0, len(muons), max(1, len(muons) // 18))
        right.set_xticks(ticks, [str(t) for t in np.asarray(muons["tel_id"])[ticks].tolist()])
        right.set_xlabel("telescope")
        right.set_ylabel("muons over the fit - 1, %")
        right.set_title("Residuals")
        figure.legend(loc="upper right", ncols=3, handles=left.containers)

    return draw_figure(
        paint,
        size_in=(10.5, 3.7),
        alt=f"Throughputs of {len(muons)} telescopes from muons against those that fit showers and "
        "muons best, and their deviations in percent.",
        caption="Throughputs from muons against those that fit showers and muons together.",
    )
