"""Training in bfloat16 with weights in float32.

P. Micikevicius et al., "Mixed precision training", ICLR 2018, https://arxiv.org/abs/1710.03740, keep the
weights in float32; D. Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019,
https://arxiv.org/abs/1905.12322, whose numbers have the range of float32, so that no loss is scaled.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Batch, Params, Task


def bfloat16(task: Task) -> Task:
    """The same task, whose loss and gradient are computed in bfloat16.

    The loss sees the parameters rounded to bfloat16. They themselves, the optimizer and what clients
    send stay float32, and so do softmax and the sums of losses; the gradient is computed in bfloat16
    and arrives as float32. Metrics are computed in float32 with the float32 parameters, since these
    are what will be used.

    Every task of `fedjax_sim.models` follows, and so does a model given to `classifier` that computes in
    the dtype of its parameters and inputs. A loss of your own has to cast its inputs to the dtype of the
    parameters; float32 inputs would have everything computed in float32.

    Args:
      task: what is learned, its parameters float32.
    """

    def loss(params: Params, batch: Batch, key: jax.Array):
        total, count = task.loss(_cast(params, jnp.bfloat16), batch, key)
        return total.astype(jnp.float32), count.astype(jnp.float32)

    return task._replace(loss=loss)


def follow(x: jax.Array, params: Params) -> jax.Array:
    """Floats `x` in the dtype of the parameters if they have one in common; integers as they are."""
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params) if _is_float(leaf)}
    return x.astype(dtypes.pop()) if _is_float(x) and len(dtypes) == 1 else x


def _cast(tree: Params, dtype: jnp.dtype) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, tree)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
