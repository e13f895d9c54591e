"""The inter-calibration's part of the report: what it says, and that no result breaks it."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from astropy.table import QTable
from matplotlib.figure import Figure

from calibdask.array.report import (
    TelescopeLayout,
    inter_calibration_sections,
)
from calibdask.array.tables import INTER
from calibdask.errors import MissingInput
from calibdask.flags import Flag
from calibdask.report import (
    FigureBlock,
    Notice,
    Paragraph,
    RunRecord,
    TableBlock,
    render_report,
)

if TYPE_CHECKING:
    from calibdask.report import ReportSection

COEFFICIENTS = next(iter(INTER))
PAIRS, COVARIANCE, COMPONENTS = (
    f"{COEFFICIENTS}_{name}" for name in ("pairs", "covariance", "components")
)

Case = tuple[dict[str, QTable], TelescopeLayout, dict[int, float]]

RUN = RunRecord(
    job="inter-calibration",
    version="0.1.0",
    command="calibdask inter-calibration -c array.yaml -i dl2/ -o result.h5",
    plan_digest="0" * 64,
    result_digest="1" * 64,
    started="2026-01-01T00:00:00Z",
    finished="2026-01-01T00:01:00Z",
    host="node",
    executor="serial",
    workers=1,
    n_shards=1,
    n_computed=1,
    n_reused=0,
    inputs=(),
    cut_flow={},
)


def make_case(sizes: dict[str, int], *, seed: int = 1) -> Case:
    """Solve a small network per type: every pair measured, the lowest telescope held at 1."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, Any]]] = {
        path: [] for path in (COEFFICIENTS, PAIRS, COVARIANCE, COMPONENTS)
    }
    truth: dict[int, float] = {}
    places = []
    first_id = 1
    for tel_type, size in sizes.items():
        ids = np.arange(first_id, first_id + size)
        first_id += size
        theta = rng.normal(0, 0.1, size)
        truth |= dict(zip(ids.tolist(), np.exp(theta).tolist(), strict=True))
        places += [(tel, tel_type, *rng.normal(0, 40 * size, 2)) for tel in ids.tolist()]
        one, two = np.triu_indices(size, 1)
        n_events = rng.integers(50, 2000, len(one))
        error = 0.2 / np.sqrt(n_events)
        centre = theta[one] - theta[two] + error * rng.normal(size=len(one))
        design = np.zeros((len(one), size))
        design[np.arange(len(one)), one], design[np.arange(len(one)), two] = 1.0, -1.0
        weighted = design[:, 1:] / error[:, None]
        inverse = np.linalg.inv(weighted.T @ weighted)
        fit = np.concatenate([[0.0], inverse @ weighted.T @ (centre / error)])
        value = np.exp(fit)
        covariance = np.zeros((size, size))
        covariance[1:, 1:] = inverse * np.outer(value[1:], value[1:])
        sigma = np.sqrt(np.diagonal(covariance))
        residual = centre - design @ fit
        chi2, ndf = float(np.sum((residual / error) ** 2)), len(one) - size + 1
        for i, tel in enumerate(ids):
            rows[COEFFICIENTS].append(
                {
                    "tel_type": tel_type,
                    "tel_id": tel,
                    "value": value[i],
                    "error": sigma[i],
                    "error_independent": sigma[i] / 1.5,
                    "n_pairs": size - 1,
                    "n_events": int(n_events[(one == i) | (two == i)].sum()),
                    "component": 0,
                    "flags": "" if i else "R",
                }
            )
        rows[PAIRS] += [
            {
                "tel_type": tel_type,
                "tel_id_1": ids[one[p]],
                "tel_id_2": ids[two[p]],
                "n_events": n_events[p],
                "n_invalid": 0,
                "mean_asymmetry": centre[p] / 2,
                "std_asymmetry": 0.1,
                "log_ratio": centre[p],
                "log_ratio_error": error[p],
                "std_log_ratio": 0.2,
                "model_log_ratio": (design @ fit)[p],
                "residual": residual[p],
                "pull": residual[p] / error[p],
                "used": True,
                "flags": "",
            }
            for p in range(len(one))
        ]
        rows[COVARIANCE] += [
            {
                "tel_type": tel_type,
                "component": 0,
                "tel_id_1": ids[i],
                "tel_id_2": ids[j],
                "covariance": covariance[i, j],
            }
            for i in range(size)
            for j in range(size)
        ]
        rows[COMPONENTS].append(
            {
                "tel_type": tel_type,
                "component": 0,
                "reference_tel_id": ids[0],
                "n_telescopes": size,
                "n_pairs": len(one),
                "n_events": int(n_events.sum()),
                "chi2": chi2,
                "ndf": ndf,
                "p_value": 0.5 if ndf else math.nan,
                "flags": "",
            }
        )
    tel_id, types, x_m, y_m = zip(*places, strict=True)
    layout = TelescopeLayout(np.array(tel_id), np.array(types), np.array(x_m), np.array(y_m))
    tables = {}
    for path, table in rows.items():
        columns = [
            one
            for one in INTER[path].columns
            if not one.optional or (table and one.name in table[0])
        ]
        tables[path] = INTER[path].build(
            {
                one.name: np.array(
                    [row[one.name] for row in table], {"text": str}.get(one.kind, one.kind)
                )
                for one in columns
            }
        )
    return tables, layout, truth


