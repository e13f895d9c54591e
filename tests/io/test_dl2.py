from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import tables as pytables
from h5py import h5f
from hypothesis import given
from hypothesis import strategies as st

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.dl2 import (
    ArrayLayout,
    Needs,
    event_ranges,
    event_times,
    inspect_dl2,
    read_telescope_events,
)
from calibdask.io.dl2 import matching as module
from calibdask.io.hdf5 import Table, open_hdf5
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.stats.timebins import ctao_time_ns

ENERGY = "/dl2/event/telescope/energy/Forest"
IMPACT = "/dl2/event/telescope/impact/Hillas"
PARAMETERS = "/dl1/event/telescope/parameters"
TRIGGER = "/dl1/event/subarray/trigger"
TELESCOPE_TRIGGER = "/dl1/event/telescope/trigger"
GEOMETRY = "/dl2/event/subarray/geometry/Hillas"
LAYOUT = "/configuration/instrument/subarray/layout"

# A column of every kind of table, of every kind of number.
FURTHER = [
    "hillas_intensity",
    "intensity_max",
    "morphology_n_islands",
    "n_trigger_pixels",
    "Hillas_h_max",
    "Hillas_is_valid",
]
NEEDS = Needs.energy("Forest", "Hillas", FURTHER)


def sorted_rows(events):
    """All that was read, in the order of telescope and event."""
    order = np.lexsort((events.event_id, events.obs_id, events.tel_id))
    columns = {"obs_id": events.obs_id, "event_id": events.event_id, "tel_id": events.tel_id}
    return {name: values[order] for name, values in (columns | events.columns).items()}


