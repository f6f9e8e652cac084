"""PowerSGD: each matrix becomes the product of two thin ones, by a step of power iteration.

T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: practical low-rank gradient compression for
distributed optimization", NeurIPS 2019, https://arxiv.org/abs/1905.13727, algorithms 1 and 2
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.stage import Stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Factors:
    """A matrix `[d1, d2]` as the product of two thin ones.

    Attributes:
      p: `[d1, r]`, with orthonormal columns.
      q: `[d2, r]`.
      shape: of the array that the matrix was; static.
    """

    p: jax.Array
    q: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def matrix(self) -> jax.Array:
        """Returns the product, `[d1, d2]`."""
        return jnp.matmul(self.p, self.q.T, precision="highest")


class _Memory(NamedTuple):
    """What ONE client remembers.

    Attributes:
      residual: like the model, what has not been sent yet.
      bases: `Q` of each matrix, in the order of the leaves.
    """

    residual: Any
    bases: tuple[jax.Array, ...]


def power_sgd(rank: int) -> Stage:
    """Sends `P` and `Q` of an update `P Q^T`, with error feedback and a warm start.

    For the update `M`, with what was lost before, `P` is an orthonormal basis of `M Q`, and then
    `Q = M^T P`. The client's next round starts from this `Q`. In the paper all workers share `P` and
    `Q`, means that are taken in between; here a client sends one message a round, so each has its own.

    An array `[..., d2]` counts as a matrix. Vectors, scalars, and matrices that are no larger than their
    `P` and `Q` are sent whole.

    Args:
      rank: `r`, at least 1.

    Raises:
      ValueError: the rank is out of range.
    """
    rank = check_count("rank", rank)

    def is_split(leaf):
        columns = leaf.shape[-1] if leaf.ndim > 1 else leaf.size
        return leaf.ndim > 1 and leaf.size > rank * (leaf.size // columns + columns)

    def memory(params):
        bases = [
            jax.random.normal(
                jax.random.fold_in(jax.random.key(0), i), (leaf.shape[-1], rank), leaf.dtype
            )
            for i, leaf in enumerate(jax.tree.leaves(params))
            if is_split(leaf)
        ]
        return _Memory(trees.zeros_like(params), tuple(bases))

    def encode(state, hparams, own, update, key):
        update = trees.add(update, own.residual)
        bases = iter(own.bases)
        sent = jax.tree.map(lambda leaf: _factors(leaf, next(bases)) if is_split(leaf) else leaf, update)
        bases = tuple(one.q for one in jax.tree.leaves(sent, is_leaf=_is_factors) if _is_factors(one))
        return sent, _Memory(trees.subtract(update, decode(sent)), bases), ()

    def decode(sent):
        return jax.tree.map(
            lambda one: one.matrix().reshape(one.shape) if _is_factors(one) else one,
            sent,
            is_leaf=_is_factors,
        )

    settings = {"rank": rank}
    return Stage("power_sgd", settings, {}, memory=memory, encode=encode, decode=decode, is_encoder=True)


def _factors(leaf: jax.Array, q: jax.Array) -> _Factors:
    """Takes one step of power iteration, in float32 or wider."""
    wide = np.promote_types(leaf.dtype, np.float32)
    matrix = leaf.reshape(-1, leaf.shape[-1]).astype(wide)
    p = jnp.linalg.qr(jnp.matmul(matrix, q.astype(wide), precision="highest"))[0]
    q = jnp.matmul(matrix.T, p, precision="highest")
    return _Factors(p.astype(leaf.dtype), q.astype(leaf.dtype), leaf.shape)


def _is_factors(node: Any) -> bool:
    return isinstance(node, _Factors)
