"""The laws every summary obeys, as one check that each summary's tests call with their own data.

from tests.laws import check_summary_laws
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["assert_close", "assert_same", "check_summary_laws"]


def check_summary_laws(
    parts: Sequence[Any], identity: Any, whole: Any = None, *, rtol: float = 1e-9, atol: float = 0.0
) -> None:
    """Fail unless the summaries form a monoid that stores.

    Parameters
    ----------
    parts
        Summaries of at least three shards.
    identity
        The summary of no data.
    whole
        The summary of all shards' data made in one go: merging the parts must give it.
    rtol, atol
        Rounding allowed where the order of merging may show. Integers and strings must be equal.
    """
    if len(parts) < 3:
        raise AssertionError("associativity takes three summaries")
    before = [_copies(part) for part in (*parts, identity)]
    for part in parts:
        assert_same(part.merge(identity), part, "merging the identity from the right")
        assert_same(identity.merge(part), part, "merging the identity from the left")
        assert_same(_stored(part), part, "storing and reading back")
    assert_same(identity.merge(identity), identity, "merging two identities")
    assert_same(_stored(identity), identity, "storing and reading back the identity")

    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    from_the_right = parts[-1]
    for part in parts[-2::-1]:
        from_the_right = part.merge(from_the_right)
    assert_close(from_the_right, total, "associativity", rtol=rtol, atol=atol)
    if whole is not None:
        assert_close(total, whole, "parts merged against the whole", rtol=rtol, atol=atol)

    again = parts[0]
    for part in parts[1:]:
        again = again.merge(part)
    assert_same(again, total, "merging the same again")
    for part, arrays in zip((*parts, identity), before, strict=True):
        _compare(part.to_arrays(), arrays, "mutation of an argument", exact=True)


def assert_same(left: Any, right: Any, law: str) -> None:
    """Fail unless two summaries are the same bit for bit, type for type."""
    _compare(left.to_arrays(), right.to_arrays(), law, exact=True)


def assert_close(left: Any, right: Any, law: str, *, rtol: float = 1e-9, atol: float = 0.0) -> None:
    """Fail unless floats agree to rounding and everything else exactly."""
    _compare(left.to_arrays(), right.to_arrays(), law, exact=False, rtol=rtol, atol=atol)


def _stored(summary: Any) -> Any:
    """Through a file without pickle, as a checkpoint goes."""
    file = io.BytesIO()
    np.savez(file, **summary.to_arrays(), allow_pickle=False)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return type(summary).from_arrays(dict(stored))


def _copies(summary: Any) -> dict[str, NDArray[Any]]:
    return {name: np.array(values, copy=True) for name, values in summary.to_arrays().items()}


def _compare(
    left: Mapping[str, NDArray[Any]],
    right: Mapping[str, NDArray[Any]],
    law: str,
    *,
    exact: bool,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    if set(left) != set(right):
        raise AssertionError(f"{law}: fields {sorted(left)} against {sorted(right)}")
    for name, values in left.items():
        expected = right[name]
        message = f"{law}: {name}"
        if values.dtype != expected.dtype or values.shape != expected.shape:
            raise AssertionError(
                f"{message}: {values.dtype} {values.shape} against "
                f"{expected.dtype} {expected.shape}"
            )
        if exact:
            if values.tobytes() != expected.tobytes():
                raise AssertionError(f"{message}: {values} against {expected}")
        elif values.dtype.kind == "f":
            np.testing.assert_allclose(values, expected, rtol=rtol, atol=atol, err_msg=message)
        else:
            np.testing.assert_array_equal(values, expected, err_msg=message)
