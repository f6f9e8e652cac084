"""The `index.json` of a stored federation, which describes its other files.

    {"format": 2, "name": "six", "num_classes": 3, "sha256": "...", "files": {
      "offsets.npy": {"dtype": "<i4", "shape": [4], "bytes": 144, "sha256": "..."},
      "client_ids.npy": {...}, "column_x.npy": {...}, ...}}

An index has `label_names` only where labels have names. A file's digest covers all its bytes, the
index's everything else in the index (see `_digest`).
Whatever a damaged or hostile index says, reading it opens no other file and ends in a ValueError.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

import numpy as np

from fedjax_sim.data.storage import strict_json
from fedjax_sim.data.storage.mapped import CURE, npy_header

INDEX, OFFSETS, CLIENT_IDS = "index.json", "offsets.npy", "client_ids.npy"
LONGEST_ID = 256  # characters; every stored id takes as much space as the longest

_FORMAT = 2
_LARGEST = 2**20  # bytes of an index, enough for thousands of columns
_MOST_AXES = 32
_MOST_CLASSES = 2**31 - 1
_COLUMN = re.compile(r"column_(\w+)\.npy")
# Dtypes allowed in files: little-endian, so that files can be mapped.
_NUMBERS = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]")
_IDS = re.compile(r"\|[iu]1|<[iu][248]|<U[1-9][0-9]{0,2}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """The entry of a `.npy` file in an index.

    Attributes:
      dtype: dtype of the array as NumPy spells it, such as "<i4".
      shape: shape of the array.
      bytes: size of the file.
      sha256: SHA-256 of the file, in hexadecimal digits.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str

    @property
    def header(self) -> bytes:
        """Returns the header of the file."""
        return npy_header(np.dtype(self.dtype), self.shape)


@dataclasses.dataclass(frozen=True)
class Index:
    """The contents of an index.

    Attributes:
      files: entries of the offsets, the client ids and the columns, by file name.
      num_classes: number of labels.
      name: name shown in descriptions.
      label_names: name of each label, or None.
    """

    files: dict[str, Entry]
    num_classes: int | None
    name: str | None
    label_names: tuple[str, ...] | None = None


def column_file(column: str) -> str:
    """Returns the name of a column's file.

    Raises:
      ValueError: the column's name cannot be part of a file name.
    """
    name = f"column_{column}.npy"
    if not _is_file_name(name):
        raise ValueError(f"a column would be stored as {name!r:.300}; rename it to letters and digits.")
    return name


def column_of(name: str) -> str:
    """Returns the name of the column in a file of this name."""
    return _COLUMN.fullmatch(name)[1]


def write_index(folder: pathlib.Path, index: Index) -> None:
    """Writes an index atomically: a folder has either all of it or none.

    Raises:
      ValueError: the index would be longer than `read_index` accepts.
    """
    content = {"format": _FORMAT, "name": index.name, "num_classes": index.num_classes}
    if index.label_names is not None:
        content["label_names"] = list(index.label_names)
    content["files"] = {name: dataclasses.asdict(entry) for name, entry in index.files.items()}
    content["sha256"] = _digest(content)
    partial = folder / f"{INDEX}.partial"
    text = json.dumps(content, indent=1) + "\n"
    if len(text) > _LARGEST:
        raise ValueError(
            f"{folder / INDEX} would have {len(text):,} bytes; wanted at most {_LARGEST:,}: shorten the "
            "names of columns and labels."
        )
    partial.write_text(text)
    os.replace(partial, folder / INDEX)


