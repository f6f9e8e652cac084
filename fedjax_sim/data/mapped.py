"""Columns that are read-only maps of files: they are never held in memory as a whole."""

import mmap
from collections.abc import Iterator

import numpy as np

_PIECE_BYTES = 2**24


def check_length(column: np.ndarray) -> None:
    """Refuses a map of a file that has become shorter; other arrays pass.

    Reading where the file has ended is no exception but a signal, SIGBUS, which ends the process.

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
            f"{column.filename} shrank while it was in use: it has {got} bytes, wanted {wanted}; "
            "restore the file, or write the data anew."
        )


def release(column: np.ndarray) -> None:
    """Lets go of the pages that have been read, so that they do not add up to the whole file.

    They stay in the system's cache for as long as there is room. Other arrays keep what they hold.
    """
    mapping = _mapping(column)
    # What a map in another mode holds may be written nowhere else.
    if mapping is not None and column.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def pieces(column: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a column `[n, ...]` in pieces of a bounded size, each contiguous.

    Raises:
      ValueError: the column's file has shrunk.
    """
    rows = max(1, _PIECE_BYTES // max(1, column[:1].nbytes))
    for first in range(0, len(column), rows):
        check_length(column)
        yield np.ascontiguousarray(column[first : first + rows])
        release(column)


def _mapping(column: np.ndarray) -> mmap.mmap | None:
    """What a column is a view of, if that is a file."""
    base = column if isinstance(column, np.memmap) else None
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
