"""Federations in folders: columns stay in files and are read on demand.

A folder holds a plain `.npy` file for each column, one for the offsets and one for the client ids,
and `index.json`, written last, which describes the others, including their SHA-256 (see
`storage/index.py`). Nothing in it is pickled, and no file outside the folder is opened.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.storage import mapped
from fedjax_sim.data.storage.index import (
    CLIENT_IDS,
    INDEX,
    LONGEST_ID,
    OFFSETS,
    Entry,
    Index,
    column_file,
    column_of,
    read_index,
    write_index,
)
from fedjax_sim.data.storage.mapped import CURE

_PIECE_ROWS = 2**16
_LAST_CODE_POINT = 0x10FFFF


def save_federated(data: FederatedData, folder: str | os.PathLike) -> None:
    """Writes a federation for `open_federated`.

    Rows that no client owns are left out.

    Args:
      data: federation to write, in memory or in files; it is copied piece by piece. `check` must pass.
      folder: folder to write to, made if absent.

    Raises:
      ValueError: the folder already holds a federation, `data.check()` fails, or something cannot be
        stored.
    """
    data.check()
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
    about = {"num_classes": data.num_classes, "name": data.name, "label_names": data.label_names}
    write_federated(folder, pieces(), np.asarray(data.offsets), ids, **about)


def write_federated(
    folder: str | os.PathLike,
    pieces: Iterable[Mapping[str, np.ndarray]],
    offsets: np.ndarray,
    client_ids: np.ndarray,
    *,
    num_classes: int | None,
    name: str | None,
    label_names: tuple[str, ...] | None = None,
) -> None:
    """Writes a federation piece by piece, without holding all its rows in memory.

    Digests are computed while rows are written; nothing is read again.

    Args:
      folder: folder to write to, made if absent.
      pieces: one or more dicts, column name -> the next rows; in all, as many as the offsets say.
      offsets: `[N + 1]` int32.
      client_ids: `[N]` integers or strings.
      num_classes: number of labels.
      name: name shown in descriptions.
      label_names: name of each label, or None.

    Raises:
      ValueError: the folder already holds a federation, or something cannot be stored.
    """
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} already holds a federation; choose another folder, or delete it.")
    with contextlib.ExitStack() as stack:
        files: dict[str, _NpyFile] = {}

        def write(name: str, rows: np.ndarray, length: int) -> None:
            if name not in files:
                files[name] = stack.enter_context(_NpyFile(folder, name, length, rows))
            files[name].write(rows)

        write(OFFSETS, offsets, len(offsets))
        write(CLIENT_IDS, _storable_ids(client_ids), len(client_ids))
        for piece in pieces:
            for column, rows in piece.items():
                write(column_file(column), rows, int(offsets[-1]))
    entries = {name: file.entry for name, file in files.items()}
    num_classes = None if num_classes is None else int(num_classes)
    write_index(folder, Index(entries, num_classes, name, label_names))


def open_federated(folder: str | os.PathLike, *, verify: bool = True) -> FederatedData:
    """Opens a federation that `save_federated` wrote; its columns are read-only memory maps.

    The index, the offsets and the ids are always compared with their digests. Each column is compared
    once, which reads all of it:

    * here, by default;
    * with `verify=False`, in the first `check`, `digest`, `place` or `in_memory`, and so by `simulate`
      and `sweep` before any training. `select`, `describe` and direct reads of `examples` do not
      verify. This is for a look at a few clients of a large federation.

    Args:
      folder: folder that was given to `save_federated`.
      verify: whether to compare columns with their digests now.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the length, dtype, shape or content of a file differs from the index, or the index
        itself is damaged. The error names the file and the fault.
    """
    folder = pathlib.Path(folder).expanduser()
    index = read_index(folder)
    arrays = {name: _open(folder, name, entry) for name, entry in index.files.items()}
    if verify:
        for column in arrays.values():
            mapped.verify(column)
    offsets, client_ids = (_in_memory(arrays.pop(name)) for name in (OFFSETS, CLIENT_IDS))
    for name, column in arrays.items():
        if len(offsets) and len(column) != offsets[-1]:
            raise ValueError(
                f"{folder / name} has {len(column)} rows, but {OFFSETS} ends with {offsets[-1]}; {CURE}."
            )
    if client_ids.dtype.kind == "U" and client_ids.view(np.uint32).max(initial=0) > _LAST_CODE_POINT:
        raise ValueError(f"{folder / CLIENT_IDS} holds ids that are not text; {CURE}.")
    examples = {column_of(name): column for name, column in arrays.items()}
    try:
        return FederatedData(
            examples, offsets, client_ids, index.num_classes, index.name, index.label_names
        )
    except ValueError as error:
        raise ValueError(f"{folder / OFFSETS}, {folder / CLIENT_IDS}: {error} Or {CURE}.") from error


class _NpyFile:
    """A `.npy` file that grows by rows.

    Args:
      folder: folder of the file.
      name: name of the file, which is overwritten.
      length: rows of the whole array.
      like: rows of the array's dtype and row shape.

    Raises:
      ValueError: the array's dtype or row shape cannot be stored.
    """

    def __init__(self, folder: pathlib.Path, name: str, length: int, like: np.ndarray):
        if like.dtype.kind not in ("iuU" if name == CLIENT_IDS else "biuf") or 0 in like.shape[1:]:
            wanted = "integers or strings" if name == CLIENT_IDS else "booleans or numbers in each row"
            raise ValueError(f"{name} would hold {like.dtype} {like.shape[1:]}; wanted {wanted}.")
        self._path, self._shape = folder / name, (length, *like.shape[1:])
        self._dtype, self._rows = like.dtype.newbyteorder("<"), 0
        self._digest, self._file = hashlib.sha256(), self._path.open("wb")
        self._append(mapped.npy_header(self._dtype, self._shape))

    def write(self, rows: np.ndarray) -> None:
        """Appends rows."""
        self._append(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._rows += len(rows)

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)

    @property
    def entry(self) -> Entry:
        """The entry of the closed file in the index.

        Raises:
          ValueError: more or fewer rows were written than announced.
        """
        if self._rows != self._shape[0]:
            raise ValueError(f"{self._path} got {self._rows} rows; wanted {self._shape[0]}.")
        size = self._path.stat().st_size
        return Entry(self._dtype.str, self._shape, size, self._digest.hexdigest())

    def __enter__(self) -> "_NpyFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


def _storable_ids(ids: np.ndarray) -> np.ndarray:
    """Returns ids as NumPy integers or strings, all as wide as the longest."""
    if ids.dtype.kind not in "OU" or not all(isinstance(name, str) for name in ids):
        return ids
    for name in ids:
        if len(name) > LONGEST_ID or name.endswith("\0"):
            raise ValueError(
                f"client id {name!r:.60} has {len(name)} characters; wanted at most {LONGEST_ID}, the "
                "last not a NUL."
            )
    return np.array(ids.tolist(), str)


def _open(folder: pathlib.Path, name: str, entry: Entry) -> mapped.StoredColumn:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, but its index lists it; {CURE}.")
    if path.resolve().parent != folder.resolve():
        raise ValueError(f"{path} is a link to {path.resolve()}, outside of its folder; {CURE}.")
    got = path.stat().st_size
    if got != entry.bytes:
        what = "shrank" if got < entry.bytes else "grew"
        raise ValueError(f"{path} {what}: it has {got} bytes, wanted {entry.bytes}; {CURE}.")
    # Compared, not parsed: the index determines the whole header.
    header = entry.header
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(
                f"{path} does not begin as a .npy file of {entry.dtype} of shape {list(entry.shape)}; "
                f"{CURE}."
            )
    column = mapped.StoredColumn(path, entry.dtype, "r", len(header), entry.shape)
    column.sha256 = entry.sha256
    return column


def _in_memory(column: mapped.StoredColumn) -> np.ndarray:
    """Reads a small array into memory, after comparing it with its digest."""
    mapped.verify(column)
    return np.array(column)