def all_nan(case: Case) -> Case:
    """Take every number from a result, as when no pair had enough events."""
    tables, *rest = case
    coefficients, pairs = tables[COEFFICIENTS], tables[PAIRS]
    for name in ("value", "error", "error_independent"):
        coefficients[name] = np.nan
    coefficients["flags"] = "NS"
    coefficients["component"] = -1
    for name in ("log_ratio", "log_ratio_error", "model_log_ratio", "residual", "pull"):
        pairs[name] = np.nan
    pairs["used"], pairs["flags"] = False, "S"
    empty = {path: tables[path][:0] for path in (COVARIANCE, COMPONENTS)}
    return {**tables, **empty}, *rest


def no_pairs(case: Case) -> Case:
    """Leave no pair at all."""
    tables, *rest = all_nan(case)
    return {**tables, PAIRS: tables[PAIRS][:0]}, *rest


def blocks_of(sections: list[ReportSection], kind: type) -> list[Any]:
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


def notices_of(sections: list[ReportSection], level: str) -> list[str]:
    return [notice.text for notice in blocks_of(sections, Notice) if notice.level == level]


def section_named(sections: list[ReportSection], title: str) -> ReportSection:
    return next(section for section in sections if section.title == title)


@pytest.mark.parametrize(
    "sizes",
    [{"LST": 2}, {"LST": 4}, {"LST": 4, "MST": 14, "SST": 18}, {"MST": 1}],
    ids=["two", "four", "three types", "one telescope"],
)
@pytest.mark.parametrize("spoil", [lambda case: case, all_nan, no_pairs])
def test_any_result_renders_and_every_figure_is_svg(sizes: dict[str, int], spoil: Any) -> None:
    tables, layout, truth = spoil(make_case(sizes))
    sections = inter_calibration_sections(tables, layout, truth=truth)
    for figure in blocks_of(sections, FigureBlock):
        assert ET.fromstring(figure.image).tag == "{http://www.w3.org/2000/svg}svg"
    page = render_report("Array", RUN, sections)
    for section in sections:
        assert section.blocks
        assert section.title in page


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        ({"LST": 4}, 1.0),
        ({"LST": 4}, 1e5),
        ({"LST": 4, "MST": 14, "SST": 18}, 1.0),
        ({"LST": 4, "MST": 40, "SST": 56}, 1.0),
    ],
    ids=["4", "4 with long numbers", "36", "100"],
)
def test_no_part_of_a_figure_is_cut_or_covers_another(
    sizes: dict[str, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, layout, _ = make_case(sizes)
    tables[COEFFICIENTS]["flags"][1::3] = "DBS"
    tables[COEFFICIENTS]["value"] *= scale
    tables[COEFFICIENTS]["error"] *= scale
    figures: list[Figure] = []
    save = Figure.savefig

    def save_and_keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    inter_calibration_sections(tables, layout)
    assert len(figures) == 4
    for figure in figures:
        # Each with its title and labels.
        boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
        edge = figure.bbox
        for box in boxes:
            assert edge.x0 <= box.x0 < box.x1 <= edge.x1
            assert edge.y0 <= box.y0 < box.y1 <= edge.y1
        for box, other in itertools.combinations(boxes, 2):
            assert not box.overlaps(other)


def test_every_row_of_the_tables_is_on_the_page() -> None:
    tables, layout, _ = make_case({"LST": 4, "SST": 5})
    sections = inter_calibration_sections(tables, layout)
    shown = blocks_of(sections, TableBlock)
    telescopes = next(table for table in shown if "Throughput" in table.columns)
    pairs = [table for table in shown if "Pull" in table.columns][-1]
    components = next(table for table in shown if "chi2/ndf" in table.columns)
    assert len(telescopes.rows()) == 9
    assert [(cells[1], cells[2]) for _, cells in pairs.rows()] == [
        (str(row["tel_id_1"]), str(row["tel_id_2"])) for row in tables[PAIRS]
    ]
    assert len(components.rows()) == 2


def test_rows_are_ordered_by_type_and_number_whatever_the_order_of_the_result() -> None:
    tables, layout, truth = make_case({"MST": 3, "SST": 4})
    shuffled = {
        path: table[np.random.default_rng(3).permutation(len(table))]
        for path, table in tables.items()
    }
    page = render_report("Array", RUN, inter_calibration_sections(tables, layout, truth=truth))
    again = render_report("Array", RUN, inter_calibration_sections(shuffled, layout, truth=truth))
    assert again == page


def test_figures_do_not_depend_on_the_users_settings() -> None:
    import matplotlib as mpl

    tables, layout, _ = make_case({"LST": 3})
    before = blocks_of(inter_calibration_sections(tables, layout), FigureBlock)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        after = blocks_of(inter_calibration_sections(tables, layout), FigureBlock)
        assert mpl.rcParams["font.size"] == 30
    assert [figure.image for figure in after] == [figure.image for figure in before]


def test_a_clean_result_has_no_warning() -> None:
    tables, layout, _ = make_case({"LST": 4, "SST": 5})
    sections = inter_calibration_sections(tables, layout)
    assert notices_of(sections, "error") == []
    assert notices_of(sections, "warning") == []


@pytest.mark.parametrize(("flag", "level"), [(f, "warning") for f in "FDBN"] + [("S", "info")])
def test_flags_are_explained_in_words_with_the_telescopes_they_concern(
    flag: str, level: str
) -> None:
    tables, layout, _ = make_case({"LST": 5})
    tables[COEFFICIENTS]["flags"][[2, 3]] = flag
    attention = inter_calibration_sections(tables, layout)[0]
    assert f"Telescopes 3, 4 ({flag}): {Flag(flag).meaning}." in notices_of([attention], level)
    legend = next(block for block in attention.blocks if isinstance(block, TableBlock))
    counts = dict(zip(legend.columns["Flag"], legend.columns["Telescopes"], strict=True))
    assert counts == {"R": 1, flag: 2}


def test_an_unknown_flag_restricts_the_use() -> None:
    tables, layout, _ = make_case({"LST": 3})
    tables[COEFFICIENTS]["flags"][1] = "?"
    attention = inter_calibration_sections(tables, layout)[0]
    assert "3 of 3 telescopes have a value, 2 of them without a flag" in attention.blocks[-2].text


def test_a_missing_value_without_a_flag_is_an_error() -> None:
    tables, layout, _ = make_case({"LST": 3})
    tables[COEFFICIENTS]["value"][1] = np.nan
    errors = notices_of(inter_calibration_sections(tables, layout), "error")
    assert len(errors) == 1
    assert errors[0].startswith("Telescope 2: no value, and no flag N")
    tables[COEFFICIENTS]["flags"][1] = "N"
    assert notices_of(inter_calibration_sections(tables, layout), "error") == []


def test_a_missing_error_without_a_flag_is_warned_of() -> None:
    tables, layout, _ = make_case({"LST": 3})
    tables[COEFFICIENTS]["error"][2] = np.nan
    warnings = notices_of(inter_calibration_sections(tables, layout), "warning")
    assert warnings == ["Telescope 3: a value without an error, and no flag B for it."]


def test_a_bad_fit_and_a_network_in_pieces_are_warned_of() -> None:
    tables, layout, _ = make_case({"LST": 4, "SST": 4})
    tables[COMPONENTS]["p_value"][0] = 1e-9
    extra = tables[COMPONENTS][1:]
    extra["component"] = 1
    tables[COEFFICIENTS]["component"][-2:] = 1
    tables[COMPONENTS] = QTable(
        rows=[
            dict(zip(t.colnames, row, strict=True))
            for t in (tables[COMPONENTS], extra)
            for row in t
        ]
    )
    warnings = notices_of(inter_calibration_sections(tables, layout), "warning")
    assert any(text.startswith("LST, component 0: p = 1e-09") for text in warnings)
    assert any(text.startswith("SST: the network of pairs falls apart into 2") for text in warnings)


def test_the_worst_pairs_come_first_and_dropped_ones_are_not_among_them() -> None:
    tables, layout, _ = make_case({"SST": 8})
    pairs = tables[PAIRS]
    pairs["pull"][[5, 9, 11]] = [-9.0, 7.5, 40.0]
    pairs["used"][11] = False
    tables_shown = [
        block
        for block in section_named(inter_calibration_sections(tables, layout), "Pairs").blocks
        if isinstance(block, TableBlock)
    ]
    worst, every = tables_shown
    np.testing.assert_array_equal(np.asarray(worst.columns["Pull"])[:2], [-9.0, 7.5])
    assert np.max(np.abs(np.asarray(worst.columns["Pull"]))) == 9.0
    assert [marked for marked, _ in every.rows()].index(True) == 11
    (figure,) = [
        block
        for block in section_named(inter_calibration_sections(tables, layout), "Pairs").blocks
        if isinstance(block, FigureBlock)
    ]
    assert "27 pairs" in figure.alt
    assert "2 beyond 5" in figure.alt


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_truth_is_put_on_the_scale_of_the_reference(scale: float) -> None:
    tables, layout, truth = make_case({"LST": 4})
    scaled = {tel: scale * value for tel, value in truth.items()}
    section = section_named(
        inter_calibration_sections(tables, layout, truth=scaled), "Comparison with the truth"
    )
    table = next(block for block in section.blocks if isinstance(block, TableBlock))
    value, error = (np.asarray(tables[COEFFICIENTS][name]) for name in ("value", "error"))
    expected = np.array([truth[tel] / truth[1] for tel in (1, 2, 3, 4)])
    np.testing.assert_allclose(table.columns["Truth"], expected, rtol=1e-12)
    pull = np.asarray(table.columns["Pull"])
    assert np.isnan(pull[0])  # held fixed: nothing to test
    np.testing.assert_allclose(pull[1:], ((value - expected)[1:] / error[1:]), rtol=1e-9)
    covariance = np.asarray(tables[COVARIANCE]["covariance"]).reshape(4, 4)[1:, 1:]
    chi2 = (value - expected)[1:] @ np.linalg.solve(covariance, (value - expected)[1:])
    (text,) = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert (
        f"that of the pulls (deviation over error) {math.sqrt(np.mean(pull[1:] ** 2)):.2f}" in text
    )
    assert f"chi2 is {chi2:.1f} for 3 degrees of freedom" in text


def test_without_a_reference_the_weighted_mean_of_the_logarithms_agrees_with_the_truth() -> None:
    tables, layout, truth = make_case({"LST": 5})
    tables[COMPONENTS]["reference_tel_id"] = -1
    section = section_named(
        inter_calibration_sections(tables, layout, truth=truth), "Comparison with the truth"
    )
    table = next(block for block in section.blocks if isinstance(block, TableBlock))
    pairs = tables[PAIRS]
    weight = np.array(
        [
            np.sum(
                pairs["log_ratio_error"][(pairs["tel_id_1"] == t) | (pairs["tel_id_2"] == t)]
                ** -2.0
            )
            for t in range(1, 6)
        ]
    )
    deviation = np.log(np.asarray(table.columns["Throughput"]) / np.asarray(table.columns["Truth"]))
    assert abs(weight @ deviation) < 1e-9 * weight.sum()
    assert np.abs(deviation).max() > 1e-4


def test_the_fixed_mean_of_a_component_is_no_degree_of_freedom() -> None:
    tables, layout, truth = make_case({"LST": 5})
    tables[COMPONENTS]["reference_tel_id"] = -1
    value = np.asarray(tables[COEFFICIENTS]["value"])
    relative = np.asarray(tables[COVARIANCE]["covariance"]).reshape(5, 5) / np.outer(value, value)
    centring = np.eye(5) - 1 / 5
    covariance = centring @ relative @ centring * np.outer(value, value)
    tables[COVARIANCE]["covariance"] = covariance.ravel()
    tables[COEFFICIENTS]["error"] = np.sqrt(np.diagonal(covariance))
    section = section_named(
        inter_calibration_sections(tables, layout, truth=truth), "Comparison with the truth"
    )
    (text,) = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert text.startswith("5 telescopes")
    assert "for 4 degrees of freedom" in text


def test_the_map_has_north_up_and_east_to_the_right() -> None:
    layout = TelescopeLayout(
        np.array([1, 2]), np.array(["LST", "LST"]), np.array([100.0, 0.0]), np.array([0.0, -30.0])
    )
    north_of_centre, east_of_centre = layout.east_north_m
    np.testing.assert_array_equal(north_of_centre, [0.0, 100.0])
    np.testing.assert_array_equal(east_of_centre, [30.0, 0.0])


def test_telescopes_without_a_position_are_named() -> None:
    tables, layout, _ = make_case({"LST": 4})
    partial = TelescopeLayout(
        layout.tel_id[:3], layout.tel_type[:3], np.array([0.0, np.nan, 50.0]), layout.y_m[:3]
    )
    warnings = notices_of(inter_calibration_sections(tables, partial), "warning")
    assert warnings == ["Telescopes 2, 4: not on the map, for want of a position."]
    nowhere = TelescopeLayout(layout.tel_id, layout.tel_type, layout.x_m * np.nan, layout.y_m)
    section = section_named(inter_calibration_sections(tables, nowhere), "Map")
    assert notices_of([section], "warning") == ["No telescope has a known position."]


def test_telescopes_of_the_array_that_are_not_in_the_result_are_on_the_map() -> None:
    tables, layout, _ = make_case({"LST": 3})
    larger = TelescopeLayout(
        np.append(layout.tel_id, 99),
        np.append(layout.tel_type, "MST"),
        np.append(layout.x_m, 0.0),
        np.append(layout.y_m, 0.0),
    )
    section = section_named(inter_calibration_sections(tables, larger), "Map")
    (figure,) = blocks_of([section], FigureBlock)
    assert figure.alt.startswith("Map of 4 telescopes")


def test_a_missing_table_or_column_is_named() -> None:
    tables, layout, _ = make_case({"LST": 3})
    with pytest.raises(MissingInput, match=r"no table /dl2/.*_pairs: run inter-calibration again"):
        inter_calibration_sections({p: t for p, t in tables.items() if p != PAIRS}, layout)
    tables[COEFFICIENTS].remove_columns(["error", "flags"])
    with pytest.raises(MissingInput, match=r"inter_calibration has no columns error, flags"):
        inter_calibration_sections(tables, layout)


def test_a_hundred_telescopes_stay_below_three_megabytes() -> None:
    tables, layout, truth = make_case({"LST": 4, "MST": 41, "SST": 55})
    # Telescopes see showers with their neighbours: about 1500 pairs, not all 2300.
    tables[PAIRS] = tables[PAIRS][np.random.default_rng(5).permutation(len(tables[PAIRS]))[:1500]]
    page = render_report("Array", RUN, inter_calibration_sections(tables, layout, truth=truth))
    assert len(page.encode()) < 3_000_000


def test_importing_it_does_not_import_what_is_slow() -> None:
    code = "import sys, calibdask.array.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"astropy", "matplotlib", "jinja2", "scipy", "tables"}.isdisjoint(loaded)
