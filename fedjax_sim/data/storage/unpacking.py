"""Files, packed or plain, read up to a limit of bytes."""

import contextlib
import gzip
import io
import lzma
import os
import pathlib
import types
import zlib
from collections.abc import Iterator
from typing import BinaryIO

# Loading takes several times as much memory, and for the oddest files 40 times.
MAX_UNPACKED_BYTES = 2**30

_OPENERS = types.MappingProxyType({".gz": gzip.open, ".xz": lzma.open})
_BUFFER_BYTES = 2**20


@contextlib.contextmanager
def unpacked(path: str | os.PathLike, max_unpacked_bytes: int) -> Iterator[BinaryIO]:
    """Opens a file for reading, unpacked if its name ends in `.gz` or `.xz`.

    Args:
      path: path of the file.
      max_unpacked_bytes: most bytes to read, a limit that stops small files that unpack to huge ones.

    Raises:
      ValueError: the limit is not a positive integer, the file holds more than that, or the file is
        damaged; all but the first are raised while reading.
      FileNotFoundError: the file does not exist.
    """
    limit = max_unpacked_bytes
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(f"max_unpacked_bytes is {limit!r}; wanted an integer of at least 1")
    path = pathlib.Path(path)
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
            yield io.BufferedReader(_Limited(stream, path, limit), _BUFFER_BYTES)
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a whole {path.suffix} file ({error}): download or pack it again."
        ) from error


def check_made_bytes(path: str | os.PathLike, made_bytes: int, max_unpacked_bytes: int) -> None:
    """Refuses a file if its examples would take too much memory.

    Args:
      path: path of the file.
      made_bytes: size of its examples in memory.
      max_unpacked_bytes: limit on that size.

    Raises:
      ValueError: the limit is exceeded.
    """
    if made_bytes > max_unpacked_bytes:
        wanted = _wanted(max_unpacked_bytes)
        raise ValueError(f"{path}: its examples would take {made_bytes:,} bytes; {wanted}")


class _Limited(io.RawIOBase):
    def __init__(self, stream: BinaryIO, path: pathlib.Path, limit: int):
        self._stream, self._path, self._limit, self._count = stream, path, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        # Some at a time: a decompressor unpacks all that is asked for before it is copied here.
        try:
            found = self._stream.readinto(memoryview(buffer)[:_BUFFER_BYTES])
        except MemoryError as error:  # archives may ask for a dictionary of up to 4 GiB
            raise ValueError(f"{self._path} takes more memory to unpack than there is.") from error
        self._count += found
        if self._count > self._limit:
            raise ValueError(f"{self._path} has more to read than expected; {_wanted(self._limit)}")
        return found


def _wanted(limit: int) -> str:
    return (
        f"wanted at most max_unpacked_bytes, {limit:,}: if this is the right file, raise that limit, "
        "which needs several times as much memory."
    )