def assert_same_rows(one, other):
    one, other = sorted_rows(one), sorted_rows(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def joined(parts):
    """The rows of several shards, as `sorted_rows`."""
    rows = [sorted_rows(part) for part in parts]
    out = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.lexsort((out["event_id"], out["obs_id"], out["tel_id"]))
    return {name: values[order] for name, values in out.items()}


def shuffled(columns, rng):
    order = rng.permutation(len(columns["event_id"]))
    return {name: values[order] for name, values in columns.items()}


def without(columns, rows):
    return {name: np.delete(values, rows, axis=0) for name, values in columns.items()}


# --- against ctapipe -------------------------------------------------------------------------

REAL = Needs.energy(
    "RandomForestRegressor",
    "HillasReconstructor",
    [
        "RandomForestClassifier_tel_prediction",
        "HillasReconstructor_h_max",
        "n_trigger_pixels",
        "hillas_intensity",
    ],
)


def test_shared_files_hold_what_they_should(shared_array):
    infos = [inspect_dl2(shared_array / "dl2_small" / f"dl2_obs{n}.h5", REAL) for n in (1001, 1002)]
    assert [info.obs_ids for info in infos] == [(1001,), (1002,)]
    assert sum(info.n_telescope_rows for info in infos) == 12365
    assert infos[0].layout.tel_id.size == 36
    assert infos[0].layout.tel_type.count("LST") == 4
    assert infos[0].layout.tel_description[0] == "LST_LST_LSTCam"
    assert infos[0].process_type == "Observation"
    assert infos[0].product_id != infos[1].product_id
    assert infos[0].layout.contradiction(infos[1].layout) is None
    events = [
        read_telescope_events(shared_array / "dl2_small" / f"dl2_obs{n}.h5", REAL)
        for n in (1001, 1002)
    ]
    assert 35 in events[0].layout.tel_id  # but it has no tables
    assert 35 not in events[0].tel_id
    for info, part in zip(infos, events, strict=True):
        assert part.tel_id.size == info.n_telescope_rows
        assert part.n_missing == dict.fromkeys(REAL.names, 0)


@pytest.mark.parametrize(
    "name",
    ["dl2_small/dl2_obs1001.h5", "dl2_small/dl2_obs1002.h5", "dl2_ctapipe_chain/run202.dl2.h5"],
)
def test_same_as_ctapipe(shared_array, name):
    from ctapipe.io import read_table

    path = shared_array / name
    has_prediction = "small" in name
    further = [n for n in REAL.columns if has_prediction or "Classifier" not in n]
    needs = Needs(REAL.base, tuple(further))
    events = read_telescope_events(path, needs)
    assert events.units["RandomForestRegressor_tel_energy"] == "TeV"
    assert events.units["HillasReconstructor_tel_impact_distance"] == "m"
    trigger = read_table(path, TELESCOPE_TRIGGER)
    geometry = read_table(path, "/dl2/event/subarray/geometry/HillasReconstructor")
    for tel_id in np.unique(events.tel_id).tolist():
        mine = events.tel_id == tel_id
        for group, names in {
            "/dl2/event/telescope/energy/RandomForestRegressor": [
                n for n in needs.names if n.startswith("RandomForestRegressor")
            ],
            "/dl2/event/telescope/impact/HillasReconstructor": [
                "HillasReconstructor_tel_impact_distance"
            ],
            PARAMETERS: ["hillas_intensity"],
        }.items():
            table = read_table(path, f"{group}/tel_{tel_id:03d}")
            np.testing.assert_array_equal(events.event_id[mine], table["event_id"])
            np.testing.assert_array_equal(events.obs_id[mine], table["obs_id"])
            for column in names:
                np.testing.assert_array_equal(events.columns[column][mine], table[column].data)
        of_tel = trigger[trigger["tel_id"] == tel_id]
        pixels = dict(zip(of_tel["event_id"], of_tel["n_trigger_pixels"], strict=True))
        assert events.columns["n_trigger_pixels"][mine].tolist() == [
            pixels[event_id] for event_id in events.event_id[mine]
        ]
    h_max = dict(
        zip(geometry["event_id"], geometry["HillasReconstructor_h_max"].value, strict=True)
    )
    np.testing.assert_array_equal(
        events.columns["HillasReconstructor_h_max"],
        [h_max[event_id] for event_id in events.event_id],
    )


def test_real_file_by_range(shared_array):
    path = shared_array / "dl2_small" / "dl2_obs1001.h5"
    parts = [read_telescope_events(path, REAL, rows) for rows in event_ranges(path, 5)]
    whole = sorted_rows(read_telescope_events(path, REAL))
    for name, values in joined(parts).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


# --- rows ------------------------------------------------------------------------------------


def test_rows_and_events(dl2, write_dl2):
    made = dl2(obs_ids=(7, 3))
    events = read_telescope_events(write_dl2(made), NEEDS)
    assert events.tel_id[np.r_[True, np.diff(events.tel_id.astype(int)) != 0]].tolist() == [
        30,
        1,
        5,
    ]
    assert [events.obs_id.dtype, events.event_id.dtype] == [np.int64, np.int64]
    assert [events.event.dtype, events.tel_id.dtype] == [np.int64, np.uint16]
    keys = sorted(set(zip(events.obs_id.tolist(), events.event_id.tolist(), strict=True)))
    assert events.n_events == len(keys)
    assert [keys[i] for i in events.event] == list(
        zip(events.obs_id.tolist(), events.event_id.tolist(), strict=True)
    )
    energy = np.concatenate(
        [made[f"{ENERGY}/tel_{t:03d}"]["Forest_tel_energy"] for t in (30, 1, 5)]
    )
    assert events.columns["Forest_tel_energy"].tobytes() == energy.tobytes()  # NaN stays NaN
    assert events.columns["intensity_max"].dtype == np.float64
    assert events.columns["morphology_n_islands"].dtype == np.int64
    assert events.columns["Hillas_is_valid"].dtype == np.bool_
    assert set(events.n_missing.values()) == {0}


def test_image_intensity_as_the_base(dl2, write_dl2):
    made = dl2()
    needs = Needs.intensity("Hillas", ["tel_id"])
    events = read_telescope_events(write_dl2(made), needs)
    assert set(events.columns) == {"hillas_intensity", "Hillas_tel_impact_distance", "tel_id"}
    assert events.columns["tel_id"].tolist() == events.tel_id.tolist()
    assert events.units["hillas_intensity"] == ""


def test_order_in_the_tables_does_not_matter(dl2, write_dl2):
    made = dl2()
    rng = np.random.default_rng(2)
    mixed = {
        path: columns if path == LAYOUT else shuffled(columns, rng)
        for path, columns in made.items()
    }
    assert_same_rows(
        read_telescope_events(write_dl2(made), NEEDS),
        read_telescope_events(write_dl2(mixed), NEEDS),
    )


def test_missing_rows_are_blank_and_counted(dl2, write_dl2):
    made = dl2()
    whole = read_telescope_events(write_dl2(made), NEEDS)
    for path in (f"{IMPACT}/tel_001", f"{PARAMETERS}/tel_001"):
        made[path] = without(made[path], [0, 5])
    lost_event = made[GEOMETRY]["event_id"][10]
    made[GEOMETRY] = without(made[GEOMETRY], [10])
    made[TELESCOPE_TRIGGER] = without(made[TELESCOPE_TRIGGER], [3])
    events = read_telescope_events(write_dl2(made), NEEDS)
    first = np.flatnonzero(events.tel_id == 1)[[0, 5]]
    others = np.setdiff1d(np.arange(events.tel_id.size), first)
    for name in ("Hillas_tel_impact_distance", "hillas_intensity", "morphology_n_islands"):
        assert np.isnan(events.columns[name][first]).all()
        np.testing.assert_array_equal(events.columns[name][others], whole.columns[name][others])
        assert events.n_missing[name] == 2
    lost = events.event_id == lost_event
    assert np.isnan(events.columns["Hillas_h_max"][lost]).all()
    assert not events.columns["Hillas_is_valid"][lost].any()
    assert events.n_missing["Hillas_h_max"] == lost.sum() > 0
    assert events.n_missing["n_trigger_pixels"] == 1
    assert events.n_missing["Forest_tel_energy"] == 0


def test_telescopes_without_tables(dl2, write_dl2):
    made = dl2()
    del made[f"{ENERGY}/tel_001"], made[f"{IMPACT}/tel_005"]
    path = write_dl2(made)
    events = read_telescope_events(path, NEEDS)
    assert set(events.tel_id.tolist()) == {30, 5}
    mine = events.tel_id == 5
    assert np.isnan(events.columns["Hillas_tel_impact_distance"][mine]).all()
    assert events.n_missing["Hillas_tel_impact_distance"] == mine.sum()
    assert inspect_dl2(path, NEEDS).n_telescope_rows >= events.tel_id.size


def test_whole_files_need_no_table_of_events(dl2, write_dl2):
    made = dl2()
    del made[TRIGGER]
    assert read_telescope_events(write_dl2(made), NEEDS).n_events > 0


def test_tables_without_rows(dl2, write_dl2):
    made = dl2()
    for path, columns in made.items():
        if path != LAYOUT:
            made[path] = {name: values[:0] for name, values in columns.items()}
    path = write_dl2(made)
    events = read_telescope_events(path, NEEDS)
    assert events.n_events == events.tel_id.size == 0
    assert set(events.columns) == set(NEEDS.names)
    assert event_ranges(path, 4) == ((0, 0),)
    assert read_telescope_events(path, NEEDS, (0, 0)).n_events == 0


def test_big_endian_and_narrow_types(dl2, write_dl2):
    made = dl2()
    path = write_dl2(made)
    columns = made.pop(f"{ENERGY}/tel_005")
    other = write_dl2(made)
    rows = np.zeros(len(columns["tel_id"]), [(n, v.dtype) for n, v in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    with pytables.open_file(other, "a") as file:
        table = file.create_table(ENERGY, "tel_005", obj=rows, byteorder="big")
        for i, name in enumerate(table.colnames):
            if "energy" in name:
                table.attrs[f"CTAFIELD_{i}_UNIT"] = "TeV"
    assert_same_rows(read_telescope_events(path, NEEDS), read_telescope_events(other, NEEDS))
    assert read_telescope_events(other, NEEDS).columns["Forest_tel_energy"].dtype.isnative


def test_threads_read_the_same(dl2, write_dl2):
    path = write_dl2(dl2())
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: read_telescope_events(path, NEEDS), range(8)))
    for part in parts[1:]:
        assert_same_rows(parts[0], part)


# --- ranges of events ------------------------------------------------------------------------


def test_ranges_cover_the_events(dl2, write_dl2):
    path = write_dl2(dl2(n_events=101))
    for n in (1, 2, 7, 101, 500):
        ranges = event_ranges(path, n)
        assert len(ranges) == min(n, 101)
        assert (ranges[0][0], ranges[-1][1]) == (0, 101)
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert {stop - first for first, stop in ranges} <= {
            101 // len(ranges),
            101 // len(ranges) + 1,
        }


@pytest.mark.parametrize(
    "disorder",
    ["none", "tables", "trigger", "no mask", "a wrong mask", "blocks in reverse order", "rows"],
)
def test_ranges_together_are_the_whole(dl2, write_dl2, disorder, monkeypatch):
    monkeypatch.setattr(module, "SEARCH_ROWS", 50)  # so that tables need searching
    made = dl2(n_events=900, obs_ids=(3, 5))
    rng = np.random.default_rng(3)
    if disorder == "tables":
        made = {p: c if p in {LAYOUT, TRIGGER} else shuffled(c, rng) for p, c in made.items()}
    elif disorder == "trigger":
        made[TRIGGER] = shuffled(made[TRIGGER], rng)
    elif disorder == "no mask":
        del made[TRIGGER]["tels_with_trigger"]
    elif disorder == "a wrong mask":
        made[TRIGGER]["tels_with_trigger"] = ~made[TRIGGER]["tels_with_trigger"]
    elif disorder == "blocks in reverse order":
        for path, columns in made.items():
            if "tel_" in path:
                made[path] = {n: np.roll(v, len(v) // 2) for n, v in columns.items()}
    elif disorder == "rows":  # one row far from its place, which no range next to it would see
        for path, columns in made.items():
            if path.startswith(ENERGY):
                order = np.r_[1 : len(columns["event_id"]), 0]
                made[path] = {n: v[order] for n, v in columns.items()}
    path = write_dl2(made)
    whole = read_telescope_events(path, NEEDS)
    parts = [read_telescope_events(path, NEEDS, rows) for rows in event_ranges(path, 6)]
    assert sum(part.n_events for part in parts) == whole.n_events
    assert sum(part.tel_id.size for part in parts) == whole.tel_id.size > 1000
    expected = sorted_rows(whole)
    for name, values in joined(parts).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_ranges_in_order_read_their_part_only(dl2, write_dl2, monkeypatch):
    path = write_dl2(dl2(n_events=40_000))
    n_rows = 0
    read = pytables.Table.read

    def counted(self, *args, **options):
        nonlocal n_rows
        rows = read(self, *args, **options)
        n_rows += len(rows)
        return rows

    monkeypatch.setattr(pytables.Table, "read", counted)
    read_telescope_events(path, NEEDS)
    whole, n_rows = n_rows, 0
    read_telescope_events(path, NEEDS, event_ranges(path, 8)[3])
    n_rows -= 40_000  # the keys of the trigger table, read by event_ranges
    assert n_rows < whole / 4


TIMED = Needs("Forest_tel_energy", event_time=True)


def with_times(tables, rng=None):
    """Return each event a time of the array's trigger, and tell it by key."""
    trigger = tables[TRIGGER]
    n = len(trigger["event_id"])
    second = 1_700_000_000 + np.arange(n) if rng is None else rng.integers(0, 2**32, n)
    trigger["time"] = np.stack([second, 4 * np.arange(n) + 3], axis=1).astype(np.uint32)
    keys = zip(trigger["obs_id"].tolist(), trigger["event_id"].tolist(), strict=True)
    return dict(zip(keys, ctao_time_ns(trigger["time"]).tolist(), strict=True))


@pytest.mark.parametrize("disorder", [False, True])
def test_time_of_each_event(dl2, write_dl2, disorder):
    tables = dl2(obs_ids=(12, 11))
    rng = np.random.default_rng(8)
    if disorder:
        tables[TRIGGER] = shuffled(tables[TRIGGER], rng)
    expected = with_times(tables, rng)
    path = write_dl2(tables)
    assert sorted(event_times(path).tolist()) == sorted(expected.values())
    ranges = event_ranges(path, 3)
    for rows in (None, *ranges):
        events = read_telescope_events(path, TIMED, rows)
        assert events.event_time_ns.shape == (events.n_events,)
        keys = zip(events.obs_id.tolist(), events.event_id.tolist(), strict=True)
        found = events.event_time_ns[events.event].tolist()
        assert found == [expected[key] for key in keys]
    assert read_telescope_events(path, Needs("Forest_tel_energy")).event_time_ns is None


def test_times_that_cannot_be_had(dl2, write_dl2):
    tables = dl2()
    tables[TRIGGER].pop("time", None)
    path = write_dl2(tables, name="none.h5")
    for read in (event_times, lambda path: read_telescope_events(path, TIMED)):
        with pytest.raises(MissingInput, match=r"none.h5: .* has no column time"):
            read(path)
    n = len(tables[TRIGGER]["event_id"])
    tables[TRIGGER]["time"] = np.arange(n)
    with pytest.raises(CorruptedInput, match="time as int64, in the format 'mjd'"):
        event_times(write_dl2(tables, name="count.h5"))
    with_times(tables)
    tables[TRIGGER] = without(tables[TRIGGER], [4])
    with pytest.raises(CorruptedInput, match=r"lacks 1 events .* they have no time"):
        read_telescope_events(write_dl2(tables, name="lost.h5"), TIMED)


def test_rows_that_are_not_there(dl2, write_dl2):
    path = write_dl2(dl2(n_events=20))
    for rows in ((0, 21), (-1, 5), (6, 5)):
        with pytest.raises(CorruptedInput, match="plan again"):
            read_telescope_events(path, NEEDS, rows)


# --- files that are wrong --------------------------------------------------------------------


def with_repeated(columns, rng=None):
    out = {name: np.concatenate([values, values[4:5]]) for name, values in columns.items()}
    return out if rng is None else shuffled(out, rng)


@pytest.mark.parametrize("table", [f"{ENERGY}/tel_001", f"{IMPACT}/tel_001", GEOMETRY])
@pytest.mark.parametrize("mixed", [False, True])
def test_repeated_rows(dl2, write_dl2, table, mixed):
    made = dl2()
    rng = np.random.default_rng(1) if mixed else None
    event_id = made[table]["event_id"][4]
    made[table] = with_repeated(made[table], rng)
    path = write_dl2(made)
    says = rf"{path.name}: {table} has obs_id 11, event_id {event_id}.* in rows \d+ and \d+"
    with pytest.raises(CorruptedInput, match=says):
        read_telescope_events(path, NEEDS)
    with pytest.raises(CorruptedInput, match=says):
        [read_telescope_events(path, NEEDS, rows) for rows in event_ranges(path, 3)]


def test_repeated_events(dl2, write_dl2):
    made = dl2()
    made[TRIGGER] = with_repeated(made[TRIGGER])
    path = write_dl2(made)
    with pytest.raises(CorruptedInput, match="twice, in rows 4 and 300"):
        event_ranges(path, 2)
    with pytest.raises(CorruptedInput, match="twice"):
        read_telescope_events(path, NEEDS, (0, 301))


def test_table_of_another_telescope(dl2, write_dl2):
    made = dl2()
    made[f"{ENERGY}/tel_001"]["tel_id"][3] = 5
    with pytest.raises(CorruptedInput, match=r"tel_001 has rows of telescope 5"):
        read_telescope_events(write_dl2(made), NEEDS)


def test_telescope_not_in_the_layout(dl2, write_dl2):
    made = dl2()
    made[f"{ENERGY}/tel_099"] = made[f"{ENERGY}/tel_001"]
    with pytest.raises(CorruptedInput, match="tel_099"):
        inspect_dl2(write_dl2(made), NEEDS)


def test_units_are_converted(dl2, write_dl2):
    made = dl2()
    expected = read_telescope_events(write_dl2(made), NEEDS)
    for path, columns in made.items():
        if path.startswith(ENERGY):
            columns["Forest_tel_energy"] = columns["Forest_tel_energy"] * 1e3
        if path == GEOMETRY:
            columns["Hillas_h_max"] = columns["Hillas_h_max"] / 1e3
        if path == LAYOUT:
            columns["pos_x"] = columns["pos_x"] * 100
    units = {"Forest_tel_energy": "GeV", "Hillas_h_max": "km", "pos_x": "cm"}
    path = write_dl2(made, units)
    events = read_telescope_events(path, NEEDS)
    assert (events.units["Forest_tel_energy"], events.units["Hillas_h_max"]) == ("TeV", "m")
    for name in ("Forest_tel_energy", "Hillas_h_max"):
        np.testing.assert_allclose(events.columns[name], expected.columns[name], rtol=1e-15)
    np.testing.assert_allclose(inspect_dl2(path, NEEDS).layout.position_m[:, 0], [0, 100, 200])


def test_other_units_are_passed_on(dl2, write_dl2):
    events = read_telescope_events(write_dl2(dl2()), Needs("Forest_tel_energy", ("Hillas_alt",)))
    assert events.units["Hillas_alt"] == "deg"


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("Forest_tel_energy", "erg"),
        ("Forest_tel_energy", ""),
        ("Forest_tel_energy_uncert", "m"),
        ("Hillas_tel_impact_distance", "deg"),
        ("pos_y", "TeV"),
    ],
)
def test_units_that_cannot_be_right(dl2, write_dl2, column, unit):
    path = write_dl2(dl2(), {column: unit})
    with pytest.raises(CorruptedInput, match=f"{column}.*'{unit}'"):
        read_telescope_events(path, NEEDS)


def test_telescopes_with_different_units(dl2, write_dl2):
    made = dl2()
    for tel_id in (30, 1, 5):
        made[f"{PARAMETERS}/tel_{tel_id:03d}"]["hillas_psi"] = made[
            f"{PARAMETERS}/tel_{tel_id:03d}"
        ]["hillas_intensity"]
    path = write_dl2(made, {"hillas_psi": "deg"})
    with pytables.open_file(path, "a") as file:
        table = file.get_node(f"{PARAMETERS}/tel_005")
        table.attrs[f"CTAFIELD_{table.colnames.index('hillas_psi')}_UNIT"] = "rad"
    with pytest.raises(CorruptedInput, match=r"hillas_psi in 'rad'.*'deg'"):
        read_telescope_events(path, Needs("Forest_tel_energy", ("hillas_psi",)))


def test_scaled_integers_are_refused(dl2, write_dl2):
    path = write_dl2(dl2())
    with pytables.open_file(path, "a") as file:
        table = file.get_node(f"{PARAMETERS}/tel_005")
        i = table.colnames.index("morphology_n_islands")
        table.attrs[f"CTAFIELD_{i}_TRANSFORM_SCALE"] = 10.0
    with pytest.raises(CorruptedInput, match="scaled integers"):
        read_telescope_events(path, NEEDS)


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (Needs.energy("Forrest", "Hillas"), "did you mean Forest_tel_energy"),
        (Needs.energy("Forest", "Hilas"), "did you mean Hillas_tel_impact_distance"),
        (Needs("hillas_intensty"), "did you mean hillas_intensity"),
        (Needs("zzz"), f"the tables it has: .*{ENERGY}, {IMPACT}"),
        (Needs("Hillas_h_max"), "not in a table per telescope"),
        (Needs("event_id"), "not in a table per telescope"),
    ],
)
def test_missing_columns(dl2, write_dl2, needs, says):
    path = write_dl2(dl2())
    for look in (inspect_dl2, read_telescope_events):
        with pytest.raises(MissingInput, match=says) as caught:
            look(path, needs)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("table", [LAYOUT, TRIGGER])
