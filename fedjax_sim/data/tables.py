"""Federations from tables with a column that names each row's client."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.data.clients import as_ids, federation
from fedjax_sim.data.federated import FederatedData

_LARGEST_EXACT = 2**24  # beyond it, floats of 32 bits do not hold every integer


def from_frame(
    frame: Any,
    *,
    client: str,
    label: str,
    features: Sequence[str] | None = None,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    name: str = "frame",
) -> FederatedData:
    """Makes a federation from a table, such as a pandas data frame.

    Args:
      frame: table with named columns.
      client: column of integers or strings; each value is a client, in ascending order.
      label: column of `y`, integers or strings.
      features: columns of numbers, which become floats `x [n, len(features)]`; by default all others.
      num_classes: see `from_clients`; likewise `label_names`.
      name: name shown in descriptions and errors.

    Returns:
      A `FederatedData` of NumPy arrays. A client's rows keep their order.

    Raises:
      ValueError: a column is absent, or holds unusable or missing values; the error names the column.
    """
    if not hasattr(frame, "columns") or isinstance(features, str):
        got = f"frame is a {type(frame).__name__}" if features is None else f"features is {features!r}"
        raise ValueError(f"{name}: {got}; wanted a table with named columns, and a list of their names")
    known = list(frame.columns)
    twice = [column for i, column in enumerate(known) if column in known[:i]]
    if twice or not len(frame):
        what = f"has the column {twice[0]!r} twice" if twice else "has no rows"
        raise ValueError(f"{name}: the frame {what}; wanted columns of different names, and some rows")
    features = _features(f"{name}: the frame", known, client, label, features)
    table = {column: np.asarray(frame[column]) for column in (client, label, *features)}
    return _grouped(
        name, table, client, label, _stacked(name, table, features), num_classes, label_names
    )


def from_huggingface(
    dataset: Any,
    *,
    client: str,
    label: str = "label",
    features: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    name: str = "huggingface",
) -> FederatedData:
    """Makes a federation from a split of Hugging Face's library datasets.

    https://huggingface.co/docs/datasets; to have the library, install `fedjax_sim[huggingface]`.

    Args:
      dataset: a `datasets.Dataset`, such as `load_dataset(...)["train"]`, whose columns are read into
        memory.
      client: column of integers, strings or class labels; each value is a client, in ascending order.
      label: column of `y`: class labels, whose names become `label_names`, integers, or strings.
      features: one column of numbers, of lists of equal lengths or of images of equal sizes, which
        becomes `x` in its own shape and dtype; or a list of columns of numbers, which become floats `x
        [n, len(features)]`. By default all other columns.
      num_classes: see `from_clients`; likewise `label_names`.
      name: name shown in descriptions and errors.

    Returns:
      A `FederatedData` of NumPy arrays. A client's rows keep their order.

    Raises:
      ValueError: the argument is no such split, or a column is absent, or holds unusable or missing
        values; the error names the column.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"{name}: the dataset has the splits {list(dataset)}; wanted one of them, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]"
        )
    if not all(hasattr(dataset, part) for part in ("__len__", "features", "with_format")):
        raise ValueError(
            f"{name}: got a {type(dataset).__name__}; wanted a datasets.Dataset, which has a length and "
            "columns: load it without streaming=True"
        )
    if not len(dataset):
        raise ValueError(f"{name}: the dataset has no rows; wanted some")
    alone = [features] if isinstance(features, str) else features
    chosen = _features(f"{name}: the dataset", dataset.column_names, client, label, alone)
    columns = dataset.with_format("numpy")
    table = {column: np.asarray(columns[column][:]) for column in (client, label, *chosen)}
    names = {column: getattr(dataset.features[column], "names", None) for column in (client, label)}
    if names[client] is not None:
        _refuse_missing(name, client, table[client])
        # The number -1 stands for no label, and is the index of None here.
        table[client] = np.array([*names[client], None], object)[table[client]]
    if isinstance(features, str) or (features is None and len(chosen) == 1):
        x = _checked_column(name, chosen[0], table[chosen[0]])
    else:
        x = _stacked(name, table, chosen)
    label_names = names[label] if label_names is None else label_names
    return _grouped(name, table, client, label, x, num_classes, label_names)


def _features(
    whose: str, known: Sequence[str], client: str, label: str, features: Sequence[str] | None
) -> list[str]:
    """Returns the columns of features, by default all but those of the client and the label."""
    features = [c for c in known if c not in (client, label)] if features is None else list(features)
    missing = [column for column in (client, label, *features) if column not in known]
    if missing or not features:
        what = f"lacks the column {missing[0]!r}" if missing else "has no column of features"
        raise ValueError(f"{whose} {what}; its columns are {list(known)}")
    return features


def _grouped(
    name: str,
    table: Mapping[str, np.ndarray],
    client: str,
    label: str,
    x: np.ndarray,
    num_classes: int | None,
    label_names: Sequence[str] | None,
) -> FederatedData:
    """Returns the federation of a table's rows, client after client."""
    for column in (client, label):
        _refuse_missing(name, column, table[column])
    as_ids(name, table[client].tolist())
    ids, owner = np.unique(table[client], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    examples = {"x": x[order], "y": table[label][order]}
    return federation(name, examples, np.bincount(owner), ids, num_classes, label_names)


def _stacked(name: str, table: Mapping[str, np.ndarray], features: Sequence[str]) -> np.ndarray:
    """Returns columns of numbers `[n]` as floats `[n, len(features)]`."""
    for column in features:
        values = _checked_column(name, column, table[column])
        if values.ndim != 1:
            raise ValueError(
                f"{name}: column {column!r} has rows of shape {values.shape[1:]}; wanted single numbers "
                "where there are several columns of features: name one column by features="
            )
        if values.dtype.kind in "iu" and np.abs(values.astype(np.float64)).max() > _LARGEST_EXACT:
            raise ValueError(
                f"{name}: column {column!r} holds integers beyond 2**24, which floats of 32 bits round; "
                "drop or rescale it"
            )
    return np.stack([np.asarray(table[column], np.float64) for column in features], axis=1)


def _checked_column(name: str, column: str, values: np.ndarray) -> np.ndarray:
    """Returns a column of features if it holds finite numbers alone, in rows of one shape."""
    _refuse_missing(name, column, values)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: column {column!r} holds {values.dtype}; wanted numbers, in rows of one shape: "
            "encode it, or name the columns to read by features="
        )
    return values


def _refuse_missing(name: str, column: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f":
        missing = np.isnan(values).reshape(len(values), -1).any(axis=1)
    elif values.dtype.kind == "O":
        missing = np.fromiter(map(_is_missing, values), bool, len(values))
    else:
        return
    if missing.any():
        raise ValueError(
            f"{name}: column {column!r} lacks {missing.sum():,} of {len(values):,} values, the first in "
            f"row {np.argmax(missing)}; wanted a value in each row: drop such rows, or fill them in"
        )


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")  # of pandas
