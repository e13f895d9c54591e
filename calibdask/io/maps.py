"""Pixel maps in Zarr: one group for each kind of map, readable with xarray.

Workers write bands of rows, each a multiple of the chunk height, so none waits for another and none
reads what another wrote. Names are paths: the last part is the variable, what stands before it the
group, as in ``bias/iso100/bias_error``.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "MAPS",
    "TABLES",
    "MapLayout",
    "ProductMaps",
    "create_maps",
    "digest_maps",
    "read_product",
    "write_rows",
]

MAPS = "maps.zarr"
"""Name of the maps in a product's directory."""

TABLES = "tables.h5"
"""Name of the tables beside them."""

_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_KINDS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float32", "float64",
)  # fmt: skip

_SLAB_BYTES = 32 << 20  # how much of a map is in memory while its digest is taken


@dataclass(frozen=True)
class MapLayout:
    """An array to be made.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        Its type.
    chunk_rows : int
        How many rows a chunk holds; other dimensions are not cut.
    dims : tuple of str
        Names of its dimensions.
    attributes : mapping
        JSON values: ``units``, ``long_name``, ``flag_masks`` and ``flag_meanings``, ...
    """

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    dims: tuple[str, ...] = ("y", "x")
    attributes: Mapping[str, Any] = field(default_factory=dict)


