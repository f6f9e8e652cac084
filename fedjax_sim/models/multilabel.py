"""Multi-label tasks: several yes-or-no questions about each example."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.types import Batch, Params, Task
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
    init, outputs, _ = network(
        model,
        input_shape,
        integer_inputs=integer_inputs,
        decode=decode,
        wanted="logits [B, labels]",
        fits=lambda shape: len(shape) == 1,
    )

    def logits_and_labels(params: Params, batch: Batch, key: jax.Array | None):
        logits, y = outputs(params, batch, key), batch["y"]
        if y.shape != logits.shape:
            raise ValueError(
                f"column 'y' has the shape {[*y.shape]} and the model's logits {[*logits.shape]}; "
                "wanted a 0 or 1 for each label of each example: [B, labels]"
            )
        return logits, y.astype(jnp.float32)

    def loss(params: Params, batch: Batch, key: jax.Array):
        total = optax.sigmoid_binary_cross_entropy(*logits_and_labels(params, batch, key)).mean(axis=1)
        return total, jnp.ones_like(total)

    def metrics(params: Params, batch: Batch):
        logits, y = logits_and_labels(params, batch, None)
        predicted = (logits > 0).astype(jnp.float32)
        right = (predicted == y).astype(jnp.float32)
        total = optax.sigmoid_binary_cross_entropy(logits, y).mean(axis=1)
        ones = jnp.ones_like(total)
        return {
            "loss": (total, ones),
            "accuracy": (right.mean(axis=1), ones),
            "exact_match": (right.min(axis=1), ones),
            # The denominator is the number of true labels and of predicted ones.
            "micro_f1": (2 * (predicted * y).sum(axis=1), (predicted + y).sum(axis=1)),
        }

    def predict(params: Params, batch: Batch) -> jax.Array:
        return jax.nn.sigmoid(outputs(params, batch, None))

    # `y` holds two values, whatever the number of labels.
    return Task(init, loss, metrics, num_classes=2, predict=predict)
