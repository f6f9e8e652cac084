"""Reads the idx files in which MNIST and its kin are distributed.

Format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist/. A header of two zero bytes, a type code, the number of axes and
each axis as a big-endian 32-bit integer; then the numbers, big-endian, last axis fastest.
"""

import math
import pathlib
import types

import numpy as np

from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES, unpacked

_TYPE_CODES = types.MappingProxyType({"uint8": 0x08, "int32": 0x0C})


def read_idx(
    path: pathlib.Path,
    dtype: str,
    shape: tuple[int, ...],
    *,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> np.ndarray:
    """Reads one gzipped idx file of known contents, and no more than these.

    Args:
      path: the `.gz` file.
      dtype: `"uint8"` or `"int32"`.
      shape: the axes that the file must declare.
      max_unpacked_bytes: a file that unpacks to more is refused.

    Returns:
      An array of `dtype` and `shape`, in the machine's byte order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not gzip, its header or length is not what `dtype` and `shape` imply, or it is
        too large.
    """
    dtype = np.dtype(dtype)
    header = _header(dtype, shape)
    size = math.prod(shape) * dtype.itemsize
    try:
        with unpacked(path, max_unpacked_bytes) as file:
            found = file.read(len(header))
            # One byte past the end shows a file that is too long, whatever it unpacks to.
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
