"""Krum: the update that is nearest to its neighbours.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries: Byzantine
tolerant gradient descent", NeurIPS 2017, https://arxiv.org/abs/1703.02757
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregation.ends import End, keep_updates
from fedjax_sim.core.checks import check_count


def krum(*, num_byzantine: int) -> End:
    """Takes the one update with the least sum of squared distances to its `K - f - 2` nearest others.

    `K` counts the clients of the round that have data. If they are fewer than `2 f + 3`, the round
    changes nothing and adds 1 to the column "skipped_rounds". Distances come from a Gram matrix, so
    differences below one in a thousand of the updates' norm are lost to rounding.

    Args:
      num_byzantine: `f`, number of clients of a round that may send anything.

    Raises:
      ValueError: `f` is not a whole number of at least 0, or, when traced, a round has fewer than
        `2 f + 3` clients.
    """
    byzantine = 0 if num_byzantine == 0 else check_count("num_byzantine", num_byzantine)

    def choose(updates: Any, present: jax.Array) -> Any:
        best = krum_choice(gram_matrix(updates), present, byzantine)
        return jax.tree.map(lambda rows: rows[best], updates)

    settings = {"num_byzantine": byzantine}
    return keep_updates("krum", choose, settings, least=2 * byzantine + 3)


def gram_matrix(updates: Any) -> jax.Array:
    """Returns the scalar products `[K, K]` float32 of the rows of a pytree of `[K, ...]`."""

    def of_leaf(rows):
        rows = rows.reshape(rows.shape[0], -1)
        return jnp.matmul(rows, rows.T, precision="highest", preferred_element_type=jnp.float32)

    return sum(map(of_leaf, jax.tree.leaves(updates)))


def krum_choice(gram: jax.Array, present: jax.Array, byzantine: int) -> jax.Array:
    """Returns the position `[]` int32 of the update that Krum chooses.

    Args:
      gram: `[K, K]`, the updates' scalar products.
      present: `[K]` bool, which of them count.
      byzantine: `f`.
    """
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    others = present[:, None] & present[None, :] & ~jnp.eye(present.size, dtype=bool)
    # NaN, which an attacker may send, is as far away as can be.
    distances = jnp.where(others & ~jnp.isnan(distances), distances, jnp.inf)
    nearest = jnp.arange(present.size) < present.sum(dtype=jnp.int32) - byzantine - 2
    scores = jnp.where(nearest[None, :], jnp.sort(distances, axis=1), 0.0).sum(axis=1)
    # An absent client is behind even one that is infinitely far away.
    scores = jnp.where(present, jnp.minimum(scores, jnp.finfo(jnp.float32).max), jnp.inf)
    return jnp.argmin(scores).astype(jnp.int32)
