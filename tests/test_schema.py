"""Tables declared once: built, written, read and shown by their schema."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.time import Time

from calibdask.engine.products import _write_hdf5
from calibdask.errors import CorruptedInput
from calibdask.flags import Flag
from calibdask.io.hdf5 import open_hdf5
from calibdask.io.pytables import create_hdf5, write_table
from calibdask.io.tables import read_columns
from calibdask.report import table_block
from calibdask.schema import Column, TableSchema
from calibdask.stats.timebins import NO_TIME

TIME_NS = 1_700_000_000_000_000_000
SCHEMA = TableSchema(
    "/of/tel_{tel_id:03d}",
    "An example",
    (
        Column("tel_id", "i2", "Telescope", heading="Telescope"),
        Column("rate", "f8", "A rate", unit="deg-1", error="rate_err"),
        Column("rate_err", "f8", "Its error", unit="deg-1"),
        Column("when", "time", "A time"),
        Column("used", "?", "Whether it counts"),
        Column("kind", "text", "A name", width=4, optional=True),
    ),
    flags=(Flag.JUMP, Flag.VARIES),
)
VALUES = {
    "tel_id": np.array([1, 2]),
    "rate": np.array([0.5, np.nan]),
    "rate_err": np.array([0.1, 0.2]) / u.arcmin,
    "when": TIME_NS + np.array([0, 7]),
    "used": np.array([True, False]),
    "flags": np.array(["JV", ""]),
}


def write(path, tables):
    _write_hdf5(path, tables, {})
    return path


def read(path, schema=SCHEMA, names=None, where="/of/tel_001"):
    with open_hdf5(path) as file:
        return read_columns(file.table(where), schema, names)


def write_columns(path, columns, **more):
    with create_hdf5(path) as file:
        write_table(file, "/of/tel_001", columns, **more)
    return path


def test_a_table_has_the_declared_types_units_and_descriptions():
    table = SCHEMA.build(VALUES, {"run": 3})
    assert table.colnames == ["tel_id", "rate", "rate_err", "when", "used", "flags"]
    assert table["tel_id"].dtype == np.int16
    assert table["rate"].unit == table["rate_err"].unit == u.deg**-1
    np.testing.assert_allclose(table["rate_err"].value, [6.0, 12.0])
    assert table["flags"].dtype == np.dtype("U16")
    assert (table["when"].unix_tai * 1e9).astype(int).tolist()[0] == TIME_NS
    assert [table[name].info.description for name in ("rate", "when")] == ["A rate", "A time"]
    assert table.meta["description"] == "An example"
    assert table.meta["FLAG_J"].startswith("jump: jumps: ")
    assert table.meta["run"] == 3


def test_what_is_written_is_read_back_the_same(tmp_path):
    table = SCHEMA.build(VALUES | {"kind": ["LST", "a longer name"]})
    path = write(tmp_path / "a.h5", {SCHEMA.at(tel_id=1): table})
    again = SCHEMA.build(read(path))
    assert again.meta == table.meta
    assert [(c.info.dtype, c.info.unit) for c in again.itercols() if not isinstance(c, Time)] == [
        (c.info.dtype, c.info.unit) for c in table.itercols() if not isinstance(c, Time)
    ]
    for name in table.colnames:
        np.testing.assert_array_equal(again[name], table[name])
    with open_hdf5(path) as file:
        stored = file.table("/of/tel_001")
        assert (stored.dtype["flags"], stored.dtype["kind"]) == (np.dtype("S16"), np.dtype("S13"))
        assert stored.field("when", "DESC") == "A time"


def test_a_time_that_is_not_known_stays_unknown(tmp_path):
    table = SCHEMA.build(VALUES | {"when": np.array([NO_TIME, TIME_NS])})
    path = write(tmp_path / "a.h5", {"/of/tel_001": table})
    assert read(path)["when"].tolist() == [NO_TIME, TIME_NS]


def test_a_few_columns_can_be_read(tmp_path):
    path = write(tmp_path / "a.h5", {"/of/tel_001": SCHEMA.build(VALUES)})
    assert set(read(path, names=("tel_id", "kind"))) == {"tel_id", "flags"}


def test_whole_numbers_that_do_not_fit_make_the_column_wider():
    assert SCHEMA.build(VALUES | {"tel_id": np.array([1, 70_000])})["tel_id"].dtype == np.int64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": VALUES["rate"] * u.m}, "column rate is in deg-1"),
        ({"tel_id": [1, 2] * u.m}, "column tel_id has no unit, got values in m"),
        ({"tel_id": np.array([1.0, 2.0])}, "column tel_id is i2, got values of float64"),
        ({"used": np.array([1, 0])}, "column used is [?], got values of int64"),
        ({"flags": np.array([1, 2])}, "column flags is text, got values of int64"),
        ({"when": np.zeros((2, 2), int)}, "column when has one value a row, got .*2, 2"),
        ({"used": np.array([True])}, "columns of different lengths"),
        ({"other": np.zeros(2)}, r"columns \['other'\] are not declared"),
    ],
)
def test_values_that_are_not_as_declared_are_an_error(change, says):
    with pytest.raises((ValueError, TypeError), match=says):
        SCHEMA.build(VALUES | change)


def test_a_missing_column_is_an_error():
    with pytest.raises(ValueError, match=r"\['rate'\] are missing"):
        SCHEMA.build({name: values for name, values in VALUES.items() if name != "rate"})


@pytest.mark.parametrize(
    ("columns", "more", "says"),
    [
        ({"tel_id": [1]}, {}, "/of/tel_001 has no column rate; it is to hold: An example"),
        ({"tel_id": [1.5], "rate": [1.0]}, {}, "has tel_id as float64.*, expected i2"),
        ({"tel_id": [1], "rate": [1.0]}, {}, "has rate in the unit '', expected .*'deg-1'"),
        (
            {"tel_id": [1], "rate": [1.0]}, {"units": {"rate": "m"}},
            "has rate in the unit 'm', expected one that can be converted to 'deg-1'",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_declared_is_refused_by_name(tmp_path, columns, more, says):
    path = write_columns(
        tmp_path / "a.h5", {name: np.array(values) for name, values in columns.items()}, **more
    )
    with pytest.raises(CorruptedInput, match=f"{path.name}: .*{says}"):
        read(path, names=("tel_id", "rate"))


def test_units_of_a_file_are_converted(tmp_path):
    columns = {"rate": np.array([1.0, 2.0])}
    path = write_columns(tmp_path / "a.h5", columns, units={"rate": "arcmin**-1"})
    np.testing.assert_allclose(read(path, names=("rate",))["rate"], [60.0, 120.0])


def test_no_row_of_another_programs_table_has_a_flag(tmp_path):
    path = write_columns(tmp_path / "a.h5", {"tel_id": np.array([1, 2])})
    assert read(path, names=("tel_id",))["flags"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("letters", "attributes", "says"),
    [
        (["J", "F"], {}, r"flag F in row 1 \(the file does not say what it means\)"),
        (["V", "J"], {"FLAG_J": "jitter: too noisy"}, r"flag J in row 1 \(jitter: too noisy\)"),
    ],
)
def test_letters_with_another_meaning_are_refused(tmp_path, letters, attributes, says):
    columns = {"tel_id": np.array([1, 2]), "flags": np.array(letters)}
    path = write_columns(tmp_path / "a.h5", columns, attributes=attributes)
    with pytest.raises(CorruptedInput, match=f"{says}.*run the job that wrote it again"):
        read(path, names=("tel_id",))


def test_a_path_gives_back_its_fields():
    assert SCHEMA.at(tel_id=7) == "/of/tel_007"
    assert SCHEMA.fields("/of/tel_1234") == {"tel_id": "1234"}
    assert SCHEMA.fields("/of/tel_x") is None
    assert TableSchema("/a.b/{what}", "", ()).fields("/a.b/c") == {"what": "c"}
    assert TableSchema("/a.b/{what}", "", ()).fields("/aXb/c") is None


def test_reports_take_headings_from_the_schema():
    table = SCHEMA.build(VALUES)
    names = ("tel_id", "rate", "More", "rate_err", "when", "flags")
    block = table_block(SCHEMA, table, names, "Rates.", derived={"More": [1.0, 2.0]})
    headings = ["Telescope", "Rate / deg⁻¹", "More", "Rate err / deg⁻¹", "When", "Flags"]
    assert list(block.columns) == headings
    assert block.error_of == {"Rate / deg⁻¹": "Rate err / deg⁻¹"}
    assert block.columns["Rate / deg⁻¹"].tolist()[0] == 0.5
    assert block.columns["When"][0].startswith("2023-11-14 22:12:43")
    assert (block.marked.tolist(), block.caption[:14]) == ([True, False], "Rates. Marked:")


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: Column("a", "float", ""), "no kind of column 'float'"),
        (lambda: Column("a", "text", "", unit="m"), "text has no unit"),
        (lambda: TableSchema("/a", "", (SCHEMA.columns[0],) * 2), "are not unique"),
        (lambda: TableSchema("/a", "", (SCHEMA.columns[1],)), "errors are missing"),
    ],
)
def test_a_wrong_declaration_is_an_error(declare, says):
    with pytest.raises(ValueError, match=says):
        declare()
