"""Event-wise asymmetries of telescope pairs: the file between the two steps of inter-calibration.

The format is that of ctao-calibpipe 0.8: a table `/energy_asymmetry/events` or
`/image_asymmetry/events` with one row per pair and event, and beside it, as
`events.__table_column_meta__`, the units and metadata where `astropy.table.QTable.read` looks for
them (YAML text, `astropy.io.misc.hdf5`). The YAML is only parsed, never turned into objects.

Rows of image sizes have three more columns of ours at the end, which calibpipe reads over: the two
impact distances, and the limit that their asymmetry stayed below.
"""

from __future__ import annotations

import base64
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tables

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.io.hdf5 import open_hdf5, standard_unit
from calibdask.io.keys import whole_numbers
from calibdask.io.pytables import create_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import yaml
    from numpy.typing import NDArray

    from calibdask.io.hdf5 import File

__all__ = [
    "ENERGY_ASYMMETRY",
    "IMAGE_ASYMMETRY",
    "Asymmetries",
    "AsymmetryInfo",
    "AsymmetryWriter",
    "create_asymmetries",
    "inspect_asymmetries",
    "read_asymmetries",
]

ENERGY_ASYMMETRY = "energy_asymmetry"
IMAGE_ASYMMETRY = "image_asymmetry"

_KINDS = {"i": "iuf", "u": "iu", "S": "S", "f": "f"}

_HEADER = "__table_column_meta__"

_IMPACT = "_tel_impact_distance"
_LIMIT = "distance_asymmetry_limit"

# Sets the size of the chunks, which must not depend on the number of rows: it is not known.
_EXPECTED_ROWS = 1_000_000
# Not compressed, as calibpipe's: zlib, which h5py can read, saves 40 % and takes 40 times as long.
_CHECKSUMS = tables.Filters(complevel=0, fletcher32=True)


@dataclass(frozen=True, slots=True)
class AsymmetryInfo:
    """What a file of asymmetries holds.

    Attributes
    ----------
    label : str
        `ENERGY_ASYMMETRY` or `IMAGE_ASYMMETRY`.
    value : str
        The quantity compared, such as "RandomForestRegressor_tel_energy" or "hillas_intensity".
    unit : str
        Its unit as read: "TeV" for energies, "" for intensities.
    has_uncertainty : bool
        Whether there are uncertainties of the values and of the asymmetry.
    geometry : str or None
        Algorithm of the impact distances, such as "HillasReconstructor", where there are any.
    obs_ids : tuple of int
        Observation blocks, sorted.
    columns : tuple of str
        Names of the columns in the file.
    n_rows : int
        Pairs times events.
    """

    label: str
    value: str
    unit: str
    has_uncertainty: bool
    geometry: str | None
    obs_ids: tuple[int, ...]
    columns: tuple[str, ...]
    n_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Asymmetries:
    """One row per pair of telescopes and event.

    Attributes
    ----------
    obs_id : array of int64, (N,)
        Observation block.
    event_id : array of int64, (N,)
        Event number in the block.
    tel_type : array of bytes, (N,)
        LST, MST or SST.
    tel_id_1, tel_id_2 : array of uint16, (N,)
        The two telescopes.
    value_1, value_2 : array of float64, (N,)
        Energy in TeV, or intensity, of each.
    asymmetry : array of float64, (N,)
        (value_1 - value_2) / (value_1 + value_2).
    uncertainty_1, uncertainty_2, asymmetry_uncertainty : array of float64, (N,), or None
        All three or none.
    impact_1_m, impact_2_m, limit : array of float64, (N,), or None
        Impact distances, and what their asymmetry was found below; all three or none.
    """

    obs_id: NDArray[np.int64]
    event_id: NDArray[np.int64]
    tel_type: NDArray[np.bytes_]
    tel_id_1: NDArray[np.uint16]
    tel_id_2: NDArray[np.uint16]
    value_1: NDArray[np.float64]
    value_2: NDArray[np.float64]
    asymmetry: NDArray[np.float64]
    uncertainty_1: NDArray[np.float64] | None = None
    uncertainty_2: NDArray[np.float64] | None = None
    asymmetry_uncertainty: NDArray[np.float64] | None = None
    impact_1_m: NDArray[np.float64] | None = None
    impact_2_m: NDArray[np.float64] | None = None
    limit: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, rows: NDArray[np.integer]) -> Asymmetries:
        """Return some of the rows."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: values[rows] for name, values in columns.items() if values is not None}
        )


def inspect_asymmetries(path: Path | str, label: str | None = None) -> AsymmetryInfo:
    """Look at the metadata of a file of asymmetries.

    Parameters
    ----------
    path : Path or str
        The file.
    label : str, optional
        `ENERGY_ASYMMETRY` or `IMAGE_ASYMMETRY`; needed only where a file has both.

    Returns
    -------
    AsymmetryInfo
        What it holds.

    Raises
    ------
    MissingInput
        No such file, or no such table in it.
    CorruptedInput
        A table without the columns of asymmetries, an energy without a known unit; or as
        `calibdask.io.hdf5.open_hdf5`.
    ConfigError
        The file has both tables and no label was given.
    TransientError
        As `calibdask.io.hdf5.open_hdf5`.
    """
    with open_hdf5(path) as file:
        return _inspect(file, Path(path), label)[0]


def read_asymmetries(
    path: Path | str, label: str | None = None, rows: tuple[int, int] | None = None
) -> Asymmetries:
    """Read asymmetries, all of them or a range of rows.

    Parameters
    ----------
    path : Path or str
        The file.
    label : str, optional
        `ENERGY_ASYMMETRY` or `IMAGE_ASYMMETRY`; needed only where a file has both.
    rows : (first, stop), optional
        Rows to read.

    Returns
    -------
    Asymmetries
        The rows, in the order of the file.

    Raises
    ------
    MissingInput, CorruptedInput, ConfigError, TransientError
        As `inspect_asymmetries`; CorruptedInput also where the file does not have these rows.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        info, factor = _inspect(file, path, label)
        first, stop = (0, info.n_rows) if rows is None else rows
        if not 0 <= first <= stop <= info.n_rows:
            raise CorruptedInput(
                f"{path}: rows {first} to {stop} asked for, but there are {info.n_rows};"
                " the file changed since it was planned: plan again"
            )
        table = file.table(f"/{info.label}/events").read(first, stop)
    read: dict[str, NDArray[Any]] = {}
    columns = _columns(
        info.label, info.value, has_uncertainty=info.has_uncertainty, geometry=info.geometry
    )
    for column in columns:
        values = table[column.name]
        dtype = values.dtype if column.dtype.kind == "S" else column.dtype
        if column.field in ("obs_id", "event_id"):
            dtype = np.dtype("i8")
            values = whole_numbers(values, f"{path}: /{info.label}/events has {column.name}")
        read[column.field] = values.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(read[column.field], values):
            raise CorruptedInput(
                f"{path}: /{info.label}/events has {column.name} that do not fit {dtype}"
            )
        if column.is_value and factor != 1.0:
            read[column.field] *= factor
    return Asymmetries(**read)


