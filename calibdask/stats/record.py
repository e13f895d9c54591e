"""Frozen dataclasses of arrays that are stored field by field, without pickle."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ArrayRecord", "ArraySums"]


class ArrayRecord:
    """Base of dataclasses whose fields are arrays, plain values, or records within."""

    __slots__ = ()

    parts: ClassVar[Mapping[str, tuple[str, type[Any]]]] = {}
    """Fields that are records themselves (or None): prefix of their stored names, and class."""

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Fields by name, for storage without pickle; what is None is left out."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, value in self._values().items():
            if name in self.parts:
                inner = {} if value is None else value.to_arrays()
                arrays |= {f"{self.parts[name][0]}{key}": one for key, one in inner.items()}
            else:
                arrays[name] = np.asarray(value)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `to_arrays`."""
        values: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in cls.parts:
                prefix, kind = cls.parts[field.name]
                inner = {
                    k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
                }
                values[field.name] = kind.from_arrays(inner) if inner else None
            else:
                array = np.asarray(arrays[field.name])
                values[field.name] = array if array.ndim else array.item()
        return cls(**values)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class ArraySums(ArrayRecord):
    """Records that merge by adding their arrays and merging the records within."""

    __slots__ = ()

    def merge(self, other: Self) -> Self:
        """Both sets of events together.

        Raises
        ------
        ValueError
            Arrays of different shapes: the two are about different fits.
        """
        merged = {}
        for name, mine in self._values().items():
            theirs = getattr(other, name)
            if name not in self.parts and mine.shape != theirs.shape:
                shapes = f"{mine.shape} and {theirs.shape}"
                raise ValueError(f"{name} of shapes {shapes} are about different fits")
            merged[name] = mine.merge(theirs) if name in self.parts else mine + theirs
        return type(self)(**merged)
