"""Estimate of a lane's device memory, from shapes alone, before compilation."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from fedjax_sim.core import trees
from fedjax_sim.core.types import Task
from fedjax_sim.engine.gradients import PIECES
from fedjax_sim.engine.optimizers import OptimizerFactory

# A lane holds its own model, its gradient, and the update that it adds to the sum.
_MODELS = 3
# Activations kept for the backward pass, and as much for their gradients.
_ACTIVATIONS = 2


def lane_bytes(
    task: Task, make_optimizer: OptimizerFactory, batch_size: float, examples: Mapping[str, Any]
) -> int:
    """Returns the approximate bytes that one lane uses while training a client, data excluded.

    Args:
      task: the model and its loss.
      make_optimizer: function from a rate to the clients' optimizer.
      batch_size: `B`, or `math.inf`.
      examples: column name -> `[n, ...]`; only shapes and dtypes are used.
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