class AsymmetryWriter:
    """Appends rows to a file of asymmetries; from `create_asymmetries`."""

    def __init__(self, table: tables.Table, columns: list[_Column]) -> None:
        self._table = table
        self._columns = columns
        self._obs_ids: set[int] = set()

    @property
    def obs_ids(self) -> tuple[int, ...]:
        """Observation blocks seen so far, sorted."""
        return tuple(sorted(self._obs_ids))

    def append(self, rows: Asymmetries) -> None:
        """Write rows after those already written, in the order given.

        Parameters
        ----------
        rows : Asymmetries
            With uncertainties for energies; with impact distances if the file has them.

        Raises
        ------
        ValueError
            Uncertainties are missing, or a value does not fit its column.
        """
        block = np.zeros(len(rows), [(column.name, column.dtype) for column in self._columns])
        for column in self._columns:
            values = getattr(rows, column.field)
            if values is None:
                raise ValueError(f"{self._table._v_pathname}: rows without {column.field}")
            block[column.name] = values
            if column.dtype.kind != "f" and not np.array_equal(block[column.name], values):
                raise ValueError(
                    f"{self._table._v_pathname}: {column.name} does not fit {column.dtype}"
                )
        self._table.append(block)
        self._table.flush()
        self._obs_ids.update(np.unique(block["obs_id"]).tolist())


