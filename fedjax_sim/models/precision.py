"""Training in bfloat16 with weights in float32.

P. Micikevicius et al., "Mixed precision training", ICLR 2018, https://arxiv.org/abs/1710.03740, keep the
weights in float32. D. Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019,
https://arxiv.org/abs/1905.12322, use bfloat16, which has float32's range and needs no loss scaling.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Batch, Params, Ratio, Task, Variables


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

    def wide(ratio: Ratio) -> Ratio:
        total, count = ratio
        return total.astype(jnp.float32), count.astype(jnp.float32)

    def loss(params: Params, batch: Batch, key: jax.Array) -> Ratio:
        return wide(task.loss(_narrow(params), batch, key))

    def loss_and_state(params: Variables, batch: Batch, real: jax.Array, key: jax.Array):
        ratio, state = task.loss_and_state(_narrow(params), batch, real, key)
        return wide(ratio), state

    return task._replace(
        loss=loss, loss_and_state=None if task.loss_and_state is None else loss_and_state
    )


def follow(x: jax.Array, params: Params) -> jax.Array:
    """Casts floats `x` to the parameters' common dtype, if they have one; integers stay as they are."""
    weights = params.params if isinstance(params, Variables) else params
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(weights) if _is_float(leaf)}
    return x.astype(dtypes.pop()) if _is_float(x) and len(dtypes) == 1 else x


def _narrow(params: Params) -> Params:
    """Returns the parameters in bfloat16, and a model's state as it is, since it sums up many steps."""
    if isinstance(params, Variables):
        return params._replace(params=_narrow(params.params))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if _is_float(leaf) else leaf, params)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
