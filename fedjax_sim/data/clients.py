"""Federations from each client's own arrays, and their split into examples to train and to test on."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.data.federated import FederatedData


def from_clients(
    clients: Mapping[Any, Any], *, num_classes: int | None = None, name: str = "clients"
) -> FederatedData:
    """Makes a federation from the arrays of each client.

    Args:
      clients: id -> `(x [n_k, ...], y [n_k])`, or id -> column name -> `[n_k, ...]`, in the order of the
        federation. Ids are integers or strings. A client may have no examples. Labels `y` may be
        strings; they are numbered in the order of their names, see `FederatedData.label_names`.
      num_classes: number of labels; by default the largest one plus one, if `y` holds integers.
      name: name shown in descriptions and errors.

    Returns:
      A `FederatedData` of NumPy arrays; 64-bit columns are stored in 32 bits.

    Raises:
      ValueError: an id is no integer or string, clients differ in columns or shapes, or a value is
        unusable; the error names the client.
    """
    if not isinstance(clients, Mapping) or not clients:
        raise ValueError(
            f"{name}: clients is {type(clients).__name__} of {len(clients)}; wanted a dict from ids to "
            "arrays of at least one client: for a list, write dict(enumerate(clients))"
        )
    ids = _as_ids(name, clients)
    columns = {id: _as_columns(name, id, own) for id, own in clients.items()}
    sizes = np.array([len(next(iter(own.values()))) for own in columns.values()])
    used = {id: own for (id, own), size in zip(columns.items(), sizes, strict=True) if size}
    if not used:
        raise ValueError(f"{name}: none of the {len(ids)} clients has an example; at least one must")
    _check_alike(name, used)
    first = next(iter(used.values()))
    examples = {column: np.concatenate([own[column] for own in used.values()]) for column in first}
    return _federation(name, examples, sizes, ids, num_classes)


def from_frame(
    frame: Any,
    *,
    client: str,
    label: str,
    features: Sequence[str] | None = None,
    num_classes: int | None = None,
    name: str = "frame",
) -> FederatedData:
    """Makes a federation from a table, such as a pandas data frame.

    Args:
      frame: table with named columns.
      client: column of integers or strings; each value is a client, in ascending order.
      label: column of `y`. Strings are numbered as by `from_clients`.
      features: columns of numbers, which become `x [n, len(features)]`; by default all others.
      num_classes: see `from_clients`.
      name: name shown in descriptions and errors.

    Returns:
      A `FederatedData` of NumPy arrays. A client's rows keep their order.

    Raises:
      ValueError: a column is missing or holds unusable values.
    """
    known = list(frame.columns)
    features = [c for c in known if c not in (client, label)] if features is None else list(features)
    missing = [column for column in (client, label, *features) if column not in known]
    if missing or not features:
        what = f"lacks the column {missing[0]!r}" if missing else "has no column of features"
        raise ValueError(f"{name}: the frame {what}; its columns are {known}")
    table = {column: np.asarray(frame[column]) for column in (client, label, *features)}
    for column in features:
        if table[column].dtype.kind not in "biuf":
            raise ValueError(
                f"{name}: column {column!r} holds {table[column].dtype}; wanted numbers: encode it, or "
                "name the columns to read by features="
            )
    _as_ids(name, table[client].tolist())
    ids, owner = np.unique(table[client], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    x = np.stack([np.asarray(table[column], np.float64) for column in features], axis=1)
    examples = {"x": x[order], "y": table[label][order]}
    return _federation(name, examples, np.bincount(owner), ids, num_classes)


def _federation(
    name: str,
    examples: dict[str, np.ndarray],
    sizes: np.ndarray,
    ids: np.ndarray,
    num_classes: int | None,
) -> FederatedData:
    """Returns a checked federation, with labels as numbers and columns in 32 bits."""
    label_names, labels = None, examples.get("y")
    if labels is not None and labels.dtype.kind in "OU":
        label_names, examples["y"] = _numbered(name, labels)
    if num_classes is None and "y" in examples and examples["y"].dtype.kind in "iu":
        num_classes = max(int(examples["y"].max()), 0) + 1 if label_names is None else len(label_names)
    data = FederatedData(
        examples,
        np.concatenate([[0], np.cumsum(sizes)]),
        client_ids=ids,
        num_classes=num_classes,
        name=name,
        label_names=label_names,
    )
    data.check()
    stored = {column: _in_32_bits(name, column, values) for column, values in examples.items()}
    return dataclasses.replace(data, examples=stored)


def split(
    clients: FederatedData, *, test: float = 0.2, seed: int = 0
) -> tuple[FederatedData, FederatedData]:
    """Divides each client's examples at random into some to train and some to test on.

    Both parts hold all clients, in the same order and with the same ids. A client keeps at least one
    example to train on, so one with a single example has none to test on. Within a client, examples
    keep their order.

    Args:
      clients: federation on the host.
      test: share of each client's examples to test on, rounded to whole examples.
      seed: seed of the choice.

    Returns:
      The federations to train and to test on.

    Raises:
      ValueError: `test` is not between 0 and 1, or so small that no example is left to test on.
    """
    if not 0 < test < 1:
        raise ValueError(f"test is {test}; wanted a share between 0 and 1, such as 0.2")
    offsets = np.asarray(clients.offsets, np.int64)
    sizes = np.diff(offsets)
    count = np.minimum(np.floor(test * sizes + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    if not count.any():
        raise ValueError(
            f"test is {test}, which leaves no example to test on: the largest client has {sizes.max()} "
            "examples; wanted a larger share"
        )
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((np.random.default_rng(seed).random(len(owner)), owner))
    is_test = np.empty(len(owner), bool)
    is_test[order] = np.arange(len(owner)) - offsets[owner] < count[owner]
    return tuple(_part(clients, np.flatnonzero(chosen), owner) for chosen in (~is_test, is_test))


def _part(clients: FederatedData, rows: np.ndarray, owner: np.ndarray) -> FederatedData:
    sizes = np.bincount(owner[rows], minlength=clients.num_clients)
    return dataclasses.replace(
        clients,
        examples={name: np.asarray(column)[rows] for name, column in clients.examples.items()},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
    )


def _as_ids(name: str, ids: Iterable[Any]) -> np.ndarray:
    ids = list(ids)
    if all(isinstance(id, int | np.integer) and not isinstance(id, bool) for id in ids):
        return np.array(ids, np.int64)
    strange = [id for id in ids if not isinstance(id, str)]
    if strange:
        raise ValueError(
            f"{name}: a client's id is {strange[0]!r}; wanted integers alone, or strings alone"
        )
    return np.array(ids, object)


def _as_columns(name: str, id: Any, own: Any) -> dict[str, np.ndarray]:
    """Returns a client's columns, all of one length."""
    if not isinstance(own, Mapping):
        if not isinstance(own, tuple | list) or len(own) != 2:
            raise ValueError(
                f"{name}: client {id!r} is a {type(own).__name__}; wanted a pair (x, y), or a dict of "
                "columns"
            )
        own = dict(zip("xy", own, strict=True))
    columns = {column: np.asarray(values) for column, values in own.items()}
    lengths = {column: len(values) if values.ndim else None for column, values in columns.items()}
    if not columns or len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(
            f"{name}: client {id!r} has columns of lengths {lengths}; wanted one entry per example in "
            "each"
        )
    return columns


