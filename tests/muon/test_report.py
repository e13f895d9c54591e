from __future__ import annotations

import numpy as np
import pytest

from calibdask.flags import Flag
from calibdask.muon.report import Picture, psf_sections, throughput_sections
from calibdask.muon.simulate import MuonSimulation, simulate_rings
from calibdask.report import FigureBlock, Notice, TableBlock
from calibdask.stats.timebins import TimeBins
from tests.muon.toys import START_NS, S, in_memory

BINS = TimeBins(240 * S, START_NS)


@pytest.fixture(scope="module")
def columns():
    return simulate_rings(MuonSimulation(n_files=1, n_rings=4000, seed=2), 0)


def blocks(sections, kind):
    return [one for section in sections for one in section.blocks if isinstance(one, kind)]


def titles(sections):
    return [section.title for section in sections]


def picture(tel_id=1):
    rng = np.random.default_rng(0)
    lon, lat = (
        axis.ravel() for axis in np.meshgrid(np.linspace(-2, 2, 30), np.linspace(-2, 2, 30))
    )
    ring = np.abs(np.hypot(lon, lat) - 1.2) < 0.1
    charge = np.where(ring, 20.0, 0.0) + rng.normal(0, 1, len(lon))
    charge[5] = np.nan
    pixels = np.array([lon, lat, charge, np.where(ring, 20.0, 0.0)], np.float32)
    return Picture(tel_id, 7, 400, np.array([0, 0, 1.2, 0.05, 0.22, 5.0, 0.13]), pixels)


def test_throughput(columns):
    sections = throughput_sections(in_memory("throughput", columns, bins=BINS), [picture()])
    assert titles(sections) == [
        *("What needs attention", "Throughput", "Residuals", "Rings", "Values"),
    ]
    figures = blocks(sections, FigureBlock)
    assert len(figures) == 3
    assert all(figure.alt and figure.caption for figure in figures)
    trend, values = blocks(sections, TableBlock)
    assert trend.columns["Telescope"].tolist() == [1, 2]
    assert len(values.columns["Mean"]) == 10
    assert not [one for one in blocks(sections, Notice) if one.level == "error"]


def test_the_same_tables_give_the_same_page(columns):
    tables = in_memory("throughput", columns, bins=BINS)
    one, two = (throughput_sections(tables, [picture()]) for _ in range(2))
    images = [[figure.image for figure in blocks(page, FigureBlock)] for page in (one, two)]
    assert images[0] == images[1]


def test_a_jump_is_marked(columns):
    jumped = dict(columns)
    late = (columns["time_ns"] - START_NS > 500 * S) & (columns["time_ns"] - START_NS < 700 * S)
    value = columns["muonefficiency_optical_efficiency"]
    jumped["muonefficiency_optical_efficiency"] = np.where(late, 0.8 * value, value)
    sections = throughput_sections(in_memory("throughput", jumped, bins=BINS))
    notices = [one.text for one in blocks(sections, Notice)]
    assert any("off their trend" in text or "off the trend" in text for text in notices)
    assert any("(X)" in text and Flag.POOR_LINE.meaning in text for text in notices)
    plain = throughput_sections(in_memory("throughput", columns, bins=BINS))
    assert not any("off the" in one.text for one in blocks(plain, Notice))


def test_psf(columns):
    sections = psf_sections(in_memory("psf", columns))
    assert titles(sections) == ["What needs attention", "Width of rings", "Points"]
    assert len(blocks(sections, FigureBlock)) == 1
    binned = psf_sections(in_memory("psf", columns, bins=BINS, min_rings=20))
    assert "Drift" in titles(binned)


def test_telescopes_without_values_are_named(columns):
    tables = in_memory("throughput", columns)
    trend = tables["/dl1/monitoring/telescope/calibration/optical_throughput/muon_trend"]
    trend["flags"] = ["W", ""]
    sections = throughput_sections(tables)
    notices = [one for one in blocks(sections, Notice) if one.level == "warning"]
    assert any(one.text.startswith("Telescope 1 (W)") for one in notices)


def test_many_telescopes_are_not_all_drawn():
    options = MuonSimulation(n_files=1, n_rings=3000, n_telescopes=15, seed=1)
    sections = throughput_sections(in_memory("throughput", simulate_rings(options, 0)))
    trend = blocks(sections, TableBlock)[0]
    assert len(trend.columns["Telescope"]) == 15
    assert "12 telescopes" in blocks(sections, FigureBlock)[0].alt
