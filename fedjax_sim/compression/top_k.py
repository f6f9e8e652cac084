"""Top-k sparsification: only the entries of largest magnitude are sent.

A. F. Aji, K. Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017,
https://arxiv.org/abs/1704.05021
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, count_kept
from fedjax_sim.compression.subsample import check_fraction
from fedjax_sim.compression.wire import Wire


def top_k(fraction: float) -> Codec:
    """Keeps the `max(1, ceil(fraction * size))` entries of largest magnitude of each array.

    Values are sent in the array's dtype, indices with the bits that the array's size needs. Of equal
    magnitudes, the first entries are kept. The code is biased; `error_feedback` sends the rest later.

    Args:
      fraction: share of the entries that are kept, above 0, at most 1.

    Raises:
      ValueError: the fraction is out of range.
    """
    fraction = check_fraction("top_k", fraction)

    def split(key, x):
        del key
        flat = x.reshape(-1)
        _, index = jax.lax.top_k(jnp.abs(flat), count_kept(fraction, x.size))
        return flat[index], Wire(index.astype(jnp.uint32), (x.size - 1).bit_length())

    def join(values, index, like):
        zeros = jnp.zeros((like.size,), like.dtype)
        return zeros.at[index.data].set(values, unique_indices=True).reshape(like.shape)

    def check(index, like):
        places = np.asarray(index.data)
        if places.max() >= like.size or np.unique(places).size < places.size:
            raise ValueError(
                f"top_k got places up to {places.max()}, some of them perhaps twice; wanted different "
                f"places below {like.size}"
            )

    return Codec((Step("top_k", {"fraction": fraction}, split, join, True, True, check=check),))