def _check_alike(name: str, used: Mapping[Any, Mapping[str, np.ndarray]]) -> None:
    """Refuses clients whose columns, or the shapes of their examples, differ.

    Raises:
      ValueError: they differ; the error names two clients.
    """

    def form(own: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {column: (_kind(values), values.shape[1:]) for column, values in own.items()}

    (first, wanted), *others = ((id, form(own)) for id, own in used.items())
    for id, got in others:
        if got != wanted:
            raise ValueError(
                f"{name}: examples of client {id!r} are {got}, those of client {first!r} {wanted}; "
                "wanted the same columns, kinds and shapes"
            )


def _kind(values: np.ndarray) -> str:
    """Returns whether an array holds "booleans", "integers", "floats" or "strings"."""
    names = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "U": "strings"}
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat):
        return "strings"
    return names.get(values.dtype.kind, str(values.dtype))


def _numbered(name: str, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of labels in order, and the labels as numbers, int32."""
    if _kind(labels) != "strings":
        raise ValueError(f"{name}: column 'y' holds other objects than strings; wanted labels")
    names, numbers = np.unique(labels.astype(str), return_inverse=True)
    return tuple(names.tolist()), numbers.reshape(labels.shape).astype(np.int32)


def _in_32_bits(name: str, column: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.itemsize <= 4:
        return values
    is_float = values.dtype.kind == "f"
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32 if is_float else np.int32)
    if not (np.isfinite(stored).all() if is_float else (stored == values).all()):  # in x64 mode alone
        raise ValueError(f"{name}: column {column!r} holds numbers that do not fit 32 bits")
    return stored