def read_index(folder: pathlib.Path) -> Index:
    """Reads the index of a folder.

    Raises:
      FileNotFoundError: the folder has no index.
      ValueError: the index is damaged, or of another format; the error names the entry.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a folder that save_federated has finished writing."
        )
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{path} has more than {_LARGEST} bytes, too many for an index; {CURE}.")
    try:
        index = strict_json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {CURE}.") from error
    try:
        return _checked(index)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {CURE}.") from error


def _checked(index: Any) -> Index:
    if not isinstance(index, dict):
        raise ValueError(f"it holds {_show(index)}, wanted an object")
    found = index.get("format")
    if type(found) is not int or found != _FORMAT:
        raise ValueError(f"'format' is {_show(found)}, wanted {_FORMAT}, this version's format")
    known = {"format", "name", "num_classes", "files", "sha256"}
    _check_keys("it", index, known | (index.keys() & {"label_names"}))
    wanted = _digest({key: value for key, value in index.items() if key != "sha256"})
    if index["sha256"] != wanted:
        raise ValueError(f"'sha256' is {_show(index['sha256'])}, wanted {wanted}, its content's")
    name, num_classes, files = index["name"], index["num_classes"], index["files"]
    if name is not None and not isinstance(name, str):
        raise ValueError(f"'name' is {_show(name)}, wanted a string or null")
    if num_classes is not None and not (_is_count(num_classes) and 1 <= num_classes <= _MOST_CLASSES):
        raise ValueError(f"'num_classes' is {_show(num_classes)}, wanted a positive integer or null")
    names = index.get("label_names")
    if "label_names" in index and not _are_names(names, num_classes):
        raise ValueError(
            f"'label_names' is {_show(names)}, wanted as many strings as classes, all different"
        )
    if not isinstance(files, dict):
        raise ValueError(f"'files' is {_show(files)}, wanted an object")
    entries = {file: _entry(file, entry) for file, entry in files.items()}
    for needed in (OFFSETS, CLIENT_IDS):
        if needed not in entries:
            raise ValueError(f"'files' has no {needed!r}")
    if len(entries) == 2:
        raise ValueError("'files' has no column")
    return Index(entries, num_classes, name, None if names is None else tuple(names))


def _entry(name: str, entry: Any) -> Entry:
    """Returns an entry after checking that it describes a possible file of a federation."""
    where = f"files[{name!r:.100}]"
    if not _is_file_name(name):
        raise ValueError(f"{where} is not a file of a federation, such as 'column_x.npy'")
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {_show(entry)}, wanted an object")
    _check_keys(where, entry, {"dtype", "shape", "bytes", "sha256"})
    dtype, shape, size, sha256 = (entry[key] for key in ("dtype", "shape", "bytes", "sha256"))
    allowed = {OFFSETS: re.compile("<i4"), CLIENT_IDS: _IDS}.get(name, _NUMBERS)
    if not isinstance(dtype, str) or not allowed.fullmatch(dtype):
        raise ValueError(f"{where} has dtype {_show(dtype)}, wanted a full match of {allowed.pattern}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > _MOST_AXES:
        raise ValueError(f"{where} has shape {_show(shape)}, wanted a list of whole numbers")
    one_axis = name in (OFFSETS, CLIENT_IDS)
    if not shape or (one_axis and len(shape) > 1) or 0 in shape[1:]:
        wanted = "[length]" if one_axis else "[rows, ...] with a value in each row"
        raise ValueError(f"{where} has shape {_show(shape)}, wanted {wanted}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{where} has sha256 {_show(sha256)}, wanted 64 hexadecimal digits")
    made = Entry(dtype, tuple(shape), size, sha256)
    takes = len(made.header) + math.prod(shape) * np.dtype(dtype).itemsize
    if not _is_count(size) or size != takes:
        raise ValueError(f"{where} has bytes {_show(size)}, but {dtype} of {shape!r:.100} takes {takes}")
    return made


def _check_keys(where: str, entry: dict[str, Any], wanted: set[str]) -> None:
    if absent := sorted(wanted - entry.keys()):
        raise ValueError(f"{where} has no {absent[0]!r}")
    if unknown := sorted(entry.keys() - wanted):
        raise ValueError(f"{where} has {unknown[0]!r:.100}, which is unknown")


def _digest(content: dict[str, Any]) -> str:
    """Returns the SHA-256 of an index without its own digest, however its JSON is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_file_name(name: str) -> bool:
    """Returns whether `name` may name a file of a federation; paths may not."""
    column = _COLUMN.fullmatch(name)
    return name in (OFFSETS, CLIENT_IDS) or (column is not None and len(name.encode()) <= 255)


def _are_names(value: Any, number: int | None) -> bool:
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return is_list and len(value) == len(set(value)) == number


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _show(value: Any) -> str:
    return f"{value!r:.100}"
