"""Canonical JSON and digests: one text for one value, so that equal things have equal names."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from calibdask.engine.protocol import Arrays

__all__ = ["canonical_json", "digest_arrays", "digest_json", "read_json"]


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe would make us wait
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: not a regular file")
    return descriptor


def read_json(path: Path) -> Any:
    """Read a file of JSON that may have been cut short or replaced by anything.

    Raises
    ------
    OSError
        It is not there, or may not be read.
    ValueError
        It holds no JSON in UTF-8, or is no regular file.
    """
    with open(path, encoding="utf-8", opener=_open_regular) as file:
        try:
            return json.load(file)
        except RecursionError as error:
            raise ValueError(f"{path}: nested too deeply") from error


def _plain(value: Any, path: str) -> Any:
    """Check that a value has exactly one JSON text, and give it back in plain types."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path}: {value} has no JSON text")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path}: key {key!r} is not a string")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    # No fallback to str(): the text of a large array is cut short, and two arrays would collide.
    raise TypeError(f"{path}: a {type(value).__name__} has no canonical JSON text")


def canonical_json(value: Any) -> str:
    """Write a value as JSON with sorted keys and no spaces.

    Raises
    ------
    TypeError
        The value holds something other than str, int, float, bool, None, lists and mappings.
    """
    return json.dumps(
        _plain(value, "$"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )


def digest_json(value: Any) -> str:
    """Return the sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def digest_arrays(arrays: Arrays) -> str:
    """Return the sha256 (hex) of named arrays: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        total.update(canonical_json([name, little.dtype.str, list(array.shape)]).encode("ascii"))
        total.update(little.tobytes())
    return total.hexdigest()
