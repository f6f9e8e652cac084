"""Federations from LEAF's folders of JSON files."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim.data.clients import from_clients
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.leaf import ENDINGS, read_users
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, unpacked


def from_leaf(
    path: str | os.PathLike,
    *,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    name: str = "leaf",
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> FederatedData:
    """Makes a federation from JSON files of LEAF whose features are numbers, such as FEMNIST.

    S. Caldas et al., "LEAF: A benchmark for federated settings", https://arxiv.org/abs/1812.01097.
    Read `all_data` and divide it with `split`, or read `train` and `test`, both with the same
    `num_classes`. For messages as texts see `read_messages`.

    Args:
      path: a folder of files that end in `.json`, `.json.gz` or `.json.xz`, read in the order of their
        names, or one such file. Each holds `users`, `num_samples` and `user_data`: user -> `{"x": [...],
        "y": [...]}`.
      num_classes: see `from_clients`; likewise `label_names`.
      name: name shown in descriptions and errors.
      max_unpacked_bytes: limit on the size of each file, once unpacked; several times as much memory is
        needed.

    Returns:
      A `FederatedData` of NumPy arrays, a client per user, in the order of the files. Numbers in `x` are
      floats if any of them is one; images are rows of pixels, as stored.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file is damaged or too large, a user is in two files, counts disagree, or values are
        unusable; the error names the file or the user.
    """
    clients, file_of = {}, {}
    for file in _files(pathlib.Path(path).expanduser()):
        with unpacked(file, max_unpacked_bytes) as stream:
            for user, count, data in read_users(file, stream):
                if user in file_of:
                    raise ValueError(f"{file} has user {user!r}, whom {file_of[user]} has as well.")
                file_of[user] = file
                clients[user] = _arrays(file, user, count, data)
    if any(x.dtype.kind == "f" for x, _ in clients.values()):
        clients = {
            user: (x.astype(np.float32) if x.dtype.kind in "iu" else x, y)
            for user, (x, y) in clients.items()
        }
    try:
        return from_clients(clients, num_classes=num_classes, label_names=label_names, name=name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*") if file.name.endswith(ENDINGS) and file.is_file())
    if not found:
        folders = sorted({file.parent.name for file in path.glob("*/*") if file.name.endswith(ENDINGS)})
        below = f"; its subfolders {', '.join(folders)} have some: give one of them" if folders else ""
        raise FileNotFoundError(
            f"{str(path)!r} is neither a file nor a folder with one ending in "
            f"{', '.join(ENDINGS)}{below}."
        )
    return found


def _arrays(file: pathlib.Path, user: str, count: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features and labels of a user."""
    columns = [data.get(column) if isinstance(data, dict) else None for column in "xy"]
    if not all(isinstance(column, list) for column in columns):
        raise ValueError(f"{file} has no lists 'x' and 'y' in user_data of user {user!r}.")
    lengths = [len(column) for column in columns]
    if type(count) is not int or lengths != [count, count]:  # since 1 equals 1.0 and True
        raise ValueError(
            f"{file}: user {user!r} has {count!r} in num_samples, {lengths[0]} examples in x and "
            f"{lengths[1]} in y."
        )
    try:
        x, y = map(np.asarray, columns)
    except ValueError:
        raise ValueError(
            f"{file}: x or y of user {user!r} holds lists of different lengths; wanted equal ones."
        ) from None
    if count and x.dtype.kind not in "iuf":
        raise ValueError(
            f"{file}: x of user {user!r} does not hold numbers alone; for messages as texts see "
            "read_messages."
        )
    # In 32 bits at once, since the lists of all files would take many times the memory.
    return (x.astype(np.float32) if x.dtype.kind == "f" else x), y
