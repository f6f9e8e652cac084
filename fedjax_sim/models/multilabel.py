"""Multi-label tasks: several yes-or-no questions about each example."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Ratio, Task
from fedjax_sim.models.network import Decode, network


def multilabel(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    integer_inputs: bool = False,
    decode: Decode | None = None,
) -> Task:
    """Makes the task of predicting which labels hold, `batch["y"]` `[B, labels]`, from `batch["x"]`.

    Args:
      model: model that maps inputs to logits `[B, labels]`, of a kind that `classifier` takes.
      input_shape: shape of one example, as stored.
      integer_inputs: see `classifier`; likewise `decode`.

    Returns:
      A task whose loss is the sigmoid cross-entropy, a mean over labels. `y` holds the integers 0 and 1,
      and a label is predicted if its probability exceeds one half. The metrics are "loss"; "accuracy",
      the share of right labels; "exact_match", the share of examples with all labels right; and
      "micro_f1", 2 TP / (2 TP + FP + FN) over all labels. Predictions are probabilities `[B, labels]`.

    Raises:
      ValueError: see `classifier`. Where `y` has another shape than the logits, loss and metrics raise
        it, before any training.
    """
    net = network(
        model,
        input_shape,
        integer_inputs=integer_inputs,
        decode=decode,
        wanted="logits [B, labels]",
        fits=lambda shape: len(shape) == 1,
    )

    def labels(logits: jax.Array, batch: Batch) -> jax.Array:
        y = batch["y"]
        if y.shape != logits.shape:
            raise ValueError(
                f"column 'y' has the shape {[*y.shape]} and the model's logits {[*logits.shape]}; "
                "wanted a 0 or 1 for each label of each example: [B, labels]"
            )
        return y.astype(jnp.float32)

    def loss(logits: jax.Array, batch: Batch) -> Ratio:
        total = optax.sigmoid_binary_cross_entropy(logits, labels(logits, batch)).mean(axis=1)
        return total, jnp.ones_like(total)

    def metrics(logits: jax.Array, batch: Batch) -> dict[str, Ratio]:
        y = labels(logits, batch)
        predicted = (logits > 0).astype(jnp.float32)
        right = (predicted == y).astype(jnp.float32)
        ones = jnp.ones(len(y))
        return {
            "accuracy": (right.mean(axis=1), ones),
            "exact_match": (right.min(axis=1), ones),
            # The denominator is the number of true labels and of predicted ones.
            "micro_f1": (2 * (predicted * y).sum(axis=1), (predicted + y).sum(axis=1)),
        }

    # `y` holds two values, whatever the number of labels.
    return net.task(loss, metrics, jax.nn.sigmoid, num_classes=2)
