"""Checks of a federation: its structure when it is built, every value before it is used."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.data.storage import mapped

_INT32 = np.iinfo(np.int32)


def checked_offsets(
    examples: Any, offsets: Any, client_ids: Any, num_classes: Any, name: str | None
) -> np.ndarray:
    """Checks everything about a federation but the values of its examples.

    Args:
      examples: column name -> `[n, ...]`.
      offsets: `[N + 1]` integers, on the host.
      client_ids: `[N]`, or None.
      num_classes: number of labels, or None.
      name: name of the federation, for errors.

    Returns:
      The offsets as int32.

    Raises:
      ValueError: the offsets are not ascending 32-bit integers from 0 to at most n, columns differ in
        length or are not numeric, `client_ids` are not one per client, or `num_classes` is not a
        positive integer.
    """
    title = name or "data"
    _check_columns(title, examples)
    known = num_classes is not None
    if known and (not _is_integer(num_classes) or not 1 <= num_classes <= _INT32.max):
        raise ValueError(f"{title}: num_classes is {num_classes!r}; wanted an integer of at least 1.")
    if not isinstance(offsets, np.ndarray) or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise ValueError(f"{title}: offsets are {_kind(offsets)}; wanted NumPy int32 [N + 1].")
    if not len(offsets) or offsets[0] != 0:
        begin = f"begin with {offsets[0]}" if len(offsets) else "are empty"
        raise ValueError(f"{title}: offsets {begin}; wanted 0, where the first client's rows begin.")
    if client_ids is not None and np.shape(client_ids) != (len(offsets) - 1,):
        raise ValueError(
            f"{title}: client_ids are {_kind(client_ids)} for {len(offsets) - 1} clients; wanted one "
            "for each."
        )
    falls = offsets[1:] < offsets[:-1]
    if falls.any():
        k = int(np.argmax(falls))
        raise ValueError(
            f"{title}: offsets fall from {offsets[k]} to {offsets[k + 1]} at "
            f"{_client(client_ids, k)}; wanted each client's first row, in ascending order."
        )
    column, rows = next((name, len(column)) for name, column in examples.items())
    if offsets[-1] > min(rows, _INT32.max):
        wanted = f"at most {_INT32.max}, the int32 maximum" if rows > _INT32.max else f"at most {rows}"
        raise ValueError(
            f"{title}: offsets end with {offsets[-1]} and column {column!r} has {rows} rows; wanted "
            f"{wanted}."
        )
    return offsets.astype(np.int32, copy=False)


def checked_label_names(name: str | None, label_names: Any, num_classes: Any) -> tuple[str, ...]:
    """Checks the names of labels.

    Args:
      name: name of the federation, for errors.
      label_names: sequence of strings.
      num_classes: number of labels, or None.

    Returns:
      The names as plain strings.

    Raises:
      ValueError: they are not strings, some are equal, or they are not one for each class.
    """
    title, names = name or "data", label_names
    if isinstance(names, str) or not all(isinstance(label, str) for label in names):
        raise ValueError(f"{title}: label_names are {names!r:.200}; wanted a sequence of strings.")
    names = tuple(map(str, names))
    if len(set(names)) < len(names):
        label, times = collections.Counter(names).most_common(1)[0]
        raise ValueError(
            f"{title}: the name {label!r} stands {times} times in label_names; wanted different names."
        )
    if len(names) != num_classes:
        raise ValueError(
            f"{title}: there are {len(names)} label_names for {num_classes} classes; wanted one for "
            "each."
        )
    return names


def _check_columns(title: str, examples: Any) -> None:
    if not isinstance(examples, dict) or not examples:
        raise ValueError(
            f"{title}: examples are {_kind(examples)}; wanted a dict of one or more columns [n, ...]."
        )
    first = next(iter(examples))
    for name, column in examples.items():
        if not isinstance(column, np.ndarray | jax.Array) or column.ndim == 0:
            raise ValueError(
                f"{title}: column {name!r} is {_kind(column)}; wanted an array with one leading row per "
                "example: call np.asarray."
            )
        if len(column) != len(examples[first]):
            raise ValueError(
                f"{title}: column {name!r} has {len(column)} rows and column {first!r} has "
                f"{len(examples[first])}; every column needs one row per example."
            )
        if isinstance(column, np.ndarray) and not _is_numeric(column.dtype):
            raise ValueError(
                f"{title}: column {name!r} holds {column.dtype}; wanted booleans, integers or floats "
                "of at most 64 bits."
            )
        if isinstance(column, np.ndarray) and not column.dtype.isnative:
            raise ValueError(
                f"{title}: column {name!r} holds {column.dtype}; wanted this machine's byte order: "
                "call .astype(dtype.newbyteorder('='))."
            )


def check_examples(
    examples: Mapping[str, Any], offsets: Any, client_ids: Any, num_classes: int | None, name: str | None
) -> None:
    """Checks every value that a client owns, some rows at a time.

    Args:
      examples: column name -> `[n, ...]`; arrays on devices are skipped if other processes hold parts
        of them, and otherwise copied to the host, one column at a time.
      offsets: `[N + 1]`.
      client_ids: `[N]`, or None.
      num_classes: number of labels, or None.
      name: name of the federation, for errors.

    Raises:
      ValueError: a stored column is not what was written, or a value is a label out of range, NaN,
        infinity, or a number that does not fit its dtype on devices.
    """
    on_host = {column: _on_host(values) for column, values in examples.items()}
    offsets = _on_host(offsets)
    if offsets is None:
        return
    offsets = checked_offsets(examples, offsets, client_ids, num_classes, name)
    for column, values in on_host.items():
        if values is None:
            continue
        mapped.verify(values)
        first = 0
        for piece in mapped.pieces(values[: offsets[-1]]):
            check_values(column, piece, first, offsets, client_ids, num_classes, name)
            first += len(piece)


def check_values(
    column: str,
    values: np.ndarray,
    first: int,
    offsets: np.ndarray,
    client_ids: Any,
    num_classes: int | None,
    name: str | None,
) -> None:
    """Checks `values` `[m, ...]`, the rows of a column from row `first` of the federation on.

    Raises:
      ValueError: a value is unusable; the error names it, its row and the row's client.
    """
    limits = _limits(column, values.dtype, num_classes)
    if limits is None or not values.size:
        return
    low, high, wanted = limits
    with np.errstate(invalid="ignore"):
        if values.min() >= low and values.max() <= high:  # False with NaN
            return
        good = (values >= low) & (values <= high)
    place = np.unravel_index(np.argmin(good), good.shape)
    row = first + int(place[0])
    k = int(np.searchsorted(offsets, row, side="right")) - 1
    raise ValueError(
        f"{name or 'data'}: column {column!r} holds {values[place]} at row {row}, row "
        f"{row - offsets[k]} of {_client(client_ids, k)}; wanted {wanted}."
    )


def _limits(column: str, dtype: np.dtype, num_classes: int | None) -> tuple[Any, Any, str] | None:
    """Returns the least and largest allowed values and their description; None if all are allowed."""
    kept = jax.dtypes.canonicalize_dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        if column == "y" and num_classes is not None:
            cure = "renumber the labels, or raise num_classes and the model's classes"
            return 0, num_classes - 1, f"labels from 0 to {num_classes - 1}: {cure}"
        if kept == dtype:
            return None
        return jnp.iinfo(kept).min, jnp.iinfo(kept).max, f"integers that fit {kept}"
    if jnp.issubdtype(dtype, jnp.floating):
        most = float(jnp.finfo(kept).max)
        return -most, most, f"finite numbers that fit {kept}"
    return None


def _on_host(array: Any) -> np.ndarray | None:
    if isinstance(array, jax.Array):
        return np.asarray(array) if array.is_fully_addressable else None
    return array


def _is_numeric(dtype: np.dtype) -> bool:
    # Only JAX knows dtypes that are not NumPy's own, such as bfloat16.
    return dtype.itemsize <= 8 and (dtype.kind == "b" or jnp.issubdtype(dtype, jnp.number))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _client(client_ids: Any, k: int) -> str:
    if client_ids is None:
        return f"client {k}"
    # A plain Python value has a short repr.
    return f"client {np.asarray(client_ids)[k : k + 1].tolist()[0]!r}"


def _kind(value: Any) -> str:
    """Describes a value in a few words."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype} of shape {list(value.shape)}"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"
