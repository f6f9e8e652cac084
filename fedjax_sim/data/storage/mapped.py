"""Columns that are read-only maps of files, never held in memory as a whole."""

import hashlib
import mmap
import struct
from collections.abc import Iterator

import numpy as np

CURE = "restore the file, or write the data anew"
_PIECE_BYTES = 2**24


class StoredColumn(np.memmap):
    """A column `[n, ...]` that maps a whole `.npy` file; its views and slices are plain maps.

    Attributes:
      sha256: expected SHA-256 of the file, in hexadecimal digits; None for views.
      intact: whether the file is known to match it.
    """

    sha256: str | None = None
    intact: bool = False


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Returns the bytes before the numbers in a `.npy` file of format 1.0, the same for every NumPy.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = -(-(10 + len(text) + 1) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def digest(column: np.ndarray) -> str:
    """Returns the SHA-256 of the `.npy` file of a column `[n, ...]`, in hexadecimal digits.

    A `StoredColumn` is read and compared with its expected digest only the first time.

    Raises:
      ValueError: the column's file has shrunk, or is not what was written.
    """
    stored = isinstance(column, StoredColumn) and column.sha256 is not None
    if stored and column.intact:
        check_length(column)
        return column.sha256
    content = hashlib.sha256(npy_header(column.dtype, column.shape))
    for piece in pieces(column):
        content.update(piece.reshape(-1).view(np.uint8))
    found = content.hexdigest()
    if stored:
        check_digest(column.filename, found, column.sha256)
        column.intact = True
    return found


def verify(column: np.ndarray) -> None:
    """Compares a `StoredColumn` with its digest, unless already done; other arrays pass.

    Raises:
      ValueError: the column's file has shrunk, or is not what was written.
    """
    if isinstance(column, StoredColumn) and column.sha256 is not None:
        digest(column)


def check_digest(path, found: str, wanted: str) -> None:
    """Refuses a file if its SHA-256 is not the one it was written with.

    Raises:
      ValueError: the digests differ.
    """
    if found != wanted:
        raise ValueError(
            f"{path} is not what was written: its SHA-256 is {found}, wanted {wanted}; {CURE}."
        )


def check_length(column: np.ndarray) -> None:
    """Refuses a map of a file that has become shorter; other arrays pass.

    Reading past the end of a file raises no exception but a signal, SIGBUS, which ends the process.

    Raises:
      ValueError: the file has shrunk.
    """
    mapping = _mapping(column)
    if mapping is None:
        return
    start = column.offset - column.offset % mmap.ALLOCATIONGRANULARITY
    got, wanted = mapping.size(), start + len(mapping)
    if got < wanted:
        raise ValueError(
            f"{column.filename} shrank while it was in use: it has {got} bytes, wanted {wanted}; {CURE}."
        )


def release(column: np.ndarray) -> None:
    """Releases the pages that have been read, so that they do not add up to the whole file.

    The system caches them for as long as there is room. Other arrays are left alone.
    """
    mapping = _mapping(column)
    # A map in another mode may hold changes that exist nowhere else.
    if mapping is not None and column.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def pieces(column: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows of a column `[n, ...]` in contiguous pieces of bounded size.

    Raises:
      ValueError: the column's file has shrunk.
    """
    rows = max(1, _PIECE_BYTES // max(1, column[:1].nbytes))
    for first in range(0, len(column), rows):
        check_length(column)
        yield np.ascontiguousarray(column[first : first + rows])
        release(column)


def _mapping(column: np.ndarray) -> mmap.mmap | None:
    """Returns the file map that a column is a view of, or None."""
    base = column if isinstance(column, np.memmap) else None
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
