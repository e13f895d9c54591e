from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import tables as pytables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.io.asymmetry import (
    ENERGY_ASYMMETRY,
    IMAGE_ASYMMETRY,
    Asymmetries,
    create_asymmetries,
    inspect_asymmetries,
    read_asymmetries,
)
from calibdask.io.hdf5 import digest_hdf5
from calibdask.io.pytables import create_hdf5, write_table

ENERGY = "Forest_tel_energy"
CALIBPIPE = {
    "peer_dl2_small/easym/dl2_obs1001.h5": (ENERGY_ASYMMETRY, 961, (1001,)),
    "peer_dl2_small/iasym/dl2_obs1001.h5": (IMAGE_ASYMMETRY, 1295, (1001,)),
    "dl2_ctapipe_chain/peer_energy_asymmetry.h5": (ENERGY_ASYMMETRY, 47, (202,)),
}


def example(n: int = 100, label: str = ENERGY_ASYMMETRY, seed: int = 1) -> Asymmetries:
    rng = np.random.default_rng(seed)
    value_1, value_2 = rng.lognormal(size=(2, n))
    value_1[::9] = np.nan
    uncertainty = {}
    if label == ENERGY_ASYMMETRY:
        names = ("uncertainty_1", "uncertainty_2", "asymmetry_uncertainty")
        uncertainty = {name: rng.random(n) for name in names}
    return Asymmetries(
        obs_id=rng.integers(1, 4, n),
        event_id=rng.integers(0, 2**60, n),
        tel_type=rng.choice(np.array([b"LST", b"MST"]), n),
        tel_id_1=rng.integers(1, 200, n).astype("u2"),
        tel_id_2=rng.integers(1, 200, n).astype("u2"),
        value_1=value_1,
        value_2=value_2,
        asymmetry=(value_1 - value_2) / (value_1 + value_2),
        **uncertainty,
    )


def arrays(rows: Asymmetries) -> dict[str, np.ndarray]:
    fields = Asymmetries.__dataclass_fields__
    return {n: getattr(rows, n) for n in fields if getattr(rows, n) is not None}


def part(rows: Asymmetries, start: int, stop: int) -> Asymmetries:
    return Asymmetries(**{n: v[start:stop] for n, v in arrays(rows).items()})


def assert_same_bits(one: Asymmetries, other: Asymmetries) -> None:
    one_arrays, other_arrays = arrays(one), arrays(other)
    assert one_arrays.keys() == other_arrays.keys()
    for name, values in one_arrays.items():
        assert values.dtype == other_arrays[name].dtype, name
        assert values.tobytes() == other_arrays[name].tobytes(), name


def write(path, rows, label=ENERGY_ASYMMETRY, value=ENERGY, edges=None):
    edges = edges or [0, len(rows)]
    with create_asymmetries(path, label, value) as writer:
        for start, stop in pairwise(edges):
            writer.append(part(rows, start, stop))
    return path


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "value"), [(ENERGY_ASYMMETRY, ENERGY), (IMAGE_ASYMMETRY, "hillas_intensity")]
)
def test_values_survive_bit_for_bit(tmp_path, label, value):
    rows = example(label=label)
    path = write(tmp_path / "a.h5", rows, label, value)
    assert_same_bits(read_asymmetries(path), rows)
    info = inspect_asymmetries(path)
    assert (info.label, info.value, info.n_rows) == (label, value, 100)
    assert info.obs_ids == (1, 2, 3)
    assert info.unit == ("TeV" if label == ENERGY_ASYMMETRY else "")
    assert info.has_uncertainty == (label == ENERGY_ASYMMETRY)
    assert info.columns[:3] == ("obs_id", "event_id", "tel_type")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=hnp.arrays("f8", st.integers(0, 9), elements=st.floats(width=64)),
    edge=st.integers(0, 9),
)
def test_any_number_survives(tmp_path_factory, value, edge):
    rows = part(example(9), 0, len(value))
    rows = Asymmetries(**(arrays(rows) | {"value_1": value, "asymmetry": -value}))
    path = tmp_path_factory.mktemp("a") / "a.h5"
    write(path, rows, edges=[0, min(edge, len(value)), len(value)])
    assert_same_bits(read_asymmetries(path), rows)


def test_bytes_depend_on_the_rows_alone(tmp_path):
    rows = example(5000)
    first = write(tmp_path / "1.h5", rows).read_bytes()
    time.sleep(1.1)  # HDF5 stores times in whole seconds
    other = write(tmp_path / "2.h5", rows, edges=[0, 1, 1, 1700, 4999, 5000])
    assert other.read_bytes() == first
    assert digest_hdf5(other) == digest_hdf5(tmp_path / "1.h5")


def test_ranges_of_rows(tmp_path):
    rows = example(1000)
    path = write(tmp_path / "a.h5", rows)
    for first, stop in ((0, 1000), (0, 0), (17, 18), (990, 1000)):
        assert_same_bits(read_asymmetries(path, rows=(first, stop)), part(rows, first, stop))
    for wrong in ((0, 1001), (-1, 2), (5, 4)):
        with pytest.raises(CorruptedInput, match="plan again"):
            read_asymmetries(path, rows=wrong)


