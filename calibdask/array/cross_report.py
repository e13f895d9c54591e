"""The report's part about cross-calibration: scale of the types, agreement with muons, network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.array.report import P_VALUE_LIMIT, CalibratedQuantity, inter_calibration_sections
from calibdask.array.tables import CONSISTENCY, CONTRASTS, CROSS, MUONS, SCALING_FACTORS
from calibdask.flags import Flag, has
from calibdask.report.blocks import Notice, Paragraph, ReportSection, table_block
from calibdask.report.figures import (
    DARK,
    WIDTH_IN,
    draw_figure,
    legend_above,
    mark_zero,
    plot_points,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import QTable
    from matplotlib.figure import Figure

    from calibdask.report.blocks import Block, FigureBlock
    from calibdask.report.telescopes import TelescopeLayout

__all__ = ["CROSS_THROUGHPUT", "cross_calibration_sections"]

CROSS_THROUGHPUT = CalibratedQuantity(
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
) -> list[ReportSection]:
    """Describe a cross-calibration: the network, the scale of the types, agreement with muons.

    Parameters and returned sections are those of `inter_calibration_sections`.
    """
    sections = inter_calibration_sections(tables, layout, truth=truth, quantity=CROSS_THROUGHPUT)
    # After what needs attention and the values themselves.
    more = [ReportSection("Scale of the types", _types(tables[SCALING_FACTORS.path]))]
    if MUONS.path in tables:
        blocks = _muons(tables[MUONS.path], tables[CONSISTENCY.path])
        blocks += _contrasts(tables[CONTRASTS.path])
        more.append(ReportSection("Agreement with muons", blocks))
    return [*sections[:2], *more, *sections[2:]]


def _types(factors: QTable) -> list[Block]:
    if not len(factors):
        return [Notice("warning", "There is one type of telescope only: nothing to compare with.")]
    how = (
        "ratio of the reference telescopes of the two types"
        if (np.asarray(factors["tel_id"]) >= 0).any()
        else "factor for all telescopes of the type, their ratios taken from the inter-calibration"
    )
    return [
        *(
            Notice(
                "warning",
                f"{row['tel_type']}: no pairs connect it with {row['tel_ref']}: no scale.",
            )
            for row in factors[has(factors["flags"], Flag.NO_PAIR)]
        ),
        table_block(
            SCALING_FACTORS,
            factors,
            (
                *("tel_type", "tel_ref", "scaling_factor", "scaling_factor_uncertainty"),
                *("tel_id", "tel_id_ref", "n_pairs", "flags"),
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
        both = f"{n_muons} muon throughputs and the ratios from showers"
        if has(row["flags"], Flag.NO_ERROR):
            text = f"{who}: too few events for a covariance: muons do not set the scale."
            blocks.append(Notice("warning", text))
        elif ndf < 1:
            text = f"{who}: one muon throughput sets the scale, and there is nothing to test."
            blocks.append(Paragraph(text))
        elif p_value < P_VALUE_LIMIT:
            text = f"the {both} disagree ({fit}): look for the telescopes with large pulls."
            blocks.append(Notice("warning", f"{who}: {text}"))
        else:
            blocks.append(Paragraph(f"{who}: {both} agree ({fit})."))
    return [
        *blocks,
        _draw_muons(muons),
        table_block(
            MUONS,
            muons,
            (
                *("tel_type", "tel_id", "muon_throughput", "muon_throughput_error", "n_rings"),
                *("value", "residual", "pull"),
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
    return [
        *(
            Notice(
                "warning",
                f"{row['tel_type']}: the energies of its telescopes disagree with its muons by "
                f"{100 * row['contrast']:+.2g} % against the other types: its scale is from its"
                " own muons.",
            )
            for row in contrasts[has(contrasts["flags"], Flag.MUONS_DISAGREE)]
        ),
        table_block(
            CONTRASTS,
            contrasts,
            ("tel_type", "component", "n_muons", "contrast", "error", "p_value", "flags"),
            "Mean of ln of muon over shower throughput of each type, less that of the other types."
            " M: the two disagree, and the scale of the type is from its own muons.",
        ),
    ]


def _draw_muons(muons: QTable) -> FigureBlock:
    names = ("tel_type", "value", "muon_throughput", "muon_throughput_error", "residual")
    types, value, muon, error, residual = (np.asarray(muons[name]) for name in names)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4), gridspec_kw={"wspace": 0.25})
        for group, kind in enumerate(np.unique(types).tolist()):
            rows = types == kind
            style: dict[str, Any] = {"group": group, "label": kind}
            plot_points(left, value[rows], muon[rows], error[rows], **style)
            percent = 100 * residual[rows], 100 * error[rows] / muon[rows]
            plot_points(right, np.flatnonzero(rows), *percent, **style)
        ends = [min(value.min(), muon.min()), max(value.max(), muon.max())]
        left.plot(ends, ends, color=DARK, linewidth=0.9, zorder=1)
        left.set(xlabel="throughput from showers and muons", ylabel="throughput from muons")
        left.set_title("Throughput")
        mark_zero(right)
        ticks = np.arange(0, len(muons), max(1, len(muons) // 18))
        right.set_xticks(ticks, np.asarray(muons["tel_id"])[ticks].tolist())
        right.set(xlabel="telescope", ylabel="muons over the fit - 1, %")
        right.set_title("Residuals")
        legend_above(figure, left)

    return draw_figure(
        paint,
        size_in=(WIDTH_IN, 3.7),
        alt=f"Throughputs of {len(muons)} telescopes from muons against those that fit showers and "
        "muons best, and their deviations in percent.",
        caption="Throughputs from muons against those that fit showers and muons together.",
    )
