"""Top-k sparsification: only the entries of largest magnitude are sent.

A. F. Aji, K. Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017,
https://arxiv.org/abs/1704.05021
"""

import math

import jax
import jax.numpy as jnp

from fedjax_sim.compression.codec import Codec, Step
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core.checks import as_float


def top_k(fraction: float) -> Codec:
    """Keeps the `max(1, ceil(fraction * size))` entries of largest magnitude of each array.

    Values are sent in the array's dtype, indices with the bits that the array's size needs. Of equal
    magnitudes, the first entries are kept. The code is biased; `error_feedback` sends the rest later.

    Args:
      fraction: share of the entries that are kept, above 0, at most 1.

    Raises:
      ValueError: the fraction is out of range.
    """
    fraction = as_float("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"top_k's fraction is {fraction}; wanted a number above 0, at most 1")

    def split(key, x):
        del key
        flat = x.reshape(-1)
        # Rounded first, so that 0.07 of 100 entries is 7 despite binary fractions.
        count = max(1, math.ceil(round(fraction * x.size, 6)))
        _, index = jax.lax.top_k(jnp.abs(flat), count)
        return flat[index], Wire(index.astype(jnp.uint32), (x.size - 1).bit_length())

    def join(values, index, like):
        zeros = jnp.zeros((like.size,), like.dtype)
        return zeros.at[index.data].set(values, unique_indices=True).reshape(like.shape)

    return Codec((Step("top_k", {"fraction": fraction}, split, join, True, True),))
