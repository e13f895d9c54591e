"""The report's section about image sizes."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.table import QTable

from calibdask.array.image_report import image_size_section
from calibdask.report import FigureBlock, Notice, Paragraph, TableBlock

TABLE = "/dl2/monitoring/subarray/inter_calibration"


def result(*, statistical=0.01, systematic=0.005, kappa=True):
    """Two LSTs and two MSTs, the first of each the reference."""
    value = np.array([1.0, 0.8, 1.0, 1.25])
    free = np.array([0.0, 1.0, 0.0, 1.0])
    telescopes = QTable(
        {
            "tel_type": ["LST", "LST", "MST", "MST"],
            "tel_id": [1, 2, 5, 6],
            "value": value,
            "error": value * free * statistical,
            "component": [0, 0, 1, 1],
        }
    )
    if systematic is not None:
        telescopes["systematic"] = value * free * systematic
    components = QTable({"tel_type": ["LST", "MST"], "component": [0, 1]})
    slopes = QTable(
        {
            "tel_type": ["LST", "LST", "MST"],
            "distance_from": [100.0, 400.0, 400.0] * u.m,
            "distance_to": [125.0, np.inf, np.inf] * u.m,
            "kappa": [-1.0, -4.0, -3.0],
            "kappa_error": [0.01, 0.02, 0.03],
        }
    )
    tables = {TABLE: telescopes, f"{TABLE}_components": components}
    return tables | ({f"{TABLE}_slopes": slopes} if kappa else {})


def blocks_of(tables, kind, corrections=("This was done.",)):
    section = image_size_section(tables, TABLE, corrections=corrections)
    assert section.title == "Image sizes"
    return [block for block in section.blocks if isinstance(block, kind)]


def test_it_says_what_was_done_and_what_is_left():
    tables = result()
    (text,) = blocks_of(tables, Paragraph)
    assert text.text.endswith("This was done.")
    table, slopes = blocks_of(tables, TableBlock)
    assert list(table.columns["Type"]) == ["LST", "MST"]
    assert slopes.columns["Mean distance, m"] == ["100 to 125", "from 400"]
    assert list(slopes.columns["LST"]) == [-1.0, -4.0]
    np.testing.assert_array_equal(slopes.columns["MST"], [np.nan, -3.0])
    np.testing.assert_allclose(table.columns["Statistical error, %"], 1.0)
    np.testing.assert_allclose(table.columns["Systematic error, %"], 0.5)
    (figure,) = blocks_of(tables, FigureBlock)
    assert "2 telescopes" in figure.alt
    assert not blocks_of(tables, Notice)


def test_a_large_systematic_error_is_a_warning():
    notices = blocks_of(result(systematic=0.05), Notice)
    assert [notice.level for notice in notices] == ["warning", "warning"]
    assert "values move by 5 %" in notices[0].text
    assert "minimum_pair_intensity" in notices[0].text


def test_an_unknown_systematic_error_is_a_warning():
    tables = result(systematic=np.nan)
    notices = blocks_of(tables, Notice)
    assert len(notices) == 2
    assert "too few events" in notices[0].text
    assert not blocks_of(tables, FigureBlock)


def test_without_corrections_there_is_less_to_say():
    tables = result(systematic=None, kappa=False)
    (table,) = blocks_of(tables, TableBlock)
    assert set(table.columns) == {"Type", "Component", "Statistical error, %"}
    assert not blocks_of(tables, FigureBlock)
    assert not blocks_of(tables, Notice)