@contextmanager
def create_asymmetries(
    path: Path | str,
    label: str,
    value: str,
    geometry: str | None = None,
    *,
    type_length: int = 3,
    obs_ids: Iterable[int] = (),
) -> Iterator[AsymmetryWriter]:
    """Create a file of asymmetries to append to. The same rows give the same bytes.

    Parameters
    ----------
    path : Path or str
        The new file.
    label : str
        `ENERGY_ASYMMETRY` or `IMAGE_ASYMMETRY`.
    value : str
        The quantity compared, such as "RandomForestRegressor_tel_energy" or "hillas_intensity".
    geometry : str, optional
        Algorithm of the impact distances: given, the file holds them, too.
    type_length : int
        Bytes of the longest telescope type.
    obs_ids : iterable of int
        Observation blocks that may come: what does not fit 32 bits, as in ctao-calibpipe's files,
        is stored in 64.

    Yields
    ------
    AsymmetryWriter
        However often it is called, the bytes depend only on the rows. Complete when the block ends;
        a block that fails leaves no file.

    Raises
    ------
    ConfigError, TransientError
        As `calibdask.io.hdf5.create_hdf5`.
    """
    columns = _columns(label, value, has_uncertainty=label == ENERGY_ASYMMETRY, geometry=geometry)
    obs_id = np.dtype("i8" if any(abs(one) >= 2**31 for one in obs_ids) else "i4")
    own = {"obs_id": obs_id, "tel_type": np.dtype(f"S{max(type_length, 3)}")}
    columns = [one._replace(dtype=own.get(one.name, one.dtype)) for one in columns]
    with create_hdf5(path) as file:
        with warnings.catch_warnings():
            # An algorithm's name may hold a dash: that it is no Python identifier harms nobody.
            warnings.simplefilter("ignore", tables.NaturalNameWarning)
            table = file.create_table(
                f"/{label}",
                "events",
                description=np.dtype([(column.name, column.dtype) for column in columns]),
                filters=_CHECKSUMS,
                expectedrows=_EXPECTED_ROWS,
                createparents=True,
                track_times=False,
            )
        writer = AsymmetryWriter(table, columns)
        yield writer
        table.attrs["obs_id"] = np.array(writer.obs_ids, obs_id)
        lines = _astropy_header(columns, label, writer.obs_ids)
        with warnings.catch_warnings():
            # The name is Astropy's; that it is no Python identifier harms nobody.
            warnings.simplefilter("ignore", tables.NaturalNameWarning)
            file.create_array(
                f"/{label}",
                f"events.{_HEADER}",
                obj=np.array([line.encode() for line in lines]),
                track_times=False,
            )


class _Column(NamedTuple):
    field: str  # of Asymmetries
    name: str  # in the file
    dtype: np.dtype[Any]
    unit: str = ""
    is_value: bool = False  # in the unit of the quantity compared


def _columns(
    label: str, value: str, *, has_uncertainty: bool, geometry: str | None
) -> list[_Column]:
    """Columns in the order of calibpipe's files, and then ours."""
    real = np.dtype("f8")
    unit = "TeV" if label == ENERGY_ASYMMETRY else ""
    columns = [
        _Column("obs_id", "obs_id", np.dtype("i4")),
        _Column("event_id", "event_id", np.dtype("i8")),
        _Column("tel_type", "tel_type", np.dtype("S3")),
        _Column("tel_id_1", "tel_id_1", np.dtype("u2")),
        _Column("tel_id_2", "tel_id_2", np.dtype("u2")),
        _Column("value_1", f"{value}_1", real, unit, is_value=True),
        _Column("value_2", f"{value}_2", real, unit, is_value=True),
        _Column("asymmetry", label, real),
    ]
    if has_uncertainty:
        columns += [
            _Column("uncertainty_1", f"{value}_uncert_1", real, unit, is_value=True),
            _Column("uncertainty_2", f"{value}_uncert_2", real, unit, is_value=True),
            _Column("asymmetry_uncertainty", f"{label}_uncertainty", real),
        ]
    if geometry is not None:
        columns += [
            _Column("impact_1_m", f"{geometry}{_IMPACT}_1", real, "m"),
            _Column("impact_2_m", f"{geometry}{_IMPACT}_2", real, "m"),
            _Column("limit", _LIMIT, real),
        ]
    return columns


