"""Every table of the muon jobs is as declared."""

from __future__ import annotations

import numpy as np
import pytest

from calibdask.flags import Flag
from calibdask.muon.tables import LINE, LINES, MUON_THROUGHPUT, POINTS, PROFILE, TABLES, TREND
from tests.read_back import assert_read_back

WRITTEN = {
    "throughput": {TREND.path, MUON_THROUGHPUT.path, *(one.path for one in PROFILE.values())},
    "psf": {LINE.path, LINES.path, POINTS.path},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_table_is_read_back_through_its_schema(kind, muons, run):
    result = run(kind, muons)
    assert assert_read_back(result.paths[0], result.tables, TABLES) == WRITTEN[kind]
    obs_ids = {tuple(table.meta["obs_ids"].tolist()) for table in result.tables.values()}
    assert obs_ids == {(2001, 2002, 2003)}


def test_every_table_that_is_declared_is_written():
    assert {one.path for one in TABLES} == WRITTEN["throughput"] | WRITTEN["psf"]


def test_tables_say_what_their_flags_mean(muons, run):
    table = run("throughput", muons).tables[TREND.path]
    assert table["flags"].tolist()[2] == Flag.TWO_MIRRORS.letter
    assert table.meta["FLAG_W"] == f"two_mirrors: {Flag.TWO_MIRRORS.meaning}"
    assert np.asarray(table["flags"]).dtype == np.dtype("U16")
