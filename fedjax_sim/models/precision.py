"""Training in bfloat16 with weights in float32.

P. Micikevicius et al., "Mixed precision training", ICLR 2018, https://arxiv.org/abs/1710.03740, keep the
weights in float32. D. Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019,
https://arxiv.org/abs/1905.12322, use bfloat16, which has float32's range and needs no loss scaling.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Batch, Params, Task


def bfloat16(task: Task) -> Task:
    """Returns the same task with loss and gradient computed in bfloat16.

    The loss sees the parameters rounded to bfloat16. The parameters themselves, the optimizer and what
    clients send stay float32, as do softmax and the sums of losses; the gradient is computed in bfloat16
    and arrives as float32. Metrics are computed in float32 with the float32 parameters, since these will
    be used.

    This works for every task of `fedjax_sim.models`, and for models given to `classifier` that compute
    in the dtype of their parameters and inputs. Your own loss must cast its inputs to the dtype of the
    parameters; with float32 inputs, everything would be computed in float32.

    Args:
      task: task with float32 parameters.
    """

    def loss(params: Params, batch: Batch, key: jax.Array):
        total, count = task.loss(_cast(params, jnp.bfloat16), batch, key)
        return total.astype(jnp.float32), count.astype(jnp.float32)

    return task._replace(loss=loss)


def follow(x: jax.Array, params: Params) -> jax.Array:
    """Casts floats `x` to the parameters' common dtype, if they have one; integers stay as they are."""
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params) if _is_float(leaf)}
    return x.astype(dtypes.pop()) if _is_float(x) and len(dtypes) == 1 else x


def _cast(tree: Params, dtype: jnp.dtype) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, tree)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