def test_no_rows(tmp_path):
    path = write(tmp_path / "a.h5", example(0))
    info = inspect_asymmetries(path)
    assert (info.n_rows, info.obs_ids, info.unit) == (0, (), "TeV")
    assert len(read_asymmetries(path)) == 0


# --- files of calibpipe -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CALIBPIPE)
def test_files_of_calibpipe(shared_array, tmp_path, name):
    label, n_rows, obs_ids = CALIBPIPE[name]
    info = inspect_asymmetries(shared_array / name)
    assert (info.label, info.n_rows, info.obs_ids) == (label, n_rows, obs_ids)
    rows = read_asymmetries(shared_array / name)
    np.testing.assert_allclose(
        rows.asymmetry, (rows.value_1 - rows.value_2) / (rows.value_1 + rows.value_2), rtol=1e-12
    )
    ours = write(tmp_path / "ours.h5", rows, label, info.value)
    assert inspect_asymmetries(ours) == info
    assert_same_bits(read_asymmetries(ours), rows)
    where = f"/{label}/events"
    with pytables.open_file(ours) as mine, pytables.open_file(shared_array / name) as theirs:
        assert mine.get_node(where).dtype == theirs.get_node(where).dtype
        assert mine.get_node(where).read().tobytes() == theirs.get_node(where).read().tobytes()


@pytest.mark.parametrize("name", CALIBPIPE)
def test_astropy_and_ctapipe_read_the_same_from_ours(shared_array, tmp_path, name):
    pytest.importorskip("h5py", reason="Astropy reads HDF5 with h5py, which is not installed")
    from astropy.table import QTable
    from ctapipe.io import read_table

    label, _, obs_ids = CALIBPIPE[name]
    where = f"/{label}/events"
    info = inspect_asymmetries(shared_array / name)
    ours = write(tmp_path / "ours.h5", read_asymmetries(shared_array / name), label, info.value)
    theirs = QTable.read(shared_array / name, path=where, format="hdf5")
    table = QTable.read(ours, path=where, format="hdf5")
    assert table.colnames == theirs.colnames
    assert table.meta["obs_id"].tolist() == list(obs_ids)
    assert table.meta["obs_id"].dtype == theirs.meta["obs_id"].dtype
    for column in table.colnames:
        assert getattr(table[column], "unit", None) == getattr(theirs[column], "unit", None)
        assert np.asarray(table[column]).tobytes() == np.asarray(theirs[column]).tobytes()
    plain = read_table(ours, where)
    assert plain.colnames == theirs.colnames
    assert plain[f"{info.value}_1"].unit == (info.unit or None)


def test_header_is_what_astropy_parses(tmp_path):
    from astropy.table.meta import get_header_from_yaml

    path = write(tmp_path / "a.h5", example())
    with pytables.open_file(path) as file:
        lines = file.get_node("/energy_asymmetry/events.__table_column_meta__").read().tolist()
        names = file.get_node("/energy_asymmetry/events").colnames
    header = get_header_from_yaml([line.decode() for line in lines])
    assert [column["name"] for column in header["datatype"]] == names
    units = {column["name"]: column.get("unit") for column in header["datatype"]}
    assert {name for name, unit in units.items() if unit == "TeV"} == {
        f"{ENERGY}{end}" for end in ("_1", "_2", "_uncert_1", "_uncert_2")
    }
    assert header["meta"]["obs_id"].tolist() == [1, 2, 3]
    assert header["meta"]["obs_id"].dtype == np.int32
    serialized = header["meta"]["__serialized_columns__"]
    assert str(serialized[f"{ENERGY}_1"]["unit"]) == "TeV"
    assert str(serialized[ENERGY_ASYMMETRY]["unit"]) == ""


def test_header_of_many_observation_blocks(tmp_path):
    from astropy.table.meta import get_header_from_yaml

    rows = example(500)
    rows = Asymmetries(**(arrays(rows) | {"obs_id": np.arange(500)}))
    path = write(tmp_path / "a.h5", rows)
    with pytables.open_file(path) as file:
        lines = file.get_node("/energy_asymmetry/events.__table_column_meta__").read().tolist()
    header = get_header_from_yaml([line.decode() for line in lines])
    assert header["meta"]["obs_id"].tolist() == list(range(500))
    assert inspect_asymmetries(path).obs_ids == tuple(range(500))


# --- files that are wrong --------------------------------------------------------------------


def columns_of(rows: Asymmetries, label=ENERGY_ASYMMETRY, value=ENERGY):
    return {
        "obs_id": rows.obs_id,
        "event_id": rows.event_id,
        "tel_type": rows.tel_type,
        "tel_id_1": rows.tel_id_1,
        "tel_id_2": rows.tel_id_2,
        f"{value}_1": rows.value_1,
        f"{value}_2": rows.value_2,
        label: rows.asymmetry,
    }