def test_missing_tables(dl2, write_dl2, table):
    made = dl2()
    del made[table]
    with pytest.raises(MissingInput, match=table):
        inspect_dl2(write_dl2(made), NEEDS)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "x.h5"
    with create_hdf5(path) as file:
        write_table(file, "/t", {"x": np.zeros(2)})
    with pytest.raises(MissingInput, match="is it a ctapipe file"):
        inspect_dl2(path, NEEDS)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("tel_id", np.array([1, 1, 5], "u2"), "tel_id"),
        ("tel_id", np.array([1, 70000, 5], "i8"), "tel_id"),
        ("pos_x", np.array([0, np.nan, 1], "f4"), r"no position for telescopes \[1\]"),
        ("type", np.array([1, 2, 3]), "no text"),
    ],
)
def test_wrong_layouts(dl2, write_dl2, column, values, says):
    made = dl2()
    made[LAYOUT][column] = values
    with pytest.raises(CorruptedInput, match=says):
        inspect_dl2(write_dl2(made), NEEDS)


@pytest.mark.parametrize("lost", ["obs_id", "event_id"])
def test_survey_finds_tables_without_keys(dl2, write_dl2, lost):
    made = dl2()
    for tel_id in (30, 1, 5):
        del made[f"{ENERGY}/tel_{tel_id:03d}"][lost]
    with pytest.raises(CorruptedInput, match=rf"tel_001 has no column {lost}"):
        inspect_dl2(write_dl2(made), NEEDS)


