"""The figures of time bins: deviations from each telescope's mean, no point out of sight."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import QTable
from matplotlib.figure import Figure

from calibdask.array import drift_report
from calibdask.array.drift_report import drift_sections
from calibdask.array.report import THROUGHPUT
from calibdask.array.timing_report import OFFSET
from calibdask.report import FigureBlock
from calibdask.stats.timebins import to_time

WIDTH_NS = 600 * 10**9
START_NS = 1_700_000_000 * 10**9


def tables_of(quantity, values, errors, flags=None):
    """Tables of B time bins and T telescopes of two types; values and errors of shape (B, T)."""
    n_bins, n_tel = values.shape
    number, tel_id = np.repeat(np.arange(n_bins), n_tel), np.tile(np.arange(1, n_tel + 1), n_bins)
    types = np.where(np.arange(n_tel) < 3, "LST", "MST")
    unit = quantity.unit or None
    times = {
        "time_bin": number,
        "time_start": to_time(START_NS + number * WIDTH_NS),
        "time_end": to_time(START_NS + (number + 1) * WIDTH_NS),
    }
    jump = np.zeros((n_bins, n_tel), "U1") if flags is None else flags
    main = QTable(
        times
        | {
            "tel_type": np.tile(types, n_bins),
            "tel_id": tel_id,
            "value": values.ravel(),
            "error": errors.ravel(),
            "flags": jump.ravel(),
        },
        units={"value": unit, "error": unit} if unit else None,
    )
    one = dict.fromkeys(("chi2", "p_value", "step_sigma", "limit_sigma"), np.ones(n_tel))
    drift = QTable(
        {"tel_type": types, "tel_id": np.arange(1, n_tel + 1), **one}
        | dict.fromkeys(("n_bins", "ndf"), np.full(n_tel, n_bins))
        | {
            "step": np.zeros(n_tel),
            "step_error": np.ones(n_tel),
            "step_time_bin": np.zeros(n_tel, int),
            "flags": np.where((jump == "J").any(axis=0), "J", ""),
        }
    )
    components = QTable({"time_bin": np.arange(n_bins), "n_events": np.ones(n_bins, int),
                         "p_value": np.ones(n_bins)})  # fmt: skip
    path = quantity.table
    return {path: main, f"{path}_drift": drift, f"{path}_components": components}


@pytest.fixture
def panels(monkeypatch):
    """Panels of all figures that are drawn, by their names, with what is drawn in them."""
    found = {}
    save = Figure.savefig

    def save_and_keep(figure, *args, **options):
        panels = [panel for panel in figure.axes if panel.get_visible()]
        found.update({panel.texts[0].get_text(): panel for panel in panels})
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return found


def points_of(panel):
    return np.concatenate([line.get_ydata() for line in panel.containers[0].lines[:1]])


@pytest.mark.parametrize("quantity", [THROUGHPUT, OFFSET])
def test_each_telescope_is_drawn_about_its_own_mean(panels, quantity):
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 0.6, 2.0, 50.0, 0.01, 1.0])
    values = scale * (1 + rng.normal(0, 0.02, (8, 6)))
    values[2, 1] = np.nan
    values[:, 5] = np.nan
    errors = 0.02 * np.abs(values) * rng.uniform(0.5, 2, values.shape)
    errors[:, 0] = 0.0  # held fixed
    drift_sections(tables_of(quantity, values, errors), quantity)
    assert sorted(panels) == ["LST 1", "LST 2", "LST 3", "MST 4", "MST 5"]
    for t, panel in enumerate(panels[name] for name in sorted(panels)):
        mine = np.isfinite(values[:, t])
        own = values[mine, t]
        weight = errors[mine, t] ** -2.0 if t else np.ones(len(own))
        mean = np.average(own, weights=weight)
        expected = own - mean if quantity.unit else 100 * (own / mean - 1)
        np.testing.assert_allclose(points_of(panel), expected, rtol=1e-9, atol=1e-9)


def test_no_point_is_out_of_sight_and_panels_of_a_type_have_one_scale(panels):
    rng = np.random.default_rng(2)
    values = 1 + rng.normal(0, 0.01, (5, 8))
    values[3, 4] = 1.9  # far off
    errors = np.full(values.shape, 0.01)
    errors[1, 1] = 30.0  # an error that would flatten all others
    drift_sections(tables_of(THROUGHPUT, values, errors), THROUGHPUT)
    limits = {}
    for name, panel in panels.items():
        low, high = panel.get_ylim()
        assert low < points_of(panel).min() <= points_of(panel).max() < high
        limits.setdefault(name[:3], set()).add((low, high))
    assert {kind: len(of_type) for kind, of_type in limits.items()} == {"LST": 1, "MST": 1}
    ((_, high),) = limits["LST"]
    assert high < 20


def test_the_suspect_telescopes_are_drawn_where_not_all_can_be(panels, monkeypatch):
    monkeypatch.setattr(drift_report, "N_PANELS", 4)
    values, errors = np.ones((4, 9)), np.full((4, 9), 0.01)
    flags = np.full((4, 9), "", "U1")
    flags[2, 7] = "J"
    section, _ = drift_sections(tables_of(THROUGHPUT, values, errors, flags), THROUGHPUT)
    assert len(panels) == 4
    assert "MST 8" in panels
    (figure,) = [block for block in section.blocks if isinstance(block, FigureBlock)]
    assert "5 telescopes that move less are not drawn" in figure.caption
    assert "telescopes 8 jump" in figure.alt
