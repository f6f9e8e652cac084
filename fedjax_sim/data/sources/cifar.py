"""The binary version of CIFAR-10.

A. Krizhevsky, "Learning multiple layers of features from tiny images", technical report, University of
Toronto, 2009, https://www.cs.toronto.edu/~kriz/cifar.html. A file is a sequence of records: a label
byte, then the red, green and blue values of a 32 x 32 image, row by row.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from fedjax_sim.data.dataset import Dataset, from_arrays
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, unpacked

TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"

_CLASSES = 10
_PLANES = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_RECORDS = 10_000  # in each of the files as published


def read_cifar10(
    train: Sequence[pathlib.Path],
    test: pathlib.Path,
    name: str,
    *,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> tuple[Dataset, Dataset]:
    """Reads CIFAR-10 as `(train, test)`: 50,000 and 10,000 images of 32 x 32 in ten classes.

    Args:
      train: files of training images, in order; they may hold fewer records.
      test: file of test images.
      name: name of the data set.
      max_unpacked_bytes: limit on the size of a file.

    Returns:
      Two `Dataset`s with `"x"`, uint8 `[n, 32, 32, 3]`, red, green, blue, and `"y"`, int32 `[n]`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is not a whole number of records, has a label above 9, or is too large.
    """
    parts = (train, f"{name}/train"), ([test], f"{name}/test")
    return tuple(_read(*part, max_unpacked_bytes) for part in parts)


def _read(paths: Sequence[pathlib.Path], name: str, max_unpacked_bytes: int) -> Dataset:
    records = np.concatenate([_records(path, max_unpacked_bytes) for path in paths])
    planes = records[:, 1:].reshape(-1, *_PLANES)
    x = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return from_arrays(x, records[:, 0], num_classes=_CLASSES, name=name)


def _records(path: pathlib.Path, max_unpacked_bytes: int) -> np.ndarray:
    """Reads the records of a file, uint8 `[n, 3073]`."""
    with unpacked(path, max_unpacked_bytes) as stream:
        content = np.frombuffer(stream.read(), np.uint8)
    if not content.size or content.size % _RECORD:
        raise ValueError(
            f"{path} holds {content.size:,} bytes; wanted {_RECORDS * _RECORD:,}, or another whole "
            f"multiple of the {_RECORD} bytes of an image: download it again, in the binary version."
        )
    records = content.reshape(-1, _RECORD)
    if (records[:, 0] >= _CLASSES).any():
        row = int(np.argmax(records[:, 0] >= _CLASSES))
        raise ValueError(
            f"{path} has label {records[row, 0]} at image {row}; wanted 0 to {_CLASSES - 1}: is this a "
            "file of CIFAR-10's binary version?"
        )
    return records