@pytest.mark.parametrize("lost", ["event_id", "tel_id"])
def test_tables_without_keys(dl2, write_dl2, lost):
    made = dl2()
    del made[f"{IMPACT}/tel_005"][lost]
    with pytest.raises(CorruptedInput, match=rf"tel_005 has no column {lost}"):
        read_telescope_events(write_dl2(made), NEEDS)


def test_text_where_a_number_should_be(dl2, write_dl2):
    made = dl2()
    columns = made[f"{PARAMETERS}/tel_005"]
    columns["hillas_intensity"] = np.full(len(columns["event_id"]), "bright")
    with pytest.raises(CorruptedInput, match=r"hillas_intensity as .S6"):
        read_telescope_events(write_dl2(made), NEEDS)


@pytest.mark.parametrize(
    ("obs_id", "dtype"),
    [(-1, "i4"), (2**31, "u4"), (2**40, "i8"), (2**63 - 1, "u8"), (7, "f8"), (2**52 + 1, "f8")],
)
def test_observations_of_any_number_and_type_are_read(dl2, write_dl2, obs_id, dtype):
    made = dl2()
    for path, columns in made.items():
        if "obs_id" in columns:
            # The tables need not agree about the type.
            kind = dtype if path != TRIGGER or obs_id >= 2**53 else "i8"
            columns["obs_id"] = np.full(len(columns["obs_id"]), obs_id, kind)
    path = write_dl2(made)
    assert inspect_dl2(path, NEEDS).obs_ids == (obs_id,)
    for rows in (None, (0, 100)):
        events = read_telescope_events(path, NEEDS, rows)
        assert np.unique(events.obs_id).tolist() == [obs_id]
        assert events.obs_id.dtype == np.int64
        assert set(events.n_missing.values()) == {0}