def _inspect(file: File, path: Path, label: str | None) -> tuple[AsymmetryInfo, float]:
    """Return what the file holds, and the factor to the unit values are read in."""
    label = _find_label(file, path, label)
    where = f"{path}: /{label}/events"
    table = file.table(f"/{label}/events")
    names = table.names
    others = ("_uncert_1", "id_1", f"{_IMPACT}_1")
    values = [name[:-2] for name in names if name.endswith("_1") and not name.endswith(others)]
    if len(values) != 1:
        raise CorruptedInput(
            f"{where} should compare one quantity, but compares {values or 'none'}"
        )
    has_uncertainty = f"{label}_uncertainty" in names
    geometries = [name.removesuffix(f"{_IMPACT}_1") for name in names if f"{_IMPACT}_1" in name]
    geometry = geometries[0] if geometries and _LIMIT in names else None
    columns = _columns(label, values[0], has_uncertainty=has_uncertainty, geometry=geometry)
    for column in columns:
        found = table.dtype[column.name] if column.name in names else None
        if found is None or found.kind not in _KINDS[column.dtype.kind]:
            raise CorruptedInput(
                f"{where} needs a column {column.name} of {column.dtype}, and has {found}"
            )
    units = _read_units(file, path, f"/{label}/events")
    found_units = {units.get(column.name, "") for column in columns if column.is_value}
    expected = "TeV" if label == ENERGY_ASYMMETRY else ""
    factor, unit = standard_unit(min(found_units))
    if len(found_units) > 1 or unit != expected:
        raise CorruptedInput(
            f"{where} has {values[0]} in {sorted(found_units)}, expected {expected!r}"
        )
    # Ours say it in an attribute; those of calibpipe have to be read.
    obs_id = table.attribute("obs_id")
    obs_id = table.column("obs_id") if obs_id is None else obs_id
    info = AsymmetryInfo(
        label=label,
        value=values[0],
        unit=unit,
        has_uncertainty=has_uncertainty,
        geometry=geometry,
        obs_ids=tuple(np.unique(obs_id).tolist()),
        columns=tuple(names),
        n_rows=table.n_rows,
    )
    return info, factor


def _find_label(file: File, path: Path, label: str | None) -> str:
    candidates = (ENERGY_ASYMMETRY, IMAGE_ASYMMETRY) if label is None else (label,)
    present = [name for name in candidates if f"/{name}/events" in file]
    if not present:
        nodes = [table.path for table in file.tables()]
        raise MissingInput(
            f"{path}: has no table {' or '.join(f'/{name}/events' for name in candidates)}, but"
            f" {', '.join(nodes[:5]) or 'nothing'}; is it a file of event-wise asymmetries?"
        )
    if len(present) > 1:
        raise ConfigError(f"{path}: has both {' and '.join(present)}; say which by asymmetry_label")
    return present[0]


# --- Astropy's header ------------------------------------------------------------------------


def _astropy_header(columns: Sequence[_Column], label: str, obs_ids: Iterable[int]) -> list[str]:
    """YAML text that `astropy.table.meta.get_header_from_yaml` reads, one string per line."""
    lines = ["datatype:"]
    for column in columns:
        kind = "string" if column.dtype.kind == "S" else column.dtype.name
        of_unit = f", unit: {column.unit}" if column.unit else ""
        lines.append(f"- {{name: {column.name}{of_unit}, datatype: {kind}}}")
    numbers = np.array(list(obs_ids), columns[0].dtype.newbyteorder("<"))
    # Astropy encodes the bytes, and YAML's !!binary encodes them once more.
    text = base64.b64encode(base64.b64encode(numbers.tobytes())).decode()
    lines += ["meta: !!omap", "- obs_id: !numpy.ndarray", "    buffer: !!binary |"]
    lines += [f"      {text[i : i + 76]}" for i in range(0, len(text), 76)]
    lines += [
        f"    dtype: {numbers.dtype.name}",
        "    order: C",
        f"    shape: !!python/tuple [{numbers.size}]",
    ]
    # Dimensionless columns of calibpipe's energies are quantities, which takes saying so.
    quantities = [
        column
        for column in columns
        if column.unit or (label == ENERGY_ASYMMETRY and column.dtype.kind == "f")
    ]
    if quantities:
        lines.append("- __serialized_columns__:")
    for column in quantities:
        lines += [
            f"    {column.name}:",
            "      __class__: astropy.units.quantity.Quantity",
            f"      unit: !astropy.units.Unit {{unit: '{column.unit}'}}",
            f"      value: !astropy.table.SerializedColumn {{name: {column.name}}}",
        ]
    return lines


def _read_units(file: File, path: Path, table_path: str) -> dict[str, str]:
    """Units in the header beside the table; none where there is no header."""
    import yaml

    header = f"{table_path}.{_HEADER}"
    if header not in file:
        return {}
    text = b"\n".join(file.array(header).tolist()).decode("utf-8", "replace")
    try:
        # Parsed into a tree of text: nothing is constructed, whatever tags it has.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CorruptedInput(f"{path}: {header} is not YAML: {error}") from None
    described = _mapping(root).get("datatype")
    entries = described.value if isinstance(described, yaml.SequenceNode) else []
    units = {}
    for entry in map(_mapping, entries):
        if "name" in entry and "unit" in entry:
            units[str(entry["name"].value)] = str(entry["unit"].value)
    return units


def _mapping(node: yaml.Node | None) -> dict[str, yaml.Node]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): value for key, value in node.value}
