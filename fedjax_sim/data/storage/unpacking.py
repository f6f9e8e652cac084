"""Files, packed or plain, that are read no further than a limit."""

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

# What is read takes memory of several times its size, and of the oddest files 40 times.
MAX_UNPACKED_BYTES = 2**30

_OPENERS = types.MappingProxyType({".gz": gzip.open, ".xz": lzma.open})
_BUFFER_BYTES = 2**20


@contextlib.contextmanager
def unpacked(path: str | os.PathLike, max_unpacked_bytes: int) -> Iterator[BinaryIO]:
    """Opens a file to read, unpacked if its name ends in `.gz` or `.xz`.

    Args:
      path: of the file.
      max_unpacked_bytes: reading more is an error, which stops small files that unpack to huge ones.

    Raises:
      ValueError: the limit is not a positive integer, there is more to read than that, or the file is
        damaged; all but the first are raised where it is read.
      FileNotFoundError: there is no such file.
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
    """Refuses a file of which more would be made than may be read.

    Args:
      path: of the file.
      made_bytes: that its examples take in memory.
      max_unpacked_bytes: the limit.

    Raises:
      ValueError: it is exceeded.
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
        # Some at a time, since what unpacks reads all that is wanted before it is copied here.
        try:
            found = self._stream.readinto(memoryview(buffer)[:_BUFFER_BYTES])
        except MemoryError as error:  # an archive says how large a dictionary it needs, to 4 GiB
            raise ValueError(f"{self._path} takes more memory to unpack than there is.") from error
        self._count += found
        if self._count > self._limit:
            raise ValueError(f"{self._path} has more to read than expected; {_wanted(self._limit)}")
        return found


def _wanted(limit: int) -> str:
    return (
        f"wanted at most max_unpacked_bytes, {limit:,}: if this is the file that is meant, raise that, "
        "and see that there are several times as much memory."
    )