@pytest.mark.parametrize(
    ("obs_id", "dtype"), [(2**63, "u8"), (1.5, "f8"), (np.nan, "f8"), (2.0**53 + 2, "f8")]
)
def test_observations_that_are_no_whole_numbers_are_refused(dl2, write_dl2, obs_id, dtype):
    made = dl2()
    made[TRIGGER]["obs_id"] = np.full(len(made[TRIGGER]["obs_id"]), obs_id, dtype)
    with pytest.raises(CorruptedInput, match=r"subarray/trigger has obs_id with .* in row 0"):
        inspect_dl2(write_dl2(made), NEEDS)


# --- which table a column is taken from ------------------------------------------------------


def with_second_table(made, group, **columns):
    """Add a table of another algorithm of the same name, for each telescope."""
    for path in [path for path in made if path.startswith(f"{ENERGY}/")]:
        keys = {name: made[path][name] for name in ("obs_id", "event_id", "tel_id")}
        n = len(keys["obs_id"])
        more = {name: np.full(n, value) for name, value in columns.items()}
        made[f"{group}/{path.rpartition('/')[2]}"] = keys | more


def test_a_column_that_stands_twice_is_taken_from_the_table_of_the_energy(dl2, write_dl2):
    made = dl2()
    with_second_table(made, "/dl2/event/telescope/disp/Forest", Forest_tel_is_valid=True)
    valid = np.concatenate(
        [made[f"{ENERGY}/tel_{t:03d}"]["Forest_tel_is_valid"] for t in (30, 1, 5)]
    )
    assert not valid.all()
    events = read_telescope_events(write_dl2(made), NEEDS)
    assert events.columns["Forest_tel_is_valid"].tolist() == valid.tolist()