def hand_made(path, columns, header=None, label=ENERGY_ASYMMETRY):
    """A file as another program might write it."""
    with create_hdf5(path) as file:
        write_table(file, f"/{label}/events", columns)
    if header is not None:
        with pytables.open_file(path, "a") as file, pytest.warns(pytables.NaturalNameWarning):
            file.create_array(
                f"/{label}",
                "events.__table_column_meta__",
                obj=np.array([line.encode() for line in header]),
            )
    return path


def header_with(unit):
    return [
        "datatype:",
        *(f"- {{name: {ENERGY}_{i}, unit: {unit}, datatype: float64}}" for i in (1, 2)),
        "meta: !!omap",
        "- obs_id: !!python/object/apply:os.mkdir [executed]",
    ]


def test_energies_in_another_unit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = example()
    path = hand_made(tmp_path / "a.h5", columns_of(rows), header_with("GeV"))
    np.testing.assert_allclose(read_asymmetries(path).value_1, rows.value_1 * 1e-3, rtol=1e-15)
    np.testing.assert_array_equal(read_asymmetries(path).asymmetry, rows.asymmetry)
    info = inspect_asymmetries(path)
    assert (info.unit, info.has_uncertainty, info.obs_ids) == ("TeV", False, (1, 2, 3))
    assert not (tmp_path / "executed").exists()  # the header's tags are never obeyed


@pytest.mark.parametrize("header", [None, header_with("erg"), header_with("m"), ["datatype: 3"]])
def test_energies_without_a_known_unit(tmp_path, header):
    path = hand_made(tmp_path / "a.h5", columns_of(example()), header)
    with pytest.raises(CorruptedInput, match=r"a\.h5.*expected 'TeV'"):
        read_asymmetries(path)


def test_header_that_is_not_yaml(tmp_path):
    path = hand_made(tmp_path / "a.h5", columns_of(example()), ["datatype: [", "{"])
    with pytest.raises(CorruptedInput, match="not YAML"):
        inspect_asymmetries(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"event_id": None}, "event_id of int64, and has None"),
        ({"obs_id": np.full(100, b"7")}, "obs_id of int32, and has .S1"),
        ({"tel_type": np.arange(100)}, "tel_type of .S3, and has int64"),
        ({f"{ENERGY}_2": np.arange(100)}, f"{ENERGY}_2 of float64, and has int64"),
        ({f"{ENERGY}_1": None}, "compares none"),
        ({"other_1": np.zeros(100)}, "should compare one quantity"),
    ],
)
def test_wrong_columns(tmp_path, change, says):
    columns = {n: v for n, v in (columns_of(example()) | change).items() if v is not None}
    path = hand_made(tmp_path / "a.h5", columns, header_with("TeV"))
    with pytest.raises(CorruptedInput, match=says):
        inspect_asymmetries(path)


def test_numbers_too_large_for_the_format(tmp_path):
    columns = columns_of(example()) | {"obs_id": np.full(100, 2**40)}
    path = hand_made(tmp_path / "a.h5", columns, header_with("TeV"))
    assert (read_asymmetries(path).obs_id == 2**40).all()
    columns |= {"obs_id": np.full(100, 2**63, np.uint64)}
    path = hand_made(tmp_path / "b.h5", columns, header_with("TeV"))
    with pytest.raises(CorruptedInput, match="expected integers that fit 64 bits"):
        read_asymmetries(path)


def test_a_file_of_something_else(tmp_path):
    with create_hdf5(tmp_path / "a.h5") as file:
        write_table(file, "/other/events", {"x": np.zeros(2)})
    with pytest.raises(MissingInput, match=r"a\.h5.*but /other/events"):
        inspect_asymmetries(tmp_path / "a.h5")
    path = write(tmp_path / "b.h5", example())
    with pytest.raises(MissingInput, match="no table /image_asymmetry/events"):
        read_asymmetries(path, IMAGE_ASYMMETRY)


def test_both_tables_in_one_file(tmp_path):
    image = columns_of(example(seed=2), IMAGE_ASYMMETRY, "hillas_intensity")
    with create_hdf5(tmp_path / "a.h5") as file:
        write_table(file, "/energy_asymmetry/events", columns_of(example()))
        write_table(file, "/image_asymmetry/events", image)
    with pytest.raises(ConfigError, match="asymmetry_label"):
        read_asymmetries(tmp_path / "a.h5")
    rows = read_asymmetries(tmp_path / "a.h5", IMAGE_ASYMMETRY)
    np.testing.assert_array_equal(rows.value_1, image["hillas_intensity_1"])


def test_truncated_anywhere(tmp_path):
    whole = write(tmp_path / "a.h5", example()).read_bytes()
    path = tmp_path / "cut.h5"
    for size in np.linspace(1, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptedInput, match=r"cut\.h5"):
            read_asymmetries(path)


# --- writing what cannot be written ----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uncertainty_1": None}, "without uncertainty_1"),
        ({"tel_type": np.full(100, b"UNKNOWN")}, "tel_type does not fit"),
        ({"obs_id": np.full(100, 2**40)}, "obs_id does not fit"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, change, says):
    rows = Asymmetries(**(arrays(example()) | change))
    with pytest.raises(ValueError, match=says):
        write(tmp_path / "a.h5", rows)
    assert not (tmp_path / "a.h5").exists()
