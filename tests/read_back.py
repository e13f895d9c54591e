"""What holds for the tables of all jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calibdask.io.hdf5 import open_hdf5
from calibdask.io.tables import read_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from astropy.table import QTable

    from calibdask.schema import TableSchema


def assert_read_back(
    path: Path, tables: Mapping[str, QTable], schemas: Iterable[TableSchema]
) -> set[str]:
    """Check that each table of a result file has one schema, which reads it as it was written.

    Returns
    -------
    set of str
        Paths of the schemas that were met.
    """
    schemas, met = tuple(schemas), set()
    with open_hdf5(path) as file:
        assert {table.path for table in file.tables()} == set(tables)
        for where, table in tables.items():
            (schema,) = (one for one in schemas if one.fields(where) is not None)
            met.add(schema.path)
            again = schema.build(read_columns(file.table(where), schema))
            assert again.colnames == table.colnames, where
            for name in table.colnames:
                one, other = again[name], table[name]
                assert one.info.dtype == other.info.dtype, (where, name)
                assert one.info.unit == other.info.unit, (where, name)
                assert one.info.description == other.info.description, (where, name)
                if schema.by_name[name].kind == "time":
                    assert np.abs((one - other).to_value("s")).max(initial=0) < 1e-9, (where, name)
                else:
                    np.testing.assert_array_equal(one, other, f"{where} {name}")
    return met