def test_a_column_that_stands_twice_is_taken_from_the_table_in_use_or_refused(dl2, write_dl2):
    made = dl2()
    for kind, prediction in (("disp", {}), ("particle_type", {"C_tel_prediction": 0.9})):
        group = f"/dl2/event/telescope/{kind}/C"
        with_second_table(made, group, C_tel_is_valid=kind == "disp", **prediction)
    path = write_dl2(made)
    needs = Needs("Forest_tel_energy", ("C_tel_is_valid", "C_tel_prediction"))
    assert not read_telescope_events(path, needs).columns["C_tel_is_valid"].any()
    needs = Needs("Forest_tel_energy", ("C_tel_is_valid",))
    for look in (inspect_dl2, read_telescope_events):
        with pytest.raises(CorruptedInput, match=r"C_tel_is_valid stands in .*disp/C and .*type/C"):
            look(path, needs)


# --- types of events -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, (0, 150)])
def test_a_row_has_the_type_of_its_event_unless_its_telescope_says_otherwise(dl2, write_dl2, rows):
    made = dl2()
    needs = Needs("Forest_tel_energy", event_types=(32,))
    assert read_telescope_events(write_dl2(made, name="none.h5"), needs, rows).event_type is None
    assert not inspect_dl2(write_dl2(made, name="again.h5"), needs).has_event_types
    trigger, own = made[TRIGGER], made[TELESCOPE_TRIGGER]
    trigger["event_type"] = np.where(np.arange(len(trigger["obs_id"])) % 3 == 0, 0, 32)
    flat = set(trigger["event_id"][trigger["event_type"] == 0].tolist())
    own["event_type"] = np.where(np.arange(len(own["obs_id"])) % 10 == 0, 5, 32)
    pedestal = {
        (event, tel)
        for event, tel, kind in zip(own["event_id"], own["tel_id"], own["event_type"], strict=True)
        if kind == 5
    }
    events = read_telescope_events(write_dl2(made), needs, rows)
    expected = [
        5 if key in pedestal else 0 if key[0] in flat else 32
        for key in zip(events.event_id.tolist(), events.tel_id.tolist(), strict=True)
    ]
    assert set(expected) == {0, 5, 32}
    assert events.event_type.tolist() == expected


