"""Regression tasks from models that map inputs to numbers."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Batch, Ratio, Task
from fedjax_sim.models.network import Decode, network


def regressor(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    integer_inputs: bool = False,
    decode: Decode | None = None,
) -> Task:
    """Makes the task of predicting numbers `batch["y"]`, `[B]` or `[B, m]`, from `batch["x"]`.

    Args:
      model: model whose outputs have the shape of `y`, of a kind that `classifier` takes.
      input_shape: shape of one example, as stored.
      integer_inputs: see `classifier`; likewise `decode`.

    Returns:
      A task whose loss is the squared error, a mean over the m numbers of an example, with the metrics
      "loss" and "mae", the mean absolute error. Predictions are the model's outputs.

    Raises:
      ValueError: see `classifier`. Where `y` has another shape than the predictions, loss and metrics
        raise it, before any training.
    """
    net = network(
        model,
        input_shape,
        integer_inputs=integer_inputs,
        decode=decode,
        wanted="numbers [B] or [B, m]",
        fits=lambda shape: len(shape) <= 1,
    )

    def differences(found: jax.Array, batch: Batch) -> jax.Array:
        """Returns predictions minus `y`, `[B, m]`."""
        y = batch["y"]
        if y.shape != found.shape:
            raise ValueError(
                f"column 'y' has the shape {[*y.shape]} and the model's predictions {[*found.shape]}; "
                "wanted the same: write y[:, None] for a model that returns [B, 1], or have it return "
                "its output[:, 0] for y of shape [B]"
            )
        return (found - y.astype(found.dtype)).reshape(len(y), -1)

    def loss(found: jax.Array, batch: Batch) -> Ratio:
        total = jnp.square(differences(found, batch)).mean(axis=1)
        return total, jnp.ones_like(total)

    def metrics(found: jax.Array, batch: Batch) -> dict[str, Ratio]:
        total = jnp.abs(differences(found, batch)).mean(axis=1)
        return {"mae": (total, jnp.ones_like(total))}

    return net.task(loss, metrics, lambda found: found)