def create_maps(
    path: Path,
    layouts: Mapping[str, MapLayout],
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Make the arrays, still without values.

    Parameters
    ----------
    path : Path
        The Zarr directory; replaced where it exists.
    layouts : mapping of str to MapLayout
        By name.
    attributes : mapping of str to mapping, optional
        What is to be said about groups.
    """
    import zarr
    from zarr.codecs import BloscCodec

    root = zarr.open_group(path, mode="w", zarr_format=3)
    for group, values in (attributes or {}).items():
        (root.require_group(group) if group else root).attrs.update(dict(values))
    for name, layout in layouts.items():
        group, _, variable = name.rpartition("/")
        kind = np.dtype(layout.dtype)
        (root.require_group(group) if group else root).create_array(
            variable,
            shape=layout.shape,
            dtype=kind,
            chunks=(min(layout.chunk_rows, layout.shape[0]), *layout.shape[1:]),
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")],
            fill_value=np.nan if kind.kind == "f" else 0,
            dimension_names=layout.dims,
            attributes=dict(layout.attributes),
        )
    _consolidate(path, {name.rpartition("/")[0] for name in layouts} | {""})


def _consolidate(path: Path, groups: set[str]) -> None:
    """Put what describes a group's arrays into one file: xarray looks for it and warns if not."""
    import zarr
    from zarr.storage import LocalStore

    with warnings.catch_warnings():
        # Zarr 3 as a specification does not know it yet; every reader copes without.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        for group in sorted(groups, key=lambda name: -name.count("/")):
            # Not the path as text: that would be an address, which ends at a # or a ?.
            store = LocalStore(path)
            zarr.consolidate_metadata(store, path=group or None, zarr_format=3)


class _Chunks:
    """The chunks of an array as `create_maps` lays them out: runs of rows in Blosc.

    Zarr's own pipeline copies each chunk four times; these are the same files for a third of the
    CPU. Arrays that are laid out in another way (`plain` is false) are left to Zarr.
    """

    def __init__(self, path: Path) -> None:
        about = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        codecs = [(one["name"], one.get("configuration", {})) for one in about["codecs"]]
        grid = about["chunk_grid"].get("configuration", {}).get("chunk_shape", [0])
        self.path, self.shape, self.rows = path, tuple(about["shape"]), grid[0]
        self.plain = (
            [name for name, _ in codecs] == ["bytes", "blosc"]
            and codecs[0][1].get("endian", "little") == "little"
            and about["chunk_key_encoding"] == _KEYS
            and about["data_type"] in _KINDS
            and [self.rows, *self.shape[1:]] == grid
        )
        if self.plain:
            self.kind = np.dtype(about["data_type"]).newbyteorder("<")
            self.fill = np.array(float(about["fill_value"])).astype(self.kind)

    def _file(self, number: int) -> Path:
        return self.path.joinpath("c", str(number), *["0"] * (len(self.shape) - 1))

    def write(self, number: int, values: NDArray[Any]) -> None:
        """Write a chunk, unless it holds nothing but the fill value, as Zarr does."""
        from numcodecs.blosc import Blosc

        if np.array_equal(values.flat[0], self.fill, equal_nan=self.kind.kind == "f") and (
            np.isnan(values).all() if np.isnan(self.fill) else not np.any(values)
        ):
            return
        whole = np.ascontiguousarray(values, self.kind)
        if len(whole) < self.rows:
            whole = np.full((self.rows, *self.shape[1:]), self.fill)
            whole[: len(values)] = values
        file = self._file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{uuid4().hex}.partial")
        partial.write_bytes(Blosc("lz4", 5, Blosc.BITSHUFFLE).encode(whole))
        partial.replace(file)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Return the rows of each chunk; the next one takes their memory."""
        from numcodecs.blosc import Blosc

        buffer = np.empty((self.rows, *self.shape[1:]), self.kind)
        for number, first in enumerate(range(0, self.shape[0], self.rows)):
            try:
                Blosc().decode(self._file(number).read_bytes(), buffer)
            except FileNotFoundError:
                buffer[:] = self.fill
            yield buffer[: self.shape[0] - first]


def write_rows(path: Path, name: str, first: int, values: NDArray[Any]) -> None:
    """Write rows of an array from row `first` on.

    Parameters
    ----------
    path : Path
        The Zarr directory.
    name : str
        Name of the array.
    first : int
        First row; a multiple of the rows of a chunk where others write at the same time.
    values : ndarray
        Whole rows.
    """
    chunks, stop = _Chunks(path / name), first + len(values)
    if (
        chunks.plain
        and values.size
        and not first % chunks.rows
        and (stop == chunks.shape[0] or not stop % chunks.rows)
    ):
        for start in range(0, len(values), chunks.rows):
            chunks.write((first + start) // chunks.rows, values[start : start + chunks.rows])
        return
    import zarr

    array = zarr.open_array(path / name, mode="r+", zarr_format=3)
    array[first:stop] = values


@dataclass(frozen=True)
class ProductMaps:
    """The maps of a finished product.

    Attributes
    ----------
    path : Path
        The Zarr directory.
    layouts : mapping of str to MapLayout
        What there is, by name.
    groups : mapping of str to mapping
        What is said about groups, by name; the empty one is the whole product.
    """

    path: Path
    layouts: Mapping[str, MapLayout]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def about(self, group: str) -> Mapping[str, Any]:
        """Return what is said about a group of maps."""
        return self.groups.get(group, {})

    def __contains__(self, name: object) -> bool:
        return name in self.layouts

    def rows(self, name: str, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows of a map.

        Raises
        ------
        MissingInput
            There is no such map.
        CorruptedInput
            It cannot be read.
        """
        import zarr

        if name not in self.layouts:
            known = ", ".join(self.layouts) or "nothing"
            raise MissingInput(f"{self.path}: holds no map {name!r}, but {known}")
        try:
            array = zarr.open_array(self.path / name, mode="r", zarr_format=3)
            values: NDArray[Any] = np.asarray(array[first:stop])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CorruptedInput(f"{self.path}: map {name} cannot be read: {error}") from error
        return values


def read_product(path: Path | str) -> ProductMaps:
    """Open the maps of a product: its directory, or the Zarr directory itself.

    Raises
    ------
    MissingInput
        There are no maps.
    CorruptedInput
        They cannot be read.
    """
    import zarr

    root = Path(path)
    root = root / MAPS if (root / MAPS).is_dir() else root
    if not (root / "zarr.json").is_file():
        raise MissingInput(
            f"{path}: holds no pixel maps ({MAPS}): give the output directory of a calibration"
        )
    layouts: dict[str, MapLayout] = {}
    groups: dict[str, Mapping[str, Any]] = {}
    try:
        # What describes the groups may tell of the arrays as they once were: ask each array.
        for about in sorted(root.rglob("zarr.json")):
            described = json.loads(about.read_text(encoding="utf-8"))
            place = about.parent.relative_to(root).as_posix()
            if described["node_type"] != "array":
                groups["" if place == "." else place] = described.get("attributes", {})
                continue
            array = zarr.open_array(about.parent, mode="r", zarr_format=3)
            dims = array.metadata.dimension_names  # type: ignore[union-attr]
            layouts[place] = MapLayout(
                array.shape,
                array.dtype.str,
                array.chunks[0] if array.chunks else 1,
                tuple(str(one) for one in dims or ()),
                dict(array.attrs),
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptedInput(f"{root}: is no Zarr group that can be read: {error}") from error
    return ProductMaps(root, layouts, groups)


def digest_maps(path: Path) -> str:
    """Return the sha256 (hex) of all arrays: names, types, shapes, units and values.

    How they are cut into chunks and compressed does not matter.

    Parameters
    ----------
    path : Path
        The Zarr directory.

    Raises
    ------
    MissingInput, CorruptedInput
        As for :func:`read_product`.
    """
    maps = read_product(path)
    total = hashlib.sha256()
    for name, layout in sorted(maps.layouts.items()):
        kind = np.dtype(layout.dtype).newbyteorder("<")
        about = [name, kind.str, list(layout.shape), layout.attributes.get("units", "")]
        total.update(json.dumps(about).encode())
        try:
            for values in _parts(maps, name):
                total.update(np.ascontiguousarray(values, dtype=kind).data)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CorruptedInput(f"{path}: map {name} cannot be read: {error}") from error
    return total.hexdigest()


def _parts(maps: ProductMaps, name: str) -> Iterable[NDArray[Any]]:
    chunks = _Chunks(maps.path / name)
    if chunks.plain:
        return chunks
    return (maps.rows(name, first, stop) for first, stop in _slabs(maps.layouts[name]))


def _slabs(layout: MapLayout) -> Sequence[tuple[int, int]]:
    """Cut an array into whole chunks of a bounded size."""
    n_rows = layout.shape[0] if layout.shape else 0
    row_bytes = max(1, np.dtype(layout.dtype).itemsize * int(np.prod(layout.shape[1:])))
    step = max(1, _SLAB_BYTES // row_bytes // layout.chunk_rows) * layout.chunk_rows
    return [(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]