def test_events_without_a_trigger_have_no_type(dl2, write_dl2):
    made = dl2()
    made[TRIGGER]["event_type"] = np.full(len(made[TRIGGER]["obs_id"]), 32)
    lost = made[TRIGGER]["event_id"][4]
    made[TRIGGER] = without(made[TRIGGER], [4])
    needs = Needs("Forest_tel_energy", event_types=(32,))
    events = read_telescope_events(write_dl2(made), needs)
    assert events.event_type.tolist() == np.where(events.event_id == lost, -1, 32).tolist()


def test_truncated_anywhere(dl2, write_dl2, tmp_path):
    whole = write_dl2(dl2(n_events=30)).read_bytes()
    path = tmp_path / "cut.h5"
    for size in np.linspace(1, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:size])
        for look in (inspect_dl2, read_telescope_events):
            with pytest.raises(CorruptedInput, match=r"cut\.h5"):
                look(path, NEEDS)


# --- metadata --------------------------------------------------------------------------------


def test_what_a_plan_needs_to_know(dl2, write_dl2):
    made = dl2(obs_ids=(7, 3))
    info = inspect_dl2(write_dl2(made), NEEDS)
    assert info.layout.tel_id.tolist() == [30, 1, 5]  # as in the file
    assert info.layout.tel_type == ("MST", "LST", "MST")
    assert info.layout.tel_description == ("X_30_Cam", "X_1_Cam", "X_5_Cam")
    assert info.layout.position_m[:, 0].tolist() == [0, 100, 200]
    assert info.obs_ids == (3, 7)
    assert info.n_events == 300
    assert info.n_telescope_rows == len(made[TELESCOPE_TRIGGER]["event_id"])
    assert (info.product_id, info.process_type) == ("p-1", "Observation")


