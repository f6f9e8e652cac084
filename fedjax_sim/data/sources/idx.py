"""The idx files in which MNIST and its relatives are distributed.

Format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist/. A header of two zero bytes, a type code, the number of axes and
each axis as a big-endian 32-bit integer; then the numbers, big-endian, last axis fastest.
"""

import math
import pathlib
import types

import numpy as np

from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, check_made_bytes, unpacked

_TYPE_CODES = types.MappingProxyType({"uint8": 0x08, "int32": 0x0C})


def read_idx(
    path: pathlib.Path,
    dtype: str,
    shape: tuple[int | None, ...],
    *,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> np.ndarray:
    """Reads an idx file of known dtype and shape, and nothing beyond.

    Args:
      path: path of the file, gzipped if its name ends in `.gz`.
      dtype: `"uint8"` or `"int32"`.
      shape: shape that the file must declare; None as its first entry stands for any number of rows.
      max_unpacked_bytes: limit on the unpacked size of the file.

    Returns:
      An array of `dtype` and `shape`, in the machine's byte order.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not gzip, does not have the header and length that `dtype` and `shape`
        imply, or is too large.
    """
    dtype = np.dtype(dtype)
    try:
        with unpacked(path, max_unpacked_bytes) as file:
            found = file.read(4 * (1 + len(shape)))
            is_free = shape[0] is None
            shape = (int.from_bytes(found[4:8], "big"), *shape[1:]) if is_free else shape
            header = _header(dtype, shape)
            size = math.prod(shape) * dtype.itemsize
            if is_free and found == header:
                # Before reading, which sets aside as much memory as is asked for.
                check_made_bytes(path, size, max_unpacked_bytes)
            # One byte past the end reveals a file that is too long, whatever it unpacks to.
            body = file.read(size + 1) if found == header else b""
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; wanted an idx file there.") from None
    if found != header:
        raise ValueError(
            f"{path} begins with bytes {found.hex(' ')}; wanted {header.hex(' ')}, the idx header "
            f"of {dtype} numbers of shape {shape}: is this the file its name says?"
        )
    if len(body) != size:
        got = f"more than {size}" if len(body) > size else len(body)
        raise ValueError(
            f"{path} holds {got} bytes after its header; wanted {size} for {dtype} numbers of "
            f"shape {shape}: download it again."
        )
    return np.frombuffer(body, dtype.newbyteorder(">")).astype(dtype).reshape(shape)


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    magic = bytes([0, 0, _TYPE_CODES[dtype.name], len(shape)])
    return magic + b"".join(axis.to_bytes(4, "big") for axis in shape)
