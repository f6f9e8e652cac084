"""The Walsh-Hadamard transform, near the speed of memory."""

import functools

import jax
import numpy as np

_FACTOR = 7  # bits of the largest factor: products with matrices of 128 x 128 keep a core busy


def next_power_of_two(size: int) -> int:
    """Returns the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def hadamard_transform(x: jax.Array) -> jax.Array:
    """Returns `H x / sqrt(d)`, where H is the Hadamard matrix in Sylvester's order; its own inverse.

    H is a Kronecker product of small Hadamard matrices, so the transform is a few products with those,
    of at most 128 multiplications for each entry.

    Args:
      x: `[d]` floats, where d is a power of two.

    Raises:
      ValueError: `x` is no vector, or d is no power of two.
    """
    if x.ndim != 1 or not x.size or x.size != next_power_of_two(x.size):
        raise ValueError(
            f"got an array of shape {list(x.shape)}; wanted a vector of 1, 2, 4, 8, ... entries"
        )
    bits = x.size.bit_length() - 1
    count = max(1, -(-bits // _FACTOR))
    # The first axis is transformed and becomes the last, until all have had their turn.
    for i in range(count):
        factor = _matrix((bits + i) // count, x.dtype)
        columns = x.reshape(len(factor), -1)
        x = jax.lax.dot_general(columns, factor, (((0,), (0,)), ((), ())), precision="highest")
    return x.reshape(-1)


@functools.cache
def _matrix(bits: int, dtype: np.dtype) -> np.ndarray:
    """Returns the orthonormal Hadamard matrix of `2**bits`."""
    h = np.ones((1, 1))
    for _ in range(bits):
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(len(h))).astype(dtype)
