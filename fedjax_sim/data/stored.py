"""Federations in folders: columns that stay in files and are read where they are needed.

A folder holds a plain `.npy` file for each column, one for the offsets and one for the clients' ids,
and `index.json`, written last, which says what the others must be. Nothing in it is pickled.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedjax_sim.data import mapped
from fedjax_sim.data.federated import FederatedData

_INDEX, _FORMAT = "index.json", 1
_OFFSETS, _CLIENT_IDS, _COLUMN = "offsets.npy", "client_ids.npy", "column_"
_PIECE_ROWS = 2**16
_CURE = "restore the file, or write the data anew"


def save_federated(data: FederatedData, folder: str | os.PathLike) -> None:
    """Writes a federation for `open_federated`; rows that no client owns are left out.

    Args:
      data: in memory or itself in files; what is copied passes through memory piece by piece.
      folder: made if absent.

    Raises:
      ValueError: the folder holds a federation already, or something cannot be stored.
    """
    columns = {name: np.asanyarray(column) for name, column in data.examples.items()}
    n = int(data.offsets[-1])

    def pieces():
        for first in range(0, max(n, 1), _PIECE_ROWS):
            data.check_files()
            last = min(first + _PIECE_ROWS, n)
            yield {name: column[first:last] for name, column in columns.items()}
            for column in columns.values():
                mapped.release(column)

    ids = np.arange(data.num_clients) if data.client_ids is None else data.client_ids
    about = {"num_classes": data.num_classes, "name": data.name}
    write_federated(folder, pieces(), np.asarray(data.offsets), ids, **about)


def write_federated(
    folder: str | os.PathLike,
    pieces: Iterable[Mapping[str, np.ndarray]],
    offsets: np.ndarray,
    client_ids: np.ndarray,
    *,
    num_classes: int | None,
    name: str | None,
) -> None:
    """Writes a federation whose rows need never be in memory together.

    Args:
      folder: made if absent.
      pieces: one or more; column name -> some rows, in their order, as many in all as the offsets say.
      offsets: `[N + 1]` int32.
      client_ids: `[N]`.
      num_classes: how many labels there are.
      name: shown in descriptions.

    Raises:
      ValueError: the folder holds a federation already, or something cannot be stored.
    """
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _INDEX).exists():
        raise ValueError(f"{folder} holds a federation already; choose another folder, or delete it.")
    with contextlib.ExitStack() as stack:
        files: dict[str, _NpyFile] = {}

        def write(name: str, rows: np.ndarray, length: int) -> None:
            if name not in files:
                files[name] = stack.enter_context(_NpyFile(folder, name, length, rows))
            files[name].write(rows)

        write(_OFFSETS, offsets, len(offsets))
        write(_CLIENT_IDS, client_ids, len(client_ids))
        for piece in pieces:
            for column, rows in piece.items():
                write(f"{_COLUMN}{column}.npy", rows, int(offsets[-1]))
    entries = {name: file.entry for name, file in files.items()}
    index = {"format": _FORMAT, "name": name, "num_classes": num_classes, "files": entries}
    partial = folder / f"{_INDEX}.partial"
    partial.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(partial, folder / _INDEX)


def open_federated(folder: str | os.PathLike) -> FederatedData:
    """Opens what `save_federated` wrote; the columns are read-only memory maps.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is not what the index says: it shrank, or is of another shape or dtype.
    """
    folder = pathlib.Path(folder).expanduser()
    index = _read_index(folder)
    arrays = {name: _open(folder / name, entry) for name, entry in index["files"].items()}
    offsets, client_ids = (np.array(arrays.pop(name)) for name in (_OFFSETS, _CLIENT_IDS))
    lengths = {len(column) for column in arrays.values()}
    fit = lengths == {int(offsets[-1])} and len(client_ids) == len(offsets) - 1
    if not fit or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"{folder}: offsets, ids and columns do not fit together; write the data anew.")
    examples = {
        name.removeprefix(_COLUMN).removesuffix(".npy"): column for name, column in arrays.items()
    }
    return FederatedData(examples, offsets, client_ids, index["num_classes"], index["name"])


class _NpyFile:
    """A `.npy` file that grows by rows.

    Args:
      folder: where.
      name: of the file, which is written anew.
      length: of the whole array, in rows.
      like: rows of its dtype and shape.

    Raises:
      ValueError: the array's name or dtype cannot be stored.
    """

    def __init__(self, folder: pathlib.Path, name: str, length: int, like: np.ndarray):
        if not name.removesuffix(".npy").isidentifier():
            raise ValueError(f"a column would be stored as {name!r}; rename it to letters and digits.")
        if like.dtype.kind not in "biufU":
            raise ValueError(f"{name} would hold {like.dtype}s; wanted booleans, numbers or strings.")
        self._path, self._shape, self._dtype = folder / name, (length, *like.shape[1:]), like.dtype.str
        self._file = self._path.open("wb")
        header = {"descr": self._dtype, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: np.ndarray) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows).tobytes())

    @property
    def entry(self) -> dict[str, Any]:
        """What the index says of the file once it is closed."""
        size = self._path.stat().st_size
        return {"dtype": self._dtype, "shape": list(self._shape), "bytes": size}

    def __enter__(self) -> "_NpyFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a folder that save_federated has finished writing."
        )
    try:
        index = json.loads(path.read_text())
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path} is not JSON ({error}); {_CURE}.") from error
    known = {"format", "name", "num_classes", "files"}
    if not isinstance(index, dict) or not known <= index.keys() or index["format"] != _FORMAT:
        raise ValueError(f"{path} is not the index of a federation in format {_FORMAT}; {_CURE}.")
    absent = sorted({_OFFSETS, _CLIENT_IDS} - index["files"].keys())
    if absent:
        raise ValueError(f"{path} lists no {absent[0]}; {_CURE}.")
    return index


def _open(path: pathlib.Path, entry: Mapping[str, Any]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, but its index lists it; {_CURE}.")
    got, wanted = path.stat().st_size, entry["bytes"]
    if got != wanted:
        what = "shrank" if got < wanted else "grew"
        raise ValueError(f"{path} {what}: it has {got} bytes, wanted {wanted}; {_CURE}.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be mapped ({error}); {_CURE}.") from error
    found = {"dtype": array.dtype.str, "shape": list(array.shape)}
    if found != {name: entry[name] for name in found}:
        raise ValueError(
            f"{path} holds {found['dtype']} of shape {found['shape']}, wanted {entry['dtype']} of shape "
            f"{entry['shape']}; {_CURE}."
        )
    return array
