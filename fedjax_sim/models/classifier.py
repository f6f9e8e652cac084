"""Classification tasks from models that map inputs to logits."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Params, Task
from fedjax_sim.models.network import Decode, network


def classifier(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    integer_inputs: bool = False,
    decode: Decode | None = None,
) -> Task:
    """Makes the task of predicting `batch["y"]` `[B]` from `batch["x"]` `[B, *input_shape]`.

    The model gets its inputs in the dtype of its parameters; the loss is float32.

    A flax module whose `__call__` takes `train`, `training`, `is_training`, `is_train` (True in
    training) or `deterministic` (False in training) gets that flag; nnx modules are also switched by
    `train()` and `eval()`. flax's own dropout must then be on in training and off in evaluation.

    Args:
      model: a flax linen module; or a function that takes `nnx.Rngs` and returns a flax nnx module; or a
        pair `(init, apply)` with `init(key) -> params` and `apply(params, x) -> logits [B, classes]`,
        which gets no key and so cannot use dropout. An object with these two functions serves as well.
      input_shape: shape of one example, as stored.
      integer_inputs: whether the model reads integers, such as tokens, which then reach it as stored.
      decode: function from stored inputs `[B, *input_shape]` to what the model reads, which runs inside
        the compiled step and may change the shape. The default divides bytes (uint8) by 255, to [0, 1],
        makes booleans floats, leaves floats alone and refuses other integers; with `integer_inputs` it
        leaves integers alone.

    Returns:
      A task with cross-entropy loss, the metrics "accuracy" and "loss", and class probabilities
      `[B, classes]` as predictions.

    Raises:
      ValueError: the model is of another kind, keeps state beside its parameters (such as running
        batch statistics, which have no meaning as an average over clients), or does not return
        one vector of logits per example; or a flax module takes another argument that is required or
        a bool, or has dropout that stays off in training or on in evaluation.
    """
    init, outputs, (num_classes,) = network(
        model,
        input_shape,
        integer_inputs=integer_inputs,
        decode=decode,
        wanted="logits [B, classes]",
        fits=lambda shape: len(shape) == 1,
    )

    def loss(params: Params, batch: Batch, key: jax.Array):
        logits = outputs(params, batch, key)
        total = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return total, jnp.ones_like(total)

    def metrics(params: Params, batch: Batch):
        logits = outputs(params, batch, None)
        total = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(jnp.float32)
        ones = jnp.ones_like(total)
        return {"accuracy": (correct, ones), "loss": (total, ones)}

    def predict(params: Params, batch: Batch) -> jax.Array:
        return jax.nn.softmax(outputs(params, batch, None))

    return Task(init, loss, metrics, num_classes, predict)
