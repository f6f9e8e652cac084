"""Federations from each client's own arrays, and their split into examples to train and to test on."""

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.storage import mapped

_UNSIGNED = "unsigned integers of 64 bits"
_KINDS = types.MappingProxyType(
    {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "U": "strings"}
)


def from_clients(
    clients: Mapping[Any, Any],
    *,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    name: str = "clients",
) -> FederatedData:
    """Makes a federation from the arrays of each client.

    Args:
      clients: id -> `(x [n_k, ...], y [n_k])`, or id -> column name -> `[n_k, ...]`, in the order of the
        federation. Ids are integers or strings. Columns are anything that NumPy makes an array of:
        lists, pandas columns, tensors on the CPU without gradients. A client may have no examples.
        Models divide bytes (uint8) in `x` by 255, as pixels, and refuse other integers unless they read
        tokens.
      num_classes: number of labels; by default that of `label_names`, or the largest label plus one, if
        `y` holds integers.
      label_names: names of the labels. If `y` holds strings, by default those that occur, in order; if
        you make data to train and to test on apart, give the second the `label_names` of the first.
      name: name shown in descriptions and errors.

    Returns:
      A `FederatedData` of NumPy arrays; 64-bit columns are stored in 32 bits.

    Raises:
      ValueError: an id is no integer or string, clients differ in columns or shapes, or a value is
        unusable; the error names the client.
    """
    if not isinstance(clients, Mapping) or not clients:
        got = "an empty dict" if isinstance(clients, Mapping) else type(clients).__name__
        raise ValueError(
            f"{name}: clients is {got}; wanted a dict from ids to arrays of at least one client: for a "
            "list, write dict(enumerate(clients))"
        )
    ids = as_ids(name, clients)
    columns = {id: _as_columns(name, id, own) for id, own in clients.items()}
    sizes = np.array([len(next(iter(own.values()))) for own in columns.values()])
    used = {id: own for (id, own), size in zip(columns.items(), sizes, strict=True) if size}
    if not used:
        raise ValueError(f"{name}: none of the {len(ids)} clients has an example; at least one must")
    _check_alike(name, used)
    first = next(iter(used.values()))
    examples = {column: np.concatenate([own[column] for own in used.values()]) for column in first}
    return federation(name, examples, sizes, ids, num_classes, label_names)


def federation(
    name: str,
    examples: dict[str, np.ndarray],
    sizes: np.ndarray,
    ids: np.ndarray,
    num_classes: int | None,
    label_names: Sequence[str] | None,
) -> FederatedData:
    """Returns a checked federation, with labels as numbers and columns in 32 bits.

    Args:
      name: name shown in descriptions and errors.
      examples: column name -> `[n, ...]`, client after client.
      sizes: number of rows of each client, `[N]`.
      ids: id of each client, `[N]`.
      num_classes: see `from_clients`; likewise `label_names`.

    Raises:
      ValueError: a value is unusable.
    """
    labels = examples.get("y")
    if labels is not None and labels.dtype.kind in "OU":
        label_names, examples["y"] = _numbered(name, labels, label_names)
    elif label_names is not None and (labels is None or labels.dtype.kind not in "iub"):
        got = "there is no column 'y'" if labels is None else f"'y' holds {labels.dtype}"
        raise ValueError(f"{name}: label_names is given, but {got}; wanted strings or integers")
    if labels is not None and labels.dtype.kind == "b":
        examples["y"], num_classes = labels.astype(np.int32), num_classes or 2
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
    example to train on, and one with fewer than `0.5 / test` examples has none to test on. Within a
    client, examples keep their order.

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
    for column in clients.examples.values():
        mapped.verify(column)
    return dataclasses.replace(
        clients,
        examples={name: np.asarray(column)[rows] for name, column in clients.examples.items()},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
    )


def as_ids(name: str, ids: Iterable[Any]) -> np.ndarray:
    """Returns the ids of clients as an array, `[N]`.

    Raises:
      ValueError: they are neither integers alone nor strings alone.
    """
    ids = list(ids)

    def is_integer(id: Any) -> bool:
        return isinstance(id, int | np.integer) and not isinstance(id, bool) and abs(int(id)) < 2**63

    if all(map(is_integer, ids)):
        return np.array(ids, np.int64)
    strange = [id for id in ids if not isinstance(id, str)]
    if strange:
        raise ValueError(
            f"{name}: a client's id is {strange[0]!r}; wanted integers of 64 bits alone, or strings "
            "alone"
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
    columns = {column: _as_array(name, id, column, values) for column, values in own.items()}
    lengths = {column: len(values) if values.ndim else None for column, values in columns.items()}
    if not columns or len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(
            f"{name}: client {id!r} has columns of lengths {lengths}; wanted one entry per example in "
            "each"
        )
    return columns


def _as_array(name: str, id: Any, column: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.array(None)  # rows of different lengths
    except (TypeError, RuntimeError) as error:  # tensors with gradients, or on other devices
        raise ValueError(
            f"{name}: column {column!r} of client {id!r} is a {type(values).__name__}, of which NumPy "
            f"makes no array ({error}); for a tensor call .detach().cpu().numpy()"
        ) from error
    if np.ma.isMaskedArray(values) or (_kind(array) not in (*_KINDS.values(), _UNSIGNED) and array.size):
        raise ValueError(
            f"{name}: column {column!r} of client {id!r} is {array.dtype}, masked or ragged; wanted "
            "booleans, integers, floats, or strings alone, with equally long rows"
        )
    return array


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
    """Returns what an array holds, one of `_KINDS`, or its dtype."""
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat):
        return "strings"
    if values.dtype == np.uint64:  # beside signed integers, NumPy would make it floats
        return _UNSIGNED
    return _KINDS.get(values.dtype.kind, str(values.dtype))


def _numbered(
    name: str, labels: np.ndarray, names: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of labels, and the labels as numbers, int32."""
    if _kind(labels) != "strings":
        raise ValueError(f"{name}: column 'y' holds {labels.dtype}; wanted strings alone, or integers")
    found, numbers = np.unique(labels.astype(str), return_inverse=True)
    names = tuple(found.tolist()) if names is None else tuple(names)
    unknown = [label for label in found.tolist() if label not in names]
    if unknown:
        raise ValueError(
            f"{name}: the label {unknown[0]!r} is not among label_names, {names}; wanted all names, of "
            "the data to test on as well"
        )
    order = np.array([names.index(label) for label in found.tolist()], np.int32)
    return names, order[numbers].reshape(labels.shape)


def _in_32_bits(name: str, column: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.itemsize <= 4:
        return values
    is_float = values.dtype.kind == "f"
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32 if is_float else np.int32)
    if not (np.isfinite(stored).all() if is_float else (stored == values).all()):  # in x64 mode alone
        raise ValueError(
            f"{name}: column {column!r} holds numbers that do not fit 32 bits; drop or rescale it"
        )
    return stored
