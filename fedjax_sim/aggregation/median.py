"""The coordinate-wise median and trimmed mean of updates.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-robust distributed learning: towards optimal
statistical rates", ICML 2018, https://arxiv.org/abs/1803.01498
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregation.ends import End, keep_updates
from fedjax_sim.core.checks import as_float

_BLOCK = 2**18  # numbers that are sorted at once, so that sorting needs little memory of its own


def median() -> End:
    """Takes the median of each coordinate over the round's clients with data, unweighted.

    An even number of clients averages the middle two. NaN counts as larger than any number.
    """

    def middle(block, count):
        low, high = (block[jnp.maximum(count - 1, 0) // 2], block[count // 2])
        return 0.5 * low + 0.5 * high

    return keep_updates("median", lambda updates, present: _sorted(middle, updates, present), {})


def trimmed_mean(fraction: float) -> End:
    """Takes the mean of each coordinate without its `floor(fraction * K)` least and greatest values.

    `K` counts the round's clients with data, unweighted. NaN counts as larger than any number.

    Args:
      fraction: at least 0, below 1/2.

    Raises:
      ValueError: the fraction is out of range.
    """
    fraction = as_float("fraction", fraction)
    if not 0 <= fraction < 0.5:
        raise ValueError(f"trimmed_mean's fraction is {fraction}; wanted at least 0, below 0.5")

    def inner(block, count):
        # From a table, rounded first, so that 0.29 of 100 is 29 despite binary fractions.
        counts = range(block.shape[0] + 1)
        cut = jnp.array([math.floor(round(fraction * k, 6)) for k in counts], jnp.int32)[count]
        order = jnp.arange(block.shape[0], dtype=jnp.int32)[:, None]
        kept = (order >= cut) & (order < count - cut)
        wide = np.promote_types(block.dtype, np.float32)
        total = jnp.where(kept, block, 0).sum(axis=0, dtype=wide)
        return (total / jnp.maximum(count - 2 * cut, 1).astype(wide)).astype(block.dtype)

    def combine(updates, present):
        return _sorted(inner, updates, present)

    return keep_updates("trimmed_mean", combine, {"fraction": fraction})


def _sorted(rule: Callable, updates: Any, present: jax.Array) -> Any:
    """Applies a rule to blocks of coordinates, each with its values in ascending order.

    Args:
      rule: `rule(block [K, b], count) -> [b]`; the first `count` rows are those of present clients.
      updates: a pytree of `[K, ...]`.
      present: `[K]` bool.
    """
    count = present.sum(dtype=jnp.int32)

    def of_leaf(leaf):
        num_rows, size = leaf.shape[0], leaf[0].size
        rows = leaf.reshape(num_rows, size)
        width = max(1, min(size, _BLOCK // num_rows))

        def of_block(i, combined):
            # The last block begins earlier than it would, so that all are equally wide.
            start = jnp.minimum(i * width, size - width)
            block = jax.lax.dynamic_slice_in_dim(rows, start, width, axis=1)
            block = jnp.sort(jnp.where(present[:, None], block, jnp.nan), axis=0)  # NaN comes last
            return jax.lax.dynamic_update_slice_in_dim(combined, rule(block, count), start, axis=0)

        combined = jax.lax.fori_loop(0, -(-size // width), of_block, jnp.zeros((size,), leaf.dtype))
        return combined.reshape(leaf.shape[1:])

    return jax.tree.map(of_leaf, updates)
