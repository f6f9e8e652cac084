"""What a lane needs of a device's memory: told from shapes, before anything is compiled."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from fedjax_sim.core import trees
from fedjax_sim.core.types import Task
from fedjax_sim.engine.client import PIECES
from fedjax_sim.engine.optimizers import OptimizerFactory

# A lane has a model of its own, its gradient, and the update that it adds to the others'.
_MODELS = 3
# What the forward pass keeps for the backward one, and as much for the gradients of it.
_ACTIVATIONS = 2


def lane_bytes(
    task: Task, make_optimizer: OptimizerFactory, batch_size: float, examples: Mapping[str, Any]
) -> int:
    """About how many bytes one lane takes while a client trains in it; data is not counted.

    Args:
      task: what is learned.
      make_optimizer: from a rate to the clients' optimizer.
      batch_size: `B`, or `math.inf`.
      examples: column name -> `[n, ...]`; only shapes and dtypes are looked at.
    """
    width = max(PIECES) if batch_size == math.inf else int(batch_size)
    batch = {
        name: jax.ShapeDtypeStruct((width, *column.shape[1:]), column.dtype)
        for name, column in examples.items()
    }
    key = jax.random.key(0)
    params = jax.eval_shape(task.init, key)
    optimizer = jax.eval_shape(make_optimizer(1.0).init, params)

    def kept(params, batch, key):
        _, backward = jax.vjp(lambda params: task.loss(params, batch, key)[0], params)
        return backward

    activations = jax.eval_shape(kept, params, batch, key)
    models = _MODELS * trees.num_bytes(params) + trees.num_bytes(optimizer)
    return models + _ACTIVATIONS * trees.num_bytes(activations)
