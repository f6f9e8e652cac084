"""Classification tasks from models that map inputs to logits."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Ratio, Task
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
    training), `deterministic` or `use_running_average` (False in training) gets that flag; nnx modules
    are also switched by `train()` and `eval()`. flax's own dropout must then be on in training and off
    in evaluation, and its BatchNorm use a batch's statistics in training and running ones in evaluation.

    A model that keeps state, such as BatchNorm's running statistics, has parameters of the type
    `fs.Variables`: the server averages the clients' states as it does their parameters, and `fs.fed_bn`
    leaves BatchNorm with the clients. Rows that pad a batch repeat another and are left out of
    BatchNorm's statistics; layers of your own that keep statistics of batches would count them.

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
      ValueError: the model is of another kind, keeps integers as state, or does not return one vector of
        logits per example; or a flax module takes another argument that is required or a bool, has
        dropout that stays off in training or on in evaluation, or BatchNorm that does the opposite.
    """
    net = network(
        model,
        input_shape,
        integer_inputs=integer_inputs,
        decode=decode,
        wanted="logits [B, classes]",
        fits=lambda shape: len(shape) == 1,
    )

    def loss(logits: jax.Array, batch: Batch) -> Ratio:
        total = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return total, jnp.ones_like(total)

    def metrics(logits: jax.Array, batch: Batch) -> dict[str, Ratio]:
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(jnp.float32)
        return {"accuracy": (correct, jnp.ones_like(correct))}

    return net.task(loss, metrics, jax.nn.softmax, num_classes=net.shape[0])