def test_telescope_rows_without_a_trigger_table(dl2, write_dl2):
    made = dl2()
    needs = Needs.energy("Forest", "Hillas")
    del made[TELESCOPE_TRIGGER], made[f"{ENERGY}/tel_001"]
    path = write_dl2(made)
    n_rows = read_telescope_events(path, needs).tel_id.size
    assert inspect_dl2(path, needs).n_telescope_rows == n_rows > 0


@pytest.fixture
def opened(monkeypatch):
    """Paths of the tables that were opened to be read, in that order."""
    paths = []
    made = Table.__init__

    def recorded(self, file, path, *rest):
        paths.append(path)
        made(self, file, path, *rest)

    monkeypatch.setattr(Table, "__init__", recorded)
    return paths


def test_a_survey_opens_no_table_per_telescope(dl2, write_dl2, opened):
    made = dl2(tel_ids=range(1, 21))
    path = write_dl2(made)
    groups = {table.rpartition("/")[0] for table in made if "/tel_" in table}
    inspect_dl2(path, NEEDS)
    assert sorted(table for table in opened if "/tel_" in table) == sorted(
        f"{group}/tel_001" for group in groups
    )


def test_reading_opens_each_table_once_and_no_other(dl2, write_dl2, opened):
    made = dl2()
    path = write_dl2(made)
    read_telescope_events(path, Needs.energy("Forest", "Hillas"))
    assert sorted(opened) == sorted(
        # That of the trigger tells which telescopes lack a table.
        table
        for table in made
        if table in (LAYOUT, TRIGGER) or table.startswith((ENERGY, IMPACT))
    )


def test_obs_ids_from_the_observation_block(dl2, write_dl2):
    made = dl2()
    made["/configuration/observation/observation_block"] = {"obs_id": np.array([11], "u8")}
    assert inspect_dl2(write_dl2(made), NEEDS).obs_ids == (11,)


@pytest.mark.parametrize("needs", [Needs("Forest_tel_energy"), NEEDS])
def test_memory_stays_below_what_was_told(dl2, write_dl2, needs):
    path = write_dl2(dl2(n_events=60_000))
    told = inspect_dl2(path, needs).bytes_needed
    tracemalloc.start()
    try:
        read_telescope_events(path, needs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert told / 4 < peak < told


def test_layouts_that_contradict():
    def layout(tel_id=(1, 2), tel_type=("LST", "MST"), x=(0.0, 100.0)):
        position_m = np.zeros((len(x), 3))
        position_m[:, 0] = x
        return ArrayLayout(np.array(tel_id, "u2"), tel_type, tel_type, position_m)

    assert layout().contradiction(layout((2, 1, 9), ("MST", "LST", "SST"), (100, 0, 5))) is None
    assert "telescope 2 is MST and SST" in layout().contradiction(layout(tel_type=("LST", "SST")))
    assert "telescope 1" in layout().contradiction(layout(x=(3.0, 100.0)))


# --- keys ------------------------------------------------------------------------------------

keys = st.lists(
    st.tuples(
        st.integers(-3, 3), st.one_of(st.integers(-4, 4), st.sampled_from([2**62, -(2**62)]))
    ),
    max_size=30,
)


def as_columns(rows):
    array = np.array(rows, np.int64).reshape(-1, 2)
    return {"obs_id": array[:, 0], "event_id": array[:, 1]}


@given(keys.map(lambda rows: list(dict.fromkeys(rows))), keys)
def test_match_finds_equal_keys(have, want):
    index = module.match(as_columns(have), as_columns(want))
    assert index.tolist() == [have.index(key) if key in have else -1 for key in want]


@given(keys.filter(bool))
def test_numbers_are_ordered_as_keys(rows):
    number = module.numbered(list(as_columns(rows).values())).tolist()
    distinct = sorted(set(rows))
    by_key = dict(zip(rows, number, strict=True))
    assert sorted(set(number)) == [by_key[key] for key in distinct]
    assert len(set(number)) == len(distinct)


@given(keys)
def test_increasing(rows):
    assert module.increasing(as_columns(rows)) == all(a < b for a, b in pairwise(rows))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=200),
    st.integers(0, 3),
    st.integers(0, 51),
)
def test_search_in_a_table_in_order(rows, obs_id, event_id):
    rows = sorted(set(rows))

    class Table:
        n_rows = len(rows)

        def read(self, start, stop):
            return np.array(rows[start:stop], [("obs_id", "i4"), ("event_id", "i8")])

    expected = sum(key < (obs_id, event_id) for key in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEARCH_ROWS", 4)
        assert module.first_row_from(Table(), obs_id, event_id) == expected


def test_opening_leaves_nothing_open(dl2, write_dl2):
    path = write_dl2(dl2())
    inspect_dl2(path, NEEDS)
    read_telescope_events(path, NEEDS)
    with open_hdf5(path):
        assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) == 1
    assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) == 0
